"""Beginning with the weights of another run: which they are, what begins anew, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from dreamlib.cli.main import app
from dreamlib.training.fork import init_from
from dreamlib.training.train import train, trainer_of
from dreamlib.utils.errors import RunError
from tests.conftest import train_for
from tests.training.test_train import final_state


def finished(run):
    list(train(run))
    return run


def test_weights_and_averages_are_those_and_everything_else_begins_anew(opened):
    source = finished(opened("source"))
    run = opened("new", "train.seed=5", "train.lr=1e-4")
    init_from(run, source.folder)
    begun, theirs = final_state(run), final_state(source)
    own = trainer_of(opened("fresh", "train.seed=5", "train.lr=1e-4")).state_dict()
    carried = {"net", "ema", "judge"} & set(theirs)
    assert len(carried) >= 2
    for part in carried:
        assert all(torch.equal(value, theirs[part][name]) for name, value in begun[part].items())
    assert begun["step"] == 0
    assert begun["optimizer"]["state"] == own["optimizer"]["state"] == {}
    steps = train_for(run)
    assert steps == list(range(1, 9))
    assert run.weights()[1]["step"] == 8


def test_the_lineage_is_recorded_and_the_same_call_goes_on(opened):
    source = finished(opened("source"))
    run = opened("new", "train.seed=5")
    init_from(run, source.folder)
    told = json.loads((run.folder / "run.json").read_text())
    assert told["id"] == run.dir.identity()
    assert told["parent"]["run"] == source.dir.identity()
    assert (told["parent"]["how"], told["parent"]["step"]) == ("init", 8)
    finished(run)
    before = final_state(run)
    init_from(opened("new", "train.seed=5"), source.folder)
    assert final_state(run)["step"] == before["step"] == 8


def test_a_run_that_has_begun_otherwise_is_refused(opened):
    source, run = finished(opened("source")), finished(opened("begun", "train.seed=5"))
    with pytest.raises(RunError, match="has begun already, and not from"):
        init_from(run, source.folder)


def test_a_source_without_checkpoints_is_refused(opened):
    with pytest.raises(RunError, match="no checkpoint to begin from"):
        init_from(opened("new"), opened("empty").folder)


def test_other_shapes_and_other_models_are_refused_and_nothing_is_begun(tiny, tiny_gan):
    source, gan = finished(tiny("source")), tiny_gan("gan")
    wide = tiny("wide", "net.widths=[8, 24]")
    for run, field in ((wide, "net.widths"), (gan, "net")):
        with pytest.raises(RunError, match=f"do not fit this run.*{field}"):
            init_from(run, source.folder)
        assert not list(run.dir.checkpoints.glob("*.pt"))


def test_the_command_begins_and_goes_on(opened, monkeypatch):
    source, run = finished(opened("source")), opened("new", "train.seed=5")
    command = ["train", str(run.folder), "--init-from", str(source.folder)]
    first, again = (CliRunner().invoke(app, command) for _ in range(2))
    assert first.exit_code == again.exit_code == 0
    assert "BEGUN with the weights of step 8" in first.output
    assert "BEGUN" not in again.output
    assert "FINISHED" in again.output
