"""A lean connection is Autobahn's: it shakes hands the same, and answers the same, whatever is asked of it afterwards.

The short handshake is not taken by a class that has an `onConnect` of its own: with one that does nothing, all is
Autobahn's. What is set on a connection is looked up on Autobahn's own class, so that nothing is forgotten.
"""

from collections import deque

import pytest
import trustme
from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.wamp.types import TransportDetails
from autobahn.websocket.compress import PerMessageDeflate, PerMessageDeflateOffer, PerMessageDeflateOfferAccept
from autobahn.websocket.protocol import TrafficStats, Utf8Validator
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from peers import CLOSE, CONTINUATION, KEY, PING, frame, request
from twins import SHORT, Page, Side, differences, ours, seen
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IOpenSSLContextFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport, connect
from zope.interface import implementer

from heartbeat import HeartbeatServerFactory, HeartbeatServerProtocol, Settings
from heartbeat.client import HeartbeatClient
from heartbeat.testing import World
from heartbeat.tls import trust_anybody

BEAT = frame(b'{"type":"ping"}')


class Short(Page):
    """Shakes hands the short way, where it can; keeps when it was open."""

    def onOpen(self):
        self.transport.hooks.append("open")


class Long(Short):
    """Leaves every handshake to Autobahn, which asks it."""

    def onConnect(self, request):
        return super().onConnect(request)


class Autobahns(WebSocketServerProtocol):
    """Autobahn's own, with nothing of ours."""


class Shaken:
    """One connection of a factory of ours, to which these chunks have arrived; `options` are set on the factory."""

    def __init__(self, base, *chunks, settings=None, **options):
        def made(settings, clock):
            factory = ours(settings, clock)
            factory.protocol = base
            for name, value in options.items():
                setattr(factory, name, value)
            return factory

        self.side = Side(SHORT, made, settings or {})
        with self.side:
            self.side.connect()
        self.wire = self.side.lines[0]
        self.protocol = self.wire.protocol
        self.feed(*chunks)

    def feed(self, *chunks):
        with self.side:
            for chunk in chunks:
                self.wire.arrive(chunk)

    def end(self):
        with self.side:
            self.side.end()


@pytest.fixture
def shaken():
    """The same, which ends with the test."""
    made = []

    def shaken(*arguments, **keywords):
        made.append(Shaken(*arguments, **keywords))
        return made[-1]

    yield shaken
    for one in made:
        one.end()


# What Autobahn knows.


def attributes():
    """The names of all that Autobahn sets on a connection, from its beginning to the first message and the close."""
    found = Shaken(Autobahns, request(origin="http://test:9000", sec_websocket_protocol="x"))
    found.feed(BEAT, frame(b"", PING), frame(b"\x03\xe8", CLOSE))
    names = set(vars(found.protocol))
    found.end()
    # What belongs to a message, and to Twisted.
    of_messages = {
        "current_frame",
        "current_frame_masker",
        "control_frame_data",
        "message_is_binary",
        "message_data",
        "frame_data",
    }
    of_messages |= {
        "message_data_total_length",
        "frame_length",
        "utf8validateIncomingCurrentMessage",
        "utf8validateLast",
    }
    return sorted(names - of_messages - {"_isMessageCompressed", "connected", "transport", "factory"})


NAMES = attributes()


PLAINLY = {
    Deferred: lambda deferred: "fired" if deferred.called else "waiting",
    TrafficStats: lambda stats: stats.__json__(),
    TransportDetails: lambda details: details.marshal(),
    Utf8Validator: lambda validator: "any",
    PerMessageDeflate: repr,
    dict: lambda found: {name: plainly(value) for name, value in found.items()},
    list: lambda found: [plainly(value) for value in found],
    deque: list,
    tuple: list,
}


def plainly(value):
    """Something that is equal if the same is told."""
    return PLAINLY.get(type(value), lambda same: same)(value)


def told_by(protocol):
    """All that Autobahn would have set, as far as it is there."""
    return {name: plainly(getattr(protocol, name, "not there")) for name in NAMES}


def same(head, *chunks, settings=None, **options):
    """Assert that both handshakes come to the same; the short one, of those that may be."""
    short, long = (Shaken(base, head, *chunks, settings=settings, **options) for base in (Short, Long))
    try:
        assert differences(seen(short.wire), seen(long.wire)) == {}
        assert differences(told_by(short.protocol), told_by(long.protocol)) == {}
        for one in (short, long):
            one.feed(BEAT, BEAT, frame(b'{"type":"chat"}'))
        assert differences(seen(short.wire), seen(long.wire)) == {}
    finally:
        short.end()
        long.end()
    assert long.protocol._heartbeat_head is None
    return short


def test_all_that_autobahn_sets_is_known_to_these_tests():
    """A new version that sets more, or less, is to be looked at."""
    assert len(NAMES) == 82
    assert {"http_headers", "websocket_protocols", "trafficStats", "is_open", "peer", "maxConnections"} <= set(NAMES)


# Real heads.

