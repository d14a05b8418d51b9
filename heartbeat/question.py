"""One question to a model, from the asker's side: what the model says, in as many messages as the asker takes.

Text that was never written is joined. What has no room anywhere stays with the model, whose connection is not
read for so long; so that an answer costs two messages' worth of memory, however slow or far away its asker is.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Hashable
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure

from heartbeat.channel import Channel
from heartbeat.core.errors import PeerError, SessionFull
from heartbeat.core.messages import encode, error_frame
from heartbeat.core.session import MEMBERS
from heartbeat.ends import ServerEdge
from heartbeat.model import Answer, Model
from heartbeat.shared import ServerShared
from heartbeat.store import Append, Effect, Mark

__all__ = ["MARK", "InSession", "OnConnection", "Question"]

_log = Logger()

#: What stands before the id in the mark of a question.
MARK = "ai:"

# No room, and nobody who would tell when there is some: look again after so many seconds.
_LOOK_AGAIN = 1.0


class Question:
    """A question that is being answered: what the model said and the asker was not given yet, and the last word.

    Is a model's Hearer. `asker` is whose it is, and `key` its `name`, the id, as JSON. `over`: nothing follows any
    more, which `forget` is told.
    """

    def __init__(
        self,
        shared: ServerShared,
        name: str | int,
        client_id: str | None,
        asker: Hashable,
        forget: Callable[[Question], object],
    ) -> None:
        self.asker = asker
        self.key = json.dumps(name)
        self.over = False
        self._shared = shared
        self._forget = forget
        self._name = name
        self._client_id = client_id
        self._answer: Answer | None = None
        self._pieces: list[str] = []
        # The bytes of these in JSON, and how many there are in one message at most. A quarter of what is kept, or a
        # small bound would never have room.
        self._size = 0
        self._most = min(shared.settings.message_limit, shared.settings.kept_bytes // 4) - MEMBERS
        self._bare = len(self._delta(""))
        self._room = self._most - self._bare
        self._last: bytes | None = None
        self._passing = False
        self._timer: Any = None

    def ask(self, model: Model, text: str) -> None:
        """Ask the model."""
        if self.is_gone():
            self.drop()
        elif self._last is None:
            self._answer = model.ask(text, self)

    # What the model says.

    def said(self, text: str) -> None:
        """Hearer: more text."""
        self._pieces.append(text)
        self._size += len(self._delta(text)) - self._bare
        self.pass_on()

    def finished(self) -> None:
        """Hearer: the end."""
        self._end(encode({"type": "onaichat", "id": self._name, "status": "done"}))

    def failed(self, why: str) -> None:
        """Hearer: a bad end."""
        _log.info("an answer to {client_id} has failed: {why}", client_id=self._client_id, why=why)
        self._end(self._failure(why[: _fitting(self._failure, why, self._most)]))

    def break_off(self, why: str) -> None:
        """The same, without having heard all."""
        if self._last is None:
            self._abort()
            self.failed(why)

    def _end(self, last: bytes) -> None:
        if self._last is None:
            self._last = last
            self._answer = None
            self.pass_on()

    # What the asker gets.

    def pass_on(self) -> None:
        """Give the asker what there is, as far as he takes it; what he does not take, the model waits with."""
        if self._passing:
            return
        self._passing = True
        try:
            while not self.over and (self._size or self._last is not None) and self._pass_one():
                pass
        finally:
            self._passing = False
        if self._answer is not None:
            if self._size >= self._room:
                self._answer.pause()
            else:
                self._answer.resume()

    def drop(self) -> None:
        """Nobody is to be told anything any more."""
        if self.over:
            return
        self.over = True
        self._pieces.clear()
        self._untime()
        self._abort()
        self._forget(self)

    def _next(self) -> tuple[bytes, str]:
        """The message that is next, and the text that is then left."""
        if not self._size:
            return self._last or b"", ""
        text = "".join(self._pieces)
        length = len(text) if self._size <= self._room else _fitting(self._delta, text, self._most)
        return self._delta(text[:length]), text[length:]

    def _passed(self, left: str) -> bool:
        """That message is under way; whether it was the last."""
        if not self._size:
            self.over = True
            self._untime()
            self._forget(self)
            return True
        self._pieces = [left] if left else []
        self._size = len(self._delta(left)) - self._bare
        return False

    def _delta(self, text: str) -> bytes:
        return encode({"type": "onaichat", "id": self._name, "delta": text})

    def _failure(self, why: str) -> bytes:
        return error_frame(PeerError("ai-failed", why, self._name))

    def _abort(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.abort()

    def _look_again(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self._shared.ticker.reactor.callLater(seconds, self._looked)

    def _looked(self) -> None:
        self._timer = None
        self.pass_on()

    def _untime(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    # The two kinds of askers differ in these.

    def is_gone(self) -> bool:
        """Whether the asker will never come back."""
        raise NotImplementedError

    def _pass_one(self) -> bool:
        """Pass the next message on; False when that has to wait, and somebody will call."""
        raise NotImplementedError


class InSession(Question):
    """One in a session: its answer is numbered and kept, and a mark stands for it until its last word is."""

    def __init__(
        self, shared: ServerShared, name: str | int, channel: Channel, forget: Callable[[Question], object]
    ) -> None:
        super().__init__(shared, name, channel.session.client_id, channel, forget)
        self._channel = channel
        # Of ours, in the store: not committed, and so not known to the channel.
        self._under_way = 0
        self._awaits_written = self._awaits_room = False

    def is_gone(self) -> bool:
        """Question: with the session."""
        return bool(self._channel.ended)

    def _pass_one(self) -> bool:
        channel = self._channel
        if channel.ended:
            self.drop()
            return False
        if self._awaits_room or self._timer is not None or not (self._last is not None or self._may_append()):
            return False
        payload, left = self._next()
        try:
            channel.admit(len(payload))
        except SessionFull:
            self._await_room()
            return False
        is_last = self._passed(left)
        effects: list[Effect] = [Append(channel.session.sid, payload)]
        if is_last:
            effects.append(Mark(channel.session.sid, MARK + self.key, None))
        self._under_way += 1
        sessions = self._shared.sessions
        sessions.carry_out(sessions.store.append(effects), effects, then=self._committed, failed=self._not_committed)
        return True

    def _may_append(self) -> bool:
        """Whether a piece of the answer may go into the session: what never went out can still be joined."""
        channel = self._channel
        if self._under_way:
            return False
        if channel.is_written or (channel.connection is None and self._size >= self._room):
            return True
        if not self._awaits_written:
            self._awaits_written = True
            channel.when_written(self._written)
        return False

    def _written(self) -> None:
        self._awaits_written = False
        self.pass_on()

    def _await_room(self) -> None:
        if self._channel.session.is_full:
            self._awaits_room = True
            self._channel.when_room().addCallbacks(lambda _: self._has_room(), lambda _: self.drop())
        else:
            # There is room, but not for this; or all sessions together have none.
            self._look_again(_LOOK_AGAIN)

    def _has_room(self) -> None:
        self._awaits_room = False
        self.pass_on()

    def _committed(self) -> None:
        self._under_way -= 1
        self.pass_on()

    def _not_committed(self, failure: Failure) -> None:
        _log.warn("an answer to {client_id} is lost: {why}", client_id=self._client_id, why=failure.getErrorMessage())
        self.drop()


class OnConnection(Question):
    """One on a connection without a session: its answer is written, and is over with the connection."""

    def __init__(
        self, shared: ServerShared, name: str | int, edge: ServerEdge, forget: Callable[[Question], object]
    ) -> None:
        super().__init__(shared, name, edge.given_id, edge, forget)
        self._edge = edge

    def is_gone(self) -> bool:
        """Question: with the connection."""
        return self._edge.over

    def _pass_one(self) -> bool:
        if self._timer is not None:
            return False
        if self._edge.waits or self._edge.room() <= 0:
            # Nobody tells when it has read some, or was judged.
            self._look_again(self._shared.settings.tick)
            return False
        payload, left = self._next()
        self._passed(left)
        self._edge.write(payload)
        return True


def _fitting(encoded: Callable[[str], bytes], text: str, most: int) -> int:
    """How many characters of the text, from the first, go into a message of so many bytes; one at least."""
    lengths = range(min(len(text), most) + 1)
    return max(1, bisect_right(lengths, most, key=lambda length: len(encoded(text[:length]))) - 1)
