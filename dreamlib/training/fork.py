"""A run that begins with another one's weights: a fork goes on from a step, `init_from` anew."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from dreamlib.config.factory import rate_at
from dreamlib.config.load import differences, identity, load_config
from dreamlib.runs.checkpoints import (
    Checkpoint,
    newest_checkpoint,
    save_checkpoint,
    whole_checkpoints,
)
from dreamlib.runs.folder import RunDir
from dreamlib.runs.open import open_run
from dreamlib.runs.run import Run
from dreamlib.training.train import trainer_of
from dreamlib.utils.context import Say, say, using
from dreamlib.utils.errors import RunError
from dreamlib.utils.files import read_json, write_json
from dreamlib.utils.progress import Progress
from dreamlib.utils.weights import averaged_of

CARRIED = ("net", "ema", "judge")  # parts of a state that are weights


def init_from(run: Run, source: str | Path) -> None:
    """Give a run that has not begun the weights and averaged weights of another one's newest
    checkpoint; steps, optimizers and log begin anew.

    Where they came from is recorded in run.json; for a run that was begun from there already
    nothing is done, so that the same command goes on.  RunError when the run was begun otherwise,
    when `source` has no checkpoint, or its networks are not of the same shape.
    """
    there, lineage = RunDir(source), run.folder / "run.json"
    if newest_checkpoint(run.dir.checkpoints) is not None:
        parent = read_json(lineage).get("parent", {}) if lineage.exists() else {}
        if parent.get("run") != there.identity() or parent.get("how") != "init":
            raise RunError(
                f"{run.folder} has begun already, and not from {source}: leave --init-from out to "
                "go on, or name a new folder"
            )
        return
    origin = newest_checkpoint(there.checkpoints)
    if origin is None:
        raise RunError(f"{source} has no checkpoint to begin from: train it first")
    misfit = differences({key: origin.manifest.get(key) for key in run.network}, run.network)
    if misfit:
        raise RunError(f"the weights of {source} do not fit this run ({'; '.join(misfit)})")
    state, theirs = trainer_of(run).state_dict(), origin.load()
    state |= {name: theirs[name] for name in CARRIED if name in theirs}
    parent = {"how": "init", "run": there.identity(), "folder": str(there.folder)}
    parent |= {"step": origin.step, "sha256": origin.manifest["sha256"]}
    write_json(lineage, {"id": run.dir.identity(), "parent": parent})
    save_checkpoint(run.dir.checkpoints, 0, state, run.checkpoint_facts)
    run.say(f"BEGUN with the weights of step {origin.step:,} of {source}")


def fork_run(
    source: str | Path,
    folder: str | Path,
    *,
    step: int | None = None,
    overrides: Iterable[str] = (),
    progress: Progress | None = None,
    say: Say | None = None,
) -> Run:
    """A new run that goes on from a checkpoint of another one, under changed settings.

    `step` names one of the checkpoints that `source` keeps; the newest without it.  Where it came
    from is recorded in run.json.  RunError when `folder` is taken, or the weights would not fit.
    """
    there, new = RunDir(source), Path(folder)
    if new.exists():
        raise RunError(f"{new} is there already: name a folder for the new run")
    origin = newest_checkpoint(there.checkpoints) if step is None else _at(there, step)
    if origin is None:
        raise RunError(f"{source} has no checkpoint to begin from: train it first")
    with using(progress=progress, say=say):
        _fork(there, new, origin, overrides)
        return open_run(new, mirror="none")


def _fork(there: RunDir, new: Path, origin: Checkpoint, overrides: Iterable[str]) -> None:
    source, state = there.folder, origin.load()
    # Made beside its place, so that a fork cut short is never taken for a run that begins anew.
    beside = new.with_name(f".{new.name}.fork")
    shutil.rmtree(beside, ignore_errors=True)
    run = open_run(beside, there.config, overrides=overrides, mirror="none")
    misfit = differences({key: origin.manifest.get(key) for key in run.network}, dict(run.network))
    if misfit:
        shutil.rmtree(beside)
        raise RunError(f"the weights of {source} do not fit these settings ({'; '.join(misfit)})")
    save_checkpoint(run.dir.checkpoints, origin.step, state, run.checkpoint_facts)
    if origin.step:
        run.export_weights(origin.step, averaged_of(state))
    if there.log.exists():
        shutil.copyfile(there.log, run.dir.log)
        run.dir.cut_log(origin.step)
    config = load_config(there.config)
    changed = differences(identity(config), identity(run.config))
    parent = {"run": there.identity(), "folder": str(there.folder), "step": origin.step}
    parent |= {"sha256": origin.manifest["sha256"], "changed": changed}
    write_json(run.dir.folder / "run.json", {"id": run.dir.identity(), "parent": parent})
    run.dir.set_status("forked", step=origin.step, saved=origin.step)
    beside.rename(new)
    say(f"FORKED {new} from step {origin.step:,} of {source}; changed: {'; '.join(changed) or '-'}")
    images = len(run.data.indices("train"))
    before = rate_at(config, max(origin.step - 1, 0), images)
    after = rate_at(run.config, origin.step, images)
    if not 0.5 <= after / before <= 2:
        say(f"the learning rate goes from {before:.2g} to {after:.2g} there: train.lr sets it")


def _at(run: RunDir, step: int) -> Checkpoint:
    found = {c.step: c for c in whole_checkpoints(run.checkpoints)}
    if step not in found:
        have = ", ".join(f"{s:,}" for s in sorted(found)) or "none"
        raise RunError(f"{run.folder} keeps no whole checkpoint of step {step:,}: it has {have}")
    return found[step]
