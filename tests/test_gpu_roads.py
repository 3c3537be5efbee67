"""The roads that a T4 takes, on a machine without one; a tensor left behind is found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dreamlib.notebook.runner.notebooks import HOME
from tests.stand_ins.gpu import T4, Far, t4
from tests.stand_ins.gpu_roads import ROADS

ROOT = HOME.parent

TOLD = ("both cuda:0 and cpu", "came back to the CPU", "to numpy", "AssertionError")
# by the road that leads there: file, a move to the device, what is left without it
LEFT_BEHIND = {
    "loss_paper": [("diffusion/losses.py", "field: field.to(device)", "field: field")],
    "loss_conservative": [("diffusion/losses.py", "chosen.to(x_t.device)", "chosen.float()")],
    "loss_standard": [
        ("training/tasks.py", "*self.images).to(self.device)", "*self.images)"),
        ("training/tasks.py", "zeros(len(rows.x0), device=self.device)", "zeros(len(rows.x0))"),
    ],
    "sliced": [("diffusion/unet.py", "arange(half, device=t.device)", "arange(half)")],
    "every_sampler": [
        ("diffusion/samplers.py", "dtype=torch.int64, device=x_t.device", "dtype=torch.int64"),
        ("diffusion/sampling.py", "torch.tensor(rows, device=device)", "torch.tensor(rows)"),
    ],
    "augmented_labelled_muon": [
        ("data/loader.py", "pixels.to(self.device, non_blocking=True)", "pixels"),
        ("data/loader.py", "generator=rng) - 1).to(x.device)", "generator=rng) - 1)"),
    ],
    "studio": [("utils/rng.py", "noise.to(device)", "noise")],
    "a_whole_run_and_its_images": [
        (
            "training/diffusion.py",
            "dtype=exact, device=device)",
            "dtype=exact)",
        ),
        ("evaluation/denoising.py", "start + BATCH]).to(run.device)", "start + BATCH])"),
    ],
    "gan": [
        ("gan/augment.py", "to(x.device, x.dtype)\n    moved", "to(x.dtype)\n    moved"),
        ("gan/losses.py", "lambda drawn: drawn.to(device)", "lambda drawn: drawn"),
        ("training/tasks.py", "others[0].to(self.device)", "others[0]"),
    ],
    "classifier": [("metrics/features.py", "classifier.to(device)", "classifier")],
    "inception_and_lpips": [
        ("metrics/inception.py", "pixels.to(self.device)", "pixels"),
        ("metrics/lpips.py", "to_rgb(images)).to(self.device)", "to_rgb(images))"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROADS)
def test_a_t4_takes_this_road(name, tmp_path):
    with t4():
        ROADS[name](tmp_path / "run")


@pytest.mark.slow
def test_a_tensor_left_behind_is_found(tmp_path):
    """Each move to the device is left out in turn, and the road that leads there fails."""
    shutil.copytree(ROOT / "dreamlib", tmp_path / "dreamlib")
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pyc*"))
    unnoticed, places = [], [(road, *one) for road in LEFT_BEHIND for one in LEFT_BEHIND[road]]
    for number, (road, file, move, left) in enumerate(places):
        path = tmp_path / "dreamlib" / file
        text = path.read_text()
        assert move in text, (file, move)
        path.write_text(text.replace(move, left))
        done = drive(tmp_path, number, road)
        path.write_text(text)
        if done.returncode == 0 or not any(word in done.stderr for word in TOLD):
            unnoticed.append((file, move, done.stderr[-300:]))
    assert not unnoticed
    assert drive(tmp_path, "whole", "loss_standard").returncode == 0


def drive(root: Path, name: object, road: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.stand_ins.gpu_roads", str(root / f"runs{name}"), road]
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "DREAMLIB_MIRROR": "none"}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)


def test_what_a_gpu_refuses_is_refused():
    with t4():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert isinstance(there, Far)
        assert (2 * there).device == T4
        assert (there * torch.tensor(2.0)).tolist() == [2.0] * 3  # a number has no place
        assert there[torch.tensor([0, 2])].tolist() == [1.0] * 2  # indices may lie here
        assert there.cpu().numpy().tolist() == [1.0] * 3
        assert float(there.sum()) == 3.0
        with pytest.raises(RuntimeError, match="both cuda:0 and cpu"):
            there + here
        with pytest.raises(RuntimeError, match="both cuda:0 and cpu"):
            here.add_(there)
        with pytest.raises(TypeError, match="to numpy"):
            there.numpy()
        with torch.autocast("cuda", torch.float16):
            assert (there[None] @ there[:, None]).dtype == torch.float16
    assert not torch.cuda.is_available()
