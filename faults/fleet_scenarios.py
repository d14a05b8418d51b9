"""What befalls a fleet, one scenario each, and what must hold of it besides what always must."""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from faults.fleet_run import LEASE, NODES, SLACK, Fleet
from faults.links import run
from heartbeat import Settings

# The Redis of the tests stands beside those on the wire.
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "wire"))

__all__ = ["SCENARIOS", "Scenario"]

_PROGRAMS = ("redis-server", "haproxy")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One: what it is in a sentence, what it needs, what comes before the start, and what befalls the fleet."""

    what: str
    run: Callable[[Fleet], None]
    needs: tuple[str, ...] = _PROGRAMS
    prepare: Callable[[Fleet], None] = lambda fleet: None


def _times(seconds: list[float]) -> str:
    if not seconds:
        return "nobody"
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    return f"median {statistics.median(ordered):.1f} s, p99 {p99:.1f} s, at most {ordered[-1]:.1f} s"


def _kills(fleet: Fleet) -> None:
    """One server at a time, at random moments; it starts again while its clients are elsewhere."""
    chance, killed, counted, late = fleet.chance, [], [], []
    limit = fleet.timing.pinging_bound
    # Who loses one link after the other, each before it is stable, waits longer each time.
    longest = 1.5 * max(Settings().delays)
    fresh = None
    for number in range(fleet.plan.kills):
        fleet.pass_time(time.monotonic() + chance.uniform(1.0, 8.0))
        # One that has just started has nobody to lose.
        node = chance.choice([one for one in fleet.nodes if one is not fresh])
        before = len(fleet.backs)
        at = fleet.kill(node)
        killed.append(at)
        fleet.await_end(node, 30.0)
        fleet.await_all(limit + longest + SLACK, f"after kill {number + 1} not every client is back")
        after = fleet.await_count(at)
        counted.append(after)
        last = max((when - at for when, *_ in fleet.backs[before:]), default=0.0)
        if after > max(LEASE, last) + SLACK:
            late.append(after)
        fleet.say(
            f"  kill {number + 1}: {len(fleet.backs) - before} came back, the last after {last:.1f} s;"
            f" all servers count all clients after {after:.1f} s"
        )
        fleet.start_node(node)
        fleet.await_node(node)
        fresh = node
    beside = [after - waited for _, after, waited in fleet.backs]
    fleet.check(
        fleet.backs and max(beside) <= limit,
        f"{len(fleet.backs)} came back after {len(killed)} kills: {_times([one for _, one, _ in fleet.backs])};"
        f" beside the backoff of each: {_times(beside)} (bound: {limit:.1f} s)",
    )
    fleet.check(
        not late,
        f"all servers count all clients after a kill: {_times(counted)} (lease: {LEASE:g} s, or when the last is back)",
    )
    _nothing_else_ended(fleet, [(at, at + SLACK) for at in killed])


def _nothing_else_ended(fleet: Fleet, because: list[tuple[float, float]]) -> None:
    others = [at for at in fleet.ends if not any(begin <= at <= end for begin, end in because)]
    fleet.check(not others, f"links that ended: {len(fleet.ends)}, of these for no reason: {len(others)}")
    fleet.check(not fleet.dead, f"convicted by clients: {len(fleet.dead)}")


def _nothing_happens(fleet: Fleet) -> None:
    why = ", ".join(f"{number} {reason}" for reason, number in fleet.reasons.most_common(3))
    sentence = f"links that ended: {len(fleet.ends)} {why and f'({why})'}, convicted: {len(fleet.dead)}"
    fleet.check(not fleet.ends and not fleet.dead, sentence)
    suspects = fleet.total("suspects")
    fleet.check(not suspects, f"pings that were not answered in time: {suspects}")


def _redis_stands_still(fleet: Fleet) -> None:
    fleet.pass_time(time.monotonic() + 5)
    fleet.signal_redis(signal.SIGSTOP)
    at = time.monotonic()
    fleet.pass_time(at + fleet.plan.away)
    fleet.signal_redis(signal.SIGCONT)
    _redis_is_back(fleet)


def _redis_is_back(fleet: Fleet) -> None:
    """Nobody has lost anything, and after a lease nobody counts by what he last knew."""
    took = fleet.await_count(time.monotonic())
    fleet.check(took <= LEASE + SLACK, f"all servers count all clients {took:.1f} s after Redis was back")
    if fleet.plan.away > LEASE:
        alone = sum(fleet.aloneness(node)[0] > 0 for node in fleet.nodes)
        fleet.check(alone == NODES, f"servers that had counted the clients of others as they last were: {alone}")
    fleet.pass_time(time.monotonic() + 5)
    _nothing_happens(fleet)


def _on_disk(fleet: Fleet) -> None:
    fleet.redis_options = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")


def _redis_restarts(fleet: Fleet) -> None:
    fleet.pass_time(time.monotonic() + 5)
    fleet.end_redis()
    fleet.pass_time(time.monotonic() + fleet.plan.away)
    fleet.start_redis()
    _redis_is_back(fleet)


def _with_sentinels(fleet: Fleet) -> None:
    from redis_server import Replicated  # noqa: PLC0415  # of the tests, which need not be there for the others

    pair = fleet.enter_context(Replicated(fleet.folder, sentinels=3, down_after_ms=1000))
    fleet.starts_redis = False
    fleet.cluster = pair.url
    fleet.pair = pair


def _master_dies(fleet: Fleet) -> None:
    fleet.pass_time(time.monotonic() + 5)
    pair = fleet.pair
    master = pair.master
    at = time.monotonic()
    pair.kill(master)
    fleet.until(lambda: pair.master != master, 60.0, "the sentinels name no other master")
    fleet.say(f"  the sentinels name another master after {time.monotonic() - at:.1f} s")
    took = fleet.await_count(at)
    fleet.check(took <= 60, f"all servers count all clients {took:.1f} s after the master was killed")
    fleet.pass_time(time.monotonic() + 10)
    _nothing_happens(fleet)


class _Island:
    """A network namespace with one server, which can be cut from all others without a word."""

    HERE, THERE = "10.214.7.1", "10.214.7.2"
    LOCAL = "127.0.0.0/8"

    def __init__(self) -> None:
        self.name = f"faults-{os.getpid()}-island"
        self._device = f"hb{os.getpid() % 100_000}"

    def __enter__(self) -> Self:
        run("ip", "netns", "add", self.name)
        run("ip", "-n", self.name, "link", "set", "lo", "up")
        run("ip", "link", "add", self._device, "type", "veth", "peer", "eth0", "netns", self.name)
        run("ip", "address", "add", f"{self.HERE}/24", "dev", self._device)
        run("ip", "link", "set", self._device, "up")
        run("ip", "-n", self.name, "address", "add", f"{self.THERE}/24", "dev", "eth0")
        run("ip", "-n", self.name, "link", "set", "eth0", "up")
        return self

    def __exit__(self, *_exception: object) -> None:
        run("ip", "netns", "delete", self.name)

    @property
    def prefix(self) -> tuple[str, ...]:
        """What stands before a command that is to run there."""
        return ("ip", "netns", "exec", self.name)

    def cut(self, port: int | None = None) -> float:
        """Nothing gets in or out any more, or nothing from and to this port elsewhere; the moment."""
        at = time.monotonic()
        for chain, side in (("INPUT", "--sport"), ("OUTPUT", "--dport")):
            what = () if port is None else ("-p", "tcp", side, port)
            run(*self.prefix, "iptables", "-w", "10", "-A", chain, "!", "-s", self.LOCAL, *what, "-j", "DROP")
        return at

    def mend(self) -> None:
        """All gets through again."""
        run(*self.prefix, "iptables", "-w", "10", "-F")


def _on_an_island(fleet: Fleet) -> None:
    island = fleet.enter_context(_Island())
    node = fleet.nodes[-1]
    node.host, node.prefix, node.port = island.THERE, island.prefix, 9000
    fleet.redis_hosts = ["127.0.0.1", island.HERE]
    fleet.clusters[node.number] = f"redis://{island.HERE}:{fleet.redis_port}"
    fleet.island = island


def _partition(fleet: Fleet) -> None:
    fleet.pass_time(time.monotonic() + 5)
    # First from Redis alone: what its clients send meanwhile it cannot commit, and is to acknowledge to nobody.
    fleet.pass_time(fleet.island.cut(fleet.redis_port) + 4)
    at = fleet.island.cut()
    limit = fleet.timing.pinging_bound + 1.5 * 1.0
    # The proxy has taken it out of service when its clients find out.
    fleet.pass_time(at + limit + SLACK)
    fleet.await_all(30.0, "not every client has left the server that is cut off")
    moved = len(fleet.backs)
    fleet.pass_time(max(time.monotonic(), at + fleet.plan.away))
    fleet.island.mend()
    took = fleet.await_count(time.monotonic())
    fleet.check(took <= LEASE + SLACK, f"all servers count all clients {took:.1f} s after it was back")
    fleet.pass_time(time.monotonic() + 15)
    late = [after for when, after, _ in fleet.backs if when - at > limit + SLACK]
    early = [silent for silent in fleet.dead if silent < fleet.timing.timeout_min + fleet.timing.probe]
    fleet.check(
        moved and not late, f"{moved} clients found out and were elsewhere within {limit:.1f} s, {len(late)} later"
    )
    fleet.check(not early, f"convicted by clients: {len(fleet.dead)}, of these too early: {len(early)}")
    text = "".join(path.read_text("utf-8", "replace") for path in fleet.folder.glob(f"node-{NODES - 1}.*.log"))
    refused = text.count("the session was taken over")
    fleet.check(refused, f"writes into sessions that had moved: {refused} tried, and refused")


def _rolling(fleet: Fleet) -> None:
    fleet.pass_time(time.monotonic() + 5)
    ratios = []
    for node in fleet.nodes:
        before = len(fleet.backs)
        at = fleet.stop(node)
        fleet.await_end(node, 60.0)
        ended = time.monotonic() - at
        fleet.await_all(60.0, f"after {node.name} has stopped not every client is back")
        came = [when for when, *_ in fleet.backs[before:]]
        fleet.start_node(node)
        fleet.await_node(node)
        if came:
            first, last = min(came), max(came)
            busiest = max(Counter(int(when - first) for when in came).values())
            mean = len(came) / max(1.0, last - first)
            ratios.append(busiest / mean)
            fleet.say(
                f"  {node.name} ended after {ended:.1f} s; {len(came)} came back from {first - at:.1f} s to"
                f" {last - at:.1f} s: busiest second {busiest}, mean {mean:.0f}"
            )
        took = fleet.await_count(time.monotonic())
        fleet.check(took <= LEASE + SLACK, f"all servers count all clients {took:.1f} s after {node.name} was back")
    fleet.check(
        ratios and max(ratios) <= 2,
        f"the busiest second of coming back is at most {max(ratios, default=0):.2f} x the mean (at most 2)",
    )
    fleet.check(not fleet.dead, f"convicted by clients: {len(fleet.dead)}")


SCENARIOS = {
    "kills": Scenario("a server is killed at random moments, and starts again", _kills),
    "redis": Scenario("Redis stands still", _redis_stands_still),
    "redis-restart": Scenario(
        "Redis is killed, and starts again with what is on its disk", _redis_restarts, prepare=_on_disk
    ),
    "sentinel": Scenario(
        "the master of Redis is killed, and its replica takes over",
        _master_dies,
        (*_PROGRAMS, "redis-sentinel"),
        _with_sentinels,
    ),
    "partition": Scenario(
        "a server is cut off from Redis and its clients, and comes back",
        _partition,
        (*_PROGRAMS, "namespaces"),
        _on_an_island,
    ),
    "rolling": Scenario("one server after the other is restarted", _rolling),
}
