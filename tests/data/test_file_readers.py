"""Archives are read in place; hostile ones are refused."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamlib.data import file_readers as archive
from dreamlib.data import parquet as parquet_data
from dreamlib.data import prepare as packing
from dreamlib.data.file_readers import open_files
from dreamlib.data.formats import images_among
from dreamlib.data.image_folder import decoded, folder_source
from dreamlib.data.prepare import pack
from dreamlib.utils.errors import DataError
from tests.data.test_any_image import bomb


@lru_cache
def png(seed, size=(8, 8)):
    """A file of noise."""
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def zipped(path, *members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def refused(path, message):
    with pytest.raises(DataError, match=message):
        open_files(path)


def test_a_zip_reads_like_the_folder_it_was_made_of(tmp_path):
    folder = tmp_path / "cats"
    for kind in ("a", "b"):
        (folder / kind).mkdir(parents=True)
        for i in range(30):
            (folder / kind / f"{i}.png").write_bytes(png(i + 30 * (kind == "b"), (12, 10)))
    (folder / ".hidden.png").write_text("x")
    paths = [p for p in folder.rglob("*") if p.is_file()]
    members = [(str(p.relative_to(folder)), p.read_bytes()) for p in paths]
    ours = pack(folder_source(folder, 8), tmp_path / "ours")
    theirs = pack(folder_source(zipped(tmp_path / "cats.zip", *members), 8), tmp_path / "theirs")
    assert ours.fingerprint == theirs.fingerprint
    assert ours.manifest["count"] == 60
    assert ours.attributes == {"class": ("a", "b")}


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:/evil.png", "a\\..\\evil.png"]
)
def test_a_member_that_points_outside_is_refused(tmp_path, name):
    path = zipped(tmp_path / "x.zip", ("good.png", b"x"), (name, b"x"))
    refused(path, "points outside the archive")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_device_is_refused(tmp_path, kind):
    info = zipfile.ZipInfo("link.png")
    info.external_attr = (kind | 0o777) << 16
    refused(zipped(tmp_path / "x.zip", (info, "/etc/passwd")), "link or a device")


def test_bombs_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "LARGEST_RATIO", 20)
    zeros = zipped(tmp_path / "bomb.zip", ("zeros.png", bytes(25 * 2**20)))
    refused(zeros, r"refused: its .* would unpack to 26,214,400")
    path = zipped(tmp_path / "x.zip", ("a.png", os.urandom(3000)), ("b.png", os.urandom(3000)))
    monkeypatch.setattr(archive, "LARGEST_ARCHIVE", 5999)
    refused(path, "would unpack to 6,000")
    monkeypatch.setattr(archive, "LARGEST_FILE", 2999)
    refused(path, r"'a.png' would unpack to 3,000")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_ways_of_compression_without_a_bound_are_refused(tmp_path, method):
    path = zipped(tmp_path / "x.zip", ("a.png", bytes(1000)), method=method)
    refused(path, "compressed in another way")


def test_a_stray_parquet_file_does_not_hide_images(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "b.parquet").write_bytes(b"y")
    assert open_files(tmp_path).names == ("a.png", "b.parquet")


def test_what_is_no_whole_archive_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = zipped(tmp_path / "twice.zip", ("a.png", b"x"), ("a.png", b"y"))
    refused(twice, "two members of one name")
    whole = zipped(tmp_path / "whole.zip", ("a.png", os.urandom(3000)))
    whole.write_bytes(whole.read_bytes()[:-100])
    refused(whole, "not a whole zip")
    (tmp_path / "text").write_text("prose")
    refused(tmp_path / "text", "not a whole zip")
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8b no zip")
    refused(tmp_path / "x.tar.gz", "such as a tar, and name its folder")
    refused(tmp_path / "nothing", "no folder or archive")


def tables(folder, *parts, name="train", rows=None, **more):
    """Parquet files of images and other columns, as the Hugging Face hub writes them."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for k, columns in enumerate(parts):
        table = pyarrow.table(columns).replace_schema_metadata(more)
        parquet.write_table(table, folder / f"{name}-{k}.parquet", row_group_size=rows)
    return open_files(folder)


def test_parquet_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="no column 'image'"):
        tables(tmp_path, {"text": ["a"]})
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 torn")
    refused(tmp_path / "train-0.parquet", "not a whole parquet")


def test_parquet_images_without_a_path_are_numbered_in_the_hubs_order(tmp_path):
    for part in ("test", "train", "valid"):
        images = [{"bytes": f"{part}{i}".encode(), "path": None} for i in range(3)]
        files = tables(tmp_path, {"image": images}, name=part, rows=2)
    assert [files.read(name) for name in files.names] == [
        f"{part}{i}".encode() for part in ("train", "valid", "test") for i in range(3)
    ]
    assert files.read("000002.jpg") == b"train1"  # out of order too


