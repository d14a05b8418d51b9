"""Where sessions are kept, so that what was promised outlives a connection, and with a durable store the process.

A store numbers and keeps the messages of each session; it knows nothing of connections and judges nothing.
Calls of one store take effect in the order in which they were made. What a method returns is there only
when it is committed; a store over a network or a disk returns Deferreds, the one in memory the value itself.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, NamedTuple, Protocol, TypeVar, Union, runtime_checkable

from twisted.internet.defer import Deferred

from heartbeat.core.errors import StoreError

__all__ = [
    "JOINED",
    "NO_ROOM",
    "POSTED",
    "Append",
    "Contents",
    "Effect",
    "Fate",
    "Head",
    "Join",
    "Kept",
    "Leave",
    "Mark",
    "MemoryStore",
    "Missed",
    "Numbers",
    "Plain",
    "Post",
    "Result",
    "Say",
    "Settle",
    "SharedStore",
    "Store",
    "TakenOver",
    "Watcher",
    "new_epoch",
    "new_sid",
    "when",
]

T = TypeVar("T")

#: What a store's method returns: the value, or a Deferred of it.
Result = Union[T, Deferred[T]]  # noqa: UP007  # an alias with a variable in it

#: For each effect the number of an `Append`, None for the others and for sessions that are not there.
Numbers = tuple[int | None, ...]


class Append(NamedTuple):
    """Effect: number and keep a message for a session.

    `payload` is its JSON, without `seq` and `ack`. `receipt` names what somebody is to be told when it is
    confirmed or lost; copies of one message share it. To a session that is not there it is no effect.
    """

    sid: str
    payload: bytes
    receipt: str | None = None


class Settle(NamedTuple):
    """Effect: whoever was to be told by this receipt has been told; all copies forget it."""

    receipt: str


class Mark(NamedTuple):
    """Effect: remember a text for a session under a key, in place of the one before; None forgets it."""

    sid: str
    key: str
    value: str | None


class Post(NamedTuple):
    """Effect, of a shared store: send a message to a client, in each of his sessions that has room for it.

    All of it is decided where the sessions are: who they are, and whether they have room by these bounds, `kept`
    messages of `kept_bytes`. What became of it is one word of `POSTED`, which the session `sender` is told (empty:
    nobody) between `before` and `after`; and the number of this effect is where the word stands there, from 1.
    """

    to: str
    payload: bytes
    receipt: str
    sender: str
    kept: int
    kept_bytes: int
    before: bytes
    after: bytes


class Fate(NamedTuple):
    """Effect, of a shared store: a message with a receipt was confirmed in one of its sessions, or lost with it.

    Where it is the first to be confirmed, or the last to be lost, what `follows` is carried out, and all copies forget
    the receipt; else it is no effect.
    """

    sid: str
    seq: int
    receipt: str
    confirmed: bool
    follows: tuple[Effect, ...]


class Plain(NamedTuple):
    """Effect, of a shared store: write a message to the connections of a client that have no session."""

    to: str
    payload: bytes


class Join(NamedTuple):
    """Effect, of a shared store: a place is in a group from now on, and its members are told.

    Groups and client ids are texts of JSON, and `more` are the members `id` and `text` of the event, as JSON with a
    comma before each. A place is a session, or `NODE/ID` for a connection without one. Where another place of its
    `client` is in the group it is told alone, as where it is in it already. Its number is `JOINED`, or `NO_ROOM` where
    `most` places are in the group; then, as where the session is not there, nothing changes, and the session is
    told `refused`. `again`: where it is in the group already nobody is told.
    """

    group: str
    place: str
    client: str
    more: bytes
    refused: bytes
    most: int
    again: bool = False


class Leave(NamedTuple):
    """Effect, of a shared store: a place is in a group no more; what is told, and to whom, as with `Join`.

    It has the number `JOINED`, and none where it was not in the group; then its session is told `refused`.
    """

    group: str
    place: str
    more: bytes
    refused: bytes


class Say(NamedTuple):
    """Effect, of a shared store: a place says something to all that are in a group with it.

    Its number is how many places these are. It has none where it was not in the group, as with `Leave`.
    """

    group: str
    place: str
    more: bytes
    refused: bytes


class Missed(NamedTuple):
    """Effect, of a shared store: tell a session how much it has missed in each of these groups."""

    sid: str
    groups: tuple[str, ...]


Effect = Union[  # noqa: UP007  # an alias that is used before it is made
    Append, Settle, Mark, Post, Fate, Plain, Join, Leave, Say, Missed
]

#: What may become of a `Post`, in the words of the wire.
POSTED = ("queued", "sent", "full", "unknown")

#: What may become of a `Join`.
JOINED, NO_ROOM = 1, 2


class Kept(NamedTuple):
    """A message that is kept: its number, its JSON, and its receipt."""

    seq: int
    payload: bytes
    receipt: str | None


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a session besides its messages.

    `sent`, `confirmed` and `handled` are numbers as in `Session`; `attempt` is the wire's `try` and `fence` who may
    write; `window` is in seconds; `detached_at` in seconds since 1970, None while somebody is connected.
    """

    sid: str = field(repr=False)
    epoch: str
    client_id: str
    window: float
    sent: int = 0
    confirmed: int = 0
    handled: int = 0
    attempt: int = 0
    fence: int = 0
    detached_at: float | None = None
    marks: dict[str, str] = field(default_factory=dict)


