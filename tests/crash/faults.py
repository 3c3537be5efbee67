"""Fail or kill the project's commands at random system calls, give them again, compare.

    python -m tests.crash.faults --faults 300 --seed 0

One process imports torch once and forks a child per attempt, which runs `dreamlib`'s own `main`.
A first run without a fault says which calls there are, and what the command comes to.
"""

from __future__ import annotations

import argparse
import errno
import faulthandler
import gc
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import torch
import torch._dynamo  # what a first optimizer step imports: seconds that a fork inherits
import yaml
from PIL import Image

from dreamlib.cli import main as cli
from dreamlib.data import prepare as packing
from dreamlib.report.figures import registry as figures
from dreamlib.runs.checkpoints import newest_checkpoint
from dreamlib.runs.mirror.store import Mirror
from dreamlib.runs.open import open_run
from dreamlib.utils.errors import DreamlibError
from dreamlib.utils.files import read_json, sha256_file
from tests.conftest import train_for
from tests.crash.harness import OURS, debris, differences, trained, tree
from tests.crash.syscalls import FAILURES, KILL, Call, Fault, Watch, possible, watched

STEPS, IMAGES = 6, 90
SHOWN = 4  # flaws of one fault
SLOW = "Kernel didn't respond in 60 seconds"  # Jupyter's own limit, on a busy machine
LONGEST = 150.0  # seconds after which an attempt hangs
EVER = 1000  # calls: from then on, all of them
ROOTS = ("run", "data", "mirror", "images", "guests", "batch")
PRESET = {
    "data": {"name": "folder", "size": 16},
    "net": {"widths": [8], "attention": [], "blocks": 1, "heads": 1},
    "loss": {"name": "standard"},
    "diffusion": {"steps": 40},
    "train": {
        "length": STEPS,
        "batch": 6,
        "ema": 0.9,
        "warmup": 2,
        "log_every": 4,
        "save_minutes": 1e-9,
        "mirror_minutes": 1e-9,
        "precision": "fp32",
        "device": "cpu",
    },
    "sample": {"sampler": "ddim", "spacing": "uniform", "steps": 2, "batch": 5, "shard": 5},
    "evaluate": {"extractor": "classifier", "n": [4, 8], "reference": 8},
}
DRAWN = ("samples", "fd_against_n")  # of many figures, as each takes half a second
# What the commands import when they need it.
LAZY = (
    "dreamlib.evaluation.score_external",
    "dreamlib.report.build",
    "dreamlib.notebook.dashboard",
)
LAZY += ("matplotlib.backends.backend_pdf", "papermill", "nbconvert", "psutil")
REMEDY = re.compile(
    r"\b(again|restore|free|put|delete|choose|use|mount|check|wait|stop|give|name|copy|change|make"
    r"|close|raise|begin|remove|mend|rename|go on)\b"
)


# ---------------------------------------------------------------------- jobs


@dataclass(frozen=True)
class Job:
    """A command, given in a folder, and what it comes to."""

    name: str
    words: tuple[str, ...]
    share: int  # of the faults, in hundredths
    result: Callable[[Path], dict[str, Any]]
    after: str = ""  # the job whose folder it goes on from
    prepare: Callable[[Path], None] = lambda folder: None  # what else was there before


