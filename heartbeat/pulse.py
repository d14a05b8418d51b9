"""A process's sense of time: its clocks, and the one tick for all its ends.

The tick is the reactor's `LoopingCall`; it lives from the first who needs it to the last. Nothing here trusts the
reactor's clock, which is wall time on Twisted's own reactors: `poke` revives timers that a step of the system clock
has buried.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, ClassVar, Protocol
from weakref import WeakValueDictionary

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from heartbeat import watchdog
from heartbeat.core.running import RunningTime

__all__ = ["Beaten", "Pulse", "make_monotonic", "slept"]

_log = Logger()

# A machine that slept for less may as well have been busy.
_SLEPT = 2.0


def _raw_clock(reactor: Any) -> Callable[[], float]:
    """Monotonic seconds: the system's for the global reactor; for another its `monotonic`, or else its own."""
    if reactor is sys.modules.get("twisted.internet.reactor"):
        return time.monotonic
    clock: Callable[[], float] = getattr(reactor, "monotonic", None) or reactor.seconds
    return clock


def make_monotonic(reactor: Any) -> None:
    """Have the reactor time its timers by a clock that nobody sets, as long as it has no timer yet.

    Only where the process is ours: an application's own code may expect wall time of its reactor.
    """
    if not reactor.getDelayedCalls():
        reactor.seconds = time.monotonic


def _sleep_clock(reactor: Any) -> Callable[[], float]:
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


class Beaten(Protocol):
    """An end that needs the tick."""

    def ticked(self, now: float) -> None:
        """A tick has passed (running seconds)."""
        ...

    def woke(self, now: float) -> None:
        """The machine has slept; called before `ticked`."""
        ...

    def set_anew(self) -> int:
        """The reactor's clock has jumped: set every timer anew; returns how many there were."""
        ...


class Pulse:
    """The tick of all ends that have this reactor and this `tick` (seconds), and their running time.

    They stand still together, and so each may know by the same tick how late it was; a process with a thousand
    clients has one timer for that, not a thousand.
    """

    # By the reactor's identity: a reactor need not be hashable, and each pulse keeps its own.
    _known: ClassVar[WeakValueDictionary[tuple[int, float], Pulse]] = WeakValueDictionary()

    def __init__(self, reactor: Any, tick: float) -> None:
        self.reactor: Any = reactor
        #: Monotonic seconds, which `running` translates.
        self.raw = _raw_clock(reactor)
        self.running = RunningTime(tick, self.raw())
        #: Raw time of the latest tick; the watchdog's thread reads it.
        self.ticked_at = self.raw()
        #: By how many seconds the latest tick was late.
        self.late = 0.0
        self._tick = tick
        self._slept = _sleep_clock(reactor)
        self._slept_before = self._slept()
        # In the order in which they came.
        self._beaten: dict[Beaten, None] = {}
        self._loop = LoopingCall(self._ticked)
        self._loop.clock = reactor

    @classmethod
    def of(cls, reactor: Any, tick: float) -> Pulse:
        """The one of this reactor with this tick."""
        key = (id(reactor), tick)
        pulse = cls._known.get(key)
        if pulse is None:
            pulse = cls._known[key] = cls(reactor, tick)
        return pulse

    @property
    def watched(self) -> bool:
        """Whether the reactor's clock may jump away from under the tick, so that a watchdog is needed."""
        return self.raw is time.monotonic and self.reactor.seconds is not time.monotonic

    def join(self, end: Beaten) -> None:
        """One more end needs the tick."""
        self._beaten[end] = None
        if len(self._beaten) > 1:
            return
        raw = self.raw()
        self.running.resume(raw)
        self.ticked_at = raw
        self._slept_before = self._slept()
        if not self._loop.running:
            self._start()
        if self.watched:
            watchdog.watch(self)

    def leave(self, end: Beaten) -> None:
        """It does not need it any more."""
        del self._beaten[end]
        if not self._beaten:
            watchdog.unwatch(self)
            if self._loop.call is not None:
                self._loop.stop()
            # Else this is the tick itself: it sees to that at its end, for it may be needed again before.

    def poke(self) -> None:
        """Set every timer of ours anew, if the reactor's clock has jumped, and they lie an hour ahead."""
        if not self._beaten or self._is_about_to_tick():
            return
        if self._loop.running:
            self._loop.stop()
        self._start()
        count = 1 + sum(end.set_anew() for end in tuple(self._beaten))
        _log.warn("the system clock stepped back: {count} timer(s) set anew", count=count)

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
        now, woke = self.running.ticked(raw), self._has_slept()
        for end in tuple(self._beaten):
            # One before it may have had it leave.
            if end in self._beaten:
                try:
                    if woke:
                        end.woke(now)
                    end.ticked(now)
                except Exception:  # noqa: BLE001  # whatever it is: the others' timers come with this tick too
                    _log.failure("a tick failed; this is a bug")
        if not self._beaten:
            self._loop.stop()

    def _has_slept(self) -> bool:
        before, self._slept_before = self._slept_before, self._slept()
        return self._slept_before - before > _SLEPT
