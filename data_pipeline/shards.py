"""The files of a dataset: each is written by itself, from a source that reads any image alone.

Where a file begins and ends is settled before the first one is written. So one process that writes
them in turn and many workers that write them side by side (`beam_build.py`) make the same files.
"""

import dataclasses
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer
from tensorflow_datasets.core.utils import shard_utils

from data_pipeline.errors import DataError
from data_pipeline.file_checks import check_name
from data_pipeline.records import check_contents, check_record
from data_pipeline.sources.source import Source, numbered
from data_pipeline.split_statistics import Statistics

_MIN_SHARDS = 8  # Enough files to interleave, however small the dataset.
_SAMPLES = 3  # Images that are read to know how large a record is.


@dataclasses.dataclass(frozen=True)
class BadRecords:
    """What becomes of images that cannot be read: stop, or leave out up to `limit` of a dataset."""

    skip: bool = False
    limit: int = 100

    def check(self, messages: list[str]) -> None:
        """DataError if there are more than may be left out."""
        if len(messages) > self.limit:
            raise DataError(
                f"{len(messages)} images are bad, more than --max-bad={self.limit}; the last: "
                f"{messages[-1]}"
            )


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file: images start to stop (exclusive) of a split, file `number` of `total`.

    first_caption: captions of the split's images before start.
    """

    split: str
    number: int
    total: int
    start: int
    stop: int
    first_caption: int

    @property
    def file_name(self) -> str:
        """As TFDS calls it."""
        return f"region_captions-{self.split}.tfrecord-{self.number:05d}-of-{self.total:05d}"


@dataclasses.dataclass
class Written:
    """What became of a shard. left_out: one message for each image that is not in it."""

    shard: Shard
    records: int
    num_bytes: int
    statistics: Statistics
    left_out: list[str]

    def to_json(self) -> dict[str, Any]:
        """As plain values, for a file."""
        return dataclasses.asdict(self) | {"statistics": self.statistics.to_json()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Written":
        """From what `to_json` returned."""
        shard, statistics = Shard(**content["shard"]), Statistics.from_json(content["statistics"])
        return cls(**content | {"shard": shard, "statistics": statistics})


def plan_shards(source: Source, features: tfds.features.FeaturesDict) -> list[Shard]:
    """All files of a dataset, of 64 MiB to 1 GiB each but never fewer than 8 a split.

    Raises:
      DataError: an image_id repeats, an image has no caption, or a split has an odd name.
    """
    shards = []
    for split in source.splits():
        check_name(split, "split")
        contents = source.contents(split)
        check_contents(contents, f"{source.name}/{split}")
        count = len(contents.image_ids)
        if not count:
            continue
        size = count * _record_bytes(source, split, count, features)
        total = shard_utils.ShardConfig().get_number_shards(size, count)
        total = max(total, min(_MIN_SHARDS, count))
        stops = shard_utils.get_shard_boundaries(count, total)
        captions = np.concatenate([[0], np.cumsum(contents.caption_counts)])
        for number, (start, stop) in enumerate(zip([0, *stops], stops, strict=False)):
            shards.append(Shard(split, number, total, start, stop, int(captions[start])))
    if not shards:
        raise DataError(f"{source.name!r} has no images in {', '.join(source.splits())}")
    return shards


def _record_bytes(
    source: Source, split: str, count: int, features: tfds.features.FeaturesDict
) -> int:
    """The size of the largest of a few records."""
    largest, serialize = 0, make_serializer(features)
    for index in np.linspace(0, count - 1, _SAMPLES).astype(int):
        try:
            record = numbered(source.read(split, int(index)), 0, int(index))
        except DataError:
            continue  # Said, or skipped, when its turn comes.
        largest = max(largest, len(serialize(record | {"first_caption": np.int64(0)})))
    return largest


def make_serializer(features: tfds.features.FeaturesDict) -> Callable[[dict[str, Any]], bytes]:
    """A function from a record to its tf.train.Example; equal records give equal bytes."""
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())

    def serialize(record: dict[str, Any]) -> bytes:
        example = serializer.get_tf_example(features.encode_example(record))
        return example.SerializeToString(deterministic=True)

    return serialize


def write_shard(
    shard: Shard,
    source: Source,
    directory: str | os.PathLike[str],
    features: tfds.features.FeaturesDict,
    on_bad: BadRecords,
    progress: Callable[[], Any] = lambda: None,
) -> Written:
    """Writes one file, aside and then under its name; `progress` is called after each image.

    Raises:
      DataError: an image is bad and may not be left out.
    """
    done = Written(shard, 0, 0, Statistics(), [])
    path = os.path.join(os.fspath(directory), shard.file_name)
    # Its own name: a cluster may have two workers write the same shard, when one seems dead.
    aside = f"{path}.{uuid.uuid4().hex}"
    serialize = make_serializer(features)
    with tf.io.TFRecordWriter(aside) as writer:
        for record in _records(shard, source, on_bad, done.left_out):
            data = serialize(record)
            writer.write(data)
            done.records += 1
            done.num_bytes += len(data)
            done.statistics.add(record)
            progress()
    tf.io.gfile.rename(aside, path, overwrite=True)
    return done


def _records(
    shard: Shard, source: Source, on_bad: BadRecords, left_out: list[str]
) -> Iterator[dict[str, Any]]:
    """The shard's records, complete; messages of those left out are appended."""
    contents, following = source.contents(shard.split), shard.first_caption
    for index in range(shard.start, shard.stop):
        first, following = following, following + int(contents.caption_counts[index])
        image_id = int(contents.image_ids[index])
        where = f"{source.name}/{shard.split} record {index} (image_id {image_id})"
        try:
            record = source.read(shard.split, index)
            check_record(record, source, where)
        except DataError as error:
            if not on_bad.skip:
                raise
            left_out.append(str(error))
            on_bad.check(left_out)
            continue
        yield numbered(record, image_id, index) | {"first_caption": np.int64(first)}
