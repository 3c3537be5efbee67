"""pyproject.toml, environment.yml, the Makefile and the presets agree with each other."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement

from benchmarks.timing import counted
from dreamlib.config.load import load_config
from dreamlib.training.cost import explain

ROOT = Path(__file__).resolve().parent.parent


def requirements(section: str) -> set[str]:
    """The quoted requirements between a pyproject key and its closing bracket."""
    text = (ROOT / "pyproject.toml").read_text()
    body = re.search(rf"^{section} = \[(.*?)\]$", text, re.M | re.S)
    assert body, f"pyproject.toml has no {section}"
    return set(re.findall(r'"([^"]+)"', body[1]))


def test_environment_agrees_with_pyproject():
    parts = ["dependencies", "eval", "data", "notebooks"]
    wanted = set().union(*(requirements(part) for part in parts))
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    assert set(pip) - {"--editable ."} == wanted


def test_only_lower_bounds():
    for part in ["dependencies", "eval", "data", "notebooks", "export", "stores", "dev"]:
        for requirement in requirements(part):
            assert re.fullmatch(r"[A-Za-z0-9_.-]+(\[[a-z0-9,]+\])?>=[0-9.]+", requirement), (
                requirement
            )


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("diffusers", "0.35.2"),  # what its modules miss comes as a ModuleNotFoundError
        ("matplotlib", "3.8.4"),  # a notebook's first figure is missing
        ("nbconvert", "7.0.0"),  # no page: it wants a part of lxml that lxml has no more
        ("pillow", "10.0.1"),  # damaged files: AttributeError
        ("setuptools", "76.1.0"),  # reads no `license = "MIT"`: no wheel
        ("tensorboard", "2.16.0"),  # brings all of TensorFlow
        ("torchmetrics", "1.4.0"),  # brings pretty-errors, which rewrites every traceback
        ("typer", "0.15.4"),  # every command: TypeError, beside the click of today
    ],
)
def test_versions_that_were_seen_to_fail_are_not_allowed(name, broken):
    needs = set().union(*map(requirements, ["dependencies", "notebooks", "dev"]))
    (need,) = (Requirement(need) for need in needs if Requirement(need).name == name)
    assert not need.specifier.contains(broken)


@pytest.mark.usefixtures("counted_once")
def test_celeba64_has_exactly_the_promised_parameters():
    explanation = counted(load_config("celeba64"))
    assert explanation.total == 54_846_979
    assert sum(count for _, count in explanation.blocks) == 54_846_979
    # performance-wise promises rest on these two, counted once by hand and by torch
    assert explanation.forward == 38_696_255_488
    # backward twice the forward, but for the image's own gradient
    assert explanation.step == pytest.approx(3 * explanation.forward, rel=1e-3)


def test_fashion_cpu_stays_inside_its_work_budget():
    assert explain(load_config("fashion-cpu")).step <= 0.5e9


def test_make_takes_names_with_spaces_and_quotes(tmp_path):
    home = tmp_path / "a path" / "it's"
    run = home / "runs/my $run"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    shutil.copy(ROOT / "Makefile", home)
    python = home / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$DREAMLIB_RUN|$JUPYTER_PATH|$*"\n')
    python.chmod(0o755)
    (home / "pyproject.toml").touch()
    (home / ".venv/.installed").touch()

    def make(*words: str) -> list[str]:
        told = subprocess.run(["make", "-s", *words], cwd=home, capture_output=True, text=True)
        return told.stdout.splitlines()

    assert make("playground", "RUN=runs/my $$run")[-1].startswith(f"{run}||-m voila ")
    assert make("playground", "RUN=none")[0].startswith("there is no run none: make demo")
    assert make("demo", "DATA=it's mine")[-1].endswith("demo --preset faces16 --data it's mine")


def test_the_playgrounds_server_is_this_machines_and_bounded(monkeypatch):
    from tornado.web import HTTPError

    c = SimpleNamespace(**{n: SimpleNamespace() for n in ("Voila", "VoilaConfiguration")})
    c.VoilaKernelManager = SimpleNamespace()
    path = ROOT / "tools/voila/voila.py"
    limit = runpy.run_path(str(path), {"get_config": lambda: c})["KERNELS"]
    assert c.Voila.tornado_settings["allow_remote_access"] is False
    kernels = list(range(limit - 1))
    handler = SimpleNamespace(kernel_manager=SimpleNamespace(list_kernel_ids=lambda: kernels))
    c.VoilaConfiguration.prelaunch_hook(handler, None, "")
    kernels.append(limit)
    with pytest.raises(HTTPError, match="pages are open already"):
        c.VoilaConfiguration.prelaunch_hook(handler, None, "")


def test_what_others_cite_is_this_version():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert f'version = "{cited["version"]}"' in project
    assert f'Repository = "{cited["repository-code"]}"' in project


def test_every_python_that_is_supported_is_tried():
    flow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text("utf-8"))
    (job,) = flow["jobs"].values()
    tried = job["strategy"]["matrix"]["python"]
    assert f'requires-python = ">={tried[0]}"' in (ROOT / "pyproject.toml").read_text("utf-8")
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == ["make lint HOST_PYTHON=python", "make test HOST_PYTHON=python"]
