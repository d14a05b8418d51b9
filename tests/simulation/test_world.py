"""Many clients and a server that crashes live through virtual days, and after every step all holds that was promised.

What holds is told by the oracle (who may be convicted, who must be), and by the ledger (what became of every message).
All chance comes from the seed, so a finding happens again.

    HEARTBEAT_SIMULATION_SECONDS=3600 pytest -m slow tests/simulation
    python -m tests.simulation --seconds 3600         the same with fresh seeds
    python -m tests.simulation --seed 1234            one life again
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from machines import Machine
from mutants import MUTANTS
from world import Finding, World
from worlds import Worlds

ROOT = Path(__file__).parents[2]

#: Lives in which something was once found: the seed, the virtual seconds, and what it was.
CORPUS = json.loads((Path(__file__).parent / "corpus.json").read_text("utf-8"))

#: How long the slow test lives on, in seconds of true time.
SECONDS = float(os.environ.get("HEARTBEAT_SIMULATION_SECONDS", "60"))

#: So many seeds at most, and virtual seconds of each, until a mutant must have been found.
SEEDS, LIFE = 30, 900.0

TROUBLES = (
    "cut", "cut_up", "cut_down", "down", "drop", "outage", "half_outage", "unnoticed", "unnoticed_there", "stall",
    "sleep", "step", "crash", "vanish", "restart", "copy", "hide", "suspicions", "late writes",
    ("server", "stall"), ("server", "step"), ("server", "crash"), ("server", "off"), ("server", "restart"),
    ("server", "mood"), ("convicted by server", "silent"), ("convicted by client", "silent"),
)  # fmt: skip


@pytest.mark.parametrize("found", CORPUS, ids=lambda found: str(found["seed"]))
def test_what_was_once_found_is_mended(found):
    assert World(found["seed"], life=found["life"]).run().problem is None


def test_a_few_worlds_live_for_six_minutes_and_every_promise_holds():
    worlds = Worlds()
    for seed in range(5):
        worlds.live(seed, life=360.0)

    assert worlds.round_trips > 3000
    assert worlds.handled > 500
    assert worlds.nearest <= 0


@pytest.mark.slow
def test_worlds_live_on_and_every_promise_holds():
    """For a minute, or as long as is asked for; and it was no easy life."""
    worlds, seed = Worlds(), 1_000_000
    while worlds.seconds < SECONDS:
        worlds.live(seed)
        seed += 1
    print(worlds)

    assert worlds.nearest <= 0
    if worlds.lives >= 25:
        assert [trouble for trouble in TROUBLES if not worlds.seen[trouble]] == []


# The simulation itself.


def test_a_seed_lives_the_same_life_again():
    one, other = (World(7, life=100.0).run() for _ in range(2))

    assert one.digest == other.digest
    assert (one.now, one.seen, one.ledger.handlings) == (other.now, other.seen, other.ledger.handlings)
    assert one.digest != World(8, life=100.0).run().digest


def test_nor_does_it_matter_how_python_hashes():
    def digest(hashed):
        command = [sys.executable, "-m", "tests.simulation", "--seed", "5", "--life", "60"]
        environment = os.environ | {"PYTHONHASHSEED": hashed}
        ran = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120, check=True
        )
        return ran.stdout.splitlines()[0]

    one = digest("1")

    assert "digest" in one
    assert digest("2") == one


@pytest.mark.parametrize("seed", [1, 3])
def test_ticks_that_are_made_up_for_are_the_same_as_ticks_that_come(seed):
    made_up = World(seed, life=120.0).run()
    with patch.object(Machine, "makes_up", False):
        came = World(seed, life=120.0).run()

    assert (made_up.round_trips, made_up.seen) == (came.round_trips, came.seen)
    assert made_up.ledger.handlings == came.ledger.handlings
    assert came.steps > made_up.steps


def test_a_finding_says_how_to_see_it_again():
    with MUTANTS["the counts keep who is gone"](), pytest.raises(Finding) as found:
        World(0, life=100.0).run()

    assert "seed 0 at " in str(found.value)
    assert "again by: python -m tests.simulation --seed 0 --life 100, digest " in str(found.value)


def test_a_finding_is_found_again():
    """At the same moment, by the same way."""

    def find():
        with MUTANTS["the counts keep who is gone"](), pytest.raises(Finding) as found:
            World(0, life=100.0).run()
        return str(found.value)

    assert find() == find()


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_found(name):
    """A bug of one line is found in a few lives, and these have nothing to find without it."""
    with MUTANTS[name]():
        for seed in range(SEEDS):
            try:
                World(seed, life=LIFE).run()
            except Finding:
                break
        else:
            pytest.fail(f"{name}: not found in {SEEDS} lives")

    assert World(seed, life=LIFE).run().problem is None
