"""Small classic sets: Fashion-MNIST, MNIST and CIFAR-10 from their files, scikit-learn's digits."""

from __future__ import annotations

import gzip
import http.client
import io
import math
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import starmap
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from dreamlib.data.dataset import Contents, Item, Source
from dreamlib.data.file_readers import open_files, reading
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
    "cifar10": (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
}
TORCHVISION = {"fashion": "FashionMNIST", "mnist": "MNIST"}  # its class, and its folder
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
NATIVE = 28  # pixels
LARGEST = 256 * 2**20  # bytes of a file, unpacked; the largest of these sets has 47 million
HALVES = "test images, half reference and half floor by a keyed permutation"
DIGITS_HELD_OUT = 300  # digits in the reference split, and as many in the floor split

# Krizhevsky 2009, the binary version: the Python version holds pickles, which are programs.
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR_LARGEST = 400 * 2**20  # bytes; CIFAR-10 has 184 million
CIFAR = {f"data_batch_{k}.bin": "train" for k in range(1, 6)} | {"test_batch.bin": "test"}
RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes
CIFAR_REMEDY = (
    f"fetch {CIFAR_ARCHIVE} by hand and name it, or the folder of its .bin files: --data PATH"
)


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
    start = 4 + 4 * data[3]  # a 32-bit size of each dimension
    if start == 4 or len(data) < start:
        raise DataError(f"{path} ends inside its header; {remedy}")
    shape = np.frombuffer(data[4:start], ">u4").tolist()
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
    if name not in TORCHVISION:
        raise DataError(f"there is no IDX set {name!r}; use one of {', '.join(TORCHVISION)}")
    if size not in (NATIVE, 32):
        raise DataError(f"{name} has {NATIVE} pixels and is not resized; set size to 28 or 32")
    arrays = {part: read_idx(path) for part, path in _locate(name, folder, cache).items()}
    description = {
        "size": size,
        "border": (size - NATIVE) // 2,
        "arrays": {part: sha256_array(array) for part, array in arrays.items()},
        "held out": HALVES,
    }
    for part in ("train", "test"):
        images, labels = arrays[f"{part} images"], arrays[f"{part} labels"]
        if images.shape[1:] != (NATIVE, NATIVE) or labels.shape != images.shape[:1]:
            raise DataError(
                f"the {part} files hold images {images.shape} and labels {labels.shape}, not one "
                "label per 28x28 image; fetch both files again"
            )
        if labels.max(initial=0) > 9:
            raise DataError(f"the {part} labels go beyond 9; fetch that file again")
        arrays[f"{part} images"] = images[..., None]
    contents = halved(arrays, CLASSES[name], size, "idx split")
    return Source(name, description, lambda: contents)


def halved(
    arrays: dict[str, np.ndarray], classes: Sequence[str], size: int, purpose: str
) -> Contents:
    """Training images, then the test images in an order keyed by `purpose`, half for each split.

    In permuted order, because MNIST's later test images are harder than its first ones: so the
    first n of a split are a fair sample of it.
    """
    order = numpy_rng(purpose).permutation(len(arrays["test images"])).tolist()
    half = len(order) // 2
    entries = [("train", i, "train") for i in range(len(arrays["train images"]))]
    entries += [("test", i, "reference") for i in order[:half]]
    entries += [("test", i, "floor") for i in order[half:]]

    def item(part: str, i: int, split: str) -> Item:
        image = with_border(arrays[f"{part} images"][i], size)
        return Item(f"{part}/{i:05d}", image, (int(arrays[f"{part} labels"][i]),), split)

    attributes = {"class": tuple(classes)}
    return Contents(attributes, len(entries), lambda start: starmap(item, entries[start:]))


def digits_source(size: int = 16) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8, enlarged to size x size by Pillow's bicubic."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the digits come with scikit-learn; `pip install scikit-learn`") from error
    values, labels = load_digits(return_X_y=True)
    images = np.floor(values.reshape(-1, 8, 8) * 255 / 16 + 0.5).astype(np.uint8)
    order = numpy_rng("digits split").permutation(len(images)).tolist()
    splits = ["train"] * len(order)
    splits[: 2 * DIGITS_HELD_OUT] = ["reference"] * DIGITS_HELD_OUT + ["floor"] * DIGITS_HELD_OUT

    def item(i: int, split: str) -> Item:
        large = Image.fromarray(images[i]).resize((size, size), Image.Resampling.BICUBIC)
        return Item(f"digit/{i:05d}", np.array(large)[..., None], (int(labels[i]),), split)

    description = {
        "size": size,
        "filter": "Pillow bicubic",
        "arrays": {"images": sha256_array(images), "labels": sha256_array(labels)},
        "held out": f"{DIGITS_HELD_OUT} reference, {DIGITS_HELD_OUT} floor, keyed permutation",
    }
    entries = list(zip(order, splits))
    attributes = {"class": CLASSES["mnist"]}
    contents = Contents(attributes, len(order), lambda start: starmap(item, entries[start:]))
    return Source("digits", description, lambda: contents)


