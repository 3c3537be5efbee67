"""What a save costs training: copied and written behind its back, against written while it waits.

    python -m benchmarks save_stall

The 54.85M network with Adam and averaged weights (about 880 MB) takes 20 steps without a save,
with one behind its back, and with one that it waits for, interleaved.  Both saves are the same
work: checkpoint written, flushed, read back, weights exported.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from dreamlib.runs.checkpoints import save_checkpoint
from dreamlib.runs.open import open_run
from dreamlib.runs.run import Run
from dreamlib.training.async_save import Saver
from dreamlib.training.diffusion import DiffusionTrainer
from dreamlib.utils.weights import averaged_of

STEPS, AT = 20, 3  # the save comes after step 3, so that it ends within the 20
SETTINGS = [
    "data.name=faces",
    *("data.train=256", "data.reference=8", "data.floor=8", "data.flip=false"),
    *("train.device=cpu", "train.log_every=1000000"),
]


class Bench:
    """One trainer, and the two ways to save it."""

    def __init__(self, run: Run, folder: Path):
        self.run, self.folder, self.number = run, folder, 0
        self.trainer, self.saver = DiffusionTrainer(run), Saver()

    def write(self, state: dict[str, Any]) -> None:
        save_checkpoint(self.folder, self.number, state, self.run.checkpoint_facts, keep=1)
        self.run.export_weights(self.number, averaged_of(state))

    def behind(self) -> None:
        self.saver.save(self.trainer.state_dict(), self.write)

    def waiting(self) -> None:
        self.write(self.trainer.state_dict())

    def steps(self, save: Callable[[], None] | None) -> dict[str, float]:
        """Seconds for all steps, for the call that saves, and until the save is on the disk."""
        self.number += 1
        blocked, begun = 0.0, time.perf_counter()
        for step in range(STEPS):
            self.trainer.advance()
            if save and step + 1 == AT:
                called = time.perf_counter()
                save()
                blocked = time.perf_counter() - called
        wall = time.perf_counter() - begun
        self.saver.wait()
        late = time.perf_counter() - begun - wall
        return {"wall": wall, "blocked": blocked, "late": late, "written": self.saver.cost}


def table(result: dict[str, Any]) -> str:
    """Medians over the rounds; the ratio is of medians, with the range over rounds."""
    rounds = result["turns"]
    plain = [r["plain"]["wall"] for r in rounds]
    lines = [
        "| save | training waits, s | extra time of 20 steps, s |",
        "|---|---|---|",
    ]
    for kind in ("behind", "waiting"):
        blocked = median(r[kind]["blocked"] for r in rounds)
        extra = median(r[kind]["wall"] + r[kind]["late"] - p for r, p in zip(rounds, plain))
        lines.append(f"| {kind} | {blocked:.2f} | {extra:.2f} |")
    ratios = [r["behind"]["blocked"] / r["waiting"]["blocked"] for r in rounds]
    spread = f"1/{1 / max(ratios):.0f} to 1/{1 / min(ratios):.0f} over {len(rounds)} rounds"
    lines.append(
        f"\nTraining waits 1/{1 / median(ratios):.0f} as long ({spread}); 20 steps without "
    )
    lines[-1] += f"a save take {median(plain):.1f} s."
    return "\n".join(lines)


def measure(rounds: int, quick: bool) -> dict[str, Any]:
    """Every round's seconds of 20 steps without a save and with either kind."""
    preset, batch = ("faces16", 8) if quick else ("celeba64", 4)
    with tempfile.TemporaryDirectory() as home:
        settings = [*SETTINGS, f"train.batch={batch}"]
        run = open_run(Path(home) / "run", preset, overrides=settings, say=lambda text: None)
        bench = Bench(run, Path(home) / "checkpoints")
        bench.steps(bench.behind)  # warm: buffers, optimizer state
        found = []
        for _ in range(rounds):
            kinds = {"plain": None, "behind": bench.behind, "waiting": bench.waiting}
            found.append({name: bench.steps(save) for name, save in kinds.items()})
        size = next((Path(home) / "checkpoints").glob("*.pt")).stat().st_size
    return {"preset": preset, "bytes": size, "batch": batch, "turns": found}
