"""Anybody's images beside a run's own: same measures, named references, nothing mixed up."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dreamlib.data.dataset import Packed
from dreamlib.data.image_folder import folder_source
from dreamlib.data.prepare import pack
from dreamlib.evaluation import score_external as external
from dreamlib.evaluation.evaluate import evaluate
from dreamlib.evaluation.external_images import write_statistics
from dreamlib.evaluation.inputs import StudyInputs
from dreamlib.evaluation.results import read_scores
from dreamlib.evaluation.score_external import ExternalEvaluator, evaluator, name_of, score_external
from dreamlib.metrics.frechet import Moments
from dreamlib.report.figures.score_figures import fd_against_n
from dreamlib.report.tables import markdown, save_tables
from dreamlib.runs.open import open_run
from dreamlib.utils.errors import ConfigError, DataError, NotEnoughSamples
from tests.conftest import within


@pytest.fixture
def run(trained, tmp_path):
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    shutil.rmtree(folder / "evaluation", ignore_errors=True)
    return open_run(folder, say=lambda text: None)


@pytest.fixture
def images(run):
    return StudyInputs(run, (60,)).generated(range(60))


def test_the_runs_own_images_score_as_the_run_does(run, images):
    study = evaluate(run)
    by = evaluator(run, None)
    found = score_external(by, "ours", images, by.reference(None, None), n=(20, 60))
    for row in found.guests:
        own = study.find("generated", row.n, row.metric, row.real)
        assert row.value == pytest.approx(own.value, rel=1e-9)
        assert row.floor == own.floor
        assert row.real == "reference"
    assert {row.metric.partition("[")[0] for row in found.guests} >= {"FD", "KID", "coverage"}
    assert found.rows == study.rows
    assert evaluate(run).guests == found.guests  # they outlive a new evaluation


def test_a_foreign_reference_is_named_and_kept_apart(run, images, tmp_path):
    by = evaluator(run, None)
    theirs = run.data.take("floor", 60)[0]
    np.save(tmp_path / "theirs.npy", theirs)
    score_external(by, "a", images, by.reference(None, None), n=(60,))
    found = score_external(by, "a", images, by.reference(tmp_path / "theirs.npy", None), n=(60,))
    kinds = {row.real for row in found.guests}
    assert len(kinds) == 2
    assert any(kind.startswith("theirs ") for kind in kinds)
    assert all(row.floor is None for row in found.guests)
    again = score_external(by, "a", images, by.reference(None, None), n=(20,))
    assert {row.n for row in again.guests if row.real == "reference"} == {20, 60}
    text = markdown(again)
    assert "Other images: a" in text
    assert "(theirs " in text


def test_statistics_allow_the_distance_alone(run, images, tmp_path):
    by = evaluator(run, None)
    inputs = StudyInputs(run, (60,))
    features = inputs.features(inputs.reference)
    write_statistics(tmp_path / "real.npz", Moments.of(features), {"extractor": "classifier"})
    plain = score_external(by, "a", images, by.reference(None, None), n=(60,)).guests[0]
    found = score_external(by, "a", images, by.reference(tmp_path / "real.npz", None), n=(60,))
    (row,) = [row for row in found.guests if row.real.startswith("real ")]
    assert row.value == pytest.approx(plain.value, rel=1e-6)
    assert row.se is None
    assert row.n_real == 60


def test_another_size_is_not_the_classifiers(run, tmp_path):
    large = np.random.default_rng(0).integers(0, 256, (30, 20, 20, 3), dtype=np.uint8)
    np.save(tmp_path / "large.npy", large)
    by = evaluator(run, None)
    real = by.reference(None, None)
    with pytest.raises(DataError, match=r"not 16x16: .*--size 16 crops"):
        score_external(by, "large", by.read(tmp_path / "large.npy"), real)
    with pytest.raises(DataError, match="--size 16 crops"):
        by.reference(tmp_path / "large.npy", None)
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, image in enumerate(large):
        Image.fromarray(image).save(folder / f"{i}.png")
    assert score_external(by, "fitted", by.read(folder, 16), real).guests[0].n == 30


def of_run(packed):
    return ExternalEvaluator(None, packed.folder, SimpleNamespace(data=packed))


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_files_are_prepared_as_the_runs_own_were(tmp_path, fit):
    """Whatever the run's fit: the very files that it was made of give the very images."""
    for i in range(6):
        wide = np.random.default_rng(i).integers(0, 256, (20, 36, 3), dtype=np.uint8)
        (tmp_path / "files").mkdir(exist_ok=True)
        Image.fromarray(wide).save(tmp_path / "files" / f"{i}.png")
    packed = pack(folder_source(tmp_path / "files", 16, fit=fit), tmp_path / "pack")
    ours = {image.tobytes() for image in packed.images}
    for size in (None, 16):
        found = of_run(packed).read(tmp_path / "files", size)
        assert {image.tobytes() for image in found} == ours
    with pytest.raises(ConfigError, match="have 16 pixels: leave --size out; or leave out the run"):
        of_run(packed).read(tmp_path / "files", 32)
    np.save(tmp_path / "wide.npy", np.zeros((3, 20, 36, 3), np.uint8))
    with pytest.raises(DataError, match="save them as image files"):
        of_run(packed).read(tmp_path / "wide.npy")
    with pytest.raises(DataError, match="prepared as the run's were"):
        of_run(packed).fitting(np.zeros((3, 20, 20, 3), np.uint8), "pipeline")


