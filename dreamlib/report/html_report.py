"""One HTML page that tells a run: scores, figures, settings, story, provenance, what is missing.

Everything is read from the run's files, nothing from elsewhere: pictures are inside the page, and
equal files give equal bytes.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterable
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any

from dreamlib.config.load import differences, dump_config, load_config, preset_names
from dreamlib.config.schema import Config
from dreamlib.evaluation.results import GENERATED, REAL, Study
from dreamlib.report.captions import ABLATE, CAPTIONS, FIGURES, Caption, captions_of, needs
from dreamlib.report.embed import drawn, embedded
from dreamlib.report.markup import document, fold, paragraph, table
from dreamlib.report.sources import folder_name, sampler_of
from dreamlib.report.tables import (
    MADE,
    how_to_read,
    meaning,
    memorisation_sentence,
    rows_table,
    scores_of,
)
from dreamlib.runs.run import Run
from dreamlib.utils.errors import RunError
from dreamlib.utils.files import check_fields, read_json, write_text

COMMANDS = {"sensitivity": ABLATE}  # that make a figure; FIGURES for the others


def write_page(run: Run, paths: Iterable[Path]) -> Path:
    """figures/report.html: one self-contained page with the PNG files among `paths`.

    Parts that the run's files do not hold are named, with the command that makes them.  RunError
    where a file is damaged.
    """
    study = scores_of(run)
    pictures = {path.stem: path for path in paths if path.suffix == ".png" and drawn(path)}
    config = load_config(run.dir.config)
    name = folder_name(run)
    sections = {
        "Scores": _scores(run, study),
        "Figures": _figures(run, study, pictures),
        "Settings": _settings(config),
        "Story": _story(run),
        "Provenance": _provenance(run, study),
        "Missing": _missing(run, study, pictures),
    }
    head = f"<h1>{escape(name)}</h1>\n<p>{_where_it_stands(run, config)}</p>"
    path = run.dir.figures / "report.html"
    write_text(path, document(f"{name}: report", head, sections))
    return path


def headline(study: Study) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table that opens a report: the distance at every N, the same
    corrected, and KID at every N; generated images beside the floor."""
    metric = study.facts["metric"]
    kid = "KID" + metric.removeprefix("FID").removeprefix("FD")
    names = (metric, f"{metric} corrected", kid)
    kinds = (GENERATED, REAL)
    rows = [row for name in names for kind in kinds for row in study.of(kind, name)]
    head, cells = rows_table(sorted(rows, key=lambda row: (names.index(row.metric), row.n)))
    keep = [i for i, name in enumerate(head) if name not in ("real", *MADE)]
    names = [f"floor ({REAL})" if head[i] == REAL else head[i] for i in keep]
    return names, [[line[i] for i in keep] for line in cells]


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
    facts = [f"preset {config.preset}", f"{config.data.name} {size} × {size}"]
    total = f" of {status['total']:,}" if "total" in status else ""
    facts.append(f"step {status['step']:,}{total} ({status['state'].replace('_', ' ')})")
    if rows and "time" in rows[-1]:
        facts.append(f"last training step logged {moment(rows[-1]['time'])}")
    return escape(" · ".join(facts))


# --------------------------------------------------------------------------- parts of the page


def _scores(run: Run, study: Study | None) -> str:
    if study is None or not study.rows:
        return f"<p>No scores yet.  {_how('evaluate RUN', run)}</p>"
    facts = study.facts
    made = (
        f"Images by {sampler_of(facts)}; weights of step {facts['step']:,}; "
        f"{study.rows[0].n_real:,} real images; features by {facts['extractor']}."
    )
    absent = [f"{metric}: not computed, because {why}" for metric, why in study.absent.items()]
    return "\n".join(
        [
            table(*headline(study)),
            *map(paragraph, [*_stale(run, study), meaning(study), memorisation_sentence(study)]),
            *map(paragraph, [how_to_read(study), made, *absent]),
            fold("Every score", table(*rows_table(study.rows))),
        ]
    )


def _stale(run: Run, study: Study) -> list[str]:
    card = _card(run)
    if card is None or card.get("sha256") == study.facts["weights"]:
        return []
    return [
        f"These scores are of step {study.facts['step']:,}; the weights are of step "
        f"{card.get('step', 0):,} by now: {command('evaluate RUN', run)} scores those."
    ]


def _figures(run: Run, study: Study | None, pictures: dict[str, Path]) -> str:
    """Those that hold something, in the order of CAPTIONS; unknown ones come last."""
    empty = {name for need in needs(run, study) if not need.there for name in need.figures}
    shown = [name for name in [*captions_of(run.config), *sorted(pictures)] if name in pictures]
    shown = [name for name in dict.fromkeys(shown) if name not in empty]
    if "training" in shown and "curves" in shown:
        shown.remove("curves")  # three of its panels
    if not shown:
        return f"<p>None are drawn yet.  {_how('figures RUN', run)}</p>"
    return "\n".join(_figure(*each) for each in embedded({n: pictures[n] for n in shown}))


