"""Fifty clients in one process that chat with each other without end, and keep a ledger of all that was promised.

    chat_clients.py URL SEED CLIENTS CHATS      so many clients, so many chats of each under way at a time

Prints how it goes as JSON, ten times a second: `open` clients, chats that are `unhandled` (whose `send` has not
fired), those `waiting` for their final status. SIGUSR1: sends nothing new, waits until every chat has its final
status, or for a minute, prints the summary of the ledger and ends.
"""

import json
import random
import signal
import sys
import time
from collections import Counter, defaultdict

from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import LoopingCall
from twisted.logger import LogLevel, globalLogBeginner, textFileLogObserver

from heartbeat import HeartbeatClient, Settings

FINAL = ("delivered", "lost", "unknown", "full", "sent")
PATIENCE = 60.0


def tell(**event):
    print(json.dumps(event), flush=True)


class Ledger:
    """What was sent, and what became of it."""

    def __init__(self):
        self.sent = {}  # id: (sender, recipient)
        self.handled = set()
        self.failed = Counter()
        self.statuses = defaultdict(list)
        self.received = defaultdict(list)  # recipient: the ids, in the order of their coming
        self.lost_sessions = Counter()
        self.other_sessions = 0
        self.opened = Counter()
        self.errors = []

    def final(self, name):
        return [status for status in self.statuses[name] if status in FINAL]

    def waiting(self):
        return [name for name in self.sent if not self.final(name)]

    def summary(self):
        finals = {name: self.final(name) for name in self.sent}
        arrived = {(recipient, name) for recipient, names in self.received.items() for name in names}
        meant = {(recipient, name) for name, (_, recipient) in self.sent.items()}
        return {
            "sent": len(self.sent),
            "handled": len(self.handled),
            "failed": dict(self.failed),
            "finals": dict(Counter(status for found in finals.values() for status in found)),
            "without_final": sorted(name for name, found in finals.items() if not found)[:20],
            "several_finals": sorted(name for name, found in finals.items() if len(found) > 1)[:20],
            "queued_twice": sorted(name for name in finals if self.statuses[name].count("queued") > 1)[:20],
            "queued_late": sorted(name for name in finals if self.statuses[name][-1:] == ["queued"])[:20],
            "received": sum(map(len, self.received.values())),
            "doubles": sum(len(names) - len(set(names)) for names in self.received.values()),
            "misordered": self.misordered(),
            "missing": sorted(name for name in self.handled if (self.sent[name][1], name) not in arrived)[:20],
            "strangers": sorted(arrived - meant)[:20],
            "opened": dict(self.opened),
            "resumed": sum(self.opened.values()) - len(self.opened),
            "not_resumed": self.other_sessions,
            "lost_sessions": dict(self.lost_sessions),
            "errors": self.errors[:5],
        }

    def misordered(self):
        """Chats that came before an earlier one of the same sender."""
        count = 0
        for names in self.received.values():
            highest = Counter()
            for sender, number in (name.split("-") for name in names):
                count += int(number) < highest[sender]
                highest[sender] = max(highest[sender], int(number))
        return count


class Chatter:
    """One client: as soon as one of its chats has its final status, it sends another."""

    def __init__(self, url, name, others, ledger, seed):
        self.name = name
        self.others = others
        self.ledger = ledger
        self.chance = random.Random(seed)
        self.number = 0
        settings = Settings(client_id=name, delays=(0.05,), attempts=100_000)
        self.client = HeartbeatClient(url, settings=settings, reactor=reactor)
        self.client.register("onchat", self.chat_arrived)
        self.client.linkChanged = self.link_changed
        self.client.sessionLost = lambda error: self.ledger.lost_sessions.update([error.reason])
        self.sid = None
        self.is_open = False
        self.unhandled = self.waiting = 0

    def send(self):
        self.number += 1
        name = f"{self.name}-{self.number}"
        recipient = self.chance.choice(self.others)
        self.ledger.sent[name] = (self.name, recipient)
        self.unhandled += 1
        self.waiting += 1
        sent = self.client.send({"type": "onchat", "id": name, "to": recipient, "text": "x" * (self.number % 200)})
        sent.addCallbacks(self.handled, self.failed, [name])

    def handled(self, _, name):
        self.unhandled -= 1
        self.ledger.handled.add(name)

    def failed(self, failure):
        self.unhandled -= 1
        self.ledger.failed[f"{failure.type.__name__}: {failure.getErrorMessage()[:100]}"] += 1

    def chat_arrived(self, client, message):
        if "status" not in message:
            self.ledger.received[self.name].append(message["id"])
            return
        self.ledger.statuses[message["id"]].append(message["status"])
        if message["status"] in FINAL:
            self.waiting -= 1
            # Not from within the handler: what is sent there would be one long recursion at level 0.
            if not self.ledger.finishing:
                self.send()

    def link_changed(self, status):
        if status.event == "open":
            self.is_open = True
            self.ledger.opened[self.name] += 1
            sid = self.client._session.channel.session.sid
            self.ledger.other_sessions += self.sid not in (None, sid)
            self.sid = sid
        elif status.event == "closed":
            self.is_open = False


class Crowd:
    def __init__(self, url, seed, count, chats):
        self.ledger = Ledger()
        self.ledger.finishing = False
        names = [f"u{number}" for number in range(count)]
        self.chatters = [
            Chatter(url, name, [other for other in names if other != name], self.ledger, f"{seed} {name}")
            for name in names
        ]
        self.chats = chats
        self.deadline = None
        self.looking = LoopingCall(self.look)

    def start(self):
        for chatter in self.chatters:
            chatter.client.startService()
            chatter.client.whenOpen().addCallback(lambda _: self.opened())
        self.looking.start(0.1)

    def opened(self):
        """Nobody sends to one who has never been there."""
        if len(self.ledger.opened) == len(self.chatters):
            for chatter in self.chatters:
                for _ in range(self.chats):
                    chatter.send()

    def finish(self):
        self.ledger.finishing = True
        self.deadline = time.monotonic() + PATIENCE

    def look(self):
        unhandled, waiting = (sum(getattr(one, name) for one in self.chatters) for name in ("unhandled", "waiting"))
        tell(
            event="progress",
            open=sum(one.is_open for one in self.chatters),
            sent=len(self.ledger.sent),
            unhandled=unhandled,
            waiting=waiting,
        )
        if self.ledger.finishing and (not (unhandled or waiting) or time.monotonic() > self.deadline):
            self.looking.stop()
            tell(event="summary", **self.ledger.summary())
            gatherResults([one.client.stopService() for one in self.chatters]).addCallback(lambda _: reactor.stop())

    def logged(self, event):
        if event["log_level"] >= LogLevel.error or "log_failure" in event:
            self.ledger.errors.append(event.get("log_format") or event["log_system"])
            textFileLogObserver(sys.stdout)(event)


def main():
    url, seed, count, chats = sys.argv[1:]
    crowd = Crowd(url, seed, int(count), int(chats))
    globalLogBeginner.beginLoggingTo([crowd.logged], redirectStandardIO=False)
    signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(crowd.finish))
    reactor.callWhenRunning(crowd.start)
    reactor.run()


main()
