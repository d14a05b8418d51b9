"""An Autobahn client that knows no heartbeat: sends its own messages, prints what comes back, one JSON object a line.

python plain_client.py ws://127.0.0.1:9001
"""

import json
import sys

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol, connectWS
from twisted.internet import reactor

#: What it sends, in this order: each payload, and whether it is binary.
MESSAGES = (
    (b"hello", False),
    (b"", False),
    ("grüß dich \N{SMILING FACE WITH SUNGLASSES}".encode(), False),
    (b'{"type": "onchat", "text": "of the application"}', False),
    (b'{"type": "pingpong"}', False),
    (b'{"type": "error", "detail": "of the application"}', False),
    (b'["no", "object"]', False),
    (b"{no JSON", False),
    (b'{"type": "ping", "status": "' + 5000 * b"x" + b'"}', False),
    (bytes(range(256)), True),
    (b"", True),
    (b'{"type": "ping"}', True),
    (100_000 * b"long ", True),
)


def tell(**event):
    print(json.dumps(event), flush=True)


class PlainClient(WebSocketClientProtocol):
    """One connection."""

    def onOpen(self):
        for payload, binary in MESSAGES:
            self.sendMessage(payload, binary)

    def onMessage(self, payload, isBinary):
        tell(event="message", payload=payload.hex(), binary=isBinary)

    def onClose(self, wasClean, code, reason):
        tell(event="closed", code=code, reason=reason)
        reactor.stop()


def main():
    factory = WebSocketClientFactory(sys.argv[1])
    factory.protocol = PlainClient
    connectWS(factory)
    reactor.run()


if __name__ == "__main__":
    main()
