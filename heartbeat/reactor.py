"""A reactor of our own: Twisted's for epoll, timed by a clock that nobody sets, with a lean way to those who are ready.

Chosen by `twistd --reactor=heartbeat`, on Linux. A step of the system clock changes nothing for its timers. Never
drops an error: what a descriptor raises is logged in its context and ends it, as with every reactor of Twisted's. What
it leaves out is the context for each ordinary event, which only what is logged while reading would show.

Whoever is to be `read_last` is read from when all others were: in every turn for a fourth of the time that they took,
and for a millisecond while none of them is ready again. Strangers who come in any number do not keep waiting who is
known, and wait for nobody for ever.
"""

from __future__ import annotations

import sys
import time
from errno import EINTR
from itertools import chain
from typing import Any

from twisted.internet.tcp import Port, Server
from twisted.python import log

if sys.platform != "linux":
    raise ImportError("the reactor of txheartbeat needs epoll, which only Linux has; choose another")

from twisted.internet.epollreactor import EPOLLIN, EPollReactor, epoll

__all__ = ["HeartbeatReactor", "install"]

# As many events are taken at a time; with fewer, the rest come first in the next turn.
_EVENTS = 1024

# The last have so many seconds of a turn while none of the others is ready, and in any case this part of what the
# others took, and one of them is read; a port that listens lets in so many at a time.
_FOR_THE_LAST = 0.001
_PART = 0.25
_A_FEW = 2


class HeartbeatReactor(EPollReactor):
    """The epoll reactor, in monotonic seconds."""

    # IReactorTime, and the clock of every delayed call.
    seconds = staticmethod(time.monotonic)

    def __init__(self) -> None:
        # The others' poller sees one of its own in this one, whenever anybody in it is ready.
        self._last_poller = epoll()
        # Who is to be read last, and those of them who are being read, by their descriptors' numbers.
        self._last: set[Any] = set()
        self._last_reads: dict[int, Any] = {}
        # While one of these ports lets somebody in: he is read last from the beginning.
        self._lets_in = False
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        self._last_number = self._last_poller.fileno()
        self._poller.register(self._last_number, EPOLLIN)

    def read_last(self, reader: Any) -> None:
        """Read from this socket of Twisted's after all others until it is lost, also when it was paused in between."""
        if reader in self._last:
            return
        number = reader.fileno()
        is_read = number in self._reads and self._selectables.get(number) is reader
        if is_read:
            super().removeReader(reader)  # type: ignore[no-untyped-call]  # Twisted's
        self._last.add(reader)
        if is_read:
            self.addReader(reader)

    def read_first(self, reader: Any) -> None:
        """Read from it as from any other."""
        if reader not in self._last:
            return
        is_read = self._last_reads.get(reader.fileno()) is reader
        if is_read:
            self.removeReader(reader)
        self._last.discard(reader)
        if is_read:
            super().addReader(reader)  # type: ignore[no-untyped-call]  # Twisted's

    def addReader(self, reader: Any) -> None:
        """Twisted's: read from it whenever it is ready."""
        if self._lets_in and isinstance(reader, Server) and getattr(reader.protocol, "transport", None) is None:
            # Whoever comes is nobody's yet. (Others who are there may go on just now.)
            self._last.add(reader)
        if reader not in self._last:
            super().addReader(reader)  # type: ignore[no-untyped-call]  # Twisted's
            return
        number = reader.fileno()
        if self._last_reads.get(number) is not reader:
            self._last_poller.register(number, EPOLLIN)
            self._last_reads[number] = reader

    def removeReader(self, reader: Any) -> None:
        """Twisted's: read from it no more."""
        if reader not in self._last:
            super().removeReader(reader)  # type: ignore[no-untyped-call]  # Twisted's
            return
        number = reader.fileno()
        if number < 0:
            # It was closed, and the kernel has forgotten it.
            self._last_reads = {at: one for at, one in self._last_reads.items() if one is not reader}
        elif self._last_reads.get(number) is reader:
            del self._last_reads[number]
            self._last_poller.unregister(number)
        if getattr(reader, "disconnected", False):
            # Twisted's says so before it stops reading.
            self._last.discard(reader)

    def getReaders(self) -> list[Any]:
        """Twisted's: who is being read from."""
        return [*super().getReaders(), *self._last_reads.values()]  # type: ignore[no-untyped-call]  # Twisted's

    def removeAll(self) -> list[Any]:
        """Twisted's: nobody is read from or written to any more; who was, each of them once."""
        last = list(self._last_reads.values())
        for reader in last:
            self.removeReader(reader)
        return list(dict.fromkeys(chain(super().removeAll(), last)))  # type: ignore[no-untyped-call]  # Twisted's

    def doPoll(self, timeout: float | None) -> None:
        """Twisted's: wait for at most so many seconds (None: for ever), and let whoever is ready read or write."""
        try:
            events = self._poller.poll(-1 if timeout is None else timeout, _EVENTS)
        except OSError as error:
            if error.errno == EINTR:
                return
            raise
        began, the_last_are_ready = time.monotonic(), False
        selectables = self._selectables
        for number, event in events:
            selectable = selectables.get(number)
            if selectable is None:
                # Somebody before it in this turn has closed it, or it is the poller of the last.
                the_last_are_ready = the_last_are_ready or number == self._last_number
            elif event == EPOLLIN:
                self._read(selectable)
            elif number not in self._last_reads or not event & self._POLL_DISCONNECTED:
                log.callWithLogger(selectable, self._doReadOrWrite, selectable, number, event)
            # Else it is read last, and so is its end: after what it had said before.
        if the_last_are_ready:
            self._read_the_last(began)

    def _read_the_last(self, began: float) -> None:
        """Read from those who are read last: from one at least, and from more while it is their time."""
        now = time.monotonic()
        theirs, latest = now + _PART * (now - began), now + _FOR_THE_LAST
        while True:
            # One by one: of several that are taken out at a time all must be read, or always the same would be left.
            events = self._last_poller.poll(0, 1)
            if not events:
                return
            reader = self._last_reads.get(events[0][0])
            # Else somebody has closed it. Whatever the event was: an end, or an error, shows when it is read.
            if isinstance(reader, Port):
                self._let_in(reader)
            elif reader is not None:
                self._read(reader)
            now = time.monotonic()
            if now >= theirs and (now >= latest or self._others_are_ready()):
                return

    def _let_in(self, port: Port) -> None:
        # It would accept as many as there are.
        port.numberAccepts = _A_FEW
        self._lets_in = True
        try:
            self._read(port)
        finally:
            self._lets_in = False

    def _others_are_ready(self) -> bool:
        return any(number != self._last_number for number, _ in self._poller.poll(0, 2))

    def _read(self, selectable: Any) -> None:
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

    installReactor(HeartbeatReactor())
