"""Notebooks without a reader: papermill runs them, and an HTML page is kept beside each."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from dreamlib.errors import ConfigError, DreamlibError, Interrupted
from dreamlib.files import write_text
from dreamlib.runtime.clock import BEGUN, process_age

HOME = Path(__file__).resolve().parent.parent / "notebooks"


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


def check_parameters(path: Path, parameters: dict[str, Any]) -> None:
    """Refuse a parameter that the notebook does not have, before anything runs."""
    from papermill import inspect_notebook

    known = list(inspect_notebook(str(path)))
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise ConfigError(f"{path.name} has no parameter {', '.join(unknown)}: it has {known}")


def run_notebook(path: Path, output: Path, parameters: dict[str, Any]) -> Path:
    """Execute a notebook into `output` and write its HTML beside it -> the HTML's path.

    A failing cell raises DreamlibError with the cell's own message, one that ended the notebook
    politely (`politely`) Interrupted; the executed notebook, up to that cell, is kept.
    """
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    check_parameters(path, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    os.environ["DREAMLIB_HEADLESS"] = "1"
    if hasattr(time, "CLOCK_BOOTTIME"):
        os.environ[BEGUN] = str(time.clock_gettime(time.CLOCK_BOOTTIME) - process_age())
    try:
        done = execute_notebook(
            str(path),
            str(output),
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,  # the cells' own progress lines
        )
    except PapermillExecutionError as error:
        raise DreamlibError(
            f"{path.name} stopped in cell {error.exec_count}: {error.ename}: {error.evalue} "
            f"(what ran is in {output}; run the same command again to continue)"
        ) from error
    except DeadKernelError as error:
        raise DreamlibError(
            f"the process of {path.name} was killed, perhaps for want of memory: run the same "
            f"command again to continue (what ran is in {output})"
        ) from error
    page = to_html(output)
    outputs = (out for cell in done.cells for out in cell.get("outputs", ()))
    if any(out.get("ename") == "SystemExit" for out in outputs):
        raise Interrupted(f"{path.name} was stopped before its end; what ran is in {page}")
    return page


def to_html(notebook: Path) -> Path:
    """The executed notebook as one self-contained page."""
    from nbconvert import HTMLExporter

    logging.getLogger("traitlets").setLevel(logging.ERROR)  # it misses alternative texts
    page, _ = HTMLExporter().from_filename(str(notebook))
    target = notebook.with_suffix(".html")
    write_text(target, page)
    return target
