"""The widgets that let one play with a trained run."""

from dreamlib.notebook.playground.inference import studio_of
from dreamlib.notebook.playground.widgets import between, denoising, neighbours, rectified, seeds

__all__ = ["between", "denoising", "neighbours", "rectified", "seeds", "studio_of"]
