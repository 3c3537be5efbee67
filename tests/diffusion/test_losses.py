"""The DREAM family: identities, limits, estimators."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from dreamlib.diffusion import losses as dream
from dreamlib.diffusion.denoiser import Denoiser
from dreamlib.diffusion.forward_process import conversion, q_sample, x0_from_eps
from dreamlib.diffusion.losses import (
    Batch,
    Conservative,
    MixFlow,
    Paper,
    Perturb,
    Reflex,
    standard,
)
from dreamlib.diffusion.samplers import ddim
from dreamlib.diffusion.schedules import cosine, flow
from dreamlib.diffusion.unet import UNet

SCHED = cosine(100)
PREDICTIONS = ("eps", "v", "x0", "velocity")


class Small(nn.Module):
    """A network with dropout that counts its passes and the images in them."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.passes: list[tuple[int, bool, bool]] = []

    def forward(self, x, t):
        self.passes.append((len(x), torch.is_grad_enabled(), self.training))
        return self.dropout(self.conv(x)) + 0.01 * t.view(-1, 1, 1, 1)


def batch(size=64, seed=0, perturb=False):
    rng = torch.Generator().manual_seed(seed)
    shape = (size, 1, 4, 4)
    return Batch(
        torch.rand(shape, generator=rng) * 2 - 1,
        torch.randint(100, (size,), generator=rng),
        torch.randn(shape, generator=rng),
        torch.rand(size, generator=rng),
        torch.randn(shape, generator=rng) if perturb else None,
    )


def total(loss, net, data, step=1000):
    return sum(term.error.sum() for term in loss(net, SCHED, data, step))


def gradient(loss, data, step=1000):
    net = Small()
    for term in loss(net, SCHED, data, step):
        term.error.sum().backward()
    return net.conv.weight.grad.clone()


def test_rectified_pair_still_describes_x0():
    data, net = batch(), Small()
    x_t = q_sample(SCHED, data.x0, data.t, data.eps)
    lam = torch.full((64,), 0.7, dtype=torch.float64)
    x_hat, target = dream.rectify(SCHED, data, x_t, net(x_t, data.t).detach(), lam)
    a, s = SCHED.signal_noise(data.t)
    # multiplied by a on both sides: dividing by a near t = T would only enlarge rounding
    assert_close(x_hat - s * target, a * data.x0, rtol=0, atol=1e-5)


def test_conservative_input_is_the_papers_without_the_clip():
    """x0 + lam (x0_hat - x0), noised again with the same eps, equals x_t + s lam D."""
    data = batch()
    data = data._replace(x0=data.x0.double(), eps=data.eps.double())
    x_t = q_sample(SCHED, data.x0, data.t, data.eps)
    rng = torch.Generator().manual_seed(5)
    miss = torch.randn(data.eps.shape, generator=rng, dtype=torch.float64)
    eps_hat = data.eps + 1e-3 * miss  # so that x0_hat stays inside [-1, 1]
    keep = (data.t < 60) & (data.x0.abs().flatten(1).amax(1) < 0.98)
    data, x_t, eps_hat = data.rows(keep), x_t[keep], eps_hat[keep]
    assert len(x_t) > 5
    lam = torch.full((len(x_t),), 0.5, dtype=torch.float64)
    adapted = dream.adapt(SCHED, data, x_t, eps_hat, lam)
    shifted, _ = dream.rectify(SCHED, data, x_t, eps_hat, lam)
    assert_close(adapted, shifted, rtol=0, atol=1e-12)
    _, s = SCHED.signal_noise(data.t, torch.float64)
    assert_close(adapted - x_t, 0.5 * s * (data.eps - eps_hat), rtol=0, atol=1e-12)
    x0_hat = x0_from_eps(SCHED, x_t, data.t, eps_hat)
    again = q_sample(SCHED, data.x0 + 0.5 * (x0_hat - data.x0), data.t, data.eps)
    assert_close(adapted, again, rtol=0, atol=1e-12)


def test_the_clip_bounds_the_shift_where_x0_hat_explodes():
    data = batch()
    data = data._replace(t=torch.full_like(data.t, 99))
    x_t = q_sample(SCHED, data.x0, data.t, data.eps)
    lam = torch.full((64,), 0.5, dtype=torch.float64)
    adapted = dream.adapt(SCHED, data, x_t, torch.zeros_like(x_t), lam)
    a, _ = SCHED.signal_noise(data.t)
    assert ((adapted - x_t).abs() <= a).all()


