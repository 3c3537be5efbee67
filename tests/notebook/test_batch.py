"""Batches of notebooks: every ending told apart, nothing done twice, no kernel left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import psutil
import pytest

from dreamlib.notebook.runner.execute import PAUSED, Ending, Leash, _last, _manager, execute
from dreamlib.notebook.runner.index_page import index, table
from dreamlib.notebook.runner.job_spec import Spec, plan_batch, plan_run, read_batch
from dreamlib.notebook.runner.jobs import FAILED, UNFINISHED, Batch
from dreamlib.notebook.runner.notebooks import (
    POLICY,
    check_parameters,
    find_notebook,
    parameters_of,
    run_notebook,
    title,
    to_html,
)
from dreamlib.runs.open import find_run, open_run
from dreamlib.utils.errors import ConfigError, DreamlibError, Interrupted, RunError
from dreamlib.utils.files import read_json, try_lock, write_json
from tests.conftest import TINY


def write_notebook(path: Path, *cells: str, parameters: str = 'RUN = "runs/x"\nN = 1') -> Path:
    """A notebook of a title, a cell of parameters, and these cells of code."""
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(f"Some words\n\n# About {path.stem}")]
        + [nbformat.v4.new_code_cell(source) for source in (parameters, *cells)]
    )
    made.cells[1].metadata["tags"] = ["parameters"]
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(made, path)
    return path


def until(condition: Callable[[], bool], limit: float = 300.0) -> bool:
    """Whether it comes true within `limit` seconds."""
    end = time.monotonic() + limit
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def kernels() -> list[int]:
    """Kernels that descend from this process, and run."""
    found = psutil.Process().children(recursive=True)
    return [p.pid for p in found if p.status() != "zombie" and "ipykernel" in str(p.cmdline())]


def gone(pid: int) -> bool:
    """Whether a process ends soon; a zombie has ended."""
    return until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", 10)


def batch(out: Path, *specs: Spec, jobs: int = 1, **more) -> Batch:
    items = [item for spec in specs for item in plan_run(spec, out / spec.name)]
    return Batch(items, out, jobs, say=more.pop("say", lambda text: None), **more)


def facts(out: Path) -> dict[str, dict[str, Any]]:
    """What status.json says of each notebook."""
    runs = read_json(out / "status.json")["runs"].items()
    return {f"{name}/{n}": found for name, run in runs for n, found in run["notebooks"].items()}


def states(out: Path) -> dict[str, str]:
    return {name: found["state"] for name, found in facts(out).items()}


# ------------------------------------------------------------------ with real kernels

MEET = """
import os, pathlib, time
here = pathlib.Path({here!r})
here.touch()
until = time.monotonic() + 60
while not pathlib.Path({there!r}).exists() and time.monotonic() < until:
    time.sleep(0.02)
