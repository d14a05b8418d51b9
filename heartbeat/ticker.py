"""An end's sense of time: the wheel of all its connections, and the exact timers of one that has few.

Both go by the running time of the process, and come with its tick (`heartbeat.pulse`). Every timer looks again at
that time when it fires: the reactor's clock is wall time on Twisted's own reactors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from typing import Any, Protocol

from twisted.logger import Logger

from heartbeat.core.wheel import Entry, Wheel
from heartbeat.pulse import Pulse

__all__ = ["Alarm", "Ticker", "Timed"]

_log = Logger()

# By how much sums of seconds may differ that should be equal; no round trip is as short.
_ROUNDING = 1e-6

# So many seconds of a tick are spent on them without a turn of the reactor, and so many of them look: whoever has to
# leave is seen to in that turn, which costs more than the look: as much as so many. Where ticks pile up, so many times
# as much is spent.
_SLICE = 0.00025
_LOOKS = 8
_A_LEAVE = 3
_BEHIND = 4


class Timed(Protocol):
    """What the ticker wakes: it sits in the wheel, and looks for itself at what has come due."""

    slot: int | None

    def due(self, now: float) -> None:
        """The armed time has come (running seconds); must not raise."""
        ...


class Ticker:
    """The wheel, the alarms and the turns of one end, which has its tick of the process's pulse.

    `enter` and `leave` count who needs it. `on_tick` is called with the running time once a tick,
    `on_wake` when the machine turns out to have slept.
    """

    def __init__(
        self,
        reactor: Any,
        tick: float,
        *,
        on_tick: Callable[[float], None] | None = None,
        on_wake: Callable[[float], None] | None = None,
    ) -> None:
        self.reactor: Any = reactor
        self.pulse = Pulse.of(reactor, tick)
        #: Monotonic seconds, which `running` translates.
        self.raw = self.pulse.raw
        self.running = self.pulse.running
        self.wheel = Wheel(tick, self.now())
        self._on_tick = on_tick
        self._on_wake = on_wake
        self._users = 0
        # Those who are due and have not looked yet.
        self._handed_out: deque[Iterator[Entry]] = deque()
        # How many have looked since the reactor turned; what they leave to do for its next turn counts as so many more.
        self._looks = 0
        self._turning: list[Callable[[], None]] = []
        self._turn: Any = None
        self.alarms: set[Alarm] = set()

    def now(self) -> float:
        """Our running time, in seconds."""
        return self.running.at(self.raw())

    def enter(self) -> None:
        """One more connection needs the tick."""
        self._users += 1
        if self._users == 1:
            self.pulse.join(self)

    def leave(self) -> None:
        """One connection less needs it."""
        self._users -= 1
        if self._users == 0:
            self.pulse.leave(self)

    def turn(self, then: Callable[[], None]) -> None:
        """Call `then` after one turn of the reactor, so that what has arrived is read before."""
        self._turning.append(then)
        if self._turn is None:
            self._turn = self.reactor.callLater(0, self._turned)

    def leaves(self) -> None:
        """Whoever looks just now leaves: the reactor has to do with that in its next turn."""
        self._looks += _A_LEAVE

    def ticked(self, now: float) -> None:
        """The pulse: a tick has passed."""
        if self.wheel:
            self._handed_out.append(self.wheel.due(now))
        if self._handed_out:
            self._hand_out()
        if self._on_tick is not None:
            self._on_tick(now)

    def woke(self, now: float) -> None:
        """The pulse: the machine has slept."""
        if self._on_wake is not None:
            self._on_wake(now)

    def set_anew(self) -> int:
        """The pulse: the reactor's clock has jumped."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = self.reactor.callLater(0, self._turned)
        alarms = tuple(self.alarms)
        for alarm in alarms:
            alarm.set_anew()
        return len(alarms)

    def _hand_out(self) -> None:
        """Have those look who are due; where there are many, others have a turn of the reactor in between."""
        raw, now, behind = self.raw(), self.now(), min(_BEHIND, len(self._handed_out))
        self._looks = 0
        while self._handed_out:
            for entry in self._handed_out[0]:
                entry.due(now)  # type: ignore[attr-defined]  # whoever sits in this wheel is Timed
                self._looks += 1
                if self._looks >= _LOOKS * behind or self.raw() - raw > _SLICE * behind:
                    # The next tick may have come while there is something left of this one.
                    if self._users and self._hand_out not in self._turning:
                        self.turn(self._hand_out)
                    return
            self._handed_out.popleft()

    def _turned(self) -> None:
        self._turn = None
        turning, self._turning = self._turning, []
        for then in turning:
            try:
                then()
            except Exception:  # noqa: BLE001  # whatever it is: the others have their turn
                _log.failure("a turn failed; this is a bug")


class Alarm:
    """One exact timer in running time, for ends that have few connections. Armed again, it forgets the time before."""

    def __init__(self, ticker: Ticker, ring: Callable[[float], None]) -> None:
        self._ticker = ticker
        self._ring = ring
        self._at = inf
        self._call: Any = None

    def arm(self, at: float) -> None:
        """Have it ring at `at`; infinity is never."""
        self.disarm()
        if at < inf:
            self._at = at
            self._ticker.alarms.add(self)
            self._call = self._ticker.reactor.callLater(max(0.0, at - self._ticker.now()), self._fired)

    def arm_before(self, at: float) -> None:
        """Have it ring at `at` at the latest: an earlier appointment stands."""
        if at < self._at:
            self.arm(at)

    def disarm(self) -> None:
        """Have it not ring."""
        self._at = inf
        self._ticker.alarms.discard(self)
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()

    def set_anew(self) -> None:
        """The reactor's clock has jumped: wait for the same running time by the new one."""
        self.arm(self._at)

    def _fired(self) -> None:
        now, at = self._ticker.now(), self._at
        # A wall clock that leapt ahead fires early, and so does our running time after a stall.
        if now < at - _ROUNDING:
            self.arm(at)
            return
        self.disarm()
        # Told the time that was waited for: whoever finds himself early by a rounding would wait for it again.
        self._ring(max(now, at))
