"""Hundreds of `HeartbeatClient`s in one process that chat with those of other processes, for hours in the same memory.

    python -m faults.soak_clients '{"url": …, "number": 0, "first": 0, "count": 400, "total": 2000, …}'

Messages of one sender to one recipient are numbered, and arrive in order, so each end only keeps the last number:
whoever sees one twice, or misses one, says so. Besides, each is in a group, and visitors come and leave, one after
the other. SIGUSR2: begin to send; SIGUSR1: send nothing new; SIGTERM: say what was sent and received, and end.
"""

from __future__ import annotations

import gc
import json
import random
import signal
import sys
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

CONFIGURED = json.loads(sys.argv[1])
if CONFIGURED["reactor"] != "default":
    from twisted.application.reactors import installReactor

    installReactor(CONFIGURED["reactor"])

from twisted.internet import reactor as installed  # noqa: E402  # after the one that was asked for
from twisted.internet.defer import gatherResults  # noqa: E402  # as above
from twisted.internet.endpoints import TCP4ClientEndpoint  # noqa: E402  # as above
from twisted.internet.task import LoopingCall  # noqa: E402  # as above
from twisted.logger import LogLevel, eventAsText, globalLogBeginner  # noqa: E402  # as above
from twisted.python.failure import Failure  # noqa: E402  # as above

from faults.soak_figures import Lateness, own_figures, tell  # noqa: E402  # as above
from faults.soak_plan import address_of, address_of_visitor  # noqa: E402  # as above
from heartbeat import HeartbeatClient, Settings  # noqa: E402  # as above
from heartbeat.store import MemoryStore  # noqa: E402  # as above

reactor: Any = installed
FINAL = ("delivered", "lost", "unknown", "full", "sent")
#: Members of a group; neighbours, who are of one process for the most part.
GROUP = 8
#: Seconds between two looks at who is to send.
GRAIN = 0.25
TEXT = "x" * 40


