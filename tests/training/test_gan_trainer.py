"""Training a GAN: exact resume, slices that change nothing, honest logs, collapse by its name."""

from __future__ import annotations

import math
import zipfile

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dreamlib.config.factory import make_discriminator, make_net
from dreamlib.config.load import load_config
from dreamlib.evaluation.evaluate import evaluate
from dreamlib.evaluation.results import GENERATED, REAL
from dreamlib.gan import losses as gan_losses
from dreamlib.notebook.dashboard import facts
from dreamlib.notebook.playground.inference import Studio
from dreamlib.report.build import build_report
from dreamlib.report.figures import registry as figures
from dreamlib.report.figures import style
from dreamlib.runs.open import open_run
from dreamlib.sampling.generate import Shards, generate, interpolate, process
from dreamlib.training.base import MicroBatch
from dreamlib.training.cost import explain, step_seconds
from dreamlib.training.gan import GanTrainer
from dreamlib.training.loop import Tick
from dreamlib.training.train import drive, train
from dreamlib.utils.errors import Collapsed, ConfigError
from tests.conftest import train_for
from tests.training.conftest import TINY_GAN
from tests.training.test_train import assert_same_state, final_state, rows


def test_left_after_every_step_and_resumed_equals_undisturbed(tiny_gan):
    whole = tiny_gan("whole")
    assert train_for(whole) == list(range(1, 9))
    state = final_state(whole)
    assert state["ada"]["p"] > 0
    assert state["path_mean"] > 0
    for stop in range(1, 8):
        train_for(tiny_gan(f"stop{stop}"), stop)
        again = tiny_gan(f"stop{stop}")
        assert train_for(again) == list(range(stop + 1, 9))
        assert_same_state(final_state(again), state)
        assert rows(again) == rows(whole)


def gradients(trainer):
    players = [*trainer.discriminator.parameters(), *trainer.net.parameters()]
    return [p.grad.clone() for p in players if p.grad is not None]


def one_step(trainer, monkeypatch):
    """Gradients of every optimizer step that one training step takes."""
    taken = []
    for name in ("optimizer", "discriminator_optimizer"):
        monkeypatch.setattr(
            getattr(trainer, name), "step", lambda: taken.append(gradients(trainer))
        )
    trainer.advance()
    return taken


def test_slices_change_nothing(tiny_gan, monkeypatch):
    found = []
    for micro in (8, 4):
        trainer = GanTrainer(tiny_gan(f"micro{micro}", f"train.micro={micro}"))
        trainer.ada.p, trainer.path_mean = 0.7, torch.tensor(3.0)
        found.append(one_step(trainer, monkeypatch))
    assert len(found[0]) == len(found[1]) == 4  # both players, R1, path length
    for whole, parts in zip(*found):
        for a, b in zip(whole, parts):
            assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_memory_pressure_halves_in_whole_groups():
    said, sizes = [], []

    def work(micro):
        sizes.append(micro)
        if micro > 4:
            raise RuntimeError("out of memory")
        return micro

    assert MicroBatch(24, said.append, 4).redo_smaller(work) == 4
    assert sizes == [24, 12, 4]
    with pytest.raises(Exception, match="out of memory with 4 images"):
        MicroBatch(8, said.append, 4).redo_smaller(lambda micro: work(99))


def test_the_regularisers_come_when_they_are_due(tiny_gan):
    trainer = GanTrainer(tiny_gan("due", "train.log_every=100"))
    seen = []
    for _ in range(6):
        trainer.meter = type(trainer.meter)()
        trainer.advance()
        seen.append({"r1", "path"} & set(trainer.meter.sums))
    assert seen == [{"r1", "path"}, set(), {"path"}, {"r1"}, {"path"}, set()]


