"""Long runs, and one life again.

    python -m tests.simulation                        a minute, with seeds that nobody has tried
    python -m tests.simulation --seconds 3600         an hour
    python -m tests.simulation --seed 1234            this life again, and its digest

The status is 1 where anything was found; what it was, and its seed, is printed at once.
"""

import argparse
import secrets
import sys
from pathlib import Path

from twisted.logger import globalLogBeginner

sys.path.insert(0, str(Path(__file__).parent))

from world import A_LIFE, CLIENTS, Finding  # the folder is no package
from worlds import Worlds

_PROGRESS_EVERY = 10.0


def main(arguments=None):
    """Run worlds until time is up; returns the status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description="A deterministic simulation.")
    parser.add_argument("--seconds", type=float, default=60.0, help="for how long (default: 60)")
    parser.add_argument("--seed", type=int, action="append", help="live this life again; may be given several times")
    parser.add_argument("--first", type=int, help="the first seed of a long run (default: by chance)")
    parser.add_argument("--life", type=float, default=A_LIFE, help="virtual seconds of a life (default: %(default)g)")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="clients of a world (default: %(default)s)")
    options = parser.parse_args(arguments)
    # Nobody keeps what is logged; the world looks on by itself.
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    worlds, kind = Worlds(), {"life": options.life, "clients": options.clients}
    if options.seed:
        for seed in options.seed:
            _live(worlds, seed, kind, say=True)
    else:
        _live_on(worlds, options, kind)
    print(worlds)
    for finding in worlds.findings:
        print(f"found: {str(finding).splitlines()[0]}")
    return 1 if worlds.findings else 0


def _live_on(worlds, options, kind):
    first = seed = secrets.randbelow(2**32) if options.first is None else options.first
    print(f"seeds from {first}", flush=True)
    told = 0.0
    while worlds.seconds < options.seconds:
        _live(worlds, seed, kind, say=False)
        seed += 1
        if worlds.seconds - told > _PROGRESS_EVERY:
            told = worlds.seconds
            print(f"{told:6.0f} s, seed {seed}: {worlds}", flush=True)
    print(f"seeds {first} to {seed - 1}, nearest to a bound {-worlds.nearest:.3f} s")
    for what, count in sorted(worlds.seen.items(), key=str):
        print(f"  {what if isinstance(what, str) else ' '.join(what)}: {count}")


def _live(worlds, seed, kind, *, say):
    try:
        world = worlds.live(seed, **kind)
    except Finding as finding:
        print(f"\n{finding}\n", flush=True)
    else:
        if say:
            print(f"seed {seed}: {world.now:.0f} s, {world.steps} steps, digest {world.digest}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
