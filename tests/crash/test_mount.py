"""Real mounts: a FUSE mount that uploads late and dies, and disks that are full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamlib.runs.checkpoints import newest_checkpoint
from dreamlib.runs.folder import RunDir
from dreamlib.runs.mirror.store import Generation, Mirror
from dreamlib.utils.files import sha256_file
from tests.conftest import TINY
from tests.stand_ins.servers import free_port
from tests.training.test_train import assert_same_state

SETTINGS = [*TINY, "train.save_minutes=0.01", "train.mirror_minutes=0.02"]


def need(condition: bool, reason: str) -> None:
    if not condition:
        pytest.skip(reason)


def train(folder: Path, data_home: Path, *more: str, steps: int = 300) -> subprocess.Popen:
    settings = [*SETTINGS, f"train.length={steps}"]
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-u", "-m", "dreamlib", "train", str(folder), "--preset", "faces16"]
    return subprocess.Popen(
        [*command, *words, *more],
        env=os.environ | {"DREAMLIB_DATA": str(data_home), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    assert condition()


class Fuse:
    """`rclone mount` of a local folder, with its delayed write-back, as a stand-in for Drive."""

    def __init__(self, folder: Path):
        self.store, self.point, self.cache = (folder / n for n in ("store", "mnt", "cache"))
        for path in (self.store, self.point, self.cache):
            path.mkdir()
        self.process: subprocess.Popen | None = None

    def mount(self, *more: str) -> None:
        late = ["--vfs-cache-mode", "writes", "--vfs-write-back", "5s", "--dir-cache-time", "1s"]
        self.process = subprocess.Popen(
            ["rclone", "mount", str(self.store), str(self.point), *late, *more],
            env=os.environ | {"RCLONE_CACHE_DIR": str(self.cache), "RCLONE_CONFIG": os.devnull},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: os.path.ismount(self.point), 20)

    def kill(self) -> None:
        """As when Drive's client dies: every call answers 'Transport endpoint is not connected'."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def unmount(self) -> None:
        subprocess.run(["fusermount3", "-u", "-z", str(self.point)], check=False)


@pytest.fixture
def fuse(tmp_path) -> Iterator[Fuse]:
    need(bool(shutil.which("rclone") and shutil.which("fusermount3")), "no rclone or fusermount3")
    need(os.access("/dev/fuse", os.R_OK | os.W_OK), "no access to /dev/fuse")
    mounted = Fuse(tmp_path)
    try:
        mounted.mount()
        yield mounted
    finally:
        if mounted.process:
            mounted.kill()
        mounted.unmount()


class Lines:
    """What a process prints, while it prints it."""

    def __init__(self, process: subprocess.Popen):
        self.text, self.process = "", process
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.text += line

    def wait_for(self, part: str, seconds: float = 60.0) -> None:
        until = time.monotonic() + seconds
        while part not in self.text and time.monotonic() < until and self.thread.is_alive():
            time.sleep(0.02)
        assert part in self.text, self.text

    def end(self) -> int:
        self.thread.join(300)
        return self.process.wait(10)


def uploaded(store: Path) -> int:
    """The newest step of which a whole generation has really reached the store; -1 for none."""
    found = (x for x in Mirror(store / "dreamlib", "run").generations() if is_whole(x, store))
    return next((generation.step for generation in found), -1)


def is_whole(generation: Generation, store: Path) -> bool:
    paths = [(store / "dreamlib/runs/run" / e["name"], e) for e in generation.files.values()]
    return all(p.is_file() and sha256_file(p) == entry["sha256"] for p, entry in paths)


