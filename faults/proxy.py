"""A proxy on loopback whose every passing byte the lab may hold back, lose, or have overtaken by a close.

    proxy.py HOST PORT '{"delay": 0.3, "jitter": 0.0, "hole": false}'

Prints where it listens and where it takes orders, each a line of JSON that is answered when it is carried out:

    {"set": {"delay": …, "jitter": …, "hole": …}}
        From now on; a hole takes every byte and passes none on.
    {"reset": true}
        Both sides of every connection get an RST, now.
    {"overtake": "server" | "client", "by": "fin" | "rst"}
        The next bytes to that side are lost, and it is closed in their place; then the other side is, with a FIN.
    {"sever": true}
        Clients get an RST; the server is not told.
    {"tell": true}
        Of what was severed the server is told now, with a FIN.

Bytes are never changed and never overtake each other. Says when a connection was `accepted`, when it
has `reached` the server, when a close has `overtaken` bytes on it, and when one end of it `ended` it, each with the
client's `port`.
"""

import asyncio
import json
import random
import socket
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any

CONFIGURED: dict[str, Any] = {"delay": 0.0, "jitter": 0.0, "hole": False}
CHANCE = random.Random()  # noqa: S311  # lots, not secrets
#: On close, send an RST and forget what is unsent (socket(7), SO_LINGER).
AT_ONCE = struct.pack("ii", 1, 0)


def tell(event: str, **more: Any) -> None:
    """A line for the lab."""
    sys.stdout.write(json.dumps({"event": event, "at": time.monotonic(), **more}) + "\n")
    sys.stdout.flush()


class Side(asyncio.Protocol):
    """One side of a connection through the proxy; what it receives goes out by `other`, when it is due."""

    def __init__(self, passage: "Passage", name: str) -> None:
        self.passage = passage
        self.name = name
        self.transport: asyncio.Transport | None = None
        self.held: deque[tuple[float, bytes]] = deque()
        self.timer: asyncio.TimerHandle | None = None
        self.ended = False

    @property
    def other(self) -> "Side":
        """The other side."""
        return self.passage.server if self is self.passage.client else self.passage.client

    def connection_made(self, transport: Any) -> None:
        """Connected."""
        self.transport = transport
        if self.name == "client":
            self.passage.port = transport.get_extra_info("peername")[1]
            tell("accepted", port=self.passage.port)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Bytes for the other side."""
        if CONFIGURED["hole"] or self.passage.is_severed:
            return
        if self.passage.overtakes == self.other.name:
            self.passage.overtake(self.other, len(data))
            return
        now = time.monotonic()
        due = now + CONFIGURED["delay"] + CONFIGURED["jitter"] * CHANCE.random()
        if self.held:
            due = max(due, self.held[-1][0])
        self.held.append((due, data))
        self.release()

    def eof_received(self) -> bool:
        """No more bytes from here; whether the transport is to stay open."""
        self.end()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """Gone altogether."""
        self.end()

    def end(self) -> None:
        """This end has closed; the other one hears of it when all bytes have passed, or never."""
        if self.ended:
            return
        self.ended = True
        tell("ended", side=self.name, port=self.passage.port)
        if CONFIGURED["hole"]:
            self.passage.is_severed = True
        if not self.passage.is_severed:
            self.release()

    def release(self) -> None:
        """Pass on what is due, and look again when more is."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        way, now = self.other.transport, time.monotonic()
        if way is None:
            return
        while self.held and self.held[0][0] <= now:
            _, data = self.held.popleft()
            if not way.is_closing():
                way.write(data)
        if self.held:
            self.timer = asyncio.get_running_loop().call_later(self.held[0][0] - now, self.release)
        elif self.ended:
            way.close()

    def close(self, *, by: str) -> None:
        """Close this side with a `fin`, or an `rst`, and pass nothing more on to it."""
        self.other.held.clear()
        if self.transport is None or self.transport.is_closing():
            return
        if by == "rst":
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            self.transport.abort()
        else:
            self.transport.close()


class Passage:
    """One connection through the proxy."""

    def __init__(self, proxy: "Proxy") -> None:
        self.proxy = proxy
        self.client, self.server = Side(self, "client"), Side(self, "server")
        # The side whose next bytes are to be overtaken, and by what.
        self.overtakes: str | None = None
        self.by = "fin"
        self.is_severed = False
        #: The client's, by which the lab knows it.
        self.port: int | None = None
        proxy.passages.add(self)

    async def open(self, host: str, port: int) -> None:
        """Reach the server; what the client says meanwhile waits."""
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.server, host, port)
        except OSError:
            self.client.close(by="rst")
            return
        tell("reached", port=self.port)
        self.client.release()

    @property
    def is_open(self) -> bool:
        """Whether either side is."""
        return any(side.transport and not side.transport.is_closing() for side in (self.client, self.server))

    def overtake(self, side: Side, count: int) -> None:
        """Close `side` in place of the bytes that were to go there."""
        self.overtakes, self.is_severed = None, True
        tell("overtaken", side=side.name, port=self.port, bytes=count, by=self.by)
        side.close(by=self.by)
        side.other.close(by="fin")


class Proxy:
    """All connections, and the orders of the lab."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.passages: set[Passage] = set()
        self.opening: set[asyncio.Task[None]] = set()

    def accept(self) -> Side:
        """A client has connected."""
        passage = Passage(self)
        task = asyncio.get_running_loop().create_task(passage.open(self.host, self.port))
        self.opening.add(task)
        task.add_done_callback(self.opening.discard)
        return passage.client

    async def take_orders(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry out what the lab wants."""
        with suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(json.dumps({"open": self.carry_out(json.loads(line))}).encode() + b"\n")
        writer.close()

    def carry_out(self, order: dict[str, Any]) -> int:
        """One order; returns how many connections it found open."""
        self.passages = {passage for passage in self.passages if passage.is_open or not passage.client.transport}
        CONFIGURED.update(order.get("set", {}))
        for passage in self.passages:
            if "overtake" in order:
                passage.overtakes, passage.by = order["overtake"], order["by"]
            if "reset" in order:
                passage.is_severed = True
                passage.server.close(by="rst")
            if "sever" in order:
                passage.is_severed = True
            if "reset" in order or "sever" in order:
                passage.client.close(by="rst")
            if "tell" in order and passage.is_severed:
                passage.server.close(by="fin")
        return len(self.passages)


async def main() -> None:
    """Run until the lab ends it."""
    host, port, configured = sys.argv[1:]
    CONFIGURED.update(json.loads(configured))
    proxy = Proxy(host, int(port))
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(proxy.accept, "127.0.0.1", 0, backlog=1024)
    orders = await asyncio.start_server(proxy.take_orders, "127.0.0.1", 0)
    tell("listens", port=listener.sockets[0].getsockname()[1], orders=orders.sockets[0].getsockname()[1])
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
