#!/bin/sh
# tensorboard 2.21.0 (data server 0.7.2) with torch 2.13.0, seen on 2026-12-01, Linux, Python 3.11.
#
# Guess: a page that is open shows the new curve when a resumed run deletes its event file and writes
# it anew, or when it goes on with SummaryWriter(purge_step=...), which is made for that.
# Seen: that depends on which of TensorBoard's two readers serves the page.  The default one (a
# server in Rust) gets both right.  The Python one (--load_fast=false, and wherever there is no data
# server) shows the *old* curve for ever after a deletion, and ignores the first purge_step that a
# folder sees: every step is there twice.  It heeds the second, so purge_step must be given by the
# first session too, which has nothing to purge.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    'torch==2.13.0' 'tensorboard==2.21.0' 'tensorboard-data-server==0.7.2' 'numpy==2.4.6' \
    'setuptools<81' 2>/dev/null
TMPDIR=$place "$place/venv/bin/python" - 2>/dev/null <<'PY'
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


def write(folder, value, steps, **options):
    with SummaryWriter(folder, **options) as writer:
        for step in steps:
            writer.add_scalar("loss", value, step)


def serve(folder, fast):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--logdir", folder, "--port", str(port), "--reload_interval", "1", f"--load_fast={fast}"]
    server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", *words], stderr=-3)
    url = f"http://127.0.0.1:{port}/data/plugin/scalars/scalars?run=.&tag=loss"

    def page():
        for _ in range(240):
            try:
                return [(row[1], row[2]) for row in json.load(urllib.request.urlopen(url))]
            except OSError:
                time.sleep(0.25)

    return server, page


def seen(fast, delete=False, first=None, then=None):
    """What an open page shows of values 1, then of values 2 at the same steps."""
    folder = tempfile.mkdtemp()
    write(folder, 1.0, range(1, 4), purge_step=first)
    server, page = serve(folder, fast)
    page()
    for old in Path(folder).glob("*") if delete else ():
        old.unlink()
    time.sleep(1.1)  # another second in the file's name
    write(folder, 2.0, range(1, 4), purge_step=then)
    time.sleep(8)
    rows = page()
    server.terminate()
    server.wait()
    return rows


new, old = [(k, 2.0) for k in range(1, 4)], [(k, 1.0) for k in range(1, 4)]
for fast in ("true", "false"):
    deleted, purged, both = seen(fast, True), seen(fast, then=1), seen(fast, first=1, then=1)
    print(f"--load_fast={fast}: deleted and written anew: {deleted}")
    print(f"    purge_step=1 in the second session: {purged}")
    print(f"    purge_step=1 in both: {both}")
    assert deleted == (new if fast == "true" else old), "the behaviour has changed"
    assert purged == (new if fast == "true" else old + new), "the behaviour has changed"
    assert both == new, "the behaviour has changed"
print("as stated")
PY
