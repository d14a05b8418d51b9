"""Questions to a model: the answer comes once and in order, however slow, far away or forgetful anybody is.

The model's server is a double that speaks the bytes of HTTP; the client of HTTP is the real one.
"""

import json
import sys
import zlib

import pytest
from durable import DurableStore
from test_sse import DONE, event
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectError, ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from heartbeat import edge as edge_module
from heartbeat.ai import AI, AT_ONCE
from heartbeat.core.errors import SettingError, StoreError
from heartbeat.core.settings import Settings
from heartbeat.factory import HeartbeatServerFactory

URL = "http://model.test:8080/v1"
KEY = "sk-very-secret"


class Connection(StringTransport):
    """A connection to the model's server, as seen from there."""

    def __init__(self, protocol, reactor):
        super().__init__()
        self.protocol = protocol
        self.reactor = reactor
        self.ended = None
        protocol.makeConnection(self)

    def _end(self, error):
        if self.ended is None:
            self.ended = error
            # As sockets do: whoever ends one is told later.
            self.reactor.callLater(0, self.protocol.connectionLost, Failure(error))

    def abortConnection(self):
        self._end(ConnectionAborted())

    def loseConnection(self):
        self._end(ConnectionDone())

    # What the server hears.

    @property
    def head(self):
        return self.value().partition(b"\r\n\r\n")[0].decode()

    @property
    def asked(self):
        return json.loads(self.value().partition(b"\r\n\r\n")[2])

    @property
    def text(self):
        """The text of the question."""
        return self.asked["messages"][0]["content"]

    @property
    def aborted(self):
        return isinstance(self.ended, ConnectionAborted)

    @property
    def paused(self):
        return self.producerState == "paused"

    # What it says.

    def send(self, data):
        if self.ended is None:
            self.protocol.dataReceived(data)

    def begin(self, status="200 OK", kind="text/event-stream"):
        self.send(f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        return self

    def chunk(self, data):
        self.send(b"%x\r\n%b\r\n" % (len(data), data))
        return self

    def say(self, *deltas):
        for delta in deltas:
            self.chunk(event(delta))
        return self

    def end(self):
        self.send(b"0\r\n\r\n")

    def done(self):
        self.chunk(DONE).end()

    def break_off(self):
        self._end(ConnectionLost())


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class Upstream:
    """The model's server. `error`: nobody can connect."""

    def __init__(self, world):
        self.world = world
        self.connections = []
        self.error = None
        self.hangs = False
        self.cancelled = 0

    def endpointForURI(self, uri):
        assert (uri.scheme, uri.host, uri.port) == (b"http", b"model.test", 8080)
        return self

    def connect(self, factory):
        if self.error is not None:
            return fail(self.error)
        if self.hangs:
            return Deferred(lambda _: setattr(self, "cancelled", self.cancelled + 1))
        protocol = factory.buildProtocol(None)
        self.connections.append(Connection(protocol, self.world.server))
        return succeed(protocol)

    @property
    def last(self):
        return self.connections[-1]


@pytest.fixture
def upstream(world):
    return Upstream(world)


@pytest.fixture
def serve_ai(world, upstream):
    """A server with a model behind it."""

    def serve_ai(*, store=None, silence=120.0, url=URL, **settings):
        factory = HeartbeatServerFactory(Settings(**settings), store=store, reactor=world.server)
        factory.ai = AI(factory, url=url, model="m", key=KEY, silence=silence, endpoints=upstream)
        world.listen(factory)
        return factory

    return serve_ai


@pytest.fixture
def ask(world):
    """Have a client ask; the server has taken the question when this returns."""

    def ask(client, name="q1", text="why?", wait=0.2):
        sent = client.send({"type": "onaichat", "id": name, "text": text})
        world.advance(wait)
        return sent

    return ask


def text_of(messages, name="q1"):
    """The deltas, joined."""
    return "".join(one["delta"] for one in messages if one.get("id") == name and "delta" in one)


def failures_of(messages):
    return [one for one in messages if one["type"] == "error"]


def done(name="q1"):
    return {"type": "onaichat", "id": name, "status": "done"}


# The answer.


def test_a_question_is_handled_at_once_and_answered_in_deltas(serve_ai, start_client, ask, world, upstream):
    factory = serve_ai()
    client = start_client()

    sent = ask(client, text="Grüße?")

    assert sent.called
    assert upstream.last.text == "Grüße?"
    assert upstream.last.asked["model"] == "m"
    assert upstream.last.asked["stream"] is True
    assert upstream.last.head.startswith("POST /v1/chat/completions HTTP/1.1\r\n")
    assert f"Authorization: Bearer {KEY}" in upstream.last.head
    assert client.messages == []

    upstream.last.begin().say("Hello", ", ")
    world.advance(0.1)
    assert client.messages == [{"type": "onaichat", "id": "q1", "delta": word} for word in ("Hello", ", ")]

    upstream.last.say("world").done()
    world.advance(0.1)
    assert client.messages[2:] == [{"type": "onaichat", "id": "q1", "delta": "world"}, done()]
    assert factory.ai.count == 0
    assert upstream.last.ended is not None
    (channel,) = factory.heartbeat.sessions.channels.values()
    assert channel.marks == {}


def test_an_answer_that_is_not_streamed_comes_too(serve_ai, start_client, ask, world, upstream):
    serve_ai()
    client = start_client()

    ask(client)
    upstream.last.begin(kind="application/json")
    upstream.last.chunk(json.dumps({"choices": [{"message": {"content": "42"}}]}).encode()).end()
    world.advance(0.1)

    assert client.messages == [{"type": "onaichat", "id": "q1", "delta": "42"}, done()]


def test_bytes_split_anywhere_are_the_same_answer(serve_ai, start_client, ask, world, upstream):
    serve_ai()
    client = start_client()
    ask(client)

    upstream.last.begin()
    for byte in b": ping\r\n\r\n" + event("Grüße 🌍") + DONE:
        upstream.last.chunk(bytes([byte]))
    world.advance(0.1)

    assert client.messages == [{"type": "onaichat", "id": "q1", "delta": "Grüße 🌍"}, done()]


def test_a_page_without_a_session_is_answered_on_its_connection(serve_ai, connect, world, upstream):
    factory = serve_ai()
    page = connect().open()

    page.say({"type": "onaichat", "id": 7, "text": "why?"})
    upstream.last.begin().say("a", "b").done()
    world.advance(0.1)

    deltas = [{"type": "onaichat", "id": 7, "delta": word} for word in "ab"]
    assert page.messages == [*deltas, {"type": "onaichat", "id": 7, "status": "done"}]
    assert factory.ai.count == 0


def test_four_questions_are_answered_at_a_time_and_a_fifth_is_told_so(serve_ai, start_client, ask, world, upstream):
    serve_ai()
    client, other = start_client(), start_client()

    for name in (1, "1", 2, 3, 4):
        ask(client, name)
    ask(other)
    assert [(one["code"], one["re"]) for one in client.messages] == [("ai-busy", 4)]
    assert len(upstream.connections) == AT_ONCE + 1

    upstream.connections[1].begin().say("x").done()
    world.advance(0.1)
    assert client.messages[1:] == [{"type": "onaichat", "id": "1", "delta": "x"}, done("1")]
    ask(client, "1")
    assert len(upstream.connections) == AT_ONCE + 2


def test_an_id_that_is_being_answered_is_refused(serve_ai, start_client, ask, world, upstream):
    serve_ai()
    client = start_client()

    ask(client)
    ask(client)

    (error,) = client.messages
    assert (error["code"], error["re"]) == ("bad-message", "q1")
    assert len(upstream.connections) == 1


@pytest.mark.parametrize(
    ("wrong", "re"),
    [
        ({"id": "q1"}, "q1"),
        ({"id": "q1", "text": ""}, "q1"),
        ({"id": "q1", "text": 7}, "q1"),
        ({"text": "why?"}, "onaichat"),
        ({"id": "", "text": "why?"}, ""),
        ({"id": "x" * 65, "text": "why?"}, "onaichat"),
        ({"id": 2**63, "text": "why?"}, "onaichat"),
        ({"id": True, "text": "why?"}, "onaichat"),
        ({"id": 1.5, "text": "why?"}, "onaichat"),
    ],
)
def test_what_is_no_question_is_refused(wrong, re, serve_ai, start_client, world, upstream):
    serve_ai()
    client = start_client()

    client.send({"type": "onaichat", **wrong})
    world.advance(0.2)

    assert [(one["code"], one["re"]) for one in client.messages] == [("bad-message", re)]
    assert upstream.connections == []


def test_any_id_that_an_error_can_name_comes_back_as_it_was(serve_ai, connect, world, upstream):
    serve_ai()
    page = connect().open()

    for name in ("\0" * 64, "🌍" * 64, "\ud800", -(2**63) + 1):
        page.say({"type": "onaichat", "id": name, "text": "why\udc00?"})
        upstream.last.begin().say("x").done()
        world.advance(0.1)
        assert page.messages[-2:] == [{"type": "onaichat", "id": name, "delta": "x"}, done(name)]
    assert upstream.last.text == "why\ufffd?"


def test_without_a_url_every_question_is_told_that_there_is_no_model(serve_ai, start_client, ask, world):
    serve_ai(url=None)
    client = start_client()

    ask(client)

    assert [(one["code"], one["re"]) for one in client.messages] == [("ai-not-configured", "q1")]


# Slow askers, and those who are away.


def test_text_for_somebody_who_is_away_is_joined_and_comes_once_and_in_order(
    serve_ai, start_client, ask, world, upstream
):
    serve_ai()
    client = start_client()
    ask(client)
    upstream.last.begin().say("a")
    world.advance(0.1)

    world.drop()
    world.advance(0.05)
    upstream.last.say(*"bcdefg")
    world.advance(3)
    upstream.last.say("h").done()
    world.advance(0.1)

    assert [one.get("delta") for one in client.messages] == ["a", "bcdefg", "h", None]
    assert client.messages[-1] == done()


def test_an_answer_that_ends_while_its_asker_is_away_is_kept_for_him(serve_ai, start_client, ask, world, upstream):
    factory = serve_ai()
    client = start_client()
    ask(client)
    upstream.last.begin()

    world.drop()
    world.advance(0.05)
    upstream.last.say(*"abc").done()
    assert factory.ai.count == 0
    world.advance(3)

    assert client.messages == [{"type": "onaichat", "id": "q1", "delta": "abc"}, done()]


PIECES = {"ascii": "x" * 100, "long": "y" * 5000, "wide": "🌍" * 30, "escaped": '\0"\n' * 40, "mixed": 'a\0"ü🌍' * 20}


@pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("delay", [None, 0.05])
def test_no_message_is_over_the_limit_and_no_character_is_split(
    piece, delay, serve_ai, start_client, ask, world, upstream
):
    store = None if delay is None else DurableStore(reactor=world.server, delay=lambda: delay)
    serve_ai(message_limit=2048, store=store)
    client = start_client()
    ask(client, wait=1)
    upstream.last.begin()

    world.drop()
    world.advance(0.05)
    for _ in range(60):
        upstream.last.say(piece)
    upstream.last.done()
    world.advance(10)

    assert text_of(client.messages) == piece * 60
    assert client.messages[-1] == done()
    frames = [len(json.dumps(one, ensure_ascii=False).encode()) for one in client.messages]
    assert max(frames) <= 2048
    # Joined, too.
    assert len(client.messages) <= 1 + -(-60 * len(json.dumps(piece, ensure_ascii=False).encode()) // 1800)


@pytest.mark.parametrize("bounds", [{"kept_bytes": 65_536}, {"kept_limit": 4}, {"sessions_bytes": 1_048_576}])
def test_what_has_no_room_stays_with_the_model_and_comes_when_there_is_some(
    bounds, serve_ai, start_client, ask, world, upstream
):
    factory = serve_ai(message_limit=4096, **bounds)
    client = start_client()
    ask(client)
    upstream.last.begin()

    world.cut()
    world.drop()
    world.advance(20)
    said = 0
    while not upstream.last.paused:
        upstream.last.say("x" * 1000)
        said += 1
        assert said < 200
    (channel,) = factory.heartbeat.sessions.channels.values()
    assert channel.connection is None
    kept = channel.session.kept_bytes
    world.advance(60)
    assert upstream.last.paused
    assert upstream.last.ended is None

    world.heal()
    client.retry()
    world.advance(30)
    assert not upstream.last.paused
    assert channel.session.kept_bytes < kept
    upstream.last.say("y").done()
    world.advance(5)
    assert text_of(client.messages) == "x" * 1000 * said + "y"
    assert client.messages[-1] == done()


def test_while_somebody_who_is_there_does_not_read_the_model_waits(
    serve_ai, start_client, ask, world, upstream, monkeypatch
):
    """Over a connection that takes nothing the answer is joined into one message, and the rest not read."""
    factory = serve_ai(message_limit=4096)
    client = start_client()
    ask(client)
    upstream.last.begin().say("a")
    world.advance(0.1)
    queue = [10**9]
    monkeypatch.setattr(edge_module.outbox, "queued", lambda transport: queue[0])

    said = 0
    while not upstream.last.paused:
        upstream.last.say("x" * 100)
        said += 1
        assert said < 100
    (channel,) = factory.heartbeat.sessions.channels.values()
    assert channel.session.weight < 1000

    queue[0] = 0
    world.advance(0.5)
    assert not upstream.last.paused
    upstream.last.done()
    world.advance(0.5)
    assert text_of(client.messages) == "a" + "x" * 100 * said


def test_a_page_that_does_not_read_is_written_to_when_it_does(serve_ai, connect, world, upstream, monkeypatch):
    serve_ai(message_limit=4096)
    page = connect().open()
    page.say({"type": "onaichat", "id": "q1", "text": "why?"})
    upstream.last.begin()
    queue = [10**9]
    monkeypatch.setattr(edge_module.outbox, "queued", lambda transport: queue[0])

    for _ in range(50):
        upstream.last.say("x" * 100)
    assert upstream.last.paused
    assert page.messages == []
    world.advance(1)

    queue[0] = 0
    world.advance(1)
    assert not upstream.last.paused
    upstream.last.done()
    world.advance(1)
    assert text_of(page.messages) == "x" * 5000
    assert page.messages[-1] == done()


def test_a_paused_model_is_not_thought_silent(serve_ai, start_client, ask, world, upstream):
    serve_ai(message_limit=4096, kept_limit=4, silence=5)
    client = start_client()
    ask(client)
    upstream.last.begin()
    world.drop()
    world.cut()
    world.advance(0.5)
    while not upstream.last.paused:
        upstream.last.say("x" * 1000)

    world.advance(60)

    assert upstream.last.ended is None


# Silence.


def test_a_model_that_thinks_for_a_minute_is_no_dead_link(serve_ai, start_client, ask, world, upstream):
    serve_ai()
    client = start_client()
    ask(client)
    upstream.last.begin()
    pongs = len(client.pongs)

    world.advance(60)

    assert len(client.pongs) >= pongs + 8
    assert client.events == ["open"]
    assert client.messages == []
    upstream.last.say("42").done()
    world.advance(0.1)
    assert client.messages == [{"type": "onaichat", "id": "q1", "delta": "42"}, done()]


@pytest.mark.parametrize("stage", ["connecting", "asked", "begun", "said"])
def test_after_the_silence_that_is_allowed_an_answer_has_failed(stage, serve_ai, start_client, ask, world, upstream):
    factory = serve_ai(silence=30)
    client = start_client()
    upstream.hangs = stage == "connecting"
    ask(client, wait=0.5)
    if stage in ("begun", "said"):
        upstream.last.begin()
        world.advance(20)
        assert failures_of(client.messages) == []
    if stage == "said":
        upstream.last.say("a")
        world.advance(20)
        assert failures_of(client.messages) == []

    world.advance(31)

    (error,) = failures_of(client.messages)
    assert error == {"type": "error", "code": "ai-failed", "detail": "the model said nothing for 30 s", "re": "q1"}
    assert upstream.cancelled == 1 if stage == "connecting" else upstream.last.aborted
    assert factory.ai.count == 0


def test_a_model_that_gave_its_reason_and_says_no_more_is_done(serve_ai, start_client, ask, world, upstream):
    serve_ai(silence=30)
    client = start_client()
    ask(client)
    upstream.last.begin().chunk(event("a", reason="stop"))

    world.advance(31)

    assert client.messages[-1] == done()


# Failures.


def refuse(status, body=b"", kind="application/json"):
    return lambda connection: connection.begin(status, kind).chunk(body or b" ").end()


FAILURES = {
    "429": (refuse("429 Slow", b'{"error":{"message":"slow down"}}'), "answered 429 Too Many Requests: slow down"),
    "500": (refuse("500 No", b"out of order", "text/plain"), "answered 500 Internal Server Error: out of order"),
    "404": (refuse("404 No", b"<html>", "text/html"), "answered 404 Not Found"),
    "the key in a 401": (
        refuse("401 No", b'{"error":{"message":"Incorrect API key: %b."}}' % KEY.encode()),
        "answered 401 Unauthorized: Incorrect API key: ….",
    ),
    "a redirect to itself": (
        lambda one: one.send(b"HTTP/1.1 307 Go\r\nLocation: http://model.test:8080/v1\r\nContent-Length: 0\r\n\r\n"),
        "answered 307 Temporary Redirect (redirects are not followed)",
    ),
    "words without end": (refuse("500 No", b"no " * 4000), " no no no…"),
    "words that are not printable": (refuse("500 No", b"a\0b\x1b[31m\r\n\xff" * 3), "a b [31m �a b [31m �a b [31m �"),
    "a page": (refuse("200 OK", b"<html>", "text/html"), "neither events nor JSON: Content-Type text/html"),
    "garbage in an event": (
        lambda one: one.begin().chunk(b"data: {nonsense}\n\n"),
        "sent what is not an object in JSON",
    ),
    "garbage in JSON": (refuse("200 OK", b"nonsense"), "sent what is not an object in JSON"),
    "no HTTP": (
        lambda one: one.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
        "gave no answer: ('wrong number of parts', b'SSH-2.0-OpenSSH_9.6')",
    ),
    "wrong chunks": (lambda one: one.begin().send(b"zzz\r\n"), "broke off in the middle"),
    "an error in the stream": (
        lambda one: one.begin().say().chunk(b'data: {"error":{"message":"CUDA"}}\n\n'),
        "reports an error: CUDA",
    ),
    "gone without an answer": (
        lambda one: one.break_off(),
        "lost in a non-clean fashion.",
    ),
    "gone in the middle": (lambda one: one.begin().break_off(), "broke off in the middle"),
    "ended in the middle": (lambda one: one.begin().end(), "ended before it was complete"),
    "a type that is no text": (
        lambda one: one.send(b"HTTP/1.1 200 OK\r\nContent-Type: \xe9\r\nContent-Length: 1\r\n\r\nx"),
        "neither events nor JSON: Content-Type \ufffd",
    ),
    "wrong gzip": (
        lambda one: one.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n\r\ngarbage"
        ),
        "ended before it was complete",
    ),
    "an endless event": (
        lambda one: [one.begin(), *(one.chunk(b"x" * 65_536) for _ in range(17))],
        "sent an event of over 1048576 bytes",
    ),
}


@pytest.mark.parametrize(("fail", "why"), FAILURES.values(), ids=FAILURES)
def test_a_failure_ends_in_one_error_that_says_what_happened(fail, why, serve_ai, start_client, ask, world, upstream):
    factory = serve_ai()
    client = start_client()

    ask(client)
    fail(upstream.last)
    world.advance(0.2)

    (error,) = client.messages
    assert (error["type"], error["code"], error["re"]) == ("error", "ai-failed", "q1")
    assert error["detail"].endswith(why)
    assert error["detail"].isprintable()
    assert len(error["detail"]) < 280
    assert KEY not in error["detail"]
    assert upstream.last.ended is not None
    assert factory.ai.count == 0
    world.advance(200)
    assert len(client.messages) == 1


def test_a_server_that_cannot_be_reached_is_said_to_be(serve_ai, start_client, ask, world, upstream, log):
    serve_ai()
    client = start_client()
    upstream.error = ConnectError(string="refused")

    ask(client)

    (error,) = client.messages
    assert error["detail"].startswith("the model's server cannot be reached: ")
    assert [one["why"] for one in log if "an answer to" in (one.get("log_format") or "")] == [error["detail"]]


def test_what_was_said_before_a_failure_comes_before_it(serve_ai, start_client, ask, world, upstream):
    serve_ai()
    client = start_client()
    ask(client)
    upstream.last.begin()
    world.drop()
    world.advance(0.05)

    upstream.last.say("a", "b").break_off()
    world.advance(3)

    assert client.messages[0] == {"type": "onaichat", "id": "q1", "delta": "ab"}
    assert [one["type"] for one in client.messages] == ["onaichat", "error"]


def test_the_sentence_of_a_failure_keeps_within_the_smallest_message(serve_ai, connect, world, upstream):
    serve_ai(message_limit=1024)
    page = connect().open()
    page.say({"type": "onaichat", "id": "\0" * 64, "text": "why?"})

    refuse("500 No", "🌍".encode() * 200, "text/plain")(upstream.last)
    world.advance(0.2)

    assert page.messages[-1]["code"] == "ai-failed"
    assert max(map(len, page.texts)) <= 1024 - 64


# Ends.


def test_when_a_client_leaves_for_good_its_answers_are_aborted(serve_ai, start_client, ask, world, upstream):
    factory = serve_ai()
    client = start_client()
    ask(client, 1)
    ask(client, 2)
    upstream.last.begin().say("a")

    client.stopService()
    world.advance(0.5)

    assert [one.aborted for one in upstream.connections] == [True, True]
    assert factory.ai.count == 0


def test_when_a_session_expires_its_answers_are_aborted(serve_ai, start_client, ask, world, upstream):
    factory = serve_ai(silence=1000)
    client = start_client()
    ask(client)
    world.cut()

    world.advance(200)

    assert upstream.last.aborted
    assert factory.ai.count == 0


def test_when_a_page_is_gone_its_answers_are_aborted(serve_ai, connect, world, upstream):
    factory = serve_ai()
    page, other = connect().open(), connect().open()
    page.say({"type": "onaichat", "id": "q1", "text": "why?"})
    other.say({"type": "onaichat", "id": "q1", "text": "why?"})

    page.leave()
    world.advance(0.5)

    assert [one.aborted for one in upstream.connections] == [True, False]
    assert factory.ai.count == 1


def test_a_page_that_is_gone_at_once_has_nothing_asked(serve_ai, connect, world, upstream):
    factory = serve_ai()
    page = connect().open()

    page.transport.write(b"")
    page.say({"type": "onaichat", "id": "q1", "text": "why?"})
    upstream.hangs = True
    page.say({"type": "onaichat", "id": "q2", "text": "why?"})
    page.transport.abortConnection()
    world.advance(0.5)

    assert factory.ai.count == 0
    assert upstream.cancelled == 1


def test_a_server_that_stops_aborts_what_is_asked_and_says_so(serve_ai, start_client, ask, world, upstream):
    factory = serve_ai()
    client = start_client()
    ask(client)
    upstream.last.begin().say("a")
    world.advance(0.1)

    factory.stopFactory()
    assert upstream.last.aborted
    assert factory.ai.count == 0
    world.advance(0.1)

    (error,) = failures_of(client.messages)
    assert error["detail"] == "the server stopped in the middle of the answer"
    (channel,) = factory.heartbeat.sessions.channels.values()
    assert channel.marks == {}


@pytest.mark.parametrize("delay", [None, 0.05])
def test_after_a_crash_of_the_server_what_was_being_answered_has_failed(
    delay, serve_ai, start_client, ask, world, upstream
):
    """Exactly once, for each question; and the next start has nothing to say any more."""

    def store(disk=None):
        return DurableStore(disk, world.server, None if delay is None else lambda: delay)

    first = store()
    factory = serve_ai(store=first)
    client = start_client()
    ask(client, "q1", wait=1)
    ask(client, 2, wait=1)
    upstream.last.begin().say("a").done()
    ask(client, 3, wait=1)
    upstream.last.begin().say("b")
    world.advance(1)

    world.crash()
    first.crash()
    second = store(first.disk)
    factory = serve_ai(store=second)
    factory.heartbeat.sessions.start()
    world.advance(10)

    errors = failures_of(client.messages)
    assert [(one["code"], one["re"]) for one in errors] == [("ai-failed", "q1"), ("ai-failed", 3)]
    assert {one["detail"] for one in errors} == {"the server was restarted in the middle of the answer"}
    (channel,) = factory.heartbeat.sessions.channels.values()
    assert channel.marks == {}
    assert factory.ai.count == 0

    world.crash()
    second.crash()
    serve_ai(store=store(first.disk))
    world.advance(20)
    assert len(failures_of(client.messages)) == 2


def test_over_a_slow_store_an_answer_comes_once_and_in_order(serve_ai, start_client, ask, world, upstream):
    """While a piece is on its way into the store, what follows is joined."""
    serve_ai(store=DurableStore(reactor=world.server, delay=lambda: 0.1))
    client = start_client()
    ask(client, wait=1)
    upstream.last.begin()

    for at in range(10):
        upstream.last.say(str(at))
    upstream.last.done()
    world.advance(2)

    assert [one.get("delta") for one in client.messages] == ["0", "123456789", None]


def test_an_answer_that_the_store_does_not_take_is_aborted(serve_ai, start_client, ask, world, upstream, log):
    """The store has said why; the mark stays, and the next start ends the question."""
    store = DurableStore(reactor=world.server, delay=lambda: 0.01)
    factory = serve_ai(store=store)
    client = start_client()
    ask(client, wait=1)
    (channel,) = factory.heartbeat.sessions.channels.values()
    store.append = lambda effects: fail(StoreError("the store is full"))

    upstream.last.begin().say("a")

    assert upstream.last.aborted
    assert factory.ai.count == 0
    assert channel.session.weight == 0
    assert list(channel.marks) == ['ai:"q1"']
    assert [one["why"] for one in log if "is lost" in (one.get("log_format") or "")] == ["the store is full"]


def test_a_question_in_a_session_that_has_just_ended_is_not_asked(serve_ai, start_client, world, upstream):
    factory = serve_ai()
    client = start_client()
    client.send({"type": "onaichat", "id": "q1", "text": "why?"})
    (channel,) = factory.heartbeat.sessions.channels.values()
    handle = factory.heartbeat.handlers["onaichat"]

    def handle_and_end(protocol, message):
        handle(protocol, message)
        channel.end("closed")

    factory.register("onaichat", handle_and_end)
    world.advance(0.5)

    assert factory.ai.count == 0
    assert upstream.connections == []


def test_a_compressed_stream_is_read_too(serve_ai, start_client, ask, world, upstream):
    serve_ai()
    client = start_client()
    ask(client)
    squeeze = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n\r\n"

    upstream.last.send(head + squeeze.compress(event("a")) + squeeze.flush(zlib.Z_SYNC_FLUSH))
    world.advance(0.1)
    assert text_of(client.messages) == "a"
    upstream.last.send(squeeze.compress(event("b") + DONE) + squeeze.flush())
    world.advance(0.1)
    assert text_of(client.messages) == "ab"
    assert client.messages[-1] == done()


# Settings.


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"url": "ftp://x/v1"}, "ai_url must be the base URL of an OpenAI-compatible server"),
        ({"url": ""}, "ai_url must be"),
        ({"url": "model.test"}, "ai_url must be"),
        ({"url": "http://"}, "ai_url must be"),
        ({"url": "http://x:port/"}, "ai_url must be"),
        ({"url": "http://a b/"}, "ai_url must be"),
        ({"url": "http://user:word@x/"}, "ai_url must be"),
        ({"url": URL, "key": "sk-\n1"}, "ai_key must be printable ASCII, not 'what was given'"),
        ({"url": URL, "silence": 0}, "ai_silence must be seconds above 0, not 0"),
    ],
)
def test_a_wrong_setting_fails_with_its_name(wrong, sentence, world):
    with pytest.raises(SettingError) as raised:
        AI(HeartbeatServerFactory(reactor=world.server), **wrong)

    assert str(raised.value).startswith(sentence)


def test_without_treq_a_url_is_refused_in_one_sentence_and_none_is_fine(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "treq.client", None)
    factory = HeartbeatServerFactory(reactor=world.server)

    AI(factory)
    with pytest.raises(SettingError) as raised:
        AI(factory, url=URL)
    assert "pip install 'txheartbeat[ai]'" in str(raised.value)


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://model.test:8080", "POST /chat/completions HTTP/1.1"),
        ("http://model.test:8080/v1/", "POST /v1/chat/completions HTTP/1.1"),
        ("http://model.test:8080/v1?version=2#x", "POST /v1/chat/completions?version=2 HTTP/1.1"),
    ],
)
def test_the_endpoint_is_below_the_url(url, line, serve_ai, connect, world, upstream):
    serve_ai(url=url)

    connect().open().say({"type": "onaichat", "id": "q1", "text": "why?"})

    assert upstream.last.head.splitlines()[0] == line
