"""The exported folder: other libraries compute the same images; the card tells the scores."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from dreamlib.config.factory import make_schedule
from dreamlib.diffusion.forward_process import q_sample
from dreamlib.evaluation.evaluate import evaluate
from dreamlib.export import onnx as onnx_module
from dreamlib.export.facts import Facts
from dreamlib.export.folder import card, export
from dreamlib.export.onnx import onnx_bytes
from dreamlib.runs.open import open_run
from dreamlib.sampling.generate import generate
from dreamlib.sampling.image_store import Shards
from dreamlib.utils.errors import ConfigError, DreamlibError, NotThere, RunError
from tests.conftest import copy_of, train_for
from tests.export.test_page import lively

WITHOUT_US = """
import json, sys

class Without:
    def find_spec(self, name, *rest):
        if name.split(".")[0] == "dreamlib":
            raise ImportError(name)

sys.meta_path.insert(0, Without())
import numpy as np
from diffusers import DiffusionPipeline

for folder in sys.argv[1:]:
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    np.save(folder + "/drawn.npy", pipeline(seeds=range(6), output_type="np").images)
    assert pipeline(seeds=[3]).images[0].size == (16, 16)
"""


def drawn_by_diffusers(*folders, home):
    pytest.importorskip("diffusers")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, *map(str, folders)],
        env={"PATH": "", "HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [np.load(folder / "drawn.npy") for folder in folders], done.stderr


@pytest.fixture
def alive(trained, tmp_path):
    return lively(copy_of(trained, tmp_path / "alive"))


def under(run, *overrides):
    return open_run(run.folder, overrides=overrides, say=lambda text: None)


def apart(a, b):
    return np.abs(a.astype(int) - b).max()


WAYS = {
    "ddim": [],
    "solver": ["sample.sampler=dpmpp_2m", "sample.steps=9", "sample.spacing=karras"],
    "fresh": ["sample.sampler=dpmpp_2m", "sample.eta=1", "sample.steps=9"],
    "ddpm": ["sample.sampler=ddpm", "sample.steps=20", "sample.spacing=trailing"],
}


def test_diffusers_draws_the_same_images(alive, tiny, tmp_path):
    runs = {name: under(alive, *settings) for name, settings in WAYS.items()}
    told = tiny("told", "train.length=2", "net.conditional=true", "diffusion.prediction=v")
    lively(train_for(told) and told)
    runs["labels"] = under(told, "sample.guidance=1.5")
    folders = [export(run, tmp_path / name, onnx=False) for name, run in runs.items()]
    images, said = drawn_by_diffusers(*folders, home=tmp_path)
    for name, run, theirs in zip(runs, runs.values(), images):
        assert apart(theirs, generate(run, range(6))) <= 1, name
    assert "deprecated" not in said


def test_training_on_noises_by_ddpm_of_the_exported_schedule(trained, tmp_path):
    """The folder's own scheduler, just loaded, has its noise levels the wrong way round."""
    diffusers = pytest.importorskip("diffusers")
    folder = export(trained, tmp_path / "model", onnx=False) / "scheduler"
    sched = make_schedule(trained.config)
    t = torch.arange(len(sched))
    x0, eps = torch.randn(2, len(sched), 1, 4, 4, generator=torch.Generator().manual_seed(0))
    ours = q_sample(sched, x0, t, eps)
    theirs = diffusers.DDPMScheduler.from_pretrained(folder).add_noise(x0, eps, t)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
    solver = diffusers.DPMSolverMultistepScheduler.from_pretrained(folder)
    assert float((solver.add_noise(x0, eps, t) - ours).abs().max()) > 0.5  # else SHARING.md is old


@pytest.mark.parametrize("wrong", [{"thresholding": False}, {"solver_order": 1}])
def test_a_wrong_setting_there_shows(trained, tmp_path, wrong):
    run = under(trained, *WAYS["solver"])
    folder = export(run, tmp_path / "model", onnx=False)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    (theirs,), _ = drawn_by_diffusers(folder, home=tmp_path)
    assert apart(theirs, generate(run, range(6))) > 1


@pytest.mark.parametrize(
    "settings", [["sample.eta=0.5"], ["sample.sampler=ddpm", "sample.temperature=0.9"]]
)
def test_what_diffusers_has_not_is_said(trained, tmp_path, settings):
    with pytest.raises(ConfigError, match=r"sample\.(eta|temperature).*--no-diffusers"):
        export(under(trained, *settings), tmp_path / "model", onnx=False)


@pytest.fixture
def _onnx():
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")


def onnx_written(net, path):
    data, apart = onnx_bytes(net)
    path.write_bytes(data)
    return apart


@pytest.mark.usefixtures("_onnx")
def test_onnx_at_every_batch_size(trained, tiny, tmp_path):
    import onnxruntime

    told = tiny("told", "train.length=2", "net.conditional=true")
    train_for(told)
    for run in (trained, told):
        net, path = Shards(run).net, tmp_path / "model.onnx"
        assert onnx_written(net, path) < 1e-4
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        x_t, t = torch.randn(5, 3, 16, 16), torch.arange(5)
        y = torch.full((5, len(net.labels)), -1)
        given = {"x_t": x_t, "t": t} | ({"y": y} if net.labels else {})
        (theirs,) = session.run(None, {name: value.numpy() for name, value in given.items()})
        with torch.inference_mode():
            assert torch.allclose(torch.from_numpy(theirs), net(x_t, t), atol=1e-5)


