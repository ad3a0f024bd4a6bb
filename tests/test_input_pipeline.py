"""Batches: contents against the source's records, position, sharding over processes, damage."""

import functools
import itertools
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from data_pipeline import input_pipeline, reading
from data_pipeline.catalog import feature_width, links, predicates, texts
from data_pipeline.decoding import make_decoder
from data_pipeline.drawn_captions import drawn_captions
from data_pipeline.errors import DataError
from data_pipeline.input_pipeline import (
    caption_batches,
    image_batches,
    steps_per_epoch,
    text_batches,
    train_batches,
)
from data_pipeline.region_captions import build_dataset, open_dataset
from data_pipeline.sources import Contents, examples
from data_pipeline.streams import stream_spans
from data_pipeline.tokenizer import WordTokenizer, find_words

COUNT, BATCH, REGIONS, TOKENS = 43, 8, 4, 6
STEPS = COUNT // BATCH


class Uneven:
    """COUNT images with 2 to 6 regions, 1 to 4 captions and, on every third, no object labels.

    They have 0 to 8 relations, whose confidences are quarters, so that many are equal.
    """

    name, labels, predicates, feature_width = "uneven", ["thing"], ["on", "by"], 3

    def splits(self):
        return ["train", "test"]

    def contents(self, split):
        count = COUNT if split == "train" else 10
        return Contents(1000 - 7 * np.arange(count), 1 + np.arange(count) % 4)

    def read(self, split, index):
        return self._records(split)[index]

    @functools.cache  # noqa: B019
    def _records(self, split):
        rng, records = np.random.default_rng(len(split)), []
        for index in range(len(self.contents(split).image_ids)):
            regions, captions = 2 + index % 5, 1 + index % 4
            record = {
                "file_name": "",
                "size": np.zeros(2, np.int32),
                "regions": rng.normal(size=(regions, 3)).astype(np.float16),
                "boxes": rng.uniform(size=(regions, 4)).astype(np.float32),
                "object_labels": np.arange(regions if index % 3 else 0, dtype=np.int32),
                **self.graph(rng, index, regions),
                "captions": [f"word{index} is caption number{k}" for k in range(captions)],
                "links": np.array(
                    [[k, k, k + 4, index % regions] for k in range(captions)], np.int32
                ),
            }
            records.append(record)
        return records

    def graph(self, rng, index, regions):
        scores = rng.integers(-1, 4, size=index % 9) / 4
        return {
            "relations": rng.integers([regions, 2, regions], size=(index % 9, 3)).astype(np.int32),
            "relation_scores": -np.sort(-scores).astype(np.float32),
        }


class Plain(Uneven):
    """The same without scene graphs."""

    name, predicates = "plain", []

    def graph(self, rng, index, regions):
        return {"relations": np.zeros((0, 3), np.int32), "relation_scores": np.zeros(0, np.float32)}


class Unsorted(Uneven):
    """The same with confidences in any order."""

    name = "unsorted"

    def graph(self, rng, index, regions):
        graph = super().graph(rng, index, regions)
        return graph | {"relation_scores": rng.permutation(graph["relation_scores"])}


class Wordy(Uneven):
    """The same with captions of 1 to 9 words, mostly of few."""

    name = "wordy"

    def read(self, split, index):
        record = super().read(split, index)
        lengths = [9 if index % 20 == 7 else 1 + (index + k) % 4 for k in range(1 + index % 4)]
        captions = [" ".join(["word"] * words) for words in lengths]
        return record | {"captions": captions, "links": np.zeros((0, 4), np.int32)}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    build_dataset(Uneven(), directory)
    return directory


@pytest.fixture(scope="module")
def builder(data_dir):
    return open_dataset(data_dir, "uneven")


@pytest.fixture(scope="module")
def records():
    return {int(record["image_id"]): record for record in examples(Uneven(), "train")}