def steps_for(seconds: float, folder: Path, data_home: Path) -> int:
    """How many steps of the tiny run take about so long here."""
    process = train(folder, data_home, "--mirror", "none", steps=100)
    assert process.communicate(timeout=100)[0].endswith(f"finished: {folder}\n")
    rates = [row["images_per_s"] for row in RunDir(folder).read_log()]
    return int(seconds * sorted(rates)[len(rates) // 2] / 6)


@pytest.mark.slow
def test_training_outlives_its_mirror_which_catches_up_and_outlives_the_machine(
    tmp_path, data_home, fuse
):
    steps = steps_for(20, tmp_path / "speed", data_home)
    whole = Lines(train(tmp_path / "whole", data_home, "--mirror", "none", steps=steps))
    home, run = str(fuse.point / "dreamlib"), RunDir(tmp_path / "run")
    process = train(run.folder, data_home, "--mirror", home, steps=steps)
    lines = Lines(process)
    wait_for(lambda: uploaded(fuse.store) > 0)

    fuse.kill()  # Drive's client dies
    with pytest.raises(OSError, match="not connected"):
        os.listdir(fuse.point)
    lines.wait_for("MIRROR FAILS")
    at = newest_checkpoint(run.checkpoints).step
    wait_for(lambda: newest_checkpoint(run.checkpoints).step > at)  # training goes on
    fuse.unmount()
    assert not os.listdir(fuse.point)  # the empty mount point is not taken for the mirror
    fuse.mount()
    lines.wait_for("is back, and has everything")
    assert process.poll() is None, "training had ended before the mirror was back: no test"
    wait_for(lambda: uploaded(fuse.store) >= at)  # it has caught up, behind its delay

    process.kill()  # and then the machine is lost, with everything on it
    lines.end()
    shutil.rmtree(run.folder)
    fuse.kill()
    fuse.unmount()
    shutil.rmtree(fuse.cache)
    fuse.cache.mkdir()
    fuse.mount()
    again = Lines(train(run.folder, data_home, "--mirror", home, steps=steps))
    assert again.end() == 0, again.text
    assert "BROUGHT step" in again.text
    assert "RESUMED at step" in again.text
    assert f"mirror: step {steps:,} copied to {home}" in again.text, again.text
    assert whole.end() == 0, whole.text
    ours, theirs = (newest_checkpoint(tmp_path / n / "checkpoints") for n in ("run", "whole"))
    assert ours.step == theirs.step == steps
    assert_same_state(ours.load(), theirs.load())
    files = [tmp_path / n / "weights/ema.safetensors" for n in ("run", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


IMPATIENT = """
from dreamlib.runs.mirror import uploader
uploader.UNKNOWN, uploader.GLANCE = 15.0, 0.1  # longer than the mount delays its uploads
from dreamlib.cli.main import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("asked", [False, True])
def test_a_mount_that_takes_everything_and_delivers_nothing_is_named(
    tmp_path, data_home, fuse, asked
):
    """Its server is full: through the mount all is written and reads back well, and rclone itself
    reports no error, only a queue."""
    need(hasattr(os, "geteuid") and os.geteuid() == 0, "only root may mount a tmpfs")
    fuse.kill()
    fuse.unmount()
    full = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(fuse.store)]
    need(subprocess.run(full, capture_output=True).returncode == 0, "no tmpfs could be mounted")
    port = free_port()
    try:
        fuse.mount(*(["--rc", "--rc-no-auth", "--rc-addr", f"localhost:{port}"] if asked else []))
        settings = [*TINY, "train.save_minutes=0.01", "train.length=100000"]
        words = [word for setting in settings for word in ("--set", setting)]
        command = [sys.executable, "-u", "-c", IMPATIENT, "train", str(tmp_path / "run")]
        command += ["--preset", "faces16", "--mirror", str(fuse.point / "dreamlib"), *words]
        env = {"DREAMLIB_DATA": str(data_home), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command,
            env=os.environ | env | {"RCLONE_RC_ADDR": f"localhost:{port}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines = Lines(process)
        lines.wait_for("NOT KNOWN TO BE SAFE", 120)
        process.terminate()
        lines.end()
        assert ("still uploads" if asked else "nothing tells whether its server has") in lines.text
        assert ("too big for remaining disk space" if asked else "read-only?") in lines.text
        assert "name a second place too" in lines.text
        assert RunDir(tmp_path / "run").status()["upload"] == ("uploading" if asked else "unknown")
        assert "are free there" not in lines.text or "1,073,741,824" not in lines.text
    finally:
        fuse.kill()
        fuse.unmount()
        subprocess.run(["umount", "-l", str(fuse.store)], check=True)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A tmpfs with room for two generations of the tiny run (0.8 MiB each) and not for four."""
    need(hasattr(os, "geteuid") and os.geteuid() == 0, "only root may mount a tmpfs")
    point = tmp_path / "small"
    point.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(point)], capture_output=True
    )
    need(made.returncode == 0, "no tmpfs could be mounted")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


@pytest.mark.slow
def test_a_full_disk_stops_training_cleanly(small_disk, data_home):
    process = train(small_disk / "run", data_home)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 2, out
    assert "is full; step" in out
    assert "free some space, then run the same command or cell again" in out
    assert "Traceback" not in out
    run = RunDir(small_disk / "run")
    newest = newest_checkpoint(run.checkpoints)
    assert f"step {newest.step:,} is saved and whole" in out
    assert newest.load()["step"] == newest.step > 0
    assert not list(run.folder.rglob("*.tmp"))
    # room is made, and the same command goes on
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    again = train(small_disk / "run", data_home)
    out, _ = again.communicate(timeout=200)
    assert again.returncode == 0, out
    assert f"RESUMED at step {newest.step:,}" in out


@pytest.mark.slow
def test_a_full_mirror_does_not_stop_training(small_disk, tmp_path, data_home):
    """Room for packed images and one generation: older ones go, and training ends well."""
    process = train(tmp_path / "run", data_home, "--mirror", str(small_disk / "dreamlib"))
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    assert "finished" in out
    assert "Traceback" not in out
    held = list((small_disk / "dreamlib/runs/run").glob("manifest-*.json"))
    assert 1 <= len(held) <= 3
    shutil.rmtree(tmp_path / "run")
    again = train(tmp_path / "run", data_home, "--mirror", str(small_disk / "dreamlib"))
    out, _ = again.communicate(timeout=200)
    assert "BROUGHT step" in out
    assert again.returncode == 0, out


@pytest.mark.slow
def test_a_mirror_without_room_is_said_and_training_goes_on(small_disk, tmp_path, data_home):
    (small_disk / "ballast").write_bytes(bytes(int(2.7 * 2**20)))
    process = train(tmp_path / "run", data_home, "--mirror", str(small_disk / "dreamlib"))
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    assert "MIRROR FAILS" in out
    assert "it is full: free some space there, its trash included (errno 28)" in out
    assert "later: dreamlib run push" in out
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").step == 300
