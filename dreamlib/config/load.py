"""Settings from YAML: presets, validation, overrides `--set train.batch=64`.

Pillars never see these classes; `factory.py` hands them plain values.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import ValidationError
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from dreamlib.config.schema import Config, Data, Net
from dreamlib.utils.arguments import listed
from dreamlib.utils.errors import ConfigError
from dreamlib.utils.files import write_text

PRESETS = Path(__file__).parent / "presets"
LONGEST = 200_000  # letters of a file of settings

# Fields that leave a run the same run: where and how fast it goes, and what is asked of it later.
MAY_CHANGE = {
    "train": {
        *("hours", "device", "micro", "reserve_minutes", "save_minutes", "mirror_minutes"),
        *("log_every", "preview_every", "tensorboard", "wandb", "recompute"),
    },
    "data": {"path"},  # the packed images' fingerprint decides, not where they lay
    "gan": {"truncation"},
    **dict.fromkeys(("sample", "evaluate", "validation")),
}


def identity(config: Config, *, exclude_defaults: bool = False) -> dict[str, Any]:
    """The part of a config that a run may not change."""
    values = config.model_dump(mode="json", exclude_defaults=exclude_defaults)
    for section, free in MAY_CHANGE.items():
        fields = values.pop(section, {})
        if free is not None:
            values[section] = {name: v for name, v in fields.items() if name not in free}
    return values


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """'train.lr: 0.001 -> 0.002' for every field in which two identities differ."""
    a, b = _flat(ours), _flat(theirs)
    return [f"{k}: {a.get(k)} -> {b.get(k)}" for k in sorted(a | b) if a.get(k) != b.get(k)]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


# Settings that decide something only while another one has one of these values.
ONLY = (
    ("loss.name", ("conservative",), "loss.lam_max loss.start loss.ramp"),
    ("loss.name", ("conservative",), "loss.weight loss.estimator"),
    ("loss.name", ("paper",), "loss.p"),
    ("loss.name", ("perturb",), "loss.gamma"),
    ("loss.name", ("mixflow", "reflex"), "loss.reach"),
    ("diffusion.schedule", ("linear",), "diffusion.beta_start diffusion.beta_end"),
    ("sample.sampler", ("ddim", "dpmpp_2m"), "sample.eta"),
    ("sample.spacing", ("karras",), "sample.sigma_min"),
    ("sample.sampler", ("ddpm",), "sample.temperature sample.variance"),
    ("train.optimizer", ("adamw", "muon"), "train.weight_decay"),
    ("net.conditional", (True,), "train.label_dropout"),
    ("model", ("diffusion",), "train.optimizer train.clip train.ema train.channels_last"),
    ("model", ("diffusion",), "train.times train.recompute"),
    ("model", ("diffusion",), "sample.spacing sample.clamp"),  # a GAN has no steps
)


def idle(config: Config) -> dict[str, str]:
    """Settings that are not at their defaults and decide nothing -> what they would need."""
    plain = Config(preset="", data=Data(name="faces", size=8), net=Net(widths=(1,)))
    ours, usual = (_flat(each.model_dump()) for each in (config, plain))
    return {
        name: f"{which} {' or '.join(map(str, values))}"
        for which, values, names in ONLY
        for name in names.split()
        if ours[which] not in values and ours.get(name) != usual.get(name)  # some hide a default
    }


# --------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values, each key once, and nothing that grows: 2e-4 is a number, and no,
    010, 1:30 and 2026-01-01 are texts."""

    # pyright takes PyYAML's class attribute for one of its instances
    yaml_implicit_resolvers: ClassVar[dict[str | None, list[Any]]] = {}  # pyright: ignore

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, "aliases (*) are not taken: write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=True)
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [repr(key) for key in mapping if keys.count(key) > 1]:
            raise ConstructorError(None, None, f"{twice[0]} is there twice", node.start_mark)
        return mapping


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for something other than a text."""


_FLOAT = re.compile(
    r"^([-+]?([0-9][0-9_]*\.[0-9]*|\.[0-9]+|[0-9]+(?=e))(e[-+]?[0-9]+)?|[-+]?\.inf|\.nan)$", re.I
)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, None)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, None)
for _kind, _texts in {
    "null": r"^(~|null|Null|NULL|)$",
    "bool": r"^(true|True|TRUE|false|False|FALSE)$",
    "int": r"^([-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+)$",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_texts), None)


def parse_value(text: str, source: str) -> Any:
    """A YAML value; ConfigError names `source` when it is not one."""
    if len(text) > LONGEST:
        raise ConfigError(f"{source} has {len(text):,} letters: settings take {LONGEST:,} at most")
    try:
        return deepcopy(_parse(text))
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # `!!int x` as well
        where = " ".join(str(error).split())
        raise ConfigError(f"{source} is not valid YAML: {where}") from error
    except RecursionError as error:
        raise ConfigError(f"{source} is not valid YAML: it is nested too deeply") from error


@lru_cache(64)  # an opening run reads its config several times
def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_config(preset: str | Path, overrides: Iterable[str] | str = ()) -> Config:
    """A preset's name or a YAML file, then overrides of the form `section.field=value`.

    Raises ConfigError naming file, field, value and what is allowed.
    """
    source, values = _read(preset)
    if not isinstance(values, dict):
        raise ConfigError(f"{source} must hold sections such as data, net and train")
    values.setdefault("preset", Path(str(preset)).stem)
    for override in listed(overrides):
        _override(values, override)
    return make_config(values, source)


def _read(preset: str | Path) -> tuple[str, Any]:
    if str(preset).endswith((".yaml", ".yml")):
        return str(Path(preset)), read_yaml(Path(preset), "config")
    names = preset_names()
    if preset not in names:
        raise ConfigError(
            f"there is no preset {preset!r}: {_hint(str(preset), names)}choose one of "
            f"{', '.join(names)}, or give a path that ends in .yaml"
        )
    return f"{preset}.yaml", read_yaml(PRESETS / f"{preset}.yaml", "preset")


def read_yaml(path: Path, kind: str) -> Any:
    """What a file holds; ConfigError when it is not there, no text or no YAML."""
    if not path.is_file():
        raise ConfigError(f"there is no {kind} file {path}: check the path")
    try:
        return parse_value(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text ({error}): restore it from a copy") from error


def _hint(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}? " if near else ""


def _override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    path = name.strip().split(".")
    if not equals or len(path) != 2 or not all(path):
        raise ConfigError(f"override {override!r} must read section.field=value: train.batch=64")
    section = values.setdefault(path[0], {})
    if not isinstance(section, dict):
        raise ConfigError(f"override {override!r}: {path[0]} is not a section")
    section[path[1]] = parse_value(text, f"--set {override}")


def make_config(values: dict[str, Any], source: str) -> Config:
    """Validate plain values; raises ConfigError with one line per wrong field."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [explain(source, item, _known) for item in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def explain(
    source: str, error: Any, known: Callable[[list[str]], list[str]], word: str = "setting"
) -> str:
    """One sentence for one pydantic error: file, place, value, what is allowed.

    `known` lists the names that there are at a place; items of lists are counted from 1.
    """
    path = [str(part + 1 if isinstance(part, int) else part) for part in error["loc"]]
    place, kind = ".".join(path), error["type"]
    if kind == "extra_forbidden":
        names = known(path[:-1])
        hint = _hint(path[-1], names)
        return f"{source}: unknown {word} {place}: {hint}known here: {', '.join(names)}"
    if kind == "missing":
        return f"{source}: {place} is missing: add it"
    allowed = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "value_error" and not place:
        return f"{source}: {allowed}"
    at, value = f"{place} is" if place else "it holds", repr(error["input"])
    value = value if len(value) <= 200 else f"{value[:200]} ..."
    return f"{source}: {at} {value}, but should be {allowed}"


def _known(path: list[str]) -> list[str]:
    model: Any = Config
    for part in path:
        model = model.model_fields[part].annotation
    return list(model.model_fields)


def dump_config(config: Config) -> str:
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


def save_config(config: Config, path: Path) -> None:
    write_text(path, dump_config(config))
