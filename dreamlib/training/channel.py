"""How the processes of a training reach each other: orders, messages, weights and gradients.

Rank 0 orders, the others wait for orders and know by its beats that it lives.  On one host's CPU
weights and gradients lie in memory that all of them see, elsewhere they are sent.
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

from dreamlib.utils.errors import RunError

BEAT = 1.0  # seconds between rank 0's signs of life
SILENCE, LEAVING = 60.0, 5.0  # after which the others give up: usually, and when asked to stop
ANSWER = timedelta(seconds=float(os.environ.get("DREAMLIB_ANSWER_SECONDS", "300")))
JOINED = "DREAMLIB_RANK"  # set within a process group, so that its own subprocesses join none


def is_rank() -> bool:
    """Whether torchrun started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and JOINED not in os.environ


class Channel:
    """The process group, as one of its members sees it."""

    def __init__(self, known: list[Any]) -> None:
        """`known`: classes that a message may hold, beside tensors and plain values."""
        self.rank, self.count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        os.environ[JOINED] = str(self.rank)
        torch.serialization.add_safe_globals(known)
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
        self.memory: Tensor | None = None  # of one host's processes: weights, then gradients
        self.room = 0  # numbers of the weights in it
        self.ended = threading.Event()

    # ------------------------------------------------------------------ orders

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Rank 0's signs of life; the others are told to end afterwards, whatever happened."""
        beating = threading.Thread(target=self._beat, daemon=True)
        beating.start()
        try:
            yield
        finally:
            self.ended.set()
            beating.join()
            with suppress(RuntimeError):  # a store that is gone with its process
                self.order("end")

    def _beat(self) -> None:
        parent, count = os.getppid(), 0
        while not self.ended.wait(BEAT):
            count += 1
            with suppress(RuntimeError):
                self.store.set("beat", str(count))
            if os.getppid() != parent:  # torchrun was killed: nobody else will end this
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def order(self, word: str) -> None:
        self.store.set(f"order {self.orders}", word)
        self.store.delete_key(f"order {self.orders - 1}")  # all have taken it: they answered
        self.orders += 1

    def ordered(self, asked: threading.Event) -> bytes:
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

    # ------------------------------------------------------------------ what is handed over

    def share_memory(self, nets: Sequence[nn.Module], slices: int) -> tuple[str, int] | None:
        """On one host's CPU: room for all weights, and for every slice's gradients."""
        one_host = os.environ.get("LOCAL_WORLD_SIZE") == str(self.count)
        on_cpu = next(nets[0].parameters()).is_cpu
        if not (on_cpu and one_host and hasattr(os, "memfd_create")):
            return None
        size = count(nets) * (1 + slices)
        self.file = os.memfd_create("dreamlib")  # not in /dev/shm, which containers keep small
        os.ftruncate(self.file, 4 * size)
        where = f"/proc/{os.getpid()}/fd/{self.file}", size
        self.see(where, nets)
        return where

    def see(self, where: tuple[str, int], nets: Sequence[nn.Module]) -> None:
        """Use rank 0's memory, a file and its numbers, for these networks."""
        self.memory = torch.from_file(where[0], shared=True, size=where[1])
        self.room = count(nets)

    def leave(self) -> None:
        with suppress(RuntimeError):  # others may be gone already
            dist.destroy_process_group()

    def spread(self, nets: Sequence[nn.Module]) -> None:
        """The others take over rank 0's weights."""
        weights = [p for net in nets for p in net.parameters()]
        size, device = count(nets), weights[0].device
        flat = torch.empty(size, device=device) if self.memory is None else self.memory[:size]
        if self.rank == 0:
            torch.cat([p.detach().flatten() for p in weights], out=flat)
        if self.memory is None:
            with reached():
                dist.broadcast(flat, 0)
        if self.rank:
            with torch.no_grad():
                for weight, value in zip(weights, flat.split([p.numel() for p in weights])):
                    weight.copy_(value.view_as(weight))

    def gradients(self, number: int, size: int, device: torch.device) -> Tensor:
        """Where a slice's gradients go."""
        if self.memory is None:
            return torch.empty(size, device=device)
        begin = self.room * (1 + number)
        return self.memory[begin : begin + size]

    def send(self, rank: int, message: dict[str, Any]) -> None:
        file = io.BytesIO()
        torch.save(message, file)
        data = torch.frombuffer(file.getbuffer(), dtype=torch.uint8)
        with reached():
            dist.send(torch.tensor([len(data)]), rank)
            dist.send(data, rank)

    def receive(self, rank: int) -> dict[str, Any]:
        size = torch.zeros(1, dtype=torch.int64)
        with reached():
            dist.recv(size, rank)
            data = torch.empty(int(size), dtype=torch.uint8)
            dist.recv(data, rank)
        file = io.BytesIO(data.numpy().tobytes())
        return torch.load(file, map_location="cpu", weights_only=True)


def count(nets: Sequence[nn.Module]) -> int:
    """Numbers of all weights."""
    return sum(p.numel() for net in nets for p in net.parameters())


@contextmanager
def reached() -> Iterator[None]:
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
