"""Settings: one page, validated, with presets in YAML and overrides `--set train.batch=64`.

Pillars never see these classes; `build.py` hands them plain values.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from dreamlib.errors import ConfigError
from dreamlib.files import write_text

PRESETS = Path(__file__).parent / "presets"
SPAN = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*(%|epochs?|steps?)\s*$")


def _span(value: Any) -> Any:
    """A stretch of training: `2000` (optimizer steps), `"3 epochs"` or `"10 %"` of the run."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if whole or (isinstance(value, str) and SPAN.match(value)):
        return value
    raise ValueError('steps (2000), epochs ("3 epochs") or a share of the run ("10 %")')


Span = Annotated[int | str, BeforeValidator(_span)]
Int = Annotated[int, Field(strict=True)]
Float = Annotated[float, Field(strict=True)]
Bool = Annotated[bool, Field(strict=True)]


def span_steps(span: Span, *, epoch: float, total: int | None = None) -> int:
    """Optimizer steps in a span; `epoch` is the steps of one epoch, `total` those of the run."""
    if isinstance(span, int):
        return span
    number, unit = SPAN.match(span).groups()  # type: ignore[union-attr]
    if unit.startswith("step"):
        return round(float(number))
    if unit.startswith("epoch"):
        return round(float(number) * epoch)
    if total is None:
        raise ConfigError('train.length cannot be a share of itself: give steps or "N epochs"')
    return round(float(number) / 100 * total)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    name: Literal["faces", "digits", "fashion", "mnist", "folder"]
    path: str | None = None  # the images' folder; None = generated, installed or downloaded
    size: Int = Field(ge=8, le=1024)  # pixels per side
    flip: Bool = False  # mirror half of the training images
    train: Int | None = Field(None, ge=1)  # images to draw (faces only)
    reference: Int | None = Field(None, ge=1)
    floor: Int | None = Field(None, ge=1)
    seed: Int = Field(0, ge=0)  # of the faces


class Net(Section):
    widths: tuple[Int, ...]
    blocks: Int = Field(2, ge=1)
    attention: tuple[Int, ...] = ()  # resolutions; the middle block always attends
    heads: Int = Field(4, ge=1)
    dropout: Float = Field(0.0, ge=0, lt=1)
    patch: Literal[1, 2, 4] = 1  # fold patches into channels first: less work per image


class Diffusion(Section):
    steps: Int = Field(1000, ge=2)
    schedule: Literal["linear", "cosine"] = "cosine"
    beta_start: Float = Field(1e-4, gt=0, lt=1)  # linear only
    beta_end: Float = Field(0.02, gt=0, lt=1)  # linear only
    prediction: Literal["eps", "v"] = "eps"  # what the network's output means


class Loss(Section):
    name: Literal["standard", "conservative", "paper", "perturb"] = "conservative"
    lam_max: Float = Field(0.5, ge=0, le=1)  # conservative
    start: Span = "10 %"  # conservative: lambda is 0 before
    ramp: Span = "20 %"  # conservative: lambda's factor is min(step / ramp, 1)
    weight: Float = Field(0.3, ge=0, le=1)  # conservative: share of the adapted branch
    estimator: Literal["both", "sampled"] = "sampled"  # conservative
    p: Float = Field(1.0, ge=0)  # paper
    gamma: Float = Field(0.1, ge=0)  # perturb