LINES = {
    "Host": "127.0.0.1:9000",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def head(*lines, first="GET /ws HTTP/1.1", end="\r\n", **changed):
    """A request of these lines, or of the least that is asked for, with what is changed (None: left out)."""
    if not lines:
        wanted = LINES | {name.replace("_", "-"): value for name, value in changed.items()}
        lines = [f"{name}: {value}" for name, value in wanted.items() if value is not None]
    return end.join([first, *lines, "", ""]).encode("latin-1")


_CHROMIUM = (
    "Host: 127.0.0.1:9000",
    "Connection: Upgrade",
    "Pragma: no-cache",
    "Cache-Control: no-cache",
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36",
    "Upgrade: websocket",
    "Origin: http://127.0.0.1:9000",
    "Sec-WebSocket-Version: 13",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Accept-Language: de-DE,de;q=0.9,en-US;q=0.8,en;q=0.7",
    'Cookie: _ga=GA1.1.1; token=abc.def-ghi; theme="dark"',
    f"Sec-WebSocket-Key: {KEY}",
    "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
)
_FIREFOX = (
    "Host: 127.0.0.1:9000",
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0",
    "Accept: */*",
    "Accept-Language: en-US,en;q=0.5",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Sec-WebSocket-Version: 13",
    "Origin: http://127.0.0.1:9000",
    "Sec-WebSocket-Extensions: permessage-deflate",
    f"Sec-WebSocket-Key: {KEY}",
    "DNT: 1",
    "Sec-GPC: 1",
    "Connection: keep-alive, Upgrade",
    "Sec-Fetch-Dest: empty",
    "Sec-Fetch-Mode: websocket",
    "Sec-Fetch-Site: same-origin",
    "Pragma: no-cache",
    "Cache-Control: no-cache",
    "Upgrade: websocket",
)
_SAFARI = (
    "Host: 127.0.0.1:9000",
    "Origin: http://127.0.0.1:9000",
    "Sec-WebSocket-Version: 13",
    "Pragma: no-cache",
    "Connection: Upgrade",
    f"Sec-WebSocket-Key: {KEY}",
    "User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 Version/18.6 Safari/605.1.15",
    "Upgrade: websocket",
    "Cache-Control: no-cache",
    "Sec-WebSocket-Extensions: permessage-deflate",
)
_WEBSOCKETS = (
    "Host: 127.0.0.1:9000",
    "Upgrade: websocket",
    "Connection: Upgrade",
    f"Sec-WebSocket-Key: {KEY}",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    "User-Agent: Python/3.11 websockets/15.0.1",
)
_NODE = (
    "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Key: {KEY}",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    "Host: 127.0.0.1:9000",
)
_CURL = (
    "Host: 127.0.0.1:9000",
    "User-Agent: curl/8.16.0",
    "Accept: */*",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Key: {KEY}",
    "Connection: Upgrade",
)
_AUTOBAHN = (
    "User-Agent: txheartbeat/0.1.0",
    "Host: 127.0.0.1:9000",
    "Upgrade: WebSocket",
    "Connection: Upgrade",
    "Pragma: no-cache",
    "Cache-Control: no-cache",
    f"Sec-WebSocket-Key: {KEY}",
    "Sec-WebSocket-Version: 13",
)

#: Requests that are ordinary, real ones first.
ORDINARY = {
    "Chromium's": head(*_CHROMIUM),
    "Firefox's": head(*_FIREFOX),
    "Safari's": head(*_SAFARI),
    "that of websockets": head(*_WEBSOCKETS),
    "that of ws on Node": head(*_NODE),
    "curl's": head(*_CURL),
    "Autobahn's": head(*_AUTOBAHN),
    "the least": head(),
    "with a query": head(first="GET /ws?token=a.b-c_d~e%20f+g&x=1&x=2&y=&z HTTP/1.1"),
    "with a query of odd characters": head(first='GET /ws?a=/b?c=[d]&e="f"&{g}|h^`i\\j\'k HTTP/1.1'),
    "of a path of some length": head(first="GET /a/b//c/../d/:e@f!$&'()*+,=%2F. HTTP/1.1"),
    "of the root": head(first="GET / HTTP/1.1"),
    "of a host by name": head(Host="example.org"),
    "of a host in capitals": head(Host="EXAMPLE.org:80"),
    "of a port beyond all ports": head(Host="example.org:99999"),
    "with names in capitals": head(*(f"{name.upper()}: {value}" for name, value in LINES.items())),
    "with names in small letters": head(*(f"{name.lower()}: {value}" for name, value in LINES.items())),
    "with spaces around values": head(*(f"{name}:    {value}   " for name, value in LINES.items())),
    "for a WebSocket in capitals": head(Upgrade="WEBSOCKET"),
    "with a connection in capitals": head(Connection="UPGRADE"),
    "with a connection among others": head(Connection="keep-alive ,, upgrade,x"),
    "with an empty header": head(X_Empty=""),
    "with a colon in a header": head(X_Colon="a: b:c"),
    "with a forwarder that is not trusted": head(X_Forwarded_For="203.0.113.9, 192.0.2.7"),
    "with an origin over TLS": head(Origin="https://127.0.0.1:9000"),
    "with the same host's origin": head(Origin="http://127.0.0.1:9000"),
    "with a cookie": head(Cookie='token=x; a="b;c"; d=e=f'),
    "with 40 other headers": head(**{f"X_Other_{number}": "y" * number for number in range(40)}),
    "of 16 KiB": head(X_Long="x" * (16_384 - len(head()) - 10)),
    "with a body that it does not have": head(Content_Length="0"),
    "with a proxy's headers": head(Via="1.1 proxy", Forwarded="for=192.0.2.43;proto=https", X_Real_IP="192.0.2.43"),
}


@pytest.mark.parametrize("head", ORDINARY.values(), ids=ORDINARY)
def test_an_ordinary_handshake_is_answered_here_and_comes_to_the_same(head):
    short = same(head)

    assert short.protocol._heartbeat_head == head
    assert "open" in short.wire.hooks


@pytest.mark.parametrize("head", ORDINARY.values(), ids=ORDINARY)
def test_after_an_ordinary_handshake_all_is_there_that_autobahns_own_protocol_has(shaken, head):
    """Nothing of ours on it, and nothing of ours that it leans on."""
    lean, autobahns = shaken(Short, head), shaken(Autobahns, head)

    assert lean.wire.said == autobahns.wire.said
    assert differences(told_by(lean.protocol), told_by(autobahns.protocol)) == {}


@pytest.mark.parametrize("head", [ORDINARY["the least"], ORDINARY["Chromium's"]], ids=["the least", "Chromium's"])
def test_a_handshake_comes_to_the_same_wherever_it_is_cut(head):
    for cut in range(1, len(head)):
        assert same(head[:cut], head[cut:]).protocol._heartbeat_head == head


def test_a_handshake_comes_to_the_same_byte_by_byte():
    least = ORDINARY["the least"]

    same(*(least[at : at + 1] for at in range(len(least))))


def test_our_own_client_is_ordinary():
    """Whatever it is called, wherever it connects to, and with a token."""
    world, heads = World(), []

    class Asked(HeartbeatServerProtocol):
        def onOpen(self):
            heads.append(self._heartbeat_head)

    factory = HeartbeatServerFactory(Settings(fast_path=True), reactor=world.server)
    factory.protocol = Asked
    world.listen(factory)
    client = HeartbeatClient(
        "ws://test/ws?token=x", settings=Settings(token="y"), reactor=world.client, endpoint=world.endpoint()
    )
    client.startService()
    world.advance(1)
    client.stopService()
    world.advance(2)
    world.close()

    assert len(heads) == 1
    assert heads[0].startswith(b"GET /ws?token=x HTTP/1.1\r\n")


# Odd heads.

#: What is no ordinary request, and what may well be none at all.
ODD = {
    "version 8": head(Sec_WebSocket_Version="8"),
    "version 8, with its own origin": head(Sec_WebSocket_Version="8", Sec_WebSocket_Origin="http://a.b"),
    "version 14": head(Sec_WebSocket_Version="14"),
    "version 013": head(Sec_WebSocket_Version="013"),
    "version x": head(Sec_WebSocket_Version="x"),
    "two versions": head(Sec_WebSocket_Version="13, 8"),
    "no version": head(Sec_WebSocket_Version=None),
    "no host": head(Host=None),
    "an empty host": head(Host=""),
    "an IPv6 host": head(Host="[::1]:9000"),
    "an IPv6 host without a port": head(Host="[::1]"),
    "a host with a port that is no number": head(Host="test:x"),
    "a host with two ports": head(Host="test:1:2"),
    "a host with a space": head(Host="test 1"),
    "a host with a user": head(Host="a@b:80"),
    "no upgrade": head(Upgrade=None),
    "another upgrade": head(Upgrade="h2c"),
    "two upgrades": head(Upgrade="h2c, websocket"),
    "no connection": head(Connection=None),
    "another connection": head(Connection="keep-alive"),
    "no key": head(Sec_WebSocket_Key=None),
    "a short key": head(Sec_WebSocket_Key="x"),
    "a long key": head(Sec_WebSocket_Key=KEY + "="),
    "a key without its end": head(Sec_WebSocket_Key="a" * 24),
    "a key of odd characters": head(Sec_WebSocket_Key="a" * 21 + "-=="),
    "a key with a space": head(Sec_WebSocket_Key="a" * 10 + " " + "a" * 11 + "=="),
    "a subprotocol": head(Sec_WebSocket_Protocol="json.example"),
    "subprotocols, one twice": head(Sec_WebSocket_Protocol="a, b, a"),
    "an empty subprotocol": head(Sec_WebSocket_Protocol=""),
    "an origin of null": head(Origin="null"),
    "an origin of a file": head(Origin="file://"),
    "an empty origin": head(Origin=""),
    "an origin that is none": head(Origin="nonsense"),
    "an origin without a host": head(Origin="http://"),
    "an origin of another scheme": head(Origin="chrome-extension://abcdef"),
    "an origin in capitals": head(Origin="HTTP://Example.ORG"),
    "an origin with a path": head(Origin="http://example.org/x"),
    "an origin with a port that is no number": head(Origin="http://example.org:x"),
    "an IPv6 origin": head(Origin="http://[::1]:9000"),
    "an IPv6 origin that does not end": head(Origin="http://[::1"),
    "an extension in capitals": head(Sec_WebSocket_Extensions="Permessage-Deflate"),
    "an extension with a value": head(Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits=10"),
    "an extension with a wrong value": head(Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits=x"),
    "an extension twice": head(Sec_WebSocket_Extensions="permessage-deflate, permessage-deflate"),
    "an extension without spaces": head(Sec_WebSocket_Extensions="permessage-deflate;client_max_window_bits"),
    "an extension that nobody knows": head(Sec_WebSocket_Extensions='x-nonsense; a="b"'),
    "an old extension": head(Sec_WebSocket_Extensions="x-webkit-deflate-frame"),
    "no extension": head(Sec_WebSocket_Extensions=""),
    "a slash too many": head(first="GET //ws HTTP/1.1"),
    "two slashes alone": head(first="GET // HTTP/1.1"),
    "an absolute URI": head(first="GET http://test:9000/ws HTTP/1.1"),
    "an asterisk": head(first="GET * HTTP/1.1"),
    "no slash": head(first="GET ws HTTP/1.1"),
    "parameters": head(first="GET /ws;a=b;c HTTP/1.1"),
    "parameters in a query": head(first="GET /ws?a=b;c HTTP/1.1"),
    "a fragment": head(first="GET /ws#x HTTP/1.1"),
    "a fragment behind a query": head(first="GET /ws?a#x HTTP/1.1"),
    "an empty fragment": head(first="GET /ws# HTTP/1.1"),
    "a path that is not ASCII": head(first="GET /w\xe9 HTTP/1.1"),
    "a space in the path": head(first="GET /w s HTTP/1.1"),
    "two spaces": head(first="GET  /ws HTTP/1.1"),
    "a tab": head(first="GET\t/ws HTTP/1.1"),
    "a space at the end": head(first="GET /ws HTTP/1.1 "),
    "HTTP/1.0": head(first="GET /ws HTTP/1.0"),
    "HTTP/2": head(first="GET /ws HTTP/2"),
    "http in small letters": head(first="GET /ws http/1.1"),
    "get in small letters": head(first="get /ws HTTP/1.1"),
    "POST": head(first="POST /ws HTTP/1.1"),
    "an empty line before": b"\r\n" + head(),
    "a header that is not ASCII": head(X_Name="gr\xfc\xdfe"),
    "a header with a tab": head(X_Tab="a\tb"),
    "a header with a bell": head(X_Bell="a\x07b"),
    "a header with a line that Python knows": head(X_Line="a\x0bb\x1cc\x85d"),
    "a header with no name": head(*(f"{name}: {value}" for name, value in LINES.items()), ": x"),
    "a header without a colon": head(*(f"{name}: {value}" for name, value in LINES.items()), "nonsense"),
    "a name with an underscore": head(*(f"{name}: {value}" for name, value in LINES.items()), "X_Y: z"),
    "a name with a space": head(*(f"{name} : {value}" for name, value in LINES.items())),
    "no space after the colon": head(*(f"{name}:{value}" for name, value in LINES.items())),
    "a tab after the colon": head(*(f"{name}:\t{value}" for name, value in LINES.items())),
    "a folded line": head(*(f"{name}: {value}" for name, value in LINES.items()), "X-Folded: a", " b"),
    "bare line feeds": head(end="\n"),
    "a bare line feed": head().replace(b"\r\nUpgrade", b"\nUpgrade"),
    "a bare line feed in a value": head(X_Feed="a\nSec-WebSocket-Protocol: x"),
    "a bare carriage return": head(X_Return="a\rb"),
    "a NUL": head(X_Nul="a\0b"),
    "nothing": b"\r\n\r\n",
    "noise": bytes(range(128, 256)) + b"\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(100)),
    "no HTTP": b"hello\r\n\r\n",
    "the request line alone": b"GET /ws HTTP/1.1\r\n\r\n",
    "half a head": head()[:-4],
    "a byte more than is ordinary": head(X_Long="x" * (16_384 - len(head()) - 9)),
    "a line too long": head(X_Long="x" * 16_384),
}
# Each header that counts, twice.
ODD |= {
    f"{name} twice": head(*(f"{each}: {value}" for each, value in LINES.items()), f"{name.lower()}: {value}")
    for name, value in (LINES | {"Host": "other:80"}).items()
}
ODD |= {
    f"{name} twice": head(
        *(f"{each}: {value}" for each, value in LINES.items()), f"{name}: {value}", f"{name}: {value}"
    )
    for name, value in {
        "Origin": "http://a.b",
        "Sec-WebSocket-Extensions": "permessage-deflate",
        "Cookie": "a=b",
    }.items()
}


@pytest.mark.parametrize("head", ODD.values(), ids=ODD)
def test_an_odd_handshake_is_autobahns(head):
    short = same(head)

    assert short.protocol._heartbeat_head is None


def test_an_origin_with_a_port_beyond_all_ports_is_autobahns():
    same(head(Origin="http://example.org:65536"))


@pytest.mark.parametrize("name", ["the least", "Chromium's", "with a query"])
def test_what_follows_a_handshake_in_the_same_chunk_is_kept(name):
    for after in (BEAT, BEAT[:5], BEAT + BEAT, frame(b"x" * 200), frame(b"{", fin=False), b"\x81", b"\r\n", b"x"):
        same(ORDINARY[name] + after)


def test_requests_that_follow_each_other_are_one_and_bytes():
    same(head() + head())
    same(head(), head())


HEADERS = st.sampled_from(
    [
        *(("Host", host) for host in ("test", "test:9000", "a.b-c:1", "[::1]", "te st", "")),
        *(("Upgrade", word) for word in ("websocket", "WebSocket", "h2c", "h2c,websocket")),
        *(("Connection", word) for word in ("Upgrade", "upgrade", "keep-alive, Upgrade", "close")),
        *(("Sec-WebSocket-Version", word) for word in ("13", "8", "7", "")),
        *(("Sec-WebSocket-Key", key) for key in (KEY, "x3JJHMbDL1EzLkh9GBhXDw==", KEY[:-1], "x")),
        *(("Sec-WebSocket-Extensions", word) for word in ("permessage-deflate", "permessage-deflate; x", "")),
        *(("Origin", origin) for origin in ("http://test:9000", "https://a.b", "null", "x", "")),
        ("Sec-WebSocket-Protocol", "x"),
        ("X-Forwarded-For", "192.0.2.7"),
        ("Cookie", "token=x"),
    ]
) | st.tuples(st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True), st.text(st.characters(codec="latin-1")))

FIRST = st.builds(
    "{} {} {}".format,
    st.sampled_from(["GET", "GET", "GET", "GET", "POST", "get"]),
    st.sampled_from(["/", "/ws", "/ws?a=b"]) | st.text(st.characters(codec="latin-1"), max_size=12).map("/{}".format),
    st.sampled_from(["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0"]),
)


@st.composite
def heads(draw):
    """A request that may be good: the lines that it takes, some of them otherwise, and others, in any order."""
    lines = LINES | (dict(draw(st.lists(HEADERS, max_size=3))) if draw(st.booleans()) else {})
    several = [*lines.items(), *draw(st.lists(HEADERS, max_size=2))]
    colon = draw(st.sampled_from([": ", ": ", ": ", ":", ":  ", " : "]))
    first = "GET /ws HTTP/1.1" if draw(st.booleans()) else draw(FIRST)
    return head(*(f"{name}{colon}{value}" for name, value in draw(st.permutations(several))), first=first)


@given(heads())
def test_any_handshake_comes_to_the_same(head):
    same(head)


@given(st.sampled_from(sorted(ORDINARY.values())), st.integers(0, 600), st.binary(max_size=3), st.integers(0, 3))
def test_an_ordinary_handshake_with_anything_in_it_comes_to_the_same(head, at, inserted, left_out):
    at %= len(head) + 1

    same(head[:at] + inserted + head[at + left_out :])


# Who is asked.


@pytest.mark.parametrize("name", ["onConnect", "succeedHandshake", "sendData"])
def test_who_has_a_say_in_the_handshake_is_asked(shaken, name):
    def own(self, *arguments, **keywords):
        self.transport.hooks.append(name)
        return getattr(super(cls, self), name)(*arguments, **keywords)

    cls = type("Own", (Short,), {name: own})

    found = shaken(cls, head())

    assert found.wire.hooks == [name, found.wire.hooks[1], "open"]
    assert found.protocol._heartbeat_head is None


@pytest.mark.parametrize("name", ["onConnect", "succeedHandshake", "sendData"])
def test_who_is_given_a_say_of_his_own_is_asked_too(serve, connect, world, name):
    """On one connection alone, before it shakes hands."""
    asked = []

    class Gives(HeartbeatServerFactory):
        def buildProtocol(self, addr):
            protocol = super().buildProtocol(addr)
            theirs = getattr(protocol, name)

            def own(*arguments, **keywords):
                asked.append(name)
                return theirs(*arguments, **keywords)

            setattr(protocol, name, own)
            return protocol

    serve(factory=Gives, fast_path=True)
    connect().open()

    assert asked == [name]
    assert world.connections[0][0].protocol._heartbeat_head is None


def test_who_has_a_say_in_how_a_connection_is_made_is_asked(shaken):
    class Makes(Short):
        def _connectionMade(self):
            self.transport.hooks.append("made")
            super()._connectionMade()

    found = shaken(Makes, head(), BEAT)

    assert found.wire.hooks[0] == "made"
    assert found.side.factory.countConnections == 1
    assert b'"status":"pong"' in found.wire.said[0]


def test_an_onConnect_may_choose_refuse_and_add_headers(shaken):
    class Chooses(Short):
        def onConnect(self, request):
            return next(iter(request.protocols), None), {"X-Own": "yes"}

    found = shaken(Chooses, head(Sec_WebSocket_Protocol="a, b"))

    assert b"\r\nX-Own: yes\r\n" in found.wire.said[0]
    assert found.protocol.websocket_protocol_in_use == "a"


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"X-Own": "yes"}},
        {"externalPort": 9000},
        {"externalPort": 80},
        {"maxConnections": 1},
        {"versions": [8]},
        {"versions": [8, 13]},
        {"server": ""},
        {"server": "somebody's"},
        {"trustXForwardedFor": 1},
        {"trustXForwardedFor": 2},
        {"allowNullOrigin": False},
        {"webStatus": True},
        {"requireMaskedClientFrames": False},
        {"failByDrop": True},
        {"echoCloseCodeReason": True},
        {"maxMessagePayloadSize": 1024},
        {"tcpNoDelay": False},
        {"closeHandshakeTimeout": 3},
        {"utf8validateIncoming": False},
        {"autoFragmentSize": 100},
        {"serveFlashSocketPolicy": True},
    ],
    ids=lambda options: "-".join(f"{name}-{value}" for name, value in options.items()),
)
@pytest.mark.parametrize("head", ["the least", "Chromium's", "with a forwarder that is not trusted"])
def test_an_option_of_the_factorys_holds_the_same(options, head):
    same(ORDINARY[head], **options)


