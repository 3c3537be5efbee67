"""Fréchet distance: closed forms, equal routes, other packages, floor, correction, error."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from dreamlib.errors import NotEnoughSamples
from dreamlib.metrics import frechet as fr
from dreamlib.metrics.frechet import (
    Moments,
    frechet,
    frechet_corrected,
    frechet_floor,
    frechet_from_moments,
    frechet_se,
)


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
    assert frechet_from_moments(a, b) == pytest.approx(want, rel=1e-10)


# Below d the textbook route itself carries the noise of its zero eigenvalues, root eps each.
@pytest.mark.parametrize(("n", "m", "rel"), [(20, 25, 1e-5), (20, 300, 1e-5), (200, 300, 1e-10)])
def test_all_routes_agree(n, m, rel):
    d = 40
    a, b = normal(n, d, 1, scale=1.5, shift=0.3), drawn(m, spectrum(d), 2)
    want = textbook(a, b)
    assert frechet(a, b) == pytest.approx(want, rel=rel)
    assert fr._frechet_low_rank(a, b) == pytest.approx(want, rel=rel)
    assert frechet_from_moments(Moments.of(a), Moments.of(b)) == pytest.approx(want, rel=rel)


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
    taken = []
    monkeypatch.setattr(fr, "_frechet_low_rank", lambda a, b: taken.append(len(a)) or 0.0)
    few, many = normal(9, 10, 1), normal(10, 10, 2)
    frechet(many, many)
    assert taken == []
    frechet(few, many)
    frechet(many, few)
    assert taken == [9, 10]


def test_degenerate_sets():
    constant, spread = np.full((30, 4), 2.0), normal(30, 4, 6)
    want = np.square(spread.mean(0) - 2).sum() + spread.var(0, ddof=1).sum()
    assert frechet(constant, spread) == pytest.approx(want, rel=1e-10)
    repeated = np.repeat(normal(5, 40, 7), 4, axis=0)
    assert frechet(repeated, repeated) == pytest.approx(0, abs=1e-8)
    # From n = d on the square route is taken, where each of 36 zero eigenvalues adds root eps.
    many = np.repeat(repeated, 4, axis=0)
    assert frechet(many, many) == pytest.approx(0, abs=1e-5)


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


def test_float32_features_are_summed_in_float64():
    x = normal(400, 8, 9, shift=100.0).astype(np.float32)
    y = normal(400, 8, 10, shift=100.0).astype(np.float32)
    assert frechet(x, y) == frechet(x.astype(np.float64), y.astype(np.float64))
    assert Moments.of(x).m2.dtype == np.float64


def test_wrong_features_are_refused():
    good = normal(5, 3, 0)
    bad = good.copy()
    bad[1, 2] = np.nan
    for wrong, message in [
        (bad, "1 of 5 feature rows"),
        (good[:, :2], "widths differ"),
        (good[:1], "at least 2 samples"),
        (good[0], r"floats \[n,d\]"),
        (np.ones((5, 3), np.uint8), r"floats \[n,d\]"),
    ]:
        for metric in (frechet, frechet_se, lambda a, b: frechet_corrected(a, b, seed=0)):
            with pytest.raises(ValueError, match=message):
                metric(wrong, good)
    with pytest.raises(ValueError, match="at least 2 samples"):
        _ = Moments.of(good[:1]).cov
    with pytest.raises(ValueError, match="widths differ"):
        Moments.of(good).merge(Moments.of(good[:, :2]))


@pytest.mark.parametrize(("d", "n", "repeats"), [(16, 1000, 60), (64, 2000, 30)])
def test_floor_is_what_a_perfect_generator_scores(d, n, repeats):
    values = spectrum(d)
    scores = [
        frechet(drawn(n, values, (i, 0)), drawn(2 * n, values, (i, 1))) for i in range(repeats)
    ]
    error = np.std(scores, ddof=1) / math.sqrt(repeats)
    floor = frechet_floor(values, n, 2 * n)
    # Three standard errors of the simulation, and 2 % for the terms beyond second order.
    assert np.mean(scores) == pytest.approx(floor, abs=3 * error + 0.02 * floor)
    assert error < 0.03 * floor


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


def test_correction_is_refused_below_its_validity():
    ok, few = normal(240, 100, 1), normal(239, 100, 2)
    assert np.isfinite(frechet_corrected(ok, ok, seed=0))
    with pytest.raises(NotEnoughSamples, match=r"halves 239 .* at least 120 in each half"):
        frechet_corrected(ok, few, seed=0)


def test_correction_is_keyed_by_its_seed():
    a, b = normal(100, 8, 1), normal(120, 8, 2)
    assert frechet_corrected(a, b, seed=3) == frechet_corrected(a, b, seed=3)
    flat = np.ones((100, 8))  # its halves are all alike, so that only the other side is seen
    for pair in ((a, flat), (flat, b)):
        assert frechet_corrected(*pair, seed=3) != frechet_corrected(*pair, seed=4)


def test_correction_removes_the_bias():
    d, n, repeats = 16, 300, 60
    values = spectrum(d)
    far = 1.5 * np.sqrt(values)
    truth = np.square(far).sum()  # equal covariances, so only the means count
    raw, corrected = [], []
    for i in range(repeats):
        gen, real = drawn(n, values, (i, 2)) + far, drawn(n, values, (i, 3))
        raw.append(frechet(gen, real) - truth)
        corrected.append(frechet_corrected(gen, real, seed=i) - truth)
    error = np.std(corrected, ddof=1) / math.sqrt(repeats)
    null = [
        frechet_corrected(drawn(n, values, (i, 4)), drawn(n, values, (i, 5)), seed=i)
        for i in range(repeats)
    ]
    assert abs(np.mean(corrected)) < 3 * error
    floor = frechet_floor(values, n, n)
    # At the null the raw value is the floor; what is left is of the next order in 1/n.
    assert abs(np.mean(null)) < 0.1 * floor
    assert min(null) < 0  # never clipped


def test_delta_error_matches_the_spread_over_repeats():
    d, n, repeats = 12, 300, 120
    pairs = [
        (normal(n, d, (i, 6), scale=1.3, shift=0.2), normal(2 * n, d, (i, 7)))
        for i in range(repeats)
    ]
    spread = np.std([frechet(*pair) for pair in pairs], ddof=1)
    estimate = np.mean([frechet_se(*pair) for pair in pairs[:20]])
    # The spread of 120 repeats is itself known to 6.5 %; 0.8 to 1.25 is three of these.
    assert 0.8 < estimate / spread < 1.25


def test_delta_error_sees_both_sides():
    gen, real = normal(300, 5, 1, scale=2.0), normal(300, 5, 2)
    both = frechet_se(gen, real)
    assert frechet_se(gen, np.tile(real, (100, 1))) < both
    assert frechet_se(np.tile(gen, (100, 1)), real) < both


def test_delta_error_bears_dead_features_and_collapse():
    gen, real = normal(200, 5, 1, scale=1.5), normal(200, 5, 2)
    dead = np.zeros((200, 2))
    wide = frechet_se(np.hstack([gen, dead]), np.hstack([real, dead]))
    assert wide == pytest.approx(frechet_se(gen, real), rel=1e-6)
    centred = real - real.mean(0)
    # Against a constant, FD is the mean square distance to it: its error is that of a mean.
    want = np.square(centred + real.mean(0) - 1.0).sum(1).std(ddof=1) / math.sqrt(200)
    assert frechet_se(np.ones((200, 5)), real) == pytest.approx(want, rel=0.02)


def test_delta_error_needs_more_samples_than_features():
    with pytest.raises(NotEnoughSamples, match="40 samples of 40 features"):
        frechet_se(normal(40, 40, 1), normal(90, 40, 2))


def test_parity_with_torch_fidelity():
    metric = pytest.importorskip("torch_fidelity.metric_fid")
    a, b = normal(300, 24, 1, scale=1.2), normal(250, 24, 2)
    stats = [metric.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    found = metric.fid_statistics_to_metric(*stats, False)
    (want,) = found.values()
    assert frechet(a, b) == pytest.approx(want, rel=1e-10)


def test_parity_with_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = normal(300, 24, 1, scale=1.2), normal(250, 24, 2)
    stats = [(torch.from_numpy(x.mean(0)), torch.from_numpy(np.cov(x.T))) for x in (a, b)]
    want = float(fid._compute_fid(*stats[0], *stats[1]))
    assert frechet(a, b) == pytest.approx(want, rel=1e-8)


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
def test_parity_with_clean_fid():
    scipy = pytest.importorskip("scipy")
    if tuple(map(int, scipy.__version__.split(".")[:2])) >= (1, 18):
        pytest.skip("clean-fid 0.1.35 unpacks a second value that scipy 1.18 no longer returns")
    fid = pytest.importorskip("cleanfid.fid")
    a, b = normal(300, 24, 1, scale=1.2), normal(250, 24, 2)
    assert frechet(a, b) == pytest.approx(fid.fid_from_feats(a, b), rel=1e-8)


def test_core_imports_no_optional_package():
    code = (
        "import sys, dreamlib.metrics.frechet, dreamlib.metrics.features;"
        "print([m for m in ('scipy','cleanfid','lpips','torchvision','torchmetrics',"
        "'torch_fidelity','matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
