"""`dreamlib evaluate`, `compare`, `ablate` and `figures`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dreamlib.cli.options import Data, Mirrors, RunFolder, Set, existing, overrides_of
from dreamlib.utils.errors import ConfigError
from dreamlib.utils.progress import TextProgress
from dreamlib.utils.progress import tell as say

if TYPE_CHECKING:
    from dreamlib.evaluation.results import Study
    from dreamlib.runs.run import Run

Place = Path | None
SetSizes = Annotated[list[int] | None, typer.Option(help="set sizes: --n 500 --n 5000")]
ScoredRun = Annotated[Place, typer.Argument(help="a run folder")]
Images = Annotated[
    Place, typer.Option(help="score these instead: a folder, a zip, an .npy or .npz")
]
Pipeline = Annotated[Place, typer.Option(help="or those of this local pipeline")]
Reference = Annotated[
    Place, typer.Option(help="against these images, or STATS.npz; else the run's own")
]
Size = Annotated[
    int | None, typer.Option(min=8, max=4096, help="crop and resize image files to so many pixels")
]
Steps = Annotated[int | None, typer.Option(min=1, max=10**6, help="of the pipeline")]
Name = Annotated[str | None, typer.Option(help="what the rows call the images")]
Out = Annotated[Place, typer.Option(help="where scores go without a run")]
Part = Annotated[
    str | None,
    typer.Option(help="1/2: half of what comes before the scores only, for two processes"),
]
Slurm = Annotated[
    str | None,
    typer.Option(help="parts as jobs of a cluster: partition=gpu,time=120 (minutes),jobs=8, ..."),
]
Weights = Annotated[str | None, typer.Option(help="the extractor's weights: a file or folder")]
Looks = Annotated[
    str | None, typer.Option(help="clip-vit-b-32, torchvision:resnet50, NET.onnx; else Inception")
]
PART_DONE = "part {} is ready: run the other parts, then the command without --part"
NO_IMAGES = (
    "name a run folder alone, or images: --images FOLDER or --diffusers FOLDER (--reference, "
    "--size, --steps, --name, --out, --weights and --extractor are for those; a run has its "
    "settings: --set)"
)


def evaluate(
    run: ScoredRun = None,
    n: SetSizes = None,
    images: Images = None,
    diffusers: Pipeline = None,
    reference: Reference = None,
    size: Size = None,
    steps: Steps = None,
    name: Name = None,
    out: Out = None,
    part: Part = None,
    weights: Weights = None,
    extractor: Looks = None,
    mirror: Mirrors = None,
    settings: Set = None,
) -> None:
    """Score a run (500 within 5000, one reference, a floor at every N), or anybody's images."""
    from dreamlib.evaluation import score_external as external
    from dreamlib.evaluation.evaluate import evaluate as score

    opened, place = existing(run, mirror, settings) if run else None, images or diffusers
    if part is not None:
        return _prepare(opened, part, n)
    if place is None:
        if opened is None or any((reference, size, steps, name, out, weights, extractor)):
            raise ConfigError(NO_IMAGES)
        return _say_scores(score(opened, n), opened.folder)
    if images and diffusers:
        raise ConfigError("--images or --diffusers, not both")
    name = name or external.name_of(place)
    with opened.session() if opened else nullcontext(lambda: None) as keep:
        by = external.evaluator(opened, out, weights, extractor)
        real = by.reference(reference, size)
        if images:
            study = external.score_external(by, name, by.read(images, size), real, n)
        else:
            study = external.score_pipeline(by, name, place, real, n, steps)
        keep()
    return _say_scores(study, by.folder)


def _prepare(run: Run | None, part: str, n: list[int] | None) -> None:
    from dreamlib.evaluation.inputs import prepare

    if run is None:
        raise ConfigError("--part needs a run folder")
    prepare(run, _numbers(part), n)
    say(PART_DONE.format(part))


def _numbers(part: str | None) -> tuple[int, int]:
    """1/2 -> (0, 2); all of it without."""
    number, slash, of = (part or "1/1").partition("/")
    if not (slash and number.isdigit() and of.isdigit()):
        raise ConfigError(f"--part reads 1/2, not {part}")
    return int(number) - 1, int(of)


def _say_scores(study: Study, folder: Path) -> None:
    from dreamlib.report.tables import markdown

    say(f"{markdown(study)}\n\nscores in {folder / 'evaluation' / 'scores.json'}")


