"""Inception: its own network or none, clean resizing, and the same numbers as other packages."""

import hashlib
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamlib.metrics import inception as inc
from dreamlib.metrics.features import extract
from dreamlib.metrics.inception import InceptionExtractor
from dreamlib.utils.errors import WeightsUnavailable
from dreamlib.utils.files import sha256_file


def pictures(n, size, channels=3):
    return np.random.default_rng(size).integers(0, 256, (n, size, size, channels), np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A random network of the right shapes, under a test-only name that holds its own hash."""
    pytest.importorskip("cleanfid")
    state = inc._build().state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, value in state.items():
        if name.endswith(("num_batches_tracked", "running_mean", "bn.bias")):
            continue
        if name.endswith(("running_var", "bn.weight")):
            value.fill_(1.0)
        else:  # keeps the signal's size through the depth of the network
            fan_in = value[0].numel()
            value.copy_(torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5)
    folder = tmp_path_factory.mktemp("weights")
    path = folder / "plain.pth"
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.rename(folder / f"test_only_random-{digest[:8]}.pth")


def stand_in(known, path):
    """A known network whose file is this one."""
    return replace(known, filename=path.name, sha256=sha256_file(path))


@pytest.fixture(scope="module")
def extractor(weights):
    return InceptionExtractor(weights)


def test_another_network_is_refused(tmp_path):
    pytest.importorskip("cleanfid")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(WeightsUnavailable, match="does not hold Inception"):
        InceptionExtractor(tmp_path / "other.pth")


def test_without_clean_fid_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cleanfid", None)
    with pytest.raises(WeightsUnavailable, match="pip install"):
        InceptionExtractor(tmp_path / "any.pth")


@pytest.mark.parametrize("size", [16, 64, 299, 320])
def test_resize_is_clean_fids(size):
    resize = pytest.importorskip("cleanfid.resize").build_resizer("clean")
    images = pictures(2, size)
    want = np.stack([resize(image) for image in images])
    np.testing.assert_array_equal(inc.resize_clean(images), want)


def test_resize_keeps_fractions_and_repeats_grey():
    grey = pictures(1, 16, channels=1)
    resized = inc.resize_clean(grey)
    assert resized.shape == (1, 299, 299, 3)
    assert resized.dtype == np.float32
    assert (resized != np.round(resized)).mean() > 0.5
    np.testing.assert_array_equal(resized, inc.resize_clean(grey.repeat(3, axis=-1)))
    for wrong in (grey.astype(np.float32), grey[0], pictures(1, 16, channels=4)):
        with pytest.raises(TypeError, match="uint8"):
            inc.resize_clean(wrong)


def test_features_and_logits_equal_torch_fidelitys(weights, extractor):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    wanted = ["2048", "logits_unbiased"]
    other = module.FeatureExtractorInceptionV3(
        "reference", wanted, feature_extractor_weights_path=str(weights)
    )
    images = pictures(2, 299)  # 299 px, so that the two resizers have nothing to do
    features, logits = other(torch.from_numpy(images).permute(0, 3, 1, 2))
    own = extractor(images)
    assert own.shape == (2, 2048)
    assert features.std() > 0.01  # the random network says something
    torch.testing.assert_close(own, features, rtol=1e-5, atol=1e-5 * float(features.max()))
    found = extractor.logits(own.numpy())
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))


def test_logits_have_no_bias(weights, extractor):
    state = torch.load(weights, weights_only=True)
    features = np.random.default_rng(0).standard_normal((3, 2048))
    want = features @ state["fc.weight"].double().numpy().T
    np.testing.assert_allclose(extractor.logits(features), want, rtol=1e-12)
    assert state["fc.bias"].abs().max() > 0


def test_extracts_small_grey_images(weights, extractor):
    features = extract(pictures(2, 32, channels=1), extractor, batch=2)
    assert features.shape == (2, 2048)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert extractor.identity == f"inception-{digest[:12]}-clean"
