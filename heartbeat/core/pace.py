"""How fast something may come: so many at once, then so many a second (a token bucket).

Whoever is over his pace owes time. Nothing is refused here: the owner asks how much is owed, and decides.
"""

from __future__ import annotations

from math import inf

__all__ = ["Pace"]


class Pace:
    """`rate` a second, `burst` at once, and `most` seconds are owed at most.

    Time is the owner's, in seconds, and does not run backwards.
    """

    __slots__ = ("_at", "_least", "_left", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float, most: float = inf) -> None:
        self.rate = rate
        self.burst = burst
        self._least = -most * rate
        self._left = burst
        self._at = now

    def take(self, now: float, count: float = 1) -> float:
        """So many have come: the seconds that are owed, 0 where they were within the pace."""
        left = self._left = max(self._least, self._at_most(now) - count)
        self._at = now
        return -left / self.rate if left < 0 else 0.0

    def has_room(self, now: float) -> bool:
        """Whether one more would be within the pace."""
        return self._at_most(now) >= 1

    def is_rested(self, now: float) -> bool:
        """Whether nothing of the past counts any more."""
        return self._at_most(now) >= self.burst

    def owes(self, now: float) -> float:
        """The seconds that are owed."""
        return max(0.0, -self._at_most(now) / self.rate)

    def bound(self, burst: float) -> None:
        """Have so many come at once from now on, and no more than that be left."""
        self.burst = burst
        self._left = min(self._left, burst)

    def credit(self, count: float) -> None:
        """Have so many not count: beyond the burst, too, for whoever could not know better."""
        self._left += count

    def _at_most(self, now: float) -> float:
        # A credit beyond the burst is kept until it is used.
        return max(self._left, min(self.burst, self._left + (now - self._at) * self.rate))
