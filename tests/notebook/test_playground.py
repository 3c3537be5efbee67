"""The playground: what it computes is what the library computes, and its widgets follow."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dreamlib.config.factory import make_schedule
from dreamlib.diffusion.samplers import spaced
from dreamlib.diffusion.sampling import image_noise
from dreamlib.metrics.pixel_stats import nearest
from dreamlib.notebook.playground import inference as studio_module
from dreamlib.notebook.playground.inference import Studio, lambdas, studio_of
from dreamlib.runs.open import open_run
from dreamlib.sampling.generate import generate, interpolate
from dreamlib.training.train import train
from dreamlib.utils.errors import ConfigError, RunError
from dreamlib.utils.images import quantise

widgets = pytest.importorskip("ipywidgets")
from dreamlib.notebook.playground import board as controls  # noqa: E402  they need ipywidgets
from dreamlib.notebook.playground import widgets as playground  # noqa: E402  they need ipywidgets

SEEDS = [0, 3, 9, 17]  # no whole shard: nothing is written


@pytest.fixture(scope="module")
def studio(trained):
    return studio_of(trained)


@pytest.fixture
def conditional(tiny):
    run = tiny("conditional", "net.conditional=true", "train.length=2", "sample.guidance=2.0")
    for _ in train(run):
        pass
    return run


def changed(run, **sample):
    """The same run, opened with other sample settings."""
    given = [f"sample.{name}={value}" for name, value in sample.items()]
    return open_run(run.folder, overrides=given, say=lambda text: None)


def count_calls(studio):
    calls = []
    studio.net.register_forward_hook(lambda *seen: calls.append(1))
    return calls


# --------------------------------------------------------------------------- images


def test_seed_k_is_image_k(trained, studio):
    assert studio.settings() == studio.settings(steps=4) == trained.config.sample
    assert np.array_equal(studio.images(SEEDS), generate(trained, SEEDS))


@pytest.mark.parametrize("batch", [5, 12])
def test_changed_settings_give_the_images_of_a_run_so_opened(trained, batch):
    studio = Studio(changed(trained, batch=batch))
    sample = studio.settings(sampler="ddpm", steps=7)
    assert sample.batch == min(8, batch)
    other = changed(trained, sampler="ddpm", steps=7, batch=min(8, batch))
    assert np.array_equal(studio.images(SEEDS, sample), generate(other, SEEDS))
    assert not np.array_equal(studio.images(SEEDS, sample), studio.images(SEEDS))
    assert studio.run.config.sample.sampler == "ddim"  # the run keeps its own


def test_labels_and_guidance(conditional):
    studio = Studio(conditional)
    plain = studio.settings(labels={"glasses": "round"}, guidance=1.0)
    strong = studio.settings(labels={"glasses": "round"}, guidance=6.0)
    given = {"labels": "{glasses: round}", "guidance": 6.0}
    expected = generate(changed(conditional, **given), SEEDS)
    assert np.array_equal(studio.images(SEEDS, strong), expected)
    assert not np.array_equal(studio.images(SEEDS, plain), expected)
    with pytest.raises(ConfigError, match="glasses: green"):
        studio.images(SEEDS, studio.settings(labels={"glasses": "green"}))


def test_what_is_drawn_is_kept(trained):
    studio = Studio(trained)
    calls = count_calls(studio)
    studio.images(range(8))
    assert len(calls) == 4  # one batch, four steps
    studio.images([5, 2])
    for seed in range(8):
        studio.trajectory(seed)
    assert len(calls) == 4
    studio.images([8])
    assert len(calls) == 8


@pytest.mark.parametrize("room", [studio_module.TRACE_BYTES, 0])
def test_a_trajectory_leads_from_noise_to_the_image(trained, monkeypatch, room):
    monkeypatch.setattr(studio_module, "TRACE_BYTES", room)
    studio, sched = Studio(trained), make_schedule(trained.config)
    way = studio.trajectory(9)
    assert list(way.t) == [*spaced(sched, 4), -1]
    assert way.x_t.shape == way.x0_hat.shape == (5, 16, 16, 3)
    noise = image_noise(0, [9], (3, 16, 16), len(sched), torch.device("cpu"))
    assert np.array_equal(way.x_t[0], quantise(noise)[0])
    assert np.array_equal(way.x_t[-1], generate(trained, [9])[0])
    assert np.array_equal(way.x0_hat[-1], way.x_t[-1])
    assert (way.signal[-1], way.noise[-1]) == (1, 0)
    assert np.allclose(np.square(way.signal) + np.square(way.noise), 1)
    assert not np.array_equal(studio.trajectory(10).x_t[0], way.x_t[0])


def test_between_two_seeds(trained, studio):
    frames = studio.between(3, 9, 8)
    assert np.array_equal(frames, interpolate(trained, 3, 9, 8))  # a batch of 8 there as well
    with pytest.raises(ConfigError, match="two different seeds"):
        studio.between(3, 3)
    ancestral = Studio(changed(trained, sampler="ddpm", steps=40))
    assert (ancestral.deterministic.sampler, ancestral.deterministic.steps) == ("ddim", 40)
    assert len(ancestral.between(0, 1, 3)) == 3


def test_wrong_settings_are_named(studio):
    with pytest.raises(ConfigError, match=r"steps is 41, but diffusion\.steps only 40"):
        studio.settings(steps=41)
    with pytest.raises(ConfigError, match="seeds are whole numbers from 0 on, got -1"):
        studio.images([0, -1])


def test_one_network_in_memory_until_something_changes(trained, tiny):
    first = studio_of(trained)
    assert studio_of(open_run(trained.folder, say=lambda text: None)) is first
    assert studio_of(changed(trained, steps=3)) is not first
    with pytest.raises(RunError, match="train it first"):
        studio_of(tiny("untrained"))


# --------------------------------------------------------------------------- close-ups


def test_the_nearest_neighbours(trained, studio):
    image, train = studio.images([0])[0], trained.data.rows("train")
    near = studio.neighbours(image, 5)
    distance, index = nearest(image[None], train)
    assert (near.distances[0], near.indices[0], near.among) == (distance[0], index[0], 120)
    assert np.array_equal(near.images, train[near.indices])
    assert (np.diff(near.distances) >= 0).all()
    itself = studio.neighbours(trained.data.take("reference", 1, 4)[0][0], 1, "reference")
    assert (itself.distances[0], itself.indices[0], itself.among) == (0, 4, 60)
    held_out = trained.data.rows("reference")[:64]
    assert studio.held_out_distance() == np.median(nearest(held_out, train)[0])


def test_lambda_of_each_loss(trained):
    t, bars = torch.arange(40).double(), make_schedule(trained.config).alpha_bar
    lam = lambdas(trained, lam_max=0.8, p=2.0, done=1.0)
    assert torch.equal(lam["standard"], torch.zeros(40).double())
    assert torch.allclose(lam["conservative"], 0.8 * t / 40)
    assert torch.allclose(lam["paper"], 1 - bars)
    early = lambdas(trained, lam_max=0.8, p=2.0, done=0.0)
    assert not early["conservative"].any()  # it waits for 10 % of the training
    assert torch.equal(early["paper"], lam["paper"])


def close(a, b):
    """Equal up to the rounding to grey levels."""
    return np.abs(a.astype(int) - b.astype(int)).max() <= 1


def test_rectified_inputs_hold_what_lambda_says(studio, trained):
    none = studio.rectified(5, 20, 0, lambdas(trained, 0.0, 1.0, 1.0))
    real = trained.data.take("train", 1, 5)[0][0]
    assert np.array_equal(none["x0"], real)
    assert np.array_equal(none["conservative"], none["x_t"])
    assert close(none["conservative x0"], real)
    whole = studio.rectified(5, 20, 0, lambdas(trained, 1.0, 0.0, 1.0))  # paper: s**0 = 1
    assert close(whole["paper x0"], whole["x0_hat"])
    assert not np.array_equal(whole["paper"], whole["x_t"])
    assert not np.array_equal(whole["conservative"], whole["x_t"])
    half = whole["conservative x0"].astype(float)  # lambda = t/T = 1/2, of the clipped x0_hat
    assert np.abs(half - (real.astype(float) + whole["x0_hat"]) / 2).max() <= 2
    other = studio.rectified(5, 20, 1, lambdas(trained, 1.0, 0.0, 1.0))
    assert not np.array_equal(other["x_t"], whole["x_t"])
    with pytest.raises(ConfigError, match="no image 120"):
        studio.rectified(120, 20, 0, lambdas(trained, 1.0, 0.0, 1.0))


def test_a_labelled_image_is_shown_with_its_labels(conditional):
    studio, lam = Studio(conditional), lambdas(conditional, 0.5, 1.0, 1.0)
    told = []
    studio.net.register_forward_pre_hook(lambda net, given: told.append(given[2]))
    studio.rectified(5, 20, 0, lam)
    assert told[0].tolist() == conditional.data.take("train", 1, 5)[1].tolist()


# --------------------------------------------------------------------------- widgets


def parts(widget, kind):
    """Every widget of a kind inside another, in order."""
    found = [widget] if isinstance(widget, kind) else []
    for child in getattr(widget, "children", ()):
        found += parts(child, kind)
    return found


def control(widget, name):
    named = [w for w in parts(widget, widgets.Widget) if getattr(w, "description", "") == name]
    assert len(named) == 1, f"{name}: {len(named)}"
    return named[0]


def page(widget):
    return " ".join(text.value for text in parts(widget, widgets.HTML))


def pictures(widget):
    return re.findall(r'base64,([^"]+)"', page(widget))


def words(widget):
    return re.sub("<.*?>", "", page(widget), flags=re.DOTALL)


MOVES = {
    "seeds": {"first seed": 3, "sampler": "ddpm", "steps": 9, "number of images": 5},
    "denoising": {"step": 3, "seed": 5},
    "between": {"way from first to second": 8, "first seed": 4, "second seed": 6},
    "rectified": {
        **{"t": 11, "λ_max (conservative)": 1.0, "p (paper)": 3.0, "% of training done": 15},
        **{"training image": 9, "noise seed": 2},
    },
    "neighbours": {"seed": 2, "neighbours": 3},
}


@pytest.mark.parametrize("name", MOVES)
def test_pictures_follow_every_control(trained, name):
    widget = getattr(playground, name)(trained)
    assert isinstance(widget, widgets.VBox)
    before = pictures(widget)
    assert before
    assert all(base64.b64decode(png).startswith(b"\x89PNG") for png in before)
    for description, value in MOVES[name].items():
        assert control(widget, description).value != value
        control(widget, description).value = value
        assert pictures(widget) != before, description
        assert "working" not in words(widget)
        before = pictures(widget)
    shown = parts(widget, (widgets.IntSlider, widgets.FloatSlider, widgets.IntText))
    assert {w.description for w in shown} <= set(MOVES[name])
    assert all(w.style.description_width == "initial" for w in shown)


def test_pictures_are_replaced_in_place(trained):
    widget = playground.denoising(trained)
    before = parts(widget, widgets.Widget)
    control(widget, "step").value = 0
    assert parts(widget, widgets.Widget) == before
    many = playground.seeds(trained)
    control(many, "number of images").value = 11
    assert len(pictures(many)) == 11


def test_a_wrong_value_is_one_sentence_and_the_pictures_stay(trained):
    widget = playground.seeds(trained)
    before = pictures(widget)
    control(widget, "steps").value = 4000
    assert "sample.steps is 4000, but diffusion.steps only 40" in words(widget)
    assert pictures(widget) == before
    control(widget, "steps").value = 5
    assert "4000" not in words(widget)
    assert pictures(widget) != before
    control(widget, "first seed").value = -1
    assert "seeds are whole numbers from 0 on" in words(widget)
    pair = playground.between(trained)
    control(pair, "second seed").value = 0
    assert "choose two different seeds: both are 0" in words(pair)


def test_classes_and_guidance_only_where_there_are_any(trained, conditional):
    unlabelled = {w.description for w in parts(playground.seeds(trained), widgets.Dropdown)}
    assert unlabelled == {"sampler"}
    widget = playground.seeds(conditional)
    names = {w.description for w in parts(widget, widgets.Dropdown)}
    assert names == {"sampler", *conditional.data.attributes}
    before = pictures(widget)
    control(widget, "glasses").value = "round"
    assert pictures(widget) != before
    before = pictures(widget)
    control(widget, "guidance").value = 7.5
    assert pictures(widget) != before


def test_pictures_are_as_wide_as_asked():
    for shape in ((16, 16, 1), (100, 300, 3)):
        file = io.BytesIO(base64.b64decode(controls.png(np.zeros(shape, np.uint8), 300)))
        assert Image.open(file).width in (300, 304)  # whole repeats of a pixel


def test_waiting_is_told(trained, monkeypatch):
    told = []
    note = widgets.HTML()
    note.observe(lambda change: told.append(change["new"]), names="value")
    advance = controls.noted(note, every=0.0)("drawing", 4)
    advance(1)
    assert "working" in told[0]
    assert "working: drawing: 1/4 (25%)" in told[1]


@pytest.mark.parametrize("name", MOVES)
def test_without_a_front_end_there_is_a_picture(trained, name, monkeypatch):
    displayed = []
    monkeypatch.setenv("DREAMLIB_HEADLESS", "1")
    monkeypatch.setattr("IPython.display.display", displayed.append)
    widget = getattr(playground, name)(trained)
    widget._ipython_display_()
    (picture,) = displayed
    assert picture.data.startswith(b"\x89PNG")
    assert len(picture.data) > 5000


def test_the_network_is_shared_by_all_boards(trained, monkeypatch):
    studio_of(trained)
    monkeypatch.setattr(studio_module, "Studio", None)
    for name in MOVES:
        getattr(playground, name)(trained)


def test_a_broken_network_is_a_sentence_too(trained):
    run = replace(changed(trained, steps=6), say=lambda text: None)
    widget = playground.denoising(run)
    with torch.no_grad():
        next(studio_of(run).net.parameters()).fill_(float("nan"))
    control(widget, "seed").value = 30
    assert "NaN" in words(widget)
