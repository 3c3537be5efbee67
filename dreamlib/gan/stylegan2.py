"""StyleGAN2: mapping network, skip generator, residual discriminator; plain PyTorch.

z (noise) becomes w by the mapping network, and w becomes a scale of the input channels of every
convolution.  `widths` are channels per resolution, the image's own first and 4x4 last, as for the
U-Net.  Karras 2019 (arXiv 1812.04948) has mapping, noise, mixing and truncation; Karras 2020
(arXiv 1912.04958) demodulation, the two shapes and their filters.

All weights start as unit normals and are scaled where they are used (equalised learning rate:
Karras 2018, arXiv 1710.10196, Sec. 4.1), so that an optimizer moves all layers at one pace.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = (1.0, 3.0, 3.0, 1.0)  # low-pass filter around every change of resolution, an even number
GROUP = 4  # images that minibatch standard deviation compares
SMALLEST = 4  # pixels, where generator and discriminator meet the vectors
EPS = 1e-8

Taps = Sequence[float]
Noise = Sequence[Tensor]  # for every layer that takes some [B,1,H,W], standard normal


def resolutions(size: int, widths: Sequence[int]) -> list[int]:
    """Pixels per side of each width: size, size/2, ..., 4.  Raises ValueError where they differ."""
    sizes = [size >> level for level in range(len(widths))]
    if not widths or SMALLEST << (len(widths) - 1) != size:
        raise ValueError(
            f"images of {size} pixels need one width for each of {size}, {size // 2}, ..., "
            f"{SMALLEST} pixels (a size is {SMALLEST} times a power of two), got {len(widths)}"
        )
    return sizes


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps the mean square of a centred input about what it was."""
    return F.leaky_relu(x, 0.2) * 2**0.5


def fir(x: Tensor, taps: Taps, gain: float = 1.0) -> Tensor:
    """The low-pass filter as weights for all of x's channels, [C,1,k,k]; they sum to `gain`."""
    row = torch.tensor(taps, dtype=x.dtype, device=x.device)
    kernel = torch.outer(row, row)
    return (kernel * (gain / kernel.sum())).expand(x.shape[1], 1, -1, -1)


def blur(x: Tensor, taps: Taps, grow: int, gain: float = 1.0) -> Tensor:
    """Filtered, [B,C,H,W] -> [B,C,H+grow,W+grow]; grow is 1 or -1."""
    padding = (len(taps) - 1 + grow) // 2
    return F.conv2d(x, fir(x, taps, gain), padding=padding, groups=x.shape[1])


def upsample(x: Tensor, taps: Taps = TAPS) -> Tensor:
    """[B,C,H,W] -> [B,C,2H,2W]."""
    padding, weight = len(taps) // 2 - 1, fir(x, taps, 4.0)
    return F.conv_transpose2d(x, weight, stride=2, padding=padding, groups=x.shape[1])


def downsample(x: Tensor, taps: Taps = TAPS) -> Tensor:
    """[B,C,H,W] -> [B,C,H/2,W/2]."""
    padding, weight = len(taps) // 2 - 1, fir(x, taps)
    return F.conv2d(x, weight, stride=2, padding=padding, groups=x.shape[1])


