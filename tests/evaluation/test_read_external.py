"""Other people's images, statistics and pipelines: read as they are, or refused with a reason."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dreamlib.data.pipelines import pipeline_images
from dreamlib.evaluation.external_images import (
    is_statistics,
    read_images,
    read_statistics,
    write_statistics,
)
from dreamlib.metrics.frechet import Moments, frechet
from dreamlib.utils.errors import ConfigError, DataError, Interrupted
from tests.conftest import within


def pictures(n, size=12, channels=3, key=0):
    shape = (n, size, size, channels)
    return np.random.default_rng(key).integers(0, 256, shape, dtype=np.uint8)


def save(images, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / f"{i:03d}.png")
    return folder


def as_set(images):
    return {image.tobytes() for image in images}


# ---------------------------------------------------------------------- images


def test_the_same_images_from_every_kind_of_place(tmp_path):
    images = pictures(9)
    folder = save(images, tmp_path / "folder" / "deep")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    np.save(tmp_path / "images.npy", images)
    np.savez(tmp_path / "images.npz", arr_0=images)
    first = read_images(tmp_path / "folder")
    assert as_set(first) == as_set(images)
    for name in ("images.zip", "images.npy", "images.npz"):
        np.testing.assert_array_equal(read_images(tmp_path / name), first)


def test_links_are_followed_and_what_is_not_looked_at_is_counted(tmp_path):
    """N must be the number of images that are there, whatever they are called: half of a set must
    not be scored as if it were all of it."""
    said, images = [], pictures(9)
    folder = save(images[:4], tmp_path / "a" / "x").parent
    save(images[4:], tmp_path / "b")
    (folder / "y").symlink_to(tmp_path / "b")
    for name in ("000.dib", "001.jfif", "002.jpe"):
        (tmp_path / "b" / name[:3]).with_suffix(".png").rename(tmp_path / "b" / name)
    for name in ("notes.txt", "list.txt", "1.heic"):
        (folder / name).write_text("")
    assert as_set(within(read_images, folder, say=said.append)) == as_set(images)
    assert said == [f"{folder}: files not looked at: 3 (2 .txt, 1 .heic)"]


def test_the_order_does_not_follow_the_names(tmp_path):
    """Files sorted by class would make the first 500 a sample of a few classes."""
    images = np.sort(pictures(40, size=8), axis=0)  # dark to light
    order = read_images(save(images, tmp_path)).mean(axis=(1, 2, 3))
    assert abs(np.corrcoef(order, np.arange(40))[0, 1]) < 0.5


def test_grey_images_become_colour_and_back(tmp_path):
    images = pictures(5, channels=1)
    folder = save(images, tmp_path / "grey")
    colour = read_images(folder)
    assert colour.shape == (5, 12, 12, 3)
    grey = read_images(folder, channels=1)
    assert as_set(grey) == as_set(images)
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)  # none is off by a rounding
    stored = save(levels.repeat(3, axis=-1), tmp_path / "grey as colour")
    assert np.array_equal(read_images(stored, channels=1), levels)
    with pytest.raises(DataError, match="holds colour images"):
        read_images(save(pictures(3), tmp_path / "colour"), channels=1)


def test_sizes_that_differ_need_a_size(tmp_path):
    save(pictures(2), tmp_path / "mixed")
    save(pictures(2, size=16), tmp_path / "mixed" / "larger")
    with pytest.raises(DataError, match=r"of 2 sizes .*--size"):
        read_images(tmp_path / "mixed")
    assert read_images(tmp_path / "mixed", size=10).shape == (4, 10, 10, 3)
    np.save(tmp_path / "a.npy", pictures(2))
    with pytest.raises(DataError, match="not 10x10"):
        read_images(tmp_path / "a.npy", size=10)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pictures(3) / np.float32(255), "holds float32 values: a range cannot be guessed"),
        (np.full((3, 12, 12, 3), np.nan), "holds NaN or infinite values: a generator has failed"),
        (pictures(3)[0], r"has shape \(12, 12, 3\), not"),
        (pictures(3)[:0], r"has shape \(0, 12, 12, 3\), not"),
        (pictures(3, channels=2), r"has shape \(3, 12, 12, 2\), not"),
        (np.array([{}], dtype=object), "cannot be read as an array"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, array, message):
    path = tmp_path / "x.npy"
    with pytest.raises(DataError, match="there is no file"):
        read_images(path)
    np.save(path, array)
    with pytest.raises(DataError, match=message):
        read_images(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match="cannot be read as an array"):
        read_images(path)


def test_one_unreadable_file_is_not_left_out(tmp_path):
    """The number of images must be the number that was asked to be scored."""
    folder = save(pictures(4), tmp_path)
    path = folder / "002.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"002\.png in .* cannot be read"):
        read_images(folder)


def test_a_place_without_images(tmp_path):
    for place, message in (
        (tmp_path, "holds no images"),
        (tmp_path / "x", "there is no folder or"),
    ):
        with pytest.raises(DataError, match=message):
            read_images(place)


# ---------------------------------------------------------------------- statistics


def test_statistics_round_trip(tmp_path):
    x, y = (np.random.default_rng(i).normal(size=(50, 6)) for i in (1, 2))
    write_statistics(tmp_path / "s.npz", Moments.of(x), {"extractor": "classifier"})
    stored = np.load(tmp_path / "s.npz")
    np.testing.assert_allclose(stored["mu"], x.mean(0))
    np.testing.assert_allclose(stored["sigma"], np.cov(x.T))  # what pytorch-fid computes
    found = read_statistics(tmp_path / "s.npz", "classifier", 6)
    assert found.n == 50
    assert frechet(y, found) == pytest.approx(frechet(y, x), rel=1e-10)
    with pytest.raises(DataError, match="made by classifier, and these images are seen by incept"):
        read_statistics(tmp_path / "s.npz", "inception", 6)


@pytest.mark.parametrize("names", [("mu", "sigma"), ("m2", "s2")])
def test_files_of_other_packages(tmp_path, names):
    """pytorch-fid, clean-fid and lucidrains store moments alone; clean-fid's KID, feats."""
    x = np.random.default_rng(1).normal(size=(50, 6))
    moments = dict(zip(names, (x.mean(0), np.cov(x, rowvar=False))))
    np.savez_compressed(tmp_path / "fid.npz", **moments)
    found = read_statistics(tmp_path / "fid.npz", "inception", 6)
    assert found.n is None
    np.testing.assert_array_equal(found.mean, x.mean(0))
    np.savez_compressed(tmp_path / "kid.npz", feats=x.astype(np.float32))
    np.testing.assert_allclose(read_statistics(tmp_path / "kid.npz", "inception", 6), x, rtol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(6)}, "mu and sigma, or feats, are needed"),
        ({"mu": np.zeros(5), "sigma": np.eye(5)}, "do not fit 6 features"),
        ({"mu": np.zeros(6), "sigma": np.full((6, 6), np.nan)}, "must be finite"),
        ({"mu": np.zeros(6), "sigma": np.triu(np.ones((6, 6)))}, "sigma symmetric"),
        ({"mu": np.zeros(6), "sigma": np.eye(6) * 1j}, "must be finite real"),
        ({"m2": np.zeros(6), "s2": np.eye(6), "n": np.ones(2)}, "holds no covariance"),
        ({"feats": np.zeros((4, 6), complex)}, "finite real numbers"),
        ({"feats": np.zeros((4, 5))}, r"finite real numbers \[n,6\]"),
    ],
)
def test_wrong_statistics_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_statistics(tmp_path / "s.npz", "inception", 6)


