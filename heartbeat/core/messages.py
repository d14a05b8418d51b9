"""The wire, as prose and as the functions that read and write it.

Text frames, one JSON object each, with a `type`. Names ending in `_ms` are integers in milliseconds.
Reserved types: `onopen`, `ping`, `ack`, `error`, `drain`.

**Level 0** is what any page can write. `{"type": "onopen"}` is optional and answered with
`{"type": "onopen", "status": "ok", "client_id": …, "interval_ms": …, "clients": n}`.
`{"type": "ping", …}`, sent every few seconds, is answered to that client only: the answer is the
text received, its values not re-encoded, with `,"status":"pong","clients":n` before the last brace.
Those two members are the answerer's: a ping that already holds one of them, or holds any member
twice, is rebuilt, ours in the place of theirs. So whatever a page puts into its ping (`id`,
`t`, a 23-digit number) comes back as it was.

**Level 1** begins with the answer to an `onopen` that holds `"v": 1`. The client wishes (`beats`,
`interval_ms`, `client_id`), the server declares what holds (`watch_ms`, `timeout_ms`, `probe_ms`,
`limits` besides). From then on a server that pings sends `{"type": "ping", "id": n}`. While the server
judges that `onopen`, every other answer on the connection waits behind it.

**A session** comes with level 1 and outlives its connections. The application's messages, and errors about
them, carry `seq`: 1, 2, 3 … in each direction for as long as the session lives. Every ping, pong and
numbered message carries `ack`, the number up to which all handlers have finished; only this lets the other
end forget. Alone it is `{"type": "ack", "ack": n}`. In the answer to a ping `ack` is the answerer's too. A
client that comes back names its session, `"session": {"sid": …, "epoch": …, "last": n, "sent": m, "try": k}`:
what it has handled, what it has sent, and how often it has tried. Both ends then send again what the
other has not handled, in order, and drop what they have received before.

`error`, `ack`, `drain` and every ping with `"status": "pong"` are never answered, so that two ends
cannot loop. What cannot be taken is answered by
`{"type": "error", "code": …, "detail": "a sentence", "re": <type or id>}`; the connection stays open.

A lone surrogate escape (which `JSON.stringify` emits) is valid, and of a member that appears twice
the last one counts, whatever the JSON library says.
"""

from __future__ import annotations

import json
import re as regex
from math import isinf
from typing import Any, TypeGuard

import msgspec

from heartbeat.core.errors import PeerError

__all__ = [
    "NOT_QUICKLY",
    "OWNED",
    "OWNED_IN_SESSION",
    "VERSION",
    "ack_frame",
    "bad_json",
    "check_type",
    "decode",
    "decode_object",
    "drain_frame",
    "encode",
    "error_frame",
    "is_id",
    "no_number",
    "number_of",
    "numberless",
    "ping_frame",
    "pong_frame",
    "quickly",
    "re_of",
    "unknown_type",
]

#: The level-1 version that we speak.
VERSION = 1

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

#: What is read by the fast library alone: `quickly` decodes a text frame to whatever JSON it is; where that fails, by
#: one of these, `decode_object` knows what it is, or is not.
quickly = _decode
NOT_QUICKLY = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# The fast library refuses these, the wire does not.
_SURROGATE = regex.compile(rb"\\u[dD][89a-fA-F]")
_SPACE = regex.compile(r"[ \t\n\r]*")

#: The members of a pong that are the answerer's; in a session `ack` is one too.
OWNED = frozenset({"status", "clients"})
OWNED_IN_SESSION = frozenset({"status", "clients", "ack"})


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _in_range(digits: str) -> float:
    number = float(digits)
    if isinf(number):
        # As the fast library has it, also where another member of the same name takes its place.
        raise ValueError("a number is beyond the range of a double")
    return number


_slow = json.JSONDecoder(parse_constant=_no_constant, parse_float=_in_range)
_plainly = json.JSONEncoder(ensure_ascii=False).encode
_LONE = regex.compile("[\ud800-\udfff]")


def encode(message: dict[str, Any]) -> bytes:
    """A message as JSON; a lone surrogate is escaped, as it came. Raises TypeError for what JSON does not know."""
    try:
        return _encode(message)
    except UnicodeEncodeError:
        return json.dumps(message).encode()


def decode(payload: bytes) -> dict[str, Any]:
    """The message in a text frame: an object with a `type` that is text.

    Raises PeerError (`bad-json`, `bad-message`).
    """
    return check_type(decode_object(payload))