@pytest.mark.parametrize("setting", [{}, {"origins": ("*",)}, {"origins": ("https://a.b",)}])
@pytest.mark.parametrize("origin", [None, "http://127.0.0.1:9000", "https://a.b", "https://a.b:444", "null"])
def test_an_origin_is_judged_the_same(setting, origin):
    same(head(Origin=origin), settings=setting)


def test_where_compression_is_agreed_upon_autobahn_agrees():
    def accept(offers):
        return PerMessageDeflateOfferAccept(next(one for one in offers if isinstance(one, PerMessageDeflateOffer)))

    short = same(ORDINARY["Chromium's"], perMessageCompressionAccept=accept)

    assert short.protocol._heartbeat_head is None
    assert len(short.protocol.websocket_extensions_in_use) == 1


def test_where_the_short_way_is_turned_off_a_handshake_is_autobahns(serve, connect, world):
    serve(fast_path=False)
    connect().open()

    assert world.connections[0][0].protocol._heartbeat_head is None


# Options: the factory's, a class's, an instance's.

#: Of each option another value than the usual.
OTHER = {
    "utf8validateIncoming": False,
    "applyMask": False,
    "maxFramePayloadSize": 4321,
    "maxMessagePayloadSize": 4322,
    "autoFragmentSize": 77,
    "failByDrop": True,
    "echoCloseCodeReason": True,
    "openHandshakeTimeout": 9,
    "closeHandshakeTimeout": 8,
    "tcpNoDelay": False,
    "autoPingInterval": 7,
    "autoPingTimeout": 6,
    "autoPingSize": 13,
    "autoPingRestartOnAnyTraffic": False,
    "versions": [13],
    "webStatus": True,
    "requireMaskedClientFrames": False,
    "maskServerFrames": True,
    "perMessageCompressionAccept": lambda offers: None,
    "serveFlashSocketPolicy": True,
    "flashSocketPolicy": "<none/>",
    "allowedOrigins": ["http://a.b"],
    "allowedOriginsPatterns": [],
    "allowNullOrigin": False,
    "maxConnections": 5,
    "trustXForwardedFor": 3,
}
LOGGED = {"logOctets": True, "logFrames": True, "trackTimings": True}


