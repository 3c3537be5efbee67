"""One HTML page that tells a run: scores, figures, settings, story, provenance, what is missing.

Everything is read from the run's files, nothing from elsewhere: pictures are inside the page, and
equal files give equal bytes.
"""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from dreamlib.config.load import differences, dump_config, load_config, preset_names
from dreamlib.config.schema import Config
from dreamlib.evaluation.results import Study
from dreamlib.report.captions import CAPTIONS, Caption, captions_of
from dreamlib.report.contents import Report
from dreamlib.report.html import render
from dreamlib.report.sources import folder_name, sampler_of
from dreamlib.report.tables import (
    headline,
    how_to_read,
    meaning,
    memorisation_sentence,
    rows_table,
)
from dreamlib.runs.run import Run
from dreamlib.utils.errors import RunError
from dreamlib.utils.files import check_fields, read_json, write_text

WIDTHS = (100_000, 1600, 1200, 900, 600)  # pixels of a picture: the first that make a light page
LIGHT = 11 << 20  # bytes of all pictures in the page
SCREEN = 115  # pixels of a screen that an inch of paper gets


def write_page(report: Report) -> Path:
    """figures/report.html: one self-contained page with the PNG files of the report's figures.

    Parts that the run's files do not hold are named, with the command that makes them.  RunError
    where a file is damaged.
    """
    run, study = report.run, report.scored
    config = load_config(run.dir.config)
    scores = {} if study is None else _scores(run, study)
    page = render(
        "report.html",
        name=folder_name(run),
        stands=_where_it_stands(run, config),
        command=partial(command, run=run),
        config=config,
        study=study,
        **scores,
        figures=_figures(report),
        settings=list(_settings(config)),
        changes=_changes(config),
        whole=dump_config(config),
        story=_story(run),
        provenance=list(_provenance(report)),
        missing=list(_missing(report)),
    )
    path = run.dir.figures / "report.html"
    write_text(path, page)
    return path


def command(text: str, run: Run) -> str:
    """'dreamlib evaluate NAME', to be given beside the run's folder."""
    name = shlex.quote(folder_name(run))
    return f"dreamlib {text.replace('RUN', name)}"


def moment(seconds: float) -> str:
    """'2026-11-21 23:49 UTC'"""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _where_it_stands(run: Run, config: Config) -> str:
    """Preset, images, step, state, and the time of the last row of the log."""
    status, rows = run.dir.status(), run.dir.read_log()
    size = config.data.size
    total = f" of {status['total']:,}" if "total" in status else ""
    facts = [f"preset {config.preset}", f"{config.data.name} {size} × {size}"]
    facts.append(f"step {status['step']:,}{total} ({status['state'].replace('_', ' ')})")
    if rows and "time" in rows[-1]:
        facts.append(f"last training step logged {moment(rows[-1]['time'])}")
    return " · ".join(facts)


def _scores(run: Run, study: Study) -> dict[str, Any]:
    facts, card, notes = study.facts, _json(run.dir.weights / "card.json"), []
    if card and card.get("sha256") != facts["weights"]:
        notes.append(
            f"These scores are of step {facts['step']:,}; the weights are of step "
            f"{card.get('step', 0):,} by now: {command('evaluate RUN', run)} scores those."
        )
    notes += [meaning(study), memorisation_sentence(study), how_to_read(study)]
    notes.append(
        f"Images by {sampler_of(facts)}; weights of step {facts['step']:,}; "
        f"{study.rows[0].n_real:,} real images; features by {facts['extractor']}."
    )
    notes += [f"{metric}: not computed, because {why}" for metric, why in study.absent.items()]
    return {"headline": headline(study), "notes": notes, "scores": rows_table(study.rows)}


# --------------------------------------------------------------------------- figures


def _figures(report: Report) -> list[dict[str, Any]]:
    names = report.drawn
    if "training" in names:
        names = [name for name in names if name != "curves"]  # three of its panels
    paths = [report.run.dir.figures / f"{name}.png" for name in names]
    pictures = embedded(paths)
    unknown = {n: Caption(n.replace("_", " ").capitalize(), n, "") for n in names}
    return [
        {"name": name, "caption": (unknown | CAPTIONS)[name], **picture}
        for name, picture in zip(names, pictures)
    ]