def decode_object(payload: bytes) -> dict[str, Any]:
    """The object in a text frame, whether or not it is a message. Raises PeerError (`bad-json`, `bad-message`)."""
    try:
        message = _decode(payload)
    except RecursionError:
        raise PeerError("bad-json", "nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as reason:
        message = _decode_slowly(payload, str(reason))
    if type(message) is not dict:
        raise PeerError("bad-message", "a message is a JSON object")
    return message


def numberless(payload: bytes) -> dict[str, Any] | PeerError:
    """The message in a numbered frame, as it was sent; the error where it is too deep to be decoded from here."""
    try:
        message = decode_object(payload)
    except PeerError as error:
        return error
    del message["seq"]
    message.pop("ack", None)
    return message


def check_type(message: dict[str, Any]) -> dict[str, Any]:
    """The object, which is a message. Raises PeerError (`bad-message`)."""
    if type(message.get("type")) is not str:
        raise PeerError("bad-message", "a message has a type, and the type is text")
    return message


def number_of(message: dict[str, Any], name: str, least: int) -> int | None:
    """The whole number in a member, None where there is no such member. Raises PeerError (`bad-message`)."""
    value = message.get(name)
    if value is None or (type(value) is int and value >= least):
        return value
    raise no_number(message, name, least)


def no_number(message: dict[str, Any], name: str, least: int) -> PeerError:
    """The refusal of a member that is no whole number from `least`; the message may be one of no type."""
    about = re_of(message) if type(message.get("type")) is str else None
    return PeerError("bad-message", f"{name} must be a whole number from {least}", about)


def _decode_slowly(payload: bytes, reason: str) -> Any:
    if _SURROGATE.search(payload) is None:
        raise bad_json(reason)
    try:
        return _slow.decode(payload.decode())
    except (ValueError, RecursionError) as slow_reason:
        raise bad_json(str(slow_reason)) from None


def bad_json(reason: str) -> PeerError:
    """The refusal of what is not JSON, with the parser's own words."""
    return PeerError("bad-json", f"not JSON: {reason}")


def pong_frame(payload: bytes, message: dict[str, Any], end: bytes, owned: frozenset[str] = OWNED) -> bytes:
    """The answer to the ping in `payload`, which decodes to `message`.

    `end` takes the place of the last brace: `,"status":"pong","clients":3}`; `owned` are the names
    of the members in it, which the asker may have used.
    """
    # A colon stands in every member, so as many colons as names means: no name twice, nothing nested.
    if payload.count(b":") == len(message) or _distinct(payload, message):
        if owned.isdisjoint(message):
            return payload[: payload.rindex(b"}")] + end
        # Our own clients write it last, so that it can be cut off.
        at = payload.rfind(b',"ack":')
        if at > 0 and payload[at + 7 : -1].isdigit() and OWNED.isdisjoint(message) and "ack" in owned:
            return payload[:at] + end
    return _rebuilt(payload, end, owned)


def _distinct(payload: bytes, message: dict[str, Any]) -> bool:
    return len(_members(payload)) == len(message)


def _rebuilt(payload: bytes, end: bytes, owned: frozenset[str]) -> bytes:
    kept = {name: text for name, text in _members(payload) if name not in owned}
    theirs = ",".join(f"{_quoted(name)}:{text}" for name, text in kept.items())
    return b"{" + theirs.encode() + end


def _quoted(name: str) -> str:
    """A name as JSON; escaped is only what must be, for an escape may be three times as long as what it stands for."""
    return _LONE.sub(lambda found: f"\\u{ord(found[0]):04x}", _plainly(name))


def _members(payload: bytes) -> list[tuple[str, str]]:
    """The members of an object that is known to be valid: each name, and its value's text as it stands."""
    text = payload.decode()
    found = []
    at = _skip(text, text.index("{") + 1)
    while text[at] != "}":
        name, at = json.decoder.scanstring(text, at + 1)  # type: ignore[attr-defined]  # missing from typeshed
        start = _skip(text, _skip(text, at) + 1)
        try:
            _, end = _slow.raw_decode(text, start)
        except RecursionError:
            # The fast library got a few levels deeper than this one can from here.
            raise PeerError("bad-json", "nested too deeply") from None
        found.append((name, text[start:end]))
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found


def _skip(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # the pattern matches anything


def ping_frame(ping_id: int, ack: int | None = None) -> bytes:
    """A ping of our own; in a session with what we have handled, as the last member."""
    if ack is None:
        return b'{"type":"ping","id":%d}' % ping_id
    return b'{"type":"ping","id":%d,"ack":%d}' % (ping_id, ack)


def ack_frame(ack: int) -> bytes:
    """What we have handled, alone."""
    return b'{"type":"ack","ack":%d}' % ack


def drain_frame(min_ms: int, max_ms: int) -> bytes:
    """The server is going: come back inside that window, counted from now."""
    return b'{"type":"drain","min_ms":%d,"max_ms":%d}' % (min_ms, max_ms)


def error_frame(error: PeerError) -> bytes:
    """The `error` message that answers what could not be taken."""
    message: dict[str, Any] = {"type": "error", "code": error.code, "detail": error.detail}
    if error.re is not None:
        message["re"] = error.re
    return encode(message)


def is_id(value: object) -> TypeGuard[str | int]:
    """Whether a message can be named by it, in an error and in a status: text of 1 to 64 characters, a whole number."""
    if type(value) is int:
        return abs(value) < 2**63
    return type(value) is str and 0 < len(value) <= 64


def re_of(message: dict[str, Any]) -> str | int:
    """What an error about `message` names: its id where that is short text or a number, else its type."""
    name = message.get("id")
    if type(name) is int and abs(name) < 2**63:
        return name
    if type(name) is not str or len(name) > 64:
        name = message["type"]
    return name[:64]


def unknown_type(message: dict[str, Any]) -> PeerError:
    """The refusal of a message of a type that nobody takes."""
    return PeerError("unknown-type", f"nobody here takes messages of type {message['type'][:64]}", re_of(message))
