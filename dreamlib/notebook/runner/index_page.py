"""How a batch of notebooks went: a page that links them all, and a table of text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dreamlib.report.html import render
from dreamlib.utils.progress import duration

COLUMNS = ("run", "notebook", "state", "time")
FINE = ("done", "running", "waiting")


def records(status: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Of every notebook of a status, in order: the columns, its page, and what went wrong."""
    for run, of_run in status["runs"].items():
        for notebook, facts in of_run["notebooks"].items():
            cell = f"cell {facts['cell']}" if facts.get("cell") else ""
            parts = (cell, facts.get("ename"), facts.get("evalue"), facts.get("note"))
            yield {
                "run": run,
                "notebook": notebook,
                "state": facts["state"],
                "time": duration(facts["seconds"]) if "seconds" in facts else "",
                "page": facts.get("page", ""),
                "detail": "" if facts["state"] in FINE else ": ".join(filter(None, parts)),
            }


def index(status: dict[str, Any], out: Path) -> str:
    """One self-contained page; its links are relative to `out`."""
    rows = list(records(status))
    for row in rows:
        page = row["page"]
        row["link"] = quote(Path(os.path.relpath(page, out)).as_posix()) if page else ""
    return render("notebooks.html", state=status["state"], head=(*COLUMNS, ""), rows=rows)


def table(status: dict[str, Any]) -> str:
    """Run, notebook, state, time and page, in columns."""
    head = (*COLUMNS, "page")
    lines = [head, *([row[name] for name in head] for row in records(status))]
    widths = [max(map(len, column)) for column in zip(*lines)]
    texts = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in lines)
    return "\n".join(text.rstrip() for text in texts)
