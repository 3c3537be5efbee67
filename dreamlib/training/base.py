"""What the trainers of both kinds of model share."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dreamlib.config.factory import make_drawing, make_stream, rate_factor, total_steps
from dreamlib.config.schema import span_steps
from dreamlib.diffusion.ema import Averaged
from dreamlib.runs.checkpoints import Checkpoint
from dreamlib.runs.run import Run
from dreamlib.training.ranks import Ranks
from dreamlib.training.sharing import Sharing
from dreamlib.utils.errors import CheckpointError, NotFinite, RunError
from dreamlib.utils.images import enlarge, grid, save_png
from dreamlib.utils.threads import one_thread

BLOCK = 1 << 20  # numbers looked at together
PREVIEWS = 16  # images of a preview
STAGES = (0.05, 0.25, 0.5, 0.75, 1.0)  # of training, at which one is always kept
T = TypeVar("T")
NetT = TypeVar("NetT", bound=nn.Module)


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA and MPS raise their own kinds; the CPU allocator a RuntimeError with this text."""
    kinds = (torch.cuda.OutOfMemoryError,)
    texts = ("out of memory", "alloc_failed", "can't allocate memory", "not enough memory")
    return isinstance(error, kinds) or any(text in str(error).lower() for text in texts)


class MicroBatch:
    """Images per forward pass, a multiple of `least`; halved when memory runs out, which changes
    slices and never the mathematics."""

    def __init__(self, size: int, on_change: Callable[[int], None], least: int = 1):
        self.size, self.on_change, self.least = size, on_change, least

    def redo_smaller(self, work: Callable[[int], T]) -> T:
        """work(size), again from its beginning with half the size after running out of memory."""
        while True:
            try:
                return work(self.size)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except block: the traceback no longer holds the step's tensors.
            if self.size <= self.least:
                many = "a single image" if self.size == 1 else f"{self.size} images"
                raise RunError(
                    f"out of memory with {many}: take a smaller network (net.widths, "
                    "net.patch) or a GPU with more memory"
                )
            self.size = max(self.least, self.size // 2 // self.least * self.least)
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            self.on_change(self.size)


class BaseTrainer(Generic[NetT]):
    """Images, the network that draws and its averaged weights; the log row and the saved state."""

    PARTS: ClassVar[dict[str, str]]  # name in a checkpoint -> the attribute whose state it holds
    rates: dict[str, float]  # name of an optimizer -> its learning rate, before `rate_factor`
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        run: Run,
        task: Callable[..., Any],
        decay: float | Callable[[int], float],
        ranks: Ranks | None = None,
    ):
        """`task` builds what computes gradients (`tasks`), with `ranks` if there are any; `decay`
        is that of `Averaged`."""
        self.run, self.config, self.data, self.device = run, run.config, run.data, run.device
        self.seed, self.batch = self.config.train.seed, self.config.train.batch
        self.stream = make_stream(self.config, run.data, self.device)
        self.steps_per_epoch = self.stream.epoch_steps
        self.total = total_steps(self.config, self.steps_per_epoch)
        images = run.data.channels, list(run.data.label_counts)
        steps = self.steps_per_epoch, self.total
        self.task = task(self.config, images, steps, self.device, run.precision)
        self.net: NetT = self.task.net
        self.sharing = Sharing(self.task, self.config.train.slices, ranks)
        if ranks:
            ranks.begin(self.config, images, steps, self.task, run.precision.name)
        self.ema = Averaged(self.net, decay)
        micro = min(self.config.train.micro or self.batch, self.batch)
        self.micro = MicroBatch(micro, self.smaller, self.task.least)
        self.meter = self.new_meter()
        self.step = 0
        self.whole = True  # False while a step has moved some of the state, and not yet all
        self.clock = (time.monotonic(), 0)  # when, and at which step, the last row was written

    def new_meter(self) -> Any:
        """Means since the last log row."""
        raise NotImplementedError

    def probe(self) -> None:
        """Before the first step: see that it fits into memory.  Without this, the steps tell."""

    def advance(self) -> dict[str, Any] | None:
        """One step; everything random in it is keyed by (seed, step).  A log row where one is
        due."""
        with one_thread() if self.sharing.sliced and self.device.type == "cpu" else nullcontext():
            return self.take_step()

    def take_step(self) -> dict[str, Any] | None:
        """What `advance` does, on as many of torch's threads as there are."""
        raise NotImplementedError

    def set_lr(self) -> None:
        """The learning rates are functions of the step."""
        factor = rate_factor(self.config, self.step, self.steps_per_epoch, self.total)
        for name, rate in self.rates.items():
            for group in getattr(self, name).param_groups:
                group["lr"] = rate * factor

    def count_step(self) -> dict[str, Any] | None:
        """The step is taken; returns a log row when one is due."""
        self.step += 1
        self.whole = True
        due = self.step % self.config.train.log_every == 0 or self.step == self.total
        return self.row() if due else None

    def smaller(self, micro: int) -> None:
        """Memory ran out, and slices are smaller from now on."""
        self.run.say(f"out of memory at step {self.step}: micro-batches of {micro} from now on")
        self.run.dir.note("micro-batch", step=self.step, micro=micro)

    def calm(self) -> str:
        """After NaN: what is done to avoid it, in words."""
        return "with the same arithmetic"

    def row(self) -> dict[str, Any]:
        """A log row; raises RunError when the weights are no longer numbers."""
        self.check_finite()
        row = {"step": self.step, "epoch": self.step / self.steps_per_epoch, **self.means()}
        (then, before), now = self.clock, time.monotonic()
        row["lr"] = self.optimizer.param_groups[0]["lr"]
        row["images_per_s"] = (self.step - before) * self.batch / (now - then)
        if self.sharing.ranks:
            row["images_per_s_by_rank"] = self.sharing.ranks.rates()
        row["time"] = time.time()
        self.clock = (now, self.step)
        self.meter = self.new_meter()
        return row

    def means(self) -> dict[str, Any]:
        return self.meter.row()

    def check_finite(self) -> None:
        """NaN is said at once, and never becomes a log row or a preview."""
        check_finite(self.numbers(), self.step)

    def numbers(self) -> dict[str, Any]:
        """Of every network, by name."""
        parts = {name: getattr(self, own) for name, own in self.PARTS.items()}
        return {k: dict(v.named_parameters()) for k, v in parts.items() if isinstance(v, nn.Module)}

    def preview_steps(self) -> set[int]:
        """After which the same seeds are drawn: at STAGES, and as train.preview_every says."""
        total, every = self.total, self.config.train.preview_every
        steps = span_steps(every, epoch=self.steps_per_epoch, total=total)
        regular = set(range(steps, total, steps) if steps else ())
        return regular | {max(1, round(share * total)) for share in STAGES}

    def save_preview(self, folder: Path) -> None:
        for name, pixels in self.preview().items():
            path = folder / f"step-{self.step:08d}{name}.png"
            save_png(grid(enlarge(pixels, 64), gap=4), path)

    def preview(self) -> dict[str, np.ndarray]:
        """The same few seeds from the averaged and from the raw weights."""
        self.check_finite()
        how = self.run.precision, self.device
        return {
            name: make_drawing(self.config, self.data, net, *how)(range(PREVIEWS), batch=PREVIEWS)
            for name, net in {"": self.ema.module, "-raw": self.net}.items()
        }

    def state_dict(self) -> dict[str, Any]:
        parts = {k: getattr(self, own).state_dict() for k, own in self.PARTS.items()}
        return {"step": self.step, **parts}

    def load(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Take a checkpoint's state, and return it.  CheckpointError when it does not fit."""
        state = checkpoint.load()
        try:
            self.load_state_dict(state)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{checkpoint.path} does not fit this network or optimizer ({reason}): delete it "
                "and its .json to go on from the generation before"
            ) from error
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, own in self.PARTS.items():
            getattr(self, own).load_state_dict(state[name])
        self.step, self.whole = state["step"], True
        self.clock = (time.monotonic(), self.step)


def gradient_norm(net: nn.Module) -> Tensor:
    norms = [torch.linalg.vector_norm(p.grad) for p in net.parameters() if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms))


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
