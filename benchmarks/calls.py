"""How many functions a ping goes through: called from `dataReceived`, which is not counted, to the write of its answer.

    python benchmarks/calls.py [--plain] [--own-reactor] [--json]

One ping at level 0, over a real connection on loopback, the fourth on it, counted by `sys.setprofile`. Only calls of
Python functions are counted, and of them those whose code lies in this package apart.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import heartbeat

OURS = str(Path(heartbeat.__file__).parent)
# Nothing but the write is left to do for whoever has come here.
WRITES = str(Path(OURS, "outbox.py"))
PING = b'{"type":"ping","seq":1000000001,"ts":1700000000000}'


class Count:
    """A profile function that listens from our `dataReceived` to the write of the transport or of the socket."""

    def __init__(self) -> None:
        self.called: list[CodeType] = []
        self._listens = self._done = False

    def __call__(self, frame: FrameType, event: str, what: Any) -> None:
        """Python's: a function is called, or has returned."""
        code = frame.f_code
        if event == "call" and self._is_write(code):
            self._done = self._listens
        elif event == "call" and self._listens and not self._done:
            self.called.append(code)
        elif event == "call" and code.co_name == "dataReceived" and is_ours(code):
            self._listens = True
        elif event == "c_call" and what.__name__ == "send" and isinstance(what.__self__, socket.socket):
            self._done = self._listens

    @staticmethod
    def _is_write(code: CodeType) -> bool:
        if code.co_filename == WRITES:
            return True
        return code.co_name in ("write", "writeSequence") and "/twisted/internet/" in code.co_filename


def is_ours(code: CodeType) -> bool:
    """Whether a function is of this package."""
    return code.co_filename.startswith(OURS)


class Client:
    """A client of bytes, on a socket that blocks."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 10)
        self._socket.sendall(
            b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._await(b"\r\n\r\n")

    def ping(self, frames: bytes) -> None:
        """Send a ping, and wait for the answer."""
        self._socket.sendall(frames)
        self._await(b'"pong"')

    def _await(self, word: bytes) -> None:
        data = b""
        while word not in data:
            more = self._socket.recv(4096)
            if not more:
                raise ConnectionError("the server has closed")
            data += more


def frame(first: int, payload: bytes) -> bytes:
    """A short frame of a client's, masked with zeros, which leave the payload as it is."""
    return bytes((first, 0x80 | len(payload), 0, 0, 0, 0)) + payload


#: On the fast path; and in two fragments, which it leaves to Autobahn's parser.
WHOLE = frame(0x81, PING)
FRAGMENTS = frame(0x01, PING[:9]) + frame(0x80, PING[9:])


def counted(frames: bytes) -> Count:
    """The calls of this ping, in this process."""
    from twisted.internet import reactor as installed
    from twisted.internet.threads import blockingCallFromThread, deferToThread

    reactor: Any = installed
    service = heartbeat.HeartbeatService("tcp:0:interface=127.0.0.1", reactor=reactor)
    count = Count()

    def speak() -> None:
        client = Client(service.ports[0].getHost().port)
        for _ in range(3):
            client.ping(frames)
        blockingCallFromThread(reactor, sys.setprofile, count)
        client.ping(frames)
        blockingCallFromThread(reactor, sys.setprofile, None)

    def start() -> None:
        service.startService()
        spoken: Any = deferToThread(speak)
        spoken.addErrback(lambda failure: failure.printTraceback())
        spoken.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(start)
    reactor.run()
    return count


def main() -> None:
    """Print the number of calls, and which they are."""
    parser = argparse.ArgumentParser(description="How many functions a ping goes through.")
    parser.add_argument("--plain", action="store_true", help="a ping in two fragments, which are Autobahn's to parse")
    parser.add_argument("--own-reactor", action="store_true", help="on the reactor of this package")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.own_reactor:
        from heartbeat.reactor import install

        install()
    count = counted(FRAGMENTS if options.plain else WHOLE)
    ours = [code.co_qualname for code in count.called if is_ours(code)]
    if not count.called:
        raise SystemExit("the ping was not seen")
    if options.json:
        print(json.dumps({"ours": len(ours), "all": len(count.called), "names": ours}))
    else:
        print(f"{len(ours)} calls of ours, of {len(count.called)}:", *ours, sep="\n  ")


if __name__ == "__main__":
    main()
