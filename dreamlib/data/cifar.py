"""CIFAR-10 from its binary archive: 60,000 colour images of 32x32 in ten classes.

Krizhevsky 2009.  The binary version holds bytes; the Python version holds pickles, which are
programs, and is not read.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from dreamlib.data.dataset import Source
from dreamlib.data.download import fetched
from dreamlib.data.file_readers import open_files
from dreamlib.data.mnist import HALVES, halved
from dreamlib.utils.errors import DataError
from dreamlib.utils.files import sha256_array

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
ARCHIVE = "cifar-10-binary.tar.gz"
LARGEST = 400 * 2**20  # bytes; CIFAR-10 has 184 million
PARTS = {f"data_batch_{k}.bin": "train" for k in range(1, 6)} | {"test_batch.bin": "test"}
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
SIZE, RECORD = 32, 1 + 3 * 32 * 32  # a label, then the red, green and blue planes
REMEDY = f"fetch {ARCHIVE} by hand and name it, or the folder of its .bin files: --data PATH"


def cifar10_source(place: Path | str | None, size: int = 32, cache: Path | None = None) -> Source:
    """CIFAR-10 from the archive or a folder of its .bin files; without a place, downloaded.

    DataError for another size, and for files that are not CIFAR-10's.
    """
    if size != SIZE:
        raise DataError(f"cifar10 has {SIZE} pixels and is not resized; set size to {SIZE}")
    at = Path(place) if place else fetched("cifar10", _download, cache, REMEDY) / ARCHIVE
    records = _records(at)
    train = [array for name, array in records.items() if PARTS[name] == "train"]
    parts, arrays = {"train": np.concatenate(train), "test": records["test_batch.bin"]}, {}
    for part, array in parts.items():
        planes = array[:, 1:].reshape(-1, 3, SIZE, SIZE)
        arrays |= {f"{part} labels": array[:, 0], f"{part} images": planes.transpose(0, 2, 3, 1)}
    hashes = {part: sha256_array(array) for part, array in parts.items()}
    description = {"size": size, "records": hashes, "held out": HALVES}
    contents = halved(arrays, CLASSES, size, "cifar10 split")
    return Source("cifar10", description, lambda: contents)


def _records(place: Path) -> dict[str, np.ndarray]:
    """File name -> uint8 [n, RECORD], for every part."""
    records = {}
    for name, data in _parts(place):
        if len(data) % RECORD or not data:
            raise DataError(
                f"{name} in {place} has {len(data):,} bytes, not whole records; {REMEDY}"
            )
        records[name] = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
        if records[name][:, 0].max() >= len(CLASSES):
            raise DataError(f"{name} in {place} has labels beyond 9; {REMEDY}")
    if missing := [name for name in PARTS if name not in records]:
        raise DataError(f"{place} lacks {', '.join(missing)}; {REMEDY}")
    return records


def _parts(place: Path) -> Iterator[tuple[str, bytes]]:
    if place.is_dir():
        files = open_files(place)
        yield from ((Path(n).name, files.read(n)) for n in files.names if Path(n).name in PARTS)
        return
    try:
        with gzip.open(place) as packed:  # to its end, where its checksum is
            data = packed.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise DataError(f"{place} unpacks to more than {LARGEST:,} bytes; {REMEDY}")
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if member.isfile() and name in PARTS:  # read, not unpacked; links are passed over
                    yield name, archive.extractfile(member).read()  # type: ignore[union-attr]
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{place} cannot be read ({error}); {REMEDY}") from error


def _download(cache: Path) -> None:
    from torchvision.datasets.utils import download_url

    download_url(URL, cache, ARCHIVE, MD5)
