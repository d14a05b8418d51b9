"""A heartbeat for Autobahn protocols that an application already has.

The mixins intercept where Autobahn calls itself (`_onOpen`, `_onMessage`, `_onPong`, `_onClose`,
`dataReceived`, `consumeData`, `onFrameEnd`), so that a host's `onOpen`, `onMessage` and `onClose` need no `super()`.
They have no `__init__` and keep one private attribute. They never answer what is not theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.websocket.protocol import WebSocketProtocol
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from heartbeat import outbox
from heartbeat.core.client_link import ClientLink
from heartbeat.core.errors import PeerError, Unconfirmed
from heartbeat.core.link import LinkStatus
from heartbeat.core.messages import error_frame, re_of, unknown_type
from heartbeat.core.monitor import State
from heartbeat.core.opening import Declared
from heartbeat.core.server_link import ServerLink
from heartbeat.core.session import Session
from heartbeat.core.settings import Settings
from heartbeat.edge import SHORT, Edge
from heartbeat.ends import ClientEdge, ServerEdge
from heartbeat.fastpath import FastPath
from heartbeat.frames import TEXT_HEADS, text_frame
from heartbeat.handling import Handling, call, encode_message
from heartbeat.lean import LeanServerProtocol, function_of
from heartbeat.quiet import QuietDeferred
from heartbeat.shared import ClientShared, ServerShared, Shared

__all__ = ["Heartbeat", "HeartbeatClientMixin", "HeartbeatServerMixin"]

_ACKNOWLEDGED = State.ACKNOWLEDGED
_OUTSIDERS = ("autobahn.", "twisted.", "builtins", "txaio", "zope.", "heartbeat.")


class Heartbeat:
    """What both mixins share: interception, the hooks, and `send`."""

    #: Subprotocols under which our JSON may be spoken; under any other, only RFC 6455 pings are.
    heartbeat_subprotocols: ClassVar[tuple[str, ...]] = ()

    #: While a handler is called: the message that it handles, by which it answers. Take it before the first `await`.
    handling: Handling | None = None

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

    def send(self, message: dict[str, Any], *, volatile: bool = False) -> Deferred[None]:
        """Send an application message: an object with a `type` that is not one of ours.

        Fires with None when the other end's handler has finished; without a session, or `volatile`, when the frame was
        given to the transport. Fails with Unconfirmed when that will not come to be known, with SessionFull
        when nothing more is kept. May be ignored. Raises TypeError or ValueError for what is no such message.
        """
        edge = self._heartbeat
        if edge is None or edge.link is None:
            encode_message(message)
            return QuietDeferred.failed(Unconfirmed((message,), "closed"))
        return edge.send(message, volatile=volatile)

    def whenRoom(self) -> Deferred[None]:
        """Fires when `send` has room for a message; fails with Unconfirmed (of none) when the session ends.

        Not to be waited for by a handler: what makes room may be that it finishes.
        """
        edge = self._heartbeat
        return QuietDeferred.fired() if edge is None or edge.channel is None else edge.channel.when_room()

    # Interception: Autobahn calls these.

    _heartbeat_intercepts = True

    def dataReceived(self, data: bytes) -> None:
        """Twisted's: every byte is a sign of life, but none is looked at after a conviction."""
        edge = self._heartbeat
        if edge is None:
            super().dataReceived(data)  # type: ignore[misc]  # Autobahn's
            return
        if edge.dead:
            return
        link = edge.link
        if link is not None and link.monitor.state is _ACKNOWLEDGED and link.monitor.asked is None:
            # As `heard` does at rest, in as few calls.
            link.monitor.heard_at = edge.shared.ticker.running.at(edge.shared.ticker.raw())
        else:
            edge.heard()
        if self._heartbeat_guest:
            super().dataReceived(data)  # type: ignore[misc]  # Autobahn's
        else:
            # What that does besides is to format a line for a log that nobody keeps.
            self._dataReceived(data)  # type: ignore[attr-defined]  # Autobahn's
        edge.hold_back()

    def consumeData(self) -> None:
        """Autobahn's: there are bytes to parse, which may call any hook; also at the end of the handshake."""
        edge = self._heartbeat
        if edge is None:
            super().consumeData()  # type: ignore[misc]  # Autobahn's
            edge = self._heartbeat
        elif not edge.dead:
            try:
                super().consumeData()  # type: ignore[misc]  # Autobahn's
            except Exception:  # noqa: BLE001  # as `guarded`, without a call
                edge.failed()
        if edge is not None and edge.link is not None:
            # In the middle of a message whatever arrives is Autobahn's.
            edge.is_fast = edge.may_be_fast and not (self.data or self.current_frame or self.inside_message)  # type: ignore[attr-defined]  # Autobahn's
            if self.inside_message and not edge.dead:  # type: ignore[attr-defined]  # Autobahn's
                self._heartbeat_in_pieces()

    def onFrameEnd(self) -> bool | None:
        """Autobahn's: a frame is complete, and is taken; False where nothing that stands behind it is to be parsed."""
        goes_on: bool | None = super().onFrameEnd()  # type: ignore[misc]  # Autobahn's
        edge = self._heartbeat
        # What arrives in the next chunk is not looked at either.
        return False if edge is not None and edge.dead else goes_on

    def _onOpen(self) -> None:
        edge = self._heartbeat
        if self.is_closed.called if edge is None else edge.over:  # type: ignore[attr-defined]  # Autobahn's
            # The peer left while `onConnect` took its time. Autobahn opens what is gone all the same, and
            # nobody would ever close it.
            self.state = WebSocketProtocol.STATE_CLOSED
            return
        edge = edge or self._heartbeat_edge()
        edge.guarded(self._heartbeat_open, edge)
        if not edge.dead and self.state == WebSocketProtocol.STATE_OPEN:
            edge.guarded(super()._onOpen)  # type: ignore[misc]  # Autobahn's
            # What a host sets there holds.
            edge.guarded(self._heartbeat_choose, edge)

    def _onMessage(self, payload: bytes, isBinary: bool) -> None:
        edge = self._heartbeat
        if edge is not None and edge.dead:
            # The rest of what had arrived with that for which it was convicted.
            return
        if edge is not None:
            edge.left -= 1
            if len(self.message_data) > 1:  # type: ignore[attr-defined]  # Autobahn's
                self._heartbeat_in_pieces()
            if edge.left < 0 and not edge.recount():
                return
        if edge is not None and edge.answers and not isBinary and self.state == WebSocketProtocol.STATE_OPEN:
            # `heard` has told when.
            pong = edge.link.beat(payload, edge.link.monitor.heard_at)  # type: ignore[union-attr]  # a server's
            if pong is not None and edge.way is None:
                self.sendMessage(pong, doNotCompress=True)  # type: ignore[attr-defined]  # Autobahn's
                return
            if pong is not None:
                size = len(pong)
                frame = TEXT_HEADS[size] + pong if size < 126 else text_frame(pong)
                edge.given += len(frame)
                edge.way(self.transport, frame)  # type: ignore[attr-defined,misc]  # Autobahn's; not None
                return
        self._heartbeat_message(payload, isBinary)

    def _heartbeat_message(self, payload: bytes, isBinary: bool) -> None:
        """A message that is no ordinary ping: ours, or the host's."""
        edge = self._heartbeat
        if edge is None or self._heartbeat_is_silent() or not edge.receive(payload, isBinary):
            super()._onMessage(payload, isBinary)  # type: ignore[misc]  # Autobahn's

    def _onPing(self, payload: bytes) -> None:
        if self._heartbeat_is_counted():
            super()._onPing(payload)  # type: ignore[misc]  # Autobahn's

    def _heartbeat_is_counted(self) -> bool:
        """Count a control frame; whether it is to be taken."""
        edge = self._heartbeat
        if edge is None:
            return True
        edge.left -= 1
        return not edge.dead and (edge.left >= 0 or edge.recount())

    def _onPong(self, payload: bytes) -> None:
        if not self._heartbeat_is_counted():
            return
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

    def _heartbeat_in_pieces(self) -> None:
        """A message has begun to arrive, and is not complete."""

    def _heartbeat_choose(self, edge: Edge) -> None:
        """The connection has opened: by which way text comes and goes."""

    def _heartbeat_edge(self) -> Edge:
        raise NotImplementedError

    def _heartbeat_open(self, edge: Edge) -> None:
        raise NotImplementedError

    def _heartbeat_is_silent(self) -> bool:
        """Whether a subprotocol was negotiated in which our JSON would be foreign."""
        spoken = self.websocket_protocol_in_use  # type: ignore[attr-defined]  # Autobahn's
        return self._heartbeat_guest and spoken is not None and spoken not in self.heartbeat_subprotocols

    def _heartbeat_deliver(self, message: dict[str, Any]) -> None:
        """A message without a number: handled at once, beside others."""
        edge: Edge = self._heartbeat  # type: ignore[assignment]  # messages come by it
        name = edge.link.client_id if edge.link is not None else None
        channel = edge.channel if edge.channel is not None and edge.channel.session.sid else None
        if channel is not None and channel.is_waiting:
            # What answers it would be kept, beyond the bound, for somebody who confirms nothing of what is.
            edge.write(error_frame(PeerError("full", "confirm what was sent before", re_of(message))))
            return
        handling = Handling(channel, None, name, edge.write)
        result = self._heartbeat_take(message, handling)
        if result is None:
            edge.shared.sessions.commit(handling.settle())
            return
        result.addCallback(lambda _: edge.shared.sessions.commit(handling.settle()))
        result.addErrback(self._heartbeat_refused, handling, message["type"])
        result.addErrback(self._heartbeat_failed)

    def _heartbeat_refused(self, failure: Failure, handling: Handling, kind: str) -> None:
        handling.forget()
        failure.trap(PeerError)
        # An error is never answered, or two ends could go on for ever.
        if self._heartbeat is not None and kind != "error":
            self._heartbeat.write(error_frame(failure.value))  # type: ignore[arg-type]  # trapped

    def _heartbeat_take(self, message: dict[str, Any], handling: Handling) -> Deferred[Any] | None:
        """Hand a message to whoever takes it; None when that is done. Fails with PeerError when nobody does."""
        shared: Shared = self._heartbeat.shared  # type: ignore[union-attr]  # messages come by it
        handler = shared.handlers.get(message["type"])
        before, self.handling = self.handling, handling
        try:
            if handler is not None:
                return call(handler, self, message)
            if type(self).messageReceived is Heartbeat.messageReceived:
                return self._heartbeat_unknown(message)
            return call(self.messageReceived, message)
        finally:
            self.handling = before

    def _heartbeat_unknown(self, message: dict[str, Any]) -> Deferred[Any] | None:
        """Nobody takes it: a client says so to nobody."""
        return None

    def _heartbeat_failed(self, failure: Failure) -> None:
        edge = self._heartbeat
        if edge is not None:
            edge.guarded(failure.raiseException)

    def _heartbeat_drained(self, shortest: float, longest: float) -> None:
        """The server announced that it is going; the reconnecting client overrides this."""


