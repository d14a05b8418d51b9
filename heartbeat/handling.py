"""A message on its way through an application's handler, and everything that is to follow from it.

What follows takes effect with the note that the message was handled, in one transaction of the store, or
not at all. So a crash between the two is never seen by anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred, ensureDeferred, fail

from heartbeat.core.errors import PeerError
from heartbeat.core.messages import encode, re_of
from heartbeat.core.session import MEMBERS, Session
from heartbeat.quiet import QuietDeferred
from heartbeat.store import Append, Effect, Mark

__all__ = ["Handling", "Recipient", "call", "check_size", "encode_for_others", "encode_message"]

_RESERVED = frozenset({"onopen", "ping", "ack", "error", "drain"})


class Recipient(Protocol):
    """Whoever has a session that messages can be appended to."""

    session: Session

    def admit(self, size: int, *, beyond: bool = False) -> None:
        """Take room for a message of so many bytes, even `beyond` the bound. Raises SessionFull."""
        ...

    def release(self, size: int) -> None:
        """Give that room back."""
        ...


def encode_message(message: dict[str, Any]) -> bytes:
    """An application message as JSON. Raises TypeError or ValueError, with one sentence."""
    kind = message.get("type") if isinstance(message, dict) else None
    if not isinstance(kind, str):
        raise TypeError("a message is a dict with a type that is text")
    if kind in _RESERVED:
        raise ValueError(f"messages of type {kind} are the heartbeat's own")
    if "seq" in message or "ack" in message:
        raise ValueError("seq and ack in a message are the session's own")
    return encode(message)


def encode_for_others(message: dict[str, Any], most: int, about: dict[str, Any]) -> bytes:
    """A message to others that follows from another. Raises PeerError when it is too long by what we add."""
    payload = encode(message)
    if len(payload) + MEMBERS > most:
        raise PeerError("too-big", "the message is too long to be passed on", re_of(about))
    return payload


def check_size(session: Session, payload: bytes) -> None:
    """See that the other end takes a message of this size: it would close on what is larger, each time it comes again.

    Raises ValueError.
    """
    most = session.bounds.largest - MEMBERS
    if len(payload) > most:
        raise ValueError(f"a message is at most {most} bytes of JSON, not {len(payload)} (setting message_limit)")


def call(handler: Callable[..., object], *arguments: Any) -> Deferred[Any] | None:
    """Call a handler: a Deferred where it takes its time or has failed, None where it has finished."""
    try:
        result = handler(*arguments)
    except Exception:  # noqa: BLE001  # a handler may raise anything; its failure goes on in the Deferred
        return fail()
    if isinstance(result, QuietDeferred):
        # That of a `send`, as a lambda returns it. To wait for it would be to wait for the other end's handler.
        return None
    if isinstance(result, Deferred):
        return result
    if hasattr(result, "__await__"):
        return ensureDeferred(result)  # type: ignore[arg-type]  # any awaitable coroutine will do
    return None


class Handling:
    """One message that is being handled.

    `client_id` is who sent it, `sender` his session, None where he has none. `sid` and `seq` name the message
    for good, so that a handler with effects outside the store can tell one that came again after a crash;
    without a session `sid` is None, without a number `seq` is. What `reply`, `append` and `mark` are told takes
    effect when the handler has finished; of one that fails, nothing does.
    """

    __slots__ = ("_taken", "_write", "client_id", "effects", "sender", "seq")

    def __init__(
        self, sender: Recipient | None, seq: int | None, client_id: str | None, write: Callable[[bytes], object]
    ) -> None:
        self.sender = sender
        self._write = write
        self._taken: list[tuple[Recipient, int]] = []
        self.seq = seq
        self.client_id = client_id
        self.effects: list[Effect | bytes] = []

    @property
    def sid(self) -> str | None:
        """The sender's session."""
        return None if self.sender is None else self.sender.session.sid

    def reply(self, message: dict[str, Any]) -> None:
        """Answer the sender: in its session, beyond the bound too, or else on its connection."""
        payload = encode_message(message)
        if self.sender is None:
            self.effects.append(payload)
        else:
            check_size(self.sender.session, payload)
            self.append_payload(self.sender, payload, beyond=True)

    def append(self, recipient: Recipient, message: dict[str, Any], receipt: str | None = None) -> None:
        """Send a message in another session. Raises SessionFull when that has no room, ValueError for one too large."""
        payload = encode_message(message)
        check_size(recipient.session, payload)
        self.append_payload(recipient, payload, receipt)

    def append_payload(
        self, recipient: Recipient, payload: bytes, receipt: str | None = None, *, beyond: bool = False
    ) -> None:
        """The same for a message that is JSON already."""
        recipient.admit(len(payload), beyond=beyond)
        self._taken.append((recipient, len(payload)))
        self.effects.append(Append(recipient.session.sid, payload, receipt))

    def follow(self, effect: Effect) -> None:
        """Have an effect carried out that takes no room here."""
        self.effects.append(effect)

    def mark(self, sid: str, key: str, value: str | None) -> None:
        """Remember a text for a session, for as long as that lives; None forgets it."""
        self.effects.append(Mark(sid, key, value))

    def forget(self) -> None:
        """Nothing is to follow after all."""
        for recipient, size in self._taken:
            recipient.release(size)
        self._taken.clear()
        self.effects.clear()

    def settle(self) -> list[Effect]:
        """The effects for the store; what goes to a connection without a session goes out now."""
        effects: list[Effect] = []
        for effect in self.effects:
            if isinstance(effect, bytes):
                self._write(effect)
            else:
                effects.append(effect)
        return effects
