"""What a dataset holds beside regions: counts, names, captions and links, for a reader."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from data_pipeline.reading import CAPTION_FIELDS, in_order


class Links(NamedTuple):
    """L known word-to-region links: caption_id, characters start to end (exclusive), region."""

    caption_id: np.ndarray
    start: np.ndarray
    end: np.ndarray
    region: np.ndarray


class Content(NamedTuple):
    """An image: its id, the name of its picture ("" if unknown), width and height, captions."""

    image_id: int
    file_name: str
    size: tuple[int, int]
    captions: tuple[str, ...]


class Texts(NamedTuple):
    """A split for a reader, in `index` order: I images and C captions.

    image_id: [I]; counts: [I] captions of each image; file_names: I.
    captions: C; caption_image_id: [C]; caption_id: [C].
    """

    image_id: np.ndarray
    counts: np.ndarray
    file_names: list[str]
    captions: list[str]
    caption_image_id: np.ndarray
    caption_id: np.ndarray


def feature_width(builder: tfds.core.DatasetBuilder) -> int:
    """F, the width of the region features of all splits."""
    return builder.info.features["regions"].shape[-1]


def predicates(builder: tfds.core.DatasetBuilder) -> list[str]:
    """Names of the predicates that `relations[..., 1]` counts, of all splits; may be empty."""
    return list(builder.info.metadata["predicates"])


def texts(builder: tfds.core.DatasetBuilder, split: str) -> Texts:
    """File names and captions of a split, in the order of `image_batches` and `caption_batches`."""
    ids, counts, first = [], [], []
    names: list[str] = []
    captions: list[str] = []
    for record in in_order(builder, split, ("file_name", *CAPTION_FIELDS)):
        ids.append(record["image_id"])
        first.append(record["first_caption"])
        counts.append(len(record["captions"]))
        names.append(record["file_name"].decode("utf-8"))
        captions.extend(caption.decode("utf-8") for caption in record["captions"])
    image_id, count = np.array(ids, np.int64), np.array(counts, np.int64)
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    caption_id = np.repeat(np.array(first, np.int64), count) + within
    return Texts(image_id, count, names, captions, np.repeat(image_id, count), caption_id)


def contents(builder: tfds.core.DatasetBuilder, split: str) -> Iterator[Content]:
    """What is known of every image beside its regions, in the order of `image_batches`."""
    for record in in_order(builder, split, ("image_id", "file_name", "size", "captions")):
        width, height = record["size"].tolist()
        texts = tuple(caption.decode("utf-8") for caption in record["captions"])
        yield Content(
            record["image_id"], record["file_name"].decode("utf-8"), (width, height), texts
        )


def links(builder: tfds.core.DatasetBuilder, split: str) -> Links:
    """The known word-to-region links of a split (none in most datasets), in caption order."""
    rows = [np.zeros((0, 4), np.int64)]
    for record in in_order(builder, split, ("first_caption", "links")):
        found = record["links"].astype(np.int64)
        found[:, 0] += record["first_caption"]
        rows.append(found)
    table = np.concatenate(rows)
    return Links(*table[np.argsort(table[:, 0], kind="stable")].T)
