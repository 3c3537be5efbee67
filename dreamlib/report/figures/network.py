"""The U-Net of a config as a diagram: levels, widths, resolutions, attention, skips, parameters.

Drawn from the network itself, built without memory (torch's meta device) and never asked anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from dreamlib.config.factory import make_net
from dreamlib.config.schema import Config
from dreamlib.diffusion.unet import Level, UNet
from dreamlib.report.figures.palette import BLUE, GREEN, GREY, SMALL, TWO
from dreamlib.report.figures.style import footer, new_figure, style
from dreamlib.training.cost import count_parameters, usual_images

# Inches.  Every level is a row: its way down at the left, its way up at the right.
WIDE, TILE, PITCH = 2.15, 0.3, 0.86  # a level's box, a tile in it, from one row to the next
FIRST = -1.42  # height of the first level's centre
EDGE, INSET = 0.62, 0.3  # left of the first level; deeper levels are further in, if there is room
# What the network's output means.
ANSWERS = {"eps": "noise eps", "v": "v = a eps − s x0", "x0": "clean image x0"}
RESIDUAL, ATTENTION, CHANGE = "#CFE3F1", "#FAD9C6", "#CDEBDF"  # pale: words stand on them


@style()
def architecture(config: Config, run: str = "") -> Figure:
    """The network that `config` describes, from image to prediction; `run` is named in the footer.

    ConfigError when these settings make no network.
    """
    channels, labels = usual_images(config)
    with torch.device("meta"):
        net = make_net(config, channels, labels)
    levels = len(config.net.widths)
    high = PITCH * levels + 1.8
    fig, (axes,) = new_figure(TWO, high + 0.4)
    axes.set(xlim=(0, TWO), ylim=(-high, 0), aspect="equal")
    axes.set_axis_off()
    _ends(axes, net, config)
    for i in range(levels):
        _level(axes, net, config, i)
    _middle(axes, net, config)
    fig.suptitle(f"The U-Net of {config.preset}: {count_parameters(net):,} parameters")
    heads = f"{config.net.heads} attention heads, dropout {config.net.dropout:g}"
    images = f"{config.data.name} {config.data.size}×{config.data.size}"
    answer = ANSWERS[config.diffusion.prediction]
    footer(fig, f"{run} · {config.preset} · {images} · predicts {answer} · {heads}")
    return fig


def _count(number: int) -> str:
    """'1.18 M', '46.3 k'"""
    if number >= 1_000_000:
        return f"{number / 1e6:.3g} M"
    return f"{number / 1e3:.3g} k" if number >= 1000 else str(number)


def _boxes(config: Config, i: int) -> tuple[float, float, float]:
    """Left edges of a level's two boxes, and their centre's height."""
    room = TWO / 2 - EDGE - WIDE - 0.3
    inset = i * min(INSET, room / max(1, len(config.net.widths) - 1))
    return EDGE + inset, TWO - EDGE - WIDE - inset + 0.32, FIRST - i * PITCH


# --------------------------------------------------------------------------- parts of it


def _ends(axes: Axes, net: UNet, config: Config) -> None:
    """Image and stem at the left, head and answer at the right, the time embedding between."""
    left, right, first = _boxes(config, 0)
    size, channels, patch = net.size, net.channels, net.patch
    inner, y = size // patch, -0.72
    fold = f"{patch}×{patch} patches → {net.stem.in_channels} channels\n" if patch > 1 else ""
    unfold = f"\nback to {size}×{size}×{channels}" if patch > 1 else ""
    image = f"{size}×{size}×{channels}"
    middle = left + WIDE / 2, right + WIDE / 2
    _words(axes, middle[0], -0.14, f"noisy image x_t, {image}", bold=True)
    answer = f"predicted {ANSWERS[config.diffusion.prediction]}, {image}"
    _words(axes, middle[1], -0.14, answer, bold=True)
    stem = f"{fold}stem: conv 3×3 → {net.stem.out_channels} · {_count(count_parameters(net.stem))}"
    ends = count_parameters(net.head) + count_parameters(net.norm)
    head = f"norm, SiLU, conv 3×3 → {net.head.out_channels} · {_count(ends)}{unfold}"
    for x, text in zip(middle, (stem, head)):
        _box(axes, x - WIDE / 2, y - 0.2, WIDE, 0.4, CHANGE)
        _words(axes, x, y, text)
    above, below = first + TILE / 2 + 0.13, y - 0.2
    _arrow(axes, (middle[0], -0.25), (middle[0], y + 0.2))
    _arrow(axes, (middle[0], below), (middle[0], above))
    _arrow(axes, (middle[1], above), (middle[1], below))
    _arrow(axes, (middle[1], y + 0.2), (middle[1], -0.25))
    _time(axes, net, (left + WIDE, right), inner)


def _time(axes: Axes, net: UNet, between: tuple[float, float], inner: int) -> None:
    """The embedding of t, between stem and head."""
    centre = sum(between) / 2
    first, _, last = net.time
    lines = ["time step t", f"sinusoids, {first.in_features}"]
    lines += [f"Linear {first.out_features}, SiLU,", f"Linear {last.out_features}"]
    count = count_parameters(net.time)
    if len(net.labels):
        lines.append("+ labels, embedded")
        count += count_parameters(net.labels)
    wide, high = 1.22, 0.125 * (len(lines) + 3) + 0.1
    top = -0.06
    _box(axes, centre - wide / 2, top - high, wide, high, "#F1F1F1")
    text = "\n".join([*lines, _count(count), "→ scale and shift in", "every residual block"])
    _words(axes, centre, top - high / 2, text)


def _level(axes: Axes, net: UNet, config: Config, i: int) -> None:
    """A level's two boxes, the skip between them, and the ways to the level below."""
    left, right, y = _boxes(config, i)
    width, size = config.net.widths[i], net.size // net.patch // 2**i
    _tiles(axes, left, y, net.down[i], f"{width} channels")
    _tiles(axes, right, y, net.up[i], f"2 × {width} → {width} channels")
    _words(axes, left - 0.3, y, f"{size}×{size}", bold=True)
    axes.plot([left + WIDE + 0.05, right - 0.1], [y, y], color=BLUE, lw=0.9, ls=(0, (3, 2)))
    _arrow(axes, (right - 0.1, y), (right - 0.04, y), BLUE)
    _words(axes, (left + WIDE + right) / 2, y + 0.09, f"skip, {width}")
    lower = y - PITCH
    last = i + 1 == len(config.net.widths)
    ways = (left + 0.72 * WIDE, right + 0.28 * WIDE)
    if last:
        ways = TWO / 2 + 0.16 - 0.75, TWO / 2 + 0.16 + 0.75
    down, up = _count(count_parameters(net.shrink[i])), _count(count_parameters(net.grow[i]))
    top, bottom = y - TILE / 2 - 0.21, lower + TILE / 2 + 0.1
    _arrow(axes, (ways[0], top), (ways[0], bottom), GREEN)
    _arrow(axes, (ways[1], bottom), (ways[1], top), GREEN)
    middle = (top + bottom) / 2
    _words(axes, ways[0] - 0.08, middle, f"conv 3×3, stride 2 · {down}", GREEN, "right")
    _words(axes, ways[1] + 0.08, middle, f"conv 4×4 transposed · {up}", GREEN, "left")


