"""Tables from scores: Markdown for people, LaTeX for reports, CSV for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import fmean

from dreamlib.evaluation.ablation_results import BUDGETS, RESOLVED, Ablation, critical
from dreamlib.evaluation.compare import Comparison
from dreamlib.evaluation.results import GENERATED, REAL, Score, Study, read_scores
from dreamlib.report.sources import way_of
from dreamlib.report.texts import NONE, as_latex, as_table, csv_text, denoised, no_formula, plain
from dreamlib.runs.run import Run
from dreamlib.utils.errors import NotEnoughSamples
from dreamlib.utils.files import write_text

PIXELS = "pixels: "


def _number(value: float | None) -> str:
    """Three or four digits; what is far below 1 keeps its first ones."""
    if value is None:
        return NONE
    if value == 0 or abs(value) >= 0.1:
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) >= 0.001 else f"{value:.1e}"


def _with_error(row: Score | None) -> str:
    if row is None:
        return NONE
    return _number(row.value) + (f" ± {_number(row.se)}" if row.se is not None else "")


MADE = ("seeds", "steps", "NFE", "resize")


def rows_table(scores: Iterable[Score]) -> tuple[list[str], list[list[str]]]:
    """Head and cells: a line per metric, N and real set, a column for the images of each kind."""
    lines: dict[tuple, dict[str, Score]] = {}
    for row in scores:
        lines.setdefault((row.metric, row.n, row.n_real, row.real), {})[row.images] = row
    every = [row for line in lines.values() for row in line.values()]
    kinds = list(dict.fromkeys(row.images for row in every))
    nulls = any(row.null is not None for row in every)
    head = ["metric", "N", "real", *kinds, *(["null"] if nulls else []), *MADE]
    return head, [_cells(line, kinds, nulls) for line in lines.values()]


def _cells(line: dict[str, Score], kinds: list[str], nulls: bool) -> list[str]:
    first = next(iter(line.values()))
    origin, sets = first.origin, max(len(row.parts) for row in line.values())
    real = NONE if first.n_real is None else f"{first.n_real:,}"
    return [
        first.metric,
        f"{first.n:,}" + (f" ({sets} sets)" if sets else ""),
        real if first.real in ("", "reference") else f"{real} ({first.real})",
        *(_with_error(line.get(kind)) for kind in kinds),
        *([_number(first.null)] if nulls else []),
        origin.seeds or NONE,
        *(NONE if count is None else str(count) for count in (origin.steps, origin.nfe)),
        origin.resize,
    ]


def markdown(study: Study) -> str:
    """Scores as a Markdown table, with what they mean below it."""
    facts, texts = study.facts, [rows_markdown(_main(study))] if study.rows else []
    texts += [f"{metric}: not computed, because {why}" for metric, why in study.absent.items()]
    if study.rows:
        way = way_of(facts)
        if facts["sampler"] != "gan":
            way = way.replace(", ", f" ({facts['spacing']} spacing), ", 1)
        texts += [meaning(study), memorisation_sentence(study), how_to_read(study)]
        texts += [
            f"Made by {way}, sampler seed {facts['seed']}, weights {facts['weights'][:12]} (step "
            f"{facts['step']:,}); seen by {facts['extractor']}."
        ]
    for name in dict.fromkeys(row.images for row in study.guests):
        external = [row for row in study.guests if row.images == name]
        texts += [f"Other images: {plain(name)}", rows_markdown(external)]
    return "\n\n".join(texts)


def rows_markdown(rows: Iterable[Score]) -> str:
    """Some rows of a study as a Markdown table."""
    return as_table(*rows_table(rows))


def headline(study: Study) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table that opens a report: the distance at every N, the same
    corrected, corrected MIND and KID at every N; generated images beside the floor."""
    metric = study.facts["metric"]
    names = (metric, f"{metric} corrected", f"{named(study, 'MIND')} corrected")
    names = (*names, named(study, "KID"))
    rows = [row for name in names for kind in (GENERATED, REAL) for row in study.of(kind, name)]
    head, cells = rows_table(sorted(rows, key=lambda row: (names.index(row.metric), row.n)))
    keep = [i for i, name in enumerate(head) if name not in ("real", *MADE)]
    titles = [f"floor ({REAL})" if head[i] == REAL else head[i] for i in keep]
    return titles, [[line[i] for i in keep] for line in cells]


def named(study: Study, kind: str) -> str:
    """'KID[classifier]', or 'KID' where the metric is plain FID."""
    _, bracket, rest = study.facts["metric"].partition("[")
    return kind + bracket + rest


