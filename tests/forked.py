"""`python -m MODULE ...` without seconds of imports: a child of a process that has them.

A server imports torch and more once, for all workers of the tests, trains nothing, and forks.  The
interpreter in whose place it stands (`interpreter`) is a client, a process as any other: it has
the command's output and exit code, hands signals on, and when it is killed, so is its child.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEARD = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}
LONGEST = 1 << 20  # bytes of a request
IMPORTS = (
    *("torch._dynamo", "torch.optim", "numpy.ma", "PIL.PngImagePlugin", "scipy.stats"),
    *("dreamlib.cli.main", "dreamlib.training.train", "dreamlib.evaluation.evaluate"),
    *("dreamlib.notebook.dashboard", "dreamlib.report.build", "dreamlib.sampling.generate"),
    "ipykernel.kernelapp",
)


# ---------------------------------------------------------------------- the server


def serve(path: str) -> dict[str, Any] | None:
    """Fork a child per request, as long as anybody watches -> in a child, its request."""
    for name in IMPORTS:
        importlib.import_module(name)
    gc.freeze()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listener, ready = socket.socket(socket.AF_UNIX), selectors.DefaultSelector()
    listener.bind(f"{path}.new")
    listener.listen()
    os.rename(f"{path}.new", path)
    ready.register(listener, selectors.EVENT_READ)
    ready.register(woken, selectors.EVENT_READ)
    children: dict[int, socket.socket] = {}
    watchers: set[socket.socket] = set()
    while True:
        for key, _ in ready.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                request, files = _heard(connection)
                ready.register(connection, selectors.EVENT_READ)
                if request is None:
                    watchers.add(connection)
                    continue
                if (pid := os.fork()) == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    return request | {"files": files}
                children[pid] = connection
                _say(connection, pid)
                for file in files:
                    os.close(file)
            elif key.fileobj == woken:
                os.read(woken, LONGEST)
                _reap(children, ready)
            else:  # only ends are sent
                ready.unregister(key.fileobj)
                watchers.discard(key.fileobj)
                for pid in [p for p, held in children.items() if held is key.fileobj]:
                    for kill in (os.kill, os.killpg):  # it may not lead its group yet
                        with suppress(ProcessLookupError):
                            kill(pid, signal.SIGKILL)
                key.fileobj.close()
        if not watchers:
            return None


def _heard(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    text, files, *_ = socket.recv_fds(connection, LONGEST, 3)
    while not text.endswith(b"\n"):
        text += connection.recv(LONGEST)
    return json.loads(text), files


def _say(connection: socket.socket, number: int) -> None:
    with suppress(OSError):  # a client that was killed hears nothing
        connection.sendall(f"{number}\n".encode())


def _reap(children: dict[int, socket.socket], ready: selectors.BaseSelector) -> None:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            connection = children.pop(ended[0])
            _say(connection, os.waitstatus_to_exitcode(ended[1]))
            if connection.fileno() >= 0:
                ready.unregister(connection)
                connection.close()


def become(request: dict[str, Any]) -> None:
    """This child is now the process that was asked for."""
    import matplotlib as mpl
    import torch

    os.setsid()
    for number, file in enumerate(request["files"]):
        os.dup2(file, number)
        os.close(file)
    for number, handler in HEARD.items():
        signal.signal(number, handler)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["variables"])
    sys.path.insert(0, request["folder"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    module, *words = request["words"]
    sys.argv = [module, *words]
    if module == "ipykernel_launcher":  # which tells matplotlib before that is imported
        mpl.rcParams["backend"] = "module://matplotlib_inline.backend_inline"
    runpy.run_module(module, run_name="__main__", alter_sys=True)


# ---------------------------------------------------------------------- the client


def ask(path: str) -> None:
    """Be `python -m ...`; of other words, the real interpreter."""
    if sys.argv[1] != "-m":
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    request = {"words": sys.argv[2:], "folder": os.getcwd(), "variables": dict(os.environ)}
    text = json.dumps(request).encode() + b"\n"
    sent = socket.send_fds(connection, [text], [0, 1, 2])
    connection.sendall(text[sent:])
    answers = connection.makefile()
    pid = int(answers.readline())
    for number in HEARD:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
    code = int(answers.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


class Server:
    """The server of this test session, begun by whoever asks first; it ends with the last."""

    def __init__(self, folder: Path):
        self.path = str(folder / "forked")
        self.process: subprocess.Popen[bytes] | None = None
        self.connection = self._watch() or self._begin()
        self.interpreter = folder / "python"
        if not self.interpreter.exists():
            text = f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
            text += f"from tests.forked import ask\nask({self.path!r})\n"
            self.interpreter.write_text(text)
            self.interpreter.chmod(stat.S_IRWXU)

    def _watch(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(self.path)
        except OSError:
            connection.close()
            return None
        connection.sendall(b"null\n")
        return connection

    def _begin(self) -> socket.socket:
        Path(self.path).unlink(missing_ok=True)
        words = [sys.executable, "-m", "tests.forked", self.path]
        nothing = subprocess.DEVNULL
        with open(f"{self.path}.log", "ab") as log:
            self.process = subprocess.Popen(
                words, cwd=ROOT, stdin=nothing, stdout=nothing, stderr=log
            )
        while True:
            if connection := self._watch():
                return connection
            assert self.process.poll() is None, "the server of forked commands did not begin"
            threading.Event().wait(0.02)

    def leave(self) -> None:
        self.connection.close()
        if self.process:
            self.process.wait()


if __name__ == "__main__" and (asked := serve(sys.argv[1])):
    become(asked)
