"""Cells, the difference of counts, and why three sets of real images are needed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields

import numpy as np
import pytest

from dreamlib.metrics import kmeans as km
from dreamlib.metrics import modes as md
from dreamlib.metrics.kmeans import assign, kmeans
from dreamlib.metrics.modes import ModeStudy, count, ratio_interval, study_of_cells, worst

LN2 = math.log(2)


def rng(*key):
    return np.random.default_rng(key)


def mode_study(fit, real, gen, seed, k, **more):
    """Of features, in the cells of `fit`."""
    centres = kmeans(fit, k, seed)
    return study_of_cells(assign(real, centres), assign(gen, centres), k, seed, **more)


def blobs(n, d, k, *key, apart=20.0):
    """k far blobs of unit width; (features [n,d], the blob of each row)."""
    own = rng(*key).integers(k, size=n)
    middles = apart * np.eye(k, d)
    return middles[own] + rng(*key, 1).standard_normal((n, d)), own


def drawn(n, shares, *key):
    shares = np.asarray(shares, float)
    return rng(*key).choice(len(shares), size=n, p=shares / shares.sum())


def studies(shares, n, repeats, *, gen_shares=None, permutations=99):
    gen_shares = shares if gen_shares is None else gen_shares
    sets = [(drawn(n, shares, i, 1), drawn(n, gen_shares, i, 2)) for i in range(repeats)]
    more = {"permutations": permutations}
    return [study_of_cells(*pair, len(shares), seed=i, **more) for i, pair in enumerate(sets)]


def mean_of(found, name):
    return np.mean([getattr(study, name) for study in found])


@pytest.fixture(scope="module")
def digits():
    return pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)


@pytest.fixture(scope="module")
def draw_digits(digits):
    """draw(n, weights [10], *key): as many 8x8 digits as wished, a Gaussian law for each class."""
    pixels, labels = digits
    laws = []
    for label in range(10):
        own = pixels[labels == label]
        values, vectors = np.linalg.eigh(np.cov(own.T))
        laws.append((own.mean(axis=0), vectors * np.sqrt(np.maximum(values, 0))))

    def draw(n, weights, *key):
        own = drawn(n, weights, *key)
        noise = rng(*key, 1).standard_normal((n, 64))
        rows = np.empty((n, 64))
        for label, (mean, root) in enumerate(laws):
            rows[own == label] = mean + noise[own == label] @ root.T
        return rows

    return draw


EQUAL = np.ones(10)
HALF_AT_A_TENTH = np.array([1.0] * 5 + [0.1] * 5)


# --- k-means


def test_kmeans_finds_separated_blobs():
    features, own = blobs(600, 8, 6, 1)
    centres = kmeans(features, 6, seed=0)
    cells = assign(features, centres)
    assert cells.dtype == np.int64
    for blob in range(6):
        (cell,) = np.unique(cells[own == blob])
        # Converged: a centre is the mean of its rows, up to rounding.
        np.testing.assert_allclose(centres[cell], features[own == blob].mean(0), atol=1e-10)
    assert len(np.unique(cells)) == 6


def test_kmeans_is_keyed_by_its_seed():
    features = rng(1).standard_normal((400, 5))
    first = kmeans(features, 12, seed=3)
    np.testing.assert_array_equal(first, kmeans(features, 12, seed=3))
    assert not np.allclose(first, kmeans(features, 12, seed=4))


def inertia(features, centres):
    return np.square(features - centres[assign(features, centres)]).sum()


@pytest.mark.parametrize("k", [10, 60])
def test_kmeans_is_as_good_as_sklearns(digits, k):
    cluster = pytest.importorskip("sklearn.cluster")
    pixels, _ = digits
    best = cluster.KMeans(k, n_init=1, random_state=0).fit(pixels).inertia_
    for seed in range(3):
        assert inertia(pixels, kmeans(pixels, k, seed)) < 1.1 * best


def test_more_iterations_lower_the_inertia(digits):
    pixels, _ = digits
    found = [inertia(pixels, kmeans(pixels, 30, 0, iterations=i)) for i in (1, 4, 25)]
    assert found[0] > found[1] > found[2]
    # One iteration from random rows is 20 % worse than k-means++ here, so the seeds are spread.
    seeds = km._seeds(pixels - pixels.mean(0), 30, 0)
    at_random = np.mean([inertia(pixels, rng(i).permutation(pixels)[:30]) for i in range(20)])
    assert len(set(seeds)) == 30
    spread = np.mean(
        [inertia(pixels, pixels[km._seeds(pixels - pixels.mean(0), 30, i)]) for i in range(20)]
    )
    assert spread < at_random


def test_far_from_the_origin_nothing_changes():
    features, _ = blobs(300, 6, 5, 2, apart=4.0)
    near, far = kmeans(features, 5, seed=1), kmeans(features + 1e8, 5, seed=1)
    # 1e8 leaves 8 of 16 digits of a feature, and none of its square.
    np.testing.assert_allclose(far - 1e8, near, atol=1e-6)


def test_seeds_are_drawn_by_squared_distance():
    rows = np.array([[0.0], [1.0], [3.0]])
    found = [tuple(km._seeds(rows - rows.mean(0), 2, seed)) for seed in range(1500)]
    squared = np.square(rows - rows.T)
    want = squared / squared.sum(axis=1, keepdims=True) / 3  # the first one uniform
    for first, second in np.ndindex(3, 3):
        p = want[first, second]
        three_errors = 3 * math.sqrt(p * (1 - p) / len(found))
        assert found.count((first, second)) / len(found) == pytest.approx(p, abs=three_errors)


def test_seeds_are_never_drawn_twice():
    # A few far rows and many equal ones: k-means++ takes each distinct point once.
    features = np.concatenate([np.zeros((500, 2)), 100 * np.eye(2), [[-100.0, 0]]]) + 7.0
    centres = kmeans(features, 4, seed=0)
    assert len(np.unique(centres, axis=0)) == 4
    with pytest.raises(ValueError, match=r"503 rows hold 4 distinct points, too few for 5"):
        kmeans(features, 5, seed=0)
    with pytest.raises(ValueError, match=r"hold 1 distinct points"):
        kmeans(np.full((9, 3), 0.1), 2, seed=0)


def test_an_empty_cell_starts_anew_at_the_farthest_rows():
    features, own = blobs(300, 4, 2, 5)
    for nowhere in (1, 3):
        start = np.concatenate([features[:1], np.full((nowhere, 4), 1e6)])
        far = np.argsort(-np.linalg.norm(features - features[0], axis=1))[:nowhere]
        np.testing.assert_array_equal(km._lloyd(features, start, 1)[1:], features[far])
        centres = km._lloyd(features, start, iterations=20)
        cells = assign(features, centres)
        assert count(cells, nowhere + 1).min() > 0
        # The other blob is where the farthest rows are, so no cell is left with rows of both.
        assert all(len(set(own[cells == cell])) == 1 for cell in range(nowhere + 1))


def test_assign_is_the_nearest_centre_over_several_blocks():
    features, centres = rng(1).standard_normal((2300, 3)), rng(2).standard_normal((9, 3))
    brute = np.square(features[:, None] - centres).sum(-1).argmin(1)
    np.testing.assert_array_equal(assign(features, centres), brute)
    two = np.array([[1.0, 0], [-1.0, 0], [1.0, 0]])
    np.testing.assert_array_equal(assign(np.array([[2.0, 0], [-2.0, 0]]), two), [0, 1])


def test_wrong_features_are_refused():
    good = rng(1).standard_normal((20, 3))
    bad = good.copy()
    bad[3, 1] = np.nan
    for wrong, message in [(bad, "1 of 20 feature rows"), (good[0], r"floats \[n,d\]")]:
        with pytest.raises(ValueError, match=message):
            kmeans(wrong, 2, seed=0)
        with pytest.raises(ValueError, match=message):
            assign(wrong, good[:2])
    with pytest.raises(ValueError, match="widths differ: 2 and 3"):
        assign(good[:, :2], good)
    with pytest.raises(ValueError, match="at least 2 cells, got 1"):
        kmeans(good, 1, seed=0)
    with pytest.raises(ValueError, match="at least 1 iteration"):
        kmeans(good, 2, seed=0, iterations=0)
    with pytest.raises(ValueError, match="20 real and 19 generated"):
        mode_study(good, good, good[:19], seed=0, k=2)


# --- counts and their difference


def test_counts():
    np.testing.assert_array_equal(count(np.array([2, 0, 2, 2]), 4), [1, 0, 3, 0])
    for wrong, k, message in [
        ([0, 4], 4, "0 to 3, got 0 to 4"),
        ([-1, 2], 4, "0 to 3, got -1 to 2"),
        ([0.0, 1.0], 4, "integers"),
        ([[0, 1]], 4, "integers"),
        (np.empty(0, int), 4, "n > 0"),
        ([0, 0], 1, "at least 2 cells, got 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            count(np.array(wrong), k)


def test_wrong_studies_are_refused():
    cells = np.array([0, 1, 1])
    with pytest.raises(ValueError, match=r"3 real and 2 generated .* take as many of each"):
        study_of_cells(cells, cells[:2], 2, seed=0)
    for wrong in ({"alpha": 0.0}, {"alpha": 1.0}, {"permutations": 0}):
        with pytest.raises(ValueError, match="alpha lies between 0 and 1"):
            study_of_cells(cells, cells, 2, seed=0, **wrong)


REAL, GEN = [44, 42, 4, 10, 0], [27, 32, 21, 20, 0]  # of 100 each


def by_hand():
    return study_of_cells(np.repeat(np.arange(5), REAL), np.repeat(np.arange(5), GEN), 5, seed=0)


def test_z_is_the_textbooks():
    found = [mode.z for mode in by_hand().table]
    # Shares differ by .17 around .355, and so on; the variance has 1/100 + 1/100.
    pairs = [(-0.17, 0.355), (-0.1, 0.37), (0.17, 0.125), (0.1, 0.15)]
    want = [step / math.sqrt(p * (1 - p) * 0.02) for step, p in pairs]
    assert found == pytest.approx([*want, 0], abs=1e-12)
    assert found == pytest.approx([-2.512, -1.465, 3.635, 1.980, 0], abs=1e-3)
    # Unequal sizes are refused above, but the score itself is general.
    z = md._score(np.array([30]), 100, np.array([45]), 250)
    p = 75 / 350
    assert z[0] == pytest.approx((0.3 - 0.18) / math.sqrt(p * (1 - p) * (1 / 100 + 1 / 250)))


def test_every_number_of_a_small_study():
    study = by_hand()
    assert (study.k, study.reached, study.n, study.m, study.hit) == (5, 4, 100, 100, 4)
    # Of 4 cells, as the fifth holds nothing, three are beyond 1.96, and two beyond 2.498, which is
    # alpha / 4; alpha / 5 would be 2.576.
    assert (study.ndb, study.ndb_bonferroni) == (3 / 4, 2 / 4)
    assert study.js_null == pytest.approx(3 / 8 * 2 / 100)
    assert study.js_above_null == pytest.approx(study.js - study.js_null)
    real, gen = np.array(REAL[:4]) / 100, np.array(GEN[:4]) / 100
    middle = (real + gen) / 2
    want = (gen @ np.log(gen / middle) + real @ np.log(real / middle)) / 2
    assert study.js == pytest.approx(want, rel=1e-12)
    assert study.effective_gen == pytest.approx(math.exp(-(gen @ np.log(gen))))
    assert study.effective_real == pytest.approx(math.exp(-(real @ np.log(real))))
    assert [mode.cell for mode in study.table] == [0, 1, 2, 3, 4]
    assert [mode.real for mode in study.table] == REAL
    assert [mode.gen for mode in study.table] == GEN
    assert (study.table[0].real_share, study.table[0].gen_share) == (0.44, 0.27)
    assert [mode.ratio for mode in study.table[2:]] == [21 / 4, 2.0, None]
    nothing = study.table[4]
    assert (nothing.low, nothing.high, nothing.z) == (0.0, None, 0.0)


def test_alpha_sets_tails_and_intervals():
    strict = study_of_cells(drawn(200, [2, 1], 1), drawn(200, [1, 1], 2), 2, seed=0, alpha=1e-9)
    loose = study_of_cells(drawn(200, [2, 1], 1), drawn(200, [1, 1], 2), 2, seed=0, alpha=0.5)
    assert (strict.ndb, loose.ndb) == (0, 1)
    assert strict.table[0].low < loose.table[0].low < loose.table[0].high < strict.table[0].high
    assert md._z(0.05) == pytest.approx(1.959964, abs=1e-6)
    assert md._z(1e-30) > 11  # where 1 - alpha / 2 is 1


def test_divergence_is_scipys():
    jensenshannon = pytest.importorskip("scipy.spatial.distance").jensenshannon
    for i in range(20):
        p, q = rng(i, 1).dirichlet(np.ones(30)), rng(i, 2).dirichlet(np.ones(30))
        p[:9], q[5:12] = 0, 0  # empty in one, in the other, in both
        p, q = p / p.sum(), q / q.sum()
        assert md._js(p, q) == pytest.approx(jensenshannon(p, q) ** 2, rel=1e-10)


def test_all_images_in_one_cell_are_no_difference_and_in_two_all_of_it():
    ones = np.ones(50, int)
    assert study_of_cells(0 * ones, ones, 3, seed=0).js == pytest.approx(LN2, rel=1e-12)
    study = study_of_cells(ones, ones, 3, seed=0)
    assert (study.reached, study.ndb, study.ndb_p, study.js_null, study.js) == (1, 0, 1, 0, 0)
    assert study.effective_gen == 1
    mode = study.table[1]
    assert mode.low < 1 < mode.high


def test_the_order_of_the_rows_does_not_matter():
    features, _ = blobs(900, 4, 5, 1, apart=2.0)
    fit, real, gen = features[:300], features[300:600], 1.1 * features[600:]
    strict = {"alpha": 0.01, "permutations": 50}
    study = mode_study(fit, real, gen, 3, 8, **strict)
    shuffled = rng(1).permutation(real), rng(2).permutation(gen)
    assert study == mode_study(fit, *shuffled, 3, 8, **strict)
    centres = kmeans(fit, 8, 3)
    assert study == study_of_cells(assign(real, centres), assign(gen, centres), 8, 3, **strict)
    assert (study.alpha, study.permutations) == (0.01, 50)


def test_swapping_the_sets_turns_the_signs():
    real, gen = drawn(400, np.ones(6), 1), drawn(400, [1, 2, 1, 1, 3, 1], 2)
    one, other = study_of_cells(real, gen, 6, seed=0), study_of_cells(gen, real, 6, seed=0)
    assert (one.ndb, one.js) == (other.ndb, pytest.approx(other.js, rel=1e-12))
    for a, b in zip(one.table, other.table):
        assert (a.z, a.low) == (pytest.approx(-b.z), pytest.approx(1 / b.high, rel=1e-9))


def plain(thing):
    if isinstance(thing, dict):
        return all(type(key) is str and plain(value) for key, value in thing.items())
    if isinstance(thing, list):
        return all(map(plain, thing))
    return thing is None or type(thing) in (int, float)


def test_a_study_is_json():
    study = study_of_cells(np.array([0, 0, 1, 2]), np.array([1, 1, 1, 3]), 5, seed=0)
    as_dict = asdict(study)
    assert plain(as_dict)
    assert json.loads(json.dumps(as_dict, allow_nan=False)) == as_dict
    assert set(as_dict) == {field.name for field in fields(ModeStudy)}
    assert study.table[3].ratio is None
    assert study.table[3].high is None
    assert study.table[0].ratio == 0


def test_worst_modes():
    real = np.repeat(np.arange(5), [100, 100, 100, 100, 100])
    gen = np.repeat(np.arange(5), [160, 40, 0, 110, 190])
    study = study_of_cells(real, gen, 6, seed=0)
    # By |z|: none at all, then +90, -60, +60; cell 5 holds nothing and is never named.
    assert worst(study) == [2, 4, 1, 0, 3]
    assert worst(study, 2) == [2, 4]
    assert worst(study, 9) == [2, 4, 1, 0, 3]
    real, gen = np.repeat([0, 1, 2], [30, 50, 20]), np.repeat([0, 1, 2], [50, 30, 20])
    assert worst(study_of_cells(real, gen, 3, seed=0)) == [1, 0, 2]  # equal |z|: too few first


# --- the interval of a ratio


def most_likely_share(gen, n, real, m, ratio):
    """argmax of the two binomials' likelihood where P(gen) = ratio P(real), by a fine grid."""
    low, high = 1e-9, min(1, 1 / ratio) - 1e-9
    for _ in range(40):
        p = np.linspace(low, high, 101)
        likelihood = (
            gen * np.log(ratio * p)
            + (n - gen) * np.log1p(-ratio * p)
            + real * np.log(p)
            + (m - real) * np.log1p(-p)
        )
        best = likelihood.argmax()
        low, high = p[max(best - 1, 0)], p[min(best + 1, 100)]
    return (low + high) / 2