@pytest.mark.usefixtures("_onnx")
def test_onnx_that_computes_something_else_is_not_written(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_module, "TOLERANCE", 0.0)
    with pytest.raises(DreamlibError, match="not exported"):
        export(trained, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.usefixtures("_onnx")
def test_a_gan(tmp_path, data_home, monkeypatch):
    import onnxruntime

    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    small = ["data.train=120", "data.reference=60", "data.floor=60", "train.length=2"]
    small += ["net.widths=[8, 8, 8]", "gan.z=8", "gan.w=8", "gan.mapping=2", "train.batch=4"]
    run = open_run(tmp_path / "gan", "gan-faces16", overrides=small, say=print)
    train_for(run)
    folder = export(run, tmp_path / "model")
    names = {path.name for path in folder.iterdir()}
    assert names == {"README.md", "samples.png", "model.safetensors", "model.onnx"}
    assert "StyleGAN2" in (folder / "README.md").read_text()
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    assert [each.name for each in session.get_inputs()][:2] == ["z", "noise_0"]


def test_safetensors_are_the_averaged_weights(trained, tmp_path):
    folder = export(trained, tmp_path / "model", onnx=False)
    theirs = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    ours = trained.weights()[0]
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    """A copy of the run with scores."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    shutil.copytree(trained.folder, folder)
    run = open_run(folder, say=lambda text: None)
    evaluate(run)
    return run


def test_the_cards_numbers_are_those_of_the_scores(scored, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    folder = export(scored, tmp_path / "model", onnx=False)
    loaded = hub.ModelCard.load(folder / "README.md", ignore_metadata_errors=False)
    own = lambda row: (row["images"], row["real"]) == ("generated", "reference")  # noqa: E731
    rows = json.loads((folder / "scores.json").read_text())["rows"]
    known = {(row["metric"], row["n"]): row for row in rows if own(row)}
    results = loaded.data.eval_results
    assert len(results) >= 4
    for result in results:
        metric, _, n = result.metric_name.rpartition(", N = ")
        row = known[metric, int(n.replace(",", ""))]
        assert result.metric_value == row["value"]
        assert result.metric_args["standard_error"] == row["se"]
        assert result.metric_args["floor"] == row["floor"]
    assert "FD[classifier]" in loaded.text


def test_scores_of_other_weights_are_not_told(scored, tmp_path):
    path = scored.dir.evaluation / "scores.json"
    whole = path.read_text()
    try:
        other = json.loads(whole)
        other["facts"]["weights"] = "0" * 64
        path.write_text(json.dumps(other))
        assert "has not been scored" in card(Facts(scored))
    finally:
        path.write_text(whole)
    assert "has not been scored" not in card(Facts(scored))


def test_front_matter(trained, tiny, alive):
    shutil.rmtree(alive.dir.evaluation, ignore_errors=True)  # others may have scored it
    front = yaml.safe_load(card(Facts(alive)).split("---")[1])
    assert front["library_name"] == "diffusers"
    assert "model-index" not in front
    with pytest.raises(NotThere):
        card(Facts(tiny("untrained")))
    data = trained.config.data.model_copy(update={"name": "celeba"})
    config = trained.config.model_copy(update={"data": data})
    text = card(Facts(replace(trained, config=config)))
    assert "non-commercial research only" in text
    assert Path("samples.png").name in text


def test_a_second_export_leaves_nothing_of_the_first(scored, tmp_path):
    folder = export(scored, tmp_path / "model", onnx=False)
    (folder / "notes.txt").write_text("mine")
    assert (folder / "scores.json").exists()
    export(under(scored, "sample.steps=3"), folder, onnx=False, diffusers=False)
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert names == {"README.md", "samples.png", "model.safetensors", "notes.txt"}
    text = (folder / "README.md").read_text()
    assert "has not been scored" in text  # those scores are of images in four steps
    assert "DiffusionPipeline" not in text
    assert "model.onnx" not in text


def test_labels_have_names(tiny, tmp_path):
    run = tiny("told", "train.length=2", "net.conditional=true")
    train_for(run)
    folder = export(run, tmp_path / "model", onnx=False)
    name, values = next(iter(run.data.attributes.items()))
    assert f"0 {values[0]}, 1 {values[1]}" in (folder / "README.md").read_text()
    index = json.loads((folder / "model_index.json").read_text())
    assert index["label_names"][name] == list(values)


def test_weights_that_change_meanwhile(alive, tmp_path, monkeypatch):
    facts = Facts(alive)
    monkeypatch.setattr("dreamlib.export.folder.Facts", lambda run: facts)
    assert facts.card
    lively(alive)
    with pytest.raises(RunError, match="export once more"):
        export(alive, tmp_path / "model", onnx=False)
    assert not (tmp_path / "model").exists()
