"""What a batch of notebooks will do, from words or YAML, checked before anything runs."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from dreamlib.config.load import explain, load_config, read_yaml
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


Listed = Annotated[tuple[str, ...], BeforeValidator(listed)]


def seconds(text: Any) -> float:
    """'3h', '90 min', '45s' -> seconds."""
    match = TIME.match(text) if isinstance(text, str) else None
    if not match or float(match[1]) == 0:
        raise ValueError("a time with its unit: 45s, 90min or 3h")
    return float(match[1]) * UNITS[match[2]]


# --------------------------------------------------------------------------- YAML


class Choice(BaseModel):
    """What one may say of a run, and of all of them under `defaults`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    notebooks: Listed = ()  # none: all of the project's, in order
    preset: Name | None = None
    set: Listed = ()
    hours: Float | None = Field(None, gt=0, le=10**5)
    run: Name | None = None
    parameters: dict[str, Any] = {}

    def values(self) -> dict[str, Any]:
        """By the names that notebooks have for them."""
        named = {"PRESET": self.preset, "HOURS": self.hours, "OVERRIDES": list(self.set) or None}
        named["RUN"] = str(Path(self.run).absolute()) if self.run is not None else None
        given = {name: value for name, value in named.items() if value is not None}
        twice = sorted(given.keys() & self.parameters.keys())
        if twice:
            raise ConfigError(f"{', '.join(twice)} is given as a parameter and by its option")
        return {**given, **self.parameters}


class Spec(Choice):
    name: Name

    @field_validator("name")
    @classmethod
    def _folder(cls, name: str) -> str:
        if not SAFE.match(name) or name in TAKEN:
            raise ValueError("a plain folder name: letters, digits, '-', '_' and '.'")
        return name


class BatchFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    jobs: Int = Field(1, ge=1)
    timeout: Annotated[float, BeforeValidator(seconds)] | None = None
    defaults: Choice = Choice()
    runs: tuple[Spec, ...] = Field(min_length=1)


MODELS: dict[str, type[BaseModel]] = {"": BatchFile, "defaults": Choice, "runs": Spec}


def read_batch(path: Path) -> BatchFile:
    """A batch's YAML file; ConfigError has one line for each thing that is wrong with it."""
    values = read_yaml(path, "batch")
    try:
        found = BatchFile.model_validate(values)
    except ValidationError as error:
        lines = [explain(str(path), item, _known, "key") for item in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    names = [spec.name.casefold() for spec in found.runs]
    twice = sorted({spec.name for spec in found.runs if names.count(spec.name.casefold()) > 1})
    if twice:
        raise ConfigError(f"{path}: every run needs its own name, but {', '.join(twice)} recur")
    return found


def _known(path: list[str]) -> list[str]:
    return list(MODELS[path[0] if path else ""].model_fields)


# --------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class Planned:
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


def plan_batch(asked: BatchFile, out: Path, jobs: int) -> list[Planned]:
    """The runs of a file, each with its results in OUT/NAME and, unless it says where, its run
    folder in OUT/NAME/BATCH-NAME, where BATCH is OUT's own name: a mirror knows runs by the names
    of their folders alone.  Raises ConfigError before anything is written."""
    batch, items = out.absolute().name, []
    for spec in asked.runs:
        folder = out / spec.name
        home = (folder / f"{batch}-{spec.name}").absolute()
        items += plan_run(spec, folder, asked.defaults, home)
    check_names(asked.defaults.values(), [item.notebook for item in items])
    if jobs > 1:
        _check_apart(items)
    return items


def plan_run(
    spec: Spec, folder: Path, defaults: Choice | None = None, home: Path | None = None
) -> list[Planned]:
    """Fill one run in, and check all of it: notebooks, parameters, presets and settings.

    `defaults` hold for the notebooks that have them; what `spec` itself names, one of them must
    have.  Without `home`, the run's own folder, notebooks keep the folders of their own defaults.
    Raises ConfigError.
    """
    defaults = defaults or Choice()
    paths = [find_notebook(name) for name in spec.notebooks or defaults.notebooks or numbered()]
    if not paths:
        raise ConfigError("there are no notebooks in this install: name some by their paths")
    stems = [path.stem for path in paths]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ConfigError(f"{spec.name} names {', '.join(twice)} more than once")
    own = spec.values()
    check_names(own, paths)
    merged = {**defaults.values(), **own}
    if spec.set:
        merged["OVERRIDES"] = [*listed(defaults.values().get("OVERRIDES")), *spec.set]
    return [
        Planned(spec.name, folder, path, _chosen(path, {**_places(path, home), **merged}))
        for path in paths
    ]


def _places(path: Path, home: Path | None) -> dict[str, Any]:
    """RUN is `home`; other folders lie beside it, named after their own defaults."""
    if home is None:
        return {}
    found, has = {"RUN": str(home)}, parameters_of(path)
    for name in ("OUT", SHOWN):
        last = Path(has[name]).name if isinstance(has.get(name), str) else ""
        if last:
            found[name] = str(home.with_name(f"{home.name}-{last}"))
    return found


def _check_apart(items: list[Planned]) -> None:
    """Refuse runs that would work in one folder at once, or show what another one is making there;
    an ablation that nobody works on may be shown by all."""
    owners: dict[str, str] = {}
    named = ((name, item) for name in FOLDERS for item in items if item.parameters.get(name))
    for name, item in named:
        folder = os.path.abspath(str(item.parameters[name]))
        if name != SHOWN:
            owners.setdefault(folder, item.run)
        owner = owners.get(folder, item.run)
        if owner != item.run:
            how = "`run`" if name == "RUN" else f"parameter {name}"
            raise ConfigError(
                f"{owner} and {item.run} would work in {folder} at once: give each its own {how}, "
                "or use one job"
            )


def _chosen(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that this notebook has a parameter for, checked."""
    has = parameters_of(path)
    chosen = {name: value for name, value in values.items() if name in has}
    check_parameters(path, chosen)
    try:
        json.dumps(chosen, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a parameter of {path.name} is no plain value: {error}") from error
    _check_settings(has, chosen)
    return chosen


def _check_settings(has: dict[str, Any], chosen: dict[str, Any]) -> None:
    """Load the config that the notebook would: a wrong setting is said before it begins."""
    if not chosen.keys() & {"PRESET", "OVERRIDES"}:
        return
    full = {**has, **chosen}
    preset, overrides = full.get("PRESET"), full.get("OVERRIDES") or []
    saved = Path(str(full.get("RUN"))) / "config.yaml"
    if preset is not None:
        load_config(preset, overrides)
    elif saved.is_file():
        load_config(saved, overrides)
