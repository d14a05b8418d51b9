"""The register of a server's sessions: whose they are, how long each is kept, and how much of all.

Lets nobody in, and sends nobody away: that is `admission`'s. Every session that is begun or loaded stands here
until it ends, for whatever reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from heartbeat.channel import Channel, Connection
from heartbeat.core.accounts import ALL, Accounts
from heartbeat.core.errors import CloseCode, SessionFull, StoreError, Unconfirmed
from heartbeat.core.presence import Presence
from heartbeat.core.receipts import Receipts
from heartbeat.core.session import Resume, Session
from heartbeat.core.settings import Settings
from heartbeat.sessions import Sessions, session_of, warn
from heartbeat.store import Contents, Effect, Head, Result, Settle, Store, when
from heartbeat.ticker import Ticker

__all__ = ["SESSION", "ServerSessions"]

_log = Logger()

# What a session and a message cost us besides the message's own bytes, in the account of all sessions. Measured by
# benchmarks/sessions.py in November 2026: 3.3 KiB a session that nobody carries, about 460 bytes a short message.
SESSION = 4096
_MESSAGE = 512
# So many windows end in one tick: after a restart all do at once, and nobody else is to wait for that.
_ENDS = 1000
# So many ended sessions are remembered with the reason, for those who ask for one of them.
_REMEMBERED = 10_000


class ServerSessions(Sessions):
    """The sessions of one server.

    `settle` may be set: called once for each receipt, with whether a copy of its message was confirmed, or the last
    was lost; what it returns is committed with that. `started` are called when the store has been read,
    `resumed` with the channel when a session is carried again, `ended` when one is over. `is_shared`: another server
    may have a session that is not here; `came` are called with the channel of one that has come from there.
    """

    is_shared = False

    def __init__(
        self,
        settings: Settings,
        ticker: Ticker,
        presence: Presence,
        *,
        store: Store | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(settings, ticker, store)
        self.epoch = ""
        self.settle: Callable[[str, bool], Sequence[Effect]] | None = None
        self.started: list[Callable[[], object]] = []
        self.resumed: list[Callable[[Channel], object]] = []
        self.came: list[Callable[[Channel], object]] = []
        #: The names of those that the store is asked to open.
        self.beginning: set[str] = set()
        self._presence = presence
        self._wall = wall
        self._starting: list[Deferred[None]] | None = None
        self._by_client: dict[str, dict[str, Channel]] = {}
        # In the order in which they were left alone, which is the order in which their windows end.
        self._detached: dict[str, Channel] = {}
        # The same by the accounts that they are on, so that nobody looks through those of others.
        self._alone: dict[str, dict[str, Channel]] = {}
        self._full: dict[Channel, float] = {}
        self._gone: dict[str, str] = {}
        self.receipts = Receipts()
        self._accounts = Accounts(settings.sessions_bytes)

    # Its life.

    def start(self) -> Deferred[None]:
        """Open the store; every session in it has a fresh window from now. Fails with StoreError."""
        if self.epoch:
            return succeed(None)
        ready: Deferred[None] = Deferred()
        if self._starting is None:
            self._starting = starting = [ready]

            def failed(failure: Failure) -> None:
                self._not_started(failure, starting)

            when(self.store.start(), lambda contents: self._load(contents, starting).addErrback(failed), failed)
        else:
            self._starting.append(ready)
        return ready

    @inlineCallbacks
    def _load(self, contents: Contents, starting: list[Deferred[None]]) -> Generator[Any, Any, None]:
        for head in contents.heads:
            kept = yield self.store.replay(head.sid, head.confirmed)
            if self._starting is not starting:
                # Stopped meanwhile.
                return
            channel = Channel(session_of(head, kept, self.bounds), self, waits=True)
            channel.marks.update(head.marks)
            self.add(channel, ("id " + head.client_id,))
            channel.restore([one.receipt for one in kept])
            self.leave_alone(channel)
        self.epoch = contents.epoch
        for started in self.started:
            started()
        self._starting = None
        for ready in starting:
            ready.callback(None)

    def _not_started(self, failure: Failure, starting: list[Deferred[None]]) -> None:
        if self._starting is not starting:
            return
        self._starting = None
        # What was read before it failed is read again by the next start.
        self._let_go()
        for ready in starting:
            ready.errback(failure)

    @inlineCallbacks
    def stop(self) -> Generator[Any, Any, None]:
        """Let go of all sessions, which stay in the store, and close that."""
        starting, self._starting = self._starting or [], None
        self._let_go()
        for ready in starting:
            ready.errback(StoreError("the server was stopped before its store was read"))
        yield self.store.stop()

    def _let_go(self) -> None:
        for channel in self.channels.values():
            self._presence.release(channel.session.client_id)
        self.suspend("stopped")
        for table in (
            self._by_client,
            self._detached,
            self._alone,
            self._full,
            self._gone,
            self._accounts,
            self.receipts,
        ):
            table.clear()
        self.epoch = ""

    # Who is there.

    def of(self, client_id: str) -> tuple[Channel, ...]:
        """The sessions of a client, without those that are about to begin."""
        mine = self._by_client.get(client_id, {}).values()
        return tuple(one for one in mine if one.session.sid not in self.beginning)

    def why_gone(self, sid: str) -> str:
        """Why there is no such session: a reason of the wire's."""
        return self._gone.get(sid, "unknown")

    @property
    def detached(self) -> int:
        """Sessions that nobody carries just now."""
        return len(self._detached)

    @property
    def kept_bytes(self) -> int:
        """What all sessions keep, with what they cost themselves."""
        return self._accounts.on(ALL)

    def take_over(self, channel: Channel, attempt: int) -> Result[Head | None]:
        """Have the store note that a session is resumed, by this attempt; the session then, None where it is gone."""
        return self.store.take_over(channel.session.sid, attempt)

    def elsewhere(self, resume: Resume, name: str | None, accounts: Sequence[str]) -> Result[Channel | str]:
        """A session that is not here, or not as its client says, if another server has it; or the reason why not.

        `name` is whose it must be. Raises SessionFull where there is no room for it on these accounts.
        """
        return "unknown"

    # Connections that go, and sessions that end.

    def left(self, channel: Channel, connection: Connection, *, for_good: bool) -> None:
        """A connection is gone; `for_good` where its session is over by that."""
        if channel.connection is not connection:
            return
        channel.detach()
        if channel.ended:
            return
        if for_good:
            channel.end("closed")
        else:
            self.leave_alone(channel)

    def broken(self, channel: Channel) -> None:
        """A rule was broken on a live connection; the second time with no progress between, the session is over."""
        if channel.session.stumble():
            channel.end("gap")

    def leave_alone(self, channel: Channel) -> None:
        """Nobody carries it from now on: its window begins to close."""
        channel.detached_at = self.now()
        session = channel.session
        self._detached[session.sid] = channel
        for account in channel.accounts:
            self._alone.setdefault(account, {})[session.sid] = channel
        when(
            self.store.detach(session.sid, session.fence, self._wall()),
            lambda _: None,
            lambda failure: self.not_detached(channel, failure),
        )

    def not_detached(self, channel: Channel, failure: Failure) -> None:
        """The store could not note that nobody carries it."""
        warn(failure)

    def take_up(self, channel: Channel) -> None:
        """It is left alone no more: carried again, or about to end."""
        if self._detached.pop(channel.session.sid, None) is None:
            return
        for account in channel.accounts:
            alone = self._alone[account]
            del alone[channel.session.sid]
            if not alone:
                del self._alone[account]

    def over(self, channel: Channel, error: Unconfirmed) -> None:
        """Owner: a session has ended."""
        sid, client_id = channel.session.sid, channel.session.client_id
        if sid not in self.channels:
            return
        self._drop(channel)
        self.take_up(channel)
        self._full.pop(channel, None)
        mine = self._by_client[client_id]
        del mine[sid]
        if not mine:
            del self._by_client[client_id]
        self._accounts.book(channel.accounts, -_cost(channel.session) - channel.booked)
        channel.booked = 0
        self._presence.release(client_id)
        if channel.ended not in ("closed", "unknown", "moved"):
            self._gone[sid] = channel.ended
        if len(self._gone) > _REMEMBERED:
            del self._gone[next(iter(self._gone))]
        self.tell(channel, error)

    def lost(self, channel: Channel, why: Failure | None = None) -> None:
        """Owner: the store has a session no more, or for somebody else: it is over here."""
        if channel.ended:
            return
        connection = channel.connection
        self.over(channel, channel.suspend("unknown"))
        if connection is not None:
            connection.cut(CloseCode.OVERLOAD, "the session cannot be kept any more")  # type: ignore[attr-defined]  # as above

    def ticked(self, now: float) -> None:
        """A tick has passed: windows end, and so does the patience with those who confirm nothing."""
        super().ticked(now)
        for channel in tuple(islice(self._detached.values(), _ENDS)):
            if now - channel.detached_at < self.settings.window:
                break
            # First: whatever goes wrong with its end, the next one's comes.
            self.take_up(channel)
            channel.end("expired")
        for channel, since in tuple(self._full.items()):
            if not channel.session.is_full or channel.connection is None:
                del self._full[channel]
            elif now - max(since, channel.progress_at) >= self.settings.full_patience:
                connection = channel.connection
                channel.end("full")
                connection.note("full_patience", "it confirms nothing (setting full_patience)")  # type: ignore[attr-defined]  # as above
                connection.cut(CloseCode.SLOW_CONSUMER, "nothing was confirmed for too long")  # type: ignore[attr-defined]  # as above

    # Room.

    def filled(self, channel: Channel) -> None:
        """Owner: a session is at its bound, and somebody is there who should handle what it keeps."""
        self._full.setdefault(channel, self.now())

    def charge(self, channel: Channel, size: int, *, beyond: bool) -> None:
        """Owner: so many bytes more are kept."""
        if not beyond:
            self.make_room(channel.accounts, size + _MESSAGE, channel)
        self._accounts.book(channel.accounts, size + _MESSAGE)

    def credit(self, channel: Channel, size: int) -> None:
        """Owner: so many bytes less."""
        self._accounts.book(channel.accounts, -size - _MESSAGE)

    def queued(self, channel: Channel) -> None:
        """Owner: what waits for its handler is kept too; where there is no room for it, nothing more is read."""
        count, size = channel.session.waiting
        size += _MESSAGE * count
        more, channel.booked = size - channel.booked, size
        if not more:
            return
        self._accounts.book(channel.accounts, more)
        if more < 0:
            return
        try:
            self.make_room(channel.accounts, 0, channel)
        except SessionFull:
            if channel.connection is not None:
                # It comes back, and with it what was not handled.
                channel.connection.cut(CloseCode.OVERLOAD, "too much waits to be handled")  # type: ignore[attr-defined]  # as above

    def settled(self, channel: Channel, seq: int, receipt: str, *, confirmed: bool) -> Sequence[Effect]:
        """Owner: what follows from the fate of a message with a receipt: the first copy confirmed, or the last lost."""
        copies = self.receipts.settled(receipt, confirmed=confirmed)
        if not copies:
            return ()
        follows = () if self.settle is None else self.settle(receipt, confirmed)
        return (Settle(receipt), *follows) if copies > 1 else follows

    def noted(self, receipt: str) -> None:
        """Owner: a message with a receipt is kept."""
        self.receipts.noted(receipt)

    def add(self, channel: Channel, accounts: tuple[str, ...]) -> None:
        """A session that was begun or loaded, on these accounts."""
        session = channel.session
        channel.accounts = accounts
        self.channels[session.sid] = channel
        self._by_client.setdefault(session.client_id, {})[session.sid] = channel
        self._presence.keep(session.client_id)
        self._accounts.book(channel.accounts, SESSION)

    def make_place(self, client_id: str) -> None:
        """Have a client's sessions be one fewer than he may have: end the one of his that was left alone longest.

        Raises SessionFull when each is carried.
        """
        most = self.settings.sessions_per_client
        while len(self._by_client.get(client_id, ())) >= most:
            victim = _longest(self._alone.get("id " + client_id, {}), None)
            if victim is None:
                raise SessionFull(f"one client has {most} sessions at most (setting sessions_per_client)")
            self.take_up(victim)
            victim.end("full")

    def make_room(self, accounts: Sequence[str], size: int, but: Channel | None) -> None:
        """Have room for `size` bytes more on these accounts: end what was left alone longest, the offender's own first.

        Raises SessionFull when that does not do.
        """
        while (account := self._accounts.overdrawn(accounts, size)) is not None:
            victim = self._left_alone(accounts if account == ALL else (account,), but)
            if victim is None and account == ALL:
                victim = _longest(self._detached, but)
            if victim is None:
                raise SessionFull(
                    f"all sessions together keep {self._accounts.most} bytes at most, one identity or address a"
                    " sixteenth of that (setting sessions_bytes)"
                )
            # First: its end may have somebody look for room, too.
            self.take_up(victim)
            victim.end("full")

    def _left_alone(self, accounts: Sequence[str], but: Channel | None) -> Channel | None:
        """The session that was left alone longest, of those on these accounts."""
        longest = [_longest(self._alone.get(account, {}), but) for account in accounts]
        return min((one for one in longest if one is not None), key=lambda one: one.detached_at, default=None)


def _longest(alone: dict[str, Channel], but: Channel | None) -> Channel | None:
    """The first of these that is not `but`."""
    return next((one for one in alone.values() if one is not but), None)


def _cost(session: Session) -> int:
    """What a session has on its accounts."""
    return SESSION + session.weight + _MESSAGE * session.count
