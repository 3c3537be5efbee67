"""Copies of the log: TensorBoard's is log.jsonl again after a resume; W&B never stops a run."""

from __future__ import annotations

import io
import json
import sys
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dreamlib.config.load import identity, load_config
from dreamlib.runs.checkpoints import whole_checkpoints
from dreamlib.runs.run import Run
from dreamlib.training.loggers import Loggers, TensorBoard, WeightsAndBiases, scalars
from dreamlib.training.train import train
from dreamlib.utils.errors import ConfigError
from dreamlib.utils.images import save_png
from tests.conftest import train_for


def row(step: int) -> dict:
    return {
        "step": step,
        "loss": 1 / step,
        "loss_by_quartile": [0.5, None, step / 8, 0.25],
        "lam": 0.0,
        "time": 1e9 + step,
    }


TENSORBOARD = "train.tensorboard=true", "train.log_every=1"


def write(loggers: Loggers, *steps: int) -> None:
    for step in steps:
        loggers.write(row(step))


def to_wandb(run: Run) -> Loggers:
    return Loggers(run.dir, [WeightsAndBiases(run.dir, run.config, run.say)])


def shown(run: Run) -> dict[str, dict[int, float]]:
    """What TensorBoard would draw: {tag: {step: value}}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        assert len({point.step for point in points}) == len(points), f"{tag} has a step twice"
        found[tag] = {point.step: point.value for point in points}
    images = events.Images("preview") if "preview" in events.Tags()["images"] else []
    return found | {"preview": {image.step: 0.0 for image in images}}


def logged(run: Run) -> dict[str, dict[int, float]]:
    """The same by log.jsonl and the previews in samples/."""
    found: dict[str, dict[int, float]] = {}
    for line in run.dir.read_log():
        for name, value in scalars(line).items():
            found.setdefault(name, {})[line["step"]] = float(np.float32(value))
    found["preview"] = {int(path.stem[5:]): 0.0 for path in run.dir.stages()}
    return found


def test_a_row_is_numbers_by_name_without_its_gaps():
    assert scalars(row(4)) == {
        "loss": 0.25,
        "loss_by_quartile/1": 0.5,
        "loss_by_quartile/3": 0.5,
        "loss_by_quartile/4": 0.25,
        "lam": 0.0,
    }


@pytest.mark.usefixtures("every_stage")
def test_tensorboard_is_the_log_again_after_a_resume_from_an_earlier_checkpoint(tiny):
    for _ in range(2):
        run = tiny("run", *TENSORBOARD)
        train_for(run, 3)
    assert len(shown(run)["loss"]) == 6
    assert shown(run) == logged(run)
    newest = whole_checkpoints(run.dir.checkpoints)[0]
    assert newest.step == 6
    newest.path.unlink()
    newest.path.with_suffix(".json").unlink()
    train_for(tiny("run", *TENSORBOARD), 2)  # from step 3 to step 5
    assert list(shown(run)["loss"]) == [1, 2, 3, 4, 5]
    assert shown(run)["loss"] == logged(run)["loss"]
    list(train(tiny("run", *TENSORBOARD)))
    assert shown(run) == logged(run)
    assert list(shown(run)["preview"]) == [1, 2, 4, 6, 8]


def test_lost_or_half_written_events_come_back_with_the_next_session(tiny):
    train_for(tiny("run", *TENSORBOARD), 4)
    run = tiny("run", *TENSORBOARD)
    (old,) = (run.folder / "tensorboard").glob("events*")
    old.write_bytes(old.read_bytes()[:200])
    list(train(run))
    assert shown(run) == logged(run)


def test_a_roll_back_takes_rows_back(tiny):
    run = tiny()
    run.dir.create()
    loggers = Loggers(run.dir, [TensorBoard(run.dir)])
    write(loggers, 2, 4, 6)
    run.dir.cut_log(2)
    write(loggers, 3, 5)
    loggers.close()
    assert list(shown(run)["loss"]) == [2, 3, 5]


def test_an_open_page_follows_a_session_that_writes_its_events_anew(tiny):
    """TensorBoard's Python reader looks for a deleted file for ever."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tiny()
    run.dir.create()
    loggers = Loggers(run.dir, [TensorBoard(run.dir)])
    write(loggers, 2, 4, 6)
    page = EventAccumulator(str(run.folder / "tensorboard"))
    for kept, more in ((2, (3, 5)), (3, (4,))):
        page.Reload()
        run.dir.cut_log(kept)
        time.sleep(1)  # their names begin with seconds, and are read in order
        write(loggers, *more)
    page.Reload()
    assert [point.step for point in page.Scalars("loss")] == [2, 3, 4]
    loggers.close()