@pytest.mark.parametrize(
    ("gen", "n", "real", "m"),
    [
        *[(30, 100, 45, 100), (3, 50, 11, 80), (7, 40, 1, 40), (36, 40, 16, 80)],
        *[(1, 5000, 3000, 5000), (3000, 5000, 1, 5000)],
    ],
)
def test_interval_ends_where_chi_square_is_critical(gen, n, real, m):
    for limit in ratio_interval(np.array([gen]), n, np.array([real]), m):
        ratio = float(limit[0])
        p = most_likely_share(gen, n, real, m, ratio)
        chi = (gen - n * ratio * p) ** 2 / (n * ratio * p * (1 - ratio * p))
        chi += (real - m * p) ** 2 / (m * p * (1 - p))
        # Koopman's own form; the grid finds the maximum to half the digits of a float.
        assert chi == pytest.approx(1.959964**2, rel=1e-5)


def test_zero_counts_have_finite_limits():
    gen, real = np.array([0, 0, 5, 0, 100]), np.array([20, 200, 0, 0, 100])
    low, high = ratio_interval(gen, 500, real, 500)
    assert low[0] == low[1] == low[3] == 0
    assert 0 < high[1] < high[0] < 0.25
    assert high[2] == high[3] == math.inf
    assert low[2] > 1
    assert low[4] < 1 < high[4]


