"""The live page, the browser client, and a text for programs, as resources of twisted.web.

All of it lies in this package. It is read once, before anybody has asked for it and before a daemon changes its root,
and never changes while the server runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import PurePath
from string import Template
from typing import Any

from twisted.web.resource import Resource

from heartbeat._version import __version__
from heartbeat.web.answers import TEXT, Fixed, Readable, answer, takes

__all__ = ["browser_client", "live_page"]

_HERE = files(__package__)

# By the end of its name. What is of no kind is not served; index.html is the front page.
_KINDS = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}

# The client is public, and a page imports a module from another host only where its answer says that it may.
_ANYWHERE = {"access-control-allow-origin": "*"}

_VARIES = {"vary": "accept, accept-encoding"}

# 'self' means ws: and wss: of the same host too (CSP 3; Chromium, Firefox, Safari since 15.4).
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
} | _VARIES

_TEXT = """\
txheartbeat {version}

This is a WebSocket heartbeat server. Connect to /ws on this port and say

    {{"type": "ping"}}

every few seconds; it answers

    {{"type": "ping", "status": "pong", "clients": 1}}

or run: heartbeat-client {scheme}://{host}/ws
or open this address in a browser; a page has its client from /heartbeat.js
"""


@cache
def _parts() -> dict[str, Fixed]:
    """All that is served by its name: what the page is made of, and the browser client with its types."""
    page, client = _HERE / "page", _HERE / "static"
    kinds = {part: _KINDS.get(PurePath(part.name).suffix) for part in page.iterdir()}
    parts = {part.name: Fixed(part.read_bytes(), kind) for part, kind in kinds.items() if kind is not None}
    # Where browsers look for one that no page has named.
    parts["favicon.ico"] = parts["favicon.svg"]
    parts["heartbeat.js"] = Fixed((client / "heartbeat.js").read_bytes(), _KINDS[".js"], _ANYWHERE)
    parts["heartbeat.d.ts"] = Fixed((client / "heartbeat.d.ts").read_bytes(), TEXT["content-type"], _ANYWHERE)
    return parts


class _Front(Readable):
    """The live page for whoever asks for HTML, which is browsers; a text for whoever does not, which is programs."""

    def __init__(self, messages: Iterable[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        page = Template((_HERE / "page" / "index.html").read_text(encoding="utf-8"))
        html = page.substitute(messages=escape(" ".join(messages)), version=__version__)
        self._page = Fixed(html.encode(), "text/html; charset=utf-8", _PAGE_HEADERS)

    def read(self, request: Any) -> Any:
        """Answer a request that wants to read."""
        if takes(request, b"accept", b"text/html"):
            return self._page.read(request)
        scheme, host = "wss" if request.isSecure() else "ws", request.getHeader(b"host") or b"HOST:PORT"
        text = _TEXT.format(version=__version__, scheme=scheme, host=host.decode("latin-1")[:255])
        return answer(request, text.encode(), TEXT | _VARIES)


class _Folder(Readable):
    """Where the front page and its files are, by their names."""

    def read(self, request: Any) -> Any:
        """Answer a request that left out the slash, without which a page does not find its files."""
        name = request.path.rpartition(b"/")[2].decode("latin-1")
        return answer(request, b"", {"location": f"./{name}/"}, 302)


def browser_client() -> Resource:
    """The browser client for a site of one's own, to be put at `heartbeat.js` there."""
    return _parts()["heartbeat.js"]


def live_page(messages: Iterable[str] = ()) -> Resource:
    """The live page with all that it needs, for a site of one's own that has the WebSocket at /ws.

    `messages` are the application messages that are served (`chat`, `group`, `ai`).
    """
    # For Twisted's own annotations its resources are none.
    folder: Any = _Folder()  # type: ignore[no-untyped-call]  # Twisted's
    folder.putChild(b"", _Front(messages))
    for name, part in _parts().items():
        folder.putChild(name.encode(), part)
    return folder  # type: ignore[no-any-return]  # a resource
