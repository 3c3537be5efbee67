"""dreamlib: DREAM diffusion models that train anywhere, survive crashes and are judged honestly.

Four verbs, no hidden state:

    run = open_run("runs/faces", preset="faces16")
    for tick in train(run, hours=2): ...
    images = generate(run, seeds=range(64))
    study = evaluate(run, n=(500, 5000))

They are loaded on first use, so that `import dreamlib` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "open_run": "dreamlib.run",
    "train": "dreamlib.train",
    "generate": "dreamlib.generate",
    "evaluate": "dreamlib.evaluate",
}
__all__ = ["evaluate", "generate", "open_run", "train"]

if TYPE_CHECKING:
    from dreamlib.evaluate import evaluate
    from dreamlib.generate import generate
    from dreamlib.run import open_run
    from dreamlib.train import train


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dreamlib' has no attribute {name!r}; it has {__all__}")
    return getattr(import_module(_HOMES[name]), name)
