"""The API reference is built from the docstrings: every public module has its page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_every_public_module_has_its_page(tmp_path):
    builder = [sys.executable, "-W", "ignore", ROOT / "tools" / "docs.py", tmp_path]
    subprocess.run(builder, check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""})
    files = (path.relative_to(ROOT) for path in (ROOT / "dreamlib").rglob("*.py"))
    names = {path.with_suffix("").as_posix().removesuffix("/__init__") for path in files}
    pages = {
        page.relative_to(tmp_path).with_suffix("").as_posix() for page in tmp_path.rglob("*.html")
    }
    assert names - {"dreamlib/__main__"} == pages - {"index"}
    front = (tmp_path / "dreamlib.html").read_text("utf-8")
    assert 'id="open_run"' in front
    assert "Open a run folder" in front
    losses = (tmp_path / "dreamlib" / "diffusion" / "losses.html").read_text("utf-8")
    assert 'id="_' not in losses
