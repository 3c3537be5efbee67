"""Packing: what goes in comes out, is checked, and is not done twice."""

import errno
import hashlib
import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from dreamlib.data import prepare as packing
from dreamlib.data.dataset import Contents, Item, Source, open_packed
from dreamlib.data.prepare import bring, pack
from dreamlib.utils.errors import DataError, NotEnoughSamples
from dreamlib.utils.files import read_json, sha256_file, write_json
from tests.conftest import within

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 5, 5, 3), dtype=np.uint8)
PIXELS[7] = PIXELS[1]  # one duplicate
ITEMS = [
    Item(f"i{k}", image, (k % 3, k % 2), "floor" if k % 4 == 3 else "train")
    for k, image in enumerate(PIXELS)
]
ITEMS.insert(0, Item("broken", None, reject="it is torn"))
ITEMS.insert(5, Item("text", None, reject="it is prose"))


KINDS = {"kind": ("a", "b", "c"), "odd": ("no", "yes")}


def source_of(entries, attributes=KINDS, items=None, **changes):
    contents = Contents(attributes, len(entries), items or (lambda start: iter(entries[start:])))
    return replace(Source("toy", {"size": 5}, lambda: contents), **changes)


def must_not_be_read():
    raise AssertionError("the source was read again")


def alter(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def stopping(items):
    yield from items
    raise KeyboardInterrupt


def interrupted(folder, stop, first=0, **changes):
    """A packing that is stopped after these items."""
    source = source_of(ITEMS, items=lambda start: stopping(ITEMS[first:stop]), **changes)
    with pytest.raises(KeyboardInterrupt):
        pack(source, folder)


@pytest.fixture
def every(monkeypatch):
    """every(n): the disk is waited for after n images."""
    return lambda n: monkeypatch.setattr(packing, "SAFE_EVERY", n)


@pytest.fixture
def bringing():
    """bringing(there, here) -> all that was said by it, and by earlier ones."""
    said = []

    def bring_to(there, here):
        within(bring, there, here, say=said.append)
        return said

    return bring_to


def test_packed_images_are_the_sources(tmp_path):
    packed = pack(source_of(ITEMS), tmp_path / "p")
    np.testing.assert_array_equal(packed.images, PIXELS)
    assert packed.labels.tolist() == [[k % 3, k % 2] for k in range(12)]
    assert packed.indices("floor").tolist() == [3, 7, 11]
    assert packed.indices("train").tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert (packed.size, packed.channels) == (5, 3)
    assert packed.attributes == {"kind": ("a", "b", "c"), "odd": ("no", "yes")}
    assert not packed.images.flags.writeable
    np.testing.assert_array_equal(np.load(tmp_path / "p/images.npy"), PIXELS)  # a plain .npy file
    packed.verify()


def test_manifest_says_what_happened(tmp_path):
    manifest = pack(source_of(ITEMS), tmp_path).manifest
    assert manifest["count"] == 12
    assert manifest["splits"] == {"train": 9, "reference": 0, "floor": 3}
    assert manifest["duplicates"] == 1
    assert manifest["rejects"] == [
        {"name": "broken", "reason": "it is torn"},
        {"name": "text", "reason": "it is prose"},
    ]
    for name, record in manifest["files"].items():
        assert record["sha256"] == sha256_file(tmp_path / name)


def test_progress_reaches_the_count(tmp_path):
    steps = []
    bar = lambda label, total: steps.append(-total) or steps.append  # noqa: E731
    within(pack, source_of(ITEMS), tmp_path, progress=bar)
    assert sum(steps) == 0


def test_second_call_opens_without_reading_the_source(tmp_path):
    first = pack(source_of(ITEMS), tmp_path)
    again = pack(source_of(ITEMS, open=must_not_be_read), tmp_path)
    assert again.fingerprint == first.fingerprint


def test_another_description_is_packed_again_in_place(tmp_path):
    pack(source_of(ITEMS), tmp_path)
    changed = pack(source_of(ITEMS[3:], description={"size": 5, "first": 3}), tmp_path)
    np.testing.assert_array_equal(changed.images, PIXELS[2:])
    assert changed.manifest["description"] == {"size": 5, "first": 3}


def test_an_interrupted_packing_leaves_nothing_that_opens(tmp_path):
    pack(source_of(ITEMS), tmp_path)
    interrupted(tmp_path, 2, first=1, description={})
    with pytest.raises(DataError, match="no packed images"):
        open_packed(tmp_path)
    assert not list(tmp_path.glob(".*"))
    np.testing.assert_array_equal(pack(source_of(ITEMS), tmp_path).images, PIXELS)


@pytest.mark.parametrize("stop", range(1, len(ITEMS)))
def test_interrupted_packing_goes_on_where_it_was(tmp_path, every, stop):
    every(3)
    whole = pack(source_of(ITEMS), tmp_path / "whole")
    interrupted(tmp_path / "p", stop)
    asked = []
    rest = lambda start: asked.append(start) or iter(ITEMS[start:])  # noqa: E731
    again = pack(source_of(ITEMS, items=rest), tmp_path / "p")
    assert asked == [stop // 3 * 3]
    assert again.manifest == whole.manifest
    again.verify()


def test_rows_and_lines_beyond_the_last_safe_ones_are_cut_off(tmp_path, every):
    every(2)
    whole = pack(source_of(ITEMS), tmp_path / "whole")
    interrupted(tmp_path / "p", 4)
    with open(tmp_path / "p/images.npy.part", "ab") as file:
        file.write(b"half an image")
    with open(tmp_path / "p/index.jsonl", "ab") as file:
        file.write(b'{"name":"i9","spl')
    assert pack(source_of(ITEMS), tmp_path / "p").manifest == whole.manifest


@pytest.mark.parametrize(
    "odd", [b"\0\0\0", b"[1]", b'{"name": 3}', b'{"name": "a", "x": 1}', b"{}"]
)
def test_an_index_that_is_odd_is_begun_anew(tmp_path, every, odd):
    every(2)
    whole = pack(source_of(ITEMS), tmp_path / "whole").manifest
    interrupted(tmp_path / "p", 4)
    index = tmp_path / "p/index.jsonl"
    head, *lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join([head, odd + b"\n", *lines[1:]]))
    assert pack(source_of(ITEMS), tmp_path / "p").manifest == whole


def test_killed_before_its_manifest_it_is_finished_without_decoding(tmp_path):
    whole = pack(source_of(ITEMS), tmp_path).manifest
    (tmp_path / "manifest.json").unlink()
    asked = []
    rest = lambda start: asked.append(start) or iter(ITEMS[start:])  # noqa: E731
    again = pack(source_of(ITEMS, items=rest), tmp_path)
    assert again.manifest == whole
    assert asked == [len(ITEMS)]


@pytest.mark.parametrize("other", ["description", "items"])
def test_begun_as_something_else_it_begins_anew(tmp_path, every, other):
    every(1)
    if other == "description":
        interrupted(tmp_path, 4, description={"size": 6})
    else:
        contents = Contents(KINDS, 3, lambda start: stopping(ITEMS[3:6]), "three files")
        with pytest.raises(KeyboardInterrupt):
            pack(source_of(ITEMS, open=lambda: contents), tmp_path)
    np.testing.assert_array_equal(pack(source_of(ITEMS), tmp_path).images, PIXELS)


def test_what_another_process_packs_is_waited_for_and_taken_as_it_is(tmp_path):
    """As two runs of a batch that share their images find it at their first contact."""
    said, opened, go_on = [], threading.Event(), threading.Event()

    def slowly(start):
        opened.set()
        go_on.wait()
        yield from ITEMS[start:]

    def second():
        say = lambda text: said.append(text) or go_on.set()  # noqa: E731
        return within(pack, source_of(ITEMS, open=must_not_be_read), tmp_path, say=say)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(pack, source_of(ITEMS, items=slowly), tmp_path)
        assert opened.wait(60)
        found = pool.submit(second).result(60)
        assert found.manifest == first.result(60).manifest
    assert said == [f"waiting for another process, which packs {tmp_path}"]


def test_a_pack_is_brought_from_elsewhere_whole_or_not_at_all(tmp_path, bringing):
    there, here = tmp_path / "there", tmp_path / "here"
    assert bringing(there, here) == []
    packed = pack(source_of(ITEMS), there)
    brought = [f"brought the packed images from {there}"]
    assert bringing(there, here) == brought
    assert open_packed(here).manifest == packed.manifest
    assert bringing(there, here) == brought  # it is here already
    left = tmp_path / ".here.brought"  # by a kill, or by a disk on which nothing could be deleted
    left.mkdir()
    (left / "images.npy").write_bytes(b"half")
    assert bringing(there, here) == brought
    assert not left.exists()
    alter(there / "images.npy")
    *_, text = bringing(there, tmp_path / "elsewhere")
    assert "passed over" in text
    assert "images.npy has changed" in text
    (there / "labels.npy").unlink()
    assert "labels.npy" in bringing(there, tmp_path / "elsewhere")[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "here", "there"]
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["lock"]


def test_a_disk_that_fails_while_a_pack_is_opened_is_named(tmp_path, monkeypatch, bringing):
    pack(source_of(ITEMS), tmp_path)

    def load(*words, **more):
        raise OSError(errno.EIO, os.strerror(errno.EIO))  # as a read does: without a name

    monkeypatch.setattr(np, "load", load)
    with pytest.raises(OSError) as error:
        open_packed(tmp_path)
    assert error.value.filename == str(tmp_path)
    (text,) = bringing(tmp_path, tmp_path / "elsewhere")
    assert re.search(r"passed over: \S+ cannot be used \(Input/output error\): check", text)


def test_what_was_half_packed_gives_way_to_what_is_brought(tmp_path, every):
    every(1)
    packed = pack(source_of(ITEMS), tmp_path / "there")
    interrupted(tmp_path / "here", 4)
    bring(tmp_path / "there", tmp_path / "here")
    assert open_packed(tmp_path / "here").manifest == packed.manifest
    names = {path.name for path in (tmp_path / "here").iterdir()}
    assert names == {*packed.manifest["files"], "manifest.json", "lock"}


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../images.npy": {"bytes": 1, "sha256": ""}}},
        *({"files": {"images.npy": 3}}, {"files": {}}, {"attributes": {"kind": 3}}),
        *({"attributes": ["kind"]}, {"rejects": [3]}, {"count": "12"}),
        *({"splits": None}, {"description": 1}),
    ],
)
def test_a_manifest_with_odd_fields_is_refused_and_leads_nowhere(tmp_path, bringing, change):
    """Its names are those of files in its own folder, whoever wrote it."""
    there = tmp_path / "there"
    manifest = pack(source_of(ITEMS), there).manifest
    write_json(there / "manifest.json", manifest | change)
    (tmp_path / "images.npy").write_bytes(b"x")
    with pytest.raises(DataError, match=r"is not what was written.*delete that folder"):
        open_packed(there)
    assert "passed over" in bringing(there, tmp_path / "here")[0]
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["lock"]
    assert (tmp_path / "images.npy").read_bytes() == b"x"