def test_a_border_is_a_border(tmp_path):
    """MNIST's kind has 28 pixels, and a border where the run has 32."""
    image = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "28.png")
    manifest = {"description": {"size": 32, "border": 2}}
    packed = Packed(tmp_path, manifest, np.empty((0, 32, 32, 1), np.uint8), None, None)
    (found,) = of_run(packed).read(tmp_path)
    np.testing.assert_array_equal(found[..., 0], np.pad(image, 2))


def test_training_images_and_repeats_are_said_and_kept(run, images):
    said, train = [], run.data.take("train", 10)[0]
    reference = run.data.take("reference", 5)[0]
    by = evaluator(run, None)
    mixed = np.concatenate([images[:15], train, train[:7], reference])
    real = by.reference(None, None)
    found = within(score_external, by, "mixed", mixed, real, n=(20,), say=said.append)
    words = "17 are training images, 5 are images of the reference, 7 are repeats"
    (line,) = said
    assert line.startswith("WARNING: of 37 images ")
    assert words in line
    assert {row.origin.seeds.partition("; ")[2] for row in found.guests} == {
        words.replace(",", ";")
    }
    assert words.replace(",", ";") in markdown(found)
    # still its own name
    within(score_external, by, "mixed", mixed, real, n=(30,), say=said.append)
    within(score_external, by, "clean", images[:20], real, n=(20,), say=said.append)
    assert len(said) == 2


def test_rows_of_two_processes_at_once_are_all_kept(run, images, monkeypatch):
    by = evaluator(run, None)
    real = by.reference(None, None)
    measure = external.measure_external

    def meanwhile(*args):
        monkeypatch.setattr(external, "measure_external", measure)
        score_external(by, "b", images[20:40], real, n=(20,))  # begins later, ends first
        return measure(*args)

    monkeypatch.setattr(external, "measure_external", meanwhile)
    score_external(by, "a", images[:20], real, n=(20,))
    assert {row.images for row in read_scores(run.folder).guests} == {"a", "b"}


def test_names_keep_their_dots(tmp_path, monkeypatch):
    for name in ("samples_w1.0", "samples_w1.5"):
        (tmp_path / name).mkdir()
        assert name_of(tmp_path / name) == name
    (tmp_path / "samples.zip").write_bytes(b"")
    assert name_of(tmp_path / "samples.zip") == "samples"
    monkeypatch.chdir(tmp_path / "samples_w1.0")
    assert name_of(Path(".")) == "samples_w1.0"


def test_a_reference_that_was_trained_on_is_refused(run, tmp_path):
    mixed = run.data.take("floor", 40)[0].copy()
    mixed[7] = run.data.take("train", 1)[0][0]
    np.save(tmp_path / "mixed.npy", mixed)
    with pytest.raises(DataError, match="1 of 40 images to compare with are training images"):
        evaluator(run, None).reference(tmp_path / "mixed.npy", None)


def test_a_name_belongs_to_its_images(run, images):
    by = evaluator(run, None)
    real = by.reference(None, None)
    score_external(by, "samples", images, real, n=(20,))
    with pytest.raises(ConfigError, match="samples is the name of other images"):
        score_external(by, "samples", images[::-1], real, n=(20,))
    assert len({row.origin.seeds for row in read_scores(run.folder).guests}) == 1


def test_fewer_images_than_n(run, images):
    by = evaluator(run, None)
    real = by.reference(None, None)
    with pytest.raises(NotEnoughSamples, match="a has 10 images, fewer than N = 20"):
        score_external(by, "a", images[:10], real, n=(20, 60))
    assert {row.n for row in score_external(by, "b", images[:30], real, n=(20, 60)).guests} == {20}
    with pytest.raises(ConfigError, match=r"N is \[1\], but should be greater than or equal to 2"):
        score_external(by, "d", images, real, n=(1,))
    found = score_external(by, "c", images[:30], real).guests
    assert {row.n for row in found if row.images == "c"} == {30}


def test_scores_of_guests_alone_have_tables_but_no_figures(run, images, tmp_path):
    by = evaluator(run, None)
    study = score_external(by, "a", images, by.reference(None, None), n=(60,))
    assert all(path.stat().st_size for path in save_tables(study, tmp_path / "tables"))
    with pytest.raises(NotEnoughSamples, match="scores of other images only"):
        fd_against_n(run)


def test_without_a_run_a_place_and_a_reference_are_needed(tmp_path):
    with pytest.raises(ConfigError, match="--out"):
        evaluator(None, None)
