"""The session machine: any sequence of steps, beside a model that is too simple to be wrong.

What the first byte says: one end of a session alone, with any arguments; the receipts alone; two links and a session
between them, whom everything befalls that may befall honest ends; one link, and a stranger at the other end.
"""

from __future__ import annotations

from collections.abc import Iterable

from fuzz.alone import Alone, Waiting
from fuzz.choices import Choices
from fuzz.pair import Pair
from fuzz.stranger import Stranger

__all__ = ["LONGEST", "TOKENS", "beginnings", "try_one"]

#: So many bytes are a hundred steps and more.
LONGEST = 400

#: A step is a few bytes, and none of them is a word.
TOKENS = (b"\0", b"\1", b"\2", b"\3", b"\xff", b"\x80", b'{"type":"ping"}', b'{"type":"x","seq":1,"ack":0}', b'"ack":')

_LIVES: tuple[type[Alone | Waiting | Pair | Stranger], ...] = (Alone, Waiting, Pair, Stranger)


# A session that opens, and one that is resumed.
_OPENS = ("server reads all", "server decides", "client reads all", "client decides", "server reads all")
_BOTH_HANDLE = ("server handles", "client handles") * 2
_BOTH_SEND = ("client sends", "server sends", "client writes", "server writes", "server reads all", "client reads all")
_RESUMES = ("cut", "connect", *_OPENS)
_STORIES = (
    (*_OPENS, *_BOTH_SEND, *_BOTH_HANDLE, "server acknowledges", "client acknowledges"),
    (*_OPENS, *_BOTH_SEND, *_RESUMES, "client writes", "server writes", "server reads all", "client reads all"),
    (*_OPENS, *_BOTH_SEND, "server crashes", "connect", *_OPENS, "client handles", "client acknowledges"),
    (*_OPENS, *_BOTH_SEND, "client crashes", "client sends", "connect", *_OPENS, "server handles", "client writes"),
    (*_OPENS, *_BOTH_SEND, "server handles", "cut", "connect", "server reads all", "server decides", *_RESUMES),
    (*_OPENS, *_BOTH_SEND, "forget", "connect", *_OPENS, *_BOTH_SEND, *_BOTH_HANDLE),
    (*_OPENS, *("client sends", "server sends") * 5, "client writes", "server writes", "time", "time", *_RESUMES),
)


def beginnings() -> Iterable[bytes]:
    """Each kind of life with each of its steps, alone and in a row; and what an honest pair lives through mostly."""
    for story in _STORIES:
        yield bytes((_LIVES.index(Pair),)) + Pair.story(*story)
    for kind in range(len(_LIVES)):
        yield bytes((kind,)) + bytes(range(1, 120))
        yield bytes((kind, *(step * 7 % 256 for step in range(150))))
        for step in range(32):
            yield bytes((kind, 3, step, 1, step, 2, step, 3, 0, 0))


def try_one(data: bytes) -> None:
    """Live by these bytes."""
    choices = Choices(data)
    life = choices.pick(_LIVES)(choices)
    while choices.left:
        life.step()
    life.finish()
