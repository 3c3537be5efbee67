"""What every figure shows and how to read it: for the page, for LaTeX, and for whoever listens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dreamlib.config.load import read_yaml
from dreamlib.config.schema import Config
from dreamlib.evaluation.results import GENERATED, Study
from dreamlib.runs.run import Run

TRAIN, SAMPLE, EVALUATE = "train RUN", "sample RUN", "evaluate RUN"
FIGURES = "figures RUN"
ABLATE = "ablate PRESET --steps N --out FOLDER"
BY_CLASSIFIER = f"{EVALUATE} --set evaluate.extractor=classifier"  # of images with labels
SCORED = ("evaluation", "fd_against_n", "replay", "nearest", "parts", "modes", "shares")
NOT_DRAWN = "not drawn"  # the comment of a PNG file that only says what is missing


class Caption(NamedTuple):
    """One figure: its title, what it shows (the alternative text too), and how it is read."""

    title: str
    shows: str
    read: str


_texts = read_yaml(Path(__file__).with_suffix(".yaml"), "caption")
CAPTIONS = {name: Caption(**texts) for name, texts in _texts.items()}  # in the order of a report
OF_ONE_MODEL = {
    "gan": {"players"},
    "diffusion": {
        *("training", "curves", "process", "process_x0"),
        *("sensitivity", "architecture", "schedule"),
    },
}


def captions_of(config: Config) -> dict[str, Caption]:
    """Those of the figures that a run of this kind of model has, in the order of a report."""
    own = OF_ONE_MODEL[config.model]
    others = set().union(*OF_ONE_MODEL.values()) - own
    if not config.validation.every:
        others = others | {"validation"}
    return {name: caption for name, caption in CAPTIONS.items() if name not in others}


def why_absent(config: Config, name: str) -> str:
    """Why a run of this kind of model has no figure of this name."""
    if name == "validation":
        return "nothing was validated: train a run with --set validation.every=10%"
    other = next(model for model, names in OF_ONE_MODEL.items() if name in names)
    return f"a figure of a {other} model: model is {config.model} here"


@dataclass(frozen=True)
class Need:
    """A file or record that figures are drawn from."""

    what: str
    command: str  # that makes it; RUN stands for the run's folder
    there: bool
    figures: tuple[str, ...] = ()  # that are empty without it


def needs(run: Run, study: Study | None) -> list[Need]:
    """What the figures and tables of a run are made from, and whether it is there."""
    images = any(run.dir.generated.glob("*/shard-00000.npy"))
    weights = (run.dir.weights / "card.json").exists()
    process = (run.dir.samples / "process.npz").exists()
    found = [
        Need("training rows", TRAIN, bool(run.dir.read_log()), ("training", "curves", "players")),
        Need("previews of training", TRAIN, bool(run.dir.stages()), ("stages",)),
        Need("averaged weights", TRAIN, weights),
        Need("generated images", SAMPLE, images, ("samples", "quality")),
    ]
    if run.config.validation.every:
        found.append(Need("validations", TRAIN, bool(run.dir.read_validation()), ("validation",)))
    if run.config.model == "diffusion":
        found.append(
            Need("a recorded denoising process", SAMPLE, process, ("process", "process_x0"))
        )
    if study is None or not study.rows:
        return [*found, Need("scores", EVALUATE, False, SCORED)]
    twice = any(row.parts for row in study.of(GENERATED))
    return [
        *found,
        Need(
            "several disjoint sets of one size", f"{EVALUATE} --n 500 --n 5000", twice, ("parts",)
        ),
        Need("modes", EVALUATE, GENERATED in study.modes, ("modes",)),
        Need("attributes by a classifier", BY_CLASSIFIER, bool(study.shares), ("shares",)),
    ]
