"""Two recipes over few training seeds: of equal ones, one pair in twenty is called different."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from dreamlib.cli.main import app
from dreamlib.evaluation.recipes import Recipes, compare_recipes, differ, recipes_path
from dreamlib.metrics import mind
from dreamlib.metrics.estimate import Tested, two_means
from dreamlib.runs.open import open_run
from dreamlib.training.train import train
from dreamlib.utils.errors import ConfigError
from tests.conftest import TINY


@pytest.fixture(scope="module")
def recipes(tmp_path_factory, data_home):
    """Folders of two recipes, two training seeds each."""
    home = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMLIB_DATA", str(data_home))
        patch.chdir(home)
        for name, more in (("slow", ["train.lr=1e-4"]), ("usual", [])):
            for seed in (0, 1):
                settings = [*TINY, *more, f"train.seed={seed}", "evaluate.n=[60]"]
                run = open_run(home / name / str(seed), "faces16", overrides=settings, say=print)
                list(train(run))
    return home


@pytest.fixture
def opened(recipes, tmp_path, data_home, monkeypatch):
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    monkeypatch.chdir(tmp_path)
    for name in ("slow", "usual"):
        shutil.copytree(recipes / name, tmp_path / name)

    def of(name):
        return [open_run(tmp_path / name / str(seed), say=lambda text: None) for seed in (0, 1)]

    return of


def test_recipes_are_compared_by_their_seeds(opened):
    found = compare_recipes(opened("slow"), opened("usual"), names=("slow", "usual"))
    assert len(found.a) == len(found.b) == 2
    assert found.minus.value == pytest.approx(np.mean(found.a) - np.mean(found.b))
    again = two_means(np.array(found.a), np.array(found.b))
    assert found.minus == again
    stored = json.loads(recipes_path(opened("slow")[0].folder, found).read_text())
    assert stored["a"] == found.a
    assert found.facts["n"] == 60
    assert "2 of slow and 2 of usual" in found.sentence()


def test_two_folders_of_runs_are_recipes_on_the_command_line(opened):
    done = CliRunner().invoke(app, ["compare", "slow", "usual", "--mirror", "none"])
    assert done.exit_code == 0, done.output
    assert "over training seeds (2 of slow and 2 of usual)" in done.output
    assert "recipes-usual.json" in done.output


def test_what_is_no_recipe_is_refused(opened):
    slow, usual = opened("slow"), opened("usual")
    with pytest.raises(ConfigError, match="judged by at least two, each with its own"):
        compare_recipes(slow[:1], usual)
    with pytest.raises(ConfigError, match="2 runs of 1 training seeds"):
        compare_recipes(slow, [usual[0], usual[0]])
    with pytest.raises(ConfigError, match="differ in train, not in"):
        compare_recipes([slow[0], usual[1]], usual)


def test_equal_recipes_are_called_different_one_time_in_twenty(monkeypatch):
    """400 pairs of three seeds each; a seed has a place and a width of its own."""
    monkeypatch.setattr(mind, "DIRECTIONS", 30)
    rng, called = np.random.default_rng(0), 0
    real = rng.standard_normal((300, 6))

    def seed():
        place, width = 0.1 + 0.1 * rng.standard_normal(), 1.1 + 0.05 * rng.standard_normal()
        return place + width * rng.standard_normal((60, 6))

    for _ in range(400):
        _, _, test = differ([seed() for _ in range(3)], [seed() for _ in range(3)], real)
        called += test.p < 0.05
    assert 7 <= called <= 33  # 20 expected: three standard errors


def test_a_better_recipe_is_found():
    rng = np.random.default_rng(1)
    real, a, b = rng.standard_normal((300, 6)), [], []
    for _ in range(3):
        a.append(0.1 + rng.standard_normal((200, 6)))
        b.append(0.8 + rng.standard_normal((200, 6)))
    values, minus, test = differ(a, b, real)
    assert max(values[:3]) < min(values[3:])
    assert test.p < 0.001
    assert minus.value + minus.half_width < 0
    found = Recipes(
        {"a": "x", "b": "y", "metric": "MIND", "n": 200}, values[:3], values[3:], minus, test
    )
    assert "x is the better recipe" in found.sentence()


def test_students_distribution():
    """Against tables: the 95 % points of 1, 4 and 30 degrees of freedom."""
    for df, point in ((1, 12.706), (4, 2.776), (30, 2.042), (1e6, 1.96)):
        assert Tested(0.0, 2.0, df, 1.0).half_width == pytest.approx(2 * point, rel=1e-3)
    scipy = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for n, m in ((3, 3), (5, 20), (400, 300)):
        a, b = rng.standard_normal(n), 0.3 + 2 * rng.standard_normal(m)
        for alike in (False, True):
            want = scipy.ttest_ind(a, b, equal_var=alike)
            assert two_means(a, b, alike=alike).p == pytest.approx(want.pvalue, rel=1e-4)
