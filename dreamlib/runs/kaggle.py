"""A run as a Kaggle data set: an export at the end of a session, that the next one attaches."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from dreamlib.runs.folder import RunDir
from dreamlib.utils.errors import ConfigError, RunError
from dreamlib.utils.files import sha256_file


def publish(run: RunDir, name: str) -> int:
    """Upload what another machine needs as a new version of the data set `name`, OWNER/NAME, and
    read it back: Kaggle's client can call an upload successful of which nothing arrived.

    -> the number of files.  The data set is private when it is new.  Raises ConfigError without
    kagglehub, RunError when Kaggle refuses or gives back something else.
    """
    try:
        import kagglehub
    except ModuleNotFoundError as error:
        raise ConfigError("a Kaggle data set needs kagglehub: pip install kagglehub") from error
    names = run.to_mirror()
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, run.name)  # a folder of the run's name: so it is found when attached
        for file in names:
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run.folder / file, copy / file)
        hashes = {file: sha256_file(copy / file) for file in names}
        _asked(lambda: kagglehub.dataset_upload(name, scratch), name)
        back = _asked(lambda: kagglehub.dataset_download(name, force_download=True), name)
    there = Path(back) / run.name
    lost = [x for x in names if not (there / x).is_file() or sha256_file(there / x) != hashes[x]]
    if lost:
        raise RunError(
            f"Kaggle took {name} and does not give all of it back yet ({len(lost)} of "
            f"{len(names)} files, {lost[0]} among them): look at its page, and publish again"
        )
    return len(names)


def _asked(call: Any, name: str) -> Any:
    try:
        return call()
    except Exception as error:
        words = str(error).partition("\n")[0][:200]
        raise RunError(
            f"Kaggle refuses {name} ({words}): check the name, and the token (KAGGLE_API_TOKEN, or "
            "a notebook's secrets)"
        ) from error
