"""Images and statistics that others made: folders, arrays, mu and sigma."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageFile, ImageOps

from dreamlib.data.classic_sets import NATIVE, with_border
from dreamlib.data.dataset import Packed
from dreamlib.data.file_readers import check_unpacked, open_files
from dreamlib.data.formats import Files, images_among, open_image
from dreamlib.data.image_folder import FITS, UNREADABLE, in_order, load_square, to_rgb
from dreamlib.metrics.frechet import Moments
from dreamlib.utils.context import say
from dreamlib.utils.errors import ConfigError, DataError
from dreamlib.utils.files import DAMAGED, write_atomic
from dreamlib.utils.images import range_told

# What numpy and zipfile raise for a file that holds no arrays, or pretends to hold huge ones
NO_ARRAYS = (*DAMAGED, OSError, MemoryError, RuntimeError)
LARGEST_SIDE = 4096  # pixels to which images can be resized


def fit_of(data: Packed) -> str:
    """How image files become images like a run's, by what its pack's manifest says: "crop" or
    "pad" to its size, a "border" around Fashion-MNIST's 28 pixels; "" for a set that is never
    resized."""
    facts = data.manifest["description"]
    if "border" in facts:
        return "border"
    if facts.get("crop") == FITS["pad"]:
        return "pad"
    return "crop" if {"crop", "filter"} & set(facts) else ""


def read_images(
    place: Path, *, channels: int = 3, size: int | None = None, fit: str = "crop"
) -> np.ndarray:
    """All images of a folder, a zip, an .npy or an .npz file -> uint8 [N,H,W,channels].

    Pixels are taken as they are, in the order of their hashes, so that parts of the set are fair
    samples of it whatever the files' names.  With `size`, files are first made square by `fit`
    (see `fit_of`) and resized.  DataError for what cannot be read, for sizes that differ, and for
    float or NaN images.
    """
    if size and size > LARGEST_SIDE:
        raise ConfigError(f"images are resized to at most {LARGEST_SIDE:,} pixels, not {size:,}")
    if place.suffix in (".npy", ".npz"):
        images = _array(place)
        if size and images.shape[1:3] != (size, size):
            raise DataError(
                f"{place} holds images of {images.shape[1:3]}, not {size}x{size}: save them as "
                "image files, which are resized"
            )
    else:
        images = _files(place, size, fit)
    images = as_channels(images, channels, str(place))
    if message := range_told(images):
        say(f"{place}: {message}")
    order = sorted(range(len(images)), key=lambda i: hashlib.sha256(images[i].tobytes()).digest())
    return images[order]


@contextmanager
def arrays_of(path: Path, what: str) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of an .npz file, each read when it is asked for, or an .npy file's as arr_0.

    DataError, which says that it cannot be read as `what`, in the with block too.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}: check the path")
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            yield {"arr_0": found}
            return
        with found:
            check_unpacked(path, found.zip.infolist())
            yield found
    except NO_ARRAYS as error:
        raise DataError(f"{path} cannot be read as {what}: {error}") from error


def _array(path: Path) -> np.ndarray:
    with arrays_of(path, "an array") as arrays:
        name = next((name for name in ("images", "arr_0") if name in arrays), None)
        if name is None:
            raise DataError(f"{path} holds {', '.join(arrays)}, but no images or arr_0")
        if others := sorted(set(arrays) & STATISTICS):
            say(f"{path}: its images ({name}) are used, not its {', '.join(others)}")
        return check_images(arrays[name], str(path))


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


def _files(place: Path, size: int | None, fit: str) -> np.ndarray:
    files = open_files(place)
    names, others = images_among(files)
    if others:
        say(f"{place}: {others}")
    if not names:
        raise DataError(f"{place} holds no images; name a folder, a zip, an .npy or an .npz file")
    images = list(in_order(lambda name: _picture(files, name, size, fit), names))
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise DataError(
            f"{place} holds images of {len(sizes)} sizes ({min(sizes)} to {max(sizes)}): say "
            "--size to have them cropped and resized"
        )
    return np.stack(images)


def _picture(files: Files, name: str, size: int | None, fit: str) -> np.ndarray:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError("set PIL.ImageFile.LOAD_TRUNCATED_IMAGES to False: it invents pixels")
    try:
        file = io.BytesIO(files.read(name))
        if size and fit != "border":
            return load_square(file, size, fit)
        with open_image(file) as opened:
            opened.load()
            image = np.array(to_rgb(ImageOps.exif_transpose(opened)))
        if size and image.shape[:2] == (NATIVE, NATIVE):
            return with_border(image, size)
        return image
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


MOMENTS = (("mu", "sigma"), ("m2", "s2"))  # of pytorch-fid, clean-fid and ADM; of lucidrains
STATISTICS = {"feats", *(name for pair in MOMENTS for name in pair)}


def is_statistics(path: Path) -> bool:
    """Whether a file holds moments or features, and no images."""
    if path.suffix != ".npz" or not path.is_file():
        return path.suffix == ".pt"
    with arrays_of(path, "arrays") as arrays:
        return bool(STATISTICS & set(arrays)) and "arr_0" not in arrays


def read_statistics(
    path: Path, extractor: str, width: int, identity: str = ""
) -> Moments | np.ndarray:
    """Moments (mu, sigma) as pytorch-fid and clean-fid write them, lucidrains' (m2, s2), or
    features: clean-fid's (feats), or a .pt file of torch-fidelity's cache.

    `extractor` and `identity` are what the file must agree with if it has them; theirs have not.
    DataError for a file that holds something else, or features of another width.
    """
    if path.suffix == ".pt":
        return _features(path, "its tensor", _tensor(path), width)
    with arrays_of(path, "statistics") as arrays:
        made_by = str(arrays["extractor"]) if "extractor" in arrays else extractor
        if made_by == extractor and identity and "identity" in arrays:
            made_by, extractor = str(arrays["identity"]), identity
        if made_by != extractor:
            raise DataError(
                f"{path} was made by {made_by}, and these images are seen by {extractor}: make it "
                "again with that (`dreamlib data stats`), or set evaluate.extractor to the other"
            )
        if "feats" in arrays:
            return _features(path, "feats", arrays["feats"], width)
        for mu, sigma in MOMENTS:
            if mu in arrays and sigma in arrays:
                return _moments(path, arrays[mu], arrays[sigma], arrays.get("n"), width)
        raise DataError(f"{path} holds {', '.join(arrays)}: mu and sigma, or feats, are needed")


def _features(path: Path, what: str, features: np.ndarray, width: int) -> np.ndarray:
    fits = features.ndim == 2 and features.shape[1] == width and len(features) > 1
    if not fits or not _finite(features):
        raise DataError(f"{path}: {what} must be finite real numbers [n,{width}], n at least 2")
    return np.asarray(features, np.float64)


def _moments(
    path: Path, mu: np.ndarray, sigma: np.ndarray, n: np.ndarray | None, width: int
) -> Moments:
    if mu.shape != (width,) or sigma.shape != (width, width):
        raise DataError(f"{path}: {mu.shape} and {sigma.shape} do not fit {width} features")
    if not (_finite(mu) and _finite(sigma) and np.allclose(sigma, sigma.T)):
        raise DataError(f"{path}: mu and sigma must be finite real numbers, and sigma symmetric")
    try:
        moments = Moments.from_stats(mu, sigma, None if n is None else int(n))
        _ = moments.factor  # negative eigenvalues are said here, not in the middle of the work
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} holds no covariance: {error}") from error
    return moments


def _finite(values: np.ndarray) -> bool:
    return values.dtype.kind in "fiu" and bool(np.isfinite(values).all())


def _tensor(path: Path) -> np.ndarray:
    """The features that torch-fidelity keeps.  Its file of moments is a pickle of numpy's: those
    are programs, and are not read."""
    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(
            f"{path} is not read, because it may run a program: of torch-fidelity's cache, name "
            "the file ...-features-2048.pt; or save mu and sigma as an .npz file"
        ) from error
    if not isinstance(tensor, torch.Tensor):
        raise DataError(f"{path} holds no tensor of features [n,2048]")
    return tensor.numpy()


def write_statistics(path: Path, moments: Moments, facts: Mapping[str, Any]) -> None:
    """mu and sigma, as pytorch-fid and clean-fid read them, with n and `facts` beside them."""
    arrays = {"mu": moments.mean, "sigma": moments.cov, "n": moments.n, **facts}
    write_atomic(path, lambda file: np.savez(file, **arrays))
