"""Autobahn's server protocol with nothing on the instance that its class knows as well.

Autobahn copies some thirty options to each connection and sets some fifty attributes more, of which a connection
at rest needs eight. Here they are the class's, or made when somebody first asks for them; what stood in the request
is read again from its head. An ordinary opening handshake is answered without the rest of it; an unusual one is
Autobahn's. Whatever Autobahn tells of a connection is told by the same names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlparse

from autobahn.twisted.util import create_transport_details, peer2str
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.wamp.types import TransportDetails
from autobahn.websocket.protocol import TrafficStats, Utf8Validator, WebSocketProtocol, parseHttpHeader
from twisted.internet.defer import Deferred, succeed

from heartbeat import outbox
from heartbeat.core.settings import Settings
from heartbeat.handshake import accept_of, ordinary_headers

__all__ = ["LeanServerProtocol", "no_compression", "options_of"]

_CONNECTING = WebSocketProtocol.STATE_CONNECTING
_OPEN = WebSocketProtocol.STATE_OPEN


def no_compression(offers: object) -> None:
    """Autobahn's `perMessageCompressionAccept`, of those who accept none."""


def options_of(settings: Settings) -> dict[str, Any]:
    """Autobahn's options, of both ends, that follow from our settings."""
    return {
        # Close codes are meant to be read by the other end.
        "failByDrop": False,
        # Timed by our own tick.
        "openHandshakeTimeout": 0,
        "closeHandshakeTimeout": 0,
        "autoPingInterval": 0,
        "tcpNoDelay": True,
        "maxMessagePayloadSize": settings.message_limit,
        "maxFramePayloadSize": settings.message_limit,
    }


def _usual_options() -> dict[str, Any]:
    theirs = SimpleNamespace()
    WebSocketServerFactory.resetProtocolOptions(theirs)
    ours = {"webStatus": False, "perMessageCompressionAccept": no_compression, **options_of(Settings())}
    return {name: (vars(theirs) | ours)[name] for name in WebSocketServerProtocol.CONFIG_ATTRS if name in vars(theirs)}


def _at_rest() -> dict[str, Any]:
    """What Autobahn sets on a connection that is made, and mostly leaves as it is."""
    flags = (
        "triggered",
        "wasMaxFramePayloadSizeExceeded",
        "wasMaxMessagePayloadSizeExceeded",
        "closedByMe",
        "failedByMe",
        "droppedByMe",
        "wasClean",
        "wasServerConnectionDropTimeout",
        "wasOpenHandshakeTimeout",
        "wasCloseHandshakeTimeout",
        "wasServingFlashSocketPolicyFile",
        "inside_message",
        "logOctets",
        "logFrames",
        "trackTimings",
    )
    nothing = (
        "_perMessageCompress",
        "trackedTimings",
        "current_frame",
        "wasNotCleanReason",
        "localCloseCode",
        "localCloseReason",
        "remoteCloseCode",
        "remoteCloseReason",
        "openHandshakeTimeoutCall",
        "closeHandshakeTimeoutCall",
        "autoPingTimeoutCall",
        "autoPingPending",
        "autoPingPendingCall",
        "autoPingPendingSent",
        "websocket_protocol_in_use",
    )
    return {
        **dict.fromkeys(flags, False),
        **dict.fromkeys(nothing),
        "state": _CONNECTING,
        "send_state": WebSocketProtocol.SEND_STATE_GROUND,
        "data": b"",
        # Of those who write in pieces one is made.
        "send_queue": (),
        "autoPingPendingSeq": 0,
        "websocket_version": 13,
        "_valid_events": ["message"],
    }


_USUAL = _usual_options()
_names = tuple(_USUAL)
_values = tuple(_USUAL.values())
_values_of = attrgetter(*_names)
# What `fire` returns where nobody listens.
_NOBODY: Deferred[list[object]] = succeed([])


class _Attribute:
    """An attribute that a function of the instance makes. There is no setter here: the instance may have its own."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self._of(instance)

    def _of(self, instance: Any) -> Any:
        raise NotImplementedError


class _Lazily(_Attribute):
    """One that is made when somebody first asks for it, and is the instance's own from then on."""

    def _of(self, instance: Any) -> Any:
        value = self._make(instance)
        # Not by its `__dict__`: an instance that was asked for that takes three times as much (Python 3.11).
        setattr(instance, self._name, value)
        return value


