"""What a sampler costs beside its network, against diffusers' schedulers.

    python -m benchmarks sampling_cost

With a network that answers at once, a loop's time is the sampler's own work.  Then the same work,
per-image noise included, as a share of real network calls in the precision that a run takes here;
and, where that is not float32, both precisions of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import interleave, ratios, repeat, spread, text
from dreamlib.config.factory import make_net, make_schedule
from dreamlib.config.load import load_config
from dreamlib.diffusion.denoiser import Denoiser
from dreamlib.diffusion.samplers import ddim, ddpm, dpmpp_2m
from dreamlib.diffusion.sampling import BoundSampler, draw_images, image_noise
from dreamlib.diffusion.schedules import Schedule
from dreamlib.utils.platform import choose_precision

STEPS = 50
SHAPES = [(32, 1), (32, 8), (64, 8), (64, 64)]  # pixels, batch
CPU = torch.device("cpu")
OURS = {"DDIM": ddim, "DPM-Solver++": dpmpp_2m, "DDPM": ddpm}
FP32 = "fp32"
# Share of a network step that the sampler may take, and the real networks that show it.
NETS = {"faces16": (125, 0.03), "celeba64": (4, 0.01)}
QUICK = ("faces16",)


class Null(nn.Module):
    """A network that answers at once."""

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t


class Pipeline:
    """The loop of diffusers' own unconditional pipelines around a scheduler."""

    def __init__(self, name: str):
        from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

        kinds = {
            "DDIM": DDIMScheduler,
            "DPM-Solver++": DPMSolverMultistepScheduler,
            "DDPM": DDPMScheduler,
        }
        self.scheduler = kinds[name](num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2")
        self.net = Null()

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        self.scheduler.set_timesteps(STEPS)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.net(x, t), t, x).prev_sample
        return x


@torch.inference_mode()
def own_loop(sampler: BoundSampler, sched: Schedule, x: Tensor) -> Tensor:
    """Ours, with noise keyed by image as `generate` draws it."""
    shape, slots = tuple(x.shape[1:]), list(range(len(x)))

    def noise(t: int) -> Tensor:
        return image_noise(0, slots, shape, t, CPU)

    for step in sampler(Null(), sched, x, STEPS, noise):
        x = step.x_t
    return x


def loops(rounds: int, times: int) -> list[dict[str, Any]]:
    """Seconds of a sampler step without a network, ours and diffusers', by sampler and shape."""
    sched, found = make_schedule(load_config("celeba64")), []
    for size, batch in SHAPES:
        x = torch.randn(batch, 3, size, size)
        calls: dict[str, Callable[[], Any]] = {}
        for name, sampler in OURS.items():
            calls[f"ours {name}"] = partial(own_loop, sampler, sched, x)
            calls[f"diffusers {name}"] = partial(Pipeline(name), x)
        many = max(1, times // batch)
        seconds = interleave({k: partial(repeat, call, many) for k, call in calls.items()}, rounds)
        for name in OURS:
            own, theirs = seconds[f"ours {name}"], seconds[f"diffusers {name}"]
            per = many * STEPS
            found.append(
                {
                    "sampler": name,
                    "size": size,
                    "batch": batch,
                    "ours": [t / per for t in own],
                    "diffusers": [t / per for t in theirs],
                }
            )
    return found


def denoiser(preset: str, dtype: torch.dtype | None) -> tuple[Denoiser, Schedule, int]:
    config = load_config(preset)
    sched = make_schedule(config)
    net = make_net(config, 3).eval()
    return Denoiser(net, sched, config.diffusion.prediction, dtype), sched, config.data.size


def shares(rounds: int, steps: int, presets: Iterable[str]) -> list[dict[str, Any]]:
    """Whole drawings against the bare network calls in them, and this machine's precision against
    float32."""
    found, own = [], choose_precision("auto", CPU)
    for preset in presets:
        batch, limit = NETS[preset]
        nets = {FP32: denoiser(preset, None), own.name: denoiser(preset, own.dtype)}
        _, sched, size = nets["fp32"]
        x, t = torch.randn(batch, 3, size, size), torch.full((batch,), 500)
        calls: dict[str, Callable[[], Any]] = {}
        for kind, (net, _, _) in nets.items():
            calls[f"network {kind}"] = partial(_bare, net, x, t, steps)
        for name, sampler in OURS.items():
            bound = partial(sampler, steps=steps)
            for kind, net in (("null", Null()), (own.name, nets[own.name][0])):
                calls[f"{name} {kind}"] = partial(
                    draw_images,
                    *(net, sched, bound, range(batch)),
                    seed=0,
                    shape=(3, size, size),
                    batch=batch,
                    device=CPU,
                )
        seconds = interleave(calls, rounds)
        found.append(
            {"preset": preset, "batch": batch, "steps": steps, "limit": limit}
            | {"seconds": seconds}
        )
    return found


@torch.inference_mode()
def _bare(net: Denoiser, x: Tensor, t: Tensor, steps: int) -> None:
    for _ in range(steps):
        net(x, t)


def measure(rounds: int, quick: bool) -> dict[str, Any]:
    return {
        "loops": loops(rounds, 8 if quick else 64),
        "shares": shares(rounds, 4, QUICK) if quick else shares(rounds, 10, NETS),
    }


def table(found: dict[str, Any]) -> str:
    return loops_table(found["loops"]) + "\n\n" + shares_table(found["shares"])


def loops_table(loops: list[dict[str, Any]]) -> str:
    lines = [
        "| sampler | pixels, batch | ours, µs per step | diffusers, µs per step | times as long |",
        "|---|---|---|---|---|",
    ]
    for row in loops:
        own, theirs = (1e6 * spread(row[who])["median"] for who in ("ours", "diffusers"))
        shape = f"{row['size']}, {row['batch']}"
        lines.append(
            f"| {row['sampler']} | {shape} | {own:.0f} | {theirs:.0f} "
            f"| {text(ratios(row['diffusers'], row['ours']))} |"
        )
    return "\n".join(lines)


def kind_of(row: dict[str, Any]) -> str:
    """The precision in which the networks were drawn from."""
    kinds = (name.removeprefix("network ") for name in row["seconds"] if name.startswith("network"))
    return next((kind for kind in kinds if kind != FP32), FP32)


def shares_table(shares: list[dict[str, Any]]) -> str:
    kind = kind_of(shares[0])
    lines = [
        f"| network, batch | sampler | its own work / network calls ({kind}) "
        f"| end to end / network calls | network calls: fp32 / {kind} |",
        "|---|---|---|---|---|",
    ]
    for row in shares:
        seconds = row["seconds"]
        calls = seconds[f"network {kind}"]
        for name in OURS:
            own = spread([a / b for a, b in zip(seconds[f"{name} null"], calls)])
            cells = [f"{row['preset']}, {row['batch']}", name, f"{own['median']:.2%}"]
            cells.append(text(ratios(seconds[f"{name} {kind}"], calls)))
            cells.append(text(ratios(seconds[f"network {FP32}"], calls)))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
