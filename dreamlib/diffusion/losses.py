"""The DREAM family: shifts along the model's own error, or in its place; six losses.

With D = eps - eps_hat (no gradient), the clean image that the network sees in x_t is
x0_hat = x0 + (s/a) D.  Moving the input by s*lam*D is therefore the same as noising
x0 + lam*(x0_hat - x0).  docs/ARCHITECTURE.md has the table of their inputs, targets and lam.

A loss is called as `loss(net, sched, batch, step)` and yields Terms, whose errors hold one value
per image; the training step calls backward after each, so that two branches never hold their
activations together.  `net` answers with eps, whatever it predicts (`denoiser.Denoiser`), and
errors are weighted by `forward_process.loss_weight`; `Perturb` and `MixFlow` alone ask what it
predicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dreamlib.diffusion.forward_process import conversion, q_sample, x0_from_eps
from dreamlib.diffusion.schedules import Schedule
from dreamlib.utils.nest import each_tensor


class Batch(NamedTuple):
    """A training batch and everything random about it, drawn for the whole batch at once."""

    x0: Tensor  # [B,C,H,W] in [-1, 1]
    t: Tensor  # int64 [B]
    eps: Tensor  # [B,C,H,W], standard normal
    coin: Tensor  # float32 [B], uniform in [0, 1), for the sampled estimator
    xi: Tensor | None = None  # [B,C,H,W], a second standard normal, for `perturb`
    y: Tensor | None = None  # int64 [B,A], a label per attribute; NO_LABEL where dropped

    def rows(self, which: Tensor | slice) -> Batch:
        return each_tensor(self, lambda field: field[which])

    def to(self, device: torch.device) -> Batch:
        return each_tensor(self, lambda field: field.to(device))


class Term(NamedTuple):
    """A part of the loss, and what the log should know; every value is per image, [B]."""

    error: Tensor  # with gradient
    # "error": mean square of D at x_t (perturb: at its own input); "shift": of input - x_t, as far
    # as the loss shows it; "lam"
    stats: dict[str, Tensor]


Net = Callable[[Tensor, Tensor], Tensor]
Loss = Callable[[nn.Module, Schedule, Batch, int], Iterator[Term]]


def ramp(step: int, start: int, length: int) -> float:
    """0 before `start`, then min(step / length, 1), with both in optimizer steps."""
    return 0.0 if step < start else min(step / max(length, 1), 1.0)


def _spread(lam: Tensor, like: Tensor) -> Tensor:
    """lam [B] -> [B,1,1,1] beside the images, at their precision."""
    return lam.to(like.device, like.dtype).view(-1, 1, 1, 1)


def ask(net: nn.Module, batch: Batch, x: Tensor) -> Tensor:
    """The network's eps_hat for inputs x at the batch's timesteps and labels."""
    return net(x, batch.t) if batch.y is None else net(x, batch.t, batch.y)


@torch.no_grad()
def ask_without_gradient(net: nn.Module, batch: Batch, x: Tensor) -> Tensor:
    """As `ask`, with dropout off and no gradient: for the model's own error."""
    training = net.training
    net.eval()
    try:
        return ask(net, batch, x)
    finally:
        net.train(training)


def mean_square(x: Tensor) -> Tensor:
    """Mean square per image, [B]."""
    return x.square().flatten(1).mean(1)


def rectify(
    sched: Schedule, batch: Batch, x_t: Tensor, eps_hat: Tensor, lam: Tensor
) -> tuple[Tensor, Tensor]:
    """DREAM's pair: input and target moved along the model's own error.  lam [B]; lam = 0 is DDPM.

    The pair still describes x0 exactly.  Zhou 2024, Alg. 1.
    """
    _, s = sched.signal_noise(batch.t, x_t.dtype)
    shift = _spread(lam, x_t) * (batch.eps - eps_hat)
    return x_t + s * shift, batch.eps + shift


def adapt(sched: Schedule, batch: Batch, x_t: Tensor, eps_hat: Tensor, lam: Tensor) -> Tensor:
    """The same input, with x0_hat clipped to [-1, 1] first.  lam [B] -> [B,C,H,W].

    Noising x0 + lam*(clip(x0_hat) - x0) with the same eps adds a*lam*(clip(x0_hat) - x0) to x_t.
    """
    a, _ = sched.signal_noise(batch.t, x_t.dtype)
    x0_hat = x0_from_eps(sched, x_t, batch.t, eps_hat).clamp(-1, 1)
    return x_t + a * _spread(lam, x_t) * (x0_hat - batch.x0)