def test_torch_fidelitys_cache(tmp_path):
    """Its features are a tensor; its moments are a pickle of numpy arrays, and are not opened."""
    x = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32)
    torch.save(torch.from_numpy(x), tmp_path / "features-2048.pt")
    assert is_statistics(tmp_path / "features-2048.pt")
    np.testing.assert_array_equal(read_statistics(tmp_path / "features-2048.pt", "i", 6), x)
    with pytest.raises(DataError, match=r"\[n,7\]"):
        read_statistics(tmp_path / "features-2048.pt", "i", 7)
    path = tmp_path / "stat-fid-2048.pt"
    torch.save({"mu": x.mean(0), "sigma": np.cov(x.T)}, path)
    for data in (path.read_bytes(), b"no zip"):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"is not read.*-features-2048\.pt"):
            read_statistics(path, "i", 6)


def test_images_beside_moments_are_the_ones_used(tmp_path):
    """ADM's reference batches hold both."""
    said, images = [], pictures(4)
    np.savez(tmp_path / "adm.npz", arr_0=images, mu=np.zeros(6), sigma=np.eye(6), mu_s=np.zeros(3))
    assert not is_statistics(tmp_path / "adm.npz")
    assert as_set(within(read_images, tmp_path / "adm.npz", say=said.append)) == as_set(images)
    assert said == [f"{tmp_path / 'adm.npz'}: its images (arr_0) are used, not its mu, sigma"]