def label_shares(shares: dict[str, dict[str, float]]) -> str:
    """Each attribute's values with their shares, as a Markdown table; empty without labels."""
    rows = [
        (attribute, ", ".join(f"{value} {100 * share:.1f} %" for value, share in values.items()))
        for attribute, values in shares.items()
    ]
    return as_table(("label", "shares"), rows) if rows else ""


def _main(study: Study) -> list[Score]:
    return [row for row in study.rows if not row.metric.startswith(PIXELS)]


ERRORS = "±: standard error over fresh images and a fresh reference; not bias, nor training seeds."
HOW_TO_READ = (
    f"{REAL}: the floor, other held-out images in the same place. Null: what a perfect generator "
    f"is expected to score, where a formula says. {ERRORS} Lines of different N are not compared "
    "with each other, those of KID and of corrected MIND excepted, which have no bias."
)
FIXED = "± of several sets leaves the reference out, and is too small, where se_method says so."


def how_to_read(study: Study) -> str:
    """What floor, null and ± are, by what the rows themselves say."""
    rows, methods = study.of(GENERATED), [row.se_method for row in [*study.rows, *study.guests]]
    ways = {row.null_method or "that of Gaussian features" for row in rows if row.null is not None}
    notes = [f"Null of {study.facts['metric']}: {way}." for way in sorted(ways)]
    out = any("held fixed" in how or "left out" in how for how in methods)
    return " ".join([HOW_TO_READ, *notes, FIXED if out else ""]).strip()


def meaning(study: Study) -> str:
    """What the difference between the columns is, in one sentence."""
    metric = study.facts["metric"]
    rows = study.of(GENERATED)
    if len(rows) < 2:
        return f"{metric} is biased upwards at any N: read each value beside its floor."
    small, large = rows[0], rows[-1]
    return (
        f"One model, one reference: {metric} reads {small.value:.2f} with {small.n:,} images and "
        f"{large.value:.2f} with {large.n:,}. The difference is the bias of small samples, and "
        "chance, not a change in the model; read each value beside the floor at the same N."
    )


def memorisation_sentence(study: Study) -> str:
    """How near the generated images are to training images, beside held-out ones."""
    memory = study.memorisation
    return (
        f"Nearest training image, in pixels: median distance {memory['generated']:.1f} for "
        f"{memory['n']:,} generated images, {memory['held_out']:.1f} for held-out ones; "
        f"{100 * memory['share']:.1f} % are nearer than the nearest hundredth of the held-out ones "
        f"({100 * memory['null']:.1f} % by chance).{denoised(memory.get('by_noise'))}"
    )


def replay_markdown(study: Study) -> str:
    """The same model, compared carelessly and with care."""
    rows = [(f"{row.n:,}", f"{row.n_real:,}", row.real, _number(row.value)) for row in study.replay]
    return as_table(("generated", "real", "which real images", study.facts["metric"]), rows)


def shares_markdown(study: Study) -> str:
    """Share of every attribute value among real and generated images."""
    rows = []
    for attribute, values in study.shares.items():
        for value, share in values.items():
            real, generated = share["real"], share["generated"]
            ratio = f"{generated / real:.2f}" if real else NONE
            rows.append((attribute, value, f"{real:.3f}", f"{generated:.3f}", ratio))
    return as_table(("attribute", "value", "real", "generated", "ratio"), rows)


def modes_markdown(study: Study) -> str:
    """The ten modes that deviate most, with the interval of their ratio."""
    table = sorted(study.modes[GENERATED]["table"], key=lambda mode: -abs(mode["z"]))[:10]
    rows = [
        (
            *(str(mode["cell"]), f"{mode['real']:,}", f"{mode['gen']:,}", _number(mode["ratio"])),
            f"{_number(mode['low'])} to {_number(mode['high'])}",
        )
        for mode in table
    ]
    return as_table(("mode", "real", "generated", "ratio", "95 % interval"), rows)


def latex(study: Study) -> str:
    """The score table for LaTeX; needs the booktabs package."""
    return as_latex(*rows_table(_main(study)))


def as_csv(rows: Iterable[Score]) -> str:
    """Every field of every row, parts separated by spaces."""
    flat = []
    for row in rows:
        record = {**asdict(row), "parts": " ".join(map(repr, row.parts))}
        record |= record.pop("origin")
        texts = {k: no_formula(v) for k, v in record.items() if isinstance(v, str) and k != "parts"}
        flat.append(record | texts)
    return csv_text(list(flat[0]) if flat else ["metric"], (record.values() for record in flat))


