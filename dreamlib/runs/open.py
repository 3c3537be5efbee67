"""Opening a run: its settings, its images, and the way back from a mirror."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dreamlib.config.factory import check, make_source
from dreamlib.config.load import differences, identity, idle, load_config, save_config
from dreamlib.config.schema import Config
from dreamlib.data.dataset import MANIFEST, Packed, empty_pack, open_packed
from dreamlib.data.image_folder import touched
from dreamlib.data.prepare import bring, pack
from dreamlib.runs.folder import RunDir
from dreamlib.runs.lock import alive, read_owner
from dreamlib.runs.mirror.filesystem import Store
from dreamlib.runs.mirror.packs import bring_pack
from dreamlib.runs.mirror.restore import bring_output, fetch_newest
from dreamlib.runs.mirror.store import Mirror
from dreamlib.runs.run import Run
from dreamlib.utils.arguments import listed
from dreamlib.utils.context import Say, current, say, using
from dreamlib.utils.errors import DataError, RunError
from dreamlib.utils.files import check_fields, fingerprint, plain_name, read_json, sweep, write_json
from dreamlib.utils.platform import Places, attached, earlier_outputs, mirror_homes
from dreamlib.utils.progress import Progress
from dreamlib.utils.weights import read_weights


def open_run(
    folder: str | Path,
    preset: str | Path | None = None,
    *,
    overrides: Iterable[str] | str = (),
    mirror: Places = None,
    take_over: bool = False,
    hours: float | None = None,
    images: bool = True,
    progress: Progress | None = None,
    say: Say | None = None,
) -> Run:
    """Open a run folder, or make one from a preset; opening it again continues it.

    Packs the images on first use.  On an existing run, overrides hold for this opening only; one
    in which nothing was saved yet takes the settings of a preset that is named again.
    `mirror` is a folder, or the URL of a store, that keeps copies, or several ("none" for none;
    else DREAMLIB_MIRROR, or a mounted Drive): a run that is there and not here is brought.
    `take_over` takes the run from a process or machine that seems to train it.  `hours` is the
    session's time budget, from the start of this process, for training and what follows it.
    Without `images` (to sample, say), those that are not here are not missed where the network
    knows no labels.  Raises ConfigError, DataError, or RunError when the folder holds a run with
    other settings (naming the fields).
    """
    run_dir = RunDir(folder)
    run_dir.check_writable()
    sweep(run_dir.folder)
    with using(progress=progress, say=say):
        mirrors = mirrors_of(run_dir, mirror)
        if not run_dir.config.exists():
            bring_back(run_dir, mirrors)
        stores = [place.store for place in mirrors]
        config, data = _settle(run_dir, preset, listed(overrides), stores, images)
        return Run(run_dir, config, data, current().say, tuple(mirrors), take_over, hours)


def _settle(
    run_dir: RunDir,
    preset: str | Path | None,
    overrides: list[str],
    stores: Sequence[Store],
    images: bool,
) -> tuple[Config, Packed]:
    """The run's settings and images, recorded in its folder where they are new."""
    fresh = not run_dir.config.exists() or (preset is not None and _untried(run_dir))
    config = _settle_config(run_dir, preset, overrides, fresh)
    recorded = None if fresh else _recorded_data(run_dir)
    data = None if images or recorded is None else _unseen(run_dir, config, recorded)
    if data is None:
        data = _settle_data(run_dir, config, recorded, stores)
        check(config, data)
    for name, need in idle(config).items() if fresh or overrides else ():
        say(f"{name} decides nothing in this run: it needs {need}")
    run_dir.create()
    if fresh:
        save_config(config, run_dir.config)
    if fresh or not run_dir.data.exists():
        say(data.summary())
        write_json(run_dir.data, {"packed": data.folder.name, "fingerprint": data.fingerprint})
    return config, data


def find_run(folder: str | Path, mirror: Places = None) -> bool:
    """Whether there is a run: here, or brought back now.  No folder is made for a wrong name."""
    run_dir = RunDir(folder)
    return run_dir.config.is_file() or bring_back(run_dir, mirrors_of(run_dir, mirror))


def mirrors_of(run_dir: RunDir, named: Places) -> list[Mirror]:
    """A run's places on its mirrors.  RunError when a run lies in its mirror, or that in it: copies
    would be copied, or nothing would be.  A Drive that nobody named is then done without."""
    name = run_dir.name
    homes = [home for home in mirror_homes(named) if _apart(run_dir, home, bool(named))]
    return [Mirror(home, name) for home in homes]


def _apart(run_dir: RunDir, home: Path | str, named: bool) -> bool:
    if isinstance(home, str):
        return True
    run, there = run_dir.folder.resolve(), Path(os.path.abspath(home))
    there = there.parent.resolve() / there.name  # itself it may be a mount that hangs
    if not (run.is_relative_to(there) or there.is_relative_to(run)):
        return True
    lies = f"the run {run} and its mirror {there} lie one in the other"
    if named or os.environ.get("DREAMLIB_MIRROR"):
        raise RunError(f"{lies}: name another folder, on another disk, or none (--mirror none)")
    say(f"{lies}: no copies are made, the run is on the Drive alone")
    return False


