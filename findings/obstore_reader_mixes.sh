#!/bin/sh
# obstore 0.12.1, s3fs 2026.9.0 and boto3 1.43 against an S3 server (moto 5.2.5), seen on 2026-12-01,
# Linux, Python 3.11.
#
# Guess: an object that is replaced while it is read in pieces gives an error; S3 has If-Match for it.
# Seen: s3fs (FileExpired) and boto3's download_fileobj (S3DownloadFailedError) do so.  obstore's
# open_reader does not: it gives the beginning of the old object and the rest of the new one, as one
# file of the right length, without a word.  One get() that is streamed is whole: the old object.
set -eu
place=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$place"' EXIT
server=
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    'obstore==0.12.1' 's3fs==2026.9.0' 'boto3>=1.43,<1.44' 'moto[s3,server]==5.2.5' 2>/dev/null
port=$("$place/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$place/venv/bin/python" -m moto.server -p "$port" >/dev/null 2>&1 &
server=$!
export AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secret AWS_REGION=us-east-1
export AWS_ENDPOINT_URL="http://127.0.0.1:$port"
"$place/venv/bin/python" - <<'PY'
import io
import os
import time

import boto3
import obstore
import s3fs
from boto3.s3.transfer import TransferConfig
from obstore.store import from_url

SIZE, PIECE = 8_000_000, 3_000_000
client = boto3.client("s3", region_name="us-east-1")
for _ in range(300):
    try:
        client.create_bucket(Bucket="bucket")
        break
    except Exception:
        time.sleep(0.1)


def save(letter):
    client.put_object(Bucket="bucket", Key="model", Body=letter * SIZE)


def seen(what, read):
    save(b"a")
    try:
        data = read()
        answer = {letter: data.count(letter.encode()) for letter in "ab"}
    except Exception as error:
        answer = type(error).__name__
    print(f"{what}: {answer}")
    return answer


def in_pieces(file):
    first = bytes(file.read(PIECE))
    save(b"b")
    return first + bytes(file.read())


def streamed():
    parts = iter(obstore.get(store, "model").stream(1 << 20))
    first = bytes(next(parts))
    save(b"b")
    return first + b"".join(map(bytes, parts))


def by_boto3():
    file, config = io.BytesIO(), TransferConfig(1 << 20, 1, 1 << 20, use_threads=False)
    replaced = []
    client.download_fileobj("bucket", "model", file, Config=config,
                            Callback=lambda n: replaced or replaced.append(save(b"b")))
    return file.getvalue()


store = from_url("s3://bucket", client_options={"allow_http": True})
files = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"])
mixed = seen("obstore.open_reader", lambda: in_pieces(obstore.open_reader(store, "model")))
whole = seen("obstore.get().stream()", streamed)
refused = seen("s3fs open", lambda: in_pieces(files.open("bucket/model", block_size=1 << 20))), seen(
    "boto3 download_fileobj", by_boto3)
assert mixed["a"] and mixed["b"] and mixed["a"] + mixed["b"] == SIZE, "the behaviour has changed"
assert whole == {"a": SIZE, "b": 0}, "the behaviour has changed"
assert refused == ("FileExpired", "S3DownloadFailedError"), "the behaviour has changed"
print("as stated")
PY
