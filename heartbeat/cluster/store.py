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

from heartbeat.cluster.redis import Argument, Redis
from heartbeat.store import Append, Contents, Effect, Head, Kept, Numbers, Settle, new_epoch

__all__ = ["RedisStore"]

# Lua's numbers are doubles.
_MOST = 2**53

_TEXTS = ("epoch", "client_id")
_FLOATS = ("window", "detached_at")


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
        heads = [_head(_text(sid), *parts) for sid, *parts in found]
        heads.sort(key=lambda head: inf if head.detached_at is None else head.detached_at)
        return Contents(epoch.decode(), tuple(heads))

    def stop(self) -> Deferred[None]:
        """Store: finish what was asked, and disconnect."""
        return self._redis.stop()

    def open(self, head: Head) -> Deferred[None]:
        """Store: begin a session."""
        members = (_bytes(head.epoch), _bytes(head.client_id), repr(head.window))
        return self._redis.ask("open", _bytes(head.sid), *members).addCallback(_nothing)

    def append(self, effects: Sequence[Effect]) -> Deferred[Numbers]:
        """Store: carry out effects."""
        return self._redis.ask("append", *_arguments(effects)).addCallback(_numbers)

    def handle(self, sid: str, fence: int, seq: int, effects: Sequence[Effect]) -> Deferred[Numbers]:
        """Store: note what is handled."""
        return self._redis.ask("handle", _bytes(sid), fence, seq, *_arguments(effects)).addCallback(_numbers)

    def confirm(self, sid: str, fence: int, upto: int, effects: Sequence[Effect]) -> Deferred[Numbers]:
        """Store: forget what is confirmed."""
        return self._redis.ask("confirm", _bytes(sid), fence, upto, *_arguments(effects)).addCallback(_numbers)

    def replay(self, sid: str, after: int) -> Deferred[tuple[Kept, ...]]:
        """Store: what is kept."""
        return self._redis.read("replay", _bytes(sid), max(0, min(after, _MOST))).addCallback(_kept)

    def detach(self, sid: str, fence: int, at: float) -> Deferred[None]:
        """Store: nobody is connected."""
        return self._redis.ask("detach", _bytes(sid), fence, repr(at)).addCallback(_nothing)

    def take_over(self, sid: str, attempt: int) -> Deferred[Head | None]:
        """Store: raise the fence."""
        return self._redis.ask("take_over", _bytes(sid), attempt).addCallback(
            lambda found: _head(sid, *found) if found else None
        )

    def expire(self, sid: str, fence: int, effects: Sequence[Effect]) -> Deferred[Numbers]:
        """Store: end a session."""
        return self._redis.ask("expire", _bytes(sid), fence, *_arguments(effects)).addCallback(_numbers)


def _arguments(effects: Sequence[Effect]) -> list[Argument]:
    """Effects as a script takes them: each a word, and what belongs to it."""
    arguments: list[Argument] = []
    for effect in effects:
        if isinstance(effect, Append):
            arguments += [
                "append",
                _bytes(effect.sid),
                effect.payload,
                b"" if effect.receipt is None else _receipt(effect.receipt),
            ]
        elif isinstance(effect, Settle):
            arguments += ["settle", _receipt(effect.receipt)]
        else:
            value = effect.value
            arguments += ["mark", _bytes(effect.sid), _bytes(effect.key), int(value is not None), _bytes(value or "")]
    return arguments


def _bytes(text: str) -> bytes:
    # JSON may hold a lone surrogate, which no name of a key may lose.
    return text.encode("utf-8", "surrogatepass")


def _receipt(receipt: str) -> bytes:
    # One that is empty is one, too.
    return b"=" + _bytes(receipt)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogatepass")


def _numbers(numbers: list[int]) -> Numbers:
    return tuple(number or None for number in numbers)


def _nothing(_: object) -> None:
    return None


def _kept(entries: list[tuple[bytes, bytes, bytes]]) -> tuple[Kept, ...]:
    return tuple(Kept(int(seq), payload, _text(receipt[1:]) if receipt else None) for seq, payload, receipt in entries)


def _head(sid: str, members: list[bytes], marks: list[bytes]) -> Head:
    """What a script tells of a session: the members of two hashes, names and values in turn."""
    known = {name.decode(): _value(name.decode(), value) for name, value in _pairs(members)}
    return Head(sid, marks={_text(key): _text(value) for key, value in _pairs(marks)}, **known)


def _pairs(flat: list[bytes]) -> zip[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _value(name: str, value: bytes) -> Any:
    if name in _TEXTS:
        return _text(value)
    return float(value) if name in _FLOATS else int(value)
