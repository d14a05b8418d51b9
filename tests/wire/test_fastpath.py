"""The short way and Autobahn's: the same bytes, in the same pieces and at the same times, come to the same.

What is compared, and how, is told in `twins`; what may be sent, in `torrent`. Each case that ever came out
differently stays here.
"""

import functools
import json
import random
import zlib
from struct import pack

import pytest
from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.websocket.compress import PerMessageDeflateOffer, PerMessageDeflateOfferAccept
from hypothesis import given
from hypothesis import strategies as st
from peers import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame, request
from test_bad_input import BROKEN, NEVER_ANSWERED, REBUILT, REFUSED, SPLICED
from test_noise import MESSAGES
from torrent import Torrent
from twins import PLAIN, SHORT, WATCHED, Host, Mistake, Page, Told, Twins, hosts, ours
from twisted.internet.defer import Deferred

from heartbeat import Unauthorized
from heartbeat.ends import ServerEdge
from heartbeat.mixin import HeartbeatServerMixin

WAYS = (SHORT, PLAIN, WATCHED)

BEAT = frame(b'{"type":"ping"}')
OPENING = frame(b'{"type":"onopen","v":1}')
PONGED = b'{"type":"ping","status":"pong","clients":1}'

both = pytest.mark.parametrize("make", [ours, hosts], ids=["ours", "a host's"])


def said(text):
    return frame(text if isinstance(text, bytes) else json.dumps(text).encode())


def with_protocol(base, make=ours, **options):
    """Factories whose connections have this protocol, and these options of Autobahn's."""

    def made(settings, clock):
        factory = make(settings, clock)
        factory.protocol = base
        for name, value in options.items():
            setattr(factory, name, value)
        return factory

    return made


def hosts_with(base=Host, **options):
    return with_protocol(base, hosts, **options)


class Plain(Told, HeartbeatServerMixin, WebSocketServerProtocol):
    """A host's that does nothing of its own with a pong."""


mixed = hosts_with(Plain)

either = pytest.mark.parametrize("make", [ours, mixed], ids=["ours", "a host's"])


def on(twins, number):
    """The protocols of a connection, one each way."""
    return [side.lines[number].protocol for side in twins.sides]


# The short way is taken at all.


@both
def test_on_the_short_way_autobahn_sees_no_short_text(make):
    """Or all that follows would compare it with itself."""
    with Twins(make) as twins:
        number = twins.connect()
        twins.live(number, BEAT, BEAT, said({"type": "chat"}), said(b"hello"), BEAT * 3 + said(b"[]"))

        short, plain = (protocol.trafficStats for protocol in on(twins, number))
    assert short.incomingOctetsWireLevel == short.incomingWebSocketMessages == 0
    assert plain.incomingWebSocketMessages == 8
    assert plain.incomingOctetsWireLevel > 0


CONTROLS = [frame(payload, kind) for payload in (b"", b"x", b"y" * 125) for kind in (PING, PONG)]


@either
def test_on_the_short_way_autobahn_sees_no_ping_or_pong_of_its_own(make):
    with Twins(make) as twins:
        number = twins.connect()
        twins.live(number, *CONTROLS, b"".join(CONTROLS), BEAT + CONTROLS[2] + BEAT + CONTROLS[3] + CONTROLS[4])

        short, plain = (protocol.trafficStats.incomingOctetsWireLevel for protocol in on(twins, number))
    assert short == 0
    assert plain > 12 * sum(map(len, CONTROLS)) / 6


@either
@pytest.mark.parametrize("whole", [BEAT, *CONTROLS])
def test_of_a_frame_that_is_cut_within_its_head_autobahn_parses_nothing(make, whole):
    """It has not begun with it when the rest comes, with the next chunk, and both are taken as one."""
    with Twins(make) as twins:
        number = twins.connect()
        for cut in range(1, 6):
            twins.live(number, BEAT + whole[:cut], whole[cut:] + whole + BEAT, BEAT)

        assert on(twins, number)[0].trafficStats.incomingOctetsWireLevel == 0


@both
@pytest.mark.parametrize("whole", [frame(b""), frame(b"\xff"), frame(b"x", PONG)])
def test_what_autobahn_is_given_once_more_it_counts_once(make, whole):
    """An empty text, what is no UTF-8, and a pong of which a host has a hook."""
    with Twins(make) as twins:
        number = twins.connect()
        twins.live(number, BEAT, whole[:4], whole[4:])

        plain = len(BEAT) + len(whole)
        short = 0 if make is ours and whole[0] & 15 == PONG else len(whole)
        assert [protocol.trafficStats.incomingOctetsWireLevel for protocol in on(twins, number)] == [short, plain]


@both
def test_what_autobahn_must_see_it_sees_on_either_way(make):
    pieces = [frame(b"x" * 126), frame(b"x", BINARY), BEAT[:7], BEAT[7:], frame(b"x", fin=False)]
    with Twins(make) as twins:
        number = twins.connect()
        twins.live(number, *pieces, frame(b"y", CONTINUATION))

        short, plain = (protocol.trafficStats for protocol in on(twins, number))
    assert short.incomingOctetsWireLevel == plain.incomingOctetsWireLevel == sum(map(len, pieces)) + 7
    assert short.incomingWebSocketMessages == plain.incomingWebSocketMessages == 4


# Any frames whatever.


@given(st.randoms(use_true_random=False), st.sampled_from([ours, hosts, mixed]))
def test_any_life_is_the_same_on_every_way(chance, make):
    with Twins(make, WAYS, message_limit=2048) as twins:
        torrent = Torrent(chance, twins, lines=2)
        for _ in range(25):
            torrent.step()
            twins.compare()


@pytest.mark.parametrize("seed", range(16))
def test_a_few_hundred_frames_of_any_kind_come_to_the_same_on_every_way(seed):
    pour(seed, 400)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 150))
def test_a_million_frames_of_any_kind_come_to_the_same_on_every_way(seed):
    """Twenty thousand at a time, so that the number which shows a difference again shows it soon."""
    pour(seed, 20_000)


