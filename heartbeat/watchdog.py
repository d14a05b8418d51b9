"""A small thread that notices when the reactor's timers have stopped, and pokes it awake.

Twisted's reactors time their timers by the wall clock. When that steps back an hour, every timer
waits an hour longer; a call from another thread still gets through. There is one thread a process,
while anything needs it, and none under a reactor whose clock is monotonic.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

__all__ = ["Watched", "unwatch", "watch"]


class Watched(Protocol):
    """What can be watched: it says when it ticked last, in raw monotonic seconds, and can be set going again."""

    reactor: Any
    ticked_at: float

    def poke(self) -> None:
        """Called in the reactor's thread when the tick fails to come, or came late."""
        ...


#: A tick that is late by this many seconds is looked into.
PATIENCE = 2.0

_lock = threading.Lock()
_watched: set[Watched] = set()
_changed = threading.Event()
_thread: threading.Thread | None = None


def watch(pulse: Watched) -> None:
    """Begin to watch a pulse that has just started."""
    global _thread  # noqa: PLW0603  # one thread a process is the point
    with _lock:
        _watched.add(pulse)
        _changed.clear()
        if _thread is None:
            _thread = threading.Thread(target=_run, name="heartbeat-watchdog", daemon=True)
            _thread.start()


def unwatch(pulse: Watched) -> None:
    """Stop watching a pulse that has stopped."""
    with _lock:
        _watched.discard(pulse)
        if not _watched:
            _changed.set()


def late(ticked_at: float, now: float) -> bool:
    """Whether a tick that came last at `ticked_at` is so late that its timer may be buried."""
    return now - ticked_at > PATIENCE


def _run() -> None:
    global _thread  # noqa: PLW0603  # as above
    poked: dict[Watched, float] = {}
    while True:
        # An Event, not a sleep: it waits on the monotonic clock, and ends with the last pulse.
        _changed.wait(PATIENCE / 2)
        with _lock:
            if not _watched:
                _thread = None
                return
            pulses = tuple(_watched)
        poked = {pulse: poked[pulse] for pulse in pulses if pulse in poked}
        for pulse in pulses:
            ticked_at = pulse.ticked_at
            # Once for each tick that fails to come. A reactor may merely be blocked: the pulse finds out for itself.
            if late(ticked_at, time.monotonic()) and poked.get(pulse) != ticked_at:
                poked[pulse] = ticked_at
                pulse.reactor.callFromThread(pulse.poke)
