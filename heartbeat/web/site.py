"""The site behind a server: what a plain HTTP request on the heartbeat's port gets.

Starts no timer of its own: twisted.web's access log would keep one a second and take the time of day from the reactor,
which says 1970 under a monotonic one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.logger import Logger
from twisted.web.http import HTTPChannel
from twisted.web.server import Request, Site

from heartbeat.core.pace import Pace
from heartbeat.handshake import path_of
from heartbeat.web.answers import Refusal
from heartbeat.web.resources import live_page

__all__ = ["QuietSite", "make_site"]

# Asked for by browsers and not by people.
_UNTOLD = frozenset({b"/favicon.svg", b"/favicon.ico"})

_BAD_REQUEST = 400

# So many requests that were refused have a line at once, and as many a minute: a stranger decides how often that is.
_REFUSED = 10


class _Request(Request):
    """A request of which the answer is decided by its path alone."""

    def process(self) -> None:
        """Twisted's: the request is complete."""
        # RFC 9112, section 3.2.2: "a server MUST accept the absolute-form in requests".
        self.path = path_of(b" ".join((self.method, self.uri, self.clientproto))).encode("latin-1")
        super().process()  # type: ignore[no-untyped-call]  # Twisted's


class _Channel(HTTPChannel):
    """Answers one request and closes: what is kept open here is WebSockets."""

    site: Site

    _answered = False

    def checkPersistence(self, request: Any, version: bytes) -> bool:
        """Twisted's: whether another request may follow."""
        request.responseHeaders.setRawHeaders(b"connection", [b"close"])
        return False

    def dataReceived(self, data: bytes) -> None:
        """Twisted's: bytes arrived; what follows the request is nothing to us."""
        if not self._answered:
            super().dataReceived(data)  # type: ignore[no-untyped-call]  # Twisted's

    def requestDone(self, request: Any) -> None:
        """Twisted's: a request was answered, and whoever does not read the answer is not waited for without an end."""
        self._answered = True
        self.setTimeout(self.site.timeOut)  # type: ignore[no-untyped-call]  # Twisted's
        super().requestDone(request)  # type: ignore[no-untyped-call]  # Twisted's


class QuietSite(Site):
    """twisted.web's, with an access log that needs no timer."""

    _log = Logger()

    def __init__(self, root: Any, *, reactor: Any, **keywords: Any) -> None:
        super().__init__(root, reactor=reactor, **keywords)  # type: ignore[no-untyped-call]  # Twisted's
        self._seconds: Callable[[], float] = reactor.seconds
        self._refused = Pace(_REFUSED / 60, _REFUSED, self._seconds())
        self._more = 0

    def startFactory(self) -> None:
        """Twisted's: nothing to start."""

    def stopFactory(self) -> None:
        """Twisted's: nothing to stop."""

    def log(self, request: Any) -> None:
        """Twisted's: a request was answered."""
        if not self.is_told(request):
            return
        if request.code >= _BAD_REQUEST and not self._has_room():
            return
        self._log.info(
            "{method} {uri} {code} from {peer}",
            method=request.method[:200].decode("latin-1"),
            uri=request.uri[:200].decode("latin-1"),
            code=request.code,
            peer=getattr(request.getClientAddress(), "host", "a local peer"),
        )

    def is_told(self, request: Any) -> bool:
        """Whether this request has its line in the log."""
        raise NotImplementedError

    def _has_room(self) -> bool:
        """Whether one more that was refused has its line; it is told before how many had none."""
        now = self._seconds()
        if not self._refused.has_room(now):
            self._more += 1
            return False
        self._refused.take(now)
        more, self._more = self._more, 0
        if more:
            self._log.info("refused {count} more requests since then", count=more)
        return True


class _Site(QuietSite):
    #: For the protocol that hands over to us: twisted.web would write a body to disk before anybody asked for it.
    takes_bodies = False

    requestFactory = _Request
    protocol = _Channel  # type: ignore[assignment]  # a factory of one of its kind; ours speaks no HTTP/2

    def is_told(self, request: Any) -> bool:
        """Whether this request has its line in the log."""
        return request.path not in _UNTOLD


def make_site(reactor: Any, messages: Iterable[str] = ()) -> Site:
    """The site of a server on `reactor` that serves these application messages."""
    root: Any = live_page(messages)
    headers = {"upgrade": "websocket", "connection": "upgrade, close"}
    root.putChild(b"ws", Refusal(426, "here speaks a WebSocket: ask for an upgrade to it", headers))
    return _Site(root, reactor=reactor)
