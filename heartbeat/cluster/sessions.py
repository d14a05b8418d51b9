"""Keeps the sessions of a fleet in Redis, so that a client that comes to another server finds his own there.

Each session is one server's at a time: that one carries it, or waits for its client. Who takes it over raises its
fence, and is the only one from then on who may handle, confirm and end it; the server that had it before is told, and
where it does not hear that, what it asks fails. Every server may append to it.

A server has a lease, by Redis' own time, which it renews every few seconds. What one leaves whose lease has ended, or
that has stopped, is nobody's, and is kept for a window from then on; the server itself may be there again, and goes
on with what nobody has taken meanwhile. What is durable of it is Redis' own affair, as for `store`.

A Redis that was restored from a backup must get a new epoch: `redis-cli DEL heartbeat:sessions:epoch`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks
from twisted.logger import Logger
from twisted.python.failure import Failure

from heartbeat.cluster.redis import Redis
from heartbeat.cluster.subscription import Subscription
from heartbeat.cluster.words import (
    MOST,
    Argument,
    arguments_of,
    as_bytes,
    as_text,
    head_of,
    kept_of,
    nothing,
    numbers_of,
)
from heartbeat.core.errors import StoreError
from heartbeat.store import Contents, Effect, Head, Kept, Numbers, Post, TakenOver, Watcher, new_epoch

__all__ = ["FleetStore"]

_log = Logger()

# Seconds between two calls of a server; its lease holds three times as long.
_REFRESH = 5.0
# Seconds until a Redis that could not be reached at the start is tried again.
_AGAIN = 1.0
# Seconds between two calls where there is more to do.
_GAP = 0.02
# So many sessions one call looks at: Redis does one call at a time.
_SLICE = 500
# So many members of groups are told in one call that somebody who ends has left.
_TOLD = 5000
# Seconds that names of connections without a session are gathered before they are told.
_GATHER = 0.2


class FleetStore:
    """A store that the servers of a fleet have together, in the Redis at `url` (see `Redis`).

    `refresh` is how often a server says that it is there, in seconds. Every method returns a Deferred, fired in order.
    """

    def __init__(
        self, url: str, *, refresh: float = _REFRESH, prefix: str = "heartbeat:sessions:", reactor: Any = None
    ) -> None:
        self._reactor: Any = reactor
        self._redis = Redis(url, prefix=prefix, reactor=reactor, setting="cluster")
        self.path = self._redis.url
        self.address = self._redis.address
        #: The name of this server, each time that it starts.
        self.node = ""
        self._prefix = prefix
        self._refresh = refresh
        self._window = 120.0
        # What a session keeps of what is said in groups.
        self._bounds = (1000, 1_048_576)
        self._watcher: Watcher | None = None
        self._lives = 0
        self._subscription: Subscription | None = None
        self._timer: Any = None
        self._is_wanted = self._is_open = self._is_tending = self._is_ending = False
        self._epoch = ""
        # What is to be told of connections without a session, and all ids that have any.
        self._plain: set[str] = set()
        self._untold: dict[str, bool] = {}
        self._gathering: Any = None

    def watch(self, watcher: Watcher, window: float, kept: int, kept_bytes: int) -> None:
        """SharedStore: tell this one what others do."""
        self._watcher = watcher
        self._window = window
        self._bounds = (kept, kept_bytes)

    # Its life.

    @inlineCallbacks
    def start(self) -> Generator[Any, Any, Contents]:
        """Store: open it; no session is read."""
        if self._reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415  # nothing before the start installs one

            self._reactor = reactor
        redis = self._redis
        self._is_wanted = True
        yield self._connected()
        if not self._is_open:
            self._lives += 1
            self.node = f"{redis.asker}.{self._lives}"
            self._epoch = as_text((yield self._call())[0])
            self._is_open = True
            channel = f"{self._prefix}node:{self.node}"
            self._subscription = Subscription(redis, {channel: self._heard}, hears_again=self._hears)
            self._subscription.start(self._reactor)
            self._tell_plain(self._plain)
            self._soon(self._refresh)
        return Contents(self._epoch, ())

    @inlineCallbacks
    def _connected(self) -> Generator[Any, Any, None]:
        """Wait for Redis: who starts before it does is to be found ready when it is there."""
        is_said = False
        while True:
            try:
                yield self._redis.start()
            except StoreError as error:
                if not self._is_wanted:
                    raise
                if not is_said:
                    _log.warn("{why}; nobody is let in until it can be", why=str(error))
                is_said = True
            else:
                return
            again: Deferred[None] = Deferred()
            self._timer = self._reactor.callLater(_AGAIN, again.callback, None)
            yield again
            self._timer = None

    def stop(self) -> Deferred[None]:
        """Store: leave all sessions to the others, finish what was asked, and disconnect."""
        self._is_wanted = False
        for timer in (self._timer, self._gathering):
            if timer is not None:
                timer.cancel()
        self._timer = self._gathering = None
        gone: list[Deferred[Any]] = []
        if self._is_open:
            self._is_open = False
            # Where it cannot be told any more the lease ends by itself.
            self._call("leave").addErrback(_not_any_more)
        if self._subscription is not None:
            gone.append(self._subscription.stop())
            self._subscription = None
        gone.append(self._redis.stop())
        stopped: Deferred[Any] = DeferredList(gone)
        return stopped.addCallback(nothing)

    def _call(self, mode: str = "stay") -> Deferred[Any]:
        lease, window = round(3000 * self._refresh), round(1000 * self._window)
        return self._read("tend", mode, lease, window, new_epoch(), _SLICE)

    def _soon(self, delay: float) -> None:
        if self._is_open and self._timer is None and not self._is_tending:
            self._timer = self._reactor.callLater(delay, self._tend)

    def _tend(self) -> None:
        """Say that we are there, and hear what is to be done for those that are not."""
        self._timer = None
        self._is_tending = True
        if self._subscription is not None:
            self._subscription.look(self._refresh)
        self._call().addCallbacks(self._tended, self._not_tended)

    def _tended(self, reply: list[Any]) -> None:
        self._is_tending = False
        if not self._is_open:
            return
        epoch, has_ended, due, more, next_end = reply
        if has_ended or as_text(epoch) != self._epoch:
            self._epoch = as_text(epoch)
            self._tell_plain(self._plain)
            self._told("forgotten")
            self._told("look_again", self._epoch)
        if due and self._watcher is not None and not self._is_ending:
            self._is_ending = True
            ended = self._watcher.due([as_text(sid) for sid in due])
            ended.addErrback(_not_any_more).addCallback(self._has_ended, len(due) == _SLICE)
        # A millisecond after the next lease has ended, unless that is renewed.
        self._soon(_GAP if more else min(self._refresh, (next_end + 1) / 1000))

    def _has_ended(self, _: object, are_more: bool) -> None:
        """Those of which the window had ended have ended; look at once for more where there may be."""
        self._is_ending = False
        if are_more and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._soon(_GAP)

    def _not_tended(self, failure: Failure) -> None:
        self._is_tending = False
        if self._is_open:
            _log.warn("{why}", why=failure.getErrorMessage())
            self._soon(self._refresh)

    # What is heard.

    def _told(self, word: str, *what: Any) -> None:
        if self._watcher is not None:
            getattr(self._watcher, word)(*what)

    def _hears(self) -> None:
        """What others publish is heard again; something was, perhaps, when it was not."""
        self._told("look_again", self._epoch)

    def _heard(self, word: bytes) -> None:
        if self._is_open:
            _WORDS[word[:1]](self, word[1:])

    def _hear_of_move(self, word: bytes) -> None:
        fence, _, sid = word.partition(b" ")
        self._told("moved", as_text(sid), int(fence))

    def _hear_of_crowd(self, word: bytes) -> None:
        size, _, sid = word.partition(b" ")
        self._told("crowded", as_text(sid), int(size))

    def _hear_letter(self, word: bytes) -> None:
        length, _, rest = word.partition(b":")
        self._told("offered", as_text(rest[: int(length)]), rest[int(length) :])

    def _hear_in_group(self, word: bytes) -> None:
        length, _, rest = word.partition(b":")
        payload, heard = rest[: int(length)], rest[int(length) :].split()
        for place, seq in zip(heard[::2], heard[1::2], strict=True):
            if place.startswith(b"/"):
                self._told("spoken", as_text(place[1:]), payload)
            else:
                self._told("passed_on", as_text(place), Kept(int(seq), payload, None))

    # As a store.

    def open(self, head: Head) -> Deferred[None]:
        """Store: begin a session."""
        members = (as_bytes(head.epoch), as_bytes(head.client_id), repr(head.window))
        return self._ask("open", as_bytes(head.sid), *members).addCallback(nothing)

    def append(self, effects: Sequence[Effect]) -> Deferred[Numbers]:
        """Store: carry out effects."""
        return self._carry_out("append", (), effects)

    def handle(self, sid: str, fence: int, seq: int, effects: Sequence[Effect]) -> Deferred[Numbers]:
        """Store: note what is handled."""
        return self._carry_out("handle", (as_bytes(sid), fence, seq), effects)

    def confirm(self, sid: str, fence: int, upto: int, effects: Sequence[Effect]) -> Deferred[Numbers]:
        """Store: forget what is confirmed."""
        return self._carry_out("confirm", (as_bytes(sid), fence, upto), effects)

    def replay(self, sid: str, after: int) -> Deferred[tuple[Kept, ...]]:
        """Store: what is kept."""
        return self._read("replay", as_bytes(sid), max(0, min(after, MOST))).addCallback(kept_of)

    def detach(self, sid: str, fence: int, at: float) -> Deferred[None]:
        """Store: nobody is connected."""
        return self._ask("detach", as_bytes(sid), fence, repr(at)).addCallback(nothing)

    def take_over(self, sid: str, attempt: int) -> Deferred[Head | None]:
        """Store: raise the fence."""
        return self._ask("take_over", as_bytes(sid), attempt, b"").addCallback(_found, sid)

    def expire(self, sid: str, fence: int, effects: Sequence[Effect]) -> Deferred[Numbers]:
        """Store: end a session."""
        return self._carry_out("expire", (as_bytes(sid), fence, b"", b"", b""), effects)

    # As one that is shared.

    def retake(self, sid: str, attempt: int, fence: int) -> Deferred[Head | None]:
        """SharedStore: raise the fence, where it is this one."""
        return self._ask("take_over", as_bytes(sid), attempt, fence).addCallback(_found, sid)

    @inlineCallbacks
    def claim(
        self, sid: str, name: str | None, attempt: int, last: int, sent: int
    ) -> Generator[Any, Any, tuple[Head, tuple[Kept, ...]] | str]:
        """SharedStore: take a session over from whoever has it."""
        said = (int(name is not None), as_bytes(name or ""), attempt, last, sent)
        claimed, kept = self._ask("claim", as_bytes(sid), *said), self._kept(sid)
        reason, *found = yield claimed
        kept = yield kept
        return as_text(reason) if reason else _whole(head_of(sid, *found[0]), kept) or "stale"

    @inlineCallbacks
    def adopt(self, sid: str) -> Generator[Any, Any, tuple[Head, tuple[Kept, ...]] | None]:
        """SharedStore: take a session that is due."""
        adopted, kept = self._ask("adopt", as_bytes(sid)), self._kept(sid)
        found = yield adopted
        kept = yield kept
        return _whole(head_of(sid, *found), kept) if found else None

    def _kept(self, sid: str) -> Deferred[tuple[Kept, ...]]:
        # Asked before what comes before it is answered, so that nothing of ours is done between the two.
        return self.replay(sid, 0).addErrback(lambda failure: failure.trap(StoreError) and ())

    def keep(self, sessions: Sequence[tuple[str, int]]) -> Deferred[tuple[tuple[int, int], ...]]:
        """SharedStore: say that these sessions are ours."""
        said = [word for sid, fence in sessions for word in (as_bytes(sid), fence)]
        asked = self._read("keep", *said)
        return asked.addCallback(lambda found: tuple((sent, handled) for sent, handled in found))

    def end(self, sid: str, fence: int, known: int, reason: str, effects: Sequence[Effect]) -> Deferred[Numbers | None]:
        """SharedStore: end a session of which so much is known."""
        return self._carry_out("expire", (as_bytes(sid), fence, known, as_bytes(reason), _TOLD), effects)

    def note_plain(self, client_id: str, *, is_there: bool) -> None:
        """SharedStore: a client has connections without a session here, or none any more."""
        if is_there:
            self._plain.add(client_id)
        else:
            self._plain.discard(client_id)
        self._untold[client_id] = is_there
        if self._gathering is None and self._is_open:
            self._gathering = self._reactor.callLater(_GATHER, self._gathered)

    def _gathered(self) -> None:
        self._gathering = None
        self._tell_plain(())

    def _tell_plain(self, ids: Iterable[str]) -> None:
        """Tell what is untold of connections without a session, and that these have some."""
        told = iter([*self._untold.items(), *((name, True) for name in ids if name not in self._untold)])
        self._untold.clear()
        while some := list(islice(told, _SLICE)):
            words = [word for name, is_there in some for word in (as_bytes(name), int(is_there))]
            self._read("plain", *words).addErrback(_not_any_more)

    def members(self, group: str) -> Deferred[int]:
        """SharedStore: how many client ids are in a group."""
        return self._read("members", as_bytes(group))

    # How it is asked.

    def _read(self, name: str, *arguments: Argument) -> Deferred[Any]:
        return self._redis.read(f"fleet {name}", self.node, *self._bounds, *arguments)

    def _ask(self, name: str, *arguments: Argument) -> Deferred[Any]:
        return self._redis.ask(f"fleet {name}", self.node, *self._bounds, *arguments).addErrback(_taken_over)

    def _carry_out(self, name: str, about: tuple[Argument, ...], effects: Sequence[Effect]) -> Deferred[Any]:
        """Ask for effects; whoever asked is answered before anybody is told what else they have done here."""
        if self._untold and any(isinstance(effect, Post) for effect in effects):
            # Whoever is to be written to is known by then.
            self._tell_plain(())
        arguments = [*about, *arguments_of(effects)]
        answer: Deferred[Any] = Deferred()

        def answered(reply: list[Any]) -> None:
            numbers, told, texts = reply
            answer.callback(None if numbers == b"behind" else numbers_of(numbers))
            for sid, seq, payload, receipt in told:
                said = payload
                if isinstance(payload, int):
                    # One of ours, or, counted from the end, one that was made there.
                    said = arguments[payload] if payload >= 0 else texts[-payload - 1]
                (kept,) = kept_of([(seq, said, receipt)])
                self._told("appended", as_text(sid), kept)

        self._ask(name, *arguments).addCallbacks(answered, answer.errback)
        return answer


_WORDS = {
    b"p": lambda store, word: store._told("grew", as_text(word)),
    b"m": FleetStore._hear_of_move,
    b"f": FleetStore._hear_of_crowd,
    b"l": FleetStore._hear_letter,
    b"g": FleetStore._hear_in_group,
}


def _found(found: Any, sid: str) -> Head | None:
    return head_of(sid, *found) if found else None


def _whole(head: Head, kept: tuple[Kept, ...]) -> tuple[Head, tuple[Kept, ...]] | None:
    """A session with all that is kept of it; None where it was somebody else's again by the time that was read."""
    first, last = head.confirmed + 1, head.confirmed + len(kept)
    if last < head.sent or any(one.seq != at for at, one in enumerate(kept, first)):
        return None
    # Others may have appended since.
    return replace(head, sent=last), kept


def _taken_over(failure: Failure) -> Failure:
    failure.trap(StoreError)
    why = failure.getErrorMessage()
    return Failure(TakenOver(why)) if why.startswith("the session was taken over") else failure


def _not_any_more(failure: Failure) -> None:
    """It could not be asked any more: what was to be done others do when our lease has ended."""
    failure.trap(StoreError)
