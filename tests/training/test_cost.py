"""What `explain` measures and draws.  (Its counts: test_setup, test_presets, test_docs.)"""

from __future__ import annotations

from multiprocessing import get_context

import numpy as np
import pytest
import torch

from dreamlib.config.load import load_config
from dreamlib.report.figures.network import schedule
from dreamlib.training import cost as module
from dreamlib.training.cost import explain, step_memory
from dreamlib.utils.errors import ConfigError

CELEBA = load_config("celeba64", ["net.widths=[64, 128]", "data.size=32", "train.device=cpu"])


@pytest.mark.slow
def test_memory_holds_the_state_and_grows_with_the_batch():
    with torch.device("meta"):
        state = 20 * explain(CELEBA).total  # weights, gradient, two moments, average
    one, many = step_memory(CELEBA, 1), step_memory(CELEBA, 16)
    assert one > state
    # at least the outputs of the first level's ten convolutions, in 16 bits
    assert many - one > 15 * 10 * 64 * 32**2 * 2
    saving = CELEBA.model_copy(
        update={"train": CELEBA.train.model_copy(update={"recompute": True})}
    )
    assert step_memory(saving, 16) < many - 15 * 4 * 64 * 32**2 * 2


def test_too_many_images_are_an_error_with_a_remedy(monkeypatch):
    context = {"spawn": get_context("fork")}  # seconds sooner; tests/cli/test_cli.py spawns
    monkeypatch.setattr(module, "get_context", context.__getitem__)
    with pytest.raises(ConfigError, match="smaller --batch"):
        step_memory(CELEBA, 10**9)


def test_micro_batches_by_gpu_memory(monkeypatch):
    """Fixed 3 GiB and 0.1 GiB per image, batch 128, 85 % of a GPU: 0.85 x 8 = 3 + 38 x 0.1."""
    monkeypatch.setattr(module, "step_memory", lambda config, n: int((3 + 0.1 * n) * 2**30))
    wanted = {4: 4, 8: 32, 12: 64, 16: 64, 24: 128, 40: 128, 80: 128}
    assert module.micro_batches(CELEBA) == wanted
    monkeypatch.setattr(module, "step_memory", lambda config, n: (9 + n) * 2**30)
    assert module.micro_batches(CELEBA)[8] == 0


def test_a_system_that_cannot_tell_says_so(monkeypatch):
    monkeypatch.setattr(module.sys, "platform", "win32")
    with pytest.raises(ConfigError, match=r"measure on CUDA"):
        step_memory(CELEBA, 1)


@pytest.mark.parametrize(
    ("preset", "curves"), [("celeba64", ["a", "s", "λ"]), ("cats64", ["a", "s"])]
)
def test_schedule_figure_shows_the_samplers_own_steps(preset, curves):
    config = load_config(preset)
    left, right = schedule(config).axes
    assert [line.get_label()[0] for line in left.lines] == curves
    a, s = (line.get_ydata() for line in left.lines[:2])
    assert np.allclose(np.square(a) + np.square(s), 1)
    _, marks = right.lines
    assert len(marks.get_xdata()) == config.sample.steps
