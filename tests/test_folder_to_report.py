"""Photographs of any size, from their folder to a report: what people with cats begin with."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from dreamlib.cli.main import app
from dreamlib.config import factory as build
from dreamlib.data.faces import ATTRIBUTES, draw_faces
from dreamlib.metrics.features import extract
from tests.metrics.test_inception import stand_in as stand_in_for
from tests.metrics.test_inception import weights as random_inception

inception = random_inception  # a fixture
SIZES = [(128, 128), (200, 150), (96, 160), (300, 129), (64, 70), (131, 256)]  # width, height
# Little work in networks of full size.
LITTLE = [
    *("train.length=2", "train.batch=4", "train.log_every=1", "train.device=cpu"),
    *("evaluate.n=[10, 20]", "evaluate.reference=20", "evaluate.lpips=false"),
    *("sample.batch=10", "sample.shard=20", "data.held_out=0.25"),
]


def photographs(folder, count=160):
    """Drawn faces at 128 pixels, each in a frame of another size and format; two that are none."""
    faces, labels = draw_faces(range(count), 128)
    styles = ATTRIBUTES["hair_style"]
    column = list(ATTRIBUTES).index("hair_style")
    for i, (face, row) in enumerate(zip(faces, labels)):
        place = folder / styles[row[column]]
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(face).resize(SIZES[i % len(SIZES)], Image.Resampling.BICUBIC)
        if i % 5 == 0:
            picture = picture.convert("L")
        picture.save(place / f"{i:04d}.{('png', 'jpg', 'webp')[i % 3]}")
    (folder / "long" / "torn.jpg").write_bytes(b"\xff\xd8\xff not an image")
    (folder / "long" / "notes.txt").write_text("not an image either")


@pytest.fixture
def _stand_ins(tmp_path, inception, monkeypatch):
    """Random weights in the place of Inception's, which nothing here can download."""
    monkeypatch.setenv("DREAMLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(build, "INCEPTION", stand_in_for(build.INCEPTION, inception))
    monkeypatch.setenv("DREAMLIB_WEIGHTS", str(inception.parent))
    monkeypatch.setitem(extract.__kwdefaults__, "batch", 10)


@pytest.mark.slow
@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize(
    ("preset", "size", "own"),
    [("cats128-fast", 128, ["sample.steps=2"]), ("gan-cats64", 64, ["gan.path_every=1"])],
)
def test_from_a_folder_of_mixed_sizes_to_a_report(preset, size, own, tmp_path):
    photographs(tmp_path / "cats")
    run, sets = tmp_path / "run", [word for s in [*LITTLE, *own] for word in ("--set", s)]
    for command, *more in (
        ["train", "--preset", preset, "--data", str(tmp_path / "cats"), *sets],
        ["sample", "--n", "20"],
        ["evaluate"],
        ["figures"],
    ):
        app([command, str(run), *more], standalone_mode=False)

    (manifest,) = (tmp_path / "data").glob("*/manifest.json")
    packed = json.loads(manifest.read_text())
    assert sum(packed["splits"].values()) == 160  # the torn file is none
    assert "torn.jpg" in json.dumps(packed)
    (shard, *_) = sorted((run / "generated").glob("*/shard-00000.npy"))
    images = np.load(shard)
    assert images.shape == (20, size, size, 3)
    assert len(np.unique(images.reshape(20, -1), axis=0)) == 20
    scores = json.loads((run / "evaluation" / "scores.json").read_text())
    assert {row["n"] for row in scores["rows"]} == {10, 20}
    assert scores["facts"]["metric"] == "FID"
    assert (run / "figures" / "report.html").stat().st_size > 100_000
    assert (run / "figures" / "results.zip").exists()
