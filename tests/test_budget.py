"""Time budgets, polite signals, and what each platform grants: every long job stops and goes on."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dreamlib.cli.main import UNFINISHED, main
from dreamlib.evaluation.evaluate import evaluate
from dreamlib.notebook.runner.notebooks import find_notebook
from dreamlib.runs import time_budget as clock_module
from dreamlib.runs.checkpoints import newest_checkpoint
from dreamlib.runs.folder import RunDir
from dreamlib.runs.open import open_run
from dreamlib.runs.run import Run
from dreamlib.sampling.generate import Shards, generate
from dreamlib.training.train import train
from dreamlib.utils import platform as host
from dreamlib.utils.errors import ConfigError, Interrupted
from dreamlib.utils.files import read_json
from tests.conftest import TINY
from tests.training.test_train import assert_same_state, final_state, rows

SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def age(monkeypatch) -> list[float]:
    """age[0] seconds is what this process is told that it has lived."""
    now = [1.0]
    monkeypatch.setattr(clock_module, "process_age", lambda: now[0])
    return now


@pytest.fixture
def handlers(heard):
    """Whoever handled signals before does so afterwards."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.fixture
def copy(trained, tmp_path, data_home, monkeypatch) -> Run:
    """The trained run, without what others made of it."""
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    others = shutil.ignore_patterns("generated", "evaluation")
    shutil.copytree(trained.folder, tmp_path / "copy", ignore=others)
    return open_run(tmp_path / "copy", say=lambda text: None)


class Bell:
    """A progress that rings once, when `count` units of a job called `what...` are done."""

    def __init__(self, what: str, count: int, ring: Callable[[], None]):
        self.what, self.count, self.ring, self.rung = what, count, ring, False

    def __call__(self, what: str, total: int) -> Callable[[int], None]:
        done = itertools.count(1)

        def advance(units: int) -> None:
            if what.startswith(self.what) and next(done) == self.count and not self.rung:
                self.rung = True
                self.ring()

        return advance


@pytest.fixture
def drawn(monkeypatch) -> list[list[int]]:
    """Which images are drawn, in order."""
    found, draw = [], Shards.draw

    def spy(self, images, *words, **more):
        found.append(list(images))
        return draw(self, images, *words, **more)

    monkeypatch.setattr(Shards, "draw", spy)
    return found


def shards(run: Run) -> list[str]:
    return sorted(path.name for path in run.dir.generated.glob("*/shard-*.npy"))


def assert_goes_on(run: Run, step: int, trained: Run) -> None:
    """From this step to the end that the undisturbed run has."""
    assert [tick.step for tick in train(run)] == list(range(step + 1, 9))
    assert_same_state(final_state(run), final_state(trained))
    assert rows(run) == rows(trained)


def paused(run: Run) -> list[str]:
    return [e["text"] for e in run.dir.read_events() if "PAUSED" in e.get("text", "")]


# signals


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", SIGNALS)
def test_generation_stops_at_a_signal_and_draws_nothing_twice(copy, drawn, number):
    bell = Bell("generating", 1, lambda: os.kill(os.getpid(), number))
    reason = rf"asked to stop \({number.name}\); what is done is kept, the same command or cell"
    with pytest.raises(Interrupted, match=reason):
        generate(copy, range(30), progress=bell)
    assert shards(copy) == ["shard-00000.npy"]
    drawn.clear()
    images = generate(copy, range(30))
    assert drawn == [list(range(10, 20)), list(range(20, 30))]
    assert len(images) == 30


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("what", "count", "kept"),
    [
        ("classifier features", 1, (0, 0, 1, 1, 2, 3, 4, 5)),
        ("generating", 1, (0,)),
        ("generating", 6, range(6)),
    ],
)
def test_evaluation_stops_at_a_signal(copy, drawn, number, what, count, kept):
    bell = Bell(what, count, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match=rf"\({number.name}\); what is done is kept"):
        evaluate(copy, progress=bell)
    assert shards(copy) == [f"shard-{k:05d}.npy" for k in kept]
    assert not (copy.dir.evaluation / "scores.json").exists()
    drawn.clear()
    study = evaluate(copy)
    assert study.find("generated", 60).value > 0
    again = [images for images in drawn if len(kept) * 10 > images[0]]
    assert again == [list(range(10)), list(range(10, 20))][: len(again)]  # the untrained ones only
    assert len([images for images in drawn if images[0] >= 20]) == max(0, 6 - max(2, len(kept)))


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", SIGNALS)
def test_training_stops_at_a_signal_and_goes_on(tiny, trained, number):
    run = tiny()
    for tick in train(run):
        if tick.step == 3:
            os.kill(os.getpid(), number)
    assert tick.step == 3
    assert run.dir.status()["state"] == "interrupted"
    (text,) = paused(run)
    assert f"PAUSED at step 3 of 8; everything is saved. Asked to stop ({number.name})" in text
    assert_goes_on(tiny(), 3, trained)


