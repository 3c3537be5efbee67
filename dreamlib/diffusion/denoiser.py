"""A network as the losses and samplers see it: (x_t, t) -> eps, in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from dreamlib.diffusion.forward_process import eps_from_output
from dreamlib.diffusion.schedules import Schedule

NO_LABEL = -1  # the label of an image whose labels are not told


class Denoiser(nn.Module):
    """A network that answers with eps at the input's precision, whatever it predicts.

    Optionally under autocast.  A network that predicts v (Salimans 2022) has its error multiplied
    by a in eps; in x0, errors of eps are divided by a.  So they are not enlarged where there is
    little signal, which is where an image's brightness and colours are decided.
    """

    def __init__(
        self, net: nn.Module, sched: Schedule, prediction: str, dtype: torch.dtype | None = None
    ):
        super().__init__()
        self.net, self.sched, self.prediction, self.dtype = net, sched, prediction, dtype

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x_t float [B,C,H,W], t [B], labels y [B,A] or None -> eps_hat, like x_t."""
        # With autocast's cache of cast weights, slices computed by two threads get other gradients
        # each time up to PyTorch 2.10 (tried: 2.4, 2.10).  Each weight is used once: no loss.
        autocast = partial(torch.autocast, x_t.device.type, cache_enabled=False)
        with autocast(self.dtype) if self.dtype else nullcontext():
            output = self.net(x_t, t) if y is None else self.net(x_t, t, y)
        return eps_from_output(self.prediction, self.sched, x_t, t, output.to(x_t.dtype))


class Guided(nn.Module):
    """Classifier-free guidance: away from the unconditional answer, towards the labelled one.

    eps = eps_none + scale (eps_y - eps_none); scale 1 is plain conditional sampling, at the cost
    of one pass instead of two.  Ho 2022 (classifier-free guidance), Eq. 6 with w = scale - 1.
    """

    def __init__(self, net: Callable[..., Tensor], y: Tensor, scale: float):
        super().__init__()
        self.net, self.y, self.scale = net, y, scale

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t [B,C,H,W], t [B] -> eps_hat [B,C,H,W]."""
        labelled = self.net(x_t, t, self.y)
        if self.scale == 1:
            return labelled
        none = self.net(x_t, t, torch.full_like(self.y, NO_LABEL))
        return none + self.scale * (labelled - none)