@pytest.fixture(scope="module")
def first_captions(records):
    """First caption_id of every image, by counting."""
    counts = [len(record["captions"]) for record in records.values()]
    return dict(zip(records, np.cumsum([0, *counts[:-1]]), strict=True))


@pytest.fixture(scope="module")
def tokenizer(builder):
    return WordTokenizer.from_counts(builder.info.metadata["word_counts"], 1)


@pytest.fixture
def batches(builder, tokenizer):
    """train_batches with the arguments that most tests share."""

    def make(count, **changes):
        arguments = {
            **{"split": "train", "tokenizer": tokenizer, "batch_size": BATCH, "seed": 3},
            **{"start_step": 0, "max_regions": REGIONS, "max_tokens": TOKENS},
            **{"shuffle_buffer": 10},
        }
        return list(itertools.islice(train_batches(builder, **(arguments | changes)), count))

    return make


def assert_same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def check_image(batch, row, record):
    """The image half of a row against the record, padded here by hand."""
    kept = min(len(record["regions"]), REGIONS)
    for r in range(REGIONS):
        real = r < kept
        assert batch["region_mask"][row, r] == real
        np.testing.assert_array_equal(
            batch["regions"][row, r], record["regions"][r] if real else np.zeros(3)
        )
        np.testing.assert_array_equal(
            batch["boxes"][row, r], record["boxes"][r] if real else np.zeros(4)
        )
        labelled = real and len(record["object_labels"]) > r
        assert batch["object_labels"][row, r] == (record["object_labels"][r] if labelled else -1)


def test_training_batches_hold_what_the_records_hold(batches, records, tokenizer, first_captions):
    for batch in batches(STEPS):
        for row, image_id in enumerate(batch["image_id"]):
            record = records[int(image_id)]
            check_image(batch, row, record)
            number = batch["caption_id"][row] - first_captions[int(image_id)]
            expected = tokenizer.encode([record["captions"][number]], TOKENS)
            np.testing.assert_array_equal(batch["tokens"][row], expected.ids[0])
            np.testing.assert_array_equal(batch["token_mask"][row], expected.mask[0])
        assert batch["mask"].all()


def test_dtypes_and_shapes_are_the_contract(batches):
    (batch,) = batches(1)
    assert {key: (value.dtype.name, value.shape) for key, value in batch.items()} == {
        "regions": ("float16", (BATCH, REGIONS, 3)),
        "boxes": ("float32", (BATCH, REGIONS, 4)),
        "region_mask": ("bool", (BATCH, REGIONS)),
        "object_labels": ("int32", (BATCH, REGIONS)),
        "tokens": ("int32", (BATCH, TOKENS)),
        "token_mask": ("bool", (BATCH, TOKENS)),
        "image_id": ("int64", (BATCH,)),
        "caption_id": ("int64", (BATCH,)),
        "mask": ("bool", (BATCH,)),
    }


RELATION_KEYS = {"relations", "relation_scores", "relation_mask"}


def stored_records(builder):
    """Image id -> record, as TFDS itself reads the dataset."""
    stored = builder.as_dataset(split="train").as_numpy_iterator()
    return {int(record["image_id"]): record for record in stored}


def expected_relations(record, count):
    """The rows of one image, made by hand: drop what was cut away, sort, cut, pad."""
    found = zip(record["relation_scores"].tolist(), record["relations"].tolist(), strict=True)
    found = [(score, row) for score, row in found if row[0] < REGIONS and row[2] < REGIONS]
    found = sorted(found, key=lambda pair: -pair[0])[:count]
    padding = count - len(found)
    return {
        "relations": [row for _, row in found] + [[0, 0, 0]] * padding,
        "relation_scores": [score for score, _ in found] + [0.0] * padding,
        "relation_mask": [True] * len(found) + [False] * padding,
    }


