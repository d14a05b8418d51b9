"""What is decided about a request before it is a WebSocket."""

import pytest
from peers import request

from heartbeat.handshake import http_refusal, origin_refusal, path_of, wants_websocket

UPGRADES = {
    "as browsers ask": (b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n", True),
    "as Autobahn asks": (b"GET / HTTP/1.1\r\nUpgrade: WebSocket\r\n", True),
    "in capitals, without a space": (b"GET / HTTP/1.1\r\nUPGRADE:WEBSOCKET\r\n", True),
    "in a list": (b"GET / HTTP/1.1\r\nUpgrade: h2c, websocket\r\n", True),
    "with tabs": (b"GET / HTTP/1.1\r\nUpgrade \t:\t websocket\r\n", True),
    "not at all": (b"GET / HTTP/1.1\r\nHost: x\r\n", False),
    "for something else": (b"GET / HTTP/1.1\r\nUpgrade: h2c\r\n", False),
    "in another header": (b"GET / HTTP/1.1\r\nX-Upgrade: websocket\r\n", False),
    "in the value of another header": (b"GET / HTTP/1.1\r\nX: Upgrade: websocket\r\n", False),
    "in the path": (b"GET /upgrade:websocket HTTP/1.1\r\n", False),
    "on the next line": (b"GET / HTTP/1.1\r\nUpgrade: \r\nX: websocket\r\n", False),
}


@pytest.mark.parametrize(("head", "wants"), UPGRADES.values(), ids=UPGRADES)
def test_a_request_wants_a_websocket_when_it_asks_for_the_upgrade(head, wants):
    assert wants_websocket(head) is wants


PATHS = {
    "alone": (b"GET /ws HTTP/1.1\r\nHost: x\r\n", "/ws"),
    "with a query": (b"GET /ws?a=/b HTTP/1.1\r\n", "/ws"),
    "with the server's name (RFC 6455, 4.2.1)": (b"GET http://test:9000/ws?a HTTP/1.1\r\n", "/ws"),
    "with the server's name alone": (b"GET https://test HTTP/1.1\r\n", "/"),
    "of odd bytes": (b"GET /\xe9 HTTP/1.1\r\n", "/\xe9"),
    "missing": (b"GET\r\n", ""),
    "amid too many words": (b"GET /ws and more HTTP/1.1\r\n", ""),
    "of nothing": (b"\r\n", ""),
}


@pytest.mark.parametrize(("head", "path"), PATHS.values(), ids=PATHS)
def test_the_path_of_a_request_is_without_its_query(head, path):
    assert path_of(head) == path


# Origins: none, the same host, and what the setting names.

SERVED = {
    "no browser": ("", "test:9000", ()),
    "the same host": ("http://test:9000", "test:9000", ()),
    "the same host over TLS": ("https://test:9443", "test:9443", ()),
    "the default port": ("http://test", "test", ()),
    "the default port, said once": ("https://test", "test:443", ()),
    "capitals": ("HTTP://TEST:9000", "Test:9000", ()),
    "IPv6": ("http://[::1]:9000", "[::1]:9000", ()),
    "one that is named": ("https://example.org", "test:9000", ("https://example.org",)),
    "one that is named in capitals": ("https://example.org", "test:9000", ("HTTPS://Example.org",)),
    "any": ("https://example.org", "test:9000", ("*",)),
    "null, named": ("null", "test:9000", ("null",)),
    "a file, named null": ("file:///page.html", "test:9000", ("null",)),
}

REFUSED = {
    "another host": ("http://evil.example", "test:9000", ()),
    "another port": ("http://test:9001", "test:9000", ()),
    "another scheme's port": ("https://test", "test:80", ()),
    "a longer host": ("http://test.evil.example:9000", "test:9000", ()),
    "a host in the name": ("http://test@evil.example:9000", "test:9000", ()),
    "one that is not named": ("https://example.com", "test:9000", ("https://example.org",)),
    "a port that is no number": ("http://test:x", "test:9000", ()),
    "a host with a port that is no number": ("http://test:9000", "test:x", ()),
    "brackets that do not close": ("http://[::1", "[::1", ()),
    "null": ("null", "null", ()),
    "NULL among all": ("NULL", "test:9000", ("*",)),
    "a file among all": ("file://", "test:9000", ("*",)),
}


@pytest.mark.parametrize(("origin", "host", "allowed"), SERVED.values(), ids=SERVED)
def test_who_may_come_in(origin, host, allowed):
    assert origin_refusal(origin, host, allowed) is None


@pytest.mark.parametrize(("origin", "host", "allowed"), REFUSED.values(), ids=REFUSED)
def test_who_may_not_and_is_told_the_setting(origin, host, allowed):
    assert "(setting origins" in origin_refusal(origin, host, allowed)


def test_a_refusal_quotes_no_endless_origin():
    assert len(origin_refusal("http://" + "x" * 10_000, "test", ())) < 200


# The HTTP answer.


def test_a_refusal_is_a_complete_http_answer():
    answer = http_refusal(503, "no room", [("Retry-After", "10")])

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 503 Service Unavailable",
        b"Content-Type: text/plain; charset=utf-8",
        b"X-Content-Type-Options: nosniff",
        b"Content-Length: 8",
        b"Connection: close",
        b"Retry-After: 10",
    ]
    assert body == b"no room\n"


def test_a_sentence_with_ends_of_lines_stays_one_line():
    assert http_refusal(400, "no\r\nSet-Cookie: x\n\n  room", None).endswith(b"\r\n\r\nno Set-Cookie: x room\n")


def test_a_length_counts_bytes_and_a_status_of_nobodys_has_a_phrase():
    answer = http_refusal(799, "h\xe9", None)

    assert answer.startswith(b"HTTP/1.1 799 Refused\r\n")
    assert b"Content-Length: 4\r\n" in answer


# On the wire.


def test_the_query_of_a_path_is_nobodys_business(serve, connect):
    serve(paths=("/ws",))

    connect().open("/ws?token=x")


def test_an_absolute_request_uri_is_accepted(serve, connect):
    """RFC 6455, section 4.2.1: "or an absolute HTTP/HTTPS URI containing the /resource name/"."""
    serve(paths=("/ws",))

    connect().open("http://test:9000/ws")


ORIGINS = {
    "no browser": ({}, ()),
    "the same host": ({"origin": "http://test:9000"}, ()),
    "named": ({"origin": "https://example.org"}, ("https://example.org",)),
    "null, named": ({"origin": "null"}, ("null",)),
    "any": ({"origin": "https://example.org"}, ("*",)),
}


@pytest.mark.parametrize(("headers", "origins"), ORIGINS.values(), ids=ORIGINS)
def test_who_may_come_in_is_served(serve, connect, headers, origins):
    serve(origins=origins)
    page = connect().open(**headers)

    page.say({"type": "ping"})

    assert page.messages[0]["status"] == "pong"


def test_behind_proxies_the_peer_is_who_the_trusted_one_saw(serve, connect, world):
    serve(trust_forwarded=1)
    connect().open(x_forwarded_for="203.0.113.9, 192.0.2.7")
    assert world.connections[-1][0].protocol.peer == "192.0.2.7"

    serve()
    connect().open(x_forwarded_for="192.0.2.7")
    assert "127.0.0.1" in world.connections[-1][0].protocol.peer


def test_our_server_says_which_it_is(serve, connect):
    serve()
    page = connect()
    page.write(request())

    assert page.headers["server"].startswith("txheartbeat/")
