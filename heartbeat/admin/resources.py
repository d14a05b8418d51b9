"""What is at which address of the site on which a server is watched.

Each address has one resource, each asks the guard before it looks at anything. What a peer has chosen, a client id
or a close reason, is only ever said as JSON, or as a label's value.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from heartbeat._version import __version__
from heartbeat.admin.deeds import Deeds, NobodyError, NotAnsweredError
from heartbeat.admin.fleet import FleetView
from heartbeat.admin.guard import Guard
from heartbeat.admin.metrics import MISSING, Metrics, is_installed
from heartbeat.admin.view import MOST, STANDINGS, Lines, View
from heartbeat.web.answers import TEXT, Fixed, Readable, Refusal, answer, nothing

__all__ = ["make_root"]

_JSON = {"content-type": "application/json"}
_PAGE = 100

_log = Logger()

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
_KINDS = {
    "watch.js": "text/javascript; charset=utf-8",
    "watch.css": "text/css; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "favicon.svg": "image/svg+xml",
}


def make_root(view: View, deeds: Deeds, fleet: FleetView | None, guard: Guard) -> Resource:
    """All of it: of a server, and of the fleet of which it is."""
    # For Twisted's own annotations its resources are none.
    root: Any = _Root()  # type: ignore[no-untyped-call]  # Twisted's
    for name, part in _parts().items():
        root.putChild(name.encode(), part)
    root.putChild(b"healthz", _Health())  # type: ignore[no-untyped-call]  # Twisted's
    root.putChild(b"readyz", _Ready(view))
    root.putChild(b"metrics", _Metrics(view, guard))
    root.putChild(b"totals", _Seen(guard, lambda: view.lines().addCallback(view.totals)))
    root.putChild(b"clients", _Clients(guard, view.clients, lambda client_id: _kick(client_id, deeds)))
    root.putChild(b"deaths", _Seen(guard, view.deaths))
    root.putChild(b"drain", _Deed(guard, 202, lambda: _drained(deeds)))
    if fleet is not None:
        all_: Any = _Root()  # type: ignore[no-untyped-call]  # Twisted's
        all_.putChild(b"totals", _Seen(guard, fleet.totals))
        all_.putChild(b"clients", _Clients(guard, fleet.clients, fleet.kick))
        all_.putChild(b"deaths", _Seen(guard, fleet.deaths))
        all_.putChild(b"servers", _Servers(guard, fleet))
        root.putChild(b"fleet", all_)
    return root  # type: ignore[no-any-return]  # a resource


def _kick(client_id: str, deeds: Deeds) -> dict[str, Any]:
    return {"client_id": client_id, "closed": deeds.kick(client_id)}


def _kicked(kicked: dict[str, Any]) -> dict[str, Any]:
    if not kicked["closed"]:
        raise NobodyError("no such client is connected")
    return kicked


def _drained(deeds: Deeds) -> dict[str, Any]:
    deeds.drain()
    return {"draining": True}


@cache
def _parts() -> dict[str, Fixed]:
    """The operator's page, which looks as the live page does."""
    here, live = files(__package__) / "page", files("heartbeat.web") / "page"
    html = (here / "index.html").read_text(encoding="utf-8").replace("$version", __version__)
    parts = {"": Fixed(html.encode(), "text/html; charset=utf-8", _HEADERS)}
    for name, kind in _KINDS.items():
        folder = here if name.startswith("watch.") else live
        parts[name] = Fixed((folder / name).read_bytes(), kind)
    parts["favicon.ico"] = parts["favicon.svg"]
    return parts


class _Root(Resource):
    """What others are below: there is nothing itself, and nothing else."""

    def getChild(self, path: bytes, request: Any) -> Resource:
        """Twisted's: an address at which there is nothing."""
        return nothing()

    def render(self, request: Any) -> Any:
        """Twisted's: answer this request."""
        return nothing().render(request)


class _Health(Readable):
    """Whoever can say this turns."""

    def read(self, request: Any) -> Any:
        """Answer a request that wants to read."""
        return answer(request, f"txheartbeat {__version__} is alive\n".encode(), TEXT)


class _Ready(Readable):
    """Whether somebody may be sent here."""

    def __init__(self, view: View) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        self._view = view

    def read(self, request: Any) -> Any:
        """Answer a request that wants to read."""
        unready = self._view.unready
        return answer(request, f"{unready or 'ready'}\n".encode(), TEXT, 503 if unready else 200)


class _Watched(Readable):
    """What is to be seen by whoever may watch."""

    def __init__(self, guard: Guard) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        self._guard = guard

    def read(self, request: Any) -> Any:
        """Answer a request that wants to read."""
        refusal = self._guard.watches(request)
        return self.show(request) if refusal is None else refusal.render(request)

    def show(self, request: Any) -> Any:
        """Answer somebody who may watch."""
        raise NotImplementedError


