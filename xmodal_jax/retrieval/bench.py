"""How fast searches are, what they cost, and how much a first stage loses, at sizes of your choice.

The index is built again in a directory that is deleted afterwards: its own items first, and for
larger sizes synthetic ones of the same distribution (`mixtures`). Encoding is not measured.
"""

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from xmodal_jax.errors import UserError
from xmodal_jax.ops.embeddings import Embeddings
from xmodal_jax.retrieval import fitting
from xmodal_jax.retrieval.answers import Query
from xmodal_jax.retrieval.engines.copying import stored_parts
from xmodal_jax.retrieval.engines.engine import Engine
from xmodal_jax.retrieval.engines.qdrant import EDGE, Qdrant
from xmodal_jax.retrieval.index import Index
from xmodal_jax.retrieval.items import Part
from xmodal_jax.retrieval.mixtures import Mixtures

ENGINES = ("qdrant-edge",)
_DEPTH = 10
# Times the bytes of the index's items: with codes, and in Qdrant float16, twice while it merges.
_ROOM, _ROOM_IN_QDRANT = 1.2, 5.0


@dataclasses.dataclass(frozen=True)
class Measured:
    """One way to search one size.

    Attributes:
      items: how many there are.
      engine: "index" or that of the measurement.
      stage: exact or staged.
      median_ms, p95_ms: of a query, asked alone.
      cpu_ms: of all threads for a query, mean.
      bytes: of an item on the disk, its files divided by the number of items.
      build_s, build_cpu_s: to store all items, and to fit the first stage where it is used.
      recall: share of the ten best of the index's exact search.
    """

    items: int
    engine: str
    stage: str
    median_ms: float
    p95_ms: float
    cpu_ms: float
    bytes: float
    build_s: float
    build_cpu_s: float
    recall: float


def bench(
    index: Index,
    size: int,
    *,
    asked: Embeddings | None = None,
    queries: int = 50,
    engines: Sequence[str] = (),
    scratch: str | None = None,
    seed: int = 0,
) -> Iterator[Measured]:
    """Measures one size.

    Args:
      index: what is measured is like it.
      size: number of items, at least that of the index.
      asked: embeddings of what may be asked; without them, vectors of items stand for it.
      queries: how many are asked.
      engines: of ENGINES, beside the index itself.
      scratch: directory for the files that are made and deleted; the system's if not given.
      seed: of everything that is drawn.

    Raises:
      UserError: the size is smaller than the index, or the disk is too small.
    """
    if not len(index):
        raise UserError(f"{index.store.directory} is empty; add items first")
    if size < len(index):
        raise UserError(f"--images={size} is less than the {len(index):,} of the index; give more")
    with tempfile.TemporaryDirectory(prefix="xmodal-bench-", dir=scratch) as directory:
        _check_room(index, size, Path(directory), len(engines))
        made = Index.build(
            Path(directory) / "index",
            index.model,
            side=index.side,
            store=index.store.about["store"],
        )
        watch = _Watch()
        parts = watch.without(_all_parts(index, size, seed))
        with tqdm(total=size, desc=f"{size:,} {index.side}", unit=" items", disable=None) as bar:
            made.add(parts, bar.update)
        built = watch.spent()
        fit_on, others = (None, None) if asked is None else fitting.halves(asked)
        rng = np.random.default_rng(seed)
        asked_for, _ = fitting.sample_queries(made, others, rng, queries)
        watch = _Watch()
        if index.kind != "vector":
            with tqdm(total=size, desc="first stage", unit=" items", disable=None) as bar:
                # Its recall is measured below, with more queries.
                fitting.fit_first_stage(made, fit_on, queries=1, on_done=bar.update, seed=seed)
        fitted = watch.spent()
        whole = (built[0] + fitted[0], built[1] + fitted[1])
        shards, codes = (Path(directory) / "index" / name for name in ("shards", "codes"))
        each = disk_bytes(shards) / size
        exact, hits = _asked(made, "index", "exact", asked_for, each, built)
        yield exact
        if made.first_stage:
            staged_bytes = each + disk_bytes(codes) / size
            yield _asked(made, "index", "staged", asked_for, staged_bytes, whole, hits)[0]
        for name in engines:
            yield from _other_engine(name, Path(directory), made, asked_for, hits)


