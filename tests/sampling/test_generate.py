from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dreamlib.config.factory import make_labels
from dreamlib.diffusion.sampling import image_noise
from dreamlib.runs.open import open_run
from dreamlib.sampling.generate import Shards, export_png, generate, interpolate, process
from dreamlib.training.diffusion import DiffusionTrainer
from dreamlib.utils.errors import ConfigError, Interrupted, RunError
from dreamlib.utils.files import sha256_file, write_json
from dreamlib.utils.images import quantise
from tests.conftest import TINY, train_for


@pytest.fixture
def run(trained, tmp_path, data_home, monkeypatch):
    """A copy of the trained run without its generated images."""
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    shutil.copytree(trained.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("generated"))
    return open_run(tmp_path / "copy", say=lambda text: None)


def one_by_one(run, count):
    return np.concatenate([generate(run, [seed]) for seed in range(count)])


def under(run, *overrides):
    """The run under other settings."""
    return open_run(run.folder, overrides=overrides, say=lambda text: None)


def test_any_split_gives_the_same_images(run):
    one = one_by_one(run, 10)
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


def test_a_moved_run_draws_without_its_images(run, tmp_path, monkeypatch):
    """Whoever draws by weights alone is not asked for what they were trained on."""
    want = generate(run, range(10))
    monkeypatch.setenv("DREAMLIB_DATA", str(tmp_path / "elsewhere"))
    shutil.copytree(run.folder, tmp_path / "moved", ignore=shutil.ignore_patterns("generated"))
    monkeypatch.setattr("dreamlib.runs.open.pack_data", None)
    moved = open_run(tmp_path / "moved", images=False, say=lambda text: None)
    assert np.array_equal(generate(moved, range(10)), want)
    assert not (tmp_path / "elsewhere").exists()
    assert interpolate(moved, 0, 1, 3).shape == (3, 16, 16, 3)
    with pytest.raises(TypeError):  # it would be packed
        open_run(tmp_path / "moved", say=lambda text: None)


def test_shards_of_several_versions_of_torch_are_said(run, monkeypatch):
    said = []
    run = replace(run, say=said.append)
    generate(run, range(10))
    with monkeypatch.context() as patch:
        patch.setattr("torch.__version__", "9.9.0")
        generate(run, range(20))
    (line,) = said
    assert line.startswith("WARNING: images in ")
    assert "9.9" in line
    assert torch.__version__ in line
    generate(run, range(10))
    assert len(said) == 1
    path = next(run.dir.generated.glob("*/manifest.json"))
    manifest = json.loads(path.read_text())
    del manifest["torch"]  # of an older version of ours
    path.write_text(json.dumps(manifest))
    whole = generate(run, range(20))
    assert len(said) == 1
    path.write_text(json.dumps(manifest | {"torch": []}))
    assert np.array_equal(generate(run, range(20)), whole)


@pytest.mark.parametrize("fitting", [True, False])
def test_weights_that_do_not_fit(run, fitting):
    card = run.weights()[1]
    path = run.dir.weights / "ema.safetensors"
    if fitting:
        run.export_weights(8, {"conv.weight": torch.zeros(3)})
    else:
        path.write_bytes(b"no weights")
        card |= {"sha256": sha256_file(path)}
        write_json(run.dir.weights / "card.json", card)
    with pytest.raises(RunError, match="another network" if fitting else "holds no weights"):
        generate(run, range(2))


def test_other_settings_have_other_images(run):
    whole = generate(run, range(10))
    kept = {path: path.read_bytes() for path in run.dir.generated.glob("*/*")}
    other = under(run, "sample.eta=0.5")
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
    stored = np.load(process(run, images=5, moments=5))
    assert stored["x_t"].shape == stored["x0_hat"].shape == (5, 5, 16, 16, 3)
    assert stored["t"].tolist() == [38, 25, 13, 0, -1]
    assert np.array_equal(stored["x_t"][:, -1], generate(run, range(5)))
    assert np.array_equal(stored["x0_hat"][:, -1], stored["x_t"][:, -1])
    assert np.load(process(run, images=5, moments=3))["t"].tolist() == [38, 0, -1]
    longer = under(run, "sample.steps=20")
    assert np.load(process(longer))["t"].size == 8


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
def test_process_holds_at_each_t_what_the_network_is_asked_there(run, sampler):
    """The states are those that reach the network, from the noise of the start on."""
    run = under(run, f"sample.sampler={sampler}", "sample.steps=8")
    store = Shards(run)
    asked = {}

    def watch(net, told):
        x, t = told
        asked[int(t[0])] = quantise(x[:3])

    store.net.register_forward_pre_hook(watch)
    store.draw(range(3))
    stored = np.load(process(run, images=3))
    assert stored["t"].tolist()[-1] == -1
    for column, t in enumerate(stored["t"].tolist()[:-1]):
        assert np.array_equal(stored["x_t"][:, column], asked[t])
    noise = image_noise(run.config.sample.seed, range(3), (3, 16, 16), 40, torch.device("cpu"))
    assert np.array_equal(stored["x_t"][:, 0], quantise(noise))


