"""An end's sense of time: one tick for all its connections, the wheel, and how late we ourselves were.

The tick is the reactor's `LoopingCall`; it lives from the first connection to the last. Nothing here
trusts the reactor's clock, which is wall time on Twisted's own reactors: every timer looks again at
monotonic time when it fires, and `poke` revives timers that a step of the system clock has buried.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from typing import Any, Protocol

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from heartbeat import watchdog
from heartbeat.core.running import RunningTime
from heartbeat.core.wheel import Entry, Wheel

__all__ = ["Alarm", "Ticker", "Timed", "make_monotonic", "raw_clock"]

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

# A machine that slept for less may as well have been busy.
_SLEPT = 2.0


class Timed(Protocol):
    """What the ticker wakes: it sits in the wheel, and looks for itself at what has come due."""

    slot: int | None

    def due(self, now: float) -> None:
        """The armed time has come (running seconds); must not raise."""
        ...


def raw_clock(reactor: Any) -> Callable[[], float]:
    """Monotonic seconds: the system's for the global reactor, the reactor's own for one that was passed in."""
    if reactor is sys.modules.get("twisted.internet.reactor"):
        return time.monotonic
    clock: Callable[[], float] = reactor.seconds
    return clock


def make_monotonic(reactor: Any) -> None:
    """Have the reactor time its timers by a clock that nobody sets, as long as it has no timer yet.

    Only where the process is ours: an application's own code may expect wall time of its reactor.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic


def sleep_clock(reactor: Any) -> Callable[[], float]:
    """Seconds slept so far: this machine's for the global reactor, for another what its `slept` says, if it has one."""
    if reactor is sys.modules.get("twisted.internet.reactor"):
        return slept
    clock: Callable[[], float] = getattr(reactor, "slept", _sleepless)
    return clock


def _sleepless() -> float:
    return 0.0


def slept() -> float:
    """Seconds this machine has slept since it started, as far as the platform tells; only differences mean anything."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    if boottime is not None:
        return time.clock_gettime(boottime) - time.monotonic()
    # A step of the wall clock looks the same here; what follows is a probe, which does no harm.
    return time.time() - time.monotonic()


class Ticker:
    """The tick, the wheel and the running time of one end.

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
        #: Monotonic seconds, which `running` translates.
        self.raw = raw_clock(reactor)
        self.running = RunningTime(tick, self.raw())
        self.wheel = Wheel(tick, self.now())
        #: Raw time of the latest tick; the watchdog's thread reads it.
        self.ticked_at = self.raw()
        #: By how many seconds the latest tick was late.
        self.late = 0.0
        self._tick = tick
        self._on_tick = on_tick
        self._on_wake = on_wake
        self._slept = sleep_clock(reactor)
        self._slept_before = self._slept()
        self._users = 0
        self._loop = LoopingCall(self._ticked)
        self._loop.clock = reactor
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

    @property
    def watched(self) -> bool:
        """Whether the reactor's clock may jump away from under the tick, so that a watchdog is needed."""
        return self.raw is time.monotonic and self.reactor.seconds is not time.monotonic

    def enter(self) -> None:
        """One more connection needs the tick."""
        self._users += 1
        if self._users == 1:
            raw = self.raw()
            self.running.resume(raw)
            self.ticked_at = raw
            self._slept_before = self._slept()
            if not self._loop.running:
                self._start()
            if self.watched:
                watchdog.watch(self)

    def leave(self) -> None:
        """One connection less needs it."""
        self._users -= 1
        if self._users == 0:
            watchdog.unwatch(self)
            if self._loop.call is not None:
                self._loop.stop()
            # Else this is the tick itself: it sees to that at its end, for it may be needed again before.

    def turn(self, then: Callable[[], None]) -> None:
        """Call `then` after one turn of the reactor, so that what has arrived is read before."""
        self._turning.append(then)
        if self._turn is None:
            self._turn = self.reactor.callLater(0, self._turned)

    def leaves(self) -> None:
        """Whoever looks just now leaves: the reactor has to do with that in its next turn."""
        self._looks += _A_LEAVE

    def poke(self) -> None:
        """Set every timer of ours anew, if the reactor's clock has jumped, and they lie an hour ahead."""
        if self._users == 0 or self._is_about_to_tick():
            return
        _log.warn("the system clock stepped back: {count} timer(s) set anew", count=1 + len(self.alarms))
        if self._loop.running:
            self._loop.stop()
        self._start()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = self.reactor.callLater(0, self._turned)
        for alarm in tuple(self.alarms):
            alarm.set_anew()

    def _is_about_to_tick(self) -> bool:
        # Whoever was merely blocked, or had to wait for the processor, has a tick to make up for.
        call = self._loop.call
        if call is None:
            return False
        due: float = call.getTime()  # type: ignore[misc]  # Twisted says that it were no method
        return due - float(self.reactor.seconds()) <= 2 * self._tick

    def _start(self) -> None:
        # The first tick comes a tick from now: nothing can be due before.
        self._loop.start(self._tick, now=False).addErrback(
            lambda failure: _log.failure("the tick stopped; this is a bug", failure)
        )

    def _ticked(self) -> None:
        raw = self.raw()
        self.late = max(0.0, raw - self.ticked_at - self._tick)
        self.ticked_at = raw
        now = self.running.ticked(raw)
        self._look_for_sleep(now)
        self._handed_out.append(self.wheel.due(now))
        self._hand_out()
        if self._on_tick is not None:
            self._on_tick(now)
        if self._users == 0:
            self._loop.stop()

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

    def _look_for_sleep(self, now: float) -> None:
        before, self._slept_before = self._slept_before, self._slept()
        if self._on_wake is not None and self._slept_before - before > _SLEPT:
            self._on_wake(now)

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
