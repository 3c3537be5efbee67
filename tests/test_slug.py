"""`make slug`: one place says where the project lives, and everything else follows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dreamlib import __version__
from dreamlib.notebook.runner.notebooks import HOME

ROOT = HOME.parent
COPIED = ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CITATION.cff", "tools/slug.py")
COPIED += ("docs", "notebooks")
NOTEBOOKS = sorted(HOME.glob("*.ipynb"))
COLAB = "https://colab.research.google.com"


def repository() -> str:
    text = (ROOT / "pyproject.toml").read_text()
    return re.search(r'^Repository = "https://github\.com/(.+)"$', text, re.MULTILINE)[1]


SLUG, TAG = repository(), f"v{__version__}"


@pytest.fixture
def tree(tmp_path):
    """A copy of all that the command may change."""
    for name in COPIED:
        source, target = ROOT / name, tmp_path / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        elif source.exists():
            shutil.copy(source, target)
    return tmp_path / "tree"


def slug(tree: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-I", "-S", "tools/slug.py", *words]  # nothing installed is needed
    return subprocess.run(command, cwd=tree, capture_output=True, text=True)


def contents(tree: Path) -> dict[str, bytes]:
    return {str(p.relative_to(tree)): p.read_bytes() for p in tree.rglob("*") if p.is_file()}


def addresses(text: str, owner_and_name: str) -> int:
    """How often this repository is pointed at, wherever it is hosted or opened."""
    hosts = ("github.com/", "github.com:", "githubusercontent.com/", "google.com/github/")
    return sum(text.count(host + owner_and_name) for host in hosts)


def test_another_name_and_back_gives_the_same_bytes(tree):
    before = contents(tree)
    assert sum(addresses(data.decode(), SLUG) for data in before.values()) > len(NOTEBOOKS)
    done = slug(tree, "x-y/z.w", "v7.8.9")
    assert done.returncode == 0, done.stderr
    for name, data in contents(tree).items():
        if name != "tools/slug.py":
            assert addresses(data.decode(), SLUG) == 0, name
        if name.endswith(".ipynb"):
            json.loads(data)
    assert 'Repository = "https://github.com/x-y/z.w"' in (tree / "pyproject.toml").read_text()
    assert slug(tree, SLUG).returncode == 0
    assert contents(tree) == before


def test_a_second_time_changes_nothing(tree):
    slug(tree, "x-y/z.w")
    before = contents(tree)
    done = slug(tree, "x-y/z.w")
    assert done.stdout.startswith(f"0 addresses changed: x-y/z.w at {TAG}\n")
    assert "are not stamped" in done.stdout  # no clone, no commit
    assert contents(tree) == before


WAYS = f"""
pip install git+https://github.com/SLUG@TAG.
[a](https://github.com/SLUG/blob/TAG/docs/A.md) [b](https://github.com/SLUG/tree/TAG)
![c](https://raw.githubusercontent.com/SLUG/TAG/figures/c.png)
[d]({COLAB}/github/SLUG/blob/TAG/notebooks/d.ipynb)
https://kaggle.com/kernels/welcome?src=https://github.com/SLUG/blob/TAG/notebooks/e.ipynb
git clone https://github.com/SLUG.git, git@github.com:SLUG.git, see https://github.com/SLUG.
https://github.com/SLUG/releases/tag/TAG\r
https://github.com/{SLUG}-more https://github.com/{SLUG}.x ./{SLUG}/a.py
"""


def test_every_way_to_write_an_address_is_followed_and_no_other(tree):
    page = tree / "docs/ADDRESSES.md"
    page.write_bytes(WAYS.replace("SLUG", SLUG).replace("TAG", "main").encode())
    done = slug(tree, "x-y/z.w", "v7.8.9")
    assert page.read_bytes() == WAYS.replace("SLUG", "x-y/z.w").replace("TAG", "v7.8.9").encode()
    assert "docs/ADDRESSES.md: 10\n" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage: make slug REPO=owner/name"),
        *[([name], "write REPO=owner/name") for name in ("dreamlib", "https://github.com/a/b")],
        *[([name], "is no repository") for name in ("-a/b", "a--b/c", "a/b c", "a/..")],
        (["a/b.git"], "write REPO=a/b: the name goes without .git"),
        (["a/b", "feature/x"], "is no tag"),
    ],
)
def test_what_is_no_repository_changes_nothing(tree, words, message):
    before = contents(tree)
    done = slug(tree, *words)
    assert done.returncode == 1
    assert message in done.stderr
    assert contents(tree) == before


# as the tree stands


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_badges_and_setup_cell_point_at_the_one_repository_and_tag(path):
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
    page = f"https://github.com/{SLUG}/blob/{TAG}/notebooks/{path.name}"
    colab = page.replace("https://github.com", f"{COLAB}/github")
    badges = re.findall(r"\[!\[Open in (\w+)\]\([^)]+\)\]\(([^)]+)\)", cells[0])
    kaggle = f"https://kaggle.com/kernels/welcome?src={page}"
    assert badges == [("Colab", colab), ("Kaggle", kaggle)]
    assert sum('SOURCE = ""' in cell for cell in cells) == 1  # until `make slug` has stamped it


@pytest.mark.parametrize(
    "path",
    [*NOTEBOOKS, ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))],
    ids=lambda p: p.name,
)
def test_no_address_points_at_another_tag(path):
    text = path.read_text()
    ours = re.findall(rf"{re.escape(SLUG)}(?:@|/blob/|/tree/|/raw/)([\w.+-]+)", text)
    assert set(ours) <= {TAG}
    assert set(re.findall(r"git\+https://github\.com/([^@\s]+)@", text)) <= {SLUG}


def test_the_library_names_no_repository():
    """So that there is nothing else to rewrite."""
    for path in (ROOT / "dreamlib").rglob("*.py"):
        assert f"github.com/{SLUG}" not in path.read_text(), path


def test_all_notebooks_begin_with_one_setup_cell():
    notebooks = [json.loads(path.read_text())["cells"] for path in NOTEBOOKS]
    first = [next(c for c in cells if c["cell_type"] == "code") for cells in notebooks]
    assert len({"".join(cell["source"]) for cell in first}) == 1
