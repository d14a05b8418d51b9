"""Any text in a frame: what is taken, what is refused, and what answers a ping.

The reference is the standard library's parser, told to keep every member and every number as they are spelt, and a
tokenizer of a few lines that knows where a value begins and ends. Nothing of it is the decoder's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from math import isinf
from typing import Any

from fuzz.choices import Choices
from fuzz.targets import Broken
from heartbeat.core.client_link import ClientLink
from heartbeat.core.errors import PeerError
from heartbeat.core.link import Close, Effects
from heartbeat.core.messages import (
    OWNED,
    OWNED_IN_SESSION,
    _rebuilt,
    check_type,
    decode,
    decode_object,
    encode,
    error_frame,
    numberless,
    pong_frame,
)
from heartbeat.core.opening import declared, opening
from heartbeat.core.presence import Presence
from heartbeat.core.running import RunningTime
from heartbeat.core.server_link import ServerLink
from heartbeat.core.session import Bounds, Session
from heartbeat.core.settings import Settings

__all__ = ["LONGEST", "TOKENS", "beginnings", "try_one"]

#: A ping is at most 1024 bytes; one byte more says what it is asked.
LONGEST = 1100

# Deeper than this it depends on where one stands whether there is stack enough.
_DEEP = 200
_TOO_DEEP = object()
# What any error of ours may take.
_ERROR = 2048

#: What a server answers and what a client does, alone and in a session; and whose members these are.
_ENDS = (
    (OWNED, b',"status":"pong","clients":3}'),
    (OWNED_IN_SESSION, b',"status":"pong","clients":3,"ack":17}'),
    (OWNED, b',"status":"pong"}'),
    (OWNED_IN_SESSION, b',"status":"pong","ack":17}'),
)

_SETTINGS = Settings()
_BOUNDS = Bounds(1000, 1_048_576, 65_536)

TOKENS = (
    *rb"""
    "type":"ping" "type":"onopen" "type":"ack" "type":"error" "type":"drain" "type":"x" "status":"pong" "status":"ok"
    "st\u0061tus" "clients":3 "clients" ,"ack":5 ,"ack": "away":true "id":7 "id" "seq":1 "seq" "v":1 "v" "t" "a":1 {"a":
    "beats":"server" "both" "none" "interval_ms":1000 "client_id":"alice" "token":"" "session":null "resumed":true
    "session":{"sid":"s","epoch":"e","last":0,"sent":0,"try":1} "last":0 "sent":0 "try":1 "reason":"gap" "window_ms":1
    "watch_ms":1 "timeout_ms":[1,2] "probe_ms":1 "limits":{"kept":1,"kept_bytes":1,"message":1} "min_ms":0,"max_ms":1
    12345678901234567890123 9007199254740993 18446744073709551616 -0 1e5 1E400 -1 0.1 NaN Infinity true false null
    \ud800 \udfff \ud83d\ude00 \u0000 \" \\ \/ { } [ ] : , " {} [] "" [[ ]]
    """.split(),
    *(b"\xc3\xbc", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\xff", b"\xef\xbb\xbf", b"\x7f", b"\0", b" ", b"\t\r\n"),
)

# What objects are built of, where the bytes choose and are no text.
_TYPES = (
    *('"ping"', '"onopen"', '"ack"', '"error"', '"drain"', '"onchat"', '"x"', '"p\\u0069ng"', '""', "7", "null"),
    *('["ping"]', '"\\ud800"', '"' + "y" * 70 + '"'),
)
_NAMES = (
    *("id", "t", "seq", "ack", "status", "clients", "away", "v", "beats", "interval_ms", "client_id", "token", ""),
    "session",
    *("sid", "epoch", "last", "sent", "try", "resumed", "reason", "window_ms", "watch_ms", "timeout_ms", "probe_ms"),
    *("limits", "kept", "kept_bytes", "message", "min_ms", "max_ms", "type", "st\\u0061tus", "\\ud800", "\x7f", "ü"),
)
_VALUES = (
    *("0", "1", "2", "3", "4", "-1", "-0", "1.0", "0.5", "1e5", "1e400", "-1e-400", "100", "86400001"),
    *("9007199254740992", "12345678901234567890123", "true", "false", "null", "[]", "[1,2]", "[2,1,0]", "{}"),
    *('{"a":{}}', "9007199254740991"),
    *('""', '"a"', '"c-1"', '"ok"', '"pong"', '"client"', '"both"', '"none"', '"gap"', '"\\u0000"', '"\\udfff"'),
    *('"\x7f"', '"😀"', '"a b"', '"' + "z" * 65 + '"', '"' + "z" * 129 + '"', '",\\"ack\\":"', '"}"', "NaN", "01"),
)
_SPACES = ("",) * 6 + (" ", "\n\t")

_OPENING = (
    b'{"type":"onopen","v":1,"beats":"both","interval_ms":1000.5,"client_id":"alice","token":"x",'
    b'"session":{"sid":"s","epoch":"e","last":1,"sent":2,"try":3}}'
)
_ANSWER = (
    b'{"type":"onopen","status":"ok","v":1,"client_id":"alice","sid":"s","epoch":"e","resumed":false,"reason":"gap",'
    b'"last":0,"sent":0,"window_ms":120000,"beats":"server","interval_ms":100,"watch_ms":6100,"timeout_ms":[3000,6000],'
    b'"probe_ms":3000,"limits":{"kept":4,"kept_bytes":4096,"message":1024},"clients":1}'
)


def beginnings() -> Iterable[bytes]:
    """A message of each kind, each mode once."""
    messages = (
        b'{"type":"ping"}',
        b'{"type":"ping","id":7,"t":1763900000.5,"ack":5}',
        b'{"type":"ping","ack":5,"p":{"x":1,"ack":6},"id":7}',
        b' { "type" : "ping" , "status" : "x", "clients":1, "n" : 1e5, "p": {"x":[1,{"status":2}]} } \n',
        b'{"type":"ping","a":1,"\\u0061":12345678901234567890123,"s":"\\ud800","\xc3\xbc":"\xf0\x9f\x98\x80"}',
        b'{"type":"ping","id":1,"status":"pong","clients":3,"ack":0}',
        b'{"type":"ping","id":1,"status":"pong","pad":"%b"}' % (b"x" * 1000),
        _OPENING,
        _ANSWER,
        b'{"type":"onopen"}',
        b'{"type":"onchat","id":"m1","to":"bob","text":"hi","seq":1,"ack":0}',
        b'{"type":"error","code":"full","detail":"x","re":"m1","seq":1}',
        b'{"type":"error","code":"x","seq":0}',
        b'{"type":"drain","min_ms":0,"max_ms":5000}',
        b'{"type":"ack","ack":0}',
        b'{"type":7}',
        b"[NaN]",
    )
    for at, message in enumerate(messages):
        for mode in range(0, 128, 13):
            yield bytes(((mode + at) % 128,)) + message
    for kind in range(len(_TYPES)):
        yield bytes((128 + kind * 9, kind, 3, *range(kind, kind + 20)))


def try_one(data: bytes) -> None:
    """The first byte says what the answerer knows; the rest is the text of a frame, or chooses what it is built of."""
    mode, payload = data[0] if data else 0, data[1:]
    if mode & 128:
        choices = Choices(payload)
        payload = _built(choices, [("type", choices.pick(_TYPES))]).encode()
    reference = _reference(payload)
    message = _decoded(payload, reference)
    if message is not None:
        _is_looked_at(message, payload)
        if message.get("type") == "ping":
            _is_answered(payload, message, *_ENDS[mode & 3])
    if mode & 8:
        _on_a_client(payload, message, mode)
    else:
        _on_a_server(payload, message, mode)


def _built(choices: Choices, members: list[tuple[str, str]]) -> str:
    """An object of these members, and of a few that are chosen."""
    for _ in range(choices.byte() % 6):
        name = choices.pick(_NAMES)
        is_inside = name in ("session", "limits") and choices.byte() % 2
        value = _built(choices, []) if is_inside else choices.pick(_VALUES)
        members.insert(choices.byte() % (len(members) + 1), (name, value))
    space = choices.pick(_SPACES)
    return "{" + ",".join(f'{space}"{name}"{space}:{space}{value}{space}' for name, value in members) + "}" + space


# The reference.


class _Number(str):
    """A number as it is spelt."""

    __slots__ = ()


class _Members(list[tuple[str, Any]]):
    """An object with every member that it has, twice what is twice in it."""

    __slots__ = ()


def _no_constant(name: str) -> None:
    raise ValueError(name)


_json = json.JSONDecoder(
    object_pairs_hook=_Members, parse_float=_Number, parse_int=_Number, parse_constant=_no_constant
)


def _reference(payload: bytes) -> Any:
    """What the standard library reads in it; a ValueError where that is no JSON, and where it cannot be told, that."""
    if payload.count(b"[") + payload.count(b"{") > _DEEP:
        return _TOO_DEEP
    try:
        return _json.decode(payload.decode())
    except ValueError as wrong:
        return wrong


def _plain(value: Any) -> Any:
    """What the reference read, as one would have it. Raises ValueError for a number that nobody can have."""
    if type(value) is _Members:
        return {name: _plain(each) for name, each in value}
    if type(value) is list:
        return [_plain(each) for each in value]
    if type(value) is not _Number:
        return value
    if value.lstrip("-").isdigit():
        return int(value)
    number = float(value)
    if isinf(number):
        raise ValueError(f"{value} is out of all range")
    return number


def _same(one: Any, two: Any) -> bool:
    """Whether both are the same, to the types of their numbers."""
    if type(one) is not type(two):
        return False
    if type(one) is dict:
        return one.keys() == two.keys() and all(_same(value, two[name]) for name, value in one.items())
    if type(one) is list:
        return len(one) == len(two) and all(map(_same, one, two))
    return bool(one == two)


# What is taken, and what is refused.


def _decoded(payload: bytes, reference: Any) -> dict[str, Any] | None:
    """The object in the payload, as the decoder has it, and as the reference does."""
    try:
        message = decode_object(payload)
    except PeerError as error:
        _is_error(error)
        if isinstance(reference, _Members) and _is_possible(reference):
            raise Broken(f"valid JSON is refused: {error.code}, {error.detail}") from error
        if error.code == ("bad-json" if isinstance(reference, ValueError) else "bad-message") or reference is _TOO_DEEP:
            return None
        if error.code == "bad-json" and not _is_possible(reference):
            return None
        raise Broken(f"what is no object is refused as {error.code}: {error.detail}") from error
    if reference is _TOO_DEEP:
        return message
    if not isinstance(reference, _Members):
        raise Broken(f"what is no JSON object is taken: {reference!r}")
    if not _is_possible(reference):
        raise Broken("a number out of all range is taken")
    expected = _plain(reference)
    if not _same(message, expected):
        raise Broken(f"it is read as {message!r}, and is {expected!r}")
    return message


def _is_possible(reference: Any) -> bool:
    try:
        _plain(reference)
    except ValueError:
        return False
    return True


def _is_error(error: PeerError) -> None:
    """An error of ours is a frame of ours, and short."""
    frame = error_frame(error)
    if len(frame) > _ERROR:
        raise Broken(f"an error of {len(frame)} bytes")
    told = _reference(frame)
    names = [name for name, _ in told] if isinstance(told, _Members) else told
    if names not in (["type", "code", "detail"], ["type", "code", "detail", "re"]):
        raise Broken(f"an error that is none: {frame!r}")
    expected = {"type": "error", "code": error.code, "detail": error.detail}
    if not _same(_plain(told), expected if error.re is None else expected | {"re": error.re}):
        raise Broken(f"an error that says something else: {frame!r}")


def _is_looked_at(message: dict[str, Any], payload: bytes) -> None:
    """All else that is made of a message, which may only be refused by a PeerError."""
    try:
        check_type(message)
        if decode(payload) != message:
            raise Broken("decoded twice, it is another")
    except PeerError as error:
        _is_error(error)
    again = encode(message)
    if not _same(decode_object(again), message):
        raise Broken(f"encoded and decoded, it is another: {again!r}")
    if "seq" in message:
        told = numberless(payload)
        if told != {name: value for name, value in message.items() if name not in ("seq", "ack")}:
            raise Broken(f"without its number it is another: {told!r}")
    if message.get("v") is not None:
        _is_opening(message)


def _is_opening(message: dict[str, Any]) -> None:
    try:
        asked = opening(message)
    except PeerError as error:
        _is_error(error)
    else:
        if asked.interval is not None and not 0 < asked.interval <= 86_400:
            raise Broken(f"a wish for {asked.interval} s")
        if asked.resume is not None and max(len(asked.resume.sid), len(asked.resume.epoch)) > 128:
            raise Broken("a session with an endless name")
    try:
        told = declared(message, _BOUNDS)
        timing = _SETTINGS.timing().declared_by(message)
    except PeerError as error:
        _is_error(error)
    else:
        if not (timing.interval >= 0.1 and 0 < timing.timeout_min <= timing.timeout_max and timing.watch > 0):
            raise Broken(f"nobody can beat like that: {timing}")
        if told is not None and not all(0 < one <= own for one, own in zip(told.bounds, _BOUNDS, strict=True)):
            raise Broken(f"a session with bounds beyond ours: {told.bounds}")


# The answer to a ping.

_TOKEN = re.compile(r'[ \t\n\r]*("(?:[^"\\]|\\.)*"|[^ \t\n\r"{}\[\]:,]+|[{}\[\]:,])', re.DOTALL)


def _members(text: str) -> list[tuple[str, str]]:
    """The members of an object that is valid: each name, and its value as it stands."""
    tokens = [(match[1], *match.span(1)) for match in _TOKEN.finditer(text)]
    found, at = [], 1
    while tokens[at][0] != "}":
        name, start, depth = tokens[at][0], tokens[at + 2][1], 0
        at += 2
        while depth or tokens[at][0] not in (",", "}"):
            depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(tokens[at][0], 0)
            at += 1
        found.append((json.loads(name), text[start : tokens[at - 1][2]]))
        at += tokens[at][0] == ","
    return found


def _is_answered(payload: bytes, message: dict[str, Any], owned: frozenset[str], end: bytes) -> None:
    """The answer is what was received, with ours in the place of whatever had their names."""
    try:
        pong, rebuilt = pong_frame(payload, message, end, owned), _rebuilt(payload, end, owned)
    except PeerError as error:
        if payload.count(b"[") + payload.count(b"{") <= _DEEP:
            raise Broken(f"a ping that is taken is not answered: {error.detail}") from error
        return
    if len(pong) > len(payload) + len(end):
        raise Broken(f"{len(pong)} bytes answer {len(payload)}")
    told = _reference(pong)
    if told is _TOO_DEEP:
        return
    if not isinstance(told, _Members):
        raise Broken(f"the answer is no JSON object: {pong!r}")
    ours = _members("{" + end[1:].decode())
    theirs = _members(payload.decode())
    kept = {name: text for name, text in theirs if name not in owned}
    for answer in {pong, rebuilt}:
        if _members(answer.decode()) != [*kept.items(), *ours]:
            raise Broken(f"the answer is not what was received, and ours: {answer!r}")
    if len(kept) == len(theirs) and pong != payload[: payload.rindex(b"}")] + end:
        raise Broken(f"nothing of it is ours, and the answer is not the text received: {pong!r}")


# At either end, and at every level.


def _server(mode: int) -> ServerLink:
    level = mode >> 4 & 3
    link = ServerLink(
        _SETTINGS, RunningTime(0.2, 0.0), 0.0, presence=Presence(40.0, 75.0), client_id="c-1", guest=bool(mode & 64)
    )
    link.open(0.0)
    if level:
        link.receive(b'{"type":"onopen","v":1}', False, 0.0)
        if level > 1:
            link.admitted(_session(), 0.0)
    else:
        link.receive(b'{"type":"ping"}', False, 0.0)
    return link


def _client(mode: int) -> ClientLink:
    level = mode >> 4 & 3
    link = ClientLink(_SETTINGS, RunningTime(0.2, 0.0), 0.0, guest=bool(mode & 64))
    link.open(0.0)
    if level == 1:
        link.receive(b'{"type":"ping","status":"pong","id":1}', False, 0.0)
    elif level:
        link.receive(b'{"type":"onopen","status":"ok","v":1,"sid":"s","epoch":"e","client_id":"a"}', False, 0.0)
        link.admitted(_session(), 0.0)
    return link


def _session() -> Session:
    return Session("s", "e", "a", _BOUNDS, sent=2, confirmed=1, handled=3, kept=(b'{"type":"x"}',))


def _on_a_server(payload: bytes, message: dict[str, Any] | None, mode: int) -> None:
    """The short answer to a ping is the one that it gets the long way, and leaves the same behind."""
    link, twin = _server(mode), _server(mode)
    before = _known(link)
    pong = link.beat(payload, 1.0)
    if pong is None and _known(link) != before:
        raise Broken("a text that is no ordinary ping has left its mark")
    told = twin.heard(1.0) + twin.receive(payload, False, 1.0)
    if pong is not None:
        if told != (pong,):
            raise Broken(f"the short answer is {pong!r}, the other {told!r}")
        if _known(link) != _known(twin):
            raise Broken(f"after the short answer is known {_known(link)}, after the other {_known(twin)}")
    _is_proper(told, message)


def _on_a_client(payload: bytes, message: dict[str, Any] | None, mode: int) -> None:
    client = _client(mode)
    _is_proper(client.heard(1.0) + client.receive(payload, False, 1.0), message)


def _is_proper(effects: Effects, message: dict[str, Any] | None) -> None:
    """What is said is JSON, what is never answered is not, and who is closed has broken a rule that has a number."""
    texts = [effect for effect in effects if type(effect) is bytes]
    if message is not None and texts and _is_never_answered(message):
        raise Broken(f"{message!r} is answered: {texts!r}")
    for text in texts:
        said = _reference(text)
        if not isinstance(said, _Members) and said is not _TOO_DEEP:
            raise Broken(f"what is said is no JSON object: {text!r}")
    for effect in effects:
        if type(effect) is Close and effect.code not in (4010, 4011, 1008):
            raise Broken(f"closed {effect.code}: {effect.reason}")


def _is_never_answered(message: dict[str, Any]) -> bool:
    kind = message.get("type")
    if kind == "ping":
        return bool(message.get("status") == "pong")
    return kind in ("error", "ack", "drain")


def _known(link: ServerLink) -> list[object]:
    """All that a server's link knows that a ping may change."""
    monitor, session = link.monitor, link.session
    known = [getattr(link, name) for name in ("_base", "_active_until", "_pinged_at", "spoke", "level", "_closed")]
    known += [getattr(monitor, name) for base in type(monitor).__mro__ for name in getattr(base, "__slots__", ())]
    if session is not None:
        known += [getattr(session, name) for name in Session.__slots__]
    return known
