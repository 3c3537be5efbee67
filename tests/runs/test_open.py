"""Opening a run: its images are those that it was begun with, whatever is named or has changed."""

from __future__ import annotations

import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from dreamlib.data import dataset as packed
from dreamlib.data.image_folder import folder_source
from dreamlib.data.prepare import pack
from dreamlib.evaluation.evaluate import evaluate
from dreamlib.evaluation.external_images import read_images
from dreamlib.runs.folder import RunDir
from dreamlib.runs.open import data_home, open_run
from dreamlib.training.train import train
from dreamlib.utils.errors import ConfigError, DataError, RunError
from dreamlib.utils.files import read_json, write_json
from tests.conftest import TINY, within

CATS = [*(x for x in TINY if not x.startswith("data.")), "data.size=16", "data.held_out=0.3"]
CATS += ["train.length=4", "train.save_minutes=60", "net.attention=[]"]


def fill(folder, start, stop):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(start, stop):
        noise = np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{k}.png")


@pytest.fixture
def cats(tmp_path, monkeypatch):
    """Opens a run of two class folders -> what is said; `named` is --data."""
    monkeypatch.setenv("DREAMLIB_DATA", str(tmp_path / "data"))  # tests alter their packs
    for k, name in enumerate(("tabby", "manx")):
        fill(tmp_path / "cats" / name, 20 * k, 20 * (k + 1))
    (tmp_path / "cats/notes.txt").write_text("x")
    old = time.time() - 1000
    for path in (tmp_path / "cats").rglob("*"):
        os.utime(path, (old, old))

    def opened(named=None, preset=None):
        said = []
        overrides = [*CATS, *([f"data.path={named}"] if named else [])] if preset else []
        overrides = overrides or ([f"data.path={named}"] if named else [])
        opened.run = open_run(tmp_path / "run", preset, overrides=overrides, say=said.append)
        return said

    opened.first = opened(tmp_path / "cats", "cats64")
    return opened


def test_the_classes_are_said_when_a_run_begins(cats):
    (line,) = [text for text in cats.first if "classes" in text]
    assert line.startswith("40 images in ")
    assert "; classes: manx, tabby; files not looked at: 1 (1 .txt)" in line
    assert cats() == []  # not again


@pytest.mark.parametrize(("bits", "brightest"), [(16, None), (12, 16), (1, 0)])
def test_a_range_far_below_the_types_is_said_once(tmp_path, bits, brightest):
    """As of 12-bit pictures in 16-bit files."""
    for k in range(30):
        values = np.random.default_rng(k).integers(0, 2**bits, (16, 16), dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / f"{k}.png")
    summary = pack(folder_source(tmp_path, 16), tmp_path / ".pack").summary()
    assert ("the brightest pixel" in summary) == (brightest is not None)
    assert brightest is None or f"the brightest pixel is {brightest} of 255" in summary
    said = []
    within(read_images, tmp_path, say=said.append)
    assert [("the brightest pixel" in text) for text in said] == [True] * (brightest is not None)


def test_images_named_anew_must_be_the_runs_own(cats, tmp_path):
    shutil.copytree(tmp_path / "cats", tmp_path / "copy")
    assert cats(tmp_path / "copy") == []
    with pytest.raises(DataError, match=r"there is no .*nowhere: check --data"):
        cats(tmp_path / "nowhere")
    fill(tmp_path / "copy/manx", 50, 51)
    with pytest.raises(DataError, match=r"copy does not hold the images .*leave --data out"):
        cats(tmp_path / "copy")


def test_images_that_have_changed_since_are_noticed_and_need_not_be_there(cats, tmp_path):
    path = tmp_path / "cats/manx/30.png"
    data = path.read_bytes()
    path.write_bytes(data)
    os.utime(path, (time.time() + 60,) * 2)  # touched, and the same
    assert cats() == []
    path.write_bytes((tmp_path / "cats/manx/31.png").read_bytes())
    os.utime(path, (time.time() + 60,) * 2)
    assert [text.partition(":")[0] for text in cats()] == [
        f"the images in {tmp_path / 'cats'} have changed since they were packed"
    ]
    path.write_bytes(data)
    os.utime(path, (0, 0))
    fill(tmp_path / "cats/manx", 50, 51)
    os.utime(tmp_path / "cats/manx/50.png", (0, 0))
    assert "have changed" in cats()[0]
    shutil.rmtree(tmp_path / "cats")
    assert cats() == []


def test_images_of_ones_own_are_no_setting_of_a_drawn_set(tmp_path):
    for name in ("faces", "digits"):
        overrides = [f"data.name={name}", "data.path=typo"]
        with pytest.raises(ConfigError, match=f"data.name={name} needs no images.* typo: leave"):
            open_run(tmp_path / name, "faces16", overrides=overrides)


def test_a_packs_name_is_one_component(cats, tmp_path):
    """It is read from a file that somebody else may have written."""
    recorded = read_json(tmp_path / "run/data.json")
    for name in ("../data/" + recorded["packed"], "/etc", "..", ""):
        write_json(tmp_path / "run/data.json", recorded | {"packed": name})
        with pytest.raises(RunError, match=r"data\.json is damaged .*no plain name"):
            cats()


def altered(run):
    """One byte of the packed images, at equal size."""
    path = run.data.folder / "images.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("soon", [60.0, 0.0])
def test_images_that_were_altered_in_place_stop_the_training(cats, monkeypatch, soon):
    """Known before the first step, where the images are few; else before anything is saved."""
    monkeypatch.setattr(packed, "SOON", soon)
    altered(cats.run)
    cats()
    steps = []
    with pytest.raises(DataError, match=r"images.npy has changed .*delete that folder"):
        steps.extend(tick.step for tick in train(cats.run))
    assert not steps or not soon
    assert not list(cats.run.dir.checkpoints.glob("*"))
    assert cats.run.dir.status()["state"] == "failed"


def test_images_that_were_altered_in_place_are_not_compared_with(cats, monkeypatch):
    altered(cats.run)
    monkeypatch.setattr(packed, "SOON", 60.0)
    with pytest.raises(DataError, match=r"images.npy has changed"):
        evaluate(cats.run)
    assert not cats.run.dir.evaluation.exists()


@pytest.mark.parametrize(("told", "place"), [("", "runs/data"), ("elsewhere", "elsewhere")])
def test_a_place_for_images_that_is_named_empty_is_none(tmp_path, monkeypatch, told, place):
    """Else packed images would lie in whatever folder the command was given in."""
    monkeypatch.setenv("DREAMLIB_DATA", str(tmp_path / told) if told else "")
    assert data_home(RunDir(tmp_path / "runs/one")) == tmp_path / place
