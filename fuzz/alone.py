"""One end of a session, and the receipts, each beside a model: after the same steps the same is known of both."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from operator import attrgetter
from typing import Any, ClassVar

from fuzz.choices import Choices
from fuzz.targets import Broken
from heartbeat.core.errors import SessionFull, StateError, Violation
from heartbeat.core.receipts import Receipts
from heartbeat.core.session import ACK_EVERY, MEMBERS, Bounds, Session

__all__ = ["Alone", "Waiting"]

_PAYLOADS = (b'{"type":"x"}', b'{"type":"y","n":7}', b'{"type":"z","t":"%b"}' % (b"t" * 200), '{"ü":"}{"}'.encode())
_NAMES = (
    *("sent", "confirmed", "received", "handled", "kept", "kept_bytes", "weight", "count", "is_full"),
    *("is_written", "is_storing", "given_away", "is_idle", "waiting", "owes", "owes_much"),
)
_values = attrgetter(*_NAMES)
_BOUNDS = (Bounds(4, 4096), Bounds(1, 64), Bounds(40, 100_000), Bounds(8, 300))


class Alone:
    """A session, and what must be true of it in lists and plain numbers."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self.bounds = choices.pick(_BOUNDS)
        self.session = Session("s", "e", "alice", self.bounds)
        self.payloads: list[bytes] = []
        self.confirmed = self.written = self.reached = 0
        self.admitted: list[int] = []
        self.arrived: list[int] = []
        self.handled = self.told = self.untold_bytes = 0
        self.is_running = False
        self.stumbled_at: tuple[int, int] | None = None

    def step(self) -> None:
        """Something happens to both, and both know the same of it."""
        self._choices.pick(self._STEPS)(self)
        known, expected = self._known(), self._expected()
        wrong = {name: (known[name], value) for name, value in expected.items() if known[name] != value}
        if wrong:
            raise Broken(f"known, and expected: {wrong}")

    def finish(self) -> None:
        """All that is kept goes out once more to who comes back, and all that arrived is handled."""
        self.session.resume(self.confirmed)
        self.written = self.confirmed
        while self._write():
            pass
        while self.is_running or self.handled < len(self.arrived):
            self._finish() if self.is_running else self._begin()
        self.step()

    # What both know.

    def _known(self) -> dict[str, object]:
        session = self.session
        known = dict(zip(_NAMES, _values(session), strict=True))
        return known | {"room": (session.has_room(18), session.has_room_beyond(18), session.half_full(18))}

    def _expected(self) -> dict[str, object]:
        sent, received, bounds = len(self.payloads), len(self.arrived), self.bounds
        kept = tuple(self.payloads[self.confirmed :])
        size = sum(map(len, kept))
        count, weight = len(kept) + len(self.admitted), size + sum(self.admitted)
        return {
            "sent": sent,
            "confirmed": self.confirmed,
            "received": received,
            "handled": self.handled,
            "kept": kept,
            "kept_bytes": size,
            "weight": weight,
            "count": count,
            "is_full": count >= bounds.messages or weight >= bounds.bytes,
            "is_written": self.written == sent,
            "is_storing": bool(self.admitted),
            "given_away": self.reached,
            "is_idle": received == self.handled,
            "waiting": (received - self.handled, sum(self.arrived[self.handled :])),
            "owes": self.told < self.handled,
            "owes_much": self.handled - self.told >= ACK_EVERY or self.untold_bytes >= bounds.bytes / 4,
            "room": (
                count + 1 <= bounds.messages and weight + 18 <= bounds.bytes,
                count + 1 <= 2 * bounds.messages and weight + 18 <= 2 * bounds.bytes,
                count + 1 > bounds.messages / 2 or weight + 18 > bounds.bytes / 2,
            ),
        }

    # The steps.

    def _near(self, least: int = 0) -> int:
        """A number near one that matters."""
        marks = (self.confirmed, len(self.payloads), len(self.arrived), self.handled, self.written, 0, 2**53)
        return max(least, self._choices.pick(marks) + self._choices.byte() % 5 - 2)

    def _raises(self, error: type[Exception] | None, step: Callable[..., Any], *arguments: Any, code: int = 0) -> Any:
        """What the step returns; it raises this error, or none, and then returns None."""
        try:
            result = step(*arguments)
        except (SessionFull, StateError, Violation) as raised:
            if error is not type(raised) or getattr(raised, "code", 0) != code:
                raise Broken(f"{step.__name__}{arguments} raises {raised!r}, not {error} {code}") from raised
            return None
        if error is not None:
            raise Broken(f"{step.__name__}{arguments} does not raise {error} {code}")
        return result

    def _admit(self) -> None:
        size, beyond = len(self._choices.pick(_PAYLOADS)), self._choices.byte() % 3 == 0
        expected = self._expected()
        has_room = expected["count"] < self.bounds.messages and expected["weight"] + size <= self.bounds.bytes  # type: ignore[operator]  # numbers
        if beyond:
            self.session.admit(size, beyond=True)
        else:
            self._raises(None if has_room else SessionFull, self.session.admit, size)
        if beyond or has_room:
            self.admitted.append(size)

    def _release(self) -> None:
        if self.admitted:
            self.session.release(self.admitted.pop(self._choices.byte() % len(self.admitted)))

    def _append(self) -> None:
        payload, seq = self._choices.pick(_PAYLOADS), len(self.payloads) + 1
        self.session.appended(seq, payload)
        self.payloads.append(payload)

    def _append_wrongly(self) -> None:
        seq = self._near()
        if seq != len(self.payloads) + 1:
            self._raises(StateError, self.session.appended, seq, _PAYLOADS[0])

    def _write(self) -> bool:
        frame = self.session.next_frame()
        if frame is None:
            if self.written != len(self.payloads):
                raise Broken("something is left to write, and is not written")
            return False
        payload = self.payloads[self.written]
        self.written += 1
        self.reached = max(self.reached, self.written)
        self.told, self.untold_bytes = self.handled, 0
        if json.loads(frame) != json.loads(payload) | {"seq": self.written, "ack": self.handled}:
            raise Broken(f"message {self.written} is written as {frame!r}")
        if len(frame) > len(payload) + MEMBERS or not frame.startswith(payload[:-1]):
            raise Broken(f"{payload!r} has become {frame!r}")
        return True

    def _confirm(self) -> None:
        upto = self._near()
        too_far = upto > len(self.payloads)
        forgotten = self._raises(Violation if too_far else None, self.session.confirm, upto, code=4011 * too_far)
        if not too_far:
            if forgotten != max(0, upto - self.confirmed):
                raise Broken(f"{forgotten} are forgotten by ack {upto}, after {self.confirmed}")
            self.confirmed = max(self.confirmed, upto)
            self.written = max(self.written, self.confirmed)

    def _take(self) -> None:
        """The next message, or its like."""
        nexts = (len(self.arrived) + 1,) * 3
        self._arrive(self._choices.pick((*nexts, self._near(1))))

    def _arrive(self, seq: int) -> None:
        size, trusted = self._choices.pick((12, 18, 300, 70_000)), self._choices.byte() % 4 == 0
        received, waiting = len(self.arrived), seq - self.handled
        queued = sum(self.arrived[self.handled :])
        most = 2 * self.bounds.bytes + MEMBERS * waiting + 65_536
        code = 0
        if seq > received + 1:
            code = 4010
        elif seq == received + 1 and not trusted and (waiting > 2 * self.bounds.messages or queued + size > most):
            code = 1008
        step = lambda: self.session.take(seq, {"n": seq}, size, trusted=trusted)  # noqa: E731  # with its arguments
        taken = self._raises(Violation if code else None, step, code=code)
        if taken is not (None if code else seq == received + 1):
            raise Broken(f"message {seq} after {received}: taken is {taken}")
        if taken:
            self.arrived.append(size)

    def _begin(self) -> None:
        arrived = self.session.next()
        expected = None
        if not self.is_running and self.handled < len(self.arrived):
            self.is_running = True
            expected = (self.handled + 1, {"n": self.handled + 1}, self.arrived[self.handled])
        if arrived != expected:
            raise Broken(f"{arrived} is to be handled, and not {expected}")

    def _finish(self) -> None:
        self._raises(None if self.is_running else StateError, self.session.finished)
        if self.is_running:
            self.untold_bytes += self.arrived[self.handled]
            self.handled += 1
            self.is_running = False

    def _tell(self) -> None:
        if self.session.tell() != self.handled:
            raise Broken("what is told was not handled")
        self.told, self.untold_bytes = self.handled, 0

    def _judge(self) -> None:
        last, sent = self._near(), self._near()
        fits = self.confirmed <= last <= len(self.payloads) and sent >= len(self.arrived)
        if self.session.judge(last, sent) is not fits:
            raise Broken(f"who has handled {last} and sent {sent} fits, or not, wrongly")

    def _resume(self) -> None:
        last = self._near()
        too_far = last > len(self.payloads)
        self._raises(Violation if too_far else None, self.session.resume, last, code=4011 * too_far)
        if not too_far:
            self.confirmed = self.written = max(self.confirmed, last)

    def _crash(self) -> None:
        """What is committed is left of it."""
        kept = tuple(self.payloads[self.confirmed :])
        numbers = {"sent": len(self.payloads), "confirmed": self.confirmed, "handled": self.handled}
        self.session = Session("s", "e", "alice", self.bounds, **numbers, kept=kept)
        self.written, self.reached, self.admitted = self.confirmed, len(self.payloads), []
        del self.arrived[self.handled :]
        self.told, self.untold_bytes, self.is_running, self.stumbled_at = self.handled, 0, False, None

    def _stumble(self) -> None:
        now = self.confirmed, len(self.arrived)
        if self.session.stumble() is not (self.stumbled_at == now):
            raise Broken("progress is seen where there is none, or the other way round")
        self.stumbled_at = now

    def _many(self) -> None:
        """So much is handled that it is to be told."""
        for _ in range(self._choices.byte() % 40):
            self._arrive(len(self.arrived) + 1)
            self._begin()
            if self.is_running:
                self._finish()

    _STEPS: ClassVar[tuple[Callable[[Any], object], ...]] = (
        *(_append, _append, _write, _write, _confirm, _take, _take, _begin, _finish, _tell, _admit, _release),
        *(_append_wrongly, _judge, _resume, _crash, _stumble, _many, _write, _confirm, _begin, _finish),
    )


