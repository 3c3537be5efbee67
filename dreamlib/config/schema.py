"""What a config holds: every setting with its type, its range, and what it is for."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from dreamlib.utils.errors import ConfigError

SPAN = re.compile(r"^\s*([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*(%|epochs?|steps?)\s*$")


def _span(value: Any) -> Any:
    """A stretch of training: `2000` (optimizer steps), `"3 epochs"` or `"10 %"` of the run."""
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**12
    if whole or (isinstance(value, str) and SPAN.match(value)):
        return value
    raise ValueError('steps (2000), epochs ("3 epochs") or a share of the run ("10 %")')


def _bool(value: Any) -> Any:
    """YAML 1.1's words for it are taken where nothing else can be meant."""
    words = {"yes": True, "on": True, "no": False, "off": False}
    return words.get(value.lower(), value) if isinstance(value, str) else value


def _name(value: Any) -> Any:
    """A class, or a folder, may be called 1 or true."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else value


Span = Annotated[int | str, BeforeValidator(_span)]
Int = Annotated[int, Field(strict=True, lt=10**9)]  # not `le`, which fields have of their own
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Float = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Bool = Annotated[bool, Field(strict=True), BeforeValidator(_bool)]  # pydantic 2.7: in this order
Name = Annotated[str, BeforeValidator(_name)]
READY = re.compile(r"(classifier|inception|(dinov2|clip|torchvision:).+|.+\.(pt|ts|pt2|onnx))$")


def _extractor(value: str) -> str:
    if READY.match(value):
        return value
    raise ValueError(
        "classifier, inception, dinov2-vit-b-14, clip-vit-b-32 and their like, "
        "torchvision:resnet50 and its like, or a file: .pt, .ts, .pt2, .onnx"
    )


def span_steps(span: Span, *, epoch: float, total: int | None = None) -> int:
    """Optimizer steps in a span; `epoch` is the steps of one epoch, `total` those of the run."""
    if isinstance(span, int):
        return span
    number, unit = SPAN.match(span).groups()  # pyright: ignore  _span saw it
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
    name: Literal["faces", "digits", "fashion", "mnist", "cifar10", "celeba", "folder"]
    path: Name | None = None  # the images' folder; None = generated, installed or downloaded
    size: Int = Field(ge=8, le=1024)  # pixels per side
    flip: Bool = False  # mirror half of the training images
    shift: Int = Field(default=0, ge=0)  # move training images by up to so many pixels
    colour: Float = Field(default=0.0, ge=0, lt=1)  # change brightness and contrast by up to this
    fit: Literal["crop", "pad"] = "crop"  # folder: centre square, or all of it on black
    held_out: Float = Field(default=0.1, gt=0, le=0.4)  # folder: share of reference, and of floor
    first: Int | None = Field(default=None, ge=1)  # celeba: train on images up to this number only
    train: Int | None = Field(default=None, ge=1, le=10**7)  # images to draw (faces only)
    reference: Int | None = Field(default=None, ge=1, le=10**7)
    floor: Int | None = Field(default=None, ge=1, le=10**7)
    seed: Seed = 0  # of the faces


class Net(Section):
    widths: tuple[Int, ...]
    blocks: Int = Field(default=2, ge=1, le=64)
    attention: tuple[Int, ...] = ()  # resolutions; the middle block always attends
    heads: Int = Field(default=4, ge=1)
    dropout: Float = Field(default=0.0, ge=0, lt=1)
    patch: Literal[1, 2, 4] = 1  # fold patches into channels first: less work per image
    conditional: Bool = False  # tell the network the images' labels


class Diffusion(Section):
    steps: Int = Field(default=1000, ge=2, le=10**6)
    schedule: Literal["linear", "cosine", "flow"] = "cosine"  # flow: the straight way
    beta_start: Float = Field(default=1e-4, gt=0, lt=1)  # linear only
    beta_end: Float = Field(default=0.02, gt=0, lt=1)  # linear only
    prediction: Literal["eps", "v", "x0", "velocity"] = "eps"  # what the network's output means


class Loss(Section):
    name: Literal["standard", "conservative", "paper", "perturb", "mixflow", "reflex"] = (
        "conservative"
    )
    lam_max: Float = Field(default=0.5, ge=0, le=1)  # conservative
    start: Span = "10 %"  # conservative: lambda is 0 before
    ramp: Span = "20 %"  # conservative: lambda's factor is min(step / ramp, 1)
    weight: Float = Field(default=0.3, ge=0, le=1)  # conservative: share of the adapted branch
    estimator: Literal["both", "sampled"] = "sampled"  # conservative
    p: Float = Field(default=1.0, ge=0)  # paper
    gamma: Float = Field(default=0.1, ge=0)  # perturb
    reach: Float = Field(default=0.4, ge=0, le=1)  # mixflow, reflex: share of the noisier timesteps
    min_snr: Float | None = Field(default=None, gt=0)  # weight errors by min(SNR, this); 5 is usual


class Train(Section):
    length: Span = "100 epochs"
    batch: Int = Field(default=128, ge=1, le=10**6)  # images per optimizer step, on any machine
    micro: Int | None = Field(default=None, ge=1)  # images per pass; None = chosen, halved if OOM
    slices: Int = Field(default=1, ge=1, le=64)  # of a batch on a CPU, each by a thread of its own
    optimizer: Literal["adam", "adamw", "muon"] = "adamw"
    lr: Float = Field(default=2e-4, gt=0)
    lr_schedule: Literal["constant", "cosine"] = "constant"
    warmup: Span = 0  # the rate rises linearly at first
    weight_decay: Float = Field(default=0.01, ge=0)  # adamw, muon
    label_dropout: Float = Field(default=0.1, ge=0, le=1)  # conditional: share told nothing
    times: Literal["uniform", "logit_normal"] = "uniform"  # of an image's timestep
    clip: Float = Field(default=1.0, gt=0)  # largest gradient norm
    ema: Float = Field(default=0.9999, ge=0, lt=1)
    seed: Seed = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    channels_last: Bool = False  # CUDA: the layout that tensor cores prefer
    recompute: Bool = False  # gradient checkpointing: less memory, about a fifth more work
    deterministic: Bool = False  # CUDA: slower kernels that repeat bit for bit
    hours: Float | None = Field(default=None, gt=0, le=10**5)  # of a session; None = the platform's
    reserve_minutes: Float | None = Field(default=None, ge=0)  # of it, for sampling and scoring
    save_minutes: Float = Field(default=10.0, gt=0)
    # At most, between two copies to a mirror; None: as often as their cost allows
    mirror_minutes: Float | None = Field(default=None, gt=0)
    log_every: Int = Field(default=50, ge=1)  # steps
    preview_every: Span = 0  # sample grids, beside those at 5, 25, 50, 75 and 100 %
    tensorboard: Bool = False
    wandb: Bool = False  # Weights & Biases


class Gan(Section):
    """Of model gan.  net.widths are channels per resolution: the image's own first, 4x4 last."""

    z: Int = Field(default=512, ge=1)  # numbers that an image is made from
    w: Int = Field(default=512, ge=1)  # numbers of its style
    mapping: Int = Field(default=8, ge=1)  # layers from z to w
    filter: tuple[Float, ...] = (1.0, 3.0, 3.0, 1.0)  # low-pass, at every change of resolution
    r1: Float | None = Field(default=None, ge=0)  # gamma; None = 0.0002 pixels / batch
    r1_every: Int = Field(default=16, ge=1)  # steps
    path: Float | None = Field(default=None, ge=0)  # of path lengths; None = by size, 0 = none
    path_every: Int = Field(default=8, ge=1)  # steps
    mixing: Float = Field(default=0.9, ge=0, le=1)  # share of generated images with two styles
    ada: Float | None = Field(default=0.6, gt=0, lt=1)  # aim of sign D(real); None: no augmenting
    ada_images: Int = Field(default=500_000, ge=1)  # that take the augmentation's p from 0 to 1
    half_life: Float = Field(default=10_000, gt=0)  # of the averaged weights, in images
    ramp: Float | None = Field(default=0.05, gt=0)  # ... and at most this share of the images seen
    truncation: Float = Field(default=1.0, ge=0)  # in generating: below 1 more typical, less varied

    @model_validator(mode="after")
    def _filter(self) -> Gan:
        if len(self.filter) % 2 or sum(self.filter) <= 0:
            raise ValueError(
                "filter takes an even number of weights with a sum above 0: 1 3 3 1, or 1 1 for "
                "images of few pixels"
            )
        return self