def standard(net: nn.Module, sched: Schedule, batch: Batch, step: int = 0) -> Iterator[Term]:
    """Predict the noise in x_t.  Ho 2020, Eq. 14."""
    x_t = q_sample(sched, batch.x0, batch.t, batch.eps)
    error = mean_square(ask(net, batch, x_t) - batch.eps)
    yield Term(error, {"error": error.detach()})


@dataclass(frozen=True)
class Conservative:
    """The original recipe's loss: a share `weight` of the error comes from the adapted input.

    `both` evaluates both branches, the second with the first's detached prediction.  `sampled`
    sends each image down one, the adapted one with probability `weight`: one objective.
    """

    lam_max: float = 0.5
    start: int = 0
    length: int = 1
    weight: float = 0.3
    estimator: str = "sampled"

    def lam(self, sched: Schedule, t: Tensor, step: int) -> Tensor:
        """lam_max * t/T * ramp, float64 [B] on the CPU: large where the image is mostly noise."""
        factor = ramp(step, self.start, self.length)
        return self.lam_max * factor * t.cpu().double() / len(sched)

    def __call__(self, net: nn.Module, sched: Schedule, batch: Batch, step: int) -> Iterator[Term]:
        lam = self.lam(sched, batch.t, step)
        if not lam.any():
            return standard(net, sched, batch)
        branches = self._both if self.estimator == "both" else self._sampled
        return branches(net, sched, batch, lam)

    def _both(self, net: nn.Module, sched: Schedule, batch: Batch, lam: Tensor) -> Iterator[Term]:
        x_t = q_sample(sched, batch.x0, batch.t, batch.eps)
        eps_hat = ask(net, batch, x_t)
        error = mean_square(eps_hat - batch.eps)
        yield Term((1 - self.weight) * error, {"error": error.detach()})
        x_adapted = adapt(sched, batch, x_t, eps_hat.detach(), lam)
        error = mean_square(ask(net, batch, x_adapted) - batch.eps)
        shift = self.weight * mean_square(x_adapted - x_t)
        yield Term(self.weight * error, {"shift": shift, "lam": lam})

    def _sampled(
        self, net: nn.Module, sched: Schedule, batch: Batch, lam: Tensor
    ) -> Iterator[Term]:
        x_t = q_sample(sched, batch.x0, batch.t, batch.eps)
        chosen = torch.nonzero((batch.coin.cpu() < self.weight) & (lam > 0)).flatten()
        rows = chosen.to(x_t.device)
        if not len(rows):
            error = mean_square(ask(net, batch, x_t) - batch.eps)
            yield Term(error, {"lam": lam, "error": error.detach()})
            return
        part = batch.rows(rows)
        eps_hat = ask_without_gradient(net, part, x_t[rows])
        x = x_t.index_copy(0, rows, adapt(sched, part, x_t[rows], eps_hat, lam[chosen]))
        error = mean_square(ask(net, batch, x) - batch.eps)
        # the log is told the error at the unmoved input, as for the other images
        plain = error.detach().index_copy(0, rows, mean_square(eps_hat - part.eps))
        yield Term(error, {"lam": lam, "shift": mean_square(x - x_t), "error": plain})


@dataclass(frozen=True)
class Paper:
    """The DREAM paper's loss: shifted input, shifted target.  Zhou 2024, Alg. 1."""

    p: float = 1.0

    def lam(self, sched: Schedule, t: Tensor, step: int) -> Tensor:
        """s**p, float64 [B] on the CPU.  Zhou 2024 (DREAM), Sec. 4.2."""
        return (1 - sched.alpha_bar[t.cpu()]).sqrt() ** self.p

    def __call__(self, net: nn.Module, sched: Schedule, batch: Batch, step: int) -> Iterator[Term]:
        lam = self.lam(sched, batch.t, step)
        if not lam.any():
            yield from standard(net, sched, batch)
            return
        x_t = q_sample(sched, batch.x0, batch.t, batch.eps)
        eps_hat = ask_without_gradient(net, batch, x_t)
        x_hat, target = rectify(sched, batch, x_t, eps_hat, lam)
        error = mean_square(ask(net, batch, x_hat) - target)
        stats = {"error": mean_square(eps_hat - batch.eps), "shift": mean_square(x_hat - x_t)}
        yield Term(error, stats | {"lam": lam})