@pytest.mark.usefixtures("handlers")
def test_the_stop_button_pressed_twice_interrupts_at_once(copy):
    def ring() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        generate(copy, range(30), progress=Bell("generating", 1, ring))
    assert shards(copy) == ["shard-00000.npy"]


# the budget


def test_generation_and_evaluation_end_with_the_budget(copy, age, drawn):
    run = replace(copy, hours=0.5)

    def ring() -> None:
        age[0] = 1801

    words = "the time budget of 0.5 h since this process began is used up; what is done is kept"
    with pytest.raises(Interrupted, match=words):
        generate(run, range(30), progress=Bell("generating", 2, ring))
    assert shards(run) == ["shard-00000.npy", "shard-00001.npy"]
    with pytest.raises(Interrupted, match=words):
        evaluate(run)
    drawn.clear()
    age[0] = 1790
    assert len(generate(run, range(30))) == 30
    assert drawn == [list(range(20, 30))]


@pytest.mark.parametrize(
    ("hours", "more", "kind", "state"),
    [
        (1.0, [], "local", "finished"),
        (0.4, [], "local", "paused_deadline"),  # 1440 of the 1500 s that the process has lived
        (0.9, ["train.reserve_minutes=30"], "local", "paused_deadline"),
        (1.0, ["train.reserve_minutes=30"], "local", "finished"),
        (0.9, [], "kaggle", "paused_deadline"),  # whose reserve is 30 minutes
        (0.9, ["train.reserve_minutes=0"], "kaggle", "finished"),
    ],
)
def test_training_leaves_time_for_what_follows(tiny, age, monkeypatch, hours, more, kind, state):
    run = tiny("run", *more)
    monkeypatch.setattr(host, "platform", lambda: kind)
    age[0] = 1500.0
    list(train(run, hours=hours))
    status = run.dir.status()
    assert status["state"] == state
    assert (status["step"] == 8) == (state == "finished")
    texts = paused(run)
    assert len(texts) == (state != "finished")
    for text in texts:
        assert f"The time budget of {hours:g} h since this process began is used up" in text


@pytest.mark.parametrize(
    ("argument", "opened", "setting", "platform", "budget"),
    [
        (1.0, 2.0, 3.0, "kaggle", 1.0),
        (None, 2.0, 3.0, "kaggle", 2.0),
        (None, None, 3.0, "kaggle", 3.0),
        (None, None, None, "kaggle", 11.0),
        (None, None, None, "local", None),
    ],
)
def test_who_names_the_hours(tiny, monkeypatch, argument, opened, setting, platform, budget):
    monkeypatch.setattr(host, "platform", lambda: platform)
    run = tiny("run", *([f"train.hours={setting}"] if setting else []))
    assert replace(run, hours=opened).budget(argument) == budget


def test_hours_of_one_session_are_no_new_settings(tiny):
    first = tiny("run", "train.hours=3")
    assert tiny("run", "train.hours=4").budget() == 4.0
    assert first.facts == tiny("run", "train.hours=4").facts


@pytest.mark.parametrize("hours", [0, -1, float("nan")])
def test_hours_that_are_none_are_refused_everywhere(copy, tiny, hours):
    with pytest.raises(ConfigError, match=r"hours is .*, but should be"):
        generate(replace(copy, hours=hours), range(3))
    with pytest.raises(ConfigError, match=r"hours is .*, but should be"):
        list(train(replace(tiny(), hours=hours)))
    with pytest.raises(ConfigError, match=r"train\.hours is"):
        tiny("other", f"train.hours={hours}")


# platforms


def pretend(monkeypatch, kind: str) -> None:
    """The marks by which each platform is known."""
    for name in [n for n in os.environ if n.startswith(("KAGGLE_", "TPU_", "DREAMLIB_MIRROR"))]:
        monkeypatch.delenv(name)
    if kind == "colab-command":  # !python -m dreamlib: in a process without Colab's shell
        monkeypatch.setattr("dreamlib.install.COLAB", Path(__file__))
    shell = "google.colab._shell.Shell" if kind in ("colab", "kaggle") else "a shell"
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    if kind.startswith("kaggle"):
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    if kind == "kaggle-tpu":
        monkeypatch.setenv("TPU_WORKER_ID", "0")


