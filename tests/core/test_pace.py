"""A burst at once, then a rate: who is over it owes time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat.core.pace import Pace


def test_a_burst_comes_at_once_and_owes_nothing():
    """As many as the burst, in one moment."""
    pace = Pace(10, 20, 100.0)
    assert [pace.take(100.0) for _ in range(20)] == [0.0] * 20
    assert not pace.has_room(100.0)
    assert pace.owes(100.0) == 0.0


def test_what_comes_beyond_it_owes_the_time_that_it_takes_at_the_rate():
    """One more owes a tenth of a second, ten more owe a second; and time pays."""
    pace = Pace(10, 20, 0.0)
    pace.take(0.0, 20)
    assert pace.take(0.0) == pytest.approx(0.1)
    assert pace.take(0.0, 9) == pytest.approx(1.0)
    assert pace.owes(0.4) == pytest.approx(0.6)
    assert pace.owes(1.0) == pytest.approx(0.0, abs=1e-9)
    assert not pace.has_room(1.0)
    assert pace.has_room(1.1)


def test_who_rests_has_the_burst_again_and_not_more():
    """An hour of silence is worth one burst."""
    pace = Pace(10, 20, 0.0)
    pace.take(0.0, 40)
    assert not pace.is_rested(3.9)
    assert pace.is_rested(4.0)
    assert pace.take(3600.0, 20) == 0.0
    assert pace.take(3600.0) > 0


def test_from_a_bound_on_no_more_than_that_comes_at_once():
    pace = Pace(rate=10.0, burst=20.0, now=0.0)
    pace.take(0.0, 5)

    pace.bound(2.0)
    assert pace.take(0.0, 2) == 0.0
    assert pace.take(0.0, 1) == pytest.approx(0.1)

    assert pace.is_rested(10.0)
    assert pace.take(10.0, 2) == 0.0
    assert pace.take(10.0, 1) == pytest.approx(0.1)


def test_a_bound_forgives_nothing():
    pace = Pace(rate=10.0, burst=20.0, now=0.0)
    pace.take(0.0, 30)

    pace.bound(2.0)

    assert pace.owes(0.0) == pytest.approx(1.0)


def test_a_credit_counts_beyond_the_burst_until_it_is_used():
    """A replay of fifty, credited, takes nothing of the burst; time does not add to a credit, nor take from it."""
    pace = Pace(10, 20, 0.0)
    pace.credit(50)
    assert pace.is_rested(60.0)
    assert pace.take(60.0, 50) == 0.0
    assert pace.take(60.0, 20) == 0.0
    assert pace.take(60.0) > 0


@given(
    rate=st.floats(0.1, 1e4),
    burst=st.floats(1, 1e4),
    steps=st.lists(st.tuples(st.floats(0, 10), st.integers(0, 100)), max_size=50),
)
def test_nobody_gets_more_than_a_burst_and_the_rate(rate, burst, steps):
    """Whatever comes when: what was within the pace is at most the burst and what the time was worth."""
    pace, now, taken = Pace(rate, burst, 0.0), 0.0, 0
    for seconds, count in steps:
        now += seconds
        for _ in range(count):
            if pace.has_room(now):
                assert pace.take(now) == 0.0
                taken += 1
    assert taken <= burst + now * rate + 1e-6 * (1 + taken)
