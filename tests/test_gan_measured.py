"""What docs/GAN.md says of GANs that were trained is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dreamlib.config import load_config
from dreamlib.train_gan import FLAT
from tests.benchmarks import gan_faces

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/GAN.md").read_text("utf-8")
FACES = json.loads((ROOT / "tests/benchmarks/gan_faces.json").read_text("utf-8"))


def test_the_table_of_faces_is_the_measured_one():
    assert gan_faces.table(FACES) in PAGE


def test_a_small_gan_takes_at_most_ten_minutes_of_two_cores():
    taken = [each["seconds"] for each in FACES["seeds"].values() if each["threads"] == 2]
    assert taken
    assert max(taken) <= 600


@pytest.mark.parametrize("seed", gan_faces.SEEDS)
def test_a_small_gan_becomes_faces_of_every_kind(seed):
    found = FACES["seeds"][str(seed)]
    assert found["steps"] == load_config(FACES["preset"]).train.length
    assert found["scores"][found["metric"]]["5000"]["value"] <= found["untrained"]["value"] / 10
    assert gan_faces.rarest(found["shares"])[1] >= 0.25
    for name in ("spread", "contrast"):
        assert min(row[name] for row in found["log"]) > 100 * FLAT, "all images are one"


def test_the_rarest_value_is_the_one_furthest_below_its_real_share():
    shares = {
        "eyes": {"blue": {"real": 0.5, "generated": 0.4}, "green": {"real": 0.5, "generated": 0.6}},
        "hair_style": {"bun": {"real": 0.2, "generated": 0.1}},
    }
    assert gan_faces.rarest(shares) == ("hair style: bun", 0.5)
