"""Tables from scores: Markdown for people, LaTeX for reports, CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from dreamlib.ablate import BUDGETS, Ablation
from dreamlib.compare import Comparison
from dreamlib.files import write_text
from dreamlib.scores import GENERATED, Score, Study

HEAD = ("metric", "images", "N", "value", "± SE", "real", "floor", "null", "steps", "NFE", "resize")
NONE = "–"


def _number(value: float | None) -> str:
    """Four digits or so; what is far below 1 keeps its first ones."""
    if value is None:
        return NONE
    return f"{value:.3f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2e}"


def _cells(row: Score) -> tuple[str, ...]:
    sets = f"{row.n:,}" + (f" ({len(row.parts)} sets)" if row.parts else "")
    real = NONE if row.n_real is None else f"{row.n_real:,}"
    if row.real not in ("", "reference"):
        real += f" {row.real}" if not row.real[0].isdigit() else f" ({row.real})"
    made = row.origin
    return (
        *(row.metric, row.images, sets, _number(row.value), _number(row.se), real),
        *(_number(row.floor), _number(row.null)),
        *(NONE if x is None else str(x) for x in (made.steps, made.nfe)),
        made.resize,
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def rows_markdown(rows: Iterable[Score]) -> str:
    return _table(HEAD, [_cells(row) for row in rows])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join([_line(head), _line(["---"] * len(head)), *map(_line, rows)])


def markdown(study: Study) -> str:
    """Scores as a Markdown table, with what they mean below it."""
    facts = study.facts
    lines = [rows_markdown(study.rows)] if study.rows else []
    lines += [f"\n{metric}: not computed, because {why}" for metric, why in study.absent.items()]
    if study.rows:
        lines += ["", meaning(study), "", memorisation_sentence(study), "", HOW_TO_READ]
        lines += [
            f"Made by {facts['sampler']}, {facts['steps']} steps, sampler seed {facts['seed']}, "
            f"weights {facts['weights'][:12]} (step {facts['step']:,}); seen by "
            f"{facts['extractor']}."
        ]
    if study.guests:
        lines += ["", "Other images:", "", rows_markdown(study.guests)]
    return "\n".join(lines)


HOW_TO_READ = (
    "Floor: other held-out real images in the same place. Null: what a perfect generator is "
    "expected to score, where a formula says. SE: sampling noise, not bias. Rows of different N "
    "are not compared with each other, KID's excepted, which has no bias."
)


def meaning(study: Study) -> str:
    """What the difference between the columns is, in one sentence."""
    metric = study.facts["metric"]
    rows = study.of(GENERATED)
    if len(rows) < 2:
        return f"{metric} is biased upwards at any N: read each value beside its floor."
    small, large = rows[0], rows[-1]
    return (
        f"One model, one reference: {metric} reads {small.value:.2f} with {small.n:,} images and "
        f"{large.value:.2f} with {large.n:,}. The difference is the bias of small samples, not a "
        "change in the model; read each value beside the floor at the same N."
    )


def memorisation_sentence(study: Study) -> str:
    """How near the generated images are to training images, beside held-out ones."""
    found = study.memorisation
    return (
        f"Nearest training image, in pixels: median distance {found['generated']:.1f} for "
        f"{found['n']:,} generated images, {found['held_out']:.1f} for held-out ones; "
        f"{100 * found['share']:.1f} % are nearer than the nearest hundredth of the held-out ones "
        f"({100 * found['null']:.1f} % by chance)."
    )


def replay_markdown(study: Study) -> str:
    """The same model, compared carelessly and with care."""
    rows = [(f"{row.n:,}", f"{row.n_real:,}", row.real, _number(row.value)) for row in study.replay]
    return _table(("generated", "real", "which real images", study.facts["metric"]), rows)


def shares_markdown(study: Study) -> str:
    """Share of every attribute value among real and generated images."""
    rows = []
    for attribute, values in study.shares.items():
        for value, share in values.items():
            real, generated = share["real"], share["generated"]
            ratio = f"{generated / real:.2f}" if real else NONE
            rows.append((attribute, value, f"{real:.3f}", f"{generated:.3f}", ratio))
    return _table(("attribute", "value", "real", "generated", "ratio"), rows)


def modes_markdown(study: Study, count: int = 10) -> str:
    """The modes that deviate most, with the interval of their ratio."""
    table = sorted(study.modes[GENERATED]["table"], key=lambda mode: -abs(mode["z"]))[:count]
    rows = [
        (
            str(mode["cell"]),
            f"{mode['real']:,}",
            f"{mode['gen']:,}",
            _number(mode["ratio"]),
            f"{_number(mode['low'])} to {_number(mode['high'])}",
        )
        for mode in table
    ]
    return _table(("mode", "real", "generated", "ratio", "95 % interval"), rows)


def latex(study: Study) -> str:
    """The score table for LaTeX; needs the booktabs package."""
    return _latex(HEAD, [_cells(row) for row in study.rows])


def _latex(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = [" & ".join(map(_tex, cells)) + r" \\" for cells in [head, *rows]]
    lines = [r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}"]
    return "\n".join([rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}", *lines])


def _tex(text: str) -> str:
    for sign, word in (("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("±", r"$\pm$"), (NONE, "--")):
        text = text.replace(sign, word)
    return text


def as_csv(rows: Iterable[Score]) -> str:
    """Every field of every row, parts separated by spaces."""
    flat = []
    for row in rows:
        record = asdict(row)
        origin = record.pop("origin")
        record["parts"] = " ".join(map(repr, record["parts"]))
        flat.append(record | origin)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(flat[0]) if flat else ["metric"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def comparison_markdown(found: Comparison) -> str:
    """The differences of two runs, and the sentence that they allow."""
    a, b = found.facts["a"], found.facts["b"]
    rows = [
        (row.metric, f"{row.n:,}", _number(row.value), _number(row.se), f"{row.n_real:,}")
        for row in found.rows
    ]
    head = ("metric", "N", f"{a} minus {b}", "± SE", "real")
    absent = [f"\n{name}: not computed, because {why}" for name, why in found.absent.items()]
    return "\n".join([_table(head, rows), *absent, "", found.sentence()])


ABLATION_HEAD = (
    *("loss", "equal", "steps", "passes", "sampler", "mean", "each seed"),
    *("minus standard: mean", "each seed ± SE", "KID: mean"),
)


def ablation_rows(found: Ablation) -> list[tuple[str, ...]]:
    """A row per sampler, budget and loss, over the training seeds."""
    rows = []
    arms = list(dict.fromkeys(cell.arm for cell in found.cells))
    for sampler in found.facts["samplers"]:
        for budget in BUDGETS:
            for arm in arms:
                cells = found.of(arm, budget, sampler)
                minus = [cell.minus_standard for cell in cells if cell.minus_standard is not None]
                each = [
                    f"{cell.minus_standard:+.3f} ± {cell.minus_standard_se:.3f}"
                    for cell in cells
                    if cell.minus_standard is not None and cell.minus_standard_se is not None
                ]
                rows.append(
                    (
                        *(arm, budget, f"{cells[0].steps:,}", f"{cells[0].passes:,}"),
                        " ".join(sampler.split(":")),
                        _number(fmean(cell.fd for cell in cells)),
                        ", ".join(_number(cell.fd) for cell in cells),
                        f"{fmean(minus):+.3f}" if minus else NONE,
                        ", ".join(each) or NONE,
                        _number(fmean(cell.kid for cell in cells)),
                    )
                )
    return rows


def ablation_markdown(found: Ablation) -> str:
    """One table of every loss, budget and sampler."""
    facts = found.facts
    note = (
        f"{facts['metric']} of {facts['n']:,} images against {facts['n_real']:,} held-out real "
        f"({facts['preset']}, {facts['images']}); floor {facts['floor']:.3f}. The SE of a "
        "difference is that of sampling; 'each seed' shows what training seeds add."
    )
    return "\n".join([_table(ABLATION_HEAD, ablation_rows(found)), "", note])


def ablation_latex(found: Ablation) -> str:
    return _latex(ABLATION_HEAD, ablation_rows(found))


def save_tables(study: Study, folder: Path) -> list[Path]:
    """scores.md, scores.tex and scores.csv, and what else the study holds."""
    texts = {
        "scores.md": markdown(study),
        "scores.tex": latex(study),
        "scores.csv": as_csv([*study.rows, *study.replay, *study.guests]).rstrip("\n"),
    }
    if study.replay:
        texts["replay.md"] = replay_markdown(study)
    if study.shares:
        texts["shares.md"] = shares_markdown(study)
    if GENERATED in study.modes:
        texts["modes.md"] = modes_markdown(study)
    for name, text in texts.items():
        write_text(folder / name, text + "\n")
    return [folder / name for name in texts]


def save_ablation_tables(found: Ablation, folder: Path) -> list[Path]:
    texts = {"ablation.md": ablation_markdown(found), "ablation.tex": ablation_latex(found)}
    for name, text in texts.items():
        write_text(folder / name, text + "\n")
    return [folder / name for name in texts]
