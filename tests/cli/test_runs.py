"""`dreamlib run status | list | fork | pull | push`, as a user types them, and forks as such."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from pathlib import Path

import pytest
import torch

from dreamlib.runs.checkpoints import whole_checkpoints
from dreamlib.runs.folder import RunDir
from dreamlib.runs.lock import myself
from dreamlib.runs.mirror.store import Mirror
from dreamlib.runs.mirror.uploader import PATIENCE
from dreamlib.runs.open import open_run
from dreamlib.runs.run import NO_MIRROR
from dreamlib.training.fork import fork_run
from dreamlib.training.train import train
from dreamlib.utils.errors import CheckpointError, ConfigError, RunError
from dreamlib.utils.files import PLACE, read_json, write_json
from tests.conftest import TINY
from tests.training.test_train import assert_same_state, final_state, rows


@pytest.fixture(scope="module")
def story(tmp_path_factory, data_home):
    """A run with checkpoints of steps 2, 4 and 6 of 8; only copied."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("story") / "ours"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMLIB_DATA", str(data_home))
        for _ in range(3):
            advance(open_run(folder, "faces16", overrides=TINY, say=lambda text: None), 2)
        yield folder


def advance(run, steps):
    for _ in itertools.islice(train(run), steps):
        pass
    return run


