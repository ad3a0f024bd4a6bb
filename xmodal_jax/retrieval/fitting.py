"""The first stage of an index is fitted, and how much it loses is measured on queries."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.retrieval import lemur
from xmodal_jax.retrieval.first_stage import Codes, FirstStage, PooledCodes, sample_words
from xmodal_jax.retrieval.index import Index, Query
from xmodal_jax.retrieval.lemur import FEATURES, WORDS

TRUSTED = 0.95  # of the ten best: with a lower recall a search is exact
_DEPTH = 10
_QUERIES = 200
_ROWS = 1024  # read at once
_WORDS_OF_IMAGE = 8  # regions that stand for a sentence where there is none


def fit_first_stage(
    index: Index,
    asked: Embeddings | None = None,
    *,
    features: int = FEATURES,
    on_done: Callable[[int], object] = lambda count: None,
    seed: int = 0,
) -> dict[str, Any]:
    """Gives an index a first stage, and measures it; the older one is replaced.

    Args:
      index: of a model of kind tokens or pair.
      asked: embeddings of what may be asked, such as some captions: the first stage is fitted on
        their words and measured with them. Without them the images' own regions are the words.
      features: length of an item's code, in bytes, where the model has no trained one.
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
    with index.store.writing():
        index.reload()
        sample = index.stored(_drawn(index, _ROWS, rng))
        stage = FirstStage.fit(_codes(index, sample, asked, features), index.side, sample)
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
        queries, source = _queries(index, asked, rng)
        recall = measure_recall(index, queries)
        about |= {"recall": recall, "trusted": recall >= TRUSTED, "measured_with": source}
        about |= {"depth": _DEPTH, "queries": len(queries), "items": len(index)}
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


def _codes(index: Index, sample: Embeddings, asked: Embeddings | None, features: int) -> Codes:
    """Fitted on the words that are asked, and where those are few on the items' own vectors."""
    if index.kind == "pair":
        return PooledCodes()
    words = sample_words([sample], WORDS)
    if asked is not None and index.side == "images":
        given = sample_words([asked], WORDS)
        words = np.concatenate([given, words[: WORDS - len(given)]])
    average = (index.model.model.alignment or ("",))[0] == "MrAVGw"
    return lemur.fit(words, features=features, average=average)


def _queries(
    index: Index, asked: Embeddings | None, rng: np.random.Generator
) -> tuple[list[Query], str]:
    """Some queries, and what they are."""
    other = "captions" if index.side == "images" else "images"
    if asked is not None:
        count = len(np.asarray(asked.mask))
        rows = rng.choice(count, min(_QUERIES, count), replace=False)
        pick = lambda row: jax.tree.map(lambda x: np.asarray(x)[row : row + 1], asked)
        return [Query(other, pick(row)) for row in rows], other
    queries = []
    for row in _drawn(index, _QUERIES, rng):
        item = jax.tree.map(np.asarray, index.stored(np.array([row])))
        # Some of its vectors stand for what might be asked.
        valid = np.flatnonzero(item.mask[0])
        kept = rng.choice(valid, min(_WORDS_OF_IMAGE, len(valid)), replace=False)
        mask = np.zeros_like(item.mask)
        mask[0, kept] = True
        queries.append(Query(other, item.replace(mask=mask)))
    return queries, f"vectors of {index.side}"