@pytest.mark.parametrize(
    ("kind", "limits"),
    [
        *((kind, (11.0, 30.0)) for kind in ("colab", "colab-command", "kaggle")),
        *[("kaggle-tpu", (8.0, 30.0)), ("local", (None, 0.0))],
    ],
)
def test_each_platform_ends_its_sessions(monkeypatch, kind, limits):
    pretend(monkeypatch, kind)
    monkeypatch.setenv("TPU_ML_PLATFORM", "Tensorflow")  # set by importing it, on any machine
    assert host.platform() == kind.partition("-")[0]
    assert host.session_limits() == limits


@pytest.mark.parametrize(
    ("kind", "mounted", "variable", "named", "home"),
    [
        ("local", False, "", None, None),
        ("local", True, "", None, None),
        ("colab", False, "", None, None),
        ("colab", True, "", None, "MyDrive/dreamlib"),
        ("kaggle", True, "", None, None),
        ("colab", True, "", "none", None),
        ("colab", True, "none", None, None),
        ("colab", True, "variable", None, "variable"),
        ("local", False, "variable", None, "variable"),
        ("local", False, "variable", "named", "named"),
        ("local", False, "variable", "none", None),
        ("local", False, "none", "named", "named"),
    ],
)
def test_where_the_mirror_is(tmp_path, monkeypatch, kind, mounted, variable, named, home):
    pretend(monkeypatch, kind)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(host, "DRIVE", Path("MyDrive"))
    if mounted:
        Path("MyDrive").mkdir()
    if variable:
        monkeypatch.setenv("DREAMLIB_MIRROR", variable)
    assert host.mirror_homes(named) == ([Path(home)] if home else [])


@pytest.mark.parametrize("named", [None, ["a", Path("b"), "s3://c/d"]])
def test_several_mirrors_are_folders_and_addresses(monkeypatch, named):
    monkeypatch.setenv("DREAMLIB_MIRROR", "none" if named else "a;b;s3://c/d;a")
    assert host.mirror_homes(named) == [Path("a"), Path("b"), "s3://c/d"]


def test_kaggles_inputs_are_walked_once_until_something_is_attached(tmp_path, monkeypatch):
    inputs, walks, walk = tmp_path / "input", [], os.walk
    (inputs / "a/run/checkpoints").mkdir(parents=True)
    (inputs / "a/run/config.yaml").touch()
    pretend(monkeypatch, "kaggle")
    monkeypatch.setattr(host, "INPUTS", inputs)
    monkeypatch.setattr(host.os, "walk", lambda place: (walks.append(place), walk(place))[1])
    for _ in range(3):
        assert host.earlier_outputs("run") == [inputs / "a/run"]
        assert host.weight_folders()
    assert len(walks) == 1
    (inputs / "b").mkdir()
    (inputs / "b/some.pth").touch()
    os.utime(inputs, ns=(1, 1))  # as when something is attached, on clocks however coarse
    assert inputs / "b" in host.weight_folders()
    assert len(walks) == 2


# Kaggle's attached outputs


