"""An Autobahn echo server that was there before, and has a heartbeat by one more base class.

Its own messages, text and binary, come back as they always did. Pings are answered by the mixin and
never reach `onMessage`; a client that sends none is asked by RFC 6455 pings whether it is there.

    python echo_mixin.py 9001
    heartbeat-client ws://127.0.0.1:9001
"""

import sys

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import reactor

from heartbeat import HeartbeatServerMixin, LinkStatus, Settings


class Echo(HeartbeatServerMixin, WebSocketServerProtocol):
    """One client. The mixin stands before Autobahn's class; no method here needs a `super()`."""

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Autobahn's: say the same."""
        self.sendMessage(payload, isBinary)

    def linkChanged(self, status: LinkStatus) -> None:
        """The mixin's: suspect, acknowledged again, dead, closed."""
        print(f"{self.peer} is {status.event}: {status.detail}")


def main() -> None:
    """Listen on the port given."""
    factory = WebSocketServerFactory()
    factory.protocol = Echo
    factory.heartbeat_settings = Settings(interval=5.0)
    # Autobahn's options stay yours. With failByDrop, its default, no client is ever told a close code.
    factory.setProtocolOptions(failByDrop=False)
    port = reactor.listenTCP(int(sys.argv[1]) if sys.argv[1:] else 9001, factory, interface="127.0.0.1")
    print(f"listening on ws://127.0.0.1:{port.getHost().port}")
    reactor.run()


if __name__ == "__main__":
    main()
