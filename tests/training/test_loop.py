"""The training loop: NaN, errors at any instant, other machines; and saves in a thread."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dreamlib.notebook.dashboard import watch
from dreamlib.runs.checkpoints import save_checkpoint, whole_checkpoints
from dreamlib.runs.folder import RunDir
from dreamlib.runs.lock import Owner
from dreamlib.runs.mirror.uploader import Uploader
from dreamlib.runs.open import open_run
from dreamlib.runs.run import Run
from dreamlib.runs.time_budget import Clock
from dreamlib.training.async_save import Saver, Snapshot
from dreamlib.training.base import BaseTrainer, check_finite
from dreamlib.training.diffusion import DiffusionTrainer
from dreamlib.training.train import drive, train
from dreamlib.utils.errors import NotFinite, RunError, WeightsUnavailable
from dreamlib.utils.files import read_json
from tests.conftest import TINY, train_for, within
from tests.training.test_train import assert_same_state, final_state, rows

Spoil = Callable[[DiffusionTrainer], None]


def said(run: Run, word: str) -> list[str]:
    """What a run told its user, from its events."""
    texts = [event.get("text", "") for event in run.dir.read_events()]
    return [text for text in texts if word in text]


def steps(run: Run) -> list[int]:
    return [checkpoint.step for checkpoint in whole_checkpoints(run.dir.checkpoints)]


def assert_as_undisturbed(run: Run, undisturbed: Run) -> None:
    assert run.dir.status()["state"] == "finished"
    assert_same_state(final_state(run), final_state(undisturbed))
    assert rows(run) == rows(undisturbed)


def assert_all_finite(run: Run) -> None:
    for checkpoint in whole_checkpoints(run.dir.checkpoints):
        check_finite(checkpoint.load(), checkpoint.step)


@pytest.fixture
def every_step(monkeypatch):
    """Each step is saved, so that it is known to which one training rolls back."""
    monkeypatch.setattr(Clock, "save_due", lambda self: True)
    monkeypatch.setattr(Saver, "busy", False)


@pytest.fixture
def no_previews(monkeypatch):
    """They look at the networks too: without them it is the saver's thread that sees NaN."""
    monkeypatch.setattr(BaseTrainer, "preview_steps", lambda self: set())


# ---------------------------------------------------------------------- numbers that are none


def spoil_net(trainer: DiffusionTrainer) -> None:
    next(trainer.net.parameters()).data.view(-1)[0] = float("nan")


def spoil_ema(trainer: DiffusionTrainer) -> None:
    next(trainer.ema.parameters()).data.view(-1)[-1] = float("inf")


def spoil_optimizer(trainer: DiffusionTrainer) -> None:
    next(iter(trainer.optimizer.state.values()))["exp_avg_sq"].view(-1)[0] = float("nan")


class Spoilt(DiffusionTrainer):
    """Its state is no longer all numbers after `at` steps, the first `times` times."""

    def __init__(self, run: Run, spoil: Spoil, at: int, times: int = 1):
        super().__init__(run)
        self.spoil, self.at, self.times = spoil, at, times

    def advance(self):
        row = super().advance()
        if self.step == self.at and self.times:
            self.times -= 1
            self.spoil(self)
        return row


class Overflowing(DiffusionTrainer):
    """Its gradient is not finite at step `at`, once: the log row itself would hold NaN."""

    at = 3

    def accumulate(self, batch, micro):
        seen = super().accumulate(batch, micro)
        if self.step == self.at:
            self.at = -1
            next(self.net.parameters()).grad.fill_(float("nan"))
        return seen


