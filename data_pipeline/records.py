"""What a record must hold beyond dtypes and shapes, which its serialization checks."""

from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.file_checks import check_relations
from data_pipeline.sources.source import Contents, Source


def check_contents(contents: Contents, where: str) -> None:
    """DataError unless ids are unique and below 2^31, and every image has captions."""
    ids = contents.image_ids
    wrong = np.flatnonzero((ids < 0) | (ids >= 2**31))
    if wrong.size:
        raise DataError(
            f"{where} record {wrong[0]}: image_id {ids[wrong[0]]} is not in 0 .. 2^31 - 1, the "
            "integers that JAX keeps exact; renumber the images"
        )
    _, first = np.unique(ids, return_index=True)
    if len(first) < len(ids):
        again = np.setdiff1d(np.arange(len(ids)), first)[0]
        raise DataError(f"{where} record {again}: image_id {ids[again]} repeats; make ids unique")
    silent = np.flatnonzero(contents.caption_counts < 1)
    if silent.size:
        raise DataError(
            f"{where} record {silent[0]} (image_id {ids[silent[0]]}) has no captions; leave it out"
        )


def check_record(record: dict[str, Any], source: Source, where: str) -> None:
    """DataError unless a record has regions and captions, and relations among its own regions."""
    regions, captions = record["regions"], record["captions"]
    if not len(regions) or not captions:
        raise DataError(
            f"{where} has {len(regions)} regions and {len(captions)} captions; leave images "
            "without either out"
        )
    if regions.shape[1:] != (source.feature_width,):
        raise DataError(
            f"{where} has regions of shape {list(regions.shape)}, not [regions, "
            f"{source.feature_width}]; extract all images with one model"
        )
    relations = record["relations"], record["relation_scores"]
    check_relations(*relations, len(regions), len(source.predicates), where)
