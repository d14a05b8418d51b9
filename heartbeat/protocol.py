"""Our own server and client protocols: the mixins on Autobahn's, with every message ours.

What they add: a plain HTTP request on the same port is handed to a twisted.web site, refusals come
early and in one sentence, and handshakes are timed by our own tick.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from autobahn.twisted.websocket import WebSocketClientProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure

from heartbeat import outbox
from heartbeat.arrivals import Account, Arrivals
from heartbeat.core.errors import CloseCode
from heartbeat.edge import Edge
from heartbeat.ends import ServerEdge
from heartbeat.handshake import HEAD_LIMIT, compact, has_body, http_refusal, origin_refusal, path_of, wants_websocket
from heartbeat.lean import LeanServerProtocol
from heartbeat.mixin import Heartbeat, HeartbeatClientMixin, HeartbeatServerMixin

__all__ = ["HeartbeatClientProtocol", "HeartbeatServerProtocol"]

# So many frames a message may come in, and one more for each 64 bytes of it.
_FRAGMENTS = 4096


class _OwnTimers(Heartbeat):
    """Handshakes timed by our tick instead of Autobahn's timers.

    Those follow the wall clock and the global reactor, and come due on whole seconds.
    """

    _heartbeat_guest = False

    def connectionMade(self) -> None:
        """Twisted's: the transport is connected, and the opening handshake is to end in time."""
        edge = self._heartbeat_edge()
        settings = edge.shared.settings
        patience = settings.handshake_timeout if self.is_server else settings.open_timeout  # type: ignore[attr-defined]  # Autobahn's
        edge.limit(patience, self.onOpenHandshakeTimeout)  # type: ignore[attr-defined]  # Autobahn's
        super().connectionMade()  # type: ignore[misc]  # Autobahn's

    def sendCloseFrame(self, *arguments: Any, **keywords: Any) -> None:
        """Autobahn's: a closing handshake begins or is answered, and is to end in time."""
        super().sendCloseFrame(*arguments, **keywords)  # type: ignore[misc]  # Autobahn's
        self._heartbeat_closes()

    def dropConnection(self, abort: bool = False) -> None:  # noqa: FBT002  # Autobahn's signature
        """Autobahn's: the connection is to end; over TLS, or with bytes to write, that may need help."""
        super().dropConnection(abort)  # type: ignore[misc]  # Autobahn's
        self._heartbeat_closes()

    def _heartbeat_closes(self) -> None:
        edge = self._heartbeat
        if edge is not None:
            edge.limit(edge.shared.settings.close_timeout, edge.drop)


class _HandedOver(Protocol):
    """A connection that turned out to be the site's, until it ends."""

    def __init__(self, factory: Any, arrivals: Arrivals, http: Any) -> None:
        #: Arrival: the address that it counts for.
        self.account: Account | None = None
        self._counting = factory
        self._arrivals = arrivals
        self._http = http

    def give_way(self) -> None:
        """Arrival: there is no room for whoever reads pages."""
        self.transport.abortConnection()  # type: ignore[union-attr]  # connected

    def connectionMade(self) -> None:
        """Twisted's: connected, to the site's protocol from now on."""
        self._http.makeConnection(self.transport)

    def dataReceived(self, data: bytes) -> None:
        """Twisted's: the site's protocol takes it."""
        self._http.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Twisted's: one connection less."""
        self._counting.countConnections -= 1
        self._arrivals.left(self)
        self._http.connectionLost(reason)


