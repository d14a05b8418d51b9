"""What a server does with whatever a stranger sends: one clear refusal, and everybody else is served as ever."""

import json
import struct

import pytest
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from peers import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame, request

from heartbeat.mixin import HeartbeatServerMixin

PONGED = b',"status":"pong","clients":1}'


@pytest.fixture
def page(serve, connect):
    """A page that has shaken hands with a server of ours."""
    serve()
    return connect().open()


def error(code, re=None):
    """What an error frame holds, besides its sentence."""
    return {"type": "error", "code": code} | ({} if re is None else {"re": re})


def refused(message):
    """An error frame without its sentence, which is there and is one sentence."""
    assert message["detail"]
    assert "\n" not in message["detail"]
    return {name: value for name, value in message.items() if name != "detail"}


# What cannot be taken is answered by an error, and the connection stays open.

REFUSED = {
    "empty": (b"", error("bad-json")),
    "not JSON": (b"hello", error("bad-json")),
    "half an object": (b'{"type":"ping"', error("bad-json")),
    "two objects": (b'{"type":"ping"}{"type":"ping"}', error("bad-json")),
    "single quotes": (b"{'type':'ping'}", error("bad-json")),
    "a comma too many": (b'{"type":"ping",}', error("bad-json")),
    "NaN": (b'{"type":"ping","t":NaN}', error("bad-json")),
    "minus infinity": (b'{"type":"ping","t":-Infinity}', error("bad-json")),
    "NaN beside a surrogate": (b'{"type":"ping","t":NaN,"s":"\\ud800"}', error("bad-json")),
    "a control character": (b'{"type":"ping","t":"\x01"}', error("bad-json")),
    "a byte order mark": (b'\xef\xbb\xbf{"type":"ping"}', error("bad-json")),
    "nested 10,000 deep": (b'{"type":"ping","a":' + b"[" * 10_000 + b"]" * 10_000 + b"}", error("bad-json")),
    "nested deep beside a surrogate": (
        b'{"s":"\\ud800","a":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
        error("bad-json"),
    ),
    "a list": (b"[1,2]", error("bad-message")),
    "a number": (b"3", error("bad-message")),
    "a string": (b'"ping"', error("bad-message")),
    "null": (b"null", error("bad-message")),
    "no type": (b'{"id":4}', error("bad-message")),
    "a type that is a number": (b'{"type":1}', error("bad-message")),
    "a type that is null": (b'{"type":null}', error("bad-message")),
    "an unknown type": (b'{"type":"nonsense"}', error("unknown-type", "nonsense")),
    "an unknown type with an id": (b'{"type":"nonsense","id":"m1"}', error("unknown-type", "m1")),
    "an unknown type in another case": (b'{"type":"Ping"}', error("unknown-type", "Ping")),
    "a surrogate for a type": (b'{"type":"\\ud800"}', error("unknown-type", "\ud800")),
    "an endless type": (json.dumps({"type": "x" * 60_000}).encode(), error("unknown-type", "x" * 64)),
    "an onopen with a v that is none": (b'{"type":"onopen","v":"1"}', error("bad-message", "onopen")),
    "an onopen with v 0": (b'{"type":"onopen","v":0}', error("bad-message", "onopen")),
    "an onopen with v true": (b'{"type":"onopen","v":true}', error("bad-message", "onopen")),
    "an onopen with unknown beats": (b'{"type":"onopen","v":1,"beats":"mine"}', error("bad-message", "onopen")),
    "an onopen with beats that are none": (b'{"type":"onopen","v":1,"beats":[1]}', error("bad-message", "onopen")),
    "an onopen with no interval": (b'{"type":"onopen","v":1,"interval_ms":0}', error("bad-message", "onopen")),
    "an onopen with a client id of spaces": (
        b'{"type":"onopen","v":1,"client_id":" "}',
        error("bad-message", "onopen"),
    ),
    "an onopen with a session that is none": (b'{"type":"onopen","v":1,"session":7}', error("bad-message", "onopen")),
}


