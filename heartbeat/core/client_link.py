"""The client's end of a connection: opens, beats as the server declares, and takes a plain server as it is.

Never answers what a server says wrongly: that is told to our own log.
"""

from __future__ import annotations

from math import inf
from typing import Any, ClassVar

from heartbeat.core.errors import PeerError
from heartbeat.core.link import (
    NOTHING,
    Asked,
    Deliver,
    Drain,
    Effect,
    Effects,
    Link,
    Opened,
    Refused,
    Report,
    milliseconds,
    ping_id_of,
)
from heartbeat.core.messages import OWNED_IN_SESSION, VERSION, encode, pong_frame, re_of
from heartbeat.core.monitor import Monitor, Traffic
from heartbeat.core.opening import declared
from heartbeat.core.running import RunningTime
from heartbeat.core.session import Bounds, Session
from heartbeat.core.settings import BEATS, Settings

__all__ = ["ClientLink"]

_ASKED = Asked()


class ClientLink(Link):
    """The client's end: opens, pings or watches as the server declares, and takes a plain server as it is.

    `opened` turns True with the first sign that the other end speaks with us. `resuming` is the session to come
    back to, if there is one.
    """

    __slots__ = ("_open_by", "_resuming", "opened")

    # What becomes of its messages to others is kept for a client whatever comes, and all of it is replayed.
    _TRUSTS: ClassVar = True

    def __init__(
        self,
        settings: Settings,
        running: RunningTime,
        now: float,
        *,
        guest: bool = False,
        resuming: Session | None = None,
    ) -> None:
        beats = settings.beats or "client"
        monitor = Monitor(
            settings.timing(), now, pings=beats in ("client", "both"), watches=beats in ("server", "none")
        )
        super().__init__(settings, running, monitor, guest=guest)
        self.opened = False
        self._open_by = now + settings.open_timeout
        self._resuming = resuming

    @property
    def next_at(self) -> float:
        """When `check` wants to be called, in running time."""
        if not self.opened and not self._closed:
            return self._open_by
        return super().next_at

    def open(self, now: float) -> Effects:
        """The WebSocket is open: say who we are and what we wish, and ping at once, whatever `beats` will be."""
        effects = self._carry(self.monitor.open(now, self._running.stalls), now)
        if self.settings.frames:
            return effects
        return (encode(self._wish()), *effects)

    def check(self, now: float, traffic: Traffic) -> Effects:
        """`next_at` has come: judge."""
        if self.opened or self._closed:
            return super().check(now, traffic)
        if now < self._open_by:
            return NOTHING
        return self._give_up("no-answer", now)

    def woke(self, now: float, traffic: Traffic) -> Effects:
        """The machine slept: probe before anything is judged."""
        return super().woke(now, traffic) if self.opened else NOTHING

    def _wish(self) -> dict[str, Any]:
        settings = self.settings
        wish: dict[str, Any] = {"type": "onopen", "v": VERSION, "beats": settings.beats or "client"}
        if settings.interval is not None:
            wish["interval_ms"] = milliseconds(settings.interval)
        session = self._resuming
        wish["session"] = session and {
            "sid": session.sid,
            "epoch": session.epoch,
            "last": session.tell(),
            "sent": session.given_away,
            "try": session.attempt,
        }
        name = settings.client_id
        if session is not None and (name is None or session.client_id.startswith("c-")):
            # It was given that id, perhaps because the one it claimed was not honoured; it is whose the session is.
            name = session.client_id
        if name is not None:
            wish["client_id"] = name
        if settings.token is not None:
            wish["token"] = settings.token
        return wish

    def admitted(self, session: Session, now: float) -> Effects:
        """What `Opened` asked has been seen to: this is the session of the link."""
        if self._closed:
            return NOTHING
        self.session = session
        return self._release(now)

    def _ping(self, ping_id: int) -> Effect:
        return self._probe(ping_id) if self.settings.frames else super()._ping(ping_id)

    def _probe(self, ping_id: int) -> Effect:
        # An end that pings probes as it pings: the question is the same, and so is the way to the other application.
        if self.settings.frames or self.monitor.watches:
            return super()._probe(ping_id)
        return super()._ping(ping_id)

    def _refuse(self, message: dict[str, Any] | PeerError, error: PeerError) -> Effects:
        return (Refused(error),)

    def _give_up(self, reason: str, now: float) -> Effects:
        self._open_by = inf
        return self._carry(self.monitor.convict(reason), now)

    def _is_open(self, now: float, detail: str, clients: int | None) -> Effects:
        self.opened = True
        return (Report(self.status("open", now, detail, clients=clients)),)

    def _answered(self, ping_id: int | None, clients: int | None, now: float) -> Effects:
        known = self.monitor.knows(ping_id)
        effects = super()._answered(ping_id, clients, now)
        if self.opened or not known:
            return effects
        kind = "RFC 6455 pings" if self.settings.frames else "plain pings"
        return (Opened(None), *self._is_open(now, f"open, the server knows {kind}", clients), *effects)

    def _pinged(self, payload: bytes, message: dict[str, Any], now: float) -> Effects:
        status = message.get("status")
        if status == "pong":
            confirmed = self._acknowledged(message.get("ack"))
            return (*confirmed, *self._answered(ping_id_of(message), _count(message), now))
        if status is not None and self.level == 0:
            return self._give_up("refused", now)
        if len(payload) > self.settings.ping_limit:
            raise PeerError("too-big", f"a ping is at most {self.settings.ping_limit} bytes", re_of(message))
        self.monitor.pinged(now)
        session = self.session
        if session is None:
            return (pong_frame(payload, message, b',"status":"pong"}'), _ASKED)
        pong = pong_frame(payload, message, b',"status":"pong","ack":%d}' % session.handled, OWNED_IN_SESSION)
        # A ping that is refused has neither told nor confirmed anything.
        session.tell()
        return (*self._acknowledged(message.get("ack")), pong, _ASKED)

    def _acked(self, payload: bytes, message: dict[str, Any], now: float) -> Effects:
        return self._acknowledged(message.get("ack"))

    def _opening_answered(self, payload: bytes, message: dict[str, Any], now: float) -> Effects:
        if self.opened or message.get("status") != "ok":
            return NOTHING
        name = message.get("client_id")
        version = message.get("v")
        if version is None:
            self.client_id = name if isinstance(name, str) else None
            self.monitor.hold(self.monitor.timeout, now)
            return (Opened(None), *self._is_open(now, "open", _count(message)))
        beats = message.get("beats", "client")
        if type(version) is not int or beats not in BEATS:
            raise PeerError("bad-message", "an onopen answer has a whole v, and beats is one of " + ", ".join(BEATS))
        timing = self.monitor.timing.declared_by(message)
        settings = self.settings
        session = declared(message, Bounds(settings.kept_limit, settings.kept_bytes, settings.message_limit))
        self.client_id = name if isinstance(name, str) else None
        self.level = VERSION
        self.monitor.declare(timing, now, pings=beats in ("client", "both"), watches=beats in ("server", "none"))
        detail = f"open as {self.client_id}, beats: {beats} every {timing.interval:g} s"
        if session is not None:
            self._held = []
        return (Opened(session), *self._is_open(now, detail, _count(message)))

    def _draining(self, payload: bytes, message: dict[str, Any], now: float) -> Effects:
        shortest, longest = message.get("min_ms"), message.get("max_ms")
        if type(shortest) is not int or type(longest) is not int or not 0 <= shortest <= longest <= 86_400_000:
            raise PeerError("bad-message", "drain has min_ms and max_ms", "drain")
        return (Drain(shortest / 1000, longest / 1000),)

    def _told(self, payload: bytes, message: dict[str, Any], now: float) -> Effects:
        return (Deliver(message),)

    _ROWS: ClassVar = {
        "ping": _pinged,
        "onopen": _opening_answered,
        "ack": _acked,
        "error": _told,
        "drain": _draining,
    }


def _count(message: dict[str, Any]) -> int | None:
    clients = message.get("clients")
    return clients if type(clients) is int else None
