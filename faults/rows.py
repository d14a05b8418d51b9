"""What the rows about hosts, clocks, disks, crowds and proxies share: timings, servers, how a conviction is judged."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from faults.lab import HERE, Clients, Event, Failed, Lab, Ledger, Seen, Server, Told, convictions, now
from faults.storm import PING_FRAME
from heartbeat import Settings

__all__ = [
    "DEFAULTS",
    "LATE",
    "QUICK",
    "START",
    "Starved",
    "Trial",
    "back_within",
    "crowd",
    "goes_on",
    "is_there",
    "kept",
    "newcomer",
    "nothing_of",
    "ready",
    "serve",
]

#: What an operator gets who says nothing but how often.
DEFAULTS = Settings(interval=1.0)
#: Rows about something else than the time at the defaults need not wait for it.
QUICK = Settings(interval=0.5, timeout_min=3.0, timeout_max=3.0, probe=3.0)
#: Seconds after a bound in which something is still waited for, so that what is late is seen as late.
LATE = 10.0
#: Seconds that many programs may take to start beside each other.
START = 90.0

_TIMES = ("timeout_min", "timeout_max", "probe")


def serve(lab: Lab, timing: Settings, *options: object, settings: dict[str, Any] | None = None, **how: Any) -> Server:
    """A server with the timing of these settings, and with others besides, that listens."""
    times = {name: getattr(timing, name) for name in _TIMES}
    server = lab.server("--interval", timing.interval, *options, settings=times | (settings or {}), **how)
    server.url(START)
    return server


def crowd(lab: Lab, url: str, count: int) -> Told:
    """So many pages: they beat, convict nobody, and come back the moment they are cut. `cuts` are others' doing."""
    return lab.program([sys.executable, "-P", HERE / "storm.py", url, count])


def ready(*groups: Clients) -> None:
    """Wait until all are open, answered, and have got messages."""
    for clients in groups:
        clients.healthy(START)


def newcomer(url: str) -> str:
    """How somebody new is received: the head of the answer, and `pong` where his first beat is answered; or nothing."""
    parts = urlsplit(url)
    said = b""
    try:
        with socket.create_connection((parts.hostname, parts.port), timeout=10.0) as connection:
            connection.sendall(
                f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            connection.sendall(PING_FRAME)
            while b"pong" not in said and (data := connection.recv(4096)):
                said += data
    except OSError:
        # Dropped, with or without a word.
        pass
    return said.decode("latin-1")


def back_within(settings: Settings, attempts: int = 1) -> float:
    """The longest that a client takes to be back whose attempt of this number is the first that can succeed."""
    delays = [settings.delays[min(at, len(settings.delays) - 1)] for at in range(attempts)]
    return 1.5 * sum(delays) + settings.open_timeout


def is_there(clients: Clients, since: float) -> None:
    """Wait until each has been answered and has got a message since then."""
    for name in clients.names:
        for kind in ("pong", "message"):
            clients.first(kind, since=since, client=name)


def goes_on(clients: Clients, since: float) -> None:
    """The same, on the connection that it had."""
    is_there(clients, since)
    nothing_of(("closed", "dead", "reconnecting"), clients, since=since)


def nothing_of(kinds: tuple[str, ...], *programs: Told, since: float) -> None:
    """Raises Failed where any of these has happened."""
    told = [event for program in programs for event in program.events(*kinds, since=since)]
    if told:
        raise Failed(f"{len(told)} unexpected events, the first: {told[0].name} of {told[0].client} {told[0].detail}")


class Starved:
    """How long these programs have been ready to run, from now on, while others had the processor.

    Bounds are in running time of one's own. On a machine that has nothing else to do this is nothing, or next to it.
    """

    def __init__(self, *programs: Told) -> None:
        self._programs = programs
        self._before = self._waited()

    @property
    def seconds(self) -> float:
        """Up to now."""
        return self._waited() - self._before

    def _waited(self) -> float:
        # Linux, sched-stats.rst: the second is "time spent waiting to run on a runqueue", in nanoseconds.
        stats = (Path(f"/proc/{one.pid}/schedstat").read_text(encoding="ascii") for one in self._programs)
        return sum(int(text.split()[1]) for text in stats) / 1e9


class Trial:
    """From a cause, which is now, to the convictions by one end: `found`, after `seconds`, which have a `bound`.

    What is later than that is excused by as much as the end had no processor; `excused` says by how much.
    """

    def __init__(self, judge: Told, bound: float) -> None:
        self.judge = judge
        self.bound = bound
        self.cause = now()
        self.found: list[Event] = []
        self.seconds = self.excused = 0.0
        self._starved = Starved(judge)

    def stop(self, end: Told) -> None:
        """Stop this program (SIGSTOP), which is the cause: whose last word may have come until then."""
        end.pause()
        self.cause = now()

    def verdict(self, *names: str | None) -> None:
        """Wait until each of these clients (None: the only one) is found dead, or has found its server dead."""
        deadline = self.cause + self.bound + LATE
        for name in names:
            self.found.append(self.judge.first("dead", since=self.cause, client=name, timeout=deadline - now()))
        self.seconds = max(event.at for event in self.found) - self.cause
        if self.seconds > self.bound:
            self.excused = self._starved.seconds


def kept(
    *ledgers: Ledger,
    ends: Sequence[Told],
    note: str,
    trials: Sequence[Trial] = (),
    noticed: tuple[float, float] | None = None,
    cuts: int = 0,
    recovered: float | None = None,
    recovery_bound: float | None = None,
) -> Seen:
    """What was seen in all: the trial that was nearest to its bound, the messages, and the convictions of these ends.

    Those that no trial was about are false, and `cuts` of other connections are too. What was `noticed` otherwise has
    its seconds and its bound. Raises Failed where a session was not resumed, or a message not taken.
    """
    anew, refused = sum(one.anew for one in ledgers), sum(one.refused for one in ledgers)
    if anew or refused:
        raise Failed(f"{anew} connections had to begin another session, {refused} messages were refused")
    note = f"{note}, {sum(one.sent for one in ledgers)} messages"
    right = [event for trial in trials for event in trial.found]
    false = [event for event in convictions(*ends) if event not in right]
    if false:
        when = f"{false[0].at - trials[0].cause:+.1f} s from the cause" if trials else "without a cause"
        note += f"; falsely convicted first: {false[0].client}, {when}, {false[0].detail}"
    times = [(trial.seconds, trial.bound + trial.excused) for trial in trials] + ([noticed] if noticed else [])
    detected, bound = max(times, key=lambda time: time[0] - time[1], default=(None, None))
    excused = max((trial.excused for trial in trials), default=0.0)
    if excused:
        note += f"; {excused:.1f} s without a processor"
    return Seen(
        detected=detected,
        bound=bound,
        false_convictions=len(false) + cuts,
        lost=sum(one.lost for one in ledgers),
        doubled=sum(one.doubled for one in ledgers),
        recovered=recovered,
        recovery_bound=recovery_bound,
        note=note,
    )