def embedded(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """PNG files in base64, with their size and their width on a screen; smaller ones if need be."""
    pictures: list[dict[str, Any]] = []
    for most in WIDTHS:
        pictures = [_picture(path, most) for path in paths]
        if sum(len(picture["data"]) for picture in pictures) <= LIGHT:
            break
    return pictures


def _picture(path: Path, most: int) -> dict[str, Any]:
    """A PNG file as it is, or shrunk to `most` pixels where that makes it lighter: mixed colours
    can weigh more than fewer pixels spare."""
    data = path.read_bytes()
    with Image.open(path, formats=["PNG"]) as image:
        wide = round(image.width / image.info.get("dpi", (SCREEN,))[0] * SCREEN)
        size = image.size
        if image.width > most:
            smaller = most, max(1, round(image.height * most / image.width))
            file = io.BytesIO()
            image.convert("RGB").resize(smaller, Image.Resampling.LANCZOS).save(file, format="PNG")
            data, size = min(
                (data, size), (file.getvalue(), smaller), key=lambda each: len(each[0])
            )
    text = base64.b64encode(data).decode()
    return {"data": text, "width": size[0], "height": size[1], "wide": wide}


# --------------------------------------------------------------------------- what is told of a run


def _settings(config: Config) -> Iterator[tuple[str, str, str]]:
    """What differs from the defaults: the setting, this run's value, the default."""
    changed = config.model_dump(mode="json", exclude_defaults=True, exclude={"preset", "model"})
    if config.model != "diffusion":
        yield "model", config.model, "diffusion"
    for section, values in changed.items():
        fields = type(getattr(config, section)).model_fields
        for name, value in values.items():
            default = "–" if fields[name].is_required() else _yaml(fields[name].default)
            yield f"{section}.{name}", _yaml(value), default


def _changes(config: Config) -> list[str] | None:
    """What the run changed of its preset as it is today; None when that is no more."""
    if config.preset not in preset_names():
        return None
    preset = load_config(config.preset).model_dump(mode="json")
    return differences(preset, config.model_dump(mode="json"))


def _yaml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_yaml, value)) or "none"
    words = {None: "none", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _story(run: Run) -> list[tuple[str, str]]:
    """events.jsonl, with the savings counted and not listed."""
    events = run.dir.read_events()
    saved = [event for event in events if event["event"] == "saved"]
    rows = [(moment(e["time"]), _event(e)) for e in events if e["event"] != "saved"]
    if saved:
        last = saved[-1]
        text = f"saved {len(saved)} times, the last time at step {last.get('step', 0):,}"
        rows.append((moment(last["time"]), text))
    return sorted(rows, key=lambda row: row[0])


def _event(event: dict[str, Any]) -> str:
    facts = [f"{k} {v}" for k, v in event.items() if k not in ("time", "event", "text")]
    return event.get("text") or " ".join([event["event"].replace("_", " "), *facts])


def _provenance(report: Report) -> Iterator[tuple[str, str]]:
    run, manifest = report.run, report.run.data.manifest
    card, identity = _json(run.dir.weights / "card.json"), _json(run.folder / "run.json")
    yield "weights", f"{card['sha256']} (step {card['step']:,})" if card else "none yet"
    splits = ", ".join(f"{name} {count:,}" for name, count in manifest["splits"].items())
    yield "images", f"{run.data.fingerprint} ({manifest['source']}: {splits})"
    if identity.get("id"):
        yield "run id", str(identity["id"])
    parent = identity.get("parent", {})
    if parent.get("run"):
        how = "begun with the weights of" if parent.get("how") == "init" else "forked from"
        yield f"run {how}", str(parent["run"])
    for key in ("weights", "data", "extractor", "torch"):
        if report.study is not None and key in report.study.facts:
            yield f"scored {key}", str(report.study.facts[key])
    for path in sorted(run.dir.checkpoints.glob("step-*.json"))[-1:]:
        newest = _json(path)
        where = [f"{key} {value}" for key, value in newest.get("where", {}).items()]
        facts = [f"step {newest.get('step', 0):,}", str(newest.get("sha256"))]
        yield "checkpoint", "; ".join([*facts, f"torch {newest.get('torch')}", *where])


def _missing(report: Report) -> Iterator[tuple[str, str]]:
    """What is not there yet, and the command that makes it."""
    yield from report.lacking.items()
    shown = {*report.drawn, *(["curves"] if "training" in report.drawn else [])}
    for name, caption in captions_of(report.run.config).items():
        if name not in shown and not report.lacking.keys() & caption.needs:
            yield f"the figure {name}", caption.command


def _json(path: Path) -> dict[str, Any]:
    """A record of the run; {} when there is none."""
    if not path.exists():
        return {}
    try:
        return check_fields(read_json(path))
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}): restore it from a copy") from error
