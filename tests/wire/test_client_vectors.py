"""What a whole client does with a server that follows a script (tests/vectors/exchanges.json); here Python's client.

The same exchanges are held by JavaScript's client, in tests/node/exchanges.test.js. The language of the file is told
at its top. The server here is Autobahn's, and knows nothing but its script.
"""

import json
from collections import deque
from pathlib import Path

import pytest
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet.defer import Deferred

from heartbeat.client import HeartbeatClient
from heartbeat.core.errors import HeartbeatError, SessionFull, Unconfirmed, Unreachable
from heartbeat.core.settings import Settings

FILE = json.loads((Path(__file__).parents[1] / "vectors" / "exchanges.json").read_text(encoding="utf-8"))

#: What happens by itself; everything else tells of what must have happened.
ACTIONS = {
    *("<-", "opened", "lost", "network", "advance", "send", "retry", "close"),
    *("whenRoom", "whenOpen", "finish", "fail"),
}


def filled(value, name, by):
    """A step with `by` in the place of this name, wherever that stands."""
    if value == name:
        return by
    if isinstance(value, list):
        return [filled(one, name, by) for one in value]
    if isinstance(value, dict):
        return {key: filled(one, name, by) for key, one in value.items()}
    return value


def each(exchanges):
    """All exchanges that are Python's, those that are told for each of several once for each."""
    for exchange in exchanges:
        if exchange.get("only", "python") == "python":
            for one in exchange.get("each", [None]):
                steps = filled(exchange["steps"], "$each", one)
                suffix = f" [{json.dumps(one)}]" if "each" in exchange else ""
                yield pytest.param(exchange | {"steps": steps}, id=exchange["name"] + suffix)


def steps_of(steps):
    """The steps, one after the other, without what is only a way to tell of them."""
    for step in steps:
        if isinstance(step, str):
            yield from steps_of(FILE["common"][step])
        elif isinstance(step, dict):
            if step["only"] == "python":
                yield step["step"]
        elif step[0] == "for":
            for n in range(step[1], step[2] + 1):
                yield from steps_of(filled(step[3], "$n", n))
        else:
            yield step


def compact(message):
    """The text of a frame."""
    if isinstance(message, str):
        return message
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False)


def settings_of(options):
    """The options of the file, which are JavaScript's, as Python's settings."""
    settings = {}
    for name, value in options.items():
        if name == "timeout_ms":
            settings["timeout_min"], settings["timeout_max"] = (part / 1000 for part in value)
        elif name == "delays_ms":
            settings["delays"] = tuple(delay / 1000 for delay in value)
        elif name.endswith("_ms"):
            settings[name.removesuffix("_ms")] = value / 1000
        else:
            settings[name] = value
    return Settings(**settings)


class AskedForError(HeartbeatError):
    """How a handler fails where a message asks for it."""


class Scripted(WebSocketServerProtocol):
    """A server that tells the exchange all that it hears, and says what it is told to say."""

    leaving = False

    def onOpen(self):
        self.factory.exchange.server = self

    def onMessage(self, payload, isBinary):
        self.factory.exchange.frames.append(("->", payload.decode()))

    def onPing(self, payload):
        self.factory.exchange.frames.append(("PING", payload.decode()))

    def onCloseFrame(self, code, reason):
        # The answer to a close frame of ours is no news.
        if not self.leaving:
            self.factory.exchange.frames.append(("closes", code))
        super().onCloseFrame(code, reason)


