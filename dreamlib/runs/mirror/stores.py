"""The store of an address: a folder, or a URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from dreamlib.runs.mirror.cloud import Bucket, ObjectStore
from dreamlib.runs.mirror.filesystem import Folder, Store
from dreamlib.runs.mirror.servers import PASSWORD, Sftp, WebDav
from dreamlib.utils.errors import ConfigError

KINDS: dict[str, type[ObjectStore | Bucket | WebDav | Sftp]] = {
    **dict.fromkeys(("s3", "gs", "az", "abfs", "abfss"), ObjectStore),
    **{"hf": Bucket, "webdav": WebDav, "webdav+http": WebDav, "sftp": Sftp},
}


def open_store(home: Path | str) -> Store:
    """The store of a folder, or of a URL.  ConfigError for one that cannot be."""
    url = urlsplit(str(home))
    if "://" not in str(home):
        return Folder(Path(home))
    if url.password:
        raise ConfigError(
            f"{url.scheme}://{url.hostname}: a password in an address gets into logs: take it out, "
            f"and set {PASSWORD}"
        )
    if url.scheme not in KINDS:
        raise ConfigError(
            f"{home}: no store is known by {url.scheme}://; there are {', '.join(KINDS)}"
        )
    return KINDS[url.scheme](str(home))
