"""Images and statistics that others made: folders, arrays, diffusers pipelines, mu and sigma."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps

from dreamlib.data.archive import EXTENSIONS, Files, open_files
from dreamlib.data.folder import UNREADABLE, in_order, load_square, to_rgb
from dreamlib.errors import ConfigError, DataError, Interrupted
from dreamlib.files import fingerprint, write_atomic, write_npy
from dreamlib.metrics.frechet import Moments
from dreamlib.progress import Progress, silent

UNREADABLE_NPZ = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error)
SHARD = 100  # images of a pipeline that are kept in one file


def read_images(place: Path, *, channels: int = 3, size: int | None = None) -> np.ndarray:
    """All images of a folder, a zip, an .npy or an .npz file -> uint8 [N,H,W,channels].

    Pixels are taken as they are, in the order of their hashes, so that parts of the set are fair
    samples of it whatever the files' names.  With `size`, files are cropped to a square and resized
    first.  DataError for what cannot be read, for sizes that differ, and for float or NaN images.
    """
    if place.suffix in (".npy", ".npz"):
        images = _array(place)
        if size and images.shape[1:3] != (size, size):
            raise DataError(f"{place} holds images of {images.shape[1:3]}, not {size}x{size}")
    else:
        images = _files(place, size)
    images = as_channels(images, channels, str(place))
    order = sorted(range(len(images)), key=lambda i: hashlib.sha256(images[i].tobytes()).digest())
    return images[order]


def _array(path: Path) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"there is no file {path}: check the path")
    try:
        found = np.load(path, allow_pickle=False)
        if path.suffix == ".npz":
            names = [name for name in ("images", "arr_0") if name in found]
            if not names:
                raise ValueError(f"it holds {', '.join(found)}, but no images or arr_0")
            found = found[names[0]]
    except UNREADABLE_NPZ as error:
        raise DataError(f"{path} cannot be read as an array: {error}") from error
    return check_images(found, str(path))


def check_images(images: np.ndarray, what: str) -> np.ndarray:
    """uint8 [N,H,W,1 or 3], N >= 1, else DataError: for float images, NaN, other shapes."""
    if np.issubdtype(images.dtype, np.floating) and not np.isfinite(images).all():
        raise DataError(f"{what} holds NaN or infinite values: a generator has failed")
    if images.dtype != np.uint8:
        raise DataError(
            f"{what} holds {images.dtype} values: a range cannot be guessed; save uint8 images, "
            "floor(clip(127.5 x + 128, 0, 255)) of values in [-1, 1]"
        )
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise DataError(f"{what} has shape {images.shape}, not [N,H,W,1 or 3]")
    return images


def _files(place: Path, size: int | None) -> np.ndarray:
    files = open_files(place)
    names = [name for name in files.names if PurePosixPath(name).suffix[1:].lower() in EXTENSIONS]
    if not names:
        raise DataError(f"{place} holds no images; name a folder, a zip, an .npy or an .npz file")
    images = list(in_order(lambda name: _picture(files, name, size), names))
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise DataError(
            f"{place} holds images of {len(sizes)} sizes ({min(sizes)} to {max(sizes)}): say "
            "--size to have them cropped and resized"
        )
    return np.stack(images)


def _picture(files: Files, name: str, size: int | None) -> np.ndarray:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError("set PIL.ImageFile.LOAD_TRUNCATED_IMAGES to False: it invents pixels")
    try:
        file = io.BytesIO(files.read(name))
        if size:
            return load_square(file, size)
        with Image.open(file) as opened:
            opened.load()
            return np.array(to_rgb(ImageOps.exif_transpose(opened)))
    except UNREADABLE as error:
        raise DataError(
            f"{name} in {files.place} cannot be read ({error}): a score of the others would not be "
            "one of the set; remove or replace it"
        ) from error


def as_channels(images: np.ndarray, channels: int, place: str) -> np.ndarray:
    """Grey as three equal channels, or three equal ones as grey; DataError for colours."""
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    if (images != images[..., :1]).any():
        raise DataError(f"{place} holds colour images, but the run's are grey: convert them first")
    return images[..., :1].copy()


# --------------------------------------------------------------------------- statistics files


def read_statistics(path: Path, extractor: str, width: int) -> Moments | np.ndarray:
    """Moments (mu, sigma) as pytorch-fid and clean-fid write them, or features (feats).

    `extractor` is the name that the file must agree with if it has one; theirs do not.  DataError
    for a file that holds something else, or features of another width.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except UNREADABLE_NPZ as error:
        raise DataError(f"{path} cannot be read as statistics: {error}") from error
    made_by = str(found.get("extractor", extractor))
    if made_by != extractor:
        raise DataError(f"{path} was made by {made_by}, and these images are seen by {extractor}")
    if "feats" in found:
        features = np.asarray(found["feats"], np.float64)
        fits = features.ndim == 2 and features.shape[1] == width and len(features) > 1
        if not fits or not np.isfinite(features).all():
            raise DataError(f"{path}: feats must be finite numbers [n,{width}], n at least 2")
        return features
    if not {"mu", "sigma"} <= set(found):
        raise DataError(f"{path} holds {', '.join(found)}: mu and sigma, or feats, are needed")
    mu, sigma = (np.asarray(found[name], np.float64) for name in ("mu", "sigma"))
    if mu.shape != (width,) or sigma.shape != (width, width):
        raise DataError(f"{path}: {mu.shape} and {sigma.shape} do not fit {width} features")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all() and np.allclose(sigma, sigma.T)):
        raise DataError(f"{path}: mu and sigma must be finite, and sigma symmetric")
    try:
        moments = Moments.from_stats(mu, sigma, int(found["n"]) if "n" in found else None)
        _ = moments.factor  # negative eigenvalues are said here, not in the middle of the work
    except ValueError as error:
        raise DataError(f"{path} holds no covariance: {error}") from error
    return moments


