"""Two runs or more on the same split: which differences are more than chance.

For every pair of runs and every figure a paired randomisation test by images; all the p-values of a
comparison are corrected together (Holm), and so many exchanges are drawn that those of clear
differences stay small. A difference that is not significant is never marked.
Several seeds are one run whose queries have the mean of their values.
"""

import dataclasses
import itertools
import statistics as plain
from collections.abc import Sequence
from typing import Any

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.metrics import statistics
from xmodal_jax.report.content import SUMMED, Figure, clustered_values
from xmodal_jax.report.files import SavedReport

LEVEL = 0.05
FIGURES = (*SUMMED, "i2t/mrr", "t2i/mrr", "rsum")


@dataclasses.dataclass(frozen=True)
class Run:
    """One row of a comparison: a run, several seeds of one, or an ensemble.

    figures: of each seed; source: the report of the first of them.
    means: names of the M figures that are means over queries, and rsum.
    contributions: [I, M] what each image adds to each of them, of the mean over the seeds.
    drawn: [samples, M] the figures of drawn collections of images, the same for all runs.
    """

    name: str
    ensemble: bool
    figures: tuple[dict[str, Figure], ...]
    source: SavedReport
    means: tuple[str, ...]
    contributions: np.ndarray
    drawn: np.ndarray

    def value(self, name: str) -> float:
        """The mean of a figure over the seeds."""
        return plain.mean(each[name].value for each in self.figures)

    def spread(self, name: str) -> float | None:
        """The sample standard deviation over the seeds, if there are several."""
        values = [each[name].value for each in self.figures]
        return plain.stdev(values) if len(values) > 1 else None

    def interval(self, name: str) -> tuple[float, float]:
        """The ends of the 95 % interval of a mean, images drawn with all of their queries."""
        low, high = statistics.interval(self.drawn[:, [self.means.index(name)]])
        return float(low[0]), float(high[0])


@dataclasses.dataclass(frozen=True)
class Difference:
    """Second minus first of one figure, with its 95 % interval and p-values."""

    figure: str
    first: str
    second: str
    value: float
    low: float
    high: float
    p: float
    p_corrected: float

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below 0.05."""
        return self.p_corrected < LEVEL


def make_run(name: str, reports: Sequence[SavedReport]) -> Run:
    """One run from the reports of its seeds.

    Raises:
      UserError: ensembles and single runs, or reports of other splits, are put together.
    """
    kinds = {bool(report.content["about"].get("members")) for report in reports}
    if len(kinds) > 1:
        raise UserError(f"{name}: an ensemble and a single run are not two seeds of one")
    _check_same_data(reports)
    tables = {}
    for side, first in reports[0].tables.items():
        each = [report.tables[side] for report in reports]
        shared = [n for n in first.values if all(n in table.values for table in each)]
        values = {n: np.mean([table.values[n] for table in each], axis=0) for n in shared}
        tables[side] = dataclasses.replace(first, values=values)
    means, data = clustered_values(tables)
    at = [means.index(summed) for summed in SUMMED]
    with_rsum = lambda x: np.concatenate([x, x[:, at].sum(axis=1, keepdims=True)], axis=1)
    return Run(
        name,
        kinds.pop(),
        tuple(report.figures for report in reports),
        reports[0],
        (*means, "rsum"),
        with_rsum(data.contributions()),
        with_rsum(statistics.bootstrap(data)),
    )


def _check_same_data(reports: Sequence[SavedReport]) -> None:
    """Raises a UserError unless all are of the same images, captions and folds, by ids or names."""
    first = reports[0]
    for other in reports[1:]:
        if len(first.names) != len(other.names):
            raise UserError(
                f"of {first.path} and {other.path} one is of run files, whose queries have names, "
                "and the other is not; write both from run files (evaluate --i2t --t2i --qrels)"
            )
        pairs = [
            (first.image_ids, other.image_ids),
            (first.caption_image_ids, other.caption_image_ids),
            *((table.fold, other.tables[side].fold) for side, table in first.tables.items()),
        ]
        if not all(np.array_equal(a, b) for a, b in pairs):
            raise UserError(
                f"{first.path} and {other.path} are not of the same images, captions and protocol; "
                "compare reports of one split"
            )
        for ours, theirs in zip(first.names, other.names, strict=True):
            if differing := np.flatnonzero(ours != theirs).tolist():
                raise UserError(
                    f"{first.path} has {str(ours[differing[0]])!r} where {other.path} has "
                    f"{str(theirs[differing[0]])!r}; compare runs of one collection"
                )


def compare(runs: Sequence[Run], figures: Sequence[str] = FIGURES) -> list[Difference]:
    """Every pair of runs by every figure.

    Raises:
      UserError: a figure is not a mean that all of them have, or they are of different data.
    """
    _check_same_data([run.source for run in runs])
    shared = list(dict.fromkeys(figures))
    for name in shared:
        for run in runs:
            if name not in run.means:
                known = ", ".join(run.means)
                raise UserError(f"figure {name!r} of {run.name} can't be tested; use {known}")
    found: list[dict[str, Any]] = []
    tested = []
    for a, b in itertools.combinations(runs, 2):
        at_a, at_b = ([run.means.index(name) for name in shared] for run in (a, b))
        differences = b.contributions[:, at_b] - a.contributions[:, at_a]
        tested.append(differences)
        # Both were drawn with the same images.
        low, high = statistics.interval(b.drawn[:, at_b] - a.drawn[:, at_a])
        for k, name in enumerate(shared):
            ends = float(low[k]), float(high[k])
            value = float(differences[:, k].sum())
            row = dict(figure=name, first=a.name, second=b.name, value=value)
            found.append(row | dict(low=ends[0], high=ends[1]))
    p_values = statistics.paired_tests(np.concatenate(tested, axis=1))
    rows = zip(found, p_values.tolist(), statistics.holm(p_values).tolist(), strict=True)
    return [Difference(**row, p=p, p_corrected=corrected) for row, p, corrected in rows]


def best_runs(
    runs: Sequence[Run], differences: Sequence[Difference]
) -> dict[tuple[str, bool], str]:
    """By figure and kind: the run that is significantly better than all others of its kind.

    Ensembles (True) are compared with ensembles and single runs (False) with single runs.
    """
    out: dict[tuple[str, bool], str] = {}
    for ensemble in (False, True):
        names = [run.name for run in runs if run.ensemble == ensemble]
        for figure in {d.figure for d in differences}:
            lower = figure.endswith("rank")
            wins: dict[str, int] = dict.fromkeys(names, 0)
            for d in differences:
                if d.figure == figure and d.significant and {d.first, d.second} <= set(names):
                    wins[d.second if (d.value > 0) != lower else d.first] += 1
            for name, count in wins.items():
                if len(names) > 1 and count == len(names) - 1:
                    out[figure, ensemble] = name
    return out
