"""LPIPS is that of other packages; its mean over pairs knows how uncertain it is."""

import hashlib
import sys
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dreamlib.metrics.lpips import Lpips, pair_diversity
from dreamlib.utils.errors import Interrupted, NotEnoughSamples, WeightsUnavailable
from dreamlib.utils.rng import seeded
from tests.conftest import within

# ------------------------------------------------------------------- pair diversity


def faces(n, key):
    """Images that differ in brightness as a whole and in detail, as faces do."""
    rng = np.random.default_rng(key)
    levels = rng.normal(128, 35, (n, 1, 1, 1)) + rng.normal(0, 20, (n, 4, 4, 1))
    return levels.clip(0, 255).astype(np.uint8)


def stand_in(a, b):
    return np.sqrt(np.square(a.astype(float) - b).mean((1, 2, 3)))


def numbered(n):
    """Images that are their own number."""
    return np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1)


def pairs_met(n, seed, batch=7):
    met = []

    def record(a, b):
        met.extend(zip(a.ravel().tolist(), b.ravel().tolist()))
        return np.zeros(len(a))

    pair_diversity(numbered(n), record, seed, batch=batch)
    return met


@pytest.mark.parametrize("n", [4, 5, 40, 41])
def test_one_matching_meets_every_image_once(n):
    met = [image for pair in pairs_met(n, seed=0) for image in pair]
    assert len(met) == n - n % 2
    assert len(set(met)) == len(met)


def test_every_matching_is_equally_likely():
    seen = Counter(frozenset(map(frozenset, pairs_met(6, seed))) for seed in range(1500))
    assert len(seen) == 15  # of 6 images; 100 of each are expected, with a spread of 10
    assert min(seen.values()) > 55
    assert max(seen.values()) < 145
    left_out = {next(iter(set(range(5)) - set(np.ravel(pairs_met(5, s))))) for s in range(50)}
    assert left_out == set(range(5))


def test_pairs_are_keyed_by_the_seed_and_not_by_the_batch():
    assert pairs_met(40, 3) == pairs_met(40, 3, batch=100)
    assert pairs_met(40, 3) != pairs_met(40, 4)


def test_value_and_error_of_one_matching():
    images, met = numbered(20), np.array(pairs_met(20, seed=2))
    apart = np.abs(met[:, 0] - met[:, 1]).astype(float)
    found = pair_diversity(images, lambda a, b: np.abs(a - b.astype(float)).ravel(), seed=2)
    assert found.value == pytest.approx(apart.mean())
    assert found.se == pytest.approx(apart.std(ddof=1) / np.sqrt(10))
    assert "10 disjoint pairs" in found.method


# The spread of 1000 repeats is known to 2.2 %: 0.9 to 1.15 is four of these and more.
@pytest.mark.parametrize("n", [200, 60])
def test_error_matches_the_spread_over_repeats(n):
    found = [pair_diversity(faces(n, (i, n)), stand_in, i, batch=10**6) for i in range(1000)]
    spread = np.std([each.value for each in found], ddof=1)
    error = np.sqrt(np.mean([each.se**2 for each in found]))
    assert 0.9 < error / spread < 1.15


def test_thousands_of_pairs_of_few_images_pretend_to_be_certain():
    """7000 pairs drawn from 200 images: their sd / sqrt(7000) is no standard error."""
    values, naive = [], []
    for i in range(200):
        images, rng = faces(200, (i, 7)), np.random.default_rng(i)
        first = rng.integers(200, size=7000)
        second = (first + rng.integers(1, 200, size=7000)) % 200
        apart = stand_in(images[first], images[second])
        values.append(apart.mean())
        naive.append(apart.std(ddof=1) / np.sqrt(7000))
    assert np.std(values, ddof=1) > 4 * np.mean(naive)


def test_equal_images_have_no_diversity_and_no_error():
    images = np.full((10, 4, 4, 3), 7, np.uint8)
    found = pair_diversity(images, stand_in, 0)
    assert (found.value, found.se) == (0, 0)


