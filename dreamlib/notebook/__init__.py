"""What a notebook needs, as `from dreamlib import notebook as nb`: it opens, watches and shows."""

from typing import TYPE_CHECKING

from dreamlib.utils.lazy import lazily

if TYPE_CHECKING:
    from dreamlib.notebook.checkup import doctor
    from dreamlib.notebook.crash_demo import CrashDemo
    from dreamlib.notebook.dashboard import safety, watch
    from dreamlib.notebook.session import (
        forecast,
        history,
        listed,
        open_run,
        place,
        progress,
        settings,
        share_page,
        sheet,
        show,
        source,
        status,
        stop_cleanly,
        train,
    )

__all__ = [
    "CrashDemo",
    "doctor",
    "forecast",
    "history",
    "listed",
    "open_run",
    "place",
    "progress",
    "safety",
    "settings",
    "share_page",
    "sheet",
    "show",
    "source",
    "status",
    "stop_cleanly",
    "train",
    "watch",
]
__getattr__ = lazily(
    "dreamlib.notebook",
    {
        **dict.fromkeys(__all__, "session"),
        **{"CrashDemo": "crash_demo", "doctor": "checkup"},
        **dict.fromkeys(["safety", "watch"], "dashboard"),
    },
)
