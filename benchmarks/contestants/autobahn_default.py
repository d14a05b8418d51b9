"""Autobahn on Twisted's default reactor, as its examples have it: the yardstick of all ratios.

    autobahn_default.py PORT [--deflate] [--certificate PEM]

The listen queue is the only thing that is better than its default, or a storm would measure nothing but that.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.compress import PerMessageDeflateOffer, PerMessageDeflateOfferAccept
from twisted.internet import reactor, ssl

BACKLOG = 4096


class Pong(WebSocketServerProtocol):
    """Answers pings; Autobahn itself counts the connections."""

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Autobahn's: a message arrived."""
        message = json.loads(payload)
        if message["type"] == "ping":
            message["status"] = "pong"
            message["clients"] = self.factory.countConnections
            self.sendMessage(json.dumps(message).encode())


def accept_deflate(offers: list[Any]) -> PerMessageDeflateOfferAccept | None:
    """Take compression where it is offered."""
    offer = next((offer for offer in offers if isinstance(offer, PerMessageDeflateOffer)), None)
    return None if offer is None else PerMessageDeflateOfferAccept(offer)


def serve(**settings: Any) -> None:
    """Serve by the options of the command line, with these protocol options besides."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--deflate", action="store_true")
    parser.add_argument("--certificate")
    options = parser.parse_args()
    factory = WebSocketServerFactory()
    factory.protocol = Pong
    factory.setProtocolOptions(**settings)
    if options.deflate:
        factory.setProtocolOptions(perMessageCompressionAccept=accept_deflate)
    if options.certificate:
        secured = ssl.DefaultOpenSSLContextFactory(options.certificate, options.certificate)
        reactor.listenSSL(options.port, factory, secured, backlog=BACKLOG, interface="127.0.0.1")
    else:
        reactor.listenTCP(options.port, factory, backlog=BACKLOG, interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    serve()