def write_statistics(path: Path, moments: Moments, facts: Mapping[str, Any]) -> None:
    """mu and sigma, as pytorch-fid and clean-fid read them, with n and `facts` beside them."""
    arrays = {"mu": moments.mean, "sigma": moments.cov, "n": moments.n, **facts}
    write_atomic(path, lambda file: np.savez(file, **arrays))


# --------------------------------------------------------------------------- diffusers


def pipeline_images(
    folder: Path,
    n: int,
    keep: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    batch: int = 25,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
    should_stop: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """n images of a local diffusers pipeline -> uint8 [n,H,W,3]; image i is drawn by seed + i.

    Weights are read from safetensors only, code from the installed package only.  Shards are kept
    in `keep`, so that interrupted work goes on.  DataError for a folder that holds no pipeline.
    """
    pipeline = _pipeline(folder).to(device)
    pipeline.set_progress_bar_config(disable=True)
    more = {} if steps is None else {"num_inference_steps": steps}
    made_by = fingerprint([_content(folder), seed, steps, batch, str(device)])[:8]
    advance = progress(f"images of {folder.name}", n)
    shards = []
    for start in range(0, n, SHARD):
        path = keep / f"pipeline-{made_by}-{start:07d}.npy"
        wanted = min(SHARD, n - start)
        images = np.load(path, allow_pickle=False) if path.exists() else None
        if images is None or len(images) < wanted:
            drawn = []
            for first in range(start, start + wanted, batch):
                if should_stop():
                    raise Interrupted(f"stopped after {first:,} of {n:,} images of {folder}")
                seeds = range(first, min(first + batch, start + wanted))
                rngs = [torch.Generator().manual_seed(seed + i) for i in seeds]
                answer = pipeline(batch_size=len(rngs), generator=rngs, output_type="pil", **more)
                drawn += [np.array(to_rgb(image)) for image in answer.images]
            images = np.stack(drawn)
            write_npy(path, images)
        shards.append(images[:wanted])
        advance(wanted)
    return np.concatenate(shards)


def _pipeline(folder: Path) -> Any:
    if not (folder / "model_index.json").is_file():
        raise DataError(f"{folder} holds no diffusers pipeline: it has no model_index.json")
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise ConfigError(
            "--diffusers needs the diffusers package: pip install diffusers"
        ) from error
    try:
        return DiffusionPipeline.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise DataError(f"diffusers cannot load {folder}: {error}") from error


def _content(folder: Path) -> list[list[Any]]:
    """Names, sizes and times: cheap, and different for another pipeline in the same place."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        [path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns]
        for path in files
    ]
