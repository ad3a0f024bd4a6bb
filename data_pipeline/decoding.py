"""Serialized records to numpy: a record as arrays, images as padded batches.

What a record holds follows from the features that are stored with the dataset. To batch one more
array of the schema, name it: it is padded like the regions.

Arrays are stored as raw bytes, because of all encodings only this one is both fast and readable as
it lies there. `python -m tests.benchmarks.input_pipeline --cores 1`, 2026-11-21, an AMD EPYC; 36
regions 2048 wide, written by TensorFlow and read by tf.data:

                                MB per 1000 images   written/s   read/s
    raw bytes, float16                         149        1390     6470
    tf.io.serialize_tensor                     149        1220     8060   a parser of its own
    raw bytes in GZIP files                    108          73      800
    lists of float32                           296          51     1600
"""

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError

from data_pipeline.errors import DataError

Record = dict[str, Any]  # By name: an array, an integer, or a text or list of texts, as bytes.
Fields = dict[str, np.ndarray]  # By name, a row an image.

_OF_RELATIONS = ("relations", "relation_scores", "relation_mask")
_PADDING = {"object_labels": -1}  # Of all others: 0.


def make_decoder(
    builder: tfds.core.DatasetBuilder, names: tuple[str, ...]
) -> Callable[[bytes], Record]:
    """A function from a serialized record to its features of these names; arrays are read only."""
    features, rebuild = builder.info.features, "build it again: python -m data_pipeline.build"
    if missing := [name for name in names if name not in features]:
        raise DataError(f"the dataset in {builder.data_path} stores no {missing[0]}; {rebuild}")
    readers = {name: _reader(features[name]) for name in names}

    def decode(serialized: bytes) -> Record:
        try:
            stored = tf.train.Example.FromString(serialized).features.feature
            return {name: read(stored[name]) for name, read in readers.items()}
        except (DecodeError, IndexError, ValueError) as error:
            raise DataError(
                f"a record of the dataset in {builder.data_path} does not have what features.json "
                f"there says ({error}); {rebuild}"
            ) from error

    return decode


def _reader(feature: Any) -> Callable[[Any], Any]:
    """What takes the value of a feature out of its tf.train.Feature."""
    stored, dtype = feature.get_serialized_info(), feature.np_dtype
    shape = [-1 if size is None else size for size in feature.shape]
    if stored.tf_dtype != tf.string:
        kind = "float_list" if stored.tf_dtype.is_floating else "int64_list"
        if not shape:
            return lambda value: getattr(value, kind).value[0]
        return lambda value: np.array(getattr(value, kind).value, dtype).reshape(shape)
    if stored.shape == (None,):
        return lambda value: list(value.bytes_list.value)
    if feature.tf_dtype == tf.string:
        return lambda value: value.bytes_list.value[0]
    return lambda value: np.frombuffer(value.bytes_list.value[0], dtype).reshape(shape)


def batch_images(
    records: Iterator[Record], batch_size: int, max_regions: int, max_relations: int
) -> Iterator[Fields]:
    """Batches of so many records, with their masks.

    Arrays of regions are cut or padded to max_regions, those of relations to max_relations. The
    last batch is `filled`.
    """
    records = (_with_masks(record, max_regions, max_relations) for record in records)
    for first in records:
        batch, count = _empty_batch(first, batch_size, max_regions, max_relations), 0
        # Copied as they come, while they are in the processor's cache.
        for record in chain([first], islice(records, batch_size - 1)):
            for name, value in record.items():
                _put(value, batch[name], count, _PADDING.get(name, 0))
            count += 1
        yield filled({name: values[:count] for name, values in batch.items()}, batch_size)


def filled(batch: Fields, batch_size: int) -> Fields:
    """The batch with its last row repeated up to batch_size, and `mask`, False on these copies.

    Real rows give no NaN in a model.
    """
    rows = len(batch["image_id"])
    if rows < batch_size:
        chosen = np.minimum(np.arange(batch_size), rows - 1)
        batch = {name: values[chosen] for name, values in batch.items()}
    return batch | {"mask": np.arange(batch_size) < rows}


def _with_masks(record: Record, max_regions: int, max_relations: int) -> Record:
    """The record with masks of ones, to be padded like all else, and its best relations only."""
    record["region_mask"] = np.ones(len(record["regions"]), bool)
    if max_relations:
        record |= _best_relations(record, max_regions, max_relations)
    return record


def _best_relations(record: Record, max_regions: int, max_relations: int) -> Record:
    """The most confident relations among the regions kept.

    One that names a region cut away makes room for the next best.
    """
    relations, scores = record["relations"], record["relation_scores"]
    kept = np.flatnonzero((relations[:, ::2] < max_regions).all(axis=1))
    # Of equals the first. Records are sorted, but those of older datasets may not be.
    best = kept[np.argsort(-scores[kept], kind="stable")[:max_relations]]
    arrays = (relations[best], scores[best], np.ones(len(best), bool))
    return dict(zip(_OF_RELATIONS, arrays, strict=True))


def _empty_batch(record: Record, batch_size: int, max_regions: int, max_relations: int) -> Fields:
    """Arrays for records like this one, still to be filled."""
    batch: Fields = {}
    for name, value in record.items():
        if isinstance(value, np.ndarray):
            rows = max_relations if name in _OF_RELATIONS else max_regions
            batch[name] = np.empty((batch_size, rows, *value.shape[1:]), value.dtype)
        else:
            batch[name] = np.empty(batch_size, np.int64 if isinstance(value, int) else object)
    return batch


def _put(value: Any, values: np.ndarray, row: int, padding: int) -> None:
    """Copies a value into its row; a longer array is cut, a shorter one padded."""
    if not isinstance(value, np.ndarray):
        values[row] = value
        return
    kept = min(len(value), values.shape[1])
    values[row, :kept] = value[:kept]
    values[row, kept:] = padding