def test_these_are_all_the_options_there_are():
    assert {*OTHER, *LOGGED} == set(WebSocketServerProtocol.CONFIG_ATTRS)


@pytest.mark.parametrize("name", OTHER)
def test_an_option_that_was_set_on_the_factory_after_it_was_made_holds_for_new_connections(shaken, name):
    before = shaken(Short)
    usual = getattr(before.protocol, name)
    with before.side:
        setattr(before.side.factory, name, OTHER[name])
        before.side.connect()

    assert getattr(before.side.lines[1].protocol, name) == OTHER[name] != usual
    assert getattr(before.protocol, name) == usual


@pytest.mark.parametrize("name", LOGGED)
def test_so_does_what_is_to_be_logged_and_timed(shaken, name):
    assert getattr(shaken(Short, **{name: True}).protocol, name) is True


@pytest.mark.parametrize("name", OTHER)
def test_an_option_of_a_class_stands_whatever_the_factory_says(shaken, name):
    own = OTHER[name]
    base = type("Own", (Short,), {name: staticmethod(own) if callable(own) else own})
    usual = getattr(shaken(Short).protocol, name)

    for factorys in ({}, {name: usual}, {name: OTHER[name]}, {"maxMessagePayloadSize": 5000}):
        assert getattr(shaken(base, **factorys).protocol, name) == own


