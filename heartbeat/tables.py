"""The file of a SQLite store: its tables, and what each of the store's operations does to them.

Knows no thread and no reactor: whoever has opened a file calls from one thread, and waits for the disk.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from heartbeat.core.errors import StoreError
from heartbeat.store import Append, Contents, Effect, Head, Kept, Mark, Numbers, Settle, new_epoch

__all__ = ["Connect", "Operation", "Tables", "claim", "connected", "why"]

#: `sqlite3.connect`, or what a test has in its place.
Connect = Callable[..., sqlite3.Connection]

#: What is done to the tables, in a transaction.
Operation = Callable[["Tables"], Any]

# What tells our files from those of other programs: "hrtb".
_APPLICATION: Final = 0x68727462
_SCHEMA: Final = 1

# Texts are kept as bytes: a lone surrogate, which the wire allows, is no UTF-8 to SQLite.
_TABLES: Final = f"""
CREATE TABLE epoch (name BLOB NOT NULL);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    sid BLOB NOT NULL UNIQUE,
    epoch BLOB NOT NULL,
    client_id BLOB NOT NULL,
    window REAL NOT NULL,
    sent INTEGER NOT NULL DEFAULT 0,
    confirmed INTEGER NOT NULL DEFAULT 0,
    handled INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT 0,
    fence INTEGER NOT NULL DEFAULT 0,
    detached_at REAL
);
CREATE TABLE messages (
    session INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    payload BLOB NOT NULL,
    receipt BLOB,
    PRIMARY KEY (session, seq)
) WITHOUT ROWID;
CREATE INDEX receipts ON messages (receipt) WHERE receipt IS NOT NULL;
CREATE TABLE marks (
    session INTEGER NOT NULL,
    key BLOB NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (session, key)
) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_SCHEMA};
"""


class Tables:
    """What the open file holds. In the thread only, and each operation inside a transaction of `commit`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._execute = connection.execute

    def commit(self, operations: Iterable[Operation]) -> list[Any]:
        """Carry these out and commit; for each what it returned, or the error that undid it alone.

        Raises sqlite3.Error when the disk fails, and nothing has changed.
        """
        try:
            self._execute("BEGIN IMMEDIATE")
            results = [self._carry_out(operation) for operation in operations]
            self._execute("COMMIT")
        except sqlite3.Error:
            with suppress(sqlite3.Error):
                self._connection.rollback()
            raise
        return results

    def _carry_out(self, operation: Operation) -> Any:
        self._execute("SAVEPOINT operation")
        try:
            result = operation(self)
        except Exception as error:
            # One that can never be done must not be tried for ever, with all others behind it.
            if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:
                raise
            self._execute("ROLLBACK TO operation")
            result = error
        self._execute("RELEASE operation")
        return result

    def contents(self) -> Contents:
        """All sessions, and whose they are."""
        (epoch,) = self._execute("SELECT name FROM epoch").fetchone()
        marks: dict[int, dict[str, str]] = {}
        for session, key, value in self._execute("SELECT session, key, value FROM marks"):
            marks.setdefault(session, {})[_text(key)] = _text(value)
        rows = self._execute("SELECT * FROM sessions ORDER BY detached_at IS NULL, detached_at, id")
        return Contents(_text(epoch), tuple([_head(row, marks.get(row[0], {})) for row in rows]))

    def open(self, head: Head) -> None:
        """Begin a session."""
        begun = (_bytes(head.sid), _bytes(head.epoch), _bytes(head.client_id), head.window)
        try:
            self._execute("INSERT INTO sessions (sid, epoch, client_id, window) VALUES (?, ?, ?, ?)", begun)
        except sqlite3.IntegrityError:
            raise StoreError("the session is in the store already") from None

    def append(self, effects: Iterable[Effect]) -> Numbers:
        """Carry out effects."""
        return tuple([_CARRIED[type(effect)](self, effect) for effect in effects])

    def handle(self, sid: str, fence: int, seq: int, effects: Iterable[Effect]) -> Numbers:
        """Note what is handled."""
        session, *_ = self._session(sid, fence)
        self._execute("UPDATE sessions SET handled = ? WHERE id = ?", (seq, session))
        return self.append(effects)

    def confirm(self, sid: str, fence: int, upto: int, effects: Iterable[Effect]) -> Numbers:
        """Forget what is confirmed."""
        session, sent, confirmed = self._session(sid, fence)
        upto = min(upto, sent)
        if upto > confirmed:
            self._execute("DELETE FROM messages WHERE session = ? AND seq <= ?", (session, upto))
            self._execute("UPDATE sessions SET confirmed = ? WHERE id = ?", (upto, session))
        return self.append(effects)

    def replay(self, sid: str, after: int) -> tuple[Kept, ...]:
        """What is kept."""
        session, sent, confirmed = self._session(sid)
        rows = self._execute(
            "SELECT seq, payload, receipt FROM messages WHERE session = ? AND seq > ? ORDER BY seq",
            (session, max(confirmed, min(after, sent))),
        )
        return tuple(
            [Kept(seq, payload, None if receipt is None else _text(receipt)) for seq, payload, receipt in rows]
        )

    def detach(self, sid: str, fence: int, at: float) -> None:
        """Nobody is connected."""
        session, *_ = self._session(sid, fence)
        self._execute("UPDATE sessions SET detached_at = ? WHERE id = ?", (at, session))

    def take_over(self, sid: str, attempt: int) -> Head | None:
        """Raise the fence."""
        name = _bytes(sid)
        self._execute(
            "UPDATE sessions SET attempt = ?, fence = fence + 1, detached_at = NULL WHERE sid = ?", (attempt, name)
        )
        row = self._execute("SELECT * FROM sessions WHERE sid = ?", (name,)).fetchone()
        if row is None:
            return None
        marks = self._execute("SELECT key, value FROM marks WHERE session = ?", (row[0],))
        return _head(row, {_text(key): _text(value) for key, value in marks})

    def expire(self, sid: str, fence: int, effects: Iterable[Effect]) -> Numbers:
        """End a session."""
        session, *_ = self._session(sid, fence)
        self._execute("DELETE FROM messages WHERE session = ?", (session,))
        self._execute("DELETE FROM marks WHERE session = ?", (session,))
        self._execute("DELETE FROM sessions WHERE id = ?", (session,))
        return self.append(effects)

    def _session(self, sid: str, fence: int | None = None) -> tuple[int, int, int]:
        """A session's id, `sent` and `confirmed`."""
        found = self._execute(
            "SELECT id, sent, confirmed, fence FROM sessions WHERE sid = ?", (_bytes(sid),)
        ).fetchone()
        if found is None:
            raise StoreError("the session is not in the store")
        if fence is not None and fence != found[3]:
            raise StoreError(f"the session was taken over: fence {fence}, not {found[3]}")
        return found[0], found[1], found[2]

    def _append(self, effect: Append) -> int | None:
        found = self._execute("SELECT id, sent + 1 FROM sessions WHERE sid = ?", (_bytes(effect.sid),)).fetchone()
        if found is None:
            return None
        session, seq = found
        receipt = None if effect.receipt is None else _bytes(effect.receipt)
        self._execute("INSERT INTO messages VALUES (?, ?, ?, ?)", (session, seq, effect.payload, receipt))
        self._execute("UPDATE sessions SET sent = ? WHERE id = ?", (seq, session))
        return int(seq)

    def _settle(self, effect: Settle) -> None:
        self._execute("UPDATE messages SET receipt = NULL WHERE receipt = ?", (_bytes(effect.receipt),))

    def _mark(self, effect: Mark) -> None:
        key, sid = _bytes(effect.key), _bytes(effect.sid)
        if effect.value is None:
            self._execute(
                "DELETE FROM marks WHERE session = (SELECT id FROM sessions WHERE sid = ?) AND key = ?", (sid, key)
            )
        else:
            self._execute(
                "INSERT OR REPLACE INTO marks SELECT id, ?, ? FROM sessions WHERE sid = ?",
                (key, _bytes(effect.value), sid),
            )


