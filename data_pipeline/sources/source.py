"""What a data set is built from: the protocol of a source.

A source knows all of its images by number and reads any one of them alone, so that a bad image can
be left out, and many workers can share the reading.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from data_pipeline.sources.scene_graphs import SceneGraphs


class Contents(NamedTuple):
    """The N images of a split, in their order, as far as they are known without features.

    image_ids: int64 [N], unique in the split.
    caption_counts: int64 [N], captions of each.
    """

    image_ids: np.ndarray
    caption_counts: np.ndarray


class Source(Protocol):
    """Named splits of images, of one feature width and with one vocabulary."""

    name: str

    @property
    def labels(self) -> list[str]:
        """Object classes that `object_labels` count; may be empty."""

    @property
    def predicates(self) -> list[str]:
        """Predicates that `relations[:, 1]` count; may be empty."""

    @property
    def feature_width(self) -> int:
        """F, the width of every region's feature."""

    def splits(self) -> list[str]:
        """Names of the splits, in the order in which they are to be written."""

    def contents(self, split: str) -> Contents:
        """Ids and numbers of captions of the split's images."""

    def read(self, split: str, index: int) -> dict[str, Any]:
        """Image `index` of the split: keys, dtypes and shapes are those of
        `region_captions.schema`, without image_id, index and first_caption, which the builder
        adds; arrays are always present and may be empty.

        Raises:
          DataError: something is wrong with this image; it names the file and the place.
        """


def graph_files(source: Source) -> list[SceneGraphs]:
    """The files of scene graphs of a source that reads such files."""
    return getattr(source, "scene_graphs", list)()


def examples(source: Source, split: str) -> Iterator[dict[str, Any]]:
    """All images of a split in order, with their `image_id` and `index`."""
    for index, image_id in enumerate(source.contents(split).image_ids):
        yield numbered(source.read(split, index), image_id, index)


def numbered(record: dict[str, Any], image_id: int, index: int) -> dict[str, Any]:
    """A record that says which one it is."""
    return record | {"image_id": np.int64(image_id), "index": np.int64(index)}
