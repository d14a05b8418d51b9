"""A client embedded in a program of its own on the stock reactor: prints its link's changes and pongs as JSON.

real_client.py URL '{"interval": 0.5}'      settings as JSON
"""

import json
import sys

from twisted.internet import reactor
from twisted.logger import globalLogBeginner, textFileLogObserver

from heartbeat import HeartbeatClient, Settings


def tell(**event):
    print(json.dumps(event), flush=True)


def main():
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
    settings = Settings(**json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
    client = HeartbeatClient(sys.argv[1], settings=settings, reactor=reactor)
    client.linkChanged = lambda status: tell(event=status.event, detail=status.detail)
    client.pongReceived = lambda rtt, clients: tell(event="pong", rtt=rtt, clients=clients)
    client.startService()
    reactor.run()


main()
