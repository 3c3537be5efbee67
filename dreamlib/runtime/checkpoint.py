"""Checkpoints that are whole or not there.

A checkpoint is `step-00012000.pt` and, written after it, `step-00012000.json` with its size and
hash.  Data without a matching manifest does not count.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from dreamlib.errors import CheckpointError
from dreamlib.files import read_json, sha256_file, write_atomic, write_json

FORMAT = 1
NAME = re.compile(r"^step-(\d{8})\.json$")
log = logging.getLogger(__name__)


class _Hashing:
    """A writer that hashes what passes through, so that a read-back can be compared with it."""

    def __init__(self, file: IO[bytes]):
        self.file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


@dataclass(frozen=True)
class Checkpoint:
    """A verified generation: its step, where it lies, and its manifest."""

    step: int
    path: Path
    manifest: dict[str, Any]

    def load(self) -> dict[str, Any]:
        """Tensors and plain values only; a pickle that asks for more is refused, not executed."""
        return torch.load(self.path, map_location="cpu", weights_only=True)


def save_checkpoint(
    folder: Path, step: int, state: dict[str, Any], facts: dict[str, Any], *, keep: int = 3
) -> Checkpoint:
    """Write, fsync, rename, read back, compare; then the manifest; then drop what is too old.

    `state` holds tensors and plain values; `facts` (config hash, data fingerprint, ...) goes into
    the manifest.  A good checkpoint of this step is left as it is: runs repeat exactly, and
    writing over the only generation could lose it.  Raises CheckpointError when the file read
    back is not the one written.
    """
    path = folder / f"step-{step:08d}.pt"
    if path.with_suffix(".json").exists():
        flaw, manifest = _check(path)
        if not flaw:
            return Checkpoint(step, path, manifest)
        path.with_suffix(".json").unlink()  # an old manifest must not stand beside new data
    hashing: list[_Hashing] = []

    def write(file: IO[bytes]) -> None:
        hashing.append(_Hashing(file))
        torch.save(state, hashing[0])

    write_atomic(path, write)
    sha256 = hashing[0].digest.hexdigest()
    if sha256_file(path) != sha256:
        raise CheckpointError(f"{path} reads back differently than written: check this disk")
    manifest = {
        "format": FORMAT,
        "step": step,
        "size": hashing[0].size,
        "sha256": sha256,
        "torch": torch.__version__,
        "time": time.time(),
        **facts,
    }
    write_json(path.with_suffix(".json"), manifest)
    _drop_old(folder, step, keep)
    return Checkpoint(step, path, manifest)


def _drop_old(folder: Path, newest: int, keep: int) -> None:
    """Keep `keep` generations up to `newest`, which was just verified.  Later ones are damaged:
    they were passed over when resuming.  Manifests go first: none outlives its data."""
    steps = _steps(folder)
    kept = [step for step in steps if step <= newest][:keep]
    for step in set(steps) - set(kept):
        (folder / f"step-{step:08d}.json").unlink()
    names = {f"step-{step:08d}" for step in kept}
    for path in folder.glob("step-*.pt"):
        if path.stem not in names:
            path.unlink()


def _steps(folder: Path) -> list[int]:
    """Steps that have a manifest, newest first."""
    found = (NAME.match(path.name) for path in folder.glob("step-*.json"))
    return sorted((int(match[1]) for match in found if match), reverse=True)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest generation that verifies, or None.  What is passed over is said in the log.

    Raises CheckpointError when there are checkpoints and none of them verifies: starting afresh
    over them is the user's decision.
    """
    steps = _steps(folder)
    for step in steps:
        path = folder / f"step-{step:08d}.pt"
        flaw, manifest = _check(path)
        if not flaw:
            return Checkpoint(step, path, manifest)
        log.warning("passing over %s: %s", path.name, flaw)
    if steps:
        raise CheckpointError(
            f"none of the {len(steps)} checkpoints in {folder} is intact: restore that folder from "
            "a copy, or delete it to start afresh"
        )
    return None


def _check(path: Path) -> tuple[str, dict[str, Any]]:
    """What is wrong with a checkpoint ('' when nothing), and its manifest."""
    try:
        manifest = read_json(path.with_suffix(".json"))
        size, sha256, format = manifest["size"], manifest["sha256"], manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})", {}
    if format != FORMAT:
        return f"its format is {format}, this version of dreamlib reads {FORMAT}", {}
    if not path.is_file():
        return "its data is missing", {}
    if path.stat().st_size != size:
        return f"it has {path.stat().st_size} bytes instead of {size}", {}
    if sha256_file(path) != sha256:
        return "its hash differs from the manifest's", {}
    return "", manifest