def bring_back(run_dir: RunDir, mirrors: Sequence[Mirror]) -> bool:
    """A run that is not here, from an attached output or its mirror -> whether there was one."""
    if bring_output(earlier_outputs(run_dir.name), run_dir):
        return True
    return fetch_newest(mirrors, run_dir)


def _untried(run_dir: RunDir) -> bool:
    """Whether nothing was saved under a run's settings, and nobody is at it: they may be wrong."""
    owner = read_owner(run_dir.lock)
    busy = bool(owner) and alive(owner) is not False
    return not (any(run_dir.checkpoints.glob("step-*")) or busy or run_dir.last_saved())


def _settle_config(
    run_dir: RunDir, preset: str | Path | None, overrides: list[str], fresh: bool
) -> Config:
    """The config asked for, if it is the run's own up to fields that may change."""
    if fresh:
        if preset is None:
            raise RunError(f"{run_dir.folder} holds no run yet: name a preset to begin one")
        return load_config(preset, overrides)
    saved = load_config(run_dir.config)
    wanted = load_config(preset or run_dir.config, overrides)
    changed = differences(identity(saved), identity(wanted))
    if changed:
        raise RunError(
            f"{run_dir.folder} holds a run with other settings ({'; '.join(changed)}): use another "
            "folder, or the run's own settings; or go on from its weights under these settings: "
            f"dreamlib run fork {run_dir.folder} NEW --set {changed[0].partition(':')[0]}=..."
        )
    return wanted


def data_home(run_dir: RunDir) -> Path:
    """Packed images are shared by the runs beside each other; DREAMLIB_DATA names another place."""
    return Path(os.environ.get("DREAMLIB_DATA") or run_dir.folder.parent / "data")


def pack_data(config: Config, home: Path, stores: Sequence[Store] = ()) -> Packed:
    """The config's images, packed once under a name that says which ones they are.

    Looked for in `home`, in data/ of the mirrors, in what is attached on Kaggle, then in the
    source.
    """
    source = make_source(config, home / "downloads")
    name = f"{source.name}-{config.data.size}-{fingerprint(source.description)[:8]}"
    _bring_pack(home / name, stores)
    return pack(source, home / name)


def _bring_pack(folder: Path, stores: Sequence[Store]) -> None:
    """A pack that is not here, from a mirror or an input attached on Kaggle, if it is there."""
    for store in stores:
        bring_pack(store, folder)
    if not (folder / MANIFEST).is_file():
        for place in attached(folder.name, MANIFEST):
            bring(place, folder)


def _settle_data(
    run_dir: RunDir, config: Config, recorded: dict[str, str] | None, stores: Sequence[Store]
) -> Packed:
    """The run's packed images: those it began with, else packed from their source."""
    home, folder = data_home(run_dir), None
    if recorded:
        folder = home / recorded["packed"]
        _bring_pack(folder, stores)
    if folder and (folder / MANIFEST).is_file():
        data = open_packed(folder)
        _check_named(config, load_config(run_dir.config).data.path, data)
    else:
        data = pack_data(config, home, stores)
    if recorded and data.fingerprint != recorded["fingerprint"]:
        raise DataError(
            f"the images in {data.folder} are not those that {run_dir.folder} was begun with: "
            "put the original images back, or begin a new run folder"
        )
    return data


def _check_named(config: Config, path: str | None, data: Packed) -> None:
    """Images named otherwise than by the run's own `path` must be those it was begun with; that
    some have changed since is said."""
    named = config.data.path
    anew = named != path
    if not named or not (anew or (config.data.name == "folder" and touched(Path(named), data))):
        return
    if anew and not Path(named).exists():
        raise DataError(f"there is no {named}: check --data, or leave it out")
    try:
        description = make_source(config, data.folder.parent / "downloads").description
    except DataError:
        if anew:
            raise
        return  # there no more: what is packed is enough
    if all(description.get(key) == value for key, value in data.manifest["description"].items()):
        return
    if anew:
        raise DataError(
            f"{named} does not hold the images that this run was begun with ({data.folder}): leave "
            "--data out to go on with those, or begin a new run folder"
        )
    say(
        f"the images in {named} have changed since they were packed: this run goes on with those "
        "that it was begun with; a new run folder takes the new ones"
    )


def _unseen(run_dir: RunDir, config: Config, recorded: dict[str, str]) -> Packed | None:
    """No images, in the place of those that are not here; None where they are, or are needed."""
    folder = data_home(run_dir) / recorded["packed"]
    if folder.exists() or config.net.conditional or not run_dir.weights.exists():
        return None
    size, card = config.data.size, read_weights(run_dir.weights)[1]
    channels = check_fields(card, net=dict)["net"]["channels"]
    return empty_pack(folder, recorded["fingerprint"], (size, size, channels))


def _recorded_data(run_dir: RunDir) -> dict[str, str] | None:
    if not run_dir.data.exists():
        return None
    try:
        recorded = check_fields(read_json(run_dir.data), packed=str, fingerprint=str)
        plain_name(recorded["packed"])
        return recorded
    except ValueError as error:
        raise RunError(
            f"{run_dir.data} is damaged ({error}): restore it from a copy; or delete it, and the "
            "images are packed from their source (a checkpoint knows whether they are its own)"
        ) from error