class Contents(NamedTuple):
    """What a store holds when it starts: the name of these contents, and the sessions, longest detached first."""

    epoch: str
    heads: tuple[Head, ...]


class Store(Protocol):
    """What sessions need of a store. Every method may return a Deferred of what is said here.

    `fence` is what `take_over` returned last (0 before): a writer with an older one has lost the
    session, and fails with StoreError. An unknown session fails with StoreError too.
    """

    def start(self) -> Result[Contents]:
        """Open the store. Fails with StoreError, one sentence with its name."""
        ...

    def stop(self) -> Result[None]:
        """Finish what was asked, and close it."""
        ...

    def open(self, head: Head) -> Result[None]:
        """Begin a session."""
        ...

    def append(self, effects: Sequence[Effect]) -> Result[Numbers]:
        """Carry out all or none; the number of each `Append`, None for other effects and for sessions that are gone."""
        ...

    def handle(self, sid: str, fence: int, seq: int, effects: Sequence[Effect]) -> Result[Numbers]:
        """Note that all up to `seq` is handled, and carry out what follows; all or none. Returns as `append`."""
        ...

    def confirm(self, sid: str, fence: int, upto: int, effects: Sequence[Effect]) -> Result[Numbers]:
        """Forget the messages up to `upto`, and carry out what follows from it; all or none. Returns as `append`."""
        ...

    def replay(self, sid: str, after: int) -> Result[tuple[Kept, ...]]:
        """The messages kept above `after`, in order."""
        ...

    def detach(self, sid: str, fence: int, at: float) -> Result[None]:
        """Note that nobody is connected since `at`, in seconds since 1970."""
        ...

    def take_over(self, sid: str, attempt: int) -> Result[Head | None]:
        """Raise the fence, note the attempt; the session with its new fence, None for one that is not there."""
        ...

    def expire(self, sid: str, fence: int, effects: Sequence[Effect]) -> Result[Numbers]:
        """End a session with all that is kept of it, and carry out what follows; all or none. Returns as `append`."""
        ...


class TakenOver(StoreError):
    """A writer has lost the session to somebody else."""


class Watcher(Protocol):
    """Who is told what others do to the sessions of this server."""

    def appended(self, sid: str, kept: Kept) -> None:
        """A message was appended to a session, by an effect of ours that was not an `Append`."""
        ...

    def grew(self, sid: str) -> None:
        """Another server has appended to a session of ours."""
        ...

    def passed_on(self, sid: str, kept: Kept) -> None:
        """This is what another server has appended to a session of ours."""
        ...

    def spoken(self, place: str, payload: bytes) -> None:
        """A message is for a connection without a session, that is in a group by this id."""
        ...

    def forgotten(self) -> None:
        """Which connections without a session are in groups may not be known any more: say so again."""
        ...

    def moved(self, sid: str, fence: int) -> None:
        """A session is another server's from now on, by this fence."""
        ...

    def crowded(self, sid: str, size: int) -> None:
        """A session that nobody carries has no room for so many bytes, and another of the same client's has."""
        ...

    def offered(self, client_id: str, payload: bytes) -> None:
        """A message is for the connections of a client that have no session."""
        ...

    def due(self, sids: Sequence[str]) -> Deferred[None]:
        """The windows of these have ended, and no server has them: adopt and end them; fires when that is done."""
        ...

    def look_again(self, epoch: str) -> None:
        """Something may have become of our sessions that we were not told of; `epoch` names the contents now."""
        ...