@pytest.mark.parametrize("name", ["failByDrop", "tcpNoDelay", "webStatus", "autoFragmentSize"])
def test_an_option_of_a_class_stands_even_if_it_is_the_usual_one(shaken, name):
    usual = getattr(shaken(Short).protocol, name)
    base = type("Own", (Short,), {name: usual})

    assert getattr(shaken(base, **{name: OTHER[name]}).protocol, name) == usual


def built_with(**options):
    """A factory's class whose connections are given options of their own before they are connected."""

    class Gives(HeartbeatServerFactory):
        def buildProtocol(self, addr):
            protocol = super().buildProtocol(addr)
            for name, value in options.items():
                setattr(protocol, name, value)
            return protocol

    return Gives


@pytest.mark.parametrize("name", [name for name in OTHER if name not in ("openHandshakeTimeout", "autoPingInterval")])
def test_an_option_of_an_instance_stands_where_the_factory_has_the_usual_one(serve, connect, world, name):
    serve(factory=built_with(**{name: OTHER[name]}), fast_path=True)
    connect()

    assert getattr(world.connections[0][0].protocol, name) == OTHER[name]


@pytest.mark.parametrize("name", ["maxMessagePayloadSize", "maxFramePayloadSize"])
def test_an_option_of_an_instance_stands_whatever_the_factory_says(serve, connect, world, name):
    serve(factory=built_with(**{name: 1000}), message_limit=2048, fast_path=True)
    connect()

    assert getattr(world.connections[0][0].protocol, name) == 1000


