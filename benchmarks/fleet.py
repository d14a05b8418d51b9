"""What a fleet costs beside one server alone: joins, messages from server to server, and what Redis has to do at rest.

    python benchmarks/fleet.py [--clients 2000] [--messages 2000] [--rest 60]

Real programs over loopback: `redis-server`, two of `twistd heartbeat --cluster`, and the same without it. All on this
machine, whose cores they share, so what is told first are the ratios. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from sessions import REQUEST, Peer

#: Connections that are opened at a time, and how often each rate is measured; the median is told.
UNDER_WAY, ROUNDS = 64, 3
#: Seconds between two pings of a client at rest, as our own clients have it.
INTERVAL = 6.0

# The programs.


def free_port() -> int:
    """A port of loopback that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def awaited(port: int) -> int:
    """The port, once somebody listens on it."""
    until = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > until:
                raise SystemExit(f"nobody listens on port {port}") from None
            time.sleep(0.02)
        else:
            return port


@contextmanager
def running(*command: object) -> Iterator[None]:
    """A program, for as long."""
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def redis() -> Iterator[int]:
    """A Redis that keeps nothing on its disk; its port."""
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        running("redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", folder, "--save", ""),
    ):
        yield awaited(port)


@contextmanager
def servers(count: int, redis_port: int | None) -> Iterator[list[int]]:
    """So many servers, one fleet where there is a Redis; their ports, when all count nobody."""
    ports = [free_port() for _ in range(count)]
    options: tuple[object, ...] = (
        "--messages",
        "chat",
        "--connections-per-address",
        "20000",
        "--handshake-rate",
        "5000",
    )
    options += ("--message-rate", "100000")
    if redis_port is not None:
        options += ("--cluster", f"redis://127.0.0.1:{redis_port}")
    twistd = Path(sys.executable).with_name("twistd")
    with ExitStack() as life, tempfile.TemporaryDirectory() as folder:
        for number, port in enumerate(ports):
            listen = ("--listen", f"tcp:{port}:interface=127.0.0.1")
            where = ("--pidfile=", f"--logfile={folder}/{number}.log", f"--rundir={folder}")
            life.enter_context(running(twistd, "--reactor=heartbeat", "-n", *where, "heartbeat", *listen, *options))
        for port in ports:
            awaited(port)
        if redis_port is not None:
            # Each hears of the others with its next call at the latest.
            until_they_say(ports, 1)
        yield ports


def until_they_say(ports: list[int], clients: int) -> None:
    """Until each server says that there are so many clients, him who asks included."""
    until = time.monotonic() + 30
    for port in ports:
        with Talker(port, f"asks-{clients}") as peer:
            while True:
                peer.say({"type": "ping"})
                if peer.take("ping")["clients"] == clients:
                    break
                if time.monotonic() > until:
                    raise SystemExit(f"the server on port {port} does not count {clients} clients")
                time.sleep(0.05)


def operations(port: int) -> dict[str, int]:
    """What Redis has done so far: calls from outside, and all commands, those within scripts too."""
    with socket.create_connection(("127.0.0.1", port), 5) as line:
        line.sendall(b"INFO commandstats\r\n")
        text = b""
        while not text.endswith(b"\r\n") or len(text) < int(text[1 : text.find(b"\r\n")] or 0):
            text += line.recv(65536)
    calls = {}
    for row in text.decode().splitlines():
        name, _, told = row.partition(":")
        if name.startswith("cmdstat_"):
            calls[name.removeprefix("cmdstat_")] = int(told.split(",")[0].removeprefix("calls="))
    outside = sum(calls.get(name, 0) for name in ("evalsha", "eval", "ping"))
    ours = ("info", "config|get", "client|setinfo")
    return {"calls": outside, "commands": sum(count for name, count in calls.items() if name not in ours)}


# The clients, which cost as little as can be.


def frame(payload: bytes) -> bytes:
    """A short frame of a client's, masked with zeros, which leave the payload as it is."""
    return bytes((0x81, 0x80 | len(payload), 0, 0, 0, 0)) + payload


def opening(name: str) -> bytes:
    """How a client opens its session."""
    return frame(json.dumps({"type": "onopen", "v": 1, "client_id": name}, separators=(",", ":")).encode())


class Talker(Peer):
    """A client with a session, who confirms what it takes."""

    def __init__(self, port: int, name: str) -> None:
        super().__init__(port)
        self._seq = self._handled = 0
        self.shake_hands()
        self.open(name)
        self.await_message("ping")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def say(self, message: dict[str, Any], *, numbered: bool = False) -> None:
        """Send a message."""
        if message["type"] != "onopen":
            message = message | {"ack": self._handled}
        if numbered:
            self._seq += 1
            message = message | {"seq": self._seq}
        super().say(message)

    def take(self, kind: str, **members: Any) -> dict[str, Any]:
        """The next message of this kind, with these members; all others are passed over."""
        while True:
            message = self.await_message(kind)
            self._handled = max(self._handled, message.get("seq", 0))
            if all(message.get(name) == value for name, value in members.items()):
                return message