def test_interval_holds_one_where_ndb_sees_no_difference():
    gen, real = (side.ravel() for side in np.meshgrid(np.arange(61), np.arange(61)))
    keep = gen + real > 0
    gen, real = gen[keep], real[keep]
    low, high = ratio_interval(gen, 60, real, 60)
    different = np.abs(md._score(gen, 60, real, 60)) > md._z(0.05)
    np.testing.assert_array_equal((low > 1) | (high < 1), different)
    assert (low < high).all()


@pytest.mark.parametrize(
    ("n", "share", "ratio"),
    [(500, 0.01, 1), (500, 0.02, 0.25), (5000, 0.01, 0.1), (5000, 0.01, 3), (200, 0.5, 1.5)],
)
def test_interval_covers_the_ratio(n, share, ratio):
    gen = rng(n, 1).binomial(n, share * ratio, 4000)
    real = rng(n, 2).binomial(n, share, 4000)
    low, high = ratio_interval(gen, n, real, n)
    # Standard error .0034; counts below 10 are lumpy, hence the room on both sides.
    assert 0.93 < np.mean((low <= ratio) & (ratio <= high)) < 0.98
    # What "lost" rests on: an upper limit below the truth is rarer than in 1 of 40, about.
    assert np.mean(high < ratio) < 0.035


