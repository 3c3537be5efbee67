"""The page that draws: its arithmetic against torch's, by Node; its text; what it refuses."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamlib.config.factory import make_schedule
from dreamlib.diffusion.samplers import spaced
from dreamlib.export import page as page_module
from dreamlib.export.facts import Facts
from dreamlib.export.page import HERE, _model, share
from dreamlib.export.page_weights import pack_weights
from dreamlib.runs.open import open_run
from dreamlib.sampling.generate import generate, interpolate
from dreamlib.utils.errors import ConfigError, NotThere
from dreamlib.utils.rng import image_noise
from tests.conftest import copy_of, train_for

KERNELS = HERE / "kernels"
node = pytest.mark.skipif(not shutil.which("node"), reason="there is no Node.js here")
# torch draws by other instructions, hence to other last bits, on processors without AVX2
exact = "AVX" in torch.backends.cpu.get_cpu_capability()


def by_script(run, tmp_path, jobs):
    """What the page's script makes of these jobs: images [N,H,W,C], bits of noise, timesteps."""
    table, packed = pack_weights(run.weights()[0])
    model = _model(Facts(run)) | {"arrays": table}
    draw = [{"sample": model["sample"], "labels": None} | job for job in jobs]
    path = tmp_path / "jobs.json"
    weights = base64.b64encode(packed).decode()
    path.write_text(json.dumps({"model": model, "weights": weights, "draw": draw}))
    command = ["node", Path(__file__).with_name("page.js"), HERE / "templates" / "model.js"]
    done = subprocess.run(
        [*command, KERNELS / "kernels.wasm", path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    channels, size = run.data.channels, run.config.data.size
    images = np.array(found["images"], np.uint8).reshape(-1, channels, size, size)
    return images.transpose(0, 2, 3, 1), np.array(found["noise"], np.uint32), found["times"]


def apart(a, b):
    return np.abs(a.astype(int) - b).max()


def lively(run):
    """The run with weights that answer to everything: labels, time, attention, every layer."""
    rng, (weights, card) = torch.Generator().manual_seed(1), run.weights()
    moved = {
        name: value + 0.1 * torch.randn(value.shape, generator=rng)
        for name, value in weights.items()
    }
    for name in moved:
        if name.startswith("labels."):
            moved[name] = 3 * torch.randn(moved[name].shape, generator=rng)
    run.export_weights(card["step"], moved)
    return run


@pytest.fixture
def alive(trained, tmp_path):
    return lively(copy_of(trained, tmp_path / "alive"))


@node
@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["sample.sampler=dpmpp_2m", "sample.steps=9", "sample.spacing=karras"],
        ["sample.sampler=dpmpp_2m", "sample.eta=1", "sample.steps=9"],
        ["sample.eta=0.5", "sample.spacing=quadratic", "sample.clamp=false"],
        ["sample.sampler=ddpm", "sample.steps=40", "sample.spacing=trailing"],
        ["sample.sampler=ddpm", "sample.variance=fixed_large", "sample.temperature=0.9"],
    ],
    ids=lambda settings: " ".join(settings) or "ddim",
)
def test_images_are_those_of_sample(alive, tmp_path, settings):
    run = open_run(alive.folder, overrides=settings, say=lambda text: None)
    images, noise, times = by_script(run, tmp_path, [{"seed": seed} for seed in range(6)])
    sample, sched = run.config.sample, make_schedule(run.config)
    assert times[0] == spaced(sched, sample.steps, sample.spacing, sample.sigma_min)
    drawn = image_noise(sample.seed, [5], (3, 16, 16), len(sched), torch.device("cpu"))
    if exact:
        assert np.array_equal(noise, drawn.numpy().ravel().view(np.uint32))
    assert apart(images, generate(run, range(6))) <= 1


@node
@pytest.mark.parametrize(
    "shape",
    [
        ["net.patch=2", "net.attention=[]", "net.blocks=2", "diffusion.prediction=v"],
        ["net.conditional=true", "sample.guidance=1.5", "diffusion.prediction=x0"],
        ["diffusion.prediction=velocity", "diffusion.schedule=flow"],
        ["data.size=20", "net.attention=[10]", "diffusion.prediction=v"],
    ],
    ids=["patches", "labels", "flow", "odd"],
)
def test_other_networks(tiny, tmp_path, shape):
    run = tiny("run", "train.length=2", *shape)
    train_for(run)
    lively(run)
    images, *_ = by_script(run, tmp_path, [{"seed": seed} for seed in range(4)])
    assert apart(images, generate(run, range(4))) <= 1


@node
def test_between_two_seeds_and_chosen_labels(tiny, tmp_path):
    run = tiny("run", "train.length=2", "net.conditional=true")
    train_for(run)
    lively(run)
    images, *_ = by_script(run, tmp_path, [{"between": [2, 5], "share": i / 4} for i in range(5)])
    assert apart(images, interpolate(run, 2, 5, 5)) <= 1
    attributes = run.data.attributes
    first, values = next(iter(attributes.items()))
    chosen = [1, *[-1] * (len(attributes) - 1)]
    told = open_run(
        run.folder, overrides=[f"sample.labels={{{first}: {values[1]}}}"], say=lambda text: None
    )
    images, *_ = by_script(run, tmp_path, [{"seed": seed, "labels": chosen} for seed in range(4)])
    assert apart(images, generate(told, range(4))) <= 1
    assert apart(images, generate(run, range(4))) > 20  # labels are heard


