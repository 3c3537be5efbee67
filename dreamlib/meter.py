"""Means of what training steps tell, from one log row to the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

QUARTILES = 4  # of the timesteps
SEEN = ("loss", "error", "shift", "lam")  # what a step tells of each image


class Meter:
    """Means over the steps since the last log row; part of the state, so that a resumed run's
    log equals an undisturbed one's."""

    def __init__(self, device: torch.device):
        exact = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.sums = torch.zeros(len(SEEN), QUARTILES, dtype=exact, device=device)
        self.counts = torch.zeros(QUARTILES, dtype=exact, device=device)
        self.norm = torch.zeros((), dtype=exact, device=device)
        self.skipped = torch.zeros_like(self.norm)
        self.steps = 0

    def add(self, quartile: Tensor, seen: dict[str, Tensor], norm: Tensor) -> None:
        """quartile int64 [B], every value of `seen` [B]: one per image."""
        values = torch.stack([seen[name] for name in SEEN]).to(self.sums.dtype)
        self.sums.index_add_(1, quartile, values)
        self.counts.index_add_(0, quartile, torch.ones_like(values[0]))
        # Loss scaling finds its scale by overflowing now and then; such a step is not taken.
        taken = torch.isfinite(norm)
        self.norm += torch.where(taken, norm, 0)
        self.skipped += ~taken
        self.steps += 1

    def row(self) -> dict[str, Any]:
        """The means, as plain numbers; a quartile that no image fell into is None."""
        counts = self.counts.tolist()
        sums = dict(zip(SEEN, self.sums.tolist()))
        loss, error, shift, lam = (
            [s / n if n else None for s, n in zip(sums[name], counts)] for name in SEEN
        )
        return {
            "loss": sum(sums["loss"]) / sum(counts),
            "loss_by_quartile": loss,
            "error_by_quartile": [_root(x) for x in error],  # rms of D = eps - eps_hat
            "shift_by_quartile": [_root(x) for x in shift],  # rms of input - x_t
            "lam": sum(sums["lam"]) / sum(counts),
            "lam_by_quartile": lam,
            "grad_norm": float(self.norm) / max(self.steps - float(self.skipped), 1),
            "skipped_steps": int(self.skipped),
        }

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            is_tensor = isinstance(value, Tensor)
            setattr(self, name, value.to(self.sums) if is_tensor else value)


def _root(mean_square: float | None) -> float | None:
    return None if mean_square is None else mean_square**0.5
