"""Scene graphs in JSONL, one object an image, and how their objects become regions.

    {"id": 16, "boxes": [[x1, y1, x2, y2], ...], "labels": ["man", ...],
     "relations": [[subject, "predicate", object, confidence], ...]}

`id` is the image's id, file name or that's stem; boxes are in pixels; `boxes` and `labels` may be
missing, and then the objects are the regions themselves. In a file of one split, whose lines are
those of its images, all ids may be missing.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.file_checks import (
    Relation,
    check_is_file,
    checked_relations,
    is_unicode,
    parse_json,
)

_SAME = 0.5  # intersection over union from which an object of the graph is a region of the store
_MOST_BYTES = 2**26
_FARTHEST = 2.0**31  # pixels


class Graph(NamedTuple):
    """One image's graph, its objects numbered as the regions are.

    labels: one a region, "" where no object of the graph is that region; or none at all.
    where: file and line, for messages.
    """

    relations: list[Relation]
    labels: list[str]
    where: str = ""


class SceneGraphs:
    """The graphs of a file, by name; one pass at the start finds lines, predicates and labels.

    Attributes:
      path: of the file.
      by_row: whether lines have no ids: graphs are then called 0, 1, 2, ...
      relations: how many there are in the file.
      surplus: graphs that are of none of the images; known once there was a `match`.
    """

    def __init__(self, path: Path, of_split: bool = False) -> None:
        """of_split: the lines are those of a split's images, and need no ids."""
        self.path, self.by_row, self._of_split = path, False, of_split
        self.relations = 0
        self.surplus: set[str] = set()
        self._places: dict[str, tuple[int, int]] = {}
        self._lost: dict[str, tuple[int, int]] = {}  # Objects without a region, and all; once read.
        predicates: set[str] = set()
        labels: set[str] = set()
        if not path.exists():
            raise DataError(f"{path} does not exist; give another --scene-graphs")
        check_is_file(path)
        with path.open("rb") as stream:
            number, before = 0, b""
            while line := stream.readline(_MOST_BYTES):
                number += 1
                graph = self._parse(line, number)
                if number == 1:
                    self.by_row = graph["id"] is None
                if self.by_row != (graph["id"] is None):
                    raise DataError(
                        f"{path} line {number} has {'an' if self.by_row else 'no'} id, otherwise "
                        "than line 1; give all lines ids, or none"
                    )
                name = str(number - 1 if self.by_row else graph["id"])
                # SCAN's files repeat what belongs to an image for each of its captions.
                if name in self._places and not (of_split and line == before):
                    raise DataError(
                        f"{path} line {number}: id {name} was on line {self._places[name][1]} "
                        "already; remove one of the two"
                    )
                self._places[name] = stream.tell() - len(line), number
                self.relations += len(graph["relations"])
                predicates.update(relation[1] for relation in graph["relations"])
                labels.update(graph["labels"])
                before = line
        self.predicates, self.labels = sorted(predicates), sorted(labels)

    def __len__(self) -> int:
        return len(self._places)

    def find(self, names: Mapping[str, str]) -> str | None:
        """Which of an image's names, by kind, a graph has; None where there is no graph of it.

        Raises:
          DataError: two graphs have names of the image.
        """
        # By its row an image could get the graph of one whose id that number is.
        kinds = ("row",) if self.by_row else ("id", "file", "stem")
        found = dict.fromkeys(names[k] for k in kinds if names.get(k) in self._places)
        if len(found) > 1:
            (a, b), lines = list(found)[:2], [self._places[name][1] for name in found]
            raise DataError(
                f"{self.path} has two graphs of one image, {a!r} on line {lines[0]} and {b!r} on "
                f"line {lines[1]}; remove one, or call all graphs by the file names of the images"
            )
        return next(iter(found), None)

    def match(
        self,
        images: Iterable[Mapping[str, str]],
        remedy: str = "give the graphs of these images",
    ) -> None:
        """Finds `surplus`; DataError unless a graph is of an image, whose names are given."""
        self.surplus = set(self._places) - {self.find(names) for names in images}
        if len(self.surplus) == len(self):
            raise DataError(
                f"{self.path}: none of the {len(self)} scene graphs is of an image with captions, "
                f"neither by id nor by file name; {remedy}"
            )

    def read(self, name: str, boxes: np.ndarray | None, regions: int) -> Graph:
        """The graph of an image with so many regions, [R, 4] boxes in pixels if they are known.

        An object is the region whose box overlaps its own most, from an intersection over union of
        0.5 on; a relation of an object that is no region is left out.
        """
        start, number = self._places[name]
        where = f"{self.path} line {number}"
        with self.path.open("rb") as stream:
            stream.seek(start)
            graph = self._parse(stream.readline(_MOST_BYTES), number)
        count = len(graph["boxes"]) or len(graph["labels"]) or regions
        wrong = [r for r in graph["relations"] if not (0 <= r[0] < count and 0 <= r[2] < count)]
        if wrong:
            raise DataError(
                f"{where}: relation {list(wrong[0])} names an object that is not in "
                f"0..{count - 1}; write the graph again"
            )
        if boxes is None or not graph["boxes"]:
            if count != regions:
                raise DataError(
                    f"{where} has {count} objects and the image {regions} regions; give the boxes "
                    "of both in pixels, or graphs of these regions"
                )
            return Graph(graph["relations"], graph["labels"], where)
        overlap = intersection_over_union(np.asarray(graph["boxes"], np.float32), boxes)
        self._lost[name] = int((overlap.max(axis=1) < _SAME).sum()), count
        return _on_regions(graph, overlap, where)

    def notes(self) -> list[str]:
        """How many graphs are of no image, and how many objects of those read are no region."""
        found = []
        if self.surplus:
            found.append(
                f"{len(self.surplus):,} of {len(self):,} graphs of {self.path} are of no image "
                f"with captions, such as {min(self.surplus)}"
            )
        objects, total = (sum(pair[k] for pair in self._lost.values()) for k in (0, 1))
        if objects:
            found.append(
                f"{objects:,} of {total:,} objects of {self.path} are no region, as no box "
                "overlaps theirs by half; their relations are left out"
            )
        return found

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            text = line.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise DataError(
                f"{self.path} line {number} is not UTF-8; convert the file, e.g. with iconv"
            ) from None
        where = f"{self.path} line {number}"
        try:
            content = parse_json(text)
        except (ValueError, RecursionError):  # The latter from a few thousand brackets.
            content = None
        if not isinstance(content, dict) or not isinstance(content.get("relations"), list):
            raise DataError(
                f'{where} is not a JSON object with "relations": [[region, "predicate", region, '
                "confidence], ...]; write the file again"
            )
        relations = checked_relations(content["relations"], where)
        boxes, labels = content.get("boxes") or [], content.get("labels") or []
        name = content.get("id")
        well = _is_id(name) or (name is None and self._of_split)
        well = well and isinstance(labels, list)
        well = well and all(isinstance(label, str) and is_unicode(label) for label in labels)
        well = well and _are_boxes(boxes)
        if not well or (boxes and labels and len(boxes) != len(labels)):
            raise DataError(
                f'{where} needs an "id", and if it has them as many "boxes" '
                '[x1, y1, x2, y2] as "labels"; write the file again'
            )
        return {"id": name, "boxes": boxes, "labels": labels, "relations": relations}


