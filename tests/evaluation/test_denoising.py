"""Denoising of unseen images by noise level: exact where the right answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dreamlib.config.factory import make_schedule
from dreamlib.evaluation.denoising import RANGES, denoising_errors, memorised_by_noise
from dreamlib.report.texts import denoised
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


class Remembers(torch.nn.Module):
    """Right about the noise in images of one grey at middle timesteps; else it answers nothing."""

    def __init__(self, run, low, high):
        super().__init__()
        self.knows, self.low, self.high = Knows(run), low, high

    def forward(self, x_t, t):
        middle = ((t >= self.low) & (t < self.high)).view(-1, 1, 1, 1)
        there = x_t.mean(dim=(1, 2, 3), keepdim=True)
        a, s = self.knows.sched.signal_noise(t)
        near = (there - a * (GREY / 127.5 - 1)).abs() < 6 * s / x_t[0].numel() ** 0.5
        return torch.where(middle & near, 0.9 * self.knows(x_t, t), torch.zeros_like(x_t))


def test_memorisation_is_seen_at_the_noise_levels_where_it_is(trained, monkeypatch):
    steps = trained.config.diffusion.steps
    low, high = steps * 2 // RANGES, steps * 4 // RANGES
    seen, new = (np.full((50, 16, 16, 3), grey, np.uint8) for grey in (GREY, 250))
    monkeypatch.setattr(Shards, "net", Remembers(trained, low, high))
    found = memorised_by_noise(trained, seen, new)
    assert found["p"] < 1e-3
    ratios = found["ratios"]
    assert max(ratios[2:4]) < 0.2
    assert [*ratios[:2], *ratios[4:]] == pytest.approx([1] * 6, abs=0.05)
    again = np.full((50, 16, 16, 3), GREY, np.uint8)
    assert memorised_by_noise(trained, seen, again)["p"] == 1
    with pytest.raises(ValueError, match="from 2 of each on, got 1"):
        memorised_by_noise(trained, seen, new[:1])


def test_what_is_said_of_it():
    memory = {"ratios": [0.9, 0.5, 1.0], "p": 1e-5, "n": 50}
    assert "0.90, 0.50, 1.00 (p = 1e-05): MEMORISED in part" in denoised(memory)
    assert "no difference" in denoised(memory | {"p": 0.2})
    assert "differ in kind" in denoised(memory | {"ratios": [1.0, 2.0, 1.1]})
    assert denoised(None) == ""
