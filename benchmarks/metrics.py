"""What it costs a server to be watched, and what a ping costs it, watched or not.

    python benchmarks/metrics.py [--connections 10000] [--pings 200000] [--json]

In memory: real protocols on transports that write nowhere, each with a session, half of them with bytes that wait. What
blocks the reactor is told in milliseconds of one turn; the rate of pings is that of one connection's, without a
socket, so that nothing but our own code is in it. For "before", run it with another tree on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock

from heartbeat import HeartbeatServerFactory

REQUEST = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
PING = b'{"type":"ping","seq":1000000001,"ts":1700000000000}'

#: How often each is done; the least is told, for what disturbs only adds to it.
TIMES = 7


class Nowhere(FileDescriptor):
    """A transport as the network's are, whose bytes go nowhere."""

    def __init__(self, reactor: Any, port: int) -> None:
        super().__init__(reactor)
        self._peer = IPv4Address("TCP", "127.0.0.1", port)
        self.connected = 1

    def write(self, data: bytes) -> None:
        """ITransport: forget it."""

    def getPeer(self) -> IPv4Address:
        """ITransport: the other's address."""
        return self._peer

    def getHost(self) -> IPv4Address:
        """ITransport: our address."""
        return IPv4Address("TCP", "127.0.0.1", 9000)

    def startReading(self) -> None:
        """FileDescriptor's: there is nothing to read."""

    def startWriting(self) -> None:
        """FileDescriptor's: nor to write."""


def frame(payload: bytes) -> bytes:
    """A short frame of a client's, masked with zeros, which leave the payload as it is."""
    return bytes((0x81, 0x80 | len(payload), 0, 0, 0, 0)) + payload


def crowd(connections: int) -> tuple[Any, Any, list[Any]]:
    """A server with so many connections: its reactor, its factory, and their protocols."""
    reactor: Any = Clock()
    factory = HeartbeatServerFactory(reactor=reactor)
    factory.room = None
    protocols = []
    for number in range(connections):
        transport = Nowhere(reactor, 1024 + number)
        protocol: Any = factory.buildProtocol(transport.getPeer())
        protocol.makeConnection(transport)
        protocol.dataReceived(REQUEST)
        opening = b'{"type":"onopen","v":1,"client_id":"n%d"}' % (number * 7919 % connections)
        protocol.dataReceived(frame(opening))
        protocol.dataReceived(frame(b'{"type":"ping"}'))
        if number % 2:
            transport.dataBuffer = b"x" * 100
        protocols.append(protocol)
    if factory.presence.active != connections:
        raise SystemExit(f"{factory.presence.active} of {connections} are there")
    return reactor, factory, protocols


def ms(step: Callable[[], object]) -> float:
    """The milliseconds that a step takes, at the least."""
    spent = []
    for _ in range(TIMES):
        began = time.perf_counter()
        step()
        spent.append(time.perf_counter() - began)
    return min(spent) * 1000


def scrape(connections: int) -> dict[str, float]:
    """What it costs to be asked, with so many connections."""
    from heartbeat.admin.metrics import Metrics
    from heartbeat.admin.view import View

    reactor, factory, _ = crowd(connections)
    view = View(factory)
    metrics = Metrics(view)
    found: list[Any] = []

    def look() -> None:
        found.clear()
        view.lines().addCallback(found.append)
        while not found:
            reactor.advance(0)

    look_ms = ms(look)
    if found[0].states["acknowledged"] != connections or found[0].queued != 100 * (connections // 2):
        raise SystemExit("not every connection was looked at")
    return {
        "look_ms": look_ms,
        "longest_turn_ms": view.blocked * 1000,
        "text_ms": ms(lambda: metrics.text("", found[0])),
        "page_of_100_ms": ms(lambda: view.clients("", 100)),
        "page_of_1000_ms": ms(lambda: view.clients("", 1000)),
    }


def rate(pings: int) -> float:
    """Pings a second through `dataReceived`."""
    _, _, (protocol,) = crowd(1)
    ping = frame(PING)

    def beat() -> None:
        receive = protocol.dataReceived
        for _ in range(pings // TIMES):
            receive(ping)

    return pings // TIMES / ms(beat) * 1000


def main() -> None:
    """Print what it costs."""
    parser = argparse.ArgumentParser(description="What it costs a server to be watched.")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--pings", type=int, default=200_000)
    parser.add_argument(
        "--rate-only", action="store_true", help="the pings alone, which a tree without metrics has too"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    told = {"pings_a_second": rate(options.pings)}
    if not options.rate_only:
        told |= scrape(options.connections)
    if options.json:
        print(json.dumps(told))
        return
    print(f"{told['pings_a_second']:,.0f} pings a second, one connection, without a socket")
    if not options.rate_only:
        print(f"with {options.connections:,} connections, in ms:")
        print(f"  a look at each of them {told['look_ms']:8.2f}, of one turn at most {told['longest_turn_ms']:.2f}")
        print(f"  the metrics' text      {told['text_ms']:8.2f}")
        print(f"  a page of 100 clients  {told['page_of_100_ms']:8.2f}, of 1000 {told['page_of_1000_ms']:.2f}")


if __name__ == "__main__":
    main()
