"""The benchmarks run as they stand, with numbers that are too small to mean anything."""

import sys
from pathlib import Path

import pytest
from processes import Program

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_the_benchmark_of_sessions_prints_its_three_tables_and_finds_the_bound_kept():
    """Memory by the session, the bound of all, and the rate; it ends with 1 where the bound does not hold."""
    small = ("--sessions", "80", "--messages", "200", "--bound", "1048576")
    with Program([sys.executable, BENCHMARKS / "sessions.py", *small]) as run:
        lines = []
        while (line := run.line(60)) is not None:
            lines.append(line)
        assert run.wait(10) == 0, "\n".join(lines)
    assert lines[1].startswith("txheartbeat ")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    by_name = {row[0]: row[1:] for row in rows}
    assert {"memory", "sqlite", "detached, idle", "attached, idle (with its connection)"} <= by_name.keys()
    last = by_name["142"]
    # There is room for 57 of these sessions, and one comes: those that were gone last are kept.
    assert (last[0], last[-1]) == ("56", "the oldest 86")
