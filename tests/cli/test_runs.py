"""`dreamlib run status | list | fork | pull | push`, as a user types them, and forks as such."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamlib.cli.main import main
from dreamlib.runs.checkpoints import whole_checkpoints
from dreamlib.runs.folder import RunDir
from dreamlib.runs.lock import myself
from dreamlib.runs.mirror.store import Mirror
from dreamlib.runs.open import open_run
from dreamlib.runs.run import Run
from dreamlib.training.fork import fork_run
from dreamlib.training.train import train
from dreamlib.utils.errors import CheckpointError, ConfigError, DreamlibError, RunError
from dreamlib.utils.files import PLACE, read_json, write_json
from tests.conftest import TINY
from tests.training.test_train import assert_same_state, final_state, rows

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, data_home: Path) -> Iterator[Path]:
    """A run with checkpoints of steps 2, 4 and 6 of 8; only copied."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("story") / "ours"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMLIB_DATA", str(data_home))
        for _ in range(3):
            advance(open_run(folder, "faces16", overrides=TINY, say=lambda text: None), 2)
        yield folder


def advance(run: Run, steps: int) -> Run:
    for _ in itertools.islice(train(run), steps):
        pass
    return run


@pytest.fixture
def parent(story: Path, tmp_path: Path, data_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run, `ours`, in the working directory."""
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    monkeypatch.delenv("DREAMLIB_MIRROR", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(story, tmp_path / "ours")
    return Path("ours")


@pytest.fixture
def dreamlib(
    parent: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """dreamlib("status", "ours") -> exit code, stdout, stderr of `dreamlib run status ours`."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dreamlib", "run", *words])
        with pytest.raises(SystemExit) as exit:
            main()
        out = capsys.readouterr()
        return exit.value.code or 0, out.out, out.err

    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {p.as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def quiet(text: str) -> None:
    """Nothing is shown."""


# ---------------------------------------------------------------------- fork


def test_an_unchanged_fork_ends_as_its_parent_would(parent: Path, trained: Run) -> None:
    run = fork_run(parent, "new", say=quiet)
    assert run.dir.status()["state"] == "forked"
    assert [tick.step for tick in train(run)] == [7, 8]
    assert_same_state(final_state(run), final_state(trained))
    assert rows(run) == rows(trained)
    assert run.dir.status()["state"] == "finished"


def test_a_fork_goes_on_under_its_own_settings(parent: Path, trained: Run) -> None:
    before, said = contents(parent), []
    run = fork_run(parent, "new", step=4, overrides=["train.lr=1e-3"], say=said.append)
    assert "FORKED new from step 4 of ours; changed: train.lr: 0.002 -> 0.001" in said
    (checkpoint,) = whole_checkpoints(run.dir.checkpoints)
    (origin,) = (c for c in whole_checkpoints(parent / "checkpoints") if c.step == 4)
    assert_same_state(checkpoint.load(), origin.load())
    assert checkpoint.manifest["config"] == run.facts["config"] != origin.manifest["config"]
    assert run.weights()[1]["step"] == 4
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


def test_a_fork_knows_its_parent(parent: Path) -> None:
    run = fork_run(parent, "new", step=4, overrides=["train.lr=1e-3"], say=quiet)
    record, theirs = read_json(run.folder / "run.json"), read_json(parent / "run.json")
    (origin,) = (c for c in whole_checkpoints(parent / "checkpoints") if c.step == 4)
    assert record["id"] != theirs["id"]
    assert record["parent"] == {
        "run": theirs["id"],
        "folder": "ours",
        "step": 4,
        "sha256": origin.manifest["sha256"],
        "changed": ["train.lr: 0.002 -> 0.001"],
    }


def test_a_fork_begins_with_its_parents_log(parent: Path) -> None:
    ours = RunDir(parent)
    assert [row["step"] for row in ours.read_log()] == [4]
    kept = {step: fork_run(parent, f"new{step}", step=step, say=quiet) for step in (2, 6)}
    assert kept[2].dir.read_log() == []
    assert kept[6].dir.read_log() == ours.read_log()


def test_a_fork_may_change_what_is_no_weight(parent: Path) -> None:
    more = ["train.seed=5", "train.batch=4", "train.length=10"]
    run = fork_run(parent, "new", overrides=more, say=quiet)
    assert [tick.step for tick in train(run)] == [7, 8, 9, 10]
    with pytest.raises(RunError, match=r"train.batch: 4 -> 6"):
        open_run("new", overrides=["train.batch=6"], say=quiet)


REFUSED: dict[str, tuple[type[DreamlibError], str, dict[str, Any]]] = {
    "other widths": (
        RunError,
        r"weights of ours do not fit these settings \(net.widths: \[8, 16\] -> \[16, 32\]\)",
        {"overrides": ["net.widths=[16, 32]"]},
    ),
    "another prediction": (
        RunError,
        r"do not fit .*prediction: eps -> v",
        {"overrides": ["diffusion.prediction=v"]},
    ),
    "a step not kept": (
        RunError,
        r"keeps no whole checkpoint of step 3: it has 2, 4, 6",
        {"step": 3},
    ),
    "a setting that is none": (
        ConfigError,
        r"unknown setting train.rl",
        {"overrides": ["train.rl=1"]},
    ),
    "a setting out of range": (ConfigError, r"train.lr is -1", {"overrides": ["train.lr=-1"]}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_fork_leaves_nothing_behind(parent: Path, name: str) -> None:
    kind, match, options = REFUSED[name]
    before = contents(Path())
    with pytest.raises(kind, match=match):
        fork_run(parent, "new", say=quiet, **options)
    assert contents(Path()) == before
    assert [path.name for path in Path().iterdir()] == ["ours"]


@pytest.mark.parametrize("taken", ["folder", "file", "run"])
def test_a_taken_folder_is_refused(parent: Path, taken: str) -> None:
    new = Path("new")
    make = {"folder": new.mkdir, "file": new.touch, "run": lambda: shutil.copytree(parent, new)}
    make[taken]()
    before = contents(Path())
    with pytest.raises(RunError, match=r"new is there already: name a folder"):
        fork_run(parent, new, say=quiet)
    assert contents(Path()) == before


def test_a_damaged_generation_is_not_forked(parent: Path) -> None:
    (parent / "checkpoints/step-00000006.pt").write_bytes(b"")
    with pytest.raises(RunError, match=r"of step 6: it has 2, 4$"):
        fork_run(parent, "new", step=6, say=quiet)
    run = fork_run(parent, "new", say=quiet)
    assert run.dir.status()["step"] == 4


def test_nothing_to_fork(parent: Path) -> None:
    shutil.rmtree(parent / "checkpoints")
    with pytest.raises(RunError, match="ours has no checkpoint to begin from: train it"):
        fork_run(parent, "new", say=quiet)
    assert not Path("new").exists()


def test_what_a_killed_fork_left_is_no_obstacle_and_no_run(
    parent: Path, monkeypatch: pytest.MonkeyPatch, dreamlib: Command
) -> None:
    def killed(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            fork_run(parent, "new", say=quiet)
    assert not Path("new").exists()
    code, out, _ = dreamlib("list", ".")
    assert (code, len(out.splitlines())) == (0, 1), out
    fork_run(parent, "new", say=quiet)
    assert sorted(path.name for path in Path().iterdir()) == ["new", "ours"]


def test_a_forged_generation_leaves_no_half_fork(parent: Path) -> None:
    from tests.crash.test_fuzz import bare_bomb, forge

    forge(parent / "checkpoints/step-00000006.pt", bare_bomb())
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        fork_run(parent, "new", say=quiet)
    assert [path.name for path in Path().iterdir()] == ["ours"]


def test_fork_on_the_command_line(dreamlib: Command) -> None:
    code, out, _ = dreamlib("fork", "ours", "new", "--step", "2", "--set", "train.lr=1e-3")
    assert code == 0
    assert "FORKED new from step 2 of ours; changed: train.lr: 0.002 -> 0.001" in out
    code, _, err = dreamlib("fork", "ours", "new")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: new is there already")
    code, _, err = dreamlib("fork", "nowhere", "newer")
    assert code == 2
    assert err.startswith("error: nowhere holds no run")
    assert not Path("newer").exists()


# ---------------------------------------------------------------------- status, list


def test_status_tells_state_step_checkpoints_and_events(dreamlib: Command, parent: Path) -> None:
    (parent / "checkpoints/step-00000004.pt").write_bytes(b"")
    RunDir(parent).note("said", text="a name of \x1b[2J others")
    code, out, _ = dreamlib("status", "ours")
    first, *lines = out.splitlines()
    assert code == 0
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
def test_status_and_list_know_a_killed_writer(
    dreamlib: Command, parent: Path, owner: Callable[[], dict[str, Any]], state: str
) -> None:
    report = RunDir(parent).status() | {"state": "running"}
    write_json(parent / "status.json", report)
    write_json(parent / "lock", owner())
    code, out, _ = dreamlib("status", "ours")
    assert code == 0
    assert out.startswith(f"ours: {state}, step 6 of 8")
    code, out, _ = dreamlib("list", ".")
    assert code == 0
    assert f" {state} " in out


def test_status_tells_of_a_failure_and_of_the_mirror(dreamlib: Command, parent: Path) -> None:
    mirror = {"mirror": "drive", "mirrored": None, "mirrored_at": 0.0, "upload": "unknown"}
    report = RunDir(parent).status() | mirror | {"state": "failed", "error": "the disk is full"}
    write_json(parent / "status.json", report | {"mirror_fails": "it is full"})
    _, out, _ = dreamlib("status", "ours")
    assert out.startswith("ours: failed, step 6")
    assert "  mirror: NOT copied to drive: it is full\n" in out
    assert "  it failed: the disk is full\n" in out


def test_list_shows_every_run(dreamlib: Command, parent: Path) -> None:
    fork_run(parent, "new", step=2, say=quiet)
    Path("empty").mkdir()
    code, out, _ = dreamlib("list", ".")
    new, ours = out.splitlines()
    assert code == 0
    assert new.split()[:3] == ["new", "forked", "2,"]
    assert ours.split()[:5] == ["ours", "interrupted", "6", "of", "8"]
    code, _, err = dreamlib("list", "empty")
    assert code == 2
    assert err.startswith("error: empty holds no runs: begin one")


@pytest.mark.parametrize("name", ["status.json", "events.jsonl", "lock"])
@pytest.mark.parametrize("text", [b"[1]\n", b"null\n", b"{}\n", b'{"a', b"\xff\xfe\n"])
def test_status_of_damaged_files_is_no_crash(
    dreamlib: Command, parent: Path, name: str, text: bytes
) -> None:
    write_json(parent / "status.json", RunDir(parent).status() | {"state": "running"})
    (parent / name).write_bytes(text)
    code, out, err = dreamlib("status", "ours")
    if code:
        assert (code, err.count("\n"), name in err) == (2, 1, True)
    else:
        assert out.startswith("ours: ")


@pytest.mark.parametrize("command", ["status", "push"])
def test_no_run_is_one_sentence(dreamlib: Command, command: str) -> None:
    code, _, err = dreamlib(command, "nowhere")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: nowhere holds no run: check the path")
    assert not Path("nowhere").exists()


# ---------------------------------------------------------------------- push, pull


def test_pushed_deleted_pulled_goes_on_to_the_same_end(
    dreamlib: Command, parent: Path, trained: Run
) -> None:
    before = contents(parent)
    code, _, _ = dreamlib("push", "ours", "--mirror", "drive")
    assert code == 0
    shutil.rmtree(parent)
    code, out, _ = dreamlib("pull", "ours", "--mirror", "drive")
    assert code == 0
    assert "BROUGHT step 6 from generation 1 of" in out
    newest = ("config.yaml", "data.json", "log.jsonl", "checkpoints/step-00000006.pt")
    for name in (*newest, "weights/ema.safetensors", "weights/card.json"):
        assert (parent / name).read_bytes() == before[f"ours/{name}"]
    run = open_run(parent, mirror="none", say=quiet)
    assert [tick.step for tick in train(run)] == [7, 8]
    assert_same_state(final_state(run), final_state(trained))
    assert rows(run) == rows(trained)


def test_pull_brings_what_is_newer_and_loses_nothing_that_is_not(
    dreamlib: Command, parent: Path
) -> None:
    assert dreamlib("push", "ours", "--mirror", "drive")[0] == 0
    finished = open_run(parent, mirror="none", say=quiet)
    assert [tick.step for tick in train(finished)] == [7, 8]
    names = ("log.jsonl", "weights/card.json", "weights/ema.safetensors", "config.yaml")
    ours = {name: (parent / name).read_bytes() for name in names}
    code, _, _ = dreamlib("pull", "ours", "--mirror", "drive")
    assert code == 0
    assert {name: (parent / name).read_bytes() for name in names} == ours
    assert [row["step"] for row in finished.dir.read_log()] == [4, 8]
    assert finished.dir.status()["state"] == "finished"


def test_a_damaged_copy_is_passed_over(dreamlib: Command, parent: Path) -> None:
    assert dreamlib("push", "ours", "--mirror", "drive")[0] == 0
    advance(open_run(parent, mirror="none", say=quiet), 1)
    assert dreamlib("push", "ours", "--mirror", "drive")[0] == 0
    shutil.rmtree(parent)
    (newest,) = Path("drive/runs/ours/checkpoints").glob("step-00000007~*.pt")
    newest.write_bytes(newest.read_bytes()[:-1])
    code, out, _ = dreamlib("pull", "ours", "--mirror", "drive")
    assert code == 0
    assert "passing over generation 2" in out
    assert "BROUGHT step 6 from generation 1" in out


def test_a_mirror_that_is_well_delays_nothing(parent: Path) -> None:
    begun = time.monotonic()
    assert len(advance(open_run(parent, mirror="drive", say=quiet), 1).dir.read_log()) == 1
    assert time.monotonic() - begun < 20
    assert Mirror(Path("drive"), "ours").generations()[0].step == 7


def test_push_carries_the_packed_images_too(dreamlib: Command, parent: Path) -> None:
    assert dreamlib("push", "ours", "--mirror", "drive")[0] == 0
    name = read_json(parent / "data.json")["packed"]
    assert (Path("drive/data") / name / "manifest.json").is_file()
    (generation,) = Mirror(Path("drive"), "ours").generations()
    assert generation.step == 6


def test_a_run_by_another_path_is_the_same_run_and_harms_no_other(
    dreamlib: Command, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`..` had been taken for its name, and everything on the mirror for its files."""
    others = [Path("drive/runs/two/log~0123456789ab.jsonl"), Path("drive/x~0123456789ab")]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("another run's")
    absolute = [path.absolute() for path in others]
    drive = Path("drive").absolute()
    monkeypatch.chdir(parent / "samples")
    assert dreamlib("push", "..", "--mirror", str(drive))[0] == 0
    assert [path.read_text() for path in absolute] == ["another run's"] * 2
    assert Mirror(drive, "ours").generations()[0].step == 6
    code, _, err = dreamlib("pull", "/", "--mirror", str(drive))
    assert (code, err) == (
        2,
        "error: / cannot be a run folder ('' is no plain name): name another one\n",
    )


@pytest.mark.parametrize("mirror", [".", "ours", "ours/copies", "ours/../../{}"])
def test_a_mirror_and_its_run_lie_apart(
    dreamlib: Command, parent: Path, tmp_path: Path, mirror: str
) -> None:
    before = contents(parent)
    code, _, err = dreamlib("push", "ours", "--mirror", mirror.format(tmp_path.name))
    assert (code, err.count("\n")) == (2, 1)
    assert "lie one in the other: name another folder, on another disk, or none" in err
    assert contents(parent) == before


def test_a_run_on_the_drive_itself_is_done_without_copies(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dreamlib.utils.platform as host

    monkeypatch.setattr(host, "platform", lambda: "colab")
    monkeypatch.setattr(host, "DRIVE", tmp_path.parent)
    tmp_path.rename(tmp_path.parent / "dreamlib")
    said: list[str] = []
    try:
        run = open_run(tmp_path.parent / "dreamlib" / "ours", say=said.append)
    finally:
        (tmp_path.parent / "dreamlib").rename(tmp_path)
    assert run.mirror is None
    assert said[-1].endswith(
        "lie one in the other: no copies are made, the run is on the Drive alone"
    )


def test_a_mirror_on_the_runs_own_disk_is_said(parent: Path) -> None:
    said: list[str] = []
    open_run(parent, mirror="drive", say=said.append).push()
    assert any(text.endswith("; THE SAME DISK as the run's: it is lost with it") for text in said)


def test_a_pack_that_is_a_path_leads_nowhere(parent: Path, tmp_path: Path) -> None:
    home = Path(read_json(parent / "data.json")["packed"])
    write_json(parent / "data.json", {"packed": f"../{home}", "fingerprint": "a"})
    with pytest.raises(RunError, match=r"data.json is damaged .*is no plain name"):
        open_run(parent, mirror="drive", say=quiet)


def test_one_damaged_status_does_not_hide_the_other_runs(dreamlib: Command, parent: Path) -> None:
    fork_run(parent, "new", step=2, say=quiet)
    write_json(Path("new/status.json"), {"state": "forked", "step": [1]})
    code, out, _ = dreamlib("list", ".")
    new, ours = out.splitlines()
    assert code == 0
    assert new.startswith("new ")
    assert "status.json is damaged (its step is odd): delete it" in new
    assert ours.split()[:3] == ["ours", "interrupted", "6"]


ODD_EVENTS = [{"time": 1e300}, {"time": -1e14}, {"sha256": 5}, {"step": "six"}]


@pytest.mark.parametrize("odd", ODD_EVENTS)
def test_odd_events_are_no_crash(dreamlib: Command, parent: Path, odd: dict[str, Any]) -> None:
    with open(parent / "events.jsonl", "a") as file:
        file.write(json.dumps({"time": 1.0, "event": "saved", "step": 6} | odd) + "\n")
    assert dreamlib("status", "ours")[0] == 0
    shutil.rmtree(parent / "checkpoints")
    with pytest.raises(RunError, match="had a checkpoint of step 6, and none is left"):
        next(iter(train(open_run(parent, mirror="none", say=quiet))))


def test_what_kills_left_half_written_is_swept(parent: Path) -> None:
    left = [parent / "evaluation", parent / "figures", parent / "generated" / "a", parent]
    left = [folder / f".x.json.{PLACE}.1.99999999.tmp" for folder in left]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    open_run(parent, mirror="none", say=quiet)
    assert not [path for path in left if path.exists()]


@pytest.mark.parametrize("command", ["push", "pull"])
@pytest.mark.parametrize("mirror", [[], ["--mirror", "none"]])
def test_no_mirror_is_one_sentence(dreamlib: Command, command: str, mirror: list[str]) -> None:
    code, _, err = dreamlib(command, "ours", *mirror)
    assert (code, err.count("\n")) == (2, 1)
    assert err == "error: there is no mirror: name a folder (--mirror, or DREAMLIB_MIRROR)\n"


def test_another_run_of_the_same_name_is_not_mixed_in(
    dreamlib: Command, parent: Path, tmp_path: Path
) -> None:
    assert dreamlib("push", "ours", "--mirror", "drive")[0] == 0
    held = contents(Path("drive/runs"))
    (tmp_path / "beside").mkdir()
    other = fork_run(parent, tmp_path / "beside" / "ours", say=quiet)
    code, _, err = dreamlib("push", str(other.folder), "--mirror", "drive")
    assert (code, err.count("\n")) == (2, 1)
    assert "holds another run of this name: rename the folder" in err
    assert contents(Path("drive/runs")) == held


def test_nothing_to_pull_is_one_sentence(dreamlib: Command) -> None:
    Path("drive").mkdir()
    code, _, err = dreamlib("pull", "nowhere", "--mirror", "drive")
    assert (code, err.count("\n")) == (2, 1)
    assert "drive holds no run of the name nowhere" in err
    assert not Path("nowhere").exists()
