"""What really befell each link during a soak, and whether an end was right to say that nothing comes any more.

A conviction is right only where the link was interrupted, or the client stood still, for most of what must pass
before one. Everything is told with its moment, in any order; it is judged a while later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import inf
from typing import Any

from faults.soak_plan import INTERRUPT
from heartbeat.core.settings import Timing

__all__ = ["Truth"]

#: An interval of running time, in seconds.
Interval = tuple[float, float]

#: Seconds for which what befell a link is remembered; ports are used again some time.
_REMEMBERED = 180.0

#: Seconds from a conviction by the server until its client knows of that: the close, and what held it back.
_TOLD_WITHIN = 30.0

#: These end no link.
_HARMLESS = frozenset({"pause", "delay", "slow"})


class Truth:
    """All that is known of the links of one soak, with this timing.

    An end is right to convict where nothing can have come for as long as the shortest deadline and the probe take, but
    for a second: a ping may be on its way when it begins. The server is right only where that was so for all of `watch`
    and the probe, but for the `interval` in which a client says nothing anyway.
    """

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._on_port: defaultdict[tuple[str, int], list[tuple[Interval, str]]] = defaultdict(list)
        self._stops: defaultdict[int, list[Interval]] = defaultdict(list)
        #: Of the lab's own programs: when each was too busy, or had too little of the processor, to go on.
        self._late: defaultdict[str, list[Interval]] = defaultdict(list)
        self._restarts: list[Interval] = []
        self._convicted: defaultdict[str, list[float]] = defaultdict(list)

    # What is told.

    def befell(self, event: dict[str, Any]) -> None:
        """The proxy has done something to a link."""
        interval = event["at"], inf if event["until"] is None else event["until"]
        for end, port in (("client", event["near"]), ("server", event["far"])):
            self._on_port[end, port].append((interval, event["kind"]))

    def stopped(self, process: int, begin: float, end: float) -> None:
        """A process of clients stood still."""
        self._stops[process].append((begin, end))

    def went_on(self, process: int, at: float) -> None:
        """A process that stood still goes on."""
        begin, _ = self._stops[process].pop()
        self._stops[process].append((begin, at))

    def was_late(self, program: str, event: dict[str, Any]) -> None:
        """A program of the lab could not go on."""
        self._late[program].append((event["at"] - event["seconds"], event["at"]))

    def server_left(self, at: float) -> None:
        """The server is being restarted."""
        self._restarts.append((at, inf))

    def server_is_back(self, at: float) -> None:
        """It is there again."""
        begin, _ = self._restarts.pop()
        self._restarts.append((begin, at))

    def convicted(self, client: str, at: float) -> None:
        """The server has convicted a client, or that the server: the end of the link needs no other reason."""
        self._convicted[client].append(at)

    def forget(self, before: float) -> None:
        """What ended so long ago explains nothing any more."""
        before -= _REMEMBERED
        for program, intervals in self._late.items():
            self._late[program] = [one for one in intervals if one[1] > before]
        for key, told in tuple(self._on_port.items()):
            self._on_port[key] = [one for one in told if one[0][0] > before]
            if not self._on_port[key]:
                del self._on_port[key]
        for client, moments in tuple(self._convicted.items()):
            self._convicted[client] = [at for at in moments if at > before]
            if not self._convicted[client]:
                del self._convicted[client]

    # What is asked.

    def client_was_right(self, port: int, at: float) -> bool:
        """Whether a client that convicted the server at this moment, on the link of this port, was."""
        timing = self._timing
        silence = [*self._interruptions("client", port), *self._late["server"], *self._late["proxy"], *self._restarts]
        return _covered(silence, at - timing.pinging_bound - 1, at) >= timing.timeout_min + timing.probe - 1

    def server_was_right(self, port: int, process: int, at: float) -> bool:
        """Whether the server that convicted a client of this process, on the link of this port, was."""
        timing = self._timing
        silence = [*self._interruptions("server", port), *self._stops[process]]
        silence += [*self._late["proxy"], *self._late[f"clients {process}"]]
        needed = timing.watch + timing.probe - timing.interval - 2
        return _covered(silence, at - timing.watching_bound - 1, at) >= needed

    def is_explained(self, client: str, port: int, at: float) -> bool:
        """Whether there is a reason why the client's link of this port has ended; a conviction is judged by itself."""
        ending = any(kind not in _HARMLESS and begin <= at for (begin, _), kind in self._on_port["client", port])
        convicted = any(at - _TOLD_WITHIN <= moment <= at for moment in self._convicted[client])
        return ending or convicted or any(begin <= at <= end for begin, end in self._restarts)

    def stood_still(self, process: int, begin: float, end: float) -> float:
        """Seconds of this time for which the server, or this process of clients, did: no time of theirs has passed."""
        return _covered([*self._stops[process], *self._late[f"clients {process}"], *self._late["server"]], begin, end)

    def _interruptions(self, end: str, port: int) -> Iterable[Interval]:
        return [interval for interval, kind in self._on_port[end, port] if kind in INTERRUPT]


def _covered(intervals: Iterable[Interval], begin: float, end: float) -> float:
    """How much of the time from `begin` to `end` lies in these."""
    covered, upto = 0.0, begin
    for left, right in sorted(intervals):
        first, last = max(left, upto), min(right, end)
        if last > first:
            covered += last - first
            upto = last
    return covered
