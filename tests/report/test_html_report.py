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
from dreamlib.report import html_report
from dreamlib.report.captions import CAPTIONS
from dreamlib.report.contents import Missing, Report
from dreamlib.report.html_report import LIGHT
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


def reader(path) -> Reader:
    return Reader(path.read_text(encoding="utf-8"))


def picture(path, size=(40, 30), noise=False):
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    if noise:
        pixels = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, dpi=(300, 300))
    return path


def write_page(run, paths):
    """The page of a run whose figures are these PNG files."""
    figures = {path.stem: Figure() for path in paths} | {"sensitivity": Missing("no ablation")}
    return html_report.write_page(Report(run, scores_of(run), figures))


@pytest.fixture(scope="module")
def finished(trained, tmp_path_factory):
    """A scored run whose name is HTML."""
    run = copy_of(trained, tmp_path_factory.mktemp("page") / ODD)
    evaluate(run)
    return run


@pytest.fixture
def scored(finished, tmp_path):
    return copy_of(finished, tmp_path / ODD)


def test_the_page_stands_alone_and_two_are_equal(scored):
    paths = [picture(scored.dir.figures / f"{name}.png") for name in ("training", "samples")]
    page = write_page(scored, paths)
    first = page.read_bytes()
    assert write_page(scored, paths).read_bytes() == first
    found = reader(page)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in found.tags}
    assert all(image["src"].startswith("data:image/png;base64,") for image in found.all("img"))
    assert all(link["href"].startswith("#") for link in found.all("a"))
    assert not re.search(rb"https?:|url\(|@import", first)


def test_the_page_is_the_same_wherever_the_run_lies(scored, tmp_path):
    paths = [picture(scored.dir.figures / "samples.png")]
    elsewhere = copy_of(scored, tmp_path / "elsewhere" / ODD)
    there = [elsewhere.dir.figures / "samples.png"]
    assert write_page(elsewhere, there).read_bytes() == write_page(scored, paths).read_bytes()


def test_names_and_events_are_text_not_html(scored):
    scored.dir.note("said", text="<script>alert(1)</script>")
    odd = 'x" onload="<i>'
    page = write_page(scored, [picture(scored.dir.figures / f"{odd}.png")])
    found = reader(page)
    tags = {tag for tag, _ in found.tags}
    assert not {"b", "i", "script"} & tags
    assert ODD in found.text
    assert "<script>alert(1)</script>" in found.text
    assert found.all("img")[0]["alt"] == odd
    assert found.all("figure") == [{"id": odd}]


def test_figures_come_in_the_order_of_a_report_with_their_captions(scored):
    names = ["training", "curves", "samples", "own_idea"]
    page = write_page(scored, [picture(scored.dir.figures / f"{name}.png") for name in names])
    found = reader(page)
    shown = [figure["id"] for figure in found.all("figure")]
    assert shown == ["samples", "training", "own_idea"]  # curves are three panels of training
    assert found.all("img")[0]["alt"] == CAPTIONS["samples"].shows
    assert CAPTIONS["samples"].read.replace("  ", " ") in found.text


def test_headline_numbers_are_those_of_the_scores(scored):
    study = read_scores(scored.folder)
    head, cells = headline(study)
    assert head == ["metric", "N", "generated", f"floor ({REAL})", "null"]
    metric = study.facts["metric"]
    line = next(cell for cell in cells if cell[0] == metric and cell[1].startswith("20"))
    row, floor = study.find(GENERATED, 20), study.find(REAL, 20)
    assert line[2:] == [_with_error(row), _with_error(floor), _number(row.null)]
    assert list(dict.fromkeys(cell[0] for cell in cells)) == [metric, "KID[classifier]"]
    text = reader(write_page(scored, [])).text
    assert _with_error(row) in text
    assert _with_error(floor) in text


