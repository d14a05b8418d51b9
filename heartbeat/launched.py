"""The service where the process is ours, under twistd or twist: its log, its signals, and who started it.

What is done here changes the process as a whole, which is why an application that embeds `HeartbeatService` has nothing
of it: the log's form, SIGHUP, word to a service manager, the garbage collector.
"""

from __future__ import annotations

import gc
import os
import signal
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from heartbeat import logs
from heartbeat.core.errors import StoreError
from heartbeat.notify import Manager
from heartbeat.service import HeartbeatService
from heartbeat.sqlite import SqliteStore

__all__ = ["Launched"]

# When the garbage collector looks through the youngest objects, those that it has seen once, and all: after so many new
# ones, and so many of the looks before. Python's own numbers are 700, 10 and 10. With 10,000 and 10 a look at those
# that it had seen once took up to 100 ms among 10,000 connections (November 2026). All are looked through as seldom.
_LOOKS = 500, 1, 1000


class Launched(HeartbeatService):
    """A server as a process. `launcher` are the options of twistd (or twist), where the log is to be JSON."""

    launcher: Any = None
    #: Who is told how it goes (`heartbeat.notify.Manager`), where that is not whom the environment names.
    manager: Any = None

    _manager: Any = None
    _watchdog: LoopingCall | None = None
    # The signal that we took, and who had it.
    _before: tuple[Any, Any] | None = None

    def setServiceParent(self, parent: Any) -> None:
        """Twisted's: the application has it, and is about to have a log."""
        if self.launcher is not None:
            logs.begin(self.launcher, parent)
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]  # Twisted's

    def privilegedStartService(self) -> None:
        """Listen; what stands in the way is said in a sentence."""
        try:
            super().privilegedStartService()  # type: ignore[no-untyped-call]  # Twisted's
        except (CannotListenError, OSError, OverflowError, ValueError) as error:
            raise SystemExit(f"heartbeat: {error}") from None

    def startService(self) -> None:
        """Start, if the store can be used."""
        store = self.factory.heartbeat.sessions.store
        if isinstance(store, SqliteStore):
            try:
                store.check()
            except StoreError as error:
                raise SystemExit(f"heartbeat: {error}") from None
        super().startService()
        self._manager = self.manager or Manager.of(os.environ)
        # Before anything is said by which somebody may know that it is time to hang up.
        self._mind_hangups()
        if self.certificate is not None:
            self.certificate.tell()
        self._mind_the_manager()
        # What is there now stays. To look through it, and through all connections for every 700 objects that are new,
        # made the slowest handshakes of a storm wait two to three times as long (64 ms, now 21 to 31; November 2026).
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_LOOKS)

    def stopService(self) -> Deferred[None]:
        """Say that it ends, and end."""
        if self._manager is not None:
            self._manager.stopping()
        return super().stopService().addBoth(self._let_go)

    def _mind_the_manager(self) -> None:
        """Tell whoever started us when we are ready, and from then on that the reactor turns, if he wants to know."""
        manager = self._manager
        if manager is None:
            return
        if manager.patience is not None:
            self._watchdog = LoopingCall(manager.alive)
            self._watchdog.clock = self.factory.reactor
            self._watchdog.start(manager.patience / 2, now=False)
        # Listening it is already; and who comes before the store was read waits for that.
        self.factory.heartbeat.sessions.start().addCallbacks(lambda _: manager.ready(), self._is_not_ready)

    def _is_not_ready(self, _failure: Failure) -> None:
        """The store cannot be read: the log has said so, and the manager hears nothing, which is what he acts upon."""

    def _mind_hangups(self) -> None:
        """SIGHUP has the certificate read again. Where there is none it ends the process, as it ends any other.

        Not so under a service manager, who means a reload by it.
        """
        which = getattr(signal, "SIGHUP", None)
        if which is None or (self.certificate is None and self._manager is None):
            return
        reactor = self.factory.reactor
        self._before = which, signal.signal(which, lambda *_: reactor.callFromThread(self._hung_up))

    def _hung_up(self) -> None:
        if self._manager is not None:
            self._manager.reloading()
        if self.certificate is not None:
            self.certificate.reload()
        if self._manager is not None:
            self._manager.ready()

    def _let_go(self, result: Any) -> Any:
        """Nothing is left of us in the process."""
        if self._before is not None:
            signal.signal(*self._before)
            self._before = None
        if self._watchdog is not None:
            self._watchdog.stop()
            self._watchdog = None
        return result
