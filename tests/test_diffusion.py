"""Schedules, the forward process and its algebra, against closed forms and diffusers."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from dreamlib.diffusion import schedule
from dreamlib.diffusion.prediction import Denoiser, loss_weight
from dreamlib.diffusion.process import (
    eps_from_v,
    eps_from_x0,
    posterior,
    q_sample,
    x0_from_eps,
)

diffusers = pytest.importorskip("diffusers")


@pytest.fixture
def sched():
    return schedule.cosine(1000)


def draw(shape=(5, 3, 4, 4), seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng).clamp(-1, 1), torch.randn(shape, generator=rng)


def test_linear_equals_diffusers():
    theirs = diffusers.DDPMScheduler(1000, 1e-4, 0.02, "linear").alphas_cumprod
    # theirs is a float32 product of 1000 factors
    assert_close(schedule.linear(1000).alpha_bar.float(), theirs, rtol=1e-4, atol=1e-7)


def test_cosine_equals_diffusers_inside_the_clips(sched):
    theirs = diffusers.DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").betas
    ours = 1 - sched.alpha_bar[1:] / sched.alpha_bar[:-1]
    # theirs is capped at 0.999 and has no lower clip: compare where neither clip bites
    assert_close(ours[50:990].float(), theirs[51:991], rtol=1e-3, atol=1e-7)


def test_cosine_clips_as_the_recipe_says(sched):
    betas = torch.cat([1 - sched.alpha_bar[:1], 1 - sched.alpha_bar[1:] / sched.alpha_bar[:-1]])
    assert betas.min() == pytest.approx(1e-4)
    assert betas.max() == pytest.approx(0.9999)
    assert int((betas < 1.0000001e-4).sum()) == 13
    assert sched.alpha_bar.dtype == torch.float64


@pytest.mark.parametrize("bad", [[0.5, 0.6], [0.5, 0.5], [1.0, 0.5], [0.5, 0.0]])
def test_a_schedule_must_fall_inside_0_and_1(bad):
    with pytest.raises(ValueError, match="decrease"):
        schedule.Schedule(torch.tensor(bad, dtype=torch.float64))


def test_x0_and_eps_invert_each_other(sched):
    x0, eps = draw()
    t = torch.tensor([0, 10, 300, 600, 900])
    x_t = q_sample(sched, x0, t, eps)
    # at t = 900 a division by a = 0.15 enlarges float32's rounding
    assert_close(x0_from_eps(sched, x_t, t, eps), x0, rtol=0, atol=2e-5)
    assert_close(eps_from_x0(sched, x_t, t, x0), eps, rtol=0, atol=2e-4)


def test_q_sample_equals_diffusers():
    x0, eps = draw()
    t = torch.tensor([0, 10, 300, 600, 999])
    theirs = diffusers.DDPMScheduler(1000, 1e-4, 0.02, "linear").add_noise(x0, eps, t)
    assert_close(q_sample(schedule.linear(1000), x0, t, eps), theirs, rtol=1e-4, atol=1e-5)


def test_posterior_is_bayes_rule(sched):
    """q(x_s | x_t, x0) from the product of two Gaussians, for neighbours and for leaps."""
    x0, x_t = draw()
    for t, previous in [(999, 998), (600, 599), (600, 400), (40, 0)]:
        mean, variance = posterior(sched, x0, x_t, t, previous)
        bar_t, bar_s = float(sched.alpha_bar[t]), float(sched.alpha_bar[previous])
        alpha = bar_t / bar_s
        precision = 1 / (1 - bar_s) + alpha / (1 - alpha)
        expected = (bar_s**0.5 * x0 / (1 - bar_s) + alpha**0.5 * x_t / (1 - alpha)) / precision
        assert variance == pytest.approx(1 / precision, rel=1e-9)
        assert_close(mean, expected, rtol=1e-4, atol=1e-5)


def test_the_last_step_arrives_at_x0(sched):
    x0, x_t = draw()
    mean, variance = posterior(sched, x0, x_t, 0, -1)
    assert variance == 0
    assert_close(mean, x0)


def test_eps_from_v_inverts_the_definition_of_v(sched):
    x0, eps = draw()
    t = torch.tensor([0, 10, 300, 600, 900])
    x_t = q_sample(sched, x0, t, eps)
    a, s = sched.signal_noise(t)
    v = a * eps - s * x0
    assert_close(eps_from_v(sched, x_t, t, v), eps, rtol=0, atol=1e-6)
    theirs = diffusers.DDPMScheduler(1000, trained_betas=betas_of(sched).numpy())
    assert_close(theirs.get_velocity(x0, eps, t), v, rtol=1e-3, atol=1e-4)


def betas_of(sched):
    return torch.cat([1 - sched.alpha_bar[:1], 1 - sched.alpha_bar[1:] / sched.alpha_bar[:-1]])


def test_weighted_error_in_eps_is_the_error_in_v(sched):
    """What a network that predicts v is trained on, through the same losses as any other."""
    x0, eps = draw()
    t = torch.tensor([5, 10, 300, 600, 900])
    x_t = q_sample(sched, x0, t, eps)
    answer = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
    in_eps = (Denoiser(Constant(answer), sched, "v")(x_t, t) - eps).square().flatten(1).mean(1)
    a, s = sched.signal_noise(t)
    in_v = (answer - (a * eps - s * x0)).square().flatten(1).mean(1)
    assert_close(loss_weight(sched, "v", t) * in_eps, in_v, rtol=1e-4, atol=1e-6)
    assert torch.equal(Denoiser(Constant(eps), sched, "eps")(x_t, t), eps)
    assert torch.equal(loss_weight(sched, "eps", t), torch.ones(5))


class Constant(torch.nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x_t, t):
        return self.answer
