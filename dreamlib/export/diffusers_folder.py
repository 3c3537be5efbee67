"""A run as a folder that diffusers loads: its network's own file, weights, scheduler, pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save

from dreamlib import __version__
from dreamlib.config.factory import make_schedule
from dreamlib.diffusion import unet
from dreamlib.diffusion.samplers import spaced
from dreamlib.export.facts import Facts
from dreamlib.utils.errors import ConfigError

TEMPLATES = Path(__file__).parent / "templates"
DIFFUSERS = "0.36.0"  # the oldest that reads these files
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
IMPORTS = """
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
"""


def folder_files(facts: Facts) -> dict[str, bytes]:
    """Path in the folder -> its bytes.  ConfigError for settings that no scheduler there has."""
    return dict(_files(facts))


def _files(facts: Facts) -> Iterator[tuple[str, bytes]]:
    scheduler, shape = _scheduler(facts), dict(facts.run.network["net"])
    shape["label_counts"] = shape.pop("labels")
    made = {"_class_name": "DreamUNet", "_diffusers_version": DIFFUSERS}
    yield "model_index.json", _json(_index(facts))
    yield "pipeline.py", _text("pipeline.py.txt").replace("{{ version }}", __version__).encode()
    yield "scheduler/scheduler_config.json", _json(scheduler)
    yield "unet/config.json", _json(made | shape)
    yield "unet/dream_unet.py", _network().encode()
    weights = save(facts.weights, metadata={"format": "pt"})
    yield "unet/diffusion_pytorch_model.safetensors", weights


def _network() -> str:
    """The U-Net's own file, and its class for diffusers."""
    source = Path(unet.__file__).read_text(encoding="utf-8")
    return source.replace("\nimport torch\n", f"\nimport torch{IMPORTS}", 1) + _text(
        "dream_unet.py.txt"
    )


def _index(facts: Facts) -> dict[str, Any]:
    config = facts.run.config
    sample, sched = config.sample, make_schedule(config)
    return {
        "_class_name": ["pipeline", "DreamPipeline"],
        "_diffusers_version": DIFFUSERS,
        "unet": ["dream_unet", "DreamUNet"],
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "timesteps": spaced(sched, sample.steps, sample.spacing, sample.sigma_min),
        "fresh": _adds_noise(sample),
        "sampler_seed": sample.seed,
        "told": facts.told() or None,
        "guidance": sample.guidance,
        "label_names": facts.labels or None,
    }


def _adds_noise(sample: Any) -> bool:
    return sample.sampler == "ddpm" or sample.eta == 1


def _scheduler(facts: Facts) -> dict[str, Any]:
    """One scheduler holds all of ours: of first order it is DDIM, with fresh noise DDPM.

    Every setting is written down, so that another default changes nothing.  Its threshold at 1 is
    our clamp.
    """
    config = facts.run.config
    sample, sched = config.sample, make_schedule(config)
    odd = {
        f"diffusion.prediction={config.diffusion.prediction}": config.diffusion.prediction
        not in PREDICTIONS,
        f"sample.eta={sample.eta:g}": sample.sampler != "ddpm" and sample.eta not in (0, 1),
        "sample.variance=fixed_large": sample.sampler == "ddpm" and sample.variance != "posterior",
        f"sample.temperature={sample.temperature:g}": sample.sampler == "ddpm"
        and sample.temperature != 1,
    }
    if wrong := ", ".join(name for name, is_odd in odd.items() if is_odd):
        raise ConfigError(
            f"diffusers has no scheduler for {wrong}: change sample.* by --set, or leave its part "
            "out (--no-diffusers)"
        )
    bar = sched.alpha_bar
    betas = [1 - float(bar[0]), *(1 - bar[1:] / bar[:-1]).tolist()]
    return {
        "_class_name": "DPMSolverMultistepScheduler",
        "_diffusers_version": DIFFUSERS,
        "num_train_timesteps": len(sched),
        "trained_betas": betas,
        "prediction_type": PREDICTIONS[config.diffusion.prediction],
        "algorithm_type": "sde-dpmsolver++" if _adds_noise(sample) else "dpmsolver++",
        "solver_order": 2 if sample.sampler == "dpmpp_2m" else 1,
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "final_sigmas_type": "zero",
        "thresholding": sample.clamp,
        "dynamic_thresholding_ratio": 1.0,
        "sample_max_value": 1.0,
        "use_karras_sigmas": False,
        "rescale_betas_zero_snr": False,
    }


def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
