"""Checkpoints that are whole or not there.

A checkpoint is `step-00012000.pt` and, written after it, `step-00012000.json` with its size and
hash, and a hash of the manifest itself.  Data without a matching manifest does not count.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import pickle
import re
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import IO, Any, cast

import torch

from dreamlib.utils import files
from dreamlib.utils.errors import CheckpointError, NoneIntact, RunError

FORMAT = 2
KEEP = 3  # generations
UNREADABLE = (  # what torch raises for a file that is none of its own
    *(pickle.UnpicklingError, struct.error, AssertionError, AttributeError, EOFError),
    *(LookupError, RuntimeError, TypeError, ValueError),
)
NAME = re.compile(r"^step-(\d{8})\.(json|pt)$")
FIELDS: dict[str, Any] = {  # of a manifest
    **{"size": int, "sha256": str, "format": int, "step": int, "time": (int, float)},
    **{"settings": (dict, NoneType), "where": (dict, NoneType), "data": (str, NoneType)},
}
log = logging.getLogger(__name__)


class _Hashed:
    """Saves a state and hashes what it writes, so that a read-back can be compared with it."""

    def __init__(self, state: dict[str, Any]):
        self.state, self.digest, self.size = state, hashlib.sha256(), 0
        self.error: OSError | None = None  # torch.save hides it behind a RuntimeError of its own

    def save(self, file: IO[bytes]) -> None:
        self.file, self.flush = file, file.flush
        try:
            torch.save(self.state, cast("IO[bytes]", self))
        except RuntimeError as error:
            raise self.error or error from error

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise


@dataclass(frozen=True)
class Checkpoint:
    """A generation: its step, where it lies, and its manifest."""

    step: int
    path: Path
    manifest: dict[str, Any]
    flaw: str = ""  # what is wrong with it; '' once it is verified

    def load(self) -> dict[str, Any]:
        """Tensors and plain values only; a pickle that asks for more is refused, not executed."""
        try:
            with _reading(self.path):
                state = torch.load(self.path, map_location="cpu", weights_only=True)
            if isinstance(state, dict) and state.get("step") != self.step:
                inner = state.get("step")
                raise ValueError(f"it holds step {inner}, its manifest says {self.step}")
            return state
        except (OSError, *UNREADABLE) as error:
            # Its hash holds, so this is no damage: somebody put another kind of file here.
            reason = str(error).strip().split("\n")[0]
            raise CheckpointError(
                f"{self.path} was not saved by a training, and nothing in it was executed "
                f"({reason}): delete it and its .json to go on from the generation before"
            ) from error


def save_checkpoint(
    folder: Path, step: int, state: dict[str, Any], facts: dict[str, Any], *, keep: int = KEEP
) -> Checkpoint:
    """Write, fsync, rename, read back, compare; then the manifest; then drop what is too old.

    `state` holds tensors and plain values; `facts` (config hash, data fingerprint, ...) goes into
    the manifest.  A good checkpoint of this step is left as it is: runs repeat exactly, and
    writing over the only generation could lose it.  Raises CheckpointError when the file read
    back is not the one written.
    """
    path = _path(folder, step)
    if path.with_suffix(".json").exists():
        stored = _check(path)
        if not stored.flaw:
            return stored
        path.with_suffix(".json").unlink()  # an old manifest must not stand beside new data
    hashed = _Hashed(state)
    files.write_atomic(path, hashed.save)
    size, sha256 = hashed.size, hashed.digest.hexdigest()
    if files.sha256_file(path) != sha256:
        raise CheckpointError(f"{path} reads back differently than written: check this disk")
    made = {"torch": torch.__version__, "time": time.time(), **facts}
    manifest = files.seal({"format": FORMAT, "step": step, "size": size, "sha256": sha256, **made})
    files.write_json(path.with_suffix(".json"), manifest)
    _drop_old(folder, step, keep)
    return Checkpoint(step, path, manifest)


def _drop_old(folder: Path, newest: int, keep: int) -> None:
    """Keep `keep` generations up to `newest`, which was just verified.  Later ones are damaged:
    they were passed over when resuming (whole ones are another process's, and stay).  Manifests
    go first: none outlives its data."""
    paths = {step: _path(folder, step) for step in _steps(folder)}
    older = [s for s, path in paths.items() if s <= newest and path.with_suffix(".json").exists()]
    later = [checkpoint.step for checkpoint in _checked(folder, newest) if not checkpoint.flaw]
    for step in paths.keys() - {*older[:keep], *later}:
        paths[step].with_suffix(".json").unlink(missing_ok=True)
        paths[step].unlink(missing_ok=True)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """RunError when the system cannot read: what is unreadable may be whole, and is not damaged."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError):  # it can be known that nothing is there
        raise
    except OSError as error:
        if error.errno == errno.EINVAL:  # a forged file had torch seek where nothing is
            raise
        raise RunError(
            f"{error.filename or path} cannot be read ({error.strerror or error}), and may be "
            "whole: make it readable (its permissions, disk or mount), then run the same command "
            "or cell again; only if it is lost, move it away with the other half of its step"
        ) from error


def _steps(folder: Path) -> list[int]:
    """Steps of which there is a manifest or data, newest first."""
    try:
        with _reading(folder):
            matches = map(NAME.match, os.listdir(folder))
    except FileNotFoundError:
        return []
    return sorted({int(match[1]) for match in matches if match}, reverse=True)


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.pt"


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest generation that verifies, or None.  What is passed over is said in the log.

    Data without any manifest is a save cut short and does not count.  Raises NoneIntact when there
    are manifests and none of them verifies (starting afresh over them is the user's decision),
    CheckpointError when another version of dreamlib saved the newest.
    """
    manifests = 0
    for checkpoint in _checked(folder):
        if not checkpoint.flaw:
            return checkpoint
        manifests += checkpoint.path.with_suffix(".json").exists()
        log.warning("passing over %s: %s", checkpoint.path.name, checkpoint.flaw)
    if manifests:
        raise NoneIntact(
            f"none of the {manifests} checkpoints in {folder} is intact: restore that folder from "
            "a copy, or delete it to start afresh"
        )
    return None


def look(folder: Path) -> tuple[Checkpoint | None, NoneIntact | None]:
    """The newest whole checkpoint, or why there is none although there are some."""
    try:
        return newest_checkpoint(folder), None
    except NoneIntact as error:
        return None, error


def whole_checkpoints(folder: Path) -> list[Checkpoint]:
    """Every generation that verifies, newest first."""
    return [checkpoint for checkpoint in _checked(folder) if not checkpoint.flaw]


def _checked(folder: Path, beyond: int = -1) -> Iterator[Checkpoint]:
    """Every generation beyond a step, newest first."""
    for step in _steps(folder):
        if step > beyond:
            with _reading(path := _path(folder, step)):
                checkpoint = _check(path)
            yield checkpoint


def _check(path: Path) -> Checkpoint:
    manifest: dict[str, Any] = {}
    try:
        manifest = files.check_fields(files.read_json(path.with_suffix(".json")), **FIELDS)
        flaw = _flaw(path, manifest)
    except FileNotFoundError:
        flaw = "it has no manifest: its save was cut short"
    except (IsADirectoryError, ValueError) as error:
        flaw = f"its manifest cannot be read ({error})"
    return Checkpoint(int(path.stem[5:]), path, manifest, flaw)


def _flaw(path: Path, manifest: dict[str, Any]) -> str:
    """What is wrong with a checkpoint, by its manifest; '' when nothing."""
    sealed, format = files.sealed(manifest), manifest["format"]
    if "seal" in manifest and not sealed:
        return "its manifest has been altered"
    if format != FORMAT:
        raise CheckpointError(
            f"{path} has format {format}, and this version of dreamlib reads {FORMAT}: continue "
            "with the version that saved it, or begin a new run folder"
        )
    if not sealed or manifest["step"] != int(path.stem[5:]):
        return "its manifest is not its own"
    try:
        if (size := path.stat().st_size) != manifest["size"]:
            return f"it has {size} bytes instead of {manifest['size']}"
        same = files.sha256_file(path) == manifest["sha256"]
    except (FileNotFoundError, IsADirectoryError):
        return "its data is missing"
    return "" if same else "its hash differs from the manifest's"


def moved(manifest: dict[str, Any], where: dict[str, Any]) -> str:
    """How this session differs from the one that saved: equal bits are promised on an equal
    machine only."""
    then = manifest | manifest.get("where", {})
    now = {"torch": torch.__version__, **where}
    return ", ".join(f"{k} {then[k]} -> {v}" for k, v in now.items() if k in then and then[k] != v)
