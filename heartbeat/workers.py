"""Several processes that serve what one has opened (`--workers`): that one, which looks after them and serves nobody.

It opens what is to be listened on, starts the workers, starts another where one has ended, passes on what it is told by
signals, and writes their log into its own. A client never waits for it: while it stands still they go on, and when it
is gone they go.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, LogLevel, globalLogPublisher
from twisted.python.failure import Failure

from heartbeat import logs
from heartbeat.core.errors import SettingError
from heartbeat.core.settings import Settings
from heartbeat.inherited import Opening
from heartbeat.notify import Manager
from heartbeat.service import DEFAULT_LISTEN, SECURED, with_backlog

__all__ = ["WORD", "Workers", "admin_of", "judge", "patience_to_stop"]

_log = Logger()

MOST = 1024

#: The descriptor of a worker to which it says how it is.
WORD = 3
# The first of those that listen.
_FIRST = 4

# Seconds that a worker has to live, or its end is its beginning's fault; and between such attempts, from and to.
_SETTLED = 10.0
_WAIT, _WAIT_MOST = 0.5, 30.0

# Seconds to stop, beyond those that clients are given: for Redis, which has 5 s to answer, and the interpreter.
_TO_STOP = 8.0

# A line that is longer is cut.
_LONGEST = 1 << 20

# Of whoever started us, and for nobody else.
_OURS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")

# What an option can be that a worker is not told.
_UNTOLD = ("config", "check-config", "workers")

_ADMIN = re.compile(r"((?:tcp|tcp6|ssl):)([0-9]+)(|:.*)|(unix:)((?:[^:\\=]|\\.)+)(|:.*)", re.DOTALL)


def judge(options: Mapping[str, Any]) -> None:
    """Raise SettingError where there cannot be so many workers with these options."""
    count, cluster, store = options["workers"], options["cluster"], options["store"]
    if count is None:
        return
    if not 1 <= count <= MOST:
        raise SettingError("workers", count, f"a whole number from 1 to {MOST}")
    if cluster is None:
        raise SettingError("workers", count, "left out where there is no --cluster, by which they know of each other")
    if store not in (None, "memory"):
        kind = store.partition(":")[0]
        raise SettingError("store", kind, "left out where there are --workers: one server has it, and they are several")
    if options["admin"] is not None:
        admin_of(options["admin"], count)


def admin_of(description: str | None, number: int) -> str | None:
    """Where worker `number` is watched: the first where it was said, each other one port further, or one more name.

    A port of 0 is any. Raises SettingError for a description of which there cannot be several.
    """
    if description is None:
        return None
    found = _ADMIN.fullmatch(description)
    if found is not None and found[1] is not None:
        port = int(found[2]) and int(found[2]) + number - 1
        if port < 65_536:
            return f"{found[1]}{port}{found[3]}"
    elif found is not None:
        return description if number == 1 else f"{found[4]}{found[5]}.{number}{found[6]}"
    bound = f"tcp:PORT, tcp6:PORT, ssl:PORT or unix:PATH where there are --workers, with a port for each of {number}"
    raise SettingError("admin", description, bound)


def patience_to_stop(settings: Settings) -> float:
    """Seconds in which a server that was told to stop has stopped."""
    return settings.drain_timeout + settings.close_timeout + _TO_STOP


class Waits:
    """How long to wait until a worker that has ended is started again: not at all, unless its lives are short."""

    def __init__(self) -> None:
        self._short = 0

    def after(self, lived: float) -> float:
        """Seconds, where it has lived for so many."""
        self._short = self._short + 1 if lived < _SETTLED else 0
        return 0.0 if self._short <= 1 else min(_WAIT_MOST, _WAIT * 2 ** min(self._short - 2, 10))


class Workers(Service):
    """The processes that serve with these `options` (heartbeat.tap.Options, parsed), and what they listen on.

    `launcher` are the options of twistd (or twist), where the log is to be JSON.
    """

    launcher: Any = None

    def __init__(self, options: Any, reactor: Any) -> None:
        self.settings: Settings = options.settings
        self.reactor = reactor
        self.count: int = options["workers"]
        self._listen: list[str] = options["listen"] or [DEFAULT_LISTEN]
        self._has_certificate = options.certificate is not None
        self._options = {name: value for name, value in options.items() if name not in _UNTOLD}
        # That of the start, to which paths in the options belong.
        self._folder = str(Path.cwd())
        #: What listens, in the order of the descriptions.
        self.ports: list[Any] = []
        self.workers = [_Worker(self, number) for number in range(1, self.count + 1)]
        self._manager: Manager | None = None
        self._watchdog: LoopingCall | None = None
        self._before: tuple[Any, Any] | None = None
        # Those of whom it is still to be heard that they are ready.
        self._awaited: set[_Worker] = set()
        self._stopping: Deferred[None] | None = None
        self._limit: Any = None

    def setServiceParent(self, parent: Any) -> None:
        """Twisted's: the application has it, and is about to have a log."""
        if self.launcher is not None:
            logs.begin(self.launcher, parent)
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]  # Twisted's

    def privilegedStartService(self) -> None:
        """Open what is to be listened on; what stands in the way is said in a sentence."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]  # Twisted's
        for description in self._listen:
            opening = Opening(self.reactor)
            described = with_backlog(description, self.settings.backlog).removeprefix(SECURED)
            failures: list[Failure] = []
            maybeDeferred(serverFromString(opening, described).listen, None).addErrback(failures.append)
            self.ports += opening.ports
            for failure in failures:
                error = failure.value
                if isinstance(error, CannotListenError | OSError | OverflowError | ValueError):
                    raise SystemExit(f"heartbeat: {error}") from None
                failure.raiseException()
            if len(opening.ports) != 1:
                raise SystemExit(f"heartbeat: --workers cannot listen on {description}: it is not one socket")

    def startService(self) -> None:
        """Start the workers."""
        super().startService()  # type: ignore[no-untyped-call]  # Twisted's
        self._manager = Manager.of(os.environ)
        self._mind_hangups()
        self._awaited = set(self.workers)
        for worker in self.workers:
            worker.start()
        if self._manager is not None and self._manager.patience is not None:
            self._watchdog = LoopingCall(self._watch)
            self._watchdog.clock = self.reactor
            self._watchdog.start(self._manager.patience / 2, now=False)

    def stopService(self) -> Deferred[None]:
        """Have the workers stop, each as a server stops; fires when all are gone, by force if that has to be."""
        if self._stopping is not None or not self.running:
            return self._stopping or succeed(None)
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted's
        stopped: Deferred[None] = Deferred()
        self._stopping = stopped
        if self._manager is not None:
            self._manager.stopping()
        self._limit = self.reactor.callLater(patience_to_stop(self.settings), self._enough)
        for worker in self.workers:
            worker.stop()
        self._look_for_the_end()
        return stopped

    def _enough(self) -> None:
        self._limit = None
        for worker in self.workers:
            worker.kill()

    def _look_for_the_end(self) -> None:
        """Where all are gone, let go of everything."""
        if self._stopping is None or any(worker.lives for worker in self.workers):
            return
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
        if self._watchdog is not None:
            self._watchdog.stop()
            self._watchdog = None
        if self._before is not None:
            signal.signal(*self._before)
            self._before = None
        # Only now: to be shut down is to be shut down for all who have it.
        ports, self.ports = self.ports, []
        stopped, self._stopping = self._stopping, None
        closed: Deferred[Any] = DeferredList([maybeDeferred(port.stopListening) for port in ports])
        closed.addCallback(lambda _: stopped.callback(None))

    # What workers are told.

    def orders(self, number: int) -> dict[str, Any]:
        """What worker `number` is told at its start."""
        patience = self._manager.patience if self._manager is not None else None
        return {
            "number": number,
            "reactor": type(self.reactor).__module__,
            "sockets": list(range(_FIRST, _FIRST + len(self.ports))),
            "patience": None if patience is None else patience / 2,
            "options": self._options,
        }

    def spawn(self, worker: _Worker, number: int) -> Any:
        """Start a process; its transport."""
        descriptors: dict[int, Any] = {0: "w", 1: "r", 2: "r", WORD: "r"}
        descriptors |= {_FIRST + at: port.fileno() for at, port in enumerate(self.ports)}
        command = [sys.executable, "-m", "heartbeat.worker", str(number)]
        env = {name: value for name, value in os.environ.items() if name not in _OURS}
        return self.reactor.spawnProcess(worker, command[0], command, env, self._folder, childFDs=descriptors)

    def _mind_hangups(self) -> None:
        """SIGHUP has the certificate read again by all; where there is none it ends this process, and so all."""
        which = getattr(signal, "SIGHUP", None)
        if which is None or (not self._has_certificate and self._manager is None):
            return
        self._before = which, signal.signal(which, lambda *_: self.reactor.callFromThread(self._hung_up))

    def _hung_up(self) -> None:
        if self._stopping is not None:
            return
        if self._manager is not None:
            self._manager.reloading()
        self._awaited = set(self.workers)
        for worker in self.workers:
            worker.reload()

    # What is heard of them.

    def is_ready(self, worker: _Worker) -> None:
        """One serves whoever comes, and by what its files say now."""
        if worker in self._awaited:
            self._awaited.discard(worker)
            if not self._awaited:
                _log.info("all {count} workers are ready", count=self.count)
                if self._manager is not None:
                    self._manager.ready()

    def is_gone(self, _worker: _Worker) -> None:
        """The process of one has ended."""
        self._look_for_the_end()

    def _watch(self) -> None:
        """Say that all turn, if so it is. One that is being replaced is no reason to replace them all."""
        manager = self._manager
        if manager is None or manager.patience is None:
            return
        since = self.reactor.seconds() - manager.patience
        if all(worker.heard_at >= since for worker in self.workers if worker.serves):
            manager.alive()


class _Worker(ProcessProtocol):
    """One worker, in one life after the other."""

    def __init__(self, workers: Workers, number: int) -> None:
        self.number = number
        #: Whether it has said that it serves, and when it was heard last.
        self.serves = False
        self.heard_at = 0.0
        self._workers = workers
        self._waits = Waits()
        self._began = 0.0
        self._process: Any = None
        self._timer: Any = None
        self._reloads = False
        self._said: dict[int, bytes] = {}

    @property
    def lives(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def start(self) -> None:
        """Start a process."""
        self._timer = None
        self._began = self._workers.reactor.seconds()
        self.serves = self._reloads = False
        self._said = {1: b"", 2: b"", WORD: b""}
        try:
            self._process = self._workers.spawn(self, self.number)
        except OSError as error:
            self._ended(f"cannot be started: {error}")

    def connectionMade(self) -> None:
        """Twisted's: it is there."""
        transport: Any = self.transport
        transport.write(json.dumps(self._workers.orders(self.number)).encode() + b"\n")

    def stop(self) -> None:
        """Have it stop, in order."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._signal("TERM")

    def kill(self) -> None:
        """Have it end at once."""
        if self.lives:
            _log.warn("worker {worker} does not stop, and is killed", worker=self.number)
            self._signal("KILL")

    def reload(self) -> None:
        """Have it read its files again; while it starts it may have read them just before they were changed."""
        self._reloads = self.lives and not self.serves
        if self.serves:
            self._signal("HUP")

    def _signal(self, which: str) -> None:
        try:
            if self._process is not None:
                self._process.signalProcess(which)
        except ProcessExitedAlready:
            # That is told in a moment.
            return

    # What it says.

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Twisted's: it says something."""
        *lines, rest = (self._said[childFD] + data).split(b"\n")
        if len(rest) > _LONGEST:
            lines, rest = [*lines, rest], b""
        self._said[childFD] = rest
        for line in lines:
            self._hear(childFD, line)

    def _hear(self, where: int, line: bytes) -> None:
        if where == WORD:
            self.heard_at = self._workers.reactor.seconds()
            if line == b"ready":
                self._is_ready()
        elif where == 1:
            _write(self.number, line)
        elif line:
            _log.warn("worker {worker}: {said}", worker=self.number, said=line.decode(errors="replace"))

    def _is_ready(self) -> None:
        self.serves = True
        if self._reloads:
            self._reloads = False
            self._signal("HUP")
        else:
            self._workers.is_ready(self)

    # Its end.

    def processEnded(self, reason: Failure) -> None:
        """Twisted's: it is gone, and all that it said was heard."""
        for where, rest in self._said.items():
            if rest:
                self._hear(where, rest)
        self._process = None
        self._ended(_how(reason.value))

    def _ended(self, how: str) -> None:
        workers = self._workers
        self.serves = False
        if workers.running:
            lived = workers.reactor.seconds() - self._began
            wait = self._waits.after(lived)
            _log.warn(
                "worker {worker} {how} after {lived:.1f} s; another is started {when}",
                worker=self.number,
                how=how,
                lived=lived,
                when=f"in {wait:g} s" if wait else "now",
            )
            # Not from within whoever tells of the end.
            self._timer = workers.reactor.callLater(wait, self.start)
        elif how != "has ended":
            _log.warn("worker {worker} {how}", worker=self.number, how=how)
        workers.is_gone(self)


