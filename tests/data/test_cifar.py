"""CIFAR-10's binary files, from small stand-ins of their own format."""

from __future__ import annotations

import hashlib
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest

from dreamlib.data import classic_sets
from dreamlib.data.classic_sets import CIFAR, CIFAR_ARCHIVE, CLASSES, RECORD, cifar10_source
from dreamlib.data.prepare import pack
from dreamlib.utils.errors import DataError

RANDOM = np.random.default_rng(0)
FILES = {name: RANDOM.integers(0, 256, (6, RECORD), dtype=np.uint8) for name in CIFAR}
for k, records in enumerate(FILES.values()):
    records[:, 0] = (np.arange(6) + k) % 10


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "cifar-10-batches-bin"
    place.mkdir()
    for name, records in FILES.items():
        (place / name).write_bytes(records.tobytes())
    return place


@pytest.fixture
def archive(folder, tmp_path):
    path = tmp_path / CIFAR_ARCHIVE
    with tarfile.open(path, "w:gz") as file:
        file.add(folder, folder.name)
    return path


def test_images_labels_and_splits_are_the_files(folder, tmp_path):
    data = pack(cifar10_source(folder), tmp_path / "p")
    assert data.attributes == {"class": CLASSES["cifar10"]}
    assert data.manifest["splits"] == {"train": 30, "reference": 3, "floor": 3}
    first = FILES["data_batch_1.bin"][0]
    red, green, blue = first[1:].reshape(3, 32, 32)
    np.testing.assert_array_equal(data.images[0], np.stack([red, green, blue], axis=-1))
    assert data.labels[:6, 0].tolist() == [0, 1, 2, 3, 4, 5]
    held_out = {image.tobytes() for image in data.images[30:]}
    test = FILES["test_batch.bin"][:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    assert held_out == {image.tobytes() for image in test}


def test_the_archive_gives_the_same_as_its_folder(folder, archive, tmp_path):
    one, other = (pack(cifar10_source(p), tmp_path / p.name[:9]) for p in (folder, archive))
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("start", [0, 29, 30, 33])
def test_items_begin_where_they_are_asked_to(folder, start):
    items = cifar10_source(folder).open().items
    assert [i.name for i in items(start)] == [i.name for i in items(0)][start:]


def test_links_in_the_archive_are_not_followed(archive, tmp_path):
    path = tmp_path / "links.tar.gz"
    with tarfile.open(archive) as old, tarfile.open(path, "w:gz") as new:
        for member in old.getmembers():
            if member.name.endswith("test_batch.bin"):
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                new.addfile(member)
            else:
                new.addfile(member, old.extractfile(member) if member.isfile() else None)
    with pytest.raises(DataError, match=r"lacks test_batch\.bin"):
        cifar10_source(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: (p / "data_batch_2.bin").write_bytes(b"x" * 100), "whole records"),
        (lambda p: (p / "data_batch_2.bin").unlink(), r"lacks data_batch_2\.bin"),
        (lambda p: (p / "test_batch.bin").write_bytes(b"\xff" * RECORD), "beyond 9"),
    ],
)
def test_damaged_files_are_named(folder, change, message):
    change(folder)
    with pytest.raises(DataError, match=message):
        cifar10_source(folder)


def test_a_damaged_archive_is_found_by_its_checksum(archive, tmp_path):
    whole = bytearray(archive.read_bytes())
    for place in range(200, len(whole), len(whole) // 20):
        data = whole.copy()
        data[place] ^= 0x55
        (tmp_path / "damaged.tar.gz").write_bytes(data)
        with pytest.raises(DataError):
            cifar10_source(tmp_path / "damaged.tar.gz")


def test_an_archive_that_unpacks_to_too_much_is_refused(archive, monkeypatch):
    monkeypatch.setattr(classic_sets, "CIFAR_LARGEST", 10_000)
    with pytest.raises(DataError, match="more than 10,000 bytes"):
        cifar10_source(archive)


def test_what_is_no_archive_and_no_network_are_clear(tmp_path, monkeypatch):
    (tmp_path / "x.tar.gz").write_bytes(b"prose")
    with pytest.raises(DataError, match="cannot be read"):
        cifar10_source(tmp_path / "x.tar.gz")
    with pytest.raises(DataError, match="not resized"):
        cifar10_source(None, 64)
    monkeypatch.setattr(classic_sets, "CIFAR_URL", "file:///nowhere/at/all")
    with pytest.raises(DataError, match="could not be downloaded"):
        cifar10_source(None, cache=tmp_path)


@pytest.fixture
def served(archive):
    """The archive's address on a web server of our own."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(archive.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{archive.name}"
        server.shutdown()


def test_the_download_is_checked_against_its_hash(served, archive, tmp_path, monkeypatch):
    monkeypatch.setattr(classic_sets, "CIFAR_URL", served)
    with pytest.raises(DataError, match="could not be downloaded"):
        cifar10_source(None, cache=tmp_path / "wrong")
    monkeypatch.setattr(classic_sets, "CIFAR_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert cifar10_source(None, cache=tmp_path / "right").open().count == 36
