"""A Deferred whose failure may be ignored. The only file that touches a Deferred's private parts."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

__all__ = ["QuietDeferred"]


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
