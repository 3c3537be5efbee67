"""Findings: each script stands in the table, states what it saw, and names a test that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FINDINGS = ROOT / "findings"
TABLE = (FINDINGS / "README.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)\.sh` \|(.*)$", TABLE, re.MULTILINE))
SCRIPTS = sorted(FINDINGS.glob("*.sh"))


def test_the_table_lists_every_script_and_nothing_else():
    assert sorted(ROWS) == [path.stem for path in SCRIPTS]
    assert len(SCRIPTS) >= 15


def test_every_test_that_the_table_names_is_there():
    tests = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")
    )
    named = set(re.findall(r"`(test_\w+)`", TABLE))
    assert named
    assert {name for name in named if f"def {name}(" not in tests} == set()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_what_was_guessed_and_seen_and_fails_if_that_changes(path):
    text = path.read_text(encoding="utf-8")
    for part in ("set -eu", "mktemp -d", "trap ", "-m venv", "Guess:", "Seen:", "as stated"):
        assert part in text, part
    assert re.search(r"==\d", text), "no version is pinned"
    assert "dreamlib" not in text.replace("dreamlib-", "")
