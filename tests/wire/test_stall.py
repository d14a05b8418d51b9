"""Ten thousand links, and a server that stands still for ten seconds: its own fault, and nobody else's."""

import json
import random
from heapq import heappop, heappush
from types import SimpleNamespace
from typing import ClassVar

import pytest
from autobahn.websocket.protocol import TrafficStats, WebSocketProtocol
from twisted.internet.task import Clock

from heartbeat import Presence
from heartbeat.core.server_link import ServerLink
from heartbeat.core.settings import BEATS, Settings
from heartbeat.ends import ServerEdge
from heartbeat.shared import ServerShared

LINKS = 10_000
TICK = 0.2
LATENCY = 0.05

#: By turns: a page at level 0, one that only its browser answers for, and a session of each kind.
KINDS = ("page", "hidden", *BEATS)


class Factory:
    """What the shared part asks of a factory."""

    def __init__(self):
        self.reactor = Clock()


class Far:
    """A protocol that is as light as can be, and the peer at its other end, whose answers the crowd delivers."""

    state = WebSocketProtocol.STATE_OPEN
    current_frame = None
    transport = SimpleNamespace(getPeer=lambda: None)
    http_headers: ClassVar = {}
    http_request_data = b""
    data = b""
    peer = "somebody"
    wasNotCleanReason = None
    closedByMe = droppedByMe = wasClean = False
    remoteCloseCode = localCloseCode = None

    def __init__(self, crowd, shared, kind):
        self.crowd = crowd
        self.kind = kind
        self.trafficStats = TrafficStats()
        self.frame_data = []
        self.suspected = 0
        self.edge = ServerEdge(self, shared)
        self.link = ServerLink(
            shared.settings,
            shared.ticker.running,
            self.edge.now(),
            presence=shared.presence,
            client_id=shared.new_client_id(),
            spread=crowd.chance.random(),
        )
        self.edge.start(self.link)
        if kind in BEATS:
            self.hear(b'{"type":"onopen","v":1,"beats":"%s"}' % kind.encode())

    # What the server says to it.

    def sendMessage(self, payload, **options):
        message = json.loads(payload)
        if message["type"] == "ping" and "status" not in message:
            self.crowd.post(self, LATENCY, payload[:-1] + b',"status":"pong"}')

    def sendPing(self, payload):
        self.crowd.post(self, LATENCY, payload, pong=True)

    def sendCloseFrame(self, code, reason):
        self.crowd.convicted.append((self.kind, code, reason))
        self.state = WebSocketProtocol.STATE_CLOSED

    def dropConnection(self, abort):
        self.edge.gone(None)

    def linkChanged(self, status):
        self.suspected += status.event == "suspect"

    def pongReceived(self, rtt, clients):
        pass

    # What it says.

    def hear(self, payload, *, pong=False):
        self.edge.heard()
        if pong:
            self.edge.pong(payload)
        else:
            assert self.edge.receive(payload, False)

    def beat(self):
        self.crowd.post(self, 6.0, b'{"type":"ping"}')


class Crowd:
    """All of them, and the reactor that serves them: timers first, then what has arrived."""

    def __init__(self):
        self.chance = random.Random(7)
        self.factory = Factory()
        self.clock = self.factory.reactor
        self.shared = ServerShared(self.factory, Settings(tick=TICK))
        self.convicted = []
        self.dead = set()
        self._post = []
        self._stamp = 0
        self.all = [Far(self, self.shared, KINDS[n % len(KINDS)]) for n in range(LINKS)]
        for far in self.all:
            if far.kind in ("page", "client", "both"):
                self.post(far, 6.0 * self.chance.random(), b'{"type":"ping"}')

    def post(self, far, after, payload, *, pong=False):
        """Something of a peer's, which will have arrived so much later."""
        self._stamp += 1
        heappush(self._post, (self.clock.seconds() + after, self._stamp, far, payload, pong))

    def turn(self, seconds):
        """One turn of the reactor, so much later than the last."""
        self.clock.advance(seconds)
        while self._post and self._post[0][0] <= self.clock.seconds():
            _, _, far, payload, pong = heappop(self._post)
            if far in self.dead:
                continue
            far.hear(payload, pong=pong)
            if payload == b'{"type":"ping"}':
                far.beat()

    def run(self, seconds):
        """So much time, without a stall."""
        for _ in range(round(seconds / TICK)):
            self.turn(TICK)

    def close(self):
        """Everybody leaves."""
        for far in self.all:
            if not far.edge.over:
                far.edge.gone(1000)
        self.shared.stop()
        self.clock.advance(0)


@pytest.fixture
def crowd():
    crowd = Crowd()
    yield crowd
    crowd.close()
    assert crowd.clock.calls == []
    assert crowd.shared.presence.connections == 0


@pytest.mark.slow
def test_ten_thousand_links_under_one_stalled_tick_and_nobody_is_convicted(crowd):
    assert isinstance(crowd.shared.presence, Presence)
    crowd.run(13)
    before = crowd.shared.presence.active
    suspected = sum(far.suspected for far in crowd.all)

    crowd.turn(10)

    # By the late tick alone nobody has even become suspect, for our own time stood still.
    assert crowd.shared.ticker.running.stalls == 1
    assert sum(far.suspected for far in crowd.all) == suspected
    assert crowd.shared.presence.active == before
    crowd.run(13)
    assert crowd.convicted == []


@pytest.mark.slow
def test_those_who_died_meanwhile_are_convicted_all_the_same(crowd):
    """Within the bound of our own running time, and everybody else is not."""
    crowd.run(8)
    crowd.dead.update(crowd.all[::100])

    crowd.turn(10)
    crowd.run(15.4 + 0.4)

    assert len(crowd.convicted) == len(crowd.dead)
    assert {kind for kind, _, _ in crowd.convicted} <= set(KINDS)
    assert {code for _, code, _ in crowd.convicted} == {4000}