class _Metrics(_Watched):
    """For Prometheus."""

    def __init__(self, view: View, guard: Guard) -> None:
        super().__init__(guard)
        self._view = view
        self._metrics = Metrics(view) if is_installed() else None

    def show(self, request: Any) -> Any:
        """Answer somebody who may watch."""
        metrics = self._metrics
        if metrics is None:
            return Refusal(501, MISSING).render(request)
        accept = request.getHeader(b"accept") or b""

        def show(lines: Lines) -> None:
            text, kind = metrics.text(accept.decode("latin-1"), lines)
            answer(request, text, {"content-type": kind, "vary": "accept"})

        return _when(request, self._view.lines(), show)


class _Seen(_Watched):
    """What `see` tells, or its Deferred."""

    def __init__(self, guard: Guard, see: Callable[[], Any]) -> None:
        super().__init__(guard)
        self._see = see

    def show(self, request: Any) -> Any:
        """Answer somebody who may watch."""
        return _when(request, maybeDeferred(self._see), lambda seen: _say(request, seen))


class _Clients(_Watched):
    """A page of clients, as `page(after, limit, standing)` tells; below it each of them, by his id, to `kick` him."""

    def __init__(self, guard: Guard, page: Callable[[str, int, str], Any], kick: Callable[[str], Any]) -> None:
        super().__init__(guard)
        self._page = page
        self._kick = kick

    def getChild(self, path: bytes, request: Any) -> Resource:
        """Twisted's: below this, a client by his id."""
        if request.postpath == [b"kick"]:
            # Decoded already; what is no client id is nobody's.
            client_id = path.decode("ascii", "replace")
            return _Deed(self._guard, 200, lambda: maybeDeferred(self._kick, client_id).addCallback(_kicked))
        return nothing()

    def show(self, request: Any) -> Any:
        """Answer somebody who may watch."""
        wrong, limit = None, _asked(request, "limit", str(_PAGE))
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= MOST):
            wrong = f"limit must be a whole number from 1 to {MOST}"
        word = _asked(request, "standing", "")
        if word and word not in STANDINGS:
            wrong = "standing must be one of " + ", ".join(STANDINGS)
        if wrong:
            return Refusal(400, wrong).render(request)
        page = maybeDeferred(self._page, _asked(request, "after", ""), int(limit[:9]), word)
        return _when(request, page, lambda seen: _say(request, seen))


class _Servers(_Root):
    """Below this, the servers of a fleet by their names."""

    def __init__(self, guard: Guard, fleet: FleetView) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        self._guard = guard
        self._fleet = fleet

    def getChild(self, path: bytes, request: Any) -> Resource:
        """Twisted's: below this, a server by its name."""
        if request.postpath == [b"drain"]:
            return _Deed(self._guard, 202, lambda: self._fleet.drain(path.decode("ascii", "replace")))
        return nothing()


class _Deed(Resource):
    """What is done by whoever may: `act` does it, and tells what to answer, or its Deferred."""

    isLeaf = True

    def __init__(self, guard: Guard, code: int, act: Callable[[], Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        self._guard = guard
        self._code = code
        self._act = act

    def render(self, request: Any) -> Any:
        """Twisted's: answer this request."""
        if request.method != b"POST":
            return Refusal(405, "this is done by POST", {"allow": "POST"}).render(request)
        refusal = self._guard.acts(request)
        if refusal is not None:
            return refusal.render(request)
        return _when(request, maybeDeferred(self._act), lambda done: _say(request, done, self._code))


def _when(request: Any, asked: Deferred[Any], show: Callable[[Any], object]) -> Any:
    """Show it when it is there, unless whoever asked has gone meanwhile."""
    gone: list[Failure] = []
    request.notifyFinish().addErrback(gone.append)

    def found(what: Any) -> None:
        if not gone:
            show(what)

    def failed(failure: Failure) -> None:
        if failure.check(NobodyError):
            refusal = Refusal(404, failure.getErrorMessage())
        elif failure.check(NotAnsweredError):
            refusal = Refusal(503, failure.getErrorMessage())
        else:
            _log.failure("what there is could not be shown; this is a bug", failure)
            refusal = Refusal(500, "this could not be shown")
        if not gone and not request.startedWriting:
            refusal.render(request)

    asked.addCallback(found).addErrback(failed)
    return NOT_DONE_YET


def _asked(request: Any, name: str, default: str) -> str:
    """What a query says for this name."""
    values = request.args.get(name.encode())
    return values[-1].decode("utf-8", "replace") if values else default


def _say(request: Any, what: dict[str, Any], code: int = 200) -> Any:
    # By the standard library, which escapes what is not ASCII: whatever a peer has made of his address, it is JSON.
    return answer(request, json.dumps(what).encode(), _JSON | {"cache-control": "no-store"}, code)
