"""The benchmark of speed: our server beside others that do the same work, interleaved, round by round.

    python benchmarks/speed.py [--quick] [--rounds 5] [--only MEASURE] [--contestants ours,autobahn] [--report-only]

The server has one core, the load the other. A contestant meets each round with a fresh server, after all the others
have met the round before, so that what changes on the machine meanwhile changes for all. Linux only, two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import time
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import report
from contest import BUILD, CONTESTANTS, HERE, PROJECT, Contestant, Failed, load_generator
from measures import MEASURES, QUICK, Measure, Scale, Told

#: Rounds without which nothing is written beside this file.
ENOUGH = 5
#: Files that a process with connections has open besides.
_BESIDE = 200


# The rounds.


def measured(measure: Measure, scale: Scale, wanted: list[str]) -> dict[str, Any]:
    """The runs of a measure, round by round, and who was left out."""
    names = [name for name in measure.contestants if name in wanted]
    why = {name: sentence for name in names if (sentence := lacks(measure, scale, CONTESTANTS[name]))}
    here = [name for name in names if name not in why]
    runs: dict[str, list[Told]] = {name: [] for name in here}
    for number in range(scale.rounds):
        for name in here:
            runs[name].append(run_once(measure, scale, CONTESTANTS[name], f"{number + 1}/{scale.rounds}"))
    return {"date": time.strftime("%Y-%m-%d"), "scale": asdict(scale), "runs": runs, "left_out": why}


def run_once(measure: Measure, scale: Scale, contestant: Contestant, number: str) -> Told:
    """One run, which may fail."""
    try:
        told = measure.run(contestant, scale)
    except (Failed, subprocess.TimeoutExpired) as failed:
        told = {"failed": str(failed)}
    column = measure.columns[0]
    said = f"FAILED: {told['failed']}" if "failed" in told else f"{column.of(told):,.2f} {column.title}"
    print(f"{measure.name:7} {number} {contestant.name:17} {said}", told.get("remark", ""), flush=True)
    return told


@cache
def lacks(measure: Measure, scale: Scale, contestant: Contestant) -> str:
    """What a contestant cannot be measured without, said aloud; nothing if all is there."""
    room, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[0], measure.connections(scale) + _BESIDE
    why = contestant.missing()
    if not why and room != resource.RLIM_INFINITY and room < needed:
        why = f"the open-file limit (ulimit -n) is {room}, and {needed} are needed"
    if why:
        print(f"{measure.name:7} LEFT OUT: {contestant.label}: {why}", flush=True)
    return why


# What must be there at all.


def prepare() -> None:
    """Look for what nothing goes without."""
    if not Path("/proc/self/schedstat").exists() or len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("Linux and two cores are needed: one for the server, one for the load")
    BUILD.mkdir(exist_ok=True)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        load_generator()
    except Failed as failed:
        raise SystemExit(str(failed)) from None
    if list(PROJECT.parent.glob("lib/python*/site-packages/click")):
        print("CLICK IS INSTALLED beside Autobahn, which is an eighth slower for it: see benchmarks/contest.py")


def look_around() -> None:
    """Say so when somebody else is at work on this machine."""
    before = _idle()
    time.sleep(1)
    busy = os.sysconf("SC_NPROCESSORS_ONLN") - (_idle() - before) / os.sysconf("SC_CLK_TCK")
    if busy > 0.1:
        print(f"OTHERS ARE AT WORK on this machine, on {busy:.1f} of its cores: the spread will show it")


def _idle() -> int:
    """Ticks that all cores have had nothing to do."""
    return int(Path("/proc/stat").read_text().split(maxsplit=5)[4])


# What is kept.


class Book:
    """The figures so far, and what is made of them: results beside this file, or a draft that nobody commits."""

    def __init__(self, *, draft: bool) -> None:
        name = "draft" if draft else "results"
        self._raw = BUILD / f"{name}.json"
        self._folder = BUILD if draft else HERE
        self._name = name
        self.kept: report.Kept = json.loads(self._raw.read_text()) if self._raw.exists() else {"measures": {}}

    def add(self, measure: Measure, found: dict[str, Any]) -> None:
        """Keep what was measured, in place of what was there."""
        self.kept["facts"] = report.facts()
        self.kept["measures"][measure.name] = found
        self._raw.write_text(json.dumps(self.kept, indent=1))

    def write(self) -> None:
        """Write the tables and the picture."""
        if not self.kept["measures"]:
            raise SystemExit(f"there are no figures yet, in {self._raw}")
        tables, picture = (self._folder / f"{self._name}.{suffix}" for suffix in ("md", "svg"))
        drawn = report.plot(self.kept, picture)
        tables.write_text(report.markdown(self.kept, picture.name if drawn else ""))
        print(f"written: {tables}" + (f", {picture}" if drawn else "; no picture, for want of matplotlib"))


def _names(known: dict[str, Any], text: str) -> list[str]:
    names = text.split(",") if text else list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"{unknown[0]} is none of {', '.join(known)}")
    return names


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description="Our server beside others, round by round.")
    parser.add_argument("--quick", action="store_true", help="two short rounds, to see that everything works")
    parser.add_argument("--rounds", type=int, help="rounds of each measure; fewer than 5 make a draft")
    parser.add_argument("--only", default="", help="measures, with commas between: " + ", ".join(MEASURES))
    parser.add_argument("--contestants", default="", help="with commas between; makes a draft")
    parser.add_argument("--report-only", action="store_true", help="write the tables again, from the figures kept")
    options = parser.parse_args()
    scale = QUICK if options.quick else Scale()
    scale = replace(scale, rounds=options.rounds or scale.rounds)
    contestants = _names(CONTESTANTS, options.contestants)
    wanted = [MEASURES[name] for name in _names(MEASURES, options.only)]
    wanted = [measure for measure in wanted if not set(contestants).isdisjoint(measure.contestants)]
    book = Book(draft=bool(options.quick or options.contestants or scale.rounds < ENOUGH))
    if not options.report_only:
        prepare()
        look_around()
        for measure in wanted:
            book.add(measure, measured(measure, scale, contestants))
    book.write()


if __name__ == "__main__":
    main()