class Sample(Section):
    sampler: Literal["ddpm", "ddim", "dpmpp_2m", "gan"] = "ddim"
    steps: Int = Field(default=50, ge=1)
    spacing: Literal["uniform", "quadratic", "karras", "trailing"] = "uniform"
    clamp: Bool = True  # hold the predicted clean image inside [-1, 1]
    sigma_min: Float = Field(default=0.02, gt=0, lt=10)  # karras: s/a of the last step
    eta: Float = Field(default=0.0, ge=0, le=1)  # ddim, dpmpp_2m: fresh noise in every step
    temperature: Float = Field(default=1.0, ge=0)  # ddpm
    variance: Literal["posterior", "fixed_large"] = "posterior"  # ddpm
    guidance: Float = Field(default=1.0, ge=0)  # conditional: above 1 follows labels more closely
    labels: dict[Name, Name] = {}  # conditional: {class: sneaker}; others as often as in the data
    batch: Int = Field(default=64, ge=1)  # the network's one fixed batch size
    seed: Seed = 0
    shard: Int = Field(default=250, ge=1)  # images per file
    precision: Literal["as trained", "fp32"] = "as trained"  # fp32: as exported models compute

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Images and scores from before these settings were there are those of their defaults."""
        values = dump(self)
        for name, usual in (("sigma_min", 0.02), ("precision", "as trained")):
            if values.get(name) == usual:
                del values[name]
        return values


class Evaluate(Section):
    extractor: Annotated[Name, AfterValidator(_extractor)] = "inception"  # or a network's file
    n: tuple[Annotated[Int, Field(ge=2)], ...] = (500, 5000)
    reference: Int = Field(default=5000, ge=2)  # held-out real images, the same for every column
    weights: Name | None = None  # the extractor's file, or a folder that holds it
    anchors: Bool = False  # score the untrained network and Gaussian images as well
    cells: Int = Field(default=100, ge=2)  # of the mode study, at most; fewer for few images
    jackknife: Bool = True  # a second standard error of the corrected distance: 20 more of it
    inception_score: Bool = False  # says little about faces; needs the Inception extractor
    lpips: Bool | None = None  # perceptual diversity; None = with the Inception extractor


class Validation(Section):
    """Scores during training, of images that `evaluate` has for no reference."""

    every: Span = 0  # steps, epochs or a share of the run; 0 = never
    n: Int = Field(default=500, ge=2)  # images
    patience: Int | None = Field(default=None, ge=1)  # stop after so many that were no better


GROUP = 4  # images that a GAN's discriminator compares: batches are whole groups


class Config(Section):
    preset: Name
    model: Literal["diffusion", "gan"] = "diffusion"
    data: Data
    net: Net
    diffusion: Diffusion = Diffusion()
    loss: Loss = Loss()
    gan: Gan = Gan()
    train: Train = Train()
    sample: Sample = Sample()
    evaluate: Evaluate = Evaluate()
    validation: Validation = Validation()

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if not self.net.widths or not self.evaluate.n:
            raise ValueError("net.widths and evaluate.n need at least one number each")
        if not self.net.conditional and (self.sample.guidance != 1 or self.sample.labels):
            raise ValueError(
                "sample.guidance and sample.labels need a model trained with net.conditional true"
            )
        counts = self.data.train, self.data.reference, self.data.floor
        if self.data.name != "faces" and any(counts):
            raise ValueError("data.train, data.reference and data.floor are for faces only")
        if self.data.flip and self.data.name in ("mnist", "digits"):
            raise ValueError("data.flip must be false: a mirrored digit is no digit")
        if self.data.shift >= self.data.size:
            raise ValueError(f"data.shift is {self.data.shift}, but must be below data.size")
        if self.data.name != "celeba" and self.data.first:
            raise ValueError("data.first is for data.name celeba only")
        if self.data.name != "folder" and (self.data.fit, self.data.held_out) != ("crop", 0.1):
            raise ValueError("data.fit and data.held_out are for data.name folder only")
        self._fits_model()
        if self.sample.steps > self.diffusion.steps:
            raise ValueError(
                f"sample.steps is {self.sample.steps}, but diffusion.steps only "
                f"{self.diffusion.steps}: a sampler takes at most that many"
            )
        return self

    def _fits_model(self) -> None:
        """What belongs to one kind of model is not set for the other."""
        if self.model == "diffusion":
            if self.gan != Gan() or self.sample.sampler == "gan":
                raise ValueError("gan.* and sample.sampler gan are for model gan only")
            return
        plain = Net(widths=self.net.widths)
        if (self.net, self.diffusion, self.loss) != (plain, Diffusion(), Loss()):
            raise ValueError(
                "model gan takes net.widths only of net, and nothing of diffusion and loss"
            )
        if (self.sample.sampler, self.sample.steps) != ("gan", 1):
            raise ValueError("model gan draws with sample.sampler gan and sample.steps 1")
        if self.train.precision not in ("auto", "fp32"):
            raise ValueError("model gan is trained with train.precision auto or fp32")
        if self.train.deterministic and self.gan.ada is not None:
            raise ValueError(
                "train.deterministic needs gan.ada null: CUDA's image sampler, which moves images "
                "for the discriminator, has no gradient that repeats bit for bit"
            )
        for name in ("batch", "micro"):
            if (getattr(self.train, name) or GROUP) % GROUP:
                raise ValueError(f"model gan needs a train.{name} that is a multiple of {GROUP}")
