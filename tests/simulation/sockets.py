"""WebSockets whose frames are tuples: what stands in the place of Autobahn's parser and writer.

Everything above them is the real thing: the protocols of either end, their edges, and what those lead to. How a
connection is closed is still Autobahn's affair.
"""

from math import inf
from types import SimpleNamespace

from autobahn.exception import Disconnected
from autobahn.twisted.websocket import WebSocketClientProtocol
from autobahn.websocket.protocol import WebSocketProtocol
from lines import CLOSE, PING, PONG, TEXT, UPGRADE, UPGRADED
from twisted.internet.protocol import connectionDone

from heartbeat.client import _Connection
from heartbeat.lean import LeanServerProtocol
from heartbeat.protocol import HeartbeatServerProtocol

CONNECTING, OPEN, CLOSING = (
    WebSocketProtocol.STATE_CONNECTING,
    WebSocketProtocol.STATE_OPEN,
    WebSocketProtocol.STATE_CLOSING,
)

# What a frame is on the wire besides its payload, about.
_HEAD = 6

_PING, _OPENING = b'{"type":"ping"', b'{"type":"onopen"'


class _Frames:
    """Frames in and out. Autobahn calls, and is called, by the same names as on its own way."""

    websocket_origin = ""
    http_headers = {"host": "test"}  # noqa: RUF012  # never changed
    http_request_params = {}  # noqa: RUF012  # as above
    http_request_data = b""
    message_data = ()
    message_data_total_length = 0

    opened_at = closing_at = admitted_at = -inf

    def connectionMade(self):
        world = self.transport.world
        self.made_at = world.now
        world.oracle.watch(self)
        self.state = CONNECTING
        self.data = b""
        self.trafficStats = SimpleNamespace(outgoingOctetsWireLevel=0)

    def _dataReceived(self, frame):
        self.data = frame
        self.consumeData()

    def consumeData(self):
        self.transport.read_at = self.transport.world.now
        (kind, payload), self.data = self.data, b""
        if self.state in (OPEN, CLOSING):
            if kind == TEXT:
                self._text_came(payload)
            else:
                _TAKEN[kind](self, payload)
        elif self.state == CONNECTING:
            self._shake_hands()

    def sendMessage(self, payload, **options):
        if self.state != OPEN:
            raise Disconnected
        self.trafficStats.outgoingOctetsWireLevel += len(payload) + _HEAD
        self.transport.write((TEXT, payload))

    def sendFrame(self, opcode, payload=b""):
        if opcode == CLOSE:
            self.closing_at = self.transport.world.now
        self.trafficStats.outgoingOctetsWireLevel += len(payload) + _HEAD
        self.transport.write((opcode, payload))

    def connectionLost(self, reason=connectionDone):
        self._connectionLost(reason)

    def _onOpen(self):
        """No host is there to be told."""

    def _onPing(self, payload):
        if self.state == OPEN:
            self.transport.write((PONG, payload))

    def _onPong(self, payload):
        """No host is there to be told."""

    def _onClose(self, wasClean, code, reason):
        """No host is there to be told."""

    def _text_came(self, payload):
        self._onMessage(payload, False)

    def _pong_came(self, payload):
        self.transport.pongs_at = self.transport.world.now
        self._onPong(payload)

    def _close_came(self, payload):
        self.onCloseFrame(int.from_bytes(payload[:2], "big"), payload[2:])


_TAKEN = {
    PING: lambda socket, payload: socket._onPing(payload),
    PONG: _Frames._pong_came,
    CLOSE: _Frames._close_came,
}


class _ServerFrames(_Frames, LeanServerProtocol):
    trafficStats = None

    def connectionMade(self):
        super().connectionMade()
        self.factory.countConnections += 1

    def _shake_hands(self):
        refusal = self._heartbeat_arrival_refusal(b"", plain=False)
        self.transport.world.claim(refusal is None, "nobody is to be refused:", refusal)
        # As `LeanServerProtocol` answers an ordinary handshake.
        self.transport.write((UPGRADED, b""))
        self.state = OPEN
        self.opened_at = self.transport.world.now
        self._onOpen()

    def _text_came(self, payload):
        if payload.startswith(_PING):
            self.transport.beaten_at = self.transport.world.now
        self._onMessage(payload, False)

    def sendMessage(self, payload, **options):
        if payload.startswith(_OPENING):
            self.admitted_at = self.transport.beaten_at = self.transport.world.now
            self.transport.world.oracle.carries(self)
        super().sendMessage(payload)

    def sendFrame(self, opcode, payload=b""):
        super().sendFrame(opcode, payload)
        if opcode == CLOSE:
            self.transport.world.oracle.carries_no_more(self)


class _ClientFrames(_Frames, WebSocketClientProtocol):
    # Autobahn copies these to each connection.
    echoCloseCodeReason = failByDrop = closedByMe = failedByMe = droppedByMe = wasClean = inside_message = False
    wasServingFlashSocketPolicyFile = False
    closeHandshakeTimeout = serverConnectionDropTimeout = 0
    serverConnectionDropTimeoutCall = openHandshakeTimeoutCall = closeHandshakeTimeoutCall = None
    autoPingTimeoutCall = autoPingPendingCall = None
    wasNotCleanReason = localCloseCode = localCloseReason = remoteCloseCode = remoteCloseReason = None
    _perMessageCompress = current_frame = websocket_protocol_in_use = None
    websocket_version = 13

    def connectionMade(self):
        super().connectionMade()
        self.transport.write((UPGRADE, b""))

    def _shake_hands(self):
        self.state = OPEN
        self.opened_at = self.transport.world.now
        self._onOpen()


class ServerSocket(HeartbeatServerProtocol, _ServerFrames):
    """A server's connection. What it tells of its link is looked into by the oracle."""

    def linkChanged(self, status):
        self.transport.world.oracle.reported(self, status)

    def pongReceived(self, rtt, clients):
        self.transport.world.round_trips += 1


class ClientSocket(_Connection, _ClientFrames):
    """A client's."""

    def linkChanged(self, status):
        self.transport.world.oracle.reported(self, status)
        super().linkChanged(status)

    def pongReceived(self, rtt, clients):
        self.transport.world.round_trips += 1
        super().pongReceived(rtt, clients)
