"""The notebooks' contract (CONTRIBUTING.md), and every one of them headless, twice."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
from pathlib import Path

import nbformat
import pytest

from dreamlib.notebook import session as live
from dreamlib.notebook.runner.notebooks import HOME, find_notebook, numbered, run_notebook
from dreamlib.runs.folder import RunDir
from dreamlib.utils.errors import DreamlibError
from tests.conftest import TINY

NAMES = [
    *["00_complete", "01_setup", "02_crash_recovery", "03_training"],
    *["04_evaluation_500_vs_5000", "05_report_figures", "06_playground", "07_dream_ablation"],
    *["08_gan_baseline", "09_dream_from_scratch"],
]
NOTEBOOKS = [HOME / f"{name}.ipynb" for name in NAMES]
IN_THE_OPEN = "09_dream_from_scratch"  # which is about the code: it has functions of its own


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def read(path):
    return json.loads(path.read_text("utf-8"))


def sources(path, kind):
    return ["".join(c["source"]) for c in read(path)["cells"] if c["cell_type"] == kind]


def test_these_are_all():
    assert numbered() == NAMES


# ---------------------------------------------------------------------- the contract


def test_it_is_short_and_told_in_words(path):
    code, text = sources(path, "code"), sources(path, "markdown")
    assert path.stat().st_size < 100_000
    assert 20 <= len(read(path)["cells"]) <= 35
    assert len(text) >= 0.8 * len(code)
    lengths = sorted(len(source.splitlines()) for source in code)
    assert lengths[len(lengths) // 2] <= (10 if path.stem == IN_THE_OPEN else 6)
    assert lengths[-1] <= (20 if path.stem == IN_THE_OPEN else 15)
    words = 0
    for cell in read(path)["cells"]:
        words = 0 if cell["cell_type"] == "code" else words + len("".join(cell["source"]).split())
        assert words <= 250, "too much to read without anything to run"


def test_it_has_no_plumbing(path):
    plumbing = (ast.FunctionDef, ast.ClassDef, ast.Try, ast.Lambda)
    for source in sources(path, "code"):
        nodes = ast.walk(ast.parse(source))
        assert path.stem == IN_THE_OPEN or not any(isinstance(n, plumbing) for n in nodes), source
        assert not re.search(r"^\s*[%!]", source, re.M), "magics and shell lines fail in silence"


def test_it_is_committed_clean_and_portable(path):
    notebook = read(path)
    for cell in notebook["cells"]:
        assert not cell.get("outputs"), "notebooks are committed without outputs"
        assert cell.get("execution_count") is None
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.validate(nbformat.read(path, 4))


def test_parameters_are_literals_in_one_tagged_cell(path):
    tagged = [c for c in read(path)["cells"] if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    for node in ast.parse("".join(tagged[0]["source"])).body:
        assert isinstance(node, ast.Assign)
        ast.literal_eval(node.value)


def test_it_begins_with_a_picture_and_its_cost_and_ends_with_the_next(path):
    first, *_, last = read(path)["cells"]
    head = "".join(first["source"])
    assert head.startswith("# ")
    assert "CPU" in head
    assert "T4" not in head, "README says once what has not been timed"
    (name,) = first["attachments"]
    assert f"](attachment:{name})" in head
    assert head.count(f"/notebooks/{path.name})") == 2, "a badge each for Colab and Kaggle"
    assert "## If it stopped" in "".join(last["source"])
    assert "Next: " in "".join(last["source"])
    for named in re.findall(r"`(\d\d_\w+)`", "\n".join(sources(path, "markdown"))):
        assert named in NAMES


def test_the_setup_cell_is_the_same_everywhere():
    (cell,) = {sources(path, "code")[0] for path in NOTEBOOKS}
    assert len([line for line in cell.splitlines() if line]) <= 7


def test_it_imports_the_library_in_three_lines(path):
    code = "\n".join(sources(path, "code")[1:])
    lines = re.findall(r"^(?:from|import) .*$", code, re.M)
    ours = [line for line in lines if "dreamlib" in line]
    assert len(ours) <= 3 or path.stem == IN_THE_OPEN, ours
    assert len(lines) == len(ours) or path.stem == IN_THE_OPEN, lines


# ---------------------------------------------------------------------- out of time


def test_out_of_time_every_cell_goes_through(tmp_path, data_home, monkeypatch, capsys):
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    monkeypatch.setattr(live, "_paused", False)
    monkeypatch.setattr("dreamlib.report.build.build_report", lambda run: [])
    given = {"PRESET": "faces16", "RUN": str(tmp_path / "run"), "HOURS": 1e-6, "MIRROR": "none"}
    cells, names = sources(find_notebook("00_complete"), "code"), {"display": print}
    for source in cells[1:]:  # without the set-up
        exec(source, names)
        names |= given | {"OVERRIDES": TINY}
    told = capsys.readouterr().out
    assert told.count("PAUSED: ") == 6  # training, images, process, scores, and their two tables
    assert RunDir(tmp_path / "run").status()["state"] == "paused_deadline"


# ---------------------------------------------------------------------- every one, twice


def outputs(path):
    return [out for c in nbformat.read(path, 4).cells for out in c.get("outputs", [])]


def printed(path):
    return "".join(out.get("text", "") for out in outputs(path))


def cells_without_their_picture(path):
    """Cells that draw a figure or show an image, and have no PNG among their outputs."""
    draws = re.compile(r"^figures\.\w+\(.*\)$|display\((?!nb\.show)|^nb\.sheet", re.M)
    return [
        cell.source
        for cell in nbformat.read(path, 4).cells
        if draws.search(cell.source)
        and not any("image/png" in output.get("data", {}) for output in cell["outputs"])
    ]


class Reader:
    """Runs notebooks on the smoke preset, one after the other, in one folder."""

    def __init__(self, home: Path):
        self.home, self.run = home, home / "run"

    def execute(self, name: str, **parameters) -> Path:
        done = self.home / f"{name}.ipynb"
        page = run_notebook(find_notebook(name), done, parameters, timeout=240)
        assert page.stat().st_size > 20_000
        assert cells_without_their_picture(done) == []
        assert not [out for out in outputs(done) if "widget-view" in str(out.get("data", {}))]
        return done

    def hashes(self, folder: str) -> dict[str, str]:
        """Of everything but what tells the time."""
        return {
            str(path.relative_to(self.run)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((self.run / folder).rglob("*"))
            if path.is_file() and path.name not in ("owner.json", ".lock")
        }


# Runs in a kernel once its first cell has made dreamlib importable: figures are drawn quicker.
QUICK = """
def _quick(*_):
    from dreamlib.report.figures import style
    style.DPI, style.TRUETYPE = 50, {}
    get_ipython().events.unregister("post_run_cell", _quick)
