"""Batches by step number."""

from collections import Counter

import numpy as np
import pytest
import torch

from dreamlib.data.loader import Stream
from dreamlib.utils.errors import DataError
from dreamlib.utils.images import dequantise

ROWS = np.array([2, 3, 5, 7, 11, 13, 17, 19, 23, 29])


@pytest.fixture
def images():
    """Thirty images of 4x4, each of which tells its own row number, asymmetric left to right."""
    images = np.zeros((30, 4, 4, 1), np.uint8)
    images[:, :, 0, 0] = np.arange(30)[:, None]
    return images


def seen(stream, steps):
    return np.concatenate([stream.rows_at(step) for step in steps])


def test_each_epoch_visits_each_row_once_in_a_new_order(images):
    stream = Stream(images, ROWS, batch=4, seed=0)
    order = seen(stream, range(15)).reshape(6, 10)  # 15 steps of 4 are 6 epochs of 10
    assert stream.epoch_steps == 2.5
    for epoch in order:
        assert sorted(epoch) == ROWS.tolist()
    assert len({tuple(epoch) for epoch in order}) == 6


def test_a_batch_larger_than_the_set_straddles_epochs(images):
    counts = Counter(seen(Stream(images, ROWS, batch=25, seed=0), [3]).tolist())
    assert set(counts) == set(ROWS.tolist())
    assert set(counts.values()) == {2, 3}  # two epochs and a half


def test_any_step_is_addressable(images):
    one = Stream(images, ROWS, batch=4, seed=3, flip=True)
    in_order = [one[step] for step in range(12)]
    for step in (11, 0, 7, 7, 2):
        assert torch.equal(one[step], in_order[step])
        assert torch.equal(Stream(images, ROWS, batch=4, seed=3, flip=True)[step], in_order[step])
    assert one[10**9].shape == (4, 1, 4, 4)


def test_batches_are_the_images_of_their_rows(images):
    stream = Stream(images, ROWS, batch=4, seed=0)
    assert torch.equal(stream[5], dequantise(images[stream.rows_at(5)]))
    assert stream[5].dtype == torch.float32


def test_seed_keys_the_order(images):
    one, other = (Stream(images, ROWS, batch=10, seed=seed) for seed in (0, 1))
    assert one.rows_at(0).tolist() != other.rows_at(0).tolist()


def test_flips_come_only_where_asked_and_leave_the_order_alone(images):
    plain = Stream(images, ROWS, batch=1000, seed=0)[0]
    flipped = Stream(images, ROWS, batch=1000, seed=0, flip=True)[0]
    kept = (flipped == plain).all(dim=3).all(dim=2)[:, 0]
    turned = (flipped == plain.flip(-1)).all(dim=3).all(dim=2)[:, 0]
    assert torch.equal(kept, ~turned)
    assert 421 < kept.sum() < 579  # 500 +- 5 standard deviations
    assert images[2, 0].ravel().tolist() == [2, 0, 0, 0]  # the set itself is left as it was


def test_flips_are_keyed_by_step(images):
    stream = Stream(np.repeat(images[29:], 30, 0), np.arange(30), batch=30, seed=0, flip=True)
    assert not torch.equal(stream[0], stream[1])


def test_nothing_to_train_on_is_an_error(images):
    with pytest.raises(DataError, match="no rows"):
        Stream(images, np.array([], int), batch=4, seed=0)
    with pytest.raises(IndexError):
        Stream(images, ROWS, batch=4, seed=0)[-1]


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)


def test_shifted_images_are_windows_of_their_mirrored_surroundings(pictures):
    plain = Stream(pictures, ROWS, batch=10, seed=0)
    moved = Stream(pictures, ROWS, batch=10, seed=0, shift=2)
    places = set()
    for step in range(6):
        for image, source in zip(moved[step], plain[step]):
            wide = torch.from_numpy(np.pad(source.numpy(), ((0, 0), (2, 2), (2, 2)), "reflect"))
            found = [
                (y, x)
                for y in range(5)
                for x in range(5)
                if torch.equal(image, wide[:, y : y + 8, x : x + 8])
            ]
            assert len(found) == 1
            places.add(found[0])
    assert len(places) > 15  # of 25, in 60 draws


def test_colour_changes_contrast_and_brightness_within_its_bounds(pictures):
    pictures = pictures // 4 + 96  # far from black and white: nothing is cut off
    plain = Stream(pictures, ROWS, batch=10, seed=0)
    changed = Stream(pictures, ROWS, batch=10, seed=0, colour=0.2)
    contrasts, shifts = [], []
    for image, source in zip(changed[3], plain[3]):
        contrast = float(image.std() / source.std())
        mean = source.mean()
        expected = (source - mean) * contrast + image.mean()
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)
        contrasts.append(contrast)
        shifts.append(float(image.mean() - mean))
    assert max(abs(c - 1) for c in contrasts) <= 0.2 + 1e-5
    assert max(map(abs, shifts)) <= 0.2 + 1e-5
    assert np.std(contrasts) > 0.05
    assert np.std(shifts) > 0.05


def test_changes_are_keyed_by_seed_and_step_and_stay_in_range(pictures):
    def make(seed):
        return Stream(pictures, ROWS, batch=10, seed=seed, flip=True, shift=1, colour=0.5)

    assert torch.equal(make(1)[7], make(1)[7])
    assert not torch.equal(make(1)[7], make(2)[7])
    assert float(make(1)[7].abs().max()) <= 1
    none = Stream(pictures, ROWS, batch=10, seed=1, shift=0, colour=0.0)
    assert torch.equal(none[7], Stream(pictures, ROWS, batch=10, seed=1)[7])


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_lie_in_memory_as_their_shape_says(channels):
    """Strides of [B,H,W,C] would make every convolution behind them work channels-last."""
    images = np.zeros((4, 8, 6, channels), np.uint8)
    stream = Stream(images, np.arange(4), 2, seed=0, flip=True)
    for batch in (dequantise(images), stream[0]):
        _, c, height, width = batch.shape
        assert batch.stride() == (c * height * width, height * width, width, 1)
        answer = torch.nn.Conv2d(c, 8, 3)(batch)
        assert answer.stride(1) == answer.shape[2] * answer.shape[3]
