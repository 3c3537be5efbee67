"""The report page: alone, harmless, the same twice, and without a number of its own."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dreamlib.evaluation.evaluate import evaluate
from dreamlib.evaluation.results import GENERATED, REAL, read_scores
from dreamlib.report.captions import CAPTIONS
from dreamlib.report.contents import Missing, Report
from dreamlib.report.html_report import LIGHT, write_page
from dreamlib.report.tables import _number, _with_error, headline, scores_of
from dreamlib.utils.errors import RunError
from tests.conftest import copy_of

ODD = 'a <b> & "c"'  # a run's name


class Reader(HTMLParser):
    """Tags in order, open ones checked against their ends, and the visible text."""

    EMPTY = ("meta", "img")

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def picture(path, size=(40, 30), noise=False):
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    if noise:
        pixels = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, dpi=(300, 300))
    return path


def page_of(run, *names: str) -> tuple[bytes, Reader]:
    """The page of a run with these figures, and what a browser reads in it."""
    for name in names:
        picture(run.dir.figures / f"{name}.png")
    return read_page(run, names)


def read_page(run, names=()) -> tuple[bytes, Reader]:
    """The same with the files that lie there."""
    figures = dict.fromkeys(names, Figure()) | {"sensitivity": Missing("no ablation")}
    page = write_page(Report(run, scores_of(run), figures)).read_bytes()
    return page, Reader(page.decode("utf-8"))


@pytest.fixture(scope="module")
def finished(trained, tmp_path_factory):
    """A scored run whose name is HTML."""
    run = copy_of(trained, tmp_path_factory.mktemp("page") / ODD)
    evaluate(run)
    return run


@pytest.fixture
def scored(finished, tmp_path):
    return copy_of(finished, tmp_path / ODD)


def test_the_page_stands_alone_and_is_the_same_wherever_the_run_lies(scored, tmp_path):
    page, found = page_of(scored, "training", "samples")
    elsewhere = copy_of(scored, tmp_path / "elsewhere" / ODD)
    assert page == page_of(scored, "training", "samples")[0]
    assert page == page_of(elsewhere, "training", "samples")[0]
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in found.tags}
    assert all(image["src"].startswith("data:image/png;base64,") for image in found.all("img"))
    assert all(link["href"].startswith("#") for link in found.all("a"))
    assert not re.search(rb"https?:|url\(|@import", page)


def test_names_and_events_are_text_not_html(scored):
    scored.dir.note("said", text="<script>alert(1)</script>")
    odd = 'x" onload="<i>'
    _, found = page_of(scored, odd)
    assert not {"b", "i", "script"} & {tag for tag, _ in found.tags}
    assert ODD in found.text
    assert "<script>alert(1)</script>" in found.text
    assert found.all("img")[0]["alt"] == odd
    assert found.all("figure") == [{"id": odd}]


def test_figures_come_in_the_order_of_a_report_with_their_captions(scored):
    picture(scored.dir.figures / "sensitivity.png")  # words in the place of a figure
    _, found = page_of(scored, "training", "curves", "samples", "own_idea")
    shown = [figure["id"] for figure in found.all("figure")]
    assert shown == ["samples", "training", "own_idea"]  # curves are three panels of training
    assert found.all("img")[0]["alt"] == CAPTIONS["samples"].shows
    assert CAPTIONS["samples"].read.replace("  ", " ") in found.text
    assert "the figure sensitivity: dreamlib ablate" in found.text


def test_headline_numbers_are_those_of_the_scores(scored):
    study = read_scores(scored.folder)
    head, cells = headline(study)
    assert head == ["metric", "N", "generated", f"floor ({REAL})", "null"]
    metric = study.facts["metric"]
    line = next(cell for cell in cells if cell[0] == metric and cell[1].startswith("20"))
    row, floor = study.find(GENERATED, 20), study.find(REAL, 20)
    assert line[2:] == [_with_error(row), _with_error(floor), _number(row.null)]
    assert list(dict.fromkeys(cell[0] for cell in cells)) == [
        *(metric, "MIND[classifier] corrected", "KID[classifier]")
    ]
    _, found = page_of(scored)
    assert _with_error(row) in found.text
    assert _with_error(floor) in found.text


def test_scores_of_other_weights_and_the_date_of_the_last_row_are_said(scored):
    card, rows = scored.dir.weights / "card.json", scored.dir.read_log()
    assert "by now" not in page_of(scored)[1].text
    card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": "0" * 64, "step": 99}))
    scored.dir.append_log(rows[-1] | {"step": rows[-1]["step"] + 1, "time": 1e9})
    text = page_of(scored)[1].text
    assert "the weights are of step 99 by now" in text
    assert "last training step logged 2001-09-09 01:46 UTC" in text


def test_settings_that_differ_and_all_of_them(scored):
    page, found = page_of(scored)
    settings = page.decode().partition('id="settings"')[2].partition("<details>")[0]
    assert "train.batch 6 128" in " ".join(re.sub(r"<[^>]+>", " ", settings).split())
    assert "train.batch: 64 -> 6" in found.text  # from the preset
    assert "clip: 1.0" in found.text  # a default, in the whole configuration


def test_the_story_counts_savings_and_provenance_names_what_there_is(scored):
    for step in (11, 12):
        scored.dir.note("saved", step=step, sha256="0" * 64)
    scored.dir.note("said", text="ROLLED BACK to step 4")
    scored.dir.identity()
    text = page_of(scored)[1].text
    story = text.partition("Story")[2]
    assert "ROLLED BACK to step 4" in story
    assert "the last time at step 12" in story
    assert story.count("saved ") == 1
    facts = read_scores(scored.folder).facts
    own = [scored.weights()[1]["sha256"], scored.data.fingerprint, scored.dir.identity()]
    for wanted in (*own, facts["extractor"], facts["torch"]):
        assert wanted in text


def test_what_is_missing_is_named_with_its_command(trained, tmp_path):
    run = copy_of(trained, tmp_path / "new run")
    shutil.rmtree(run.dir.evaluation, ignore_errors=True)
    _, found = page_of(run, "training")
    assert "No scores yet" in found.text
    assert "dreamlib evaluate 'new run'" in found.text
    assert [figure["id"] for figure in found.all("figure")] == ["training"]


def test_a_run_with_nothing_yet_has_a_page(tiny):
    text = page_of(tiny("fresh"))[1].text
    for wanted in ("No scores yet", "dreamlib train fresh", "None are drawn yet", "none yet"):
        assert wanted in text


def test_a_heavy_page_is_made_lighter(scored, monkeypatch):
    picture(scored.dir.figures / "samples.png", (300, 200))
    large = picture(scored.dir.figures / "training.png", (2400, 800), noise=True)
    names = ("samples", "training")
    light = len(read_page(scored, names)[0])
    assert large.stat().st_size < light < LIGHT * 1.1  # light enough as it is
    monkeypatch.setattr("dreamlib.report.html_report.LIGHT", 3 << 20)
    page, found = read_page(scored, names)
    assert len(page) < (3 << 20) * 1.1
    data = [base64.b64decode(image["src"].partition(",")[2]) for image in found.all("img")]
    assert [Image.open(io.BytesIO(each)).size for each in data] == [(300, 200), (1200, 400)]
    assert read_page(scored, names)[0] == page


def test_a_damaged_record_is_an_error_that_names_it(scored):
    (scored.dir.weights / "card.json").write_text("{")
    with pytest.raises(RunError, match=r"card.json is damaged"):
        page_of(scored)
