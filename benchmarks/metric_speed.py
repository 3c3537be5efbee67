"""Distances of the same features by each metric package: seconds and memory.

    python -m benchmarks metric_speed

Every call gets the two sets' features, 2,048 wide, and does all that follows.  Packages run with
their defaults; what theirs computes and ours does not, or the other way, stands in the table's
last column.  Memory is the growth of a process that does nothing else.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch

from benchmarks.timing import apart, interleave, peak_growth, ratios, spread, text
from dreamlib.metrics.frechet import frechet
from dreamlib.metrics.kid import kid
from dreamlib.metrics.prdc import prdc
from dreamlib.utils.rng import numpy_rng

D, N = 2048, 5000
QUICK = (128, 1000)  # features, images
OURS = "dreamlib"


def features(n: int, key: int, d: int = D) -> np.ndarray:
    """Non-negative features with a decaying spectrum, float32, as a network's pooled ones are."""
    rng = numpy_rng("metric speed", key)
    sd = np.arange(1, d + 1) ** -0.6 * (1.1 if key else 1.0)
    return np.abs(rng.standard_normal((n, d)) * sd + 0.5 * sd).astype(np.float32)


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(axis=0, dtype=np.float64), np.cov(x, rowvar=False)


def cleanfid_fd(a: np.ndarray, b: np.ndarray) -> float:
    from cleanfid import fid

    return float(fid.frechet_distance(*_moments(a), *_moments(b)))


def pytorchfid_fd(a: np.ndarray, b: np.ndarray) -> float:
    from pytorch_fid.fid_score import calculate_frechet_distance

    return float(calculate_frechet_distance(*_moments(a), *_moments(b)))


def fidelity_fd(a: np.ndarray, b: np.ndarray) -> float:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    one, two = (fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b))
    found = fid_statistics_to_metric(one, two, verbose=False)
    return float(found["frechet_inception_distance"])


def torchmetrics_fd(a: np.ndarray, b: np.ndarray) -> float:
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Ready(a.shape[1]), normalize=True).set_dtype(
        torch.float64
    )
    for images, real in ((a, False), (b, True)):
        for part in torch.from_numpy(images).split(500):
            metric.update(part, real=real)
    return float(metric.compute())


class _Ready(torch.nn.Module):
    """What torchmetrics takes for an extractor: the features are there already."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def cleanfid_kid(a: np.ndarray, b: np.ndarray) -> float:
    from cleanfid import fid

    return float(fid.kernel_distance(a, b))


def fidelity_kid(a: np.ndarray, b: np.ndarray) -> float:
    from torch_fidelity.metric_kid import kid_features_to_metric

    one, two = torch.from_numpy(a), torch.from_numpy(b)
    found = kid_features_to_metric(one, two, verbose=False)
    return float(found["kernel_inception_distance_mean"])


def torchmetrics_kid(a: np.ndarray, b: np.ndarray) -> float:
    from torchmetrics.image.kid import KernelInceptionDistance

    metric = KernelInceptionDistance(feature=_Ready(a.shape[1]), normalize=True)
    metric.update(torch.from_numpy(a), real=False)
    metric.update(torch.from_numpy(b), real=True)
    return float(metric.compute()[0])


def package_prdc(a: np.ndarray, b: np.ndarray) -> float:
    from prdc import compute_prdc

    with open(os.devnull, "w") as quiet, redirect_stdout(quiet):
        return float(compute_prdc(b, a, nearest_k=5)["coverage"])


def fidelity_prc(a: np.ndarray, b: np.ndarray) -> float:
    from torch_fidelity.metric_prc import prc_features_to_metric

    one, two = torch.from_numpy(a), torch.from_numpy(b)
    return float(prc_features_to_metric(one, two, verbose=False)["precision"])


def own_kid(a: np.ndarray, b: np.ndarray) -> float:
    return kid(a, b).value


def own_prdc(a: np.ndarray, b: np.ndarray) -> float:
    return prdc(a, b).coverage.value


Route = Callable[[np.ndarray, np.ndarray], float]
MODULES = {  # imported before memory is read
    "clean-fid": ["cleanfid.fid"],
    "pytorch-fid": ["pytorch_fid.fid_score"],
    "torch-fidelity": ["torch_fidelity"],
    "torchmetrics": ["torchmetrics.image.fid", "torchmetrics.image.kid"],
    "prdc": ["prdc"],
}
ROUTES: dict[str, dict[str, tuple[Route, str]]] = {
    "Fréchet distance": {
        OURS: (frechet, "exact"),
        "clean-fid": (cleanfid_fd, "sqrtm"),
        "pytorch-fid": (pytorchfid_fd, "sqrtm"),
        "torch-fidelity": (fidelity_fd, "eigenvalues"),
        "torchmetrics": (torchmetrics_fd, "eigenvalues"),
    },
    "KID": {
        OURS: (own_kid, "all pairs, with a standard error"),
        "clean-fid": (cleanfid_kid, "100 subsets of 1,000"),
        "torch-fidelity": (fidelity_kid, "100 subsets of 1,000"),
        "torchmetrics": (torchmetrics_kid, "100 subsets of 1,000"),
    },
    "PRDC": {
        OURS: (own_prdc, "all four, float64"),
        "prdc": (package_prdc, "all four"),
        "torch-fidelity": (fidelity_prc, "precision and recall only, float32"),
    },
}


def grown(metric: str, package: str, n: int, d: int) -> int:
    """Bytes that one call adds to a fresh process, its packages imported."""
    route, a, b = ROUTES[metric][package][0], features(n, 0, d), features(n, 1, d)
    for module in MODULES.get(package, ()):
        import_module(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peak_growth(partial(route, a, b))


def measure(rounds: int, quick: bool) -> dict[str, Any]:
    """Seconds, memory and value of every metric by every package."""
    d, n = QUICK if quick else (D, N)
    a, b = features(n, 0, d), features(n, 1, d)
    memory = grown if quick else partial(apart, grown)  # a process takes seconds to start
    found: dict[str, Any] = {}
    for metric, routes in ROUTES.items():
        values: dict[str, float] = {}

        def call(package: str, route: Route, values: dict[str, float] = values) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values[package] = route(a, b)

        seconds = interleave(
            {name: partial(call, name, route) for name, (route, _) in routes.items()}, rounds, 0
        )
        found[metric] = {}
        for name in routes:
            found[metric][name] = {
                "seconds": seconds[name],
                "bytes": memory(metric, name, n, d),
                "value": values[name],
            }
    return {"n": n, "d": d, "metrics": found}


def table(found: dict[str, Any]) -> str:
    lines = [
        "| metric | package | seconds | times as long as ours | memory, MiB | value | how |",
        "|---|---|---|---|---|---|---|",
    ]
    for metric, packages in found["metrics"].items():
        for name, each in packages.items():
            seconds = spread(each["seconds"])["median"]
            times = text(ratios(each["seconds"], packages[OURS]["seconds"]))
            cells = [metric, name, f"{seconds:.2f}", "" if name == OURS else times]
            cells += [f"{each['bytes'] / 2**20:.0f}", f"{each['value']:.6g}"]
            lines.append(f"| {' | '.join(cells)} | {ROUTES[metric][name][1]} |")
    lines.append(f"\nN = {found['n']:,} and {found['n']:,}, {found['d']:,} features.")
    return "\n".join(lines)
