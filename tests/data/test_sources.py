"""Sources of real images: IDX files, digits, and any folder."""

import gzip
import hashlib
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from torchvision import datasets

from dreamlib.data import classic_sets
from dreamlib.data.classic_sets import CLASSES, DEBIAN, FILES, digits_source, idx_source, read_idx
from dreamlib.data.image_folder import folder_source, load_square, to_rgb
from dreamlib.data.prepare import pack
from dreamlib.utils.errors import DataError
from tests.data.test_file_readers import png

RED, GREEN, BLUE, GREY = (220, 30, 40), (20, 200, 60), (30, 60, 210), (128, 128, 128)


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def small_set(tmp_path):
    """Twelve training and eight test images in the four plain files."""
    random = np.random.default_rng(0)
    arrays = {
        "train images": random.integers(0, 256, (12, 28, 28)),
        "train labels": np.arange(12) % 10,
        "test images": random.integers(0, 256, (8, 28, 28)),
        "test labels": np.arange(8),
    }
    for part, array in arrays.items():
        (tmp_path / FILES[part]).write_bytes(idx_bytes(array))
    return tmp_path, arrays


# IDX files


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_idx_files_are_read_plain_or_gzipped(tmp_path, shape):
    array = np.arange(np.prod(shape)).reshape(shape)
    for data in (idx_bytes(array), gzip.compress(idx_bytes(array))):
        (tmp_path / "file").write_bytes(data)
        found = read_idx(tmp_path / "file")
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, array)