@node
def test_a_walk_by_ddpm_is_one_by_ddim(alive, tmp_path):
    slow = ["sample.sampler=ddpm", "sample.steps=9"]
    run = open_run(alive.folder, overrides=slow, say=lambda text: None)
    images, *_ = by_script(run, tmp_path, [{"between": [2, 5], "share": i / 4} for i in range(5)])
    ddim = ["sample.steps=9"]
    plain = open_run(alive.folder, overrides=ddim, say=lambda text: None)
    assert apart(images, interpolate(plain, 2, 5, 5)) <= 1


def test_weights_are_held_to_a_32767th_of_their_column():
    weights = {"a.weight": torch.randn(24, 16) * torch.logspace(-6, 2, 24)[:, None]}
    table, packed = pack_weights(weights)
    import gzip

    numbers = gzip.decompress(packed)
    step = np.frombuffer(numbers[:96], np.float32)
    high = np.frombuffer(numbers[96 : 96 + 384], np.int8).astype(int)
    low = np.frombuffer(numbers[96 + 384 :], np.uint8)
    held = (256 * high + low).reshape(3, 16, 8).transpose(1, 0, 2).reshape(16, 24) * step
    assert table == [("a.weight", 384, 24)]
    assert (np.abs(held - weights["a.weight"].T.numpy()) <= 0.51 * step).all()


class Parts(HTMLParser):
    """Scripts by id, the policy, and every address that a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.style, self.policy, self.fetched = {}, "", "", []
        self.inside = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.inside = given.get("id", tag) if tag in ("script", "style") else None
        self.fetched += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data


def test_only_the_pages_own_script_runs_and_nothing_is_fetched(alive, tmp_path):
    shutil.rmtree(alive.dir.evaluation, ignore_errors=True)
    text = share(alive, tmp_path / "page.html").read_text()
    parts = Parts(text)
    assert not parts.fetched
    assert parts.policy.startswith("default-src 'none'")
    for name in ("script", "style"):
        digest = hashlib.sha256(parts.scripts[name].encode()).digest()
        assert f"{name}-src 'sha256-{base64.b64encode(digest).decode()}'" in parts.policy
    assert "unsafe-inline" not in parts.policy
    assert " 'unsafe-eval'" not in parts.policy
    assert not re.search(r"\son\w+=|style=", text.split("<script")[0])
    assert json.loads(parts.scripts["model"])["net"]["size"] == 16
    assert "This model has not been scored" in text


def test_texts_stay_texts(trained, tmp_path, monkeypatch):
    odd = "</script><b>bold</b> & 'quoted'"
    monkeypatch.setattr(Facts, "name", property(lambda self: odd))
    monkeypatch.setattr(page_module, "_model", lambda facts: _model(facts) | {"note": odd})
    parts = Parts(share(trained, tmp_path / "page.html").read_text())
    assert json.loads(parts.scripts["model"])["note"] == odd
    assert "<b>bold" not in (tmp_path / "page.html").read_text()


def test_refusals(trained, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "HEAVY", 1000)
    with pytest.raises(ConfigError, match="--large"):
        share(trained, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    assert share(trained, tmp_path / "page.html", large=True).exists()
    assert share(trained, tmp_path, large=True).name == "trained-page.html"
    gan = replace(trained, config=trained.config.model_copy(update={"model": "gan"}))
    with pytest.raises(ConfigError, match="dreamlib export"):
        share(gan)
    with pytest.raises(NotThere):
        share(tiny("untrained"))
    sample = trained.config.sample.model_copy(update={"seed": 2**32})
    config = trained.config.model_copy(update={"sample": sample})
    with pytest.raises(ConfigError, match="seed"):
        share(replace(trained, config=config))


def clang():
    found = shutil.which("clang") and shutil.which("wasm-ld")
    version = found and subprocess.run(["clang", "--version"], capture_output=True, text=True)
    return bool(version) and " 14." in version.stdout


@pytest.mark.skipif(not clang(), reason="kernels.wasm was made by clang 14, which is not here")
def test_the_kernels_are_what_their_source_makes(tmp_path):
    source = (KERNELS / "kernels.c").read_text()
    command = re.search(r"clang (.*?kernels\.c)", source.replace("\\\n", " "), re.S)[1].split()
    command[-1] = str(KERNELS / "kernels.c")
    command[command.index("-o") + 1] = str(tmp_path / "kernels.wasm")
    subprocess.run(["clang", *command], check=True)
    made, ours = (tmp_path / "kernels.wasm").read_bytes(), (KERNELS / "kernels.wasm").read_bytes()
    assert made == ours
