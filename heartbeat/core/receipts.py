"""Who waits to be told what became of a message that is kept in several sessions: once, of the best news there is.

A receipt is a text that begins with its sender's name and a slash. Copies of one message share it.
"""

from __future__ import annotations

__all__ = ["Receipts"]


class Receipts:
    """How many copies with each receipt are kept, and how many receipts each sender waits for."""

    __slots__ = ("_awaited", "_copies")

    def __init__(self) -> None:
        self._copies: dict[str, int] = {}
        self._awaited: dict[str, int] = {}

    def noted(self, receipt: str) -> None:
        """One more copy is kept."""
        copies = self._copies.get(receipt, 0)
        self._copies[receipt] = copies + 1
        if not copies:
            self._await(receipt, 1)

    def settled(self, receipt: str, *, confirmed: bool) -> int:
        """A copy was confirmed, or lost; how many copies there were, if the sender is to be told by that, else 0.

        That is when the first is confirmed, or the last is lost.
        """
        copies = self._copies.get(receipt, 0)
        if copies > 1 and not confirmed:
            self._copies[receipt] = copies - 1
            return 0
        if copies:
            del self._copies[receipt]
            self._await(receipt, -1)
        return copies

    def awaited(self, sender: str) -> int:
        """How many messages of a sender have yet to be told of."""
        return self._awaited.get(sender, 0)

    def clear(self) -> None:
        """Forget all."""
        self._copies.clear()
        self._awaited.clear()

    def _await(self, receipt: str, count: int) -> None:
        sender = receipt.partition("/")[0]
        left = self._awaited.get(sender, 0) + count
        if left:
            self._awaited[sender] = left
        else:
            del self._awaited[sender]
