"""The loss ablation: equal budgets, counted; resumable; one table and one figure."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch

from dreamlib.config.load import load_config
from dreamlib.diffusion.unet import UNet
from dreamlib.evaluation.ablation import ARMS, ablate, passes, read_ablation
from dreamlib.evaluation.ablation_results import contrast, critical
from dreamlib.report import tables
from dreamlib.report.figures.score_figures import ablation as figure
from dreamlib.report.texts import NONE
from dreamlib.runs.open import open_run
from dreamlib.training.train import train
from dreamlib.utils.errors import ConfigError, Interrupted, RunError
from tests.conftest import TINY

OURS = [*(item for item in TINY if not item.startswith("train.length")), "evaluate.n=[40]"]
SAMPLERS = ("ddim:2:uniform", "dpmpp_2m:3:karras:1:0.1")


def little(losses=("standard", "conservative", "paper-p1"), seeds=(0,), **more):
    settings = {"steps": 10, "n": 40, "samplers": SAMPLERS, "overrides": OURS}
    settings["say"] = lambda text: None
    return ablate("faces16", losses, seeds, **settings | more)


@pytest.fixture
def small(tmp_path, data_home, monkeypatch):
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    return partial(little, folder=tmp_path / "ablation")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_home):
    """The folder of an ablation of two seeds, for what only reads it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole") / "ablation"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMLIB_DATA", str(data_home))
        little(seeds=(0, 1), folder=folder)
    return folder


def test_every_cell_is_there_and_the_budgets_are_equal(whole):
    found = read_ablation(whole)
    assert len(found.cells) == 3 * 2 * 2 * 2
    of = {(cell.arm, cell.budget, cell.seed, cell.sampler): cell for cell in found.cells}
    for cell in found.cells:
        if cell.budget == "steps":
            assert cell.steps == 10
        else:
            assert cell.steps == {"standard": 10, "paper-p1": 5}.get(cell.arm, cell.steps)
            assert 10 - 2 < cell.passes <= 10  # one step more would be too much
        assert (cell.minus_standard is None) == (cell.arm == "standard")
        if cell.arm != "standard":
            # Too few images for a corrected distance: KID's difference, never the raw one's.
            assert cell.minus_metric == found.minus_metric == "KID[classifier]"
            less = cell.kid - of["standard", cell.budget, cell.seed, cell.sampler].kid
            assert cell.minus_standard == pytest.approx(less, abs=1e-9)


@pytest.mark.slow
def test_the_counted_passes_are_the_networks_own(tiny, monkeypatch):
    """Every image that goes through the network in training, counted where it happens."""
    seen = []
    forward = UNet.forward

    def counting(net, x, *rest):
        if not torch.is_inference_mode_enabled():  # previews are no training
            seen.append(len(x))
        return forward(net, x, *rest)

    monkeypatch.setattr(UNet, "forward", counting)
    steps = 80
    for arm, settings in ARMS.items():
        run = tiny(arm, *settings, f"train.length={steps}", "loss.start=20")
        seen.clear()
        for _ in train(run):
            pass
        # The adapted images of `sampled` are drawn: three standard deviations of their number.
        spread = 3 * (0.3 * 0.7 * (steps - 20) / 6) ** 0.5 if arm == "conservative" else 0
        assert sum(seen) / 6 == pytest.approx(passes(run.config, steps), abs=spread + 1e-9), arm


@pytest.mark.slow
def test_it_goes_on_where_it_was(small, tmp_path):
    folder, whole = tmp_path / "ablation", small()
    assert read_ablation(folder) == whole
    weights = {p: p.stat().st_mtime_ns for p in folder.glob("*/weights/ema.safetensors")}
    assert len(weights) == 5  # standard serves both budgets
    (folder / "ablation.json").unlink()
    assert small() == whole
    assert {p: p.stat().st_mtime_ns for p in weights} == weights


def test_a_mirror_keeps_two_ablations_apart(small, tmp_path, monkeypatch):
    monkeypatch.setenv("DREAMLIB_MIRROR", str(tmp_path / "mirror"))
    said: list[str] = []
    for name, batch in (("first", 6), ("second", 5)):
        more = {"overrides": [*OURS, f"train.batch={batch}"], "say": said.append}
        small(("standard",), folder=tmp_path / name, **more)
    assert not [text for text in said if "BROUGHT" in text]
    saved = sorted(path.name for path in (tmp_path / "mirror/runs").iterdir())
    assert saved == ["first-standard-seed0-10", "second-standard-seed0-10"]


def test_a_run_of_an_older_name_goes_on_without_a_mirror(small, tmp_path, monkeypatch):
    whole, folder = small(("standard",)), tmp_path / "ablation"
    run = open_run(folder / "ablation-standard-seed0-10", say=lambda text: None)
    assert run.weights()[1]["sha256"] == whole.cells[0].weights
    assert run.weights()[1]["step"] == 10
    old = run.folder.rename(folder / "standard-seed0-10")
    made = (old / "weights/ema.safetensors").stat().st_mtime_ns
    monkeypatch.setenv("DREAMLIB_MIRROR", str(tmp_path / "mirror"))
    assert small(("standard",)) == whole
    assert [path for path in folder.iterdir() if path.is_dir()] == [old]
    assert (old / "weights/ema.safetensors").stat().st_mtime_ns == made
    assert not (tmp_path / "mirror/runs").exists()


def test_a_stopped_training_stops_the_ablation(small):
    def stop(run, ticks):
        next(ticks)
        ticks.close()

    with pytest.raises(Interrupted, match="was paused: the same command goes on"):
        small(watch=stop)


