"""Where we are and what that implies: platform, device, precision, search paths."""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from dreamlib.install import INPUTS, platform
from dreamlib.utils.context import say
from dreamlib.utils.errors import ConfigError, RunError

# Hours that a session may take, with room below what the platform grants, and the minutes of them
# kept for sampling and scoring after training.  Free Colab and Kaggle's GPUs end after 12 hours,
# Kaggle's TPUs after 9; Colab Pro+ (24) cannot be told apart: ask for it by --hours 23.
SESSIONS = {
    "colab": (11.0, 30.0),
    "kaggle": (11.0, 30.0),
    "kaggle-tpu": (8.0, 30.0),
    "local": (None, 0.0),
}

# Set on a machine that has one.  Others, as TPU_ML_PLATFORM, are set by importing TensorFlow.
TPU = ("TPU_ACCELERATOR_TYPE", "TPU_NAME", "TPU_WORKER_ID")


def session_limits() -> tuple[float | None, float]:
    """(hours of this session, None for as long as it takes; minutes kept for what follows)."""
    kind = platform()
    if kind == "kaggle" and (any(name in os.environ for name in TPU) or glob.glob("/dev/accel*")):
        kind = "kaggle-tpu"
    return SESSIONS[kind]


def working_folder() -> Path:
    """Where a notebook's relative paths begin: the clone's root, when it is opened in the clone's
    notebooks/ folder (as Jupyter does, and papermill does not); else the current folder."""
    here = Path.cwd()
    in_clone = here.name == "notebooks" and (here.parent / "dreamlib" / "__init__.py").is_file()
    return here.parent if in_clone else here


FLUSH_MS = 600_000  # that a Drive may take to upload the last of it
SOUGHT = ("config.yaml", "manifest.json")  # of runs, and of packed images
Places = str | Path | Sequence[str | Path] | None
DRIVE = Path("/content/drive/MyDrive")


def mirror_homes(named: Places = None) -> list[Path | str]:
    """The mirrors, folders or URLs: as named ('none' for none), as DREAMLIB_MIRROR says (several
    with ';' between them), or on a mounted Drive."""
    given = named or os.environ.get("DREAMLIB_MIRROR", "").split(";")
    chosen = [str(x) for x in ([given] if isinstance(given, (str, Path)) else given) if str(x)]
    if not chosen and platform() == "colab" and _drive_mounted():
        chosen = [str(DRIVE / "dreamlib")]
    return [x if "://" in x else Path(x) for x in dict.fromkeys(chosen) if x != "none"]


def _drive_mounted() -> bool:
    try:
        return DRIVE.is_dir()
    except OSError:  # it was, and its client died: opening a run says so
        return True


def mount_drive() -> None:
    """On Colab, ask for the user's Drive, once; elsewhere nothing."""
    if platform() != "colab" or _drive_mounted():
        return
    try:
        from google.colab import drive  # pyright: ignore  only there

        drive.mount(str(DRIVE.parent))
    except Exception as error:  # noqa: BLE001  refused, or not answered: Colab has kinds of its own
        say(
            f"no Drive ({error}): what this session makes is lost with its machine, unless a store "
            "is named: MIRROR = 'hf://buckets/OWNER/NAME' (s3://, webdav://, sftp://), or "
            "DREAMLIB_MIRROR"
        )


def flush_drive() -> None:
    """On Colab, wait until a mounted Drive has uploaded what it took; it is gone then."""
    if platform() == "colab" and _drive_mounted():
        try:
            from google.colab import drive  # pyright: ignore  only there

            drive.flush_and_unmount(timeout_ms=FLUSH_MS)
        except Exception as error:  # noqa: BLE001  as above
            say(f"whether the Drive has everything is not known: {error}")


def earlier_outputs(name: str) -> list[Path]:
    """Run folders of this name in notebook outputs attached on Kaggle."""
    return [path for path in attached(name, "config.yaml") if (path / "checkpoints").is_dir()]


def attached(name: str, holding: str) -> list[Path]:
    """Folders of this name among Kaggle's inputs that hold a file called `holding`.

    Inputs lie at depths that have changed over the years, so all of them are looked through.
    """
    if platform() != "kaggle":
        return []
    return [p.parent for p in _inputs() if (p.parent.name, p.name) == (name, holding)]


