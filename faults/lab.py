"""What a row of the fault table is, and what it gets: a folder, servers, clients, and bounded waits for what they say.

A row is an ordinary function, `def name(lab: Lab) -> Seen`, under `@fault(…)`. It never sleeps: it waits for an event
of a program, or finds that one did not come in time, which is a failed row. All that was started is ended with the
row, each program by its own process id. Knows nothing of what the causes are.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from processes import BIN, LOOPBACK

from faults.told import PATIENCE, Clients, Event, Failed, Ledger, Server, Stopped, Told, now, stop_all
from heartbeat import Settings

__all__ = [
    "FAULTS",
    "HERE",
    "NEEDS",
    "PATIENCE",
    "Clients",
    "Event",
    "Failed",
    "Fault",
    "Lab",
    "Ledger",
    "Seen",
    "Server",
    "Stopped",
    "Told",
    "convictions",
    "fault",
    "granted",
    "missing",
    "now",
    "stop_all",
]

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a row has seen; times in seconds.

    `detected`: from the cause to the last conviction there was to be; `bound`: the longest that this may take,
    computed from the settings. `false_convictions`, `lost` and `doubled` messages are counts. `recovered`: from the
    healing until beats and messages go again; `recovery_bound`: the longest that this may take. `note`: the evidence,
    in few words.
    """

    detected: float | None = None
    bound: float | None = None
    false_convictions: int = 0
    lost: int = 0
    doubled: int = 0
    recovered: float | None = None
    recovery_bound: float | None = None
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether all is as it should be: in time where there is a bound, and nothing false, lost or doubled."""
        in_time = _within(self.detected, self.bound) and _within(self.recovered, self.recovery_bound)
        return in_time and not (self.false_convictions or self.lost or self.doubled)


def _within(seconds: float | None, bound: float | None) -> bool:
    return bound is None or (seconds is not None and seconds <= bound)


@dataclass(frozen=True, slots=True)
class Fault:
    """One row: a cause and what is expected of it, in words; what it needs; whether it runs by itself; what runs it."""

    cause: str
    expected: str
    run: Callable[[Lab], Seen]
    needs: tuple[str, ...] = ()
    alone: bool = False


#: All rows, in the order of the table.
FAULTS: list[Fault] = []


def fault(
    cause: str, *, expected: str, needs: Sequence[str] = (), alone: bool = False
) -> Callable[[Callable[[Lab], Seen]], Callable[[Lab], Seen]]:
    """Make a row of the function below: the `cause`, and what is `expected` to be seen, both in words.

    `needs`: words of `NEEDS`, or programs that must be installed. `alone`: nothing runs beside it, because it needs the
    processor, or takes it from others.
    """

    def register(run: Callable[[Lab], Seen]) -> Callable[[Lab], Seen]:
        FAULTS.append(Fault(cause, expected, run, tuple(needs), alone))
        return run

    return register


def _root_missing() -> str | None:
    return None if os.geteuid() == 0 else "it needs root"


def _faketime_missing() -> str | None:
    found = any(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    return None if found else "libfaketime is not installed"


#: What a row may need besides programs: each says in a sentence why it is not to be had here, or None.
NEEDS: dict[str, Callable[[], str | None]] = {"root": _root_missing, "libfaketime": _faketime_missing}


def missing(needs: Iterable[str]) -> str | None:
    """Why a row that needs this cannot run here; None if it can."""
    for need in needs:
        look = NEEDS.get(need)
        why = look() if look is not None else None if shutil.which(need) else f"{need} is not installed"
        if why is not None:
            return why
    return None


class Lab(ExitStack):
    """What one row gets. What is started by it, or entered into it, is ended with it, the last first."""

    def __init__(self, name: str = "row") -> None:
        super().__init__()
        self.name = name
        #: Another for each run: for whoever draws lots.
        self.chance = random.Random()  # noqa: S311  # lots, not secrets

    def __enter__(self) -> Self:
        super().__enter__()
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        return self

    def program(
        self,
        command: Sequence[object],
        *,
        prefix: Sequence[object] = (),
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> Told:
        """Any other program. `prefix`: words before its own (`ip netns exec …`, `prlimit --nofile=64`, `nice -n 5`)."""
        return self.enter_context(Told(command, prefix=prefix, cwd=cwd or self.folder, env=env))

    def server(
        self,
        *options: object,
        listen: str = LOOPBACK,
        settings: dict[str, Any] | None = None,
        reactor: str = "default",
        stall: float = 10.0,
        prefix: Sequence[object] = (),
        env: dict[str, str] | None = None,
    ) -> Server:
        """`twistd -n heartbeat` with chat and these options.

        `settings`: other defaults than its own, for what it has no option for; `reactor`: as twistd calls it; `stall`:
        how long `Server.stall()` stalls it, in seconds.
        """
        chosen = () if reactor == "default" else (f"--reactor={reactor}",)
        ours = (json.dumps({"settings": settings or {}, "stall": stall}), *chosen, "-n", "--pidfile=")
        command = [sys.executable, "-P", HERE / "server.py", *ours, "heartbeat", "--listen", listen]
        command += ["--messages", "chat,group", "--trust-client-ids", *options]
        return self.enter_context(Server(command, prefix=prefix, cwd=self.folder, env=env))

    def clients(
        self,
        url: str,
        count: int = 2,
        *,
        rate: float = 2.0,
        size: int = 32,
        settings: dict[str, Any] | None = None,
        reactor: str = "default",
        stall: float = 10.0,
        quiet: bool = False,
        name: str = "c",
        prefix: Sequence[object] = (),
        env: dict[str, str] | None = None,
    ) -> Clients:
        """So many clients in one process. Each sends the next one `rate` messages a second with `size` bytes of text.

        `settings`: those that are not the defaults; `quiet`: pongs and messages are counted, not told one by one.
        """
        names = tuple(f"{name}{number}" for number in range(count))
        told = {"url": url, "names": names, "rate": rate, "size": size, "settings": settings or {}}
        told |= {"reactor": reactor, "stall": stall, "quiet": quiet}
        command = [sys.executable, "-P", HERE / "clients.py", json.dumps(told)]
        clients = self.enter_context(Clients(command, prefix=prefix, cwd=self.folder, env=env))
        clients.names = names
        return clients

    def client(
        self, url: str, *options: object, prefix: Sequence[object] = (), env: dict[str, str] | None = None
    ) -> Told:
        """`heartbeat-client URL --json`; its events have the moment of their coming."""
        command = [BIN / "heartbeat-client", url, "--json", *options]
        return self.enter_context(Told(command, prefix=prefix, cwd=self.folder, env=env))


def granted(settings: Settings, wish: float | None = None) -> Any:
    """The timing that holds between a server with these settings and a client that wishes for this interval."""
    return settings.timing(settings.granted_interval(wish))


def convictions(*programs: Told, since: float = 0.0) -> list[Event]:
    """Every time that a peer was taken for dead, by any of these programs."""
    return [event for program in programs for event in program.events("dead", since=since)]
