"""Real clients in one process that chat round in a ring, each with the next, and keep a ledger of what was promised.

    clients.py '{"url": …, "names": ["c0", "c1"], "rate": 2.0, "size": 32, "settings": {}, "stall": 10.0, …}'

Each sends so many messages a second, whether its link is up or not: what cannot go out waits in the session. Prints
what happens as JSON. SIGUSR1: sends nothing new, waits until every message has arrived and has its final status, or
for a minute, prints the summary of the ledger and ends. SIGUSR2: its reactor stands still.
"""

import json
import signal
import sys
import time
from collections import Counter, defaultdict
from typing import Any

CONFIGURED = json.loads(sys.argv[1])
if CONFIGURED["reactor"] != "default":
    from twisted.application.reactors import installReactor

    installReactor(CONFIGURED["reactor"])

from twisted.internet import reactor as installed  # noqa: E402  # after the one that was asked for
from twisted.internet.defer import gatherResults  # noqa: E402  # as above
from twisted.internet.task import LoopingCall  # noqa: E402  # as above
from twisted.logger import LogLevel, globalLogBeginner, textFileLogObserver  # noqa: E402  # as above

from heartbeat import HeartbeatClient, SessionFull, Settings  # noqa: E402  # as above

reactor: Any = installed
FINAL = ("delivered", "lost", "unknown", "full", "sent")
PATIENCE = 60.0
PROGRESS = 0.25


def tell(event: str, **more: Any) -> None:
    """A line for the lab."""
    print(json.dumps({"event": event, "at": time.monotonic(), **more}), flush=True)  # noqa: T201  # what the lab reads


class Ledger:
    """What was sent, by whom and to whom, and what became of it."""

    def __init__(self) -> None:
        self.sent: dict[str, str] = {}  # id: recipient
        self.settled: set[str] = set()  # its `send` has fired, or failed
        self.handled: set[str] = set()
        self.refused: set[str] = set()
        self.finals: defaultdict[str, list[str]] = defaultdict(list)
        self.received: defaultdict[str, list[str]] = defaultdict(list)  # recipient: ids, as they came
        self.resumed = self.anew = 0
        self.complaints: list[str] = []

    def waiting(self) -> int:
        """Messages of which not all is known yet."""
        arrived = {name for names in self.received.values() for name in names}
        return sum(
            name not in self.refused and not (name in self.settled and self.finals[name] and name in arrived)
            for name in self.sent
        )

    def summary(self) -> dict[str, Any]:
        """All that the lab wants to know, by the names of its `Ledger`."""
        arrived = {(who, name) for who, names in self.received.items() for name in names}
        meant = {(who, name) for name, who in self.sent.items() if name not in self.refused}
        several = sum(len(finals) > 1 for finals in self.finals.values())
        doubles = sum(len(names) - len(set(names)) for names in self.received.values())
        complaints = list(self.complaints)
        if strangers := arrived - meant:
            complaints.append(f"messages that nobody sent them: {sorted(strangers)[:3]}")
        if misordered := self.misordered():
            complaints.append(f"{misordered} messages in the wrong order")
        if others := Counter(word for finals in self.finals.values() for word in finals if word != "delivered"):
            complaints.append(f"final statuses besides delivered: {dict(others)}")
        return {
            "sent": len(self.sent),
            "handled": len(self.handled),
            "received": sum(map(len, self.received.values())),
            "lost": len(meant - arrived),
            "doubled": doubles + several,
            "refused": len(self.refused),
            "resumed": self.resumed,
            "anew": self.anew,
            "complaints": complaints[:5],
        }

    def misordered(self) -> int:
        """Messages that came after a later one of the same sender."""
        count = 0
        for names in self.received.values():
            highest: Counter[str] = Counter()
            for sender, number in (name.split("-") for name in names):
                count += int(number) < highest[sender]
                highest[sender] = max(highest[sender], int(number))
        return count