def _inputs() -> list[Path]:
    """What is looked for among Kaggle's inputs: walked once, again when something was attached."""
    return _walked(INPUTS, INPUTS.stat().st_mtime_ns) if INPUTS.exists() else []


@lru_cache(maxsize=1)
def _walked(folder: Path, changed: int) -> list[Path]:
    files = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(x for x in files if x.name in SOUGHT or x.suffix == ".pth")


def memory_in_use(device: torch.device) -> tuple[int, int | None]:
    """(bytes in use, bytes there are): of the GPU, or of this process and the machine."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free, total
    status = Path("/proc/self/status")
    resident = re.search(r"^VmRSS:\s*(\d+)", status.read_text() if status.exists() else "", re.M)
    return 1024 * int(resident[1]) if resident else 0, memory_bytes()


def cpu_flags() -> set[str]:
    """The processor's feature flags as Linux names them; empty on other systems."""
    info = Path("/proc/cpuinfo")
    flags = re.search(r"^flags\s*:(.*)$", info.read_text() if info.exists() else "", re.MULTILINE)
    return set(flags[1].split()) if flags else set()


def choose_device(name: str = "auto") -> torch.device:
    """'auto' takes CUDA, then MPS, then the CPU.  Raises when the GPU cannot run this torch."""
    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"train.device {name!r} is unknown: try auto, cpu, cuda or mps"
        ) from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("train.device is cuda, but torch sees no GPU: use train.device=auto")
        major, minor = torch.cuda.get_device_capability(device)
        archs = [a[3:].rstrip("af") for a in torch.cuda.get_arch_list() if a.startswith("sm_")]
        lowest = min(map(int, archs), default=0)
        if 10 * major + minor < lowest:
            raise RunError(
                f"this torch has no kernels for {torch.cuda.get_device_name(device)} "
                f"(sm_{major}{minor}): on Kaggle choose the accelerator 'GPU T4 x2'"
            )
    return device


@dataclass(frozen=True)
class Precision:
    """How the network computes: `dtype` of autocast (None = float32), loss scaling, and why."""

    name: str
    dtype: torch.dtype | None
    scale: bool
    reason: str


def choose_precision(name: str, device: torch.device) -> Precision:
    """'auto': bf16 where the hardware multiplies it, fp16 with loss scaling on older GPUs."""
    if name != "auto":
        return _precision(name, "as asked")
    if device.type == "cuda":
        # torch.cuda.is_bf16_supported() says yes on a T4, where bf16 is emulated and slow.
        major, minor = torch.cuda.get_device_capability(device)
        kind = "bf16" if major >= 8 else "fp16"
        return _precision(kind, f"{torch.cuda.get_device_name(device)} is sm_{major}{minor}")
    if device.type == "cpu":
        if known := sorted(cpu_flags() & {"avx512_bf16", "amx_bf16"}):
            return _precision("bf16", f"this CPU has {' and '.join(known)}")
        return _precision("fp32", "this CPU has neither avx512_bf16 nor amx_bf16")
    return _precision("fp32", f"no mixed precision is used on {device.type}")


def _precision(name: str, reason: str) -> Precision:
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    return Precision(name, dtype, name == "fp16", reason)


def weight_folders(named: str | None = None) -> list[Path]:
    """Where pretrained weights are looked for, in order: as named, DREAMLIB_WEIGHTS, torch's own
    folder, and what is attached on Kaggle."""
    env = os.environ.get("DREAMLIB_WEIGHTS")
    inputs = _inputs() if platform() == "kaggle" else []
    found = {path.parent for path in inputs if path.suffix == ".pth"}
    places = [named, env, weights_cache(), *sorted(found)]
    return [Path(place).expanduser() for place in places if place]


def weights_cache() -> Path:
    """Where pretrained weights are downloaded to: $TORCH_HOME/hub/checkpoints, which is
    ~/.cache/torch/hub/checkpoints by default, so that other packages share them."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def free_disk(folder: Path) -> int:
    """Free bytes where `folder` is or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def memory_bytes() -> int | None:
    """Physical memory, or None where the system does not say."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