print("met", pathlib.Path({there!r}).exists(), "threads", os.environ["OMP_NUM_THREADS"])
print("images", os.environ["DREAMLIB_DATA"])
"""


def test_every_ending_is_told_apart_and_two_jobs_overlap(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("DREAMLIB_DATA", raising=False)
    a, b = str(tmp_path / "a.here"), str(tmp_path / "b.here")
    sources = {
        "left": [MEET.format(here=a, there=b)],
        "right": [MEET.format(here=b, there=a)],
        "fails": ["print('so far')", "raise ValueError('<b>no</b>\\n  way')", "print('never')"],
        "leaves": ["import sys\nprint('STOPPED: run again')\nsys.exit(0)", "print('never')"],
        "dies": ["x = 1", "import os\nos.kill(os.getpid(), 9)"],
    }
    paths = {name: write_notebook(tmp_path / f"{name}.ipynb", *sources[name]) for name in sources}
    paths["next"] = write_notebook(tmp_path / "next.ipynb", "print('never')")
    said: list[str] = []
    after = {"fails": ["next"]}
    specs = [
        Spec(name=name, notebooks=[str(paths[each]) for each in (name, *after.get(name, []))])
        for name in sources
    ]
    job = batch(tmp_path / "out", *specs, jobs=2, say=said.append)
    assert job.run() == FAILED
    assert kernels() == []
    assert states(tmp_path / "out") == {
        "left/left": "done",
        "right/right": "done",
        "fails/fails": "failed",
        "fails/next": "skipped",
        "leaves/leaves": "stopped",
        "dies/dies": "killed",
    }
    told = facts(tmp_path / "out")
    fails, leaves, dies = (told[f"{name}/{name}"] for name in ("fails", "leaves", "dies"))
    assert (fails["cell"], fails["ename"], fails["evalue"]) == (3, "ValueError", "<b>no</b> way")
    assert (leaves["cell"], leaves["evalue"]) == (2, "STOPPED: run again")
    assert (dies["cell"], "pid" in dies) == (3, False)
    log = (tmp_path / "out/left/left.log").read_text()
    cores = len(os.sched_getaffinity(0))
    assert log.splitlines()[-2] == f"met True threads {max(1, cores // 2)}"
    assert log.splitlines()[-1] == f"images {tmp_path / 'out' / 'data'}"  # packed once for all
    page = (tmp_path / "out/fails/fails.html").read_text()
    assert "so far" in page
    assert "Traceback" in page
    front = (tmp_path / "out/index.html").read_text()
    assert set(re.findall('href="(.*?)"', front)) == {f"{n}/{n}.html" for n in sources}
    assert "&lt;b&gt;no&lt;/b&gt; way" in front
    assert "://" not in front
    assert any(re.fullmatch(r"leaves/leaves: begins, log in \S+/leaves\.log", s) for s in said)
    told = r"fails/fails: failed after \d+ s in cell 3: ValueError: <b>no</b> way; page \S+\.html"
    assert any(re.fullmatch(told, text) for text in said)
    assert re.search(r"^fails +next +skipped$", table(job.status), re.M)


def test_a_kernel_that_will_not_end_is_killed_with_its_children(tmp_path):
    deaf = write_notebook(
        tmp_path / "deaf.ipynb",
        "import pathlib, signal, subprocess, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)",
        'child = subprocess.Popen(["sleep", "600"], start_new_session=True)\n'
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\ntime.sleep(600)",
    )
    began: list[int] = []
    begun = time.monotonic()
    leash = Leash(lambda: (tmp_path / "pid").exists(), grace=0.5, begun=began.append)
    ending = execute(deaf, tmp_path / "out.ipynb", {}, leash)
    assert (ending.state, ending.cell) == ("stopped", 3)
    assert time.monotonic() - begun < 300
    assert gone(began[0])
    assert gone(int((tmp_path / "pid").read_text()))


def test_what_a_killed_kernel_leaves_running_ends_with_it(tmp_path):
    path = write_notebook(
        tmp_path / "dies.ipynb",
        "import os, pathlib, subprocess",
        f"home = pathlib.Path({str(tmp_path / 'pid')!r})\n"
        'home.write_text(str(subprocess.Popen(["sleep", "600"]).pid))\nos.kill(os.getpid(), 9)',
    )
    assert execute(path, tmp_path / "out.ipynb", {}, Leash()).state == "killed"
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_notebook_whose_time_is_up_ends_and_what_ran_is_kept(tmp_path):
    slow = write_notebook(tmp_path / "slow.ipynb", "import time", "time.sleep(600)")
    job = batch(tmp_path / "out", Spec(name="r", notebooks=(str(slow),)), timeout=1.0)
    assert job.run() == UNFINISHED
    assert states(tmp_path / "out") == {"r/slow": "timeout"}
    assert (tmp_path / "out/r/slow.html").exists()
    assert kernels() == []


def test_a_kernel_does_not_heed_the_run_of_a_served_page(tmp_path, monkeypatch):
    monkeypatch.setenv("DREAMLIB_RUN", "/elsewhere")
    monkeypatch.setenv("OTHER", "passed on")
    names = ("DREAMLIB_RUN", "OTHER")
    path = write_notebook(tmp_path / "n.ipynb", f"import os\n[os.environ.get(x) for x in {names}]")
    assert execute(path, tmp_path / "out.ipynb", {}, Leash()).state == "done"
    (output,) = nbformat.read(tmp_path / "out.ipynb", 4).cells[-1]["outputs"]
    assert output["data"]["text/plain"] == "['', 'passed on']"


def cell(number: int | None, *texts: str, began: bool = True) -> dict[str, Any]:
    outputs = [{"output_type": "stream", "name": "stdout", "text": text} for text in texts]
    metadata = {"papermill": {"start_time": "now" if began else None}}
    code = {"cell_type": "code", "metadata": metadata, "execution_count": number}
    return {**code, "outputs": outputs}


@pytest.mark.parametrize(
    ("cells", "ending"),
    [
        # the cell that killed its kernel has no number yet
        ([cell(1), cell(None), cell(None, began=False)], Ending("done", 2)),
        ([cell(1), cell(3, "saved\n")], Ending("done", 3)),
        (
            [cell(1), cell(2, "PAUSED at step 3\n", f"{PAUSED}a\n", PAUSED), cell(3, "saved\n")],
            Ending("stopped", 2, "", "PAUSED: a"),
        ),
        ([cell(1, f"{PAUSED}a"), cell(2, f"{PAUSED}b")], Ending("stopped", 1, "", "PAUSED: a")),
        ([], Ending("done")),
    ],
)
def test_where_the_last_cell_stands(cells, ending):
    assert _last([{"cell_type": "markdown", "metadata": {}}, *cells]) == ending


def test_a_page_of_a_notebook_loads_and_runs_nothing(tmp_path):
    path = tmp_path / "n.ipynb"
    page = "<img src=x onerror=alert(1)><script src='https://elsewhere.example/x.js'></script>"
    output = nbformat.v4.new_output("display_data", {"text/html": page})
    cell = nbformat.v4.new_code_cell("1", outputs=[output])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    text = to_html(path).read_text()
    assert "<script" not in text.lower()
    assert text.index("default-src 'none'") < text.index("onerror")  # which it forbids
    assert POLICY in index({"state": "done", "runs": {}}, tmp_path)


def test_the_kernel_is_this_interpreters_whoever_owns_the_name(tmp_path, monkeypatch):
    theirs = tmp_path / "kernels/python3"
    theirs.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "a hub's", "language": "python"}
    write_json(theirs / "kernel.json", spec)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    manager = _manager(Leash(), {}, None)(kernel_name="python3")
    assert manager.format_kernel_cmd()[:3] == [sys.executable, "-m", "ipykernel_launcher"]


def test_what_is_not_installed_is_named_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("dreamlib.notebook.runner.execute.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install papermill ipykernel nbconvert psutil$"):
        execute(tmp_path / "n.ipynb", tmp_path / "out.ipynb", {}, Leash())


@pytest.mark.parametrize(
    ("ending", "kind", "words"),
    [
        (Ending("failed", 4, "OSError", "no"), DreamlibError, "stopped in cell 4: OSError: no"),
        (Ending("killed", 4), DreamlibError, "was killed, perhaps for want of memory"),
        (Ending("timeout", 4), Interrupted, "was stopped before its end"),
        (Ending("stopped", 4), Interrupted, "was stopped before its end"),
    ],
)
def test_run_notebook_says_how_it_ended(tmp_path, monkeypatch, ending, kind, words):
    monkeypatch.setattr("dreamlib.notebook.runner.notebooks.execute", lambda *words: ending)
    path = write_notebook(tmp_path / "n.ipynb")
    with pytest.raises(kind, match=words):
        run_notebook(path, path, {})
    assert (tmp_path / "n.html").exists()


POLITE = """
import pathlib, signal, sys, time
home = pathlib.Path({home!r})
def save(number, frame):
    (home / "saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
(home / "begun").write_text("")
if not (home / "saved").exists():
    time.sleep(600)
"""
COMMAND = """
import sys
from pathlib import Path
from tests.notebook.test_batch import Spec, batch
sys.exit(batch(Path(sys.argv[1]), Spec(name="run", notebooks=(sys.argv[2],))).run())
"""


def test_sigterm_ends_kernels_in_good_order_and_the_same_command_completes(tmp_path):
    polite = write_notebook(tmp_path / "polite.ipynb", POLITE.format(home=str(tmp_path)))
    after = write_notebook(tmp_path / "after.ipynb", "print('after')")
    spec = Spec(name="run", notebooks=(str(polite), str(after)))
    seen: dict[str, Any] = {}

    def ask() -> None:
        assert until((tmp_path / "begun").exists)
        seen.update(facts(tmp_path / "out")["run/polite"])
        os.kill(os.getpid(), signal.SIGTERM)

    said: list[str] = []
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    assert batch(tmp_path / "out", spec, say=said.append).run() == UNFINISHED
    asking.join()
    assert (seen["state"], gone(seen["pid"])) == ("running", True)
    assert 0 <= time.time() - seen["since"] < 3600
    assert (tmp_path / "saved").exists(), "it was asked, and given time"
    assert "(asked by SIGTERM)" in said[-1]
    ended = facts(tmp_path / "out")["run/polite"]
    assert (ended["cell"], ended["note"]) == (2, "asked by SIGTERM")
    assert read_json(tmp_path / "out/status.json")["state"] == "unfinished"
    assert states(tmp_path / "out") == {"run/polite": "stopped", "run/after": "skipped"}
    assert batch(tmp_path / "out", spec).run() == 0
    assert states(tmp_path / "out") == {"run/polite": "done", "run/after": "done"}


@pytest.mark.slow
def test_a_command_that_is_killed_leaves_no_kernel_and_goes_on(tmp_path):
    polite = write_notebook(tmp_path / "polite.ipynb", POLITE.format(home=str(tmp_path)))
    process = subprocess.Popen([sys.executable, "-c", COMMAND, tmp_path / "out", polite])
    assert until((tmp_path / "begun").exists)
    kernel = facts(tmp_path / "out")["run/polite"]["pid"]
    process.kill()
    process.wait(timeout=300)
    assert gone(kernel)
    (tmp_path / "saved").touch()
    spec = Spec(name="run", notebooks=(str(polite),))
    assert batch(tmp_path / "out", spec).run() == 0


# ------------------------------------------------------------------ without kernels


@pytest.fixture
def ran(monkeypatch):
    """Notebooks 'end' at once, as `endings` says (else done): the names of those that began."""
    began: list[str] = []
    endings: dict[str, str] = {}

    def pretend(path, output, parameters, leash, *more):
        began.append(path.stem)
        made = nbformat.read(path, 4)
        made.metadata["made"] = len(began)
        nbformat.write(made, output)
        return Ending(endings.get(path.stem, "done"))

    monkeypatch.setattr("dreamlib.notebook.runner.jobs.execute", pretend)
    monkeypatch.setattr(
        "dreamlib.notebook.runner.jobs.to_html", lambda path: path.with_suffix(".html").touch()
    )
    return SimpleNamespace(began=began, endings=endings)


@pytest.fixture
def pair(tmp_path):
    """again(more parameters) runs notebooks `one` and `two` of a run -> the exit code."""
    paths = [write_notebook(tmp_path / f"{name}.ipynb") for name in ("one", "two")]

    def again(**more) -> int:
        spec = Spec(name="r", notebooks=tuple(map(str, paths)), parameters=more.pop("p", {}))
        return batch(tmp_path / "out", spec, **more).run()

    return again


def test_what_is_done_is_skipped_and_one_line_says_so(tmp_path, ran, pair):
    said: list[str] = []
    assert pair() == 0
    assert ran.began == ["one", "two"]
    assert pair(say=said.append) == 0
    assert ran.began == ["one", "two"]
    assert [text.partition(":")[0] for text in said] == ["r/one", "r/two"]
    assert all("done before, with the same inputs" in text for text in said)
    assert states(tmp_path / "out") == {"r/one": "done", "r/two": "done"}
    assert pair(again=True) == 0
    assert ran.began == ["one", "two"] * 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def forge(path: Path) -> None:
    write_json(path, read_json(path) | {"seconds": 1.0})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *[("out/r/two.ipynb", cut), ("out/r/two.json", cut), ("out/r/two.json", forge)],
        *[("out/r/two.ipynb", Path.unlink), ("two.ipynb", lambda path: write_notebook(path, "1"))],
    ],
)
def test_what_is_changed_or_damaged_runs_again(tmp_path, ran, pair, name, change):
    pair()
    change(tmp_path / name)
    assert pair() == 0
    assert ran.began == ["one", "two", "two"]


def test_changed_parameters_run_again_and_what_builds_on_them(tmp_path, ran, pair):
    pair()
    pair(p={"N": 2})
    assert ran.began == ["one", "two", "one", "two"]
    write_notebook(tmp_path / "one.ipynb", "print('more')")
    pair(p={"N": 2})
    assert ran.began[4:] == ["one", "two"], "two works in the folder that one has changed"


def test_another_version_runs_again(ran, pair, monkeypatch):
    pair()
    monkeypatch.setattr("dreamlib.__version__", "99")
    pair()
    assert ran.began == ["one", "two", "one", "two"]


def test_a_lost_page_is_made_anew_without_running(tmp_path, ran, pair):
    pair()
    (tmp_path / "out/r/one.html").unlink()
    pair()
    assert ran.began == ["one", "two"]
    assert (tmp_path / "out/r/one.html").exists()


@pytest.mark.parametrize(
    ("ending", "code"),
    [("timeout", UNFINISHED), ("stopped", UNFINISHED), ("failed", FAILED), ("killed", FAILED)],
)
def test_what_does_not_end_well_halts_its_run_and_goes_on_next_time(
    tmp_path, ran, pair, ending, code
):
    ran.endings["one"] = ending
    assert pair() == code
    assert states(tmp_path / "out") == {"r/one": ending, "r/two": "skipped"}
    assert facts(tmp_path / "out")["r/two"]["note"] == f"after one ({ending})"
    ran.endings.clear()
    assert pair() == 0
    assert ran.began == ["one", "one", "two"]


def test_a_full_disk_fails_one_run_and_the_other_goes_on(tmp_path, ran, monkeypatch):
    def full(path, output, parameters, leash, *more):
        raise OSError(28, "No space left on device", str(output))

    monkeypatch.setattr("dreamlib.notebook.runner.jobs.execute", full)
    path = write_notebook(tmp_path / "one.ipynb")
    specs = [Spec(name=name, notebooks=(str(path),)) for name in ("a", "b")]
    assert batch(tmp_path / "out", *specs).run() == FAILED
    assert states(tmp_path / "out") == {"a/one": "failed", "b/one": "failed"}
    reason = facts(tmp_path / "out")["b/one"]["evalue"]
    assert "one.ipynb cannot be used (No space left on device): free some space" in reason


def test_a_notebook_that_makes_no_page_is_done_and_says_so(tmp_path, ran, pair, monkeypatch):
    monkeypatch.setattr("dreamlib.notebook.runner.jobs.to_html", to_html)
    path = write_notebook(tmp_path / "one.ipynb")
    made = nbformat.read(path, 4)
    made.cells[0]["source"] += "\n\n![lost](attachment:lost.png)"
    nbformat.write(made, path)
    said: list[str] = []
    spec = Spec(name="a", notebooks=(str(path),))
    assert batch(tmp_path / "out", spec, say=said.append).run() == 0
    assert [text for text in said if "makes no page (missing attachment: lost.png)" in text]
    one = facts(tmp_path / "out")["a/one"]
    assert one["state"] == "done"
    assert "page" not in one


def test_an_error_of_our_own_is_raised_and_the_other_run_goes_on(tmp_path, ran, monkeypatch):
    def bug(path):
        if "/a/" in str(path):
            raise ZeroDivisionError("a bug")

    monkeypatch.setattr("dreamlib.notebook.runner.jobs.to_html", bug)
    path = write_notebook(tmp_path / "one.ipynb")
    specs = [Spec(name=name, notebooks=(str(path),)) for name in ("a", "b")]
    with pytest.raises(ZeroDivisionError):
        batch(tmp_path / "out", *specs).run()
    assert states(tmp_path / "out") == {"a/one": "failed", "b/one": "done"}


def test_two_commands_do_not_work_in_one_folder(tmp_path, ran, pair):
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out/.lock", "a+b") as file:
        assert try_lock(file)
        with pytest.raises(RunError, match="another command runs notebooks in"):
            pair()
    assert pair() == 0


def test_names_from_outside_are_escaped_on_the_page(tmp_path):
    one = {"state": "failed", "evalue": '"><script>', "page": str(tmp_path / 'a&b/"x y".html')}
    status = {"state": "failed", "runs": {"<i>": {"notebooks": {"<u>": one}}}}
    page = index(status, tmp_path)
    assert "<script>" not in page
    assert "<i>" not in page
    assert "<u>" not in page
    assert 'href="a%26b/%22x%20y%22.html"' in page


# ------------------------------------------------------------------ parameters

DEFAULTS = 'A = 1\nB = 0.5\nC = "x"\nD = None\nE = [1]\nF = True\nG: int = 2\nH = -1  # words'


def test_parameters_are_read_from_the_source(tmp_path):
    path = write_notebook(tmp_path / "n.ipynb", parameters=DEFAULTS)
    has = parameters_of(path)
    assert has == {"A": 1, "B": 0.5, "C": "x", "D": None, "E": [1], "F": True, "G": 2, "H": -1}
    assert title(path) == "About n"
    assert set(parameters_of(find_notebook("00_complete"))) >= {"PRESET", "RUN", "OVERRIDES"}


@pytest.mark.parametrize("cell", ["A = B", "import os", "%matplotlib inline", "A = os.getcwd()"])
def test_a_cell_of_parameters_holds_literals_only(tmp_path, cell):
    path = write_notebook(tmp_path / "n.ipynb", parameters=cell)
    with pytest.raises(ConfigError, match="must hold assignments of literals only"):
        parameters_of(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}', '{"cells": [{}]}'])
def test_what_is_no_notebook_is_said_to_be_none(tmp_path, text):
    (tmp_path / "n.ipynb").write_text(text)
    with pytest.raises(ConfigError, match=r"n\.ipynb is no notebook"):
        parameters_of(tmp_path / "n.ipynb")


@pytest.mark.parametrize(
    ("name", "value"),
    [("A", 7), ("A", None), ("B", 3), ("B", 1e-4), ("C", ""), ("D", [2]), ("E", []), ("F", False)],
)
def test_values_of_the_right_kind_pass(tmp_path, name, value):
    path = write_notebook(tmp_path / "n.ipynb", parameters=DEFAULTS)
    spec = Spec(name="r", notebooks=(str(path),), parameters={name: value})
    assert plan_run(spec, tmp_path / "out")[0].parameters == {name: value}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("A", 0.5), ("A", True), ("A", "7"), ("B", "x"), ("C", 3), ("E", "x"), ("F", 1)],
        ("E", {}),
    ],
)
def test_values_of_the_wrong_kind_are_refused(tmp_path, name, value):
    path = write_notebook(tmp_path / "n.ipynb", parameters=DEFAULTS)
    with pytest.raises(ConfigError, match=rf"{name} of n\.ipynb is .* should be of the kind"):
        check_parameters(path, {name: value})
    with pytest.raises(ConfigError, match=r"a parameter of n\.ipynb is no plain value"):
        check_parameters(path, {"D": float("nan")})


def test_a_parameter_goes_to_the_notebooks_that_have_it(tmp_path):
    a = write_notebook(tmp_path / "a.ipynb", parameters="A = 1\nRUN = ''")
    b = write_notebook(tmp_path / "b.ipynb", parameters="B = 1\nRUN = ''")
    spec = Spec(name="r", notebooks=(str(a), str(b)), parameters={"A": 5}, run="x")
    first, second = plan_run(spec, tmp_path / "out")
    assert first.parameters == {"A": 5, "RUN": str(Path("x").absolute())}
    assert second.parameters == {"RUN": str(Path("x").absolute())}
    wrong = spec.model_copy(update={"parameters": {"Z": 5}})
    with pytest.raises(ConfigError, match="parameter Z: a has A, RUN; b has B, RUN"):
        plan_run(wrong, tmp_path / "out")


# ------------------------------------------------------------------ YAML

STUDY = 'PRESET = "faces16"\nRUN = "runs/x"\nOVERRIDES = []\nN = 1'


@pytest.fixture
def yaml(tmp_path):
    """yaml(text) -> a file, and what it plans; NB stands for the path of a notebook."""
    path = write_notebook(tmp_path / "study.ipynb", parameters=STUDY)

    def read(text: str):
        (tmp_path / "batch.yaml").write_text(text.replace("NB", str(path)))
        asked = read_batch(tmp_path / "batch.yaml")
        return asked, plan_batch(asked, tmp_path / "out", asked.jobs)

    return read


def test_a_batch_is_read_from_yaml(tmp_path, yaml):
    asked, (one, two) = yaml(
        "jobs: 2\ntimeout: 90 min\ndefaults: {preset: digits16, set: [train.batch=16]}\nruns:\n"
        "  - {name: standard, notebooks: [NB], set: [loss.name=standard]}\n"
        "  - {name: far, notebooks: [NB], run: elsewhere, parameters: {N: 3}}\n"
    )
    assert (asked.jobs, asked.timeout) == (2, 5400.0)
    assert (one.name, one.folder) == ("standard/study", tmp_path / "out/standard")
    assert one.parameters == {
        "PRESET": "digits16",
        "RUN": str(tmp_path / "out/standard/out-standard"),
        "OVERRIDES": ["train.batch=16", "loss.name=standard"],
    }
    assert two.parameters == {
        "PRESET": "digits16",
        "RUN": str(Path("elsewhere").absolute()),
        "OVERRIDES": ["train.batch=16"],
        "N": 3,
    }


PAIR = "runs: [{name: a, notebooks: [NB]}, {name: b, notebooks: [NB]}]"


def test_a_mirror_keeps_the_runs_of_batches_apart(tmp_path, data_home, yaml, monkeypatch):
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    monkeypatch.setenv("DREAMLIB_MIRROR", str(tmp_path / "mirror"))
    asked, items = yaml(PAIR)
    items += plan_batch(asked, tmp_path / "other", 1)
    first, *rest = (item.parameters["RUN"] for item in items)
    open_run(first, "faces16", overrides=TINY).push()
    assert find_run(tmp_path / "elsewhere" / Path(first).name), "it is on the mirror"
    assert len({first, *rest}) == 4
    for folder in rest:
        assert not find_run(folder), f"{folder} is brought, but never ran"


def folders(tmp_path: Path, **named: str) -> list[dict[str, Any]]:
    """The parameters of notebooks 02, 05 and 07 in the two runs of a batch of two jobs."""
    names = "[02_crash_recovery, 05_report_figures, 07_dream_ablation]"
    text = f"defaults: {{notebooks: {names}, parameters: {json.dumps(named)}}}\n"
    (tmp_path / "b.yaml").write_text(text + "runs: [{name: a}, {name: b}]")
    items = plan_batch(read_batch(tmp_path / "b.yaml"), tmp_path / "out", 2)
    return [item.parameters for item in items]


def test_every_folder_of_a_run_in_a_batch_is_its_own(tmp_path):
    given = folders(tmp_path)
    for name, (crash, figures, ablation) in zip("ab", (given[:3], given[3:])):
        home = str(tmp_path / f"out/{name}/out-{name}")
        assert crash == {"OUT": f"{home}-crash"}
        assert figures == {"RUN": home, "ABLATION": f"{home}-ablation"}
        assert ablation == {"OUT": f"{home}-ablation"}


def test_an_ablation_that_is_there_may_be_shown_by_runs_side_by_side(tmp_path):
    given = folders(tmp_path, ABLATION="runs/ablation")
    assert [one["ABLATION"] for one in given if "ABLATION" in one] == ["runs/ablation"] * 2


def test_what_one_run_makes_is_not_shown_by_another_at_once(tmp_path):
    made = str(tmp_path / "out/x/../b/out-b-ablation")
    with pytest.raises(ConfigError, match=r"b and a would .* give each its own parameter ABLATION"):
        folders(tmp_path, ABLATION=made)


# FIRST stands for a list of runs, up to its first notebooks
WRONG = [
    ("job: 2\nFIRST}]", "unknown key job", "did you mean jobs?", "timeout"),
    (
        "FIRST, presets: x}]",
        *("unknown key runs.1.presets", "did you mean preset?", "known here: notebooks, preset"),
    ),
    ("defaults: {name: x}\nFIRST}]", "unknown key defaults.name", "known here: notebooks"),
    ("runs: [{notebooks: [NB]}]", "runs.1.name is missing"),
    ("jobs: 1", "runs is missing"),
    ("runs: []", "runs is []", "at least 1 item"),
    ("[1]", "it holds [1]"),
    ("runs: [", "batch.yaml is not valid YAML"),
    ("FIRST}]\nFIRST}]", "batch.yaml is not valid YAML", "'runs' is there twice"),
    ("FIRST, hours: .nan}]", "runs.1.hours is nan", "finite"),
    ("FIRST}, {name: A, notebooks: [NB]}]", "every run needs its own name, but A, a recur"),
    ("runs: [{name: ../a, notebooks: [NB]}]", "'../a'", "folder name"),
    ("runs: [{name: status.json}]", "'status.json'", "folder name"),
    ("jobs: 0\nFIRST}]", "jobs is 0", "greater than or equal to 1"),
    ("timeout: 30\nFIRST}]", "timeout is 30", "90min"),
    ("FIRST, set: a.b=1}]", "unknown setting a: known here"),
    ("runs: [{name: a, notebooks: [99_none]}]", "there is no notebook"),
    ("runs: [{name: a, notebooks: [NB, NB]}]", "study more than once"),
    (
        "FIRST, parameters: {M: 3}}]",
        *("no notebook has a parameter M", "study has PRESET, RUN, OVERRIDES, N"),
    ),
    ("defaults: {hours: 1.0}\nFIRST}]", "parameter HOURS"),
    ("FIRST, parameters: {N: many}}]", "N of study.ipynb is 'many'"),
    ("FIRST, parameters: {N: 2020-01-01}}]", "N of study.ipynb is"),
    (
        "FIRST, preset: smoke, parameters: {PRESET: smoke}}]",
        "PRESET is given as a parameter and by its option",
    ),
    ("FIRST, preset: faces61}]", "did you mean faces16"),
    ("FIRST, set: [train.bacth=3]}]", "train.bacth", "did you mean batch"),
    (
        "jobs: 2\ndefaults: {run: x}\nFIRST}, {name: b, notebooks: [NB]}]",
        *("a and b would work in", "at once"),
    ),
    (
        "jobs: 2\nFIRST, run: x/../y}, {name: b, notebooks: [NB], parameters: {RUN: y}}]",
        *("a and b would work in", "its own `run`"),
    ),
    (
        "jobs: 2\ndefaults: {parameters: {OUT: runs/crash}, notebooks: [02_crash_recovery]}\n"
        "runs: [{name: a}, {name: b}]",
        *("a and b would work in", "its own parameter OUT"),
    ),
]


@pytest.mark.parametrize(("text", "words"), [(text, words) for text, *words in WRONG])
def test_a_wrong_batch_is_refused_before_anything_is_written(tmp_path, yaml, text, words):
    with pytest.raises(DreamlibError) as error:
        yaml(text.replace("FIRST", "runs: [{name: a, notebooks: [NB]"))
    assert [word for word in words if word not in str(error.value)] == []
    assert not (tmp_path / "out").exists()


def test_a_batch_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="there is no batch file"):
        read_batch(tmp_path / "none.yaml")


def test_a_manifest_says_what_went_in(tmp_path, ran, pair):
    pair(p={"N": 2})
    record = json.loads((tmp_path / "out/r/one.json").read_text())
    assert record["inputs"]["parameters"] == {"N": 2}
    assert (record["state"], record["inputs"]["after"]) == ("done", None)
    assert read_json(tmp_path / "out/r/two.json")["inputs"]["after"] == record["output"]