class Train(Section):
    length: Span = "100 epochs"
    batch: Int = Field(128, ge=1)  # images per optimizer step, on any machine
    micro: Int | None = Field(None, ge=1)  # images per forward pass; None = chosen, halved if OOM
    optimizer: Literal["adam", "adamw"] = "adamw"
    lr: Float = Field(2e-4, gt=0)
    lr_schedule: Literal["constant", "cosine"] = "constant"
    warmup: Span = 0  # the rate rises linearly at first
    weight_decay: Float = Field(0.01, ge=0)  # adamw only
    clip: Float = Field(1.0, gt=0)  # largest gradient norm
    ema: Float = Field(0.9999, ge=0, lt=1)
    seed: Int = Field(0, ge=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    deterministic: Bool = False  # CUDA: slower kernels that repeat bit for bit
    hours: Float | None = Field(None, gt=0)  # time budget of one session
    save_minutes: Float = Field(10.0, gt=0)
    log_every: Int = Field(50, ge=1)  # steps
    preview_every: Span = 0  # sample grids, beside those at 5, 25, 50, 75 and 100 %
    tensorboard: Bool = False


class Sample(Section):
    sampler: Literal["ddpm", "ddim"] = "ddim"
    steps: Int = Field(50, ge=1)
    eta: Float = Field(0.0, ge=0, le=1)  # ddim
    temperature: Float = Field(1.0, ge=0)  # ddpm
    batch: Int = Field(64, ge=1)  # the network's one fixed batch size
    seed: Int = Field(0, ge=0)
    shard: Int = Field(250, ge=1)  # images per file


class Evaluate(Section):
    extractor: Literal["classifier", "inception"] = "inception"
    n: tuple[Annotated[Int, Field(ge=2)], ...] = (500, 5000)
    reference: Int = Field(5000, ge=2)  # held-out real images, the same for every column
    weights: str | None = None  # the Inception file, or a folder that holds it
    anchors: Bool = False  # score the untrained network and Gaussian images as well


class Config(Section):
    preset: str
    data: Data
    net: Net
    diffusion: Diffusion = Diffusion()
    loss: Loss = Loss()
    train: Train = Train()
    sample: Sample = Sample()
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if not self.net.widths or not self.evaluate.n:
            raise ValueError("net.widths and evaluate.n need at least one number each")
        if self.loss.name == "perturb" and self.diffusion.prediction == "v":
            # Its target is not the noise in its input; v would divide the difference by a.
            raise ValueError("loss.name perturb needs diffusion.prediction eps")
        counts = self.data.train, self.data.reference, self.data.floor
        if self.data.name != "faces" and any(counts):
            raise ValueError("data.train, data.reference and data.floor are for faces only")
        if self.sample.steps > self.diffusion.steps:
            raise ValueError(
                f"sample.steps is {self.sample.steps}, but diffusion.steps only "
                f"{self.diffusion.steps}: a sampler takes at most that many"
            )
        return self


# Fields that leave a run the same run: where and how fast it goes, and what is asked of it later.
MAY_CHANGE = {
    "train": {
        "hours",
        "device",
        "micro",
        "save_minutes",
        "log_every",
        "preview_every",
        "tensorboard",
    },
    "data": {"path"},  # the packed images' fingerprint decides, not where they lay
    "sample": None,
    "evaluate": None,
}


def identity(config: Config, *, exclude_defaults: bool = False) -> dict[str, Any]:
    """The part of a config that a run may not change."""
    values = config.model_dump(mode="json", exclude_defaults=exclude_defaults)
    for section, fields in MAY_CHANGE.items():
        kept = values.pop(section, {})
        if fields is not None:
            values[section] = {k: v for k, v in kept.items() if k not in fields}
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


# --------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats: 2e-4 is a number (YAML 1.1 wants 2.0e-4)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_value(text: str, source: str) -> Any:
    """A YAML value; ConfigError names `source` when it is not one."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise ConfigError(f"{source} is not valid YAML: {where}") from error


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_config(preset: str | Path, overrides: Iterable[str] = ()) -> Config:
    """A preset's name or a YAML file, then overrides of the form `section.field=value`.

    Raises ConfigError naming file, field, value and what is allowed.
    """
    source, text = _read(preset)
    values = parse_value(text, source)
    if not isinstance(values, dict):
        raise ConfigError(f"{source} must hold sections such as data, net and train")
    values.setdefault("preset", Path(str(preset)).stem)
    for override in overrides:
        _override(values, override)
    return make_config(values, source)


def _read(preset: str | Path) -> tuple[str, str]:
    if str(preset).endswith((".yaml", ".yml")):
        path = Path(preset)
        if not path.is_file():
            raise ConfigError(f"there is no config file {path}: check the path")
        return str(path), path.read_text(encoding="utf-8")
    if preset not in preset_names():
        near = difflib.get_close_matches(str(preset), preset_names(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"there is no preset {preset!r}: {hint}choose one of {', '.join(preset_names())}, "
            "or give a path that ends in .yaml"
        )
    return f"{preset}.yaml", (PRESETS / f"{preset}.yaml").read_text(encoding="utf-8")


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
        lines = [_explain(source, item) for item in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _explain(source: str, error: Any) -> str:
    """One sentence for one pydantic error: file, field, value, what is allowed."""
    path = [str(part) for part in error["loc"] if isinstance(part, str)]
    field, kind = ".".join(path), error["type"]
    if kind == "extra_forbidden":
        known = _known(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{source}: unknown setting {field}: {hint}known here: {', '.join(known)}"
    if kind == "missing":
        return f"{source}: {field} is missing: add it"
    allowed = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if not field:
        return f"{source}: {allowed}"
    return f"{source}: {field} is {error['input']!r}, but should be {allowed}"


def _known(path: list[str]) -> list[str]:
    model: Any = Config
    for part in path:
        model = model.model_fields[part].annotation
    return list(model.model_fields)


def dump_config(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def save_config(config: Config, path: Path) -> None:
    write_text(path, dump_config(config))
