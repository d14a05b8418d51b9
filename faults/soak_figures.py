"""What a program of the soak says of itself: its memory, descriptors and objects, and how late its reactor was.

One line of JSON each, for the soak to read. Looks, and changes nothing: whoever wants garbage collected before asks.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

from twisted.internet.task import LoopingCall

__all__ = ["Lateness", "own_figures", "tell"]

#: A reactor, or a loop, that is late by more has stood still, which others may have noticed.
LATE = 0.3

_GRAIN = 0.25


def tell(event: str, **more: Any) -> None:
    """A line for the soak, past whatever has taken standard output for its log."""
    stdout: Any = sys.__stdout__
    stdout.write(json.dumps({"event": event, "at": time.monotonic(), **more}) + "\n")
    stdout.flush()


def own_figures() -> dict[str, int]:
    """This process's resident memory (KiB), open descriptors, what the garbage collector knows, and all blocks.

    The blocks are what Python has given out, of whatever kind: memory that grows without them was only cut to pieces.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    rss = int(status.partition("VmRSS:")[2].split()[0])
    return {
        "rss": rss,
        "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "objects": len(gc.get_objects()),
        "blocks": sys.getallocatedblocks(),
    }


class Lateness:
    """How late the reactor's timers were; what was too late is told at once, the longest when it is asked for."""

    def __init__(self, reactor: Any) -> None:
        self._longest = 0.0
        self._looked = time.monotonic()
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    def start(self) -> None:
        """From now on."""
        self._looked = time.monotonic()
        self._looking.start(_GRAIN, now=False)

    def stop(self) -> None:
        """No more."""
        self._looking.stop()

    def take(self) -> float:
        """The longest, in seconds, since it was taken before."""
        longest, self._longest = self._longest, 0.0
        return round(longest, 3)

    def _look(self) -> None:
        now = time.monotonic()
        late = now - self._looked - _GRAIN
        self._looked = now
        self._longest = max(self._longest, late)
        if late > LATE:
            tell("late", seconds=late)
