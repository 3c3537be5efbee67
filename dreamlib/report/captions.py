"""What every figure shows and how to read it: for the page, for LaTeX, and for whoever listens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dreamlib.run import Run
from dreamlib.scores import GENERATED, Study
from dreamlib.sections import Config

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


CAPTIONS = {  # in the order of a report
    "samples": Caption(
        "Samples",
        "Images from the averaged weights, by the numbers 0, 1, 2 and so on.",
        "Nobody chose them: they are the first ones, so good and bad are as frequent as they are.",
    ),
    "quality": Caption(
        "Real and generated images side by side",
        "Training images, generated images, the training image nearest to each of those in "
        "pixels, and images of the untrained network where they are kept.",
        "Compare a generated image with the training image below it: a copy would be the same "
        "picture.  The first of each are shown, not the best.",
    ),
    "evaluation": Caption(
        "The evaluation on one page",
        "Samples, distances against 1/N, manifolds, modes, attributes, the replay of careless "
        "comparisons, nearest training images and the training loss.",
        "Each panel is a small copy of a figure of its own; generated images are blue, held-out "
        "real images in the same place orange.  A grey line is what a perfect model is expected "
        "to score.  In panel b crosses are the floor by the formula, stars the distance with its "
        "bias taken off and one standard error; other bars are two.  They are of fresh images and "
        "a fresh reference, where scores.json does not say otherwise.",
    ),
    "fd_against_n": Caption(
        "The distance depends on the number of images",
        "The Fréchet distance of one model against 1/N, with the floor that held-out real images "
        "score at the same N.",
        "The slope is the bias of small sets, not the model; the distance to the floor at the "
        "same N, and the corrected value at 1/N = 0 with its standard error, are about the model.",
    ),
    "parts": Caption(
        "How far one small evaluation can be off",
        "Every disjoint set of the smallest N as a dot, and the mean of the sets as a bar.",
        "The dots of a row differ by chance alone: they are the same model.  Somebody who scores "
        "a single set sees one of them.",
    ),
    "replay": Caption(
        "The same images, compared carelessly and with care",
        "The distance of one model's images to different sets of real images.",
        "Nothing about the model changes from bar to bar: only which real images, and how many, "
        "it is compared with, and in the last bar how many of its own are.",
    ),
    "modes": Caption(
        "Modes",
        "The share of each mode among generated images over its share among real ones, with its "
        "95 % interval; below, images of the modes that deviate most.",
        "A ratio of 1 is right; far below 1 a mode is rare or lost, far above it is overdone.  "
        "Coloured intervals do not hold 1.",
    ),
    "shares": Caption(
        "Attributes",
        "The share of each attribute value among generated images over its share among real ones, "
        "both by the classifier's answers.",
        "What stands at 1 is right.  The classifier's mistakes are in both shares and cancel "
        "only as far as it errs alike on both.",
    ),
    "nearest": Caption(
        "Nearest training images",
        "The generated images that lie nearest to a training image in pixels, each above it.",
        "These are the most suspicious pairs of all.  A model that copies shows the same picture "
        "twice; its median distance is below that of held-out images.",
    ),
    "training": Caption(
        "Training",
        "What the log holds, against the optimizer step: the loss and its parts by quarter of t, "
        "the model's error, DREAM's lambda, the learning rate and the gradient norm.",
        "The loss at large t is small because noise is easy to see there; watch the quarters "
        "apart.  A low loss is no proof of good images.",
    ),
    "players": Caption(
        "The two players",
        "Losses of generator and discriminator, the sign of the discriminator's answers, the "
        "augmentation's p, the regularisers, gradient norms, and the variety of generated images.",
        "No loss says whether images become better: that is what scores are for.  The sign for "
        "real images above its target tells of a discriminator that learns them by heart; variety "
        "near 0 of a generator that makes one image only.",
    ),
    "validation": Caption(
        "Validation",
        "The distance of held-out images to images of the averaged weights, during training.",
        "The point in colour is the least: those weights are kept in weights/best.  Near it the "
        "points differ by chance as much as by training.  The distance is raw: its bias is nearly "
        "the same at every step, but somewhat smaller where images vary less.",
    ),
    "curves": Caption(
        "Training curves",
        "The loss, the loss by quarter of t, and DREAM's lambda against the optimizer step.",
        "Watch the quarters apart: the last one, with most noise, is always the lowest.",
    ),
    "stages": Caption(
        "Stages of training",
        "The same image numbers at 5, 25, 50, 75 and 100 % of training, as far as it got, from the "
        "averaged weights and from those in training.",
        "Read from left to right; the averaged weights lag behind early and are smoother late.",
    ),
    "process": Caption(
        "The denoising process",
        "Images (rows) at moments of their denoising (columns): what the sampler holds when the "
        "network is asked at t.",
        "From pure noise at the left, at the sampler's first t, to the finished image at the end.",
    ),
    "process_x0": Caption(
        "What the network expects on the way",
        "The clean image that the network predicts at each of these moments; at the end, the "
        "finished image.",
        "Blurred early, as an average over everything that may still come of the noise; layout is "
        "settled early, detail late.  A network that predicts the noise shows its own error, "
        "enlarged, where the image's share is near 0: at the left.",
    ),
    "sensitivity": Caption(
        "Losses compared",
        "The distance of every loss, at equal steps and at equal network passes, from the real "
        "trainings of an ablation.",
        "Dots of one row are training seeds, of the raw distance; bars below are two standard "
        "errors over fresh images and a fresh reference.  A difference that is no larger than that "
        "between seeds is no difference.",
    ),
    "architecture": Caption(
        "The network",
        "The U-Net of this run, with its sizes, channels and numbers of parameters.",
        "The image goes down at the left, up at the right; dashed arrows are skip connections.",
    ),
    "schedule": Caption(
        "The noise schedule",
        "What x_t is made of at every t, DREAM's lambda, and the steps that the sampler takes.",
        "At the left the image's and the noise's share; at the right each tick is one evaluation "
        "of the network.",
    ),
}


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
