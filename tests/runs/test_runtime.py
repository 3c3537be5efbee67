"""Checkpoints, locks, logs, clocks and memory: what a crash or a small machine can do to them."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import signal
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch

from dreamlib.runs import checkpoints as checkpoint_module
from dreamlib.runs import time_budget as clock_module
from dreamlib.runs.checkpoints import newest_checkpoint, save_checkpoint, whole_checkpoints
from dreamlib.runs.folder import RunDir
from dreamlib.runs.time_budget import NAMES, Clock, StopFlag, process_age
from dreamlib.training.base import MicroBatch
from dreamlib.utils.errors import CheckpointError, RunError
from dreamlib.utils.files import (
    plain_name,
    read_json,
    read_npy,
    read_npz,
    seal,
    sha256_file,
    write_atomic,
    write_json,
    write_npy,
)

FACTS = {"config": "c", "data": "d"}


def save(folder, step):
    return save_checkpoint(folder, step, {"step": step, "w": torch.full((50,), step)}, FACTS)


# ---------------------------------------------------------------------- files


def test_a_plain_name_is_one_component_of_a_path_on_every_system():
    for name in ("faces-16-1a2b3c4d", "a b", "$5", "...", ".brought", "ein Bär"):
        assert plain_name(name) == name
    paths = ("/", "/etc", "a/b", "../b", "a/", "a\\b", "C:", "C:b", "a\0")
    for name in ("", ".", "..", *paths, 3, None):
        with pytest.raises(ValueError, match="no plain name"):
            plain_name(name)


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def torn(file):
        file.write(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, torn)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@contextmanager
def full_disk(size):
    """This process can write no file beyond so many bytes: its own report neither, so not long."""
    resource = pytest.importorskip("resource")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, heard)


@pytest.mark.parametrize("size", [150, 4_500, 9_900])
def test_an_array_that_does_not_fit_on_the_disk_is_no_file(tmp_path, size):
    """numpy's own writer loses the error of the last block, and the file would be vouched for."""
    with full_disk(size), pytest.raises(OSError, match="File too large"):
        write_npy(tmp_path / "a.npy", np.arange(10_000, dtype=np.uint8))
    assert os.listdir(tmp_path) == []


def test_an_arrays_hash_is_that_of_its_file(tmp_path):
    path, array = tmp_path / "a.npy", np.arange(12.0).reshape(3, 4)[:, ::2]
    assert write_npy(path, array) == sha256_file(path)
    np.testing.assert_array_equal(read_npy(path), array)
    np.testing.assert_array_equal(np.load(path), array)
    for data in (b"", b"PK\x03\x04", path.read_bytes()[:-1], b"no array"):
        path.write_bytes(data)
        assert read_npy(path) is None
    assert read_npz(path) == read_npz(tmp_path / "absent") == {}


