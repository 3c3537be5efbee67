"""Samplers: exact denoisers, limits, and the algebra between them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from dreamlib.diffusion.forward_process import eps_from_output
from dreamlib.diffusion.samplers import ddim, ddpm, dpmpp_2m, spaced
from dreamlib.diffusion.schedules import cosine
from dreamlib.utils.rng import torch_rng

SCHED = cosine(200)


def gaussian_denoiser(mean: float, std: float):
    """The exact eps_hat for pixels x0 ~ N(mean, std^2): E[eps | x_t] in closed form."""

    def net(x_t, t):
        a, s = SCHED.signal_noise(t)
        x0_hat = mean + a * std**2 / (a**2 * std**2 + s**2) * (x_t - a * mean)
        return eps_from_output("x0", SCHED, x_t, t, x0_hat)

    return net


def run(sampler, net, x, steps, seed=0, **own):
    def noise(t):
        return torch.randn(x.shape, generator=torch_rng("test", seed, t))

    return list(sampler(net, SCHED, x, steps, noise, **own))


def start(n=4000, seed=0):
    return torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


def affine(mean, std, steps, eta):
    """What the exact denoiser makes of N(0, 1), by recursion over mean and standard deviation.

    With it every step is affine: x0_hat = k x + (1 - k a) mean.  Deterministic, plus sigma z.
    """
    m, sd = 0.0, 1.0
    for t, previous in pairwise([*spaced(SCHED, steps), -1]):
        bar, bar_prev = SCHED.bar(t), SCHED.bar(previous)
        a, s, a_prev = bar**0.5, (1 - bar) ** 0.5, bar_prev**0.5
        k = a * std**2 / (bar * std**2 + s**2)
        sigma = eta * ((1 - bar_prev) / (1 - bar) * (1 - bar / bar_prev)) ** 0.5
        left = max(1 - bar_prev - sigma**2, 0) ** 0.5
        x0 = k * m + (1 - k * a) * mean
        m = a_prev * x0 + left * (m - a * x0) / s
        sd = ((a_prev * k + left * (1 - a * k) / s) ** 2 * sd**2 + sigma**2) ** 0.5
    return m, sd


@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.2), (-0.5, 0.1), (0.0, 0.5), (0.8, 0.05)])
@pytest.mark.parametrize(
    ("sampler", "own", "eta"),
    [(ddpm, {}, 1), (ddim, {}, 0), (ddim, {"eta": 0.5}, 0.5), (dpmpp_2m, {}, None)],
)
def test_the_exact_gaussian_comes_back(sampler, own, eta, mean, std):
    begin = start()
    x = run(sampler, gaussian_denoiser(mean, std), begin, 200, clamp=False, **own)[-1].x_t
    if eta is None:  # second order: what 200 steps of it miss is below what is tolerated
        expected_mean, expected_std = mean, std
    else:
        expected_mean, expected_std = affine(mean, std, 200, eta)
        # the mean stays; first-order steps shrink the spread, by less the more and the wider it is
        assert abs(expected_mean - mean) < 0.002
        assert 1 - 2 / (200 * std) < expected_std / std <= 1
    # four standard errors of 16,000 values, and the last step's x0_hat, of an image with sd `std`
    # at noise s/a = 0.01, which has too little spread by (0.01 / std)^2 / 2
    least = (1 - SCHED.bar(0)) / SCHED.bar(0) / std**2 / 2
    assert float(x.mean()) == pytest.approx(expected_mean, abs=4 * std / 16_000**0.5)
    tolerance = 4 / 32_000**0.5 + (least if eta is None else 0)
    assert float(x.std()) == pytest.approx(expected_std, rel=tolerance)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_fresh_noise_leaves_the_exact_law(eta):
    """Linear in its noises, which are independent: each has a column of its own, and is 1 there.
    Second order: 200 steps keep the spread to a thousandth whatever is added on the way."""
    std, columns = 0.6, iter(torch.eye(202, dtype=torch.float64))

    def noise(t):
        return next(columns).view(1, 1, 1, -1)

    net = gaussian_denoiser(0.0, std)
    *_, last = dpmpp_2m(net, SCHED, noise(0), 200, noise, eta=eta, clamp=False)
    assert float(last.x_t.norm()) == pytest.approx(std, rel=2e-3)
    drawn = 202 - len(list(columns))
    assert drawn == (200 if eta else 1)  # the last step arrives at a clean image


def test_fresh_noise_drowns_the_errors_of_earlier_steps():
    """Half of the start's error is left by the flow of wide data, next to nothing by the SDE."""
    wrong = {}
    for eta in (0.0, 1.0):
        net, x = gaussian_denoiser(0.0, 1.0), torch.zeros(1, 1, 1, 2, dtype=torch.float64)
        x[..., 1] = 0.1
        nothing = torch.zeros_like(x)
        *_, last = dpmpp_2m(net, SCHED, x, 50, lambda t, nothing=nothing: nothing, eta=eta)
        wrong[eta] = float((last.x_t[..., 1] - last.x_t[..., 0]).abs().max())
    assert wrong[0.0] == pytest.approx(0.1, rel=0.05)
    assert wrong[1.0] < 0.002


def test_where_sampling_ends():
    thousand = cosine(1000)
    sigma = ((1 - thousand.alpha_bar) / thousand.alpha_bar).sqrt()
    for wanted in (0.02, 0.2, 0.4):
        taken = spaced(thousand, 25, "karras", wanted)
        assert float(sigma[taken[-1]]) == pytest.approx(wanted, rel=0.03)
        assert taken[0] == 992
    assert spaced(thousand, 25, "karras") == spaced(thousand, 25, "karras", 0.02)


