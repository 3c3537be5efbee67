"""Every figure, drawn from the files of a run."""

from typing import TYPE_CHECKING

from dreamlib.utils.lazy import lazily

if TYPE_CHECKING:
    from dreamlib.report.figures.comparison import images_beside, scores_beside, walks_beside
    from dreamlib.report.figures.images import sample_grid
    from dreamlib.report.figures.network import architecture, schedule
    from dreamlib.report.figures.registry import draw
    from dreamlib.report.figures.score_figures import ablation
    from dreamlib.report.figures.style import save_figure

__all__ = [
    "ablation",
    "architecture",
    "draw",
    "images_beside",
    "sample_grid",
    "save_figure",
    "schedule",
    "scores_beside",
    "walks_beside",
]
__getattr__ = lazily(
    "dreamlib.report.figures",
    {
        "ablation": "score_figures",
        "architecture": "network",
        "draw": "registry",
        "images_beside": "comparison",
        "sample_grid": "images",
        "save_figure": "style",
        "schedule": "network",
        "scores_beside": "comparison",
        "walks_beside": "comparison",
    },
)
