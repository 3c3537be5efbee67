"""`dreamlib notebooks`, as a user types it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dreamlib.cli.notebooks import notebooks
from dreamlib.notebook.runner.execute import Ending
from dreamlib.notebook.runner.jobs import FAILED, UNFINISHED
from dreamlib.notebook.runner.notebooks import numbered
from dreamlib.utils.errors import ConfigError
from dreamlib.utils.files import read_json
from tests.notebook.test_batch import STUDY, write_notebook

APP = typer.Typer()
APP.command()(notebooks)


def call(*words) -> tuple[int, str]:
    """(exit code, output) of the command; errors of ours are raised."""
    done = CliRunner().invoke(APP, list(map(str, words)))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_notebook(tmp_path / "study.ipynb", 'print("N is", N)', parameters=STUDY)


@pytest.fixture
def given(monkeypatch):
    """What the notebooks were given, without running them."""
    found: list[dict] = []
    ending = {"state": "done"}

    def pretend(path, output, parameters, leash, *more):
        found.append(parameters | {"limit": leash.timeout})
        output.write_text(path.read_text())
        return Ending(**ending)

    monkeypatch.setattr("dreamlib.notebook.runner.jobs.execute", pretend)
    monkeypatch.setattr(
        "dreamlib.notebook.runner.jobs.to_html", lambda path: path.with_suffix(".html").touch()
    )
    return found, ending


@pytest.mark.usefixtures("quick_python")
def test_a_notebook_runs_and_its_text_and_a_table_are_printed(study):
    code, out = call(study, "-p", "N=5", "--out", "out")
    assert code == 0
    assert "N is 5" in out
    assert re.search(r"^notebooks +study +done +.+ s +out/study\.html$", out, re.M)
    assert "all of it in out/index.html" in out
    assert "N is 5" in Path("out/study.html").read_text()
    code, out = call(study, "-p", "N=5", "--out", "out")
    assert code == 0
    assert "notebooks/study: done before" in out
    assert "N is 5" not in out


def test_options_fill_parameters(study, given):
    words = ["--preset", "digits16", "--set", "train.batch=16", "--run", "r", "--timeout", "1h"]
    assert call(study, *words)[0] == 0
    (found,) = given[0]
    assert found.pop("limit") == 3600
    overrides = ["train.batch=16"]
    run = str(Path("r").absolute())
    assert found == {"PRESET": "digits16", "OVERRIDES": overrides, "RUN": run}
    assert Path("runs/notebooks/study.json").exists()


def test_without_options_a_notebook_keeps_its_own_parameters(study, given):
    assert call(study)[0] == 0
    assert given[0] == [{"limit": None}]


@pytest.mark.parametrize(
    ("text", "value"),
    [("N=3", 3), ("PRESET=None", None), ("N=null", None), ("RUN=2026", "2026"), ("RUN=yes", "yes")],
)
def test_a_parameter_is_read_as_its_default_suggests(study, given, text, value):
    assert call(study, "-p", text)[0] == 0
    assert given[0][0][text.partition("=")[0]] == value


def test_all_numbered_notebooks_in_order_by_default(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    assert call("--preset", "faces16")[0] == 0
    runs = read_json(Path("runs/notebooks/status.json"))["runs"]
    assert list(runs["notebooks"]["notebooks"]) == numbered()
    assert numbered()[0] == "00_complete"


def test_without_a_batch_notebooks_keep_their_own_folders(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    assert call("05_report_figures", "07_dream_ablation", "-p", "STEPS=5")[0] == 0
    assert [found.keys() & {"RUN", "OUT", "ABLATION"} for found in given[0]] == [set(), set()]


def test_a_batch_file_and_its_own_folders(study, given):
    Path("my.yaml").write_text(
        f"jobs: 2\ntimeout: 30s\nruns:\n  - {{name: a, notebooks: ['{study}']}}\n"
        f"  - {{name: b, notebooks: ['{study}'], parameters: {{N: 2}}}}\n"
    )
    code, out = call("--batch", "my.yaml", "--timeout", "2h")
    assert code == 0
    runs = {Path(found["RUN"]) for found in given[0]}
    assert runs == {Path(f"runs/notebooks/my/{name}/my-{name}").absolute() for name in "ab"}
    assert all(found["limit"] == 7200 for found in given[0]), "the command's own limit wins"
    assert Path("runs/notebooks/my/b/study.json").exists()
    assert "all of it in runs/notebooks/my/index.html" in out


@pytest.mark.parametrize(
    ("state", "code"),
    [("failed", FAILED), ("killed", FAILED), ("timeout", UNFINISHED), ("stopped", UNFINISHED)],
)
def test_exit_codes(study, given, state, code):
    given[1]["state"] = state
    found, out = call(study)
    assert found == code
    assert ("the same command goes on" in out) == (code == UNFINISHED)


REFUSED = {
    "unknown notebook": (["99_none"], ["99_none", "00_complete"]),
    "unknown parameter": (["NB", "-p", "M=3"], ["M", "study has PRESET, RUN, OVERRIDES, N"]),
    "no pair": (["NB", "-p", "N"], ["NAME=value"]),
    "wrong kind": (["NB", "-p", "N=x"], ["N of study.ipynb is 'x'"]),
    "nobody has hours": (["NB", "--hours", "1"], ["parameter HOURS"]),
    "unknown preset": (["NB", "--preset", "faces61"], ["did you mean faces16"]),
    "unknown setting": (["NB", "--set", "train.bacth=3"], ["did you mean batch"]),
    "twice": (["NB", "--preset", "smoke", "-p", "PRESET=smoke"], ["PRESET is given"]),
    "a time without unit": (["NB", "--timeout", "30"], ["--timeout is '30'", "3h"]),
    "a batch and names": (["NB", "--batch", "x.yaml"], ["--batch names its runs itself"]),
    "no batch": (["--batch", "x.yaml"], ["there is no batch file x.yaml"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_before_anything_runs(study, given, tmp_path, name):
    words, expected = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        call(*(str(study) if word == "NB" else word for word in words))
    for word in expected:
        assert word in str(error.value)
    assert given[0] == []
    assert list(tmp_path.iterdir()) == [study]


def test_list_shows_titles_and_defaults(study):
    code, out = call("--list", study)
    assert code == 0
    assert out.splitlines() == [
        "study  About study",
        "    PRESET = 'faces16'",
        "    RUN = 'runs/x'",
        "    OVERRIDES = []",
        "    N = 1",
    ]
    assert call("--list")[1].startswith("00_complete  The whole story in one notebook")
