"""The study: its rows, its floor, its records; and the pictures drawn from them."""

from __future__ import annotations

import json

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

from dreamlib.errors import NotEnoughSamples, RunError, WeightsUnavailable
from dreamlib.evaluate import evaluate
from dreamlib.generate import generate, process
from dreamlib.measure_images import gaussian_images
from dreamlib.opening import open_run
from dreamlib.report import figures, score_figures, tables
from dreamlib.scores import read_study


@pytest.fixture(scope="module")
def study(trained):
    return evaluate(trained)


def test_every_column_has_its_floor_and_the_same_reference(study):
    metric = "FD[classifier]"
    assert study.facts["metric"] == metric
    for n in (20, 60):
        for images in ("generated", "held-out real"):
            row = study.find(images, n)
            assert row.n_real == 60
            assert len(row.parts) == (3 if n == 20 else 0)
    small = study.find("generated", 20)
    assert small.value == pytest.approx(np.mean(small.parts))
    assert small.se == pytest.approx(np.std(small.parts, ddof=1) / 3**0.5)


def test_an_untrained_run_is_far_above_the_floor(study):
    assert study.find("generated", 60).value > 3 * study.find("held-out real", 60).value
    assert study.find("untrained", 20).value > 2 * study.find("held-out real", 20).value


def test_the_correction_is_refused_with_too_few_images(study):
    assert "FD[classifier] corrected" in study.absent
    with pytest.raises(KeyError):
        study.find("generated", 60, "FD[classifier] corrected")


def test_shares_are_shares(study):
    assert set(study.shares) >= {"skin", "glasses"}
    for values in study.shares.values():
        for kind in ("real", "generated"):
            assert sum(share[kind] for share in values.values()) == pytest.approx(1)


def test_scores_file_round_trips(trained, study):
    assert read_study(trained.folder) == study
    stored = json.loads((trained.dir.evaluation / "scores.json").read_text())
    assert stored["facts"]["weights"] == trained.weights()[1]["sha256"]
    assert stored["format"] == 2


def test_a_second_evaluation_gives_the_same_scores(trained, study):
    assert evaluate(trained) == study


def test_more_images_than_exist_are_refused(trained):
    with pytest.raises(NotEnoughSamples, match="60"):
        evaluate(trained, n=(20, 61))


def test_no_weights_no_score(trained):
    run = open_run(
        trained.folder, overrides=["evaluate.extractor=inception"], say=lambda text: None
    )
    with pytest.raises(WeightsUnavailable, match="pt_inception"):
        evaluate(run)


def test_gaussian_images_have_the_training_sets_moments():
    rng = np.random.default_rng(0)
    low, detail = rng.normal(size=(500, 1, 1, 1)), rng.normal(size=(500, 4, 4, 1))
    train = np.clip(128 + 20 * low + 8 * detail, 0, 255).astype(np.uint8)
    drawn = gaussian_images(train, 4000, seed=0).astype(float).reshape(4000, -1)
    flat = train.astype(float).reshape(500, -1)
    assert np.abs(drawn.mean(0) - flat.mean(0)).max() < 1.5
    assert np.abs(np.cov(drawn.T) - np.cov(flat.T)).max() < 0.08 * np.cov(flat.T).max()


# ---------------------------------------------------------------------- report


def test_tables_say_bias_and_never_improvement(study):
    text = tables.markdown(study)
    assert "not a change in the model" in text
    for word in ("improve", "better", "worse"):
        assert word not in text.lower()
    assert "| FD[classifier] | held-out real | 20 (3 sets) |" in text
    assert tables.latex(study).count(r"\\") == len(study.rows) + 1
    assert "not computed, because" in text


def test_every_figure_is_drawn_twice_alike(trained, study):
    process(trained)
    images = generate(trained, range(16))
    paths = figures.save_all(trained, images)
    names = {path.stem for path in paths}
    assert names == {
        *("curves", "stages", "samples", "process", "fd_against_n"),
        *("parts", "replay", "modes", "nearest", "shares"),
    }
    first = {path: path.read_bytes() for path in paths if path.suffix == ".png"}
    figures.save_all(trained, images)
    assert {path: path.read_bytes() for path in first} == first


def test_figures_of_an_untrained_run_say_what_is_missing(tiny):
    run = tiny("new")
    with pytest.raises(RunError, match="no log yet"):
        figures.curves(run)
    with pytest.raises(NotEnoughSamples, match="no scores yet"):
        score_figures.fd_against_n(run)


def test_the_plotted_points_are_the_recorded_ones(trained, study):
    axes = score_figures.fd_against_n(trained).axes[0]
    drawn = axes.lines[0].get_xydata()
    rows = [study.find("generated", n) for n in (20, 60)]
    assert drawn == pytest.approx(np.array([[1 / row.n, row.value] for row in rows]))