def test_every_session_says_from_which_step_it_counts(tiny):
    """TensorBoard's Python server ignores the first START that it meets, and heeds the next."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    run = tiny()
    run.dir.create()
    loggers, starts = Loggers(run.dir, [TensorBoard(run.dir)]), []
    for steps in ((2, 4), (3,)):
        write(loggers, *steps)
        (path,) = (p for p in (run.folder / "tensorboard").iterdir() if p.stat().st_size)
        events = map(Event.FromString, RawEventFileLoader(str(path)).Load())
        starts.append([e.step for e in events if e.session_log.status == SessionLog.START])
        run.dir.cut_log(2)
    assert starts == [[2], [2]]
    loggers.close()


def test_a_preview_is_the_picture_value_by_value(tiny):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tiny()
    levels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=-1)
    save_png(levels, run.dir.samples / "step-00000002.png")
    loggers = Loggers(run.dir, [TensorBoard(run.dir)])
    loggers.write(row(2))
    loggers.close()
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    (image,) = events.Images("preview")
    found = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB"))
    assert np.array_equal(found, levels)


def test_previews_later_than_the_last_row_are_not_shown(tiny):
    run = tiny()
    for step in (2, 8):
        save_png(np.zeros((4, 4, 3), np.uint8), run.dir.samples / f"step-{step:08d}.png")
    loggers = Loggers(run.dir, [TensorBoard(run.dir)])
    loggers.write(row(4))
    loggers.close()
    assert list(shown(run)["preview"]) == [2]


# --------------------------------------------------------------------------- Weights & Biases


class StandIn(ModuleType):
    """What dreamlib uses of wandb: rows are kept here."""

    class Error(Exception):
        pass

    def __init__(self, mode: str = "online", login: bool = True):
        super().__init__("wandb")
        self.mode, self.key = mode, login
        self.rows: list[tuple[int, dict]] = []
        self.asked: dict = {}
        self.fail: Exception | None = None
        self.finished = 0
        self.resumed, self.step = False, 0

    def setup(self):
        return SimpleNamespace(settings=SimpleNamespace(mode=self.mode))

    def login(self, prompt: bool, verify: bool) -> bool:
        assert not prompt
        return self.key

    def Settings(self, **settings):
        return settings

    def init(self, **asked):
        if self.fail:
            raise self.fail
        self.asked = asked
        return self

    def log(self, values: dict, step: int) -> None:
        if self.fail:
            raise self.fail
        self.rows.append((step, values))

    def finish(self) -> None:
        if self.fail:
            raise self.fail
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


WANDB = "train.wandb=true", "train.log_every=1"


def test_wandb_gets_every_row_once_under_the_runs_own_id(tiny, wandb):
    train_for(tiny("run", *WANDB), 3)
    run = tiny("run", *WANDB)
    list(train(run))
    assert [step for step, _ in wandb.rows] == list(range(1, 9))
    assert wandb.rows[4][1] == scalars(run.dir.read_log()[4])
    assert (wandb.asked["id"], wandb.asked["resume"]) == (run.dir.identity(), "allow")
    assert wandb.finished == 2


def test_wandb_is_not_sent_a_step_again_after_going_back(tiny, wandb):
    run = tiny("run", *WANDB)
    run.dir.create()
    loggers = to_wandb(run)
    write(loggers, 1, 2, 3)
    run.dir.cut_log(1)
    write(loggers, 2, 3, 4)
    assert [step for step, _ in wandb.rows] == [1, 2, 3, 4]


def test_what_wandb_itself_remembers_is_not_sent_again_from_another_machine(tiny, wandb):
    run = tiny("run", *WANDB)
    wandb.resumed, wandb.step = True, 3  # the next step over there
    write(to_wandb(run), 1, 2, 3, 4)
    assert [step for step, _ in wandb.rows] == [3, 4]


def test_a_failing_wandb_is_said_once_and_caught_up_later(tiny, wandb, monkeypatch):
    said = []
    run = tiny("run", *WANDB)
    object.__setattr__(run, "say", said.append)
    for tick in train(run):
        if tick.step == 2:
            wandb.fail = ConnectionResetError("Connection lost")
    assert run.dir.status()["state"] == "finished"
    assert sum("Weights & Biases failed (Connection lost)" in text for text in said) == 1
    assert [step for step, _ in wandb.rows] == [1, 2]
    wandb.fail = None
    write(to_wandb(run), 9)
    assert [step for step, _ in wandb.rows] == list(range(1, 10))


@pytest.mark.parametrize("what", ["missing", "no login", "no network"])
def test_wandb_that_cannot_be_had_is_said_before_any_step(tiny, wandb, monkeypatch, what):
    if what == "missing":
        monkeypatch.setitem(sys.modules, "wandb", None)
    wandb.key = what != "no login"
    wandb.fail = StandIn.Error("timed out") if what == "no network" else None
    run = tiny("run", *WANDB)
    with pytest.raises(ConfigError, match=r"train.wandb=false"):
        next(train(run))
    assert not run.dir.log.exists()
    assert run.dir.status()["state"] == "new"


def test_disabled_wandb_gets_nothing_and_forgets_nothing(tiny, wandb):
    wandb.mode = "disabled"
    run = tiny("run", *WANDB)
    list(train(run))
    assert not wandb.rows
    assert not (run.folder / "wandb").exists()


def test_missing_tensorboard_is_said_before_any_step(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run = tiny("run", "train.tensorboard=true")
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        next(train(run))


def test_a_run_stays_the_same_run_with_either():
    plain = identity(load_config("faces16"))
    for name in ("wandb", "tensorboard"):
        assert identity(load_config("faces16", [f"train.{name}=true"])) == plain


def test_the_real_wandb_offline(tiny, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tiny("run", *WANDB)
    train_for(run, 3)
    told = json.loads((run.folder / "wandb" / "sent.json").read_text())
    assert told == {"id": run.dir.identity(), "step": 3}
    (kept,) = run.folder.glob(f"wandb/offline-run-*/run-{run.dir.identity()}.wandb")
    until = time.monotonic() + 20  # its own process writes
    while b"loss_by_quartile" not in kept.read_bytes():
        assert time.monotonic() < until
        time.sleep(0.1)
