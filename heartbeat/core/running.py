"""Our own running time: monotonic time less the time by which we ourselves were late.

A deadline kept in it shifts by itself when this process stood still, in every state and for every
link at once, so a stall of ours never convicts a peer. It never goes backwards, and never reads a
clock: the raw monotonic time is an argument.
"""

from __future__ import annotations

__all__ = ["RunningTime"]


class RunningTime:
    """Translates raw monotonic seconds to running seconds, from the lateness of a tick that should come regularly.

    `late` is the sum of what was left out so far, `stalls` counts the occasions: a round trip during
    which `stalls` changed says nothing about the network.
    """

    __slots__ = ("_due", "_told", "late", "stalls", "tick")

    def __init__(self, tick: float, raw: float) -> None:
        self.tick = tick
        self.late = 0.0
        self.stalls = 0
        self._due = raw + tick
        self._told = raw

    def at(self, raw: float) -> float:
        """Running seconds at `raw`.

        Lateness over one tick is left out as soon as anybody asks for the time, because after a
        stall the sockets may be read before the tick itself runs.
        """
        lateness = raw - self._due
        if lateness > self.tick:
            self.late += lateness
            self.stalls += 1
            self._due = raw
        now = raw - self.late
        # What was told while the lateness was still within a tick stands, until time has caught up with it.
        if now > self._told:  # noqa: PLR1730  # `max` takes as long as all the rest
            self._told = now
        return self._told

    def ticked(self, raw: float) -> float:
        """Say that the tick ran; returns the running time."""
        now = self.at(raw)
        self._due = raw + self.tick
        return now

    def resume(self, raw: float) -> None:
        """Say that ticks start (again) now: what lay between was no stall, nobody was ticking."""
        self._due = raw + self.tick
