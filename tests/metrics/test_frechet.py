"""Fréchet distance: closed forms, equal routes, stored moments, invariances, other packages."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import frechet_speed
from dreamlib.metrics import frechet as fr
from dreamlib.metrics.frechet import Few, Moments, frechet, summary


def normal(n, d, key, scale=1.0, shift=0.0):
    return shift + scale * np.random.default_rng(key).standard_normal((n, d))


def spectrum(d):
    """A power law, as image features have."""
    return 1.4 * np.arange(1, d + 1) ** -1.2


def drawn(n, values, key):
    return normal(n, len(values), key) * np.sqrt(values)


def textbook(a, b):
    """The definition, by the eigenvalues of the plain product S_a S_b."""
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).astype(complex)).real.sum()
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return shift + np.trace(cov_a) + np.trace(cov_b) - 2 * root


def test_closed_form_of_diagonal_gaussians():
    mean_a, mean_b = np.array([0.0, 1.0, -2.0]), np.array([0.5, 1.0, 1.0])
    var_a, var_b = np.array([1.0, 4.0, 0.25]), np.array([9.0, 1.0, 0.25])
    a = Moments(11, mean_a, np.diag(var_a) * 10)
    b = Moments(7, mean_b, np.diag(var_b) * 6)
    want = np.square(mean_a - mean_b).sum() + np.square(np.sqrt(var_a) - np.sqrt(var_b)).sum()
    assert frechet(a, b) == pytest.approx(want, rel=1e-10)


def by_symmetric_root(a, b):
    """Tr (S_b^.5 S_a S_b^.5)^.5 in full d x d, with no regard to rank."""
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(cov_b)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    overlap = np.linalg.eigvalsh(root @ cov_a @ root)
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    trace = np.trace(cov_a) + np.trace(cov_b)
    return shift + trace - 2 * np.sqrt(np.maximum(overlap, 0)).sum()


# Below d the textbook routes carry the noise of their zero eigenvalues, root eps each; ours none.
SIZES = [(20, 25, 1e-5), (20, 300, 1e-5), (300, 20, 1e-5), (40, 41, 1e-5), (200, 300, 1e-10)]


@pytest.mark.parametrize(("n", "m", "rel"), SIZES)
def test_all_routes_agree(n, m, rel):
    d = 40
    a, b = normal(n, d, 1, scale=1.5, shift=0.3), drawn(m, spectrum(d), 2)
    value = frechet(a, b)
    assert value == pytest.approx(textbook(a, b), rel=rel)
    assert value == pytest.approx(by_symmetric_root(a, b), rel=rel)
    # Our own forms agree to rounding whatever the rank.
    for side in (summary, Moments.of):
        for other in (summary, Moments.of):
            assert frechet(side(a), other(b)) == pytest.approx(value, rel=1e-11)


def test_every_factor_is_a_factor():
    few, many = drawn(20, spectrum(40), 1), drawn(200, spectrum(40), 2)
    dead = np.hstack([many, np.zeros((200, 3)), many[:, :2]])  # two features twice
    for features, rank in ((few, 19), (many, 40), (dead, 40)):
        kept = Moments.of(features)
        assert kept.factor.shape == (rank, features.shape[1])
        # Rounding of an eigenvalue or a pivot, in units of the largest variance.
        atol = 1e-13 * kept.cov.max()
        np.testing.assert_allclose(kept.factor.T @ kept.factor, kept.cov, rtol=0, atol=atol)
        assert kept.trace == pytest.approx(np.trace(kept.cov), rel=1e-14)
        assert kept.factor is kept.factor  # a reference pays once
        assert kept.eigenvalues.min() >= 0  # of zeros, half are below it by rounding
        np.testing.assert_allclose(
            kept.eigenvalues, np.linalg.eigvalsh(kept.cov), rtol=0, atol=1e-14 * kept.trace
        )
    rows = Few.of(few)
    np.testing.assert_allclose(rows.factor.T @ rows.factor, np.cov(few.T), rtol=0, atol=1e-14)
    assert rows.trace == pytest.approx(np.trace(np.cov(few.T)), rel=1e-12)


@pytest.mark.parametrize("n", [30, 200])
def test_invariances(n):
    d = 50
    a, b = normal(n, d, 3), normal(n + 10, d, 4, scale=1.3, shift=0.2)
    turn, _ = np.linalg.qr(normal(d, d, 5))
    value = frechet(a, b)
    assert frechet(a, a) == pytest.approx(0, abs=1e-8 * d)
    assert frechet(b, a) == pytest.approx(value, rel=1e-8)
    assert frechet(a @ turn, b @ turn) == pytest.approx(value, rel=1e-8)
    assert frechet(3 * a, 3 * b) == pytest.approx(9 * value, rel=1e-8)


def test_the_route_follows_the_smaller_set(monkeypatch):
    few, many = normal(9, 10, 1), normal(10, 10, 2)
    assert isinstance(summary(few), Few)
    assert isinstance(summary(many), Moments)

    def never(*_, **__):
        raise AssertionError("the slow way was taken")

    with monkeypatch.context() as patch:
        for name in ("eigh", "eigvalsh", "cholesky"):  # d x d, for few samples
            patch.setattr(fr.np.linalg, name, never)
        assert frechet(few, few + 1) == pytest.approx(10)
    full = normal(30, 10, 3)
    with monkeypatch.context() as patch:
        for name in ("eigh", "svd"):  # where a covariance has full rank
            patch.setattr(fr.np.linalg, name, never)
        assert frechet(full, full + 1) == pytest.approx(10)


def test_degenerate_sets():
    constant, spread = np.full((30, 4), 2.0), normal(30, 4, 6)
    want = np.square(spread.mean(0) - 2).sum() + spread.var(0, ddof=1).sum()
    assert frechet(constant, spread) == pytest.approx(want, rel=1e-10)
    repeated = np.repeat(normal(5, 40, 7), 4, axis=0)
    assert frechet(repeated, repeated) == pytest.approx(0, abs=1e-8)
    # 80 samples of 40 features, yet of rank 4: the other 36 directions add nothing.
    many = np.repeat(repeated, 4, axis=0)
    assert frechet(many, many) == pytest.approx(0, abs=1e-8)
    assert frechet(many, spread @ np.ones((4, 40))) > 1
    # Ten different samples of a hundred, against full rank: the value is that of the definition.
    ten, full = np.repeat(normal(10, 40, 8), 10, axis=0), normal(90, 40, 9)
    assert frechet(ten, full) == pytest.approx(by_symmetric_root(ten, full), rel=1e-5)
    assert frechet(ten, full) == pytest.approx(frechet(full, ten), rel=1e-12)


def test_merged_shards_equal_one_pass():
    # A mean far above the spread is where naive sums of squares lose their digits.
    x = normal(257, 12, 8, scale=0.5, shift=40.0)
    parts = [Moments.of(part) for part in (x[:1], x[1:70], x[70:71], x[71:])]
    merged = parts[0].merge(parts[1]).merge(parts[2].merge(parts[3]))
    whole = Moments.of(x)
    assert merged.n == whole.n
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.cov, whole.cov, atol=1e-12 * whole.cov.max())
    np.testing.assert_allclose(whole.cov, np.cov(x.T), rtol=1e-9, atol=1e-12)


def test_a_part_can_be_taken_out_again():
    x = normal(257, 12, 8, scale=0.5, shift=40.0)
    rest = Moments.of(x).without(Moments.of(x[100:150]))
    want = Moments.of(np.delete(x, slice(100, 150), axis=0))
    assert rest.n == want.n == 207
    np.testing.assert_allclose(rest.mean, want.mean, rtol=1e-13)
    np.testing.assert_allclose(rest.cov, want.cov, atol=1e-12 * want.cov.max())
    with pytest.raises(ValueError, match="257 samples cannot be taken out of 257"):
        Moments.of(x).without(Moments.of(x))


@pytest.mark.parametrize("n", [1, 999, 1000, 1001, 2500])
def test_moments_do_not_depend_on_the_blocks_of_their_sum(n):
    x = normal(n, 5, n, shift=3.0)
    found = Moments.of(x)
    centred = x - x.mean(0)
    # Rounding of a sum of n terms.
    np.testing.assert_allclose(found.m2, centred.T @ centred, rtol=0, atol=1e-12 * n)


def test_stored_moments():
    a, b = normal(90, 30, 1, scale=1.2), drawn(500, spectrum(30), 2)
    few = a[:12]
    mean, cov = b.mean(0), np.cov(b.T)
    for kept in (Moments.from_stats(mean, cov), Moments.from_stats(mean, cov, n=500)):
        for gen in (a, few):
            assert frechet(gen, kept) == pytest.approx(frechet(gen, b), rel=1e-11)
            assert frechet(kept, gen) == pytest.approx(frechet(gen, b), rel=1e-11)
        np.testing.assert_allclose(kept.eigenvalues, np.linalg.eigvalsh(cov), rtol=1e-10)
        assert kept.mean.shape == (30,)
    again = Moments.from_stats(mean, cov, n=500).merge(Moments.of(a))
    np.testing.assert_allclose(again.cov, np.cov(np.vstack([b, a]).T), rtol=1e-9, atol=1e-12)
    # Stored from fewer samples than features, or in float32, it may have no Cholesky factor.
    stored = Moments.from_stats(few.mean(0), np.cov(few.T))
    assert frechet(a, stored) == pytest.approx(frechet(a, few), rel=1e-11)
    rough = Moments.from_stats(few.mean(0).astype(np.float32), np.cov(few.T).astype(np.float32))
    assert frechet(a, rough) == pytest.approx(frechet(a, few), rel=1e-3)  # root of float32's eps


def test_wrong_stored_moments_are_refused():
    mean, cov = np.zeros(3), np.eye(3)
    skew = cov + np.triu(np.ones((3, 3)), 1)
    for arguments, message in [
        ((mean, cov[:2]), r"\[d\] and \[d,d\], got \(3,\) and \(2, 3\)"),
        ((cov, cov), r"\[d\] and \[d,d\]"),
        ((mean * np.nan, cov), "NaN"),
        ((mean, cov + np.inf), "NaN"),
        ((mean, skew), "not symmetric"),
        ((mean, cov * (1 + 1j)), "not complex ones"),
        ((mean, cov, 1), "at least 2 samples"),
    ]:
        with pytest.raises(ValueError, match=message):
            Moments.from_stats(*arguments)
    nameless, counted = Moments.from_stats(mean, cov), Moments.from_stats(mean, cov, n=10)
    for pair in ((nameless, counted), (counted, nameless)):
        with pytest.raises(ValueError, match="without their count"):
            pair[0].merge(pair[1])
        with pytest.raises(ValueError, match="without their count"):
            pair[0].without(pair[1])
    with pytest.raises(ValueError, match="not a covariance"):
        frechet(Moments.from_stats(mean, np.diag([1.0, 1.0, -0.1])), counted)
    with pytest.raises(ValueError, match="widths differ: 3 and 2"):
        frechet(nameless, normal(5, 2, 0))


def test_float32_features_are_summed_in_float64():
    x = normal(400, 8, 9, shift=100.0).astype(np.float32)
    y = normal(400, 8, 10, shift=100.0).astype(np.float32)
    assert frechet(x, y) == frechet(x.astype(np.float64), y.astype(np.float64))
    assert Moments.of(x).m2.dtype == np.float64


def wrong_features():
    """A good set of five samples; sets that do not go with it, and what is said of each."""
    good = normal(5, 3, 0)
    bad = good.copy()
    bad[1, 2] = np.nan
    return good, [
        (bad, "1 of 5 feature rows"),
        (good[:, :2], "widths differ"),
        (good[:1], "at least 2 samples"),
        (good[0], r"floats \[n,d\]"),
        (np.ones((5, 3), np.uint8), r"floats \[n,d\]"),
    ]


def test_wrong_features_are_refused():
    good, wrongs = wrong_features()
    for wrong, message in wrongs:
        for pair in ((wrong, good), (good, wrong)):
            with pytest.raises(ValueError, match=message):
                frechet(*pair)
    with pytest.raises(ValueError, match="at least 2 samples"):
        _ = Moments.of(good[:1]).cov
    with pytest.raises(ValueError, match="widths differ"):
        Moments.of(good).merge(Moments.of(good[:, :2]))


def torch_fidelitys(a, b):
    metric = pytest.importorskip("torch_fidelity.metric_fid")
    stats = [metric.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    (value,) = metric.fid_statistics_to_metric(*stats, False).values()
    return value


def torchmetrics(a, b):
    fid = pytest.importorskip("torchmetrics.image.fid")
    stats = [(torch.from_numpy(x.mean(0)), torch.from_numpy(np.cov(x.T))) for x in (a, b)]
    return float(fid._compute_fid(*stats[0], *stats[1]))


def clean_fids(a, b):
    scipy = pytest.importorskip("scipy")
    if tuple(map(int, scipy.__version__.split(".")[:2])) >= (1, 18):
        pytest.skip("clean-fid 0.1.35 unpacks a second value that scipy 1.18 no longer returns")
    return pytest.importorskip("cleanfid.fid").fid_from_feats(a, b)


def matrix_root_of_scipy(a, b):
    """As pytorch-fid computes it: the root of S_a S_b, its imaginary part dropped."""
    linalg = pytest.importorskip("scipy.linalg")
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = np.trace(linalg.sqrtm(cov_a @ cov_b)).real
    shift = np.square(a.mean(0) - b.mean(0)).sum()
    return shift + np.trace(cov_a) + np.trace(cov_b) - 2 * root


PACKAGES = [torch_fidelitys, torchmetrics, clean_fids, matrix_root_of_scipy]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(("n", "m"), [(300, 250), (15, 250), (15, 20)])
@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
def test_parity(package, n, m):
    """Both sides above d, one below, both below."""
    a, b = normal(n, 24, 1, scale=1.2), normal(m, 24, 2)
    # Rank-deficient, the other packages' own routes are off by root eps; else all is rounding.
    assert frechet(a, b) == pytest.approx(package(a, b), rel=1e-6 if n <= 24 else 1e-8)


def test_speed_and_digits_were_measured():
    """What the benchmark wrote: ratios to scipy's matrix root in the same round, and digits."""
    result = json.loads(Path(frechet_speed.__file__).with_suffix(".json").read_text())
    assert result["d"] == 2048
    routes = {each["n"]: each["routes"] for each in result["speed"]}

    def ratio(n, name):
        slow = routes[n]["sqrtm, from moments"]["seconds"]
        return np.median(np.divide(slow, routes[n][name]["seconds"]))

    assert ratio(500, "ours, from features") > 200
    assert ratio(5000, "ours, from moments, reference kept") > 10
    for n in (500, 5000):
        ours = [each["error"] for name, each in routes[n].items() if name.startswith("ours")]
        assert max(ours) < 1e-11