def test_progress_and_a_request_to_stop():
    steps, calls = [], []

    def stop():
        calls.append(1)
        return len(calls) > 2

    def distance(a, b):
        return np.zeros(len(a))

    with pytest.raises(Interrupted, match="6 of 10 pairs"):
        within(
            pair_diversity,
            numbered(20),
            distance,
            0,
            batch=3,
            progress=lambda label, total: steps.append(total) or steps.append,
            should_stop=stop,
        )
    assert steps == [10, 3, 3]
    steps.clear()
    within(
        pair_diversity, numbered(20), distance, 0, batch=3, progress=lambda *opened: steps.append
    )
    assert steps == [3, 3, 3, 1]


def test_what_cannot_be_measured_is_refused():
    images = numbered(20)
    with pytest.raises(TypeError, match="uint8"):
        pair_diversity(images.astype(np.float32), stand_in, 0)
    with pytest.raises(TypeError, match="uint8"):
        pair_diversity(images[..., 0], stand_in, 0)
    with pytest.raises(NotEnoughSamples, match="got 3 images"):
        pair_diversity(images[:3], stand_in, 0)
    with pytest.raises(FloatingPointError):
        pair_diversity(images, lambda a, b: np.full(len(a), np.nan), 0)
    with pytest.raises(ValueError, match="one number per pair"):
        pair_diversity(images, lambda a, b: np.zeros((len(a), 1)), 0)


# ------------------------------------------------------------------------- LPIPS


def pictures(n, size, channels=3, key=0):
    return np.random.default_rng(key).integers(0, 256, (n, size, size, channels), np.uint8)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """Random convolutions of AlexNet's shapes, in torchvision's names."""
    pytest.importorskip("lpips")
    shapes = {
        0: (64, 3, 11),
        3: (192, 64, 5),
        6: (384, 192, 3),
        8: (256, 384, 3),
        10: (256, 256, 3),
    }
    generator, state = torch.Generator().manual_seed(0), {}
    for layer, (out, into, kernel) in shapes.items():
        weight = torch.randn(out, into, kernel, kernel, generator=generator)
        state[f"features.{layer}.weight"] = weight * (2 / (into * kernel**2)) ** 0.5
        state[f"features.{layer}.bias"] = 0.1 * torch.randn(out, generator=generator)
    state["classifier.1.weight"] = torch.zeros(2, 2)  # of no use here
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def lpips(trunk):
    return Lpips(trunk)


def others(trunk):
    """The networks of lpips and torchmetrics with the same trunk."""
    import lpips
    from torchmetrics.functional.image import lpips as torchmetrics

    state = torch.load(trunk, weights_only=True)
    slices = {"0": 1, "3": 2, "6": 3, "8": 4, "10": 5}
    renamed = {
        f"slice{slices[layer]}.{layer}.{kind}": value
        for name, value in state.items()
        for part, layer, kind in [name.split(".")]
        if part == "features"
    }
    with warnings.catch_warnings(), seeded("reference", 0):
        warnings.simplefilter("ignore")
        nets = [lpips.LPIPS(pnet_rand=True, verbose=False), torchmetrics._LPIPS(pnet_rand=True)]
    for net in nets:
        net.net.load_state_dict(renamed)
        net.eval()
    return nets


@pytest.mark.parametrize("size", [64, 80])
def test_parity_with_lpips_and_torchmetrics(trunk, lpips, size):
    pytest.importorskip("torchmetrics")
    a, b = pictures(3, size), pictures(3, size, key=1)
    found = lpips(a, b)
    assert found.shape == (3,)
    assert found.dtype == np.float64
    assert found.min() > 0.01
    x, y = (torch.from_numpy(each).permute(0, 3, 1, 2) / 255 for each in (a, b))
    for net in others(trunk):
        with torch.no_grad():
            want = net(x, y, normalize=True).flatten().double().numpy()
        # float32 through five layers; 2 x - 1 and v / 127.5 - 1 differ in the last bit.
        np.testing.assert_allclose(found, want, rtol=1e-5)


