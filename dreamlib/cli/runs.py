"""`dreamlib run ...`: status, list, fork, pull, push."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from dreamlib.cli.options import MirrorFolder, RunFolder, Set
from dreamlib.runs.checkpoints import look, whole_checkpoints
from dreamlib.runs.folder import RunDir
from dreamlib.runs.lock import alive, locked, read_owner
from dreamlib.runs.mirror.restore import fetch_newer
from dreamlib.runs.mirror.uploader import describe
from dreamlib.runs.open import bring_back, mirror_of, open_run
from dreamlib.training.fork import fork_run
from dreamlib.utils.errors import RunError
from dreamlib.utils.progress import TextProgress, duration
from dreamlib.utils.progress import tell as say

run_app = typer.Typer(no_args_is_help=True, help="Look at runs; copy, bring back and fork them.")
EVENTS = 8  # lines of the story that `status` tells


@run_app.command()
def status(run: RunFolder) -> None:
    """Where a run stands, what is saved and mirrored, and what happened to it lately."""
    ours = _existing(run)
    report = ours.status()
    say(f"{run}: {_state(ours, report)}, step {report['step']:,}{_share(report)}")
    for checkpoint in whole_checkpoints(ours.checkpoints):
        age = duration(time.time() - checkpoint.manifest["time"])
        size = checkpoint.manifest["size"] / 2**20
        say(f"  checkpoint of step {checkpoint.step:,}: whole, {size:,.1f} MiB, {age} old")
    if "mirror" in report:
        say(f"  mirror: {describe(report)}")
    if report.get("error"):
        say(f"  it failed: {report['error']}")
    for event in ours.read_events()[-EVENTS:]:
        when = time.strftime("%m-%d %H:%M:%S", time.localtime(event["time"]))
        told = {k: str(v)[:8] if k == "sha256" else v for k, v in event.items()}
        facts = (f"{k} {v}" for k, v in told.items() if k not in ("time", "event", "text"))
        say(f"  {when}  {event.get('text') or ' '.join((event['event'], *facts))}")


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
        say(f"{folder.name:<24} {_state(ours, report):<16} {report['step']:,}{_share(report)}{age}")


@run_app.command()
def fork(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(help="the new run's folder")],
    step: Annotated[int | None, typer.Option(help="of a kept checkpoint [the newest]")] = None,
    settings: Set = None,
) -> None:
    """Begin a new run from a checkpoint of this one, under changed settings."""
    _existing(run)
    fork_run(run, folder, step=step, overrides=settings or [], progress=TextProgress(), say=say)


@run_app.command()
def pull(run: RunFolder, mirror: MirrorFolder = None) -> None:
    """Bring a run from its mirror: all of it, or what is newer there."""
    ours = RunDir(run)
    mirror_of_run = mirror_of(ours, mirror, say)
    if mirror_of_run is None:
        raise RunError("there is no mirror: name a folder (--mirror, or DREAMLIB_MIRROR)")
    ours.check_writable()
    if ours.config.exists():
        with locked(ours.lock, say=say):
            newest, _ = look(ours.checkpoints)
            fetch_newer(mirror_of_run, ours, newest.step if newest else -1, say)
    elif not bring_back(ours, mirror_of_run, say):
        raise RunError(f"{mirror_of_run.home} holds no run of the name {ours.name}")


@run_app.command()
def push(run: RunFolder, mirror: MirrorFolder = None) -> None:
    """Copy everything worth keeping of a run to its mirror, now."""
    _existing(run)
    open_run(run, mirror=mirror, progress=TextProgress(), say=say).push()


def _existing(run: Path) -> RunDir:
    if not (run / "config.yaml").is_file():
        raise RunError(f"{run} holds no run: check the path, or begin one with `dreamlib train`")
    return RunDir(run)


def _state(run: RunDir, report: dict[str, Any]) -> str:
    """The state in status.json, unless its writer was killed before it could write another."""
    if report["state"] != "running":
        return report["state"]
    owner = read_owner(run.lock)
    return "running" if owner and alive(owner) is not False else "stopped (killed)"


def _share(report: dict[str, Any]) -> str:
    total = report.get("total")
    return f" of {total:,} ({report['step'] / total:.0%})" if total else ""
