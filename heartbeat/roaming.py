"""The register of a server whose sessions belong to a fleet: they come with their clients, and go with them.

Here are those that this server carries, or waits for. A client that comes back to another server takes his session
there; then it is over here without a word to anybody, and whoever still had its connection is cut off. What others
append to a session of ours is read in the order of its numbers, and nothing is written that is not its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.python.failure import Failure

from heartbeat.channel import Channel
from heartbeat.core.errors import SessionFull, StoreError, Unconfirmed
from heartbeat.core.session import Resume
from heartbeat.register import SESSION, ServerSessions
from heartbeat.sessions import session_of, warn
from heartbeat.store import Effect, Fate, Head, Join, Kept, Leave, Numbers, Say, SharedStore, TakenOver

__all__ = ["Pages", "RoamingSessions"]

# So many sessions are asked about in one call.
_SLICE = 500


class _Expected:
    """A session that this server is asking for: what was heard of it meanwhile."""

    __slots__ = ("fence", "grew", "times")

    def __init__(self) -> None:
        self.times = 0
        self.fence = -1
        self.grew = False


class RoamingSessions(ServerSessions):
    """The sessions of one server of a fleet.

    `settle` is called for each copy of a message, and must do nothing by itself: what it returns is carried out for one
    of them. `letters` are called with a client id and a letter for his connections that have no session. Of groups:
    `carried` are called with each effect of theirs and its number when it is committed, `spoken_to` with the id of a
    connection without a session and what is said to it, `forgotten_by` when Redis may not know these any more.
    """

    is_shared = True

    def __init__(self, *arguments: Any, store: SharedStore, **keywords: Any) -> None:
        super().__init__(*arguments, store=store, **keywords)
        self.shared = store
        self.letters: list[Callable[[str, bytes], object]] = []
        self.carried: list[Callable[[Effect, int | None], object]] = []
        self.spoken_to: list[Callable[[str, bytes], object]] = []
        self.forgotten_by: list[Callable[[], object]] = []
        self._expected: dict[str, _Expected] = {}
        # Those of which the store is asked for what others have appended; and whether it is to be asked again.
        self._reading: dict[Channel, bool] = {}
        self._unsure: dict[str, None] = {}
        self._is_asking = False
        self.shared.watch(self, self.settings.window, self.bounds.messages, self.bounds.bytes)

    # Sessions that come.

    @inlineCallbacks
    def elsewhere(
        self, resume: Resume, name: str | None, accounts: Sequence[str]
    ) -> Generator[Any, Any, Channel | str]:
        """ServerSessions: take the session from the server that has it."""
        self.make_room(accounts, SESSION, None)
        asked = self.shared.claim(resume.sid, name, resume.attempt, resume.last, resume.sent)
        found, expected = yield self._expect(resume.sid, asked)
        if isinstance(found, str):
            return found
        head, kept = found
        if expected.fence > head.fence:
            # By now yet another has it.
            return "stale"
        return self._come(head, kept, ("id " + head.client_id, *accounts), expected)

    @inlineCallbacks
    def _expect(self, sid: str, asked: Deferred[Any]) -> Generator[Any, Any, tuple[Any, _Expected]]:
        """What the store says of a session, and what others have said of it meanwhile."""
        expected = self._expected.setdefault(sid, _Expected())
        expected.times += 1
        try:
            return (yield asked), expected
        finally:
            expected.times -= 1
            if not expected.times:
                del self._expected[sid]

    def _come(self, head: Head, kept: Sequence[Kept], accounts: tuple[str, ...], expected: _Expected) -> Channel:
        """A session is ours from now on."""
        before = self.channels.get(head.sid)
        if before is not None:
            self._let_move(before)
        channel = Channel(session_of(head, kept, self.bounds), self, waits=True)
        channel.marks.update(head.marks)
        self.add(channel, accounts)
        channel.restore([one.receipt for one in kept])
        for came in self.came:
            came(channel)
        if expected.grew:
            self.behind(channel)
        return channel

    def take_over(self, channel: Channel, attempt: int) -> Deferred[Head | None]:
        """ServerSessions: have the store note that a session is resumed, unless it has moved."""
        session = channel.session
        # The fence is counted up already.
        taken = self.shared.retake(session.sid, attempt, session.fence - 1)
        return taken.addCallback(self._compare, channel, (session.sent, session.handled))

    def _compare(self, head: Head | None, channel: Channel, known: tuple[int, int]) -> Head | None:
        if head is None or (not channel.ended and _has_lost((head.sent, head.handled), known)):
            return None
        if head.sent > channel.session.sent:
            self.behind(channel)
        return head

    # Sessions that go.

    def lost(self, channel: Channel, why: Failure | None = None) -> None:
        """Owner: the store does not take what belongs to a session any more."""
        if why is not None and why.check(TakenOver):
            self._let_move(channel)
        else:
            super().lost(channel, why)

    def not_detached(self, channel: Channel, failure: Failure) -> None:
        """ServerSessions: it is somebody else's by now, perhaps."""
        if failure.check(TakenOver):
            self._let_move(channel)
        else:
            warn(failure)

    def _let_move(self, channel: Channel) -> None:
        """Another server has the session; it goes on there."""
        if channel.ended:
            return
        connection = channel.connection
        channel.suspend("moved")
        self.over(channel, Unconfirmed((), "moved"))
        if connection is not None:
            connection.superseded()  # type: ignore[attr-defined]  # a server's connections are candidates, all of them

    def expire(self, channel: Channel, effects: Sequence[Effect]) -> None:
        """Owner: end a session in the store, with the fates of all that is kept in it, by whomever."""
        self._expire(channel, tuple(effects), channel.session.sent).addErrback(warn)

    @inlineCallbacks
    def _expire(self, channel: Channel, effects: tuple[Effect, ...], known: int) -> Generator[Any, Any, None]:
        session = channel.session
        while (yield self.shared.end(session.sid, session.fence, known, _reason(channel.ended), effects)) is None:
            kept = yield self.store.replay(session.sid, known)
            for one in kept:
                known = one.seq
                if one.receipt is not None:
                    effects += tuple(self.settled(channel, one.seq, one.receipt, confirmed=False))

    # What others do.

    def appended(self, sid: str, kept: Kept) -> None:
        """Watcher: a message was appended to a session."""
        channel = self.channels.get(sid)
        if channel is not None:
            channel.appended(kept)
            channel.pump()
            self._make_up(channel)

    def grew(self, sid: str) -> None:
        """Watcher: another server has appended to a session of ours."""
        channel, expected = self.channels.get(sid), self._expected.get(sid)
        if expected is not None:
            expected.grew = True
        if channel is not None:
            self.behind(channel)

    def passed_on(self, sid: str, kept: Kept) -> None:
        """Watcher: another server has appended this to a session of ours."""
        channel, expected = self.channels.get(sid), self._expected.get(sid)
        if expected is not None:
            expected.grew = True
        if channel is None:
            return
        if kept.seq == channel.session.sent + 1:
            channel.catch_up((kept,))
            self._make_up(channel)
        elif kept.seq > channel.session.sent:
            # Something before it is on another way. What is not above was read on another way.
            self.behind(channel)

    def spoken(self, place: str, payload: bytes) -> None:
        """Watcher: something is said in a group to a connection that has no session."""
        for spoken_to in self.spoken_to:
            spoken_to(place, payload)

    def forgotten(self) -> None:
        """Watcher: which connections without a session are in groups is to be said again."""
        for forgotten_by in self.forgotten_by:
            forgotten_by()

    def moved(self, sid: str, fence: int) -> None:
        """Watcher: a session is another server's from now on."""
        channel, expected = self.channels.get(sid), self._expected.get(sid)
        if expected is not None:
            expected.fence = max(expected.fence, fence)
        if channel is not None and channel.session.fence < fence:
            self._let_move(channel)

    def crowded(self, sid: str, size: int) -> None:
        """Watcher: a session has no room for so many bytes, and another of the same client's has."""
        channel = self.channels.get(sid)
        if channel is not None and channel.connection is None and not channel.session.has_room(size):
            self.take_up(channel)
            channel.end("full")

    def offered(self, client_id: str, payload: bytes) -> None:
        """Watcher: a letter is for the connections of a client that have no session."""
        for letter in self.letters:
            letter(client_id, payload)

    @inlineCallbacks
    def due(self, sids: Sequence[str]) -> Generator[Any, Any, None]:
        """Watcher: these are nobody's, and have waited for long enough: end them, one by one.

        What is kept of all of them would be too much at once.
        """
        for sid in sids:
            found, expected = yield self._expect(sid, self.shared.adopt(sid))
            if found is not None and self.epoch:
                head, kept = found
                self._come(head, kept, ("id " + head.client_id,), expected).end("expired")

    def look_again(self, epoch: str) -> None:
        """Watcher: whatever may have become of our sessions meanwhile, we look at each of them."""
        if not self.epoch:
            return
        if epoch != self.epoch:
            # These are other contents, in which there are none of ours.
            self.epoch = epoch
            for channel in tuple(self.channels.values()):
                self.lost(channel)
            return
        self._unsure.update(dict.fromkeys(self.channels))
        if not self._is_asking:
            self._is_asking = True
            self._ask().addErrback(warn).addBoth(self._asked)

    def _asked(self, _: object) -> None:
        self._is_asking = False

    @inlineCallbacks
    def _ask(self) -> Generator[Any, Any, None]:
        while self._unsure:
            sids = list(islice(self._unsure, _SLICE))
            for sid in sids:
                del self._unsure[sid]
            # A fence that is raised just now is known to the store when this is asked.
            channels = [self.channels[sid] for sid in sids if sid in self.channels]
            asked = [(one, one.session.fence, (one.session.sent, one.session.handled)) for one in channels]
            found = yield self.shared.keep([(channel.session.sid, fence) for channel, fence, _ in asked])
            for (channel, fence, known), (sent, handled) in zip(asked, found, strict=True):
                if channel.ended:
                    continue
                if channel.session.fence != fence:
                    # It was resumed meanwhile; what is said here is of before.
                    self._unsure[channel.session.sid] = None
                elif sent == -2:
                    self._let_move(channel)
                elif _has_lost((sent, handled), known):
                    self.lost(channel)
                elif sent > channel.session.sent:
                    self.behind(channel)

    # Messages of others.

    def behind(self, channel: Channel) -> None:
        """Owner: read what others have appended, once more where that is asked for meanwhile."""
        if channel in self._reading:
            self._reading[channel] = True
        elif not channel.ended:
            self._reading[channel] = False
            self._read(channel).addErrback(self._not_read, channel)

    @inlineCallbacks
    def _read(self, channel: Channel) -> Generator[Any, Any, None]:
        session = channel.session
        try:
            while True:
                kept = yield self.store.replay(session.sid, session.sent)
                channel.catch_up(kept)
                self._make_up(channel)
                if channel.ended or not (self._reading[channel] or channel.is_ahead):
                    return
                self._reading[channel] = False
        finally:
            del self._reading[channel]

    def _not_read(self, failure: Failure, channel: Channel) -> None:
        failure.trap(StoreError)
        self.lost(channel, failure)

    def _make_up(self, channel: Channel) -> None:
        """Others look at the room in a session, and not at that of this server: it is made when they have appended."""
        # Where none can be made, each of those that are left is somebody's who is there, and has its own bound.
        with suppress(SessionFull):
            self.make_room(channel.accounts, 0, channel)

    def _apply(self, effects: Sequence[Effect], numbers: Numbers) -> None:
        super()._apply(effects, numbers)
        for effect, number in zip(effects, numbers, strict=True):
            if isinstance(effect, Join | Leave | Say):
                for carried in self.carried:
                    carried(effect, number)

    # Receipts.

    def noted(self, receipt: str) -> None:
        """Owner: a message with a receipt is kept; it is counted where all its copies are."""

    def settled(self, channel: Channel, seq: int, receipt: str, *, confirmed: bool) -> Sequence[Effect]:
        """Owner: what follows from the fate of one copy, if that decides it."""
        follows = () if self.settle is None else self.settle(receipt, confirmed)
        return (Fate(channel.session.sid, seq, receipt, confirmed, tuple(follows)),)


class Pages(dict[str, dict[Any, None]]):
    """Connections without a session by their client ids; the store is told which ids have any."""

    def __init__(self, store: SharedStore) -> None:
        super().__init__()
        self._store = store

    def setdefault(self, client_id: str, default: Any = None) -> dict[Any, None]:
        """Dict: a client has one more."""
        if client_id not in self:
            self._store.note_plain(client_id, is_there=True)
        return super().setdefault(client_id, default)

    def __delitem__(self, client_id: str) -> None:
        super().__delitem__(client_id)
        self._store.note_plain(client_id, is_there=False)


def _has_lost(found: tuple[int, int], known: tuple[int, int]) -> bool:
    """Whether the store knows less of a session than we did when it was asked: it has lost the last of it.

    Each is how far it was sent, and has handled. What others have appended since may be known to us and not be in what
    the store has answered, which comes on another way than what they publish.
    """
    return found[0] < known[0] or found[1] < known[1]


def _reason(ended: str) -> str:
    """The word that a client is told who asks for it later; none where nobody is to ask."""
    return "" if ended in ("closed", "unknown") else ended