_PUBLIC = frozenset(name for name in Heartbeat.__dict__ if not name.startswith("_")) - {
    "dataReceived",
    "consumeData",
    "onFrameEnd",
}


# Of Autobahn's options, those with which a text frame is more than its bytes.
_OPTIONS = ("autoFragmentSize", "autoPingInterval", "logFrames", "logOctets", "maskServerFrames", "trackTimings")


def _theirs(*names: str) -> dict[str, set[object]]:
    """Autobahn's own functions of these names, and those that stand for them on our lean protocol."""
    return {name: {getattr(cls, name) for cls in (WebSocketServerProtocol, LeanServerProtocol)} for name in names}


def _are_theirs(of: object, functions: dict[str, set[object]]) -> bool:
    """Whether its functions of these names are among those."""
    return all(function_of(of, name) in theirs for name, theirs in functions.items())


# What a text frame goes through in Autobahn, on its way in and out. Who has one of his own is to see all frames.
_ON_THE_WAY = _theirs(
    "_dataReceived",
    "processData",
    "onFrameBegin",
    "onFrameData",
    "_onMessageBegin",
    "onMessageBegin",
    "_onMessageFrameBegin",
    "onMessageFrameBegin",
    "_onMessageFrameData",
    "onMessageFrameData",
    "_onMessageFrameEnd",
    "onMessageFrameEnd",
    "_onMessageFrame",
    "onMessageFrame",
    "_onMessageEnd",
    "onMessageEnd",
    "fire",
    "sendMessage",
    "sendFrame",
    "sendData",
)
_ON_THE_WAY |= {name: {getattr(Heartbeat, name)} for name in ("_onMessage", "onFrameEnd")}
# The same behind the mixin, which stands in their way itself.
_BEHIND = _theirs("dataReceived", "consumeData", "onFrameEnd")

