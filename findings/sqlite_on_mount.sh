#!/bin/sh
# rclone 1.60.1 (Debian 12) mounting a folder, SQLite 3 of Python 3.11, seen on 2026-12-01, FUSE 3.
#
# Guess: SQLite refuses WAL mode on a FUSE mount (it needs shared memory there), and what has been
# committed is uploaded some seconds later (--vfs-write-back), as every file is.
# Seen: WAL is granted, and as long as the database is *open* nothing of it reaches the store, in
# either journal mode: not one byte after 100 commits and many times the write-back delay.  The
# upload begins at close().  A tracker that keeps its database open for the whole training has nothing
# there when the machine dies.  TensorBoard's event files are uploaded all the while, for its writer
# opens and closes the file at every flush.
set -eu
for tool in rclone fusermount3; do
    command -v $tool >/dev/null || { echo "no $tool (apt-get install rclone fuse3): nothing was run"; exit 0; }
done
[ -w /dev/fuse ] || { echo "no FUSE here: nothing was run"; exit 0; }
place=$(mktemp -d)
mount=
clean() {
    fusermount3 -u "$place/mount" 2>/dev/null || true
    kill $mount 2>/dev/null || true
    sleep 1
    rm -rf "$place"
}
trap clean EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check 'tensorboard==2.21.0' 'numpy==2.4.6' \
    'setuptools<81' 2>/dev/null
mkdir "$place/store" "$place/mount"
rclone version | head -n 1
RCLONE_CONFIG=/dev/null rclone mount "$place/store" "$place/mount" --vfs-cache-mode writes \
    --vfs-write-back 1s --cache-dir "$place/cache" >/dev/null 2>&1 &
mount=$!
for _ in $(seq 100); do mountpoint -q "$place/mount" && break; sleep 0.2; done
"$place/venv/bin/python" - "$place" 2>/dev/null <<'PY'
import os
import sqlite3
import sys
import time

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.event_file_writer import EventFileWriter

mount, store = (os.path.join(sys.argv[1], name) for name in ("mount", "store"))


def stored():
    found = {}
    for folder, _, names in os.walk(store):
        for name in names:
            size = os.path.getsize(os.path.join(folder, name))
            found[name.partition("out.")[0]] = size
    return found


def study(mode):
    path = os.path.join(mount, f"{mode}.db")
    database = sqlite3.connect(path, isolation_level=None)
    granted = database.execute(f"pragma journal_mode={mode}").fetchone()[0]
    database.execute("create table trial (loss real)")
    for _ in range(100):
        database.execute("insert into trial values (0.5)")
    time.sleep(10)
    before = stored().get(f"{mode}.db", 0)
    database.close()
    time.sleep(5)
    after = stored().get(f"{mode}.db", 0)
    print(f"journal_mode={mode}: granted {granted}; the store has {before} bytes while it is open, "
          f"{after:,} after close()")
    return granted, before, after > 0


writer = EventFileWriter(os.path.join(mount, "events"), flush_secs=1)
writer.add_event(Event(step=1))
writer.flush()
time.sleep(6)
events = stored().get("events.", 0)
print(f"TensorBoard: the store has {events} bytes while the writer is open")
answers = study("wal"), study("delete")
writer.close()
assert answers == (("wal", 0, True), ("delete", 0, True)), "the behaviour has changed"
assert events > 0, "the behaviour has changed"
print("as stated")
PY
