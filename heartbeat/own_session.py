"""The session of a client that reconnects: loaded, resumed, replaced when it is lost, left to the next process.

Knows the connections only as edges that come and go; decides nothing about when there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.python.failure import Failure

from heartbeat.channel import Channel
from heartbeat.core.errors import CloseCode
from heartbeat.core.opening import Declared
from heartbeat.core.session import Session
from heartbeat.ends import ClientEdge
from heartbeat.sessions import Sessions, session_of
from heartbeat.store import Contents, Store, when
from heartbeat.ticker import Alarm, Ticker

__all__ = ["OwnSession"]


class OwnSession:
    """One session at a time, in a `channel` that always takes messages: without a session it keeps them for the next.

    With a `store` of one's own the session outlives the process; without, it ends with it.
    """

    def __init__(self, sessions: Sessions, ticker: Ticker, store: Store | None) -> None:
        self.channel = sessions.provisional()
        self._sessions = sessions
        self._ticker = ticker
        self._store = store
        #: For how long the server keeps the session for us, in seconds; 0 while none was declared.
        self.window = 0.0
        self._expiry = Alarm(ticker, lambda now: self.end("expired"))

    @property
    def is_open(self) -> bool:
        """Whether there is a session, connected or not."""
        return bool(self.channel.session.sid)

    def load(self, loaded: Callable[[], object], failed: Callable[[Failure], object]) -> None:
        """Read the session from the store, if there is one; then call either, unless it was stopped meanwhile."""
        if self._store is None:
            loaded()
            return
        before = self.channel
        failed = partial(self._unless_stopped, before, failed)
        when(self._store.start(), lambda contents: self._load(before, contents, loaded).addErrback(failed), failed)

    def _unless_stopped(self, before: Channel, failed: Callable[[Failure], object], failure: Failure) -> None:
        # Where it is stopped meanwhile, the store is closed, and not read to its end.
        if self.channel is before:
            failed(failure)

    @inlineCallbacks
    def _load(self, before: Channel, contents: Contents, loaded: Callable[[], object]) -> Generator[Any, Any, None]:
        for head in contents.heads[-1:]:
            kept = yield self._sessions.store.replay(head.sid, head.confirmed)
            if self.channel is not before:
                return
            channel = Channel(session_of(head, kept, self._sessions.bounds), self._sessions, waits=False)
            self._sessions.channels[head.sid] = channel
            channel.restore([one.receipt for one in kept])
            channel.marks.update(head.marks)
            self.channel, self.window = channel, head.window
            channel.carry_on(before)
            before = channel
            self._expiry.arm(self._ticker.now() + head.window)
        if self.channel is before:
            loaded()

    def resumes(self) -> Session | None:
        """The session to come back to."""
        return self.channel.session if self.is_open else None

    def attempt(self) -> Deferred[Any]:
        """Count one more attempt to resume; fires when that is kept, so that no attempt is ever made twice."""
        session = self.channel.session
        if not session.sid:
            return succeed(None)
        session.attempt += 1
        session.fence += 1
        saved = self._sessions.store.take_over(session.sid, session.attempt)
        return saved if isinstance(saved, Deferred) else succeed(None)

    def declared(self, edge: ClientEdge, declared: Declared | None) -> None:
        """The server has declared a session, or that it has none."""
        known = self.channel.session
        if declared is None:
            if known.sid:
                self.end("unknown")
            edge.plain = True
            self.channel.flush(edge.write)
            return
        if declared.resumed and known.sid != declared.sid:
            # Its window ended while the server took it up again.
            edge.cut(CloseCode.NORMAL, "the session has ended")
            return
        self.window = declared.window
        if known.sid != declared.sid or not declared.resumed:
            if known.sid:
                self.end(declared.reason)
            self._expiry.disarm()
            edge.begin(self.channel, declared)
        elif known.judge(declared.last, declared.sent):
            self._expiry.disarm()
            known.bounds = declared.bounds
            known.resume(declared.last)
            self.channel.confirmed()
            edge.admit(self.channel)
        else:
            # It has forgotten what it had confirmed, or confirms what was never sent.
            self.end("gap")
            edge.cut(CloseCode.GAP, "the numbers do not fit")

    def broken(self, edge: ClientEdge) -> None:
        """The server broke a rule on this connection: the second time with no progress between, the session is over."""
        if self.channel.connection is edge and self.channel.session.stumble():
            self.end("gap")

    def left(self, edge: ClientEdge) -> None:
        """The connection is gone, or is not listened to any more: the window of the session begins to close."""
        if self.channel.connection is edge:
            self.channel.detach()
            heard = edge.link.monitor.heard_at if edge.link is not None else self._ticker.now()
            self._expiry.arm(heard + self.window)

    def end(self, reason: str) -> None:
        """The session is over; the next messages are sent in another."""
        channel, self.channel = self.channel, self._sessions.provisional()
        self._expiry.disarm()
        channel.end(reason)

    def stop(self) -> CloseCode:
        """The client stops: end the session, or leave it to whoever comes next; the code that says so to the server."""
        self._expiry.disarm()
        self._sessions.flush()
        if self._store is None:
            self.end("closed")
            return CloseCode.NORMAL
        self._sessions.suspend("stopped")
        self.channel.suspend("stopped")
        self.channel = self._sessions.provisional()
        return CloseCode.GOING_AWAY

    def close(self) -> Deferred[Any]:
        """The connection is gone, after `stop`: close the store."""
        closed = None if self._store is None else self._store.stop()
        return closed if isinstance(closed, Deferred) else succeed(None)
