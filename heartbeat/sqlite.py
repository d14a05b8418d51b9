"""Keeps sessions in one SQLite file, so that what was promised outlives the process, and the power.

A thread of the store's own has the file, and no other process gets at it meanwhile. The reactor's thread
only puts down what is asked, and is told when it is on the disk: it never waits, and never touches SQLite.
What was asked while the disk was busy is committed together. While the disk fails nothing is given up,
and nothing answered: the thread tries again, in order, until the disk heals or the store is stopped.

A file that was restored from a backup must get a new epoch: `sqlite3 FILE 'DELETE FROM epoch'`
before the next start.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger

from heartbeat.core.errors import StoreError
from heartbeat.store import Contents, Effect, Head, Kept, Numbers
from heartbeat.tables import Connect, Operation, Tables, claim, connected, why

__all__ = ["SqliteStore"]

_log = Logger()

P = ParamSpec("P")
T = TypeVar("T")

#: So many operations are one transaction at most: the first of them waits for the last.
BATCH = 1000

#: Seconds until what failed for the disk's sake is tried again.
RETRY = 1.0


class SqliteStore:
    """A store in the file at `path`, made at the first start. Every method returns a Deferred, fired in order.

    `reactor` is whose thread calls the methods and is called back, the global one unless it is given.
    Before `start()` and after `stop()` every other method fails with StoreError.
    """

    def __init__(self, path: str | os.PathLike[str], *, reactor: Any = None) -> None:
        self.path = self._path = Path(path).absolute()
        self._reactor = reactor
        self._life: _Life | None = None
        self._connect: Connect = sqlite3.connect

    def check(self) -> None:
        """See that the file can be used, and let go of it: for whoever wants to be told before anything starts.

        Blocks for as long as the disk does. Raises StoreError.
        """
        try:
            with closing(connected(self._path, self._connect)) as connection:
                claim(self._path, connection)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"the store {self._path} cannot be used: {why(error)}") from None

    def start(self) -> Deferred[Contents]:
        """Store: open it. It fails where the file is in use, is not a store's, or cannot be made."""
        if self._life is not None and not self._life.closing:
            return self._ask(Tables.contents)
        self._life = _Life(self._path, self._connect, self._reactor or _global_reactor(), self._life)
        # Asked before it begins: where the file cannot be opened, this is what that fails.
        contents = self._ask(Tables.contents)
        self._life.thread.start()
        return contents

    def stop(self) -> Deferred[None]:
        """Store: commit what was asked, and close it; the thread has ended when this fires."""
        return succeed(None) if self._life is None else self._life.stop()

    def open(self, head: Head) -> Deferred[None]:
        """Store: begin a session."""
        return self._ask(Tables.open, head)

    def append(self, effects: Sequence[Effect]) -> Deferred[Numbers]:
        """Store: carry out effects."""
        return self._ask(Tables.append, tuple(effects))

    def handle(self, sid: str, fence: int, seq: int, effects: Sequence[Effect]) -> Deferred[Numbers]:
        """Store: note what is handled."""
        return self._ask(Tables.handle, sid, fence, seq, tuple(effects))

    def confirm(self, sid: str, fence: int, upto: int, effects: Sequence[Effect]) -> Deferred[Numbers]:
        """Store: forget what is confirmed."""
        return self._ask(Tables.confirm, sid, fence, upto, tuple(effects))

    def replay(self, sid: str, after: int) -> Deferred[tuple[Kept, ...]]:
        """Store: what is kept."""
        return self._ask(Tables.replay, sid, after)

    def detach(self, sid: str, fence: int, at: float) -> Deferred[None]:
        """Store: nobody is connected."""
        return self._ask(Tables.detach, sid, fence, at)

    def take_over(self, sid: str, attempt: int) -> Deferred[Head | None]:
        """Store: raise the fence."""
        return self._ask(Tables.take_over, sid, attempt)

    def expire(self, sid: str, fence: int, effects: Sequence[Effect]) -> Deferred[Numbers]:
        """Store: end a session."""
        return self._ask(Tables.expire, sid, fence, tuple(effects))

    def _ask(
        self, operation: Callable[Concatenate[Tables, P], T], *arguments: P.args, **keywords: P.kwargs
    ) -> Deferred[T]:
        life = self._life
        answer = life and life.ask(lambda tables: operation(tables, *arguments, **keywords))
        return answer or fail(StoreError(f"the store {self._path} is not open"))