@pytest.fixture
def parent(story, tmp_path, data_home, monkeypatch):
    """A copy of that run, `ours`, in the working directory."""
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    monkeypatch.delenv("DREAMLIB_MIRROR", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(story, tmp_path / "ours")
    return Path("ours")


@pytest.fixture
def dreamlib(parent, program):
    """dreamlib("status", "ours") is `dreamlib run status ours`."""
    return program("run")


def contents(folder):
    return {p.as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def quiet(text):
    """Nothing is shown."""


def fork(parent, folder="new", **more):
    return fork_run(parent, folder, **{"say": quiet} | more)


def checkpoint_of(parent, step):
    return next(c for c in whole_checkpoints(parent / "checkpoints") if c.step == step)


# ---------------------------------------------------------------------- fork


def test_an_unchanged_fork_ends_as_its_parent_would(parent, trained):
    run = fork(parent)
    assert run.dir.status()["state"] == "forked"
    assert [tick.step for tick in train(run)] == [7, 8]
    assert_same_state(final_state(run), final_state(trained))
    assert rows(run) == rows(trained)
    assert run.dir.status()["state"] == "finished"


def test_a_fork_goes_on_under_its_own_settings(parent, trained):
    before, said = contents(parent), []
    run = fork_run(parent, "new", step=4, overrides=["train.lr=1e-3"], say=said.append)
    assert "FORKED new from step 4 of ours; changed: train.lr: 0.002 -> 0.001" in said
    (checkpoint,) = whole_checkpoints(run.dir.checkpoints)
    origin = checkpoint_of(parent, 4)
    assert_same_state(checkpoint.load(), origin.load())
    assert checkpoint.manifest["config"] == run.facts["config"] != origin.manifest["config"]
    assert run.weights()[1]["step"] == 4
    record, theirs = read_json(run.folder / "run.json"), read_json(parent / "run.json")
    assert record["id"] != theirs["id"]
    assert record["parent"] == {
        "run": theirs["id"],
        "folder": "ours",
        "step": 4,
        "sha256": origin.manifest["sha256"],
        "changed": ["train.lr: 0.002 -> 0.001"],
    }
    assert [tick.step for tick in train(run)] == [5, 6, 7, 8]
    assert rows(run)[0] == rows(trained)[0]
    ours, theirs = (r.dir.read_log()[-1]["lr"] for r in (run, trained))
    assert ours == pytest.approx(theirs / 2)
    fork_run(parent, "faster", step=4, overrides=["train.lr=0.05"], say=said.append)
    assert [line for line in said if "learning rate" in line] == [
        f"the learning rate goes from 0.0014 to {rate} there: train.lr sets it"
        for rate in ("0.0005", "0.025")
    ]
    after = contents(parent)
    assert after.keys() - before.keys() <= {"ours/run.json"}, "its name, when it had none"
    assert all(after[name] == data for name, data in before.items())


def test_a_fork_begins_with_its_parents_log(parent):
    ours = RunDir(parent)
    assert [row["step"] for row in ours.read_log()] == [4]
    kept = {step: fork(parent, f"new{step}", step=step) for step in (2, 6)}
    assert kept[2].dir.read_log() == []
    assert kept[6].dir.read_log() == ours.read_log()


def test_a_fork_may_change_what_is_no_weight(parent):
    more = ["train.seed=5", "train.batch=4", "train.length=10"]
    run = fork(parent, overrides=more)
    assert [tick.step for tick in train(run)] == [7, 8, 9, 10]
    with pytest.raises(RunError, match=r"train.batch: 4 -> 6"):
        open_run("new", overrides=["train.batch=6"], say=quiet)


WIDTHS = r"weights of ours do not fit these settings \(net.widths: \[8, 16\] -> \[16, 32\]\)"


@pytest.mark.parametrize(
    ("kind", "match", "options"),
    [
        (RunError, WIDTHS, {"overrides": ["net.widths=[16, 32]"]}),
        (RunError, "prediction: eps -> v", {"overrides": ["diffusion.prediction=v"]}),
        (RunError, r"keeps no whole checkpoint of step 3: it has 2, 4, 6", {"step": 3}),
        (ConfigError, r"unknown setting train.rl", {"overrides": ["train.rl=1"]}),
        (ConfigError, r"train.lr is -1", {"overrides": ["train.lr=-1"]}),
    ],
)
def test_a_refused_fork_leaves_nothing_behind(parent, kind, match, options):
    before = contents(Path())
    with pytest.raises(kind, match=match):
        fork(parent, **options)
    assert contents(Path()) == before
    assert [path.name for path in Path().iterdir()] == ["ours"]


@pytest.mark.parametrize("taken", ["folder", "file", "run"])
def test_a_taken_folder_is_refused(parent, taken):
    new = Path("new")
    make = {"folder": new.mkdir, "file": new.touch, "run": lambda: shutil.copytree(parent, new)}
    make[taken]()
    before = contents(Path())
    with pytest.raises(RunError, match=r"new is there already: name a folder"):
        fork(parent)
    assert contents(Path()) == before


def test_a_damaged_generation_is_not_forked(parent):
    (parent / "checkpoints/step-00000006.pt").write_bytes(b"")
    with pytest.raises(RunError, match=r"of step 6: it has 2, 4$"):
        fork(parent, step=6)
    run = fork(parent)
    assert run.dir.status()["step"] == 4


def test_nothing_to_fork(parent):
    shutil.rmtree(parent / "checkpoints")
    with pytest.raises(RunError, match="ours has no checkpoint to begin from: train it"):
        fork(parent)
    assert not Path("new").exists()


def test_what_a_killed_fork_left_is_no_obstacle_and_no_run(parent, monkeypatch, dreamlib):
    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            fork(parent)
    assert not Path("new").exists()
    assert len(dreamlib.done("list", ".").splitlines()) == 1
    fork(parent)
    assert sorted(path.name for path in Path().iterdir()) == ["new", "ours"]


def test_a_forged_generation_leaves_no_half_fork(parent):
    from tests.crash.test_fuzz import bare_bomb, forge

    forge(parent / "checkpoints/step-00000006.pt", bare_bomb())
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        fork(parent)
    assert [path.name for path in Path().iterdir()] == ["ours"]


def test_fork_on_the_command_line(dreamlib):
    out = dreamlib.done("fork", "ours", "new", "--step", "2", "--set", "train.lr=1e-3")
    assert "FORKED new from step 2 of ours; changed: train.lr: 0.002 -> 0.001" in out
    assert dreamlib.refused("fork", "ours", "new").startswith("error: new is there already")
    assert dreamlib.refused("fork", "nowhere", "newer").startswith("error: nowhere holds no run")
    assert not Path("newer").exists()


# ---------------------------------------------------------------------- status, list


def test_status_tells_state_step_checkpoints_and_events(dreamlib, parent):
    (parent / "checkpoints/step-00000004.pt").write_bytes(b"")
    RunDir(parent).note("said", text="a name of \x1b[2J others")
    first, *lines = dreamlib.done("status", "ours").splitlines()
    assert first == "ours: interrupted, step 6 of 8 (75%)"
    found = [line.split(":")[0] for line in lines if "whole" in line]
    assert found == ["  checkpoint of step 6", "  checkpoint of step 2"]
    assert any("RESUMED at step 4 of 8" in line for line in lines)
    assert any("saved step 6 sha256" in line for line in lines)
    assert "PAUSED at step 6 of 8" in lines[-2]
    assert lines[-1].endswith(r"a name of \x1b[2J others")


@pytest.mark.parametrize(
    ("owner", "state"),
    [
        pytest.param(myself, "running", id="alive"),
        pytest.param(lambda: myself() | {"start": 1}, "stopped (killed)", id="killed"),
        pytest.param(dict, "stopped (killed)", id="gone"),
        pytest.param(lambda: myself() | {"boot": "another"}, "running", id="elsewhere"),
    ],
)
def test_status_and_list_know_a_killed_writer(dreamlib, parent, owner, state):
    write_json(parent / "status.json", RunDir(parent).status() | {"state": "running"})
    write_json(parent / "lock", owner())
    assert dreamlib.done("status", "ours").startswith(f"ours: {state}, step 6 of 8")
    assert f" {state} " in dreamlib.done("list", ".")


def test_status_tells_of_a_failure_and_of_the_mirror(dreamlib, parent):
    mirror = {"mirror": "drive", "mirrored": None, "mirrored_at": 0.0, "upload": "unknown"}
    report = RunDir(parent).status() | mirror | {"state": "failed", "error": "the disk is full"}
    write_json(parent / "status.json", report | {"mirror_fails": "it is full"})
    _, out, _ = dreamlib("status", "ours")
    assert out.startswith("ours: failed, step 6")
    assert "  mirror: NOT copied to drive: it is full\n" in out
    assert "  it failed: the disk is full\n" in out


def test_list_shows_every_run(dreamlib, parent):
    fork(parent, step=2)
    Path("empty").mkdir()
    new, ours = dreamlib.done("list", ".").splitlines()
    assert new.split()[:3] == ["new", "forked", "2,"]
    assert ours.split()[:5] == ["ours", "interrupted", "6", "of", "8"]
    # One damaged status does not hide the other runs.
    write_json(Path("new/status.json"), {"state": "forked", "step": [1]})
    new, *others = dreamlib.done("list", ".").splitlines()
    assert new.startswith("new ")
    assert "status.json is damaged (its step is odd): delete it" in new
    assert [each.split()[:3] for each in others] == [ours.split()[:3]]
    err = dreamlib.refused("list", "empty")
    assert err.startswith("error: empty holds no runs: begin one")


@pytest.mark.parametrize("name", ["status.json", "events.jsonl", "lock"])
@pytest.mark.parametrize("text", [b"[1]\n", b"null\n", b"{}\n", b'{"a', b"\xff\xfe\n"])
def test_status_of_damaged_files_is_no_crash(dreamlib, parent, name, text):
    write_json(parent / "status.json", RunDir(parent).status() | {"state": "running"})
    (parent / name).write_bytes(text)
    code, out, err = dreamlib("status", "ours")
    if code:
        assert (code, err.count("\n"), name in err) == (2, 1, True)
    else:
        assert out.startswith("ours: ")


@pytest.mark.parametrize("command", ["status", "push"])
def test_no_run_is_one_sentence(dreamlib, command):
    err = dreamlib.refused(command, "nowhere")
    assert err.startswith("error: nowhere holds no run: check the path")
    assert not Path("nowhere").exists()


# ---------------------------------------------------------------------- push, pull


def test_pushed_deleted_pulled_goes_on_to_the_same_end(dreamlib, parent, trained):
    before = contents(parent)
    dreamlib.done("push", "ours", "--mirror", "drive")
    packed = read_json(parent / "data.json")["packed"]
    assert (Path("drive/data") / packed / "manifest.json").is_file()
    (generation,) = Mirror(Path("drive"), "ours").generations()
    assert generation.step == 6
    shutil.rmtree(parent)
    out = dreamlib.done("pull", "ours", "--mirror", "drive")
    assert "BROUGHT step 6 from generation 1 of" in out
    newest = ("config.yaml", "data.json", "log.jsonl", "checkpoints/step-00000006.pt")
    for name in (*newest, "weights/ema.safetensors", "weights/card.json"):
        assert (parent / name).read_bytes() == before[f"ours/{name}"]
    run = open_run(parent, mirror="none", say=quiet)
    assert [tick.step for tick in train(run)] == [7, 8]
    assert_same_state(final_state(run), final_state(trained))
    assert rows(run) == rows(trained)


def test_pull_brings_what_is_newer_and_loses_nothing_that_is_not(dreamlib, parent):
    dreamlib.done("push", "ours", "--mirror", "drive")
    finished = open_run(parent, mirror="none", say=quiet)
    assert [tick.step for tick in train(finished)] == [7, 8]
    names = ("log.jsonl", "weights/card.json", "weights/ema.safetensors", "config.yaml")
    ours = {name: (parent / name).read_bytes() for name in names}
    dreamlib.done("pull", "ours", "--mirror", "drive")
    assert {name: (parent / name).read_bytes() for name in names} == ours
    assert [row["step"] for row in finished.dir.read_log()] == [4, 8]
    assert finished.dir.status()["state"] == "finished"


def test_a_damaged_copy_is_passed_over(dreamlib, parent):
    dreamlib.done("push", "ours", "--mirror", "drive")
    advance(open_run(parent, mirror="none", say=quiet), 1)
    dreamlib.done("push", "ours", "--mirror", "drive")
    shutil.rmtree(parent)
    (newest,) = Path("drive/runs/ours/checkpoints").glob("step-00000007~*.pt")
    newest.write_bytes(newest.read_bytes()[:-1])
    out = dreamlib.done("pull", "ours", "--mirror", "drive")
    assert "passing over generation 2" in out
    assert "BROUGHT step 6 from generation 1" in out


def test_a_mirror_that_is_well_delays_nothing(parent):
    begun = time.monotonic()
    assert len(advance(open_run(parent, mirror="drive", say=quiet), 1).dir.read_log()) == 1
    assert time.monotonic() - begun < PATIENCE  # or it waited for the mirror
    assert Mirror(Path("drive"), "ours").generations()[0].step == 7


def test_a_run_by_another_path_is_the_same_run_and_harms_no_other(dreamlib, parent, monkeypatch):
    """`..` had been taken for its name, and everything on the mirror for its files."""
    others = [Path("drive/runs/two/log~0123456789ab.jsonl"), Path("drive/x~0123456789ab")]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("another run's")
    absolute = [path.absolute() for path in others]
    drive = Path("drive").absolute()
    monkeypatch.chdir(parent / "samples")
    dreamlib.done("push", "..", "--mirror", str(drive))
    assert [path.read_text() for path in absolute] == ["another run's"] * 2
    assert Mirror(drive, "ours").generations()[0].step == 6
    err = dreamlib.refused("pull", "/", "--mirror", str(drive))
    assert err == "error: / cannot be a run folder ('' is no plain name): name another one\n"


@pytest.mark.parametrize("mirror", [".", "ours", "ours/copies", "ours/../../{}"])
def test_a_mirror_and_its_run_lie_apart(dreamlib, parent, tmp_path, mirror):
    before = contents(parent)
    err = dreamlib.refused("push", "ours", "--mirror", mirror.format(tmp_path.name))
    assert "lie one in the other: name another folder, on another disk, or none" in err
    assert contents(parent) == before


def test_a_run_on_the_drive_itself_is_done_without_copies(parent, tmp_path, monkeypatch):
    import dreamlib.utils.platform as host

    monkeypatch.setattr(host, "platform", lambda: "colab")
    monkeypatch.setattr(host, "DRIVE", tmp_path.parent)
    tmp_path.rename(tmp_path.parent / "dreamlib")
    said: list[str] = []
    try:
        run = open_run(tmp_path.parent / "dreamlib" / "ours", say=said.append)
    finally:
        (tmp_path.parent / "dreamlib").rename(tmp_path)
    assert run.mirrors == ()
    assert said[-1].endswith(
        "lie one in the other: no copies are made, the run is on the Drive alone"
    )


def test_a_mirror_on_the_runs_own_disk_is_said(parent):
    said = []
    open_run(parent, mirror="drive", say=said.append).push()
    assert any(text.endswith("; THE SAME DISK as the run's: it is lost with it") for text in said)


def test_a_pack_that_is_a_path_leads_nowhere(parent, tmp_path):
    home = Path(read_json(parent / "data.json")["packed"])
    write_json(parent / "data.json", {"packed": f"../{home}", "fingerprint": "a"})
    with pytest.raises(RunError, match=r"data.json is damaged .*is no plain name"):
        open_run(parent, mirror="drive", say=quiet)


@pytest.mark.parametrize("odd", [{"time": 1e300}, {"time": -1e14}, {"sha256": 5}, {"step": "six"}])
def test_odd_events_are_no_crash(dreamlib, parent, odd):
    with open(parent / "events.jsonl", "a") as file:
        file.write(json.dumps({"time": 1.0, "event": "saved", "step": 6} | odd) + "\n")
    dreamlib.done("status", "ours")
    shutil.rmtree(parent / "checkpoints")
    with pytest.raises(RunError, match="had a checkpoint of step 6, and none is left"):
        next(iter(train(open_run(parent, mirror="none", say=quiet))))


def test_what_kills_left_half_written_is_swept(parent):
    folders = ("evaluation", "figures", "generated/a", "")
    left = [parent / folder / f".x.json.{PLACE}.1.99999999.tmp" for folder in folders]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    open_run(parent, mirror="none", say=quiet)
    assert not [path for path in left if path.exists()]


@pytest.mark.parametrize("command", ["push", "pull"])
@pytest.mark.parametrize("mirror", [[], ["--mirror", "none"]])
def test_no_mirror_is_one_sentence(dreamlib, command, mirror):
    err = dreamlib.refused(command, "ours", *mirror)
    assert err == f"error: {NO_MIRROR}\n"


def test_another_run_of_the_same_name_is_not_mixed_in(dreamlib, parent, tmp_path):
    dreamlib.done("push", "ours", "--mirror", "drive")
    held = contents(Path("drive/runs"))
    (tmp_path / "beside").mkdir()
    other = fork(parent, tmp_path / "beside" / "ours")
    err = dreamlib.refused("push", str(other.folder), "--mirror", "drive")
    assert "holds another run of this name: rename the folder" in err
    assert contents(Path("drive/runs")) == held


def test_nothing_to_pull_is_one_sentence(dreamlib):
    Path("drive").mkdir()
    err = dreamlib.refused("pull", "nowhere", "--mirror", "drive")
    assert "no run of the name nowhere in drive" in err
    assert not Path("nowhere").exists()
