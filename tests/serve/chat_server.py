"""A server that serves chat with settings that twistd has no option for, and tells how much it keeps for whom.

    chat_server.py '{"kept_limit": 100}'      settings as JSON

Prints where it listens, its links' changes as JSON, and ten times a second a `load`: for each client the most bytes
that have waited in this process for it to read since the last time; and when it was without a processor (`stolen`).
The kernel gets little to buffer, so that what is not read stays with this process.
"""

import json
import socket
import sys

from stolen import tell_of_stolen_time
from twisted.internet import reactor
from twisted.internet.task import LoopingCall
from twisted.logger import globalLogBeginner, textFileLogObserver

from heartbeat import HeartbeatServerFactory, HeartbeatServerProtocol, Settings, outbox
from heartbeat.service import HeartbeatService

PEAKS = {}


def tell(**event):
    print(json.dumps(event), flush=True)


def tell_load():
    tell(event="load", peaks=PEAKS)
    PEAKS.clear()


class Told(HeartbeatServerProtocol):
    def connectionMade(self):
        self.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        super().connectionMade()

    def sendMessage(self, payload, *arguments, **keywords):
        super().sendMessage(payload, *arguments, **keywords)
        name = self.status.client_id
        PEAKS[name] = max(PEAKS.get(name, 0), outbox.queued(self.transport))

    def linkChanged(self, status):
        tell(event=status.event, client=status.client_id, detail=status.detail, code=self.localCloseCode)


def main():
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    settings = Settings(**json.loads(sys.argv[1]))
    factory = HeartbeatServerFactory(settings, reactor=reactor)
    factory.protocol = Told
    service = HeartbeatService(
        "tcp:0:interface=127.0.0.1", settings, factory=factory, messages=["chat", "group"], reactor=reactor
    )
    service.startService()
    LoopingCall(tell_load).start(0.1)
    tell_of_stolen_time(lambda begin, end: tell(event="stolen", span=[begin, end]))
    reactor.run()


main()
