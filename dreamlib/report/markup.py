"""Plain HTML: a document that stands alone, its tables and its look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from dreamlib.batch_page import POLICY


def document(title: str, head: str, sections: dict[str, str]) -> str:
    """A whole page: its title (text), what it opens with (HTML), and sections, HTML by title."""
    links = [f'<a href="#{name.lower()}">{name}</a>' for name in sections]
    body = [
        f'<section id="{name.lower()}"><h2>{name}</h2>\n{text}\n</section>'
        for name, text in sections.items()
    ]
    return "\n".join(
        [
            *('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">', POLICY, PHONE),
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            f"<header>\n{head}\n<nav>{' '.join(links)}</nav>\n</header>",
            *("<main>", *body, "</main>\n</body>\n</html>\n"),
        ]
    )


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "numbers") -> str:
    cells = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows
    )
    table = f'<table class="{kind}"><thead><tr>{cells}</tr></thead>\n<tbody>{body}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def fold(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary>\n{text}</details>"


PHONE = '<meta name="viewport" content="width=device-width, initial-scale=1">'
STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #5d5d63; --paper: #fff; --line: #d9d9de;
  --shade: #f4f4f6; --link: #0062a3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --soft: #a5a5ad; --paper: #17171a;
  --line: #3a3a40; --shade: #222226; --link: #7cc4f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 62rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 2.6rem 0 .8rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { margin: 0 0 .6rem; font-size: 1.05rem; }
header p, em, figcaption, td:first-child + td.soft { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
a { color: var(--link); }
figure { margin: 0 0 2.4rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { margin-top: .5rem; max-width: 46rem; font-size: .92rem; }
em { display: block; font-style: normal; }
.wide { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; line-height: 1.35; }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
.numbers th, .numbers td { white-space: nowrap; font-variant-numeric: tabular-nums; }
.words td { overflow-wrap: anywhere; }
.words td:first-child { white-space: nowrap; overflow-wrap: normal; }
details { margin: 1rem 0; padding: .5rem .8rem; border: 1px solid var(--line); border-radius: 6px; }
summary { cursor: pointer; font-weight: 600; }
pre, code { font: .85rem/1.5 ui-monospace, monospace; }
pre { overflow-x: auto; }
code { padding: .1rem .3rem; border-radius: 4px; background: var(--shade); }
@media (max-width: 36rem) { body { padding: .8rem; } .words td:first-child { white-space: normal; }
  .numbers th, .numbers td { white-space: normal; }
  th, td { padding-right: .5rem; } table { font-size: .76rem; } }
@media print { :root { --ink: #000; --soft: #333; --paper: #fff; --line: #bbb; --shade: #fff; }
  nav { display: none; } body { max-width: none; padding: 0; font-size: 10pt; }
  .numbers { font-size: 7.5pt; } .numbers th, .numbers td { white-space: normal; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
  details::details-content { content-visibility: visible; display: block; } }
"""
