"""What is decided about a connection before it is a WebSocket: whom it is for, and whether it may come in.

Pure functions over the request's head; the protocol carries out what they say.
"""

from __future__ import annotations

import ipaddress
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha1
from http import HTTPStatus
from urllib.parse import urlsplit

from heartbeat.addresses import PROXIES
from heartbeat.core.errors import SettingError

__all__ = [
    "HEAD_LIMIT",
    "accept_of",
    "compact",
    "has_body",
    "http_refusal",
    "in_pieces",
    "ordinary_headers",
    "origin_refusal",
    "path_of",
    "request_headers",
    "speaks_for_itself",
    "wants_websocket",
]

#: The largest request head taken, in bytes; what twisted.web takes too.
HEAD_LIMIT = 16_384

_UPGRADE = re.compile(rb"\r\nupgrade[ \t]*:[^\r\n]*websocket", re.IGNORECASE)
_SERVER = re.compile(rb"\Ahttps?://[^/]*", re.IGNORECASE)
_BODY = re.compile(rb"\r\n(?:transfer-encoding[ \t]*:|content-length[ \t]*:[ \t]*0*[1-9])", re.IGNORECASE)
# What a browser sends, and our own clients: no line is folded, no character out of the ordinary.
_ORDINARY = re.compile(rb"GET /(?!/)[!-:<-~]* HTTP/1\.1\r\n(?:[A-Za-z0-9-]+: [ -~]*\r\n)+\r\n")
_ORDINARY_HOST = re.compile(r"[A-Za-z0-9.-]+(?::[0-9]{1,5})?")
_ORDINARY_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(?::(?:[0-9]{1,4}|[1-5][0-9]{4}))?")
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")
# What Chromium, Firefox, Safari and Python's clients offer.
_OFFERS = frozenset({"permessage-deflate", "permessage-deflate; client_max_window_bits"})
_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# Up to 512 bytes, of which 33 are the object's own, Python has a place in its own pools (CPython 3.11).
_PIECE = 448
_DEFAULT_PORTS = {"http": 80, "https": 443}


def wants_websocket(head: bytes) -> bool:
    """Whether a request asks for the WebSocket protocol (RFC 6455, section 4.2.1)."""
    return _UPGRADE.search(head) is not None


def ordinary_headers(head: bytes) -> dict[str, str] | None:
    """The headers of a request head that asks for a WebSocket in an ordinary way, by names in lower case; else None.

    Ordinary is a head of which nothing is to be refused, nor to be agreed upon, by what RFC 6455, section 4.2.1,
    and Autobahn ask for: version 13, no subprotocol, and no extension but one that may be left unanswered.
    """
    if len(head) > HEAD_LIMIT or _ORDINARY.fullmatch(head) is None or b"#" in head[: head.index(b"\r")]:
        return None
    headers: dict[str, str] = {}
    lines = head.decode("ascii").split("\r\n")
    for line in lines[1:-2]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    known = headers.get
    if (
        len(headers) != len(lines) - 3
        or known("upgrade", "").lower() != "websocket"
        or "upgrade" not in [one.strip() for one in known("connection", "").lower().split(",")]
        or known("sec-websocket-version") != "13"
        or "sec-websocket-protocol" in headers
        or _KEY.fullmatch(known("sec-websocket-key", "")) is None
        or _ORDINARY_HOST.fullmatch(known("host", "")) is None
    ):
        return None
    if "origin" in headers and _ORDINARY_ORIGIN.fullmatch(headers["origin"]) is None:
        return None
    return headers if headers.get("sec-websocket-extensions", "permessage-deflate") in _OFFERS else None


def compact(read: bytes) -> bytes:
    """The same bytes, to be kept for long: in a place of their own size.

    Twisted reads into 64 KiB and gives back what was not filled, but the bytes stay where that began. Kept, those of
    many connections cut the free memory into pieces that no reading fits into any more, so that a process grows with
    each connection that is replaced, though it keeps no byte more (seen on glibc, CPython 3.11, November 2026).
    """
    return bytes(memoryview(read))