def compare(
    run: RunFolder,
    other: Annotated[Path, typer.Argument(help="the run to compare it with")],
    n: SetSizes = None,
    mirror: Mirrors = None,
    settings: Set = None,
) -> None:
    """Two runs at the same N, against one reference, with the same seeds; with the error.

    Two folders that hold several runs each, one for every training seed, are compared as recipes.
    """
    from dreamlib.evaluation.compare import compare as difference
    from dreamlib.evaluation.compare import comparison_path
    from dreamlib.evaluation.recipes import compare_recipes, recipes_path
    from dreamlib.report.tables import comparison_markdown

    seeds = [[path.parent for path in sorted(x.glob("*/config.yaml"))] for x in (run, other)]
    if all(seeds):
        a, b = ([existing(path, mirror, settings) for path in paths] for paths in seeds)
        found = compare_recipes(a, b, max(n) if n else None, names=(run.name, other.name))
        say(f"{found.sentence()}\n\nin {recipes_path(seeds[0][0], found)}")
        return
    a, b = (existing(folder, mirror, settings) for folder in (run, other))
    comparison = difference(a, b, n)
    say(comparison_markdown(comparison))
    say(f"\nin {comparison_path(run, comparison)}")


def ablate(
    preset: Annotated[str, typer.Argument(help="a preset's name or a YAML file")],
    steps: Annotated[int, typer.Option(min=1, help="optimizer steps of the standard loss")],
    losses: Annotated[list[str] | None, typer.Option(help="some of them; else all")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="so many training seeds")] = 2,
    n: Annotated[int, typer.Option(min=100, max=10**7, help="images per score")] = 2000,
    out: Annotated[Place, typer.Option(help="a folder for runs and results")] = None,
    data: Data = None,
    part: Part = None,
    slurm: Slurm = None,
    settings: Set = None,
) -> None:
    """Train and score every loss at equal steps and at equal network passes.

    The same command goes on where it was.  On two cores, parts 1/2 and 2/2 side by side with
    OMP_NUM_THREADS=1 do 1.4 times the work; then the command without --part scores.
    """
    from dreamlib.evaluation.ablation import ARMS
    from dreamlib.evaluation.ablation import ablate as run_ablation
    from dreamlib.notebook.dashboard import watch
    from dreamlib.report.figures.score_figures import ablation
    from dreamlib.report.figures.style import save_figure
    from dreamlib.report.tables import ablation_markdown, save_ablation_tables

    folder = out or Path("runs") / f"ablation-{Path(preset).stem}"
    if slurm:
        words = [preset, *(f"--losses={loss}" for loss in losses or ())]
        words += [f"--set={each}" for each in overrides_of(settings, data)]
        words += [f"--{k}={v}" for k, v in {"steps": steps, "seeds": seeds, "n": n}.items()]
        _parts_on_cluster([*words, f"--out={folder.absolute()}"], folder.absolute(), slurm)
    sizes = {"folder": folder, "steps": steps, "n": n}
    overrides, arms = overrides_of(settings, data), losses or tuple(ARMS)
    drive = {"overrides": overrides, "part": _numbers(part), "watch": watch}
    result = run_ablation(preset, arms, range(seeds), **sizes, **drive)
    if not result.cells:
        return say(PART_DONE.format(part))
    say(ablation_markdown(result))
    tables = save_ablation_tables(result, folder)
    for path in [*tables, *save_figure(ablation(folder), folder, "ablation")]:
        say(str(path))


def _parts_on_cluster(words: list[str], folder: Path, slurm: str) -> None:
    """What comes before the scores, in so many jobs of a cluster; Exit unless all is done."""
    from dreamlib.notebook.runner.slurm import Cluster, Work, options_of

    options = options_of(slurm)
    count, works = options.pop("jobs", 4), []
    for part in range(1, count + 1):
        command = (sys.executable, "-m", "dreamlib", "ablate", *words, f"--part={part}/{count}")
        works.append(Work(f"part-{part}-of-{count}", command, folder / "slurm" / f"{part}.json"))
    if code := Cluster(works, options, folder / "slurm", say).run():
        raise typer.Exit(code)


def figures(
    run: RunFolder,
    ablation: Annotated[Place, typer.Option(help="a folder of `dreamlib ablate`")] = None,
    with_page: Annotated[
        bool, typer.Option("--with-page", help="pack the page of `dreamlib share` as well")
    ] = False,
    mirror: Mirrors = None,
) -> None:
    """Every figure and table of a run, one page and one zip, from its files alone."""
    from dreamlib.export.page import share
    from dreamlib.report.build import build_report

    opened = existing(run, mirror)
    page = share(opened) if with_page else None
    for path in build_report(opened, ablation, TextProgress(), page=page):
        say(str(path))
    opened.keep()
