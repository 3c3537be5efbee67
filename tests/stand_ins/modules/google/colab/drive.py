"""Mounting: the real one asks in a browser; this one links the store that the test gave."""

import os
import sys
from pathlib import Path


def mount(mountpoint, force_remount=False, timeout_ms=120_000, readonly=False):
    from IPython import get_ipython

    if "google.colab" not in str(get_ipython()):
        raise NotImplementedError("google.colab.drive is only supported in Colab")
    point = Path(mountpoint)
    if " " in str(point):
        raise ValueError("Mountpoint must not contain a space.")
    if point.is_symlink() or (point.exists() and any(point.iterdir())):
        raise ValueError("Mountpoint must not already contain files")
    point.mkdir(parents=True, exist_ok=True)
    (point / "MyDrive").symlink_to(os.environ["STAND_IN_STORE"], target_is_directory=True)
    sys.stdout.write(f"Mounted at {mountpoint}\n")


def flush_and_unmount(timeout_ms=24 * 60 * 60 * 1000):
    """Nothing waits to be uploaded."""
