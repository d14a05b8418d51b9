"""The fuzzer for where there is no atheris: inputs that reach new branches are kept, and changed in their turn.

All chance comes from one seeded generator: the same seed on the same code tries the same inputs.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable
from typing import ClassVar

__all__ = ["Breed"]

_DIGITS = re.compile(rb"\d+")
_NUMBERS = (b"0", b"1", b"-1", b"2", b"9", b"1e5", b"1024", b"65536", b"9007199254740993", b"18446744073709551616")
_BYTES = (0, 1, 2, 3, 0x7D, 0x7E, 0x7F, 0x80, 0x81, 0xFF, *b'{}[]":,\\ \r\n09')


class Breed:
    """Inputs that have reached something, and how the next one comes of them."""

    def __init__(self, seed: int, tokens: tuple[bytes, ...], longest: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311  # a seeded one is wanted, not a secret
        self._tokens = tokens
        self._longest = longest
        self.kept: list[bytes] = []
        self.known: set[int] = set()
        self.tried = 0

    def live(
        self, try_one: Callable[[bytes], None], reached: set[int], seconds: float, runs: int | None = None
    ) -> Iterable[tuple[bytes, bool]]:
        """Try one input after the other, for so long or so many times; yields each, and if it reached something new."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.tried != runs:
            data = self.next()
            yield data, self.try_it(try_one, reached, data)

    def try_it(self, try_one: Callable[[bytes], None], reached: set[int], data: bytes) -> bool:
        """Whether an input reaches what none has reached."""
        reached.clear()
        try_one(data)
        self.tried += 1
        if reached <= self.known:
            return False
        self.known |= reached
        self.kept.append(data)
        return True

    def next(self) -> bytes:
        """One that was kept, with a few changes."""
        chance = self._chance
        if not self.kept:
            return chance.randbytes(chance.randrange(1, 64))
        # What was found last is what is not understood yet.
        least = len(self.kept) * 3 // 4 if chance.random() < 0.5 else 0
        return self._changed(self.kept[chance.randrange(least, len(self.kept))])

    def changed(self, data: bytes, seed: int) -> bytes:
        """An input of somebody else's, with a few changes; the same for the same seed."""
        self._chance.seed(seed)
        return self._changed(data)

    def _changed(self, data: bytes) -> bytes:
        for _ in range(1 << self._chance.randrange(4)):
            data = self._chance.choice(self._CHANGES)(self, data)[: self._longest]
        return data

    # How one is changed.

    def _at(self, data: bytes) -> int:
        return self._chance.randrange(len(data) + 1)

    def _span(self, data: bytes) -> tuple[int, int]:
        start = self._at(data)
        return start, min(len(data), start + self._chance.choice((1, 1, 2, 4, 16, 64)))

    def _put(self, data: bytes, what: bytes) -> bytes:
        """Something between two bytes, or over as many as it has."""
        at = self._at(data)
        return data[:at] + what + data[at + self._chance.choice((0, len(what))) :]

    def _flip(self, data: bytes) -> bytes:
        if not data:
            return data
        at = self._chance.randrange(len(data))
        return data[:at] + bytes((data[at] ^ 1 << self._chance.randrange(8),)) + data[at + 1 :]

    def _byte(self, data: bytes) -> bytes:
        byte = self._chance.choice((self._chance.randrange(256), self._chance.choice(_BYTES)))
        return self._put(data, bytes((byte,)))

    def _noise(self, data: bytes) -> bytes:
        return self._put(data, self._chance.randbytes(self._chance.randrange(1, 9)))

    def _token(self, data: bytes) -> bytes:
        return self._put(data, self._chance.choice(self._tokens))

    def _drop(self, data: bytes) -> bytes:
        start, end = self._span(data)
        return data[:start] + data[end:]

    def _repeat(self, data: bytes) -> bytes:
        start, end = self._span(data)
        return self._put(data, data[start:end] * self._chance.choice((1, 1, 2, 8)))

    def _number(self, data: bytes) -> bytes:
        numbers = list(_DIGITS.finditer(data))
        if not numbers:
            return self._flip(data)
        start, end = self._chance.choice(numbers).span()
        near = b"%d" % (int(data[start:end][:18]) + self._chance.randrange(-2, 3))
        return data[:start] + self._chance.choice((near, self._chance.choice(_NUMBERS))) + data[end:]

    def _cross(self, data: bytes) -> bytes:
        other = self._chance.choice(self.kept or (data,))
        start = self._at(other)
        return data[: self._at(data)] + other[start:]

    _CHANGES: ClassVar[tuple[Callable[[Breed, bytes], bytes], ...]] = (
        *(_flip, _byte, _byte, _noise, _token, _token, _drop, _repeat, _number, _cross),
    )
