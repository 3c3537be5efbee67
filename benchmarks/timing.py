"""Time of several ways to do one thing, taken in turns in one process.

A shared machine drifts: only ratios between turns of the same round are worth quoting.  A turn
during which other processes used the cores is taken again, at most twice.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from unittest.mock import patch

import torch

from dreamlib.config.schema import Config
from dreamlib.training.cost import Explanation, explain, peak_bytes
from dreamlib.utils.platform import cpu_flags

FOREIGN = 0.10  # share of one core that others may use during a turn
STAT = Path("/proc/stat")
TRIES = 3
CLEAR = Path("/proc/self/clear_refs")


@contextmanager
def meta() -> Iterator[None]:
    """Tensors without memory, for networks that recompute, too: torch 2.4 does so only where torch
    has a module of the device's name."""
    with torch.device("meta"), patch.object(torch, "meta", torch.cpu, create=True):
        yield


def counted(config: Config) -> Explanation:
    """A network's parameters and FLOPs, counted once and not computed."""
    return _counted(config.model_dump_json())


@cache
def _counted(config: str) -> Explanation:
    with meta():
        return explain(Config.model_validate_json(config))


def interleave(
    calls: dict[str, Callable[[], Any]], rounds: int, warm: int = 1
) -> dict[str, list[float]]:
    """Seconds of every call by name, round by round; every other round backwards."""
    for call in calls.values():
        for _ in range(warm):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        names = list(calls) if number % 2 == 0 else list(calls)[::-1]
        for name in names:
            seconds[name].append(_clean(calls[name]))
    return seconds


def _clean(call: Callable[[], Any]) -> float:
    """Seconds of a turn that nobody disturbed, or of the least disturbed of three."""
    turns = []
    for _ in range(TRIES):
        others, begun = _others(), time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took = time.perf_counter() - begun
        turns.append(((_others() - others) / took, took))
        if turns[-1][0] <= FOREIGN:
            break
    return min(turns)[1]


def _others() -> float:
    """CPU seconds that other processes have used since the machine started; 0 where unknown."""
    if not STAT.exists():
        return 0.0
    fields = [int(word) for word in STAT.read_text().split("\n", 1)[0].split()[1:]]
    busy = sum(fields) - fields[3] - fields[4]  # without idle and iowait
    own = os.times()
    return busy / os.sysconf("SC_CLK_TCK") - (own.user + own.system)


def repeat(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        call()


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles of one value per round."""
    low, _, high = quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return {"median": median(values), "q25": low, "q75": high, "rounds": len(values)}


def ratios(over: list[float], under: list[float]) -> dict[str, float]:
    """How many times `under` goes into `over`, round by round."""
    return spread([a / b for a, b in zip(over, under)])


def text(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} ({found['q25']:.2f}–{found['q75']:.2f})"


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    names = [line for line in _cpuinfo() if line.startswith("model name")]
    wide = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
    found = {
        "cpu": names[0].split(":", 1)[1].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "flags": sorted(cpu_flags() & wide),
        "threads": torch.get_num_threads(),
        "allocator": "kept" if os.environ.get("MALLOC_MMAP_MAX_") == "0" else "glibc's default",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def peak_growth(call: Callable[[], Any]) -> int:
    """Bytes that a call adds at most to what this process holds; measure in one of its own."""
    cpu = torch.device("cpu")
    if CLEAR.exists():  # Linux: freed memory goes back, and the peak so far is forgotten
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")
    before = peak_bytes(cpu)
    call()
    return peak_bytes(cpu) - before


def apart(call: Callable[..., Any], *arguments: Any) -> Any:
    """A call's answer, from a fresh process: one measurement's memory is not another's."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()
