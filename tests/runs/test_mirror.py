"""The mirror: whole generations on a place that lies, runs full, and vanishes."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import dreamlib.runs.mirror.filesystem as mount_module
import dreamlib.runs.mirror.fleet as fleet_module
import dreamlib.runs.mirror.store as mirror_module
import dreamlib.runs.mirror.uploader as uploader_module
from dreamlib.runs.folder import RunDir
from dreamlib.runs.lock import Owner
from dreamlib.runs.mirror.filesystem import Folder
from dreamlib.runs.mirror.fleet import carrying
from dreamlib.runs.mirror.restore import bring_run, fetch_newer
from dreamlib.runs.mirror.store import Mirror
from dreamlib.runs.mirror.uploader import Uploader
from dreamlib.runs.open import open_run
from dreamlib.utils.errors import MirrorError, RunError
from dreamlib.utils.files import read_json, seal
from tests.conftest import TINY, train_for, within
from tests.training.test_train import assert_same_state, final_state, rows


@pytest.fixture
def run(tmp_path):
    """A run folder with small stand-ins for what a run holds."""
    ours = RunDir(tmp_path / "run")
    for name in ("checkpoints", "weights", "samples", "generated/s", "evaluation", "figures"):
        (ours.folder / name).mkdir(parents=True)
    for name in ("config.yaml", "data.json", "samples/x.png", "generated/s/y.npy"):
        (ours.folder / name).write_bytes(name.encode() * 50)
    for name in ("weights/ema.safetensors", "weights/card.json", "evaluation/scores.json"):
        (ours.folder / name).write_bytes(name.encode() * 50)
    (ours.folder / "run.json").write_text('{"id": "a"}')
    advance(ours, 1)
    return ours


def advance(run: RunDir, step: int) -> None:
    """A newer checkpoint and a longer log."""
    data, path = os.urandom(3000), run.checkpoints / f"step-{step:08d}.pt"
    path.write_bytes(data)
    manifest = {"step": step, "sha256": hashlib.sha256(data).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(manifest))
    with open(run.log, "a") as file:
        file.write(json.dumps({"step": step}) + "\n")


def contents(folder: Path, names) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def push(mirror: Mirror, run: RunDir):
    return mirror.push(run, run.identity())


def bring(mirror: Mirror, folder: Path) -> tuple[RunDir, list[str]]:
    """The run on another machine, and what was said."""
    back, said = RunDir(folder), []
    assert within(bring_run, Mirror(mirror.home, "run"), back, say=said.append)
    return back, said


def rewrite(mirror: Mirror, number: int, /, **fields) -> None:
    """Change fields of a manifest, and seal it again."""
    path = mirror.root / f"manifest-{number:08d}.json"
    record = read_json(path) | fields
    del record["seal"]
    path.write_text(json.dumps(seal(record)))


@pytest.fixture
def mirror(tmp_path):
    (tmp_path / "drive").mkdir()
    return Mirror(tmp_path / "drive" / "dreamlib", "run", settle=0.0)


# ---------------------------------------------------------------------- generations


def test_everything_worth_keeping_comes_back(run, mirror, tmp_path):
    generation = push(mirror, run)
    assert generation.step == 1
    assert set(generation.files) == {
        *("config.yaml", "data.json", "run.json", "log.jsonl", "samples/x.png"),
        *("checkpoints/step-00000001.pt", "checkpoints/step-00000001.json"),
        *("weights/ema.safetensors", "weights/card.json", "generated/s/y.npy"),
        "evaluation/scores.json",
    }
    back, _ = bring(mirror, tmp_path / "elsewhere")
    assert contents(back.folder, generation.files) == contents(run.folder, generation.files)


def test_nothing_is_written_over_and_old_generations_go(run, mirror):
    seen: dict[str, tuple[int, bytes]] = {}
    for step in range(2, 8):
        advance(run, step)
        push(mirror, run)
        for path in mirror.root.rglob("*"):
            if path.is_file():
                name, now = str(path), (path.stat().st_ino, path.read_bytes())
                assert seen.setdefault(name, now) == now, f"{name} was written over"
    assert [g.number for g in mirror.generations()] == [6, 5, 4]
    assert [g.step for g in mirror.generations()] == [7, 6, 5]
    held = {path.relative_to(mirror.root).as_posix() for path in mirror.root.rglob("*~*")}
    assert held == {e["name"] for g in mirror.generations() for e in g.files.values()}


def test_while_uploads_may_be_under_way_an_older_generation_stays(run, mirror, monkeypatch):
    """Copies that follow each other faster than a mount uploads must not drop each other."""
    now = [1000.0]
    monkeypatch.setattr(mirror_module.time, "time", lambda: now[0])
    mirror.settle = 60.0
    held = []
    for step in range(2, 30):
        advance(run, step)
        push(mirror, run)
        held.append([g.number for g in mirror.generations()])
        now[0] += 10
    assert held[3] == [4, 3, 2, 1]  # nothing has settled: the first stays
    assert held[7] == [8, 7, 6, 4, 1]  # it has, and the next one to settle stays too
    for number, (when, numbers) in enumerate(zip(range(28), held), 1):
        assert number < 8 or any(number - 12 <= n <= number - 6 for n in numbers), (when, numbers)
        assert len(numbers) <= 5


def test_pushes_without_a_new_checkpoint_do_not_crowd_out_older_steps(run, mirror):
    for step in (2, 3):
        advance(run, step)
        push(mirror, run)
    for k in range(5):
        (run.figures / "a.png").write_bytes(bytes([k]))
        push(mirror, run)
    assert [g.step for g in mirror.generations()] == [3, 3, 3, 2]


def test_the_manifest_comes_last_and_dropping_after_it(run, mirror, monkeypatch):
    """A generation counts when all of it is there, and nothing old goes before."""
    push(mirror, run)
    order = []

    def spy_open(path, mode="r"):
        if "w" in mode:
            order.append(Path(path).name)
        return open(path, mode)

    monkeypatch.setattr(mirror_module, "open", spy_open, raising=False)
    monkeypatch.setattr(mount_module, "open", spy_open, raising=False)
    monkeypatch.setattr(mount_module, "discard", lambda path: order.append(f"drop {path.name}"))
    mirror.keep = 1
    advance(run, 2)
    push(mirror, run)
    manifest = order.index("manifest-00000002.json")
    written, dropped = order[:manifest], order[manifest + 1 :]
    assert len(written) == 6  # checkpoint, its manifest, log; and what no two generations share
    assert len(dropped) == 7
    assert all(name.startswith("drop ") for name in dropped)
    assert dropped[0] == "drop manifest-00000001.json"


def test_dropped_files_are_emptied_first(run, mirror, monkeypatch):
    push(mirror, run)
    sizes = []
    unlink = Path.unlink
    monkeypatch.setattr(
        Path, "unlink", lambda p, **k: (sizes.append(p.stat().st_size), unlink(p, **k))
    )
    mirror.keep = 1
    advance(run, 2)
    push(mirror, run)
    assert len(sizes) == 7
    assert not any(sizes)


@pytest.mark.parametrize("damage", ["cut", "altered", "gone", "empty", "manifest cut"])
def test_a_damaged_generation_is_passed_over(run, mirror, tmp_path, damage):
    push(mirror, run)
    first = contents(run.folder, run.to_mirror())
    advance(run, 2)
    newest = push(mirror, run)
    path = mirror.root / newest.files["checkpoints/step-00000002.pt"]["name"]
    if damage == "manifest cut":
        path = mirror.root / "manifest-00000002.json"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        altered = bytes([data[0] ^ 1]) + data[1:]
        path.write_bytes({"altered": altered, "empty": b""}.get(damage, data[:-9]))
    back, said = bring(mirror, tmp_path / "elsewhere")
    assert contents(back.folder, first) == first
    assert said[-1] == f"BROUGHT step 1 from generation 1 of {mirror.root}"
    assert damage == "manifest cut" or said[0].startswith("passing over generation 2 of")


def test_a_checkpoint_that_was_damaged_before_it_was_mirrored_is_passed_over(run, mirror, tmp_path):
    push(mirror, run)
    advance(run, 2)
    (run.checkpoints / "step-00000002.pt").write_bytes(b"rotten")
    push(mirror, run)
    _, said = bring(mirror, tmp_path / "elsewhere")
    assert said[-1] == f"BROUGHT step 1 from generation 1 of {mirror.root}"


def test_another_run_is_not_pulled_over_this_one(run, mirror):
    push(mirror, run)
    (run.folder / "run.json").write_text('{"id": "b"}')
    before = contents(run.folder, run.to_mirror())
    with pytest.raises(MirrorError, match="holds another run of this name"):
        fetch_newer(Mirror(mirror.home, "run"), run, -1)
    assert contents(run.folder, run.to_mirror()) == before


def test_a_damaged_picture_does_not_cost_the_checkpoint(run, mirror, tmp_path):
    generation = push(mirror, run)
    (mirror.root / generation.files["samples/x.png"]["name"]).write_bytes(b"")
    back, said = bring(mirror, tmp_path / "elsewhere")
    assert said[0].startswith("1 files of generation 1 of")
    assert not (back.samples / "x.png").exists()
    assert (back.folder / "config.yaml").exists()


def test_no_whole_generation_is_an_error_and_not_a_fresh_start(run, mirror, tmp_path):
    generation = push(mirror, run)
    (mirror.root / generation.files["config.yaml"]["name"]).unlink()
    back = RunDir(tmp_path / "elsewhere")
    with pytest.raises(MirrorError, match="holds 1 copies of this run, and none is whole"):
        bring_run(mirror, back)
    assert not back.config.exists()


def test_files_without_which_nothing_goes_are_not_shared(run, mirror, tmp_path):
    """One emptied config~ had made every generation useless."""
    push(mirror, run)
    advance(run, 2)
    newest = push(mirror, run)
    assert newest.files["config.yaml"]["name"].startswith("config~00000002~")
    for name in ("config.yaml", "run.json", "data.json"):
        (mirror.root / newest.files[name]["name"]).write_bytes(b"")
    _, said = bring(mirror, tmp_path / "back")
    assert said[-1] == f"BROUGHT step 1 from generation 1 of {mirror.root}"


def test_a_mirror_of_shared_files_is_still_read(run, mirror, tmp_path):
    """As earlier versions wrote them: config~1a2b3c4d5e6f.yaml."""
    generation = push(mirror, run)
    files = {}
    for name, entry in generation.files.items():
        files[name] = entry | {"name": entry["name"].replace("~00000001~", "~")}
        (mirror.root / entry["name"]).rename(mirror.root / files[name]["name"])
    rewrite(mirror, 1, files=files)
    back, _ = bring(mirror, tmp_path / "back")
    assert contents(back.folder, generation.files) == contents(run.folder, generation.files)


@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_an_older_generation_is_not_taken_without_a_word(run, mirror, tmp_path, damage):
    push(mirror, run)
    advance(run, 2)
    push(mirror, run)
    manifest = mirror.root / "manifest-00000002.json"
    manifest.write_bytes(b"{") if damage == "torn" else manifest.unlink()
    for bring in (bring_run, lambda *more: fetch_newer(*more, 0)):
        said: list[str] = []
        within(bring, Mirror(mirror.home, "run"), RunDir(tmp_path / str(id(said))), say=said.append)
        assert said[-1] == f"BROUGHT step 1 from generation 1 of {mirror.root}"
        told = [f"passing over what is newest in {mirror.root}: its manifest 2 is not whole"]
        told = told if damage == "torn" else []
        told += [f"passing over what is newest in {mirror.root}: no whole manifest lists step 2"]
        assert said[:-1] == told


ODD = {
    "facts": [None, [], {}, {"run": 1, "time": 1.0}, {"run": "a", "time": "now"}],
    "files": [None, [], {"log.jsonl": None}, {"log.jsonl": {"name": 1, "size": 1, "sha256": ""}}],
    "format": [None, 99],
    "number": [None, 7],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in ODD.items() for v in values])
def test_odd_fields_of_a_manifest_are_no_generation(run, mirror, tmp_path, field, value):
    push(mirror, run)
    advance(run, 2)
    push(mirror, run)
    rewrite(mirror, 2, **{field: value})
    again = Mirror(mirror.home, "run")
    assert [generation.number for generation in again.generations()] == [1]
    bring(mirror, tmp_path / "back")


@pytest.mark.parametrize("name", ["..", ".", "", "/", "a/b", "/etc", "a\\b", "a\0b"])
def test_a_mirror_knows_runs_by_plain_names_only(tmp_path, name):
    with pytest.raises(ValueError, match="is no plain name"):
        Mirror(tmp_path, name)


def test_what_is_dropped_is_never_what_a_link_leads_to(run, mirror, tmp_path):
    push(mirror, run)
    kept = tmp_path / "thesis.txt"
    kept.write_text("years of work")
    link = mirror.root / "x~0123456789ab.txt"
    link.symlink_to(kept)
    push(mirror, run)
    assert not link.is_symlink()
    assert kept.read_text() == "years of work"


def test_links_carry_nothing_away(run, mirror, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.png").write_text("key")
    (run.samples / "key.png").symlink_to(tmp_path / "secret" / "key.png")
    (run.folder / "key.html").symlink_to(tmp_path / "secret" / "key.png")
    (run.samples / "all").symlink_to(tmp_path / "secret")
    shutil.rmtree(run.figures)
    run.figures.symlink_to(tmp_path / "secret")
    assert not [name for name in push(mirror, run).files if "key" in name]


def test_a_forged_manifest_leads_nowhere_else(run, mirror, tmp_path):
    files = push(mirror, run).files
    rewrite(mirror, 1, files=files | {"../../evil.txt": files["config.yaml"]})
    with pytest.raises(MirrorError, match="outside its folder"):
        bring_run(Mirror(mirror.home, "run"), RunDir(tmp_path / "a" / "b"))
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_log_that_grows_while_it_is_copied_is_a_whole_prefix(run, mirror, monkeypatch):
    original = mount_module.blocks

    def growing(file, size):
        if file.name.endswith("log.jsonl") and "drive" not in file.name:
            run.append_log({"step": 99})
        yield from original(file, size)

    monkeypatch.setattr(mount_module, "blocks", growing)
    generation = push(mirror, run)
    copy = (mirror.root / generation.files["log.jsonl"]["name"]).read_text()
    assert copy == '{"step": 1}\n'
    assert len(run.read_log()) > 1


def test_a_mount_point_without_its_mount_is_not_the_mirror(run, mirror):
    push(mirror, run)
    shutil.move(mirror.home, mirror.home.with_name("away"))
    mirror.home.mkdir()  # what is left when a mount is gone
    with pytest.raises(OSError, match="it is not mounted") as caught:
        push(mirror, run)
    assert caught.value.errno == errno.ENOTCONN
    assert not list(mirror.home.iterdir())
    with pytest.raises(OSError, match="the folder it lies in is not there"):
        Mirror(mirror.home / "no" / "where", "run").attach()


@pytest.mark.parametrize("text", ["", '{"id": "1a', "[1]", '{"id": 1}'])
def test_a_torn_marker_is_written_again(run, mirror, tmp_path, text):
    """Its writer was killed behind `open`, or a cloud folder emptied it: all else is whole."""
    push(mirror, run)
    marker = mirror.home / "dreamlib-mirror.json"
    for again in (mirror, Mirror(mirror.home, "run")):
        marker.write_text(text)
        again.attach()
        assert read_json(marker)["id"] == again.id != ""
    bring(mirror, tmp_path / "back")


def test_another_mirror_in_its_place_is_not_said_to_be_unmounted(run, mirror):
    push(mirror, run)
    shutil.move(mirror.home, mirror.home.with_name("away"))
    Mirror(mirror.home, "run").attach()
    with pytest.raises(OSError, match="another mirror is mounted there") as caught:
        push(mirror, run)
    assert caught.value.errno != errno.ENOTCONN


def test_of_two_machines_that_begin_a_mirror_at_once_one_goes_on(run, tmp_path):
    """Each sees the other's files half a minute late: markers, manifests and owners cross."""
    machines = []
    for name in "ab":
        (tmp_path / name).mkdir()
        place = Mirror(tmp_path / name / "dreamlib", "run", settle=0.0)
        machines.append(uploader(place, run, [], beat=0.0))
        machines[-1].identity = name
    for ours in machines:
        ours._pulse()
        ours._push()

    def late():
        """What each wrote replaces what the other has, as it would some time later."""
        before = [
            {path: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
            for name in "ab"
        ]
        for (here, there), files in zip(("ab", "ba"), before):
            for path, data in files.items():
                other = tmp_path / there / path.relative_to(tmp_path / here)
                other.parent.mkdir(parents=True, exist_ok=True)
                other.write_bytes(data)

    for _ in range(3):
        late()
        for ours in machines:
            ours._pulse()
            if not ours.lease_lost:
                ours._push()
    (told,) = (ours.lease_lost for ours in machines if ours.lease_lost)
    assert told.startswith("another session took this run over (pid ")
    (winner,) = (ours for ours in machines if not ours.lease_lost)
    late()
    winner._pulse()
    assert winner.mirror.generations()[0].facts["run"] == winner.identity


def test_a_full_mirror_loses_old_generations_before_it_gives_up(run, mirror, monkeypatch):
    for step in (2, 3):
        advance(run, step)
        push(mirror, run)
    limit = {"files": 2}  # how many generations there is room for
    original = Folder.replace

    def full(self, name, data, known=None):
        if len(mirror.generations()) >= limit["files"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, name, data, known)

    monkeypatch.setattr(Folder, "replace", full)
    advance(run, 4)
    push(mirror, run)
    assert [g.step for g in mirror.generations()] == [4, 3]
    limit["files"] = 1
    advance(run, 5)
    with pytest.raises(OSError, match="No space"):
        push(mirror, run)
    assert [g.step for g in mirror.generations()] == [4]  # the last good one stays
    kept = {entry["name"] for entry in mirror.generations()[0].files.values()}
    held = {path.relative_to(mirror.root).as_posix() for path in mirror.root.rglob("*~*")}
    assert held == kept


def test_what_a_drive_says_of_uploads(run, mirror, monkeypatch):
    generation = push(mirror, run)
    assert mirror.uploaded(generation) == "unknown"
    ids = {}
    monkeypatch.setattr(mount_module.os, "getxattr", lambda p, name: ids.get(str(p), b"1abc"))
    assert mirror.uploaded(generation) == "uploaded"
    ids[str(mirror.root / generation.files["log.jsonl"]["name"])] = b"local-12"
    assert mirror.uploaded(generation) == "uploading"


def test_rclones_last_error_is_told_in_its_servers_words(monkeypatch):
    """vfs/stats counts no refused upload as errored: only core/stats has why."""
    page = "<html>\n<h1>500</h1> File\x1b[31m too large</html>"
    answers = {
        "vfs/stats": {"diskCache": {"erroredFiles": 0, "uploadsInProgress": 1, "uploadsQueued": 0}},
        "core/stats": {"errors": 1, "lastError": page},
    }
    monkeypatch.setattr(mount_module, "_rclone", answers.get)
    assert mount_module.rclone_says() == "uploading"
    assert mount_module.rclone_error() == "500 File [31m too large"
    answers["core/stats"] = {"errors": 0}
    assert mount_module.rclone_error() == ""


# ---------------------------------------------------------------------- the uploader


class Weather:
    """Makes the mirror's files fail with an errno while it is bad."""

    def __init__(self, home: Path):
        self.home, self.number, self.refused = home, 0, 0

    def open(self, path, mode="r"):
        if self.number and str(path).startswith(str(self.home)):
            self.refused += 1
            raise OSError(self.number, os.strerror(self.number), str(path))
        return open(path, mode)


@pytest.fixture
def weather(mirror, monkeypatch):
    made = Weather(mirror.home)
    for module in (mirror_module, mount_module):
        monkeypatch.setattr(module, "open", made.open, raising=False)
    return made


def uploader(mirror, run, said, **more):
    owner, more = Owner(mirror.root / "owner.json"), {"minutes": 0.0, "beat": 0.02} | more
    return Uploader(mirror, owner, run, say=said.append, **{"retry": (0.02, 0.1)} | more)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Nobody waits half a minute for a mirror at the end."""
    monkeypatch.setattr(fleet_module, "LEAST", 0.0)


def wait_for(condition, seconds=120.0):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    assert condition()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ENOTCONN])
def test_errors_are_said_once_and_the_copy_catches_up(run, mirror, weather, number):
    said: list[str] = []
    with carrying(uploader(mirror, run, said)) as ours:
        assert ours.flush(20)
        weather.number = number
        advance(run, 2)
        ours.request()
        wait_for(lambda: weather.refused > 5)
        assert "NOT copied" in ours.report()
        assert ours.last.step == 1
        weather.number = 0
        wait_for(lambda: not ours.failing)
        assert mirror.generations()[0].step == 2
        assert ours.report().startswith("step 2 copied to")
    fails = [text for text in said if text.startswith("MIRROR FAILS")]
    assert len(fails) == 1
    assert f"errno {number}" in fails[0]
    assert sum("is back, and has everything" in text for text in said) == 1


def test_a_file_of_the_run_that_cannot_be_read_is_not_the_mirrors_fault(run, mirror, monkeypatch):
    said: list[str] = []
    blocks = mount_module.blocks

    def fail(file, size):
        if "log.jsonl" in str(file.name):
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))  # a read's names no file
        return blocks(file, size)

    monkeypatch.setattr(mount_module, "blocks", fail)
    with carrying(uploader(mirror, run, said)) as ours:
        assert not ours.flush(20)
    fails = [text for text in said if text.startswith("MIRROR FAILS")]
    assert f"{run.log} cannot be read: Transport endpoint is not connected" in fails[0]
    assert "mount it" not in fails[0]


def test_a_run_that_cannot_be_written_is_not_the_mirrors_fault(run, mirror, tmp_path, monkeypatch):
    push(mirror, run)

    def refuse(source, target):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), source, None, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError) as error:
        bring_run(Mirror(mirror.home, "run"), RunDir(tmp_path / "elsewhere"))
    assert str(tmp_path / "elsewhere") in str(error.value.filename2)


def test_what_a_failed_mount_lost_is_copied_again(run, mirror, weather):
    """Files that were accepted and read back may still never have reached the store."""
    with carrying(uploader(mirror, run, [])) as ours:
        assert ours.flush(20)
        lost = mirror.root / mirror.generations()[0].files["samples/x.png"]["name"]
        size = lost.stat().st_size
        weather.number = errno.ENOTCONN
        ours.request()
        wait_for(lambda: ours.failing)
        lost.write_bytes(b"\0" * size)
        weather.number = 0
        wait_for(lambda: not ours.failing)
        assert lost.read_bytes() == (run.samples / "x.png").read_bytes()


def test_asking_never_waits_and_a_hung_mirror_does_not_keep_the_process(run, mirror, monkeypatch):
    hang = threading.Event()

    def push(*args):
        hang.wait(600)
        raise OSError(errno.ENOTCONN, "at last")

    monkeypatch.setattr(mirror, "push", push)
    start = time.monotonic()
    with carrying(uploader(mirror, run, []), left=lambda: 0.3) as ours:
        for _ in range(1000):
            ours.request()
        assert time.monotonic() - start < 60
    assert time.monotonic() - start < 300
    assert ours.thread.daemon
    hang.set()


def test_a_mirror_that_does_not_answer_holds_nobody_up(run, mirror, monkeypatch):
    hang = threading.Event()
    monkeypatch.setattr(uploader_module, "ANSWER", 0.1)
    monkeypatch.setattr(uploader_module, "PATIENCE", 0.1)
    monkeypatch.setattr(mirror, "attach", lambda: hang.wait(600))
    said: list[str] = []
    start = time.monotonic()
    with carrying(uploader(mirror, run, said), left=lambda: 0.1) as ours:
        assert not ours.owner.beats
    assert time.monotonic() - start < 300
    assert any("does not answer: going on without it" in text for text in said)
    hang.set()


def test_an_upload_that_ends_later_is_noticed(run, mirror, monkeypatch):
    state = {"now": "uploading"}
    monkeypatch.setattr(mirror, "uploaded", lambda generation: state["now"])
    with carrying(uploader(mirror, run, [])) as ours:
        assert ours.flush(20)
        assert ours.report().endswith("uploading")
        state["now"] = "uploaded"
        wait_for(lambda: ours.report().endswith("uploaded"))


def test_copies_are_as_close_as_their_cost_allows(run, mirror, monkeypatch):
    """A twentieth of the time at most, and what is under way is not joined by more."""
    monkeypatch.setattr(uploader_module, "CLOSEST", 0.05)
    began, original = [], mirror.push

    def slow(*args):
        began.append(time.monotonic())
        time.sleep(0.1)
        return original(*args)

    mirror.push = slow
    with carrying(uploader(mirror, run, [], minutes=None)) as ours:
        ours.request()
        wait_for(lambda: ours.last is not None and ours.asked == ours.done)
        assert not ours.due()
        wait_for(ours.due)
        assert time.monotonic() - began[0] >= 0.1 / uploader_module.SHARE
        ours.request()
        wait_for(lambda: len(began) == 2)
        assert began[1] - began[0] >= 0.1 / uploader_module.SHARE
        ours.upload, ours.cost = "uploading", 0.0
        assert ours._every() == uploader_module.UNKNOWN
        ours.minutes = 1.0
        assert ours._every() == 60.0
    # and a period that is asked for is kept, whatever a copy costs
    assert uploader(mirror, run, [], minutes=0.5)._every() <= 30.0


@pytest.mark.parametrize(
    ("upload", "words"),
    [
        ("unknown", "nothing tells whether its server has"),
        ("uploading", "still uploads"),
        ("refused", "its server refuses some"),
    ],
)
def test_a_mount_that_delivers_nothing_is_named_with_its_remedy(
    run, mirror, monkeypatch, upload, words
):
    said: list[str] = []
    monkeypatch.setattr(uploader_module, "UNKNOWN", 0.2)
    monkeypatch.setattr(uploader_module, "GLANCE", 0.01)
    monkeypatch.setattr(mount_module, "filesystem_of", lambda path: "fuse.drive")
    monkeypatch.setattr(mirror, "uploaded", lambda generation: upload)
    with carrying(uploader(mirror, run, said)) as ours:
        assert ours.flush(20)
        wait_for(lambda: ours.warned)
        time.sleep(0.1)
    (told,) = [text for text in said if text.startswith("NOT KNOWN TO BE SAFE")]
    assert words in told
    assert "name a second place too (--mirror s3://" in told
    assert "uploaded" not in ours.report()


def test_a_fuse_mount_never_settles_by_time(run, mirror, monkeypatch):
    monkeypatch.setattr(mount_module, "filesystem_of", lambda path: "fuse.drive")
    for step in range(2, 8):
        advance(run, step)
        push(mirror, run)  # which settles at once elsewhere
    assert [g.number for g in mirror.generations()] == [6, 5, 4, 1]


def test_a_disks_room_is_told_unless_it_is_made_up(mirror, monkeypatch):
    mirror.attach()
    assert "MiB are free there" in mirror.store.room()
    monkeypatch.setattr(mount_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**50))
    assert mirror.store.room() == ""


def test_copies_keep_their_distance(run, mirror):
    pushed = []
    original = mirror.push
    mirror.push = lambda *args: (pushed.append(time.monotonic()), original(*args))[1]
    with carrying(uploader(mirror, run, [], minutes=0.5 / 60)) as ours:
        until = time.monotonic() + 60
        while len(pushed) < 3 and time.monotonic() < until:
            ours.request()
            time.sleep(0.01)
        apart = [b - a for a, b in itertools.pairwise(pushed)]
        assert len(pushed) == 3
        assert min(apart) >= 0.45


def test_a_wish_that_comes_during_a_copy_is_not_forgotten(run, mirror):
    began, original = threading.Event(), mirror.push

    def slow(*args):
        began.set()
        time.sleep(0.2)
        return original(*args)

    mirror.push = slow
    with carrying(uploader(mirror, run, [], minutes=60)) as ours:
        ours.request()
        assert began.wait(120)
        start = time.monotonic()
        assert ours.flush(120)
        assert time.monotonic() - start < 60
        assert len(mirror.generations()) == 2


def test_another_run_of_the_same_name_is_not_mixed_in(run, mirror):
    push(mirror, run)
    (run.folder / "run.json").write_text('{"id": "b"}')
    with (
        pytest.raises(RunError, match="holds another run of this name: rename the folder"),
        carrying(uploader(mirror, run, [])),
    ):
        pass


def test_somebody_who_takes_over_ends_the_copies(run, mirror):
    with carrying(uploader(mirror, run, [])) as ours:
        assert ours.flush(20)
        usurper = Owner(mirror.root / "owner.json")
        usurper.claim(take_over=True)
        wait_for(lambda: usurper.beat() or bool(ours.lease_lost))  # heartbeats may cross its claim
        before = len(mirror.generations())
        advance(run, 2)
        assert not ours.flush(1)
        assert len(mirror.generations()) == before
    assert read_json(mirror.root / "owner.json")["token"] == usurper.me["token"]


# ---------------------------------------------------------------------- whole runs


@pytest.fixture
def machine(tmp_path, data_home, monkeypatch):
    """machine(name) -> a run of one mirror, opened there; machine.said: by all."""
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    (tmp_path / "drive").mkdir()
    home = tmp_path / "drive" / "dreamlib"

    def opened(name: str):
        folder = tmp_path / name / "run"
        return open_run(folder, "faces16", overrides=TINY, mirror=home, say=opened.said.append)

    opened.said = []
    return opened


def test_a_lost_machine_costs_nothing_that_was_mirrored(machine, trained):
    run = machine("a")
    train_for(run, 5)
    shutil.rmtree(run.folder)
    again = machine("a")
    assert any(text.startswith("BROUGHT step 5 from generation") for text in machine.said)
    assert train_for(again) == [6, 7, 8]
    assert_same_state(final_state(again), final_state(trained))
    assert rows(again) == rows(trained)
    assert again.dir.status()["mirrored"] == 8


def test_the_farther_of_two_machines_is_followed(machine, trained):
    """Machine A stops at 3, machine B goes on to 6 from the mirror, A comes back at 6."""
    train_for(machine("a"), 3)
    train_for(machine("b"), 3)
    assert train_for(machine("a")) == [7, 8]
    assert_same_state(final_state(machine("a")), final_state(trained))
    assert rows(machine("a")) == rows(trained)


def test_a_mirror_that_is_not_there_is_said_before_a_fresh_start(tmp_path, data_home, monkeypatch):
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    with pytest.raises(MirrorError, match=r"cannot be read .* may be on it: mount it or"):
        open_run(tmp_path / "run", "faces16", mirror=tmp_path / "no" / "drive")
    assert not (tmp_path / "run").exists()


def test_the_mirror_is_asked_when_nothing_here_is_whole(machine):
    run = machine("a")
    train_for(run, 5)
    for path in run.dir.checkpoints.glob("*.pt"):
        path.write_bytes(b"rotten")
    assert train_for(machine("a")) == [6, 7, 8]
    assert any(text.startswith("BROUGHT step 5") for text in machine.said)


def test_making_room_comes_to_an_end(run, mirror, monkeypatch):
    """A stale machine pushed last: the newest generation is not that of the newest step."""
    for step in (200, 300, 100):
        for path in run.checkpoints.iterdir():
            path.unlink()
        advance(run, step)
        push(mirror, run)
    tries = []

    def full(self, name, data, known=None):
        tries.append(name)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Folder, "replace", full)
    with pytest.raises(OSError, match="No space"):
        push(mirror, run)
    assert len(tries) <= 4
    assert len(mirror.generations()) == 1


def test_whatever_a_mount_makes_of_a_file_the_copies_go_on(run, mirror, monkeypatch):
    original, broken = mirror.push, threading.Event()

    def push_once_wrongly(*args):
        if not broken.is_set():
            broken.set()
            raise ValueError("a torn manifest")
        return original(*args)

    monkeypatch.setattr(mirror, "push", push_once_wrongly)
    said: list[str] = []
    with carrying(uploader(mirror, run, said)) as ours:
        ours.request()
        wait_for(lambda: ours.last is not None)
    assert any("MIRROR FAILS" in text and "a torn manifest" in text for text in said)


def test_what_was_not_copied_in_time_is_said(run, mirror, monkeypatch):
    monkeypatch.setattr(mirror, "push", lambda *args: time.sleep(2))
    said: list[str] = []
    with carrying(uploader(mirror, run, said), left=lambda: 0.2) as ours:
        ours.request()
    assert any(text.startswith("NOT everything is copied to") for text in said)


def test_packed_images_that_do_not_fit_do_not_cost_the_run(run, mirror, monkeypatch):
    def full(images, mirror):
        raise OSError(errno.ENOSPC, "No space left on device")

    said: list[str] = []
    monkeypatch.setattr(uploader_module, "copy_pack", full)
    with carrying(uploader(mirror, run, said, images="packed images")) as ours:
        assert ours.flush(20)
        assert ours.flush(20)
    assert sum("packed images are not copied" in text for text in said) == 1
    assert not any("MIRROR FAILS" in text for text in said)
