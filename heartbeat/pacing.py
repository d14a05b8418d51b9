"""How fast one connection may talk, and how fast all of its address.

Counts in small batches, so that a message costs a subtraction. Whatever we ourselves were late by is credited: what
piled up in the meantime is no haste of the peer's.
"""

from __future__ import annotations

from heartbeat.arrivals import Account, message_rate
from heartbeat.core.pace import Pace
from heartbeat.core.running import RunningTime
from heartbeat.core.settings import Settings

__all__ = ["Pacing"]

# What piled up comes within so many seconds of ours, and is not worth more than so many of lateness.
_PILED_UP = 2.0
_MOST_LATE = 10.0

# So many messages are counted at once, where the rate is high enough for that to be little.
_BATCH = 8


class Pacing:
    """One connection's pace, with two seconds' worth at once. `left` is what is counted already and has not come."""

    __slots__ = ("_account", "_batch", "_excess", "_excess_until", "_late", "_pace")

    def __init__(self, settings: Settings, account: Account | None, running: RunningTime, now: float) -> None:
        rate = message_rate(settings)
        self._pace = Pace(rate, max(1.0, 2 * rate), now)
        self._account = account
        self._batch = max(1, min(_BATCH, int(rate / 10)))
        self._late = running.late
        # What may have piled up while we ourselves were late, and until when it is believed to have.
        self._excess = self._excess_until = 0.0

    def count(self, left: int, running: RunningTime, now: float) -> tuple[int, float, float]:
        """`left`, below 0, is less than nothing: what is left now, and the seconds owed, by all and by this alone."""
        if running.late > self._late:
            self._excess = min(_MOST_LATE, running.late - self._late)
            self._excess_until = now + _PILED_UP
            self._late = running.late
        count = self._batch - left - 1
        own = self._pace.take(now, count)
        shared = 0.0 if self._account is None else self._account.messages.take(now, count)
        if own and self._excess and now <= self._excess_until:
            credit = min(own, self._excess)
            self._excess -= credit
            own -= credit
            shared = max(0.0, shared - credit)
            self.credit(credit * self._pace.rate)
        return self._batch - 1, max(own, shared), own

    def credit(self, count: float) -> None:
        """So many more are not counted: a replay, which the peer may well send at once."""
        self._pace.credit(count)
