"""A network's own file from evaluate's settings and from the command line, to FD[name]."""

from __future__ import annotations

import json
from hashlib import sha256

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from dreamlib.cli.main import app
from dreamlib.config.load import load_config
from dreamlib.evaluation.evaluate import evaluate
from dreamlib.evaluation.external_images import write_statistics
from dreamlib.evaluation.results import read_scores
from dreamlib.evaluation.score_external import evaluator, score_external
from dreamlib.metrics.frechet import Moments
from dreamlib.utils.errors import ConfigError, DataError
from tests.conftest import train_for

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and still about
IMAGES = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), np.uint8)


def network(path, seed: int = 0, width: int = 4):
    """A small random network at `path`, with its card -> its path as text."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.jit.script(net.eval()).save(path)
    card = {"name": "clinic", "sha256": sha256(path.read_bytes()).hexdigest(), "size": 16}
    path.with_name(f"{path.name}.json").write_text(json.dumps(card))
    return str(path)


def test_a_run_is_scored_by_a_file(tiny, tmp_path):
    run = tiny("run", f"evaluate.extractor={network(tmp_path / 'net.pt')}")
    train_for(run)
    study = evaluate(run)
    assert study.facts["metric"] == "FD[clinic]"
    assert study.facts["extractor"].startswith("clinic-")
    score = study.find("generated", 60)
    assert score.value > 0
    assert score.origin.resize == "clean16"
    assert {each.metric for each in study.rows} >= {"FD[clinic]", "KID[clinic]"}
    assert evaluate(run).rows == study.rows


@pytest.fixture
def by(tmp_path):
    return evaluator(None, tmp_path / "out", extractor=network(tmp_path / "net.pt"))


def test_statistics_of_another_extractor_are_refused(by, tmp_path):
    features = by.features(IMAGES)
    identity = by.extractor.identity

    def reference(width=4, **facts):
        write_statistics(tmp_path / "s.npz", Moments.of(features[:, :width]), facts)
        return by.reference(tmp_path / "s.npz", None)

    assert score_external(by, "a", IMAGES, reference(extractor="clinic", identity=identity)).guests
    assert score_external(by, "a", IMAGES, reference()).guests
    with pytest.raises(DataError, match=r"was made by inception, .* seen by clinic: make it again"):
        reference(extractor="inception")
    with pytest.raises(DataError, match=r"made by clinic-0-clean8, .* seen by clinic-.*-clean16:"):
        reference(extractor="clinic", identity="clinic-0-clean8")
    with pytest.raises(DataError, match="do not fit 4 features"):
        reference(width=3, extractor="clinic")


def test_scores_of_another_network_of_that_name_are_not_mixed(by, tmp_path):
    np.save(tmp_path / "real.npy", IMAGES)
    real = tmp_path / "real.npy"
    score_external(by, "a", IMAGES[:30], by.reference(real, None))
    other = evaluator(None, tmp_path / "out", extractor=network(tmp_path / "net.pt", seed=1))
    with pytest.raises(ConfigError, match=r"FD\[clinic\] here is by clinic-.*: another --out, or"):
        score_external(other, "b", IMAGES[:30], other.reference(real, None))


def test_extractors_that_are_known_by_the_settings(tmp_path):
    for word in ("clip-rn50", "dinov2-vit-s-14", "torchvision:resnet50", "a/b.onnx", "c.pt2"):
        config = load_config("faces16", [f"evaluate.extractor={word}"])
        assert config.evaluate.extractor == word
    for word in ("clasifier", "resnet50", "net.pth", "clip"):
        with pytest.raises(ConfigError, match=r"torchvision:resnet50 and its like, or a file"):
            load_config("faces16", [f"evaluate.extractor={word}"])


def test_the_command_line(trained, tmp_path):
    np.save(tmp_path / "a.npy", IMAGES[:30])
    np.save(tmp_path / "b.npy", IMAGES[30:])
    words = ["evaluate", "--images", str(tmp_path / "a.npy"), "--reference"]
    words += [str(tmp_path / "b.npy"), "--out", str(tmp_path / "out")]
    net = network(tmp_path / "net.pt")
    done = CliRunner().invoke(app, [*words, "--extractor", net])
    assert done.exit_code == 0, done.output
    assert "FD[clinic]" in done.output
    scores = read_scores(tmp_path / "out").guests
    assert {each.metric for each in scores} >= {"FD[clinic]", "KID[clinic]"}
    assert not any(each.metric == "FID" for each in scores)
    for more, word in (
        (["--extractor", "classifier"], "trained on a run's images"),
        (["--extractor", "clasifier"], "or a file"),
        ([str(trained.folder), "--extractor", net], "a run has an extractor"),
    ):
        failed = CliRunner().invoke(app, [*words, *more])
        assert word in str(failed.exception), failed
