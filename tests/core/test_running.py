"""Our own running time leaves out what we ourselves were late, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat.core.running import RunningTime

TICK = 0.25


def state_of(running):
    return (running.late, running.stalls)


def test_while_ticks_come_in_time_running_time_is_raw_time():
    running = RunningTime(TICK, 100.0)

    assert [running.ticked(100.25), running.at(100.375), running.ticked(100.5), running.at(100.75)] == [
        *(100.25, 100.375, 100.5, 100.75),
    ]
    assert state_of(running) == (0.0, 0)


@pytest.mark.parametrize("lateness", [0.0, 0.125, TICK])
def test_a_tick_late_by_no_more_than_a_tick_is_in_time(lateness):
    running = RunningTime(TICK, 100.0)

    assert running.ticked(100.25 + lateness) == 100.25 + lateness
    assert state_of(running) == (0.0, 0)


@pytest.mark.parametrize("lateness", [0.5, 10.0, 86_400.0])
def test_a_tick_that_is_later_leaves_all_its_lateness_out(lateness):
    running = RunningTime(TICK, 100.0)

    assert running.ticked(100.25 + lateness) == 100.25
    assert state_of(running) == (lateness, 1)
    assert running.ticked(100.5 + lateness) == 100.5
    assert state_of(running) == (lateness, 1)


def test_the_lateness_is_left_out_by_whoever_asks_first_and_only_once():
    """After a stall the sockets may be read before the tick runs."""
    running = RunningTime(TICK, 100.0)

    assert running.at(110.25) == 100.25
    assert running.ticked(110.25) == 100.25
    assert state_of(running) == (10.0, 1)


def test_stalls_add_up():
    running = RunningTime(TICK, 100.0)

    assert running.ticked(101.25) == 100.25
    assert running.ticked(103.5) == 100.5
    assert state_of(running) == (3.0, 2)


def test_time_that_was_told_before_the_lateness_showed_is_not_taken_back():
    """A tick is not late before it is late by a tick; until then time went on, and it never goes backwards."""
    running = RunningTime(TICK, 100.0)
    assert running.at(100.5) == 100.5

    assert running.at(100.625) == 100.5
    assert running.ticked(100.75) == 100.5
    assert state_of(running) == (0.375, 1)
    assert running.at(101.0) == 100.625


def test_time_in_which_nobody_ticked_was_no_stall():
    running = RunningTime(TICK, 100.0)

    running.resume(200.0)

    assert running.at(200.25) == 200.25
    assert state_of(running) == (0.0, 0)


def test_ticks_that_come_in_time_leave_the_same_behind_as_a_resume():
    """So a simulation may leave them out."""
    ticking, resuming = RunningTime(TICK, 100.0), RunningTime(TICK, 100.0)

    for tick in range(1, 41):
        ticking.ticked(100.0 + tick * TICK)
    resuming.resume(110.0)

    assert ticking.at(115.0) == resuming.at(115.0) == 110.25
    assert state_of(ticking) == state_of(resuming) == (4.75, 1)


@given(st.lists(st.tuples(st.sampled_from(["at", "ticked", "resume"]), st.floats(0.0, 3.0)), max_size=50))
def test_running_time_never_goes_backwards_and_never_faster_than_time(steps):
    running = RunningTime(TICK, 0.0)
    raw = told = 0.0

    for step, seconds in steps:
        raw += seconds
        if step == "resume":
            running.resume(raw)
        else:
            now = getattr(running, step)(raw)
            assert told <= now <= raw + 1e-9
            told = now
