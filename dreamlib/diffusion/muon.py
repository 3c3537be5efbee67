"""Muon: every convolution's step is made orthogonal; all other weights are AdamW's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

ROUNDS, QUINTIC = 5, (3.4445, -4.7750, 2.0315)  # of Newton-Schulz.  Jordan 2024
MOMENTUM = 0.95
RMS = 0.2  # of a step, over its learning rate: about AdamW's.  Liu 2025, Sec. 2.2
KEPT = "stem", "head"  # convolutions from and to pixels, which Jordan 2024 leaves to AdamW


def orthogonalise(x: Tensor) -> Tensor:
    """Matrices [K,m,n] with their singular values brought to 0.7 .. 1.2, the least ones less far.

    X -> a X + b (X X') X + c (X X')^2 X, five times.  All of them are polynomials in G = X X' times
    the first X: so the rounds are of the small m x m matrices alone, in float32.
    """
    if x.shape[-2] > x.shape[-1]:
        return orthogonalise(x.mT).mT
    a, b, c = QUINTIC
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    g, product = x @ x.mT, torch.eye(x.shape[-2], device=x.device)
    for _ in range(ROUNDS):
        q = torch.baddbmm(b * g, g, g, alpha=c)
        q.diagonal(dim1=-2, dim2=-1).add_(a)
        product, g = q @ product, q @ g @ q
    return product @ x


class Muon(torch.optim.AdamW):
    """One learning rate for both kinds of weights.

    Jordan 2024 (kellerjordan.github.io/posts/muon); Liu 2025 (arXiv 2502.16982), Eqs. 1 to 4.
    """

    def __init__(self, net: nn.Module, lr: float, weight_decay: float, fused: bool):
        weights = dict(net.named_parameters())
        hidden = [w for name, w in weights.items() if w.ndim == 4 and not name.startswith(KEPT)]
        others = [w for w in weights.values() if not any(w is each for each in hidden)]
        groups: Iterable[dict[str, Any]] = [{"params": others}, {"params": hidden, "hidden": True}]
        super().__init__(groups, lr=lr, weight_decay=weight_decay, fused=fused)
        self._step_supports_amp_scaling = False  # a loss scaler asks before a step, not within

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore  nobody hands it a closure
        for group in self.param_groups:
            if group.get("hidden"):
                self._step_hidden(group)
        super().step(closure)  # of what has a gradient left

    def _step_hidden(self, group: dict[str, Any]) -> None:
        """Matrices [out, in x height x width] of one shape are made orthogonal together."""
        alike: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is not None:
                state = self.state[weight]
                if not state:  # by AdamW's names, which loading asks for
                    state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(weight)}
                momentum = state["exp_avg"].lerp_(weight.grad, 1 - MOMENTUM)
                update = weight.grad.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov's
                alike[update.shape].append((weight, update))
                weight.grad = None
        for shape, pairs in alike.items():
            updates = orthogonalise(torch.stack([update for _, update in pairs]).float())
            rate = group["lr"] * RMS * max(shape) ** 0.5
            for (weight, _), update in zip(pairs, updates):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update.view_as(weight), alpha=-rate)
