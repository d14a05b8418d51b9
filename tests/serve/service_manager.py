"""A service manager for tests, as systemd is one: holds the listening socket, starts a program, and hears what it says.

Run as a program it is what stands between the two for a moment: it takes the socket, says what the environment of a
service says, and becomes the service.
"""

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, Self

from processes import Program

#: The first descriptor of those that are handed over (sd_listen_fds(3)).
FIRST = 3


class ServiceManager:
    """One for a service in `folder`, on a port of loopback. Close it in the end."""

    def __init__(self, folder: Path, *, abstract: bool = False) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listening.getsockname()[1]
        self._folder = folder
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = f"\0heartbeat-test-{os.getpid()}-{id(self):x}" if abstract else str(folder / "notify")
        self._told.bind(address)
        self.address = address.replace("\0", "@")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.listening.close()
        self._told.close()

    def start(self, command: list[Any], *, watchdog: float | None = None, env: dict[str, str] | None = None) -> Program:
        """Start a service, which is handed the socket by the name `heartbeat`; `watchdog`: its patience, in seconds."""
        env = {"NOTIFY_SOCKET": self.address, **(env or {})}
        if watchdog is not None:
            env["WATCHDOG_USEC"] = str(round(watchdog * 1_000_000))
        with socket.socket(socket.AF_UNIX) as door:
            path = self._folder / "door"
            path.unlink(missing_ok=True)
            door.bind(str(path))
            door.listen()
            door.settimeout(30)
            program = Program([sys.executable, __file__, path, *command], cwd=self._folder, env=env)
            with door.accept()[0] as line:
                socket.send_fds(line, [b"."], [self.listening.fileno()])
        return program

    def told(self, timeout: float) -> str:
        """What it is told next; fails where nothing comes in time."""
        self._told.settimeout(timeout)
        return self._told.recv(4096).decode()

    def hears(self, words: str, timeout: float) -> str:
        """The next word, past those that only say that the service lives; fails where it does not begin so."""
        deadline = time.monotonic() + timeout
        while (said := self.told(max(0.001, deadline - time.monotonic()))) == "WATCHDOG=1" != words:
            pass
        assert said.startswith(words), said
        return said

    def is_silent(self, timeout: float) -> bool:
        """Whether nothing comes for so long."""
        try:
            self.told(timeout)
        except (TimeoutError, BlockingIOError):
            return True
        return False

    def forget(self) -> None:
        """What has come so far was not meant."""
        self._told.setblocking(False)
        try:
            while True:
                self._told.recv(4096)
        except BlockingIOError:
            pass


def become(door: str, command: list[str]) -> None:
    """Take the socket, and become the service."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(door)
        _said, (taken,), _flags, _address = socket.recv_fds(line, 1, 1)
    if taken != FIRST:
        os.dup2(taken, FIRST)
        os.close(taken)
    os.set_inheritable(FIRST, True)
    pid = str(os.getpid())
    env = os.environ | {"LISTEN_FDS": "1", "LISTEN_PID": pid, "LISTEN_FDNAMES": "heartbeat"}
    if "WATCHDOG_USEC" in env:
        env.setdefault("WATCHDOG_PID", pid)
    os.execve(command[0], command, env)  # noqa: S606  # the service is the process that was started


if __name__ == "__main__":
    become(sys.argv[1], sys.argv[2:])
