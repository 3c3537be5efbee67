"""What the network's output means: eps, or v with the same losses and samplers around it."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from dreamlib.diffusion.process import eps_from_v
from dreamlib.diffusion.schedule import Schedule


class Denoiser(nn.Module):
    """A network that answers with eps in float32, whatever it predicts; optionally autocast.

    A network that predicts v (Salimans 2022) has its error multiplied by a in eps; in x0, errors
    of eps are divided by a.  So they are not enlarged where there is little signal, which is where
    an image's brightness and colours are decided.
    """

    def __init__(
        self, net: nn.Module, sched: Schedule, prediction: str, dtype: torch.dtype | None = None
    ):
        super().__init__()
        self.net, self.sched, self.prediction, self.dtype = net, sched, prediction, dtype

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t [B,C,H,W], t [B] -> eps_hat float32 [B,C,H,W]."""
        with torch.autocast(x_t.device.type, self.dtype) if self.dtype else nullcontext():
            out = self.net(x_t, t).float()
        return eps_from_v(self.sched, x_t, t, out) if self.prediction == "v" else out


def loss_weight(sched: Schedule, prediction: str, t: Tensor) -> Tensor:
    """Weight of the squared error in eps, float32 [B]: 1, or 1/a^2 for v, where it makes that
    error the one in v."""
    if prediction == "eps":
        return torch.ones(t.shape, device=t.device)
    a, _ = sched.signal_noise(t)
    return a.flatten() ** -2