@pytest.mark.parametrize(("payload", "answer"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_taken_is_answered_by_an_error_and_the_connection_stays_open(
    page, still_serves, payload, answer
):
    page.say(payload, {"type": "ping", "n": 1})

    refusal, pong = page.messages
    assert refused(refusal) == answer
    assert pong == {"type": "ping", "n": 1, "status": "pong", "clients": 1}
    assert page.closed_with is None
    still_serves()


def test_a_ping_of_1024_bytes_is_answered_and_one_byte_more_is_too_big(page, still_serves):
    fits = b'{"type":"ping","id":7,"x":"%s"}' % (b"x" * (1024 - 29))
    assert len(fits) == 1024

    page.say(fits, fits.replace(b"xx", b"xxx", 1))

    assert page.texts[0] == fits[:-1] + PONGED
    assert refused(page.messages[1]) == error("too-big", 7)
    assert len(page.messages) == 2
    still_serves()


def test_a_binary_frame_is_a_bad_message_and_the_connection_stays_open(page, still_serves):
    page.write(frame(b'{"type":"ping"}', BINARY))
    page.say({"type": "ping"})

    assert refused(page.messages[0]) == error("bad-message")
    assert page.texts[1] == b'{"type": "ping"' + PONGED
    still_serves()


# Pings in every shape that JSON allows: the answer is the text received, its values not encoded again.

SPLICED = {
    "nothing besides": b'{"type":"ping"}',
    "an id and a time": b'{"type":"ping","id":17,"t":1763900000123.25}',
    "spaces and escapes in every place": b'\n\t {\r "t\\u0079pe"\t: "\\u0070ing" ,\n"a" : [ 1 , { } ] , "b" : "\\/" }',
    "braces in a string": b'{"type":"ping","s":"}{\\"}"}',
    "colons in a string": b'{"type":"ping","s":"a:b:c"}',
    "an exponent": b'{"type":"ping","t":1e5}',
    "23 digits": b'{"type":"ping","t":12345678901234567890123}',
    "a fraction of 40 digits": b'{"type":"ping","t":0.1234567890123456789012345678901234567890}',
    "minus zero": b'{"type":"ping","t":-0}',
    "a lone surrogate": b'{"type":"ping","s":"\\ud800"}',
    "a lone low surrogate in capitals": b'{"type":"ping","s":"\\uDFFF"}',
    "a pair of surrogates": b'{"type":"ping","s":"\\ud83d\\ude00"}',
    "an emoji": '{"type":"ping","s":"\N{GRINNING FACE}"}'.encode(),
    "a NUL, escaped": b'{"type":"ping","s":"\\u0000"}',
    "an empty name": b'{"type":"ping","":0}',
    "a status inside": b'{"type":"ping","state":{"status":"pong","type":"x"}}',
    "nested, as deep as fits": b'{"type":"ping","a":' + b"[" * 400 + b"]" * 400 + b"}",
}


@pytest.mark.parametrize("payload", SPLICED.values(), ids=SPLICED)
def test_the_answer_to_a_ping_is_the_text_received(page, still_serves, payload):
    page.say(payload)

    assert page.texts == [payload[:-1] + PONGED]
    still_serves()


REBUILT = {
    "another status": (b'{"type":"ping","status":"online","n":1}', b'{"type":"ping","n":1'),
    "a status that is null": (b'{"type":"ping","status":null}', b'{"type":"ping"'),
    "clients": (b'{"type":"ping","clients":99,"n":1}', b'{"type":"ping","n":1'),
    "both": (b'{"clients":[],"status":{},"type":"ping"}', b'{"type":"ping"'),
    "a duplicate member": (b'{"type":"ping","n":1,"n":2}', b'{"type":"ping","n":2'),
    "a duplicate type": (b'{"type":"nonsense","type":"ping"}', b'{"type":"ping"'),
    "a duplicate by another spelling": (b'{"type":"ping","n":1,"\\u006e":2}', b'{"type":"ping","n":2'),
    "a status by another spelling": (b'{"type":"ping","st\\u0061tus":"x"}', b'{"type":"ping"'),
    "numbers that are kept": (
        b'{"type":"ping","status":0,"t":1e5,"u":12345678901234567890123}',
        b'{"type":"ping","t":1e5,"u":12345678901234567890123',
    ),
    "a surrogate that is kept": (b'{"type":"ping","status":0,"s":"\\ud800"}', b'{"type":"ping","s":"\\ud800"'),
    "a surrogate for a name": (b'{"type":"ping","status":0,"\\ud800":1}', b'{"type":"ping","\\ud800":1'),
}


@pytest.mark.parametrize(("payload", "kept"), REBUILT.values(), ids=REBUILT)
def test_the_members_of_the_answerer_replace_those_of_the_ping(page, still_serves, payload, kept):
    page.say(payload)

    assert page.texts == [kept + PONGED]
    still_serves()


def test_a_ping_with_an_ack_is_answered_with_one_status_and_one_count(page, still_serves):
    page.say(b'{"type":"ping","n":1,"ack":17}')

    (answer,) = page.texts
    assert answer.count(b'"status"') == answer.count(b'"clients"') == 1
    assert page.messages[0].items() >= {"type": "ping", "n": 1, "status": "pong", "clients": 1}.items()
    still_serves()


NEVER_ANSWERED = {
    "a pong": {"type": "ping", "status": "pong"},
    "a pong with an id of nobody's": {"type": "ping", "status": "pong", "id": 10**30},
    "a pong with an id that is a list": {"type": "ping", "status": "pong", "id": [1]},
    "a pong with an id that is true": {"type": "ping", "status": "pong", "id": True},
    "an ack": {"type": "ack", "ack": -1},
    "an error": {"type": "error", "code": "bad-json"},
    "a drain": {"type": "drain"},
}


@pytest.mark.parametrize("message", NEVER_ANSWERED.values(), ids=NEVER_ANSWERED)
@pytest.mark.parametrize("level", [0, 1])
def test_what_is_an_answer_itself_is_never_answered(page, still_serves, level, message):
    if level:
        page.say({"type": "onopen", "v": 1})
    before = page.texts

    page.say(message)

    assert page.texts == before
    assert page.closed_with is None
    still_serves()


def test_a_second_onopen_with_v_is_a_bad_message_and_changes_nothing(page, still_serves):
    page.say({"type": "onopen", "v": 1, "client_id": "alice"}, {"type": "onopen", "v": 1, "client_id": "bob"})

    opened, second = page.messages
    assert opened["client_id"] == "alice"
    assert refused(second) == error("bad-message", "onopen")
    still_serves()


@pytest.mark.parametrize("wish", [1e300, 10**400, 1e-300, 5])
def test_an_absurd_wish_for_an_interval_is_granted_within_the_servers_bounds(page, wish):
    page.say(json.dumps({"type": "onopen", "v": 1, "interval_ms": wish}).encode())

    assert page.messages[0]["interval_ms"] == (60_000 if wish > 60_000 else 100)


def test_a_version_above_ours_is_answered_with_ours(page):
    page.say({"type": "onopen", "v": 10**30})

    assert (page.messages[0]["status"], page.messages[0]["v"]) == ("ok", 1)


# Frames in odd pieces are whole messages all the same.


def test_a_ping_in_pieces_of_one_byte_is_answered(page, still_serves):
    page.write(*(bytes([byte]) for byte in frame(b'{"type":"ping","n":1}')))

    assert page.texts == [b'{"type":"ping","n":1' + PONGED]
    still_serves()


def test_twenty_pings_in_one_segment_get_twenty_answers_in_order(page, still_serves):
    page.say(*({"type": "ping", "n": n} for n in range(20)))

    assert [message["n"] for message in page.messages] == list(range(20))
    still_serves()


def test_a_ping_over_two_frames_with_a_control_frame_between_is_answered(page, still_serves):
    payload = b'{"type":"ping","n":1}'
    page.write(frame(payload[:9], fin=False) + frame(b"here?", PING) + frame(payload[9:], CONTINUATION))

    assert page.frames == [(PONG, b"here?"), (TEXT, payload[:-1] + PONGED)]
    still_serves()


def test_a_message_in_frames_of_nothing_is_answered(page, still_serves):
    payload = b'{"type":"ping"}'
    page.write(frame(fin=False) + frame(payload, CONTINUATION, fin=False) + frame(b"", CONTINUATION))

    assert page.texts == [payload[:-1] + PONGED]
    still_serves()


def test_a_ping_in_the_segment_of_the_handshake_is_answered(serve, connect, still_serves):
    serve()
    page = connect()

    page.write(request() + frame(b'{"type":"ping"}'))

    assert page.texts == [b'{"type":"ping"' + PONGED]
    still_serves()


# What breaks RFC 6455, or is too long, closes with the code for it.

BROKEN = {
    "invalid UTF-8": (frame(b'{"type":"ping","s":"\xff"}'), 1007),
    "UTF-8 that ends too early": (frame(b'{"s":"\xc3'), 1007),
    "a surrogate in UTF-8": (frame(b'{"type":"ping","s":"\xed\xa0\x80"}'), 1007),
    "a close reason that is no UTF-8": (frame(struct.pack("!H", 1000) + b"\xff", CLOSE), 1007),
    "1 MiB": (frame(b"x" * 2**20), 1009),
    "1 MiB in many frames": (
        frame(b"x" * 2**15, fin=False) + frame(b"x" * 2**15, CONTINUATION, fin=False) * 30 + frame(b"", CONTINUATION),
        1009,
    ),
    "a length of 1 TiB": (frame(b"x" * 10, length=2**40), 1009),
    "a length of 2**63": (frame(b"x" * 10, length=2**63), 1002),
    "a length of 2**64 - 1": (frame(b"x" * 10, length=2**64 - 1), 1002),
    "a length spelt too long": (b"\x81\xfe\x00\x02\0\0\0\0{}", 1002),
    "unmasked": (frame(b'{"type":"ping"}', masked=False), 1002),
    "a reserved bit": (frame(b'{"type":"ping"}', rsv=1), 1002),
    "the bit of compression": (frame(b'{"type":"ping"}', rsv=4), 1002),
    "all reserved bits": (frame(b'{"type":"ping"}', rsv=7), 1002),
    "opcode 3": (frame(b"x", 3), 1002),
    "opcode 7": (frame(b"x", 7), 1002),
    "opcode 11": (frame(b"x", 11), 1002),
    "opcode 15": (frame(b"x", 15), 1002),
    "a control frame in pieces": (frame(b"x", PING, fin=False), 1002),
    "a control frame of 126 bytes": (frame(b"x" * 126, PING), 1002),
    "a control frame of 1 TiB": (frame(b"x", PING, length=2**40), 1002),
    "a continuation of nothing": (frame(b"x", CONTINUATION), 1002),
    "a new message inside another": (frame(b"x", fin=False) + frame(b"y"), 1002),
    "a close frame of one byte": (frame(b"x", CLOSE), 1002),
    "a close code of 999": (frame(struct.pack("!H", 999), CLOSE), 1002),
    "a close code of 1006": (frame(struct.pack("!H", 1006), CLOSE), 1002),
    "everything at once": (frame(b"x" * 126, 15, fin=False, rsv=7, masked=False), 1002),
    "noise": (bytes(range(251, 100, -1)) * 40, 1002),
}


@pytest.mark.parametrize(("data", "code"), BROKEN.values(), ids=BROKEN)
def test_what_breaks_the_protocol_is_closed_with_its_code(page, world, still_serves, data, code):
    page.write(data)

    assert page.closed_with == code
    # Nobody waits for the answer to that for longer than `close_timeout`.
    world.advance(1.5)
    assert page.ended is not None
    still_serves()


@pytest.mark.parametrize(("data", "code"), BROKEN.values(), ids=BROKEN)
def test_after_a_breach_nothing_is_answered_any_more(page, world, data, code):
    page.say({"type": "ping", "n": 1})
    page.write(data)
    page.say({"type": "ping", "n": 2}, {"type": "nonsense"})
    world.advance(1.5)

    assert page.messages == [{"type": "ping", "n": 1, "status": "pong", "clients": 1}]


SHORT = {name: row for name, row in BROKEN.items() if len(row[0]) < 10_000}


@pytest.mark.parametrize(("data", "code"), SHORT.values(), ids=SHORT)
def test_a_breach_in_pieces_of_one_byte_ends_the_same(page, world, still_serves, data, code):
    page.write(*(bytes([byte]) for byte in data))

    assert page.closed_with == code
    world.advance(1.5)
    assert page.ended is not None
    still_serves()


# The handshake.


def test_a_peer_that_says_nothing_is_dropped_after_five_seconds(serve, connect, world, still_serves):
    serve()
    silent = connect()

    world.advance(4.8)
    assert silent.ended is None
    world.advance(0.6)
    assert silent.ended is not None
    assert silent.received == b""
    still_serves()


def test_a_handshake_of_a_byte_a_second_is_dropped_after_five_seconds(serve, connect, world, still_serves):
    serve()
    slow = connect()

    for byte in request()[:5]:
        assert slow.ended is None
        slow.write(bytes([byte]))
        world.advance(0.95)
    world.advance(0.5)
    assert slow.ended is not None
    still_serves()


def test_a_request_head_over_16_kib_is_refused_with_431(serve, connect, still_serves):
    serve()
    talker = connect()

    talker.write(b"GET /ws HTTP/1.1\r\nX: " + b"x" * 16_384)

    assert talker.status == 431
    assert talker.ended is not None
    still_serves()


def test_an_endless_request_head_is_refused_while_it_grows(serve, connect, still_serves):
    serve()
    talker = connect()

    talker.write(*(b"X-Header: 0123456789\r\n" for _ in range(2000)))

    assert talker.status == 431
    still_serves()


HANDSHAKES = {
    "a wrong path": ({"path": "/elsewhere"}, 404),
    "a path that only begins right": ({"path": "/ws/"}, 404),
    "version 12": ({"version": "12"}, 400),
    "version 14": ({"version": "14"}, 400),
    "a version that is no number": ({"version": "new"}, 400),
    "no version": ({"version": None}, 400),
    "no key": ({"key": None}, 400),
    "a key that is too short": ({"key": "abc"}, 400),
    "a key of odd characters": ({"key": "dGhlIHNhbXBsZS\xff\xff\xff\xffNlQ=="}, 400),
    "no host": ({"host": None}, 400),
    "a host with an odd port": ({"host": "test:x"}, 400),
    "no connection header": ({"connection": None}, 400),
    "a connection header of another kind": ({"connection": "close"}, 400),
    "an origin that is none": ({"origin": "nonsense"}, 400),
    "an origin with an odd port": ({"origin": "http://test:x"}, 400),
    "a POST": ({"method": "POST"}, 405),
    "another upgrade": ({"upgrade": "h2c, xwebsocketx"}, 400),
    "a fragment": ({"path": "/ws#there"}, 404),
    "no upgrade, and no site": ({"upgrade": None}, 426),
}


@pytest.mark.parametrize(("wrong", "status"), HANDSHAKES.values(), ids=HANDSHAKES)
def test_a_wrong_handshake_is_refused_with_a_complete_http_answer(serve, connect, still_serves, wrong, status):
    serve(paths=("/ws", "/"))
    stranger = connect()

    stranger.write(request(**wrong))

    assert stranger.status == status
    assert stranger.ended is not None
    assert int(stranger.headers["content-length"]) == len(stranger.body)
    assert stranger.headers["x-content-type-options"] == "nosniff"
    assert stranger.headers["connection"] == "close"
    assert len(stranger.body.splitlines()) == 1
    still_serves()


def test_a_refused_version_is_told_which_are_known(serve, connect):
    serve()
    stranger = connect()

    stranger.write(request(version="7"))

    assert "13" in stranger.headers["sec-websocket-version"]


NONSENSE = {
    "a request line of one word": b"GET\r\nUpgrade: websocket\r\n\r\n",
    "no request line": b"\r\nUpgrade: websocket\r\n\r\n",
    "nothing but ends of lines": b"\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\nUpgrade: websocket\r\n\r\n",
    "HTTP/1.0": b"GET /ws HTTP/1.0\r\nHost: x\r\nUpgrade: websocket\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "bytes that are no text": b"GET /\xff\xfe HTTP/1.1\r\nHost: \xff\r\nUpgrade: websocket\r\n\r\n",
}


@pytest.mark.parametrize("paths", [None, ("/ws",)], ids=["anywhere", "on one path"])
@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE)
def test_what_is_no_http_is_refused(serve, connect, still_serves, data, paths):
    serve(paths=paths)
    stranger = connect()

    stranger.write(data)

    assert 400 <= stranger.status <= 505
    assert stranger.ended is not None
    still_serves()


ORIGINS = {
    "another site": "http://evil.example",
    "another port": "http://test:9001",
    "null": "null",
    "a file": "file:///home/me/page.html",
    "a name of odd characters": "ab://" + "\xe9" * 80,
}


@pytest.mark.parametrize("origin", ORIGINS.values(), ids=ORIGINS)
def test_a_wrong_origin_is_let_in_and_closed_4403_where_its_page_can_read_it(
    serve, connect, world, still_serves, origin
):
    serve()
    page = connect()

    page.write(request(origin=origin) + frame(b'{"type":"ping"}'))

    assert page.status == 101
    assert page.closed_with == 4403
    assert page.close_reason.startswith("pages ")
    assert page.messages == []
    world.advance(1.5)
    assert page.ended is not None
    still_serves()


def test_one_connection_too_many_is_refused_with_503_and_told_when_to_come_back(serve, connect, still_serves):
    serve(max_connections=2)
    first, second, third = connect().open(), connect().open(), connect()

    third.write(request())
    assert third.status == 503
    assert int(third.headers["retry-after"]) > 0
    assert third.ended is not None

    first.leave()
    still_serves()
    assert second.ended is None


def test_of_a_crowd_beyond_the_limit_those_who_waited_longest_give_way(serve, world, connect):
    """Whoever only connects keeps nobody out."""
    factory = serve(max_connections=1)
    crowd = [connect() for _ in range(65)]
    world.advance(1)
    good = connect().open()

    assert good.ended is None
    assert [one.ended is not None for one in crowd] == [True] * 2 + [False] * 63
    assert factory.refused == {"gave-way": 2}

    good.leave()
    world.advance(6)
    assert all(one.ended is not None for one in crowd)
    assert factory.countConnections == 0
    connect().open()


# The mixin, in front of a host that echoes.


class Echo(HeartbeatServerMixin, WebSocketServerProtocol):
    """A host with a protocol of its own."""

    def onMessage(self, payload, isBinary):
        self.sendMessage(payload, isBinary)


@pytest.fixture
def guest(world, connect):
    """A page that has shaken hands with such a host."""
    factory = WebSocketServerFactory(reactor=world.server)
    factory.protocol = Echo
    factory.setProtocolOptions(failByDrop=False, maxMessagePayloadSize=65_536)
    world.listen(factory)
    return connect().open()


HOSTS = {
    "not JSON": b"hello",
    "a list": b"[1]",
    "no type": b'{"id":1}',
    "a type that is a number": b'{"type":1}',
    "an unknown type": b'{"type":"nonsense"}',
    "an ack, at level 0": b'{"type":"ack","ack":1}',
    "an error, at level 0": b'{"type":"error"}',
    "a drain, at level 0": b'{"type":"drain"}',
    "half a ping": b'{"type":"ping"',
    "NaN": b'{"type":"ping","t":NaN}',
    "nested deep": b'{"type":"ping","a":' + b"[" * 2000 + b"}",
    "a ping above 4 KiB": b'{"type":"ping","x":"' + b"x" * 4096 + b'"}',
}


@pytest.mark.parametrize("payload", HOSTS.values(), ids=HOSTS)
def test_what_is_not_surely_the_mixins_is_the_hosts(guest, still_serves, payload):
    guest.say(payload)

    assert guest.texts == [payload]
    still_serves()


def test_a_binary_frame_is_the_hosts_even_when_it_reads_like_a_ping(guest, still_serves):
    guest.write(frame(b'{"type":"ping"}', BINARY))

    assert guest.frames == [(BINARY, b'{"type":"ping"}')]
    still_serves()


MIXINS = {
    "a ping over 1 KiB": (b'{"type":"ping","x":"' + b"x" * 1024 + b'"}', error("too-big", "ping")),
    "a bad onopen": (b'{"type":"onopen","v":"one"}', error("bad-message", "onopen")),
}


@pytest.mark.parametrize(("payload", "answer"), MIXINS.values(), ids=MIXINS)
def test_the_mixin_refuses_its_own_messages_itself(guest, still_serves, payload, answer):
    guest.say(payload)

    (refusal,) = guest.messages
    assert refused(refusal) == answer
    still_serves()


@pytest.mark.parametrize(("data", "code"), BROKEN.values(), ids=BROKEN)
def test_what_breaks_the_protocol_closes_a_hosts_connection_too(guest, world, still_serves, data, code):
    guest.write(data)

    assert guest.closed_with == code
    world.advance(3)
    assert guest.ended is not None
    still_serves()


@pytest.mark.parametrize("size", [8, 14, 536])
def test_a_message_that_arrives_in_small_segments_is_one_message(serve, connect, size):
    """In how many segments TCP delivers a frame is no doing of its sender's; nor do they count to his rate."""
    factory = serve(message_rate=10.0)
    page = connect().open()
    text = frame(b'{"type":"note","text":"%s"}' % (b"x" * 60_000))
    for at in range(0, len(text), size):
        page.transport.write(text[at : at + size])
    page.world.advance(1)

    assert page.ended is None
    assert [one["code"] for one in page.messages] == ["unknown-type"]
    assert not {"message_rate", "slowed-down", "message_limit"} & factory.refused.keys()
