"""`python -m faults.soak`: thousands of clients, half an hour, faults at a steady rate: and whether anything grows.

The server is `twistd heartbeat` with its sessions on disk, in a process of its own; so is each few hundred clients; a
proxy between them breaks links, and client processes are stopped and go on. Every client has a fault every two
minutes on average, from beginning to end, so after the first third the load is the same at any time, and so
must be memory, descriptors, delayed calls, objects, and what the log grows by. Nobody may be convicted whose link was
well, and no message may be lost or come twice. Prints a line a minute, the verdict, and `N passed, N failed`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from faults.soak_plan import EVERY
from faults.soak_programs import Failed
from faults.soak_run import Plan, Soak
from faults.soak_table import Table, as_figures, report, say, verdict

__all__ = ["main"]

_PASSED, _FAILED, _USAGE, _INTERRUPTED = 0, 1, 2, 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m faults.soak", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--clients", type=int, default=2000, metavar="N", help="so many clients (2000)")
    add("--minutes", type=float, default=30.0, metavar="M", help="for so long (30)")
    add("--seed", type=int, default=None, metavar="N", help="draw the same faults again")
    add("--out", type=Path, metavar="FILE.json", help="write all figures and the verdict there")
    add("--restarts", type=int, default=0, metavar="N", help="restart the server so often, before the measured part")
    add("--every", type=float, default=10.0, metavar="S", help="seconds between two looks at each process (10)")
    add("--fault-every", type=float, default=EVERY, metavar="S", help="a fault of each client every so often (120)")
    add("--interval", type=float, default=6.0, metavar="S", help="the clients' interval (6)")
    add("--tick", type=float, default=1.0, metavar="S", help="the grain of the clients' timers (1; each has its own)")
    add("--chats", type=float, default=0.04, metavar="R", help="messages a second of each client to another (0.04)")
    add("--says", type=float, default=0.005, metavar="R", help="messages a second of each client to its group (0.005)")
    add("--leak", action="store_true", help="have the server leak, to see that it is noticed")
    return parser


def run(plan: Plan, out: Path | None) -> int:
    """One soak; the exit status."""
    with Soak(plan) as soak:
        table = Table(soak)
        soak.come()
        say(f"all {plan.clients} clients are there; faults from now on")
        soak.begin()
        table.start()
        soak.pass_time(soak.began + plan.seconds + 0.5)
        soak.settle()
        soak.leave()
        checks = verdict(soak)
        report(soak, table, checks)
        if out is not None:
            out.write_text(json.dumps(as_figures(soak, table, checks), indent=1) + "\n", encoding="utf-8")
    return _PASSED if all(check.passed for check in checks) else _FAILED


def main(argv: Sequence[str] | None = None) -> int:
    """Run with these arguments (the process's); returns the exit status."""
    parser = _parser()
    arguments = vars(parser.parse_args(argv))
    if not Path("/proc/self/status").exists():
        parser.error("the soak reads /proc, which this system does not have")
    if arguments["clients"] < 2 or arguments["minutes"] <= 0 or arguments["every"] <= 0 or arguments["restarts"] < 0:
        parser.error("--clients must be at least 2, --minutes and --every above 0, --restarts not below it")
    out = arguments.pop("out")
    if arguments["seed"] is None:
        arguments["seed"] = int.from_bytes(os.urandom(4))
    plan = Plan(**arguments)
    say(f"seed {plan.seed}; the measured part begins after {plan.warm:.0f} s")
    # `timeout` and a CI runner end us by this; what was started is to be ended then too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(plan, out)
    except Failed as error:
        say(f"{error}\n\n0 passed, 1 failed")
        return _FAILED
    except KeyboardInterrupt:
        say("interrupted")
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
