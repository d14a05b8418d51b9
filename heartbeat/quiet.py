"""Quieter ones of what others make: a Deferred whose failure may be ignored, a logger without a line for each stranger.

The only file that touches a Deferred's private parts.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

__all__ = ["FewerLines", "QuietDeferred"]


class QuietDeferred(Deferred[None]):
    """Fires with None or fails, like any other; but nobody is told of an "Unhandled error" when nobody asks.

    A later `addErrback` still gets the failure.
    """

    def errback(self, fail: Failure | BaseException | None = None) -> None:
        """Fail, without the note to the log that an ignored failure would leave when it is collected."""
        super().errback(fail)
        if self._debugInfo is not None:
            self._debugInfo.failResult = None

    @classmethod
    def failed(cls, error: Exception) -> QuietDeferred:
        """One that has failed already."""
        deferred = cls()
        deferred.errback(Failure(error))
        return deferred

    @classmethod
    def fired(cls) -> QuietDeferred:
        """One that has fired already."""
        deferred = cls()
        deferred.callback(None)
        return deferred


class FewerLines:
    """Autobahn's logger, but for what it says of each connection that it fails or drops: that is counted."""

    _OF_EACH = ("failing WebSocket ", "dropping connection ")

    def __init__(self, log: Any) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def info(self, line: str, **fields: Any) -> None:
        """Autobahn's: something worth a line."""
        if not line.startswith(self._OF_EACH):
            self._log.info(line, **fields)

    def warn(self, line: str, **fields: Any) -> None:
        """Autobahn's: something worth a warning."""
        if not line.startswith(self._OF_EACH):
            self._log.warn(line, **fields)
