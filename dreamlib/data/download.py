"""Fetching a data set by the libraries of its hosts; every failure becomes one error, with why."""

from __future__ import annotations

import http.client
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

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
    return Path(_by("kagglehub", lambda kagglehub: kagglehub.dataset_download(dataset)))


def from_hub(dataset: str, revision: str) -> Path:
    """The parquet files of a data set on the Hugging Face hub, as they were at a commit, whose hash
    names their content.  Resumes by itself."""
    wanted = {"repo_type": "dataset", "revision": revision, "allow_patterns": "*.parquet"}
    return Path(_by("huggingface_hub", lambda hub: hub.snapshot_download(dataset, **wanted)))


def from_drive(folder: Path, file_id: str = CELEBA_ID, md5: str = CELEBA_MD5) -> Path:
    """CelebA's zip from Google Drive, checked; what is there already is gone on with.

    Works with gdown 5 (which returns None on failure, or saves the page that says why) and 6 (which
    raises).
    """
    from torchvision.datasets.utils import check_integrity

    path = folder / "img_align_celeba.zip"

    def download(gdown: Any) -> Any:
        folder.mkdir(parents=True, exist_ok=True)
        whole = check_integrity(str(path), md5)
        return whole or gdown.download(id=file_id, output=str(path), resume=True)

    if _by("gdown", download) is None or not path.is_file():
        raise Unavailable("Google Drive gave nothing: its daily quota is often used up")
    if not check_integrity(str(path), md5):
        with open(path, "rb") as file:
            is_page = file.read(512).lstrip().startswith(b"<")
        path.unlink()
        raise Unavailable(
            "Google Drive gave a web page, not the file: its daily quota is used up"
            if is_page
            else f"the file from Google Drive does not have md5 {md5}; it was deleted"
        )
    return path


def _by(name: str, fetch: Callable[[Any], Any]) -> Any:
    """What `fetch` gets by a host's library; whatever that or the network raises is Unavailable."""
    try:
        library = importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name} is not installed (pip install {name})") from error
    try:
        return fetch(library)
    except (*NETWORK, *_errors_of(library)) as error:
        reason = " ".join(str(error).split())[:200]
        raise Unavailable(f"{type(error).__name__}: {reason}") from error


def _errors_of(library: ModuleType) -> list[type[Exception]]:
    """The exceptions that a library defines for its users."""
    modules = [library, *(getattr(library, name, None) for name in ("errors", "exceptions"))]
    values = [value for module in modules if module for value in vars(module).values()]
    return [kind for kind in values if isinstance(kind, type) and issubclass(kind, Exception)]
