"""One end of a session at work: between what the application sends and handles, the store, and the connection.

A message goes into the store, then to the peer, and its Deferred fires when the peer has handled it. A
message of the peer's goes to its handler, one at a time and in order, then with all that follows from it
into the store, and only then it is acknowledged. Outlives connections, and decides nothing about them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from heartbeat.core.errors import PeerError, SessionFull, StateError, Unconfirmed
from heartbeat.core.messages import ack_frame, decode_object, error_frame, numberless, re_of
from heartbeat.core.session import MEMBERS, Arrived, Session
from heartbeat.handling import Handling, check_size, encode_message
from heartbeat.quiet import QuietDeferred
from heartbeat.store import Append, Effect, Kept, Numbers, Result, Store, TakenOver, when

__all__ = ["Channel", "Connection", "Owner"]

_log = Logger()


class Connection(Protocol):
    """What a channel needs of the connection that carries it."""

    def write(self, payload: bytes) -> None:
        """Send a text frame, if the connection is open."""
        ...

    def room(self) -> float:
        """How many bytes may be written before the peer has read some."""
        ...

    def take(self, message: dict[str, Any], handling: Handling) -> Deferred[Any] | None:
        """Give a message to its handler, which may take its time. Fails with PeerError where nobody takes it."""
        ...

    def let_go(self) -> None:
        """The session needs it no more, if it is gone."""
        ...


class Owner(Protocol):
    """What all channels of one end have in common."""

    store: Store

    def now(self) -> float:
        """Our running time."""
        ...

    def owes(self, channel: Channel) -> None:
        """Have `acknowledge` called soon."""
        ...

    def lags(self, channel: Channel) -> None:
        """Have `pump` called with the next tick."""
        ...

    def filled(self, channel: Channel) -> None:
        """A session is at its bound."""
        ...

    def charge(self, channel: Channel, size: int, *, beyond: bool) -> None:
        """So many bytes more are kept. Raises SessionFull, unless they are to be kept `beyond` the bounds."""
        ...

    def credit(self, channel: Channel, size: int) -> None:
        """So many bytes less are kept."""
        ...

    def noted(self, receipt: str) -> None:
        """A message with this receipt is kept."""
        ...

    def queued(self, channel: Channel) -> None:
        """Messages wait for their handlers, or do not any more."""
        ...

    def settled(self, channel: Channel, seq: int, receipt: str, *, confirmed: bool) -> Sequence[Effect]:
        """A message with this receipt was confirmed, or lost with its session: what follows."""
        ...

    def carry_out(
        self,
        result: Result[Numbers],
        effects: Sequence[Effect],
        *,
        first: Callable[[], object] | None = None,
        then: Callable[[], object] | None = None,
        failed: Callable[[Failure], object] | None = None,
    ) -> None:
        """The store was asked to commit these effects: when it has, `first`, what they did, `then`; or `failed`."""
        ...

    def lost(self, channel: Channel, why: Failure | None = None) -> None:
        """The store does not take what belongs to a session any more: it is somebody else's, or is gone."""
        ...

    def behind(self, channel: Channel) -> None:
        """Others have appended to a session: have `catch_up` called with what is kept above its `sent`."""
        ...

    def expire(self, channel: Channel, effects: Sequence[Effect]) -> None:
        """Have the store end a session, and carry out what follows from that."""
        ...

    def over(self, channel: Channel, error: Unconfirmed) -> None:
        """A session has ended, with the messages that were never confirmed."""
        ...


class _Sent:
    """A message of ours that is not confirmed: who waits for it, and who else is to be told."""

    __slots__ = ("deferred", "receipt", "size")

    def __init__(self, size: int, receipt: str | None, deferred: QuietDeferred | None) -> None:
        self.size = size
        self.receipt = receipt
        self.deferred = deferred


