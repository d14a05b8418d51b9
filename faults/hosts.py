"""Rows: an end that stands still, wholly (SIGSTOP) or its reactor alone, shortly or for long; and both, with no time.

A stop of either end is to be noticed by the other within its bound; one that ends before the bound, by suspicion alone.
Nobody may ever blame others for having stood still itself.
"""

from __future__ import annotations

from faults.lab import Clients, Lab, Seen, Told, fault, granted, now
from faults.rows import DEFAULTS, LATE, START, Trial, back_within, crowd, goes_on, kept, nothing_of, ready, serve
from heartbeat import Settings

__all__: list[str] = []


@fault("server stopped (SIGSTOP), longer than T + probe", expected="each client convicts it in time, and resumes")
def server_stopped(lab: Lab) -> Seen:
    """At the default timing, from the stop to the last conviction."""
    server = serve(lab, DEFAULTS)
    clients = lab.clients(server.url(), 4)
    ready(clients)
    trial = Trial(clients, granted(DEFAULTS).pinging_bound)
    trial.stop(server)
    trial.verdict(*clients.names)
    healed = now()
    server.resume()
    recovered = clients.back(healed, back_within(DEFAULTS) + LATE) - healed
    return kept(
        clients.finish(),
        ends=(server, clients),
        trials=[trial],
        recovered=recovered,
        recovery_bound=back_within(DEFAULTS),
        note="4 clients",
    )


@fault("client stopped (SIGSTOP), longer than watch + probe", expected="the server convicts each in time; all resume")
def client_stopped(lab: Lab) -> Seen:
    """At the default timing; clients beside them are left alone."""
    server = serve(lab, DEFAULTS)
    clients, others = lab.clients(server.url(), 4), lab.clients(server.url(), 2, name="other")
    ready(clients, others)
    trial = Trial(server, granted(DEFAULTS).watching_bound)
    trial.stop(clients)
    trial.verdict(*clients.names)
    healed = now()
    clients.resume()
    recovered = clients.back(healed, back_within(DEFAULTS) + LATE) - healed
    nothing_of(("closed",), others, since=0.0)
    return kept(
        clients.finish(),
        others.finish(),
        ends=(server, clients, others),
        trials=[trial],
        recovered=recovered,
        recovery_bound=back_within(DEFAULTS),
        note="4 clients and 2 beside them",
    )


SUSPECTED = "is suspected, then acknowledged; nobody is convicted"


@fault("server stopped (SIGSTOP), shorter than T + probe", expected=f"by each client it {SUSPECTED}")
def server_stopped_briefly(lab: Lab) -> Seen:
    """At the default timing, until the last client is suspicious."""
    server = serve(lab, DEFAULTS)
    clients = lab.clients(server.url(), 4)
    ready(clients)
    return _stopped_briefly(server, clients, (server, clients), granted(DEFAULTS).pinging_bound)


@fault("client stopped (SIGSTOP), shorter than watch + probe", expected=f"each of them {SUSPECTED}")
def client_stopped_briefly(lab: Lab) -> Seen:
    """At the default timing, until the server suspects the last of them."""
    server = serve(lab, DEFAULTS)
    clients = lab.clients(server.url(), 4)
    ready(clients)
    return _stopped_briefly(clients, clients, (clients, server), granted(DEFAULTS).watching_bound)


def _stopped_briefly(end: Told, clients: Clients, ends: tuple[Told, Told], bound: float) -> Seen:
    """Stop the first of the ends until the other suspects it."""
    judge = ends[1]
    stopped = now()
    end.pause()
    for name in clients.names:
        judge.first("suspect", since=stopped, client=name, timeout=bound + LATE)
    healed = now()
    end.resume()
    passed = max(judge.first("acknowledged", since=healed, client=name).at for name in clients.names)
    goes_on(clients, passed)
    nothing_of(("closed",), *ends, since=stopped)
    return kept(
        clients.finish(),
        ends=ends,
        recovered=passed - healed,
        recovery_bound=granted(DEFAULTS).probe,
        note=f"after {healed - stopped:.1f} s, no reconnect; 4 clients",
    )


def _server_stalls(lab: Lab, seconds: float, *, too_long: bool) -> Seen:
    server = serve(lab, DEFAULTS, stall=seconds)
    clients, pages = lab.clients(server.url(), 4), crowd(lab, server.url(), 50)
    pages.first("all-open", timeout=START)
    ready(clients)
    timing = granted(DEFAULTS)
    trial = Trial(clients, timing.pinging_bound)
    over = server.stall() + seconds
    if too_long:
        trial.verdict(*clients.names)
        back = clients.back(trial.cause, seconds + back_within(DEFAULTS) + LATE)
    else:
        clients.until(over)
        goes_on(clients, over)
        back = max(clients.first("pong", since=over, client=name).at for name in clients.names)
    # Long enough to see the convictions that a stall would lead to, if it were blamed on others.
    server.until(over + timing.probe + 1.0)
    return kept(
        clients.finish(),
        ends=(server, clients),
        trials=[trial] if too_long else [],
        cuts=pages.events("progress")[-1].detail["cuts"],
        recovered=back - over,
        recovery_bound=back_within(DEFAULTS) if too_long else timing.pinging_bound,
        note=f"{len(trial.found)} right convictions; 4 clients and 50 pages",
    )