def _how(ended: Any) -> str:
    if getattr(ended, "signal", None) is not None:
        return f"was ended by signal {ended.signal} ({signal.Signals(ended.signal).name})"
    status = getattr(ended, "exitCode", 0)
    return f"has ended with status {status}" if status else "has ended"


class _Traceback:
    """A failure that happened in another process, as far as a log wants to know."""

    def __init__(self, text: str) -> None:
        self._text = text

    def getTraceback(self, *_options: object, **_named: object) -> str:
        """Failure's: how it came about."""
        return self._text


def _write(number: int, line: bytes) -> None:
    """Log what a worker has logged (`heartbeat.logs.json_line`)."""
    try:
        said: dict[str, Any] = json.loads(line)
        level = LogLevel.lookupByName(said.pop("level"))
        message, namespace = said.pop("message"), said.pop("namespace")
        moment, failure = said.pop("time", None), said.pop("failure", None)
    except (ValueError, KeyError, TypeError, AttributeError):
        # Somebody has written past the log.
        _log.warn("worker {worker}: {said}", worker=number, said=line.decode(errors="replace"))
        return
    event = {name: value for name, value in said.items() if not name.startswith("log_")}
    event |= {
        "worker": number,
        "log_level": level,
        "log_namespace": namespace,
        "log_format": "worker {worker}: {log_said}",
        "log_said": message,
    }
    if namespace == "log_legacy":
        # As Twisted shows what is not of its newer log.
        event["log_system"] = "-"
    if failure is not None:
        event["log_failure"] = _Traceback(failure)
    if moment is not None:
        event["log_time"] = datetime.fromisoformat(moment).timestamp()
    globalLogPublisher(event)
