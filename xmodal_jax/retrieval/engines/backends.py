"""Qdrant within this process, and a Qdrant server: the same few operations of both.

Both hold points: a number, named vectors, and a payload. `first` is one vector, `regions` are
several that are compared by MaxSim: for each vector of the query the largest dot product, summed.
Neither has a graph (m=0): graphs over several vectors take 20 ms an image to build, and those over
first-stage codes lose candidates, as what is asked is distributed otherwise than what is stored.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np

from xmodal_jax.errors import UserError

FIRST, REGIONS = "first", "regions"
_NO_KEY = (401, 403)  # of HTTP
_INSTALL = 'pip install "xmodal_jax[qdrant]"'


@dataclasses.dataclass(frozen=True)
class Point:
    """An item as Qdrant has it; vectors are [D] or [R, D]."""

    number: int
    payload: dict[str, Any]
    vectors: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Nearest:
    """A search.

    Attributes:
      name: of the vectors that are compared.
      vector: [D], or [W, D] with regions.
      limit: how many points.
      where: values that fields of the payload have to have, by their paths.
      among: compare only the best so many by `first` with this vector.
      vectors: names of the vectors that come with the points.
    """

    name: str
    vector: np.ndarray
    limit: int
    where: Mapping[str, str]
    among: tuple[np.ndarray, int] | None = None
    vectors: tuple[str, ...] = ()


class Backend(Protocol):
    """A collection of points."""

    def upsert(self, points: Sequence[Point]) -> None:
        """Stores points; when it returns, a crash of this process loses none."""

    def delete(self, numbers: Sequence[int]) -> None:
        """Removes points."""

    def count(self) -> int:
        """How many there are."""

    def fetch(self, numbers: Sequence[int], vectors: tuple[str, ...] = ()) -> list[Point]:
        """Those of the points that are there, in any order."""

    def some(self) -> Point | None:
        """Any point."""

    def nearest(self, ask: Nearest) -> list[tuple[Point, float]]:
        """Points and their products, best first."""

    def settle(self) -> None:
        """To be called after many changes."""

    def close(self) -> None:
        """Ends."""


def _point(found: Any) -> Point:
    """Of either library's record."""
    vectors = {k: np.asarray(v, np.float32) for k, v in (found.vector or {}).items()}
    return Point(int(found.id), dict(found.payload or {}), vectors)


class EdgeBackend:
    """qdrant-edge-py: in this process, files in a directory, one process at a time."""

    def __init__(self, directory: Path, sizes: Mapping[str, int] | None = None) -> None:
        """sizes: of the vectors, where a new collection is to be made if there is none."""
        try:
            import qdrant_edge
        except ImportError:
            raise UserError(f"qdrant-edge needs its library: {_INSTALL}") from None
        self._q = qdrant_edge
        try:
            if (directory / "edge_config.json").exists():
                self._shard = qdrant_edge.EdgeShard.load(str(directory))
            elif sizes is None:
                raise UserError(f"{directory} holds no collection; copy an index there first")
            else:
                directory.mkdir(parents=True, exist_ok=True)
                self._shard = qdrant_edge.EdgeShard.create(str(directory), self._config(sizes))
        except UserError:
            raise
        except Exception as error:  # the library raises nothing more special
            if "WouldBlock" in str(error):
                raise UserError(
                    f"another process has opened {directory}; Qdrant Edge is for one at a time"
                ) from None
            raise UserError(f"{directory} can't be opened: {error}; copy the index again") from None

    def _config(self, sizes: Mapping[str, int]) -> Any:
        q = self._q
        several = q.MultiVectorConfig(q.MultiVectorComparator.MaxSim)
        vectors = {
            name: q.EdgeVectorParams(
                size=size,
                distance=q.Distance.Dot,
                datatype=q.VectorStorageDatatype.Float16,
                multivector_config=several if name == REGIONS else None,
                hnsw_config=q.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=1),
            )
            for name, size in sizes.items()
        }
        return q.EdgeConfig(vectors=vectors)

    def upsert(self, points: Sequence[Point]) -> None:
        # Its types name lists, and it takes arrays as well.
        made = [self._q.Point(p.number, dict[str, Any](p.vectors), p.payload) for p in points]
        self._shard.update(self._q.UpdateOperation.upsert_points(made))

    def delete(self, numbers: Sequence[int]) -> None:
        self._shard.update(self._q.UpdateOperation.delete_points(list(numbers)))

    def count(self) -> int:
        return self._shard.count(self._q.CountRequest(exact=True))

    def fetch(self, numbers: Sequence[int], vectors: tuple[str, ...] = ()) -> list[Point]:
        found = self._shard.retrieve(list(numbers), with_payload=True, with_vector=list(vectors))
        return [_point(record) for record in found]

    def some(self) -> Point | None:
        found, _ = self._shard.scroll(self._q.ScrollRequest(limit=1, with_payload=True))
        return _point(found[0]) if found else None

    def nearest(self, ask: Nearest) -> list[tuple[Point, float]]:
        q = self._q
        matches = [q.FieldCondition(k, match=q.MatchValue(v)) for k, v in ask.where.items()]
        fitting = q.Filter(must=matches) if matches else None
        before = None
        if ask.among:
            code, count = ask.among
            query = q.Query.Nearest(code, using=FIRST)
            before = [q.Prefetch(limit=count, query=query, filter=fitting)]
        request = q.QueryRequest(
            limit=ask.limit,
            query=q.Query.Nearest(ask.vector, using=ask.name),
            prefetches=before,
            filter=None if before else fitting,
            with_payload=True,
            with_vector=list(ask.vectors),
        )
        return [(_point(found), found.score) for found in self._shard.query(request)]

    def settle(self) -> None:
        self._shard.flush()
        # Nothing does so in the background, as a server does.
        self._shard.optimize()

    def close(self) -> None:
        self._shard.close()


