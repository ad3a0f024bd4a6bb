"""The dataset on disk: one record an image, with its regions once and all of its captions.

`schema` is the only description of a record: sources yield it, `build_dataset` writes it as
TFRecord shards with TFDS, and `input_pipeline` derives its parser from it. A dataset lies in
`DATA_DIR/region_captions/NAME/VERSION/` and is complete or absent: it is written in a staging
directory next to it and renamed when the last file is closed.
"""

import collections
import contextlib
import fcntl
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np

# No arithmetic is done here, and without these TensorFlow greets with notes on its CPU kernels.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import shard_utils
from tqdm import tqdm

from data_pipeline.errors import DataError
from data_pipeline.file_checks import check_relations
from data_pipeline.sources import Source
from data_pipeline.tokenizer import find_words

# The accelerator belongs to JAX; TensorFlow would reserve all of its memory at its first operation.
tf.config.set_visible_devices([], "GPU")

VERSION = "1.0.0"
_MIN_SHARDS = 8  # Enough files to interleave, however small the dataset.
_KEY_SPACE = 2**128  # TFDS sorts records by keys of 128 bits.


def schema(feature_width: int) -> tfds.features.FeaturesDict:
    """Features of a record: R regions of width F, E relations, L word-to-region links.

    Arrays are raw little-endian bytes (measured fastest to write and to read). Keys are those of a
    source's record, plus `first_caption`, which the builder counts.
    """

    def array(dtype: type, *shape: int | None) -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")

    return tfds.features.FeaturesDict(
        {
            "image_id": tfds.features.Scalar(np.int64),  # Unique in the split, 0 .. 2^31 - 1.
            "index": tfds.features.Scalar(np.int64),  # Row in the source's split, from 0.
            "first_caption": tfds.features.Scalar(np.int64),  # Captions of the images before it.
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


class RegionCaptions(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """TFDS builder of one source. Metadata: see `_generate_examples` and `_Statistics`."""

    VERSION = tfds.core.Version(VERSION)
    # TFDS would look for checksums beside the code, with a package that it does not declare.
    code_path = None

    def __init__(self, source: Source, data_dir: str | os.PathLike[str]) -> None:
        self._source = source
        config = tfds.core.BuilderConfig(name=source.name, version=VERSION)
        super().__init__(data_dir=os.fspath(data_dir), config=config)

    def _info(self) -> tfds.core.DatasetInfo:
        metadata = {
            "source": type(self._source).__name__,
            "feature_width": self._source.feature_width,
            "labels": list(self._source.labels),
            "predicates": list(self._source.predicates),
            "word_counts": {},  # Of the split "train".
            "splits": {},
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images as region features, with captions and optional scene graphs.",
            features=schema(self._source.feature_width),
            metadata=tfds.core.MetadataDict(metadata),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # Sources are local.
        filled = [split for split in self._source.splits() if self._source.count(split)]
        return {split: self._generate_examples(split) for split in filled}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        """Yields (key, record); the dataset's metadata is filled in when the split is through."""
        count, statistics = self._source.count(split), _Statistics()
        seen: set[int] = set()
        records = tqdm(self._source.examples(split), split, total=count, unit=" images")
        for index, record in enumerate(records):
            where = f"{self._source.name}/{split}"
            _check_record(record, where, index, seen, len(self._source.predicates))
            # Keys spread over the whole key space: with small ones TFDS would sort everything in
            # one bucket, that is to say in memory.
            yield index * (_KEY_SPACE // count), record | {"first_caption": statistics.captions}
            statistics.add(record)
        if statistics.images != count:
            raise DataError(
                f"{self._source.name}/{split} announces {count} records and gives "
                f"{statistics.images}; correct the source's count()"
            )
        self.info.metadata["splits"][split] = statistics.summary()
        if split == "train":
            self.info.metadata["word_counts"] = dict(statistics.words.most_common())


class _Statistics:
    """Running figures of a split."""

    def __init__(self) -> None:
        self.images = self.captions = self.longest = 0
        self.words: collections.Counter[str] = collections.Counter()
        self._region_counts: set[int] = set()

    def add(self, record: dict[str, Any]) -> None:
        self.images += 1
        self.captions += len(record["captions"])
        self._region_counts.add(len(record["regions"]))
        for caption in record["captions"]:
            words = find_words(caption)
            self.words.update(words)
            self.longest = max(self.longest, len(words))

    def summary(self) -> dict[str, float]:
        """What the metadata keeps of a split (regions: of an image; words: of a caption)."""
        return {
            "images": self.images,
            "captions": self.captions,
            "min_regions": min(self._region_counts),
            "max_regions": max(self._region_counts),
            "mean_words": round(self.words.total() / self.captions, 2),
            "max_words": self.longest,
            "vocabulary": len(self.words),
        }


def _check_record(
    record: dict[str, Any], where: str, index: int, seen: set[int], predicates: int
) -> None:
    """What a source promises beyond dtypes and shapes, which TFDS checks."""
    image_id = int(record["image_id"])
    if int(record["index"]) != index:
        raise DataError(f"{where} record {index} has index {record['index']}; number them from 0")
    if image_id in seen:
        raise DataError(f"{where} record {index}: image_id {image_id} repeats; make ids unique")
    if not 0 <= image_id < 2**31:
        raise DataError(
            f"{where} record {index}: image_id {image_id} is not in 0 .. 2^31 - 1, the integers "
            "that JAX keeps exact; renumber the images"
        )
    if not len(record["regions"]) or not record["captions"]:
        raise DataError(
            f"{where} record {index} (image_id {image_id}) has {len(record['regions'])} regions "
            f"and {len(record['captions'])} captions; leave images without either out"
        )
    check_relations(
        record["relations"],
        record["relation_scores"],
        len(record["regions"]),
        predicates,
        f"{where} record {index} (image_id {image_id})",
    )
    seen.add(image_id)


class _ShardConfig(shard_utils.ShardConfig):
    """TFDS's own choice (64 MiB to 1 GiB a shard), but never fewer than `_MIN_SHARDS` files."""

    def get_number_shards(
        self, total_size: int, num_examples: int, uses_precise_sharding: bool = True
    ) -> int:
        chosen = super().get_number_shards(total_size, num_examples, uses_precise_sharding)
        return max(chosen, min(_MIN_SHARDS, num_examples))


class _DownloadConfig(tfds.download.DownloadConfig):
    def get_shard_config(self) -> shard_utils.ShardConfig:
        return _ShardConfig()


def dataset_path(data_dir: str | os.PathLike[str], name: str) -> Path:
    """Where the dataset called name lies, built or not."""
    return Path(data_dir) / "region_captions" / name / VERSION


def build_dataset(
    source: Source, data_dir: str | os.PathLike[str], overwrite: bool = False
) -> bool:
    """Writes the source's records; returns False where the dataset was there and was left alone.

    An older dataset is replaced only when the new one is complete. Raises DataError where the
    source does, and where another process is building the same dataset.
    """
    path = dataset_path(data_dir, source.name)
    if path.exists() and not overwrite:
        return False
    with _staging(path.parent) as staging, _quiet_tfds():
        builder = RegionCaptions(source, staging)
        builder.download_and_prepare(download_config=_DownloadConfig(try_download_gcs=False))
        if path.exists():
            shutil.rmtree(path)
        Path(builder.data_dir).rename(path)
    return True


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Silences what TFDS says of downloads and its progress bars: ours know the totals."""
    tfds.disable_progress_bar()
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _staging(parent: Path) -> Iterator[Path]:
    """An empty directory for one build; what a killed build left in it is removed first."""
    parent.mkdir(parents=True, exist_ok=True)
    staging = parent / ".staging"
    with open(parent / ".lock", "w") as lock:
        try:
            # The system lets go of it when the process ends, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another process is building in {parent}; wait for it") from None
        shutil.rmtree(staging, ignore_errors=True)
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def open_dataset(data_dir: str | os.PathLike[str], name: str) -> tfds.core.DatasetBuilder:
    """The dataset called name, ready to read; DataError with the command to build it if absent.

    `.info.metadata` has the labels, predicates, word counts and the figures of every split.
    """
    path = dataset_path(data_dir, name)
    if not (path / "dataset_info.json").is_file():
        found = sorted(
            info.parts[-3] for info in path.parents[1].glob(f"*/{VERSION}/dataset_info.json")
        )
        raise DataError(
            f"no dataset {name!r} (version {VERSION}) in {data_dir}, which has "
            f"{', '.join(found) or 'none'}; build it: python -m data_pipeline.build scan DIRECTORY "
            f"--name {name} --out {data_dir}, or, for drawn scenes, python -m data_pipeline.build "
            f"synthetic --name {name} --out {data_dir}"
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
