"""The records of a split, from its files; damage is told with the name of the file."""

import os
from collections.abc import Iterator

import tensorflow as tf
import tensorflow_datasets as tfds

from data_pipeline.decoding import Record, make_decoder
from data_pipeline.errors import DataError
from data_pipeline.region_captions import find_damage, split_info
from data_pipeline.streams import exactly

CAPTION_FIELDS = ("image_id", "first_caption", "captions")
_CHUNK = 4  # Records handed over by tf.data at a time: few enough to stay in a processor's cache.


def in_order(
    builder: tfds.core.DatasetBuilder, split: str, names: tuple[str, ...]
) -> Iterator[Record]:
    """The named features of all records, in `index` order."""
    info, decode = split_info(builder, split), make_decoder(builder, names)
    records = tf.data.TFRecordDataset([os.fspath(path) for path in info.filepaths])
    return map(decode, read(exactly(records, info.num_examples), builder, split))


def read(
    records: tf.data.Dataset, builder: tfds.core.DatasetBuilder, split: str
) -> Iterator[bytes]:
    """The records; where a file cannot be read, a DataError that names it."""
    # Nothing here is for tf.data to tune, and ending an iterator may wait a second for its tuner.
    options = tf.data.Options()
    options.autotune.enabled = False
    records = records.batch(_CHUNK).prefetch(2).with_options(options)
    # Looked up here: a generator still open when Python exits finds no modules any more.
    read_errors = (
        tf.errors.DataLossError,
        tf.errors.NotFoundError,
        tf.errors.FailedPreconditionError,  # From assert_cardinality.
    )
    try:
        for chunk in records.as_numpy_iterator():
            yield from chunk
    except read_errors:
        damage = find_damage(builder, split)
        if damage is None:
            raise
        raise DataError(damage) from None