class HeartbeatServerProtocol(_OwnTimers, HeartbeatServerMixin, LeanServerProtocol):
    """A server's connection. Override `messageReceived` and `linkChanged`, or register types with the factory."""

    data: bytes

    _heartbeat: ServerEdge | None

    _heartbeat_asked = False
    # The short pieces of a message that were counted.
    _heartbeat_counted = 0

    def connectionMade(self) -> None:
        """Twisted's: the transport is connected."""
        super().connectionMade()
        # Until it is known who it is; whoever reads pages never is.
        outbox.read_last(self.transport)
        edge = self._heartbeat
        if edge is not None:
            edge.shared.arrivals.connected(edge, edge.now())

    def onOpenHandshakeTimeout(self) -> None:
        """Autobahn's: the opening handshake was not complete in time."""
        self._heartbeat_notes("handshake_timeout", "its request was not complete in time (setting handshake_timeout)")
        super().onOpenHandshakeTimeout()

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: list[tuple[str, str]] | None = None) -> None:
        """Autobahn's: the request is no handshake that can be taken."""
        # Who was refused for want of room is counted by the setting that it is for.
        if code != HTTPStatus.SERVICE_UNAVAILABLE:
            self._heartbeat_notes("handshake", reason)
        super().failHandshake(reason, code, responseHeaders)

    def _fail_connection(self, code: int = CloseCode.GOING_AWAY, reason: str = "going away") -> None:
        self._heartbeat_notes("message_limit" if code == CloseCode.TOO_BIG else "protocol", reason)
        super()._fail_connection(code, reason)

    def _heartbeat_notes(self, reason: str, why: str) -> None:
        if self._heartbeat is not None:
            self._heartbeat.note(reason, why)

    def processHandshake(self) -> None:
        """Autobahn's: bytes of the opening handshake have arrived."""
        if self._heartbeat_asked:
            # An `onConnect` takes its time. What follows the request is no other one: it waits, within bounds.
            if len(self.data) > HEAD_LIMIT:
                self.failHandshake("a client waits for the answer to its handshake (RFC 6455, section 4.1)")
            return
        end = self.data.find(b"\r\n\r\n")
        if (end if end >= 0 else len(self.data)) > HEAD_LIMIT:
            self.failHandshake(f"a request head is at most {HEAD_LIMIT} bytes", 431)
            return
        if end < 0:
            return
        head = self.data[: end + 2]
        plain, site = not wants_websocket(head), getattr(self.factory, "site", None)
        refusal = self._heartbeat_refusal(head, site) if plain else self._heartbeat_upgrade_refusal(head)
        if refusal is None:
            refusal = self._heartbeat_arrival_refusal(head, plain=plain)
        if refusal is not None:
            self.failHandshake(*refusal)
        elif plain and site is not None:
            self._heartbeat_hand_over(site)
        else:
            self._heartbeat_asked = True
            super().processHandshake()

    def _heartbeat_may_answer(self) -> bool:
        """Whether an ordinary request is answered past Autobahn."""
        edge = self._heartbeat
        return edge is not None and edge.shared.settings.fast_path and super()._heartbeat_may_answer()

    def _heartbeat_refusal(self, head: bytes, site: Any) -> tuple[Any, ...] | None:
        """Why a plain request may not come in: a sentence, and the HTTP status."""
        if has_body(head) and not getattr(site, "takes_bodies", True):
            return "nothing here takes a request with a body", 413
        return None

    def _heartbeat_upgrade_refusal(self, head: bytes) -> tuple[Any, ...] | None:
        """Why there is no WebSocket: a sentence, and the HTTP status."""
        paths = getattr(self.factory, "paths", None)
        if paths is not None and path_of(head) not in paths:
            return "there is no WebSocket here, try " + " or ".join(paths), 404
        return None

    def _heartbeat_arrival_refusal(self, head: bytes, *, plain: bool) -> tuple[Any, ...] | None:
        """Why nobody more may come in: a sentence, the HTTP status, headers. Who reads pages is no WebSocket."""
        edge, is_full = self._heartbeat, getattr(self.factory, "is_full", None)
        if edge is None:
            return None
        full = is_full is not None and not plain and is_full()
        return edge.shared.arrivals.asked(edge, head, edge.now(), is_full=full)

    def _heartbeat_in_pieces(self) -> None:
        """Of a message some have arrived; empty frames of it would be kept without ever meeting a limit."""
        pieces, edge = len(self.message_data) - self.message_data_total_length // 1024, self._heartbeat
        # Each costs what a message costs. After the last one the next message's are the first again.
        before, self._heartbeat_counted = self._heartbeat_counted, pieces if self.inside_message else 0
        if edge is not None and pieces > before:
            edge.left -= pieces - before
            if edge.left < 0:
                edge.recount()
        if len(self.message_data) - self.message_data_total_length // 64 > _FRAGMENTS and not self.failedByMe:
            self._fail_connection(CloseCode.TOO_BIG, "a message in too many fragments")

    def sendHttpErrorResponse(
        self, code: int, reason: str, responseHeaders: list[tuple[str, str]] | None = None
    ) -> None:
        """Autobahn's: refuse the handshake; ours is a complete HTTP answer, so that nobody waits for its end."""
        self.sendData(http_refusal(code, reason, responseHeaders))

    def _heartbeat_hand_over(self, site: Any) -> None:
        """Turn the connection into one of the site's: its bytes so far, and its transport.

        A WebSocket connection never carries an HTTPChannel this way, which would cost 42 % more memory.
        It is counted on, or plain requests would use up the files that `max_connections` keeps free.
        """
        data, self.data = self.data, b""
        transport, edge = self.transport, self._heartbeat
        if edge is None:
            return
        arrivals = edge.shared.arrivals
        http: Any = _HandedOver(self.factory, arrivals, site.buildProtocol(transport.getPeer()))
        arrivals.handed_over(edge, http, edge.now())
        edge.gone(None)
        self._heartbeat = None
        self.state = self.STATE_CLOSED
        if isinstance(transport, ProtocolWrapper):
            transport.wrappedProtocol = http
        else:
            transport.protocol = http
        http.makeConnection(transport)
        http.dataReceived(data)

    def _heartbeat_open(self, edge: Edge) -> None:
        refusal = origin_refusal(self.websocket_origin, self.http_headers["host"], edge.shared.settings.origins)
        if refusal is not None:
            # A page cannot read an HTTP refusal, so it is let in and told.
            edge.note("origins", refusal)
            edge.close(CloseCode.FORBIDDEN_ORIGIN, refusal)
            return
        super()._heartbeat_open(edge)
        edge.paced()  # type: ignore[attr-defined]  # a server's


