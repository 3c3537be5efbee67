"""`dreamlib export`, `share` and `push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dreamlib.cli.options import Mirrors, RunFolder, Set, existing
from dreamlib.utils.progress import tell as say

OutFolder = Annotated[Path | None, typer.Option("--out", help="a folder [RUN/export]")]
OutFile = Annotated[
    Path | None, typer.Option("--out", help="a file or folder [RUN/figures/NAME-page.html]")
]
Onnx = Annotated[bool, typer.Option(help="model.onnx, checked against torch")]
Diffusers = Annotated[bool, typer.Option(help="a pipeline that diffusers loads")]


def export(
    run: RunFolder,
    out: OutFolder = None,
    onnx: Onnx = True,
    diffusers: Diffusers = True,
    mirror: Mirrors = None,
    settings: Set = None,
) -> None:
    """The trained model as a folder: ONNX, safetensors, diffusers pipeline, model card."""
    from dreamlib.export.folder import export as write

    opened = existing(run, mirror, settings, images=False)
    say(f"the model is in {write(opened, out, onnx=onnx, diffusers=diffusers)}")


def share(
    run: RunFolder,
    out: OutFile = None,
    large: Annotated[bool, typer.Option("--large", help="a page above 40 MB too")] = False,
    mirror: Mirrors = None,
    settings: Set = None,
) -> None:
    """One HTML file that draws this model's images in any browser, without server or network."""
    from dreamlib.export.page import share as write

    page = write(existing(run, mirror, settings, images=False), out, large=large)
    say(f"{page} ({page.stat().st_size / 1e6:.1f} MB): open it in a browser, or send it")


def push(
    run: RunFolder,
    name: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub")],
    private: Annotated[bool, typer.Option("--private", help="for you alone")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
    onnx: Onnx = True,
    diffusers: Diffusers = True,
    mirror: Mirrors = None,
    settings: Set = None,
) -> None:
    """Export the model and upload it to the Hugging Face Hub."""
    from dreamlib.export.folder import export as write
    from dreamlib.export.hub import check_upload
    from dreamlib.export.hub import push as upload

    if not dry_run:
        check_upload(name)
    opened = existing(run, mirror, settings, images=False)
    folder = write(opened, onnx=onnx, diffusers=diffusers)
    say(upload(folder, name, private=private, dry_run=dry_run))
