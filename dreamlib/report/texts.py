"""Names and other texts as text, whatever they hold: in Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from dreamlib.utils.files import readable

NONE = "–"
RARE = 0.01  # a p that is worth a loud word


# What Markdown, a page's HTML or a notebook's mathematics would read in a name.
MARKS = str.maketrans({**{sign: rf"\{sign}" for sign in "\\|<$`*"}, "\n": " "})


def plain(text: str) -> str:
    """Text, and nothing else, in Markdown."""
    return readable(text).translate(MARKS).replace("](", r"]\(")


def as_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(plain, cells)) + " |" for cells in lines)


TEX = str.maketrans(
    {
        **{sign: rf"\{sign}" for sign in "&%_#${}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\n": " "},
        **{"±": r"$\pm$", NONE: "--"},
    }
)


def tex(text: str) -> str:
    """Text in LaTeX."""
    return readable(text).translate(TEX)


def as_latex(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for LaTeX with the booktabs package: two columns of words, then numbers."""
    body = [" & ".join(map(tex, cells)) + r" \\" for cells in [head, *rows]]
    lines = [r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}"]
    return "\n".join([rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}", *lines])


def csv_text(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([head, *rows])
    return out.getvalue()


def no_formula(text: str) -> str:
    """For CSV: a spreadsheet computes a text that begins like a formula."""
    return readable(f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text)


def denoised(by_noise: dict[str, Any] | None) -> str:
    """What denoising says of memorisation; nothing for a GAN, and in older files."""
    if by_noise is None:
        return ""
    ratios = ", ".join(f"{ratio:.2f}" for ratio in by_noise["ratios"])
    found = "no difference that chance would not make"
    if by_noise["p"] < RARE:
        found = "MEMORISED in part, as training images are known better than others of their kind"
        if min(by_noise["ratios"]) > 1 / max(by_noise["ratios"]):
            found = "held-out images are the easier ones, so the two sets differ in kind"
    return (
        f" Error in denoising {by_noise['n']:,} training images over that of held-out ones, from "
        f"little noise to much: {ratios} (p = {by_noise['p']:.2g}): {found}."
    )
