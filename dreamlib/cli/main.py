"""Commands: `python -m dreamlib COMMAND`.  Each is a few calls to the library."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer

from dreamlib.cli import options
from dreamlib.cli.data import data_app
from dreamlib.cli.export import export, push, share
from dreamlib.cli.notebooks import notebooks
from dreamlib.cli.runs import run_app
from dreamlib.cli.scores import ablate, compare, evaluate, figures
from dreamlib.config.load import load_config
from dreamlib.notebook.runner.jobs import UNFINISHED
from dreamlib.runs.folder import RunDir
from dreamlib.runs.open import open_run
from dreamlib.utils import platform as host
from dreamlib.utils.context import using
from dreamlib.utils.errors import ConfigError, DreamlibError, Interrupted, OutOfTime, what_failed
from dreamlib.utils.images import enlarge, grid, save_png
from dreamlib.utils.progress import TextProgress
from dreamlib.utils.progress import tell as say

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

app.add_typer(data_app, name="data")
app.add_typer(run_app, name="run")
for command in (evaluate, compare, ablate, figures, export, share, push, notebooks):
    app.command()(command)


@app.command()
def demo(
    preset: Annotated[str, typer.Option(help="a preset's name")] = "faces16",
    data: options.Data = None,
    out: Annotated[Path | None, typer.Option(help="the run folder")] = None,
    hours: options.Hours = None,
    settings: options.Set = None,
) -> None:
    """The whole story in one command: the notebook 00_complete, run headless."""
    from dreamlib.notebook.runner.notebooks import find_notebook, run_notebook

    folder = out or Path("runs") / ("demo" if preset == "faces16" else f"demo-{preset}")
    overrides = options.overrides_of(settings, data)
    parameters = {"PRESET": preset, "RUN": str(folder.absolute()), "OVERRIDES": overrides}
    parameters |= {"HOURS": hours} if hours is not None else {}
    page = run_notebook(find_notebook("00_complete"), folder / "00_complete.ipynb", parameters)
    if RunDir(folder).status()["state"] != "finished":
        _end(RunDir(folder))
    say(f"\nDone.  Under {folder}/ you find:")
    for path, what in (
        (page, "the notebook, as a page"),
        (folder / "00_complete.ipynb", "the notebook, executed"),
        (folder / "figures" / "report.html", "the report: every figure and table on one page"),
        (folder / "figures" / "results.zip", "the same as files, with an index of the images"),
        (folder / "figures", "each figure as PNG and PDF"),
        (folder / "figures" / "scores.md", "the 500-versus-5000 table"),
        (folder / "evaluation" / "scores.json", "every score with its N, floor and error"),
        (folder / "weights", "the averaged weights"),
    ):
        say(f"  {path.relative_to(folder)!s:26} {what}")


@app.command()
def explain(
    preset: Annotated[str, typer.Argument(help="a preset's name or a YAML file")],
    batch: Annotated[
        int | None,
        typer.Option(min=1, max=10**6, help="measure the memory of a step of this many images"),
    ] = None,
    gpus: Annotated[bool, typer.Option("--gpus", help="micro-batches by free GPU memory")] = False,
    plot: Annotated[Path | None, typer.Option(help="draw the schedule into this PNG")] = None,
    settings: options.Set = None,
) -> None:
    """A network's parameters by block, its work per image, its memory, its noise schedule."""
    from dreamlib.training.cost import explain as count_work
    from dreamlib.training.cost import micro_batches, step_memory

    config = load_config(preset, settings or [])
    say(count_work(config).text())
    if batch:
        gib, device = step_memory(config, batch) / 2**30, host.choose_device(config.train.device)
        say(f"memory of a step  {gib:8.2f} GiB for {batch} images at once, measured on {device}")
    if gpus:
        for gib, micro in micro_batches(config).items():
            say(f"{gib:3} GiB free      {f'train.micro={micro}' if micro else 'does not fit'}")
    if plot and config.model == "gan":
        raise ConfigError("a GAN has no noise schedule to draw: leave --plot out")
    if plot:
        from dreamlib.report.figures import save_figure, schedule

        saved = save_figure(schedule(config), plot.parent, plot.stem)
        say(f"schedule          {', '.join(map(str, saved))}")