def test_parquet_is_read_from_many_threads(tmp_path):
    images = [{"bytes": str(i).encode() * 50, "path": f"{i:04d}.jpg"} for i in range(400)]
    files = tables(tmp_path, {"image": images}, rows=3)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(files.read, files.names))
    assert read == [image["bytes"] for image in images]


def test_parquet_images_are_read_in_batches_however_large_their_column_is(tmp_path, monkeypatch):
    """pyarrow's read() refuses a column of more than 2 GiB of images that pyarrow has written."""
    from pyarrow import ArrowNotImplementedError, parquet

    read = parquet.ParquetFile.read

    def too_large(file, columns=None, **options):
        if columns is None or any(name.startswith("image") for name in columns):
            raise ArrowNotImplementedError("Nested data conversions not implemented")
        return read(file, columns=columns, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read", too_large)
    rows = [{"bytes": b"%d" % k, "path": f"{k}.png"} for k in range(9)]
    files = tables(tmp_path, {"image": rows, "label": list(range(9))})
    assert [files.read(name) for name in files.names] == [b"%d" % k for k in range(9)]


def test_parquet_rows_of_equal_path_are_images_of_their_own(tmp_path):
    rows = [
        {"bytes": b"%d" % k, "path": path} for k, path in enumerate(["a/x.png"] * 3 + ["", "y"])
    ]
    files = tables(tmp_path, {"image": rows}, {"image": rows[:1]})
    names = ("a/x.png", "a/000002/x.png", "a/000003/x.png", "000004.jpg", "y.jpg", "a/000006/x.png")
    assert files.names == tuple(sorted(names))
    assert [files.read(name) for name in names] == [b"0", b"1", b"2", b"3", b"4", b"0"]


def test_a_label_column_of_parquet_files_is_the_class(tmp_path):
    kind = {"_type": "ClassLabel", "names": ["zebra", "ant"]}
    hub = json.dumps({"info": {"features": {"kind": kind}}})
    rows = [{"bytes": png(k), "path": f"{k}.png"} for k in range(6)]
    other = {"ok": [True, None, True], "label": [7, 7, 7], "image": rows[:3]}
    parts = {"image": rows[:3], "kind": [0, 1, 0]}, {"image": rows[3:], "kind": [1, 1, 1]}
    (tmp_path / "hub").mkdir()
    files = tables(tmp_path / "hub", *parts, huggingface=hub)
    assert files.classes["3.png"] == "ant"
    source = folder_source(tmp_path / "hub", 8)
    assert source.open().attributes == {"class": ("ant", "zebra")}
    assert {i.name: i.labels for i in source.open().items(0)} == {
        f"{k}.png": (int(k in (0, 2)),) for k in range(6)
    }
    for name, labels in (("plain", [10, 9, 10]), ("unknown", [0, -1, 0]), ("gap", [1, None, 1])):
        (tmp_path / name).mkdir()
        files = tables(tmp_path / name, other | {"label": labels})
        expected = {f"{k}.png": str(label) for k, label in enumerate(labels)}
        assert files.classes == (expected if name != "gap" else {})
        assert files.flags == {}  # one of its values is missing


def test_parquet_rows_without_an_image_are_rejected(tmp_path):
    rows = [{"bytes": png(0), "path": None}, None, {"bytes": None, "path": "far/away.png"}]
    (tmp_path / "hub").mkdir()
    tables(tmp_path / "hub", {"image": rows})
    manifest = pack(folder_source(tmp_path / "hub", 8), tmp_path / "p").manifest
    assert manifest["count"] == 1
    reasons = {reject["reason"] for reject in manifest["rejects"]}
    assert reasons == {"ValueError: its row holds no image"}


@pytest.mark.parametrize("one", [True, False])
def test_parquet_files_that_grow_without_bound_are_refused(tmp_path, one, monkeypatch):
    """As one value of many zeros, or as one value that many rows point at."""
    monkeypatch.setattr(parquet_data, "LARGEST_RATIO", 4)
    rows = [{"bytes": bytes(2**23 if one else 2**17), "path": "x.png"}] * (1 if one else 64)
    with pytest.raises(DataError, match="refused: its images would unpack to more than 4 times"):
        tables(tmp_path, {"image": rows}).read("x.png")


def test_folders_are_read_through_links_and_not_in_circles(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    (there / "deep").mkdir(parents=True)
    (here / "a").mkdir(parents=True)
    for path in (there / "1.png", there / "deep/2.png", here / "a/3.png"):
        path.write_bytes(png(0))
    (here / "b").symlink_to(there)
    (here / "a/4.png").symlink_to(there / "1.png")
    (there / "deep/up").symlink_to(there)
    (here / "a/round").symlink_to(here)
    files = open_files(here)
    assert files.names == ("a/3.png", "a/4.png", "b/1.png", "b/deep/2.png")
    assert files.read("b/deep/2.png") == png(0)
    assert folder_source(here, 8).open().attributes == {"class": ("a", "b")}
    (here / "a/gone.png").symlink_to(tmp_path / "nowhere")  # as of a set that was not fetched
    with pytest.raises(DataError, match=r"a/gone.png in .* cannot be read \(No such file"):
        folder_source(here, 8)


def test_what_pillow_opens_is_used_and_the_rest_is_counted(tmp_path):
    kinds = ["png", "jpg", "JPE", "jfif", "pgm", "tif", "bmp", "webp", "gif", "jp2"]
    for k, end in enumerate(kinds):
        (tmp_path / f"{k}.{end}").write_bytes(png(k))  # the content decides how it is read
    for name in ("a.heic", "b.heic", "notes.txt", "README", "old.eps"):
        (tmp_path / name).write_bytes(b"x")
    names, others = images_among(open_files(tmp_path))
    assert len(names) == len(kinds)
    assert others == "files not looked at: 5 (2 .heic, 1 ?, 1 .txt, 1 .eps)"
    manifest = pack(folder_source(tmp_path, 8), tmp_path / ".p").manifest
    assert (manifest["count"], manifest["others"]) == (len(kinds), others)


def test_only_formats_of_pictures_are_opened_whatever_a_file_is_called(tmp_path, monkeypatch):
    """PostScript has Pillow start another program."""
    asked, there = [], Image.open
    spy = lambda file, formats: asked.append(formats) or there(file, "r", formats)  # noqa: E731
    monkeypatch.setattr(Image, "open", spy)
    for name, data in {"a.png": png(1), "b.png": b"%!PS-Adobe-3.0 EPSF-3.0\n"}.items():
        (tmp_path / name).write_bytes(data)
    found = [decoded(open_files(tmp_path).read, name, 8) for name in ("a.png", "b.png")]
    assert [reject for _, reject in found] == ["", "not an image that Pillow can read"]
    assert {"PNG", "JPEG", "WEBP"} <= set(asked[0])
    assert "EPS" not in asked[0]
    source = Path(archive.__file__).parent.parent
    bare = [
        f"{path.name}: {line}"
        for path in source.rglob("*.py")
        for line in path.read_text().splitlines()
        if "Image.open(" in line and "formats=" not in line
    ]
    assert bare == []


def test_files_and_pictures_without_bound_are_rejected(tmp_path, monkeypatch):
    (tmp_path / "large.png").write_bytes(bomb(12_000, 12_000))
    (tmp_path / "long.png").write_bytes(png(0) + bytes(1000))
    monkeypatch.setattr(archive, "LARGEST_FILE", 20_000)
    files = open_files(tmp_path)
    with pytest.warns(Image.DecompressionBombWarning):
        assert "12,000 x 12,000 pixels, and more than" in decoded(files.read, "large.png", 8)[1]
    monkeypatch.setattr(archive, "LARGEST_FILE", 1000)
    assert "more than 1,000 are not read" in decoded(files.read, "long.png", 8)[1]


@pytest.mark.parametrize("code", [errno.ENOTCONN, errno.EIO, errno.EMFILE, errno.EACCES])
def test_a_source_that_fails_is_no_image_that_is_bad(tmp_path, monkeypatch, code):
    """Nothing is vouched for, and packing goes on behind what it had."""
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(9):
        (folder / f"{k}.png").write_bytes(png(k))
    whole = pack(folder_source(folder, 8), tmp_path / "whole").manifest
    source, reads, read = folder_source(folder, 8), [], Path.read_bytes

    def failing(path):
        reads.append(path)
        if len(reads) == 6:
            raise OSError(code, os.strerror(code), str(path))
        return read(path)

    monkeypatch.setattr(packing, "SAFE_EVERY", 1)
    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(DataError, match=f"{os.strerror(code)}.*run the same command or cell again"):
        pack(source, tmp_path / "p")
    assert not (tmp_path / "p/manifest.json").exists()
    reads.clear()
    with pytest.raises(DataError, match=r"\.png in .* cannot be read"):  # when it is hashed, too
        folder_source(folder, 8)
    monkeypatch.setattr(Path, "read_bytes", read)
    assert pack(source, tmp_path / "p").manifest == whole


def test_a_folder_that_cannot_be_listed_is_said(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()

    def failing(folder):
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), folder)

    monkeypatch.setattr(os, "scandir", failing)
    refused(tmp_path, r"not connected.*mounted again")


def test_a_zip_with_windows_slashes_reads_as_it_was_meant(tmp_path):
    members = ("a\\1.png", png(1)), ("b\\", b""), ("b\\2.png", png(2))
    files = open_files(zipped(tmp_path / "x.zip", *members))
    assert files.names == ("a/1.png", "b/2.png")
    assert files.read("b/2.png") == png(2)
