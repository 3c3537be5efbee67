"""Inception score: known values, splits, its error, and the same number as torch-fidelity's."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from dreamlib.metrics.inception_score import inception_score
from dreamlib.utils.errors import NotEnoughSamples

SURE = 200.0  # a logit that leaves e^-200 to every other class


def logits(n, key, classes=50, modes=20, sure=2.0):
    rng = np.random.default_rng(key)
    values = 0.5 * sure * rng.standard_normal((n, classes))
    values[np.arange(n), rng.integers(0, modes, n)] += sure
    return values


def test_sure_and_even_scores_the_number_of_classes():
    values = np.tile(SURE * np.eye(7), (10, 1))
    found = inception_score(values, splits=5, order=np.arange(70))
    assert found.value == pytest.approx(7, rel=1e-12)
    assert found.se == pytest.approx(0, abs=1e-12)


def test_always_the_same_answer_scores_one():
    values = np.tile(logits(1, 0), (40, 1))
    assert inception_score(values).value == pytest.approx(1, rel=1e-12)


def test_hand_computed():
    # Classes with p = (.9, .1) and (.1, .9): the mean is even, KL = ln 2 + .9 ln .9 + .1 ln .1.
    values = np.log(np.array([[0.9, 0.1], [0.1, 0.9]]))
    want = 2 * 0.9**0.9 * 0.1**0.1
    found = inception_score(values, splits=1)
    assert found.value == pytest.approx(want, rel=1e-12)
    assert found.se is None
    assert "one split" in found.method


def test_a_constant_added_to_an_image_changes_nothing():
    values = logits(60, 1)
    moved = values + 300 * np.random.default_rng(2).standard_normal((60, 1))
    assert inception_score(moved).value == pytest.approx(inception_score(values).value, rel=1e-11)


def test_impossible_classes_do_not_spoil_the_sum():
    values = logits(40, 3)
    with_dead = np.hstack([values, np.full((40, 3), -1e5)])
    assert inception_score(with_dead).value == pytest.approx(inception_score(values).value)


def test_splits_are_disjoint_and_cover_the_set():
    values, order = logits(47, 4), np.random.default_rng(5).permutation(47)
    found = inception_score(values, splits=4, order=order)
    edges = [0, 11, 23, 35, 47]  # i * 47 // 4
    alone = [inception_score(values[order[i:j]], splits=1).value for i, j in pairwise(edges)]
    assert found.value == pytest.approx(np.mean(alone), rel=1e-13)
    assert found.se == pytest.approx(np.std(alone, ddof=1) / 2, rel=1e-12)
    assert found.method.startswith("sd over 4 disjoint splits")


def test_the_order_is_keyed_by_the_seed():
    values = np.repeat(SURE * np.eye(10), 5, axis=0)  # sorted: a split of five is one class
    assert inception_score(values, order=np.arange(50)).value == pytest.approx(1)
    assert inception_score(values).value > 2
    assert inception_score(values, seed=3) == inception_score(values, seed=3)
    assert inception_score(values, seed=3) != inception_score(values, seed=4)


@pytest.mark.parametrize("splits", [5, 10])
def test_the_error_is_the_run_to_run_spread(splits):
    found = [inception_score(logits(300, i), splits) for i in range(200)]
    spread = np.std([estimate.value for estimate in found], ddof=1)
    errors = np.array([estimate.se for estimate in found])
    # 0.97 to 1.02 measured; the spread of 200 repeats is known to 5 %, 0.85 to 1.15 is thrice that.
    assert 0.85 < errors.mean() / spread < 1.15
    # The split sd, which others print, is root(splits) times as much.
    assert errors.mean() * math.sqrt(splits) > 1.9 * spread


def test_fewer_images_score_lower():
    few = np.mean([inception_score(logits(100, i)).value for i in range(30)])
    many = np.mean([inception_score(logits(1000, i)).value for i in range(30)])
    assert few < many - 0.05


def test_wrong_input_is_refused():
    good = logits(20, 7)
    bad = good.copy()
    bad[3, 1] = np.inf
    with pytest.raises(ValueError, match="1 of 20 feature rows"):
        inception_score(bad)
    with pytest.raises(ValueError, match="floats"):
        inception_score(good[0])
    with pytest.raises(ValueError, match="at least 1 split"):
        inception_score(good, splits=0)
    with pytest.raises(NotEnoughSamples, match=r"20 images in 11 splits: .* at most 10 splits"):
        inception_score(good, splits=11)
    assert inception_score(good, splits=10).value >= 1
    for order in (np.arange(19), np.zeros(20, int), np.arange(1, 21), np.arange(20) % 19):
        with pytest.raises(ValueError, match="permutation of the 20"):
            inception_score(good, order=order)


@pytest.mark.parametrize("n", [500, 333])
def test_equals_torch_fidelitys(n):
    metric = pytest.importorskip("torch_fidelity.metric_isc")
    values = logits(n, 8, classes=1008, modes=300)
    want = metric.isc_features_to_metric(torch.from_numpy(values), splits=10, rng_seed=2020)
    order = np.random.RandomState(2020).permutation(n)
    found = inception_score(values, splits=10, order=order)
    # The same operations in the same order: equal to the last bit.
    assert found.value == want["inception_score_mean"]
    assert found.se == pytest.approx(want["inception_score_std"] / 3, rel=1e-12)