def test_table_and_figure_hold_the_files_numbers(whole):
    found = read_ablation(whole)
    text = tables.ablation_markdown(found)
    assert len(text.splitlines()) == 2 + 3 * 2 * 2 + 2
    assert "Differences are of KID[classifier]" in text
    for cell in found.cells:
        assert tables._number(cell.fd) in text
    for word in ("improve", "better", "worse"):
        assert word not in text.lower()
    assert tables.as_latex(*tables.ablation_table(found)).count(r"\\") == 13
    drawn = figure(whole)
    points = [x for line in drawn.axes[0].lines for x in line.get_xdata()]
    for cell in found.of("paper-p1", "passes", SAMPLERS[0]):
        assert any(x == pytest.approx(cell.fd) for x in points)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"losses": ("standard", "magic")}, "unknown losses magic: choose from standard"),
        ({"samplers": ("ddim",)}, "sampler:steps:spacing:eta:sigma_min"),
        ({"seeds": ()}, "at least one seed"),
        ({"steps": 0}, "one step"),
        ({"steps": 1}, "1 passes are less than a step of paper-p1: --steps 2"),
        ({"overrides": [*OURS, "loss.start=3 epochs"]}, "loss.start is '3 epochs'"),
    ],
)
def test_wrong_questions_are_refused(small, tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        small(**more)
    assert not (tmp_path / "ablation").exists()


def test_a_file_that_does_not_hold(tmp_path):
    with pytest.raises(RunError, match=r"holds no ablation: .*`dreamlib ablate"):
        read_ablation(tmp_path)
    (tmp_path / "ablation.json").write_text(json.dumps({"facts": {}, "cells": [{"arm": 1}]}))
    with pytest.raises(RunError, match="cannot be read"):
        read_ablation(tmp_path)


def test_passes_by_formula():
    def of(*settings):
        return passes(load_config("faces16", ["loss.name=conservative", *settings]), 1000)

    assert of("loss.name=standard") == of("loss.name=perturb") == 1000
    assert of("loss.name=paper") == 2000
    assert of("loss.start=10 %") == pytest.approx(1000 + 0.3 * 900)
    assert of("loss.start=10 %", "loss.estimator=both") == pytest.approx(1900)


def test_two_processes_make_what_one_does(small, whole, tmp_path):
    """Parts leave nothing to train or draw, and the scores are those of a single process."""
    for k in (0, 1):
        assert small(seeds=(0, 1), part=(k, 2)).cells == []
    assert not (tmp_path / "ablation/ablation.json").exists()
    weights = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/*/weights/ema.safetensors")}
    assert len(weights) == 10
    assert small(seeds=(0, 1)).cells == read_ablation(whole).cells
    assert {p: p.stat().st_mtime_ns for p in weights} == weights
    with pytest.raises(ConfigError, match="part 3 of 2 does not exist"):
        small(part=(2, 2))


# ------------------------------------------------------------------ over training seeds


@pytest.mark.parametrize(("seeds", "arms", "table"), [(5, 1, 2.776), (3, 1, 4.303), (10, 1, 2.262)])
def test_one_arm_is_students_t(seeds, arms, table):
    assert critical(seeds, arms) == pytest.approx(table, rel=0.02)


@pytest.mark.parametrize(("seeds", "arms"), [(5, 8), (3, 4)])
def test_five_studies_in_a_hundred_are_wrong_where_no_arm_differs(seeds, arms):
    rng, wrong, studies = np.random.default_rng(1), 0, 3000
    for _ in range(studies):
        standard = rng.normal(7, 0.4, seeds)
        each = [contrast(rng.normal(7, 0.4, seeds) - standard, arms, 0.35) for _ in range(arms)]
        wrong += any(found.clear for found in each)
    assert wrong / studies == pytest.approx(0.05, abs=0.015)  # uncorrected: 0.3


def test_the_needed_seeds_resolve_what_is_wanted():
    found = contrast([0.1, -0.1, 0.3, -0.3], 3, 0.05)
    assert found.value == pytest.approx(0)
    assert found.se == pytest.approx(0.1291, abs=1e-4)
    assert not found.clear
    assert found.needed == 107  # sd 0.2582: 2 x 0.2582 / sqrt(107) is just below 0.05
    assert contrast([0.1, 0.1001, 0.0999], 3, 0.05).clear


def test_results_say_how_sure_they_are(whole):
    found = read_ablation(whole)
    text, sampler = tables.ablation_markdown(found), SAMPLERS[0]
    assert "± is the standard error over 2 training seeds, paired" in text
    minus = [cell.minus_standard for cell in found.of("paper-p1", "steps", sampler)]
    value, error = found.difference("paper-p1", "steps", sampler)
    assert value == pytest.approx(sum(minus) / 2)
    assert error == pytest.approx(abs(minus[0] - minus[1]) / 2)
    assert f"{value:+.3f} ± {error:.3f}" in text
    assert found.contrast("standard", "steps", sampler) is None
    for cell in found.cells:
        assert 0 <= cell.coverage <= 1
        assert len(cell.errors) == 4
        assert cell.errors[0] > cell.errors[-1]  # little noise is the hardest to tell


def test_results_of_an_older_version_are_read(whole, tmp_path):
    path = tmp_path / "ablation.json"
    old = json.loads((whole / "ablation.json").read_text())
    for cell in old["cells"]:
        for name in ("precision", "recall", "coverage", "errors"):
            del cell[name]
    path.write_text(json.dumps(old))
    _, lines = tables.ablation_table(read_ablation(tmp_path))
    assert all(line[-4:] == (NONE,) * 4 for line in lines)
    figure(tmp_path)
