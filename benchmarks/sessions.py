"""What a session costs a server: memory, with and without messages that wait, the bound of all, and the rate.

    python benchmarks/sessions.py [--sessions 2000] [--messages 5000]

Each figure is of a server in a process of its own, with real connections over loopback. Memory is resident memory,
by how much it grew from the first quarter of the sessions to the last, divided by their number. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: What is kept for a session: so many messages, of so many bytes of JSON each.
KEPT, SIZE = 20, 200
#: Connections that are opened at a time.
BATCH = 50
#: The bound of all sessions where that is looked at, and the sessions that are tried, in multiples of those that fit.
BOUND, TIMES = 16_777_216, 2.5
#: Messages that are under way at a time where the rate is measured, and how often each is measured.
UNDER_WAY, ROUNDS = 500, 3

REQUEST = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


# The server, in its own process.


def serve(store: str, bound: int) -> None:
    """Serve on a free port until killed; report the port, and then whatever is asked for by a message."""
    from twisted.internet import reactor

    from heartbeat import HeartbeatServerFactory, Settings
    from heartbeat.service import HeartbeatService
    from heartbeat.sqlite import SqliteStore

    settings = Settings(sessions_bytes=bound, window=600.0, grace=600.0, interval=60.0)
    kept = SqliteStore(store, reactor=reactor) if store else None
    factory = HeartbeatServerFactory(settings, store=kept, reactor=reactor)
    sessions = factory.heartbeat.sessions
    ended: list[int] = []
    sessions.ended.append(lambda channel, error: ended.append(int(channel.session.client_id.removeprefix("u"))))
    # As if by `onchat`, from one for each: with a receipt, and nothing in it that another has too.
    sessions.settle = lambda receipt, confirmed: ()

    def fill(protocol: Any, message: dict[str, Any]) -> None:
        for number in range(message["first"], message["end"]):
            for channel in sessions.of(f"u{number}"):
                for name in range(KEPT):
                    letter = b'{"type":"onchat","id":"m%d","from":"u%d","text":"' % (name, number)
                    receipt = f'{channel.session.sid[::-1]}/{name}/"m{name}"'
                    protocol.handling.append_payload(channel, letter.ljust(SIZE - 2, b"x") + b'"}', receipt)

    def report(protocol: Any, message: dict[str, Any]) -> None:
        told = {"accounted": sessions.kept_bytes, "sessions": len(sessions.channels), "detached": sessions.detached}
        protocol.send({"type": "reported", "ended": ended, **told}, volatile=True)

    factory.register("fill", fill)
    factory.register("report", report)
    factory.register("nothing", lambda protocol, message: None)
    service = HeartbeatService("tcp:0:interface=127.0.0.1", settings, factory=factory, reactor=reactor)
    service.startService()
    reactor.callWhenRunning(lambda: print(service.ports[0].getHost().port, flush=True))
    reactor.run()


@contextmanager
def server(store: str = "memory", bound: int = 1 << 40) -> Iterator[tuple[int, int]]:
    """A server in a process of its own: its port, and its process id."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "sessions.db")) if store == "sqlite" else ""
        command = [sys.executable, __file__, "--serve", path, "--bound", str(bound)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            line = process.stdout.readline()  # type: ignore[union-attr]  # a pipe, as asked for
            yield int(line), process.pid
        finally:
            process.kill()
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]  # as above


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


# Its clients, which cost us as little as can be.


