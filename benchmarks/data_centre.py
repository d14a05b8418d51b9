"""A data centre of three is lost, or is drained: how its clients come back to the two others, second by second.

    python benchmarks/data_centre.py                   prints the tables (two minutes)
    python benchmarks/data_centre.py --write           and puts them into docs/scale.md
    python benchmarks/data_centre.py --plan silent     one plan, by the second
    python benchmarks/data_centre.py --part 1          with all of a million clients, and not a tenth of everything

A simulation of events, without sockets and without Autobahn. When a client finds out, is what its `Monitor` says; how
long it waits, its `Backoff`; who is let in, the `Arrivals` of each node, and what it is told otherwise, their
`Retry-After`; a drain is `Draining`. A test holds `Client`, which does what `HeartbeatClient` does between attempts,
against that.

What is assumed: a client comes to any living node with the same chance, and the way takes no time. A node is one
process with one core, which handshakes wait for behind one another, and of which the beats of those who are connected
take their part. Who has waited for `handshake_timeout` is dropped.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from math import ceil
from random import Random
from types import SimpleNamespace
from typing import Any

from scale import CLIENTS, DATA_CENTRES, DOCUMENT, NODES, put, table, units
from twisted.internet.address import IPv4Address

from heartbeat.arrivals import Arrivals
from heartbeat.core.backoff import Backoff
from heartbeat.core.errors import CloseCode
from heartbeat.core.messages import decode_object
from heartbeat.core.monitor import QUIET, Confirm, Convict, Monitor
from heartbeat.core.settings import Settings
from heartbeat.draining import Draining
from heartbeat.refusals import Refusals

SEED = 20_261_129

#: By how much the world of the document's tables is smaller than a million clients: clients, paces and cores alike.
PART = 10

# Round trips of clients: between these, each its own, and each beat up to a quarter more.
FASTEST, SLOWEST = 0.02, 0.2

#: What becomes of an attempt: a 503 is refused; dropped is who was not answered within `handshake_timeout`.
BECAME = ("accepted", "refused", "dropped")

HEAD = b"GET /ws HTTP/1.1\r\nHost: example.org\r\n\r\n"

# As `HeartbeatClient` does; a test compares them.
LONGEST_RETRY_AFTER = 60.0


@dataclass(frozen=True)
class Plan:
    """What happens to whom: `how` is `silent` (nothing more arrives), `loud` (all are cut off at once) or `drained`.

    For `steered` seconds clients are still sent to the lost data centre as well as to the others. `nodes` are those of
    one data centre, `part` by how much everything is smaller. `spread` is how far beats are apart: 0 is all in step.
    """

    name: str
    words: str
    how: str = "silent"
    interval: float = 6.0
    nodes: int = NODES
    steered: float = 0.0
    tls: bool = False
    part: int = 1
    spread: float = 1.0
    settings: Settings = field(default_factory=Settings)

    @property
    def lost(self) -> int:
        """How many clients have to come back."""
        return CLIENTS // DATA_CENTRES // self.part

    @property
    def scaled(self) -> Settings:
        """The settings of a node, with the paces of a part."""
        rate = (self.settings.handshake_rate or 5000.0) / self.part
        return replace(self.settings, handshake_rate=rate, drain_rate=self.settings.drain_rate / self.part)


class Client:
    """One client between two connections; `back` is when the second was accepted."""

    __slots__ = ("account", "back", "backoff", "excused", "number", "return_at", "return_by")

    def __init__(self, number: int, settings: Settings) -> None:
        self.number = number
        self.backoff = Backoff(settings.delays, settings.attempts)
        self.excused = False
        self.return_at = self.return_by = float("-inf")
        self.back: float | None = None
        # Of `Arrivals`, which takes this for a connection.
        self.account: Any = None

    @property
    def transport(self) -> Client:
        """Arrival: how it came."""
        return self

    def getPeer(self) -> IPv4Address:
        """ITransport: each has an address of its own, as the PROXY protocol tells it."""
        return IPv4Address("TCP", f"41.{self.number >> 16}.{self.number >> 8 & 255}.{self.number & 255}", 50_000)

    def give_way(self) -> None:
        """Arrival: nobody waits with his request here."""
        raise AssertionError("nobody waits")

    def drained(self, shortest: float, longest: float, now: float, window: float, u: float) -> None:
        """The server is going, and says when to come back."""
        self.return_at = now + Backoff.drained(shortest, longest, window, u)
        self.return_by = now + longest

    def wait(
        self, now: float, chance: Random, *, code: int | None = None, not_before: float | None = None
    ) -> float | None:
        """Seconds until the next attempt, after a connection that was closed with `code` or an attempt that failed."""
        was_drained, restarted = now <= self.return_by, code in (CloseCode.RESTART, CloseCode.OVERLOAD)
        delay: float | None
        if self.excused or not (was_drained or restarted):
            delay = self.backoff.next_delay(chance.random())
        else:
            self.excused = True
            delay = max(0.0, self.return_at - now) if was_drained else Backoff.restarted(chance.random())
        if delay is not None and not_before is not None:
            delay = max(delay, min(not_before, LONGEST_RETRY_AFTER) * (1 + chance.random() / 2))
        return delay


class Node:
    """One process with one core. Attempts come in the order of time, and are answered in it."""

    def __init__(self, plan: Plan, settings: Settings, connections: int) -> None:
        cost = units()
        self._arrivals = Arrivals(settings, None, Refusals())
        per_connection = plan.part / plan.interval / 1e6
        # A core that handshakes keep busy is not woken for a beat.
        self._at_rest, self._busy = (cost[name].value * per_connection for name in ("lone", "busy"))
        upgrade = cost["handshake"].value + (cost["tls_handshake"].value if plan.tls else 0.0)
        self._refusal = upgrade / 1e6 * plan.part
        self._opening = self._refusal + cost["opening"].value / 1e6 * plan.part
        self._patience = settings.handshake_timeout
        self.connections = connections
        self.free_at = 0.0
        #: The longest that somebody waited for an answer.
        self.longest = 0.0

    @property
    def load(self) -> float:
        """What the beats take of the core, at rest."""
        return self.connections * self._at_rest

    def asked(self, client: Client, now: float) -> tuple[str, float, float | None]:
        """What becomes of an attempt, when the client knows, and the Retry-After that it was told."""
        # A core that beats take whole would never come to the next.
        share = max(0.01, 1.0 - self.connections * self._busy)
        begun = max(now, self.free_at)
        if begun - now > self._patience:
            return "dropped", now + self._patience, None
        refusal = self._arrivals.asked(client, HEAD, begun, is_full=False)
        self.free_at = begun + (self._opening if refusal is None else self._refusal) / share
        self.longest = max(self.longest, self.free_at - now)
        if refusal is None:
            self.connections += 1
            return "accepted", self.free_at, None
        self._arrivals.left(client)
        return "refused", self.free_at, float(dict(refusal[2])["Retry-After"])


@dataclass
class Course:
    """How it went, by the second: `attempts`, those into the `void` (the lost data centre), what others `became`."""

    plan: Plan
    found_out: Counter[int] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    became: dict[str, Counter[int]] = field(default_factory=lambda: {what: Counter() for what in BECAME})
    void: Counter[int] = field(default_factory=Counter)
    gave_up: int = 0
    back: list[float] = field(default_factory=list)
    latest_finding: float = 0.0
    #: What their beats take of the busiest node's core in the end, and how long somebody waited for a handshake there.
    load: float = 0.0
    longest: float = 0.0

    @property
    def bound(self) -> float:
        """By when each has found out, by the monitor's table."""
        return self.plan.settings.timing(self.plan.interval).pinging_bound

    @property
    def window(self) -> float:
        """The seconds over which the settings spread the first attempts."""
        settings = self.plan.scaled
        if self.plan.how == "drained":
            crowd = ceil(self.plan.lost / self.plan.nodes)
            last = min(settings.drain_after + crowd / settings.drain_rate, settings.window / 2)
            return last - settings.drain_after
        first = settings.delays[0]
        return first if self.plan.how == "loud" else self.plan.interval + first

    @property
    def busiest(self) -> int:
        """The attempts of the busiest second at nodes that live."""
        return max((self.attempts - self.void).values(), default=0)

    @property
    def peak(self) -> float:
        """The busiest second, by the mean that all have who come once and evenly inside of the window."""
        return self.busiest / (self.plan.lost / self.window)

    def seconds(self, share: float) -> float | None:
        """The time at which this share of all is back; None: never."""
        place = ceil(share * self.plan.lost) - 1
        return self.back[place] if place < len(self.back) else None