def test_an_older_pack_stays_until_its_source_is_there(tmp_path):
    pack(source_of(ITEMS), tmp_path)
    before = (tmp_path / "images.npy").read_bytes()

    def gone():
        raise DataError("the images are gone")

    with pytest.raises(DataError, match="gone"):
        pack(source_of(ITEMS, description={"size": 6}, open=gone), tmp_path)
    assert (tmp_path / "images.npy").read_bytes() == before
    assert open_packed(tmp_path).manifest["description"] == {"size": 5}


def test_a_manifest_that_does_not_describe_its_files_is_found(tmp_path):
    manifest = pack(source_of(ITEMS), tmp_path).manifest
    splits = {"train": 8, "reference": 1, "floor": 3}
    for change in ({"splits": splits}, {"fingerprint": "0" * 64}):
        write_json(tmp_path / "manifest.json", manifest | change)
        with pytest.raises(DataError, match="does not describe its files"):
            open_packed(tmp_path).verify()


def test_index_says_what_became_of_every_item(tmp_path):
    pack(source_of(ITEMS), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()[1:]]
    assert [line["name"] for line in lines] == [item.name for item in ITEMS]
    for line, item in zip(lines, ITEMS):
        if item.image is None:
            assert line["reject"] == item.reject
        else:
            assert line["sha256"] == hashlib.sha256(item.image.tobytes()).hexdigest()
            assert line["split"] == item.split


