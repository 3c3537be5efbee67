"""Extractors with an identity, and one streaming, cached way to run them over uint8 images."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dreamlib.metrics.classifier import FEATURES, Classifier, card_of, weights_bytes
from dreamlib.metrics.pairwise import blocks
from dreamlib.utils.context import progress, should_stop
from dreamlib.utils.errors import Interrupted
from dreamlib.utils.files import (
    fingerprint,
    read_npy,
    sha256_array,
    sha256_file,
    sweep,
    write_json,
    write_npy,
)
from dreamlib.utils.progress import Advance
from dreamlib.utils.threads import one_thread, side_by_side

log = logging.getLogger(__name__)

# Part of the cache key: raise it when the way features are computed changes.
BATCH = 100
CHUNK_IMAGES = 10 * BATCH  # whose features are kept in one file
REVISION = 1


class Extractor(Protocol):
    """What turns uint8 images [B,H,W,C] into float32 features [B,dim], each image by itself."""

    name: str  # "classifier", "inception": the word in FD[name]
    identity: str  # name, 12 hex of the weights' SHA-256 and resize mode: what a record quotes
    dim: int

    def __call__(self, images: np.ndarray) -> Tensor: ...


class ClassifierExtractor:
    """The 64 features of a trained `Classifier`, at the images' own size."""

    name, dim = "classifier", FEATURES

    def __init__(self, classifier: Classifier, device: torch.device | str = "cpu"):
        digest = hashlib.sha256(weights_bytes(classifier)).hexdigest()
        self.identity = f"{self.name}-{digest[:12]}-native"
        self.classifier = classifier.to(device)

    def __call__(self, images: np.ndarray) -> Tensor:
        return self.classifier.features(images)


def metric_name(extractor: Extractor) -> str:
    """FID is the name for Inception features; with others the extractor is part of the name."""
    return "FID" if extractor.name == "inception" else f"FD[{extractor.name}]"


def extract(
    images: np.ndarray, extractor: Extractor, *, batch: int = BATCH, cache: Path | None = None
) -> np.ndarray:
    """Features of uint8 images [N,H,W,C] (a memmap may be larger than memory): float64 [N,dim].

    With `cache`, a folder, features are kept by content (images, extractor and REVISION), some
    batches to a file: interrupted work goes on, and sets that begin alike share them.
    TypeError for other images, FloatingPointError for non-finite features, Interrupted when
    `should_stop` asks for it between two batches.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise TypeError(f"extract takes uint8 [N,H,W,C], got {images.dtype} {images.shape}")
    if cache is not None:
        sweep(Path(cache))
    advance = progress(f"{extractor.name} features", len(images))
    whole = np.empty((len(images), extractor.dim))
    for part in blocks(len(images), CHUNK_IMAGES):
        chunk, path, card = images[part], None, {}
        if cache is not None:
            card = {"extractor": extractor.identity, "revision": REVISION}
            card["images"] = sha256_array(chunk)
            path = Path(cache) / f"features-{fingerprint(card)[:12]}.npy"
        kept = _cached(path, card, whole[part].shape)
        if kept is not None:
            advance(len(chunk))
        else:
            kept = _computed(chunk, part.start, len(images), extractor, batch, advance)
            if path is not None:  # the card last
                write_json(path.with_suffix(".json"), {**card, "sha256": write_npy(path, kept)})
        whole[part] = kept
    return whole


def _computed(
    images: np.ndarray, first: int, total: int, extractor: Extractor, batch: int, advance: Advance
) -> np.ndarray:
    """Features of a chunk of `total` images, from number `first` on: float32 [n,dim].

    On a CPU several batches are computed side by side, by one thread each.
    """

    def one(part: slice) -> np.ndarray:
        if should_stop():
            done = f"{first + part.start} of {total} images"
            raise Interrupted(f"stopped after the features of {done}")
        return _one_batch(images[part], first + part.start, batch, extractor)

    def done(part: slice) -> None:
        advance(part.stop - part.start)

    parts = list(blocks(len(images), batch))
    with full_precision(), one_thread() as threads:
        threads = 1 if torch.cuda.is_initialized() else threads
        return np.concatenate(side_by_side(one, parts, threads, done))


def _one_batch(images: np.ndarray, first: int, batch: int, extractor: Extractor) -> np.ndarray:
    """Always `batch` images, filled up with zeros: the bits of a float sum can depend on the
    batch size, and an image must have the same features in every set that holds it."""
    padded = np.zeros((batch, *images.shape[1:]), np.uint8)
    padded[: len(images)] = images
    features = extractor(padded)[: len(images)].float().cpu().numpy()
    if not np.isfinite(features).all():
        raise FloatingPointError(
            f"{extractor.identity} gave NaN or infinite features within images "
            f"{first} to {first + len(images) - 1}"
        )
    return features


@contextmanager
def full_precision() -> Iterator[None]:
    """Keep TF32 out of the features of a GPU; on a CPU this changes nothing."""
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)


def _cached(path: Path | None, card: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray | None:
    """The kept features, if the card beside them says that they are whole and these."""
    found = card_of(path) if path else None
    if path is None or found is None:
        return None
    if found == {**card, "sha256": sha256_file(path)}:
        features = read_npy(path)
        if features is not None and features.shape == shape:
            return features
    log.warning("%s is not what its header says: the features are computed again", path)
    return None
