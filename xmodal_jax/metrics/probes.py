"""Wrong captions made of right ones: one thing is changed, and a model should notice.

A model that knows which words occur, but not what belongs to what, cannot tell a caption from one
with its nouns or attributes exchanged (Yuksekgonul et al., ICLR 2023; Hsieh et al., NeurIPS 2023).
Word lists are English. Nouns are learnt from the captions themselves: what
stands between an article and the end of a phrase.

The rules know no grammar; these keep them from making captions that are right as well:

* Two nouns are exchanged only where something stands between them that has a direction. "A man and
  a woman" and "a dog next to a cat" say the same the other way round: there are only articles,
  other nouns, and words that join or say that somebody is, stands or sits.
* Two attributes are exchanged only where more than that stands between them: neither in "a red and
  a blue ball", nor, as both are of things of one name, in "a black dog and a white dog".
* "Left" and "right" count in "left of", "to the left", "on the left", "left side" and "left hand",
  not in "a bird left the tree". Other relations count where an article, a number, an attribute or a
  pronoun follows, not in "all over" or "one behind the other". Up and down a street are the same,
  and before and after a meal look alike: neither is turned round.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

# Kinds of attributes; the words of one line mean the same.
_COLOURS = [
    *("red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white"),
    "gray grey",
]
_KINDS = [
    [set(words.split()) for words in kind]
    for kind in (
        _COLOURS,
        ["small little tiny", "large big huge"],
        ["young", "old elderly"],
        ["tall", "short"],
        ["wooden", "metal", "plastic", "glass", "stone", "brick"],
        ["wet", "dry"],
        ["empty", "full"],
    )
]
_KIND_OF = {
    word: (k, n) for k, kind in enumerate(_KINDS) for n, words in enumerate(kind) for word in words
}
_NUMBERS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS = [str(number) for number in range(2, 11)]
# Where an article, a number, an attribute or a pronoun follows.
_RELATIONS = [
    ("left of", "right of"),
    ("above", "below"),
    ("over", "under"),
    ("in front of", "behind"),
    ("inside", "outside"),
    ("into", "out of"),
    ("on top of", "underneath"),
    ("higher than", "lower than"),
]
_SIDES = [
    ("to the left", "to the right"),
    ("on the left", "on the right"),
    ("left side", "right side"),
    ("left hand", "right hand"),
]
_ARTICLES = "a an the his her its their this that these those some several many one another both"
_AFTER = (
    "is are was were be in on at of with without and or to from by for near next beside behind "
    "above below over under through into along across between among around against inside outside "
    "while who which that as has have left right wearing holding"
)
_JOINING = (
    "and or with without near next to beside by alongside along together "
    "is are was were stand stands standing sit sits sitting lie lies lying talking posing"
)
_BEFORE_NOUNS = {*_ARTICLES.split(), *_NUMBERS, *_KIND_OF}
_AFTER_NOUNS = set(_AFTER.split())
_EITHER_WAY = {*_ARTICLES.split(), *_JOINING.split()}
_OBJECTS = "|".join(sorted([*_BEFORE_NOUNS, *_DIGITS, "him", "them", "it"]))
_FOLLOWED = rf"(?!\s+(?:the other|another)\b)(?=\s+(?:{_OBJECTS})\b)"
_TURNS = [
    (re.compile(rf"(?<!\ball )\b{old}\b{after}", re.IGNORECASE), new)
    for pairs, after in ((_RELATIONS, _FOLLOWED), (_SIDES, ""))
    for a, b in pairs
    for old, new in ((a, b), (b, a))
]
_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")

# What is changed, and what a reader sees of it.
CATEGORIES = {
    "attributes_swapped": "two attributes exchanged",
    "attributes_replaced": "an attribute replaced",
    "nouns_swapped": "two nouns exchanged",
    "nouns_replaced": "a noun replaced",
    "numbers": "a number changed",
    "relations": "a relation turned round",
    "words": "all words shuffled",
}


def _like(word: str, example: str) -> str:
    return word[:1].upper() + word[1:] if example[:1].isupper() else word


def _put(caption: str, changes: Sequence[tuple[re.Match[str], str]]) -> str:
    """The caption with each match replaced, capitals as before."""
    for match, word in sorted(changes, key=lambda change: -change[0].start()):
        caption = caption[: match.start()] + _like(word, match.group()) + caption[match.end() :]
    return caption


def learn_nouns(captions: Sequence[str], least: int = 2) -> set[str]:
    """Words that stand between an article or attribute and the end of a phrase often enough.

    least: how often they must do so; and a quarter of the times they occur.
    """
    known = _BEFORE_NOUNS | _AFTER_NOUNS
    ends: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for caption in captions:
        words = [match.group().lower() for match in _WORD.finditer(caption)]
        seen.update(words)
        for previous, word, after in zip(words, words[1:], [*words[2:], ""], strict=False):
            ends_phrase = after in _AFTER_NOUNS or not after
            if previous in _BEFORE_NOUNS and word not in known and ends_phrase:
                ends[word] += 1
    return {word for word, count in ends.items() if count >= least and 4 * count >= seen[word]}


class Perturber:
    """Makes wrong captions; what is drawn depends on the number of a caption and nothing else."""

    def __init__(self, captions: Sequence[str], seed: int = 0) -> None:
        """captions: of the split; nouns are learnt from them."""
        self._captions, self._seed = captions, seed
        self._nouns = learn_nouns(captions)
        self._noun_list = sorted(self._nouns)

    def every(self, category: str) -> Iterator[tuple[int, str]]:
        """Number of each caption that the category applies to, and its wrong version."""
        change = getattr(self, f"_{category}")
        for number, caption in enumerate(self._captions):
            rng = np.random.default_rng([self._seed, number])
            changed = change(caption, list(_WORD.finditer(caption)), rng)
            if changed is not None and changed.lower().split() != caption.lower().split():
                yield number, changed

    def _attributes_swapped(
        self, caption: str, words: list[re.Match[str]], rng: np.random.Generator
    ) -> str | None:
        found = [k for k, match in enumerate(words) if match.group().lower() in _KIND_OF]
        pairs = []
        for a, b in itertools.combinations(found, 2):
            (kind, sense), (other, another) = (_KIND_OF[words[k].group().lower()] for k in (a, b))
            between = {match.group().lower() for match in words[a + 1 : b]}
            # "white and brown" of one thing may as well be "brown and white".
            things = {_following(words, k) for k in (a, b)}
            if len(things) == 1:  # "a black dog and a white dog" say the same the other way round
                between -= things
            if kind == other and sense != another and between - _KIND_OF.keys() - _EITHER_WAY:
                pairs.append((words[a], words[b]))
        return _swapped(caption, pairs, rng)

    def _attributes_replaced(
        self, caption: str, words: list[re.Match[str]], rng: np.random.Generator
    ) -> str | None:
        found = [match for match in words if match.group().lower() in _KIND_OF]
        if not found:
            return None
        match = found[rng.integers(len(found))]
        kind, _ = _KIND_OF[match.group().lower()]
        own = {word.group().lower() for word in words}
        others = [min(sense) for sense in _KINDS[kind] if not sense & own]
        return _put(caption, [(match, others[rng.integers(len(others))])]) if others else None

    def _nouns_swapped(
        self, caption: str, words: list[re.Match[str]], rng: np.random.Generator
    ) -> str | None:
        texts = [match.group().lower() for match in words]
        found = [k for k, text in enumerate(texts) if text in self._nouns]
        pairs = [
            (words[a], words[b])
            for a, b in itertools.combinations(found, 2)
            if texts[a] != texts[b] and set(texts[a + 1 : b]) - self._nouns - _EITHER_WAY
        ]
        return _swapped(caption, pairs, rng)

    def _nouns_replaced(
        self, caption: str, words: list[re.Match[str]], rng: np.random.Generator
    ) -> str | None:
        found = [match for match in words if match.group().lower() in self._nouns]
        own = {match.group().lower() for match in words}
        others = [noun for noun in self._noun_list if noun not in own]
        if not found or not others:
            return None
        match = found[rng.integers(len(found))]
        return _put(caption, [(match, others[rng.integers(len(others))])])

    def _numbers(
        self, caption: str, words: list[re.Match[str]], rng: np.random.Generator
    ) -> str | None:
        found = [
            (match, kind)
            for match in words
            for kind in (_NUMBERS, _DIGITS)
            if match.group().lower() in kind
        ]
        if not found:
            return None
        match, kind = found[rng.integers(len(found))]
        others = [number for number in kind if number != match.group().lower()]
        return _put(caption, [(match, others[rng.integers(len(others))])])

    def _relations(
        self, caption: str, words: list[re.Match[str]], rng: np.random.Generator
    ) -> str | None:
        found = [(match, new) for old, new in _TURNS for match in old.finditer(caption)]
        return _put(caption, [found[rng.integers(len(found))]]) if found else None

    def _words(
        self, caption: str, words: list[re.Match[str]], rng: np.random.Generator
    ) -> str | None:
        texts = [match.group().lower() for match in words]
        for _ in range(10):
            order = rng.permutation(len(texts))
            if [texts[k] for k in order] != texts:
                return _put(caption, [(words[k], texts[n]) for k, n in enumerate(order)])
        return None


def _following(words: Sequence[re.Match[str]], place: int) -> str:
    """The word after a place, or nothing at the end."""
    return "".join(match.group().lower() for match in words[place + 1 : place + 2])


def _swapped(
    caption: str, pairs: list[tuple[re.Match[str], re.Match[str]]], rng: np.random.Generator
) -> str | None:
    if not pairs:
        return None
    a, b = pairs[rng.integers(len(pairs))]
    return _put(caption, [(a, b.group().lower()), (b, a.group().lower())])
