"""Plain HTML: a document that stands alone, its tables and its look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path


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


# Nothing is fetched, and nothing runs, whatever the texts above hold.
POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
)
PHONE = '<meta name="viewport" content="width=device-width, initial-scale=1">'
STYLE = "\n" + Path(__file__).with_name("page.css").read_text(encoding="utf-8")
