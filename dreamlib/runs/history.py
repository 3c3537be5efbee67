"""Where a run stands, and what happened to it, in words."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from dreamlib.runs.checkpoints import whole_checkpoints
from dreamlib.runs.folder import RunDir
from dreamlib.runs.lock import alive, read_owner
from dreamlib.runs.mirror.facts import at_stake, lines
from dreamlib.utils.progress import duration

EVENTS = 8  # lines of what happened lately


def story(run: RunDir) -> Iterator[str]:
    """Where a run stands, what is saved and mirrored, and what happened to it lately."""
    report = run.status()
    yield f"{run.folder}: {state_of(run, report)}, step {report['step']:,}{share_of(report)}"
    for checkpoint in whole_checkpoints(run.checkpoints):
        age = duration(time.time() - checkpoint.manifest["time"])
        size = checkpoint.manifest["size"] / 2**20
        yield f"  checkpoint of step {checkpoint.step:,}: whole, {size:,.1f} MiB, {age} old"
    for line in lines(report):
        yield f"  mirror: {line}"
    if stake := at_stake(report):
        yield f"  {stake}"
    if report.get("error"):
        yield f"  it failed: {report['error']}"
    for event in run.read_events()[-EVENTS:]:
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(event["time"]))
        told = {k: str(v)[:8] if k == "sha256" else v for k, v in event.items()}
        facts = (f"{k} {v}" for k, v in told.items() if k not in ("time", "event", "text"))
        yield f"  {when}  {event.get('text') or ' '.join((event['event'], *facts))}"


def state_of(run: RunDir, report: dict[str, Any]) -> str:
    """The state in status.json, unless its writer was killed before it could write another."""
    if report["state"] != "running":
        return report["state"]
    owner = read_owner(run.lock)
    return "running" if owner and alive(owner) is not False else "stopped (killed)"


def share_of(report: dict[str, Any]) -> str:
    total = report.get("total")
    return f" of {total:,} ({report['step'] / total:.0%})" if total else ""
