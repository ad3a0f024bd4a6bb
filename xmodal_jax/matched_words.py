"""Which region answered which word of a sentence, in words for a reader."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

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


class Alignment(NamedTuple):
    """Why an image and a sentence match: boxes [R, 4] in 0..1 of the regions, and the words."""

    boxes: np.ndarray
    words: Sequence[MatchedWord]


def match_words(text: str, spans: np.ndarray, cosines: np.ndarray) -> list[MatchedWord]:
    """The words of a sentence with their regions, in their order; none where there is no region.

    A word of several tokens is represented by the one that fits best.

    Args:
      text: the sentence.
      spans: int [W, 2], the characters of its tokens.
      cosines: [R, W] of the regions with them.
    """
    if not len(cosines):
        return []
    best = cosines.max(axis=0)
    found = []
    for match in _WORD.finditer(text):
        own = np.flatnonzero((spans[:, 0] < match.end()) & (spans[:, 1] > match.start()))
        # Some tokenizers have tokens for punctuation, which is no part of the word beside it.
        letters = [any(map(str.isalnum, text[start:end])) for start, end in spans[own]]
        own = own[letters] if any(letters) else own
        if len(own):
            token = own[best[own].argmax()]
            start, end = int(spans[own, 0].min()), int(spans[own, 1].max())
            region = int(cosines[:, token].argmax())
            found.append(MatchedWord(text[start:end], start, end, region, float(best[token])))
    return found
