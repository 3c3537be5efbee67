"""Every formula against diffusers, computed in float64 on both sides, to 1e-6 or better."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dreamlib.diffusion import losses as dream
from dreamlib.diffusion import schedules as schedule
from dreamlib.diffusion.forward_process import conversion, eps_from_output, q_sample
from dreamlib.diffusion.losses import Batch
from dreamlib.diffusion.samplers import ddim, ddpm, dpmpp_2m

diffusers = pytest.importorskip("diffusers")
MODULES = ("scheduling_ddpm", "scheduling_ddim", "scheduling_dpmsolver_multistep")


class Double:
    """torch, with float32 meaning float64: diffusers rounds its tables and samples to float32."""

    def __getattr__(self, name):
        return torch.float64 if name == "float32" else getattr(torch, name)


@pytest.fixture(autouse=True)
def _float64(monkeypatch):
    for name in MODULES:
        monkeypatch.setattr(getattr(diffusers.schedulers, name), "torch", Double())


def close(ours, theirs):
    assert ours.dtype == theirs.dtype == torch.float64
    assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def betas_of(sched):
    bar = torch.cat([torch.ones(1, dtype=torch.float64), sched.alpha_bar])
    return 1 - bar[1:] / bar[:-1]


def theirs_for(kind, sched, **settings):
    found = kind(len(sched), trained_betas=betas_of(sched).numpy(), **settings)
    close(found.alphas_cumprod, sched.alpha_bar)
    return found


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net(x, t):
    """Any smooth function of x and t will do."""
    return 0.8 * x + 0.3 * torch.sin(3 * x + 0.01 * t.view(-1, 1, 1, 1))


@pytest.mark.parametrize("steps", [10, 1000])
def test_linear_schedule(steps):
    theirs = diffusers.DDPMScheduler(steps, 1e-4, 0.02, "linear")
    ours = schedule.linear(steps)
    close(betas_of(ours), theirs.betas)
    close(ours.alpha_bar, theirs.alphas_cumprod)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.999), (1e-4, 0.9999)])
@pytest.mark.parametrize("steps", [50, 1000])
def test_cosine_schedule_with_either_clip(steps, low, high):
    betas_for_alpha_bar = diffusers.schedulers.scheduling_ddpm.betas_for_alpha_bar
    theirs = betas_for_alpha_bar(steps, high).clamp(min=low)
    ours = schedule.cosine(steps, beta_min=low, beta_max=high)
    close(betas_of(ours), theirs)
    close(ours.alpha_bar, torch.cumprod(1 - theirs, 0))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("ours", "name"), [("posterior", "fixed_small"), ("fixed_large",) * 2])
@pytest.mark.parametrize("clamp", [False, True])
def test_ancestral_steps(seed, ours, name, clamp):
    sched = schedule.cosine(40)
    theirs = theirs_for(diffusers.DDPMScheduler, sched, variance_type=name, clip_sample=clamp)
    x = draw(4, 1, 3, 3, seed=seed)
    generator, own = (torch.Generator().manual_seed(seed) for _ in range(2))

    def noise(t):
        return torch.randn(x.shape, generator=own, dtype=torch.float64)

    for step in ddpm(net, sched, x, 40, noise, variance=ours, clamp=clamp):
        answer = net(x, torch.full((4,), step.t))
        x = theirs.step(answer, step.t, x, generator=generator).prev_sample
        close(step.x_t, x)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("steps", [200, 50, 8])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("clamp", [False, True])
def test_ddim_trajectories(seed, steps, eta, clamp):
    sched = schedule.linear(200)
    settings = {"clip_sample": clamp, "timestep_spacing": "trailing"}
    theirs = theirs_for(diffusers.DDIMScheduler, sched, **settings)
    theirs.set_timesteps(steps)
    x = draw(4, 1, 3, 3, seed=seed)

    def noise(t):
        return draw(4, 1, 3, 3, seed=1000 * seed + t)

    for step in ddim(net, sched, x, steps, noise, eta=eta, clamp=clamp, spacing="trailing"):
        answer = net(x, torch.full((4,), step.t))
        options = {"eta": eta, "use_clipped_model_output": True}
        extra = {"variance_noise": noise(step.t)} if eta else {}
        x = theirs.step(answer, step.t, x, **options, **extra).prev_sample
        close(step.x_t, x)
    assert step.t == theirs.timesteps[-1]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("steps", [1, 2, 20, 150])
@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "karras", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dpm_solver_trajectories(seed, steps, spacing, eta):
    sched = schedule.cosine(200)
    settings = {"solver_order": 2, "solver_type": "midpoint", "final_sigmas_type": "zero"}
    settings["algorithm_type"] = "sde-dpmsolver++" if eta else "dpmsolver++"
    theirs = theirs_for(diffusers.DPMSolverMultistepScheduler, sched, **settings)
    x = draw(4, 1, 3, 3, seed=seed)

    def noise(t):
        return draw(4, 1, 3, 3, seed=1000 * seed + t)

    ours = list(dpmpp_2m(net, sched, x, steps, noise, clamp=False, spacing=spacing, eta=eta))
    theirs.set_timesteps(timesteps=[step.t for step in ours])
    bar = sched.alpha_bar[theirs.timesteps]  # their sigmas pass through float32: give them ours
    zero = torch.zeros(1, dtype=torch.float64)
    theirs.sigmas = torch.cat([((1 - bar) / bar).sqrt(), zero])
    for step in ours:
        extra = {"variance_noise": noise(step.t)} if eta else {}
        x = theirs.step(net(x, torch.full((4,), step.t)), step.t, x, **extra).prev_sample
        assert_close(step.x_t, x, rtol=1e-6 if eta else 1e-8, atol=1e-6 if eta else 1e-8)


def noised(seed, most):
    """A schedule, diffusers' own of it, and images with their noise at times up to `most`."""
    sched = schedule.cosine(1000)
    x0, eps = draw(50, 1, 2, 2, seed=seed), draw(50, 1, 2, 2, seed=seed + 10)
    t = torch.randint(most, (50,), generator=torch.Generator().manual_seed(seed))
    theirs = theirs_for(diffusers.DDPMScheduler, sched)
    return sched, theirs, x0, eps, t, q_sample(sched, x0, t, eps)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_velocity(seed):
    sched, theirs, x0, eps, t, x_t = noised(seed, 950)
    close(x_t, theirs.add_noise(x0, eps, t))
    v = theirs.get_velocity(x0, eps, t)
    close(eps_from_output("v", sched, x_t, t, v), eps)
    p, q = conversion("v", sched, t, x_t.dtype)
    close((eps - p * x_t) / q, v)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("p", [1.0, 5.0])
def test_the_papers_pair_is_diffusers_own(seed, p):
    sched, theirs, x0, eps, t, x_t = noised(seed, 1000)
    moved, target = diffusers.training_utils.compute_dream_and_update_latents(
        lambda x, t, _: SimpleNamespace(sample=net(x, t)),
        theirs,
        t,
        eps,
        x_t,
        eps,
        None,
        dream_detail_preservation=p,
    )
    batch = Batch(x0, t, eps, torch.zeros(50))
    ours = dream.rectify(sched, batch, x_t, net(x_t, t), dream.Paper(p).lam(sched, t, 0))
    close(ours[0], moved)
    close(ours[1], target)
    assert float((moved - x_t).abs().mean()) > 0.05


def test_float64_is_really_float64(monkeypatch):
    """Without the replacement their table is float32, and 1e-9 would not hold."""
    betas = betas_of(schedule.linear(200)).numpy()
    assert diffusers.DDPMScheduler(200, trained_betas=betas).betas.dtype == torch.float64
    monkeypatch.undo()
    assert diffusers.DDPMScheduler(200, trained_betas=betas).betas.dtype == torch.float32
    assert np.float64 == betas.dtype
