"""What each loss converges to on Gaussian data, and what sampling then makes of it.

x0 ~ N(0, v) and a network that is linear, eps_hat = g x_t, with a gain per timestep.  Each loss
has its own best gain; the standard one has E[eps | x_t], the others differ because D is made of
the network's own error.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dreamlib.diffusion.losses import Batch, Conservative, MixFlow, Paper, Reflex, standard
from dreamlib.diffusion.samplers import ddim, ddpm
from dreamlib.diffusion.schedules import cosine

SCHED = cosine(1000)
VARIANCES = torch.tensor([4, 1, 0.25, 0.05, 0.01], dtype=torch.float64)
T = torch.arange(1000)


def gains(loss: str, p: float = 1.0) -> torch.Tensor:
    """The fixed point of the regression on one's own error, float64 [V,T], in closed moments."""
    a2 = SCHED.alpha_bar
    s = (1 - a2).sqrt()
    x2, xe = a2 * VARIANCES[:, None] + s**2, s.expand(5, -1)  # E[x_t^2], E[x_t eps]
    lam = (Paper(p) if loss == "paper" else Conservative(0.5)).lam(SCHED, T, 1)
    w = {"conservative": 0.3, "adapted alone": 1.0}.get(loss, 0)
    g = xe / x2
    if loss == "standard":
        return g
    for _ in range(500):
        keep, add = 1 - s * lam * g, s * lam  # y = keep x_t + add eps
        ye, yx = keep * xe + add, keep * x2 + add * xe
        y2 = keep**2 * x2 + 2 * keep * add * xe + add**2
        if loss == "paper":  # towards eps + lam (eps - g x_t)
            new = ((1 + lam) * ye - lam * g * yx) / y2
        else:
            new = ((1 - w) * xe + w * ye) / ((1 - w) * x2 + w * y2)
        g = 0.5 * (g + new)
    return g


def reached(loss: MixFlow | Reflex) -> torch.Tensor:
    """The same, where the error is made at a noisier timestep m: nothing feeds back to its own t.

    Averaged over the coin that chooses m, from the last timestep down.  float64 [V,T].
    """
    g = torch.empty(5, 1000, dtype=torch.float64)
    a, s = SCHED.alpha_bar.sqrt(), (1 - SCHED.alpha_bar).sqrt()
    coins = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    for t in reversed(range(1000)):
        m = (t + (coins * loss.reach * (999 - t)).round()).long()
        if isinstance(loss, MixFlow):  # towards eps, from x_m
            y0, ye, t0, te = a[m], s[m], torch.zeros(()), torch.ones(())
        else:  # D = eps - g_m x_m; from x_t + s lam D towards eps + lam D
            lam = (s[m] / a[m] * a[t] / s[t] - 1).clamp(max=1)
            own = torch.where(m > t, g[:, m], 0.0)  # where m = t, lam is 0
            t0, te = -lam * own * a[m], 1 + lam * (1 - own * s[m])
            y0, ye = a[t] + s[t] * t0, s[t] * te
        cross, square = VARIANCES[:, None] * y0 * t0 + ye * te, VARIANCES[:, None] * y0**2 + ye**2
        g[:, t] = cross.expand(5, -1).mean(1) / square.expand(5, -1).mean(1)
    return g


def spread(g: torch.Tensor, sampler: str, steps: int = 1000) -> list[float]:
    """Standard deviation of the generated values over the true one, for each variance."""

    def net(x, t):
        return g[:, int(t[0])].view(5, 1, 1, 1) * x

    if sampler == "ddim":  # deterministic and linear: what becomes of 1 is the factor
        x = torch.ones(5, 1, 1, 1, dtype=torch.float64)
        last = list(ddim(net, SCHED, x, steps, None, clamp=False))[-1].x_t
        return (last.flatten() / VARIANCES.sqrt()).tolist()
    # Linear in its noises, which are independent: each has a column of its own, and is 1 there.
    alone = iter(torch.eye(1001, dtype=torch.float64))

    def noise(t):
        return next(alone).expand(5, 1, 1, -1)

    last = list(ddpm(net, SCHED, noise(1000), 1000, noise, clamp=False))[-1].x_t
    return (last.flatten(1).norm(dim=1) / VARIANCES.sqrt()).tolist()


