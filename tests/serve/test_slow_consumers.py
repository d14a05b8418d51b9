"""One client that does not read, and one that never acknowledges: both are bounded, and nobody else notices.

Each beside ten clients that chat and beat all the while, on a real server with narrow bounds.
"""

import json
import sys
import time
from pathlib import Path

import pytest
import pytest_twisted
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from processes import Program
from stolen import tell_of_stolen_time
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
TEXT = 2000
PADDED_PING = json.dumps({"type": "ping", "pad": "x" * 900}).encode()

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
        self.peaks = {}
        self.stolen = []

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
                for client, peak in event["peaks"].items():
                    self.peaks[client] = max(peak, self.peaks.get(client, 0))
            elif event.get("event") == "stolen":
                self.stolen.append(event["span"])
            elif event:
                self.said.append(event)

    def events_of(self, client):
        self.listen()
        return [(event["event"], event["code"]) for event in self.said if event["client"] == client]

    def peak(self, client):
        """The most that has waited for this client in the server's process."""
        self.listen()
        return self.peaks.get(client, 0)

    def forget_peaks(self):
        self.listen()
        self.peaks.clear()


class Talker:
    """An ordinary client: it beats, reads, acknowledges, and chats with whom it is told."""

    def __init__(self, server, name):
        self.client = HeartbeatClient(server.url, settings=Settings(client_id=name), reactor=reactor)
        self.client.register("onchat", self.arrived)
        self.client.pongReceived = lambda rtt, clients: self.rtts.append((time.monotonic(), rtt))
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
        return name


