"""`dreamlib notebooks`: run notebooks without a reader, one or many, again from where it was."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dreamlib.cli.options import Hours, Preset, Set
from dreamlib.config.load import parse_value
from dreamlib.notebook.runner.index_page import table
from dreamlib.notebook.runner.job_spec import Spec, plan_batch, plan_run, read_batch, seconds
from dreamlib.notebook.runner.jobs import UNFINISHED, Batch, gathered
from dreamlib.notebook.runner.notebooks import find_notebook, numbered, parameters_of, title
from dreamlib.utils.errors import ConfigError
from dreamlib.utils.progress import tell as say

Words = list[str] | None
Place = Path | None

Names = Annotated[
    Words, typer.Argument(help="00_complete, or a path; else all of the project's, in order")
]
Batches = Annotated[Place, typer.Option(help="a YAML file of many runs, instead")]
RunOption = Annotated[Place, typer.Option(help="the run folder [else the notebook's own]")]
Parameters = Annotated[
    Words, typer.Option("--parameter", "-p", help="NAME=value, as the notebook's cell has it")
]
Out = Annotated[
    Place, typer.Option(help="where results go [runs/notebooks; a batch: in there, by its name]")
]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, help="so many runs of a batch at once; a run's notebooks keep their order"),
]
Timeout = Annotated[
    str | None, typer.Option(help="for each notebook: 45s, 90min, 3h; what is done by then is kept")
]
Again = Annotated[bool, typer.Option("--again", help="also what is done already")]
Slurm = Annotated[
    str | None,
    typer.Option(help="a batch's runs as jobs of a cluster: partition=gpu,time=120 (minutes), ..."),
]
Only = Annotated[str | None, typer.Option(help="one run of a batch", hidden=True)]
Shown = Annotated[
    bool, typer.Option("--list", help="print titles, parameters and defaults; run nothing")
]


def notebooks(
    names: Names = None,
    batch: Batches = None,
    preset: Preset = None,
    settings: Set = None,
    hours: Hours = None,
    run: RunOption = None,
    parameter: Parameters = None,
    out: Out = None,
    jobs: Jobs = None,
    timeout: Timeout = None,
    again: Again = False,
    slurm: Slurm = None,
    only: Only = None,
    shown: Shown = False,
) -> None:
    """Run notebooks headless with papermill, and keep an HTML page of each.

    The same command goes on where it was: what is done with the same inputs is skipped.

    Exit code 0 when all is done, 75 when something was stopped or out of time and the same command
    goes on, 2 when something failed.
    """
    if shown:
        return say("\n".join(_described(find_notebook(name)) for name in names or numbered()))
    limit, home = _limit(timeout), out or Path("runs/notebooks") / (batch.stem if batch else "")
    if batch and (names or preset or settings or hours is not None or run or parameter):
        raise ConfigError("--batch names its runs itself: put what differs into the file")
    if slurm:
        return _on_cluster(batch, home, slurm, timeout, again)
    if batch:
        asked = read_batch(batch)
        jobs, limit = jobs or asked.jobs, limit or asked.timeout
        items = plan_batch(asked, home, jobs)
        home = home / only if only else home
        items = [item for item in items if only in (None, item.run)]
    else:
        own = {"preset": preset, "set": settings, "hours": hours, "run": str(run) if run else None}
        items = plan_run(_spec(names or numbered(), parameter or [], own), home)
    _finish(Batch(items, home, jobs or 1, limit, again, say), home)


def _spec(names: list[str], parameters: list[str], own: dict[str, Any]) -> Spec:
    own |= {"parameters": _parameters(parameters, names)}
    return Spec(name="notebooks", notebooks=tuple(names), **own)


def _finish(batch: Batch, home: Path) -> None:
    code = batch.run()
    say(f"\n{table(batch.status)}\n\nall of it in {home / 'index.html'}")
    if code == UNFINISHED:
        say("not all is done: the same command goes on")
    if code:
        raise typer.Exit(code)


def _on_cluster(
    batch: Path | None, home: Path, slurm: str, timeout: str | None, again: bool
) -> None:
    """A job for every run of a batch, and the page of all of them."""
    from dreamlib.notebook.runner.slurm import Cluster, Work, options_of

    if not batch:
        raise ConfigError("--slurm is for the runs of a --batch: name its file")
    asked, home = read_batch(batch), home.absolute()
    items = plan_batch(asked, home, len(asked.runs))
    words = [sys.executable, "-m", "dreamlib", "notebooks", "--batch", str(batch.absolute())]
    words += ["--out", str(home), *(["--timeout", timeout] if timeout else [])]
    words += ["--again"] if again else []
    os.environ.setdefault("DREAMLIB_DATA", str(home / "data"))
    works = [
        Work(run, (*words, "--only", run), home / run / "job.json")
        for run in dict.fromkeys(item.run for item in items)
    ]
    code = Cluster(works, options_of(slurm), home / "slurm", say).run()
    status = gathered(items, home)
    say(f"\n{table(status)}\n\nall of it in {home / 'index.html'}")
    if code:
        raise typer.Exit(code)


def _limit(timeout: str | None) -> float | None:
    try:
        return seconds(timeout) if timeout else None
    except ValueError as error:
        raise ConfigError(f"--timeout is {timeout!r}, but should be {error}") from error


def _parameters(items: list[str], names: list[str]) -> dict[str, Any]:
    """NAME=value, read as the notebooks' defaults suggest: a text stays one, be it 2026 or yes."""
    pairs = [item.partition("=") for item in items]
    if any(not (name and equals) for name, equals, _ in pairs):
        raise ConfigError("a parameter reads NAME=value: -p PRESET=faces16")
    defaults = [parameters_of(find_notebook(name)) for name in names]
    found = {}
    for name, _, text in pairs:
        value = None if text == "None" else parse_value(text, f"-p {name}")
        texts = any(isinstance(has.get(name), str) for has in defaults)
        found[name] = text if texts and value is not None else value
    return found


def _described(path: Path) -> str:
    lines = [f"{name} = {value!r}" for name, value in parameters_of(path).items()]
    return "\n    ".join([f"{path.stem}  {title(path)}", *lines])
