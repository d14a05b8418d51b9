"""What is measured of a server, by which load, and how the figures are called: one table, at the end.

Every figure is of the server's process, seen from outside: by its answers, and by what the kernel says of its memory
and of its time on a processor.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from contest import HERE, PROJECT, Contestant, Failed, Server, cores, load_generator, pinned, serving

#: A server that had less of its core than this was disturbed by something, and is measured again, so many times in all.
BUSY, TRIES = 95.0, 4
#: A load generator that had more of its own is the limit: measuring again would not help.
LIMIT = 97.0

#: What one run told.
Told = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How much is measured. `many` and `few` connections, a beat every `beat` seconds."""

    rounds: int = 5
    seconds: float = 2.0
    many: int = 10_000
    few: int = 1000
    beat: float = 6.0
    storm: int = 4000
    repeats: int = 3
    arriving: int = 5000
    deadlines: int = 100_000


#: Too little to say much, and enough to see that everything works.
QUICK = Scale(rounds=2, seconds=0.7, many=2000, few=200, beat=2.0, storm=1000, repeats=2, arriving=1000)


@dataclass(frozen=True)
class Column:
    """One figure of a run."""

    title: str
    of: Callable[[Told], float]
    digits: int = 0


@dataclass(frozen=True)
class Measure:
    """What is measured, of whom, and what is told of it. The first column is compared with Autobahn's."""

    name: str
    title: str
    lead: str
    contestants: tuple[str, ...]
    run: Callable[[Contestant, Scale], Told]
    columns: tuple[Column, ...]
    #: Connections to one server, for which there must be room.
    connections: Callable[[Scale], int] = lambda scale: 100
    compared: bool = True


# The load.


def _command(contestant: Contestant, server: Server, *options: object) -> list[str]:
    to = ("-p", server.port, "-s", server.pid, *contestant.load)
    return [str(part) for part in (load_generator(), *to, *options)]


def _loaded(contestant: Contestant, server: Server, *options: object) -> Told:
    with pinned(cores()[1]):
        told = subprocess.run(
            _command(contestant, server, *options), check=False, capture_output=True, text=True, timeout=180
        )
    return _read(told.returncode, told.stdout, told.stderr)


def _read(status: int, out: str, errors: str) -> Told:
    if status or not out:
        raise Failed(f"the load generator ended with {status}: {errors.strip()}")
    told: Told = json.loads(out)
    told["errors"] = errors.strip()
    if told.get("bad"):
        raise Failed(f"{told['bad']} wrong answers: {told['errors']}")
    return told


def _all_open(told: Told) -> Told:
    """Of a run in which connections were lost nothing is compared."""
    for run in told.get("runs", (told,)):
        if run["dead"]:
            raise Failed(f"{run['dead']} connections were lost: {told['errors']}")
    return told


def _ping(contestant: Contestant, scale: Scale) -> Told:
    best: Told = {"srv_cpu_pct": -1.0}
    for _ in range(TRIES):
        with serving(contestant) as server:
            told = _all_open(_loaded(contestant, server, "-m", "ping", "-d", scale.seconds, "-w", 0.3))
        best = max(best, told, key=_key("srv_cpu_pct"))
        if best["srv_cpu_pct"] >= BUSY or told["cli_cpu_pct"] >= LIMIT:
            break
    if best["cli_cpu_pct"] >= LIMIT:
        return best | {"remark": "the load generator was at its limit, so the server may be faster than this"}
    if best["srv_cpu_pct"] < BUSY:
        return best | {"remark": f"it never had {BUSY:.0f} % of its core"}
    return best


def _idle(contestant: Contestant, scale: Scale) -> Told:
    with serving(contestant) as server:
        # The first beat of each is not like the others: with it a client joins.
        how_long = ("-w", scale.beat, "-d", scale.beat)
        return _all_open(_loaded(contestant, server, "-m", "idle", "-n", scale.many, "-i", scale.beat, *how_long))


def _memory(contestant: Contestant, scale: Scale) -> Told:
    with serving(contestant) as server:
        told = _all_open(_loaded(contestant, server, "-m", "mem", "-a", scale.few, "-n", scale.many))
    if told["unanswered"]:
        raise Failed(f"{told['unanswered']} connections were not answered in time")
    return told


def _storm(contestant: Contestant, scale: Scale) -> Told:
    with serving(contestant) as server:
        return _all_open(_loaded(contestant, server, "-m", "storm", "-n", scale.storm, "-c", 256, "-R", scale.repeats))


def _crowd(contestant: Contestant, scale: Scale) -> Told:
    with serving(contestant) as server:
        told = _loaded(contestant, server, "-m", "storm", "-n", scale.many, "-c", scale.many)
    lost = told["runs"][0]["dead"]
    return told | {"remark": f"{lost} were refused or lost"} if lost else told


def _beside(contestant: Contestant, scale: Scale) -> Told:
    """How the pongs fare while many come: two loads on one core, of which only that of the pongs is looked at."""
    with serving(contestant) as server:
        command = _command(contestant, server, "-m", "idle", "-n", 100, "-i", 0.05, "-d", 60)
        with pinned(cores()[1]):
            beats = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            time.sleep(1)
            beats.send_signal(signal.SIGUSR1)
            came = _all_open(_loaded(contestant, server, "-m", "storm", "-n", scale.arriving, "-c", 256))
            beats.send_signal(signal.SIGTERM)
            out, errors = beats.communicate(timeout=10)
        finally:
            beats.kill()
            beats.wait()
    return _all_open(_read(beats.returncode, out, errors)) | {"storm": came["runs"][0]["secs"]}