def _is_id(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and is_unicode(value))


def _are_boxes(value: Any) -> bool:
    if not isinstance(value, list):
        return False
    return all(
        isinstance(box, list)
        and len(box) == 4
        and all(type(x) in (int, float) and abs(x) < _FARTHEST for x in box)
        for box in value
    )


def check_survival(files: Iterable[SceneGraphs], relations: int) -> None:
    """DataError if there are relations in the files and none in the dataset that was made of them.

    Boxes of other images' sizes, or in 0..1, match no region, and a graph model would learn from
    empty graphs.
    """
    given = [graphs for graphs in files if graphs.relations]
    if given and not relations:
        raise DataError(
            f"none of the {sum(graphs.relations for graphs in given):,} relations of "
            f"{given[0].path} is between two regions of these images; write the graphs' boxes in "
            "pixels of these images, or leave the file out"
        )


def _on_regions(graph: dict[str, Any], overlap: np.ndarray, where: str) -> Graph:
    """overlap: float [objects, R]."""
    region, best = overlap.argmax(axis=1), overlap.max(axis=1)
    found = best >= _SAME
    relations = [
        (int(region[s]), predicate, int(region[o]), score)
        for s, predicate, o, score in graph["relations"]
        # Two objects that are one region have nothing to do with each other there.
        if found[s] and found[o] and (s == o or region[s] != region[o])
    ]
    labels = [""] * overlap.shape[1] if graph["labels"] else []
    for number in np.argsort(best, kind="stable") if labels else ():  # The best one is last.
        if found[number]:
            labels[region[number]] = graph["labels"][number]
    return Graph(relations, labels, where)


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Boxes [N, 4] and [M, 4] -> [N, M], 0 for boxes without an area."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    area = lambda boxes: np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=-1)
    union = area(a)[:, None] + area(b)[None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
