"""The web page of an index: a sentence finds images, and each word shows what answered it.

  pip install -e ".[serve]"
  python -m xmodal_jax.retrieval serve runs/demo/index      # http://127.0.0.1:8000

Pictures are found by the ids of the index, never by a path of the client's. Searches run one after
another: each of them uses all of the machine.
"""

import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import anyio
import numpy as np
import uvicorn
from anyio import to_thread
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from starlette.exceptions import HTTPException as AnyHTTPException

from data_pipeline.errors import DataError
from xmodal_jax.errors import UserError
from xmodal_jax.retrieval.answers import Answer
from xmodal_jax.retrieval.connections import Connection
from xmodal_jax.retrieval.guard import Guard, busy, error
from xmodal_jax.retrieval.index import Index
from xmodal_jax.retrieval.items import Item
from xmodal_jax.retrieval.pictures import TYPES, Pictures
from xmodal_jax.retrieval.words import matched_words

LONGEST, MOST_WORDS, MOST_HITS = 500, 80, 100
_SHOWN = 24  # hits, if a request does not say how many
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_WAITING = 16  # searches, the one that runs included
_PATIENCE = 10  # seconds for a request to come, and for a client to take some of its answer
_WEB = Path(__file__).parent / "web"
# All files of the page: what is not named here is not served.
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/results.js": ("results.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}
_Count = Annotated[int, Query(ge=1, le=MOST_HITS)]
_T = TypeVar("_T")


class _Queue:
    """Searches run one at a time; more than some that wait are refused."""

    def __init__(self) -> None:
        self._one = anyio.CapacityLimiter(1)
        self.waiting = 0

    async def run(self, work: Callable[[], _T]) -> _T:
        if self.waiting >= _WAITING:
            raise HTTPException(503, f"{_WAITING} searches are waiting already; try again soon")
        self.waiting += 1
        try:
            return await to_thread.run_sync(work, limiter=self._one)
        finally:
            self.waiting -= 1


class _Answers:
    """What the page is told."""

    def __init__(self, index: Index, pictures: Pictures) -> None:
        self._index, self._pictures = index, pictures

    def browse(self, k: int) -> dict[str, Any]:
        """Some items from all over the index."""
        items = self._index.items()
        chosen = np.unique(np.linspace(0, len(items) - 1, min(k, len(items))).round().astype(int))
        hits = [self._item(items[number]) | {"boxes": [], "matches": []} for number in chosen]
        return {"items": len(items), "kind": self._index.kind, "hits": hits}

    def search(self, text: str, k: int) -> dict[str, Any]:
        """What fits a sentence."""
        start = time.perf_counter()
        query = self._index.text_query(text)
        if not query.one.mask.any():
            raise DataError(f"q={text!r} has no word that the model can read; describe an image")
        encoded = time.perf_counter()
        answer = self._index.search(query, k)
        return self._told(answer, {"encoding": encoded - start}) | {"text": text}

    def similar(self, id: str, k: int) -> dict[str, Any]:
        """What is like an item."""
        return self._told(self._index.query_item(id, k), {}) | {
            "like": self._item(self._index.item(id))
        }

    def _told(self, answer: Answer, seconds: dict[str, float]) -> dict[str, Any]:
        start = time.perf_counter()
        words: list[list[int]] = []
        hits = []
        for hit in answer.hits:
            matches = matched_words(self._index, answer.query, hit.row)
            # The same for every image that has regions.
            words = words or [[word.start, word.end] for word in matches]
            boxes = self._index.boxes(hit.row)
            hits.append(
                self._item(hit.item)
                | {
                    "score": round(hit.score, 4),
                    "boxes": [] if boxes is None else boxes.astype(float).round(4).tolist(),
                    "matches": [[word.region, round(word.similarity, 4)] for word in matches],
                }
            )
        seconds |= {"search": answer.seconds, "regions": time.perf_counter() - start}
        return {
            "items": len(self._index),
            "kind": self._index.kind,
            "stage": answer.stage,
            "milliseconds": {name: round(1000 * value, 1) for name, value in seconds.items()},
            "words": words,
            "hits": hits,
        }

    def _item(self, item: Item) -> dict[str, Any]:
        shown = self._pictures.path(item) is not None
        return {"id": item.id, "file": item.file, "size": item.size, "picture": shown}


