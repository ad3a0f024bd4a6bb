"""The items of a search in Qdrant: within this process, or in a cluster for what one machine can't.

  python -m xmodal_jax.retrieval copy runs/demo/index qdrant-edge:runs/demo/qdrant
  python -m xmodal_jax.retrieval copy runs/demo/index http://localhost:6333/scenes
  python -m xmodal_jax.retrieval query runs/demo/index "a red circle" \\
    --engine http://localhost:6333/scenes

The index stays: it has the model and the first stage, by which items and questions are encoded. It
may be small, such as a sample of the collection.

Qdrant's MaxSim with a sentence's words is the score of models with alignment MrSw or MrAVGw, and
with an image's regions the likeness of images. Any other score, also that of captions for an
image, is computed here, for the candidates that Qdrant names.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from xmodal_jax.errors import UserError
from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.retrieval import row_scores
from xmodal_jax.retrieval.answers import Answer, Hit, Query
from xmodal_jax.retrieval.engines.backends import (
    FIRST,
    REGIONS,
    Backend,
    ClientBackend,
    EdgeBackend,
    Nearest,
    Point,
)
from xmodal_jax.retrieval.engines.points import (
    field_path,
    fingerprint_of,
    hit_of,
    number_of,
    payload_of,
    valid_vectors,
    vector_sizes,
)
from xmodal_jax.retrieval.first_stage import CANDIDATES, is_trusted
from xmodal_jax.retrieval.index import Index
from xmodal_jax.retrieval.items import Part, compress

EDGE = "qdrant-edge:"
_NUMBERS = 2**20  # sent at once; servers refuse requests above 32 MiB
_MAXSIM = ("MrSw", "MrAVGw")


class Qdrant:
    """An engine; see `engine.Engine`. The rows of its answers are the numbers of its points."""

    def __init__(self, backend: Backend, index: Index) -> None:
        """Not called by users: `open` does so.

        Args:
          backend: holds the items.
          index: has model and first stage; its own items are not looked at.

        Raises:
          UserError: the items were encoded by another model or first stage.
        """
        self._backend, self._index = backend, index
        self._count: int | None = None  # not asked for with every search; as far as this one knows
        self._made_with = fingerprint_of(index)
        found = backend.some()
        if found and found.payload.get("made_with") != self._made_with:
            raise UserError(
                f"Qdrant's items were encoded otherwise than {index.store.directory} does it (its "
                "model or first stage is another one); copy the index to an empty place"
            )

    @classmethod
    def open(cls, target: str, index: Index, *, create: bool = False) -> "Qdrant":
        """Opens `qdrant-edge:DIRECTORY` or `http://HOST:PORT/COLLECTION`.

        Args:
          target: see above.
          index: has model and first stage.
          create: an empty collection where there is none.

        Raises:
          UserError: there is nothing, no server answers, or it was made with another model.
        """
        sizes = vector_sizes(index) if create else None
        if target.startswith(EDGE):
            return cls(EdgeBackend(Path(target.removeprefix(EDGE)), sizes), index)
        if target.startswith(("http://", "https://")):
            return cls(ClientBackend.connect(target, sizes), index)
        raise UserError(f"{target!r} is no engine; use {EDGE}DIRECTORY or http://HOST:PORT/NAME")

    def __len__(self) -> int:
        if self._count is None:
            self._count = self._backend.count()
        return self._count

    def close(self) -> None:
        """Ends the connection, or frees the directory for others."""
        self._backend.close()

    def present(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that are there."""
        points = self._backend.fetch([number_of(id) for id in ids])
        there = {point.payload["id"] for point in points}
        if strange := there - set(ids):
            raise UserError(f"{min(strange)!r} has the number of a new id; rename one of them")
        return there

    def add(
        self, parts: Iterable[Part], on_stored: Callable[[int], object] = lambda count: None
    ) -> int:
        """Adds items; see `Engine.add`. A crash may leave some of the part that was under way."""
        added = 0
        for part in parts:
            part.check(self.present([item.id for item in part.items]))
            points = self._points(part)
            largest = max((sum(v.size for v in p.vectors.values()) for p in points), default=1)
            size = max(1, _NUMBERS // largest)
            self._count = None
            for start in range(0, len(points), size):
                self._backend.upsert(points[start : start + size])
            added += len(points)
            on_stored(len(points))
        self._backend.settle()
        return added

    def _points(self, part: Part) -> list[Point]:
        kind, stage = self._index.kind, self._index.first_stage
        embeddings = part.embeddings
        vectors: dict[str, Any] = {}
        if kind != "tokens":
            vectors[FIRST] = np.asarray(embeddings.pooled, np.float32)
        elif stage:
            vectors[FIRST] = stage.item_vectors(embeddings)
        if kind != "vector":
            vectors[REGIONS] = valid_vectors(embeddings, part.items)
        made = []
        for row, item in enumerate(part.items):
            payload = payload_of(item) | {"made_with": self._made_with}
            if part.boxes is not None:
                mask = np.asarray(embeddings.mask[row]) if kind != "vector" else slice(None)
                payload["boxes"] = np.asarray(part.boxes[row][mask], float).round(4).tolist()
            own = {name: vector[row] for name, vector in vectors.items()}
            made.append(Point(number_of(item.id), payload, own))
        return made

    def remove(self, ids: Iterable[str]) -> None:
        """Removes items; UserError if one of them is not there, and then none is removed."""
        ids = list(dict.fromkeys(ids))
        if missing := set(ids) - self.present(ids):
            raise UserError(f"Qdrant has no item {min(missing)!r}")
        if ids:
            self._count = None
            self._backend.delete([number_of(id) for id in ids])

    def search(
        self,
        query: Query,
        k: int = 10,
        *,
        stage: str = "auto",
        candidates: int = CANDIDATES,
        where: Mapping[str, str] | None = None,
    ) -> Answer:
        """The k best items; see `Index.search`.

        Stage auto is exact, where it can be, unless the index trusts its first stage among as many
        items as Qdrant holds.

        Raises:
          UserError: k, stage or the side of the query do not fit, or Qdrant has not this score.
        """
        start = time.perf_counter()
        self._index.check_question(query, k, stage)
        paths = {field_path(name): value for name, value in (where or {}).items()}
        native = self._native(query)
        stage = self._chosen_stage(stage, native is not None)
        code = None
        if stage == "staged":
            code = (self._code(query), max(candidates, k))
        if native is not None:
            name, vector, divisor = native
            found = self._backend.nearest(Nearest(name, vector, k, paths, code))
            hits = [hit_of(point, score / divisor) for point, score in found]
        else:
            assert code is not None
            names = (FIRST, REGIONS) if self._index.kind == "pair" else (REGIONS,)
            ask = Nearest(FIRST, code[0], code[1], paths, vectors=names)
            points = [point for point, _ in self._backend.nearest(ask)]
            hits = self._rescored(query, points, k)
        return Answer(hits, query, stage, time.perf_counter() - start)

    def _native(self, query: Query) -> tuple[str, np.ndarray, float] | None:
        """Vectors' name, query vector and divisor, where Qdrant's product is the score."""
        index, one = self._index, query.one
        likeness = query.side == index.side
        if index.kind == "vector" or (index.kind == "pair" and likeness):
            return FIRST, np.asarray(one.pooled, np.float32), 1.0
        if index.kind == "pair":
            return None
        mode, fill_zero = index.model.model.alignment
        # A padding that counts as similarity 0 is known to the model alone.
        as_words = index.side == "images" and mode in _MAXSIM and not fill_zero
        if not (likeness or as_words):
            return None
        words = np.asarray(one.tokens, np.float32)[one.mask]
        words = words if len(words) else np.zeros((1, one.tokens.shape[1]), np.float32)
        return REGIONS, words, 1.0 if mode == "MrSw" and not likeness else float(len(words))

    def _chosen_stage(self, stage: str, native: bool) -> str:
        index = self._index
        if index.kind == "vector":
            able = ["exact"]
        elif index.kind == "pair":
            able = ["exact"] if native else ["staged"]
        else:
            able = ["exact"] * native + ["staged"] * (index.first_stage is not None)
        if not able:
            raise UserError(
                f"Qdrant needs a first stage for this score, and {index.store.directory} has none; "
                "make one with python -m xmodal_jax.retrieval fit, and copy it again"
            )
        if stage == "auto":
            return able[-1] if is_trusted(index.store.first_stage, len(self)) else able[0]
        if stage not in able:
            raise UserError(
                f"stage={stage!r} is not possible in Qdrant for a model of kind {index.kind} with "
                f"this question; use {' or '.join(able)}"
            )
        return stage

    def _code(self, query: Query) -> np.ndarray:
        """[M] to find candidates by."""
        if self._index.kind != "tokens":
            return np.asarray(query.one.pooled, np.float32)
        assert self._index.first_stage is not None
        return self._index.first_stage.query_code(query.embeddings, query.side)

    def _rescored(self, query: Query, points: list[Point], k: int) -> list[Hit]:
        """The k best of these points by the model, best first."""
        if not points:
            return []
        embeddings = self._embeddings(points)
        block: dict[str, np.ndarray] = {"mask": np.asarray(embeddings.mask)}
        for name in ("tokens", "pooled"):
            values = np.asarray(getattr(embeddings, name))
            block[name], block[name + "_scale"] = compress(values, "float16")
        block = {name: block[name] for name in row_scores.ARRAYS[self._index.kind]}
        scores = self._index.block_scores(query, block)
        order = np.argsort(-scores, kind="stable")[:k]
        return [hit_of(points[row], scores[row]) for row in order]

    def _embeddings(self, points: Sequence[Point]) -> Embeddings:
        """[n, R, D], [n, R], [n, D] of points that came with their vectors."""
        several = [p.vectors.get(REGIONS, np.zeros((1, 1), np.float32)) for p in points]
        # The model is compiled for a number of vectors, as for one of rows.
        width = 1 << (max(map(len, several)) - 1).bit_length()
        tokens = np.zeros((len(points), width, several[0].shape[1]), np.float32)
        mask = np.zeros((len(points), width), bool)
        for row, vectors in enumerate(several):
            tokens[row, : len(vectors)] = vectors
            mask[row, : len(vectors)] = vectors.any(axis=1)
        pooled = np.zeros((len(points), 1), np.float32)
        if self._index.kind != "tokens":
            pooled = np.stack([point.vectors[FIRST] for point in points])
        return Embeddings(jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(pooled))

    # Explaining

    def item_query(self, id: str) -> Query:
        """An item, as it is stored; UserError where there is none."""
        if not self.present([id]):
            raise UserError(f"Qdrant has no item {id!r}")
        return Query(self._index.side, self._embeddings([self._fetched(number_of(id))]))

    def _fetched(self, row: int) -> Point:
        names = {"vector": (FIRST,), "tokens": (REGIONS,), "pair": (FIRST, REGIONS)}
        points = self._backend.fetch([row], names[self._index.kind])
        if not points:
            raise UserError(f"Qdrant has no point {row}")
        return points[0]

    def boxes(self, row: int) -> np.ndarray | None:
        """See `Engine.boxes`."""
        boxes = self._fetched(row).payload.get("boxes")
        return None if boxes is None else np.asarray(boxes, np.float32)

    def similarities(self, query: Query, row: int) -> np.ndarray | None:
        """See `Engine.similarities`."""
        if self._index.kind == "vector":
            return None
        regions = self._fetched(row).vectors[REGIONS]
        return (
            regions[regions.any(axis=1)]
            @ np.asarray(query.one.tokens, np.float32)[query.one.mask].T
        )