@pytest.mark.parametrize(
    "loss",
    [
        *(Conservative(start=500, length=1), Conservative(lam_max=0.0, estimator="both")),
        *(Paper(math.inf), Perturb(0.0), MixFlow(0.0), Reflex(0.0)),
    ],
)
def test_lambda_zero_is_the_standard_loss_itself(loss):
    data, net, plain = batch(perturb=True), Small(), Small()
    assert torch.equal(total(loss, net, data, step=10), total(standard, plain, data))
    assert net.passes == plain.passes


def output_from_eps(prediction, x_t, t, eps):
    """The output that a network of this prediction type would say `eps` with."""
    p, q = conversion(prediction, SCHED, t, x_t.dtype)
    return (eps - p * x_t) / q


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_pair_that_each_loss_shows_still_describes_its_x0(prediction):
    """In the network's own terms: read at the input it was shown, its target is x0 (standard,
    paper), x0 mixed with its own prediction (conservative), or x0 for the unmoved x_t (perturb)."""
    data, shown = batch(perturb=True), []
    data = Batch(*(f.double() if f is not None and f.is_floating_point() else f for f in data))
    data = data._replace(t=data.t.clamp(1, 95), x0=0.2 * data.x0)
    a, s = SCHED.signal_noise(data.t, torch.float64)
    x_t = q_sample(SCHED, data.x0, data.t, data.eps)

    class Almost(nn.Module):
        """Says x0 + 0.01 x_t; the small error keeps x0_hat inside [-1, 1]."""

        def forward(self, x, t):
            shown.append(x)
            guess = data.x0 + 0.01 * x_t
            eps = (x_t - a * guess) / s
            return output_from_eps(prediction, x_t, t, eps)

    def seen_by(loss):
        """The loss's last input, what the network says of it, and the error."""
        shown.clear()
        net = Denoiser(Almost(), SCHED, prediction)
        term = list(loss(net, SCHED, data, 10**6))[-1]
        x = shown[-1]
        eps_hat = net(x, data.t)
        return x, eps_hat, term.error

    lam = Paper(1.0).lam(SCHED, data.t, 0).view(-1, 1, 1, 1)
    x, eps_hat, error = seen_by(Paper(1.0))
    target = (x - a * data.x0) / s  # the noise that makes this input from the true x0
    assert_close(error, (eps_hat - target).square().flatten(1).mean(1), rtol=1e-8, atol=1e-12)
    D = data.eps - (x_t - a * (data.x0 + 0.01 * x_t)) / s
    assert_close(x - x_t, s * lam * D, rtol=0, atol=1e-12)

    conservative = Conservative(estimator="both")
    lam = conservative.lam(SCHED, data.t, 10**6).view(-1, 1, 1, 1)
    x, eps_hat, error = seen_by(conservative)
    mixed = data.x0 + lam * 0.01 * x_t
    assert float((data.x0 + 0.01 * x_t).abs().max()) < 1
    target = (x - a * mixed) / s
    weight = conservative.weight
    assert_close(
        error, weight * (eps_hat - target).square().flatten(1).mean(1), rtol=1e-8, atol=1e-12
    )

    x, _, error = seen_by(Perturb(0.1, prediction))
    assert_close(x - x_t, 0.1 * s * data.xi, rtol=0, atol=1e-12)
    true = output_from_eps(prediction, x_t, data.t, data.eps)  # of the unmoved x_t
    said = Almost()(x, data.t)
    own = (said - true).square().flatten(1).mean(1)
    q2 = conversion(prediction, SCHED, data.t, torch.float64)[1].flatten() ** 2
    assert_close(error, q2 * own, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_slowed_input_is_a_noisier_timesteps_and_the_target_stays(prediction):
    data = batch()
    data = Batch(*(f.double() if f is not None and f.is_floating_point() else f for f in data))
    data = data._replace(t=data.t.clamp(1, 95))
    x_t = q_sample(SCHED, data.x0, data.t, data.eps)
    asked = []

    class Wrong(nn.Module):
        """Says the network's own target for x_t, and 0.1 more."""

        def forward(self, x, t):
            asked.append((x, t))
            return output_from_eps(prediction, x_t, t, data.eps) + 0.1

    (term,) = MixFlow(0.4, prediction)(Denoiser(Wrong(), SCHED, prediction), SCHED, data, 0)
    m = dream.noisier(SCHED, data, 0.4)
    assert (m >= data.t).all()
    assert int(m.max()) <= 99
    assert len(set((m - data.t).tolist())) > 10
    ((x, t),) = asked
    assert torch.equal(t, data.t)
    assert_close(x, q_sample(SCHED, data.x0, m, data.eps), rtol=0, atol=1e-12)
    q2 = conversion(prediction, SCHED, data.t, torch.float64)[1].flatten() ** 2
    assert_close(term.error, 0.01 * q2, rtol=1e-8, atol=1e-12)


def test_reflex_shows_what_a_ddim_step_makes_and_how_x0_is_reached_from_there():
    data = batch(size=1)._replace(t=torch.tensor([40]), coin=torch.tensor([0.5]))
    m = dream.noisier(SCHED, data, 0.2)
    assert m.tolist() == [46]  # 0.5 * 0.2 * 59 = 5.9
    shown = []

    class Some(nn.Module):
        def forward(self, x, t):
            shown.append((x, t))
            return 0.9 * x

    (term,) = Reflex(0.2)(Some(), SCHED, data, 0)
    (x_m, asked), (x_hat, t) = shown
    assert (asked.item(), t.item()) == (46, 40)
    # one step of DDIM from m to t, written out
    (a_m, s_m), (a, s) = SCHED.roots(46), SCHED.roots(40)
    eps_hat = 0.9 * x_m
    step = a * (x_m - s_m * eps_hat) / a_m + s * eps_hat
    assert_close(x_hat, step, rtol=0, atol=1e-5)
    target = (x_hat - a * data.x0) / s  # the noise that describes x0 there
    assert_close(term.error, (0.9 * x_hat - target).square().flatten(1).mean(1))


def test_the_flow_schedule_with_a_velocity_is_eulers_method_on_the_straight_way():
    """x_tau = (1 - tau) x0 + tau eps: a step of DDIM, scaled, is one along eps - x0."""
    sched, tau = flow(99), torch.arange(1, 100, dtype=torch.float64) / 100
    a, s = sched.alpha_bar.sqrt(), (1 - sched.alpha_bar).sqrt()
    assert_close(s / (a + s), tau, rtol=0, atol=1e-12)
    velocities = []

    class Field(nn.Module):
        """Some velocity at every place."""

        def forward(self, x, t):
            lin = x * ((1 - tau[t]) ** 2 + tau[t] ** 2).sqrt().view(-1, 1, 1, 1)
            velocities.append(torch.sin(3 * lin) + tau[t].view(-1, 1, 1, 1))
            return velocities[-1]

    def length(k):
        return float(((1 - tau[k]) ** 2 + tau[k] ** 2) ** 0.5)

    x = torch.randn(4, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = Denoiser(Field(), sched, "velocity")
    steps = list(ddim(net, sched, x, 30, None, clamp=False))
    lin = x * length(steps[0].t)
    for step, after in zip(steps, [*(step.t for step in steps[1:]), None]):
        gap = (0.0 if after is None else float(tau[after])) - float(tau[step.t])
        lin = lin + gap * velocities[steps.index(step)]
        scale = 1.0 if after is None else length(after)
        assert_close(step.x_t * scale, lin, rtol=0, atol=1e-9)


def test_every_loss_tells_the_log_what_it_did():
    data = batch(perturb=True)
    expected = {
        standard: {"error"},
        Paper(): {"error", "shift", "lam"},
        Conservative(): {"error", "shift", "lam"},
        Conservative(estimator="both"): {"error", "shift", "lam"},
        Perturb(): {"error", "shift"},
        MixFlow(): {"error", "shift"},
        Reflex(): {"error", "shift", "lam"},
    }
    for loss, names in expected.items():
        seen = {}
        for term in loss(Small(), SCHED, data, 1000):
            seen |= term.stats
        assert set(seen) == names
        assert all(value.shape == (64,) for value in seen.values())
        assert not any(value.requires_grad for value in seen.values())
        if not isinstance(loss, (Perturb, MixFlow, Reflex)):
            x_t = q_sample(SCHED, data.x0, data.t, data.eps)
            D = data.eps - Small()(x_t, data.t).detach()
            assert_close(seen["error"], D.square().flatten(1).mean(1))


def test_labels_go_with_every_question():
    data = batch(perturb=True)._replace(y=torch.arange(64)[:, None])
    chosen = data.y[(data.coin < 0.3) & (data.t > 0)]
    asked = []

    class Told(Small):
        def forward(self, x, t, y):
            asked.append(y)
            return super().forward(x, t)

    both = Conservative(estimator="both")
    for loss in (standard, Paper(), Conservative(), both, Perturb(), MixFlow(), Reflex()):
        asked.clear()
        total(loss, Told(), data)
        assert torch.equal(asked[-1], data.y)
        if len(asked) > 1:
            assert torch.equal(asked[0], chosen if loss == Conservative() else data.y)


def test_ramp_is_the_recipes():
    """0 before epoch 10, then min(epoch / 20, 1): a half at once, full from epoch 20."""
    assert [dream.ramp(e, 10, 20) for e in (9, 10, 15, 20, 99)] == [0, 0.5, 0.75, 1, 1]


def test_lambda_rules():
    t = torch.tensor([0, 50, 99])
    loss = Conservative(lam_max=0.5, start=0, length=10)
    assert loss.lam(SCHED, t, 100).tolist() == [0, 0.25, 0.495]
    assert loss.lam(SCHED, t, 100).dtype == torch.float64
    assert_close(Paper(2.0).lam(SCHED, t, 0), 1 - SCHED.alpha_bar[t])


CHOSEN = int(((batch().coin < 0.3) & (batch().t > 0)).sum())  # images that `sampled` adapts


@pytest.mark.parametrize(
    ("loss", "without_gradient"),
    [
        *((standard, []), (Paper(), [64]), (Conservative(estimator="sampled"), [CHOSEN])),
        *((MixFlow(), []), (Reflex(), [64])),
    ],
)
def test_its_own_error_is_measured_without_gradient_or_dropout(loss, without_gradient):
    net = Small(dropout=0.5)
    total(loss, net, batch())
    assert net.passes == [*((n, False, False) for n in without_gradient), (64, True, True)]
    assert net.training


def test_both_takes_its_error_from_the_branch_it_learns_from_dropout_included():
    """As ARCHITECTURE and TRAINING say: a pass without dropout would be a third one."""
    net = Small(dropout=0.5)
    total(Conservative(estimator="both"), net, batch())
    assert net.passes == [(64, True, True)] * 2
    root = Path(__file__).resolve().parents[2] / "docs"
    for page in ("ARCHITECTURE", "TRAINING"):
        text = " ".join((root / f"{page}.md").read_text("utf-8").split())
        assert "`both` reuses the prediction" in text


def test_estimators_have_equal_expectation():
    """`sampled` over many coins averages to `both`, in value and gradient, within four standard
    errors; another weight would not."""
    data, parts, draws = batch(size=16), 40, 100
    coins = torch.rand(parts, draws, 16, generator=torch.Generator().manual_seed(1))
    values, slopes = [], []
    for coin in coins:
        big = Batch(*(f.repeat(draws, *[1] * (f.ndim - 1)) for f in data[:3]), coin.flatten())
        values.append(float(total(Conservative(), Small(), big).detach()) / draws)
        slopes.append(gradient(Conservative(), big) / draws)
    value, slope = torch.tensor(values), torch.stack(slopes)

    def distance(weight):
        """Standard errors between `sampled` and `both` of this weight: value, largest of slopes."""
        both = Conservative(estimator="both", weight=weight)
        off = value.mean() - float(total(both, Small(), data).detach())
        far = (slope.mean(0) - gradient(both, data)).abs() / (slope.std(0) / parts**0.5)
        return float(off.abs() / (value.std() / parts**0.5)), float(far.max())

    assert max(distance(0.3)) < 4
    assert min(*distance(0.25), *distance(0.35)) > 6


def test_conservative_target_is_the_true_noise():
    """A network that is always off by 0.1 has loss 0.01, whatever lambda; the paper's has more."""
    data = batch()

    class Off(Small):
        def forward(self, x, t):
            return data.eps[: len(x)] + 0.1 + 0 * self.conv.weight.sum()

    for estimator in ("both", "sampled"):
        loss = total(Conservative(estimator=estimator), Off(), data).detach()
        assert float(loss) == pytest.approx(64 * 0.01, rel=1e-4)
    assert float(total(Paper(), Off(), data).detach()) > 64 * 0.015


def work(loss, net, data):
    """FLOPs of a loss and its gradients."""
    with FlopCounterMode(display=False) as counter:
        for term in loss(net, SCHED, data, 1000):
            term.error.sum().backward()
    return counter.get_total_flops()


def test_what_each_loss_multiplies_is_exactly_its_passes():
    """In passes, where a gradient costs two: standard 3, both 6, paper 4 (4/3 of a step), sampled
    3 and a pass for the chosen images alone."""
    net = Denoiser(UNet(size=8, channels=1, widths=[8, 16], blocks=1, heads=2), SCHED, "eps")
    data = batch(16)
    data = data._replace(x0=torch.zeros(16, 1, 8, 8), eps=torch.ones(16, 1, 8, 8))
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        net(data.x0, data.t)
    one, step = forward.get_total_flops(), work(standard, net, data)
    assert step == pytest.approx(3 * one, rel=0.01)  # the first layer's input needs no gradient
    assert work(Conservative(estimator="both"), net, data) == 2 * step
    assert work(Paper(), net, data) == step + one
    chosen = int(((data.coin < 0.3) & (data.t > 0)).sum())
    assert 0 < chosen < 16
    assert work(Conservative(estimator="sampled"), net, data) == step + chosen * one // 16
