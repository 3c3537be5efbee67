"""Single values, lists and texts: what papermill's options and plain calls pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dreamlib.config.load import idle, load_config, preset_names
from dreamlib.evaluation.inputs import sizes_of
from dreamlib.notebook.runner.job_spec import Spec, plan_run
from dreamlib.notebook.runner.notebooks import check_parameters, find_notebook
from dreamlib.runs.open import open_run
from dreamlib.sampling.generate import generate
from dreamlib.utils.arguments import listed
from dreamlib.utils.errors import ConfigError
from tests.conftest import TINY


@pytest.mark.parametrize(
    ("value", "items"),
    [
        *[(None, []), (50, [50]), ("train.length=14", ["train.length=14"]), ((1, 2), [1, 2])],
        *[("[500, 5000]", [500, 5000]), (np.array([3, 4]), [3, 4]), (range(2), [0, 1])],
        ('["a=1", "b=2"]', ["a=1", "b=2"]),
    ],
)
def test_one_or_several(value, items):
    assert listed(value) == items
    assert all(type(item) in (int, str) for item in listed(value))


def test_a_list_that_is_none():
    with pytest.raises(ConfigError, match=r"'\[500, 5000' is no list"):
        listed("[500, 5000")


@pytest.mark.parametrize("n", [50, "50", [50], (50, 50), np.int64(50), "[50]"])
def test_set_sizes(trained, n):
    assert sizes_of(trained, n) == (50,)


@pytest.mark.parametrize("n", [1, -1, "many", [2.5], 10**12, True, float("nan")])
def test_what_is_no_set_size(trained, n):
    with pytest.raises(ConfigError, match=r"N is .*, but should be"):
        sizes_of(trained, n)


@pytest.mark.parametrize("hours", [1, "1", 1.0])
def test_hours(trained, hours):
    assert replace(trained, hours=hours).budget() == 1.0


@pytest.mark.parametrize("hours", ["soon", "nan", float("inf"), 10**9])
def test_what_are_no_hours(trained, hours):
    with pytest.raises(ConfigError, match=r"the time budget in hours is .*, but should be"):
        replace(trained, hours=hours).budget()


def test_one_override_and_one_seed(tiny, trained):
    assert load_config("smoke", "train.length=14").train.length == 14
    run = tiny("run")
    run = open_run(run.folder, overrides="sample.steps=3", say=lambda text: None)
    assert run.config.sample.steps == 3
    assert np.array_equal(generate(trained, 2), generate(trained, [2]))


def test_the_one_override_of_a_notebook_or_batch():
    check_parameters(find_notebook("00_complete"), {"OVERRIDES": "train.length=14"})
    spec = Spec(name="a", notebooks="00_complete", set="train.length=14")
    (item,) = plan_run(spec, None)
    assert item.parameters["OVERRIDES"] == ["train.length=14"]


def test_settings_that_decide_nothing_are_said(tmp_path, data_home, monkeypatch):
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    said: list[str] = []
    more = [*TINY, "loss.p=2", "sample.eta=0.5", "train.weight_decay=0.02"]
    open_run(tmp_path / "run", "faces16", overrides=more, say=said.append)
    assert [line for line in said if "decides nothing" in line] == [
        "loss.p decides nothing in this run: it needs loss.name paper",
    ]
    said.clear()
    open_run(tmp_path / "run", say=said.append)
    assert not said
    open_run(tmp_path / "run", overrides="sample.sampler=ddpm", say=said.append)
    assert (
        "sample.eta decides nothing in this run: it needs sample.sampler ddim or dpmpp_2m" in said
    )


@pytest.mark.parametrize("name", preset_names())
def test_every_setting_of_a_preset_decides_something(name):
    assert idle(load_config(name)) == {}
