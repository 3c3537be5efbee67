"""The widgets that let one play with a trained run."""

from typing import TYPE_CHECKING

from dreamlib.utils.lazy import lazily

if TYPE_CHECKING:
    from dreamlib.notebook.playground.inference import studio_of
    from dreamlib.notebook.playground.widgets import (
        between,
        denoising,
        neighbours,
        rectified,
        seeds,
    )

__all__ = ["between", "denoising", "neighbours", "rectified", "seeds", "studio_of"]
__getattr__ = lazily(
    "dreamlib.notebook.playground", {**dict.fromkeys(__all__, "widgets"), "studio_of": "inference"}
)
