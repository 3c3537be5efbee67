"""Images in parquet files, as the Hugging Face hub stores them, with their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

from dreamlib.data.formats import LARGEST_RATIO, Files, ending, extensions
from dreamlib.utils.errors import DataError
from dreamlib.utils.files import parse_json

ROWS = 64  # unpacked together


def parquet_files(paths: Sequence[Path]) -> Files:
    """Images of parquet files with an `image` column, as the Hugging Face hub stores them.

    Names are the stored paths, or numbers when there are none; a path that came before lies in a
    folder of its row's number.  Neighbours lie in one row group, which is kept, so that reading in
    order decodes each group once.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError("parquet files need pyarrow: pip install pyarrow") from error
    groups: list[Callable[[str], list[Any]]] = []
    for path in paths:
        with _whole(path):
            file = parquet.ParquetFile(path)
            columns = [column.path for column in file.schema]
            if "image.bytes" not in columns:
                raise DataError(f"{path} has no column 'image' of bytes and path, but {columns}")
            if file.metadata.num_rows > max(path.stat().st_size, 2**20):
                raise DataError(f"{path} is refused: it has more rows than bytes")
            groups += [partial(_images, path, file, k) for k in range(file.num_row_groups)]
    rows: dict[str, tuple[int, int]] = {}
    known = extensions()
    for number, group in enumerate(groups):
        for row, stored in enumerate(group("path")):
            rows[_row_name(stored, known, rows)] = number, row
    kept: dict[int, list[bytes | None]] = {}
    lock = Lock()

    def read(name: str) -> bytes:
        number, row = rows[name]
        with lock:
            if number not in kept:
                kept.clear()
                kept[number] = groups[number]("bytes")
            data = kept[number][row]
        if data is None:
            raise ValueError("its row holds no image")
        return data

    with _whole(paths[0].parent):
        labels = _labels(paths, list(rows))
    return Files(str(paths[0].parent), tuple(sorted(rows)), read, **labels)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole parquet file ({error}): fetch it again") from error


def _images(path: Path, file: Any, group: int, field: str) -> list[Any]:
    """A field of the images in a row group; None where there is none."""
    meta = file.metadata.row_group(group)
    if file.schema_arrow.field("image").type.get_field_index(field) < 0:
        return [None] * meta.num_rows
    parts = (meta.column(k) for k in range(meta.num_columns))
    size = sum(x.total_uncompressed_size for x in parts if x.path_in_schema.startswith("image."))
    limit, found = LARGEST_RATIO * max(path.stat().st_size, 2**20), []
    with _whole(path):
        batches = file.iter_batches(ROWS, row_groups=[group], columns=[f"image.{field}"])
        while size <= limit and (batch := next(batches, None)):
            size += batch.nbytes
            found += [(entry or {}).get(field) for entry in batch.column("image").to_pylist()]
    if size > limit:
        raise DataError(
            f"{path} is refused: its images would unpack to more than {LARGEST_RATIO} times its "
            "size; if you trust it, write them into a folder and name that"
        )
    return found


def _row_name(stored: Any, known: set[str], taken: Mapping[str, Any]) -> str:
    number = f"{len(taken) + 1:06d}"
    name = stored if isinstance(stored, str) and stored else number
    name = name if ending(name) in known else f"{name}.jpg"
    while name in taken:
        path = PurePosixPath(name)
        name = str(path.parent / number / path.name)
    return name


def _labels(paths: Sequence[Path], names: list[str]) -> dict[str, Any]:
    """`flags` and `classes` of Files, from columns that all files have and that have no gaps;
    `names` are in the files' own order."""
    import pyarrow
    from pyarrow import parquet, types

    schemas = [parquet.read_schema(path) for path in paths]
    told = _class_names(schemas[0])

    def shared(kind: Callable[[Any], bool]) -> list[str]:
        names = [field.name for field in schemas[0] if all(field.name in s.names for s in schemas)]
        return [name for name in names if all(kind(s.field(name).type) for s in schemas)]

    flags = shared(types.is_boolean)
    label = [name for name in shared(types.is_integer) if name in told or name == "label"][:1]
    table = pyarrow.concat_tables(parquet.read_table(p, columns=flags + label) for p in paths)
    whole = [name for name in table.column_names if not table.column(name).null_count]
    values = {name: dict(zip(names, table.column(name).to_pylist())) for name in whole}
    classes: dict[str, str] = {}
    for column in set(label) & set(values):
        known = told.get(column) or {number: str(number) for number in values[column].values()}
        if known.keys() >= set(values[column].values()):  # -1 stands for an unknown one
            classes = {name: known[number] for name, number in values[column].items()}
    return {"flags": {name: values[name] for name in flags if name in values}, "classes": classes}


def _class_names(schema: Any) -> dict[str, dict[int, str]]:
    """Column -> number -> class, where the hub's metadata tells it."""
    try:
        told = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {name: kind for name, kind in told.items() if kind.get("_type") == "ClassLabel"}
        return {name: dict(enumerate(map(str, kind["names"]))) for name, kind in kinds.items()}
    except (ValueError, LookupError, TypeError, AttributeError):  # none, or of another kind
        return {}