class Crowd:
    """Many connections that open a session and ping."""

    def __init__(self, ports: list[int], clients: int) -> None:
        self._ports = ports
        self.sockets: list[socket.socket] = []
        self._clients = clients

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.sockets:
            one.close()

    def join(self) -> float:
        """All come, so many at a time; how many a second."""
        began = time.perf_counter()
        with selectors.DefaultSelector() as looking:
            left, under_way = iter(range(self._clients)), 0
            while True:
                while under_way < UNDER_WAY and (number := next(left, None)) is not None:
                    one = socket.create_connection(("127.0.0.1", self._ports[number % len(self._ports)]), 30)
                    one.sendall(REQUEST + opening(f"c{number}"))
                    looking.register(one, selectors.EVENT_READ, bytearray())
                    under_way += 1
                if not under_way:
                    return self._clients / (time.perf_counter() - began)
                for key, _ in looking.select(30):
                    socket_: Any = key.fileobj
                    key.data.extend(socket_.recv(65536))
                    if b'"type":"onopen"' in key.data:
                        looking.unregister(socket_)
                        self.sockets.append(socket_)
                        under_way -= 1

    def rest(self, seconds: float) -> None:
        """Each pings once in an interval, and its answers are read."""
        ping = frame(b'{"type":"ping","ack":0}')
        began, sent = time.monotonic(), 0
        while (now := time.monotonic() - began) < seconds:
            due = int(now / INTERVAL * len(self.sockets))
            while sent < due:
                one = self.sockets[sent % len(self.sockets)]
                if sent >= len(self.sockets):
                    one.recv(65536)
                one.sendall(ping)
                sent += 1
            time.sleep(0.005)


# What is measured.


def joins(ports: list[int], clients: int) -> float:
    """Clients that come, a second."""
    with Crowd(ports, clients) as crowd:
        return crowd.join()


def letters(ports: list[int], messages: int) -> list[float]:
    """Seconds from `onchat` at the first server to its arrival at the last, one after the other."""
    took = []
    with Talker(ports[0], "alice") as alice, Talker(ports[-1], "bob") as bob:
        for number in range(1, messages + 1):
            began = time.perf_counter()
            alice.say({"type": "onchat", "id": number, "to": "bob", "text": "x" * 40}, numbered=True)
            bob.take("onchat", id=number)
            took.append(time.perf_counter() - began)
            bob.say({"type": "ping"})
            alice.take("onchat", id=number, status="delivered")
    return took


def quantiles(seconds: list[float]) -> tuple[float, float]:
    """p50 and p99, in ms."""
    cut = statistics.quantiles(seconds, n=100)
    return cut[49] * 1000, cut[98] * 1000


def measure(clients: int, messages: int, rest: float) -> dict[str, Any]:
    """All of it."""
    told: dict[str, Any] = {}
    rates: dict[str, list[float]] = {"alone": [], "fleet": []}
    for _ in range(ROUNDS):
        # In turns, so that what changes on the machine changes for both.
        with servers(2, None) as ports:
            rates["alone"].append(joins(ports, clients))
        with redis() as port, servers(2, port) as ports:
            rates["fleet"].append(joins(ports, clients))
    told["joins"] = {name: statistics.median(each) for name, each in rates.items()}
    with servers(1, None) as ports:
        told["one server"] = quantiles(letters(ports, messages))
    with redis() as port, servers(2, port) as ports:
        told["same server of a fleet"] = quantiles(letters(ports[:1], messages))
        told["from server to server"] = quantiles(letters(ports, messages))
    with redis() as port, servers(2, port) as ports, Crowd(ports, clients) as crowd:
        crowd.join()
        # Until all are told of.
        crowd.rest(INTERVAL + 1)
        before = operations(port)
        crowd.rest(rest)
        after = operations(port)
        minutes = rest / 60 * clients
        told["at rest"] = {name: (after[name] - before[name]) / minutes for name in after}
    return told


def main() -> None:
    """Print what it costs."""
    parser = argparse.ArgumentParser(description="What a fleet costs beside one server alone.")
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--rest", type=float, default=60.0, help="seconds of rest in which Redis is watched")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if shutil.which("redis-server") is None:
        raise SystemExit("redis-server is not installed (Debian's package redis-server)")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    told = measure(options.clients, options.messages, options.rest)
    if options.json:
        print(json.dumps(told))
        return
    alone, fleet = told["joins"]["alone"], told["joins"]["fleet"]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, two servers")
    print(f"joins: {fleet:,.0f} a second, {fleet / alone:.2f} x of servers that are none ({alone:,.0f})")
    base = told["one server"][0]
    for where in ("one server", "same server of a fleet", "from server to server"):
        p50, p99 = told[where]
        print(f"onchat, {where}: p50 {p50:.2f} ms ({p50 / base:.1f} x), p99 {p99:.2f} ms")
    rest = told["at rest"]
    print(
        f"Redis at rest, with {options.clients} clients: {rest['calls']:.3f} calls a client and minute,"
        f" {rest['commands']:.3f} with the commands in scripts"
    )


if __name__ == "__main__":
    main()
