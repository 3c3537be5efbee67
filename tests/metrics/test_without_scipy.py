"""The metrics need torch and numpy: no scipy of any version, and nothing that is deprecated."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = ["scipy", "sklearn", "skimage", "cleanfid", "lpips", "torch_fidelity", "torchmetrics"]

# Runs before anything else is imported; a submodule is refused by its package's name.
NOT_HERE = f"""
import sys
class NotHere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, NotHere())
"""

# scipy 1.18 has no `disp`, and returns the root alone.
SCIPY_1_18 = """
import scipy.linalg
calls = []
def sqrtm(A):
    calls.append(A.shape)
    return A
scipy.linalg.sqrtm = sqrtm
scipy.__version__ = "1.18.0"
"""

IMPORT_ALL = """
import importlib, pkgutil
import dreamlib.metrics
names = sorted(found.name for found in pkgutil.iter_modules(dreamlib.metrics.__path__))
for name in names:
    importlib.import_module("dreamlib.metrics." + name)
"""

RUN = """
import numpy as np
from dreamlib.metrics.frechet import frechet
from dreamlib.metrics.frechet_stats import frechet_corrected, frechet_floor, frechet_se
from dreamlib.metrics.inception_score import inception_score
from dreamlib.metrics.kid import kernel_reference, kid, kid_difference
from dreamlib.metrics.mind import mind
from dreamlib.metrics.prdc import coverage_null, prdc
rng = np.random.default_rng(0)
gen, real = 1.2 * rng.standard_normal((60, 6)), rng.standard_normal((60, 6))
found = [
    frechet(gen, real),
    frechet(gen[:5], real),
    frechet_floor(np.ones(6), 60, 60),
    frechet_se(gen, real),
    frechet_corrected(gen, real, seed=0),
    *kid(gen, real)[:2],
    *kid(gen, kernel_reference(real))[:2],
    *kid_difference(gen, real[::-1], real, paired=True)[:2],
    *inception_score(gen)[:2],
    *(estimate.value for estimate in prdc(gen, real)),
    coverage_null(60, 60),
    *mind(gen, real)[:2],
]
assert len(found) == 22 and np.isfinite(found).all(), found
"""


def python(code: str, *options: str) -> list[str]:
    """Lines that a fresh interpreter prints."""
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def without() -> list[str]:
    """Modules, values, and which of the blocked packages got in: a line each."""
    ours = f"print(sorted(set({BLOCKED!r}) & set(sys.modules)))"
    code = NOT_HERE + IMPORT_ALL + "print(*names)" + RUN + "print(found)\n" + ours
    return python(code, "-W", "error::DeprecationWarning")


def test_the_block_blocks():
    with pytest.raises(AssertionError, match="scipy is not here"):
        python(NOT_HERE + "import numpy\nfrom scipy import linalg")


def test_every_metric_imports_and_runs_without_the_optional_packages(without):
    names, _, loaded = without
    assert {"frechet", "inception_score", "kid", "prdc"} <= set(names.split())
    assert loaded == "[]"


def test_scipy_without_disp_changes_nothing(without):
    """What is used of clean-fid bears it, too; clean-fid's own distance does not."""
    pytest.importorskip("scipy")
    pytest.importorskip("cleanfid")
    code = """
from cleanfid.resize import build_resizer
from dreamlib.metrics import inception
image = rng.integers(0, 256, (20, 20, 3), np.uint8)
assert np.array_equal(build_resizer("clean")(image), inception.resize_clean(image[None])[0])
net = inception._build()
assert type(net.Mixed_7c).__module__ == "cleanfid.inception_pytorch"
assert net.fc.weight.shape == (1008, 2048)
assert not calls
from cleanfid import fid
try:
    fid.fid_from_feats(gen, real)
except TypeError as error:
    print(error)
"""
    values, error = python(SCIPY_1_18 + IMPORT_ALL + RUN + "print(found)" + code)
    assert values == without[1]
    assert "disp" in error
