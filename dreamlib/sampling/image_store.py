"""Generated images on disk: shards of consecutive ones, and a manifest of what made them."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamlib.config.factory import make_drawing, make_net
from dreamlib.runs.run import Run
from dreamlib.utils import files
from dreamlib.utils.errors import RunError

log = logging.getLogger(__name__)


class ImageStore:
    """A folder of generated images, as it lies there."""

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.fingerprint = folder, manifest["fingerprint"]
        self.manifest = manifest  # also: identity, shards: number -> hash, torch: -> version

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the pixels."""
        return self.manifest["identity"]

    @property
    def sample(self) -> dict[str, Any]:
        """The sampler's settings."""
        return self.identity.get("sample") or {}

    @property
    def step(self) -> int | None:
        """Of training, from the folder's name; None for the untrained network."""
        match = re.search(r"-step(\d+)-", self.folder.name)
        return int(match[1]) if match else None

    def path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.npy"

    def has(self, shard: int) -> bool:
        return str(shard) in self.manifest["shards"]

    def read(self, shard: int) -> np.ndarray | None:
        """A shard that the manifest vouches for, uint8 [N,H,W,C], else None."""
        images, sha256 = files.read_npy(self.path(shard)), self.manifest["shards"].get(str(shard))
        return None if images is None or files.sha256_array(images) != sha256 else images

    def images(self, n: int) -> np.ndarray:
        """The first n images, or as many as there are without a gap: uint8 [N,H,W,C]."""
        shards: list[np.ndarray] = []
        while sum(map(len, shards)) < n and (shard := self.read(len(shards))) is not None:
            shards.append(shard)
        return np.concatenate(shards)[:n]


def image_stores(run: Run) -> list[ImageStore]:
    """Every folder of generated images whose manifest and first shard can be read, by name."""
    stores = []
    for path in sorted(run.dir.generated.glob("*/manifest.json")):
        try:
            stores.append(ImageStore(path.parent, _read_manifest(path)))
        except ValueError:
            continue  # damaged: as good as not there, and made again by `sample`
    return [store for store in stores if store.read(0) is not None]


def _read_manifest(path: Path) -> dict[str, Any]:
    fields = {"identity": dict, "fingerprint": str, "shards": dict}
    manifest = files.check_fields(files.read_json(path), **fields)
    return files.check_fields({"torch": {}} | manifest, torch=dict)  # older ones have no versions


class Shards(ImageStore):
    """The store of a run's own settings and weights, which draws what is not there yet."""

    def __init__(self, run: Run, untrained: bool = False):
        self.run, self.untrained = run, untrained
        sample = run.config.sample
        self.size = sample.shard
        made_by = self._made_by()
        step = "untrained" if untrained else f"step{self.weights[1]['step']}"
        settings = f"{sample.sampler}-{sample.steps}-seed{sample.seed}"
        self.name = f"{settings}-{step}-{made_by['fingerprint'][:8]}"
        super().__init__(run.dir.generated / self.name, made_by)
        files.sweep(self.folder)
        self.manifest = self._stored()

    @cached_property
    def weights(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read once, so that every image and the record of them are of the same weights."""
        return self.run.weights()

    def _made_by(self) -> dict[str, Any]:
        """The manifest of an empty folder."""
        run, gan = self.run, self.run.config.model == "gan"
        identity: dict[str, Any] = {"truncation": run.config.gan.truncation} if gan else {}
        identity |= {
            "weights": "initial" if self.untrained else self.weights[1]["sha256"],
            "sample": run.config.sample.model_dump(mode="json"),
            "precision": run.drawing_precision.name,
            "device": run.device.type,
        }
        made_by = {"identity": identity, "fingerprint": files.fingerprint(identity)}
        return made_by | {"shards": {}, "torch": {}}

    def _stored(self) -> dict[str, Any]:
        path = self.folder / "manifest.json"
        if path.exists():
            try:
                return _read_manifest(path)
            except ValueError:
                log.warning("%s is damaged: the images are generated again", path)
        return self._made_by()

    def plan(self, seeds: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Shard numbers, each with the images wanted of it."""
        shards = groupby(sorted(set(seeds)), lambda seed: seed // self.size)
        return [(shard, list(wanted)) for shard, wanted in shards]

    def write(self, shard: int, images: np.ndarray) -> None:
        """The shard, then its line in the manifest, which other processes may write to as well."""
        files.write_npy(self.path(shard), images)
        with files.exclusive(self.folder / ".lock"):
            self.manifest = self._stored()
            self.manifest["shards"][str(shard)] = files.sha256_array(images)
            self.manifest["torch"][str(shard)] = torch.__version__
            files.write_json(self.folder / "manifest.json", self.manifest)

    def check_versions(self, seeds: Sequence[int]) -> None:
        """Say when the images' shards were drawn by several versions of torch: bits may differ."""
        drawn_by = self.manifest["torch"]
        numbers = [shard for shard, _ in self.plan(seeds) if self.has(shard)]
        versions = {drawn_by.get(str(shard), "an older one") for shard in numbers}
        if len(versions) > 1:
            self.run.say(
                f"WARNING: images in {self.folder} were drawn by torch {', '.join(versions)}: "
                "delete that folder to have all drawn by one"
            )

    @cached_property
    def net(self) -> torch.nn.Module:
        """The network with the weights to draw with."""
        run = self.run
        net = make_net(run.config, run.data.channels, run.data.label_counts)
        if not self.untrained:
            try:
                net.load_state_dict(self.weights[0])
            except RuntimeError as error:  # torch's word for names or shapes that do not fit
                raise RunError(
                    f"the weights in {run.dir.weights} are those of another network: put the run's "
                    "own back there, or run training again, which writes them"
                ) from error
        return net.to(run.device).eval()

    def draw(self, *what: Any, between: bool = False, **more: Any) -> np.ndarray:
        """What `make_drawing` draws, with these weights."""
        run, settings = self.run, (self.run.drawing_precision, self.run.device)
        drawing = make_drawing(run.config, run.data, self.net, *settings, between=between)
        return drawing(*what, **more)
