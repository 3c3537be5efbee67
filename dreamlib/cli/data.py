"""`dreamlib data ...`: prepare, show, verify, stats, export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from dreamlib.cli.options import Data, Set, overrides_of
from dreamlib.config.factory import make_extractor
from dreamlib.config.load import load_config
from dreamlib.config.schema import Config
from dreamlib.data.dataset import SPLITS, Packed
from dreamlib.evaluation.external_images import write_statistics
from dreamlib.metrics.features import extract
from dreamlib.metrics.frechet import Moments
from dreamlib.runs.mirror.stores import open_store
from dreamlib.runs.open import pack_data
from dreamlib.sampling.generate import export_png
from dreamlib.utils.images import enlarge, grid, save_png
from dreamlib.utils.platform import choose_device, mirror_homes
from dreamlib.utils.progress import tell as say

data_app = typer.Typer(no_args_is_help=True, help="Pack images once; look at them; check them.")

PresetName = Annotated[str, typer.Argument(help="a preset's name or a YAML file")]
Home = Annotated[Path, typer.Option(envvar="DREAMLIB_DATA", help="where packed images are kept")]
Size = Annotated[int | None, typer.Option(help="pixels per side, in the place of the preset's")]
PresetOption = Annotated[str, typer.Option("--preset", help="a preset's name or a YAML file")]
Count = Annotated[int | None, typer.Option("--n", min=1, help="so many; else all")]
Split = Annotated[str, typer.Option(help=f"one of {', '.join(SPLITS)}")]
HOME = Path("runs/data")
SHEET = 64  # images on a contact sheet


def _packed(
    preset: str, data: Path | None, home: Path, settings: list[str] | None, size: int | None
) -> tuple[Config, Packed]:
    ours = [f"data.size={size}"] if size else []
    config = load_config(preset, [*overrides_of(settings, data), *ours])
    return config, pack_data(config, home, [open_store(place) for place in mirror_homes()])


def _command(action: Callable[[Packed], None]) -> None:
    """Make a command of what is done with packed images."""

    def command(
        preset: PresetName = "faces16",
        data: Data = None,
        size: Size = None,
        home: Home = HOME,
        settings: Set = None,
    ) -> None:
        action(_packed(preset, data, home, settings, size)[1])

    data_app.command(action.__name__, help=action.__doc__)(command)


@_command
def prepare(packed: Packed) -> None:
    """Find or fetch the images, resize, split and pack them; again, it finds them packed."""
    _report(packed)


@_command
def show(packed: Packed) -> None:
    """A contact sheet for each split, shares of the labels, and what was not used and why."""
    _report(packed)
    for split in SPLITS:
        if packed.manifest["splits"][split]:
            count = len(packed.indices(split))
            images, _ = packed.take(split, min(SHEET, count))
            path = packed.folder / f"contact-sheet-{split}.png"
            save_png(grid(enlarge(images, 64), gap=4), path)
            say(f"{split}: {count:,} images; look at {path}")
            for attribute, values in packed.shares(split).items():
                shares = ", ".join(f"{value} {100 * x:.1f} %" for value, x in values.items())
                say(f"  {attribute}: {shares}")


@_command
def verify(packed: Packed) -> None:
    """Read every packed byte again and compare hashes; exit code 1 or more if one differs."""
    packed.verify()
    say(f"{packed.folder} is what was packed: {packed.manifest['count']:,} images")


@data_app.command()
def stats(
    out: Annotated[Path, typer.Argument(help="an .npz file to write: mu and sigma")],
    preset: PresetOption = "faces16",
    split: Split = "reference",
    n: Count = None,
    data: Data = None,
    size: Size = None,
    home: Home = HOME,
    settings: Set = None,
) -> None:
    """Mean and covariance of a split's features, as pytorch-fid and clean-fid read them."""
    config, packed = _packed(preset, data, home, settings, size)
    images, _ = packed.take(split, n or len(packed.indices(split)))
    extractor = make_extractor(config, packed, choose_device(config.train.device))
    moments = Moments.of(extract(images, extractor))
    facts = {"extractor": extractor.name, "identity": extractor.identity}
    write_statistics(out, moments, {**facts, "data": packed.fingerprint})
    say(f"{out}: mu and sigma of {len(images):,} images by {extractor.name}")


@data_app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="a folder for 00001.png and so on")],
    preset: PresetOption = "faces16",
    split: Split = "reference",
    n: Count = None,
    data: Data = None,
    size: Size = None,
    home: Home = HOME,
    settings: Set = None,
) -> None:
    """Write a split as PNG files: exactly the pixels that are trained on, or compared with."""
    _, packed = _packed(preset, data, home, settings, size)
    images, _ = packed.take(split, n or len(packed.indices(split)))
    export_png(images, folder)
    say(f"{len(images):,} images in {folder}")


def _report(packed: Packed) -> None:
    manifest = packed.manifest
    say(packed.summary())
    for name, value in manifest["description"].items():
        if isinstance(value, (str, int)) and name not in ("files", "count"):
            say(f"  {name}: {value}")
    if manifest["duplicates"]:
        say(f"{manifest['duplicates']:,} images are there more than once")
    for reject in manifest["rejects"]:
        say(f"not used: {reject['name']}: {reject['reason']}")
