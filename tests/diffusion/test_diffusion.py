"""Schedules, the forward process and its algebra, against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from dreamlib.diffusion import schedules as schedule
from dreamlib.diffusion.denoiser import Denoiser, Guided
from dreamlib.diffusion.forward_process import (
    conversion,
    eps_from_output,
    loss_weight,
    posterior,
    q_sample,
    x0_from_eps,
)


@pytest.fixture
def sched():
    return schedule.cosine(1000)


def draw(shape=(5, 3, 4, 4), seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng).clamp(-1, 1), torch.randn(shape, generator=rng)


def test_cosine_clips_as_the_recipe_says(sched):
    betas = torch.cat([1 - sched.alpha_bar[:1], 1 - sched.alpha_bar[1:] / sched.alpha_bar[:-1]])
    assert betas.min() == pytest.approx(1e-4)
    assert betas.max() == pytest.approx(0.9999)
    assert int((betas < 1.0000001e-4).sum()) == 13
    assert sched.alpha_bar.dtype == torch.float64


def test_a_schedule_is_a_float64_vector_that_falls_inside_0_and_1():
    for bad in ([0.5, 0.6], [0.5, 0.5], [1.0, 0.5], [0.5, 0.0]):
        with pytest.raises(ValueError, match="decrease"):
            schedule.Schedule(torch.tensor(bad, dtype=torch.float64))
    for bad in (torch.tensor([0.9, 0.5]), torch.tensor([[0.9], [0.5]], dtype=torch.float64)):
        with pytest.raises(ValueError, match="float64 vector"):
            schedule.Schedule(bad)


@pytest.mark.parametrize(
    ("kind", "median", "first", "last"),
    [  # of t/T; shares of the first and last tenth, from the laws' own distribution functions
        ("uniform", 0.5, 0.1, 0.1),
        ("logit_normal", 0.5, 0.0140, 0.0140),
    ],
)
def test_timesteps_follow_their_law(kind, median, first, last):
    n = 200_000
    t = schedule.draw_times(kind, 1000, n, torch.Generator().manual_seed(0))
    assert t.dtype == torch.int64
    assert int(t.min()) >= 0
    assert int(t.max()) < 1000
    shares = t.double() / 1000
    assert float(shares.median()) == pytest.approx(median, abs=0.005)
    for share, wanted in (((t < 100), first), ((t >= 900), last)):
        error = (wanted * (1 - wanted) / n) ** 0.5
        assert float(share.double().mean()) == pytest.approx(wanted, abs=4 * error)


def test_x0_and_eps_invert_each_other(sched):
    x0, eps = draw()
    t = torch.tensor([0, 10, 300, 600, 900])
    x_t = q_sample(sched, x0, t, eps)
    # at t = 900 a division by a = 0.15 enlarges float32's rounding
    assert_close(x0_from_eps(sched, x_t, t, eps), x0, rtol=0, atol=2e-5)
    assert_close(eps_from_output("x0", sched, x_t, t, x0), eps, rtol=0, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_timestep_has_its_noise_in_half_precision(sched, dtype):
    """1 - alpha_bar of a rounded alpha_bar would be 0 at the 21 lowest of 1000 timesteps."""
    t = torch.arange(len(sched))
    one, none = torch.ones(len(sched), 1, 1, 1, dtype=dtype), torch.zeros(1, dtype=dtype)
    x_t = q_sample(sched, one, t, none), q_sample(sched, none, t, one)
    exact = sched.alpha_bar.sqrt(), (1 - sched.alpha_bar).sqrt()
    for got, wanted in zip(x_t, exact):
        assert float((got.flatten().double() / wanted - 1).abs().max()) < 2**-8


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


TRUTH = {  # what a network of each kind is asked for
    "eps": lambda a, s, x0, eps: eps,
    "v": lambda a, s, x0, eps: a * eps - s * x0,
    "x0": lambda a, s, x0, eps: x0,
}


@pytest.mark.parametrize("prediction", TRUTH)
def test_outputs_are_read_as_the_noise_they_mean(sched, prediction):
    x0, eps = (x.double() for x in draw())
    t = torch.tensor([0, 10, 300, 600, 999])
    x_t = q_sample(sched, x0, t, eps)
    a, s = sched.signal_noise(t, torch.float64)
    output = TRUTH[prediction](a, s, x0, eps)
    assert_close(eps_from_output(prediction, sched, x_t, t, output), eps, rtol=0, atol=1e-9)
    p, q = conversion(prediction, sched, t, torch.float64)
    # at t = 999 the way back divides by a = 1.6e-5
    assert_close((eps - p * x_t) / q, output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction", TRUTH)
def test_weighted_error_in_eps_is_the_error_in_the_output(sched, prediction):
    """What each kind of network is trained on, through the same losses as any other."""
    x0, eps = (x.double() for x in draw())
    t = torch.tensor([5, 10, 300, 600, 900])
    x_t = q_sample(sched, x0, t, eps)
    answer = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2)).double()
    eps_hat = Denoiser(Constant(answer), sched, prediction)(x_t, t)
    in_eps = (eps_hat - eps).square().flatten(1).mean(1)
    a, s = sched.signal_noise(t, torch.float64)
    own = (answer - TRUTH[prediction](a, s, x0, eps)).square().flatten(1).mean(1)
    assert_close(loss_weight(prediction, sched, t).double() * in_eps, own, rtol=1e-5, atol=0)
    # min-SNR: the error in x0 times min(SNR, gamma), whatever the network predicts
    in_x0 = (x0_from_eps(sched, x_t, t, eps_hat) - x0).square().flatten(1).mean(1)
    snr = ((a / s) ** 2).flatten()
    assert float(snr.min()) < 5 < float(snr.max())
    weight = loss_weight(prediction, sched, t, min_snr=5.0).double()
    assert_close(weight * in_eps, snr.clamp(max=5) * in_x0, rtol=1e-5, atol=0)


def test_a_prediction_of_eps_is_left_as_it_is(sched):
    _, eps = draw()
    t = torch.tensor([5, 10, 300, 600, 900])
    assert torch.equal(Denoiser(Constant(eps), sched, "eps")(eps, t), eps)
    assert torch.equal(loss_weight("eps", sched, t), torch.ones(5))


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guidance_goes_from_the_unconditional_answer_through_the_labelled_one(sched, scale):
    told = torch.tensor([[2], [7]])

    class Net(torch.nn.Module):
        def forward(self, x, t, y):
            return y.view(-1, 1, 1, 1).float().expand_as(x)

    net = Guided(Denoiser(Net(), sched, "eps"), told, scale)
    answer = net(torch.zeros(2, 1, 1, 1), torch.tensor([5, 5])).flatten()
    assert answer.tolist() == [-1 + scale * 3, -1 + scale * 8]  # NO_LABEL is -1


class Constant(torch.nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x_t, t):
        return self.answer