@pytest.mark.usefixtures("every_step", "no_previews")
@pytest.mark.parametrize(
    ("spoil", "at"),  # a step with a log row, one without, the last
    [(spoil_net, 4), (spoil_ema, 4), (spoil_ema, 5), (spoil_optimizer, 5), (spoil_optimizer, 8)],
)
def test_nan_rolls_back_to_the_last_good_checkpoint(tiny, trained, spoil, at):
    run = tiny()
    list(drive(run, Spoilt(run, spoil, at)))
    (text,) = said(run, "ROLLED BACK")
    assert f"to step {at - 1} (1 of 2), with the same arithmetic" in text
    assert "became NaN or infinite" in text
    assert_as_undisturbed(run, trained)
    assert_all_finite(run)


@pytest.mark.usefixtures("every_step", "no_previews")
def test_nan_first_seen_by_validation_rolls_back(tiny, trained):
    run = tiny("run", "validation.every=5", "validation.n=20")
    trainer = Spoilt(run, spoil_ema, 5)
    list(drive(run, trainer))
    (text,) = said(run, "ROLLED BACK")
    assert "to step 4 (1 of 2)" in text
    assert [row["step"] for row in run.dir.read_validation()] == [5]
    assert_as_undisturbed(run, trained)


def test_what_validation_lacks_is_said_before_the_first_step(tiny):
    run = tiny("run", "validation.every=5", "evaluate.extractor=inception")
    with pytest.raises(WeightsUnavailable, match="DREAMLIB_WEIGHTS"):
        next(train(run))
    assert tiny("run", "validation.every=0").config.validation.every == 0


@pytest.mark.usefixtures("every_step")
def test_a_gradient_that_is_nan_never_becomes_a_log_row(tiny, trained):
    run = tiny()
    list(drive(run, Overflowing(run)))
    assert len(said(run, "ROLLED BACK to step 3 (1 of 2)")) == 1
    assert_as_undisturbed(run, trained)


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("spoil", [spoil_net, spoil_ema])
def test_a_preview_that_would_show_nan_rolls_back(tiny, trained, spoil):
    run = tiny()
    list(drive(run, Spoilt(run, spoil, 6)))
    assert len(said(run, "ROLLED BACK to step 5 (1 of 2)")) == 1
    assert_as_undisturbed(run, trained)


@pytest.mark.usefixtures("every_step", "no_previews")
def test_nan_at_every_try_stops_after_two_and_the_good_state_goes_on(tiny, trained):
    run = tiny()
    with pytest.raises(NotFinite, match=r"ema\.\S+ became NaN or infinite by step 5"):
        list(drive(run, Spoilt(run, spoil_ema, 5, times=99)))
    assert [text.split(",")[0] for text in said(run, "ROLLED BACK")] == [
        "ROLLED BACK to step 4 (1 of 2)",
        "ROLLED BACK to step 4 (2 of 2)",
    ]
    status = run.dir.status()
    assert status["state"] == "failed"
    assert "smaller train.lr" in status["error"]
    assert steps(run) == [4, 3, 2]
    assert_all_finite(run)
    assert_goes_on(tiny(), 5, trained)


@pytest.mark.usefixtures("every_stage")
def test_nan_before_any_checkpoint_stops_at_once(tiny):
    run = tiny()
    trainer = Spoilt(run, spoil_net, 1, times=99)
    with pytest.raises(NotFinite, match="by step 1"):
        list(drive(run, trainer))
    assert trainer.times == 98
    assert said(run, "ROLLED BACK") == steps(run) == []
    assert run.dir.status()["state"] == "failed"
    assert not any(run.dir.samples.glob("*.png"))


def test_nan_when_the_caller_leaves_is_not_saved(tiny):
    run = tiny()
    ticks = drive(run, Spoilt(run, spoil_optimizer, 3))
    assert [tick.step for tick in itertools.islice(ticks, 3)] == [1, 2, 3]
    with pytest.raises(NotFinite, match=r"optimizer\.\S+ became NaN"):
        ticks.close()
    assert steps(run) == []
    assert run.dir.status()["state"] == "failed"


