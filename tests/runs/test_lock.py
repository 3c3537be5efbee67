"""One trainer per run: on this host by a lock, across hosts by a heartbeat on the mirror."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dreamlib.cli.main import UNFINISHED
from dreamlib.runs import lock as module
from dreamlib.runs.folder import RunDir
from dreamlib.runs.lock import Owner, alive, describe, locked, myself, read_owner
from dreamlib.runs.time_budget import process_start
from dreamlib.utils.errors import RunError
from dreamlib.utils.files import PLACE, read_json, write_json
from tests.conftest import TINY, within

HOLDER = """
import sys
from pathlib import Path
from dreamlib.runs.lock import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


class Clock:
    """Time that passes while somebody sleeps, and only then: no machine is too slow for a test."""

    localtime, strftime = staticmethod(time.localtime), staticmethod(time.strftime)

    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    words = [sys.executable, "-c", HOLDER, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def dead(boot: str | None = None) -> dict[str, Any]:
    """An owner that lives no more: its pid is ours, but began at another time."""
    me = myself()
    return me | {"start": me["start"] - 1} | ({"boot": boot} if boot else {})


# ---------------------------------------------------------------------- on this host


def test_a_second_process_is_refused_and_after_a_kill_takes_over_at_once(
    path: Path, holder: subprocess.Popen[str], clock: Clock
) -> None:
    before, said = path.read_bytes(), []
    expected = rf"is being trained by another process \(pid {holder.pid} on .*--take-over$"
    with pytest.raises(RunError, match=expected) as error, locked(path):
        pass
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before
    assert alive(read_owner(path)) is True
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert alive(read_owner(path)) is False
    begun = clock.now
    with locked(path, say=said.append) as lock:
        assert clock.now == begun
        assert lock.held()
        assert read_owner(path)["pid"] == os.getpid()
    (line,) = said
    assert line.startswith(f"the former owner of {path.parent} (pid {holder.pid} on ")
    assert line.endswith("is gone: taking over")


def test_what_a_beat_that_failed_left_is_swept(path: Path) -> None:
    left = path.with_name(f".{path.name}.{PLACE}.1.{2**30}.tmp")
    left.write_text("{")
    Owner(path).claim(take_over=False)
    assert not left.exists()


def test_an_owner_that_ended_leaves_nothing_to_say(path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        with locked(path, say=said.append) as lock:
            assert lock.held()
        assert read_owner(path) == {}
    assert said == []


def test_a_living_owner_is_replaced_by_force_and_notices(path: Path) -> None:
    with locked(path) as former:
        assert former.held()
        with locked(path, take_over=True, say=lambda text: None) as new:
            assert new.held()
            assert not former.held()
            with pytest.raises(RunError, match="another process"), locked(path):
                pass
        assert not former.held()


def test_a_lock_whose_file_was_deleted_is_not_held(path: Path) -> None:
    with locked(path) as lock:
        path.unlink()
        assert not lock.held()


def test_a_link_in_its_place_is_refused_and_what_it_leads_to_is_left_alone(path: Path) -> None:
    kept = path.with_name("thesis.txt")
    kept.write_text("years of work")
    path.symlink_to(kept)
    with pytest.raises(RunError, match=r"cannot be opened .*: it must be a plain"), locked(path):
        pass
    assert kept.read_text() == "years of work"


def test_a_lock_that_cannot_be_let_go_hides_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: object, owner: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    def work() -> None:
        with locked(path):
            monkeypatch.setattr(module, "_write", fail)
            raise RunError("the disk is full; step 4 is saved and whole")

    with pytest.raises(RunError, match="step 4 is saved"):
        work()


ODD = [{"pid": "1"}, {"token": 1}, {"time": "now"}, {"ousted": 1}, {"time": 1e300}, {"pid": None}]


@pytest.mark.parametrize("odd", ODD)
def test_odd_fields_of_an_owner_are_no_obstacle(path: Path, odd: dict[str, Any]) -> None:
    owner, _, _ = claim(path, elsewhere() | myself() | odd)
    assert_owned(path, owner)
    write_json(path, elsewhere() | odd)
    owner.lease_lost()


@pytest.mark.parametrize("text", ["", '{"token": "th', "\x00\x00", "[1]", "null"])
def test_a_damaged_file_of_either_kind_is_no_obstacle(path: Path, text: str) -> None:
    path.write_text(text)
    with locked(path) as lock:
        assert lock.held()
        assert read_owner(path)["token"]
    path.write_text(text)
    owner = Owner(path, stale=60)
    owner.claim(take_over=False)
    assert_owned(path, owner)
    path.write_text(text)
    assert owner.lease_lost() == ""
    owner.beat()
    assert_owned(path, owner)


OWNERS: dict[str, tuple[Callable[[], dict[str, Any]], bool]] = {  # -> whether the run is free
    "alive": (myself, False),
    "dead": (dead, True),
    "another boot": (lambda: dead("another"), False),
    "no boot": (lambda: myself() | {"boot": ""}, False),
    "none": (dict, True),
}


@pytest.mark.parametrize("name", OWNERS)
def test_without_locks_the_former_owners_pulse_decides(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(file: object) -> bool:
        raise OSError("this file system has no locks")

    monkeypatch.setattr(module, "try_lock", refuse)
    owner, free = OWNERS[name]
    write_json(path, owner())
    if not free:
        with pytest.raises(RunError, match="--take-over"), locked(path):
            pass
    with locked(path, take_over=not free, say=lambda text: None) as lock:
        assert lock.held()
        assert read_owner(path)["pid"] == os.getpid()


# ---------------------------------------------------------------------- across hosts


def elsewhere(beats: int = 7, age: float = 0.0, **more: Any) -> dict[str, Any]:
    """What another machine wrote into owner.json `age` seconds ago."""
    facts = {"pid": 1, "host": "colab", "boot": "another", "start": 5, "token": "theirs"}
    return facts | {"began": "today", "beats": beats, "time": module.time.time() - age} | more


def claim(path: Path, other: Any, **options: Any) -> tuple[Owner, list[str], float]:
    """Claim a run that `other` owns -> the new owner, what it said, and how long it took."""
    write_json(path, other)
    owner, said, begun = Owner(path, stale=30, poll=2, watch=6), [], module.time.monotonic()
    within(owner.claim, say=said.append, **{"take_over": False} | options)
    return owner, said, module.time.monotonic() - begun


def assert_owned(path: Path, owner: Owner) -> None:
    found = read_json(path)
    assert (found["token"], found["beats"]) == (owner.me["token"], owner.beats)
    assert owner.beats > 0
    assert owner.lease_lost() == ""


@pytest.mark.parametrize(("then", "naps"), [({"beats": 8}, 3), ({"token": "a third"}, 1)])
def test_a_heart_that_beats_elsewhere_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, then: dict[str, Any], naps: int
) -> None:
    slept: list[float] = []

    def nap(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == naps:
            write_json(path, elsewhere(**then))

    monkeypatch.setattr(module.time, "sleep", nap)
    with pytest.raises(RunError, match=r"trained elsewhere \(pid 1 on colab.*heart beats: .*stop"):
        claim(path, elsewhere())
    assert slept == [2] * naps
    assert read_json(path) == elsewhere(**then)


@pytest.mark.parametrize(("age", "wait"), [(0, 30), (21, 9), (900, 6), (-3600, 30)])
def test_a_heart_that_stands_still_is_outlived(path: Path, age: float, wait: float) -> None:
    """A clock that is ahead elsewhere delays nothing."""
    owner, said, took = claim(path, elsewhere(age=age))
    assert took == wait
    assert said[-1].startswith("the former owner (pid 1 on colab")
    assert any("Watching for" in text for text in said)
    assert_owned(path, owner)


def test_a_release_ends_the_watch(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module.time, "sleep", lambda seconds: write_json(path, elsewhere(released=True))
    )
    owner, _, took = claim(path, elsewhere())
    assert took == 0
    assert_owned(path, owner)


TAKEN: dict[str, tuple[Callable[[], Any], list[str]]] = {  # -> what is said
    "released": (lambda: elsewhere(released=True), []),
    "dead here": (lambda: dead() | elsewhere() | dead(), ["is gone"]),
    # Its mirror failed before it could sign off; the next cell of the notebook trains again.
    "this very process": (lambda: elsewhere() | myself(), []),
    "empty": (dict, []),
    "a list": (lambda: [1], []),
}


@pytest.mark.parametrize("name", TAKEN)
def test_taken_at_once(path: Path, name: str) -> None:
    other, says = TAKEN[name]
    owner, said, took = claim(path, other())
    assert took == 0
    assert len(said) == len(says)
    assert all(words in text for words, text in zip(says, said))
    assert_owned(path, owner)


def test_taken_by_force_at_once(path: Path) -> None:
    owner, said, took = claim(path, elsewhere(), take_over=True)
    assert (said, took) == ([], 0)
    assert_owned(path, owner)


def test_a_living_process_here_is_refused_at_once(path: Path, clock: Clock) -> None:
    begun, pid = clock.now, os.getppid()
    parent = {"pid": pid, "start": process_start(pid)}
    with pytest.raises(RunError, match=rf"pid {pid} on .*: stop it there"):
        claim(path, elsewhere() | myself() | parent)
    assert clock.now == begun


def test_an_owner_file_without_its_fields_is_no_crash(path: Path) -> None:
    owner, _, _ = claim(path, {"token": "theirs"})
    assert_owned(path, owner)


def test_another_owner_is_noticed_and_not_released(path: Path) -> None:
    owner, _, _ = claim(path, {})
    owner.beat()
    assert owner.beats == 2
    write_json(path, elsewhere())
    assert owner.lease_lost().startswith("pid 1 on colab")
    owner.release()
    assert read_json(path)["token"] == "theirs"


def test_a_heartbeat_that_crosses_a_takeover_does_not_undo_it(path: Path) -> None:
    """Who is replaced looks, and then writes: a claim in between is written over."""
    former, new = Owner(path), Owner(path)
    former.claim(take_over=False)
    assert former.lease_lost() == ""
    new.claim(take_over=True)
    former.beat()
    assert read_owner(path)["token"] == former.me["token"]
    assert new.lease_lost() == ""
    new.beat()
    assert former.lease_lost() == describe(new.me)
    third = Owner(path)
    third.claim(take_over=True)
    assert new.lease_lost() == describe(third.me)


def test_of_claims_that_crossed_one_stays(path: Path) -> None:
    """Neither saw the other's claim before its own: the mirror shows late what was written."""
    owners = [Owner(path), Owner(path)]
    records = []
    for owner in owners:
        path.unlink(missing_ok=True)
        owner.claim(take_over=False)
        records.append(read_json(path))
    told = []
    for owner, seen in zip(owners, records[::-1]):
        write_json(path, seen)
        told.append(owner.lease_lost())
    assert sum(map(bool, told)) == 1
    kept = owners[told.index("")]
    third = Owner(path)
    write_json(path, kept.me | {"ousted": kept.ousted, "beats": 1})
    third.claim(take_over=True)
    for owner in owners:  # who is taken from knows it, whatever its token
        assert (owner is kept) == bool(owner.me["token"] in third.ousted)
    assert kept.lease_lost()


def test_what_was_released_is_free(path: Path) -> None:
    owner, _, _ = claim(path, {})
    owner.release()
    assert read_json(path)["released"]
    next_owner, said, took = claim(path, read_json(path))
    assert (said, took) == ([], 0)
    assert_owned(path, next_owner)
    assert str(os.getpid()) in owner.lease_lost()


# ---------------------------------------------------------------------- the command line


def start(folder: Path, data_home: Path, *more: str) -> subprocess.Popen[str]:
    settings = [*TINY, "train.length=100000", "train.save_minutes=0.0005"]
    words = ["train", str(folder), "--preset", "faces16", *more]
    words += [word for setting in settings for word in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, "-m", "dreamlib", *words],
        env=os.environ | {"DREAMLIB_DATA": str(data_home), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_a_step(process: subprocess.Popen[str], run: RunDir, step: int = 0) -> int:
    """Until a checkpoint beyond `step` is there -> its step."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        newest = max((int(p.stem[5:]) for p in run.checkpoints.glob("step-*.json")), default=0)
        if newest > step:
            return newest
        time.sleep(0.01)
    raise AssertionError(f"no step beyond {step}: {process.communicate(timeout=60)}")


@pytest.fixture
def training(tmp_path: Path, data_home: Path) -> Iterator[tuple[RunDir, Any, Any]]:
    """A run, a process that trains it, and begin(*words) -> another one."""
    run, begun = RunDir(tmp_path / "run"), []

    def begin(*more: str) -> subprocess.Popen[str]:
        begun.append(start(run.folder, data_home, *more))
        return begun[-1]

    first = begin()
    wait_for_a_step(first, run)
    yield run, first, begin
    for process in begun:
        process.kill()
        process.communicate()


def stopped(process: subprocess.Popen[str], run: RunDir) -> str:
    """What a process said until it was asked to stop, a step after the next one."""
    wait_for_a_step(process, run, wait_for_a_step(process, run))
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == UNFINISHED
    return out


@pytest.mark.slow
def test_two_commands_on_one_run(training: tuple[RunDir, Any, Any]) -> None:
    run, first, begin = training
    first.send_signal(signal.SIGSTOP)  # it holds the lock, and leaves the processor to the other
    refused = begin()
    _, err = refused.communicate(timeout=60)
    first.send_signal(signal.SIGCONT)
    assert refused.returncode == 2
    (line,) = err.splitlines()
    assert line.startswith(f"error: {run.folder} is being trained by another process (pid ")
    assert f"pid {first.pid} on" in line
    wait_for_a_step(first, run, wait_for_a_step(first, run))
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = begin()
    out = stopped(second, run)
    assert f"(pid {first.pid} on" in out
    assert "is gone: taking over" in out
    assert "RESUMED at step" in out


@pytest.mark.slow
def test_a_command_that_takes_over_stops_the_other_without_harm(
    training: tuple[RunDir, Any, Any],
) -> None:
    run, first, begin = training
    second = begin("--take-over")
    _, err = first.communicate(timeout=60)
    assert first.returncode == 2
    (line,) = err.splitlines()
    assert line == f"error: another process took {run.folder} over: this one saves no more"
    out = stopped(second, run)
    assert run.status()["state"] == "interrupted"
    assert f"PAUSED at step {run.status()['saved']:,} of" in out
