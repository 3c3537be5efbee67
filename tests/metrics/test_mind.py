"""MIND: the definition, Gaussians whose distance is known, an error that is one, and no bias."""

from __future__ import annotations

import numpy as np
import pytest

from dreamlib.metrics import mind as module
from dreamlib.metrics.mind import DIRECTIONS, _directions, mind, mind_difference, mind_null, minds
from tests.metrics.test_frechet import wrong_features


def drawn(n, key, d=12, scale=1.0, shift=0.0):
    return shift + scale * np.random.default_rng(key).standard_normal((n, d))


def by_definition(gen, real, seed=0):
    """The paper's sum, at equal sizes: sort along each direction, pair, square."""
    d = gen.shape[1]
    directions = np.concatenate(list(_directions(d, DIRECTIONS, seed)))
    moved = np.sort(directions @ gen.T, axis=1) - np.sort(directions @ real.T, axis=1)
    return 3 * d * np.square(moved).mean()


def independent(gen, real, seed):
    """As torch-fidelity's main branch has it, written from its formula: torch, float32, its own
    directions."""
    torch = pytest.importorskip("torch")
    maker = torch.Generator().manual_seed(seed)
    x, y = (torch.from_numpy(each).float() for each in (gen, real))
    along = torch.nn.functional.normalize(torch.randn(4000, x.shape[1], generator=maker), dim=1)
    x, y = ((each @ along.T).sort(dim=0).values for each in (x, y))
    return float(3 * along.shape[1] * (x - y).square().mean())


def test_the_definition():
    gen, real = drawn(301, 1, scale=1.2), drawn(301, 2)
    assert mind(gen, real).value == pytest.approx(by_definition(gen, real), rel=1e-12)
    assert mind(real, gen).value == pytest.approx(by_definition(gen, real), rel=1e-12)
    # Other directions: 4,000 of them are known to about 2 %.
    assert mind(gen, real).value == pytest.approx(independent(gen, real, 5), rel=0.06)


def test_unequal_sizes_are_sets_of_copies():
    """Three real images to a generated one is the same as that one three times; and so for sizes
    without a common divisor, by their least common multiple."""
    gen, real = drawn(40, 1, scale=1.3), drawn(120, 2)
    assert mind(gen, real).value == pytest.approx(by_definition(gen.repeat(3, 0), real), rel=1e-12)
    gen, real = drawn(6, 1), drawn(10, 2)
    want = by_definition(gen.repeat(5, 0), real.repeat(3, 0))
    assert mind(gen, real).value == pytest.approx(want, rel=1e-12)


def test_gaussians_of_known_distance():
    """Means apart: three times the squared distance; widths: 3 d times the square of that."""
    real = drawn(8000, 1)
    shifted, wide = drawn(8000, 2, shift=0.5), drawn(8000, 3, scale=1.5)
    for gen, want in ((shifted, 3 * 12 * 0.25), (wide, 3 * 12 * 0.25)):
        (found,) = minds([gen], real)
        assert found.corrected == pytest.approx(want, rel=0.06)


def test_it_is_of_the_spread_and_not_of_the_place():
    gen, real = drawn(100, 1, scale=1.2), drawn(150, 2)
    far = mind((gen + 1e4).astype(np.float64), real + 1e4)
    assert far.value == pytest.approx(mind(gen, real).value, rel=1e-8)
    assert mind(gen.astype(np.float32), real).value == pytest.approx(
        mind(gen, real).value, rel=1e-4
    )


def laws(name, rng):
    """Real and generated features [n,8] that differ by 15 % in width and a little in place."""

    def draw(n, scale=1.0, shift=0.0):
        noise = rng.standard_t(5, (n, 8)) if name == "t5" else rng.standard_normal((n, 8))
        centre = rng.integers(0, 3, (n, 1)) if name == "mixture" else 0
        return scale * (noise + centre) + shift

    return draw, lambda n: draw(n, 1.15, 0.15)


@pytest.mark.parametrize("name", ["normal", "t5", "mixture"])
def test_the_error_is_the_spread_and_the_bias_is_gone(name, monkeypatch):
    """200 repetitions: the standard error is 0.85 to 1.2 of the truth, of heavy tails up to 1.3."""
    monkeypatch.setattr(module, "DIRECTIONS", 60)
    real, gen = laws(name, np.random.default_rng(1))
    (truth,) = minds([gen(60_000)], real(60_000))
    found = [minds([gen(400)], real(1500))[0] for _ in range(200)]
    values = np.array([each.corrected for each in found])
    errors = np.array([each.estimate(corrected=True).se for each in found])
    z = (values - truth.corrected) / errors  # of t5 both are spread by rare images, together
    assert 0.85 < 1 / z.std(ddof=1) < (1.3 if name == "t5" else 1.2)
    bias, raw = values.mean() - truth.corrected, np.mean([x.value for x in found]) - truth.corrected
    assert raw > 0
    assert abs(bias) < 0.35 * raw + 2 * values.std() / 200**0.5


def test_the_null_is_what_equal_laws_score():
    found = [mind(drawn(150, (i, 0)), drawn(900, (i, 1))).value for i in range(25)]
    null = mind_null(drawn(900, 9), 150)
    assert null == pytest.approx(np.mean(found), rel=0.12)
    assert mind_null(drawn(900, 9), 900) == pytest.approx(
        null * (2 / 900) / (1 / 150 + 1 / 900), rel=0.3
    )


def test_sets_that_are_scored_together_score_as_alone():
    real, gens = drawn(90, 0), [drawn(50, 1, scale=1.1), drawn(77, 2)]
    for gen, found in zip(gens, minds(gens, real)):
        (alone,) = minds([gen], real)
        assert (found.value, found.corrected) == (alone.value, alone.corrected)
        assert np.array_equal(found.gen, alone.gen)


def test_a_pull_is_what_more_of_that_image_would_add():
    """Against sets in which one image counts a fortieth more than the others."""
    gen, real = drawn(100, 1, scale=1.3), drawn(100, 2)
    (found,) = minds([gen], real)
    copies, slopes = gen.repeat(40, 0), []
    for i in range(6):
        more = mind(np.concatenate([copies, gen[i : i + 1]]), real).value
        slopes.append((more - found.value) * (len(copies) + 1))
    want = found.gen[:6] - found.gen.mean()
    assert np.corrcoef(slopes, want)[0, 1] > 0.98
    assert np.std(slopes) == pytest.approx(np.std(want), rel=0.15)


def test_a_difference_cancels_what_both_share():
    real, noise = drawn(300, 0), drawn(200, 1)
    told = mind_difference(1.3 * noise, 1.1 * noise, real, True)
    a, b = minds([1.3 * noise, 1.1 * noise], real)
    assert told.minus.value == pytest.approx(a.corrected - b.corrected, rel=1e-12)
    assert told.p < 1e-6
    loose = mind_difference(1.3 * noise, 1.1 * noise, real, False)
    assert told.minus.se < loose.minus.se
    same = mind_difference(noise, noise, real, True)
    assert (same.minus.value, same.minus.se, same.p) == (0, 0, pytest.approx(1))
    with pytest.raises(ValueError, match="paired sets need equal sizes, got 200 and 199"):
        mind_difference(noise, noise[1:], real, True)


def test_wrong_input_is_refused():
    good, wrongs = wrong_features()
    for wrong, message in wrongs:
        for pair in ((wrong, good), (good, wrong)):
            with pytest.raises(ValueError, match=message.replace("at least 2", "at least 4")):
                mind(*pair)