class Scaled(Spoilt):
    """With loss scaling, as on a T4."""

    def __init__(self, run: Run, *words, **more):
        super().__init__(run, *words, **more)
        self.scaler = torch.amp.GradScaler("cpu", enabled=True)


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("times", [1, 2])
def test_every_rollback_lowers_the_loss_scale(tiny, times):
    run = tiny()
    trainer = Scaled(run, spoil_net, 5, times=times)
    before = trainer.scaler.get_scale()
    list(drive(run, trainer))
    scales = [before / 16 ** (k + 1) for k in range(times)]
    assert trainer.scaler.get_scale() == scales[-1]
    texts = said(run, "ROLLED BACK")
    assert len(texts) == times
    for text, scale in zip(texts, scales):
        assert f"with the loss scale lowered to {scale:g}" in text


# ---------------------------------------------------------------------- errors


class Broken(DiffusionTrainer):
    """Raises `error` at step `at`: before the optimizer moves, or when the net has moved and the
    average has not."""

    def __init__(self, run: Run, error: BaseException, at: int, where: str):
        super().__init__(run)
        self.error, self.at, self.where = error, at, where
        update = self.ema.update_parameters

        def update_parameters(net):
            self.fail("between")
            update(net)

        self.ema.update_parameters = update_parameters

    def fail(self, where: str) -> None:
        if (where, self.step) == (self.where, self.at):
            raise self.error

    def draw(self, step):
        self.fail("before")
        return super().draw(step)


RAY = "a cosmic ray"


def broken(run: Run, error: BaseException, where: str) -> None:
    with pytest.raises(type(error), match=RAY):
        list(drive(run, Broken(run, error, 5, where)))


def assert_goes_on(run: Run, first: int, undisturbed: Run) -> None:
    assert train_for(run) == list(range(first, 9))
    assert_as_undisturbed(run, undisturbed)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (RuntimeError(RAY), "failed"),
        (MemoryError(RAY), "failed"),
        (KeyboardInterrupt(RAY), "interrupted"),
    ],
)
def test_an_error_between_steps_saves_what_is_there(tiny, trained, error, state):
    run = tiny()
    broken(run, error, "before")
    status = run.dir.status()
    assert (status["state"], status["error"]) == (state, RAY)
    assert status["saved"] == run.weights_step() == 5
    assert steps(run) == [5]
    assert_goes_on(tiny(), 6, trained)


@pytest.mark.parametrize("error", [RuntimeError(RAY), KeyboardInterrupt(RAY)])
def test_a_step_half_taken_is_never_saved(tiny, trained, error):
    run = tiny()
    broken(run, error, "between")
    assert steps(run) == []
    assert run.dir.status()["saved"] is None
    assert_goes_on(tiny(), 1, trained)


@pytest.mark.usefixtures("every_step")
def test_after_a_step_half_taken_the_last_whole_one_goes_on(tiny, trained):
    run = tiny()
    broken(run, RuntimeError(RAY), "between")
    assert steps(run)[0] == 5
    assert_goes_on(tiny(), 6, trained)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk of .* is full; step 3 is saved and whole: free some space"),
        (errno.EIO, r"log\.jsonl cannot be used .*; step 3 is saved and whole: check that disk"),
    ],
)
@pytest.mark.usefixtures("every_step")
def test_a_log_row_that_cannot_be_written_is_not_missed(tiny, trained, monkeypatch, number, words):
    """A checkpoint of step 4 without its row would leave a gap in the log for good."""
    run = tiny()

    def refuse(self: RunDir, row: dict) -> None:
        raise OSError(number, os.strerror(number), str(self.log))

    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "append_log", refuse)
        with pytest.raises(RunError, match=words):
            list(train(run))
    assert steps(run)[0] == 3
    assert run.dir.status()["state"] == "failed"
    assert_goes_on(tiny(), 4, trained)