get_ipython().events.register("post_run_cell", _quick)
"""


@pytest.fixture
def reader(tmp_path, monkeypatch, quick_python):
    startup = tmp_path / "ipython/profile_default/startup"
    startup.mkdir(parents=True)
    (startup / "00-quick.py").write_text(QUICK)
    monkeypatch.setitem(os.environ, "IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    monkeypatch.setitem(os.environ, "DREAMLIB_MIRROR", "none")
    monkeypatch.delenv("DREAMLIB_DATA", raising=False)
    return Reader(tmp_path)


# The whole story once; the long checks run every notebook twice, and nothing may change.


def test_the_whole_story(reader):
    first = reader.execute("00_complete", PRESET="smoke", RUN=str(reader.run))
    assert "FRESH START" in printed(first)
    assert "evaluation/scores.json" in reader.hashes("evaluation")


@pytest.mark.slow
def test_the_whole_story_and_what_is_told_of_its_run(reader):
    run = {"RUN": str(reader.run)}
    test_the_whole_story(reader)
    weights, scores = reader.hashes("weights"), reader.hashes("evaluation")
    again = reader.execute("03_training", PRESET="smoke", **run)
    assert "FINISHED at step 12" in printed(again)
    others = ("04_evaluation_500_vs_5000", "05_report_figures", "06_playground")
    for name in others:
        reader.execute(name, **run)
    figures = reader.hashes("figures")
    assert {"figures/report.html", "figures/evaluation.pdf", "figures/results.zip"} <= set(figures)
    second = reader.execute("00_complete", PRESET="smoke", **run)
    assert "FINISHED at step 12" in printed(second)
    for name in others:
        reader.execute(name, **run)
    assert reader.hashes("weights") == weights
    assert reader.hashes("evaluation") == scores
    assert reader.hashes("figures") == figures


@pytest.mark.slow
def test_set_up_crashes_and_ablation(reader):
    crash = {"PRESET": "smoke", "OUT": str(reader.home / "crash"), "BUDGET_SECONDS": 20}
    losses = {"PRESET": "smoke", "OUT": str(reader.home / "ablation"), "STEPS": 12, "N": 100}
    losses["LOSSES"] = ["standard", "conservative"]
    reader.execute("01_setup", PRESET="smoke", RUN=str(reader.run))
    endless = RunDir(reader.home / "crash" / "endless")
    told = printed(reader.execute("02_crash_recovery", **crash))
    assert told.count("killed (SIGKILL") == 2
    first = endless.status()
    assert first["state"] == "paused_deadline"
    assert first["step"] > 0
    assert "now holds half of its bytes" in told
    assert "RESUMED at step" in told
    assert "BROUGHT step 300" in told
    reader.execute("07_dream_ablation", **losses)
    found = (reader.home / "ablation" / "ablation.json").read_bytes()
    reader.execute("01_setup", PRESET="smoke", RUN=str(reader.run))
    told = printed(reader.execute("02_crash_recovery", **crash))
    assert "FINISHED at step 300" in told
    assert f"RESUMED at step {first['step']:,} of 100,000" in told
    assert endless.status()["step"] > first["step"]
    reader.execute("07_dream_ablation", **losses)
    assert (reader.home / "ablation" / "ablation.json").read_bytes() == found


@pytest.mark.slow
def test_the_gan_beside_it(reader):
    out = reader.home / "contest"
    both = {"PRESETS": ["smoke", "gan-smoke"], "OUT": str(out), "MINUTES": 0.02, "TURN": 0.1}
    told = printed(reader.execute("08_gan_baseline", **both))
    assert told.count("FRESH START") == 2
    reader.run = out / "contest-gan-smoke"

    def results():
        sheets = [(out / name).read_bytes() for name in ("scores.md", "images.png", "walks.png")]
        return sheets, reader.hashes("weights"), reader.hashes("evaluation")

    before = results()
    told = printed(reader.execute("08_gan_baseline", **both))
    assert told.count("FINISHED at step") == 2
    assert results() == before


@pytest.mark.slow
def test_the_other_notebooks_know_a_gan(reader):
    run = {"RUN": str(reader.run)}
    told = printed(reader.execute("03_training", PRESET="gan-smoke", **run))
    assert "FRESH START" in told
    for name in ("05_report_figures", "04_evaluation_500_vs_5000"):
        reader.execute(name, **run)
    with pytest.raises(DreamlibError, match=r"the playground shows denoising.*08_gan_baseline"):
        reader.execute("06_playground", **run)
    told = printed(reader.execute("00_complete", PRESET="gan-smoke", **run))
    assert "FINISHED at step 12" in told


def test_dream_from_scratch_agrees_with_the_library(reader):
    done = reader.execute(IN_THE_OPEN, STEPS=3, BATCH=4)
    told = printed(done)
    assert "largest difference of a pixel" in told
    assert "DREAM loss" in told


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("04_evaluation_500_vs_5000", marks=pytest.mark.slow),
        "05_report_figures",
        pytest.param("06_playground", marks=pytest.mark.slow),
    ],
)
def test_without_a_run_they_say_what_to_run_first(reader, name):
    with pytest.raises(DreamlibError, match=r"there is no run .*03_training"):
        reader.execute(name, RUN=str(reader.home / "none"))


@pytest.mark.usefixtures("quick_python")
def test_a_failing_cell_says_which_and_why(tmp_path):
    parameters = {"RUN": str(tmp_path / "r"), "MIRROR": str(tmp_path)}
    with pytest.raises(DreamlibError, match=r"stopped in cell \d+: RunError: .* one in the other"):
        run_notebook(find_notebook("00_complete"), tmp_path / "out.ipynb", parameters)
    assert (tmp_path / "out.ipynb").exists()
