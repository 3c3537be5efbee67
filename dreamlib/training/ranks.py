"""Several processes take one training's steps: rank 0 trains, the others compute for it.

Rank 0 alone holds the run: folder, images, optimizer, averages, clock.  For every gradient it
sends the others the weights and the rows of their slices, and they answer with the slices'
gradients.  So a checkpoint does not know how many there were, and whatever ends or shrinks a step
is decided in one place.  `torchrun` starts and restarts them.
"""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, rendezvous  # pyright: ignore

from dreamlib.config.load import make_config
from dreamlib.config.schema import Config
from dreamlib.diffusion.losses import Batch
from dreamlib.gan.augment import Maps
from dreamlib.gan.losses import Draws
from dreamlib.training.slices import Job, Slice, compute_all, parts_of, size_of
from dreamlib.training.tasks import DiffusionTask, Facts, GanTask, Task
from dreamlib.utils.errors import ConfigError, DreamlibError, RunError
from dreamlib.utils.nest import each_tensor
from dreamlib.utils.platform import choose_device, choose_precision
from dreamlib.utils.threads import one_thread

KNOWN = [Batch, Draws, Maps, Job]  # what a message may hold beside tensors and plain values
BEAT = 1.0  # seconds between rank 0's signs of life
SILENCE, LEAVING = 60.0, 5.0  # after which the others give up: usually, and when asked to stop
ANSWER = timedelta(seconds=float(os.environ.get("DREAMLIB_ANSWER_SECONDS", "300")))
JOINED = "DREAMLIB_RANK"  # set within a process group, so that its own subprocesses join none


