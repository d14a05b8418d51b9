"""Server-sent events, and what an OpenAI-compatible server says in them, read from bytes as they arrive.

Pure: no I/O, no clock. Whatever a server sends ends in text or in one `ModelError`, and nothing is
held beyond a bound.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Protocol

from heartbeat.core.errors import HeartbeatError, PeerError
from heartbeat.core.messages import decode_object

__all__ = ["Events", "ModelError", "Reader", "Refusal", "Stream", "Whole", "reader_of", "well_formed"]

#: The largest event, and the largest answer that is not streamed.
MOST = 1_048_576
#: So much is read of an answer that says what went wrong.
_MOST_WORDS = 4096

_HALF = re.compile("[\ud800-\udfff]")
_CHARSET = re.compile(r"\s*;.*", re.DOTALL)


class ModelError(HeartbeatError):
    """A model gave no answer, or only a part: our sentence for it, and the server's own `words`, as they came."""

    def __init__(self, sentence: str, words: str = "") -> None:
        super().__init__(sentence)
        self.words = words


def well_formed(text: str) -> str:
    """The text with its surrogate halves joined, those without the other half replaced by U+FFFD."""
    if _HALF.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class Events:
    """The data of each event of a stream, which may be fed in pieces of any size.

    WHATWG HTML, section 9.2.6: lines end in CR LF, LF or CR; "if the line starts with a U+003A COLON character
    (:)", it is ignored; several `data` lines are joined by a line feed; an empty line dispatches the event.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._at_start = True
        self._after_return = False

    def feed(self, piece: bytes) -> Iterator[str]:
        """The data of the events that are complete by this piece. Raises ModelError for one that is too large."""
        for line in self._lines(piece):
            if line:
                self._take(line)
            elif self._data:
                data, self._data, self._size = b"\n".join(self._data), [], 0
                yield data.decode(errors="replace")

    def _lines(self, piece: bytes) -> Iterator[bytes]:
        if not piece:
            return
        if self._after_return:
            piece = piece.removeprefix(b"\n")
        self._after_return = piece.endswith(b"\r")
        for part in piece.splitlines(keepends=True):
            self._line += part
            self._bound(len(self._line))
            if part.endswith((b"\n", b"\r")):
                line = bytes(self._line).rstrip(b"\r\n")
                self._line.clear()
                if self._at_start:
                    # "one leading U+FEFF BYTE ORDER MARK character must be ignored if any are present"
                    line, self._at_start = line.removeprefix(b"\xef\xbb\xbf"), False
                yield line

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(line)
            self._bound(self._size)

    def _bound(self, size: int) -> None:
        if size > self._most:
            raise ModelError(f"the model's server sent an event of over {self._most} bytes")


class Reader(Protocol):
    """Reads the body of an answer.

    `is_over`: what still comes does not matter. `has_reason`: the model has said why it ended.
    """

    is_over: bool
    has_reason: bool

    def feed(self, piece: bytes) -> Iterator[str]:
        """The text that is there by this piece. Raises ModelError."""
        ...

    def end(self, *, cleanly: bool) -> Iterator[str]:
        """There is no more: the rest of the text. Raises ModelError where something is missing."""
        ...


class Stream:
    """An answer that comes as events, each with a few characters of it."""

    def __init__(self) -> None:
        self.is_over = self.has_reason = False
        self._events = Events()
        # The first half of a pair of surrogates, whose other half the next event may bring.
        self._half = ""

    def feed(self, piece: bytes) -> Iterator[str]:
        """Reader: events."""
        for data in self._events.feed(piece):
            if data.strip() == "[DONE]":
                self.is_over = True
                return
            yield self._text(data)

    def end(self, *, cleanly: bool) -> Iterator[str]:
        """Reader: complete is what was said to be, or gave a reason to end."""
        # An event that lacks its empty line is to be discarded; but this one says nothing that could be wrong.
        self.is_over = self.is_over or [data.strip() for data in self._events.feed(b"\n\n")] == ["[DONE]"]
        if not (self.is_over or self.has_reason):
            how = "ended before it was complete" if cleanly else "broke off in the middle"
            raise ModelError(f"the model's answer {how}")
        return iter(())

    def _text(self, data: str) -> str:
        choice = _choice(_object(data.encode()))
        self.has_reason = self.has_reason or bool(choice.get("finish_reason"))
        text = self._half + _content(choice.get("delta") or choice.get("message"))
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return well_formed(text[: len(text) - len(self._half)])


class Whole:
    """An answer in one piece of JSON."""

    def __init__(self) -> None:
        self.is_over = self.has_reason = False
        self._body = bytearray()

    def feed(self, piece: bytes) -> Iterator[str]:
        """Reader: nothing, yet."""
        self._body += piece
        if len(self._body) > MOST:
            raise ModelError(f"the model's server sent an answer of over {MOST} bytes in one piece")
        return iter(())

    def end(self, *, cleanly: bool) -> Iterator[str]:
        """Reader: all of it."""
        if not cleanly:
            raise ModelError("the model's answer broke off in the middle")
        whole = _object(bytes(self._body))
        if not whole.get("choices"):
            raise ModelError("the model's server sent JSON without an answer in it")
        return iter((well_formed(_content(_choice(whole).get("message"))),))


class Refusal:
    """An answer that is none, with the HTTP status that says so."""

    def __init__(self, status: int) -> None:
        self.is_over = self.has_reason = False
        self._status = status
        self._body = bytearray()

    def feed(self, piece: bytes) -> Iterator[str]:
        """Reader: the beginning of what it says is enough."""
        self._body += piece[:_MOST_WORDS]
        return self.end(cleanly=True) if len(self._body) >= _MOST_WORDS else iter(())

    def end(self, *, cleanly: bool) -> Iterator[str]:
        """Reader: raises what it is."""
        known = self._status in HTTPStatus.__members__.values()
        phrase = f" {HTTPStatus(self._status).phrase}" if known else ""
        turned = " (redirects are not followed)" if 300 <= self._status < 400 else ""
        raise ModelError(f"the model's server answered {self._status}{phrase}{turned}", self._words())

    def _words(self) -> str:
        try:
            said = decode_object(bytes(self._body))
        except PeerError:
            text = self._body.decode(errors="replace").strip()
            # A page for a browser says no more than the status does.
            return "" if text.startswith("<") else text
        return _words(said.get("error") or said)


def reader_of(status: int, media_type: str) -> Reader:
    """Who reads the body of an answer with this status and Content-Type (which may be missing). Raises ModelError."""
    if not 200 <= status < 300:
        return Refusal(status)
    kind = _CHARSET.sub("", media_type).strip().lower()
    if kind in ("text/event-stream", ""):
        return Stream()
    if kind == "application/json":
        return Whole()
    raise ModelError("the model's server answered with neither events nor JSON", f"Content-Type {kind}")


def _object(payload: bytes) -> dict[str, Any]:
    try:
        said = decode_object(payload)
    except PeerError:
        raise ModelError("the model's server sent what is not an object in JSON") from None
    if said.get("error"):
        raise ModelError("the model's server reports an error", _words(said["error"]))
    return said


def _choice(said: dict[str, Any]) -> dict[str, Any]:
    """The first choice; none in an event that tells of something else, such as the usage."""
    choices = said.get("choices") or [{}]
    if isinstance(choices, list) and isinstance(choices[0], dict):
        return choices[0]
    raise ModelError("the model's server sent choices that are none")


def _content(message: Any) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else ""


def _words(error: Any) -> str:
    """What an error says, wherever it says it."""
    if isinstance(error, dict):
        found = (error.get(name) for name in ("message", "detail", "error", "code"))
        return next((word for word in found if isinstance(word, str)), "")
    return error if isinstance(error, str) else ""