@runtime_checkable
class SharedStore(Store, Protocol):
    """A store that several servers have together: each session is one server's at a time.

    Its contents are not read at the start: a session comes when its client does. `append` takes effects for sessions
    of others, `Post`, `Fate` and `Plain` besides, and those of groups: `Join`, `Leave`, `Say`, `Missed`. What is said
    in a group is kept for each session in it, as far as that has room, up to half of its bound where nobody carries it;
    what it misses is counted, and told before the next that it has room for. Whoever ends leaves its groups.
    """

    #: The name of this server, each time that it starts.
    node: str

    def watch(self, watcher: Watcher, window: float, kept: int, kept_bytes: int) -> None:
        """Tell this one what others do; sessions of servers that are gone are kept for a window of so many seconds.

        `kept` messages of `kept_bytes` is what a session keeps of what is said in groups.
        """
        ...

    def claim(
        self, sid: str, name: str | None, attempt: int, last: int, sent: int
    ) -> Deferred[tuple[Head, tuple[Kept, ...]] | str]:
        """Take a session over from whoever has it, for a client who says this; or the reason why not.

        `name` is whose it must be, if anybody's; the numbers are those of `Resume`. `stale` is said of an attempt that
        is not above the session's; a refusal changes nothing.
        """
        ...

    def retake(self, sid: str, attempt: int, fence: int) -> Deferred[Head | None]:
        """As `take_over`, for whoever has this fence; else it fails with TakenOver."""
        ...

    def adopt(self, sid: str) -> Deferred[tuple[Head, tuple[Kept, ...]] | None]:
        """Take a session that is due; None where somebody else has."""
        ...

    def keep(self, sessions: Sequence[tuple[str, int]]) -> Deferred[tuple[tuple[int, int], ...]]:
        """Say that these sessions are ours, each by its fence; how far each was sent, and has handled.

        -1 for both where it is not there, -2 where somebody else has it.
        """
        ...

    def end(self, sid: str, fence: int, known: int, reason: str, effects: Sequence[Effect]) -> Deferred[Numbers | None]:
        """As `expire`, with the `reason`. None where there is more than is `known`, or left to do: ask again.

        Then it may have left some of its groups, and is nobody else's any more.
        """
        ...

    def note_plain(self, client_id: str, *, is_there: bool) -> None:
        """A client has connections without a session here, or none any more."""
        ...

    def members(self, group: str) -> Deferred[int]:
        """How many client ids are in a group, by its name as JSON."""
        ...


def when(result: Result[T], then: Callable[[T], object], failed: Callable[[Any], object] | None = None) -> None:
    """Go on with a result: in the same turn where it is there, else when it comes, or fails.

    What `then` raises is not taken for a failure of the store's.
    """
    if isinstance(result, Deferred):
        result.addCallbacks(then, failed)
    else:
        then(result)


def new_sid() -> str:
    """A name for a session that nobody guesses: 128 bits."""
    return secrets.token_hex(16)


def new_epoch() -> str:
    """A name for the contents of a store."""
    return secrets.token_hex(8)


class _Entry:
    """One session in memory."""

    __slots__ = ("attempt", "begun", "confirmed", "detached_at", "fence", "handled", "kept", "marks", "sent")

    def __init__(self, begun: Head) -> None:
        self.begun = begun
        self.sent = self.confirmed = self.handled = self.attempt = self.fence = 0
        self.detached_at: float | None = None
        self.marks: dict[str, str] | None = None
        self.kept: deque[tuple[bytes, str | None]] | None = None

    def head(self) -> Head:
        """What is known of it now."""
        return replace(
            self.begun,
            sent=self.sent,
            confirmed=self.confirmed,
            handled=self.handled,
            attempt=self.attempt,
            fence=self.fence,
            detached_at=self.detached_at,
            marks=dict(self.marks or {}),
        )


