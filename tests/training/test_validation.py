"""Scores during training: when, of what, which weights are kept, when it stops, after a kill."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dreamlib.metrics.features import extract
from dreamlib.metrics.frechet import frechet
from dreamlib.report.captions import captions_of
from dreamlib.report.figures.curves import validation as validation_figure
from dreamlib.runs.checkpoints import newest_checkpoint
from dreamlib.runs.open import open_run
from dreamlib.sampling.generate import generate
from dreamlib.training.train import train, trainer_of
from dreamlib.training.validation import Validation
from dreamlib.utils.context import should_stop
from dreamlib.utils.errors import Interrupted
from dreamlib.utils.weights import read_weights
from tests.conftest import train_for
from tests.training.test_train import assert_same_state, final_state

EVERY = ["validation.every=2", "validation.n=20"]


def found(run):
    """Rows without what a clock says."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.dir.read_validation()]


def test_it_scores_what_sampling_would_draw_against_held_out_images(opened):
    run = opened("run", *EVERY, "train.length=4")
    list(train(run))
    rows = found(run)
    assert [row["step"] for row in rows] == [2, 4]
    last = rows[-1]
    assert (last["metric"], last["n"], last["n_real"]) == ("FD[classifier]", 20, 60)
    extractor = Validation(run, trainer_of(run)).extractor
    drawn = extract(generate(run, range(20)), extractor)
    real = extract(run.data.take("floor", 60)[0], extractor)
    assert last["score"] == pytest.approx(frechet(drawn, real), rel=1e-6)


def test_the_weights_of_the_least_distance_are_kept(opened, monkeypatch):
    values = iter([3.0, 1.0, 2.0, 1.0])
    monkeypatch.setattr("dreamlib.training.validation.frechet", lambda a, b: next(values))
    run = opened("run", *EVERY)
    list(train(run))
    weights, card = read_weights(run.dir.weights / "best")
    assert card["step"] == 4  # the first of equal ones
    again = opened("again")  # the same steps
    train_for(again, 4)
    assert all(torch.equal(weights[name], value) for name, value in again.weights()[0].items())
    assert run.weights()[1]["step"] == 8


def test_validation_does_not_change_what_is_trained(opened):
    plain, watched = opened("plain"), opened("watched", *EVERY)
    list(train(plain))
    list(train(watched))
    assert_same_state(final_state(watched), final_state(plain))


def test_it_stops_when_nothing_becomes_better(opened, monkeypatch):
    values = iter([3.0, 1.0, 2.0, 1.5])
    monkeypatch.setattr("dreamlib.training.validation.frechet", lambda a, b: next(values))
    said = []
    run = opened("run", *EVERY, "validation.patience=1")
    object.__setattr__(run, "say", said.append)
    assert train_for(run)[-1] == 6
    assert run.dir.status()["state"] == "finished"
    assert newest_checkpoint(run.dir.checkpoints).step == 6
    assert any("STOPPED EARLY at step 6: nothing better since step 4" in line for line in said)
    again = opened("run", *EVERY, "validation.patience=1")
    assert list(train(again)) == []


def test_left_anywhere_and_resumed_it_finds_the_same(opened):
    whole = opened("whole", *EVERY)
    list(train(whole))
    for stop in (1, 2, 3, 5):
        run = opened(f"stop{stop}", *EVERY)
        train_for(run, stop)
        list(train(opened(f"stop{stop}", *EVERY)))
        assert found(run) == found(whole)
        for name, value in load_file(whole.dir.weights / "best" / "ema.safetensors").items():
            assert torch.equal(value, load_file(run.dir.weights / "best" / "ema.safetensors")[name])


def test_stopped_while_its_classifier_is_trained_it_goes_on_there(opened, monkeypatch):
    """The classifier comes before the first step, so that no step is lost with it."""

    def stopping(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        assert should_stop()
        raise Interrupted("stopped after 3 of 9 batches of the classifier")

    run = opened("run", *EVERY, "train.length=2")
    with monkeypatch.context() as patch:
        patch.setattr("dreamlib.training.validation.make_extractor", stopping)
        assert list(train(run)) == []
    assert run.dir.status()["state"] == "interrupted"
    list(train(run))
    assert len(found(run)) == 1


def test_rows_beyond_the_checkpoint_are_forgotten(opened):
    run = opened("run", *EVERY, "train.length=4")
    list(train(run))
    run.dir.append_validation(run.dir.read_validation()[-1] | {"step": 6, "score": 0.0})
    run.dir.cut_log(4)
    assert [row["step"] for row in run.dir.read_validation()] == [2, 4]


def test_it_is_part_of_the_mirror_and_of_the_report(opened):
    run = opened("run", *EVERY, "train.length=4")
    list(train(run))
    names = run.dir.to_mirror()
    assert {"validation.jsonl", "weights/best/ema.safetensors", "weights/best/card.json"} <= set(
        names
    )
    assert "validation" in captions_of(run.config)
    plain = open_run(run.folder, say=lambda text: None, overrides=["validation.every=0"])
    assert "validation" not in captions_of(plain.config)
    (axes,) = validation_figure(run).axes
    steps, values = axes.lines[0].get_data()
    assert list(steps) == [2, 4]
    assert np.allclose(values, [row["score"] for row in run.dir.read_validation()])
