"""Which region answered which word: why an item was found."""

from xmodal_jax.matched_words import MatchedWord, match_words
from xmodal_jax.retrieval.answers import Query
from xmodal_jax.retrieval.engines.engine import Engine


def matched_words(index: Engine, query: Query, row: int) -> list[MatchedWord]:
    """The words of a sentence with their regions in a row's image, in their order.

    None for a query that is no sentence, and for a model that keeps no regions.
    """
    cosines = index.similarities(query, row) if query.spans is not None else None
    if cosines is None or query.spans is None:
        return []
    return match_words(query.text, query.spans[query.one.mask], cosines)
