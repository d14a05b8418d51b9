"""Two machines in memory, a network between them that can be cut, and a time that passes when you say so.

    world = World()
    world.listen(HeartbeatServerFactory(settings, reactor=world.server))
    client = HeartbeatClient("ws://test/ws", reactor=world.client, endpoint=world.endpoint())
    client.startService()
    world.advance(60)
    world.cut()
    world.advance(16)
    assert client.status.event == "reconnecting"

    client.stopService()
    world.close()
    assert world.delayed_calls == []

Each machine runs as Twisted does: timers first, then what has arrived. A machine that is stalled
does neither until its stall is over, and then does both, in that order; while one sleeps its clock
stands still besides, as that of a suspended laptop does. `cut(after=n)` cuts in the middle of what is
written, and `crash()` ends what runs on a machine as `kill -9` does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint, ITransport
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["Machine", "MemoryTransport", "World"]


class Machine(Clock):
    """The reactor of one end: its time stands still until the world lets it run."""

    def __init__(self) -> None:
        super().__init__()
        self.stalled_until = 0.0
        self.crashed = False
        self._slept = 0.0
        self._inbox: list[tuple[float, Callable[[], None]]] = []

    def slept(self) -> float:
        """Seconds that this machine has slept so far: its clock is behind the true time by as much."""
        return self._slept

    def deliver(self, at: float, step: Callable[[], None]) -> None:
        """Have `step` happen at `at`, as bytes arrive at a socket: after the timers."""
        self._inbox.append((at, step))

    @property
    def next_at(self) -> float:
        """When this machine has something to do."""
        timers = min((call.getTime() for call in self.calls), default=inf)
        inbox = min((at for at, _ in self._inbox), default=inf)
        return max(min(timers + self._slept, inbox), self.stalled_until)

    def turn(self, now: float) -> None:
        """One turn of the reactor: the timers that are due, without those that they set, then what has arrived."""
        due = [call for call in self.calls if call.getTime() + self._slept <= now]
        # The sum above and this difference may round apart: a timer that finds itself early would set itself again
        # for the same moment, and again.
        self.rightNow = max(now - self._slept, *(call.getTime() for call in due), self.rightNow)
        for call in sorted(due, key=lambda call: call.getTime()):
            # An earlier one of this turn may have cancelled it, or put it off.
            if call in self.calls and call.getTime() + self._slept <= now and not self.crashed:
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)
        arrived = [item for item in self._inbox if item[0] <= now]
        self._inbox = [item for item in self._inbox if item[0] > now]
        for _, step in arrived:
            if not self.crashed:
                step()


@implementer(ITransport)
class MemoryTransport:
    """One end of a connection in memory."""

    disconnecting = False

    def __init__(self, world: World, machine: Machine, protocol: Any, *, host: IPv4Address, peer: IPv4Address) -> None:
        self._world = world
        self._machine = machine
        self.protocol = protocol
        self._addresses = host, peer
        self.other: MemoryTransport
        self.connected = True
        self.is_cut = False
        self._written: list[bytes] = []
        self.paused = False
        self._waiting = b""

    @property
    def written(self) -> bytes:
        """All bytes that were given to it."""
        return b"".join(self._written)

    def write(self, data: bytes) -> None:
        """ITransport: send."""
        if self.connected and not self.disconnecting:
            self._written.append(data)
            self._carry(lambda: self.other._received(self._world._let_through(self.other._machine, data)))

    def writeSequence(self, data: list[bytes]) -> None:
        """ITransport: send."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """ITransport: close, after what was written."""
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            self._carry(lambda: self.other._lost(ConnectionDone()))
            self._machine.callLater(0, self._lost, ConnectionDone())

    def abortConnection(self) -> None:
        """ITCPTransport: close at once."""
        if self.connected:
            self._carry(lambda: self.other._lost(ConnectionLost()))
            self._machine.callLater(0, self._lost, ConnectionAborted())
            self.disconnecting = True

    def getHost(self) -> IPv4Address:
        """ITransport: our address."""
        return self._addresses[0]

    def getPeer(self) -> IPv4Address:
        """ITransport: the other's address."""
        return self._addresses[1]

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """IConsumer: never asks a producer to pause, there is no end to memory."""

    def unregisterProducer(self) -> None:
        """IConsumer: as above."""

    def pauseProducing(self) -> None:
        """IPushProducer: take nothing in for now; what arrives waits."""
        self.paused = True

    def resumeProducing(self) -> None:
        """IPushProducer: take in what has waited, and what comes."""
        self.paused = False
        waiting, self._waiting = self._waiting, b""
        if waiting:
            self._machine.deliver(self._world.now, lambda: self._received(waiting))

    def setTcpNoDelay(self, enabled: bool) -> None:
        """ITCPTransport: there is no delay."""

    def _carry(self, step: Callable[[], None]) -> None:
        if not self.is_cut:
            self.other._machine.deliver(self._world.now + self._world.latency, partial(self._arrive, step))

    def _arrive(self, step: Callable[[], None]) -> None:
        # What was under way when the network was cut does not arrive either.
        if not self.is_cut:
            step()

    def _received(self, data: bytes) -> None:
        if self.paused:
            self._waiting += data
        elif self.connected and data:
            self.protocol.dataReceived(data)

    def _crash(self) -> None:
        # The kernel closes what the process had open: the other end hears of it, this one of nothing any more.
        if self.connected:
            self._carry(lambda: self.other._lost(ConnectionLost()))
        self.connected = False

    def _lost(self, error: Exception) -> None:
        if self.connected:
            self.connected = False
            # A server that stood still may never have accepted it.
            if self.protocol is not None:
                self.protocol.connectionLost(Failure(error))


