"""Servers of one's own, or of a university: WebDAV by webdav4, SFTP by paramiko."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import posixpath
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from dreamlib.runs.mirror.filesystem import BLOCK
from dreamlib.runs.mirror.remote import PART, Reader, Remote, library, rest_of

PASSWORD = "DREAMLIB_MIRROR_PASSWORD"  # the variable that holds it
ANSWER = 60.0  # seconds that a server may take for one answer


class WebDav(Remote):
    """webdav://[USER@]HOST/...: by https, webdav+http:// without.  A lease where it heeds ETags."""

    lease = True

    def __init__(self, url: str):
        super().__init__(url)
        scheme = "http" if self.url.scheme.endswith("+http") else "https"
        host = self.url.netloc.rpartition("@")[2]
        login = (self.url.username, os.environ.get(PASSWORD, "")) if self.url.username else None
        client = library("webdav4.client", url).Client
        self.client = client(f"{scheme}://{host}", auth=login, timeout=ANSWER)
        self.under, self.made = self.url.path.strip("/"), set()

    def _path(self, name: str) -> str:
        return posixpath.join(self.under, name)

    def _folder(self, path: str) -> None:
        """Make a folder and those above it."""
        if path and path not in self.made:
            self._folder(posixpath.dirname(path))
            if not self.client.exists(path):
                self.client.mkdir(path)
            self.made.add(path)

    def create(self, name: str, blocks: Iterable[bytes], size: int) -> None:
        path = self._path(name)
        with self.asked(name):
            self._folder(posixpath.dirname(path))
            self.client.upload_fileobj(Reader(blocks), path + PART, overwrite=True, size=size)
            self.client.move(path + PART, path, overwrite=True)

    def replace(self, name: str, data: bytes, known: str | None = None) -> str:
        path, when = (
            self._path(name),
            {"If-None-Match": "*"} if known == "" else {"If-Match": known},
        )
        with self.asked(name):
            self._folder(posixpath.dirname(path))
            self.client.upload_fileobj(
                io.BytesIO(data), path, overwrite=True, headers={} if known is None else when
            )
            return self._tag(path)

    def _tag(self, path: str) -> str:
        return f'"{(self.client.info(path).get("etag") or "").strip(chr(34))}"'

    def read(self, name: str) -> tuple[str, Iterator[bytes]]:
        path = self._path(name)
        with self.asked(name):
            tag = self._tag(path)
        return tag, self.told(name, self._blocks(path))

    def _blocks(self, path: str) -> Iterator[bytes]:
        with self.client.open(path, "rb") as file:
            yield from iter(lambda: file.read(BLOCK), b"")

    def list(self, under: str) -> dict[str, int]:
        found = {}
        with self.asked(under):
            try:
                entries = self.client.ls(self._path(under.rstrip("/")), detail=True)
            except import_module("webdav4.client").ResourceNotFound:
                return {}
            for entry in entries:
                name = posixpath.relpath(entry["name"], self.under or ".")
                if entry["type"] == "directory":
                    found |= self.list(name)
                else:
                    found[name] = entry["content_length"]
        return found

    def delete(self, *names: str) -> None:
        for name in names:
            with suppress(FileNotFoundError), self.asked(name):
                self.client.remove(self._path(name))


class Sftp(Remote):
    """sftp://[USER@]HOST[:PORT]/...: known hosts and keys as `ssh` has them.  Its lease is a
    folder, which only one machine can make."""

    lease = True

    def __init__(self, url: str):
        super().__init__(url)
        self.library, self.held = library("paramiko", url), None

    @property
    def files(self) -> Any:
        if self.held is None:
            client = self.library.SSHClient()
            client.load_system_host_keys()
            where = {"port": self.url.port or 22, "username": self.url.username}
            waits = dict.fromkeys(("timeout", "banner_timeout", "auth_timeout"), 20)
            password = os.environ.get(PASSWORD)
            client.connect(self.url.hostname, password=password, **where, **waits)
            self.held, self.client = client.open_sftp(), client
            self.held.get_channel().settimeout(ANSWER)
        return self.held

    def failed(self, error: Exception, name: str) -> OSError:
        told = super().failed(error, name)
        if told.errno not in (errno.ENOENT, errno.EEXIST):
            self.held = None  # connect anew
        return told

    def _path(self, name: str) -> str:
        return posixpath.join(self.url.path, name)

    def _folder(self, path: str) -> None:
        try:
            self.files.stat(path)
        except FileNotFoundError:
            self._folder(posixpath.dirname(path))
            self.files.mkdir(path)

    def create(self, name: str, blocks: Iterable[bytes], size: int) -> None:
        path = self._path(name)
        with self.asked(name):
            self._folder(posixpath.dirname(path))
            self.files.putfo(Reader(blocks), path + PART, size)
            self.files.posix_rename(path + PART, path)

    def replace(self, name: str, data: bytes, known: str | None = None) -> str:
        path = self._path(name)
        with self.asked(name):
            self._folder(posixpath.dirname(path))
            with self._alone(path + ".lock"):
                if known is not None and known != self._tag(path):
                    raise FileExistsError("AlreadyExists")
                self.files.putfo(io.BytesIO(data), path + PART)
                self.files.posix_rename(path + PART, path)
        return hashlib.sha256(data).hexdigest()

    def _tag(self, path: str) -> str:
        try:
            with self.files.open(path, "rb") as file:
                return hashlib.sha256(file.read()).hexdigest()
        except FileNotFoundError:
            return ""

    @contextmanager
    def _alone(self, lock: str) -> Iterator[None]:
        """Hold a folder that only one machine can make; one that stands long is of a dead one."""
        for _ in range(50):
            with suppress(OSError):
                self.files.mkdir(lock)
                break
            time.sleep(0.2)
        try:
            yield
        finally:
            with suppress(OSError):
                self.files.rmdir(lock)

    def read(self, name: str) -> tuple[str, Iterator[bytes]]:
        path = self._path(name)
        with self.asked(name):
            file = self.files.open(path, "rb")
            file.prefetch(max_concurrent_requests=64)
            tag = self._tag(path) if name.endswith(".json") else ""
        return tag, self.told(name, rest_of(file, file))

    def list(self, under: str) -> dict[str, int]:
        found, folder = {}, under.rstrip("/")
        with self.asked(under):
            try:
                entries = self.files.listdir_attr(self._path(folder))
            except FileNotFoundError:
                return {}
            for entry in entries:
                name = posixpath.join(folder, entry.filename)
                if (entry.st_mode or 0) & 0o170000 == 0o040000:
                    found |= self.list(name)
                else:
                    found[name] = entry.st_size
        return found

    def delete(self, *names: str) -> None:
        for name in names:
            with suppress(FileNotFoundError), self.asked(name):
                self.files.remove(self._path(name))