class _FromHead(_Attribute):
    """One that is read from the request's head whenever somebody asks; of an unusual request Autobahn sets it."""

    def _of(self, instance: Any) -> Any:
        if instance._heartbeat_head is None:
            raise AttributeError(f"{self._name} is not known before the opening handshake")
        return self._make(instance)


def _headers(protocol: Any) -> dict[str, str]:
    headers: dict[str, str] = parseHttpHeader(protocol._heartbeat_head)[1]
    return headers


def _stats(protocol: LeanServerProtocol) -> TrafficStats:
    stats = TrafficStats()
    if protocol._heartbeat_head is not None:
        stats.preopenIncomingOctetsWireLevel = len(protocol._heartbeat_head)
        stats.preopenOutgoingOctetsWireLevel = len(protocol.http_response_data)
    return stats


def _details(protocol: LeanServerProtocol) -> TransportDetails:
    details = create_transport_details(protocol.transport, protocol.is_server)
    details.channel_framing = TransportDetails.CHANNEL_FRAMING_WEBSOCKET
    return details


def _offered(protocol: LeanServerProtocol) -> list[Any]:
    offered = protocol.http_headers.get("sec-websocket-extensions")
    return [] if offered is None else protocol._parseExtensionsHeader(offered)


class LeanServerProtocol(WebSocketServerProtocol):  # type: ignore[misc]  # Autobahn's are Any
    """A server's connection, as Autobahn knows it."""

    #: The head of the request, where it was answered here.
    _heartbeat_head: bytes | None = None

    send_queue: Any
    state: int

    peer = _Lazily(lambda protocol: peer2str(protocol.transport))
    trafficStats = _Lazily(_stats)
    utf8validator = _Lazily(lambda protocol: Utf8Validator())
    _transport_details = _Lazily(_details)
    _results = _Lazily(lambda protocol: dict.fromkeys(protocol._valid_events))

    http_request_data = _FromHead(lambda protocol: protocol._heartbeat_head)
    http_status_line = _FromHead(lambda protocol: protocol._heartbeat_head.split(b"\r\n", 1)[0].decode())
    http_headers = _FromHead(_headers)
    http_request_uri = _FromHead(lambda protocol: protocol._heartbeat_head.split(b" ", 2)[1].decode())
    http_request_path = _FromHead(lambda protocol: urlparse(protocol.http_request_uri).path)
    http_request_params = _FromHead(lambda protocol: parse_qs(urlparse(protocol.http_request_uri).query))
    http_request_host = _FromHead(lambda protocol: protocol.http_headers["host"].partition(":")[0])
    http_response_data = _FromHead(lambda protocol: protocol._heartbeat_response(protocol.http_headers).decode())
    websocket_origin = _FromHead(lambda protocol: protocol.http_headers.get("origin", ""))
    websocket_protocols = _FromHead(lambda protocol: [])
    websocket_extensions = _FromHead(_offered)
    websocket_extensions_in_use = _FromHead(lambda protocol: [])
    _wskey = _FromHead(lambda protocol: protocol.http_headers["sec-websocket-key"])

    # For those who asked; and whether Autobahn has fired the last.
    _heartbeat_opened: Deferred[None] | None = None
    _heartbeat_closed: Deferred[Any] | None = None
    _heartbeat_is_closed = False

    @property
    def is_open(self) -> Deferred[None]:
        """Autobahn's: fires when the WebSocket is open."""
        if self._heartbeat_opened is None:
            self._heartbeat_opened = Deferred() if self._heartbeat_head is None else succeed(None)
        return self._heartbeat_opened

    @property
    def is_closed(self) -> Deferred[Any]:
        """Autobahn's: fires with this protocol when the connection is closed."""
        if self._heartbeat_closed is not None:
            return self._heartbeat_closed
        if self._heartbeat_is_closed:
            return succeed(self)
        if self.state != WebSocketProtocol.STATE_CLOSED:
            self._heartbeat_closed = Deferred()
            return self._heartbeat_closed
        # Autobahn asks, to fire it. Nobody has before: kept, it would keep the protocol, and the protocol it, until the
        # garbage collector finds them.
        self._heartbeat_is_closed = True
        return Deferred()

    def __init__(self) -> None:
        """What Autobahn makes here is made when somebody asks for it."""

    def connectionMade(self) -> None:
        """Twisted's: the transport is connected."""
        factory = self.factory
        # On the instance, because each chunk of bytes asks for them.
        self.state = _CONNECTING
        self.data = b""
        options = _values_of(factory)
        if options != _values:
            cls = type(self)
            for name, usual, value in zip(_names, _values, options, strict=True):
                # What a class has of its own stands, as with Autobahn.
                if value != usual and getattr(cls, name) is usual:
                    setattr(self, name, value)
        if options == _values or not (self.openHandshakeTimeout or self.trackTimings):
            factory.countConnections += 1
            if self.tcpNoDelay:
                self._heartbeat_no_delay()
        else:
            super().connectionMade()

    def _heartbeat_no_delay(self) -> None:
        try:
            self.transport.setTcpNoDelay(True)
        except (AttributeError, OSError):
            # Not TCP.
            return

    def processHandshake(self) -> None:
        """Autobahn's: bytes of the opening handshake have arrived."""
        headers = ordinary_headers(self.data) if self._heartbeat_may_answer() else None
        if headers is None or ("x-forwarded-for" in headers and self.trustXForwardedFor):
            super().processHandshake()
            return
        self._heartbeat_head, self.data = self.data, b""
        # So far they count the head.
        del self.trafficStats
        outbox.way_to(self.transport)(self.transport, self._heartbeat_response(headers))
        self.state = _OPEN
        self.inside_message = False
        self.current_frame = None
        self._onOpen()
        if self._heartbeat_opened is not None and not self._heartbeat_opened.called:
            self._heartbeat_opened.callback(None)

    def _heartbeat_may_answer(self) -> bool:
        """Whether an ordinary request is answered as Autobahn would, by what it was told to do."""
        factory = self.factory
        return (
            13 in self.versions
            and self.perMessageCompressionAccept is no_compression
            and factory.allowedOrigins == ["*"]
            and not (factory.externalPort or factory.headers or self.maxConnections or self.autoPingInterval)
            and not (self.logOctets or self.trackTimings)
            and _leaves_handshakes_to_us(type(self))  # type: ignore[arg-type]  # a class can be hashed
        )

    def _heartbeat_response(self, headers: dict[str, str]) -> bytes:
        """The answer to an ordinary request, the same as Autobahn's."""
        server = b"Server: %b\r\n" % self.factory.server.encode() if self.factory.server else b""
        return (
            b"HTTP/1.1 101 Switching Protocols\r\n%bUpgrade: WebSocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % (server, accept_of(headers["sec-websocket-key"]))
        )

    def _onOpen(self) -> None:
        """Autobahn's: the WebSocket is open. What it looks up of TLS is looked up when somebody asks."""
        self.onOpen()

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:  # noqa: FBT002  # Autobahn's
        """Autobahn's: bytes go out. Without a line for a log, formatted for nobody."""
        if sync or chopsize or self.send_queue or self.logOctets or self.state != _OPEN:
            if (sync or chopsize) and not self.send_queue:
                self.send_queue = deque()
            super().sendData(data, sync, chopsize)
            return
        self.transport.write(data)
        self.trafficStats.outgoingOctetsWireLevel += len(data)

    def fire(self, event: str, *arguments: Any, **keywords: Any) -> Deferred[Any]:
        """Autobahn's: whoever listens hears of an event, and mostly nobody does."""
        if self._listeners is None:
            return _NOBODY
        listened: Deferred[Any] = super().fire(event, *arguments, **keywords)
        return listened


for _name, _value in {**_at_rest(), **_USUAL}.items():
    setattr(LeanServerProtocol, _name, staticmethod(_value) if callable(_value) else _value)


@cache
def _leaves_handshakes_to_us(cls: Any) -> bool:
    """Whether a class overrides nothing that an ordinary handshake leaves out."""
    left_out = ("onConnect", "succeedHandshake", "sendData")
    return all(getattr(cls, name) is getattr(LeanServerProtocol, name) for name in left_out)
