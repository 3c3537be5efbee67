"""Kernel distance: the definition, unbiased at the null, a standard error that is one."""

import math

import numpy as np
import pytest

from dreamlib.metrics.kid import kernel_reference, kid, kid_difference
from tests.metrics.test_frechet import wrong_features


def drawn(n, key, d=16, shift=0.0, scale=1.0):
    """Non-negative features of Inception's size and spread; scale and shift move the law."""
    return shift + 0.4 * scale * np.abs(np.random.default_rng(key).standard_normal((n, d)))


def by_definition(gen, real):
    """Every pair in a plain loop."""

    def k(x, y):
        return (np.dot(x, y) / len(x) + 1) ** 3

    def within(rows):
        n = len(rows)
        total = sum(k(rows[i], rows[j]) for i in range(n) for j in range(n) if i != j)
        return total / (n * (n - 1))

    between = sum(k(x, y) for x in gen for y in real) / (len(gen) * len(real))
    return within(gen) + within(real) - 2 * between


@pytest.fixture
def small_blocks(monkeypatch):
    """Seven rows to a block, so that small sets meet every edge between blocks."""
    monkeypatch.setattr("dreamlib.metrics.kid.ROWS", 7)


@pytest.mark.parametrize(("n", "m"), [(20, 20), (14, 9), (2, 30)])
@pytest.mark.parametrize("rows", [7, 500])
def test_the_definition_over_all_pairs(n, m, rows, monkeypatch):
    monkeypatch.setattr("dreamlib.metrics.kid.ROWS", rows)
    gen, real = drawn(n, 1, scale=1.3), drawn(m, 2)
    found, back = kid(gen, real), kid(real, gen)
    # Rounding of sums whose terms are about 1.
    assert found.value == pytest.approx(by_definition(gen, real), abs=1e-13)
    assert back.value == pytest.approx(found.value, abs=1e-13)
    assert back.se == pytest.approx(found.se, rel=1e-10)


def test_float32_features_are_summed_in_float64():
    gen, real = (drawn(80, key, shift=30.0).astype(np.float32) for key in (1, 2))
    assert kid(gen, real) == kid(gen.astype(np.float64), real.astype(np.float64))


def pulls(gen, real):
    """Twice the mean kernel of each image with the others of its set, and with the other set."""
    own, between = (((gen @ x.T) / 16 + 1) ** 3 for x in (gen, real))
    return 2 * ((own.sum(1) - own.diagonal()) / (len(gen) - 1)), 2 * between.mean(1)


def test_the_error_is_that_of_two_means_of_projections(small_blocks):
    gen, real = drawn(12, 1, scale=1.4), drawn(9, 2)
    (within_gen, to_real), (within_real, to_gen) = pulls(gen, real), pulls(real, gen)
    variances = (within_gen - to_real).var(ddof=1) / 12, (within_real - to_gen).var(ddof=1) / 9
    assert kid(gen, real).se == pytest.approx(math.sqrt(sum(variances)), rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(100, 100), (60, 200)])
def test_null_repetitions(n, m):
    """400 perfect generators: no bias, negative values among them, a cautious error."""
    found = [kid(drawn(n, (i, 0)), drawn(m, (i, 1))) for i in range(400)]
    values = np.array([estimate.value for estimate in found])
    spread = values.std(ddof=1)
    assert abs(values.mean()) < 3 * spread / math.sqrt(400)
    assert 0.2 < (values < 0).mean() < 0.8
    # Projections vanish at the null, so what is left of them is noise: 1.3 to 1.5 measured.
    assert 0.85 < np.mean([estimate.se for estimate in found]) / spread < 2.0


@pytest.mark.parametrize("change", [{"shift": 0.1}, {"scale": 1.2}, {"shift": 0.3, "scale": 1.3}])
def test_the_error_is_the_spread_where_the_laws_differ(change):
    found = [kid(drawn(80, (i, 2), **change), drawn(160, (i, 3))) for i in range(400)]
    spread = np.std([estimate.value for estimate in found], ddof=1)
    # 0.94 to 1.02 measured; the spread of 400 repeats is itself known to 3.5 %.
    assert 0.87 < np.mean([estimate.se for estimate in found]) / spread < 1.12


def test_the_spread_over_subsets_is_no_error_bar():
    """What other packages print, against the spread that the whole sets really have."""
    gen, real = drawn(1000, 4, scale=1.1), drawn(1000, 5)
    rng = np.random.default_rng(6)
    subsets = [
        kid(gen[rng.choice(1000, 100, False)], real[rng.choice(1000, 100, False)]).value
        for _ in range(100)
    ]
    estimate = kid(gen, real)
    assert np.std(subsets) > 2 * estimate.se
    assert np.mean(subsets) == pytest.approx(estimate.value, abs=4 * np.std(subsets) / 10)


