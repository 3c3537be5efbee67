"""What the driver and a trainer know of each other."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dreamlib.utils.errors import NotFinite

BLOCK = 1 << 20  # numbers looked at together
PREVIEWS = 16  # images of a preview


class Trainer(Protocol):
    """What the driver needs of a trainer.  One `advance` is one optimizer step."""

    step: int
    total: int
    epoch: float  # optimizer steps per epoch
    whole: bool  # False while a step has moved some of the state and not yet all of it

    def probe(self) -> None: ...  # before the first step: see that it fits into memory
    def advance(self) -> dict[str, Any] | None: ...  # a log row, when one is due
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def check_finite(self) -> None: ...  # NotFinite when weights are no longer numbers
    def calm(self) -> str: ...  # after NaN: lower the loss scale, and say what was done
    def preview(self) -> dict[str, np.ndarray]: ...  # name -> uint8 images


class Check:
    """What the driver asks of a validation; this one never has to be asked."""

    steps: Set[int] = frozenset()  # after which it is asked

    def begin(self, should_stop: Callable[[], bool]) -> None: ...  # a state was loaded, or none is
    def check(self) -> None: ...
    @property
    def over(self) -> bool:
        """Training should end: nothing becomes better."""
        return False


class Tick(NamedTuple):
    """Where training stands after a step.  `row` is the log row of this step, if it has one."""

    step: int
    total: int
    row: dict[str, Any] | None


def moved(manifest: dict[str, Any], where: dict[str, Any]) -> str:
    """How this session differs from the one that saved: equal bits are promised on an equal
    machine only."""
    then = manifest | manifest.get("where", {})
    now = {"torch": torch.__version__, **where}
    return ", ".join(f"{k} {then[k]} -> {v}" for k, v in now.items() if k in then and then[k] != v)


def check_finite(state: Any, step: int, name: str = "") -> None:
    """NotFinite when any number in a state is NaN or infinite: it never becomes a checkpoint."""
    if isinstance(state, Tensor):
        if state.is_floating_point() and not _all_finite(state):
            raise NotFinite(
                f"{name[1:]} became NaN or infinite by step {step}, which is not saved: begin a "
                "new run with a smaller train.lr, or with train.precision=fp32"
            )
    elif isinstance(state, dict):
        for key, value in state.items():
            check_finite(value, step, f"{name}.{key}")


def _all_finite(values: Tensor) -> bool:
    if not values.is_cpu or values.dtype == torch.bfloat16:
        return bool(torch.isfinite(values).all())
    # On a CPU torch would wake threads of its own for this, beside those that train.
    flat = values.detach().reshape(-1).numpy()
    return all(np.isfinite(flat[i : i + BLOCK]).all() for i in range(0, len(flat), BLOCK))
