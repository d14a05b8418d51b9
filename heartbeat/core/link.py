"""One end of one connection: what the frames mean, and what follows from them.

Takes payloads and times, returns effects in the order in which they are to be carried out. Holds no
socket, sends nothing, knows no thread and no timer; `next_at` says when it wants to be looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

from heartbeat.core.errors import CloseCode, PeerError, Violation
from heartbeat.core.messages import check_type, decode_object, no_number, number_of, ping_frame
from heartbeat.core.monitor import Confirm, Convict, Monitor, SendPing, SendProbe, State, Traffic
from heartbeat.core.monitor import Effect as MonitorEffect
from heartbeat.core.opening import Declared, Opening
from heartbeat.core.running import RunningTime
from heartbeat.core.session import Session
from heartbeat.core.settings import Settings

__all__ = [
    "NOTHING",
    "Abort",
    "Answered",
    "Asked",
    "Close",
    "Confirmed",
    "Deliver",
    "Drain",
    "Effect",
    "Effects",
    "Joined",
    "Judge",
    "Left",
    "Link",
    "LinkStatus",
    "NotOurs",
    "Opened",
    "PingFrame",
    "Refused",
    "Report",
    "Run",
    "Turn",
    "milliseconds",
    "ping_id_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStatus:
    """What is known of a link at the moment of a change; times in seconds.

    `event` is the change: `open`, `waiting`, `suspect`, `acknowledged`, `dead`, `closed`, and from
    the reconnecting client `reconnecting` and `unreachable`. `state` is the heartbeat's. `detail` is
    a sentence for people. `silent_for` counts from the last byte, `unanswered_for` from the oldest
    ping without an answer. `reason` is the wire's word for why a link is `dead` or was closed.
    `state` is None, and the numbers are nothing, while there is no link.
    """

    event: str
    state: State | None
    detail: str
    silent_for: float = 0.0
    unanswered_for: float = 0.0
    rtt: float | None = None
    busy: bool = False
    level: int = 0
    client_id: str | None = None
    clients: int | None = None
    reason: str = ""
    code: int | None = None
    attempt: int | None = None
    delay: float | None = None


@dataclass(frozen=True, slots=True)
class PingFrame:
    """Send an RFC 6455 ping frame with this payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Abort:
    """The peer is gone: try to send this close code, and abort the socket after `close_timeout`, answered or not."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Turn:
    """Let the reactor turn once, then call `confirm`."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """A message for the application."""

    message: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """The session has something to handle, or to acknowledge."""


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The peer has handled all of our messages up to this one."""

    upto: int


@dataclass(frozen=True, slots=True)
class Close:
    """Begin to close with this code, and read nothing more."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class NotOurs:
    """A frame that belongs to the host of a mixin, untouched."""


@dataclass(frozen=True, slots=True)
class Refused:
    """What the peer sent cannot be taken; a client says so in its log, and to nobody else."""

    error: PeerError


@dataclass(frozen=True, slots=True)
class Report:
    """The link changed in a way its owner wants to hear of."""

    status: LinkStatus


@dataclass(frozen=True, slots=True)
class Answered:
    """A ping of ours was answered. `rtt` in seconds, None where it cannot be told; `clients` as the peer said."""

    rtt: float | None
    clients: int | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A ping of the server's was answered."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A client id is present now."""

    client_id: str


@dataclass(frozen=True, slots=True)
class Left:
    """A client id is gone for good."""

    client_id: str


@dataclass(frozen=True, slots=True)
class Drain:
    """The server is going: come back between these seconds from now."""

    shortest: float
    longest: float


@dataclass(frozen=True, slots=True)
class Judge:
    """A server's: who may this be, and which session does it get? Then call `admitted`, or `refused`.

    Of a page that opens no session (None) only the first is asked. Then call `named`, or `refused`.
    """

    opening: Opening | None


