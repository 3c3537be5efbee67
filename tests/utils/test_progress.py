"""What people see while they wait: throttled lines, honest rates, readable durations and sheets."""

from __future__ import annotations

import io
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from dreamlib.evaluation.results import Study
from dreamlib.notebook import dashboard
from dreamlib.report.tables import shares_markdown
from dreamlib.training.loop import Tick
from dreamlib.utils import progress
from dreamlib.utils.files import PLACE, sweep
from dreamlib.utils.images import enlarge, grid
from dreamlib.utils.progress import TextProgress, duration, tell


@pytest.fixture
def clock(monkeypatch):
    """clock[0] is what time.monotonic() says."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[
            (-90, "0 s"),
            (0, "0 s"),
            (8.2, "8 s"),
            (59.4, "59 s"),
            (59.6, "1 min 00 s"),
            (60, "1 min 00 s"),
        ],
        *[(65, "1 min 05 s"), (3599, "59 min 59 s"), (3600, "1 h 00 min"), (3725, "1 h 02 min")],
    ],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch):
    lambdas = {"cp1252": "\\u03bb ± 1", "ascii": "\\u03bb \\xb1 1", "utf-8": "λ ± 1"}
    for code, text in lambdas.items():
        raw = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=code, newline="\n"))
        tell("λ ± 1\t\udcff\x1b[2J\r\u009b")
        shown = text + "\t\\udcff\\x1b[2J\\r\\x9b\n"
        assert raw.getvalue().decode(code) == shown


def test_a_closed_pipe_does_not_end_the_work(monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as nobody:
        monkeypatch.setattr("sys.stdout", nobody)
        tell("one")
        TextProgress(first=0)("two", 1)(1)
    assert capsys.readouterr().err == (
        "nobody can read the output any more (Broken pipe): going on\n"
    )
    monkeypatch.setattr("sys.stdout", None)
    tell("three")


def test_every_line_of_the_library_goes_that_way():
    other = r"typer\.echo|= print\b|sys\.stdout\b|\bprint\("
    paths = Path(progress.__file__).parents[1].rglob("*.py")
    found = {path.name for path in paths if re.search(other, path.read_text("utf-8"))}
    assert found == {"progress.py", "install.py"}  # the latter runs alone


def test_lines_are_few_and_say_rate_and_time_left(clock):
    lines = []
    advance = TextProgress(every=10, first=3, show=lines.append)("packing", 1000)
    for _ in range(100):  # ten images a second
        clock[0] += 1
        advance(10)
    assert lines[0] == "packing: 30/1,000 (3%) · 10/s · ETA 1 min 37 s"
    assert lines[1] == "packing: 130/1,000 (13%) · 10/s · ETA 1 min 27 s"
    assert lines[-1] == "packing: 1,000/1,000 (100%) · 10/s · done"
    assert len(lines) == 11


def test_a_short_job_prints_nothing(clock):
    advance = TextProgress(show=lambda line: pytest.fail(line))("quick", 2)
    for _ in range(2):
        clock[0] += 1
        advance(1)


def test_training_is_watched_at_a_low_rate_with_its_speed(trained, clock):
    said = []
    run = type(trained)(trained.dir, trained.config, trained.data, said.append)

    def ticks():
        for step in range(101, 201):  # resumed at 100; two steps of six images a second
            clock[0] += 0.5
            yield Tick(step, 200, {"loss": 0.5, "lam": 0.25} if step % 50 == 0 else None)

    dashboard.watch(run, ticks(), every=15)
    steps = {101: 50, 131: 66, 161: 80, 191: 96, 200: 100}
    heads = [f"step {step}/200 ({percent}%)" for step, percent in steps.items()]
    assert [line.split(" · ")[0] for line in said] == heads
    assert all("12 images/s" in line for line in said)
    assert "ETA 20 s" in said[2]
    assert "loss 0.5000 · λ 0.250" in said[2]
    assert "loss" not in said[0]


def test_enlarging_repeats_pixels():
    image = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    large = enlarge(image, 13)
    assert large.shape == (2, 12, 12, 3)
    np.testing.assert_array_equal(large[:, 1::3, 1::3], image)
    assert enlarge(image, 1).shape == image.shape


def test_a_sheet_holds_every_image_in_reading_order():
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((1, 2, 2, 1), np.uint8)
    sheet = grid(images, columns=3, gap=1)
    assert sheet.shape == (7, 10, 3)
    assert [int(sheet[y, x, 0]) for y in (1, 4) for x in (1, 4, 7)] == [0, 1, 2, 3, 4, 255]


def test_shares_are_a_table_of_ratios():
    red = {"real": 0.5, "generated": 0.25}
    study = Study({}, [], shares={"hat": {"red": red, "no": {"real": 0, "generated": 1}}})
    *_, red, no = shares_markdown(study).splitlines()
    assert red == "| hat | red | 0.500 | 0.250 | 0.50 |"
    assert no == "| hat | no | 0.000 | 1.000 | – |"


def test_sweeping_spares_what_a_living_process_writes(tmp_path):
    """And files of the user's own, and what other machines' processes write: a day's rest tells
    that they do not."""
    ours, thread = os.getpid(), threading.get_native_id()
    kept = [f".a.{PLACE}.1.1.tmp", f".b.{PLACE}.{thread}.{ours}.tmp", ".c.0123abcd.1.99999999.tmp"]
    kept += [".x.tmp", ".x.1.tmp", "d.tmp"]
    gone = [f".e.{PLACE}.1.99999999.tmp"]
    old = ".below/.g.0123abcd.1.1.tmp"
    (tmp_path / ".below").mkdir()
    for name in (*kept, *gone, old):
        (tmp_path / name).touch()
    os.utime(tmp_path / old, (0, 0))
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
