"""Generators whose truth is known: a perfect one scores its nulls, damaged ones are found out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.known_generators import GENERATORS, MODES, REMOVED, SIZES, draw, find, judge
from dreamlib.data.faces import ATTRIBUTES, draw_faces
from dreamlib.metrics.classifier import train_classifier
from dreamlib.metrics.features import ClassifierExtractor
from dreamlib.report.figures.palette import TWO

ROOT = Path(__file__).resolve().parents[2]
DAMAGED = [name for name in GENERATORS if name != "perfect"]
N = 2000


@pytest.fixture(scope="module")
def found():
    """Everything in small: a classifier of 4,000 faces, 2,000 images a set."""
    torch.set_num_threads(1)
    images, labels = draw_faces(range(4000 + N), 16, seed=0)
    values = [len(each) for each in ATTRIBUTES.values()]
    classifier = train_classifier(images[:4000], labels[:4000], values, epochs=6)
    real = {"train": images[:4000], "reference": images[4000:]}
    return judge(ClassifierExtractor(classifier), (500, N), real, seed=1)


@pytest.fixture(scope="module")
def committed():
    """What the script measured with the whole data set: the numbers behind the figure."""
    return json.loads((ROOT / "figures" / "known_generators.json").read_text("utf-8"))


def check_perfect(found, sizes, errors):
    for n in sizes:
        for metric in ("FD[classifier] corrected", "KID"):
            row = find(found, "perfect", metric, n)
            assert abs(row["value"]) <= errors * row["se"], (metric, n)
        assert find(found, "perfect", "density", n)["value"] == pytest.approx(1, abs=0.06)
        row = find(found, "perfect", "coverage", n)
        assert row["value"] == pytest.approx(row["null"], abs=0.02)
        assert find(found, "perfect", "lost", n)["value"] == 0
        assert find(found, "perfect", "hit", n)["value"] == 1


def check_damaged(found, n):
    for name in DAMAGED:
        assert find(found, name, "NDB p", n)["value"] < 0.01, name
        assert find(found, name, "JS p", n)["value"] < 0.01, name
        ours, perfect = (
            [find(found, x, metric, n)["value"] for metric in ("recall", "coverage")]
            for x in (name, "perfect")
        )
        assert max(np.subtract(perfect, ours)) > 0.03, name
        assert find(found, name, "NDB/K", n)["value"] > 2 * find(found, name, "NDB/K", n)["null"]


def test_a_perfect_generator_scores_its_nulls(found):
    # Three errors: another processor's rounding trains a slightly different classifier.
    check_perfect(found, (500, N), errors=3)
    assert find(found, "perfect", "NDB p", N)["value"] > 0.01


def test_damaged_generators_are_found_out(found):
    check_damaged(found, N)


def test_modes_hit_at_least_once_find_nothing(found):
    """The statistic that says "20 of 20 covered" of a generator that lost two attributes."""
    for name in DAMAGED[:2]:
        assert find(found, name, "hit", N)["value"] >= 0.95
    assert find(found, "uniform noise", "hit", N)["value"] >= 0.5


def labels_of(images, seed=1):
    """The labels of drawn faces, found again by their pixels."""
    every, labels = draw_faces(range(8 * len(images)), 16, seed)
    known = {image.tobytes(): row for image, row in zip(every, labels)}
    return np.array([known[image.tobytes()] for image in images])


def test_the_damages_are_what_they_say():
    names = list(ATTRIBUTES)
    labels = labels_of(GENERATORS["two attributes removed"](300, 1))
    for name, value in REMOVED.items():
        assert not (labels[:, names.index(name)] == ATTRIBUTES[name].index(value)).any()
    labels = labels_of(GENERATORS["90 % in half of the modes"](500, 1))
    modes = sum(labels[:, names.index(name)] for name in MODES)
    assert (modes % 2 == 0).mean() == 0.9
    assert len(np.unique(labels, axis=0)) > 300


def test_the_committed_numbers_say_the_same(committed):
    check_perfect(committed["found"], SIZES, errors=2)
    check_damaged(committed["found"], 5000)
    for name in DAMAGED[:2]:
        assert find(committed["found"], name, "hit", 5000)["value"] == 1
    assert find(committed["found"], "uniform noise", "hit", 5000)["value"] >= 0.9
    for size in SIZES:
        p_values = [
            find({"perfect": rows}, "perfect", "NDB p", size)["value"]
            for rows in committed["perfect"]
        ]
        assert len(p_values) == 10
        assert sum(p < 0.05 for p in p_values) <= 2  # 3 or more of ten: 1 % by chance


def test_the_figure_fits_two_columns_and_says_where_its_axes_are_symlog(committed):
    fig = draw(committed["found"], SIZES)
    assert fig.get_figwidth() == TWO
    for axes in fig.axes:
        assert axes.get_xlabel().startswith("symlog: linear up to") == (
            axes.get_xscale() == "symlog"
        )
    dots = [line for line in fig.axes[0].lines if line.get_marker() == "o"]
    expected = [
        [find(committed["found"], name, "FD", n)["value"] for name in list(GENERATORS)[::-1]]
        for n in SIZES
    ]
    assert [list(line.get_xdata()) for line in dots if len(line.get_xdata())] == expected
