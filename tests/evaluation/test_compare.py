"""Two runs against one reference: who is nearer, by how much, and with what error."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from dreamlib.evaluation.compare import (
    LEVEL,
    Comparison,
    Difference,
    _needed,
    compare,
    comparison_path,
    differences_of,
)
from dreamlib.evaluation.inputs import StudyInputs
from dreamlib.metrics import mind
from dreamlib.metrics.estimate import Estimate
from dreamlib.metrics.features import extract
from dreamlib.metrics.frechet import frechet
from dreamlib.metrics.mind import Told
from dreamlib.report.tables import comparison_markdown
from dreamlib.runs.open import open_run
from dreamlib.sampling.generate import generate
from dreamlib.training.train import train
from dreamlib.utils.errors import ConfigError
from tests.conftest import TINY


def opened(folder, **more):
    return open_run(folder, **more, say=lambda text: None)


@pytest.fixture(scope="module")
def both(tmp_path_factory, data_home):
    """Folders of two finished runs: the same settings, two training seeds."""
    home = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMLIB_DATA", str(data_home))
        for name, more in (("a", []), ("b", ["train.seed=1"])):
            list(train(opened(home / name, preset="faces16", overrides=[*TINY, *more])))
    return home


@pytest.fixture
def pair(both, tmp_path, data_home, monkeypatch):
    """Both runs, a copy for every test."""
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    for name in "ab":
        shutil.copytree(both / name, tmp_path / name)
    return [opened(tmp_path / name) for name in "ab"]


def test_a_difference_is_of_the_two_distances_kept_and_told(pair):
    a, b = pair
    found = compare(a, b, n=(20, 60))
    assert [row.n for row in found.rows[:1]] == [60]  # the largest first
    inputs = StudyInputs(a, (60,))
    reference = extract(inputs.reference, inputs.extractor)
    fd = [frechet(extract(generate(run, range(60)), inputs.extractor), reference) for run in pair]
    (row,) = [row for row in found.rows if row.metric == "FD[classifier]" and row.n == 60]
    assert row.value == pytest.approx(fd[0] - fd[1], rel=1e-6)
    assert row.se > 0
    assert found.facts["paired"]
    assert "corrected at N = 60" in " ".join(found.absent)
    stored = json.loads(comparison_path(a.folder, found).read_text())
    assert stored["rows"][0]["value"] == found.rows[0].value
    assert "a minus b" in comparison_markdown(found)
    assert "one reference, the same seeds" in found.sentence()
    assert "training again with another seed" in found.sentence()


def test_a_run_does_not_differ_from_itself(pair):
    a, _ = pair
    found = compare(a, a, n=(60,))
    for row in found.rows:
        assert row.value == pytest.approx(0, abs=1e-9)
        assert not row.clear
    assert "within two standard errors" in found.sentence()
    assert "They cannot be told apart" in found.sentence()


def test_few_images_are_judged_by_mind_and_kid(pair):
    """No error of the raw distance and no corrected one: neither is needed."""
    a, b = pair
    found = compare(a, b, n=(30,))
    assert found.rows[0].se is None
    assert "30, one reference, the same seeds: KID[classifier]" in found.sentence()
    assert "MIND[classifier] corrected" in found.sentence()
    assert " FD[classifier]" not in found.sentence()


def verdict(*rows, p=0.001, needed=900):
    """A comparison of these (metric, value, se): below 0 narrow has the lower value."""
    found = [Difference(metric, value, se, "", 500, 5000) for metric, value, se in rows]
    found[-1] = replace(found[-1], p=p, needed=needed)
    return Comparison({"a": "narrow", "b": "wide", "paired": True}, found, {})


@pytest.mark.parametrize(
    ("corrected", "kid", "mind", "p", "nearer", "said"),
    [
        (-0.5, -0.5, -0.5, 0.01, "narrow", "narrow is nearer to the real images"),
        (0.5, 0.5, 0.5, 0.01, "wide", "Raw, FD is lower for narrow"),  # the raw one says otherwise
        (0.5, 0.1, 0.5, 0.01, "wide", "KID differs by 0.1 ± 0.1, which is within two standard"),
        (-0.5, 0.5, -0.5, 0.01, None, "The measures disagree, so neither is called nearer"),
        (-0.5, 0.1, 0.5, 0.01, None, "The measures disagree, so neither is called nearer"),
        (0.1, 0.1, 0.1, 0.01, None, "They differ, and which lies nearer cannot be told"),
        (0.1, 0.1, 0.1, 0.2, None, "is what it looks like, about 900 images of each would)"),
        (0.1, 0.1, 0.5, 0.06, None, "They cannot be told apart"),
        (None, -0.5, -0.5, 0.01, "narrow", "narrow is nearer"),
        (None, 0.1, 0.1, 0.2, None, "Raw, FD is lower for narrow"),
        (None, -0.5, 0.1, 0.01, None, "They differ, and which lies nearer cannot be told"),
    ],
)
def test_the_raw_distance_decides_nothing(corrected, kid, mind, p, nearer, said):
    rows = [("FD", -0.6, 0.1), ("FD corrected", corrected, 0.1), ("KID", kid, 0.1)]
    rows += [("MIND corrected", mind, 0.1)]
    found = verdict(*(row for row in rows if row[1] is not None), p=p)
    assert found.nearer == nearer
    assert said in found.sentence()
    named = f"{nearer} is nearer" if nearer else " is nearer"
    assert (named in found.sentence()) == (nearer is not None)
    assert ("Raw" in found.sentence()) == (nearer != "narrow")


def test_of_two_generators_that_are_equally_far_the_narrow_one_is_not_preferred():
    """Its bias is smaller: the raw distance is lower for it nearly always."""
    real_sd, narrow, raw = np.arange(1, 65) ** -0.6 * 5, 0, 0
    for i in range(12):
        rng = np.random.default_rng(i)
        real, *pair = (
            rng.standard_normal((n, 64)) * real_sd * scale
            for n, scale in ((2000, 1.0), (300, 0.8), (300, 1.2))
        )
        rows = differences_of("FD", tuple(pair), real, False, {})
        found = Comparison({"a": "narrow", "b": "wide", "paired": False}, rows, {})
        narrow += found.nearer is not None
        raw += rows[0].value < 0
    assert narrow <= 1
    assert raw >= 10


def test_how_many_images_would_tell():
    """What they look like is halfway to clear: four times as many images, while the reference's own
    noise, which more of them leave as it is, is small; and never where it is large."""
    minus = Estimate(1.0, 1.0, "")
    assert _needed(Told(minus, 0.3, 1.0, ()), 500) == 2000
    assert _needed(Told(minus, 0.3, 0.9, ()), 500) == math.ceil(500 * 0.9 / 0.15)
    assert _needed(Told(minus, 0.3, 0.7, ()), 500) is None
    assert (
        "no number of images would against 5,000 real ones"
        in verdict(
            ("FD", 0.1, 1.0), ("KID", 0.1, 1.0), ("MIND corrected", 0.1, 1.0), p=0.9, needed=None
        ).sentence()
    )


@pytest.mark.parametrize("law", ["normal", "t5", "mixture"])
def test_images_of_one_law_are_called_different_one_time_in_twenty(law, monkeypatch):
    """400 repetitions, 12 features, off the real law; the paired ones share half of their noise."""
    monkeypatch.setattr(mind, "DIRECTIONS", 40)
    rng = np.random.default_rng(0)

    def drawn(n):
        noise = rng.standard_t(5, (n, 12)) if law == "t5" else rng.standard_normal((n, 12))
        return noise + (3 * rng.integers(0, 2, (n, 1)) if law == "mixture" else 0)

    found = {True: 0, False: 0}
    for _ in range(400):
        real, shared = drawn(300), drawn(100)
        pair = [shared + drawn(100) for _ in range(2)]
        found[True] += mind.mind_difference(*pair, real, True).p < LEVEL
        pair = [1.2 * drawn(100) + 0.2 for _ in range(2)]
        found[False] += mind.mind_difference(*pair, real, False).p < LEVEL
    for count in found.values():  # 20 expected: the bounds are three standard errors off
        assert 7 <= count <= 33


def test_other_seeds_are_not_called_the_same_and_equal_names_are_told_apart(pair, tmp_path):
    a, b = pair
    copy = shutil.copytree(b.folder, tmp_path / "elsewhere" / "a")
    found = compare(a, opened(copy, overrides=["sample.seed=1"]), n=(60,))
    assert not found.facts["paired"]
    assert "different seeds" in found.sentence()
    assert [found.facts["a"], found.facts["b"]] == [str(a.folder), str(copy)]
    assert comparison_path(a.folder, found).exists()


def test_other_images_cannot_be_compared(pair, tiny):
    other = tiny("c", "data.seed=1")
    with pytest.raises(ConfigError, match="know different images"):
        compare(pair[0], other)
    with pytest.raises(ConfigError, match="scored differently"):
        compare(pair[0], tiny("b", "train.seed=1", "evaluate.reference=50"))


def test_a_plain_difference_is_found_and_a_null_is_not():
    """The known truth: means 0.5 and 0.6 away from the reference in every one of 8 features."""
    rng = np.random.default_rng(0)
    noise, real = rng.normal(size=(2000, 8)), rng.normal(size=(2000, 8))
    near, far = noise + 0.5, noise + 0.6
    found = {d.metric: d for d in differences_of("FID", (near, far), real, True, {})}
    assert found["FID"].clear
    assert found["FID"].value == pytest.approx(8 * (0.25 - 0.36), abs=4 * found["FID"].se)
    assert found["FID corrected"].clear
    assert found["KID"].clear
    same = rng.normal(size=(2, 2000, 8)) + 0.5
    for each in differences_of("FID", tuple(same), real, False, {}):
        assert abs(each.value) < 3 * each.se
