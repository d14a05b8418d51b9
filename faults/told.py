"""Programs whose every word is kept with its moment: what the rows wait for, and judge by.

A wait ends with the event that is waited for, or at its bound, or when the lab is stopped; nobody ever sleeps. Moments
are `time.monotonic`, which all processes of a machine share.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from processes import Program

__all__ = [
    "PATIENCE",
    "Clients",
    "Event",
    "Failed",
    "Ledger",
    "Server",
    "Stopped",
    "Told",
    "now",
    "stop_all",
]

#: Seconds that programs get for what has no bound of its own: to start, to open, to end.
PATIENCE = 60.0

T = TypeVar("T")

#: Running time, the same in all processes of this machine; what `at` of every event is in.
now = time.monotonic


class Failed(AssertionError):
    """Something that a row expects was not seen; the sentence says what."""


class Stopped(Exception):
    """The lab is being stopped: rows end where they stand, and clean up."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a program has said: when, by what name, of which client, and all the rest.

    A line that is no JSON event has the name `line` and its text as `detail["text"]`.
    """

    at: float
    name: str
    client: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)


#: A ping of a client's that was answered, or one of the server's.
_BEATS = ("pong", "ping")

_stopping = threading.Event()


def stop_all() -> None:
    """Have every row that runs end where it stands."""
    _stopping.set()


def _event(line: str) -> Event:
    if line.startswith("{"):
        with suppress(ValueError):
            detail = json.loads(line)
            # A program that tells when it was itself is believed; it is the same clock.
            return Event(float(detail.get("at", now())), str(detail.get("event")), detail.get("client"), detail)
    return Event(now(), "line", None, {"text": line})


class Told(Program):
    """A program whose every line is kept with its moment: what it has said can be asked for at any time."""

    def __init__(
        self,
        command: Sequence[object],
        *,
        prefix: Sequence[object] = (),
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self._told: list[Event] = []
        self._ended = False
        self._news = threading.Condition()
        super().__init__([*prefix, *command], cwd=cwd, env=env)

    def events(self, *names: str, since: float = 0.0, client: str | None = None) -> list[Event]:
        """What was said so far, by these names (all), at `since` or later, of this client (all)."""
        with self._news:
            told = tuple(self._told)
        return [
            event
            for event in told
            if event.at >= since and (not names or event.name in names) and client in (None, event.client)
        ]

    def first(
        self,
        *names: str,
        timeout: float = PATIENCE,
        since: float = 0.0,
        client: str | None = None,
        where: Callable[[Event], object] = lambda event: True,
    ) -> Event:
        """The first event of these names, at `since` or later, that is so; said already, or within `timeout`."""
        found = self.wait_for(
            lambda: next((one for one in self.events(*names, since=since, client=client) if where(one)), None),
            timeout,
        )
        if found is None:
            whose = "" if client is None else f" of {client}"
            raise Failed(f"no {' or '.join(names)}{whose} within {timeout:.1f} s; {self.latest()}")
        return found

    def wait_for(self, look: Callable[[], T | None], timeout: float) -> T | None:
        """What `look` returns as soon as it is something, asked again whenever the program says something; or None."""
        deadline = now() + timeout
        while True:
            with self._news:
                count, ended = len(self._told), self._ended
            found = look()
            if found is not None and found is not False:
                return found
            left = deadline - now()
            if left <= 0 or ended:
                return None
            with self._news:
                if len(self._told) == count and not self._ended:
                    self._news.wait(min(left, 0.25))
            if _stopping.is_set():
                raise Stopped

    def until(self, moment: float) -> None:
        """Let time pass until `moment`, while the program runs; an end of it before that is a failure."""
        self.wait_for(lambda: None, moment - now())
        if self._ended and now() < moment:
            raise Failed(f"the program has ended; {self.latest()}")

    def latest(self, count: int = 3) -> str:
        """The last lines it said, for a sentence."""
        told = self.events()[-count:]
        said = "; ".join(event.detail.get("text") or json.dumps(event.detail) for event in told)
        return f"the last it said: {said[-400:]}"

    def _read(self) -> None:
        for line in self._process.stdout:
            text = line.rstrip("\n")
            event = _event(text)
            self._lines.put(text)
            with self._news:
                self._told.append(event)
                self._news.notify_all()
        self._process.stdout.close()
        self._lines.put(None)
        with self._news:
            self._ended = True
            self._news.notify_all()


@dataclass(frozen=True, slots=True)
class Ledger:
    """What became of the messages of a crowd, when all was over.

    `lost`: accepted by `send`, and never seen by the one they were for. `doubled`: seen twice, or with two final
    statuses. `refused`: not accepted (`SessionFull`). `resumed` and `anew`: connections that went on with the session
    they had, or had to begin another. `complaints`: sentences about what should not be, such as a message in the wrong
    order.
    """

    sent: int
    handled: int
    received: int
    lost: int
    doubled: int
    refused: int
    resumed: int
    anew: int
    complaints: tuple[str, ...]


class Clients(Told):
    """A process of `HeartbeatClient`s that chat round in a ring with numbered messages, and keep a ledger at both ends.

    Its events, each with `at` and `client`: all those of `linkChanged`, with the `port` that is ours (`open` says
    whether it `resumed`), `pong`, `ping` (of the server's), `message` (that arrived, with its `id`), `lost-session`;
    and `progress` four times a second.
    """

    names: tuple[str, ...] = ()

    def healthy(self, timeout: float = PATIENCE) -> float:
        """Wait until each client is open, was answered twice and has received messages; the moment when that was."""
        return self.back(0.0, timeout, beats=2)

    def back(self, since: float, timeout: float, *, beats: int = 1) -> float:
        """The moment when the last client has a link that was answered, and messages arriving again, after `since`."""
        deadline = now() + timeout
        return max(self._one_back(name, since, deadline, beats) for name in self.names)

    def _one_back(self, name: str, since: float, deadline: float, beats: int) -> float:
        def look() -> float | None:
            told = self.events("open", "closed", "dead", *_BEATS, "message", since=since, client=name)
            # What came before the latest opening, or before the end of one, says nothing.
            for at in range(len(told) - 1, -1, -1):
                if told[at].name in ("open", "closed", "dead"):
                    if told[at].name != "open":
                        return None
                    told = told[at:]
                    break
            answered = [event.at for event in told if event.name in _BEATS][:beats]
            messages = [event.at for event in told if event.name == "message"][:beats]
            return max(answered[-1], messages[-1]) if len(answered) == len(messages) == beats else None

        moment = self.wait_for(look, deadline - now())
        if moment is None:
            raise Failed(f"{name} has no working link; {self.latest()}")
        return moment

    def stall(self) -> float:
        """Have its reactor stand still for the `stall` seconds that it was started with; the moment."""
        return _stall(self)

    def finish(self, timeout: float = 75.0) -> Ledger:
        """Send nothing new, wait until every message has arrived and has its final status, and end: the ledger.

        Raises Failed where the ledger has complaints.
        """
        self.signal(signal.SIGUSR1)
        detail = self.first("summary", timeout=timeout).detail
        self.wait(PATIENCE)
        counts = {name: detail[name] for name in Ledger.__slots__ if name != "complaints"}
        ledger = Ledger(**counts, complaints=tuple(detail["complaints"]))
        if ledger.complaints:
            raise Failed("; ".join(ledger.complaints))
        return ledger


class Server(Told):
    """`twistd -n heartbeat`, whose links' changes are told: events `open`, `suspect`, `acknowledged`, `dead`, `closed`.

    Each has `at`, `client`, `reason`, `code` and the client's `port`. Besides: `joined`, `left` and `lost-session`,
    each with its `client`.
    """

    def url(self, timeout: float = PATIENCE) -> str:
        """The WebSocket URL that it says it listens on."""
        said = self.first("line", timeout=timeout, where=lambda event: "listening on " in event.detail["text"])
        return str(said.detail["text"].split("listening on ")[1].split()[0])

    def stall(self) -> float:
        """Have its reactor stand still for the `stall` seconds that it was started with; the moment."""
        return _stall(self)


def _stall(program: Told) -> float:
    asked = now()
    program.signal(signal.SIGUSR2)
    return program.first("stalls", since=asked).at
