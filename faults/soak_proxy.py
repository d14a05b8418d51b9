"""A proxy on loopback that carries out a soak's plan: each link through it may be cut, lost, held back, or slowed down.

    python -m faults.soak_proxy '{"port": server's, "seed": 1, "clients": 2000, "fault_every": 120.0, "warm": 600.0, …}'

A client is known by its address (`soak_plan.address_of`), and the server sees the same one. Says where it `listens`; on
SIGUSR2 the plan begins, on SIGUSR1 it ends, and what held links back is over. Every `fault` that befell a link is told,
with the ports by which the two ends know it, and, of those links that lost bytes without a word, when each end
`noticed`, and whether `both` have. A link has one fault at a time.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import socket
import struct
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from typing import Any

from faults.soak_figures import LATE, tell
from faults.soak_plan import Fault, address_of, of_links

#: On close, send an RST and forget what is unsent (socket(7), SO_LINGER).
AT_ONCE = struct.pack("ii", 1, 0)

#: A link that lost bytes without a word is given up for both ends after so many seconds.
PATIENCE = 120.0

#: A slow link is read from in such pieces, and that often.
PIECE, PIECE_EVERY = 64, 0.25

_BUFFER = memoryview(bytearray(65_536))

#: What is queued behind the last byte of an end that has closed.
_CLOSE = b""


class Side(asyncio.BufferedProtocol):
    """One end of a link. What it is to be sent and is not due waits in `queue`."""

    def __init__(self, link: Link, name: str) -> None:
        self.link = link
        self.name = name
        self.transport: Any = None
        self.queue: deque[tuple[float, bytes]] = deque()
        self.timer: asyncio.TimerHandle | None = None
        self.is_deaf = False
        self.ended = False

    @property
    def other(self) -> Side:
        """The other end."""
        return self.link.server if self is self.link.client else self.link.client

    def connection_made(self, transport: Any) -> None:
        """Connected."""
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.link.connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return _BUFFER[:PIECE] if self.link.is_slow else _BUFFER

    def buffer_updated(self, size: int) -> None:
        """So many bytes have come."""
        self.other.give(bytes(_BUFFER[:size]))
        if self.link.is_slow:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(PIECE_EVERY, self.read_on)

    def read_on(self) -> None:
        """A slow end is read from again."""
        if not self.ended and not self.transport.is_closing():
            self.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """Closed, by its end or by us."""
        self.ended = True
        self.queue.clear()
        if self.timer is not None:
            self.timer.cancel()
        self.link.ended(self)
        self.other.give(_CLOSE)

    def give(self, data: bytes) -> None:
        """The other end has sent this, or closed: pass it on when it is due, if ever."""
        if self.is_deaf or self.ended:
            return
        now = time.monotonic()
        due = self.link.due(now)
        if due <= now and not self.queue and self.transport is not None:
            self.pass_on(data)
            return
        if self.queue:
            due = max(due, self.queue[-1][0])
        self.queue.append((due, data))
        self.wait()

    def pass_on(self, data: bytes) -> None:
        """Write it, or close."""
        if data is _CLOSE:
            self.transport.close()
        elif not self.transport.is_closing():
            self.transport.write(data)

    def wait(self) -> None:
        """Until the first of the queue is due."""
        if self.timer is None and self.queue and self.transport is not None:
            delay = self.queue[0][0] - time.monotonic()
            self.timer = asyncio.get_running_loop().call_later(max(0.0, delay), self.release)

    def release(self) -> None:
        """Pass on what is due."""
        self.timer = None
        if self.is_deaf:
            self.queue.clear()
        now = time.monotonic()
        while self.queue and self.queue[0][0] <= now:
            self.pass_on(self.queue.popleft()[1])
        self.wait()

    def hasten(self) -> None:
        """Nothing holds back any more what is queued."""
        self.queue = deque((0.0, data) for _, data in self.queue)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.transport is not None:
            self.release()

    def reset(self) -> None:
        """Close it by an RST, at once."""
        if self.transport is not None and not self.ended:
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            self.transport.abort()


class Link:
    """One connection through the proxy, and its fault; the client knows it by the port `near`, the server by `far`."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.client, self.server = Side(self, "client"), Side(self, "server")
        self.address = ""
        self.near = self.far = 0
        self.fault: Fault | None = None
        self.began = self.until = self.held_until = self.delay = 0.0
        self.is_slow = False
        self.is_silent = False

    def connected(self, side: Side) -> None:
        """One of the ends is connected."""
        if side is self.client:
            self.address, self.near = side.transport.get_extra_info("peername")
            self.proxy.accepted(self)
        else:
            self.far = side.transport.get_extra_info("sockname")[1]
            if self.client.ended:
                side.transport.abort()
            side.wait()

    def due(self, now: float) -> float:
        """When what has come now may be passed on."""
        return max(self.held_until, now + self.delay if now < self.until else now)

    def befall(self, fault: Fault, now: float) -> None:
        """From now on."""
        self.fault, self.began, self.until = fault, now, now + fault.lasts
        _BEFALL[fault.kind](self, fault)
        tell(
            "fault",
            kind=fault.kind,
            client=fault.whom,
            near=self.near,
            far=self.far,
            until=None if self.is_silent else self.until,
        )
        if fault.lasts:
            asyncio.get_running_loop().call_later(fault.lasts, self.recover)

    def recover(self) -> None:
        """The fault is over."""
        if self.is_silent:
            return
        self.fault, self.is_slow, self.delay, self.held_until = None, False, 0.0, 0.0
        for side in (self.client, self.server):
            side.hasten()

    def ended(self, side: Side) -> None:
        """One end has closed."""
        both = self.client.ended and (self.server.ended or self.server.transport is None)
        if self.is_silent:
            tell(
                "noticed",
                kind=self.fault.kind if self.fault is not None else "",
                side=side.name,
                address=self.address,
                near=self.near,
                after=time.monotonic() - self.began,
                both=both,
            )
        if both:
            self.proxy.gone(self)

    def give_up(self) -> None:
        """Nobody has noticed."""
        for side in (self.client, self.server):
            if side.transport is not None and not side.ended:
                tell("unnoticed", side=side.name, near=self.near, address=self.address)
                side.reset()

    def lose(self, *sides: Side) -> None:
        """These get nothing more."""
        self.is_silent = True
        for side in sides:
            side.is_deaf = True
            side.queue.clear()
        asyncio.get_running_loop().call_later(PATIENCE, self.give_up)

    def close(self) -> None:
        """Both ends are closed, by a FIN."""
        for side in (self.client, self.server):
            if side.transport is not None:
                side.transport.close()

    def reset(self) -> None:
        """Both ends are closed, by an RST."""
        self.client.reset()
        self.server.reset()

    def hold(self) -> None:
        """Every byte waits."""
        self.held_until = self.until


