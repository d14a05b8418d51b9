"""Keeps sessions in Redis, so that what was promised outlives the server's process, and its machine.

One server at a time: whoever starts last has the store, and what another still asks of it fails. What is durable of
it is Redis' own affair: with `appendonly yes` and `appendfsync always` an answer means that it is on the disk, with
`everysec` a second may be lost with the machine of Redis.

A Redis that was restored from a backup must get a new epoch: `redis-cli DEL heartbeat:epoch` before the next start.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from math import inf
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks

from heartbeat.cluster.redis import Redis
from heartbeat.cluster.words import MOST, arguments_of, as_bytes, as_text, head_of, kept_of, nothing, numbers_of
from heartbeat.store import Contents, Effect, Head, Kept, Numbers, new_epoch

__all__ = ["RedisStore"]


class RedisStore:
    """A store in the Redis at `url` (see `Redis`). Every method returns a Deferred, fired in order."""

    def __init__(self, url: str, *, prefix: str = "heartbeat:", reactor: Any = None) -> None:
        self._redis = Redis(url, prefix=prefix, reactor=reactor)
        self.path = self._redis.url
        self.address = self._redis.address

    @inlineCallbacks
    def start(self) -> Generator[Any, Any, Contents]:
        """Store: open it."""
        redis = self._redis
        yield redis.start()
        epoch, found = yield redis.read("start", new_epoch(), redis.asker)
        heads = [head_of(as_text(sid), *parts) for sid, *parts in found]
        heads.sort(key=lambda head: inf if head.detached_at is None else head.detached_at)
        return Contents(epoch.decode(), tuple(heads))

    def stop(self) -> Deferred[None]:
        """Store: finish what was asked, and disconnect."""
        return self._redis.stop()

    def open(self, head: Head) -> Deferred[None]:
        """Store: begin a session."""
        members = (as_bytes(head.epoch), as_bytes(head.client_id), repr(head.window))
        return self._redis.ask("open", as_bytes(head.sid), *members).addCallback(nothing)

    def append(self, effects: Sequence[Effect]) -> Deferred[Numbers]:
        """Store: carry out effects."""
        return self._redis.ask("append", *arguments_of(effects)).addCallback(numbers_of)

    def handle(self, sid: str, fence: int, seq: int, effects: Sequence[Effect]) -> Deferred[Numbers]:
        """Store: note what is handled."""
        return self._redis.ask("handle", as_bytes(sid), fence, seq, *arguments_of(effects)).addCallback(numbers_of)

    def confirm(self, sid: str, fence: int, upto: int, effects: Sequence[Effect]) -> Deferred[Numbers]:
        """Store: forget what is confirmed."""
        return self._redis.ask("confirm", as_bytes(sid), fence, upto, *arguments_of(effects)).addCallback(numbers_of)

    def replay(self, sid: str, after: int) -> Deferred[tuple[Kept, ...]]:
        """Store: what is kept."""
        return self._redis.read("replay", as_bytes(sid), max(0, min(after, MOST))).addCallback(kept_of)

    def detach(self, sid: str, fence: int, at: float) -> Deferred[None]:
        """Store: nobody is connected."""
        return self._redis.ask("detach", as_bytes(sid), fence, repr(at)).addCallback(nothing)

    def take_over(self, sid: str, attempt: int) -> Deferred[Head | None]:
        """Store: raise the fence."""
        return self._redis.ask("take_over", as_bytes(sid), attempt).addCallback(
            lambda found: head_of(sid, *found) if found else None
        )

    def expire(self, sid: str, fence: int, effects: Sequence[Effect]) -> Deferred[Numbers]:
        """Store: end a session."""
        return self._redis.ask("expire", as_bytes(sid), fence, *arguments_of(effects)).addCallback(numbers_of)
