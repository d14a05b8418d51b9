"""One end of a session: what it has sent and the other has not handled, what it has received and not handled.

Both ends hold the mirror image of this. Knows no connection, no store and no clock: it is told what was
committed, what arrived and what was handled, and says what is to be written and what is owed. Messages
are numbered 1, 2, 3 … in each direction, for as long as the session lives.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from heartbeat.core.errors import CloseCode, PeerError, SessionFull, StateError, Violation

__all__ = ["ACK_EVERY", "MEMBERS", "Arrived", "Bounds", "Resume", "Session"]

#: So many messages handled and not yet acknowledged are acknowledged at once.
ACK_EVERY = 32

#: What a frame adds to a message, in bytes: `seq` and `ack`, with numbers as long as they get.
MEMBERS = 64


class Bounds(NamedTuple):
    """What a session keeps at most in one direction: messages, and the bytes of their JSON; and the largest frame."""

    messages: int
    bytes: int
    largest: int = 65_536


@dataclass(frozen=True, slots=True)
class Resume:
    """What a client says of the session it comes back to; `last` and `sent` are its own numbers."""

    sid: str = field(repr=False)
    epoch: str
    last: int
    sent: int
    attempt: int


class Arrived(NamedTuple):
    """A numbered message that waits for its handler, or the error that it deserves; `size` in bytes of JSON.

    One that has to wait for others is still the frame: decoded it may be twenty times as large.
    """

    seq: int
    message: dict[str, Any] | PeerError | bytes
    size: int


class Session:
    """One end of one session.

    `sent` is the highest number of ours that is committed, `confirmed` the highest that the other end has
    said it handled; between them lies what is kept. `received` is the highest of theirs accepted in
    order, `handled` the highest whose handler has finished and that is committed as such; only this is
    ever told. `attempt` counts the resumes (the wire's `try`), `fence` names the store's owner of it.
    """

    __slots__ = (
        "_admitted",
        "_admitted_bytes",
        "_kept",
        "_queue",
        "_queued_bytes",
        "_reached",
        "_running",
        "_stumbled_at",
        "_told",
        "_untold_bytes",
        "_written",
        "attempt",
        "bounds",
        "client_id",
        "confirmed",
        "epoch",
        "fence",
        "handled",
        "kept_bytes",
        "received",
        "sent",
        "sid",
    )

    def __init__(
        self,
        sid: str,
        epoch: str,
        client_id: str,
        bounds: Bounds,
        *,
        sent: int = 0,
        confirmed: int = 0,
        handled: int = 0,
        attempt: int = 0,
        fence: int = 0,
        kept: tuple[bytes, ...] = (),
    ) -> None:
        """A new session; with numbers, and what is kept above `confirmed`, one that a store remembers."""
        if len(kept) != sent - confirmed:
            raise StateError(f"a session that sent {sent} and had {confirmed} confirmed keeps not {len(kept)}")
        self.sid = sid
        self.epoch = epoch
        self.client_id = client_id
        self.bounds = bounds
        self.attempt = attempt
        self.fence = fence
        self.sent = sent
        self.confirmed = confirmed
        self._kept: deque[bytes] | None = deque(kept) if kept else None
        self.kept_bytes = sum(map(len, kept))
        # Room taken by what is on its way into the store.
        self._admitted = self._admitted_bytes = 0
        # The highest written on the present connection.
        self._written = confirmed
        # The highest that was ever written, in this process or before it.
        self._reached = sent
        # After a crash what was received and not handled comes again.
        self.received = self.handled = handled
        self._queue: deque[Arrived] | None = None
        self._queued_bytes = 0
        self._running: Arrived | None = None
        # The highest that was told on the present connection, and what was handled since, in bytes.
        self._told = handled
        self._untold_bytes = 0
        self._stumbled_at: tuple[int, int] | None = None

    # What goes out.

    @property
    def kept(self) -> tuple[bytes, ...]:
        """The messages that the other end has not said it handled, oldest first."""
        return tuple(self._kept or ())

    @property
    def is_full(self) -> bool:
        """Whether no further message has room, or none but a short one."""
        return self.count >= self.bounds.messages or self.weight >= self.bounds.bytes

    @property
    def is_written(self) -> bool:
        """Whether all that is committed was written on the present connection."""
        return self._written >= self.sent

    @property
    def given_away(self) -> int:
        """The highest number that the other end may have seen.

        What is kept above it was never written. Whoever comes back with an older copy of his session, and has sent
        more in it meanwhile, has given away less than the other end has received: so the gap is found.
        """
        return self._reached

    @property
    def is_storing(self) -> bool:
        """Whether anything is on its way into the store."""
        return self._admitted > 0

    @property
    def weight(self) -> int:
        """The bytes of all that is kept, and of what is on its way into the store."""
        return self.kept_bytes + self._admitted_bytes

    @property
    def count(self) -> int:
        """How many messages are kept, or on their way into the store."""
        return self.sent - self.confirmed + self._admitted

    def has_room(self, size: int) -> bool:
        """Whether a message of `size` bytes has room."""
        return self.count < self.bounds.messages and self.weight + size <= self.bounds.bytes

    def has_room_beyond(self, size: int) -> bool:
        """Whether an answer of `size` bytes has room, beyond the bound: up to twice as much."""
        return self.count < 2 * self.bounds.messages and self.weight + size <= 2 * self.bounds.bytes

    def half_full(self, size: int) -> bool:
        """Whether a message of `size` bytes more would take the session over half of its bound."""
        return (self.count + 1) * 2 > self.bounds.messages or (self.weight + size) * 2 > self.bounds.bytes

    def admit(self, size: int, *, beyond: bool = False) -> None:
        """Take room for a message on its way into the store, even `beyond` the bound. Raises SessionFull."""
        if not beyond and not self.has_room(size):
            kept, most = self.count, self.bounds
            raise SessionFull(
                f"{kept} messages of {self.weight} bytes wait to be confirmed, and at most {most.messages} of"
                f" {most.bytes} bytes are kept (settings kept_limit, kept_bytes)"
            )
        self._admitted += 1
        self._admitted_bytes += size

    def release(self, size: int) -> None:
        """Give back the room that `admit` took: the message has come into the store, or will not."""
        self._admitted -= 1
        self._admitted_bytes -= size

    def appended(self, seq: int, payload: bytes) -> None:
        """A message of ours is committed under its number; from now on it is kept, and may be written."""
        if seq != self.sent + 1:
            raise StateError(f"message {seq} was committed after message {self.sent}")
        self.sent = seq
        if self._kept is None:
            self._kept = deque()
        self._kept.append(payload)
        self.kept_bytes += len(payload)

    def next_frame(self) -> bytes | None:
        """The next message to write on the present connection, with its number and what we have handled; or None."""
        if self._kept is None or self._written >= self.sent:
            return None
        payload = self._kept[self._written - self.confirmed]
        self._written += 1
        self._reached = max(self._reached, self._written)
        return b'%b,"seq":%d,"ack":%d}' % (payload[:-1], self._written, self.tell())

    def confirm(self, upto: int) -> int:
        """The other end has handled all up to here; returns how many are forgotten. Raises Violation (4011)."""
        if upto > self.sent:
            raise Violation(CloseCode.BAD_ACK, f"ack {upto} is above what was sent")
        count = upto - self.confirmed
        if count <= 0 or self._kept is None:
            return 0
        for _ in range(count):
            self.kept_bytes -= len(self._kept.popleft())
        self.confirmed = upto
        self._written = max(self._written, upto)
        if not self._kept:
            self._kept = None
        return count

    # What comes in.

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits for its handler, and none is running."""
        return self._running is None and not self._queue

    @property
    def waiting(self) -> tuple[int, int]:
        """How many messages wait for their handlers or are with them, and the bytes of their JSON."""
        count = len(self._queue or ()) + (self._running is not None)
        return count, self._queued_bytes

    def take(self, seq: int, message: dict[str, Any] | PeerError | bytes, size: int, *, trusted: bool = False) -> bool:
        """A numbered message arrived; False when it is a duplicate. Raises Violation: 4010, or 1008 for too many.

        The number counts before anything else is judged. Who is `trusted` never sends too many.
        """
        if seq <= self.received:
            return False
        if seq != self.received + 1:
            raise Violation(CloseCode.GAP, f"message {seq} came after message {self.received}")
        # Answers go out beyond the bound, up to twice as much; and the other end may count its bytes in another way:
        # each message has room for the members that a session adds.
        waiting = seq - self.handled
        most = 2 * self.bounds.bytes + MEMBERS * waiting + 65_536
        if not trusted and (waiting > 2 * self.bounds.messages or self._queued_bytes + size > most):
            raise Violation(CloseCode.POLICY, "more than twice what limits.kept and limits.kept_bytes allow at once")
        self.received = seq
        if self._queue is None:
            self._queue = deque()
        self._queue.append(Arrived(seq, message, size))
        self._queued_bytes += size
        return True

    def next(self) -> Arrived | None:
        """The next message to handle; None while one is being handled, or where there is none."""
        if self._running is not None or not self._queue:
            return None
        self._running = self._queue.popleft()
        return self._running

    def finished(self) -> None:
        """The handler of the message that `next` gave has finished, and that is committed."""
        arrived, self._running = self._running, None
        if arrived is None:
            raise StateError("finished, and nothing was being handled")
        self.handled = arrived.seq
        self._queued_bytes -= arrived.size
        self._untold_bytes += arrived.size
        if not self._queue:
            self._queue = None

    @property
    def owes(self) -> bool:
        """Whether anything was handled that the other end has not been told."""
        return self.handled > self._told

    @property
    def owes_much(self) -> bool:
        """Whether so much was handled since it was told that it is to be told at once."""
        return self.handled - self._told >= ACK_EVERY or self._untold_bytes * 4 >= self.bounds.bytes

    def tell(self) -> int:
        """What `ack` says in a frame that goes out now."""
        self._told = self.handled
        self._untold_bytes = 0
        return self.handled

    # Coming back.

    def judge(self, last: int, sent: int) -> bool:
        """Whether the other end's numbers fit ours: nothing is missing on either side."""
        return self.confirmed <= last <= self.sent and sent >= self.received

    def resume(self, last: int) -> None:
        """A new connection carries the session on; the other end has handled all up to `last`.

        What we have handled was told by `tell`, in the opening or in its answer; what was handled since is owed.
        """
        self.confirm(last)
        self._written = self.confirmed

    def stumble(self) -> bool:
        """A rule was broken on a live connection; True when it is the second time with no progress between."""
        before, self._stumbled_at = self._stumbled_at, (self.confirmed, self.received)
        return before == self._stumbled_at
