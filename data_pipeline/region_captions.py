"""The dataset on disk: one record an image, with its regions once and all of its captions.

`schema` is the only description of a record: sources yield it, `shards` writes TFRecord files,
and `input_pipeline` derives its parser from it. With the information that TFDS keeps beside them
the files are a dataset that any TFDS program reads. It lies in
`DATA_DIR/region_captions/NAME/VERSION/` and is complete or absent: it is written in a staging
directory next to it and renamed when the last file is closed.
"""

import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from tqdm import tqdm

from data_pipeline.errors import DataError
from data_pipeline.file_checks import check_name
from data_pipeline.shards import BadRecords, Shard, Written, plan_shards, write_shard
from data_pipeline.sources.scene_graphs import check_survival
from data_pipeline.sources.source import Source, graph_files
from data_pipeline.split_statistics import Statistics
from data_pipeline.staging import publish, staging

# The accelerator belongs to JAX; TensorFlow would reserve all of its memory at its first operation.
tf.config.set_visible_devices([], "GPU")

VERSION = "1.0.0"
_INFO = "dataset_info.json"  # A dataset is complete when it is there.
LEFT_OUT = "left_out.txt"  # a line for each image that a build left out


def schema(feature_width: int) -> tfds.features.FeaturesDict:
    """Features of a record: R regions of width F, E relations, L word-to-region links.

    Arrays are raw little-endian bytes (see `decoding.py`). Keys are those of a
    source's record, plus image_id, index and `first_caption`, which come from its contents.
    """

    def array(dtype: type, *shape: int | None) -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")

    return tfds.features.FeaturesDict(
        {
            "image_id": tfds.features.Scalar(np.int64),  # Unique in the split, 0 .. 2^31 - 1.
            # Row in the source's split, from 0; an image that was left out leaves a gap.
            "index": tfds.features.Scalar(np.int64),
            "first_caption": tfds.features.Scalar(np.int64),  # Captions of the rows before it.
            "file_name": tfds.features.Text(),
            "size": array(np.int32, 2),  # Width and height in pixels; 0, 0 where unknown.
            "regions": array(np.float16, None, feature_width),
            "boxes": array(np.float32, None, 4),  # [R, 4] x1, y1, x2, y2 in 0..1.
            "object_labels": array(np.int32, None),  # [R], or empty.
            # [E, 3] subject, predicate id, object, by descending confidence: the best come first.
            "relations": array(np.int32, None, 3),
            "relation_scores": array(np.float32, None),  # [E] their confidences, finite.
            "captions": tfds.features.Sequence(tfds.features.Text()),
            # [L, 4] caption number, first character, one past the last one, region.
            "links": array(np.int32, None, 4),
        }
    )


def dataset_path(data_dir: str | os.PathLike[str], name: str) -> epath.Path:
    """Where the dataset called name lies, built or not; data_dir may be a bucket (gs://...)."""
    return epath.Path(_directory(data_dir, name))


def _directory(data_dir: str | os.PathLike[str], name: str) -> str:
    return os.path.join(os.fspath(data_dir), "region_captions", name, VERSION)


WriteShards = Callable[[Sequence[Shard], Source, str, BadRecords], list[Written]]


def write_in_turn(
    shards: Sequence[Shard], source: Source, directory: str, on_bad: BadRecords
) -> list[Written]:
    """Writes all shards into a directory, with a progress bar for each split."""
    written: list[Written] = []
    features = schema(source.feature_width)
    for split, own in itertools.groupby(shards, key=lambda shard: shard.split):
        parts = list(own)
        with tqdm(total=parts[-1].stop, desc=split, unit=" images") as bar:
            for shard in parts:
                written.append(write_shard(shard, source, directory, features, on_bad, bar.update))
                on_bad.check([message for done in written for message in done.left_out])
    return written


def build_dataset(
    source: Source,
    data_dir: str | os.PathLike[str],
    overwrite: bool = False,
    on_bad: BadRecords = BadRecords(),  # noqa: B008 - it cannot be changed
    write: WriteShards = write_in_turn,
) -> bool:
    """Writes the source's records; returns False where the dataset was there and was left alone.

    An older dataset is replaced only when the new one is complete.

    Args:
      source: of the records.
      data_dir: where datasets are; may be a bucket (gs://...).
      overwrite: replace an older dataset.
      on_bad: what becomes of images that cannot be read.
      write: writes the files; `beam_build.BeamWriter` does so with many workers.

    Raises:
      DataError: where the source does, or another process is building the same dataset.
    """
    check_name(source.name, "--name")
    path = _directory(data_dir, source.name)
    if tf.io.gfile.exists(os.path.join(path, _INFO)) and not overwrite:
        return False
    features = schema(source.feature_width)
    with staging(os.path.dirname(path)) as directory, tempfile.TemporaryDirectory() as local:
        shards = plan_shards(source, features)
        written = write(shards, source, directory, on_bad)
        on_bad.check([message for done in written for message in done.left_out])
        # Here first: TFDS, which writes it, knows fewer file systems than gfile.
        write_info(local, source, features, written)
        names = sorted(os.listdir(local), key=lambda name: name == _INFO)
        for name in names:
            tf.io.gfile.copy(os.path.join(local, name), os.path.join(directory, name))
        publish(directory, path, [*(shard.file_name for shard in shards), *names])
    return True


