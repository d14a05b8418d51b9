"""A heartbeat for Autobahn protocols that an application already has.

The mixins intercept where Autobahn calls itself (`_onOpen`, `_onMessage`, `_onPong`, `_onClose`,
`dataReceived`, `consumeData`), so that a host's `onOpen`, `onMessage` and `onClose` need no `super()`. They have no
`__init__` and keep one private attribute. They never answer what is not theirs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from autobahn.websocket.protocol import WebSocketProtocol
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.failure import Failure

from heartbeat.core.client_link import ClientLink
from heartbeat.core.errors import Unconfirmed
from heartbeat.core.link import LinkStatus
from heartbeat.core.messages import encode
from heartbeat.core.server_link import ServerLink
from heartbeat.core.settings import Settings
from heartbeat.edge import Edge
from heartbeat.handshake import speaks_for_itself
from heartbeat.quiet import QuietDeferred
from heartbeat.shared import ClientShared, ServerShared, Shared, is_local

__all__ = ["Heartbeat", "HeartbeatClientMixin", "HeartbeatServerMixin", "encode_message"]

_RESERVED = frozenset({"onopen", "ping", "ack", "error", "drain"})

_OUTSIDERS = ("autobahn.", "twisted.", "builtins", "txaio", "zope.", "heartbeat.")


class Heartbeat:
    """What both mixins share: interception, the hooks, and `send`."""

    #: Subprotocols under which our JSON may be spoken; under any other, only RFC 6455 pings are.
    heartbeat_subprotocols: ClassVar[tuple[str, ...]] = ()

    _heartbeat: Edge | None = None
    _heartbeat_guest: ClassVar[bool] = True

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        mro = cls.__mro__
        ours = [at for at, base in enumerate(mro) if "_heartbeat_intercepts" in base.__dict__]
        hosts = [at for at, base in enumerate(mro) if base is WebSocketProtocol]
        if any(base.__module__.startswith("autobahn.wamp") or "Wamp" in base.__name__ for base in mro):
            raise TypeError(f"{cls.__name__}: WAMP has a session of its own, the heartbeat mixins cannot be mixed in")
        if not hosts:
            # A mixin on top of a mixin; whoever adds the Autobahn class is looked at.
            return
        wrong = [base.__name__ for at, base in enumerate(mro) if at < max(ours) and _is_autobahn(base)]
        if wrong:
            raise TypeError(f"{cls.__name__}: the heartbeat mixin must stand before {wrong[0]} among the bases")
        for base in mro[max(ours) + 1 :]:
            hidden = sorted(_PUBLIC & base.__dict__.keys())
            if hidden and not base.__module__.startswith(_OUTSIDERS):
                raise TypeError(f"{cls.__name__}: the heartbeat mixin's {hidden[0]} would hide that of {base.__name__}")
        if not cls._heartbeat_guest and cls.onMessage is not WebSocketProtocol.onMessage:  # type: ignore[attr-defined]  # Autobahn's
            raise TypeError(f"{cls.__name__}: override messageReceived, not onMessage, which is never called")

    # Hooks.

    def messageReceived(self, message: dict[str, Any]) -> object:
        """A message arrived, of a type that nobody registered. May return a Deferred or coroutine."""

    def linkChanged(self, status: LinkStatus) -> object:
        """The link is open, suspect, acknowledged again, dead or closed; `status.detail` says it in a sentence."""

    def pongReceived(self, rtt: float | None, clients: int | None) -> object:
        """A ping of ours was answered, after `rtt` seconds (None where it cannot be told)."""

    def pingReceived(self) -> object:
        """A client's: a ping of the server's arrived, and was answered."""

    # What a host may call.

    @property
    def status(self) -> LinkStatus | None:
        """What is known of the link now; None before it is open and for one that is left alone."""
        edge = self._heartbeat
        if edge is None or edge.link is None:
            return None
        return edge.link.status(edge.link.monitor.state.value, edge.now(), "")

    def send(self, message: dict[str, Any]) -> Deferred[None]:
        """Send an application message: an object with a `type` that is not one of ours.

        Fires with None when the frame was given to the transport; fails with Unconfirmed when the
        connection is not open. Raises TypeError or ValueError for what is no such message.
        """
        payload = encode_message(message)
        if self.state != WebSocketProtocol.STATE_OPEN:
            return QuietDeferred.failed(Unconfirmed((message,), "closed"))
        self.sendMessage(payload)  # type: ignore[attr-defined]  # Autobahn's
        return QuietDeferred.fired()

    # Interception: Autobahn calls these.

    _heartbeat_intercepts = True

    def dataReceived(self, data: bytes) -> None:
        """Twisted's: every byte is a sign of life, but none is looked at after a conviction."""
        edge = self._heartbeat
        if edge is not None:
            if edge.dead:
                return
            edge.heard()
        super().dataReceived(data)  # type: ignore[misc]  # Autobahn's
        if edge is not None:
            edge.hold_back()

    def consumeData(self) -> None:
        """Autobahn's: there are bytes to parse, which may call any hook; also at the end of the handshake."""
        edge = self._heartbeat
        if edge is None:
            super().consumeData()  # type: ignore[misc]  # Autobahn's
        elif not edge.dead:
            edge.guarded(super().consumeData)  # type: ignore[misc]  # Autobahn's

    def _onOpen(self) -> None:
        if self.is_closed.called:  # type: ignore[attr-defined]  # Autobahn's
            # The peer left while `onConnect` took its time. Autobahn opens what is gone all the same, and
            # nobody would ever close it.
            self.state = WebSocketProtocol.STATE_CLOSED
            return
        edge = self._heartbeat or self._heartbeat_edge()
        edge.guarded(self._heartbeat_open, edge)
        if not edge.dead and self.state == WebSocketProtocol.STATE_OPEN:
            edge.guarded(super()._onOpen)  # type: ignore[misc]  # Autobahn's

    def _onMessage(self, payload: bytes, isBinary: bool) -> None:
        edge = self._heartbeat
        if edge is not None and edge.dead:
            # The rest of what had arrived with that for which it was convicted.
            return
        if edge is None or self._heartbeat_is_silent() or not edge.receive(payload, isBinary):
            super()._onMessage(payload, isBinary)  # type: ignore[misc]  # Autobahn's

    def _onPong(self, payload: bytes) -> None:
        if self._heartbeat is not None:
            self._heartbeat.pong(payload)
        super()._onPong(payload)  # type: ignore[misc]  # Autobahn's

    def _onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        edge = self._heartbeat
        if edge is None:
            super()._onClose(wasClean, code, reason)  # type: ignore[misc]  # Autobahn's
            return
        theirs = self.remoteCloseCode  # type: ignore[attr-defined]  # Autobahn's
        # The reply to a close of our own is no goodbye of the peer's: Autobahn's clients answer any with 1000.
        edge.guarded(edge.gone, None if self.closedByMe else theirs)  # type: ignore[attr-defined]  # Autobahn's
        if edge.link is not None:
            detail = f"closed ({code}): {reason}" if reason else f"closed ({code})"
            status = edge.link.status("closed", edge.now(), detail, code=theirs)
            edge.guarded(self.linkChanged, status)
        # What the host gets wrong here must not keep Autobahn from counting the connection off.
        edge.guarded(super()._onClose, wasClean, code, reason)  # type: ignore[misc]  # Autobahn's

    # The ends differ in these.

    def _heartbeat_edge(self) -> Edge:
        raise NotImplementedError

    def _heartbeat_open(self, edge: Edge) -> None:
        raise NotImplementedError

    def _heartbeat_is_silent(self) -> bool:
        """Whether a subprotocol was negotiated in which our JSON would be foreign."""
        spoken = self.websocket_protocol_in_use  # type: ignore[attr-defined]  # Autobahn's
        return self._heartbeat_guest and spoken is not None and spoken not in self.heartbeat_subprotocols

    def _heartbeat_deliver(self, message: dict[str, Any]) -> bool:
        """Hand a message to whoever takes it; False when nobody does."""
        shared: Shared = self._heartbeat.shared  # type: ignore[union-attr]  # messages come by it
        handler = shared.handlers.get(message["type"])
        if handler is not None:
            self._heartbeat_await(handler(self, message))
            return True
        if type(self).messageReceived is Heartbeat.messageReceived:
            return False
        self._heartbeat_await(self.messageReceived(message))
        return True

    def _heartbeat_await(self, result: object) -> None:
        """A handler may take its time; that it failed is never lost."""
        if hasattr(result, "__await__") and not isinstance(result, Deferred):
            result = ensureDeferred(result)  # type: ignore[arg-type]  # any awaitable coroutine will do
        if isinstance(result, Deferred):
            result.addErrback(self._heartbeat_failed)

    def _heartbeat_failed(self, failure: Failure) -> None:
        edge = self._heartbeat
        if edge is not None:
            edge.guarded(failure.raiseException)

    def _heartbeat_drained(self, shortest: float, longest: float) -> None:
        """The server announced that it is going; the reconnecting client overrides this."""


