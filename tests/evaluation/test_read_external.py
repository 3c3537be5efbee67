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


def test_linked_folders_are_read_and_what_is_not_looked_at_is_said(tmp_path):
    """Half of a set must not be scored as if it were all of it."""
    save(pictures(3), tmp_path / "set/a")
    (tmp_path / "set/b").symlink_to(save(pictures(4, key=1), tmp_path / "elsewhere"))
    for k, end in enumerate(("jfif", "jpe", "heic", "heic")):
        (tmp_path / f"set/{k}.{end}").write_bytes((tmp_path / "set/a/000.png").read_bytes())
    said = []
    assert len(within(read_images, tmp_path / "set", say=said.append)) == 9
    assert said == [f"{tmp_path / 'set'}: files not looked at: 2 (2 .heic)"]


def test_links_are_followed_and_what_is_not_looked_at_is_counted(tmp_path):
    """N must be the number of images that are there, whatever they are called."""
    said, images = [], pictures(8)
    folder = save(images[:4], tmp_path / "a" / "x").parent
    save(images[4:], tmp_path / "b")
    (folder / "y").symlink_to(tmp_path / "b")
    for old, new in (("000.png", "000.dib"), ("001.png", "001.jfif")):
        (tmp_path / "b" / old).rename(tmp_path / "b" / new)  # what is in them counts
    for name in ("notes.txt", "list.txt", "model.bin"):
        (folder / name).write_text("")
    assert as_set(within(read_images, folder, say=said.append)) == as_set(images)
    (line,) = said
    assert "2 .txt" in line
    assert "1 .bin" in line


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


def bad_float(path):
    np.save(path / "x.npy", pictures(3) / np.float32(255))


def bad_nan(path):
    images = pictures(3).astype(np.float32)
    images[1, 2, 3] = np.nan
    np.save(path / "x.npy", images)


def bad_shape(path):
    np.save(path / "x.npy", pictures(3)[0])


def bad_empty(path):
    np.save(path / "x.npy", pictures(3)[:0])


def bad_pickle(path):
    np.save(path / "x.npy", np.array([{}], dtype=object))


def bad_cut(path):
    np.save(path / "x.npy", pictures(3))
    (path / "x.npy").write_bytes((path / "x.npy").read_bytes()[:-50])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bad_float, "holds float32 values: a range cannot be guessed"),
        (bad_nan, "holds NaN or infinite values: a generator has failed"),
        (bad_shape, r"has shape \(12, 12, 3\), not"),
        (bad_empty, r"has shape \(0, 12, 12, 3\), not"),
        (bad_pickle, "cannot be read as an array"),
        (bad_cut, "cannot be read as an array"),
        (lambda path: None, "there is no file"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        read_images(tmp_path / "x.npy")


def test_one_unreadable_file_is_not_left_out(tmp_path):
    """The number of images must be the number that was asked to be scored."""
    folder = save(pictures(4), tmp_path)
    path = folder / "002.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"002\.png in .* cannot be read"):
        read_images(folder)


def test_a_place_without_images(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        read_images(tmp_path)
    with pytest.raises(DataError, match="there is no folder or archive"):
        read_images(tmp_path / "absent")


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


def test_files_of_other_packages(tmp_path):
    """pytorch-fid and clean-fid store mu and sigma and nothing else; clean-fid's KID, feats."""
    x = np.random.default_rng(1).normal(size=(50, 6))
    np.savez_compressed(tmp_path / "fid.npz", mu=x.mean(0), sigma=np.cov(x, rowvar=False))
    assert read_statistics(tmp_path / "fid.npz", "inception", 6).n is None
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


def test_lucidrains_moments(tmp_path):
    x = np.random.default_rng(1).normal(size=(50, 6))
    np.savez_compressed(tmp_path / "d.npz", m2=x.mean(0), s2=np.cov(x, rowvar=False))
    found = read_statistics(tmp_path / "d.npz", "inception", 6)
    np.testing.assert_array_equal(found.mean, x.mean(0))


def test_torch_fidelitys_cache(tmp_path):
    """Its features are a tensor; its moments are a pickle of numpy arrays, and are not opened."""
    x = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32)
    torch.save(torch.from_numpy(x), tmp_path / "features-2048.pt")
    assert is_statistics(tmp_path / "features-2048.pt")
    np.testing.assert_array_equal(read_statistics(tmp_path / "features-2048.pt", "i", 6), x)
    with pytest.raises(DataError, match=r"\[n,7\]"):
        read_statistics(tmp_path / "features-2048.pt", "i", 7)
    torch.save({"mu": x.mean(0), "sigma": np.cov(x.T)}, tmp_path / "stat-fid-2048.pt")
    for damaged in (False, True):
        if damaged:
            (tmp_path / "stat-fid-2048.pt").write_bytes(b"no zip")
        with pytest.raises(DataError, match=r"is not read.*-features-2048\.pt"):
            read_statistics(tmp_path / "stat-fid-2048.pt", "i", 6)


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
    net = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
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
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut").iterdir()}
    assert len(kept) == 1
    np.testing.assert_array_equal(pipeline_images(pipeline, 10, tmp_path / "cut", **ask), whole)
    for name, time in kept.items():
        assert (tmp_path / "cut" / name).stat().st_mtime_ns == time


def test_what_is_no_pipeline_is_refused(pipeline, tmp_path):
    with pytest.raises(DataError, match=r"no model_index\.json"):
        pipeline_images(tmp_path, 2, tmp_path)
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "DDPMPipeline", "unet": ["x", "y"]}'
    )
    with pytest.raises(DataError, match=r"unet may run code .*--images"):
        pipeline_images(tmp_path, 2, tmp_path)


def altered(pipeline, folder, **index):
    """A copy with changed entries of its index."""
    folder = shutil.copytree(pipeline, folder)
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | index))
    return folder


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"unet": ["my_module", "Net"]}, "its unet may run code"),
        ({"unet": ["../up", "Net"]}, "its unet may run code"),
        ({"unet": []}, "its unet may run code"),
        (
            {"_class_name": ["pipeline_mine", "Mine"]},
            "no plain diffusers pipeline: its _class_name",
        ),
        ({}, r"its net\.py may run code"),
        ({}, r"its config\.json may run code"),
    ],
)
def test_a_folder_with_code_of_its_own_is_refused_unseen(
    pipeline, tmp_path, monkeypatch, index, words
):
    """Before diffusers is even imported: older versions run what lies there."""
    folder = altered(pipeline, tmp_path / "own", **index)
    if "net" in words.partition("may")[0] and not index:
        (folder / "unet" / "net.py").write_text("")
    if "config" in words:
        (folder / "unet" / "config.json").write_text('{"auto_map": {"AutoModel": "net.Net"}}')
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
    path = shutil.copytree(pipeline, tmp_path / "odd") / file
    path.write_text(json.dumps(json.loads(path.read_text()) | entry))
    with pytest.raises(DataError, match="diffusers cannot load"):
        pipeline_images(tmp_path / "odd", 2, tmp_path)


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
    folder, said = altered(pipeline, tmp_path / "spaced"), []
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text()) | {"timestep_spacing": spacing}
    path.write_text(json.dumps(config))
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
