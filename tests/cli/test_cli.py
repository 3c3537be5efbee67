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
from dreamlib.cli.main import main
from dreamlib.config.factory import make_extractor
from dreamlib.config.load import load_config
from dreamlib.data.dataset import open_packed
from dreamlib.evaluation.results import read_scores
from dreamlib.metrics.features import extract
from dreamlib.utils.errors import what_failed
from dreamlib.utils.files import write_atomic
from tests.conftest import TINY


@pytest.fixture
def dreamlib(tmp_path, data_home, monkeypatch, capsys):
    """dreamlib("train", "x") -> (exit code, stdout, stderr), run in tmp_path in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dreamlib", *map(str, words)])
        with pytest.raises(SystemExit) as exit:
            main()
        out = capsys.readouterr()
        return exit.value.code or 0, out.out, out.err

    return call


def tiny_words(*more: str) -> list[str]:
    return [word for setting in [*TINY, *more] for word in ("--set", setting)]


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained.folder, tmp_path / "trained")
    return tmp_path / "trained"


@pytest.mark.slow  # tests/cli/test_commands.py runs README's, too
def test_train_sample_evaluate_figures(dreamlib, tmp_path):
    code, out, _ = dreamlib("train", "r", "--preset", "faces16", *tiny_words())
    assert code == 0
    assert "FRESH START because" in out
    assert "finished: r" in out
    code, out, _ = dreamlib("train", "r")
    assert code == 0
    assert "FINISHED at step 8" in out
    code, out, _ = dreamlib("sample", "r", "--n", "12", "--png", "pngs")
    assert code == 0
    assert len(list((tmp_path / "pngs").glob("*.png"))) == 12
    code, out, _ = dreamlib("sample", "r", "--interpolate", "--ends", "3", "4")
    assert (tmp_path / "r/samples/interpolation-3-4.png").exists()
    code, out, _ = dreamlib("evaluate", "r")
    assert code == 0
    assert "| generated | held-out real |" in out
    shutil.copytree(tmp_path / "pngs", tmp_path / "theirs")
    code, out, _ = dreamlib("evaluate", "r", "--images", "theirs", "--n", "12")
    assert code == 0
    assert "Other images:" in out
    (guest, *_) = [row for row in read_scores(tmp_path / "r").guests if row.images == "theirs"]
    assert (guest.metric, guest.n, guest.n_real) == ("FD[classifier]", 12, 60)
    code, out, _ = dreamlib("evaluate", "r", "--part", "1/2")
    assert code == 0
    assert "part 1/2 is ready" in out
    code, out, _ = dreamlib("compare", "r", "r", "--n", "60")
    assert code == 0
    assert "within two standard errors" in out
    code, out, _ = dreamlib("figures", "r")
    assert code == 0
    for name in ("curves.png", "fd_against_n.pdf", "scores.tex"):
        assert (tmp_path / "r/figures" / name).stat().st_size > 100


def test_a_name_makes_a_fresh_folder(dreamlib, tmp_path):
    for folder in ("hw3", "hw3-2"):
        code, _, _ = dreamlib("train", "--name", "hw3", "--preset", "faces16", *tiny_words())
        assert code == 0
        assert (tmp_path / "runs" / folder / "weights/card.json").exists()


def test_explain_doctor_and_data(dreamlib, tmp_path):
    with meta():  # counted, not computed
        code, out, _ = dreamlib("explain", "celeba64")
    assert code == 0
    assert "54,846,979" in out
    code, out, _ = dreamlib("explain", "faces16", "--batch", "4", "--set", "train.device=cpu")
    assert code == 0
    assert 0.02 < float(re.search(r"memory of a step +([\d.]+) GiB for 4 images", out)[1]) < 2
    code, out, _ = dreamlib("doctor")
    assert code == 0
    for word in ("precision", "because", "pt_inception", "free here"):
        assert word in out
    code, out, _ = dreamlib("data", "verify", "faces16", *tiny_words())
    assert code == 0
    assert "240 images" in out


def test_packed_images_are_shown_exported_and_described(dreamlib, tmp_path, data_home):
    code, out, _ = dreamlib("data", "show", "faces16", *tiny_words())
    assert code == 0
    (folder,) = {path.parent for path in data_home.glob("faces-16-*/contact-sheet-train.png")}
    packed = open_packed(folder)
    for split, count in packed.manifest["splits"].items():
        assert f"{split}: {count} images" in out
        with Image.open(folder / f"contact-sheet-{split}.png") as sheet:
            assert min(sheet.size) > 400
    smiles = np.mean(packed.labels[packed.indices("train"), 4] == 0)
    assert f"mouth: smile {100 * smiles:.1f} %" in out
    code, _, _ = dreamlib("data", "export", "png", "--split", "floor", "--n", "5", *tiny_words())
    assert code == 0
    pictures = [np.array(Image.open(path)) for path in sorted((tmp_path / "png").iterdir())]
    np.testing.assert_array_equal(pictures, packed.take("floor", 5)[0])
    code, out, _ = dreamlib("data", "stats", "faces.npz", *tiny_words())
    assert code == 0
    stats = np.load(tmp_path / "faces.npz")
    assert stats["mu"].shape == stats["sigma"].shape[:1] == stats["sigma"].shape[1:]
    config = load_config("faces16", TINY)
    extractor = make_extractor(config, packed, torch.device("cpu"))
    features = extract(packed.take("reference", 60)[0], extractor)
    np.testing.assert_allclose(stats["mu"], features.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["sigma"], np.cov(features.T), rtol=1e-3, atol=1e-5)
    assert str(stats["data"]) == packed.fingerprint
    for wrong in ("5000", "0", "-1"):
        code, out, _ = dreamlib("data", "export", "png2", "--n", wrong, *tiny_words())
        assert code == 2
        assert not (tmp_path / "png2").exists()


def test_unused_images_are_listed(dreamlib, tmp_path):
    for i in range(40):
        folder = tmp_path / "cats"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (6 * i, 30, 200 - i)).save(folder / f"{i}.png")
    (tmp_path / "cats/notes.jpg").write_text("not an image")
    code, out, _ = dreamlib("data", "prepare", "cats64", "--size", "16", "--data", str(folder))
    assert code == 0
    assert "40 images" in out
    assert "not used: notes.jpg" in out


BAD = {
    "unknown preset": (["train", "r", "--preset", "faces61"], ["did you mean faces16"]),
    "no preset": (["train", "r"], ["r holds no run yet", "preset"]),
    "misspelt override": (
        ["train", "r", "--preset", "faces16", "--set", "train.bacth=3"],
        ["train.bacth", "did you mean batch"],
    ),
    "empty data folder": (
        ["train", "r", "--preset", "cats64", "--data", "empty"],
        ["empty", "image"],
    ),
    "missing data folder": (
        ["train", "r", "--preset", "cats64", "--data", "nowhere"],
        ["nowhere"],
    ),
    "no data folder": (["train", "r", "--preset", "cats64"], ["--data"]),
    "folder without images": (
        ["train", "r", "--preset", "cats64", "--data", "texts"],
        ["texts", "image"],
    ),
    "neither folder nor name": (["train", "--preset", "faces16"], ["--name"]),
    "not a run": (["sample", "nowhere"], ["nowhere holds no run", "dreamlib train"]),
    "seeds": (["sample", "trained", "--set", "sample.steps=99999"], ["sample.steps", "40"]),
    "a network that does not fit": (
        # few images: they are packed before the network is tried
        ["train", "r", "--preset", "faces16", *tiny_words("net.widths=[10]")],
        ["net does not fit", "[10]"],
    ),
    "a length that is no length": (
        ["train", "r", "--preset", "faces16", *tiny_words("train.length=50 %")],
        ["train.length"],
    ),
    "another config": (
        ["train", "trained", "--set", "train.lr=0.5"],
        ["train.lr: 0.002 -> 0.5", "another folder"],
    ),
    "N too large": (["evaluate", "trained", "--n", "20", "--n", "5000"], ["5,000", "60"]),
    "no weights": (
        ["evaluate", "trained", "--set", "evaluate.extractor=inception"],
        ["pt_inception", "DREAMLIB_WEIGHTS"],
    ),
    "nothing to score": (["evaluate"], ["name a run folder", "--images"]),
    "a reference without images": (
        ["evaluate", "trained", "--reference", "texts"],
        ["--images", "--diffusers"],
    ),
    "images without a judge": (["evaluate", "--images", "texts"], ["--out"]),
    "images of no kind": (["evaluate", "trained", "--images", "texts"], ["texts holds no images"]),
    "flags for images": (["evaluate", "trained", "--steps", "5"], ["--steps", "--images", "--set"]),
    "flags of walks": (["sample", "trained", "--frames", "5"], ["--frames", "--interpolate"]),
    "hours that are none": (["train", "trained", "--hours", "nan"], ["--hours is nan", "finite"]),
    "N too small": (["evaluate", "trained", "--n", "1"], ["N is [1]", "equal to 2"]),
    "a part that is none": (["evaluate", "trained", "--part", "3/2"], ["part 3 of 2"]),
    "compare with nothing": (["compare", "trained", "nowhere"], ["nowhere holds no run"]),
    "an unknown loss": (
        ["ablate", "faces16", "--steps", "5", "--losses", "magic"],
        ["unknown losses magic", "conservative"],
    ),
    "unwritable": (["train", "file/r", "--preset", "faces16"], ["cannot write", "file/r"]),
    "unknown notebook": (["notebooks", "99_none"], ["99_none", "00_complete"]),
    "bad parameter": (["notebooks", "00_complete", "-p", "PRESTE=x"], ["PRESTE", "PRESET"]),
    "ancestral interpolation": (
        ["sample", "trained", "--interpolate", "--set", "sample.sampler=ddpm"],
        ["deterministic", "sample.sampler=ddim"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_sentence(dreamlib, tmp_path, copy, name):
    words, expected = BAD[name]
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
