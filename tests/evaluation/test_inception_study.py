"""The whole study with Inception and LPIPS, by networks with random weights in the right files.

Slow: Inception takes a fifth of a second per image on one core.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import alexnet

from dreamlib.config import factory as build
from dreamlib.evaluation.evaluate import evaluate
from dreamlib.evaluation.external_images import write_statistics
from dreamlib.evaluation.inputs import StudyInputs
from dreamlib.evaluation.score_external import evaluator, score_external
from dreamlib.metrics.frechet import Moments
from dreamlib.report.tables import markdown
from dreamlib.training.train import train
from tests.metrics.test_inception import stand_in as stand_in_for
from tests.metrics.test_inception import weights as random_inception

pytestmark = pytest.mark.slow
inception = random_inception


def named_by_hash(path):
    """The file under a name that ends in its own hash; nothing else is believed."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.rename(path.with_name(f"{path.stem}-{digest[:8]}.pth"))


@pytest.fixture
def weights(inception, tmp_path, monkeypatch):
    """DREAMLIB_WEIGHTS with both files, and the names under which they are looked for."""
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(alexnet(weights=None).state_dict(), folder / "alexnet.pth")
    trunk = named_by_hash(folder / "alexnet.pth")
    (folder / inception.name).write_bytes(inception.read_bytes())
    monkeypatch.setattr(build, "INCEPTION", stand_in_for(build.INCEPTION, inception))
    monkeypatch.setattr(build, "ALEXNET", stand_in_for(build.ALEXNET, trunk))
    monkeypatch.setenv("DREAMLIB_WEIGHTS", str(folder))
    return folder


def test_fid_is_its_name_and_everything_is_there(tiny, weights, tmp_path):
    torch.set_num_threads(2)
    run = tiny("fid", "evaluate.extractor=inception", "evaluate.inception_score=true")
    for _ in train(run):
        pass
    study = evaluate(run)
    assert study.facts["metric"] == "FID"
    names = {row.metric for row in study.rows}
    assert names >= {"FID", "KID", "precision", "coverage", "NDB/K", "IS", "LPIPS diversity"}
    assert not any("[" in name for name in names)
    row = study.find("generated", 60)
    assert row.se_method == "jackknife of 20 groups"  # 60 images, 2048 features
    assert row.origin.resize == "clean"
    assert row.origin.extractor.startswith("inception-")
    assert "60 samples, but 2048 features" in study.absent["FID corrected"]
    assert row.value > study.find("held-out real", 60).value > 0
    for metric in ("IS", "LPIPS diversity"):
        for images in ("generated", "held-out real"):
            assert study.find(images, 60, metric, "").value > 0
    assert "| FID | 60 |" in markdown(study)

    # The same images as files, and the reference as statistics: the same distance.
    inputs = StudyInputs(run, (60,))
    folder = tmp_path / "png"
    folder.mkdir()
    for i, image in enumerate(inputs.images["generated"]):
        Image.fromarray(image).save(folder / f"{i}.png")
    features = inputs.features(inputs.reference)
    write_statistics(tmp_path / "real.npz", Moments.of(features), {"extractor": "inception"})
    alone = evaluator(None, tmp_path / "alone")
    stats = alone.reference(tmp_path / "real.npz", None)
    guest = score_external(alone, "theirs", alone.read(folder), stats, n=(60,))
    (score,) = guest.guests
    assert score.metric == "FID"
    assert score.value == pytest.approx(row.value, rel=1e-6)
    assert score.se is None
    assert np.isfinite(score.value)
