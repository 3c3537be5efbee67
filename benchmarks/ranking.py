"""How many images does it take to tell two generators apart?  Known ones, in order, by every score.

    python -m benchmarks.ranking --out runs/ranking
    python -m benchmarks.ranking --draw figures

Six generators of each family differ by one thing only, a little more of it each: pixel noise, two
attribute values (or classes) that come too seldom.  A draw takes N images of each out of 20,000;
each score, against the same 5,000 real ones, then puts the six in order.  Counted are the
neighbours that stand rightly, and the draws in which all six do.  Written to ranking.json beside
this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.known_generators import REMOVED, SIZE, column
from benchmarks.timing import machine
from dreamlib.config.factory import make_classifier
from dreamlib.config.load import load_config
from dreamlib.data.faces import ATTRIBUTES, draw_faces, people
from dreamlib.metrics.features import ClassifierExtractor, extract
from dreamlib.metrics.frechet import frechet, summary
from dreamlib.metrics.frechet_stats import frechet_corrected
from dreamlib.metrics.kid import kernel_reference, kid
from dreamlib.metrics.mind import minds
from dreamlib.metrics.prdc import prdc
from dreamlib.report.figures.palette import BLUE, GREEN, GREY, ORANGE, TWO
from dreamlib.report.figures.style import footer, new_figure, save_figure, style
from dreamlib.runs.open import pack_data
from dreamlib.utils.errors import NotEnoughSamples
from dreamlib.utils.files import read_json, write_json
from dreamlib.utils.rng import numpy_rng

JSON = Path(__file__).with_suffix(".json")
SIZES, REFERENCE, POOL, DRAWS = (500, 100, 250, 1000, 5000), 5000, 20_000, {500: 100, 5000: 10}
LEVELS = 6
Images = Callable[[int], np.ndarray]  # level -> uint8 [POOL,H,W,C]
Known = tuple[Any, Any]  # of the real images: moments, and their own kernels


def noisy(images: np.ndarray, sd: float, seed: int) -> np.ndarray:
    """Grey levels of noise with this standard deviation on top."""
    noise = numpy_rng("ranking", seed).standard_normal(images.shape, dtype=np.float32)
    return (images + sd * noise).round().clip(0, 255).astype(np.uint8)


def seldom(common: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A mask that drops this share of those who are not `common`, and as many of the others as to
    leave POOL."""
    kept = common | (numpy_rng("seldom", seed).random(len(common)) >= share)
    return np.flatnonzero(kept)[:POOL]


def faces(home: Path) -> tuple[dict[str, Images], dict[str, np.ndarray], Any]:
    """Families, sets of real images, and how to look at them."""
    config = load_config("faces16")
    data = pack_data(config, home / "data")
    seed = 100  # a world that the classifier has not seen

    def rare(level: int) -> np.ndarray:
        labels, _ = people(np.arange(2 * POOL), seed + level)
        wanted = (column(labels, k) != ATTRIBUTES[k].index(v) for k, v in REMOVED.items())
        numbers = seldom(np.logical_and(*wanted), 0.2 * level, level)
        return draw_faces(numbers, SIZE, seed + level)[0]

    def drawn(level: int) -> np.ndarray:
        return draw_faces(range(POOL), SIZE, seed + level)[0]

    families = {
        "faces, attributes seldom": rare,
        "faces, noise": lambda level: noisy(drawn(level), 12.0 * level**0.5, level),
    }
    extractor = ClassifierExtractor(make_classifier(data, 0))
    return families, {"real": drawn(50)}, extractor


def fashion(home: Path) -> tuple[dict[str, Images], dict[str, np.ndarray], Any]:
    """The training images, damaged, against others of them: the classifier has seen them all."""
    config = load_config("fashion-cpu")
    data = pack_data(config, home / "data")
    images, labels = (np.array(each) for each in data.take("train", 3 * POOL - 5000))
    order = numpy_rng("ranking fashion", 0).permutation(len(images))
    real, rest = images[order[:POOL]], order[POOL:]

    def drawn(level: int) -> np.ndarray:
        return images[numpy_rng("ranking drawn", level).permutation(rest)[:POOL]]

    def rare(level: int) -> np.ndarray:
        mixed = numpy_rng("ranking rare", level).permutation(rest)
        common = labels[mixed].reshape(len(mixed), -1)[:, 0] > 1
        return images[mixed[seldom(common, 0.2 * level, level)]]

    families = {
        "fashion, classes seldom": rare,
        "fashion, noise": lambda level: noisy(drawn(level), 6.0 * level**0.5, level),
    }
    return families, {"real": real}, ClassifierExtractor(make_classifier(data, 0))


