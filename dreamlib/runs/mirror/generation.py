"""A generation: what one manifest on a mirror vouches for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from dreamlib.utils.files import check_fields, sealed

FORMAT = 1
MANIFEST = re.compile(r"^manifest-(\d{8})\.json$")
CHECKPOINT = re.compile(r"^checkpoints/step-(\d{8})\.json$")


@dataclass(frozen=True)
class Generation:
    """What one manifest vouches for: `files` has name, size and sha256 by path in the run."""

    number: int
    facts: dict[str, Any]
    files: dict[str, dict[str, Any]]

    @property
    def step(self) -> int:
        """Of the checkpoint it holds; -1 when it holds none."""
        found = (CHECKPOINT.match(name) for name in self.files)
        return max((int(match[1]) for match in found if match), default=-1)

    @property
    def bytes(self) -> int:
        return sum(entry["size"] for entry in self.files.values())


def whole_generation(number: int, record: Any) -> Generation:
    """What a manifest says, if it is as `Mirror.push` writes it; else ValueError."""
    fields = check_fields(record, facts=dict, files=dict)
    if not sealed(record) or [record.get(x) for x in ("format", "number")] != [FORMAT, number]:
        raise ValueError("it is cut, altered, or of another version")
    check_fields(fields["facts"], run=str, time=(int, float))
    for entry in fields["files"].values():
        check_fields(entry, name=str, size=int, sha256=str)
    return Generation(number, fields["facts"], fields["files"])


def numbers(held: Iterable[str]) -> list[int]:
    """Of the generations whose manifests are among these files, newest first."""
    found = (MANIFEST.match(PurePosixPath(name).name) for name in held)
    return sorted((int(match[1]) for match in found if match), reverse=True)
