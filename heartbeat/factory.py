"""The factories of our own protocols: Autobahn's, with our settings and defaults in place of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketServerFactory
from twisted.internet.interfaces import IAddress, IProtocolNegotiationFactory
from twisted.internet.protocol import Protocol
from zope.interface import implementer

from heartbeat._version import __version__
from heartbeat.auth import Authenticator
from heartbeat.core.errors import Unconfirmed
from heartbeat.core.presence import Presence
from heartbeat.core.settings import Settings
from heartbeat.lean import no_compression, options_of
from heartbeat.limits import room_for_connections
from heartbeat.protocol import HeartbeatClientProtocol, HeartbeatServerProtocol
from heartbeat.shared import ClientShared, Handler, ServerShared
from heartbeat.store import Store

__all__ = ["HeartbeatClientFactory", "HeartbeatServerFactory"]

# Accepted beyond the limit, so that the refusal can be said; whoever comes after that is dropped unheard.
_STANDING_ROOM = 64


class _Registered:
    """What both factories share: the registration of message types."""

    def register(self, kind: str, handler: Handler) -> None:
        """Have `handler(protocol, message)` called for messages of type `kind`. May return a Deferred or coroutine.

        Those of one session are handled one at a time, in order, each when the one before has finished. What is to
        follow in the same transaction is told to `protocol.handling`. A handler must not wait for its own `send`.
        """
        self.heartbeat.handlers[kind] = handler  # type: ignore[attr-defined]  # of both


@implementer(IProtocolNegotiationFactory)
class HeartbeatServerFactory(_Registered, WebSocketServerFactory):  # type: ignore[misc]  # Autobahn's are Any
    """Builds a server's connections, and knows who is there.

    `site` gets the requests that do not ask for a WebSocket, `paths` are those where one is
    to be had (None: everywhere). Override `clientJoined` and `clientLeft` to be told of either.
    """

    protocol = HeartbeatServerProtocol

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        site: Any = None,
        paths: tuple[str, ...] | None = None,
        store: Store | None = None,
        authenticator: Authenticator | None = None,
        reactor: Any = None,
        **autobahn: Any,
    ) -> None:
        """Raises SettingError when the open-file limit does not allow `max_connections`."""
        autobahn.setdefault("server", f"txheartbeat/{__version__}")
        super().__init__(reactor=reactor, **autobahn)
        settings = settings or Settings()
        self.heartbeat_settings = settings
        self.heartbeat_store = store
        self.heartbeat_authenticator = authenticator
        self.site = site
        self.paths = paths
        self.room = room_for_connections(settings.max_connections)
        self.heartbeat: ServerShared = ServerShared.of(self)
        self.setProtocolOptions(
            **options_of(settings),
            webStatus=False,
            perMessageCompressionAccept=no_compression,
            # Origins are judged by us, after the handshake, where a page can read the verdict.
            allowedOrigins=["*"],
            allowNullOrigin=True,
            trustXForwardedFor=settings.trust_forwarded,
        )

    @property
    def presence(self) -> Presence:
        """The register: who is there, and how present."""
        return self.heartbeat.presence

    @property
    def refused(self) -> Mapping[str, int]:
        """How often something was refused, by the reason: the setting's name, the wire's word, or a word of ours."""
        return self.heartbeat.refusals.counts

    def clientJoined(self, client_id: str) -> None:
        """A client id is present now. Called once, until it has left."""

    def clientLeft(self, client_id: str) -> None:
        """A client id is gone for good."""

    def sessionLost(self, client_id: str, error: Unconfirmed) -> None:
        """A session of `client_id` has ended, and these messages to it were never confirmed."""

    def acceptableProtocols(self) -> list[bytes]:
        """IProtocolNegotiationFactory: without it every browser's `wss://` fails in the TLS handshake."""
        return [b"http/1.1"]

    def is_full(self) -> bool:
        """Whether one more connection would be one too many."""
        return self.room is not None and self.countConnections > self.room

    def buildProtocol(self, addr: IAddress) -> Protocol | None:
        """Twisted's: somebody connected."""
        if self.room is not None and self.countConnections >= self.room + _STANDING_ROOM:
            shared = self.heartbeat
            now = shared.ticker.now()
            if not shared.arrivals.make_room(now):
                why = "there is no room, not even to say so (setting max_connections)"
                shared.refusals.refused("max_connections", getattr(addr, "host", "a UNIX socket"), why, now)
                return None
        protocol: Protocol | None = super().buildProtocol(addr)
        return protocol

    def startFactory(self) -> None:
        """Twisted's: the first port listens."""
        super().startFactory()
        self.heartbeat.start()
        if self.site is not None:
            self.site.doStart()

    def stopFactory(self) -> None:
        """Twisted's: the last port has closed."""
        if self.site is not None:
            self.site.doStop()
        self.heartbeat.stop()
        super().stopFactory()


class HeartbeatClientFactory(_Registered, WebSocketClientFactory):  # type: ignore[misc]  # Autobahn's are Any
    """Builds a client's connections. For one that reconnects, see `HeartbeatClient`."""

    protocol = HeartbeatClientProtocol

    host: str

    def __init__(
        self,
        url: str,
        settings: Settings | None = None,
        *,
        store: Store | None = None,
        reactor: Any = None,
        **autobahn: Any,
    ) -> None:
        """Raises ValueError when the URL is none of a WebSocket's."""
        if not url:
            # To Autobahn that means localhost.
            raise ValueError("a WebSocket's URL is needed, such as ws://127.0.0.1:9000/ws")
        autobahn.setdefault("useragent", f"txheartbeat/{__version__}")
        super().__init__(url, reactor=reactor, **autobahn)
        if ":" in self.host:
            # RFC 3986: in a Host header an IPv6 address stands in brackets, which Autobahn forgets.
            self.host = f"[{self.host}]"
        settings = settings or Settings()
        self.heartbeat_settings = settings
        self.heartbeat_store = store
        self.heartbeat: ClientShared = ClientShared.of(self)
        self.setProtocolOptions(**options_of(settings), serverConnectionDropTimeout=0)