def in_pieces(read: bytes) -> tuple[bytes, ...]:
    """The same bytes, to be kept for long, however many there are.

    A place of its own size is no help to what is longer than Python's own pools take: of all places that size the C
    library hands out the one that was freed last, which is that of the reading before.
    """
    view = memoryview(read)
    return tuple([bytes(view[at : at + _PIECE]) for at in range(0, len(read), _PIECE)])


def accept_of(key: str) -> bytes:
    """The Sec-WebSocket-Accept that answers a Sec-WebSocket-Key (RFC 6455, section 4.2.2)."""
    return b64encode(sha1(key.encode() + _MAGIC).digest())  # noqa: S324  # as the RFC has it


def path_of(head: bytes) -> str:
    """The path of a request, without its query; empty where there is no request line."""
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3:
        return ""
    # RFC 6455, section 4.2.1: "or an absolute HTTP/HTTPS URI containing the /resource name/".
    return _SERVER.sub(b"", words[1].split(b"?", 1)[0]).decode("latin-1") or "/"


def origin_refusal(origin: str, host: str, allowed: tuple[str, ...]) -> str | None:
    """Why a page of `origin` may not come in, in a sentence; None when it may.

    Served are no origin at all (not a browser), the same host as the `Host` header's, and `allowed`,
    where `null` stands for pages without one (files among them) and `*` for all but those.
    """
    if not origin:
        return None
    opaque = origin.lower() == "null" or origin.lower().startswith("file:")
    if opaque:
        return None if "null" in allowed else "pages without an origin are not served here (setting origins: null)"
    if "*" in allowed or origin.lower() in (one.lower() for one in allowed) or _same_host(origin, host):
        return None
    return f"pages of {origin[:60]} are not served here (setting origins)"


def _same_host(origin: str, host: str) -> bool:
    try:
        page, here = urlsplit(origin), urlsplit("//" + host)
        ports = page.port, here.port
    except ValueError:
        # A port that is no number.
        return False
    default = _DEFAULT_PORTS.get(page.scheme)
    return page.hostname == here.hostname and (ports[0] or default) == (ports[1] or default)


def speaks_for_itself(headers: Mapping[str, str]) -> bool:
    """Whether a request from this machine can be its own user's: by its headers (names in lower case), nobody else's.

    Not when a proxy passed it on, nor when a page sent it that a browser was tricked into taking for
    this machine's (DNS rebinding): such a page names a host that is neither `localhost` nor an address.
    """
    if any(name in PROXIES or name.startswith("x-forwarded-") for name in headers):
        return False
    return not headers.get("origin") or _is_this_machine(headers.get("host", ""))


def _is_this_machine(host: str) -> bool:
    try:
        name = urlsplit("//" + host).hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def request_headers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """A client's own headers, by name; a name given twice has both values. Raises SettingError."""
    headers: dict[str, str] = {}
    for name, value in pairs:
        if not name or any(char in name + value for char in "\r\n\0") or ":" in name:
            raise SettingError("headers", (name, value), "a name and a value without line ends")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def has_body(head: bytes) -> bool:
    """Whether a request announces that more follows its head."""
    return _BODY.search(head) is not None


def http_refusal(code: int, sentence: str, headers: list[tuple[str, str]] | None) -> bytes:
    """An HTTP answer that refuses, complete, after which the connection is closed."""
    body = (" ".join(sentence.split()) + "\n").encode()
    try:
        phrase = HTTPStatus(code).phrase
    except ValueError:
        phrase = "Refused"
    lines = [
        f"HTTP/1.1 {code} {phrase}",
        "Content-Type: text/plain; charset=utf-8",
        "X-Content-Type-Options: nosniff",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers or ()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