def test_fingerprint_follows_pixels_labels_splits_and_names_only(tmp_path):
    base = pack(source_of(ITEMS), tmp_path / "0").fingerprint
    same = pack(source_of(ITEMS, name="other", description={"note": "x"}), tmp_path / "1")
    assert same.fingerprint == base
    changes = {"image": PIXELS[0]}, {"labels": (0, 0)}, {"split": "reference"}
    others = [source_of([*ITEMS[:-1], ITEMS[-1]._replace(**change)]) for change in changes]
    others += [source_of(ITEMS, attributes=KINDS | {"kind": ("a", "b", "d")})]
    prints = {pack(s, tmp_path / f"o{k}").fingerprint for k, s in enumerate(others)}
    assert len(prints | {base}) == 5


def test_an_altered_byte_is_found(tmp_path):
    pack(source_of(ITEMS), tmp_path)
    alter(tmp_path / "images.npy")
    with pytest.raises(DataError, match=r"images.npy has changed.*delete that folder"):
        open_packed(tmp_path).verify()


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "split.npy", "index.jsonl"])
def test_a_short_or_missing_file_is_found_on_opening(tmp_path, name):
    pack(source_of(ITEMS), tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    with pytest.raises(DataError, match=name):
        open_packed(tmp_path)
    manifest = read_json(tmp_path / "manifest.json")
    manifest["files"][name]["bytes"] -= 1  # and vouched for
    write_json(tmp_path / "manifest.json", manifest)
    if name.endswith(".npy"):
        with pytest.raises(DataError, match="cannot be used"):
            open_packed(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=name):
        open_packed(tmp_path)


def test_a_manifest_that_is_missing_torn_or_of_another_format_is_refused(tmp_path):
    with pytest.raises(DataError, match="dreamlib data"):
        open_packed(tmp_path)
    manifest = pack(source_of(ITEMS), tmp_path).manifest
    for change, message in (({"shape": [5, 5, 1]}, "shapes"), ({"format": 99}, "format is 99")):
        write_json(tmp_path / "manifest.json", manifest | change)
        with pytest.raises(DataError, match=message):
            open_packed(tmp_path)
    pack(source_of(ITEMS), tmp_path)  # another format is packed again
    assert read_json(tmp_path / "manifest.json") == manifest
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="is not what was written: Expecting"):
        open_packed(tmp_path)


