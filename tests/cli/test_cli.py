"""The commands, as a user types them: what they promise, and every kind of bad input."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.timing import meta
from dreamlib.config.factory import make_extractor
from dreamlib.config.load import load_config
from dreamlib.data.dataset import open_packed
from dreamlib.evaluation.results import read_scores
from dreamlib.metrics.features import extract
from dreamlib.utils.errors import what_failed
from dreamlib.utils.files import write_atomic
from tests.conftest import TINY


@pytest.fixture
def dreamlib(tmp_path, data_home, monkeypatch, program):
    """dreamlib("train", "x") is `dreamlib train x`, in tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    return program()


def tiny_words(*more: str) -> list[str]:
    return [word for setting in [*TINY, *more] for word in ("--set", setting)]


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "trained")
    return tmp_path / "trained"


@pytest.mark.slow  # tests/cli/test_commands.py runs README's, too
def test_train_sample_evaluate_figures(dreamlib, tmp_path):
    out = dreamlib.done("train", "r", "--preset", "faces16", *tiny_words())
    assert "FRESH START because" in out
    assert "finished: r" in out
    assert "FINISHED at step 8" in dreamlib.done("train", "r")
    dreamlib.done("sample", "r", "--n", "12", "--png", "pngs")
    assert len(list((tmp_path / "pngs").glob("*.png"))) == 12
    dreamlib.done("sample", "r", "--interpolate", "--ends", "3", "4")
    assert (tmp_path / "r/samples/interpolation-3-4.png").exists()
    assert "| generated | held-out real |" in dreamlib.done("evaluate", "r")
    (tmp_path / "pngs").rename(tmp_path / "theirs")
    out = dreamlib.done("evaluate", "r", "--images", "theirs", "--n", "12")
    assert "Other images:" in out
    (score, *_) = [each for each in read_scores(tmp_path / "r").guests if each.images == "theirs"]
    assert (score.metric, score.n, score.n_real) == ("FD[classifier]", 12, 60)
    assert "part 1/2 is ready" in dreamlib.done("evaluate", "r", "--part", "1/2")
    assert "within two standard errors" in dreamlib.done("compare", "r", "r", "--n", "60")
    dreamlib.done("figures", "r")
    for name in ("curves.png", "fd_against_n.pdf", "scores.tex"):
        assert (tmp_path / "r/figures" / name).stat().st_size > 100


def test_a_name_makes_a_fresh_folder(dreamlib, tmp_path):
    for folder in ("hw3", "hw3-2"):
        dreamlib.done("train", "--name", "hw3", "--preset", "faces16", *tiny_words())
        assert (tmp_path / "runs" / folder / "weights/card.json").exists()


def test_explain_doctor_and_data(dreamlib, tmp_path):
    with meta():  # counted, not computed
        out = dreamlib.done("explain", "celeba64")
    assert "54,846,979" in out
    out = dreamlib.done("explain", "faces16", "--batch", "4", "--set", "train.device=cpu")
    assert 0.02 < float(re.search(r"memory of a step +([\d.]+) GiB for 4 images", out)[1]) < 2
    out = dreamlib.done("doctor")
    for word in ("precision", "because", "pt_inception", "free here"):
        assert word in out
    out = dreamlib.done("data", "verify", "faces16", *tiny_words())
    assert "240 images" in out


def test_packed_images_are_shown_exported_and_described(dreamlib, tmp_path, data_home):
    out = dreamlib.done("data", "show", "faces16", *tiny_words())
    (folder,) = {path.parent for path in data_home.glob("faces-16-*/contact-sheet-train.png")}
    packed = open_packed(folder)
    for split, count in packed.manifest["splits"].items():
        assert f"{split}: {count} images" in out
        with Image.open(folder / f"contact-sheet-{split}.png") as sheet:
            assert min(sheet.size) > 400
    smiles = np.mean(packed.labels[packed.indices("train"), 4] == 0)
    assert f"mouth: smile {100 * smiles:.1f} %" in out
    dreamlib.done("data", "export", "png", "--split", "floor", "--n", "5", *tiny_words())
    pictures = [np.array(Image.open(path)) for path in sorted((tmp_path / "png").iterdir())]
    np.testing.assert_array_equal(pictures, packed.take("floor", 5)[0])
    out = dreamlib.done("data", "stats", "faces.npz", *tiny_words())
    stats = np.load(tmp_path / "faces.npz")
    assert stats["mu"].shape == stats["sigma"].shape[:1] == stats["sigma"].shape[1:]
    config = load_config("faces16", TINY)
    extractor = make_extractor(config, packed, torch.device("cpu"))
    features = extract(packed.take("reference", 60)[0], extractor)
    np.testing.assert_allclose(stats["mu"], features.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["sigma"], np.cov(features.T), rtol=1e-3, atol=1e-5)
    assert str(stats["data"]) == packed.fingerprint
    for wrong in ("5000", "0", "-1"):
        assert dreamlib("data", "export", "png2", "--n", wrong, *tiny_words())[0] == 2
        assert not (tmp_path / "png2").exists()


def test_unused_images_are_listed(dreamlib, tmp_path):
    for i in range(40):
        folder = tmp_path / "cats"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (6 * i, 30, 200 - i)).save(folder / f"{i}.png")
    (tmp_path / "cats/notes.jpg").write_text("not an image")
    out = dreamlib.done("data", "prepare", "cats64", "--size", "16", "--data", str(folder))
    assert "40 images" in out
    assert "not used: notes.jpg" in out


