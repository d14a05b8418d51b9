"""A server embedded in a program of its own on the stock reactor, which tests run, stall and load.

    real_server.py '{"interval": 0.5}' [ENDPOINT]      settings as JSON

SIGUSR1 stalls its reactor for 10 s. A message `{"type": "send", "bytes": n}` is answered by one of
that size. Prints where it listens, and its links' changes as JSON.
"""

import json
import signal
import sys
import time

from twisted.internet import reactor
from twisted.logger import globalLogBeginner, textFileLogObserver

from heartbeat import HeartbeatServerFactory, HeartbeatServerProtocol, Settings
from heartbeat.service import HeartbeatService


class Telling(HeartbeatServerProtocol):
    def linkChanged(self, status):
        print(json.dumps({"event": status.event, "detail": status.detail, "reason": status.reason}), flush=True)

    def messageReceived(self, message):
        if message["type"] == "send":
            self.send({"type": "blob", "text": "x" * message["bytes"]})
        else:
            print(json.dumps({"event": "message", "bytes": len(message.get("text", ""))}), flush=True)


def stall(_signal, _frame):
    # From the reactor, not from within whatever the signal interrupted.
    reactor.callFromThread(time.sleep, 10.0)


def main():
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    settings = Settings(**json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})
    factory = HeartbeatServerFactory(settings, reactor=reactor)
    factory.protocol = Telling
    listen = sys.argv[2] if len(sys.argv) > 2 else "tcp:0:interface=127.0.0.1"
    service = HeartbeatService(listen, settings, factory=factory, reactor=reactor)
    service.startService()
    signal.signal(signal.SIGUSR1, stall)
    reactor.run()


main()
