"""`dreamlib notebooks`: run notebooks without a reader, one or many, again from where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dreamlib.cli.options import Hours, Preset, Set
from dreamlib.config.load import parse_value
from dreamlib.notebook.runner.index_page import table
from dreamlib.notebook.runner.job_spec import Spec, plan_batch, plan_run, read_batch, seconds
from dreamlib.notebook.runner.jobs import UNFINISHED, Batch
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
    if batch:
        if names or preset or settings or hours is not None or run or parameter:
            raise ConfigError("--batch names its runs itself: put what differs into the file")
        asked = read_batch(batch)
        jobs, limit = jobs or asked.jobs, limit or asked.timeout
        items = plan_batch(asked, home, jobs)
    else:
        names = names or numbered()
        own: dict[str, Any] = {"name": "notebooks", "notebooks": names, "preset": preset}
        own |= {"set": settings, "hours": hours, "run": str(run) if run else None}
        own["parameters"] = _parameters(parameter or [], names)
        items = plan_run(Spec(**own), home)
    return _finish(Batch(items, home, jobs or 1, limit, again, say), home)


def _finish(batch: Batch, home: Path) -> None:
    code = batch.run()
    say(f"\n{table(batch.status)}\n\nall of it in {home / 'index.html'}")
    if code == UNFINISHED:
        say("not all is done: the same command goes on")
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