WHOLE = idx_bytes(np.arange(24).reshape(2, 3, 4))
ZIPPED = gzip.compress(WHOLE, mtime=0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an IDX file"),
        (b"\x89PNG" + WHOLE, "not an IDX file"),
        (b"\0\0\x0d" + WHOLE[3:], "not an IDX file of bytes"),  # floats
        (b"\0\0\x08\0", "ends inside its header"),
        (WHOLE[:10], "ends inside its header"),
        (WHOLE[:-1], "holds 23 values"),
        (WHOLE + b"\0", "holds 25 values"),
        (ZIPPED[:-9], "cannot be read"),
        (ZIPPED[:10] + b"garbage", "cannot be read"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, data, message):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(DataError, match=f"{message}.*delete .* and fetch it again"):
        read_idx(tmp_path / "file")


def test_idx_set_keeps_pixels_labels_and_halves_the_test_images(small_set):
    folder, arrays = small_set
    packed = pack(idx_source("mnist", folder, 28), folder / "packed")
    images, labels = packed.take("train", 12)
    np.testing.assert_array_equal(images[..., 0], arrays["train images"])
    assert labels[:, 0].tolist() == arrays["train labels"].tolist()
    (held, held_labels), (more, more_labels) = (packed.take(s, 4) for s in ("reference", "floor"))
    found = np.concatenate([held_labels, more_labels])[:, 0]
    assert sorted(found) == list(range(8))  # each test image in one of the two
    assert found.tolist() != list(range(8))  # and not in the order of the file
    np.testing.assert_array_equal(
        np.concatenate([held, more])[..., 0], arrays["test images"][found]
    )


def test_size_32_is_a_black_border_of_two(small_set):
    folder, arrays = small_set
    image = next(idx_source("fashion", folder, 32).open().items(0)).image
    assert image.shape == (32, 32, 1)
    np.testing.assert_array_equal(image[2:-2, 2:-2, 0], arrays["train images"][0])
    assert image.astype(int).sum() == arrays["train images"][0].sum()


@pytest.mark.parametrize("form", ["{0}", "{0}.gz", "{1}", "{0}/{0}", "MNIST/raw/{0}.gz"])
def test_torchvisions_and_kaggles_names_of_the_four_files_are_known(small_set, tmp_path, form):
    folder, _ = small_set
    there = tmp_path / "there"
    for name in FILES.values():
        path = there / form.format(name, name.replace("-idx", ".idx"))
        path.parent.mkdir(parents=True, exist_ok=True)
        data = (folder / name).read_bytes()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    plain = idx_source("mnist", folder, 28).description
    assert idx_source("mnist", there, 28).description == plain


def test_an_idx_file_has_a_bound_and_a_disk_that_fails_is_not_blamed_on_it(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"cannot be read .*No such file"):
        read_idx(tmp_path / "absent")
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(5000)))
    monkeypatch.setattr(classic_sets, "LARGEST", 4999)
    with pytest.raises(DataError, match=r"unpacks to more than 4,999 bytes; delete"):
        read_idx(tmp_path / "x.gz")

    def failing(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(DataError, match=r"Input/output error") as raised:
        read_idx(tmp_path / "x.gz")
    assert "delete" not in str(raised.value)


def test_idx_sets_that_do_not_fit_together_are_refused(small_set):
    folder, _ = small_set
    labels = folder / FILES["train labels"]

    def refused(message, name="mnist", size=28):
        with pytest.raises(DataError, match=message):
            idx_source(name, folder, size)

    refused("28 or 32", size=64)
    refused("fashion, mnist", name="kmnist")
    labels.write_bytes(idx_bytes(np.arange(12)))
    refused("beyond 9")
    labels.write_bytes(idx_bytes(np.arange(5)))
    refused("one label per 28x28 image")
    labels.unlink()
    refused(r"does not hold the four files .*train-labels")


def test_without_network_the_remedy_names_the_files_and_the_package(tmp_path, monkeypatch):
    def offline(root, download):
        raise OSError("no route to host")

    monkeypatch.setattr(classic_sets, "DEBIAN", tmp_path / "absent")
    monkeypatch.setattr(datasets, "FashionMNIST", offline)
    with pytest.raises(DataError, match=r"no route.*t10k-labels.*dataset-fashion-mnist"):
        idx_source("fashion", None, 32, cache=tmp_path)
    with pytest.raises(DataError, match="not on this machine"):
        idx_source("fashion", None, 32)


def test_the_real_fashion_mnist(tmp_path):
    if not DEBIAN.is_dir():
        assert os.environ.get("DREAMLIB_REQUIRE_DATA") != "1", f"{DEBIAN} must be here"
        pytest.skip(f"no {DEBIAN}; install the Debian package dataset-fashion-mnist")
    packed = pack(idx_source("fashion", DEBIAN, 32), tmp_path)
    assert packed.manifest["splits"] == {"train": 60_000, "reference": 5_000, "floor": 5_000}
    assert packed.attributes["class"][9] == "ankle boot"
    train = packed.labels[packed.indices("train"), 0]
    assert np.bincount(train).tolist() == [6_000] * 10
    assert train[:5].tolist() == [9, 0, 0, 3, 0]  # as published: boot, T-shirt, T-shirt, dress, ...
    inner = packed.images[:60_000, 2:-2, 2:-2] / 255
    assert inner.mean() == pytest.approx(0.2860, abs=1e-4)  # the mean everybody normalises with
    assert inner.std() == pytest.approx(0.3530, abs=1e-4)
    held_out = np.concatenate([packed.labels[packed.indices(s), 0] for s in ("reference", "floor")])
    assert np.bincount(held_out).tolist() == [1_000] * 10
    pinned = {"train": ["5bd44e331a6d6998", "489c477715bd5275"]}
    pinned["t10k"] = ["ffc7351ed0f8bae5", "0e65cd3713adf40e"]
    for part, hashes in pinned.items():
        (path,) = DEBIAN.glob(f"{part}-images-idx3-ubyte*")
        ends = read_idx(path)[[0, -1]]
        assert [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in ends] == hashes


def test_digits_are_scikit_learns(tmp_path):
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    small = pack(digits_source(8), tmp_path / "8")
    large = pack(digits_source(16), tmp_path / "16")
    assert small.manifest["splits"] == {"train": 1197, "reference": 300, "floor": 300}
    expected = {(i.astype(int).tobytes(), t) for i, t in zip(bunch.images, bunch.target)}
    grey = np.rint(small.images[..., 0] * (16 / 255)).astype(int)
    assert {(i.tobytes(), t) for i, t in zip(grey, small.labels[:, 0])} == expected
    assert small.images.max() == 255
    assert large.images.shape == (1797, 16, 16, 1)
    assert set(CLASSES["mnist"]) == set(large.attributes["class"])
    shrunk = large.images[..., 0].reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4)).reshape(-1, 64)
    flat = small.images.reshape(-1, 64).astype(float)
    distance = (flat**2).sum(1) - 2 * shrunk @ flat.T  # less a constant of each row
    assert (distance.argmin(1) == np.arange(1797)).all()  # each enlarged digit is nearest itself


# Folders


def plain(colour, size=(40, 40), mode="RGB"):
    return Image.new(mode, size, colour)


def save_half_transparent_palette(path):
    """Left half palette entry 0 (blue), right half entry 1, which is transparent."""
    picture = Image.new("P", (40, 40), 0)
    picture.putpalette([*BLUE, *GREEN])
    picture.paste(1, (20, 0, 40, 40))
    picture.save(path, transparency=1)


