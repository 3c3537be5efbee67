"""torchrun: started as a process of its own, and joined by the processes that it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from dreamlib.runs.folder import RunDir
from dreamlib.runs.run import Run
from dreamlib.runs.time_budget import BEGUN, StopFlag, process_start
from dreamlib.training.channel import is_rank
from dreamlib.training.loop import Tick
from dreamlib.training.ranks import Ranks
from dreamlib.utils.errors import ConfigError, RunError

LAST_SAVE = 60.0  # seconds; torchrun itself gives its processes 30


@contextmanager
def joined() -> Iterator[Ranks | None]:
    """The processes that torchrun started, this one among them; None without torchrun."""
    if not is_rank():
        yield None
        return
    ranks = Ranks()
    try:
        if ranks.rank:
            yield ranks
        else:
            with ranks.leading():
                yield ranks
    finally:
        ranks.leave()


def launch(
    folder: Path,
    devices: int,
    restarts: int = 0,
    options: dict[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """`dreamlib train FOLDER` by torchrun with so many processes, to its end.

    This process touches no GPU.  ConfigError for more than there are; RunError when the training
    failed; where it was paused, the run's state says so.
    """
    command = _command(folder, devices, restarts, options or {}, overrides)
    with StopFlag().listening() as stop, _started(command, devices) as child:
        while child.poll() is None and not stop:
            _wait(child, 0.5)
    _check(folder, devices, child.returncode)


def train_by(run: Run, devices: int, hours: float | None = None) -> Iterator[Tick]:
    """As `train`, by so many GPUs or processes: their words are in train.log of the run's folder.

    A Tick whenever another step is known of.  Errors as `launch`.
    """
    homes = [str(mirror.home) for mirror in run.mirrors] or "none"
    options = {"mirror": homes, "hours": run.budget(hours), "take_over": run.take_over}
    command = _command(run.folder, devices, 0, options, ())
    with open(run.folder / "train.log", "a", encoding="utf-8") as log:
        run.say(f"trained by {devices} processes; what they say is in {log.name}")
        with StopFlag().listening() as stop, _started(command, devices, log) as child:
            seen = None
            while child.poll() is None and not stop:
                _wait(child, 1.0)
                status, row = run.dir.status(), next(iter(run.dir.read_log()[-1:]), None)
                step = max(status.get("step") or 0, row["step"] if row else 0)
                if step != seen and status.get("total"):
                    seen = step
                    yield Tick(step, status["total"], row)
    _check(run.folder, devices, child.returncode)


def _command(
    folder: Path,
    devices: int,
    restarts: int,
    options: dict[str, Any],
    overrides: Sequence[str],
) -> list[str]:
    gpus = torch.cuda.device_count()
    if gpus and devices > gpus and "train.device=cpu" not in overrides:
        raise ConfigError(f"{devices} devices asked for: torch sees {gpus} GPU")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={devices}", f"--max-restarts={restarts}"]
    command += ["-m", "dreamlib", "train", str(folder)]
    for name, value in options.items():
        word = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            if one is not None and one is not False:
                command.append(word if one is True else f"{word}={one}")
    return command + [f"--set={setting}" for setting in overrides]


def _check(folder: Path, devices: int, code: int) -> None:
    """RunError unless the training is over or paused; torchrun's code alone does not tell."""
    if code and RunDir(folder).status()["state"] not in ("paused_deadline", "interrupted"):
        raise RunError(
            f"the training by {devices} processes failed (exit code {code}; their own words stand "
            "above it): the same command or cell goes on from the last checkpoint"
        )


def _environment(devices: int) -> dict[str, str]:
    """Of torchrun: threads for each process, the session's beginning, a store for every attempt."""
    threads = max(1, (os.cpu_count() or 1) // devices)
    ours = {"OMP_NUM_THREADS": str(threads), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    if (ticks := process_start(os.getpid())) is not None:
        ours[BEGUN] = str(ticks / os.sysconf("SC_CLK_TCK"))
    return ours | os.environ


@contextmanager
def _started(
    command: Sequence[str], devices: int, log: IO[str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """torchrun, which is asked to stop, and waited for, when the block is left."""
    child = subprocess.Popen(command, env=_environment(devices), stdout=log, stderr=log)
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()  # it hands that on; killed, it would leave orphans
            _wait(child, LAST_SAVE)
        if child.poll() is None:
            child.kill()
        child.wait()


def _wait(child: subprocess.Popen[bytes], seconds: float) -> None:
    with suppress(subprocess.TimeoutExpired):
        child.wait(seconds)
