"""Arrows point down: the ranks of docs/ARCHITECTURE.md, read from the source and enforced."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "dreamlib"
RANK_0 = [
    *["install", "errors", "rng", "files", "weights", "images", "progress"],
    *["passed", "sections", "presets", "config", "host"],
]
RANK = {
    **dict.fromkeys(RANK_0, 0),
    **dict.fromkeys(["diffusion", "data", "runtime", "metrics", "gan"], 1),
    **dict.fromkeys(["scores", "batch_page"], 1),
    **dict.fromkeys(["build", "rows", "boards"], 2),
    **dict.fromkeys(["run", "measure", "difference"], 3),
    "trainers": 3.2,
    **dict.fromkeys(["train_gan", "validation"], 3.5),
    **dict.fromkeys(["opening", "train", "generate", "explain"], 4),
    **dict.fromkeys(["measure_images", "guests", "pipelines"], 4),
    **dict.fromkeys(["material", "doctor", "rehearsal", "kernels"], 5),
    **dict.fromkeys(["evaluate", "compare", "evaluate_guests", "ablate", "contest"], 6),
    "notebooks": 6,
    **dict.fromkeys(["report", "batch_plan"], 7),
    **dict.fromkeys(["options", "batch"], 8),
    **dict.fromkeys(["data_commands", "run_commands", "score_commands"], 9),
    "notebook_commands": 9,
    **dict.fromkeys(["cli", "__init__"], 10),
    "__main__": 11,
}
PILLARS = {"diffusion", "data", "runtime", "metrics", "gan"}
# Inside rank 0 and inside a pillar, files follow this order too.
ORDER = {
    "rank 0": RANK_0,
    "diffusion": ["schedule", "process", "prediction", "dream", "samplers", "draw", "unet", "ema"],
    "gan": ["stylegan2", "ada", "step", "draw"],
    "data": [
        *["formats", "parquet", "archive", "download", "packed", "packing", "stream"],
        *["drawing", "faces", "idx", "cifar", "folder", "celeba"],
    ],
    "runtime": [
        *["checkpoint", "saver", "clock", "memory", "mount", "lock", "rundir"],
        *["mirror", "courier", "recover", "trainer", "driver"],
    ],
    "metrics": [
        *["estimate", "distances", "pretrained", "inception", "classifier", "features"],
        *["frechet", "frechet_error", "kernel", "inception_score", "manifold"],
        *["kmeans", "modes"],
        *["diversity", "pixels"],
    ],
}
HEAVY = ["IPython", "matplotlib", "lpips", "cleanfid", "gdown", "papermill", "nbconvert", "scipy"]


def imports(path: Path) -> list[str]:
    """Every dreamlib module that a file imports, with names imported from packages resolved."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [node.module or "", *names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.split(".")[0] == "dreamlib" and "." in name]


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def home(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_file_has_a_rank():
    assert {home(path) for path in files()} <= set(RANK)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    here = home(path)
    for name in imports(path):
        part = name.split(".")[1]
        if part not in RANK or part == here:
            continue
        same_rank_0 = RANK[part] == RANK[here] == 0
        assert RANK[part] < RANK[here] or same_rank_0, f"{path} must not import {name}"
        assert not (here in PILLARS and part in ("config", "sections", "host")), (
            f"{path} imports {name}"
        )


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_inside_a_pillar_follow_their_order(path):
    group = home(path) if home(path) in ORDER else "rank 0" if RANK[home(path)] == 0 else None
    if group is None or path.stem == "__init__":
        return
    order = ORDER[group]
    for name in imports(path):
        part = name.split(".")[2 if group != "rank 0" and len(name.split(".")) > 2 else 1]
        if part in order:
            assert order.index(part) <= order.index(path.stem), f"{path} must not import {name}"


def test_importing_dreamlib_pulls_in_nothing_heavy():
    code = (
        "import sys, dreamlib, dreamlib.config, dreamlib.run, dreamlib.train, dreamlib.evaluate;"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_verbs_are_functions_whatever_was_imported_before():
    code = (
        "import dreamlib.generate, dreamlib.train, dreamlib.evaluate, dreamlib;"
        "from dreamlib.generate import process;"
        "print([callable(getattr(dreamlib, verb)) for verb in dreamlib.__all__])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[True, True, True, True]"


def test_files_and_functions_stay_small():
    for path in files():
        text = path.read_text()
        assert len(text.splitlines()) <= 320, f"{path} is too long"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{path}:{node.name} has {length} lines"
