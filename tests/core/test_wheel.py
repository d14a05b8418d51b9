"""Whoever is armed is handed out in time: never early, at most one tick late, once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat.core.wheel import Wheel

TICK = 0.25


class Entry:
    """Something to look at."""

    def __init__(self, name):
        self.name = name
        self.slot = None

    def __repr__(self):
        return self.name


def handed_out(wheel, now):
    return list(wheel.due(now))


def test_an_entry_is_handed_out_at_its_time_and_then_sits_nowhere():
    wheel, entry = Wheel(TICK, 0.0), Entry("a")

    wheel.arm(entry, 1.0)
    assert (entry.slot, len(wheel), bool(wheel)) == (4, 1, True)

    assert handed_out(wheel, 0.75) == []
    assert handed_out(wheel, 1.0) == [entry]
    assert (entry.slot, len(wheel), bool(wheel)) == (None, 0, False)
    assert handed_out(wheel, 100.0) == []


def test_an_entry_is_handed_out_within_its_slot_too():
    """Ticks seldom fall on the ends of slots; a phase of their own must not cost another tick."""
    wheel, entry = Wheel(TICK, 0.0), Entry("a")

    wheel.arm(entry, 1.125)

    assert handed_out(wheel, 1.0625) == []
    assert (entry.slot, len(wheel)) == (4, 1)
    assert handed_out(wheel, 1.1875) == [entry]


def test_entries_of_one_tick_come_in_the_order_of_their_slots():
    wheel, early, late, later = Wheel(TICK, 0.0), Entry("early"), Entry("late"), Entry("later")

    wheel.arm(later, 1.5)
    wheel.arm(late, 1.0)
    wheel.arm(early, 0.5)

    assert handed_out(wheel, 1.5) == [early, late, later]


def test_an_entry_armed_again_is_handed_out_at_the_new_time_only():
    wheel, entry = Wheel(TICK, 0.0), Entry("a")
    wheel.arm(entry, 1.0)

    wheel.arm(entry, 2.0)
    assert (entry.slot, len(wheel)) == (8, 1)

    assert handed_out(wheel, 1.75) == []
    assert (entry.slot, len(wheel)) == (8, 1)
    assert handed_out(wheel, 2.0) == [entry]
    assert len(wheel) == 0


def test_an_entry_armed_again_for_an_earlier_time_is_handed_out_then_and_not_again():
    wheel, entry = Wheel(TICK, 0.0), Entry("a")
    wheel.arm(entry, 2.0)

    wheel.arm(entry, 1.0)

    assert handed_out(wheel, 1.0) == [entry]
    assert handed_out(wheel, 2.0) == []
    assert len(wheel) == 0


def test_an_entry_armed_away_and_back_is_handed_out_once():
    wheel, entry = Wheel(TICK, 0.0), Entry("a")

    for at in (1.0, 2.0, 1.0):
        wheel.arm(entry, at)

    assert handed_out(wheel, 2.0) == [entry]


def test_an_entry_armed_again_within_its_slot_takes_no_second_place():
    wheel, entry = Wheel(TICK, 0.0), Entry("a")
    wheel.arm(entry, 1.0)

    wheel.arm(entry, 1.125)

    assert len(wheel) == 1
    assert handed_out(wheel, 1.0) == []
    assert handed_out(wheel, 1.125) == [entry]


def test_an_entry_armed_for_a_time_that_has_passed_is_handed_out_at_the_next_tick():
    wheel, entry = Wheel(TICK, 10.0), Entry("a")

    wheel.arm(entry, 3.0)

    assert entry.slot == 40
    assert handed_out(wheel, 10.0) == [entry]

    assert handed_out(wheel, 12.0) == []
    wheel.arm(entry, 3.0)
    assert entry.slot == 48
    assert handed_out(wheel, 12.0) == [entry]


def test_a_disarmed_entry_is_passed_over():
    wheel, entry = Wheel(TICK, 0.0), Entry("a")
    wheel.arm(entry, 1.0)

    wheel.disarm(entry)
    assert entry.slot is None

    assert handed_out(wheel, 1.0) == []
    assert len(wheel) == 0


def test_of_a_disarmed_entry_nothing_is_kept():
    """A connection that is gone is not held until its old appointment comes."""
    wheel, gone, there = Wheel(TICK, 0.0), Entry("gone"), Entry("there")
    wheel.arm(gone, 60.0)
    wheel.arm(there, 60.0)

    wheel.disarm(gone)
    assert (gone.slot, len(wheel)) == (None, 1)
    wheel.disarm(gone)
    assert len(wheel) == 1

    wheel.disarm(there)
    assert len(wheel) == 0
    assert handed_out(wheel, 61.0) == []


def test_arm_before_arms_an_entry_that_sits_nowhere():
    wheel, entry = Wheel(TICK, 0.0), Entry("a")

    wheel.arm_before(entry, 1.0)

    assert handed_out(wheel, 1.0) == [entry]


def test_arm_before_lets_an_earlier_appointment_stand():
    wheel, entry = Wheel(TICK, 0.0), Entry("a")
    wheel.arm(entry, 1.0)

    wheel.arm_before(entry, 1.125)
    wheel.arm_before(entry, 2.0)

    assert (entry.slot, len(wheel)) == (4, 1)
    assert handed_out(wheel, 1.0) == [entry]


def test_arm_before_moves_a_later_appointment_forward():
    wheel, entry = Wheel(TICK, 0.0), Entry("a")
    wheel.arm(entry, 2.125)

    wheel.arm_before(entry, 2.0)
    assert (entry.slot, len(wheel)) == (8, 1)
    wheel.arm_before(entry, 1.0)
    assert (entry.slot, len(wheel)) == (4, 1)

    assert handed_out(wheel, 1.0) == [entry]
    assert handed_out(wheel, 3.0) == []


def test_arm_before_moves_an_appointment_forward_within_its_slot():
    wheel, entry = Wheel(TICK, 0.0), Entry("a")
    wheel.arm(entry, 2.125)

    wheel.arm_before(entry, 2.0)

    assert handed_out(wheel, 2.0) == [entry]


def test_what_was_handed_out_leaves_nothing_behind():
    wheel, entry = Wheel(TICK, 0.0), Entry("a")

    for at in (1.0, 2.0, 3.0):
        wheel.arm(entry, at)
    handed_out(wheel, 3.0)

    assert wheel._slots == {}


@pytest.mark.parametrize("at", [0.5, 2.0, 3.0])
def test_an_entry_that_arms_itself_while_handed_out_waits_for_the_next_tick(at):
    """Even for a time that has passed: or it would be handed out for ever."""
    wheel, entry, other = Wheel(TICK, 0.0), Entry("a"), Entry("other")
    wheel.arm(entry, 1.0)
    wheel.arm(other, 2.0)
    seen = []

    for due in wheel.due(3.0):
        seen.append(due)
        wheel.arm(due, at)

    assert seen == [entry, other]
    assert handed_out(wheel, 3.0) == [entry, other]


def test_an_entry_about_to_be_handed_out_needs_no_earlier_appointment():
    wheel, first, second = Wheel(TICK, 0.0), Entry("first"), Entry("second")
    wheel.arm(first, 1.0)
    wheel.arm(second, 1.0)
    due = wheel.due(1.0)

    assert next(due) is first
    wheel.arm_before(second, 5.0)

    assert list(due) == [second]
    assert handed_out(wheel, 5.0) == []


def test_an_entry_disarmed_by_one_before_it_is_not_handed_out():
    wheel, first, second = Wheel(TICK, 0.0), Entry("first"), Entry("second")
    wheel.arm(first, 1.0)
    wheel.arm(second, 1.0)
    due = wheel.due(1.0)

    assert next(due) is first
    wheel.disarm(second)

    assert list(due) == []
    assert len(wheel) == 0


def test_an_entry_put_off_within_its_slot_by_one_before_it_is_not_handed_out_early():
    wheel, first, second = Wheel(TICK, 0.0), Entry("first"), Entry("second")
    wheel.arm(first, 1.0)
    wheel.arm(second, 1.0)
    due = wheel.due(1.0)

    assert next(due) is first
    wheel.arm(second, 1.125)

    assert list(due) == []
    assert handed_out(wheel, 1.125) == [second]


def test_after_a_leap_of_time_everything_due_is_handed_out_and_nothing_else():
    wheel, soon, later, last = Wheel(TICK, 0.0), Entry("soon"), Entry("later"), Entry("last")
    wheel.arm(later, 50.0)
    wheel.arm(soon, 1.0)
    wheel.arm(last, 1e6)

    assert handed_out(wheel, 86_400.0) == [soon, later]
    assert len(wheel) == 1
    assert handed_out(wheel, 1e6) == [last]


def test_time_that_steps_back_hands_out_nothing():
    wheel, entry = Wheel(TICK, 10.0), Entry("a")
    wheel.arm(entry, 11.0)

    assert handed_out(wheel, 9.0) == []
    assert handed_out(wheel, 11.0) == [entry]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["arm", "arm_before"]), st.integers(0, 5), st.floats(-2.0, 10.0)),
        st.tuples(st.just("disarm"), st.integers(0, 5), st.none()),
        st.tuples(st.just("pass"), st.none(), st.floats(0.0, 5.0)),
    ),
    max_size=60,
)


@given(STEPS, st.floats(0.01, 1.0), st.floats(0.0, 1e6))
def test_however_often_it_is_armed_an_entry_is_handed_out_at_the_first_look_at_or_after_its_time(steps, tick, start):
    """The model: a dictionary of times. Looks come whenever they come."""
    wheel, entries, now = Wheel(tick, start), [Entry(name) for name in "abcdef"], start
    armed = {}

    for step, which, seconds in steps:
        if step == "pass":
            now += seconds
            expected = {entry for entry, at in armed.items() if at <= now}
            assert set(due := handed_out(wheel, now)) == expected
            assert len(due) == len(expected)
            armed = {entry: at for entry, at in armed.items() if at > now}
            continue
        entry = entries[which]
        if step == "disarm":
            wheel.disarm(entry)
            armed.pop(entry, None)
        else:
            at = now + seconds
            getattr(wheel, step)(entry, at)
            armed[entry] = min(at, armed.get(entry, at)) if step == "arm_before" else at
        assert {entry for entry in entries if entry.slot is not None} == set(armed)


@given(
    st.lists(st.tuples(st.floats(0.0, 0.2), st.floats(0.0, 20.0)), min_size=1, max_size=10),
    st.floats(0.0, 0.2, exclude_max=True),
    st.floats(0.0, 1e6),
)
def test_with_a_look_each_tick_in_any_phase_no_entry_is_more_than_a_tick_late(appointments, phase, start):
    """Each entry is armed anew, some time after the tick that handed it out."""
    tick = 0.2
    wheel, entry = Wheel(tick, start), Entry("a")
    ticks = 0

    for after, ahead in appointments:
        at = start + phase + ticks * tick + after + ahead
        wheel.arm(entry, at)
        while entry.slot is not None:
            ticks += 1
            now = start + phase + ticks * tick
            for _ in wheel.due(now):
                assert at <= now < at + tick + 1e-6