def check_relations(batch, records, count):
    shapes = {"relations": (count, 3), "relation_scores": (count,), "relation_mask": (count,)}
    dtypes = {"relations": np.int32, "relation_scores": np.float32, "relation_mask": bool}
    rows = [expected_relations(records[int(image_id)], count) for image_id in batch["image_id"]]
    for key in RELATION_KEYS:
        assert batch[key].dtype == dtypes[key] and batch[key].shape == (len(rows), *shapes[key])
        np.testing.assert_array_equal(batch[key], [row[key] for row in rows], err_msg=key)


# One, fewer than most images have, as many as the longest record has, more than any.
@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_relations_are_the_best_among_the_regions_kept(builder, batches, count):
    records = stored_records(builder)
    for batch in batches(STEPS, max_relations=count):
        check_relations(batch, records, count)
    arguments = {"split": "train", "batch_size": BATCH, "max_regions": REGIONS}
    stream = list(image_batches(builder, **arguments, max_relations=count))
    ids = np.concatenate([batch["image_id"][batch["mask"]] for batch in stream])
    assert ids.tolist() == list(records)
    for batch in stream:
        check_relations(batch, records, count)


def test_the_relations_tried_have_every_difficulty(builder):
    records = stored_records(builder).values()
    lost = [(record["relations"][:, ::2] >= REGIONS).any(axis=1) for record in records]
    assert any(len(cut) == 0 for cut in lost) and any(cut.any() for cut in lost)
    assert any(cut[:3].any() and not cut[3:].all() for cut in lost)  # A later one moves up.
    assert any(not cut.any() and len(cut) > 3 for cut in lost)
    scores = [record["relation_scores"] for record in records]
    assert any(len(s) > 3 and s[2] == s[3] for s in scores)  # A tie where E = 3 cuts.
    assert any((s < 0).any() for s in scores)  # Negative ones precede padding all the same.


def test_only_relations_are_added(builder, batches):
    arguments = {"split": "train", "batch_size": BATCH, "max_regions": REGIONS}
    images = lambda **more: list(image_batches(builder, **arguments, **more))
    for make in (images, lambda **more: batches(2, **more)):
        without, added = make(), make(max_relations=2)
        assert not RELATION_KEYS & without[0].keys()
        assert_same(make(max_relations=0), without)
        for batch in added:
            for key in RELATION_KEYS:
                del batch[key]
        assert_same(added, without)


def test_a_late_start_and_processes_continue_the_same_relations(batches):
    whole = batches(2 * STEPS + 3, max_relations=3)
    for start in (1, STEPS + 2):
        assert_same(batches(STEPS, start_step=start, max_relations=3), whole[start : start + STEPS])
    part = batches(3, rows=np.arange(4, 8), max_relations=3)
    assert_same(part, [{key: value[4:] for key, value in batch.items()} for batch in whole[:3]])


def test_without_scene_graphs_every_relation_is_padding(tmp_path):
    build_dataset(Plain(), tmp_path)
    plain = open_dataset(tmp_path, "plain")
    assert predicates(plain) == []
    arguments = {"split": "train", "batch_size": BATCH, "max_regions": REGIONS}
    for batch in image_batches(plain, **arguments, max_relations=5):
        assert batch["relations"].shape == (BATCH, 5, 3) and not batch["relations"].any()
        assert batch["relation_scores"].shape == batch["relation_mask"].shape == (BATCH, 5)
        assert not batch["relation_scores"].any() and not batch["relation_mask"].any()


def test_unsorted_relations_are_refused_and_where_stored_still_cut_right(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="sort relations and relation_scores by descending"):
        build_dataset(Unsorted(), tmp_path)
    # As datasets were built before sources had to sort.
    monkeypatch.setattr("data_pipeline.records.check_relations", lambda *_: None)
    build_dataset(Unsorted(), tmp_path)
    builder = open_dataset(tmp_path, "unsorted")
    records = stored_records(builder)
    assert any((np.diff(record["relation_scores"]) > 0).any() for record in records.values())
    arguments = {"split": "train", "batch_size": BATCH, "max_regions": REGIONS}
    for batch in image_batches(builder, **arguments, max_relations=3):
        check_relations(batch, records, 3)