def put_images(folder: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for i in range(count):
        place = folder / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(80 * (i % 2), 120 + 100 * (i % 2), (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{i:03}.png")


def fresh(folder: Path) -> None:
    put_images(folder / "images", IMAGES, 0)
    (folder / "preset.yaml").write_text(yaml.safe_dump(PRESET))


def half_way(folder: Path) -> None:
    fresh(folder)
    run = open_run(OURS, "preset.yaml", overrides=["data.path=images"], mirror="mirror", say=_quiet)
    train_for(run, STEPS // 2)


def elsewhere(folder: Path) -> None:
    """The session was half way when its machine went; the mirror is left."""
    half_way(folder)
    for name in ("data", OURS):
        shutil.rmtree(folder / name)


def guests(folder: Path) -> None:
    put_images(folder / "guests", 12, 1)


def notebooks(folder: Path) -> None:
    """Two runs of one small notebook, which leaves a file in its run's folder."""
    made = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell('RUN = "x"\nN = 1'),
            nbformat.v4.new_code_cell(
                "from pathlib import Path\nfolder = Path(RUN)\nfolder.mkdir(exist_ok=True)\n"
                "(folder / 'squares.txt').write_text(str([i * i for i in range(N)]))"
            ),
        ]
    )
    for cell in made.cells:
        cell.id = str(made.cells.index(cell))
    made.cells[0].metadata["tags"] = ["parameters"]
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(made, folder / "small.ipynb")
    runs = [{"name": f"r{n}", "run": f"batch/run{n}", "parameters": {"N": n}} for n in (3, 4)]
    text = {"jobs": 2, "defaults": {"notebooks": ["small.ipynb"]}, "runs": runs}
    (folder / "two.yaml").write_text(yaml.safe_dump(text))


def _quiet(text: str) -> None:
    """Says nothing."""


def of_training(folder: Path) -> dict[str, Any]:
    found = trained(folder, STEPS) | of_pack(folder)
    # What lies on the mirror is swept when it is asked again: that is looked at in the end.
    return found | {"flaws": [flaw for flaw in found["flaws"] if not flaw.startswith("debris")]}


def of_pack(folder: Path) -> dict[str, Any]:
    """How long the classifier took to train is the one thing that may differ."""
    cards = {card.name: card for card in (folder / "data").rglob("classifier-*.json")}
    kept = {f"card {name}": read_json(card) | {"seconds": None} for name, card in cards.items()}
    found = tree(folder / "data", packing.LOCK, *cards)
    # What is brought lies beside its place meanwhile; that it goes is looked at in the end.
    return kept | {name: data for name, data in found.items() if "/." not in name}


def of_folders(*names: str) -> Callable[[Path], dict[str, Any]]:
    def result(folder: Path) -> dict[str, Any]:
        found = {"flaws": [], **of_pack(folder)}
        for name in names:
            found |= tree(folder / OURS / name, ".lock")
        return found

    return result


def of_batch(folder: Path) -> dict[str, Any]:
    states = [
        facts["state"]
        for run in read_json(folder / "batch" / "status.json")["runs"].values()
        for facts in run["notebooks"].values()
    ]
    pages = {path.name for path in (folder / "batch").rglob("*.html")}
    texts = {p.parent.name: p.read_text() for p in (folder / "batch").rglob("squares.txt")}
    return {"flaws": [], "states": states, "pages": pages, "texts": texts}


TRAIN = ("train", OURS, "--preset", "preset.yaml", "--data", "images", "--mirror", "mirror")
MIRRORED = (OURS, "--mirror", "mirror")
GUESTS = ("evaluate", *MIRRORED, "--images", "guests", "--n", "4")
BATCH = ("notebooks", "--batch", "two.yaml", "--out", "batch")
NEW = "train"
JOBS = (
    Job(NEW, TRAIN, 24, of_training, prepare=fresh),
    Job("resume", TRAIN, 14, of_training, prepare=half_way),
    Job("return", ("train", *MIRRORED), 10, of_training, prepare=elsewhere),
    Job("sample", ("sample", *MIRRORED, "--n", "10"), 14, of_folders("samples", "generated"), NEW),
    Job("evaluate", ("evaluate", *MIRRORED), 14, of_folders("generated", "evaluation"), NEW),
    Job("guests", GUESTS, 8, of_folders("evaluation"), "evaluate", guests),
    Job("figures", ("figures", *MIRRORED), 10, of_folders("evaluation", "figures"), "evaluate"),
    Job("batch", BATCH, 6, of_batch, prepare=notebooks),
)


# ---------------------------------------------------------------------- attempts


@dataclass
class Attempt:
    code: int | None  # -9: killed, None: it hung
    output: str
    watch: Watch


def give(words: Sequence[str], folder: Path, fault: Fault | None = None) -> Attempt:
    """The command, in a child that works in `folder`."""
    watch = Watch({root: str(folder / root) for root in ROOTS}, fault)
    with tempfile.TemporaryFile() as out:
        code = watched(lambda: _command(words, folder, out.fileno()), watch, LONGEST)
        out.seek(0)
        return Attempt(code, out.read().decode(errors="replace"), watch)


def _command(words: Sequence[str], folder: Path, out: int) -> int:
    """`python -m dreamlib WORDS`, from main() to the end of the interpreter."""
    for number in (1, 2):
        os.dup2(out, number)
    os.chdir(folder)
    sys.argv = ["dreamlib", *words]
    faulthandler.dump_traceback_later(0.9 * LONGEST, file=2)  # where it hangs, if it does
    code: Any = 0
    try:
        cli.main()
    except SystemExit as error:
        code = error.code or 0
    except BaseException:  # noqa: BLE001  as the interpreter does
        traceback.print_exc()
        code = 1
    threading._shutdown()  # waits for threads that are no daemons, as the interpreter does
    sys.stdout.flush()
    return code if isinstance(code, int) else 1


def warm() -> None:
    """Everything that a child would import, so that it need not."""
    torch.set_num_threads(1)
    Image.init()
    for name in LAZY:
        importlib.import_module(name)
    every = figures.all_of
    figures.all_of = lambda *words: {name: every(*words)[name] for name in DRAWN}
    os.environ.pop("DREAMLIB_DATA", None)
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    gc.freeze()  # whoever collects garbage need not copy what was inherited


# ---------------------------------------------------------------------- judging


@dataclass
class Report:
    name: str
    faults: int = 0
    runs: int = 0  # the command given, in all
    by: dict[str, int] = field(default_factory=dict)  # "ENOSPC: a sentence" -> how often
    said: list[str] = field(default_factory=list)  # how faults were put into words
    flaws: list[str] = field(default_factory=list)

    def line(self) -> str:
        by = ", ".join(f"{n} {what}" for what, n in sorted(self.by.items()))
        return f"{self.name}: {self.faults} faults in {self.runs} commands ({by}), " + (
            f"{len(self.flaws)} flaws" if self.flaws else "no flaw"
        )


class Campaign:
    """One job's faults."""

    def __init__(self, job: Job, scratch: Path):
        self.job, self.here = job, scratch / "here"  # always the same: settings hold paths
        self.base, self.truth = scratch / f"{job.name}-base", scratch / f"{job.name}-truth"
        self.report = Report(job.name)
        shutil.rmtree(self.here, ignore_errors=True)
        if job.after:
            shutil.copytree(scratch / f"{job.after}-truth", self.here)
        self.here.mkdir(exist_ok=True)
        watched(self._prepare, Watch({}), LONGEST)
        shutil.copytree(self.here, self.base)
        first = give(job.words, self.here)
        if first.code:
            raise RuntimeError(f"undisturbed {job.name} ended with {first.code}: {first.output}")
        self.result, self.names = job.result(self.here), names(self.here)
        shutil.copytree(self.here, self.truth)
        self.points = Counter(call.point for call in first.watch.calls)
        again = give(job.words, self.here)
        self.report.flaws += self.result["flaws"] + self._differences()
        self.report.flaws += [f"again: {again.output}"] if again.code else []
        self.calls = {call.point: call for call in first.watch.calls}

    def _prepare(self) -> int:
        os.chdir(self.here)
        self.job.prepare(self.here)
        threading._shutdown()
        return 0

    # ------------------------------------------------------------------ choosing

    def choose(self, rng: random.Random) -> Fault:
        """A folder, a call on it, a failure: each with equal chances, so that the many reads of
        images do not hide the one rename."""
        usable = [call for call in self.calls.values() if call.name in FAILURES]
        root = rng.choice(sorted({call.root for call in usable}))
        call: Call = rng.choice([call for call in usable if call.root == root])
        number = rng.randint(1, self.points[call.point])
        short = rng.random() < 0.5
        if rng.random() < 0.3:
            return Fault(call.point, number, KILL, short, everyone=rng.random() < 0.5)
        what = rng.choice(sorted(FAILURES[call.name]))
        return Fault(call.point, number, what, short, rng.choice([1, 3, EVER]))

    # ------------------------------------------------------------------ one fault

    def one(self, fault: Fault) -> None:
        shutil.rmtree(self.here, ignore_errors=True)
        shutil.copytree(self.base, self.here)
        struck = give(self.job.words, self.here, fault)
        self.report.runs += 1
        flaws = self._judge(struck)
        if not struck.watch.struck:
            flaws += self._after(struck)
        else:
            self.report.faults += 1
            outcome = self._outcome(struck)
            what = errno.errorcode[fault.what] if isinstance(fault.what, int) else fault.what
            key = f"{what}: {outcome}"
            self.report.by[key] = self.report.by.get(key, 0) + 1
            words = [x for x in struck.output.splitlines() if x.startswith(("error", "MIRROR"))]
            self.report.said += [f"{fault.text()}: {x}" for x in words]
            again = give(self.job.words, self.here)
            if SLOW in again.output:
                again = give(self.job.words, self.here)
            self.report.runs += 1
            flaws += self._after(again)
        if flaws:
            more = f" (and {len(flaws) - SHOWN} more)" if len(flaws) > SHOWN else ""
            self.report.flaws.append(
                f"{fault.text()}: {'; '.join(flaws[:SHOWN])}{more}\n"
                f"It ended with {struck.code}: {struck.output[-3000:]}"
            )

    def _outcome(self, attempt: Attempt) -> str:
        if attempt.code == 0:
            return "no matter"
        return "killed" if attempt.code == -signal.SIGKILL else "a sentence"

    def _judge(self, attempt: Attempt) -> list[str]:
        """What is wrong with the way in which a command ended."""
        flaws = self._claims(attempt.output)
        flaws += [f"it says {word!r}" for word in ("Traceback", "[Errno") if word in attempt.output]
        if attempt.code == 0:
            return flaws + self._differences()
        if attempt.code == 2:
            lines = [x for x in attempt.output.splitlines() if x.startswith("error: ")]
            # Typer's own sentence; and a batch's table says which notebook failed, and of what.
            if not lines and ("Invalid value" in attempt.output or self.job.name == "batch"):
                return flaws
            if len(lines) != 1 or not REMEDY.search(lines[0]):
                flaws.append(f"no sentence with a remedy: {lines}")
        elif attempt.code is None:
            flaws.append("it hung")
        elif attempt.code not in (-signal.SIGKILL, cli.UNFINISHED):
            flaws.append(f"it ended with {attempt.code}")
        return flaws

    def _claims(self, output: str) -> list[str]:
        """What was called saved, and is not."""
        flaws = []
        said = re.findall(r"step ([\d,]+) is saved|PAUSED at step ([\d,]+) of", output)
        saved = [int("".join(pair).replace(",", "")) for pair in said]
        try:
            newest = newest_checkpoint(self.here / OURS / "checkpoints")
            step = newest.step if newest else -1
            flaws += [f"step {n} was called saved, but {step} is" for n in saved if n > step]
            held = Mirror(self.here / "mirror", OURS).generations()
        except (DreamlibError, OSError) as error:
            return [f"nothing to look at: {error}"]
        step = held[0].step if held and whole(held[0], self.here / "mirror" / "runs" / OURS) else -1
        copied = re.findall(r"^mirror: step ([\d,]+) copied to", output, re.MULTILINE)
        for number in copied[-1:]:
            if int(number.replace(",", "")) != step:
                flaws.append(f"step {number} was called copied, but {step} is")
        return flaws

    def _after(self, again: Attempt) -> list[str]:
        """What is wrong once the same command was given again, undisturbed."""
        if again.code != 0:
            return [f"again: it ended with {again.code}: {again.output[-2000:]}"]
        flaws = [f"again: {flaw}" for flaw in self._claims(again.output) + self._differences()]
        if "Traceback" in again.output:
            flaws.append(f"again: a traceback: {again.output[-2000:]}")
        asked = any(call.root == "mirror" for call in again.watch.calls)  # else it is left alone
        for root in ROOTS:
            flaws += debris(self.here / root) if root != "mirror" or asked else []
        extra = sorted(names(self.here) - self.names)
        return flaws + [f"left behind: {name}" for name in extra if ".tmp" not in name]

    def _differences(self) -> list[str]:
        return differences(self.result, self.job.result, self.here)


def whole(generation: Any, root: Path) -> bool:
    return all(
        (root / entry["name"]).is_file() and sha256_file(root / entry["name"]) == entry["sha256"]
        for entry in generation.files.values()
    )


def names(folder: Path) -> set[str]:
    """Of every file; which checkpoints there are, and what the mirror keeps, may differ."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {n for n in found if not n.startswith((f"{OURS}/checkpoints/", "mirror/runs/"))}


def indented(flaw: str) -> str:
    return "  " + flaw.strip().replace("\n", "\n      ") + "\n"


# ---------------------------------------------------------------------- the script


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    known = [job.name for job in JOBS]
    parser.add_argument("jobs", nargs="*", default=known, help=f"of {known}; all of them")
    parser.add_argument("--faults", type=int, default=300, help="in all; each job has its share")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="where to write everything as JSON")
    args = parser.parse_args()
    if not possible():
        return 77  # as other test programs say that they were skipped
    warm()
    found = []
    wanted = {job.after for job in JOBS if job.name in args.jobs} | {*args.jobs}
    wanted |= {job.after for job in JOBS if job.name in wanted}
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        for job in JOBS:
            if job.name not in wanted:
                continue
            campaign = Campaign(job, Path(scratch).resolve())
            rng, report = random.Random(f"{args.seed} {job.name}"), campaign.report
            due = -(-args.faults * job.share // 100) if job.name in args.jobs else 0
            while report.faults < due and report.runs < 4 * due:
                campaign.one(campaign.choose(rng))
            found.append(report)
            sys.stdout.write(report.line() + "\n" + "".join(map(indented, report.flaws)))
            sys.stdout.flush()
    if args.report:
        args.report.write_text(json.dumps([asdict(report) for report in found]))
    return int(any(report.flaws for report in found))


if __name__ == "__main__":
    sys.exit(main())
