"""The notebooks as a reader has them: in a real browser, sliders moved, pixels compared.

Screenshots are left under build/screens/.  `DREAMLIB_BROWSER_FULL=1` takes 00_complete through the
whole of faces16.
"""

from __future__ import annotations

import os
import re
import shutil
from functools import partial
from pathlib import Path

import pytest

from dreamlib.runs.folder import RunDir
from dreamlib.training.train import train
from tests.browser.pages import (
    HASHES,
    SCREENS,
    browser,
    copy_notebook,
    finished,
    jupyterlab,
    missing,
    run_all,
    shoot,
    voila,
    wait_for,
)
from tests.conftest import TINY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing() or "there is a browser"),
]
BOARDS = ["seeds", "denoising", "between", "rectified", "neighbours"]
SLIDERS = {
    "seeds": ["number of images"],
    "denoising": ["step"],
    "between": ["way from first to second"],
    "rectified": ["t", "λ_max (conservative)", "p (paper)", "% of training done"],
    "neighbours": ["neighbours"],
}
NUMBERS = {
    "seeds": ["first seed", "steps"],
    "denoising": ["seed"],
    "between": ["first seed", "second seed"],
    "rectified": ["training image", "noise seed"],
    "neighbours": ["seed"],
}
TALL = {"width": 1100, "height": 1000}


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture
def page(chromium, request):
    page = chromium.new_page(viewport=TALL, device_scale_factor=2)
    yield page
    shoot(page, f"last-of-{request.node.name}")
    page.close()


@pytest.fixture
def playground(tiny, tmp_path):
    """A copy of the notebook beside a small trained run; where the run is."""
    run = tiny("trained")
    for _ in train(run):
        pass
    where = {"DREAMLIB_RUN": str(run.folder), "DREAMLIB_DATA": os.environ["DREAMLIB_DATA"]}
    return copy_notebook("06_playground", tmp_path / "page"), where


def boards(page):
    """The five boards, by name, once all are there."""
    found = page.locator(".jp-OutputArea-output:has(.widget-slider)")
    wait_for(lambda: found.count() == len(BOARDS), 180, "for five boards")
    return {name: found.nth(i) for i, name in enumerate(BOARDS)}


def row(board, kind, name):
    """The control that bears a label."""
    label = board.page.get_by_text(re.compile(f"^{re.escape(name)}$"))
    return board.locator(f".{kind}").filter(has=label)


def changed(board, before, what):
    """The pixels of the board's pictures, which are not what they were."""

    def differ():
        now = pixels(board)
        idle = "working" not in board.inner_text()
        return now if idle and now and 0 not in now and now != before else None

    return wait_for(differ, 60, f"for other pictures after {what}")


def pixels(board):
    return board.evaluate(HASHES)


def move_everything(page, kind):
    """Move each slider, change each seed, and see the pictures change each time."""
    for name, board in boards(page).items():
        board.scroll_into_view_if_needed()
        shoot(board, f"{kind}-{name}")
        seen = pixels(board)
        assert seen
        for value, label in enumerate(NUMBERS[name], 7):
            box = row(board, "widget-text", label).locator("input")
            box.fill(str(value))
            box.press("Enter")
            seen = changed(board, seen, label)
        for label in SLIDERS[name]:
            slider = row(board, "widget-slider", label)
            handle, readout = slider.locator(".noUi-handle"), slider.locator(".widget-readout")
            handle.focus()
            handle.press("Home")
            seen = changed(board, seen, label)
            value = readout.inner_text()
            for _ in range(4):
                handle.press("ArrowRight")
            wait_for(lambda r=readout, v=value: r.inner_text() != v, 20, f"for {label} to move")
            page.wait_for_timeout(1000)  # what is drawn is drawn
            seen = pixels(board)
        shoot(board, f"{kind}-{name}-moved")


def other_settings(page, kind):
    """Another sampler gives other images; a wrong number is one sentence."""
    board = boards(page)["seeds"]
    board.scroll_into_view_if_needed()
    seen = pixels(board)
    row(board, "widget-dropdown", "sampler").locator("select").select_option(index=0)
    seen = changed(board, seen, "sampler")
    steps = row(board, "widget-text", "steps").locator("input")
    steps.fill("4000")
    steps.press("Enter")
    wait_for(lambda: "diffusion.steps only 40" in board.inner_text(), 30, "for the sentence")
    shoot(board, f"{kind}-seeds-wrong")
    assert pixels(board) == seen


def test_the_playground_in_jupyterlab(page, playground):
    notebook, where = playground
    with jupyterlab(notebook, **where) as address:
        page.goto(address)
        run_all(page)
        wait_for(partial(finished, page), 240, "for the cells")
        shoot(page, "lab")
        move_everything(page, "lab")
        other_settings(page, "lab")


def test_the_playground_served_by_voila(page, playground):
    notebook, where = playground
    with voila(notebook, **where) as address:
        page.goto(address, timeout=240_000)
        boards(page)
        told = page.locator("body").inner_text()
        assert "import begin" not in told  # the code
        assert "Error displaying widget" not in told
        shoot(page, "voila")
        move_everything(page, "voila")
        other_settings(page, "voila")


FULL = bool(os.environ.get("DREAMLIB_BROWSER_FULL"))


def test_the_dashboard_advances(page, tmp_path, data_home):
    overrides = [] if FULL else [*TINY, "train.length=800", "train.log_every=20"]
    run = tmp_path / "run"
    notebook = copy_notebook(
        *("00_complete", tmp_path / "page"), PRESET="faces16", RUN=str(run), OVERRIDES=overrides
    )
    with jupyterlab(notebook, DREAMLIB_DATA=str(data_home)) as address:
        page.goto(address)
        run_all(page)
        total = open_total(run)
        steps = watch_training(page, run, total)
        assert len(steps) >= 2, steps
        wait_for(partial(finished, page), 1800 if FULL else 300, "for the cells")
        shoot(page, "complete")
        keep_pictures(run)
        assert "Error displaying widget" not in page.locator("body").inner_text()
        assert (run / "figures" / "samples.png").exists()


def open_total(run: Path) -> int:
    """The steps of the training, once it has begun."""
    return wait_for(lambda: RunDir(run).status().get("total"), 240, "for the training to begin")


def watch_training(page, run: Path, total: int) -> set[int]:
    """The step numbers that the page shows while training goes on."""
    shown: set[int] = set()
    quarters: set[int] = set()

    def look() -> bool:
        for output in page.locator(".widget-html").all_inner_texts():
            for step in re.findall(rf"step ([\d,]+)/{total:,}", output):
                shown.add(int(step.replace(",", "")))
        if shown and 4 * max(shown) // total not in quarters:  # the last of them has previews
            quarters.add(4 * max(shown) // total)
            panel = page.locator(".jp-OutputArea-output:has(.widget-hprogress)")
            if panel.count():
                # at once: while it were waited for, the page would draw it anew
                panel.last.evaluate("panel => panel.scrollIntoView()")
                shoot(page, "dashboard")
        return total in shown or RunDir(run).status()["state"] == "finished"

    wait_for(look, 1800 if FULL else 240, "for the training to end")
    return shown


def keep_pictures(run: Path) -> None:
    for name in ("samples", "curves"):
        shutil.copy(run / "figures" / f"{name}.png", SCREENS / f"complete-{name}.png")
