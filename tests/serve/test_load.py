"""Many clients and large messages, over real sockets: nobody who lives is convicted."""

import json
import signal
import socket
import struct
import sys
import time
from pathlib import Path

import pytest
import pytest_twisted
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from processes import REACTORS, Program, client, script
from twisted.internet import defer, reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import LoopingCall

from heartbeat import HeartbeatClient, Settings

HERE = Path(__file__).parent


def real_server(settings="{}", **how):
    return script(HERE / "real_server.py", settings, **how)


@pytest.mark.slow
def test_our_client_takes_a_plain_server_as_it_is():
    """One that only echoes pings with a status is level 0, and every beat counts."""
    with (
        Program([sys.executable, HERE / "plain_server.py"]) as server,
        client(server.url(), "--interval", "0.1", "--count", "5") as run,
    ):
        events = list(run.json_events(20))
        assert run.wait(5) == 0
    assert (events[0]["event"], events[0]["level"]) == ("open", 0)
    assert (events[-1]["answered"], events[-1]["lost"]) == (5, 0)


class Page(WebSocketClientProtocol):
    """A page: pings by a timer, convicts nobody, answers what a server asks."""

    closed = False
    pongs = 0

    def onOpen(self):
        self.factory.pages.append(self)
        self.sendMessage(self.factory.opening)
        self.timer = LoopingCall(self.ping)
        if self.factory.pings:
            self.timer.start(0.5)

    def ping(self):
        self.sendMessage(b'{"type": "ping", "any": "state"}')

    def onMessage(self, payload, isBinary):
        message = json.loads(payload)
        if message["type"] == "ping" and message.get("status") == "pong":
            self.pongs += 1
        elif message["type"] == "ping":
            self.pongs += 1
            self.sendMessage(json.dumps({**message, "status": "pong"}).encode())

    def onClose(self, wasClean, code, reason):
        self.closed = True
        if hasattr(self, "timer") and self.timer.running:
            self.timer.stop()


def page_factory(url, opening, *, pings):
    factory = WebSocketClientFactory(url)
    factory.protocol = Page
    factory.opening, factory.pings, factory.pages = opening, pings, []
    return factory


async def until(condition, seconds):
    """Wait for a condition on the real reactor, looked at by a fast timer; fails when it does not come."""
    done = defer.Deferred()
    deadline = time.monotonic() + seconds

    def look():
        if condition() or time.monotonic() > deadline:
            looking.stop()

    looking = LoopingCall(look)
    looking.start(0.05).chainDeferred(done)
    await done
    assert condition(), f"not within {seconds} s"


@pytest.mark.slow
@pytest.mark.parametrize("kind", REACTORS)
@pytest_twisted.ensureDeferred
async def test_a_server_that_stood_still_for_ten_seconds_convicts_none_of_200_clients(kind):
    """Half of them ping, half are pinged; when it goes on all are there, and all are answered."""
    with real_server('{"interval": 0.5, "max_connections": 1000}', reactor=kind) as server:
        url = server.url()
        level_0 = page_factory(url, b'{"type": "onopen"}', pings=True)
        level_1 = page_factory(url, b'{"type": "onopen", "v": 1, "beats": "server", "interval_ms": 500}', pings=False)
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", int(url.split(":")[2].split("/")[0]))
        for factory in (level_0, level_1):
            await defer.gatherResults([endpoint.connect(factory) for _ in range(100)])
        pages = lambda: level_0.pages + level_1.pages  # noqa: E731  # both lists grow
        await until(lambda: len(pages()) == 200 and all(page.pongs for page in pages()), 20)
        server.signal(signal.SIGUSR1)
        stalled = time.monotonic()
        before = {}
        await until(lambda: time.monotonic() - stalled > 2, 5)
        before = {page: page.pongs for page in pages()}
        # Nothing is answered while it stands still; then everybody is.
        await until(lambda: time.monotonic() - stalled > 5, 5)
        assert {page: page.pongs for page in pages()} == before
        await until(lambda: all(page.pongs > before[page] + 3 for page in pages()), 30)
        assert time.monotonic() - stalled > 10
        assert not any(page.closed for page in pages())
        said = [json.loads(line)["event"] for line in server.seen + server.rest() if line.startswith("{")]
        # Not even suspected: what had arrived was read before anything was judged.
        assert set(said) <= {"acknowledged", "open"}, said
        for page in pages():
            page.sendClose()
        await until(lambda: all(page.closed for page in pages()), 10)


