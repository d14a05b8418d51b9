"""What was found: an input by which a promise is broken, made smaller, with the way to see it again."""

from __future__ import annotations

import hashlib
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

__all__ = ["Findings", "say"]

HERE = Path(__file__).resolve().parent
#: Seconds for which a finding is made smaller.
_PATIENCE = 20.0


def say(*words: object) -> None:
    """A line for whoever watches."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


class Findings:
    """Those of one target, each kind once."""

    def __init__(self, name: str, try_one: Callable[[bytes], None]) -> None:
        self._name = name
        self._try_one = try_one
        self._folder = HERE / "findings" / name
        self._kinds: set[str] = set()
        # What is there already is still to be mended, or broken again; it is not written twice.
        self._there = {self._kind_of(path.read_bytes()): path for path in kept(name)}

    def tried(self, data: bytes) -> None:
        """Try an input; what it breaks is written down."""
        kind = self._kind_of(data)
        if kind is None or kind in self._kinds:
            return
        self._kinds.add(kind)
        path = self._there.get(kind)
        if path is None:
            small = self._shrunk(data, kind)
            path = self._folder / hashlib.sha256(small).hexdigest()[:12]
            self._folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(small)
        say(f"finding {self._name}: {str(self._raised(path.read_bytes()))[:2000]}")
        say(f"finding {self._name}: again by: python -m fuzz {self._name} --replay {path}")

    def breaks(self, data: bytes) -> bool:
        """Whether an input breaks anything."""
        return self._raised(data) is not None

    def _raised(self, data: bytes) -> Exception | None:
        try:
            self._try_one(data)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what is sought
            return error
        return None

    def _kind_of(self, data: bytes) -> str | None:
        """Where it is raised, and with which words; None where nothing is."""
        error = self._raised(data)
        if error is None:
            return None
        last = traceback.extract_tb(error.__traceback__)[-1]
        # What is quoted is the input's, and another every time.
        words = re.findall(r"[A-Za-z_]+", re.split(r"[\[{('\"]", str(error))[0])
        return f"{type(error).__name__} {last.filename}:{last.lineno} {' '.join(words)}"

    def _shrunk(self, data: bytes, kind: str) -> bytes:
        """The same with all left out that can be: halves first, and in the end pieces of every small size."""
        until = time.monotonic() + _PATIENCE
        sizes = [len(data) >> power for power in range(1, len(data).bit_length())]
        for size in (*sizes, *range(16, 0, -1)):
            at = 0
            while at < len(data) and time.monotonic() < until:
                less = data[:at] + data[at + size :]
                if self._kind_of(less) == kind:
                    data = less
                else:
                    at += size
        return data


def kept(name: str) -> list[Path]:
    """The inputs that once broke a promise of this target."""
    return sorted(path for path in (HERE / "findings" / name).glob("*") if path.is_file())
