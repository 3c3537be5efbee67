"""Images that a local diffusers pipeline draws.  Code that lies in its folder is never run."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamlib.data.image_folder import to_rgb
from dreamlib.utils.context import progress, say, should_stop
from dreamlib.utils.errors import ConfigError, DataError, Interrupted
from dreamlib.utils.files import check_fields, fingerprint, read_json, read_npy, write_npy

SHARD = 100  # images that are kept in one file
LIBRARIES = (None, "diffusers", "transformers")  # that parts may come from; None: it was not saved
# diffusers' words for a bad folder; they change with its version
UNFIT = (OSError, ValueError, TypeError, RuntimeError, AttributeError, ImportError)


def pipeline_images(
    folder: Path,
    n: int,
    keep: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    batch: int = 25,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """n images of a local diffusers pipeline -> uint8 [n,H,W,3]; image i is drawn by seed + i.

    Weights are read from safetensors only, code from the installed packages only.  Interrupted work
    goes on with what is in `keep`.  DataError for no pipeline, code of its own, or lost weights.
    """
    pipeline = _pipeline(folder).to(device)
    pipeline.set_progress_bar_config(disable=True)
    _check_spacing(pipeline, steps)
    more = {} if steps is None else {"num_inference_steps": steps}
    made_by = fingerprint([_content(folder), seed, steps, batch, str(device)])[:8]
    advance = progress(f"images of {folder.name}", n)

    def draw(first: int, end: int) -> np.ndarray:
        if should_stop():
            raise Interrupted(f"stopped after {first:,} of {n:,} images of {folder}")
        rngs = [torch.Generator().manual_seed(seed + i) for i in range(first, end)]
        answer = pipeline(batch_size=len(rngs), generator=rngs, output_type="pil", **more)
        return np.stack([np.array(to_rgb(image)) for image in answer.images])

    shards = []
    for start in range(0, n, SHARD):
        end, path = min(start + SHARD, n), keep / f"pipeline-{made_by}-{start:07d}.npy"
        images = read_npy(path)
        if images is None or len(images) < end - start:
            parts = [draw(k, min(k + batch, end)) for k in range(start, end, batch)]
            images = np.concatenate(parts)
            write_npy(path, images)
        shards.append(images[: end - start])
        advance(end - start)
    return np.concatenate(shards)


def _pipeline(folder: Path) -> Any:
    parts = _parts(folder)  # before diffusers sees the folder: older ones run what lies there
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError(
            "--diffusers needs the diffusers package: pip install diffusers"
        ) from error
    local = {"local_files_only": True, "use_safetensors": True}
    try:
        loaded = {}
        for name, (library, kind) in parts.items():
            made = getattr(diffusers, kind) if library == "diffusers" else None
            if isinstance(made, type) and issubclass(made, torch.nn.Module):
                load, place = made.from_pretrained, str(folder / name)  # pyright: ignore  a model
                loaded[name], info = load(place, output_loading_info=True, **local)
                if missing := info["missing_keys"]:  # they would be whatever lay in memory
                    raise DataError(
                        f"{folder} lacks {len(missing)} weights of its {name} "
                        f"({missing[0]}, ...): save the pipeline again"
                    )
        pipeline: Any = diffusers.DiffusionPipeline  # pyright: ignore  it loads lazily
        return pipeline.from_pretrained(str(folder), **local, **loaded)
    except UNFIT as error:
        raise DataError(
            f"diffusers cannot load {folder} ({error}): with a pipeline or a part of your own, "
            "draw images yourself, and name their folder by --images"
        ) from error


def _parts(folder: Path) -> dict[str, list[Any]]:
    """Part -> its library and class, by model_index.json.  DataError for a folder that brings code,
    or asks for code from elsewhere."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise DataError(f"{folder} holds no diffusers pipeline: it has no model_index.json")
    configs = [path for path in folder.rglob("*.json") if "config" in path.name]
    try:
        entries = check_fields(read_json(index), _class_name=str)
        odd = [path.name for path in configs if "auto_map" in read_json(path)]
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no plain diffusers pipeline: {error}") from error
    parts = {name: value for name, value in entries.items() if isinstance(value, list)}
    odd += [path.name for path in folder.rglob("*.py")]
    odd += [name for name, at in parts.items() if len(at) != 2 or at[0] not in LIBRARIES]
    if odd:
        raise DataError(
            f"{folder} is refused: its {', '.join(odd[:3])} may run code that is not diffusers' "
            "own; if you trust it, draw images yourself and name their folder: --images"
        )
    return parts


def _check_spacing(pipeline: Any, steps: int | None) -> None:
    """Say where a scheduler's steps do not begin and end where training did."""
    config = getattr(getattr(pipeline, "scheduler", None), "config", {})
    spacing, trained = config.get("timestep_spacing"), config.get("num_train_timesteps") or 0
    parameter = inspect.signature(pipeline.__call__).parameters.get("num_inference_steps")
    steps = steps or (parameter.default if parameter else None)
    if spacing not in ("leading", "trailing") or not isinstance(steps, int):
        return
    if steps < trained and trained % steps:
        fitting = max(k for k in range(1, steps) if trained % k == 0)
        say(
            f"WARNING: {steps} steps of {spacing!r} spacing do not divide the scheduler's "
            f"{trained:,}: sampling begins or ends at another noise than training did, and the "
            f"images show it; take --steps {fitting}"
        )


def _content(folder: Path) -> list[list[Any]]:
    """Names, sizes and times: cheap, and different for another pipeline in the same place."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
