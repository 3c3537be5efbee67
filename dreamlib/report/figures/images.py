"""Sheets of images from a run's files: stages of training, the denoising process, samples, quality.

Nothing is generated here, and no network is asked.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from matplotlib import image
from matplotlib.figure import Figure

from dreamlib.metrics.pixel_stats import nearest
from dreamlib.report.contents import Missing
from dreamlib.report.figures.palette import GREY, ONE, SMALL, TWO
from dreamlib.report.figures.style import (
    attempt,
    fit,
    footer,
    new_figure,
    plain,
    sheet_figure,
    style,
)
from dreamlib.report.sources import name_of, newest, sampler_of, stored
from dreamlib.runs.run import Run
from dreamlib.training.base import STAGES
from dreamlib.utils.errors import RunError
from dreamlib.utils.files import parse_json
from dreamlib.utils.images import to_rgb

SHEET = 64  # images on the sheet of samples
ACROSS = 10  # images in a row of the comparison
LARGE = 32  # pixels; larger images get the width of two columns
KINDS = {"averaged\nweights": "", "weights in\ntraining": "-raw"}  # of previews: ends of names


@style()
def stages(run: Run) -> Figure:
    """The same seeds at 5, 25, 50, 75 and 100 % of training, as far as it got: averaged weights
    above, the weights in training below; from samples/step-*.png."""
    total = run.dir.status().get("total", 0)
    steps = {share: max(1, round(share * total)) for share in STAGES}
    paths = {
        (kind, share): run.dir.samples / f"step-{step:08d}{end}.png"
        for (kind, end), (share, step) in product(KINDS.items(), steps.items())
    }
    columns = [share for share in steps if paths[next(iter(KINDS)), share].exists()]
    if not columns:
        raise RunError(f"{run.dir.samples} holds no stage yet: run `dreamlib train RUN`")
    rows = [kind for kind in KINDS if any(paths[kind, share].exists() for share in columns)]
    size = 0.5 + 1.3 * len(columns), 0.75 + 1.3 * len(rows)
    fig, axes = new_figure(*size, len(columns), len(rows))
    for ax, (kind, share) in zip(axes, product(rows, columns)):
        plain(ax)
        ax.set(xticks=[], yticks=[])
        if share == columns[0]:
            ax.set_ylabel(kind, fontsize=7)
        if kind == rows[0]:
            ax.set_title(f"{100 * share:g} %, step {steps[share]:,}", fontsize=7.5)
        if paths[kind, share].exists():
            ax.imshow(image.imread(paths[kind, share]), interpolation="nearest")
        else:
            ax.text(0.5, 0.5, "not kept\nat this step", ha="center", va="center", color=GREY)
    # The sampler is left out: its settings may have changed between sessions, and no preview
    # tells with which ones it was drawn.
    footer(fig, f"{name_of(run)} · the same image numbers in every column")
    fit(fig, len(rows))
    return fig


def process(run: Run) -> Figure:
    """Samples (rows) at moments of their denoising (columns), from pure noise to the finished
    image; from samples/process.npz."""
    return _process(run, "x_t", "x_t, what the sampler holds, at t =")


def process_x0(run: Run) -> Figure:
    """The clean images that the network sees in them, at the same moments."""
    return _process(run, "x0_hat", "x0_hat, the clean image expected, at t =")


def _process(run: Run, key: str, what: str) -> Figure:
    path = run.dir.samples / "process.npz"
    arrays = stored(path, "sample RUN", t=1, step=0, **{key: 5})
    if "sample" not in arrays:
        raise RunError(
            f"{path.parent.name}/{path.name} is of an older version, which kept the state after "
            "each step and not its sampler: run `dreamlib sample RUN`"
        )
    try:
        made = sampler_of(parse_json(str(arrays["sample"])))
    except (ValueError, LookupError, TypeError) as error:
        raise RunError(
            f"{path} is damaged ({error}): delete it and run `dreamlib sample RUN`"
        ) from error
    images = arrays[key]
    rows = [f"image {i}" for i in range(len(images))]
    columns = ["end" if t < 0 else str(t) for t in arrays["t"]]
    width = ONE if images.shape[2] <= LARGE else TWO * min(1, (images.shape[1] + 1) / 9)
    below = f"{name_of(run)} · step {int(arrays['step']):,} · {made}"
    return sheet_figure(images, rows, columns, below=below, title=what, letters=SMALL, width=width)


def samples(run: Run) -> Figure:
    """The first 64 images that the run keeps, in the order of their numbers, none left out."""
    kept = newest(run)
    return _sheet(run, kept.images(SHEET), kept.step, kept.sample)


def sample_grid(run: Run, images: np.ndarray, columns: int = 8) -> Figure:
    """uint8 [N,H,W,C], images 0 to N - 1 of the run's averaged weights, as a sheet."""
    return _sheet(run, images, run.weights()[1]["step"], run.config.sample.model_dump(), columns)


def _sheet(
    run: Run, images: np.ndarray, step: int | None, sample: dict[str, Any], columns: int = 8
) -> Figure:
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    full = np.full((rows * columns, *images.shape[1:]), 255, np.uint8)
    full[: len(images)] = images
    below = (
        f"{name_of(run)} · step {step:,} · {sampler_of(sample)} · images 0 to {len(images) - 1}, "
        "not selected"
    )
    width = ONE if images.shape[1] <= LARGE else TWO
    return sheet_figure(full.reshape(rows, columns, *images.shape[1:]), below=below, width=width)


def quality(run: Run) -> Figure:
    """Training images, generated ones, the training image nearest to each of these in pixels, and
    what the untrained network makes: one row each, nobody's choice."""
    kept, train = newest(run), run.data.rows("train")
    generated = kept.images(ACROSS)
    count = len(generated)
    rows = {
        "training\nimages": run.data.take("train", min(count, len(train)))[0],
        "generated": generated,
        "nearest\ntraining image": train[nearest(generated, train)[1]],
    }
    untrained, note = attempt(lambda: newest(run, untrained=True).images(count)), ""
    if isinstance(untrained, Missing) or len(untrained) < count:
        note = " · no images of the untrained network are kept"
    else:
        rows["untrained\nnetwork"] = untrained
    below = (
        f"{name_of(run)} · step {kept.step:,} · {sampler_of(kept.sample)} · the first "
        f"{count} of each, not selected; nearest in pixels{note}"
    )
    sheet = np.stack([to_rgb(images) for images in rows.values()])
    return sheet_figure(sheet, list(rows), below=below)
