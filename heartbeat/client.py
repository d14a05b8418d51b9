"""The client that comes back: a Twisted service around one connection at a time.

One attempt at a time, told apart by the connection it made; an old socket is detached and aborted
before a new one opens, so nothing it may still say reaches anybody. The heartbeat belongs to the
open connection and starts again with each. What was sent belongs to the session, which goes on.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import inf
from os import PathLike
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.error import UserError
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from heartbeat.channel import Channel
from heartbeat.core.backoff import Backoff
from heartbeat.core.client_link import ClientLink
from heartbeat.core.errors import CloseCode, Unauthorized, Unconfirmed, Unreachable, is_final_close, is_final_http
from heartbeat.core.link import LinkStatus
from heartbeat.core.monitor import State
from heartbeat.core.opening import Declared
from heartbeat.core.session import Session
from heartbeat.core.settings import Settings
from heartbeat.edge import Edge
from heartbeat.endings import is_of_tls, is_refused_certificate, reason_of
from heartbeat.ends import ClientEdge
from heartbeat.factory import HeartbeatClientFactory
from heartbeat.handling import Handling, encode_message
from heartbeat.handshake import request_headers
from heartbeat.own_session import OwnSession
from heartbeat.protocol import HeartbeatClientProtocol
from heartbeat.quiet import QuietDeferred
from heartbeat.shared import ClientShared
from heartbeat.sqlite import SqliteStore
from heartbeat.store import Store
from heartbeat.ticker import Alarm
from heartbeat.tls import endpoint_of

__all__ = ["HeartbeatClient"]

_chance = secrets.SystemRandom().random

# A server that asks for more is asked again all the same: it may be back sooner than it thought.
_LONGEST_RETRY_AFTER = 60.0


class _Connection(HeartbeatClientProtocol):
    """One connection of a client; tells it everything, as long as it is the client's present one."""

    @property
    def owner(self) -> HeartbeatClient:
        """The client that this connection is, or was, the present one of."""
        owner: HeartbeatClient = self.factory.owner
        return owner

    def linkChanged(self, status: LinkStatus) -> None:
        self.owner._link_changed(self, status)

    def pingReceived(self) -> object:
        return self.owner.pingReceived() if self.owner._connection is self else None

    def messageReceived(self, message: dict[str, Any]) -> object:
        # A numbered message is the session's, whichever connection brought it.
        numbered = self.handling is not None and self.handling.seq is not None
        return self.owner.messageReceived(message) if numbered or self.owner._connection is self else None

    def pongReceived(self, rtt: float | None, clients: int | None) -> None:
        self.owner._pong_received(self, rtt, clients)

    def _heartbeat_deliver(self, message: dict[str, Any]) -> None:
        if self.owner._connection is self:
            super()._heartbeat_deliver(message)

    def _heartbeat_take(self, message: dict[str, Any], handling: Handling) -> Deferred[Any] | None:
        before, self.owner.handling = self.owner.handling, handling
        try:
            return super()._heartbeat_take(message, handling)
        finally:
            self.owner.handling = before

    def _heartbeat_resumes(self, edge: Edge) -> Session | None:
        return self.owner._session.resumes()

    def _heartbeat_opened(self, edge: ClientEdge, declared: Declared | None) -> None:
        # A client that is being stopped begins nothing any more.
        if self.owner._connection is self and self.owner.running:
            self.owner._session.declared(edge, declared)

    def _heartbeat_settings(self, shared: ClientShared) -> Settings:
        settings = super()._heartbeat_settings(shared)
        return settings if self.owner._shown is None else replace(settings, token=self.owner._shown)

    def _heartbeat_left(self, edge: ClientEdge) -> None:
        """The session is the client's, which sees to it."""

    def _heartbeat_broken(self, edge: ClientEdge) -> None:
        self.owner._session.broken(edge)

    def _heartbeat_drained(self, shortest: float, longest: float) -> None:
        self.owner._drained(self, shortest, longest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self.owner._connection_lost(self, reason)


class HeartbeatClient(Service):
    """Keeps one connection to `url` alive while it runs as a service.

    Override, or assign, `linkChanged(status)`, `messageReceived(message)`, `pongReceived(rtt, clients)` and
    `sessionLost(error)`. `session` is a file (or a `Store`) that keeps the session, so that it outlives this process.

    `endpoint` is an `IStreamClientEndpoint`, where to connect (default: the URL's host and port), `tls` an
    `IOpenSSLClientConnectionCreator` for `wss://` (default: the platform's trust roots and the URL's
    host name), `headers` pairs for the handshake, `protocols` the subprotocols to offer. `token` is asked for a token
    before each attempt, in place of the settings' one: text, or a Deferred or coroutine of it. Where it fails, so does
    the attempt.
    Raises ValueError for a URL that is none of a WebSocket's, SettingError for a header that is none.
    """

    _log = Logger()

    def __init__(
        self,
        url: str,
        *,
        settings: Settings | None = None,
        reactor: Any = None,
        endpoint: Any = None,
        tls: Any = None,
        headers: Iterable[tuple[str, str]] = (),
        protocols: Iterable[str] = (),
        session: str | PathLike[str] | Store | None = None,
        token: Callable[[], object] | None = None,
        chance: Callable[[], float] = _chance,
    ) -> None:
        self.settings = settings or Settings()
        # A session that is kept in a file is left to its next process; any other ends with this client.
        self._store = SqliteStore(session, reactor=reactor) if isinstance(session, str | PathLike) else session
        self._factory = HeartbeatClientFactory(
            url,
            self.settings,
            store=self._store,
            reactor=reactor,
            headers=request_headers(headers),
            protocols=list(protocols),
        )
        self._factory.protocol = _Connection
        self._factory.owner = self
        #: While a handler is called: the message that it handles.
        self.handling: Handling | None = None
        self._ticker = self._factory.heartbeat.ticker
        sessions = self._factory.heartbeat.sessions
        sessions.ended.append(self._session_ended)
        self._session = OwnSession(sessions, self._ticker, self._store)
        self._endpoint = endpoint or endpoint_of(self._factory, tls)
        self._token = token
        # What it answered last.
        self._shown: str | None = None
        self._chance = chance
        self._backoff = Backoff(self.settings.delays, self.settings.attempts)
        self._connection: _Connection | None = None
        self._former: _Connection | None = None
        self._connecting: Deferred[Any] | None = None
        self._opening = Alarm(self._ticker, self._opening_failed)
        self._waiting = Alarm(self._ticker, lambda now: self._connect())
        self._stable = Alarm(self._ticker, self._settled)
        self._answered = False
        self._pings_before = 0
        # After a drain: when to come back, and until when that counts.
        self._return_at = self._return_by = -inf
        # Whether a delay that is no attempt was granted since the link was stable.
        self._excused = False
        self._stopping: Deferred[None] | None = None
        self._when_open: list[Deferred[HeartbeatClient]] = []
        self._status = LinkStatus(event="closed", state=None, detail="not started")

    # Hooks.

    def linkChanged(self, status: LinkStatus) -> object:
        """The link changed: `open`, `suspect`, `acknowledged`, `dead`, `closed`, `reconnecting`, `unreachable`."""

    def messageReceived(self, message: dict[str, Any]) -> object:
        """A message of the application's arrived. May return a Deferred or coroutine."""

    def pongReceived(self, rtt: float | None, clients: int | None) -> object:
        """A ping was answered, after `rtt` seconds; `clients` are active on the server, where it says so."""

    def pingReceived(self) -> object:
        """A ping of the server's arrived, and was answered."""

    def sessionLost(self, error: Unconfirmed) -> object:
        """The session could not be resumed, and these messages were never confirmed."""

    # What an application may call.

    @property
    def status(self) -> LinkStatus:
        """What is known of the link now."""
        connection = self._connection
        return (connection.status if connection is not None else None) or self._status

    @property
    def pings_sent(self) -> int:
        """Pings and probes that went out, over all connections."""
        link = self._link()
        return self._pings_before + (0 if link is None else link.monitor.sent)

    @property
    def pings_in_flight(self) -> int:
        """1 while the answer to the latest ping or probe may yet come, else 0."""
        link = self._link()
        return int(link is not None and link.monitor.state in (State.WAITING, State.SUSPECT))

    def register(self, kind: str, handler: Callable[[HeartbeatClient, dict[str, Any]], object]) -> None:
        """Have `handler(client, message)` called for messages of type `kind`."""
        self._factory.register(kind, lambda protocol, message: handler(self, message))

    def send(self, message: dict[str, Any], *, volatile: bool = False) -> Deferred[None]:
        """Send an application message, now or when the link is open (again).

        Fires with None when the server's handler has finished; at level 0 when the frame was given to the transport.
        Fails with Unconfirmed when the session is lost or this client does not run, or is unreachable without a
        session; with SessionFull when nothing more is kept. May be ignored. `volatile`: at once or not at
        all, without a number. Raises TypeError or ValueError for what is no such message.
        """
        edge = self._edge()
        if volatile or (edge is not None and edge.plain):
            if edge is not None and self._is_open():
                return edge.send(message, volatile=True)
            return self._never(message, "closed")
        if not self.running:
            return self._never(message, "closed")
        if not self._session.is_open and self._is_unreachable():
            return self._never(message, "unreachable")
        return self._session.channel.send(message)

    def whenRoom(self) -> Deferred[None]:
        """Fires when `send` has room for a message; fails with Unconfirmed (of none) when the session is lost.

        Not to be waited for by a handler: what makes room may be that it finishes.
        """
        return self._session.channel.when_room()

    def _never(self, message: dict[str, Any], reason: str) -> Deferred[None]:
        encode_message(message)
        return QuietDeferred.failed(Unconfirmed((message,), reason))

    def retry(self) -> None:
        """Try again now: after `unreachable`, or instead of waiting for the next attempt. The count starts afresh."""
        if not self.running or not self._is_idle():
            return
        self._backoff.stable()
        self._connect()

    def whenOpen(self) -> Deferred[HeartbeatClient]:
        """Fires with this client when the link is open; fails with Unreachable when it will not be, by itself.

        Asked of a client that does not run, it waits for it to be started.
        """
        if self._is_open():
            return succeed(self)
        deferred: Deferred[HeartbeatClient] = Deferred()
        if self._is_unreachable():
            deferred.errback(Unreachable(self._status.detail))
        else:
            self._when_open.append(deferred)
        return deferred

    def checkSession(self) -> None:
        """See that the file of the session can be used, before anything starts. Blocks; raises StoreError."""
        if isinstance(self._store, SqliteStore):
            self._store.check()

    # The service.

    def startService(self) -> None:
        """Connect, and keep connected. Started already, it goes on: a service tree starts what is added to it."""
        if self.running:
            return
        super().startService()  # type: ignore[no-untyped-call]  # Twisted's
        self._ticker.enter()
        # A connection that a stop before this is still closing is dropped, and that stop is over.
        self._detach()
        self._stopped()
        self._backoff.stable()
        self._session.load(self._connect, lambda failure: self._give_up(failure.getErrorMessage()))

    def stopService(self) -> Deferred[None]:
        """Close the connection (1000); fires when it is gone, within `close_timeout`."""
        if not self.running:
            return succeed(None)
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted's
        self._disarm()
        self._abort_former()
        self._tell_waiting(Unreachable("the client was stopped"))
        if self._connecting is not None:
            self._connecting.cancel()
        connection = self._connection
        self._stopping = Deferred()
        self._stopping.addCallback(lambda _: self._ticker.leave())
        stopped = self._stopping.addCallback(lambda _: self._session.close())
        code = self._session.stop()
        if connection is None or connection._heartbeat is None or connection._heartbeat.over:
            self._stopped()
        else:
            connection._heartbeat.close(code, "done")
        return stopped

    def _session_ended(self, channel: Channel, error: Unconfirmed) -> None:
        if error.messages:
            try:
                self.sessionLost(error)
            except Exception:  # noqa: BLE001  # a host's hook may raise anything, and the client must go on
                self._log.failure("sessionLost failed")

    # One attempt.

    def _connect(self) -> None:
        self._disarm()
        self._abort_former()
        self._answered = False
        self._return_at = self._return_by = -inf
        self._opening.arm(self._ticker.now() + self.settings.open_timeout)
        connecting = self._connecting = self._reach()
        connecting.addCallbacks(self._connected, self._connect_failed)
        connecting.addErrback(lambda failure: self._log.failure("connecting failed; this is a bug", failure))

    def _reach(self) -> Deferred[Any]:
        """Connect; an attempt to resume is counted, and kept, before it is made."""
        ready: Deferred[Any] = succeed(None)
        if self._token is not None:
            ready = maybeDeferred(self._token).addCallbacks(self._show, self._has_no_token)
        ready.addCallback(lambda _: self._session.attempt())
        return ready.addCallback(lambda _: self._endpoint.connect(self._factory))

    def _show(self, token: object) -> None:
        if type(token) is not str:
            raise TypeError(f"a token is text, not {type(token).__name__}")
        self._shown = token

    def _has_no_token(self, failure: Failure) -> None:
        if failure.check(CancelledError) is not None:
            failure.raiseException()
        raise Unauthorized(f"there is no token to show ({failure.getErrorMessage()})") from failure.value

    def _connected(self, connection: Any) -> None:
        # An endpoint may wrap the protocol that our factory built.
        connection = getattr(connection, "wrappedProtocol", connection)
        self._connecting = None
        self._connection = connection

    def _connect_failed(self, failure: Failure) -> None:
        self._connecting = None
        cancelled = failure.check(CancelledError, UserError) is not None
        self._ended(self._no_answer() if cancelled else f"could not connect: {reason_of(failure)}")

    def _opening_failed(self, now: float) -> None:
        if self._connecting is not None:
            # Its errback goes on from here.
            self._connecting.cancel()
            return
        self._detach()
        self._abort_former()
        self._ended(self._no_answer())

    def _no_answer(self) -> str:
        return f"no answer within {self.settings.open_timeout:g} s"

    # What the present connection tells.

    def _link_changed(self, connection: _Connection, status: LinkStatus) -> None:
        if connection is not self._connection or status.event == "closed" or not self.running:
            # How it was closed is told when it is gone: the transport knows more. Until then a stop goes its way.
            return
        if status.event == "open":
            self._opening.disarm()
            self._stable.arm(self._ticker.now() + self.settings.stable)
            self._report(status)
            waiting, self._when_open = self._when_open, []
            for deferred in waiting:
                deferred.callback(self)
            return
        if status.event == "dead":
            # Whatever the socket still does is nobody's business.
            self._detach()
            self._report(status)
            self._ended(status.detail)
            return
        self._report(status)

    def _pong_received(self, connection: _Connection, rtt: float | None, clients: int | None) -> None:
        if connection is self._connection:
            self._answered = True
            self.pongReceived(rtt, clients)

    def _drained(self, connection: _Connection, shortest: float, longest: float) -> None:
        if connection is self._connection:
            now = self._ticker.now()
            window = self._session.window or self.settings.window
            self._return_at = now + Backoff.drained(shortest, longest, window, self._chance())
            self._return_by = now + longest

    def _connection_lost(self, connection: _Connection, failure: Failure) -> None:
        if connection is not self._connection:
            return
        self._leave()
        if not self.running:
            self._report(LinkStatus(event="closed", state=None, detail="closed by us", code=connection.remoteCloseCode))
            self._stopped()
            return
        code, status = connection.remoteCloseCode, connection.refused_with
        if code == CloseCode.SUPERSEDED:
            # Somebody else has this session, a copy of us perhaps: let him, and open another.
            self._session.end("superseded")
        if status is not None:
            self._ended(
                f"the server refused the handshake with HTTP {status}",
                final=is_final_http(status),
                not_before=connection.retry_after,
            )
            return
        if connection._heartbeat is None or connection._heartbeat.link is None:
            why = reason_of(failure) if is_of_tls(failure) else connection.wasNotCleanReason or reason_of(failure)
            self._ended(f"could not open: {why}", final=is_refused_certificate(failure))
            return
        if connection.closedByMe:
            # Its answer to that (Autobahn's is 1000, whatever it was sent) is no verdict of the server's.
            code, detail = None, f"closed by us ({connection.localCloseCode})"
        elif code:
            words = connection.remoteCloseReason
            detail = f"closed by the server ({code}{': ' + words if words else ''})"
        else:
            detail = f"lost: {reason_of(failure)}"
        self._report(connection._heartbeat.link.status("closed", self._ticker.now(), detail, code=code))
        self._ended(detail, final=is_final_close(code), code=code)

    # What follows.

    def _ended(
        self, why: str, *, final: bool = False, code: int | None = None, not_before: float | None = None
    ) -> None:
        """The attempt, or the connection, has ended: wait and try again, or give up."""
        if not self._is_idle():
            # A hook was told of the end, and has connected already.
            return
        self._disarm()
        if not self.running:
            return
        now = self._ticker.now()
        if final:
            self._give_up(why)
            return
        delay = self._next_delay(code, now)
        if delay is None:
            self._give_up(f"{why}; {self._backoff.attempt} attempts failed")
            return
        if not_before is not None:
            # RFC 9110, section 10.2.3, asks for at least that; all who were told the same would be back in one moment.
            delay = max(delay, min(not_before, _LONGEST_RETRY_AFTER) * (1 + self._chance() / 2))
        self._waiting.arm(now + delay)
        self._report(
            LinkStatus(event="reconnecting", state=None, detail=why, attempt=self._backoff.attempt, delay=delay)
        )

    def _next_delay(self, code: int | None, now: float) -> float | None:
        """Seconds to wait; None when all attempts are used up.

        What the server asked for is no attempt, but only once: one that keeps sending us away without
        ever having been stable is tried like any other.
        """
        drained, restarted = now <= self._return_by, code in (CloseCode.RESTART, CloseCode.OVERLOAD)
        if self._excused or not (drained or restarted):
            return self._backoff.next_delay(self._chance())
        self._excused = True
        return max(0.0, self._return_at - now) if drained else Backoff.restarted(self._chance())

    def _give_up(self, why: str) -> None:
        if not self._session.is_open:
            # Nobody will ever take what waits here for a session.
            self._session.end("unreachable")
        status = LinkStatus(event="unreachable", state=None, detail=why, attempt=self._backoff.attempt)
        self._report(status)
        if self._is_idle():
            self._tell_waiting(Unreachable(why))

    def _settled(self, now: float) -> None:
        if self._answered:
            self._backoff.stable()
            self._excused = False
        else:
            self._stable.arm(now + self.settings.stable)

    def _is_idle(self) -> bool:
        """Whether there is no connection, and none under way."""
        return self._connection is None and self._connecting is None

    def _is_unreachable(self) -> bool:
        """Whether nothing more will be tried by itself."""
        return bool(self.running) and self._status.event == "unreachable" and self._is_idle()

    def _edge(self) -> ClientEdge | None:
        """The edge of the present connection."""
        edge = self._connection._heartbeat if self._connection is not None else None
        return edge if isinstance(edge, ClientEdge) else None

    def _link(self) -> ClientLink | None:
        """The link of the present connection, once its WebSocket is open."""
        edge = self._edge()
        return None if edge is None else edge.link

    def _is_open(self) -> bool:
        link = self._link()
        return link is not None and link.opened and link.monitor.state is not State.DEAD

    def _leave(self) -> _Connection | None:
        """Have no present connection any more; returns the one there was."""
        self._pings_before = self.pings_sent
        edge = self._edge()
        if edge is not None:
            self._session.left(edge)
        connection, self._connection = self._connection, None
        return connection

    def _detach(self) -> None:
        connection = self._leave()
        if connection is not None and connection._heartbeat is not None:
            connection._heartbeat.dead = True
            self._former = connection

    def _abort_former(self) -> None:
        former, self._former = self._former, None
        edge = former._heartbeat if former is not None else None
        if edge is not None and not edge.over:
            edge.drop()

    def _disarm(self) -> None:
        for alarm in (self._opening, self._waiting, self._stable):
            alarm.disarm()

    def _stopped(self) -> None:
        stopping, self._stopping = self._stopping, None
        if stopping is not None:
            stopping.callback(None)

    def _tell_waiting(self, error: Unreachable) -> None:
        waiting, self._when_open = self._when_open, []
        for deferred in waiting:
            deferred.errback(error)

    def _report(self, status: LinkStatus) -> None:
        self._status = status
        try:
            self.linkChanged(status)
        except Exception:  # noqa: BLE001  # a host's hook may raise anything, and the client must go on
            self._log.failure("linkChanged failed")