def _other_engine(
    name: str, directory: Path, made: Index, queries: Sequence[Query], hits: list[set[str]]
) -> Iterator[Measured]:
    target = directory / name
    engine = Qdrant.open(f"{EDGE}{target}", made, create=True)
    watch = _Watch()
    with tqdm(total=len(made), desc=name, unit=" items", disable=None) as bar:
        engine.add(stored_parts(made), bar.update)
    built = watch.spent()
    # Files that were merged into others are deleted when the shard is closed.
    engine.close()
    each = disk_bytes(target) / len(made)
    engine = Qdrant.open(f"{EDGE}{target}", made)
    # What it can't do exactly, such as captions for an image, is left out.
    for stage in ("exact", "staged"):
        try:
            yield _asked(engine, name, stage, queries, each, built, hits)[0]
        except UserError:
            continue
    engine.close()


def _all_parts(index: Index, size: int, seed: int) -> Iterator[Part]:
    yield from stored_parts(index)
    if size > len(index):
        yield from Mixtures(index, seed).parts(size - len(index))


def _asked(
    engine: Engine,
    name: str,
    stage: str,
    queries: Sequence[Query],
    each: float,
    built: tuple[float, float],
    hits: Sequence[set[str]] = (),
) -> tuple[Measured, list[set[str]]]:
    """Asks all queries, one by one."""
    for query in queries[:2]:  # compiles, and reads from the disk
        engine.search(query, _DEPTH, stage=stage)
    seconds, found, cpu = [], [], time.process_time()
    for query in queries:
        start = time.perf_counter()
        answer = engine.search(query, _DEPTH, stage=stage)
        seconds.append(time.perf_counter() - start)
        found.append({hit.item.id for hit in answer.hits})
    cpu = time.process_time() - cpu
    pairs = list(zip(found, hits or found, strict=True))
    recall = sum(len(own & best) for own, best in pairs) / sum(len(best) for _, best in pairs)
    measured = Measured(
        items=len(engine),
        engine=name,
        stage=stage,
        median_ms=1000 * float(np.median(seconds)),
        p95_ms=1000 * float(np.percentile(seconds, 95)),
        cpu_ms=1000 * cpu / len(queries),
        bytes=each,
        build_s=built[0],
        build_cpu_s=built[1],
        recall=recall,
    )
    return measured, found


class _Watch:
    """Seconds and CPU seconds since it was made, but for those that making the input took."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def without(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The same parts, whose making does not count."""
        source: Iterator[Part] = iter(parts)
        while True:
            wall, cpu = time.perf_counter(), time.process_time()
            part = next(source, None)
            self._wall += time.perf_counter() - wall
            self._cpu += time.process_time() - cpu
            if part is None:
                return
            yield part

    def spent(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def disk_bytes(directory: Path) -> int:
    """What the files of a directory take on the disk."""
    return sum(file.stat().st_blocks * 512 for file in directory.rglob("*") if file.is_file())


def _check_room(index: Index, size: int, directory: Path, engines: int) -> None:
    each = disk_bytes(index.store.directory / "shards") / len(index)
    needed = size * each * (_ROOM + _ROOM_IN_QDRANT * engines)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise UserError(
            f"{size:,} items may take {needed / 2**30:.0f} GiB and {directory.parent} has "
            f"{free / 2**30:.0f}; give a directory with more by --scratch, or fewer --images"
        )


COLUMNS: dict[str, Callable[[Measured], str]] = {
    "items": lambda m: f"{m.items:,}",
    "engine": lambda m: m.engine,
    "stage": lambda m: m.stage,
    "ms, median": lambda m: f"{m.median_ms:,.1f}",
    "ms, 95 %": lambda m: f"{m.p95_ms:,.1f}",
    "CPU ms": lambda m: f"{m.cpu_ms:,.1f}",
    "bytes an item": lambda m: f"{m.bytes:,.0f}",
    "build s": lambda m: f"{m.build_s:,.0f}",
    "build CPU s": lambda m: f"{m.build_cpu_s:,.0f}",
    "recall@10": lambda m: f"{m.recall:.3f}",
}


def table(rows: Sequence[Measured]) -> str:
    """In Markdown, with the machine's cores and load."""
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    lines += [" | ".join(show(row) for show in COLUMNS.values()) for row in rows]
    load = os.getloadavg()[0]
    return "".join(f"| {line} |\n" for line in lines) + (
        f"{os.cpu_count()} cores, load {load:.1f}; {jax.devices()[0].platform}"
    )


def as_json(row: Measured) -> dict[str, Any]:
    """Of one measurement."""
    return dataclasses.asdict(row)
