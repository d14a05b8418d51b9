"""Two links and a session between them: honest ends, and everything that befalls them.

A ledger says what each has sent and what the other has handled. While a session lives, that is the same, in order and
each once; what is lost with one is lost whole, and known to be. The bounds hold, and what is told only ever grows.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, ClassVar

from fuzz.choices import Choices
from fuzz.targets import Broken
from heartbeat.core.client_link import ClientLink
from heartbeat.core.errors import SessionFull
from heartbeat.core.link import Abort, Close, Confirmed, Deliver, Effects, Judge, Link, Opened, PingFrame, Refused, Run
from heartbeat.core.link import Turn as ReactorTurn
from heartbeat.core.messages import ack_frame, numberless
from heartbeat.core.monitor import QUIET
from heartbeat.core.opening import Declared, Opening
from heartbeat.core.presence import Presence, Standing
from heartbeat.core.running import RunningTime
from heartbeat.core.server_link import ServerLink
from heartbeat.core.session import MEMBERS, Arrived, Bounds, Session
from heartbeat.core.settings import BEATS, Settings

__all__ = ["Pair", "judged"]

TICK = 0.2


def judged(session: Session | None, asked: Opening, epoch: str) -> tuple[bool, str]:
    """Whether a server closes who asks for its `session`, as too late an attempt; and else why it is not resumed."""
    resume = asked.resume
    if resume is None:
        return False, "new"
    if resume.epoch != epoch:
        return False, "epoch"
    if session is None or session.sid != resume.sid:
        return False, "unknown"
    if asked.claimed not in (None, session.client_id):
        return False, "auth"
    if resume.attempt <= session.attempt:
        return True, ""
    return False, "" if session.judge(resume.last, resume.sent) else "gap"


class End:
    """One end: its link, its session, and what was sent in that and handled of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.running = RunningTime(TICK, 0.0)
        self.link: Any = None
        self.session: Session | None = None
        #: What is under way to it: whether it is a text, and the bytes.
        self.inbox: deque[tuple[bool, bytes]] = deque()
        #: In the session that it has: what was committed, and what the other's program was given, finished.
        self.sent: list[bytes] = []
        self.handled: list[dict[str, Any]] = []
        #: The highest `ack` that it said on this connection, and the last number that it wrote there.
        self.told = self.wrote = 0
        self.wants: list[Judge | Opened] = []
        #: The message whose handler is running.
        self.at_work: Arrived | None = None
        self.is_asked_to_turn = False

    def begin(self, session: Session) -> None:
        """It has another session from now on, with nothing in it."""
        self.session, self.sent, self.handled, self.at_work = session, [], [], None


def _of_both(what: str, step: Callable[[Pair, End], object]) -> dict[str, Callable[[Pair], object]]:
    """The same step of either end."""
    return {
        f"server {what}": lambda pair: step(pair, pair.server),
        f"client {what}": lambda pair: step(pair, pair.client),
    }