class Peer:
    """A client of bytes, on a socket that blocks."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data = b""

    def shake_hands(self) -> None:
        """Ask for a WebSocket."""
        self._socket.sendall(REQUEST)

    def open(self, client_id: str) -> None:
        """Open a session, and ping."""
        while b"\r\n\r\n" not in self._data:
            self._receive()
        self._data = self._data.partition(b"\r\n\r\n")[2]
        self.say({"type": "onopen", "v": 1, "client_id": client_id, "session": None})
        self.say({"type": "ping"})

    def say(self, message: dict[str, Any]) -> None:
        """Send a message."""
        payload = json.dumps(message).encode()
        length = len(payload)
        head = bytes([0x80 | length]) if length < 126 else bytes([0x80 | 126]) + struct.pack("!H", length)
        self._socket.sendall(b"\x81" + head + b"\0\0\0\0" + payload)

    def await_message(self, kind: str) -> dict[str, Any]:
        """The next message of this type; what comes before it is dropped."""
        while True:
            message: dict[str, Any] = json.loads(self._frame())
            if message["type"] == kind:
                return message

    def leave(self) -> None:
        """Be gone without a word, as a client that will be back."""
        self._socket.close()

    def _frame(self) -> bytes:
        while len(self._data) < 2 or len(self._data) < self._length():
            self._receive()
        length = self._length()
        frame, self._data = self._data[:length], self._data[length:]
        return frame[{126: 4, 127: 10}.get(frame[1], 2) :]

    def _length(self) -> int:
        short = self._data[1]
        if short < 126:
            return 2 + short
        size = 2 if short == 126 else 8
        return 2 + size + int.from_bytes(self._data[2 : 2 + size])

    def _receive(self) -> None:
        data = self._socket.recv(65_536)
        if not data:
            raise ConnectionError("the server has closed")
        self._data += data


class Control:
    """A client that has the server do what a benchmark wants."""

    def __init__(self, port: int) -> None:
        self._peer = Peer(port)
        self._peer.shake_hands()
        self._peer.open("u1000000")
        self._peer.await_message("ping")
        self._seq = 0

    def fill(self, first: int, end: int) -> None:
        """Have messages wait for these clients; returns when the server keeps them."""
        for start in range(first, end, BATCH):
            self._seq += 1
            self._peer.say({"type": "fill", "first": start, "end": min(end, start + BATCH), "seq": self._seq})
            while self._peer.await_message("ack")["ack"] < self._seq:
                pass

    def report(self) -> dict[str, Any]:
        """What the server says of its sessions."""
        self._peer.say({"type": "report"})
        return self._peer.await_message("reported")

    def all_gone_but_us(self) -> None:
        """Wait until the server has noticed that all others have gone."""
        while (told := self.report())["sessions"] - told["detached"] > 1:
            pass


def opened(port: int, first: int, end: int) -> list[Peer]:
    """The clients u`first` to u`end`, each with a session, each heard once."""
    peers: list[Peer] = []
    for start in range(first, end, BATCH):
        numbers = range(start, min(end, start + BATCH))
        batch = [Peer(port) for _ in numbers]
        for peer in batch:
            peer.shake_hands()
        for peer, number in zip(batch, numbers, strict=True):
            peer.open(f"u{number}")
        for peer in batch:
            peer.await_message("ping")
        peers += batch
    return peers


# The figures.


def bytes_a_session(count: int, store: str, *, attached: bool, filled: bool) -> float:
    """Resident bytes that each session costs, beyond the first quarter of them."""
    with server(store) as (port, pid):
        control = Control(port)
        peers: list[Peer] = []
        memory: list[int] = []
        quarter = count // 4
        for first, end in ((0, quarter), (quarter, count)):
            for start in range(first, end, BATCH):
                batch = opened(port, start, min(end, start + BATCH))
                if attached:
                    peers += batch
                else:
                    for peer in batch:
                        peer.leave()
                    control.all_gone_but_us()
                if filled:
                    control.fill(start, min(end, start + BATCH))
            memory.append(resident(pid))
        for peer in peers:
            peer.leave()
        return (memory[1] - memory[0]) / (count - quarter)


def memory(count: int) -> None:
    """The table of memory."""
    print(f"\nMemory of a server by the session ({count} sessions; {KEPT} messages of {SIZE} bytes where they wait):\n")
    print("| a session of level 1 | in memory | in SQLite |")
    print("| --- | ---: | ---: |")
    rows = {
        "attached, idle (with its connection)": {"attached": True, "filled": False},
        "detached, idle": {"attached": False, "filled": False},
        f"detached, {KEPT} messages unacknowledged": {"attached": False, "filled": True},
        f"attached, {KEPT} messages unacknowledged": {"attached": True, "filled": True},
    }
    for row, what in rows.items():
        found = [bytes_a_session(count, store, **what) for store in ("memory", "sqlite")]
        print(f"| {row} | {found[0] / 1024:.1f} KiB | {found[1] / 1024:.1f} KiB |")


def the_bound(bound: int) -> None:
    """Fill the room of all sessions, and go on."""
    # As heartbeat/register.py books them.
    weight = 4096 + KEPT * (512 + SIZE)
    room = bound // weight
    count = int(TIMES * room)
    print(
        f"\nThe bound of all sessions: {count} clients come, are sent {KEPT} messages each, and go, {BATCH} at a time;"
    )
    print(f"sessions_bytes is {bound}, which by its own account has room for {room} of them.\n")
    print("| clients so far | sessions kept | accounted | resident memory | ended for the next |")
    print("| ---: | ---: | ---: | ---: | --- |")
    step = max(1, count // BATCH // 8) * BATCH
    with server(bound=bound) as (port, pid):
        control = Control(port)
        before = resident(pid)
        for start in range(0, count, BATCH):
            end = min(count, start + BATCH)
            for peer in opened(port, start, end):
                peer.leave()
            control.all_gone_but_us()
            control.fill(start, end)
            if end % step and end != count:
                continue
            told = control.report()
            more, kept = (resident(pid) - before) / 2**20, told["sessions"] - 1
            print(f"| {end} | {kept} | {told['accounted'] / bound:.1%} | +{more:.1f} MiB | {who(told['ended'])} |")
            if told["accounted"] > bound:
                raise SystemExit("the bound was not kept")


def who(ended: list[int]) -> str:
    """Which sessions have been ended: those that were left alone longest, or this is no bound to rely on."""
    if not ended:
        return "nobody"
    # The fifty of a batch are gone in any order.
    if max(ended) >= len(ended) + BATCH:
        raise SystemExit("others than the oldest were ended")
    return f"the oldest {len(ended)}"


def rates(count: int) -> None:
    """Messages a second, numbered and handled against volatile, in the same run."""
    print(
        f"\nMessages of {SIZE} bytes of one client, volatile and numbered in turn, {ROUNDS} times, medians; numbered:"
    )
    print(f"until the client knows that the server has handled them, {UNDER_WAY} under way. What one session's handler")
    print(f"has done is one commit, for which the next one waits; an fsync takes {fsync() * 1000:.2f} ms here.\n")
    print("| sessions kept in | messages | volatile | numbered | ratio |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for store, messages in (("memory", count), ("sqlite", count // 5)):
        with server(store) as (port, _):
            command = [sys.executable, __file__, "--send", str(messages), "--port", str(port)]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120)
        volatile, numbered = json.loads(told.stdout)
        print(f"| {store} | {messages} | {volatile:.0f}/s | {numbered:.0f}/s | {numbered / volatile:.2f} |")


def fsync() -> float:
    """Seconds that the disk takes for it, the median of fifty."""
    seconds = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(50):
            file.write(b"x" * 4096)
            file.flush()
            started = time.monotonic()
            os.fsync(file.fileno())
            seconds.append(time.monotonic() - started)
    return statistics.median(seconds)


class Sender:
    """A client, in its own process, that sends `count` messages each way."""

    def __init__(self, port: int, count: int) -> None:
        from twisted.internet import reactor

        from heartbeat import HeartbeatClient, Settings

        self._count = count
        settings = Settings(client_id="u0")
        self._client = HeartbeatClient(f"ws://127.0.0.1:{port}/ws", settings=settings, reactor=reactor)
        self._message = {"type": "nothing", "text": "x" * (SIZE - len('{"type":"nothing","text":""}'))}

    async def measure(self) -> None:
        """Print the two rates, messages a second."""
        self._client.startService()
        await self._client.whenOpen()
        rounds = [[await self._rate(self._volatile), await self._rate(self._numbered)] for _ in range(ROUNDS)]
        print(json.dumps([statistics.median(rates) for rates in zip(*rounds, strict=True)]))
        await self._client.stopService()

    async def _rate(self, way: Callable[[], Any]) -> float:
        started = time.monotonic()
        await way()
        return self._count / (time.monotonic() - started)

    async def _volatile(self) -> None:
        from twisted.internet import reactor, task

        for sent in range(self._count):
            self._client.send(self._message, volatile=True)
            if sent % 100 == 0:
                # Let the reactor write what has been said.
                await task.deferLater(reactor, 0)
        # One that is answered, and comes after all others on the same connection.
        await self._client.send(self._message)

    async def _numbered(self) -> None:
        from twisted.internet.defer import Deferred

        self._unsent = self._unhandled = self._count
        self._done: Deferred[None] = Deferred()
        for _ in range(min(UNDER_WAY, self._count)):
            self._send()
        await self._done

    def _send(self) -> None:
        self._unsent -= 1
        self._client.send(self._message).addCallbacks(self._handled, self._done.errback)

    def _handled(self, _: None) -> None:
        self._unhandled -= 1
        if self._unsent:
            self._send()
        elif not self._unhandled:
            self._done.callback(None)


def send(port: int, count: int) -> None:
    """Run such a client."""
    from twisted.internet import reactor
    from twisted.internet.defer import ensureDeferred

    def main() -> None:
        running = ensureDeferred(Sender(port, count).measure())
        running.addErrback(lambda failure: failure.printTraceback())
        running.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(main)
    reactor.run()


def machine() -> None:
    """On what, and with what."""
    import autobahn

    import heartbeat
    import twisted

    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    print(f"{platform.platform()}, {os.cpu_count()} cores ({models[0] if models else platform.machine()})")
    print(
        f"txheartbeat {heartbeat.__version__}, Python {platform.python_version()}, Twisted {twisted.__version__},"
        f" Autobahn {autobahn.__version__}, {time.strftime('%Y-%m-%d')}"
    )


def main() -> None:
    """Print the tables, or be one of the processes that they are measured by."""
    parser = argparse.ArgumentParser(description="What a session costs a server.")
    parser.add_argument("--sessions", type=int, default=2000, help="sessions by which memory is measured")
    parser.add_argument("--messages", type=int, default=5000, help="messages by which the rate is measured")
    parser.add_argument("--bound", type=int, default=BOUND, help="sessions_bytes, where that bound is shown")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--send", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve, options.bound)
    elif options.send is not None:
        send(options.port, options.send)
    elif not Path("/proc/self/statm").exists():
        raise SystemExit("the memory of a process is read from /proc, which only Linux has")
    else:
        machine()
        memory(options.sessions)
        the_bound(options.bound)
        rates(options.messages)


if __name__ == "__main__":
    main()
