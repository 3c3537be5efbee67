"""Weights that others have trained: found on disk, or downloaded, and checked either way.

A file counts only if its SHA-256 is the one that is known.  A wrong file is refused, never passed
over, and nothing takes the place of weights that cannot be had.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dreamlib.utils.context import progress
from dreamlib.utils.errors import WeightsUnavailable
from dreamlib.utils.files import sha256_file, write_atomic
from dreamlib.utils.progress import silent

SECONDS = 10.0  # that a server may take to answer or to send the next block
BLOCK = 1 << 20
# What the network, a server or the disk may raise; ValueError is also our word for a wrong hash.
TROUBLE = (OSError, ValueError, http.client.HTTPException)


@dataclass(frozen=True)
class Pretrained:
    """A file of weights: its name, where it can be had, what it is, what to do without it."""

    filename: str
    sha256: str  # all of it, or as many first digits as are known
    urls: tuple[str, ...]  # tried in turn; each must give the very same file
    what: str
    without: str


INCEPTION = Pretrained(
    "pt_inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    (
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
    ),
    "Inception-2015, for FID",
    "For images with labels, evaluate.extractor=classifier needs no such file",
)
ALEXNET = Pretrained(
    "alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",),
    "AlexNet, the trunk of LPIPS",
    "Without it there is no LPIPS",
)


def find_weights(search: Sequence[Path], file: Pretrained) -> Path:
    """The first `file` in the folders of `search`, in their order; nothing is downloaded.

    An item may also be the file itself, under any name; one whose name ends in the 8 digits of
    another network is not meant for this one.  WeightsUnavailable where the first hit has another
    hash, or where there is none.
    """
    if path := _locate(search, file):
        return path
    raise _unavailable(search, file)


def obtain(search: Sequence[Path], file: Pretrained, download_to: Path) -> Path:
    """`find_weights`, or else a download from each URL in turn into the folder `download_to`.

    The download goes to a temporary file beside, and gets its name when its hash is right, so
    that a cut one leaves nothing, and two at once do no harm.  WeightsUnavailable, with what each
    URL said, where all of that fails.
    """
    target = Path(download_to) / file.filename
    places = [*search, target.parent]
    if path := _locate(places, file):
        return path
    failures = []
    for url in file.urls:
        try:
            _download(url, target, file)
            return target
        except TROUBLE as error:
            why = " ".join(str(error).split())[:200]
            failures.append(f"{url} ({type(error).__name__}: {why})")
    if path := _locate(places, file):  # another process may have been luckier meanwhile
        return path
    tried = "; ".join(failures) or "no address is known"
    raise _unavailable(places, file, f"Downloads failed: {tried}. ")


def _locate(search: Sequence[Path], file: Pretrained) -> Path | None:
    for place in map(Path, search):
        path = place / file.filename if place.is_dir() else place
        digits = re.search(r"-([0-9a-f]{8})\.\w+$", path.name)
        if not path.is_file() or (digits and file.sha256[:8] not in (digits[1], "")):
            continue
        if not (digest := sha256_file(path)).startswith(file.sha256):
            raise WeightsUnavailable(
                f"{path} is damaged or another file, with SHA-256 {digest}, not {file.sha256}: "
                f"name another place, or put {file.filename} there"
            )
        return path
    return None


def _unavailable(search: Sequence[Path], file: Pretrained, tried: str = "") -> WeightsUnavailable:
    places = ", ".join(dict.fromkeys(map(str, search))) or "no folder at all"
    return WeightsUnavailable(
        f"{file.filename} ({file.what}; SHA-256 {file.sha256 or 'unknown'}) was not found; "
        f"searched: {places}. {tried}Download it elsewhere, from {' or '.join(file.urls)}, and put "
        f"it under the name {file.filename} into one of these folders, or name its folder by "
        f"DREAMLIB_WEIGHTS or --set evaluate.weights=FOLDER. {file.without}"
    )


def _download(url: str, target: Path, file: Pretrained) -> None:
    """Put what `url` gives at `target` if its hash is right; one of TROUBLE otherwise."""

    def write(out: IO[bytes]) -> None:
        digest = hashlib.sha256()
        request = urllib.request.Request(url, headers={"User-Agent": "dreamlib"})
        # torch.hub's download has no timeout and would wait for minutes behind a firewall.
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            total = int(answer.headers.get("Content-Length") or 0)
            advance = (progress if total else silent)(f"{file.what}, MiB", -(-total // BLOCK))
            while block := answer.read(BLOCK):
                out.write(block)
                digest.update(block)
                advance(1)
        if not digest.hexdigest().startswith(file.sha256):
            size = f"{out.tell():,}" + (f" of {total:,}" if total else "")
            raise ValueError(f"{size} bytes came, whose SHA-256 is {digest.hexdigest()}")

    write_atomic(target, write)
