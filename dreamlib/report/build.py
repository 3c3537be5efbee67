"""Everything a report needs, at once: figures, tables, one page, one zip; from files alone."""

from __future__ import annotations

from pathlib import Path

from dreamlib.report.contents import Report
from dreamlib.report.figures.registry import build, save_all
from dreamlib.report.html_report import write_page
from dreamlib.report.tables import save_tables, scores_of
from dreamlib.report.zip_bundle import package
from dreamlib.runs.run import Run
from dreamlib.utils.context import using
from dreamlib.utils.progress import Progress


def build_report(
    run: Run,
    ablation: Path | None = None,
    progress: Progress | None = None,
    *,
    page: Path | None = None,
) -> list[Path]:
    """Into the run's figures/: every figure (PNG and PDF), the tables, report.html, results.zip.

    Nothing is trained or sampled.  `ablation` is a folder of `dreamlib ablate`.  What is not there
    yet is a figure that says so, with the command that makes it.  `page` is what `dreamlib share`
    made, to be packed as well.
    """
    report = Report(run, scores_of(run), build(run, ablation))
    drawn = save_all(run, report.figures)
    tables = save_tables(report.study, run.dir.figures) if report.study else []
    with using(progress=progress):
        return [*drawn, *tables, write_page(report), package(report, page=page)]