# Measured before this library was begun, with another program: sd generated / true sd, for the
# five variances, by DDPM and DDIM with 1000 steps and DDIM with 50
KNOWN = {
    ("standard", 0): [
        [0.998, 0.998, 0.996, 0.991, 0.977],
        [0.998, 0.999, 0.998, 0.996, 0.989],
        [0.97, 0.98, 0.97, 0.94, 0.88],
    ],
    ("conservative", 0): [
        [0.963, 0.973, 0.981, 0.984, 0.974],
        [0.959, 0.968, 0.977, 0.984, 0.983],
        [0.93, 0.95, 0.95, 0.93, 0.88],
    ],
    ("adapted alone", 0): [
        [0.88, 0.91, 0.95, 0.97, 0.97],
        [0.84, 0.88, 0.92, 0.95, 0.97],
        [0.82, 0.86, 0.89, 0.90, 0.86],
    ],
    ("paper", 1): [
        [0.70, 0.78, 0.85, 0.91, 0.94],
        [0.60, 0.69, 0.78, 0.87, 0.92],
        [0.59, 0.67, 0.75, 0.82, 0.82],
    ],
    ("paper", 5): [
        [0.85, 0.94, 0.98, 0.99, 0.98],
        [0.75, 0.86, 0.94, 0.98, 0.99],
        [0.73, 0.84, 0.91, 0.93, 0.88],
    ],
    ("paper", 10): [
        [0.91, 0.98, 0.99, 0.99, 0.98],
        [0.81, 0.92, 0.97, 0.99, 0.99],
        [0.79, 0.90, 0.94, 0.94, 0.88],
    ],
}


@pytest.mark.parametrize(("loss", "p"), KNOWN)
def test_the_spread_that_each_loss_leads_to(loss, p):
    """The paper's loss at p = 1 narrows what is generated, the conservative one hardly."""
    g = gains(loss, p)
    ancestral, deterministic, few = KNOWN[loss, p]
    assert spread(g, "ddpm") == pytest.approx(ancestral, abs=0.02)
    assert spread(g, "ddim") == pytest.approx(deterministic, abs=0.02)
    assert spread(g, "ddim", 50) == pytest.approx(few, abs=0.02)


# DDIM with 1000 steps: a slowed input leaves much noise on what varies little, and narrows what
# varies much; one's own step from a noisier timestep narrows all of it, as the paper's loss does.
REACHED = {
    MixFlow(0.1): [0.945, 0.940, 0.938, 0.969, 1.178],
    MixFlow(0.4): [0.793, 0.798, 0.876, 1.289, 2.503],
    Reflex(0.02): [0.991, 0.988, 0.979, 0.961, 0.932],
    Reflex(0.1): [0.965, 0.955, 0.940, 0.933, 0.947],
    Reflex(0.4): [0.900, 0.914, 0.944, 0.976, 0.982],
}


@pytest.mark.parametrize("loss", REACHED)
def test_the_spread_where_errors_come_from_a_noisier_timestep(loss):
    assert spread(reached(loss), "ddim") == pytest.approx(REACHED[loss], abs=0.002)


class Gain(nn.Module):
    """A gain that is learnt, or of `elsewhere` [T] at other timesteps than `here`."""

    def __init__(self, gain: float, here: int = 0, elsewhere: torch.Tensor | None = None):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))
        self.here, self.elsewhere = here, elsewhere

    def forward(self, x, t):
        if self.elsewhere is None:
            return self.gain * x
        gains = torch.where(t == self.here, self.gain, self.elsewhere[t])
        return gains.view(-1, 1, 1, 1) * x


@pytest.mark.parametrize("t", [150, 500, 800])
@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("standard", standard),
        ("paper", Paper(1.0)),
        ("conservative", Conservative(estimator="both")),
        ("conservative", Conservative(estimator="sampled")),
        ("mixflow", MixFlow(0.4)),
        ("reflex", Reflex(0.1)),
    ],
)
def test_our_losses_stand_still_exactly_there(name, loss, t):
    """The gradient with respect to the gain is zero at the fixed point, and not beside it."""
    variance = 0.01 if name == "conservative" else 1  # small: nothing reaches the clip
    n = 400_000
    rng = torch.Generator().manual_seed(t)
    x0, eps = (torch.randn(n, 1, 1, 1, generator=rng, dtype=torch.float64) for _ in range(2))
    x0 = x0 * variance**0.5
    batch = Batch(x0, torch.full((n,), t), eps, torch.rand(n, generator=rng))
    row = VARIANCES.tolist().index(variance)
    own = (reached(loss) if name in ("mixflow", "reflex") else gains(name))[row]

    def slopes(gain: float) -> tuple[float, float]:
        """Mean gradient over 100 parts of the batch, and its standard error."""
        found = []
        for part in range(100):
            net = Gain(gain, t, own)
            rows = batch.rows(slice(part * n // 100, (part + 1) * n // 100))
            for term in loss(net, SCHED, rows, 10**6):
                term.error.mean().backward()
            found.append(float(net.gain.grad))
        values = torch.tensor(found)
        return float(values.mean()), float(values.std() / 10)

    there = float(own[t])
    slope, error = slopes(there)
    assert abs(slope) < 4 * error
    assert abs(slopes(1.1 * there)[0]) > 10 * error
