"""The judge of a soak's links: each conviction, each end of a link and each silence, when all that explains it is told.

Keeps the counts and the sentences of what was wrong; what really befell the links is `soak_truth`'s.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from faults.soak_plan import number_of, process_of
from faults.soak_truth import Truth
from heartbeat.core.settings import Timing

__all__ = ["JUDGED_AFTER", "Judge"]

#: Seconds from what is to be judged to its judgement: the programs tell what they know in no order.
JUDGED_AFTER = 5.0

#: Seconds beyond the bound, for the closing of a socket and for our own reading of the clock.
_CLOSING, _LATE = 1.0, 1.0

#: Seconds between two clearings of what explains nothing any more.
_CLEARED_EVERY = 60.0


class Judge:
    """Of one run. `at(moment, step)` has something done later.

    `faults` are counted by their kind, `counts` by what was found, `noticed` are the seconds after which ends of silent
    links have noticed, `late` those for which each program stood still by itself. `silent` are those links that lost
    bytes without a word, each by its client and port, as long as one of its ends has not noticed it.
    """

    def __init__(self, timing: Timing, at: Callable[[float, Callable[[], object]], object]) -> None:
        self.truth = Truth(timing)
        self.bound = max(timing.pinging_bound, timing.watching_bound)
        self.faults: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.noticed: list[float] = []
        self.silent: set[tuple[int, int]] = set()
        self.late: defaultdict[str, list[float]] = defaultdict(list)
        self._at = at
        self._began = 0.0

    def begin(self, now: float) -> None:
        """The faults begin."""
        self._began = now
        self._clear(now)

    def _clear(self, now: float) -> None:
        self.truth.forget(now)
        self._at(now + _CLEARED_EVERY, lambda: self._clear(now + _CLEARED_EVERY))

    def _found(self, what: str, at: float, sentence: str) -> None:
        self.counts[what] += 1
        self.wrong.append(f"{at - self._began:.1f} s: {sentence}")

    # What is said: by the program of this name, in this event.

    def dead(self, name: str, event: dict[str, Any]) -> None:
        """Somebody convicts the other end."""
        self.counts["convicted by the server" if name == "server" else "convicted by clients"] += 1
        self.truth.convicted(event["client"] or "", event["at"])
        self._at(event["at"] + JUDGED_AFTER, lambda: self._judge(name, event))

    def _judge(self, name: str, event: dict[str, Any]) -> None:
        port, at = event["port"], event["at"]
        if name == "server":
            right = self.truth.server_was_right(port, process_of(event["address"]), at)
        else:
            right = self.truth.client_was_right(port, at)
        if not right:
            self._found("false", at, f"{name} convicted {event['client'] or '?'}: {event['said']}")

    def ended(self, name: str, event: dict[str, Any]) -> None:
        """A client's link has ended."""
        self.counts["ended"] += 1
        self._at(event["at"] + JUDGED_AFTER, lambda: self._look_why(event))

    def _look_why(self, event: dict[str, Any]) -> None:
        client, at = event["client"], event["at"]
        if not self.truth.is_explained(client, event["port"], at):
            self._found("unexplained", at, f"the link of {client} ended: {event['why']}")

    def befell(self, name: str, event: dict[str, Any]) -> None:
        """The proxy has done something to a link."""
        self.faults[event["kind"]] += 1
        self.truth.befell(event)
        if event["until"] is None:
            self.silent.add((event["client"], event["near"]))

    def noticed_by(self, name: str, event: dict[str, Any]) -> None:
        """An end of a link that lost bytes without a word has closed it."""
        if event["both"]:
            self.silent.discard((number_of(event["address"]), event["near"]))
        self._at(event["at"] + JUDGED_AFTER, lambda: self._judge_silence(event))

    def _judge_silence(self, event: dict[str, Any]) -> None:
        """In the time of those who were to notice."""
        at, address = event["at"], event["address"]
        after = event["after"] - self.truth.stood_still(process_of(address), at - event["after"], at)
        self.noticed.append(after)
        if after > self.bound + _CLOSING + _LATE:
            whose = f"the {event['side']} of s{number_of(address)}"
            self._found("outlived", at, f"{event['kind']}, noticed by {whose} after {after:.1f} s")

    def was_late(self, name: str, event: dict[str, Any]) -> None:
        """A program stood still by itself, or was stopped."""
        self.late[name].append(round(event["seconds"], 2))
        self.truth.was_late(name, event)
