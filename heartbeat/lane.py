"""Those who talked too fast, in one lane: what they send together is read at a pace of its own.

Each of them alone may keep to his rate, and a thousand would still take all the time there is. So who was slowed down
is read from again when it is his turn, one after the other and a little at a time: whoever keeps to his pace does not
wait behind them. Who waits here is not judged for his silence, which is our own doing.
"""

from __future__ import annotations

from typing import Protocol

from heartbeat.core.pace import Pace
from heartbeat.ticker import Alarm, Ticker

__all__ = ["Lane", "Waiting"]

# All in the lane may send together what so many connections may send, of which so many seconds' worth at once.
_TALKERS = 10
_AT_ONCE = 0.05

# The next one's turn comes so many seconds after that of the last: in between others are read from.
_STEP = 0.01


class Waiting(Protocol):
    """Whoever is not read from, and may be again."""

    def go_on(self) -> None:
        """It is its turn."""
        ...


class Lane:
    """That of one server, where a connection may send `rate` messages a second."""

    def __init__(self, rate: float) -> None:
        rate *= _TALKERS
        self._pace = Pace(rate, max(1.0, rate * _AT_ONCE), 0.0)
        self._waiting: dict[Waiting, None] = {}
        self._alarm: Alarm | None = None

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def wait(self, one: Waiting, ticker: Ticker) -> None:
        """Have it go on when it is its turn."""
        self._waiting[one] = None
        if self._alarm is None:
            self._alarm = Alarm(ticker, self._turn)
        self._alarm.arm_before(ticker.now() + _STEP)

    def left(self, one: Waiting) -> None:
        """It waits no more, if it did."""
        self._waiting.pop(one, None)
        if not self._waiting and self._alarm is not None:
            self._alarm.disarm()

    def take(self, now: float, count: int) -> None:
        """So many messages have come of those who were slowed down."""
        self._pace.take(now, count)

    def _turn(self, now: float) -> None:
        if self._pace.has_room(now):
            one = next(iter(self._waiting))
            del self._waiting[one]
            # What it sends is counted when it comes: until then as one, or all would go on before any is read from.
            self._pace.take(now)
            one.go_on()
        if self._waiting and self._alarm is not None:
            self._alarm.arm_before(now + _STEP)