# --- chance, and what the permutations know of it


def test_null_of_the_permutations():
    found = studies(np.linspace(1, 3, 20), 500, 200)
    js_p = np.array([study.js_p for study in found])
    ndb_p = np.array([study.ndb_p for study in found])
    three_errors = 3 * math.sqrt(1 / 12 / len(found))
    # (permutations + 2) / 2 (permutations + 1) = .505 is the mean of an exact p-value.
    assert js_p.mean() == pytest.approx(0.505, abs=three_errors)
    # NDB is a whole number of cells; ties count as larger and move the mean up by half their share.
    _, times = np.unique([study.ndb for study in found], return_counts=True)
    ties = np.square(times / len(found)).sum()
    assert ndb_p.mean() == pytest.approx(0.505 + ties / 2, abs=three_errors)
    for p in (js_p, ndb_p):
        assert np.mean(p <= 0.05) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(found))
    outside = np.mean([not s.js_band[0] <= s.js <= s.js_band[1] for s in found])
    # 99 permutations give edges with an error of their own: 5 to 7 %, and 3 errors of 1.6 %.
    assert outside < 0.12
    assert np.mean(js_p < 0.5) > 0.35  # not all piled up on one side


@pytest.mark.parametrize(
    ("shares", "n"), [(np.ones(20), 1000), (np.ones(100), 5000), (np.linspace(1, 5, 100), 5000)]
)
def test_null_of_the_formulas(shares, n):
    found = studies(shares, n, 60, permutations=20)
    # sd of one JS is null * sqrt(2 / (k-1)): 4 % of the mean of 60 at k = 20.
    assert mean_of(found, "js") == pytest.approx(mean_of(found, "js_null"), rel=0.15)
    assert abs(mean_of(found, "js_above_null")) < 0.15 * mean_of(found, "js_null")
    # sd of one NDB/K is sqrt(.05 * .95 / k), so .0063 of this mean at k = 20.
    assert 0.03 < mean_of(found, "ndb") < 0.07
    assert mean_of(found, "ndb_null") == pytest.approx(0.05, abs=0.01)
    assert mean_of(found, "ndb_bonferroni") < 0.01
    assert mean_of(found, "lost") == 0