def found_out_at(plan: Plan, chance: Random) -> float:
    """When a client finds out by its Monitor, if the silence begins at a random moment between two beats."""
    timing = plan.settings.timing(plan.interval)
    monitor = Monitor(timing, 0.0, pings=True, watches=False)
    usual = FASTEST + (SLOWEST - FASTEST) * chance.random() * plan.spread
    now = 0.0
    monitor.open(now, 0)
    for _ in range(8):
        trip = usual * (1 + chance.random() / 4 * plan.spread)
        monitor.heard(now + trip)
        monitor.answered(None, now + trip, 0)
        rested = now + trip
        now = monitor.next_at
        monitor.check(now, QUIET, 0)
    # A beat is out that would be answered after its own time; the silence begins anywhere since the one before was.
    cut = rested + (now + usual - rested) * chance.random() * plan.spread
    if cut > now + usual:
        raise AssertionError("the beat was answered")
    while True:
        now = monitor.next_at
        effects = monitor.check(now, QUIET, 0)
        if Confirm() in effects:
            effects = monitor.confirm(now, QUIET, 0)
        if any(isinstance(effect, Convict) for effect in effects):
            return now - cut


class Return:
    """The simulation of one plan: attempts in the order of time."""

    def __init__(self, plan: Plan, seed: int = SEED) -> None:
        self.plan = plan
        self.course = Course(plan)
        self._settings = plan.scaled
        self.now = 0.0
        self._chance = Random(seed)  # noqa: S311  # a simulation that comes out the same every time
        there = CLIENTS // DATA_CENTRES // plan.part // plan.nodes
        self._nodes = [Node(plan, self._settings, there) for _ in range((DATA_CENTRES - 1) * plan.nodes)]
        self._due: list[tuple[float, int, Client]] = []
        self._clients = [Client(number, plan.settings) for number in range(plan.lost)]

    def run(self) -> Course:
        """All of it, until nobody tries any more."""
        if self.plan.how == "drained":
            self._drain()
        else:
            silent = self.plan.how == "silent"
            for client in self._clients:
                self._lose(client, found_out_at(self.plan, self._chance) if silent else 0.0)
        heapify(self._due)
        while self._due:
            now, _, client = heappop(self._due)
            self._attempt(client, now)
        self.course.back.sort()
        self.course.load = max(node.load for node in self._nodes)
        self.course.longest = max(node.longest for node in self._nodes)
        return self.course

    def _lose(self, client: Client, now: float, code: int | None = None) -> None:
        self.course.found_out[int(now)] += 1
        self.course.latest_finding = max(self.course.latest_finding, now)
        self._wait(client, now, code=code)

    def _wait(self, client: Client, now: float, *, code: int | None = None, not_before: float | None = None) -> None:
        delay = client.wait(now, self._chance, code=code, not_before=not_before)
        if delay is None:
            self.course.gave_up += 1
        else:
            heappush(self._due, (now + delay, client.number, client))

    def _attempt(self, client: Client, now: float) -> None:
        course, second = self.course, int(now)
        course.attempts[second] += 1
        if now < self.plan.steered and self._chance.random() * DATA_CENTRES < 1:
            course.void[second] += 1
            self._wait(client, now + self._settings.open_timeout)
            return
        node = self._nodes[int(self._chance.random() * len(self._nodes))]
        what, at, retry_after = node.asked(client, now)
        course.became[what][int(at)] += 1
        if what == "accepted":
            course.back.append(at)
        else:
            self._wait(client, at, not_before=retry_after)

    def _drain(self) -> None:
        """Every node of the data centre drains at once, as `Draining` does it."""
        for first in range(self.plan.nodes):
            edges = {_Edge(self, client) for client in self._clients[first :: self.plan.nodes]}
            self.now = 0.0
            draining = Draining(self._settings, edges, self.now)
            while not all(edge.over for edge in edges):
                self.now += self._settings.tick
                draining.ticked(self.now)

    def told(self, client: Client, frame: bytes) -> None:
        """A client reads that its server goes."""
        window = decode_object(frame)
        shortest, longest = window["min_ms"] / 1000, window["max_ms"] / 1000
        client.drained(shortest, longest, self.now, self._settings.window, self._chance.random())

    def closed(self, client: Client, code: int) -> None:
        """A client is closed by its server."""
        self._lose(client, self.now, code)