def test_a_status_that_cannot_be_written_is_said_with_its_remedy(tiny, monkeypatch):
    said: list[str] = []

    def refuse(self: RunDir, state: str, **facts: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "run/status.json")

    monkeypatch.setattr(RunDir, "set_status", refuse)
    with pytest.raises(RunError, match=r"status\.json cannot be used .*: check that disk"):
        list(train(replace(tiny(), say=said.append)))
    words = "nor could status.json be written: run/status.json cannot be used (Input/output error)"
    assert said[-1].startswith(f"{words}; nothing was saved yet: check that disk or mount")


def test_an_error_in_the_callers_loop_saves_and_frees_the_run(tiny, trained):
    run = tiny()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        for tick in train(run):
            assert 1 / (tick.step - 3)
    assert run.dir.status()["state"] == "interrupted"
    assert steps(run) == [3]
    assert_goes_on(tiny(), 4, trained)


def test_an_error_in_the_live_view_saves_and_frees_the_run(tiny, trained):
    """A broken pipe, or a second press of the stop button: in a notebook the traceback, and with
    it all that it refers to, lives on while the next cell trains again."""
    run = tiny()

    def say(text: str) -> None:
        if text.startswith("step 3/8"):
            raise BrokenPipeError("nobody reads this")

    shown = Run(run.dir, run.config, run.data, say)
    with pytest.raises(BrokenPipeError) as kept:
        watch(shown, train(shown), every=0)
    assert run.dir.status()["state"] == "interrupted"
    assert steps(run) == [3]
    assert_goes_on(run, 4, trained)
    assert kept.traceback


def test_another_number_of_threads_is_told(tiny):
    run = tiny()
    train_for(run, 3)
    torch.set_num_threads(2)
    ticks = train(run)
    next(ticks)  # it has been told; one thread is quicker for the rest
    torch.set_num_threads(1)
    list(ticks)
    (text,) = said(run, "not bit for bit")
    assert "this session differs (threads 1 -> 2): it goes on" in text
    assert run.dir.status()["state"] == "finished"


def test_an_equal_machine_is_not_remarked_on(tiny):
    run = tiny()
    train_for(run, 3)
    list(train(run))
    assert said(run, "RESUMED at step 3 of 8")
    assert said(run, "not bit for bit") == []


# ---------------------------------------------------------------------- the saver


def tree() -> dict:
    return {"step": 3, "net": {"a": torch.arange(6.0).view(2, 3)}, "groups": [{"lr": 0.5}, None]}


def test_a_copy_does_not_change_with_its_original():
    state = tree()
    copy = Snapshot().take(state)
    state["net"]["a"] += 1
    state["groups"][0]["lr"] = 0.25
    assert torch.equal(copy["net"]["a"], torch.arange(6.0).view(2, 3))
    assert copy["groups"] == [{"lr": 0.5}, None]
    assert copy["step"] == 3


def test_a_copy_keeps_kind_layout_and_no_history():
    image = torch.zeros(2, 3, 4, 4, dtype=torch.float16).to(memory_format=torch.channels_last)
    copy = Snapshot().take((image, torch.ones(2, requires_grad=True) * 2))
    assert isinstance(copy, tuple)
    assert (copy[0].dtype, copy[0].stride()) == (image.dtype, image.stride())
    assert not copy[1].requires_grad


def test_buffers_are_used_again_unless_the_shape_changes():
    snapshot, state = Snapshot(), tree()
    first = snapshot.take(state)["net"]["a"]
    state["net"]["a"] += 1
    second = snapshot.take(state)["net"]["a"]
    assert second.data_ptr() == first.data_ptr()
    assert torch.equal(second, state["net"]["a"])
    state["net"]["a"] = torch.ones(7)
    assert torch.equal(snapshot.take(state)["net"]["a"], torch.ones(7))


class Writes:
    """A slow disk: every write waits until it is let go."""

    def __init__(self) -> None:
        self.go, self.began = threading.Event(), threading.Event()
        self.now = self.most = 0
        self.done: list[float] = []

    def __call__(self, copy: dict) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        self.began.set()
        assert self.go.wait(20)
        self.done.append(float(copy["a"][0]))
        self.now -= 1


