"""The presets: exact values of the original recipes, and what docs/TRAINING.md says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from benchmarks.timing import counted
from dreamlib.config.load import differences, load_config, preset_names
from dreamlib.config.schema import span_steps

pytestmark = pytest.mark.usefixtures("counted_once")
TRAINING = (Path(__file__).resolve().parents[2] / "docs" / "TRAINING.md").read_text("utf-8")
CLASSES = [name for name in preset_names() if name.endswith("-classes")]

# What the original recipes say in so many words
ORIGINAL = yaml.safe_load("""
celeba64-original:
  data: {name: celeba, first: 50000, size: 64, flip: true}
  net: {widths: [128, 256, 512], blocks: 2, attention: [16], heads: 8, dropout: 0.1, patch: 1}
  diffusion:
    {steps: 1000, schedule: cosine, beta_start: 0.0001, beta_end: 0.02, prediction: eps}
  loss:
    {name: conservative, lam_max: 0.5, start: 10 epochs, ramp: 20 epochs, weight: 0.3,
     estimator: both, min_snr: null}
  train:
    {length: 100 epochs, batch: 128, optimizer: adamw, lr: 0.0002, lr_schedule: constant,
     warmup: 0, clip: 1.0, ema: 0.9999, precision: auto, recompute: true}
  sample: {sampler: ddpm, steps: 1000, clamp: true, variance: posterior, temperature: 1.0}
  evaluate: {extractor: inception, n: [500, 5000], reference: 5000}
fashion32:
  data: {name: fashion, size: 32}
  net: {widths: [32, 64, 128, 256], attention: [16, 8]}
  diffusion: {steps: 1000, schedule: cosine, prediction: eps}
  loss: {name: standard}
  train:
    {length: 200 epochs, batch: 64, optimizer: adam, lr: 0.001, lr_schedule: constant, clip: 1.0,
     ema: 0.995, preview_every: 10 epochs}
  sample: {sampler: ddpm, steps: 1000}
mnist28:
  data: {name: mnist, size: 28, flip: false}
  diffusion: {steps: 1000, schedule: cosine, prediction: eps}
  loss: {name: standard}
  train: {length: 120 epochs, optimizer: adamw, lr_schedule: cosine, ema: 0.995}
  sample: {sampler: ddim, steps: 50, eta: 0.0}
cats64: {data: {size: 64}, train: {length: 200 epochs}}
cats128: {data: {size: 128}, train: {length: 200 epochs}}
cats256: {data: {size: 256}, train: {length: 100 epochs}}
cats128-fast: {data: {size: 128}, train: {length: 10 epochs}}
""")


def explained(preset):
    """Counted with the labels that the preset's images have; nothing is allocated."""
    return counted(load_config(preset))  # attention's gradient is counted a little differently


@pytest.mark.parametrize("preset", ORIGINAL)
def test_original_recipes_to_the_letter(preset):
    config = load_config(preset).model_dump(mode="json")
    for section, fields in ORIGINAL[preset].items():
        assert {name: config[section][name] for name in fields} == fields


@pytest.mark.parametrize("preset", ["cats64", "cats128", "cats256", "cats128-fast"])
def test_cats_are_plain_ddpm_on_a_folder(preset):
    config = load_config(preset)
    assert (config.data.name, config.data.flip, config.loss.name) == ("folder", True, "standard")
    assert (config.diffusion.steps, config.diffusion.prediction) == (1000, "eps")
    # 15,000 images leave a tenth to each held-out split, give or take what the hashes decide
    assert max(config.evaluate.reference, *config.evaluate.n) <= 1300


def test_celeba64_differs_from_the_original_only_where_we_say_so():
    ours, original = (load_config(p).model_dump() for p in ("celeba64", "celeba64-original"))
    assert [line.split(":")[0] for line in differences(ours, original)] == [
        *("data.first", "loss.estimator", "loss.ramp", "loss.start", "preset"),
        *("sample.sampler", "sample.spacing", "sample.steps", "train.length", "train.recompute"),
    ]
    run = {"epoch": 390.625, "total": 39_062}
    assert [span_steps(c["train"]["length"], **run) for c in (ours, original)] == [39_062] * 2
    for field in ("start", "ramp"):
        assert span_steps(ours["loss"][field], **run) == span_steps(original["loss"][field], **run)


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