def test_arrays_that_unpack_to_far_more_than_they_are(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("images.npy", bytes(220_000_000))
    with pytest.raises(DataError, match=r"is refused: its [\d,]+ bytes would unpack to 220,"):
        read_images(tmp_path / "x.npz")
    with pytest.raises(DataError, match="is refused"):
        read_statistics(tmp_path / "x.npz", "inception", 6)
    np.save(tmp_path / "y.npy", pictures(2))
    (tmp_path / "y.npy").rename(tmp_path / "y.npz")  # the ending is not believed
    assert len(read_images(tmp_path / "y.npz")) == 2
    np.savez(tmp_path / "z.npz", images=pictures(2))
    (tmp_path / "z.npz").rename(tmp_path / "z.npy")
    assert len(read_images(tmp_path / "z.npy")) == 2
    with pytest.raises(ConfigError, match="at most 4,096 pixels"):
        read_images(tmp_path, size=99_999_999)


def test_damaged_statistics_are_refused(tmp_path):
    path = tmp_path / "s.npz"
    for data in (b"", b"no zip", b"PK\x03\x04 cut"):
        path.write_bytes(data)
        with pytest.raises(DataError, match="cannot be read as statistics"):
            read_statistics(path, "inception", 6)


# ---------------------------------------------------------------------- diffusers


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    diffusers = pytest.importorskip("diffusers")
    shape = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 16)}
    shape |= {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    net = diffusers.UNet2DModel(norm_num_groups=4, **shape)
    folder = tmp_path_factory.mktemp("pipeline")
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=20)
    diffusers.DDPMPipeline(net, scheduler).save_pretrained(str(folder), safe_serialization=True)
    return folder


def test_a_local_pipeline_draws_images_by_seed(pipeline, tmp_path):
    ask = {"steps": 3, "batch": 4}
    images = pipeline_images(pipeline, 6, tmp_path / "a", **ask)
    assert images.shape == (6, 8, 8, 3)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(pipeline_images(pipeline, 6, tmp_path / "b", **ask), images)
    shifted = pipeline_images(pipeline, 4, tmp_path / "c", seed=2, **ask)
    np.testing.assert_array_equal(shifted, images[2:])  # image i is drawn by seed + i
    assert len(as_set(images)) == 6


