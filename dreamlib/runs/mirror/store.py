"""Generations of a run's files in another folder: a mounted Drive, a network disk, a second disk.

Such a folder may upload late, lose what it has accepted, or vanish.  So nothing in it is ever
written over: a file is copied to a name that holds its hash, `ema~1a2b3c4d5e6f.safetensors`, and
read back; then `manifest-00000007.json` lists the generation, and only that makes it count.  Old
generations go when the new one is whole.  They share files that have not changed, but not those
without which none can be used: `config~00000007~1a2b3c4d5e6f.yaml`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from dreamlib.runs.folder import ESSENTIAL, RunDir
from dreamlib.runs.mirror import filesystem as mount
from dreamlib.utils.errors import MirrorError, RunError
from dreamlib.utils.files import (
    check_fields,
    naming,
    plain_name,
    read_json,
    seal,
    sealed,
    write_atomic,
)

FORMAT = 1
KEEP = 3  # generations
SETTLE = 1800.0  # seconds after which a mount is believed to have uploaded what it took
AT_ONCE = 32  # files opened together
MANIFEST = re.compile(r"^manifest-(\d{8})\.json$")
CHECKPOINT = re.compile(r"^checkpoints/step-(\d{8})\.json$")
VERSIONED = re.compile(r"~[0-9a-f]{12}(\.[^.]*)?$")


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


def _whole(number: int, record: Any) -> Generation:
    """What a manifest says, if it is as `Mirror.push` writes it; else ValueError."""
    fields = check_fields(record, facts=dict, files=dict)
    if not sealed(record) or [record.get(x) for x in ("format", "number")] != [FORMAT, number]:
        raise ValueError("it is cut, altered, or of another version")
    check_fields(fields["facts"], run=str, time=(int, float))
    for entry in fields["files"].values():
        check_fields(entry, name=str, size=int, sha256=str)
    return Generation(number, fields["facts"], fields["files"])


class Mirror:
    """The place `home`/runs/`name` on a mirror.  Every method may raise OSError: the mount's."""

    def __init__(self, home: Path, name: str, keep: int = KEEP, settle: float = SETTLE):
        # Whatever is deleted lies below the root: a name that is a path would lead that elsewhere.
        self.home, self.root = home, home / "runs" / plain_name(name)
        self.keep, self.settle = keep, settle
        self.id = ""
        self.pulse: Callable[[], None] = lambda: None  # called often while copying
        # path in the run -> ((inode, size, time) of what was copied, entry)
        self.verified: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {}
        self.read: dict[int, Generation] = {}  # reading a file again can put off its upload

    def distrust(self) -> None:
        """After a failure: the mount may have lost what it took, so read everything again."""
        self.verified.clear()
        self.read.clear()

    # ------------------------------------------------------------------ the mount

    def attach(self) -> None:
        """Make sure that this is the mirror, and the one it was.

        Of two machines that begin a mirror at once, one finds the other's marker in place of its
        own, and goes by that: the run still has one owner.
        """
        here = mount.marker_id(self.home, self.id)
        if self.id not in ("", here):
            if not self.root.is_dir():
                raise OSError(errno.ENODEV, "another mirror is mounted there", str(self.home))
            self.distrust()
        self.id = here

    def check_same(self, found: list[Generation], run: str, folder: Path) -> None:
        """MirrorError when these generations, newest first, are another run's."""
        if found and found[0].facts["run"] != run:
            raise MirrorError(
                f"{self.root} holds another run of this name: rename the folder {folder}, or go "
                "on without a mirror (--mirror none)"
            )

    # ------------------------------------------------------------------ copying out

    def push(self, run: RunDir, identity: str) -> Generation:
        """Copy a run's files, read them back, then write the manifest; drop old generations.

        `identity` is the run's own.  A full mirror loses older generations, down to one, before
        this gives up.
        """
        while True:
            try:
                return self._push(run, identity)
            except OSError as error:
                self.distrust()
                if error.errno != errno.ENOSPC or not self._make_room():
                    raise

    def _push(self, run: RunDir, identity: str) -> Generation:
        self.attach()
        number = max(self._numbers(), default=0) + 1
        with ExitStack() as stack:
            # An open file stays what it is while training replaces or drops it: the first ones
            # (checkpoint, weights and their card, log) are of one moment.
            with run.pair:
                names = run.to_mirror()
                paths = [run.folder / name for name in names]
                first = [stack.enter_context(open(path, "rb")) for path in paths[:AT_ONCE]]
            files = {name: self._copy(name, file, number) for name, file in zip(names, first)}
        for name, path in zip(names[AT_ONCE:], paths[AT_ONCE:]):
            with open(path, "rb") as file:
                files[name] = self._copy(name, file, number)
        facts = {"run": identity, "time": time.time()}
        record = seal({"format": FORMAT, "number": number, "facts": facts, "files": files})
        path = self._manifest(number)
        mount.write_record(path, record)
        try:
            back = read_json(path)
        except ValueError:
            back = None
        if back != record:
            raise OSError(errno.EIO, "reads back differently than written", str(path))
        new = self.read[number] = Generation(number, facts, files)
        self._prune(self.keep, new)
        return new

    def _copy(self, name: str, file: IO[bytes], number: int) -> dict[str, Any]:
        stat = os.fstat(file.fileno())
        signature = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        known, entry = self.verified.get(name, (None, {}))
        alone = f"{number:08d}~" if name in ESSENTIAL else ""  # else one lost file costs them all
        kept = self.root / entry.get("name", "")
        if not alone and known == signature and mount.size_of(kept) == entry["size"]:
            return entry
        with naming(Path(file.name)):
            sha256 = mount.hash_of(mount.blocks(file, stat.st_size))
        here, version = PurePosixPath(name), f"{alone}{sha256[:12]}"
        versioned = str(here.with_name(f"{here.stem}~{version}{here.suffix}"))
        entry = {"name": versioned, "size": stat.st_size, "sha256": sha256}
        there = self.root / versioned
        if not mount.holds(there, entry, self.beating):
            there.parent.mkdir(parents=True, exist_ok=True)
            with open(there, "wb") as copy:
                for block in self.beating(mount.blocks(file, stat.st_size)):
                    copy.write(block)
                mount.sync(copy)
            if not mount.holds(there, entry, self.beating):
                raise OSError(errno.EIO, "reads back differently than written", str(there))
        self.verified[name] = (signature, entry)
        return entry

    def beating(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        for part in parts:
            self.pulse()
            yield part

    # ------------------------------------------------------------------ dropping

    def _prune(self, keep: int, new: Generation | None = None, *, settled: bool = True) -> None:
        """Drop generations; manifests go first, so that none promises what is gone.

        Kept are the newest, those of the newest steps (several may share one checkpoint), and,
        because a mount may still be uploading them all, the newest that has settled and the one
        that will settle next.  `new` is kept even if the mount's listing does not show it yet.
        """
        listed = [x for x in self.generations() if new is None or x.number != new.number]
        found = [*([new] if new else []), *listed]
        of_steps = {generation.step: generation for generation in reversed(found)}
        kept = found[:keep]
        if settled:
            kept += [of_steps[step] for step in sorted(of_steps)[-keep:]]
            older = next((i for i, x in enumerate(found) if self._settled(x)), len(found))
            kept += [*found[older : older + 1], *found[older - 1 : older]]
        numbers = {generation.number for generation in kept}
        for number in self._numbers():
            if number not in numbers:
                mount.discard(self._manifest(number))
        used = {entry["name"] for generation in kept for entry in generation.files.values()}
        for path in self.root.rglob("*~*"):
            if VERSIONED.search(path.name) and path.relative_to(self.root).as_posix() not in used:
                mount.discard(path)

    def _settled(self, generation: Generation) -> bool:
        """Surely stored: its mount says so, or has had the time."""
        if time.time() - generation.facts["time"] >= self.settle:
            return True
        return self.uploaded(generation) == "uploaded"

    def _make_room(self) -> bool:
        """Drop the oldest generation and half-copied files; False when one alone is left."""
        held = len(self.generations())
        self._prune(max(1, held - 1), settled=False)
        return len(self.generations()) < held

    def traces(self) -> bool:
        """Whether files of a run lie here, of a whole generation or not."""
        return self.root.is_dir() and any(self.root.rglob("*~*"))

    # ------------------------------------------------------------------ copying back

    def _numbers(self) -> list[int]:
        if not self.root.is_dir():
            return []
        found = (MANIFEST.match(entry) for entry in os.listdir(self.root))
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def _manifest(self, number: int) -> Path:
        return self.root / f"manifest-{number:08d}.json"

    def generations(self) -> list[Generation]:
        """Those with a whole manifest, newest first; whether their files are there, `pull` sees."""
        found = []
        for number in self._numbers():
            if number not in self.read:
                try:
                    self.read[number] = _whole(number, read_json(self._manifest(number)))
                except (FileNotFoundError, ValueError):  # half uploaded, or gone since
                    continue
            found.append(self.read[number])
        return found

    def unlisted(self, step: int) -> list[str]:
        """What is newer than `step` and every whole generation, and cannot be used."""
        whole, names = self.generations(), self.root.glob("checkpoints/step-????????~*.pt")
        newest, furthest = (whole[0].number if whole else 0), max([step, *(x.step for x in whole)])
        torn = [f"its manifest {n} is not whole" for n in self._numbers() if n > newest]
        steps = sorted({int(path.name[5:13]) for path in names if path.name[5:13].isdecimal()})
        return torn + [f"no whole manifest lists step {n:,}" for n in steps if n > furthest]

    def pull(self, generation: Generation, folder: Path, names: Iterable[str]) -> list[str]:
        """Bring files of a generation into a run folder, each whole or not at all.

        -> the names that could not be had: absent, cut or altered on the mirror.  Files that are
        here already with the right content stay.
        """
        missing = []
        for name in names:
            target = mount.inside(folder, name)
            entry = generation.files[name]
            if mount.holds(target, entry):
                continue
            try:
                self._bring(entry, target)
            except (FileNotFoundError, MirrorError):
                missing.append(name)
        return missing

    def _bring(self, entry: dict[str, Any], target: Path) -> None:
        there = mount.inside(self.root, entry["name"])
        digest = hashlib.sha256()

        def write(file: IO[bytes]) -> None:
            with naming(there), open(there, "rb") as source:
                for block in mount.blocks(source, entry["size"]):
                    digest.update(block)
                    try:
                        file.write(block)
                    except OSError as error:
                        raise RunError(f"{target} cannot be written: {error.strerror}") from error
            if digest.hexdigest() != entry["sha256"]:
                raise MirrorError(f"{there} is not the file that its manifest describes")

        write_atomic(target, write)

    # ------------------------------------------------------------------ for people

    def uploaded(self, generation: Generation) -> str:
        """'uploaded', 'uploading' or 'unknown': what a mounted Drive says of this generation."""
        copies = [self.root / entry["name"] for entry in generation.files.values()]
        ids = [mount.drive_id(path) for path in (self._manifest(generation.number), *copies)]
        if any(identity is None for identity in ids):
            return "unknown"
        return "uploading" if any(i.startswith(b"local") for i in ids if i) else "uploaded"
