"""Denoising of unseen images by noise level: exact where the right answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dreamlib.config.factory import make_schedule
from dreamlib.evaluation.denoising import denoising_errors
from dreamlib.sampling.image_store import Shards

GREY = 100  # of every pixel


class Knows(torch.nn.Module):
    """The noise in images of one grey, off by `wrong` from the timestep `since` on."""

    def __init__(self, run, wrong=0.0, since=0):
        super().__init__()
        self.sched, self.wrong, self.since = make_schedule(run.config), wrong, since

    def forward(self, x_t, t):
        a, s = self.sched.signal_noise(t)
        eps = (x_t - a * (GREY / 127.5 - 1)) / s
        return eps + self.wrong * (t >= self.since).view(-1, 1, 1, 1)


@pytest.fixture
def errors(trained, monkeypatch):
    images = np.full((200, 16, 16, 3), GREY, np.uint8)

    def of(net, parts=4):
        monkeypatch.setattr(Shards, "net", net)
        return denoising_errors(trained, images, parts)

    return of


def test_who_knows_the_noise_is_right_at_every_level(trained, errors):
    assert errors(Knows(trained)) == pytest.approx([0] * 4, abs=1e-5)


def test_an_error_stands_in_its_own_quartile(trained, errors):
    steps = trained.config.diffusion.steps
    wrong = Knows(trained, 0.3, steps * 3 // 4)
    assert errors(wrong) == pytest.approx([0, 0, 0, 0.3], abs=1e-5)
    assert errors(wrong, 2) == pytest.approx([0, 0.3 * 0.5**0.5], abs=1e-5)


def test_who_answers_nothing_is_wrong_by_the_noise(errors):
    class Nothing(torch.nn.Module):
        def forward(self, x_t, t):
            return torch.zeros_like(x_t)

    assert errors(Nothing()) == pytest.approx([1] * 4, abs=0.02)


def test_too_few_images_are_refused(trained):
    with pytest.raises(ValueError, match="4 ranges of t need as many images, got 3"):
        denoising_errors(trained, np.zeros((3, 16, 16, 3), np.uint8))