def is_rank() -> bool:
    """Whether torchrun started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and JOINED not in os.environ


class Ranks:
    """The process group, as one of its members sees it."""

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        os.environ[JOINED] = str(self.rank)
        torch.serialization.add_safe_globals(KNOWN)
        self.store = _store(self.rank, self.count)
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=self.store,
            rank=self.rank,
            world_size=self.count,
            timeout=ANSWER,
        )
        self.orders = 0
        self.rows: list[int] = []  # of the batch at hand, by rank
        self.done, self.seconds = [0] * self.count, [0.0] * self.count
        self.ended = threading.Event()

    # ------------------------------------------------------------------ rank 0

    @contextmanager
    def leading(self) -> Iterator[Ranks]:
        """Rank 0's signs of life; the others are told to end afterwards, whatever happened."""
        beating = threading.Thread(target=self._beat, daemon=True)
        beating.start()
        try:
            yield self
        finally:
            self.ended.set()
            beating.join()
            with suppress(RuntimeError):  # a store that is gone with its process
                self._order("end")

    def _beat(self) -> None:
        parent, count = os.getppid(), 0
        while not self.ended.wait(BEAT):
            count += 1
            with suppress(RuntimeError):
                self.store.set("beat", str(count))
            if os.getppid() != parent:  # torchrun was killed: nobody else will end this
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _order(self, word: str) -> None:
        self.store.set(f"order {self.orders}", word)
        self.store.delete_key(f"order {self.orders - 1}")  # all have taken it: they answered
        self.orders += 1

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
        self._order("work")
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
        self._order("work")
        for rank, share in enumerate(shares[1:], 1):
            own = each_tensor(list(share), Tensor.clone)  # a view is saved with all it looks into
            self.send(rank, {"what": what, "jobs": own, "facts": facts, "micro": micro})
        self.spread(task.reads(what))
        self.rows = [sum(size_of(job.rows) for job in share) for share in shares]
        try:
            done, seconds = _timed(task, what, shares[0], facts, micro, threads)
            self._count(0, seconds)
        finally:
            parameters = task.parameters(what)
            answers = [
                self.collect(rank, len(share), parameters)
                for rank, share in enumerate(shares[1:], 1)
                if share
            ]
        for answer in answers:
            if isinstance(answer, RuntimeError):
                raise answer
            done += answer
        return done

    def collect(
        self, rank: int, count: int, parameters: Sequence[Tensor]
    ) -> list[Slice] | RuntimeError:
        """The answer of a rank."""
        answer = self.receive(rank)
        if answer["error"]:
            return RuntimeError(f"rank {rank}: {answer['error']}")
        self._count(rank, answer["seconds"])
        slices = []
        for present, stats in zip(answer["present"], answer["stats"]):
            held = [p for p, is_there in zip(parameters, present) if is_there]
            flat = torch.empty(sum(p.numel() for p in held), device=held[0].device)
            with _reached():
                dist.recv(flat, rank)
            parts = iter(flat.split([p.numel() for p in held]))
            gradients = [
                next(parts).view_as(p) if is_there else None
                for p, is_there in zip(parameters, present)
            ]
            device = held[0].device
            slices.append(Slice(gradients, {k: v.to(device) for k, v in stats.items()}))
        assert len(slices) == count
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
            while self._ordered(asked) != b"end":
                message = self.receive(0)
                if "config" in message:
                    task, error = _task_of(message, self.rank)
                    self.send(0, {"error": error})
                elif task:
                    self._answer(task, message, threads)

    def _ordered(self, asked: threading.Event) -> bytes:
        """Rank 0's next order.  Whether it lives is known by its beats."""
        key, heard, since = f"order {self.orders}", b"", time.monotonic()
        self.orders += 1
        begun, looked = since, 0.0
        while not self.store.check([key]):
            now = time.monotonic()
            time.sleep(min(0.05, max(1e-4, (now - begun) / 30)))  # sooner than it was waited for
            if now - looked < BEAT:
                continue
            looked, beat = now, self.store.get("beat") if self.store.check(["beat"]) else b""
            if beat != heard:
                heard, since = beat, now
            if now - since > (LEAVING if asked.is_set() else SILENCE):
                raise RunError(f"rank {self.rank} has heard nothing of rank 0: it ended")
        return self.store.get(key)

    def _answer(self, task: Task, message: dict[str, Any], threads: int) -> None:
        what, jobs, facts = message["what"], message["jobs"], message["facts"]
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
        self.send(0, {"error": "", "present": present, "stats": stats, "seconds": seconds})
        for each in done:
            dist.send(torch.cat([g.flatten() for g in each.gradients if g is not None]), 0)

    # ------------------------------------------------------------------ both

    def leave(self) -> None:
        with suppress(RuntimeError):  # others may be gone already
            dist.destroy_process_group()

    def spread(self, nets: Sequence[nn.Module]) -> None:
        """The others take over rank 0's weights."""
        weights = [p for net in nets for p in net.parameters()]
        flat = torch.cat([p.detach().flatten() for p in weights])
        with _reached():
            dist.broadcast(flat, 0)
        if self.rank:
            with torch.no_grad():
                for weight, value in zip(weights, flat.split([p.numel() for p in weights])):
                    weight.copy_(value.view_as(weight))

    def send(self, rank: int, message: dict[str, Any]) -> None:
        file = io.BytesIO()
        torch.save(message, file)
        data = torch.frombuffer(file.getbuffer(), dtype=torch.uint8)
        with _reached():
            dist.send(torch.tensor([len(data)]), rank)
            dist.send(data, rank)

    def receive(self, rank: int) -> dict[str, Any]:
        size = torch.zeros(1, dtype=torch.int64)
        with _reached():
            dist.recv(size, rank)
            data = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(data, rank)
        file = io.BytesIO(data.numpy().tobytes())
        return torch.load(file, map_location="cpu", weights_only=True)


def _timed(task: Task, *work: Any) -> tuple[list[Slice], float]:
    """What `compute_all` answers, and its seconds."""
    begun = time.perf_counter()
    done = compute_all(task, *work)
    if task.device.type == "cuda":
        torch.cuda.synchronize()
    return done, time.perf_counter() - begun


@contextmanager
def _reached() -> Iterator[None]:
    """RunError when another process is gone."""
    try:
        yield
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise RunError(
            f"another process of this training is gone ({why}): give the same command again"
        ) from error


def _store(rank: int, count: int) -> Any:
    """Where ranks meet; after a restart under keys of its own, where torchrun kept the store."""
    store, _, _ = next(rendezvous("env://", rank, count))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    one_host = os.environ.get("LOCAL_WORLD_SIZE") == str(count)  # else every host counts its own
    return PrefixStore(f"dreamlib {attempt if one_host else ''}", store)


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
