"""Training: exact resume, slices that change nothing, honest logs."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from dreamlib.config.factory import make_source
from dreamlib.config.load import load_config
from dreamlib.data.dataset import SPLITS
from dreamlib.runs.checkpoints import newest_checkpoint
from dreamlib.runs.open import open_run
from dreamlib.training.diffusion import DiffusionTrainer
from dreamlib.training.train import drive, train
from dreamlib.utils.errors import ConfigError, DataError, RunError
from dreamlib.utils.files import PLACE, read_json
from dreamlib.utils.images import save_png
from tests.conftest import TINY, copy_of, train_for

TIMES = {"time", "images_per_s"}


def final_state(run):
    return newest_checkpoint(run.dir.checkpoints).load()


def rows(run):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in run.dir.read_log()]


def flatten(state, prefix=""):
    for key, value in state.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def assert_same_state(a, b):
    a, b = dict(flatten(a)), dict(flatten(b))
    assert a.keys() == b.keys()
    for key, value in a.items():
        same = torch.equal(value, b[key]) if torch.is_tensor(value) else value == b[key]
        assert same, f"{key} differs"


@pytest.mark.parametrize(
    "more",
    [
        ["net.dropout=0.2", "train.optimizer=muon"],
        pytest.param(["loss.estimator=both"], marks=pytest.mark.slow),
    ],
)
def test_left_after_every_step_and_resumed_equals_undisturbed(tiny, more):
    whole = tiny("whole", *more)
    assert train_for(whole) == list(range(1, 9))
    for stop in range(1, 8):
        run = tiny(f"stop{stop}", *more)
        train_for(run, stop)
        assert run.dir.status()["state"] == "interrupted"
        again = tiny(f"stop{stop}", *more)
        assert train_for(again) == list(range(stop + 1, 9))
        assert_same_state(final_state(again), final_state(whole))
        assert rows(again) == rows(whole)
    assert whole.dir.status()["state"] == "finished"


def test_weights_are_the_average_and_have_a_card(trained):
    weights, card = trained.weights()
    state = final_state(trained)
    assert card["step"] == state["step"] == 8
    assert card["config"] == trained.facts["config"]
    for name, value in weights.items():
        assert torch.equal(value, state["ema"][f"module.{name}"])
    raw = state["net"]["stem.weight"]
    assert not torch.equal(weights["stem.weight"], raw)


def test_altered_weights_are_refused(trained, tmp_path):
    run = copy_of(trained, tmp_path / "run")
    path = run.dir.weights / "ema.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert load_file(path)
    with pytest.raises(RunError, match="not the file its card describes"):
        run.weights()


def test_a_finished_run_trains_no_further_and_says_how_to(trained):
    said = []
    assert list(train(replace(trained, say=said.append))) == []
    assert said == [
        f"FINISHED at step 8: nothing left to train in {trained.folder}; for more steps: "
        f"dreamlib run fork {trained.folder} NEW --set train.length=..."
    ]


def test_lost_weights_of_a_finished_run_are_written_again(trained, tmp_path):
    run = copy_of(trained, tmp_path / "run")
    path = run.dir.weights / "ema.safetensors"
    before = path.read_bytes()
    path.write_bytes(before[:-1])
    list(train(run))
    assert path.read_bytes() == before


def test_weights_are_there_after_every_save_not_only_at_the_end(tiny):
    run = tiny("run", "train.save_minutes=1e-9")
    ticks = train(run)
    next(ticks)
    deadline = time.monotonic() + 20
    while run.weights_step() != 1 and time.monotonic() < deadline:  # a thread writes them
        time.sleep(0.01)
    assert run.weights_step() == 1
    ticks.close()


def test_debris_of_killed_processes_is_swept(tiny):
    run = tiny()
    run.dir.checkpoints.mkdir()
    debris = run.dir.checkpoints / f".step-00000004.pt.{PLACE}.1.99999999.tmp"
    debris.write_bytes(b"half")
    tiny()
    assert not debris.exists()


def test_a_skipped_step_of_loss_scaling_is_counted_and_not_averaged(tiny):
    trainer = DiffusionTrainer(tiny())
    quartile = torch.tensor([0, 1])
    seen = dict.fromkeys(("loss", "error", "shift", "lam"), torch.tensor([1.0, 3.0]))
    trainer.meter.add(quartile, seen, torch.tensor(float("inf")))
    trainer.meter.add(quartile, seen, torch.tensor(0.5))
    row = trainer.meter.row()
    assert row["skipped_steps"] == 1
    assert row["grad_norm"] == 0.5
    assert row["loss"] == 2


def test_a_run_moves_between_machines_with_and_without_loss_scaling(tiny):
    trainer = DiffusionTrainer(tiny())
    state = trainer.state_dict()
    assert state["scaler"] == {}
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=True)
    trainer.load_state_dict(state)


@pytest.mark.parametrize("hours", [0, -1.0])
def test_a_time_budget_is_above_zero(tiny, hours):
    with pytest.raises(ConfigError, match=r"hours is .*, but should be greater than 0"):
        list(train(tiny(), hours=hours))


LOSSES = ["name=standard", "estimator=sampled", "estimator=both", "name=paper", "name=perturb"]


@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_give_the_same_gradient(tiny, loss):
    gradients = {}
    for micro in (6, 4, 1):
        more = (
            f"train.micro={micro}",
            "loss.start=0",
            "loss.ramp=1",
            "train.batch=24",
            f"loss.{loss}",
        )
        trainer = DiffusionTrainer(tiny(f"run{micro}", *more))
        torch.nn.init.normal_(trainer.net.head.weight, generator=torch.manual_seed(0))
        trainer.step = 5
        batch = trainer.draw(5)
        seen = trainer.accumulate(batch, trainer.micro.size)
        gradients[micro] = [*seen.values(), *(p.grad for p in trainer.net.parameters())]
    if "standard" not in loss and "perturb" not in loss:
        assert float(seen["lam"].mean()) > 0.05
    # summation order only; a bias just before a normalisation has no gradient but rounding
    largest = max(float(whole.abs().max()) for whole in gradients[6][1:])
    for micro in (4, 1):
        for ours, whole in zip(gradients[micro], gradients[6]):
            assert_close(ours, whole, rtol=1e-4, atol=1e-6 * largest)


class Doubled(DiffusionTrainer):
    """In float64: a parameter without a true gradient (a bias before a normalisation) is moved by
    rounding alone, and Adam makes a whole step of it."""

    def __init__(self, run):
        super().__init__(run)
        for module in (*self.net.double().modules(), *self.ema.double().modules()):
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):  # t, previews
                module.register_forward_pre_hook(lambda _, x: (x[0].double(),))

    def draw(self, step):
        batch = super().draw(step)
        return batch._replace(x0=batch.x0.double(), eps=batch.eps.double())


def assert_same_weights(a, b, *parts):
    ours, theirs = final_state(a), final_state(b)
    for part in parts:
        assert_close(ours[part], theirs[part], rtol=0, atol=1e-6)


@pytest.mark.parametrize("more", [["loss.name=standard"], ["loss.start=0", "loss.estimator=both"]])
def test_out_of_memory_at_some_steps_leaves_the_same_weights(tiny, monkeypatch, more):
    calm, tight = tiny("calm", *more), tiny("tight", *more)
    list(drive(calm, Doubled(calm)))
    original, failures = Doubled.accumulate, []
    limits = {0: 6, 2: 3, 5: 1}  # from step k on, only so many images fit

    def scarce(self, batch, micro):
        room = [limit for step, limit in limits.items() if step <= self.step][-1]
        if micro > room:
            failures.append((self.step, micro))
            original(self, batch.rows(slice(0, 1)), 1)  # work is half done when memory runs out
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return original(self, batch, micro)

    monkeypatch.setattr(Doubled, "accumulate", scarce)
    list(drive(tight, Doubled(tight)))
    assert failures == [(2, 6), (5, 3)]
    events = [event for event in tight.dir.read_events() if event["event"] == "micro-batch"]
    assert [(event["step"], event["micro"]) for event in events] == [(2, 3), (5, 1)]
    assert_same_weights(tight, calm, "net", "ema")


def test_the_probe_finds_a_size_that_fits_and_leaves_no_trace(tiny, monkeypatch):
    whole, run = tiny("whole"), tiny("run")
    list(drive(whole, Doubled(whole)))
    original, tried = Doubled.accumulate, []

    def scarce(self, batch, micro):
        tried.append(micro)
        if micro > 2:
            raise RuntimeError("CUDA out of memory")
        return original(self, batch, micro)

    monkeypatch.setattr(Doubled, "accumulate", scarce)
    monkeypatch.setattr(Doubled, "probe", Doubled.try_step)  # as on a GPU
    list(drive(run, Doubled(run)))
    assert tried[:3] == [6, 3, 1]
    assert set(tried[3:]) == {1}
    assert_same_weights(run, whole, "net")


def test_the_log_says_what_happened(trained):
    first, last = trained.dir.read_log()
    assert (first["step"], last["step"]) == (4, 8)
    assert (first["epoch"], last["epoch"]) == pytest.approx((4 * 6 / 120, 8 * 6 / 120))
    # the network begins by predicting 0, so the loss begins at E[eps^2] = 1
    assert first["loss"] == pytest.approx(1, abs=0.15)
    parts = [value for value in last["loss_by_quartile"] if value is not None]
    assert min(parts) <= last["loss"] <= max(parts)
    assert last["lr"] == pytest.approx(2e-3 * 0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert 0 < last["lam"] < 0.5
    # D is the loss's own error, but for the images whose input was moved
    for error, loss in zip(last["error_by_quartile"], last["loss_by_quartile"]):
        assert (error is None) == (loss is None)
        assert loss is None or error**2 == pytest.approx(loss, rel=0.1)
    assert any(shift for shift in last["shift_by_quartile"])
    known = [value for value in last["lam_by_quartile"] if value is not None]
    assert known == sorted(known)


def test_lambda_is_zero_before_its_start(tiny):
    run = tiny("run", "loss.start=4", "loss.ramp=8")
    list(train(run))
    first, last = run.dir.read_log()
    assert first["lam"] == 0
    assert last["lam"] > 0


def test_previews_at_every_stage(trained):
    names = sorted(path.name for path in trained.dir.samples.glob("step-*.png"))
    stages = [name for name in names if "raw" not in name]
    assert stages == [f"step-{step:08d}.png" for step in (1, 2, 4, 6, 8)]
    assert [name.replace("-raw", "") for name in names if "raw" in name] == stages


def test_the_deadline_pauses_and_says_so(tiny):
    said = []
    run = open_run(tiny().folder, say=said.append)
    assert list(train(run, hours=1e-6)) == []
    assert run.dir.status()["state"] == "paused_deadline"
    assert run.weights_step() is None  # nothing was learnt, so there is nothing to generate from
    assert said[0].startswith("FRESH START because")
    assert "time budget" in said[-1]
    run = open_run(run.folder, say=said.append)
    assert len(list(train(run))) == 8
    assert any(text.startswith("RESUMED at step 0 of 8 from") for text in said)


def test_wrong_settings_stop_loudly_and_can_be_put_right(tiny):
    """What was never saved under is replaced; what was, or is about to be, is refused by field."""
    run = tiny("run", "train.lr=1e39", "data.train=100")
    with pytest.raises(RunError, match=r"became NaN or infinite.*smaller train.lr"):
        list(train(run))
    assert run.dir.status()["state"] == "failed"
    assert newest_checkpoint(run.dir.checkpoints) is None
    run = tiny("run")
    assert load_config(run.dir.config) == run.config
    assert read_json(run.dir.data)["fingerprint"] == run.data.fingerprint
    ticks, other = train(run), r"train.lr: 0.002 -> 0.003.*dreamlib run fork .* --set train.lr="
    next(ticks)
    with pytest.raises(RunError, match=other):  # it trains, and has saved nothing yet
        tiny("run", "train.lr=3e-3")
    ticks.close()
    with pytest.raises(RunError, match=other):
        tiny("run", "train.lr=3e-3")
    assert tiny("run", "train.save_minutes=3.0").config.train.save_minutes == 3.0


def test_bf16_autocast_trains_and_resumes_exactly(tiny):
    more = "train.precision=bf16"
    whole, parted = tiny("whole", more), tiny("parted", more)
    list(train(whole))
    train_for(parted, 3)
    parted = tiny("parted", more)
    list(train(parted))
    assert_same_state(final_state(parted), final_state(whole))
    assert all(value.dtype == torch.float32 for value in whole.weights()[0].values())


def test_the_rate_warms_up_then_falls_along_a_cosine(tiny):
    trainer = DiffusionTrainer(tiny("run", "train.lr=1.0", "train.lr_schedule=cosine"))
    rates = []
    for trainer.step in range(8):
        trainer.set_lr()
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    falls = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    warm = [1 / 3, 2 / 3, *[1] * 6]  # train.warmup is 2
    assert rates == pytest.approx([w * f for w, f in zip(warm, falls)])


def test_a_run_goes_on_when_its_source_is_gone(tmp_path, monkeypatch):
    monkeypatch.setenv("DREAMLIB_DATA", str(tmp_path / "packed"))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(60):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        save_png(pixels, pictures / f"{i}.png")
    words = [word for word in TINY if not word.startswith("data.")]
    words += ["data.name=folder", f"data.path={pictures}", "evaluate.anchors=false"]
    first = open_run(tmp_path / "run", "faces16", overrides=words, say=lambda text: None)
    shutil.rmtree(pictures)
    again = open_run(tmp_path / "run", say=lambda text: None)
    assert again.data.fingerprint == first.data.fingerprint
    with pytest.raises(DataError, match="no folder"):
        open_run(tmp_path / "another", "faces16", overrides=words, say=lambda text: None)


def test_channels_last_is_how_the_weights_lie(tiny):
    run = tiny("run", "train.channels_last=true")
    weight = DiffusionTrainer(run).net.middle.first.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def test_the_demo_has_twenty_thousand_faces_to_train_on():
    counts = make_source(load_config("faces16"), None).description
    assert [counts[split] for split in SPLITS] == [20_000, 5_000, 5_000]


def test_other_timesteps_leave_images_and_noise_as_they_are(tiny):
    laws = "uniform", "logit_normal"
    plain, other = (DiffusionTrainer(tiny(n, f"train.times={n}")) for n in laws)
    a, b = plain.draw(3), other.draw(3)
    assert torch.equal(a.x0, b.x0)
    assert torch.equal(a.eps, b.eps)
    assert torch.equal(a.coin, b.coin)
    assert not torch.equal(a.t, b.t)
    assert torch.equal(b.t, other.draw(3).t)
