"""The whole suite on the versions that Colab and Kaggle run, and on the lowest that are allowed.

    python3 tools/versions.py [colab] [kaggle] [lowest] [-- options of pytest]

Each set gets an environment of its own in .versions/ (PyTorch's build for CUDA is about 5 GB), with
the project's other packages at their newest.  A set is skipped, with the reason, where its Python
is not here.  Standard library only.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".versions"
# What the platforms have installed, and a notebook leaves as it is (seen in autumn 2026)
COLAB = ("torch==2.11.*", "torchvision==0.26.*", "numpy==2.1.*", "pillow==11.3.*")
COLAB += ("matplotlib==3.10.*", "ipywidgets==7.7.*", "ipython==7.34.*", "ipykernel==6.17.*")
KAGGLE = ("torch==2.10.*", "torchvision==0.25.*", "numpy==2.0.*")
SUITE = ("pytest>=8", "pytest-xdist>=3.5", "setuptools>=77")


def lowest() -> tuple[str, ...]:
    """Every bound of what users install, as it is written: 'torch>=2.4' -> 'torch==2.4'."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("dev = [")[0]
    bounds = re.findall(r'"([\w.-]+)>=([\d.]+)"', text)[1:]  # the first is setuptools, to build
    return tuple(f"{name}=={least}" for name, least in bounds)


# name: Python, what is held, and what else is installed
SETS = {
    "colab": ("3.13", COLAB, "all,dev"),
    "kaggle": ("3.12", KAGGLE, "all,dev"),
    "lowest": ("3.10", lowest(), "all"),
}


def python(version: str) -> str:
    """Where that Python is; '' where there is none."""
    others = Path.home().glob(f".pyenv/versions/{version}.*/bin/python")
    for place in (f"python{version}", *map(str, others)):
        if found := shutil.which(place):
            asked = [found, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
            done = subprocess.run(asked, capture_output=True, text=True)
            if done.stdout.strip() == version:
                return found
    return ""


def environment(name: str, made_by: str) -> str:
    """The set's environment, made and filled where it is not -> its Python."""
    _, pins, extras = SETS[name]
    home, ours = HOME / name, str(HOME / name / "bin/python")
    if not (home / "filled").exists():
        subprocess.run([made_by, "-m", "venv", "--clear", str(home)], check=True)
        held = home / "constraints.txt"
        held.write_text("\n".join(pins) + "\n", encoding="utf-8")
        words = ["install", "--quiet", "--constraint", str(held), *pins, *SUITE]
        words += ["--editable", f"{ROOT}[{extras}]"]
        subprocess.run([ours, "-m", "pip", *words], check=True)
        (home / "filled").touch()
    return ours


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(words: list[str]) -> int:
    cut = words.index("--") if "--" in words else len(words)
    failed, options = [], words[cut + 1 :]
    for name in words[:cut] or SETS:
        version = SETS[name][0]
        made_by = python(version)
        if not made_by:
            tell(f"{name}: SKIPPED, there is no Python {version} here")
            continue
        ours = environment(name, made_by)
        listed = [ours, "-m", "pip", "list", "--format=freeze"]
        packages = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
        main_ones = [x for x in packages.split() if x.startswith(("torch", "numpy=", "ipy"))]
        tell(f"{name}: Python {version}, {', '.join(main_ones)}")
        command = [ours, "-m", "pytest", "-n", "2", "--dist", "worksteal", *options]
        failed += [name] * (subprocess.run(command, cwd=ROOT).returncode != 0)
    tell(f"FAILED: {', '.join(failed)}" if failed else "none of them failed")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
