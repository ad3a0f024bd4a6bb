"""The cheap search that names candidates: one vector an item, one dot product a pair.

A model of kind "pair" has trained vectors for it, the pooled ones. Under word-region alignment
those are not trained, and LEMUR finds vectors whose products are nearly the alignment score.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.retrieval import lemur
from xmodal_jax.retrieval.items import compress
from xmodal_jax.retrieval.shards import ArrayFiles

CANDIDATES = 200  # that it names, to be scored by the model
EXACT_BELOW = 20_000  # items; so few are all scored
TRUSTED = 0.95  # of the ten best: with a lower recall a search is exact
_GROWTH = 2  # times the items that the recall was measured among: of more it says nothing


def is_trusted(about: Mapping[str, Any], count: int) -> bool:
    """Whether a first stage finds enough of so many items.

    Args:
      about: what `fitting.fit_first_stage` said of it; empty where there is none.
      count: of the items that are searched.
    """
    return bool(about.get("trusted")) and count <= _GROWTH * about.get("items", 0)


def automatic_stage(kind: str, about: Mapping[str, Any], count: int) -> str:
    """ "exact" or "staged" for a search of so many items by a model of this kind."""
    # A pair model is a network for each pair; other scores are products.
    large = count > (CANDIDATES if kind == "pair" else EXACT_BELOW)
    return "staged" if large and is_trusted(about, count) else "exact"


def has_lapsed(kind: str, about: Mapping[str, Any], count: int) -> bool:
    """Whether searches are exact only because there are many more items than at the measurement."""
    measured_again = dict(about) | {"items": count}
    return automatic_stage(kind, measured_again, count) != automatic_stage(kind, about, count)


class Codes(Protocol):
    """Vectors of images and captions whose dot product stands for their score."""

    def image_codes(self, images: Embeddings) -> np.ndarray:
        """[n, M]."""

    def caption_codes(self, captions: Embeddings) -> np.ndarray:
        """[n, M]."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What is kept of it."""


class PooledCodes:
    """The pooled vectors as they are."""

    def image_codes(self, images: Embeddings) -> np.ndarray:
        """[n, D]."""
        return np.asarray(images.pooled, np.float32)

    caption_codes = image_codes

    def arrays(self) -> dict[str, np.ndarray]:
        """Nothing was fitted."""
        return {}


@dataclasses.dataclass(frozen=True)
class FirstStage:
    """Codes of an index's items, and of what is asked.

    Attributes:
      name: "pooled" or "lemur".
      centre: [M], taken from the items' codes: it is the same for all of them in every product,
        and without it more of their differences fits into int8.
      mean: whether a caption's score is a mean over its words. It orders images as the sum does,
        which LEMUR stands for, but not captions.
    """

    name: str
    side: str
    codes: Codes
    centre: np.ndarray
    mean: bool = False

    @classmethod
    def fit(
        cls,
        kind: str,
        side: str,
        sample: Embeddings,
        words: np.ndarray,
        features: int,
        mean: bool = False,
    ) -> "FirstStage":
        """Of some of an index's items and [n, D] words that it may be asked."""
        name = "pooled" if kind == "pair" else "lemur"
        codes: Codes = PooledCodes() if name == "pooled" else lemur.fit(words, features=features)
        stage = cls(name, side, codes, np.zeros(0, np.float32), mean)
        return dataclasses.replace(stage, centre=stage._items(sample).mean(axis=0))

    @classmethod
    def load(cls, name: str, side: str, files: ArrayFiles, mean: bool = False) -> "FirstStage":
        """As it was saved."""
        fields = [field.name for field in dataclasses.fields(lemur.Lemur)]
        read = lambda: lemur.Lemur(**{field: np.asarray(files[field]) for field in fields})
        codes: Codes = PooledCodes() if name == "pooled" else read()
        return cls(name, side, codes, np.asarray(files["centre"]), mean)

    def arrays(self) -> dict[str, np.ndarray]:
        """To be saved."""
        return {"centre": self.centre} | self.codes.arrays()

    def _items(self, embeddings: Embeddings) -> np.ndarray:
        if self.side == "images":
            return self.codes.image_codes(embeddings)
        codes = self.codes.caption_codes(embeddings)
        if self.mean:
            codes = codes / np.maximum(np.asarray(embeddings.mask).sum(axis=1), 1)[:, None]
        return codes

    def item_vectors(self, embeddings: Embeddings) -> np.ndarray:
        """[n, M] float32 of items."""
        return self._items(embeddings) - self.centre

    def item_codes(self, embeddings: Embeddings) -> dict[str, np.ndarray]:
        """What is stored of items: their codes in int8."""
        values, scale = compress(self.item_vectors(embeddings), "int8")
        return {"codes": values, "codes_scale": scale}

    def query_code(self, query: Embeddings, side: str) -> np.ndarray:
        """[M] float32 of one item of the given side; a batch of one."""
        # An image that is asked for images of its like gives its regions for words.
        by_words = side == "captions" or side == self.side == "images"
        codes = self.codes.caption_codes if by_words else self.codes.image_codes
        return codes(query)[0]


def sample_words(parts: Iterable[Embeddings], most: int = lemur.WORDS, seed: int = 0) -> np.ndarray:
    """[n, D], at most so many of the valid vectors of some embeddings, drawn with equal chances."""
    rng = np.random.default_rng(seed)
    kept: tuple[np.ndarray, np.ndarray] | None = None
    for part in parts:
        found = np.asarray(part.tokens, np.float32)[np.asarray(part.mask)]
        drawn = rng.random(len(found))
        if kept is not None:
            found, drawn = np.concatenate([kept[0], found]), np.concatenate([kept[1], drawn])
        best = np.argsort(drawn)[:most]
        kept = found[best], drawn[best]
    return np.zeros((0, 0), np.float32) if kept is None else kept[0]
