"""Between a protocol and its link: carries out what the link says, and looks when it wants to be looked at.

One small object a connection, in the wheel on a server, with an exact alarm on a client. Decides
nothing about the peer. What goes wrong on the way is caught here, once, logged, and closes 1011.
What only one of the ends does is in `ends`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import inf
from typing import Any

from autobahn.util import encode_truncate
from autobahn.websocket.protocol import WebSocketProtocol
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from heartbeat import outbox
from heartbeat.channel import Channel
from heartbeat.core.errors import CloseCode, Unconfirmed
from heartbeat.core.link import (
    Abort,
    Answered,
    Asked,
    Close,
    Confirmed,
    Deliver,
    Drain,
    Effects,
    Joined,
    Judge,
    Left,
    Link,
    LinkStatus,
    NotOurs,
    Opened,
    PingFrame,
    Refused,
    Report,
    Run,
    Turn,
)
from heartbeat.core.monitor import Traffic
from heartbeat.core.opening import Declared, Opening
from heartbeat.frames import text_frame
from heartbeat.handling import Handling, encode_message
from heartbeat.quiet import QuietDeferred
from heartbeat.refusals import readable
from heartbeat.shared import Shared
from heartbeat.ticker import Alarm

__all__ = ["JUDGED", "PACED", "SHORT", "STUCK", "Edge"]

#: Why nothing is read from a peer.
STUCK, JUDGED, PACED = 1, 2, 4

_SETTING = re.compile(r"\(setting (\w+)\)")

# No connection lives to send so many messages.
_UNCOUNTED = 1 << 62

#: Longer texts gain nothing by a way past Autobahn, which knows its own limits.
SHORT = 1024


class Edge:
    """The heartbeat of one connection at its transport.

    `exact`: with a timer of its own instead of a place in the wheel. `dead`: convicted, or failed by
    a bug; whatever still arrives is not even looked at. `over`: the connection is gone. `channel`: the end
    of the session that it carries, or carried last. `answers`: it answers ordinary pings; `way`: how text is written
    past Autobahn, None where it is not; `given`: the bytes that went this way; `is_fast`: whether text is read past
    Autobahn just now, which `may_be_fast` allows; `takes_controls`: its own pings and pongs, too.
    `left`: how many messages may come until `recount` is to be called.
    """

    __slots__ = (
        "_alarm",
        "_at_limit",
        "_held",
        "_limit",
        "_paced_until",
        "_stuck",
        "answers",
        "channel",
        "dead",
        "given",
        "is_fast",
        "left",
        "link",
        "may_be_fast",
        "over",
        "protocol",
        "shared",
        "slot",
        "takes_controls",
        "way",
    )

    _log = Logger()

    def __init__(self, protocol: Any, shared: Shared, *, exact: bool) -> None:
        self.protocol = protocol
        self.shared = shared
        self.link: Link | None = None
        self.channel: Channel | None = None
        self.slot: int | None = None
        self.dead = False
        self.over = False
        self.answers = False
        self.way: outbox.Way | None = None
        self.is_fast = self.may_be_fast = self.takes_controls = False
        self.given = 0
        self.left = _UNCOUNTED
        self._held = 0
        self._paced_until = inf
        self._limit = inf
        self._at_limit: Callable[[], object] | None = None
        # While too much waits for the peer: since when, and how much had left then.
        self._stuck: tuple[float, int] | None = None
        self._alarm = Alarm(shared.ticker, self.due) if exact else None
        shared.edges.add(self)
        shared.ticker.enter()

    def now(self) -> float:
        """Our running time."""
        return self.shared.ticker.now()

    def limit(self, seconds: float, then: Callable[[], object]) -> None:
        """Call `then` after so long, unless the connection is gone or `unlimit` is called before."""
        if not self.over:
            self._limit, self._at_limit = self.now() + seconds, then
            self._arm()

    def unlimit(self) -> None:
        """What had to happen in time has happened."""
        self._limit, self._at_limit = inf, None

    def start(self, link: Link, effects: Effects = ()) -> None:
        """The WebSocket is open."""
        self.unlimit()
        self.link = link
        link.heard(self.now())
        outbox.bound_silence(self.protocol.transport, self.shared.silence_bound)
        self.carry(effects)

    def heard(self) -> None:
        """Bytes arrived."""
        if self.link is not None:
            effects = self.link.heard(self.now())
            if effects:
                self.guarded(self.carry, effects)

    def hold_back(self) -> None:
        """Read nothing more from a peer for which too much waits: what it sends would only be answered."""
        if self._stuck is not None or self.link is None or self.over:
            return
        if (outbox.queued(self.protocol.transport) or 0) > self.shared.settings.outgoing_limit:
            self._stuck = (self.now(), self.traffic().written)
            self.hold(STUCK)
            self._arm()

    def hold(self, why: int) -> None:
        """Read nothing from the peer, for this reason besides others."""
        if not self._held:
            self.protocol.transport.pauseProducing()
        self._held |= why

    def release(self, why: int) -> None:
        """This is no reason any more."""
        if not self._held & why:
            return
        self._held &= ~why
        if not self._held:
            self.protocol.transport.resumeProducing()

    def recount(self) -> bool:
        """More has come than was counted; False where that is too much. Only a server counts."""
        self.left = _UNCOUNTED
        return True

    def rested(self, now: float) -> None:
        """It was not read from for long enough."""
        self.heard()
        self.release(PACED)

    def receive(self, payload: bytes, binary: bool) -> bool:
        """A message arrived; False when it is the host's."""
        if self.link is None:
            return False
        effects = self.link.receive(payload, binary, self.now())
        if effects and type(effects[0]) is NotOurs:
            return False
        self.carry(effects)
        return True

    def pong(self, payload: bytes) -> None:
        """An RFC 6455 pong frame arrived."""
        if self.link is not None:
            self.carry(self.link.pong(payload, self.now()))

    def woke(self, now: float) -> None:
        """The machine slept."""
        if self.link is not None and not self.dead:
            self.guarded(lambda link: self.carry(link.woke(now, self.traffic())), self.link)

    def gone(self, code: int | None) -> None:
        """The connection is gone, with the peer's close code or without any."""
        self.unlimit()
        self.over = True
        if self._alarm is not None:
            self._alarm.disarm()
        self.shared.ticker.wheel.disarm(self)
        self.shared.edges.discard(self)
        self.shared.ticker.leave()
        # Whatever goes wrong with its session, the register and whoever waits for the last connection are told.
        self.guarded(self.leave, code)
        if self.link is not None:
            self.carry(self.link.close(self.now(), code))
        self.shared.one_is_gone()

    def let_go(self) -> None:
        """Its session needs it no more. Its protocol stays, where that is somebody's who may ask it how it ended."""

    def due(self, now: float) -> None:
        """The armed time has come."""
        self.guarded(self._look, now)

    def guarded(self, step: Callable[..., object], *arguments: Any) -> None:
        """Take a step of which an exception means a bug, ours or the host's: logged, and closed 1011."""
        try:
            step(*arguments)
        except Exception:  # noqa: BLE001  # a host's hook may raise anything, and the tick must go on
            self.failed()

    def failed(self) -> None:
        """An exception that is being handled means a bug, ours or the host's: log it, and close 1011."""
        self._log.failure("closing {peer} after an unexpected error", peer=self.protocol.peer)
        # RFC 6455, section 7.1.7: "MUST NOT continue to attempt to process data (including a responding
        # Close frame)". Autobahn's parser has stopped in the middle of a frame, too.
        self.dead = True
        self.close(CloseCode.INTERNAL_ERROR, "internal error")

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake, or drop what is not open."""
        protocol = self.protocol
        if protocol.state == WebSocketProtocol.STATE_OPEN:
            # sendClose refuses most of the 1xxx codes that a server may well send.
            protocol.sendCloseFrame(int(code), encode_truncate(reason, 123))
        elif protocol.state != WebSocketProtocol.STATE_CLOSED:
            protocol.dropConnection(abort=True)
        else:
            # Autobahn has closed already, and may wait for ever to be rid of its bytes.
            self.drop()
            return
        self.limit(self.shared.settings.close_timeout, self.drop)

    def note(self, reason: str, why: str) -> None:
        """The peer is refused something: say so, in one line of the log."""
        self._log.info("{peer}: {why}", peer=readable(self.protocol.peer), why=readable(why), reason=reason)

    def traffic(self) -> Traffic:
        """What the transport knows of its bytes now."""
        protocol = self.protocol
        given = protocol.trafficStats.outgoingOctetsWireLevel + self.given
        written = given - (outbox.queued(protocol.transport) or 0)
        frame = protocol.current_frame
        growing = frame is not None and frame.opcode < 8 and bool(protocol.data or protocol.frame_data)
        return Traffic(given, written, written - (outbox.unacknowledged(protocol.transport) or 0), growing)

    def changed(self, status: LinkStatus) -> None:
        """The link has changed in a way its owner wants to hear of."""
        self.protocol.linkChanged(status)

    def answered(self, rtt: float | None, clients: int | None) -> None:
        """A ping of ours was answered."""
        self.protocol.pongReceived(rtt, clients)

    # What the session wants of its connection.

    def write(self, payload: bytes) -> None:
        """Send a text frame, if the connection is open."""
        if self.protocol.state == WebSocketProtocol.STATE_OPEN and not self.dead:
            self._send_text(payload, doNotCompress=self.protocol._perMessageCompress is None)

    def offer(self, payload: bytes) -> bool:
        """Send a text frame that is kept nowhere; False where too much waits for the peer already."""
        self.hold_back()
        if self._stuck is not None:
            return False
        self.write(payload)
        return True

    def room(self) -> float:
        """How many bytes may be written: a replay leaves half of the bound to what else there is to say."""
        return self.shared.settings.outgoing_limit // 2 - (outbox.queued(self.protocol.transport) or 0)

    def take(self, message: dict[str, Any], handling: Handling) -> Deferred[Any] | None:
        """Give a message to its handler."""
        taken: Deferred[Any] | None = self.protocol._heartbeat_take(message, handling)
        return taken

    def send(self, message: dict[str, Any], *, volatile: bool) -> Deferred[None]:
        """Send a message of the application's: in the session, or as it is."""
        if self.channel is not None and not volatile:
            return self.channel.send(message)
        payload = encode_message(message)
        if self.dead or self.protocol.state != WebSocketProtocol.STATE_OPEN:
            return QuietDeferred.failed(Unconfirmed((message,), "closed"))
        self._send_text(payload, doNotCompress=self.protocol._perMessageCompress is None)
        return QuietDeferred.fired()

    def adopt(self, channel: Channel, admitted: Callable[[], Effects]) -> None:
        """Carry this session from now on: first what admits it says, then what waits in it."""
        self.channel = channel
        channel.attach(self)
        self.carry(admitted())
        channel.pump()
        channel.run()

    def cut(self, code: int, reason: str) -> None:
        """Close, and read nothing more."""
        self.dead = True
        self.close(code, reason)

    # The ends see to these; an edge that is neither has no session.

    def leave(self, code: int | None) -> None:
        """The connection is gone, with the peer's close code or without any: see to its session."""

    def broken(self) -> None:
        """The peer broke a rule on which the session rests."""

    def judge(self, opening: Opening | None) -> None:
        """Ask who a server's client may be, and what it gets."""

    def opened(self, declared: Declared | None) -> None:
        """A client's: the server has declared a session, or that it has none."""

    def carry(self, effects: Effects) -> None:
        """Carry out what the link says, and look again when it wants to be looked at."""
        for effect in effects:
            if type(effect) is bytes:
                self._send(effect)
            else:
                _CARRIED[type(effect)](self, effect)
        self._arm()

    def _arm(self) -> None:
        at = self._limit
        if self.dead:
            # Nothing is read any more, so whatever it says goes unheard: its silence is our own doing.
            pass
        elif self._stuck is not None:
            at = min(at, self.now() + self.shared.settings.tick)
        elif self._held & PACED:
            at = min(at, self._paced_until)
        elif self.link is not None:
            at = min(at, self.link.next_at)
        if at == inf or self.over:
            return
        if self._alarm is not None:
            self._alarm.arm_before(at)
        else:
            self.shared.ticker.wheel.arm_before(self, at)

    def _look(self, now: float) -> None:
        at_limit = self._at_limit
        if at_limit is not None and now >= self._limit:
            self.unlimit()
            self.shared.ticker.leaves()
            at_limit()
        link = self.link
        if self.dead:
            # As above.
            pass
        elif self._stuck is not None:
            # We are not reading, so its silence is our own doing, and convicts nobody.
            self._look_whether_stuck(now, *self._stuck)
        elif self._held & PACED:
            # The same. As much was heard of it as can be.
            if now >= self._paced_until:
                self.rested(now)
        elif link is not None and now >= link.next_at:
            # Which arms it.
            self.carry(link.check(now, self.traffic()))
            return
        self._arm()

    def _look_whether_stuck(self, now: float, since: float, written: int) -> None:
        settings, left = self.shared.settings, self.traffic().written
        if (outbox.queued(self.protocol.transport) or 0) <= settings.outgoing_limit // 2:
            self._stuck = None
            self.heard()
            self.release(STUCK)
        elif left > written:
            self._stuck = (now, left)
        elif now - since >= settings.timeout_max:
            self._stuck = None
            self.dead = True
            self.note("outgoing_limit", "it reads too slowly (setting outgoing_limit)")
            self.close(CloseCode.SLOW_CONSUMER, "reads too slowly")

    def _confirm(self) -> None:
        if self.link is not None and not (self.over or self.dead):
            self.carry(self.link.confirm(self.now(), self.traffic()))

    def drop(self) -> None:
        """Abort the connection, wherever it stands."""
        if self.over:
            return
        self.protocol.dropConnection(abort=True)
        abort = getattr(self.protocol.transport, "abortConnection", None)
        if abort is not None:
            abort()

    def _send(self, payload: bytes) -> None:
        if self.protocol.state == WebSocketProtocol.STATE_OPEN:
            self._send_text(payload, doNotCompress=True)

    def _send_text(self, payload: bytes, *, doNotCompress: bool) -> None:
        if self.way is None or not doNotCompress or len(payload) > SHORT:
            self.protocol.sendMessage(payload, doNotCompress=doNotCompress)
            return
        frame = text_frame(payload)
        self.given += len(frame)
        self.way(self.protocol.transport, frame)

    def _abort(self, effect: Abort) -> None:
        self.dead = True
        self.protocol.wasNotCleanReason = f"heartbeat timeout ({effect.reason})"
        self.close(effect.code, effect.reason)

    def _close(self, effect: Close) -> None:
        setting = _SETTING.search(effect.reason)
        reason = setting[1] if setting else CloseCode(effect.code).name.lower().replace("_", "-")
        self.note(reason, f"closed: {effect.reason}")
        if effect.code in (CloseCode.GAP, CloseCode.BAD_ACK):
            self.broken()
        self.cut(effect.code, effect.reason)

    def _run(self, effect: Run) -> None:
        if self.channel is not None:
            self.channel.run()

    def _confirmed(self, effect: Confirmed) -> None:
        if self.channel is not None:
            self.channel.confirmed()

    def _turn(self, effect: Turn) -> None:
        self.shared.ticker.turn(lambda: self.guarded(self._confirm))


_CARRIED: dict[type[Any], Callable[[Edge, Any], object]] = {
    PingFrame: lambda edge, effect: edge.protocol.sendPing(effect.payload),
    Abort: Edge._abort,
    Turn: Edge._turn,
    Close: Edge._close,
    Run: Edge._run,
    Confirmed: Edge._confirmed,
    Judge: lambda edge, effect: edge.judge(effect.opening),
    Opened: lambda edge, effect: edge.opened(effect.declared),
    Deliver: lambda edge, effect: edge.protocol._heartbeat_deliver(effect.message),
    Refused: lambda edge, effect: edge.note(effect.error.code, f"what it sent cannot be taken: {effect.error.detail}"),
    Report: lambda edge, effect: edge.changed(effect.status),
    Answered: lambda edge, effect: edge.answered(effect.rtt, effect.clients),
    Asked: lambda edge, effect: edge.protocol.pingReceived(),
    Joined: lambda edge, effect: edge.shared.joined(effect.client_id),  # type: ignore[attr-defined]  # a server's
    Left: lambda edge, effect: edge.shared.left(effect.client_id),  # type: ignore[attr-defined]  # a server's
    Drain: lambda edge, effect: edge.protocol._heartbeat_drained(effect.shortest, effect.longest),
}