def test_an_interrupted_pipeline_goes_on(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("dreamlib.data.pipelines.SHARD", 4)
    ask = {"steps": 2, "batch": 2}
    whole = pipeline_images(pipeline, 10, tmp_path / "whole", **ask)
    calls = iter([False] * 3 + [True] * 9)
    with pytest.raises(Interrupted, match="after 6 of 10"):
        within(
            pipeline_images, pipeline, 10, tmp_path / "cut", should_stop=lambda: next(calls), **ask
        )
    (kept,) = (tmp_path / "cut").iterdir()
    made = kept.stat().st_mtime_ns
    np.testing.assert_array_equal(pipeline_images(pipeline, 10, tmp_path / "cut", **ask), whole)
    assert kept.stat().st_mtime_ns == made


def test_what_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no model_index\.json"):
        pipeline_images(tmp_path, 2, tmp_path)


def altered(pipeline, folder, file="model_index.json", **entries):
    """A copy with changed entries of one of its files."""
    path = shutil.copytree(pipeline, folder) / file
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return folder


@pytest.mark.parametrize(
    ("index", "code", "words"),
    [
        ({"unet": ["my_module", "Net"]}, {}, "unet may run code .*--images"),
        ({"unet": ["../up", "Net"]}, {}, "its unet may run code"),
        ({"unet": []}, {}, "its unet may run code"),
        ({"_class_name": ["mine", "Mine"]}, {}, "no plain diffusers pipeline: its _class_name"),
        ({}, {"net.py": ""}, r"its net\.py may run code"),
        ({}, {"config.json": '{"auto_map": {"A": "net.Net"}}'}, r"its config\.json may run code"),
    ],
)
def test_a_folder_with_code_of_its_own_is_refused_unseen(
    pipeline, tmp_path, monkeypatch, index, code, words
):
    """Before diffusers is even imported: older versions run what lies there."""
    folder = altered(pipeline, tmp_path / "own", **index)
    for name, text in code.items():
        (folder / "unet" / name).write_text(text)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(DataError, match=words):
        pipeline_images(folder, 2, tmp_path)
    with pytest.raises(ConfigError, match="pip install diffusers"):
        pipeline_images(pipeline, 2, tmp_path)  # a plain one comes as far as the import


@pytest.mark.parametrize(
    ("file", "entry"),
    [
        ("model_index.json", {"unet": ["diffusers", "NoSuchNet"]}),
        ("model_index.json", {"unet": ["transformers", "NoSuchNet"]}),  # here or not here
        ("model_index.json", {"unet": 3}),
        ("unet/config.json", {"block_out_channels": [16, 32]}),  # the weights have other shapes
        ("unet/config.json", {"down_block_types": ["NoSuch", "Block"]}),
    ],
)
def test_a_pipeline_that_does_not_fit_is_one_sentence_with_every_diffusers(
    pipeline, tmp_path, file, entry
):
    folder = altered(pipeline, tmp_path / "odd", file, **entry)
    with pytest.raises(DataError, match="diffusers cannot load"):
        pipeline_images(folder, 2, tmp_path)


def test_parts_that_were_lost_on_saving_are_said(pipeline, tmp_path):
    own = altered(pipeline, tmp_path / "own", _class_name="Mine")
    plain = altered(pipeline, tmp_path / "plain", unet=[None, None])  # as diffusers saves a module
    for folder in (own, plain):
        with pytest.raises(DataError, match=r"cannot load .*draw images yourself"):
            pipeline_images(folder, 2, tmp_path)
    torn = altered(pipeline, tmp_path / "torn")
    (path,) = torn.rglob("*.safetensors")
    weights = load_file(path)
    del weights["conv_in.weight"]  # diffusers would take what lies in memory
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 1 weights of its unet \(conv_in\.weight"):
        pipeline_images(torn, 2, tmp_path)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_steps_that_do_not_divide_those_of_training_are_said(pipeline, tmp_path, spacing):
    said, file = [], "scheduler/scheduler_config.json"
    folder = altered(pipeline, tmp_path / "spaced", file, timestep_spacing=spacing)
    for steps in (5, 6):  # of 20
        within(pipeline_images, folder, 1, tmp_path / "kept", steps=steps, say=said.append)
    if spacing == "linspace":
        assert said == []
    else:
        (line,) = said
        assert f"6 steps of '{spacing}' spacing do not divide the scheduler's 20" in line
        assert line.endswith("take --steps 5")


def test_pickled_weights_are_not_read(pipeline, tmp_path):
    """A .bin file is a pickle, which may run anything."""
    folder = shutil.copytree(pipeline, tmp_path / "pickled")
    (weights,) = folder.rglob("*.safetensors")
    weights.unlink()
    torch.save({}, weights.with_suffix(".bin"))
    with pytest.raises(DataError, match="diffusers cannot load"):
        pipeline_images(folder, 2, tmp_path)
