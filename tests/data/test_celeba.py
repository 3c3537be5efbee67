"""CelebA from every kind of place, without a network: local stand-ins for the real sources."""

from __future__ import annotations

import hashlib
import inspect
import io
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamlib.data import celeba, dataset
from dreamlib.data.celeba import (
    Unavailable,
    attached,
    celeba_places,
    celeba_source,
    find_celeba,
    from_drive,
    from_hub,
    from_kagglehub,
    numbered,
)
from dreamlib.data.file_readers import open_files
from dreamlib.data.image_folder import load_square
from dreamlib.data.prepare import pack
from dreamlib.utils.context import using
from dreamlib.utils.errors import DataError
from tests.conftest import within
from tests.data.test_file_readers import tables

NUMBERS = [1, 2, 3, 50_001, 162_770, 162_771, 182_637, 182_638, 202_599]
SPLITS = [*["train"] * 5, *["floor"] * 2, *["reference"] * 2]


def jpeg(number):
    pixels = np.random.default_rng(number).integers(0, 256, (11, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((178, 218)).save(file, "JPEG")
    return file.getvalue()


JPEGS = {f"{number:06d}.jpg": jpeg(number) for number in NUMBERS}


def fill(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in JPEGS.items():
        (folder / name).write_bytes(data)
    return folder


def fill_zip(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in JPEGS.items():
            archive.writestr(f"img_align_celeba/{name}", data)
    return path


def fill_parquet(folder):
    folder.mkdir(parents=True)
    images = [{"bytes": data, "path": name} for name, data in JPEGS.items()]
    for part, k in {"train": slice(5), "valid": slice(5, 7), "test": slice(7, 9)}.items():
        smiling = [number % 2 == 0 for number in range(9)]
        tables(folder, {"image": images[k], "Smiling": smiling[k]}, name=part, rows=2)
    return folder


def packed(path, tmp_path, say=None, **settings):
    places = {"downloads": tmp_path / "d", "inputs": tmp_path / "i"}
    with using(say=say):
        return pack(celeba_source(16, path=path, **places, **settings), tmp_path / "packed")


# Places


@pytest.mark.parametrize("kind", ["folder", "nested", "zip", "parquet"])
def test_the_same_images_from_a_folder_a_zip_or_parquet(tmp_path, kind):
    path = {
        "folder": lambda: fill(tmp_path / "celeba"),
        "nested": lambda: fill(tmp_path / "celeba/img/img_align_celeba").parent.parent,
        "zip": lambda: fill_zip(tmp_path / "img_align_celeba.zip"),
        "parquet": lambda: fill_parquet(tmp_path / "hub"),
    }[kind]()
    said = []
    data = packed(path, tmp_path, say=said.append)
    expected = [load_square(io.BytesIO(JPEGS[name]), 16) for name in sorted(JPEGS)]
    np.testing.assert_array_equal(data.images, expected)
    assert [dataset.SPLITS[code] for code in data.split_codes] == SPLITS
    assert len(said) == 1
    assert "the path that was named: 9 images" in said[0]
    assert "non-commercial" in said[0]
    assert data.attributes == ({"Smiling": ("no", "yes")} if kind == "parquet" else {})
    if kind == "parquet":
        assert data.labels[:, 0].tolist() == [1, 0, 1, 0, 1, 0, 1, 0, 1]


@pytest.fixture(autouse=True)
def _no_downloads(monkeypatch):
    """The hosts' libraries are as if not installed, unless a test puts one there."""
    for name in ("kagglehub", "huggingface_hub", "gdown"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def whole(monkeypatch):
    """Our nine images are all of CelebA."""
    monkeypatch.setattr(celeba, "COUNT", len(NUMBERS))


def test_a_packed_set_needs_no_source_any_more(tmp_path, whole):
    first = packed(fill(tmp_path / "celeba"), tmp_path)
    for path in (tmp_path / "gone", None, fill_zip(tmp_path / "x.zip")):
        assert packed(path, tmp_path).fingerprint == first.fingerprint


def test_a_pack_of_a_part_is_not_taken_for_another(tmp_path):
    folder = fill(tmp_path / "celeba")
    assert packed(folder, tmp_path).manifest["count"] == 9
    (folder / "000004.jpg").write_bytes(JPEGS["000003.jpg"])
    assert packed(folder, tmp_path).manifest["count"] == 10
    with pytest.raises(DataError, match="was not found"):
        packed(None, tmp_path)


def test_other_images_of_the_same_numbers_are_another_set(tmp_path, whole):
    """The images in the wild have the names of the aligned ones; a part may be anybody's."""
    found = [celeba._which(fill(tmp_path / "celeba"))]
    wild = fill(tmp_path / "wild")
    Image.new("RGB", (300, 400)).save(wild / "000001.jpg")
    found.append(celeba._which(wild))
    (wild / "202599.jpg").unlink()
    found.append(celeba._which(wild))
    (wild / "000002.jpg").write_bytes(JPEGS["000003.jpg"])
    found.append(celeba._which(wild))
    assert [text[:3] for text in found] == ["all", "9: ", "8: ", "8: "]
    assert found[0] == "all 9"
    assert len(set(found)) == 4


def test_unnamed_places_must_hold_all_of_it(tmp_path, whole):
    anime = tmp_path / "i/anime"
    anime.mkdir(parents=True)
    (anime / "000001.jpg").write_bytes(JPEGS["000001.jpg"])
    with pytest.raises(DataError, match="no whole CelebA"):
        packed(None, tmp_path)
    (tmp_path / "i/broken").mkdir()
    (tmp_path / "i/broken/img_align_celeba.zip").write_bytes(b"half a zip")
    with pytest.raises(DataError, match=r"anime holds 1 images; .*broken.* is not a whole zip"):
        packed(None, tmp_path)
    fill(tmp_path / "i/celeba/img_align_celeba")
    said = []
    assert packed(None, tmp_path, say=said.append).manifest["count"] == 9
    assert said[0].startswith("CelebA, earlier downloads: no")
    assert said[1].startswith("CelebA, attached inputs: 9 images")


def test_first_keeps_the_first_training_images_and_all_others(tmp_path):
    data = packed(fill(tmp_path / "celeba"), tmp_path, first=50_000)
    assert data.manifest["splits"] == {"train": 3, "reference": 2, "floor": 2}
    assert data.manifest["description"]["train images"] == 50_000


def test_attached_inputs_are_known_by_their_marker(tmp_path, whole):
    tree = tmp_path / "input/celeba-dataset/img_align_celeba/img_align_celeba"
    assert sorted(numbered(attached(fill(tree).parents[2]))) == NUMBERS
    fill_zip(tmp_path / "other/x/y/img_align_celeba.zip")
    assert sorted(numbered(attached(tmp_path / "other"))) == NUMBERS
    with pytest.raises(Unavailable, match="no whole CelebA"):
        attached(tmp_path / "nothing")


def test_places_are_tried_in_order_and_the_first_that_holds_them_is_taken(tmp_path, whole):
    (tmp_path / "empty").mkdir()

    def broken():
        raise Unavailable("no account")

    places = {
        "one": lambda: open_files(tmp_path / "missing"),
        "two": lambda: open_files(tmp_path / "empty"),
        "three": broken,
        "four": lambda: open_files(fill(tmp_path / "celeba")),
        "five": lambda: pytest.fail("a later place was asked"),
    }
    said = []
    files = within(find_celeba, places, say=said.append)
    assert files.place == str(tmp_path / "celeba")
    titles = [f"CelebA, {title}" for title in ("one", "two", "three", "four")]
    assert [line.split(":")[0] for line in said] == titles


def test_when_nothing_works_all_that_was_tried_is_listed(tmp_path):
    places = celeba_places(None, tmp_path / "downloads", tmp_path / "inputs")
    with pytest.raises(DataError) as caught:
        find_celeba(places)
    titles = ["earlier downloads", "attached inputs", "kagglehub", "Hugging Face", "Google Drive"]
    assert list(places) == titles
    for words in (*titles, "pip install gdown", "by hand", "--data PATH"):
        assert words in str(caught.value)


# What is in them


def test_half_a_celeba_says_what_is_missing(tmp_path):
    folder = fill(tmp_path / "celeba")
    for number in NUMBERS[5:]:
        (folder / f"{number:06d}.jpg").unlink()
    with pytest.raises(DataError, match=r"5 of CelebA's 202,599.*floor, reference.*data.name=fold"):
        packed(folder, tmp_path)


def test_images_of_ones_own_are_sent_to_the_folder_source(tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats/tom.jpg").write_bytes(JPEGS["000001.jpg"])
    with pytest.raises(DataError, match=r"data\.name=folder"):
        packed(tmp_path / "cats", tmp_path)


def test_an_image_twice_is_refused(tmp_path):
    fill(tmp_path / "celeba/a")
    fill(tmp_path / "celeba/b")
    with pytest.raises(DataError, match="image 000001 twice"):
        packed(tmp_path / "celeba", tmp_path)


def test_a_damaged_image_is_rejected_and_listed(tmp_path):
    folder = fill(tmp_path / "celeba")
    (folder / "000002.jpg").write_bytes(JPEGS["000002.jpg"][:500])
    data = packed(folder, tmp_path)
    assert data.manifest["count"] == len(NUMBERS) - 1
    assert [reject["name"] for reject in data.manifest["rejects"]] == ["000002.jpg"]


CELLS = [(f"{n:06d}.jpg", "1" if n % 2 else "-1", "1" if n < 100 else "-1") for n in NUMBERS]
TXT = "202599\nBald Smiling \n" + "".join(f"{name} {a}  {b}\n" for name, a, b in CELLS)
CSV = "image_id,Bald,Smiling\n" + "".join(",".join(cells) + "\n" for cells in CELLS)


@pytest.mark.parametrize(("name", "text"), [("txt", TXT), ("csv", CSV)])
@pytest.mark.parametrize("where", ["inside", "beside the folder", "beside the zip"])
def test_attributes_come_from_the_list_wherever_it_lies(tmp_path, name, text, where):
    home = tmp_path / "home"
    if where == "beside the zip":
        path = fill_zip(home / "img_align_celeba.zip")
    else:
        path = fill(home / "img_align_celeba")
    place = path if where == "inside" else home
    (place / f"list_attr_celeba.{name}").write_text(text)
    data = packed(path, tmp_path)
    assert data.attributes == {"Bald": ("no", "yes"), "Smiling": ("no", "yes")}
    assert data.labels.tolist() == [[n % 2, int(n < 100)] for n in NUMBERS]


def test_the_official_partition_file_decides_when_it_is_there(tmp_path):
    folder = fill(tmp_path / "celeba")
    codes = {1: 2, 2: 1}
    lines = [f"{number:06d}.jpg,{codes.get(number, 0)}" for number in NUMBERS]
    (folder / "list_eval_partition.csv").write_text("\n".join(["image_id,partition", *lines]))
    data = packed(folder, tmp_path)
    found = [dataset.SPLITS[code] for code in data.split_codes[:3]]
    assert found == ["reference", "floor", "train"]


PARTITION = "".join(f"{number:06d}.jpg 0\n" for number in NUMBERS[:-1])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list_attr_celeba.txt", TXT[:-5], "no whole line for image 202599"),
        ("list_eval_partition.txt", PARTITION, "no line for image 202599"),
    ],
)
def test_a_list_that_lacks_an_image_is_refused(tmp_path, name, text, message):
    folder = fill(tmp_path / "celeba")
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        packed(folder, tmp_path)


# Downloads: the libraries of the hosts, in their place


@pytest.fixture
def library(monkeypatch):
    """library(name, ...) puts a module with these contents in a library's place."""

    def put(name, **contents):
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)

    return put


def test_drive_gives_the_zip_and_a_second_time_nothing_is_fetched(tmp_path, library):
    calls = []
    zipped = fill_zip(tmp_path / "celeba.zip").read_bytes()

    def fetch(*, id, output, resume):
        calls.append((id, resume))
        Path(output).write_bytes(zipped)
        return output

    library("gdown", download=fetch)
    md5 = hashlib.md5(zipped).hexdigest()
    for _ in range(2):
        path = from_drive(tmp_path / "data/downloads", md5=md5)
        assert sorted(numbered(open_files(path))) == NUMBERS
    assert calls == [(celeba.DRIVE_ID, True)]


class DownloadError(Exception):
    """What gdown 6 raises."""


def page(*, id, output, resume):
    Path(output).write_text("\n<!DOCTYPE html><title>Quota exceeded</title>")
    return output


def half(*, id, output, resume):
    Path(output).write_bytes(b"PK\3\4 half a zip")
    return output


def refuses(*, id, output, resume):
    raise DownloadError("Too many users have viewed or downloaded this file recently")


@pytest.mark.parametrize(
    ("fetch", "why"),
    [
        (lambda **k: None, "gave nothing"),
        (page, "web page"),
        (half, "md5"),
        (refuses, "DownloadError: Too many users"),
    ],
)
def test_every_way_in_which_drive_fails_is_said_and_leaves_nothing(tmp_path, library, fetch, why):
    library("gdown", download=fetch, DownloadError=DownloadError)
    with pytest.raises(Unavailable, match=why):
        from_drive(tmp_path)
    assert not list(tmp_path.iterdir())


def test_kagglehub_and_the_hub_are_asked_for_their_data_sets(tmp_path, library):
    asked = []
    library("kagglehub", dataset_download=lambda name: asked.append(name) or tmp_path)
    snapshot = lambda name, **k: asked.append((name, k)) or tmp_path  # noqa: E731
    library("huggingface_hub", snapshot_download=snapshot)
    assert from_kagglehub("a/b") == from_hub("c/d", "abc") == tmp_path
    wanted = {"repo_type": "dataset", "revision": "abc", "allow_patterns": "*.parquet"}
    assert asked == ["a/b", ("c/d", wanted)]


@pytest.mark.parametrize("error", [OSError("no route"), ValueError("bad"), RuntimeError("x")])
def test_a_failing_network_is_unavailable(library, error):
    def fail(name):
        raise error

    library("kagglehub", dataset_download=fail)
    with pytest.raises(Unavailable, match=type(error).__name__):
        from_kagglehub("a/b")


@pytest.mark.parametrize(
    ("name", "function", "arguments"),
    [
        ("gdown", "download", {"id", "output", "resume"}),
        ("kagglehub", "dataset_download", {"handle"}),
        ("huggingface_hub", "snapshot_download", {"repo_id", "repo_type", "revision"}),
    ],
)
def test_the_installed_libraries_take_our_arguments(monkeypatch, name, function, arguments):
    monkeypatch.undo()  # the real ones
    module = pytest.importorskip(name)
    assert arguments <= set(inspect.signature(getattr(module, function)).parameters)
