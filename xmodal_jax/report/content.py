"""What a report says: figures with their intervals, and what every query found."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from xmodal_jax.metrics import statistics
from xmodal_jax.metrics.parts import SIDES
from xmodal_jax.metrics.probes import CATEGORIES
from xmodal_jax.metrics.ranking import RECALL_AT
from xmodal_jax.report.collection import Collection

# In the order of tables. All are in percent, but for the two ranks.
TITLES = {
    **{f"r{k}": f"R@{k}" for k in RECALL_AT},
    "median_rank": "median rank",
    "mean_rank": "mean rank",
    "mrr": "MRR",
    "map_at_r": "mAP@R",
    "r_precision": "R-precision",
    "ndcg_rouge": "NDCG@25 ROUGE-L",
    "ndcg_spice": "NDCG@25 SPICE",
}
FINE_TITLES = {
    "pointing": "words whose best region is the true one",
    "grounding/points": "phrases whose best region has its centre in their box",
    "grounding/overlaps": "phrases whose best region overlaps their box by half",
    **{
        f"probes/{name}": f"right caption beats one with {what}"
        for name, what in CATEGORIES.items()
    },
}
SIDE_TITLES = {"i2t": "image to text", "t2i": "text to image"}
SUMMED = tuple(f"{side}/r{k}" for side in SIDES for k in RECALL_AT)  # make rsum


@dataclasses.dataclass(frozen=True)
class Figure:
    """A value over so many queries, its 95 % interval, and its spread over the folds, if any."""

    value: float
    queries: int
    low: float | None = None
    high: float | None = None
    spread: float | None = None


@dataclasses.dataclass(frozen=True)
class QueryTable:
    """What the Q queries of one direction found.

    queries: [Q] numbers of the images or captions; images: [Q] row of the image each belongs to.
    fold: [Q]. values: [Q] each by the name of a figure, NaN where a query is not judged.
    top: [Q, k] numbers of the best targets; top_scores: [Q, k].
    """

    queries: np.ndarray
    images: np.ndarray
    fold: np.ndarray
    values: Mapping[str, np.ndarray]
    top: np.ndarray
    top_scores: np.ndarray

    def rank(self) -> np.ndarray:
        """[Q] expected rank of the first right target, from 0."""
        return self.values["mean_rank"] - 1


@dataclasses.dataclass(frozen=True)
class Report:
    """All that is known of one evaluation.

    about: what was evaluated and how, as JSON; notes: sentences on what a reader has to know.
    figures: by name, such as i2t/r1, rsum or eccv/t2i/map_at_r.
    parity: the reference's own figures, in percent; empty if they were not asked for.
    fine: what the model makes of words and regions: pointing, probes/...; empty if not measured.
    """

    about: Mapping[str, Any]
    collection: Collection
    tables: Mapping[str, QueryTable]
    figures: Mapping[str, Figure]
    diagnostics: Mapping[str, Any]
    parity: Mapping[str, float]
    notes: tuple[str, ...] = ()
    fine: Mapping[str, Figure] = dataclasses.field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """The values alone."""
        return {name: figure.value for name, figure in self.figures.items()}


def figure_name(side: str, value: str) -> str:
    """Name of a figure from its direction and the name of its values: eccv/r1 -> eccv/i2t/r1."""
    judged, _, name = value.rpartition("/")
    return "/".join(filter(None, (judged, side, name)))


def clustered_values(tables: Mapping[str, QueryTable]) -> tuple[list[str], statistics.Clustered]:
    """Names of the figures that are means, and their values summed by image."""
    images = 1 + max(int(table.images.max()) for table in tables.values())
    fold = np.zeros(images, int)
    names, values, owners = [], [], []
    for side, table in tables.items():
        fold[table.images] = table.fold
        for name, found in table.values.items():
            judged = ~np.isnan(found)
            names.append(figure_name(side, name))
            values.append(found[judged])
            owners.append(table.images[judged])
    return names, statistics.clustered(values, owners, fold)
