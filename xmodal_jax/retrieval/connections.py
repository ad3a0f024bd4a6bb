"""Connections to the search's web page: none of them can keep the others out.

uvicorn waits without end for a request's header and for a client that does not read, and counts
connections that have asked nothing as if they were at work.
"""

import asyncio
import http
import time
from typing import Any

import h11
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from xmodal_jax.retrieval import guard


class Connection(H11Protocol):
    """A connection that ends when its client lets it wait, or when it waits in others' way.

    Its client has `timeout_keep_alive` seconds for a whole request, from the connection or the
    answer before on, and as long for taking some of an answer.
    """

    most = 256  # of all; beyond them the one that has waited longest ends

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._end: asyncio.TimerHandle | None = None
        self._since = 0.0  # finer than the clock of some loops, whose times may be equal

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # One that asks nothing makes room. If all are at work, this one's request is refused.
        idle = [c for c in self.connections if isinstance(c, Connection) and c._may_end]
        if len(self.connections) > self.most and idle:
            min(idle, key=lambda connection: connection._since).transport.abort()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def _watch(self) -> None:
        """Keeps time from when the client is the one who has to do something."""
        waits = (
            self.conn.their_state is h11.IDLE  # no header, or a part of one
            or self.flow.write_paused
            or self.transport.is_closing()  # and some of the answer is left
        )
        if not waits:
            self._unwatch()
        elif self._end is None:
            self._since = time.monotonic()
            self._end = self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

    @property
    def _may_end(self) -> bool:
        return self._end is not None and not self.transport.is_closing()

    def _unwatch(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets an error like any other."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send(guard.error(400, msg, **guard.HEADERS, Connection="close"))
        self.transport.close()

    def _send(self, answer: Response) -> None:
        reason = http.HTTPStatus(answer.status_code).phrase.encode()
        start = h11.Response(
            status_code=answer.status_code, headers=answer.raw_headers, reason=reason
        )
        for event in (start, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
