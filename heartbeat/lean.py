"""Autobahn's server protocol with nothing on the instance that its class knows as well.

Autobahn copies some thirty options to each connection and sets some fifty attributes more, of which a connection
at rest needs eight. Here they are the class's, or made when somebody first asks for them; what stood in the request
is read again from its head. An ordinary opening handshake is answered without the rest of it; an unusual one is
Autobahn's. Whatever Autobahn tells of a connection is told by the same names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
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
from heartbeat.handshake import accept_of, compact, in_pieces, ordinary_headers
from heartbeat.quiet import FewerLines

__all__ = ["LeanServerProtocol", "function_of", "no_compression", "options_of"]

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
    theirs = SimpleNamespace(logOctets=False, logFrames=False, trackTimings=False)
    WebSocketServerFactory.resetProtocolOptions(theirs)
    ours = {"webStatus": False, "perMessageCompressionAccept": no_compression, **options_of(Settings())}
    return {name: (vars(theirs) | ours)[name] for name in WebSocketServerProtocol.CONFIG_ATTRS}


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
    """One that is made when somebody first asks for it, and is the instance's own once it is `settled`."""

    def __init__(self, make: Callable[[Any], Any], settled: Callable[[Any], bool] = lambda instance: True) -> None:
        super().__init__(make)
        self._settled = settled

    def _of(self, instance: Any) -> Any:
        value = self._make(instance)
        if self._settled(instance):
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


def _peer(protocol: LeanServerProtocol) -> str | None:
    return None if protocol.transport is None else peer2str(protocol.transport)


def _details(protocol: LeanServerProtocol) -> TransportDetails:
    details = create_transport_details(protocol.transport, protocol.is_server)
    details.channel_framing = TransportDetails.CHANNEL_FRAMING_WEBSOCKET
    return details


def _offered(protocol: LeanServerProtocol) -> list[Any]:
    offered = protocol.http_headers.get("sec-websocket-extensions")
    return [] if offered is None else protocol._parseExtensionsHeader(offered)