class _Server:
    """A client of a server, what goes wrong with which is a UserError."""

    def __init__(self, client: Any, address: str) -> None:
        self._client, self._address = client, address

    def __getattr__(self, name: str) -> Any:
        from qdrant_client.common.client_exceptions import QdrantException
        from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

        method = getattr(self._client, name)

        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return method(*arguments, **named)
            except (ApiException, QdrantException, ValueError) as error:  # the last of no JSON
                refused = isinstance(error, UnexpectedResponse) and error.status_code in _NO_KEY
                what = "refuses the key in QDRANT_API_KEY" if refused else "does not answer"
                # The response itself may be a page.
                reason = str(error).split("\n")[0] or type(error).__name__
                raise UserError(f"the Qdrant server {self._address} {what}: {reason}") from None

        return call


class ClientBackend:
    """A collection of a server or cluster, or of qdrant-client's local mode."""

    def __init__(
        self, client: Any, collection: str, sizes: Mapping[str, int] | None = None
    ) -> None:
        """sizes: of the vectors, where a new collection is to be made if there is none."""
        from qdrant_client import models

        self._client, self._name, self._m = client, collection, models
        if client.collection_exists(collection):
            return
        if sizes is None:
            raise UserError(f"there is no collection {collection!r}; copy an index there first")
        client.create_collection(collection, vectors_config=self._config(sizes))

    @classmethod
    def connect(cls, url: str, sizes: Mapping[str, int] | None = None) -> "ClientBackend":
        """url: http://HOST:PORT/COLLECTION; a key is taken from QDRANT_API_KEY."""
        try:
            from qdrant_client import QdrantClient
        except ImportError:
            raise UserError(f"a Qdrant server needs its library: {_INSTALL}") from None
        parts = urlsplit(url)
        collection = parts.path.strip("/")
        if not parts.hostname or not collection or "/" in collection:
            raise UserError(f"{url!r} is not http://HOST:PORT/COLLECTION")
        server = f"{parts.scheme}://{parts.netloc}"
        client = QdrantClient(
            url=server,
            port=parts.port or (443 if parts.scheme == "https" else 6333),
            api_key=os.environ.get("QDRANT_API_KEY"),
            timeout=60,
            check_compatibility=False,
        )
        return cls(_Server(client, server), collection, sizes)

    def _config(self, sizes: Mapping[str, int]) -> Any:
        m = self._m
        several = m.MultiVectorConfig(comparator=m.MultiVectorComparator.MAX_SIM)
        return {
            name: m.VectorParams(
                size=size,
                distance=m.Distance.DOT,
                datatype=m.Datatype.FLOAT16,
                multivector_config=several if name == REGIONS else None,
                hnsw_config=m.HnswConfigDiff(m=0),
                on_disk=name == REGIONS,
            )
            for name, size in sizes.items()
        }

    def upsert(self, points: Sequence[Point]) -> None:
        made = [
            self._m.PointStruct(
                id=point.number,
                vector={name: vector.tolist() for name, vector in point.vectors.items()},
                payload=point.payload,
            )
            for point in points
        ]
        self._client.upsert(self._name, made, wait=True)

    def delete(self, numbers: Sequence[int]) -> None:
        self._client.delete(self._name, list(numbers), wait=True)

    def count(self) -> int:
        return self._client.count(self._name, exact=True).count

    def fetch(self, numbers: Sequence[int], vectors: tuple[str, ...] = ()) -> list[Point]:
        found = self._client.retrieve(
            self._name, list(numbers), with_payload=True, with_vectors=list(vectors)
        )
        return [_point(record) for record in found]

    def some(self) -> Point | None:
        found, _ = self._client.scroll(self._name, limit=1, with_payload=True)
        return _point(found[0]) if found else None

    def nearest(self, ask: Nearest) -> list[tuple[Point, float]]:
        m = self._m
        matches = [
            m.FieldCondition(key=k, match=m.MatchValue(value=v)) for k, v in ask.where.items()
        ]
        fitting = m.Filter(must=matches) if matches else None
        before = None
        if ask.among:
            code, count = ask.among
            before = m.Prefetch(query=code.tolist(), using=FIRST, limit=count, filter=fitting)
        found = self._client.query_points(
            self._name,
            query=ask.vector.tolist(),
            using=ask.name,
            prefetch=before,
            query_filter=None if before else fitting,
            limit=ask.limit,
            with_payload=True,
            with_vectors=list(ask.vectors),
        )
        return [(_point(point), point.score) for point in found.points]

    def settle(self) -> None:
        """A server does so by itself."""

    def close(self) -> None:
        self._client.close()