class Exchange:
    """One exchange: what is seen is kept in order, each kind for itself, until a step tells of it."""

    def __init__(self, world, exchange):
        self.world = world
        world.latency = 0.0
        self.frames, self.told, self.heard = deque(), deque(), deque()
        self.lost, self.outcomes = deque(), {}
        self.pong = None
        self.server = None
        self.waiting = {}
        factory = WebSocketServerFactory("ws://test/ws", reactor=world.server)
        factory.setProtocolOptions(openHandshakeTimeout=0, closeHandshakeTimeout=0)
        factory.protocol = Scripted
        factory.exchange = self
        world.listen(factory)
        self.client = client = HeartbeatClient(
            "ws://test/ws",
            settings=settings_of(exchange.get("options", {})),
            reactor=world.client,
            endpoint=world.endpoint(),
            chance=lambda: 0.5,
        )
        client.linkChanged = self.told.append
        client.sessionLost = self.lost.append
        client.pongReceived = lambda *pong: setattr(self, "pong", pong)
        if not exchange.get("deaf"):
            client.messageReceived = self.handle
        self.network(exchange.get("network", "accepts"))
        client.startService()
        world.advance(0)

    # The program at the client.

    def handle(self, message):
        self.heard.append(message)
        do, name = message.get("do"), message.get("id")
        if do == "fail":
            raise AskedForError("it fails, as it was asked to")
        if do == "reply":
            self.client.handling.reply({"type": "accepted", "id": name})
        if do == "send":
            self.client.send({"type": "sent", "id": name})
        if do == "close":
            self.client.stopService()
        if do == "slow":
            self.waiting[name] = Deferred()
            return self.waiting[name]
        return None

    def promise(self, name, deferred):
        deferred.addCallbacks(
            lambda _: self.outcomes.setdefault(name, "done"),
            lambda failure: self.outcomes.setdefault(name, failure.value),
        )

    # What happens.

    def say(self, *parts):
        message = parts[0]
        for part in parts[1:]:
            message = message | part
        self.server.sendMessage(compact(message).encode())

    def opened(self, *changes):
        answer = FILE["answer"]
        for change in changes:
            answer = answer | change
        self.say({name: value for name, value in answer.items() if value is not None})

    def lose(self, code):
        if code is None:
            self.server.transport.abortConnection()
        else:
            self.server.leaving = True
            self.server.sendCloseFrame(code, b"why not")

    def network(self, mode):
        self.world.heal()
        self.world.refuses = mode == "refuses"
        # No connection is open while the network hangs.
        if mode == "hangs":
            self.world.cut()

    def send(self, name, message, volatile=""):
        self.promise(name, self.client.send(message, volatile=bool(volatile)))

    def act(self, what, arguments):
        """Let this happen, and all that follows from it at once."""
        {
            "<-": self.say,
            "opened": self.opened,
            "lost": self.lose,
            "network": self.network,
            "advance": lambda ms: self.world.advance(ms / 1000),
            "send": self.send,
            "retry": self.client.retry,
            "close": lambda: self.client.stopService() and None,
            "whenRoom": lambda name: self.promise(name, self.client.whenRoom()),
            "whenOpen": lambda name: self.promise(name, self.client.whenOpen()),
            "finish": lambda name: self.waiting.pop(name).callback(None),
            "fail": lambda name: self.waiting.pop(name).errback(AskedForError("it fails, as it was asked to")),
        }[what](*arguments)
        self.world.advance(0)

    # What must have happened.

    def frame(self, message):
        kind, text = self.frames.popleft()
        assert kind == "->"
        if isinstance(message, dict) and message["type"] == "onopen":
            assert json.loads(text) == message
        else:
            assert text == compact(message)

    def ping_frame(self, payload):
        assert self.frames.popleft() == ("PING", payload)

    def closes(self, *codes):
        kind, code = self.frames.popleft()
        assert kind == "closes"
        assert code in codes

    def status(self, event, members=()):
        status = self.told.popleft()
        seen = {
            "state": status.state and str(status.state),
            "rtt_ms": status.rtt and status.rtt * 1000,
            "delay_ms": None if status.delay is None else pytest.approx(status.delay * 1000),
        }
        assert status.event == event
        assert {name: seen.get(name, getattr(status, name, None)) for name in members} == dict(members)

    def hears(self, message):
        assert self.heard.popleft() == message

    def outcome(self, kind, name, reason=None):
        error = self.outcomes.pop(name)
        assert (error if kind is None else type(error)) == (kind or "done"), error
        assert getattr(error, "reason", None) == reason

    def unconfirmed(self, *what):
        if len(what) == 1:
            assert self.client._session.channel.session.count == what[0]
        else:
            self.outcome(Unconfirmed, *what)

    def session_lost(self, reason, messages):
        error = self.lost.popleft()
        assert (error.reason, list(error.messages)) == (reason, messages)

    def ponged(self, rtt_ms, clients):
        rtt, count = self.pong
        assert (rtt and round(rtt * 1000, 3), count) == (rtt_ms, clients)

    def expect(self, what, arguments):
        """This has happened."""
        {
            "->": self.frame,
            "PING": self.ping_frame,
            "closes": self.closes,
            "told": self.status,
            "heard": self.hears,
            "done": lambda name: self.outcome(None, name),
            "full": lambda name: self.outcome(SessionFull, name),
            "unreachable": lambda name: self.outcome(Unreachable, name),
            "unconfirmed": self.unconfirmed,
            "session lost": self.session_lost,
            "pong": self.ponged,
        }[what](*arguments)

    def assert_nothing_else(self):
        """All that has happened was told of."""
        seen = {name: list(getattr(self, name)) for name in ("frames", "told", "heard", "lost")}
        assert {name: those for name, those in seen.items() if those} == {}
        assert self.outcomes == {}


@pytest.fixture
def begin(world, failures):
    """Have an exchange begin; in the end the client is stopped, whatever became of it."""
    begun = []

    def begin(exchange):
        begun.append(Exchange(world, exchange))
        return begun[0]

    yield begin
    begun[0].client.stopService()
    world.advance(2.0)
    # Handlers fail where a message says so, and where there is no room for their answer.
    failures.flush(HeartbeatError)


@pytest.mark.parametrize("exchange", list(each(FILE["exchanges"])))
def test_the_client_does_what_the_exchange_tells(exchange, begin):
    talk = begin(exchange)
    for number, (what, *arguments) in enumerate(steps_of(exchange["steps"])):
        try:
            if what in ACTIONS:
                talk.assert_nothing_else()
                talk.act(what, arguments)
            else:
                talk.expect(what, arguments)
        except (AssertionError, LookupError) as error:
            error.add_note(f"at step {number}: {what} {json.dumps(arguments)}")
            raise
    talk.assert_nothing_else()


def test_names_are_told_once():
    names = [exchange["name"] for exchange in FILE["exchanges"]]
    assert len(set(names)) == len(names)


def test_nothing_is_told_of_one_alone_without_a_reason():
    assert all(exchange.get("why") for exchange in FILE["exchanges"] if "only" in exchange)
    steps = [step for exchange in FILE["exchanges"] for step in exchange["steps"] if isinstance(step, dict)]
    assert all(step["why"] and step["only"] in ("python", "js") for step in steps)
