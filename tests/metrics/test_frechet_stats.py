"""Floor, standard errors, bias correction, fit and differences, against known truth and repeats."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gaussian_truth
from benchmarks.gaussian_truth import Law, laws
from dreamlib.metrics import frechet_stats as frechet_error
from dreamlib.metrics.frechet import Moments, frechet
from dreamlib.metrics.frechet_stats import (
    corrected_se,
    frechet_corrected,
    frechet_difference,
    frechet_fit,
    frechet_floor,
    frechet_jackknife,
    frechet_se,
)
from dreamlib.utils.errors import NotEnoughSamples
from tests.metrics.test_frechet import drawn, normal, spectrum, wrong_features

SAVED = Path(gaussian_truth.__file__).with_suffix(".json")


def spread(values):
    return np.std(values, ddof=1)


# ---------------------------------------------------------------------------------------- floor


@pytest.mark.parametrize(
    ("d", "n", "m", "repeats"),
    [
        *[(16, 1000, 2000, 60), (64, 2000, 4000, 30), (64, 2000, 2000, 40)],
        pytest.param(64, 5000, 5000, 40, marks=pytest.mark.slow),
    ],
)
def test_floor_is_what_a_perfect_generator_scores(d, n, m, repeats):
    values = spectrum(d)
    scores = [frechet(drawn(n, values, (i, 0)), drawn(m, values, (i, 1))) for i in range(repeats)]
    error, floor = spread(scores) / math.sqrt(repeats), frechet_floor(values, n, m)
    # Three standard errors of the simulation, and 2 % for the terms beyond second order.
    assert np.mean(scores) == pytest.approx(floor, abs=3 * error + 0.02 * floor)
    assert error < (0.03 if d == 16 else 0.0166) * floor
    if d == 64:
        assert np.mean(scores) == pytest.approx(floor, rel=0.05)


def test_floor_formula():
    # Equal eigenvalues l: c = d l + (d l + d (d-1) l / 2) / 2.
    d, value = 6, 0.5
    c = d * value + (d * value + d * (d - 1) * value / 2) / 2
    assert frechet_floor(np.full(d, value), 10, 40) == pytest.approx(c * (1 / 10 + 1 / 40))
    assert frechet_floor(np.full(d, value), 10, math.inf) == pytest.approx(c / 10)
    dead = np.concatenate([np.zeros(3), np.full(d, value)])
    assert frechet_floor(dead, 10, math.inf) == pytest.approx(c / 10)
    assert frechet_floor(np.zeros(3), 10, 10) == 0
    for wrong in ([-1.0], [np.nan], [[1.0]]):
        with pytest.raises(ValueError, match="eigenvalues"):
            frechet_floor(np.array(wrong), 10, 10)
    with pytest.raises(ValueError, match="at least 2"):
        frechet_floor(np.ones(3), 1, 10)


# ------------------------------------------------------------------------------- standard errors


def pairs(d, n, repeats, name="gen", start=0):
    """(gen, real) drawn afresh from two laws with a known distance."""
    both = laws(d)
    for i in range(start, start + repeats):
        yield both[name].draw(n, d, n, i, 0), both["real"].draw(n, d, n, i, 1)


@pytest.mark.parametrize(
    ("n", "repeats"), [(500, 200), pytest.param(5000, 200, marks=pytest.mark.slow)]
)
def test_delta_error_matches_the_spread_over_repeats(n, repeats):
    every = list(pairs(64, n, repeats))
    truth = spread([frechet(*pair) for pair in every])
    estimate = np.mean([frechet_se(*pair) for pair in every[:20]])
    # The spread of 200 repeats is itself known to 5 %; 0.85 to 1.2 is three of these and more.
    assert 0.85 < estimate / truth < 1.2


@pytest.mark.parametrize(
    ("d", "n", "high"),
    [(64, 500, 1.22), (128, 100, 1.4), pytest.param(64, 5000, 1.22, marks=pytest.mark.slow)],
)
def test_jackknife_matches_the_spread_over_repeats(d, n, high):
    """Above d and below it."""
    every = list(pairs(d, n, 200))
    truth = spread([frechet(*pair) for pair in every])
    found = [frechet_jackknife(*pair, seed=0) for pair in every[:20]]
    # 5 % for the spread, 4 % for 20 jackknives of 20 groups (16 % each, root of 2/19 over 2).  A
    # hundred samples are few: there a jackknife is wide by a tenth and its own noise is twice that.
    assert 0.82 < np.sqrt(np.mean(np.square(found))) / truth < high


def test_jackknife_with_the_reference_held_fixed():
    d, n = 16, 200
    both = laws(d)
    real = both["real"].draw(300, 1)
    every = [both["gen"].draw(n, i, 2) for i in range(200)]
    truth = spread([frechet(gen, real) for gen in every])
    found = [frechet_jackknife(gen, real, seed=0, both=False) for gen in every[:20]]
    assert 0.82 < np.sqrt(np.mean(np.square(found))) / truth < 1.22
    # Two sides spread further than one.
    whole = [frechet_jackknife(gen, real, seed=0) for gen in every[:20]]
    assert np.mean(whole) > 1.1 * np.mean(found)


def test_jackknife_is_the_textbook_one(monkeypatch):
    """Moments with a group taken off, against sets that never held it; also across n = d."""
    for n, m, d in ((60, 80, 5), (60, 80, 70), (60, 80, 58), (45, 300, 40)):
        gen, real = normal(n, d, 1, scale=1.3), normal(m, d, 2)
        groups = [frechet_error._groups(x, 20, 7, k) for k, x in enumerate((gen, real))]
        assert all(
            np.array_equal(np.sort(np.concatenate(g)), np.arange(len(x)))
            for g, x in zip(groups, (gen, real))
        )
        left = [
            frechet(np.delete(gen, a, axis=0), np.delete(real, b, axis=0)) for a, b in zip(*groups)
        ]
        want = math.sqrt(19 / 20 * np.square(left - np.mean(left)).sum())
        assert frechet_jackknife(gen, real, seed=7) == pytest.approx(want, rel=1e-7)
        assert frechet_jackknife(gen, real, seed=8) != pytest.approx(want, rel=1e-7)


def test_jackknife_sums_moments_once(monkeypatch):
    gen, real, rows = normal(100, 5, 1), normal(100, 5, 2), []

    def counted(features):
        rows.append(len(features))
        return Moments(*vars(original(features)).values())

    original = Moments.of
    monkeypatch.setattr(Moments, "of", counted)
    frechet_jackknife(gen, real, seed=0)
    assert sorted(rows) == [5] * 40 + [100] * 2


def test_jackknife_refuses_what_it_cannot_do():
    good = normal(60, 3, 1)
    for pair in ((good, good[:39]), (good[:39], good)):
        with pytest.raises(
            NotEnoughSamples, match=r"20 groups needs at least 40 samples .* got 39"
        ):
            frechet_jackknife(*pair, seed=0)
    with pytest.raises(ValueError, match="at least 2 groups"):
        frechet_jackknife(good, good, seed=0, groups=1)
    assert frechet_jackknife(good, good[:9], seed=0, both=False) > 0  # the held side has no groups


def test_delta_error_sees_both_sides():
    gen, real = normal(300, 5, 1, scale=2.0), normal(300, 5, 2)
    both = frechet_se(gen, real)
    assert frechet_se(real, gen) == pytest.approx(both, rel=1e-9)
    assert frechet_se(gen, np.tile(real, (100, 1))) < both
    assert frechet_se(np.tile(gen, (100, 1)), real) < both


@pytest.mark.parametrize("rank", [30, 12])
def test_delta_error_uses_the_optimal_map(rank):
    """Against A = S'^.5 (S'^.5 S S'^.5)^-.5 S'^.5 by symmetric roots, each side by itself; also
    where gen has variance in some directions only."""
    d = 30
    gen = normal(300, rank, 1, scale=2.0) @ normal(rank, d, 3)
    real = drawn(200, spectrum(d), 2) + 0.3

    def power(matrix, exponent):
        values, vectors = np.linalg.eigh(matrix)
        alive = values > 1e-10 * values.max()
        return (vectors[:, alive] * values[alive] ** exponent) @ vectors[:, alive].T

    def variance(x, other):
        root = power(np.cov(other.T), 0.5)
        a = root @ power(root @ np.cov(x.T) @ root, -0.5) @ root
        y = x - x.mean(0)
        influence = 2 * y @ (x.mean(0) - other.mean(0)) + (y @ (np.eye(d) - a) * y).sum(1)
        return influence.var(ddof=1) / len(x)

    # Each side alone, as the reference's part of the sum would hide the other's.
    for x, other, found in zip(
        (gen, real),
        (real, gen),
        frechet_error._influences(gen, real, Moments.of(gen), Moments.of(real)),
    ):
        assert found.var(ddof=1) / len(x) == pytest.approx(variance(x, other), rel=1e-7)
    want = math.sqrt(variance(gen, real) + variance(real, gen))
    assert frechet_se(gen, real) == pytest.approx(want, rel=1e-7)


def test_delta_error_bears_dead_features_and_collapse():
    gen, real = normal(200, 5, 1, scale=1.5), normal(200, 5, 2)
    dead = np.zeros((200, 2))
    wide = frechet_se(np.hstack([gen, dead]), np.hstack([real, dead]))
    assert wide == pytest.approx(frechet_se(gen, real), rel=1e-6)
    one_sided = frechet_se(np.hstack([gen, dead]), np.hstack([real, normal(200, 2, 3, scale=0.01)]))
    assert one_sided == pytest.approx(frechet_se(gen, real), rel=1e-2)
    # Features that repeat others are a linear map of rank 5, and so is its triangle.
    again = np.vstack([np.eye(5), np.eye(5)[:2], np.eye(5)[:1] + 1])
    triangle = np.linalg.qr(again, mode="r")
    for a, b in ((gen, real), (real, gen)):
        want = frechet_se(a @ triangle.T, b @ triangle.T)
        assert frechet_se(a @ again.T, b @ again.T) == pytest.approx(want, rel=1e-6)
    centred = real - real.mean(0)
    # Against a constant, FD is the mean square distance to it: its error is that of a mean.
    want = np.square(centred + real.mean(0) - 1.0).sum(1).std(ddof=1) / math.sqrt(200)
    assert frechet_se(np.ones((200, 5)), real) == pytest.approx(want, rel=0.02)
    assert frechet_se(real, np.ones((200, 5))) == pytest.approx(want, rel=0.02)


def test_delta_error_needs_more_samples_than_features():
    for pair in ((normal(40, 40, 1), normal(90, 40, 2)), (normal(90, 40, 1), normal(40, 40, 2))):
        with pytest.raises(NotEnoughSamples, match="40 samples of 40 features"):
            frechet_se(*pair)


# ------------------------------------------------------------------------------------ correction


def test_correction_is_refused_below_its_validity():
    ok, few = normal(240, 100, 1), normal(239, 100, 2)
    assert np.isfinite(frechet_corrected(ok, ok, seed=0))
    for pair in ((ok, few), (few, ok)):
        with pytest.raises(NotEnoughSamples, match=r"halves 239 .* at least 120 in each half"):
            frechet_corrected(*pair, seed=0)


def test_correction_is_keyed_by_its_seed():
    a, b = normal(100, 8, 1), normal(120, 8, 2)
    assert frechet_corrected(a, b, seed=3) == frechet_corrected(a, b, seed=3)
    flat = np.ones((100, 8))  # its halves are all alike, so that only the other side is seen
    for pair in ((a, flat), (flat, b)):
        assert frechet_corrected(*pair, seed=3) != frechet_corrected(*pair, seed=4)


@pytest.mark.parametrize("m", [300, 700])
def test_correction_removes_the_bias(m):
    """Of either side, also where one is larger."""
    d, n, repeats = 16, 300, 60
    values = spectrum(d)
    far = 1.5 * np.sqrt(values)
    truth = np.square(far).sum()  # equal covariances, so only the means count
    corrected = [
        frechet_corrected(drawn(n, values, (i, 2)) + far, drawn(m, values, (i, 3)), seed=i) - truth
        for i in range(repeats)
    ]
    null = [
        frechet_corrected(drawn(n, values, (i, 4)), drawn(m, values, (i, 5)), seed=i)
        for i in range(repeats)
    ]
    assert abs(np.mean(corrected)) < 3 * spread(corrected) / math.sqrt(repeats)
    # At the null the raw value is the floor; what is left is of the next order in 1/n.
    assert abs(np.mean(null)) < 0.1 * frechet_floor(values, n, m)
    assert min(null) < 0  # never clipped


@pytest.mark.parametrize(
    ("name", "jackknife"),
    [
        ("gen", False),
        pytest.param("perfect", False, marks=pytest.mark.slow),
        pytest.param("gen", True, marks=pytest.mark.slow),
        pytest.param("perfect", True, marks=pytest.mark.slow),
    ],
)
def test_corrected_interval_holds_the_truth(name, jackknife):
    d, n, repeats = 64, 1000, 200
    truth = laws(d)[name].distance(laws(d)["real"])
    raw, corrected, covered = [], [], 0
    floor = frechet_floor(laws(d)["real"].sd ** 2, n, n)
    for i, pair in enumerate(pairs(d, n, repeats, name)):
        raw.append(frechet(*pair) - truth)
        corrected.append(frechet_corrected(*pair, seed=i) - truth)
        other = frechet_jackknife(*pair, seed=i) if jackknife else None
        se = corrected_se(raw[-1] + truth, floor, frechet_se(*pair), other)
        covered += abs(corrected[-1]) < 1.96 * se
    assert 1.0 < np.mean(raw) < 1.7
    # 0.12: three standard errors where the truth is 8.6 (sd 0.7 / root 200 = 0.05), or nearly.
    assert abs(np.mean(corrected)) < (0.15 if name == "gen" else 0.06)
    # 0.95 of 200 has a standard error of 0.015; near the null the interval is wide on purpose.
    assert 0.88 <= covered / repeats <= (0.99 if (name, jackknife) == ("gen", False) else 1.0)


def test_corrected_error_is_the_larger_one():
    assert corrected_se(raw=10.0, floor=1.0, delta=0.2, jackknife=0.3) == 0.3
    assert corrected_se(raw=10.0, floor=1.0, delta=0.3, jackknife=0.2) == 0.3
    assert corrected_se(raw=1.9, floor=1.0, delta=0.2, jackknife=0.1) == pytest.approx(0.3)
    assert corrected_se(raw=1.9, floor=1.0, delta=0.2, jackknife=0.4) == 0.4
    assert corrected_se(raw=2.0, floor=1.0, delta=0.2) == 0.2
    assert corrected_se(raw=1.9, floor=1.0, delta=0.2) == pytest.approx(0.3)


# ------------------------------------------------------------------------------------------- fit


@pytest.mark.parametrize("name", ["gen", "perfect"])
def test_fit_finds_the_truth(name):
    d, n, repeats = 32, 1000, 40
    truth = laws(d)[name].distance(laws(d)["real"])
    fits = [frechet_fit(*pair, seed=i) for i, pair in enumerate(pairs(d, n, repeats, name))]
    for kind in ("linear", "quadratic"):
        found = np.array([getattr(fit, kind) for fit in fits]) - truth
        # Three standard errors, and what is beyond the order of the fit: 3 % of the bias at n/10.
        floor = frechet_floor(laws(d)["real"].sd ** 2, n / 10, n / 10)
        assert abs(found.mean()) < 3 * spread(found) / math.sqrt(repeats) + 0.03 * floor
    fit = fits[0]
    assert fit.curvature == abs(fit.linear - fit.quadratic)
    assert fit.sizes == [100, 325, 550, 775, 1000]
    gen, real = next(pairs(d, n, 1, name))
    assert fit.values[-1] == pytest.approx(frechet(gen, real), rel=1e-9)


def test_fit_of_exact_values_is_exact(monkeypatch):
    """Values that are a line, or a parabola, in 1/n: the intercepts are known."""
    taken = []

    def value(a, b):
        taken.append((a.n, b.n))
        return 2.0 + 30.0 / a.n + bend / a.n**2

    monkeypatch.setattr(frechet_error, "frechet", value)
    gen, real = normal(600, 20, 1), normal(400, 20, 2)
    for bend in (0.0, 900.0):
        fit = frechet_fit(gen, real, seed=0)
        assert fit.quadratic == pytest.approx(2.0, abs=1e-9)
        assert (fit.curvature < 1e-9) == (bend == 0.0)
    # Both sides grow together, from a tenth (40) that 1.2 d = 24 does not raise.
    assert taken[:5] == [(40, 40), (130, 130), (220, 220), (310, 310), (400, 400)]
    wide = frechet_fit(normal(600, 100, 1), normal(400, 100, 2), seed=0)
    assert wide.sizes[0] == 120
    # What no line fits is fitted by least squares in which a size weighs as much as it is large.
    design = np.stack([np.ones(5), 1 / np.array(fit.sizes)], axis=1) * np.sqrt(fit.sizes)[:, None]
    want = np.linalg.lstsq(design, fit.values * np.sqrt(fit.sizes), rcond=None)[0][0]
    assert fit.linear == pytest.approx(want, rel=1e-9)


def test_fit_is_nested():
    gen, real = normal(300, 10, 1), normal(300, 10, 2)
    grown = list(frechet_error._growing(gen, [30, 100, 300], np.random.default_rng(0)))
    order = np.random.default_rng(0).permutation(300)
    for moments, n in zip(grown, (30, 100, 300)):
        want = Moments.of(gen[order[:n]])
        assert moments.n == n
        np.testing.assert_allclose(moments.m2, want.m2, rtol=0, atol=1e-12 * n)
    assert frechet_fit(gen, real, seed=1) == frechet_fit(gen, real, seed=1)
    flat = np.ones((300, 10))  # its parts are all alike, so that only the other side is seen
    for pair in ((gen, flat), (flat, real)):
        assert frechet_fit(*pair, seed=1) != frechet_fit(*pair, seed=2)


def test_fit_is_refused_where_it_has_no_room():
    ok, few = normal(240, 100, 1), normal(239, 100, 2)
    assert frechet_fit(ok, ok, seed=0, points=4).sizes == [120, 160, 200, 240]
    for pair in ((ok, few), (few, ok)):
        with pytest.raises(NotEnoughSamples, match=r"from 120 to at least 240 .* got 239"):
            frechet_fit(*pair, seed=0)
    with pytest.raises(NotEnoughSamples, match="4 or more sizes"):
        frechet_fit(normal(4, 1, 1), normal(4, 1, 2), seed=0)
    with pytest.raises(ValueError, match="at least 4 points, got 3"):
        frechet_fit(ok, ok, seed=0, points=3)


# ------------------------------------------------------------------------------------ difference


def rivals(d):
    """Two generators that differ a little from each other and more from the real law."""
    real = laws(d)["real"]
    a = Law(real.mean + 0.3, real.sd * 1.2)
    return a, Law(a.mean + 0.05, a.sd * 1.05), real


def draws(d, n, repeats, paired):
    a, b, real = rivals(d)
    for i in range(repeats):
        yield a.draw(n, i, 0), b.draw(n, i, 0 if paired else 2), real.draw(n, i, 1)


@pytest.mark.parametrize(
    ("d", "n", "high"), [pytest.param(128, 100, 1.4, marks=pytest.mark.slow), (32, 200, 1.25)]
)
@pytest.mark.parametrize("paired", [False, True])
def test_difference_error_matches_the_spread_over_repeats(d, n, high, paired):
    """By the jackknife below d (a little wide, as above), by the delta method above d."""
    sets = list(draws(d, n, 150, paired))
    truth = spread([frechet(a, real) - frechet(b, real) for a, b, real in sets])
    found = [frechet_difference(*each, seed=0, paired=paired) for each in sets[:25]]
    assert found[0].method.startswith("jackknife of 20" if n < d else "delta")
    # The spread of 150 repeats is known to 6 %, the mean of 25 jackknives to 4 %.
    assert 0.8 < np.sqrt(np.mean([each.se**2 for each in found])) / truth < high
    a, b, real = sets[0]
    assert found[0].value == pytest.approx(frechet(a, real) - frechet(b, real), rel=1e-9)


@pytest.mark.parametrize("n", [24, 200])
def test_what_is_shared_cancels(n):
    a, b, real = next(draws(32, n, 1, paired=True))
    groups = {"groups": 12} if n < 32 else {}
    paired = frechet_difference(a, b, real, seed=0, paired=True, **groups)
    alone = frechet_difference(a, b, real, seed=0, **groups)
    assert alone.value == paired.value
    assert paired.se < 0.6 * alone.se
    same = frechet_difference(a, a, real, seed=0, paired=True, **groups)
    assert same.value == 0
    assert same.se == 0
    if n > 32:
        # The reference moves both distances alike: their difference is surer than that of two
        # references.
        assert alone.se < math.hypot(frechet_se(a, real), frechet_se(b, real))
    turned = frechet_difference(b, a, real, seed=0, paired=True, **groups)
    assert turned.value == -paired.value
    assert turned.se == pytest.approx(paired.se, rel=1e-9)


def test_difference_refuses_unequal_pairs():
    a, b, real = normal(50, 4, 1), normal(49, 4, 2), normal(60, 4, 3)
    with pytest.raises(ValueError, match="equal sizes, got 50 and 49"):
        frechet_difference(a, b, real, seed=0, paired=True)
    assert frechet_difference(a, b, real, seed=0).se > 0
    assert frechet_difference(a, normal(60, 4, 1), real, seed=0).se > 0


# ---------------------------------------------------------------------------------- all, refusals


def test_wrong_features_are_refused():
    good, wrongs = wrong_features()
    metrics = [
        frechet_se,
        lambda a, b: frechet_corrected(a, b, seed=0),
        lambda a, b: frechet_jackknife(a, b, seed=0),
        lambda a, b: frechet_fit(a, b, seed=0),
        lambda a, b: frechet_difference(a, b, b, seed=0),
        lambda a, b: frechet_difference(b, a, b, seed=0),
        lambda a, b: frechet_difference(a, a, b, seed=0),
    ]
    for wrong, message in wrongs:
        for metric in metrics:
            with pytest.raises(ValueError, match=message):
                metric(wrong, good)


# ------------------------------------------------------------------------------------ known truth


def check_case(case, bias):
    """The claims of one case of `gaussian_truth`; bias: of the correction, beyond its error."""
    for what, row in case["rows"].items():
        kind, n, _ = what.replace("/", " ").split()
        error = 3 * row["sd"] / math.sqrt(case["repetitions"])
        if kind == "corrected":
            assert abs(row["mean"] - case["truth"]) < error + bias, what
        elif case["law"] == "perfect" and int(n) >= 5 * case["d"]:
            # 3 % for the terms beyond second order in 1/n.
            assert row["mean"] == pytest.approx(row["floor"], abs=error + 0.03 * row["floor"]), what
        elif case["law"] == "gen":
            assert row["mean"] > case["truth"], what


@pytest.mark.parametrize("name", ["gen", "perfect"])
def test_known_truth_is_found(name):
    check_case(gaussian_truth.case(64, name, repetitions=30, sizes=(500, 1000)), bias=0.03)


def test_known_truth_was_found():
    """The numbers that the benchmark wrote, at 64, 512 and 2,048 features."""
    cases = json.loads(SAVED.read_text())["cases"]
    assert [(case["d"], case["law"]) for case in cases] == [
        (d, law) for d in (64, 512, 2048) for law in ("gen", "perfect")
    ]
    for case in cases:
        real = laws(case["d"])["real"]
        assert case["truth"] == pytest.approx(
            laws(case["d"])[case["law"]].distance(real), rel=1e-12
        )
        assert ("corrected 500/500" in case["rows"]) == (case["d"] == 64)
        assert "corrected 5000/5000" in case["rows"]
        floor = frechet_floor(real.sd**2, 5000, 5000)
        assert case["rows"]["raw 5000/5000"]["floor"] == pytest.approx(floor, rel=1e-12)
        # What Richardson leaves at n/2 = 1.22 d, the edge of its validity, is below 3 % of the
        # bias that it takes away.
        check_case(case, bias=0.03 * floor)
        raw = case["rows"]["raw 5000/5000"]["mean"] - case["truth"]
        assert raw > 10 * abs(case["rows"]["corrected 5000/5000"]["mean"] - case["truth"]) or (
            case["d"] == 64
        )


@pytest.mark.parametrize("value", [0.1, 3.7, 1e4])
def test_a_collapsed_generator_has_an_error_too(value):
    """Constant features have no covariance but rounding, also when groups are left out."""
    collapsed, real = np.full((600, 8), value), np.random.default_rng(0).standard_normal((700, 8))
    want = np.square(real - value).sum(1).std(ddof=1) / math.sqrt(700)
    assert frechet_jackknife(collapsed, real, seed=0) == pytest.approx(want, rel=0.6)
    assert frechet_se(collapsed, real) == pytest.approx(want, rel=0.1)
    assert np.isfinite(frechet_corrected(collapsed, real, seed=0))
