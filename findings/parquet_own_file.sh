#!/bin/sh
# pyarrow 26.0.1, seen on 2026-12-01, Linux, Python 3.11.  Needs 2.3 GB of disk and 8 GB of memory.
#
# Guess: pyarrow reads what pyarrow wrote, and iter_batches(16) needs the memory of a few batches.
# Seen: neither.  4,600 images of 500 kB in the hub's form (a struct of bytes and path) are written
# without a word; read() then refuses the file ("Nested data conversions not implemented for chunked
# array outputs"), because the bytes of the column pass 2 GiB, however small its row groups are.
# write_table's default makes one row group of all images: then the data set API refuses it too, and
# the first 16 images from iter_batches need the memory of the whole file, 2.3 GB.  In row groups of
# 100 images, both ways read it, and iter_batches needs 160 MB.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check 'pyarrow==26.0.1' 2>/dev/null
cat >"$place/write.py" <<'PY'
import os
import sys

import pyarrow as pa
from pyarrow import parquet

path, rows = sys.argv[1], int(sys.argv[2])
kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
table = pa.table({"image": pa.chunked_array([
    pa.array([{"bytes": os.urandom(500_000), "path": f"{k + i}.jpg"} for i in range(100)], kind)
    for k in range(0, 4600, 100)
])})
parquet.write_table(table, path, **({"row_group_size": rows} if rows else {}))
PY
cat >"$place/read.py" <<'PY'
import resource
import sys

import pyarrow as pa
from pyarrow import dataset, parquet

path, way = sys.argv[1:]
file = parquet.ParquetFile(path)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    if way == "read":
        count = file.read().num_rows
    elif way == "dataset":
        count = sum(batch.num_rows for batch in dataset.dataset(path).to_batches(batch_size=16))
    else:
        count = next(file.iter_batches(16, columns=["image.bytes"])).num_rows
    answer = f"{count} images"
except pa.ArrowNotImplementedError:
    answer = "ArrowNotImplementedError"
more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(f"{file.num_row_groups} row groups, {way}: {answer}, {more:,.0f} MiB more", file=sys.stderr)
print(answer.replace(" ", "_"), round(more))
PY
python="$place/venv/bin/python"
expect() { # answer, least and most MiB, path, way
    seen=$("$python" "$place/read.py" "$4" "$5")
    mib=${seen#* }
    [ "${seen% *}" = "$1" ] && [ "$mib" -ge "$2" ] && [ "$mib" -le "$3" ] || { echo "the behaviour has changed"; exit 1; }
}
"$python" "$place/write.py" "$place/one.parquet" 0
expect ArrowNotImplementedError 0 100000 "$place/one.parquet" read
expect ArrowNotImplementedError 0 100000 "$place/one.parquet" dataset
expect 16_images 2000 100000 "$place/one.parquet" iter_batches
rm "$place/one.parquet"
"$python" "$place/write.py" "$place/many.parquet" 100
expect ArrowNotImplementedError 0 100000 "$place/many.parquet" read
expect 4600_images 0 100000 "$place/many.parquet" dataset
expect 16_images 0 400 "$place/many.parquet" iter_batches
echo "as stated"