class MemoryStore:
    """Keeps sessions as long as the process lives. Every method returns its value at once."""

    def __init__(self) -> None:
        self._epoch = new_epoch()
        self._entries: dict[str, _Entry] = {}
        # The sessions that hold copies with this receipt, each once a copy.
        self._receipts: dict[str, list[str]] = {}

    def start(self) -> Contents:
        """Store: open it; what it held stays."""
        heads = [entry.head() for entry in self._entries.values()]
        heads.sort(key=lambda head: inf if head.detached_at is None else head.detached_at)
        return Contents(self._epoch, tuple(heads))

    def stop(self) -> None:
        """Store: close it."""

    def open(self, head: Head) -> None:
        """Store: begin a session."""
        if head.sid in self._entries:
            raise StoreError("the session is in the store already")
        self._entries[head.sid] = _Entry(head)

    def append(self, effects: Sequence[Effect]) -> Numbers:
        """Store: carry out effects."""
        return tuple([_CARRIED[type(effect)](self, effect) for effect in effects])

    def handle(self, sid: str, fence: int, seq: int, effects: Sequence[Effect]) -> Numbers:
        """Store: note what is handled."""
        self._entry(sid, fence).handled = seq
        return self.append(effects)

    def confirm(self, sid: str, fence: int, upto: int, effects: Sequence[Effect]) -> Numbers:
        """Store: forget what is confirmed."""
        entry = self._entry(sid, fence)
        while entry.confirmed < min(upto, entry.sent) and entry.kept:
            entry.confirmed += 1
            self._forget(sid, entry.kept.popleft()[1])
        entry.kept = entry.kept or None
        return self.append(effects)

    def replay(self, sid: str, after: int) -> tuple[Kept, ...]:
        """Store: what is kept."""
        entry = self._entry(sid)
        first = entry.confirmed + 1
        return tuple(Kept(first + at, *kept) for at, kept in enumerate(entry.kept or ()) if first + at > after)

    def detach(self, sid: str, fence: int, at: float) -> None:
        """Store: nobody is connected."""
        self._entry(sid, fence).detached_at = at

    def take_over(self, sid: str, attempt: int) -> Head | None:
        """Store: raise the fence."""
        entry = self._entries.get(sid)
        if entry is None:
            return None
        entry.attempt, entry.fence, entry.detached_at = attempt, entry.fence + 1, None
        return entry.head()

    def expire(self, sid: str, fence: int, effects: Sequence[Effect]) -> Numbers:
        """Store: end a session."""
        entry = self._entry(sid, fence)
        del self._entries[sid]
        for _, receipt in entry.kept or ():
            self._forget(sid, receipt)
        return self.append(effects)

    def _entry(self, sid: str, fence: int | None = None) -> _Entry:
        entry = self._entries.get(sid)
        if entry is None:
            raise StoreError("the session is not in the store")
        if fence is not None and fence != entry.fence:
            raise StoreError(f"the session was taken over: fence {fence}, not {entry.fence}")
        return entry

    def _forget(self, sid: str, receipt: str | None) -> None:
        holders = self._receipts.get(receipt) if receipt is not None else None
        if holders is not None and receipt is not None:
            holders.remove(sid)
            if not holders:
                del self._receipts[receipt]

    def _append(self, effect: Append) -> int | None:
        entry = self._entries.get(effect.sid)
        if entry is None:
            return None
        if entry.kept is None:
            entry.kept = deque()
        entry.kept.append((effect.payload, effect.receipt))
        if effect.receipt is not None:
            self._receipts.setdefault(effect.receipt, []).append(effect.sid)
        entry.sent += 1
        return entry.sent

    def _settle(self, effect: Settle) -> None:
        for sid in set(self._receipts.pop(effect.receipt, ())):
            kept = self._entries[sid].kept or deque()
            for at, (payload, receipt) in enumerate(kept):
                if receipt == effect.receipt:
                    kept[at] = payload, None

    def _mark(self, effect: Mark) -> None:
        entry = self._entries.get(effect.sid)
        if entry is None:
            return
        marks = entry.marks or {}
        marks.pop(effect.key, None)
        if effect.value is not None:
            marks[effect.key] = effect.value
        entry.marks = marks or None


_CARRIED: dict[type, Callable[[MemoryStore, Any], int | None]] = {
    Append: MemoryStore._append,
    Settle: MemoryStore._settle,
    Mark: MemoryStore._mark,
}