def save_turned(path):
    """Red above blue as seen, but stored lying on its side with an EXIF note to turn it."""
    stored = plain(RED)
    stored.paste(BLUE, (20, 0, 40, 40))  # red left, blue right
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise: the left side comes on top
    stored.save(path, exif=exif, quality=95)


@pytest.fixture
def album(tmp_path):
    folder = tmp_path / "album"
    (folder / "deep").mkdir(parents=True)
    plain(RED).save(folder / "red.jpg", quality=95)
    plain((0, 255, 255, 0), mode="CMYK").save(folder / "cmyk.JPEG", quality=95)
    ramp = np.full((40, 40), 128 * 257, np.uint16)
    ramp[:, 20:] = 64 * 257
    Image.fromarray(ramp).save(folder / "grey16.png")
    save_half_transparent_palette(folder / "deep/palette.png")
    save_turned(folder / "turned.jpg")
    plain((*GREEN, 128), mode="RGBA").save(folder / "veil.webp", lossless=True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "torn.jpg")
    torn = (folder / "torn.jpg").read_bytes()
    (folder / "torn.jpg").write_bytes(torn[: len(torn) // 2])
    (folder / "prose.jpg").write_text("Not an image at all.")
    Image.fromarray(np.full((40, 40), 0.5, np.float32)).save(folder / "float.tif")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("left alone")
    return folder


def test_every_kind_of_image_gets_its_right_colours(album):
    def check(name, top_left, top_right, bottom_left, atol=1):
        image = load_square(album / name, 16).astype(int)
        assert image.shape == (16, 16, 3)
        found = image[[2, 2, -3], [2, -3, 2]]
        np.testing.assert_allclose(found, [top_left, top_right, bottom_left], atol=atol)

    check("red.jpg", RED, RED, RED, atol=3)  # JPEG
    check("cmyk.JPEG", *[(255, 0, 0)] * 3, atol=3)  # magenta and yellow ink
    check("grey16.png", [128] * 3, [64] * 3, [128] * 3)  # scaled, not clipped to white
    check("deep/palette.png", BLUE, (255, 255, 255), BLUE)
    check("turned.jpg", RED, RED, BLUE, atol=6)
    half_green = np.array(GREEN) * 128 / 255 + 255 * 127 / 255
    check("veil.webp", *[half_green] * 3, atol=1.5)


def test_bad_files_are_in_the_manifest_with_their_reason(album, tmp_path):
    packed = pack(folder_source(album, 16), tmp_path / "packed")
    assert packed.manifest["count"] == 6
    reasons = {r["name"]: r["reason"] for r in packed.manifest["rejects"]}
    assert set(reasons) == {"torn.jpg", "prose.jpg", "float.tif"}
    assert "truncated" in reasons["torn.jpg"]
    assert reasons["prose.jpg"] == "not an image that Pillow can read"
    assert "8-bit or 16-bit" in reasons["float.tif"]
    assert packed.attributes == {}


def test_truncated_images_are_never_filled_in(album, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match="LOAD_TRUNCATED_IMAGES to False"):
        list(folder_source(album, 16).open().items(0))


def test_crop_is_central_and_resize_antialiased(tmp_path):
    wide = plain(BLUE, (60, 20))
    wide.paste(RED, (20, 0, 40, 20))  # the central square
    wide.save(tmp_path / "wide.png")
    assert (load_square(tmp_path / "wide.png", 10) == RED).all()
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    Image.fromarray(checks.astype(np.uint8)).save(tmp_path / "checks.png")
    inner = load_square(tmp_path / "checks.png", 8)[1:-1, 1:-1]
    assert np.abs(inner.astype(int) - 128).max() <= 2  # picking single pixels would give 0 or 255


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "YCbCr", "HSV", "I;16"])
def test_white_is_white_in_every_mode(mode):
    white = np.full((4, 4), 65535, np.uint16) if mode == "I;16" else None
    picture = Image.fromarray(white) if white is not None else plain("white").convert(mode)
    rgb = to_rgb(picture)
    assert rgb.mode == "RGB"
    assert np.array(rgb).min() >= 254  # YCbCr rounds


def many_pictures(folder, start, stop):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(start, stop):
        (folder / f"{k:03d}.png").write_bytes(png(k))


def splits(source):
    return {item.name: item.split for item in source.open().items(0)}


def test_adding_or_renaming_a_file_moves_no_other_and_changes_the_description(tmp_path):
    many_pictures(tmp_path, 0, 300)
    before, prefix = folder_source(tmp_path, 8), splits(folder_source(tmp_path, 8))
    many_pictures(tmp_path, 300, 400)
    after = folder_source(tmp_path, 8)
    found = splits(after)
    assert prefix.items() <= found.items()
    assert [n for n in found if n in prefix] == list(prefix)  # nor does the order change
    assert folder_source(tmp_path, 8).description == after.description != before.description
    (tmp_path / "000.png").rename(tmp_path / "zzz.png")
    assert folder_source(tmp_path, 8).description != after.description


