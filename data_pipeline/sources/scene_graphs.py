"""Scene graphs in JSONL, one object an image, and how their objects become regions.

    {"id": 16, "boxes": [[x1, y1, x2, y2], ...], "labels": ["man", ...],
     "relations": [[subject, "predicate", object, confidence], ...]}

`id` is the image's id, file name or that's stem; boxes are in pixels; `boxes` and `labels` may be
missing, and then the objects are the regions themselves.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.file_checks import Relation, parse_relations

_SAME = 0.5  # intersection over union from which an object of the graph is a region of the store
_MOST_BYTES = 2**26


class Graph(NamedTuple):
    """One image's graph, its objects numbered as the regions are.

    labels: one a region, "" where no object of the graph is that region; or none at all.
    """

    relations: list[Relation]
    labels: list[str]


class SceneGraphs:
    """The graphs of a file, by name; one pass at the start finds lines, predicates and labels."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}
        predicates: set[str] = set()
        labels: set[str] = set()
        with path.open("rb") as stream:
            number = 0
            while line := stream.readline(_MOST_BYTES):
                number += 1
                graph = self._parse(line, number)
                name = str(graph["id"])
                if name in self._places:
                    raise DataError(
                        f"{path} line {number}: id {name} was on line {self._places[name][1]} "
                        "already; remove one of the two"
                    )
                self._places[name] = stream.tell() - len(line), number
                predicates.update(relation[1] for relation in graph["relations"])
                labels.update(graph["labels"])
        self.predicates, self.labels = sorted(predicates), sorted(labels)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __len__(self) -> int:
        return len(self._places)

    def read(self, name: str, boxes: np.ndarray | None, regions: int) -> Graph:
        """The graph of an image with so many regions, [R, 4] boxes in pixels if they are known.

        An object is the region whose box overlaps its own most, from an intersection over union of
        0.5 on; a relation of an object that is no region is left out.
        """
        start, number = self._places[name]
        with self._path.open("rb") as stream:
            stream.seek(start)
            graph = self._parse(stream.readline(_MOST_BYTES), number)
        count = len(graph["boxes"]) or len(graph["labels"]) or regions
        wrong = [r for r in graph["relations"] if not (0 <= r[0] < count and 0 <= r[2] < count)]
        if wrong:
            raise DataError(
                f"{self._path} line {number}: relation {list(wrong[0])} names an object that is "
                f"not in 0..{count - 1}; write the graph again"
            )
        if boxes is None or not graph["boxes"]:
            if count != regions:
                raise DataError(
                    f"{self._path} line {number} has {count} objects and the image {regions} "
                    "regions; write the boxes of the objects, or graphs of these regions"
                )
            return Graph(graph["relations"], graph["labels"])
        return _on_regions(graph, np.asarray(graph["boxes"], np.float32), boxes)

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise DataError(
                f"{self._path} line {number} is not UTF-8; convert the file, e.g. with iconv"
            ) from None
        relations = parse_relations(text, self._path, number)
        content = json.loads(text)
        boxes, labels = content.get("boxes") or [], content.get("labels") or []
        well = isinstance(content.get("id"), int | str) and isinstance(labels, list)
        well = well and all(isinstance(label, str) for label in labels) and _are_boxes(boxes)
        if not well or (boxes and labels and len(boxes) != len(labels)):
            raise DataError(
                f'{self._path} line {number} needs an "id", and if it has them as many "boxes" '
                '[x1, y1, x2, y2] as "labels"; write the file again'
            )
        return {"id": content["id"], "boxes": boxes, "labels": labels, "relations": relations}


def _are_boxes(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return all(
        isinstance(box, list) and len(box) == 4 and all(isinstance(x, int | float) for x in box)
        for box in value
    )


def _on_regions(graph: dict[str, Any], objects: np.ndarray, boxes: np.ndarray) -> Graph:
    overlap = intersection_over_union(objects, boxes)  # [objects, R]
    region, best = overlap.argmax(axis=1), overlap.max(axis=1)
    found = best >= _SAME
    relations = [
        (int(region[s]), predicate, int(region[o]), score)
        for s, predicate, o, score in graph["relations"]
        if found[s] and found[o]
    ]
    labels = [""] * len(boxes) if graph["labels"] else []
    for number, label in enumerate(graph["labels"]):
        if found[number]:
            labels[region[number]] = label
    return Graph(relations, labels)


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Boxes [N, 4] and [M, 4] -> [N, M], 0 for boxes without an area."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    area = lambda boxes: np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=-1)
    union = area(a)[:, None] + area(b)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