class Waiting:
    """The receipts, and a bag of copies."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self.receipts = Receipts()
        self.copies: Counter[str] = Counter()

    def step(self) -> None:
        """A copy more or less, and every sender waits for as many as before or one more or less."""
        names = ("alice/1", "alice/2", "bob/1", "bob", "a/b/c", "/", "ü/1")
        what, receipt = self._choices.byte() % 8, self._choices.pick(names)
        if what < 4:
            self.receipts.noted(receipt)
            self.copies[receipt] += 1
        elif what < 7:
            confirmed = what == 4
            copies = self.copies[receipt]
            told = self.receipts.settled(receipt, confirmed=confirmed)
            is_over = confirmed or copies <= 1
            if told != (copies if is_over else 0):
                raise Broken(f"of {copies} copies of {receipt}, {told} are told of")
            self.copies[receipt] = 0 if is_over else copies - 1
        else:
            self.receipts.clear()
            self.copies.clear()
        for sender in {name.partition("/")[0] for name in names}:
            awaited = sum(count > 0 and name.partition("/")[0] == sender for name, count in self.copies.items())
            if self.receipts.awaited(sender) != awaited:
                raise Broken(f"{sender} waits for {self.receipts.awaited(sender)}, and not for {awaited}")

    def finish(self) -> None:
        """When all is settled nobody waits."""
        for receipt, count in self.copies.items():
            for _ in range(count):
                self.receipts.settled(receipt, confirmed=False)
        if any(self.receipts.awaited(name.partition("/")[0]) for name in self.copies):
            raise Broken("somebody waits, and all is settled")
