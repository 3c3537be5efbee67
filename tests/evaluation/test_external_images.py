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
from dreamlib.utils.context import using
from dreamlib.utils.errors import ConfigError, DataError, NotEnoughSamples
from dreamlib.utils.images import save_png


@pytest.fixture
def run(trained, tmp_path):
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    shutil.rmtree(folder / "evaluation", ignore_errors=True)
    return open_run(folder, say=lambda text: None)


@pytest.fixture
def images(run):
    return StudyInputs(run, (60,)).generated(range(60))


@pytest.fixture
def score(run):
    """score(name, images, reference=None, **more) -> the scores of other images that are kept."""
    by = evaluator(run, None)

    def of(name, images, reference=None, **more):
        return score_external(by, name, images, by.reference(reference, None), **more).guests

    return of


def test_the_runs_own_images_score_as_the_run_does(run, images, score):
    study = evaluate(run)
    scores = score("ours", images, n=(20, 60))
    for each in scores:
        own = study.find("generated", each.n, each.metric, each.real)
        assert each.value == pytest.approx(own.value, rel=1e-9)
        assert each.floor == own.floor
        assert each.real == "reference"
    assert {each.metric.partition("[")[0] for each in scores} >= {"FD", "KID", "coverage"}
    assert read_scores(run.folder).rows == study.rows
    assert evaluate(run).guests == scores  # they outlive a new evaluation


def test_a_foreign_reference_is_named_and_kept_apart(run, images, score, tmp_path):
    np.save(tmp_path / "theirs.npy", run.data.take("floor", 60)[0])
    score("a", images, n=(60,))
    scores = score("a", images, tmp_path / "theirs.npy", n=(60,))
    assert {each.real.split()[0] for each in scores} == {"reference", "theirs"}
    assert all(each.floor is None for each in scores)
    scores = score("a", images, n=(20,))
    assert {each.n for each in scores if each.real == "reference"} == {20, 60}
    text = markdown(read_scores(run.folder))
    assert "Other images: a" in text
    assert "(theirs " in text


def test_statistics_allow_the_distance_alone(run, images, score, tmp_path):
    inputs = StudyInputs(run, (60,))
    moments = Moments.of(inputs.features(inputs.reference))
    write_statistics(tmp_path / "real.npz", moments, {"extractor": "classifier"})
    plain = score("a", images, n=(60,))[0]
    scores = score("a", images, tmp_path / "real.npz", n=(60,))
    (stored,) = [each for each in scores if each.real.startswith("real ")]
    assert stored.value == pytest.approx(plain.value, rel=1e-6)
    assert stored.se is None
    assert stored.n_real == 60


def test_another_size_is_not_the_classifiers(run, score, tmp_path):
    large = np.random.default_rng(0).integers(0, 256, (30, 20, 20, 3), dtype=np.uint8)
    np.save(tmp_path / "large.npy", large)
    by = evaluator(run, None)
    for refused in (by.read, lambda place: by.reference(place, None)):
        with pytest.raises(DataError, match=r"not 16x16: .*--size 16 crops"):
            refused(tmp_path / "large.npy")
    for i, image in enumerate(large):
        save_png(image, tmp_path / "folder" / f"{i}.png")
    assert score("fitted", by.read(tmp_path / "folder", 16))[0].n == 30


def of_run(packed):
    return ExternalEvaluator(None, packed.folder, SimpleNamespace(data=packed))


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_files_are_prepared_as_the_runs_own_were(tmp_path, fit):
    """Whatever the run's fit: the very files that it was made of give the very images."""
    for i in range(6):
        wide = np.random.default_rng(i).integers(0, 256, (20, 36, 3), dtype=np.uint8)
        save_png(wide, tmp_path / "files" / f"{i}.png")
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


def test_training_images_and_repeats_are_said_and_kept(run, images, score):
    said, (train, reference) = [], (run.data.take(split, 10)[0] for split in ("train", "reference"))
    mixed = np.concatenate([images[:15], train, train[:7], reference[:5]])
    with using(say=said.append):
        scores = score("mixed", mixed, n=(20,))
        counts = "17 are training images; 5 are images of the reference; 7 are repeats"
        assert {each.origin.seeds.partition("; ")[2] for each in scores} == {counts}
        assert counts in markdown(read_scores(run.folder))
        score("mixed", mixed, n=(30,))  # still its own name
        score("clean", images[:20], n=(20,))
    assert len(said) == 2
    assert said[0].startswith("WARNING: of 37 images ")
    assert counts.replace(";", ",") in said[0]


def test_scores_of_two_processes_at_once_are_all_kept(run, images, score, monkeypatch):
    measure = external.measure_external

    def meanwhile(*args):
        monkeypatch.setattr(external, "measure_external", measure)
        score("b", images[20:40], n=(20,))  # begins later, ends first
        return measure(*args)

    monkeypatch.setattr(external, "measure_external", meanwhile)
    score("a", images[:20], n=(20,))
    assert {each.images for each in read_scores(run.folder).guests} == {"a", "b"}


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


def test_a_name_belongs_to_its_images(run, images, score):
    score("samples", images, n=(20,))
    with pytest.raises(ConfigError, match="samples is the name of other images"):
        score("samples", images[::-1], n=(20,))
    assert len({each.origin.seeds for each in read_scores(run.folder).guests}) == 1


def test_fewer_images_than_n(images, score):
    with pytest.raises(NotEnoughSamples, match="a has 10 images, fewer than N = 20"):
        score("a", images[:10], n=(20, 60))
    with pytest.raises(ConfigError, match=r"N is \[1\], but should be greater than or equal to 2"):
        score("d", images, n=(1,))
    assert {each.n for each in score("b", images[:30], n=(20, 60))} == {20}
    assert {each.n for each in score("c", images[:30]) if each.images == "c"} == {30}


def test_scores_of_other_images_alone_have_tables_but_no_figures(run, images, score, tmp_path):
    score("a", images, n=(60,))
    paths = save_tables(read_scores(run.folder), tmp_path / "tables")
    assert all(path.stat().st_size for path in paths)
    with pytest.raises(NotEnoughSamples, match="scores of other images only"):
        fd_against_n(run)


def test_without_a_run_a_place_and_a_reference_are_needed():
    with pytest.raises(ConfigError, match="--out"):
        evaluator(None, None)
    with pytest.raises(ConfigError, match="name the real images: --reference"):
        ExternalEvaluator(None, Path(), None).reference(None, None)
