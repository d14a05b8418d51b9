"""The corpora: that of the repository, small, and what grows beside it and is nobody's but this machine's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["corpus", "grown", "keep", "read", "write"]

HERE = Path(__file__).resolve().parent


def corpus(name: str) -> Path:
    """The folder of a target's corpus, as it is in the repository."""
    return HERE / "corpus" / name


def grown(name: str) -> Path:
    """The folder where what a fuzzer keeps goes, unless it is told another."""
    return HERE.parent / ".fuzz" / name


def read(folder: Path) -> list[bytes]:
    """All inputs in a folder, the shortest first, in the same order wherever they are read."""
    return sorted(
        (path.read_bytes() for path in folder.glob("*") if path.is_file()), key=lambda data: (len(data), data)
    )


def write(folder: Path, data: bytes) -> None:
    """Put an input into a folder, by a name that says what is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def keep(
    folder: Path, inputs: Iterable[bytes], breaks: Callable[[bytes], bool], reached: set[int]
) -> tuple[int, int, int]:
    """Have only inputs there that reach what no shorter one does; how many, their bytes, and what they reach.

    One that breaks something is a finding, and no part of a corpus.
    """
    known: set[int] = set()
    wanted: list[bytes] = []
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        reached.clear()
        if not breaks(data) and not reached <= known:
            known |= reached
            wanted.append(data)
    for path in folder.glob("*"):
        path.unlink()
    for data in wanted:
        write(folder, data)
    return len(wanted), sum(map(len, wanted)), len(known)
