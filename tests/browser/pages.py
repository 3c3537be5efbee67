"""A real JupyterLab or Voilà server, and a real browser that looks at it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCREENS = ROOT / "build" / "screens"
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight too
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
}
# The pixels of every picture in an element, as one number each.
HASHES = """async element => Promise.all([...element.querySelectorAll('img')].map(async image => {
  try { await image.decode(); } catch (error) { return 0; }  // replaced meanwhile: asked again
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  let hash = 17;
  for (const level of context.getImageData(0, 0, canvas.width, canvas.height).data)
    hash = (Math.imul(hash, 31) + level) | 0;
  return hash;
}))"""


def missing() -> str:
    """Why no browser can be driven here; empty when one can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return "" if shutil.which("chromium") else "there is no chromium here"


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield chromium
        chromium.close()


# --------------------------------------------------------------------------- servers


@contextmanager
def serving(command: list[str], folder: Path, path: str, given: dict[str, str]) -> Iterator[str]:
    """`python -m command --port ...` in `folder` -> the address of its page, once it answers.

    Settings, kernels' files and logs stay in `folder`; what the server started ends with it.
    """
    home = folder / "home"
    for name, values in SETTINGS.items():
        file = home / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    places = {"HOME": home, "IPYTHONDIR": home / "ipython", "MPLCONFIGDIR": home / "mpl"}
    places |= {"JUPYTER_CONFIG_DIR": home / "config", "JUPYTER_RUNTIME_DIR": home / "runtime"}
    places["JUPYTERLAB_SETTINGS_DIR"] = home / "settings"
    env = os.environ | {name: str(place) for name, place in places.items()} | given
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env.pop("DREAMLIB_HEADLESS", None)
    port = free_port()
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command, "--port", str(port)],
            cwd=folder,
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            address = f"http://127.0.0.1:{port}/"
            wait_for(lambda: answers(port, server), 60, "for the server")
            yield address + path
        finally:
            server.terminate()  # its kernels with it
            server.wait(30)


def jupyterlab(notebook: Path, **given: str) -> Any:
    """The notebook, open in JupyterLab."""
    options = ["token=", "password=", "open_browser=False", "allow_root=True"]
    command = ["jupyterlab", *(f"--IdentityProvider.{o}" for o in options[:1])]
    command += [f"--ServerApp.{option}" for option in options[2:]]
    return serving(command, notebook.parent, f"lab/tree/{notebook.name}", given)


def voila(notebook: Path, **given: str) -> Any:
    """The notebook as a page without code."""
    command = ["voila", notebook.name, "--no-browser", "--theme=light", "--strip_sources=True"]
    return serving(command, notebook.parent, "", given)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def answers(port: int, server: subprocess.Popen) -> bool:
    """Whether the port is open; no question is asked, for Voilà would run the notebook for it."""
    assert server.poll() is None, "the server has ended: see server.log"
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(true: Callable[[], Any], seconds: float, what: str = "") -> Any:
    """What `true` answers, as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"waited {seconds} s in vain {what or true}"
        time.sleep(0.2)
    return found


# --------------------------------------------------------------------------- notebooks


def copy_notebook(name: str, folder: Path, **parameters: Any) -> Path:
    """notebooks/NAME.ipynb in `folder`, with some parameters changed."""
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
    for cell in notebook["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            lines = [f"{key} = {value!r}" for key, value in parameters.items()]
            cell["source"] = "\n".join(["".join(cell["source"]), *lines])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    path.write_text(json.dumps(notebook))
    return path


def run_all(page: Any) -> None:
    """Run All Cells, from JupyterLab's menu, once the kernel answers.

    Asked too early it wants to know which kernel, or does nothing: then again.
    """
    page.get_by_text(re.compile(r"Python 3.*\| Idle$")).first.wait_for(timeout=90_000)

    def running() -> bool:
        dialog = page.locator(".jp-Dialog .jp-mod-accept")
        if dialog.count():
            dialog.first.click()
        else:
            page.locator(".lm-MenuBar-item", has_text="Run").click()
            page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
        page.wait_for_timeout(5000)
        return any(text != "[ ]:" for text in prompts(page))

    wait_for(running, 90, "for the cells to run")


def prompts(page: Any) -> list[str]:
    """'[3]:' of every code cell; '[*]:' while it runs, '[ ]:' before."""
    found = page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
    return [text.strip() for text in found]


def finished(page: Any) -> bool:
    """Whether every code cell has run; fails when one has failed."""
    failed = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    if failed.count():
        shoot(page, "failed")
        raise AssertionError(failed.first.inner_text())
    found = prompts(page)
    return bool(found) and all(text.strip("[]:").isdigit() for text in found)


def shoot(place: Any, name: str) -> None:
    """A screenshot of a page or a part of it, under build/screens/."""
    SCREENS.mkdir(parents=True, exist_ok=True)
    place.screenshot(path=SCREENS / f"{name}.png")
