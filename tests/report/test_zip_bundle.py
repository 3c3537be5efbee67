"""results.zip: whole, the same twice, and its index and LaTeX say what the records say."""

from __future__ import annotations

import csv
import io
import re
import shutil
import zipfile
from datetime import datetime

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dreamlib.evaluation.evaluate import evaluate
from dreamlib.evaluation.results import GENERATED, read_scores
from dreamlib.export.page import share
from dreamlib.report import zip_bundle
from dreamlib.report.contents import Missing, Report
from dreamlib.report.html_report import write_page
from dreamlib.report.tables import headline, save_tables, scores_of
from dreamlib.sampling.generate import generate
from tests.conftest import copy_of

ODD = "a_b & 50 % #{1}"  # a run's name


def report_of(run) -> Report:
    figures = {"samples": Figure(), "own_idea": Figure(), "quality": Missing("not drawn")}
    return Report(run, scores_of(run), figures)


def package(run, **more):
    return zip_bundle.package(report_of(run), **more)


@pytest.fixture(scope="module")
def finished(trained, tmp_path_factory):
    run = copy_of(trained, tmp_path_factory.mktemp("package") / ODD)
    save_tables(evaluate(run), run.dir.figures)
    for name in ("samples", "own_idea"):
        for ending in ("png", "pdf"):
            path = run.dir.figures / f"{name}.{ending}"
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    write_page(report_of(run))
    return run


@pytest.fixture
def scored(finished, tmp_path):
    return copy_of(finished, tmp_path / ODD)


def unpacked(path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {name.partition("/")[0] for name in archive.namelist()} == {f"{ODD}-results"}
        texts = [name for name in archive.namelist() if not name.endswith(("png", "pdf"))]
        return {name.partition("/")[2]: archive.read(name).decode() for name in texts}


def lines_of(run) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(unpacked(package(run))["index.csv"])))


def macros(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\\newcommand{\\dream([A-Za-z]+)}{(.*)}$", text, re.MULTILINE))


def test_two_packagings_are_the_same_bytes_and_hold_everything(scored):
    first = package(scored).read_bytes()
    shutil.rmtree(scored.dir.evaluation / "features")
    (scored.dir.evaluation / "neighbours.npz").unlink()
    path = package(scored)
    assert path.read_bytes() == first
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    names = [info.filename.partition("/")[2] for info in infos]
    assert names == sorted(names)
    assert {datetime(*info.date_time).year for info in infos} == {1980}
    wanted = ["report.html", "index.csv", "snippets.tex", "README.txt", "config.yaml"]
    wanted += ["scores.json", "log.jsonl", "weights-card.json", "tables/scores.tex"]
    wanted += ["tables/scores.csv", "tables/scores.md", "figures/samples.png"]
    assert {*wanted, "figures/own_idea.pdf"} <= set(names)
    assert not any("safetensors" in name or "zip" in name or "npy" in name for name in names)


def test_a_page_that_draws_is_packed_when_it_is_asked_for(scored):
    page = share(scored)
    with zipfile.ZipFile(package(scored)) as archive:
        assert not any(name.endswith("page.html") for name in archive.namelist())
    with zipfile.ZipFile(package(scored, page=page)) as archive:
        assert archive.read(f"{ODD}-results/page.html") == page.read_bytes()


def test_the_index_names_every_scored_image_and_where_it_lies(scored):
    lines = lines_of(scored)
    assert [int(line["seed"]) for line in lines] == list(range(60))
    stored = [np.load(scored.folder / line["shard"])[int(line["row"])] for line in lines]
    assert np.array_equal(np.stack(stored), generate(scored, range(60)))
    assert lines[4]["png"] == "00005.png"


def test_neighbours_are_the_nearest_training_images_by_name_and_agree_with_the_study(scored):
    train, _ = scored.data.take("train", 120)
    lines, study = lines_of(scored), read_scores(scored.folder)
    distances = [float(line["distance"]) for line in lines]
    assert np.median(distances) == pytest.approx(study.memorisation["generated"], abs=1e-3)
    for line in lines[:5]:
        image = np.load(scored.folder / line["shard"])[int(line["row"])].astype(float)
        gaps = np.sqrt(np.square(train - image).sum(axis=(1, 2, 3)))
        assert int(line["nearest_train"]) == gaps.argmin()
        assert line["distance"] == f"{gaps.min():.3f}"
        assert line["nearest_name"] == f"face/{gaps.argmin():06d}"


def test_neighbours_are_looked_up_once_and_only_for_those_asked(scored, monkeypatch):
    asked = []

    def counted(queries, gallery, **more):
        asked.append(len(queries))
        return np.zeros(len(queries)), np.zeros(len(queries), np.int64)

    monkeypatch.setattr(zip_bundle, "nearest", counted)
    package(scored, asked=7)
    text = unpacked(package(scored, asked=7))["index.csv"]
    assert asked == [7]
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [line["distance"] != "" for line in lines] == [True] * 7 + [False] * 53
    (scored.dir.evaluation / "neighbours.npz").write_bytes(b"cut short")
    package(scored, asked=7)
    package(scored, asked=5)
    assert asked == [7, 7, 5]


def test_images_of_other_weights_are_not_indexed(scored):
    for path in scored.dir.generated.glob("*/manifest.json"):
        path.write_text(path.read_text().replace(read_scores(scored.folder).facts["weights"], "0"))
    texts = unpacked(package(scored))
    assert "index.csv" not in texts
    assert "Not there yet: figures/*.png" not in texts["README.txt"]
    assert "index.csv" in texts["README.txt"].partition("Not there yet")[2]


def test_macros_hold_the_headline_numbers(scored):
    study = read_scores(scored.folder)
    found = macros(unpacked(package(scored))["snippets.tex"])
    row = study.find(GENERATED, 60)
    value, _, error = found["FdLarge"].partition(r" $\pm$ ")
    assert (float(value), float(error)) == pytest.approx((row.value, row.se), rel=1e-2)
    assert float(found["KidLargeNull"]) == study.find(GENERATED, 60, "KID[classifier]").null
    assert float(found["FdLargeFloor"].split()[0]) == pytest.approx(row.floor, rel=1e-2)
    assert (found["NSmall"], found["NLarge"]) == ("20", "60")
    assert {"KidSmall", "KidLarge", "FdSmallFloor"} <= set(found)
    numbers = [cell for line in headline(study)[1] for cell in line[2:]]
    assert [v for k, v in found.items() if k.startswith(("Fd", "Kid"))] == [
        cell.replace("±", r"$\pm$") for cell in numbers if cell != "–"
    ]


def test_latex_bears_any_name_and_only_figures_that_are_there(scored):
    text = unpacked(package(scored))["snippets.tex"]
    assert macros(text)["Run"] == r"a\_b \& 50 \% \#\{1\}"
    assert re.findall(r"\\includegraphics\[width=\\linewidth\]{(.*)}", text) == [
        "figures/samples.pdf"
    ]
    bare = text.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")
    assert text.count(r"\begin{figure}") == text.count(r"\end{figure}") == 1


def test_a_run_without_scores_is_packed_and_says_what_is_missing(trained, tmp_path):
    run = copy_of(trained, tmp_path / ODD)
    shutil.rmtree(run.dir.evaluation, ignore_errors=True)
    texts = unpacked(package(run))
    assert "index.csv" not in texts
    assert "scores: dreamlib evaluate" in texts["README.txt"]
    assert not any(name.startswith(("Fd", "Kid")) for name in macros(texts["snippets.tex"]))
    assert "config.yaml" in texts
