"""Machines that die young: how much of a training is done twice, by where its copies go.

    python -m benchmarks.short_lives --out runs/short_lives

A tiny run trains on a machine whose process and disk are destroyed again and again; the next one
knows only the mirror.  A life of 40 seconds stands for one of 40 minutes, so that every period of
dreamlib's is a sixtieth here (but not what a copy costs: that is real, and at most a twentieth).
Its last machine ends the run; its weights must be those of a run that nobody disturbed.  `folder`
is this machine's own disk, `fuse` an `rclone mount` that writes back late, `s3` moto's server,
`webdav` wsgidav, `sftp` OpenSSH; `30 minutes` has the period that dreamlib once had, every 10
minutes saved and every 30 copied, to `s3`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.timing import machine
from dreamlib.runs.folder import RunDir
from dreamlib.utils.files import read_json, write_json
from tests.conftest import TINY
from tests.stand_ins import servers

JSON = Path(__file__).with_suffix(".json")
LIFE, SCALE = 40.0, 60.0  # seconds that stand for so many minutes
TRAIN = """
import sys
from dreamlib.runs.mirror import uploader
from dreamlib.training import loop
scale = {scale}
loop.CLOSEST = uploader.CLOSEST = uploader.CLOSEST / scale
uploader.GLANCE /= scale
if {old}:
    uploader.Uploader._every = lambda self: 1800 / scale
    loop.TrainingLoop._mirror_waits = lambda self: False
from dreamlib.cli.main import main
main()
"""


@contextmanager
def fuse(folder: Path) -> Iterator[servers.Reached]:
    """`rclone mount` of a folder: five seconds pass between a file and its upload (scaled)."""
    point, store = folder / "mnt", folder / "store"
    for path in (point, store):
        path.mkdir(parents=True)
    late = ["--vfs-cache-mode", "writes", "--vfs-write-back", f"{5 / SCALE}s"]
    command = ["rclone", "mount", str(store), str(point), *late, "--dir-cache-time", "1s"]
    env = os.environ | {"RCLONE_CACHE_DIR": str(folder / "cache"), "RCLONE_CONFIG": os.devnull}
    process = subprocess.Popen(command, env=env)
    try:
        while not os.path.ismount(point):
            time.sleep(0.1)
        yield str(point / "dreamlib"), {}
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(point)], check=False)
        process.kill()


@contextmanager
def folder(place: Path) -> Iterator[servers.Reached]:
    place.mkdir(parents=True)
    yield str(place / "dreamlib"), {}


STORES: dict[str, Any] = {
    "folder": folder,
    "fuse": fuse,
    "s3": lambda place: servers.s3(),
    "webdav": servers.webdav,
    "sftp": servers.sftp,
    "30 minutes": lambda place: servers.s3(),
}
LOGGED = ["train.log_every=1"]  # so that it is known how far a life came
OLD = "30 minutes"


def begin(run: Path, steps: int, mirror: str, env: dict[str, str]) -> Any:
    """A machine that trains, and when it has come to that (its banner) -> process, step."""
    old = OLD in str(run)
    settings = [*TINY, f"train.length={steps}", f"train.save_minutes={10 / SCALE}", *LOGGED]
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-u", "-c", TRAIN.format(scale=SCALE, old=old), "train", str(run)]
    process = subprocess.Popen(
        [*command, "--preset", "faces16", "--mirror", mirror, "--take-over", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = ""
    for line in process.stdout:
        said += line
        if "FRESH START" in line or "FINISHED" in line:
            return process, 0
        if match := re.search(r"RESUMED at step ([\d,]+)", line):
            return process, int(match[1].replace(",", ""))
    raise SystemExit(said)


def reached(run: Path) -> int:
    return RunDir(run).read_log()[-1]["step"]


def sha256(run: Path) -> str:
    return hashlib.sha256((run / "weights/ema.safetensors").read_bytes()).hexdigest()


def lives(name: str, out: Path, steps: int, data: Path, most: int) -> dict[str, Any]:
    """One training on machines that die young -> what was done twice."""
    run, place = out / name / "run", out / name / "store"
    shutil.rmtree(out / name, ignore_errors=True)
    (out / name).mkdir(parents=True)
    taken, twice, seen, died = 0, 0, 0, 0
    with ExitStack() as stack:
        mirror, env = stack.enter_context(STORES[name](place))
        env = env | {"DREAMLIB_DATA": str(data)}
        while True:
            process, step = begin(run, steps, mirror, env)
            twice += seen - step
            try:
                process.communicate(timeout=LIFE if died < most else None)
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
            died, seen = died + 1, reached(run)
            taken += seen - step
            shutil.rmtree(run)
    taken += reached(run) - step
    return {"store": name, "died": died, "taken": taken, "twice": twice, "sha256": sha256(run)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/short_lives"))
    parser.add_argument("--stores", nargs="*", default=list(STORES), choices=list(STORES))
    parser.add_argument("--lives", type=int, default=20)
    parser.add_argument("--steps", type=int, default=45_000, help="of the whole training")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    out, data = options.out.absolute(), options.out.absolute() / "data"
    whole = out / f"whole-{options.steps}"
    process, _ = begin(whole, options.steps, "none", {"DREAMLIB_DATA": str(data)})
    process.communicate()
    for name in options.stores:
        row = lives(name, out, options.steps, data, options.lives)
        row["equal"] = row.pop("sha256") == sha256(whole)
        row["share"] = row["twice"] / row["taken"]
        known = read_json(JSON)["rows"] if JSON.exists() else []
        rows = [old for old in known if old["store"] != name] + [row]
        write_json(JSON, {"life": LIFE, "machine": machine(), "rows": rows})
        print(row, flush=True)


if __name__ == "__main__":
    main()
