"""The one place where config meets constructors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dreamlib.config.schema import Config, span_steps
from dreamlib.data.celeba import celeba_source
from dreamlib.data.classic_sets import cifar10_source, digits_source, idx_source
from dreamlib.data.dataset import Packed, Source
from dreamlib.data.faces import faces_source
from dreamlib.data.image_folder import folder_source
from dreamlib.data.loader import Stream
from dreamlib.diffusion import losses
from dreamlib.diffusion.denoiser import Denoiser
from dreamlib.diffusion.muon import Muon
from dreamlib.diffusion.samplers import ddim, ddpm, dpmpp_2m
from dreamlib.diffusion.sampling import BoundSampler, LabelsOf, draw_images, interpolate
from dreamlib.diffusion.schedules import Schedule, cosine, flow, linear
from dreamlib.diffusion.unet import UNet
from dreamlib.gan import sampling as gan_draw
from dreamlib.gan.stylegan2 import Discriminator, Generator
from dreamlib.metrics.classifier import Classifier, load_or_train_classifier
from dreamlib.metrics.features import ClassifierExtractor, Extractor
from dreamlib.metrics.inception import InceptionExtractor
from dreamlib.metrics.lpips import Lpips
from dreamlib.metrics.network_extractor import FORMATS, file_extractor
from dreamlib.metrics.pretrained_weights import ALEXNET, INCEPTION, obtain
from dreamlib.metrics.ready_extractors import ready_extractor
from dreamlib.utils.errors import ConfigError, DataError
from dreamlib.utils.platform import Precision, weight_folders, weights_cache
from dreamlib.utils.rng import numpy_rng, seeded


def make_source(config: Config, cache: Path) -> Source:
    """Where the images come from; downloads, if any, go to `cache`."""
    data = config.data
    path = Path(data.path) if data.path else None
    if path and data.name in ("faces", "digits"):
        raise ConfigError(
            f"data.name={data.name} needs no images, but data.path names {data.path}: leave --data "
            "out, or use the images with a preset for folders, such as cats64"
        )
    if data.name == "faces":
        counts = data.train or 20_000, data.reference or 5_000, data.floor or 5_000
        return faces_source(data.size, *counts, seed=data.seed)
    if data.name == "digits":
        return digits_source(data.size)
    if data.name in ("fashion", "mnist"):
        return idx_source(data.name, path, data.size, cache)
    if data.name == "cifar10":
        return cifar10_source(path, data.size, cache)
    if data.name == "celeba":
        return celeba_source(data.size, path=path, downloads=cache, first=data.first)
    if not path:
        raise ConfigError("data.path is missing: name the folder that holds the images (--data)")
    return folder_source(path, data.size, fit=data.fit, held_out=data.held_out)


def make_stream(config: Config, data: Packed, device: torch.device) -> Stream:
    train, rows, ours = config.train, data.indices("train"), config.data
    changes = {"flip": ours.flip, "shift": ours.shift, "colour": ours.colour}
    return Stream(data.images, rows, train.batch, train.seed, **changes, device=device)


def total_steps(config: Config, epoch: float) -> int:
    return span_steps(config.train.length, epoch=epoch)


def rate_factor(config: Config, step: int, epoch: float, total: int) -> float:
    """What the learning rate is multiplied by at a step: linear warm-up, constant or cosine."""
    train = config.train
    warmup = span_steps(train.warmup, epoch=epoch, total=total)
    factor = min(1.0, (step + 1) / (warmup + 1))
    if train.lr_schedule == "cosine":
        factor *= 0.5 * (1 + math.cos(math.pi * step / total))
    return factor


def rate_at(config: Config, step: int, images: int) -> float:
    """The learning rate of a step, of a run that trains on so many images."""
    epoch = images / config.train.batch
    return config.train.lr * rate_factor(config, step, epoch, total_steps(config, epoch))


def net_shape(config: Config, channels: int, labels: Sequence[int] = ()) -> dict[str, Any]:
    """The network's constructor arguments; `labels` are the values of each attribute."""
    images = {"size": config.data.size, "channels": channels}
    if config.model == "gan":
        net, gan = config.net, config.gan
        vectors = {"widths": list(net.widths), "z_dim": gan.z, "w_dim": gan.w}
        return images | vectors | {"mapping": gan.mapping, "taps": list(gan.filter)}
    conditions = list(labels) if config.net.conditional else []
    net = config.net.model_dump(mode="json", exclude={"conditional"})
    return images | net | {"labels": conditions}