# What a control frame goes through besides, and where the mixin stands in the way itself.
_OF_CONTROLS = _theirs("processControlFrame", "onPing", "onPong", "sendPong")
_OF_CONTROLS |= {name: {getattr(Heartbeat, name)} for name in ("_onPing", "_onPong")}
_BEHIND_CONTROLS = _theirs("_onPing", "_onPong")


def _is_autobahn(base: type) -> bool:
    return base.__module__.startswith("autobahn.") and issubclass(base, WebSocketProtocol)


class HeartbeatServerMixin(FastPath, Heartbeat):
    """Gives an application's own Autobahn server protocol a heartbeat: `class Echo(HeartbeatServerMixin, Base)`.

    It answers pings and `onopen`, counts who is there and convicts who is not; every other message that is not
    numbered, text or binary, reaches the host untouched. The host's factory may have `heartbeat_settings`,
    `heartbeat_store` and `heartbeat_authenticator`, and is told by `clientJoined`, `clientLeft` and `sessionLost`.
    """

    _heartbeat_intercepts = True

    def _heartbeat_edge(self) -> Edge:
        edge = self._heartbeat = ServerEdge(self, ServerShared.of(self.factory))  # type: ignore[attr-defined]  # Autobahn's
        return edge

    def _heartbeat_open(self, edge: Edge) -> None:
        shared = ServerShared.of(self.factory)  # type: ignore[attr-defined]  # Autobahn's
        link = ServerLink(
            shared.settings,
            shared.ticker.running,
            edge.now(),
            presence=shared.presence,
            client_id=shared.new_client_id(),
            spread=shared.spread(),
            guest=self._heartbeat_guest,
            plain=shared.plain_pages,
        )
        edge.enter(link, is_told=type(self).linkChanged is not Heartbeat.linkChanged)  # type: ignore[attr-defined]  # a server's
        edge.answers = not self._heartbeat_is_silent()

    def _heartbeat_choose(self, edge: Edge) -> None:
        if edge.answers and edge.shared.settings.fast_path and self._heartbeat_is_usual():
            edge.way = outbox.way_to(self.transport)
            # What has arrived already is Autobahn's; `consumeData` looks whether that was all.
            edge.may_be_fast = True
            edge.takes_controls = self._heartbeat_leaves_controls()

    def _heartbeat_is_usual(self) -> bool:
        """Whether nothing stands on the way of a text frame but what Autobahn does of itself."""
        if any(getattr(self, option) for option in _OPTIONS) or not self.applyMask or self._listeners is not None:  # type: ignore[attr-defined]  # Autobahn's
            return False
        if self.triggered:  # type: ignore[attr-defined]  # Autobahn's
            # What the host said when it opened is being written bit by bit.
            return False
        if any(0 < limit < SHORT for limit in (self.maxMessagePayloadSize, self.maxFramePayloadSize)):  # type: ignore[attr-defined]  # Autobahn's
            return False
        # By the functions themselves, of the instance: whoever wraps one, or sets one, is to be called.
        return _are_theirs(self, _ON_THE_WAY) and _are_theirs(super(Heartbeat, self), _BEHIND)

    def _heartbeat_leaves_controls(self) -> bool:
        """Whether nothing stands on the way of a ping or a pong of RFC 6455 but what Autobahn does of itself."""
        return _are_theirs(self, _OF_CONTROLS) and _are_theirs(super(Heartbeat, self), _BEHIND_CONTROLS)

    def _trigger(self) -> None:
        """Autobahn's: something waits in a queue of its own, which nothing may overtake from now on."""
        self._heartbeat_leave()
        super()._trigger()  # type: ignore[misc]  # Autobahn's

    def on(self, event: str, handler: Callable[..., object]) -> None:
        """Autobahn's: somebody wants to hear of messages, and of pings among them."""
        self._heartbeat_leave()
        super().on(event, handler)  # type: ignore[misc]  # Autobahn's

    def _heartbeat_leave(self) -> None:
        """Leave all to Autobahn from now on."""
        if self._heartbeat is not None:
            self._heartbeat.way = None
            self._heartbeat.may_be_fast = self._heartbeat.is_fast = False

    def _onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        super()._onClose(wasClean, code, reason)
        if self._heartbeat is not None:
            self._heartbeat.is_told = True
            self._heartbeat.let_go()

    def _heartbeat_unknown(self, message: dict[str, Any]) -> Deferred[Any] | None:
        """Nobody takes it: say so, unless it is an error, which is never answered."""
        return None if message["type"] == "error" else fail(unknown_type(message))


