"""Runs side by side: one table of their scores, one sheet of their images, one of their walks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from dreamlib.evaluation.results import GENERATED, REAL, Score, Study
from dreamlib.report.figures.curves import log_of
from dreamlib.report.figures.score_figures import scored
from dreamlib.report.figures.style import sheet_figure
from dreamlib.report.sources import extractor_of, folder_name, scored_images, way_of
from dreamlib.report.tables import ERRORS, MADE, rows_table
from dreamlib.report.texts import NONE, as_table
from dreamlib.runs.run import Run
from dreamlib.utils.errors import ConfigError, NotThere
from dreamlib.utils.images import to_rgb

ROWS, ACROSS = 3, 14  # images of every run on the sheet
METRICS = ("KID", "precision", "recall", "density", "coverage")


def minutes_of(run: Run) -> float:
    """Minutes that the steps in the log took, saves and previews included."""
    log, batch = log_of(run), run.config.train.batch
    steps = np.diff([row["step"] for row in log], prepend=0)
    return sum(step * batch / row["images_per_s"] for step, row in zip(steps, log)) / 60


def scores_beside(runs: Sequence[Run]) -> str:
    """A Markdown table: a column per run, and the floor; what each cost, then its scores.

    Every number is of the runs' files.  NotEnoughSamples for a run that was not evaluated,
    ConfigError for runs that were scored differently.
    """
    studies = _comparable(runs)
    names, facts = [folder_name(run) for run in runs], studies[0].facts
    metrics = _metrics(studies[0])
    rows = [replace(r, images=n) for s, n in zip(studies, names) for r in _of(s, GENERATED)]
    rows = [r for r in rows + _of(studies[0], REAL) if r.metric in metrics]
    rows.sort(key=lambda row: metrics.index(row.metric))
    head, cells = rows_table(rows)
    cut = len(head) - len(MADE)  # how images are made differs between the columns
    costs = [
        [what, "", "", *each, *[NONE] * (cut - 3 - len(each))]
        for what, each in _costs(runs, studies).items()
    ]
    made = "; ".join(f"{name} by {way_of(s.facts)}" for name, s in zip(names, studies))
    note = (
        f"Images by {made}; seen by {facts['extractor']}. {REAL}: the floor, other "
        f"held-out images in the same place. {ERRORS} Raw distances of different models have "
        "different biases: the corrected one and KID compare them. Minutes are those that the "
        "steps took, as the log has them."
    )
    return as_table(head[:cut], [*costs, *(row[:cut] for row in cells)]) + f"\n\n{note}"


def _of(study: Study, images: str) -> list[Score]:
    """Scores of the largest set against the reference."""
    most = study.facts["sizes"][-1]
    return [r for r in study.rows if (r.images, r.real, r.n) == (images, "reference", most)]


def _metrics(study: Study) -> list[str]:
    """Those of the table, in its order."""
    known = list(dict.fromkeys(row.metric for row in study.rows))
    distances = [name for name in known if name.startswith(study.facts["metric"])]
    return distances + [name for word in METRICS for name in known if name.split("[")[0] == word]


def _costs(runs: Sequence[Run], studies: Sequence[Study]) -> dict[str, list[str]]:
    """What each run's weights were made by, and what an image costs."""
    steps = [study.facts["step"] for study in studies]
    passes = [study.of(GENERATED)[-1].origin.nfe for study in studies]
    return {
        "steps of training": [f"{step:,}" for step in steps],
        "images seen": [f"{s * run.config.train.batch:,}" for s, run in zip(steps, runs)],
        "minutes": [f"{minutes_of(run):.1f}" for run in runs],
        "network passes per image drawn": [NONE if n is None else str(n) for n in passes],
    }


def _comparable(runs: Sequence[Run]) -> list[Study]:
    studies = [scored(run) for run in runs]
    for name in ("metric", "extractor", "sizes"):
        values = [study.facts[name] for study in studies]
        if any(value != values[0] for value in values):
            raise ConfigError(
                f"the runs were scored differently ({name}: {', '.join(map(str, values))}): "
                "evaluate them with the same settings"
            )
    if len({run.data.fingerprint for run in runs}) > 1:
        raise ConfigError("the runs know different images: their scores cannot stand side by side")
    return studies


def images_beside(runs: Sequence[Run]) -> Figure:
    """Real training images, then the first that each run was scored by; nobody's choice."""
    studies = _comparable(runs)
    count = ROWS * ACROSS
    train = runs[0].data.take("train", count)[0]
    blocks, names = [_block(train)], ["", "training", ""]
    for run, study in zip(runs, studies):
        kept = scored_images(run, study)
        if kept is None or len(images := kept.images(count)) < count:
            raise NotThere(f"{run.folder} keeps no {count} images: run `dreamlib evaluate RUN`")
        row = study.of(GENERATED)[-1]
        error = "" if row.se is None else f" ± {row.se:.2g}"
        blocks.append(_block(images))
        names += ["", f"{run.config.preset}\n{row.metric}\n{row.value:.3g}{error}", ""]
    facts = studies[0].facts
    below = (
        f"{' · '.join(map(folder_name, runs))} · N = {facts['sizes'][-1]:,} · "
        f"{extractor_of(facts)} · images 0 to {count - 1}, not selected · ± of sampling"
    )
    return sheet_figure(np.concatenate(blocks), names, below=below)


def _block(images: np.ndarray) -> np.ndarray:
    return to_rgb(images).reshape(ROWS, ACROSS, *images.shape[1:3], 3)


def walks_beside(runs: Sequence[Run], walks: Sequence[np.ndarray]) -> Figure:
    """Each run's way from one image to another, uint8 [N,H,W,C] each, as `interpolation` draws."""
    sheet = np.stack([to_rgb(walk) for walk in walks])
    below = f"{' · '.join(map(folder_name, runs))} · from one image to another"
    return sheet_figure(sheet, [run.config.preset for run in runs], below=below)
