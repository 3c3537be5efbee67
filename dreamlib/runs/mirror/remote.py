"""What stores on the network share: an address, and one language of errors.

Their libraries have errors of their own, few of them OSError; some say "not found" of a bucket
that is not there, or publish half a file.  Here every refusal is one OSError that names what to do,
and a file is whole or absent: what was cut lies under another name, or is found by its hash.
"""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.client import responses
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from dreamlib.runs.mirror.filesystem import BLOCK
from dreamlib.utils.errors import ConfigError, DreamlibError

PART = ".part"  # behind the name of what is on its way
NO_BUCKET = "there is no such bucket: make it, or correct the address"
MEANING = (  # words in an error: number, and what to do
    (r"No ?Such ?Bucket|(Bucket|Repository|Container)NotFound|bucket does not exist", errno.ENODEV,
     NO_BUCKET),
    (r"Skewed|clock", errno.EACCES, "this machine's clock is wrong: set it"),
    (r"[Ee]xpired", errno.EACCES, "its keys have expired: give new ones"),
    (r"Precondition|AlreadyExists", errno.EEXIST, "another machine wrote there meanwhile"),
    (r"[Qq]uota|[Ss]torage limit|Insufficient|No space|Too Large", errno.ENOSPC,
     "it is full: free some space there, or take another place"),
    (r"size mismatch in put|OSError Failure$", errno.EIO,
     "an sftp server does not say why: it may be full, or beyond a quota"),
    (r"Denied|denied|Forbidden|Unauth|Authentic|InvalidAccessKey|SignatureDoes|40[13] Client",
     errno.EACCES, "its keys are refused, or may not do that: give others"),
    (r"BadHostKey|not found in known_hosts", errno.EACCES,
     "its host key is not known: connect once by `sftp`, and look at the key"),
    (r"Too Many Requests|Service Unavailable|SlowDown", errno.EAGAIN, "it asks to wait"),
    (r"[Tt]ime(d )?out|[Cc]onnect|resolve|sending request|EOFError|SSHException|closed",
     errno.ETIMEDOUT, "it does not answer: see that it runs, and that the address is right"),
)  # fmt: skip
STATUS = re.compile(r"(?:received |status code: |[Ee]rror '|^)(\d{3})\b")  # of HTTP
ABSENT = ("FileNotFoundError", "NotFoundError", "ResourceNotFound", "EntryNotFoundError")


def refusal(error: Exception, home: str, name: str) -> OSError:
    """What a library says, as an OSError of that place, with what to do where that is known."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    said = re.sub(r"https?://\S+", "", str(error).partition("Debug source")[0])
    said = said.replace(f"/{name}", "")  # names are no words
    for code in STATUS.findall(said):  # servers word them as they like, or not at all
        said += f" {responses.get(int(code), '')}"
    path, number = f"{home}/{name}", getattr(error, "errno", None)
    meant = [(n, why) for pattern, n, why in MEANING if re.search(pattern, f"{kinds[0]} {said}")]
    if not set(kinds).isdisjoint(ABSENT) and (errno.ENODEV, NO_BUCKET) not in meant:
        return OSError(errno.ENOENT, "it is not there", path)
    if meant:
        return OSError(*meant[0], path)
    return OSError(number or errno.EIO, f"{kinds[0]}: {said}".partition("\n")[0][:200], path)


class Remote:
    """What all of them share: an address, and errors in one language."""

    at_once, lease = 1, False

    def __init__(self, url: str):
        self.home, self.url = url.rstrip("/"), urlsplit(url.rstrip("/"))

    @contextmanager
    def asked(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except (DreamlibError, OSError) as error:
            if isinstance(error, DreamlibError) or error.filename:  # the run's own
                raise
            raise self.failed(error, name) from error
        except Exception as error:
            raise self.failed(error, name) from error

    def failed(self, error: Exception, name: str) -> OSError:
        return refusal(error, self.home, name)

    def told(self, name: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
        with self.asked(name):
            yield from blocks


class Reader(io.RawIOBase):
    """Blocks as a file that is read once."""

    def __init__(self, blocks: Iterable[bytes]):
        self.blocks, self.rest = iter(blocks), b""

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        self.rest = self.rest or next(self.blocks, b"")
        part, self.rest = self.rest[: len(into)], self.rest[len(into) :]
        into[: len(part)] = part
        return len(part)


def rest_of(kept: Any, file: Any) -> Iterator[bytes]:
    """What a file holds; it, and what it lies in, are closed behind it."""
    with kept, file:
        yield from iter(lambda: file.read(BLOCK), b"")


def library(name: str, url: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0].replace("_", "-")
        raise ConfigError(f"{url} needs the package {package}: pip install {package}") from error
