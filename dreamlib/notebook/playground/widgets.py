"""The playground: a trained model under the reader's hands.

Every function takes an opened run and returns one widget.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dreamlib.config.schema import Sample
from dreamlib.diffusion.samplers import spaced
from dreamlib.notebook.playground.board import SIDE, Tile, View, board
from dreamlib.notebook.playground.inference import lambdas, studio_of
from dreamlib.report.figures.palette import BLUE, GREEN, GREY, ORANGE
from dreamlib.report.figures.style import style
from dreamlib.runs.run import Run

MANY, LARGE = 24, 192  # images at a time; pixels of the page for a picture to look at closely
FRAMES = 11  # of an interpolation
SAMPLERS = (
    ("DDPM: adds noise at every step", "ddpm"),
    ("DDIM: deterministic", "ddim"),
    ("DPM-Solver++: deterministic, few steps", "dpmpp_2m"),
)
AS_IN_DATA = "as in the data"


def seeds(run: Run) -> widgets.VBox:
    """The images of some seeds, under the run's sampler settings or others."""
    studio = studio_of(run)
    classes = run.data.attributes if run.config.net.conditional else {}
    controls = {
        "first": _number("first seed", 0),
        "count": _slider("number of images", 8, 1, MANY),
        "sampler": _choice("sampler", SAMPLERS, studio.own.sampler),
        "steps": _number("steps", studio.own.steps),
    }
    if run.config.net.conditional:
        controls["guidance"] = _slider("guidance", studio.own.guidance, 0.0, 8.0, 0.25)
    for name, values in classes.items():
        asked = studio.own.labels.get(name, AS_IN_DATA)
        controls[f"label {name}"] = _choice(name, (AS_IN_DATA, *values), asked)

    def draw(first: int, count: int, **values: Any) -> View:
        chosen = {name: values.pop(f"label {name}") for name in classes}
        labels = {name: value for name, value in chosen.items() if value != AS_IN_DATA}
        sample = studio.settings(**values, labels=labels)
        numbers = range(first, first + count)
        images = studio.images(numbers, sample)
        row = [Tile(image, f"seed {k}", _side(run)) for k, image in zip(numbers, images)]
        own = "; the run's own settings: seed k is image k of its evaluation"
        return View([row], _in_words(run, sample) + (own if sample == studio.own else ""))

    return board(draw, controls)


def denoising(run: Run) -> widgets.VBox:
    """How one image comes about: x_t, and the clean image that the network sees in it."""
    studio = studio_of(run)
    own = studio.own
    times = (*spaced(studio.sched, own.steps, own.spacing, own.sigma_min), -1)
    last = len(times) - 1
    where = _slider("step", _nearest(times, times[0] / 2), 0, last, live=True)

    def draw(seed: int, step: int) -> View:
        way = studio.trajectory(seed)
        now = f"t = {way.t[step]}" if way.t[step] >= 0 else "the finished image"
        mixed = f"{way.signal[step]:.2f} × image + {way.noise[step]:.2f} × noise"
        row = [
            Tile(way.x_t[step], f"x_t, {now}", LARGE),
            Tile(way.x0_hat[step], "x0_hat: what the network takes it for", LARGE),
        ]
        return View([row], f"after {step} of {last} steps: {now}; x_t = {mixed}")

    def strip(seed: int, step: int) -> View:
        way = studio.trajectory(seed)
        shown = sorted({_nearest(times, t) for t in np.linspace(times[0], -1, 8)})
        named = [f"t = {way.t[k]}" if way.t[k] >= 0 else "finished" for k in shown]
        above = [Tile(way.x_t[k], time) for k, time in zip(shown, named)]
        below = [Tile(way.x0_hat[k], "x0_hat") for k in shown]
        return View([above, below], f"seed {seed}: x_t, and x0_hat below it")

    controls = {"seed": _number("seed", 0), "step": where}
    return board(draw, controls, extra=[_play(where)], still=strip)


