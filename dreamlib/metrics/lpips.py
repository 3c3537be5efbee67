"""Perceptual diversity: how different the images of one set look from each other.

LPIPS is Zhang et al. 2018, with AlexNet as its trunk.  Diversity is its mean over disjoint random
pairs: pairs that share images are not independent, and look far more certain than they are.  A
value is read beside that of as many held-out real images; more than real is as wrong as less.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dreamlib.metrics.estimate import Estimate, mean_estimate
from dreamlib.metrics.features import full_precision
from dreamlib.metrics.pairwise import blocks
from dreamlib.metrics.pretrained_weights import ALEXNET
from dreamlib.utils.context import progress, should_stop
from dreamlib.utils.errors import Interrupted, NotEnoughSamples, WeightsUnavailable
from dreamlib.utils.files import sha256_file
from dreamlib.utils.images import dequantise, to_rgb
from dreamlib.utils.rng import numpy_rng, seeded

# Two batches of uint8 images [B,H,W,C] -> the distance [B] of each pair.
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]

# LPIPS was fitted to judgements of patches of 64 pixels.  AlexNet's last maps are a single pixel
# from 31 to 46 pixels, and below 31 it cannot run at all.
SMALLEST = 64


class Lpips:
    """LPIPS distances from a local file of torchvision's AlexNet and the installed lpips' heads.

    `trunk_weights` comes from `obtain`.  Images whose shorter side is below 64 pixels
    are enlarged to 64 there, bilinearly and with their shape kept; others enter as they are.
    WeightsUnavailable where lpips is not installed or the file holds another network.
    """

    def __init__(self, trunk_weights: Path, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        net = _build()
        net.net.load_state_dict(_trunk(trunk_weights, net.net.state_dict()))
        self.net = net.eval().requires_grad_(False).to(self.device)
        digest = sha256_file(trunk_weights)[:12]
        self.identity = f"lpips-alex-{version('lpips')}-{digest}-min{SMALLEST}"

    @torch.inference_mode()
    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Distance of each pair of uint8 [B,H,W,1 or 3]: float64 [B]; grey images become RGB.

        TypeError for floats, whose range lpips would not check; ValueError for unequal shapes.
        """
        for images in (a, b):
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
                raise TypeError(
                    f"LPIPS takes uint8 [B,H,W,1 or 3], got {images.dtype} of shape "
                    f"{images.shape}: give it images as they are stored"
                )
        if a.shape != b.shape:
            raise ValueError(f"a pair has one shape, got {a.shape} and {b.shape}")
        with full_precision():
            distances = self.net(self._prepared(a), self._prepared(b))
        return distances.flatten().double().cpu().numpy()

    def _prepared(self, images: np.ndarray) -> Tensor:
        x = dequantise(to_rgb(images)).to(self.device)
        short = min(x.shape[-2:])
        if short >= SMALLEST:
            return x
        height, width = (round(side * SMALLEST / short) for side in x.shape[-2:])
        return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)


def _build() -> Any:
    """lpips' network with its fitted heads and a random trunk, so that it downloads nothing."""
    try:
        import lpips
    except ModuleNotFoundError as error:
        raise WeightsUnavailable("LPIPS needs lpips: pip install lpips") from error
    with warnings.catch_warnings(), seeded("lpips", 0):
        warnings.simplefilter("ignore")  # lpips asks torchvision in words that are deprecated
        return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)


def _trunk(path: Path, wanted: dict[str, Tensor]) -> dict[str, Any]:
    """AlexNet's convolutions under the names that lpips' trunk has for them."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsUnavailable(
            f"{path} holds no weights: put {ALEXNET.filename} there"
        ) from error
    trunk = {}
    for name, value in wanted.items():  # such as slice2.3.weight
        layer = name.partition(".")[2]
        found = state.get(f"features.{layer}") if isinstance(state, dict) else None
        if not isinstance(found, Tensor) or found.shape != value.shape:
            raise WeightsUnavailable(
                f"{path} does not hold torchvision's AlexNet (its {layer} does not fit): put "
                f"{ALEXNET.filename} there"
            )
        trunk[name] = found
    return trunk


def pair_diversity(
    images: np.ndarray, distance: Distance, seed: int, *, batch: int = 100
) -> Estimate:
    """Mean `distance` over random pairs of uint8 images [N,H,W,C], with its standard error.

    One random perfect matching pairs every image once (one of an odd number is left out): N/2
    independent pairs, SE = sd / sqrt(N/2).  TypeError for other images, NotEnoughSamples below 4,
    FloatingPointError for a distance that is not finite, Interrupted when `should_stop` asks for it
    between two batches.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise TypeError(f"diversity is of uint8 [N,H,W,C], got {images.dtype} {images.shape}")
    if len(images) < 4:
        raise NotEnoughSamples(f"diversity needs at least 2 pairs, got {len(images)} images")
    pairs = _matching(len(images), seed)
    values = np.empty(len(pairs))
    advance = progress("pair distances", len(pairs))
    for part in blocks(len(pairs), batch):
        if should_stop():
            raise Interrupted(f"stopped after the distances of {part.start} of {len(pairs)} pairs")
        first, second = pairs[part].T
        distances = np.asarray(distance(images[first], images[second]), np.float64)
        if distances.shape != first.shape:
            raise ValueError(f"a distance gives one number per pair, got shape {distances.shape}")
        if not np.isfinite(distances).all():
            odd = pairs[part][~np.isfinite(distances)][0]
            raise FloatingPointError(f"the distance of images {odd} is NaN")
        values[part] = distances
        advance(len(first))
    return mean_estimate(values, "disjoint pairs")


def _matching(count: int, seed: int) -> np.ndarray:
    """A random perfect matching: indices [n/2,2].

    A round of a tournament, by which all scores so far were drawn: one stays, the others sit in a
    circle, and each is paired with what lies opposite.
    """
    half = count // 2
    rng = numpy_rng("pair diversity", seed)
    *circle, stays = rng.permutation(count)[: 2 * half]
    circle = np.roll(circle, -rng.permutation(2 * half - 1)[0])
    return np.stack([circle[:half], [stays, *circle[: half - 1 : -1]]], axis=1)
