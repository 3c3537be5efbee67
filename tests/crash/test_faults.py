"""Calls of the system that fail, and kills in the middle of one: the commands, given again."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.crash.syscalls import KILL, Call, Fault, Watch

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
STRICT = os.environ.get("DREAMLIB_REQUIRE_DATA") == "1"


def script(*words: object, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter: one that has trained has threads, and must not fork."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


TRY = """
import json, os, sys
from tests.crash.syscalls import Fault, Watch, possible, watched

def do():
    said = []
    for name in ("a", "b"):
        try:
            with open(name, "wb", buffering=0) as file:
                said.append(file.write(b"x" * 100))
                said.append(file.write(b"x" * 100))
            os.rename(name, name + "2")
        except OSError as error:
            said.append(error.errno)
    try:
        said.append(len(os.listdir(".")))
    except OSError as error:
        said.append(error.errno)
    with open(os.path.join("..", "said"), "w") as file:
        json.dump(said, file)
    return 3

here, fault = sys.argv[1], json.loads(sys.argv[2])
os.makedirs(here)
os.chdir(here)
if not possible():
    sys.exit(77)
watch = Watch({"here": here}, Fault(**fault) if fault else None)
code = watched(do, watch, 30.0)
print(json.dumps([code, watch.struck, [call.point for call in watch.calls]]))
"""


def tried(folder: Path, **fault: object):
    """-> exit code, calls struck, points seen, what the child says, sizes of the files."""
    done = script("-c", TRY, folder / "here", json.dumps(fault))
    if done.returncode == 77:  # some containers forbid it
        pytest.skip("this system lets no process watch another's system calls")
    assert done.returncode == 0, done.stderr
    code, struck, points = json.loads(done.stdout)
    said = folder / "said"
    sizes = {path.name: path.stat().st_size for path in (folder / "here").iterdir()}
    return code, struck, points, json.loads(said.read_text()) if said.exists() else None, sizes


def test_calls_are_seen_from_outside(tmp_path):
    code, struck, points, said, sizes = tried(tmp_path)
    assert (code, struck, said) == (3, 0, [100, 100, 100, 100, 2])
    assert sizes == {"a2": 200, "b2": 200}
    wanted = ["create here/a", "write here/a", "write here/a", "close here/a", "rename here/a#"]
    found = [point for point in points if not point.startswith(("newfstatat", "fstat"))]
    assert found[:5] == wanted
    assert "getdents64 here/." in found


@pytest.mark.parametrize(
    ("fault", "said", "sizes"),
    [
        # a hiccup; one write is cut short, as on a disk that runs full; a folder that stays gone
        ({"what": errno.EIO}, [100, errno.EIO, 100, 100, 2], {"a": 100, "b2": 200}),
        ({"what": errno.ENOSPC, "short": True}, [100, 50, 100, 100, 2], {"a2": 150, "b2": 200}),
        (
            {"what": errno.ENOTCONN, "lasts": 99},
            [100, errno.ENOTCONN, errno.ENOTCONN, errno.ENOTCONN],
            {"a": 100},
        ),
        # a full disk is still read
        (
            {"what": errno.EDQUOT, "lasts": 99},
            [100, errno.EDQUOT, errno.EDQUOT, 1],
            {"a": 100},
        ),
        ({"what": KILL, "short": True}, None, {"a": 150}),
    ],
)
def test_a_call_fails_is_cut_short_or_is_the_last_one(tmp_path, fault, said, sizes):
    code, struck, _, told, found = tried(tmp_path, point="write here/a", number=2, **fault)
    assert (told, found) == (said, sizes)
    assert code == (-9 if said is None else 3)
    assert struck >= 1


def test_a_fault_is_of_one_folder_and_ends():
    watch = Watch({}, Fault("read a/x#", 2, errno.EIO, lasts=2))
    seen = [("a", "x1"), ("b", "x1"), ("a", "x22"), ("b", "y"), ("a", "y"), ("a", "y")]
    assert [watch.decide(Call("read", *each)) for each in seen] == [
        *(False, False, True, False, True, False)
    ]


@pytest.mark.slow
def test_three_hundred_faults_at_system_calls_end_in_the_same_bytes_or_in_a_sentence(tmp_path):
    report = tmp_path / "report"
    words = ["--faults", 300, "--seed", 1, "--report", report]
    done = script("-m", "tests.crash.faults", *words, timeout=3000)
    if done.returncode == 77:
        assert not STRICT, done.stderr
        pytest.skip("this system lets no process watch another's system calls")
    assert report.exists(), done.stderr
    found = json.loads(report.read_text())
    flaws = [flaw for job in found for flaw in job["flaws"]]
    assert not flaws, "\n".join(flaws)
    assert done.returncode == 0, done.stderr
    assert sum(job["faults"] for job in found) >= 300
    assert all(job["faults"] > 0 for job in found)
    kinds = Counter()
    for job in found:
        for what, number in job["by"].items():
            kinds[what.split(":")[0]] += number
    assert {"kill", *map(errno.errorcode.get, ERRORS)} <= kinds.keys()


ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.ENOTCONN, errno.EMFILE)
