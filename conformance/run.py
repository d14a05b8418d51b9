"""The Autobahn|Testsuite against our server and our client, beside Autobahn alone, in one table.

    python conformance/run.py [--only server|client] [--cases '1.*,7.*'] [--full] [--jobs 4]

Ends with 1 when a case FAILED, or is worse than with Autobahn alone; and with 0, aloud, where there is no CPython 2.7.
Each configuration has a program and a wstest of its own, so that nothing is shared but the processor.
"""

from __future__ import annotations

import argparse
import ast
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from suite import HOW_TO_GET_IT, Failed, environment, python27
from verdict import Configuration, Outcome, Result, Verdict, as_text, judge

HERE = Path(__file__).resolve().parent
#: The specifications, reports and logs of the last run.
REPORTS = HERE / "build"

sys.path.append(str(HERE.parent / "tests" / "serve"))
from processes import Program  # noqa: E402  # the programs of the tests are started and ended as these are

# How it says in a log of the wire that its patience with a case is over.
_ITS_CLOCK = ("KLE", "TIE")

# 1-7 and 10 are what a frame may be, 9 is what is large. None of these is compressed, whatever is accepted; but with
# permessage-deflate accepted our server leaves the opening handshake to Autobahn.
_FRAMES = tuple(f"{number}.*" for number in (1, 2, 3, 4, 5, 6, 7, 10))
_SOME_FRAMES = ("1.*", "2.*", "5.*", "10.*", "9.7.2")
_SOME_LARGE = ("9.1.1", "9.1.2", "9.2.1", "9.2.2", "9.3.2", "9.6.1", "9.7.2", "9.8.2")
# 12 compresses five documents, and 13 one with seven sets of parameters; each in 18 sizes, of which the largest would
# take most of an hour. A thousand messages a case. (The sets 4 and 6 name the window that is usual anyway.)
_COMPRESSED = ("12.2.2", "12.3.3", *(f"13.{number}.1" for number in (1, 2, 3, 5, 7)))
_MORE_COMPRESSED = (
    *(f"12.{number}.{size}" for number in range(1, 6) for size in (1, 3, 5, 8, 11)),
    *(f"13.{number}.{size}" for number in range(1, 8) for size in (1, 4, 11)),
)
# To see how an offer is declined.
_DECLINED = ("12.1.1", "13.1.1")


@dataclass(frozen=True)
class Plan:
    """What is run: the cases without and with permessage-deflate, by whose Python.

    `patience`: seconds that a configuration may take; `is_ours`: the cases are those of this file.
    """

    plain: tuple[str, ...]
    deflate: tuple[str, ...]
    patience: float
    python: Path = Path()
    is_ours: bool = True


SHORT = Plan((*_FRAMES, *_SOME_LARGE, *_DECLINED), (*_SOME_FRAMES, *_COMPRESSED), 240)
FULL = Plan((*_FRAMES, "9.*", *_DECLINED), (*_FRAMES, "9.*", *_MORE_COMPRESSED), 1800)
#: Seconds that a program may take to start.
START = 60


def configurations(only: str) -> Iterator[Configuration]:
    """All of them, those with most to do first."""
    for deflate, end in product((True, False), ("server", "client")):
        if only in ("", end):
            yield Configuration(end, "autobahn", deflate)
            for stack, fast in product(("mixin", "own"), (True, False) if end == "server" else (False,)):
                yield Configuration(end, stack, deflate, fast)


# One configuration.

# Ctrl-C, or SIGTERM, has come: nothing more is started, and what runs is ended.
_stopped = threading.Event()
_running: set[Program] = set()


