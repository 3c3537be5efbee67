"""Precision, recall, density, coverage: the definition, conventions, copies, null values."""

import numpy as np
import pytest
import torch

from dreamlib.metrics import prdc as manifold
from dreamlib.metrics.prdc import DENSITY_NULL, _filled, coverage_null, covered_share, prdc
from dreamlib.utils.errors import NotEnoughSamples


def drawn(n, key, d=8, scale=1.0, shift=0.0):
    return shift + scale * np.random.default_rng(key).standard_normal((n, d))


def values(found):
    """Precision, recall, density and coverage."""
    return [estimate.value for estimate in found[:4]]


def precision_recall(gen, real, k=3, **more):
    """In closed balls, as the original code and torch-fidelity have them."""
    return prdc(gen, real, k, closed=True, **more)[:2]


def by_definition(gen, real, k):
    """Plain loops over exact distances."""

    def far(x, y):
        return np.sqrt(np.square(x - y).sum())

    def radius(rows, i):
        return sorted(far(rows[i], rows[j]) for j in range(len(rows)) if j != i)[k - 1]

    real_radius = [radius(real, j) for j in range(len(real))]
    gen_radius = [radius(gen, i) for i in range(len(gen))]
    in_real = np.array([[far(x, y) < r for y, r in zip(real, real_radius)] for x in gen])
    in_gen = np.array([[far(y, x) < r for x, r in zip(gen, gen_radius)] for y in real])
    return [
        in_real.any(axis=1).mean(),
        in_gen.any(axis=1).mean(),
        in_real.sum() / (k * len(gen)),
        in_real.any(axis=0).mean(),
    ]


@pytest.fixture
def small_blocks(monkeypatch):
    """Seven rows to a block, so that small sets meet every edge between blocks."""
    monkeypatch.setattr(manifold, "ROWS", 7)


@pytest.mark.parametrize(("n", "m", "k"), [(30, 30, 5), (25, 40, 3), (40, 22, 1)])
def test_the_definition(n, m, k, small_blocks):
    gen, real = drawn(n, 1, d=3, scale=0.7), drawn(m, 2, d=3)
    found = values(prdc(gen, real, k, allow_unequal=True))
    want = by_definition(gen, real, k)
    assert found == pytest.approx(want, rel=1e-15)
    assert len(set(want)) > 2  # shares that differ, so that none can stand in for another


def test_hand_computed_on_a_line():
    real = np.array([[0.0], [1.0], [3.0], [10.0]])  # k = 1: radii 1, 1, 2, 7
    gen = np.array([[0.5], [0.6], [4.5], [30.0]])  # radii .1, .1, 3.9, 25.5
    precision, recall, density, coverage = values(prdc(gen, real, k=1))
    assert precision == 3 / 4  # .5 and .6 in the balls of 0 and 1; 4.5 in those of 3 and 10
    assert recall == 3 / 4  # 1 and 3 lie in the ball of 4.5, 10 in that of 30; 0 in none
    assert density == 6 / 4
    assert coverage == 4 / 4


def test_tight_inside_wide_is_precise_but_recalls_little():
    tight, wide = drawn(300, 1, scale=0.1), drawn(300, 2)
    precision, recall, _, coverage = values(prdc(tight, wide))
    assert precision > 0.95
    assert recall < 0.05
    assert coverage < 0.7  # a third of the balls miss the middle altogether
    precision, recall, density, _ = values(prdc(wide, tight))
    assert precision < 0.05
    assert recall > 0.95
    assert density < 0.05
    assert values(prdc(wide + 100, wide)) == [0, 0, 0, 0]


def test_moving_turning_and_scaling_change_nothing():
    gen, real = drawn(120, 1, scale=0.8), drawn(120, 2)
    want = values(prdc(gen, real))
    turn, _ = np.linalg.qr(drawn(8, 3))
    for change in (lambda x: x + 1e5, lambda x: x @ turn, lambda x: 1e-6 * x, lambda x: 1e6 * x):
        assert values(prdc(change(gen), change(real))) == want


def test_float32_features_are_compared_in_float64():
    gen, real = (drawn(100, key, shift=300.0, scale=0.1).astype(np.float32) for key in (1, 2))
    exact = prdc(gen.astype(np.float64), real.astype(np.float64))
    assert prdc(gen, real) == exact


