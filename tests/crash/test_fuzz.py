"""Damaged files of a real run: the newest good generation or one clear sentence, nothing else."""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamlib.runs.checkpoints import newest_checkpoint
from dreamlib.runs.folder import RunDir
from dreamlib.runs.open import open_run
from dreamlib.runs.run import Run
from dreamlib.training.diffusion import DiffusionTrainer
from dreamlib.utils.errors import CheckpointError, DreamlibError, RunError
from dreamlib.utils.files import read_json, seal, write_json
from tests.conftest import TINY, train_for
from tests.training.test_train import assert_same_state, final_state, rows

STEPS = (2, 4, 6)  # the generations of the run that is damaged; it ends at 8
NEWEST, BEFORE = "step-00000006", "step-00000004"


@dataclass(frozen=True)
class Story:
    """Runs that are only copied: one with three generations, and two to take files from."""

    ours: Path
    seed: Path  # the same settings, but for train.seed
    larger: Path  # a larger network
    states: dict[int, dict[str, Any]]  # of `ours`, by step


def begin(folder: Path, *more: str) -> Path:
    """A run left after steps 2, 4 and 6, each time saved."""
    for _ in STEPS:
        run = open_run(folder, "faces16", overrides=[*TINY, *more], say=lambda text: None)
        train_for(run, 2)
    assert sorted(path.name for path in (folder / "checkpoints").glob("*.pt")) == [
        f"step-{step:08d}.pt" for step in STEPS
    ]
    return folder


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, data_home: Path) -> Iterator[Story]:
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("story")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DREAMLIB_DATA", str(data_home))
        ours = begin(home / "ours")
        files = {step: ours / f"checkpoints/step-{step:08d}.pt" for step in STEPS}
        states = {step: torch.load(path, weights_only=True) for step, path in files.items()}
        larger = begin(home / "larger", "net.widths=[16, 32]")
        yield Story(ours, begin(home / "seed", "train.seed=1"), larger, states)


@pytest.fixture
def place(story, tmp_path, data_home, monkeypatch):
    """place() -> a fresh copy of the run."""
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))

    def fresh() -> Path:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(story.ours, tmp_path / "run")
        return tmp_path / "run"

    return fresh


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The trainer's state after each load of a checkpoint."""
    states: list[dict[str, Any]] = []
    original = DiffusionTrainer.load_state_dict

    def load(self: DiffusionTrainer, state: dict[str, Any]) -> None:
        original(self, state)
        states.append(copy.deepcopy(self.state_dict()))

    monkeypatch.setattr(DiffusionTrainer, "load_state_dict", load)
    return states


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def go_on(folder: Path, said: list[str] | None = None) -> tuple[Run, list[int]]:
    """Open the run again and train it to its end -> it, and the steps that were taken."""
    run = open_run(folder, say=(said if said is not None else []).append)
    return run, train_for(run)


@functools.cache
def state_of(trained: RunDir) -> dict[str, Any]:
    """Read once: a checkpoint of many small tensors takes torch as long as a step of training."""
    return newest_checkpoint(trained.checkpoints).load()


def assert_undisturbed(run: Run, trained: Run) -> None:
    assert_same_state(final_state(run), state_of(trained.dir))
    assert rows(run) == rows(trained)
    weights = "weights/ema.safetensors"
    assert (run.folder / weights).read_bytes() == (trained.folder / weights).read_bytes()


# ---------------------------------------------------------------------- every cut, many bits


@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_cut_at_every_percent(place: Callable[[], Path], suffix: str) -> None:
    folder = place() / "checkpoints"
    path = folder / f"{NEWEST}{suffix}"
    whole = path.read_bytes()
    for percent in range(100):
        path.write_bytes(whole[: len(whole) * percent // 100])
        assert newest_checkpoint(folder).path.stem == BEFORE, f"cut at {percent} %"
    path.write_bytes(whole)
    assert newest_checkpoint(folder).path.stem == NEWEST


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_a_flipped_bit_at_200_random_places(place: Callable[[], Path], suffix: str) -> None:
    folder = place() / "checkpoints"
    path, whole = folder / f"{NEWEST}{suffix}", newest_checkpoint(folder)
    data = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(data)), 200):
        path.write_bytes(flipped(data, bit))
        found = newest_checkpoint(folder)
        # a last digit of `time` may not change the number
        harmless = suffix == ".json" and found == whole
        assert found.path.stem == BEFORE or harmless, f"bit {bit}"


