"""Notebooks without a reader: papermill runs them, and an HTML page is kept beside each."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dreamlib.config.load import load_config
from dreamlib.notebook.runner.execute import Leash, execute
from dreamlib.report.html import POLICY
from dreamlib.runs.time_budget import StopFlag
from dreamlib.utils.errors import ConfigError, DreamlibError, Interrupted
from dreamlib.utils.files import parse_json, write_text

HOME = Path(__file__).resolve().parents[3] / "notebooks"


def numbered() -> list[str]:
    """The project's own notebooks, in their order."""
    return sorted(path.stem for path in HOME.glob("[0-9]*.ipynb"))


def find_notebook(name: str) -> Path:
    """'00_complete' or a path -> the file; ConfigError lists what there is."""
    path = Path(name) if name.endswith(".ipynb") else HOME / f"{name}.ipynb"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in HOME.glob("*.ipynb"))) or "none in this install"
        raise ConfigError(
            f"there is no notebook {path}: known are {known}; give a path that ends in .ipynb, or "
            "work in a clone of the repository"
        )
    return path


def _cells(path: Path) -> list[dict[str, Any]]:
    try:
        cells = parse_json(path.read_text(encoding="utf-8"))["cells"]
        return [{**cell, "source": "".join(cell["source"])} for cell in cells]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no notebook ({error}): restore it from a copy") from error


def title(path: Path) -> str:
    """The first heading of a notebook, else its name."""
    text = "\n".join(cell["source"] for cell in _cells(path) if cell["cell_type"] == "markdown")
    heading = re.search(r"^# (.*)", text, re.MULTILINE)
    return heading[1].strip() if heading else path.stem


def parameters_of(path: Path) -> dict[str, Any]:
    """The names and defaults of the cell tagged `parameters`, which holds literals only."""
    tagged = [c for c in _cells(path) if "parameters" in c.get("metadata", {}).get("tags", [])]
    defaults: dict[str, Any] = {}
    try:
        node: Any  # an assignment, or else its attributes are missing
        for node in ast.parse(tagged[0]["source"] if tagged else "").body:
            annotated = isinstance(node, ast.AnnAssign)
            targets: list[Any] = [node.target] if annotated else node.targets
            defaults |= {target.id: ast.literal_eval(node.value) for target in targets}
    except (SyntaxError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"the cell tagged 'parameters' of {path.name} must hold assignments of literals "
            f"only, as in N = 500 ({error})"
        ) from error
    return defaults


def check_names(names: Iterable[str], paths: Iterable[Path]) -> None:
    """Refuse a parameter that none of these notebooks has."""
    known = {path.stem: list(parameters_of(path)) for path in paths}
    if unknown := sorted(set(names).difference(*known.values())):
        lists = "; ".join(f"{stem} has {', '.join(own) or 'none'}" for stem, own in known.items())
        raise ConfigError(f"no notebook has a parameter {', '.join(unknown)}: {lists}")


def check_parameters(path: Path, parameters: dict[str, Any]) -> None:
    """Refuse a parameter that the notebook does not have, a value of the wrong kind, a preset or a
    setting that does not exist.

    The kind is that of the notebook's own default; None is allowed everywhere, and a default of
    None allows everything.  Raises ConfigError before anything runs.
    """
    check_names(parameters, [path])
    defaults = parameters_of(path)
    for name, value in parameters.items():
        if not _fits(value, defaults[name]):
            raise ConfigError(
                f"{name} of {path.name} is {value!r}, but should be of the kind of its default, "
                f"{defaults[name]!r}"
            )
    try:
        json.dumps(parameters, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a parameter of {path.name} is no plain value: {error}") from error
    if parameters.keys() & {"PRESET", "OVERRIDES"}:  # load the config that the notebook would
        values = defaults | parameters
        preset, saved = values.get("PRESET"), Path(str(values.get("RUN"))) / "config.yaml"
        if preset is not None or saved.is_file():
            load_config(saved if preset is None else preset, values.get("OVERRIDES") or [])


def _fits(value: Any, default: Any) -> bool:
    if value is None or default is None:
        return True
    if isinstance(default, (list, tuple)):
        one = isinstance(value, str) and all(isinstance(item, str) for item in default)
        return one or isinstance(value, (list, tuple))
    return type(value) is type(default) or (type(value), type(default)) == (int, float)


def run_notebook(
    path: Path, output: Path, parameters: dict[str, Any], timeout: float | None = None
) -> Path:
    """Execute a notebook into `output` and write its HTML beside it -> the HTML's path.

    A failing cell raises DreamlibError with the cell's own message; a notebook whose time budget
    ended before its work (`stop_cleanly`), that was asked to stop (SIGINT, SIGTERM), or that took
    more than `timeout` seconds raises Interrupted.  The executed notebook and its page are kept.
    """
    check_parameters(path, parameters)
    with StopFlag().listening() as stop:
        ending = execute(path, output, parameters, Leash(lambda: bool(stop), timeout))
    page = to_html(output)
    if ending.state == "done":
        return page
    message = {
        "failed": f"{path.name} stopped {ending.text()}",
        "killed": f"the process of {path.name} was killed, perhaps for want of memory",
    }.get(ending.state, f"{path.name} was stopped before its end {ending.text()}".rstrip())
    kind = DreamlibError if ending.state in ("failed", "killed") else Interrupted
    raise kind(f"{message} (what ran is in {page}; run the same command again to continue)")


def to_html(notebook: Path) -> Path:
    """The executed notebook as one self-contained page.  DreamlibError when it cannot be one.

    Without scripts: a still page needs none, and those of outputs are somebody else's.
    """
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import InvalidNotebook

    logging.getLogger("traitlets").setLevel(logging.ERROR)  # it misses alternative texts
    try:
        page, _ = HTMLExporter().from_filename(str(notebook))
    except (InvalidNotebook, ValueError) as error:  # the latter: its own templates are missing
        raise DreamlibError(
            f"{notebook} makes no page ({error}): mend the notebook, or install nbconvert anew"
        ) from error
    page = re.sub(r"<script\b.*?(</script>|\Z)", "", page, flags=re.DOTALL | re.IGNORECASE)
    target = notebook.with_suffix(".html")
    write_text(target, page.replace("<head>", f"<head>{POLICY}", 1))
    return target
