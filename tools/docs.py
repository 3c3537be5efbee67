"""An API reference from the docstrings, public names only: python tools/docs.py FOLDER."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pdoc

import dreamlib


def load(name: str) -> None:
    """Import a module and all below it.  ImportError or AttributeError, naming what is missing,
    where a package promises a name that it does not have."""
    module = import_module(name)
    promised = list(getattr(module, "__all__", ()))
    for each in promised:  # what loads on first use is loaded now
        setattr(module, each, getattr(module, each))
    below = [each.name for each in iter_modules(getattr(module, "__path__", ()))]
    public = [each for each in below if not each.startswith("_")]
    for each in public:
        load(f"{name}.{each}")
    if promised:
        module.__all__ = [*dict.fromkeys(promised + public)]  # pdoc shows these alone


def build(folder: Path) -> None:
    load(dreamlib.__name__)
    pdoc.pdoc(dreamlib.__name__, output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
