"""What is fuzzed: each target takes any bytes, lets something happen by them, and raises where a promise was broken.

A target is a module with `try_one(data)`, `beginnings()` (inputs to start from), `TOKENS` (what is good to insert),
`LONGEST` (bytes of an input) and `LOOKED_AT` (the modules in which it is to reach every corner).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Protocol

__all__ = ["LOOKED_AT", "NAMES", "Broken", "Target", "load"]

#: The harness of the tests on the wire stands here.
_WIRE = Path(__file__).resolve().parents[2] / "tests" / "wire"

_CORE = "heartbeat.core."

#: The targets by name, and the modules in which each is to reach every corner; so, before any of them is imported.
LOOKED_AT: dict[str, tuple[str, ...]] = {
    "decoder": tuple(
        _CORE + name for name in ("messages", "opening", "link", "server_link", "client_link", "settings", "monitor")
    ),
    "session": tuple(
        _CORE + name for name in ("session", "receipts", "opening", "link", "server_link", "client_link", "messages")
    ),
    "fastpath": (
        *(_CORE + name for name in ("messages", "link", "server_link", "opening")),
        *("heartbeat.fastpath", "heartbeat.frames", "heartbeat.lean", "heartbeat.mixin", "heartbeat.protocol"),
        *("heartbeat.edge", "heartbeat.ends", "autobahn.websocket.protocol"),
    ),
    "handshake": (
        *("heartbeat.handshake", "heartbeat.lean", "heartbeat.protocol", "heartbeat.mixin"),
        "autobahn.websocket.protocol",
    ),
}

NAMES = tuple(LOOKED_AT)


class Broken(Exception):
    """A promise was broken: which, in a sentence."""


class Target(Protocol):
    """A module of this package."""

    TOKENS: tuple[bytes, ...]
    LONGEST: int

    @staticmethod
    def try_one(data: bytes) -> None:
        """Let happen what these bytes say. Raises where a promise was broken."""

    @staticmethod
    def beginnings() -> Iterable[bytes]:
        """Inputs to start from."""


def load(name: str) -> Target:
    """The target of this name."""
    if str(_WIRE) not in sys.path:
        sys.path.insert(0, str(_WIRE))
    target: Target = import_module(f"{__name__}.{name}")  # type: ignore[assignment]  # a module is one
    return target
