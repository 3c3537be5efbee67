"""The averaged weights that a run exports, and the card that vouches for them.

`ema.safetensors` and `card.json` lie together in a run's weights/; the card, written last, has the
step, the file's hash, and what is needed to build the network again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dreamlib.utils.errors import NotThere, RunError
from dreamlib.utils.files import check_fields, read_json, sha256_file, write_bytes, write_json


def averaged_of(state: dict[str, Any]) -> dict[str, Tensor]:
    """The weights to generate with, out of a trainer's saved state."""
    named = ((*name.partition("."), value) for name, value in state["ema"].items())
    return {name: value for part, _, name, value in named if part == "module"}


def write_weights(
    folder: Path, step: int, weights: dict[str, Tensor], facts: dict[str, Any]
) -> None:
    """Write the weights of a step, then the card with `facts`."""
    path = folder / "ema.safetensors"
    write_bytes(path, save(weights))
    card = {"step": step, "sha256": sha256_file(path), "weights": "averaged (EMA)"}
    write_json(folder / "card.json", card | facts)


def read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and their card.  Raises RunError when they are missing or not the card's."""
    path, card_path = folder / "ema.safetensors", folder / "card.json"
    if not card_path.exists():
        raise NotThere(f"{folder.parent} has no weights yet: train it first (dreamlib train)")
    try:
        card = check_fields(read_json(card_path), step=int, sha256=str)
    except ValueError as error:
        raise RunError(f"{card_path} is damaged ({error}): run training again") from error
    data = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(data).hexdigest() != card["sha256"]:
        raise RunError(f"{path} is not the file its card describes: run training again")
    try:
        return load(data), card  # load_file maps the file, and follows what is written there later
    except SafetensorError as error:
        raise RunError(f"{path} holds no weights ({error}): run training again") from error