class Throttle(Protocol):
    """One direction's reader of a proxy that lets so many bytes a second pass, and reads no faster."""

    def __init__(self, rate):
        self.rate = rate
        self.peer = None
        self.early = b""

    def dataReceived(self, data):
        if self.peer is None:
            self.early += data
            return
        self.peer.transport.write(data)
        self.transport.pauseProducing()
        reactor.callLater(len(data) / self.rate, self.go_on)

    def go_on(self):
        if self.transport.connected:
            self.transport.resumeProducing()

    def connectionLost(self, reason):
        if self.peer is not None:
            self.peer.transport.loseConnection()


class Proxy(Factory):
    def __init__(self, port, rate):
        self.port, self.rate = port, rate
        self.all = []

    def buildProtocol(self, addr):
        near = Throttle(self.rate)
        self.all.append(near)

        def connected(far):
            near.peer, far.peer = far, near
            early, near.early = near.early, b""
            if early:
                far.transport.write(early)

        connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", self.port), Throttle(self.rate)).addCallback(connected)
        return near


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_a_message_of_50_mb_at_5_mb_a_second_convicts_nobody_in_either_direction():
    """Beating at 0.5 s, between library ends: the ping behind it is no dead peer's, nor the pong behind it."""
    size, rate = 50_000_000, 5_000_000
    raised = {"interval": 0.5, "message_limit": 100_000_000, "kept_bytes": 100_000_000, "sessions_bytes": 2_000_000_000}
    with real_server(json.dumps(raised)) as server:
        port = int(server.url().split(":")[2].split("/")[0])
        listening = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Proxy(port, rate))
        events, received = [], []
        run = HeartbeatClient(f"ws://127.0.0.1:{listening.getHost().port}/ws", settings=Settings(**raised))
        run.linkChanged = lambda status: events.append(status.event)
        run.messageReceived = lambda message: received.append(len(message["text"]))
        run.startService()
        await run.whenOpen()
        started = time.monotonic()
        await run.send({"type": "blob", "text": "x" * size})
        await run.send({"type": "send", "bytes": size})
        await until(lambda: received, 60)
        assert received == [size]
        # It did take its time both ways: the throttle works.
        assert time.monotonic() - started > 2 * size / rate * 0.9
        await run.stopService()
        await listening.stopListening()
        said = [json.loads(line) for line in server.rest() if line.startswith("{")]
    assert {"event": "message", "bytes": size} in said
    assert not {"dead", "closed"} & {event["event"] for event in said[:-1]}
    assert not {"dead", "reconnecting"} & set(events), events


@pytest.mark.slow
def test_a_peer_that_sends_but_does_not_read_is_not_convicted_by_the_kernel():
    """For twice the bound its pings arrive while our answers fill every buffer; then it reads them all."""
    with real_server('{"interval": 6.0}') as server:
        port = int(server.url().split(":")[2].split("/")[0])
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(("127.0.0.1", port))
        peer.settimeout(10)
        peer.sendall(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += peer.recv(1)
        ping = b'{"type":"ping","pad":"%s"}' % (b"x" * 900)
        frame = b"\x81" + struct.pack("!BH", 0x80 | 126, len(ping)) + b"\0\0\0\0" + ping
        sent, started = 0, time.monotonic()
        # Once a second: a kernel that hears from the peer more often than it probes the closed window never
        # asks itself whether to give up, and nothing would be shown.
        with LinesOf(server) as lines:
            while time.monotonic() - started < 31:
                peer.sendall(frame * 60)
                sent += 60
                lines.wait(1.0)
        assert not any('"dead"' in line or '"closed"' in line for line in server.seen + server.rest())
        answer = b'"pad":"' + b"x" * 900 + b'","status":"pong"'
        got = b""
        count = 0
        while count < sent:
            got += peer.recv(1 << 20)
            count += got.count(answer)
            got = got[-len(answer) + 1 :] if answer not in got else got[got.rindex(answer) + len(answer) :]
        assert count == sent
        peer.close()


class LinesOf:
    """Waits by listening to what a program says, so that a wait ends early when it says that something is wrong."""

    def __init__(self, program):
        self._program = program

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        pass

    def wait(self, seconds):
        """Let so much time pass, as long as the program has nothing to say."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                line = self._program.line(left)
            except AssertionError:
                return
            assert line is not None, "the server ended"
            assert '"dead"' not in line, line
