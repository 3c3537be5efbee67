"""What every figure shows and how to read it: for the page, for LaTeX, and for whoever listens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dreamlib.config.load import read_yaml
from dreamlib.config.schema import Config


class Caption(NamedTuple):
    """One figure: its title, what it shows (the alternative text too), and how it is read."""

    title: str
    shows: str
    read: str
    model: str = ""  # the only kind of model that has it
    needs: Sequence[str] = ()  # of a run, as contents.lacking calls it
    command: str = "figures RUN"  # that draws it


_texts = read_yaml(Path(__file__).with_suffix(".yaml"), "caption")
CAPTIONS = {name: Caption(**texts) for name, texts in _texts.items()}  # in the order of a report


def why_absent(config: Config, name: str) -> str:
    """Why a run of this kind of model has no figure of this name; "" where it has one."""
    if name == "validation" and not config.validation.every:
        return "nothing was validated: train a run with --set validation.every=10%"
    model = CAPTIONS[name].model or config.model
    other = f"a figure of a {model} model: model is {config.model} here"
    return "" if model == config.model else other


def captions_of(config: Config) -> dict[str, Caption]:
    """Those of the figures that a run of this kind of model has, in the order of a report."""
    return {name: each for name, each in CAPTIONS.items() if not why_absent(config, name)}
