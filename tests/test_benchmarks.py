"""The benchmarks: turns are fair, tables are the measured ones, pages claim what was measured."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from statistics import mean, stdev

import pytest
from scipy import stats

from benchmarks import (
    dream_cost,
    gan_faces,
    gan_step,
    growth,
    metric_speed,
    quality,
    sampling_cost,
    timing,
    training_step,
)
from benchmarks.preset_costs import DIFFUSION, cost
from benchmarks.suite import NAMES, page
from dreamlib.config.load import load_config
from dreamlib.report.figures import palette

pytestmark = pytest.mark.usefixtures("counted_once")
ROOT = Path(__file__).resolve().parent.parent
MEASURED = json.loads((ROOT / "benchmarks/benchmarks.json").read_text("utf-8"))
TEXT = " ".join(" ".join(p.read_text("utf-8").split()) for p in (ROOT / "docs").glob("*.md"))


@pytest.fixture
def turns(monkeypatch):
    """Who was called, in order; every turn is undisturbed unless `others` says otherwise."""
    called: list[str] = []
    monkeypatch.setattr(timing, "_others", lambda: 0.0)
    return called


def test_turns_alternate_and_every_other_round_goes_backwards(turns):
    calls = {name: lambda name=name: turns.append(name) for name in "abc"}
    seconds = timing.interleave(calls, 3, warm=0)
    assert "".join(turns) == "abc" + "cba" + "abc"
    assert {name: len(each) for name, each in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_the_page_on_sharing_has_the_measured_tables():
    exported = import_module("benchmarks.exported")
    found = json.loads((ROOT / "benchmarks/exported.json").read_text("utf-8"))
    page = (ROOT / "docs/SHARING.md").read_text("utf-8")
    for table in exported.table(found).split("\n\n"):
        assert table in page


def test_a_disturbed_turn_is_taken_again(turns, monkeypatch):
    others = iter([0.0, 60.0, 60.0, 60.0])  # before and after: the first turn was not alone
    monkeypatch.setattr(timing, "_others", lambda: next(others))
    timing.interleave({"a": lambda: turns.append("a")}, 1, warm=0)
    assert len(turns) == 2


def test_a_turn_disturbed_three_times_is_the_least_disturbed_one(turns, monkeypatch):
    others = iter([0.0, 60.0, 0.0, 50.0, 0.0, 70.0])
    clock = iter([0.0, 3.0, 0.0, 2.0, 0.0, 1.0])
    monkeypatch.setattr(timing, "_others", lambda: next(others))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    found = timing.interleave({"a": lambda: None}, 1, warm=0)
    assert found == {"a": [3.0]}  # 20 of others' seconds per second, against 25 and 70


def test_a_ratio_is_of_the_same_round():
    found = timing.ratios([2.0, 40.0, 6.0], [1.0, 10.0, 2.0])
    assert found["median"] == 3.0
    assert found["rounds"] == 3
    assert timing.text(found) == "3.00 (2.00–4.00)"


def test_power_is_the_slope_of_logarithms():
    def points(exponent):
        return [{"amount": n, "seconds": 3.0 * n**exponent} for n in (10, 20, 40, 80)]

    assert growth.power(points(1)) == pytest.approx(1)
    assert growth.power(points(2)) == pytest.approx(2)


def test_every_benchmark_is_measured_and_its_table_stands_in_the_page():
    assert list(MEASURED) == list(NAMES)
    for name in NAMES:
        found, module = MEASURED[name], import_module(f"benchmarks.{name}")
        assert found["rounds"] >= 7, name
        assert not found["quick"], name
        for part in module.table(found).split("\n\n"):
            assert " ".join(part.split()) in TEXT, name
    assert page(MEASURED).count("## ") == len(NAMES)


def test_networks_that_are_compared_have_equal_parameters():
    for size, arms in MEASURED["training_step"]["sizes"].items():
        ours = arms[training_step.OURS]["parameters"]
        for name, arm in arms.items():
            assert abs(arm["parameters"] / ours - 1) <= training_step.PARITY, (size, name)


# ------------------------------------------------------------------ quality for equal time

EQUAL_TIME = json.loads((ROOT / "benchmarks/quality.json").read_text("utf-8"))
ARMS = ("ours", "lucidrains", "original")


def test_the_tables_of_quality_stand_in_the_page():
    for minutes in EQUAL_TIME["minutes"]:
        assert " ".join(quality.table(EQUAL_TIME, minutes).split()) in TEXT
    for each in EQUAL_TIME["ways"].values():
        assert " ".join(quality.ways_table(each).split("\n\n")[0].split()) in TEXT


def test_every_arm_took_the_steps_that_fit_into_the_minutes():
    rates = EQUAL_TIME["rates"]
    for arm, seeds in EQUAL_TIME["minutes"]["20"].items():
        assert len(rates[arm]["rounds"]) >= 7
        for each in seeds:
            assert each["n"] == quality.N
            assert each["images"] / rates[arm]["images_per_s"] == pytest.approx(1200, rel=0.01)


def test_networks_that_are_trained_for_equal_time_are_of_one_size():
    counts = [EQUAL_TIME["rates"][arm]["parameters"] for arm in ARMS]
    assert max(counts) < 1.1 * min(counts)


def test_ours_is_nearer_to_the_images_after_equal_time():
    arms = EQUAL_TIME["minutes"]["20"]
    assert all([each["seed"] for each in seeds] == [0, 1, 2] for seeds in arms.values())
    means = {arm: quality.over_seeds(arms[arm], "FD corrected")[0] for arm in ARMS}
    ratio = means["ours"] / min(means["lucidrains"], means["original"])
    assert ratio <= 0.7
    assert f"at {ratio:.2f} times the distance" in TEXT


def test_nobody_is_called_better_whose_seeds_do_not_tell():
    """Welch's test of ours and the GAN, three training seeds each, and single trainings."""
    arms = EQUAL_TIME["minutes"]["20"]
    for metric, claim in (("FD corrected", "p = 0.10"), ("KID", "p = 0.89")):
        pair = [
            [quality.scores(each)[metric]["value"] for each in arms[arm]]
            for arm in ("ours", "StyleGAN2-ADA")
        ]
        p = stats.ttest_ind(*pair, equal_var=False).pvalue
        assert p > 0.05
        assert f"{p:.2f}" == claim.removeprefix("p = ")
        assert claim in TEXT
    assert "cannot be told apart" in TEXT
    for words in ("The GAN comes second", "standard loss is ahead of DREAM"):
        assert words not in TEXT