def test_origins_that_a_class_allows_are_heeded(shaken):
    base = type("Own", (Short,), {"allowedOriginsPatterns": []})

    found = shaken(base, head(Origin="http://a.b"))

    assert found.wire.said[0].startswith(b"HTTP/1.1 400 ")


# Deferreds.


def test_who_asks_early_whether_it_is_open_is_told_when_it_is_and_not_before(shaken):
    for first in (head(), head(Sec_WebSocket_Protocol="x")):
        found = shaken(Short)
        opened = found.protocol.is_open
        opened.addCallback(found.wire.hooks.append)
        found.feed(first[:-1])
        assert not opened.called

        found.feed(first[-1:])
        assert opened.called
        assert found.wire.hooks[-2:] == ["open", None]
        assert found.protocol.is_open is opened


def test_who_asks_late_whether_it_is_open_is_told_at_once(shaken):
    for first in (head(), head(Sec_WebSocket_Protocol="x")):
        assert shaken(Short, first).protocol.is_open.called


@pytest.mark.parametrize("first", [b"", head()[:-2], head(first="POST /ws HTTP/1.1"), head(Host=None)])
def test_what_never_opens_is_never_said_to_be_open(shaken, first):
    found = shaken(Short, first)
    opened = found.protocol.is_open
    found.feed(b"x")
    with found.side:
        found.side.clock.advance(0.1)

    assert not opened.called
    assert not found.protocol.is_open.called