def test_an_epoch_shows_no_image_twice_and_epochs_differ(batches, records):
    stream = batches(3 * STEPS)
    orders = [
        np.concatenate([batch["image_id"] for batch in stream[epoch * STEPS : (epoch + 1) * STEPS]])
        for epoch in range(3)
    ]
    for order in orders:
        assert len(set(order.tolist())) == STEPS * BATCH and set(order.tolist()) <= set(records)
    assert (orders[0] != orders[1]).any() and (orders[1] != orders[2]).any()
    assert orders[0].tolist() != sorted(orders[0].tolist())


@pytest.mark.parametrize("start", [1, STEPS - 1, STEPS, 2 * STEPS + 2])
def test_a_late_start_continues_the_same_stream(batches, start):
    assert_same(batches(STEPS + 1, start_step=start), batches(start + STEPS + 1)[start:])


def test_the_seed_decides(batches):
    assert_same(batches(STEPS + 2), batches(STEPS + 2))
    one, two = (batches(1, seed=seed)[0]["image_id"].tolist() for seed in (1, 2))
    assert one != two


@pytest.mark.parametrize("streams", [1, 2, 8])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [4, 5, 6, 7], [2, 3], [0, 5, 7]])
def test_processes_share_the_global_batch(batches, streams, rows):
    whole = batches(STEPS + 1, streams=streams)
    part = batches(STEPS + 1, rows=np.array(rows), streams=streams)
    assert_same(part, [{key: value[rows] for key, value in batch.items()} for batch in whole])


@pytest.mark.parametrize("streams", [2, 4])
def test_streams_are_an_epoch_of_other_order(batches, records, streams):
    per_stream = COUNT // streams // (BATCH // streams)
    assert per_stream == STEPS
    one, many = batches(2 * STEPS), batches(2 * STEPS, streams=streams)
    for epoch in range(2):
        of_epoch = many[epoch * STEPS : (epoch + 1) * STEPS]
        order = np.concatenate([batch["image_id"] for batch in of_epoch])
        assert len(set(order.tolist())) == STEPS * BATCH and set(order.tolist()) <= set(records)
    assert any((a["image_id"] != b["image_id"]).any() for a, b in zip(one, many, strict=True))
    start = STEPS + 2
    assert_same(batches(2, streams=streams, start_step=start), many[start : start + 2])


