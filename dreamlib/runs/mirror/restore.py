"""Bringing a run back: from its mirror, or from an earlier notebook's attached output."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextvars import copy_context
from functools import partial
from pathlib import Path

from dreamlib.runs.checkpoints import newest_checkpoint
from dreamlib.runs.folder import ESSENTIAL, RunDir
from dreamlib.runs.mirror.store import Generation, Mirror
from dreamlib.runs.mirror.uploader import PATIENCE
from dreamlib.utils.context import say, should_stop
from dreamlib.utils.errors import CheckpointError, Interrupted, MirrorError
from dreamlib.utils.files import check_fields, read_json, write_atomic
from dreamlib.utils.progress import duration

NOT_HERE = -2  # below the step of every generation, one without a checkpoint (-1) included


def fetch_newest(mirrors: Sequence[Mirror], run: RunDir, step: int = NOT_HERE) -> bool:
    """What is newest beyond `step` on several mirrors -> whether there was any.

    One that cannot be read is said; MirrorError when nothing else has the run.
    """
    failed, brought = None, False
    for mirror in mirrors:
        try:
            if fetch_newer(mirror, run, step):
                brought, newest = True, newest_checkpoint(run.checkpoints)
                step = newest.step if newest else step
        except MirrorError as error:
            failed = error
    if failed and step < 0 and not brought:
        raise failed
    if failed:
        say(f"going on without it: {failed}")
    return brought


def bring_run(mirror: Mirror, run: RunDir) -> bool:
    """The newest whole generation of a run that is not here -> whether there was one.

    MirrorError when the mirror cannot be read, or holds this run and no generation is whole.
    """
    return fetch_newer(mirror, run, NOT_HERE)


def fetch_newer(mirror: Mirror, run: RunDir, step: int) -> bool:
    """The newest generation beyond `step`, if there is one: another machine went further.

    Interrupted when that is asked for while the mirror is slow.
    """
    try:
        return _patiently(lambda: _bring(mirror, run, step), mirror.home)
    except OSError as error:
        if not Path(error.filename or mirror.home).is_relative_to(Path(mirror.home)):
            raise  # the run's own disk
        raise MirrorError(
            f"the mirror {mirror.home} cannot be read ({error.strerror or error}), and this run "
            "may be on it: mount it or connect to it, or go on without it (--mirror none)"
        ) from error


def _bring(mirror: Mirror, run: RunDir, step: int) -> bool:
    mirror.attach()
    newer = [generation for generation in mirror.generations() if generation.step > step]
    for flaw in mirror.unlisted(step):
        say(f"passing over what is newest in {mirror.root}: {flaw}")
    if newer and (run.folder / "run.json").exists():
        mirror.check_same(newer, run.identity(), run.folder)
    for generation in newer:
        missing = _pull(mirror, generation, run)
        number = f"generation {generation.number} of {mirror.root}"
        if lost := _needed(missing):
            say(f"passing over {number}: {', '.join(lost)} cannot be had whole")
            continue
        if missing:
            say(f"{len(missing)} files of {number} cannot be had whole: {', '.join(missing[:3])}")
        say(f"BROUGHT step {max(0, generation.step):,} from {number}")
        return True
    if step == NOT_HERE and (newer or mirror.traces()):
        raise MirrorError(
            f"{mirror.root} holds {len(newer)} copies of this run, and none is whole: wait until "
            "the mirror has synchronised; to begin anew, delete that folder or take another name"
        )
    return False


def _pull(mirror: Mirror, generation: Generation, run: RunDir) -> list[str]:
    """All files, the config last: a folder that has one holds a run.  -> which cannot be had."""
    names = sorted(generation.files, key=lambda name: name == "config.yaml")
    missing = mirror.pull(generation, run.folder, names[:-1]) + _misfits(generation, run)
    last = [] if _needed(missing) else names[-1:]
    return missing + mirror.pull(generation, run.folder, last)


def _needed(names: list[str]) -> list[str]:
    """Those without which a run does not go on."""
    return [name for name in names if name in ESSENTIAL or name.startswith("checkpoints/")]


def _misfits(generation: Generation, run: RunDir) -> list[str]:
    """Checkpoints whose data is not what their own manifest says: they were mirrored damaged."""
    names = []
    for name, entry in generation.files.items():
        manifest = run.folder / Path(name).with_suffix(".json")
        if name.startswith("checkpoints/") and name.endswith(".pt") and manifest.exists():
            try:
                sha256 = check_fields(read_json(manifest), sha256=str)["sha256"]
            except ValueError:
                sha256 = None
            names += [] if sha256 == entry["sha256"] else [name]
    return names


def _patiently(work: Callable[[], bool], place: Path | str) -> bool:
    """Read what may hang on a mount, in a thread that keeps nobody, saying so while it does."""
    done: Future[bool] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001  raised by the caller
            done.set_exception(error)

    threading.Thread(target=copy_context().run, args=(run,), name="mirror", daemon=True).start()
    start = told = time.monotonic()
    while not done.done():
        wait([done], 1.0)
        if should_stop():
            raise Interrupted(f"asked to stop while reading {place}")
        if not done.done() and time.monotonic() - told >= PATIENCE:
            told = time.monotonic()
            say(f"reading {place} ({duration(told - start)} so far)")
    return done.result()


def bring_output(folders: Sequence[Path], run: RunDir) -> bool:
    """A run from an earlier output, attached read-only: the one with the newest checkpoint."""
    steps: dict[int, Path] = {}
    for folder in folders:
        try:
            if newest := newest_checkpoint(folder / "checkpoints"):
                steps.setdefault(newest.step, folder)
        except CheckpointError as error:
            say(f"passing over {folder}: {error}")
    if not steps:
        return False
    step, source = max(steps.items())
    for name in sorted(RunDir(source).to_mirror(step), key=lambda name: name == "config.yaml"):
        with open(source / name, "rb") as file:
            write_atomic(run.folder / name, partial(shutil.copyfileobj, file))
    say(f"BROUGHT step {step:,} from the attached output {source}")
    return True
