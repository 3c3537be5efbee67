"""Colab and Kaggle as far as dreamlib can tell: modules, variables, folders.

A kernel that is started with the variables that `colab` and `kaggle` give finds `google.colab`,
the shell that Colab has, and the platforms' folders in one of the test's own.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

HERE = Path(__file__).resolve().parent
OFFLINE = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}


def colab(folder: Path, content: Path, store: Path) -> dict[str, str]:
    """`content` stands for /content, a machine's disk; `store` is the user's Drive, which lasts."""
    return {
        **_kernel(folder, "google.colab._kernel.Kernel"),
        "STAND_IN_MYDRIVE": str(content / "drive/MyDrive"),
        "STAND_IN_INPUTS": str(content / "no-inputs"),
        "STAND_IN_STORE": str(store),
        "COLAB_RELEASE_TAG": "release-colab",
    }


def kaggle(folder: Path, inputs: Path) -> dict[str, str]:
    """`inputs` stands for /kaggle/input.  The image is made from Colab's, and there is no network;
    somebody's import of google.colab succeeds, but the shell is IPython's own."""
    return {
        **_kernel(folder, "ipykernel.ipkernel.IPythonKernel"),
        **OFFLINE,
        "STAND_IN_MYDRIVE": str(folder / "no-drive/MyDrive"),
        "STAND_IN_INPUTS": str(inputs),
        "STAND_IN_STORE": "",
        "COLAB_RELEASE_TAG": "release-colab",
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
    }


def _kernel(folder: Path, kind: str) -> dict[str, str]:
    """What a kernel's own settings need: its class, and a file that it runs before all cells."""
    profile = folder / "ipython/profile_default"
    (profile / "startup").mkdir(parents=True, exist_ok=True)
    settings = f"get_config().IPKernelApp.kernel_class = {kind!r}\n"
    (profile / "ipython_kernel_config.py").write_text(settings)
    shutil.copy(HERE / "startup.py", profile / "startup/00-layout.py")
    paths = [str(HERE / "modules"), os.environ.get("PYTHONPATH", "")]
    return {
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
    }