def test_a_reference_may_serve_many_sets(small_blocks):
    real = drawn(30, 1)
    kept = kernel_reference(real)
    plain = [((np.dot(x, y) / 16) + 1) ** 3 for x in real[:1] for y in real[1:]]
    assert kept.rows[0] == pytest.approx(sum(plain), rel=1e-12)
    for i in range(3):
        part = drawn(10, (i, 7), scale=1.2)
        assert kid(part, kept) == kid(part, real)
    with pytest.raises(ValueError, match="widths differ"):
        kid(real[:, :15], kept)


def test_kept_sums_are_used():
    gen, real = drawn(10, 1), drawn(12, 2)
    kept = kernel_reference(real)
    doubled = kept._replace(rows=2 * kept.rows)
    extra = kept.rows.sum() / (12 * 11)
    moved = kid(gen, doubled).value - kid(gen, real).value
    assert moved == pytest.approx(extra, rel=1e-10)


@pytest.mark.parametrize("paired", [True, False])
def test_a_difference_is_the_difference_of_values(paired, small_blocks):
    a, b, real = drawn(20, 1, scale=1.3), drawn(20, 2, shift=0.1), drawn(25, 3)
    found = kid_difference(a, b, real, paired)
    assert found.value == pytest.approx(kid(a, real).value - kid(b, real).value, abs=1e-12)
    back = kid_difference(b, a, real, paired)
    assert back.value == pytest.approx(-found.value, abs=1e-12)
    assert back.se == pytest.approx(found.se, rel=1e-10)
    assert ("paired" in found.method) is paired


@pytest.mark.parametrize("paired", [True, False])
def test_the_error_of_a_difference(paired):
    """Two generators that share their noise when paired, against one reference."""
    found, alone = [], []
    for i in range(300):
        noise = drawn(80, (i, 4))
        other = noise if paired else drawn(80, (i, 5))
        real = drawn(60, (i, 6))
        a, b = 1.3 * noise + 0.2, 1.2 * other + 0.1
        found.append(kid_difference(a, b, real, paired))
        alone.append(math.hypot(kid(a, real).se, kid(b, real).se))
    spread = np.std([estimate.value for estimate in found], ddof=1)
    # 0.94 and 0.95 measured; the spread of 300 repeats is known to 4 %.
    assert 0.84 < np.mean([estimate.se for estimate in found]) / spread < 1.12
    assert np.mean([estimate.se for estimate in found]) < 0.95 * np.mean(alone)


def test_the_error_of_a_difference_is_that_of_means_of_projections():
    a, b, real = drawn(12, 1, scale=1.4), drawn(12, 2), drawn(9, 3)
    of_a, of_b = (np.subtract(*pulls(gen, real)) for gen in (a, b))
    shared = (pulls(real, a)[1] - pulls(real, b)[1]).var(ddof=1) / 9
    paired = math.sqrt((of_a - of_b).var(ddof=1) / 12 + shared)
    apart = math.sqrt(of_a.var(ddof=1) / 12 + of_b.var(ddof=1) / 12 + shared)
    assert kid_difference(a, b, real, paired=True).se == pytest.approx(paired, rel=1e-10)
    assert kid_difference(a, b, real, paired=False).se == pytest.approx(apart, rel=1e-10)


def test_pairing_sees_shared_noise():
    noise, real = drawn(100, 1), drawn(100, 2)
    a, b = 1.3 * noise, 1.25 * noise
    paired, apart = (kid_difference(a, b, real, pairing) for pairing in (True, False))
    assert paired.value == apart.value
    assert paired.se < 0.5 * apart.se
    assert kid_difference(a, a, real, paired=True)[:2] == (0.0, 0.0)


def test_wrong_features_are_refused():
    good, wrongs = wrong_features()
    for wrong, message in wrongs:
        with pytest.raises(ValueError, match=message):
            kid(wrong, good)
        with pytest.raises(ValueError, match=message):
            kid(good, wrong)
        for place in range(3):
            sets = [good] * 3
            sets[place] = wrong
            with pytest.raises(ValueError, match=message):
                kid_difference(*sets, paired=False)
    with pytest.raises(ValueError, match="1 of 5 feature rows"):
        kernel_reference(wrongs[0][0])
    with pytest.raises(ValueError, match="paired sets need equal sizes, got 5 and 4"):
        kid_difference(good, good[:4], good, paired=True)
    assert kid_difference(good, good[:4], good, paired=False).se >= 0
