"""dreamlib: DREAM diffusion models that train anywhere, survive crashes and are evaluated honestly.

Verbs, and no hidden state:

    run = open_run("runs/faces", preset="faces16")
    for tick in train(run, hours=2): ...
    images = generate(run, seeds=range(64))
    study = evaluate(run, n=(500, 5000))
    page = share(run)  # draws in any browser

Each is imported when it is first used.
"""

from typing import TYPE_CHECKING

from dreamlib.utils.lazy import lazily

if TYPE_CHECKING:
    from dreamlib.config.load import load_config
    from dreamlib.evaluation.ablation import ablate
    from dreamlib.evaluation.compare import compare
    from dreamlib.evaluation.equal_time import equal_time
    from dreamlib.evaluation.evaluate import evaluate
    from dreamlib.evaluation.results import read_scores
    from dreamlib.export.folder import export
    from dreamlib.export.page import share
    from dreamlib.runs.open import open_run
    from dreamlib.sampling.generate import generate, interpolate, process
    from dreamlib.training.cost import explain
    from dreamlib.training.train import train

__version__ = "0.1.0"
__all__ = [
    "ablate",
    "compare",
    "equal_time",
    "evaluate",
    "explain",
    "export",
    "generate",
    "interpolate",
    "load_config",
    "open_run",
    "process",
    "read_scores",
    "share",
    "train",
]
__getattr__ = lazily(
    "dreamlib",
    {
        "ablate": "evaluation.ablation",
        "compare": "evaluation.compare",
        "equal_time": "evaluation.equal_time",
        "evaluate": "evaluation.evaluate",
        "generate": "sampling.generate",
        "interpolate": "sampling.generate",
        "load_config": "config.load",
        "open_run": "runs.open",
        "process": "sampling.generate",
        "read_scores": "evaluation.results",
        "share": "export.page",
        "explain": "training.cost",
        "export": "export.folder",
        "train": "training.train",
    },
)
