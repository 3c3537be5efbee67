"""CelebA: found where it may already be, else fetched; the official partition and attributes.

Liu 2015.  Its images are numbered 000001 to 202599, and the official partition is by number.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import io
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from dreamlib.data.dataset import SPLITS, Contents, Source
from dreamlib.data.file_readers import folder_files, open_files
from dreamlib.data.formats import Files, open_image
from dreamlib.data.image_folder import UNREADABLE, items_of
from dreamlib.utils.context import say
from dreamlib.utils.errors import DataError
from dreamlib.utils.files import fingerprint

COUNT = 202_599
ALIGNED = (178, 218)  # pixels; those "in the wild" have the same names, and sizes of their own
FEW = 16  # images that are looked at to tell one set from another
LAST_TRAIN, LAST_VALID = 162_770, 182_637
SPLIT_OF = {0: "train", 1: "floor", 2: "reference"}  # of the official train, valid and test
IMAGE = re.compile(r"^(\d{6})\.(?:jpg|jpeg|png)$", re.I)
ATTRIBUTES, PARTITION = "list_attr_celeba", "list_eval_partition"
HUB_COMMIT = "2d738f56e0e7f925ea36ae7c808ea925264aacec"
DRIVE_ID = "0B7EVK8r0v71pZjFTYXZWM3FlRnM"  # img_align_celeba.zip on Google Drive
DRIVE_MD5 = "00d2c5bc6d35e252742224ab0c1e8fcb"
NETWORK = (OSError, ValueError, RuntimeError, http.client.HTTPException)
NAMED = "the path that was named"
KAGGLE_INPUTS = Path("/kaggle/input")
LICENCE = "CelebA is for non-commercial research: mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
MANUAL = (
    "get img_align_celeba.zip by hand (from the CelebA page, or Kaggle's "
    "jessicali9530/celeba-dataset), and name it or its folder: --data PATH"
)
# How a way to get the images is called in the log -> how to try it; raises DataError
Places = Mapping[str, Callable[[], Files]]


class Unavailable(DataError):
    """This way of getting the data did not work; another may."""


def celeba_source(
    size: int,
    *,
    path: Path | None,
    downloads: Path,
    inputs: Path = KAGGLE_INPUTS,
    first: int | None = None,
) -> Source:
    """CelebA at size x size; `first` keeps only training images up to that number.

    Nothing is looked for before the source is opened, which a packed set never needs.
    """
    description = {
        "size": size,
        "images": _which(path),
        "crop": "centre square: 178x178 of CelebA's 178x218",
        "filter": "Pillow bicubic, antialiased",
        "splits": "official: train; reference = test; floor = valid",
        "train images": first or LAST_TRAIN,
    }
    places = celeba_places(path, downloads, inputs)
    contents = partial(_contents, places, size, first or LAST_TRAIN)
    return Source("celeba", description, contents, str(path or "the places where CelebA may be"))


def _which(path: Path | None) -> str:
    """Which images a pack holds: all of CelebA's aligned ones, wherever they lay; else others, by
    their numbers and what a few of them are."""
    if path and path.exists():
        files = open_files(path)
        images = numbered(files)
        few = [files.read(name) for name in list(images.values())[:: max(1, len(images) // FEW)]]
        if len(images) < COUNT or not all(map(_aligned, few)):
            content = [list(images), *(hashlib.sha256(data).hexdigest() for data in few)]
            return f"{len(images):,}: {fingerprint(content)[:16]}"
    return f"all {COUNT:,}"


def _aligned(data: bytes) -> bool:
    try:
        return open_image(io.BytesIO(data)).size == ALIGNED
    except UNREADABLE:
        return True  # it will be rejected


def celeba_places(path: Path | None, downloads: Path, inputs: Path) -> Places:
    """Where to look, nearest first."""
    if path:
        return {NAMED: partial(open_files, path)}
    return {
        "earlier downloads": partial(attached, downloads),
        "attached inputs": partial(attached, inputs),
        "kagglehub": lambda: open_files(from_kagglehub("jessicali9530/celeba-dataset")),
        "Hugging Face": lambda: open_files(from_hub("flwrlabs/celeba", HUB_COMMIT)),
        "Google Drive": lambda: open_files(from_drive(downloads)),
    }


def find_celeba(places: Places) -> Files:
    """The first place that holds the images.  DataError with all that was tried, and what to do."""
    tried = []
    for title, find in places.items():
        try:
            files = find()
            count = len(numbered(files))
            if title != NAMED and count < COUNT:
                raise Unavailable(f"{files.place} holds {count:,} of {COUNT:,} images")
        except DataError as error:
            say(f"CelebA, {title}: no ({error})")
            tried.append(f"{title}: {error}")
        else:
            say(f"CelebA, {title}: {count:,} images in {files.place}. {LICENCE}")
            return files
    raise DataError(f"CelebA was not found. Tried: {'; '.join(tried)}. What to do: {MANUAL}")


def attached(folder: Path) -> Files:
    """CelebA somewhere below a folder, known by its first image or its zip, whatever the path."""
    passed_over = []
    try:
        names = folder_files(folder).names if folder.is_dir() else ()
    except OSError as error:
        raise Unavailable(f"{folder} cannot be read ({error})") from error
    for mark in (folder / name for name in names):
        if mark.name in ("000001.jpg", "img_align_celeba.zip"):
            try:
                files = open_files(mark if mark.suffix == ".zip" else mark.parent)
                count = len(numbered(files))
                if count == COUNT:
                    return files
                passed_over.append(f"{files.place} holds {count:,} images")  # of another set, say
            except DataError as error:
                passed_over.append(str(error))
    why = "; ".join(passed_over) or "neither 000001.jpg nor img_align_celeba.zip"
    raise Unavailable(f"no whole CelebA below {folder}: {why}")


def from_kagglehub(dataset: str) -> Path:
    """A Kaggle data set's folder; public ones need no account.  Resumes by itself."""
    return Path(_by("kagglehub", lambda kagglehub: kagglehub.dataset_download(dataset)))


