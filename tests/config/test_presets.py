"""The presets: exact values of the original recipes, and what docs/TRAINING.md says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.timing import counted
from dreamlib.config.load import differences, load_config, preset_names
from dreamlib.config.schema import span_steps

pytestmark = pytest.mark.usefixtures("counted_once")
TRAINING = (Path(__file__).resolve().parents[2] / "docs" / "TRAINING.md").read_text("utf-8")
CLASSES = [name for name in preset_names() if name.endswith("-classes")]

# What the original recipes say in so many words
ORIGINAL = {
    "celeba64-original": {
        "data.name": "celeba",
        "data.first": 50_000,
        "data.size": 64,
        "data.flip": True,
        "net.widths": (128, 256, 512),
        "net.blocks": 2,
        "net.attention": (16,),
        "net.heads": 8,
        "net.dropout": 0.1,
        "net.patch": 1,
        "diffusion.steps": 1000,
        "diffusion.schedule": "cosine",
        "diffusion.beta_start": 1e-4,
        "diffusion.beta_end": 0.02,
        "diffusion.prediction": "eps",
        "loss.name": "conservative",
        "loss.lam_max": 0.5,
        "loss.start": "10 epochs",
        "loss.ramp": "20 epochs",
        "loss.weight": 0.3,
        "loss.estimator": "both",
        "loss.min_snr": None,
        "train.length": "100 epochs",
        "train.batch": 128,
        "train.optimizer": "adamw",
        "train.lr": 2e-4,
        "train.lr_schedule": "constant",
        "train.warmup": 0,
        "train.clip": 1.0,
        "train.ema": 0.9999,
        "train.precision": "auto",
        "train.recompute": True,
        "sample.sampler": "ddpm",
        "sample.steps": 1000,
        "sample.clamp": True,
        "sample.variance": "posterior",
        "sample.temperature": 1.0,
        "evaluate.extractor": "inception",
        "evaluate.n": (500, 5000),
        "evaluate.reference": 5000,
    },
    "fashion32": {
        "data.name": "fashion",
        "data.size": 32,
        "net.widths": (32, 64, 128, 256),
        "net.attention": (16, 8),
        "diffusion.steps": 1000,
        "diffusion.schedule": "cosine",
        "diffusion.prediction": "eps",
        "loss.name": "standard",
        "train.length": "200 epochs",
        "train.batch": 64,
        "train.optimizer": "adam",
        "train.lr": 1e-3,
        "train.lr_schedule": "constant",
        "train.clip": 1.0,
        "train.ema": 0.995,
        "train.preview_every": "10 epochs",
        "sample.sampler": "ddpm",
        "sample.steps": 1000,
    },
    "mnist28": {
        "data.name": "mnist",
        "data.size": 28,
        "data.flip": False,
        "diffusion.steps": 1000,
        "diffusion.schedule": "cosine",
        "diffusion.prediction": "eps",
        "loss.name": "standard",
        "train.length": "120 epochs",
        "train.optimizer": "adamw",
        "train.lr_schedule": "cosine",
        "train.ema": 0.995,
        "sample.sampler": "ddim",
        "sample.steps": 50,
        "sample.eta": 0.0,
    },
    "cats64": {"data.size": 64, "train.length": "200 epochs"},
    "cats128": {"data.size": 128, "train.length": "200 epochs"},
    "cats256": {"data.size": 256, "train.length": "100 epochs"},
    "cats128-fast": {"data.size": 128, "train.length": "10 epochs"},
}


def value(config, name):
    section, field = name.split(".")
    return getattr(getattr(config, section), field)


def explained(preset):
    """Counted with the labels that the preset's images have; nothing is allocated."""
    return counted(load_config(preset))  # attention's gradient is counted a little differently


@pytest.mark.parametrize("preset", ORIGINAL)
def test_original_recipes_to_the_letter(preset):
    config = load_config(preset)
    assert {name: value(config, name) for name in ORIGINAL[preset]} == ORIGINAL[preset]


