"""Two models for the same time: paces, lengths that stay, one table, one sheet."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from dreamlib.evaluation import equal_time as contests
from dreamlib.evaluation.equal_time import Contest, Pace, equal_time, paces, place
from dreamlib.evaluation.evaluate import evaluate
from dreamlib.report.figures import comparison as beside
from dreamlib.runs.checkpoints import newest_checkpoint
from dreamlib.sampling.generate import generate, interpolate
from dreamlib.training.train import train
from dreamlib.utils.errors import ConfigError, NotEnoughSamples, RunError

BOTH = ("smoke", "gan-smoke")
SMALL = (
    *("data.train=120", "data.reference=60", "data.floor=60"),
    *("evaluate.n=[20, 60]", "evaluate.reference=60", "evaluate.anchors=false"),
    *("sample.batch=20", "sample.shard=20", "train.device=cpu"),
)
MEASURED = {"smoke": Pace(0.5, [0.5]), "gan-smoke": Pace(0.75, [0.75])}


@pytest.fixture
def enter(tmp_path, data_home, monkeypatch):
    """enter(minutes, folder) -> runs, by paces that were not measured but are `paces`."""
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))

    def of(minutes=0.1, folder="vs", paces=MEASURED, **more):
        monkeypatch.setattr(contests, "paces", lambda *args, **more: paces)
        more = {"overrides": SMALL, "say": lambda text: None, **more}
        return equal_time(BOTH, tmp_path / folder, minutes, **more)

    return of


def lengths(runs):
    return [run.config.train.length for run in runs]


def test_each_gets_the_steps_that_fit_into_the_minutes(enter, tmp_path):
    runs = enter(0.1)
    assert lengths(runs) == [12, 8]
    assert [run.config.model for run in runs] == ["diffusion", "gan"]
    assert [run.folder.name for run in runs] == ["vs-smoke", "vs-gan-smoke"]
    saved = json.loads((tmp_path / "vs" / "contest.json").read_text())
    assert saved["minutes"] == 0.1
    assert saved["paces"]["gan-smoke"]["seconds"] == 0.75
    seeded = [run.folder.name for run in enter(0.1, seed=2)]
    assert seeded == ["vs-smoke-seed2", "vs-gan-smoke-seed2"]
    slow = {name: Pace(9 * pace.seconds, pace.rounds) for name, pace in MEASURED.items()}
    assert lengths(enter(0.1, paces=slow)) == [12, 8]  # on a machine of another pace


def test_where_one_was_brought_the_other_takes_as_long(enter, tmp_path):
    enter(0.1)
    shutil.rmtree(tmp_path / "vs" / "vs-gan-smoke")
    (tmp_path / "vs" / "contest.json").unlink()
    there = {"smoke": Pace(2.0, [2.0]), "gan-smoke": Pace(1.0, [1.0])}
    for _ in range(2):  # 0.1 minutes still
        assert lengths(enter(0.1, paces=there)) == [12, 24]


def test_other_minutes_and_damage_are_said(enter, tmp_path):
    enter(0.1)
    with pytest.raises(ConfigError, match=r"smoke, gan-smoke for 0\.1 minutes.*another folder"):
        enter(0.2)
    (tmp_path / "vs" / "contest.json").write_text('{"minutes": 1}')
    with pytest.raises(RunError, match=r"contest\.json cannot be read.*delete it"):
        enter(0.1)
    for presets, minutes in ((("smoke",), 1), (("smoke", "smoke"), 1), (BOTH, 0)):
        with pytest.raises(ConfigError, match="two different presets"):
            equal_time(presets, tmp_path / "odd", minutes)


def test_paces_are_of_real_steps_in_whole_rounds(tmp_path, data_home, monkeypatch):
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    counted = {}
    timed = contests._timed

    def counting(trainer, steps):
        counted.setdefault(trainer.config.preset, []).append((trainer.step, steps))
        return timed(trainer, steps)

    monkeypatch.setattr(contests, "_timed", counting)
    found = paces(BOTH, tmp_path / "vs", SMALL, turn=1e-6, rounds=2)
    assert {name: len(pace.rounds) for name, pace in found.items()} == dict.fromkeys(BOTH, 2)
    assert all(pace.seconds == pytest.approx(np.median(pace.rounds)) for pace in found.values())
    # Three steps to be warm, from the middle of training on; then turns with R1 and path length.
    assert counted == {"smoke": [(6, 3), (9, 1), (10, 1)], "gan-smoke": [(6, 3), (9, 4), (13, 4)]}
    assert not list((tmp_path / "vs").glob(".pace*"))


def test_a_contest_forgets_no_time():
    found = Contest(0.1, 60.0, MEASURED)
    assert [found.steps(name) * MEASURED[name].seconds for name in BOTH] == [60, 60]
    assert Contest(0.1, 0.01, MEASURED).steps("smoke") == 1


# ------------------------------------------------------------------ side by side


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_home):
    """The folder of a finished and scored contest, to be copied."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole") / "vs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMLIB_DATA", str(data_home))
        patch.setattr(contests, "paces", lambda *args, **more: MEASURED)
        for run in equal_time(BOTH, folder, 0.1, overrides=SMALL, say=lambda text: None):
            list(train(run))
            evaluate(run)
    return folder