def test_write_order_is_write_fsync_rename_fsync_folder(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def spy(*args, name=name, original=original):
            kind = "folder" if name == "fsync" and os.path.isdir(f"/proc/self/fd/{args[0]}") else ""
            calls.append(f"{name} {kind}".strip())
            return original(*args)

        monkeypatch.setattr(os, name, spy)
    save(tmp_path, 3)
    once = ["fsync", "replace", "fsync folder"]
    assert calls == once + once  # the data, whole, before its manifest


# ---------------------------------------------------------------------- checkpoints


def test_round_trip_and_only_three_are_kept(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"step-{s:08d}.{kind}" for s in (3, 4, 5) for kind in ("json", "pt")]
    newest = newest_checkpoint(tmp_path)
    assert newest.step == 5
    assert torch.equal(newest.load()["w"], torch.full((50,), 5))
    assert newest.manifest["config"] == "c"


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def forge(path, **facts):
    """Change facts in a checkpoint's manifest, and seal it again."""
    manifest = read_json(path.with_suffix(".json")) | facts
    del manifest["seal"]
    write_json(path.with_suffix(".json"), seal(manifest))


def take_from_another(path, *kinds):
    for kind in kinds:
        path.with_suffix(kind).write_bytes(path.with_name(f"step-00000001{kind}").read_bytes())


def alter_manifest(path):
    path = path.with_suffix(".json")
    write_json(path, read_json(path) | {"config": "another"})


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "bit": flip_a_bit,
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "manifest missing": lambda path: path.with_suffix(".json").unlink(),
    "manifest torn": lambda path: path.with_suffix(".json").write_text('{"format": 1, "st'),
    "manifest of another": lambda path: take_from_another(path, ".json"),
    "manifest altered": alter_manifest,
    "both of another": lambda path: take_from_another(path, ".json", ".pt"),
    "odd time": lambda path: forge(path, time="now"),
    "odd settings": lambda path: forge(path, settings=1),
    "odd where": lambda path: forge(path, where=[1]),
    "odd data": lambda path: forge(path, data=1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_good_generation_is_taken(tmp_path, damage, caplog):
    save(tmp_path, 1)
    path = save(tmp_path, 2).path
    DAMAGES[damage](path)
    newest = newest_checkpoint(tmp_path)
    assert newest.step == 1
    assert newest.load()["step"] == 1
    assert "passing over step-00000002.pt" in caplog.text


@pytest.mark.parametrize("call", ["read_json", "sha256_file"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENOTCONN])
def test_what_cannot_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch, call, number):
    """An older generation would be continued, and the newer one deleted."""
    for step in (1, 2):
        save(tmp_path, step)
    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module.files, call, failing(number))
        with pytest.raises(RunError, match=r"step-00000002.* cannot be read .*make it readable"):
            newest_checkpoint(tmp_path)
        with pytest.raises(RunError, match="cannot be read"):
            whole_checkpoints(tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    assert newest_checkpoint(tmp_path).step == 2


def failing(number):
    def fail(path, *args, **more):
        raise OSError(number, os.strerror(number), str(path))

    return fail


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint_module.os, "listdir", failing(errno.EACCES))
    with pytest.raises(RunError, match=r"cannot be read .Permission denied"):
        newest_checkpoint(tmp_path)


def test_a_disk_that_fails_while_the_state_is_read_is_no_foreign_file(tmp_path, monkeypatch):
    checkpoint = save(tmp_path, 1)
    monkeypatch.setattr(checkpoint_module.torch, "load", failing(errno.EIO))
    with pytest.raises(RunError, match=r"cannot be read .Input/output error"):
        checkpoint.load()


def test_the_step_inside_is_the_manifests(tmp_path):
    found = save_checkpoint(tmp_path, 7, {"step": 3}, FACTS)
    with pytest.raises(CheckpointError, match="it holds step 3, its manifest says 7"):
        found.load()


def test_a_checkpoint_of_another_version_is_refused_and_not_passed_over(tmp_path):
    save(tmp_path, 1)
    forge(save(tmp_path, 2).path, format=99)
    with pytest.raises(CheckpointError, match=r"has format 99, .* reads 2: continue with the"):
        newest_checkpoint(tmp_path)


def test_a_good_checkpoint_is_not_written_over_and_a_damaged_one_is(tmp_path):
    path = save(tmp_path, 1).path
    before = path.stat().st_ino
    save(tmp_path, 1)
    assert path.stat().st_ino == before
    flip_a_bit(path)
    save(tmp_path, 1)
    assert newest_checkpoint(tmp_path).load()["step"] == 1


