"""One connection to Redis that comes back: what is asked is done in order, each once, however often it breaks.

Redis may be away, restart or hang. Nothing is given up meanwhile, and nothing answered: what was asked waits, and is
asked again, in the same order. What had been done already, its answer lost on the way, is answered and not done again.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import hiredis
from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from txredisapi import HiredisProtocol, ResponseError

from heartbeat.cluster.fleet_scripts import FLEET_ASKED, FLEET_READING
from heartbeat.cluster.scripts import ASKED, READING
from heartbeat.cluster.sentinel import SCHEMES, Sentinels, endpoint_to
from heartbeat.cluster.tls import Tls, query_of, unheard
from heartbeat.core.errors import SettingError, StoreError
from heartbeat.endings import is_of_tls, reason_of

__all__ = ["Redis"]

_log = Logger()

Argument = str | bytes | int

# Redis that says nothing for so long, while something is asked of it, is taken for gone.
_PATIENCE = 5.0
# What Redis cannot do just now: it starts, is full, cannot write to its disk, is a replica by now, or was restarted.
_LATER = ("LOADING", "OOM", "MISCONF", "READONLY", "NOREPLICAS", "MASTERDOWN", "NOSCRIPT", "BUSY", "TRYAGAIN", "NOAUTH")
# Seconds for which an answer is surely remembered there: half of what the scripts say.
_REMEMBERED = 43_200.0
# Seconds between attempts: doubled from the first to the last.
_FIRST, _LAST = 0.05, 1.0

_SCRIPTS = ASKED | READING | FLEET_ASKED | FLEET_READING
_HASHES = {name: hashlib.sha1(text.encode()).hexdigest() for name, text in _SCRIPTS.items()}  # noqa: S324  # Redis' name
_WANTS = (
    "redis://[[user]:password@]host[:port][/database], redis+unix:///path[?database=0], or"
    " redis+sentinel://[[user]:password@]host[:port][,host[:port]...]/master[/database], and rediss for redis with TLS"
)


class _Asked:
    """One thing that is asked, until it is answered."""

    __slots__ = ("answer", "arguments", "name", "number")

    def __init__(self, name: str, arguments: Sequence[Argument], number: int) -> None:
        self.name = name
        self.arguments = arguments
        self.number = number
        self.answer: Deferred[Any] = Deferred()


class Redis:
    """The Redis at a `url`, with `prefix` before all names of keys. Raises SettingError for a URL that is none.

    `ask` runs a script of `ASKED`, once and in order; `read` one of `READING`, in the same order. Both fire with its
    answer, fail with StoreError where that says what is wrong, or when it is stopped before. `url` is without its
    password. `setting` is where it was named; `away` is called with the reason each time that it goes away, and then
    nothing is logged here of its ways.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "heartbeat:",
        reactor: Any = None,
        setting: str = "store",
        away: Callable[[str], object] | None = None,
    ) -> None:
        self._reactor: Any = reactor
        self._prefix = prefix
        scheme, colon, rest = url.partition(":")
        url = scheme.lower() + colon + rest
        self.url = _without_password(url)
        #: Those who know which Redis it is, where there are several.
        self.sentinels: Sentinels | None = None
        self._tls: Tls | None = None
        try:
            if url.partition(":")[0] in SCHEMES:
                self.sentinels = Sentinels(url, setting)
                self.database = self.sentinels.database
            else:
                self._parts = parts = urlsplit(url)
                self.database = _database_of(parts)
                if parts.scheme == "rediss":
                    asked = query_of(parts.query)
                    self._tls = Tls(asked, setting, [parts.hostname or ""])
                    if asked:
                        raise ValueError(parts.query)
        except SettingError:
            # Of a file that it names.
            raise
        except ValueError:
            raise SettingError(setting, self.url, _WANTS) from None
        #: Where the master is, of those who said of themselves that they are it the last; None without sentinels.
        self.master: tuple[str, int] | None = None
        self._name = f"the {setting} {self.url}"
        self._told_away = away
        self.asker = secrets.token_hex(8)
        self._number = 0
        # The number of the last that was done, and when that was heard.
        self._last_done, self._last_heard = 0, 0.0
        self._done: list[int] = []
        self._asked: deque[_Asked] = deque()
        # The one that is ready to be asked, and the one that there is.
        self._connection: _Connection | None = None
        self._made: _Connection | None = None
        self._connecting: Deferred[Any] | None = None
        self._failures = 0
        self._is_open = False
        self._is_away = False
        self._timer: Any = None
        self._again: Any = None
        self._starting: list[Deferred[None]] = []
        self._stopping: list[Deferred[None]] | None = None

    @property
    def address(self) -> tuple[object, ...]:
        """Where it is, and which database of it."""
        if self.sentinels is not None:
            return self.sentinels.address
        parts = self._parts
        return (parts.hostname or parts.path, parts.port or 6379, self.database)

    @property
    def endpoint(self) -> Any:
        """The way to it, once it was started."""
        if self.sentinels is not None:
            return self.sentinels.endpoint(self._reactor)
        return _endpoint_of(self._parts, self._tls, self._reactor)

    @property
    def credentials(self) -> list[str]:
        """What AUTH is to be told; nothing where there is no password."""
        if self.sentinels is not None:
            return [unquote(word) for word in self.sentinels.credentials if word]
        parts = self._parts
        if parts.password is None:
            return []
        return [unquote(word) for word in (parts.username, parts.password) if word]

    # Its life.

    def start(self) -> Deferred[None]:
        """Connect; fires when it is. The first attempt that fails, fails this with StoreError, and ends it."""
        if self._connection is not None and self._stopping is None:
            return succeed(None)
        ready: Deferred[None] = Deferred()
        self._starting.append(ready)
        if not self._is_open:
            self._is_open = True
            if self._reactor is None:
                from twisted.internet import reactor  # noqa: PLC0415  # nothing before the start installs one

                self._reactor = reactor
            self._connect()
        return ready

    def stop(self) -> Deferred[None]:
        """Finish what was asked, as long as Redis answers, and disconnect; the rest fails with StoreError."""
        if not self._is_open:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        self._stopping = [*(self._stopping or ()), stopped]
        if not self._asked or self._connection is None:
            self._end()
        return stopped

    def _end(self) -> None:
        """Disconnect; when that is done it is stopped."""
        left, self._asked = self._asked, deque()
        self._connection = None
        self._cancel_timer()
        for one in left:
            one.answer.errback(StoreError(f"{self._name} was stopped before it answered"))
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._connecting is not None:
            self._connecting.cancel()
        elif self._made is not None:
            self._made.failed(StoreError("stopped"))
        else:
            self._has_ended()

    def _has_ended(self) -> None:
        self._is_open = self._is_away = False
        self._failures = 0
        starting, self._starting = self._starting, []
        stopping, self._stopping = self._stopping or [], None
        for ready in starting:
            ready.errback(StoreError(f"{self._name} was stopped"))
        for stopped in stopping:
            stopped.callback(None)

    def _connect(self) -> None:
        self._again = None
        factory: Any = Factory.forProtocol(lambda: _Connection(self))
        # Else every attempt is two lines in the log.
        factory.noisy = False
        self._connecting = self.endpoint.connect(factory)
        self._connecting.addCallbacks(self._opened, self._gone)

    def _opened(self, connection: _Connection) -> None:
        self._connecting = None
        self._made = connection
        connection.prepare().addCallbacks(
            lambda _: self._ready(connection), lambda failure: connection.failed(failure.value)
        )

    def _ready(self, connection: _Connection) -> None:
        """It is there, perhaps again: what waits is asked."""
        if self._made is not connection or self._stopping is not None:
            return
        self._connection = connection
        self._failures = 0
        self.proved(connection.master)
        starting, self._starting = self._starting, []
        for one in self._asked:
            connection.run(one)
        self._wait()
        for ready in starting:
            ready.callback(None)

    def proved(self, master: tuple[str, int] | None) -> None:
        """This one says that it is the master; where we are with another one, that was one, and is left."""
        self.master = master
        if self._made is not None and self._made.master != master:
            self._made.failed(StoreError(_now_at(master)))

    def lost(self, connection: _Connection, reason: Failure) -> None:
        """A connection is gone."""
        if self._made is connection:
            self._made = None
            is_secured = self._tls is not None or (self.sentinels is not None and self.sentinels.is_secured)
            self._gone(reason if connection.has_answered or not is_secured else unheard(reason))

    def _gone(self, reason: Failure) -> None:
        """There is none; try again in a moment."""
        self._connecting = None
        self._leave(reason)
        if self._stopping is not None:
            self._end()
            return
        starting, self._starting = self._starting, []
        if starting:
            # Nothing can have been asked yet.
            self._stopping = []
            self._end()
            why = f"{self._name} cannot be reached: {_why(reason)}"
            for ready in starting:
                ready.errback(StoreError(why))
            return
        delay = min(_LAST, _FIRST * 2 ** min(self._failures, 10))
        self._failures += 1
        self._again = self._reactor.callLater(delay, self._connect)

    def _leave(self, reason: Failure) -> None:
        self._connection = None
        self._cancel_timer()
        if not self._is_away and self._stopping is None and not self._starting:
            self._is_away = True
            if self._told_away is not None:
                self._told_away(_why(reason))
                return
            _log.warn("the store {url} is away: {why}; what is asked of it waits", url=self.url, why=_why(reason))

    # What is asked.

    def ask(self, name: str, *arguments: Argument) -> Deferred[Any]:
        """Run a script that changes something."""
        self._number += 1
        return self._put(_Asked(name, arguments, self._number))

    def read(self, name: str, *arguments: Argument) -> Deferred[Any]:
        """Run a script that may as well run twice."""
        return self._put(_Asked(name, arguments, 0))

    def _put(self, one: _Asked) -> Deferred[Any]:
        if not self._is_open or self._stopping is not None:
            return fail(StoreError(f"{self._name} is not open"))
        # What cannot be said at all is the asker's to hear, before others wait behind it.
        one.arguments = [each.encode() if isinstance(each, str) else each for each in one.arguments]
        self._asked.append(one)
        if self._connection is not None:
            self._connection.run(one)
            self._wait()
        return one.answer

    def command(self, one: _Asked) -> list[Argument]:
        """What is sent for it."""
        if not one.number:
            return [_HASHES[one.name], 0, self._prefix, *one.arguments]
        done, self._done = self._done, []
        return [_HASHES[one.name], 0, self._prefix, self.asker, one.number, len(done), *done, *one.arguments]

    # What becomes of it.

    @property
    def answers(self) -> str | None:
        """The key under which Redis remembers what it has answered; None where it may remember nothing of that."""
        if not self._last_done or self._reactor.seconds() - self._last_heard > _REMEMBERED:
            return None
        return f"{self._prefix}o:{self.asker}"

    def compare(self, remembered: list[bytes]) -> None:
        """Say where it does not know any more what it had done: that was not on its disk, or not with its replica."""
        if self._last_done > max(map(int, remembered), default=0):
            sentence = "the store {url} has come back without what it had done last, and had answered"
            _log.error(sentence, url=self.url)

    def answered(self, connection: _Connection, one: _Asked, reply: Any) -> None:
        """One is answered: the one that has waited longest."""
        if self._connection is not connection or not self._asked or self._asked[0] is not one:
            return
        if isinstance(reply, ResponseError) and not str(reply).startswith(_LATER):
            reply = [b"!", f"Redis refuses it: {reply}".encode()]
        elif isinstance(reply, Exception):
            # It was not done; later, in the same order.
            self._leave(Failure(reply))
            self._timer = self._reactor.callLater(_LAST, self._hangs, connection, reply)
            return
        if self._is_away:
            self._is_away = False
            if self._told_away is None:
                _log.info("the store {url} is there again", url=self.url)
        self._asked.popleft()
        if one.number:
            self._done.append(one.number)
        self._cancel_timer()
        self._wait()
        if type(reply) is list and reply and reply[0] == b"!":
            # What is refused may be remembered or not, and that before it is not any more.
            self._last_done = 0
            one.answer.errback(StoreError(reply[1].decode()))
        else:
            if one.number:
                self._last_done, self._last_heard = one.number, self._reactor.seconds()
            one.answer.callback(reply)
        if self._stopping is not None and not self._asked:
            self._end()

    def _wait(self) -> None:
        if self._asked and self._timer is None and self._connection is not None:
            self._timer = self._reactor.callLater(_PATIENCE, self._seems_to_hang, self._connection)

    def _seems_to_hang(self, connection: _Connection) -> None:
        # Where we stood still ourselves its answer lies in the socket, and what has arrived is read in this turn.
        silent = StoreError(f"no answer for {_PATIENCE:g} s")
        self._timer = self._reactor.callLater(0, self._hangs, connection, silent)

    def _hangs(self, connection: _Connection, error: Exception) -> None:
        self._timer = None
        connection.failed(error)

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


