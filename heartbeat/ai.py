"""Questions to a model: `onaichat` is answered by as much text at a time as the asker takes.

    -> {"type": "onaichat", "id": "q1", "text": "…"}
    <- {"type": "onaichat", "id": "q1", "delta": "…"} …  then  {"type": "onaichat", "id": "q1", "status": "done"}

or, in the place of the last, `{"type": "error", "code": "ai-failed", "detail": "a sentence", "re": "q1"}`.

A question is handled once it is accepted and kept; its answer takes its time beside everything else, and goes
on while the asker is away. A mark in the session remembers it, so that after a crash it is ended, too. How a
model is asked is in `model`.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Any

from twisted.web.iweb import IAgentEndpointFactory

from heartbeat.channel import Channel
from heartbeat.core.errors import PeerError
from heartbeat.core.messages import is_id, re_of
from heartbeat.ends import ServerEdge
from heartbeat.factory import HeartbeatServerFactory
from heartbeat.handling import Handling
from heartbeat.model import Model
from heartbeat.question import MARK, InSession, OnConnection, Question

__all__ = ["AI"]

#: So many questions of one asker are answered at a time.
AT_ONCE = 4


class AI:
    """Answers the `onaichat` messages of a server by what a model says.

    `url` is the base of an OpenAI-compatible server (`http://127.0.0.1:8080/v1`); without one every question is
    refused. `model` is the one that is meant there, `key` the server's secret. An answer has failed when not a byte
    of it came for `silence` seconds. `endpoints` is how to connect, where Twisted's own way is not it. Raises
    SettingError.
    """

    def __init__(
        self,
        factory: HeartbeatServerFactory,
        *,
        url: str | None = None,
        model: str | None = None,
        key: str | None = None,
        silence: float = 120.0,
        endpoints: IAgentEndpointFactory | None = None,
    ) -> None:
        self._model: Model | None = None
        if url is not None:
            self._model = Model(factory.reactor, url, name=model, key=key, silence=silence, endpoints=endpoints)
        self._shared = shared = factory.heartbeat
        # By who asked: the channel of a session, or the edge of a connection without one; and by the id, as JSON.
        self._asked: dict[Hashable, dict[str, Question]] = {}
        factory.register("onaichat", self._ask)
        shared.sessions.started.append(self._started)
        shared.sessions.came.append(self._came)
        shared.sessions.ended.append(lambda channel, _: self._gone(channel))
        shared.gone.append(self._left)
        shared.stopped.append(self._stopped)

    @property
    def count(self) -> int:
        """How many questions are being answered now."""
        return sum(map(len, self._asked.values()))

    def _ask(self, protocol: Any, message: dict[str, Any]) -> None:
        """A question arrived. Raises PeerError: `bad-message`, `ai-busy`, `ai-not-configured`."""
        handling: Handling = protocol.handling
        name, text = _checked(message)
        model = self._model
        if model is None:
            raise PeerError("ai-not-configured", "no model is configured at this server", name)
        question: Question
        if isinstance(handling.sender, Channel):
            question = InSession(self._shared, name, handling.sender, self._forget)
        else:
            question = OnConnection(self._shared, name, protocol._heartbeat, self._forget)
        mine = self._asked.get(question.asker, {})
        if question.key in mine:
            raise PeerError("bad-message", "a question with this id is being answered", name)
        if len(mine) >= AT_ONCE:
            raise PeerError("ai-busy", f"{AT_ONCE} questions at a time are answered; wait for one of them", name)
        if handling.sid is not None:
            handling.mark(handling.sid, MARK + question.key, "")
        self._note(question)
        # A turn later, so that nothing of the answer can come before the note that the question was handled.
        self._shared.ticker.turn(lambda: question.ask(model, text))

    def _forget(self, question: Question) -> None:
        """This question has got its answer, or needs none any more."""
        mine = self._asked.get(question.asker, {})
        if mine.get(question.key) is question:
            del mine[question.key]
            if not mine:
                del self._asked[question.asker]

    def _note(self, question: Question) -> None:
        self._asked.setdefault(question.asker, {})[question.key] = question

    def _started(self) -> None:
        """The sessions are there: what was being answered when the server ended is over."""
        for channel in tuple(self._shared.sessions.channels.values()):
            self._break_off(channel, "the server was restarted in the middle of the answer")

    def _came(self, channel: Channel) -> None:
        """A session has come from another server, and what was being answered there is over."""
        self._break_off(channel, "the session has moved to another server in the middle of the answer")

    def _break_off(self, channel: Channel, why: str) -> None:
        for mark in tuple(channel.marks):
            if mark.startswith(MARK):
                question = InSession(self._shared, json.loads(mark.removeprefix(MARK)), channel, self._forget)
                self._note(question)
                question.failed(why)

    def _stopped(self) -> None:
        """The server stops."""
        for question in [question for mine in self._asked.values() for question in mine.values()]:
            question.break_off("the server stopped in the middle of the answer")
            # One whose last word has no room leaves its mark behind, for the next start.
            question.drop()

    def _left(self, edge: ServerEdge) -> None:
        """A connection is gone: so is a question of its own, and a session's is one of somebody who is away."""
        self._gone(edge)
        for question in tuple(self._asked.get(edge.channel, {}).values()):
            question.pass_on()

    def _gone(self, asker: Hashable) -> None:
        for question in tuple(self._asked.get(asker, {}).values()):
            question.drop()


def _checked(message: dict[str, Any]) -> tuple[str | int, str]:
    """The id and the text of a question. Raises PeerError (`bad-message`)."""
    name, text = message.get("id"), message.get("text")
    if not is_id(name):
        raise PeerError("bad-message", "id must be text of 1 to 64 characters or a whole number", re_of(message))
    if type(text) is not str or not text:
        raise PeerError("bad-message", "text must be text, and not empty", name)
    return name, text