def test_nothing_intact_is_an_error_and_not_a_fresh_start(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    flip_a_bit(save(tmp_path, 1).path)
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        newest_checkpoint(tmp_path)


def test_a_pickle_bomb_is_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    data, path = pickle.dumps(Bomb()), save(tmp_path, 1).path
    path.write_bytes(data)
    forge(path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        newest_checkpoint(tmp_path).load()
    assert not (tmp_path / "exploded").exists()


# ---------------------------------------------------------------------- run folder


def test_log_survives_a_torn_line_and_is_cut(tmp_path):
    run = RunDir(tmp_path)
    for step in (4, 8, 12):
        run.append_log({"step": step})
    with open(run.log, "a") as file:
        file.write('{"step": 1')
    assert [row["step"] for row in run.read_log()] == [4, 8, 12]
    run.cut_log(8)
    run.append_log({"step": 12, "again": True})
    assert run.read_log() == [{"step": 4}, {"step": 8}, {"step": 12, "again": True}]


def test_a_runs_name_is_its_own_folders(tmp_path, monkeypatch):
    (tmp_path / "runs" / "two" / "samples").mkdir(parents=True)
    (tmp_path / "runs" / "latest").symlink_to("two")
    monkeypatch.chdir(tmp_path / "runs" / "two" / "samples")
    runs = tmp_path / "runs"
    for path in ("..", "../.", "../samples/..", runs / "latest", runs / "two"):
        assert RunDir(path).name == "two", path
    assert RunDir(".").name == "samples"
    with pytest.raises(RunError, match=r"/ cannot be a run folder .*: name another one"):
        assert RunDir("/").name


@pytest.mark.parametrize(
    "name", ["lock", "events.jsonl", "log.jsonl", "checkpoints", "samples", "figures", "data.json"]
)
def test_a_part_of_a_run_that_is_a_link_is_refused(tmp_path, name):
    run, kept = RunDir(tmp_path / "run"), tmp_path / "thesis.txt"
    run.create()
    kept.write_text("years of work")
    (run.folder / name).symlink_to(kept)
    with pytest.raises(RunError, match=rf"{name} is a symbolic link, and a run is read"):
        run.check_writable()
    for write in (lambda: run.note("event"), lambda: run.append_log({"step": 1})):
        with suppress(OSError):
            write()
    assert kept.read_text() == "years of work"
    (tmp_path / "link").symlink_to(tmp_path / "other")
    RunDir(tmp_path / "link").check_writable()  # the whole folder may be one


@pytest.mark.parametrize(
    "odd", [{"step": "2"}, {"step": None}, {"total": "8"}, {"saved": [1]}, {"time": "now"}]
)
def test_an_odd_status_is_one_sentence(tmp_path, odd):
    run = RunDir(tmp_path)
    run.set_status("running", step=1)
    write_json(tmp_path / "status.json", run.status() | odd)
    with pytest.raises(RunError, match=r"status.json is damaged \(its \w+ is odd\): delete it"):
        run.status()


def test_an_unwritable_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write in the run folder"):
        RunDir(tmp_path / "file" / "run").check_writable()


# ---------------------------------------------------------------------- clock


def test_the_deadline_leaves_room_for_the_last_save(monkeypatch):
    age = [0.0]
    monkeypatch.setattr(clock_module, "process_age", lambda: age[0])
    clock = Clock(hours=1.0, save_minutes=10, reserve=100, cost=20)
    age[0] = 3600 - 100 - 5 - 40 - 1
    assert not clock.over()
    age[0] += 2
    assert clock.over()
    assert not Clock(hours=None, save_minutes=10, reserve=100).over()


def test_saves_are_due_by_the_clock():
    clock = Clock(hours=None, save_minutes=1e-4)
    time.sleep(0.02)
    assert clock.save_due()
    clock.reset()
    assert not clock.save_due()


def test_process_age_counts_from_the_process_start():
    before, first, between = time.monotonic(), process_age(), time.monotonic()
    assert 0 < first < 24 * 3600
    time.sleep(0.05)
    meanwhile, second, after = time.monotonic(), process_age(), time.monotonic()
    # A busy machine makes every one of these late; the system counts in hundredths of a second.
    assert meanwhile - between - 0.02 <= second - first <= after - before + 0.02


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("name", NAMES)
def test_signals_set_a_flag_and_the_old_handler_comes_back(name):
    """A closed terminal and a batch system's warning are as polite as SIGTERM."""
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with StopFlag().listening() as stop:
        assert not stop
        signal.raise_signal(number)
        assert stop.reason == name
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    """Under nohup a closed terminal is no reason to stop."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopFlag().listening() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# ---------------------------------------------------------------------- memory


def test_out_of_memory_halves_and_redoes_the_step():
    sizes, changed = [], []

    def work(size):
        sizes.append(size)
        if size > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return "done"

    micro = MicroBatch(16, changed.append)
    assert micro.redo_smaller(work) == "done"
    assert sizes == [16, 8, 4, 2]
    assert micro.size == 2
    assert changed == [8, 4, 2]


def test_other_errors_pass_and_one_image_is_the_end():
    def failing_with(words):
        def work(size):
            raise RuntimeError(words)

        return work

    micro = MicroBatch(8, lambda size: None)
    with pytest.raises(RuntimeError, match="shapes"):
        micro.redo_smaller(failing_with("shapes differ"))
    assert micro.size == 8
    with pytest.raises(RunError, match=r"smaller network"):
        micro.redo_smaller(failing_with("out of memory"))
