"""The study: its rows, its floor, its records; and the pictures drawn from them."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import shutil
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

from dreamlib.evaluation.denoising import RANGES
from dreamlib.evaluation.evaluate import evaluate
from dreamlib.evaluation.feature_scores import (
    GAUSSIAN,
    OWN_FOURTH,
    corrected_rows,
    distance_rows,
    kernel_rows,
)
from dreamlib.evaluation.inputs import StudyInputs, check_apart, gaussian_images, prepare
from dreamlib.evaluation.results import Plan, Score, read_scores
from dreamlib.metrics.frechet import Moments
from dreamlib.metrics.frechet_stats import frechet_floor, frechet_se, frechet_variances
from dreamlib.report import tables
from dreamlib.report.figures import registry as figures
from dreamlib.report.figures import score_figures
from dreamlib.report.texts import tex
from dreamlib.runs.open import open_run
from dreamlib.sampling.generate import Shards
from dreamlib.utils.errors import (
    ConfigError,
    DataError,
    NotEnoughSamples,
    RunError,
    WeightsUnavailable,
)


@pytest.fixture(scope="module")
def study(trained):
    return evaluate(trained)


def distances(n, gen, real):
    return distance_rows(Plan("FID", (n,)), {"generated": gen}, real)


def test_every_column_has_its_floor_and_the_same_reference(study):
    assert study.facts["metric"] == "FD[classifier]"
    for n, parts in ((20, 3), (60, 0)):
        for images in ("generated", "held-out real"):
            row = study.find(images, n)
            assert row.n_real == 60
            assert len(row.parts) == parts
    small = study.find("generated", 20)
    assert small.value == pytest.approx(np.mean(small.parts))
    assert small.se is None  # three sets tell nothing of a spread, 20 images allow no jackknife
    assert small.se_method == "none: a jackknife needs 40 images"


def test_errors_of_several_sets():
    """All their images count, and the reference, which they share, counts once."""
    rng = np.random.default_rng(0)
    gen, real = rng.normal(size=(1000, 4)), rng.normal(size=(500, 4))
    (ten,), (two,) = (distances(n, gen, real) for n in (100, 500))
    for row, parts in ((ten, 10), (two, 2)):
        assert len(row.parts) == parts
        assert row.se_method == f"delta method, both sides of {parts} sets"
    assert two.value == pytest.approx(np.mean(two.parts))
    first = gen[:500]
    one = frechet_se(first, real)
    assert one / 2**0.5 < two.se < one  # the reference is the same for both
    (twice,) = distances(500, np.tile(first, (2, 1)), real)
    own, shared = frechet_variances([first], [Moments.of(first)], real, Moments.of(real))
    assert own + shared == pytest.approx(one**2)
    assert twice.se == pytest.approx((own / 2 + shared) ** 0.5, rel=1e-3)
    fixed, alone = (
        corrected_rows(Plan("FID", (500,)), {"generated": first}, real, raw)[0][0]
        for raw in ([two], distances(500, first, real))
    )
    assert fixed.value == pytest.approx(alone.value)
    assert fixed.se == pytest.approx(alone.se)


@pytest.mark.parametrize(("d", "size"), [(8, 60), (40, 30)])
def test_errors_of_several_sets_hold_fresh_images_and_a_fresh_reference(d, size):
    """Below and above one image per feature; of the images alone it would be too small."""
    plan, found = Plan("FID", (size,)), []
    for i in range(120):
        rng = np.random.default_rng((d, i))
        real, gen = rng.normal(size=(300, d)), 0.7 * rng.normal(size=(10 * size, d)) + 0.5
        sets = {"generated": gen}
        rows = [*distance_rows(plan, sets, real), *kernel_rows(plan, sets, real)]
        found.append([(r.value, r.se, np.std(r.parts, ddof=1) / 10**0.5) for r in rows])
    values, errors, images = np.moveaxis(np.array(found), 2, 0)
    spread = values.std(axis=0, ddof=1)  # known to 7 %
    of_both, of_images = (np.sqrt(np.square(se).mean(axis=0)) / spread for se in (errors, images))
    assert (of_both > 0.85).all()
    assert (of_both < 1.25).all()
    assert (of_images < 0.85).all()


def test_a_small_reference_has_a_jackknife_and_a_file_of_moments_is_left_out():
    rng = np.random.default_rng(0)
    gen, real = rng.normal(size=(500, 60)) + 1, rng.normal(size=(50, 60))
    (few,) = distances(50, gen, real)
    assert few.se_method.endswith("reference: jackknife of 20 groups")
    assert few.se > np.std(few.parts, ddof=1) / 10**0.5
    (below,) = distances(50, gen, rng.normal(size=(90, 60)))
    assert below.se_method == "sd over 10 disjoint sets / sqrt(n); reference: delta method"
    (none,) = distances(30, gen, real[:30])
    assert none.se is None
    (held,) = distances(50, gen, Moments.from_stats(np.zeros(60), np.eye(60)))
    assert held.se == pytest.approx(np.std(held.parts, ddof=1) / 10**0.5)
    assert "reference left out" in held.se_method


def test_the_null_is_of_the_features_own_law():
    """ReLU features, which are not Gaussian: a perfect generator scores more than those would."""
    d, rows = 12, []
    for i in range(20):
        rng = np.random.default_rng(i)
        gen, real = (np.maximum(rng.normal(size=(n, d)), 0.5) for n in (5000, 1500))
        rows += distances(500, gen, real)
    kept = Moments.of(real)
    scored, null = (np.mean([getattr(row, name) for row in rows]) for name in ("value", "null"))
    assert null == pytest.approx(scored, rel=0.1)
    assert frechet_floor(kept.eigenvalues, 500, 1500) < 0.85 * scored
    assert {row.null_method for row in rows} == {OWN_FOURTH}
    stored = Moments.from_stats(kept.mean, kept.cov, 1500)
    (row,) = distances(500, gen, stored)
    assert row.null == frechet_floor(stored.eigenvalues, 500, 1500)
    assert row.null_method == GAUSSIAN


def test_tables_say_what_their_own_rows_hold(study):
    """Of null and ±, by the methods in the file: an older version's are not called ours."""

    def text(**more):
        return tables.how_to_read(replace(study, **more))

    assert "fresh images and a fresh reference" in text()
    assert "leaves the reference out" not in text()
    old = replace(study.rows[0], se_method="sd over 10 disjoint sets; the reference is held fixed")
    old = replace(old, null=1.0)
    assert "leaves the reference out" in text(rows=[old])
    assert "that of Gaussian features" in text(rows=[old])
    new = replace(old, null_method=OWN_FOURTH)
    assert f"Null of {old.metric}: {OWN_FOURTH}." in text(rows=[new])
    file = replace(study.rows[0], se_method="sd over 10 sets; reference left out: no images")
    assert "leaves the reference out" in text(guests=[file])