@pytest.fixture
def now(monkeypatch):
    """now[0] is the time that a saver reads."""
    seconds = [0.0]
    clock = SimpleNamespace(monotonic=lambda: seconds[0])
    monkeypatch.setattr("dreamlib.training.async_save.time", clock)
    return seconds


def test_a_save_goes_on_behind_the_callers_back_with_its_own_copy(now):
    saver, writes, state = Saver(), Writes(), {"a": torch.zeros(1)}
    saver.save(state, writes)
    state["a"] += 1
    assert writes.began.wait(20)
    assert saver.busy
    assert writes.done == []
    now[0] = 0.3
    writes.go.set()
    saver.wait()
    assert not saver.busy
    assert writes.done == [0.0]
    assert saver.blocked == 0  # the copy took none; the writing is no wait
    assert saver.cost == 0.3
    assert saver.longest == saver.cost
    slowest = saver.longest
    saver.save(state, writes)
    saver.wait()
    assert saver.cost < saver.longest == slowest


def test_a_second_save_waits_for_the_first(now, monkeypatch):
    saver, writes, state = Saver(), Writes(), {"a": torch.zeros(1)}
    saver.save(state, writes)
    state["a"] += 1
    wait = saver.wait

    def wait_long() -> None:
        assert writes.began.wait(20)
        now[0] += 0.3
        writes.go.set()
        wait()

    monkeypatch.setattr(saver, "wait", wait_long)
    saver.save(state, writes)
    assert saver.blocked == 0.3
    saver.wait()
    assert writes.done == [0.0, 1.0]
    assert writes.most == 1


@pytest.mark.parametrize("ask", [Saver.check, Saver.wait])
def test_an_error_of_the_thread_is_raised_once(ask):
    saver = Saver()

    def fail(copy: dict) -> None:
        raise OSError(errno.ENOSPC, "full")

    saver.save(tree(), fail)
    saver.thread.join()
    with pytest.raises(OSError, match="full"):
        ask(saver)
    ask(saver)
    saver.save(tree(), fail)
    with pytest.raises(OSError, match="full"):
        saver.save(tree(), lambda copy: None)


def test_checking_does_not_wait():
    saver, writes = Saver(), Writes()
    saver.save({"a": torch.zeros(1)}, writes)
    saver.check()
    assert saver.busy  # nothing is written before it may go
    writes.go.set()
    saver.wait()
    assert writes.done == [0.0]


@pytest.mark.parametrize("leave", [lambda ticks: ticks.close(), list])
def test_training_does_not_end_before_its_last_save(tiny, monkeypatch, leave):
    run = tiny()
    export = Run.export_weights
    monkeypatch.setattr(Run, "export_weights", lambda *words: (time.sleep(0.5), export(*words))[1])
    ticks = train(run)
    next(ticks)
    leave(ticks)
    status = run.dir.status()
    assert run.weights_step() == status["saved"] == status["step"]
    assert status["save_seconds"] >= 0.5
    assert status["blocked_seconds"] < status["save_seconds"]


# ---------------------------------------------------------------------- two sessions, one mirror


@pytest.fixture
def home(tmp_path, data_home, monkeypatch) -> Path:
    """A mirror whose owners are watched for fractions of a second."""
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    for name, seconds in {"stale": 1.5, "watch": 1.0, "poll": 0.05}.items():
        monkeypatch.setitem(Owner.__init__.__kwdefaults__, name, seconds)
    monkeypatch.setitem(Uploader.__init__.__kwdefaults__, "beat", 0.05)
    (tmp_path / "drive").mkdir()
    return tmp_path / "drive" / "dreamlib"