class _Edge:
    """The server's end of a connection, as far as `Draining` looks at it: in a session, with nothing in work."""

    link, channel, dead, protocol = SimpleNamespace(level=1), None, False, SimpleNamespace(state=None)

    def __init__(self, world: Return, client: Client) -> None:
        self._world = world
        self._client = client
        self.over = False

    def __hash__(self) -> int:
        # So that a set of them has the same order every time.
        return self._client.number

    def write(self, frame: bytes) -> None:
        """Edge: the drain message."""
        self._world.told(self._client, frame)

    def close(self, code: CloseCode, reason: str) -> None:
        """Edge: the client is closed."""
        self.over = True
        self._world.closed(self._client, code)


def plans(part: int = 1) -> list[Plan]:
    """What is asked: each with the defaults, but for what its words say."""
    plain = [
        Plan("silent", "lost without a word"),
        Plan("slow", "lost without a word, a beat every 25 s", interval=25.0),
        Plan("steered", "lost without a word, and still named for 30 s", steered=30.0),
        Plan("named", "lost without a word, and named for good", steered=float("inf")),
        Plan("loud", "all are cut off in one moment", how="loud"),
        Plan("paced", "the same, with `handshake-rate` 2500", how="loud", settings=Settings(handshake_rate=2500.0)),
        Plan("silent-tls", "lost without a word, the nodes speak TLS themselves", tls=True),
        Plan("loud-tls", "cut off in one moment, the nodes speak TLS themselves", how="loud", tls=True),
        Plan("many-tls", "the same, with 24 nodes a data centre", how="loud", tls=True, nodes=24),
        Plan("drained", "drained, all of its nodes at once", how="drained"),
    ]
    return [replace(plan, part=part) for plan in plain]


