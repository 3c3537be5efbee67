"""Stores that are rented: object stores (s3, gs, az) by obstore, the Hub's buckets (hf)."""

from __future__ import annotations

import hashlib
import os
import posixpath
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from dreamlib.runs.mirror.filesystem import BLOCK
from dreamlib.runs.mirror.remote import Remote, library, rest_of
from dreamlib.utils.errors import ConfigError

SINGLE = 5 << 20  # bytes below which an object is put in one request, and of each part of a larger


class Tag:
    """The ETag that S3 gives to what passes here: MD5 of an object put at once, else of its parts'
    MD5s.  Others give others (encrypted with a key of one's own; Google's, Azure's)."""

    def __init__(self) -> None:
        self.done, self.part, self.room = b"", hashlib.md5(usedforsecurity=False), SINGLE

    def hashing(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        for block in blocks:
            rest = memoryview(block)
            while rest:
                self.part.update(rest[: self.room])
                taken = min(self.room, len(rest))
                rest, self.room = rest[taken:], self.room - taken
                if not self.room:
                    self._next()
            yield block

    def _next(self) -> None:
        self.done += self.part.digest()
        self.part, self.room = hashlib.md5(usedforsecurity=False), SINGLE

    def text(self, size: int) -> str:
        if size < SINGLE:
            return self.part.hexdigest()
        if self.room < SINGLE:
            self._next()
        whole = hashlib.md5(self.done, usedforsecurity=False)
        return f"{whole.hexdigest()}-{len(self.done) // whole.digest_size}"


class ObjectStore(Remote):
    """S3 and what speaks like it, Google's and Azure's: keys and endpoint from the environment."""

    at_once, lease = 4, True  # most of a small file's time is waiting for the answer

    def __init__(self, url: str):
        super().__init__(url)
        self.api = library("obstore", url)
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        # The whole of a request: obstore's own 30 s never end a large file over a slow link.
        options = {"timeout": "2h", "connect_timeout": "20s", "allow_http": plain}
        with self.asked():
            self.store = import_module("obstore.store").from_url(
                url, client_options=options, retry_config={"max_retries": 3}
            )

    def create(self, name: str, blocks: Iterable[bytes], size: int) -> bool:
        tag = Tag()
        with self.asked(name):
            sent = tag.hashing(blocks)
            body = b"".join(sent) if size < SINGLE else sent
            put = self.api.put(self.store, name, body, chunk_size=SINGLE, max_concurrency=2)
        return (put["e_tag"] or "").strip('"') == tag.text(size)

    def replace(self, name: str, data: bytes, known: str | None = None) -> str:
        mode = {None: "overwrite", "": "create"}.get(known, {"e_tag": known})
        with self.asked(name):
            return self.api.put(self.store, name, data, mode=mode)["e_tag"] or ""

    def read(self, name: str) -> tuple[str, Iterator[bytes]]:
        with self.asked(name):
            found = self.api.get(self.store, name)
        return found.meta["e_tag"] or "", self.told(name, map(bytes, found.stream(BLOCK)))

    def list(self, under: str) -> dict[str, int]:
        with self.asked(under):
            parts = self.api.list(self.store, under.rstrip("/"))
            return {one["path"]: one["size"] for part in parts for one in part}

    def delete(self, *names: str) -> None:
        with self.asked(), suppress(FileNotFoundError):
            self.api.delete(self.store, list(names))


class Bucket(Remote):
    """hf://buckets/OWNER/NAME/...: the Hub's buckets, with its token; they hold no lease."""

    def __init__(self, url: str):
        super().__init__(url)
        kind, _, path = (self.url.netloc + self.url.path).partition("/")
        owner, name, under, *_ = [*path.split("/", 2), "", "", ""]
        if kind != "buckets" or not owner or not name:
            raise ConfigError(
                f"{url} is no bucket: hf://buckets/OWNER/NAME, and a folder if wanted"
            )
        self.id, self.under = f"{owner}/{name}", under
        self.api = library("huggingface_hub", url).HfApi()

    def _path(self, name: str) -> str:
        return posixpath.join(self.under, name)

    def create(self, name: str, blocks: Iterable[bytes], size: int) -> None:
        with self.asked(name), tempfile.NamedTemporaryFile() as file:
            file.writelines(blocks)
            file.flush()
            self.api.batch_bucket_files(self.id, add=[(file.name, self._path(name))])

    def replace(self, name: str, data: bytes, known: str | None = None) -> str:
        with self.asked(name):
            self.api.batch_bucket_files(self.id, add=[(data, self._path(name))])
        return ""

    def read(self, name: str) -> tuple[str, Iterator[bytes]]:
        file = tempfile.NamedTemporaryFile()  # noqa: SIM115  the iterator closes it
        with self.asked(name):
            wanted = [(self._path(name), file.name)]
            self.api.download_bucket_files(self.id, wanted, raise_on_missing_files=True)
        return "", rest_of(file, Path(file.name).open("rb"))

    def list(self, under: str) -> dict[str, int]:
        with self.asked(under):
            tree = self.api.list_bucket_tree(self.id, self._path(under.rstrip("/")), recursive=True)
            files = {one.path: one.size for one in tree if hasattr(one, "size")}
        return {posixpath.relpath(path, self.under or "."): files[path] for path in files}

    def delete(self, *names: str) -> None:
        with self.asked(), suppress(FileNotFoundError):
            self.api.batch_bucket_files(self.id, delete=[self._path(name) for name in names])
