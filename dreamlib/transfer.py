"""Beginning a run with what another one has learned."""

from __future__ import annotations

from pathlib import Path

from dreamlib.config import differences
from dreamlib.errors import RunError
from dreamlib.files import read_json, write_json
from dreamlib.run import Run
from dreamlib.runtime.checkpoint import newest_checkpoint, save_checkpoint
from dreamlib.runtime.rundir import RunDir
from dreamlib.train import trainer_of

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
