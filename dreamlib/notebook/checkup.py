"""What this machine has, what will be used, and why."""

from __future__ import annotations

import os
import platform as python_platform
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dreamlib.config.load import preset_names
from dreamlib.metrics.pretrained_weights import INCEPTION, find_weights
from dreamlib.notebook.session import show
from dreamlib.report.texts import as_table
from dreamlib.utils import platform as host
from dreamlib.utils.errors import DreamlibError

if TYPE_CHECKING:
    from IPython.display import Markdown

OPTIONAL = {  # package: what is missing without it
    "cleanfid": "FID with Inception features (clean-fid)",
    "lpips": "LPIPS diversity (lpips)",
    "ipywidgets": "live progress and the playground (ipywidgets)",
    "papermill": "headless notebooks (papermill)",
    "gdown": "downloads from Google Drive (gdown)",
}


def checkup(home: Path | None = None) -> dict[str, str]:
    """Facts by name, in words; what is wrong says so in its own row.

    `home` holds packed images: as named, as DREAMLIB_DATA says, or runs/data.
    """
    data = os.environ.get("DREAMLIB_DATA") or host.working_folder() / "runs" / "data"
    home = home or Path(data)
    memory = host.memory_bytes()
    packed = sorted(p.parent.name for p in home.glob("*/manifest.json"))
    mirror = " and ".join(map(str, host.mirror_homes()))
    hours, reserve = host.session_limits()
    missing = [what for name, what in OPTIONAL.items() if find_spec(name) is None]
    budget = f"{hours:g} h, of which {reserve:g} min for scoring" if hours else "none"
    return {
        "platform": f"{host.platform()}, Python {python_platform.python_version()}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} of {os.cpu_count()} cores",
        "load": _load(),
        "device": _answer(_device),
        "precision": _answer(_precision),
        "memory": f"{memory / 2**30:.1f} GiB" if memory else "unknown",
        "disk": f"{host.free_disk(Path.cwd()) / 2**30:.1f} GiB free here",
        "budget": f"{budget} (--hours or HOURS changes it)",
        "mirror": mirror or "none: name a folder or a URL by MIRROR, --mirror or DREAMLIB_MIRROR",
        "data": f"packed in {home}: {', '.join(packed) or 'nothing yet'}",
        "weights": _answer(lambda: find_weights(host.weight_folders(), INCEPTION)),
        "missing": "; ".join(missing) or "nothing",
        "presets": ", ".join(preset_names()),
    }


def _answer(question: Callable[[], object]) -> str:
    try:
        return str(question())
    except DreamlibError as error:
        return str(error)


def _load() -> str:
    """Two busy programs that each use every core slow each other down many times over."""
    if not hasattr(os, "getloadavg"):
        return "unknown"
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load < 0.5 * cores:
        return f"{load:.1f}, nearly idle"
    return f"{load:.1f} on {cores} cores: others compute here, so OMP_NUM_THREADS=1 may be faster"


def _device() -> str:
    chosen = host.choose_device()
    return torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else str(chosen)


def _precision() -> str:
    chosen = host.choose_precision("auto", host.choose_device())
    return f"{chosen.name}, because {chosen.reason}"


def doctor() -> Markdown:
    """The same as a table; on Colab the user is asked for their Drive."""
    host.mount_drive()
    return show(as_table(("", ""), checkup().items()))
