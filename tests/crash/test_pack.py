"""Packing a synthetic CelebA: killed ten times it gives the same bytes, in the same memory."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamlib.data.celeba import LAST_TRAIN, LAST_VALID
from dreamlib.data.dataset import open_packed

PROGRAM = """
import json, re, sys, time
from pathlib import Path
from dreamlib.data.celeba import celeba_source
from dreamlib.data.prepare import pack

images, folder = map(Path, sys.argv[1:])
source = celeba_source(64, path=images, downloads=folder)

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

before, begun = peak(), time.perf_counter()
pack(source, folder)
seconds = time.perf_counter() - begun
print(json.dumps({"seconds": seconds, "peak": peak(), "grown": peak() - before}))
"""


def synthetic_celeba(folder: Path, count: int) -> Path:
    """`count` JPEGs of 178x218 with CelebA's names, a tenth each in valid and test."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    numbers = [*range(1, count * 8 // 10 + 1)]
    numbers += [LAST_TRAIN + 1 + i for i in range(count // 10)]
    numbers += [LAST_VALID + 1 + i for i in range(count // 10)]
    for number in numbers:
        small = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(small).resize((178, 218)).save(file, "JPEG", quality=90)
        (folder / f"{number:06d}.jpg").write_bytes(file.getvalue())
    return folder


def start(images: Path, folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(images), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(images: Path, folder: Path) -> dict[str, float]:
    process = start(images, folder)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    return json.loads(out.splitlines()[-1])


def killed_pack(images: Path, folder: Path, kills: int, longest: float) -> list[int]:
    """Pack under `kills` SIGKILLs, then to the end -> the rows that were safe after each kill."""
    rng, safe = random.Random(0), [0]
    for _ in range(kills):
        process = start(images, folder)
        while process.poll() is None and safe_rows(folder) <= safe[-1]:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, longest))
        assert process.poll() is None, "it had ended before the kill"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        safe.append(safe_rows(folder))
    finish(images, folder)
    return safe[1:]


def safe_rows(folder: Path) -> int:
    """Whole lines of the index, its head aside."""
    index = folder / "index.jsonl"
    return max(0, index.read_bytes().count(b"\n") - 1) if index.exists() else 0


def check(tmp_path: Path, count: int, kills: int, longest: float) -> dict[str, float]:
    images = synthetic_celeba(tmp_path / "celeba", count)
    facts = finish(images, tmp_path / "whole")
    safe = killed_pack(images, tmp_path / "killed", kills, longest)
    assert safe[0] > 0
    assert safe[-1] < count, f"the last kills did not fall into packing: {safe}"
    assert safe == sorted(set(safe))
    whole, killed = (open_packed(tmp_path / name) for name in ("whole", "killed"))
    assert killed.manifest == whole.manifest
    assert whole.manifest["count"] == count
    killed.verify()
    return facts


@pytest.mark.slow
def test_packing_survives_kills(tmp_path):
    check(tmp_path, 3000, 2, 0.05)


@pytest.mark.slow
def test_packing_survives_ten_kills_of_twenty_thousand_images(tmp_path, capsys):
    (tmp_path / "large").mkdir()
    large = check(tmp_path / "large", 20_000, 10, 0.3)
    images = synthetic_celeba(tmp_path / "small", 5000)
    small = finish(images, tmp_path / "packed")
    with capsys.disabled():
        sys.stdout.write(
            "\n"
            + "\n".join(
                f"{n} images: {f['seconds']:.1f} s, peak {f['peak'] / 2**20:.0f} MiB, of which "
                f"packing {f['grown'] / 2**20:.0f} MiB"
                for n, f in (("20,000", large), ("5,000", small))
            )
            + "\n"
        )
    assert large["peak"] < 1.1 * small["peak"]
    # labels, names and hashes of 15,000 more images, and no pixels (which would be 184 MB)
    assert large["grown"] < small["grown"] + 16 * 2**20
    assert large["peak"] < 2**30
