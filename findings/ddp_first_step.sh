#!/bin/sh
# torch 2.13.0, DistributedDataParallel over gloo, on CPUs, seen on 2026-12-01, Linux, Python 3.11.
#
# Guess: with the same weights and batches every step gives the same averaged gradients, bit by bit,
# so a training that is stopped and resumed from exact state goes on as if nothing had happened.
# Seen: with two processes yes.  With three or four, the first step of a process differs from all later
# ones in some 2 to 4 % of the gradients: after it DDP sorts its buckets anew, the position in a bucket
# decides in which order gloo adds, and (a + b) + c is not a + (b + c).  Every resume has such a first
# step, so exact state is not enough for exact bits.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check \
    'torch==2.13.0' 'numpy==2.4.6' 2>/dev/null
"$place/venv/bin/python" - <<'PY' 2>/dev/null
import os
import socket

# Children of a program that came through a pipe cannot be spawned from a file: they are forked.
os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
import torch
import torch.distributed as dist
from torch import nn


def work(rank, count, port, answers):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=count)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.SiLU(), nn.Conv2d(64, 64, 3), nn.SiLU(), nn.Conv2d(64, 3, 3))
    batch = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(rank))
    both, steps = nn.parallel.DistributedDataParallel(net), []
    for _ in range(4):
        net.zero_grad()
        both(batch).square().mean().backward()
        steps.append(torch.cat([p.grad.flatten().clone() for p in net.parameters()]))
    if rank == 0:
        answers.put([float((steps[i] != steps[i + 1]).float().mean()) for i in range(3)])
    dist.destroy_process_group()


context = torch.multiprocessing.get_context("fork")
for count in 2, 3, 4:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = context.Queue()
    family = [context.Process(target=work, args=(rank, count, port, answers)) for rank in range(count)]
    for each in family:
        each.start()
    apart = answers.get(timeout=120)
    for each in family:
        each.join()
    print(f"{count} processes: {apart[0]:.2%} of the gradients change from the first to the second step, "
          f"{apart[1]:.2%} and {apart[2]:.2%} afterwards")
    assert (apart[0] > 0) == (count > 2) and apart[1:] == [0, 0], "the behaviour has changed"
print("as stated")
PY
