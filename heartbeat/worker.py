"""`python -m heartbeat.worker`: one of several processes that serve, started by `heartbeat.workers` and by nobody else.

It is told on its standard input what it serves, and goes when that is closed: whoever started it is gone then. What it
logs goes to its standard output, an object a line, and how it is to the descriptor `WORD`, a word a line. Nothing of
that ever makes it wait.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from twisted.internet.main import CONNECTION_DONE
from twisted.logger import ILogObserver, globalLogBeginner
from zope.interface import implementer

from heartbeat.core.errors import SettingError
from heartbeat.logs import json_line
from heartbeat.pulse import make_monotonic
from heartbeat.tap import Options
from heartbeat.workers import WORD, admin_of, patience_to_stop

__all__ = ["main"]

# Where nobody takes what is logged, as much of it waits.
_WAITING = 1 << 20


class Output:
    """A descriptor that is written to, and never waited for: what nobody takes is kept, up to a bound, then dropped."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._left = b""
        self._dropped = 0
        os.set_blocking(descriptor, False)

    def write(self, line: str) -> None:
        """Write a line."""
        if len(self._left) > _WAITING:
            self._dropped += 1
            line = ""
        elif self._dropped:
            said = f"{self._dropped} lines of the log were dropped: nobody took them"
            line += json.dumps({"level": "warn", "namespace": __name__, "message": said}) + "\n"
            self._dropped = 0
        self._left += line.encode()
        try:
            self._left = self._left[os.write(self._descriptor, self._left) :]
        except BlockingIOError:
            return
        except OSError:
            # Whoever read it is gone, and so is this process soon.
            self._left = b""


@implementer(ILogObserver)
class Observer:
    """Writes each event that is logged to an output."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def __call__(self, event: dict[str, Any]) -> None:
        """ILogObserver: this was logged."""
        line = json_line(event)
        if line:
            self._output.write(line)


class Parent:
    """Whoever started this process, told what a service manager is told (`heartbeat.notify.Manager`)."""

    def __init__(self, patience: float | None) -> None:
        self.patience = patience
        self._words = Output(WORD)

    def ready(self) -> None:
        """We listen, and whoever comes is served."""
        self._words.write("ready\n")

    def reloading(self) -> None:
        """We read our files again; `ready` follows."""

    def stopping(self) -> None:
        """We are on our way out."""
        self._words.write("stopping\n")

    def alive(self) -> None:
        """The reactor turns."""
        self._words.write("alive\n")


class Lifeline:
    """A descriptor of which nothing is wanted but that it is open: when it is closed, `gone` is called."""

    def __init__(self, descriptor: int, gone: Callable[[], object]) -> None:
        self._descriptor = descriptor
        self._gone = gone
        os.set_blocking(descriptor, False)

    def fileno(self) -> int:
        """IFileDescriptor: which it is."""
        return self._descriptor

    def logPrefix(self) -> str:
        """ILoggingContext: whose it is."""
        return "worker"

    def doRead(self) -> Any:
        """IReadDescriptor: something has come."""
        try:
            return None if os.read(self._descriptor, 4096) else CONNECTION_DONE
        except BlockingIOError:
            return None

    def connectionLost(self, _reason: Any) -> None:
        """IFileDescriptor: it is closed."""
        self._gone()


def _told() -> dict[str, Any]:
    """What whoever started us says, in one line."""
    said = b""
    while not said.endswith(b"\n"):
        more = os.read(0, 65_536)
        if not more:
            raise SystemExit("heartbeat.worker is started by twistd heartbeat --workers, and by nobody else")
        said += more
    told: dict[str, Any] = json.loads(said)
    return told


def main() -> None:
    """Serve until it is time to go."""
    # A terminal tells all processes at once that it is time to go; whoever started us says when it is.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    told = _told()
    import_module(told["reactor"]).install()
    from twisted.internet import reactor  # noqa: PLC0415  # it is installed by now

    made: Any = reactor
    globalLogBeginner.beginLoggingTo([Observer(Output(os.dup(1)))])  # type: ignore[list-item]  # it is one
    make_monotonic(made)
    options = Options()
    options.update(told["options"])
    options.update({"workers": None, "admin": admin_of(options["admin"], told["number"])})
    try:
        options.judge(told["sockets"])
        service = options.service(made, told["sockets"])
    except SettingError as error:
        raise SystemExit(f"--{error.name.replace('_', '-')} must be {error.bound}, not {error.value!r}") from None
    service.manager = Parent(told["patience"])
    is_stopping = False

    def stop() -> None:
        nonlocal is_stopping
        if is_stopping:
            return
        is_stopping = True
        # Whatever becomes of it, and of the reactor: after that it is no more.
        signal.alarm(math.ceil(patience_to_stop(options.settings)))
        service.stopService().addBoth(lambda _: made.stop())

    def terminated(_signal: int, _frame: Any) -> None:
        made.callFromThread(stop)

    made.addReader(Lifeline(0, stop))
    signal.signal(signal.SIGTERM, terminated)
    service.privilegedStartService()
    service.startService()
    made.run(installSignalHandlers=False)


if __name__ == "__main__":
    try:
        main()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            sys.stderr.write(ended.code + "\n")
            raise SystemExit(1) from None
        raise