_PUBLIC = frozenset(name for name in Heartbeat.__dict__ if not name.startswith("_")) - {"dataReceived", "consumeData"}


def _is_autobahn(base: type) -> bool:
    return base.__module__.startswith("autobahn.") and issubclass(base, WebSocketProtocol)


def encode_message(message: dict[str, Any]) -> bytes:
    """An application message as JSON. Raises TypeError or ValueError, with one sentence."""
    kind = message.get("type") if isinstance(message, dict) else None
    if not isinstance(kind, str):
        raise TypeError("a message is a dict with a type that is text")
    if kind in _RESERVED:
        raise ValueError(f"messages of type {kind} are the heartbeat's own")
    return encode(message)


class HeartbeatServerMixin(Heartbeat):
    """Gives an application's own Autobahn server protocol a heartbeat: `class Echo(HeartbeatServerMixin, Base)`.

    It answers pings and `onopen`, counts who is there and convicts who is not; every other message,
    text or binary, reaches the host untouched.
    """

    _heartbeat_intercepts = True

    def _heartbeat_edge(self) -> Edge:
        shared = ServerShared.of(self.factory)  # type: ignore[attr-defined]  # Autobahn's
        self._heartbeat = Edge(self, shared, exact=False)
        return self._heartbeat

    def _heartbeat_open(self, edge: Edge) -> None:
        shared = ServerShared.of(self.factory)  # type: ignore[attr-defined]  # Autobahn's
        link = ServerLink(
            shared.settings,
            shared.ticker.running,
            edge.now(),
            presence=shared.presence,
            client_id=shared.new_client_id(),
            claims=self._heartbeat_honours_claims(shared.settings),
            spread=shared.spread(),
            guest=self._heartbeat_guest,
        )
        edge.start(link, link.open(edge.now()))

    def _heartbeat_honours_claims(self, settings: Settings) -> bool:
        if settings.trust_client_ids:
            return True
        # Behind a proxy on this machine everybody looks local.
        return is_local(self.transport.getPeer()) and speaks_for_itself(self.http_headers)  # type: ignore[attr-defined]  # Autobahn's

    def _heartbeat_deliver(self, message: dict[str, Any]) -> bool:
        taken = super()._heartbeat_deliver(message)
        edge = self._heartbeat
        if not taken and edge is not None and isinstance(edge.link, ServerLink):
            edge.carry(edge.link.unknown(message))
        return taken


class HeartbeatClientMixin(Heartbeat):
    """Gives an application's own Autobahn client protocol a heartbeat: `class Mine(HeartbeatClientMixin, Base)`.

    It opens, beats as the server declares, and aborts when the server is gone; reconnecting stays
    the host's. A server that never answers it within `open_timeout` counts as gone: for servers
    that know no JSON pings set `frames`.
    """

    _heartbeat_intercepts = True

    def _heartbeat_edge(self) -> Edge:
        shared = ClientShared.of(self.factory)  # type: ignore[attr-defined]  # Autobahn's
        self._heartbeat = Edge(self, shared, exact=True)
        return self._heartbeat

    def _heartbeat_open(self, edge: Edge) -> None:
        shared = ClientShared.of(self.factory)  # type: ignore[attr-defined]  # Autobahn's
        settings = shared.settings
        if self._heartbeat_is_silent():
            settings = replace(settings, frames=True, beats=None)
        now = edge.now()
        link = ClientLink(settings, shared.ticker.running, now, guest=self._heartbeat_guest)
        edge.start(link, link.open(now))