# So that the server's bound lies between the stalls: 5 s is below the suspicion and the probe, 10 s above all.
STALLING = Settings(interval=0.2, timeout_max=5.0)


def _clients_stall(lab: Lab, seconds: float, *, too_long: bool) -> Seen:
    server = serve(lab, STALLING)
    clients = lab.clients(server.url(), 4, stall=seconds)
    others = lab.clients(server.url(), 2, name="other")
    ready(clients, others)
    timing = granted(STALLING)
    trial = Trial(server, timing.watching_bound)
    trial.cause = clients.stall()
    over = trial.cause + seconds
    if too_long:
        trial.verdict(*clients.names)
    server.until(over)
    if too_long:
        back = clients.back(over, back_within(STALLING) + LATE)
    else:
        goes_on(clients, over)
        back = max(clients.first("pong", since=over, client=name).at for name in clients.names)
    server.until(over + timing.probe + 1.0)
    nothing_of(("closed",), others, since=0.0)
    return kept(
        clients.finish(),
        others.finish(),
        ends=(server, clients, others),
        trials=[trial] if too_long else [],
        recovered=back - over,
        recovery_bound=back_within(STALLING) if too_long else timing.pinging_bound,
        note=f"{len(trial.found)} right convictions; 4 clients and 2 beside them",
    )


@fault("the server's reactor stalled for 1 s", expected="nobody is convicted")
def server_stalled_1(lab: Lab) -> Seen:
    """Well inside the deadline."""
    return _server_stalls(lab, 1.0, too_long=False)


@fault("the server's reactor stalled for 5 s", expected="it convicts nobody; nobody convicts it")
def server_stalled_5(lab: Lab) -> Seen:
    """Between the deadline and the end of the probe."""
    return _server_stalls(lab, 5.0, too_long=False)


@fault(
    "the server's reactor stalled for 10 s", expected="it convicts nobody; its clients convict it, rightly; all resume"
)
def server_stalled_10(lab: Lab) -> Seen:
    """Longer than the deadline and the probe."""
    return _server_stalls(lab, 10.0, too_long=True)


@fault("the clients' reactor stalled for 1 s", expected="nobody is convicted")
def clients_stalled_1(lab: Lab) -> Seen:
    """Well inside the watch."""
    return _clients_stall(lab, 1.0, too_long=False)


@fault("the clients' reactor stalled for 5 s", expected="they convict nobody; nobody convicts them")
def clients_stalled_5(lab: Lab) -> Seen:
    """Inside the server's bound."""
    return _clients_stall(lab, 5.0, too_long=False)


@fault(
    "the clients' reactor stalled for 10 s",
    expected="they convict nobody; the server convicts them, rightly; all resume",
)
def clients_stalled_10(lab: Lab) -> Seen:
    """Longer than the watch and the probe."""
    return _clients_stall(lab, 10.0, too_long=True)


#: Seconds for which others take the processors.
STRESS = 30.0
BUSY = Settings(interval=2.0)


@fault(
    "both cores taken by others (stress-ng), 200 clients, 30 s",
    expected="nobody who lives is convicted; one who is stopped then is, in time",
    needs=("stress-ng",),
    alone=True,
)
def no_processor(lab: Lab) -> Seen:
    """Four processes that compute and two that write, on two cores; a client is stopped in the middle of it."""
    server = serve(lab, BUSY)
    clients = lab.clients(server.url(), 200, rate=0.2, quiet=True)
    victim = lab.clients(server.url(), 1, name="victim", rate=0.0)
    victim.first("pong", timeout=START)
    clients.first(
        "progress", timeout=START, where=lambda event: event.detail["open"] == 200 and event.detail["received"] > 0
    )
    began = now()
    load = ("--cpu", 4, "--io", 2, "--timeout", f"{STRESS:.0f}", "--quiet", "--temp-path", lab.folder)
    stress = lab.program(["stress-ng", *load])
    stress.until(began + STRESS / 3)
    trial = Trial(server, granted(BUSY).watching_bound)
    trial.stop(victim)
    trial.verdict(*victim.names)
    stress.until(began + STRESS - 1.0)
    pongs = [event.detail["pongs"] for event in clients.events("progress", since=began)]
    return kept(
        clients.finish(),
        ends=(server, clients),
        trials=[trial],
        note=f"200 clients, {pongs[-1] - pongs[0]} beats",
    )
