"""Servers to whom the same happens: one takes the short way, the other leaves every frame to Autobahn.

The same bytes in the same pieces, the same times, the same chance. What either does is compared to the last attribute:
what it wrote and whether it closed, what its link, its monitor, its session and its register know, what its
application was told. Left out is what the short way says that it leaves out, Autobahn's `trafficStats`.
"""

import secrets
from itertools import count, groupby, pairwise

import txaio
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from peers import request
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import ITransport
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from heartbeat import HeartbeatServerFactory, HeartbeatServerProtocol, Settings
from heartbeat.core.errors import PeerError
from heartbeat.core.presence import Standing
from heartbeat.mixin import HeartbeatServerMixin
from heartbeat.shared import ServerShared

#: Which ways there are: past Autobahn's parser; through it; and through it to somebody who looks at every message's
#: beginning, where a ping is moreover taken like any other message, and not in the one call that knows pings alone.
SHORT, PLAIN, WATCHED = "short", "plain", "watched"

_ADDRESS = IPv4Address("TCP", "127.0.0.1", 50_000)


class Mistake(Exception):
    """Somebody's who is called."""


@implementer(ITransport)
class Wire:
    """A transport that keeps what was written to it and what became of it.

    `hooks` are what was told above it; so many times as it `fails` it raises instead of writing.
    """

    def __init__(self, clock):
        self.clock = clock
        self.protocol = None
        self.hooks = []
        self.fails = 0
        self._said = []
        self.connected = True
        self.disconnecting = False
        self.paused = False
        self._waiting = b""

    @property
    def said(self):
        """What was written, in as few pieces as there can be, and whether it was closed."""
        return [b"".join(pieces) if kind is bytes else [*pieces] for kind, pieces in groupby(self._said, type)]

    def forget(self):
        """What was said and told so far is not looked at any more."""
        self._said, self.hooks = [], []

    def write(self, data):
        if self.fails:
            self.fails -= 1
            raise Mistake
        if self.connected and not self.disconnecting:
            self._said.append(data)

    def writeSequence(self, data):
        self.write(b"".join(data))

    def loseConnection(self):
        self._end("lost", ConnectionDone())

    def abortConnection(self):
        self._end("aborted", ConnectionAborted())

    def _end(self, how, error):
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            self._said.append(how)
            self.clock.callLater(0, self.lose, error)

    def lose(self, error):
        """The connection is gone."""
        if self.connected:
            self.connected = False
            self.protocol.connectionLost(Failure(error))

    def pauseProducing(self):
        self.paused = True

    def resumeProducing(self):
        self.paused = False
        self.clock.callLater(0, self.arrive, b"")

    def arrive(self, data):
        """These bytes arrive, unless nobody reads."""
        if self.paused:
            self._waiting += data
            return
        data, self._waiting = self._waiting + data, b""
        if data and self.connected and not self.disconnecting:
            self.protocol.dataReceived(data)

    def registerProducer(self, producer, streaming):
        """Never asks anybody to pause."""

    def unregisterProducer(self):
        """As above."""

    def getHost(self):
        return _ADDRESS

    def getPeer(self):
        return _ADDRESS

    def setTcpNoDelay(self, enabled):
        """There is no delay."""


# What the applications of both do.


def wait(protocol, message):
    """Takes its time."""
    done = Deferred()
    protocol.transport.clock.callLater(0.3, done.callback, None)
    return done


def refuse(protocol, message):
    raise PeerError("no", "not this one", message.get("id"))


def fail(protocol, message):
    raise Mistake


def tell(protocol, message):
    protocol.send({"type": "news", "about": message.get("id")})


def reply(protocol, message):
    protocol.handling.reply({"type": "reply", "to": message.get("id")})


def leave(protocol, message):
    protocol.sendClose(3000, "enough")


def drop(protocol, message):
    protocol.transport.abortConnection()


HANDLERS = {
    "wait": wait,
    "refuse": refuse,
    "fail": fail,
    "tell": tell,
    "reply": reply,
    "leave": leave,
    "drop": drop,
}


class Told:
    """The hooks of either kind of protocol, kept."""

    def linkChanged(self, status):
        self.transport.hooks.append(status)

    def pongReceived(self, rtt, clients):
        self.transport.hooks.append(("pong", rtt, clients))

    def onClose(self, wasClean, code, reason):
        self.transport.hooks.append(("close", wasClean, code, reason))


class Page(Told, HeartbeatServerProtocol):
    """One of our own."""

    def messageReceived(self, message):
        self.transport.hooks.append(message)
        handler = HANDLERS.get(message["type"])
        return None if handler is None else handler(self, message)


