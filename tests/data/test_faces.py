"""The drawn faces: who they are, that they stay the same, and that their labels are visible."""

import hashlib

import numpy as np
import pytest

from dreamlib.data.faces import ATTRIBUTES, BLOCK, SHARES, draw_faces, faces_source
from dreamlib.utils.errors import DataError


def test_a_face_depends_on_its_number_and_seed_alone():
    images, labels = draw_faces(range(3 * BLOCK), size=16, seed=5)
    scattered = np.array([150, 3, BLOCK, 3, BLOCK - 1])
    again, again_labels = draw_faces(scattered, size=16, seed=5)
    np.testing.assert_array_equal(again, images[scattered])
    np.testing.assert_array_equal(again_labels, labels[scattered])
    alone, _ = draw_faces([150], size=16, seed=5)
    np.testing.assert_array_equal(alone[0], images[150])


def test_another_seed_draws_other_people():
    assert (draw_faces(range(64), seed=0)[1] != draw_faces(range(64), seed=1)[1]).any(axis=1).all()


def test_every_size_draws_the_same_person():
    small, labels = draw_faces(range(20), size=16)
    large, labels_large = draw_faces(range(20), size=64)
    np.testing.assert_array_equal(labels, labels_large)
    shrunk = large.reshape(20, 16, 4, 16, 4, 3).mean(axis=(2, 4))
    # Both average the same shapes; only the anti-aliasing of edges differs.
    assert np.abs(shrunk - small).mean() < 2
    assert np.abs(shrunk - np.roll(small, 1, axis=0)).mean() > 20  # another person is far away


def test_bytes_are_the_same_on_every_machine():
    """A golden hash: whoever changes the drawing on purpose raises DRAWING and this value."""
    images, labels = draw_faces(range(100), size=16, seed=0)
    digest = hashlib.sha256(images.tobytes() + labels.astype("<i2").tobytes()).hexdigest()
    assert digest[:16] == "7f693c07e9996056"


def test_shares_of_the_values_are_as_declared():
    labels = draw_faces(range(4096), size=16)[1]
    for column, shares in zip(labels.T, SHARES.values()):
        assert sum(shares.values()) == pytest.approx(1)
        assert min(shares.values()) >= 0.12
        found = np.bincount(column, minlength=len(shares)) / len(labels)
        # 5 standard errors of a share near 1/2 among 4,096
        np.testing.assert_allclose(found, list(shares.values()), atol=5 * 0.5 / 64)


def test_attributes_are_independent():
    labels = draw_faces(range(4096), size=16)[1]
    for i in range(labels.shape[1]):
        for j in range(i):
            table = np.zeros([len(v) for v in (list(SHARES.values())[k] for k in (i, j))])
            np.add.at(table, (labels[:, i], labels[:, j]), 1)
            expected = table.sum(1, keepdims=True) * table.sum(0) / len(labels)
            chi2, freedom = ((table - expected) ** 2 / expected).sum(), (np.array(table.shape) - 1)
            # mean k, variance 2k: 6 standard deviations hold for all 21 pairs
            assert chi2 < freedom.prod() + 6 * np.sqrt(2 * freedom.prod())


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_label_is_visible_in_the_pixels(attribute):
    """A linear reading of 16x16 pixels finds every attribute; a guess finds at most about half."""
    images, labels = draw_faces(range(3000), size=16)
    column = labels[:, list(ATTRIBUTES).index(attribute)]
    pixels = images.reshape(3000, -1) / 255.0
    pixels = np.hstack([pixels, np.ones((3000, 1))])
    targets = np.eye(len(ATTRIBUTES[attribute]))[column]
    fit, test = slice(0, 2500), slice(2500, 3000)
    ridge = pixels[fit].T @ pixels[fit] + np.eye(pixels.shape[1])
    weights = np.linalg.solve(ridge, pixels[fit].T @ targets[fit])
    found = (pixels[test] @ weights).argmax(1)
    assert (found == column[test]).mean() > 0.9


def test_splits_are_disjoint_and_in_order():
    source = faces_source(size=16, n_train=100, n_reference=30, n_floor=20, seed=2)
    items = list(source.open().items(0))
    assert len(items) == source.open().count == 150
    assert [i.split for i in items] == ["train"] * 100 + ["reference"] * 30 + ["floor"] * 20
    assert len({item.name for item in items}) == 150
    images, labels = draw_faces(range(150), seed=2)
    np.testing.assert_array_equal(np.stack([item.image for item in items]), images)
    assert [item.labels for item in items] == [tuple(row) for row in labels]


def test_too_small_a_size_is_refused():
    with pytest.raises(DataError, match="16 pixels"):
        draw_faces([0], size=8)
