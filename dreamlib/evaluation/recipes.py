"""Two recipes, several training seeds each: what another seed would do is part of the error.

One checkpoint against another says which *weights* are nearer.  That one recipe is better than the
other is a statement about seeds not yet drawn: a training seed is one observation (random effects),
and there are few, so that Student's distribution is taken with their degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamlib.evaluation.compare import LEVEL, check_comparable
from dreamlib.evaluation.inputs import StudyInputs, sizes_of
from dreamlib.metrics.estimate import Tested, two_means
from dreamlib.metrics.mind import minds
from dreamlib.runs.run import Run
from dreamlib.utils.context import Stop, using
from dreamlib.utils.errors import ConfigError
from dreamlib.utils.files import write_json
from dreamlib.utils.progress import Progress

Features = Sequence[np.ndarray]  # [n,d] of every training seed


@dataclass(frozen=True)
class Recipes:
    """What recipes-NAME.json holds: corrected MIND of every seed of two recipes."""

    facts: dict[str, Any]
    a: list[float]
    b: list[float]
    minus: Tested  # mean of a minus mean of b, over seeds
    test: Tested  # of the same, by what all seeds' images add to MIND of all of them together

    @property
    def different(self) -> bool:
        """Whether seeds of one recipe would differ as much in at most 5 % of comparisons."""
        return self.test.p < LEVEL

    def sentence(self) -> str:
        """What may be said of the recipes, and of how many seeds."""
        names = self.facts["a"], self.facts["b"]
        low, high = (self.minus.value + side * self.minus.half_width for side in (-1, 1))
        seeds = " and ".join(
            f"{len(each)} of {name}" for each, name in zip((self.a, self.b), names)
        )
        verdict = "The recipes cannot be told apart by so few seeds."
        if self.different:
            nearer = names[0] if self.minus.value < 0 else names[1]
            verdict = f"{nearer} is the better recipe against this reference."
        return (
            f"{self.facts['metric']} at N = {self.facts['n']:,} over training seeds ({seeds}): "
            f"{names[0]} minus {names[1]} is {self.minus.value:.3g}, between {low:.3g} and "
            f"{high:.3g} with 95 % confidence (Student, {self.minus.df:.1f} degrees of freedom: "
            f"few seeds, wide intervals). Seeds of one recipe differ as much in "
            f"{100 * self.test.p:.2g} % of comparisons. {verdict}"
        )


def differ(a: Features, b: Features, reference: np.ndarray) -> tuple[list[float], Tested, Tested]:
    """Corrected MIND of every seed, a's first; the difference; and the test whether there is any.

    The test's numbers are free of the bias, and of which recipe a seed belongs to, as those of
    `mind_difference`: equal recipes are told apart in 5 % of cases at 5 %.
    """
    *each, together = minds([*a, *b, np.concatenate([*a, *b])], reference)
    values, k = [one.corrected for one in each], len(a)
    ends = np.cumsum([len(gen) for gen in (*a, *b)])[:-1]
    pulls = [pull.mean() for pull in np.split(together.gen, ends)]
    minus = two_means(np.array(values[:k]), np.array(values[k:]))
    return values, minus, two_means(np.array(pulls[:k]), np.array(pulls[k:]), alike=True)


def compare_recipes(
    a: Sequence[Run],
    b: Sequence[Run],
    n: int | None = None,
    *,
    names: tuple[str, str] = ("a", "b"),
    progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Recipes:
    """Recipe `a` minus recipe `b` at N images of each run, the largest of evaluate.n.

    Written to evaluation/recipes-NAME.json of a's first run.  ConfigError for fewer than two
    training seeds of either, for runs of a recipe that differ in more than train.seed, and as
    `compare` for runs that are not comparable.
    """
    for name, runs in zip(names, (a, b)):
        check_recipe(name, runs)
    for run in (*a[1:], *b):
        check_comparable(a[0], run)
    size = sizes_of(a[0], n)[-1]
    with using(progress=progress, should_stop=should_stop), ExitStack() as stack:
        keeps = [stack.enter_context(run.session()) for run in (*a, *b)]
        inputs = [StudyInputs(run, (size,)) for run in (*a, *b)]
        reference = inputs[0].features(inputs[0].reference)
        sets = [each.features(each.generated(range(size))) for each in inputs]
        values, minus, test = differ(sets[: len(a)], sets[len(a) :], reference)
        metric = f"{inputs[0].plan.named('MIND')} corrected"
        facts = dict(zip("ab", names)) | {"metric": metric, "n": size, "n_real": len(reference)}
        facts["weights"] = [run.weights()[1]["sha256"] for run in (*a, *b)]
        found = Recipes(facts, values[: len(a)], values[len(a) :], minus, test)
        write_json(recipes_path(a[0].folder, found), asdict(found))
        for keep in keeps:
            keep()
    return found


def recipes_path(run: Path, found: Recipes) -> Path:
    return run / "evaluation" / f"recipes-{Path(found.facts['b']).name}.json"


def check_recipe(name: str, runs: Sequence[Run]) -> None:
    """ConfigError unless these are trainings of one recipe by several seeds."""
    seeds = {run.config.train.seed for run in runs}
    if len(runs) < 2 or len(seeds) < len(runs):
        raise ConfigError(
            f"recipe {name} has {len(runs)} runs of {len(seeds)} training seeds: a recipe is "
            "judged by at least two, each with its own (--set train.seed=1)"
        )
    recipes = [run.config.model_dump(mode="json") for run in runs]
    for recipe in recipes:
        recipe["train"].pop("seed")
    for run, recipe in zip(runs, recipes):
        differing = [part for part, value in recipe.items() if value != recipes[0][part]]
        if differing:
            raise ConfigError(
                f"{run.folder} is of another recipe than {runs[0].folder}: they differ in "
                f"{', '.join(differing)}, not in train.seed alone"
            )