@pytest.mark.parametrize("field", ["format", "step", "size", "seal"])
def test_every_bit_of_the_fields_that_decide(place: Callable[[], Path], field: str) -> None:
    folder = place() / "checkpoints"
    path = folder / f"{NEWEST}.json"
    data = path.read_bytes()
    start = data.rindex(f'"{field}": '.encode())
    for bit in range(8 * start, 8 * data.index(b"\n", start)):
        path.write_bytes(flipped(data, bit))
        assert newest_checkpoint(folder).path.stem == BEFORE, f"bit {bit}"


# ---------------------------------------------------------------------- passed over, end to end


def forge(path: Path, data: bytes, /, **facts: Any) -> None:
    """Put data in place of a checkpoint, and change its manifest to vouch for it."""
    path.write_bytes(data)
    manifest = read_json(path.with_suffix(".json")) | facts
    manifest |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.pop("seal")
    write_json(path.with_suffix(".json"), seal(manifest))


class Bomb:
    """Its unpickling makes a folder `exploded` in the working directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def bare_bomb() -> bytes:
    return pickle.dumps(Bomb())


def packed_bomb() -> bytes:
    """In the shape of a checkpoint, among honest tensors."""
    file = io.BytesIO()
    torch.save({"step": 6, "net": {"w": torch.zeros(3), "x": Bomb()}}, file)
    return file.getvalue()


def swap(one: Path, other: Path) -> None:
    between = one.with_suffix(".between")
    for source, target in ((one, between), (other, one), (between, other)):
        source.rename(target)


def take(folder: Path, source: Path, names: dict[str, str]) -> None:
    for name, origin in names.items():
        shutil.copy(source / "checkpoints" / origin, folder / name)


Damage = Callable[[Path, Story], Any]  # of a folder of checkpoints
NEW, OLD = (NEWEST + ".pt", NEWEST + ".json"), (BEFORE + ".pt", BEFORE + ".json")


def with_nan(text: str) -> str:
    return text.replace('"time"', '"x": NaN, "time"')


def without_a_step(manifest: dict[str, Any]) -> dict[str, Any]:
    return seal({key: manifest[key] for key in ("format", "size", "sha256")})


BEFORE_GOES_ON: dict[str, Damage] = {
    "cut": lambda c, s: os.truncate(c / NEW[0], 400_000),
    "short by a byte": lambda c, s: os.truncate(c / NEW[0], (c / NEW[0]).stat().st_size - 1),
    "longer by a byte": lambda c, s: (c / NEW[0]).open("ab").write(b"\0"),
    "empty": lambda c, s: (c / NEW[0]).write_bytes(b""),
    "a flipped bit": lambda c, s: (c / NEW[0]).write_bytes(
        flipped((c / NEW[0]).read_bytes(), 3_000_000)
    ),
    "no manifest": lambda c, s: (c / NEW[1]).unlink(),
    "an empty manifest": lambda c, s: (c / NEW[1]).write_bytes(b""),
    "a manifest of lists": lambda c, s: (c / NEW[1]).write_text("[1, 2]"),
    "a manifest of nested lists": lambda c, s: (c / NEW[1]).write_text("[" * 100_000),
    "a manifest with NaN": lambda c, s: (c / NEW[1]).write_text(with_nan((c / NEW[1]).read_text())),
    "a sealed manifest without a step": lambda c, s: write_json(
        c / NEW[1], without_a_step(read_json(c / NEW[1]))
    ),
    "a folder for a manifest": lambda c, s: [(c / NEW[1]).unlink(), (c / NEW[1]).mkdir()],
    "no data": lambda c, s: (c / NEW[0]).unlink(),
    "an older manifest": lambda c, s: shutil.copy(c / OLD[1], c / NEW[1]),
    "older data": lambda c, s: shutil.copy(c / OLD[0], c / NEW[0]),
    "another run's manifest": lambda c, s: take(c, s.seed, {NEW[1]: NEW[1]}),
    "another run's data": lambda c, s: take(c, s.seed, {NEW[0]: NEW[0]}),
    "a larger net's data": lambda c, s: take(c, s.larger, {NEW[0]: NEW[0]}),
    "a bomb": lambda c, s: (c / NEW[0]).write_bytes(bare_bomb()),
    "a bomb of the same size": lambda c, s: (c / NEW[0]).write_bytes(
        bare_bomb().ljust((c / NEW[0]).stat().st_size)
    ),
}
OLDEST_GOES_ON: dict[str, Damage] = {
    "a newer manifest": lambda c, s: shutil.move(c / NEW[1], c / OLD[1]),
    "swapped data": lambda c, s: swap(c / NEW[0], c / OLD[0]),
    "swapped manifests": lambda c, s: swap(c / NEW[1], c / OLD[1]),
    "swapped both": lambda c, s: [swap(c / n, c / o) for n, o in zip(NEW, OLD)],
}
PASSED_OVER = {name: (4, damage) for name, damage in BEFORE_GOES_ON.items()}
PASSED_OVER |= {name: (2, damage) for name, damage in OLDEST_GOES_ON.items()}


@pytest.mark.parametrize("name", PASSED_OVER)
def test_the_generation_before_goes_on_to_the_same_end(
    place, story, trained, loaded, monkeypatch, name
):
    step, damage = PASSED_OVER[name]
    folder, said = place(), []
    monkeypatch.chdir(folder.parent)
    damage(folder / "checkpoints", story)
    run, steps = go_on(folder, said)
    assert any(text.startswith(f"RESUMED at step {step} of 8") for text in said)
    assert steps == list(range(step + 1, 9))
    assert_same_state(loaded[0], story.states[step])
    assert_undisturbed(run, trained)
    assert not Path("exploded").exists()


# ---------------------------------------------------------------------- refused, end to end


def damage_all(checkpoints: Path, story: Story) -> None:
    for path in checkpoints.glob("*.pt"):
        os.truncate(path, 1000)


def delete(pattern: str) -> Damage:
    return lambda c, s: [path.unlink() for path in c.glob(pattern)]


def larger_forged(checkpoints: Path, story: Story) -> None:
    forge(checkpoints / NEW[0], (story.larger / "checkpoints" / NEW[0]).read_bytes())


def forged(data: Callable[[], bytes]) -> Damage:
    return lambda c, s: forge(c / NEW[0], data())


def claiming(**facts: Any) -> Damage:
    return lambda c, s: forge(c / NEW[0], (c / NEW[0]).read_bytes(), **facts)


def beginning(size: int) -> Damage:
    return lambda c, s: forge(c / NEW[0], (c / NEW[0]).read_bytes()[:size])


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def partly(checkpoints: Path, story: Story) -> None:
    forge(checkpoints / NEW[0], saved({k: v for k, v in story.states[6].items() if k != "meter"}))


REFUSED: dict[str, tuple[type[DreamlibError], str, Damage]] = {
    "all damaged": (CheckpointError, r"none of the 3 checkpoints .* restore", damage_all),
    "all data deleted": (CheckpointError, r"none of the 3 .* restore", delete("*.pt")),
    "all deleted": (RunError, r"had a checkpoint of step 6, .* restore", delete("*")),
    "all manifests deleted": (RunError, r"had a checkpoint of step 6", delete("*.json")),
    "a larger net": (
        CheckpointError,
        r"belongs to another run \(net.widths: \[16, 32\] -> \[8, 16\]\)",
        lambda c, s: take(c, s.larger, dict(zip(NEW, NEW))),
    ),
    "another run": (
        CheckpointError,
        r"belongs to another run \(train.seed: 1 -> 0\)",
        lambda c, s: take(c, s.seed, dict(zip(NEW, NEW))),
    ),
    "other images": (CheckpointError, r"another run \(images: 0{8} -> ", claiming(data="0" * 64)),
    "another version": (
        CheckpointError,
        r"has format 3, .* continue with the version",
        claiming(format=3),
    ),
}
EXECUTED = r"nothing in it was executed"
FORGED: dict[str, tuple[str, Damage]] = {  # sealed as this run's own
    "a larger net": (r"does not fit this network", larger_forged),
    "a part missing": (r"does not fit this network", partly),
    "no state": (r"does not fit this network", forged(lambda: saved([1, 2]))),
    "a tensor": (r"does not fit this network", forged(lambda: saved(torch.zeros(3)))),
    "a bomb": (EXECUTED, forged(bare_bomb)),
    "a packed bomb": (EXECUTED, forged(packed_bomb)),
    "a stack run empty": (EXECUTED, forged(lambda: b"\x80\x02s.")),
    "a short number": (EXECUTED, forged(lambda: b"\x80\x02NM.")),
    "half a checkpoint": (EXECUTED, beginning(400_000)),
    "a little of a checkpoint": (EXECUTED, beginning(40_000)),
}


def assert_refused(folder: Path, kind: type[DreamlibError], match: str) -> None:
    """Also the second time; nothing is trained, and no file of state is touched."""
    for _ in range(2):
        before = contents(folder)
        with pytest.raises(kind, match=match):
            go_on(folder)
        after = contents(folder)
        changed = {name for name in before | after if before.get(name) != after.get(name)}
        assert changed <= {"status.json", "events.jsonl"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_go_on_is_refused_every_time(place, story, name):
    kind, match, damage = REFUSED[name]
    folder = place()
    damage(folder / "checkpoints", story)
    assert_refused(folder, kind, match)


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_generation_is_refused_and_its_remedy_works(
    place, story, trained, monkeypatch, name
):
    match, damage = FORGED[name]
    folder = place()
    monkeypatch.chdir(folder.parent)
    damage(folder / "checkpoints", story)
    assert_refused(folder, CheckpointError, f"{match}.*: delete it and its .json to go on")
    assert not Path("exploded").exists()
    for file in NEW:
        (folder / "checkpoints" / file).unlink()
    run, steps = go_on(folder)
    assert steps == [5, 6, 7, 8]
    assert_undisturbed(run, trained)


def test_any_bit_of_a_forged_checkpoint_is_no_crash(place: Callable[[], Path]) -> None:
    """Past the hash, torch alone reads the file: whatever it meets there is one sentence."""
    folder, rng = place() / "checkpoints", random.Random(0)
    data = (folder / NEW[0]).read_bytes()
    start, refused = data.index(b"\x80\x02"), 0
    for _ in range(80):
        forge(folder / NEW[0], flipped(data, 8 * start + rng.randrange(8 * 4000)))
        try:
            newest_checkpoint(folder).load()
        except CheckpointError:
            refused += 1
    assert refused > 25


# ---------------------------------------------------------------------- the small files

JSON = ("status.json", "run.json", "data.json", "weights/card.json", "lock")
TEXTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda old: b"",
    "half": lambda old: old[: len(old) // 2],
    "not text": lambda old: b"\xff\xfe\x00{",
    "a list": lambda old: b"[1, 2]\n",
    "no fields": lambda old: b"{}\n",
    "other fields": lambda old: b'{"state": 3, "step": "x", "saved": [1], "id": 5, "packed": 7}\n',
    "nested": lambda old: b"[" * 100_000,
}


def assert_named_or_right(folder: Path, name: str, trained: Run, mirror: str = "none") -> None:
    """Training ends as if nothing had happened, or one sentence names the file."""
    try:
        run = open_run(folder, mirror=mirror, say=lambda text: None)
        train_for(run)
    except DreamlibError as error:
        assert Path(name).name in str(error)  # noqa: PT017  either is right
    else:
        assert_undisturbed(run, trained)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", [*JSON, "config.yaml"])
def test_a_damaged_small_file_is_named_or_does_not_matter(place, trained, name, text):
    path = place() / name
    if name == "run.json":
        write_json(path, {"id": "0" * 32, "begun": 0.0})
    path.write_bytes(TEXTS[text](path.read_bytes()))
    mirror = path.parents[1] / "mirror" if name == "run.json" else "none"  # nothing else reads it
    assert_named_or_right(
        path.parent if "/" not in name else path.parents[1], name, trained, mirror
    )


@pytest.mark.parametrize("tenth", range(1, 10, 2))
def test_a_cut_config_is_refused_or_the_same_run(place, trained, tenth):
    """Fields cut off fall back to their defaults: the checkpoint sees that."""
    path = place() / "config.yaml"
    text = path.read_bytes()
    path.write_bytes(text[: len(text) * tenth // 10])
    try:
        run, _ = go_on(path.parent)
    except DreamlibError as error:
        known = ("config.yaml", "belongs to another run")
        assert any(words in str(error) for words in known)  # noqa: PT017
    else:
        assert_undisturbed(run, trained)


LINES = {
    "torn": b'{"step": 3, "lo\n',
    "not text": b"\xff\xfe{\n",
    "a list": b"[1]\n",
    "no fields": b'{"a": 1}\n',
    "other fields": b'{"step": "4", "time": "x", "event": 3}\n',
    "nested": b"[" * 100_000 + b"\n",
}


def insert(path: Path, line: bytes) -> None:
    """Before the last line."""
    *first, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*first, line, last]))


@pytest.mark.parametrize("line", LINES)
def test_a_damaged_line_of_the_log_is_named(place: Callable[[], Path], line: str) -> None:
    folder = place()
    log = folder / "log.jsonl"
    number = log.read_bytes().count(b"\n")
    insert(log, LINES[line])
    assert_refused(folder, RunError, rf"line {number} of .*log\.jsonl is damaged .*delete that")


def test_damaged_lines_of_the_events_do_not_matter(place: Callable[[], Path], trained: Run) -> None:
    folder = place()
    told = len(RunDir(folder).read_events())
    for line in LINES.values():
        insert(folder / "events.jsonl", line)
    assert len(RunDir(folder).read_events()) == told > 3
    run, _ = go_on(folder)
    assert_undisturbed(run, trained)
    assert len(run.dir.read_events()) > told


def test_a_torn_last_event_is_left_out(place: Callable[[], Path]) -> None:
    run = RunDir(place())
    told = run.read_events()
    with open(run.events, "ab") as file:
        file.write(b'{"time": 1, "ev')
    assert run.read_events() == told
    run.note("after")
    run.note("later")
    assert [event["event"] for event in run.read_events()[len(told) :]] == ["after", "later"]