def from_hub(dataset: str, revision: str) -> Path:
    """The parquet files of a data set on the Hugging Face hub, as they were at a commit, whose hash
    names their content.  Resumes by itself."""
    wanted = {"repo_type": "dataset", "revision": revision, "allow_patterns": "*.parquet"}
    return Path(_by("huggingface_hub", lambda hub: hub.snapshot_download(dataset, **wanted)))


def from_drive(folder: Path, file_id: str = DRIVE_ID, md5: str = DRIVE_MD5) -> Path:
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


def numbered(files: Files) -> dict[int, str]:
    """Number -> name of every CelebA image, in order.  DataError for none, or for one twice."""
    images: dict[int, str] = {}
    for name in files.names:
        if match := IMAGE.match(PurePosixPath(name).name):
            number = int(match[1])
            if images.setdefault(number, name) != name:
                raise DataError(
                    f"{files.place} holds image {number:06d} twice ({images[number]} and {name}): "
                    "leave one of them there"
                )
    if not images:
        raise DataError(
            f"{files.place} holds no images named 000001.jpg and so on, as CelebA does: for images "
            "of your own use --set data.name=folder"
        )
    return dict(sorted(images.items()))


def _contents(places: Places, size: int, last_train: int) -> Contents:
    files = find_celeba(places)
    images = numbered(files)
    partition = _partition(files, images)
    used = [n for n in images if partition[n] != "train" or n <= last_train]
    names, labels = _attributes(files, images, used)
    if missing := set(SPLITS) - {partition[number] for number in used}:
        raise DataError(
            f"{files.place} holds {len(images):,} of CelebA's {COUNT:,} images, and none of the "
            f"official partition's {', '.join(sorted(missing))} part: name a whole CelebA, or use "
            "--set data.name=folder, which splits by content"
        )
    chosen = [images[number] for number in used]
    known = {images[number]: (labels.get(number, ()), partition[number]) for number in used}
    items = items_of(files, chosen, size, lambda name, _: known[name])
    return Contents({n: ("no", "yes") for n in names}, len(used), items, fingerprint(chosen))


def _partition(files: Files, images: dict[int, str]) -> dict[int, str]:
    """The split of every image: from the official file when it is there, else by number."""
    table = _table(files, PARTITION)
    if table is None:
        return {n: SPLIT_OF[(n > LAST_TRAIN) + (n > LAST_VALID)] for n in images}
    _, cells = table
    if unknown := [n for n in images if n not in cells]:
        raise DataError(f"{PARTITION} has no line for image {unknown[0]:06d}: fetch it again")
    return {n: SPLIT_OF[int(cells[n][0])] for n in images}


def _attributes(
    files: Files, images: dict[int, str], used: list[int]
) -> tuple[list[str], dict[int, tuple[int, ...]]]:
    """Names of the attributes, and 0 or 1 for each of an image; none when they are not there."""
    if files.flags:
        flags = files.flags.values()
        return list(files.flags), {n: tuple(int(f[images[n]]) for f in flags) for n in used}
    table = _table(files, ATTRIBUTES)
    if table is None:
        return [], {}
    header, cells = table
    if odd := [n for n in used if len(cells.get(n, ())) != len(header)]:
        raise DataError(f"{ATTRIBUTES} has no whole line for image {odd[0]:06d}: fetch it again")
    return header, {n: tuple(int(int(v) > 0) for v in cells[n]) for n in used}


def _table(files: Files, stem: str) -> tuple[list[str], dict[int, list[str]]] | None:
    """Columns, and cells by image number, of one of CelebA's lists: .txt or Kaggle's .csv, among
    the files or beside their place."""
    called = (f"{stem}.txt", f"{stem}.csv")
    within = [name for name in files.names if PurePosixPath(name).name in called]
    above = Path(files.place).absolute().parents[:2]
    beside = [path for folder in above for name in called if (path := folder / name).is_file()]
    if not within and not beside:
        return None
    data = files.read(within[-1]) if within else beside[0].read_bytes()
    header: list[str] = []
    cells: dict[int, list[str]] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        first, *others = re.split(r"[,\s]+", line.strip())
        if match := IMAGE.match(first):
            cells[int(match[1])] = others
        elif not cells and others:
            header = [cell for cell in (first, *others) if cell != "image_id"]
    return header, cells
