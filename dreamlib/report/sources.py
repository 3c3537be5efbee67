"""Images that a run keeps in its files: read for figures, never generated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dreamlib.evaluation.results import Study
from dreamlib.runs.run import Run
from dreamlib.sampling.image_store import ImageStore, image_stores
from dreamlib.utils import files
from dreamlib.utils.errors import RunError


def newest(run: Run, *, untrained: bool = False) -> ImageStore:
    """The generated images of the latest step, those by the run's own sampler settings first.

    RunError naming the command when the run keeps none.
    """
    own = run.config.sample.model_dump(mode="json")
    stores = [store for store in image_stores(run) if (store.step is None) == untrained]
    if not stores:
        kind = "images of the untrained network" if untrained else "generated images"
        how = "evaluate RUN --set evaluate.anchors=true" if untrained else "sample RUN"
        raise RunError(f"{run.folder} keeps no {kind} yet: run `dreamlib {how}`")
    return max(stores, key=lambda store: (store.step or 0, store.sample == own, store.folder.name))


def scored_images(run: Run, study: Study) -> ImageStore | None:
    """The folder of images that were scored, by weights and sampler; None when it is not here.

    Scores do not tell on which device they were made: of two such folders the fuller one is taken.
    """
    stores = [
        store
        for store in image_stores(run)
        if store.identity.get("weights") == study.facts["weights"]
        and store.sample == study.facts["sample"]
    ]
    return max(stores, key=lambda s: (len(s.manifest["shards"]), s.folder.name), default=None)


def stored(path: Path, command: str, **dims: int) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, among them these of so many dimensions.  RunError naming the
    command that makes it."""
    if not path.exists():
        raise RunError(f"{path.parent.name}/{path.name} is missing: run `dreamlib {command}`")
    try:
        arrays = files.load_arrays(path)
        if odd := [name for name, ndim in dims.items() if arrays[name].ndim != ndim]:
            raise ValueError(f"odd {', '.join(odd)}")
        return arrays
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
    """'dpmpp_2m, 25 steps, eta 1', of a study's facts or a sampler's settings; eta where it adds
    noise."""
    if facts["sampler"] == "gan":
        return "one pass of the generator"
    eta = facts.get("sample", facts).get("eta", 0)
    return f"{facts['sampler']}, {facts['steps']} steps" + (f", eta {eta:g}" if eta else "")


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
