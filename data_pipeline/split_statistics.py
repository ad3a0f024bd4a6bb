"""Running figures of a split, which the data set's metadata keeps and which can be added up."""

import collections
from typing import Any

from data_pipeline.tokenizer import find_words

_SETS = ("region_counts", "caption_counts")


class Statistics:
    """Figures of the records added; those of several parts of a split can be merged."""

    def __init__(self) -> None:
        self.images = self.captions = self.max_words = 0
        self.with_boxes = self.with_relations = 0  # images
        self.words: collections.Counter[str] = collections.Counter()
        self.region_counts: set[int] = set()
        self.caption_counts: set[int] = set()

    def add(self, record: dict[str, Any]) -> None:
        """Counts one record."""
        self.images += 1
        self.captions += len(record["captions"])
        self.with_boxes += bool(record["boxes"].any())
        self.with_relations += bool(len(record["relations"]))
        self.region_counts.add(len(record["regions"]))
        self.caption_counts.add(len(record["captions"]))
        for caption in record["captions"]:
            words = find_words(caption)
            self.words.update(words)
            self.max_words = max(self.max_words, len(words))

    def merge(self, other: "Statistics") -> None:
        """Adds the figures of other records."""
        self.images += other.images
        self.captions += other.captions
        self.with_boxes += other.with_boxes
        self.with_relations += other.with_relations
        self.max_words = max(self.max_words, other.max_words)
        self.words.update(other.words)
        self.region_counts |= other.region_counts
        self.caption_counts |= other.caption_counts

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values, for a file."""
        sets = {name: sorted(getattr(self, name)) for name in _SETS}
        return {**vars(self), **sets, "words": dict(self.words)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Statistics":
        """From what `to_json` returned."""
        found = cls()
        vars(found).update(content, words=collections.Counter(content["words"]))
        vars(found).update({name: set(content[name]) for name in _SETS})
        return found

    @property
    def mean_words(self) -> float:
        """Words of a caption."""
        return self.words.total() / self.captions if self.captions else 0.0

    def summary(self) -> dict[str, float]:
        """What the metadata keeps (with_*: images; regions: of an image; words: of a caption)."""
        return {
            "images": self.images,
            "captions": self.captions,
            "with_boxes": self.with_boxes,
            "with_relations": self.with_relations,
            "min_regions": min(self.region_counts),
            "max_regions": max(self.region_counts),
            "mean_words": round(self.mean_words, 2),
            "max_words": self.max_words,
            "vocabulary": len(self.words),
        }
