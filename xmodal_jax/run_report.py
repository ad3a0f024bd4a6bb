"""The report of a trained run or an ensemble, from the scores of its evaluators."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import catalog
from xmodal_jax.evaluators.outcomes import Outcome
from xmodal_jax.matched_words import Alignment
from xmodal_jax.metrics.parts import Part
from xmodal_jax.report.build import Options, build_report, make_fine_figures
from xmodal_jax.report.collection import Collection
from xmodal_jax.report.content import Report
from xmodal_jax.report.examples import shown_pairs
from xmodal_jax.report.matrices import ScoreSaver
from xmodal_jax.report.pictures import Pictures
from xmodal_jax.report.relevance import corrected_of, relevances_of
from xmodal_jax.report.write import write_report


def collection_of(dataset: Any, split: str) -> Collection:
    """File names and captions of a split, in the order in which evaluators score it."""
    found = catalog.texts(dataset, split)
    names = found.file_names if all(found.file_names) else ()  # some layouts know ids only
    return Collection(found.image_id, found.caption_image_id, names, found.captions)


def run_report(
    section: Any,
    collection: Collection,
    parts: Iterable[Part],
    about: Mapping[str, Any],
    directory: Path,
    outcomes: Callable[[], Mapping[str, Outcome]] = dict,
    align: Callable[[np.ndarray], list[str]] | None = None,
    align_pairs: Callable[[np.ndarray, Sequence[str]], list[Alignment]] | None = None,
) -> Report:
    """Makes a report from scores, and writes it.

    Files that the report needs are looked for first: scoring may take hours.

    Args:
      section: `config.evaluate`, which says what is in the report.
      collection: whose scores they are.
      parts: the scores; read once, after `outcomes`.
      about: what was evaluated.
      directory: of the report.
      outcomes: makes those of the evaluators beside retrieval.
      align: words and regions of each caption with an image, given by image ids [C].
      align_pairs: the same of pairs of image ids [P] and P captions, for the examples.
    """
    names = collection.image_names
    pictures = Pictures(Path(section.images), names) if section.images else None
    spice = Path(section.spice) if section.spice else None
    relevances, notes = relevances_of(collection, spice=spice)
    corrected, more = corrected_of(collection, section.protocol)
    options = Options(relevances, corrected, section.teran_parity)
    directory.mkdir(parents=True, exist_ok=True)
    saver = ScoreSaver(directory / "scores.npz", collection) if section.save_scores else None
    counts = {"images": len(collection.image_ids), "captions": len(collection.caption_image_ids)}
    found = outcomes()
    more += [
        f"no {name}: no word or phrase of a known region could be looked at"
        for name, outcome in found.items()
        if not len(outcome.values)
    ]
    report = build_report(
        saver.passing(parts) if saver else parts,
        collection,
        options,
        {**about, **counts},
        [*notes, *more],
    )
    fine = {name: (outcome.image_ids, outcome.values) for name, outcome in found.items()}
    report = dataclasses.replace(report, fine=make_fine_figures(fine))
    if saver:
        saver.write()
    alignments = {}
    if align is not None:
        best = collection.image_ids[report.tables["t2i"].top[:, 0]]
        alignments["alignment"] = align(collection.caption_image_ids)
        alignments["alignment_with_best"] = align(best)
    shown = {}
    if align_pairs is not None:
        pairs = shown_pairs(report)
        ids = collection.image_ids[[row for row, _ in pairs]]
        drawn = align_pairs(ids, [collection.captions[caption] for _, caption in pairs])
        shown = dict(zip(pairs, drawn, strict=True))
    write_report(directory, report, pictures=pictures, alignments=alignments, shown=shown)
    return report