def test_open_and_closed_balls_differ_at_the_edge():
    real = np.array([[0.0, 0], [2, 0], [9, 9]])  # k = 1: the ball of 0 reaches to 2
    gen = np.array([[0.0, 2], [50, 50], [80, 80]])
    assert values(precision_recall(gen, real, k=1))[0] == 1 / 3
    assert values(prdc(gen, real, k=1))[0] == 0
    # The same with the sides exchanged is recall.
    assert values(precision_recall(real, gen, k=1))[1] == 1 / 3
    assert values(prdc(real, gen, k=1))[1] == 0


@pytest.mark.parametrize("shift", [0.0, 30.0])
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_generator_that_copies(shift, shuffled, small_blocks):
    """Its distances to the originals come out near 1e-8, and to their neighbours at a tie."""
    real = drawn(60, 1, d=40, shift=shift)
    gen = real[np.random.default_rng(2).permutation(60)] if shuffled else real
    # An open ball holds the copies of its centre and of k - 1 neighbours: density 1 exactly.
    assert values(prdc(gen, real)) == [1, 1, 1, 1]
    assert values(precision_recall(gen, real)) == [1, 1]
    few = np.tile(real[:6], (10, 1))  # six images, ten copies of each: radii 0
    precision, recall, _, coverage = values(prdc(few, real))
    assert precision == 1
    assert recall == 6 / 60
    assert 6 / 60 <= coverage < 1


def test_sets_of_duplicates():
    ones = np.tile(drawn(6, 1, d=500, shift=3.0), (10, 1))  # copies come out up to 7e-7 apart
    assert values(prdc(ones, ones[::-1]))[:2] == [1, 1]
    assert values(prdc(ones, ones))[3] == 1
    other = np.tile(drawn(6, 2, d=500, shift=3.0), (10, 1))
    assert values(prdc(other, ones)) == [0, 0, 0, 0]
    half = np.concatenate([ones[:30], other[:30]])  # 30 rows hold 5 copies of each image
    assert values(prdc(half, ones, k=4)) == [0.5, 1, 0.5 * 10 / 4, 1]
    for level in (0.1, 0.5, 0.0):  # 0.5 is its own mean, so that norms, too, are 0
        constant = np.full((20, 3), level)
        assert values(prdc(constant, constant)) == [1, 1, 20 / 5, 1]
        assert values(prdc(constant + 1e-3, constant)) == [0, 0, 0, 0]
        assert values(precision_recall(constant, constant)) == [1, 1]


def test_copies_of_tight_clusters_far_apart():
    """Rounding follows the distance to the middle, here 1,000 times the balls' radii."""
    real = np.concatenate([drawn(40, 1, d=30, shift=5e3), drawn(40, 2, d=30, shift=-5e3)])
    gen = real[np.random.default_rng(3).permutation(80)]
    assert values(prdc(gen, real)) == [1, 1, 1, 1]


def test_a_near_copy_is_no_copy():
    real = np.repeat(drawn(10, 1, d=20), 6, axis=0)  # radii 0
    assert values(prdc(real + 1e-4, real)) == [0, 0, 0, 0]


@pytest.mark.parametrize(("n", "m"), [(500, 500), (2000, 200), (200, 2000)])
def test_null_values(n, m):
    """A perfect generator, mean of 20 repetitions."""
    found = [
        values(prdc(drawn(n, (i, 0)), drawn(m, (i, 1)), allow_unequal=True)) for i in range(20)
    ]
    _, _, density, coverage = np.mean(found, axis=0)
    assert density == pytest.approx(DENSITY_NULL, abs=0.06)  # five standard errors of the mean
    assert coverage == pytest.approx(coverage_null(n, m, 5), abs=0.02)  # six of them


