"""Items of a search as points of Qdrant, and back."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.retrieval.answers import Hit
from xmodal_jax.retrieval.engines.backends import FIRST, REGIONS, Point
from xmodal_jax.retrieval.index import Index
from xmodal_jax.retrieval.items import Item

_LARGEST = 2**20  # numbers that Qdrant takes for one point


def number_of(id: str) -> int:
    """What Qdrant calls an item: 63 bits of a hash."""
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "big") >> 1


def vector_sizes(index: Index) -> dict[str, int]:
    """Of the vectors that an index's items have."""
    if not len(index):
        raise UserError(f"{index.store.directory} is empty: its vectors' sizes are not known yet")
    stored = index.stored(np.flatnonzero(index.live)[:1])
    sizes = {}
    if index.kind != "tokens":
        sizes[FIRST] = stored.pooled.shape[1]
    elif index.first_stage:
        sizes[FIRST] = len(index.first_stage.centre)
    if index.kind != "vector":
        sizes[REGIONS] = stored.tokens.shape[2]
    return sizes


def fingerprint_of(index: Index) -> str:
    """Differs where items would be encoded otherwise."""
    digest = hashlib.sha256(f"{index.model.fingerprint} {index.side}".encode())
    if index.kind == "tokens" and index.first_stage:
        for name, array in sorted(index.first_stage.arrays().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def valid_vectors(embeddings: Embeddings, items: Sequence[Item]) -> list[np.ndarray]:
    """The valid vectors of each item; where it has none a zero vector, whose products are all 0."""
    tokens, mask = np.asarray(embeddings.tokens, np.float32), np.asarray(embeddings.mask, bool)
    found = [
        own[valid] if valid.any() else own[:1] * 0 for own, valid in zip(tokens, mask, strict=True)
    ]
    for item, vectors in zip(items, found, strict=True):
        if vectors.size >= _LARGEST:
            raise UserError(
                f"{item.id!r} has {len(vectors)} vectors of {vectors.shape[1]} numbers; Qdrant "
                f"takes fewer than {_LARGEST:,} numbers an item: use fewer regions"
            )
    return found


def payload_of(item: Item) -> dict[str, Any]:
    """An item without its vectors; UserError if a field could not be searched."""
    for name in item.fields:
        field_path(name)
    return {
        "id": item.id,
        "file": item.file,
        "size": list(item.size),
        "text": item.text,
        "fields": dict(item.fields),
    }


def field_path(name: str) -> str:
    """Where a field's value is in a payload."""
    if not name or '"' in name:
        raise UserError(f"Qdrant can't search a field called {name!r}; leave quotes out of it")
    return f'fields."{name}"'


def hit_of(point: Point, score: float) -> Hit:
    """A point that was found."""
    stored = point.payload
    item = Item(
        stored["id"], stored["file"], tuple(stored["size"]), stored["text"], stored["fields"]
    )
    return Hit(item, float(score), point.number)
