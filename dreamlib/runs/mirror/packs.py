"""Packed images on a mirror, beside its runs: so that another machine need not pack them again."""

from __future__ import annotations

import hashlib
import os
import shutil
from functools import partial
from pathlib import Path
from typing import IO

from dreamlib.data.dataset import MANIFEST, Packed
from dreamlib.data.prepare import bring
from dreamlib.runs.mirror import filesystem as mount
from dreamlib.runs.mirror.filesystem import Store
from dreamlib.runs.mirror.store import Mirror
from dreamlib.utils.context import say
from dreamlib.utils.errors import MirrorError, what_failed
from dreamlib.utils.files import write_atomic


def copy_pack(data: Packed, mirror: Mirror) -> None:
    """Copy packed images into the mirror's data/ under their own names, the manifest last, unless
    they are there."""
    store, under = mirror.store, f"data/{data.folder.name}/"
    if not data.manifest["files"] or _manifest(store, under) == _own(data.folder):
        return
    for name in (*data.manifest["files"], MANIFEST):
        with open(data.folder / name, "rb") as source:
            size, digest = os.fstat(source.fileno()).st_size, hashlib.sha256()
            parts = mirror.beating(mount.blocks(source, size))
            told = store.create(under + name, mount.hashing(parts, digest), size)
        if not told and not mirror.reads(under + name, digest.hexdigest()):
            raise mirror.altered(under + name)


def bring_pack(store: Store, folder: Path) -> None:
    """Packed images of this folder's name, if they are there and not here.  Said, not raised, when
    they cannot be had."""
    if isinstance(store.home, Path):
        return bring(store.home / "data" / folder.name, folder)
    under, beside = f"data/{folder.name}/", folder.with_name(f".{folder.name}.fetched")
    if (folder / MANIFEST).is_file():
        return
    try:
        if _manifest(store, under) is not None:
            for name in store.list(under):
                write = partial(_fill, store, name)
                write_atomic(mount.inside(beside, name.removeprefix(under)), write)
            bring(beside, folder)
    except (OSError, MirrorError) as error:
        say(f"the packed images in {store.home}/{under} are passed over: {what_failed(error)}")
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _own(folder: Path) -> bytes:
    return (folder / MANIFEST).read_bytes()


def _manifest(store: Store, under: str) -> bytes | None:
    try:
        return b"".join(store.read(under + MANIFEST)[1])
    except FileNotFoundError:
        return None


def _fill(store: Store, name: str, file: IO[bytes]) -> None:
    for block in store.read(name)[1]:
        file.write(block)
