"""The deadline follows the round trips: RFC 6298, section 2."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heartbeat.core.rtt import RoundTrip

SECONDS = st.floats(0.0, 100.0)


def state_of(rtt):
    return (rtt.last, rtt.srtt, rtt.rttvar)


def test_before_the_first_sample_nothing_is_known_and_the_most_is_allowed():
    rtt = RoundTrip()

    assert state_of(rtt) == (None, None, 0.0)
    assert rtt.timeout(tick=0.2, low=3.0, high=6.0) == 6.0


def test_the_first_sample_sets_srtt_to_it_and_rttvar_to_half_of_it():
    """ "When the first RTT measurement R is made, the host MUST set SRTT <- R, RTTVAR <- R/2." """
    rtt = RoundTrip()

    rtt.sample(2.0)

    assert state_of(rtt) == (2.0, 2.0, 1.0)


def test_later_samples_move_rttvar_by_a_quarter_of_the_old_error_and_then_srtt_by_an_eighth():
    """ "RTTVAR <- (1 - beta) * RTTVAR + beta * |SRTT - R'|", and only then SRTT; beta 1/4, alpha 1/8."""
    rtt = RoundTrip()
    rtt.sample(2.0)

    rtt.sample(4.0)
    assert state_of(rtt) == (4.0, 2.25, 1.25)

    rtt.sample(1.25)
    assert state_of(rtt) == (1.25, 2.125, 1.1875)


def test_the_timeout_is_srtt_and_four_times_rttvar():
    rtt = RoundTrip()
    rtt.sample(1.0)

    assert rtt.timeout(tick=0.2, low=0.1, high=60.0) == 1.0 + 4 * 0.5


def test_on_a_steady_network_the_timeout_still_leaves_room_for_a_tick():
    """ "SRTT + max (G, K*RTTVAR)", where G is the grain of the clock."""
    rtt = RoundTrip()
    for _ in range(100):
        rtt.sample(1.0)

    assert rtt.timeout(tick=0.25, low=0.1, high=60.0) == 1.25


@pytest.mark.parametrize(("seconds", "timeout"), [(0.01, 3.0), (1.0, 3.0), (1.5, 4.5), (2.0, 6.0), (50.0, 6.0)])
def test_the_timeout_stays_within_its_clamp(seconds, timeout):
    rtt = RoundTrip()

    rtt.sample(seconds)

    assert rtt.timeout(tick=0.2, low=3.0, high=6.0) == timeout


@given(st.lists(SECONDS, min_size=1), SECONDS, SECONDS)
def test_whatever_the_samples_srtt_is_among_them_and_the_timeout_within_its_clamp(samples, one, other):
    rtt = RoundTrip()
    low, high = sorted((one, other))

    for seconds in samples:
        rtt.sample(seconds)

    assert rtt.last == samples[-1]
    assert min(samples) - 1e-9 <= rtt.srtt <= max(samples) + 1e-9
    assert 0 <= rtt.rttvar <= 100
    assert low <= rtt.timeout(0.2, low, high) <= high