class _Connection(HiredisProtocol):  # type: ignore[misc]  # untyped
    """One connection, of bytes, that loads the scripts before anything else is asked.

    On hiredis, and not on the parser of txredisapi itself: as bytes no answer ever comes out of that (1.6.0).
    """

    def __init__(self, redis: Redis) -> None:
        super().__init__(charset=None, convertNumbers=False)
        self._redis = redis
        self._why: Exception | None = None
        #: Whether anything has come.
        self.has_answered = False
        #: Where the sentinels said that it is.
        self.master: tuple[str, int] | None = None

    def prepare(self) -> Deferred[Any]:
        """Have it ready to be used."""
        redis = self._redis
        commands: list[Deferred[Any]] = []
        credentials = redis.credentials
        if credentials:
            commands.append(self.execute_command("AUTH", *credentials))
        if redis.database:
            commands.append(self.execute_command("SELECT", redis.database))
        if redis.sentinels is not None:
            commands.append(self.execute_command("ROLE").addCallback(_see_that_it_is_master))
        answers = redis.answers
        if answers is not None:
            commands.append(self.execute_command("HKEYS", answers).addCallback(redis.compare))
        if not commands:
            commands.append(self.execute_command("PING"))
        commands[0].addBoth(self._answered)
        silent = StoreError(f"no answer for {_PATIENCE:g} s")
        timer = redis._reactor.callLater(_PATIENCE, self.failed, silent)

        def over(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return result.value.subFailure if isinstance(result, Failure) else result  # type: ignore[union-attr]  # gathered

        # Redis hangs up on one without a password who says more than 16 KiB at once, and its word that it wants one may
        # be lost with the connection: so the scripts follow when they may.
        made: Deferred[Any] = gatherResults(commands, consumeErrors=True)
        return made.addCallback(lambda _: self._load()).addBoth(over)

    def _load(self) -> Deferred[Any]:
        loading = [self.execute_command("SCRIPT", "LOAD", text) for text in _SCRIPTS.values()]
        return gatherResults(loading, consumeErrors=True)

    def _answered(self, reply: Any) -> Any:
        self.has_answered = True
        return reply

    def _build_command(self, *args: Argument, **_: object) -> bytes:
        """txredisapi's, which took a twelfth of a busy server's time to put a command together."""
        packed: bytes = hiredis.pack_command(args)
        return packed

    def run(self, one: _Asked) -> None:
        """Have Redis do this; it answers in the order in which it is asked."""
        answer = self.execute_command("EVALSHA", *self._redis.command(one))
        answer.addBoth(lambda reply: self._redis.answered(self, one, _plain(reply)))

    def failed(self, error: Exception) -> None:
        """It is of no use any more."""
        self._why = self._why or error
        self.transport.abortConnection()

    def connectionLost(self, why: Failure) -> None:
        """Twisted's: it is gone."""
        self._redis.lost(self, why if self._why is None else Failure(self._why))
        super().connectionLost(why)


def _see_that_it_is_master(role: list[Any]) -> None:
    if role[0] != b"master":
        raise StoreError("it is no master any more, or not yet")


def _now_at(master: tuple[str, int] | None) -> str:
    host, port = master or ("nowhere", 0)
    return f"the master is {host}:{port} now"


def _plain(reply: Any) -> Any:
    return reply.value if isinstance(reply, Failure) else reply


def _why(failure: Failure) -> str:
    error = failure.value
    if is_of_tls(failure):
        return reason_of(failure)
    return str(error) if isinstance(error, StoreError | ResponseError) else failure.getErrorMessage()


def _database_of(parts: SplitResult) -> int:
    """The number of the database. Raises ValueError for what is no such URL."""
    if parts.scheme == "redis+unix" and parts.path and not parts.netloc:
        name, _, database = parts.query.partition("=")
        if name not in ("", "database"):
            raise ValueError(name)
        return int(database or 0)
    if (
        parts.scheme not in ("redis", "rediss")
        or not parts.hostname
        or parts.port == 0
        or (parts.query and parts.scheme != "rediss")
        or parts.fragment
    ):
        raise ValueError(parts.scheme)
    return int(parts.path.strip("/") or 0)


def _endpoint_of(parts: SplitResult, tls: Tls | None, reactor: Any) -> Any:
    if parts.scheme == "redis+unix":
        return UNIXClientEndpoint(reactor, parts.path, timeout=_PATIENCE)
    host = parts.hostname or ""
    endpoint = endpoint_to(reactor, host, parts.port or 6379, _PATIENCE)
    return endpoint if tls is None else tls.way(host, endpoint, reactor)


def _without_password(url: str) -> str:
    """The URL of a Redis as it may be told: of what is behind its question mark nothing, but of a UNIX socket's."""
    scheme, slashes, rest = url.partition("://")
    if scheme == "redis+unix":
        return url
    user, at, rest = rest.rpartition("@")
    if set("/?#") & set(user):
        # A password that is not quoted, or one behind the question mark: which of it is one, nobody can tell.
        return f"{scheme}{slashes}..."
    return f"{scheme}{slashes}{user.partition(':')[0]}{at}{rest.partition('?')[0]}"
