"""Kill real work with SIGKILL, start it again, and compare with work that nobody disturbed.

    python -m tests.crash.harness --kills 100 --seed 0

One process imports torch once, trains nothing, and forks a child per attempt.  A child dies at a
random instant by its parent's hand, or by its own at a fault point: before, in the middle of or
after one call to the file system.  Those calls are watched from outside, by replacing `open` and
functions of `os` in the child alone: the library knows nothing of it.
"""

from __future__ import annotations

import argparse
import builtins
import gc
import io
import itertools
import json
import logging
import math
import mmap
import os
import pathlib
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.ma  # what np.unique imports
import torch
import torch._dynamo  # what a first optimizer step imports: seconds that a fork inherits
from PIL import Image
from torch import Tensor

from dreamlib.config.factory import make_extractor, make_net
from dreamlib.config.load import load_config
from dreamlib.data import prepare as packing
from dreamlib.data.dataset import SPLITS, Contents, Item, Source
from dreamlib.evaluation.evaluate import evaluate
from dreamlib.runs.checkpoints import newest_checkpoint
from dreamlib.runs.folder import RunDir
from dreamlib.runs.open import open_run
from dreamlib.runs.run import Run
from dreamlib.sampling.generate import generate
from dreamlib.training.diffusion import DiffusionTrainer
from dreamlib.training.gan import GanTrainer
from dreamlib.utils.errors import DreamlibError
from dreamlib.utils.files import PLACE, read_json
from tests.conftest import TINY, train_for
from tests.training.conftest import TINY_GAN
from tests.training.test_train import TIMES, flatten

BUFFER = 1 << 16  # bytes per write to the system: few enough calls to kill at every one
LONGEST = 120.0  # seconds after which an attempt hangs
UNITS = 1 << 14  # of work, that can be told apart
TEMPORARY = re.compile(r"^\.(.+)\.[0-9a-f]{8}\.\d+\.\d+\.tmp$")
OURS, LOG_EVERY = "run", 4  # the run's folder; as TINY has it
PATHLIB: Any = getattr(pathlib, "_normal_accessor", None)  # Python 3.10: it keeps its own names
SAVER, MAIN = "save", "MainThread"  # what their threads are called


# ---------------------------------------------------------------------- fault points


class Call(NamedTuple):
    """One call that changes a file, or makes a change durable."""

    kind: str  # open, write, truncate, fsync, replace, unlink, mkdir
    path: str  # below the watched folder; "x.pt (tmp)" for the temporary file of x.pt
    thread: str

    @property
    def point(self) -> str:
        """What is alike from one save to the next."""
        return f"{self.kind} {re.sub('[0-9]+', '#', self.path)}"


@dataclass(frozen=True)
class Kill:
    """When an attempt dies: after `delay` seconds, or at a call if that comes first."""

    delay: float = LONGEST
    number: int = 0  # die at this call, counted from 1, among those with this point and thread
    point: str = ""
    thread: str = ""
    when: str = "before"  # "half": after half of a write; "after"
    linger: float = 0.0  # seconds that this thread hangs in the call while others go on

    def counts(self, call: Call) -> bool:
        return self.point in ("", call.point) and self.thread in ("", call.thread)


