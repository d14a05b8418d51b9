"""How much all sessions keep, and on whose account: each identity and each address has its share and no more.

Counts only; who is to go when there is too much is somebody else's to say.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["ALL", "Accounts"]

#: The account of all together.
ALL = ""

# One identity or address has this part of the room of all.
_SHARE = 16


class Accounts:
    """Bytes by the names of those who keep them; `most` is what all may keep together."""

    __slots__ = ("_booked", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self._booked: dict[str, int] = {}

    def __len__(self) -> int:
        """How many accounts are not empty."""
        return len(self._booked)

    def on(self, account: str) -> int:
        """The bytes on an account."""
        return self._booked.get(account, 0)

    def book(self, accounts: Sequence[str], size: int) -> None:
        """So many bytes more, or less, on these accounts, and on that of all."""
        for account in (ALL, *accounts):
            left = self._booked.get(account, 0) + size
            if left:
                self._booked[account] = left
            else:
                self._booked.pop(account, None)

    def overdrawn(self, accounts: Sequence[str], size: int) -> str | None:
        """The first account on which `size` bytes more are too many, that of all last; None where there is room."""
        for account in accounts:
            if self.on(account) + size > self.most // _SHARE:
                return account
        return ALL if self.on(ALL) + size > self.most else None

    def clear(self) -> None:
        """Forget all."""
        self._booked.clear()