def test_process_tells_its_own_sampler_and_replaces_older_files(run):
    path = process(run, images=3)
    own = json.loads(str(np.load(path)["sample"]))
    assert own == run.config.sample.model_dump(mode="json")
    held = path.read_bytes()
    assert process(run, images=3).read_bytes() == held
    other = under(run, "sample.steps=2")
    assert json.loads(str(np.load(process(other, images=3))["sample"]))["steps"] == 2
    path.write_bytes(path.read_bytes()[:-9])  # damaged: made again
    assert process(run, images=3).read_bytes() == held
    older = dict(np.load(path))
    older["what"] = np.array(str(older["what"]).removeprefix("entering "))
    del older["sample"]
    np.savez(path, **older)
    assert "sample" in np.load(process(run, images=3))


def test_interpolation_wants_a_deterministic_sampler(run):
    assert interpolate(run, 0, 1, 5).shape == (5, 16, 16, 3)
    with pytest.raises(ConfigError, match="without fresh noise"):
        interpolate(under(run, "sample.sampler=ddpm"), 0, 1)
    stochastic = under(run, "sample.sampler=ddim", "sample.eta=0.5")
    assert np.array_equal(interpolate(stochastic, 0, 1, 5), interpolate(run, 0, 1, 5))
    other = under(run, "sample.sampler=dpmpp_2m")
    assert len(interpolate(other, 0, 1, 3)) == 3
    for ends in ((3, 3), (-1, 2)):
        with pytest.raises(ConfigError, match="two different seeds"):
            interpolate(run, *ends)


def test_ddpm_runs_draw_the_same_images_in_any_split(run):
    ancestral = under(run, "sample.sampler=ddpm")
    assert np.array_equal(one_by_one(ancestral, 10), generate(ancestral, range(10)))


def test_shards_know_what_made_them(run):
    generate(run, range(10))
    store = Shards(run, untrained=False)
    assert store.manifest["identity"]["weights"] == run.weights()[1]["sha256"]
    assert list(store.manifest["shards"]) == ["0"]


# --------------------------------------------------------------------------- labels


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, data_home):
    """A conditional run, barely trained: enough for labels to matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMLIB_DATA", str(data_home))
        settings = [*TINY, "net.conditional=true", "train.length=12"]
        folder = tmp_path_factory.mktemp("runs") / "labelled"
        run = open_run(folder, "faces16", overrides=settings, say=lambda text: None)
        train_for(run)
        yield run


def test_labels_are_drawn_as_they_come_in_the_data(labelled):
    labels_of = make_labels(labelled.config, labelled.data)
    drawn = np.array([labels_of(image) for image in range(2000)])
    assert drawn.tolist() == [labels_of(image) for image in range(2000)]
    train_labels = labelled.data.labels[labelled.data.indices("train")]
    assert {tuple(row) for row in drawn} <= {tuple(row) for row in train_labels}
    for column in range(drawn.shape[1]):
        ours = np.bincount(drawn[:, column], minlength=6) / 2000
        real = np.bincount(train_labels[:, column], minlength=6) / len(train_labels)
        assert np.abs(ours - real).max() < 0.05  # standard error at most 0.011


def test_a_label_can_be_asked_for(labelled):
    name, values = next(iter(labelled.data.attributes.items()))
    run = under(labelled, f"sample.labels={{{name}: {values[1]}}}")
    labels_of = make_labels(run.config, run.data)
    assert {labels_of(image)[0] for image in range(50)} == {1}
    plain, told = generate(labelled, range(4)), generate(run, range(4))
    assert (plain != told).any()
    with pytest.raises(ConfigError, match=f"these images know {name}: {values[0]}"):
        under(labelled, f"sample.labels={{{name}: purple-ish}}")


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_guidance_works_in_every_sampler(labelled, sampler):
    images = {}
    for scale in (1.0, 4.0):
        run = under(labelled, f"sample.guidance={scale}", f"sample.sampler={sampler}")
        images[scale] = generate(run, range(3))
        assert (one_by_one(run, 3) == images[scale]).all()  # labels are keyed by the image, too
    assert (images[1.0] != images[4.0]).any()


def test_withheld_labels_are_keyed_by_the_step(labelled):
    trainer = DiffusionTrainer(labelled)
    y = torch.cat([trainer.draw(step).y for step in range(300)])
    assert torch.equal(trainer.draw(7).y, trainer.draw(7).y)
    dropped = (y == -1).all(1)
    assert torch.equal(dropped, (y == -1).any(1))
    # 1,800 coins of probability 0.1: standard error 0.007
    assert float(dropped.float().mean()) == pytest.approx(0.1, abs=0.03)


def test_images_without_labels_cannot_condition(tmp_path, data_home, monkeypatch):
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(np.full((16, 16, 3), 20 * i, np.uint8)).save(folder / f"{i}.png")
    settings = ["data.name=folder", f"data.path={folder}", "data.train=null"]
    settings += ["data.reference=null", "data.floor=null", "net.conditional=true"]
    with pytest.raises(ConfigError, match=r"these images have no labels"):
        open_run(tmp_path / "run", "faces16", overrides=settings, say=lambda text: None)
