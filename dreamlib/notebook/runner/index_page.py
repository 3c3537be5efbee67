"""How a batch of notebooks went: a page that links them all, and a table of text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dreamlib.report.markup import POLICY
from dreamlib.utils.progress import duration

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em }
table { border-collapse: collapse; width: 100% }
th, td { border-bottom: 1px solid #ccc; padding: .3em .6em; text-align: left; vertical-align: top }
.done { color: #00664f } .failed, .killed { color: #a03000; font-weight: bold }
.timeout, .stopped { color: #7a5900 } .waiting, .skipped { color: #666 }
"""
HEAD = ("run", "notebook", "state", "time", "")


def index(status: dict[str, Any], out: Path) -> str:
    """One self-contained page; its links are relative to `out`."""
    body = "".join(_row(*row, out) for row in rows(status))
    head = "".join(f"<th>{name}</th>" for name in HEAD)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"{POLICY}<title>Notebooks</title><style>{STYLE}</style></head><body>\n<h1>Notebooks</h1>\n<p>{escape(status['state'])}"
        f"</p>\n<table><tr>{head}</tr>\n{body}</table>\n</body></html>\n"
    )


def table(status: dict[str, Any]) -> str:
    """Run, notebook, state, time and page, in columns."""
    lines = [(*HEAD[:-1], "page")]
    for run, notebook, facts in rows(status):
        lines.append((run, notebook, facts["state"], _time(facts), facts.get("page", "")))
    widths = [max(map(len, column)) for column in zip(*lines)]
    texts = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in lines)
    return "\n".join(text.rstrip() for text in texts)


def rows(status: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Run, notebook and facts of a status, in order."""
    for name, run in status["runs"].items():
        for notebook, facts in run["notebooks"].items():
            yield name, notebook, facts


def _row(run: str, notebook: str, facts: dict[str, Any], out: Path) -> str:
    label, page = escape(notebook), facts.get("page")
    if page:
        link = quote(Path(os.path.relpath(page, out)).as_posix())
        label = f'<a href="{link}">{label}</a>'
    state, told = escape(facts["state"]), escape(detail(facts))
    cells = (escape(run), label, f'<span class="{state}">{state}</span>', _time(facts), told)
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"


def detail(facts: dict[str, Any]) -> str:
    """'cell 4: ValueError: no such thing', or why it was skipped; empty for what went well."""
    if facts["state"] in ("done", "running", "waiting"):
        return ""
    cell = f"cell {facts['cell']}" if facts.get("cell") else ""
    parts = (cell, facts.get("ename"), facts.get("evalue"), facts.get("note"))
    return ": ".join(part for part in parts if part)


def _time(facts: dict[str, Any]) -> str:
    return duration(facts["seconds"]) if "seconds" in facts else ""