class Ledger:
    """What this process has sent and received; of each pair of clients only the last number."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        #: What each member has heard of each other in its group.
        self.heard: Counter[str] = Counter()
        #: What was said in groups, by how many members it is to be heard, and what they were told that they missed.
        self.said = self.to_hear = self.missed = 0
        self.handled = self.refused = self.doubled = self.skipped = self.unheard = 0
        self.finals: Counter[str] = Counter()
        self.unhandled = 0
        self.reopened = self.resumed = self.anew = 0
        self.unreachable = self.visitors = self.suspects = 0
        #: How many clients there are, by the pongs since this was told last.
        self.counted: set[int | None] = set()

    def came(self, counts: Counter[str], pair: str, number: int) -> int:
        """Number `number` of a pair has come, which is to be one above the one before; by how many it is too high."""
        skipped = number - counts[pair] - 1
        if skipped < 0:
            self.doubled += 1
            return 0
        counts[pair] = number
        return skipped


class Member:
    """One client."""

    def __init__(self, number: int, ledger: Ledger) -> None:
        self.number = number
        self.ledger = ledger
        total = CONFIGURED["total"]
        self.group = f"g{number // GROUP}"
        self.group_size = min(GROUP, total - number // GROUP * GROUP)
        self.recipients = sorted({(number + 1) % total, (number + total // 2) % total} - {number})
        self.said = 0
        #: Chats whose final status has not come.
        self.outstanding: set[str] = set()
        self.sid: str | None = None
        self.port = 0
        self.is_open = self.has_joined = False
        #: Since when its link is gone, and how long it was to wait before it tried to come back.
        self.ended_at = self.waited = 0.0
        settings = Settings(client_id=f"s{number}", **CONFIGURED["settings"])
        # A page's cookies, of every length: so that what is kept of a connection's head is of every size too.
        cookie = ("Cookie", f"token={'x' * (number * 37 % 1200)}")
        self.client = HeartbeatClient(
            CONFIGURED["url"],
            headers=(cookie,),
            settings=settings,
            reactor=reactor,
            endpoint=_endpoint(address_of(number)),
        )
        self.client.register("onchat", lambda _, message: self.chat_arrived(message))
        self.client.register("ongroupchat", lambda _, message: self.group_arrived(message))
        self.client.linkChanged = self.link_changed
        self.client.pongReceived = lambda rtt, clients: ledger.counted.add(clients)
        self.client.sessionLost = lambda error: tell("lost-session", client=f"s{number}", why=error.reason)

    def start(self) -> None:
        """Come, and join the group."""
        self.client.startService()
        join = {"type": "ongroupchat", "group": self.group, "action": "join", "id": "join"}
        self.client.whenOpen().addCallback(lambda _: self.client.send(join)).addCallbacks(self.joined, self.failed)

    def joined(self, _: Any) -> None:
        """It is a member."""
        self.has_joined = True

    def chat(self, turn: int) -> None:
        """Send the next message to one of the recipients."""
        recipient = self.recipients[turn % len(self.recipients)]
        pair = f"{self.number}-{recipient}"
        name = f"{pair}-{self.ledger.sent[pair] + 1}"
        if self.was_taken(self.client.send({"type": "onchat", "id": name, "to": f"s{recipient}", "text": TEXT})):
            self.ledger.sent[pair] += 1
            self.outstanding.add(name)

    def say(self) -> None:
        """Say the next thing in the group."""
        name = f"{self.number}-{self.group}-{self.said + 1}"
        message = {"type": "ongroupchat", "group": self.group, "action": "say", "id": name, "text": TEXT}
        if self.was_taken(self.client.send(message)):
            self.said += 1
            self.ledger.said += 1
            self.ledger.to_hear += self.group_size

    def was_taken(self, sent: Any) -> bool:
        """Whether there was room for a message; then it is counted when the server has handled it."""
        if isinstance(getattr(sent, "result", None), Failure):
            self.ledger.refused += 1
            return False
        self.ledger.unhandled += 1
        sent.addCallbacks(self.handled, self.failed)
        return True

    def handled(self, _: None) -> None:
        """The server has handled a message."""
        self.ledger.unhandled -= 1
        self.ledger.handled += 1

    def failed(self, failure: Any) -> None:
        """A message will never be confirmed."""
        tell("unconfirmed", client=f"s{self.number}", why=failure.getErrorMessage()[:200])

    def chat_arrived(self, message: dict[str, Any]) -> None:
        """A message of another's, or what became of one of ours."""
        name, status = message["id"], message.get("status")
        if status is None:
            pair, _, number = name.rpartition("-")
            self.ledger.skipped += self.ledger.came(self.ledger.received, pair, int(number))
        elif status in FINAL:
            self.ledger.finals[status] += 1
            if name in self.outstanding:
                self.outstanding.remove(name)
            else:
                self.ledger.doubled += 1

    def group_arrived(self, message: dict[str, Any]) -> None:
        """Something was said in the group, by anybody in it, or was missed."""
        if "missed" in message:
            self.ledger.missed += message["missed"]
        elif message["action"] == "say":
            sender, _, number = message["id"].rpartition("-")
            heard = self.ledger.heard
            self.ledger.unheard += self.ledger.came(heard, f"{sender}>{self.number}", int(number))

    def link_changed(self, status: Any) -> None:
        """The link changed."""
        ledger = self.ledger
        if status.event == "open":
            self.is_open = True
            sid = self.client._session.channel.session.sid
            if self.sid is not None and CONFIGURED.get("tells_backs"):
                tell("back", client=f"s{self.number}", after=time.monotonic() - self.ended_at, waited=self.waited)
            if self.sid is not None:
                ledger.reopened += 1
                ledger.resumed += self.sid == sid
                ledger.anew += self.sid != sid
            self.sid = sid
            self.port = self.client._connection.transport.getHost().port
        elif status.event == "suspect":
            ledger.suspects += 1
        elif status.event == "dead":
            told = {"port": self.port, "said": status.detail, "silent": status.silent_for}
            tell("dead", client=f"s{self.number}", **told)
        elif status.event in ("reconnecting", "unreachable"):
            if self.is_open:
                self.is_open, self.ended_at, self.waited = False, time.monotonic(), 0.0
                tell("ended", client=f"s{self.number}", port=self.port, why=status.detail)
            # All that its backoff has it wait, where it does not come back at once.
            self.waited += status.delay or 0.0
            if status.event == "unreachable":
                # As a user does who sees that.
                ledger.unreachable += 1
                reactor.callLater(1.0, self.client.retry)


class Visitor:
    """One who comes under a new name, is answered, and leaves: for good, or leaving a session behind."""

    def __init__(self, number: int, crowd: Crowd) -> None:
        self.crowd = crowd
        name = f"v{CONFIGURED['number']}-{number}"
        address = address_of_visitor(CONFIGURED["number"], number)
        settings = Settings(client_id=name, **CONFIGURED["settings"])
        # One with a store of its own means to come back, and never does.
        store = MemoryStore() if number % 2 else None
        self.client = HeartbeatClient(
            CONFIGURED["url"], settings=settings, reactor=reactor, endpoint=_endpoint(address), session=store
        )
        self.client.pongReceived = lambda rtt, clients: self.leave()
        self.client.startService()

    def leave(self) -> None:
        """It was answered."""
        if self.client.running:
            self.client.stopService().addCallback(lambda _: self.crowd.visitors.discard(self))


