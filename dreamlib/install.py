"""What the notebooks' setup cell runs: it installs what is missing, and changes nothing else.

Standard library only, and run by its path, because importing dreamlib itself needs packages that
may be among the missing ones.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

INPUTS = Path("/kaggle/input")
COLAB = Path("/var/colab/hostname")  # on Colab's machines; a command there has no shell of Colab's

# By import name.  The first are never installed from a notebook: the platform's own fit its GPU,
# and exchanging them under a kernel that has imported numpy already breaks it.
NEVER = ("torch", "torchvision", "numpy")
REQUIRED = {
    "PIL": "pillow>=10.1",
    "jinja2": "jinja2>=3.1",
    "matplotlib": "matplotlib>=3.9",
    "pydantic": "pydantic>=2.7",
    "yaml": "pyyaml>=6",
    "safetensors": "safetensors>=0.4.3",
    "typer": "typer>=0.16",
}
OPTIONAL = {
    "ipywidgets": ("ipywidgets>=7.7", "widgets"),
    "cleanfid": ("clean-fid>=0.1.35", "FID with Inception features"),
    "lpips": ("lpips>=0.1.4", "LPIPS"),
}
# A version that pip reads (PEP 440, as packages write it); what has another one is not pinned, as
# pip refuses a whole constraints file for one line.
VERSION = re.compile(
    r"(\d+!)?\d+(\.\d+)*((a|b|rc)\d+)?(\.?post\d+)?(\.?dev\d+)?(\+[a-z0-9]+([._-][a-z0-9]+)*)?",
    re.IGNORECASE,
)


def platform() -> str:
    """'kaggle', 'colab' or 'local'.  Kaggle's image is built from Colab's, so it is asked first."""
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "kaggle"
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if "google.colab" in str(shell) or COLAB.exists():
        return "colab"
    return "local"


def ready(source: str = "", say: Callable[[str], None] = print) -> None:
    """Install what the notebooks need and is not here, and say what this machine has, in a line.

    Never installs or changes torch, torchvision or numpy, nor the version of anything installed.
    Wheels come first that lie where `source` does, the wheel or folder of dreamlib that the user
    has named; others that are merely attached are not touched, as installing one runs its code.
    What is only needed for some scores may stay missing: a line says what that turns off.  Raises
    ImportError, naming the remedy.
    """
    if absent := missing(NEVER):
        raise ImportError(
            f"{' and '.join(absent)} cannot be imported, and a notebook does not install them: "
            "choose this notebook's kernel where PyTorch is, or install it there as pytorch.org "
            "says, and restart the kernel"
        )
    wheels = _beside(source)
    complaints = [_install(REQUIRED[name], wheels) for name in missing(REQUIRED)]
    if absent := missing(REQUIRED):
        say("\n".join(complaints))
        raise ImportError(_remedy([REQUIRED[name] for name in absent]))
    for name in missing(OPTIONAL):
        _install(OPTIONAL[name][0], wheels)
    if lost := [OPTIONAL[name] for name in missing(OPTIONAL)]:
        names = _names([need for need, _ in lost])
        off = ", ".join(feature for _, feature in lost)
        say(f"off, because pip could not fetch {names}: {off}; everything else works")
    say(banner())


def banner() -> str:
    """'dreamlib 0.1.0 · colab · Python 3.12.11 · torch 2.10.0+cu128 · numpy 2.1.3'."""
    parts = [f"dreamlib {_own_version()}", platform(), f"Python {sys.version.split()[0]}"]
    versions = _versions()
    parts += [f"{name} {versions.get(name, '(unknown version)')}" for name in ("torch", "numpy")]
    return " · ".join(parts)


def missing(names: Iterable[str]) -> list[str]:
    """Those of these modules that are not here; none of them is imported."""
    return [name for name in names if find_spec(name) is None]


def _own_version() -> str:
    """From the file beside this one: in a clone no installed package need be ours."""
    text = Path(__file__).with_name("__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return version[1] if version else "(unknown version)"


def _versions() -> dict[str, str]:
    """Installed packages by normalised name."""
    about: list[Any] = [package.metadata for package in metadata.distributions()]
    names = {re.sub(r"[-_.]+", "-", m["Name"]).lower() for m in about if m and m.get("Name")}
    versions = {}
    for name in sorted(names):
        # Asked by name: what pip leaves of a removed package (~orch) would give its old version.
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _beside(source: str) -> list[list[str]]:
    """pip's options for the wheels in the folder that is `source`, or that holds it, if any."""
    place = Path(source)
    folder = place if place.is_dir() else place.parent
    wheels = source and place.exists() and any(folder.glob("*.whl"))
    return [["--no-index", f"-f{folder}"]] if wheels else []


def _install(need: str, wheels: list[list[str]]) -> str:
    """pip, with every installed package held at its version -> its complaint, if it failed.

    `wheels` are tried first and alone: Kaggle has no Internet by default.
    """
    versions = _versions()
    pins = [f"{name}=={v}\n" for name, v in versions.items() if VERSION.fullmatch(v)]
    # A torch that pip does not know of would be fetched again as somebody's dependency.
    alone = [] if all(name in versions for name in NEVER) else ["--no-deps"]
    complaint = ""
    with tempfile.TemporaryDirectory() as scratch:
        held = Path(scratch, "constraints.txt")
        held.write_text("".join(pins), encoding="utf-8")
        options = ["--quiet", "--disable-pip-version-check", "--retries=1", f"--constraint={held}"]
        for place in [*wheels, []]:
            command = [sys.executable, "-m", "pip", "install", *options, *alone, *place, need]
            done = subprocess.run(command, capture_output=True, text=True)
            importlib.invalidate_caches()
            if done.returncode == 0:
                return ""
            complaint = (done.stdout + done.stderr).strip()
    return complaint


def _names(needs: list[str]) -> str:
    return " ".join(need.split(">")[0] for need in needs)


def _remedy(needs: list[str]) -> str:
    names = _names(needs)
    if platform() == "kaggle":
        return (
            f"dreamlib needs {names}: turn Internet on (the notebook's side panel, Settings), and "
            f"run this cell again. Without it, run `pip download --no-deps {names}` elsewhere with "
            "this Python, and `pip wheel --no-deps .` in a clone of dreamlib; make a data set of "
            "the .whl files, attach it (Add input), and name dreamlib's as SOURCE in this cell"
        )
    return (
        f"dreamlib needs {names}, and pip could not install it here (its words are above): "
        f"`{sys.executable} -m pip install {names}` where there is a network, then run this again"
    )
