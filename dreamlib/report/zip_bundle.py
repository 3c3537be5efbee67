"""Everything that a report of a run needs, in one zip file whose bytes depend on its files only."""

from __future__ import annotations

import json
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from dreamlib.data.dataset import INDEX
from dreamlib.evaluation.results import Study
from dreamlib.metrics.pixel_stats import nearest
from dreamlib.report.captions import captions_of
from dreamlib.report.contents import Report
from dreamlib.report.html import render
from dreamlib.report.html_report import command
from dreamlib.report.sources import folder_name, scored_images, way_of
from dreamlib.report.tables import headline
from dreamlib.report.texts import NONE, csv_text, no_formula, tex
from dreamlib.runs.run import Run
from dreamlib.sampling.image_store import ImageStore
from dreamlib.utils.files import fingerprint, is_own, read_npz, write_atomic

ASKED = 1000  # images whose nearest training image is looked for
EPOCH = (1980, 1, 1, 0, 0, 0)  # the date of every file in the zip
COLUMN_NAMES = ("seed", "shard", "row", "png", "nearest_train", "nearest_name", "distance")
PARTS = {  # what lies in the zip, by how its name begins or ends
    "report.html": "the report: scores, figures, settings, story, provenance, on one page",
    "page.html": "the model itself, on a page that draws in a browser (`dreamlib share`)",
    "figures/*.png": "figures for screens and documents",
    "figures/*.pdf": "the same figures, without pixels where they can be",
    "tables/*.md": "tables for people",
    "tables/*.tex": "tables for LaTeX (needs the package booktabs)",
    "tables/*.csv": "every field of every score",
    "snippets.tex": "the headline numbers as macros, and a block per figure with its caption",
    "index.csv": "a line per scored image: where it lies, and its nearest training image",
    "config.yaml": "the run's settings",
    "scores.json": "every score with its N, floor, error and origin",
    "log.jsonl": "the training log, a row per line",
    "events.jsonl": "what happened to the run",
    "weights-card.json": "which weights these are: step, hash, shape of the network",
}


def package(report: Report, *, asked: int = ASKED, page: Path | None = None) -> Path:
    """figures/results.zip: figures, tables, report, settings, scores, log, index, LaTeX snippets.

    It unpacks into one folder, NAME-results/.  What the run does not have yet is left out and
    named in README.txt.  For the first `asked` scored images the nearest training image is looked
    up, and kept under evaluation/; weights and images are not packed, but for those in `page`.
    """
    run, study = report.run, report.scored
    files = _files(run)
    if page:
        files["page.html"] = page.read_bytes()
    files["snippets.tex"] = snippets(report).encode()
    kept = scored_images(run, study) if study else None
    if study and kept:
        files["index.csv"] = index(run, study, kept, asked).encode()
    files["README.txt"] = _readme(report, files).encode()
    path = run.dir.figures / "results.zip"
    folder = f"{folder_name(run)}-results"
    write_atomic(path, lambda file: _write_zip(file, folder, files))
    return path


def _write_zip(file: Any, folder: str, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(f"{folder}/{name}", EPOCH)
            info.create_system, info.external_attr = 3, 0o644 << 16  # the same on every machine
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, files[name], compresslevel=6)


def _files(run: Run) -> dict[str, bytes]:
    """Files of the run as they are, by their name in the zip."""
    single = {
        "config.yaml": run.dir.config,
        "log.jsonl": run.dir.log,
        "events.jsonl": run.dir.events,
        "scores.json": run.dir.evaluation / "scores.json",
        "weights-card.json": run.dir.weights / "card.json",
        "report.html": run.dir.figures / "report.html",
    }
    for folder, _, pattern in (part.partition("/") for part in PARTS if "/" in part):
        paths = sorted(run.dir.figures.glob(f"[!.]{pattern}"))
        single |= {f"{folder}/{path.name}": path for path in paths}
    return {name: path.read_bytes() for name, path in single.items() if is_own(path)}


# --------------------------------------------------------------------------- the index


def index(run: Run, study: Study, kept: ImageStore, asked: int = ASKED) -> str:
    """CSV: a line per scored image, with its shard and row, and for the first `asked` the nearest
    training image: its position among them, its name in the packed images, its distance."""
    count, lines = max(study.facts["sizes"]), []
    distances, partners = _nearest(run, kept, min(asked, count))
    names = _names(run, set(partners.tolist()))
    for seed in range(count):
        number, row = divmod(seed, kept.sample["shard"])
        place: tuple[object, ...] = ("", "")
        if kept.has(number):
            place = (kept.path(number).relative_to(run.folder).as_posix(), row)
        near: tuple[object, ...] = ("", "", "")
        if seed < len(partners):
            partner = int(partners[seed])
            near = (partner, no_formula(names.get(partner, "")), f"{distances[seed]:.3f}")
        lines.append((seed, *place, f"{seed + 1:05d}.png", *near))
    return csv_text(COLUMN_NAMES, lines)


