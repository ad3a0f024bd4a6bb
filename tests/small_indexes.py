"""Collections of random vectors, small models without parameters, and engines that hold them."""

import os
from pathlib import Path

import numpy as np

from data_pipeline.tokenizer import WordTokenizer
from tests import tiny_models
from xmodal_jax.export import ExportedModel
from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.retrieval.answers import Query
from xmodal_jax.retrieval.engines.backends import ClientBackend
from xmodal_jax.retrieval.engines.qdrant import Qdrant
from xmodal_jax.retrieval.index import Index
from xmodal_jax.retrieval.items import Item, Part

WIDTH, VECTORS = 16, 6


def model(variant="teran", **changes):
    """A model of which only the score is used; that of none of these has parameters."""
    built = tiny_models.build(tiny_models.tiny_config(variant, **changes))
    tokenizer = WordTokenizer.from_counts({"red": 2, "dog": 2}, 1)
    return ExportedModel(built, {}, tokenizer, 8, VECTORS, 8, 0, ())


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embeddings(count, seed):
    """Vectors round few directions, as those of real models, one to VECTORS of them an item."""
    rng = np.random.default_rng(seed)
    topics = np.random.default_rng(7).normal(size=(12, WIDTH))
    centres = topics[rng.integers(0, 12, (count, VECTORS))]
    tokens = unit(centres + 0.5 * rng.normal(size=centres.shape)).astype(np.float32)
    mask = np.arange(VECTORS) < rng.integers(1, VECTORS + 1, (count, 1))
    pooled = unit((tokens * mask[..., None]).sum(1)).astype(np.float32)
    return Embeddings(tokens * mask[..., None], mask, pooled)


def part(names, seed=0, **fields):
    """Items of these names, with boxes; every second one is of the split "odd"."""
    rng = np.random.default_rng(seed)
    items = [
        Item(name, f"{name}.png", (64, 48), fields={"split": ("even", "odd")[n % 2]} | fields)
        for n, name in enumerate(names)
    ]
    corners = rng.uniform(0, 0.5, (len(items), VECTORS, 2))
    boxes = np.concatenate([corners, corners + 0.25], -1)
    return Part(items, embeddings(len(items), seed), boxes)


def query(seed, side="captions"):
    return Query(side, embeddings(1, 1000 + seed))


def open_engine(kind, directory, index, *, create=False):
    """A fresh or existing engine: "index", "edge", or "local" (a client without a server).

    index: the model's and, but for "index", the first stage's.
    """
    if kind == "index":
        return Index.open(directory, index.model)
    if kind == "edge":
        return Qdrant.open(f"qdrant-edge:{directory}", index, create=create)
    from qdrant_client import QdrantClient

    sizes = {"first": len(index.first_stage.centre), "regions": WIDTH} if create else None
    return Qdrant(ClientBackend(QdrantClient(path=str(directory)), "items", sizes), index)


def add_until_killed(kind, directory, base, log, name):
    """Adds parts of three items for ever; the log gets the ids of those that are acknowledged."""
    index = Index.open(base, model())
    engine = open_engine(kind, Path(directory), index, create=kind != "index")
    acknowledged = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in range(100_000):
        names = [f"{name}-{number}-{n}" for n in range(3)]
        engine.add([part(names, seed=number)])
        os.write(acknowledged, ("\n".join(names) + "\n").encode())
