"""Pixels: what set statistics show, exact neighbours, memorisation found, pairs and only pairs."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from dreamlib.metrics import pixel_stats as px
from dreamlib.metrics.pixel_stats import memorisation, nearest, pixel_stats
from dreamlib.utils.errors import Interrupted
from tests.conftest import within


def pictures(n, size=16, channels=3, key=0):
    """Smooth random images: noise of one to two pixels' reach over random brightness."""
    rng = np.random.default_rng(key)
    grain = rng.normal(size=(n, size + 1, size + 1, channels))
    smooth = grain[:, 1:, 1:] + grain[:, :-1, 1:] + grain[:, 1:, :-1] + grain[:, :-1, :-1]
    light = rng.normal(128, 25, (n, 1, 1, 1))
    return (light + 15 * smooth).clip(0, 255).round().astype(np.uint8)


def blurred(images):
    wide = images.astype(float)
    near = sum(np.roll(wide, step, axis) for step in (-1, 1) for axis in (1, 2))
    return ((wide + near) / 5).round().astype(np.uint8)


# ------------------------------------------------------------------ statistics of sets


def test_equal_sets_differ_in_nothing():
    images = pictures(40)
    stats = pixel_stats(images, images)
    assert set(stats) == {
        *(f"{kind}_{channel}" for kind in ("mean", "sd", "w1") for channel in "rgb"),
        *("mean_image_mse", "variance_image_mse", "log_spectrum"),
    }
    assert set(stats.values()) == {0.0}
    assert set(pixel_stats(images[..., :1], images[..., :1])) > {"mean_grey", "w1_grey"}


def test_a_perfect_generator_lies_among_its_floors():
    real = pictures(400, key=1)
    found, *floors = (pixel_stats(pictures(200, key=key), real) for key in range(2, 10))
    for name, value in found.items():
        # Eight draws of one law: the first is the farthest of all by a factor of 2 hardly ever.
        assert abs(value) < 2 * max(abs(floor[name]) for floor in floors), name
    assert found["log_spectrum"] < 0.05


def test_a_shift_of_brightness_shows_in_the_means():
    real = pictures(100).clip(10, 240)
    stats = pixel_stats(real + np.array([3, 0, 0], np.uint8), real)
    assert stats["mean_r"] == pytest.approx(3, abs=1e-9)
    assert stats["w1_r"] == pytest.approx(3, abs=1e-9)
    assert stats["mean_g"] == stats["w1_g"] == stats["sd_b"] == 0
    assert stats["sd_r"] == pytest.approx(0, abs=1e-9)
    assert stats["mean_image_mse"] == pytest.approx(9 / 3)  # one channel of three
    assert stats["variance_image_mse"] == pytest.approx(0, abs=1e-9)
    assert stats["log_spectrum"] == pytest.approx(0, abs=1e-9)  # which does not see brightness


