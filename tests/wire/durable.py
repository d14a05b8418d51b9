"""A store that outlives its process, in virtual time: what is committed stays, what is under way goes with it."""

from collections import deque

from twisted.internet.defer import Deferred, fail, succeed

from heartbeat.core.errors import StoreError
from heartbeat.store import MemoryStore


class DurableStore:
    """One process's view of a disk, a `MemoryStore` that holds what is committed.

    What is asked is carried out in order, in groups as a busy disk does it: all that was asked when a commit
    begins is one transaction, whole or not at all. `delay()` is how long a commit takes, in seconds of the machine's
    clock; without it every method returns the value itself, at once. `crash()` is the end of the process.
    """

    def __init__(self, disk=None, reactor=None, delay=None):
        self.disk = disk if disk is not None else MemoryStore()
        self._reactor = reactor
        self._delay = delay
        self._asked = deque()
        self._busy = False
        self._open = self._crashed = False
        self._stopped = []
        self.commits = 0

    def crash(self):
        """The process ends: what is not committed never was asked."""
        self._asked.clear()
        self._crashed = True

    def start(self):
        """Store: open it."""
        self._open = True
        return self._ask("start")

    def stop(self):
        """Store: finish what was asked, and close it."""
        self._open = False
        if not self._busy:
            return succeed(None) if self._delay else None
        stopped = Deferred()
        self._stopped.append(stopped)
        return stopped

    def open(self, head):
        """Store: begin a session."""
        return self._ask("open", head)

    def append(self, effects):
        """Store: carry out effects."""
        return self._ask("append", tuple(effects))

    def handle(self, sid, fence, seq, effects):
        """Store: note what is handled."""
        return self._ask("handle", sid, fence, seq, tuple(effects))

    def confirm(self, sid, fence, upto, effects):
        """Store: forget what is confirmed."""
        return self._ask("confirm", sid, fence, upto, tuple(effects))

    def replay(self, sid, after):
        """Store: what is kept."""
        return self._ask("replay", sid, after)

    def detach(self, sid, fence, at):
        """Store: nobody is connected."""
        return self._ask("detach", sid, fence, at)

    def take_over(self, sid, attempt):
        """Store: raise the fence."""
        return self._ask("take_over", sid, attempt)

    def expire(self, sid, fence, effects):
        """Store: end a session."""
        return self._ask("expire", sid, fence, tuple(effects))

    def _ask(self, name, *arguments):
        if self._delay is None:
            return getattr(self.disk, name)(*arguments)
        if self._crashed:
            return Deferred()
        if not self._open:
            return fail(StoreError("the store is not open"))
        answer = Deferred()
        self._asked.append((name, arguments, answer))
        self._begin()
        return answer

    def _begin(self):
        """The disk is idle: it takes on all that was asked so far."""
        if self._busy or not self._asked:
            return
        self._busy = True
        group, self._asked = self._asked, deque()
        self._reactor.callLater(self._delay(), self._commit, group)

    def _commit(self, group):
        self.commits += 1
        results = []
        for name, arguments, answer in group:
            try:
                results.append((answer.callback, getattr(self.disk, name)(*arguments)))
            except StoreError as error:
                results.append((answer.errback, error))
        # It is on the disk; that the process learns of it takes another moment, in which it may crash.
        self._reactor.callLater(self._delay(), self._told, results)

    def _told(self, results):
        self._busy = False
        self._begin()
        for tell, result in results:
            tell(result)
        if not self._busy:
            stopped, self._stopped = self._stopped, []
            for deferred in stopped:
                deferred.callback(None)
