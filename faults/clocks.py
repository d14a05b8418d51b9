"""Rows: somebody sets the system clock, by an hour or by a second, forward and back again, under both ends at once.

Nobody is convicted by that, and a peer that really is gone afterwards is found as soon as ever: a clock that stepped
back an hour stops the timers of every reactor that trusts it.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any

from test_faults import SteppedClock

from faults import SERVE
from faults.lab import HERE, Event, Failed, Lab, Seen, Server, Told, fault, granted, now
from faults.rows import LATE, QUICK, START, Trial, back_within, kept, newcomer, ready, serve

__all__: list[str] = []

#: Pongs after a step that show that the beats go on; they would not come so soon if they only trickled.
BEATS = 8

_TIMES = {name: getattr(QUICK, name) for name in ("interval", "timeout_min", "timeout_max", "probe")}


class _Own:
    """Our own service, under twistd, and our own client script: both take a clock that nobody sets."""

    @staticmethod
    def server(lab: Lab, env: dict[str, str]) -> Server:
        return serve(lab, QUICK, env=env)

    @staticmethod
    def client(lab: Lab, url: str, name: str, env: dict[str, str]) -> Told:
        return lab.client(url, "--client-id", name, env=env)


class _Embedded:
    """Both ends in programs of somebody else's, on Twisted's own reactor, which trusts the system clock."""

    @staticmethod
    def server(lab: Lab, env: dict[str, str]) -> Server:
        command = [sys.executable, "-P", HERE / "embedded.py", json.dumps(_TIMES)]
        server = lab.enter_context(Server(command, cwd=lab.folder, env=env))
        server.url(START)
        return server

    @staticmethod
    def client(lab: Lab, url: str, name: str, env: dict[str, str]) -> Told:
        return lab.program([sys.executable, SERVE / "real_client.py", url, json.dumps({"client_id": name})], env=env)


def _steps(lab: Lab, ends: Any, seconds: int) -> Seen:
    clocks = SteppedClock(lab.folder, "server"), SteppedClock(lab.folder, "client")
    server = ends.server(lab, clocks[0].env)
    url = server.url()
    victim, judge = (ends.client(lab, url, name, clocks[1].env) for name in ("victim", "judge"))
    # Their clock is right, so the messages through the server show whether it goes on.
    chatting = lab.clients(url, 2)
    ready(chatting)
    for client in (victim, judge):
        client.first("pong", timeout=START)

    timing, trials = granted(QUICK), []
    for off in (seconds, 0):
        stepped = now()
        for clock in clocks:
            clock.step(off)
        for client in (victim, judge):
            _beats_on(client, stepped)
        _saw_the_step(server, off)
        trials.append(Trial(server, timing.watching_bound))
        trials[-1].stop(victim)
        trials[-1].verdict("victim")
        back = now()
        victim.resume()
        # What had waited for it on the connection that is lost is read first, perhaps with an answer in it.
        opened = victim.first("open", since=back, timeout=back_within(QUICK) + LATE).at
        victim.first("pong", since=opened, timeout=LATE)

    finders = (judge, (None,)), (victim, (None,)), (chatting, chatting.names)
    trials += [Trial(finder, timing.pinging_bound) for finder, _ in finders]
    server.pause()
    for trial, (_, names) in zip(trials[2:], finders, strict=True):
        trial.verdict(*names)
    healed = now()
    server.resume()
    back = max(
        chatting.back(healed, back_within(QUICK) + LATE),
        judge.first("pong", since=healed, timeout=back_within(QUICK) + LATE).at,
    )
    forward, backward, missed = (trial.seconds for trial in trials[:3])
    return kept(
        chatting.finish(),
        ends=(server, chatting, victim, judge),
        trials=trials,
        recovered=back - healed,
        recovery_bound=back_within(QUICK),
        note=f"client found in {forward:.1f} s, in {backward:.1f} s, then server in {missed:.1f} s; 4 clients",
    )


def _beats_on(client: Told, since: float) -> None:
    """Wait for beats after the step; nothing else may happen."""

    def look() -> bool:
        return len(client.events("pong", since=since)) >= BEATS

    # A watchdog wakes what stands still within two seconds or so.
    if not client.wait_for(look, LATE + 3 * BEATS * _TIMES["interval"]):
        raise Failed(f"no more beats after the step; {client.latest()}")
    others = client.events("dead", "closed", "reconnecting", since=since)
    if others:
        raise Failed(f"the step led to {others[0].name} ({others[0].detail.get('detail')})")


def _saw_the_step(server: Server, seconds: int) -> None:
    """Raises Failed where the server's clock has not stepped: the row would show nothing."""
    asked = now()
    # Who joins is a line in its log.
    newcomer(server.url())
    said = server.first("line", since=asked, where=_time_of)
    off = (_time_of(said) - datetime.now(UTC)).total_seconds()
    # A log's time has whole seconds, and is some time old.
    if abs(off - seconds) > 1.9 + (now() - asked):
        raise Failed(f"the server's clock is {off:.0f} s off, and not {seconds} s")


def _time_of(line: Event) -> datetime | None:
    """The time at the head of a line of a log."""
    try:
        return datetime.fromisoformat(line.detail["text"].split(" ")[0])
    except ValueError:
        return None


SOON = "nobody is convicted, the beats go on; who is stopped then is found in time"


@fault("system clock 1 h forward and back, own service", expected=SOON, needs=("libfaketime",))
def own_clock_by_an_hour(lab: Lab) -> Seen:
    """The nearest to its bound of three: after either step the client, after the last the server."""
    return _steps(lab, _Own, 3600)


@fault("system clock 1 s forward and back, own service", expected=SOON, needs=("libfaketime",))
def own_clock_by_a_second(lab: Lab) -> Seen:
    """As above."""
    return _steps(lab, _Own, 1)


@fault("system clock 1 h forward and back, embedded on the stock reactor", expected=SOON, needs=("libfaketime",))
def embedded_clock_by_an_hour(lab: Lab) -> Seen:
    """As above."""
    return _steps(lab, _Embedded, 3600)


@fault("system clock 1 s forward and back, embedded on the stock reactor", expected=SOON, needs=("libfaketime",))
def embedded_clock_by_a_second(lab: Lab) -> Seen:
    """As above."""
    return _steps(lab, _Embedded, 1)
