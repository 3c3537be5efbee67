"""A training that is killed on purpose ends where an undisturbed one ends."""

from __future__ import annotations

import pytest

from dreamlib.notebook.checkup import checkup
from dreamlib.notebook.crash_demo import CrashDemo
from dreamlib.training.cost import forecast, step_seconds
from dreamlib.utils.errors import RunError
from tests.conftest import TINY

SETTINGS = [*TINY, "train.length=300", "train.save_minutes=0.003"]


@pytest.mark.slow  # five processes; notebook 02 does the same in every run of the tests
def test_killed_and_damaged_it_equals_the_undisturbed(tmp_path, data_home, monkeypatch):
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    said: list[str] = []
    calm, victim = (
        CrashDemo(tmp_path / name, "faces16", SETTINGS, say=said.append)
        for name in ("calm", "victim")
    )
    assert calm.start().finish().startswith("FRESH START")
    assert victim.start().kill_at(60)
    assert "SIGKILL, exit code -9" in said[-1]
    newest = victim.checkpoints()[-1].step
    assert newest >= 60
    victim.cut_newest()
    assert victim.checkpoints()[-1].step < newest
    banner = victim.start().finish()
    assert banner.startswith("RESUMED at step ")
    assert int(banner.split()[3]) < newest
    assert victim.weights_hash() == calm.weights_hash()
    assert not victim.start().kill_at(60)  # nothing left to kill
    assert "FINISHED at step 300" in said[-1]


@pytest.mark.slow
def test_a_session_out_of_time_is_its_own(tmp_path, data_home, monkeypatch):
    """Not its parent's, whose beginning kernels hand on; and nothing of it is kept for scoring."""
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("DREAMLIB_BEGUN", "0")  # long ago
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")  # where half an hour would be kept
    endless = CrashDemo(tmp_path / "run", "faces16", [*SETTINGS, "train.length=100000"])
    endless.start(hours=60 / 3600).finish()
    status = endless.dir.status()
    assert status["state"] == "paused_deadline"
    assert status["step"] > 0


@pytest.mark.usefixtures("quick_python")
def test_a_training_that_fails_says_why(tmp_path):
    with pytest.raises(RunError, match=r"failed: .*nope"):
        CrashDemo(tmp_path / "run", "nope", say=lambda text: None).start().finish()
    with pytest.raises(RunError, match="call start"):
        CrashDemo(tmp_path / "run", "faces16").finish()


def test_a_forecast_is_measured_and_says_that_it_projects(tiny):
    config = tiny().config
    seconds = step_seconds(config, 4, steps=2)
    assert 0 < seconds < 60
    text = forecast(config, epoch=20)
    assert "Measured: a step of 6 images takes" in text
    assert "for the 8 steps of 6 images of faces16" in text


def test_a_checkup_names_what_is_there(tmp_path):
    facts = checkup(tmp_path)
    assert facts["data"].endswith("nothing yet")
    assert "faces16" in facts["presets"]