class Talkers:
    """Ten of them, one after the other saying something to one client, two hundred times a second."""

    def __init__(self, server):
        self.server = server
        self.stolen = []
        self.watching = tell_of_stolen_time(lambda *span: self.stolen.append(span))
        self.all = [Talker(server, f"talker{number}") for number in range(10)]
        self.sent_to = {}
        self.to = None
        self.left = 0
        self.talking = LoopingCall(self.talk)

    def talk(self):
        if self.left:
            self.left -= 1
            name = self.all[self.left % len(self.all)].chat(self.to)
            self.sent_to.setdefault(self.to, []).append(name)

    async def open(self):
        await gatherResults([talker.client.whenOpen() for talker in self.all])
        self.talking.start(0.005)

    def say(self, count, to):
        self.left, self.to = count, to

    @property
    def statuses(self):
        """All that was said of each chat."""
        return {name: talker.statuses.get(name, []) for talker in self.all for name in talker.sent}

    def count(self, status):
        """How many chats were said to be this last."""
        return sum(statuses[-1:] == [status] for statuses in self.statuses.values())

    def percentile(self):
        """The 99th of a hundred round trips, in seconds, of those since the last time.

        Who is late himself knows of none; and none counts in which either process had no processor for a while.
        """
        self.server.listen()
        stolen = [*self.stolen, *self.server.stolen]
        rtts = sorted(
            rtt
            for talker in self.all
            for at, rtt in talker.rtts
            if rtt is not None and not any(begin < at and at - rtt < end for begin, end in stolen)
        )
        for talker in self.all:
            talker.rtts.clear()
        assert len(rtts) > 200
        return rtts[len(rtts) * 99 // 100]

    async def stop(self):
        self.talking.stop()
        self.watching.stop()
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
        if self.factory.slowly and self.timer is not None:
            # 4 KiB, and then nothing until the timer comes again.
            self.transport.pauseProducing()

    def every(self, seconds, payload):
        """Send this so often, or, without anything to send, read a little."""
        self.timer = LoopingCall(self.step, payload)
        self.timer.start(seconds)

    def step(self, payload):
        if payload is None:
            self.transport.resumeProducing()
        elif self.state == self.STATE_OPEN:
            self.sendMessage(payload())

    def onClose(self, wasClean, code, reason):
        self.closed, self.code = True, code
        if self.timer is not None and self.timer.running:
            self.timer.stop()


async def raw(server, name, session=None, *, slowly=False, level=1):
    """One such client, open."""
    factory = WebSocketClientFactory(server.url)
    factory.protocol = Raw
    factory.opening = {"type": "onopen"}
    if level:
        factory.opening |= {"v": 1, "beats": "client", "client_id": name, "session": session}
    factory.opened, factory.slowly = [], slowly
    connection = await TCP4ClientEndpoint(reactor, "127.0.0.1", server.port).connect(factory)
    connection.transport.bufferSize = 4096
    await until(lambda: factory.opened, 5)
    return connection


def assert_nobody_else_noticed(server, talkers, before, during):
    """The 99th percentile of their round trips has not moved, nobody was suspected, nobody had to come back."""
    print(f"99th percentile of the others' pongs: {before * 1000:.1f} ms before, {during * 1000:.1f} ms during")
    assert during < max(4 * before, TIMING["interval"] / 2)
    for talker in talkers.all:
        assert set(talker.events) <= {"open", "acknowledged"}, talker.events
        assert {event for event, _ in server.events_of(talker.client.settings.client_id)} <= {"open", "acknowledged"}


async def reading(server, talkers):
    """One who reads and acknowledges is chatted with. He, the 99th percentile meanwhile, and the memory after."""
    reader = await raw(server, "reader")
    reader.every(0.1, lambda: b'{"type":"ping","ack":%d}' % len(reader.messages))
    await chats_read(talkers, reader, 1000)
    return reader, talkers.percentile(), server.resident


async def chats_read(talkers, reader, count):
    """So many more chats come to the reader."""
    count += len(reader.messages)
    talkers.say(count - len(reader.messages), "reader")
    await until(lambda: len(reader.messages) == count, 30)


async def gone(*connections):
    for connection in connections:
        connection.dropConnection(abort=True)
    await until(lambda: all(connection.closed for connection in connections), 10)


@pytest_twisted.ensureDeferred
async def test_who_does_not_read_is_closed_4008_and_gets_all_that_was_kept_when_he_is_back():
    """He asks, and reads no answer; he comes back, reads slowly, and has all 400 chats in order, each once."""
    with Server(outgoing_limit=OUTGOING) as server:
        talkers = Talkers(server)
        await talkers.open()
        reader, before, resident_before = await reading(server, talkers)
        slow = await raw(server, "slow")
        slow.transport.pauseProducing()
        # What he asks is answered until the answers fill what the chats have left of the bound.
        slow.every(0.01, lambda: PADDED_PING)
        talkers.say(400, "slow")
        await until(lambda: ("closed", 4008) in server.events_of("slow"), 30)
        await until(lambda: talkers.count("queued") == 400, 30)
        await chats_read(talkers, reader, 400)
        resident_during = server.resident
        assert_nobody_else_noticed(server, talkers, before, talkers.percentile())
        print("memory of the server before and after:", resident_before, resident_during)
        print("waited for him at most, in bytes:", server.peak("slow"))
        # The bound, and what was asked in one segment before nothing more of his was read.
        assert OUTGOING < server.peak("slow") < 2 * OUTGOING
        assert resident_during < resident_before + 8_000_000

        session = {"sid": slow.answer["sid"], "epoch": slow.answer["epoch"], "last": 0, "sent": 0, "try": 1}
        server.forget_peaks()
        back = await raw(server, "slow", session, slowly=True)
        assert back.answer["resumed"] is True
        back.every(0.02, None)
        await until(lambda: len(back.messages) == 400, 30)
        assert [message["seq"] for message in back.messages] == list(range(1, 401))
        assert sorted(message["id"] for message in back.messages) == sorted(talkers.sent_to["slow"])
        # Most of it never left the session before he had read what was before it: half a bound, and one message.
        print("waited for him at most during the replay:", server.peak("slow"))
        assert OUTGOING // 4 < server.peak("slow") <= OUTGOING // 2 + TEXT + 200
        back.sendMessage(b'{"type":"ack","ack":400}')
        await until(lambda: talkers.count("delivered") == len(talkers.statuses), 30)
        assert all(statuses == ["queued", "delivered"] for statuses in talkers.statuses.values())
        await talkers.stop()
        await gone(slow, back, reader)


@pytest_twisted.ensureDeferred
async def test_who_never_acknowledges_is_closed_4008_at_the_end_of_the_patience_and_his_session_is_over():
    """He reads and beats; 100 messages are kept for him and not one more, and then their senders are told."""
    with Server(kept_limit=100, full_patience=2.0) as server:
        talkers = Talkers(server)
        await talkers.open()
        reader, before, resident_before = await reading(server, talkers)
        silent = await raw(server, "silent")
        silent.every(0.1, lambda: b'{"type":"ping"}')
        talkers.say(600, "silent")
        await until(lambda: len(silent.messages) == 100, 10)
        filled = time.monotonic()
        await until(lambda: silent.closed, 10)
        assert (silent.code, len(silent.messages)) == (4008, 100)
        assert 1.5 < time.monotonic() - filled < 5
        await until(lambda: talkers.left == 0, 10)
        await chats_read(talkers, reader, 400)
        assert_nobody_else_noticed(server, talkers, before, talkers.percentile())
        print("memory of the server before and after:", resident_before, server.resident)
        assert server.resident < resident_before + 8_000_000
        # Those that he might have handled are lost, as far as anybody can know; for the others there was no room,
        # or nobody of this name any more.
        became = [talkers.statuses[name] for name in talkers.sent_to["silent"]]
        assert became.count(["queued", "lost"]) == 100
        assert became.count(["full"]) > 100
        assert became.count(["full"]) + became.count(["unknown"]) == 500

        session = {"sid": silent.answer["sid"], "epoch": silent.answer["epoch"], "last": 50, "sent": 0, "try": 1}
        again = await raw(server, "silent", session)
        assert (again.answer["resumed"], again.answer["reason"]) == (False, "full")
        assert again.answer["sid"] != silent.answer["sid"]
        await talkers.stop()
        await gone(silent, again, reader)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("asks", [True, False], ids=["who-asks", "who-says-nothing"])
async def test_a_page_without_a_session_that_does_not_read_is_written_no_more_than_the_bound(asks):
    """Nothing is kept for it: what finds no room in the buffer is `full`."""
    with Server(outgoing_limit=OUTGOING) as server:
        talkers = Talkers(server)
        await talkers.open()
        reader, before, _ = await reading(server, talkers)
        page = await raw(server, "page", level=0)
        name = page.answer["client_id"]
        page.transport.pauseProducing()
        if asks:
            page.every(0.1, lambda: b'{"type":"ping"}')
        talkers.say(1000, name)
        await until(lambda: ("closed", 4008) in server.events_of(name), 10)
        await until(lambda: talkers.left == 0, 30)
        await chats_read(talkers, reader, 400)
        assert_nobody_else_noticed(server, talkers, before, talkers.percentile())
        print("waited for the page at most, in bytes:", server.peak(name))
        assert server.peak(name) < OUTGOING + TEXT + 200
        became = [talkers.statuses[name] for name in talkers.sent_to[name]]
        assert became.count(["sent"]) + became.count(["full"]) + became.count(["unknown"]) == 1000
        assert became.count(["sent"]) >= 20
        assert became.count(["full"]) >= 20
        await talkers.stop()
        await gone(page, reader)