def _nearest(run: Run, kept: ImageStore, asked: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances float64 [n] and positions int64 [n] of the nearest training images, of the first
    images as far as they are here; looked up once."""
    path = run.dir.evaluation / "neighbours.npz"
    what = fingerprint([kept.fingerprint, run.data.fingerprint, asked])
    stored = read_npz(path)  # {} when it is not there yet, or cut short: it is made again
    if str(stored.get("what")) == what:
        return stored["distances"], stored["partners"]
    train = run.data.rows("train")
    found = nearest(kept.images(asked), train, of=" for the index")
    arrays: dict[str, Any] = {"what": np.array(what), "distances": found[0], "partners": found[1]}
    write_atomic(path, lambda file: np.savez_compressed(file, **arrays))
    return found


def _names(run: Run, partners: set[int]) -> dict[int, str]:
    """The names of training images, by their position among them, from the packed images' index."""
    path, rows = run.data.folder / INDEX, run.data.indices("train")
    if not path.exists():
        return {}
    wanted = {int(rows[partner]): partner for partner in partners}
    with open(path, encoding="utf-8") as file:
        next(file, None)  # its head
        used = (line for line in map(json.loads, file) if not line.get("reject"))
        return {wanted[row]: line["name"] for row, line in enumerate(used) if row in wanted}


# --------------------------------------------------------------------------- for LaTeX and people


def snippets(report: Report) -> str:
    """Macros with the facts and the headline numbers, and a block for every figure."""
    run, study = report.run, report.scored
    values = {"Run": folder_name(run), "Preset": run.config.preset}
    if study is not None:
        facts = study.facts
        values |= {"Images": facts["images"], "Step": f"{facts['step']:,}"}
        values |= {"Metric": facts["metric"], "Sampler": way_of(facts)}
        values |= {"Real": f"{study.rows[0].n_real:,}", "Extractor": facts["extractor"]}
        values |= {"Weights": facts["weights"][:12], **_numbers(study)}
    lines = [
        "% Needs graphicx.  Values are read from scores.json; a missing macro was not computed.",
        *(rf"\newcommand{{\dream{name}}}{{{tex(value)}}}" for name, value in values.items()),
    ]
    for name, caption in captions_of(run.config).items():
        if name in report.drawn:
            lines.append(FIGURE % (name, tex(f"{caption.title}. {caption.shows}"), name))
    return "\n".join(lines) + "\n"


FIGURE = r"""
\begin{figure}
  \centering
  \includegraphics[width=\linewidth]{figures/%s.pdf}
  \caption{%s}
  \label{fig:%s}
\end{figure}"""


def _numbers(study: Study) -> dict[str, str]:
    """{'FdSmall': '1.998 ± 0.0392', 'FdSmallFloor': ..., 'KidLargeNull': ...}"""
    sizes = sorted(study.facts["sizes"])
    middle = {f"{n:,}": f"Mid{chr(ord('A') + i)}" for i, n in enumerate(sizes[1:-1])}
    places = {f"{sizes[0]:,}": "Small", **middle, f"{sizes[-1]:,}": "Large"}
    numbers = {f"N{place}": n for n, place in places.items()}
    head, cells = headline(study)
    for metric, n, *values in cells:
        kind = "Kid" if metric.startswith("KID") else "Fd"
        kind += "Corrected" if metric.endswith("corrected") else ""
        for column, value in zip(head[2:], values):
            part = {"generated": "", "null": "Null"}.get(column, "Floor")
            if value != NONE:
                numbers[f"{kind}{places[n.partition(' ')[0]]}{part}"] = value
    return numbers


def _readme(report: Report, files: dict[str, bytes]) -> str:
    run = report.run
    there = {p: what for p, what in PARTS.items() if any(fnmatch(f, p) for f in files)}
    lacking = [(what, command(text, run)) for what, text in report.lacking.items()]
    facts = {"name": folder_name(run), "config": run.config, "lacking": lacking}
    absent = [pattern for pattern in PARTS if pattern not in there]
    return render("README.txt", parts=there, absent=absent, **facts)
