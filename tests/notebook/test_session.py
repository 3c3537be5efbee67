"""What a notebook begins with, and what moves in it, without a browser."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import pytest

from dreamlib.notebook import dashboard
from dreamlib.notebook import session as live
from dreamlib.notebook.session import (
    LiveProgress,
    is_live,
    open_run,
    status,
    stop_cleanly,
)
from dreamlib.training.loop import Tick
from dreamlib.utils import platform as host
from dreamlib.utils import progress as utils_progress
from dreamlib.utils.errors import Interrupted, NotEnoughSamples, NotThere, OutOfTime, RunError
from dreamlib.utils.progress import TextProgress
from tests.conftest import TINY


@pytest.fixture
def page(monkeypatch):
    """A live notebook: a kernel behind IPython; the panels that were shown."""
    import IPython
    import ipywidgets  # noqa: F401  before the shell is exchanged, as 7.7 asks it for its kernel

    shell = SimpleNamespace(kernel=object())
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    monkeypatch.delenv("DREAMLIB_HEADLESS", raising=False)
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda box, display_id: shown.append(box))
    return shown


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    for module in (live, dashboard, utils_progress):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_and_papermill_are_not_live(monkeypatch, page):
    assert is_live()
    assert isinstance(live.progress(), LiveProgress)
    monkeypatch.setenv("DREAMLIB_HEADLESS", "1")
    assert not is_live()
    assert isinstance(live.progress(), TextProgress)
    monkeypatch.delenv("DREAMLIB_HEADLESS")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")  # "Save & Run All": a log, and no reader
    assert not is_live()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert is_live()
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE")
    monkeypatch.delitem(sys.modules, "IPython")
    assert not is_live()


def test_without_widgets_a_page_gets_text(monkeypatch, page):
    monkeypatch.setattr(live, "find_spec", lambda name: None)
    assert isinstance(live.progress(), TextProgress)


def test_one_panel_is_replaced_in_place_and_a_line_remains(page, clock, capsys):
    bars = LiveProgress()
    advance = bars("drawing <faces>", 1000)
    for _ in range(9):
        clock[0] += 1
        advance(100)
    assert len(page) == 1
    bar, text, _ = page[0].children
    assert bar.value == 900
    assert "drawing &lt;faces&gt;: 900/1,000 (90%)" in text.value
    assert "100/s" in text.value
    assert "ETA 1 s" in text.value
    advance(100)
    assert not bars.panel.is_open  # closed: a saved page holds text, and no dead widget
    assert capsys.readouterr().out == "drawing <faces>: 1,000 in 9 s\n"


def test_short_work_shows_nothing(page, clock, capsys):
    advance = LiveProgress()("quick", 2)
    clock[0] += 0.2
    advance(1)
    advance(1)
    assert (page, capsys.readouterr().out) == ([], "")


def test_a_bar_left_in_the_middle_gives_way_to_the_next(page, clock):
    bars = LiveProgress()
    clock[0] += 1
    advance = bars("first", 10)
    clock[0] += 2
    advance(1)
    assert bars.panel.is_open
    bars("second", 10)
    assert not bars.panel.is_open


def test_the_dashboard_is_one_panel_with_pictures(trained, page, clock, capsys):
    def ticks():
        for step in range(1, 9):
            clock[0] += 5
            yield Tick(step, 8, {"loss": 0.5, "lam": 0.25})

    seen = []

    class Seen(dashboard.Panel):
        def show(self, share, facts):
            seen.append((share, list(facts)))
            super().show(share, seen[-1][1])

        def close(self):
            seen.append(re.findall("<small>(.*?)</small>.*?;base64,iVBOR", self.images.value, re.S))
            super().close()

    dashboard.Panel, kept = Seen, dashboard.Panel
    try:
        dashboard.watch(trained, ticks())
    finally:
        dashboard.Panel = kept
    assert len(page) == 1
    assert [share for share, _ in seen[:-1]] == [step / 8 for step in range(1, 9)]
    assert seen[0][1][:2] == ["step 1/8 (12%)", "loss 0.5000 · λ 0.250"]
    assert [caption.split(":")[0] for caption in seen[-1]] == [
        *("the loss so far", "newest preview", "the same")
    ]
    assert capsys.readouterr().out.startswith("step 8/8 (100%) · loss 0.5000 · λ 0.250 · ")


def test_a_run_that_is_nowhere_says_what_to_run_first(tmp_path):
    with pytest.raises(RunError, match=r"no run .*nowhere yet.*03_training .*first"):
        open_run(tmp_path / "nowhere", mirror="none")
    assert not (tmp_path / "nowhere").exists()


def test_a_run_is_begun_found_again_and_brought_back(tmp_path, data_home, monkeypatch):
    monkeypatch.setenv("DREAMLIB_DATA", str(data_home))
    monkeypatch.chdir(tmp_path)
    begun = open_run("runs/a", "faces16", overrides=TINY, mirror=tmp_path / "drive")
    assert begun.folder == tmp_path / "runs" / "a"
    assert open_run("runs/a", mirror="none").config == begun.config
    begun.push()
    begun.folder.rename(tmp_path / "lost")
    again = open_run("runs/a", mirror=tmp_path / "drive")
    assert again.config == begun.config
    monkeypatch.setenv("DREAMLIB_RUN", str(tmp_path / "lost"))
    assert open_run("runs/a", mirror="none").folder == tmp_path / "lost"
    new = open_run("runs/b", "faces16", overrides=TINY, mirror="none")
    assert new.folder == tmp_path / "runs" / "b"  # what is trained is named by its notebook


def test_a_notebook_of_a_clone_works_in_the_clones_root(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert host.working_folder() == tmp_path / "notebooks"
    (tmp_path / "dreamlib").mkdir()
    (tmp_path / "dreamlib" / "__init__.py").touch()
    assert host.working_folder() == tmp_path


def test_where_a_run_stands_is_a_table(trained):
    text = status(trained).data
    assert "| state | finished |" in text
    assert "| step | 8 of 8 (100%) |" in text
    assert "120 train, 60 reference, 60 floor" in text


def test_a_status_is_text_and_no_page(tiny):
    run = tiny("a|b $x$")
    run.dir.set_status("<img src=x>", step=1)
    text = status(run).data
    assert r"| state | \<img src=x> |" in text
    assert r"a\|b \$x\$ |" in text


@pytest.mark.parametrize(
    ("where", "text"),
    [("colab", "NOT safe to close"), ("kaggle", "only by 'Save & Run All'"), ("local", "safe to")],
)
def test_whether_the_page_may_be_closed_depends_on_the_place(trained, monkeypatch, where, text):
    monkeypatch.setattr(dashboard, "platform", lambda: where)
    assert text in dashboard.safety(trained, trained.dir.status())


def test_asked_to_stop_ends_a_notebook_without_an_error(capsys):
    with pytest.raises(SystemExit) as end, stop_cleanly():
        raise Interrupted("asked to")
    assert end.value.code == 0
    assert end.value.__suppress_context__  # IPython 7 cannot format an exit with a context
    assert capsys.readouterr().out == "STOPPED: asked to\n"


def test_out_of_time_later_cells_go_on_and_say_what_is_not_there(monkeypatch, capsys):
    monkeypatch.setattr(live, "_paused", False)
    with pytest.raises(NotThere), stop_cleanly():
        raise NotThere("no weights: a fault, while there is time")
    with stop_cleanly():
        raise OutOfTime("the budget is used up")
    for kind in (NotThere, NotEnoughSamples):
        with stop_cleanly():
            raise kind("nothing to show yet")
    with pytest.raises(RunError), stop_cleanly():
        raise RunError("a full disk is no pause")
    assert capsys.readouterr().out == (
        "PAUSED: the budget is used up\n" + 2 * "PAUSED: nothing to show yet\n"
    )


@pytest.mark.parametrize(
    ("state", "kind"), [("paused_deadline", OutOfTime), ("interrupted", Interrupted)]
)
def test_a_training_that_is_watched_says_why_it_paused(tiny, state, kind):
    run = tiny()
    run.dir.set_status(state, step=3)
    with pytest.raises(Interrupted, match="was paused at step 3") as caught:
        dashboard.watch(run, [])
    assert type(caught.value) is kind
