"""One run of the soak: what is started, what befalls it, and what is known of it when all is over.

Knows of no table and passes no verdict on figures.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ports import free_port

from faults.soak_judge import JUDGED_AFTER, Judge
from faults.soak_plan import TOGETHER, of_processes
from faults.soak_programs import Cast, Failed, Voice
from faults.soak_verdict import Sample
from heartbeat import Settings

__all__ = ["Plan", "Soak"]

#: The longest measured part begins after so many seconds; a shorter soak's after a third of it.
_WARM = 600.0

#: Seconds that programs get to start, for all clients to open, and in the end for all messages to arrive.
_START, _OPEN, _SETTLE = 60.0, 180.0, 180.0

#: A program that was asked to end by SIGTERM may say so (twistd does).
_ASKED = (0, -signal.SIGTERM)

#: What is taken of each program's figures.
_OF_SERVER = ("rss", "descriptors", "beyond", "delayed", "objects", "blocks", "log", "connections", "sessions")
_OF_CLIENTS = ("rss", "descriptors", "delayed", "objects", "blocks", "log")


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for."""

    clients: int
    minutes: float
    seed: int
    restarts: int
    every: float
    fault_every: float
    interval: float
    tick: float
    chats: float
    says: float
    leak: bool

    @property
    def seconds(self) -> float:
        """How long it takes, without the coming and the going."""
        return self.minutes * 60

    @property
    def warm(self) -> float:
        """Seconds before the measured part."""
        return min(_WARM, self.seconds / 3)

    @property
    def processes(self) -> int:
        """Of clients."""
        return -(-self.clients // TOGETHER)


class Soak(Cast):
    """One run. `latest` and `progress`: what each program has said of itself last; `series`: the samples of figures."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.timing = Settings(interval=plan.interval, tick=plan.tick).timing()
        self.judge = Judge(self.timing, self.at)
        self.port = free_port()
        self.began = 0.0
        self.latest: dict[str, dict[str, Any]] = {}
        self.progress: dict[str, dict[str, Any]] = {}
        self.series: defaultdict[str, list[Sample]] = defaultdict(list)
        self.summaries: dict[str, dict[str, Any]] = {}
        self.complaints: list[str] = []
        self.ended_badly = 0
        self.settled_in = 0.0
        self._stopped: set[str] = set()
        self._leaving: set[str] = set()
        self._ended: set[str] = set()

    # The beginning.

    def start_server(self) -> None:
        """On the same port and the same file each time."""
        plan, log = self.plan, self.folder / "twistd.log"
        configured = {"every": plan.every, "log": str(log), "leak": plan.leak}
        reactor = ("--reactor=heartbeat",) if sys.platform == "linux" else ()
        options = (
            "--listen",
            f"tcp:{self.port}:interface=127.0.0.1",
            "--store",
            f"sqlite:{self.folder / 'sessions.db'}",
        )
        # Of this machine's own nobody is counted unless it is asked for, and who is counted is remembered.
        options += ("--messages", "chat,group", "--connections-per-address", "16", "--message-rate", "200")
        options += ("--handshake-rate", "5000", "--interval", str(plan.interval))
        since = time.monotonic()
        self.start(
            "server", "soak_server", configured, *reactor, "-n", "--pidfile=", f"--logfile={log}", "heartbeat", *options
        )
        self.until(lambda: self.latest.get("server", {"at": 0.0})["at"] > since, _START, "the server does not start")

    def come(self) -> None:
        """Start all, and wait until every client is there."""
        plan = self.plan
        self.start_server()
        proxied = {"port": self.port, "seed": plan.seed, "clients": plan.clients, "every": plan.every}
        proxied |= {"fault_every": plan.fault_every, "warm": plan.warm}
        self.start("proxy", "soak_proxy", proxied)
        self.until(lambda: "proxy" in self.latest, _START, "the proxy does not start")
        url = f"ws://127.0.0.1:{self.latest['proxy']['port']}/ws"
        for number in range(plan.processes):
            first = number * TOGETHER
            configured = {
                "url": url,
                "number": number,
                "first": first,
                "count": min(TOGETHER, plan.clients - first),
                "total": plan.clients,
                "seed": plan.seed,
                "settings": {"interval": plan.interval, "tick": plan.tick},
                "chats": plan.chats,
                "says": plan.says,
                "every": plan.every,
                "visit_every": 10.0,
                # A hundred come in a second.
                "spread": plan.clients / 100,
                "reactor": "heartbeat" if sys.platform == "linux" else "default",
            }
            self.start(f"clients {number}", "soak_clients", configured)
        self.until(lambda: self.total("joined") == plan.clients, _OPEN, "not every client has come")

    def total(self, figure: str) -> int:
        """Of all client processes, as they said last."""
        return sum(one[figure] for one in self.progress.values())

    @property
    def crowds(self) -> list[Voice]:
        """The client processes."""
        return [program for name, program in self.programs.items() if name.startswith("clients")]

    # What is said.

    def hear(self, name: str, event: dict[str, Any]) -> None:
        """One event of one program."""
        heard = _HEARD.get(event["event"])
        if heard is None:
            raise Failed(f"{name} says what nobody knows: {event}")
        heard(self, name, event)

    def figures(self, name: str, event: dict[str, Any]) -> None:
        """How a program is."""
        self.latest[name] = event
        if name != "server" or not self.began:
            return
        at = event["at"] - self.began
        # What a server needs besides a descriptor for each link is the same for any number of them.
        event["beyond"] = event["descriptors"] - event["connections"]
        for figure in _OF_SERVER:
            self.series[f"server {figure}"].append((at, event[figure]))
        for figure in _OF_CLIENTS:
            if all(program.name in self.latest for program in self.crowds):
                total = sum(self.latest[program.name][figure] for program in self.crowds)
                self.series[f"clients {figure}"].append((at, total))

    def complained(self, name: str, event: dict[str, Any]) -> None:
        """Something that should not be."""
        self.complaints.append(f"{name}: {event}"[:1000])

    def output_ended(self, name: str, event: dict[str, Any]) -> None:
        """A program has ended, which it may only do when it is asked to."""
        self._ended.add(name)
        if name not in self._leaving:
            raise Failed(f"{name} has ended by itself; {self.state()}")

    # What befalls processes.

    def begin(self) -> None:
        """Have all begin to send, and the faults begin."""
        self.began = time.monotonic()
        self.judge.begin(self.began)
        for program in (self.programs["proxy"], *self.crowds):
            program.signal(signal.SIGUSR2)
        for fault in of_processes(self.plan.seed, self.plan.processes, self.plan.warm):
            if fault.at + fault.lasts > self.plan.seconds:
                break
            name = f"clients {fault.whom}"
            self.at(self.began + fault.at, lambda name=name: self.stop(name))
            self.at(self.began + fault.at + fault.lasts, lambda name=name: self.go_on(name))
        for number in range(self.plan.restarts):
            self.at(self.began + (number + 0.5) * self.plan.warm / self.plan.restarts, self.restart)

    def stop(self, name: str) -> None:
        """A client process stands still."""
        self._stopped.add(name)
        self.judge.faults["stop"] += 1
        self.programs[name].pause()
        number, begin = int(name.split()[1]), time.monotonic()
        # Until it is known when it ended, it has none.
        self.judge.truth.stopped(number, begin, float("inf"))

    def go_on(self, name: str) -> None:
        """It goes on."""
        self._stopped.discard(name)
        self.programs[name].resume()
        self.judge.truth.went_on(int(name.split()[1]), time.monotonic())

    def restart(self) -> None:
        """The server is stopped, and another begins on its port and file."""
        self.judge.truth.server_left(time.monotonic())
        self._leaving.add("server")
        self.ended_badly += self.programs["server"].stop(30.0) not in _ASKED
        self.until(lambda: "server" in self._ended, _START, "the server does not end")
        self._leaving.discard("server")
        self._ended.discard("server")
        self.start_server()
        self.judge.faults["restart"] += 1
        self.judge.truth.server_is_back(time.monotonic() + self.timing.pinging_bound)

    # The end.

    def settle(self) -> None:
        """Have the faults and the sending end, and wait until every message has arrived, and all is well."""
        for name in tuple(self._stopped):
            self.go_on(name)
        for program in (self.programs["proxy"], *self.crowds):
            program.signal(signal.SIGUSR1)
        since = heard_since = time.monotonic()

        def is_settled() -> bool:
            nonlocal heard_since
            # A link that is silent looks well until somebody notices it, and then its client has to come back.
            if self.judge.silent:
                heard_since = time.monotonic()
            if any(one["at"] < heard_since + 2 for one in self.progress.values()):
                return False
            return self.total("open") == self.plan.clients and not self.total("outstanding") and not self.unheard()

        with suppress(Failed):
            # If it does not come to that, the verdict says what is missing.
            self.until(is_settled, _SETTLE, "not settled")
        self.settled_in = time.monotonic() - since
        # What was convicted in the last moment is yet to be judged.
        self.pass_time(time.monotonic() + JUDGED_AFTER)

    def leave(self) -> None:
        """Have all clients leave, then look once more at the server, then have that end too."""
        for program in self.crowds:
            self._leaving.add(program.name)
            program.signal(signal.SIGTERM)
        self.until(lambda: len(self.summaries) == len(self.crowds), _START, "not every process has its summary")
        for program in self.crowds:
            self.ended_badly += program.wait(_START) != 0
        told = time.monotonic()
        self.until(lambda: self.latest["server"]["at"] > told + 2, _START + 2 * self.plan.every, "no last figures")
        self._leaving |= {"server", "proxy"}
        self.ended_badly += self.programs["server"].stop(30.0) not in _ASKED
        self.programs["proxy"].kill()
        for part in self.folder.glob("twistd.log*"):
            for line in part.read_text(encoding="utf-8", errors="replace").splitlines():
                if "Traceback" in line or "Unhandled" in line or "critical" in line.lower():
                    self.complained("server", {"log": line})

    # What is known of messages.

    def unheard(self) -> int:
        """What was said in groups, and neither heard by a member nor told to him as missed: not yet, or never."""
        return max(0, self.total("to_hear") - self.total("heard") + self.total("unheard") - self.total("missed"))

    def lost(self) -> int:
        """Messages that were passed over by a later one, and of which nobody was told."""
        return self.total("skipped") + max(0, self.total("unheard") - self.total("missed"))

    def never_came(self) -> int:
        """Of the messages of one to another, by the summaries of both, those that were sent and never came."""
        sent, received = self.summed("sent"), self.summed("received")
        return sum(abs(sent[pair] - received[pair]) for pair in sent | received) + self.total("skipped")

    def summed(self, table: str) -> Counter[str]:
        """One table of all processes' summaries."""
        summed: Counter[str] = Counter()
        for summary in self.summaries.values():
            summed.update(summary[table])
        return summed


def _kept(name: str) -> Callable[[Soak, str, dict[str, Any]], None]:
    def keep(soak: Soak, program: str, event: dict[str, Any]) -> None:
        getattr(soak, name)[program] = event

    return keep


def _told(name: str) -> Callable[[Soak, str, dict[str, Any]], None]:
    def tell(soak: Soak, program: str, event: dict[str, Any]) -> None:
        getattr(soak.judge, name)(program, event)

    return tell


_HEARD: dict[str, Callable[[Soak, str, dict[str, Any]], object]] = {
    "listens": _kept("latest"),
    "figures": Soak.figures,
    "progress": _kept("progress"),
    "summary": _kept("summaries"),
    "dead": _told("dead"),
    "ended": _told("ended"),
    "fault": _told("befell"),
    "noticed": _told("noticed_by"),
    "unnoticed": Soak.complained,
    "late": _told("was_late"),
    "unconfirmed": Soak.complained,
    "lost-session": Soak.complained,
    "complaint": Soak.complained,
    "ended-output": Soak.output_ended,
}
