"""One client that does not read, and one that never acknowledges: what is kept for them is bounded, and nobody else notices.

Each beside ten clients that chat and beat all the while, on a real server with narrow bounds.
"""

import json
import socket
import sys
import time
from pathlib import Path

import pytest
import pytest_twisted
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from processes import Program
from test_load import until
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import LoopingCall

from heartbeat import HeartbeatClient, Settings

HERE = Path(__file__).parent

# Seconds and bytes. A beat of 0.1 s gives a hundred pongs a second, enough for a percentile.
TIMING = {"interval": 0.1, "timeout_min": 0.5, "timeout_max": 1.0, "probe": 1.0, "tick": 0.05}
OUTGOING = 65_536
TEXT = 1000

pytestmark = pytest.mark.slow


def resident(pid):
    """Bytes of memory that a process has now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no memory")


class Server:
    """The server's process, and what it tells."""

    def __init__(self, **settings):
        self.program = Program([sys.executable, HERE / "chat_server.py", json.dumps(TIMING | settings)])
        self.said = []
        self.load = {"peaks": {}, "kept": 0}

    def __enter__(self):
        self.url = self.program.url()
        self.port = int(self.url.split(":")[2].split("/")[0])
        return self

    def __exit__(self, *_exception):
        self.program.kill()

    @property
    def resident(self):
        return resident(self.program.pid)

    def listen(self):
        """Take note of what it has told since."""
        for line in self.program.rest():
            assert "Traceback" not in line, self.program.seen
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("event") == "load":
                self.load = event
            elif event:
                self.said.append(event)

    def events_of(self, client):
        self.listen()
        return [(event["event"], event["code"]) for event in self.said if event["client"] == client]

    def peak(self, client):
        """The most that ever waited for this client in the server's process."""
        self.listen()
        return self.load["peaks"].get(client, 0)


class Talker:
    """An ordinary client: it beats, reads, acknowledges, and chats with whom it is told."""

    def __init__(self, server, name):
        self.client = HeartbeatClient(server.url, settings=Settings(client_id=name), reactor=reactor)
        self.client.register("onchat", self.arrived)
        self.client.pongReceived = lambda rtt, clients: self.rtts.append(rtt)
        self.client.linkChanged = lambda status: self.events.append(status.event)
        self.rtts, self.events, self.statuses, self.sent = [], [], {}, []
        self.client.startService()

    def arrived(self, client, message):
        if "status" in message:
            self.statuses.setdefault(message["id"], []).append(message["status"])

    def chat(self, to):
        name = f"{self.client.settings.client_id}-{len(self.sent)}"
        self.sent.append(name)
        self.client.send({"type": "onchat", "id": name, "to": to, "text": "x" * TEXT})


