"""A few attempts, spread wide; then it is over until somebody asks again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat.core.backoff import Backoff

CHANCE = st.floats(0.0, 1.0, exclude_max=True)


def delays_of(backoff, u):
    """All delays until the attempts are used up."""
    found = []
    while (delay := backoff.next_delay(u)) is not None:
        found.append(delay)
    return found


def test_three_attempts_come_after_1_4_and_16_seconds_and_then_no_more():
    backoff = Backoff((1.0, 4.0, 16.0), 3)

    assert [(backoff.next_delay(0.5), backoff.attempt) for _ in range(4)] == [
        *((1.0, 1), (4.0, 2), (16.0, 3), (None, 3)),
    ]


@pytest.mark.parametrize(("u", "delays"), [(0.0, [0.5, 2.0, 8.0]), (0.25, [0.75, 3.0, 12.0]), (0.5, [1.0, 4.0, 16.0])])
def test_each_delay_is_multiplied_by_a_half_to_one_and_a_half(u, delays):
    assert delays_of(Backoff((1.0, 4.0, 16.0), 3), u) == delays


def test_the_last_delay_repeats_and_keeps_its_jitter():
    """A crowd that has reached the cap must not come back in step."""
    backoff = Backoff((1.0, 4.0), 5)

    assert [backoff.next_delay(u) for u in (0.5, 0.5, 0.0, 0.25, 0.75)] == [1.0, 4.0, 2.0, 3.0, 5.0]


def test_no_attempts_means_no_delay():
    assert Backoff((1.0,), 0).next_delay(0.5) is None


def test_a_stable_link_has_all_its_attempts_again():
    backoff = Backoff((1.0, 4.0, 16.0), 3)
    delays_of(backoff, 0.5)

    backoff.stable()

    assert backoff.attempt == 0
    assert delays_of(backoff, 0.5) == [1.0, 4.0, 16.0]


@pytest.mark.parametrize(("u", "delay"), [(0.0, 2.0), (0.5, 3.5), (0.75, 4.25)])
def test_after_a_drain_the_delay_is_drawn_from_its_window(u, delay):
    assert Backoff.drained(2.0, 5.0, 120.0, u) == delay


def test_after_a_drain_nobody_waits_longer_than_half_of_what_a_session_is_kept():
    assert Backoff.drained(0.0, 100.0, 20.0, 0.5) == 5.0


def test_after_a_drain_that_starts_too_late_everybody_waits_for_that_half():
    assert Backoff.drained(50.0, 100.0, 20.0, 0.0) == Backoff.drained(50.0, 100.0, 20.0, 0.75) == 10.0


@pytest.mark.parametrize(("u", "delay"), [(0.0, 1.0), (0.5, 5.5), (0.75, 7.75)])
def test_after_a_restart_without_a_drain_the_delay_is_1_to_10_seconds(u, delay):
    assert Backoff.restarted(u) == delay


@given(st.lists(st.floats(0.0, 3600.0), min_size=1, max_size=5), st.integers(0, 10), st.lists(CHANCE, max_size=12))
def test_whatever_chance_says_no_delay_leaves_its_bounds_and_no_attempt_is_counted_twice(delays, attempts, chances):
    backoff = Backoff(tuple(delays), attempts)

    for number, u in enumerate(chances):
        delay = backoff.next_delay(u)
        if number >= attempts:
            assert (delay, backoff.attempt) == (None, attempts)
        else:
            nominal = delays[min(number, len(delays) - 1)]
            assert 0.5 * nominal <= delay <= 1.5 * nominal
            assert backoff.attempt == number + 1


@given(st.floats(0.0, 100.0), st.floats(0.0, 100.0), st.floats(1.0, 1000.0), CHANCE)
def test_a_drained_client_comes_back_while_its_session_lives(one, other, window, u):
    shortest, longest = sorted((one, other))

    assert min(shortest, window / 2) <= Backoff.drained(shortest, longest, window, u) <= window / 2
