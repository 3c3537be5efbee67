"""What a GAN's networks are made of and what they cost: counted, or measured by taking steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dreamlib.build import make_discriminator, make_net
from dreamlib.diffusion.ema import Averaged
from dreamlib.gan import step
from dreamlib.gan.ada import draw_maps
from dreamlib.gan.stylegan2 import GROUP, Discriminator, Generator
from dreamlib.rng import torch_rng
from dreamlib.sections import Config

P = 0.5  # of the augmentation in steps that are measured


def players(config: Config, channels: int) -> tuple[Generator, Discriminator]:
    return make_net(config, channels), make_discriminator(config, channels)


def parts(net: Generator, judge: Discriminator) -> list[tuple[str, list[nn.Module]]]:
    """Both networks' blocks, in the order in which z, and an image, pass them."""
    draws, size = net.synthesis, 4
    found = [("mapping", [net.mapping]), ("generator 4", [draws.first, draws.images[0]])]
    for up, conv, image in zip(draws.ups, draws.convs, list(draws.images)[1:]):
        size *= 2
        found.append((f"generator {size}", [up, conv, image]))
    found.append((f"discriminator {size}", [judge.first]))
    for block in judge.blocks:
        found.append((f"discriminator {size} to {size // 2}", [block]))
        size //= 2
    return [*found, ("discriminator 4", [judge.last, judge.hidden, judge.logit])]


def _blank(net: Generator, images: int) -> step.Draws:
    """Draws of zeros, on whichever device tensors are made: counting needs no numbers."""
    z, cut = torch.zeros(images, net.z_dim), torch.zeros(images, dtype=torch.int64)
    return step.Draws(z, z, cut, [torch.zeros(images, 1, n, n) for n in net.synthesis.noise_sizes])


def forward_work(net: Generator) -> int:
    """FLOPs of drawing one image."""
    draws = _blank(net, 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(draws.z, draws.noise)
    return counter.get_total_flops()


def step_work(config: Config, net: Generator, judge: Discriminator, channels: int) -> int:
    """FLOPs of a training step per image: both players, and their regularisers as often as they
    come."""
    gan, real = config.gan, torch.zeros(GROUP, channels, config.data.size, config.data.size)
    draws = _blank(net, GROUP)
    half, one = draws.rows(slice(GROUP // 2)), torch.ones(())

    def penalty() -> None:  # the counter does not like gradients of a leaf
        x = real.clone().requires_grad_()
        step.r1(judge(1 * x), x).sum().backward()

    def both() -> None:
        step.judge_gradients(net, judge, real, draws, (None, None), GROUP)
        step.maker_gradients(net, judge, draws, None, GROUP)

    def path() -> None:
        step.path_gradients(net, half, real[: GROUP // 2], one, 1.0, GROUP)

    total = 0.0
    calls = [(1, both)]
    if gan.r1 != 0:
        calls.append((gan.r1_every, penalty))
    if gan.path != 0:
        calls.append((gan.path_every, path))
    for every, call in calls:
        with FlopCounterMode(display=False) as counter:
            call()
        total += counter.get_total_flops() / every
    return round(total / GROUP)


def steps(
    config: Config, channels: int, batch: int, device: torch.device, count: int
) -> Iterator[None]:
    """Training steps of `batch` images on noise, augmented, with the regularisers that the preset
    has, each once in as many steps as it comes."""
    batch = max(GROUP, batch // GROUP * GROUP)
    net, judge = (each.to(device) for each in players(config, channels))
    ema = Averaged(net, config.train.ema)
    optimizers = {each: torch.optim.Adam(each.parameters(), fused=True) for each in (net, judge)}
    size = config.data.size
    real = torch.randn(batch, channels, size, size, device=device)

    def take(player: nn.Module) -> None:
        optimizers[player].step()
        optimizers[player].zero_grad(set_to_none=True)

    for number in range(count):
        rng = torch_rng("explain", number)
        draws = step.draw(net, batch, config.gan.mixing, rng).to(device)
        maps = draw_maps(batch, channels, size, P, rng) if config.gan.ada else None
        step.judge_gradients(net, judge, real, draws, (maps, maps), batch)
        take(judge)
        if config.gan.r1 != 0 and number % config.gan.r1_every == 0:
            step.r1_gradients(judge, real, maps, 1.0, batch)
            take(judge)
        step.maker_gradients(net, judge, draws, maps, batch)
        take(net)
        if config.gan.path != 0 and number % config.gan.path_every == 0:
            _path(net, draws, real)
            take(net)
        ema.update_parameters(net)
        yield


def _path(net: Generator, draws: step.Draws, y: Tensor) -> None:
    half, one = slice(max(1, len(y) // 2)), torch.ones((), device=y.device)
    step.path_gradients(net, draws.rows(half), y[half], one, 1.0, len(y))
