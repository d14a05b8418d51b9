"""The programs of a soak, and its time: they are started, heard and ended here, all in one thread.

Knows nothing of what they do. What is due is done, what was said is heard, whichever comes first.
"""

from __future__ import annotations

import heapq
import json
import os
import queue
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from processes import Program

from faults import ROOT

__all__ = ["Cast", "Failed", "Voice"]


class Failed(Exception):
    """The soak could not go on; the sentence says why."""


class Voice(Program):
    """A program whose every event goes into one queue, with its name; lines that are no events are kept as `noise`."""

    def __init__(
        self, name: str, inbox: queue.Queue[tuple[str, dict[str, Any]]], command: list[Any], cwd: Path
    ) -> None:
        self.name = name
        self.noise: list[str] = []
        self._inbox = inbox
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        super().__init__(command, cwd=cwd, env={"PYTHONPATH": paths})

    def cpu(self) -> float:
        """Seconds of the processor that it has used so far."""
        with suppress(OSError):
            fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def _read(self) -> None:
        for line in self._process.stdout:
            event = None
            if line.startswith("{"):
                with suppress(ValueError):
                    event = json.loads(line)
            if event is None:
                self.noise.append(line.rstrip("\n"))
            else:
                self._inbox.put((self.name, event))
        self._process.stdout.close()
        self._inbox.put((self.name, {"event": "ended-output"}))


class Cast(ExitStack):
    """All programs of one run, ended with it. `hear` is told what they say; `folder` is theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.programs: dict[str, Voice] = {}
        self._inbox: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._number = 0
        self._cpu: dict[str, tuple[float, float]] = {}

    def __enter__(self) -> Self:
        super().__enter__()
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        return self

    def hear(self, name: str, event: dict[str, Any]) -> None:
        """One event of one program."""
        raise NotImplementedError

    def start(self, name: str, module: str, configured: dict[str, Any], *more: object) -> None:
        """Start one of ours."""
        command = [sys.executable, "-m", f"faults.{module}", json.dumps(configured), *more]
        self.programs[name] = self.enter_context(Voice(name, self._inbox, command, self.folder))
        self._cpu[name] = (time.monotonic(), 0.0)

    def cpu_since(self, name: str) -> float:
        """Per cent of one core that a program has used, since it was asked before."""
        now = time.monotonic()
        (before, used), uses = self._cpu[name], self.programs[name].cpu()
        self._cpu[name] = (now, uses)
        return 100 * (uses - used) / (now - before) if now > before else 0.0

    def at(self, moment: float, step: Callable[[], object]) -> None:
        """Do this then."""
        self._number += 1
        heapq.heappush(self._due, (moment, self._number, step))

    def until(self, condition: Callable[[], object], patience: float, why: str) -> None:
        """Go on until something is so."""
        deadline = time.monotonic() + patience
        while not condition():
            if time.monotonic() > deadline:
                raise Failed(f"{why} within {patience:g} s; {self.state()}")
            self.turn(deadline)

    def pass_time(self, moment: float) -> None:
        """Go on until then."""
        while time.monotonic() < moment:
            self.turn(moment)

    def turn(self, deadline: float) -> None:
        """Do what is due, and hear what is said, for a while."""
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)[2]()
        moment = min(deadline, self._due[0][0] if self._due else deadline)
        with suppress(queue.Empty):
            name, event = self._inbox.get(timeout=max(0.0, min(1.0, moment - time.monotonic())))
            self.hear(name, event)

    def state(self) -> str:
        """For a sentence."""
        noise = "; ".join(line for program in self.programs.values() for line in program.noise[-3:])
        return f"the last that was said: {noise or 'nothing but events'}"
