"""Thousands of light WebSocket clients in one process, which come back the moment they are cut, all at once.

    storm.py URL COUNT      so many connections

Each is as little as a page can be: it beats by a JSON ping every six seconds and answers the server's RFC 6455 pings.
Refused, it tries again a second later, for ever; nothing spreads them. Tells as JSON how many are open, five
times a second, and when all are: `all-open`. SIGUSR1: all are dropped at once, and the storm begins.
"""

import asyncio
import contextlib
import json
import resource
import signal
import sys
import time
from typing import Any, Never
from urllib.parse import urlsplit

BEAT = 6.0
AGAIN = 1.0
PING = b'{"type":"ping"}'
#: Masked by zero: RFC 6455 wants a mask, and this one costs nothing.
PING_FRAME = bytes((0x81, 0x80 | len(PING))) + b"\0\0\0\0" + PING


def tell(event: str, **more: Any) -> None:
    """A line for the lab."""
    sys.stdout.write(json.dumps({"event": event, "at": time.monotonic(), **more}) + "\n")
    sys.stdout.flush()


class Light(asyncio.Protocol):
    """One connection."""

    def __init__(self, crowd: "Crowd") -> None:
        self.crowd = crowd
        self.is_open = False
        self.bytes = b""

    def connection_made(self, transport: Any) -> None:
        """Ask for a WebSocket."""
        self.transport = transport
        transport.write(self.crowd.request)

    def data_received(self, data: bytes) -> None:
        """The answer to that, and then frames."""
        self.bytes += data
        if not self.is_open:
            head, end, rest = self.bytes.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self.crowd.refusals += 1
                self.transport.abort()
                return
            self.bytes = rest
            self.is_open = True
            self.crowd.opened(self)
        self.read_frames()

    def read_frames(self) -> None:
        """A server's frames for such a client are short ones, in one piece and without a mask."""
        while len(self.bytes) >= 2 and len(self.bytes) >= 2 + self.bytes[1]:
            length = self.bytes[1]
            if length >= 126:
                raise ValueError("a frame that no such client is ever sent")
            opcode, payload = self.bytes[0] & 15, self.bytes[2 : 2 + length]
            self.bytes = self.bytes[2 + length :]
            if opcode == 9:
                self.transport.write(bytes((0x8A, 0x80 | length)) + b"\0\0\0\0" + payload)
            elif opcode == 8:
                self.transport.abort()
            elif b'"pong"' in payload:
                self.crowd.pongs += 1

    def connection_lost(self, error: Exception | None) -> None:
        """Cut, by whomever."""
        self.crowd.lost(self)


class Crowd:
    """All of them."""

    def __init__(self, url: str, count: int) -> None:
        parts = urlsplit(url)
        self.host, self.port, self.count = parts.hostname, parts.port, count
        self.request = (
            f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
        self.all: dict[Light, None] = {}  # in the order in which they opened
        self.pongs = self.refusals = self.cuts = self.failures = 0
        self.told = False
        self.tasks: set[asyncio.Task[None]] = set()

    def come(self, delay: float = 0.0) -> None:
        """One more, after so many seconds."""
        task = self.loop.create_task(self.connect(delay))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def connect(self, delay: float) -> None:
        """Until it is connected."""
        while True:
            await asyncio.sleep(delay)
            with contextlib.suppress(OSError):
                await self.loop.create_connection(lambda: Light(self), self.host, self.port)
                return
            # Nobody listens just now, or the kernel's queue is full.
            self.failures += 1
            delay = AGAIN

    def opened(self, light: Light) -> None:
        """One is open."""
        self.all[light] = None
        if len(self.all) == self.count and not self.told:
            self.told = True
            tell("all-open", refusals=self.refusals, failures=self.failures)

    def lost(self, light: Light) -> None:
        """One is not open any more, or was never."""
        if light.is_open:
            del self.all[light]
            self.cuts += 1
            self.told = False
        self.come(0.0 if light.is_open else AGAIN)

    def storm(self) -> None:
        """Drop all of them at once."""
        for light in list(self.all):
            light.transport.abort()

    async def beat(self) -> Never:
        """A tenth of a second's share of the beats, and how it goes."""
        turn = 0
        while True:
            await asyncio.sleep(0.1)
            turn += 1
            shares = round(BEAT / 0.1)
            for light in list(self.all)[turn % shares :: shares]:
                light.transport.write(PING_FRAME)
            if turn % 2 == 0:
                tell("progress", open=len(self.all), cuts=self.cuts, pongs=self.pongs)

    async def run(self) -> Never:
        """All come, and beat."""
        self.loop = asyncio.get_running_loop()
        self.loop.add_signal_handler(signal.SIGUSR1, self.storm)
        for _ in range(self.count):
            self.come()
        await self.beat()


def main() -> None:
    """Until the lab ends it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(Crowd(sys.argv[1], int(sys.argv[2])).run())


if __name__ == "__main__":
    main()
