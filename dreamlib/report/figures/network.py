"""What settings alone decide: the U-Net as a diagram, and the noise schedule.

The diagram is drawn from the network itself, built without memory (torch's meta device) and never
asked anything.
"""

from __future__ import annotations

import sys
from typing import cast

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from dreamlib.config.factory import make_loss, make_schedule, make_unet
from dreamlib.config.schema import Config
from dreamlib.diffusion.losses import Conservative, Paper
from dreamlib.diffusion.samplers import spaced
from dreamlib.diffusion.unet import Level, UNet
from dreamlib.report.figures.palette import BLUE, GREEN, GREY, ORANGE, SMALL, TWO
from dreamlib.report.figures.style import footer, log_scale, new_figure, style
from dreamlib.training.cost import count_parameters, usual_images

# Inches.  Every level is a row: its way down at the left, its way up at the right.
WIDE, TILE, PITCH = 2.15, 0.3, 0.86  # a level's box, a tile in it, from one row to the next
FIRST = -1.42  # height of the first level's centre
EDGE, INSET = 0.62, 0.3  # left of the first level; deeper levels are further in, if there is room
MIDDLE = TWO / 2 + 0.16
# What the network's output means.
ANSWERS = {
    "eps": "noise eps",
    "v": "v = a eps − s x0",
    "x0": "clean image x0",
    "velocity": "velocity eps − x0",
}
RESIDUAL, ATTENTION, CHANGE = "#CFE3F1", "#FAD9C6", "#CDEBDF"  # pale: words stand on them


@style()
def architecture(config: Config, run: str = "") -> Figure:
    """The network that `config` describes, from image to prediction; `run` is named in the footer.

    ConfigError when these settings make no network.
    """
    channels, labels = usual_images(config)
    with torch.device("meta"):
        net = make_unet(config, channels, labels)
    answer = ANSWERS[config.diffusion.prediction]
    diagram = _Diagram(net, list(config.net.widths))
    diagram.ends(answer)
    diagram.time()
    for i in range(diagram.levels):
        diagram.level(i)
    diagram.middle()
    diagram.fig.suptitle(f"The U-Net of {config.preset}: {count_parameters(net):,} parameters")
    heads = f"{config.net.heads} attention heads, dropout {config.net.dropout:g}"
    images = f"{config.data.name} {config.data.size}×{config.data.size}"
    footer(diagram.fig, f"{run} · {config.preset} · {images} · predicts {answer} · {heads}")
    return diagram.fig


@style()
def schedule(config: Config, run: str = "") -> Figure:
    """Signal a, noise s and DREAM's fully ramped lambda against t; and the sampler's steps."""
    sched, sample = make_schedule(config), config.sample
    t = torch.arange(len(sched))
    a, s = sched.alpha_bar.sqrt(), (1 - sched.alpha_bar).sqrt()
    fig, (left, right) = new_figure(TWO, 2.5, 2)
    left.plot(t, a, color=BLUE, label="a (image)")
    left.plot(t, s, color=ORANGE, label="s (noise)")
    loss = make_loss(config, epoch=1, total=1)
    if isinstance(loss, (Conservative, Paper)):
        left.plot(t, loss.lam(sched, t, sys.maxsize), color=GREEN, label="λ (DREAM)")
    left.set(xlabel="t", ylim=(0, 1.2), title="What x_t is made of")
    left.legend(ncols=3, loc="upper center")
    taken = spaced(sched, sample.steps, sample.spacing, sample.sigma_min)
    right.plot(t, s / a, color=GREY, lw=1)
    right.plot(taken, (s / a)[taken], "|", color=BLUE, ms=9)
    right.set(xlabel="t", ylabel="noise / signal", title="Where the sampler stops")
    log_scale(right)
    footer(
        fig,
        f"{run} · {config.preset} · {config.diffusion.schedule}, {len(sched)} steps · "
        f"{sample.sampler}, {sample.steps} steps, {sample.spacing}",
    )
    return fig


def _count(part: torch.nn.Module) -> str:
    """A part's parameters: '1.18 M', '46.3 k'"""
    number = count_parameters(part)
    if number >= 1_000_000:
        return f"{number / 1e6:.3g} M"
    return f"{number / 1e3:.3g} k" if number >= 1000 else str(number)


