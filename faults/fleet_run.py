"""One fleet of real programs with its clients: how it is started, heard, broken and ended, and what must hold of it.

Knows of no scenario; `fleet_scenarios` says what befalls it, and what besides must hold then.
"""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ports import free_port
from processes import BIN

from faults.soak_programs import Cast, Failed, Voice
from heartbeat import Settings

__all__ = ["NODES", "Fleet", "Plan"]

NODES = 3

#: Clients in one process: the fewer there are, the more is left of the machine for the servers.
_TOGETHER = 1500

#: A lease of a server's holds for three refreshes of 5 s.
LEASE = 15.0

#: Seconds that programs get to start, for all clients to open, and in the end for all messages to arrive.
_START, _OPEN, _SETTLE = 60.0, 240.0, 240.0

#: What a busy machine may add to whatever is timed, in seconds.
SLACK = 3.0

_LOOPBACK = "127.0.0.1"

_HAPROXY = """\
global
    maxconn {most}
defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    option redispatch 1
    retries 3
frontend public
    bind 127.0.0.1:{port}
    default_backend nodes
backend nodes
    balance leastconn
{servers}
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for."""

    clients: int
    kills: int
    away: float
    chats: float
    says: float
    interval: float
    seed: int


@dataclass(slots=True)
class Node:
    """One server: where it listens, what stands before its command, and how often it was started."""

    number: int
    host: str
    port: int
    prefix: Sequence[str] = ()
    lives: int = 0

    @property
    def name(self) -> str:
        """Of its present life."""
        return f"node {self.number}.{self.lives}"

    @property
    def log(self) -> str:
        """What its file is called."""
        return f"{self.name.replace(' ', '-')}.log"


