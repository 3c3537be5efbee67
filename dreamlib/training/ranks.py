"""Several processes take one training's steps: rank 0 trains, the others compute for it.

Rank 0 alone holds the run: folder, images, optimizer, averages, clock.  For every gradient it
sends the others the weights and the rows of their slices, and they answer with the slices'
gradients.  So a checkpoint does not know how many there were, and whatever ends or shrinks a step
is decided in one place.  `torchrun` starts and restarts them.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dreamlib.config.load import make_config
from dreamlib.config.schema import Config
from dreamlib.diffusion.losses import Batch
from dreamlib.gan.augment import Maps
from dreamlib.gan.losses import Draws
from dreamlib.training.channel import Channel, reached
from dreamlib.training.slices import Job, Slice, compute_all, parts_of, size_of
from dreamlib.training.tasks import DiffusionTask, Facts, GanTask, Task
from dreamlib.utils.errors import ConfigError, DreamlibError
from dreamlib.utils.nest import each_tensor
from dreamlib.utils.platform import choose_device, choose_precision
from dreamlib.utils.threads import one_thread

KNOWN = [Batch, Draws, Maps, Job]  # what a message may hold beside tensors and plain values


class Ranks(Channel):
    """The processes of a training, as one of them sees them."""

    def __init__(self) -> None:
        super().__init__(KNOWN)
        self.rows: list[int] = []  # of the batch at hand, by rank
        self.done, self.seconds = [0] * self.count, [0.0] * self.count

    # ------------------------------------------------------------------ rank 0

    def begin(
        self,
        config: Config,
        images: tuple[int, list[int]],
        steps: tuple[float, int],
        task: Task,
        precision: str,
    ) -> None:
        """Tell the others what they will compute.  ConfigError when one of them cannot do so on
        the same kind of device."""
        message = {"config": config.model_dump(mode="json"), "images": images, "steps": steps}
        message |= {"device": task.device.type, "precision": precision}
        message["memory"] = self.share_memory(task.nets, config.train.slices)
        self.order("work")
        for rank in range(1, self.count):
            self.send(rank, message)
        answers = [self.receive(rank) for rank in range(1, self.count)]
        if errors := [answer["error"] for answer in answers if answer["error"]]:
            raise ConfigError("; ".join(errors))

    def share(
        self,
        task: Task,
        what: str,
        jobs: Sequence[Job],
        facts: Facts,
        micro: int,
        threads: int,
    ) -> list[Slice]:
        """Slices by all ranks, in their order; an error once all have answered."""
        shares = [jobs[part] for part in parts_of(len(jobs), self.count)]
        shares += [[]] * (self.count - len(shares))
        if self.memory is not None:
            self.spread(task.reads(what))
        self.order("work")
        for rank, share in enumerate(shares[1:], 1):
            own = each_tensor(list(share), Tensor.clone)  # a view is saved with all it looks into
            self.send(rank, {"what": what, "jobs": own, "facts": facts, "micro": micro})
        if self.memory is None:
            self.spread(task.reads(what))
        self.rows = [sum(size_of(job.rows) for job in share) for share in shares]
        try:
            done, seconds = _timed(task, what, shares[0], facts, micro, threads)
            self._count(0, seconds)
        finally:
            parameters = task.parameters(what)
            answers = [
                self.collect(rank, share, parameters)
                for rank, share in enumerate(shares[1:], 1)
                if share
            ]
        for answer in answers:
            if isinstance(answer, RuntimeError):
                raise answer
            done += answer
        return done

    def collect(
        self, rank: int, jobs: Sequence[Job], parameters: Sequence[Tensor]
    ) -> list[Slice] | RuntimeError:
        """The answer of a rank."""
        answer = self.receive(rank)
        if answer["error"]:
            return RuntimeError(f"rank {rank}: {answer['error']}")
        self._count(rank, answer["seconds"])
        slices = []
        for job, present, stats in zip(jobs, answer["present"], answer["stats"]):
            held = [p for p, is_there in zip(parameters, present) if is_there]
            flat = self.gradients(job.number, sum(p.numel() for p in held), held[0].device)
            if self.memory is None:
                with reached():
                    dist.recv(flat, rank)
            parts = iter(flat.split([p.numel() for p in held]))
            gradients = [
                next(parts).view_as(p) if is_there else None
                for p, is_there in zip(parameters, present)
            ]
            device = held[0].device
            slices.append(Slice(gradients, {k: v.to(device) for k, v in stats.items()}))
        return slices

    def _count(self, rank: int, seconds: float) -> None:
        self.done[rank] += self.rows[rank]
        self.seconds[rank] += seconds

    def rates(self) -> list[float]:
        """Images per second of each rank while it computed, since the last call."""
        rates = [n / s if s else 0.0 for n, s in zip(self.done, self.seconds)]
        self.done, self.seconds = [0] * self.count, [0.0] * self.count
        return rates

    # ------------------------------------------------------------------ the others

    def follow(self) -> None:
        """Compute for rank 0 until it says that it ended.  RunError when it is not heard of."""
        task: Task | None = None
        asked = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: asked.set())
        with one_thread() as threads:
            while self.ordered(asked) != b"end":
                message = self.receive(0)
                if "config" in message:
                    task, error = _task_of(message, self.rank)
                    if task and message["memory"]:
                        self.see(message["memory"], task.nets)
                    self.send(0, {"error": error})
                elif task:
                    self._answer(task, message, threads)

    def _answer(self, task: Task, message: dict[str, Any], threads: int) -> None:
        what, jobs, facts = message["what"], message["jobs"], message["facts"]
        if jobs or self.memory is None:
            self.spread(task.reads(what))
        if not jobs:
            return
        try:
            done, seconds = _timed(task, what, jobs, facts, message["micro"], threads)
        except (RuntimeError, ValueError) as error:  # memory that ran out, mostly: rank 0 decides
            self.send(0, {"error": str(error) or type(error).__name__})
            return
        present = [[gradient is not None for gradient in each.gradients] for each in done]
        stats = [{k: v.cpu() for k, v in each.stats.items()} for each in done]
        flats = []
        for job, each in zip(jobs, done):
            held = [g.flatten() for g in each.gradients if g is not None]
            flat = self.gradients(job.number, sum(map(len, held)), task.device)
            flats.append(torch.cat(held, out=flat))
        self.send(0, {"error": "", "present": present, "stats": stats, "seconds": seconds})
        for flat in flats if self.memory is None else ():
            with reached():
                dist.send(flat, 0)


def _timed(task: Task, *work: Any) -> tuple[list[Slice], float]:
    """What `compute_all` answers, and its seconds."""
    begun = time.perf_counter()
    done = compute_all(task, *work)
    if task.device.type == "cuda":
        torch.cuda.synchronize()
    return done, time.perf_counter() - begun


def _task_of(message: dict[str, Any], rank: int) -> tuple[Task | None, str]:
    """What rank 0 will ask for, and why that cannot be done here."""
    try:
        config = make_config(message["config"], "rank 0")
        device = choose_device(config.train.device)
        if device.type != message["device"]:
            return None, (
                f"rank {rank} has {device.type} and rank 0 {message['device']}: give all the same "
                "(train.device=cpu)"
            )
        precision = choose_precision(message["precision"], device)
        build = GanTask if config.model == "gan" else DiffusionTask
        return build(config, message["images"], message["steps"], device, precision), ""
    except (DreamlibError, RuntimeError) as error:
        return None, f"rank {rank}: {error}"