def test_rates_are_those_of_lazy_players(tiny_gan):
    trainer = GanTrainer(tiny_gan("lazy", "train.lr=0.01", "gan.r1_every=16", "gan.path_every=8"))
    trainer.set_lr()
    group, judged = (
        o.param_groups[0] for o in (trainer.optimizer, trainer.discriminator_optimizer)
    )
    assert group["lr"] == pytest.approx(0.01 * 8 / 9)
    assert group["betas"] == (0.0, pytest.approx(0.99 ** (8 / 9)))
    assert judged["lr"] == pytest.approx(0.01 * 16 / 17)
    without = GanTrainer(tiny_gan("eager", "train.lr=0.01", "gan.path=0", "gan.r1=0"))
    without.set_lr()
    for optimizer in (without.optimizer, without.discriminator_optimizer):
        assert optimizer.param_groups[0]["lr"] == 0.01


def test_weights_of_the_regularisers_are_the_papers_unless_they_are_set(tiny_gan):
    trainer = GanTrainer(tiny_gan())
    assert trainer.r1 == pytest.approx(3 * 0.0002 * 256 / 8)
    assert trainer.path == pytest.approx(2 * gan_losses.path_weight(16))
    own = GanTrainer(tiny_gan("own", "gan.r1=2.0", "gan.path=0.5"))
    assert (own.r1, own.path) == (6.0, 1.0)


def test_only_the_player_whose_turn_it_is_moves(tiny_gan):
    trainer = GanTrainer(tiny_gan())

    def moved_by(step, *values):
        players = trainer.net, trainer.discriminator
        before = [[p.detach().clone() for p in player.parameters()] for player in players]
        step(*values)
        return [
            any(not torch.equal(a, b) for a, b in zip(parts, player.parameters()))
            for parts, player in zip(before, players)
        ]

    assert moved_by(trainer.discriminator_step, trainer.stream[0]) == [False, True]
    assert moved_by(trainer.generator_step) == [True, False]


def test_the_averages_follow_by_their_half_life(tiny_gan):
    trainer = GanTrainer(tiny_gan("average", "gan.ramp=null", "gan.half_life=8"))
    trainer.advance()
    first = [p.detach().clone() for p in trainer.net.parameters()]
    trainer.advance()
    second = list(trainer.net.parameters())
    for average, a, b in zip(trainer.ema.module.parameters(), first, second):
        assert_close(average, (a + b) / 2)  # half of the first is left after 8 images


def test_the_mean_style_is_a_running_mean(tiny_gan):
    trainer = GanTrainer(tiny_gan())
    before = trainer.net.w_mean.clone()
    z = trainer.draws("maker", 8).z
    with torch.no_grad():
        style = trainer.net.mapping(z).mean(0)
    trainer.generator_step()
    assert_close(trainer.net.w_mean, 0.995 * before + 0.005 * style)


def test_p_rises_against_a_sure_discriminator_only_where_it_is_adaptive(tiny_gan):
    still = tiny_gan("still", "gan.ada=null")
    list(train(still))
    assert final_state(still)["ada"]["p"] == 0
    assert {row["p"] for row in still.dir.read_log()} == {0.0}


def test_a_log_row_is_the_mean_of_its_steps(trained_gan):
    told = trained_gan.dir.read_log()
    assert [row["step"] for row in told] == [4, 8]
    for row in told:
        values = [v for v in row.values() if isinstance(v, float)]
        assert all(map(math.isfinite, values))
        assert -1 <= row["sign_fake"] <= 1
        assert -1 <= row["sign_real"] <= 1
        assert row["loss"] > 0
    tick = Tick(8, 8, told[-1])
    assert f"p {told[-1]['p']:.3f}" in " ".join(facts(trained_gan, tick, told[-1], 10.0))


# ------------------------------------------------------------------ collapse


def alive(**changed):
    return {"spread": 0.5, "contrast": 0.5, "grad_norm": 1.0} | changed