class Host(Told, HeartbeatServerMixin, WebSocketServerProtocol):
    """A host's, with the heartbeat mixed in; its messages are its own."""

    def onMessage(self, payload, isBinary):
        self.transport.hooks.append((payload, isBinary))
        if payload in (b"tell", b"leave", b"drop"):
            HANDLERS[payload.decode()](self, {})

    def messageReceived(self, message):
        self.transport.hooks.append(message)
        handler = HANDLERS.get(message["type"])
        return None if handler is None else handler(self, message)

    def onPong(self, payload):
        self.transport.hooks.append(("onPong", payload))


def watched(base):
    """The same protocol, of somebody who looks at every message before its heartbeat does."""

    class Watched(base):
        def _heartbeat_open(self, edge):
            super()._heartbeat_open(edge)
            edge.answers = False

        def onMessageBegin(self, isBinary):
            super().onMessageBegin(isBinary)

    return Watched


def ours(settings, clock):
    """A factory of ours."""
    factory = HeartbeatServerFactory(settings, reactor=clock)
    factory.protocol = Page
    return factory


def hosts(settings, clock, base=Host, **options):
    """A plain factory of Autobahn's, with these options of its."""
    factory = WebSocketServerFactory(reactor=clock)
    factory.protocol = base
    factory.heartbeat_settings = settings
    factory.setProtocolOptions(**{"failByDrop": False, "openHandshakeTimeout": 0, "closeHandshakeTimeout": 0} | options)
    return factory


class Side:
    """One of the servers: its own clock, and its own names, the same as every other's."""

    def __init__(self, way, make, settings):
        self.way = way
        self.clock = Clock()
        self._numbers = count(1)
        self.lines = []
        self.told = []
        settings = Settings(**settings, fast_path=way == SHORT)
        with self:
            self.factory = make(settings, self.clock)
            self.shared = ServerShared.of(self.factory)
        self.shared.spread = lambda: 0.5
        if way == WATCHED:
            self.factory.protocol = watched(self.factory.protocol)
        self.factory.clientJoined = lambda client_id: self.told.append(("joined", client_id))
        self.factory.clientLeft = lambda client_id: self.told.append(("left", client_id))
        self.factory.sessionLost = lambda client_id, error: self.told.append(("lost", client_id, error.messages))
        self.factory.doStart()

    # Whatever it does, it does with its own names, and Autobahn's own timers are on its own clock.

    def __enter__(self):
        self._before = secrets.token_hex, txaio.config.loop
        secrets.token_hex, txaio.config.loop = self._name, self.clock
        return self

    def __exit__(self, *error):
        secrets.token_hex, txaio.config.loop = self._before

    def _name(self, size):
        return f"{next(self._numbers):0{2 * size}x}"

    def connect(self):
        wire = Wire(self.clock)
        wire.protocol = self.factory.buildProtocol(_ADDRESS)
        wire.protocol.makeConnection(wire)
        self.lines.append(wire)

    def advance(self, seconds):
        """Time passes, tick by tick, or it would be a stall."""
        while seconds > 0:
            self.clock.advance(min(seconds, 0.1))
            seconds -= 0.1

    def end(self):
        for line in self.lines:
            line.lose(ConnectionLost())
        self.factory.doStop()
        self.shared.stop()
        # Handlers that take their time may have a few messages before them.
        for _ in range(60):
            self.clock.advance(1)
        assert self.clock.getDelayedCalls() == []


class Twins:
    """Servers to whom the same happens, a way each; a connection is the number that `connect` returned."""

    def __init__(self, make=ours, ways=(SHORT, PLAIN), **settings):
        self.sides = [Side(way, make, settings) for way in ways]

    def __enter__(self):
        return self

    def __exit__(self, kind, *error):
        for side in self.sides:
            with side:
                if kind is None:
                    side.end()

    def connect(self, head=None):
        """One more connection, open unless it is asked for by another head (empty: not yet)."""
        self.each(Side.connect)
        number = len(self.sides[0].lines) - 1
        head = request() if head is None else head
        if head:
            self.feed(number, head)
        return number

    def each(self, step):
        """Have each server do this."""
        for side in self.sides:
            with side:
                step(side)

    def feed(self, number, *chunks):
        """These bytes arrive on a connection, a chunk at a time."""
        for side in self.sides:
            with side:
                line = side.lines[number]
                for chunk in chunks:
                    line.arrive(chunk)

    def on(self, number, step):
        """Each server's application does this with the connection's protocol."""
        self.each(lambda side: step(side.lines[number].protocol))

    def live(self, number, *steps):
        """What happens on a connection, all compared after each: bytes arrive, seconds pass, its application acts."""
        for step in steps:
            if callable(step):
                self.on(number, step)
            elif isinstance(step, bytes):
                self.feed(number, step)
            else:
                self.advance(step)
            self.compare(number)

    def advance(self, seconds):
        """So much time passes."""
        self.each(lambda side: side.advance(seconds))

    def lose(self, number):
        """The connection breaks."""
        self.each(lambda side: side.lines[number].lose(ConnectionLost()))

    def forget(self, number):
        """What was said and told on a connection so far is not looked at any more."""
        for side in self.sides:
            side.lines[number].forget()

    def is_open(self, number):
        """Whether the connection is open, as the first of the servers sees it."""
        line = self.sides[0].lines[number]
        return line.connected and not line.disconnecting and line.protocol.state == line.protocol.STATE_OPEN

    def link(self, number):
        """The first server's link, for those who want to say something that fits."""
        edge = self.sides[0].lines[number].protocol._heartbeat
        return None if edge is None else edge.link

    def compare(self, *numbers):
        """Assert that all servers have done the same, and know the same, on these connections (all)."""
        numbers = numbers or range(len(self.sides[0].lines))
        for one, two in pairwise(self.sides):
            for number in numbers:
                same(f"connection {number}, {one.way}/{two.way}", seen(one.lines[number]), seen(two.lines[number]))
            same(f"all, {one.way}/{two.way}", whole(one), whole(two))


