"""Which region answered which word: why an item was found."""

import dataclasses
import re
from typing import Any

import numpy as np

from xmodal_jax.retrieval.answers import Query
from xmodal_jax.retrieval.engines.engine import Engine

_WORD = re.compile(r"\S+")


@dataclasses.dataclass(frozen=True)
class MatchedWord:
    """A word of a sentence and its most similar region in one image.

    start, end: its characters in the sentence; similarity: the cosine, from -1 to 1.
    """

    text: str
    start: int
    end: int
    region: int
    similarity: float

    def as_json(self) -> dict[str, Any]:
        """Numbers and text, rounded for readers."""
        return dataclasses.asdict(self) | {"similarity": round(self.similarity, 4)}


def matched_words(index: Engine, query: Query, row: int) -> list[MatchedWord]:
    """The words of a sentence with their regions in a row's image, in their order.

    A word of several tokens is represented by the one that fits best. None for a query that is no
    sentence, and for a model that keeps no regions.
    """
    cosines = index.similarities(query, row) if query.spans is not None else None
    if cosines is None or query.spans is None or not len(cosines):
        return []
    spans = query.spans[query.one.mask]
    best = cosines.max(axis=0)
    found = []
    for match in _WORD.finditer(query.text):
        own = np.flatnonzero((spans[:, 0] < match.end()) & (spans[:, 1] > match.start()))
        # Some tokenizers have tokens for punctuation, which is no part of the word beside it.
        letters = [any(map(str.isalnum, query.text[start:end])) for start, end in spans[own]]
        own = own[letters] if any(letters) else own
        if len(own):
            token = own[best[own].argmax()]
            start, end = int(spans[own, 0].min()), int(spans[own, 1].max())
            region = int(cosines[:, token].argmax())
            text = query.text[start:end]
            found.append(MatchedWord(text, start, end, region, float(best[token])))
    return found
