"""What stores say to Redis and hear from it: effects, sessions and messages as the words of a script, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from heartbeat.store import (
    Append,
    Effect,
    Fate,
    Head,
    Join,
    Kept,
    Leave,
    Mark,
    Missed,
    Numbers,
    Plain,
    Post,
    Say,
    Settle,
)

__all__ = ["MOST", "Argument", "arguments_of", "as_bytes", "as_text", "head_of", "kept_of", "nothing", "numbers_of"]

Argument = str | bytes | int

#: Lua's numbers are doubles.
MOST = 2**53

_KINDS: dict[str, Callable[[bytes], Any]] = {"float": float, "float | None": float, "int": int}


def as_bytes(text: str) -> bytes:
    """A text: JSON may hold a lone surrogate, which no name of a key may lose."""
    return text.encode("utf-8", "surrogatepass")


def as_text(value: bytes) -> str:
    """The same, back."""
    return value.decode("utf-8", "surrogatepass")


_HEAD = {field.name: _KINDS.get(str(field.type), as_text) for field in fields(Head) if field.name != "marks"}


def arguments_of(effects: Sequence[Effect]) -> list[Argument]:
    """Effects as a script takes them: each a word, and what belongs to it."""
    arguments: list[Argument] = []
    for effect in effects:
        arguments += _ARGUMENTS[type(effect)](effect)
    return arguments


def _receipt(receipt: str | None) -> bytes:
    # One that is empty is one, too.
    return b"" if receipt is None else b"=" + as_bytes(receipt)


def _append(effect: Append) -> list[Argument]:
    return ["append", as_bytes(effect.sid), effect.payload, _receipt(effect.receipt)]


def _mark(effect: Mark) -> list[Argument]:
    value = effect.value
    return ["mark", as_bytes(effect.sid), as_bytes(effect.key), int(value is not None), as_bytes(value or "")]


def _post(effect: Post) -> list[Argument]:
    names = (as_bytes(effect.to), effect.payload, _receipt(effect.receipt), as_bytes(effect.sender))
    return ["post", *names, effect.kept, effect.kept_bytes, effect.before, effect.after]


def _fate(effect: Fate) -> list[Argument]:
    about = (as_bytes(effect.sid), effect.seq, _receipt(effect.receipt), int(effect.confirmed))
    return ["fate", *about, len(effect.follows), *arguments_of(effect.follows)]


def _join(effect: Join) -> list[Argument]:
    about = (as_bytes(effect.group), as_bytes(effect.place), effect.more, effect.refused)
    return ["join", *about, as_bytes(effect.client), effect.most, int(effect.again)]


def _in_group(effect: Leave | Say) -> list[Argument]:
    kind = "leave" if isinstance(effect, Leave) else "say"
    return [kind, as_bytes(effect.group), as_bytes(effect.place), effect.more, effect.refused]


def _missed(effect: Missed) -> list[Argument]:
    return ["missed", as_bytes(effect.sid), len(effect.groups), *map(as_bytes, effect.groups)]


_ARGUMENTS: dict[type, Callable[[Any], list[Argument]]] = {
    Append: _append,
    Mark: _mark,
    Settle: lambda effect: ["settle", _receipt(effect.receipt)],
    Post: _post,
    Fate: _fate,
    Plain: lambda effect: ["plain", as_bytes(effect.to), effect.payload],
    Join: _join,
    Leave: _in_group,
    Say: _in_group,
    Missed: _missed,
}


def numbers_of(numbers: Sequence[int]) -> Numbers:
    """The number of each effect."""
    return tuple(number or None for number in numbers)


def nothing(_: object) -> None:
    """What is answered where there is nothing to say."""
    return


def kept_of(entries: Sequence[tuple[bytes, bytes, bytes]]) -> tuple[Kept, ...]:
    """The messages that are kept, in order."""
    return tuple(
        Kept(int(seq), payload, as_text(receipt[1:]) if receipt else None) for seq, payload, receipt in entries
    )


def head_of(sid: str, members: Sequence[bytes], marks: Sequence[bytes]) -> Head:
    """What a script tells of a session: the members of two hashes, names and values in turn."""
    named = {as_text(name): value for name, value in _pairs(members)}
    known = {name: read(named[name]) for name, read in _HEAD.items() if name in named}
    return Head(sid, marks={as_text(key): as_text(value) for key, value in _pairs(marks)}, **known)


def _pairs(flat: Sequence[bytes]) -> zip[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)
