"""Disks that outlive processes, and what a process has of them: the tables of the SQLite store, in memory.

What is committed stays, what is under way goes with its process. The transactions are those of `heartbeat.tables`; in
the place of its thread there is the world's heap.
"""

import copy
import sqlite3
from collections import deque
from functools import partial

from twisted.internet.defer import Deferred, fail, succeed

from heartbeat.core.errors import StoreError
from heartbeat.store import MemoryStore
from heartbeat.tables import Tables, claim

# Who writes with a fence: a late write of theirs must be refused once somebody else has the session.
_FENCED = frozenset({"handle", "confirm", "detach", "expire"})


class Disk:
    """What is committed. `late` are the writes of a former process that are still on their way to it."""

    def __init__(self):
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        claim(":memory:", self._connection)
        self.tables = Tables(self._connection)
        self.late = {}

    def copy(self):
        """A copy of it, as somebody makes one who copies a file, or a tab."""
        copy = Disk()
        self._connection.backup(copy._connection)
        return copy

    def heads(self):
        """The sessions on it."""
        return self.tables.contents().heads

    def kept(self, sid):
        """The messages that it keeps for a session."""
        return self.tables.replay(sid, 0)

    def close(self):
        """Nobody needs it any more."""
        self._connection.close()


class QuickDisk:
    """One without delay: what is asked is committed, and told, at once."""

    def __init__(self):
        self.memory = MemoryStore()

    def copy(self):
        """A copy of it."""
        twin = QuickDisk()
        twin.memory = copy.deepcopy(self.memory)
        return twin

    def heads(self):
        """The sessions on it."""
        return self.memory.start().heads

    def kept(self, sid):
        """The messages that it keeps for a session."""
        return self.memory.replay(sid, 0)

    def close(self):
        """Nobody needs it any more."""


class DiskStore:
    """One process's view of a disk: what is asked while a commit is under way is committed together, after it."""

    def __init__(self, world, machine, disk, slowness, chance):
        self.disk = disk
        self._world = world
        self._machine = machine
        self._slowness = slowness
        self._chance = chance
        self._asked = deque()
        self._busy = self._open = self._crashed = False
        self._stopped = []
        self._then = None

    def when_busy(self, then):
        """Have `then()` called in the midst of the next write, before or after it is on the disk."""
        self._then = then

    def crash(self, *, late):
        """The process ends. Some of what it had asked for may be on its way to the disk all the same, `late`."""
        if late:
            for name, arguments, _ in self._asked:
                if name in _FENCED:
                    self.disk.late.setdefault(arguments[0], []).append((name, arguments))
        self._asked.clear()
        self._crashed = True

    def start(self):
        """Store: open it."""
        self._open = True
        return self._ask("contents")

    def stop(self):
        """Store: finish what was asked, and close it."""
        self._open = False
        if not self._busy:
            return succeed(None)
        stopped = Deferred()
        self._stopped.append(stopped)
        return stopped

    def __getattr__(self, name):
        # The other methods of a store are those of the tables.
        if not hasattr(Tables, name):
            raise AttributeError(name)
        return partial(self._ask, name)

    def _ask(self, name, *arguments):
        if self._crashed:
            return Deferred()
        if not self._open:
            return fail(StoreError("the store is not open"))
        answer = Deferred()
        # Effects are the store's from now on.
        arguments = tuple(tuple(one) if isinstance(one, list) else one for one in arguments)
        self._asked.append((name, arguments, answer))
        if self._then is not None and name in _FENCED:
            then, self._then = self._then, None
            self._world.later(2 * self._slowness * self._chance.random(), lambda _: then())
        self._begin()
        return answer

    def _begin(self):
        if not self._busy and self._asked:
            self._busy = True
            self._world.later(self._slowness * self._chance.random(), self._commit, None)

    def _commit(self, _):
        if self._crashed:
            return
        group, self._asked = self._asked, deque()
        results = self.disk.tables.commit([_operation(name, arguments) for name, arguments, _ in group])
        for name, arguments, _ in group:
            if name == "take_over":
                self._world.refuse_late(self.disk, arguments[0])
        # It is on the disk; that the process learns of it takes another moment, in which it may crash.
        told = [(answer, result) for (_, _, answer), result in zip(group, results, strict=True)]
        told_later = partial(self._machine.deliver, self._tell)
        self._world.later(self._slowness * self._chance.random(), told_later, told)

    def _tell(self, told):
        if self._crashed:
            return
        self._busy = False
        self._begin()
        for answer, result in told:
            if isinstance(result, Exception):
                answer.errback(result)
            else:
                answer.callback(result)
        if not self._busy:
            stopped, self._stopped = self._stopped, []
            for deferred in stopped:
                deferred.callback(None)


def _operation(name, arguments):
    return lambda tables: getattr(tables, name)(*arguments)


def late_writes(disk, sid):
    """Have the late writes into a session reach the disk now; what came of each."""
    return [(name, disk.tables.commit([_operation(name, arguments)])[0]) for name, arguments in disk.late.pop(sid, ())]