@pytest.mark.parametrize(("n", "m"), [(400, 400), (300, 1500)])
@pytest.mark.parametrize("bad", [0.0, 0.25, 0.5, 1.0])
def test_clipped_shares_are_those_of_good_images(n, m, bad):
    """Mean of 12 repetitions: a straight line from 1 to 0, at any sizes."""
    found = []
    for i in range(12):
        gen = drawn(n, (i, 2))
        gen[: int(bad * n)] += 30
        each = prdc(gen, drawn(m, (i, 3)), allow_unequal=True)
        found.append((each.clipped_density.value, each.clipped_coverage.value))
    dense, covered = np.mean(found, axis=0)
    assert dense == pytest.approx(1 - bad, abs=0.06)
    assert covered == pytest.approx(1 - bad, abs=0.05)


def test_an_outlier_among_the_real_images_counts_for_nothing():
    """Its ball holds everything: precision and density are fooled by it, the clipped one is not."""
    real, far = drawn(300, 0), drawn(300, 1) + 6
    real[:6] *= 40
    found = prdc(far, real)
    assert found.precision.value == 1
    assert found.density.value > 0.5
    assert found.clipped_density.value == 0


def test_the_filled_share_is_the_expectation():
    """Against draws: balls of the fifth nearest of 30 real images, 12 good images."""
    rng, filled = np.random.default_rng(0), []
    for _ in range(4000):
        at = rng.random(41)  # distances from one image: 29 real ones, 12 generated
        radius = np.sort(at[:29])[4]
        filled.append(min((at[29:] < radius).sum() / 5, 1))
    assert _filled(12, 30, 5) == pytest.approx(np.mean(filled), abs=0.012)
    for share in (0.0, 0.3, 1.0):
        assert covered_share(_filled(round(64 * share), 90), 64, 90) == pytest.approx(
            share, abs=0.01
        )


def test_coverage_formula():
    # k = 1, n = m = 2: of the 3 others of a real image, 1 is real.
    assert coverage_null(2, 2, 1) == pytest.approx(2 / 3)
    assert coverage_null(3, 4, 2) == pytest.approx(1 - (3 / 6) * (2 / 5))
    assert coverage_null(500, 500) == pytest.approx(0.969, abs=5e-4)
    assert coverage_null(500, 5000) == pytest.approx(0.379, abs=5e-4)
    assert coverage_null(5000, 500) == pytest.approx(1.0, abs=1e-4)
    for wrong in ((0, 10, 5), (10, 10, 0), (10, 5, 5)):
        with pytest.raises(ValueError, match="coverage needs"):
            coverage_null(*wrong)


def test_no_error_is_claimed():
    for estimate in prdc(drawn(20, 1), drawn(20, 2)):
        assert estimate.se is None
        assert estimate.method.startswith("none")


def test_wrong_input_is_refused():
    good = drawn(20, 0)
    bad = good.copy()
    bad[1, 2] = np.nan
    for metric in (prdc, precision_recall):
        for wrong, message in [
            (bad, "1 of 20 feature rows"),
            (good[:, :2], "widths differ"),
            (good[0], r"floats \[n,d\]"),
            (good[:19], r"equal n, or pass allow_unequal=True .* coverage_null"),
        ]:
            for pair in ((wrong, good), (good, wrong)):
                with pytest.raises(ValueError, match=message):
                    metric(*pair)
        assert values(metric(good[:19], good, allow_unequal=True))[0] > 0
        with pytest.raises(ValueError, match="k counts neighbours"):
            metric(good, good, k=0)
        with pytest.raises(NotEnoughSamples, match=r"at least 21 images .* got 20 and 20"):
            metric(good, good, k=20)
        with pytest.raises(NotEnoughSamples):
            metric(good[:5], good, k=5, allow_unequal=True)
        assert values(metric(good, good, k=19))[0] == 1


@pytest.mark.parametrize("k", [None, 5])
def test_equals_torch_fidelitys(k):
    metric = pytest.importorskip("torch_fidelity.metric_prc")
    gen, real = drawn(300, 1, d=32, scale=0.9), drawn(400, 2, d=32)
    want = metric.calculate_precision_recall_part(
        torch.from_numpy(gen), torch.from_numpy(real), neighborhood=k or 3
    )
    chosen = {} if k is None else {"k": k}
    found = values(precision_recall(gen, real, **chosen, allow_unequal=True))
    assert found == pytest.approx(want, abs=3e-8)  # theirs is a float32 mean
    assert 0.2 < min(want) < max(want) < 1
