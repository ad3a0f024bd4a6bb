"""Plots as inline SVG: no library, no script, no request. Colours come from the page's style."""

import html
from collections.abc import Mapping, Sequence

import numpy as np

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 380, 220, 42, 34, 10


def _svg(title: str, body: Sequence[str], legend: Sequence[str] = ()) -> str:
    name = html.escape(title)
    keys = "".join(f'<i class="key k{k}"></i>{html.escape(n)} ' for k, n in enumerate(legend))
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}"'
    drawn = f"<svg {box}>{''.join(body)}</svg>"
    return f"<figure><figcaption>{name} {keys}</figcaption>{drawn}</figure>"


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    shown = html.escape(text)
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{shown}</text>'


def _y(value: float, highest: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * value / highest


def _frame(highest: float, unit: str, label: str) -> list[str]:
    """Lines and numbers of the vertical axis, and what the horizontal one shows."""
    out = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _y(share * highest, highest)
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(_text(_LEFT - 5, y + 3, f"{share * highest:.3g}{unit}", "end"))
    out.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 4, label))
    return out


def recall_curve(ranks: Mapping[str, np.ndarray], deepest: int = 100) -> str:
    """Recall in percent at 1 .. deepest, by the name of a direction and its 0-based ranks."""
    body = _frame(100, "", "results looked at")
    place = lambda k: _LEFT + (_WIDTH - _LEFT - 12) * np.log(k) / np.log(deepest)
    for k in (1, 2, 5, 10, 20, 50, 100):
        body.append(_text(place(k), _HEIGHT - _BOTTOM + 13, str(k)))
    at = np.arange(1, deepest + 1)
    for n, found in enumerate(ranks.values()):
        recall = 100 * np.searchsorted(np.sort(found), at, side="left") / len(found)
        points = " ".join(
            f"{place(k):.1f},{_y(r, 100):.1f}" for k, r in zip(at, recall, strict=True)
        )
        body.append(f'<polyline class="line c{n}" points="{points}"/>')
    return _svg("Recall at k", body, list(ranks))


def bars(
    title: str, label: str, names: Sequence[str], groups: Mapping[str, Sequence[float]]
) -> str:
    """Bars side by side: one of each group at each name; values in percent."""
    highest = max(1.0, max((max(values) for values in groups.values()), default=1.0))
    highest = float(np.ceil(highest / 10) * 10)
    body = _frame(highest, "", label)
    step = (_WIDTH - _LEFT) / max(len(names), 1)
    width = 0.8 * step / max(len(groups), 1)
    for k, name in enumerate(names):
        body.append(_text(_LEFT + (k + 0.5) * step, _HEIGHT - _BOTTOM + 13, name))
        for n, (group, values) in enumerate(groups.items()):
            x, y = _LEFT + k * step + 0.1 * step + n * width, _y(values[k], highest)
            tip = html.escape(f"{group}, {name}: {values[k]:.1f}")
            body.append(
                f'<rect class="c{n}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
                f'height="{_HEIGHT - _BOTTOM - y:.1f}"><title>{tip}</title></rect>'
            )
    return _svg(title, body, list(groups) if len(groups) > 1 else ())


def rank_histogram(ranks: Mapping[str, np.ndarray]) -> str:
    """Share of the queries whose first right result stands at 1, 2-5, 6-10, ..."""
    edges = [0, 1, 5, 10, 50, 100, np.inf]
    names = ["1", "2-5", "6-10", "11-50", "51-100", "> 100"]
    groups = {
        name: (100 * np.histogram(found, edges)[0] / len(found)).tolist()
        for name, found in ranks.items()
    }
    return bars("Where the first right result stands (% of queries)", "rank", names, groups)


def occurrence_histogram(occurrences: Mapping[str, np.ndarray], k: int) -> str:
    """Share of the targets that are among the best k of 0, 1, 2-5, ... queries."""
    edges = [0, 1, 2, 6, 11, 51, np.inf]
    names = ["0", "1", "2-5", "6-10", "11-50", "> 50"]
    groups = {
        name: (100 * np.histogram(found, edges)[0] / len(found)).tolist()
        for name, found in occurrences.items()
    }
    title = f"How often a target is among the best {k} (% of targets)"
    return bars(title, "queries that find it", names, groups)


def interval_bar(low: float, value: float, high: float, ends: tuple[float, float]) -> str:
    """A line from low to high with a dot at the value, on an axis between two ends."""
    width, scale = 120, max(ends[1] - ends[0], 1e-9)
    x = [4 + (width - 8) * (v - ends[0]) / scale for v in (low, value, high)]
    zero = ""
    if ends[0] < 0 < ends[1]:
        at = 4 + (width - 8) * -ends[0] / scale
        zero = f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="14"/>'
    return (
        f'<svg class="interval" viewBox="0 0 {width} 14" role="img" aria-label="{value:.1f}">{zero}'
        f'<line class="range" x1="{x[0]:.1f}" x2="{x[2]:.1f}" y1="7" y2="7"/>'
        f'<circle class="c0" cx="{x[1]:.1f}" cy="7" r="3"/></svg>'
    )
