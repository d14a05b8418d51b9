"""One server asks all servers of a fleet the same, and gathers what they answer.

What is asked is published, and each answer to whoever asked; nothing of it is kept. Redis says how many were told, so
it is known when all of them have answered. Who has not after a while, or has no ear at Redis just now, is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from heartbeat.core.errors import StoreError

__all__ = ["Gathered", "Gatherer"]

_log = Logger()

# Seconds until who has not answered is missing.
_PATIENCE = 2.0


class Gathered(NamedTuple):
    """What was answered, by the names of the servers, our own first; and how many servers there are besides."""

    answers: dict[str, Any]
    missing: int


class Gatherer:
    """One server's part in that: `node` is its name, `channels` are where it listens, each with what hears it.

    `publish` tells what is to be told to whoever listens on a channel, and fires with their number. `answering` is
    asked with a word, and with what belongs to it; it, or its Deferred, answers with what is JSON, or with None, and
    then is missing.
    """

    def __init__(self, node: str, name: str, database: int, publish: Callable[[str, bytes], Deferred[int]]) -> None:
        self.node = node
        self.answering: Callable[[str, dict[str, Any]], Any] = lambda word, about: None
        self._name = name
        self._database = database
        self._publish = publish
        self._number = 0
        self._rounds: dict[int, _Round] = {}
        hear: Callable[[bytes], object] = self._hear
        self.channels: Mapping[str, Callable[[bytes], object]] = {self._channel(): hear, self._channel(node): hear}

    def _channel(self, node: str = "") -> str:
        # Channels are common to all databases.
        return f"{self._name}{node and ':'}{node}@{self._database}"

    def ask(self, word: str, about: dict[str, Any], *, nodes: int, reactor: Any) -> Deferred[Gathered]:
        """Ask all; there are so many `nodes`, or more. Where there are none, only ourselves: Redis is away."""
        asked = _Round(self._answer(word, about), nodes, self.node)
        if not nodes:
            asked.told(0)
            return asked.done
        return self._publish_round(asked, self._channel(), word, about, reactor)

    def ask_one(self, node: str, word: str, about: dict[str, Any], *, reactor: Any) -> Deferred[Gathered]:
        """Ask one server, which may be ourselves."""
        if node == self.node:
            return self.ask(word, about, nodes=0, reactor=reactor)
        asked = _Round(succeed(None), 0, self.node)
        return self._publish_round(asked, self._channel(node), word, about, reactor)

    def _publish_round(
        self, asked: _Round, channel: str, word: str, about: dict[str, Any], reactor: Any
    ) -> Deferred[Gathered]:
        self._number += 1
        number = self._number
        self._rounds[number] = asked
        asked.timer = reactor.callLater(_PATIENCE, asked.close)
        said = json.dumps({"from": self.node, "number": number, "word": word, "about": about}).encode()
        self._publish(channel, said).addCallbacks(asked.told, asked.is_not_told)
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
            said = json.loads(payload)
        except ValueError:
            _log.warn("what was said on a channel of the fleet is no JSON: {size} bytes", size=len(payload))
            return
        match said:
            case {"from": self.node, "number": int(number)}:
                # Our own question: we are one of those who were told.
                if number in self._rounds:
                    self._rounds[number].heard()
            case {"from": str(asker), "number": int(number), "word": str(word), "about": dict(about)}:
                self._answer(word, about).addCallback(self._reply, asker, number)
            case {"node": str(node), "number": int(number), "said": answer}:
                if number in self._rounds:
                    self._rounds[number].heard(node, answer)

    def _reply(self, said: Any, asker: str, number: int) -> None:
        answer = json.dumps({"node": self.node, "number": number, "said": said}).encode()
        # Whoever asked goes on without it.
        self._publish(self._channel(asker), answer).addErrback(lambda failure: failure.trap(StoreError))


class _Round:
    """One question that is out."""

    def __init__(self, own: Deferred[Any], nodes: int, node: str) -> None:
        self.done: Deferred[Gathered] = Deferred()
        self.timer: Any = None
        self._nodes = nodes
        self._node = node
        self._answers: dict[str, Any] = {}
        self._has_own = self._is_closed = False
        # How many have been told, and how many of them have been heard.
        self._told: int | None = None
        self._heard = 0
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
        """Nobody has been: Redis is gone."""
        failure.trap(StoreError)
        self.told(0)

    def heard(self, node: str = "", said: Any = None) -> None:
        """One of them has answered."""
        self._heard += 1
        if said is not None:
            self._answers[node] = said
        self._look()

    def _look(self) -> None:
        if self._has_own and self._told is not None and self._heard >= self._told:
            self.close()

    def close(self) -> None:
        """Wait for no more answers."""
        if self._is_closed:
            return
        self._is_closed = True
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        there = max(self._nodes, self._told or 0)
        self.done.callback(Gathered(self._answers, max(0, there - len(self._answers))))


def _failed(failure: Failure) -> None:
    _log.failure("a server of the fleet could not be answered; this is a bug", failure)
