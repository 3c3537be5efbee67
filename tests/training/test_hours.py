"""The costs in docs/: tables are the measured and the counted ones; how time is read from a log."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.training_hours import (
    SHARES,
    clock,
    loss_at,
    measure,
    precision_table,
    strip,
    table,
    time_text,
    timed,
)
from dreamlib.config.load import load_config
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[2]
MEASURED = json.loads((ROOT / "benchmarks/training_hours.json").read_text("utf-8"))
BF16 = json.loads((ROOT / "benchmarks/training_hours_bf16.json").read_text("utf-8"))
FP32 = json.loads((ROOT / "benchmarks/training_hours_fp32.json").read_text("utf-8"))
BATCH = 32


def page(name):
    return (ROOT / "docs" / name).read_text("utf-8")


def test_bfloat16_costs_no_quality():
    assert (BF16["precision"], FP32["precision"]) == ("bf16", "fp32")
    assert precision_table(BF16, FP32) in page("BENCHMARKS.md")
    many = f"fd_{BF16['n'][-1]}"
    for ours, theirs in zip(BF16["rows"], FP32["rows"], strict=True):
        a, b = ours[many], theirs[many]
        assert a["value"] - b["value"] < 2 * np.hypot(a["se"], b["se"])


def test_the_table_by_the_hour_is_the_measured_one():
    assert [row["share"] for row in MEASURED["rows"]] == list(SHARES)
    assert MEASURED["rows"][-1]["step"] == load_config("faces16").train.length
    assert MEASURED["clock"]["pauses"] == 0
    assert table(MEASURED) in page("TRAINING.md")


def test_what_the_page_reads_in_the_table():
    rows = {row["share"]: row for row in MEASURED["rows"]}

    def apart(a, b, score):
        ours, theirs = rows[a][score], rows[b][score]
        return abs(ours["value"] - theirs["value"]) / np.hypot(ours["se"], theirs["se"])

    final = rows[1.0]
    assert rows[0.25]["fd_2000"]["value"] / final["fd_2000"]["value"] == pytest.approx(2, 0.1)
    half = rows[0.5]["fd_2000"]["value"]
    assert f"from {half:.2f} to {final['fd_2000']['value']:.2f}" in page("TRAINING.md")
    assert apart(0.5, 1.0, "fd_2000") > 3
    assert apart(0.75, 1.0, "fd_2000") == pytest.approx(1, abs=0.25)
    assert MEASURED["weights"][:8] in page("TRAINING.md")
    text = f"± {final['fd_500']['se']:.2f} where 2,000 images have ± {final['fd_2000']['se']:.2f}"
    assert text in page("HARDWARE.md")
    assert time_text(final["seconds"]) in page("HARDWARE.md")


def log(*times, every=50):
    return [
        {"step": every * (i + 1), "time": 1000.0 + t, "images_per_s": every * BATCH / 10, "loss": t}
        for i, t in enumerate(times)
    ]


def test_the_clock_counts_the_first_row_and_leaves_out_pauses():
    steps, seconds, pauses = clock(log(0, 10, 20, 30), BATCH)
    assert (steps, pauses) == ([50, 100, 150, 200], 0)
    assert seconds == pytest.approx([10, 20, 30, 40])
    _, seconds, pauses = clock(log(0, 10, 20, 5000, 5010), BATCH)
    assert pauses == 1
    assert seconds == pytest.approx([10, 20, 30, 40, 50])


def test_a_shorter_last_row_is_no_pause():
    rows = [*log(0, 10, 20), {"step": 160, "time": 1022.0, "images_per_s": 160.0, "loss": 0.0}]
    _, seconds, pauses = clock(rows, BATCH)
    assert pauses == 0
    assert seconds[-1] == pytest.approx(32)


def test_the_loss_is_that_of_the_last_rows_up_to_a_step():
    rows = log(1, 2, 3, 4, 5, 6)
    assert loss_at(rows, 260) == np.mean([2, 3, 4, 5])
    assert loss_at(rows, 50) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(14.6, "15 s"), (76, "1 min 16 s"), (59.7, "1 min 00 s"), (7384, "2 h 03 min")],
)
def test_times_are_told_in_words(seconds, text):
    assert time_text(seconds) == text


def test_a_tiny_training_is_measured_and_goes_on(tmp_path, data_home, monkeypatch):
    """Each share is trained to, scored and kept; the second call finds everything done."""
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    monkeypatch.setattr("benchmarks.training_hours.N", (20, 60))
    monkeypatch.setattr("benchmarks.training_hours.SHARES", (0.5, 1.0))
    settings = [*TINY, "train.log_every=2", "evaluate.anchors=false", "train.preview_every=50 %"]
    monkeypatch.setattr("benchmarks.training_hours.SETTINGS", settings)
    found = measure(tmp_path, "faces16", None)
    assert [row["step"] for row in found["rows"]] == [4, 8]
    again = measure(tmp_path, "faces16", None)
    assert again == found
    dated = timed(found, tmp_path / "faces16", 6)
    assert 0 < dated["rows"][0]["seconds"] < dated["rows"][1]["seconds"]
    assert table(dated).count("\n") == 4
    figure = strip(dated, tmp_path / "faces16/samples")
    assert [ax.get_title().split("\n")[1] for ax in figure.axes] == ["step 4", "step 8"]


def test_the_picture_by_the_hour_is_there():
    with Image.open(ROOT / "figures/hours.png") as image:
        assert image.width > 900
    assert "figures/hours.png" in page("TRAINING.md")
