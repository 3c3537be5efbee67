"""Augmentation that adapts: neutral at p = 0, exact where it can be, without leaks."""

from __future__ import annotations

import math

import pytest
import torch

from dreamlib.gan import augment as ada
from dreamlib.gan.augment import Adaptive, Draw, colours, draw_maps, geometry, move, paint


def rng(key=0):
    return torch.Generator().manual_seed(key)


def augment(x, p, rng):
    return draw_maps(len(x), x.shape[1], x.shape[-1], p, rng)(x)


def randn(*shape, key=0):
    return torch.randn(*shape, generator=rng(key), dtype=torch.float64)


def only(x_scale=1.0, y_scale=1.0, angle=0.0, x=0.0, y=0.0):
    """One map of the plane: scaled, turned, then moved by shares of the image's side."""
    values = [torch.tensor([v], dtype=torch.float64) for v in (x_scale, y_scale, angle, x, y)]
    x_scale, y_scale, angle, x, y = values
    return ada._move(2 * x, 2 * y) @ ada._turn(angle) @ ada._scale(x_scale, y_scale)


# ------------------------------------------------------------------ neutral


@pytest.mark.parametrize("channels", [1, 3])
def test_p_of_zero_is_the_identity(channels):
    x = randn(4, channels, 8, 8)
    assert augment(x, 0.0, rng()) is x
    maps = colours(Draw(4, 0.0, rng()), channels)
    assert torch.equal(maps, torch.eye(channels, channels + 1).double().expand_as(maps))


def test_images_for_which_nothing_is_drawn_pass_bit_for_bit():
    x = torch.randn(64, 3, 8, 8, generator=rng())
    out = augment(x, 0.03, rng(1))
    same = (out == x).flatten(1).all(1)
    maps = geometry(Draw(64, 0.03, rng(1)), 8)
    still = (maps == torch.eye(3, dtype=torch.float64)).flatten(1).all(1)
    assert 20 < same.sum() < 64
    assert not (same & ~still).any()


def test_equal_generators_give_equal_draws_whatever_the_images_are():
    x = randn(8, 3, 8, 8)
    assert torch.equal(augment(x, 0.7, rng(3)), augment(x.clone(), 0.7, rng(3)))
    assert not torch.equal(augment(x, 0.7, rng(3)), augment(x, 0.7, rng(4)))


# ------------------------------------------------------------------ what the maps do


def test_flips_quarter_turns_and_whole_shifts_only_move_pixels():
    x = randn(1, 3, 8, 8)
    close = {"atol": 1e-12, "rtol": 0}
    torch.testing.assert_close(move(x, only(x_scale=-1)), x.flip(3), **close)
    torch.testing.assert_close(move(x, only(angle=math.pi)), x.flip(2, 3), **close)
    turned = move(x, only(angle=math.pi / 2))
    torch.testing.assert_close(turned, torch.rot90(x, -1, (2, 3)), **close)
    shifted = move(x, only(x=2 / 8, y=1 / 8))
    torch.testing.assert_close(shifted[:, :, 1:, 2:], x[:, :, :-1, :-2], **close)
    torch.testing.assert_close(shifted[:, :, 1:, :2], x[:, :, :-1, :2].flip(3), **close)  # mirrored


def test_a_larger_scale_makes_things_larger():
    x = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    x[:, :, 12:20, 12:20] = 1
    assert move(x, only(x_scale=2.0, y_scale=2.0)).sum() == pytest.approx(4 * 64, rel=0.05)


def test_brightness_contrast_and_luma_are_of_all_channels():
    x = randn(1, 3, 4, 4)
    identity = torch.eye(3, 4, dtype=torch.float64)[None]
    brighter = identity.clone()
    brighter[:, :, 3] = 0.3
    torch.testing.assert_close(paint(x, brighter), x + 0.3)
    torch.testing.assert_close(paint(x, 2 * identity), 2 * x)


