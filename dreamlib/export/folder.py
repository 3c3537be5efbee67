"""`dreamlib export`: a run's model as a folder for the Hub, for diffusers and for onnxruntime."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from safetensors.torch import save

from dreamlib.diffusion.unet import UNet
from dreamlib.export.diffusers_folder import folder_files
from dreamlib.export.facts import TOLD, Facts
from dreamlib.export.onnx import onnx_bytes
from dreamlib.gan.stylegan2 import Generator
from dreamlib.report.html import templates_of
from dreamlib.report.texts import as_table
from dreamlib.runs.run import Run
from dreamlib.sampling.generate import generate
from dreamlib.utils.context import say
from dreamlib.utils.errors import RunError
from dreamlib.utils.files import write_bytes, write_text
from dreamlib.utils.images import enlarge, grid

SHOWN = 64  # images on the card
NAMES = (  # everything that an export may write
    "README.md",
    "samples.png",
    "scores.json",
    "model.onnx",
    "model.safetensors",
    "model_index.json",
    "pipeline.py",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/dream_unet.py",
    "unet/diffusion_pytorch_model.safetensors",
)
TEMPLATES = Path(__file__).parent / "templates"


def export(
    run: Run, folder: Path | None = None, *, onnx: bool = True, diffusers: bool = True
) -> Path:
    """Write the averaged weights of a run for others, with their card; the folder (export/).

    A diffusion model becomes a diffusers pipeline, without `diffusers` and for a GAN safetensors;
    model.onnx; README.md, a model card, with scores.json and pictures.  Files of these names that
    an earlier export left and this one does not write are removed.  NotThere before there are
    weights; ConfigError for what a format does not hold, or without its packages; RunError when a
    training writes other weights meanwhile.
    """
    facts, folder = Facts(run), folder or run.folder / "export"
    diffusers = diffusers and run.config.model != "gan"
    files = {"samples.png": _samples(facts)}
    if facts.study:
        files["scores.json"] = json.dumps(asdict(facts.study), indent=1).encode()
    if diffusers:
        files |= folder_files(facts)
    else:
        files["model.safetensors"] = save(facts.weights, metadata={"format": "pt"})
    if onnx:
        net = facts.store.net.cpu()
        assert isinstance(net, (UNet, Generator))
        files["model.onnx"], apart = onnx_bytes(net)
        say(f"model.onnx computes what torch computes, to {apart:.1g}")
    if run.weights()[1]["sha256"] != facts.card["sha256"]:
        raise RunError(f"the weights of {run.folder} have changed meanwhile: export once more")
    for name in set(NAMES) - set(files):
        (folder / name).unlink(missing_ok=True)
    for name, data in files.items():
        write_bytes(folder / name, data)
    write_text(folder / "README.md", card(facts, onnx=onnx, diffusers=diffusers))
    return folder


def _samples(facts: Facts) -> bytes:
    """The sheet of seeds 0 to 63 as a PNG file."""
    images, file = generate(facts.run, range(SHOWN)), io.BytesIO()
    Image.fromarray(grid(enlarge(images, 64), gap=4)).save(file, format="PNG")
    return file.getvalue()


def card(facts: Facts, *, onnx: bool = True, diffusers: bool = True) -> str:
    """README.md as the Hub reads it: YAML front matter, then text.  Its numbers are those of
    scores.json; it speaks of the formats that were written."""
    run = facts.run
    return (
        templates_of(TEMPLATES)
        .get_template("card.md")
        .render(
            facts=facts,
            header=yaml.safe_dump(_front(facts, diffusers), sort_keys=False, allow_unicode=True),
            headline=as_table(*scores) if (scores := facts.scores()) else "",
            notes=facts.notes(),
            onnx=onnx,
            diffusers=diffusers,
            known=TOLD,
            gan=run.config.model == "gan",
            labels=run.config.net.conditional,
            prediction=run.config.diffusion.prediction,
            table=as_table(("setting", "value"), facts.rows()),
        )
    )


def _front(facts: Facts, diffusers: bool) -> dict[str, Any]:
    """The front matter of a model card."""
    identifier, _ = facts.dataset
    gan = facts.run.config.model == "gan"
    front: dict[str, Any] = {
        "license": "other",
        "license_name": "terms-of-the-training-images",
        "license_link": "README.md",
        "library_name": "diffusers" if diffusers else "dreamlib",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["dream", "gan" if gan else "diffusion", "dreamlib"],
    }
    if identifier:
        front["datasets"] = [identifier]
    if facts.study:
        front["model-index"] = [{"name": facts.name, "results": _results(facts, identifier)}]
    return front


def _results(facts: Facts, identifier: str | None) -> list[dict[str, Any]]:
    """The headline distances as the Hub lists them: value, N, standard error, floor."""
    assert facts.study
    data = facts.run.config.data.name
    metrics = [
        {
            "type": row.metric.lower(),  # "fid" for Inception features alone
            "name": f"{row.metric}, N = {row.n:,}",
            "value": row.value,
            "args": {"n": row.n, "standard_error": row.se, "floor": row.floor},
        }
        for row in facts.headline_rows()
    ]
    return [
        {
            "task": {"type": "unconditional-image-generation"},
            "dataset": {"type": identifier or data, "name": facts.images},
            "metrics": metrics,
        }
    ]