def test_an_untrained_run_is_far_above_the_floor(study):
    assert study.find("generated", 60).value > 3 * study.find("held-out real", 60).value
    assert study.find("untrained", 20).value > 2 * study.find("held-out real", 20).value
    for values in study.shares.values():
        for kind in ("real", "generated"):
            assert sum(share[kind] for share in values.values()) == pytest.approx(1)


def test_scores_file_round_trips_and_a_second_evaluation_gives_the_same(trained, study):
    assert read_scores(trained.folder) == study
    stored = json.loads((trained.dir.evaluation / "scores.json").read_text())
    assert stored["facts"]["weights"] == trained.weights()[1]["sha256"]
    assert stored["format"] == 2
    assert evaluate(trained) == study


def reopened(run, *overrides):
    return open_run(run.folder, overrides=overrides, say=lambda text: None)


def test_what_cannot_be_scored_is_refused(trained):
    for part in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ConfigError, match="does not exist"):
            prepare(trained, part)
    with pytest.raises(NotEnoughSamples, match="60"):
        evaluate(trained, n=(20, 61))
    with pytest.raises(WeightsUnavailable, match="pt_inception"):
        evaluate(reopened(trained, "evaluate.extractor=inception"))


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
    head, _, first, *_ = text.splitlines()
    assert head.startswith("| metric | N | real | generated | held-out real | untrained | gaussian")
    assert head.endswith("| null | seeds | steps | NFE | resize |")
    row, floor = study.find("generated", 20), study.find("held-out real", 20)
    both = [tables._with_error(x) for x in (row, floor)]
    assert first.startswith(f"| FD[classifier] | 20 (3 sets) | 60 | {both[0]} | {both[1]} |")
    assert first.endswith("| 0 to 59 | 4 | 4 | native |")
    lines = {(r.metric, r.n, r.real) for r in study.rows if not r.metric.startswith("pixels")}
    assert tables.latex(study).count(r"\\") == len(lines) + 1
    assert r"\toprule" in tables.latex(study)
    assert "not computed, because" in text


def test_the_csv_holds_every_field_of_every_row(study):
    rows = list(csv.DictReader(io.StringIO(tables.as_csv(study.rows))))
    assert [float(row["value"]) for row in rows] == [row.value for row in study.rows]
    for row, score in zip(rows, study.rows):
        assert row["seeds"] == score.origin.seeds
        assert [float(x) for x in row["parts"].split()] == score.parts
        assert row["extractor"] == score.origin.extractor


def test_every_row_says_what_it_was_made_from(trained, study):
    made_by = {"generated": trained.weights()[1]["sha256"], "untrained": "initial"}
    for row in [*study.rows, *study.replay]:
        origin = row.origin
        assert origin.resize == "native"
        pixels = row.metric.startswith("pixels")
        assert origin.extractor.startswith("none: pixels" if pixels else "classifier-")
        assert origin.seeds == f"0 to {row.n * max(1, len(row.parts)) - 1}"
        drawn = (4, 4, 0) if row.images in made_by else (None, None, None)
        assert (origin.steps, origin.nfe, origin.seed) == drawn
        assert origin.weights == made_by.get(row.images, "")
        if row.images == "generated" and row not in study.replay:
            floor = study.find("held-out real", row.n, row.metric, row.real)
            assert row.floor == floor.value