def test_few_images_a_cell_are_calibrated_by_permutation():
    found = studies(np.ones(100), 100, 60, permutations=50)
    # One image a cell and side: the normal z is too quiet, and its permutation mean says so.
    assert mean_of(found, "ndb_null") < 0.03
    # sd of a mean of 60: .0015.
    assert mean_of(found, "ndb") == pytest.approx(mean_of(found, "ndb_null"), abs=0.005)


def test_damage_has_small_p_values():
    for gen_shares in (HALF_AT_A_TENTH, np.linspace(1, 3, 10)):
        (study,) = studies(EQUAL, 2000, 1, gen_shares=gen_shares, permutations=999)
        assert study.ndb_p < 0.01
        assert study.js_p == 0.001  # the least that 999 permutations can say
        assert study.js > study.js_band[1] > study.js_band[0]


def test_power_grows_with_n():
    small, large = (
        mean_of(studies(EQUAL, n, 10, gen_shares=np.linspace(0.9, 1.1, 10)), "ndb")
        for n in (500, 50000)
    )
    assert large > 3 * small  # which is why NDB is compared at equal n only


def test_lost_modes_and_the_naive_count():
    shares = np.array([1.0] * 8 + [0.02] * 2)
    (study,) = studies(EQUAL, 5000, 1, gen_shares=shares)
    assert study.lost == 2
    assert study.hit == 10  # "10 of 10 covered", with two modes all but gone
    assert set(worst(study, 2)) == {8, 9}
    (gone,) = studies(EQUAL, 5000, 1, gen_shares=[1.0] * 8 + [0.0] * 2)
    assert (gone.lost, gone.hit) == (2, 8)
    (half,) = studies(EQUAL, 5000, 1, gen_shares=[1.0] * 8 + [0.5] * 2)
    assert half.lost == 0
    few = study_of_cells(np.repeat([0, 1], [8, 92]), np.repeat([0, 1], [1, 99]), 2, seed=0)
    assert few.table[0].ratio == 1 / 8
    assert (few.lost, few.hit) == (0, 2)  # too few images to call it lost


