"""Queries whose best target is wrong, and some whose best is right, laid out for a reader."""

import dataclasses
import html

import numpy as np

from xmodal_jax.metrics.parts import SIDES
from xmodal_jax.report.content import SIDE_TITLES, Report
from xmodal_jax.report.drawings import Drawings, Pair
from xmodal_jax.report.pictures import Pictures

SHOWN, RESULTS = 40, 5
SHOWN_RIGHT = 10


@dataclasses.dataclass(frozen=True)
class Example:
    """A query of one direction: its place in the table."""

    side: str
    place: int


def choose_failures(report: Report, side: str, shown: int = SHOWN, seed: int = 0) -> list[Example]:
    """Half of them the worst ranks, half drawn from the others: the worst alone mislead.

    A far rank is often the fault of the ground truth.
    """
    rank = report.tables[side].rank()
    order = np.argsort(-rank, kind="stable")
    order = order[rank[order] >= 1]
    worst, others = order[: shown // 2], order[shown // 2 :]
    rng = np.random.default_rng(seed)
    drawn = rng.choice(others, min(len(others), shown - len(worst)), replace=False)
    return [Example(side, int(k)) for k in [*worst, *np.sort(drawn)]]


def choose_successes(
    report: Report, side: str, shown: int = SHOWN_RIGHT, seed: int = 0
) -> list[Example]:
    """A draw of the queries whose best target is right, and not merely equal to a right one."""
    right = np.flatnonzero(report.tables[side].rank() == 0)
    drawn = np.random.default_rng(seed).choice(right, min(len(right), shown), replace=False)
    return [Example(side, int(k)) for k in np.sort(drawn)]


class PictureSheet:
    """The pictures of a page, each once in its style, however often it is shown."""

    def __init__(self, pictures: Pictures | None) -> None:
        """pictures: none of them if None."""
        self._pictures = pictures
        self._found: dict[int, bytes | None] = {}

    def show(self, row: int, label: str) -> str:
        """An element that shows the image of a row, or else its name."""
        if self._pictures is not None and row not in self._found:
            self._found[row] = self._pictures.thumbnail(row)
        name = html.escape(label)
        if self._found.get(row) is None:
            return f'<span class="name">{name}</span>'
        return f'<span class="picture p{row}" role="img" aria-label="{name}" title="{name}"></span>'

    def style(self) -> str:
        """The rules that hold the pictures."""
        from base64 import b64encode

        return "".join(
            f".p{row}{{background-image:url(data:image/jpeg;base64,{b64encode(data).decode()})}}"
            for row, data in self._found.items()
            if data is not None
        )


def pairs_of(report: Report, example: Example) -> tuple[Pair, Pair]:
    """The right pair, of several the best one that the table has, and that of the best result."""
    table, rows = report.tables[example.side], report.collection.caption_rows()
    top = table.top[example.place]
    own = int(table.images[example.place])
    if example.side == "t2i":
        caption = int(table.queries[example.place])
        return (own, caption), (int(top[0]), caption)
    found = [target for target in top if rows[target] == own]
    right = found[0] if found else np.flatnonzero(rows == own)[0]
    return (own, int(right)), (own, int(top[0]))


def shown_pairs(report: Report) -> list[Pair]:
    """All pairs that a page shows the words and regions of, each once."""
    choices = choose_failures, choose_successes
    chosen = [example for choose in choices for side in SIDES for example in choose(report, side)]
    return list(dict.fromkeys(pair for one in chosen for pair in pairs_of(report, one)))


def render_failures(report: Report, sheet: PictureSheet, drawings: Drawings) -> str:
    """Both directions: the query, what is right, and its best results, right ones marked.

    Below them, drawings of the right pair and of the one that was taken for it.
    """
    out = []
    for side, title in SIDE_TITLES.items():
        failures = choose_failures(report, side)
        table = report.tables[side]
        count = int(np.sum(table.rank() >= 1))
        out.append(
            f"<h3>{title}: {count:,} of {len(table.queries):,} queries have a wrong best result; "
            f"{len(failures)} of them</h3>"
        )
        out.extend(_render(report, failure, sheet, drawings) for failure in failures)
    return _drawings_note(drawings) + "".join(out)


def render_successes(report: Report, sheet: PictureSheet, drawings: Drawings) -> str:
    """The same of some queries whose best result is right; nothing where there are none."""
    out = []
    for side, title in SIDE_TITLES.items():
        if chosen := choose_successes(report, side):
            out.append(f"<h3>{title}: {len(chosen)} queries, drawn at random</h3>")
            out.extend(_render(report, example, sheet, drawings) for example in chosen)
    return _drawings_note(drawings) + "".join(out) if out else ""


def _drawings_note(drawings: Drawings) -> str:
    if not drawings:
        return ""
    return (
        "<p><small>A frame in a word's colour is the region most similar to it; the bars are "
        "these similarities, from 0 to 1.</small></p>"
    )


def _render(report: Report, example: Example, sheet: PictureSheet, drawings: Drawings) -> str:
    table, collection = report.tables[example.side], report.collection
    place, rows = example.place, collection.caption_rows()
    own = int(table.images[place])
    query = int(table.queries[place])
    if example.side == "i2t":
        asked = sheet.show(own, collection.image_label(own))
        texts = [int(c) for c in np.flatnonzero(rows == own)]
        wanted = "".join(f"<li>{html.escape(collection.caption_label(c))}</li>" for c in texts)
        right = f"<ul>{wanted}</ul>"
    else:
        asked = f"<q>{html.escape(collection.caption_label(query))}</q>"
        right = sheet.show(own, collection.image_label(own))
    results = []
    best = zip(table.top[place][:RESULTS], table.top_scores[place][:RESULTS], strict=True)
    for target, score in best:
        if example.side == "i2t":
            hit = rows[target] == own
            text = html.escape(collection.caption_label(int(target)))
            shown = f"<q>{text}</q>"
        else:
            hit = target == own
            shown = sheet.show(int(target), collection.image_label(int(target)))
        kind = ' class="hit"' if hit else ""
        results.append(f"<li{kind}>{shown}<small>{score:.4g}</small></li>")
    right_pair, best_pair = pairs_of(report, example)
    drawn = drawings.show(right_pair, f"right: {collection.caption_label(right_pair[1])}")
    if best_pair != right_pair:  # of equal scores a right one may come first
        drawn += drawings.show(best_pair, f"best result: {collection.caption_label(best_pair[1])}")
    return (
        f'<article class="example"><div>{asked}<small>first right result at '
        f"{table.rank()[place] + 1:.4g}</small></div><div><b>right</b> {right}</div>"
        f'<ol class="{example.side}">{"".join(results)}</ol>'
        f'<div class="words">{drawn}</div></article>'
    )
