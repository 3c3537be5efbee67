"""Is memorisation found where it happens, and nowhere else?

    python -m benchmarks.memorised --out runs/memorised

Drawn faces, 16 pixels, small networks, a fresh world of images for every seed.  One model learns 50
images by heart; twenty honest ones see 20,000 images.  Each is judged as `evaluate` judges it: by
the noise levels at which training images are denoised better than held-out ones, and by how near
its samples lie to training images.  Written to memorised.json beside this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import machine
from dreamlib.evaluation.denoising import memorised_by_noise
from dreamlib.evaluation.evaluate import DENOISED
from dreamlib.metrics.pixel_stats import memorisation
from dreamlib.runs.open import open_run
from dreamlib.sampling.generate import generate
from dreamlib.training.train import train
from dreamlib.utils.files import read_json, write_json

JSON = Path(__file__).with_suffix(".json")
SMALL = ["net.widths=[16,32]", "train.batch=32", "train.slices=1", "evaluate.n=[500]"]
HELD = ["data.reference=1000", "data.floor=1000", "train.save_minutes=10"]
KINDS = {  # images, steps
    "50 images": (50, 6000),
    "20,000 images": (20_000, 600),
}


def judged(out: Path, images: int, steps: int, seed: int) -> dict[str, Any]:
    """One training and what is said of it."""
    settings = [*SMALL, *HELD, f"data.train={images}", f"train.length={steps}"]
    settings += [f"train.seed={seed}", f"data.seed={seed}"]
    run = open_run(out, "faces16", overrides=settings, say=lambda text: None)
    for _ in train(run):
        pass
    many = min(DENOISED, images)
    seen, held_out = (run.data.take(name, many)[0] for name in ("train", "floor"))
    found = memorised_by_noise(run, seen, held_out)
    near = memorisation(generate(run, range(many)), run.data.rows("train"), held_out)
    return found | {"near": near.share.value, "near_by_chance": near.null}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/memorised"))
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        for name, (images, steps) in KINDS.items():
            known = read_json(JSON)["found"] if JSON.exists() else {}
            if str(seed) in known.get(name, {}) or (seed and images == 50):
                continue
            found = judged(options.out / f"{images}-{seed}", images, steps, seed)
            known.setdefault(name, {})[str(seed)] = found
            write_json(JSON, {"found": known, "machine": machine()})
            print(name, seed, f"p = {found['p']:.2g}", [round(x, 2) for x in found["ratios"]])


if __name__ == "__main__":
    main()
