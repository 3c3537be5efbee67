"""Fetching a data set by the libraries of its hosts; every failure becomes one error, with why."""

from __future__ import annotations

import http.client
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from dreamlib.utils.errors import DataError

CELEBA_ID = "0B7EVK8r0v71pZjFTYXZWM3FlRnM"  # img_align_celeba.zip on Google Drive
CELEBA_MD5 = "00d2c5bc6d35e252742224ab0c1e8fcb"
NETWORK = (OSError, ValueError, RuntimeError, http.client.HTTPException)


class Unavailable(DataError):
    """This way of getting the data did not work; another may."""


def fetched(
    name: str, download: Callable[[Path], None], cache: Path | str | None, remedy: str
) -> Path:
    """The folder `cache`, after `download` has put a data set there."""
    if cache is None:
        raise DataError(f"{name} is not on this machine; {remedy}")
    try:
        download(Path(cache))
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise DataError(f"{name} could not be downloaded ({error}); {remedy}") from error
    return Path(cache)


def from_kagglehub(dataset: str) -> Path:
    """A Kaggle data set's folder; public ones need no account.  Resumes by itself."""
    kagglehub = _library("kagglehub")
    return _try(lambda: Path(kagglehub.dataset_download(dataset)), kagglehub)


def from_hub(dataset: str, revision: str) -> Path:
    """The parquet files of a data set on the Hugging Face hub, as they were at a commit, whose hash
    names their content.  Resumes by itself."""
    hub = _library("huggingface_hub")
    wanted = {"repo_type": "dataset", "revision": revision, "allow_patterns": "*.parquet"}
    return _try(lambda: Path(hub.snapshot_download(dataset, **wanted)), hub)


def from_drive(folder: Path, file_id: str = CELEBA_ID, md5: str = CELEBA_MD5) -> Path:
    """CelebA's zip from Google Drive, checked; what is there already is gone on with.

    Works with gdown 5 (which returns None on failure, or saves the page that says why) and 6 (which
    raises).
    """
    from torchvision.datasets.utils import check_integrity, check_md5

    gdown = _library("gdown")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "img_align_celeba.zip"
    if not check_integrity(str(path), md5):
        got = _try(lambda: gdown.download(id=file_id, output=str(path), resume=True), gdown)
        if got is None or not path.is_file():
            raise Unavailable("Google Drive gave nothing: its daily quota is often used up")
    if _is_page(path):
        path.unlink()
        raise Unavailable("Google Drive gave a web page, not the file: its daily quota is used up")
    if not check_md5(str(path), md5):
        path.unlink()
        raise Unavailable(f"the file from Google Drive does not have md5 {md5}; it was deleted")
    return path


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name} is not installed (pip install {name})") from error


def _try(fetch: Callable[[], Path | str | None], library: ModuleType) -> Path | str | None:
    """Call a download; whatever its library or the network raises becomes Unavailable."""
    try:
        return fetch()
    except (*NETWORK, *_errors_of(library)) as error:
        said = " ".join(str(error).split())[:200]
        raise Unavailable(f"{type(error).__name__}: {said}") from error


def _errors_of(library: ModuleType) -> tuple[type[Exception], ...]:
    """The exceptions that a library defines for its users."""
    found = []
    for name in ("", ".errors", ".exceptions"):
        try:
            module = importlib.import_module(library.__name__ + name)
        except ImportError:
            continue
        classes = [value for value in vars(module).values() if isinstance(value, type)]
        found += [kind for kind in classes if issubclass(kind, Exception)]
    return tuple(found)


def _is_page(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(512).lstrip()[:1] == b"<"
