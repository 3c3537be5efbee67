"""Exported weights, as they are read."""

from __future__ import annotations

import torch
from safetensors.torch import save

from dreamlib.utils.weights import read_weights, write_weights


def test_weights_that_were_read_do_not_follow_their_file(tmp_path):
    """safetensors' load_file maps it: what others write there later would change a loaded model."""
    write_weights(tmp_path, 1, {"w": torch.ones(512, 512)}, {})
    weights, _ = read_weights(tmp_path)
    with open(tmp_path / "ema.safetensors", "r+b") as file:
        file.write(save({"w": torch.full((512, 512), 2.0)}))
    assert weights["w"].eq(1).all()