@dataclass(frozen=True, slots=True)
class Opened:
    """A client's: the server declares this session, or None where it has none. Then call `admitted`."""

    declared: Declared | None


#: `bytes` are a text frame to send.
Effect = (
    bytes
    | PingFrame
    | Abort
    | Turn
    | Deliver
    | Run
    | Confirmed
    | Close
    | NotOurs
    | Refused
    | Report
    | Answered
    | Asked
    | Joined
    | Left
    | Drain
    | Judge
    | Opened
)
Effects = tuple[Effect, ...]

#: Nothing follows.
NOTHING: Effects = ()
_NOT_OURS: Effects = (NotOurs(),)
_TURN = Turn()
_RUN: Effects = (Run(),)

# Never numbered, whatever they say.
_UNNUMBERED = frozenset({"onopen", "ping", "ack", "drain"})

#: Above this a frame is not looked into on behalf of a mixin: neither a ping nor an `onopen` is that long.
GUEST_LIMIT = 4096

_PROBE_PREFIX = b"heartbeat "


class Link:
    """What both ends share: the monitor, and its judgements turned into frames and reports.

    `guest`: on behalf of a mixin, so that only what is surely ours is taken.
    """

    __slots__ = (
        "_closed",
        "_deaf",
        "_guest",
        "_held",
        "_reported",
        "_running",
        "client_id",
        "level",
        "monitor",
        "session",
        "settings",
    )

    _ROWS: ClassVar[dict[str, Callable[[Any, bytes, dict[str, Any], float], Effects]]]
    #: Whether the other end may send more than the bounds allow.
    _TRUSTS: ClassVar[bool] = False

    def __init__(self, settings: Settings, running: RunningTime, monitor: Monitor, *, guest: bool) -> None:
        self.settings = settings
        self.monitor = monitor
        self.level = 0
        self.client_id: str | None = None
        self.session: Session | None = None
        self._running = running
        self._guest = guest
        self._closed = False
        # Closing: what still arrives is not even looked at.
        self._deaf = False
        # While an opening is judged: what arrived meanwhile, and waits behind its answer.
        self._held: list[tuple[bytes, dict[str, Any] | PeerError]] | None = None
        self._reported = State.ACKNOWLEDGED

    @property
    def next_at(self) -> float:
        """When `check` wants to be called, in running time."""
        return inf if self._closed or self._held is not None else self.monitor.next_at

    @property
    def is_judging(self) -> bool:
        """Whether what arrives waits behind the answer to an opening."""
        return self._held is not None

    def receive(self, payload: bytes, binary: bool, now: float) -> Effects:
        """A whole message arrived. Its bytes were told of by `heard` before."""
        if self._closed or self._deaf:
            return NOTHING
        if self._guest and (binary or self._is_surely_foreign(payload)):
            return _NOT_OURS
        message: dict[str, Any] | PeerError
        try:
            if binary:
                raise PeerError("bad-message", "a message is a text frame, not a binary one")
            message = decode_object(payload)
        except PeerError as error:
            if self._guest:
                return _NOT_OURS
            message = error
        if self._guest and not self._is_ours(message):  # type: ignore[arg-type]  # an error has returned
            return _NOT_OURS
        if self._held is not None:
            self._held.append((payload, message))
            return NOTHING
        return self._take(payload, message, now)

    def _is_surely_foreign(self, payload: bytes) -> bool:
        too_long = len(payload) > GUEST_LIMIT and not self._has_session
        return too_long or not payload.lstrip().startswith(b"{")

    @property
    def _has_session(self) -> bool:
        """Whether numbered messages may arrive: in a session, or before a client's is there that was declared."""
        return self.session is not None or (self.level > 0 and self._held is not None)

    def _is_ours(self, message: dict[str, Any]) -> bool:
        kind = message.get("type")
        if kind in ("ping", "onopen"):
            return True
        if "seq" in message and self._has_session:
            return True
        return self.level > 0 and type(kind) is str and kind in self._ROWS

    def _take(self, payload: bytes, message: dict[str, Any] | PeerError, now: float) -> Effects:
        try:
            if isinstance(message, PeerError):
                raise message
            if self.session is not None and "seq" in message and not _is_unnumbered(message.get("type")):
                return self._numbered(self.session, payload, message, now)
            row = self._ROWS.get(check_type(message)["type"])
            return (Deliver(message),) if row is None else row(self, payload, message, now)
        except PeerError as error:
            refused = self._refuse(message, error)
            # Its traceback has this frame, which has the error: a stranger's nonsense would be the garbage collector's.
            error.__traceback__ = error.__cause__ = error.__context__ = None
            return refused
        except Violation as violation:
            return self._break_off(violation)

    def _numbered(self, session: Session, payload: bytes, message: dict[str, Any], now: float) -> Effects:
        seq = number_of(message, "seq", 1)
        if seq is None:
            raise no_number(message, "seq", 1)
        what: dict[str, Any] | PeerError | bytes = message if session.is_idle else payload
        try:
            check_type(message)
        except PeerError as error:
            what = error
        taken = session.take(seq, what, len(payload), trusted=self._TRUSTS)
        # They are the session's; the application gets the message as it was sent.
        del message["seq"]
        # Only now: a message that breaks off the connection has confirmed nothing either.
        effects = self._acknowledged(message.pop("ack", None))
        return effects + _RUN if taken else effects

    def _acknowledged(self, upto: object) -> Effects:
        """What the member `ack` says, where a session runs."""
        session = self.session
        # What is no number confirms nothing; it is not answered, or two ends could go on about it for ever.
        if session is None or type(upto) is not int or upto < 0:
            return NOTHING
        return (Confirmed(upto),) if session.confirm(upto) else NOTHING

    def _break_off(self, violation: Violation) -> Effects:
        self._deaf = True
        return (Close(violation.code, violation.detail),)

    def _release(self, now: float) -> Effects:
        """The opening is answered: take what waited behind it."""
        held, self._held = self._held or [], None
        effects: Effects = ()
        for payload, message in held:
            # What was held may itself be an opening, behind which the rest waits again.
            if self._held is not None:
                self._held.append((payload, message))
            elif not self._deaf:
                effects += self._take(payload, message, now)
        return effects

    def heard(self, now: float) -> Effects:
        """Bytes arrived, of whatever kind."""
        if self._closed:
            return NOTHING
        self.monitor.heard(now)
        return self._changed(now)

    def pong(self, payload: bytes, now: float) -> Effects:
        """An RFC 6455 pong frame arrived."""
        if self._closed or not payload.startswith(_PROBE_PREFIX):
            return NOTHING
        digits = payload[len(_PROBE_PREFIX) :]
        return self._answered(int(digits) if digits.isdigit() else -1, None, now)

    def check(self, now: float, traffic: Traffic) -> Effects:
        """`next_at` has come: judge."""
        if self._closed or self._held is not None:
            return NOTHING
        return self._carry(self.monitor.check(now, traffic, self._running.stalls), now)

    def confirm(self, now: float, traffic: Traffic) -> Effects:
        """The reactor has turned, as `Turn` asked."""
        if self._closed:
            return NOTHING
        return self._carry(self.monitor.confirm(now, traffic, self._running.stalls), now)

    def woke(self, now: float, traffic: Traffic) -> Effects:
        """The machine slept: probe before anything is judged."""
        if self._closed:
            return NOTHING
        return self._carry(self.monitor.woke(now, traffic, self._running.stalls), now)

    def close(self, now: float, code: int | None) -> Effects:
        """The connection is gone; `code` is the peer's close code, None without a close frame."""
        self._closed = True
        self.monitor.close(now)
        return NOTHING

    def status(self, event: str, now: float, detail: str, **more: Any) -> LinkStatus:
        """The status for `event`, with what the monitor knows."""
        monitor = self.monitor
        return LinkStatus(
            event=event,
            state=monitor.state,
            detail=detail,
            silent_for=now - monitor.heard_at,
            unanswered_for=monitor.unanswered_for(now),
            rtt=None if monitor.rtt is None else monitor.rtt.last,
            busy=monitor.busy,
            level=self.level,
            client_id=self.client_id,
            reason=monitor.reason,
            **more,
        )

    def _refuse(self, message: dict[str, Any] | PeerError, error: PeerError) -> Effects:
        """The message, where it was one, cannot be taken."""
        raise NotImplementedError

    def _probe(self, ping_id: int) -> Effect:
        """The probe, unless the end has a better one: answered by the peer's WebSocket layer, without its page."""
        return PingFrame(_PROBE_PREFIX + b"%d" % ping_id)

    def _ping(self, ping_id: int) -> Effect:
        return ping_frame(ping_id, None if self.session is None else self.session.tell())

    def _never_answered(self, payload: bytes, message: dict[str, Any], now: float) -> Effects:
        return NOTHING

    def _answered(self, ping_id: int | None, clients: int | None, now: float) -> Effects:
        if not self.monitor.knows(ping_id):
            return NOTHING
        rtt = self.monitor.answered(ping_id, now, self._running.stalls)
        return (Answered(rtt, clients), *self._changed(now))

    def _carry(self, effects: tuple[MonitorEffect, ...], now: float) -> Effects:
        """The monitor's effects as frames, and what has changed by them."""
        if not effects:
            return NOTHING
        return (*(_TRANSLATED[type(effect)](self, effect) for effect in effects), *self._changed(now))

    def _changed(self, now: float) -> Effects:
        """What to report: suspicion, and how it ends. The ordinary beat is nobody's news."""
        state, before = self.monitor.state, self._reported
        if state is before or (state is State.WAITING and before is State.ACKNOWLEDGED):
            return NOTHING
        self._reported = state
        return (Report(self.status(state.value, now, _sentence(self.monitor, before, now))),)