def test_blur_and_contrast_show_in_the_spectrum():
    real = pictures(100)
    assert pixel_stats(blurred(real), real)["log_spectrum"] > 0.5
    assert pixel_stats(blurred(real), real)["mean_r"] == pytest.approx(0, abs=0.1)
    halved = (real // 2 + 64).astype(np.uint8)
    stats = pixel_stats(halved, real)
    # A quarter of the power in every ring; rounding down adds a little at the top.
    assert stats["log_spectrum"] == pytest.approx(math.log(4), rel=0.02)
    assert stats["sd_r"] == pytest.approx(-pixel_stats(real, halved)["sd_r"])
    assert stats["sd_r"] < -5


def test_collapse_shows_in_the_variance_image():
    real = pictures(100)
    collapsed = np.repeat(real[:1], 100, axis=0)
    variance = real.astype(float).var(axis=0, ddof=1)
    found = pixel_stats(collapsed, real)["variance_image_mse"]
    assert found == pytest.approx(np.square(variance).mean(), rel=1e-12)


def test_every_number_equals_its_definition(monkeypatch):
    """In small blocks, against the whole set at once in float64."""
    monkeypatch.setattr(px, "PIXELS", 7 * 16 * 12 * 3)
    a, b = pictures(30)[:, :, :12], pictures(25, key=1)[:, :, :12]
    stats = pixel_stats(a, b)
    x, y = a.astype(float), b.astype(float)
    for c, name in enumerate("rgb"):
        p, q = x[..., c], y[..., c]
        assert stats[f"mean_{name}"] == pytest.approx(p.mean() - q.mean())
        assert stats[f"sd_{name}"] == pytest.approx(p.std() - q.std())
        quantiles = (np.arange(30 * 25 * 192) + 0.5) / (30 * 25 * 192)  # both sizes divide it
        p, q = (np.sort(v.ravel())[(quantiles * v.size).astype(int)] for v in (p, q))
        assert stats[f"w1_{name}"] == pytest.approx(np.abs(p - q).mean())
    assert stats["mean_image_mse"] == pytest.approx(np.square(x.mean(0) - y.mean(0)).mean())
    variances = np.square(x.var(0, ddof=1) - y.var(0, ddof=1))
    assert stats["variance_image_mse"] == pytest.approx(variances.mean())
    logs = []
    for v in (x, y):
        power = (np.abs(np.fft.fft2(v, axes=(1, 2))) ** 2 / (16 * 12)).mean((0, 3))
        rings = [[] for _ in range(20)]
        for i, j in np.ndindex(16, 12):
            frequency = math.hypot(min(i, 16 - i) / 16, min(j, 12 - j) / 12)
            rings[round(12 * frequency)].append(power[i, j])
        logs.append(np.log([np.mean(ring) + 1 / 12 for ring in rings[1:7]]))
    assert stats["log_spectrum"] == pytest.approx(np.abs(logs[0] - logs[1]).mean())


def test_spectrum_of_noise_is_its_variance():
    noise = np.random.default_rng(0).integers(100, 156, (400, 16, 16, 1)).astype(np.uint8)
    # 400 x 256 uniform values know their variance to 0.3 %, a ring of 8 to 6 % / sqrt(8) at most.
    np.testing.assert_allclose(px._sums(noise).spectrum, (56**2 - 1) / 12, rtol=0.08)


def test_flat_images_have_a_spectrum_too():
    flat = np.full((4, 8, 8, 1), 9, np.uint8)
    assert pixel_stats(flat, flat)["log_spectrum"] == 0
    assert np.isfinite(list(pixel_stats(flat, pictures(4, 8, 1)).values())).all()


def test_a_memmap_gives_the_same(tmp_path):
    a, b = pictures(30), pictures(20, key=1)
    np.save(tmp_path / "a.npy", a)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert pixel_stats(mapped, b) == pixel_stats(a, b)
    for one, other in zip(nearest(b, mapped), nearest(b, a)):
        np.testing.assert_array_equal(one, other)


def test_wrong_sets_are_refused():
    good = pictures(4)
    for wrong in (good.astype(np.float32), good[0]):
        with pytest.raises(TypeError, match="uint8"):
            pixel_stats(wrong, good)
    with pytest.raises(ValueError, match="sizes differ"):
        pixel_stats(good, good[..., :1])
    for few in (good[:1], good[:0]):
        with pytest.raises(ValueError, match="2 images"):
            pixel_stats(good, few)
    with pytest.raises(ValueError, match="2 images"):
        pixel_stats(good[:, :1], good[:, :1])


# ------------------------------------------------------------------ nearest neighbours


def plain(queries, gallery):
    x, y = (v.reshape(len(v), -1).astype(float) for v in (queries, gallery))
    apart = np.sqrt(np.square(x[:, None] - y).sum(-1))
    return apart.min(1), apart.argmin(1)


@pytest.mark.parametrize("rows", [3, 10, 1000])
@pytest.mark.parametrize("kind", ["features", "images"])
def test_neighbours_are_the_nearest(monkeypatch, rows, kind):
    monkeypatch.setattr(px, "ROWS", rows)
    rng = np.random.default_rng(0)
    if kind == "images":
        queries, gallery = pictures(23), pictures(61, key=1)
    else:  # far from the origin, where float32 loses its digits
        queries, gallery = (1e4 + rng.normal(size=(n, 8)) for n in (23, 61))
    distances, indices = nearest(queries, gallery)
    want, where = plain(queries, gallery)
    np.testing.assert_array_equal(indices, where)
    np.testing.assert_allclose(distances, want, rtol=1e-12)
    assert (distances.dtype, indices.dtype) == (np.float64, np.int64)


@pytest.mark.parametrize("rows", [7, 10, 1000])
def test_equal_rows_are_at_zero_and_the_first_is_named(monkeypatch, rows):
    monkeypatch.setattr(px, "ROWS", rows)
    gallery = pictures(50)
    gallery[20:40] = gallery[:20]
    distances, indices = nearest(gallery, gallery)
    assert distances.tolist() == [0] * 50
    assert indices.tolist() == [*range(20), *range(20), *range(40, 50)]
    assert nearest(gallery[:5], gallery[2:3])[1].tolist() == [0] * 5


def test_float64_decides_between_near_ties():
    """Gallery rows so close to each other that float32 cannot order them."""
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(20, 500))
    pair = queries + 5 + 1e-7 * rng.normal(size=(20, 500))
    gallery = np.concatenate([queries + 5, pair])
    distances, indices = nearest(queries, gallery)
    want, where = plain(queries, gallery)
    assert 0 < (where < 20).sum() < 20
    np.testing.assert_array_equal(indices, where)
    np.testing.assert_array_equal(distances.argsort(), want.argsort())


def test_neighbours_report_and_stop(monkeypatch):
    monkeypatch.setattr(px, "ROWS", 20)
    steps, calls = [], []
    stop = lambda: calls.append(1) or len(calls) > 2  # noqa: E731

    def progress(label, total):
        steps.append(total)
        return steps.append

    with pytest.raises(Interrupted, match="40 of 50"):
        within(nearest, pictures(3), pictures(50), progress=progress, should_stop=stop)
    assert steps == [50, 20, 20]