@pytest.mark.parametrize(
    ("means", "words"),
    [
        (alive(spread=1e-4), "one image"),
        (alive(contrast=1e-4), "one colour"),
        (alive(grad_norm=0.0), "no gradient"),
    ],
)
def test_a_collapse_is_called_by_its_name(tiny_gan, means, words):
    trainer = GanTrainer(tiny_gan())
    trainer.check_alive(alive())
    with pytest.raises(Collapsed, match=f"{words}.*gan.r1"):
        trainer.check_alive(means)


def test_a_generator_of_one_image_stops_its_training_and_earlier_checkpoints_stay(tiny_gan):
    run = tiny_gan("dead", "train.length=12")
    steps = train(run)
    for _ in range(5):
        next(steps)
    steps.close()  # saved at step 5
    trainer = GanTrainer(run)
    with pytest.raises(Collapsed, match="by step 8: all generated images are one image"):
        for _ in drive(run, _silenced(trainer)):
            pass
    assert final_state(run)["step"] == 5
    assert run.dir.status()["state"] == "failed"


def _silenced(trainer):
    """The trainer with a generator that hears neither z nor noise, and does not learn to."""
    load = trainer.load_state_dict

    def deafened(state):
        load(state)
        with torch.no_grad():
            for name, parameter in trainer.net.named_parameters():
                if "style.weight" in name or "strength" in name:
                    parameter.zero_().requires_grad_(False)
        trainer.meter = type(trainer.meter)()

    trainer.load_state_dict = deafened
    return trainer


# ------------------------------------------------------------------ drawing


def test_image_k_has_the_same_bytes_in_any_company(trained_gan):
    many = generate(trained_gan, range(20))
    again = Shards(trained_gan)
    for seeds in ([3], [17, 3], range(5, 12)):
        drawn = again.draw(list(seeds))
        assert np.array_equal(drawn, many[list(seeds)])
    assert len(np.unique(many.reshape(20, -1), axis=0)) == 20


def test_truncation_is_part_of_what_was_drawn_and_may_change(trained_gan, tiny_gan):
    overrides = ["gan.truncation=0.5"]
    typical = open_run(trained_gan.folder, overrides=overrides, say=lambda text: None)
    assert Shards(trained_gan).fingerprint != Shards(typical).fingerprint
    assert not np.array_equal(generate(trained_gan, [0, 1]), generate(typical, [0, 1]))


def test_interpolation_begins_and_ends_with_its_images(trained_gan):
    frames = interpolate(trained_gan, 2, 5, 4)
    assert frames.shape == (4, 16, 16, 3)
    own = generate(trained_gan, [2])
    assert np.array_equal(frames[0], own[0])  # the last one has the first one's noise
    steps = np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3))
    assert steps.min() > 0


def test_what_only_diffusion_has_is_refused(trained_gan):
    with pytest.raises(ConfigError, match="no process"):
        process(trained_gan)
    with pytest.raises(ConfigError, match="diffusion model"):
        Studio(trained_gan)
    absent = figures.draw(trained_gan, "schedule")
    assert absent.axes[0].get_title("left") == "schedule: not drawn"
    words = " ".join(text.get_text() for text in absent.axes[0].texts)
    assert "a figure of a diffusion model" in " ".join(words.split())
    with pytest.raises(ConfigError, match="no figure 'nonsense'"):
        figures.draw(trained_gan, "nonsense")


# ------------------------------------------------------------------ settings, costs