def _middle(axes: Axes, net: UNet, config: Config) -> None:
    levels = len(config.net.widths)
    y = FIRST - levels * PITCH
    x = TWO / 2 + 0.16 - WIDE / 2
    size = net.size // net.patch // 2**levels
    _row_of_tiles(axes, x, y, ["residual", "attention", "residual"])
    _words(axes, x - 0.3, y, f"{size}×{size}", bold=True)
    width = config.net.widths[-1]
    count = count_parameters(net.middle)
    _words(axes, x + WIDE / 2, y - TILE / 2 - 0.13, f"middle: {width} channels · {_count(count)}")


def _tiles(axes: Axes, x: float, y: float, level: Level, what: str) -> None:
    """The blocks of a level in a row, and what they add up to."""
    tiles = ["residual"] * len(level.blocks)
    if count_parameters(level.attention):
        tiles.append("attention")
    _row_of_tiles(axes, x, y, tiles)
    text = f"{what} · {_count(count_parameters(level))}"
    _words(axes, x + WIDE / 2, y - TILE / 2 - 0.12, text)


def _row_of_tiles(axes: Axes, x: float, y: float, tiles: Sequence[str]) -> None:
    short = len(tiles) > 3
    wide = WIDE / len(tiles)
    for k, kind in enumerate(tiles):
        colour = ATTENTION if kind == "attention" else RESIDUAL
        _box(axes, x + k * wide + 0.02, y - TILE / 2, wide - 0.04, TILE, colour)
        _words(axes, x + (k + 0.5) * wide, y, kind[:3] + "." if short else kind)


# --------------------------------------------------------------------------- strokes


def _box(axes: Axes, x: float, y: float, wide: float, high: float, colour: str) -> None:
    style = "round,pad=0,rounding_size=0.04"
    frame = {"facecolor": colour, "edgecolor": GREY, "linewidth": 0.5}
    axes.add_patch(FancyBboxPatch((x, y), wide, high, boxstyle=style, **frame))


def _words(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    colour: str = "black",
    side: str = "center",
    bold: bool = False,
) -> None:
    weight = "bold" if bold else "normal"
    look = {"ha": side, "va": "center", "fontsize": SMALL, "fontweight": weight, "color": colour}
    axes.text(x, y, text, linespacing=1.15, **look)


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = GREY
) -> None:
    line = {"color": colour, "lw": 0.9, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", **line})
