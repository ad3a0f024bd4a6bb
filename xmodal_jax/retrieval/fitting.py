"""The first stage of an index is fitted, and how much it loses is measured on queries."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.retrieval.answers import Query
from xmodal_jax.retrieval.first_stage import TRUSTED, FirstStage, sample_words
from xmodal_jax.retrieval.index import Index
from xmodal_jax.retrieval.lemur import FEATURES, WORDS
from xmodal_jax.retrieval.row_scores import averages_words

ASKED = 4000  # queries are enough: the first stage is fitted on half of them
_DEPTH = 10
_QUERIES = 200
_ROWS = 1024  # read at once
_WORDS_OF_IMAGE = 8  # regions that stand for a sentence where there is none


def fit_first_stage(
    index: Index,
    asked: Embeddings | None = None,
    *,
    features: int = FEATURES,
    queries: int = _QUERIES,
    on_done: Callable[[int], object] = lambda count: None,
    seed: int = 0,
) -> dict[str, Any]:
    """Gives an index a first stage, and measures it; the older one is replaced.

    Args:
      index: of a model of kind tokens or pair.
      asked: embeddings of what may be asked, such as some captions: the first stage is fitted on
        the words of one half and measured with the other. Without them the images' own regions are
        the words.
      features: length of an item's code, in bytes, where the model has no trained one.
      queries: how many it is measured with.
      on_done: called with numbers of items that have their codes.
      seed: of everything that is drawn.

    Returns:
      What the index keeps of it: name, recall (of the exact ten best, or None), trusted, ...

    Raises:
      UserError: the model needs no first stage, or the index is empty.
    """
    if index.kind == "vector":
        raise UserError("a model of kind vector needs no first stage: its score is one product")
    if not len(index):
        raise UserError(f"{index.store.directory} is empty; add items first")
    rng = np.random.default_rng(seed)
    held_out = None
    if asked is not None:
        asked, held_out = halves(asked)
    with index.store.writing():
        index.reload()
        sample = index.stored(_drawn(index, _ROWS, rng))
        words = _words(index, sample, asked, seed)
        mean = averages_words(index.model.model)
        stage = FirstStage.fit(index.kind, index.side, sample, words, features, mean)
        codes = []
        for rows in index.store.shard_rows():
            parts = []
            for start in range(0, len(rows), _ROWS):
                part = rows[start : start + _ROWS]
                parts.append(stage.item_codes(index.stored(part)))
                on_done(len(part))
            codes.append({k: np.concatenate([p[k] for p in parts]) for k in parts[0]})
        about: dict[str, Any] = {"name": stage.name, "trusted": False}
        index.store.put_first_stage(about, stage.arrays(), codes)
        index.reload()
        drawn, source = sample_queries(index, held_out, rng, queries)
        recall = measure_recall(index, drawn)
        about |= {"recall": recall, "trusted": recall >= TRUSTED, "measured_with": source}
        about |= {"depth": _DEPTH, "queries": len(drawn), "items": len(index)}
        index.store.describe_first_stage(about)
    index.reload()
    return about


def measure_recall(index: Index, queries: Sequence[Query], k: int = _DEPTH) -> float:
    """The share of the exact k best that a search with the first stage finds, over all queries."""
    found = total = 0
    for query in queries:
        exact = {hit.row for hit in index.search(query, k, stage="exact").hits}
        staged = {hit.row for hit in index.search(query, k, stage="staged").hits}
        found, total = found + len(exact & staged), total + len(exact)
    return found / max(total, 1)


def _drawn(index: Index, most: int, rng: np.random.Generator) -> np.ndarray:
    """Some rows of an index, ascending."""
    rows = np.flatnonzero(index.live)
    return np.sort(rng.choice(rows, min(most, len(rows)), replace=False))


def _words(index: Index, sample: Embeddings, asked: Embeddings | None, seed: int) -> np.ndarray:
    """[n, D] words to fit on: those that are asked, and where they are few the items' own."""
    if index.kind == "pair":
        return np.zeros((0, 1), np.float32)
    own = sample_words([sample], WORDS, seed)
    if asked is None or index.side == "captions":
        return own
    given = sample_words([asked], WORDS, seed)
    return np.concatenate([given, own[: WORDS - len(given)]])


def halves(asked: Embeddings) -> tuple[Embeddings, Embeddings]:
    """What a first stage is fitted on, and what it is measured with; of one item both have it."""
    count = len(np.asarray(asked.mask))
    cut = lambda part: jax.tree.map(lambda x: np.asarray(x)[part], asked)
    return cut(slice((count + 1) // 2)), cut(slice(count // 2, None))


def sample_queries(
    index: Index, asked: Embeddings | None, rng: np.random.Generator, most: int = _QUERIES
) -> tuple[list[Query], str]:
    """Some queries, and what they are: of those that may be asked, or made of vectors of items."""
    other = "captions" if index.side == "images" else "images"
    if asked is not None:
        count = len(np.asarray(asked.mask))
        rows = rng.choice(count, min(most, count), replace=False)
        pick = lambda row: jax.tree.map(lambda x: np.asarray(x)[row : row + 1], asked)
        return [Query(other, pick(row)) for row in rows], other
    queries = []
    for row in _drawn(index, most, rng):
        item = jax.tree.map(np.asarray, index.stored(np.array([row])))
        # Some of its vectors stand for what might be asked.
        valid = np.flatnonzero(item.mask[0])
        kept = rng.choice(valid, min(_WORDS_OF_IMAGE, len(valid)), replace=False)
        mask = np.zeros_like(item.mask)
        mask[0, kept] = True
        queries.append(Query(other, item.replace(mask=mask)))
    return queries, f"vectors of {index.side}"
