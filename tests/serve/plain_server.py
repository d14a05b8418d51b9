"""A server that somebody else wrote: it echoes pings with `status: "pong"`, and knows nothing else."""

import json
import sys

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import reactor


class Plain(WebSocketServerProtocol):
    def onMessage(self, payload, isBinary):
        message = json.loads(payload)
        if message["type"] == "ping":
            self.sendMessage(json.dumps({**message, "status": "pong"}).encode())


def main():
    factory = WebSocketServerFactory()
    factory.protocol = Plain
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    sys.stdout.write(f"listening on ws://127.0.0.1:{port.getHost().port}/\n")
    sys.stdout.flush()
    reactor.run()


main()