def test_what_has_no_neighbour_is_refused():
    good = np.ones((5, 3))
    bad = good.copy()
    bad[2, 1] = np.nan
    for pair in ((bad, good), (good, bad)):
        with pytest.raises(ValueError, match="NaN"):
            nearest(*pair)
    with pytest.raises(ValueError, match="widths differ"):
        nearest(good, good[:, :2])
    for pair in ((good[:0], good), (good, good[:0])):
        with pytest.raises(ValueError, match="nothing to compare"):
            nearest(*pair)
    for wrong in (good.astype(int), np.ones((5, 2, 2, 1)), np.ones((5, 3), np.uint8)):
        with pytest.raises(TypeError, match="uint8 images"):
            nearest(wrong, wrong)
    with pytest.raises(TypeError, match="not both"):
        nearest(good, pictures(3))


# ------------------------------------------------------------------------ memorisation


def law(n, *key, d=6):
    return np.random.default_rng(key).normal(size=(n, d))


def test_copies_of_training_images_are_found():
    train, held_out = law(2000, 1), law(300, 2)
    found = memorisation(train[:300], train, held_out)
    assert found.share.value == 1
    assert (found.generated, found.ratio) == (0, 0)
    assert found.p_value < 1e-50
    assert found.closest == tuple((i, i) for i in range(8))
    almost = memorisation(train[:300] + 1e-3 * law(300, 3), train, held_out)
    assert almost.share.value > 0.95
    assert almost.ratio < 0.05


def test_a_few_copies_are_found_by_the_share_not_by_the_median():
    train = law(2000, 1)
    gen = law(500, 3)
    gen[100:150] = train[:50]
    found = memorisation(gen, train, law(500, 2))
    assert found.share.value > 0.1 - 1e-9
    assert found.share.value > found.null + 4 * found.share.se
    assert found.ratio == pytest.approx(1, abs=0.1)
    assert all(i - 100 == j for i, j in found.closest)


def test_blurred_copies_are_nearer_than_new_images():
    train, new = pictures(600), pictures(200, key=5)
    found = memorisation(blurred(train[:200]), train, new)
    assert found.share.value > 0.9
    assert found.ratio < 0.7
    assert sum(i == j for i, j in found.closest) == 8


def test_a_perfect_generator_gives_the_null():
    """Share 0.01 with the stated error, ratio 1, p-values uniform; the training set is fixed."""
    n, repeats = 199, 400
    train = law(300, 1, d=3)
    found = [memorisation(law(n, 2, i, d=3), train, law(n, 3, i, d=3)) for i in range(repeats)]
    assert found[0].null == 2 / 200
    shares = np.array([each.share.value for each in found])
    error = shares.std(ddof=1) / math.sqrt(repeats)
    assert abs(shares.mean() - 0.01) < 3 * error
    spread = math.sqrt(np.mean([each.share.se**2 for each in found]))
    assert 0.85 < spread / shares.std(ddof=1) < 1.2  # 400 repeats know it to about 5 %
    ratios = [each.ratio for each in found]
    assert np.mean(ratios) == pytest.approx(1, abs=0.02)
    below = np.mean([each.p_value < 0.1 for each in found])
    assert below == pytest.approx(0.1, abs=0.045)  # three standard errors


@pytest.mark.parametrize(("n", "null"), [(2, 1 / 3), (60, 1 / 61), (99, 1 / 100), (999, 10 / 1000)])
def test_the_null_share_is_exact_at_every_n(n, null):
    found = memorisation(law(n, 1), law(100, 2), law(n, 3))
    assert (found.null, found.n, found.n_train) == (null, n, 100)
    assert found.share.se > 0
    assert len(found.closest) == min(n, 8)
    json.dumps(asdict(found), allow_nan=False)  # plain numbers, that a record can hold


@pytest.mark.parametrize("shift", [-0.4, 0.0, 0.3])
def test_p_value_is_scipys(shift):
    stats = pytest.importorskip("scipy.stats")
    a, b = law(80, 1, d=1)[:, 0] + shift, law(120, 2, d=1)[:, 0]
    want = stats.mannwhitneyu(a, b, alternative="less", method="asymptotic").pvalue
    assert px._smaller(a, b) == pytest.approx(want, rel=1e-12)


def test_ties_make_the_p_value_cautious():
    assert px._smaller(np.zeros(50), np.zeros(50)) > 0.5
    assert px._smaller(np.array([0.0, 1, 1, 2]), np.array([1.0, 1, 2, 2])) > 0.1


def test_both_searches_are_told_apart():
    labels = []

    def progress(label, total):
        labels.append(label)
        return lambda count: None

    within(memorisation, law(20, 2), law(50, 1), law(20, 3), progress=progress)
    assert labels == [f"nearest neighbours of {kind} images" for kind in ("generated", "held-out")]


def test_memorisation_refuses_what_it_cannot_compare():
    train = law(50, 1)
    with pytest.raises(ValueError, match="as many of each"):
        memorisation(law(20, 2), train, law(21, 3))
    with pytest.raises(ValueError, match="are training images"):
        memorisation(law(20, 2), train, train[:20])
    with pytest.raises(ValueError, match="nothing to compare"):
        memorisation(train[:0], train, train[:0])