def contents(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture
def attach(tiny, tmp_path, monkeypatch):
    """attach(place, steps) -> an earlier output of a run called "run" that got so far."""
    inputs = tmp_path / "input"
    monkeypatch.setattr(host, "INPUTS", inputs)
    monkeypatch.setattr(host, "platform", lambda: "kaggle")

    def attach(place: str, *stops: int) -> Path:
        name = place.replace("/", "-")
        for stop in stops:  # one session after the other, each with a checkpoint
            run = tiny(name)
            done = run.dir.status()["step"]
            for _ in itertools.islice(train(run), stop - done):
                pass
        run.dir.identity()  # made for mirrors; it must come along
        shutil.copytree(tmp_path / name, inputs / place / "run")
        return inputs / place / "run"

    return attach


def damage(output: Path, step: int) -> None:
    path = output / f"checkpoints/step-{step:08d}.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def reopened(tmp_path: Path) -> tuple[Run, list[str]]:
    texts: list[str] = []
    run = open_run(tmp_path / "run", "faces16", overrides=TINY, say=texts.append)
    return run, texts


@pytest.mark.parametrize("place", ["slug/runs", "datasets/owner/slug"])
def test_an_attached_output_goes_on(tmp_path, trained, attach, place):
    before = contents(attach(place, 3))
    run, texts = reopened(tmp_path)
    assert texts[0].startswith(f"BROUGHT step 3 from the attached output {tmp_path}")
    assert_goes_on(run, 3, trained)
    assert run.dir.identity() == RunDir(tmp_path / place.replace("/", "-")).identity()
    assert contents(tmp_path / "input") == before


@pytest.mark.parametrize(
    ("nearer", "farther"), [("a/runs", "datasets/o/b"), ("datasets/o/b", "a/runs")]
)
def test_of_two_attached_outputs_the_farther_one_is_taken(tmp_path, attach, nearer, farther):
    attach(nearer, 3)
    attach(farther, 5)
    run, texts = reopened(tmp_path)
    assert texts == [f"BROUGHT step 5 from the attached output {tmp_path / 'input' / farther}/run"]
    assert [tick.step for tick in train(run)] == [6, 7, 8]


def test_an_output_without_a_whole_checkpoint_is_passed_over_with_a_line(tmp_path, trained, attach):
    attach("a/runs", 3)
    output = attach("b/runs", 5)
    damage(output, 5)
    run, texts = reopened(tmp_path)
    assert texts[0].startswith(f"passing over {output}: none of the 1 checkpoints")
    assert texts[1].startswith("BROUGHT step 3")
    assert_goes_on(run, 3, trained)


def test_an_older_generation_of_a_damaged_output_goes_on(tmp_path, trained, attach):
    damage(attach("a/runs", 3, 5), 5)
    run, texts = reopened(tmp_path)
    assert texts[0].startswith("BROUGHT step 3")
    assert_goes_on(run, 3, trained)


@pytest.mark.parametrize("kind", ["local", "colab"])
def test_elsewhere_no_outputs_are_looked_for(tmp_path, attach, monkeypatch, kind):
    attach("a/runs", 3)
    monkeypatch.setattr(host, "platform", lambda: kind)
    run, texts = reopened(tmp_path)
    assert [text for text in texts if " images in " not in text] == []
    assert newest_checkpoint(run.dir.checkpoints) is None


# real commands


def words_of(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def begin(*words: str, data: Path, **more: str) -> subprocess.Popen[str]:
    """`python -m` these words."""
    ours = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "DREAMLIB_MIRROR": "none"}
    env = os.environ | ours | {"DREAMLIB_DATA": str(data)} | more
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", *words], env=env, text=True, **outputs)


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300  # a busy machine takes a minute to import torch
    while process.poll() is None and time.monotonic() < until and not condition():
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (["sample", "--n", "5000"], signal.SIGTERM),
        (["evaluate", "--set", "sample.shard=1"], signal.SIGINT),
    ],
)
@pytest.mark.usefixtures("heard", "quick_python")
def test_a_command_ends_politely(copy, data_home, words, number):
    command, *options = words
    more = words_of(["sample.steps=40"])
    process = begin("dreamlib", command, str(copy.folder), *options, *more, data=data_home)
    wait_for(lambda: shards(copy), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == UNFINISHED, err
    assert "Traceback" not in err + out
    (line,) = [line for line in err.splitlines() if "WARNING" not in line]
    assert f"asked to stop ({number.name}); what is done is kept" in line
    assert shards(copy)


LONG = [*TINY, "train.save_minutes=0.05"]


@pytest.mark.slow
def test_a_training_paused_by_its_budget_goes_on_with_the_next(tmp_path, data_home):
    settings = words_of([*LONG, "train.length=3000", "train.preview_every=40"])
    # A busy machine takes ten seconds to import torch; five are kept for the end.
    budget, run, start = 25.0, RunDir(tmp_path / "run"), time.monotonic()
    words = ["train", str(run.folder), "--preset", "faces16", *settings]
    words += ["--hours", str(budget / 3600)]
    first = begin("dreamlib", *words, data=data_home)
    out, err = first.communicate(timeout=400)
    assert first.returncode == UNFINISHED, err
    assert time.monotonic() - start < budget
    status = run.status()
    assert status["state"] == "paused_deadline"
    assert 0 < status["step"] == status["saved"] < 3000
    assert f"PAUSED at step {status['step']:,} of 3,000; everything is saved" in out
    assert f"time budget of {budget / 3600:g} h" in out
    assert out.rstrip().endswith(f"paused_deadline: {run.folder}")
    # As long again, not to its end: that would take minutes on a slow machine.
    second = begin("dreamlib", *words, data=data_home)
    out, err = second.communicate(timeout=400)
    assert second.returncode in (0, UNFINISHED), err
    assert f"RESUMED at step {status['step']:,} of 3,000" in out
    assert run.status()["step"] > status["step"]


# notebooks


@pytest.mark.parametrize("hours", [0.5, None])
def test_the_demo_hands_its_hours_on(tmp_path, monkeypatch, hours):
    found: dict[str, Any] = {}

    def run_notebook(path: Path, output: Path, parameters: dict[str, Any]) -> Path:
        found.update(parameters)
        raise Interrupted("seen enough")

    monkeypatch.setattr("dreamlib.notebook.runner.notebooks.run_notebook", run_notebook)
    words = [] if hours is None else ["--hours", str(hours)]
    monkeypatch.setattr(sys, "argv", ["dreamlib", "demo", "--out", str(tmp_path / "run"), *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == UNFINISHED
    assert found.get("HOURS") == hours


def papermill(run: RunDir, hours: float, settings: list[str], data: Path) -> subprocess.Popen[str]:
    """00_complete as hosted runners execute it: papermill's own command."""
    parameters = {"PRESET": "faces16", "RUN": str(run.folder), "HOURS": hours}
    words = ["-y", json.dumps(parameters | {"OVERRIDES": settings}), "--no-progress-bar"]
    paths = map(str, (find_notebook("00_complete"), run.folder.parent / "out.ipynb"))
    return begin("papermill", *paths, *words, data=data, DREAMLIB_HEADLESS="1")


def demo(run: RunDir, hours: float, settings: list[str], data: Path) -> subprocess.Popen[str]:
    """The same by our command."""
    words = ["--out", str(run.folder), "--hours", str(hours), *words_of(settings)]
    return begin("dreamlib", "demo", *words, data=data)


def printed(notebook: Path) -> str:
    cells = read_json(notebook)["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join(text for output in outputs for text in output.get("text", []))


def launch() -> float:
    """Seconds until papermill is there.  The kernel, which keeps the budget, begins after them."""
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "papermill", "--version"], check=True, capture_output=True
    )
    return time.monotonic() - start


LENGTH, BUDGET = 4500, 40  # more than a minute of steps, on any machine; seconds
# Sampling takes longer than is left of the budget, on a fast machine too: 64 images of the model,
# 58 of the untrained network.  Ten seconds are for the figures before it.
SLOW = ["sample.batch=1", "sample.steps=40", "train.reserve_minutes=0.17", "evaluate.n=[58, 60]"]


@pytest.mark.slow
def test_a_notebook_pauses_inside_its_budget_and_goes_on_to_its_end(tmp_path, data_home):
    run, settings = RunDir(tmp_path / "run"), [*LONG, f"train.length={LENGTH}"]
    reached = 0
    for session, notebook, code in (
        (papermill, tmp_path / "out.ipynb", 0),
        (demo, run.folder / "00_complete.ipynb", UNFINISHED),
    ):
        start = time.monotonic()
        process = session(run, BUDGET / 3600, [*settings, *SLOW], data_home)
        _, err = process.communicate(timeout=400)
        seconds = time.monotonic() - start
        assert process.returncode == code, err
        status, text = run.status(), printed(notebook)
        assert status["state"] == "paused_deadline"
        assert reached < status["step"] == status["saved"] < LENGTH
        reached = status["step"]
        shutil.rmtree(run.generated)  # what one session drew would spare the next one the time
        assert f"PAUSED at step {reached:,} of {LENGTH:,}; everything is saved" in text
        assert text.count("\nPAUSED: ") > 2  # of training, and of what needs its time
        assert "is used up; what is done is kept, the same command or cell goes on" in text
        assert not (run.evaluation / "scores.json").exists()
        assert (run.folder / "figures/report.html").exists()  # what there is is told
        assert seconds < BUDGET + launch() + 60  # figures are drawn after it
    for session in (papermill, demo):
        process = session(run, 1, settings, data_home)
        _, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
        assert run.status()["state"] == "finished"
        assert (run.evaluation / "scores.json").exists()
    assert f"RESUMED at step {reached:,} of {LENGTH:,}" in printed(tmp_path / "out.ipynb")
    assert f"FINISHED at step {LENGTH:,}" in printed(notebook)


@pytest.mark.slow
@pytest.mark.parametrize(("session", "code"), [(papermill, 1), (demo, 2)])
def test_a_notebook_that_fails_says_so(tiny, data_home, session, code):
    run = tiny()
    for _ in itertools.islice(train(run), 3):
        pass
    damage(run.folder, 3)
    process = session(run.dir, 1, TINY, data_home)
    _, err = process.communicate(timeout=100)
    assert process.returncode == code
    assert "none of the 1 checkpoints" in err
    status = run.dir.status()
    assert status["state"] == "failed"
    assert "none of the 1 checkpoints" in status["error"]