REFUSED = {
    "net.blocks=1": "net.widths only",
    "loss.name=standard": "nothing of diffusion and loss",
    "sample.steps=2": "sample.steps 1",
    "sample.sampler=ddim": "sample.sampler gan",
    "train.precision=bf16": "auto or fp32",
    "train.deterministic=true": "gan.ada null",
    "train.batch=30": "train.batch that is a multiple of 4",
    "train.micro=6": "train.micro that is a multiple of 4",
    "gan.filter=[1,2,1]": "even number of weights",
    "gan.filter=[1,-1]": "sum above 0",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_settings_of_the_other_model_are_refused(setting):
    with pytest.raises(ConfigError, match=REFUSED[setting]):
        load_config("gan-faces16", [setting])
    with pytest.raises(ConfigError, match="for model gan only"):
        load_config("faces16", ["gan.r1=2.0"])


def test_both_networks_have_the_filter_that_is_set():
    config = load_config("gan-faces16", ["gan.filter=[1,2,2,1]"])
    net, judge = make_net(config, 3), make_discriminator(config, 3)
    found = [net.synthesis.taps, *(up.conv.up for up in net.synthesis.ups)]
    found += [conv.down for block in judge.blocks for conv in (block.down, block.short)]
    assert found == [[1, 2, 2, 1]] * 7


def test_widths_that_do_not_reach_four_pixels_are_refused(tiny_gan):
    with pytest.raises(ConfigError, match=r"one width for each of 16, 8, \.\.\., 4 pixels"):
        tiny_gan("narrow", "net.widths=[8, 16]")


def test_explained_parameters_and_work_are_all_of_them():
    config = load_config("gan-faces16", TINY_GAN)
    found = explain(config)
    assert sum(count for _, count in found.blocks) == found.total
    judge = sum(p.numel() for p in make_discriminator(config, 3).parameters())
    told = dict(found.blocks)
    assert sum(n for name, n in told.items() if name.startswith("discriminator")) == judge
    assert found.step > 10 * found.forward > 0  # both players' passes and their gradients
    assert "both players" in found.text()
    assert step_seconds(config, 8, steps=2) > 0


def test_a_regulariser_that_is_off_is_no_work():
    def step(*more):
        return explain(load_config("gan-faces16", [*TINY_GAN, *more])).step

    whole = step()
    for name in ("r1", "path"):
        never = step(f"gan.{name}_every=1000000")  # as good as none
        assert step(f"gan.{name}=0") == pytest.approx(never, rel=1e-4)
        assert step(f"gan.{name}=0") < 0.99 * whole


# ------------------------------------------------------------------ scores and report


def test_the_panel_of_a_regulariser_that_is_off_says_so(tiny_gan):
    run = tiny_gan("told", "gan.path=0")
    list(train(run))
    panels = {axes.get_title(): axes for axes in figures.draw(run, "players").axes}
    assert [title for title, axes in panels.items() if not axes.lines] == ["Path length"]
    assert [each.get_text() for each in panels["Path length"].texts] == ["This run has none."]


def test_a_run_is_scored_and_reported_like_any_other(tiny_gan, monkeypatch):
    monkeypatch.setattr(style, "DPI", 50)  # quicker, as in tests/report/test_figures.py
    monkeypatch.setattr(style, "TRUETYPE", {})
    run = tiny_gan("told", "evaluate.anchors=true", "validation.every=4", "validation.n=20")
    list(train(run))
    study = evaluate(run)
    assert {row.images for row in study.rows} >= {GENERATED, REAL, "untrained"}
    (row, *_) = study.of(GENERATED, "FD[classifier]")
    assert row.origin.sampler == "one pass of the generator, truncation 1"
    assert (row.origin.steps, row.origin.nfe) == (1, 1)
    paths = build_report(run)
    names = {path.stem for path in paths}
    assert {"players", "samples", "stages", "evaluation", "validation"} <= names
    assert not names & {"process", "schedule", "architecture", "curves", "sensitivity"}
    text = (run.dir.figures / "report.html").read_text("utf-8")
    assert 'id="players"' in text
    assert "denoising" not in text
    assert "one pass of the generator" in text
    assert "1 steps" not in text
    with zipfile.ZipFile(paths[-1]) as archive:
        inside = {name.partition("/")[2] for name in archive.namelist()}
    assert {"figures/players.pdf", "report.html", "scores.json"} <= inside
