"""Inception-2015 features after clean resizing: what FID is computed from.

The weights are the TensorFlow network of Heusel et al. 2017 as converted by pytorch-fid; the
resizing is Parmar et al. 2022 (clean-fid).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dreamlib.metrics.pretrained_weights import INCEPTION
from dreamlib.utils.errors import WeightsUnavailable
from dreamlib.utils.files import sha256_file
from dreamlib.utils.images import to_rgb

RESIZE = "clean"
SIZE = 299


def resize_clean(images: np.ndarray, size: int = SIZE) -> np.ndarray:
    """uint8 [B,H,W,1 or 3] -> float32 [B,size,size,3] in [0, 255].  Parmar et al. 2022.

    Bicubic with antialiasing on float channels, never rounded back to integers; an overshoot is
    cut off.  Grey images become three equal channels.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise TypeError(f"images are uint8 [B,H,W,1 or 3], got {images.dtype} {images.shape}")
    resized = np.empty((len(images), size, size, images.shape[-1]), np.float32)
    for image, out in zip(images, resized):
        for channel in range(images.shape[-1]):
            plane = Image.fromarray(image[..., channel].astype(np.float32))
            out[..., channel] = np.asarray(plane.resize((size, size), Image.Resampling.BICUBIC))
    return to_rgb(resized.clip(0, 255))


class InceptionExtractor:
    """The 2048 features of the frozen network after clean resizing, and logits of features.

    Pixels enter as (v - 128) / 128, as in the TensorFlow graph, torch-fidelity and clean-fid's
    "clean" mode; pytorch-fid's 2 v / 255 - 1 is up to 0.008 away.
    WeightsUnavailable where clean-fid is not installed or the file holds another network.
    """

    name, dim = "inception", 2048

    def __init__(self, weights_path: Path, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        net = _build()
        state = torch.load(weights_path, map_location="cpu", weights_only=True)
        try:
            net.load_state_dict(state)
        except RuntimeError as error:  # torch's word for names or shapes that do not fit
            raise WeightsUnavailable(
                f"{weights_path} does not hold Inception-2015: put {INCEPTION.filename} there"
            ) from error
        self.head = net.fc.weight.detach().double().numpy()  # [1008,2048]
        net.fc = nn.Identity()
        self.net = net.eval().requires_grad_(False).to(self.device)
        self.identity = f"{self.name}-{sha256_file(weights_path)[:12]}-{RESIZE}"

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Tensor:
        """uint8 [B,H,W,1 or 3] -> float32 [B,2048]."""
        pixels = torch.from_numpy(resize_clean(images)).permute(0, 3, 1, 2).contiguous()
        return self.net((pixels.to(self.device) - 128) / 128)

    def logits(self, features: np.ndarray) -> np.ndarray:
        """features [N,2048] -> float64 [N,1008], without the bias, as the Inception score takes."""
        return np.asarray(features, np.float64) @ self.head.T


def _build() -> Any:
    """torchvision's Inception with clean-fid's blocks, which pool as TensorFlow does."""
    try:
        from cleanfid import inception_pytorch as clean
    except ModuleNotFoundError as error:
        raise WeightsUnavailable(
            "Inception features need clean-fid: pip install clean-fid"
        ) from error
    from torchvision.models import inception as plain

    def last_blocks(channels: int) -> nn.Module:
        # Of the two blocks of this kind, the first averages and the second takes the maximum.
        return (clean.FIDInceptionE_1 if channels == 1280 else clean.FIDInceptionE_2)(channels)

    blocks = [
        *(plain.BasicConv2d, clean.FIDInceptionA, plain.InceptionB, clean.FIDInceptionC),
        *(plain.InceptionD, last_blocks, plain.InceptionAux),
    ]
    return plain.Inception3(1008, aux_logits=False, inception_blocks=blocks, init_weights=False)