# --- images, by their pixels


def test_three_sets_of_digits_give_the_null(draw_digits):
    held_out, on_fit = [], []
    for i in range(16):
        fit, real, floor = (draw_digits(1000, EQUAL, 1000 + i, part) for part in range(3))
        centres = kmeans(fit, 50, seed=i)
        cells = [assign(part, centres) for part in (fit, real, floor)]
        held_out.append(study_of_cells(cells[1], cells[2], 50, i, permutations=50))
        on_fit.append(study_of_cells(cells[0], cells[2], 50, i, permutations=50))
    # sd of a mean of 16: .008.
    assert 0.02 < mean_of(held_out, "ndb") < 0.09
    # sd of a mean of 16: 5 %, and the formula is some percents low at 20 images a cell.
    assert mean_of(held_out, "js") == pytest.approx(mean_of(held_out, "js_null"), rel=0.15)
    # Cells follow the chance of the set they are fitted on, which so holds too little of it.
    assert mean_of(on_fit, "js") < 0.95 * mean_of(held_out, "js")
    assert mean_of(on_fit, "ndb") < 0.9 * mean_of(held_out, "ndb")
    assert mean_of(on_fit, "js_p") > mean_of(held_out, "js_p") + 0.1


def test_damaged_digits_are_seen_and_the_naive_count_is_not_moved(draw_digits):
    fit, real, floor = (draw_digits(4000, EQUAL, 77, part) for part in range(3))
    noise = rng(5).uniform(0, 16, (4000, 64))
    tenth = draw_digits(4000, HALF_AT_A_TENTH, 78)
    kinds = {"floor": floor, "noise": noise, "tenth": tenth}
    found = {name: mode_study(fit, real, gen, seed=0, k=20) for name, gen in kinds.items()}
    assert found["floor"].ndb <= 0.2  # 4 of 20; by chance in 1 of 60
    assert found["floor"].js_p > 0.01
    for name in ("noise", "tenth"):
        study = found[name]
        assert study.ndb > 0.4
        assert study.ndb_p == study.js_p == 0.001
        assert study.js > 10 * study.js_null
        assert study.hit >= 19  # of 20: what the naive count makes of noise
    assert found["floor"].hit == 20
    assert found["tenth"].effective_gen < 0.85 * found["tenth"].effective_real
