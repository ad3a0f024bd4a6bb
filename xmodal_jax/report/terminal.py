"""Reports and comparisons as tables for the terminal."""

import os
from collections.abc import Sequence

from xmodal_jax.metrics.parts import SIDES
from xmodal_jax.report.comparison import Difference, Run, best_runs
from xmodal_jax.report.content import FINE_TITLES, SIDE_TITLES, TITLES, Figure, Report

SEEDS = (
    "of seeds the mean is tested, and these seeds only: others may differ by as much as these do"
)
_JUDGED = {"eccv": "ECCV Caption", "cxc": "CxC"}


def describe_figure(figure: Figure) -> str:
    """A value with its interval or, of folds, its spread."""
    text = f"{figure.value:.1f}"
    if figure.spread is not None:
        text += f" ± {figure.spread:.1f}"
    if figure.low is not None:
        text += f" [{figure.low:.1f}, {figure.high:.1f}]"
    return text


def rows_of(report: Report) -> list[list[str]]:
    """Cells: a head, then a row for each figure that has a direction, then rsum."""
    rows = [["", *SIDE_TITLES.values()]]
    for name, title in TITLES.items():
        found = [report.figures.get(f"{side}/{name}") for side in SIDES]
        if any(found):
            rows.append([title, *(describe_figure(f) if f else "" for f in found)])
    for judged, who in _JUDGED.items():
        for name, title in TITLES.items():
            found = [report.figures.get(f"{judged}/{side}/{name}") for side in SIDES]
            if any(found):
                rows.append([f"{who} {title}", *(describe_figure(f) if f else "" for f in found)])
    rows.append(["rsum", describe_figure(report.figures["rsum"]), ""])
    return rows


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    pad = lambda k, cell: cell.rjust(widths[k]) if k else cell.ljust(widths[k])
    return "\n".join("  ".join(pad(k, c) for k, c in enumerate(row)).rstrip() for row in rows)


def fine_rows(report: Report) -> list[list[str]]:
    """Cells: what was measured of words and regions, the value, over how many."""
    return [
        [FINE_TITLES.get(name, name), describe_figure(figure), f"{figure.queries:,}"]
        for name, figure in report.fine.items()
    ]


def render(report: Report) -> str:
    """The table, what its numbers are, and the notes."""
    lines = [_aligned(rows_of(report))]
    lines.append("percent, but for ranks; [95 % interval, clustered by image]")
    if any(figure.spread is not None for figure in report.figures.values()):
        lines[-1] += "; mean ± standard deviation over the folds"
    if report.fine:
        lines.append(_aligned([["", "percent", "of"], *fine_rows(report)]))
    if report.parity:
        lines.append("the TERAN reference would print:")
        for side in SIDES:
            own = {k: v for k, v in report.parity.items() if k.startswith(side)}
            cells = ", ".join(f"{TITLES[k.split('/')[1]]} {v:.1f}" for k, v in own.items())
            lines.append(f"  {SIDE_TITLES[side]}: {cells}")
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


def comparison_rows(
    runs: Sequence[Run], differences: Sequence[Difference], *, intervals: bool = True
) -> tuple[list[list[str]], frozenset[tuple[int, int]]]:
    """Cells, single runs first, ensembles in rows of their own below; and the cells to mark."""
    figures = list(dict.fromkeys(difference.figure for difference in differences))
    best = best_runs(runs, differences)
    rows, marked = [["run", "seeds", *figures]], set()
    names = {run.name: run.name for run in runs}
    ensembles = [run.name for run in runs if run.ensemble]
    if ensembles:
        shared = os.path.commonpath([os.path.dirname(name) for name in ensembles]) or "."
        names |= {name: f"ensemble: {os.path.relpath(name, shared)}" for name in ensembles}
    for run in sorted(runs, key=lambda run: run.ensemble):
        cells = [names[run.name], str(len(run.figures))]
        for column, figure in enumerate(figures, 2):
            low, high = run.interval(figure) if intervals else (None, None)
            value = run.value(figure)
            cells.append(describe_figure(Figure(value, 0, low, high, run.spread(figure))))
            if best.get((figure, run.ensemble)) == run.name:
                marked.add((len(rows), column))
        rows.append(cells)
    return rows, frozenset(marked)


def render_comparison(runs: Sequence[Run], differences: Sequence[Difference]) -> str:
    """The runs as a table, `*` where one is significantly the best; then the tests."""
    rows, marked = comparison_rows(runs, differences, intervals=False)
    cells = [
        [cell + ("*" if (k, n) in marked else "") for n, cell in enumerate(row)]
        for k, row in enumerate(rows)
    ]
    lines = [_aligned(cells), "* significantly better than every other run of its kind", ""]
    tests = [["figure", "run", "against", "difference", "95 % interval", "p", "corrected"]]
    for d in differences:
        row = [d.figure, d.second, d.first, f"{d.value:+.2f}", f"[{d.low:+.2f}, {d.high:+.2f}]"]
        mark = "*" if d.significant else ""
        tests.append([*row, f"{d.p:.5f}", f"{d.p_corrected:.4f}{mark}"])
    lines.append(_aligned(tests))
    lines.append("paired randomisation test by images; corrected (Holm) for all rows; * p < 0.05")
    if any(len(run.figures) > 1 for run in runs):
        lines.append(SEEDS)
    return "\n".join(lines)


def render_markdown(runs: Sequence[Run], differences: Sequence[Difference]) -> str:
    """The runs as a Markdown table with 95 % intervals, bold where one is significantly the best.

    All of the differences count in the correction; the tests themselves are left out.
    """
    rows, marked = comparison_rows(runs, differences)
    lines = [
        [f"**{cell}**" if (k, n) in marked else cell for n, cell in enumerate(row)]
        for k, row in enumerate(rows)
    ]
    lines.insert(1, ["---"] * len(rows[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