class _Diagram:
    """A network on axes whose units are inches."""

    def __init__(self, net: UNet, widths: list[int]):
        self.net, self.widths, self.levels = net, widths, len(widths)
        high = PITCH * self.levels + 1.8
        self.fig, (self.axes,) = new_figure(TWO, high + 0.4)
        self.axes.set(xlim=(0, TWO), ylim=(-high, 0), aspect="equal")
        self.axes.set_axis_off()

    def edges(self, i: int) -> tuple[float, float, float]:
        """Left edges of a level's two boxes, and their centre's height."""
        room = TWO / 2 - EDGE - WIDE - 0.3
        inset = i * min(INSET, room / max(1, self.levels - 1))
        return EDGE + inset, TWO - EDGE - WIDE - inset + 0.32, FIRST - i * PITCH

    def ends(self, answer: str) -> None:
        """Image and stem at the left, head and answer at the right."""
        net = self.net
        left, right, first = self.edges(0)
        image, y, fold, unfold = f"{net.size}×{net.size}×{net.channels}", -0.72, "", ""
        if net.patch > 1:
            fold = f"{net.patch}×{net.patch} patches → {net.stem.in_channels} channels\n"
            unfold = f"\nback to {image}"
        ends = _count(torch.nn.ModuleList([net.head, net.norm]))
        stem = f"{fold}stem: conv 3×3 → {net.stem.out_channels} · {_count(net.stem)}"
        head = f"norm, SiLU, conv 3×3 → {net.head.out_channels} · {ends}{unfold}"
        above, below = first + TILE / 2 + 0.13, y - 0.2
        down, up = left + WIDE / 2, right + WIDE / 2
        for x, end, text in (
            (down, f"noisy image x_t, {image}", stem),
            (up, f"predicted {answer}, {image}", head),
        ):
            self.words(x, -0.14, end, bold=True)
            self.box(x - WIDE / 2, y - 0.2, WIDE, 0.4, CHANGE)
            self.words(x, y, text)
        for start, end in (((down, -0.25), (down, y + 0.2)), ((down, below), (down, above))):
            self.arrow(start, end)
        for start, end in (((up, above), (up, below)), ((up, y + 0.2), (up, -0.25))):
            self.arrow(start, end)

    def time(self) -> None:
        """The embedding of t, between stem and head."""
        left, right, _ = self.edges(0)
        centre = (left + WIDE + right) / 2
        parts: list[torch.nn.Module] = [self.net.time]
        first, _, last = self.net.time
        lines = ["time step t", f"sinusoids, {first.in_features}"]
        lines += [f"Linear {first.out_features}, SiLU,", f"Linear {last.out_features}"]
        if len(self.net.labels):
            lines.append("+ labels, embedded")
            parts.append(self.net.labels)
        wide, high, top = 1.22, 0.125 * (len(lines) + 3) + 0.1, -0.06
        self.box(centre - wide / 2, top - high, wide, high, "#F1F1F1")
        lines += [_count(torch.nn.ModuleList(parts)), "→ scale and shift in"]
        self.words(centre, top - high / 2, "\n".join([*lines, "every residual block"]))

    def level(self, i: int) -> None:
        """A level's two boxes, the skip between them, and the ways to the level below."""
        net, width = self.net, self.widths[i]
        left, right, y = self.edges(i)
        down, up = cast(Level, net.down[i]), cast(Level, net.up[i])
        self.blocks(left, y, down, f"{width} channels")
        self.blocks(right, y, up, f"2 × {width} → {width} channels")
        self.size(left, y, i)
        self.axes.plot(
            [left + WIDE + 0.05, right - 0.1], [y, y], color=BLUE, lw=0.9, ls=(0, (3, 2))
        )
        self.arrow((right - 0.1, y), (right - 0.04, y), BLUE)
        self.words((left + WIDE + right) / 2, y + 0.09, f"skip, {width}")
        down, up = left + 0.72 * WIDE, right + 0.28 * WIDE
        if i + 1 == self.levels:
            down, up = MIDDLE - 0.75, MIDDLE + 0.75
        top, bottom = y - TILE / 2 - 0.21, y - PITCH + TILE / 2 + 0.1
        self.arrow((down, top), (down, bottom), GREEN)
        self.arrow((up, bottom), (up, top), GREEN)
        centre, shrink = (top + bottom) / 2, f"conv 3×3, stride 2 · {_count(net.shrink[i])}"
        self.words(down - 0.08, centre, shrink, GREEN, "right")
        self.words(up + 0.08, centre, f"conv 4×4 transposed · {_count(net.grow[i])}", GREEN, "left")

    def middle(self) -> None:
        x, y = MIDDLE - WIDE / 2, FIRST - self.levels * PITCH
        self.tiles(x, y, ["residual", "attention", "residual"])
        self.size(x, y, self.levels)
        text = f"middle: {self.widths[-1]} channels · {_count(self.net.middle)}"
        self.words(x + WIDE / 2, y - TILE / 2 - 0.13, text)

    def size(self, x: float, y: float, i: int) -> None:
        """How many pixels a level sees."""
        size = self.net.size // self.net.patch // 2**i
        self.words(x - 0.3, y, f"{size}×{size}", bold=True)

    def blocks(self, x: float, y: float, level: Level, what: str) -> None:
        """The blocks of a level in a row, and what they add up to."""
        attention = ["attention"] if count_parameters(level.attention) else []
        self.tiles(x, y, ["residual"] * len(level.blocks) + attention)
        self.words(x + WIDE / 2, y - TILE / 2 - 0.12, f"{what} · {_count(level)}")

    def tiles(self, x: float, y: float, kinds: list[str]) -> None:
        wide = WIDE / len(kinds)
        for k, kind in enumerate(kinds):
            colour = ATTENTION if kind == "attention" else RESIDUAL
            self.box(x + k * wide + 0.02, y - TILE / 2, wide - 0.04, TILE, colour)
            self.words(x + (k + 0.5) * wide, y, kind[:3] + "." if len(kinds) > 3 else kind)

    def box(self, x: float, y: float, wide: float, high: float, colour: str) -> None:
        shape = "round,pad=0,rounding_size=0.04"
        frame = {"facecolor": colour, "edgecolor": GREY, "linewidth": 0.5}
        self.axes.add_patch(FancyBboxPatch((x, y), wide, high, boxstyle=shape, **frame))

    def words(
        self,
        x: float,
        y: float,
        text: str,
        colour: str = "black",
        side: str = "center",
        bold: bool = False,
    ) -> None:
        weight = "bold" if bold else "normal"
        look = {"ha": side, "va": "center", "fontsize": SMALL, "fontweight": weight}
        self.axes.text(x, y, text, linespacing=1.15, color=colour, **look)

    def arrow(
        self, start: tuple[float, float], end: tuple[float, float], colour: str = GREY
    ) -> None:
        line = {"color": colour, "lw": 0.9, "shrinkA": 0, "shrinkB": 0, "arrowstyle": "-|>"}
        self.axes.annotate("", xy=end, xytext=start, arrowprops=line)
