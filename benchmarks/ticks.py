"""What a tick costs a server while a great many deadlines are armed and none is due.

    python benchmarks/ticks.py [--deadlines 100000] [--json]

The server's own ticker, wheel and register, driven by Twisted's `Clock`, without any connection. What is timed is the
whole of a tick, with the `LoopingCall` that calls it. With an open-file limit of 20,000, this is how 100,000 are seen.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from twisted.internet.task import Clock

from heartbeat import Settings
from heartbeat.shared import ServerShared

#: Ticks that are timed at a time, and how often; the least is told, for what disturbs only adds to it.
TICKS, TIMES = 200, 25


class Factory:
    """As much of a factory as the shared part asks for."""

    def __init__(self, reactor: Clock) -> None:
        self.reactor = reactor


class Waiting:
    """What sits in the wheel for a connection."""

    slot: int | None = None

    def due(self, now: float) -> None:
        """The ticker's: never called, or this measures something else."""
        raise AssertionError("a deadline came due")


def seconds_a_tick(deadlines: int, settings: Settings) -> float:
    """Seconds of one tick, with so many deadlines over a whole interval, after all that is timed."""
    clock: Any = Clock()
    ticker = ServerShared(Factory(clock), settings).ticker
    ticker.enter()
    beyond = (TICKS * TIMES + 2) * settings.tick
    for number in range(deadlines):
        ticker.wheel.arm(Waiting(), beyond + number / deadlines * settings.timing().watch)
    seconds = []
    for _ in range(TIMES):
        started = time.perf_counter()
        for _ in range(TICKS):
            clock.advance(settings.tick)
        seconds.append((time.perf_counter() - started) / TICKS)
    if len(ticker.wheel) != deadlines:
        raise SystemExit("a deadline came due")
    ticker.leave()
    return min(seconds)


def main() -> None:
    """Print what a tick costs, with deadlines and without."""
    parser = argparse.ArgumentParser(description="What a tick costs with a great many deadlines.")
    parser.add_argument("--deadlines", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    settings = Settings()
    full, empty = seconds_a_tick(options.deadlines, settings), seconds_a_tick(0, settings)
    if options.json:
        print(json.dumps({"us": full * 1e6, "us_empty": empty * 1e6, "percent": full / settings.tick * 100}))
    else:
        print(f"{options.deadlines} deadlines: {full * 1e6:.2f} us a tick, {full / settings.tick:.4%} of a core")
        print(f"none: {empty * 1e6:.2f} us a tick")


if __name__ == "__main__":
    main()
