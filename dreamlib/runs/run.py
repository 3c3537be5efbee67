"""A run: a folder, its config, its images; what training and other long work need of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamlib.config.factory import net_shape
from dreamlib.config.load import differences, identity, make_config
from dreamlib.config.schema import Config
from dreamlib.data.dataset import Packed
from dreamlib.runs.folder import RunDir
from dreamlib.runs.lock import Owner, RemoteOwner
from dreamlib.runs.mirror.filesystem import Folder
from dreamlib.runs.mirror.fleet import LONGEST, Fleet
from dreamlib.runs.mirror.restore import fetch_newest
from dreamlib.runs.mirror.store import Mirror
from dreamlib.runs.mirror.uploader import Uploader
from dreamlib.runs.time_budget import MARGIN, Clock, StopFlag, spare
from dreamlib.utils.arguments import POSITIVE, taken
from dreamlib.utils.context import Say, current, using
from dreamlib.utils.errors import ConfigError, Interrupted, OutOfTime, RunError
from dreamlib.utils.files import fingerprint
from dreamlib.utils.platform import Precision, choose_device, choose_precision, session_limits
from dreamlib.utils.weights import read_weights, write_weights

NO_MIRROR = "there is no mirror: name a folder or a store's URL (--mirror, or DREAMLIB_MIRROR)"


@dataclass(frozen=True)
class Run:
    """An opened run.  Everything it knows lies in its folder."""

    dir: RunDir
    config: Config
    data: Packed
    say: Say  # to whoever opened it
    mirrors: tuple[Mirror, ...] = ()
    take_over: bool = False
    hours: float | None = None  # time budget of this session; None = the config's, the platform's

    @property
    def folder(self) -> Path:
        return self.dir.folder

    @property
    def device(self) -> torch.device:
        return choose_device(self.config.train.device)

    @property
    def precision(self) -> Precision:
        """A GAN is trained in float32: its regularisers are gradients of gradients."""
        name = "fp32" if self.config.model == "gan" else self.config.train.precision
        return choose_precision(name, self.device)

    @property
    def drawing_precision(self) -> Precision:
        """Of images; `precision` unless sample.precision says fp32."""
        exact = self.config.sample.precision == "fp32"
        return choose_precision("fp32", self.device) if exact else self.precision

    @property
    def facts(self) -> dict[str, str]:
        """What a checkpoint must agree with: settings and images."""
        # Defaults are left out, so that a setting added later leaves older runs what they are.
        settings = identity(self.config, exclude_defaults=True)
        return {"config": fingerprint(settings), "data": self.data.fingerprint}

    @property
    def network(self) -> dict[str, Any]:
        """What a reader without this config needs to rebuild the network from its weights."""
        net = net_shape(self.config, self.data.channels, self.data.label_counts)
        if self.config.model == "gan":
            return {"net": net, "model": "gan"}
        return {"net": net, "prediction": self.config.diffusion.prediction}

    @property
    def checkpoint_facts(self) -> dict[str, Any]:
        """What a checkpoint's manifest says of the run it belongs to."""
        settings = {"settings": identity(self.config, exclude_defaults=True)}
        return self.facts | self.network | settings

    def changes(self, manifest: dict[str, Any]) -> list[str]:
        """The fields in which a checkpoint is not this run's: 'train.lr: 0.001 -> 0.002'."""
        found = []
        if manifest.get("config") != self.facts["config"]:
            try:
                settings = manifest.get("settings", {}) | {"sample": {"steps": 1}}  # fits any
                theirs = identity(make_config(settings, "its manifest"))
                found += differences(theirs, identity(self.config)) or ["settings"]
            except ConfigError as error:
                found.append(str(error).replace("\n", "; "))
        if manifest.get("data") != self.data.fingerprint:
            found.append(f"images: {manifest.get('data', '')[:8]} -> {self.data.fingerprint[:8]}")
        return found

    # ------------------------------------------------------------------ weights

    def export_weights(self, step: int, weights: dict[str, Tensor]) -> None:
        """weights/ema.safetensors, then its card: step, hash, settings, images."""
        write_weights(self.dir.weights, step, weights, self.facts | self.network)

    def weights_step(self) -> int | None:
        """The step of the exported weights; None when there are none, or not whole ones."""
        try:
            return self.weights()[1]["step"]
        except RunError:
            return None

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The averaged weights and their card.  Raises RunError when there are none yet."""
        return read_weights(self.dir.weights)

    # ------------------------------------------------------------------ long work

    def budget(self, hours: float | None = None) -> float | None:
        """Hours of this session, from the start of this process; None for as long as it takes."""
        asked = (h for h in (hours, self.hours, self.config.train.hours) if h is not None)
        found = next(asked, session_limits()[0])
        return None if found is None else taken(POSITIVE, found, "the time budget in hours")

    def clock(self, hours: float | None = None) -> Clock:
        """When this session saves, and ends."""
        train, reserve = self.config.train, self.config.train.reserve_minutes
        if reserve is None:
            reserve = session_limits()[1]
        return Clock(self.budget(hours), train.save_minutes, reserve=60 * reserve)

    @contextmanager
    def session(self) -> Iterator[Callable[[], None]]:
        """Sampling or scoring: stops politely (a signal, the session's time budget, whoever else
        may stop it).  What is called when there is a new file worth mirroring."""
        hours, stopped = self.budget(), current().should_stop
        with StopFlag().listening() as flag, ExitStack() as stack:
            fleet: Fleet | None = None

            def keep() -> None:
                nonlocal fleet
                if not fleet:  # the mirror is not bothered before
                    carried = self.fleet().carrying(wait=False, left=lambda: spare(hours))
                    fleet = stack.enter_context(carried)
                fleet.request()

            def stop() -> bool:
                return bool(flag) or spare(hours) <= MARGIN or stopped()

            try:
                with using(say=self.say, should_stop=stop):
                    yield keep
            except Interrupted as error:
                kind, reason = Interrupted, f"asked to stop ({flag.reason})" if flag else ""
                if spare(hours) <= MARGIN:
                    kind = OutOfTime
                    reason = f"the time budget of {hours:g} h since this process began is used up"
                if not reason or reason in str(error):
                    raise
                raise kind(
                    f"{error}: {reason}; what is done is kept, the same command or cell goes on"
                ) from error

    def keep(self) -> None:
        """Have everything worth keeping copied to the mirror, if there is one."""
        with self.session() as keep:
            keep()

    def push(self) -> None:
        """Copy everything worth keeping to the mirror now.  RunError when there is none, or it
        fails."""
        if not self.mirrors:
            raise RunError(NO_MIRROR)
        with self.fleet().carrying() as fleet:
            if not fleet.flush(LONGEST):
                raise RunError(f"mirror: {fleet.report()}")

    def fleet(self) -> Fleet:
        """What carries the run to its mirrors."""
        return Fleet(self.dir, [self._uploader(mirror) for mirror in self.mirrors])

    def _uploader(self, mirror: Mirror) -> Uploader:
        name, store = f"{mirror.under}owner.json", mirror.store
        remote = not isinstance(store, Folder)
        return Uploader(
            mirror,
            RemoteOwner(store, name, mirror.holds_lease) if remote else Owner(mirror.at(name)),
            self.dir,
            self.data,
            minutes=self.config.train.mirror_minutes,
            say=self.say,
            take_over=self.take_over,
        )

    def fetch_newer(self, step: int, mirrors: Sequence[Mirror], stop: Callable[[], bool]) -> None:
        """A newer checkpoint from these mirrors, if it can be had."""
        with using(say=self.say, should_stop=stop):
            fetch_newest(mirrors, self.dir, step)