def test_the_picture_of_equal_time_names_its_seed_and_the_tables_distances():
    images = quality.first_images(ROOT / "none", (), "20")
    arms = EQUAL_TIME["minutes"]["20"]
    assert set(images) == set(arms)
    fig = quality.figure(images, EQUAL_TIME, "20")
    (axes,) = fig.axes
    assert "seed 0" in axes.get_title()
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows[0].startswith("ours\n")
    for row in rows:
        name, distance = row.split("\n")
        told, alone = distance.rstrip(")").split(" (")
        line = next(x for x in quality.table(EQUAL_TIME, "20").split("\n") if f"| {name} |" in x)
        assert told in line.split(" | ")
        (first,) = (each for each in arms[name] if each["seed"] == 0)
        assert f"{quality.scores(first)['FD corrected']['value']:.2f}" == alone


def test_growth_has_the_projects_colours():
    ours = {palette.BLUE, palette.GREEN, palette.GREY, palette.ORANGE, palette.PURPLE}
    for axes in growth.figure(MEASURED["growth"]).axes:
        colours = [line.get_color() for line in axes.lines]
        assert len(set(colours)) == len(colours) == 5
        assert set(colours) == ours


def test_what_is_committed_is_drawn_again(tmp_path, monkeypatch):
    words = ["benchmarks", "growth", "dream_cost", "--draw", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    import_module("benchmarks.__main__").main()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["growth.pdf", "growth.png"]


def test_what_was_measured_elsewhere_is_where_another_machine_begins(tmp_path):
    quality.restore(tmp_path, EQUAL_TIME)
    assert quality.collect(tmp_path) == EQUAL_TIME


def test_a_projection_is_images_times_work_over_rate():
    found = cost("celeba64")
    assert found.images == 39_062 * 128
    assert found.work == pytest.approx(found.images * 116.06e9 * 1.09, rel=1e-3)
    assert found.checkpoint == 16 * 54_846_979
    original = cost("celeba64-original")
    assert original.images == pytest.approx(100 * 50_000, rel=1e-3)
    assert original.work == pytest.approx(original.images * 140.8e9 * 1.9, rel=1e-3)
    assert original.sampling == 40 * original.few


def test_a_save_is_of_the_large_network():
    assert MEASURED["save_stall"]["bytes"] > 850e6


def test_every_preset_has_its_costs():
    assert sorted(MEASURED["preset_costs"]["presets"]) == DIFFUSION


def at_least(found, limit):
    assert found["median"] >= limit, found


@pytest.mark.parametrize(
    ("size", "fp32_diffusers", "ours_diffusers"),
    [("64", 0.97, 1.6), ("32", 0.9, 1.2), ("16", 0.9, 1.2)],
)
def test_a_step_uses_the_machine_better_than_the_peers_do(size, fp32_diffusers, ours_diffusers):
    arms = MEASURED["training_step"]["sizes"][size]
    rate = training_step.rate_ratio
    at_least(rate(arms, training_step.FP32, "diffusers"), fp32_diffusers)
    at_least(rate(arms, training_step.FP32, "lucidrains"), 1.3)
    at_least(rate(arms, training_step.OURS, "diffusers"), ours_diffusers)
    at_least(rate(arms, training_step.OURS, "lucidrains"), 1.6)


def test_dream_costs_what_the_page_says():
    for size, each in MEASURED["dream_cost"]["sizes"].items():
        for name, limit in dream_cost.LIMITS.items():
            if name == dream_cost.SAMPLED and size != "64":
                limit = dream_cost.SMALL
            assert dream_cost.cost(each, name)["median"] <= limit, (size, name)


def test_a_sampler_is_twice_as_fast_as_diffusers_and_little_beside_its_network():
    for row in MEASURED["sampling_cost"]["loops"]:
        if row["sampler"] != "DDPM":
            at_least(timing.ratios(row["diffusers"], row["ours"]), 2.0)
    for row in MEASURED["sampling_cost"]["shares"]:
        seconds = row["seconds"]
        for name in sampling_cost.OURS:
            share = timing.ratios(seconds[f"{name} null"], seconds["network bf16"])
            assert share["median"] <= row["limit"], (row["preset"], name)
    large = MEASURED["sampling_cost"]["shares"][-1]["seconds"]
    at_least(timing.ratios(large["network fp32"], large["network bf16"]), 1.7)


def test_no_package_computes_a_distance_sooner_or_in_less_memory():
    for metric, packages in MEASURED["metric_speed"]["metrics"].items():
        ours = packages[metric_speed.OURS]
        for name, each in packages.items():
            if name != metric_speed.OURS:
                at_least(timing.ratios(each["seconds"], ours["seconds"]), 1.0)
                assert each["bytes"] >= ours["bytes"], (metric, name)


# ------------------------------------------------------------------ a GAN's step


def test_a_gans_step_has_its_regularisers_as_often_as_they_come():
    seconds = {"plain": [1.0, 2.0], "r1": [3.0, 2.0], "path": [2.0, 2.0]}
    own = load_config("gan-cats64").gan
    both = 1 + 2 / own.r1_every + 1 / own.path_every
    assert gan_step.gan_seconds("gan-cats64", seconds) == [both, 2.0]
    del seconds["path"]
    assert gan_step.gan_seconds("gan-faces16", seconds) == [1 + 2 / own.r1_every, 2.0]


def test_the_rarest_value_is_the_one_furthest_below_its_real_share():
    shares = {
        "eyes": {"blue": {"real": 0.5, "generated": 0.4}, "green": {"real": 0.5, "generated": 0.6}},
        "hair_style": {"bun": {"real": 0.2, "generated": 0.1}},
    }
    assert gan_faces.rarest(shares) == ("hair style: bun", 0.5)


def test_a_gans_step_is_timed_with_and_without_its_regularisers():
    assert "path" not in gan_step.arms("gan-faces16")  # it has none
    found = {name: config.gan for name, config in gan_step.arms("gan-cats64").items()}
    rates = {name: (each.r1_every, each.path_every) for name, each in found.items()}
    never = gan_step.NEVER
    assert rates["plain"] == (never, never)
    assert rates["r1"] == (1, never)
    assert rates["path"] == (never, 1)


def test_before_and_now_are_the_files():
    rows = json.loads((ROOT / "benchmarks/recipes.json").read_text())["rows"]
    page = (ROOT / "docs/BENCHMARKS.md").read_text("utf-8")
    means = {}
    for build in ("before", "now"):
        told = []
        for name, digits in (("fd", 2), ("corrected", 2), ("kid", 4), ("coverage", 3)):
            values = [row[name] for row in rows if row["build"] == build]
            assert len(values) == 3
            means[build, name] = mean(values)
            told.append(f"{mean(values):.{digits}f} ± {stdev(values) / 3**0.5:.{digits}f}")
        assert f"| {build} | {' | '.join(told)} |" in page
    ratios = [f"{means['now', x] / means['before', x]:.2f}" for x in ("fd", "corrected", "kid")]
    assert f"| now / before | {' | '.join(ratios)} | |" in page


def test_short_lives_are_the_files():
    rows = json.loads((ROOT / "benchmarks/short_lives.json").read_text())["rows"]
    page = (ROOT / "docs/RECOVERY.md").read_text("utf-8")
    assert rows
    for row in rows:
        assert row["equal"]
        told = f"| {row['died']} | {row['taken']:,} | {row['twice'] / row['taken']:.1%} |"
        assert told in page
