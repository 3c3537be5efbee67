"""500 within 5000: one checkpoint, nested samples, one held-out real set, a floor at every N.

The Fréchet distance of N samples is biased by about c (1/N + 1/M), so a larger N gives a smaller
number for the very same model.  Every row therefore carries its N and the floor at that N: what
other held-out real images score against the same reference.  Columns of different N are never
compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from dreamlib.build import make_extractor
from dreamlib.errors import ConfigError, NotEnoughSamples, RunError
from dreamlib.files import read_json, write_json
from dreamlib.generate import generate
from dreamlib.images import dequantise, quantise
from dreamlib.metrics.features import ClassifierExtractor, Extractor, extract
from dreamlib.metrics.frechet import frechet, frechet_corrected, frechet_se
from dreamlib.progress import Progress, silent
from dreamlib.rng import torch_rng
from dreamlib.run import Run

FORMAT = 1
PARTS = 10  # disjoint sets of the smaller N that are cut from the largest


@dataclass(frozen=True)
class Score:
    """One number and everything needed to defend it."""

    metric: str  # "FD[classifier]", "FID", ...
    images: str  # "generated" | "held-out real" | "untrained" | "gaussian"
    value: float  # the mean over `parts` when there are several
    n: int  # images per set
    n_real: int
    se: float | None  # standard error of `value`
    se_method: str
    parts: list[float] = field(default_factory=list)  # each disjoint set's own value


@dataclass(frozen=True)
class Study:
    """What scores.json holds."""

    facts: dict[str, Any]  # run, step, weights, sampler, seed, extractor, splits
    rows: list[Score]
    shares: dict[str, dict[str, dict[str, float]]]  # attribute -> value -> real, generated
    absent: dict[str, str]  # metric -> why it was not computed

    def find(self, images: str, n: int, metric: str | None = None) -> Score:
        """The row of these images at this N; KeyError when it was not computed."""
        wanted = metric or self.facts["metric"]
        for row in self.rows:
            if (row.images, row.n, row.metric) == (images, n, wanted):
                return row
        raise KeyError(f"no {wanted} of {images} images at N = {n}: {self.absent}")


def metric_name(extractor: Extractor) -> str:
    """FID is the name for Inception features; with others the extractor is part of the name."""
    return "FID" if extractor.name == "inception" else f"FD[{extractor.name}]"


def evaluate(
    run: Run,
    n: Sequence[int] | None = None,
    *,
    progress: Progress = silent,
    should_stop: Callable[[], bool] = lambda: False,
) -> Study:
    """Score a run at each N of `n` and write evaluation/scores.json.

    Sets of a smaller N are disjoint parts (at most ten) of the largest set; the reference is the
    same for every row.  Generated shards and features are kept, so an interrupted evaluation
    continues.  Raises WeightsUnavailable without the extractor's weights, NotEnoughSamples when
    there are fewer held-out images than N, Interrupted when asked to stop.
    """
    with run.session(should_stop) as session:
        study = _evaluate(run, n, progress, session.should_stop)
        session.kept()
    return study


def _evaluate(
    run: Run, n: Sequence[int] | None, progress: Progress, should_stop: Callable[[], bool]
) -> Study:
    settings, data = run.config.evaluate, run.data
    sizes = sorted(n or settings.n)
    if sizes[0] < 2:
        raise ConfigError(f"a distance needs at least 2 images per set, got N = {sizes[0]}")
    largest = sizes[-1]
    card = run.weights()[1]
    extractor = make_extractor(run.config, data, run.device, progress)
    cache = run.dir.evaluation / "features"

    def features(images: np.ndarray) -> np.ndarray:
        return extract(images, extractor, progress=progress, should_stop=should_stop, cache=cache)

    reference_images, reference_labels = data.take("reference", settings.reference)
    floor_images, _ = data.take("floor", largest)
    reference, floor = features(reference_images), features(floor_images)
    images = generate(run, range(largest), progress=progress, should_stop=should_stop)
    generated = features(images)

    name = metric_name(extractor)
    rows = []
    for size in sizes:
        rows.append(_score(name, "generated", generated, size, reference))
        rows.append(_score(name, "held-out real", floor, size, reference))
    corrected, absent = _corrected(name, generated, floor, reference)
    rows += corrected
    if settings.anchors:
        # At the smallest N: they are far away, and sampling costs as much as for the model.
        drawn = generate(
            run, range(sizes[0]), untrained=True, progress=progress, should_stop=should_stop
        )
        rows.append(_score(name, "untrained", features(drawn), sizes[0], reference))
        drawn = gaussian_images(data.images[data.indices("train")], sizes[0], seed=0)
        rows.append(_score(name, "gaussian", features(drawn), sizes[0], reference))
    shares = {}
    if isinstance(extractor, ClassifierExtractor):
        shares = _shares(data.attributes, extractor.classifier.predict(images), reference_labels)
    if run.weights()[1] != card:
        raise RunError(f"{run.folder} was trained further while it was scored: score it again")
    study = Study(_facts(run, name, extractor, card), rows, shares, absent)
    write_json(run.dir.evaluation / "scores.json", {"format": FORMAT, **asdict(study)})
    return study


def read_study(run_folder: Any) -> Study:
    """The study that `evaluate` wrote into a run folder.  NotEnoughSamples when there is none."""
    path = run_folder / "evaluation" / "scores.json"
    if not path.exists():
        raise NotEnoughSamples(f"{run_folder} has no scores yet: run `dreamlib evaluate` first")
    values = read_json(path)
    if values["format"] != FORMAT:
        raise RunError(f"{path} has format {values['format']}, not {FORMAT}: evaluate again")
    rows = [Score(**row) for row in values["rows"]]
    return Study(values["facts"], rows, values["shares"], values["absent"])


def _score(metric: str, kind: str, features: np.ndarray, size: int, reference: np.ndarray) -> Score:
    """FD of `size` images: of each disjoint part of the set, at most ten; their mean."""
    parts = min(PARTS, len(features) // size)
    values = [frechet(features[i * size : (i + 1) * size], reference) for i in range(parts)]
    se, method = None, "none: one set, and N is not above the number of features"
    if parts > 1:
        se = float(np.std(values, ddof=1) / np.sqrt(parts))
        method = f"sd over {parts} disjoint sets / sqrt({parts}); the reference is held fixed"
    elif size > features.shape[1]:
        se, method = frechet_se(features[:size], reference), "delta method, both sides"
    value = float(np.mean(values))
    return Score(metric, kind, value, size, len(reference), se, method, values if parts > 1 else [])


def _corrected(
    metric: str, generated: np.ndarray, floor: np.ndarray, reference: np.ndarray
) -> tuple[list[Score], dict[str, str]]:
    """The bias-corrected distance of both sets, or the reason why there is none."""
    name, rows = f"{metric} corrected", []
    try:
        for kind, features in (("generated", generated), ("held-out real", floor)):
            value = frechet_corrected(features, reference, seed=0)
            method = "not estimated; see the raw value's"
            rows.append(Score(name, kind, value, len(features), len(reference), None, method))
    except NotEnoughSamples as error:
        return [], {name: str(error)}
    return rows, {}


def gaussian_images(train: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Images with the pixel mean and covariance of uint8 `train` [M,H,W,C] -> uint8 [n,H,W,C].

    mean + X' w / sqrt(M - 1), with w standard normal, has exactly the covariance of the centred
    rows X; the covariance itself, large for large images, is never formed.
    """
    rng, size = torch_rng("gaussian", seed), len(train)
    mean = torch.from_numpy(train.mean(axis=0, dtype=np.float64).astype(np.float32))
    mean = mean / 127.5 - 1
    drawn = torch.zeros(n, mean.numel())
    for start in range(0, size, 4096):
        part = dequantise(train[start : start + 4096]).permute(0, 2, 3, 1) - mean
        drawn += torch.randn(n, len(part), generator=rng) @ part.flatten(1)
    images = mean + drawn.view(n, *mean.shape) / (size - 1) ** 0.5
    return quantise(images.permute(0, 3, 1, 2))


