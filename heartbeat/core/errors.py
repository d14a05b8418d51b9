"""Whose fault it is: ours (loud, a bug), the user's (one sentence), or the peer's (an error frame or a close).

Nothing here is ever raised and swallowed: the edge turns `PeerError` into an answer, `SettingError`
into a refusal to start, and lets `StateError` be the bug that it is.
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Any

__all__ = [
    "CloseCode",
    "HeartbeatError",
    "PeerError",
    "SessionFull",
    "SettingError",
    "StateError",
    "StoreError",
    "Unauthorized",
    "Unconfirmed",
    "Unreachable",
    "Violation",
    "is_final_close",
    "is_final_http",
]


class HeartbeatError(Exception):
    """The base of everything this package raises."""


class SettingError(HeartbeatError, ValueError):
    """A setting outside its bounds, or two that contradict each other.

    `name` is the setting's, `value` what was given, `bound` what would have been right.
    """

    def __init__(self, name: str, value: object, bound: str) -> None:
        super().__init__(f"{name} must be {bound}, not {value!r}")
        self.name = name
        self.value = value
        self.bound = bound


class StateError(HeartbeatError):
    """An input that the table does not list: a bug of ours. Nothing has changed."""


class PeerError(HeartbeatError):
    """What the peer sent cannot be taken: becomes an `error` frame, the connection stays open.

    `code` is the wire's word for it, `re` the type or the id of what it is about, or None.
    """

    def __init__(self, code: str, detail: str, re: str | int | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.re = re


class Violation(HeartbeatError):
    """The peer broke a rule on which the session rests: the connection closes with `code`, the session may go on."""

    def __init__(self, code: CloseCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class StoreError(HeartbeatError):
    """The store of sessions cannot be used: what is wrong, in a sentence with its name."""


class Unauthorized(HeartbeatError):
    """An `Authenticator` lets somebody not in: closes 4401 with this sentence, which the other end can read."""


class SessionFull(HeartbeatError):
    """`send()` at the bound of what a session keeps: nothing was kept of this message."""


class Unconfirmed(HeartbeatError):
    """Messages that the other end never said it had handled.

    `messages` are those messages, in the order they were sent; `reason` is one word of the wire's.
    """

    def __init__(self, messages: tuple[dict[str, Any], ...], reason: str) -> None:
        super().__init__(f"{len(messages)} message(s) were never confirmed: {reason}")
        self.messages = messages
        self.reason = reason


class Unreachable(HeartbeatError):
    """The client has used up its attempts, or was refused for good; `retry()` tries again."""


@unique
class CloseCode(IntEnum):
    """The close codes that we send or judge (RFC 6455, section 7.4, and 4000-4999 of our own)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_PAYLOAD = 1007
    POLICY = 1008
    TOO_BIG = 1009
    EXTENSION_REQUIRED = 1010
    INTERNAL_ERROR = 1011
    RESTART = 1012
    OVERLOAD = 1013
    HEARTBEAT_TIMEOUT = 4000
    SUPERSEDED = 4001
    SLOW_CONSUMER = 4008
    GAP = 4010
    BAD_ACK = 4011
    BAD_REQUEST = 4400
    UNAUTHORIZED = 4401
    FORBIDDEN_ORIGIN = 4403


_FINAL_CLOSES = frozenset({1000, 1002, 1003, 1007, 1008, 1009, 1010})
_FINAL_HTTP = frozenset({400, 401, 403, 404, 426})


def is_final_close(code: int | None) -> bool:
    """Whether a client that was closed with `code` must not come back; None (no close frame) is not final."""
    return code in _FINAL_CLOSES or (code is not None and 4400 <= code <= 4499)


def is_final_http(status: int | None) -> bool:
    """Whether a client whose handshake was refused with this HTTP status must not come back."""
    return status in _FINAL_HTTP
