"""Options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dreamlib.runs.open import find_run, open_run
from dreamlib.runs.run import Run
from dreamlib.utils.arguments import POSITIVE, taken
from dreamlib.utils.errors import RunError

Preset = Annotated[str | None, typer.Option(help="a preset's name or a YAML file")]
Data = Annotated[Path | None, typer.Option(help="the folder that holds the images")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="section.field=value, as often as you like")
]
Mirrors = Annotated[
    list[str] | None,
    typer.Option(
        "--mirror",
        help="a folder or a store's URL that keeps copies, more than once for several, or none "
        "[else DREAMLIB_MIRROR]",
    ),
]
Hours = Annotated[
    float | None,
    typer.Option(
        help="time budget of this session",
        callback=lambda hours: hours if hours is None else taken(POSITIVE, hours, "--hours"),
    ),
]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="take the run from whoever seems to train it")
]
InitFrom = Annotated[
    Path | None, typer.Option(help="begin with the weights of this run, of the same shape")
]
Devices = Annotated[
    int | None, typer.Option(min=1, max=64, help="GPUs, or processes on a CPU, by torchrun")
]
Restarts = Annotated[
    int, typer.Option(min=0, max=100, help="by torchrun, of all processes when one dies")
]
RunFolder = Annotated[Path, typer.Argument(help="a run folder")]


def overrides_of(settings: list[str] | None, data: Path | None) -> list[str]:
    named = [f"data.path={json.dumps(str(data.absolute()))}"] if data else []
    return [*(settings or []), *named]


def existing(
    run: Path, mirror: list[str] | None, settings: list[str] | None = None, images: bool = True
) -> Run:
    """Open a run that is here or on the mirror, without making a folder for a misspelt name."""
    if not find_run(run, mirror):
        raise RunError(f"{run} holds no run: check the path, or begin one with `dreamlib train`")
    asked = {"overrides": settings or [], "mirror": mirror, "images": images}
    return open_run(run, **asked)