def with_border(image: np.ndarray, size: int) -> np.ndarray:
    """[S,S,C] with a black border -> [size,size,C]."""
    border = (size - len(image)) // 2
    return np.pad(image, ((border, border), (border, border), (0, 0)))


def _locate(name: str, folder: Path | str | None, cache: Path | str | None) -> dict[str, Path]:
    """The path of each part; downloaded if need be."""
    remedy = f"put {', '.join(f'{file}.gz' for file in FILES.values())} into one folder and name it"
    if name == "fashion":
        remedy += f" or install the Debian package dataset-fashion-mnist ({DEBIAN})"
    for place in [folder] if folder else [cache, DEBIAN if name == "fashion" else None]:
        if place and (paths := _find(name, Path(place))):
            return paths
    if folder:
        raise DataError(f"{folder} does not hold the four files of {name}; {remedy}")

    def download(cache: Path) -> None:
        from torchvision import datasets

        getattr(datasets, TORCHVISION[name])(str(cache), download=True)

    if paths := _find(name, fetched(name, download, cache, remedy)):
        return paths
    raise DataError(f"the download of {name} left no usable files; {remedy}")


def _find(name: str, folder: Path) -> dict[str, Path]:
    """The four files in one folder, by their own names or as Kaggle's copies have them, gzipped or
    not; {} if any is missing."""
    for place in (folder, folder / TORCHVISION[name] / "raw"):
        paths = {}
        for part, file in FILES.items():
            for known in (file, file.replace("-idx", ".idx"), f"{file}/{file}"):
                for path in (place / known, place / f"{known}.gz"):
                    if path.is_file():
                        paths.setdefault(part, path)
        if len(paths) == len(FILES):
            return paths
    return {}


def cifar10_source(place: Path | str | None, size: int = 32, cache: Path | None = None) -> Source:
    """CIFAR-10 from the archive or a folder of its .bin files; without a place, downloaded.

    DataError for another size, and for files that are not CIFAR-10's.
    """
    if size != 32:
        raise DataError("cifar10 has 32 pixels and is not resized; set size to 32")

    def download(cache: Path) -> None:
        from torchvision.datasets.utils import download_url

        download_url(CIFAR_URL, cache, CIFAR_ARCHIVE, CIFAR_MD5)

    if not place:
        place = fetched("cifar10", download, cache, CIFAR_REMEDY) / CIFAR_ARCHIVE
    records, arrays, hashes = _cifar_records(Path(place)), {}, {}
    for part in ("train", "test"):
        both = np.concatenate([array for name, array in records.items() if CIFAR[name] == part])
        hashes[part] = sha256_array(both)
        arrays[f"{part} labels"] = both[:, 0]
        arrays[f"{part} images"] = both[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    description = {"size": size, "records": hashes, "held out": HALVES}
    contents = halved(arrays, CLASSES["cifar10"], size, "cifar10 split")
    return Source("cifar10", description, lambda: contents)


def _cifar_records(place: Path) -> dict[str, np.ndarray]:
    """File name -> uint8 [n, RECORD], for every part."""
    records = {}
    for name, data in _cifar_parts(place):
        if len(data) % RECORD or not data:
            size = f"{len(data):,} bytes"
            raise DataError(f"{name} in {place} has {size}, not whole records; {CIFAR_REMEDY}")
        records[name] = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
        if records[name][:, 0].max() > 9:
            raise DataError(f"{name} in {place} has labels beyond 9; {CIFAR_REMEDY}")
    if missing := [name for name in CIFAR if name not in records]:
        raise DataError(f"{place} lacks {', '.join(missing)}; {CIFAR_REMEDY}")
    return records


def _cifar_parts(place: Path) -> Iterator[tuple[str, bytes]]:
    if place.is_dir():
        files = open_files(place)
        for name in files.names:
            if Path(name).name in CIFAR:
                yield Path(name).name, files.read(name)
        return
    try:
        with gzip.open(place) as packed:  # to its end, where its checksum is
            data = packed.read(CIFAR_LARGEST + 1)
        if len(data) > CIFAR_LARGEST:
            raise DataError(f"{place} unpacks to more than {CIFAR_LARGEST:,} bytes; {CIFAR_REMEDY}")
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                file = archive.extractfile(member) if member.isfile() and name in CIFAR else None
                if file:  # read, not unpacked; links are passed over
                    yield name, file.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{place} cannot be read ({error}); {CIFAR_REMEDY}") from error


def fetched(
    name: str, download: Callable[[Path], None], cache: Path | str | None, remedy: str
) -> Path:
    """The folder `cache`, after `download` has put a data set there."""
    if cache is None:
        raise DataError(f"{name} is not on this machine; {remedy}")
    try:
        download(Path(cache))
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise DataError(f"{name} could not be downloaded ({error}); {remedy}") from error
    return Path(cache)
