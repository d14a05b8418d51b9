"""Rows about the line between the ends: cut, lossy, slow, reset, full of holes, and closed at the wrong moment.

Each begins with two clients that beat and chat through the server; then comes the cause; and where it heals, all must
be as if nothing had been. The timing is that of the defaults, and every bound is computed from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from faults.lab import Clients, Event, Failed, Lab, Ledger, Seen, Server, Told, convictions, fault, granted, now
from faults.links import Hosts, arrivals, hosts
from faults.rows import Starved
from heartbeat import Settings
from heartbeat.core.settings import Timing

__all__ = [
    "BAD_FOR",
    "BOTH",
    "DEFAULTS",
    "LATE",
    "Ends",
    "Found",
    "concluded",
    "finished",
    "recovery_bound",
    "worst",
]

DEFAULTS = Settings()
NAMESPACES = ("namespaces",)
#: Seconds for which a line is bad that is not cut: several times the bound.
BAD_FOR = 45.0
#: Seconds after a bound in which a conviction is still waited for, so that one that is late is seen as late.
LATE = 5.0
#: Seconds by which the arrival of a packet may be noted wrong: the kernel stamps it by another of its clocks.
NOTED = 0.005


@dataclass(frozen=True, slots=True)
class Found:
    """One end of one connection was told that the other is gone: when after the cause, and how long that may take."""

    event: Event
    seconds: float
    bound: float


def worst(found: Sequence[Found]) -> Found:
    """The one that was nearest to its bound, or farthest beyond it."""
    return max(found, key=lambda one: one.seconds - one.bound)


def recovery_bound(settings: Settings = DEFAULTS) -> float:
    """How long a client takes to be back after the healing: an attempt under way may fail, the next one does not."""
    return settings.open_timeout + 1.5 * max(settings.delays[: settings.attempts])


class Ends:
    """A server and its clients from the moment of a cause on, which is now: what each was told, and in what time.

    Bounds are in one's own running time: what is late is excused by as much as that end had no processor. On a machine
    that has nothing else to do this is next to nothing; where it counted, the row says so. What a proxy `between` them
    has waited for its processor delays both.
    """

    def __init__(self, server: Server, clients: Clients, *between: Told) -> None:
        self.server = server
        self.clients = clients
        self.excused = 0.0
        self._starved = {end: Starved(end, *between) for end in (server, clients)}

    def found(self, end: Told, event: Event, cause: float, bound: float) -> Found:
        """What this end was told, held against its bound."""
        seconds = event.at - cause
        if seconds > bound:
            waited = self._starved[end].seconds
            self.excused = max(self.excused, waited)
            bound += waited
        return Found(event, seconds, bound)

    def heard_of(self, end: Told, cause: float, bound: float, *names: str) -> list[Found]:
        """When this end was told of each client's link, by one of these events. Raises Failed where it was not."""
        deadline = cause + bound + LATE
        events = [end.first(*names, since=cause, client=name, timeout=deadline - now()) for name in self.clients.names]
        return [self.found(end, event, cause, bound) for event in events]

    def told(self, name: str, convicted: Found, cause: float, timing: Timing) -> Found:
        """When this client knew, whom the server has convicted, and whom the server's word may still reach.

        He convicts within his bound; or he has heard the server's probe before that, and is told when its connection is
        aborted: after the closing handshake that he cannot answer. Raises Failed where he was closed without either.
        """
        event = self.clients.first("dead", "closed", since=cause, client=name)
        if event.name == "dead":
            return self.found(self.clients, event, cause, timing.pinging_bound)
        heard = self.clients.events("waiting", since=cause, client=name)
        if not heard or heard[-1].at - cause > timing.pinging_bound:
            raise Failed(f"{name} was closed without a verdict of its own, and had not heard the server meanwhile")
        # The server's timers come with the tick.
        within = convicted.seconds + DEFAULTS.close_timeout + 2 * timing.tick
        return self.found(self.clients, event, cause, within)

    def both(self, timing: Timing, cause: float, *names: str, by: str = "client") -> list[Found]:
        """The same at either end; who sends the pings has their bound, and a server's timers come with the tick."""
        pings, watches = timing.pinging_bound, timing.watching_bound
        of_client, of_server = (pings, watches) if by == "client" else (watches, pings + timing.tick)
        return [
            *self.heard_of(self.clients, cause, of_client, *names),
            *self.heard_of(self.server, cause, of_server, *names),
        ]