class _Life:
    """One life of a store, from start to stop: its thread, and what that is asked."""

    def __init__(self, path: Path, connect: Connect, reactor: Any, before: _Life | None) -> None:
        self.closing = False
        self._path = path
        self._connect = connect
        self._reactor = reactor
        self._before = before
        # Guards `closing` and what is asked, and is notified when they change; nobody holds it for long.
        self._changed = threading.Condition()
        self._asked: deque[tuple[Operation, Deferred[Any]]] = deque()
        # The contents have been read: what fails from here on is waited for.
        self._started = False
        self._ended = False
        self._stops: list[Deferred[None]] = []
        # A program that dies without stop() must not hang on this thread: what is not committed was not promised.
        self.thread = threading.Thread(target=self._run, name="heartbeat-store", daemon=True)

    def ask(self, operation: Operation) -> Deferred[Any] | None:
        """In the reactor's thread: fires with what this returned when it is committed; None when it is too late."""
        with self._changed:
            if self.closing:
                return None
            answer: Deferred[Any] = Deferred()
            self._asked.append((operation, answer))
            self._changed.notify()
        return answer

    def stop(self) -> Deferred[None]:
        """In the reactor's thread: end when all that was asked is done."""
        if self._ended:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        self._stops.append(stopped)
        with self._changed:
            self.closing = True
            self._changed.notify()
        return stopped

    def _run(self) -> None:
        """The thread: opens the file, does what it is asked, and closes it."""
        if self._before is not None:
            self._before.thread.join()
            self._before = None
        refused = None
        try:
            with closing(connected(self._path, self._connect)) as connection:
                claim(self._path, connection)
                self._serve(Tables(connection))
        except StoreError as error:
            refused = error
        except Exception as error:  # noqa: BLE001  # whatever it is: those who wait are told
            refused = StoreError(f"the store {self._path} cannot be used: {why(error)}")
        with self._changed:
            self.closing = True
            left = [(answer, refused) for _, answer in self._asked]
        self._reactor.callFromThread(self._end, left)

    def _end(self, left: Iterable[tuple[Deferred[Any], Any]]) -> None:
        """In the reactor's thread: this was the last of it."""
        self._ended = True
        _tell(left)
        for stopped in self._stops:
            stopped.callback(None)

    def _serve(self, tables: Tables) -> None:
        while batch := self._next():
            results = self._commit(tables, [operation for operation, _ in batch])
            with self._changed:
                for _ in batch:
                    self._asked.popleft()
            self._reactor.callFromThread(
                _tell, [(answer, done) for (_, answer), done in zip(batch, results, strict=True)]
            )

    def _next(self) -> list[tuple[Operation, Deferred[Any]]]:
        """What is to be committed next, as soon as there is something; nothing at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._asked or self.closing)
            return list(islice(self._asked, BATCH))

    def _commit(self, tables: Tables, operations: Sequence[Operation]) -> list[Any]:
        """Commit these, however long the disk fails; raises its error only while the store starts or stops."""
        failing = False
        while True:
            last = self.closing or not self._started
            try:
                results = tables.commit(operations)
            except sqlite3.Error as error:
                if last:
                    raise
                if not failing:
                    self._say("the store {path} fails: {why}; what is asked of it waits", why=why(error))
                failing = True
            else:
                if failing:
                    self._say("the store {path} works again")
                self._started = True
                return results
            with self._changed:
                self._changed.wait_for(lambda: self.closing, RETRY)

    def _say(self, sentence: str, **fields: str) -> None:
        self._reactor.callFromThread(_log.warn, sentence, path=str(self._path), **fields)


def _global_reactor() -> Any:
    from twisted.internet import reactor  # noqa: PLC0415  # importing this module installs none

    return reactor


def _tell(told: Iterable[tuple[Deferred[Any], Any]]) -> None:
    """In the reactor's thread: fire these, in order."""
    for answer, result in told:
        if isinstance(result, Exception):
            answer.errback(result)
        else:
            answer.callback(result)
