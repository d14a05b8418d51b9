"""What a server refuses: counted by the reason, and said in the log as often as somebody can read.

A stranger decides how often something is refused; he does not decide how long the log gets.
"""

from __future__ import annotations

from collections import Counter
from math import inf

from twisted.logger import Logger

__all__ = ["QUIET", "Refusals", "readable"]

#: After a line about one reason its next ones are only counted, for so many seconds.
QUIET = 60.0

# What a peer may have put into it: as much as one can read, and no line that looks like another's.
_LONGEST = 200

_log = Logger()


class Refusals:
    """The refusals of one server. `counts` has them by the reason: the setting's name where there is one."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        # Since when each is only counted, and how many there were.
        self._quiet: dict[str, tuple[float, int]] = {}

    def refused(self, reason: str, peer: object, why: str, now: float) -> None:
        """Count one, at `now` (running seconds); the first of its kind is told of with its peer."""
        self.counts[reason] += 1
        since, more = self._quiet.get(reason, (-inf, 0))
        if now - since < QUIET:
            self._quiet[reason] = (since, more + 1)
            return
        # Where nobody is connected no tick has passed, and told of them.
        self._tell(reason, more)
        self._quiet[reason] = (now, 0)
        _log.info("{peer}: {why}", peer=readable(peer), why=readable(why), reason=reason)

    def ticked(self, now: float) -> None:
        """A tick has passed: say how many more there were, once a minute."""
        for reason, (since, more) in tuple(self._quiet.items()):
            if now - since < QUIET:
                continue
            if not more:
                del self._quiet[reason]
                continue
            self._quiet[reason] = (now, 0)
            self._tell(reason, more)

    def _tell(self, reason: str, more: int) -> None:
        if more:
            _log.info("refused {count} more since then: {reason}", count=more, reason=reason)


def readable(text: object) -> str:
    """Text that may hold what a peer wrote, for a log: one line of visible characters, not too long."""
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text))
    return shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "…"