class LeanServerProtocol(WebSocketServerProtocol):  # type: ignore[misc]  # Autobahn's are Any
    """A server's connection, as Autobahn knows it."""

    # The head of the request, where it was answered here, as it is kept.
    _heartbeat_pieces: tuple[bytes, ...] | None = None
    # What reads from the network, where little is to be read at a time.
    _heartbeat_reader: Any = None
    # Whether Autobahn has made the connection, with all that belongs to it.
    _heartbeat_is_made = False

    #: Autobahn's: without a line for each stranger that it lets go, of whom there may be any number. Nothing else.
    log = FewerLines(WebSocketServerProtocol.log)

    send_queue: Any
    state: int

    peer = _Lazily(_peer, settled=lambda protocol: protocol.transport is not None)
    trafficStats = _Lazily(_stats)
    utf8validator = _Lazily(lambda protocol: Utf8Validator())
    # Before that, TLS has not agreed on what is told of it.
    _transport_details = _Lazily(_details, settled=lambda protocol: protocol.state == _OPEN)
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

    # For those who asked; whether it has opened; whether Autobahn has told that it is closed.
    _heartbeat_opened: Deferred[None] | None = None
    _heartbeat_is_open = False
    _heartbeat_closed: Deferred[Any] | None = None
    _heartbeat_is_closed = False

    @property
    def _heartbeat_head(self) -> bytes | None:
        """The head of the request, where it was answered here."""
        return None if self._heartbeat_pieces is None else b"".join(self._heartbeat_pieces)

    @property
    def is_open(self) -> Deferred[None]:
        """Autobahn's: fires when the WebSocket is open."""
        if self._heartbeat_opened is None:
            self._heartbeat_opened = succeed(None) if self._heartbeat_is_open else Deferred()
        return self._heartbeat_opened

    @is_open.setter
    def is_open(self, opened: Deferred[None]) -> None:
        self._heartbeat_opened = opened

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

    @is_closed.setter
    def is_closed(self, closed: Deferred[Any]) -> None:
        self._heartbeat_closed = closed

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
            self._heartbeat_take_options(options)
        if (
            self.openHandshakeTimeout
            or self.trackTimings
            or function_of(self, "_connectionMade") is not _CONNECTION_MADE
        ):
            self._heartbeat_is_made = True
            super().connectionMade()
            return
        factory.countConnections += 1
        if self.tcpNoDelay:
            self._heartbeat_no_delay()

    def _heartbeat_take_options(self, options: tuple[Any, ...]) -> None:
        """Take what is unusual of these, unless the class or the instance has its own, as with Autobahn."""
        cls = type(self)
        above = cls.__mro__[: cls.__mro__.index(LeanServerProtocol)]
        for name, usual, value in zip(_names, _values, options, strict=True):
            own = getattr(self, name) is not getattr(cls, name) or any(name in vars(base) for base in above)
            if value != usual and not own:
                setattr(self, name, value)

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
            # Autobahn keeps it for as long as the connection.
            self.data = compact(self.data)
            super().processHandshake()
            return
        self._heartbeat_pieces, self.data = in_pieces(self.data), b""
        # So far they count the head.
        del self.trafficStats
        outbox.way_to(self.transport)(self.transport, self._heartbeat_response(headers))
        self.state = _OPEN
        self.inside_message = False
        self.current_frame = None
        self._onOpen()
        self._heartbeat_is_open = True
        if self._heartbeat_opened is not None:
            self._heartbeat_opened.callback(None)

    def _heartbeat_may_answer(self) -> bool:
        """Whether an ordinary request is answered as Autobahn would, by what it was told to do."""
        factory = self.factory
        return (
            13 in self.versions
            and self.perMessageCompressionAccept is no_compression
            and self.allowedOriginsPatterns == _USUAL["allowedOriginsPatterns"]
            and not (factory.externalPort or factory.headers or self.maxConnections or self.autoPingInterval)
            and not (self.logOctets or self.trackTimings or self.openHandshakeTimeoutCall)
            # Of the instance, which may have been given one of its own.
            and all(function_of(self, name) is function for name, function in _HANDSHAKE.items())
        )

    def _heartbeat_response(self, headers: dict[str, str]) -> bytes:
        """The answer to an ordinary request, the same as Autobahn's."""
        server = b"Server: %b\r\n" % self.factory.server.encode() if self.factory.server else b""
        return (
            b"HTTP/1.1 101 Switching Protocols\r\n%bUpgrade: WebSocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n\r\n" % (server, accept_of(headers["sec-websocket-key"]))
        )

    def _onOpen(self) -> None:
        """Autobahn's: the WebSocket is open."""
        if self._heartbeat_is_made:
            super()._onOpen()
        else:
            # What it looks up of TLS is looked up when somebody asks.
            self.onOpen()

    def consumeData(self) -> None:
        """Autobahn's: there are bytes to parse."""
        super().consumeData()
        if self._heartbeat_reader is not None:
            # What belongs to one frame is not many messages, however long it is.
            outbox.read_up_to(self._heartbeat_reader, self._heartbeat_rest())

    def _heartbeat_rest(self) -> int:
        """How many bytes of the frame that is arriving have not arrived."""
        frame = self.current_frame
        return 0 if frame is None else frame.length - self.current_frame_masker.pointer()

    def onMessageFrame(self, payload: list[bytes]) -> None:
        """Autobahn's: a frame of a message is here, in the pieces that it arrived in; kept as one."""
        if not self.failedByMe:
            self.message_data.append(b"".join(payload))

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:  # noqa: FBT002  # Autobahn's
        """Autobahn's: bytes go out. Without a line for a log, formatted for nobody."""
        if sync or chopsize or self.send_queue or self.logOctets or self.state != _OPEN:
            if (sync or chopsize) and not self.send_queue:
                self.send_queue = deque()
            super().sendData(data, sync, chopsize)
            return
        self.transport.write(data)
        self.trafficStats.outgoingOctetsWireLevel += len(data)


for _name, _value in {**_at_rest(), **_USUAL}.items():
    setattr(LeanServerProtocol, _name, staticmethod(_value) if callable(_value) else _value)

# What an ordinary handshake leaves out.
_HANDSHAKE = {name: getattr(LeanServerProtocol, name) for name in ("onConnect", "succeedHandshake", "sendData")}
_CONNECTION_MADE = LeanServerProtocol._connectionMade


def function_of(of: object, name: str) -> object:
    """The function behind a method; None where there is none."""
    return getattr(getattr(of, name), "__func__", None)
