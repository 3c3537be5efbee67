from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dreamlib.errors import ConfigError, Interrupted, RunError
from dreamlib.generate import Shards, export_png, generate, interpolation, process
from dreamlib.run import open_run


@pytest.fixture
def run(trained, tmp_path, data_home, monkeypatch):
    """A copy of the trained run without its generated images."""
    import shutil

    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    shutil.copytree(trained.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("generated"))
    return open_run(tmp_path / "copy", say=lambda text: None)


def test_any_split_gives_the_same_images(run):
    one = np.concatenate([generate(run, [k]) for k in range(10)])
    threes = np.concatenate([generate(run, range(k, min(k + 3, 10))) for k in range(0, 10, 3)])
    assert not run.dir.generated.exists()  # parts of a shard are not kept
    together = generate(run, range(10))
    assert len(list(run.dir.generated.glob("*/shard-*.npy"))) == 1
    assert np.array_equal(one, together)
    assert np.array_equal(threes, together)
    assert np.array_equal(generate(run, [7, 3]), together[[7, 3]])


def test_interrupted_generation_continues_to_the_same_files(run):
    whole = generate(run, range(30))
    files = {p.name: p.read_bytes() for p in run.dir.generated.glob("*/*")}
    for path in run.dir.generated.glob("*/*"):
        path.unlink()
    calls = iter(range(100))
    with pytest.raises(Interrupted):
        generate(run, range(30), should_stop=lambda: next(calls) >= 12)
    kept = sorted(p.name for p in run.dir.generated.glob("*/shard-*.npy"))
    assert kept == ["shard-00000.npy"]
    assert np.array_equal(generate(run, range(30)), whole)
    assert {p.name: p.read_bytes() for p in run.dir.generated.glob("*/*")} == files


def test_a_damaged_shard_is_drawn_again(run):
    whole = generate(run, range(20))
    path = next(run.dir.generated.glob("*/shard-00001.npy"))
    np.save(path, np.zeros_like(np.load(path)))
    assert np.array_equal(generate(run, range(20)), whole)
    path.write_bytes(path.read_bytes()[:-9])
    assert np.array_equal(generate(run, range(20)), whole)


def test_other_settings_have_other_images(run):
    whole = generate(run, range(10))
    kept = {path: path.read_bytes() for path in run.dir.generated.glob("*/*")}
    other = open_run(run.folder, overrides=["sample.eta=0.5"], say=lambda text: None)
    assert not np.array_equal(generate(other, range(10)), whole)
    assert all(path.read_bytes() == data for path, data in kept.items())
    untrained = generate(run, range(10), untrained=True)
    assert not np.array_equal(untrained, whole)


def test_seeds_are_checked(run):
    for seeds in ([], [-1]):
        with pytest.raises(ConfigError, match="from 0 on"):
            generate(run, seeds)


def test_without_weights_the_remedy_is_named(tiny):
    with pytest.raises(RunError, match="train it first"):
        generate(tiny("untrained"), range(3))


def test_png_files_keep_the_contract(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    export_png(images, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir())[::11] == ["00001.png", "00012.png"]
    picture = Image.open(tmp_path / "00003.png")
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), images[2].repeat(3, axis=-1))


def test_png_files_are_not_mixed_with_others(tmp_path):
    images = np.zeros((3, 8, 8, 3), np.uint8)
    export_png(images, tmp_path)
    export_png(images, tmp_path)
    with pytest.raises(ConfigError, match=r"1 other PNG files \(00003.png"):
        export_png(images[:2], tmp_path)


def test_process_ends_in_the_images_themselves(run):
    stored = np.load(process(run, images=5, moments=4))
    assert stored["x_t"].shape == (5, 4, 16, 16, 3)
    assert stored["t"].tolist() == [38, 25, 13, 0]
    assert np.array_equal(stored["x_t"][:, -1], generate(run, range(5)))
    assert np.array_equal(stored["x0_hat"][:, -1], stored["x_t"][:, -1])


def test_interpolation_wants_a_deterministic_sampler(run):
    assert interpolation(run, 0, 1, 5).shape == (5, 16, 16, 3)
    ancestral = open_run(run.folder, overrides=["sample.sampler=ddpm"], say=lambda text: None)
    with pytest.raises(ConfigError, match="deterministic"):
        interpolation(ancestral, 0, 1)
    for ends in ((3, 3), (-1, 2)):
        with pytest.raises(ConfigError, match="two different seeds"):
            interpolation(run, *ends)


def test_ddpm_runs_draw_the_same_images_in_any_split(run):
    ancestral = open_run(run.folder, overrides=["sample.sampler=ddpm"], say=lambda text: None)
    one = np.concatenate([generate(ancestral, [k]) for k in range(10)])
    assert np.array_equal(one, generate(ancestral, range(10)))


def test_shards_know_what_made_them(run):
    generate(run, range(10))
    store = Shards(run, untrained=False)
    assert store.manifest["identity"]["weights"] == run.weights()[1]["sha256"]
    assert list(store.manifest["shards"]) == ["0"]