def make_net(config: Config, channels: int, labels: Sequence[int] = ()) -> UNet | Generator:
    """The network that draws, at its initial weights, keyed by train.seed."""
    if config.model == "gan":
        return make_generator(config, channels)
    return make_unet(config, channels, labels)


def make_unet(config: Config, channels: int, labels: Sequence[int] = ()) -> UNet:
    """ConfigError for settings that make no network."""
    with _fitting(), seeded("init", config.train.seed):
        net = UNet(**net_shape(config, channels, labels), recompute=config.train.recompute)
    return net.to(memory_format=torch.channels_last) if config.train.channels_last else net


def make_generator(config: Config, channels: int) -> Generator:
    """ConfigError for settings that make no network."""
    with _fitting(), seeded("init", config.train.seed):
        return Generator(**net_shape(config, channels))


@contextmanager
def _fitting() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"net does not fit data.size: {error}") from error


def make_discriminator(config: Config, channels: int) -> Discriminator:
    """The network that judges a GAN's images, at its initial weights."""
    widths, taps = list(config.net.widths), list(config.gan.filter)
    with seeded("discriminator", config.train.seed):
        return Discriminator(config.data.size, channels, widths, taps)


def make_drawing(
    config: Config,
    data: Packed,
    net: nn.Module,
    precision: Precision,
    device: torch.device,
    *,
    between: bool = False,
) -> Callable[..., np.ndarray]:
    """image numbers (and `batch`, `should_stop`, `on_step` where it takes steps) -> uint8 images.

    With `between`: two image numbers and a count (and `batch`, `on_step`) -> so many images on the
    way from one to the other, without fresh noise.  `net` is what `make_net` makes, with the
    weights to draw with.
    """
    common = {"seed": config.sample.seed, "batch": config.sample.batch, "device": device}
    if config.model == "gan":
        images = gan_draw.interpolate if between else gan_draw.draw_images
        draw = partial(images, net, truncation=config.gan.truncation, **common)
    else:
        sched = make_schedule(config)
        draw = partial(
            interpolate if between else draw_images,
            make_denoiser(config, net, sched, precision),
            sched,
            make_sampler(config, deterministic=between),
            shape=(data.channels, config.data.size, config.data.size),
            labels_of=make_labels(config, data),
            guidance=config.sample.guidance,
            **common,
        )

    def without_dropout(*images: Any, **more: Any) -> np.ndarray:
        training = net.training
        net.eval()
        try:
            return draw(*images, **more)
        finally:
            net.train(training)

    return without_dropout


def make_schedule(config: Config) -> Schedule:
    diffusion = config.diffusion
    if diffusion.schedule == "linear":
        return linear(diffusion.steps, diffusion.beta_start, diffusion.beta_end)
    return flow(diffusion.steps) if diffusion.schedule == "flow" else cosine(diffusion.steps)


def make_denoiser(
    config: Config, net: nn.Module, sched: Schedule, precision: Precision
) -> Denoiser:
    return Denoiser(net, sched, config.diffusion.prediction, precision.dtype)


def make_loss(config: Config, epoch: float, total: int) -> Any:
    """A losses.Loss, with its spans resolved to optimizer steps."""
    loss = config.loss
    if loss.name == "conservative":
        start, ramp = (span_steps(x, epoch=epoch, total=total) for x in (loss.start, loss.ramp))
        return losses.Conservative(loss.lam_max, start, ramp, loss.weight, loss.estimator)
    if loss.name == "paper":
        return losses.Paper(loss.p)
    if loss.name == "perturb":
        return losses.Perturb(loss.gamma, config.diffusion.prediction)
    if loss.name == "mixflow":
        return losses.MixFlow(loss.reach, config.diffusion.prediction)
    if loss.name == "reflex":
        return losses.Reflex(loss.reach)
    return losses.standard


