"""ROUGE-L of captions with the captions of images, as the TERAN reference defines its relevances.

A candidate is compared with all captions of an image: lower case, split at single spaces, nothing
else is taken apart. With L the longest common subsequence of words, P the highest L / words of the
candidate and R the highest L / words of a reference, perhaps of another one, the value is
(1 + b^2) P R / (R + b^2 P) with b = 1.2.

All captions of a split are compared with one candidate at a time, a bit for each of its words
(Hyyrö, AWOCA 2004): 25,000 x 25,000 captions take seconds where loops take hours.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from xmodal_jax.errors import UserError

BETA = 1.2
LONGEST = 64  # words of a candidate; the bits of the widest integer


def _words(caption: str) -> list[str]:
    return caption.lower().split(" ")


def _width(length: int) -> type[np.unsignedinteger]:
    return np.uint16 if length <= 16 else np.uint32 if length <= 32 else np.uint64


class References:
    """Captions as word numbers, those of one length range side by side, ready to be compared."""

    def __init__(self, captions: Sequence[str], image_rows: np.ndarray, images: int) -> None:
        """image_rows: [C] row of each caption's image, 0 .. images - 1; each has a caption."""
        order = np.argsort(image_rows, kind="stable")
        words = [_words(captions[k]) for k in order]
        self._numbers: dict[str, int] = {}
        for word in (word for own in words for word in own):
            self._numbers.setdefault(word, len(self._numbers) + 1)
        self._lengths = np.array([len(own) for own in words])
        # Long ones first: at position n only the first so many have a word.
        self._by_length = np.argsort(-self._lengths, kind="stable")
        longest = int(self._lengths.max())
        self._active = [int(np.sum(self._lengths > n)) for n in range(longest)]
        self._columns = [
            np.array([self._numbers[words[k][n]] for k in self._by_length[:active]], np.int64)
            for n, active in enumerate(self._active)
        ]
        self._starts = np.searchsorted(image_rows[order], np.arange(images))

    def common(self, candidate: Sequence[str]) -> np.ndarray:
        """[C] length of the longest common subsequence with each caption, images in order."""
        kind = _width(len(candidate))
        table = np.zeros(len(self._numbers) + 1, kind)
        for bit, word in enumerate(candidate):
            if number := self._numbers.get(word):
                table[number] |= kind(1) << kind(bit)
        state = np.full(len(self._by_length), np.iinfo(kind).max, kind)
        for active, column in zip(self._active, self._columns, strict=True):
            own = state[:active]
            # The numbers are in range; not to check that again is twice as fast.
            hit = own & table.take(column, mode="clip")
            own[:] = (own + hit) | (own - hit)
        found = np.empty(len(state), np.int64)
        used = kind((1 << len(candidate)) - 1)
        found[self._by_length] = np.bitwise_count(~state & used)
        return found

    def relevance(self, candidate: str) -> np.ndarray:
        """[I] ROUGE-L of one candidate with the captions of each image."""
        words = _words(candidate)
        common = self.common(words)
        precision = np.maximum.reduceat(common, self._starts) / len(words)
        recall = np.maximum.reduceat(common / self._lengths, self._starts)
        weighted = recall + BETA**2 * precision
        product = (1 + BETA**2) * precision * recall
        return np.divide(product, weighted, out=np.zeros_like(product), where=weighted > 0)


def rouge_relevance(
    captions: Sequence[str], image_rows: np.ndarray, images: int, *, threads: int = 2
) -> np.ndarray:
    """Relevances [C, I] float32 of each caption to each image, as in the reference's files.

    Args:
      captions: C texts.
      image_rows: [C] row of each caption's image, 0 .. images - 1.
      images: I.
      threads: candidates that are compared at the same time.

    Raises:
      UserError: a caption is longer than 64 words, or an image has none.
    """
    for k, caption in enumerate(captions):
        if len(_words(caption)) > LONGEST:
            raise UserError(
                f"caption {k} has {len(_words(caption))} words; ROUGE-L takes up to {LONGEST}, "
                "shorten it or leave the relevances out"
            )
    if len(missing := np.setdiff1d(np.arange(images), image_rows)):
        raise UserError(f"image {missing[0]} of the split has no caption; leave it out")
    references = References(captions, image_rows, images)
    out = np.empty((len(captions), images), np.float32)

    def fill(k: int) -> None:
        out[k] = references.relevance(captions[k])

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(len(captions)), chunksize=64))
    return out
