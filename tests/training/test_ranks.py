"""Several processes take a training's steps: the bits of one, and one end for all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dreamlib.cli.main import UNFINISHED
from dreamlib.config.load import load_config
from dreamlib.runs.checkpoints import newest_checkpoint
from dreamlib.runs.folder import RunDir
from dreamlib.training import launch as launching
from dreamlib.training.ranks import _task_of
from dreamlib.training.train import train
from dreamlib.utils.errors import ConfigError, RunError
from tests.conftest import TINY, train_for
from tests.training.ranked import CASES

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone"]
SETTINGS = [*TINY, "train.length=150", "train.slices=2", "train.save_minutes=0.002"]


def ranked(folder, count, only="", more=()):
    """The script's weights by case, computed by so many processes."""
    folder.mkdir()
    how = [*TORCHRUN, f"--nproc-per-node={count}"] if count > 1 else []
    words = [sys.executable, *how, *more, "-m", "tests.training.ranked", str(folder), only]
    ours = {"OMP_NUM_THREADS": "1", "DREAMLIB_DATA": str(folder.parent / "data")}
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | ours, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return {path.stem: load_file(path) for path in folder.glob("*.safetensors")}, done.stdout


@pytest.fixture(scope="module")
def by_one(tmp_path_factory):
    return ranked(tmp_path_factory.mktemp("ranked") / "one", 1)[0]


@pytest.mark.parametrize("count", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_processes_ends_with_the_bits_of_one(tmp_path, by_one, count):
    found, _ = ranked(tmp_path / "many", count)
    assert found.keys() == by_one.keys() == {*CASES, "gan"}
    for case, weights in found.items():
        different = [name for name in weights if not torch.equal(weights[name], by_one[case][name])]
        assert different == [], case


def test_memory_that_runs_out_in_one_process_makes_all_take_less_at_once(tmp_path, by_one):
    found, out = ranked(tmp_path / "scarce", 2, "scarce")
    assert out.count("micro-batches of") == 2  # 9, 4, 2
    assert all(torch.equal(v, by_one["two"][k]) for k, v in found["scarce"].items())


def command(folder, *words, devices=2):
    ours = [word for setting in SETTINGS for word in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, "-m", "dreamlib", "train", str(folder), "--preset", "faces16", *ours]
        + ([f"--devices={devices}"] if devices else []) + [*words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DREAMLIB_DATA": str(folder.parent / "data")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def until_it_saves(process, run):
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() - begun < 120:
        if newest_checkpoint(run.checkpoints):
            return
        time.sleep(0.01)
    pytest.fail(f"nothing was saved: {process.communicate()[0]}")


def ranks_of(process):
    """Process number by rank, and torchrun's."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            words = dict(w.split("=", 1) for w in path.read_text().split("\0") if "=" in w)
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, UnicodeDecodeError):
            continue
        if "RANK" in words and words.get("DREAMLIB_DATA") == str(process.data):
            found[int(words["RANK"])], found["torchrun"] = int(path.parent.name), parent
    return found


@pytest.fixture
def begun(tmp_path):
    """A training by two processes that has saved something."""
    run = RunDir(tmp_path / "run")
    process = command(run.folder, "--restarts=2")
    process.data = tmp_path / "data"
    until_it_saves(process, run)
    yield run, process
    process.kill()


@pytest.mark.usefixtures("heard")
def test_asked_to_stop_all_save_once_and_another_number_goes_on(begun, tmp_path):
    run, process = begun
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == UNFINISHED, out
    assert out.count("PAUSED at step") == 1
    paused = run.status()["step"]
    assert newest_checkpoint(run.checkpoints).step == paused < 150
    whole = command(tmp_path / "whole", devices=None)
    again = command(run.folder, devices=3)
    for process in (again, whole):
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
    ours, theirs = (
        load_file(p / "weights" / "ema.safetensors") for p in (run.folder, tmp_path / "whole")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("who", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_process_that_dies_ends_all_and_torchrun_begins_them_again(begun, who):
    run, process = begun
    os.kill(ranks_of(process)[who], signal.SIGKILL)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    assert out.count("RESUMED at step") == 1, out
    assert run.status()["state"] == "finished"


def test_without_torchrun_nobody_goes_on(begun):
    run, process = begun
    found = ranks_of(process)
    os.kill(found.pop("torchrun"), signal.SIGKILL)
    process.communicate(timeout=90)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in found.values()):
        assert time.monotonic() < deadline, "orphans go on"
        time.sleep(0.1)
    assert run.status()["state"] == "interrupted"
    assert newest_checkpoint(run.checkpoints).step == run.status()["step"]


def test_a_notebook_watches_a_training_by_two(tiny, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    whole, run = tiny("whole", "train.slices=2"), tiny("run", "train.slices=2")
    train_for(whole)
    ticks = list(train(run, devices=2))
    assert ticks[-1].step == ticks[-1].total == 8
    ours, theirs = run.weights()[0], whole.weights()[0]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    rates = run.dir.read_log()[-1]["images_per_s_by_rank"]
    assert len(rates) == 2
    assert min(rates) > 0
    assert "FRESH START" in (run.folder / "train.log").read_text()


def test_a_training_by_two_that_fails_says_where_to_look(tiny):
    run = tiny("run", "train.slices=2")
    (run.folder / "config.yaml").write_text("preset: nothing\nmodel: none\n")
    with pytest.raises(RunError, match=r"by 2 processes failed \(exit code"):
        list(train(run, devices=2))
    assert "config.yaml" in (run.folder / "train.log").read_text()


def test_another_kind_of_device_is_refused():
    config = load_config("faces16", ["train.device=cpu"]).model_dump(mode="json")
    message = {"config": config, "images": (3, []), "steps": (1.0, 1)}
    task, error = _task_of(message | {"device": "cuda", "precision": "fp32"}, 1)
    assert task is None
    assert error == "rank 1 has cpu and rank 0 cuda: give all the same (train.device=cpu)"


def test_more_gpus_than_there_are(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="2 devices asked for: torch sees 1 GPU"):
        launching.launch(tmp_path, 2, 0, {}, [])