_CARRIED: dict[type, Callable[[Tables, Any], int | None]] = {
    Append: Tables._append,
    Settle: Tables._settle,
    Mark: Tables._mark,
}


def connected(path: Path, connect: Connect) -> sqlite3.Connection:
    """The file, made where there is none, for its owner only."""
    # O_EXCL never opens a file that is there: closing it again would end the locks that this process has on it.
    with suppress(FileExistsError):
        os.close(os.open(path.resolve(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    return connect(path, timeout=0, isolation_level=None)


def claim(path: Path, connection: sqlite3.Connection) -> None:
    """Have the file to ourselves from here on, with our tables in it. Raises StoreError when it is not ours."""
    execute = connection.execute
    execute("PRAGMA locking_mode = EXCLUSIVE")
    # Not only when something is written: two that make the same file at the same time would hold up each other.
    execute("BEGIN EXCLUSIVE")
    (application,) = execute("PRAGMA application_id").fetchone()
    (schema,) = execute("PRAGMA user_version").fetchone()
    (tables,) = execute("SELECT count(*) FROM sqlite_master").fetchone()
    execute("COMMIT")
    is_new = (application, schema, tables) == (0, 0, 0)
    if not is_new and application != _APPLICATION:
        raise StoreError(f"the store {path} cannot be used: it is the database of another program")
    if not is_new and schema != _SCHEMA:
        raise StoreError(f"the store {path} cannot be used: its schema is {schema}, the one known here is {_SCHEMA}")
    execute("PRAGMA journal_mode = WAL")
    execute("PRAGMA synchronous = FULL")
    execute("BEGIN IMMEDIATE")
    for statement in _TABLES.split(";") if is_new else ():
        execute(statement)
    if execute("SELECT 1 FROM epoch").fetchone() is None:
        execute("INSERT INTO epoch VALUES (?)", (_bytes(new_epoch()),))
    execute("COMMIT")


def why(error: Exception) -> str:
    """What is wrong with the file, in half a sentence."""
    # The low byte; the others tell how it is busy.
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
        return "it is in use"
    return getattr(error, "strerror", None) or str(error)


def _head(row: Any, marks: dict[str, str]) -> Head:
    """A session by its row."""
    _, sid, epoch, client_id, window, sent, confirmed, handled, attempt, fence, detached_at = row
    named = _text(sid), _text(epoch), _text(client_id)
    return Head(*named, window, sent, confirmed, handled, attempt, fence, detached_at, marks)


_bytes = partial(str.encode, encoding="utf-8", errors="surrogatepass")
_text = partial(bytes.decode, encoding="utf-8", errors="surrogatepass")
