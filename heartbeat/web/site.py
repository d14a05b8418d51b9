"""The site behind a server: what a plain HTTP request on the heartbeat's port gets.

Starts no timer. twisted.web's own access log would keep one a second and take the time of day from
the reactor, which says 1970 under a monotonic one.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger
from twisted.web.http import HTTPChannel
from twisted.web.pages import notFound
from twisted.web.resource import Resource
from twisted.web.server import Site

from heartbeat._version import __version__

__all__ = ["make_site"]

_PAGE = """\
txheartbeat {version}

This is a WebSocket heartbeat server. Connect to /ws on this port and say

    {{"type": "ping"}}

every few seconds; it answers

    {{"type": "ping", "status": "pong", "clients": 1}}

or run: heartbeat-client {scheme}://{host}/ws
"""


class _Page(Resource):
    """The plain page."""

    isLeaf = False

    def getChild(self, path: bytes, request: Any) -> Resource:
        if path == b"ws":
            return _Upgrade()  # type: ignore[no-untyped-call]  # Twisted's
        return self if path == b"" else notFound()

    def render_GET(self, request: Any) -> bytes:
        request.setHeader(b"content-type", b"text/plain; charset=utf-8")
        request.setHeader(b"x-content-type-options", b"nosniff")
        host = request.getHeader(b"host") or b"HOST:PORT"
        scheme = "wss" if request.isSecure() else "ws"
        return _PAGE.format(version=__version__, scheme=scheme, host=host.decode("latin-1")[:255]).encode()


class _Upgrade(Resource):
    """Where the WebSocket is: a request that does not ask for one is told to."""

    isLeaf = True

    def render_GET(self, request: Any) -> bytes:
        request.setResponseCode(426)
        request.setHeader(b"upgrade", b"websocket")
        request.setHeader(b"content-type", b"text/plain; charset=utf-8")
        return b"here speaks a WebSocket: ask for an upgrade to it\n"


class _Channel(HTTPChannel):
    """Answers one request and closes: what is kept open here is WebSockets."""

    def checkPersistence(self, request: Any, version: bytes) -> bool:
        """Twisted's: whether another request may follow."""
        request.responseHeaders.setRawHeaders(b"connection", [b"close"])
        return False


class _Site(Site):
    """twisted.web's, with an access log that needs no timer."""

    #: For the protocol that hands over to us: twisted.web would write a body to disk before anybody asked for it.
    takes_bodies = False

    protocol = _Channel  # type: ignore[assignment]  # a factory of one of its kind; ours speaks no HTTP/2

    _log = Logger()

    def startFactory(self) -> None:
        """Twisted's: nothing to start."""

    def stopFactory(self) -> None:
        """Twisted's: nothing to stop."""

    def log(self, request: Any) -> None:
        """Twisted's: a request was answered."""
        self._log.info(
            "{method} {uri} {code} from {peer}",
            method=request.method.decode("latin-1"),
            uri=request.uri.decode("latin-1")[:200],
            code=request.code,
            peer=request.getClientAddress().host if hasattr(request.getClientAddress(), "host") else "a local peer",
        )


def make_site(reactor: Any) -> Site:
    """The site of a server on `reactor`."""
    return _Site(_Page(), reactor=reactor)  # type: ignore[no-untyped-call]  # Twisted's
