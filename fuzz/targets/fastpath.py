"""The short way through a server beside Autobahn's: the same bytes in the same chunks come to the same.

The servers, what is compared and what may be sent are those of the tests on the wire (`twins`, `torrent`), which take
their chance from the input here. Besides what those draw there are texts and frames of any bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torrent
from peers import CONTINUATION, PONG, frame, request
from twins import PLAIN, SHORT, WATCHED, Mistake, Twins, hosts, ours

from fuzz.choices import Choices
from fuzz.logged import no_failures

__all__ = ["LONGEST", "TOKENS", "beginnings", "try_one"]

LONGEST = 512

# What may happen to one pair of servers: enough for a session and what breaks it.
_STEPS = 48
_LINES = 3

TOKENS = (
    *(b'{"type":"ping"}', b'{"type":"onopen","v":1}', b'"type":"ping"', b'"seq":1', b'"ack":0', b'"status":"pong"'),
    *(b'"clients"', b'"away":true', b'"id":1', b'{"type":"chat"}', b'{"type":"leave"}', b'{"type":"drop"}', b"\\ud800"),
    *(b"\x81\x8f\0\0\0\0", b"\x81\x95\0\0\0\0", b"\x89\x80\0\0\0\0", b"\x8a\x80\0\0\0\0", b"\x88\x82\0\0\0\0\x03\xe8"),
    *(b"\x01\x80\0\0\0\0", b"\x80\x80\0\0\0\0", b"\x81\xfe\0\x0f", b"\x81\xfd", b"\x81\xff", b"\xff", b"\xed\xa0\x80"),
    *(b"heartbeat 1", b"tell", b"hello", b'{"type":"tell","seq":1}', b'{"type":"wait","seq":1,"ack":0}', b'"beats":'),
)


class _Life:
    """A few connections to each of the servers, and what is to go out on them next."""

    def __init__(self, choices: Choices, twins: Any) -> None:
        self.choices = choices
        self.twins = twins
        self.lines = [twins.connect()]
        self.line = self.lines[0]
        self.chunk = b""

    def flush(self) -> None:
        """What was gathered arrives in one chunk."""
        chunk, self.chunk = self.chunk, b""
        if chunk:
            self.twins.feed(self.line, chunk)
            self.twins.compare(self.line)

    # The steps.

    def text(self) -> None:
        """A text of any bytes, in a frame."""
        self.chunk += frame(self.choices.bytes(self.choices.byte() % 132))

    def drawn(self) -> None:
        """What the torrent draws."""
        here = torrent.Here(self.twins.link(self.line), alone=not self.chunk)
        self.chunk += torrent.FRAMES.draw(self.choices)(self.choices, here)

    def any_frame(self) -> None:
        """A frame of any head and any body, its length the right one or another."""
        choices = self.choices
        head, length = choices.byte(), choices.byte()
        payload = choices.bytes(choices.byte() % 132)
        self.chunk += frame(
            payload,
            head & 15,
            fin=head & 128 == 0,
            rsv=head >> 4 & 7 if head & 7 == 7 else 0,
            masked=length % 16 > 0,
            length=None if length < 128 else len(payload) + length % 5 - 2 if len(payload) > 2 else length,
        )

    def anything(self) -> None:
        """Any bytes."""
        self.chunk += self.choices.bytes(self.choices.byte() % 132)

    def beat(self) -> None:
        """An ordinary ping."""
        self.chunk += frame(b'{"type":"ping"}')

    def fragments(self) -> None:
        """The beginning or the end of a message in pieces."""
        opcode = self.choices.pick((1, CONTINUATION, 2))
        self.chunk += frame(self.choices.bytes(self.choices.byte() % 40), opcode, fin=self.choices.byte() % 2 == 0)

    def answer(self) -> None:
        """The answer to a probe."""
        link = self.twins.link(self.line)
        self.chunk += frame(b"heartbeat %d" % (0 if link is None else link.monitor.sent), PONG)

    def arrive(self) -> None:
        """The chunk ends here."""
        self.flush()

    def cut(self) -> None:
        """The chunk ends somewhere before its end."""
        at = self.choices.byte() % (len(self.chunk) + 1)
        rest, self.chunk = self.chunk[at:], self.chunk[:at]
        self.flush()
        self.chunk = rest

    def time(self) -> None:
        """Time passes."""
        self.flush()
        self.twins.advance(torrent.TIMES.draw(self.choices))

    def act(self) -> None:
        """The application does something of itself."""
        self.flush()
        self.twins.on(self.line, torrent.send(self.choices))

    def lose(self) -> None:
        """The connection breaks."""
        self.flush()
        self.twins.lose(self.line)

    def another(self) -> None:
        """On another connection from now on, perhaps on a new one."""
        self.flush()
        if len(self.lines) < _LINES and self.choices.byte() % 2:
            head = request() + self.choices.pick((b"", frame(b'{"type":"ping"}'), b"\x81", frame(b"x", fin=False)))
            self.lines.append(self.twins.connect(head))
        self.line = self.choices.pick(self.lines)


_ROWS: tuple[Callable[[_Life], None], ...] = (
    *(_Life.arrive, _Life.text, _Life.drawn, _Life.beat, _Life.any_frame, _Life.anything, _Life.arrive, _Life.drawn),
    *(_Life.text, _Life.cut, _Life.fragments, _Life.answer, _Life.time, _Life.act, _Life.another, _Life.lose),
)

_BEATS = (None, None, "server", "both", "none")


def _time(least: float) -> bytes:
    """The step that lets so much time pass, or a little more."""
    for drawn in range(256):
        if torrent.TIMES.draw(Choices(bytes((drawn, 0)))) >= least:
            return bytes((_ROWS.index(_Life.time), drawn, 0))
    raise LookupError(f"nobody draws {least} s")


def _text(text: bytes) -> bytes:
    """The steps by which a text arrives in a chunk of its own."""
    return bytes((_ROWS.index(_Life.text), len(text))) + text + _ARRIVE


_ARRIVE = bytes((_ROWS.index(_Life.arrive),))
_BEAT = bytes((_ROWS.index(_Life.beat),))
_ANSWER = bytes((_ROWS.index(_Life.answer),)) + _ARRIVE
_OPENING = _text(b'{"type":"onopen","v":1}')
_NUMBERED = _text(b'{"type":"tell","seq":1,"ack":0}')


def beginnings() -> Iterable[bytes]:
    """Each kind of server with each kind of step; texts of the sort that matters; and what befalls a beat in time."""
    for row in range(len(_ROWS)):
        yield bytes((row % 20,)) + _BEAT + _ARRIVE + bytes((row, *range(40, 80))) + _ARRIVE + _BEAT + _BEAT + _ARRIVE
    for text in (b'{"type":"ping","id":7,"t":1e5}', b'{"type":"ping","status":"x","a":1,"a":2}', b"\xff", b"hello"):
        yield (
            b"\0" + _BEAT + _ARRIVE + _text(text) + _BEAT + bytes((_ROWS.index(_Life.text), len(text))) + text + _ARRIVE
        )
    suspected = _BEAT + _ARRIVE + _time(12.1)
    for kind in range(20):
        yield bytes((kind,)) + _BEAT + _ARRIVE + _BEAT + _BEAT + _ARRIVE + _time(6.1) + _BEAT + _ARRIVE
        yield bytes((kind,)) + _OPENING + _NUMBERED + _BEAT + _NUMBERED + _time(0.5) + _text(b'{"type":"ping","ack":1}')
        yield bytes((kind,)) + _OPENING + suspected + _BEAT + _ARRIVE + suspected + _ANSWER + _BEAT + _ARRIVE
        yield (
            bytes((kind,)) + _OPENING + _time(3.2) + _BEAT + _ARRIVE + _time(6.1) + _BEAT + _ARRIVE + _time(3.2) + _BEAT
        )
        yield bytes((kind,)) + suspected + _ANSWER + _BEAT + _ARRIVE + _text(b'{"type":"ping","away":true}') + _BEAT


def try_one(data: bytes) -> None:
    """The first byte says what servers there are."""
    choices = Choices(data)
    kind = choices.byte()
    make, beats = (ours, hosts)[kind & 1], _BEATS[kind // 4 % len(_BEATS)]
    ways = (SHORT, PLAIN, WATCHED) if kind & 2 else (SHORT, PLAIN)
    with no_failures(Mistake), Twins(make, ways, message_limit=2048, beats=beats) as twins:
        life = _Life(choices, twins)
        for _ in range(_STEPS):
            if not choices.left:
                break
            choices.pick(_ROWS)(life)
        life.flush()
        twins.advance(0.2)
        twins.compare()
