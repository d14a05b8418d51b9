"""What the suite examines: echoes, on our own stacks and on Autobahn alone.

    echo.py server autobahn|mixin|own [--plain-path] [--deflate]
    echo.py client autobahn|mixin|own --url URL --agent NAME --cases 1.1.1,1.1.2 [--deflate]

A server prints the port on which it listens, and when it is ended (SIGTERM) what it has counted. A client goes through
the cases of a fuzzing server, one connection each, has the reports written, and ends.

The suite judges what an end does with frames, and needs an application that echoes. With the mixins that is the host's
`onMessage`, to which a message that is not the heartbeat's goes untouched. `HeartbeatServerProtocol` and
`HeartbeatClientProtocol` take JSON only, so they echo one step before that is looked at, where the fast path meets
Autobahn's. From the socket to there, and back from there to the socket, all is as in `twistd heartbeat`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from autobahn.twisted.websocket import (
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from autobahn.websocket.compress import (
    PerMessageDeflateOffer,
    PerMessageDeflateOfferAccept,
    PerMessageDeflateResponse,
    PerMessageDeflateResponseAccept,
)
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.task import react

from heartbeat import (
    HeartbeatClientFactory,
    HeartbeatClientMixin,
    HeartbeatClientProtocol,
    HeartbeatServerFactory,
    HeartbeatServerMixin,
    HeartbeatServerProtocol,
    Settings,
)

#: The largest message of the suite has 16 MiB. Deadlines are long, because on a busy machine the suite itself stands
#: still for a while, when it makes 65,536 fragments in one go.
PATIENT: dict[str, Any] = {
    "message_limit": 64 * 1_048_576,
    "timeout_min": 60.0,
    "timeout_max": 60.0,
    "probe": 60.0,
    "open_timeout": 60.0,
}

#: In these the suite sends a frame in pieces, a second apart, and would answer a ping in the middle of it.
QUIET = ("6.4.3", "6.4.4")

#: What a server has seen: connections that brought a message, and how many of them were on the fast path then;
#: messages, the texts among them, and how many came past Autobahn's parser.
seen: Counter[str] = Counter(connections=0, fast_connections=0, messages=0, texts=0, past_autobahn=0)


# The applications.


class _Host:
    """An application as Autobahn knows it."""

    STATE_OPEN: int
    state: int
    sendMessage: Any

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Autobahn's: a message arrived."""
        # Autobahn's client hands on what comes after a Close frame, and raises for what is sent then.
        if self.state == self.STATE_OPEN:
            self.sendMessage(payload, isBinary)


class _Counting:
    """A server's connection that counts what reaches the application, and by which way."""

    trafficStats: Any
    _heartbeat: Any = None
    _told = 0
    _is_counted = False

    def count(self, isBinary: bool) -> None:
        """A message is here. Autobahn's statistics know nothing of what came by the fast path."""
        if not self._is_counted:
            self._is_counted = True
            seen["connections"] += 1
            seen["fast_connections"] += self._heartbeat is not None and self._heartbeat.is_fast
        told, self._told = self._told, self.trafficStats.incomingWebSocketMessages
        seen["messages"] += 1
        seen["texts"] += not isBinary
        seen["past_autobahn"] += told == self._told


class _CountingHost(_Counting, _Host):
    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Autobahn's: a message arrived."""
        self.count(isBinary)
        super().onMessage(payload, isBinary)


class AutobahnServer(_CountingHost, WebSocketServerProtocol):
    """Autobahn, as it is."""


class MixinServer(HeartbeatServerMixin, _CountingHost, WebSocketServerProtocol):
    """An application's own protocol, with the mixin before it."""


class OwnServer(_Counting, HeartbeatServerProtocol):
    """The protocol of `twistd heartbeat`."""

    def _heartbeat_message(self, payload: bytes, isBinary: bool) -> None:
        self.count(isBinary)
        _echo(self, payload, isBinary)


class _Client:
    """A client that may be told to send no pings."""

    factory: Any

    def sendPing(self, payload: bytes | None = None) -> None:
        """Autobahn's: send a ping frame."""
        if not self.factory.is_quiet:
            super().sendPing(payload)  # type: ignore[misc]  # Autobahn's


class AutobahnClient(_Host, WebSocketClientProtocol):
    """Autobahn, as it is."""


class MixinClient(_Client, HeartbeatClientMixin, _Host, WebSocketClientProtocol):
    """An application's own client protocol, with the mixin before it."""


class OwnClient(_Client, HeartbeatClientProtocol):
    """The protocol of `heartbeat-client`, without what reconnects it."""

    def _heartbeat_message(self, payload: bytes, isBinary: bool) -> None:
        _echo(self, payload, isBinary)


