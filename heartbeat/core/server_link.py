"""The server's end of a connection: answers pings, declares the timing, knows how present its peer is.

Never lets silence alone convict: the monitor's probe goes out first, as an RFC 6455 ping, which a
browser answers without its page.
"""

from __future__ import annotations

from math import inf
from typing import Any, ClassVar

from heartbeat.core.errors import CloseCode, PeerError
from heartbeat.core.link import NOTHING, Effects, Joined, Left, Link, Report, milliseconds, ping_id_of
from heartbeat.core.messages import VERSION, encode, error_frame, pong_frame, re_of
from heartbeat.core.monitor import Monitor, State, Traffic
from heartbeat.core.presence import Presence, Standing
from heartbeat.core.running import RunningTime
from heartbeat.core.settings import BEATS, Settings, is_client_id

__all__ = ["ServerLink"]


class ServerLink(Link):
    """The server's end.

    `client_id` is the id that it gives, `claims` whether an id the peer only claims is honoured,
    `spread` a number from [0, 1) by which the first ping is put off, so that a crowd does not beat in step.
    """

    __slots__ = (
        "_active_until",
        "_announced",
        "_base",
        "_beats",
        "_claims",
        "_connection",
        "_pinged_at",
        "_presence",
        "_spread",
    )

    def __init__(
        self,
        settings: Settings,
        running: RunningTime,
        now: float,
        *,
        presence: Presence,
        client_id: str,
        claims: bool = False,
        spread: float = 0.0,
        guest: bool = False,
    ) -> None:
        super().__init__(settings, running, Monitor(settings.timing(), now, pings=False, watches=True), guest=guest)
        self.client_id = client_id
        self._claims = claims
        self._spread = spread
        self._beats = "client"
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
        return inf if self._closed else min(self.monitor.next_at, self._active_until)

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

    def pong(self, payload: bytes, now: float) -> Effects:
        """An RFC 6455 pong frame arrived: its browser is there, the page itself may be asleep."""
        effects = super().pong(payload, now)
        if effects and self._announced and self._base is Standing.CONNECTED:
            self._base = Standing.AWAY
            self._stand()
        return effects

    def unknown(self, message: dict[str, Any]) -> Effects:
        """The application takes no such message: say so."""
        kind = message["type"]
        return self._refuse(
            PeerError("unknown-type", f"nobody here takes messages of type {kind[:64]}", re_of(message))
        )

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

    def _refuse(self, error: PeerError) -> Effects:
        return (error_frame(error),)

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
        if len(payload) > self.settings.ping_limit:
            raise PeerError("too-big", f"a ping is at most {self.settings.ping_limit} bytes", re_of(message))
        away = message.get("away") is True
        if message.get("status") == "pong":
            if not self.monitor.knows(ping_id_of(message)):
                return NOTHING
            self._beaten(now, away)
            return self._answered(ping_id_of(message), None, now)
        joined = self._announce()
        self._beaten(now, away)
        self.monitor.pinged(now)
        return (pong_frame(payload, message, b'"status":"pong","clients":%d' % self._presence.active), *joined)

    def _opened(self, payload: bytes, message: dict[str, Any], now: float) -> Effects:
        if self.level > 0:
            raise PeerError("bad-message", "this connection is open already", "onopen")
        if message.get("v") is None:
            joined = self._announce()
            self._beaten(now, False)
            return (encode(self._answer()), *joined)
        beats, interval, claimed = _wishes(message)
        effects = self._rename(claimed, now)
        self.level = VERSION
        self._beats = self.settings.beats or beats or "client"
        timing = self.settings.timing(self.settings.granted_interval(interval))
        self.monitor.declare(
            timing,
            now,
            pings=self._beats in ("server", "both"),
            watches=self._beats in ("client", "none"),
            first_ping=timing.interval * self._spread,
        )
        effects += self._announce()
        self._beaten(now, False)
        return (encode(self._declaration()), *effects)

    def _rename(self, claimed: str | None, now: float) -> Effects:
        """Take the claimed id where claims are honoured; ids of our own making are nobody's to claim."""
        if claimed is None or not self._claims or claimed.startswith("c-"):
            return NOTHING
        old = self._connection
        left = self._presence.close(old, now, at_once=True)
        self._connection = self._presence.open(claimed)
        self.client_id = claimed
        self._announced = False
        return (Left(old.client_id),) if left else NOTHING

    def _answer(self) -> dict[str, Any]:
        return {
            "type": "onopen",
            "status": "ok",
            "client_id": self.client_id,
            "interval_ms": milliseconds(self.monitor.timing.interval),
            "clients": self._presence.active,
        }

    def _declaration(self) -> dict[str, Any]:
        timing = self.monitor.timing
        return self._answer() | {
            "v": VERSION,
            "beats": self._beats,
            "watch_ms": milliseconds(timing.watch),
            "timeout_ms": [milliseconds(timing.timeout_min), milliseconds(timing.timeout_max)],
            "probe_ms": milliseconds(timing.probe),
            "limits": {"message": self.settings.message_limit, "ping": self.settings.ping_limit},
        }

    _ROWS: ClassVar = {
        "ping": _pinged,
        "onopen": _opened,
        "ack": Link._never_answered,
        "error": Link._never_answered,
        "drain": Link._never_answered,
    }


def _wishes(message: dict[str, Any]) -> tuple[str | None, float | None, str | None]:
    """What a level-1 `onopen` asks for: beats, interval in seconds, client id. Raises PeerError."""
    version, beats = message["v"], message.get("beats")
    if type(version) is not int or version < 1:
        raise PeerError("bad-message", "v must be a whole number from 1", "onopen")
    if beats is not None and beats not in BEATS:
        raise PeerError("bad-message", "beats must be one of " + ", ".join(BEATS), "onopen")
    interval = message.get("interval_ms")
    if interval is not None and (type(interval) not in (int, float) or not interval > 0):
        raise PeerError("bad-message", "interval_ms must be a number above 0", "onopen")
    claimed = message.get("client_id")
    if claimed is not None and not is_client_id(claimed):
        raise PeerError("bad-message", "client_id must be 1 to 64 visible ASCII characters", "onopen")
    if message.get("session") is not None and type(message["session"]) is not dict:
        raise PeerError("bad-message", "session must be null or an object", "onopen")
    # A whole number on the wire may be too long for a float; a day is longer than anything we grant.
    return beats, None if interval is None else min(interval, 86_400_000) / 1000, claimed
