"""Quality for equal time: Fashion-MNIST, FD[classifier] after so many minutes on two cores.

    python -m benchmarks.quality rates --out runs/quality
    python -m benchmarks.quality train ours lucidrains original --seeds 0 1 2
    python -m benchmarks.quality train StyleGAN2-ADA --seeds 0 1 2
    python -m benchmarks.quality ways ours
    python -m benchmarks.quality table

`rates` takes turns between all arms on an otherwise idle machine and writes the seconds of a step
of each.  `train` gives each arm the steps that fit into the minutes at that pace, so that what
else runs meanwhile changes nothing; it scores the result with the same extractor against the same
5,000 held-out images.  `ways` draws from a trained arm of ours in other ways: averages, spacings,
steps, precision.  What is done is kept in OUT; every command goes on where it stopped.  `table`
writes it all into quality.json beside this file, from which another machine's OUT begins; with
`--figure` the first images, too, into quality.npz.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks.peers import Lucidrains
from benchmarks.timing import interleave, machine, repeat
from dreamlib.config.factory import (
    make_drawing,
    make_extractor,
    make_sampler,
    make_schedule,
    make_stream,
)
from dreamlib.diffusion.denoiser import Denoiser
from dreamlib.diffusion.ema import Averaged
from dreamlib.diffusion.forward_process import q_sample
from dreamlib.diffusion.losses import Batch, Conservative, adapt, mean_square, ramp
from dreamlib.diffusion.samplers import ddim, dpmpp_2m
from dreamlib.diffusion.sampling import BoundSampler, draw_images
from dreamlib.diffusion.schedules import Schedule
from dreamlib.diffusion.unet import UNet
from dreamlib.evaluation.equal_time import P
from dreamlib.evaluation.feature_scores import measure_external
from dreamlib.evaluation.results import Plan
from dreamlib.metrics.features import Extractor, extract
from dreamlib.metrics.frechet import frechet
from dreamlib.metrics.frechet_stats import frechet_difference
from dreamlib.report.figures.style import save_figure, sheet_figure
from dreamlib.runs.open import open_run
from dreamlib.runs.run import Run
from dreamlib.training.diffusion import DiffusionTrainer
from dreamlib.training.gan import GanTrainer
from dreamlib.utils.files import read_json, write_json, write_npy
from dreamlib.utils.images import quantise, to_rgb
from dreamlib.utils.platform import choose_precision

JSON = Path(__file__).with_suffix(".json")
IMAGES = Path(__file__).with_suffix(".npz")  # the first images of every arm, for the picture
PRESET, N, NFE = "fashion-cpu", 1000, 25
GAN, GAN_PRESET = "StyleGAN2-ADA", "gan-fashion-cpu"
PART = 125  # images drawn at a time
SEED, SHOWN = 0, 16  # of the training in the picture, and how many of its images
COMPARED = "FD corrected"  # beside them: raw distances of different models compare badly
TRIAL = 125  # images that choose between the ways to draw from a model
TURN = 4.0  # seconds that an arm is timed at once
SAVE = 60.0  # seconds between two checkpoints
SHAPE = {"size": 32, "channels": 1, "widths": [48, 96, 96], "blocks": 1, "attention": [8]}
EMAS = (0.995, 0.9999)  # of the original recipe
BESIDE = (0.99, 0.9997)  # averages of ours that are kept beside its own, to compare

# What was tried for our own recipe: settings on top of the preset's.
TRIED: dict[str, list[str]] = {
    "ours": [],
    "standard loss": ["loss.name=standard"],
    "no min-SNR": ["loss.min_snr=null"],
    "eps-prediction": ["diffusion.prediction=eps"],
    "linear schedule": ["diffusion.schedule=linear"],
    "half the rate": ["train.lr=1e-3"],
    "constant rate": ["train.lr_schedule=constant"],
    "no warm-up": ["train.warmup=0"],
    "shifted images": ["data.shift=1"],
    "float32": ["train.precision=fp32"],
    "batch 64": ["train.batch=64", "train.lr=2.8e-3"],
    "narrower": ["net.widths=[32, 64, 64]"],
    "no patches": ["net.patch=1", "net.attention=[8]"],
    "patches of 4": ["net.patch=4", "net.widths=[64, 128]", "net.attention=[]"],
    "longer average": ["train.ema=0.9999"],
}
# These take as many steps as ours: the same work per step, or a question about equal steps.
PACED_AS_OURS = {
    "no min-SNR",
    "eps-prediction",
    "linear schedule",
    "half the rate",
    "constant rate",
    "no warm-up",
    "shifted images",
    "float32",
    "longer average",
}


Draw = Callable[[int], np.ndarray]  # how many -> images uint8 [n,H,W,C]


class Ours:
    """The preset's recipe, drawn as the preset says."""

    def __init__(self, out: Path, settings: list[str], seed: int, steps: int):
        name = f"{seed}-{steps}"
        overrides = [*settings, f"train.seed={seed}", f"train.length={steps}"]
        overrides += ["train.log_every=1000000", "train.device=cpu"]
        self.run = open_run(out / name, PRESET, overrides=overrides, say=lambda text: None)
        self.trainer = DiffusionTrainer(self.run)
        self.batch = self.run.config.train.batch
        self.beside = {decay: Averaged(self.trainer.net, decay) for decay in BESIDE}

    def advance(self) -> None:
        self.trainer.advance()
        for average in self.beside.values():
            average.update_parameters(self.trainer.net)

    def state_dict(self) -> dict[str, Any]:
        beside = {str(decay): each.state_dict() for decay, each in self.beside.items()}
        return {"trainer": self.trainer.state_dict(), "beside": beside}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trainer.load_state_dict(state["trainer"])
        for decay, each in self.beside.items():
            each.load_state_dict(state["beside"][str(decay)])

    def ways(self) -> dict[str, Draw]:
        return {"our sampler": self.way()}

    def way(self, net: nn.Module | None = None, precision: str = "auto", **sample: Any) -> Draw:
        """How images are drawn: by the averaged weights and the preset's sampler, or as told."""
        trainer, config = self.trainer, self.run.config
        config = config.model_copy(update={"sample": config.sample.model_copy(update=sample)})
        net, prediction = net or trainer.ema.module, trainer.denoiser.prediction
        dtype = choose_precision(precision, self.run.device).dtype
        denoiser = Denoiser(net, trainer.sched, prediction, dtype)
        return partial(drawn, denoiser, trainer.sched, make_sampler(config))


