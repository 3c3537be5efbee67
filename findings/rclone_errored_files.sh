#!/bin/sh
# rclone 1.60.1 (Debian 12) mounting a WebDAV server (WsgiDAV 4.4.0), seen on 2026-12-01, FUSE 3.
#
# Guess: when the server refuses a file again and again, `rclone rc vfs/stats` counts it in
# erroredFiles, the field of that name.
# Seen: erroredFiles stays 0 and outOfSpace false; the file counts as uploadsInProgress or
# uploadsQueued, as a healthy one does, while the whole file is sent to the server over and over: in
# 25 s, several times its size.  Only core/stats tells: errors, and the server's words in lastError.
# What was written through the mount reads back well all the time.
set -eu
for tool in rclone fusermount3; do
    command -v $tool >/dev/null || { echo "no $tool (apt-get install rclone fuse3): nothing was run"; exit 0; }
done
[ -w /dev/fuse ] || { echo "no FUSE here: nothing was run"; exit 0; }
place=$(mktemp -d)
server=; mount=
clean() {
    fusermount3 -u "$place/mount" 2>/dev/null || true
    kill $server $mount 2>/dev/null || true
    sleep 1
    rm -rf "$place"
}
trap clean EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check 'wsgidav==4.4.0' 'cheroot==11.1.2' 2>/dev/null
free='import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
port=$("$place/venv/bin/python" -c "$free"); rc=$("$place/venv/bin/python" -c "$free")
mkdir "$place/store" "$place/mount"
# A disk that is full beyond 100,000 bytes a file: the write fails, and the server goes on.
"$place/venv/bin/python" - "$place/venv/bin/wsgidav" --host 127.0.0.1 --port "$port" \
    --root "$place/store" --auth anonymous --no-config >/dev/null 2>&1 <<'PY' &
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
os.execv(sys.argv[1], sys.argv[1:])
PY
server=$!
sleep 5
rclone version | head -n 1
RCLONE_CONFIG=/dev/null rclone mount ":webdav,url='http://127.0.0.1:$port',vendor=other:" "$place/mount" \
    --vfs-cache-mode writes --vfs-write-back 1s --cache-dir "$place/cache" \
    --rc --rc-no-auth --rc-addr "127.0.0.1:$rc" >/dev/null 2>&1 &
mount=$!
for _ in $(seq 100); do mountpoint -q "$place/mount" && break; sleep 0.2; done
head -c 1000 /dev/urandom >"$place/mount/small"
head -c 500000 /dev/urandom >"$place/big"
cp "$place/big" "$place/mount/big"
sleep 25
cmp "$place/big" "$place/mount/big" && echo "the mount gives all 500,000 bytes back"
echo "the server has: $(cd "$place/store" && echo *)"
for ask in vfs core; do
    rclone rc --url "http://127.0.0.1:$rc/" $ask/stats >"$place/$ask"
done
"$place/venv/bin/python" - "$place" <<'PY'
import json, os, sys
vfs, core = (json.load(open(f"{sys.argv[1]}/{name}")) for name in ("vfs", "core"))
cache = vfs["diskCache"]
waiting = cache["uploadsInProgress"] + cache["uploadsQueued"]
print(f"vfs/stats: erroredFiles {cache['erroredFiles']}, outOfSpace {cache['outOfSpace']}, waiting {waiting}")
print(f"core/stats: errors {core['errors']}, {core['bytes'] / 500_000:.0f} times the file's bytes were sent")
assert (cache["erroredFiles"], cache["outOfSpace"], waiting) == (0, False, 1), "the behaviour has changed"
assert core["errors"] and "File too large" in core["lastError"], "the behaviour has changed"
assert sorted(os.listdir(f"{sys.argv[1]}/store")) == ["small"], "the behaviour has changed"
print("as stated")
PY
