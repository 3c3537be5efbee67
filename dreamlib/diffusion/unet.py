"""The U-Net: residual blocks with time scale and shift, attention, full-resolution skips.

It needs PyTorch alone: an exported model carries this file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

GROUPS = 8


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoids of the timestep, t [B] -> float32 [B,dim].  Vaswani 2017, Sec. 3.5."""
    half = dim // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / half)
    angles = t.float()[:, None] * rates[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Dropout(nn.Dropout):
    """PyTorch's, bit for bit on a CPU, that may draw from a generator of its own: threads that
    draw from PyTorch's one would have to follow each other."""

    generator: torch.Generator | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        if self.generator is None or not self.training:
            return super().forward(input)
        kept = torch.empty_like(input).bernoulli_(1 - self.p, generator=self.generator)
        return input * kept.div_(1 - self.p)


class ResBlock(nn.Module):
    """GN, SiLU, conv, time scale and shift, GN, SiLU, dropout, conv; plus a shortcut."""

    def __init__(self, inp: int, out: int, time_dim: int, dropout: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, inp)
        self.conv1 = nn.Conv2d(inp, out, 3, padding=1)
        self.time = nn.Linear(time_dim, 2 * out)
        self.norm2 = nn.GroupNorm(GROUPS, out)
        self.dropout = Dropout(dropout)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(inp, out, 1) if inp != out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [B,inp,H,W], emb [B,time_dim] -> [B,out,H,W]."""
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = h * (1 + scale) + shift
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + self.shortcut(x)


class Attention(nn.Module):
    """Multi-head self-attention over pixels, residual.  [B,C,H,W] -> the same shape."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, breadth = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, width // self.heads, -1)
        # [B,heads,pixels,d], contiguous: SDPA's quick kernels need stride(-1) == 1.  In float32:
        # exact under autocast, and for few pixels on a CPU 4 to 12 times as fast as bfloat16.
        q, k, v = qkv.transpose(-1, -2).float().contiguous().unbind(1)
        autocast = qkv.dtype != torch.float32  # left only where it is on: not every device has one
        with torch.autocast(x.device.type, enabled=False) if autocast else nullcontext():
            h = F.scaled_dot_product_attention(q, k, v)
        h = h.transpose(-1, -2).reshape(batch, width, height, breadth)
        return x + self.proj(h)


class Level(nn.Module):
    """Residual blocks at one resolution, then attention where it has heads."""

    def __init__(
        self, widths: Sequence[int], time_dim: int, dropout: float, heads: int, recompute: bool
    ):
        super().__init__()
        self.recompute = recompute
        self.blocks = nn.ModuleList(
            ResBlock(inp, out, time_dim, dropout) for inp, out in pairwise(widths)
        )
        self.attention = Attention(widths[-1], heads) if heads else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for block in self.blocks:
            x = answer(block, self.recompute, x, emb)
        return answer(self.attention, self.recompute, x)


def answer(block: nn.Module, recompute: bool, *inputs: Tensor) -> Tensor:
    """With `recompute`, inner activations are dropped and computed again for the gradient."""
    return checkpoint(block, *inputs, use_reentrant=False) if recompute else block(*inputs)


class Middle(nn.Module):
    """ResBlock, attention, ResBlock at the lowest resolution."""

    def __init__(self, width: int, time_dim: int, dropout: float, heads: int, recompute: bool):
        super().__init__()
        self.recompute = recompute
        self.first = ResBlock(width, width, time_dim, dropout)
        self.attention = Attention(width, heads)
        self.second = ResBlock(width, width, time_dim, dropout)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = answer(self.first, self.recompute, x, emb)
        x = answer(self.attention, self.recompute, x)
        return answer(self.second, self.recompute, x, emb)


class UNet(nn.Module):
    """Predicts the noise in x_t, or v, or x0.  forward(x_t [B,C,S,S], t [B]) -> [B,C,S,S].

    `widths` has one entry per level; every level ends in a stride-2 convolution and hands its
    skip over at full resolution, before it.  `attention` lists the resolutions (after the patch
    stem) that attend; the middle always does.  `patch` > 1 folds patch x patch pixels into
    channels first: an inexpensive stem for small machines.  `labels` has the number of values of
    each attribute that the network is told (row 0 of their tables stands for "not told"); empty
    for an unconditional one.  `recompute` trades a second forward pass of each block for the
    memory of its activations.
    """

    def __init__(
        self,
        *,
        size: int,
        channels: int,
        widths: Sequence[int],
        blocks: int = 2,
        attention: Sequence[int] = (),
        heads: int = 4,
        dropout: float = 0.0,
        patch: int = 1,
        labels: Sequence[int] = (),
        recompute: bool = False,
    ):
        super().__init__()
        check_shape(size, widths, attention, heads, patch)
        self.size, self.channels, self.patch = size, channels, patch
        pixels, time_dim, sizes = (
            channels * patch**2,
            4 * widths[0],
            level_sizes(size, widths, patch),
        )

        def level(first: int, width: int, side: int) -> Level:
            attends = heads if side in attention else 0
            return Level([first, *[width] * blocks], time_dim, dropout, attends, recompute)

        layers = nn.Linear(widths[0], time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim)
        self.time = nn.Sequential(*layers)
        tables = [nn.Embedding(count + 1, time_dim) for count in labels]
        for table in tables:
            nn.init.normal_(table.weight, std=0.02)
        self.labels = nn.ModuleList(tables)
        self.stem = nn.Conv2d(pixels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(map(level, [widths[0], *widths], widths, sizes))
        self.shrink = nn.ModuleList(nn.Conv2d(w, w, 3, stride=2, padding=1) for w in widths)
        self.middle = Middle(widths[-1], time_dim, dropout, heads, recompute)
        doubling = partial(nn.ConvTranspose2d, kernel_size=4, stride=2, padding=1)
        self.grow = nn.ModuleList(map(doubling, [*widths[1:], widths[-1]], widths))
        self.up = nn.ModuleList(level(2 * w, w, side) for w, side in zip(widths, sizes))
        self.norm = nn.GroupNorm(GROUPS, widths[0])
        self.head = nn.Conv2d(widths[0], pixels, 3, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """y int64 [B,A]: a label per attribute, -1 where it is not told; None tells nothing."""
        emb = self.time(time_embedding(t, self.stem.out_channels))
        if y is not None and y.shape[1] != len(self.labels):
            raise ValueError(f"{y.shape[1]} labels for a network that knows {len(self.labels)}")
        for k, table in enumerate(self.labels):
            emb = emb + table(torch.zeros_like(t) if y is None else y[:, k] + 1)
        h = self.stem(F.pixel_unshuffle(x_t, self.patch) if self.patch > 1 else x_t)
        skips = []
        for level, shrink in zip(self.down, self.shrink):
            h = level(h, emb)
            skips.append(h)
            h = shrink(h)
        h = self.middle(h, emb)
        for level, grow, skip in reversed(list(zip(self.up, self.grow, skips))):
            h = level(torch.cat([grow(h), skip], dim=1), emb)
        h = self.head(F.silu(self.norm(h)))
        return F.pixel_shuffle(h, self.patch) if self.patch > 1 else h


def level_sizes(size: int, widths: Sequence[int], patch: int) -> list[int]:
    """Pixels per side of each level, after the patch stem."""
    return [size // patch // 2**i for i in range(len(widths))]


def check_shape(
    size: int, widths: Sequence[int], attention: Sequence[int], heads: int, patch: int
) -> None:
    """Raise ValueError naming the allowed values when these sizes cannot be built."""
    unit = patch * 2 ** len(widths)
    if size % unit:
        raise ValueError(
            f"size {size} does not divide into patches of {patch} and {len(widths)} halvings: "
            f"take {size // unit * unit or unit} or {(size // unit + 1) * unit}, or fewer widths"
        )
    bad = [w for w in widths if w % GROUPS or w % heads]
    if bad:
        raise ValueError(f"widths {bad} must be multiples of {GROUPS} (groups) and {heads} (heads)")
    known = level_sizes(size, widths, patch)
    unknown = [r for r in attention if r not in known]
    if unknown:
        raise ValueError(f"no level has resolution {unknown}: attention may name {known}")
