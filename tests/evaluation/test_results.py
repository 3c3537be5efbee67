"""scores.json: what is written is read again; what does not hold is named."""

from __future__ import annotations

import json

import pytest

from dreamlib.evaluation.results import (
    GENERATED,
    REAL,
    Origin,
    Score,
    Study,
    read_scores,
    study_from,
    with_floors,
    write_study,
)
from dreamlib.utils.errors import NotEnoughSamples, RunError

ORIGIN = Origin("classifier-abc-native", sampler="ddim", steps=5, nfe=5, seed=0, seeds="0 to 99")


def row(images=GENERATED, value=2.0, n=100, metric="FID", **more):
    return Score(metric, images, value, n, 500, 0.1, "delta", origin=ORIGIN, **more)


@pytest.fixture
def stored(tmp_path):
    facts = {"metric": "FID", "preset": "faces16", "step": 3, "extractor": "e", "sampler": "ddim"}
    facts |= {"spacing": "uniform", "weights": "w", "steps": 5, "seed": 0, "sizes": [100]}
    facts |= {"sample": {"sampler": "ddim"}}
    study = Study(facts, [row(parts=[1.5, 2.5]), row(REAL, 1.0)], replay=[row(real="train")])
    write_study(tmp_path, study)
    return study, tmp_path / "evaluation" / "scores.json"


def test_round_trip(tmp_path, stored):
    assert read_scores(tmp_path) == stored[0]


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda v: v["rows"][0].update(value="2"), "rows.0.value"),
        (lambda v: v["rows"][0].update(value=float("nan")), "rows.0.value"),
        (lambda v: v["rows"][1].update(se=-1.0), "rows.1.se"),
        (lambda v: v["rows"][0].update(n=5.5), "rows.0.n"),
        (lambda v: v["rows"][0].update(n=0), "rows.0.n"),
        (lambda v: v["rows"][0].update(colour="red"), "rows.0.colour"),
        (lambda v: v["rows"][0].pop("metric"), "rows.0.metric"),
        (lambda v: v["rows"][0]["parts"].append("x"), "rows.0.parts.2"),
        (lambda v: v["rows"][0]["origin"].update(steps=0), "rows.0.origin.steps"),
        (lambda v: v["rows"][0]["origin"].pop("extractor"), "rows.0.origin.extractor"),
        (lambda v: v["replay"][0].update(real=3), "replay.0.real"),
        (lambda v: v["facts"].update(sizes=5), "facts: its sizes is odd"),
        (lambda v: v["facts"].update(sample=[]), "facts: its sample is odd"),
        (lambda v: v["facts"].pop("metric"), "facts: it has no metric"),
        (lambda v: v.pop("rows"), "rows"),
        (lambda v: v.update(opinion="good"), "opinion"),
        (lambda v: v.update(format=1), "format"),
    ],
)
def test_what_does_not_hold_is_named(stored, edit, named):
    _, path = stored
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))
    with pytest.raises(RunError, match=rf"scores\.json cannot be read \({named}.*evaluate` again"):
        study_from(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "null"])
def test_what_is_no_study_is_refused(stored, text):
    stored[1].write_text(text)
    with pytest.raises(RunError, match="cannot be read"):
        study_from(stored[1])


def test_find_names_what_is_missing(tmp_path, stored):
    study, _ = stored
    assert study.find(GENERATED, 100).value == 2.0
    assert study.of(REAL) == [study.rows[1]]
    with pytest.raises(KeyError, match="no KID of generated images against reference at N = 100"):
        study.find(GENERATED, 100, "KID")
    with pytest.raises(NotEnoughSamples, match=r"no scores yet: run `dreamlib evaluate \S+`"):
        read_scores(tmp_path / "other")


def test_floors_belong_to_the_same_metric_and_sizes():
    rows = [row(), row(n=50), row(metric="KID"), row(REAL, 1.0), row(REAL, 7.0, metric="KID")]
    floors = [each.floor for each in with_floors(rows)]
    assert floors == [1.0, None, 7.0, 1.0, 7.0]
    assert with_floors([row(real="train"), row(REAL, 1.0)])[0].floor is None
