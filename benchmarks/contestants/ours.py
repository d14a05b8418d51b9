"""A program that has a server of ours in it, with what no option of `twistd heartbeat` has.

    ours.py PORT [--reactor heartbeat] [--deflate]

It takes messages of type `onecho`, numbered, which are acknowledged and not answered. With `--deflate` it accepts
permessage-deflate, which our server declines by itself.
"""

from __future__ import annotations

import argparse
from typing import Any


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--reactor", choices=["heartbeat"])
    parser.add_argument("--deflate", action="store_true")
    options = parser.parse_args()
    if options.reactor:
        from heartbeat.reactor import install

        install()
    serve(options)


def serve(options: Any) -> None:
    """Serve, on the reactor that is there by now."""
    from twisted.internet import reactor

    from heartbeat import HeartbeatServerFactory
    from heartbeat.service import HeartbeatService

    factory = HeartbeatServerFactory(reactor=reactor)
    factory.register("onecho", lambda protocol, message: None)
    if options.deflate:
        from autobahn_default import accept_deflate

        factory.setProtocolOptions(perMessageCompressionAccept=accept_deflate)
    service = HeartbeatService(f"tcp:{options.port}:interface=127.0.0.1", factory=factory, reactor=reactor)
    service.startService()
    reactor.run()


if __name__ == "__main__":
    main()
