"""A timing wheel: who has to be looked at when. Never a timer each, never a sorted list.

Arming costs a few dictionary look-ups. An entry sits in one place at most: armed again or disarmed, it
is taken out of the old one, so that the wheel keeps nothing of a connection that is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

__all__ = ["Entry", "Wheel"]

# The slot of an entry that is about to be handed out.
_READY = -1


class Entry(Protocol):
    """What can sit in a wheel: anything with a slot number, None while it sits nowhere."""

    slot: int | None


class Wheel:
    """Entries by the tick in which they come due; times in seconds.

    An entry is handed out at the first `due(now)` at or after its time: never early, and at most one
    tick late where `due` is called once a tick, in whatever phase.
    """

    __slots__ = ("_slots", "_turned", "tick")

    def __init__(self, tick: float, now: float) -> None:
        self.tick = tick
        # Each slot's entries with their exact times: a tick seldom falls on the end of a slot.
        self._slots: dict[int, dict[Entry, float]] = {}
        self._turned = int(now / tick)

    def __len__(self) -> int:
        """How many entries are armed."""
        return sum(map(len, self._slots.values()))

    def __bool__(self) -> bool:
        """Whether any is."""
        return bool(self._slots)

    def arm(self, entry: Entry, at: float) -> None:
        """Have `entry` handed out at `at`, and not at the time it was armed for before."""
        self.disarm(entry)
        slot = entry.slot = max(int(at / self.tick), self._turned)
        bucket = self._slots.get(slot)
        if bucket is None:
            self._slots[slot] = {entry: at}
        else:
            bucket[entry] = at

    def arm_before(self, entry: Entry, at: float) -> None:
        """Have `entry` handed out at `at` at the latest: an earlier appointment stands (it will look and re-arm)."""
        slot = entry.slot
        if slot is None or (slot >= int(at / self.tick) and self._slots[slot][entry] > at):
            self.arm(entry, at)

    def disarm(self, entry: Entry) -> None:
        """Have `entry` not handed out; nothing of it is kept, whenever its time would have been."""
        slot, entry.slot = entry.slot, None
        if slot is not None and slot != _READY:
            bucket = self._slots[slot]
            del bucket[entry]
            if not bucket:
                del self._slots[slot]

    def due(self, now: float) -> Iterator[Entry]:
        """Hand out every entry whose time has come; each is disarmed, and may be armed again meanwhile."""
        last = int(now / self.tick)
        if last - self._turned > len(self._slots):
            # Time leapt (a stall, a test): go by the slots that exist, not by the ticks that passed.
            slots = sorted(slot for slot in self._slots if slot <= last)
        else:
            slots = [slot for slot in range(self._turned, last + 1) if slot in self._slots]
        self._turned = max(self._turned, last)
        # Collected first: who is armed meanwhile for a time that has passed waits for the next tick.
        ready = []
        for slot in slots:
            bucket = self._slots[slot]
            for entry in [entry for entry, at in bucket.items() if at <= now]:
                del bucket[entry]
                entry.slot = _READY
                ready.append(entry)
            if not bucket:
                del self._slots[slot]
        for entry in ready:
            # Somebody before it may have disarmed it, or armed it anew.
            if entry.slot == _READY:
                entry.slot = None
                yield entry