@app.command()
def train(
    run: Annotated[Path | None, typer.Argument(help="a run folder, new or begun")] = None,
    preset: options.Preset = None,
    name: Annotated[str | None, typer.Option(help="make a fresh folder runs/NAME")] = None,
    data: options.Data = None,
    hours: options.Hours = None,
    mirror: options.Mirrors = None,
    take_over: options.TakeOver = False,
    init_from: options.InitFrom = None,
    devices: options.Devices = None,
    restarts: options.Restarts = 0,
    settings: options.Set = None,
) -> None:
    """Begin a run, or continue it: the same command does both.

    Exit code 0 when it is finished, 75 when it was paused and the same command goes on.
    """
    from dreamlib.training.launch import launch

    if (run is None) == (name is None):
        raise ConfigError("name a run folder (runs/faces), or --name for a fresh one; not both")
    folder = run if run is not None else _fresh(Path("runs"), str(name))
    asked = {"preset": preset, "mirror": mirror, "hours": hours, "take_over": take_over}
    overrides = options.overrides_of(settings, data)
    if devices is None:
        _train(folder, init_from, overrides=overrides, **asked)
    else:
        launch(folder, devices, restarts, asked | {"init_from": init_from}, overrides)
        _end(RunDir(folder))


def _train(folder: Path, init_from: Path | None, **asked: Any) -> None:
    """In this process; under torchrun, its part of it."""
    from dreamlib.notebook.dashboard import watch
    from dreamlib.training.fork import init_from as begin_with
    from dreamlib.training.launch import joined
    from dreamlib.training.train import train as train_run

    with joined() as ranks:
        if ranks and ranks.rank:
            ranks.follow()
            return
        opened = open_run(folder, **asked)
        if init_from is not None:
            begin_with(opened, init_from)
        with suppress(OutOfTime):  # the last line says it, and the exit code
            watch(opened, train_run(opened, ranks=ranks))
    if not ranks:  # with a code of its own torchrun would begin all anew
        _end(opened.dir)


def _end(run: RunDir) -> None:
    state = run.status()["state"]
    say(f"{state}: {run.folder}")
    if state != "finished":
        raise typer.Exit(UNFINISHED)


def _fresh(home: Path, name: str) -> Path:
    """runs/NAME, or runs/NAME-2, runs/NAME-3, ... when that is taken."""
    names = (name if i == 1 else f"{name}-{i}" for i in count(1))
    return next(home / n for n in names if not (home / n / "config.yaml").exists())


@app.command()
def sample(
    run: options.RunFolder,
    n: Annotated[int, typer.Option(min=1, max=10**7, help="how many images, from seed 0 on")] = 64,
    png: Annotated[Path | None, typer.Option(help="also write 00001.png, ... here")] = None,
    interpolate: Annotated[bool, typer.Option(help="ten frames from seed 0 to seed 1")] = False,
    ends: Annotated[tuple[int, int], typer.Option(help="seeds to interpolate between")] = (0, 1),
    frames: Annotated[int, typer.Option(min=2, max=10**4)] = 10,
    mirror: options.Mirrors = None,
    settings: options.Set = None,
) -> None:
    """Generate images with the averaged weights."""
    from dreamlib.sampling.generate import export_png, generate, process
    from dreamlib.sampling.generate import interpolate as walk

    if not interpolate and (ends, frames) != ((0, 1), 10):
        raise ConfigError("--ends and --frames are for --interpolate: add it, or leave them out")
    opened = options.existing(run, mirror, settings, images=False)
    if interpolate:
        images = walk(opened, *ends, frames)
        sheet = opened.dir.samples / f"interpolation-{ends[0]}-{ends[1]}.png"
    else:
        images = generate(opened, range(n))
        if opened.config.model == "diffusion":
            process(opened)  # which figures of it are drawn from
        sheet = opened.dir.samples / f"sheet-{n}.png"
    save_png(grid(enlarge(images[:256], 64), columns=frames if interpolate else None, gap=4), sheet)
    say(f"{len(images):,} images; look at {sheet}")
    if png:
        export_png(images, png)
        say(f"PNG files in {png}")


@app.command()
def doctor() -> None:
    """What this machine has, what will be used, and why."""
    from dreamlib.notebook.checkup import checkup

    for name, value in checkup().items():
        say(f"{name:<10} {value}")


@app.callback()
def _heard(command: typer.Context) -> None:
    command.with_resource(using(progress=TextProgress(), say=say))


def main() -> None:
    """Run a command; an error of ours is one sentence on stderr and exit code 2."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        app()
    except Interrupted as error:
        say(error, "stderr")
        sys.exit(UNFINISHED)
    except (DreamlibError, OSError) as error:  # a disk or a mount can fail anybody
        say(f"error: {what_failed(error)}", "stderr")
        sys.exit(2)