def between(run: Run) -> widgets.VBox:
    """The way from one seed's image to another's, along a great circle of noise."""
    studio = studio_of(run)
    where = _slider("way from first to second", FRAMES // 2, 0, FRAMES - 1, live=True)

    def draw(first: int, second: int, where: int) -> View:
        way = studio.between(first, second, FRAMES)
        share = where / (FRAMES - 1)
        row = [
            Tile(way[0], f"seed {first}"),
            Tile(way[where], f"{share:.0%} of the way", LARGE),
            Tile(way[-1], f"seed {second}"),
        ]
        told = "; all have the first seed's labels" if run.config.net.conditional else ""
        return View([row], _in_words(run, studio.deterministic) + told)

    def strip(first: int, second: int, where: int) -> View:
        way = studio.between(first, second, FRAMES)
        row = [Tile(image, f"{k / (FRAMES - 1):.0%}") for k, image in enumerate(way)]
        return View([row], f"from seed {first} to seed {second}")

    first, second = _number("first seed", 0), _number("second seed", 1)
    controls = {"first": first, "second": second, "where": where}
    return board(draw, controls, extra=[_play(where)], still=strip)


def rectified(run: Run) -> widgets.VBox:
    """lambda(t) of the losses, and what each makes of the network's input."""
    studio, loss = studio_of(run), run.config.loss
    top = len(studio.sched) - 1

    def draw(image: int, noise: int, t: int, lam_max: float, p: float, done: float) -> View:
        lam = lambdas(run, lam_max, p, done / 100)
        images = studio.rectified(image, t, noise, lam)
        captions = {
            "x0": "x0, a training image",
            "x_t": f"x_t, noised to t\u00a0=\u00a0{t}",
            "x0_hat": "x0_hat, what the network sees",
            "conservative": f"input, conservative, λ\u00a0=\u00a0{lam['conservative'][t]:.2f}",
            "conservative x0": "the clean image in it",
            "paper": f"input, paper, λ\u00a0=\u00a0{lam['paper'][t]:.2f}",
            "paper x0": "the clean image in it",
        }
        side, plot = max(128, _side(run)), _lambda_plot(lam, t)
        tiles = [Tile(images[name], text, side) for name, text in captions.items()]
        return View([[Tile(plot, "", plot.shape[1] // 2)], tiles[:3], tiles[3:]])

    controls = {
        "image": _number("training image", 0),
        "noise": _number("noise seed", 0),
        "t": _slider("t", round(0.6 * top), 0, top),
        "lam_max": _slider("λ_max (conservative)", loss.lam_max, 0.0, 1.0, 0.05),
        "p": _slider("p (paper)", loss.p, 0.0, 5.0, 0.25),
        "done": _slider("% of training done", 100, 0, 100),
    }
    return board(draw, controls)


def neighbours(run: Run) -> widgets.VBox:
    """A generated image, and the real images that are nearest to it."""
    studio = studio_of(run)

    def draw(seed: int, k: int) -> View:
        image = studio.images([seed])[0]
        rows, searched = [[Tile(image, f"seed {seed}, generated", _side(run))]], []
        for split, name in (("train", "training"), ("reference", "held-out")):
            near = studio.neighbours(image, k, split)
            searched.append(near.among)
            captions = [
                f"{name} image {index}, distance {distance:,.0f}"
                for index, distance in zip(near.indices, near.distances)
            ]
            rows.append([Tile(*tile, _side(run)) for tile in zip(near.images, captions)])
        scale = studio.held_out_distance()
        text = (
            f"Distances are Euclidean, in grey levels. {searched[0]:,} training images were "
            f"searched and {searched[1]:,} held-out ones; of fewer images the nearest is farther. "
            f"For scale: new real images are {scale:,.0f} from their nearest training image "
            "(median)."
        )
        return View(rows, text)

    return board(draw, {"seed": _number("seed", 0), "k": _slider("neighbours", 5, 1, 8)})


# --------------------------------------------------------------------------- pieces


def _side(run: Run) -> int:
    """Pixels of the page for one of several images."""
    return max(SIDE, min(run.data.size * 2, 160))


def _nearest(times: Sequence[int], t: float) -> int:
    """The position of the timestep nearest to t."""
    return int(np.argmin([abs(each - t) for each in times]))


def _in_words(run: Run, sample: Sample) -> str:
    """The settings behind some images."""
    guided = f"; guidance {sample.guidance:g}" if run.config.net.conditional else ""
    return f"{sample.sampler}, {sample.steps} steps, {sample.spacing} spacing{guided}"


def _lambda_plot(lam: dict[str, torch.Tensor], t: int) -> np.ndarray:
    """lambda against t for every loss, and where t is: uint8 [H,W,3], twice the page's pixels."""
    colours = {"standard": GREY, "conservative": GREEN, "paper": ORANGE}
    with style():
        fig = Figure(figsize=(4.8, 2.0), dpi=200)
        canvas = FigureCanvasAgg(fig)
        axes = fig.add_axes((0.1, 0.2, 0.88, 0.78))
        for name, values in lam.items():
            axes.plot(values, color=colours[name], label=name)
            axes.plot(t, values[t], "o", color=colours[name], ms=4)
        axes.vlines(t, -0.04, 1.04, color=BLUE, lw=0.8, ls=":")
        axes.set(xlabel="t (0: clean, right: noise)", ylabel="λ", ylim=(-0.04, 1.25))
        axes.legend(ncols=3, loc="upper left")
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3]


def _control(kind: Any, name: str, value: Any, room: float, **more: Any) -> widgets.ValueWidget:
    """A control with room for a label of any length, on small screens too; `room` in letters."""
    width = f"{0.6 * len(name) + room:.0f}em"
    layout = widgets.Layout(width=width, max_width="98%", flex="0 0 auto", margin="2px 16px 2px 0")
    more |= {"layout": layout, "style": {"description_width": "initial"}}
    return kind(value=value, description=name, **more)


def _number(name: str, value: int) -> widgets.ValueWidget:
    return _control(widgets.IntText, name, value, room=7)


def _choice(name: str, options: Any, value: str) -> widgets.ValueWidget:
    longest = max(len(each if isinstance(each, str) else each[0]) for each in options)
    return _control(widgets.Dropdown, name, value, room=0.55 * longest + 4, options=options)


def _slider(
    name: str, value: float, low: float, high: float, step: float = 1, live: bool = False
) -> widgets.ValueWidget:
    """`live` sliders answer while they move: what they show is there already."""
    kind = widgets.FloatSlider if isinstance(low, float) else widgets.IntSlider
    limits = {"min": low, "max": high, "step": step, "continuous_update": live}
    return _control(kind, name, min(max(value, low), high), room=20, **limits)


def _play(slider: Any) -> widgets.Play:
    play = widgets.Play(min=slider.min, max=slider.max, value=slider.value, interval=250)
    widgets.jslink((play, "value"), (slider, "value"))
    return play
