"""A run as a Kaggle data set, by a stand-in of kagglehub."""

from __future__ import annotations

import shutil
import sys
from types import SimpleNamespace

import pytest

from dreamlib.runs.kaggle import publish
from dreamlib.utils.errors import ConfigError, RunError
from tests.runs.test_mirror import run as run


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """Keeps what is uploaded; `arrives` is False for an upload of which nothing does."""
    made = SimpleNamespace(arrives=True, place=tmp_path / "kaggle")

    def upload(name, folder):
        assert name == "me/run"
        if made.arrives:
            shutil.copytree(folder, made.place, dirs_exist_ok=True)

    def download(name, force_download):
        assert force_download
        made.place.mkdir(exist_ok=True)
        return str(made.place)

    made.dataset_upload, made.dataset_download = upload, download
    monkeypatch.setitem(sys.modules, "kagglehub", made)
    return made


def test_what_another_machine_needs_is_there(run, kaggle):
    assert publish(run, "me/run") == len(run.to_mirror())
    for name in run.to_mirror():
        assert (kaggle.place / "run" / name).read_bytes() == (run.folder / name).read_bytes()


def test_an_upload_of_which_nothing_arrived_is_no_success(run, kaggle):
    kaggle.arrives = False
    with pytest.raises(RunError, match="does not give all of it back yet"):
        publish(run, "me/run")


def test_a_refusal_is_one_sentence(run, kaggle):
    def refuse(name, folder):
        raise ValueError("401\nand more")

    kaggle.dataset_upload = refuse
    with pytest.raises(RunError, match=r"refuses me/run \(401\): check the name, and the token"):
        publish(run, "me/run")


def test_without_kagglehub_it_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(ConfigError, match="pip install kagglehub"):
        publish(run, "me/run")
