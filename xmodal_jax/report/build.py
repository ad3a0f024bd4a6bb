"""Makes a report from scores."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.metrics import statistics
from xmodal_jax.metrics.corrected import SETS, CocoTest
from xmodal_jax.metrics.diagnostics import hubness, length_bias
from xmodal_jax.metrics.judgements import Judgements, same_image
from xmodal_jax.metrics.measures import TOP, Found, Measured, measure
from xmodal_jax.metrics.parity import parity_metrics
from xmodal_jax.metrics.parts import SIDES, Part, check_finite
from xmodal_jax.metrics.placement import Placement
from xmodal_jax.metrics.ranking import RECALL_AT
from xmodal_jax.report.collection import Collection
from xmodal_jax.report.content import (
    SUMMED,
    Figure,
    QueryTable,
    Report,
    clustered_values,
)

_CORRECTED = {
    "eccv": ("r1", "map_at_r", "r_precision"),
    "cxc": tuple(f"r{k}" for k in RECALL_AT),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What a report has beside the figures that scores alone give.

    relevances: [C, I] by name ("rouge", "spice"), for NDCG.
    corrected: the collection as COCO's test split; needs all of it in one fold.
    parity: also what the TERAN reference would print.
    """

    relevances: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    corrected: CocoTest | None = None
    parity: bool = False
    top: int = TOP


def build_report(
    parts: Iterable[Part],
    collection: Collection,
    options: Options,
    about: Mapping[str, Any],
    notes: Iterable[str] = (),
) -> Report:
    """Measures the parts one after another; only one of them is needed at a time.

    Raises:
      UserError: a score is not finite, a query has no right target, or the scores are of other
        images or captions than the collection.
    """
    tables: dict[str, list[QueryTable]] = {side: [] for side in SIDES}
    parity: dict[str, list[float]] = {}
    rows_of_captions = collection.caption_rows()
    split = options.corrected
    corrected = {name: split.judgements(name) for name in SETS} if split else {}
    for part in parts:
        _check_whose(part, collection)
        check_finite(part)
        relevances = _relevances_of(part, options.relevances)
        sets = {name: sides[part.side] for name, sides in corrected.items()}
        own = same_image(part.query_ids, part.target_ids)
        measured, values = _measure(part, {"own": own}, sets, relevances, options)
        owners = part.queries if part.side == "i2t" else rows_of_captions[part.queries]
        fold = np.full(len(part.queries), part.fold)
        best = part.targets[measured.top], measured.top_scores
        tables[part.side].append(QueryTable(part.queries, owners, fold, values, *best))
        if options.parity:
            for name, value in parity_metrics(part.side, part.scores, own, relevances).items():
                parity.setdefault(name, []).append(100 * value if "/ndcg" in name else value)
        del part, relevances  # or their scores would stay until the next ones are there
    joined = {side: _joined(found) for side, found in tables.items()}
    printed = {name: float(np.mean(values)) for name, values in parity.items()}
    if printed:
        printed["rsum"] = sum(printed[name] for name in SUMMED)
    figures, diagnostics = make_figures(joined), _diagnostics(joined, collection)
    return Report(about, collection, joined, figures, diagnostics, printed, tuple(notes))


def _check_whose(part: Part, collection: Collection) -> None:
    """Raises a UserError unless the scores are of the collection's images and captions."""
    images, captions = (part.queries, part.query_ids), (part.targets, part.target_ids)
    if part.side == "t2i":
        images, captions = captions, images
    pairs = (images, collection.image_ids), (captions, collection.caption_image_ids)
    for (numbers, ids), known in pairs:
        if numbers.max(initial=-1) >= len(known) or not np.array_equal(known[numbers], ids):
            raise UserError(
                f"scores {part.side} of {len(ids)} items are not of the {len(known)} in the "
                "collection, in its order; use the scores and texts of one split"
            )


def _measure(
    part: Part,
    own: Mapping[str, Judgements],
    corrected: Mapping[str, Judgements],
    relevances: Mapping[str, np.ndarray],
    options: Options,
) -> tuple[Measured, dict[str, np.ndarray]]:
    """What one part's queries found, and the values [Q] of all figures that are means of them."""
    every = np.arange(len(part.queries))
    split = options.corrected
    captions = part.queries if part.side == "t2i" else part.targets
    if split is None or len(split.columns) == len(captions):
        found = measure(part.scores, {**own, **corrected}, relevances, top=options.top)
        return found, _values(found) | _corrected_values(found.found, every, len(every))
    # A sixth caption of an image, which is in no list, competes with nobody there.
    if part.side == "i2t":
        scores, judged = part.scores[:, split.columns], every
    else:
        scores, judged = part.scores[split.columns], split.columns
    found = measure(part.scores, own, relevances, top=options.top)
    others = measure(scores, corrected).found
    return found, _values(found) | _corrected_values(others, judged, len(every))