def class_of(folder):
    """(classes, {file: class}, what the description says of them)"""
    source = folder_source(folder, 8)
    contents = source.open()
    names = contents.attributes.get("class", ())
    labels = {i.name: names[i.labels[0]] for i in contents.items(0) if i.labels}
    return names, labels, source.description.get("classes", "").partition(":")[0]


def test_subfolders_are_classes_only_when_all_images_lie_in_them(tmp_path):
    many_pictures(tmp_path / "dog/small", 0, 3)
    assert folder_source(tmp_path, 8).open().attributes == {}  # one class says nothing
    many_pictures(tmp_path / "cat", 3, 6)
    names, labels, _ = class_of(tmp_path)
    assert names == ("cat", "dog")
    assert labels["cat/003.png"] == "cat"
    assert labels["dog/small/000.png"] == "dog"
    many_pictures(tmp_path, 6, 7)
    assert folder_source(tmp_path, 8).open().attributes == {}


def test_split_folders_are_no_classes_but_what_lies_below_them_may_be(tmp_path):
    for k, name in enumerate(["train/cat", "Test/dog", "Test/cat", "val/cat"]):
        many_pictures(tmp_path / "nested" / name, k, k + 1)
    names, labels, where = class_of(tmp_path / "nested")
    assert (names, where) == (("cat", "dog"), "below the split folders")
    assert labels["Test/dog/001.png"] == "dog"
    many_pictures(tmp_path / "flat/train", 0, 3)
    many_pictures(tmp_path / "flat/test", 3, 6)
    assert class_of(tmp_path / "flat") == ((), {}, "below the split folders")
    many_pictures(tmp_path / "named/train", 0, 3)
    many_pictures(tmp_path / "named/bicycle", 3, 6)
    assert class_of(tmp_path / "named")[::2] == (("bicycle", "train"), "")  # as it always was


def test_numbered_heaps_are_no_classes_and_nvidias_list_is_read(tmp_path):
    labels = []
    for k in (0, 7, 1000, 1999, 2000, 2001):
        many_pictures(tmp_path / "flat", k, k + 1)
        heap = tmp_path / f"heaps/{k // 1000:05d}"
        heap.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"flat/{k:03d}.png").rename(heap / f"img{k:08d}.png")
        labels.append([f"{heap.name}/img{k:08d}.png", (10, 9, 10)[k % 3]])
    heaps = ((), {}, "numbered folders are none")
    assert class_of(tmp_path / "heaps") == heaps
    listed = tmp_path / "heaps/dataset.json"
    for other in ({"labels": None}, {"labels": labels[1:]}, {"labels": ["cat"]}, {"images": []}, 3):
        listed.write_text(json.dumps(other))
        assert class_of(tmp_path / "heaps") == heaps
    listed.write_text(json.dumps({"labels": labels}))
    known = {name: str(label) for name, label in labels}
    assert class_of(tmp_path / "heaps") == (("9", "10"), known, listed.name)
    before = folder_source(tmp_path / "heaps", 8).description
    listed.write_text(json.dumps({"labels": [*labels[1:], [labels[0][0], 9]]}))
    assert folder_source(tmp_path / "heaps", 8).description != before
    classes = tmp_path / "signs/00000", tmp_path / "signs/00001"  # named by number, as GTSRB's are
    for k, folder in enumerate(classes):
        many_pictures(folder, k, k + 1)
        (folder / f"{k:03d}.png").rename(folder / f"00000_{k:05d}.png")
    assert class_of(tmp_path / "signs")[::2] == (("00000", "00001"), "")


def test_the_first_images_of_a_split_are_a_mixture_of_classes(tmp_path):
    many_pictures(tmp_path / "a", 0, 60)
    many_pictures(tmp_path / "b", 60, 120)
    packed = pack(folder_source(tmp_path, 8), tmp_path / ".packed")
    first = packed.take("train", 40)[1][:, 0]
    assert 6 < first.sum() < 34  # 4 standard deviations about 20


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        folder_source(tmp_path / "absent", 16)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="holds no images; put some there"):
        folder_source(tmp_path, 16)
    (tmp_path / "only.png").write_text("no image either")
    with pytest.raises(DataError, match=f"no usable image in {Path(tmp_path)}.*only.png"):
        pack(folder_source(tmp_path, 16), tmp_path / "packed")
