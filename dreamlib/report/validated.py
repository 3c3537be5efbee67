"""The distance of held-out images during training, and where it was least."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dreamlib.errors import RunError
from dreamlib.report.kept import name_of
from dreamlib.report.plotting import BLUE, ONE, ORANGE, footer, log_scale, new_figure, style
from dreamlib.run import Run


@style()
def validation(run: Run) -> Figure:
    """The averaged weights' distance against the optimizer step; from validation.jsonl."""
    rows = run.dir.read_validation()
    if not rows:
        raise RunError(
            f"{run.folder} has no validation yet: run `dreamlib train RUN` with "
            "--set validation.every=5% or so"
        )
    best = min(rows, key=lambda row: row["score"])
    fig, (axes,) = new_figure(ONE, 2.4)
    axes.plot([r["step"] for r in rows], [r["score"] for r in rows], "o-", color=BLUE, ms=3)
    axes.plot(best["step"], best["score"], "o", color=ORANGE, label=f"best, step {best['step']:,}")
    axes.set(xlabel="optimizer step", ylabel=best["metric"], title="Validation")
    log_scale(axes)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.legend()
    footer(
        fig,
        f"{name_of(run)} · averaged weights, N = {best['n']:,} · {best['n_real']:,} held-out "
        "images (split floor)",
    )
    return fig
