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

from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from heartbeat._version import __version__
from heartbeat.admin.guard import Guard
from heartbeat.admin.metrics import MISSING, Metrics, is_installed
from heartbeat.admin.view import MOST, Lines, View, word_of
from heartbeat.core.errors import CloseCode
from heartbeat.core.presence import Standing
from heartbeat.refusals import readable
from heartbeat.web.answers import TEXT, Fixed, Readable, Refusal, answer, nothing

__all__ = ["KICKED", "make_root"]

#: What a client that is kicked is told. 1008 is final: whoever comes back at once was not kicked.
KICKED = "ended by an operator"

_JSON = {"content-type": "application/json"}
_STANDINGS = {word_of(standing): standing for standing in Standing}
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


def make_root(server: Any, guard: Guard, drain: Callable[[], object]) -> Resource:
    """All of it: of the server with this factory."""
    view = View(server)
    # For Twisted's own annotations its resources are none.
    root: Any = _Root()  # type: ignore[no-untyped-call]  # Twisted's
    for name, part in _parts().items():
        root.putChild(name.encode(), part)
    root.putChild(b"healthz", _Health())  # type: ignore[no-untyped-call]  # Twisted's
    root.putChild(b"readyz", _Ready(view))
    root.putChild(b"metrics", _Metrics(view, guard))
    root.putChild(b"totals", _Totals(view, guard))
    root.putChild(b"clients", _Clients(view, guard))
    root.putChild(b"deaths", _Deaths(view, guard))
    root.putChild(b"drain", _Drain(guard, drain))
    return root  # type: ignore[no-any-return]  # a resource


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
    def getChild(self, path: bytes, request: Any) -> Resource:
        """Twisted's: an address at which there is nothing."""
        return nothing()


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
    """What is to be seen of the server by whoever may watch."""

    def __init__(self, view: View, guard: Guard) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        self._view = view
        self._guard = guard

    def read(self, request: Any) -> Any:
        """Answer a request that wants to read."""
        refusal = self._guard.watches(request)
        return self.show(request) if refusal is None else refusal.render(request)

    def show(self, request: Any) -> Any:
        """Answer somebody who may watch."""
        raise NotImplementedError

    def _with_lines(self, request: Any, show: Callable[[Lines], object]) -> Any:
        """Look at every connection first, unless he who asked has gone meanwhile."""
        gone: list[Failure] = []
        request.notifyFinish().addErrback(gone.append)

        def found(lines: Lines) -> None:
            if not gone:
                show(lines)

        def failed(failure: Failure) -> None:
            _log.failure("what there is could not be shown; this is a bug", failure)
            if not gone and not request.startedWriting:
                Refusal(500, "this could not be shown").render(request)

        self._view.lines().addCallback(found).addErrback(failed)
        return NOT_DONE_YET


class _Metrics(_Watched):
    """For Prometheus."""

    def __init__(self, view: View, guard: Guard) -> None:
        super().__init__(view, guard)
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

        return self._with_lines(request, show)


class _Totals(_Watched):
    """The numbers for the page."""

    def show(self, request: Any) -> Any:
        """Answer somebody who may watch."""
        return self._with_lines(request, lambda lines: _say(request, self._view.totals(lines)))


class _Deaths(_Watched):
    """Why the last links died."""

    def show(self, request: Any) -> Any:
        """Answer somebody who may watch."""
        return _say(request, self._view.deaths())


class _Clients(_Watched):
    """A page of clients; below it each of them, by his id."""

    def getChild(self, path: bytes, request: Any) -> Resource:
        """Twisted's: below this, a client by his id."""
        if request.postpath == [b"kick"]:
            # Decoded already; what is no client id is nobody's.
            return _Kick(self._view, self._guard, path.decode("ascii", "replace"))
        return nothing()

    def show(self, request: Any) -> Any:
        """Answer somebody who may watch."""
        wrong, limit = None, _asked(request, "limit", str(_PAGE))
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= MOST):
            wrong = f"limit must be a whole number from 1 to {MOST}"
        word = _asked(request, "standing", "")
        if word and word not in _STANDINGS:
            wrong = "standing must be one of " + ", ".join(_STANDINGS)
        if wrong:
            return Refusal(400, wrong).render(request)
        return _say(request, self._view.clients(_asked(request, "after", ""), int(limit[:9]), _STANDINGS.get(word)))


class _Deed(Resource):
    """What is done to the server by whoever may."""

    isLeaf = True

    def __init__(self, guard: Guard) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        self._guard = guard

    def render(self, request: Any) -> Any:
        """Twisted's: answer this request."""
        if request.method != b"POST":
            return Refusal(405, "this is done by POST", {"allow": "POST"}).render(request)
        refusal = self._guard.acts(request)
        return self.act(request) if refusal is None else refusal.render(request)

    def act(self, request: Any) -> Any:
        """Do it, and answer."""
        raise NotImplementedError


class _Kick(_Deed):
    """Ends the connections of a client, who is not to come back by himself. His sessions wait for as long as ever."""

    def __init__(self, view: View, guard: Guard, client_id: str) -> None:
        super().__init__(guard)
        self._view = view
        self._client_id = client_id

    def act(self, request: Any) -> Any:
        """Do it, and answer."""
        edges = self._view.edges_of(self._client_id)
        if not edges:
            return Refusal(404, "no such client is connected").render(request)
        for edge in edges:
            edge.guarded(edge.cut, CloseCode.POLICY, KICKED)
        _log.info("kicked {client_id}: {count} connection(s)", client_id=readable(self._client_id), count=len(edges))
        return _say(request, {"client_id": self._client_id, "closed": len(edges)})


class _Drain(_Deed):
    """Has the server ask everybody to come back later, and listen no more. It can still be watched."""

    def __init__(self, guard: Guard, drain: Callable[[], object]) -> None:
        super().__init__(guard)
        self._drain = drain

    def act(self, request: Any) -> Any:
        """Do it, and answer."""
        _log.info("drained by an operator")
        maybeDeferred(self._drain).addErrback(
            lambda failure: _log.failure("the server could not be drained; this is a bug", failure)
        )
        return _say(request, {"draining": True}, 202)


def _asked(request: Any, name: str, default: str) -> str:
    """What a query says for this name."""
    values = request.args.get(name.encode())
    return values[-1].decode("utf-8", "replace") if values else default


def _say(request: Any, what: dict[str, Any], code: int = 200) -> Any:
    # By the standard library, which escapes what is not ASCII: whatever a peer has made of his address, it is JSON.
    return answer(request, json.dumps(what).encode(), _JSON | {"cache-control": "no-store"}, code)