def test_a_distance(lpips):
    a, b = pictures(4, 64), pictures(4, 64, key=1)
    np.testing.assert_array_equal(lpips(a, a), 0)
    np.testing.assert_allclose(lpips(a, b), lpips(b, a), rtol=1e-6)
    np.testing.assert_allclose(lpips(a[:1], b[:1]), lpips(a, b)[:1], rtol=1e-5)
    found = pair_diversity(pictures(6, 64), lpips, seed=0)
    assert found.value > 0.01
    assert found.se > 0


def test_grey_images_become_rgb(lpips):
    a, b = pictures(2, 64, channels=1), pictures(2, 64, channels=1, key=1)
    wide = [each.repeat(3, axis=-1) for each in (a, b)]
    np.testing.assert_array_equal(lpips(a, b), lpips(*wide))


@pytest.mark.parametrize(("height", "width", "to"), [(16, 16, (64, 64)), (28, 42, (64, 96))])
def test_small_images_are_enlarged_by_the_stated_rule(lpips, height, width, to):
    shape = (2, height, width, 3)
    a, b = (np.random.default_rng(i).integers(0, 256, shape, np.uint8) for i in (0, 1))
    x, y = (torch.from_numpy(each).permute(0, 3, 1, 2) / 127.5 - 1 for each in (a, b))
    x, y = (F.interpolate(each, to, mode="bilinear", align_corners=False) for each in (x, y))
    with torch.no_grad():
        want = lpips.net(x, y).flatten().numpy()
    np.testing.assert_allclose(lpips(a, b), want, rtol=1e-6)
    assert lpips.net.net(x)[-1].shape[-1] >= 3  # the last map sees more than one place


def test_floats_and_other_shapes_are_refused(lpips):
    good = pictures(2, 64)
    for wrong in (good / np.float32(255), good.astype(int), good[0], pictures(2, 64, channels=4)):
        for pair in ((wrong, good), (good, wrong)):
            with pytest.raises(TypeError, match="LPIPS takes uint8"):
                lpips(*pair)
    with pytest.raises(ValueError, match="one shape"):
        lpips(good, good[:1])


def test_identity_names_net_version_weights_and_size(trunk, lpips):
    from importlib.metadata import version

    digest = hashlib.sha256(trunk.read_bytes()).hexdigest()[:12]
    assert lpips.identity == f"lpips-alex-{version('lpips')}-{digest}-min64"


def test_nothing_random_nothing_trained(trunk, lpips):
    before = torch.random.get_rng_state()
    again = Lpips(trunk)
    assert torch.equal(before, torch.random.get_rng_state())
    pair = pictures(2, 64), pictures(2, 64, key=1)
    np.testing.assert_array_equal(lpips(*pair), again(*pair))
    assert not again.net.training
    assert not any(weight.requires_grad for weight in again.net.parameters())


@pytest.mark.parametrize("wrong", ["vgg", "missing", "list", "text", "empty"])
def test_another_file_is_refused(trunk, tmp_path, wrong):
    path, state = tmp_path / "other.pth", torch.load(trunk, weights_only=True)
    if wrong == "vgg":
        state["features.0.weight"] = torch.zeros(64, 3, 3, 3)
    del state["features.10.bias" if wrong == "missing" else "classifier.1.weight"]
    torch.save([1, 2] if wrong == "list" else state, path)
    if wrong in ("text", "empty"):
        path.write_text("<html>" if wrong == "text" else "")
    with pytest.raises(WeightsUnavailable, match=r"other.pth .*alexnet-owt"):
        Lpips(path)


def test_without_lpips_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(WeightsUnavailable, match="pip install"):
        Lpips(tmp_path / "any.pth")