class Calls:
    """Watches a folder in this process, and kills the process where it is told to."""

    def __init__(self, root: Path, kill: Kill, tell: Callable[[dict[str, Any]], None]):
        self.root, self.kill, self.tell = os.path.realpath(root), kill, tell
        self.record: list[Call] = []
        self.last: Call
        self.lock, self.counted, self.open = threading.Lock(), 0, open

    def watch(self) -> None:
        """From now on, in this process: for good, so only ever in a child."""
        builtins.open = io.open = self._open
        if PATHLIB:
            PATHLIB.open = self._open
        self._watch("fsync", "fsync", lambda fd: os.readlink(f"/proc/self/fd/{fd}"))
        for name in ("replace", "rename"):
            self._watch(name, "replace", lambda source, target: target)
        for name in ("unlink", "remove"):
            self._watch(name, "unlink", lambda path, **at: path if os.path.lexists(path) else None)
        self._watch("truncate", "truncate", lambda path, size: path)
        self._watch("mkdir", "mkdir", lambda path, *mode: path if _can_make(path) else None)

    def _watch(self, name: str, kind: str, path_of: Callable[..., Any]) -> None:
        """`path_of` gives the path of a call; None for one that can change nothing."""
        system = getattr(os, name)

        def watched(*args: Any, **more: Any) -> Any:
            path = path_of(*args, **more)
            if path is None or not self._here(path):
                return system(*args, **more)
            with self.around(kind, path):
                return system(*args, **more)

        for owner in (os, PATHLIB) if hasattr(PATHLIB, name) else (os,):
            setattr(owner, name, watched)

    def _here(self, path: Any) -> bool:
        return os.path.realpath(path).startswith(self.root + os.sep)

    def _open(
        self, file: Any, mode: str = "r", buffering: int = -1, *words: Any, **more: Any
    ) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+") or not self._here(file):
            return self.open(file, mode, buffering, *words, **more)
        with self.around("open", file):
            raw = _File(self, file, mode, opener=more.pop("opener", None))
        # BufferedRandom, as NumPy passes by a BufferedWriter, down to the descriptor.
        binary = io.BufferedRandom(raw, BUFFER)
        return binary if "b" in mode else io.TextIOWrapper(binary, *words, **more)

    @contextmanager
    def around(self, kind: str, path: Any) -> Iterator[None]:
        due = self.due(kind, path)
        if due == "before":
            self.die(due)
        yield
        if due:
            self.die(due)

    def due(self, kind: str, path: Any) -> str:
        """Note a call -> when to die of it; '' to live on."""
        folder, name = os.path.split(os.path.relpath(os.path.realpath(path), self.root))
        name = TEMPORARY.sub(r"\1 (tmp)", name)
        call = Call(kind, os.path.join(folder, name), threading.current_thread().name)
        with self.lock:  # the saver's thread calls, too
            self.record.append(call)
            if not self.kill.counts(call):
                return ""
            self.counted += 1
            if self.counted != self.kill.number:
                return ""
            self.last = call
            return self.kill.when

    def die(self, when: str) -> None:
        self.tell({"died": f"{when} {self.last.kind} {self.last.path}"})
        time.sleep(self.kill.linger)
        os.kill(os.getpid(), signal.SIGKILL)


def _can_make(folder: Any) -> bool:
    return os.path.isdir(os.path.dirname(os.path.abspath(folder))) and not os.path.isdir(folder)


