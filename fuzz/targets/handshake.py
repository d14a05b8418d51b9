"""Any bytes in the place of an opening handshake: ours beside Autobahn's own verdict, whole and in any pieces.

One server answers an ordinary request by itself, the second asks Autobahn, both in the same pieces; the third gets it
whole; and the fourth is Autobahn with nothing of ours. Nobody raises, nobody answers twice, nobody keeps more than a
head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from peers import KEY, frame
from test_lean import ODD, ORDINARY, Autobahns, Long, Shaken, Short, told_by
from twins import differences, seen

from fuzz.choices import Choices
from fuzz.logged import no_failures
from fuzz.targets import Broken
from heartbeat.handshake import HEAD_LIMIT

__all__ = ["LONGEST", "TOKENS", "beginnings", "try_one"]

LONGEST = 900

_BEAT = frame(b'{"type":"ping"}')
_CHAT = frame(b'{"type":"chat"}')
_END = b"\r\n\r\n"

#: Settings, and options of the factory.
_SERVERS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({}, {}),
    ({"origins": ("*",)}, {}),
    ({"origins": ("https://a.b", "null")}, {"server": ""}),
    ({}, {"paths": ("/ws",)}),
    ({"trust_forwarded": 2}, {}),
    ({}, {"versions": [8, 13], "allowNullOrigin": False}),
    ({}, {"externalPort": 9000}),
    ({}, {"headers": {"X-Own": "yes"}}),
)

TOKENS = (
    *(b"\r\n", b"\r\n\r\n", b"\r", b"\n", b": ", b":", b" ", b"\t", b",", b";", b"\0", b"\xff", b"\xc3\xbc", b"\x85"),
    *(b"GET ", b"POST ", b"/ws", b"/", b"//", b"http://test:9000/ws", b"?token=x", b"#", b" HTTP/1.1", b" HTTP/1.0"),
    *(b"Host: test:9000\r\n", b"Upgrade: websocket\r\n", b"Connection: Upgrade\r\n", b"permessage-snappy"),
    *(b"Connection: keep-alive, Upgrade", b"Sec-WebSocket-Version: 13\r\n", b"Sec-WebSocket-Version: 8\r\n"),
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    *(b"Sec-WebSocket-Protocol: x\r\n", b"Sec-WebSocket-Extensions: permessage-deflate\r\n", b"client_max_window_bits"),
    *(b"server_no_context_takeover", b"=10", b'="', b"x-webkit-deflate-frame", b"permessage-bzip2", b"Cookie: a=b"),
    *(b"Origin: http://test:9000\r\n", b"Origin: null\r\n", b"Origin: ", b"https://", b"file://", b"[::1]", b"[", b"]"),
    *(b":65536", b":80", b":x", b"Sec-WebSocket-Origin: ", b"X-Forwarded-For: 192.0.2.7, 203.0.113.9\r\n"),
    *(b"Content-Length: 1\r\n", b"Transfer-Encoding: chunked\r\n", b"websocket", b"h2c", b"x: y\r\n", _BEAT, b"\x81"),
)


# What heads are built of, where the bytes choose and are no text. Mostly it is what is good.
_FIRST = (
    *("GET /ws HTTP/1.1",) * 6,
    *("GET / HTTP/1.1", "GET /ws?token=x&a=b HTTP/1.1", "GET //ws HTTP/1.1", "GET http://test:9000/ws HTTP/1.1"),
    *("GET //[ HTTP/1.1", "GET /ws#x HTTP/1.1", "GET /w\xe9 HTTP/1.1", "POST /ws HTTP/1.1", "GET /ws HTTP/1.0"),
    "GET /ws",
)
_GOOD = {
    "Host": "test:9000",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}
_NAMES = (
    *_GOOD,
    *("Origin", "Sec-WebSocket-Origin", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "X-Forwarded-For"),
    *("Cookie", "Content-Length", "Transfer-Encoding", "Forwarded", "x", "HOST", "upgrade", "X_Y", "\xfc", ""),
)
_VALUES = (
    *("test", "test:9000", "test:9001", "test:x", "test:1:2", "[::1]:9000", "[::1", "te st", "", "localhost", "\xff"),
    "127.0.0.1",
    *("websocket", "WebSocket", "h2c, websocket", "h2c", "Upgrade", "keep-alive, Upgrade", "close", ",,upgrade,", KEY),
    *(KEY[:-1], KEY[:-2] + "=x", "=" * 24, "a" * 21 + "-==", "13", "8", "14", "013", "x", "13, 8", "1" * 5000, "-13"),
    *("http://test:9000", "https://a.b", "null", "file://", "http://[::1", "http://a.b:65536", "http://a.b:x", "\x85"),
    *("HTTP://A.B", "a, b", "a, a", ",", "permessage-deflate", "permessage-deflate; client_max_window_bits"),
    "permessage-deflate; x=y",
    *("permessage-deflate; server_max_window_bits=16", 'x; a="b;c"', ";", "=", "permessage-bzip2", "\x00", "a\x0bb"),
    *("192.0.2.7", "203.0.113.9, 192.0.2.7", " , ", "token=x", "0", "1", "chunked", "a\r\n b", "a\nHost: x", "a\rb"),
)


def _built(choices: Choices) -> bytes:
    """A request with a few lines that are not the good ones, in an order that is not the usual."""
    first, lines = choices.pick(_FIRST), list(_GOOD.items())
    for _ in range(choices.byte() % 5):
        line = choices.pick(_NAMES), choices.pick(_VALUES)
        at, how = choices.byte() % (len(lines) + 1), choices.byte()
        lines[at : at + how % 2] = [] if how % 8 == 7 else [line]
    colon = choices.pick((": ", ": ", ": ", ":", " : ", ":\t", ""))
    end = choices.pick(("\r\n",) * 6 + ("\n",))
    head = end.join([first, *(f"{name}{colon}{value}" for name, value in lines), "", ""])
    return head.encode("latin-1") + choices.pick(
        (b"", b"", _BEAT, _BEAT + _CHAT, b"\x81", b"\r\n", b"GET / HTTP/1.1\r\n\r\n")
    )


def beginnings() -> Iterable[bytes]:
    """All the requests, ordinary and odd, that the tests know, on two servers each; on every server the least."""
    for at, head in enumerate((*ORDINARY.values(), *ODD.values())):
        if len(head) <= LONGEST:
            yield bytes((0, at * 37 % 256, at * 11 % 256, 0)) + head
            yield bytes((1 + at % (len(_SERVERS) - 1), at * 38 % 256 | 1, at * 11 % 256, 0)) + head
    least = ORDINARY["the least"]
    for server in range(len(_SERVERS)):
        yield bytes((server, 0, 0, 0)) + least + _BEAT
        yield bytes((128 + server, 7, 7, 0, server, 2, *range(server * 5, server * 5 + 12)))
        yield bytes((server, 201, 9, 124 + 2 * server)) + least
        yield bytes((server, 201, 9, 124 + 2 * server)) + least[:-4]


def try_one(data: bytes) -> None:
    """The first byte says which server, two how it is cut, one how long the head is made.

    The rest are its bytes, or choose what it is built of.
    Autobahn alone takes its turn with every other, because it takes a quarter of the time.
    """
    server, how, where, longer = data[:4].ljust(4, b"\0")
    settings, options = _SERVERS[server % len(_SERVERS)]
    stream = _longer(_built(Choices(data[4:])) if server & 128 else data[4:], longer)
    with no_failures(), ExitStack() as made:
        short, long, whole = (made.enter_context(_shaken(base, settings, options)) for base in (Short, Long, Short))
        for piece in _cut(stream, how, where):
            short.feed(piece)
            long.feed(piece)
            if not short.wire.disconnecting and len(short.protocol.data) > HEAD_LIMIT + len(_END) + len(piece):
                raise Broken(f"{len(short.protocol.data)} bytes are kept of what may become a head")
        whole.feed(stream)
        _is_one_answer(b"".join(part for part in short.wire.said if type(part) is bytes))
        if _answer(whole) != _answer(short):
            raise Broken(f"whole it is answered {_answer(whole)!r}, in pieces {_answer(short)!r}")
        _are_the_same("the short way and Autobahn's", short, long)
        if how & 1:
            _is_autobahns(short, stream, settings, options)
        for one in (short, long):
            one.feed(_BEAT, _CHAT + _BEAT)
        _are_the_same("the short way and Autobahn's, when it goes on,", short, long)


def _longer(stream: bytes, longer: int) -> bytes:
    """The same with a header that makes its head as long as it may be, a little less, or more; it need not end."""
    if not longer:
        return stream
    end = stream.find(_END) if _END in stream else len(stream)
    name = b"\r\nX-Long: "
    return stream[:end] + name + b"x" * (HEAD_LIMIT - 128 + longer - len(name) - end) + stream[end:]


def _cut(stream: bytes, how: int, where: int) -> Iterator[bytes]:
    """The stream in two pieces, in pieces of a length, or in single bytes."""
    if how < 160:
        at = (how << 8 | where) % (len(stream) + 1)
        yield stream[:at]
        yield stream[at:]
        return
    size = 1 if how >= 240 and len(stream) <= LONGEST else max(where + 1, len(stream) // 200)
    for at in range(0, len(stream), size):
        yield stream[at : at + size]


@contextmanager
def _shaken(base: type, settings: dict[str, Any], options: dict[str, Any]) -> Iterator[Any]:
    shaken = Shaken(base, settings=settings, **options)
    try:
        yield shaken
    finally:
        shaken.end()


def _are_the_same(what: str, one: Any, two: Any) -> None:
    """All that is to be seen of them, and all that they tell."""
    differ = differences(_seen(one), _seen(two)) or differences(told_by(one.protocol), told_by(two.protocol))
    if differ:
        raise Broken(f"{what} differ: {differ}")


def _seen(one: Any) -> dict[str, Any]:
    found: dict[str, Any] = seen(one.wire)
    return found


def _is_one_answer(said: bytes) -> None:
    """An HTTP answer that is complete, and then frames if it is the good one, and else nothing."""
    if not said:
        return
    head, _, rest = said.partition(_END)
    status = re.match(rb"HTTP/1\.1 (\d{3}) [^\r\n]+(?:\r\n[!-9;-~]+: [^\r\n]*)*\Z", head)
    if status is None:
        raise Broken(f"no HTTP answer: {said[:300]!r}")
    if status[1] != b"101":
        length = re.search(rb"\r\nContent-Length: (\d+)", head)
        if length is None or len(rest) != int(length[1]):
            raise Broken(f"an answer with more, or less, than its body: {said[:1000]!r}")
        return
    while rest:
        # RFC 6455, section 5.2: what a server writes in these few frames is short, and not masked.
        if len(rest) < 2 or rest[0] not in (0x81, 0x88, 0x89, 0x8A) or rest[1] > 126:
            raise Broken(f"after the answer comes no frame of ours: {rest[:100]!r}")
        rest = rest[2 + rest[1] if rest[1] < 126 else 4 + int.from_bytes(rest[2:4]) :]


def _is_autobahns(short: Any, stream: bytes, settings: dict[str, Any], options: dict[str, Any]) -> None:
    """Autobahn alone lets in whom we do, with the same answer, and sends away with the same status whom we do."""
    ours = _answer(short)
    end = stream.find(_END)
    if end < 0 or end > HEAD_LIMIT:
        if ours != (b"" if len(stream) <= HEAD_LIMIT else b"HTTP/1.1 431"):
            raise Broken(f"a head that is not there, or too long, is answered {ours!r}")
        return
    if ours.startswith(b"HTTP/1.1 404") and "paths" in options:
        return
    with _shaken(Autobahns, settings, options) as alone:
        alone.feed(stream)
        theirs = _answer(alone)
    if theirs != ours:
        raise Broken(f"Autobahn answers {theirs!r}, and we {ours!r}")


def _answer(one: Any) -> bytes:
    """The head of a good answer, the status of another."""
    said: bytes = one.wire.said[0] if one.wire.said and type(one.wire.said[0]) is bytes else b""
    return said.partition(_END)[0] if said.startswith(b"HTTP/1.1 101") else said[:12]
