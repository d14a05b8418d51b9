"""`python -m faults.fleet`: three servers on one Redis, thousands of clients behind HAProxy, and what may befall these.

Real programs: `twistd heartbeat --cluster`, `redis-server`, `haproxy`; clients as of the soak, which number what they
send to one another. A scenario is right where every client comes back in time, nothing that was accepted is lost or
comes twice, every server's count is that of all clients, and no link ends that nothing has befallen.

    python -m faults.fleet                             all scenarios, with 3,000 clients
    python -m faults.fleet kills --clients 300 --kills 3
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from faults.fleet_run import Fleet, Plan
from faults.fleet_scenarios import SCENARIOS
from faults.lab import missing
from faults.soak_programs import Failed

__all__ = ["main"]

_PASSED, _FAILED, _INTERRUPTED = 0, 1, 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m faults.fleet", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("scenarios", nargs="*", metavar="SCENARIO", help=f"some of {', '.join(SCENARIOS)} (all)")
    add("--clients", type=int, default=3000, metavar="N", help="so many clients (3000)")
    add("--kills", type=int, default=20, metavar="N", help="kill a server so often (20)")
    add("--away", type=float, default=30.0, metavar="S", help="Redis, or a server, is away for so many seconds (30)")
    add("--chats", type=float, default=0.04, metavar="R", help="messages a second of each client to another (0.04)")
    add("--says", type=float, default=0.005, metavar="R", help="messages a second of each client to its group (0.005)")
    add("--interval", type=float, default=6.0, metavar="S", help="the clients' interval (6)")
    add("--seed", type=int, default=None, metavar="N", help="draw the same lots again")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run with these arguments (the process's); returns the exit status."""
    parser = _parser()
    arguments = vars(parser.parse_args(argv))
    chosen = arguments.pop("scenarios") or list(SCENARIOS)
    for name in chosen:
        if name not in SCENARIOS:
            parser.error(f"no scenario is called {name}: they are {', '.join(SCENARIOS)}")
    if arguments["clients"] < 6 or arguments["kills"] < 1 or arguments["away"] <= 0:
        parser.error("--clients must be at least 6, --kills at least 1, --away above 0")
    if arguments["seed"] is None:
        arguments["seed"] = int.from_bytes(os.urandom(4))
    # `timeout` and a CI runner end us by this; what was started is to be ended then too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    passed = failed = 0
    try:
        for name in chosen:
            scenario = SCENARIOS[name]
            why = missing(scenario.needs)
            if why is not None:
                # In CI nothing is skipped: what a user's machine may lack, CI has, or the scenario fails.
                failed += os.environ.get("CI") == "true"
                _say(f"{name}: not run here: {why}")
                continue
            _say(f"{name}: {scenario.what}; seed {arguments['seed']}")
            checks = _run(name, Plan(**arguments))
            passed += sum(good for good, _ in checks)
            failed += sum(not good for good, _ in checks)
    except KeyboardInterrupt:
        _say("interrupted")
        return _INTERRUPTED
    _say(f"\n{passed} passed, {failed} failed")
    return _FAILED if failed else _PASSED


def _run(name: str, plan: Plan) -> list[tuple[bool, str]]:
    """One scenario: what was found, and whether that is right."""
    scenario = SCENARIOS[name]
    try:
        with Fleet(plan, _say) as fleet:
            scenario.prepare(fleet)
            fleet.come()
            scenario.run(fleet)
            fleet.settle()
            fleet.leave()
            checks = fleet.checks
    except Failed as error:
        checks = [(False, str(error))]
    for good, sentence in checks:
        _say(f"  {'passed' if good else 'FAILED'}  {sentence}")
    return checks


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