def test_a_process_reads_the_files_of_its_streams_only(data_dir, tmp_path, tokenizer):
    shutil.copytree(data_dir, tmp_path / "data")
    copy = open_dataset(tmp_path / "data", "uneven")
    info = copy.info.splits["train"]
    order = np.random.default_rng([3, 0]).permutation(len(info.shard_lengths))
    # The first of two streams needs the first files, up to half of the records; all others go.
    ends = np.cumsum(np.array(info.shard_lengths)[order])
    needed = set(order[: np.searchsorted(ends, COUNT // 2) + 1].tolist())
    assert 0 < len(needed) < len(order)
    for number, path in enumerate(info.filepaths):
        if number not in needed:
            Path(path).unlink()
    read = lambda rows: list(
        itertools.islice(
            train_batches(
                copy, split="train", tokenizer=tokenizer, batch_size=BATCH, seed=3, start_step=0,
                max_regions=REGIONS, max_tokens=TOKENS, streams=2, rows=np.array(rows),
            ),
            STEPS,
        )
    )  # fmt: skip
    assert len(read([0, 1, 2, 3])) == STEPS
    with pytest.raises(DataError, match="is missing"):
        read([4, 5, 6, 7])


def test_spans_cut_the_files_into_equal_streams():
    rng = np.random.default_rng(0)
    for streams in (1, 2, 3, 7):
        lengths = rng.integers(0, 6, size=9).tolist()
        order = rng.permutation(9)
        records = [(file, k) for file in order for k in range(lengths[file])]
        size = len(records) // streams
        spans = stream_spans(lengths, order, streams)
        found = [[(s.file, s.start + k) for s in part for k in range(s.size)] for part in spans]
        assert found == [records[i * size : (i + 1) * size] for i in range(streams)]


def test_n_epochs_show_each_of_n_captions_once(batches, records, first_captions):
    seen = {image_id: [] for image_id in records}
    # One batch of all images an epoch: nothing is dropped.
    for batch in batches(12, batch_size=COUNT):
        for image_id, caption_id in zip(batch["image_id"], batch["caption_id"], strict=True):
            seen[int(image_id)].append(int(caption_id - first_captions[int(image_id)]))
    for image_id, numbers in seen.items():
        n = len(records[image_id]["captions"])
        assert all(sorted(numbers[i : i + n]) == list(range(n)) for i in range(0, 12, n))


def test_first_captions_are_spread_evenly():
    drawn = drawn_captions(np.arange(10_000), np.full(10_000, 5), seed=0, epoch=0)
    shares = np.bincount(drawn, minlength=5) / len(drawn)
    np.testing.assert_allclose(shares, 0.2, atol=0.015)  # Standard deviation: 0.004.
    other = drawn_captions(np.arange(10_000), np.full(10_000, 5), seed=1, epoch=0)
    assert 0.18 < (drawn == other).mean() < 0.22


def test_image_batches_are_every_image_once_in_order(builder, records):
    stream = list(image_batches(builder, split="train", batch_size=BATCH, max_regions=REGIONS))
    assert all(batch["mask"].shape == (BATCH,) for batch in stream)
    ids = np.concatenate([batch["image_id"][batch["mask"]] for batch in stream])
    assert ids.tolist() == list(records)
    for batch in stream:
        for row, image_id in enumerate(batch["image_id"]):
            check_image(batch, row, records[int(image_id)])  # Filler rows are real images.
    assert stream[-1]["mask"].tolist() == [True] * (COUNT % BATCH) + [False] * (-COUNT % BATCH)


def test_caption_batches_are_every_caption_once_in_order(builder, records, tokenizer):
    stream = list(
        caption_batches(
            builder, split="train", tokenizer=tokenizer, batch_size=BATCH, max_tokens=TOKENS
        )
    )
    expected = [
        (image_id, number, caption)
        for image_id, record in records.items()
        for number, caption in enumerate(record["captions"])
    ]
    rows = [
        (int(batch["image_id"][i]), int(batch["caption_number"][i]), batch, i)
        for batch in stream
        for i in np.flatnonzero(batch["mask"])
    ]
    assert [(row[0], row[1]) for row in rows] == [(entry[0], entry[1]) for entry in expected]
    assert [int(batch["caption_id"][i]) for _, _, batch, i in rows] == list(range(len(expected)))
    for (_, _, batch, i), (_, _, caption) in zip(rows, expected, strict=True):
        spans = batch["offsets"][i, 1:5]
        assert [caption[start:end] for start, end in spans] == find_words(caption)
        assert len(batch["tokens"][i]) == TOKENS and batch["token_mask"][i].sum() == 6
    assert all(len(batch["tokens"]) == BATCH for batch in stream)


def test_texts_are_in_the_order_of_the_batches(builder, records, tokenizer):
    found = texts(builder, "train")
    assert found.image_id.tolist() == list(records)
    assert found.counts.tolist() == [len(record["captions"]) for record in records.values()]
    assert found.captions == [c for record in records.values() for c in record["captions"]]
    assert set(found.file_names) == {""}
    sizes = dict(tokenizer=tokenizer, batch_size=BATCH, max_tokens=TOKENS)
    expected = list(caption_batches(builder, split="train", **sizes))
    for name, own in (("image_id", found.caption_image_id), ("caption_id", found.caption_id)):
        assert own.tolist() == [int(n) for b in expected for n in b[name][b["mask"]]]
    again = list(text_batches(found.captions, found.caption_image_id, **sizes))
    for batch, other in zip(again, expected, strict=True):
        for name in ("tokens", "token_mask", "offsets", "mask", "image_id", "caption_id"):
            np.testing.assert_array_equal(batch[name], other[name])


def test_links_point_from_captions_to_regions(builder, records):
    expected, caption_id = [], 0
    for record in records.values():
        for number, start, end, region in record["links"].tolist():
            expected.append((caption_id + number, start, end, region))
        caption_id += len(record["captions"])
    assert (
        list(zip(*(column.tolist() for column in links(builder, "train")), strict=True)) == expected
    )


def test_sizes_and_mistakes(builder, batches, tokenizer):
    assert feature_width(builder) == 3
    assert steps_per_epoch(builder, "train", BATCH) == STEPS
    assert predicates(builder) == ["on", "by"]
    for attempt, what in (
        (lambda: texts(builder, "val"), "no split 'val'; use one of: train, test"),
        (lambda: batches(1, batch_size=COUNT + 1), "has 43 images; use 1 to 43"),
        (lambda: batches(1, rows=np.array([], int)), "rows=[] are not some of 0..7"),
        (lambda: batches(1, rows=np.array([5, 1])), "rows=[5 1] are not some of 0..7"),
        (lambda: batches(1, rows=np.array([1, 8])), "rows=[1 8] are not some of 0..7"),
        (lambda: batches(1, streams=3), "streams=3 do not divide batch_size=8; use a divisor"),
        (lambda: batches(1, max_relations=-1), "max_relations=-1 is negative; use 0 for none"),
    ):
        with pytest.raises(DataError) as caught:
            attempt()
        assert what in str(caught.value) and "\n" not in str(caught.value)


def flip_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def first_record_end(path):
    return int.from_bytes(path.read_bytes()[:8], "little") + 16


DAMAGE = {
    "a byte flipped": (flip_byte, "is damaged in the record at byte"),
    "cut within a record": (
        lambda path: path.write_bytes(path.read_bytes()[: first_record_end(path) + 20]),
        "is damaged in the record at byte {first}",
    ),
    # TensorFlow takes less than a record's 12 bytes of header for the end of the file.
    "cut within a header": (
        lambda path: path.write_bytes(path.read_bytes()[: first_record_end(path) + 7]),
        "ends at byte {first} after 1 of",
    ),
    "cut between records": (
        lambda path: path.write_bytes(path.read_bytes()[: first_record_end(path)]),
        "ends at byte {first} after 1 of",
    ),
    "removed": (lambda path: path.unlink(), "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_named(data_dir, tmp_path, tokenizer, damage):
    shutil.copytree(data_dir, tmp_path / "data")
    copy = open_dataset(tmp_path / "data", "uneven")
    path = copy.data_path / "region_captions-train.tfrecord-00003-of-00008"
    first = first_record_end(path)
    change, expected = DAMAGE[damage]
    change(path)
    readers = (
        image_batches(copy, split="train", batch_size=BATCH, max_regions=REGIONS),
        train_batches(
            copy,
            **{"split": "train", "tokenizer": tokenizer, "batch_size": BATCH, "seed": 0},
            **{"start_step": 0, "max_regions": REGIONS, "max_tokens": TOKENS},
        ),
    )
    for reader in readers:
        with pytest.raises(DataError) as caught:
            list(itertools.islice(reader, 10 * STEPS))
        message = str(caught.value)
        assert f"{path} {expected.format(first=first)}" in message
        assert "--overwrite" in message and "\n" not in message


def bytes_feature(*values):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def float_feature(values):
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def int_feature(values):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


# How the arrays of a dataset of other origin may be stored, beside the bytes of our own.
FOREIGN = tfds.features.FeaturesDict(
    {
        "image_id": tfds.features.Scalar(np.int64),
        "note": tfds.features.Text(),
        "regions": tfds.features.Tensor(shape=(None, 3), dtype=np.float32),
        "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float64, encoding="bytes"),
        "object_labels": tfds.features.Tensor(shape=(None,), dtype=np.int64),
    }
)


def write_foreign(directory, examples):
    """A dataset of one file; examples: dicts of tf.train.Feature."""
    path = directory / "foreign-train.tfrecord-00000-of-00001"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for feature in examples:
            writer.write(serialize(feature))
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[len(examples)],
        num_bytes=path.stat().st_size,
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=directory, dataset_name="foreign", split="train", filetype_suffix="tfrecord"
        ),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=str(directory), features=FOREIGN, split_infos=[split]
    )
    return tfds.builder_from_directory(str(directory))


def foreign_example(rng, index, regions):
    """Arrays, and the same as features."""
    arrays = {
        "regions": rng.normal(size=(regions, 3)).astype(np.float32),
        "boxes": rng.uniform(size=(regions, 4)),
        "object_labels": rng.integers(-5, 5, size=regions),
    }
    return arrays, {
        "image_id": int_feature([index]),
        "note": bytes_feature(b"a note"),
        "regions": float_feature(arrays["regions"].ravel()),
        "boxes": bytes_feature(arrays["boxes"].tobytes()),
        "object_labels": int_feature(arrays["object_labels"]),
        "not described": float_feature([1.0]),
    }


def serialize(feature):
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def test_arrays_are_read_as_the_dataset_describes_them(tmp_path):
    rng = np.random.default_rng(0)
    pairs = [foreign_example(rng, index, 1 + index % 3) for index in range(5)]
    foreign = write_foreign(tmp_path, [feature for _, feature in pairs])
    (batch,) = image_batches(foreign, split="train", batch_size=5, max_regions=2)
    dtypes = {"regions": np.float32, "boxes": np.float64, "object_labels": np.int64}
    for name, dtype in dtypes.items():
        assert batch[name].dtype == dtype
        for row, (arrays, _) in enumerate(pairs):
            kept = min(2, len(arrays[name]))
            np.testing.assert_array_equal(batch[name][row, :kept], arrays[name][:2])
            assert (batch[name][row, kept:] == (-1 if name == "object_labels" else 0)).all()
    assert batch["region_mask"].tolist() == [[True, row % 3 > 0] for row in range(5)]
    assert make_decoder(foreign, ("note",))(serialize(pairs[0][1])) == {"note": b"a note"}


def test_records_and_datasets_without_a_feature_are_errors(tmp_path):
    (_, good) = foreign_example(np.random.default_rng(0), 0, 2)
    foreign = write_foreign(tmp_path, [good, {k: v for k, v in good.items() if k != "boxes"}])
    with pytest.raises(DataError) as caught:
        list(image_batches(foreign, split="train", batch_size=2, max_regions=2))
    assert f"a record of the dataset in {tmp_path} does not have what" in str(caught.value)
    with pytest.raises(DataError, match=f"{tmp_path} stores no relations; build it again"):
        list(image_batches(foreign, split="train", batch_size=2, max_regions=2, max_relations=1))


def test_a_batch_is_made_while_the_one_before_it_is_used():
    begun, used, closed = threading.Event(), threading.Event(), threading.Event()

    def batches():
        try:
            yield {"number": 1}
            begun.set()
            assert used.wait(60)
            yield {"number": 2}
            yield {"number": 3}
        finally:
            closed.set()

    ahead = input_pipeline._ahead(batches())
    assert next(ahead) == {"number": 1}
    assert begun.wait(60)  # Nobody has asked for the second one.
    used.set()
    assert [batch["number"] for batch in ahead] == [2, 3]
    assert closed.is_set()


def test_other_splits_are_still_read(builder):
    batches = image_batches(builder, split="test", batch_size=16, max_regions=2)
    assert [int(batch["mask"].sum()) for batch in batches] == [10]


def test_tensorflow_sees_no_accelerator():
    assert reading.tf.config.get_visible_devices("GPU") == []


def test_truncated_captions_are_counted_and_said_once(builder, caplog, monkeypatch):
    monkeypatch.setattr(input_pipeline, "_reported", set())
    tokenizer = WordTokenizer(["is", "caption"])
    batches = lambda words: caption_batches(
        builder, split="test", tokenizer=tokenizer, batch_size=4, max_tokens=words + 2
    )
    captions = sum(1 + index % 4 for index in range(10))
    # Every caption has four words.
    list(batches(4))
    assert "lose their end" not in caplog.text
    list(batches(3))
    list(batches(3))
    said = [r.message for r in caplog.records if "lose their end" in r.message]
    assert said == [
        f"{captions} captions in 'test' are longer than max_tokens=5 and lose their end"
    ]


@pytest.fixture(scope="module")
def wordy(tmp_path_factory):
    """Keyword arguments to read Wordy, in batches of 4."""
    directory = tmp_path_factory.mktemp("wordy")
    build_dataset(Wordy(), directory)
    return {
        **{"builder": open_dataset(directory, "wordy"), "tokenizer": WordTokenizer(["word"])},
        **{"split": "train", "batch_size": 4, "seed": 3, "start_step": 0, "shuffle_buffer": 10},
        **{"max_regions": REGIONS, "max_tokens": 10},
    }


def test_a_batch_is_as_wide_as_its_longest_caption_needs(wordy):
    lengths = {
        (int(record["image_id"]), number): len(caption.split())
        for record in examples(Wordy(), "train")
        for number, caption in enumerate(record["captions"])
    }
    stored = wordy["builder"].as_dataset(split="train").as_numpy_iterator()
    firsts = {int(r["image_id"]): int(r["first_caption"]) for r in stored}
    widths = []
    narrow = itertools.islice(train_batches(**wordy, token_widths=(7, 5)), 20)
    for batch, full in zip(narrow, train_batches(**wordy), strict=False):
        ids = batch["image_id"].tolist()
        numbers = [int(c) - firsts[i] for c, i in zip(batch["caption_id"], ids, strict=True)]
        words = max(lengths[pair] for pair in zip(ids, numbers, strict=True))
        # Nine words and two special tokens are cut to the ten of max_tokens.
        width = 5 if words <= 3 else 7 if words <= 5 else 10
        assert full["tokens"].shape == (4, 10) and not full["token_mask"][:, width:].any()
        cut = {name: full[name][:, :width] for name in ("tokens", "token_mask")}
        assert_same([batch], [full | cut])
        widths.append(width)
    assert set(widths) == {5, 7, 10}


def test_widths_follow_from_the_batch_alone(wordy):
    read = lambda count, **more: list(itertools.islice(train_batches(**(wordy | more)), count))
    whole = read(25, token_widths=(5, 7))
    for start in (1, 13, 24):
        assert_same(read(25 - start, token_widths=(5, 7), start_step=start), whole[start:])
    assert_same(read(25, token_widths=(5, 7, 10)), whole)
    # A process can't know the captions of the others, and must have the same width.
    for rows in ([0, 1], [2, 3]):
        part = {"rows": np.array(rows)}
        assert_same(read(25, token_widths=(5, 7), **part), read(25, **part))


def test_impossible_widths_are_refused(wordy):
    with pytest.raises(DataError, match=r"\(5, 2\) has 2, which leaves no room for a word"):
        train_batches(**wordy, token_widths=(5, 2))


def test_widths_above_max_tokens_do_not_count(wordy):
    read = lambda **more: list(itertools.islice(train_batches(**wordy, **more), 10))
    assert_same(read(token_widths=(5, 11, 60)), read(token_widths=(5,)))