class Peer:
    """lucidrains' defaults at our net's size, drawn by its own DDIM and by our sampler."""

    batch = 16

    def __init__(self, run: Run, seed: int):
        torch.manual_seed(seed)
        self.peer = Lucidrains(32, 1, *LUCIDRAINS, steps=NFE)
        self.stream, self.step, self.config = stream_of(run, self.batch, seed), 0, run.config

    def advance(self) -> None:
        self.peer.step(self.stream[self.step])
        self.step += 1

    PARTS = ("net", "optimizer", "ema")

    def state_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self.peer, name).state_dict() for name in self.PARTS}
        return {"step": self.step, "rng": torch.get_rng_state(), **parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.PARTS:
            getattr(self.peer, name).load_state_dict(state[name])
        torch.set_rng_state(state["rng"])
        self.step = state["step"]

    def ways(self) -> dict[str, Draw]:
        model = self.peer.ema.ema_model.eval()
        sched = Schedule(torch.cumprod(1 - model.betas.double(), dim=0))
        return {
            "its own DDIM": partial(_own_ddim, model),
            "our sampler": partial(drawn, Denoiser(model.model, sched, "v"), sched, few()),
        }


def _own_ddim(model: Any, n: int) -> np.ndarray:
    torch.manual_seed(0)
    return np.concatenate([quantise(2 * model.sample(PART) - 1) for _ in range(n // PART)])


LUCIDRAINS = (16, (1, 2, 4, 8))


class Original:
    """The original recipe: eps, conservative DREAM in three passes, full-size stem, Adam at 1e-3,
    batch 64, dropout 0.1, and its averages from the first step on (0.995 and 0.9999)."""

    batch = 64

    def __init__(self, run: Run, seed: int, steps: int):
        torch.manual_seed(seed)
        self.net = UNet(**SHAPE, heads=4, dropout=0.1)
        self.sched, self.steps = make_schedule(run.config), steps
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)
        self.shadows = {d: {k: v.clone() for k, v in self.net.state_dict().items()} for d in EMAS}
        self.stream, self.step = stream_of(run, self.batch, seed), 0

    def advance(self) -> None:
        x0 = self.stream[self.step]
        t = torch.randint(len(self.sched), (len(x0),))
        eps = torch.randn_like(x0)
        batch = Batch(x0, t, eps, t)
        x_t = q_sample(self.sched, x0, t, eps)
        loss = mean_square(self.net(x_t, t) - eps).mean()
        factor = ramp(self.step, self.steps // 10, self.steps // 5)
        if factor:
            lam = Conservative(lam_max=0.5 * factor).lam(self.sched, t, 1)
            with torch.no_grad():
                eps_hat = self.net(x_t, t)  # a pass of its own, as the original did
            moved = adapt(self.sched, batch, x_t, eps_hat, lam)
            loss = 0.7 * loss + 0.3 * mean_square(self.net(moved, t) - eps).mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for decay, shadow in self.shadows.items():
                for name, value in self.net.state_dict().items():
                    shadow[name] = decay * shadow[name] + (1 - decay) * value
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "shadows": self.shadows,
            "rng": torch.get_rng_state(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.shadows, self.step = state["shadows"], state["step"]

    def ways(self) -> dict[str, Draw]:
        found: dict[str, Draw] = {}
        nets = {"raw": self.net.state_dict(), **{f"ema {d}": s for d, s in self.shadows.items()}}
        for name, weights in nets.items():
            net = UNet(**SHAPE, heads=4).eval()
            net.load_state_dict(weights)
            denoiser = Denoiser(net, self.sched, "eps")
            samplers = {"DDIM": partial(ddim, steps=NFE), "our sampler": few()}
            for sampler, function in samplers.items():
                found[f"{name}, {sampler}"] = partial(drawn, denoiser, self.sched, function)
        return found


class Gan:
    """StyleGAN2-ADA of the same images, drawn in one pass by its averaged weights."""

    def __init__(self, out: Path, seed: int, steps: int):
        overrides = [f"train.seed={seed}", f"train.length={steps}"]
        overrides += ["train.log_every=1000000", "train.device=cpu"]
        name = f"{seed}-{steps}"
        self.run = open_run(out / name, GAN_PRESET, overrides=overrides, say=lambda text: None)
        self.trainer = GanTrainer(self.run)
        self.batch, self.advance = self.trainer.batch, self.trainer.advance
        self.net = nn.ModuleList([self.trainer.net, self.trainer.judge])
        self.state_dict, self.load_state_dict = (
            self.trainer.state_dict,
            self.trainer.load_state_dict,
        )

    def ways(self) -> dict[str, Draw]:
        run, net = self.run, self.trainer.ema.module
        draw = make_drawing(
            run.config, run.data, net, choose_precision("fp32", run.device), run.device
        )
        return {"one pass": lambda n: draw(range(n))}


def few() -> BoundSampler:
    return partial(dpmpp_2m, steps=NFE, spacing="karras")


def stream_of(run: Run, batch: int, seed: int):
    train = run.config.train.model_copy(update={"batch": batch, "seed": seed})
    return make_stream(run.config.model_copy(update={"train": train}), run.data, run.device)


def drawn(denoiser: nn.Module, sched: Schedule, sampler: BoundSampler, n: int) -> np.ndarray:
    denoiser.eval()
    cpu = torch.device("cpu")
    return draw_images(
        denoiser, sched, sampler, range(n), seed=0, shape=(1, 32, 32), batch=PART, device=cpu
    )


def make(name: str, out: Path, seed: int, steps: int) -> Any:
    if name in TRIED:
        return Ours(out / "runs" / name, TRIED[name], seed, steps)
    if name == GAN:
        return Gan(out / "runs" / name, seed, steps)
    run = open_run(out / "runs" / "data", PRESET, say=lambda text: None)
    return Peer(run, seed) if name == "lucidrains" else Original(run, seed, steps)


def rates(out: Path, names: list[str], rounds: int) -> None:
    """Seconds per step of every arm, taken in turns, in OUT/rates.json."""
    arms = {name: make(name, out / "rates", 0, 10_000_000) for name in names}
    for arm in arms.values():
        if isinstance(arm, Original):  # one average, like everyone
            arm.shadows, arm.step = {0.995: arm.shadows[0.995]}, arm.steps // 2
        if isinstance(arm, Ours):  # DREAM fully ramped up, as in most of a training
            arm.trainer.step, arm.beside = arm.trainer.total // 2, {}
        if isinstance(arm, Gan):  # images augmented
            arm.trainer.ada.p = P
    times = {name: _times(arm) for name, arm in arms.items()}
    calls: dict[str, Callable[[], None]] = {
        name: partial(repeat, arm.advance, times[name]) for name, arm in arms.items()
    }
    seconds = {
        name: [each / times[name] for each in turns]
        for name, turns in interleave(calls, rounds, warm=0).items()
    }
    found = read_json(out / "rates.json") if (out / "rates.json").exists() else {}
    drift = _drift(found, seconds)
    for name, arm in arms.items():
        if name in found:
            continue
        per = drift * float(np.median(seconds[name]))
        found[name] = {
            "seconds": per,
            "images_per_s": arm.batch / per,
            "rounds": seconds[name],
            "parameters": parameters(arm),
        }
        print(name, found[name]["images_per_s"], found[name]["parameters"], flush=True)
    write_json(out / "rates.json", found | {"machine": machine()})


def _times(arm: Any) -> int:
    """Steps of a turn of some seconds; the arm is warm then."""
    arm.advance()
    begun = time.perf_counter()
    arm.advance()
    return max(1, round(TURN / (time.perf_counter() - begun)))


def _drift(found: dict[str, Any], seconds: dict[str, list[float]]) -> float:
    """How much slower an arm was when it was first measured: later ones are put on its scale."""
    known = next((name for name in seconds if name in found), None)
    if known is None:
        return 1.0
    return found[known]["seconds"] / float(np.median(seconds[known]))


def parameters(arm: Any) -> int:
    net = arm.trainer.net if isinstance(arm, Ours) else getattr(arm, "net", None) or arm.peer.net
    return sum(p.numel() for p in net.parameters())


def train_arm(out: Path, name: str, seed: int, minutes: float) -> tuple[Any, int]:
    """Train to the steps that fit into the minutes, a checkpoint every minute; and images seen."""
    rate = read_json(out / "rates.json")["ours" if name in PACED_AS_OURS else name]
    steps = round(60 * minutes / rate["seconds"])
    arm = make(name, out, seed, steps)
    path = out / f"{name}-{seed}-{minutes:g}.pt"
    done, spent = 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        arm.load_state_dict(state["arm"])
        done, spent = state["done"], state["spent"]
    saved = begun = time.monotonic()
    while done < steps:
        arm.advance()
        done += 1
        if time.monotonic() - saved > SAVE or done == steps:
            saved = time.monotonic()
            kept = {"arm": arm.state_dict(), "done": done, "spent": spent + saved - begun}
            torch.save(kept, path.with_suffix(".part"))
            os.replace(path.with_suffix(".part"), path)
            print(f"{name} {seed}: {done:,} of {steps:,}", flush=True)
    return arm, done * arm.batch


def score(out: Path, name: str, seed: int, minutes: float, n: int) -> None:
    """The trained arm's scores, drawn in the way that suits it best by the first seed's first 250
    images."""
    path = out / f"{name}-{seed}-{minutes:g}.json"
    if path.exists():
        return
    arm, seen = train_arm(out, name, seed, minutes)
    extractor, reference = judge(out)
    ways = arm.ways()
    found: dict[str, Any] = {"trial": {}, "scores": {}}
    first = path.with_name(f"{name}-0-{minutes:g}.json")
    if len(ways) == 1:
        chosen = list(ways)
    elif first.exists():
        chosen = list(read_json(first)["scores"])
    else:
        for way, draw in ways.items():
            found["trial"][way] = frechet(extract(draw(TRIAL), extractor), reference)
        chosen = [min(found["trial"], key=found["trial"].__getitem__)]
    for way in chosen:
        images = ways[way](n)
        sets = {"images": extract(images, extractor)}
        rows = measure_external(Plan("FD", (n,)), sets, reference, "reference")
        found["scores"][way] = {row.metric: {"value": row.value, "se": row.se} for row in rows}
        print(name, seed, way, found["scores"][way]["FD"], flush=True)
    write_npy(path.with_suffix(".npy"), images[:64])
    facts = {"arm": name, "seed": seed, "minutes": minutes, "n": n, "images": seen}
    write_json(path, facts | found)


def ways_of(arm: Ours) -> dict[str, Draw]:
    """Other ways to draw from one training, the arm's own first."""
    averages = {f"average {decay}": arm.way(each.module) for decay, each in arm.beside.items()}
    return {
        "as the preset says": arm.way(),
        **averages,
        "the weights in training": arm.way(arm.trainer.net),
        "uniform spacing": arm.way(spacing="uniform"),
        "trailing spacing": arm.way(spacing="trailing"),
        "12 steps": arm.way(steps=12),
        "50 steps": arm.way(steps=50),
        "DDIM": arm.way(sampler="ddim", spacing="uniform"),
        "float32": arm.way(precision="fp32"),
        "bfloat16": arm.way(precision="bf16"),
    }


def ways(out: Path, name: str, seed: int, minutes: float, n: int) -> None:
    """FD of one training drawn in every way, and its difference from the first way: the same image
    numbers, the same reference."""
    path = out / f"ways-{name}-{seed}-{minutes:g}.json"
    found = read_json(path) if path.exists() else {"n": n, "ways": {}}
    arm, _ = train_arm(out, name, seed, minutes)
    extractor, reference = judge(out)
    first = None
    for way, draw in ways_of(arm).items():
        if way in found["ways"] and first is not None:
            continue
        features = extract(draw(n), extractor)
        first = features if first is None else first
        row = measure_external(Plan("FD", (n,)), {"images": features}, reference, "reference")[0]
        entry = {"value": row.value, "se": row.se}
        if features is not first:
            than = frechet_difference(features, first, reference, seed=0, paired=True)
            entry["more"] = {"value": than.value, "se": than.se}
        found["ways"][way] = entry
        write_json(path, found)
        print(way, entry, flush=True)


def judge(out: Path) -> tuple[Extractor, np.ndarray]:
    """What looks at the images, and the features of 5,000 held-out ones."""
    run = open_run(out / "runs" / "data", PRESET, say=lambda text: None)
    extractor = make_extractor(run.config, run.data, run.device)
    return extractor, extract(run.data.take("reference", 5000)[0], extractor)


def collect(out: Path) -> dict[str, Any]:
    """Everything in OUT: scores by minutes and arm, one entry per seed, and the paces."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("*-*-*.json")):
        if path.stem.startswith("ways-"):
            continue
        each = read_json(path)
        arms = found.setdefault(f"{each['minutes']:g}", {})
        arms.setdefault(each["arm"], []).append(each)
    drawn = {path.stem: read_json(path) for path in sorted(out.glob("ways-*.json"))}
    return {"minutes": found, "ways": drawn, "rates": read_json(out / "rates.json")}


def restore(out: Path, found: dict[str, Any]) -> None:
    """What was collected elsewhere, into an OUT that has nothing yet."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "rates.json", found["rates"])
    for name, each in found["ways"].items():
        write_json(out / f"{name}.json", each)
    for minutes, arms in found["minutes"].items():
        for name, seeds in arms.items():
            for each in seeds:
                write_json(out / f"{name}-{each['seed']}-{minutes}.json", each)


def scores(each: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """One seed's scores, of the images drawn as the arm would draw them."""
    return next(iter(each["scores"].values()))


def over_seeds(seeds: list[dict[str, Any]], metric: str) -> tuple[float, float | None]:
    """Mean over seeds and its standard error: of seeds where there are several, else of images,
    where that is known."""
    values = [scores(each)[metric]["value"] for each in seeds]
    if len(values) > 1:
        return mean(values), stdev(values) / len(values) ** 0.5
    return values[0], scores(seeds[0])[metric]["se"]


def table(found: dict[str, Any], minutes: str) -> str:
    lines = [
        "| arm | seeds | images seen | drawn by | FD | FD corrected | KID | coverage |",
        "|---|---|---|---|---|---|---|---|",
    ]
    arms = found["minutes"][minutes]
    for name, seeds in sorted(arms.items(), key=lambda a: over_seeds(a[1], "FD")):
        ways = sorted({next(iter(each["scores"])) for each in seeds})
        cells = [name, str(len(seeds)), f"{seeds[0]['images']:,}", " / ".join(ways)]
        for metric, digits in (("FD", 2), ("FD corrected", 2), ("KID", 4), ("coverage", 3)):
            value, error = over_seeds(seeds, metric)
            told = f" ± {error:.{digits}f}" if error is not None else ""
            cells.append(f"{value:.{digits}f}{told}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def first_images(out: Path, arms: Iterable[str], minutes: str) -> dict[str, np.ndarray]:
    """Those of the seed that is shown, by arm: out of OUT, else as they were kept beside this."""
    kept = dict(np.load(IMAGES)) if IMAGES.exists() else {}
    for name in arms:
        path = out / f"{name}-{SEED}-{minutes}.npy"
        if path.exists():
            kept[name] = np.load(path)[:SHOWN]
    return kept


def figure(images: dict[str, np.ndarray], found: dict[str, Any], minutes: str) -> Figure:
    """The first images of every arm, not selected, best arm first; beside them the table's
    distance, over all seeds, and that of the seed whose images they are."""
    arms = found["minutes"][minutes]
    rows = {}
    for name, seeds in sorted(arms.items(), key=lambda arm: over_seeds(arm[1], COMPARED)):
        if name in images:
            value, error = over_seeds(seeds, COMPARED)
            alone = next(scores(each) for each in seeds if each["seed"] == SEED)[COMPARED]["value"]
            rows[f"{name}\n{value:.2f} ± {error:.2f} ({alone:.2f})"] = to_rgb(images[name])
    several = max(map(len, arms.values()))
    title = (
        f"Images of training seed {SEED}; left, {COMPARED}: mean of {several} training seeds "
        f"± its error (seed {SEED} alone)"
    )
    below = (
        f"Fashion-MNIST 32×32 · {minutes} minutes of training each on two cores · images 0 to "
        f"{SHOWN - 1} of seed {SEED}, not selected"
    )
    return sheet_figure(np.stack(list(rows.values())), list(rows), below=below, title=title)


def ways_table(found: dict[str, Any]) -> str:
    lines = ["| drawn | FD | than the first |", "|---|---|---|"]
    for way, each in found["ways"].items():
        more = each.get("more")
        than = f"{more['value']:+.3f} ± {more['se']:.3f}" if more else ""
        lines.append(f"| {way} | {each['value']:.2f} ± {each['se']:.2f} | {than} |")
    return "\n".join([*lines, f"\nN = {found['n']:,}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["rates", "train", "ways", "table"])
    parser.add_argument("arms", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n", type=int, default=N)
    parser.add_argument("--figure", type=Path, help="with table: a folder for its pictures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if JSON.exists() and not (options.out / "rates.json").exists():
        restore(options.out, read_json(JSON))
    if options.what == "rates":
        rates(options.out, options.arms, options.rounds)
        return
    if options.what == "table":
        found = collect(options.out)
        for minutes in found["minutes"]:
            print(f"{minutes} minutes\n\n{table(found, minutes)}\n")
        if options.figure:
            images = first_images(options.out, found["minutes"]["20"], "20")
            np.savez_compressed(IMAGES, **images)
            save_figure(figure(images, found, "20"), options.figure, "equal_time")
        for name, each in found["ways"].items():
            print(f"{name}\n\n{ways_table(each)}\n")
        write_json(JSON, found)
        return
    work = {"train": score, "ways": ways}[options.what]
    for seed in options.seeds:
        for name in options.arms:
            work(options.out, name, seed, options.minutes, options.n)


if __name__ == "__main__":
    main()
