"""The order in which an epoch reads a split's records, and which of them a process reads.

The files of the split, in an order drawn for the epoch, follow each other; what they hold is cut
into `streams` pieces of one length. Each piece is read on its own, eight files of it in turn, and
shuffled. Row r of a global batch of B rows comes from stream r // (B / streams). So the images of
a batch depend on the number of streams and not on the number of processes, and a process opens
only files of the streams that its rows come from.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

_OPEN_FILES = 8  # Files of a stream read in turn. Fixed: the order of the records depends on it.


class Span(NamedTuple):
    """`size` records of file number `file`, from the one numbered `start` on."""

    file: int
    start: int
    size: int


def stream_spans(lengths: Sequence[int], order: Iterable[int], streams: int) -> list[list[Span]]:
    """For each stream the records it reads; the sum(lengths) % streams last ones are left out.

    Args:
        lengths: records of each file.
        order: of the files.
        streams: number of streams.
    """
    size = sum(lengths) // streams
    found: list[list[Span]] = [[] for _ in range(streams)]
    before = 0  # Records of the files so far.
    for file in order:
        for number, spans in enumerate(found):
            start = max(number * size, before)
            stop = min((number + 1) * size, before + lengths[file])
            if start < stop:
                spans.append(Span(int(file), start - before, stop - start))
        before += lengths[file]
    return found


def shuffled_stream(
    info: Any, number: int, *, seed: int, epoch: int, streams: int, buffer: int
) -> tf.data.Dataset:
    """Serialized records of one stream of an epoch.

    Args:
        info: the tfds.core.SplitInfo.
        number: of the stream, from 0 on.
        seed, epoch: decide the order.
        streams: number of streams.
        buffer: records among which the next one is drawn, over all streams.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(info.shard_lengths))
    seeds = rng.integers(2**31, size=streams)
    spans = stream_spans(info.shard_lengths, order, streams)[number]
    files, starts, counts = (np.array(column, np.int64) for column in zip(*spans, strict=True))
    paths = np.array([str(path) for path in info.filepaths])
    records = tf.data.Dataset.from_tensor_slices((paths[files], starts, counts)).interleave(
        _read_span,
        cycle_length=_OPEN_FILES,
        block_length=1,
        num_parallel_calls=_OPEN_FILES,
        deterministic=True,
    )
    total = int(counts.sum())
    shuffled = min(buffer // streams, total)
    return exactly(records, total).shuffle(max(1, shuffled), seed=int(seeds[number]))


def exactly(records: tf.data.Dataset, count: int) -> tf.data.Dataset:
    """The records, and an error at their end if they are not so many.

    A file cut between two records would otherwise pass for a smaller dataset.
    """
    return records.apply(tf.data.experimental.assert_cardinality(count))


@tf.autograph.experimental.do_not_convert  # Plain calls: converting them takes most of the start.
def _read_span(path: tf.Tensor, start: tf.Tensor, size: tf.Tensor) -> tf.data.Dataset:
    return tf.data.TFRecordDataset(path).skip(start).take(size)


def rows_of_streams(rows: np.ndarray, batch_size: int, streams: int) -> dict[int, np.ndarray]:
    """Stream -> bool [batch_size / streams], which of its rows are among these rows of a batch."""
    wanted = np.zeros(batch_size, bool)
    wanted[rows] = True
    parts = wanted.reshape(streams, -1)
    return {number: part for number, part in enumerate(parts) if part.any()}


def only_rows(records: Any, wanted: np.ndarray) -> Any:
    """Of a dataset whose records go into rows 0, 1, ..., 0, 1, ..., those for the wanted rows."""
    if wanted.all():
        return records
    kept = tf.constant(wanted)
    numbered = records.enumerate().filter(lambda n, _: kept[n % len(wanted)])
    return numbered.map(lambda _, record: record)
