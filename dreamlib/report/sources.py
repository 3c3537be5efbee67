"""Images that a run keeps in its files: read for figures, never generated."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamlib.evaluation.results import Study
from dreamlib.runs.run import Run
from dreamlib.utils import files
from dreamlib.utils.errors import RunError


@dataclass(frozen=True)
class Kept:
    """A folder of generated shards, and what its manifest says of them."""

    folder: Path
    fingerprint: str
    sample: dict[str, Any]  # the sampler's settings
    shards: dict[str, str]  # number -> SHA-256 of the images
    weights: str  # SHA-256 of the generator's weights; "initial" for the untrained network

    @property
    def step(self) -> int | None:
        """Of training, from the folder's name; None for the untrained network."""
        found = re.search(r"-step(\d+)-", self.folder.name)
        return int(found[1]) if found else None

    def shard(self, number: int) -> np.ndarray | None:
        """A shard that the manifest vouches for, uint8 [N,H,W,C], else None."""
        images = files.read_npy(self.folder / f"shard-{number:05d}.npy")
        if images is None or files.sha256_array(images) != self.shards.get(str(number)):
            return None
        return images

    def images(self, n: int) -> np.ndarray:
        """The first n images, or as many as there are without a gap: uint8 [N,H,W,C]."""
        shards: list[np.ndarray] = []
        while sum(map(len, shards)) < n and (shard := self.shard(len(shards))) is not None:
            shards.append(shard)
        return np.concatenate(shards)[:n]


def kept_folders(run: Run) -> list[Kept]:
    """Every folder of generated images whose manifest and first shard can be read, by name."""
    folders = []
    for path in sorted(run.dir.generated.glob("*/manifest.json")):
        try:
            kinds = {"identity": dict, "fingerprint": str, "shards": dict}
            manifest = files.check_fields(files.read_json(path), **kinds)
        except ValueError:
            continue  # damaged: as good as not there, and made again by `sample`
        sample, weights = (manifest["identity"].get(name) for name in ("sample", "weights"))
        facts = sample or {}, manifest["shards"], weights or ""
        folders.append(Kept(path.parent, manifest["fingerprint"], *facts))
    return [kept for kept in folders if kept.shard(0) is not None]


def newest(run: Run, *, untrained: bool = False) -> Kept:
    """The generated images of the latest step, those by the run's own sampler settings first.

    RunError naming the command when the run keeps none.
    """
    own = run.config.sample.model_dump(mode="json")
    folders = [kept for kept in kept_folders(run) if (kept.step is None) == untrained]
    if not folders:
        kind = "images of the untrained network" if untrained else "generated images"
        how = "evaluate RUN --set evaluate.anchors=true" if untrained else "sample RUN"
        raise RunError(f"{run.folder} keeps no {kind} yet: run `dreamlib {how}`")
    return max(folders, key=lambda kept: (kept.step or 0, kept.sample == own, kept.folder.name))


def scored_images(run: Run, study: Study) -> Kept | None:
    """The folder of images that were scored, by weights and sampler; None when it is not here.

    Scores do not tell on which device they were made: of two such folders the fuller one is taken.
    """
    wanted = study.facts["weights"], study.facts["sample"]
    folders = [kept for kept in kept_folders(run) if (kept.weights, kept.sample) == wanted]
    return max(folders, key=lambda kept: (len(kept.shards), kept.folder.name), default=None)


def stored(path: Path, command: str, **dims: int) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, among them these of so many dimensions.  RunError naming the
    command that makes it."""
    if not path.exists():
        raise RunError(f"{path.parent.name}/{path.name} is missing: run `dreamlib {command}`")
    try:
        found = files.load_arrays(path)
        if odd := [name for name, ndim in dims.items() if found[name].ndim != ndim]:
            raise ValueError(f"odd {', '.join(odd)}")
        return found
    except files.DAMAGED as error:
        raise RunError(
            f"{path} is damaged ({error}): delete it and run `dreamlib {command}`"
        ) from error


# --------------------------------------------------------------------------- footers


def name_of(run: Run) -> str:
    """'demo · faces16 · faces 16×16'"""
    data = run.config.data
    return f"{folder_name(run)} · {run.config.preset} · {data.name} {data.size}×{data.size}"


def folder_name(run: Run) -> str:
    return files.readable(run.folder.resolve().name)


def way_of(facts: dict[str, Any]) -> str:
    """'dpmpp_2m, 25 steps', of a study's facts or a sampler's settings."""
    if facts["sampler"] == "gan":
        return "one pass of the generator"
    return f"{facts['sampler']}, {facts['steps']} steps"


def sampler_of(sample: dict[str, Any]) -> str:
    """'dpmpp_2m, 25 steps, karras · sampler seed 0'"""
    spacing = "" if sample["sampler"] == "gan" else f", {sample['spacing']}"
    return f"{way_of(sample)}{spacing} · sampler seed {sample['seed']}"


def study_footer(run: Run, study: Study) -> str:
    """Run, step, N, real images, extractor, sampler: everything that a score depends on."""
    facts = study.facts
    sizes = ", ".join(f"{n:,}" for n in facts["sizes"])
    return (
        f"{folder_name(run)} · {facts['preset']} · step {facts['step']:,} · N = {sizes} · "
        f"{study.rows[0].n_real:,} real images · {extractor_of(facts)} · "
        f"{way_of(facts)}"
    )


def extractor_of(facts: dict[str, Any]) -> str:
    """The extractor's name and the first digits of its weights' hash."""
    return facts["extractor"].rsplit("-", 1)[0]
