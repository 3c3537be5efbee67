"""Generations of a run's files on another disk: a mounted Drive, a second disk, or a store by URL.

Such a place may upload late, lose what it has accepted, or vanish.  So nothing in it is ever
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
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from dreamlib.runs.folder import ESSENTIAL, RunDir
from dreamlib.runs.mirror import filesystem as mount
from dreamlib.runs.mirror.filesystem import Folder, Store, content, dumped
from dreamlib.runs.mirror.generation import FORMAT, Generation, numbers, whole_generation
from dreamlib.runs.mirror.remote import PART
from dreamlib.runs.mirror.stores import open_store
from dreamlib.utils.errors import MirrorError, RunError
from dreamlib.utils.files import check_fields, naming, plain_name, seal, write_atomic

KEEP = 3  # generations
SETTLE = 1800.0  # seconds after which a mount is believed to have uploaded what it took
AT_ONCE = 32  # files opened together
SAVED = re.compile(r"/checkpoints/step-(\d{8})~[^/]*\.pt$")
VERSIONED = re.compile(r"~[0-9a-f]{12}(\.[^.]*)?$")
MARKER = "dreamlib-mirror.json"


class Mirror:
    """The place `home`/runs/`name` on a mirror.  Every method may raise OSError: the mount's."""

    def __init__(self, home: Path | str, name: str, keep: int = KEEP, settle: float = SETTLE):
        self.store: Store = open_store(home)
        self.home = self.store.home
        # Whatever is deleted lies below this: a name that is a path would lead that elsewhere.
        self.under = f"runs/{plain_name(name)}/"
        self.keep, self.settle = keep, settle
        self.id = ""
        self.lease: bool | None = None  # whether the store holds one; None: not asked
        self.pulse: Callable[[], None] = lambda: None  # called often while copying
        self.beats = threading.Lock()
        # path in the run -> ((inode, size, time) of what was copied, entry)
        self.verified: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {}
        self.read: dict[int, Generation] = {}  # reading a file again can put off its upload

    @property
    def root(self) -> Any:
        """Where this run lies, for people: a path, or a URL."""
        return self.at(self.under.rstrip("/"))

    def at(self, name: str) -> Any:
        return self.home / name if isinstance(self.home, Path) else f"{self.home}/{name}"

    def distrust(self) -> None:
        """After a failure: the mount may have lost what it took, so read everything again."""
        self.verified.clear()
        self.read.clear()

    # ------------------------------------------------------------------ the mount

    def attach(self) -> None:
        """Make sure that this is the mirror, and the one it was.  Of two machines that begin one at
        once, one finds the other's marker, and goes by that: the run still has one owner."""
        here = self._marker()
        if self.id not in ("", here):
            if not self.store.list(self.under):
                raise OSError(errno.ENODEV, "another mirror is mounted there", str(self.home))
            self.distrust()
        self.id = here

    def _marker(self) -> str:
        """The id in a mirror's marker file, made where there is none yet.

        Where a mount is gone, its empty mount point looks like a folder on this machine's own disk:
        a marker tells them apart.  A torn one (its writer was killed, a cloud folder emptied it)
        tells as much, and is written again.  OSError when the mirror is not there.
        """
        if isinstance(self.home, Path) and not self.home.parent.is_dir():
            raise OSError(errno.ENOTCONN, "the folder it lies in is not there", str(self.home))
        try:
            return check_fields(content(self.store, MARKER), id=str)["id"]
        except (FileNotFoundError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and self.id:
                raise OSError(errno.ENOTCONN, "it is not mounted", str(self.home)) from error
        made = self.id or uuid.uuid4().hex
        self.store.replace(MARKER, dumped(seal({"id": made})))
        return made

    def holds_lease(self) -> bool:
        """Whether two machines cannot own a run here at once: the store must refuse to create what
        is there, and to replace what has changed.  Asked once, with the marker's own content."""
        if self.lease is None:
            data = b"".join(self.store.read(MARKER)[1])
            self.lease = self.store.lease
            for known in ("", '"another"') if self.lease else ():
                try:
                    self.store.replace(MARKER, data, known)
                    self.lease = False
                except FileExistsError:
                    continue
        return self.lease

    def check_same(self, found: list[Generation], run: str, folder: Path) -> None:
        """MirrorError when these generations, newest first, are another run's."""
        if found and found[0].facts["run"] != run:
            raise MirrorError(
                f"{self.root} holds another run of this name: rename the folder {folder}, or go "
                "on without a mirror (--mirror none)"
            )

    # ------------------------------------------------------------------ copying out

    def push(self, run: RunDir, identity: str) -> Generation:
        """Copy a run's files, verify them, then write the manifest; drop old generations.
        `identity` is the run's own.  A full mirror loses older generations, down to one, first."""
        while True:
            try:
                return self._push(run, identity)
            except OSError as error:
                self.distrust()
                if error.errno != errno.ENOSPC or not self._make_room():
                    raise

    def _push(self, run: RunDir, identity: str) -> Generation:
        self.attach()
        held = self.store.list(self.under)
        number = max(numbers(held), default=0) + 1
        with ExitStack() as stack:
            # An open file stays what it is while training replaces or drops it: the first ones
            # (checkpoint, weights and their card, log) are of one moment.
            with run.pair:
                names = run.to_mirror()
                paths = [run.folder / name for name in names]
                first = [stack.enter_context(open(path, "rb")) for path in paths[:AT_ONCE]]
            with ThreadPoolExecutor(self.store.at_once) as pool:
                copy = partial(self._copy, number=number, held=held)
                files = dict(zip(names, pool.map(copy, names, first)))
        for name, path in zip(names[AT_ONCE:], paths[AT_ONCE:]):
            with open(path, "rb") as file:
                files[name] = self._copy(name, file, number, held)
        facts = {"run": identity, "time": time.time()}
        record = seal({"format": FORMAT, "number": number, "facts": facts, "files": files})
        self.store.replace(self._manifest(number), dumped(record), "")
        try:
            back = content(self.store, self._manifest(number))
        except ValueError:
            back = None
        if back != record:
            raise self.altered(self._manifest(number))
        new = self.read[number] = Generation(number, facts, files)
        self._prune(self.keep, new)
        return new

    def _copy(
        self, name: str, file: IO[bytes], number: int, held: dict[str, int]
    ) -> dict[str, Any]:
        """Bring a file there, unless it is; `held`: sizes of what is -> its entry."""
        stat = os.fstat(file.fileno())
        signature = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        known, entry = self.verified.get(name, (None, {}))
        alone = f"{number:08d}~" if name in ESSENTIAL else ""  # else one lost file costs them all
        kept = held.get(self.under + entry.get("name", ""))
        if not alone and known == signature and kept == entry["size"]:
            return entry
        with naming(Path(file.name)):
            sha256 = mount.hash_of(mount.blocks(file, stat.st_size))
        here, version = PurePosixPath(name), f"{alone}{sha256[:12]}"
        versioned = str(here.with_name(f"{here.stem}~{version}{here.suffix}"))
        entry = {"name": versioned, "size": stat.st_size, "sha256": sha256}
        there = self.under + versioned
        if held.get(there) != entry["size"] or not self.reads(there, sha256):
            sent, digest = self.beating(mount.blocks(file, stat.st_size)), hashlib.sha256()
            told = self.store.create(there, mount.hashing(sent, digest), stat.st_size)
            if digest.hexdigest() != sha256 or not (told or self.reads(there, sha256)):
                raise self.altered(there)
        self.verified[name] = (signature, entry)
        return entry

    def reads(self, name: str, sha256: str) -> bool:
        """Whether a file there has this hash."""
        try:
            return mount.hash_of(self.beating(self.store.read(name)[1])) == sha256
        except FileNotFoundError:
            return False

    def altered(self, name: str) -> OSError:
        return OSError(errno.EIO, "reads back differently than written", str(self.at(name)))

    def beating(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        for part in parts:
            with self.beats:  # several files may be on their way
                self.pulse()
            yield part

    # ------------------------------------------------------------------ dropping

    def _prune(self, keep: int, new: Generation | None = None, *, settled: bool = True) -> None:
        """Drop generations; manifests go first, so that none promises what is gone.

        Kept are the newest, those of the newest steps (several may share one checkpoint), and,
        because a mount may still be uploading them all, the newest that has settled and the one
        that will settle next.  `new` is kept even if the mount's listing does not show it yet.
        """
        held = self.store.list(self.under)
        listed = [x for x in self.generations(held) if new is None or x.number != new.number]
        found = [*([new] if new else []), *listed]
        of_steps = {generation.step: generation for generation in reversed(found)}
        kept = found[:keep]
        if settled:
            kept += [of_steps[step] for step in sorted(of_steps)[-keep:]]
            older = next((i for i, x in enumerate(found) if self._settled(x)), len(found))
            kept += [*found[older : older + 1], *found[older - 1 : older]]
        counted = {generation.number for generation in kept}
        if gone := [self._manifest(n) for n in numbers(held) if n not in counted]:
            self.store.delete(*gone)
        used = {entry["name"] for generation in kept for entry in generation.files.values()}
        copies = {name for name in held if VERSIONED.search(name)}
        unused = {name for name in copies if name.removeprefix(self.under) not in used}
        if unused := sorted(unused | {name for name in held if name.endswith(PART)}):
            self.store.delete(*unused)

    def _settled(self, generation: Generation) -> bool:
        """Surely stored: its mount says so, or has had the time (through a FUSE mount that proves
        nothing)."""
        told = self.uploaded(generation) == "uploaded"
        past = time.time() - generation.facts["time"] >= self.settle
        return told or (past and (not isinstance(self.store, Folder) or self.store.vouched))

    def _make_room(self) -> bool:
        """Drop the oldest generation and half-copied files; False when one alone is left."""
        held = len(self.generations())
        self._prune(max(1, held - 1), settled=False)
        return len(self.generations()) < held

    def traces(self) -> bool:
        """Whether files of a run lie here, of a whole generation or not."""
        return any("~" in name for name in self.store.list(self.under))

    # ------------------------------------------------------------------ copying back

    def _manifest(self, number: int) -> str:
        return f"{self.under}manifest-{number:08d}.json"

    def generations(self, held: dict[str, int] | None = None) -> list[Generation]:
        """Those with a whole manifest (of the files `held`, if listed already), newest first;
        whether their files are there, `pull` sees."""
        found = []
        for number in numbers(self.store.list(self.under) if held is None else held):
            if number not in self.read:
                try:
                    record = content(self.store, self._manifest(number))
                    self.read[number] = whole_generation(number, record)
                except (FileNotFoundError, ValueError):  # half uploaded, or gone since
                    continue
            found.append(self.read[number])
        return found

    def unlisted(self, step: int) -> list[str]:
        """What is newer than `step` and every whole generation, and cannot be used."""
        whole, held = self.generations(), self.store.list(self.under)
        newest, furthest = (whole[0].number if whole else 0), max([step, *(x.step for x in whole)])
        torn = [f"its manifest {n} is not whole" for n in numbers(held) if n > newest]
        steps = sorted({int(match[1]) for name in held if (match := SAVED.search(name))})
        return torn + [f"no whole manifest lists step {n:,}" for n in steps if n > furthest]

    def pull(self, generation: Generation, folder: Path, names: Iterable[str]) -> list[str]:
        """Bring files of a generation into a run folder, each whole or not at all; those that are
        here stay -> the names that could not be had: absent, cut or altered on the mirror."""
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
        mount.inside(target, entry["name"])
        there = self.under + entry["name"]
        digest = hashlib.sha256()

        def write(file: IO[bytes]) -> None:
            for block in mount.hashing(self.store.read(there)[1], digest):
                try:
                    file.write(block)
                except OSError as error:
                    raise RunError(f"{target} cannot be written: {error.strerror}") from error
            if digest.hexdigest() != entry["sha256"]:
                raise MirrorError(f"{self.at(there)} is not the file that its manifest describes")

        write_atomic(target, write)

    # ------------------------------------------------------------------ for people

    def uploaded(self, generation: Generation) -> str:
        """As `Folder.uploaded`, of this generation; a store that was asked itself has it."""
        if not isinstance(self.store, Folder):
            return "uploaded"
        copies = [self.under + entry["name"] for entry in generation.files.values()]
        return self.store.uploaded([self._manifest(generation.number), *copies])
