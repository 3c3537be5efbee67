"""torchrun: started as a process of its own, and joined by the processes that it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dreamlib.runs.folder import RunDir
from dreamlib.runs.time_budget import BEGUN, StopFlag, process_start
from dreamlib.training.ranks import Ranks, is_rank
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
    restarts: int,
    options: dict[str, Any],
    overrides: Sequence[str],
) -> None:
    """`dreamlib train FOLDER` by torchrun with so many processes, to its end.

    This process touches no GPU.  ConfigError for more than there are; RunError when the training
    failed; where it was paused, the run's state says so.
    """
    gpus = torch.cuda.device_count()
    if gpus and devices > gpus and "train.device=cpu" not in overrides:
        raise ConfigError(f"--devices {devices}: torch sees {gpus} GPU{'s' if gpus > 1 else ''}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={devices}", f"--max-restarts={restarts}"]
    command += ["-m", "dreamlib", "train", str(folder)]
    for name, value in options.items():
        if value is not None and value is not False:
            word = f"--{name.replace('_', '-')}"
            command.append(word if value is True else f"{word}={value}")
    command += [f"--set={setting}" for setting in overrides]
    code = _run(command, _environment(devices))
    if code and RunDir(folder).status()["state"] not in ("paused_deadline", "interrupted"):
        raise RunError(
            f"the training by {devices} processes failed (exit code {code}; its own words stand "
            "above): the same command goes on from the last checkpoint"
        )


def _environment(devices: int) -> dict[str, str]:
    """Of torchrun: threads for each process, the session's beginning, a store for every attempt."""
    threads = max(1, (os.cpu_count() or 1) // devices)
    ours = {"OMP_NUM_THREADS": str(threads), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    if (ticks := process_start(os.getpid())) is not None:
        ours[BEGUN] = str(ticks / os.sysconf("SC_CLK_TCK"))
    return ours | os.environ


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    """Its exit code; whatever asks this process to stop asks it, and is waited for."""
    with StopFlag().listening() as stop, subprocess.Popen(command, env=environment) as child:
        try:
            while child.poll() is None and not stop:
                _wait(child, 0.5)
            if child.poll() is None:
                child.terminate()
                _wait(child, LAST_SAVE)
        finally:
            if child.poll() is None:
                child.kill()
        return child.wait()


def _wait(child: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return
