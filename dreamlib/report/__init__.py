"""Figures, tables, one page, one zip: from the files of a run."""

from typing import TYPE_CHECKING

from dreamlib.utils.lazy import lazily

if TYPE_CHECKING:
    from dreamlib.report.build import build_report

__all__ = ["build_report"]
__getattr__ = lazily("dreamlib.report", {"build_report": "build"})
