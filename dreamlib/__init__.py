"""dreamlib: DREAM diffusion models that train anywhere, survive crashes and are judged honestly.

Four verbs, no hidden state:

    run = open_run("runs/faces", preset="faces16")
    for tick in train(run, hours=2): ...
    images = generate(run, seeds=range(64))
    study = evaluate(run, n=(500, 5000))

The verbs are bound here at once, because each shares its name with the module it comes from:
whichever is imported last would own the name `dreamlib.training.diffusion`.
"""

from dreamlib.evaluation.evaluate import evaluate
from dreamlib.runs.open import open_run
from dreamlib.sampling.generate import generate
from dreamlib.training.train import train

__version__ = "0.1.0"
__all__ = ["evaluate", "generate", "open_run", "train"]