def line(course: Course) -> list[str]:
    """One plan in a row of the table, in numbers of the whole."""
    part = course.plan.part
    return [
        course.plan.words,
        f"{course.busiest * part:,}",
        f"{course.peak:.2f}",
        *(f"{course.became[what].total() * part:,}" for what in ("refused", "dropped")),
        f"{course.longest:.1f} s",
        *(_time(course.seconds(share)) for share in (0.5, 0.99, 1.0)),
        f"{course.gave_up * part:,}",
    ]


NAMES = [
    "a third of the clients is",
    "busiest second",
    "x mean",
    "refused",
    "dropped",
    "longest wait",
    "50 %",
    "99 %",
    "100 %",
    "gave up",
]


def _time(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s"


def by_second(course: Course) -> list[list[str]]:
    """The seconds in which something happened, in rows."""
    rows, outside, part = [], course.plan.lost, course.plan.part
    counts = (course.found_out, course.attempts, *(course.became[what] for what in BECAME))
    for second in range(max(second for count in counts for second in count) + 1):
        outside -= course.became["accepted"][second]
        numbers = [count[second] for count in counts]
        if any(numbers):
            rows.append([str(second), *(f"{count * part:,}" for count in (*numbers, outside))])
    return rows


SECONDS = ["second", "find out", "attempts", "accepted", "refused", "dropped", "outside"]


def sizes(part: int) -> list[list[str]]:
    """With how many nodes it holds: the harder of the two losses, and what the nodes have to do after it."""
    rows = []
    for nodes in (2, 3, 4, 5, 6, 8, 12, 16):
        found = [Return(Plan(how, how, how=how, nodes=nodes, part=part)).run() for how in ("silent", "loud")]
        before, after = CLIENTS // DATA_CENTRES // nodes, CLIENTS // (DATA_CENTRES - 1) // nodes
        rows.append(
            [
                str(nodes),
                f"{before:,}",
                f"{after:,}",
                f"{found[0].load:.0%}",
                *(f"{course.busiest * part / nodes / (DATA_CENTRES - 1):,.0f}" for course in found),
                *(f"{course.became['dropped'].total() * part:,}" for course in found),
                *(_time(course.seconds(1.0)) for course in found),
                f"{sum(course.gave_up for course in found) * part:,}",
            ]
        )
    return rows


SIZES = [
    "nodes a data centre",
    "clients a node",
    "after the loss",
    "beats, of a core",
    "peak a node, silent",
    "loud",
    "dropped, silent",
    "loud",
    "100 %, silent",
    "loud",
    "gave up",
]


def chapters(part: int) -> dict[str, str]:
    """The tables, by their names in the document."""
    courses = {plan.name: Return(plan).run() for plan in plans(part)}
    return {
        "plans": table(NAMES, map(line, courses.values())),
        "seconds": table(SECONDS, by_second(courses["silent"])),
        "sizes": table(SIZES, sizes(5 * part)),
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="A data centre of three is lost.")
    parser.add_argument("--plan", choices=[plan.name for plan in plans()], help="this one alone, by the second")
    parser.add_argument(
        "--part", type=int, default=PART, help="by how much all is smaller; the numbers are of the whole"
    )
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    options = parser.parse_args()
    if options.plan is not None:
        (plan,) = (plan for plan in plans(options.part) if plan.name == options.plan)
        course = Return(plan).run()
        print(f"{table(NAMES, [line(course)])}\n\n{table(SECONDS, by_second(course))}")
        return
    text = DOCUMENT.read_text()
    for name, rows in chapters(options.part).items():
        print(f"{name}\n\n{rows}\n")
        if options.write:
            text = put(text, name, rows)
    if options.write:
        DOCUMENT.write_text(text)


if __name__ == "__main__":
    main()