class Examination:
    """One configuration that is being examined, in a folder of its own."""

    def __init__(self, configuration: Configuration, cases: tuple[str, ...], folder: Path, plan: Plan) -> None:
        self._configuration = configuration
        self._cases = cases
        self._until = time.monotonic() + plan.patience
        self._wstest = (plan.python, "-W", "ignore", HERE / "loopback_wstest.py")
        self._folder = folder
        self._result = Result(configuration)

    def run(self) -> Result:
        """Examine it; whatever goes wrong is told in the result."""
        begun = time.monotonic()
        self._folder.mkdir(parents=True)
        try:
            {"server": self._server, "client": self._client}[self._configuration.end]()
            self._read_reports()
        except (Failed, AssertionError, subprocess.TimeoutExpired, OSError) as error:
            # A program that ended, or that did not in time, or one of its lines that did not come.
            self._result.trouble.append(f"{str(error).splitlines()[0]}; logs in {self._folder}")
        self._result.seconds = time.monotonic() - begun
        return self._result

    def _server(self) -> None:
        path = () if self._configuration.fast else ("--plain-path",)
        with self._program("echo", *self._echo("server"), *path) as echo:
            port = json.loads(echo.line_with('"port"', START))["port"]
            servers = [{"agent": self._configuration.name, "url": f"ws://127.0.0.1:{port}"}]
            with self._program("wstest", *self._fuzzing("client", servers=servers)) as wstest:
                self._ended(wstest, "wstest")
                self._note_cases(wstest)
            status = echo.stop()
            self._result.seen = json.loads(echo.line_with('"seen"', 0))["seen"]
            if status:
                raise Failed(f"the server ended with {status}")

    def _client(self) -> None:
        with self._program("wstest", *self._fuzzing("server", url="ws://127.0.0.1:0"), "-u", "0") as wstest:
            port = wstest.line_with("listening on ", START).split()[-1]
            self._note_cases(wstest)
            url, cases = f"ws://127.0.0.1:{port}", ",".join(self._result.cases)
            what = ("--url", url, "--agent", self._configuration.name, "--cases", cases)
            with self._program("echo", *self._echo("client"), *what) as echo:
                self._ended(echo, "the client")
            self._ended(wstest, "wstest")

    def _echo(self, end: str) -> tuple[object, ...]:
        deflate = ("--deflate",) if self._configuration.deflate else ()
        return sys.executable, HERE / "echo.py", end, self._configuration.stack, *deflate

    def _fuzzing(self, end: str, **more: object) -> tuple[object, ...]:
        specification = self._folder / "specification.json"
        specification.write_text(json.dumps({"outdir": str(self._folder), "cases": self._cases, **more}))
        return (*self._wstest, "-m", f"fuzzing{end}", "-s", specification)

    @contextmanager
    def _program(self, name: str, *command: object) -> Iterator[Program]:
        """A program whose output is kept, and looked through for what only a bug prints."""
        program = Program(list(command), cwd=self._folder)
        _running.add(program)
        try:
            with program:
                if _stopped.is_set():
                    raise Failed("stopped")
                yield program
        finally:
            _running.discard(program)
            program.rest()
            (self._folder / f"{name}.log").write_text("\n".join(program.seen) + "\n")
        if any(line.startswith("Traceback") for line in program.seen):
            self._result.trouble.append(f"a traceback in {self._folder / name}.log")

    def _ended(self, program: Program, name: str) -> None:
        status = program.wait(max(1.0, self._until - time.monotonic()))
        if status:
            raise Failed(f"{name} ended with {status}")

    def _note_cases(self, wstest: Program) -> None:
        """Which cases there are, as wstest understood it."""
        said = next((line for line in (*wstest.seen, *wstest.rest()) if line.startswith("Cases = ")), "Cases = []")
        self._result.cases = tuple(ast.literal_eval(said.removeprefix("Cases = ")))
        if not self._result.cases:
            raise Failed("wstest found no cases")

    def _read_reports(self) -> None:
        reports = json.loads((self._folder / "index.json").read_text()).get(self._configuration.name, {})
        for case, told in reports.items():
            report = self._folder / told["reportfile"]
            wire = json.loads(report.read_text())["wirelog"]
            is_late = any(entry[0] in _ITS_CLOCK for entry in wire)
            shown = report.with_suffix(".html").relative_to(HERE.parent)
            self._result.outcomes[case] = Outcome(told["behavior"], told["behaviorClose"], shown, is_late)


# All of them.


def examine(wanted: list[Configuration], plan: Plan, jobs: int) -> list[Verdict]:
    """What is to be said of each, in the order of the table."""
    shutil.rmtree(REPORTS, ignore_errors=True)

    def one(configuration: Configuration) -> Result:
        cases = plan.deflate if configuration.deflate else plan.plain
        result = Examination(configuration, cases, REPORTS / configuration.folder, plan).run()
        result.must_be_fast = configuration.fast and plan.is_ours
        print(f"{configuration.name}: {len(result.outcomes)} cases in {result.seconds:.0f} s", flush=True)
        return result

    with ThreadPoolExecutor(jobs) as pool:
        try:
            results = list(pool.map(one, wanted))
        except BaseException:
            _stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for program in tuple(_running):
                program.signal(signal.SIGKILL)
            raise
    for verdict in judged(results):
        if verdict.late:
            result = verdict.result
            # It allows half a second for an echo, in which a busy machine may not get to it.
            print(f"{result.configuration.name}: once more, alone: {' '.join(verdict.late)}", flush=True)
            folder = REPORTS / f"{result.configuration.folder}-again"
            second = Examination(result.configuration, verdict.late, folder, plan).run()
            result.again = verdict.late
            result.outcomes |= second.outcomes
            result.trouble += second.trouble
    return judged(results)


def judged(results: list[Result]) -> list[Verdict]:
    """Each beside Autobahn alone."""
    by_configuration = {result.configuration: result for result in results}
    verdicts = [judge(result, by_configuration.get(result.configuration.measure)) for result in results]
    return sorted(verdicts, key=lambda verdict: verdict.result.configuration.row)


def report(verdicts: list[Verdict]) -> bool:
    """Print what was found; whether all of it is good."""
    print(f"\n{as_text(verdicts)}\n")
    for verdict in verdicts:
        name = verdict.result.configuration.name
        if verdict.result.again:
            print(f"{name}: examined twice, since the suite's clock ended them: {' '.join(verdict.result.again)}")
        for sentence in verdict.sentences():
            print(f"FAILED: {name}: {sentence}")
    failed = sum(verdict.failed for verdict in verdicts)
    checks = sum(verdict.result.checks for verdict in verdicts)
    print(f"{max(0, checks - failed)} passed, {failed} failed")
    return not failed


def main() -> int:
    """Examine, and say by the exit status whether all is good."""
    parser = argparse.ArgumentParser(description="The Autobahn|Testsuite against our server and our client.")
    parser.add_argument("--only", choices=("server", "client"), default="", help="one end")
    parser.add_argument("--cases", default="", help="these cases, with commas between, such as '1.*,9.3.1'")
    parser.add_argument("--full", action="store_true", help="all of 9 too, and more of 12 and 13 (some minutes)")
    parser.add_argument("--jobs", type=int, default=4, help="configurations at the same time; they wait a lot")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    python = python27()
    if python is None:
        print(HOW_TO_GET_IT)
        return 0
    try:
        inside = environment(python)
    except Failed as failed:
        print(failed)
        return 1
    plan = FULL if options.full else SHORT
    if options.cases:
        cases = tuple(options.cases.split(","))
        plan = replace(plan, plain=cases, deflate=cases, patience=7200, is_ours=False)
    try:
        verdicts = examine(list(configurations(options.only)), replace(plan, python=inside), options.jobs)
    except KeyboardInterrupt:
        return 130
    return 0 if report(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
