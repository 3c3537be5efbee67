"""Feature extraction: independent of the split, typed, finite, interruptible, cached by content."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from dreamlib.metrics.classifier import Classifier
from dreamlib.metrics.features import ClassifierExtractor, extract
from dreamlib.utils.errors import Interrupted
from dreamlib.utils.files import sha256_file
from dreamlib.utils.images import save_png
from dreamlib.utils.rng import seeded
from tests.conftest import within


def classifier(key=0, channels=3):
    with seeded("test classifier", key):
        return Classifier(channels, (4,))


def pictures(n, key=0, size=16, channels=3):
    return np.random.default_rng(key).integers(0, 256, (n, size, size, channels), np.uint8)


@pytest.fixture(scope="module")
def extractor():
    return ClassifierExtractor(classifier())


class Pooled:
    """A stand-in extractor: a fixed linear map and ReLU of 8 x 8 pooled pixels."""

    name, identity, dim = "pooled", "pooled-test", 32

    def __init__(self):
        self.calls = 0
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(192, self.dim, generator=generator) / 192

    def __call__(self, images):
        self.calls += 1
        pixels = torch.as_tensor(images).permute(0, 3, 1, 2).float()
        return (torch.nn.functional.adaptive_avg_pool2d(pixels, 8).flatten(1) @ self.weight).relu()


def test_shape_type_and_value(extractor):
    images = pictures(30)
    features = extract(images, extractor)
    assert features.shape == (30, 64)
    assert features.dtype == np.float64
    want = extractor.classifier.features(images).double().numpy()
    np.testing.assert_allclose(features, want, rtol=1e-5, atol=1e-6)


def test_split_does_not_change_a_bit(extractor):
    images = pictures(67)
    whole = extract(images, extractor, batch=16)
    for cut in (1, 7, 16, 50):
        parts = [extract(part, extractor, batch=16) for part in (images[:cut], images[cut:])]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert extract(images[:0], extractor).shape == (0, 64)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batch_size_changes_rounding_only(extractor, batch):
    images = pictures(20)
    np.testing.assert_allclose(
        extract(images, extractor, batch=batch), extract(images, extractor), rtol=1e-5, atol=1e-5
    )


def test_a_memmap_and_png_files_give_the_same_bits(extractor, tmp_path):
    images = pictures(9)
    want = extract(images, extractor)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    np.testing.assert_array_equal(extract(mapped, extractor), want)
    for i, image in enumerate(images):
        save_png(image, tmp_path / f"{i}.png")
    read = np.stack([np.asarray(Image.open(tmp_path / f"{i}.png")) for i in range(9)])
    np.testing.assert_array_equal(extract(read, extractor), want)


def test_only_uint8_images(extractor):
    images = pictures(3)
    for wrong in (images / np.float32(255), images.astype(np.int64), images[0]):
        with pytest.raises(TypeError, match="uint8"):
            extract(wrong, extractor)


def test_non_finite_features_are_an_error():
    net = classifier()
    net.trunk[6].weight.data[3] = float("nan")
    with pytest.raises(FloatingPointError, match=r"classifier-.*-native .* images 0 to 2"):
        extract(pictures(3), ClassifierExtractor(net))


def test_stops_between_batches_and_counts_every_image():
    pooled, seen = Pooled(), []
    with pytest.raises(Interrupted, match="20 of 35"):
        within(extract, pictures(35), pooled, batch=10, should_stop=lambda: pooled.calls == 2)
    within(extract, pictures(35), pooled, batch=10, progress=lambda label, total: seen.append)
    assert seen == [10, 10, 10, 5]


def test_identity_follows_the_weights(extractor):
    same, other = (ClassifierExtractor(classifier(key)) for key in (0, 1))
    assert same.identity == extractor.identity
    assert other.identity != extractor.identity
    assert extractor.identity.startswith("classifier-")
    assert extractor.identity.endswith("-native")


def test_precision_settings_are_restored():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    class Curious(Pooled):
        def __call__(self, images):
            self.inside = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
            return super().__call__(images)

    curious = Curious()
    torch.set_float32_matmul_precision("high")
    try:
        extract(pictures(3), curious)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before[0])
    assert curious.inside == ("highest", False)
    assert torch.backends.cudnn.allow_tf32 == before[1]


def test_cache_hits_by_content_and_misses_on_any_change(tmp_path):
    pooled, images = Pooled(), pictures(12)

    def calls(images):
        before = pooled.calls
        features = extract(images, pooled, cache=tmp_path)
        return pooled.calls - before, features

    first, kept = calls(images)
    second, again = calls(images.copy())
    assert (first, second) == (1, 0)
    assert again.dtype == np.float64
    np.testing.assert_array_equal(again, kept)
    changed = images.copy()
    changed[5, 3, 2, 1] ^= 1
    assert calls(changed)[0] == 1
    pooled.identity = "pooled-other"
    assert calls(images)[0] == 1
    assert len([*tmp_path.glob("features-*.npy")]) == 3


@pytest.mark.parametrize("file", ["npy", "short", "json", "no json", "half"])
def test_a_damaged_cache_is_not_believed(tmp_path, caplog, file):
    pooled, images = Pooled(), pictures(12)
    want = extract(images, pooled, cache=tmp_path)
    (path,) = tmp_path.glob("*.npy")
    if file == "npy":
        data = bytearray(path.read_bytes())
        data[-1] ^= 64
        path.write_bytes(data)
    elif file == "short":  # and vouched for, as versions did that lost a write's error
        path.write_bytes(path.read_bytes()[:-1])
        note = path.with_suffix(".json")
        note.write_text(json.dumps(json.loads(note.read_text()) | {"sha256": sha256_file(path)}))
    elif file == "json":
        note = path.with_suffix(".json")
        note.write_text(note.read_text().replace("pooled-test", "pooled-rest"))
    elif file == "no json":
        path.with_suffix(".json").write_text("{")
    else:
        path.with_suffix(".json").unlink()
    with caplog.at_level(logging.WARNING):
        again = extract(images, pooled, cache=tmp_path)
    assert pooled.calls == 2
    assert len(caplog.records) == (0 if file == "half" else 1)
    np.testing.assert_array_equal(again, want)