class HeartbeatClientMixin(Heartbeat):
    """Gives an application's own Autobahn client protocol a heartbeat: `class Mine(HeartbeatClientMixin, Base)`.

    It opens, beats as the server declares, and aborts when the server is gone; reconnecting stays
    the host's. A server that never answers it within `open_timeout` counts as gone: for servers
    that know no JSON pings set `frames`.
    """

    _heartbeat_intercepts = True

    def _heartbeat_edge(self) -> Edge:
        self._heartbeat = ClientEdge(self, ClientShared.of(self.factory))  # type: ignore[attr-defined]  # Autobahn's
        return self._heartbeat

    def _heartbeat_open(self, edge: Edge) -> None:
        shared = ClientShared.of(self.factory)  # type: ignore[attr-defined]  # Autobahn's
        settings = self._heartbeat_settings(shared)
        if self._heartbeat_is_silent():
            settings = replace(settings, frames=True, beats=None)
        now = edge.now()
        session = self._heartbeat_resumes(edge)
        link = ClientLink(settings, shared.ticker.running, now, guest=self._heartbeat_guest, resuming=session)
        edge.start(link, link.open(now))

    # A connection's session is its own, and ends with it; the reconnecting client overrides these.

    def _heartbeat_settings(self, shared: ClientShared) -> Settings:
        """What holds for this connection."""
        return shared.settings

    def _heartbeat_resumes(self, edge: Edge) -> Session | None:
        """The session to come back to."""
        edge.channel = edge.shared.sessions.provisional()
        return None

    def _heartbeat_opened(self, edge: ClientEdge, declared: Declared | None) -> None:
        """The server has declared a session, or that it has none."""
        if declared is None or edge.channel is None:
            edge.goes_plain()
        else:
            edge.begin(edge.channel, declared)

    def _heartbeat_left(self, edge: ClientEdge) -> None:
        """The connection is gone."""
        if edge.channel is not None:
            edge.channel.end("closed")

    def _heartbeat_broken(self, edge: ClientEdge) -> None:
        """The server broke a rule on which the session rests."""