def scored(gens: list[np.ndarray], real: np.ndarray, known: Known) -> dict[str, list[float]]:
    """Every score of every generator; lower is better (shares are turned around)."""
    side, kernel, n = *known, len(gens[0])
    moved = minds(gens, real, directions=100)
    found = {
        "FD": [frechet(gen, side) for gen in gens],
        "KID": [kid(gen, kernel).value for gen in gens],
        "MIND": [each.value for each in moved],
        "MIND corrected": [each.corrected for each in moved],
    }
    with suppress(NotEnoughSamples):
        found["FD corrected"] = [frechet_corrected(gen, real, 0) for gen in gens]
    if n < REFERENCE:
        shares = [prdc(gen, real[:n]) for gen in gens]
        names = ("density", "coverage", "clipped_density", "clipped_coverage")
        found |= {
            name.replace("_", " "): [-getattr(x, name).value for x in shares] for name in names
        }
    return found


def ranked(pools: list[np.ndarray], real: np.ndarray, n: int, draws: int) -> dict[str, Any]:
    """Shares of right neighbours, and of draws with all six in order, by score."""
    found: dict[str, list[np.ndarray]] = {}
    known = summary(real), kernel_reference(real)
    for draw in range(draws):
        rng = numpy_rng("ranking draw", draw, n)
        chosen = [pool[rng.choice(len(pool), n, replace=False)] for pool in pools]
        for name, values in scored(chosen, real, known).items():
            found.setdefault(name, []).append(np.diff(values) > 0)
    return {
        name: {
            "neighbours": float(np.mean(right)),
            "all six": float(np.mean([each.all() for each in right])),
            "draws": draws,
        }
        for name, right in found.items()
    }


NAMES = ("FD", "MIND", "KID", "coverage", "clipped coverage")


@style()
def draw(found: dict[str, Any]) -> Figure:
    """A panel per family: neighbours in their order, by N and score."""
    fig, axes = new_figure(TWO, 4.4, 2, 2)
    looks = dict(
        zip(NAMES, (("o-", BLUE), ("s-", ORANGE), ("^-", GREEN), ("v:", GREY), ("x:", GREY)))
    )
    for axis, (family, by_size) in zip(axes, found.items()):
        for name, (mark, colour) in looks.items():
            sizes = sorted((n for n in by_size if name in by_size[n]), key=int)
            shares = [by_size[n][name]["neighbours"] for n in sizes]
            axis.plot([int(n) for n in sizes], shares, mark, color=colour, ms=4, label=name)
        axis.axhline(0.5, color=GREY, lw=0.6)
        axis.set(xscale="log", ylim=(0.45, 1.02), title=family)
        axis.set_xticks([100, 500, 5000], ["100", "500", "5,000"])
    axes[0].set_ylabel("neighbours in order")
    axes[2].set_ylabel("neighbours in order")
    for axis in axes[2:]:
        axis.set_xlabel("N images")
    fig.legend(handles=axes[0].get_lines()[:5], loc="outside upper center", ncols=5)
    footer(
        fig, f"{LEVELS} generators a family; 100 draws of 500, 10 of 5,000, else 40 · chance: 0.5"
    )
    return fig


def table(found: dict[str, Any], n: str = "500") -> str:
    """All six in order, of 100 draws of 500 images; and FD's of 5,000, for comparison."""
    names = ("FD", "FD corrected", "KID", "MIND", "MIND corrected", "coverage", "clipped coverage")
    lines = [f"| six generators | {' | '.join(names)} | FD, N = 5,000 |", "|---" * 9 + "|"]
    for family, by_size in found.items():
        cells = [f"{100 * by_size[n][name]['all six']:.0f}" for name in names]
        whole = by_size["5000"]["FD"]
        cells += [f"{whole['all six'] * whole['draws']:.0f} of {whole['draws']}"]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--out", type=Path, default=Path("runs/ranking"), help="for packed images")
    parser.add_argument("--draw", type=Path, help="a folder for the figure of what was measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = read_json(JSON) if JSON.exists() else {"found": {}}
    if options.draw:
        save_figure(draw(known["found"]), options.draw, "ranking")
        print(table(known["found"]))
        return
    for world in (faces, fashion):
        families, sets, extractor = world(options.out)
        look = partial(extract, extractor=extractor)
        real = look(sets["real"])[:REFERENCE]
        for family, images in families.items():
            by_size = known["found"].setdefault(family, {})
            wanted = [n for n in options.sizes if str(n) not in by_size]
            pools = [look(images(level)) for level in range(LEVELS)] if wanted else []
            for n in wanted:
                by_size[str(n)] = ranked(pools, real, n, DRAWS.get(n, 40))
                write_json(JSON, known | {"machine": machine()})
                print(family, n, {k: v["all six"] for k, v in by_size[str(n)].items()}, flush=True)


if __name__ == "__main__":
    main()
