"""The fuzzers' command.

    python -m fuzz TARGET [--seconds 60] [--seed 1] [--corpus DIR] [--runs N] [--without-atheris]
    python -m fuzz all --seconds 3600
    python -m fuzz TARGET --replay FILE [FILE …]
    python -m fuzz TARGET --keep [--corpus DIR]

Ends with the line `N passed, N failed`, and with status 1 where anything was found.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from fuzz.corpora import corpus, grown, keep, read
from fuzz.engines import Task, bred, driven, has_atheris, prepared
from fuzz.findings import Findings, say
from fuzz.targets import NAMES, load

__all__ = ["main"]

#: Seconds between two lines about a target, and those that its process may take beyond its time.
_OFTEN = 60.0
_GRACE = 300.0

_STATUS = re.compile(r"#(\d+)\s+(\w+).*?cov: (\d+) .*?corp: (\d+)/")


@dataclass
class Run:
    """One target's: how often it was tried, what was reached at first and in the end, and what was found."""

    name: str
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    executions: int = 0
    first: tuple[int, int] | None = None
    last: tuple[int, int] = (0, 0)
    findings: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    status: int | None = None

    @property
    def has_passed(self) -> bool:
        """Whether it ran, and found nothing."""
        return self.status == 0 and not self.findings and self.executions > 0

    def hear(self, line: str) -> None:
        """A line of its process's standard error."""
        status = _STATUS.match(line)
        if status is None:
            self.words = [*self.words[-19:], line.rstrip()]
            return
        self.executions = int(status[1])
        self.last = int(status[3]), int(status[4])
        if status[2] == "INITED":
            self.first, self.began = self.last, time.monotonic()

    def note(self, line: str) -> None:
        """A line of its standard output, about a finding."""
        say(line.rstrip())
        self.findings += [line] if " again by: " in line else []

    def __str__(self) -> str:
        seconds = (self.ended or time.monotonic()) - self.began
        branches, inputs = self.first or (0, 0)
        return (
            f"{self.name:10} {seconds:6.0f} s  {self.executions:10,} executions  {self.executions / seconds:8,.0f}/s  "
            f"reached {branches} -> {self.last[0]}  inputs {inputs} -> {self.last[1]}  findings {len(self.findings)}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Do as the command line says; the exit status."""
    options = _parsed(arguments)
    names = NAMES if options.target == "all" else (options.target,)
    if options.target == "all" and (options.replay or options.keep):
        sys.exit("of one target at a time")
    if options.replay:
        return _replay(options.target, options.replay)
    if options.keep:
        return _keep(options.target, options.corpus)
    if options.inside:
        folder = options.corpus or grown(options.target)
        engine = driven if options.inside == "atheris" else bred
        engine(Task(options.target, folder, options.scratch, options.seconds, options.seed, options.runs))
        return 0
    runs = [_run(name, options, options.seconds / len(names)) for name in names]
    for run in runs:
        say(run)
    passed = sum(run.has_passed for run in runs)
    say(f"{passed} passed, {len(runs) - passed} failed")
    return int(passed < len(runs))


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Seeks inputs by which a promise is broken.")
    parser.add_argument("target", choices=[*NAMES, "all"])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long, in all (60)")
    parser.add_argument("--runs", type=int, help="how many inputs at most, for each target")
    parser.add_argument("--seed", type=int, default=1, help="of all chance (1)")
    parser.add_argument("--corpus", type=Path, help="where to keep what reaches something new (.fuzz/TARGET)")
    parser.add_argument("--without-atheris", action="store_true", help="by our own fuzzer, even where atheris is")
    parser.add_argument("--replay", type=Path, nargs="+", help="try these files, and say what they break")
    parser.add_argument(
        "--keep", action="store_true", help="take what has grown into the repository's corpus, minimised"
    )
    parser.add_argument("--inside", choices=["atheris", "bred"], help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _run(name: str, options: argparse.Namespace, seconds: float) -> Run:
    """A target's fuzzer, in a process of its own; what it says is passed on now and then."""
    engine = "atheris" if has_atheris() and not options.without_atheris else "bred"
    command = [sys.executable, "-m", "fuzz", name, "--inside", engine]
    command += ["--seconds", str(seconds), "--seed", str(options.seed)]
    command += [] if options.runs is None else ["--runs", str(options.runs)]
    if options.corpus:
        command += ["--corpus", str(options.corpus / name if options.target == "all" else options.corpus)]
    say(f"{name}: {seconds:.0f} s, by {'atheris' if engine == 'atheris' else 'our own fuzzer'}, seed {options.seed}")
    run = Run(name)
    with tempfile.TemporaryDirectory() as scratch:
        _follow(run, [*command, "--scratch", scratch], seconds + _GRACE)
    if not run.has_passed:
        say(f"{name}: status {run.status}\n" + "\n".join(run.words))
    return run


def _follow(run: Run, command: list[str], seconds: float) -> None:
    """Start a fuzzer and hear what it says, until it ends, or longer than it may take."""
    with subprocess.Popen(  # noqa: S603  # it starts itself
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        hearing = [
            threading.Thread(target=_listen, args=(process.stderr, run.hear)),
            threading.Thread(target=_listen, args=(process.stdout, run.note)),
        ]
        for one in hearing:
            one.start()
        until = time.monotonic() + seconds
        while run.status is None:
            try:
                run.status = process.wait(_OFTEN)
            except subprocess.TimeoutExpired:
                say(run)
                if time.monotonic() > until:
                    process.kill()
        for one in hearing:
            one.join()
    run.ended = time.monotonic()


def _listen(stream: IO[str], hear: Callable[[str], object]) -> None:
    for line in stream:
        hear(line)


def _replay(name: str, paths: Sequence[Path]) -> int:
    """Try these inputs; the status says whether any breaks a promise."""
    target, broken = load(name), 0
    for path in paths:
        try:
            target.try_one(path.read_bytes())
        except Exception:  # noqa: BLE001  # whatever it is, it is what is sought
            broken += 1
            say(f"{path}\n{traceback.format_exc()}")
    say(f"{len(paths) - broken} passed, {broken} failed")
    return int(broken > 0)


def _keep(name: str, folder: Path | None) -> int:
    """Take what has grown into the corpus of the repository, and leave out of it what a shorter input reaches too."""
    target, reached = prepared(name)
    inputs = [*target.beginnings(), *read(corpus(name)), *read(folder or grown(name))]
    count, size, branches = keep(corpus(name), inputs, Findings(name, target.try_one).breaks, reached)
    say(f"{name}: of {len(inputs)} inputs {count} of {size} bytes, which reach {branches} branches")
    return 0


if __name__ == "__main__":
    sys.exit(main())
