"""Lines between machines: delay, jitter, losses as the stalls they are to a user of TCP, outages, cuts without a word.

A line carries whole frames, in order, each way. What is not sent again by TCP does not exist here: a frame arrives, or
nothing that was sent after it does either.
"""

from heapq import heappush
from math import inf
from random import Random

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.python.failure import Failure

#: Frames: as RFC 6455 numbers them, and what a connection consists of besides.
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
UPGRADE, UPGRADED, FIN, RST = 16, 17, 18, 19

_PINGS = b'{"type":"ping","id":'
_SERVER = IPv4Address("TCP", "192.0.3.255", 9000)


class Transport(FileDescriptor):
    """One end of a line, as a protocol has it.

    `heard_at`: when anything last reached this machine, read or not. `asked` are the moments of the last two pings or
    probes, at which what stood before them had left. `rate`: bytes a second that it gets rid of, where that is little.
    """

    # Twisted's own are not looked at: what waits here is what `outbox` asks for last.
    dataBuffer = b""
    offset = 0
    disconnecting = False

    def __init__(self, line, machine, way, rate):
        self.line = line
        self.world = line.world
        self.machine = machine
        self.protocol = None
        self.other = None
        self.connected = True
        self.rate = rate
        self.heard_at = self.world.now
        self.asked = (-inf, -inf)
        self.read_at = self.pongs_at = self.beaten_at = self.heard_at
        self.mark = b"%d%b" % (line.number, way)
        self._chance = Random(f"{self.world.seed} line {self.mark.decode()}")
        # What was sent arrives in order; and not before the network is there again.
        self._arrives_after = self._blocked_until = 0.0
        self._left_at = 0.0
        self._mute = False
        self._deaf_after = inf
        self._reads = True
        self._unread = []

    # What a protocol, or the heartbeat, calls.

    def write(self, frame):
        """ITransport: send a frame."""
        if not self.connected or self.disconnecting:
            return
        now = asked = self.world.now
        if self.rate:
            # What is asked is asked when all that stood before it has left.
            asked = max(self._left_at, now)
            self._left_at = asked + (len(frame[1]) + 6) / self.rate
            if self._left_at > now + 0.2:
                self.line.disturb(now, self._left_at)
            now = self._left_at
        if frame[0] == PING or (frame[0] == TEXT and frame[1].startswith(_PINGS) and b'"status"' not in frame[1]):
            self.asked = (self.asked[1], asked)
        self._send(frame, now)

    @property
    def _tempDataLen(self):
        # By `rate`, what is left of what was written.
        if not self.rate:
            return 0
        return int(max(0.0, self._left_at - self.world.now) * self.rate)

    def loseConnection(self, _connDone=None):
        """ITransport: close, after what was written."""
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            self._send((FIN, b""), max(self._left_at, self.world.now))
            self.machine.callLater(0, self._lost, ConnectionDone())

    def abortConnection(self):
        """ITCPTransport: close at once."""
        if self.connected:
            if not self.disconnecting:
                self._send((RST, b""), self.world.now)
            self.disconnecting = True
            self.machine.callLater(0, self._lost, ConnectionAborted())

    def getPeer(self):
        """ITransport: the other's address."""
        return self.line.address if self is self.line.server else _SERVER

    def getHost(self):
        """ITransport: our address."""
        return _SERVER if self is self.line.server else self.line.address

    def registerProducer(self, producer, streaming):
        """IConsumer: never asks a producer to pause."""

    def unregisterProducer(self):
        """IConsumer: as above."""

    def pauseProducing(self):
        """IPushProducer: take nothing in for now."""
        self._reads = False

    def resumeProducing(self):
        """IPushProducer: take in what has waited, and what comes."""
        self._reads = True
        if self._unread:
            unread, self._unread = self._unread, []
            self.world.later(0.0, self._read_on, unread)

    def setTcpNoDelay(self, enabled):
        """ITCPTransport: there is no delay."""

    def _read_on(self, unread):
        for frame in unread:
            self.machine.deliver(self._read, frame)

    # What the network does.

    def _send(self, frame, now):
        if self._mute:
            return
        line, chance = self.line, self._chance.random()
        at = now + line.delay + line.jitter * chance
        if chance < line.loss:
            # Sent again by TCP: whatever comes after it waits.
            stall = 0.2 + 2.8 * self._chance.random() ** 3
            line.disturb(now, now + stall)
            at += stall
        if self._blocked_until > now:
            # Sent again and again, at ever longer intervals.
            at = self._blocked_until + line.delay + min(3.0, self._blocked_until - now) * chance
        self._arrives_after = at = max(at, self._arrives_after + 1e-6)
        world = self.world
        world.order += 1
        heappush(world.heap, (at, world.order, self.other.arrive, frame))

    def arrive(self, frame):
        """A frame has reached this machine's kernel, if it does."""
        world = self.world
        if world.now > self._deaf_after:
            return
        world.trace(self.mark, frame)
        if not self.connected:
            if frame[0] < FIN and not self.machine.paused:
                # Nobody has this socket any more, and the kernel says so.
                self._send((RST, b""), world.now)
            return
        self.heard_at = world.now
        machine = self.machine
        if machine.paused:
            machine.deliver(self._read, frame)
        else:
            world.touched = machine
            self._read(frame)

    def _read(self, frame):
        if not self.connected:
            return
        if not self._reads:
            self._unread.append(frame)
        elif frame[0] < FIN:
            self.protocol.dataReceived(frame)
        else:
            self._lost(ConnectionDone() if frame[0] == FIN else ConnectionLost())

    def _lost(self, error):
        if self.connected:
            self.connected = False
            self.line.ended()
            if self.protocol is not None:
                self.world.touched = self.machine
                self.protocol.connectionLost(Failure(error))

    def block(self, seconds):
        """For so long nothing that is sent from here gets through; it all does after that."""
        now = self.world.now
        self._blocked_until = max(self._blocked_until, now + seconds)
        self.line.disturb(now, self._blocked_until + 3.0 + self.line.delay + self.line.jitter)

    def cut(self, *, in_flight):
        """What is sent from here never arrives from now on; what is `in_flight` may."""
        self._mute = True
        self.line.disturb(self.world.now, inf)
        self.other._deaf_after = self._arrives_after if in_flight else self.world.now

    def vanish(self, *, silently):
        """The process that had this end is gone: the kernel says so, unless the whole machine is."""
        if self.connected:
            self.connected = False
            if not silently:
                self._send((RST, b""), self.world.now)
            self.line.disturb(self.world.now, inf)
            self.line.ended()


