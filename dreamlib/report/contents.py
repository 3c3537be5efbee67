"""What a report is made from: its figures, the scores, and what a run does not hold yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from dreamlib.evaluation.results import GENERATED, Study
from dreamlib.report.captions import CAPTIONS
from dreamlib.runs.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN, SAMPLE, EVALUATE = "train RUN", "sample RUN", "evaluate RUN"
PARTS = f"{EVALUATE} --n 500 --n 5000"
BY_CLASSIFIER = f"{EVALUATE} --set evaluate.extractor=classifier"  # of images with labels


@dataclass(frozen=True)
class Missing:
    """In the place of a figure: why it is not drawn, in words."""

    reason: str


@dataclass(frozen=True)
class Report:
    """What tables, page and zip are made from."""

    run: Run
    study: Study | None  # the run's scores; None before there are any
    figures: Mapping[str, Figure | Missing]  # by name, as `build` draws them

    @property
    def scored(self) -> Study | None:
        """The study, if it has scores of the run's own images."""
        return self.study if self.study and self.study.rows else None

    @cached_property
    def lacking(self) -> dict[str, str]:
        """What the run does not hold, and the command that makes it."""
        return lacking(self.run, self.scored)

    @cached_property
    def drawn(self) -> list[str]:
        """Names of figures that hold something, in the order of a report; unknown ones last."""
        order = list(CAPTIONS)
        names = sorted(name for name, each in self.figures.items() if not isinstance(each, Missing))
        return sorted(names, key=lambda name: order.index(name) if name in CAPTIONS else len(order))


def lacking(run: Run, study: Study | None) -> dict[str, str]:
    """What figures and tables are made from and the run does not hold -> the command that makes
    it; RUN stands for the run's folder."""
    here = run.dir
    wanted: dict[str, tuple[str, object]] = {  # the command, and whether it is there
        "training rows": (TRAIN, here.read_log()),
        "previews of training": (TRAIN, here.stages()),
        "averaged weights": (TRAIN, (here.weights / "card.json").exists()),
        "generated images": (SAMPLE, any(here.generated.glob("*/shard-00000.npy"))),
    }
    if run.config.validation.every:
        wanted["validations"] = TRAIN, here.read_validation()
    if run.config.model == "diffusion":
        process = here.samples / "process.npz"
        wanted["a recorded denoising process"] = SAMPLE, process.exists()
    if study is None:
        wanted["scores"] = EVALUATE, False
    else:
        several = any(row.parts for row in study.of(GENERATED))
        wanted["several disjoint sets of one size"] = PARTS, several
        wanted["modes"] = EVALUATE, GENERATED in study.modes
        wanted["attributes by a classifier"] = BY_CLASSIFIER, study.shares
    return {what: command for what, (command, there) in wanted.items() if not there}
