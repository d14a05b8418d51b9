"""One server asks all servers of a fleet the same, and gathers what they answer.

What is asked is published, and each answer to whoever asked; nothing of it is kept. Redis says how many were told, so
it is known when all of them have answered. Who has not after a while, or has no ear at Redis just now, is missing.

A question holds for as long as somebody waits for its answers, by Redis' time: what was asked before a server stood
still, or Redis did, is not done later, when whoever asked has been told that it was not. Nor is it done twice, though
it may be published twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, NamedTuple, NoReturn

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from heartbeat.core.errors import StoreError

__all__ = ["Gathered", "Gatherer"]

_log = Logger()

# Seconds until who has not answered is missing.
_PATIENCE = 2.0
# Questions of ours that may be out: whoever asks more often is told so.
_MOST = 16
# Servers of which the last question is remembered.
_ASKERS = 1000

_NODE = re.compile("[0-9a-f]{16}")


class Gathered(NamedTuple):
    """What was answered, by the names of the servers, our own first; and how many servers there are besides."""

    answers: dict[str, Any]
    missing: int


class Gatherer:
    """One server's part in that: `node` is its name, `channels` are where it listens, each with what hears it.

    `publish` tells what is to be told to whoever listens on a channel, until a moment of Redis' time in milliseconds,
    and fires with their number; `redis_time` is what that is by now. `answering` is asked with a word, and with what
    belongs to it; it, or its Deferred, answers with what is JSON, or with None, and then is missing.
    """

    def __init__(
        self,
        node: str,
        name: str,
        database: int,
        publish: Callable[[str, bytes, int | None], Deferred[int]],
        redis_time: Callable[[], int],
    ) -> None:
        self.node = node
        self.answering: Callable[[str, dict[str, Any]], Any] = lambda word, about: None
        self._name = name
        self._database = database
        self._publish = publish
        self._redis_time = redis_time
        self._numbers = count(1)
        self._rounds: dict[int, _Round] = {}
        self._last_of: dict[str, int] = {}
        # Channels are common to all databases.
        self._all = f"{name}@{database}"
        self.channels: Mapping[str, Callable[[bytes], object]] = dict.fromkeys(
            (self._all, self._channel_of(node)), self._hear
        )

    def _channel_of(self, node: str) -> str:
        return f"{self._name}:{node}@{self._database}"

    def ask(self, word: str, about: dict[str, Any], *, nodes: int, is_up: bool, reactor: Any) -> Deferred[Gathered]:
        """Ask all; there are so many `nodes`, or more. Where Redis is not up only ourselves: all others are missing."""
        asked = _Round(self._answer(word, about), nodes, self.node)
        if not is_up:
            asked.told(0)
            return asked.done
        return self._ask(asked, self._all, word, about, reactor)

    def ask_one(self, node: str, word: str, about: dict[str, Any], *, is_up: bool, reactor: Any) -> Deferred[Gathered]:
        """Ask one server, which may be ourselves. Where there is none of that name nobody is missing."""
        if node == self.node:
            return self.ask(word, about, nodes=1, is_up=False, reactor=reactor)
        if not is_up or not _NODE.fullmatch(node):
            return succeed(Gathered({}, 0 if is_up else 1))
        return self._ask(_Round(succeed(None), 0, self.node), self._channel_of(node), word, about, reactor)

    def _ask(self, asked: _Round, channel: str, word: str, about: dict[str, Any], reactor: Any) -> Deferred[Gathered]:
        if len(self._rounds) >= _MOST:
            # They are missing, as if they had no time for it.
            asked.is_late()
            return asked.done
        number = next(self._numbers)
        self._rounds[number] = asked
        asked.timer = reactor.callLater(_PATIENCE, asked.is_late)
        until = self._redis_time() + round(1000 * _PATIENCE)
        said = {"from": self.node, "number": number, "until": until, "word": word, "about": about}
        self._publish(channel, json.dumps(said).encode(), until).addCallbacks(asked.told, asked.is_not_told)
        return asked.done.addBoth(self._end, number)

    def stop(self) -> None:
        """Wait for nobody any more."""
        for asked in tuple(self._rounds.values()):
            asked.close()

    def _end(self, result: Any, number: int) -> Any:
        del self._rounds[number]
        return result

    def _answer(self, word: str, about: dict[str, Any]) -> Deferred[Any]:
        answered: Deferred[Any] = maybeDeferred(self.answering, word, about)
        return answered.addErrback(_failed)

    def _hear(self, payload: bytes) -> None:
        try:
            said = json.loads(payload, parse_constant=_is_no_json)
        except (ValueError, RecursionError):
            _log.warn("what was said on a channel of the fleet is no JSON: {size} bytes", size=len(payload))
            return
        match said:
            case {"from": self.node, "number": int(number)}:
                # Our own question: we are one of those who were told.
                if number in self._rounds:
                    self._rounds[number].heard(self.node)
            case {"from": str(asker), "number": int(number), "until": int(until), "word": str(word), "about": about}:
                is_question = isinstance(about, dict) and _NODE.fullmatch(asker)
                if is_question and self._redis_time() <= until and self._is_new(asker, number):
                    self._answer(word, about).addCallback(self._reply, asker, number)
            case {"node": str(node), "number": int(number), "said": answer}:
                if number in self._rounds and _NODE.fullmatch(node):
                    self._rounds[number].heard(node, answer)

    def _is_new(self, asker: str, number: int) -> bool:
        last = self._last_of.pop(asker, 0)
        self._last_of[asker] = max(last, number)
        if len(self._last_of) > _ASKERS:
            del self._last_of[next(iter(self._last_of))]
        return number > last

    def _reply(self, said: Any, asker: str, number: int) -> None:
        answer = json.dumps({"node": self.node, "number": number, "said": said}).encode()
        # Whoever asked goes on without it.
        self._publish(self._channel_of(asker), answer, None).addErrback(lambda failure: failure.trap(StoreError))


class _Round:
    """One question that is out."""

    def __init__(self, own: Deferred[Any], nodes: int, node: str) -> None:
        self.done: Deferred[Gathered] = Deferred()
        self.timer: Any = None
        self._nodes = nodes
        self._node = node
        self._answers: dict[str, Any] = {}
        self._has_own = self._is_late = self._is_closed = False
        # How many have been told, and who of them has been heard.
        self._told: int | None = None
        self._heard: set[str] = set()
        own.addCallback(self._own)

    def _own(self, said: Any) -> None:
        self._has_own = True
        if said is not None:
            self._answers = {self._node: said} | self._answers
        self._look()

    def told(self, number: int) -> None:
        """So many have been told."""
        self._told = number
        self._look()

    def is_not_told(self, failure: Failure) -> None:
        """Redis is gone, and whether somebody has been is not known."""
        failure.trap(StoreError)
        self.is_late()

    def heard(self, node: str, said: Any = None) -> None:
        """One of them has answered; the first word holds."""
        if node in self._heard or self._is_closed:
            return
        self._heard.add(node)
        if said is not None and node != self._node:
            self._answers[node] = said
        self._look()

    def is_late(self) -> None:
        """Whoever has not answered is missing. But for ourselves: we come to it."""
        self._is_late = True
        self._look()

    def _look(self) -> None:
        if self._has_own and (self._is_late or (self._told is not None and len(self._heard) >= self._told)):
            self.close()

    def close(self) -> None:
        """Wait for no more answers."""
        if self._is_closed:
            return
        self._is_closed = True
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        # Where Redis has said nothing there may be somebody.
        there = max(self._nodes, 1 if self._told is None else self._told)
        self.done.callback(Gathered(self._answers, max(0, there - len(self._answers))))


def _is_no_json(constant: str) -> NoReturn:
    raise ValueError(constant)


def _failed(failure: Failure) -> None:
    _log.failure("a server of the fleet could not be answered; this is a bug", failure)