def write_info(
    directory: str, source: Source, features: tfds.features.FeaturesDict, written: Sequence[Written]
) -> None:
    """Writes what makes the files of a directory a dataset, `dataset_info.json` last.

    Metadata: labels and predicates, word counts of the split "train", figures of every split, and
    how many images were left out of it; `left_out.txt` says why.
    """
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name="region_captions",
            version=tfds.core.Version(VERSION),
            data_dir=directory,
            module_name=__name__,
            config_name=source.name,
        ),
        description="Images as region features, with captions and optional scene graphs.",
        features=features,
        metadata=tfds.core.MetadataDict(_metadata(source, written)),
        disable_shuffling=True,
    )
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[done.records for done in parts],
            num_bytes=sum(done.num_bytes for done in parts),
        )
        for split, parts in _by_split(written).items()
    ]
    info.set_splits(tfds.core.splits.SplitDict(splits))
    if left_out := [message for done in written for message in done.left_out]:
        Path(directory, LEFT_OUT).write_text("\n".join(left_out) + "\n")
    info.write_to_directory(directory)


def _by_split(written: Sequence[Written]) -> dict[str, list[Written]]:
    splits: dict[str, list[Written]] = {}
    for done in written:
        splits.setdefault(done.shard.split, []).append(done)
    return splits


def _metadata(source: Source, written: Sequence[Written]) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "source": type(source).__name__,
        "feature_width": source.feature_width,
        "labels": list(source.labels),
        "predicates": list(source.predicates),
        "word_counts": {},
        "splits": {},
        "left_out": {},
    }
    with_relations = 0
    for split, parts in _by_split(written).items():
        total = Statistics()
        for done in parts:
            total.merge(done.statistics)
        if not total.images:
            raise DataError(f"{source.name}/{split} has no image that can be read")
        metadata["splits"][split] = total.summary()
        with_relations += total.with_relations
        metadata["left_out"][split] = sum(len(done.left_out) for done in parts)
        if split == "train":
            # By count, then by word: the same however many parts were added up.
            ordered = sorted(total.words.items(), key=lambda pair: (-pair[1], pair[0]))
            metadata["word_counts"] = dict(ordered)
    check_survival(graph_files(source), with_relations)
    return metadata


def open_dataset(data_dir: str | os.PathLike[str], name: str) -> tfds.core.DatasetBuilder:
    """The dataset called name, ready to read; DataError with the command to build it if absent.

    `.info.metadata` has the labels, predicates, word counts and the figures of every split.
    """
    path = dataset_path(data_dir, name)
    if not (path / _INFO).exists():
        found = sorted(info.parts[-3] for info in path.parents[1].glob(f"*/{VERSION}/{_INFO}"))
        raise DataError(
            f"no dataset {name!r} (version {VERSION}) in {data_dir}, which has "
            f"{', '.join(found) or 'none'}; build it of features (python -m data_pipeline.build "
            f"--help), of images (python -m data_pipeline.extract --help), or of drawn scenes: "
            f"python -m data_pipeline.build synthetic --name {name} --out {data_dir}"
        )
    return tfds.builder_from_directory(path)


def split_info(builder: tfds.core.DatasetBuilder, split: str) -> tfds.core.SplitInfo:
    """Number of records and files of a split; DataError that lists the splits if there is none."""
    if split not in builder.info.splits:
        known = ", ".join(builder.info.splits)
        raise DataError(f"{builder.info.full_name} has no split {split!r}; use one of: {known}")
    return builder.info.splits[split]


def find_damage(builder: tfds.core.DatasetBuilder, split: str) -> str | None:
    """Reads a split file by file and says in one line what is wrong with it, None if nothing is.

    tf.data reports an offset without the file it is in, and takes a file cut between two records
    for a shorter one.
    """
    info = split_info(builder, split)
    remedy = "build the dataset again with python -m data_pipeline.build ... --overwrite"
    for path, expected in zip(info.filepaths, info.shard_lengths, strict=True):
        offset = records = 0
        try:
            for record in tf.data.TFRecordDataset(os.fspath(path)).as_numpy_iterator():
                offset += len(record) + 16  # Length, its checksum, and the data's checksum.
                records += 1
        except tf.errors.DataLossError:
            return f"{path} is damaged in the record at byte {offset}; {remedy}"
        except tf.errors.NotFoundError:
            return f"{path} is missing; {remedy}"
        if records != expected:
            return f"{path} ends at byte {offset} after {records} of {expected} records; {remedy}"
    return None