class Channel:
    """One end of one session at work.

    `connection` carries it now, None while nobody does; `ended` is the word for why it is over, empty
    while it lives. `waits` makes it handle nothing while it is full: a server's does, which answers what
    it handles; a client's must not, or two full ends would wait for each other. `marks` are the texts
    remembered for the session; `accounts`, `booked`, `detached_at` and `progress_at` are its owner's.
    """

    __slots__ = (
        "_ahead",
        "_last",
        "_looping",
        "_owner",
        "_pending",
        "_room",
        "_sent",
        "_under_way",
        "_waits",
        "_written",
        "accounts",
        "booked",
        "connection",
        "detached_at",
        "ended",
        "marks",
        "progress_at",
        "session",
    )

    def __init__(self, session: Session, owner: Owner, *, waits: bool) -> None:
        self.session = session
        self.connection: Connection | None = None
        self.ended = ""
        self.marks: dict[str, str] = {}
        self.accounts: tuple[str, ...] = ()
        self.booked = 0
        self.detached_at = 0.0
        self.progress_at = 0.0
        self._owner = owner
        self._waits = waits
        # Who carried it last, for messages whose turn comes when nobody does.
        self._last: Connection | None = None
        self._looping = False
        # None instead of something empty: most sessions are idle.
        self._sent: deque[_Sent] | None = None
        # On its way into the store; and sent before there was a session to send it in.
        self._under_way: deque[tuple[bytes, QuietDeferred]] | None = None
        self._pending: deque[tuple[bytes, QuietDeferred]] | None = None
        self._room: list[QuietDeferred] | None = None
        # Committed under numbers that follow on some of others, by these.
        self._ahead: dict[int, tuple[Kept, QuietDeferred | None]] | None = None
        self._written: list[Callable[[], object]] | None = None

    # The life of it.

    def attach(self, connection: Connection) -> None:
        """From now on this connection carries it."""
        self._forget_last()
        self.connection = self._last = connection
        self.progress_at = self._owner.now()
        if self.session.is_full:
            self._owner.filled(self)

    def detach(self) -> None:
        """Nobody carries it for now."""
        self.connection = None
        if self.session.is_idle:
            self._forget_last()

    def needs(self, connection: Connection) -> bool:
        """Whether messages whose turn is still to come are handed to this connection, which is gone."""
        return self._last is connection and not self.ended

    def _forget_last(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.let_go()

    def restore(self, receipts: Sequence[str | None]) -> None:
        """The session comes from a store, with these receipts of what it keeps."""
        for payload, receipt in zip(self.session.kept, receipts, strict=True):
            self._owner.charge(self, len(payload), beyond=True)
            self._note_sent(_Sent(len(payload), receipt, None))

    def begin(self, session: Session) -> None:
        """There is a session now: what was sent before goes out in it."""
        pending = self._give_up_pending()
        self.session = session
        self._send_pending(pending)

    def carry_on(self, before: Channel) -> None:
        """What was sent before this session was loaded, in a channel that had none, goes out in this one."""
        self._send_pending(before._give_up_pending())
        self._room, before._room = before._room, None
        self._look_for_room()

    def _give_up_pending(self) -> deque[tuple[bytes, QuietDeferred]]:
        pending, self._pending = self._pending or deque(), None
        for payload, _ in pending:
            self.session.release(len(payload))
        return pending

    def _send_pending(self, pending: deque[tuple[bytes, QuietDeferred]]) -> None:
        for payload, deferred in pending:
            # The server may take and keep less than we thought; what it has no room for was never promised any.
            if len(payload) > self.session.bounds.largest - MEMBERS:
                deferred.errback(Unconfirmed((decode_object(payload),), "too-big"))
                continue
            try:
                self.session.admit(len(payload))
            except SessionFull as full:
                deferred.errback(full)
            else:
                self._store(payload, deferred)

    def flush(self, write: Callable[[bytes], object]) -> None:
        """There is no session to be had: what was sent before goes out as it is."""
        for payload, deferred in self._give_up_pending():
            write(payload)
            deferred.callback(None)

    def end(self, reason: str) -> None:
        """The session is over; who waits for its messages is told which were never confirmed."""
        if self.ended:
            return
        self.ended = reason
        self._forget_last()
        session = self.session
        error, waiting = self._never_confirmed()
        if session.sid:
            effects: list[Effect] = []
            for seq, one in enumerate(self._sent or (), session.sent - len(self._sent or ()) + 1):
                if one.receipt is not None:
                    effects += self._owner.settled(self, seq, one.receipt, confirmed=False)
            self._owner.expire(self, effects)
        self._owner.over(self, error)
        self._fail(waiting, error)

    def suspend(self, reason: str) -> Unconfirmed:
        """This process lets go of the session, which goes on in its store; returns what was not confirmed by then."""
        if self.ended:
            return Unconfirmed((), self.ended)
        self.ended = reason
        self._forget_last()
        error, waiting = self._never_confirmed()
        self._fail(waiting, error)
        return error

    def _never_confirmed(self) -> tuple[Unconfirmed, list[QuietDeferred | None]]:
        """The messages that were never confirmed, in the order they were sent, and who waits for that."""
        ahead = [(kept.payload, deferred) for kept, deferred in (self._ahead or {}).values() if deferred is not None]
        waiting = [*ahead, *(self._under_way or ()), *(self._pending or ())]
        payloads = [*self.session.kept, *(payload for payload, _ in waiting)]
        deferreds = [one.deferred for one in self._sent or ()]
        return Unconfirmed(tuple(map(decode_object, payloads)), self.ended), [
            *deferreds,
            *(deferred for _, deferred in waiting),
        ]

    def _fail(self, waiting: Sequence[QuietDeferred | None], error: Unconfirmed) -> None:
        self._sent = self._under_way = self._pending = self._ahead = None
        for deferred in waiting:
            if deferred is not None:
                deferred.errback(error)
        rooms, self._room = self._room or [], None
        for deferred in rooms:
            deferred.errback(Unconfirmed((), error.reason))
        self._tell_written()

    # What goes out.

    def send(self, message: dict[str, Any]) -> Deferred[None]:
        """Send a message; fires with None when the peer has handled it, fails with Unconfirmed or SessionFull.

        Raises TypeError or ValueError for what is no message, or too large a one.
        """
        payload = encode_message(message)
        check_size(self.session, payload)
        if self.ended:
            return QuietDeferred.failed(Unconfirmed((message,), self.ended))
        try:
            self.admit(len(payload))
        except SessionFull as full:
            return QuietDeferred.failed(full)
        deferred = QuietDeferred()
        if self.session.sid:
            self._store(payload, deferred)
        else:
            self._pending = self._pending or deque()
            self._pending.append((payload, deferred))
        return deferred

    def admit(self, size: int, *, beyond: bool = False) -> None:
        """Take room for a message of so many bytes, even `beyond` the bound. Raises SessionFull.

        A client, which handles what comes however full it is, goes twice as far and not beyond that.
        """
        if self.ended:
            if beyond:
                return
            raise SessionFull(f"the session has ended: {self.ended}")
        try:
            self.session.admit(size, beyond=beyond and (self._waits or self.session.has_room_beyond(size)))
        except SessionFull:
            self._owner.filled(self)
            raise
        try:
            self._owner.charge(self, size, beyond=beyond)
        except SessionFull:
            self.session.release(size)
            raise

    def release(self, size: int) -> None:
        """Give that room back: the message does not come after all."""
        if not self.ended:
            self.session.release(size)
            self._owner.credit(self, size)
            self._look_for_room()
            self.pump()

    @property
    def is_waiting(self) -> bool:
        """Whether it handles nothing for now, because it is full."""
        return self._waits and self.session.is_full

    def when_room(self) -> Deferred[None]:
        """Fires when there is room for a message, fails with Unconfirmed (of none) when the session ends."""
        if self.ended:
            return QuietDeferred.failed(Unconfirmed((), self.ended))
        if not self.session.is_full:
            return QuietDeferred.fired()
        deferred = QuietDeferred()
        self._room = [*(self._room or ()), deferred]
        return deferred

    def when_written(self, then: Callable[[], object]) -> None:
        """Call `then` once: when all that is kept was written to somebody who is there, or when it has ended."""
        if self.ended or self.is_written:
            then()
        else:
            self._written = [*(self._written or ()), then]

    @property
    def is_written(self) -> bool:
        """Whether somebody is there, and was written all there is."""
        return self.connection is not None and self.session.is_written and not self.session.is_storing

    def kept(self, seq: int, effect: Append) -> None:
        """A message for which `admit` took room was committed, under this number."""
        if not self.ended:
            self.session.release(len(effect.payload))
            self._take_in(seq, effect.payload, effect.receipt, None)

    def appended(self, kept: Kept) -> None:
        """A message for which nobody here took room was committed."""
        if not self.ended:
            self._owner.charge(self, len(kept.payload), beyond=True)
            self._take_in(*kept, None)

    def catch_up(self, kept: Sequence[Kept]) -> None:
        """The store keeps these above what was `sent` when it was asked; whoever asked for any of them is with us."""
        for one in kept:
            if self.ended or one.seq <= self.session.sent:
                continue
            if one.seq > self.session.sent + 1:
                # It has lost some that it had: what it says of this session cannot be relied on.
                self._owner.lost(self)
                return
            ahead = None if self._ahead is None else self._ahead.pop(one.seq, None)
            if ahead is None:
                self._owner.charge(self, len(one.payload), beyond=True)
            else:
                self.session.release(len(one.payload))
            self._keep(one.seq, one.payload, one.receipt, None if ahead is None else ahead[1])
        if not self.ended:
            self._follow_on()
            self.pump()

    @property
    def is_ahead(self) -> bool:
        """Whether some that are committed wait for others, which come before them."""
        return bool(self._ahead)

    def confirmed(self) -> None:
        """The peer has handled all up to the session's `confirmed`."""
        session, sent = self.session, self._sent
        if sent is None:
            return
        self.progress_at = self._owner.now()
        first = session.sent - len(sent) + 1
        done = [sent.popleft() for _ in range(len(sent) - (session.sent - session.confirmed))]
        self._sent = sent or None
        effects: list[Effect] = []
        for seq, one in enumerate(done, first):
            self._owner.credit(self, one.size)
            if one.receipt is not None:
                effects += self._owner.settled(self, seq, one.receipt, confirmed=True)
        confirmed = self._owner.store.confirm(session.sid, session.fence, session.confirmed, effects)
        self._owner.carry_out(confirmed, effects, failed=self._not_committed)
        for one in done:
            if one.deferred is not None:
                one.deferred.callback(None)
        self._look_for_room()
        self.run()

    def pump(self) -> None:
        """Write what is committed and was not written on this connection, as far as the peer reads."""
        connection, session = self.connection, self.session
        if connection is None:
            return
        room = connection.room() if not session.is_written else 0
        while room > 0 and (frame := session.next_frame()) is not None:
            connection.write(frame)
            room -= len(frame)
        if not session.is_written:
            self._owner.lags(self)
        elif self._written is not None and self.is_written:
            self._tell_written()

    def _store(self, payload: bytes, deferred: QuietDeferred) -> None:
        self._under_way = self._under_way or deque()
        self._under_way.append((payload, deferred))
        when(self._owner.store.append([Append(self.session.sid, payload)]), self._stored, self._not_stored)

    def _stored(self, numbers: Numbers) -> None:
        if not self._under_way:
            return
        payload, deferred = self._under_way.popleft()
        self._under_way = self._under_way or None
        self.session.release(len(payload))
        seq = numbers[0]
        if seq is None:
            # The store knows no such session.
            self._owner.credit(self, len(payload))
            deferred.errback(Unconfirmed((decode_object(payload),), "unknown"))
            return
        self._take_in(seq, payload, None, deferred)
        self.pump()

    def _take_in(self, seq: int, payload: bytes, receipt: str | None, deferred: QuietDeferred | None) -> None:
        """A message was committed, in most cases the next one; others than we may append to a session of a fleet."""
        session = self.session
        if seq == session.sent + 1:
            self._keep(seq, payload, receipt, deferred)
            if self._ahead is not None:
                self._follow_on()
        elif seq > session.sent:
            self._ahead = self._ahead or {}
            self._ahead[seq] = Kept(seq, payload, receipt), deferred
            session.admit(len(payload), beyond=True)
            self._owner.behind(self)
        else:
            self._owner.credit(self, len(payload))
            self._had_already(seq, payload, deferred)

    def _follow_on(self) -> None:
        """Those that were ahead, as far as nothing is missing before them."""
        ahead, session = self._ahead or {}, self.session
        while session.sent + 1 in ahead:
            kept, deferred = ahead.pop(session.sent + 1)
            session.release(len(kept.payload))
            self._keep(kept.seq, kept.payload, kept.receipt, deferred)
        self._ahead = ahead or None

    def _had_already(self, seq: int, payload: bytes, deferred: QuietDeferred | None) -> None:
        """It was read before its own answer came: the connection to the store had broken in between."""
        session, sent = self.session, self._sent or ()
        at = seq - session.confirmed - 1
        if at < 0 or session.kept[at] != payload:
            # Or the store has lost what it had under this number, and gives it anew.
            if deferred is not None:
                deferred.errback(Unconfirmed((decode_object(payload),), "store"))
            self._owner.lost(self)
        elif deferred is not None:
            sent[at].deferred = deferred

    def _not_stored(self, failure: Failure) -> None:
        if not self._under_way:
            return
        payload, deferred = self._under_way.popleft()
        self._under_way = self._under_way or None
        self.release(len(payload))
        _log.warn("a message was not stored: {why}", why=failure.getErrorMessage())
        deferred.errback(Unconfirmed((decode_object(payload),), "store"))
        self.run()

    def _keep(self, seq: int, payload: bytes, receipt: str | None, deferred: QuietDeferred | None) -> None:
        self.session.appended(seq, payload)
        self._note_sent(_Sent(len(payload), receipt, deferred))
        if self.session.is_full:
            self._owner.filled(self)

    def _note_sent(self, one: _Sent) -> None:
        if self._sent is None:
            self._sent = deque()
        self._sent.append(one)
        if one.receipt is not None:
            self._owner.noted(one.receipt)

    def _look_for_room(self) -> None:
        if self._room is not None and not self.session.is_full:
            rooms, self._room = self._room, None
            for deferred in rooms:
                deferred.callback(None)

    def _tell_written(self) -> None:
        written, self._written = self._written or [], None
        for then in written:
            then()

    # What comes in.

    def run(self) -> None:
        """Handle what has arrived, one message at a time."""
        if self._looping:
            return
        session = self.session
        self._looping = True
        try:
            while not self.ended and not self.is_waiting:
                arrived = session.next()
                if arrived is None:
                    break
                self._handle(arrived)
        finally:
            self._looping = False
        if not self.ended:
            self._owner.queued(self)
            if session.owes:
                self._owner.owes(self)
        if self.connection is None and session.is_idle:
            self._forget_last()

    def acknowledge(self) -> None:
        """Tell the peer what was handled, unless something that went out meanwhile has."""
        if self.connection is not None and self.session.owes:
            self.connection.write(ack_frame(self.session.tell()))

    def _handle(self, arrived: Arrived) -> None:
        handling = Handling(self, arrived.seq, self.session.client_id, lambda payload: None)
        message, carrier = arrived.message, self.connection or self._last
        if carrier is None:
            raise StateError("a message waits for its handler, and nobody ever brought it")
        if isinstance(message, bytes):
            message = numberless(message)
        if isinstance(message, PeerError):
            self._refuse(handling, message)
        else:
            result = carrier.take(message, handling)
            if result is not None:
                result.addErrback(self._failed, handling, message)
                result.addCallback(lambda _: self._finish(handling, arrived))
                return
        self._finish(handling, arrived)

    def _failed(self, failure: Failure, handling: Handling, message: dict[str, Any]) -> None:
        handling.forget()
        if isinstance(failure.value, PeerError):
            error = failure.value
        else:
            _log.failure("the handler of {kind} failed", failure, kind=message["type"])
            error = PeerError("failed", "the message was taken, and its handler failed", re_of(message))
        if message["type"] != "error":
            # An error is never answered, or two ends could go on for ever.
            self._refuse(handling, error)

    def _refuse(self, handling: Handling, error: PeerError) -> None:
        # A server that handles so little of what its client sends learns nothing from one error more.
        with suppress(SessionFull):
            handling.append_payload(self, error_frame(error), beyond=True)

    def _finish(self, handling: Handling, arrived: Arrived) -> None:
        """The handler has finished: commit that, and what follows from it."""
        if self.ended:
            handling.forget()
            return
        effects, session = handling.settle(), self.session

        def finished() -> None:
            # Before what follows is written, so that it carries the acknowledgement.
            if not self.ended:
                session.finished()

        result = self._owner.store.handle(session.sid, session.fence, arrived.seq, effects)
        self._owner.carry_out(result, effects, first=finished, then=self.run, failed=self._not_committed)

    def _not_committed(self, failure: Failure) -> None:
        # That it has moved is nothing to warn of.
        say = _log.debug if failure.check(TakenOver) else _log.warn
        say("{why}", why=failure.getErrorMessage())
        self._owner.lost(self, failure)
