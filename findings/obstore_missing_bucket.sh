#!/bin/sh
# obstore 0.12.1 against an S3 server (moto 5.2.5), seen on 2026-12-01, Linux, Python 3.11.
#
# Guess: reading from a bucket that does not exist raises something that tells "no such bucket"
# from "no such object".
# Seen: get() AND put() on a missing bucket raise the builtin FileNotFoundError, the same type as for
# a missing object in a bucket that is there; errno and filename are None.  Only list() differs
# (GenericError), and only the text of the error holds NoSuchBucket.  So "FileNotFoundError: it was
# never saved" is a wrong conclusion, and a put() can fail with "file not found".
set -eu
place=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$place"' EXIT
server=
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    'obstore==0.12.1' 'moto[s3,server]==5.2.5' 2>/dev/null
port=$("$place/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$place/venv/bin/python" -m moto.server -p "$port" >/dev/null 2>&1 &
server=$!
export AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secret AWS_REGION=us-east-1
export AWS_ENDPOINT_URL="http://127.0.0.1:$port"
"$place/venv/bin/python" - <<'PY'
import time

import boto3
import obstore
from obstore.store import from_url

for _ in range(100):
    try:
        boto3.client("s3").create_bucket(Bucket="there")
        break
    except Exception:
        time.sleep(0.1)


def kind(call):
    try:
        call()
    except Exception as error:
        print(f"  {type(error).__mro__[0].__module__}.{type(error).__name__}, "
              f"errno {getattr(error, 'errno', '-')}, NoSuchBucket in text: {'NoSuchBucket' in str(error)}")
        return type(error)
    raise SystemExit("no error at all: the behaviour has changed")


stores = {name: from_url(f"s3://{name}/a", client_options={"allow_http": True}) for name in ("there", "missing")}
print("get of a missing object, bucket there:")
one = kind(lambda: obstore.get(stores["there"], "x"))
print("get, bucket missing:")
two = kind(lambda: obstore.get(stores["missing"], "x"))
print("put, bucket missing:")
three = kind(lambda: obstore.put(stores["missing"], "x", b"1"))
print("list, bucket missing:")
four = kind(lambda: list(obstore.list(stores["missing"])))
assert one is two is three is FileNotFoundError, "the behaviour has changed"
assert not issubclass(four, FileNotFoundError), "the behaviour has changed"
print("as stated")
PY