def finished(server: Server, clients: Clients, *, resumes: bool = True) -> Ledger:
    """The ledger of all; everybody must be back in his own session, and nobody must have been said to be gone."""
    gone = server.events("left", "lost-session") + clients.events("lost-session", "unreachable")
    if gone:
        raise Failed(f"{gone[0].client}: {gone[0].name}, though it was back in time")
    ledger = clients.finish()
    if ledger.anew:
        raise Failed(f"{ledger.anew} sessions were not resumed")
    if resumes and ledger.resumed < len(clients.names):
        raise Failed(f"only {ledger.resumed} connections were made anew")
    return ledger


def false_ones(server: Server, clients: Clients, right: Iterable[Event]) -> int:
    """Convictions that there was no reason for."""
    reasoned = list(right)
    return sum(event not in reasoned for event in convictions(server, clients))


def healthy(lab: Lab, on: Hosts, **how: Any) -> tuple[Server, Clients]:
    """A server and two clients on their hosts, which beat and chat."""
    server = lab.server(listen=on.listen, prefix=on.on("server"))
    clients = lab.clients(server.url(), prefix=on.on("client"), **how)
    clients.healthy()
    return server, clients


def cut(lab: Lab, towards: Sequence[str], *names: str, by: str = "client") -> Seen:
    """Packets are dropped until both ends know, and then no more."""
    on, ends, cause = cut_off(lab, towards, by)
    found = ends.both(granted(DEFAULTS), cause, *names, by=by)
    return mended(on, ends, found)


def cut_off(lab: Lab, towards: Sequence[str], by: str = "client") -> tuple[Hosts, Ends, float]:
    """Drop packets from now on; the hosts, the two ends, and the moment."""
    on = hosts(lab)
    server, clients = healthy(lab, on, settings={"beats": by})
    return on, Ends(server, clients), on.drop(towards)


def mended(on: Hosts, ends: Ends, found: Sequence[Found]) -> Seen:
    """Heal the line, and see that all is well again."""
    healed = on.mend()
    return concluded(ends, found, ends.clients.back(healed, recovery_bound() + LATE) - healed)


def concluded(ends: Ends, found: Sequence[Found], recovered: float, note: str = "") -> Seen:
    """What was seen in all, when everybody is back."""
    server, clients = ends.server, ends.clients
    ledger = finished(server, clients)
    latest = worst(found)
    if not note:
        by = {end: max(one.seconds for one in found if one.event in end.events()) for end in (clients, server)}
        note = f"clients after {by[clients]:.1f} s, server after {by[server]:.1f} s"
    note = f"{note}, {ledger.sent} messages"
    if ends.excused:
        note += f"; {ends.excused:.1f} s without a processor"
    return Seen(
        detected=latest.seconds,
        bound=latest.bound,
        false_convictions=false_ones(server, clients, [one.event for one in found]),
        lost=ledger.lost,
        doubled=ledger.doubled,
        recovered=recovered,
        recovery_bound=recovery_bound(),
        note=note,
    )


BOTH = "both ends convict within their bounds; after the healing the session is resumed"


@fault("line cut, both ways", expected=BOTH, needs=NAMESPACES)
def cut_both_ways(lab: Lab) -> Seen:
    """No FIN, no RST: nothing."""
    return cut(lab, ("server", "client"), "dead")


@fault("line cut, both ways, where the server sends the beats", expected=BOTH, needs=NAMESPACES)
def cut_under_server_beats(lab: Lab) -> Seen:
    """The client watches, and the server asks."""
    return cut(lab, ("server", "client"), "dead", by="server")


@fault(
    "line cut towards the server",
    expected="both ends convict within their bounds (or the server's probe reaches a client just before, who is told "
    "when the server closes); after the healing the session is resumed",
    needs=NAMESPACES,
)
def cut_to_server(lab: Lab) -> Seen:
    """What the server says still arrives: its probe too, which is due about when the client's verdict is."""
    on, ends, cause = cut_off(lab, ("server",))
    timing = granted(DEFAULTS)
    at_server = ends.heard_of(ends.server, cause, timing.watching_bound, "dead")
    names = ends.clients.names
    at_clients = [ends.told(name, one, cause, timing) for name, one in zip(names, at_server, strict=True)]
    return mended(on, ends, [*at_server, *at_clients])


@fault(
    "line cut towards the client",
    expected="the client convicts within its bound, and its last word still reaches the server",
    needs=NAMESPACES,
)
def cut_to_client(lab: Lab) -> Seen:
    """What the client says still arrives, the end of its connection too."""
    return cut(lab, ("client",), "dead", "closed")