def _delay(link: Link, fault: Fault) -> None:
    link.delay = 0.2 + 0.6 * fault.degree


def _slow(link: Link, fault: Fault) -> None:
    link.is_slow = True


def _away(link: Link, fault: Fault) -> None:
    link.proxy.away[link.address] = fault
    link.proxy.away_until[link.address] = link.until
    link.reset()


_BEFALL: dict[str, Any] = {
    "cut": lambda link, fault: link.close(),
    "reset": lambda link, fault: link.reset(),
    "half-open": lambda link, fault: link.lose(link.client, link.server),
    "deaf": lambda link, fault: link.lose(link.server),
    "dumb": lambda link, fault: link.lose(link.client),
    "away": _away,
    "pause": lambda link, fault: link.hold(),
    "stall": lambda link, fault: link.hold(),
    "delay": _delay,
    "slow": _slow,
}


class Proxy:
    """All links, and the plan."""

    def __init__(self, configured: dict[str, Any]) -> None:
        self.port: int = configured["port"]
        self.plan = of_links(configured["seed"], configured["clients"], configured["fault_every"], configured["warm"])
        self.links: dict[str, Link] = {}
        self.opening: set[asyncio.Task[None]] = set()
        #: Who is away, by his address, and until when.
        self.away: dict[str, Fault] = {}
        self.away_until: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self.running = False

    def accepted(self, link: Link) -> None:
        """A client has connected."""
        self.links[link.address] = link
        now, until = time.monotonic(), self.away_until.get(link.address, 0.0)
        task = asyncio.get_running_loop().create_task(self.reach(link))
        self.opening.add(task)
        task.add_done_callback(self.opening.discard)
        if now < until:
            fault = self.away[link.address]
            link.befall(Fault(fault.at, "stall", fault.whom, until - now, 0.0), now)

    async def reach(self, link: Link) -> None:
        """Connect to the server as the client's address; what he says meanwhile waits."""
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: link.server, "127.0.0.1", self.port, local_addr=(link.address, 0)
            )
        except OSError:
            link.client.reset()

    def gone(self, link: Link) -> None:
        """Both ends of a link have closed."""
        if self.links.get(link.address) is link:
            del self.links[link.address]

    def begin(self) -> None:
        """The plan's time begins."""
        self.running = True
        self.began = time.monotonic()
        self.next()

    def next(self) -> None:
        """Wait for the plan's next fault."""
        fault = next(self.plan)
        due = self.began + fault.at - time.monotonic()
        asyncio.get_running_loop().call_later(max(0.0, due), self.carry_out, fault)

    def carry_out(self, fault: Fault) -> None:
        """One fault, if its client has a link, and that has none yet."""
        if not self.running:
            return
        link = self.links.get(address_of(fault.whom))
        if link is None or link.fault is not None or not link.far:
            self.counts["spared"] += 1
        else:
            self.counts[fault.kind] += 1
            link.befall(fault, time.monotonic())
        self.next()

    def finish(self) -> None:
        """All is well from now on; what was lost without a word stays lost."""
        self.running = False
        self.away_until.clear()
        for link in tuple(self.links.values()):
            if link.fault is not None:
                link.recover()

    async def watch(self, every: float) -> None:
        """Say how late the proxy itself was, which its links have felt, and every so often how it is going."""
        told = time.monotonic()
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.25)
            now = time.monotonic()
            if now - before - 0.25 > LATE:
                tell("late", seconds=now - before - 0.25)
            if now - told >= every:
                told = now
                tell("figures", links=len(self.links), faults=dict(self.counts))


async def main() -> None:
    """Run until ended."""
    configured = json.loads(sys.argv[1])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    proxy = Proxy(configured)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR2, proxy.begin)
    loop.add_signal_handler(signal.SIGUSR1, proxy.finish)
    listener = await loop.create_server(lambda: Link(proxy).client, "127.0.0.1", 0, backlog=4096)
    tell("listens", port=listener.sockets[0].getsockname()[1])
    await proxy.watch(configured["every"])


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
