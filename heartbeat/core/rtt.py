"""How long an answer may take: RFC 6298 over the round trips seen. Never reads a clock."""

from __future__ import annotations

__all__ = ["RoundTrip"]


class RoundTrip:
    """The smoothed round trip of one link, in seconds, and the deadline that follows from it.

    `last` is the newest sample; `srtt` and `rttvar` are RFC 6298's, None before the first sample.
    """

    __slots__ = ("last", "rttvar", "srtt")

    def __init__(self) -> None:
        self.last: float | None = None
        self.srtt: float | None = None
        self.rttvar = 0.0

    def sample(self, seconds: float) -> None:
        """Take one round trip into account (RFC 6298, section 2.2 and 2.3)."""
        self.last = seconds
        if self.srtt is None:
            self.srtt = seconds
            self.rttvar = seconds / 2
            return
        # "The computation ... MUST be computed in this order": RTTVAR uses the old SRTT.
        self.rttvar = 0.75 * self.rttvar + 0.25 * abs(self.srtt - seconds)
        self.srtt = 0.875 * self.srtt + 0.125 * seconds

    def timeout(self, tick: float, low: float, high: float) -> float:
        """Seconds to wait for an answer: `SRTT + max(tick, 4 RTTVAR)` within `low` and `high`; `high` untried."""
        if self.srtt is None:
            return high
        return min(high, max(low, self.srtt + max(tick, 4 * self.rttvar)))
