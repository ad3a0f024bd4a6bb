"""A report as one HTML file: tables, plots and examples, which any browser opens offline."""

import html
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from xmodal_jax.matched_words import Alignment
from xmodal_jax.metrics.diagnostics import hubness
from xmodal_jax.metrics.measures import TOP
from xmodal_jax.metrics.parts import SIDES
from xmodal_jax.report import plots
from xmodal_jax.report.comparison import Difference, Run
from xmodal_jax.report.content import SIDE_TITLES, TITLES, Report
from xmodal_jax.report.drawings import Drawings, Pair
from xmodal_jax.report.examples import PictureSheet, render_failures, render_successes
from xmodal_jax.report.pictures import Pictures
from xmodal_jax.report.style import CSS, POLICY, SCRIPT
from xmodal_jax.report.terminal import SEEDS, comparison_rows, fine_rows, rows_of


def document(title: str, body: Sequence[str], style: str = "") -> str:
    """A whole page; title is text, body and style are HTML and CSS."""
    name = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<title>{name}</title><style>{CSS}{style}</style></head><body>\n<h1>{name}</h1>"
        f"{''.join(body)}<script>{SCRIPT}</script></body></html>\n"
    )


def table_of(rows: Sequence[Sequence[str]], best: frozenset[tuple[int, int]] = frozenset()) -> str:
    """Cells of text, the first row a head; those in `best` (row, column) are marked."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    out = [f"<tr>{head}</tr>"]
    for k, row in enumerate(rows[1:], 1):
        cells = "".join(
            f"<td{' class=best' if (k, n) in best else ''}>{html.escape(cell)}</td>"
            for n, cell in enumerate(row)
        )
        out.append(f"<tr>{cells}</tr>")
    return f"<table>{''.join(out)}</table>"


def _about(about: Mapping[str, Any]) -> str:
    rows = []
    for name, value in about.items():
        text = value if isinstance(value, str) else json.dumps(value)
        rows.append(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>")
    return f'<dl class="about">{"".join(rows)}</dl>'


def render_page(
    report: Report,
    pictures: Pictures | None = None,
    alignments: Mapping[Pair, Alignment] | None = None,
) -> str:
    """The page of one report.

    pictures: of the images, for the examples.
    alignments: words and regions of pairs among `examples.shown_pairs`.
    """
    sheet = PictureSheet(pictures)
    ranks = {SIDE_TITLES[side]: report.tables[side].rank() for side in SIDES}
    body = [_about(report.about), "<h2>Figures</h2>", table_of(rows_of(report))]
    body.append(
        "<p><small>Percent, but for ranks. In brackets the 95 % interval: what the figure would be "
        "on another draw of images (with all of their captions). ± is the standard deviation over "
        "folds. Figures are means over all orders of equal scores; the median and the plots of "
        "ranks are of expected ones.</small></p>"
    )
    body.extend(f"<p><b>Note:</b> {html.escape(note)}</p>" for note in report.notes)
    body.append("<h2>Ranks</h2>")
    body.append(
        f'<div class="plots">{plots.recall_curve(ranks)}{plots.rank_histogram(ranks)}</div>'
    )
    body += ["<h2>Diagnostics</h2>", _diagnostics(report)]
    if report.fine:
        body += ["<h2>Words and regions</h2>", _fine(report)]
    if report.parity:
        body += ["<h2>What the TERAN reference would print</h2>", _parity(report)]
    body.append(
        '<h2>Failures</h2><p><input id="filter" type="search" placeholder="show those with ..." '
        'aria-label="show examples with this text"></p>'
    )
    drawings = Drawings(alignments or {}, pictures)
    body.append(render_failures(report, sheet, drawings))
    if successes := render_successes(report, sheet, drawings):
        body += ["<h2>Successes</h2>", successes]
    return document(str(report.about.get("name", "report")), body, sheet.style())


def _fine(report: Report) -> str:
    note = "Of each probe, guessing gives 50 %. Wrong captions are made by rules for English."
    table = table_of([["", "percent", "of"], *fine_rows(report)])
    return table + (f"<p><small>{note}</small></p>" if len(report.fine) > 1 else "")


def _diagnostics(report: Report) -> str:
    found = report.diagnostics
    counts = {
        "i2t": len(report.collection.caption_image_ids),
        "t2i": len(report.collection.image_ids),
    }
    occurrences = {
        SIDE_TITLES[side]: hubness(report.tables[side].top[:, :TOP], counts[side]).occurrences
        for side in SIDES
    }
    drawn = [plots.occurrence_histogram(occurrences, found["t2i/hubs"]["k"])]
    sentences = []
    for side in SIDES:
        hubs = found[f"{side}/hubs"]
        target, times = hubs["most_found"][0]
        label = report.collection.caption_label if side == "i2t" else report.collection.image_label
        sentences.append(
            f"{SIDE_TITLES[side]}: skewness of how often a target is among the best {hubs['k']}: "
            f"{hubs['skewness']:.2f}; {hubs['never_found']:.1f} % are never found; most often, "
            f"{times} times: {label(target)}"
        )
    if length := found.get("length"):
        edges = length["edges"]
        names = [f"{a}-{b - 1}" for a, b in itertools.pairwise(edges)]
        groups = {"text to image": length["r1"]}
        drawn.append(plots.bars("R@1 by length of the caption", "words", names, groups))
        sentences.append(
            "rank correlation of a caption's length with how often it is found: "
            f"{length['found']:+.2f}; with the reciprocal rank of its image: {length['finds']:+.2f}"
        )
    listed = "".join(f"<li>{html.escape(text)}</li>" for text in sentences)
    return f'<div class="plots">{"".join(drawn)}</div><ul>{listed}</ul>'


def _parity(report: Report) -> str:
    rows = [["", *SIDE_TITLES.values()]]
    for name, title in TITLES.items():
        values = [report.parity.get(f"{side}/{name}") for side in SIDES]
        if values[0] is not None:
            rows.append([title, *(f"{value:.2f}" for value in values)])
    rows.append(["rsum", f"{report.parity['rsum']:.2f}", ""])
    note = (
        "With its order of equal scores, and the NDCG of images averaged over those above 0 only. "
        "The reference prints NDCG as a fraction of 1."
    )
    return f"{table_of(rows)}<p><small>{note}</small></p>"


def _ends(differences: Sequence[Difference]) -> tuple[float, float]:
    """Of an axis that has 0 and all the intervals on it."""
    return min(0.0, *(d.low for d in differences)), max(0.0, *(d.high for d in differences))


def render_comparison(runs: Sequence[Run], differences: Sequence[Difference]) -> str:
    """The page of a comparison."""
    rows, best = comparison_rows(runs, differences)
    body = [
        table_of(rows, best),
        "<p><small>Bold: significantly better than every other run of its kind (paired "
        "randomisation test by images, Holm-corrected over all rows below, p &lt; 0.05). ± is the "
        f"standard deviation over seeds; {SEEDS}.</small></p><h2>Differences</h2>",
    ]
    heads = ("figure", "run", "against", "difference", "95 % interval", "", "p (corrected)")
    lines = ["<tr>" + "".join(f"<th>{name}</th>" for name in heads) + "</tr>"]
    for d in differences:
        ends = _ends([other for other in differences if other.figure == d.figure])
        texts = [d.figure, d.second, d.first, f"{d.value:+.2f}", f"[{d.low:+.2f}, {d.high:+.2f}]"]
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in texts)
        bar = plots.interval_bar(d.low, d.value, d.high, ends)
        kind = " class=best" if d.significant else ""
        lines.append(f"<tr>{cells}<td>{bar}</td><td{kind}>{d.p_corrected:.4f}</td></tr>")
    body.append(f"<table>{''.join(lines)}</table>")
    return document("comparison of " + ", ".join(run.name for run in runs), body)