def drawn_colours(images, channels=3, **neutral):
    """Colour maps at p = 1, with some strengths set to 0."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in neutral.items():
            patch.setattr(ada, name, value)
        return colours(Draw(images, 1.0, rng()), channels)


def test_hue_and_saturation_leave_grey_alone_and_luma_turns_it_round():
    maps = drawn_colours(400, BRIGHTNESS=0.0, CONTRAST=0.0)
    grey = torch.ones(3, dtype=torch.float64)
    out = maps[:, :, :3] @ grey
    signs = out.mean(1).round()
    torch.testing.assert_close(out, signs[:, None] * grey, atol=1e-12, rtol=0)
    assert 0.4 < (signs == -1).double().mean() < 0.6


def test_hue_keeps_lengths():
    maps = drawn_colours(50, BRIGHTNESS=0.0, CONTRAST=0.0, SATURATION=0.0)[:, :, :3]
    eye = torch.eye(3, dtype=torch.float64).expand(50, 3, 3)
    torch.testing.assert_close(maps @ maps.mT, eye, atol=1e-12, rtol=0)


def test_grey_images_get_what_the_grey_of_coloured_ones_gets():
    """The same draws: brightness, contrast and luma come before hue and saturation."""
    coloured, grey = (drawn_colours(50, channels=c) for c in (3, 1))
    luma = coloured[:, :, :3].sum(2).mean(1)
    torch.testing.assert_close(grey[:, 0, 0], luma)
    torch.testing.assert_close(grey[:, 0, 1], coloured[:, :, 3].mean(1))


# ------------------------------------------------------------------ derivatives


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_can_be_differentiated(channels):
    x = randn(6, channels, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, 0.8, rng(5)), (x,), fast_mode=True)


def test_every_transform_moves_the_gradient():
    """What augmentation does to images it does, transposed, to gradients: it is affine."""
    x, y = randn(8, 3, 8, 8).requires_grad_(), randn(8, 3, 8, 8, key=1)
    zero = augment(torch.zeros_like(y), 0.8, rng(5))
    out = augment(x, 0.8, rng(5))
    (gradient,) = torch.autograd.grad((out * y).sum(), x)
    left = ((out.detach() - zero) * y).sum((1, 2, 3))
    torch.testing.assert_close(left, (x.detach() * gradient).sum((1, 2, 3)))


# ------------------------------------------------------------------ leaks


def shares(p, what):
    """How often each of 0, 1, 2, 3 was drawn, of many."""
    draw = Draw(40_000, p, rng())
    count = {"flip": 2, "quarter": 4}[what]
    drawn = draw.sometimes((draw.uniform() * count).floor(), 0)
    return torch.bincount(drawn.long(), minlength=count).double() / len(drawn)


@pytest.mark.parametrize(("what", "count"), [("flip", 2), ("quarter", 4)])
def test_below_one_the_undisturbed_image_is_the_most_frequent(what, count):
    """Then the mixture of orientations can be undone, and the generator cannot gain by another.

    With shares q of a cyclic group, orientations of the data are mixed by a circulant matrix; it is
    invertible where no Fourier coefficient of q is zero.  They are 1 - p, but for the first.
    """
    q = shares(0.8, what)
    assert q[0] == pytest.approx(0.2 + 0.8 / count, abs=0.01)
    assert q[1:].tolist() == pytest.approx([0.8 / count] * (count - 1), abs=0.01)
    coefficients = torch.fft.fft(q).abs()
    assert coefficients[1:].tolist() == pytest.approx([0.2] * (count - 1), abs=0.02)
    assert torch.fft.fft(shares(1.0, what)).abs()[1:].max() < 0.02  # at one, they are lost


def test_each_transform_is_drawn_with_probability_p():
    """Of the turns before and after stretching, at least one with p: each with 1 - sqrt(1 - p)."""
    p, images = 0.3, 20_000
    maps = geometry(Draw(images, p, rng()), 64)
    still = (maps == torch.eye(3, dtype=torch.float64)).flatten(1).all(1).double().mean()
    # flip half of the time and a quarter turn three quarters of it change something, the whole
    # shift nearly always; scale, stretch and fraction always, and one of the turns with p.
    nothing = (1 - p / 2) * (1 - 3 * p / 4) * (1 - p) * (1 - p) * (1 - p) * (1 - p) * (1 - p)
    assert still == pytest.approx(nothing, abs=0.012)


def test_strengths_are_the_papers():
    draw = Draw(40_000, 1.0, rng())
    scales = draw.sometimes((draw.normal() * ada.SCALE).exp(), 1)
    assert scales.log2().std().item() == pytest.approx(0.2, rel=0.02)
    maps = drawn_colours(40_000, CONTRAST=0.0, channels=1)
    assert maps[:, 0, 1].abs().square().mean().sqrt().item() == pytest.approx(0.2, rel=0.02)
    maps = drawn_colours(40_000, BRIGHTNESS=0.0, channels=1)
    assert maps[:, 0, 0].abs().log2().std().item() == pytest.approx(0.5, rel=0.02)


# ------------------------------------------------------------------ adapting


def after(signs, batches=4, **settings):
    found = Adaptive(**settings)
    for _ in range(batches):
        found.update(signs * 32, 32)
    return found


def test_p_rises_when_the_discriminator_is_sure_and_falls_when_it_guesses():
    pace = 4 * 32 / 500_000
    assert after(0.9).p == pytest.approx(pace)
    assert after(0.9, batches=3).p == 0  # once in four batches
    assert after(0.9, p=0.5).p == pytest.approx(0.5 + pace)
    assert after(0.1, p=0.5).p == pytest.approx(0.5 - pace)
    assert after(0.6, p=0.5).p == 0.5
    assert after(0.1).p == 0  # not below
    assert after(1.0, p=1.0).p == 1


def test_p_crosses_its_range_in_so_many_images():
    found = Adaptive(images=3200)
    for _ in range(100):
        found.update(32.0, 32)
    assert found.p == pytest.approx(1)


def test_its_state_goes_on_where_it_was():
    one, two = after(0.9, batches=6), after(0.9, batches=3)
    again = Adaptive()
    again.load_state_dict(two.state_dict())
    for _ in range(3):
        again.update(0.9 * 32, 32)
    assert again == one
