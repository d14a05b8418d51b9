"""How fast one connection may talk, and how fast all of its address.

Counts in small batches, so that a message costs a subtraction. Whatever we ourselves were late by is credited: what
piled up in the meantime is no haste of the peer's. Who was too fast is in haste until he has kept to his rate for a
while: so long he counts in the lane of those who were slowed down, and little of his comes at once. Of whom nothing
is known yet each message is counted alone.
"""

from __future__ import annotations

from heartbeat.arrivals import Account, Arrivals
from heartbeat.core.pace import Pace
from heartbeat.core.running import RunningTime

__all__ = ["Pacing"]

# What piled up comes within so many seconds of ours, and is not worth more than so many of lateness.
_PILED_UP = 2.0
_MOST_LATE = 10.0

# So many messages are counted at once, where the rate is high enough for that to be little.
_BATCH = 8

# So many seconds' worth may come at once, and so many of who is in haste, or comes from where a flood came from.
_AT_ONCE = 2.0
_IN_HASTE = 0.3

# He has rested who has kept to his rate for so many seconds, while he was read from.
_RESTED = 2.0


class Pacing:
    """One connection's pace. `left` is what is counted already and has not come; `hasty`: he was too fast of late.

    `is_first`: he is known, keeps to his pace, and does not wait behind those who do not.
    """

    __slots__ = (
        "_account",
        "_at_once",
        "_batch",
        "_excess",
        "_excess_until",
        "_in_haste",
        "_lane",
        "_late",
        "_pace",
        "_read_since",
        "hasty",
        "is_first",
    )

    def __init__(self, arrivals: Arrivals, account: Account | None, running: RunningTime, now: float) -> None:
        rate = arrivals.message_rate
        self._at_once, self._in_haste = max(1.0, _AT_ONCE * rate), max(1.0, _IN_HASTE * rate)
        self._pace = Pace(rate, self._in_haste if arrivals.has_flooded(account, now) else self._at_once, now)
        self._account = account
        self._lane = arrivals.lane
        self._batch = 1
        self._late = running.late
        # What may have piled up while we ourselves were late, and until when it is believed to have.
        self._excess = self._excess_until = 0.0
        # Since when he has been read from without a pause.
        self._read_since = now
        self.hasty = self.is_first = False

    def known(self) -> None:
        """He is no stranger any more: count in batches."""
        self.is_first = True
        if self._batch == 1:
            self._batch = max(1, min(_BATCH, int(self._pace.rate / 10)))
            # The first one is paid for before it has come; what may come at once is not to be less for that.
            self._pace.credit(self._batch - 1)

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
        if self.hasty:
            self._lane.take(now, count)
        if own:
            self._haste()
        elif self._pace.burst < self._at_once and now - self._read_since >= _RESTED:
            self._rest()
        return self._batch - 1, max(own, shared), own

    def read_again(self, now: float) -> None:
        """He was not read from for a while, and is now."""
        self._read_since = now

    def too_many(self, seconds: float) -> int:
        """How many messages are so many seconds' worth."""
        return int(seconds * self._pace.rate)

    def credit(self, count: float) -> None:
        """So many more are not counted: a replay, which the peer may well send at once."""
        self._pace.credit(count)

    def _haste(self) -> None:
        if not self.hasty:
            self.hasty = True
            self._pace.bound(self._in_haste)

    def _rest(self) -> None:
        self.hasty = False
        self._pace.burst = self._at_once