@pytest.mark.parametrize("preset", ["cats64", "cats128", "cats256", "cats128-fast"])
def test_cats_are_plain_ddpm_on_a_folder(preset):
    config = load_config(preset)
    assert (config.data.name, config.data.flip, config.loss.name) == ("folder", True, "standard")
    assert (config.diffusion.steps, config.diffusion.prediction) == (1000, "eps")
    # 15,000 images leave a tenth to each held-out split, give or take what the hashes decide
    assert max(config.evaluate.reference, *config.evaluate.n) <= 1300


@pytest.mark.parametrize("preset", ["celeba64", "celeba64-original"])
def test_celeba64_has_the_promised_parameters(preset):
    assert explained(preset).total == 54_846_979


def test_celeba64_differs_from_the_original_only_where_we_say_so():
    ours, original = (load_config(p).model_dump() for p in ("celeba64", "celeba64-original"))
    assert [line.split(":")[0] for line in differences(ours, original)] == [
        "data.first",
        "loss.estimator",
        "loss.ramp",
        "loss.start",
        "preset",
        "sample.sampler",
        "sample.steps",
        "train.length",
        "train.recompute",
    ]
    epoch, total = 390.625, 39_062
    lengths = [span_steps(c["train"]["length"], epoch=epoch) for c in (ours, original)]
    assert lengths == [total, total]
    for field in ("start", "ramp"):
        spans = [span_steps(c["loss"][field], epoch=epoch, total=total) for c in (ours, original)]
        assert spans[0] == spans[1]


def test_mnist_attends_at_7_pixels():
    config = load_config("mnist28")
    assert config.data.size / 2 ** len(config.net.widths) == 7


@pytest.mark.parametrize("preset", CLASSES)
def test_classes_differ_from_their_sibling_only_in_being_told(preset):
    told, untold = load_config(preset), load_config(preset.removesuffix("-classes"))
    lines = differences(untold.model_dump(), told.model_dump())
    names = [line.split(":")[0] for line in lines]
    assert names == ["net.conditional", "preset", "sample.guidance"]
    assert told.net.conditional
    assert told.sample.guidance > 1


@pytest.mark.parametrize(
    "name", ["faces16", "faces16-classes", "smoke", "gan-faces16", "gan-smoke"]
)
def test_drawn_faces_are_not_mirrored(name):
    """Short hair has its parting at one side: a mirrored face is none of the data set's."""
    assert not load_config(name).data.flip


def test_three_presets_have_classes():
    assert CLASSES == ["faces16-classes", "fashion-cpu-classes", "mnist28-classes"]


def rows_of_the_first_table():
    section = TRAINING.split("## Choosing a preset")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", section, re.M)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


def test_the_page_and_the_presets_name_each_other():
    assert sorted(rows_of_the_first_table()) == preset_names()
    named = re.findall(
        r"`(smoke|(?:gan|faces|digits|fashion|mnist|celeba|cats)(?:-|\d)[\w-]*)`", TRAINING
    )
    assert set(named) == set(preset_names())


@pytest.mark.parametrize("preset", preset_names())
def test_the_pages_numbers_are_the_networks(preset):
    _, size, count, gflop, *_ = rows_of_the_first_table()[preset]
    config = load_config(preset)
    assert int(size) == config.data.size
    assert int(count.replace(",", "")) == explained(preset).total
    assert gflop == f"{explained(preset).step / 1e9:.3g}"


def test_the_pages_steps_are_the_presets():
    def steps(preset, images):
        config = load_config(preset)
        return span_steps(config.train.length, epoch=images / config.train.batch)

    assert f"{steps('fashion32', 60_000):,} steps" in TRAINING
    assert f"{steps('mnist28', 60_000):,} steps" in TRAINING
    assert f"{steps('celeba64-original', 50_000):,} steps" in TRAINING
    assert steps("celeba64", 162_770) == steps("celeba64-original", 50_000)


def test_the_smoke_preset_is_as_small_as_promised():
    config = load_config("smoke")
    assert explained("smoke").total <= 100_000
    assert config.train.length <= 12
    assert config.evaluate.n == (50, 200)
