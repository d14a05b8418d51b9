"""The little that an operator may do to a server."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger

from heartbeat.admin.view import View
from heartbeat.core.errors import CloseCode
from heartbeat.refusals import readable

__all__ = ["KICKED", "Deeds", "NobodyError", "NotAnsweredError"]

_log = Logger()

#: What a client that is kicked is told. 1008 is final: whoever comes back at once was not kicked.
KICKED = "ended by an operator"


class NobodyError(Exception):
    """There is none to whom it could be done."""


class NotAnsweredError(Exception):
    """Who was to answer has not, so it is not known whether it was done."""


class Deeds:
    """What may be done to the server that is seen by `view`; `drain` has it close all that is open."""

    def __init__(self, view: View, drain: Callable[[], object]) -> None:
        self._view = view
        self._drain = drain

    def kick(self, client_id: str) -> int:
        """End the connections of a client, who is not to come back by himself; how many these were.

        His sessions wait for as long as ever.
        """
        edges = self._view.edges_of(client_id)
        for edge in edges:
            edge.guarded(edge.cut, CloseCode.POLICY, KICKED)
        if edges:
            _log.info("kicked {client_id}: {count} connection(s)", client_id=readable(client_id), count=len(edges))
        return len(edges)

    def drain(self) -> bool:
        """Have the server ask everybody to come back later, and listen no more; it can still be watched. True."""
        _log.info("drained by an operator")
        maybeDeferred(self._drain).addErrback(
            lambda failure: _log.failure("the server could not be drained; this is a bug", failure)
        )
        return True
