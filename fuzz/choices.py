"""Bytes as a source of decisions: whoever changes the bytes changes what happens, and the same bytes decide alike.

Where they end, whatever is drawn is the first there is: every input is a whole life.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["Choices"]

Thing = TypeVar("Thing")


class Choices(random.Random):
    """A `random.Random` all of whose chance is these bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(0)
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes have decided nothing yet."""
        return max(0, len(self._data) - self._at)

    def byte(self) -> int:
        """The next byte; 0 when there is none."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def bytes(self, count: int) -> bytes:
        """So many bytes as they stand, fewer where they end."""
        self._at += count
        return self._data[self._at - count : self._at]

    def pick(self, things: Sequence[Thing]) -> Thing:
        """One of up to 256 things, by one byte."""
        return things[self.byte() % len(things)]

    # What `random.Random` makes everything else of.

    def random(self) -> float:
        """A number from [0, 1), by two bytes."""
        return (self.byte() << 8 | self.byte()) / 65_536

    def getrandbits(self, k: int) -> int:
        """So many bits, by as many bytes as they take."""
        return int.from_bytes(self.bytes((k + 7) // 8)) & ((1 << k) - 1)

    def seed(self, a: object = None, version: int = 2) -> None:
        """Has no say."""
