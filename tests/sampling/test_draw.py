"""A seed names an image: the same bytes for any split of the work."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from dreamlib.diffusion.samplers import ddim, ddpm
from dreamlib.diffusion.sampling import draw_images, image_noise, interpolate, slerp
from dreamlib.diffusion.schedules import cosine
from dreamlib.diffusion.unet import UNet
from dreamlib.utils.batches import batches
from dreamlib.utils.errors import Interrupted
from dreamlib.utils.rng import mix, mix_each
from tests.conftest import within

SCHED = cosine(30)
SHAPE = (3, 16, 16)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    net = UNet(size=16, channels=3, widths=(16, 32), blocks=1, attention=(8,), heads=2).eval()
    torch.nn.init.normal_(net.head.weight, std=0.05)  # zero weights would hide any difference
    return net


def sampler(kind):
    def bound(net, sched, x, noise):
        return kind(net, sched, x, 6, noise)

    return bound


HOW = {"seed": 5, "shape": SHAPE, "batch": 8, "device": torch.device("cpu")}


def draw(net, kind, images):
    return draw_images(net, SCHED, sampler(kind), images, **HOW)


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [ddpm, partial(ddim, eta=0.0), partial(ddim, eta=0.7)])
def test_one_by_one_in_threes_and_all_at_once(net, kind, threads):
    torch.set_num_threads(threads)
    together = draw(net, kind, range(10))
    single = np.concatenate([draw(net, kind, [i]) for i in range(10)])
    threes = np.concatenate([draw(net, kind, range(i, min(i + 3, 10))) for i in range(0, 10, 3)])
    mixed = draw(net, kind, [9, 2, 2, 30, 7])
    assert together.dtype == np.uint8
    assert together.shape == (10, 16, 16, 3)
    assert np.array_equal(together, single)
    assert np.array_equal(together, threes)
    assert np.array_equal(mixed[[0, 1, 2, 4]], together[[9, 2, 2, 7]])


def test_images_are_the_same_by_any_number_of_threads_and_in_larger_batches(net):
    """The parts of a batch are fixed; a network's rows do not know how many there are."""
    found = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found.append(draw_images(net, SCHED, sampler(ddpm), range(70), **HOW | {"batch": 100}))
        assert torch.get_num_threads() == threads
    assert all(np.array_equal(found[0], other) for other in found[1:])
    few = draw_images(net, SCHED, sampler(ddpm), [65, 3], **HOW | {"batch": 100})
    assert np.array_equal(few, found[0][[65, 3]])


def test_images_differ_from_each_other_and_between_seeds(net):
    images = draw(net, ddim, range(4))
    assert len({image.tobytes() for image in images}) == 4
    noise = [image_noise(seed, [0], SHAPE, 3, torch.device("cpu")) for seed in (0, 1)]
    assert not torch.equal(*noise)


def test_an_image_always_sits_in_the_same_row():
    dealt = batches([0, 9, 1, 8, 16, 3], 8)
    for slots in dealt:
        assert len(slots) == 8
        assert all(image is None or image % 8 == row for row, image in enumerate(slots))
    assert sorted(i for slots in dealt for i in slots if i is not None) == [0, 1, 3, 8, 9, 16]
    assert len(dealt) == 3  # 0, 8 and 16 share a row


def test_noise_is_standard_normal_and_keyed():
    noise = image_noise(0, list(range(200)), SHAPE, 7, torch.device("cpu"))
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(1, abs=0.01)
    again = image_noise(0, [None, 5], SHAPE, 7, torch.device("cpu"))
    assert torch.equal(again[1], noise[5])
    assert not again[0].any()


def test_fifty_thousand_images_begin_from_noise_of_their_own():
    """A generator takes 32 bits of its seed: 0.3 pairs are alike among so many images."""
    seeds = np.array(mix_each("image", 0, range(50_000), 1000))
    assert len(np.unique(seeds & 0xFFFFFFFF)) == 50_000
    twins = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5 + 2**32)
    assert torch.equal(*(torch.randn(16, generator=rng) for rng in twins))  # else there are 63


def test_should_stop_is_heard(net):
    with pytest.raises(Interrupted):
        within(draw, net, ddim, range(4), should_stop=lambda: True)


def test_interpolation_begins_and_ends_at_the_seeds_own_images(net):
    frames = interpolate(net, SCHED, sampler(ddim), (2, 7), 11, **HOW)
    ends = draw(net, ddim, [2, 7])
    # the ends sit in other rows of the batch than `draw` gives them: one level of rounding
    assert np.abs(frames[[0, -1]].astype(int) - ends).max() <= 1
    steps = np.abs(np.diff(frames.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert steps.max() < np.abs(ends[0].astype(int) - ends[1]).mean()
    with pytest.raises(ValueError, match="deterministic"):
        interpolate(net, SCHED, sampler(ddpm), (2, 7), 3, **HOW)


def test_slerp_keeps_the_norm():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 32, 32, generator=rng)
    half = slerp(a, b, 0.5)
    assert float(half.norm()) == pytest.approx(float(a.norm()), rel=0.03)
    assert torch.allclose(slerp(a, b, 0.0), a, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**40])
@pytest.mark.parametrize("images", [[], [0], [*range(20), 123_456, 2**32 - 1], [*range(20), 2**33]])
def test_seeds_of_a_batch_are_the_seeds_of_its_images(seed, images):
    for t in (0, 1, 1000):
        assert mix_each("image", seed, images, t) == [mix("image", seed, i, t) for i in images]
