"""docs/ARCHITECTURE.md says what the code does: its commands run, its quotations are the code."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch

from benchmarks import (
    coverage,
    frechet_speed,
    gaussian_truth,
    known_generators,
    ranking,
    study_cost,
)
from benchmarks.sampler_table import key, table
from dreamlib.config.load import load_config
from dreamlib.diffusion.unet import UNet
from dreamlib.evaluation.ablation import ARMS, read_ablation
from dreamlib.evaluation.results import study_from
from dreamlib.report.tables import ablation_markdown, markdown
from dreamlib.training.cost import explain

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.S)
QUOTED = [block for block in PYTHON if block.startswith("# dreamlib/")]
COMMANDS = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.S)).splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, tmp_path):
    program, *words = shlex.split(command)
    assert program == "python"
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 3
    assert (tmp_path / "schedule.png").exists() == ("--plot" in words)


def test_the_program_of_ones_own_network_runs():
    (program,) = [block for block in PYTHON if block not in QUOTED]
    state = {}
    exec(program, state)  # the page's own text
    assert state["t"] == 0
    assert state["x_t"].shape == (4, 3, 16, 16)
    assert torch.isfinite(state["x_t"]).all()


def test_there_is_something_to_check():
    assert len(COMMANDS) >= 3
    assert len(QUOTED) >= 4


@pytest.mark.parametrize("block", QUOTED, ids=lambda block: block.split()[-1])
def test_quotations_are_the_code(block):
    head, *lines = block.splitlines()
    source = (ROOT / head.removeprefix("# ")).read_text("utf-8").splitlines()
    place = -1
    for line in lines:  # in the source's own order
        assert line in source[place + 1 :], line
        place = source.index(line, place + 1)


def measured(name):
    return json.loads((ROOT / name).read_text("utf-8"))


SAMPLERS = measured("benchmarks/sampler_table.json")
EVALUATION = (ROOT / "docs" / "EVALUATION.md").read_text("utf-8")


def test_the_sampler_table_is_the_measured_one():
    page = (ROOT / "docs" / "TRAINING.md").read_text("utf-8")
    for part in table(SAMPLERS, seeds=3).split("\n\n"):
        assert part in page


def test_twenty_steps_of_dpm_solver_are_as_good_as_a_hundred_of_ddim():
    """At most two standard deviations over seeds, or 5 %, above: from the measured results."""

    def fd(*row):
        return [SAMPLERS[key(row, seed)]["fd"] for seed in range(3)]

    for spacing in ("uniform", "karras"):
        slow = fd("ddim", spacing, 100)
        room = max(2 * stdev(slow), 0.05 * mean(slow))
        assert mean(fd("dpmpp_2m", "karras", 20)) <= mean(slow) + room


def test_the_tables_of_evaluation_are_the_measured_ones():
    benchmarks = "benchmarks/"
    assert gaussian_truth.table(measured(benchmarks + "gaussian_truth.json")["cases"]) in EVALUATION
    assert frechet_speed.table(measured(benchmarks + "frechet_speed.json")) in EVALUATION
    assert study_cost.table(measured(benchmarks + "study_cost.json")) in EVALUATION
    known = measured("figures/known_generators.json")["perfect"]
    assert known_generators.perfect_table(known) in EVALUATION


def test_the_ranking_table_is_the_measured_one_and_so_is_memorisation():
    assert ranking.table(measured("benchmarks/ranking.json")["found"]) in EVALUATION
    found = measured("benchmarks/memorised.json")["found"]
    (learnt,) = found["50 images"].values()
    honest = [each["p"] > 0.05 for each in found["20,000 images"].values()]
    assert learnt["p"] < 0.001
    assert f"p = {learnt['p']:.0e} for the first" in EVALUATION
    assert f"down to {min(learnt['ratios']):.2f} of those" in EVALUATION
    assert f"{sum(honest)} of {len(honest)} honest ones" in EVALUATION
    assert sum(honest) >= 0.9 * len(honest)


COVERAGE = measured("benchmarks/coverage.json")


def test_the_tables_of_coverage_are_the_measured_ones():
    assert list(COVERAGE) == list(coverage.PARTS)
    for table_of in (coverage.coverage_table, coverage.verdicts_table, coverage.expected_table):
        assert table_of(COVERAGE) in EVALUATION


def test_two_standard_errors_hold_fresh_images_and_a_fresh_reference():
    rows = coverage.of(COVERAGE, "coverage")
    assert len(rows) == 6
    for row in rows:
        assert row["repetitions"] >= 200
        for what in ("FD 500", "FD 5000", "KID 500", "KID 5000"):
            assert 0.92 <= row[what]["within"] <= 0.97, (row["law"], row["d"], what)


def test_of_equally_far_generators_none_is_called_nearer():
    for row in coverage.of(COVERAGE, "verdicts"):
        assert row["compare"] <= 0.07, row
    assert COVERAGE["verdicts, 64"]["raw"] > 0.07  # what the raw distance would have said


def test_the_null_is_what_perfect_generators_score():
    """Within a tenth, lognormal features excepted, as the page says."""
    for row in coverage.of(COVERAGE, "expected"):
        for n in map(str, coverage.SIZES):
            off = abs(row[n]["null"] / row[n]["scored"] - 1)
            assert off <= 0.1 or row["law"] == "lognormal", (row, n)
    assert "but the lognormal one" in " ".join(EVALUATION.split())


def test_a_study_costs_what_was_promised():
    """5,000 against 5,000 images with 2048 features, once these are there."""
    cost = measured("benchmarks/study_cost.json")
    assert cost["without jackknife"]["total"] <= 60
    assert cost["with jackknife"]["total"] <= 120
    assert max(cost[name]["growth_mb"] for name in ("without jackknife", "with jackknife")) < 2000


STUDIES = {name: study_from(ROOT / name / "scores.json") for name in ("figures", "figures/fashion")}
RESULTS = " ".join((ROOT / "docs/RESULTS.md").read_text("utf-8").split())


@pytest.mark.parametrize("folder", STUDIES)
def test_committed_scores_are_readable_and_tell_of_their_figures(folder):
    study = STUDIES[folder]
    assert {row.n for row in study.of("generated")} == {500, 5000}
    for n in (500, 5000):
        for images in ("generated", "held-out real"):
            row = study.find(images, n)
            assert f"{row.value:.2f} ± {row.se:.2f}" in RESULTS, (folder, images, n)


def test_every_committed_error_has_both_sides():
    for study in STUDIES.values():
        assert not [row for row in study.rows if "held fixed" in row.se_method]
        assert not [row for row in study.of("generated") if row.null and not row.null_method]


def test_the_rarest_mode_is_the_files():
    modes = [m for m in STUDIES["figures/fashion"].modes["generated"]["table"] if m["ratio"]]
    rarest = min(modes, key=lambda mode: mode["ratio"])
    images = f"{rarest['gen']} image{'s' * (rarest['gen'] != 1)} for {rarest['real']} real"
    said = f"{rarest['ratio']:.2f} times as often ({images}"
    assert said in RESULTS


def test_the_first_page_tells_the_demos_own_distances():
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    few, many = (STUDIES["figures"].find("generated", n) for n in (500, 5000))
    assert f"reads {few.value:.2f} with 500 images and {many.value:.2f} with 5,000" in readme
    assert f"± {few.se:.2f} and {many.se:.2f}" in readme


def test_committed_tables_are_drawn_from_the_committed_files():
    tables = {}
    for name in ("fashion", "faces", "digits"):
        ablation = read_ablation(ROOT / "figures" / "ablation" / name)
        assert len(ablation.cells) == len(ARMS) * 5 * 2 * 2  # seeds, budgets, samplers
        tables[f"ablation/{name}/ablation"] = ablation_markdown(ablation)
    tables["fashion/scores"] = markdown(STUDIES["figures/fashion"])
    for name, text in tables.items():
        assert (ROOT / f"figures/{name}.md").read_text("utf-8").strip() == text.strip()


@pytest.mark.parametrize(
    "page", ["docs/EVALUATION.md", "README.md", "notebooks/07_dream_ablation.ipynb"]
)
def test_what_the_study_found_is_what_its_file_says(page):
    text = " ".join((ROOT / page).read_text("utf-8").split())
    told = [("fashion", "conservative", "steps"), ("fashion", "conservative", "passes")]
    told += [("faces", "conservative", "steps"), ("faces", "paper-p10", "steps")]
    told += [("digits", "conservative", "steps")]
    for name, arm, budget in told:
        ablation = read_ablation(ROOT / "figures" / "ablation" / name)
        value, se = ablation.difference(arm, budget, ablation.facts["samplers"][0])
        assert f"{abs(value):.2f} ± {se:.2f}" in text, (name, arm, budget)


def test_every_name_in_the_table_of_letters_exists():
    table = PAGE.split("## The letters")[1].split("\n## ")[0]
    modules = "schedules|forward_process|denoiser|losses"
    named = re.findall(rf"`({modules})\.(\w+)", table)
    assert len(named) >= 8
    for module, name in named:
        source = (ROOT / "dreamlib/diffusion" / f"{module}.py").read_text("utf-8")
        assert re.search(rf"^(?:def|class) {name}\b", source, re.M), f"{module}.{name}"


def block_rows():
    table = PAGE.split("## The network, block by block")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| .+ \| ([\d,]+) \|$", table, re.M)
    return [(name, shape, int(count.replace(",", ""))) for name, shape, count in rows]


def test_block_table_has_the_networks_own_counts():
    with torch.device("meta"):
        counted = explain(load_config("celeba64")).blocks
    assert [(name, count) for name, _, count in block_rows()] == counted


def test_block_table_has_the_networks_own_shapes():
    net = UNet(size=64, channels=3, widths=[128, 256, 512], attention=[16], heads=8)
    parts = {"time": net.time, "stem": net.stem, "middle": net.middle}
    parts |= {"norm": net.norm, "head": net.head}
    for i, width in enumerate((128, 256, 512)):
        parts[f"down {i + 1} ({width})"] = net.down[i]
        parts[f"shrink {i + 1}"] = net.shrink[i]
        parts[f"grow {i + 1}"] = net.grow[i]
        parts[f"up {i + 1} ({width})"] = net.up[i]
    seen = {}
    for name, part in parts.items():
        part.register_forward_hook(
            lambda _, inputs, out, name=name: seen.__setitem__(name, tuple(out.shape[1:]))
        )
    with torch.device("meta"):
        net.to("meta")(torch.zeros(1, 3, 64, 64), torch.zeros(1, dtype=torch.int64))
    for name, shape, _ in block_rows():
        channels, *pixels = seen[name]
        assert shape == "x".join(map(str, [*pixels, channels])), name


def test_the_example_of_many_runs_is_a_batch(tmp_path):
    from dreamlib.notebook.runner.job_spec import plan_batch, read_batch

    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/TRAINING.md").read_text("utf-8"), re.S)
    (tmp_path / "runs.yaml").write_text(text, "utf-8")
    asked = read_batch(tmp_path / "runs.yaml")
    names = [item.run for item in plan_batch(asked, tmp_path, asked.jobs)]
    assert names == [*["dream"] * 3, *["standard"] * 3, "linear"]
    assert asked.timeout == 3 * 3600


def test_every_committed_picture_has_its_source():
    home = ROOT / "figures"
    text = (home / "README.md").read_text("utf-8")
    named = re.findall(r"`([\w/.]+\.(?:png|json))`", text)
    pictures = {path.relative_to(home).as_posix() for path in home.rglob("*.png")}
    assert pictures <= set(named)
    for name in {name for name in named if name.endswith(".json")}:
        assert (home / name).is_file(), name
    for folder, short in (("", "7f13a36a"), ("fashion", "ad8a4dbf")):
        facts = measured(f"figures/{folder}/scores.json")["facts"]
        assert facts["weights"].startswith(short)
        assert short in text
        assert f"step {facts['step']:,}" in text