class Crowd:
    """All of them."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        first, count = CONFIGURED["first"], CONFIGURED["count"]
        self.members = [Member(number, self.ledger) for number in range(first, first + count)]
        # In an order of their own, so that neighbours do not speak at the same time.
        self.order = list(self.members)
        random.Random(CONFIGURED["seed"]).shuffle(self.order)  # noqa: S311  # lots, not secrets
        self.visitors: set[Visitor] = set()
        self.chats = self.says = 0
        self.owed = [0.0, 0.0]
        self.spoke = 0.0
        self.log = 0
        self.lateness = Lateness(reactor)
        self.loops = [LoopingCall(step) for step in (self.speak, self.progress, self.look, self.be_visited)]
        for loop in self.loops:
            loop.clock = reactor
        self.finishing = False

    def start(self) -> None:
        """The reactor runs."""
        self.lateness.start()
        _, progress, figures, visits = self.loops
        progress.start(1.0, now=False)
        if CONFIGURED["every"]:
            figures.start(CONFIGURED["every"], now=False)
        if CONFIGURED["visit_every"]:
            visits.start(CONFIGURED["visit_every"], now=False)
        for at, member in enumerate(self.members):
            # Not all in the same moment: this is no storm.
            reactor.callLater(CONFIGURED["spread"] * at / len(self.members), member.start)

    def begin(self) -> None:
        """Everybody is there."""
        self.loops[0].start(GRAIN)

    def finish(self) -> None:
        """Send nothing new, and let nobody in any more."""
        self.finishing = True
        for loop in (self.loops[0], self.loops[3]):
            if loop.running:
                loop.stop()

    def speak(self) -> None:
        """Whoever's turn it is sends something."""
        now = time.monotonic()
        # Of a longer time in which this process stood still not all is made good at once.
        passed, self.spoke = min(1.0, now - self.spoke), now
        for which, rate in enumerate((CONFIGURED["chats"], CONFIGURED["says"])):
            self.owed[which] += rate * len(self.order) * passed
        while self.owed[0] >= 1:
            self.owed[0] -= 1
            turn, at = divmod(self.chats, len(self.order))
            self.order[at].chat(turn)
            self.chats += 1
        while self.owed[1] >= 1:
            self.owed[1] -= 1
            self.order[-1 - self.says % len(self.order)].say()
            self.says += 1

    def be_visited(self) -> None:
        """Somebody comes by."""
        self.ledger.visitors += 1
        self.visitors.add(Visitor(self.ledger.visitors, self))

    def progress(self) -> None:
        """Say how it goes."""
        ledger = self.ledger
        tell(
            "progress",
            open=sum(one.is_open for one in self.members),
            joined=sum(one.has_joined for one in self.members),
            chats=ledger.sent.total(),
            handled=ledger.handled,
            received=ledger.received.total(),
            outstanding=ledger.unhandled + sum(len(one.outstanding) for one in self.members),
            said=ledger.said,
            to_hear=ledger.to_hear,
            heard=ledger.heard.total(),
            unheard=ledger.unheard,
            missed=ledger.missed,
            doubled=ledger.doubled,
            skipped=ledger.skipped,
            refused=ledger.refused,
            reopened=ledger.reopened,
            resumed=ledger.resumed,
            anew=ledger.anew,
            unreachable=ledger.unreachable,
            visitors=ledger.visitors,
            suspects=ledger.suspects,
            counted=sorted(ledger.counted),
        )
        ledger.counted.clear()

    def look(self) -> None:
        """Say how this process is, without what the collector would find some time.

        Twisted's endpoints leave some seventy objects in circles for each connection, and with so many objects as here
        the collector looks for them every quarter of an hour. That is no leak, and would hide one.
        """
        gc.collect()
        late = self.lateness.take()
        tell("figures", **own_figures(), delayed=len(reactor.getDelayedCalls()), log=self.log, late=late)

    def end(self) -> None:
        """Say what was sent and received, by pairs, and leave."""
        for loop in self.loops:
            if loop.running:
                loop.stop()
        self.lateness.stop()
        ledger = self.ledger
        tell("summary", sent=ledger.sent, received=ledger.received, finals=ledger.finals)
        everybody = [one.client.stopService() for one in (*self.members, *self.visitors)]
        gatherResults(everybody).addCallback(lambda _: reactor.stop())

    def logged(self, event: Any) -> None:
        """Count what a log would have got of it; a bug, ours or the library's, is told."""
        self.log += len(eventAsText(event)) + 1
        if event["log_level"] >= LogLevel.error or "log_failure" in event:
            tell("complaint", text=eventAsText(event)[-1000:])


def _endpoint(address: str) -> TCP4ClientEndpoint:
    parts = urlsplit(CONFIGURED["url"])
    return TCP4ClientEndpoint(reactor, parts.hostname, parts.port, bindAddress=(address, 0))


def main() -> None:
    """Run until the soak has enough."""
    crowd = Crowd()
    globalLogBeginner.beginLoggingTo([crowd.logged], redirectStandardIO=False)

    def started() -> None:
        # From the reactor, not from within whatever the signal interrupted; SIGTERM is not yet to stop it.
        for number, step in (
            (signal.SIGUSR2, crowd.begin),
            (signal.SIGUSR1, crowd.finish),
            (signal.SIGTERM, crowd.end),
        ):
            signal.signal(number, lambda *_, step=step: reactor.callFromThread(step))
        crowd.start()

    reactor.callWhenRunning(started)
    reactor.run()


if __name__ == "__main__":
    main()