def comparison_markdown(result: Comparison) -> str:
    """The differences of two runs, and the sentence that they allow."""
    rows = [
        (row.metric, f"{row.n:,}", _number(row.value), _number(row.se), f"{row.n_real:,}")
        for row in result.rows
    ]
    head = ("metric", "N", f"{result.facts['a']} minus {result.facts['b']}", "± SE", "real")
    absent = [f"{name}: not computed, because {why}" for name, why in result.absent.items()]
    return "\n\n".join([as_table(head, rows), *absent, plain(result.sentence())])


ABLATION_HEAD = (
    *("loss", "equal", "steps", "passes", "sampler", "mean", "each seed", "minus standard"),
    *("seeds for 5 %", "KID", "precision", "recall", "coverage", "error by quartile of t"),
)


def ablation_table(results: Ablation) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Head and cells: a line per sampler, budget and loss, over the training seeds."""
    lines = []
    arms = list(dict.fromkeys(cell.arm for cell in results.cells))
    for sampler, budget, arm in product(results.facts["samplers"], BUDGETS, arms):
        cells = results.of(arm, budget, sampler)
        line = (
            *(arm, budget, f"{cells[0].steps:,}", f"{cells[0].passes:,}"),
            " ".join(sampler.split(":")),
            _number(fmean(cell.fd for cell in cells)),
            ", ".join(_number(cell.fd) for cell in cells),
            *_difference(results, arm, budget, sampler),
            _number(fmean(cell.kid for cell in cells)),
            *(_mean([getattr(c, name) for c in cells]) for name in ABLATION_HEAD[-4:-1]),
            " ".join(map(_mean, zip(*(cell.errors for cell in cells)))) or NONE,
        )
        lines.append(line)
    return ABLATION_HEAD, lines


def _mean(values: Iterable[float | None]) -> str:
    """Of all seeds; NONE where an older file lacks one."""
    known = [value for value in values if value is not None]
    return f"{fmean(known):.3f}" if known else NONE


def _difference(results: Ablation, arm: str, budget: str, sampler: str) -> tuple[str, str]:
    """To the standard loss, `*` where it is clear; and the seeds that would resolve RESOLVED."""
    value, error = results.difference(arm, budget, sampler)
    if value is None:
        return NONE, NONE
    found = results.contrast(arm, budget, sampler)
    text = f"{value:+.3f}" + (f" ± {error:.3f}" if error is not None else "")
    return text + (" *" if found and found.clear else ""), f"{found.needed:,}" if found else NONE


def ablation_markdown(results: Ablation) -> str:
    """One table of every loss, budget and sampler, and what its numbers are."""
    facts, seeds = results.facts, len(results.facts["seeds"])
    arms = len({cell.arm for cell in results.cells}) - 1
    note = (
        f"{facts['metric']} of {facts['n']:,} images against {facts['n_real']:,} held-out real "
        f"({facts['preset']}, {facts['images']}); floor {facts['floor']:.3f}. Differences are of "
        f"{results.minus_metric}; single distances are raw, with a bias that differs. "
    )
    if seeds > 1 and arms:
        note += (
            f"± is the standard error over {seeds} training seeds, paired; * marks a difference "
            f"beyond {critical(seeds, arms):.1f} of its own errors, which chance alone does in 5 % "
            f"of studies with {arms} arms. 'seeds for 5 %': how many would know {RESOLVED:.0%} of "
            "the standard loss's distance by two errors."
        )
    else:
        note += "± is the error of sampling images; another training seed adds to it."
    return "\n\n".join([as_table(*ablation_table(results)), note])


def save_tables(study: Study, folder: Path) -> list[Path]:
    """scores.md, scores.tex and scores.csv, and what else the study holds."""
    pixels = [row for row in study.rows if row.metric.startswith(PIXELS)]
    texts = {
        "scores.md": markdown(study),
        "scores.tex": latex(study),
        "scores.csv": as_csv([*study.rows, *study.replay, *study.guests]).rstrip("\n"),
        "pixels.md": rows_markdown(pixels) if study.rows else "",
        "replay.md": replay_markdown(study) if study.replay else "",
        "shares.md": shares_markdown(study) if study.shares else "",
        "modes.md": modes_markdown(study) if GENERATED in study.modes else "",
    }
    return _save({name: text for name, text in texts.items() if text}, folder)


def save_ablation_tables(results: Ablation, folder: Path) -> list[Path]:
    latex = as_latex(*ablation_table(results))
    return _save({"ablation.md": ablation_markdown(results), "ablation.tex": latex}, folder)


def _save(texts: dict[str, str], folder: Path) -> list[Path]:
    for name, text in texts.items():
        write_text(folder / name, text + "\n")
    return [folder / name for name in texts]


def scores_of(run: Run) -> Study | None:
    """The run's scores, None before it was evaluated."""
    try:
        return read_scores(run.folder)
    except NotEnoughSamples:
        return None
