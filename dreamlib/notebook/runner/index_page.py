"""How a batch of notebooks went: a page that links them all, and a table of text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dreamlib.report.html import POLICY
from dreamlib.utils.progress import duration

HEAD = ("run", "notebook", "state", "time")
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">{{ policy | safe }}<title>Notebooks</title><style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em }
table { border-collapse: collapse; width: 100% }
th, td { border-bottom: 1px solid #ccc; padding: .3em .6em; text-align: left; vertical-align: top }
.done { color: #00664f } .failed, .killed { color: #a03000; font-weight: bold }
.timeout, .stopped { color: #7a5900 } .waiting, .skipped { color: #666 }
</style></head><body>
<h1>Notebooks</h1>
<p>{{ state }}</p>
<table><tr>{% for name in head %}<th>{{ name }}</th>{% endfor %}<th></th></tr>
{% for run, name, state, time, link, detail in rows -%}
<tr><td>{{ run }}</td>
<td>{% if link %}<a href="{{ link }}">{{ name }}</a>{% else %}{{ name }}{% endif %}</td>
<td class="{{ state }}">{{ state }}</td><td>{{ time }}</td><td>{{ detail }}</td></tr>
{% endfor -%}
</table>
</body></html>
"""


def records(status: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Run, notebook and facts of a status, in order."""
    for name, run in status["runs"].items():
        for notebook, facts in run["notebooks"].items():
            yield name, notebook, facts


def index(status: dict[str, Any], out: Path) -> str:
    """One self-contained page; its links are relative to `out`."""
    from jinja2 import Environment

    rows = []
    for run, name, facts in records(status):
        page = facts.get("page")
        link = quote(Path(os.path.relpath(page, out)).as_posix()) if page else ""
        rows.append((run, name, facts["state"], _time(facts), link, _detail(facts)))
    template = Environment(autoescape=True).from_string(PAGE)
    return template.render(policy=POLICY, state=status["state"], head=HEAD, rows=rows)


def table(status: dict[str, Any]) -> str:
    """Run, notebook, state, time and page, in columns."""
    lines = [(*HEAD, "page")]
    for run, name, facts in records(status):
        lines.append((run, name, facts["state"], _time(facts), facts.get("page", "")))
    widths = [max(map(len, column)) for column in zip(*lines)]
    texts = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in lines)
    return "\n".join(text.rstrip() for text in texts)


def _detail(facts: dict[str, Any]) -> str:
    """'cell 4: ValueError: no such thing', or why it was skipped; empty for what went well."""
    if facts["state"] in ("done", "running", "waiting"):
        return ""
    cell = f"cell {facts['cell']}" if facts.get("cell") else ""
    parts = (cell, facts.get("ename"), facts.get("evalue"), facts.get("note"))
    return ": ".join(part for part in parts if part)


def _time(facts: dict[str, Any]) -> str:
    return duration(facts["seconds"]) if "seconds" in facts else ""
