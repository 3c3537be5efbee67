"""The figures of a run: from files alone, the same bytes twice, and nothing invented."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from dreamlib.config.factory import make_net
from dreamlib.config.load import load_config
from dreamlib.evaluation.evaluate import evaluate
from dreamlib.evaluation.results import read_scores
from dreamlib.report import sources as kept
from dreamlib.report.captions import CAPTIONS
from dreamlib.report.figures import curves as training
from dreamlib.report.figures import images as sheets
from dreamlib.report.figures import network, palette, score_figures
from dreamlib.report.figures import registry as figures
from dreamlib.report.figures import score_panels as panels
from dreamlib.report.figures import style as plotting
from dreamlib.runs.open import open_run
from dreamlib.runs.run import Run
from dreamlib.sampling.generate import Shards, generate, process
from dreamlib.training.cost import count_parameters, explain, usual_images
from dreamlib.utils.errors import NotEnoughSamples, RunError

ABLATION = Path(__file__).resolve().parents[2] / "figures" / "ablation" / "fashion"
NAMES = {
    *("curves", "training", "stages", "samples", "process", "process_x0", "quality"),
    *("evaluation", "fd_against_n", "parts", "replay", "modes", "nearest", "shares"),
    *("architecture", "schedule", "sensitivity"),
}


@pytest.fixture(scope="module")
def finished(trained, tmp_path_factory):
    """A scored copy of the tiny run, with the denoising process and the untrained network's
    images."""
    folder = tmp_path_factory.mktemp("figures") / "finished"
    shutil.copytree(trained.folder, folder)
    run = opened(folder, "evaluate.anchors=true")
    evaluate(run)
    process(run)
    return run


def opened(folder: Path, *settings: str) -> Run:
    return open_run(folder, overrides=settings, mirror="none", say=lambda text: None)


@pytest.fixture
def copied(finished, tmp_path):
    """copied(*settings): one copy of the scored run, opened under other settings."""
    shutil.copytree(finished.folder, tmp_path / "finished")
    return partial(opened, tmp_path / "finished")


@pytest.fixture
def rescored(copied):
    """rescored(change): that copy after a change to what scores.json holds."""

    def change_scores(change: Callable[[dict], dict]) -> Run:
        path = copied().folder / "evaluation/scores.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
        return copied()

    return change_scores


@pytest.fixture
def no_network_is_asked(monkeypatch):
    def refuse(*args, **more):
        raise AssertionError("a figure asked a network")

    monkeypatch.setattr(torch.nn.Module, "__call__", refuse)
    monkeypatch.setattr(Shards, "draw", refuse)


def words(fig: Figure) -> str:
    """Every text of a figure, visible at last."""
    return "\n".join(text.get_text() for text in fig.findobj(plt.Text) if text.get_text())


def foot(fig: Figure) -> str:
    return fig.get_supxlabel().replace("\n", " · ")


def lines(axes: plt.Axes) -> list[list[float]]:
    return [np.asarray(line.get_ydata(), float).tolist() for line in axes.lines]


# --------------------------------------------------------------------------- all of them


def test_save_all_makes_every_figure_from_files_alone(finished, no_network_is_asked, monkeypatch):
    monkeypatch.setattr(plotting, "DPI", 50)  # quicker
    monkeypatch.setattr(plotting, "TRUETYPE", {})
    paths = figures.save_all(finished, figures.build(finished, ABLATION))
    assert {path.stem for path in paths} == NAMES == set(figures.all_of(finished))
    assert sorted(paths) == sorted(finished.dir.figures.iterdir())
    for path in paths:
        assert path.read_bytes()[:4] == (b"\x89PNG" if path.suffix == ".png" else b"%PDF")
    for name in ("evaluation", "quality", "training"):
        again = plotting.save_figure(figures.all_of(finished)[name](), finished.folder, name)
        for path in again:
            assert path.read_bytes() == (finished.dir.figures / path.name).read_bytes()
            path.unlink()


@pytest.mark.slow
def test_every_figure_is_the_same_file_twice(finished):
    paths = figures.save_all(finished, figures.build(finished, ABLATION))
    first = {path: path.read_bytes() for path in paths}
    figures.save_all(finished, figures.build(finished, ABLATION))
    assert [path.name for path, held in first.items() if path.read_bytes() != held] == []


@pytest.mark.slow
def test_a_file_is_the_same_in_another_process_and_says_no_date(tmp_path):
    code = (
        "import sys; from pathlib import Path; from dreamlib.config.load import load_config;"
        "from dreamlib.report.figures import architecture, save_figure;"
        "save_figure(architecture(load_config('faces16')), Path(sys.argv[1]), 'there')"
    )
    env = os.environ | {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=env)
    here = network.architecture(load_config("faces16"))
    for path in plotting.save_figure(here, tmp_path, "here"):
        assert path.read_bytes() == path.with_stem("there").read_bytes()
        assert b"CreationDate" not in path.read_bytes()


def test_files_are_300_dpi_and_as_wide_as_a_column_or_two(finished, tmp_path):
    for name in ("fd_against_n", "replay"):
        fig = getattr(score_figures, name)(finished)
        assert fig.get_figwidth() in (palette.ONE, palette.TWO)
        (png, pdf) = plotting.save_figure(fig, tmp_path, name)
        assert Image.open(png).size[0] == int(300 * fig.get_figwidth())
        assert b"/Type3" not in pdf.read_bytes()  # letters are embedded as TrueType


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_figure_names_its_run_and_its_words_can_be_read(finished, name):
    fig = figures.all_of(finished, ABLATION)[name]()
    fig.draw_without_rendering()
    said = foot(fig)
    facts = ["finished", "faces16"] if name != "sensitivity" else ["fashion-cpu", "N = 1,000"]
    if name in ("samples", "process", "process_x0", "quality"):
        facts += ["step 8", "ddim, 4 steps"]
    if name in ("evaluation", "fd_against_n", "parts", "replay", "modes", "nearest", "shares"):
        facts += ["step 8", "N = 20, 60", "60 real images", "classifier-", "ddim, 4 steps"]
    assert [fact for fact in facts if fact not in said] == []
    wide, high = fig.get_size_inches() * fig.dpi
    for text in [*fig.texts, fig._supxlabel, *(t for ax in fig.axes for t in words_of(ax))]:
        if text.get_visible() and text.get_text():
            assert text.get_fontsize() >= palette.SMALL, text
            box = text.get_window_extent()
            inside = box.x0 > -1 and box.y0 > -1 and box.x1 < wide + 1 and box.y1 < high + 1
            assert inside, f"{text.get_text()!r} is cut: {box}"


def words_of(axes: plt.Axes) -> list[plt.Text]:
    """Titles, labels, the labels of ticks that are shown, and words inside."""
    found = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    if not axes.axison:
        return list(axes.texts)
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        shown = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        found += [label for tick in shown for label in (tick.label1, tick.label2)]
    return found


def test_a_users_matplotlibrc_changes_no_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(plotting, "DPI", 50)  # quicker

    def drawn(name: str) -> bytes:
        fig = network.schedule(load_config("faces16"))
        return plotting.save_figure(fig, tmp_path, name)[0].read_bytes()

    ours = drawn("ours")
    theirs = {"text.usetex": True, "savefig.bbox": "tight", "axes.facecolor": "red"}
    with plt.rc_context(theirs | {"axes.formatter.use_mathtext": True, "xtick.major.size": 30}):
        assert drawn("theirs") == ours


def test_a_notebook_shows_a_figure_whatever_the_backend(monkeypatch):
    plt.switch_backend("agg")  # of clusters, and of papermill alone: IPython shows no figure then
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    network.schedule(load_config("faces16"))._ipython_display_()
    (picture,) = shown
    assert picture.format == "png"
    assert picture.data[:4] == b"\x89PNG"
    assert plt.get_fignums() == []  # nor does a backend that shows pyplot's show it twice


@pytest.mark.parametrize("name", ["cost_$5_to_$9", r"\frac{", "<b> & _x_ %"])
def test_names_in_figures_are_text(rescored, name):
    odd = {"shares": {name: {name: {"real": 0.5, "generated": 0.4}}}}
    fig = score_figures.shares(rescored(lambda held: held | odd))
    plotting.footer(fig, name)
    fig.draw_without_rendering()
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == [name]
    assert not any(text.get_parse_math() for text in fig.findobj(plt.Text))


def test_what_is_written_as_mathematics_is_read_so(finished):
    """The letters of the panels are bold: the figure shows no dollar signs of its own."""
    texts = score_figures.evaluation(finished).findobj(plt.Text)
    letters = [text for text in texts if "$" in text.get_text()]
    assert len(letters) == 9
    assert all(text.get_parse_math() for text in letters)


# --------------------------------------------------------------------------- what is missing


def test_a_new_runs_figures_say_what_is_missing_and_which_command_makes_it(tiny):
    run = tiny("new")
    drawn = figures.all_of(run)
    commands = {
        **dict.fromkeys(["curves", "training", "stages"], "dreamlib train RUN"),
        **dict.fromkeys(["samples", "quality"], "dreamlib sample RUN"),
        **dict.fromkeys(["process", "process_x0"], "dreamlib sample RUN"),
        **dict.fromkeys(["evaluation", "fd_against_n", "parts"], "dreamlib evaluate"),
        **dict.fromkeys(["replay", "modes", "nearest", "shares"], "dreamlib evaluate"),
        "sensitivity": "dreamlib ablate PRESET --steps N --out FOLDER",
    }
    assert set(drawn) - set(commands) == {"architecture", "schedule"}
    for name, command in commands.items():
        fig = figures.draw(run, name)
        said = words(fig).replace("\n", " ")
        assert f"{name.replace('_', ' ')}: not drawn" in said
        assert f"`{command}" in said
        assert str(run.folder) not in said
        (axes,) = fig.axes
        assert not [*axes.lines, *axes.images, *axes.patches, *axes.collections]


def test_a_missing_score_is_said_and_not_drawn(rescored):
    def without(held: dict) -> dict:
        rows = [row for row in held["rows"] if row["metric"][:4] not in ("KID[", "prec")]
        return held | {"modes": {}, "shares": {}, "replay": [], "memorisation": {}, "rows": rows}

    run = rescored(without)
    shutil.rmtree(run.dir.generated)
    for name in ("modes", "shares", "replay", "nearest"):
        with pytest.raises(NotEnoughSamples, match=r"hold no .*`dreamlib evaluate RUN"):
            getattr(score_figures, name)(run)
    with pytest.raises(RunError, match="`dreamlib sample RUN`"):
        sheets.samples(run)
    fig = score_figures.evaluation(run)  # the other panels are drawn
    said = words(fig).replace("\n", " ")
    assert said.count("the scores hold no") == 6
    assert "The images that were scored are not kept here: run `dreamlib evaluate RUN`" in said
    assert len([ax for ax in fig.axes if ax.lines]) == 2  # the distance and the loss


def test_only_our_own_errors_become_a_figure():
    def broken() -> None:
        raise ValueError("a fault of the program")

    with pytest.raises(ValueError, match="a fault"):
        plotting.attempt(broken)


def test_damaged_files_are_said_and_other_images_are_not_shown(finished, copied):
    run = copied()
    found = kept.newest(run)
    assert found.step == 8  # the untrained network's are never taken for the model's
    assert kept.newest(run, untrained=True).step is None
    assert {store.step for store in kept.image_stores(run)} >= {8, None}
    assert np.array_equal(found.images(64), generate(finished, range(60)))
    changed = np.load(found.folder / "shard-00002.npy") // 2
    np.save(found.folder / "shard-00002.npy", changed)
    assert len(found.images(64)) == 20  # up to the shard that the manifest does not know
    (found.folder / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="keeps no generated images"):
        kept.newest(run)
    path = run.dir.samples / "process.npz"
    whole = dict(np.load(path))
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(RunError, match="is damaged"):
        sheets.process(run)
    for odd in ({"x_t": np.zeros(3)}, {"step": np.zeros(2)}, {"sample": "{"}, {"sample": "[]"}):
        np.savez(path, **(whole | odd))
        with pytest.raises(RunError, match=r"process.npz is damaged .*`dreamlib sample RUN`"):
            sheets.process(run)
    del whole["sample"]
    np.savez(path, **whole)
    with pytest.raises(RunError, match=r"older version.*`dreamlib sample RUN`"):
        sheets.process(run)


# --------------------------------------------------------------------------- what is drawn


def test_training_curves_are_the_logs_rows_and_shares_those_of_the_settings(finished):
    rows, weight = finished.dir.read_log(), finished.config.loss.weight
    drawn = [lines(axes) for axes in training.training(finished).axes]
    for place, key in ((0, "loss"), (6, "lr"), (7, "grad_norm"), (8, "images_per_s")):
        assert drawn[place][0] == [row[key] for row in rows]
    for place, key in ((1, "loss"), (2, "error"), (3, "lam"), (5, "shift")):
        for quartile in range(4):
            values = [row[f"{key}_by_quartile"][quartile] for row in rows]
            expected = [np.nan if value is None else value for value in values]
            np.testing.assert_array_equal(drawn[place][quartile], expected)
    assert drawn[3][4] == [row["lam"] for row in rows]
    assert drawn[4][:2] == [[1, 1, 1 - weight, 1 - weight], [0, 0, weight, weight]]


def test_the_adapted_share_is_not_drawn_before_it_begins(tiny):
    run = tiny("young", "train.length=8", "loss.start=4")
    for step, shares in ((3, [0, 0]), (4, [0, 0]), (5, [0, 0, 0.3, 0.3])):
        run.dir.append_log(a_row(step))
        panel = training.training(run).axes[4]
        standard, adapted = lines(panel)[:2]
        assert adapted == shares
        assert standard == [1 - share for share in shares]
        said = " ".join(text.get_text() for text in panel.texts)
        assert ("from step 4" in said) == (step <= 4)


def test_a_loss_with_one_branch_has_no_share(tiny):
    run = tiny("plain", "loss.name=standard")
    run.dir.append_log(a_row(4))
    panel = training.training(run).axes[4]
    assert "standard loss has one branch" in panel.texts[0].get_text().replace("\n", " ")
    assert not [line for line in panel.lines if len(line.get_ydata()) > 2]


def a_row(step: int) -> dict:
    quartiles = {f"{k}_by_quartile": [0.1, 0.2, None, 0.4] for k in ("loss", "error", "shift")}
    return {
        **{"step": step, "loss": 0.2, "lam": 0.0, "lr": 0.1, "grad_norm": 1.0},
        **{"lam_by_quartile": [0.0] * 4, "images_per_s": 9.0, "skipped_steps": 1},
        **quartiles,
    }


def test_resumptions_are_marked_where_they_were(copied):
    run = copied()
    assert training.resumptions(run, last=8) == []
    for step in (4, 4, 8):
        run.dir.note("resumed", step=step, text="RESUMED")
    run.dir.note("said", text="RESUMED at step 1,002 of 5,000 from a checkpoint")  # older versions
    assert training.resumptions(run, last=8) == [4]
    assert training.resumptions(run, last=5000) == [4, 8, 1002]
    axes = training.curves(run).axes[0]
    assert [line for line in axes.lines if list(line.get_xdata()) == [4, 4]]


def test_kid_precision_and_modes_are_the_scores(finished):
    study = read_scores(finished.folder)

    def drawn(panel: Callable, get: str) -> set[float]:
        _, (axes,) = plotting.new_figure(3, 3)
        panel(axes, study)
        return {float(value) for line in axes.lines for value in getattr(line, get)()}

    kid, manifold = drawn(panels.draw_kid, "get_ydata"), drawn(panels.draw_manifold, "get_xdata")
    for kind in ("generated", "held-out real"):
        assert {study.find(kind, n, "KID[classifier]").value for n in (20, 60)} <= kid
        for metric in ("precision", "recall", "density", "coverage"):
            assert study.find(kind, 60, f"{metric}[classifier]").value in manifold
    ratios = drawn(panels.draw_modes, "get_ydata")
    for mode in study.modes["generated"]["table"]:
        if mode["real"]:
            ratio = min(max(mode["ratio"], panels.LEAST), panels.MOST)
            assert any(value == pytest.approx(ratio) for value in ratios)


def test_the_page_shows_the_images_that_were_scored_and_no_others(finished, copied):
    scored = generate(finished, range(60))
    other = copied("sample.seed=5")
    generate(other, range(20))  # kept for the same step, by the settings in force
    assert kept.newest(other).sample["seed"] == 5
    fig = score_figures.evaluation(other)
    sheet = fig.axes[0].images[0].get_array()
    assert np.array_equal(sheet[1:17, 1:17], scored[0])
    assert "scored" not in words(fig)
    for path in finished.dir.generated.glob("ddim-4-seed0-step*"):
        shutil.rmtree(other.dir.generated / path.name)
    fig = score_figures.evaluation(other)
    assert not fig.axes[0].images
    assert "images that were scored are not kept here" in words(fig).replace("\n", " ")


def with_corrected(held: dict) -> dict:
    """Scores with one cross and one star more."""
    row = next(row for row in held["rows"] if row["images"] == "generated")
    row["null"] = 1.0
    star = row | {"metric": f"{held['facts']['metric']} corrected", "se": 0.1}
    return held | {"rows": [*held["rows"], star]}


def test_every_mark_of_the_page_is_in_its_legend_and_caption(finished, rescored):
    fig = score_figures.evaluation(rescored(with_corrected))
    marks = {line.get_marker() for line in fig.axes[1].lines} - {"None", "_", "|"}
    (legend,) = fig.legends
    named = {line.get_marker() for line in legend.get_lines()}
    assert {"o", "x", "*"} <= marks <= named
    assert {panels.CROSS, panels.STAR} <= {text.get_text() for text in legend.get_texts()}
    read = CAPTIONS["evaluation"].read
    assert all(word in read for word in ("crosses", "stars", "grey line"))
    (legend,) = score_figures.evaluation(finished).legends  # too few images for either
    assert not {"x", "*"} & {line.get_marker() for line in legend.get_lines()}


def test_the_distance_falls_from_left_to_right_and_nothing_hides_it(rescored):
    """One line per kind, more images to the right up to 1/N = 0, the legend outside."""
    fig = score_figures.fd_against_n(rescored(with_corrected))
    fig.draw_without_rendering()
    (axes,), (legend,) = fig.axes, fig.legends
    drawn = [line for line in axes.lines if len(set(line.get_xdata())) > 1]
    assert [line.get_color() for line in drawn] == [palette.BLUE, palette.ORANGE]
    assert axes.get_legend() is None
    assert legend.get_window_extent().y0 > axes.get_window_extent().y1
    left, right = axes.get_xlim()
    assert left > right == 0
    (star,) = (line for line in axes.lines if line.get_marker() == "*")
    assert star.get_xdata().tolist() == [0]
    assert axes.get_xticks()[-1] == 0
    assert "1/N = 0" in axes.get_xticklabels()[-1].get_text()


def test_the_pages_letters_can_be_read_at_half_its_width(finished):
    fig = score_figures.evaluation(finished)
    for axes in fig.axes[1:]:
        sizes = [text.get_fontsize() for text in words_of(axes) if text.get_text()]
        assert min(sizes) >= 8, axes.get_title("left")
    study = read_scores(finished.folder)
    near, differ = f"{study.memorisation['share']:.1%}", f"{study.modes['generated']['ndb']:.0%}"
    assert f"very near: {near}" in words(fig)
    assert f"{differ} differ" in words(fig)
    bars = [label.get_text() for label in fig.axes[6].get_yticklabels()]
    assert len(set(bars)) == len(bars) == len(study.replay)
    fig.draw_without_rendering()
    for axes, box in ((ax, ax.get_window_extent()) for ax in fig.axes[5:8]):
        for text in axes.texts:
            assert text.get_window_extent().x1 < box.x1 + 15, text  # not on the next panel


def test_without_disjoint_sets_the_remedy_is_two_sizes(rescored):
    def one_size(held: dict) -> dict:
        rows = [row for row in held["rows"] if row["n"] == 60]
        return held | {"rows": rows, "facts": held["facts"] | {"sizes": [60]}}

    with pytest.raises(NotEnoughSamples) as caught:
        score_figures.parts(rescored(one_size))
    assert str(caught.value) == (
        "the scores hold no disjoint sets, as the smallest N must fit into the largest twice: "
        "run `dreamlib evaluate RUN --n 6 --n 60`"
    )


# --------------------------------------------------------------------------- stages, process


def test_the_process_is_told_by_its_own_file(copied):
    process(copied("sample.steps=2"))
    run = copied()  # its settings say 4 steps
    for draw in (sheets.process, sheets.process_x0):
        fig = draw(run)
        assert "ddim, 2 steps" in foot(fig)
        assert "step 8" in foot(fig)
        labels = [label.get_text() for label in fig.axes[0].get_xticklabels()]
        assert labels == ["38", "0", "end"]


def test_stages_name_no_sampler_that_may_not_be_theirs(copied):
    fig = sheets.stages(copied("sample.steps=2"))
    assert "steps" not in foot(fig)
    assert "ddim" not in foot(fig)
    assert "not kept" not in words(fig)  # raw weights are drawn at the end, too
    assert sum(bool(ax.images) for ax in fig.axes) == 2 * 5


def test_the_comparison_shows_the_runs_own_images(finished):
    images = finished.data.take("train", 10)[0]
    sheet = sheets.quality(finished).axes[0].images[0].get_array()
    assert np.array_equal(sheet[1:17, 1:17], images[0])
    assert np.array_equal(sheet[18:34, 1:17], generate(finished, range(1))[0])
    rows = [label.get_text() for label in sheets.quality(finished).axes[0].get_yticklabels()]
    assert [rows[0], rows[-1], len(rows)] == ["training\nimages", "untrained\nnetwork", 4]


PRESETS = ("faces16", "faces16-classes", "fashion-cpu", "celeba64", "cats256", "smoke")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_diagram_counts_what_explain_counts(preset):
    path = ["data.path=/images"] if preset.startswith("cats") else []
    config = load_config(preset, path)
    said = words(network.architecture(config))
    with torch.device("meta"):
        total = count_parameters(make_net(config, *usual_images(config)))
    assert f"{total:,} parameters" in said
    levels = len(config.net.widths)
    inner = [config.data.size // config.net.patch // 2**i for i in range(levels + 1)]
    for size in inner:
        assert f"{size}×{size}" in said
    attending = sum(size in config.net.attention for size in inner[:-1])
    assert said.count("attention\n") + said.count("att.\n") >= 2 * attending + 1
    skips = sorted(int(line[6:]) for line in said.split("\n") if line.startswith("skip, "))
    assert skips == sorted(config.net.widths)
    for width in config.net.widths:
        assert f"\n{width} channels · " in said
        assert f"2 × {width} → {width} channels" in said
    for name, count in explain(config).blocks if preset == "faces16" else ():
        if name.split()[0] in ("down", "up", "shrink", "grow", "middle", "time", "stem"):
            text = f"{count / 1e3:.3g} k" if count >= 1000 else str(count)
            assert text in said, name


def test_sensitivity_is_the_ablations_differences():
    fig = score_figures.ablation(ABLATION)
    held = score_figures.read_ablation(ABLATION)
    below = fig.axes[len(held.facts["samplers"])]
    drawn = [float(x) for line in below.lines for x in line.get_xdata()]
    for cell in held.cells:
        if cell.sampler == held.facts["samplers"][0] and cell.minus_standard is not None:
            assert any(x == pytest.approx(cell.minus_standard) for x in drawn)


def test_footers_break_between_facts():
    fig, _ = plotting.new_figure(palette.ONE, 2)
    facts = [f"fact number {i}" for i in range(12)]
    plotting.footer(fig, " · ".join(facts))
    assert foot(fig).split(" · ") == facts
    assert max(map(len, fig.get_supxlabel().split("\n"))) <= 19 * palette.ONE