def _echo(protocol: Any, payload: bytes, isBinary: bool) -> None:
    """Send it back as our own messages go out, if it is one that these can be."""
    if not isBinary:
        protocol._heartbeat.write(payload)
    elif protocol.state == protocol.STATE_OPEN:
        protocol.sendMessage(payload, isBinary=True)


# The factories: each stack with its own defaults, but for what the suite needs.


def _accept_offer(offers: list[Any]) -> Any:
    for offer in offers:
        if isinstance(offer, PerMessageDeflateOffer):
            return PerMessageDeflateOfferAccept(offer)
    return None


def _accept_response(response: Any) -> Any:
    return PerMessageDeflateResponseAccept(response) if isinstance(response, PerMessageDeflateResponse) else None


def _autobahn_server(settings: Settings) -> Any:
    factory = WebSocketServerFactory()
    # Close codes are looked at; so do Autobahn's own programs for this suite.
    factory.setProtocolOptions(failByDrop=False)
    # The mixin's.
    factory.heartbeat_settings = settings
    return factory


def _autobahn_client(url: str, settings: Settings) -> Any:
    factory = WebSocketClientFactory(url)
    factory.setProtocolOptions(failByDrop=False)
    factory.heartbeat_settings = settings
    return factory


SERVERS: dict[str, tuple[type, Callable[[Settings], Any]]] = {
    "autobahn": (AutobahnServer, _autobahn_server),
    "mixin": (MixinServer, _autobahn_server),
    "own": (OwnServer, HeartbeatServerFactory),
}

CLIENTS: dict[str, tuple[type, Callable[[str, Settings], Any]]] = {
    "autobahn": (AutobahnClient, _autobahn_client),
    "mixin": (MixinClient, _autobahn_client),
    "own": (OwnClient, HeartbeatClientFactory),
}


def server_factory(stack: str, settings: Settings, *, deflate: bool) -> Any:
    """The factory of a server that echoes."""
    protocol, make = SERVERS[stack]
    factory = make(settings)
    factory.protocol = protocol
    if deflate:
        factory.setProtocolOptions(perMessageCompressionAccept=_accept_offer)
    return factory


def client_factory(stack: str, url: str, settings: Settings, *, deflate: bool) -> Any:
    """The factory of a client that echoes."""
    protocol, make = CLIENTS[stack]
    factory = make(url, settings)
    factory.protocol = protocol
    if deflate:
        offers = [PerMessageDeflateOffer()]
        factory.setProtocolOptions(perMessageCompressionOffers=offers, perMessageCompressionAccept=_accept_response)
    return factory


# The programs.


async def serve(options: argparse.Namespace) -> None:
    """Listen until somebody ends the program."""
    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    settings = Settings(fast_path=not options.plain_path, **PATIENT)
    port = await endpoint.listen(server_factory(options.stack, settings, deflate=options.deflate))
    reactor.addSystemEventTrigger("before", "shutdown", lambda: print(json.dumps({"seen": dict(seen)}), flush=True))
    print(json.dumps({"port": port.getHost().port}), flush=True)
    await Deferred()


async def go_through(options: argparse.Namespace) -> None:
    """Have each case run on a connection of its own, then ask for the reports."""
    # The suite speaks no JSON, but answers ping frames. They are many here, so as to stand between messages.
    settings = Settings(frames=True, interval=0.1, **PATIENT)
    agent = {"agent": options.agent}
    paths = [(f"/runCase?{urlencode({'casetuple': case, **agent})}", case) for case in options.cases.split(",")]
    last = (f"/updateReports?{urlencode({**agent, 'shutdownOnComplete': 'true'})}", "")
    for path, case in (*paths, last):
        factory = client_factory(options.stack, options.url + path, settings, deflate=options.deflate)
        factory.is_quiet = case in QUIET
        endpoint = TCP4ClientEndpoint(reactor, factory.host, factory.port)
        protocol = await endpoint.connect(factory)
        await protocol.is_closed


def main() -> None:
    """Be one of them."""
    parser = argparse.ArgumentParser(description="An echo for the Autobahn|Testsuite.")
    parser.add_argument("end", choices=("server", "client"))
    parser.add_argument("stack", choices=tuple(SERVERS))
    parser.add_argument("--deflate", action="store_true", help="accept permessage-deflate, or offer it")
    parser.add_argument("--plain-path", action="store_true", help="a server without the fast path")
    parser.add_argument("--url", default="", help="a client's: where the fuzzing server is")
    parser.add_argument("--agent", default="", help="a client's: its name in the reports")
    parser.add_argument("--cases", default="", help="a client's: their names, with commas between")
    options = parser.parse_args()
    work = serve if options.end == "server" else go_through
    react(lambda _reactor: Deferred.fromCoroutine(work(options)))


if __name__ == "__main__":
    sys.exit(main())
