"""SIGKILL at any moment, the same command again: the results of work that nobody disturbed."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dreamlib.cli.main import UNFINISHED
from dreamlib.runs.checkpoints import newest_checkpoint
from dreamlib.runs.folder import RunDir
from tests.conftest import TINY
from tests.crash.harness import trained

STEPS = 60
SETTINGS = [*TINY, f"train.length={STEPS}", "train.save_minutes=0.0005", "net.dropout=0.1"]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
OTHERS = ("packing", "generation", "evaluation", "gan")


# ---------------------------------------------------------------------- the real command


def start(folder):
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, "-m", "dreamlib", "train", str(folder), "--preset", "faces16", *words],
        env=os.environ | ONE_THREAD | {"DREAMLIB_DATA": str(folder.parent / "data")},
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


@pytest.mark.slow
def test_the_command_killed_three_times_equals_the_command_undisturbed(tmp_path):
    torch.set_num_threads(1)
    rng, run, reached = random.Random(0), RunDir(tmp_path / "killed" / "run"), []
    undisturbed = start(tmp_path / "whole" / "run")
    for _ in range(3):
        process = start(run.folder)
        wait_until_it_trains(process, run, reached[-1] if reached else -1)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        reached.append(newest_checkpoint(run.checkpoints).step)
    assert reached == sorted(set(reached))
    assert reached[-1] < STEPS, f"the kills did not fall into training: {reached}"
    last = start(run.folder)
    for process in (last, undisturbed):
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
        assert ("RESUMED at step" in out) == (process is last)
    ours, theirs = (trained(tmp_path / name, STEPS) for name in ("killed", "whole"))
    assert ours["flaws"] == theirs["flaws"] == []
    assert [name for name in theirs if ours[name] != theirs[name]] == []
    assert ours.keys() == theirs.keys()


@pytest.mark.usefixtures("quick_python")
def test_sigterm_saves_and_says_how_to_go_on(tmp_path):
    run = RunDir(tmp_path / "run")
    process = start(run.folder)
    wait_until_it_trains(process, run, -1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == UNFINISHED
    assert "PAUSED at step" in out
    assert run.status()["state"] == "interrupted"
    assert newest_checkpoint(run.checkpoints).step == run.status()["step"] < STEPS


# ---------------------------------------------------------------------- the harness


def harness(
    folder: Path,
    kinds: tuple[str, ...],
    kills: int,
    seed: int,
    timeout: float,
    python: Path | str = sys.executable,
):
    """Run the script -> its reports by kind, and what it printed."""
    words = ["--kills", kills, "--seed", seed, "--folder", folder, "--report", folder / "report"]
    # Not this interpreter: one that has trained has threads, and must not fork.
    process = subprocess.run(
        [python, "-m", "tests.crash.harness", *kinds, *map(str, words)],
        cwd=Path(__file__).parents[2],
        env=os.environ | ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert (folder / "report").exists(), process.stderr
    reports = dict(zip(kinds, json.loads((folder / "report").read_text())))
    flaws = {kind: report["flaws"] for kind, report in reports.items() if report["flaws"]}
    assert process.returncode == bool(flaws), process.stderr
    return reports, process.stdout


@pytest.fixture(scope="module")
def few(tmp_path_factory, server):
    kinds, python = ("training", "fourth save", "small packing"), server.interpreter
    folder = tmp_path_factory.mktemp("few")
    return harness(folder, kinds, kills=6, seed=0, timeout=400, python=python)


def assert_killed(report, kills):
    assert report["flaws"] == []
    assert report["kills"] == report["resumes"] == kills
    assert report["lost"] >= 0  # or some work was left out


def assert_killed_at_every_call(report):
    """Before each, in each write, and after the last."""
    writes = sum(call.startswith("write ") for call in report["calls"])
    assert_killed(report, len(report["calls"]) + writes + 1)


def test_killed_at_random_instants_equals_undisturbed(few):
    assert_killed(few[0]["training"], 6)


def test_killed_at_every_call_of_one_save_equals_undisturbed(few):
    report = few[0]["fourth save"]
    assert_killed_at_every_call(report)
    assert report["lost"] > 0
    for suffix in (".pt", ".json"):
        name = f"run/checkpoints/step-00000004{suffix}"
        inside = [f"before write {name} (tmp)", f"half write {name} (tmp)"]
        assert {*inside, f"before replace {name}"} <= {*report["died"]}
        after = report["died"].index(f"before replace {name}") + 1  # that is: of the next call
        assert report["died"][after] == "before fsync run/checkpoints"


def test_killed_at_every_call_of_a_packing_equals_undisturbed(few):
    assert_killed_at_every_call(few[0]["small packing"])


def safely(folder, name):
    """The calls of one atomic write."""
    temporary = f"{folder}/{name} (tmp)"
    written = [f"{call} {temporary}" for call in ("open", "write", "fsync")]
    return [*written, f"replace {folder}/{name}", f"fsync {folder}"]


def once(calls):
    """Consecutive equal calls, such as the writes of a large file, count as one."""
    return [call for call, _ in itertools.groupby(calls)]


def test_a_save_is_safe_before_its_manifest_says_so(few):
    """write < fsync(file) < rename < fsync(folder), for the data and then for the manifest; the
    oldest generation is removed after that, and the weights and their card come last."""
    assert once(few[0]["fourth save"]["calls"]) == [
        *safely("run/checkpoints", "step-00000004.pt"),
        *safely("run/checkpoints", "step-00000004.json"),
        "unlink run/checkpoints/step-00000001.json",
        "unlink run/checkpoints/step-00000001.pt",
        *safely("run/weights", "ema.safetensors"),
        *safely("run/weights", "card.json"),
        *[f"{call} run/events.jsonl" for call in ("open", "write", "fsync")],
    ]


def test_a_pack_is_safe_before_its_index_and_manifest_say_so(few):
    def together(calls, name):
        return [f"{call} packed/{name}" for call in calls]

    part, index = "images.npy.part", "index.jsonl"
    safe_point = together(["write", "fsync"], part) + together(["write", "fsync"], index)
    calls = once(few[0]["small packing"]["calls"])
    begin = calls.index(f"write packed/{part}")
    assert calls[begin:] == [
        *safe_point * 3,
        *together(["open", "write", "fsync"], part),  # its header, with the count
        *safely("packed", "labels.npy"),
        *safely("packed", "split.npy"),
        *["replace packed/images.npy", "fsync packed"],
        *safely("packed", "manifest.json"),
    ]


def test_the_script_says_it_in_a_line_each(few):
    lines = [line for line in few[1].splitlines() if line[0] != " "]  # flaws are indented
    assert len(lines) == len(few[0])
    for line, report in zip(lines, few[0].values()):
        assert line.startswith(f"{report['name']}: {report['kills']} kills (")
        assert f", {report['resumes']} resumes, {report['lost']} {report['unit']} of work" in line
        assert line.endswith("equal no" if report["flaws"] else "equal yes")


@pytest.mark.slow
def test_a_hundred_kills_of_training_and_twenty_of_each_other_work(tmp_path):
    reports, _ = harness(tmp_path, ("training", *OTHERS), kills=100, seed=1, timeout=1200)
    assert_killed(reports["training"], 100)
    for kind in OTHERS:
        assert_killed(reports[kind], 20)
    died = {word for call in reports["training"]["died"] for word in call.split()[:2]}
    assert {"before", "half", "after", "write", "replace", "fsync"} <= died


@pytest.mark.slow
def test_killed_at_every_call_of_a_first_save_of_a_resume_and_of_a_generation(tmp_path):
    kinds = ("first save", "resume", "small generation")
    reports, _ = harness(tmp_path, kinds, kills=1, seed=0, timeout=600)
    for report in reports.values():
        assert_killed_at_every_call(report)
        assert len(report["calls"]) > 20
