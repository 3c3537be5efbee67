"""SIGKILL at any moment, the same command again: the weights of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from dreamlib.cli import UNFINISHED
from dreamlib.runtime.checkpoint import newest_checkpoint
from dreamlib.runtime.rundir import RunDir
from tests.conftest import TINY
from tests.test_train import assert_same_state

STEPS = 240
SETTINGS = [*TINY, f"train.length={STEPS}", "train.save_minutes=0.0005", "net.dropout=0.1"]


def start(folder, data_home):
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, "-m", "dreamlib", "train", str(folder), "--preset", "faces16", *words],
        env=os.environ | {"DREAMLIB_DATA": str(data_home), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until_it_trains(process, run, known):
    """Until a checkpoint beyond the `known` step is there (or the process has ended)."""
    while process.poll() is None:
        steps = [int(p.stem[5:]) for p in run.checkpoints.glob("step-*.json")]
        if max(steps, default=-1) > known:
            return
        time.sleep(0.005)


def kills(tmp_path, data_home, count, seed):
    """Train under `count` kills at random instants -> the final state and how far each got."""
    rng, run, reached = random.Random(seed), RunDir(tmp_path / "killed"), []
    for _ in range(count):
        process = start(run.folder, data_home)
        # some die while starting, some in their first steps, some later
        wait_until_it_trains(process, run, reached[-1] if reached else -1)
        time.sleep(rng.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        newest = newest_checkpoint(run.checkpoints)
        reached.append(newest.step if newest else -1)
    last = start(run.folder, data_home)
    out, _ = last.communicate(timeout=300)
    assert last.returncode == 0, out
    return run, reached, out


def check(tmp_path, data_home, count, seed):
    undisturbed = start(tmp_path / "whole", data_home)
    out, _ = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, out
    run, reached, out = kills(tmp_path, data_home, count, seed)
    assert "RESUMED at step" in out
    assert len(set(reached)) > count // 2, f"the kills did not fall into training: {reached}"
    whole = RunDir(tmp_path / "whole")
    ours, theirs = (newest_checkpoint(r.checkpoints) for r in (run, whole))
    assert ours.step == theirs.step == STEPS
    assert_same_state(ours.load(), theirs.load())
    assert not list(run.folder.rglob("*.tmp"))
    weights = "weights/ema.safetensors"
    assert (run.folder / weights).read_bytes() == (whole.folder / weights).read_bytes()
    rows = [
        [
            {k: v for k, v in row.items() if k not in ("time", "images_per_s")}
            for row in r.read_log()
        ]
        for r in (run, whole)
    ]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == list(range(4, STEPS + 1, 4))


def test_five_random_kills(tmp_path, data_home):
    torch.set_num_threads(1)
    check(tmp_path, data_home, 5, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_twenty_random_kills(tmp_path, data_home, seed):
    check(tmp_path, data_home, 20, seed)


def test_sigterm_saves_and_says_how_to_go_on(tmp_path, data_home):
    run = RunDir(tmp_path / "run")
    process = start(run.folder, data_home)
    wait_until_it_trains(process, run, -1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == UNFINISHED
    assert "PAUSED at step" in out
    assert run.status()["state"] == "interrupted"
    assert newest_checkpoint(run.checkpoints).step == run.status()["step"] < STEPS