def same(where, one, two):
    """Assert that both are the same, or say what is not."""
    if one != two:
        raise AssertionError(f"{where}: {differences(one, two)}")


def differences(one, two):
    """What is not the same in both, by its name."""
    names = one.keys() | two.keys()
    return {name: (one.get(name), two.get(name)) for name in names if one.get(name) != two.get(name)}


def slots(thing, *left_out):
    """All that something with slots knows, but for what is left out."""
    names = _SLOTS.get(type(thing))
    if names is None:
        names = [name for base in type(thing).__mro__ for name in getattr(base, "__slots__", ())]
        _SLOTS[type(thing)] = names
    return {name: getattr(thing, name) for name in names if name not in left_out}


_SLOTS = {}

#: What Autobahn knows of a connection beside its parser.
_AUTOBAHNS = (
    "state",
    "wasClean",
    "closedByMe",
    "failedByMe",
    "droppedByMe",
    "wasNotCleanReason",
    "localCloseCode",
    "localCloseReason",
    "remoteCloseCode",
    "remoteCloseReason",
    "wasMaxMessagePayloadSizeExceeded",
    "wasMaxFramePayloadSizeExceeded",
)


def seen(line):
    """All that is to be seen of a connection, outside and inside."""
    protocol = line.protocol
    found = {name: getattr(protocol, name) for name in _AUTOBAHNS}
    found |= {
        "said": line.said,
        "hooks": line.hooks,
        "connected": (line.connected, line.disconnecting, line.paused),
        "is_closed": protocol.is_closed.called,
    }
    edge = protocol._heartbeat
    if edge is None:
        return found
    found |= {"dead": edge.dead, "over": edge.over, "stuck": edge._stuck, "limit": edge._limit}
    if not edge.dead and protocol.state != protocol.STATE_CLOSED:
        # Of those who are not looked at any more it does not matter where the parser stopped.
        found["parser"] = (protocol.data, getattr(protocol, "inside_message", None), _frame(protocol))
    if edge.link is not None:
        found["given"] = edge.given + protocol.trafficStats.outgoingOctetsWireLevel
        found |= _link(edge.link)
    return found


def _frame(protocol):
    frame = getattr(protocol, "current_frame", None)
    return None if frame is None else (frame.opcode, frame.fin, frame.rsv, frame.length, frame.mask)


def _link(link):
    found = slots(link, "settings", "monitor", "session", "_running", "_presence", "_connection", "_held")
    monitor, session = link.monitor, link.session
    found |= {
        "held": repr(link._held),
        "standing": link.standing,
        "next_at": link.next_at,
        "monitor": slots(monitor, "rtt"),
        "rtt": None if monitor.rtt is None else slots(monitor.rtt),
    }
    if session is not None:
        found["session"] = slots(session, "_queue", "_running")
        found["waiting"] = (session.waiting, session.is_idle)
    return found


def whole(side):
    """What a server knows besides: who is there, and what is kept."""
    presence, sessions = side.shared.presence, side.shared.sessions
    return {
        "told": side.told,
        "there": presence.client_ids(),
        "standings": [presence.count(standing) for standing in Standing],
        "active": presence.active,
        "connections": (presence.connections, side.factory.countConnections, len(side.shared.edges)),
        "leaving": sorted(presence._leaving),
        "kept": (sessions.kept_bytes, sessions.detached, list(sessions.channels)),
        "late": (side.shared.ticker.running.late, side.shared.ticker.running.stalls),
    }