def _shares(
    attributes: dict[str, tuple[str, ...]], generated: np.ndarray, real: np.ndarray
) -> dict[str, dict[str, dict[str, float]]]:
    """Each attribute value's share among real labels and among the classifier's answers."""
    shares: dict[str, dict[str, dict[str, float]]] = {}
    for column, (attribute, values) in enumerate(attributes.items()):
        shares[attribute] = {
            value: {
                "real": float((real[:, column] == code).mean()),
                "generated": float((generated[:, column] == code).mean()),
            }
            for code, value in enumerate(values)
        }
    return shares


def _facts(run: Run, metric: str, extractor: Extractor, card: dict[str, Any]) -> dict[str, Any]:
    sample = run.config.sample
    return {
        "metric": metric,
        "preset": run.config.preset,
        "images": f"{run.config.data.name} {run.config.data.size}x{run.config.data.size}",
        "step": card["step"],
        "weights": card["sha256"],
        "data": run.data.fingerprint,
        "extractor": extractor.identity,
        "reference": "held-out split 'reference', the same for every row",
        "floor": "held-out split 'floor', disjoint from the reference",
        "sampler": sample.sampler,
        "steps": sample.steps,
        "spacing": sample.spacing,
        "seed": sample.seed,
        "torch": torch.__version__,
    }
