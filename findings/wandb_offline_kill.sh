#!/bin/sh
# wandb 0.31.0, offline, seen on 2026-12-01, Linux, Python 3.11.
#
# Guess: offline, a row is in the run's file when log() has returned, or a second later.
# Seen: for about fifteen seconds the file has 7 bytes, whatever was logged: a machine that dies 8 s
# after 20 rows leaves none of them.  Later the file is written in turns, and the newest row is always
# missing, for it is held until the next log() or finish().  So offline files of sessions that end by
# a kill have a gap at each end, and no error says so.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check 'wandb==0.31.0' 'psutil>=7' 2>/dev/null
cat >"$place/log.py" <<'PY'
import sys
import time

import wandb

quiet = wandb.Settings(console="off", silent=True)
run = wandb.init(project="p", mode="offline", dir=sys.argv[1], settings=quiet)
for step in range(20):
    run.log({"loss": 1 / (step + 1), "mark": f"row-{step:05d}"}, step=step)
print("logged", flush=True)
if sys.stdin.readline() == "finish\n":
    run.finish()
PY
export HOME="$place"
"$place/venv/bin/python" - "$place" 2>/dev/null <<'PY'
import subprocess
import sys
import time
from pathlib import Path

import psutil

place = Path(sys.argv[1])


def rows(name, seconds):
    """20 rows, then after so many seconds the end of all its processes -> rows in the file, bytes."""
    folder = place / name
    folder.mkdir()
    words = [sys.executable, place / "log.py", folder]
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while child.stdout.readline() != "logged\n":
        pass
    if seconds is None:
        child.communicate("finish\n")
    else:
        time.sleep(seconds)
        parent = psutil.Process(child.pid)
        for process in [parent, *parent.children(recursive=True)]:
            process.kill()
        child.wait()
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data = file.read_bytes()
    found = sum(b"row-%05d" % step in data for step in range(20))
    print(f"{name}: {found} of 20 rows, {len(data):,} bytes")
    return found


seen = rows("killed after 8 s", 8), rows("killed after 25 s", 25), rows("finished", None)
assert seen == (0, 19, 20), "the behaviour has changed"
print("as stated")
PY