def make_optimizer(config: Config, net: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    train = config.train
    fused = device.type in ("cpu", "cuda")  # a third of the time of torch's default loop
    if train.optimizer == "adam":
        return torch.optim.Adam(net.parameters(), lr=train.lr, fused=fused)
    decay = train.weight_decay
    if train.optimizer == "muon":
        return Muon(net, train.lr, decay, fused)
    return torch.optim.AdamW(net.parameters(), lr=train.lr, weight_decay=decay, fused=fused)


def make_sampler(config: Config, *, deterministic: bool = False) -> BoundSampler:
    """`deterministic` leaves out the noise that ddim and dpmpp_2m add where eta is above 0."""
    sample = config.sample
    common: dict[str, Any] = {"steps": sample.steps, "spacing": sample.spacing}
    common |= {"sigma_min": sample.sigma_min, "clamp": sample.clamp}
    if sample.sampler in ("dpmpp_2m", "ddim"):
        sampler = dpmpp_2m if sample.sampler == "dpmpp_2m" else ddim
        return partial(sampler, **common, eta=0.0 if deterministic else sample.eta)
    return partial(ddpm, **common, variance=sample.variance, temperature=sample.temperature)


def make_labels(config: Config, data: Packed) -> LabelsOf | None:
    """The labels that a conditional network is told for image i; None for an unconditional one.

    Those of a training image chosen by (seed, i), so that they come as often, and together, as in
    the data; attributes that sample.labels names are set.
    """
    if not config.net.conditional:
        return None
    train, fixed = data.indices("train"), {}
    for name, value in config.sample.labels.items():
        known = data.attributes.get(name)
        if known is None or value not in known:
            allowed = "; ".join(f"{k}: {', '.join(v)}" for k, v in data.attributes.items())
            raise ConfigError(f"sample.labels has {name}: {value}, but these images know {allowed}")
        fixed[list(data.attributes).index(name)] = known.index(value)

    def labels_of(image: int) -> list[int]:
        row = train[numpy_rng("labels", config.sample.seed, image).integers(len(train))]
        return [fixed.get(k, int(label)) for k, label in enumerate(data.labels[row])]

    return labels_of


def make_classifier(data: Packed, seed: int) -> Classifier:
    """The classifier of a packed set's labels, trained once and kept beside the images."""
    if not data.attributes:
        raise DataError(
            "evaluate.extractor is classifier, but these images have no labels: sort them into "
            "class folders, or use --set evaluate.extractor=inception"
        )
    train, held_out = data.indices("train"), data.indices("reference")
    return load_or_train_classifier(
        data.folder,
        {"data": data.fingerprint, "seed": seed},
        data.images[train],
        data.labels[train],
        data.label_counts,
        (data.images[held_out], data.labels[held_out]),
        seed=seed,
    )


def make_extractor(config: Config, data: Packed, device: torch.device) -> Extractor:
    if config.evaluate.extractor == "classifier":
        return ClassifierExtractor(make_classifier(data, 0))
    return make_frozen(config.evaluate.extractor, config.evaluate.weights, device)


def make_frozen(extractor: str, weights: str | None, device: torch.device) -> Extractor:
    """An extractor that needs no images: inception, one that is known by name, or a file."""
    if extractor == "inception":
        return make_inception(weights, device)
    if Path(extractor).suffix in FORMATS:
        return file_extractor(Path(extractor).expanduser(), device)
    return ready_extractor(extractor, weight_folders(weights), weights_cache(), device)


def make_inception(weights: str | None, device: torch.device) -> InceptionExtractor:
    """Inception, with weights that are found (`weights`: a file or folder to look in first) or
    downloaded.  WeightsUnavailable without them."""
    path = obtain(weight_folders(weights), INCEPTION, weights_cache())
    return InceptionExtractor(path, device)


def make_distance(config: Config, device: torch.device) -> Lpips:
    """LPIPS, with weights that are found or downloaded.  WeightsUnavailable without them."""
    search = weight_folders(config.evaluate.weights)
    return Lpips(obtain(search, ALEXNET, weights_cache()), device)


def check(config: Config, data: Packed) -> None:
    """Build what training will build, on no device, so that a wrong setting is said at once."""
    with torch.device("meta"):
        make_net(config, data.channels, data.label_counts)
        if config.model == "gan":
            make_discriminator(config, data.channels)
    if config.net.conditional and not data.attributes:
        raise ConfigError(
            "net.conditional is true, but these images have no labels: sort them into class "
            "folders, or use --set net.conditional=false"
        )
    make_labels(config, data)
    epoch = len(data.indices("train")) / config.train.batch
    make_loss(config, epoch, total_steps(config, epoch))
