"""`dreamlib run ...`: status, list, fork, pull, push, kaggle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from dreamlib.cli.options import Mirrors, RunFolder, Set
from dreamlib.runs.checkpoints import look
from dreamlib.runs.folder import RunDir
from dreamlib.runs.history import share_of, state_of, story
from dreamlib.runs.kaggle import publish
from dreamlib.runs.lock import locked
from dreamlib.runs.mirror.restore import fetch_newest
from dreamlib.runs.open import bring_back, mirrors_of, open_run
from dreamlib.runs.run import NO_MIRROR
from dreamlib.training.fork import fork_run
from dreamlib.utils.errors import RunError
from dreamlib.utils.progress import duration
from dreamlib.utils.progress import tell as say

run_app = typer.Typer(no_args_is_help=True, help="Look at runs; copy, bring back and fork them.")


@run_app.command()
def status(run: RunFolder) -> None:
    """Where a run stands, what is saved and mirrored, and what happened to it lately."""
    for line in story(_existing(run)):
        say(line)


@run_app.command("list")
def list_runs(
    home: Annotated[Path, typer.Argument(help="the folder that holds run folders")] = Path("runs"),
) -> None:
    """Every run beside each other: its state, its step, its age."""
    found = sorted(path.parent for path in home.glob("[!.]*/config.yaml"))
    if not found:
        raise RunError(f"{home} holds no runs: begin one with `dreamlib train {home}/NAME`")
    for folder in found:
        ours = RunDir(folder)
        try:
            report = ours.status()
        except RunError as error:
            say(f"{folder.name:<24} {error}")
            continue
        age = f", {duration(time.time() - report['time'])} ago" if report.get("time") else ""
        step = f"{report['step']:,}{share_of(report)}"
        say(f"{folder.name:<24} {state_of(ours, report):<16} {step}{age}")


@run_app.command()
def fork(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(help="the new run's folder")],
    step: Annotated[int | None, typer.Option(help="of a kept checkpoint [the newest]")] = None,
    settings: Set = None,
) -> None:
    """Begin a new run from a checkpoint of this one, under changed settings."""
    _existing(run)
    fork_run(run, folder, step=step, overrides=settings or [])


@run_app.command()
def pull(run: RunFolder, mirror: Mirrors = None) -> None:
    """Bring a run from its mirror: all of it, or what is newer there."""
    ours = RunDir(run)
    mirrors = mirrors_of(ours, mirror)
    if not mirrors:
        raise RunError(NO_MIRROR)
    ours.check_writable()
    if ours.config.exists():
        with locked(ours.lock):
            newest, _ = look(ours.checkpoints)
            fetch_newest(mirrors, ours, newest.step if newest else -1)
    elif not bring_back(ours, mirrors):
        places = " and ".join(str(place.home) for place in mirrors)
        raise RunError(f"no run of the name {ours.name} in {places}")


@run_app.command()
def push(run: RunFolder, mirror: Mirrors = None) -> None:
    """Copy everything worth keeping of a run to its mirror, now."""
    _existing(run)
    open_run(run, mirror=mirror).push()


@run_app.command()
def kaggle(
    run: RunFolder,
    name: Annotated[str, typer.Argument(help="OWNER/NAME of the data set, new or yours")],
) -> None:
    """Publish a run as a private Kaggle data set; attached, it is found there and goes on."""
    ours = _existing(run)
    with locked(ours.lock):
        say(f"{publish(ours, name)} files are in the data set {name}: attach it to go on there")


def _existing(run: Path) -> RunDir:
    if not (run / "config.yaml").is_file():
        raise RunError(f"{run} holds no run: check the path, or begin one with `dreamlib train`")
    return RunDir(run)
