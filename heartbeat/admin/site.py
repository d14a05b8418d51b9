"""The site on which a server is watched: twisted.web's, with no timer of its own, and for requests that carry nothing.

It stands on a listener of its own, so its connections are none of those that it shows.
"""

from __future__ import annotations

from typing import Any

from twisted.web.http import HTTPChannel
from twisted.web.server import Request, Site

from heartbeat.admin.deeds import Deeds
from heartbeat.admin.fleet import FleetView
from heartbeat.admin.guard import Guard
from heartbeat.admin.resources import make_root
from heartbeat.admin.view import View
from heartbeat.web.site import QuietSite

__all__ = ["make_site"]

# Of a scraper that keeps its connection open.
_IDLE = 90.0

# Asked for every few seconds.
_UNTOLD = frozenset(
    {b"/metrics", b"/healthz", b"/readyz"}
    | {of + what for of in (b"", b"/fleet") for what in (b"/totals", b"/clients", b"/deaths")}
)

_SENTENCE = b"nothing here takes a request with a body\n"
_TOO_MUCH = (
    b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_SENTENCE), _SENTENCE)
)


class _Channel(HTTPChannel):
    """Takes no bodies: twisted.web would keep what a stranger sends, on disk, before anybody has asked who he is."""

    def allHeadersReceived(self) -> None:
        """Twisted's: the head of a request is complete; a length of None is that of chunks."""
        if self.length != 0:
            transport: Any = self.transport
            transport.write(_TOO_MUCH)
            self.loseConnection()  # type: ignore[no-untyped-call]  # Twisted's
            # What follows of it is not parsed.
            self.setRawMode()  # type: ignore[no-untyped-call]  # Twisted's
            self.rawDataReceived = _ignore  # type: ignore[method-assign]  # as said
            return
        super().allHeadersReceived()  # type: ignore[no-untyped-call]  # Twisted's


def _ignore(data: bytes) -> None:
    """What nobody asked for."""


class _Site(QuietSite):
    requestFactory = Request
    protocol = _Channel  # type: ignore[assignment]  # a factory of one of its kind; ours speaks no HTTP/2

    def is_told(self, request: Any) -> bool:
        """Whether this request has its line in the log: not what is asked for all the time."""
        return not (request.method in (b"GET", b"HEAD") and request.path in _UNTOLD and request.code < 400)


def make_site(view: View, deeds: Deeds, fleet: FleetView | None, guard: Guard, reactor: Any) -> Site:
    """The site to watch a server by, and the fleet of which it is."""
    return _Site(make_root(view, deeds, fleet, guard), reactor=reactor, timeout=_IDLE)
