#!/bin/sh
# submitit 1.5.4, LocalExecutor, seen on 2026-12-01, Linux, Python 3.11.
#
# Guess: job.state tells a job that was killed, or that ran out of its time, from one that ended well,
# as it does on Slurm; job.cancel() ends the job with the processes that it has begun.
# Seen: SIGKILL, sys.exit(3) inside the function and the end of timeout_min all give state FINISHED
# and done() True, exactly as a success does; only result() raises (UncompletedJobError, whatever it
# was).  cancel() says INTERRUPTED at once, and the job's own children (DataLoader workers, torchrun's
# ranks) run on.  A script that is tried out locally before it goes to a cluster learns nothing there.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check 'submitit==1.5.4' 2>/dev/null
cat >"$place/work.py" <<'PY'
import os
import subprocess
import sys
import time
from pathlib import Path


def well():
    return 1


def killed():
    os.kill(os.getpid(), 9)


def left():
    sys.exit(3)


def long():
    time.sleep(30)


def parent(note):
    child = subprocess.Popen(["sleep", "60"])
    Path(note + ".new").write_text(str(child.pid))
    os.rename(note + ".new", note)
    child.wait()
PY
cd "$place"
"$place/venv/bin/python" - "$place" 2>/dev/null <<'PY'
import os
import signal
import sys
import time

import submitit
import work

place = sys.argv[1]
executor = submitit.LocalExecutor(f"{place}/jobs")
seen = []
for function, minutes in ((work.well, 60), (work.killed, 60), (work.left, 60), (work.long, 0.03)):
    executor.update_parameters(timeout_min=minutes)
    job = executor.submit(function)
    begun = time.monotonic()
    try:
        result = job.result()
    except submitit.core.utils.UncompletedJobError as error:
        result = type(error).__name__
    after = time.monotonic() - begun
    print(f"{function.__name__}: {job.state}, done {job.done()}, result() {result}, {after:.0f} s")
    seen.append((job.state, job.done(), result))
executor.update_parameters(timeout_min=60)
job = executor.submit(work.parent, f"{place}/note")
while not os.path.exists(f"{place}/note"):
    time.sleep(0.1)
child = int(open(f"{place}/note").read())
job.cancel()
time.sleep(3)
alive = os.path.exists(f"/proc/{child}")
print(f"cancel(): {job.state}, its child process is {'still there' if alive else 'gone'}")
if alive:
    os.kill(child, signal.SIGKILL)
assert seen[0] == ("FINISHED", True, 1)
assert set(seen[1:]) == {("FINISHED", True, "UncompletedJobError")}, "the behaviour has changed"
assert job.state == "INTERRUPTED" and alive, "the behaviour has changed"
print("as stated")
PY
