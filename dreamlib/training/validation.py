"""Scores during training, of the averaged weights; the best ones are kept beside the latest."""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dreamlib.config.factory import make_drawing, make_extractor
from dreamlib.config.schema import span_steps
from dreamlib.metrics.features import Extractor, extract, metric_name
from dreamlib.metrics.frechet import frechet
from dreamlib.runs.run import Run
from dreamlib.training.base import BaseTrainer
from dreamlib.utils.files import sweep
from dreamlib.utils.weights import averaged_of, write_weights

BEST = "best"  # folder in weights/


class Validation:
    """What the training loop asks at certain steps.  Its rows lie in validation.jsonl.

    Compared are the first `validation.n` images of the sampling seed with the split `floor`, which
    no score of `evaluate` has for a reference: the best of many steps is chosen by these images,
    and a choice should not be judged by what it was made by.
    """

    def __init__(self, run: Run, trainer: BaseTrainer):
        self.run, self.trainer, self.settings = run, trainer, run.config.validation
        every = span_steps(self.settings.every, epoch=trainer.steps_per_epoch, total=trainer.total)
        self.steps = set(range(every, trainer.total + 1, every)) if every else set()
        self.rows: list[dict[str, Any]] = []

    def begin(self) -> None:
        """Read what was found before; rows beyond the trainer's step have been cut off.

        The extractor is made ready: no step is lost where that is interrupted.
        """
        sweep(self.folder)
        self.rows = self.run.dir.read_validation() if self.steps else []
        if any(step > self.trainer.step for step in self.steps):
            self.extractor  # noqa: B018  what it lacks is said now, and not at the first validation

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the least distance, the first of equal ones."""
        return min(self.rows, key=lambda row: row["score"], default=None)

    @property
    def over(self) -> bool:
        """Whether nothing became better for `validation.patience` validations."""
        if self.settings.patience is None or self.best is None:
            return False
        since = [row for row in self.rows if row["step"] > self.best["step"]]
        return len(since) >= self.settings.patience

    def check(self) -> None:
        """Score the averaged weights of this step; keep them where they are the best so far."""
        self.trainer.check_finite()  # NaN has no distance: the loop rolls back
        step, begun = self.trainer.step, time.monotonic()
        run, net = self.run, self.trainer.ema.module
        draw = make_drawing(run.config, run.data, net, run.precision, run.device)
        features = extract(draw(range(self.settings.n)), self.extractor)
        row = {
            "step": step,
            "metric": metric_name(self.extractor),
            "score": frechet(features, self.reference),
            "n": len(features),
            "n_real": len(self.reference),
            "extractor": self.extractor.identity,
            "seconds": time.monotonic() - begun,
        }
        run.dir.append_validation(row)
        self.rows.append(row)
        text = f"step {step:,}: {row['metric']} {row['score']:.3f} of {row['n']:,} images"
        if self.best is row:
            self.keep(step)
            text += ", the best so far"
        run.say(text)
        if self.over and self.best:
            run.say(
                f"STOPPED EARLY at step {step:,}: nothing better since step {self.best['step']:,}, "
                f"whose weights are in {self.folder}"
            )

    def keep(self, step: int) -> None:
        averaged = averaged_of(self.trainer.state_dict())
        weights = {name: value.detach().cpu().contiguous() for name, value in averaged.items()}
        write_weights(self.folder, step, weights, self.run.facts | self.run.network)

    @property
    def folder(self) -> Path:
        return self.run.dir.weights / BEST

    @cached_property
    def extractor(self) -> Extractor:
        return make_extractor(self.run.config, self.run.data, self.run.device)

    @cached_property
    def reference(self) -> np.ndarray:
        """Features of held-out images, as many as evaluate.reference where there are."""
        images, most = self.run.data.rows("floor"), self.run.config.evaluate.reference
        return extract(images[:most], self.extractor)
