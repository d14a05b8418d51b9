"""The server's end of a connection: answers pings, declares the timing, knows how present its peer is.

Never lets silence alone convict: the monitor's probe goes out first, as an RFC 6455 ping, which a
browser answers without its page.
"""

from __future__ import annotations

from math import inf
from typing import Any, ClassVar

from heartbeat.core.errors import CloseCode, PeerError
from heartbeat.core.link import NOTHING, Close, Effects, Joined, Judge, Left, Link, Report, milliseconds, ping_id_of
from heartbeat.core.messages import (
    NOT_QUICKLY,
    OWNED_IN_SESSION,
    VERSION,
    encode,
    error_frame,
    pong_frame,
    quickly,
    re_of,
)
from heartbeat.core.monitor import Monitor, State, Traffic
from heartbeat.core.opening import Opening, opening
from heartbeat.core.presence import Presence, Standing
from heartbeat.core.running import RunningTime
from heartbeat.core.session import Session
from heartbeat.core.settings import Settings

__all__ = ["ServerLink"]

# An enumeration's members cost a look-up each (Python 3.11), and these are asked for with every beat.
_ACTIVE = Standing.ACTIVE
_ACKNOWLEDGED = State.ACKNOWLEDGED


class ServerLink(Link):
    """The server's end.

    `client_id` is the id that it gives, `spread` a number from [0, 1) by which the first ping is put off, so
    that a crowd does not beat in step. `plain` says what becomes of a page that opens no session: `allow`, `refuse`, or
    `judge`, which asks by `Judge(None)` who it is before it is answered.
    `spoke` says whether anything arrived after an opening of level 1.
    """

    __slots__ = (
        "_active_until",
        "_announced",
        "_base",
        "_beats",
        "_connection",
        "_opening",
        "_pinged_at",
        "_plain",
        "_presence",
        "_spread",
        "spoke",
    )

    def __init__(
        self,
        settings: Settings,
        running: RunningTime,
        now: float,
        *,
        presence: Presence,
        client_id: str,
        spread: float = 0.0,
        guest: bool = False,
        plain: str = "allow",
    ) -> None:
        super().__init__(settings, running, Monitor(settings.timing(), now, pings=False, watches=True), guest=guest)
        self.client_id = client_id
        self._spread = spread
        self._plain = plain
        self._beats = "client"
        self._opening: Opening | None = None
        self.spoke = False
        self._presence = presence
        self._connection = presence.open(client_id)
        self._announced = False
        # What it would be if it were not suspect.
        self._base = Standing.CONNECTED
        self._active_until = inf
        self._pinged_at = -inf

    @property
    def next_at(self) -> float:
        """When `check` wants to be called, in running time."""
        return inf if self._closed or self._held is not None else min(self.monitor.next_at, self._active_until)

    @property
    def standing(self) -> Standing:
        """How present this connection is."""
        return self._connection.standing

    def open(self, now: float) -> Effects:
        """The WebSocket is open; whether its end will say anything is not known yet."""
        return (Report(self.status("open", now, f"open, {self.client_id} until it says otherwise")),)

    def check(self, now: float, traffic: Traffic) -> Effects:
        """`next_at` has come: judge."""
        if now >= self._active_until:
            self._base = Standing.CONNECTED
            self._active_until = inf
            self._stand()
        return super().check(now, traffic)

    def beat(self, payload: bytes, now: float) -> bytes | None:
        """The answer to an ordinary ping, after all that follows from one; None for whatever else, and nothing is done.

        Ordinary is a ping that changes nothing but times, in a text frame that may not have been told of by `heard`.
        It does what `heard` and `receive` do, in one call: this is what a server does all day.
        """
        monitor, session = self.monitor, self.session
        if (
            self._base is not _ACTIVE
            or monitor.state is not _ACKNOWLEDGED
            or monitor.asked is not None
            or self._held is not None
            or self._deaf
            or self._closed
            or len(payload) > self.settings.ping_limit
            # So that nothing else is decoded twice.
            or b'"ping"' not in payload
        ):
            return None
        try:
            message = quickly(payload)
            if type(message) is not dict or message.get("type") != "ping" or "status" in message or "away" in message:
                return None
            if session is None:
                pong = pong_frame(payload, message, b',"status":"pong","clients":%d}' % self._presence.clients)
            elif message.get("ack", session.confirmed) == session.confirmed:
                end = b',"status":"pong","clients":%d,"ack":%d}' % (self._presence.clients, session.handled)
                pong = pong_frame(payload, message, end, OWNED_IN_SESSION)
                self.spoke = True
                session.tell()
            else:
                return None
        except (PeerError, *NOT_QUICKLY):
            return None
        self._pinged_at = monitor.heard_at = now
        self._active_until = now + monitor.timing.watch
        if monitor.pings:
            monitor.pinged(now)
        return pong

    def pong(self, payload: bytes, now: float) -> Effects:
        """An RFC 6455 pong frame arrived: its browser is there, the page itself may be asleep."""
        effects = super().pong(payload, now)
        if effects and self._announced and self._base is Standing.CONNECTED:
            self._base = Standing.AWAY
            self._stand()
        return effects

    def admitted(self, session: Session, now: float, *, resumed: bool = False, reason: str = "") -> Effects:
        """What `Judge` asked is decided: the session, and whose it is; `reason` is why another was not resumed.

        Answers the opening, and then what has waited behind it.
        """
        wish = self._opening
        if self._closed or self._deaf or wish is None:
            return NOTHING
        self._opening = None
        effects = self._rename(session.client_id, now)
        self.level = VERSION
        self.session = session
        self._beats = self.settings.beats or wish.beats or "client"
        timing = self.settings.timing(self.settings.granted_interval(wish.interval))
        self.monitor.declare(
            timing,
            now,
            pings=self._beats in ("server", "both"),
            watches=self._beats in ("client", "none"),
            first_ping=timing.interval * self._spread,
        )
        effects += self._announce()
        self._beaten(now, False)
        return (encode(self._declaration(session, resumed, reason)), *effects, *self._release(now))

    def named(self, client_id: str, now: float) -> Effects:
        """What `Judge(None)` asked is decided: who the page is that opens no session. Answers what has waited."""
        if self._closed or self._deaf:
            return NOTHING
        self._plain = "allow"
        return (*self._rename(client_id, now), *self._release(now))

    def refused(self, code: int, detail: str) -> Effects:
        """What `Judge` asked is decided: not this one."""
        if self._closed or self._deaf:
            return NOTHING
        self._held = None
        self._deaf = True
        return (Close(code, detail),)

    def close(self, now: float, code: int | None) -> Effects:
        """The connection is gone; announces the leave, now or after the grace."""
        if self._closed:
            return NOTHING
        super().close(now, code)
        # It closes as what it was: an end that was away is expected for longer, convicted or not.
        self._presence.stand(self._connection, self._base)
        # A page at level 0 cannot come back as the same client; a session's end is only ever said by 1000.
        at_once = code is not None and (self.level == 0 or code == CloseCode.NORMAL)
        left = self._presence.close(self._connection, now, at_once=at_once)
        return (Left(self._connection.client_id),) if left else NOTHING

    def _refuse(self, message: dict[str, Any] | PeerError, error: PeerError) -> Effects:
        # An error is never answered, or two ends could go on for ever.
        is_error = isinstance(message, dict) and message.get("type") == "error"
        return NOTHING if is_error else (error_frame(error),)

    def _take(self, payload: bytes, message: dict[str, Any] | PeerError, now: float) -> Effects:
        if self.level > 0:
            self.spoke = True
        elif self._plain != "allow" and not (isinstance(message, dict) and _is_opening(message)):
            if self._plain == "refuse":
                return self.refused(
                    CloseCode.UNAUTHORIZED, "clients without a session are not served here (setting level0)"
                )
            self._held = [(payload, message)]
            return (Judge(None),)
        return super()._take(payload, message, now)

    def _changed(self, now: float) -> Effects:
        effects = super()._changed(now)
        if effects:
            self._stand()
        return effects

    def _stand(self) -> None:
        suspect = self.monitor.state in (State.SUSPECT, State.DEAD)
        self._presence.stand(self._connection, Standing.SUSPECT if suspect else self._base)

    def _announce(self) -> Effects:
        if self._announced:
            return NOTHING
        self._announced = True
        if self._presence.announce(self._connection):
            return (Joined(self._connection.client_id),)
        return NOTHING

    def _beaten(self, now: float, away: bool) -> None:
        """An application ping, pong or `onopen`: who sends these is there, unless it says that it looks elsewhere."""
        watch = self.monitor.timing.watch
        if away:
            self._base, self._active_until, self._pinged_at = Standing.AWAY, inf, -inf
        elif self._base is Standing.AWAY and now - self._pinged_at > watch:
            # A hidden tab's timer that fires once a minute is not its return: that takes two inside `watch`.
            self._pinged_at = now
        else:
            self._base, self._active_until, self._pinged_at = Standing.ACTIVE, now + watch, now
        self._stand()

    def _pinged(self, payload: bytes, message: dict[str, Any], now: float) -> Effects:
        away = message.get("away") is True
        if message.get("status") == "pong":
            confirmed = self._acknowledged(message.get("ack"))
            if not self.monitor.knows(ping_id_of(message)):
                return confirmed
            joined = self._announce()
            self._beaten(now, away)
            return (*confirmed, *self._answered(ping_id_of(message), None, now), *joined)
        if len(payload) > self.settings.ping_limit:
            raise PeerError("too-big", f"a ping is at most {self.settings.ping_limit} bytes", re_of(message))
        joined = self._announce()
        self._beaten(now, away)
        self.monitor.pinged(now)
        clients, session = self._presence.clients, self.session
        if session is None:
            return (pong_frame(payload, message, b',"status":"pong","clients":%d}' % clients), *joined)
        end = b',"status":"pong","clients":%d,"ack":%d}' % (clients, session.handled)
        pong = pong_frame(payload, message, end, OWNED_IN_SESSION)
        # A ping that is refused has neither told nor confirmed anything.
        session.tell()
        return (*self._acknowledged(message.get("ack")), pong, *joined)

    def _acked(self, payload: bytes, message: dict[str, Any], now: float) -> Effects:
        return self._acknowledged(message.get("ack"))

    def _opened(self, payload: bytes, message: dict[str, Any], now: float) -> Effects:
        if self.level > 0:
            raise PeerError("bad-message", "this connection is open already", "onopen")
        if message.get("v") is None:
            joined = self._announce()
            self._beaten(now, False)
            return (encode(self._answer()), *joined)
        self._opening = opening(message)
        self._held = []
        return (Judge(self._opening),)

    def _rename(self, client_id: str, now: float) -> Effects:
        """Be somebody else from now on."""
        old = self._connection
        if client_id == old.client_id:
            return NOTHING
        left = self._presence.close(old, now, at_once=True)
        self._connection = self._presence.open(client_id)
        self.client_id = client_id
        self._announced = False
        return (Left(old.client_id),) if left else NOTHING

    def _answer(self) -> dict[str, Any]:
        return {
            "type": "onopen",
            "status": "ok",
            "client_id": self.client_id,
            "interval_ms": milliseconds(self.monitor.timing.interval),
            "clients": self._presence.clients,
        }

    def _declaration(self, session: Session, resumed: bool, reason: str) -> dict[str, Any]:
        timing, settings, bounds = self.monitor.timing, self.settings, session.bounds
        answer = self._answer() | {"v": VERSION, "sid": session.sid, "epoch": session.epoch, "resumed": resumed}
        answer |= {"reason": reason} if reason else {}
        return answer | {
            "last": session.tell(),
            "sent": session.sent,
            "window_ms": milliseconds(settings.window),
            "beats": self._beats,
            "watch_ms": milliseconds(timing.watch),
            "timeout_ms": [milliseconds(timing.timeout_min), milliseconds(timing.timeout_max)],
            "probe_ms": milliseconds(timing.probe),
            "limits": {
                "message": settings.message_limit,
                "ping": settings.ping_limit,
                "kept": bounds.messages,
                "kept_bytes": bounds.bytes,
            },
        }

    _ROWS: ClassVar = {
        "ping": _pinged,
        "onopen": _opened,
        "ack": _acked,
        "error": Link._never_answered,
        "drain": Link._never_answered,
    }


def _is_opening(message: dict[str, Any]) -> bool:
    return message.get("type") == "onopen" and message.get("v") is not None
