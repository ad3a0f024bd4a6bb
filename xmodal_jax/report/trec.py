"""Run and qrels files of TREC, which `trec_eval`, `ranx`, `ir-measures` and others read.

An image is called `i` and its id, a caption `c` and its number, so that no name is of both kinds.
Of other code any names will do; the qrels of the captions say which image each of them belongs to.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.metrics.parts import SIDES, Part, make_part
from xmodal_jax.report.collection import Collection
from xmodal_jax.report.content import QueryTable, Report


def write_trec(directory: Path, report: Report, depth: int, tag: str = "xmodal_jax") -> None:
    """Writes `SIDE.run`, of each query the `depth` best targets of the report, and `SIDE.qrels`."""
    collection = report.collection
    images = [f"i{image}" for image in collection.image_ids]
    captions = [f"c{number}" for number in range(len(collection.caption_image_ids))]
    rows = collection.caption_rows()
    names = {"i2t": (images, captions), "t2i": (captions, images)}
    for side in SIDES:
        with (directory / f"{side}.run").open("w") as file:
            file.writelines(_run_lines(report.tables[side], *names[side], depth, tag))
        with (directory / f"{side}.qrels").open("w") as file:
            by_query = np.argsort(rows, kind="stable") if side == "i2t" else range(len(rows))
            for k in by_query:
                pair = images[rows[k]], captions[k]
                query, target = pair if side == "i2t" else pair[::-1]
                file.write(f"{query} 0 {target} 1\n")


def _run_lines(
    table: QueryTable, queries: Sequence[str], targets: Sequence[str], depth: int, tag: str
) -> Iterator[str]:
    best = table.top[:, :depth], table.top_scores[:, :depth]
    for query, top, scores in zip(table.queries, *best, strict=True):
        for rank, (target, score) in enumerate(zip(top, scores, strict=True), 1):
            # repr of a Python float: no two scores become equal.
            yield f"{queries[query]} Q0 {targets[target]} {rank} {float(score)!r} {tag}\n"


class TrecRuns:
    """Two run files and the qrels of the captions, as a collection and parts of scores."""

    def __init__(self, i2t: Path, t2i: Path, qrels: Path) -> None:
        """Reads the qrels; the runs are read when their parts are asked for.

        Raises:
          UserError: the qrels are damaged, or a caption has no image or several.
        """
        self._paths = {"i2t": i2t, "t2i": t2i}
        image_of: dict[str, str] = {}
        for number, (caption, _, image, relevance) in enumerate(_lines(qrels, 4), 1):
            if _number(relevance, qrels, number) <= 0:
                continue
            if image_of.setdefault(caption, image) != image:
                raise UserError(
                    f"{qrels} line {number}: caption {caption} is right with {image} and with "
                    f"{image_of[caption]}; give qrels in which each caption has its own image"
                )
        if not image_of:
            raise UserError(f"{qrels} has no line 'CAPTION 0 IMAGE 1'; give qrels of the captions")
        # Sorted: reports of one split are in one order, whatever that of the lines is.
        self._captions = {name: k for k, name in enumerate(sorted(image_of))}
        self._images = {name: k for k, name in enumerate(sorted(set(image_of.values())))}
        self.collection = Collection(
            np.arange(len(self._images)),
            np.array([self._images[image_of[caption]] for caption in self._captions]),
            image_names=list(self._images),
            caption_names=list(self._captions),
        )
        self.depths: dict[str, int] = {}  # of the runs that were read: fewest targets of a query

    def parts(self) -> Iterator[Part]:
        """Both directions; targets that a run leaves out are equal, behind all that it has."""
        ids, owners = self.collection.image_ids, self.collection.caption_image_ids
        sides = (ids, ids), (np.arange(len(owners)), owners)
        for side in SIDES:
            yield make_part(side, 0, *sides, self._scores(side))

    def _scores(self, side: str) -> np.ndarray:
        path = self._paths[side]
        queries, targets = self._images, self._captions
        if side == "t2i":
            queries, targets = targets, queries
        scores = np.full((len(queries), len(targets)), np.nan)
        for number, (query, _, target, _, score, _) in enumerate(_lines(path, 6), 1):
            for name, known in ((query, queries), (target, targets)):
                if name not in known:
                    raise UserError(
                        f"{path} line {number}: {name} is not in the qrels; give the runs of both "
                        "directions as --i2t and --t2i, and the qrels of the captions"
                    )
            value = _number(score, path, number)
            if not np.isfinite(value):
                pair = f"{query} and {target}"
                raise UserError(f"{path} line {number}: the score of {pair} is {score}")
            if not np.isnan(scores[queries[query], targets[target]]):
                raise UserError(f"{path} line {number}: {query} and {target} are there twice")
            scores[queries[query], targets[target]] = value
        listed = np.count_nonzero(~np.isnan(scores), axis=1)
        if not listed.all():
            name = list(queries)[int(np.argmin(listed))]
            raise UserError(f"{path} has no line of query {name}; leave it out of the qrels too")
        self.depths[side] = int(listed.min())
        lowest = np.nanmin(scores, axis=1, keepdims=True)
        # Smaller than the lowest in any floating-point size.
        return np.where(np.isnan(scores), lowest - np.abs(lowest) - 1, scores)


def _lines(path: Path, fields: int) -> Iterator[list[str]]:
    if not path.is_file():
        raise UserError(f"{path} is missing; give a file in the format of TREC")
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            found = line.split()
            if len(found) != fields:
                raise UserError(
                    f"{path} line {number} has {len(found)} fields, not {fields}: "
                    f"{line.strip()[:60]!r}"
                )
            yield found


def _number(text: str, path: Path, line: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{path} line {line}: {text!r} is no number") from None