def test_inside_onOpen_it_is_not_said_to_be_open_yet(shaken):
    class Asks(Short):
        def onOpen(self):
            self.transport.hooks.append(self.is_open.called)

    found = shaken(Asks, head())

    assert found.wire.hooks[-1] is False
    assert found.protocol.is_open.called


def close(found):
    found.feed(frame(b"\x03\xe8", CLOSE))


def abort(found):
    with found.side:
        found.protocol.dropConnection(abort=True)


def break_off(found):
    with found.side:
        found.wire.lose(ConnectionError("gone"))


@pytest.mark.parametrize("first", [head(), head()[:20], head(Sec_WebSocket_Protocol="x")])
@pytest.mark.parametrize("end", [close, abort, break_off])
@pytest.mark.parametrize("asks", ["early", "late", "both"])
def test_who_asks_whether_it_is_closed_is_told_when_it_is(shaken, first, end, asks):
    found, told = shaken(Short, first), []

    def tell(protocol):
        told.append(protocol)
        return protocol

    if asks != "late":
        found.protocol.is_closed.addCallback(tell)
        assert not found.protocol.is_closed.called

    if end is close and not first.endswith(b"\r\n\r\n"):
        abort(found)
    else:
        end(found)
    with found.side:
        found.side.clock.advance(0.1)

    if asks != "early":
        found.protocol.is_closed.addCallback(tell)
    assert told == [found.protocol] * (2 if asks == "both" else 1)
    assert found.protocol.is_closed.called


def test_a_class_that_is_made_in_autobahns_way_has_what_it_makes(shaken):
    """With an `__init__` that calls Autobahn's by its name."""

    class Made(Short):
        def __init__(self):
            WebSocketServerProtocol.__init__(self)

    found = shaken(Made)
    opened, closed = found.protocol.is_open, found.protocol.is_closed
    found.feed(head())
    assert (opened.called, closed.called) == (True, False)
    close(found)

    assert (opened.called, closed.called) == (True, True)
    assert (found.protocol.is_open, found.protocol.is_closed) == (opened, closed)
    assert closed.result is found.protocol


def test_a_protocol_that_is_not_connected_yet_is_nobodys(shaken):
    with shaken(Short).side as side:
        protocol = side.factory.buildProtocol(None)

    assert protocol.peer is None
    assert not hasattr(protocol, "http_headers")
    protocol.makeConnection(shaken(Short).wire)
    assert protocol.peer == "tcp4:127.0.0.1:50000"
    protocol.connectionLost(Failure(ConnectionLost()))
    assert protocol.peer == "tcp4:127.0.0.1:50000"


# Listeners.


def test_who_listens_hears_and_who_does_not_any_more_does_not(shaken):
    found = shaken(Short, head())
    heard = []

    def hear(payload, is_binary):
        heard.append((payload, is_binary))

    found.feed(frame(b'{"type":"chat"}'))
    found.protocol.on("message", hear)
    found.feed(frame(b'{"type":"chat","n":1}'), frame(b"\1", 2))
    found.protocol.off("message", hear)
    found.feed(frame(b'{"type":"chat","n":2}'))

    assert heard == [(b'{"type":"chat","n":1}', False), (b"\1", True)]
    with pytest.raises(RuntimeError, match="Invalid event"):
        found.protocol.on("nonsense", hear)


def test_whoever_fires_an_event_of_which_nobody_hears_gets_nothing(shaken):
    assert shaken(Short, head()).protocol.fire("message", b"x").result == []


def test_what_one_makes_of_that_is_not_what_another_gets(shaken):
    one, other = shaken(Short, head()).protocol, shaken(Short, head()).protocol

    one.fire("message", b"x").addCallback(lambda heard: [*heard, "mine"])
    try:
        assert other.fire("message", b"x").result == []
    finally:
        # Whatever it is, it is nobody's in the next test.
        one.fire("message", b"x").addBoth(lambda _: [])


# What is kept.


def test_a_connection_at_rest_keeps_little_of_its_own(shaken):
    """Asked for at the end only: to look into an instance makes a dictionary of it."""
    for first in (ORDINARY["the least"], ORDINARY["Chromium's"]):
        found = shaken(Short, first)
        found.feed(BEAT, BEAT)

        assert len(vars(found.protocol)) <= 14


def test_after_a_message_in_fragments_it_is_the_same_as_autobahns():
    same(head(), frame(b'{"type":"pi', fin=False), frame(b'ng"}', CONTINUATION), BEAT)


