"""A reactor of our own: Twisted's for epoll, timed by a clock that nobody sets, with a lean way to those who are ready.

Chosen by `twistd --reactor=heartbeat`, on Linux. A step of the system clock changes nothing for its timers. Never
drops an error: what a descriptor raises is logged in its context and ends it, as with every reactor of Twisted's. What
it leaves out is the context for each ordinary event, which only what is logged while reading would show.
"""

from __future__ import annotations

import sys
import time
from errno import EINTR
from typing import Any

from twisted.python import log

if sys.platform != "linux":
    raise ImportError("the reactor of txheartbeat needs epoll, which only Linux has; choose another")

from twisted.internet.epollreactor import EPOLLIN, EPollReactor

__all__ = ["HeartbeatReactor", "install"]

# As many events are taken at a time; with fewer, the rest come first in the next turn.
_EVENTS = 1024


class HeartbeatReactor(EPollReactor):
    """The epoll reactor, in monotonic seconds."""

    # IReactorTime, and the clock of every delayed call.
    seconds = staticmethod(time.monotonic)

    def doPoll(self, timeout: float | None) -> None:
        """Twisted's: wait for at most so many seconds (None: for ever), and let whoever is ready read or write."""
        try:
            events = self._poller.poll(-1 if timeout is None else timeout, _EVENTS)
        except OSError as error:
            if error.errno == EINTR:
                return
            raise
        selectables = self._selectables
        for number, event in events:
            selectable = selectables.get(number)
            if selectable is None:
                # Somebody before it in this turn has closed it.
                continue
            if event != EPOLLIN:
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, number, event)
                continue
            try:
                why = selectable.doRead()
            except BaseException as error:  # noqa: BLE001  # as the other reactors do: a bug ends its connection alone
                log.callWithLogger(selectable, self._failed, selectable, error)
            else:
                if why:
                    log.callWithLogger(selectable, self._disconnectSelectable, selectable, why, True)

    def _failed(self, selectable: Any, error: BaseException) -> None:
        log.err()
        self._disconnectSelectable(selectable, error, False)  # type: ignore[no-untyped-call]  # Twisted's

    doIteration = doPoll


def install() -> None:
    """Make it this process's reactor. Raises ReactorAlreadyInstalledError when there is one."""
    from twisted.internet.main import installReactor  # noqa: PLC0415  # it looks at the global reactor

    installReactor(HeartbeatReactor())  # type: ignore[no-untyped-call]  # Twisted's