def pour(seed, frames, every=64):
    """A life of so many frames, compared now and then; where that fails, a second time and after each step."""
    make, beats = (ours, hosts, mixed)[seed % 3], (None, None, "server", "both")[seed // 3 % 4]
    try:
        with Twins(make, WAYS, message_limit=2048, beats=beats) as twins:
            torrent = Torrent(random.Random(seed), twins)
            while torrent.frames < frames:
                for _ in range(every):
                    torrent.step()
                torrent.compare()
    except AssertionError:
        if every > 1:
            pour(seed, frames, 1)
        raise


TEXTS = st.text(st.characters(), max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass"))

PAYLOADS = st.one_of(
    MESSAGES.map(lambda message: json.dumps(message).encode()),
    MESSAGES.map(lambda message: json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    st.builds(lambda members: json.dumps({"type": "ping"} | members).encode(), st.dictionaries(st.text(), st.floats())),
    st.builds(lambda text: b'{"type":"ping","s":"%b"}' % text, TEXTS),
    TEXTS,
    st.binary(max_size=130),
)


@given(
    make=st.sampled_from([ours, hosts]),
    payloads=st.lists(PAYLOADS, min_size=1, max_size=8),
    level=st.sampled_from([0, 1]),
    together=st.booleans(),
)
def test_any_texts_come_to_the_same(make, payloads, level, together):
    """In a chunk each; or together, where none of them may break a rule of the session."""
    chunks = [frame(payload) for payload in payloads]
    if together and not any(b"seq" in payload or b"ack" in payload for payload in payloads):
        chunks = [b"".join(chunks)]
    with Twins(make, message_limit=2048) as twins:
        number = twins.connect()
        twins.live(number, *([OPENING] * level), BEAT, *chunks, BEAT, 0.3)


@given(data=st.binary(max_size=140), mask=st.binary(min_size=4, max_size=4))
def test_any_bytes_in_the_place_of_a_frame_come_to_the_same(data, mask):
    """Those of a text frame's header, and then whatever; and whatever from the first byte on."""
    with Twins() as twins:
        for chunk in (bytes((0x81, 0x80 | min(len(data), 125))) + mask + data, b"\x81" + data, data):
            number = twins.connect()
            twins.live(number, BEAT, chunk, BEAT, BEAT)


@both
def test_a_text_of_every_length_comes_to_the_same_as_a_ping_as_another_message_and_as_none(make):
    ping, chat = b'{"type":"ping","pad":"%b"}', b'{"type":"chat","text":"%b"}'
    with Twins(make) as twins:
        number = twins.connect()
        for length in range(131):
            payloads = [b"x" * length, *(shape % (b"y" * (length - len(shape) + 2)) for shape in (ping, chat))]
            twins.live(number, BEAT, *map(frame, payloads), BEAT)


# What is known to be bad, or odd.

#: Text payloads that a server must know what to do with, by what they are.
ODD = {name: payload for name, (payload, *_) in (REFUSED | REBUILT).items()}
ODD |= SPLICED | {name: json.dumps(message).encode() for name, message in NEVER_ANSWERED.items()}


@pytest.mark.parametrize("payload", ODD.values(), ids=ODD)
def test_what_is_odd_in_a_text_comes_to_the_same(payload):
    for make in (ours, hosts):
        for level in (0, 1):
            with Twins(make, WAYS) as twins:
                number = twins.connect()
                twins.live(
                    number, *([OPENING] * level), frame(payload), BEAT, frame(payload), BEAT + frame(payload), 0.5
                )


#: What breaks RFC 6455, or is too long, and what was tried once in `test_hostile`.
HOSTILE = {name: data for name, (data, _) in BROKEN.items()} | {
    "endless empty fragments": frame(b"", TEXT, fin=False) + frame(b"", CONTINUATION, fin=False) * 4097,
    "a ping in fragments of a byte": b"".join(
        frame(b'{"type":"ping"}'[at : at + 1], CONTINUATION if at else TEXT, fin=at == 14) for at in range(15)
    ),
    "a large message that never ends": frame(b"x" * 60_000)[:50_000],
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_what_is_hostile_comes_to_the_same(data):
    """By itself, behind a ping in the same chunk, in two chunks, and with more behind it."""
    for make in (ours, hosts):
        with Twins(make) as twins:
            for chunks in ([data], [BEAT + data], [data[: len(data) // 2], data[len(data) // 2 :]], [data + BEAT]):
                number = twins.connect()
                twins.live(number, BEAT, *chunks, BEAT, BEAT)
            twins.advance(1.5)
            twins.compare()


WRONG_UTF_8 = [
    b"\xff",
    b"\x80",
    b"\xc0\x80",
    b"\xe2\x82",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xf8\x88\x80\x80\x80",
]


@pytest.mark.parametrize("at", range(31))
def test_bytes_that_are_no_utf_8_are_closed_1007_in_every_place(at):
    ping = b'{"type":"ping","id":"x","e":1}\n'
    with Twins() as twins:
        for wrong in WRONG_UTF_8:
            number = twins.connect()
            twins.live(number, BEAT, frame(ping[:at] + wrong + ping[at:]))
            twins.live(number, BEAT)

            assert twins.sides[0].lines[number].said[0].rpartition(b"\x88")[2][1:3] == pack("!H", 1007)


def test_what_unicode_never_assigns_is_text_all_the_same():
    """U+FFFE and U+10FFFF are no characters, and yet UTF-8."""
    with Twins() as twins:
        number = twins.connect()
        twins.live(number, BEAT, *(frame(f'{{"type":"ping","s":"{c}"}}'.encode()) for c in "\ufffe\uffff\U0010ffff\0x"))


# Pieces: every place at which a stream can be cut.

STREAMS = {
    "pings": BEAT + frame(b'{"type":"ping","id":7,"t":1e5}') + BEAT,
    "an opening and what follows": OPENING
    + said({"type": "ping", "ack": 0})
    + said({"type": "chat", "seq": 1, "ack": 0})
    + BEAT,
    "a ping in fragments around a control frame": BEAT
    + frame(b'{"type":"pi', fin=False)
    + frame(b"here?", PING)
    + frame(b'ng"}', CONTINUATION)
    + BEAT,
    "lengths around 125": frame(b'{"type":"ping","pad":"%b"}' % (b"x" * 101))
    + frame(b'{"type":"ping","pad":"%b"}' % (b"x" * 102)),
    "what is no message between pings": BEAT + said(b"hello") + frame(b"\1", BINARY) + frame(b"") + BEAT,
    "no UTF-8 after a ping": BEAT + frame('{"type":"ping","s":"é€😀"}'.encode()) + frame(b'{"s":"\xe2\x82"}') + BEAT,
    "unmasked after a ping": BEAT + frame(b'{"type":"ping"}', masked=False) + BEAT,
    "a length spelt too long": BEAT + b"\x81\xfe\x00\x0f" + BEAT[2:] + BEAT,
    "a reserved bit": BEAT + frame(b'{"type":"ping"}', rsv=4) + BEAT,
    "pings and pongs of RFC 6455": b"".join(CONTROLS[:4]) + BEAT + CONTROLS[2] * 3 + frame(b"longer", PONG) + BEAT,
    "a ping of RFC 6455 that is too long": CONTROLS[2] + frame(b"x" * 126, PING) + CONTROLS[2],
    "one in fragments": CONTROLS[2] + frame(b"x", PING, fin=False) + CONTROLS[2],
    "one that is not masked": CONTROLS[2] + frame(b"x", PING, masked=False) + CONTROLS[2],
    "one with a reserved bit": CONTROLS[3] + frame(b"x", PONG, rsv=2) + CONTROLS[2],
    "one behind a close": CONTROLS[2] + frame(pack("!H", 1000), CLOSE) + CONTROLS[2],
    "a close": BEAT + frame(pack("!H", 1000) + b"bye", CLOSE) + BEAT,
    "a mask that looks like a frame": b"\x81\x8f\x81\x8f\x81\x8f" + bytes(15) + BEAT,
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_stream_comes_to_the_same_wherever_it_is_cut(stream):
    with Twins(ours) as twins:
        for cut in range(len(stream) + 1):
            number = twins.connect()
            twins.live(number, BEAT, stream[:cut], stream[cut:], BEAT)
            twins.lose(number)
            twins.forget(number)


@both
@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_stream_comes_to_the_same_byte_by_byte(make, stream):
    with Twins(make, WAYS) as twins:
        number = twins.connect()
        twins.feed(number, BEAT, *(stream[at : at + 1] for at in range(len(stream))), BEAT)
        twins.compare()


@pytest.mark.parametrize("make", [hosts, mixed])
@pytest.mark.parametrize(
    "name",
    [
        "pings",
        "an opening and what follows",
        "a ping in fragments around a control frame",
        "pings and pongs of RFC 6455",
    ],
)
def test_a_stream_comes_to_the_same_in_a_hosts_hands_wherever_it_is_cut(make, name):
    stream = STREAMS[name]
    with Twins(make) as twins:
        for cut in range(len(stream) + 1):
            number = twins.connect()
            twins.live(number, stream[:cut], stream[cut:], BEAT)
            twins.lose(number)
            twins.forget(number)


@both
def test_a_handshake_with_pings_behind_it_comes_to_the_same_wherever_it_is_cut(make):
    stream = request() + BEAT + BEAT
    with Twins(make) as twins:
        for cut in range(0, len(stream) + 1, 1 if make is ours else 7):
            number = twins.connect(b"")
            twins.live(number, stream[:cut], stream[cut:], BEAT)
            twins.lose(number)
            twins.forget(number)


# Time.


@both
@pytest.mark.parametrize("silence", [0.1, 5.9, 11.9, 12.1, 12.3, 14.9, 15.1, 15.3, 16.5, 60.0])
@pytest.mark.parametrize("level", [0, 1])
def test_silence_comes_to_the_same(make, silence, level):
    """Inside the watch, across the probe, and until it is convicted."""
    with Twins(make, WAYS) as twins:
        number = twins.connect()
        twins.live(number, *([OPENING] * level), BEAT, 3, BEAT, silence)
        twins.live(number, BEAT, 0.2, BEAT, 6, BEAT, frame(b"heartbeat 1", PONG), BEAT, 13, BEAT, 20)


@both
def test_a_page_that_its_browser_answers_for_is_away_on_every_way(make):
    with Twins(make, WAYS) as twins:
        number = twins.connect()
        twins.live(number, BEAT, *(12.2, frame(b"heartbeat 1", PONG), 46, frame(b"heartbeat 2", PONG), BEAT, 3, BEAT))
        twins.live(number, said({"type": "ping", "away": True}), 6, BEAT, 13, BEAT, 5, BEAT, BEAT)


@both
@pytest.mark.parametrize("beats", ["server", "both", "none"])
@pytest.mark.parametrize("schedule", ["answer", "fixed"])
def test_a_server_that_pings_does_so_at_the_same_times(make, beats, schedule):
    with Twins(make, WAYS, beats=beats, interval=2.0, schedule=schedule) as twins:
        number = twins.connect()
        twins.live(number, OPENING)
        for ping_id in range(1, 8):
            twins.live(number, 0.7, BEAT, 0.7, said({"type": "ping", "id": ping_id, "status": "pong", "ack": 0}), 0.8)
        twins.live(number, BEAT, 3, BEAT, 9, BEAT, 30)


@both
def test_what_arrives_late_after_a_stall_of_ours_comes_to_the_same(make):
    with Twins(make, WAYS) as twins:
        number = twins.connect()
        twins.live(number, BEAT)
        twins.each(lambda side: side.clock.advance(20))
        twins.live(number, BEAT, 0.5, BEAT, 14, BEAT)


# Sessions.


@both
def test_a_session_goes_on_the_same_on_another_connection(make):
    """The first one hears that it is superseded."""
    with Twins(make, WAYS) as twins:
        first = twins.connect()
        twins.live(first, OPENING, said({"type": "tell", "seq": 1, "ack": 0}), BEAT, said({"type": "ping", "ack": 1}))
        twins.live(first, lambda protocol: protocol.send({"type": "news"}), said({"type": "ping", "ack": 1}))
        session = twins.link(first).session
        second = twins.connect()
        again = {"sid": session.sid, "epoch": session.epoch, "last": 1, "sent": 1, "try": 1}
        twins.live(second, BEAT, said({"type": "onopen", "v": 1, "session": again}), BEAT)
        twins.live(first, BEAT)
        twins.live(second, said({"type": "ping", "ack": 2}), said({"type": "chat", "seq": 2, "ack": 2}), BEAT, 1)
        twins.compare()


@both
@pytest.mark.parametrize("rule", [{"type": "chat", "seq": 9}, {"type": "ping", "ack": 9}, {"type": "ack", "ack": 9}])
def test_who_breaks_a_rule_of_the_session_is_closed_the_same(make, rule):
    with Twins(make, WAYS) as twins:
        number = twins.connect()
        twins.live(number, OPENING, BEAT, said(rule), BEAT, 0.5, BEAT, 1)


#: What may stand behind that for which a connection is closed.
BEHIND = {
    "what is no frame": b"\xff\xff",
    "a frame without a mask": frame(b"{}", masked=False),
    "no piece of any message": frame(b"x", CONTINUATION),
    "no UTF-8": frame(b"\xff"),
    "too much": frame(b"x" * 3000),
    "a ping with a reserved bit": BEAT + frame(b"", PING, rsv=1),
    "a close": frame(pack("!H", 1000), CLOSE),
    "a close, cut": frame(pack("!H", 1000), CLOSE)[:-1],
    "a control ping, and a beat": frame(b"?", PING) + BEAT,
}

#: What a session's connection is closed for, by the code.
CLOSED = {
    4010: said({"type": "chat", "seq": 9}),
    4011: said({"type": "ping", "ack": 1}),
    1011: said({"type": "fail"}),
}


def is_closed_and_no_more(twins, number, code, behind):
    """All sides have said a close with this code, and nothing after it; what arrives behind it changes nothing."""
    for step in (b"", behind, 0.5):
        twins.live(number, step)
        for side in twins.sides:
            line = side.lines[number]
            assert type(line.said[-1]) is bytes
            close = line.said[-1].rpartition(b"\x88")[2]
            assert close[0] == len(close) - 1
            assert close[1:3] == pack("!H", code)
            assert (line.connected, line.disconnecting, line.protocol.remoteCloseCode) == (True, False, None)


@both
@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
def test_what_stands_behind_a_close_of_ours_in_the_same_chunk_is_not_looked_at(make, behind, failures):
    """As what comes in the next chunk is not: who broke a rule is read no further."""
    with Twins(make if make is ours else hosts_with(Failing), WAYS, message_limit=2048) as twins:
        for code, message in CLOSED.items():
            for before in (b"", BEAT, frame(b"x" * 126)):
                number = twins.connect()
                twins.live(number, OPENING, BEAT, before + message + behind)
                is_closed_and_no_more(twins, number, code, behind)
                twins.live(number, 1)
                assert not twins.sides[0].lines[number].connected
    failures.flush(Mistake)


@both
def test_what_stands_behind_an_opening_that_is_refused_is_not_looked_at(make):
    """A stale attempt to resume, which is closed at once, and is too long for the short way."""
    with Twins(make, WAYS, message_limit=2048) as twins:
        first = twins.connect()
        twins.live(first, OPENING, said({"type": "tell", "seq": 1, "ack": 0}))
        session = twins.link(first).session
        again = {"sid": session.sid, "epoch": session.epoch, "last": 0, "sent": 1, "try": 0}
        for behind in BEHIND.values():
            number = twins.connect()
            twins.live(number, said({"type": "onopen", "v": 1, "session": again}) + behind)
            is_closed_and_no_more(twins, number, 4001, behind)


@both
def test_what_stands_behind_what_is_one_too_many_is_not_looked_at(make, monkeypatch):
    """Whoever is ten seconds above the rate is closed 1008, by a message or a control frame."""
    monkeypatch.setattr(ServerEdge, "recount", lambda edge: edge.cut(1008, "too fast"))
    with Twins(make, WAYS, message_limit=2048) as twins:
        for step in (BEAT, frame(b"?", PING), frame(b"?", PONG), frame(b"x", BINARY)):
            for behind in BEHIND.values():
                number = twins.connect()
                twins.live(number, BEAT)
                twins.on(number, lambda protocol: setattr(protocol._heartbeat, "left", 1))
                twins.live(number, BEAT + step + behind)
                is_closed_and_no_more(twins, number, 1008, behind)


class Slow:
    """Says who somebody is after a while; sends away who shows no token."""

    def __init__(self, clock):
        self._clock = clock

    def authenticate(self, credentials):
        decided = Deferred()
        if credentials.token is None:
            self._clock.callLater(0.5, decided.errback, Unauthorized("no token"))
        else:
            self._clock.callLater(0.5, decided.callback, credentials.token)
        return decided


@both
@pytest.mark.parametrize("level0", ["allow", "refuse"])
@pytest.mark.parametrize("head", [request(), request("/ws?token=alice")], ids=["without a token", "with a token"])
@pytest.mark.parametrize(
    "first", [b'{"type":"ping"}', b'{"type":"onopen","v":1}', b'{"type":"onopen","v":1,"token":"bob"}', b"[]"]
)
def test_who_is_judged_waits_the_same(make, level0, head, first):
    def judged(settings, clock):
        factory = make(settings, clock)
        factory.heartbeat_authenticator = Slow(clock)
        return factory

    def authenticated(settings, clock):
        factory = judged(settings, clock)
        factory.heartbeat.admission.authenticator = factory.heartbeat_authenticator
        return factory

    with Twins(authenticated if make is ours else judged, WAYS, level0=level0) as twins:
        number = twins.connect(head)
        twins.live(number, said(first) + BEAT + BEAT, BEAT, 0.2, BEAT, 0.5, BEAT, said({"type": "chat"}), 1.5)


# What applications do.


class Failing(Host):
    """A host that fails where it is told to."""

    def onMessage(self, payload, isBinary):
        super().onMessage(payload, isBinary)
        if payload == b"fail" or b'"fail"' in payload:
            raise Mistake


@both
@pytest.mark.parametrize(
    "step", [b'{"type":"fail"}', b'{"type":"leave"}', b'{"type":"drop"}', b"fail", b"leave", b"drop"]
)
def test_a_handler_that_fails_closes_or_drops_does_the_same(make, step, failures):
    """And what shares its chunk, before it and behind it, has the same fate."""
    with Twins(make if make is ours else hosts_with(Failing), WAYS) as twins:
        for chunk in (
            said(step),
            BEAT + said(step) + BEAT,
            said(step) + said(b"[]"),
            BEAT + said(step) + frame(b"", PONG),
        ):
            number = twins.connect()
            twins.live(number, BEAT, chunk, BEAT, said({"type": "chat"}), frame(pack("!H", 1000), CLOSE), 1.5)
    failures.flush(Mistake)


@either
@pytest.mark.parametrize("word", [BEAT, said({"type": "tell"}), said(b"[]"), CONTROLS[2], CONTROLS[2] * 2])
def test_a_transport_that_fails_ends_the_connection_the_same(make, word, failures):
    """Which it must not do; whatever it was, it is logged, and the peer is told."""
    with Twins(make) as twins:
        number = twins.connect()
        twins.live(number, BEAT)
        for side in twins.sides:
            side.lines[number].fails = 1
        twins.feed(number, word, BEAT)

        short, plain = (side.lines[number] for side in twins.sides)
        assert (short.said, short.hooks, short.fails) == (plain.said, plain.hooks, plain.fails)
        assert short.protocol.state == plain.protocol.state
    assert len(failures.flush(Mistake)) == 2


@both
@pytest.mark.parametrize("event", ["open", "suspect", "acknowledged", "closed"])
def test_a_hook_that_fails_ends_the_connection_the_same(make, event, failures):
    base = Page if make is ours else Host

    class Fails(base):
        def linkChanged(self, status):
            super().linkChanged(status)
            if status.event == event:
                raise Mistake

    with Twins(with_protocol(Fails, make), WAYS) as twins:
        number = twins.connect()
        twins.live(number, BEAT, 13, BEAT, BEAT, said({"type": "chat"}), frame(pack("!H", 1000), CLOSE), 1.5)
    failures.flush(Mistake)


@either
@pytest.mark.parametrize("event", ["suspect", "acknowledged"])
def test_a_hook_that_closes_is_heeded_the_same(make, event):
    base = Page if make is ours else Plain

    class Closes(base):
        def linkChanged(self, status):
            super().linkChanged(status)
            if status.event == event:
                self.sendClose(3000, "enough")

    with Twins(with_protocol(Closes, make), WAYS) as twins:
        for word in (BEAT, said({"type": "chat"}), said(b"hello"), CONTROLS[2] + CONTROLS[3], CONTROLS[3] * 2):
            number = twins.connect()
            twins.live(number, BEAT, 13, word, BEAT, frame(pack("!H", 3000), CLOSE), 1.5)


@either
def test_a_hook_that_drops_the_connection_is_heeded_before_the_message_that_it_heard(make):
    """It is told that bytes arrive again, and will have none of them."""
    base = Page if make is ours else Plain

    class Drops(base):
        def linkChanged(self, status):
            super().linkChanged(status)
            if status.event == "acknowledged":
                self.dropConnection(abort=True)

    with Twins(with_protocol(Drops, make)) as twins:
        for word in (said({"type": "chat"}), CONTROLS[2], CONTROLS[3] + CONTROLS[2]):
            number = twins.connect()
            twins.live(number, BEAT, 13, word, 1)


@both
def test_what_is_sent_beside_the_answers_keeps_its_place(make):
    news = {"type": "news"}
    acts = [
        lambda protocol: protocol.send(news),
        lambda protocol: protocol.send(news, volatile=True),
        lambda protocol: protocol.sendMessage(b"as it is"),
        lambda protocol: protocol.sendMessage(b"x" * 70_000 if make is hosts else b"x" * 5000),
        lambda protocol: protocol.sendMessage(b"in pieces", fragmentSize=2),
        lambda protocol: protocol.sendPing(b"?"),
    ]
    with Twins(make, WAYS) as twins:
        number = twins.connect()
        for level in (b"", OPENING):
            twins.feed(number, level)
            for act in acts:
                twins.live(number, act, BEAT, act, BEAT + said({"type": "tell"}) + BEAT)


@either
def test_nothing_more_is_read_from_a_peer_for_which_too_much_waits_on_either_way(make, monkeypatch):
    waits = [0]
    monkeypatch.setattr("heartbeat.outbox.queued", lambda transport: waits[0])
    with Twins(make, WAYS, outgoing_limit=100_000) as twins:
        number = twins.connect()
        twins.live(number, BEAT)
        for word in (BEAT, said({"type": "chat"}), said(b"[]"), CONTROLS[2], CONTROLS[0] * 3 + CONTROLS[1]):
            waits[0] = 100_001
            twins.live(number, word)
            assert all(side.lines[number].paused for side in twins.sides)
            twins.live(number, BEAT, BEAT + word, 0.5)
            waits[0] = 50_000
            twins.live(number, 0.5, BEAT)
            assert not any(side.lines[number].paused for side in twins.sides)
        waits[0] = 100_001
        twins.live(number, BEAT, BEAT, 8)
        assert not twins.is_open(number)


# Hosts: their messages, and what they have of their own.


@pytest.mark.parametrize(
    "payload",
    [
        b"hello",
        b" {",
        b'{"type":"chat"}',
        b'{"type":"ack","ack":1}',
        b'{"no":"type"}',
        b'{"type":["ping"]}',
        b'["type","ping"]',
        b'{"type":"ping"',
        b'\xef\xbb\xbf{"type":"ping"}',
        b'{"type":"ping","x":"%b"}' % (b"x" * 4090),
        b"",
    ],
)
def test_a_foreign_message_reaches_the_host_untouched_on_every_way(payload):
    with Twins(hosts, WAYS) as twins:
        number = twins.connect()
        twins.live(number, BEAT, frame(payload), frame(payload, BINARY), BEAT + frame(payload))

        for side in twins.sides:
            found = [hook for hook in side.lines[number].hooks if type(hook) is tuple]
            assert found == [(payload, False), (payload, True), (payload, False)]


#: What a text passes in Autobahn, in and out.
ON_THE_WAY = [
    "processData",
    "onFrameBegin",
    "onFrameData",
    "onFrameEnd",
    "onMessageBegin",
    "onMessageFrameBegin",
    "onMessageFrameData",
    "onMessageFrameEnd",
    "onMessageFrame",
    "onMessageEnd",
    "sendMessage",
    "sendFrame",
    "sendData",
]


def overriding(name, base):
    """A class that has such a method of its own, which notes its calls."""

    def own(self, *arguments, **keywords):
        self.transport.hooks.append(name)
        return getattr(super(cls, self), name)(*arguments, **keywords)

    cls = type("Overrides", (base,), {name: own, "__module__": "somebodys"})
    return cls


def giving(name, base):
    """A class that gives each connection such a method, as tools do that look into one: when it is open."""

    class Given(base):
        def onOpen(self):
            super().onOpen()
            theirs = getattr(self, name)

            def own(*arguments, **keywords):
                self.transport.hooks.append(name)
                return theirs(*arguments, **keywords)

            setattr(self, name, own)

    return Given


@both
@pytest.mark.parametrize("name", ON_THE_WAY)
def test_who_overrides_what_a_text_passes_sees_every_frame(make, name):
    with Twins(with_protocol(overriding(name, Page if make is ours else Host), make)) as twins:
        number = twins.connect()
        twins.live(number, BEAT)
        twins.forget(number)
        twins.live(number, BEAT, BEAT + BEAT)

        assert [protocol._heartbeat.way for protocol in on(twins, number)] == [None, None]
        assert twins.sides[0].lines[number].hooks.count(name) >= 3


@both
@pytest.mark.parametrize("name", ["onMessageBegin", "onMessageEnd", "sendMessage", "sendFrame", "sendData"])
def test_who_gives_a_connection_a_method_of_its_own_sees_every_frame(make, name):
    with Twins(with_protocol(giving(name, Page if make is ours else Host), make), WAYS) as twins:
        number = twins.connect()
        twins.live(number, BEAT, BEAT, BEAT + BEAT)

        assert twins.sides[0].lines[number].hooks.count(name) == 4


OF_CONTROLS = {
    "processControlFrame": CONTROLS[:4],
    "_onPing": CONTROLS[::2],
    "onPing": CONTROLS[::2],
    "sendPong": CONTROLS[::2],
    "_onPong": CONTROLS[1::2],
    "onPong": CONTROLS[1::2],
}


@both
@pytest.mark.parametrize("name", OF_CONTROLS)
@pytest.mark.parametrize("where", ["above", "below", "of the connection"])
def test_who_overrides_what_a_ping_or_a_pong_passes_sees_every_one(make, name, where):
    base = Page if make is ours else Plain
    if where == "above":
        base = overriding(name, base)
    elif where == "of the connection":
        base = giving(name, base)
    else:
        base, make = type("Mixed", (Told, HeartbeatServerMixin, overriding(name, WebSocketServerProtocol)), {}), hosts
    with Twins(with_protocol(base, make)) as twins:
        number = twins.connect()
        controls = OF_CONTROLS[name]
        twins.live(number, BEAT, *controls, b"".join(controls), BEAT)

        hooks = [side.lines[number].hooks.count(name) for side in twins.sides]
        assert hooks[0] == hooks[1] == 2 * len(controls)
        # Text is taken all the same.
        assert on(twins, number)[0].trafficStats.incomingWebSocketMessages == 0


@both
def test_a_ping_of_autobahns_own_that_waits_for_its_pong_gets_it(make):
    """Though nobody has told Autobahn to send any."""
    with Twins(make) as twins:
        number = twins.connect()
        for protocol in on(twins, number):
            protocol.autoPingPending = b"\0" * 12
        twins.live(number, frame(b"\0" * 11, PONG), frame(b"\0" * 12, PONG), CONTROLS[2])

        assert [protocol.autoPingPending for protocol in on(twins, number)] == [None, None]


@pytest.mark.parametrize(
    ("option", "hook"),
    [
        ({"logFrames": True}, "logRxFrame"),
        ({"logFrames": True}, "logTxFrame"),
        ({"logOctets": True}, "logRxOctets"),
        ({"logOctets": True}, "logTxOctets"),
    ],
)
@both
def test_who_logs_frames_or_octets_logs_all_of_them(make, option, hook):
    with Twins(with_protocol(overriding(hook, Page if make is ours else Host), make, **option)) as twins:
        number = twins.connect()
        twins.live(number, BEAT)
        twins.forget(number)
        twins.live(number, BEAT, BEAT)

        assert twins.sides[0].lines[number].hooks == [hook, hook]


# Where the mixin stands before a host's class, that class is asked all the same.


class Counts(WebSocketServerProtocol):
    """An application's base class, that looks at each chunk."""

    def dataReceived(self, data):
        self.transport.hooks.append(("received", data))
        super().dataReceived(data)


class Consumes(WebSocketServerProtocol):
    """One that looks at what is about to be parsed."""

    def consumeData(self):
        self.transport.hooks.append(("about to parse", self.data))
        super().consumeData()


class Ends(WebSocketServerProtocol):
    """One that looks at the end of each frame."""

    def onFrameEnd(self):
        self.transport.hooks.append(("frame", self.current_frame.opcode))
        return super().onFrameEnd()


class Mixed(Told, HeartbeatServerMixin, Counts):
    """The first, with a heartbeat."""


class MixedToo(Told, HeartbeatServerMixin, Consumes):
    """The second."""


class MixedAsWell(Told, HeartbeatServerMixin, Ends):
    """The third."""


class Above(Host):
    """One that looks at each chunk before the heartbeat does."""

    def dataReceived(self, data):
        self.transport.hooks.append(("received", data))
        super().dataReceived(data)


class AboveMessages(Host):
    """One that stands where Autobahn calls itself."""

    def _onMessage(self, payload, isBinary):
        self.transport.hooks.append(("message", payload))
        super()._onMessage(payload, isBinary)


@pytest.mark.parametrize("base", [Mixed, MixedToo, MixedAsWell])
def test_a_base_class_that_looks_at_bytes_sees_all_of_them(base):
    with Twins(hosts_with(base)) as twins:
        number = twins.connect()
        twins.live(number, BEAT, BEAT)


def test_a_class_above_the_mixin_that_looks_at_bytes_sees_each_chunk_of_one_frame():
    with Twins(hosts_with(Above)) as twins:
        number = twins.connect()
        twins.live(number, BEAT, BEAT, said(b"hello"))


def test_a_class_above_the_mixin_that_looks_at_bytes_sees_each_chunk_once():
    with Twins(hosts_with(Above)) as twins:
        number = twins.connect()
        twins.live(number, BEAT, BEAT + BEAT)


def test_a_class_above_the_mixin_that_looks_at_messages_sees_all_of_them():
    with Twins(hosts_with(AboveMessages)) as twins:
        number = twins.connect()
        twins.live(number, BEAT, BEAT)


def traced(method):
    """A decorator as those that trace calls: it says that it is what it decorates."""

    @functools.wraps(method)
    def traced(self, *arguments, **keywords):
        self.transport.hooks.append(method.__name__)
        return method(self, *arguments, **keywords)

    return traced


@pytest.mark.parametrize("name", ["onMessageBegin", "sendMessage"])
def test_who_decorates_what_a_text_passes_sees_every_frame(name):
    base = type("Traced", (Host,), {name: traced(getattr(WebSocketServerProtocol, name))})
    with Twins(hosts_with(base), WAYS) as twins:
        number = twins.connect()
        twins.live(number, BEAT, BEAT)


# Autobahn's options.

OPTIONS = [
    {"autoFragmentSize": 5},
    {"applyMask": False},
    {"logFrames": True},
    {"logOctets": True},
    {"trackTimings": True},
    {"requireMaskedClientFrames": False},
    {"utf8validateIncoming": False},
    {"failByDrop": True},
    {"echoCloseCodeReason": True},
    {"maxMessagePayloadSize": 126},
    {"maxFramePayloadSize": 126},
    {"tcpNoDelay": False},
    {"closeHandshakeTimeout": 2},
]


@both
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_an_option_of_autobahns_holds_the_same(make, options):
    with Twins(with_protocol(Page if make is ours else Host, make, **options), WAYS) as twins:
        for word in (
            said({"type": "chat"}),
            frame(b"\xff\xfe"),
            frame(b'{"type":"ping"}', masked=False),
            frame(b'{"type":"ping","pad":"%b"}' % (b"x" * 110)),
            frame(b"x", rsv=1),
            frame(pack("!H", 3001) + b"why", CLOSE),
        ):
            number = twins.connect()
            twins.live(number, BEAT, BEAT, word, BEAT, 3)


@both
@pytest.mark.parametrize("option", [{"autoFragmentSize": 5}, {"maskServerFrames": True}])
def test_what_autobahn_does_to_each_frame_is_left_to_it(make, option):
    is_left_to_autobahn(make, option)


@both
@pytest.mark.parametrize("option", [{"logFrames": True}, {"logOctets": True}, {"trackTimings": True}])
def test_what_autobahn_tells_of_each_frame_is_left_to_it(make, option):
    is_left_to_autobahn(make, option)


def is_left_to_autobahn(make, option):
    with Twins(with_protocol(Page if make is ours else Host, make, **option), (SHORT,)) as twins:
        number = twins.connect()
        twins.live(number, BEAT, BEAT)

        (protocol,) = on(twins, number)
        assert (protocol._heartbeat.way, protocol._heartbeat.is_fast) == (None, False)
        assert protocol.trafficStats.incomingWebSocketMessages == 2


@both
@pytest.mark.parametrize("option", ["maxMessagePayloadSize", "maxFramePayloadSize"])
def test_a_limit_below_a_short_text_holds_the_same(make, option):
    with Twins(with_protocol(Page if make is ours else Host, make, **{option: 50})) as twins:
        number = twins.connect()
        twins.live(number, BEAT, said(b'{"type":"ping","pad":"%b"}' % (b"x" * 60)))


def test_where_any_traffic_answers_autobahns_own_pings_a_short_text_does():
    """A host that has both; its client's WebSocket answers no ping, but its page does speak."""
    pings = {"autoPingInterval": 1, "autoPingTimeout": 2, "autoPingRestartOnAnyTraffic": True}
    with Twins(hosts_with(**pings)) as twins:
        number = twins.connect()
        for _ in range(10):
            twins.feed(number, BEAT)
            twins.advance(0.5)

        assert [side.lines[number].connected for side in twins.sides] == [True, True]


@pytest.mark.parametrize("option", ["autoFragmentSize", "trackTimings"])
def test_an_option_that_a_host_sets_when_it_is_open_holds_the_same(option):
    class Sets(Host):
        def onOpen(self):
            if option == "trackTimings":
                self.setTrackTimings(enable=True)
            else:
                self.autoFragmentSize = 5

    with Twins(hosts_with(Sets), WAYS) as twins:
        number = twins.connect()
        twins.live(number, BEAT, BEAT)

        assert [protocol.trafficStats.incomingWebSocketMessages for protocol in on(twins, number)] == [2, 2, 2]


def accept(offers):
    return next((PerMessageDeflateOfferAccept(o) for o in offers if isinstance(o, PerMessageDeflateOffer)), None)


class Deflate:
    """A client's compressed texts, one context for all."""

    def __init__(self):
        self._press = zlib.compressobj(9, zlib.DEFLATED, -15)

    def __call__(self, payload):
        data = self._press.compress(payload) + self._press.flush(zlib.Z_SYNC_FLUSH)
        return frame(data[:-4], rsv=4)


@both
def test_compressed_messages_and_uncompressed_beats_share_a_connection(make):
    """RFC 7692, section 6: an endpoint may send a message uncompressed at any time."""
    deflated = Deflate()
    with Twins(with_protocol(Page if make is ours else Host, make, perMessageCompressionAccept=accept), WAYS) as twins:
        number = twins.connect(request(sec_websocket_extensions="permessage-deflate"))
        assert b"permessage-deflate" in twins.sides[0].lines[number].said[0]
        chat = b'{"type":"tell","id":"%b"}' % (b"ab" * 200)
        for word in (b'{"type":"ping"}', chat, b"hello", b'{"type":"ping","id":1}', chat):
            twins.live(number, BEAT, deflated(word), BEAT + deflated(word) + BEAT, said(word))
        twins.live(number, OPENING, BEAT, deflated(b'{"type":"tell","seq":1}'), BEAT, frame(b"no deflate", rsv=4), BEAT)


@both
def test_a_client_that_may_compress_and_does_not_takes_the_short_way(make):
    with Twins(with_protocol(Page if make is ours else Host, make, perMessageCompressionAccept=accept)) as twins:
        number = twins.connect(request(sec_websocket_extensions="permessage-deflate"))
        twins.live(number, BEAT, BEAT, said({"type": "chat"}))

        assert on(twins, number)[0].trafficStats.incomingWebSocketMessages == 0


def test_under_a_foreign_subprotocol_every_frame_is_the_hosts():
    class Speaks(Host):
        def onConnect(self, request):
            return request.protocols[0]

    with Twins(hosts_with(Speaks), WAYS) as twins:
        number = twins.connect(request(sec_websocket_protocol="chat.example"))
        twins.live(number, BEAT, BEAT, 13, frame(b"heartbeat 1", PONG), BEAT)

        assert [protocol._heartbeat.way for protocol in on(twins, number)] == [None] * 3


# Listeners, of Autobahn's own kind.


def listen(protocol):
    protocol.on("message", lambda payload, is_binary: protocol.transport.hooks.append((payload, is_binary)))


@both
def test_who_listens_for_messages_hears_those_that_are_not_the_heartbeats(make):
    with Twins(make, WAYS) as twins:
        number = twins.connect()
        twins.live(number, BEAT, listen, said({"type": "chat"}), said(b"hello"), frame(b"\1", BINARY), said(b"[]"))
        twins.live(number, lambda protocol: protocol.off("message"), said({"type": "chat"}), BEAT)


@both
def test_who_listens_for_messages_hears_every_one(make):
    with Twins(make, WAYS) as twins:
        number = twins.connect()
        twins.live(number, BEAT, listen, BEAT, BEAT + BEAT)


# Writes that Autobahn puts off.

PUT_OFF = {
    "synchronously": lambda protocol: protocol.sendMessage(b"first", sync=True),
    "in chops": lambda protocol: protocol.sendFrame(opcode=1, payload=b"first", chopsize=2),
    "as data, in chops": lambda protocol: protocol.sendData(frame(b"first", masked=False), chopsize=1),
    "as data, synchronously": lambda protocol: protocol.sendData(frame(b"first", masked=False), sync=True),
}


@both
@pytest.mark.parametrize("act", PUT_OFF.values(), ids=PUT_OFF)
def test_nothing_overtakes_what_autobahn_writes_bit_by_bit(make, act):
    with Twins(make, WAYS) as twins:
        number = twins.connect()
        twins.live(number, BEAT, act, BEAT, said({"type": "tell"}), act, act, BEAT, 1)
        twins.live(number, BEAT, act, frame(b"?", PING), BEAT, 1, BEAT)

        assert [protocol._heartbeat.way for protocol in on(twins, number)] == [None] * 3
        twins.live(number, 1, BEAT)


@either
@pytest.mark.parametrize("act", PUT_OFF.values(), ids=PUT_OFF)
@pytest.mark.parametrize("hook", ["onOpen", "linkChanged", "pongReceived"])
def test_nothing_overtakes_what_a_hook_has_autobahn_write_bit_by_bit(make, act, hook):
    """Not what answers the chunk of which it hears either."""
    base = Page if make is ours else Plain

    def own(self, *arguments):
        getattr(super(cls, self), hook)(*arguments)
        if self.state == WebSocketServerProtocol.STATE_OPEN:
            act(self)
            act(self)

    cls = type("Writes", (base,), {hook: own})
    answer = frame(b"heartbeat 1", PONG)
    with Twins(with_protocol(cls, make), WAYS) as twins:
        for chunk in (BEAT, CONTROLS[2], CONTROLS[2] * 2, answer + CONTROLS[2], answer + CONTROLS[2] + BEAT):
            number = twins.connect()
            twins.live(number, BEAT if hook != "onOpen" else chunk, chunk, 13, chunk, chunk, 1)
            twins.connect(request() + chunk)
            twins.compare()
            twins.advance(1)
            twins.compare()


def test_a_text_that_is_no_utf_8_is_counted_once():
    with Twins(with_protocol(Page, utf8validateIncoming=False), message_rate=50) as twins:
        number = twins.connect()
        twins.live(number, BEAT, *[frame(b"\xff")] * 12)

        short, plain = (protocol._heartbeat for protocol in on(twins, number))
        assert (short.left, short._pacing._pace._left) == (plain.left, plain._pacing._pace._left)


@pytest.mark.parametrize("word", [said({"type": "error", "code": "none"}), CONTROLS[3]])
def test_a_transport_that_fails_when_somebody_was_too_fast_ends_the_connection_the_same(word, failures):
    """What is sent is not answered, so it is the close that fails."""
    with Twins(message_rate=1) as twins:
        number = twins.connect()
        twins.live(number, BEAT)
        lines = [side.lines[number] for side in twins.sides]
        for line in lines:
            line.fails = 1
        twins.feed(number, word * 60)
        short, plain = lines
        assert (short.said, short.fails) == (plain.said, plain.fails)
        assert short.protocol._heartbeat.dead
        assert plain.protocol._heartbeat.dead
        assert short.protocol.state == plain.protocol.state
    assert len(failures.flush(Mistake)) == 2


#: What changes the way of all further frames.
TURNED_ON = {
    b"listen": listen,
    b"synchronously": PUT_OFF["synchronously"],
    b"in chops": PUT_OFF["in chops"],
}


class TurnsOn(Told, HeartbeatServerMixin, WebSocketServerProtocol):
    """A host that turns something on when it is told to."""

    def onMessage(self, payload, isBinary):
        self.transport.hooks.append(payload)
        TURNED_ON[payload](self)


@pytest.mark.parametrize("what", [b"synchronously", b"in chops"])
def test_what_is_turned_on_in_the_middle_of_a_chunk_holds_for_its_rest(what):
    with Twins(hosts_with(TurnsOn), WAYS) as twins:
        number = twins.connect()
        twins.live(number, BEAT, BEAT + said(what) + BEAT + BEAT, BEAT, 1, BEAT)


@both
@pytest.mark.parametrize("end", [b'{"type":"leave"}', b'{"type":"drop"}', None])
def test_a_connection_may_end_while_autobahn_writes_bit_by_bit(make, end):
    with Twins(make, WAYS) as twins:
        number = twins.connect()
        twins.live(number, BEAT, PUT_OFF["in chops"], BEAT)
        if end is None:
            twins.lose(number)
        else:
            twins.live(number, said(end))
        twins.live(number, BEAT, 2)


# A decision on the handshake that takes its time.


def deferring(base):
    """Decides on a handshake when it is told to."""

    class Defers(base):
        def onConnect(self, request):
            self.decided = Deferred()
            return self.decided

    return Defers


def decide(protocol):
    protocol.decided.callback(None)


@both
@pytest.mark.parametrize("waiting", [(), (b"{}",), (b'{"type":"ping"}', b"hello", b'{"type":"ping"}'), (b"x" * 126,)])
def test_what_waits_for_the_end_of_the_handshake_comes_to_the_same(make, waiting):
    with Twins(with_protocol(deferring(Page if make is ours else Host), make), WAYS) as twins:
        number = twins.connect()
        twins.live(number, b"".join(map(said, waiting)), decide, BEAT, said({"type": "chat"}), BEAT)


BEGUN = {
    "a frame": b"\x81",
    "a message in frames": frame(b'{"type":"pi', fin=False),
    "another, after a ping": BEAT + frame(b"x", BINARY, fin=False),
}


@both
@pytest.mark.parametrize("begun", BEGUN.values(), ids=BEGUN)
def test_what_has_begun_to_arrive_before_the_end_of_the_handshake_comes_to_the_same(make, begun):
    with Twins(with_protocol(deferring(Page if make is ours else Host), make)) as twins:
        number = twins.connect()
        twins.live(number, begun, decide, BEAT, 1.5)


@both
@pytest.mark.parametrize("begun", BEGUN.values(), ids=BEGUN)
def test_what_has_begun_to_arrive_with_the_handshake_comes_to_the_same(make, begun):
    with Twins(make) as twins:
        number = twins.connect(request() + begun)
        twins.live(number, BEAT, BEAT, 1.5)