class Chatter:
    """One client, who sends to one other."""

    def __init__(self, name: str, recipient: str, ledger: Ledger) -> None:
        self.name = name
        self.recipient = recipient
        self.ledger = ledger
        self.number = self.pongs = 0
        self.sid: str | None = None
        self.port: int | None = None
        self.is_open = False
        settings = Settings(client_id=name, **_tuples(CONFIGURED["settings"]))
        self.client = HeartbeatClient(CONFIGURED["url"], settings=settings, reactor=reactor)
        self.client.register("onchat", self.chat_arrived)
        self.client.linkChanged = self.link_changed
        self.client.pongReceived = lambda rtt, clients: self.beat("pong", rtt=rtt)
        self.client.pingReceived = lambda: self.beat("ping")
        self.client.sessionLost = lambda error: tell("lost-session", client=name, reason=error.reason)
        self.sending = LoopingCall(self.send)
        self.sending.clock = reactor

    def send(self) -> None:
        """Send the next message."""
        self.number += 1
        name = f"{self.name}-{self.number}"
        self.ledger.sent[name] = self.recipient
        text = "x" * CONFIGURED["size"]
        sent = self.client.send({"type": "onchat", "id": name, "to": self.recipient, "text": text})
        sent.addCallbacks(self.handled, self.failed, [name], None, [name])

    def handled(self, _: None, name: str) -> None:
        """The server has handled it."""
        self.ledger.settled.add(name)
        self.ledger.handled.add(name)

    def failed(self, failure: Any, name: str) -> None:
        """It was not accepted, or will never be confirmed."""
        self.ledger.settled.add(name)
        if failure.check(SessionFull):
            self.ledger.refused.add(name)
        else:
            # Told to its sender, and lost all the same if it does not arrive.
            tell("unconfirmed", client=self.name, id=name, reason=failure.getErrorMessage()[:100])

    def chat_arrived(self, client: Any, message: dict[str, Any]) -> None:
        """A message of another's, or what became of one of ours."""
        if "status" not in message:
            self.ledger.received[self.name].append(message["id"])
            if not CONFIGURED["quiet"]:
                tell("message", client=self.name, id=message["id"])
        elif message["status"] in FINAL:
            self.ledger.finals[message["id"]].append(message["status"])

    def beat(self, kind: str, **more: Any) -> None:
        """A ping of ours was answered, or one of the server's came."""
        self.pongs += kind == "pong"
        if not CONFIGURED["quiet"]:
            tell(kind, client=self.name, **more)

    def link_changed(self, status: Any) -> None:
        """The link changed."""
        more = {name: getattr(status, name) for name in ("detail", "reason", "code", "attempt", "delay")}
        if status.event == "open":
            self.is_open = True
            sid = self.client._session.channel.session.sid
            more["resumed"] = self.sid == sid
            self.ledger.resumed += self.sid == sid
            self.ledger.anew += self.sid not in (None, sid)
            self.sid = sid
            self.port = getattr(self.client._connection.transport.getHost(), "port", None)
        elif status.event == "closed":
            self.is_open = False
        tell(status.event, client=self.name, port=self.port, **more)


def _tuples(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


class Crowd:
    """All of them, and what the lab is told of them."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        names = CONFIGURED["names"]
        self.chatters = [Chatter(name, names[(at + 1) % len(names)], self.ledger) for at, name in enumerate(names)]
        self.deadline: float | None = None
        self.looking = LoopingCall(self.look)
        self.looking.clock = reactor
        self.unopened = len(names)

    def start(self) -> None:
        """The reactor runs."""
        for chatter in self.chatters:
            chatter.client.startService()
            chatter.client.whenOpen().addCallbacks(self.one_opened, lambda failure: None)
        self.looking.start(PROGRESS)

    def one_opened(self, _: Any) -> None:
        """Nobody sends to one who has never been there."""
        self.unopened -= 1
        if self.unopened or self.deadline is not None or not CONFIGURED["rate"]:
            return
        for at, chatter in enumerate(self.chatters):
            # Not all in the same moment.
            every = 1.0 / CONFIGURED["rate"]
            reactor.callLater(every * at / len(self.chatters), self.begin, chatter, every)

    def begin(self, chatter: Chatter, every: float) -> None:
        """One begins to send."""
        if self.deadline is None:
            chatter.sending.start(every)

    def finish(self) -> None:
        """Send nothing new."""
        self.deadline = time.monotonic() + PATIENCE
        for chatter in self.chatters:
            if chatter.sending.running:
                chatter.sending.stop()

    def look(self) -> None:
        """Tell how it goes, and end when all has arrived."""
        ledger = self.ledger
        tell(
            "progress",
            open=sum(one.is_open for one in self.chatters),
            pongs=sum(one.pongs for one in self.chatters),
            sent=len(ledger.sent),
            handled=len(ledger.handled),
            received=sum(map(len, ledger.received.values())),
        )
        if self.deadline is not None and (not ledger.waiting() or time.monotonic() > self.deadline):
            self.looking.stop()
            tell("summary", **ledger.summary())
            gatherResults([one.client.stopService() for one in self.chatters]).addCallback(lambda _: reactor.stop())

    def logged(self, event: Any) -> None:
        """A bug, ours or the library's: said, and complained of in the end."""
        if event["log_level"] >= LogLevel.error or "log_failure" in event:
            self.ledger.complaints.append(str(event.get("log_format") or event["log_system"])[:200])
            textFileLogObserver(sys.stdout)(event)


def stall() -> None:
    """Stand still."""
    tell("stalls")
    time.sleep(CONFIGURED["stall"])


def main() -> None:
    """Run until the lab has enough."""
    crowd = Crowd()
    globalLogBeginner.beginLoggingTo([crowd.logged], redirectStandardIO=False)
    # From the reactor, not from within whatever the signal interrupted.
    signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(crowd.finish))
    signal.signal(signal.SIGUSR2, lambda *_: reactor.callFromThread(stall))
    reactor.callWhenRunning(crowd.start)
    reactor.run()


main()
