"""U-Nets with the weights of a run or of a checkpoint, in eval mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamlib.diffusion.unet import UNet
from dreamlib.utils.context import say
from dreamlib.utils.errors import CheckpointError
from dreamlib.utils.files import read_json, sha256_file
from dreamlib.utils.weights import averaged_of, read_weights


def load_unet(folder: str | Path) -> UNet:
    """A run's network with its averaged weights.  Raises RunError without."""
    weights, card = read_weights(Path(folder) / "weights")
    say(f"loaded the averaged weights of step {card['step']:,} from {folder}")
    return _with(card["net"], weights)


def load_checkpoint(path: str | Path, *, averaged: bool = True) -> UNet:
    """The network in a checkpoint file: its averaged weights, or those being trained."""
    path = Path(path)
    manifest_path = path.with_suffix(".json")
    if not manifest_path.exists():
        raise CheckpointError(f"{path} has no manifest beside it: name a whole checkpoint")
    manifest = read_json(manifest_path)
    if sha256_file(path) != manifest["sha256"]:
        raise CheckpointError(f"{path} is damaged: take another checkpoint")
    state = torch.load(path, map_location="cpu", weights_only=True)
    kind = "averaged weights" if averaged else "weights in training, not averaged,"
    say(f"loaded the {kind} of step {manifest['step']:,} from {path}")
    return _with(manifest["net"], averaged_of(state) if averaged else state["net"])


def _with(shape: dict[str, Any], weights: dict[str, Tensor]) -> UNet:
    net = UNet(**shape)
    net.load_state_dict(weights)
    return net.eval()