@pytest.mark.parametrize("end", [close, abort, break_off])
def test_after_its_end_it_tells_what_it_told_before(shaken, end):
    found, again = shaken(Short, ORDINARY["Chromium's"]), shaken(Long, ORDINARY["Chromium's"])
    for one in (found, again):
        one.feed(BEAT)
        end(one)
        with one.side:
            one.side.clock.advance(0.1)
        one.feed(BEAT)

    assert differences(seen(found.wire), seen(again.wire)) == {}
    assert told_by(found.protocol)["http_headers"]["host"] == "127.0.0.1:9000"
    left_out = {"trafficStats"}
    differ = differences(told_by(found.protocol), told_by(again.protocol))
    assert differ.keys() <= left_out


def test_a_handshake_that_autobahn_times_is_in_time(shaken):
    """Its timers are seldom used here, but an option is an option."""
    found = shaken(Short, head(), openHandshakeTimeout=3)

    assert found.protocol.openHandshakeTimeoutCall is None


# Over TLS.


@implementer(IOpenSSLContextFactory)
class Context:
    """A server's, with a certificate that was made for it."""

    def getContext(self):
        context = SSL.Context(SSL.TLS_METHOD)
        trustme.CA().issue_cert("test").configure_cert(context)
        return context


class Reads(Protocol):
    """A client that keeps what it reads."""

    def __init__(self):
        self.read = b""

    def dataReceived(self, data):
        self.read += data


class Secure:
    """A connection over TLS, in memory: a factory's protocol, and a client."""

    def __init__(self, base):
        def made(settings, clock):
            factory = ours(settings, clock)
            factory.protocol = base
            return factory

        self.side = Side(SHORT, made, {})
        with self.side:
            ends = [
                TLSMemoryBIOFactory(context, isClient=isClient, wrappedFactory=factory, clock=self.side.clock)
                for context, isClient, factory in (
                    (Context(), False, self.side.factory),
                    (trust_anybody("test"), True, Factory.forProtocol(Reads)),
                )
            ]
            server, client = (end.buildProtocol(None) for end in ends)
            transports = FakeTransport(server, isServer=True), FakeTransport(client, isServer=False)
            transports[0].hooks = []
            self._pump = connect(server, transports[0], client, transports[1])
        self.protocol, self.client = server.wrappedProtocol, client.wrappedProtocol

    def pump(self):
        """Let what was written arrive, either way."""
        with self.side:
            for _ in range(3):
                self.side.clock.advance(0.05)
                self._pump.flush()

    def feed(self, *chunks):
        """The client sends these."""
        self.pump()
        for chunk in chunks:
            self.client.transport.write(chunk)
            self.pump()

    def end(self):
        with self.side:
            self.protocol.connectionLost(Failure(ConnectionLost()))
            self.side.end()


@pytest.fixture
def secure():
    """The same, which ends with the test."""
    made = []

    def secure(base):
        made.append(Secure(base))
        return made[-1]

    yield secure
    for one in made:
        one.end()


def test_over_tls_a_handshake_comes_to_the_same(secure):
    short, long = secure(Short), secure(Long)
    for one in (short, long):
        one.feed(head(), BEAT, frame(b'{"type":"ping","pad":"%b"}' % (b"x" * 200)), frame(b'{"type":"chat"}'), BEAT)

    assert short.client.read == long.client.read
    assert short.client.read.count(b'"status":"pong"') == 3
    assert (short.protocol._heartbeat_head, long.protocol._heartbeat_head) == (head(), None)
    # Each connection has an id of its own, and a client that showed a certificate would be known by it.
    short_told, long_told = told_by(short.protocol), told_by(long.protocol)
    details = [told.pop("_transport_details") for told in (short_told, long_told)]
    assert all(len(one.pop("channel_id")["tls-unique"]) == 32 for one in details)
    assert details[0] == details[1]
    assert differences(short_told, long_told).keys() <= {"trafficStats"}


def test_over_tls_the_id_of_the_channel_is_told_to_who_asks_when_it_is_open(secure):
    found = secure(Short)
    found.feed(head())

    details = found.protocol.transport_details
    assert details.is_secure
    assert details.channel_id["tls-unique"] not in (None, bytes(32))


def test_over_tls_the_id_of_the_channel_is_told_to_who_asked_before_it_was_known(secure):
    class Hasty(Short):
        def connectionMade(self):
            super().connectionMade()
            self.early = self.transport_details.channel_id["tls-unique"]

    found = secure(Hasty)
    found.feed(head())

    assert found.protocol.early == bytes(32)
    assert found.protocol.transport_details.channel_id["tls-unique"] != bytes(32)


# Transports of all kinds.


class Unwilling(StringTransport):
    """One that is asked in vain, as those of other sockets than TCP's may be."""

    def setTcpNoDelay(self, enabled):
        raise OSError("of what is no TCP")


@pytest.mark.parametrize("transport", [StringTransport, Unwilling])
def test_a_transport_that_knows_no_delay_is_let_be(shaken, transport):
    with shaken(Short).side as side:
        protocol = side.factory.buildProtocol(None)
        transport = transport()
        transport.hooks = []
        protocol.makeConnection(transport)
        protocol.dataReceived(head())
        protocol.dataReceived(BEAT)

        assert transport.value().count(b'"status":"pong"') == 1
        protocol.connectionLost(Failure(ConnectionLost()))