# What needs no server.


def _asked(script: str, *options: object) -> Told:
    command = [str(part) for part in (PROJECT / "python", HERE / script, *options)]
    with pinned(cores()[0]):
        told = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if told.returncode:
        raise Failed(told.stderr.strip().splitlines()[-1])
    answer: Told = json.loads(told.stdout)
    return answer


def _calls(contestant: Contestant, scale: Scale) -> Told:
    options = [option for option, word in (("--own-reactor", "own"), ("--plain", "plain")) if word in contestant.name]
    return _asked("calls.py", "--json", *options)


def _ticks(contestant: Contestant, scale: Scale) -> Told:
    return _asked("ticks.py", "--json", "--deadlines", scale.deadlines)


# The table.


def _key(name: str, factor: float = 1.0) -> Callable[[Told], float]:
    return lambda told: told[name] * factor


def _of_runs(name: str, factor: float = 1.0) -> Callable[[Told], float]:
    """Of what a storm repeats, the median."""
    return lambda told: statistics.median(run[name] for run in told["runs"]) * factor


_FRAMEWORKS = ("websockets", "picows-orjson", "aiohttp", "uvicorn", "engineio", "node-ws")
_OURS = ("ours", "ours-own")
_P50, _P99 = Column("p50, ms", _key("p50_us", 1e-3), 2), Column("p99, ms", _key("p99_us", 1e-3), 2)

MEASURES = {
    measure.name: measure
    for measure in (
        Measure(
            "ping",
            "Answers a second",
            "100 connections, each with one ping out: its answer is followed by the next. More is better.",
            (
                *("autobahn", "autobahn-autoping", "websockets", "picows", "picows-orjson", "aiohttp", "uvicorn"),
                *("engineio", "node-ws", "floor"),
                *(f"{ours}{kind}" for ours in _OURS for kind in ("", "-plain", "-level1", "-acked")),
                *("autobahn-tls", *(f"{ours}-tls" for ours in _OURS)),
            ),
            _ping,
            (Column("answers/s", _key("rate")), _P50, _P99, Column("us an answer", _key("srv_us_per_msg"), 1)),
        ),
        Measure(
            "idle",
            "{many:,} connections that beat every {beat:g} s",
            "What the server takes of its core, and how long an answer takes. Less is better.",
            ("autobahn", "autobahn-autoping", "picows-orjson", "node-ws", *_OURS),
            _idle,
            (
                Column("% of a core", _key("srv_cpu_pct"), 2),
                Column("us a beat", _key("srv_us_per_msg"), 1),
                _P99,
            ),
            lambda scale: scale.many,
        ),
        Measure(
            "memory",
            "Memory of an idle connection",
            "KiB of resident memory a connection, from {few:,} to {many:,}, after each has been answered once; and"
            " before that. Less is better.",
            (
                *("autobahn", "autobahn-deflate", *_FRAMEWORKS),
                *("ours", "ours-own", "ours-level1", "ours-deflate"),
            ),
            _memory,
            (
                Column("KiB, after a beat", _key("kb_per_conn_pinged"), 2),
                Column("KiB, before it", _key("kb_per_conn"), 2),
            ),
            lambda scale: scale.many,
        ),
        Measure(
            "storm",
            "Opening handshakes a second",
            "{storm:,} connections, 256 handshakes under way at a time, {repeats} times. More is better.",
            ("autobahn", *_FRAMEWORKS, "floor", *_OURS),
            _storm,
            (
                Column("handshakes/s", _of_runs("hs_per_s")),
                Column("p99, ms", _of_runs("hs_p99_us", 1e-3), 1),
                Column("us a handshake", _of_runs("cpu_us_per_hs"), 1),
            ),
            lambda scale: scale.storm,
        ),
        Measure(
            "crowd",
            "{many:,} connect at once",
            "Seconds until all are open. Less is better.",
            ("autobahn", *_FRAMEWORKS, "floor", *_OURS),
            _crowd,
            (
                Column("seconds", _of_runs("secs"), 2),
                Column("open", _of_runs("open")),
                Column("p99, ms", _of_runs("hs_p99_us", 1e-3)),
            ),
            lambda scale: scale.many,
        ),
        Measure(
            "beside",
            "Pongs while {arriving:,} connect",
            "100 connections that beat 20 times a second, while {arriving:,} others come, 256 handshakes under way at a"
            " time. Less is better.",
            ("autobahn", "websockets", "picows-orjson", "node-ws", *_OURS),
            _beside,
            (
                Column("p99, ms", _key("p99_us", 1e-3), 1),
                Column("p50, ms", _key("p50_us", 1e-3), 2),
                Column("seconds until all have come", _key("storm"), 2),
            ),
            lambda scale: scale.arriving + 100,
        ),
        Measure(
            "ticks",
            "A tick with {deadlines:,} deadlines, none due",
            "What the timers of idle connections cost, without sockets; five ticks a second.",
            ("ours",),
            _ticks,
            (
                Column("us a tick", _key("us"), 2),
                Column("us a tick without any", _key("us_empty"), 2),
                Column("% of a core", _key("percent"), 4),
            ),
            compared=False,
        ),
        Measure(
            "calls",
            "Calls for an answer",
            "Python functions called from `dataReceived` (which is not counted) to the write, for one ping at level 0;"
            " on the plain path for one in two fragments.",
            tuple(f"{ours}{kind}" for ours in _OURS for kind in ("", "-plain")),
            _calls,
            (Column("of ours", _key("ours")), Column("of all", _key("all"))),
            compared=False,
        ),
    )
}