class _File(io.FileIO):
    """What lies under a buffered file: its writes are the system's."""

    def __init__(self, calls: Calls, path: Any, mode: str, opener: Any):
        kind = next(letter for letter in mode if letter in "rwax") + "+"
        super().__init__(path, kind, opener=opener)
        self.calls, self.path = calls, path

    def write(self, data: Any) -> int:
        due = self.calls.due("write", self.path)
        if due == "half":
            super().write(data[: len(data) // 2])
        if due in ("before", "half"):
            self.calls.die(due)
        written = super().write(data)
        if due:
            self.calls.die(due)
        return written

    def truncate(self, size: int | None = None) -> int:
        with self.calls.around("truncate", self.path):
            return super().truncate(size)


# ---------------------------------------------------------------------- jobs


class Work:
    """How often each unit of work was begun: in memory that outlives a killed child."""

    def __init__(self) -> None:
        self.times = np.frombuffer(mmap.mmap(-1, 4 * (UNITS + 1)), np.int32)
        self.reset()

    def reset(self) -> None:
        self.times[:-1] = 0
        self.times[-1] = -1  # the first unit of this attempt

    def begin(self, unit: int = 0) -> None:
        self.times[unit] += 1
        if self.times[-1] < 0:
            self.times[-1] = unit

    def total(self) -> int:
        return int(self.times[:-1].sum())

    def first(self) -> int | None:
        """The first unit since this was asked last; None when none was begun."""
        first, self.times[-1] = int(self.times[-1]), -1
        return None if first < 0 else first


Result = dict[str, Any]  # what must be equal, by name; "flaws" must be empty


@dataclass(frozen=True)
class Job:
    """Something that may be killed.  Everything it does lies in one folder."""

    name: str
    unit: str  # of work, in the plural
    work: Callable[[Path, Work], None]  # the command
    result: Callable[[Path], Result]
    prepare: Callable[[Path], None] = lambda folder: None  # what was there before the command
    safe: Callable[[Path], int | None] = lambda folder: None  # the unit to go on with, if known


DIFFUSION = [*TINY, "net.widths=[8]", "net.attention=[]", "net.dropout=0.1", "sample.steps=1"]
GAN = [*TINY_GAN, "net.widths=[4, 4, 8]", "validation.every=3", "validation.n=10"]


def training(
    steps: int,
    sessions: int = 0,
    name: str = "training",
    cut: bool = False,
    preset: str = "faces16",
) -> Job:
    """A run that saves whenever it can; `sessions` one-step sessions came before.

    `cut`: the last of them was killed before its manifest, behind the log row and the weights.
    """
    trainer, settings = DiffusionTrainer, DIFFUSION
    if preset != "faces16":
        trainer, settings = GanTrainer, GAN
    settings = [*settings, f"train.length={steps}", "train.save_minutes=1e-9"]

    def prepare(folder: Path) -> None:
        if trainer is GanTrainer:  # its validation's extractor lies beside the packed images
            run = open_tiny(folder, settings, preset)
            make_extractor(run.config, run.data, run.device)
        for _ in range(sessions):
            train_for(open_tiny(folder, settings, preset), 1)
        if cut:
            manifest = folder / OURS / "checkpoints" / f"step-{sessions:08d}.json"
            manifest.rename(manifest.with_name(f".{manifest.name}.{PLACE}.0.{2**30}.tmp"))

    def work(folder: Path, work: Work) -> None:
        advance = trainer.advance

        def counted(own: Any) -> Any:
            work.begin(own.step)
            return advance(own)

        trainer.advance = counted  # type: ignore[method-assign]
        train_for(open_tiny(folder, settings, preset))

    def safe(folder: Path) -> int:
        newest = newest_checkpoint(folder / OURS / "checkpoints")
        return newest.step if newest else 0

    return Job(name, "steps", work, lambda folder: trained(folder, steps), prepare, safe)


def gan_training() -> Job:
    return training(30, name="GAN training", preset="gan-faces16")


def open_tiny(folder: Path, settings: Sequence[str] = (), preset: str = "faces16") -> Run:
    """The command's own opening; the packed images lie beside the run."""
    os.environ.pop("DREAMLIB_DATA", None)
    return open_run(
        folder / OURS,
        preset if settings else None,
        overrides=settings,
        mirror="none",
        say=lambda text: None,
    )


def trained(folder: Path, steps: int) -> Result:
    """State, weights and log of a finished training, and whatever should not be there."""
    run = RunDir(folder / OURS)
    newest = newest_checkpoint(run.checkpoints)
    rows = run.read_log()
    flaws = debris(folder) + unpaired(run.checkpoints)
    if newest is None or newest.step != steps or run.status()["state"] != "finished":
        flaws.append(f"not finished: {newest}, {run.status()}")
    due = [step for step in range(1, steps + 1) if step % LOG_EVERY == 0 or step == steps]
    if [row["step"] for row in rows] != due:
        flaws.append(f"the log has steps {[row['step'] for row in rows]}")
    state = flatten(newest.load()) if newest else []
    return {
        "flaws": flaws,
        "log": [{k: v for k, v in row.items() if k not in TIMES} for row in rows],
        "validation": [row | {"seconds": 0} for row in run.read_validation()],
        **{f"state {name}": bits(value) for name, value in state},
        **tree(run.weights),
        **tree(run.samples),
    }


def bits(value: Any) -> Any:
    """A tensor as something whose equality is that of every bit."""
    if not isinstance(value, Tensor):
        return value
    return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()


def tree(folder: Path, *without: str) -> dict[str, bytes]:
    """Every file's bytes, but for those being written and those named."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder.parent).as_posix(): path.read_bytes()
        for path in paths
        if path.name not in without and not TEMPORARY.match(path.name)
    }


def debris(folder: Path) -> list[str]:
    return [f"debris: {path.name}" for path in folder.rglob(".*.tmp")]


def unpaired(folder: Path) -> list[str]:
    """Manifests without their data.  Data without its manifest is no checkpoint, and may lie about
    when the last save of all was killed while it removed the oldest generation."""
    alone = [p for p in folder.glob("step-*.json") if not p.with_suffix(".pt").exists()]
    return [f"half a checkpoint: {path.name}" for path in alone]


# Smaller than in the library, so that a source of no size has many safe points.
SAFE_EVERY = 50


def packing_job(items: int = 1000, name: str = "packing") -> Job:
    def work(folder: Path, work: Work) -> None:
        packing.SAFE_EVERY = SAFE_EVERY
        packing.pack(toy_source(items, work), folder / "packed")

    def result(folder: Path) -> Result:
        return {"flaws": debris(folder), **tree(folder / "packed", packing.LOCK)}

    def safe(folder: Path) -> int:
        """Whole lines of the index behind its head."""
        index = folder / "packed" / packing.INDEX
        return max(0, index.read_bytes().count(b"\n") - 1) if index.exists() else 0

    return Job(name, "images", work, result, safe=safe)


def toy_source(count: int, work: Work) -> Source:
    """Noise with labels; every seventh item is rejected, the first one too."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)

    def items(start: int) -> Iterator[Item]:
        for i in range(start, count):
            work.begin(i)
            if i % 7 == 0:
                yield Item(f"i{i}", None, reject="it is torn")
            else:
                yield Item(f"i{i}", pixels[i], (i % 2,), SPLITS[i % 3])

    contents = Contents({"odd": ("no", "yes")}, count, items)
    return Source("toy", {"size": 8}, lambda: contents)


def train_first(folder: Path) -> None:
    train_for(open_tiny(folder, TINY))


def counting(work: Work) -> Callable[[], bool]:
    """Asked after every sampler step, and before every batch of features."""

    def should_stop() -> bool:
        work.begin()
        return False

    return should_stop


def generation(images: int = 60, name: str = "generation") -> Job:
    def work(folder: Path, work: Work) -> None:
        generate(open_tiny(folder), range(images), should_stop=counting(work))

    def result(folder: Path) -> Result:
        return {"flaws": [], **tree(folder / OURS / "generated")}

    return Job(name, "sampler steps", work, result, train_first)


def evaluation() -> Job:
    """Trains the classifier, too: the images beside the run have none yet."""

    def work(folder: Path, work: Work) -> None:
        evaluate(open_tiny(folder), should_stop=counting(work))

    def result(folder: Path) -> Result:
        run, cards = RunDir(folder / OURS), (folder / "data").rglob("classifier-*.json")
        # How long the classifier took to train is the one thing that may differ.
        kept = {f"card {c.name}": read_json(c) | {"seconds": None} for c in cards}
        kept |= tree(folder / "data", packing.LOCK, *(name[5:] for name in kept))
        return {"flaws": [], **tree(run.evaluation), **tree(run.generated), **kept}

    return Job("evaluation", "network calls", work, result, train_first)


# ---------------------------------------------------------------------- attempts


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: 'finished', 'killed', or what went wrong."""

    state: str
    died: str = ""  # the call at which it killed itself
    seconds: float = 0.0
    calls: tuple[Call, ...] = ()


def attempt(do: Callable[[], None], folder: Path, kill: Kill) -> Outcome:
    """Do something in a child, under a kill."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _child(do, folder, kill, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        overdue = not select.select([pipe], [], [], kill.delay)[0]
        if overdue:
            os.kill(child, signal.SIGKILL)
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    told = json.loads(text) if text else {}
    if "error" in told:
        return Outcome(told["error"])
    if overdue and kill.delay >= LONGEST:
        return Outcome(f"it hung for {LONGEST} s")
    if os.WIFSIGNALED(status):
        return Outcome("killed", told.get("died", ""))
    return Outcome("finished", "", told["seconds"], tuple(Call(*call) for call in told["calls"]))


def _child(do: Callable[[], None], folder: Path, kill: Kill, writer: int) -> None:
    """Never returns."""

    def tell(message: dict[str, Any]) -> None:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(json.dumps(message).encode())

    gc.freeze()  # whoever collects garbage need not copy what was inherited
    try:
        calls = Calls(folder, kill, tell)
        calls.watch()
        start = time.perf_counter()
        do()
        tell({"seconds": time.perf_counter() - start, "calls": calls.record})
    except BaseException:  # noqa: BLE001  the parent is told, whole
        tell({"error": traceback.format_exc()})
    finally:
        os._exit(0)


class Truth:
    """What the job comes to when nobody disturbs it, and what it takes."""

    def __init__(self, job: Job, scratch: Path):
        self.job, self.work = job, Work()
        self.base, self.folder = scratch / f"{job.name}-base", scratch / f"{job.name}-truth"
        self.base.mkdir(parents=True)
        self._must(lambda: job.prepare(self.base), self.base)
        shutil.copytree(self.base, self.folder)
        whole = self._must(lambda: job.work(self.folder, self.work), self.folder)
        self.calls, self.seconds, self.units = whole.calls, whole.seconds, self.work.total()
        self.result = job.result(self.folder)
        again = self._must(lambda: job.work(self.folder, self.work), self.folder)
        self.startup = again.seconds
        self.flaws = self.result["flaws"] + self.differences(self.folder)

    def _must(self, do: Callable[[], None], folder: Path) -> Outcome:
        outcome = attempt(do, folder, Kill())
        if outcome.state != "finished":
            raise RuntimeError(f"undisturbed {self.job.name} did not end well: {outcome.state}")
        return outcome

    def differences(self, folder: Path) -> list[str]:
        return differences(self.result, self.job.result, folder)


def differences(truth: Result, result: Callable[[Path], Result], folder: Path) -> list[str]:
    """Names of what is not as it should be."""
    try:
        found = result(folder)
    except (DreamlibError, OSError, ValueError) as error:
        return [f"no result: {error}"]
    names = sorted((truth.keys() | found.keys()) - {"flaws"})
    differ = [f"{name} differs" for name in names if truth.get(name) != found.get(name)]
    return found["flaws"] + differ


# ---------------------------------------------------------------------- reports


@dataclass
class Report:
    """What a number of kills came to."""

    name: str
    unit: str
    kills: int = 0
    resumes: int = 0
    runs: int = 0
    lost: int = 0  # units of work that were begun again
    died: list[str] = field(default_factory=list)  # the calls at which an attempt killed itself
    flaws: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)  # killed at, every one; consecutive equals once

    def line(self) -> str:
        at = len(self.died)
        return (
            f"{self.name}: {self.kills} kills ({self.kills - at} by the clock, {at} at file-system "
            f"calls) of {self.runs} runs, {self.resumes} resumes, {self.lost} {self.unit} of work "
            f"lost (taken again), equal {'no' if self.flaws else 'yes'}"
        )


class Killing:
    """Runs of one job, killed and started again until they end, each compared with the truth."""

    def __init__(self, truth: Truth, scratch: Path):
        self.truth, self.job, self.scratch = truth, truth.job, scratch
        self.report = Report(self.job.name, self.job.unit, flaws=list(truth.flaws))

    def run(self, kills: Iterable[Kill]) -> None:
        """Start a run, kill it at most as often as there are kills, and let it end."""
        folder = self.scratch / f"{self.job.name}-{self.report.runs}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.truth.base, folder)
        self.report.runs += 1
        work = Work()
        for kill in itertools.chain(kills, [Kill()]):
            state = self._attempt(folder, kill, work)
            if state != "killed":
                break
        flaws = self.truth.differences(folder) if state == "finished" else [state]
        self.report.lost += work.total() - self.truth.units
        self.report.flaws += [f"run {self.report.runs}: {flaw}" for flaw in flaws]
        if not flaws:
            shutil.rmtree(folder)

    def _attempt(self, folder: Path, kill: Kill, work: Work) -> str:
        resumed = self.report.kills > self.report.resumes
        try:
            safe = self.job.safe(folder)
        except DreamlibError as error:
            return f"nothing to go on with: {error}"
        outcome = attempt(lambda: self.job.work(folder, work), folder, kill)
        self.report.resumes += resumed
        first = work.first()
        if None not in (safe, first) and first != safe:
            self.report.flaws.append(f"it went on with {first}, while {safe} were safe")
        if outcome.state == "killed":
            self.report.kills += 1
            self.report.died += [outcome.died] if outcome.died else []
        return outcome.state


def random_kills(
    truth: Truth, count: int, per_run: int, rng: random.Random, scratch: Path
) -> Report:
    """`count` kills at random instants, about `per_run` to a run."""
    killing = Killing(truth, scratch)
    report, points = killing.report, Counter(call.point for call in truth.calls)
    longest = truth.startup + 0.05 + 2 * truth.seconds / per_run

    def kills() -> Iterator[Kill]:
        while report.kills < count:
            if rng.random() < 0.5:
                yield Kill(rng.uniform(0, longest))
                continue
            point = rng.choice(sorted(points))
            number = rng.randint(1, math.ceil(2 * points[point] / per_run))
            when, linger = rng.choice(["before", "half", "after"]), rng.choice([0.0, 0.1])
            yield Kill(2 * longest, number, point, when=when, linger=linger)

    while report.kills < count and not report.flaws:
        killing.run(kills())
    return report


class Every(NamedTuple):
    """Some calls of a job, to be killed at every one."""

    job: Job
    choose: Callable[[Sequence[Call]], list[Call]]
    thread: str
    linger: float = 0.0


def every_call(truth: Truth, what: Every, scratch: Path) -> Report:
    """Kill before and in each of some calls, the first ones of a thread, and after the last.

    After any other call is before the next one.
    """
    killing, calls = Killing(truth, scratch), what.choose(truth.calls)
    report = killing.report
    report.name = f"every call of a {what.job.name}"
    report.calls = [f"{kind} {path}" for kind, path, _ in calls]
    for number, call in enumerate(calls, 1):
        half = ["half"] if call.kind == "write" else []
        for when in ("before", *half, *(["after"] if number == len(calls) else [])):
            kill = Kill(number=number, thread=what.thread, when=when, linger=what.linger)
            killing.run([kill])
            if report.died[-1:] != [f"{when} {call.kind} {call.path}"]:
                report.flaws.append(f"not killed {when} {call}, but {report.died[-1:]}")
        if report.flaws:
            break
    return report


def one_save(calls: Sequence[Call]) -> list[Call]:
    """The calls of the saver's thread in its first save, which ends with a note of it."""
    saver = [call for call in calls if call.thread == SAVER]
    ends = [i for i, call in enumerate(saver) if call[:2] == ("fsync", f"{OURS}/events.jsonl")]
    return saver[: ends[0] + 1]


def main_thread(calls: Sequence[Call]) -> list[Call]:
    return [call for call in calls if call.thread == MAIN]


# ---------------------------------------------------------------------- the script


def reports(args: argparse.Namespace, scratch: Path) -> Iterator[Report]:
    rng, few = random.Random(args.seed), max(1, args.kills // 5)
    for kind in args.kinds:
        if kind == "training":
            truth = Truth(training(max(24, 4 * args.kills)), scratch)
            yield random_kills(truth, args.kills, args.kills, rng, scratch)
        elif kind in EVERY:
            what = EVERY[kind]
            yield every_call(Truth(what.job, scratch), what, scratch)
        else:
            truth = Truth(OTHERS[kind](), scratch)
            yield random_kills(truth, few, 5, rng, scratch)


EVERY = {
    what.job.name: what
    for what in (
        Every(training(2, name="first save"), one_save, SAVER),
        Every(training(4, 3, "fourth save"), one_save, SAVER),
        Every(training(4, 4, "resume", cut=True), main_thread, MAIN, linger=0.1),
        Every(packing_job(3 * SAFE_EVERY, "small packing"), main_thread, MAIN),
        Every(generation(20, "small generation"), main_thread, MAIN),
    )
}
OTHERS = {
    "packing": packing_job,
    "generation": generation,
    "evaluation": evaluation,
    "gan": gan_training,
}
KINDS = ["training", *OTHERS, *EVERY]


def warm_up() -> None:
    """What torch does at a first use, done here for all children; no thread begins."""
    torch.set_num_threads(1)
    Image.preinit()  # PNG's module, as torch._dynamo above
    file = io.BytesIO()
    torch.save({"x": torch.zeros(1)}, file)
    torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    with torch.inference_mode():
        net = make_net(load_config("faces16", DIFFUSION), 3)
        net(torch.zeros(6, 3, 16, 16), torch.zeros(6, dtype=torch.int64))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kinds", nargs="*", default=KINDS, help=f"of {KINDS}; all of them")
    parser.add_argument("--kills", type=int, default=100, help="of training; a fifth of others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="a scratch folder that is kept")
    parser.add_argument("--report", type=Path, help="where to write everything as JSON")
    args = parser.parse_args()
    warm_up()
    logging.getLogger("dreamlib").setLevel(logging.ERROR)  # cut-short saves are no news here
    found = []
    with tempfile.TemporaryDirectory(prefix="kill-") as temporary:
        for report in reports(args, args.folder or Path(temporary)):
            found.append(report)
            sys.stdout.write(report.line() + "\n" + "".join(f"  {f}\n" for f in report.flaws))
            sys.stdout.flush()
    if args.report:
        args.report.write_text(json.dumps([asdict(report) for report in found]))
    return int(any(report.flaws for report in found))


if __name__ == "__main__":
    sys.exit(main())
