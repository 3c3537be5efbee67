"""What a batch of notebooks will do, from words or YAML, checked before anything runs."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dreamlib.config.load import explain, read_yaml
from dreamlib.config.schema import Float, Int, Name
from dreamlib.notebook.runner.notebooks import (
    check_names,
    check_parameters,
    find_notebook,
    numbered,
    parameters_of,
)
from dreamlib.utils.arguments import listed
from dreamlib.utils.errors import ConfigError

TIME = re.compile(r"^\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(s|min|m|h)\s*$")
UNITS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
SAFE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
TAKEN = ("index.html", "status.json", "data")
SHOWN = "ABLATION"  # the parameter that names a folder whose results are shown
FOLDERS = ("RUN", "OUT", SHOWN)  # others name one to work in


def seconds(text: Any) -> float:
    """'3h', '90 min', '45s' -> seconds."""
    match = TIME.match(text) if isinstance(text, str) else None
    if not match or float(match[1]) == 0:
        raise ValueError("a time with its unit: 45s, 90min or 3h")
    return float(match[1]) * UNITS[match[2]]


def _folder_name(name: str) -> str:
    if not SAFE.match(name) or name in TAKEN:
        raise ValueError("a plain folder name: letters, digits, '-', '_' and '.'")
    return name


Listed = Annotated[tuple[str, ...], BeforeValidator(listed)]


class Choice(BaseModel):
    """What one may say of a run, and of all of them under `defaults`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    notebooks: Listed = ()  # none: all of the project's, in order
    preset: Name | None = None
    set: Listed = ()
    hours: Float | None = Field(default=None, gt=0, le=10**5)
    run: Name | None = None
    parameters: dict[str, Any] = {}

    def values(self) -> dict[str, Any]:
        """By the names that notebooks have for them."""
        named = {"PRESET": self.preset, "HOURS": self.hours, "OVERRIDES": list(self.set) or None}
        named["RUN"] = str(Path(self.run).absolute()) if self.run is not None else None
        given = {name: value for name, value in named.items() if value is not None}
        if twice := sorted(given.keys() & self.parameters.keys()):
            raise ConfigError(f"{', '.join(twice)} is given as a parameter and by its option")
        return {**given, **self.parameters}


class Spec(Choice):
    name: Annotated[Name, AfterValidator(_folder_name)]


class BatchFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    jobs: Int = Field(default=1, ge=1)
    timeout: Annotated[float, BeforeValidator(seconds)] | None = None
    defaults: Choice = Choice()
    runs: tuple[Spec, ...] = Field(min_length=1)


MODELS: dict[str, type[BaseModel]] = {"defaults": Choice, "runs": Spec}


def read_batch(path: Path) -> BatchFile:
    """A batch's YAML file; ConfigError has one line for each thing that is wrong with it."""
    values = read_yaml(path, "batch")

    def known(place: list[str]) -> list[str]:
        return list((MODELS[place[0]] if place else BatchFile).model_fields)

    try:
        batch = BatchFile.model_validate(values)
    except ValidationError as error:
        lines = [explain(str(path), item, known, "key") for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    folders = Counter(spec.name.casefold() for spec in batch.runs)
    if twice := sorted({spec.name for spec in batch.runs if folders[spec.name.casefold()] > 1}):
        raise ConfigError(f"{path}: every run needs its own name, but {', '.join(twice)} recur")
    return batch


@dataclass(frozen=True)
class Job:
    """One notebook of a run, the parameters that it will get, and where its results go.

    Those of a run work on one run folder, in order, and their results go to one `folder`.
    """

    run: str
    folder: Path
    notebook: Path
    parameters: dict[str, Any]

    @property
    def stem(self) -> str:
        return self.notebook.stem

    @property
    def name(self) -> str:
        return f"{self.run}/{self.stem}"

    def result(self, kind: str) -> Path:
        """Its .ipynb, .html, .json or .log."""
        return self.folder / f"{self.stem}{kind}"


def plan_batch(batch: BatchFile, out: Path, jobs: int) -> list[Job]:
    """The runs of a file, each with its results in OUT/NAME and, unless it says where, its run
    folder in OUT/NAME/BATCH-NAME, where BATCH is OUT's own name: a mirror knows runs by the names
    of their folders alone.  Raises ConfigError before anything is written."""
    planned = []
    for spec in batch.runs:
        folder = out / spec.name
        home = folder.absolute() / f"{out.absolute().name}-{spec.name}"
        planned += plan_run(spec, folder, batch.defaults, home)
    check_names(batch.defaults.values(), [job.notebook for job in planned])
    if jobs > 1:
        _check_apart(planned)
    return planned


def plan_run(
    spec: Spec, folder: Path, defaults: Choice | None = None, home: Path | None = None
) -> list[Job]:
    """Fill one run in, and check all of it: notebooks, parameters, presets and settings.

    `defaults` hold for the notebooks that have them; what `spec` itself names, one of them must
    have.  Without `home`, the run's own folder, notebooks keep the folders of their own defaults.
    Raises ConfigError.
    """
    defaults = defaults or Choice()
    paths = [find_notebook(name) for name in spec.notebooks or defaults.notebooks or numbered()]
    if not paths:
        raise ConfigError("there are no notebooks in this install: name some by their paths")
    if twice := sorted(stem for stem, n in Counter(path.stem for path in paths).items() if n > 1):
        raise ConfigError(f"{spec.name} names {', '.join(twice)} more than once")
    common, own = defaults.values(), spec.values()
    check_names(own, paths)
    if spec.set:
        own["OVERRIDES"] = [*listed(common.get("OVERRIDES")), *spec.set]
    jobs = []
    for path in paths:
        known = parameters_of(path)
        values = {**_places(known, home), **common, **own}
        parameters = {name: value for name, value in values.items() if name in known}
        check_parameters(path, parameters)
        jobs.append(Job(spec.name, folder, path, parameters))
    return jobs


def _places(known: dict[str, Any], home: Path | None) -> dict[str, str]:
    """RUN is `home`; other folders lie beside it, named after a notebook's own defaults."""
    if home is None:
        return {}
    texts = {name: known[name] for name in ("OUT", SHOWN) if isinstance(known.get(name), str)}
    beside = {name: f"{home}-{Path(text).name}" for name, text in texts.items() if Path(text).name}
    return {"RUN": str(home), **beside}


def _check_apart(jobs: Iterable[Job]) -> None:
    """Refuse runs that would work in one folder at once, or show what another one is making there;
    an ablation that nobody works on may be shown by all."""
    owners: dict[str, str] = {}
    named = [(name, job) for name in FOLDERS for job in jobs if job.parameters.get(name)]
    for name, job in named:
        folder = os.path.abspath(str(job.parameters[name]))
        owner = owners.get(folder, job.run)
        if name != SHOWN:
            owners[folder] = owner
        if owner != job.run:
            how = "`run`" if name == "RUN" else f"parameter {name}"
            raise ConfigError(
                f"{owner} and {job.run} would work in {folder} at once: give each its own {how}, "
                "or use one job"
            )