class Pair:
    """A server's end and a client's, and what is under way between them."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        beats = choices.pick((None, *BEATS))
        kept = choices.pick((4, 8, 40))
        self.settings = Settings(beats=beats, kept_limit=kept, kept_bytes=4096, tick=TICK)
        self.bounds = Bounds(kept, 4096, 65_536)
        self.server, self.client = End("server"), End("client")
        self.presence = Presence(40.0, 75.0)
        self.epoch = "e-1"
        self.now = 0.0
        self.count = 0
        self.is_connected = False
        self._connect()

    def step(self) -> None:
        """Something happens, and what was promised holds."""
        self.STEPS[self._choices.pick(self._OFTEN)](self)
        self._holds()

    def finish(self) -> None:
        """Nothing befalls them any more: all that was sent comes to be handled."""
        self._cut()
        self._connect()
        left = 10 * self.bounds.messages
        while not (self._is_settled(self.server) and self._is_settled(self.client)):
            left -= 1
            if not left:
                raise Broken("in peace, something is never handled, or never known to be")
            for end in (self.server, self.client):
                self._decide(end)
                self._write(end)
                self._read_all(end)
                self._handle(end)
                self._handle(end)
                self._acknowledge(end)
        self._holds()
        self._cut()

    def _is_settled(self, end: End) -> bool:
        """All that it ever sent in its session was handled, and it knows."""
        link, sent = end.link, len(end.sent)
        is_open = end.session is not None and link.session is end.session
        return is_open and end.session.confirmed == sent == len(self._other(end).handled)  # type: ignore[union-attr]  # as said

    def _both(self) -> tuple[tuple[End, End], tuple[End, End]]:
        return (self.server, self.client), (self.client, self.server)

    def _other(self, end: End) -> End:
        return self.client if end is self.server else self.server

    # The promises.

    def _holds(self) -> None:
        for end, other in self._both():
            session, peer = end.session, other.session
            if session is None:
                continue
            if session.count > 2 * self.bounds.messages or session.weight > 2 * self.bounds.bytes:
                raise Broken(f"the {end.name} keeps more than twice its bounds")
            if list(session.kept) != end.sent[session.confirmed :]:
                raise Broken(f"the {end.name} keeps something else than what was not confirmed")
            if peer is None or peer.sid != session.sid:
                continue
            if other.handled != [json.loads(payload) for payload in end.sent[: len(other.handled)]]:
                raise Broken(f"not in order, or not once: the {other.name} has handled {other.handled}")
            if not session.confirmed <= peer.handled <= peer.received <= session.sent:
                raise Broken(f"the {end.name} believes {session.confirmed}, and {peer.handled} are handled")
        active = self.presence.active
        if active != int(self.is_connected and self.server.link.standing is Standing.ACTIVE):
            raise Broken(f"{active} are said to be active")

    def _said(self, end: End, payload: bytes) -> None:
        """A text goes out: what it says of numbers is in order."""
        message = json.loads(payload)
        if not isinstance(message, dict) or type(message.get("type")) is not str:
            raise Broken(f"the {end.name} says {payload!r}")
        session = end.session
        ack = message.get("last" if message["type"] == "onopen" else "ack")
        if session is not None and end.link.session is session and type(ack) is int:
            if not end.told <= ack <= session.handled:
                raise Broken(f"the {end.name} says {ack} after {end.told}, and has handled {session.handled}")
            end.told = ack
        if "seq" in message:
            # What was confirmed meanwhile need not be written once more.
            if (
                session is None
                or message["seq"] != max(end.wrote, session.confirmed) + 1
                or session.sent < message["seq"]
            ):
                raise Broken(f"the {end.name} writes message {message['seq']} after {end.wrote}")
            end.wrote = message["seq"]
            if len(payload) > len(end.sent[message["seq"] - 1]) + MEMBERS:
                raise Broken(f"the {end.name} writes a longer message than there is room for: {payload!r}")

    # What befalls them.

    def _connect(self) -> None:
        if self.is_connected:
            return
        self.is_connected = True
        self.count += 1
        server, client = self.server, self.client
        for end in (server, client):
            end.inbox.clear()
            end.told = end.wrote = 0
            end.wants.clear()
            end.is_asked_to_turn = False
        if client.session is not None:
            client.session.attempt += 1
        server.link = ServerLink(
            self.settings, server.running, self.now, presence=self.presence, client_id=f"c-{self.count}"
        )
        client.link = ClientLink(self.settings, client.running, self.now, resuming=client.session)
        self._carry(server, server.link.open(self.now))
        self._carry(client, client.link.open(self.now))

    def _cut(self) -> None:
        """The connection is lost, with what is under way."""
        if self.is_connected:
            self.is_connected = False
            for end in (self.server, self.client):
                end.link.close(self.now, None)
                if end.link.next_at != inf:
                    raise Broken(f"the {end.name}'s link is gone, and wants to be looked at")

    def _crash(self, end: End) -> None:
        """What is committed is left of it."""
        self._cut()
        old, end.at_work = end.session, None
        if old is not None:
            end.session = Session(
                *(old.sid, old.epoch, old.client_id, old.bounds),
                sent=old.sent,
                confirmed=old.confirmed,
                handled=old.handled,
                attempt=old.attempt,
                kept=old.kept,
            )

    def _forget(self) -> None:
        """The server loses its store."""
        self._cut()
        self.server.session, self.server.sent, self.server.handled, self.server.at_work = None, [], [], None
        self.epoch = f"e-{self.count + 1}"

    def _pass(self) -> None:
        """Time passes, and whoever wants to be looked at is, tick by tick."""
        for _ in range(self._choices.pick((1, 3, 15, 31, 80))):
            self.now += TICK
            for end in (self.server, self.client):
                end.running.ticked(self.now)
                if self.is_connected and self.now >= end.link.next_at:
                    self._carry(end, end.link.check(self.now, QUIET))
                if self.is_connected and end.is_asked_to_turn:
                    end.is_asked_to_turn = False
                    self._carry(end, end.link.confirm(self.now, QUIET))

    # What they do.

    def _read(self, end: End) -> None:
        if not self.is_connected or not end.inbox:
            return
        is_text, payload = end.inbox.popleft()
        self._carry(end, end.link.heard(self.now))
        link: Link = end.link
        self._carry(end, link.receive(payload, False, self.now) if is_text else link.pong(payload, self.now))

    def _read_all(self, end: End) -> None:
        while self.is_connected and end.inbox:
            self._read(end)

    def _append(self, end: End, *, beyond: bool = False) -> None:
        """Its program sends something, or answers."""
        session = end.session
        if session is None:
            return
        kind = self._choices.pick(('"x"', '"error"', '"y","text":"grüß }"', '"z","n":1e5,"seq2":[{}]'))
        payload = f'{{"type":{kind},"no":{len(end.sent)}}}'.encode()
        has_room = session.count < self.bounds.messages and session.weight + len(payload) <= self.bounds.bytes
        try:
            session.admit(len(payload), beyond=beyond and session.has_room_beyond(len(payload)))
        except SessionFull:
            if has_room:
                raise Broken(f"the {end.name} has room, and is full") from None
            return
        if not (has_room or beyond):
            raise Broken(f"the {end.name} is full, and takes one more")
        session.release(len(payload))
        session.appended(session.sent + 1, payload)
        end.sent.append(payload)

    def _write(self, end: End) -> None:
        """What is committed goes out, once the link has its session."""
        if self.is_connected and end.session is not None and end.link.session is end.session:
            for frame in iter(end.session.next_frame, None):
                self._send(end, frame)

    def _handle(self, end: End) -> None:
        """A handler finishes, or begins."""
        session = end.session
        if session is None or end.at_work is None:
            end.at_work = None if session is None else session.next()
            return
        message, end.at_work = end.at_work.message, None
        told = numberless(message) if isinstance(message, bytes) else message
        if not isinstance(told, dict):
            raise Broken(f"an honest message is refused: {told}")
        if self._choices.byte() % 4 == 3:
            self._append(end, beyond=True)
        session.finished()
        end.handled.append(told)
        if session.owes_much:
            self._acknowledge(end)

    def _acknowledge(self, end: End) -> None:
        session = end.session
        if self.is_connected and session is not None and end.link.session is session and session.owes:
            self._send(end, ack_frame(session.tell()))

    def _decide(self, end: End) -> None:
        """What the link asked is decided: who comes in, and to which session."""
        if self.is_connected and end.wants:
            want = end.wants.pop(0)
            if isinstance(want, Judge):
                self._judge(want)
            else:
                self._opened(want.declared)

    def _judge(self, judge: Judge) -> None:
        end = self.server
        if judge.opening is None:
            raise Broken("a client that opens a session is taken for a page")
        stale, reason = judged(end.session, judge.opening, self.epoch)
        if stale or reason in ("gap", "auth"):
            raise Broken(f"an honest client is sent away: {reason or 'too late'}")
        if reason:
            end.begin(Session(f"s-{self.count}", self.epoch, end.link.client_id, self.bounds))
        resume, session = judge.opening.resume, end.session
        if session is None:
            raise Broken("there is no session, and it is resumed")
        if resume is not None and not reason:
            session.attempt = resume.attempt
            session.resume(resume.last)
        end.told, end.wrote = 0, session.confirmed
        why = "" if reason == "new" else reason
        self._carry(end, end.link.admitted(session, self.now, resumed=not reason, reason=why))

    def _opened(self, declared: Declared | None) -> None:
        end = self.client
        if declared is None:
            raise Broken("a server that has sessions is taken for one that has none")
        session = end.session
        if declared.resumed:
            if session is None or not session.judge(declared.last, declared.sent):
                raise Broken("a session is resumed in which something is missing")
            session.resume(declared.last)
        else:
            # What was not confirmed is lost, and the client knows of which; nothing of it comes up again.
            session = Session(declared.sid, declared.epoch, declared.client_id, declared.bounds)
            end.begin(session)
        end.wrote = session.confirmed
        self._carry(end, end.link.admitted(session, self.now))

    # Effects.

    def _send(self, end: End, payload: bytes) -> None:
        self._said(end, payload)
        self._other(end).inbox.append((True, payload))

    def _probe(self, end: End, effect: PingFrame) -> None:
        """The other end's WebSocket layer answers."""
        end.inbox.append((False, effect.payload))

    def _turn(self, end: End, effect: object) -> None:
        end.is_asked_to_turn = True

    def _want(self, end: End, effect: Any) -> None:
        end.wants.append(effect)

    def _abort(self, end: End, effect: Abort) -> None:
        self._cut()

    def _confirmed(self, end: End, effect: Confirmed) -> None:
        if end.session is None or end.session.confirmed != effect.upto:
            raise Broken(f"{effect.upto} is confirmed, and it is not")

    def _delivered(self, end: End, effect: Deliver) -> None:
        raise Broken(f"the {end.name} delivers what was numbered as if it were not: {effect.message}")

    def _never(self, end: End, effect: object) -> None:
        raise Broken(f"the {end.name} takes an honest end for none: {effect}")

    def _carry(self, end: End, effects: Effects) -> None:
        for effect in effects:
            carried = self._CARRIED.get(type(effect))
            if carried is not None:
                carried(self, end, effect)

    _CARRIED: ClassVar[dict[type, Callable[[Any, End, Any], None]]] = {
        bytes: _send,
        PingFrame: _probe,
        ReactorTurn: _turn,
        Judge: _want,
        Opened: _want,
        Abort: _abort,
        Confirmed: _confirmed,
        Deliver: _delivered,
        Close: _never,
        Refused: _never,
        Run: lambda pair, end, effect: None,
    }

    #: What may happen, by its name and whose it is.
    STEPS: ClassVar[dict[str, Callable[[Any], object]]] = {
        **_of_both("reads", _read),
        **_of_both("reads all", _read_all),
        **_of_both("decides", _decide),
        **_of_both("sends", _append),
        **_of_both("writes", _write),
        **_of_both("handles", _handle),
        **_of_both("acknowledges", _acknowledge),
        **_of_both("crashes", _crash),
        "connect": _connect,
        "cut": _cut,
        "time": _pass,
        "forget": _forget,
    }

    # Most of life is no disaster.
    _OFTEN: ClassVar[tuple[str, ...]] = (*STEPS, *[*STEPS][:12], "connect", "connect", "time")

    @classmethod
    def story(cls, *steps: str) -> bytes:
        """The bytes by which these steps happen, each with whatever comes first."""
        begun = bytes(2)
        return begun + b"".join(bytes((cls._OFTEN.index(step),)) + b"\0" * cls._draws(step) for step in steps)

    @staticmethod
    def _draws(step: str) -> int:
        return 1 if step.endswith(("sends", "handles")) or step == "time" else 0