NEW = ["train", "r", "--preset"]
SET = ["train", "r", "--preset", "faces16", "--set"]
# What is typed -> what the error says
BAD = [
    ([*NEW, "faces61"], ["did you mean faces16"]),
    (["train", "r"], ["r holds no run yet", "preset"]),
    ([*SET, "train.bacth=3"], ["train.bacth", "did you mean batch"]),
    ([*NEW, "cats64", "--data", "empty"], ["empty", "image"]),
    ([*NEW, "cats64", "--data", "nowhere"], ["nowhere"]),
    ([*NEW, "cats64"], ["--data"]),
    ([*NEW, "cats64", "--data", "texts"], ["texts", "image"]),
    (["train", "--preset", "faces16"], ["--name"]),
    (["sample", "nowhere"], ["nowhere holds no run", "dreamlib train"]),
    (["sample", "trained", "--set", "sample.steps=99999"], ["sample.steps", "40"]),
    # few images: they are packed before the network is tried
    ([*NEW, "faces16", *tiny_words("net.widths=[10]")], ["net does not fit", "[10]"]),
    ([*NEW, "faces16", *tiny_words("train.length=50 %")], ["train.length"]),
    (["train", "trained", "--set", "train.lr=0.5"], ["train.lr: 0.002 -> 0.5", "another folder"]),
    (["train", "trained", "--hours", "nan"], ["--hours is nan", "finite"]),
    (["train", "file/r", "--preset", "faces16"], ["cannot write", "file/r"]),
    (["evaluate", "trained", "--n", "20", "--n", "5000"], ["5,000", "60"]),
    (
        ["evaluate", "trained", "--set", "evaluate.extractor=inception"],
        ["pt_inception", "DREAMLIB_WEIGHTS"],
    ),
    (["evaluate"], ["name a run folder", "--images"]),
    (["evaluate", "trained", "--reference", "texts"], ["--images", "--diffusers"]),
    (["evaluate", "--images", "texts"], ["--out"]),
    (["evaluate", "trained", "--images", "texts"], ["texts holds no images"]),
    (["evaluate", "trained", "--images", "texts", "--diffusers", "x"], ["--images or --diffusers"]),
    (["evaluate", "trained", "--steps", "5"], ["--steps", "--images", "--set"]),
    (["evaluate", "trained", "--n", "1"], ["N is [1]", "equal to 2"]),
    (["evaluate", "trained", "--part", "3/2"], ["part 3 of 2"]),
    (["evaluate", "trained", "--part", "1of2"], ["--part reads 1/2, not 1of2"]),
    (["evaluate", "--part", "1/2"], ["--part needs a run folder"]),
    (["compare", "trained", "nowhere"], ["nowhere holds no run"]),
    (
        ["ablate", "faces16", "--steps", "5", "--losses", "magic"],
        ["unknown losses magic", "conservative"],
    ),
    (["notebooks", "99_none"], ["99_none", "00_complete"]),
    (["notebooks", "00_complete", "-p", "PRESTE=x"], ["PRESTE", "PRESET"]),
    (["sample", "trained", "--frames", "5"], ["--frames", "--interpolate"]),
    (
        ["sample", "trained", "--interpolate", "--set", "sample.sampler=ddpm"],
        ["without fresh noise", "sample.sampler=ddim"],
    ),
]


@pytest.mark.parametrize(("words", "expected"), BAD)
def test_bad_input_is_one_clear_sentence(dreamlib, tmp_path, copy, words, expected):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/readme.txt").write_text("no image")
    (tmp_path / "file").write_text("")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    code, _, err = dreamlib(*words)
    assert code != 0
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for word in expected:
        assert word in err
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    made = {p for p in after.keys() - before.keys() if copy not in p.parents}
    assert not made, "a refused command must not begin a run"
    assert not [p for p in before if after.get(p) != before[p]], "nor change one"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "change its permissions, or use another place"),
        (errno.EDQUOT, "free some space there"),
        (errno.EIO, "check that disk or mount"),
        (errno.EMFILE, r"close some files, or raise the limit \(ulimit -n\)"),
        (errno.ENOTCONN, "mount it again"),
    ],
)
def test_a_call_that_the_system_refuses_is_one_sentence_with_a_remedy(
    dreamlib, copy, monkeypatch, number, remedy
):
    """Also of an open file's read, whose error names no file."""

    def read(path, **words):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pathlib.Path.read_text", read)
    code, _, err = dreamlib("sample", "trained")
    assert code == 2
    again = "then give the same command again"
    assert re.fullmatch(rf"error: .+ cannot be used \([\w /]+\): {remedy}, {again}\n", err)


def test_the_error_of_a_write_names_its_file(tmp_path):
    def write(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError) as error:
        write_atomic(tmp_path / "scores.json", write)
    assert error.value.filename == str(tmp_path / "scores.json")
    assert list(tmp_path.iterdir()) == []

    def cut_short(file):
        raise OSError("38400 requested and 8064 written")  # as numpy says it

    with pytest.raises(OSError) as error:
        write_atomic(tmp_path / "a.npy", cut_short)
    assert "a.npy cannot be used (not written whole: 3" in what_failed(error.value)
    assert "free some space there" in what_failed(error.value)


@pytest.mark.usefixtures("quick_python")
def test_the_module_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "dreamlib", "explain", "nope"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no preset 'nope'")
