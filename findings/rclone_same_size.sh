#!/bin/sh
# rclone 1.60.1 (Debian 12) against a WebDAV server (WsgiDAV 4.4.0), seen on 2026-12-01.
#
# Guess: `rclone copy` and `rclone sync` send a checkpoint that has changed; `rclone check` tells
# whether both sides are equal.
# Seen: plain WebDAV keeps neither times nor hashes, so size is all that is compared, and checkpoints
# of one network all have the same size.  The second latest.pt is never sent: copy, sync and check
# exit with 0, check counts "0 differences", and the server has the first one for ever.  Only
# --ignore-times (send all) and check --download see it.
set -eu
command -v rclone >/dev/null || { echo "rclone is not here (apt-get install rclone): nothing was run"; exit 0; }
place=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$place"' EXIT
server=
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check 'wsgidav==4.4.0' 'cheroot==11.1.2' 2>/dev/null
port=$("$place/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir "$place/store" "$place/run"
"$place/venv/bin/wsgidav" --host 127.0.0.1 --port "$port" --root "$place/store" --auth anonymous \
    --no-config >/dev/null 2>&1 &
server=$!
"$place/venv/bin/python" - "$port" <<'PY'
import socket, sys, time
for _ in range(300):
    try:
        socket.create_connection(("127.0.0.1", int(sys.argv[1]))).close()
        break
    except OSError:
        time.sleep(0.1)
PY
export RCLONE_CONFIG=/dev/null
there=":webdav,url='http://127.0.0.1:$port',vendor=other:"
rclone version | head -n 1
save() { head -c 100000 /dev/zero | tr '\0' "$1" >"$place/run/latest.pt"; }
has() { head -c 1 "$place/store/latest.pt"; }
save 1
rclone copy "$place/run" "$there"
sleep 2 # another time of change
save 2
for verb in copy sync; do
    code=0
    rclone $verb "$place/run" "$there" 2>/dev/null || code=$?
    echo "rclone $verb of the second checkpoint: exit $code, the server has checkpoint $(has)"
    [ "$code $(has)" = "0 1" ] || { echo "the behaviour has changed"; exit 1; }
done
code=0
rclone check "$place/run" "$there" >"$place/said" 2>&1 || code=$?
echo "rclone check: exit $code, $(grep -o '[0-9]* differences found' "$place/said")"
[ "$code" = 0 ] || { echo "the behaviour has changed"; exit 1; }
if rclone check --download "$place/run" "$there" 2>/dev/null; then
    echo "the behaviour has changed: check --download sees no difference"; exit 1
fi
rclone copy --ignore-times "$place/run" "$there" 2>/dev/null
echo "check --download sees it; after copy --ignore-times the server has checkpoint $(has)"
[ "$(has)" = 2 ] || { echo "the behaviour has changed"; exit 1; }
echo "as stated"
