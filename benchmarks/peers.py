"""The packages that dreamlib is measured against, each as its own documentation uses it.

`pip install dreamlib[bench]` brings them.  A peer is asked for one training step at a time, on
images in [-1, 1] that lie in memory already: file reading and logging are left out for everyone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batches = Callable[[int], Tensor]  # step -> images float32 [B,C,H,W] in [-1, 1]


class Lucidrains:
    """denoising-diffusion-pytorch with the defaults of its Trainer: v, sigmoid schedule, Adam at
    1e-4 with betas (0.9, 0.99), clipping at 1, averaged weights of 0.995 updated every ten steps.

    The package's own loop; the images' file reader and horizontal flips are left out.
    """

    def __init__(self, size: int, channels: int, dim: int, mults: tuple[int, ...], steps: int = 25):
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet
        from ema_pytorch import EMA

        net = Unet(dim, dim_mults=mults, channels=channels)
        self.net = GaussianDiffusion(net, image_size=size, sampling_timesteps=steps)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-4, betas=(0.9, 0.99))
        self.ema = EMA(self.net, beta=0.995, update_every=10)

    def step(self, x0: Tensor) -> float:
        loss = self.net((x0 + 1) / 2)
        seen = loss.item()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()
        return seen


class Diffusers:
    """diffusers' unconditional training example: UNet2DModel, DDPMScheduler, AdamW with betas
    (0.95, 0.999), a cosine rate, EMAModel with inverse gamma 1 and power 3/4."""

    def __init__(self, size: int, channels: int, **shape: Any):
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.training_utils import EMAModel

        self.net = UNet2DModel(size, in_channels=channels, out_channels=channels, **shape)
        self.scheduler = DDPMScheduler(num_train_timesteps=1000)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        self.ema = EMAModel(
            self.net.parameters(),
            decay=0.9999,
            use_ema_warmup=True,
            inv_gamma=1.0,
            power=3 / 4,
        )

    def step(self, x0: Tensor) -> float:
        eps = torch.randn_like(x0)
        t = torch.randint(0, 1000, (len(x0),), device=x0.device)
        x_t = self.scheduler.add_noise(x0, eps, t)
        loss = F.mse_loss(self.net(x_t, t).sample.float(), eps)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.net.parameters())
        return loss.item()
