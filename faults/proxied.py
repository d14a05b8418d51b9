"""Rows about what stands in the middle of a line: it delays, swallows, and closes at the wrong moment.

The proxy is a process of the lab on loopback, so these rows run everywhere.
"""

from __future__ import annotations

from faults.lab import Clients, Event, Failed, Lab, Seen, Server, convictions, fault, granted, now
from faults.links import Proxy, proxy
from faults.network import (
    BAD_FOR,
    BOTH,
    DEFAULTS,
    LATE,
    Ends,
    concluded,
    finished,
    recovery_bound,
    worst,
)


def through(lab: Lab, **configured: object) -> tuple[Server, Proxy, Clients]:
    """A server and two clients that reach it through a proxy."""
    server = lab.server()
    between = proxy(lab, server.url(), **configured)
    return server, between, lab.clients(between.url())


def delayed(lab: Lab, **configured: float) -> Seen:
    """The line is slow for a while, and lives."""
    server, between, clients = through(lab)
    clients.healthy()
    cause = between.order(set=configured)
    clients.until(cause + BAD_FOR)
    trips = sorted(event.detail["rtt"] or 0.0 for event in clients.events("pong", since=cause + 6.0))
    ledger = finished(server, clients, resumes=False)
    if trips[len(trips) // 2] < sum(configured.values()) / 2:
        raise Failed(f"the line was not slow: {trips}")
    return Seen(
        false_convictions=len(convictions(server, clients)),
        lost=ledger.lost,
        doubled=ledger.doubled,
        note=f"{ledger.sent} messages, {len(trips)} beats answered after {trips[0]:.2f} to {trips[-1]:.2f} s",
    )


@fault("delay of 300 ms each way", expected="nobody is convicted")
def slow(lab: Lab) -> Seen:
    """By the proxy."""
    return delayed(lab, delay=0.3)


@fault("jitter of 0 to 800 ms each way", expected="nobody is convicted")
def jittery(lab: Lab) -> Seen:
    """By the proxy; bytes never overtake each other."""
    return delayed(lab, jitter=0.8)


@fault("black hole after the opening", expected=BOTH)
def hole(lab: Lab) -> Seen:
    """A proxy takes every byte and confirms it, and passes none on."""
    server, between, clients = through(lab)
    clients.healthy()
    ends = Ends(server, clients, between)
    between.order(set={"hole": True})
    # What is counted from then on begins with the last that has passed.
    cause = now()
    found = ends.both(granted(DEFAULTS), cause, "dead")
    healed = between.order(set={"hole": False})
    return concluded(ends, found, clients.back(healed, recovery_bound() + LATE) - healed)


@fault(
    "black hole of the handshake",
    expected="the attempt fails within open_timeout, the server lets go within handshake_timeout; the next one opens",
)
def deaf(lab: Lab) -> Seen:
    """Connected, and nothing else."""
    server, between, clients = through(lab, hole=True)
    ends = Ends(server, clients, between)
    accepted, reached = (between.first(name).at for name in ("accepted", "reached"))
    given_up = ends.heard_of(clients, accepted, DEFAULTS.open_timeout + DEFAULTS.tick, "reconnecting")
    patience = DEFAULTS.handshake_timeout + DEFAULTS.tick
    let_go = between.first("ended", timeout=patience + LATE, where=lambda event: event.detail["side"] == "server")
    found = [*given_up, ends.found(server, let_go, reached, patience)]
    healed = between.order(set={"hole": False})
    recovered = clients.back(healed, recovery_bound() + LATE) - healed
    ledger = finished(server, clients, resumes=False)
    latest = worst(found)
    return Seen(
        detected=latest.seconds,
        bound=latest.bound,
        false_convictions=len(convictions(server, clients)),
        lost=ledger.lost,
        doubled=ledger.doubled,
        recovered=recovered,
        recovery_bound=recovery_bound(),
        note=f"clients after {worst(given_up).seconds:.1f} s, server after {let_go.at - reached:.1f} s",
    )


def overtaken(between: Proxy, closed: Event) -> float:
    """When the proxy closed this connection in place of its last bytes."""
    return between.first("overtaken", where=lambda event: event.detail["port"] == closed.detail["port"]).at


def closed_early(lab: Lab, *orders: dict[str, object]) -> Seen:
    """The proxy closes what it should not have, once for each order; each time all are told, and come back."""
    server, between, clients = through(lab)
    clients.healthy()
    at_once, found, recovered = DEFAULTS.close_timeout, [], []
    ends = Ends(server, clients, between)
    for order in orders:
        since = between.order(**order)
        for name in clients.names:
            at_client = clients.first("closed", since=since, client=name)
            at_server = server.first("closed", since=since, client=name)
            # A close that is to overtake bytes waits for them.
            cause = since if "reset" in order else overtaken(between, at_client)
            found += [ends.found(clients, at_client, cause, at_once), ends.found(server, at_server, cause, at_once)]
        closed = max(one.event.at for one in found)
        recovered.append(clients.back(closed, recovery_bound() + LATE) - closed)
    return concluded(ends, found, max(recovered))


TOLD = "both are told at once; the session is resumed, nothing is lost"


@fault("RST by a proxy", expected=TOLD)
def reset(lab: Lab) -> Seen:
    """To both sides, in the midst of it."""
    return closed_early(lab, {"reset": True})


@fault("FIN that overtakes the last bytes", expected=TOLD)
def overtaken_by_fin(lab: Lab) -> Seen:
    """Towards the server, and then towards the client."""
    return closed_early(lab, {"overtake": "server", "by": "fin"}, {"overtake": "client", "by": "fin"})


@fault("RST in place of a FIN, and of the last bytes", expected=TOLD)
def overtaken_by_rst(lab: Lab) -> Seen:
    """Towards the server, and then towards the client."""
    return closed_early(lab, {"overtake": "server", "by": "rst"}, {"overtake": "client", "by": "rst"})


@fault(
    "close that comes late, after the client is back",
    expected="the client is told at once and takes its session over; the late close changes nothing",
)
def late_close(lab: Lab) -> Seen:
    """The client's side is reset at once, the server hears of it when all is well again."""
    server, between, clients = through(lab)
    clients.healthy()
    ends = Ends(server, clients, between)
    cause = between.order(sever=True)
    found = ends.heard_of(clients, cause, DEFAULTS.close_timeout, "closed")
    recovered = clients.back(cause, recovery_bound() + LATE) - cause
    late = between.order(tell=True)
    clients.back(late, DEFAULTS.timing().interval + LATE)
    superseded = [event for event in server.events("closed", since=cause) if event.detail["code"] == 4001]
    return concluded(ends, found, recovered, note=f"{len(superseded)} old connections closed 4001 at the resume")
