"""Tiny runs of a GAN, beside those of a diffusion model."""

from __future__ import annotations

import pytest

from dreamlib.runs.open import open_run
from dreamlib.runs.run import Run
from tests.conftest import train_for

TINY_GAN = [
    *("data.train=120", "data.reference=60", "data.floor=60"),
    "net.widths=[8, 12, 16]",
    *("gan.z=8", "gan.w=8", "gan.mapping=2", "gan.r1_every=3", "gan.path_every=2"),
    *("gan.r1=null", "gan.path=null", "gan.mixing=0.9"),  # everything that there is
    "gan.ada_images=128",  # p moves at once
    *("train.length=8", "train.batch=8", "train.log_every=4", "train.device=cpu"),
    *("sample.batch=8", "sample.shard=10", "evaluate.n=[20, 60]", "evaluate.reference=60"),
]


@pytest.fixture
def tiny_gan(tmp_path, data_home, monkeypatch):
    """open_gan(name, *more overrides) -> a Run under tmp_path."""
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))

    def open_gan(name: str = "gan", *more: str) -> Run:
        settings = [*TINY_GAN, *more]
        return open_run(tmp_path / name, "gan-faces16", overrides=settings, say=lambda text: None)

    return open_gan


@pytest.fixture(scope="module")
def trained_gan(tmp_path_factory, data_home):
    """A finished run for everything that only reads it, or draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMLIB_DATA", str(data_home))
        folder = tmp_path_factory.mktemp("runs") / "gan"
        run = open_run(folder, "gan-faces16", overrides=TINY_GAN, say=lambda text: None)
        train_for(run)
        yield run


@pytest.fixture(params=["diffusion", "gan"])
def opened(request, tiny, tiny_gan):
    """Opens a tiny run of either model."""
    return {"diffusion": tiny, "gan": tiny_gan}[request.param]