class Line:
    """One connection. `disturbed` are the times at which it did not carry what it was given as fast as it should."""

    def __init__(self, world, number, device, server, client):
        access = device.access
        self.wish = device.settings.beats or "client"
        self.world = world
        self.number = number
        self.address = IPv4Address("TCP", access.host, 1024 + number % 60_000)
        self.delay, self.jitter, self.loss = access.delay, access.jitter, access.loss
        self.disturbed = []
        self.server = Transport(self, server, b"s", 0.0)
        self.client = Transport(self, client, b"c", access.rate)
        self.server.other, self.client.other = self.client, self.server

    @property
    def ends(self):
        """Both ends."""
        return self.server, self.client

    def disturb(self, since, until):
        """Note that it was not at its best."""
        if self.disturbed and self.disturbed[-1][1] >= since:
            begun, ended = self.disturbed[-1]
            self.disturbed[-1] = (min(begun, since), max(ended, until))
        else:
            self.disturbed.append((since, until))

    def ended(self):
        """An end is gone."""
        if not (self.server.connected or self.client.connected):
            self.world.lines.pop(self, None)

    def drop(self):
        """Both ends are told that it broke."""
        for end in self.ends:
            if end.connected and not end._mute:
                end.machine.deliver(end._lost, ConnectionLost())
            end.cut(in_flight=False)
