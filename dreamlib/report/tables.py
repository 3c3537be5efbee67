"""Tables from scores: Markdown for people, LaTeX for reports, and the sentence between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dreamlib.evaluate import Score, Study
from dreamlib.files import write_text

HEAD = ("metric", "images", "N", "value", "standard error", "real images")


def _cells(row: Score) -> tuple[str, ...]:
    se = f"{row.se:.3g}" if row.se is not None else "–"
    sets = f"{row.n:,}" + (f" ({len(row.parts)} sets)" if row.parts else "")
    return row.metric, row.images, sets, f"{row.value:.3f}", se, f"{row.n_real:,}"


def markdown(study: Study) -> str:
    """Scores as a Markdown table, with what they mean below it."""
    lines = [_line(HEAD), _line(["---"] * len(HEAD)), *(_line(_cells(r)) for r in study.rows)]
    lines += [f"\n{metric}: not computed, because {why}" for metric, why in study.absent.items()]
    return "\n".join([*lines, "", meaning(study)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def meaning(study: Study) -> str:
    """What the difference between the columns is, in one sentence."""
    metric = study.facts["metric"]
    rows = [row for row in study.rows if (row.images, row.metric) == ("generated", metric)]
    if len(rows) < 2:
        return f"{metric} is biased upwards at any N: read each value beside its floor."
    small, large = rows[0], rows[-1]
    return (
        f"One model, one reference: {metric} reads {small.value:.2f} with {small.n:,} images and "
        f"{large.value:.2f} with {large.n:,}. The difference is the bias of small samples, not a "
        "change in the model; read each value beside the floor at the same N."
    )


def shares_markdown(study: Study) -> str:
    """Share of every attribute value among real and generated images."""
    head = ("attribute", "value", "real", "generated", "ratio")
    lines = [_line(head), _line(["---"] * len(head))]
    for attribute, values in study.shares.items():
        for value, share in values.items():
            real, generated = share["real"], share["generated"]
            ratio = f"{generated / real:.2f}" if real else "–"
            cells = f"{real:.3f}", f"{generated:.3f}", ratio
            lines.append(_line((attribute, value, *cells)))
    return "\n".join(lines)


def latex(study: Study) -> str:
    """The score table for LaTeX; needs the booktabs package."""
    rows = [" & ".join(_cells(row)).replace("–", "--") + r" \\" for row in study.rows]
    body = "\n".join([" & ".join(HEAD) + r" \\", r"\midrule", *rows])
    return "\n".join(
        [r"\begin{tabular}{llrrrr}", r"\toprule", body, r"\bottomrule", r"\end{tabular}"]
    )


def save_tables(study: Study, folder: Path) -> list[Path]:
    """scores.md and scores.tex, and shares.md when the images have labels."""
    texts = {"scores.md": markdown(study) + "\n", "scores.tex": latex(study) + "\n"}
    if study.shares:
        texts["shares.md"] = shares_markdown(study) + "\n"
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]
