"""When to try again: a few attempts, spread wide, so that a crowd does not come back in step.

Chance comes in by the door: every method that needs it takes `u`, a number from [0, 1).
"""

from __future__ import annotations

__all__ = ["Backoff"]


class Backoff:
    """The attempts of one client to get back.

    `attempt` is the number of the latest one, 0 while the link is stable.
    """

    __slots__ = ("_attempts", "_delays", "attempt")

    def __init__(self, delays: tuple[float, ...], attempts: int) -> None:
        self._delays = delays
        self._attempts = attempts
        self.attempt = 0

    def next_delay(self, u: float) -> float | None:
        """Count one attempt and return the seconds to wait before it; None when all are used up.

        The nominal delay is multiplied by U(0.5, 1.5), after any cap: the last nominal delay is the cap
        and keeps its jitter, or a crowd that reached it would come back in step.
        """
        if self.attempt >= self._attempts:
            return None
        nominal = self._delays[min(self.attempt, len(self._delays) - 1)]
        self.attempt += 1
        return nominal * (0.5 + u)

    def stable(self) -> None:
        """Start counting afresh: the link was accepted, a beat was answered and it stayed up."""
        self.attempt = 0

    @staticmethod
    def drained(shortest: float, longest: float, window: float, u: float) -> float:
        """Seconds to wait after a `drain`, drawn from its window, at most half of what the session is kept for."""
        longest = min(longest, window / 2)
        shortest = min(shortest, longest)
        return shortest + (longest - shortest) * u

    @staticmethod
    def restarted(u: float) -> float:
        """Seconds to wait after a close 1012 or 1013 that no `drain` announced: U(1, 10)."""
        return 1.0 + 9.0 * u
