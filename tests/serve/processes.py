"""Real processes for tests: started here, read line by line, ended here, each by its own process id."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from twisted.internet import reactor as installed

from heartbeat import Settings

#: Where the scripts of this environment are.
BIN = Path(sys.executable).parent
LOOPBACK = "tcp:0:interface=127.0.0.1"

_NAMES = {"AsyncioSelectorReactor": "asyncio", "HeartbeatReactor": "heartbeat"}

#: The reactor of this run, as twistd calls it: servers have one of the same kind (and the same path).
REACTOR = _NAMES.get(type(installed).__name__, "default")
#: For what is to be seen on ours in an ordinary run too.
REACTORS = (REACTOR, "heartbeat") if REACTOR == "default" and sys.platform == "linux" else (REACTOR,)


class Program:
    """One running program; its standard output and error come as lines, bounded in time.

    With `with`, it is gone at the end, whatever happened in between.
    """

    def __init__(self, command: list[Any], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        )
        self.seen: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    def line(self, timeout: float) -> str | None:
        """The next line; None at the end of the output. Fails when none comes in time."""
        try:
            line = self._lines.get(timeout=max(0.0, timeout))
        except queue.Empty:
            raise AssertionError(f"no line within {timeout:.1f} s; so far:\n" + "\n".join(self.seen)) from None
        if line is not None:
            self.seen.append(line)
        return line

    def line_with(self, text: str, timeout: float) -> str:
        """The next line that holds `text`; fails when it does not come in time, with all that came."""
        deadline = time.monotonic() + timeout
        while (line := self.line(deadline - time.monotonic())) is not None:
            if text in line:
                return line
        raise AssertionError(f"ended without {text!r}; all it said:\n" + "\n".join(self.seen))

    def json_events(self, timeout: float) -> Iterator[dict[str, Any]]:
        """The JSON objects that it prints, a line each, until its output ends; all within `timeout`."""
        deadline = time.monotonic() + timeout
        while (line := self.line(deadline - time.monotonic())) is not None:
            if line.startswith("{"):
                yield json.loads(line)

    def event(self, name: str, timeout: float) -> dict[str, Any]:
        """The next JSON event of this name."""
        for event in self.json_events(timeout):
            if event["event"] == name:
                return event
        raise AssertionError(f"ended without the event {name!r}; all it said:\n" + "\n".join(self.seen))

    def url(self, timeout: float = 30.0) -> str:
        """The WebSocket URL that a server says it listens on."""
        return self.line_with("listening on ", timeout).split("listening on ")[1].split()[0]

    def signal(self, which: int) -> None:
        """Send it a signal."""
        self._process.send_signal(which)

    def pause(self) -> None:
        """Have it stand still (SIGSTOP)."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Have it go on (SIGCONT)."""
        self.signal(signal.SIGCONT)

    def wait(self, timeout: float) -> int:
        """Its exit status."""
        status = self._process.wait(timeout)
        self._reader.join(timeout)
        return status

    def stop(self, timeout: float = 15.0) -> int:
        """Ask it to end (SIGTERM); its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """End it (SIGKILL)."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(15)
        self._reader.join(15)

    def rest(self) -> list[str]:
        """The lines that have come and were not read yet."""
        lines = []
        while not self._lines.empty():
            line = self._lines.get()
            if line is not None:
                lines.append(line)
        self.seen += lines
        return lines

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._process.stdout.close()
        self._lines.put(None)


def twistd(*options: str, cwd: Path, env: dict[str, str] | None = None, reactor: str = REACTOR) -> Program:
    """`twistd -n heartbeat`, on a free port of loopback unless the options say otherwise."""
    chosen = () if reactor == "default" else (f"--reactor={reactor}",)
    listen = () if "--listen" in options else ("--listen", LOOPBACK)
    path = () if Settings().fast_path else ("--no-fast-path",)
    command = [BIN / "twistd", *chosen, "-n", "--pidfile=", "heartbeat", *listen, *path, *options]
    return Program(command, cwd=cwd, env=env)


def script(path: Path, *arguments: str, env: dict[str, str] | None = None, reactor: str = "default") -> Program:
    """A program of these tests, on Twisted's own reactor or on another one."""
    chosen = () if reactor == "default" else (Path(__file__).parent / "on_reactor.py", reactor)
    return Program([sys.executable, *chosen, path, *arguments], env=env)


def client(url: str, *options: str, env: dict[str, str] | None = None) -> Program:
    """`heartbeat-client URL --json`."""
    return Program([BIN / "heartbeat-client", url, "--json", *options], env=env)
