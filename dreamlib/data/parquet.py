"""Images in parquet files, as the Hugging Face hub stores them, with their labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    """The images in their `image` column.

    Names are the stored paths, or numbers when there are none; a path that came before lies in a
    folder of its row's number.  The last row group is kept: reading in order decodes each once.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError("parquet files need pyarrow: pip install pyarrow") from error
    files: list[Any] = []
    groups: list[Callable[[str], list[Any]]] = []
    for path in paths:
        with _whole(path):
            file = parquet.ParquetFile(path)
            columns = [column.path for column in file.schema]
            if "image.bytes" not in columns:
                raise DataError(f"{path} has no column 'image' of bytes and path, but {columns}")
            if file.metadata.num_rows > max(path.stat().st_size, 2**20):
                raise DataError(f"{path} is refused: it has more rows than bytes")
        files.append(file)
        groups += [partial(_group_images, path, file, k) for k in range(file.num_row_groups)]
    rows = _row_names(groups)
    with _whole(paths[0].parent):
        flags, classes = _labels(files, list(rows))
    decoded: dict[int, list[bytes | None]] = {}
    lock = Lock()

    def read(name: str) -> bytes:
        group, row = rows[name]
        with lock:
            if group not in decoded:
                decoded.clear()
                decoded[group] = groups[group]("bytes")
            data = decoded[group][row]
        if data is None:
            raise ValueError("its row holds no image")
        return data

    return Files(str(paths[0].parent), tuple(sorted(rows)), read, flags, classes)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole parquet file ({error}): fetch it again") from error


def _group_images(path: Path, file: Any, group: int, field: str) -> list[Any]:
    """A field of the images in a row group; None where there is none."""
    meta = file.metadata.row_group(group)
    if file.schema_arrow.field("image").type.get_field_index(field) < 0:
        return [None] * meta.num_rows
    columns = [meta.column(k) for k in range(meta.num_columns)]
    columns = [column for column in columns if column.path_in_schema.startswith("image.")]
    size = sum(column.total_uncompressed_size for column in columns)
    limit, values = LARGEST_RATIO * max(path.stat().st_size, 2**20), []
    with _whole(path):
        batches = file.iter_batches(ROWS, row_groups=[group], columns=[f"image.{field}"])
        while size <= limit and (batch := next(batches, None)):
            size += batch.nbytes
            values += [(entry or {}).get(field) for entry in batch.column("image").to_pylist()]
    if size > limit:
        raise DataError(
            f"{path} is refused: its images would unpack to more than {LARGEST_RATIO} times its "
            "size; if you trust it, write them into a folder and name that"
        )
    return values


def _row_names(groups: Sequence[Callable[[str], list[Any]]]) -> dict[str, tuple[int, int]]:
    """Name -> group and row, in the files' own order."""
    rows: dict[str, tuple[int, int]] = {}
    known = extensions()
    for k, group in enumerate(groups):
        for row, stored in enumerate(group("path")):
            number = f"{len(rows) + 1:06d}"
            name = stored if isinstance(stored, str) and stored else number
            name = name if ending(name) in known else f"{name}.jpg"
            while name in rows:
                path = PurePosixPath(name)
                name = str(path.parent / number / path.name)
            rows[name] = k, row
    return rows


def _labels(files: Sequence[Any], names: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Files.flags and .classes, from columns that all have and that have no gaps."""
    import pyarrow
    from pyarrow import types

    schemas = [file.schema_arrow for file in files]
    class_names = _class_names(schemas[0])

    def shared(kind: Callable[[Any], bool], name: str) -> bool:
        return all(name in schema.names and kind(schema.field(name).type) for schema in schemas)

    flags = [name for name in schemas[0].names if shared(types.is_boolean, name)]
    numbers = [name for name in schemas[0].names if shared(types.is_integer, name)]
    label = [name for name in numbers if name in class_names or name == "label"][:1]
    table = pyarrow.concat_tables(file.read(columns=flags + label) for file in files)
    whole = [name for name in table.column_names if not table.column(name).null_count]
    values = {name: dict(zip(names, table.column(name).to_pylist())) for name in whole}
    classes: dict[str, str] = {}
    for column in set(label) & set(values):
        known = class_names.get(column) or {k: str(k) for k in values[column].values()}
        if known.keys() >= set(values[column].values()):  # -1 stands for an unknown one
            classes = {name: known[k] for name, k in values[column].items()}
    return {name: values[name] for name in flags if name in values}, classes


def _class_names(schema: Any) -> dict[str, dict[int, str]]:
    """Column -> number -> class, where the hub's metadata tells it."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        kinds = {name: kind for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
        return {name: dict(enumerate(map(str, kind["names"]))) for name, kind in kinds.items()}
    except (ValueError, LookupError, TypeError, AttributeError):  # none, or of another kind
        return {}
