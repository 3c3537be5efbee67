"""Which benchmarks there are, how one is run, and the page of their tables."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

from benchmarks.timing import machine

NAMES = (
    "training_step",
    "dream_cost",
    "sampling_cost",
    "metric_speed",
    "data_path",
    "save_stall",
    "growth",
    "preset_costs",
    "gan_step",
)
ROUNDS, QUICK = 7, 2


def run(name: str, rounds: int, quick: bool) -> dict[str, Any]:
    begun = time.time()
    found = import_module(f"benchmarks.{name}").measure(rounds, quick)
    return found | {
        "machine": machine(),
        "rounds": rounds,
        "quick": quick,
        "took_seconds": time.time() - begun,
    }


def page(found: dict[str, Any]) -> str:
    """Every table, under the first line of what its benchmark says of itself."""
    parts = []
    for name, each in found.items():
        module = import_module(f"benchmarks.{name}")
        title = (module.__doc__ or name).splitlines()[0]
        facts = ", ".join(f"{key} {value}" for key, value in each["machine"].items())
        pace = f"{each['rounds']} rounds" + (", quick" if each["quick"] else "")
        parts.append(f"## {title}\n\n{module.table(each)}\n\n{facts}; {pace}.\n")
    return "\n".join(parts)
