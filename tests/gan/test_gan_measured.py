"""What docs/GAN.md says of GANs that were trained is what was measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import mean

import pytest

from benchmarks import gan_faces, gan_little
from dreamlib.config.load import load_config
from dreamlib.training.gan import FLAT

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/GAN.md").read_text("utf-8")
FACES = json.loads((ROOT / "benchmarks/gan_faces.json").read_text("utf-8"))
LITTLE = json.loads((ROOT / "benchmarks/gan_little.json").read_text("utf-8"))
SEEDS = [FACES["seeds"][str(seed)] for seed in gan_faces.SEEDS]


def test_the_table_of_faces_is_the_measured_one():
    assert gan_faces.table(FACES) in PAGE


def test_a_small_gan_takes_at_most_ten_minutes_of_two_cores():
    taken = [each["seconds"] for each in SEEDS if each["threads"] == 2]
    assert taken
    assert max(taken) <= 600


def test_over_seeds_a_small_gan_is_ten_times_nearer_than_untrained():
    found = [each["scores"][each["metric"]]["5000"]["value"] for each in SEEDS]
    assert mean(found) <= mean(each["untrained"]["value"] for each in SEEDS) / 10


@pytest.mark.parametrize("found", SEEDS)
def test_no_seed_collapses(found):
    assert found["steps"] == load_config(FACES["preset"]).train.length
    assert gan_faces.rarest(found["shares"])[1] >= 0.25, "a kind of face is lost"
    for name in ("spread", "contrast"):
        assert min(row[name] for row in found["log"]) > 100 * FLAT, "all images are one"


def test_the_table_of_few_images_is_the_measured_one():
    assert gan_little.table(LITTLE) in PAGE
    assert LITTLE["images"] == 500
    assert list(LITTLE["arms"]) == list(gan_little.ARMS)


def test_ada_keeps_a_discriminator_from_learning_500_images_by_heart():
    arms = LITTLE["arms"]
    late = {arm: each["log"][len(each["log"]) // 2 :] for arm, each in arms.items()}
    sign = {arm: mean(row["sign_real"] for row in rows) for arm, rows in late.items()}
    assert sign["without ADA"] > 0.8
    assert sign["with ADA"] == pytest.approx(0.6, abs=0.05)
    end = {arm: each["scores"][-1]["FD"] for arm, each in arms.items()}
    gain = end["without ADA"]["value"] - end["with ADA"]["value"]
    assert gain > 2 * math.hypot(*(each["se"] for each in end.values()))


def test_without_augmentation_nothing_is_augmented():
    p = {arm: max(row["p"] for row in each["log"]) for arm, each in LITTLE["arms"].items()}
    assert p["without ADA"] == 0 < p["with ADA"]
