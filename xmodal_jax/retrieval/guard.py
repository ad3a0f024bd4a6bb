"""What stands before the search's web page: who may ask, how much, and what is counted.

Every answer, errors included, passes here: it gets the headers that keep a browser from loading
anything from elsewhere, and none has a stack trace.
"""

import ipaddress
import logging
import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
EVERYWHERE = frozenset(("0.0.0.0", "::"))  # to listen at every address of the machine
# A search on a CPU takes some hundredths of a second, on a large index seconds.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_log = logging.getLogger(__name__)


def error(status: int, message: str, **headers: str) -> JSONResponse:
    """An error as every client gets it: one line of JSON."""
    return JSONResponse({"error": " ".join(message.split())}, status, headers)


def busy(message: str) -> JSONResponse:
    """The error of a server that has enough to do."""
    return error(503, message, **{"Retry-After": "1"})


class Guard:
    """ASGI middleware round the whole application."""

    def __init__(
        self, app: ASGIApp, registry: CollectorRegistry, hosts: Sequence[str], most: int
    ) -> None:
        """most: requests at a time; more are refused.

        hosts: names by which the server may be called; with 0.0.0.0 or :: also any address, and
        everything if there are none. A page of another site can have its own name resolve to
        127.0.0.1 and so would read what the server shows (DNS rebinding), but its requests carry
        that name, and what an address leads to is not that site's to say.
        """
        self._app, self._most, self._running = app, most, 0
        self._hosts = frozenset(map(str.lower, hosts))
        self._addresses = bool(self._hosts & EVERYWHERE)
        route = ("route",)
        self._requests = Counter(
            "xmodal_requests", "Requests.", ("route", "status"), registry=registry
        )
        self._errors = Counter("xmodal_errors", "Failures of the server.", route, registry=registry)
        self._seconds = Histogram(
            "xmodal_request_seconds",
            "Time to the answer.",
            route,
            buckets=_BUCKETS,
            registry=registry,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._running += 1
            refusal = self._refusal(scope)
            await (refusal or self._app)(scope, receive, send_with_headers)
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if status:
                raise  # An answer was begun; the server ends the connection.
            failed = error(500, "the server failed; its log says why")
            await failed(scope, receive, send_with_headers)
        finally:
            self._running -= 1
            # By route and not by path, of which there are as many as there are images.
            route = getattr(scope.get("route"), "path", "other")
            self._requests.labels(route, status or 500).inc()
            self._seconds.labels(route).observe(time.perf_counter() - start)
            if not status or status >= 500:
                self._errors.labels(route).inc()

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        # First: the connection of a body that nobody reads has to end.
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            return error(413, "a request has no body here; ask with GET", Connection="close")
        if self._running > self._most:
            return busy(f"{self._most} requests are at work already; try again soon")
        host = _name(headers.get("host", ""))
        if not self._is_called(host):
            names = ", ".join(sorted(self._hosts))
            return error(400, f"this server is not called {host[:60]!r}; use one of {names}")
        # Nor may a page of another site, or of another port of this machine, have a browser search,
        # or show images, in its own name. A link leads to the page itself.
        from_elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if from_elsewhere and scope["path"] != "/":
            return error(403, "this was asked for by a page of another site; open the page itself")
        return None

    def _is_called(self, host: str) -> bool:
        if not self._hosts or host in self._hosts:
            return True
        return self._addresses and _is_address(host)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _name(host: str) -> str:
    """A Host header without its port: 127.0.0.1:8000, localhost, [::1]:8000."""
    if host.startswith("["):
        return host.partition("]")[0].removeprefix("[").lower()
    return host.partition(":")[0].lower()