@implementer(IStreamClientEndpoint)
class _Endpoint:
    """Connects to whatever the world's server listens with."""

    def __init__(self, world: World) -> None:
        self._world = world

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """IStreamClientEndpoint: connect, once the network allows."""
        return self._world._connect(protocolFactory)


class World:
    """A server machine, a client machine, and the network. `latency` is one way, in seconds.

    `client_host` is the address that the server sees clients come from. `refuses`: nobody listens,
    connections are refused at once. `now` is the true time. `connections` are the transports of
    each connection that was made, the server's and the client's. `server` and `client` are the reactors
    of either machine, new ones after a crash.
    """

    def __init__(self, latency: float = 0.01, client_host: str = "127.0.0.1") -> None:
        self.server = Machine()
        self.client = Machine()
        self.latency = latency
        self.client_host = client_host
        self.now = 0.0
        self.refuses = False
        self.connections: list[tuple[MemoryTransport, MemoryTransport]] = []
        self._factory: Any = None
        self._is_cut = False
        # A cut to come: to which machine (None: to either), and how many bytes still get through before.
        self._cut_after: tuple[Machine | None, int] | None = None
        self._hanging: list[tuple[Any, Deferred[Any]]] = []

    def listen(self, factory: Factory) -> None:
        """Have the server machine listen with `factory`."""
        self._factory = factory
        factory.doStart()

    def endpoint(self) -> Any:
        """Where clients connect to."""
        return _Endpoint(self)

    def advance(self, seconds: float) -> None:
        """Let time pass, from event to event."""
        end = self.now + seconds
        while True:
            machines = (self.server, self.client)
            at = max(self.now, min(machine.next_at for machine in machines))
            if at > end:
                break
            self.now = at
            for machine in machines:
                if machine.next_at <= at and not machine.crashed:
                    machine.turn(at)
        self.now = end
        for machine in machines:
            if machine.stalled_until <= end:
                machine.rightNow = end - machine._slept

    def stall(self, seconds: float, machine: Machine | None = None) -> None:
        """Have a machine (the server) stand still: neither timers nor sockets, until it goes on."""
        machine = machine or self.server
        machine.stalled_until = max(machine.stalled_until, self.now + seconds)

    def sleep(self, seconds: float, machine: Machine | None = None) -> None:
        """Have a machine (the client) sleep: it stands still, and so does its clock."""
        machine = machine or self.client
        self.stall(seconds, machine)
        machine._slept += seconds

    @property
    def delayed_calls(self) -> list[DelayedCall]:
        """The timers that are set, on either machine."""
        return [*self.server.calls, *self.client.calls]

    def close(self) -> None:
        """End it: nobody listens any more, every connection breaks, and both ends have the time to see it."""
        if self._factory is not None:
            self._factory.doStop()
            self._factory = None
        self.heal()
        for ends in self.connections:
            for end in ends:
                end.abortConnection()
        still = max(machine.stalled_until for machine in (self.server, self.client)) - self.now
        self.advance(max(0.0, still) + 2 * self.latency + 1.0)

    def cut(self, *, after: int = 0, towards: Machine | None = None) -> None:
        """Cut the network: nothing arrives any more, nothing is said about it, new connections hang.

        It is cut when exactly `after` more bytes have arrived, `towards` one machine or in both directions together.
        """
        if after > 0:
            self._cut_after = towards, after
            return
        self._cut_after = None
        self._is_cut = True
        for ends in self.connections:
            for end in ends:
                end.is_cut = True

    @property
    def is_cut(self) -> bool:
        """Whether the network is cut now."""
        return self._is_cut

    def heal(self) -> None:
        """Mend the network for new connections; the old ones stay dead. A cut that was to come does not."""
        self._is_cut = False
        self._cut_after = None
        hanging, self._hanging = self._hanging, []
        for factory, deferred in hanging:
            self.client.deliver(self.now, partial(self._complete, factory, deferred))

    def drop(self) -> None:
        """Break all connections, and let both ends know (RST); but over a cut network nobody hears of it."""
        dropped = [ends for ends in self.connections if not ends[0].is_cut]
        self.connections = [ends for ends in self.connections if ends[0].is_cut]
        for ends in dropped:
            for end in ends:
                end._machine.callLater(0, end._lost, ConnectionLost())

    def crash(self, machine: Machine | None = None) -> None:
        """End what runs on a machine (the server) as `kill -9` does: timers, sockets, and what was yet to be read.

        Nothing that ran there hears of anything again. The other machine's sockets are reset, unless the network
        is cut. What comes next has a new reactor, `server` or `client`; where it was the server, nobody listens
        until it does so again.
        """
        machine = machine or self.server
        machine.crashed = True
        for ends in self.connections:
            for end in ends:
                if end._machine is machine:
                    end._crash()
        fresh = Machine()
        fresh.rightNow = self.now
        if machine is self.server:
            self.server, self._factory = fresh, None
        else:
            self.client, self._hanging = fresh, []
        if self._cut_after is not None and self._cut_after[0] is machine:
            self._cut_after = fresh, self._cut_after[1]

    def _let_through(self, machine: Machine, data: bytes) -> bytes:
        """What arrives of these bytes, where a cut is to come."""
        if self._cut_after is None or self._cut_after[0] not in (None, machine):
            return data
        towards, left = self._cut_after
        self._cut_after = towards, left - len(data)
        if len(data) >= left:
            self.cut()
        return data[:left]

    def _connect(self, factory: Any) -> Deferred[Any]:
        # Cancelled, it fails; what was under way finds that out in `_complete`.
        deferred: Deferred[Any] = Deferred()
        self.client.deliver(self.now + 2 * self.latency, partial(self._complete, factory, deferred))
        return deferred

    def _complete(self, factory: Any, deferred: Deferred[Any]) -> None:
        if deferred.called:
            return
        if self._is_cut:
            self._hanging.append((factory, deferred))
            return
        if self.refuses or self._factory is None:
            deferred.errback(ConnectError(string="refused"))
            return
        here, there = IPv4Address("TCP", "127.0.0.1", 9000), IPv4Address("TCP", self.client_host, 50_000)
        client = factory.buildProtocol(here)
        ends = (
            MemoryTransport(self, self.server, None, host=here, peer=there),
            MemoryTransport(self, self.client, client, host=there, peer=here),
        )
        ends[0].other, ends[1].other = ends[1], ends[0]
        self.connections.append(ends)
        # As a kernel does: the client is connected, whether or not the server's machine has the time to accept.
        self.server.deliver(self.now, partial(self._accept, ends[0], self._factory))
        client.makeConnection(ends[1])
        deferred.callback(client)

    def _accept(self, end: MemoryTransport, factory: Any) -> None:
        if not end.connected:
            return
        end.protocol = factory.buildProtocol(end.getPeer())
        if end.protocol is None:
            end.abortConnection()
        else:
            end.protocol.makeConnection(end)