class HeartbeatClientProtocol(_OwnTimers, HeartbeatClientMixin, WebSocketClientProtocol):  # type: ignore[misc]  # Autobahn's are Any
    """A client's connection. Override `messageReceived` and `linkChanged`; it does not reconnect."""

    data: bytes

    #: The HTTP status that refused the handshake, and the seconds it asked for; None without one.
    refused_with: int | None = None
    retry_after: float | None = None

    def connectionMade(self) -> None:
        """Twisted's: the transport is connected."""
        # Autobahn 26.10 looks at this before it has copied it from the factory, and lets it be. Under Nagle's algorithm
        # a ping that follows a message waits for its acknowledgement, which the other end's kernel delays by 40 ms.
        self.tcpNoDelay = self.factory.tcpNoDelay
        super().connectionMade()

    def processHandshake(self) -> None:
        """Autobahn's: bytes of the server's answer to the handshake have arrived."""
        if len(self.data) > HEAD_LIMIT and b"\r\n\r\n" not in self.data[:HEAD_LIMIT]:
            self.failHandshake(f"the server's head is over {HEAD_LIMIT} bytes")
            return
        # Of this, too, the head is kept.
        self.data = compact(self.data)
        try:
            super().processHandshake()
        except (ValueError, IndexError, KeyError) as error:
            # Autobahn trusts the server to speak HTTP.
            self.failHandshake(f"the server does not speak HTTP: {error}")

    def failHandshake(self, reason: str) -> None:
        """Autobahn's: the server's answer is no handshake."""
        words = getattr(self, "http_status_line", "").split()
        if len(words) > 1 and words[1].isdigit() and len(words[1]) == 3 and words[1] != "101":
            self.refused_with = int(words[1])
            after = self.http_headers.get("retry-after", "").strip()
            self.retry_after = float(after) if after.isdigit() else None
        super().failHandshake(reason)
