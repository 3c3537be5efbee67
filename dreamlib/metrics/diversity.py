"""Perceptual diversity: how different the images of one set look from each other.

LPIPS is Zhang et al. 2018, with AlexNet as its trunk.  Diversity is its mean over disjoint random
pairs: pairs that share images are not independent, so that thousands of pairs drawn from a few
hundred images look far more certain than they are.  A value is read beside that of held-out real
images of the same size; more than real is as wrong as less.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamlib.errors import Interrupted, NotEnoughSamples, WeightsUnavailable
from dreamlib.files import sha256_file
from dreamlib.images import dequantise, to_rgb
from dreamlib.metrics.estimate import Estimate, mean_estimate
from dreamlib.metrics.pretrained import ALEXNET
from dreamlib.progress import Progress, silent
from dreamlib.rng import numpy_rng, seeded

# Two batches of uint8 images [B,H,W,C] -> the distance [B] of each pair.
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]

# LPIPS was fitted to judgements of patches of 64 pixels.  AlexNet's last maps are a single pixel
# from 31 to 46 pixels, and below 31 it cannot run at all.
SMALLEST = 64
SLICES = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}  # layer of AlexNet's features -> slice of lpips' trunk


class Lpips:
    """LPIPS distances from a local file of torchvision's AlexNet and the installed lpips' heads.

    `trunk_weights` comes from `pretrained.obtain`.  Images whose shorter side is below 64 pixels
    are enlarged to 64 there, bilinearly and with their shape kept; others enter as they are.
    WeightsUnavailable where lpips is not installed or the file holds another network.
    """

    name = "lpips"

    def __init__(self, trunk_weights: Path, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        net = _build()
        net.net.load_state_dict(_trunk(trunk_weights, net.net.state_dict()))
        self.net = net.eval().requires_grad_(False).to(self.device)
        digest = sha256_file(trunk_weights)[:12]
        self.identity = f"{self.name}-alex-{version('lpips')}-{digest}-min{SMALLEST}"

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
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            found = self.net(self._prepared(a), self._prepared(b))
        return found.flatten().double().cpu().numpy()

    def _prepared(self, images: np.ndarray) -> Tensor:
        x = dequantise(to_rgb(images)).to(self.device)
        short = min(x.shape[-2:])
        if short >= SMALLEST:
            return x
        height, width = (round(side * SMALLEST / short) for side in x.shape[-2:])
        return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)


def _build() -> nn.Module:
    """lpips' network with its fitted heads and a random trunk, so that it downloads nothing."""
    try:
        import lpips
    except ModuleNotFoundError as error:
        raise WeightsUnavailable("LPIPS needs lpips: pip install lpips") from error
    with warnings.catch_warnings(), seeded("lpips", 0):
        warnings.simplefilter("ignore")  # lpips asks torchvision in words that are deprecated
        return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)


def _trunk(path: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """AlexNet's convolutions under the names that lpips' trunk has for them."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsUnavailable(
            f"{path} holds no weights: put {ALEXNET.filename} there"
        ) from error
    state = state if isinstance(state, dict) else {}
    trunk = {
        f"slice{part}.{layer}.{kind}": state.get(f"features.{layer}.{kind}")
        for layer, part in SLICES.items()
        for kind in ("weight", "bias")
    }
    for name, value in wanted.items():
        if not isinstance(trunk[name], Tensor) or trunk[name].shape != value.shape:
            raise WeightsUnavailable(
                f"{path} does not hold torchvision's AlexNet (its {name.partition('.')[2]} does "
                f"not fit): put {ALEXNET.filename} there"
            )
    return trunk


def pair_diversity(
    images: np.ndarray,
    distance: Distance,
    seed: int,
    matchings: int = 1,
    *,
    batch: int = 100,
    progress: Progress = silent,
    should_stop: Callable[[], bool] = lambda: False,
) -> Estimate:
    """Mean `distance` over random pairs of uint8 images [N,H,W,C], with its standard error.

    One random perfect matching pairs every image once (one of an odd number is left out): N/2
    independent pairs, SE = sd / sqrt(N/2).  More matchings, of which no two have a pair in
    common, lower the error a little at their multiple of the time, with the SE of an incomplete
    U-statistic (Blom 1976).  TypeError for other images, NotEnoughSamples below 4, ValueError for
    a number of matchings outside 1..N-1, FloatingPointError for a distance that is not finite,
    Interrupted when `should_stop` asks for it between two batches.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise TypeError(f"diversity is of uint8 [N,H,W,C], got {images.dtype} {images.shape}")
    if len(images) < 4:
        raise NotEnoughSamples(f"diversity needs at least 2 pairs, got {len(images)} images")
    pairs = _matchings(len(images), matchings, seed)
    rows = pairs.reshape(-1, 2)
    values = np.empty(len(rows))
    advance = progress("pair distances", len(rows))
    for start in range(0, len(rows), batch):
        if should_stop():
            raise Interrupted(f"stopped after the distances of {start} of {len(rows)} pairs")
        part = rows[start : start + batch]
        values[start : start + len(part)] = _measured(images, part, distance)
        advance(len(part))
    if matchings == 1:
        return mean_estimate(values, "disjoint pairs")
    method = f"U-statistic over {matchings} matchings of {pairs[0].size:,} images"
    return Estimate(float(values.mean()), _matched_error(values, pairs), method)


def _matchings(count: int, matchings: int, seed: int) -> np.ndarray:
    """Perfect matchings of a random order, no pair in two of them: indices [matchings,n/2,2].

    The rounds of a tournament in which everybody meets everybody once: one stays, the others sit
    in a circle, and each round pairs what lies opposite across its own axis.
    """
    n = count - count % 2
    if not 1 <= matchings < n:
        raise ValueError(f"{n} images have between 1 and {n - 1} matchings, not {matchings}")
    rng = numpy_rng("pair diversity", seed)
    order = rng.permutation(count)[:n]
    axis = rng.permutation(n - 1)[:matchings, None]
    step = np.arange(1, n // 2)
    left = np.hstack([axis, (axis + step) % (n - 1)])
    right = np.hstack([np.full_like(axis, n - 1), (axis - step) % (n - 1)])
    return order[np.stack([left, right], axis=-1)]


def _measured(images: np.ndarray, pairs: np.ndarray, distance: Distance) -> np.ndarray:
    """Distances [b] of pairs [b,2]; FloatingPointError where one is not finite."""
    found = np.asarray(distance(images[pairs[:, 0]], images[pairs[:, 1]]), np.float64)
    if found.shape != (len(pairs),):
        raise ValueError(f"a distance gives one number per pair, got shape {found.shape}")
    if not np.isfinite(found).all():
        raise FloatingPointError(f"the distance of images {pairs[~np.isfinite(found)][0]} is NaN")
    return found


def _matched_error(values: np.ndarray, pairs: np.ndarray) -> float:
    """Standard error of the mean of distances [P] over M matchings of n images [M,n/2,2].

    Var = [P z_2 + n M (M - 1) z_1] / P^2: z_2 is the variance of a distance and z_1 the covariance
    of two that share an image, summed here from residuals.  The last factor undoes the centring at
    the mean of the same values, and is the usual (P - 1) / P at M = 1.
    """
    count, (matchings, half, _) = len(values), pairs.shape
    rest = values - values.mean()
    of_image = np.bincount(pairs.ravel(), np.repeat(rest, 2))
    alone = np.square(rest).sum()
    # z_1 is never negative, only its estimate can be.
    summed = max(np.square(of_image).sum() - alone, alone)
    left = 1 - (2 * matchings - 1) / (matchings * half)
    return float(np.sqrt(summed / left) / count)
