"""Every number a user may choose, with its default and its bounds, and the timing that follows.

A wrong setting fails in the constructor, by its name, its value and its bound. Nothing is half-built
and nothing changes afterwards. Seconds and bytes throughout; only the wire speaks milliseconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from heartbeat.core.errors import PeerError, SettingError

__all__ = ["BEATS", "DEFAULT_INTERVAL", "LEVEL0", "Settings", "Timing"]

#: Who sends the JSON pings. `none`: nobody, both ends only watch.
BEATS = ("client", "server", "both", "none")

#: What a server may do with pages that open no session.
LEVEL0 = ("allow", "refuse")

#: Seconds between beats, where nobody says otherwise.
DEFAULT_INTERVAL = 6.0

_SCHEDULES = ("answer", "fixed")

# The least and the most of each number, and its unit.
_BOUNDS: dict[str, tuple[float, float, str]] = {
    "interval": (0.1, 3600.0, "s"),
    "interval_min": (0.1, 3600.0, "s"),
    "interval_max": (0.1, 3600.0, "s"),
    "timeout_min": (0.05, 600.0, "s"),
    "timeout_max": (0.05, 600.0, "s"),
    "probe": (0.05, 600.0, "s"),
    "tick": (0.01, 1.0, "s"),
    "patience": (0.0, 3600.0, "s"),
    "attempts": (0, 1_000_000, ""),
    "open_timeout": (0.1, 600.0, "s"),
    "stable": (0.0, 3600.0, "s"),
    "window": (1.0, 86_400.0, "s"),
    "handshake_timeout": (0.1, 600.0, "s"),
    "close_timeout": (0.05, 60.0, "s"),
    "drain_after": (0.0, 3600.0, "s"),
    "drain_rate": (0.1, 1_000_000, "/s"),
    "drain_timeout": (0.0, 3600.0, "s"),
    "message_limit": (1024, 2**40, "bytes"),
    "outgoing_limit": (65_536, 2**40, "bytes"),
    "ping_limit": (64, 4096, "bytes"),
    "kept_limit": (4, 1_000_000, "messages"),
    "kept_bytes": (4096, 2**40, "bytes"),
    "sessions_bytes": (1_048_576, 2**50, "bytes"),
    "full_patience": (0.1, 3600.0, "s"),
    "judge_timeout": (0.1, 600.0, "s"),
    "backlog": (1, 65_535, ""),
    "trust_forwarded": (0, 16, ""),
    "max_connections": (1, 10_000_000, ""),
    "connections_per_address": (1, 10_000_000, ""),
    "handshake_rate": (0.1, 1_000_000, "/s"),
    "message_rate": (0.1, 1_000_000, "/s"),
    "sessions_per_client": (1, 1_000_000, ""),
    "groups_per_session": (1, 1_000_000, ""),
    "group_members": (1, 10_000_000, ""),
}

# Where None is the default, and something else follows from it.
_OPEN = ("interval", "max_connections", "connections_per_address", "handshake_rate", "message_rate")

_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/*?#\s]+")

_WHOLE = (
    "attempts",
    "message_limit",
    "outgoing_limit",
    "ping_limit",
    "kept_limit",
    "kept_bytes",
    "sessions_bytes",
    "backlog",
    "trust_forwarded",
    "max_connections",
    "connections_per_address",
    "sessions_per_client",
    "groups_per_session",
    "group_members",
)


@dataclass(frozen=True, slots=True)
class Timing:
    """What holds on one link, as declared by the server or, where it declares nothing, by our own settings.

    All in seconds: `interval` from an answer to the next ping (or from ping to ping, `fixed`),
    `timeout_min` and `timeout_max` the clamp of the adaptive deadline, `probe` the last chance,
    `watch` the silence that is suspicious to an end which does not ping, `tick` the grain of our
    timers, `patience` how long our own outgoing bytes, or missing pongs amid bytes, are borne.
    """

    interval: float
    timeout_min: float
    timeout_max: float
    probe: float
    watch: float
    tick: float
    patience: float
    fixed: bool = False

    @property
    def pinging_bound(self) -> float:
        """The longest, in our running time, that a dead peer goes unnoticed by an end that pings.

        By one whose timers all come with the tick, as a server's do, it is a tick more.
        """
        return max(self.interval, self.timeout_max) + self.timeout_max + self.probe + 2 * self.tick

    @property
    def watching_bound(self) -> float:
        """The same for an end that watches."""
        return self.watch + self.probe + 2 * self.tick

    def declared_by(self, answer: dict[str, Any]) -> Timing:
        """This timing with what a level-1 `onopen` answer declares put in its place.

        Raises PeerError when a declared number is none, or out of all reason.
        """
        # Nobody has us ping faster than this.
        interval = max(0.1, _seconds(answer, "interval_ms", self.interval))
        low, high = _seconds_pair(answer, "timeout_ms", (self.timeout_min, self.timeout_max))
        return replace(
            self,
            interval=interval,
            timeout_min=low,
            timeout_max=high,
            probe=_seconds(answer, "probe_ms", self.probe),
            watch=_seconds(answer, "watch_ms", watch_after(interval, high)),
        )


def watch_after(interval: float, ceiling: float) -> float:
    """Silence, in seconds, after which an end that does not ping grows suspicious."""
    return interval + min(10.0, max(interval / 2, ceiling))


def _seconds(answer: dict[str, Any], name: str, default: float) -> float:
    value = answer.get(name)
    if value is None:
        return default
    return _checked(name, value)


def _seconds_pair(answer: dict[str, Any], name: str, default: tuple[float, float]) -> tuple[float, float]:
    value = answer.get(name)
    if value is None:
        return default
    if not isinstance(value, list) or len(value) != 2:
        raise PeerError("bad-message", f"{name} must be a pair of milliseconds", "onopen")
    low, high = _checked(name, value[0]), _checked(name, value[1])
    return min(low, high), high


def _checked(name: str, value: object) -> float:
    if type(value) not in (int, float) or not 1 <= value <= 86_400_000:  # type: ignore[operator]  # a number by now
        raise PeerError("bad-message", f"{name} must be milliseconds from 1 to 86400000", "onopen")
    return value / 1000  # type: ignore[operator]  # a number by now


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of an end; a server reads some, a client others, and both the timing.

    Raises SettingError, one sentence with the name, the value and the bound.
    """

    #: Seconds from the answer of one ping to the next ping. None: 6, and a client wishes for nothing.
    interval: float | None = None
    #: "answer": the next ping follows the answer; "fixed": pings at fixed multiples, skipped while one is out.
    schedule: str = "answer"
    #: Server: None grants the client's wish, a word of BEATS holds for all. Client: the wish, None is "client".
    beats: str | None = None
    #: Server: the wishes that are granted.
    interval_min: float = 0.1
    interval_max: float = 60.0
    #: The clamp of the adaptive deadline for an answer.
    timeout_min: float = 3.0
    timeout_max: float = 6.0
    #: How long a suspect has to answer the probe.
    probe: float = 3.0
    #: The grain of the timers.
    tick: float = 0.2
    #: How long our own outgoing bytes may hold a ping back, and how long bytes without a pong are borne.
    patience: float = 60.0

    #: Client: attempts to get back, and the nominal delay before each (the last one repeats).
    attempts: int = 3
    delays: tuple[float, ...] = (1.0, 4.0, 16.0)
    #: Client: an attempt without an `onopen` answer or a first pong fails after this.
    open_timeout: float = 10.0
    #: Client: up for this long, with a beat answered, before the attempts are counted afresh.
    stable: float = 5.0
    #: Client: beat with RFC 6455 ping frames, for servers that know no JSON.
    frames: bool = False
    #: Client: who to say we are, and by what right.
    client_id: str | None = None
    token: str | None = field(default=None, repr=False)

    #: Server: absence after which a leave is announced; None is 40 s, or more where the delays are longer.
    grace: float | None = None
    #: Server: the same for a client that was `away`; None is 75 s, and never less than `grace`.
    grace_away: float | None = None
    #: Server: how long a session is kept for a client that is gone.
    window: float = 120.0
    #: What a session keeps at most of what the other end has not handled: messages, and their bytes.
    kept_limit: int = 1000
    kept_bytes: int = 1_048_576
    #: Server: what all sessions keep together; one identity or address a sixteenth of it at most.
    sessions_bytes: int = 268_435_456
    #: Server: a session at its bound whose client is there and handles nothing for so long is ended.
    full_patience: float = 30.0
    #: Server: how long the judgement of an `onopen` may take.
    judge_timeout: float = 5.0
    #: Server: whether pages that open no session are served; None: unless there is an `Authenticator`.
    level0: str | None = None
    #: Server: from TCP connect to the end of the opening handshake.
    handshake_timeout: float = 5.0
    #: How long a closing handshake may take before the socket is aborted.
    close_timeout: float = 1.0
    #: Server that stops: seconds until the first of its clients is to be back, and how many a second after that; and
    #: how long it waits for handlers to finish.
    drain_after: float = 1.0
    drain_rate: float = 500.0
    drain_timeout: float = 10.0
    #: The largest message taken, and the largest ping.
    message_limit: int = 65_536
    ping_limit: int = 1024
    #: Bytes that may wait for a peer that does not read; above it, nothing more is read from it either.
    outgoing_limit: int = 1_048_576
    #: Server: whether ordinary handshakes and short texts go past Autobahn, and answers straight into their sockets.
    fast_path: bool = True
    #: Server: WebSocket connections in all; None: what the open-file limit allows.
    max_connections: int | None = None
    #: Server: connections of one address, or of one /64 of IPv6. None: 1024, a quarter of all at most, and any number
    #: of this machine's and of private networks. A number holds for those too, but never for what a proxy there passes
    #: on, nor for UNIX sockets.
    connections_per_address: int | None = None
    #: Server: opening handshakes a second, an address a fifth of them. None: 5,000, and this machine's not counted.
    handshake_rate: float | None = None
    #: Server: messages a second from one connection, with two seconds' worth at once; control frames count, and so do
    #: short fragments. None: 200, and this machine's not counted.
    message_rate: float | None = None
    #: Server: sessions of one client id; of more, the one that was left alone longest is ended.
    sessions_per_client: int = 100
    #: Server: groups that one session, or one connection without any, may be in; and places in one group.
    groups_per_session: int = 100
    group_members: int = 5000
    #: Server: the listening socket's queue. Twisted's 50 turns storms into minutes.
    backlog: int = 4096
    #: Server: origins that are served besides none and the same host; "null" and "*" are words of their own.
    origins: tuple[str, ...] = ()
    #: Server: honour client ids that are only claimed, from peers that are not on loopback too.
    trust_client_ids: bool = False
    #: Server: how many proxies in front append to X-Forwarded-For.
    trust_forwarded: int = 0

    # Most connections have the same, so there is one.
    _timing: Timing = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, (least, most, unit) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None or name not in _OPEN:
                _within(name, value, least, most, unit)
        self._look_at_words()
        self._look_for_contradictions()
        self._settle_delays()
        self._settle_origins()
        self._settle_grace()
        object.__setattr__(self, "_timing", self._timing_at(self.interval or DEFAULT_INTERVAL))

    def _look_at_words(self) -> None:
        _one_of("schedule", self.schedule, _SCHEDULES)
        if self.beats is not None:
            _one_of("beats", self.beats, BEATS)
        if self.level0 is not None:
            _one_of("level0", self.level0, LEVEL0)
        if self.client_id is not None and not is_client_id(self.client_id):
            raise SettingError("client_id", self.client_id, "1 to 64 visible ASCII characters")
        for name in ("fast_path", "frames", "trust_client_ids"):
            if type(getattr(self, name)) is not bool:
                raise SettingError(name, getattr(self, name), "True or False")

    def _look_for_contradictions(self) -> None:
        if self.interval_max < self.interval_min:
            raise SettingError("interval_max", self.interval_max, f"at least interval_min ({self.interval_min:g} s)")
        if self.timeout_max < self.timeout_min:
            raise SettingError("timeout_max", self.timeout_max, f"at least timeout_min ({self.timeout_min:g} s)")
        if self.frames and self.beats not in (None, "client"):
            raise SettingError("beats", self.beats, "client where frames are used, which only a client sends")

    def _settle_delays(self) -> None:
        if not _is_several(self.delays) or not self.delays:
            raise SettingError("delays", self.delays, "a tuple of at least one number of seconds")
        for delay in self.delays:
            _within("delays", delay, 0.0, 3600.0, "s")
        object.__setattr__(self, "delays", tuple(self.delays))

    def _settle_origins(self) -> None:
        # Text would fall apart into its characters, of which one may be the asterisk that serves everybody.
        if not _is_several(self.origins):
            raise SettingError("origins", self.origins, "a tuple of origins")
        for origin in self.origins:
            if origin not in ("*", "null") and not (isinstance(origin, str) and _ORIGIN.fullmatch(origin)):
                raise SettingError("origins", origin, "scheme://host or scheme://host:port, null, or * for all")
        object.__setattr__(self, "origins", tuple(self.origins))

    def _settle_grace(self) -> None:
        # A client that uses all its attempts must find itself still expected at the last of them.
        longest = 1.5 * sum(self.delays[min(n, len(self.delays) - 1)] for n in range(min(self.attempts, 100)))
        grace = max(40.0, longest) if self.grace is None else self.grace
        away = max(75.0, grace) if self.grace_away is None else self.grace_away
        _within("grace", grace, 0.0, 86_400.0 * 365, "s")
        _within("grace_away", away, 0.0, 86_400.0 * 365, "s")
        if grace < longest:
            bound = f"at least {longest:g} s, 1.5 x the sum of delays over {self.attempts} attempts"
            raise SettingError("grace", self.grace, bound)
        if away < grace:
            raise SettingError("grace_away", self.grace_away, f"at least grace ({grace:g} s)")
        object.__setattr__(self, "grace", grace)
        object.__setattr__(self, "grace_away", away)

    def timing(self, interval: float | None = None) -> Timing:
        """The timing these settings give, for a granted `interval` or their own."""
        return self._timing if interval in (None, self._timing.interval) else self._timing_at(interval)

    def _timing_at(self, interval: float) -> Timing:
        return Timing(
            interval=interval,
            timeout_min=self.timeout_min,
            timeout_max=self.timeout_max,
            probe=self.probe,
            watch=watch_after(interval, self.timeout_max),
            tick=self.tick,
            patience=self.patience,
            fixed=self.schedule == "fixed",
        )

    def granted_interval(self, wish: float | None) -> float:
        """The interval that a client gets which wishes for `wish` seconds, or for nothing."""
        if wish is None:
            return self.interval or DEFAULT_INTERVAL
        return min(self.interval_max, max(self.interval_min, wish))


def _is_several(value: object) -> bool:
    return isinstance(value, list | tuple | set | frozenset)


def is_client_id(text: object) -> bool:
    """Whether `text` can be a client id: 1 to 64 visible ASCII characters."""
    return isinstance(text, str) and 0 < len(text) <= 64 and all("!" <= char <= "~" for char in text)


def _one_of(name: str, value: object, words: tuple[str, ...]) -> None:
    if value not in words:
        raise SettingError(name, value, "one of " + ", ".join(words))


def _within(name: str, value: object, least: float, most: float, unit: str, *, whole: bool = False) -> None:
    whole = whole or name in _WHOLE
    right_type = type(value) is int or (type(value) is float and not whole)
    # Written so that NaN, which is on no side of anything, is refused too.
    if right_type and least <= value <= most:  # type: ignore[operator]  # a number by now
        return
    kind = "a whole number" if whole else "a number"
    raise SettingError(name, value, f"{kind} from {_plainly(least)} to {_plainly(most)} {unit}".rstrip())


def _plainly(number: float) -> str:
    """As somebody would type it: 1048576, not 1.04858e+06."""
    return f"{int(number) if number == int(number) else number}"
