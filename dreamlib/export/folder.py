"""`dreamlib export`: a run's model as a folder for the Hub, for diffusers and for onnxruntime."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from safetensors.torch import save

from dreamlib.diffusion.unet import UNet
from dreamlib.export.diffusers_folder import folder_files
from dreamlib.export.facts import Facts
from dreamlib.export.onnx import export_onnx
from dreamlib.gan.stylegan2 import Generator
from dreamlib.report.html import templates_of
from dreamlib.report.texts import as_table
from dreamlib.runs.run import Run
from dreamlib.sampling.generate import generate
from dreamlib.sampling.image_store import Shards
from dreamlib.utils.context import say
from dreamlib.utils.files import write_bytes, write_json
from dreamlib.utils.images import enlarge, grid

SHOWN = 64  # images on the card
TEMPLATES = Path(__file__).parent / "templates"


def export(
    run: Run, folder: Path | None = None, *, onnx: bool = True, diffusers: bool = True
) -> Path:
    """Write the averaged weights of a run for others, with their card; the folder (export/).

    A diffusion model becomes a diffusers pipeline, a GAN safetensors; both get model.onnx, and
    README.md, a model card, with scores.json and pictures.  NotThere before there are weights;
    ConfigError for what a format does not hold, or without the packages of a format.
    """
    facts, gan = Facts(run), run.config.model == "gan"
    folder = folder or run.folder / "export"
    files = {"README.md": card(facts).encode(), "samples.png": _samples(run)}
    if gan:
        files["generator.safetensors"] = save(run.weights()[0], metadata={"format": "pt"})
    elif diffusers:
        files |= folder_files(facts)
    for name, data in files.items():
        write_bytes(folder / name, data)
    if facts.study:
        write_json(folder / "scores.json", asdict(facts.study))
    if onnx:
        net = Shards(run).net.cpu()
        assert isinstance(net, (UNet, Generator))
        apart = export_onnx(net, folder / "model.onnx")
        say(f"model.onnx computes what torch computes, to {apart:.1g}")
    return folder


def _samples(run: Run) -> bytes:
    """The sheet of seeds 0 to 63 as a PNG file."""
    sheet, file = grid(enlarge(generate(run, range(SHOWN)), 64), gap=4), io.BytesIO()
    Image.fromarray(sheet).save(file, format="PNG")
    return file.getvalue()


def card(facts: Facts) -> str:
    """README.md as the Hub reads it: YAML front matter, then text.  Its numbers are those of
    scores.json."""
    run = facts.run
    return (
        templates_of(TEMPLATES)
        .get_template("card.md")
        .render(
            facts=facts,
            header=yaml.safe_dump(_front(facts), sort_keys=False, allow_unicode=True),
            headline=as_table(*scores) if (scores := facts.scores()) else "",
            notes=facts.notes(),
            gan=run.config.model == "gan",
            labels=run.config.net.conditional,
            prediction=run.config.diffusion.prediction,
            table=as_table(("setting", "value"), facts.rows()),
        )
    )


def _front(facts: Facts) -> dict[str, Any]:
    """The front matter of a model card."""
    identifier, _ = facts.dataset
    gan = facts.run.config.model == "gan"
    front: dict[str, Any] = {
        "license": "other",
        "license_name": "terms-of-the-training-images",
        "license_link": "README.md",
        "library_name": "onnx" if gan else "diffusers",
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
            "type": "fid" if row.metric.startswith("F") else "kid",
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