def test_nothing_usable_names_the_place_and_the_reasons(tmp_path):
    items = [Item(f"f{k}", None, reject=f"reason {k}") for k in range(5)]
    with pytest.raises(DataError, match=r"/pictures \(5 .*f0: reason 0; f1: .*; f2: reason 2\)"):
        pack(source_of(items, place="/pictures"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"image": PIXELS[0, :4]}, {"image": PIXELS[0].astype(float)}),
        *({"labels": (0,)}, {"labels": (3, 0)}, {"labels": (-1, 0)}, {"split": "test"}),
    ],
)
def test_a_source_that_breaks_its_word_is_refused(tmp_path, wrong):
    with pytest.raises(ValueError):
        pack(source_of([ITEMS[1], ITEMS[2]._replace(**wrong)]), tmp_path)


def test_take_gives_nested_samples_and_counts_them(tmp_path):
    packed = pack(source_of(ITEMS), tmp_path)
    images, labels = packed.take("train", 5, start=1)
    np.testing.assert_array_equal(images, PIXELS[[1, 2, 4, 5, 6]])
    np.testing.assert_array_equal(packed.take("train", 2, start=1)[0], images[:2])
    assert labels.tolist() == [[1, 1], [2, 0], [1, 0], [2, 1], [0, 0]]
    assert type(images) is np.ndarray
    with pytest.raises(NotEnoughSamples, match="holds 9 images, but 10"):
        packed.take("train", 10)
    with pytest.raises(NotEnoughSamples, match="holds 3 images, but 3 from position 1"):
        packed.take("floor", 3, start=1)


@pytest.mark.parametrize("split", ["reference", "validation"])
def test_an_empty_or_unknown_split_names_the_others(tmp_path, split):
    with pytest.raises(DataError, match=f"{split}.*train 9.*floor 3"):
        pack(source_of(ITEMS), tmp_path).indices(split)


def test_the_data_commands_look_on_the_mirror(tmp_path, monkeypatch):
    """A pack on the mirror is taken before its source is opened."""
    from typer.testing import CliRunner

    from dreamlib.cli.main import app

    words = "data prepare faces16 --set data.train=30 --set data.reference=5 --set data.floor=5"
    there, here = tmp_path / "drive" / "data", tmp_path / "here"
    assert CliRunner().invoke(app, [*words.split(), "--home", str(there)]).exit_code == 0
    monkeypatch.setenv("DREAMLIB_MIRROR", str(there.parent))
    result = CliRunner().invoke(app, [*words.split(), "--home", str(here)])
    assert result.exit_code == 0
    assert f"brought the packed images from {there}" in result.output
