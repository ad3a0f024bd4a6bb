"""Search: a collection is encoded once, kept in an index, and asked by sentence or by image."""

from xmodal_jax.retrieval.answers import Hit
from xmodal_jax.retrieval.index import Index
from xmodal_jax.retrieval.items import Item, Part

__all__ = ["Hit", "Index", "Item", "Part"]
