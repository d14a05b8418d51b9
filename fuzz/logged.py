"""What is logged: a failure there is a finding, unless it was meant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from autobahn.websocket import protocol
from twisted.logger import LogLevel, globalLogBeginner, globalLogPublisher

from fuzz.targets import Broken

__all__ = ["no_failures", "quiet"]


def quiet() -> None:
    """Nobody reads the log, and nothing of it is kept, nor made: a connection's options are a quarter of its time."""
    protocol.pformat = lambda options: ""
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)


@contextmanager
def no_failures(*meant: type[BaseException]) -> Iterator[None]:
    """Raises Broken where a failure is logged meanwhile that is none of these."""
    found: list[dict[str, Any]] = []

    def look(event: dict[str, Any]) -> None:
        failure = event.get("log_failure")
        is_meant = failure is not None and failure.check(*meant)
        if (failure is not None or event.get("log_level") is LogLevel.critical) and not is_meant:
            found.append(event)

    globalLogPublisher.addObserver(look)  # type: ignore[arg-type]  # any function is one
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(look)  # type: ignore[arg-type]  # as above
    if found:
        event, failure = found[0], found[0].get("log_failure")
        raise Broken(f"logged: {event.get('log_format')}: {failure and failure.getTraceback()}")