def test_guidance_doubles_the_evaluations(tiny):
    run, score = tiny("g", "net.conditional=true", "sample.guidance=2.0"), ("FID", "generated", 1.0)
    made = StudyInputs(run, (20,)).origin(Score(*score, 20, 60, None, ""), {"sha256": "x"})
    assert (made.steps, made.nfe) == (4, 8)


def test_all_kinds_of_measures_are_there(study):
    names = {row.metric.partition("[")[0] for row in study.rows}
    assert names >= {
        *("FD", "KID", "MIND", "precision", "recall", "density", "coverage"),
        *("clipped density", "clipped coverage"),
        *("NDB/K", "JS above null", "modes / real modes", "pixels: log_spectrum"),
    }
    corrected = {row.metric for row in study.rows if row.metric.endswith("corrected")}
    assert corrected == {"MIND[classifier] corrected"}  # too few images for the distance
    assert "FD[classifier] corrected" in study.absent
    assert {row.real for row in study.rows} == {"reference", "train"}
    assert set(study.shares) >= {"skin", "glasses"}
    assert study.modes["generated"]["n"] == 60
    assert study.memorisation["n_train"] == 120
    assert study.memorisation["n"] == 60
    assert len(study.memorisation["by_noise"]["ratios"]) == RANGES
    assert study.memorisation["by_noise"]["n"] == 60


def test_the_replay_only_changes_the_counts(study):
    values = [(row.n, row.n_real, row.value) for row in study.replay]
    assert [row[:2] for row in values] == [(20, 32), (20, 20), (20, 60), (60, 60)]
    first = study.find("generated", 20).parts[0]
    assert values[2][2] == pytest.approx(first)  # the same images, the same reference
    assert values[-1][2] == pytest.approx(study.find("generated", 60).value)


def test_held_out_images_that_were_trained_on_are_refused(trained):
    train, reference = (trained.data.take(split, 60)[0] for split in ("train", "reference"))
    assert check_apart([reference], train, share=0.01) == 0
    mixed = np.concatenate([reference[:58], train[:2]])
    assert check_apart([mixed], train, share=0.05) == 2
    with pytest.raises(DataError, match="2 of 60 images to compare with are training images"):
        check_apart([mixed], train, share=0.01)
    mixed[-1, 0, 0, 0] ^= 1  # a pixel differs: another image
    assert check_apart([mixed], train, share=0.05) == 1


def test_an_older_file_is_put_aside(trained, study, tmp_path):
    folder = shutil.copytree(trained.folder, tmp_path / "old")
    run = open_run(folder, say=(said := []).append)
    path = run.dir.evaluation / "scores.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    before = path.read_text()
    again = evaluate(run)
    assert again.rows == study.rows
    assert path.with_name("scores-old.json").read_text() == before
    assert any("scores-old.json" in line for line in said)


def test_two_processes_share_the_work(trained, study, tmp_path, monkeypatch):
    """Each makes half; what follows asks no network, and scores the same."""
    monkeypatch.setattr("dreamlib.evaluation.inputs.CHUNK_IMAGES", 20)
    monkeypatch.setattr("dreamlib.metrics.features.CHUNK_IMAGES", 20)
    folder = tmp_path / "shared"
    folder.mkdir()
    for name in ("config.yaml", "data.json", "status.json", "weights"):
        source = trained.folder / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    run = open_run(folder, overrides=["evaluate.anchors=false"], say=lambda text: None)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=prepare, args=(run, (k, 2))) for k in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    shards = json.loads(next(run.dir.generated.glob("*/manifest.json")).read_text())["shards"]
    assert set(shards) == {str(k) for k in range(6)}

    def fail(*args):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(Shards, "draw", fail)
    monkeypatch.setattr("dreamlib.metrics.features._one_batch", fail)
    again = evaluate(run)
    assert again.find("generated", 60).value == study.find("generated", 60).value


def test_what_has_no_weights_is_absent_and_said(trained):
    more = ["evaluate.lpips=true", "evaluate.inception_score=true", "evaluate.anchors=false"]
    absent = evaluate(reopened(trained, *more)).absent
    assert "alexnet-owt-7be5be79.pth" in absent["LPIPS diversity"]
    assert "needs evaluate.extractor=inception" in absent["IS"]


def test_figures_of_an_untrained_run_say_what_is_missing(tiny):
    run = tiny("new")
    with pytest.raises(RunError, match="no log yet"):
        figures.curves(run)
    with pytest.raises(NotEnoughSamples, match="no scores yet"):
        score_figures.fd_against_n(run)


def test_the_plotted_points_are_the_recorded_ones(trained, study):
    line = score_figures.fd_against_n(trained).axes[0].lines[0]
    rows = [study.find("generated", n) for n in (20, 60)]
    assert line.get_xydata() == pytest.approx(np.array([[1 / row.n, row.value] for row in rows]))


def test_latex_bears_any_name():
    assert tex("a_b & 50 % ± – {#1} \\ ^ ~ $") == (
        r"a\_b \& 50 \% $\pm$ -- \{\#1\} \textbackslash{} \textasciicircum{} \textasciitilde{} \$"
    )