def _sentence(monitor: Monitor, before: State, now: float) -> str:
    if monitor.state is State.SUSPECT:
        waited = monitor.unanswered_for(now)
        if waited > 0:
            return f"network fluctuation: no answer for {waited:.1f} s, probing"
        return f"network fluctuation: nothing received for {now - monitor.heard_at:.1f} s, probing"
    if monitor.state is State.WAITING:
        return "bytes arrive again, waiting for the answer"
    if monitor.state is State.ACKNOWLEDGED:
        return "answered again"
    return _VERDICTS[monitor.reason].format(silent=now - monitor.heard_at, patience=monitor.timing.patience)


_VERDICTS = {
    "silent": "nothing received for {silent:.1f} s, and the probe went unanswered",
    "no-pong": "bytes arrive, but no answer for {patience:.0f} s",
    "no-answer": "the server never answered the opening",
    "refused": "the server refused a ping",
}

_TRANSLATED: dict[type[MonitorEffect], Callable[[Any, Any], Effect]] = {
    SendPing: lambda link, effect: link._ping(effect.ping_id),
    SendProbe: lambda link, effect: link._probe(effect.ping_id),
    Confirm: lambda link, effect: _TURN,
    Convict: lambda link, effect: Abort(CloseCode.HEARTBEAT_TIMEOUT, effect.reason),
}


def _is_unnumbered(kind: object) -> bool:
    return type(kind) is str and kind in _UNNUMBERED


def ping_id_of(message: dict[str, Any]) -> int | None:
    """The id of a pong: None where there is none, -1 (never one of ours) where it is no whole number."""
    ping_id = message.get("id")
    return ping_id if ping_id is None or type(ping_id) is int else -1


def milliseconds(seconds: float) -> int:
    """Seconds as the wire has them."""
    return round(seconds * 1000)