def _figure(name: str, picture: bytes, size: tuple[int, int], wide: int) -> str:
    caption = CAPTIONS.get(name, Caption(name.replace("_", " ").capitalize(), name, ""))
    data = base64.b64encode(picture).decode()
    alt, read = escape(caption.shows, quote=True), escape(caption.read)
    return (
        f'<figure id="{escape(name, quote=True)}"><h3>{escape(caption.title)}</h3>\n'
        f'<img src="data:image/png;base64,{data}" alt="{alt}" width="{size[0]}" '
        f'height="{size[1]}" style="width:{wide}px">\n'
        f"<figcaption>{escape(caption.shows)} <em>{read}</em></figcaption></figure>"
    )


def _settings(config: Config) -> str:
    """What differs from the defaults, and all of it."""
    changed = config.model_dump(mode="json", exclude_defaults=True, exclude={"preset", "model"})
    rows = [("model", config.model, "diffusion")] if config.model != "diffusion" else []
    rows += [
        (f"{section}.{name}", _yaml(value), _default(config, section, name))
        for section, values in changed.items()
        for name, value in values.items()
    ]
    parts = [table(("setting", "this run", "default"), rows)]
    if config.preset in preset_names():
        preset = load_config(config.preset).model_dump(mode="json")
        own = differences(preset, config.model_dump(mode="json"))
        told = "; ".join(own) if own else "nothing"
        parts.append(paragraph(f"Changed from the preset {config.preset} as it is today: {told}."))
    whole = f"<pre>{escape(dump_config(config))}</pre>"
    return "\n".join([*parts, fold("The whole configuration", whole)])


def _default(config: Config, section: str, name: str) -> str:
    field = type(getattr(config, section)).model_fields[name]
    return "–" if field.is_required() else _yaml(field.default)


def _yaml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_yaml, value)) or "none"
    words = {None: "none", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _story(run: Run) -> str:
    """events.jsonl, with the savings counted and not listed."""
    events = run.dir.read_events()
    saved = [event for event in events if event["event"] == "saved"]
    told = [event for event in events if event["event"] != "saved"]
    rows = [(moment(event["time"]), _event(event)) for event in told]
    if saved:
        last = saved[-1]
        text = f"saved {len(saved)} times, the last time at step {last.get('step', 0):,}"
        rows.append((moment(last["time"]), text))
    if not rows:
        return "<p>No events are recorded.</p>"
    return table(("when", "what"), sorted(rows, key=lambda row: row[0]), "words")


def _event(event: dict[str, Any]) -> str:
    facts = [f"{k} {v}" for k, v in event.items() if k not in ("time", "event", "text")]
    return event.get("text") or " ".join([event["event"].replace("_", " "), *facts])


def _provenance(run: Run, study: Study | None) -> str:
    card, manifest = _card(run) or {}, run.data.manifest
    splits = ", ".join(f"{name} {count:,}" for name, count in manifest["splits"].items())
    rows = [
        ("weights", f"{card['sha256']} (step {card['step']:,})" if card else "none yet"),
        ("images", f"{run.data.fingerprint} ({manifest['source']}: {splits})"),
    ]
    own = _json(run.folder / "run.json") or {}
    parent = own.get("parent", {})
    how = "begun with the weights of" if parent.get("how") == "init" else "forked from"
    told = ("id", own.get("id")), (how, parent.get("run"))
    rows += [(f"run {key}", str(value)) for key, value in told if value]
    if study is not None:
        wanted = ("weights", "data", "extractor", "torch")
        rows += [(f"scored {k}", str(study.facts[k])) for k in wanted if k in study.facts]
    for path in sorted(run.dir.checkpoints.glob("step-*.json"))[-1:]:
        newest = _json(path) or {}
        where = [f"{key} {value}" for key, value in newest.get("where", {}).items()]
        facts = [f"step {newest.get('step', 0):,}", str(newest.get("sha256"))]
        rows.append(("checkpoint", "; ".join([*facts, f"torch {newest.get('torch')}", *where])))
    return table(("what", "which"), rows, "words")


def _missing(run: Run, study: Study | None, pictures: dict[str, Path]) -> str:
    wanted = needs(run, study)
    lines = [f"{escape(n.what)}: {_code(n.command, run)}" for n in wanted if not n.there]
    empty = {name for need in wanted if not need.there for name in need.figures}
    drawn = {"curves", *pictures} if "training" in pictures else set(pictures)
    for name in captions_of(run.config):
        if name not in drawn | empty:
            lines.append(f"the figure {escape(name)}: {_code(COMMANDS.get(name, FIGURES), run)}")
    if not lines:
        return "<p>Nothing: every part of this page is there.</p>"
    return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>" + paragraph(WHERE)


WHERE = "Commands are given in the folder that holds this run's folder."


def _how(text: str, run: Run) -> str:
    return f"In the folder that holds this run's folder, this makes them: {_code(text, run)}"


def _code(text: str, run: Run) -> str:
    return f"<code>{escape(command(text, run))}</code>"


def _card(run: Run) -> dict[str, Any] | None:
    return _json(run.dir.weights / "card.json")


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return check_fields(read_json(path))
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}): restore it from a copy") from error
