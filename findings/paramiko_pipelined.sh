#!/bin/sh
# paramiko 5.1.0 with OpenSSH's sftp-server 9.2 (Debian 12), seen on 2026-12-01, Linux, Python 3.11.
#
# Guess: a write that the server cannot store (here: beyond a limit of 100,000 bytes a file, as on a
# full disk) raises, at the latest when the file is closed.
# Seen: not when it is pipelined, which paramiko's documentation recommends for speed: one
# write() of 300,000 bytes and close() return in peace, and 100,000 bytes are there.
# putfo(confirm=False) is the same: it pipelines by itself.  With confirm=True (the default) it says
# "size mismatch in put!", without pipelining the error is "Failure"; both without an errno, so that
# "full" cannot be told from anything else.
set -eu
server=/usr/lib/openssh/sftp-server
[ -x $server ] || { echo "no $server (apt-get install openssh-sftp-server): nothing was run"; exit 0; }
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check 'paramiko==5.1.0' 2>/dev/null
"$place/venv/bin/python" - "$place" "$server" 2>/dev/null <<'PY'
import io
import os
import resource
import select
import signal
import socket
import subprocess
import sys

from paramiko.sftp_client import SFTPClient

place, program = sys.argv[1:]
LIMIT, SIZE = 100_000, 300_000


def limited():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


class Pipe:
    """What SFTPClient asks of a channel, straight to the server's program: no ssh between them."""

    closed = False

    def __init__(self):
        self.socket, theirs = socket.socketpair()
        self.server = subprocess.Popen([program], stdin=theirs, stdout=theirs, preexec_fn=limited)
        theirs.close()
        self.send, self.recv, self.fileno = self.socket.send, self.socket.recv, self.socket.fileno

    def get_name(self):
        return "pipe"

    def recv_ready(self):
        return bool(select.select([self.socket], [], [], 0)[0])


files = SFTPClient(Pipe())


def write(path, pipelined):
    with files.open(path, "wb") as file:
        file.set_pipelined(pipelined)
        file.write(b"x" * SIZE)


def seen(name, call):
    path = f"{place}/{len(os.listdir(place))}.pt"
    try:
        call(path)
        answer = "no error"
    except OSError as error:
        answer = f"{error}, errno {error.errno}"
    print(f"{name}: {answer}; {os.path.getsize(path):,} of {SIZE:,} bytes are there")
    assert os.path.getsize(path) == LIMIT
    return answer


data = b"x" * SIZE
answers = [
    seen("write and close", lambda path: write(path, False)),
    seen("the same, pipelined", lambda path: write(path, True)),
    seen("putfo", lambda path: files.putfo(io.BytesIO(data), path)),
    seen("putfo(confirm=False)", lambda path: files.putfo(io.BytesIO(data), path, confirm=False)),
]
assert answers[0] == "Failure, errno None", "the behaviour has changed"
assert answers[1] == answers[3] == "no error", "the behaviour has changed"
assert "size mismatch" in answers[2] and "errno None" in answers[2], "the behaviour has changed"
print("as stated")
sys.stdout.flush()
os._exit(0)  # the pipe has no end of its own
PY