def make_app(
    index: Index,
    *,
    pictures: str | Path | None = None,
    hosts: Sequence[str] = LOOPBACK,
    most: int = Connection.most,
) -> FastAPI:
    """The application: the page, its data, pictures, /healthz and /metrics.

    Args:
      index: of images.
      pictures: directory of the picture files, if not the one that the index names.
      hosts: names by which the server may be called; see `Guard`.
      most: requests at a time.

    Raises:
      UserError: the index holds captions, or its pictures are not there.
    """
    if index.side != "images":
        raise UserError(
            f"{index.store.directory} holds {index.side} and the page shows images; make an index "
            "with --side=images"
        )
    shown = Pictures(index.store.about["pictures"] if pictures is None else pictures)
    registry, queue, answers = CollectorRegistry(), _Queue(), _Answers(index, shown)
    Gauge("xmodal_items", "Items of the index.", registry=registry).set_function(lambda: len(index))
    Gauge("xmodal_waiting_searches", "Not answered yet.", registry=registry).set_function(
        lambda: queue.waiting
    )
    # The pages that FastAPI makes of an API load their scripts from elsewhere.
    app = FastAPI(title="xmodal_jax", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, registry=registry, hosts=hosts, most=most)
    app.add_exception_handler(AnyHTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(DataError, _invalid)
    for path, (name, kind) in _FILES.items():
        app.add_api_route(path, _file(_WEB / name, kind))

    @app.get("/api/browse")
    async def browse(k: _Count = _SHOWN) -> JSONResponse:
        return JSONResponse(await queue.run(lambda: answers.browse(k)))

    @app.get("/api/search")
    async def search(
        q: Annotated[str, Query(min_length=1, max_length=LONGEST)], k: _Count = _SHOWN
    ) -> JSONResponse:
        if (words := len(q.split())) > MOST_WORDS:
            raise DataError(f"q has {words} words; give at most {MOST_WORDS}")
        return JSONResponse(await queue.run(lambda: answers.search(q, k)))

    @app.get("/api/similar")
    async def similar(
        id: Annotated[str, Query(min_length=1, max_length=LONGEST)], k: _Count = _SHOWN
    ) -> JSONResponse:
        _known(index, id)
        return JSONResponse(await queue.run(lambda: answers.similar(id, k)))

    @app.get("/image/{id:path}")
    async def image(id: str) -> FileResponse:
        path = shown.path(_known(index, id))
        if path is None:
            raise HTTPException(404, f"item {id!r} has no picture")
        hour = {"Cache-Control": "private, max-age=3600"}
        return FileResponse(path, media_type=TYPES[path.suffix.lower()], headers=hour)

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        return JSONResponse({"status": "ok", "items": len(index)})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _file(path: Path, kind: str) -> Callable[[], Any]:
    async def file() -> FileResponse:
        return FileResponse(path, media_type=kind, headers={"Cache-Control": "no-cache"})

    return file


def _known(index: Index, id: str) -> Item:
    try:
        return index.item(id)
    except UserError:
        # The message of the index names its directory, which is nobody's business here.
        raise HTTPException(404, f"the index has no item {id[:60]!r}") from None


async def _refused(request: Request, reason: Exception) -> Response:
    assert isinstance(reason, AnyHTTPException)
    if reason.status_code == 503:
        return busy(str(reason.detail))
    return error(reason.status_code, str(reason.detail), **(reason.headers or {}))


async def _invalid(request: Request, reason: Exception) -> Response:
    if not isinstance(reason, RequestValidationError):
        return error(400, str(reason))
    first = reason.errors()[0]
    given = "" if first["type"] == "missing" else f"={str(first['input'])[:60]!r}"
    return error(400, f"{first['loc'][-1]}{given}: {first['msg']}")


def make_server(app: FastAPI, patience: float = _PATIENCE) -> uvicorn.Server:
    """What speaks HTTP for the application, with limits of its own on connections and headers.

    patience: seconds; see `Connection`.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=patience,  # type: ignore[arg-type]  # any number does
            h11_max_incomplete_event_size=16 * 1024,
            timeout_graceful_shutdown=5,
        )
    )


def run(
    index: Index,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    pictures: str | Path | None = None,
    names: Sequence[str] = (),
) -> None:
    """Serves an index until Ctrl-C or SIGTERM.

    Args:
      index: of images.
      host: address to listen at; by another than a loopback one the network sees the images.
      port: 0 takes a free one.
      pictures: see `make_app`.
      names: more of those by which it may be called, such as a proxy's.

    Raises:
      UserError: the port is taken, or see `make_app`.
    """
    local = host in LOOPBACK
    app = make_app(index, pictures=pictures, hosts=(*_names(host), *names))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as reason:
        raise UserError(
            f"can't listen at port {port} of {host} ({reason}); give another one with --port"
        ) from None
    port = listening.getsockname()[1]
    _compile(index)
    address = f"[{host}]" if ":" in host else host
    print(f"http://{address}:{port} shows {len(index):,} images; Ctrl-C ends it", flush=True)
    if not local:
        print(f"note: whoever reaches port {port} of this machine sees them, too", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        make_server(app).run(sockets=[listening])


def _names(host: str) -> tuple[str, ...]:
    """By which a server is called that listens there."""
    if host in LOOPBACK:
        return LOOPBACK
    # Of the machine's own ones nobody else decides where they lead.
    machine = socket.gethostname()
    return (*LOOPBACK, host, machine, f"{machine}.local")


def _compile(index: Index) -> None:
    """Searches once in each way, so that nobody waits for the programs to be compiled."""
    for item in index.items()[:1]:
        index.query_item(item.id, _SHOWN)
        answer = index.query_text("a", _SHOWN)
        matched_words(index, answer.query, answer.hits[0].row)
