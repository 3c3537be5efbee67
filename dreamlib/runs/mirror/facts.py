"""What is known of a run's mirrors, and in which words."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from dreamlib.utils.progress import duration

UNKNOWN = 240.0  # seconds for which a mount may leave it open whether its server has a copy
KNOWN = {"uploaded": "uploaded", "uploading": "uploading", "refused": "REFUSED by its server"}
Facts = dict[str, Any]  # of status.json


def describe(status: Mapping[str, Any]) -> str:
    """'step 12,000 copied to ... 2 min ago (uploaded)': what a person may rely on."""
    where, step, upload = status["mirror"], status.get("mirrored"), status.get("upload")
    if status.get("mirror_fails"):
        return f"NOT copied to {where}: {status['mirror_fails']}"
    if step is None or step < 0:
        return f"no checkpoint yet copied to {where}"
    ago = duration(time.time() - (status.get("mirrored_at") or 0.0))
    known = KNOWN.get(str(upload), "upload not known")
    return f"step {step:,} copied to {where} {ago} ago, {known}"


def of_all(each: Sequence[Facts]) -> Facts:
    """Those of the mirror that has most, with the others' beside them."""
    best = max(each, key=lambda one: (one["mirrored"] or -1, one["upload"] == "uploaded"))
    others = [one for one in each if one is not best]
    return best | ({"other_mirrors": others} if others else {})


def lines(status: Mapping[str, Any]) -> list[str]:
    """A line about every mirror."""
    if not status.get("mirror"):
        return []
    return [describe(one) for one in (status, *(status.get("other_mirrors") or ()))]


def at_stake(status: Mapping[str, Any]) -> str:
    """What is lost if this machine goes now: '' where nothing is copied anywhere."""
    if not status.get("mirror"):
        return ""
    held = max(0, status.get("mirrored") or 0)
    return f"with this machine {max(0, status['step'] - held):,} steps would be lost"