class Linear(nn.Module):
    """A linear layer of equalised learning rate; `lr_mul` slows it down further."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, lr_mul: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_mul)
        self.bias = nn.Parameter(torch.full((outputs,), bias / lr_mul))
        self.scale, self.lr_mul = lr_mul / inputs**0.5, lr_mul

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)


class Conv(nn.Module):
    """A convolution of equalised learning rate; `down`: the filter of one that halves the image."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, down: Taps = (), bias: bool = True
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale, self.down = (inputs * kernel**2) ** -0.5, down

    def forward(self, x: Tensor) -> Tensor:
        weight, kernel = self.weight * self.scale, self.weight.shape[-1]
        if not self.down:
            return F.conv2d(x, weight, self.bias, padding=kernel // 2)
        if kernel == 1:
            return F.conv2d(downsample(x, self.down), weight, self.bias)
        return F.conv2d(blur(x, self.down, grow=1), weight, self.bias, stride=2)


def demodulation(weight: Tensor, style: Tensor) -> Tensor:
    """What makes modulated weights of unit norm per output: [O,I,k,k], style [B,I] -> [B,O].

    Karras 2020, Eq. 3: 1 / sqrt(sum over i,k of (s_i w_oik)^2 + eps).
    """
    return torch.rsqrt(style.square() @ weight.square().sum((2, 3)).T + EPS)


class Modulated(nn.Module):
    """A convolution whose weights are scaled per image by a style: [B,I,H,W], w -> [B,O,..].

    Scaling the input by the style and the output by the demodulation is the same as convolving
    every image with weights of its own (Karras 2020, Eq. 1 and 3), and needs no groups.  `up`: the
    filter of one that doubles the image.
    """

    def __init__(
        self,
        w_dim: int,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        up: Taps = (),
        demodulate: bool = True,
    ):
        super().__init__()
        self.style = Linear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.scale = (inputs * kernel**2) ** -0.5
        self.up, self.demodulate = up, demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style, weight = self.style(w), self.weight * self.scale
        x = x * style[:, :, None, None].to(x.dtype)
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
            x = blur(x, self.up, grow=-1, gain=4.0)
        else:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if self.demodulate:
            x = x * demodulation(weight, style)[:, :, None, None].to(x.dtype)
        return x


class StyleLayer(nn.Module):
    """Modulated convolution, noise of a learned strength, bias, leaky ReLU."""

    def __init__(self, w_dim: int, inputs: int, outputs: int, *, up: Taps = ()):
        super().__init__()
        self.conv = Modulated(w_dim, inputs, outputs, 3, up=up)
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        return leaky(self.conv(x, w) + self.strength * noise + self.bias[:, None, None])


class ToImage(nn.Module):
    """Features to colours: a 1x1 convolution, modulated and not demodulated."""

    def __init__(self, w_dim: int, inputs: int, channels: int):
        super().__init__()
        self.conv = Modulated(w_dim, inputs, channels, 1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.conv(x, w) + self.bias[:, None, None]


class Mapping(nn.Module):
    """z [B,Z] -> w [B,W].  z is brought to unit mean square; layers learn at `lr_mul`."""

    def __init__(self, z_dim: int, w_dim: int, layers: int = 8, lr_mul: float = 0.01):
        super().__init__()
        sizes = [z_dim] + [w_dim] * layers
        self.layers = nn.ModuleList(Linear(a, b, lr_mul=lr_mul) for a, b in pairwise(sizes))

    def forward(self, z: Tensor) -> Tensor:
        w = z * torch.rsqrt(z.square().mean(1, keepdim=True) + EPS)
        for layer in self.layers:
            w = leaky(layer(w))
        return w


class Synthesis(nn.Module):
    """Styles to an image: a learned constant at 4x4, doubled until it is whole.

    Every resolution adds its own colours to those of the one below (skips: Karras 2020, Fig. 7b).
    """

    def __init__(
        self, size: int, channels: int, widths: Sequence[int], w_dim: int, taps: Taps = TAPS
    ):
        super().__init__()
        self.taps = taps
        self.count = 2 * len(resolutions(size, widths))  # styles it takes
        rising = list(reversed(widths))
        both = [each for each in reversed(resolutions(size, widths)) for _ in range(2)]
        self.noise_sizes = both[1:]  # one layer at 4x4, two at every other resolution
        self.start = nn.Parameter(torch.randn(1, rising[0], SMALLEST, SMALLEST))
        self.first = StyleLayer(w_dim, rising[0], rising[0])
        self.ups = nn.ModuleList(StyleLayer(w_dim, a, b, up=taps) for a, b in pairwise(rising))
        self.convs = nn.ModuleList(StyleLayer(w_dim, b, b) for b in rising[1:])
        self.images = nn.ModuleList(ToImage(w_dim, each, channels) for each in rising)

    def forward(self, ws: Tensor, noise: Noise) -> Tensor:
        """ws [B,count,W], a noise per entry of `noise_sizes` -> images [B,C,size,size], about
        [-1, 1] once trained."""
        w = ws.unbind(1)
        x = self.first(self.start.repeat(ws.shape[0], 1, 1, 1), w[0], noise[0])
        image = self.images[0](x, w[1])
        for level, (up, conv) in enumerate(zip(self.ups, self.convs)):
            k = 2 * level + 1
            x = conv(up(x, w[k], noise[k]), w[k + 1], noise[k + 1])
            image = upsample(image, self.taps) + self.images[level + 1](x, w[k + 2])
        return image


class Generator(nn.Module):
    """z -> images, with the running mean of w for truncation."""

    def __init__(
        self,
        size: int,
        channels: int,
        widths: Sequence[int],
        *,
        z_dim: int = 512,
        w_dim: int = 512,
        mapping: int = 8,
        taps: Taps = TAPS,
    ):
        super().__init__()
        self.size, self.z_dim = size, z_dim
        self.mapping = Mapping(z_dim, w_dim, mapping)
        self.synthesis = Synthesis(size, channels, widths, w_dim, taps)
        self.w_mean: torch.Tensor
        self.register_buffer("w_mean", torch.zeros(w_dim))

    def spread(self, w: Tensor) -> Tensor:
        """One w [B,W] for every layer: [B,count,W]."""
        return w[:, None].expand(-1, self.synthesis.count, -1)

    def truncated(self, z: Tensor, truncation: float = 1.0) -> Tensor:
        """z [B,Z] -> w [B,W].  `truncation` below 1 draws w towards its mean: more typical images,
        less varied ones.  Karras 2019, App. B."""
        w = self.mapping(z)
        return w if truncation == 1 else self.w_mean + truncation * (w - self.w_mean)

    def forward(self, z: Tensor, noise: Noise, truncation: float = 1.0) -> Tensor:
        """z [B,Z] -> images [B,C,size,size]."""
        return self.synthesis(self.spread(self.truncated(z, truncation)), noise)


def minibatch_std(x: Tensor, group: int = GROUP) -> Tensor:
    """x [B,C,H,W] with one channel more: how far the images of a group differ, on average.

    Groups are neighbours in the batch, so that a batch may pass in slices of whole groups.  Raises
    ValueError unless B is a multiple of `group`.  Karras 2018 (arXiv 1710.10196), Sec. 3.
    """
    if len(x) % group:
        raise ValueError(f"{len(x)} images are not whole groups of {group}")
    grouped = x.unflatten(0, (-1, group))
    off = grouped - grouped.mean(1, keepdim=True)  # `var` over this axis takes six times as long
    std = (off.square().mean(1) + EPS).sqrt().mean((1, 2, 3))
    channel = std.repeat_interleave(group).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
    return torch.cat([x, channel], dim=1)


class Residual(nn.Module):
    """Two convolutions and a shortcut to half the resolution.  Karras 2020, Fig. 7c."""

    def __init__(self, inputs: int, outputs: int, taps: Taps):
        super().__init__()
        self.conv = Conv(inputs, inputs, 3)
        self.down = Conv(inputs, outputs, 3, down=taps)
        self.short = Conv(inputs, outputs, 1, down=taps, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (leaky(self.down(leaky(self.conv(x)))) + self.short(x)) * 0.5**0.5


class Discriminator(nn.Module):
    """Images [B,C,size,size] -> logits [B]: above 0 for what it takes for real."""

    def __init__(self, size: int, channels: int, widths: Sequence[int], taps: Taps = TAPS):
        super().__init__()
        resolutions(size, widths)
        last = widths[-1]
        self.first = Conv(channels, widths[0], 1)
        self.blocks = nn.ModuleList(Residual(a, b, taps) for a, b in pairwise(widths))
        self.last = Conv(last + 1, last, 3)
        self.hidden = Linear(last * SMALLEST**2, last)
        self.logit = Linear(last, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = leaky(self.first(x))
        for block in self.blocks:
            x = block(x)
        x = leaky(self.last(minibatch_std(x)))
        return self.logit(leaky(self.hidden(x.flatten(1)))).squeeze(1)
