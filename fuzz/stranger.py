"""One link, and at its other end a stranger who knows the rules and keeps none of them.

What a frame of his that is well formed deserves is foretold: a gap, a bad ack, too much at once, a duplicate, or to be
taken. What is not is never an exception, and changes no number.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar

from fuzz.choices import Choices
from fuzz.pair import TICK, judged
from fuzz.targets import Broken
from heartbeat.core.client_link import ClientLink
from heartbeat.core.errors import CloseCode
from heartbeat.core.link import Abort, Close, Confirmed, Deliver, Effects, Judge, Link, Opened, PingFrame, Run, Turn
from heartbeat.core.messages import ack_frame
from heartbeat.core.monitor import QUIET
from heartbeat.core.presence import Presence
from heartbeat.core.running import RunningTime
from heartbeat.core.server_link import ServerLink
from heartbeat.core.session import MEMBERS, Bounds, Session
from heartbeat.core.settings import BEATS, Settings

__all__ = ["Stranger"]

_BOUNDS = Bounds(4, 4096, 65_536)
_EPOCH = "e-1"
# With these an end closes who breaks a rule of the session.
_BREAKS = {CloseCode.GAP, CloseCode.BAD_ACK, CloseCode.POLICY}
_TEXTS = (
    *(b'{"type":"ping"}', b'{"type":"ping","id":1,"status":"pong"}', b'{"type":"onopen"}', b'{"type":"onopen","v":1}'),
    *(b'{"type":"drain","min_ms":0,"max_ms":9}', b'{"type":"error"}', b'{"type":"ping","away":true}', b'{"type":7}'),
    *(b'{"type":"ping","status":"no"}', b'{"type":"chat"}', b"[]", b"{", b"\xff", b'{"type":"onopen","status":"ok"}'),
    b'{"type":"onopen","status":"ok","v":1,"sid":"s","epoch":"e-1","client_id":"a","limits":{"kept":2}}',
    b'{"type":"onopen","v":1,"beats":"server","interval_ms":100,"session":{"sid":"s","epoch":"e-1","last":0}}',
)


class Stranger:
    """A server's end or a client's, and whatever may come to it."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        kind = choices.byte()
        self.is_server, is_guest = kind & 1 == 0, kind & 6 == 6
        self.settings = Settings(
            beats=choices.pick((None, *BEATS)), kept_limit=4, kept_bytes=4096, level0=choices.pick((None, "refuse"))
        )
        self.running = RunningTime(TICK, 0.0)
        self.presence = Presence(40.0, 75.0)
        self.now = 0.0
        self.count = 0
        self.session: Session | None = None
        self.is_guest = is_guest
        self.plain = choices.pick(("allow", "allow", "judge", "refuse"))
        self.link: Link
        self._connect()

    def step(self) -> None:
        """Something comes to it, and it holds its own."""
        self._choices.pick(self._STEPS)(self)
        session = self.session
        if session is None:
            return
        if not session.confirmed <= session.sent or not session.handled <= session.received:
            raise Broken("more is confirmed than was sent, or more handled than received")
        if session.count > 2 * _BOUNDS.messages:
            raise Broken(f"{session.count} messages are kept")
        waiting, size = session.waiting
        if self.is_server and (waiting > 2 * _BOUNDS.messages or size > 2 * _BOUNDS.bytes + MEMBERS * waiting + 65_536):
            raise Broken(f"{waiting} messages of {size} bytes wait for their handlers")

    def finish(self) -> None:
        """It goes, and nothing of it is left."""
        self._close(None)
        if self.presence.connections:
            raise Broken("a connection that is gone is counted")

    # Connections.

    def _connect(self) -> None:
        self.count += 1
        self.told = self.wrote = 0
        self.is_closed = False
        self.wants: list[Any] = []
        if self.is_server:
            self.link = ServerLink(
                self.settings,
                self.running,
                self.now,
                presence=self.presence,
                client_id=f"c-{self.count}",
                guest=self.is_guest,
                plain=self.plain,
            )
        else:
            session = self.session
            if session is not None:
                session.attempt += 1
            self.link = ClientLink(self.settings, self.running, self.now, guest=self.is_guest, resuming=session)
        self._carry(self.link.open(self.now))

    def _close(self, code: int | None) -> None:
        self.link.close(self.now, code)
        for effects in (self.link.receive(b'{"type":"ping"}', False, self.now), self.link.heard(self.now)):
            if effects:
                raise Broken(f"a link that is closed has something to say: {effects}")
        self.is_closed = True

    def _come_again(self) -> None:
        self._close(self._choices.pick((None, 1000, 1001, 4001)))
        self._connect()

    # What comes.

    def _hear(self, payload: bytes, *, binary: bool = False) -> Effects:
        """A message arrives."""
        if self.is_closed:
            return ()
        self._carry(self.link.heard(self.now))
        if self.is_closed:
            return ()
        effects = self.link.receive(payload, binary, self.now)
        self._carry(effects)
        return effects

    def _any(self) -> None:
        """Any bytes."""
        self._hear(self._choices.bytes(self._choices.byte() % 64), binary=self._choices.byte() == 7)

    def _text(self) -> None:
        self._hear(self._choices.pick(_TEXTS))

    def _near(self) -> int:
        """A number near one that matters."""
        session = self.session
        marks = [0, 2**53] if session is None else [session.received, session.sent, session.confirmed, session.handled]
        return self._choices.pick(marks) + self._choices.byte() % 5 - 2

    def _numbered(self) -> None:
        """The next message, or its like, that confirms something, or not."""
        session = self.session
        ahead = (0,) * 8 + (-1, 1, 2, self._near())
        seq = self._choices.pick(ahead) + (1 if session is None else session.received + 1)
        seq = max(1, seq - 1)
        ack = self._choices.pick((None, self._near(), 0 if session is None else session.confirmed))
        pad = self._choices.pick((0, 0, 0, 60_000))
        message = {"type": self._choices.pick(("x", "error", "y")), "pad": "p" * pad, "seq": seq}
        payload = json.dumps(message if ack is None else message | {"ack": ack}).encode()
        is_on = session is not None and self.link.session is session and not self.is_closed
        expected = self._foretold(session, seq, ack, len(payload)) if is_on and session is not None else None
        received = session.received if session is not None else 0
        effects = self._hear(payload)
        if expected is None or session is None:
            return
        found = [effect.code if type(effect) is Close else type(effect) for effect in effects]
        if found != expected:
            raise Broken(f"{payload[:100]!r} after {received} comes to {found}, and not to {expected}")

    def _foretold(self, session: Session, seq: int, ack: int | None, size: int) -> list[object] | None:
        """What a numbered message comes to; None where it is not looked at any more."""
        if self.link._deaf:
            return []
        waiting, queued = session.waiting
        much = seq - session.handled > 2 * session.bounds.messages
        much = much or queued + size > 2 * session.bounds.bytes + MEMBERS * (waiting + 1) + 65_536
        if seq > session.received + 1:
            return [CloseCode.GAP]
        if seq == session.received + 1 and self.is_server and much:
            return [CloseCode.POLICY]
        if ack is not None and ack > session.sent:
            return [CloseCode.BAD_ACK]
        confirmed = [Confirmed] if ack is not None and ack > session.confirmed else []
        return confirmed + ([Run] if seq == session.received + 1 else [])

    def _alone(self) -> None:
        """An ack alone, or on a ping."""
        session, upto = self.session, self._near()
        beat = self._choices.byte() % 2
        is_on = session is not None and self.link.session is session and not self.is_closed and not self.link._deaf
        sent = session.sent if session is not None else 0
        effects = self._hear(b'{"type":"ping","ack":%d}' % upto if beat else b'{"type":"ack","ack":%d}' % upto)
        broken = [effect.code for effect in effects if type(effect) is Close]
        if is_on and broken != ([CloseCode.BAD_ACK] if upto > sent else []):
            raise Broken(f"ack {upto} of {sent} comes to {effects}")

    def _opening(self) -> None:
        """He asks for a session, his or another's, with any numbers."""
        session = self.session
        sid = self._choices.pick(("s-0", "s-0" if session is None else session.sid))
        numbers = {"last": self._near(), "sent": self._near()}
        attempt = (0 if session is None else session.attempt) + self._choices.byte() % 3
        asks = {"sid": sid, "epoch": self._choices.pick((_EPOCH, _EPOCH, "e-2")), **numbers, "try": attempt}
        claims = self._choices.pick(({}, {"client_id": "alice"}, {"beats": "both"}))
        self._hear(json.dumps({"type": "onopen", "v": 1, **claims, "session": asks}).encode())

    def _answer(self) -> None:
        """He declares a session, or says that he resumes one, with any numbers."""
        session = self.session
        sid = self._choices.pick(("s-0", "s-0" if session is None else session.sid))
        told = {
            "sid": sid,
            "epoch": _EPOCH,
            "client_id": "alice",
            "last": max(0, self._near()),
            "sent": max(0, self._near()),
        }
        told |= {"resumed": self._choices.byte() % 2 == 0, "limits": {"kept": 1 + self._choices.byte() % 8}}
        self._hear(json.dumps({"type": "onopen", "status": "ok", "v": 1, **told}).encode())

    def _frame(self) -> None:
        """A pong of the WebSocket layer's."""
        if not self.is_closed:
            self._carry(self.link.heard(self.now))
            asked = self.link.monitor.sent
            self._carry(self.link.pong(self._choices.pick((b"heartbeat %d" % asked, b"heartbeat x", b"")), self.now))

    # What it does.

    def _pass(self) -> None:
        for _ in range(self._choices.pick((1, 16, 32, 80))):
            self.now += TICK
            self.running.ticked(self.now)
            if not self.is_closed and self.now >= self.link.next_at:
                self._carry(self.link.check(self.now, QUIET))

    def _send(self) -> None:
        session = self.session
        payload = b'{"type":"x","n":%d}' % self._choices.byte()
        if session is not None and session.has_room(len(payload)):
            session.appended(session.sent + 1, payload)

    def _write(self) -> None:
        session = self.session
        if session is not None and self.link.session is session and not self.is_closed:
            for frame in iter(session.next_frame, None):
                self._says(frame)

    def _handle(self) -> None:
        session = self.session
        arrived = None if session is None else session.next()
        if session is not None and arrived is not None:
            session.finished()
            if session.owes_much and not self.is_closed and self.link.session is session:
                self._says(ack_frame(session.tell()))

    def _decide(self) -> None:
        """What the link asked is decided."""
        if self.is_closed or not self.wants:
            return
        want = self.wants.pop(0)
        if isinstance(want, Opened):
            self._opened(want)
        elif want.opening is None:
            link: Any = self.link
            self._carry(link.named("alice", self.now) if self._choices.byte() % 2 else link.refused(4401, "no"))
        else:
            self._judge(want)

    def _judge(self, judge: Judge) -> None:
        link, session, asked = self.link, self.session, judge.opening
        if not isinstance(link, ServerLink) or asked is None:
            raise Broken("a client is asked who it is")
        stale, reason = judged(session, asked, _EPOCH)
        if stale:
            self._carry(link.refused(CloseCode.SUPERSEDED, "a later attempt has resumed this session"))
            return
        if reason or session is None or asked.resume is None:
            name = asked.claimed or f"c-{self.count}"
            session = self.session = Session(f"s-{self.count}", _EPOCH, name, _BOUNDS)
        else:
            before = session.received, session.handled, session.sent
            session.attempt = asked.resume.attempt
            session.resume(asked.resume.last)
            if before != (session.received, session.handled, session.sent) or session.is_written != (not session.kept):
                raise Broken("what is resumed is not the session that it was")
        self.told, self.wrote = 0, session.confirmed
        resumed = not reason
        self._carry(link.admitted(session, self.now, resumed=resumed, reason="" if reason == "new" else reason))

    def _opened(self, opened: Opened) -> None:
        """As the client does: a session in which something is missing is over."""
        link, session, told = self.link, self.session, opened.declared
        if not isinstance(link, ClientLink) or told is None:
            return
        if told.resumed and session is not None and session.judge(told.last, told.sent):
            session.resume(told.last)
        elif told.resumed:
            self.session = None
            self._close(None)
            return
        else:
            session = self.session = Session(told.sid, told.epoch, told.client_id, told.bounds)
        self.told, self.wrote = 0, session.confirmed
        self._carry(link.admitted(session, self.now))

    # Effects.

    def _says(self, payload: bytes) -> None:
        """A text goes out: JSON with a type, whose numbers are in order, and no more than it has."""
        message, session = json.loads(payload), self.session
        if type(message.get("type")) is not str:
            raise Broken(f"{payload!r} is said")
        if session is None or self.link.session is not session:
            return
        ack = message.get("last" if message["type"] == "onopen" else "ack")
        if type(ack) is int and message["type"] != "error":
            if not self.told <= ack <= session.handled:
                raise Broken(f"{ack} is said after {self.told}, and {session.handled} are handled")
            self.told = ack
        if "seq" in message and message["type"] != "ping":
            if not max(self.wrote, session.confirmed) <= message["seq"] <= session.sent or message["seq"] <= self.wrote:
                raise Broken(f"message {message['seq']} is written after {self.wrote}")
            self.wrote = message["seq"]

    def _sent_away(self, effect: Close) -> None:
        """Who is closed is not heard any more."""
        if effect.code not in _BREAKS | {CloseCode.UNAUTHORIZED, CloseCode.SUPERSEDED}:
            raise Broken(f"closed by {effect}")
        if self.link.receive(b'{"type":"ping"}', False, self.now):
            raise Broken("who is sent away is heard")

    def _delivered(self, effect: Deliver) -> None:
        message, is_on = effect.message, self.link.session is not None
        if is_on and "seq" in message and message["type"] not in ("onopen", "ping", "ack", "drain"):
            raise Broken(f"what is numbered is delivered as if it were not: {message}")

    def _probes(self, effect: PingFrame) -> None:
        if not effect.payload.startswith(b"heartbeat "):
            raise Broken(f"a probe of {effect.payload!r}")

    def _carry(self, effects: Effects) -> None:
        if Close in map(type, effects[:-1]):
            raise Broken(f"something follows a close: {effects}")
        for effect in effects:
            carried = self._CARRIED.get(type(effect))
            if carried is not None:
                carried(self, effect)

    _CARRIED: ClassVar[dict[type, Callable[[Any, Any], object]]] = {
        bytes: _says,
        Judge: lambda stranger, effect: stranger.wants.append(effect),
        Opened: lambda stranger, effect: stranger.wants.append(effect),
        Abort: lambda stranger, effect: stranger._close(None),
        Close: _sent_away,
        Turn: lambda stranger, effect: stranger._carry(stranger.link.confirm(stranger.now, QUIET)),
        Deliver: _delivered,
        PingFrame: _probes,
    }

    _STEPS: ClassVar[tuple[Callable[[Any], object], ...]] = (
        *(_text, _any, _numbered, _numbered, _alone, _opening, _answer, _frame, _pass, _send, _send, _write, _write),
        *(_handle, _handle, _decide, _decide, _decide, _come_again, _numbered, _text),
    )
