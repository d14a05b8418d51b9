"""Is the other end there? One table of states and inputs, and the timers that lead to it.

Never sends, never reads a clock, never closes: it is told *now* (in our own running time), and
returns what to do. A conviction takes a missed deadline, one turn of the reactor in which bytes
already received are read, a probe, and another such turn after the probe's deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from math import floor, inf
from typing import NamedTuple

from heartbeat.core.errors import StateError
from heartbeat.core.rtt import RoundTrip
from heartbeat.core.settings import Timing

__all__ = [
    "QUIET",
    "Confirm",
    "Convict",
    "Monitor",
    "SendPing",
    "SendProbe",
    "State",
    "Traffic",
]


class State(StrEnum):
    """The four states of the heartbeat, by the words that everybody sees."""

    #: The last ping was answered; resting.
    ACKNOWLEDGED = "acknowledged"
    #: A ping is out.
    WAITING = "waiting"
    #: The network is fluctuating; a probe is out.
    SUSPECT = "suspect"
    #: Convicted; nothing that arrives from now on counts.
    DEAD = "dead"


class _Input(Enum):
    DUE = auto()  # a ping of ours is due
    BYTES = auto()  # something was received
    WATCH = auto()  # a watcher has received nothing for `watch`
    PONG = auto()  # of a remembered id
    SILENT = auto()  # the deadline has come, no byte since the ping went out
    HEARD = auto()  # the deadline has come, with bytes since
    WOKE = auto()  # the machine slept: probe first, judge later
    CLOSED = auto()


@dataclass(frozen=True, slots=True)
class SendPing:
    """Send a ping with this id."""

    ping_id: int


@dataclass(frozen=True, slots=True)
class SendProbe:
    """Send a probe with this id: the one whose missing answer convicts."""

    ping_id: int


@dataclass(frozen=True, slots=True)
class Confirm:
    """Let the reactor turn once, so that what has arrived is read, and call `confirm`."""


@dataclass(frozen=True, slots=True)
class Convict:
    """The peer is gone: abort. `reason` is `silent`, or `no-pong` (bytes, but no answer for too long)."""

    reason: str


Effect = SendPing | SendProbe | Confirm | Convict
Effects = tuple[Effect, ...]

_NOTHING: Effects = ()
_CONFIRM: Effects = (Confirm(),)

#: So many pings written off in a row make a peer `busy`.
BUSY_AFTER = 3

# Pongs of this many pings are still known; more are never out, by `patience` and the least deadline.
_REMEMBERED = 64


class Traffic(NamedTuple):
    """What the transport knows of its bytes, counted since the connection opened.

    `given` were handed to it, `written` of these have left our buffer, `delivered` of these were
    acknowledged by the peer's kernel (as far as the platform tells; else the same as `written`).
    `growing`: a frame of the peer's is arriving in pieces right now.
    """

    given: int = 0
    written: int = 0
    delivered: int = 0
    growing: bool = False


#: A transport with nothing under way.
QUIET = Traffic()


class Monitor:
    """The heartbeat of one link as one end sees it.

    `pings`: this end sends pings; `watches`: it does not, and grows suspicious of silence.
    `busy` says that bytes arrive but pongs do not, `rtt` holds the round trips,
    `heard_at` is when anything was last received, `timing` is what holds, `asked` what `confirm` is to judge.
    """

    __slots__ = (
        "_base",
        "_deadline",
        "_delivered",
        "_flights",
        "_heard",
        "_last_answered",
        "_last_id",
        "_left",
        "_mark",
        "_moved_at",
        "_ping_at",
        "_queued_at",
        "_unanswered_since",
        "_written_off",
        "asked",
        "heard_at",
        "pings",
        "reason",
        "rtt",
        "state",
        "timing",
        "watches",
    )

    def __init__(self, timing: Timing, now: float, *, pings: bool, watches: bool, first_ping: float = 0.0) -> None:
        """A link that opened at `now`. The first ping is due `first_ping` seconds later."""
        self.timing = timing
        self.pings = pings
        self.watches = watches
        self.state = State.ACKNOWLEDGED
        self.reason = ""
        self.rtt: RoundTrip | None = None
        self.heard_at = now
        self._base = now + first_ping
        self._ping_at = self._base if pings else inf
        self._deadline = inf
        self.asked: _Input | None = None
        self._last_id = self._last_answered = 0
        # id: (sent at, stalls of ours so far)
        self._flights: dict[int, tuple[float, int]] = {}
        self._heard = False
        self._written_off = 0
        self._unanswered_since: float | None = None
        # Where the ping in flight stands in our outgoing bytes; None: nothing was ahead of it.
        self._mark: int | None = None
        # When something ahead of it was last seen to have arrived.
        self._moved_at = now
        self._queued_at = now
        self._left = True
        self._delivered = 0

    @property
    def sent(self) -> int:
        """How many pings and probes went out so far."""
        return self._last_id

    @property
    def busy(self) -> bool:
        """Whether bytes keep coming while pings go unanswered."""
        return self._written_off >= BUSY_AFTER

    @property
    def timeout(self) -> float:
        """The present deadline for an answer, in seconds after the ping."""
        timing = self.timing
        if self.rtt is None:
            return timing.timeout_max
        return self.rtt.timeout(timing.tick, timing.timeout_min, timing.timeout_max)

    @property
    def next_at(self) -> float:
        """When `check` has something to judge, in running time; never, while an answer to `Confirm` is awaited."""
        if self.asked is not None:
            return inf
        if self.state is State.ACKNOWLEDGED:
            return min(self._ping_at, self.heard_at + self.timing.watch if self.watches else inf)
        return self._deadline

    def declare(self, timing: Timing, now: float, *, pings: bool, watches: bool, first_ping: float = 0.0) -> None:
        """The server has declared what holds from now on. A ping in flight gets its deadline from now."""
        self.timing = timing
        self.pings = pings
        self.watches = watches
        self.heard_at = now
        self._base = now + first_ping
        self._ping_at = self._base if pings else inf
        if self.state is State.WAITING:
            self._allow(self.timeout, now)

    def hold(self, seconds: float, now: float) -> None:
        """Give the ping in flight so much time from now on: until now somebody else judged the link."""
        self._deadline = now + seconds

    def open(self, now: float, stalls: int) -> Effects:
        """Send the first ping now, whoever is to send the later ones."""
        return self._ping(now, QUIET, stalls)

    def heard(self, now: float) -> Effects:
        """Bytes arrived, of whatever kind."""
        self.asked = None
        return self._step(_Input.BYTES, now, QUIET, 0)

    def answered(self, ping_id: int | None, now: float, stalls: int) -> float | None:
        """A pong arrived; without an id it answers the one ping in flight. Returns the round trip.

        None: the id is none of ours, or our own clock was late meanwhile, or it cannot be told which of
        several pings was answered, so that the time says nothing. `knows` tells beforehand.
        """
        flights = self._flights
        ambiguous = ping_id is None and len(flights) > 1
        flight = flights.pop(self._last_id if ping_id is None else ping_id, None)
        if flight is None:
            return None
        self._last_answered = max(self._last_answered, self._last_id if ping_id is None else ping_id)
        if ping_id is None:
            flights.clear()
        sent_at, stalls_then = flight
        self._step(_Input.PONG, now, QUIET, stalls)
        if ambiguous or stalls_then != stalls:
            return None
        if self.rtt is None:
            self.rtt = RoundTrip()
        self.rtt.sample(now - sent_at)
        return now - sent_at

    def knows(self, ping_id: int | None) -> bool:
        """Whether a ping with this id (None: the latest) is out, or was written off and remembered."""
        return (self._last_id if ping_id is None else ping_id) in self._flights

    def pinged(self, now: float) -> None:
        """The peer sent a ping of its own: ours is put off, so that two ends that both ping do not double it."""
        if self.pings and self.state is State.ACKNOWLEDGED and not self.timing.fixed:
            self._ping_at = now + self.timing.interval

    def woke(self, now: float, traffic: Traffic, stalls: int) -> Effects:
        """The machine slept: what we believed is old, so probe."""
        self.asked = None
        return self._step(_Input.WOKE, now, traffic, stalls)

    def check(self, now: float, traffic: Traffic, stalls: int) -> Effects:
        """Judge what has come due by `now`."""
        if now < self.next_at:
            return _NOTHING
        if self.state is State.ACKNOWLEDGED:
            if now >= self._ping_at:
                return self._step(_Input.DUE, now, traffic, stalls)
            return self._ask(_Input.WATCH)
        if self._held_up(now, traffic):
            return _NOTHING
        if self._heard:
            return self._step(_Input.HEARD, now, traffic, stalls)
        return self._ask(_Input.SILENT)

    def confirm(self, now: float, traffic: Traffic, stalls: int) -> Effects:
        """The reactor has turned: judge as was asked, unless something was received meanwhile."""
        asked, self.asked = self.asked, None
        if asked is None:
            return _NOTHING
        return self._step(asked, now, traffic, stalls)

    def convict(self, reason: str) -> Effects:
        """The peer is to be taken for gone, for a `reason` of one word; nothing that arrives counts any more."""
        self.state = State.DEAD
        self.reason = reason
        self.asked = None
        self._end_timers()
        return (Convict(reason),)

    def unanswered_for(self, now: float) -> float:
        """Seconds since the oldest ping that is still unanswered went out, 0 without one."""
        # One that was passed over (RFC 6455 lets a peer answer the latest ping alone) is no open question any more.
        out = (sent_at for ping_id, (sent_at, _) in self._flights.items() if ping_id > self._last_answered)
        return now - next(out, now)

    def close(self, now: float) -> None:
        """The connection is gone: all timers end."""
        self.asked = None
        self._step(_Input.CLOSED, now, QUIET, 0)

    # The table's side of it.

    def _step(self, what: _Input, now: float, traffic: Traffic, stalls: int) -> Effects:
        try:
            row = _TABLE[self.state, what]
        except KeyError:
            raise StateError(f"{what.name} in state {self.state}") from None
        if row is None:
            return _NOTHING
        return row(self, now, traffic, stalls)

    def _ask(self, what: _Input) -> Effects:
        self.asked = what
        return _CONFIRM

    def _rest(self, now: float) -> None:
        self.state = State.ACKNOWLEDGED
        if not self.pings:
            return
        if not self.timing.fixed:
            self._ping_at = now + self.timing.interval
            return
        interval = self.timing.interval
        self._ping_at = self._base + interval * (floor((now - self._base) / interval) + 1)

    def _sent(
        self, state: State, wait: float, now: float, traffic: Traffic, stalls: int, *, since: float | None = None
    ) -> int:
        """Note that a ping goes out now, to be answered within `wait`; returns its id.

        `since`: when the question was first put that it puts again, from which our patience counts.
        """
        self._last_id += 1
        flights = self._flights
        if len(flights) >= _REMEMBERED:
            del flights[next(iter(flights))]
        flights[self._last_id] = (now, stalls)
        self.state = state
        self._heard = False
        self._queued_at = now if since is None else since
        self._delivered = traffic.delivered
        self._left = traffic.written >= traffic.given
        patient = now - self._queued_at < self.timing.patience
        self._mark = traffic.given if patient and traffic.delivered < traffic.given else None
        self._allow(wait, now)
        return self._last_id

    def _allow(self, wait: float, now: float) -> None:
        """Have the ping in flight answered within `wait` from now; behind bytes of ours it is looked after each tick.

        For its deadline starts when these have arrived, and whoever looks later gives a dead peer that much more.
        """
        self._moved_at = now
        self._deadline = now + (wait if self._mark is None else min(wait, self.timing.tick))

    def _held_up(self, now: float, traffic: Traffic) -> bool:
        """Whether the ping is still behind bytes of our own that are moving; if so, the deadline is put off."""
        if self._mark is None:
            return False
        wait = self.timing.probe if self.state is State.SUSPECT else self.timeout
        if now - self._queued_at >= self.timing.patience or traffic.delivered > self._mark:
            # It has arrived, or may as well have: it has its deadline from now, and no excuse after it.
            self._mark = None
        elif not self._left and traffic.written <= self._mark:
            # What no kernel has taken yet shows nothing of the peer.
            self._deadline = now + self.timing.tick
            return True
        elif self._left and traffic.delivered <= self._delivered:
            due = self._moved_at + wait
            self._deadline = min(now + self.timing.tick, due)
            return now < due
        self._left = True
        self._delivered = traffic.delivered
        self._allow(wait, now)
        return True

    def _ping(self, now: float, traffic: Traffic, stalls: int) -> Effects:
        return (SendPing(self._sent(State.WAITING, self.timeout, now, traffic, stalls)),)

    def _probe(self, now: float, traffic: Traffic, stalls: int) -> Effects:
        return (SendProbe(self._sent(State.SUSPECT, self.timing.probe, now, traffic, stalls)),)

    def _probe_again(self, now: float, traffic: Traffic, stalls: int) -> Effects:
        since = self._queued_at
        return (SendProbe(self._sent(State.SUSPECT, self.timing.probe, now, traffic, stalls, since=since)),)

    def _watch_anew(self, now: float, traffic: Traffic, stalls: int) -> Effects:
        self.heard_at = now
        return _NOTHING

    def _note_bytes(self, now: float, traffic: Traffic, stalls: int) -> Effects:
        self.heard_at = now
        self._heard = True
        return _NOTHING

    def _relieve(self, now: float, traffic: Traffic, stalls: int) -> Effects:
        self.heard_at = now
        self._heard = True
        if self.watches:
            self._rest(now)
        else:
            self.state = State.WAITING
            self._allow(self.timeout, now)
        return _NOTHING

    def _acknowledge(self, now: float, traffic: Traffic, stalls: int) -> Effects:
        self._written_off = 0
        self._unanswered_since = None
        self._rest(now)
        return _NOTHING

    def _write_off(self, now: float, traffic: Traffic, stalls: int) -> Effects:
        self._written_off += 1
        if self._unanswered_since is None or traffic.growing:
            self._unanswered_since = now
        # The one just written off was a probe then, whatever our patience.
        if now - self._unanswered_since >= self.timing.patience and self._written_off > BUSY_AFTER:
            return self.convict("no-pong")
        ping_id = self._sent(State.WAITING, self.timeout, now, traffic, stalls)
        # A peer that is busy for long is asked in the way whose missing answer convicts.
        return (SendProbe(ping_id) if self.busy else SendPing(ping_id),)

    def _silence(self, now: float, traffic: Traffic, stalls: int) -> Effects:
        return self.convict("silent")

    def _close(self, now: float, traffic: Traffic, stalls: int) -> Effects:
        self._end_timers()
        return _NOTHING

    def _end_timers(self) -> None:
        self._ping_at = self._deadline = inf
        self.pings = self.watches = False
        self._flights.clear()


_Row = Callable[[Monitor, float, Traffic, int], Effects]

# None: nothing happens. What is not listed raises.
_TABLE: dict[tuple[State, _Input], _Row | None] = {
    (State.ACKNOWLEDGED, _Input.DUE): Monitor._ping,
    (State.ACKNOWLEDGED, _Input.BYTES): Monitor._watch_anew,
    (State.ACKNOWLEDGED, _Input.WATCH): Monitor._probe,
    (State.ACKNOWLEDGED, _Input.PONG): None,
    (State.ACKNOWLEDGED, _Input.SILENT): None,
    (State.ACKNOWLEDGED, _Input.HEARD): None,
    (State.ACKNOWLEDGED, _Input.WOKE): Monitor._probe,
    (State.ACKNOWLEDGED, _Input.CLOSED): Monitor._close,
    (State.WAITING, _Input.DUE): None,
    (State.WAITING, _Input.WATCH): None,
    (State.WAITING, _Input.BYTES): Monitor._note_bytes,
    (State.WAITING, _Input.PONG): Monitor._acknowledge,
    (State.WAITING, _Input.SILENT): Monitor._probe_again,
    (State.WAITING, _Input.HEARD): Monitor._write_off,
    (State.WAITING, _Input.WOKE): Monitor._probe,
    (State.WAITING, _Input.CLOSED): Monitor._close,
    (State.SUSPECT, _Input.DUE): None,
    (State.SUSPECT, _Input.WATCH): None,
    (State.SUSPECT, _Input.BYTES): Monitor._relieve,
    (State.SUSPECT, _Input.PONG): Monitor._acknowledge,
    (State.SUSPECT, _Input.SILENT): Monitor._silence,
    (State.SUSPECT, _Input.WOKE): None,
    (State.SUSPECT, _Input.CLOSED): Monitor._close,
    (State.DEAD, _Input.BYTES): None,
    (State.DEAD, _Input.PONG): None,
    (State.DEAD, _Input.WOKE): None,
    (State.DEAD, _Input.CLOSED): None,
}
