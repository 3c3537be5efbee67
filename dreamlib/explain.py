"""What a preset's network is made of and what it costs, counted rather than estimated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dreamlib.build import make_net
from dreamlib.sections import Config


@dataclass(frozen=True)
class Explanation:
    """Parameters by block, and the work of one image in FLOPs (a multiply-add counts two)."""

    blocks: list[tuple[str, int]]
    total: int
    forward: int
    step: int

    def text(self) -> str:
        wide = max(len(name) for name, _ in self.blocks)
        lines = [f"{name:<{wide}}  {count:>12,}" for name, count in self.blocks]
        lines.append(f"{'total':<{wide}}  {self.total:>12,}")
        lines.append("")
        lines.append(f"forward pass      {self.forward / 1e9:8.3f} GFLOP per image")
        lines.append(f"training step     {self.step / 1e9:8.3f} GFLOP per image (standard loss)")
        return "\n".join(lines)


def explain(config: Config, channels: int) -> Explanation:
    """Count a network's parameters and FLOPs; `channels` is 1 or 3.  Needs no images."""
    net = make_net(config, channels)
    x = torch.zeros(1, channels, config.data.size, config.data.size)
    with FlopCounterMode(display=False) as forward:
        out = net(x, torch.zeros(1, dtype=torch.int64))
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    blocks = [(name, count_parameters(part)) for name, part in _parts(net, config.net.widths)]
    total = count_parameters(net)
    work = forward.get_total_flops()
    return Explanation(blocks, total, work, work + backward.get_total_flops())


def count_parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _parts(net: nn.Module, widths: tuple[int, ...]) -> list[tuple[str, nn.Module]]:
    """The network's blocks in the order in which an image passes them."""
    levels = range(len(widths))
    parts = [("time", net.time), ("stem", net.stem)]
    for i in levels:
        parts += [(f"down {i + 1} ({widths[i]})", net.down[i]), (f"shrink {i + 1}", net.shrink[i])]
    parts.append(("middle", net.middle))
    for i in reversed(levels):
        parts += [(f"grow {i + 1}", net.grow[i]), (f"up {i + 1} ({widths[i]})", net.up[i])]
    return [*parts, ("norm", net.norm), ("head", net.head)]
