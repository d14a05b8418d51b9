"""`python -m faults`: run the rows, print the table, and say by the exit status whether every row passed.

Rows that mostly wait run side by side, rows that need the processor one by one after them. Whatever happens, also
Ctrl-C, each row cleans up behind itself before this ends.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from faults import clocks, crowds, disks, hosts, links, network, proxied, proxies
from faults.lab import FAULTS, Failed, Fault, Lab, Stopped, missing, now, stop_all
from faults.table import Result, as_markdown, as_text, rewritten, sums

__all__ = ["main"]

#: Where the rows are, in the order of the table; to import them was to register them.
ROWS = (network, proxied, proxies, hosts, clocks, disks, crowds)

_PASSED, _FAILED, _USAGE, _INTERRUPTED = 0, 1, 2, 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m faults",
        description="Break links, hosts and processes under the real program, and print what it noticed, and when.",
    )
    add = parser.add_argument
    add(
        "--only",
        action="append",
        metavar="WORD",
        help="only the rows that have this word in their cause, function or module; repeatable",
    )
    add("--times", type=int, default=1, metavar="N", help="so many runs, one table each (1)")
    add("--jobs", type=int, default=9, metavar="N", help="so many rows side by side (9)")
    add("--write", type=Path, metavar="FILE", help="put the table between the marks of this Markdown file")
    add("--list", action="store_true", help="only name the rows")
    return parser


def run_row(fault: Fault) -> Result:
    """Run one row here and now."""
    began = now()
    why = missing(fault.needs)
    if why is not None:
        # In CI nothing is skipped: what a user's machine may lack, CI has, or the row fails.
        failed = f"not run here: {why}" if os.environ.get("CI") == "true" else ""
        return Result(fault, skipped=f"not run here: {why}", failed=failed)
    try:
        with Lab(fault.run.__name__) as lab:
            seen = fault.run(lab)
        return Result(fault, seen, took=now() - began)
    except Failed as error:
        return Result(fault, failed=str(error), took=now() - began)
    except Stopped:
        return Result(fault, failed="stopped", took=now() - began)
    except Exception as error:  # noqa: BLE001  # whatever it is, it fails this row and no other
        traceback.print_exc()
        return Result(fault, failed=f"{type(error).__name__}: {error}", took=now() - began)


def run_all(faults: Sequence[Fault], jobs: int) -> list[Result]:
    """One run of these rows; the results in the order of the table."""
    together, alone = [one for one in faults if not one.alone], [one for one in faults if one.alone]
    results: dict[int, Result] = {}
    with ThreadPoolExecutor(jobs) as threads:
        running = {threads.submit(run_row, fault): fault for fault in together}
        try:
            for future in as_completed(running):
                results[id(running[future])] = _told(future.result())
        except BaseException:
            stop_all()
            threads.shutdown(cancel_futures=True)
            raise
    for fault in alone:
        results[id(fault)] = _told(run_row(fault))
    return [results[id(fault)] for fault in faults]


def _told(result: Result) -> Result:
    sys.stderr.write(f"{result.took:6.1f} s  {result.verdict:12}  {result.fault.cause}\n")
    sys.stderr.flush()
    return result


def _chosen(words: Sequence[str] | None) -> list[Fault]:
    order = [module.__name__ for module in ROWS]
    faults = sorted(FAULTS, key=lambda one: order.index(one.run.__module__))
    if not words:
        return faults
    return [one for one in faults if any(word.lower() in text.lower() for word in words for text in _texts(one))]


def _texts(fault: Fault) -> tuple[str, ...]:
    """What a row may be chosen by."""
    return fault.cause, *_names(fault)


def _names(fault: Fault) -> tuple[str, str]:
    """Of its function, and of the module where that is."""
    return fault.run.__name__, fault.run.__module__.rpartition(".")[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Run with these arguments (the process's); returns the exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    faults = _chosen(arguments.only)
    if not faults:
        parser.error(f"no row has {' or '.join(arguments.only)} in its cause; --list names them")
    if arguments.times < 1 or arguments.jobs < 1:
        parser.error("--times and --jobs must be whole numbers from 1")
    if arguments.write is not None and arguments.only is not None:
        parser.error("--write takes the whole table, so --only cannot be with it")
    if arguments.list:
        for fault in faults:
            _say(f"{'.'.join(reversed(_names(fault)))}: {fault.cause}")
        return _PASSED
    # `timeout` and a CI runner end us by this; the rows are to clean up then too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        links.sweep()
        return _run(faults, arguments)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return _INTERRUPTED


def _run(faults: Sequence[Fault], arguments: argparse.Namespace) -> int:
    runs = []
    for number in range(1, arguments.times + 1):
        began = now()
        runs.append(run_all(faults, arguments.jobs))
        head = f"run {number} of {arguments.times}, {now() - began:.0f} s"
        _say(f"\n{head}\n\n{as_text(runs[-1])}\n")
        if failed := [result for result in runs[-1] if result.verdict == "NO"]:
            # Once more by themselves: of a long output often only the end is kept.
            _say(f"what has not passed:\n\n{as_text(failed)}\n")
        _say(sums(runs[-1]))
    everything = [result for results in runs for result in results]
    if len(runs) > 1:
        _say(f"\nall {len(runs)} runs: {sums(everything)}")
    passed = all(result.passed for result in everything)
    if arguments.write is not None:
        _write(arguments.write, as_markdown(runs), passed=passed)
    return _PASSED if passed else _FAILED


def _write(path: Path, table: str, *, passed: bool) -> None:
    if not passed:
        _say(f"{path} is left as it is: not every row has passed")
        return
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(rewritten(text, table), encoding="utf-8")
    _say(f"the table in {path} is new")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