def machine(folder: Path, home: Path, texts: list[str], *words: str, **more) -> Run:
    words = (*TINY, "train.mirror_minutes=1e-6", *words)
    return open_run(
        folder / "run", "faces16", overrides=words, mirror=home, say=texts.append, **more
    )


def stranger(home: Path) -> Owner:
    """Who seems to train the same run on another machine."""
    owner = Owner(home / "runs" / "run" / "owner.json")
    owner.me |= {"boot": "another", "host": "elsewhere", "token": "theirs"}
    owner.path.parent.mkdir(parents=True, exist_ok=True)
    return owner


@contextmanager
def beating(owner: Owner) -> Iterator[None]:
    stop = threading.Event()

    def live() -> None:
        while not stop.wait(0.1):
            owner.beat()

    owner.beat()
    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_training_stops_by_itself_when_another_session_takes_the_run(tmp_path, home, trained):
    texts: list[str] = []
    # Far more steps than are needed to hear of it, however busy the machine is.
    run = machine(tmp_path / "a", home, texts, "train.length=500")
    taken, other = 0, stranger(home)
    for tick in train(run):
        if tick.step == 3:
            within(other.claim, take_over=True, say=texts.append)
            taken = tick.step
        elif taken and not other.lease_lost():
            other.beat()  # ours may have crossed its claim
        time.sleep(0.1)
    assert 0 < taken <= tick.step < 500
    status = run.dir.status()
    assert status["state"] == "interrupted"
    assert steps(run) == [status["step"]]
    (text,) = [text for text in texts if text.startswith("PAUSED")]
    assert "another session took this run over" in text
    assert "elsewhere" in text
    assert read_json(home / "runs" / "run" / "owner.json")["token"] == "theirs"


def test_a_run_that_beats_elsewhere_is_refused_after_its_beat_was_seen(tmp_path, home):
    texts: list[str] = []
    run = machine(tmp_path / "b", home, texts)
    with (
        beating(stranger(home)),
        pytest.raises(RunError, match=r"trained elsewhere .*, and its heart beats: stop it there"),
    ):
        list(train(run))
    assert any("Watching for" in text for text in texts)
    assert run.dir.status()["state"] == "new"
    assert steps(run) == []


def test_a_run_whose_heart_stands_still_is_taken_over(tmp_path, home, trained):
    first, second = [], []
    train_for(machine(tmp_path / "a", home, first), 3)
    stranger(home).beat()  # its last
    run = machine(tmp_path / "b", home, second)
    start = time.monotonic()
    ticks = list(train(run))
    assert time.monotonic() - start >= 1.0
    assert any("is gone: taking over" in text for text in second)
    assert [tick.step for tick in ticks] == [4, 5, 6, 7, 8]
    assert_as_undisturbed(run, trained)


def test_taking_over_does_not_wait(tmp_path, home):
    texts: list[str] = []
    run = machine(tmp_path / "b", home, texts, take_over=True)
    stranger(home).beat()
    list(train(run))
    assert run.dir.status()["state"] == "finished"
    assert not any("Watching for" in text for text in texts)


def test_who_lost_the_run_by_force_writes_nothing_more(tiny):
    """Paused in its caller's loop while another process takes over and goes further."""
    run = tiny()
    ticks = train(run)
    for _ in range(3):
        next(ticks)
    taken = replace(tiny(), take_over=True)
    assert train_for(taken)[-1] == 8

    def files():
        paths = (path for path in run.folder.rglob("*.*") if path.is_file())  # not the lock
        return {path: path.read_bytes() for path in paths}

    before = files()
    with pytest.raises(RunError, match=r"took .* over: this one saves no more"):
        ticks.close()
    assert files() == before


def test_whole_later_checkpoints_are_not_dropped(tmp_path):
    for step in (300, 400, 250):
        save_checkpoint(tmp_path, step, {"step": step}, {}, keep=1)
    names = sorted(path.stem for path in tmp_path.glob("*.pt"))
    assert names == ["step-00000250", "step-00000400"]