def test_ddim_at_eta_1_is_ddpm():
    net, x = gaussian_denoiser(0.1, 0.3), start(20)
    for steps in (200, 25):
        ancestral = run(ddpm, net, x, steps)
        stochastic = run(ddim, net, x, steps, eta=1.0)
        assert_close(ancestral[-1].x_t, stochastic[-1].x_t, rtol=0, atol=2e-4)


def test_ddim_follows_the_probability_flow():
    """For Gaussian data the flow is linear, so the start's order survives to the end."""
    x = start(50)
    end = run(ddim, gaussian_denoiser(0.0, 0.2), x, 200)[-1].x_t
    order = torch.corrcoef(torch.stack([x.flatten(), end.flatten()]))[0, 1]
    assert float(order) > 0.999


def test_few_steps_start_where_there_is_signal():
    thousand = cosine(1000)
    few = spaced(thousand, 25)
    assert (len(few), few[-1], few[0]) == (25, 0, 992)
    assert float(thousand.alpha_bar[992].sqrt()) >= 0.01 > float(thousand.alpha_bar[993].sqrt())
    gaps = {a - b for a, b in pairwise(few)}
    assert gaps == {41, 42}
    assert spaced(thousand, 1000) == list(range(999, -1, -1))
    assert spaced(thousand, 993) == list(range(992, -1, -1))
    assert len(set(spaced(thousand, 997))) == 997
    assert spaced(thousand, 1) == [992]
    for bad in (0, 1001):
        with pytest.raises(ValueError, match=r"1\.\.1000 steps"):
            spaced(thousand, bad)


def test_few_steps_keep_the_strong_modes():
    """Images of one grey each: a mode of sd 0.2 * 16 pixels = 3.2; its spread must survive."""
    sched, std, pixels = cosine(1000), 0.2, 256

    def net(x_t, t):
        a, s = sched.signal_noise(t)
        level = x_t.mean(dim=(1, 2, 3), keepdim=True)  # sufficient: noise of variance s^2 / pixels
        x0_hat = a * std**2 / (a**2 * std**2 + s**2 / pixels) * level
        return (x_t - a * x0_hat) / s

    x = torch.randn(3000, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    end = list(ddim(net, sched, x, 25, lambda t: None))[-1].x_t
    # first-order steps of this length shrink it by about a tenth
    assert float(end.mean(dim=(1, 2, 3)).std()) == pytest.approx(0.9 * std, rel=0.04)


def test_temperature_zero_takes_the_noise_away():
    net, x = gaussian_denoiser(0.0, 0.3), start(8)
    cold = run(ddpm, net, x, 50, seed=1, temperature=0.0)[-1].x_t
    other = run(ddpm, net, x, 50, seed=2, temperature=0.0)[-1].x_t
    assert torch.equal(cold, other)


def test_every_step_is_yielded_with_its_clean_image():
    steps = run(ddim, gaussian_denoiser(0.0, 0.3), start(4), 10)
    assert [step.t for step in steps] == spaced(SCHED, 10)
    assert all(step.x0_hat.abs().max() <= 1 for step in steps)
    assert_close(steps[-1].x_t, steps[-1].x0_hat)


def test_spacings():
    thousand = cosine(1000)
    assert spaced(thousand, 4, "trailing") == [999, 749, 499, 249]
    assert spaced(thousand, 3, "trailing") == [999, 666, 332]
    quadratic = spaced(thousand, 20, "quadratic")
    assert (quadratic[0], quadratic[-1]) == (992, 0)
    assert quadratic[10] == round(992 * (9 / 19) ** 2)
    karras = spaced(thousand, 25, "karras")
    sigma = ((1 - thousand.alpha_bar) / thousand.alpha_bar).sqrt()[karras]
    assert float(sigma[-1]) == pytest.approx(0.02, rel=0.1)
    assert float(sigma[0]) <= 100
    for spacing in ("uniform", "quadratic", "karras", "trailing"):
        for steps in (1, 2, 3, 100, 700, 993, 994, 1000):
            chosen = spaced(thousand, steps, spacing)
            assert len(set(chosen)) == steps
            assert all(a > b for a, b in pairwise(chosen))
            assert 0 <= chosen[-1] <= chosen[0] <= 999


def test_second_order_needs_fewer_steps():
    """Distance from the probability flow's exact answer, std * start + mean, for Gaussian data."""
    mean, std, x = 0.1, 0.2, start(200).double()
    a, s = SCHED.alpha_bar[199].sqrt(), (1 - SCHED.alpha_bar[199]).sqrt()
    exact = mean + std * (x - a * mean) / (a**2 * std**2 + s**2).sqrt()

    def error(sampler, steps):
        last = run(sampler, gaussian_denoiser(mean, std), x, steps, clamp=False, spacing="trailing")
        return float((last[-1].x_t - exact).abs().mean())

    # the trailing spacing ends above t = 0, where this std's last bit of noise is taken in one go
    assert error(dpmpp_2m, 20) < 0.6 * error(ddim, 20)
    assert error(ddim, 100) < 0.4 * error(ddim, 20)


def test_fixed_large_adds_more_noise_than_the_posterior():
    net, x = gaussian_denoiser(0.0, 0.2), start()
    small, large = (run(ddpm, net, x, 20, variance=v)[-1].x_t for v in ("posterior", "fixed_large"))
    assert float(large.std()) > float(small.std())


def test_without_the_clamp_the_clean_image_may_leave_its_range():
    net, x = gaussian_denoiser(0.9, 0.5), start(50)
    assert run(ddim, net, x, 20)[-1].x_t.abs().max() <= 1
    assert run(ddim, net, x, 20, clamp=False)[-1].x_t.abs().max() > 1
