"""A look at everything a source has, without writing anything: what is there, and what is wrong."""

import collections
import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipeline.errors import DataError
from data_pipeline.file_checks import check_name
from data_pipeline.records import check_contents, check_record
from data_pipeline.sources.scene_graphs import check_survival
from data_pipeline.sources.source import Source, graph_files
from data_pipeline.split_statistics import Statistics

_SHOWN = 10  # problems and pairs that are told in full


@dataclasses.dataclass
class Report:
    """What was found. `problems` would stop a build; `notes` would not."""

    figures: dict[str, "SplitFigures"] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        lines = [SplitFigures.header()] if self.figures else []
        lines += [str(figures) for figures in self.figures.values()]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"problem: {problem}" for problem in self.problems[:_SHOWN]]
        if (more := len(self.problems) - _SHOWN) > 0:
            lines.append(f"and {more:,} more problems")
        return "\n".join([*lines, f"{len(self.problems):,} problems"])


class SplitFigures:
    """Running figures of one split."""

    def __init__(self, name: str) -> None:
        self.name, self.statistics = name, Statistics()
        self.low, self.high = np.inf, -np.inf
        self.farthest = 0.0
        self.relations = 0

    def add(self, record: dict[str, Any]) -> None:
        """Counts a record that was found to be well."""
        self.statistics.add(record)
        self.low = min(self.low, float(record["regions"].min()))
        self.high = max(self.high, float(record["regions"].max()))
        self.farthest = max(self.farthest, float(record["boxes"].max()))
        self.relations += len(record["relations"])

    @staticmethod
    def header() -> str:
        """The line above the splits."""
        return (
            f"{'split':<8}{'images':>9}{'captions':>10}{'an image':>10}{'words':>20}"
            f"{'regions':>10}{'features from .. to':>22}{'boxes to':>10}{'with boxes':>12}"
            f"{'with relations':>16}{'relations':>11}"
        )

    def __str__(self) -> str:
        if not self.statistics.images:
            return f"{self.name:<8}{0:>9}"
        found = self.statistics
        return (
            f"{self.name:<8}{found.images:>9,}{found.captions:>10,}"
            f"{_span(found.caption_counts):>10}"
            f"{f'mean {found.mean_words:.1f}, max {found.max_words}':>20}"
            f"{_span(found.region_counts):>10}{f'{self.low:.3g} .. {self.high:.3g}':>22}"
            # A share of the image: if it is far from 1, boxes and sizes hardly belong together.
            f"{f'{self.farthest:.2f}' if found.with_boxes else '-':>10}"
            f"{found.with_boxes:>12,}{found.with_relations:>16,}{self.relations:>11,}"
        )


def check(make_source: Callable[[], Source]) -> Report:
    """Reads all of a source; a mistake in one image does not keep the others from being read.

    Where one in a whole file does, it is the last problem of its split, or of all.
    """
    report = Report()
    try:
        source = make_source()
        _ = source.labels, source.predicates, source.feature_width  # what all images need
    except DataError as error:
        report.problems.append(str(error))
        return report
    images: dict[bytes, tuple[str, int]] = {}
    ids: dict[int, str] = {}
    doubles, shared = [], collections.Counter[tuple[str, str]]()
    for split in source.splits():
        figures = report.figures[split] = SplitFigures(split)
        try:
            check_name(split, "split")
            contents = source.contents(split)
            check_contents(contents, f"{source.name}/{split}")
        except DataError as error:
            report.problems.append(str(error))
            continue
        for index, image_id in enumerate(tqdm(contents.image_ids, split, unit=" images")):
            try:
                record = source.read(split, index)
                check_record(record, source, f"{source.name}/{split} record {index}")
            except DataError as error:
                if str(error) in report.problems[-1:]:
                    break  # It is of a file that all images of the split need.
                report.problems.append(str(error))
                continue
            figures.add(record)
            digest = hashlib.blake2b(record["regions"].tobytes(), digest_size=16).digest()
            if (first := images.setdefault(digest, (split, int(image_id)))) != (split, image_id):
                doubles.append(f"{split} image {image_id} is {first[0]} image {first[1]}")
            if (other := ids.setdefault(int(image_id), split)) != split:
                shared[other, split] += 1
    report.notes += getattr(source, "notes", list)()
    report.notes += _notes(doubles, shared)
    report.notes += _names_without_partner(source)
    files = graph_files(source)
    report.notes += [note for graphs in files for note in graphs.notes()]
    if report.problems:
        return report  # Relations may be those of the images that could not be read.
    try:
        check_survival(files, sum(figures.relations for figures in report.figures.values()))
    except DataError as error:
        report.problems.append(str(error))
    return report


def _notes(doubles: list[str], shared: collections.Counter[tuple[str, str]]) -> list[str]:
    notes = [
        f"{count:,} ids are in both {a} and {b}; are these the same images?"
        for (a, b), count in shared.items()
    ]
    if doubles:
        shown = "; ".join(doubles[:_SHOWN])
        notes.append(f"{len(doubles):,} images have the same features as another: {shown}")
    return notes


def _names_without_partner(source: Source) -> list[str]:
    """Of sources that join files: what has features and no captions."""
    surplus = sorted(getattr(source, "surplus", set)())
    if not surplus:
        return []
    return [f"{len(surplus):,} images have features and no captions, such as {surplus[0]}"]


def _span(values: set[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low}-{high}"
