"""Fourteen rooms, imports only downwards: read from the source and enforced."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "dreamlib"
RANKS = [
    ["install"],  # notebooks run it by its path, before anything can be imported
    ["utils"],
    ["data", "metrics", "diffusion", "gan"],  # they know nothing of settings, or of each other
    ["config"],
    ["runs"],
    ["training", "sampling"],
    ["evaluation"],
    ["report"],
    ["export"],
    ["notebook"],
    ["cli", "__init__"],
    ["__main__"],
]
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}
MOST_ARROWS = 78
HEAVY = ["IPython", "matplotlib", "lpips", "cleanfid", "gdown", "papermill", "nbconvert", "scipy"]
OPTIONAL = ["scipy", "cleanfid", "lpips", "torchvision", "torchmetrics", "torch_fidelity"]
OPTIONAL += ["matplotlib"]


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


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def arrows() -> dict[tuple[str, str], list[str]]:
    """Which room imports which, with the files that do."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in files():
        here = room_of(path)
        for there in {name.split(".")[1] for name in imports(path)} & set(RANK) - {here}:
            found.setdefault((here, there), []).append(str(path.relative_to(ROOT)))
    return found


def test_every_file_has_a_room_and_the_house_is_seen_at_a_glance():
    assert {room_of(path) for path in files()} == set(RANK)
    entries = {path.name for path in ROOT.iterdir()} - {"__pycache__"}
    assert len(entries) <= 18, sorted(entries)


def test_imports_point_down():
    upward = {arrow: by for arrow, by in arrows().items() if RANK[arrow[1]] >= RANK[arrow[0]]}
    assert not upward


def test_few_rooms_know_each_other():
    found = sorted(" -> ".join(arrow) for arrow in arrows())
    assert len(found) <= MOST_ARROWS, found


def test_no_two_files_need_each_other():
    """Inside a room neither, and not by an import that waits inside a function."""
    places = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in files()}
    names = {f"dreamlib.{place.replace('/', '.')}": place for place in places}
    needs = {
        place: {names[name] for name in imports(path) if name in names} - {place}
        for place, path in places.items()
    }
    TopologicalSorter(needs).prepare()  # CycleError names the circle


def test_importing_is_light_and_the_verbs_stay_functions():
    """In one fresh interpreter: first the package, then the metrics, then the verbs' modules."""
    code = f"""
import sys, dreamlib
print([m for m in {HEAVY!r} if m in sys.modules])
import dreamlib.metrics.frechet_stats, dreamlib.metrics.features
print([m for m in {OPTIONAL!r} if m in sys.modules])
import dreamlib.sampling.generate, dreamlib.training.train, dreamlib.evaluation.evaluate
print([verb for verb in dreamlib.__all__ if not callable(getattr(dreamlib, verb))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, optional, lost = done.stdout.splitlines()
    assert heavy == "[]"
    assert optional == "[]", "the metrics need none of these"
    assert lost == "[]", "a module stands in a verb's place"


def test_files_and_functions_stay_small():
    long = []
    for path in files():
        text = path.read_text()
        assert len(text.splitlines()) <= 320, f"{path} is too long"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                long += [f"{path}:{node.name} has {length} lines"] if length > 40 else []
    assert len(long) <= 6, long