class Fleet(Cast):
    """One run. `checks` are what was found, each with whether it is right; `say` prints."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        super().__init__()
        self.plan = plan
        self.say = say
        self.chance = random.Random(f"{plan.seed} fleet")  # noqa: S311  # lots, not secrets
        self.timing = Settings(interval=plan.interval).timing()
        self.nodes = [Node(number, _LOOPBACK, free_port()) for number in range(NODES)]
        self.redis_port = free_port()
        #: Where servers find Redis, and the options with which that is started.
        self.cluster = f"redis://{_LOOPBACK}:{self.redis_port}"
        #: The same for a server that is elsewhere, by its number.
        self.clusters: dict[int, str] = {}
        #: What a scenario has brought along.
        self.pair: Any = None
        self.island: Any = None
        self.redis_options: tuple[str, ...] = ("--save", "", "--appendonly", "no")
        self.redis_hosts = [_LOOPBACK]
        self.starts_redis = True
        self.redis: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.checks: list[tuple[bool, str]] = []
        self.progress: dict[str, dict[str, Any]] = {}
        self.summaries: dict[str, dict[str, Any]] = {}
        self.complaints: list[str] = []
        #: When links ended and why; of servers that clients convicted, how long they had been silent.
        self.ends: list[float] = []
        self.reasons: Counter[str] = Counter()
        #: Who came back: when, after how long, and how much of that its backoff had it wait before it tried.
        self.backs: list[tuple[float, float, float]] = []
        self.dead: list[float] = []
        #: Whose end may be heard of.
        self._leaving: set[str] = set()
        self._ended: set[str] = set()

    # The beginning.

    def start_redis(self) -> None:
        """Have it answer, with what it has on its disk."""
        command = ["redis-server", "--port", str(self.redis_port), "--bind", *self.redis_hosts, "--dir", self.folder]
        command += ["--protected-mode", "no", *self.redis_options]
        with (self.folder / "redis.log").open("ab") as log:
            self.redis = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)  # noqa: S603  # ours
        self.callback(self.end_redis)
        self.until(lambda: _listens(_LOOPBACK, self.redis_port), _START, "Redis does not start")

    def signal_redis(self, number: int) -> None:
        """Send it a signal."""
        if self.redis is not None:
            self.redis.send_signal(number)

    def end_redis(self) -> None:
        """Have it end without a word (SIGKILL)."""
        if self.redis is not None and self.redis.poll() is None:
            self.redis.kill()
            self.redis.wait(15)

    def start_node(self, node: Node) -> None:
        """On the same port each time; it has no memory of its own."""
        node.lives += 1
        log = self.folder / node.log
        options = (
            "--listen",
            f"tcp:{node.port}:interface={node.host}",
            "--cluster",
            self.clusters.get(node.number, self.cluster),
        )
        options += ("--messages", "chat,group", "--interval", str(self.plan.interval))
        # All come from the one address of the proxy.
        options += ("--connections-per-address", "20000", "--handshake-rate", "5000", "--message-rate", "200")
        # To a server in a namespace it does not look like this machine.
        options += ("--trust-client-ids",)
        reactor = ("--reactor=heartbeat",) if sys.platform == "linux" else ()
        command = (
            *node.prefix,
            BIN / "twistd",
            *reactor,
            "-n",
            "--pidfile=",
            f"--logfile={log}",
            "heartbeat",
            *options,
        )
        self.run(node.name, command)

    def run(self, name: str, command: Iterable[object]) -> None:
        """Start a program that is none of ours."""
        self.programs[name] = self.enter_context(Voice(name, self._inbox, list(command), self.folder))

    def await_node(self, node: Node) -> None:
        """Until it listens."""
        self.until(lambda: _listens(node.host, node.port), _START, f"{node.name} does not start")

    def come(self) -> None:
        """Start all, and wait until every client is there and is counted by every server; then they begin to send."""
        if self.starts_redis:
            self.start_redis()
        for node in self.nodes:
            self.start_node(node)
        for node in self.nodes:
            self.await_node(node)
        servers = "\n".join(
            f"    server node{node.number} {node.host}:{node.port} check inter 1s fall 1 rise 1" for node in self.nodes
        )
        text = _HAPROXY.format(port=self.port, servers=servers, most=2 * self.plan.clients + 200)
        (self.folder / "haproxy.cfg").write_text(text, encoding="utf-8")
        self.run("haproxy", ["haproxy", "-db", "-f", self.folder / "haproxy.cfg"])
        self.until(lambda: _listens(_LOOPBACK, self.port), _START, "HAProxy does not start")
        total = self.plan.clients
        for number in range(-(-total // _TOGETHER)):
            first = number * _TOGETHER
            configured = {
                "url": f"ws://{_LOOPBACK}:{self.port}/ws",
                "number": number,
                "first": first,
                "count": min(_TOGETHER, total - first),
                "total": total,
                "seed": self.plan.seed,
                "settings": {"interval": self.plan.interval},
                "chats": self.plan.chats,
                "says": self.plan.says,
                # Of visitors the soak tells.
                "visit_every": None,
                # Whether anything grows is the soak's question too.
                "every": None,
                "spread": total / 150,
                "reactor": "heartbeat" if sys.platform == "linux" else "default",
                "tells_backs": True,
            }
            self.start(f"clients {number}", "soak_clients", configured)
        self.until(lambda: self.total("joined") == total, _OPEN, "not every client has come")
        self.until(lambda: self.counted() == {total}, LEASE + SLACK, "the servers do not count all clients")
        for program in self.crowds:
            program.signal(signal.SIGUSR2)
        self.say(f"  all {total} clients are there, at {NODES} servers")

    def total(self, figure: str) -> int:
        """Of all client processes, as they said last."""
        return sum(one[figure] for one in self.progress.values())

    def counted(self) -> set[int]:
        """How many clients there are, by the pongs of the last second."""
        return {number for one in self.progress.values() for number in one["counted"]}

    @property
    def crowds(self) -> list[Voice]:
        """The client processes."""
        return [program for name, program in self.programs.items() if name.startswith("clients")]

    # What befalls it.

    def kill(self, node: Node) -> float:
        """End a server without a word (SIGKILL); the moment."""
        self._leaving.add(node.name)
        at = time.monotonic()
        self.programs[node.name].signal(signal.SIGKILL)
        return at

    def stop(self, node: Node) -> float:
        """Ask a server to end (SIGTERM); the moment."""
        self._leaving.add(node.name)
        at = time.monotonic()
        self.programs[node.name].signal(signal.SIGTERM)
        return at

    def await_end(self, node: Node, patience: float) -> None:
        """Until that server has ended."""
        self.until(lambda: node.name in self._ended, patience, f"{node.name} does not end")

    def await_all(self, patience: float, why: str) -> None:
        """Until every client is open."""
        began = time.monotonic()
        self.until(
            lambda: (
                all(one["at"] > began for one in self.progress.values()) and self.total("open") == self.plan.clients
            ),
            patience,
            why,
        )

    def await_count(self, since: float) -> float:
        """Until all pongs count all clients, from this moment on, nobody by what was last known; how long that took.

        A server that has lost Redis goes on counting those of the others as they were: the number alone says nothing.
        """
        total = self.plan.clients

        def is_counted() -> bool:
            heard = all(one["at"] > since + 1 and one["counted"] == [total] for one in self.progress.values())
            return heard and all(alone == again for alone, again in map(self.aloneness, self.nodes))

        with suppress(Failed):
            self.until(is_counted, LEASE + SLACK + 10, "")
            return time.monotonic() - since
        return float("inf")

    def aloneness(self, node: Node) -> tuple[int, int]:
        """How often this server has said that it counts others as they last were, and that it no longer does."""
        parts = (part.read_text("utf-8", "replace") for part in self.folder.glob(f"{node.log}*"))
        alone = again = 0
        for line in "".join(parts).splitlines():
            alone += line.endswith("are counted as they last were")
            again += " the cluster " in line and line.endswith(" is there again")
        return alone, again

    # What is said.

    def hear(self, name: str, event: dict[str, Any]) -> None:
        """One event of one program."""
        kind = event["event"]
        if kind == "progress":
            self.progress[name] = event
        elif kind == "ended":
            self.ends.append(event["at"])
            self.reasons[event["why"]] += 1
        elif kind == "back":
            self.backs.append((event["at"], event["after"], event["waited"]))
        elif kind == "dead":
            self.dead.append(event["silent"])
        elif kind == "summary":
            self.summaries[name] = event
        elif kind == "ended-output":
            self._ended.add(name)
            if name not in self._leaving:
                raise Failed(f"{name} has ended by itself; {self.state()}")
        elif kind in ("unconfirmed", "lost-session", "complaint"):
            self.complaints.append(f"{name}: {event}"[:600])

    # The end.

    def settle(self) -> None:
        """Have the sending end, and wait until every message has arrived."""
        since = time.monotonic()
        for program in self.crowds:
            program.signal(signal.SIGUSR1)

        def is_settled() -> bool:
            if any(one["at"] < since + 2 for one in self.progress.values()):
                return False
            there = self.total("open") == self.plan.clients
            return there and not self.total("outstanding") and not self.unheard()

        with suppress(Failed):
            # If it does not come to that, the checks say what is missing.
            self.until(is_settled, _SETTLE, "not settled")
        self.say(f"  settled in {time.monotonic() - since:.1f} s")

    def unheard(self) -> int:
        """What was said in groups, and neither heard by a member nor told to him as missed: not yet, or never."""
        return self.total("to_hear") - self.total("heard") + self.total("unheard") - self.total("missed")

    def leave(self) -> None:
        """Have all clients say what they sent and received, and judge it; then have the servers end."""
        for program in self.crowds:
            self._leaving.add(program.name)
            program.signal(signal.SIGTERM)
        self.until(lambda: len(self.summaries) == len(self.crowds), _START, "not every process has its summary")
        self._judge_messages()
        for node in self.nodes:
            self.stop(node)
        for node in self.nodes:
            self.await_end(node, _START)
        self._leaving.add("haproxy")
        self.programs["haproxy"].kill()
        failures = []
        for part in sorted(self.folder.glob("node-*.log*")):
            text = part.read_text(encoding="utf-8", errors="replace")
            failures += [line for line in text.splitlines() if "Traceback" in line or "Unhandled" in line]
        self.check(not failures, f"failures in the servers' logs: {len(failures)} {failures[:2] or ''}")

    def _judge_messages(self) -> None:
        sent, received, finals = Counter[str](), Counter[str](), Counter[str]()
        for summary in self.summaries.values():
            sent.update(summary["sent"])
            received.update(summary["received"])
            finals.update(summary["finals"])
        lost = sum(max(0, sent[pair] - received[pair]) for pair in sent) + self.total("skipped")
        self.check(
            sent.total() > 0 and not lost,
            f"messages: {sent.total()} sent, {self.total('handled')} accepted,"
            f" {received.total()} received, {lost} lost",
        )
        said, missed = self.total("said"), self.total("missed")
        self.check(
            said > 0 and not self.unheard(),
            f"said in groups: {said}, to be heard {self.total('to_hear')} times, told as missed {missed},"
            f" neither heard nor told {self.unheard()}",
        )
        self.check(not self.total("doubled"), f"handled twice, or told of twice: {self.total('doubled')}")
        others = {status: count for status, count in finals.items() if status != "delivered"}
        self.check(
            not others and finals["delivered"] == sent.total(),
            f"told as delivered: {finals['delivered']}; as anything else: {others or 'none'}",
        )
        self.check(
            not self.complaints,
            f"sessions that were lost, messages never confirmed, errors:"
            f" {len(self.complaints)} {self.complaints[:2] or ''}",
        )
        self.check(not self.total("anew"), f"sessions not resumed: {self.total('anew')} of {self.total('reopened')}")

    def check(self, good: object, sentence: str) -> None:
        """Something that must hold."""
        self.checks.append((bool(good), sentence))


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True
