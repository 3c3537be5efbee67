"""Archives are read in place; hostile ones are refused."""

from __future__ import annotations

import os
import stat
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from dreamlib.data import archive
from dreamlib.data.archive import open_files
from dreamlib.data.folder import folder_source
from dreamlib.data.packing import pack
from dreamlib.errors import DataError


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def test_a_zip_reads_like_the_folder_it_was_made_of(tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / "cats"
    for kind in ("a", "b"):
        (folder / kind).mkdir(parents=True)
        for i in range(30):
            pixels = random.integers(0, 256, (12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{i}.png")
    (folder / ".hidden.png").write_text("x")
    paths = [p for p in folder.rglob("*") if p.is_file()]
    archive = zipped(
        tmp_path / "cats.zip", [(str(p.relative_to(folder)), p.read_bytes()) for p in paths]
    )
    ours, theirs = (
        pack(folder_source(p, 8), tmp_path / f"p{k}") for k, p in enumerate((folder, archive))
    )
    assert ours.fingerprint == theirs.fingerprint
    assert ours.manifest["count"] == 60
    assert ours.attributes == {"class": ("a", "b")}


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "a\\..\\evil.png"]
)
def test_a_member_that_points_outside_is_refused(tmp_path, name):
    path = zipped(tmp_path / "x.zip", [("good.png", b"x"), (name, b"x")])
    with pytest.raises(DataError, match="points outside the archive"):
        open_files(path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_device_is_refused(tmp_path, kind):
    info = zipfile.ZipInfo("link.png")
    info.external_attr = (kind | 0o777) << 16
    path = zipped(tmp_path / "x.zip", [(info, "/etc/passwd")])
    with pytest.raises(DataError, match="link or a device"):
        open_files(path)


def test_bombs_are_refused_before_they_are_read(tmp_path, monkeypatch):
    bomb = zipped(tmp_path / "bomb.zip", [("zeros.png", bytes(250 * 2**20))])
    with pytest.raises(DataError, match=r"refused: its .* would unpack to 262,144,000"):
        open_files(bomb)
    path = zipped(tmp_path / "x.zip", [("a.png", os.urandom(3000)), ("b.png", os.urandom(3000))])
    monkeypatch.setattr(archive, "LARGEST_ARCHIVE", 5999)
    with pytest.raises(DataError, match="would unpack to 6,000"):
        open_files(path)
    monkeypatch.setattr(archive, "LARGEST_FILE", 2999)
    with pytest.raises(DataError, match=r"'a.png' would unpack to 3,000"):
        open_files(path)


def test_ways_of_compression_without_a_bound_are_refused(tmp_path):
    for k, method in enumerate((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)):
        path = tmp_path / f"{k}.zip"
        with zipfile.ZipFile(path, "w", method) as file:
            file.writestr("a.png", bytes(1000))
        with pytest.raises(DataError, match="compressed in another way"):
            open_files(path)


def test_a_stray_parquet_file_does_not_hide_images(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.parquet").write_bytes(b"y")
    assert open_files(tmp_path).names == ("a.png", "b.parquet")


def test_two_members_of_one_name_and_half_a_zip_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = zipped(tmp_path / "twice.zip", [("a.png", b"x"), ("a.png", b"y")])
    with pytest.raises(DataError, match="two members of one name"):
        open_files(twice)
    whole = zipped(tmp_path / "whole.zip", [("a.png", os.urandom(3000))])
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a whole zip"):
        open_files(whole)


def test_a_place_that_is_not_there_and_a_file_that_is_no_archive(tmp_path):
    with pytest.raises(DataError, match="no folder or archive"):
        open_files(tmp_path / "nothing")
    (tmp_path / "text").write_text("prose")
    with pytest.raises(DataError, match="not a whole zip"):
        open_files(tmp_path / "text")


def test_parquet_without_images_or_with_a_name_twice_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    with pytest.raises(DataError, match="no column 'image'"):
        open_files(path)
    image = {"bytes": b"x", "path": "1.jpg"}
    parquet.write_table(pyarrow.table({"image": [image, image]}), path)
    with pytest.raises(DataError, match=r"second image of the name 1\.jpg"):
        open_files(path)
    path.write_bytes(b"PAR1 torn")
    with pytest.raises(DataError, match="not a whole parquet"):
        open_files(path)


def test_parquet_images_without_a_path_are_numbered_in_the_hubs_order(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for part in ("test", "train", "valid"):
        images = [{"bytes": f"{part}{i}".encode(), "path": None} for i in range(3)]
        parquet.write_table(
            pyarrow.table({"image": images}), tmp_path / f"{part}-0.parquet", row_group_size=2
        )
    files = open_files(tmp_path)
    assert [files.read(name) for name in files.names] == [
        f"{part}{i}".encode() for part in ("train", "valid", "test") for i in range(3)
    ]
    assert files.read("000002.jpg") == b"train1"  # out of order too


def test_parquet_is_read_from_many_threads(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [{"bytes": str(i).encode() * 50, "path": f"{i:04d}.jpg"} for i in range(400)]
    parquet.write_table(pyarrow.table({"image": images}), tmp_path / "x.parquet", row_group_size=3)
    files = open_files(tmp_path / "x.parquet")
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(files.read, files.names))
    assert read == [image["bytes"] for image in images]
