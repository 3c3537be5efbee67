"""Pages and other texts from the templates beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

# Nothing is fetched, and nothing runs, whatever a page's texts hold.
POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
)
TEMPLATES = Path(__file__).with_name("templates")


def templates_of(*folders: Path) -> Environment:
    """Templates of these folders and the one beside this file; in HTML every value is text."""
    return Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


_templates = templates_of()
_templates.globals["policy"] = Markup(POLICY)


def render(template: str, **values: Any) -> str:
    """A file of templates/ with these values; in HTML each of them is text, whatever it holds."""
    return _templates.get_template(template).render(values)