def lossy(lab: Lab, share: float) -> Seen:
    """A bad line, and convictions only where really nothing arrived; held against what reached each host."""
    on = hosts(lab)
    server = lab.server(listen=on.listen, prefix=on.on("server"))
    url = server.url()
    # They must see each connection begin.
    reached = {"server": arrivals(lab, on, "server"), "client": arrivals(lab, on, "client")}
    clients = lab.clients(url, prefix=on.on("client"))
    clients.healthy()
    cause = on.lose(share)
    clients.until(cause + BAD_FOR)
    dropped = on.dropped()
    healed = on.mend()
    recovered = clients.back(healed, recovery_bound() + LATE) - healed
    ledger = finished(server, clients, resumes=False)
    timing = granted(DEFAULTS)
    # The least silence that is a reason to convict, of whoever pings and of whoever watches.
    least = {"client": timing.timeout_min + timing.probe, "server": timing.watch + timing.probe}
    silences = {
        end: [silence(reached[end], event) for event in convictions(program)]
        for end, program in (("client", clients), ("server", server))
    }
    right = sum(quiet >= least[end] - NOTED for end, every in silences.items() for quiet in every)
    count = sum(map(len, silences.values()))
    if not dropped:
        raise Failed("not one packet was lost")
    note = f"{dropped} packets lost, {ledger.sent} messages"
    if count:
        shortest = ", ".join(f"{end} {min(every):.1f} s" for end, every in silences.items() if every)
        note += f"; {right} times really nothing reached the end that convicted for T + probe (least: {shortest})"
    return Seen(
        false_convictions=count - right,
        lost=ledger.lost,
        doubled=ledger.doubled,
        recovered=recovered,
        recovery_bound=recovery_bound(),
        note=note,
    )


def silence(reached: Told, conviction: Event) -> float:
    """For how long no byte of this connection had reached the end that gave it up."""
    port = conviction.detail["port"]
    moments = [
        event.at for event in reached.events("arrival") if event.detail["port"] == port and event.at <= conviction.at
    ]
    if not moments:
        raise Failed(f"nothing was ever seen to arrive from port {port}")
    return conviction.at - max(moments)


ALIVE = "nobody is convicted from whom bytes arrived within T + probe"


@fault("1 % of the packets lost", expected=ALIVE, needs=NAMESPACES)
def lossy_1(lab: Lab) -> Seen:
    """As on an ordinary bad day."""
    return lossy(lab, 0.01)


@fault("10 % of the packets lost", expected=ALIVE, needs=NAMESPACES)
def lossy_10(lab: Lab) -> Seen:
    """As at the edge of a cell."""
    return lossy(lab, 0.1)


@fault("30 % of the packets lost", expected=ALIVE, needs=NAMESPACES)
def lossy_30(lab: Lab) -> Seen:
    """TCP itself stalls for seconds."""
    return lossy(lab, 0.3)


@fault(
    "128 kbit/s, with messages of 48,000 bytes",
    expected="nobody is convicted while a beat waits behind data",
    needs=NAMESPACES,
)
def narrow(lab: Lab) -> Seen:
    """Each message holds the line for three seconds, and a beat behind it waits."""
    on = hosts(lab)
    server, clients = healthy(lab, on, rate=0.1, size=48_000)
    cause, means = on.limit(128)
    clients.until(cause + BAD_FOR)
    pongs = [event.detail["rtt"] for event in clients.events("pong", since=cause)]
    waited = max(rtt for rtt in pongs if rtt is not None)
    ledger = finished(server, clients, resumes=False)
    note = f"{ledger.sent} messages, {len(pongs)} beats answered, the slowest after {waited:.1f} s ({means})"
    return Seen(
        false_convictions=len(convictions(server, clients)), lost=ledger.lost, doubled=ledger.doubled, note=note
    )


@fault("firewall resets (REJECT with tcp-reset)", expected="both are told when they next send", needs=NAMESPACES)
def rejected(lab: Lab) -> Seen:
    """The server, which only answers, sends nothing before it grows suspicious."""
    on = hosts(lab)
    # So long that none of them is used up before the server has been told.
    server, clients = healthy(lab, on, settings={"attempts": 6})
    ends = Ends(server, clients)
    cause = on.reset()
    return mended(on, ends, ends.both(granted(DEFAULTS), cause, "closed", "dead"))


@fault(
    "router forgets its connections (NAT)",
    expected="half-open on both sides: the client convicts within its bound, and takes its session over",
    needs=NAMESPACES,
)
def forgotten(lab: Lab) -> Seen:
    """The router restarts: what it knows nothing of it drops, and says nothing."""
    on = hosts(lab)
    on.translate()
    server, clients = healthy(lab, on)
    ends = Ends(server, clients)
    cause = on.forget()
    found = ends.both(granted(DEFAULTS), cause, "dead", "closed")
    since = max(one.event.at for one in found if one.event in clients.events("dead"))
    return concluded(ends, found, clients.back(since, recovery_bound() + LATE) - since)
