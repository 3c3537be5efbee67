"""What is told of a model wherever it goes, on card and page: read from its run alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

import dreamlib
from dreamlib.config.factory import make_labels
from dreamlib.evaluation.results import GENERATED, Score, Study
from dreamlib.report.sources import folder_name, sampler_of
from dreamlib.report.tables import (
    headline,
    how_to_read,
    meaning,
    memorisation_sentence,
    named,
    scores_of,
)
from dreamlib.runs.run import Run
from dreamlib.sampling.image_store import Shards

# Hub identifier of the images, and under which terms they are given
DATASETS = {
    "faces": (None, "faces drawn by dreamlib, nobody's likeness, MIT"),
    "digits": (None, "scikit-learn's digits (UCI's handwritten digits), CC BY 4.0"),
    "fashion": ("zalando-datasets/fashion_mnist", "Fashion-MNIST (Zalando), MIT"),
    "mnist": ("ylecun/mnist", "MNIST (LeCun, Cortes, Burges), CC BY-SA 3.0"),
    "cifar10": ("uoft-cs/cifar10", "CIFAR-10 (Krizhevsky), no licence stated"),
    "celeba": (None, "CelebA (CUHK), for non-commercial research only; its people did not agree"),
}
TOLD = 1000  # images whose labels leave with a model; from there on they come again
UNKNOWN = (None, "a folder of images: whoever publishes the model has to say under which terms")
UNFIT = (
    "Not for decisions about people, for identification, or as evidence that something happened. "
    "Images resemble the training set and share its gaps; they may resemble single training images "
    "closely, which the scores look for and cannot rule out."
)


@dataclass(frozen=True)
class Facts:
    """One trained run, and what can be said of its weights."""

    run: Run

    @cached_property
    def store(self) -> Shards:
        """Weights and network, read once: a training may write newer ones meanwhile."""
        return Shards(self.run)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averaged weights.  NotThere before there are any."""
        return self.store.weights[0]

    @property
    def card(self) -> dict[str, Any]:
        """step and sha256 of the averaged weights."""
        return self.store.weights[1]

    @cached_property
    def study(self) -> Study | None:
        """Scores of exactly these weights, drawn by this sampler; None when there are none."""
        study = scores_of(self.run)
        if not (study and study.rows and study.facts["weights"] == self.card["sha256"]):
            return None
        ours = self.run.config.sample.model_dump(mode="json")
        return study if _drawn_alike(study.facts["sample"], ours) else None

    @property
    def name(self) -> str:
        return folder_name(self.run)

    @property
    def kind(self) -> str:
        return "StyleGAN2-ADA" if self.run.config.model == "gan" else "diffusion model"

    @property
    def images(self) -> str:
        """'faces 16 × 16'"""
        data = self.run.config.data
        return f"{data.name} {data.size} × {data.size}"

    @property
    def dataset(self) -> tuple[str | None, str]:
        return DATASETS.get(self.run.config.data.name, UNKNOWN)

    @property
    def summary(self) -> str:
        step, steps = self.card["step"], self.run.config.train.batch
        return f"A {self.kind} of {self.images}, trained for {step:,} steps of {steps} images."

    def about(self) -> dict[str, str]:
        """Heading -> a paragraph."""
        return {
            "Images and licence": f"Trained on {self.dataset[1]}. The code is MIT. What is made "
            "from images carries their terms: respect them before you publish.",
            "What it should not be used for": UNFIT,
        }

    def rows(self) -> list[tuple[str, str]]:
        """Settings that decide the images."""
        run, config = self.run, self.run.config
        count = run.data.manifest.get("splits", {}).get("train")  # not told without the images
        images = run.data.fingerprint[:12] + (f", {count:,} of them" if count else "")
        loss = "StyleGAN2's" if config.model == "gan" else config.loss.name
        return [
            ("preset", config.preset),
            ("training images", images),
            ("steps", f"{self.card['step']:,} of {config.train.batch} images"),
            ("loss", loss),
            ("weights", f"averaged (EMA), SHA-256 {self.card['sha256']}"),
            ("sampler", sampler_of(config.sample.model_dump(mode="json"))),
            *(
                (f"label {name}", ", ".join(f"{i} {value}" for i, value in enumerate(values)))
                for name, values in self.labels.items()
            ),
            ("made with", f"dreamlib {dreamlib.__version__}"),
        ]

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Names of the values of each label that the network is told, in their order."""
        return self.run.data.attributes if self.run.config.net.conditional else {}

    def told(self) -> list[list[int]]:
        """The labels that dreamlib tells the first images; none for a network that knows none."""
        labels_of = make_labels(self.run.config, self.run.data)
        return [list(labels_of(image)) for image in range(TOLD)] if labels_of else []

    def scores(self) -> tuple[list[str], list[list[str]]] | None:
        """Head and cells of the distances at every N beside the floor; None without scores."""
        return headline(self.study) if self.study else None

    def headline_rows(self) -> list[Score]:
        """The scores that `scores` shows of generated images."""
        study = self.study
        if not study:
            return []
        metric = study.facts["metric"]
        names = metric, f"{metric} corrected", named(study, "KID")
        return [row for name in names for row in study.of(GENERATED, name)]

    def notes(self) -> list[str]:
        """How the scores are to be read, and what saw the images."""
        if not self.study:
            return []
        facts = self.study.facts
        seen = f"Features by {facts['extractor']}; {self.study.rows[0].n_real:,} real images."
        said = meaning(self.study), memorisation_sentence(self.study), how_to_read(self.study)
        return [*said, seen]


def _drawn_alike(theirs: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Whether two samplers' settings differ in nothing but precision and how work is split."""
    names = (theirs.keys() | ours.keys()) - {"precision", "batch", "shard"}
    return all(theirs.get(name) == ours.get(name) for name in names)
