"""Queries whose best target is wrong, chosen and laid out for a reader."""

import dataclasses
import html
from collections.abc import Callable

import numpy as np

from xmodal_jax.report.content import SIDE_TITLES, Report

Pictures = Callable[[int], bytes | None]  # JPEG bytes of an image of the collection, by its row
SHOWN, RESULTS = 40, 5


@dataclasses.dataclass(frozen=True)
class Failure:
    """A query of one direction: its place in the table, whose rank is above 1."""

    side: str
    place: int


def choose_failures(report: Report, side: str, shown: int = SHOWN, seed: int = 0) -> list[Failure]:
    """Half of them the worst ranks, half drawn from the others: the worst alone mislead.

    A far rank is often the fault of the ground truth.
    """
    rank = report.tables[side].rank()
    order = np.argsort(-rank, kind="stable")
    order = order[rank[order] >= 1]
    worst, others = order[: shown // 2], order[shown // 2 :]
    rng = np.random.default_rng(seed)
    drawn = rng.choice(others, min(len(others), shown - len(worst)), replace=False)
    return [Failure(side, int(k)) for k in [*worst, *np.sort(drawn)]]


class PictureSheet:
    """The pictures of a page, each once in its style, however often it is shown."""

    def __init__(self, pictures: Pictures | None) -> None:
        """pictures: none of them if None."""
        self._pictures = pictures
        self._found: dict[int, bytes | None] = {}

    def show(self, row: int, label: str) -> str:
        """An element that shows the image of a row, or else its name."""
        if self._pictures is not None and row not in self._found:
            self._found[row] = self._pictures(row)
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


def render_failures(report: Report, sheet: PictureSheet) -> str:
    """Both directions: the query, what is right, and its best results, right ones marked."""
    out = []
    for side, title in SIDE_TITLES.items():
        failures = choose_failures(report, side)
        table = report.tables[side]
        count = int(np.sum(table.rank() >= 1))
        out.append(
            f"<h3>{title}: {count:,} of {len(table.queries):,} queries have a wrong best result; "
            f"{len(failures)} of them</h3>"
        )
        out.extend(_render(report, failure, sheet) for failure in failures)
    return "".join(out)


def _render(report: Report, failure: Failure, sheet: PictureSheet) -> str:
    table, collection = report.tables[failure.side], report.collection
    place, rows = failure.place, collection.caption_rows()
    own = int(table.images[place])
    query = int(table.queries[place])
    if failure.side == "i2t":
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
        if failure.side == "i2t":
            hit = rows[target] == own
            text = html.escape(collection.caption_label(int(target)))
            shown = f"<q>{text}</q>"
        else:
            hit = target == own
            shown = sheet.show(int(target), collection.image_label(int(target)))
        kind = ' class="hit"' if hit else ""
        results.append(f"<li{kind}>{shown}<small>{score:.4g}</small></li>")
    return (
        f'<article class="failure"><div>{asked}<small>first right result at '
        f"{table.rank()[place] + 1:.4g}</small></div><div><b>right</b> {right}</div>"
        f'<ol class="{failure.side}">{"".join(results)}</ol></article>'
    )