class Talkers:
    """Ten of them, each saying something to one client, every 50 ms."""

    def __init__(self, server):
        self.all = [Talker(server, f"talker{number}") for number in range(10)]
        self.to = None
        self.left = 0
        self.talking = LoopingCall(self.talk)

    def talk(self):
        for talker in self.all:
            if self.left:
                self.left -= 1
                talker.chat(self.to)

    async def open(self):
        await gatherResults([talker.client.whenOpen() for talker in self.all])
        self.talking.start(0.05)

    def say(self, count, to):
        self.left, self.to = count, to

    @property
    def statuses(self):
        """All that was said of each chat, in the order of its sending by each."""
        return {name: talker.statuses.get(name, []) for talker in self.all for name in talker.sent}

    def percentile(self):
        """The 99th of a hundred round trips, in seconds, of those since the last time."""
        rtts = sorted(rtt for talker in self.all for rtt in talker.rtts)
        for talker in self.all:
            talker.rtts.clear()
        assert len(rtts) > 200
        return rtts[len(rtts) * 99 // 100]

    async def stop(self):
        self.talking.stop()
        await gatherResults([talker.client.stopService() for talker in self.all])


class Raw(WebSocketClientProtocol):
    """A client without a heartbeat of ours: what it sends is decided here. Autobahn answers its RFC 6455 pings."""

    def onOpen(self):
        self.messages, self.closed, self.timer = [], False, None
        self.sendMessage(json.dumps(self.factory.opening).encode())

    def onMessage(self, payload, isBinary):
        message = json.loads(payload)
        if message.get("type") == "onopen":
            self.answer = message
            self.factory.opened.append(self)
        elif "seq" in message:
            self.messages.append(message)

    def dataReceived(self, data):
        super().dataReceived(data)
        if self.factory.slowly:
            # 4 KiB at a time, until it is told to go on.
            self.transport.pauseProducing()

    def ping(self, every, pad=0, **members):
        """Ping without looking at the answers."""
        payload = json.dumps({"type": "ping", "pad": "x" * pad} | members).encode()
        self.timer = LoopingCall(self.sendMessage, payload)
        self.timer.start(every)

    def read_slowly(self):
        self.timer = LoopingCall(self.transport.resumeProducing)
        self.timer.start(0.02)

    def onClose(self, wasClean, code, reason):
        self.closed, self.code = True, code
        if getattr(self, "timer", None) is not None and self.timer.running:
            self.timer.stop()


async def raw(server, name, session=None, *, slowly=False, level=1):
    """One such client, open."""
    factory = WebSocketClientFactory(server.url)
    factory.protocol = Raw
    factory.setProtocolOptions(tcpNoDelay=True)
    factory.opening = {"type": "onopen"}
    if level:
        factory.opening |= {"v": 1, "beats": "client", "client_id": name, "session": session}
    factory.opened, factory.slowly = [], slowly
    connection = await TCP4ClientEndpoint(reactor, "127.0.0.1", server.port).connect(factory)
    connection.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.transport.bufferSize = 4096
    await until(lambda: factory.opened or connection.state == connection.STATE_CLOSED, 5)
    return connection


def assert_nobody_else_noticed(server, talkers, before, during):
    """The 99th percentile of their round trips has not moved, nobody was suspected, nobody had to come back."""
    print(f"99th percentile of the others' pongs: {before * 1000:.1f} ms before, {during * 1000:.1f} ms during")
    assert during < max(4 * before, TIMING["interval"] / 2)
    for talker in talkers.all:
        assert set(talker.events) <= {"open", "acknowledged"}, talker.events
        assert {event for event, _ in server.events_of(talker.client.settings.client_id)} <= {"open", "acknowledged"}


@pytest_twisted.ensureDeferred
async def test_who_does_not_read_is_closed_4008_and_gets_everything_in_order_when_he_is_back():
    """300 chats of 1000 characters wait for him, half a bound of them in the server's buffer, the rest in the session."""
    with Server(outgoing_limit=OUTGOING) as server:
        talkers = Talkers(server)
        await talkers.open()
        reader = await raw(server, "reader", slowly=False)
        reader.timer = LoopingCall(lambda: reader.sendMessage(b'{"type":"ping","ack":%d}' % len(reader.messages)))
        reader.timer.start(0.1)
        talkers.say(1000, "reader")
        await until(lambda: len(reader.messages) == 1000, 30)
        before, resident_before = talkers.percentile(), server.resident

        slow = await raw(server, "slow")
        slow.transport.pauseProducing()
        # What he asks is not read by him either: the answers fill what the chats have left of the bound.
        slow.ping(0.01, pad=900)
        talkers.say(300, "slow")
        await until(lambda: ("closed", 4008) in server.events_of("slow"), 30)
        said = [names for names in talkers.statuses.values() if names[-1:] == ["queued"]]
        await until(lambda: sum(names[-1:] == ["queued"] for names in talkers.statuses.values()) == 300, 30)
        talkers.say(700, "reader")
        try:
            await until(lambda: len(reader.messages) == 1700, 10)
        except AssertionError:
            print(len(reader.messages), reader.closed, server.events_of("reader"), server.load, talkers.left, server.program.seen[-30:])
            import collections
            print(collections.Counter(tuple(v) for v in talkers.statuses.values()))
            raise
        during, resident_during = talkers.percentile(), server.resident
        assert_nobody_else_noticed(server, talkers, before, during)
        print("waited for him at most:", server.peak("slow"), "bytes; memory:", resident_before, resident_during)
        # The bound, and what a moment's pings of his bring above it before no more of them are read.
        assert OUTGOING < server.peak("slow") < 2 * OUTGOING
        assert resident_during < resident_before + 4_000_000

        session = {"sid": slow.answer["sid"], "epoch": slow.answer["epoch"], "last": 0, "sent": 0, "try": 1}
        back = await raw(server, "slow", session)
        assert back.answer["resumed"] is True
        await until(lambda: len(back.messages) >= 300, 30)
        assert [message["seq"] for message in back.messages] == list(range(1, 301))
        sent = [message["id"] for message in back.messages]
        assert len(set(sent)) == 300
        back.sendMessage(b'{"type":"ack","ack":300}')
        await until(lambda: all(names == ["queued", "delivered"] for names in talkers.statuses.values()), 30)
        del said
        await talkers.stop()
        for connection in (slow, back, reader):
            connection.dropConnection(abort=True)
        await until(lambda: slow.closed and back.closed and reader.closed, 10)
