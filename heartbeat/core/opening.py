"""The two halves of an opening at level 1: what a client asks for, and what the server declares.

Reads the members of an `onopen` and of its answer, and refuses what they must not say. Decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from heartbeat.core.errors import PeerError
from heartbeat.core.messages import number_of
from heartbeat.core.session import Bounds, Resume
from heartbeat.core.settings import BEATS, is_client_id

__all__ = ["Declared", "Opening", "declared", "opening"]

# A name of a session or of a store's contents is shorter; what is longer is somebody's attempt to have us keep it.
_NAME = 128
# Nobody tries so often; a JSON library may make a float of more.
_MOST = 2**53


@dataclass(frozen=True, slots=True)
class Opening:
    """What a client asks for: `interval` in seconds, None where it wishes nothing; `claimed` is who it says it is."""

    beats: str | None
    interval: float | None
    claimed: str | None
    token: str | None = field(repr=False)
    resume: Resume | None


@dataclass(frozen=True, slots=True)
class Declared:
    """The session that a server declares; `window` in seconds, `reason` why an older one was not resumed."""

    # Whoever knows it can resume the session: it has no business in a log.
    sid: str = field(repr=False)
    epoch: str
    client_id: str
    resumed: bool
    reason: str
    last: int
    sent: int
    window: float
    bounds: Bounds


def opening(message: dict[str, Any]) -> Opening:
    """What an `onopen` with `v` asks for. Raises PeerError."""
    version, beats = message["v"], message.get("beats")
    if type(version) is not int or version < 1:
        raise _wrong("v must be a whole number from 1")
    if beats is not None and beats not in BEATS:
        raise _wrong("beats must be one of " + ", ".join(BEATS))
    interval = message.get("interval_ms")
    if interval is not None and (type(interval) not in (int, float) or not interval > 0):
        raise _wrong("interval_ms must be a number above 0")
    claimed = message.get("client_id")
    if claimed is not None and not is_client_id(claimed):
        raise _wrong("client_id must be 1 to 64 visible ASCII characters")
    token = message.get("token")
    if token is not None and type(token) is not str:
        raise _wrong("token must be text")
    session = message.get("session")
    if session is not None and type(session) is not dict:
        raise _wrong("session must be null or an object")
    # A whole number on the wire may be too long for a float; a day is longer than anything we grant.
    seconds = None if interval is None else min(interval, 86_400_000) / 1000
    return Opening(beats, seconds, claimed, token, None if session is None else _resume(session))


def _resume(session: dict[str, Any]) -> Resume:
    sid, epoch = session.get("sid"), session.get("epoch")
    if not (_is_name(sid) and _is_name(epoch)):
        raise _wrong(f"session.sid and session.epoch must be 1 to {_NAME} printable characters")
    numbers = [session.get(name) for name in ("last", "sent", "try")]
    if not all(type(number) is int and 0 <= number < _MOST for number in numbers):
        raise _wrong("session.last, session.sent and session.try must be whole numbers from 0")
    return Resume(sid, epoch, *numbers)  # type: ignore[arg-type]  # looked at above


def declared(answer: dict[str, Any], own: Bounds) -> Declared | None:
    """The session in a level-1 answer, None where the server has none; its bounds are `own` at most.

    Raises PeerError.
    """
    sid = answer.get("sid")
    if sid is None:
        return None
    epoch, client_id = answer.get("epoch"), answer.get("client_id")
    if not (_is_name(sid) and _is_name(epoch) and is_client_id(client_id)):
        raise _wrong("an answer with a sid has an epoch and a client_id")
    reason = answer.get("reason")
    limits = answer.get("limits")
    limits = limits if type(limits) is dict else {}
    window = number_of(answer, "window_ms", 1)
    return Declared(
        sid=sid,
        epoch=epoch,  # type: ignore[arg-type]  # looked at above
        client_id=client_id,  # type: ignore[arg-type]  # looked at above
        resumed=answer.get("resumed") is True,
        reason=reason if type(reason) is str and reason else "unknown",
        last=number_of(answer, "last", 0) or 0,
        sent=number_of(answer, "sent", 0) or 0,
        window=120.0 if window is None else min(window, _MOST) / 1000,
        bounds=Bounds(
            min(own.messages, number_of(limits, "kept", 1) or own.messages),
            min(own.bytes, number_of(limits, "kept_bytes", 1) or own.bytes),
            min(own.largest, number_of(limits, "message", 1) or own.largest),
        ),
    )


def _is_name(value: object) -> bool:
    # A lone surrogate, which no store and no frame can take, is not printable either.
    return type(value) is str and 0 < len(value) <= _NAME and value.isprintable()


def _wrong(detail: str) -> PeerError:
    return PeerError("bad-message", detail, "onopen")