def test_scores_of_other_weights_are_called_so(scored):
    card = scored.dir.weights / "card.json"
    assert "by now" not in reader(write_page(scored, [])).text
    card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": "0" * 64, "step": 99}))
    assert "the weights are of step 99 by now" in reader(write_page(scored, [])).text


def test_the_date_is_that_of_the_last_row(scored):
    rows = scored.dir.read_log()
    scored.dir.append_log(rows[-1] | {"step": rows[-1]["step"] + 1, "time": 1e9})
    assert "last training step logged 2001-09-09 01:46 UTC" in reader(write_page(scored, [])).text


def test_settings_that_differ_and_all_of_them(scored):
    text = reader(write_page(scored, [])).text
    assert "train.batch 6 128" in re.sub(r"\s+", " ", _rows(scored))
    assert "train.batch: 32 -> 6" in text  # from the preset
    assert "mirror_minutes: 30.0" in text  # a default, in the whole configuration


def _rows(run) -> str:
    page = write_page(run, []).read_text(encoding="utf-8")
    return re.sub(r"<[^>]+>", " ", page.partition('id="settings"')[2].partition("<details>")[0])


def test_the_story_counts_savings_and_tells_the_rest(scored):
    for step in (11, 12):
        scored.dir.note("saved", step=step, sha256="0" * 64)
    scored.dir.note("said", text="ROLLED BACK to step 4")
    story = reader(write_page(scored, [])).text.partition("Story")[2]
    assert "ROLLED BACK to step 4" in story
    assert "the last time at step 12" in story
    assert story.count("saved ") == 1


def test_provenance_names_weights_images_and_extractor(scored):
    scored.dir.identity()
    text = reader(write_page(scored, [])).text
    facts = read_scores(scored.folder).facts
    own = [scored.weights()[1]["sha256"], scored.data.fingerprint, scored.dir.identity()]
    for wanted in (*own, facts["extractor"], facts["torch"]):
        assert wanted in text


def test_what_is_missing_is_named_with_its_command(trained, tmp_path):
    run = copy_of(trained, tmp_path / "new run")
    shutil.rmtree(run.dir.evaluation, ignore_errors=True)
    found = reader(write_page(run, [picture(run.dir.figures / "training.png")]))
    assert "No scores yet" in found.text
    assert "dreamlib evaluate 'new run'" in found.text
    assert [figure["id"] for figure in found.all("figure")] == ["training"]
    assert "the figure sensitivity: dreamlib ablate" in found.text


def test_words_in_the_place_of_a_figure_are_not_shown_as_one(scored):
    picture(scored.dir.figures / "sensitivity.png")
    found = reader(write_page(scored, []))
    assert not found.all("figure")
    assert "the figure sensitivity: dreamlib ablate" in found.text


def test_a_run_with_nothing_yet_has_a_page(tiny):
    text = reader(write_page(tiny("fresh"), [])).text
    for wanted in ("No scores yet", "dreamlib train fresh", "None are drawn yet", "none yet"):
        assert wanted in text


def test_a_heavy_page_is_made_lighter(scored, monkeypatch):
    small = picture(scored.dir.figures / "samples.png", (300, 200))
    large = picture(scored.dir.figures / "training.png", (2400, 800), noise=True)
    light = write_page(scored, [small, large]).stat().st_size
    assert large.stat().st_size < light < LIGHT * 1.1  # light enough as it is
    monkeypatch.setattr("dreamlib.report.html_report.LIGHT", 3 << 20)
    page = write_page(scored, [small, large])
    assert page.stat().st_size < (3 << 20) * 1.1
    sources = [image["src"] for image in reader(page).all("img")]
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2]))).size for src in sources
    ]
    assert sizes == [(300, 200), (1200, 400)]
    again = reader(write_page(scored, [small, large])).all("img")
    assert sources == [image["src"] for image in again]


def test_a_damaged_record_is_an_error_that_names_it(scored):
    (scored.dir.weights / "card.json").write_text("{")
    with pytest.raises(RunError, match=r"card.json is damaged"):
        write_page(scored, [])
