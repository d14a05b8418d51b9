"""A server embedded in a program of its own on Twisted's own reactor, whose clock is wall time; it serves chat.

    embedded.py '{"interval": 0.5}' [2.0]      settings as JSON; seconds after which every connection is dropped

Every change of a link is told as JSON at the moment of it, with the running time `at`. Where seconds are given, each
connection is dropped so long after it opened, whatever was answered before: a server that accepts and does not keep.
"""

import json
import sys
import time
from typing import Any

from twisted.internet import reactor
from twisted.logger import globalLogBeginner, textFileLogObserver

from heartbeat import HeartbeatServerFactory, HeartbeatServerProtocol, HeartbeatService, Settings


class Told(HeartbeatServerProtocol):
    """A connection that says what becomes of it."""

    def linkChanged(self, status: Any) -> None:
        """Ours: tell, and perhaps drop it."""
        told = {"event": status.event, "at": time.monotonic(), "client": status.client_id, "reason": status.reason}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        if status.event == "open" and len(sys.argv) > 2:
            reactor.callLater(float(sys.argv[2]), self.transport.abortConnection)


def main() -> None:
    """Serve until killed."""
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    settings = Settings(**json.loads(sys.argv[1]))
    factory = HeartbeatServerFactory(settings, reactor=reactor)
    factory.protocol = Told
    listen = "tcp:0:interface=127.0.0.1"
    service = HeartbeatService(listen, settings, factory=factory, messages=["chat"], reactor=reactor)
    service.startService()
    reactor.run()


main()