def noisier(sched: Schedule, batch: Batch, reach: float) -> Tensor:
    """Timesteps m int64 [B] between t and t + reach (T - 1 - t), by the batch's coin."""
    way = reach * (len(sched) - 1 - batch.t)
    return batch.t + (batch.coin * way).round().long()


def _moved(
    net: nn.Module, sched: Schedule, batch: Batch, move: Tensor, x_t: Tensor, prediction: str
) -> Term:
    """The network's own target for x_t, asked at x_t + move.

    A prediction of v or x0 is read as noise with the moved input, which adds p times the move
    (`conversion`); so does the target.
    """
    p, _ = conversion(prediction, sched, batch.t, x_t.dtype)
    error = mean_square(ask(net, batch, x_t + move) - (batch.eps + p * move))
    return Term(error, {"error": error.detach(), "shift": mean_square(move)})


@dataclass(frozen=True)
class Perturb:
    """Input perturbation: an independent Gaussian in the place of D, the target that of the unmoved
    x_t.  Ning 2023, Alg. 1."""

    gamma: float = 0.1
    prediction: str = "eps"

    def __call__(self, net: nn.Module, sched: Schedule, batch: Batch, step: int) -> Iterator[Term]:
        if self.gamma == 0:
            yield from standard(net, sched, batch)
            return
        x_t = q_sample(sched, batch.x0, batch.t, batch.eps)
        assert batch.xi is not None  # drawn where this is the run's loss
        _, s = sched.signal_noise(batch.t, x_t.dtype)
        yield _moved(net, sched, batch, s * self.gamma * batch.xi, x_t, self.prediction)


@dataclass(frozen=True)
class MixFlow:
    """Slowed input: asked about timestep t, the network is shown a noisier one of the same image.

    What sampling makes of t lies nearest to true x_m of an m > t.  So m is uniform between t and
    t + reach (T - 1 - t), by the batch's coin; the target is the network's own for x_t.
    Li 2025 (arXiv 2512.19311), Sec. 3, where reach is gamma.
    """

    reach: float = 0.4
    prediction: str = "eps"

    def __call__(self, net: nn.Module, sched: Schedule, batch: Batch, step: int) -> Iterator[Term]:
        if self.reach == 0:
            yield from standard(net, sched, batch)
            return
        x_t = q_sample(sched, batch.x0, batch.t, batch.eps)
        m = noisier(sched, batch, self.reach)
        move = q_sample(sched, batch.x0, m, batch.eps) - x_t
        yield _moved(net, sched, batch, move, x_t, self.prediction)


@dataclass(frozen=True)
class Reflex:
    """The input is what the model itself makes of a noisier timestep m: a DDIM step from m to t.

    With D the error at m, and lam = (s/a)_m / (s/a)_t - 1, that state is x_t + s lam D, and the
    noise that describes x0 there is eps + lam D: DREAM's pair, its lam and its D those of a step of
    sampling.  Huang 2025 (arXiv 2512.04904, ReflexFlow), its anti-drift part, without the weights
    by frequency.  lam is held below 1, where the last timesteps have no signal left.
    """

    reach: float = 0.1

    def __call__(self, net: nn.Module, sched: Schedule, batch: Batch, step: int) -> Iterator[Term]:
        if self.reach == 0:
            yield from standard(net, sched, batch)
            return
        m = noisier(sched, batch, self.reach)
        ratio = ((1 - sched.alpha_bar) / sched.alpha_bar).sqrt()
        lam = (ratio[m.cpu()] / ratio[batch.t.cpu()] - 1).clamp(max=1)
        x_m = q_sample(sched, batch.x0, m, batch.eps)
        eps_hat = ask_without_gradient(net, batch._replace(t=m), x_m)
        x_t = q_sample(sched, batch.x0, batch.t, batch.eps)
        x_hat, target = rectify(sched, batch, x_t, eps_hat, lam)
        error = mean_square(ask(net, batch, x_hat) - target)
        stats = {"error": mean_square(eps_hat - batch.eps), "shift": mean_square(x_hat - x_t)}
        yield Term(error, stats | {"lam": lam})
