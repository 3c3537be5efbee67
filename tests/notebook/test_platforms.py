"""One notebook on a stand-in for Colab, and for Kaggle: killed, resumed, on the next machine."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from dreamlib.notebook.runner.execute import Leash, execute
from dreamlib.notebook.runner.notebooks import find_notebook
from dreamlib.runs.folder import RunDir
from dreamlib.runs.mirror.store import Mirror
from dreamlib.runs.open import open_run
from dreamlib.training.train import train
from dreamlib.utils.files import read_json
from tests import stand_ins
from tests.conftest import TINY

# Long enough to be killed in the middle, and saved and mirrored all the time.
STEPS = 300
OURS = [*TINY, f"train.length={STEPS}", "train.log_every=100", "train.save_minutes=0.005"]
OURS += ["train.mirror_minutes=0.005"]


class Machine:
    """A machine that runs the notebook, in a working folder of its own."""

    def __init__(self, folder: Path, env: dict[str, str], *, whole: bool):
        self.folder, self.env = folder, env
        notebook = nbformat.read(find_notebook("00_complete"), 4)
        if not whole:  # up to training and what the cell behind it says
            (last,) = (i for i, c in enumerate(notebook.cells) if "dreamlib.train(" in c.source)
            del notebook.cells[last + 1 :]
        self.notebook = folder.parent / "notebook.ipynb"
        nbformat.write(notebook, self.notebook)

    @property
    def run(self) -> RunDir:
        return RunDir(self.folder / "runs/demo")

    @property
    def saved(self) -> int:
        """The newest step that has a checkpoint here; 0 without one."""
        notes = self.run.checkpoints.glob("*.json")
        return max((int(path.stem.removeprefix("step-")) for path in notes), default=0)

    def run_all(self, kill: Callable[[], bool] | None = None) -> tuple[str, str]:
        """'Run all' -> (how it ended, what was printed).  `kill` says when to use SIGKILL."""
        self.folder.mkdir(parents=True, exist_ok=True)
        output, over = self.folder.parent / "executed.ipynb", threading.Event()

        def watch(pid: int) -> None:
            while not over.wait(0.02):
                if kill and kill():
                    os.kill(pid, signal.SIGKILL)
                    return

        def begun(pid: int) -> None:
            threading.Thread(target=watch, args=(pid,), daemon=True).start()

        parameters = {"PRESET": "faces16", "OVERRIDES": OURS}
        leash, printed = Leash(timeout=300, begun=begun), self.folder.parent / "printed.txt"
        with pytest.MonkeyPatch.context() as patch, open(printed, "w") as out:
            patch.chdir(self.folder)  # the kernel's
            try:
                ending = execute(self.notebook, output, parameters, leash, out, self.env)
            finally:
                over.set()
        return ending.state + ending.text() * (ending.state == "failed"), printed.read_text()


def newest(store: Path) -> int:
    """The step of the newest whole generation on the Drive; 0 without one."""
    found = Mirror(store / "dreamlib", "demo").generations()
    return max((generation.step for generation in found), default=0)


@pytest.fixture(autouse=True)
def _images_of_its_own(monkeypatch):
    """A machine of its own knows nothing of images that other tests have packed."""
    monkeypatch.delenv("DREAMLIB_DATA", raising=False)


def mirrored(store: Path, beyond: int) -> bool:
    """Whether the Drive holds a newer step, and the images, which are copied after the first."""
    return newest(store) > beyond and any(store.glob("dreamlib/data/*/manifest.json"))


def resumed_at(text: str) -> int:
    (line,) = (line for line in text.splitlines() if "RESUMED at step" in line)
    return int(line.split("RESUMED at step ")[1].split(" of ")[0].replace(",", ""))


def lose(machine: Machine, store: Path) -> None:
    """The machine goes with its disk; nobody begins another before eleven minutes are over."""
    shutil.rmtree(machine.folder)
    path = store / "dreamlib/runs/demo/owner.json"
    owner = read_json(path)
    assert "released" not in owner, "it was killed, and could not let go"
    owner |= {"boot": "another machine", "time": owner["time"] - 660}
    path.write_text(json.dumps(owner))


@pytest.mark.slow
def test_the_whole_notebook_on_colab(tmp_path):
    """Killed, it goes on here and on the next machine."""
    store = tmp_path / "store"
    store.mkdir()
    content = tmp_path / "content"
    machine = Machine(content, stand_ins.colab(tmp_path, content, store), whole=True)

    state, text = machine.run_all(kill=lambda: mirrored(store, 0))
    assert state == "killed", text
    assert " · colab · " in text
    assert f"Mounted at {content / 'drive'}" in text
    assert "FRESH START" in text
    first = newest(store)
    assert 0 < first < STEPS

    state, text = machine.run_all(kill=lambda: mirrored(store, first))  # the same machine
    assert state == "killed", text
    assert resumed_at(text) >= first
    assert "Mounted at" not in text, "it is mounted"
    second = newest(store)
    assert first < second < STEPS

    lose(machine, store)
    state, text = machine.run_all()  # another one, which sees the same Drive
    assert state == "done", text
    assert "Mounted at" in text
    assert "BROUGHT step" in text
    assert "brought the packed images from" in text
    assert second <= resumed_at(text) < STEPS
    assert machine.run.status()["state"] == "finished"
    assert newest(store) == STEPS
    assert (machine.run.folder / "evaluation/scores.json").is_file()
    kept = Mirror(store / "dreamlib", "demo").generations()[0].files
    assert "evaluation/scores.json" in kept


def attach_earlier_version(tmp_path: Path, monkeypatch, steps: int) -> Path:
    """/kaggle/input with the output of a notebook that got so far, read-only."""
    earlier = tmp_path / "earlier/working"
    monkeypatch.setenv("DREAMLIB_DATA", str(earlier / "runs/data"))
    run = open_run(earlier / "runs/demo", "faces16", overrides=OURS, say=lambda text: None)
    for _ in itertools.islice(train(run), steps):
        pass
    monkeypatch.delenv("DREAMLIB_DATA")
    inputs = tmp_path / "kaggle/input"
    shutil.copytree(earlier, inputs / "notebooks/somebody/dream")
    shutil.rmtree(tmp_path / "earlier")
    for path in [inputs, *inputs.rglob("*")]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    return inputs


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_on_kaggle_a_notebook_continues_the_attached_output_of_an_earlier_one(
    tmp_path, monkeypatch, whole
):
    inputs = attach_earlier_version(tmp_path, monkeypatch, 20)
    before = contents(inputs)
    working = tmp_path / "kaggle/working"
    machine = Machine(working, stand_ins.kaggle(tmp_path, inputs), whole=whole)
    kill = (lambda: machine.saved > 20) if whole else None

    state, text = machine.run_all(kill)
    assert state == ("killed" if whole else "done"), text
    assert " · kaggle · " in text
    attached = inputs / "notebooks/somebody/dream/runs"
    assert f"BROUGHT step 20 from the attached output {attached / 'demo'}" in text
    assert f"brought the packed images from {attached / 'data'}" in text
    assert resumed_at(text) == 20
    assert "Mounted at" not in text
    if whole:
        reached = machine.saved
        state, text = machine.run_all()
        assert state == "done", text
        assert "BROUGHT" not in text
        assert 20 < reached <= resumed_at(text) < STEPS
        assert (machine.run.folder / "evaluation/scores.json").is_file()
    assert machine.run.status()["state"] == "finished"
    assert not (tmp_path / "no-drive").exists()
    assert contents(inputs) == before