@pytest.fixture
def finished(whole, enter, tmp_path):
    shutil.copytree(whole, tmp_path / "vs")
    return enter(0.1)


def test_the_table_has_what_the_files_have(finished):
    text = beside.scores_beside(finished)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = {name: values for name, *values in cells}
    assert rows["metric"][2:5] == ["vs-smoke", "vs-gan-smoke", "held-out real"]
    assert rows["steps of training"][2:4] == ["12", "8"]
    assert rows["images seen"][2:4] == ["192", "128"]
    assert rows["network passes per image drawn"][2:4] == ["8", "1"]
    assert float(rows["minutes"][2]) >= 0
    for column, run in enumerate(finished, 2):
        row = evaluate(run).find("generated", 60)
        shown = rows["FD[classifier]"]
        assert shown[:2] == ["60", "60"]
        assert float(shown[column].split(" ± ")[0]) == pytest.approx(row.value, abs=5e-4)
    assert {"KID[classifier]", "recall[classifier]", "coverage[classifier]"} <= set(rows)
    assert "vs-gan-smoke by one pass of the generator" in text


def test_minutes_are_those_of_the_log(finished):
    entries = finished[0].dir.read_log()
    assert [entry["step"] for entry in entries] == [2, 4, 6, 8, 10, 12]
    took = sum(2 * 16 / entry["images_per_s"] for entry in entries) / 60
    assert beside.minutes_of(finished[0]) == pytest.approx(took)


def test_the_sheet_shows_the_scored_images(finished):
    fig = beside.images_beside(finished)
    sheet = fig.axes[0].images[0].get_array()
    gap, size, across = 1, 16, beside.ACROSS
    blocks = [finished[0].data.take("train", 42)[0], *(generate(r, range(42)) for r in finished)]
    for block, images in enumerate(blocks):
        for k in (0, 13, 14, 41):
            y = gap + (size + gap) * (block * beside.ROWS + k // across)
            x = gap + (size + gap) * (k % across)
            assert np.array_equal(sheet[y : y + size, x : x + size], images[k])
    words = " ".join(label.get_text() for label in fig.axes[0].get_yticklabels())
    assert "gan-smoke" in words
    assert "FD[classifier]" in words
    # And walks, one below the other
    walks = [interpolate(run, 0, 1, count=5) for run in finished]
    fig = beside.walks_beside(finished, walks)
    sheet = fig.axes[0].images[0].get_array()
    assert np.array_equal(sheet[1:17, 1:17], walks[0][0])
    assert np.array_equal(sheet[18:34, -17:-1], walks[1][4])


def test_what_cannot_stand_side_by_side_is_said(finished, enter):
    shutil.rmtree(finished[1].dir.generated)
    with pytest.raises(RunError, match=r"keeps no 42 images: run `dreamlib evaluate RUN`"):
        beside.images_beside(finished)
    alone = enter(0.1, "alone")
    with pytest.raises(NotEnoughSamples, match="no scores"):
        beside.scores_beside([finished[0], alone[1]])
    more = [enter(0.1, overrides=(*SMALL, "evaluate.n=[60]"))[0], finished[1]]
    evaluate(more[0])
    with pytest.raises(ConfigError, match="sizes"):
        beside.images_beside(more)
    assert newest_checkpoint(alone[0].dir.checkpoints) is None
    assert place(finished[1].folder.parent, "gan-smoke", 0) == finished[1].folder
