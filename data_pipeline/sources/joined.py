"""A source of three parts: captions, region features, and scene graphs if there are any."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.file_checks import (
    check_pixels,
    encode_relations,
    half_precision,
    normalised_boxes,
)
from data_pipeline.sources.captions import Item, Splits, shared_images
from data_pipeline.sources.features import FeatureStore, Regions
from data_pipeline.sources.scene_graphs import Graph, SceneGraphs
from data_pipeline.sources.source import Contents

_MEANING = {
    "id": "the images' ids",
    "row": "the images' rows in the caption file",
    "file": "file name",
    "stem": "file name without the ending",
}
KINDS = tuple(_MEANING)


class JoinedSource:
    """Images of caption files whose features lie elsewhere, by one of their names.

    What a feature store calls an image differs: COCO's id, the row in Karpathy's JSON (TERAN's
    Flickr30K files), the file's name or its stem. Which of them it is is found out, unless two
    kinds of name find different features: then one has to be chosen.
    """

    def __init__(
        self,
        name: str,
        captions: Splits,
        store: FeatureStore,
        *,
        kind: str | None = None,
        sizes: Sequence[tuple[int, int]] = (),
        graphs: SceneGraphs | None = None,
    ) -> None:
        """
        Args:
          name: of the dataset.
          captions: see `read_captions`.
          store: of the features.
          kind: one of KINDS, by which the store knows images; by default it is found out.
          sizes: width and height by row of the caption file, where nothing else knows them.
          graphs: scene graphs.
        """
        self.name = name
        self._items, self._store, self._graphs = captions, store, graphs
        self._sizes = sizes
        self._names = set(store.names())
        self._kind_was_found = kind is None
        self.kind = kind or _find_kind(list(self._all_items()), self._names)
        self._check_names()
        self._predicate_ids = {name: i for i, name in enumerate(self.predicates)}
        self._label_ids = {name: i for i, name in enumerate(self.labels)}

    @property
    def labels(self) -> list[str]:
        """Of the detector if it has any, else of the scene graphs."""
        found = self._store.labels or (self._graphs.labels if self._graphs else [])
        return list(found)

    @property
    def predicates(self) -> list[str]:
        return self._graphs.predicates if self._graphs else []

    @functools.cached_property
    def feature_width(self) -> int:
        """Of the first image that can be read; `read` checks all others against it."""
        problem = None
        for item in self._all_items():
            try:
                return self._regions(item).features.shape[1]
            except DataError as error:
                problem = problem or error
        raise problem or DataError(f"{self.name} has no image; give captions")

    def splits(self) -> list[str]:
        return list(self._items)

    @functools.cache  # noqa: B019 - a source lives as long as the program that builds from it
    def contents(self, split: str) -> Contents:
        items = self._items[split]
        ids = np.array([item.image_id for item in items], np.int64)
        return Contents(ids, np.array([len(item.captions) for item in items], np.int64))

    def surplus(self) -> set[str]:
        """Names in the feature store that no caption file speaks of."""
        return self._names - {item.names()[self.kind] for item in self._all_items()}

    def notes(self) -> list[str]:
        """What a user should see: how features were found, and images that are in two splits."""
        how = f"features were found by {_MEANING[self.kind]}; --names says it otherwise"
        return [how] * self._kind_was_found + shared_images(self._items)

    def scene_graphs(self) -> list[SceneGraphs]:
        """The file of them, if there is one."""
        return [self._graphs] if self._graphs else []

    def read(self, split: str, index: int) -> dict[str, Any]:
        item = self._items[split][index]
        found = self._regions(item)
        if found.features.shape[1] != self.feature_width:
            raise DataError(
                f"{found.where} has features of width {found.features.shape[1]}, the others "
                f"{self.feature_width}; extract all images with one model"
            )
        size = found.size or item.size or self._size(item)
        boxes = _boxes(found, size)
        graph = self._graph(item, found)
        triples, scores = encode_relations(
            graph.relations, self._predicate_ids, len(found.features), graph.where
        )
        return {
            "file_name": item.file_name,
            "size": np.array(size or (0, 0), np.int32),
            "regions": half_precision(found.features, found.where),
            "boxes": boxes,
            "object_labels": self._object_labels(found, graph),
            "relations": triples,
            "relation_scores": scores,
            "captions": list(item.captions),
            "links": np.zeros((0, 4), np.int32),
        }

    def _check_names(self) -> None:
        """DataError where two images would read the same features, or no image has its graph."""
        owners: dict[str, str] = {}
        for item in self._all_items():
            if self.kind not in (names := item.names()):
                raise DataError(
                    f"--names={self.kind}: {item.path} has no ids; add a column image_id, or take "
                    "--names=row"
                )
            name = names[self.kind]
            owner = item.file_name or str(item.image_id)
            if owners.setdefault(name, owner) != owner:
                raise DataError(
                    f"{owners[name]} and {owner} would both get the features called "
                    f"{name}; choose other --names, or give captions of one file"
                )
        if self._graphs is not None:
            self._graphs.match(item.names() for item in self._all_items())

    def _all_items(self) -> Iterable[Item]:
        return (item for items in self._items.values() for item in items)

    def _regions(self, item: Item) -> Regions:
        name = item.names()[self.kind]
        if name not in self._names:
            raise DataError(
                f"{item.where} ({item.file_name}) has captions and no features; extract it, or "
                "leave it out with --on-bad-record=skip"
            )
        return self._store.read(name)

    def _size(self, item: Item) -> tuple[int, int] | None:
        return self._sizes[item.row] if item.row < len(self._sizes) else None

    def _object_labels(self, found: Regions, graph: Graph) -> np.ndarray:
        if self._store.labels and found.labels is not None:
            return found.labels
        return np.array([self._label_ids.get(label, -1) for label in graph.labels], np.int32)

    def _graph(self, item: Item, found: Regions) -> Graph:
        name = self._graphs.find(item.names()) if self._graphs else None
        if self._graphs is None or name is None:
            return Graph([], [])
        return self._graphs.read(name, found.boxes, len(found.features))


def _find_kind(items: Sequence[Item], known: set[str]) -> str:
    """The kind of name that finds most features; DataError where another finds different ones."""
    counts = dict.fromkeys(KINDS, 0)
    differ: set[tuple[str, str]] = set()
    for item in items:
        hits = {kind: name for kind, name in item.names().items() if name in known}
        for kind, name in hits.items():
            counts[kind] += 1
            differ.update((kind, other) for other in hits if hits[other] != name)
    best = max(("id", "file", "stem", "row"), key=lambda kind: counts[kind])
    if not counts[best]:
        raise DataError(
            f"none of the {len(items)} images with captions is among the {len(known)} with "
            "features, neither by id nor by file name; give the captions of these images"
        )
    others = [kind for kind in KINDS if (best, kind) in differ]
    if counts["row"] < counts[best] and "row" in others:
        others.remove("row")  # Of ids that are numbers some are those of rows, by chance.
    if others:
        found = " and ".join(f"by {k} ({counts[k]} of {len(items)})" for k in [best, *others])
        choices = " or ".join(f"--names={kind}" for kind in [best, *others])
        raise DataError(f"features are found {found}, and are not the same; choose {choices}")
    return best


def _boxes(found: Regions, size: tuple[int, int] | None) -> np.ndarray:
    count, where = len(found.features), found.boxes_where or found.where
    if found.boxes is None:
        return np.zeros((count, 4), np.float32)
    if found.boxes.shape != (count, 4):
        raise DataError(
            f"{where} has boxes of shape {list(found.boxes.shape)} for {count} regions; they must "
            f"be [{count}, 4]"
        )
    if size is None:
        raise DataError(
            f"{where} has boxes in pixels and no size; give --sizes, or captions that know it"
        )
    if not found.surely_pixels:
        check_pixels(found.boxes, np.array(size), where)
    return normalised_boxes(found.boxes, np.array(size), where)
