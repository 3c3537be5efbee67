"""Small classic sets: Fashion-MNIST and MNIST (IDX files), and scikit-learn's digits."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from dreamlib.data.dataset import Contents, Item, Source
from dreamlib.data.download import fetched
from dreamlib.data.file_readers import reading
from dreamlib.utils.errors import DataError
from dreamlib.utils.files import sha256_array
from dreamlib.utils.rng import numpy_rng

FILES = {
    "train images": "train-images-idx3-ubyte",
    "train labels": "train-labels-idx1-ubyte",
    "test images": "t10k-images-idx3-ubyte",
    "test labels": "t10k-labels-idx1-ubyte",
}
CLASSES = {
    "fashion": (
        *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
    "mnist": tuple("0123456789"),
}
TORCHVISION = {"fashion": "FashionMNIST", "mnist": "MNIST"}  # its class, and its folder
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
NATIVE = 28  # pixels
LARGEST = 256 * 2**20  # bytes of a file, unpacked; the largest of these sets has 47 million
HALVES = "test images, half reference and half floor by a keyed permutation"
DIGITS_HELD_OUT = 300  # digits in the reference split, and as many in the floor split


def read_idx(path: Path | str) -> np.ndarray:
    """The uint8 array in an IDX file, gzipped or plain.  DataError if it is not a whole one."""
    path = Path(path)
    remedy = f"delete {path} and fetch it again"
    with reading(path):
        data = path.read_bytes()
    try:
        if data[:2] == b"\x1f\x8b":
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); {remedy}") from error
    if len(data) > LARGEST:
        raise DataError(f"{path} unpacks to more than {LARGEST:,} bytes; {remedy}")
    if len(data) < 4 or data[:3] != b"\0\0\x08":  # two zeros, then the code of unsigned bytes
        raise DataError(f"{path} is not an IDX file of bytes; {remedy}")
    dimensions = data[3]
    start = 4 + 4 * dimensions
    if dimensions == 0 or len(data) < start:
        raise DataError(f"{path} ends inside its header; {remedy}")
    shape = [int(n) for n in np.frombuffer(data, ">u4", dimensions, offset=4)]
    if len(data) - start != math.prod(shape):
        raise DataError(
            f"{path} holds {len(data) - start:,} values where its header promises {shape}; {remedy}"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def idx_source(
    name: str, folder: Path | str | None, size: int = 32, cache: Path | str | None = None
) -> Source:
    """Fashion-MNIST ("fashion") or MNIST ("mnist") at 28 pixels, or at 32 with a black border.

    The four files are looked for in `folder`, gzipped or not.  Without a folder they are looked for
    in `cache` (and, for Fashion-MNIST, where Debian puts them), then downloaded into `cache`.
    """
    if name not in CLASSES:
        raise DataError(f"there is no IDX set {name!r}; use one of {', '.join(CLASSES)}")
    if size not in (NATIVE, 32):
        raise DataError(f"{name} has {NATIVE} pixels and is not resized; set size to 28 or 32")
    arrays = {part: read_idx(path) for part, path in _locate(name, folder, cache).items()}
    for part in ("train", "test"):
        _check(part, arrays[f"{part} images"], arrays[f"{part} labels"])
    description = {
        "size": size,
        "border": (size - NATIVE) // 2,
        "arrays": {part: sha256_array(array) for part, array in arrays.items()},
        "held out": HALVES,
    }
    for part in ("train images", "test images"):
        arrays[part] = arrays[part][..., None]
    contents = halved(arrays, CLASSES[name], size, "idx split")
    return Source(name, description, lambda: contents)


def halved(
    arrays: dict[str, np.ndarray], classes: tuple[str, ...], size: int, purpose: str
) -> Contents:
    """Training images, then the test images in an order keyed by `purpose`, half for each split.

    In permuted order, because MNIST's later test images are harder than its first ones: so the
    first n of a split are a fair sample of it.
    """
    train, test = len(arrays["train images"]), len(arrays["test images"])
    order = numpy_rng(purpose).permutation(test)

    def item(part: str, i: int, split: str) -> Item:
        image = with_border(arrays[f"{part} images"][i], size)
        return Item(f"{part}/{i:05d}", image, (int(arrays[f"{part} labels"][i]),), split)

    def items(start: int) -> Iterator[Item]:
        for i in range(start, train):
            yield item("train", i, "train")
        for place, i in islice(enumerate(order), max(start - train, 0), None):
            yield item("test", i, "reference" if place < test // 2 else "floor")

    return Contents({"class": classes}, train + test, items)


def digits_source(size: int = 16) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8, enlarged to size x size by Pillow's bicubic."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the digits come with scikit-learn; `pip install scikit-learn`") from error
    bunch = load_digits()
    images = np.floor(bunch.images * 255 / 16 + 0.5).astype(np.uint8)
    order = numpy_rng("digits split").permutation(len(images))

    def items(start: int) -> Iterator[Item]:
        for place, i in islice(enumerate(order), start, None):
            split = "reference" if place < DIGITS_HELD_OUT else "floor"
            split = split if place < 2 * DIGITS_HELD_OUT else "train"
            large = Image.fromarray(images[i]).resize((size, size), Image.Resampling.BICUBIC)
            yield Item(f"digit/{i:05d}", np.array(large)[..., None], (int(bunch.target[i]),), split)

    description = {
        "size": size,
        "filter": "Pillow bicubic",
        "arrays": {"images": sha256_array(images), "labels": sha256_array(bunch.target)},
        "held out": f"{DIGITS_HELD_OUT} reference, {DIGITS_HELD_OUT} floor, keyed permutation",
    }
    contents = Contents({"class": CLASSES["mnist"]}, len(images), items)
    return Source("digits", description, lambda: contents)


def with_border(image: np.ndarray, size: int) -> np.ndarray:
    """[S,S,C] with a black border -> [size,size,C]."""
    border = (size - len(image)) // 2
    return np.pad(image, ((border, border), (border, border), (0, 0)))


def _check(part: str, images: np.ndarray, labels: np.ndarray) -> None:
    if images.shape[1:] != (NATIVE, NATIVE) or labels.shape != images.shape[:1]:
        raise DataError(
            f"the {part} files hold images {images.shape} and labels {labels.shape}, not one label "
            "per 28x28 image; fetch both files again"
        )
    if labels.max(initial=0) > 9:
        raise DataError(f"the {part} labels go beyond 9; fetch that file again")


def _locate(name: str, folder: Path | str | None, cache: Path | str | None) -> dict[str, Path]:
    for place in [folder] if folder else [cache, DEBIAN if name == "fashion" else None]:
        if place and (found := _find(name, Path(place))):
            return found
    if folder:
        raise DataError(f"{folder} does not hold the four files of {name}; {_remedy(name)}")

    def download(cache: Path) -> None:
        from torchvision import datasets

        getattr(datasets, TORCHVISION[name])(str(cache), download=True)

    if found := _find(name, fetched(name, download, cache, _remedy(name))):
        return found
    raise DataError(f"the download of {name} left no usable files; {_remedy(name)}")


def _find(name: str, folder: Path) -> dict[str, Path] | None:
    """The four files in one folder, or None if any is missing."""
    for place in (folder, folder / TORCHVISION[name] / "raw"):
        found = {part: _variant(place, file) for part, file in FILES.items()}
        if all(found.values()):
            return found
    return None


def _variant(place: Path, file: str) -> Path | None:
    """A file by its own name, or as Kaggle's copies have it; gzipped or not."""
    names = (file, file.replace("-idx", ".idx"), f"{file}/{file}")
    paths = (place / f"{name}{ending}" for name in names for ending in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)


def _remedy(name: str) -> str:
    files = ", ".join(f"{file}.gz" for file in FILES.values())
    debian = f" or install the Debian package dataset-fashion-mnist ({DEBIAN})"
    return f"put {files} into one folder and name it{debian if name == 'fashion' else ''}"