def _relevances_of(part: Part, relevances: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """[Q, T] of one part; views where it is the whole."""
    out = {}
    for name, whole in relevances.items():
        captions, images = (
            (part.queries, part.targets) if part.side == "t2i" else (part.targets, part.queries)
        )
        all_there = (len(captions), len(images)) == whole.shape
        own = whole if all_there else whole[captions][:, images]
        out[name] = own if part.side == "t2i" else own.T
    return out


def _recalls(first: Placement) -> dict[str, np.ndarray]:
    return {f"r{k}": 100 * first.recall(k) for k in RECALL_AT}


def _values(measured: Measured) -> dict[str, np.ndarray]:
    """[Q] of each figure that is a mean over the queries."""
    found = measured.found["own"]
    values = _recalls(found.first) | _more_values(found)
    return values | {f"ndcg_{name}": 100 * each for name, each in measured.ndcg.items()}


def _more_values(found: Found) -> dict[str, np.ndarray]:
    return {
        "mean_rank": found.first.rank() + 1,
        "mrr": 100 * found.first.reciprocal_rank(),
        "map_at_r": 100 * found.average_precision,
        "r_precision": 100 * found.r_precision,
    }


def _corrected_values(
    found: Mapping[str, Found], judged: np.ndarray, count: int
) -> dict[str, np.ndarray]:
    """[Q] under the corrected judgements, NaN for what these do not judge.

    judged: the queries that the judgements number; count: Q.
    """
    values = {}
    for name in filter(found.__contains__, SETS):
        every = _recalls(found[name].first) | _more_values(found[name])
        for value in _CORRECTED[name]:
            column = np.full(count, np.nan)
            column[judged[found[name].queries]] = every[value]
            values[f"{name}/{value}"] = column
    return values


def _joined(tables: list[QueryTable]) -> QueryTable:
    """The parts of all folds, in the order of the collection."""
    order = np.argsort(np.concatenate([table.queries for table in tables]), kind="stable")
    join = lambda arrays: np.concatenate(list(arrays))[order]
    width = min(table.top.shape[1] for table in tables)
    return QueryTable(
        join(table.queries for table in tables),
        join(table.images for table in tables),
        join(table.fold for table in tables),
        {name: join(table.values[name] for table in tables) for name in tables[0].values},
        join(table.top[:, :width] for table in tables),
        join(table.top_scores[:, :width] for table in tables),
    )


def make_figures(tables: Mapping[str, QueryTable]) -> dict[str, Figure]:
    """Every figure: those of both directions, rsum, then those under corrected judgements."""
    names, data = clustered_values(tables)
    drawn = statistics.bootstrap(data)
    summed = [names.index(name) for name in SUMMED]
    columns = {name: drawn[:, k] for k, name in enumerate(names)}
    columns["rsum"] = drawn[:, summed].sum(axis=1)
    means = dict(zip(names, data.means(), strict=True))
    means["rsum"] = sum(means[name] for name in SUMMED)
    folds = np.unique(data.fold)
    by_fold = {name: _of_folds(data, k) for k, name in enumerate(names)}
    by_fold["rsum"] = np.sum([by_fold[name] for name in SUMMED], axis=0)
    queries = dict(zip(names, data.counts.sum(axis=0).astype(int).tolist(), strict=True))
    queries["rsum"] = sum(queries[f"{side}/r1"] for side in SIDES)
    out = {}
    for name in _ordered(names):
        if name.endswith("/median_rank"):
            out[name] = _median(tables[name.split("/")[0]])
            continue
        low, high = statistics.interval(columns[name][:, None])
        spread = float(np.std(by_fold[name], ddof=1)) if len(folds) > 1 else None
        out[name] = Figure(float(means[name]), queries[name], float(low[0]), float(high[0]), spread)
    return out


def make_fine_figures(
    outcomes: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> dict[str, Figure]:
    """Means of outcomes, each an image id and a value [N], with intervals clustered by image."""
    out = {}
    for name, (image_ids, values) in outcomes.items():
        if not len(values):
            continue
        _, images = np.unique(image_ids, return_inverse=True)
        data = statistics.clustered([values], [images], np.zeros(images.max() + 1, int))
        low, high = statistics.interval(statistics.bootstrap(data))
        ends = float(low[0]), float(high[0])
        out[name] = Figure(float(np.mean(values)), len(values), *ends)
    return out


def _ordered(names: list[str]) -> list[str]:
    """Names of the means and, in their places, of the medians and rsum."""
    plain = [name for name in names if name.count("/") == 1]
    out = []
    for name in plain:
        if name.endswith("/mean_rank"):
            out.append(name.replace("mean_rank", "median_rank"))
        out.append(name)
    return [*out, "rsum", *(name for name in names if name.count("/") > 1)]


def _of_folds(data: statistics.Clustered, figure: int) -> np.ndarray:
    own = [data.fold == fold for fold in np.unique(data.fold)]
    sums = np.array([data.sums[rows, figure].sum() for rows in own])
    return sums / np.maximum([data.counts[rows, figure].sum() for rows in own], 1)


def _median(table: QueryTable) -> Figure:
    """Floor of the median rank plus 1, as published; no interval: it hardly ever moves."""
    folds = np.unique(table.fold)
    found = [np.floor(np.median(table.rank()[table.fold == fold])) + 1 for fold in folds]
    spread = float(np.std(found, ddof=1)) if len(folds) > 1 else None
    return Figure(float(np.mean(found)), len(table.queries), spread=spread)


def _diagnostics(tables: Mapping[str, QueryTable], collection: Collection) -> dict[str, Any]:
    """Hubs of both directions and the bias by length, as JSON."""
    out: dict[str, Any] = {}
    counts = {"i2t": len(collection.caption_image_ids), "t2i": len(collection.image_ids)}
    occurrences = {}
    for side, table in tables.items():
        top = table.top[:, :TOP]
        found = hubness(top, counts[side])
        occurrences[side] = found.occurrences
        out[f"{side}/hubs"] = {
            "k": top.shape[1],
            "skewness": found.skewness,
            "never_found": found.never,
            "most_found": [[int(t), int(found.occurrences[t])] for t in found.hubs],
        }
    if collection.captions:
        lengths = np.array([len(text.split()) for text in collection.captions])
        found_by = tables["t2i"].values
        bias = length_bias(lengths, occurrences["i2t"], found_by["mrr"], found_by["r1"])
        out["length"] = {
            "found": bias.found,
            "finds": bias.finds,
            "edges": bias.edges.tolist(),
            "r1": bias.recall.tolist(),
            "captions": bias.counts.tolist(),
        }
    return out
