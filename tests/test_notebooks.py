"""The notebooks' contract (docs/ARCHITECTURE.md), and one headless run, twice."""

from __future__ import annotations

import ast
import json
import os
import re
import time

import nbformat
import pytest

from dreamlib.errors import DreamlibError
from dreamlib.notebooks import HOME, find_notebook, run_notebook
from tests.conftest import TINY

NOTEBOOKS = sorted(HOME.glob("*.ipynb"))


def cells(path, kind):
    return [
        "".join(cell["source"])
        for cell in json.loads(path.read_text())["cells"]
        if cell["cell_type"] == kind
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_contract(path):
    notebook = json.loads(path.read_text())
    code, text = cells(path, "code"), cells(path, "markdown")
    assert path.stat().st_size < 100_000
    assert 20 <= len(notebook["cells"]) <= 35
    assert len(text) >= 0.8 * len(code)
    lengths = sorted(len(source.splitlines()) for source in code)
    assert lengths[len(lengths) // 2] <= 6
    assert lengths[-1] <= 15
    for cell in notebook["cells"]:
        assert not cell.get("outputs"), "notebooks are committed without outputs"
        assert cell.get("execution_count") is None
    for source in code:
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Try)), source
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert text[0].startswith("# ")
    assert "T4" in text[0]
    assert any(source.startswith("## If it stopped") for source in text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_parameters_are_literals_in_one_tagged_cell(path):
    notebook = json.loads(path.read_text())
    tagged = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    for node in ast.parse("".join(tagged[0]["source"])).body:
        assert isinstance(node, ast.Assign)
        ast.literal_eval(node.value)


def cells_without_their_picture(notebook):
    """Cells that draw a figure or show an image, and have no PNG among their outputs."""
    return [
        cell["source"]
        for cell in nbformat.read(notebook, 4).cells
        if re.search(r"figures\.\w+\(run.*\);$|^Image\.", cell["source"], re.M)
        and not any("image/png" in output.get("data", {}) for output in cell["outputs"])
    ]


def test_runs_headless_and_a_second_time_at_once(tmp_path, data_home, monkeypatch):
    monkeypatch.setitem(os.environ, "DREAMLIB_DATA", str(data_home))
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    run = tmp_path / "run"
    parameters = {"PRESET": "faces16", "RUN": str(run), "OVERRIDES": TINY}
    page = run_notebook(find_notebook("00_complete"), run / "00_complete.ipynb", parameters)
    scores = (run / "evaluation/scores.json").read_bytes()
    assert page.stat().st_size > 100_000
    assert cells_without_their_picture(run / "00_complete.ipynb") == []
    assert "FINISHED" not in page.read_text()
    for name in ("samples.png", "curves.pdf", "process.png", "scores.md"):
        assert (run / "figures" / name).exists()
    begun = time.monotonic()
    page = run_notebook(find_notebook("00_complete"), run / "00_complete.ipynb", parameters)
    assert "FINISHED at step 8" in page.read_text()
    assert (run / "evaluation/scores.json").read_bytes() == scores
    assert time.monotonic() - begun < 120  # not a benchmark: a hang guard


def test_a_failing_cell_says_which_and_why(tmp_path):
    parameters = {"PRESET": "nope", "RUN": str(tmp_path / "r"), "OVERRIDES": []}
    with pytest.raises(DreamlibError, match=r"stopped in cell \d+: ConfigError: .*'nope'"):
        run_notebook(find_notebook("00_complete"), tmp_path / "out.ipynb", parameters)
    assert (tmp_path / "out.ipynb").exists()
