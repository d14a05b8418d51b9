"""The table of the heartbeat, cell by cell, and the timers that lead to it.

Numbers are those of the defaults: a ping 6 s after the answer, 6 s for an untried answer, 3 s for a
probe, suspicion after 12 s of silence, 60 s of patience, a tick of 0.2 s.
"""

from copy import copy
from dataclasses import replace
from math import inf

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from heartbeat.core.errors import StateError
from heartbeat.core.monitor import (
    BUSY_AFTER,
    QUIET,
    Confirm,
    Convict,
    Monitor,
    SendPing,
    SendProbe,
    State,
    Traffic,
    _Input,
)
from heartbeat.core.settings import Settings

TIMING = Settings().timing()

ACKNOWLEDGED, WAITING, SUSPECT, DEAD = State.ACKNOWLEDGED, State.WAITING, State.SUSPECT, State.DEAD


def pinger(*, first_ping=6.0, **timing):
    """An end that pings, opened at 0, its first ping due after 6 s."""
    return Monitor(replace(TIMING, **timing), 0.0, pings=True, watches=False, first_ping=first_ping)


def watcher(**timing):
    """An end that watches, opened at 0."""
    return Monitor(replace(TIMING, **timing), 0.0, pings=False, watches=True)


def waiting(**timing):
    """A pinger whose ping 1 went out at 6; its answer is due by 12."""
    monitor = pinger(**timing)
    assert monitor.check(6.0, QUIET, 0) == (SendPing(1),)
    return monitor


def suspecting():
    """A pinger whose ping 1 was missed at 12, and whose probe 2 went out then; its answer is due by 15."""
    monitor = waiting()
    assert monitor.check(12.0, QUIET, 0) == (Confirm(),)
    assert monitor.confirm(12.0, QUIET, 0) == (SendProbe(2),)
    return monitor


def watcher_suspecting():
    """A watcher that heard nothing for 12 s, and whose probe 1 went out then; its answer is due by 15."""
    monitor = watcher()
    assert monitor.check(12.0, QUIET, 0) == (Confirm(),)
    assert monitor.confirm(12.0, QUIET, 0) == (SendProbe(1),)
    return monitor


def dead():
    """A pinger that convicted its peer at 15."""
    monitor = suspecting()
    assert monitor.check(15.0, QUIET, 0) == (Confirm(),)
    assert monitor.confirm(15.0, QUIET, 0) == (Convict("silent"),)
    return monitor


def looks(monitor):
    """The state, and when there is something to judge."""
    return (monitor.state, monitor.next_at)


def everything(monitor):
    """All that a monitor holds, as it is now."""
    held = {name: copy(getattr(monitor, name)) for name in Monitor.__slots__}
    rtt = held.pop("rtt")
    return held | {"rtt": None if rtt is None else (rtt.last, rtt.srtt, rtt.rttvar)}


# A new link


def test_a_new_link_is_acknowledged_and_nothing_is_known_of_its_peer():
    monitor = pinger()

    assert looks(monitor) == (ACKNOWLEDGED, 6.0)
    assert (monitor.pings, monitor.watches, monitor.timing) == (True, False, TIMING)
    assert (monitor.heard_at, monitor.rtt, monitor.timeout) == (0.0, None, 6.0)
    assert (monitor.busy, monitor.reason, monitor.unanswered_for(5.0)) == (False, "", 0.0)
    assert not monitor.knows(None)
    assert monitor.sent == 0


def test_unless_it_is_put_off_the_first_ping_is_due_at_once():
    monitor = Monitor(TIMING, 1.0, pings=True, watches=False)
    assert looks(monitor) == (ACKNOWLEDGED, 1.0)

    monitor.declare(TIMING, 2.0, pings=True, watches=False)
    assert looks(monitor) == (ACKNOWLEDGED, 2.0)


@pytest.mark.parametrize("effect", [SendPing(1), SendProbe(1), Confirm(), Convict("silent")])
def test_what_is_to_be_done_never_changes(effect):
    assert effect.__dataclass_params__.frozen
    assert not hasattr(effect, "__dict__")


def test_a_quiet_transport_has_nothing_under_way():
    assert (*QUIET,) == (0, 0, 0, False)


def test_an_end_that_neither_pings_nor_watches_has_nothing_to_judge():
    monitor = Monitor(TIMING, 0.0, pings=False, watches=False)

    assert looks(monitor) == (ACKNOWLEDGED, inf)
    assert monitor.check(1e9, QUIET, 0) == ()


def test_the_first_ping_may_go_out_at_once_whoever_sends_the_later_ones():
    monitor = watcher()

    assert monitor.open(0.0, stalls=0) == (SendPing(1),)

    assert looks(monitor) == (WAITING, 6.0)


@pytest.mark.parametrize("make", [pinger, watcher, waiting, suspecting, watcher_suspecting, dead])
def test_before_its_time_there_is_nothing_to_judge(make):
    monitor = make()
    before = everything(monitor)

    assert monitor.check(min(monitor.next_at, 1e9) - 0.001, QUIET, 0) == ()
    assert monitor.confirm(1e9, QUIET, 0) == ()

    assert everything(monitor) == before


# The table: ping due


def test_acknowledged_a_due_ping_is_sent_and_waited_for():
    monitor = pinger()

    assert monitor.check(6.1, QUIET, 0) == (SendPing(1),)

    assert looks(monitor) == (WAITING, 6.1 + 6.0)
    assert monitor.sent == 1
    assert monitor.unanswered_for(8.1) == 2.0


def test_waiting_a_due_ping_is_skipped():
    """One ping in flight: the next is due an interval after the answer."""
    monitor = waiting(interval=1.0)

    assert [monitor.check(now, QUIET, 0) for now in (7.0, 8.0, 9.0)] == [(), (), ()]
    assert looks(monitor) == (WAITING, 12.0)

    monitor.heard(9.5)
    monitor.answered(1, 9.5, stalls=0)
    assert looks(monitor) == (ACKNOWLEDGED, 10.5)


def test_suspect_a_due_ping_is_skipped():
    monitor = suspecting()

    assert monitor.check(14.9, QUIET, 0) == ()

    assert looks(monitor) == (SUSPECT, 15.0)


# The table: bytes received


def test_acknowledged_bytes_start_the_watch_anew():
    monitor = watcher()

    assert monitor.heard(5.0) == ()

    assert looks(monitor) == (ACKNOWLEDGED, 17.0)
    assert monitor.heard_at == 5.0


def test_acknowledged_bytes_do_not_put_off_a_ping():
    monitor = pinger()

    assert monitor.heard(5.0) == ()

    assert looks(monitor) == (ACKNOWLEDGED, 6.0)
    assert monitor.heard_at == 5.0


def test_waiting_bytes_are_noted_and_the_deadline_stands():
    monitor = waiting()

    assert monitor.heard(8.0) == ()

    assert looks(monitor) == (WAITING, 12.0)
    assert monitor.heard_at == 8.0


def test_suspect_bytes_lead_a_pinger_back_to_waiting_with_a_new_deadline():
    monitor = suspecting()

    assert monitor.heard(14.0) == ()

    assert looks(monitor) == (WAITING, 20.0)
    assert monitor.heard_at == 14.0
    assert monitor.knows(1)
    assert monitor.knows(2)


def test_suspect_bytes_put_a_watcher_at_rest():
    monitor = watcher_suspecting()

    assert monitor.heard(14.0) == ()

    assert looks(monitor) == (ACKNOWLEDGED, 26.0)


# The table: watch over, nothing received


def test_acknowledged_silence_for_the_watch_is_probed_after_one_turn():
    monitor = watcher()

    assert monitor.check(12.1, QUIET, 0) == (Confirm(),)
    assert looks(monitor) == (ACKNOWLEDGED, inf)

    assert monitor.confirm(12.1, QUIET, 0) == (SendProbe(1),)
    assert looks(monitor) == (SUSPECT, 12.1 + 3.0)


def test_acknowledged_silence_that_ends_in_that_turn_was_none():
    monitor = watcher()
    monitor.check(12.0, QUIET, 0)

    monitor.heard(12.0)

    assert looks(monitor) == (ACKNOWLEDGED, 24.0)
    assert monitor.confirm(12.0, QUIET, 0) == ()
    assert looks(monitor) == (ACKNOWLEDGED, 24.0)


def test_waiting_nobody_watches():
    """A watcher's opening ping is out, and somebody else judges whether it opens."""
    monitor = watcher()
    monitor.open(0.0, stalls=0)
    monitor.hold(inf, 0.0)

    assert monitor.check(1000.0, QUIET, 0) == ()

    assert looks(monitor) == (WAITING, inf)


def test_suspect_nobody_watches():
    monitor = watcher_suspecting()

    assert monitor.check(14.9, QUIET, 0) == ()

    assert looks(monitor) == (SUSPECT, 15.0)


# The table: pong of any remembered id


def test_acknowledged_a_late_pong_is_a_sample_and_nothing_else():
    monitor = suspecting()
    monitor.heard(14.0)
    monitor.answered(2, 14.0, stalls=0)
    assert looks(monitor) == (ACKNOWLEDGED, 20.0)

    assert monitor.answered(1, 16.0, stalls=0) == 10.0

    assert looks(monitor) == (ACKNOWLEDGED, 20.0)
    assert monitor.rtt.last == 10.0


def test_waiting_the_pong_is_a_sample_and_the_next_ping_due_an_interval_after_it():
    monitor = waiting()
    monitor.heard(7.5)

    assert monitor.answered(1, 7.5, stalls=0) == 1.5

    assert looks(monitor) == (ACKNOWLEDGED, 13.5)
    assert (monitor.rtt.last, monitor.rtt.srtt, monitor.rtt.rttvar) == (1.5, 1.5, 0.75)
    assert not monitor.knows(1)
    assert monitor.unanswered_for(9.0) == 0.0


def test_waiting_the_pong_of_an_earlier_ping_will_do():
    monitor = waiting()
    monitor.heard(11.0)
    assert monitor.check(12.0, QUIET, 0) == (SendPing(2),)

    monitor.heard(13.0)
    assert monitor.answered(1, 13.0, stalls=0) == 7.0

    assert looks(monitor) == (ACKNOWLEDGED, 19.0)
    assert monitor.knows(2)


def test_waiting_a_watchers_pong_puts_it_at_rest_and_it_watches_on():
    monitor = watcher()
    monitor.open(0.0, stalls=0)
    monitor.heard(1.0)

    assert monitor.answered(1, 1.0, stalls=0) == 1.0

    assert looks(monitor) == (ACKNOWLEDGED, 13.0)


def test_suspect_the_pong_acquits():
    """Bytes come before what they say, so in life it is `waiting` by then; the cell stands by itself."""
    monitor = suspecting()

    assert monitor.answered(2, 14.0, stalls=0) == 2.0

    assert looks(monitor) == (ACKNOWLEDGED, 20.0)


# The table: deadline, no byte since the ping went out


def test_acknowledged_there_is_no_deadline():
    monitor = waiting()
    monitor.heard(7.0)
    monitor.answered(1, 7.0, stalls=0)

    assert monitor.check(12.9, QUIET, 0) == ()

    assert looks(monitor) == (ACKNOWLEDGED, 13.0)


def test_waiting_a_missed_deadline_is_probed_after_one_turn():
    monitor = waiting()

    assert monitor.check(12.2, QUIET, 0) == (Confirm(),)
    assert looks(monitor) == (WAITING, inf)

    assert monitor.confirm(12.2, QUIET, 0) == (SendProbe(2),)
    assert looks(monitor) == (SUSPECT, 12.2 + 3.0)
    assert monitor.sent == 2
    assert monitor.unanswered_for(12.2) == pytest.approx(6.2)


def test_waiting_an_answer_read_in_that_turn_counts():
    """After a stall of ours, timers run before the answers that have long been there are read."""
    monitor = waiting()
    monitor.check(12.0, QUIET, 0)

    monitor.heard(12.0)
    assert monitor.answered(1, 12.0, stalls=0) == 6.0

    assert monitor.confirm(12.0, QUIET, 0) == ()
    assert looks(monitor) == (ACKNOWLEDGED, 18.0)


def test_waiting_bytes_read_in_that_turn_make_it_a_deadline_with_bytes():
    monitor = waiting()
    monitor.check(12.0, QUIET, 0)

    monitor.heard(12.0)

    assert monitor.confirm(12.0, QUIET, 0) == ()
    assert looks(monitor) == (WAITING, 12.0)
    assert monitor.check(12.0, QUIET, 0) == (SendPing(2),)


def test_suspect_a_missed_probe_convicts_after_one_turn():
    monitor = suspecting()

    assert monitor.check(15.1, QUIET, 0) == (Confirm(),)
    assert looks(monitor) == (SUSPECT, inf)

    assert monitor.confirm(15.1, QUIET, 0) == (Convict("silent"),)
    assert looks(monitor) == (DEAD, inf)
    assert monitor.reason == "silent"


def test_suspect_bytes_read_in_that_turn_acquit():
    monitor = suspecting()
    monitor.check(15.0, QUIET, 0)

    monitor.heard(15.0)

    assert monitor.confirm(15.0, QUIET, 0) == ()
    assert looks(monitor) == (WAITING, 21.0)


def test_suspect_a_watcher_convicts_as_a_pinger_does():
    monitor = watcher_suspecting()

    assert monitor.check(15.0, QUIET, 0) == (Confirm(),)
    assert monitor.confirm(15.0, QUIET, 0) == (Convict("silent"),)

    assert looks(monitor) == (DEAD, inf)


# The table: deadline, bytes since


def test_waiting_a_deadline_with_bytes_since_writes_the_ping_off_and_sends_the_next_at_once():
    monitor = waiting()
    monitor.heard(8.0)

    assert monitor.check(12.0, QUIET, 0) == (SendPing(2),)

    assert looks(monitor) == (WAITING, 18.0)
    assert (monitor.busy, monitor.knows(1), monitor.knows(2)) == (False, True, True)
    assert monitor.unanswered_for(12.0) == 6.0


def test_waiting_bytes_before_the_ping_went_out_do_not_count():
    monitor = pinger()
    monitor.heard(5.9)
    monitor.check(6.0, QUIET, 0)

    assert monitor.check(12.0, QUIET, 0) == (Confirm(),)


def test_suspect_there_is_no_deadline_with_bytes_because_bytes_end_suspicion():
    monitor = suspecting()

    monitor.heard(14.0)

    assert monitor.check(15.0, QUIET, 0) == ()
    assert looks(monitor) == (WAITING, 20.0)


def test_bytes_but_no_pongs_make_a_peer_busy_at_the_third_ping_and_convict_it_after_the_patience():
    monitor = waiting()
    said = []

    while monitor.state is WAITING:
        monitor.heard(monitor.next_at - 1.0)
        now = monitor.next_at
        said.append((now, *monitor.check(now, QUIET, 0), monitor.busy))

    assert BUSY_AFTER == 3
    assert said == [
        (12.0, SendPing(2), False),
        (18.0, SendPing(3), False),
        # From here on it is asked in the way whose missing answer convicts.
        *((6.0 * n, SendProbe(n), True) for n in range(4, 12)),
        (72.0, Convict("no-pong"), True),
    ]
    assert looks(monitor) == (DEAD, inf)
    assert monitor.reason == "no-pong"


def test_with_little_patience_a_peer_is_still_asked_by_a_probe_before_it_is_convicted():
    monitor = waiting(patience=5.0)
    said = []

    while monitor.state is WAITING:
        monitor.heard(monitor.next_at - 1.0)
        now = monitor.next_at
        said.append((now, *monitor.check(now, QUIET, 0)))

    assert said == [(12.0, SendPing(2)), (18.0, SendPing(3)), (24.0, SendProbe(4)), (30.0, Convict("no-pong"))]


def test_a_ping_that_was_passed_over_is_no_open_question_once_a_later_one_is_answered():
    """RFC 6455, section 5.5.3: a peer "MAY elect to send a Pong frame for only the most recently processed Ping"."""
    monitor = waiting()
    monitor.heard(11.0)
    monitor.check(12.0, QUIET, 0)
    assert monitor.unanswered_for(13.0) == 7.0

    monitor.answered(2, 13.0, stalls=0)
    assert monitor.unanswered_for(500.0) == 0.0
    assert monitor.knows(1)

    monitor.check(19.0, QUIET, 0)
    assert monitor.unanswered_for(20.0) == 1.0


def test_a_pong_ends_what_was_counted():
    monitor = waiting()
    for now in (12.0, 18.0, 24.0):
        monitor.heard(now)
        monitor.check(now, QUIET, 0)
    assert monitor.busy

    monitor.heard(25.0)
    assert monitor.answered(4, 25.0, stalls=0) == 1.0
    assert (*looks(monitor), monitor.busy) == (ACKNOWLEDGED, 31.0, False)

    assert monitor.check(31.0, QUIET, 0) == (SendPing(5),)
    said = []
    for now in (90.0, 100.0, 110.0):
        monitor.heard(now)
        said.append((*monitor.check(now, QUIET, 0), monitor.busy))
    assert said == [(SendPing(6), False), (SendPing(7), False), (SendProbe(8), True)]


def test_inside_one_growing_frame_nobody_is_convicted_for_missing_pongs():
    """A large message in flight starves the pong; the patience begins when it is through."""
    monitor = waiting()
    now = 12.0
    while now < 300.0:
        monitor.heard(now)
        assert type(monitor.check(now, Traffic(growing=True), 0)[0]) in (SendPing, SendProbe)
        now = monitor.next_at
    assert (*looks(monitor), monitor.busy) == (WAITING, 300.0, True)

    ends = []
    while monitor.state is WAITING:
        now = monitor.next_at
        monitor.heard(now)
        ends = monitor.check(now, QUIET, 0)

    assert (now, ends) == (294.0 + 60.0, (Convict("no-pong"),))


def test_relief_is_no_answer_a_peer_that_only_ever_sends_bytes_is_written_off():
    monitor = suspecting()
    monitor.heard(14.0)

    assert monitor.check(20.0, QUIET, 0) == (SendPing(3),)

    assert looks(monitor) == (WAITING, 26.0)
    assert [monitor.knows(ping_id) for ping_id in (1, 2, 3)] == [True, True, True]


# The table: closed


@pytest.mark.parametrize("make", [pinger, watcher, waiting, suspecting, watcher_suspecting, dead])
def test_when_the_link_is_closed_all_timers_end_in_every_state(make):
    monitor = make()
    state = monitor.state

    monitor.close(20.0)

    assert looks(monitor) == (state, inf)
    assert (monitor.pings, monitor.watches) == (False, False)
    assert [monitor.knows(ping_id) for ping_id in (None, 1, 2)] == [False, False, False]
    assert monitor.check(1e9, QUIET, 0) == ()


def test_a_question_dies_with_the_link():
    monitor = suspecting()
    monitor.check(15.0, QUIET, 0)

    monitor.close(15.0)

    assert monitor.confirm(15.0, QUIET, 0) == ()
    assert looks(monitor) == (SUSPECT, inf)


# The table: dead, and what is in no cell


def test_dead_nothing_counts_any_more():
    monitor = dead()
    before = everything(monitor)

    assert monitor.heard(16.0) == ()
    assert monitor.answered(1, 16.0, stalls=0) is None
    assert monitor.woke(16.0, QUIET, 0) == ()
    monitor.pinged(16.0)
    assert monitor.check(1e9, QUIET, 0) == ()
    assert monitor.confirm(1e9, QUIET, 0) == ()
    monitor.close(16.0)

    assert everything(monitor) == before


def test_dead_a_pong_is_nothing():
    monitor = dead()
    before = everything(monitor)

    assert monitor._step(_Input.PONG, 16.0, QUIET, 0) == ()

    assert everything(monitor) == before


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (pinger, _Input.SILENT),
        (pinger, _Input.HEARD),
        (waiting, _Input.DUE),
        (waiting, _Input.WATCH),
        (suspecting, _Input.DUE),
        (suspecting, _Input.WATCH),
        (suspecting, _Input.WOKE),
        (dead, _Input.BYTES),
        (dead, _Input.PONG),
        (dead, _Input.WOKE),
        (dead, _Input.CLOSED),
    ],
)
def test_where_the_table_has_a_dash_nothing_happens(make, what):
    monitor = make()
    before = everything(monitor)

    assert monitor._step(what, 20.0, QUIET, 0) == ()

    assert everything(monitor) == before


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (suspecting, _Input.HEARD),
        (dead, _Input.DUE),
        (dead, _Input.WATCH),
        (dead, _Input.SILENT),
        (dead, _Input.HEARD),
    ],
)
def test_an_input_that_is_in_no_row_raises_and_nothing_has_changed(make, what):
    monitor = make()
    before = everything(monitor)

    with pytest.raises(StateError, match=f"{what.name} in state {monitor.state}"):
        monitor._step(what, 20.0, QUIET, 0)

    assert everything(monitor) == before


# Late by ourselves


def test_a_round_trip_during_which_we_were_late_is_an_answer_but_no_sample():
    monitor = waiting()
    monitor.heard(7.0)

    assert monitor.answered(1, 7.0, stalls=1) is None

    assert looks(monitor) == (ACKNOWLEDGED, 13.0)
    assert monitor.rtt is None


def test_lateness_before_the_ping_went_out_does_not_matter():
    monitor = pinger()
    monitor.check(6.0, QUIET, 5)
    monitor.heard(7.0)

    assert monitor.answered(1, 7.0, stalls=5) == 1.0


# Waking up


@pytest.mark.parametrize(("make", "probe"), [(pinger, 1), (watcher, 1), (waiting, 2)])
def test_who_wakes_probes_first(make, probe):
    monitor = make()

    assert monitor.woke(8.0, QUIET, 0) == (SendProbe(probe),)

    assert looks(monitor) == (SUSPECT, 11.0)


def test_who_wakes_with_a_probe_out_waits_for_its_answer():
    monitor = suspecting()
    before = everything(monitor)

    assert monitor.woke(13.0, QUIET, 0) == ()

    assert everything(monitor) == before


@pytest.mark.parametrize(("make", "asked_at"), [(watcher, 12.0), (waiting, 12.0)])
def test_a_question_from_before_the_sleep_is_forgotten(make, asked_at):
    """Its answer would convict a peer whose probe has only just gone out."""
    monitor = make()
    assert monitor.check(asked_at, QUIET, 0) == (Confirm(),)

    (probe,) = monitor.woke(asked_at, QUIET, 0)

    assert type(probe) is SendProbe
    assert monitor.confirm(asked_at, QUIET, 0) == ()
    assert looks(monitor) == (SUSPECT, asked_at + 3.0)


def test_a_question_from_before_the_sleep_about_a_probe_is_asked_again():
    monitor = suspecting()
    monitor.check(15.0, QUIET, 0)

    assert monitor.woke(15.0, QUIET, 0) == ()

    assert monitor.confirm(15.0, QUIET, 0) == ()
    assert looks(monitor) == (SUSPECT, 15.0)
    assert monitor.check(15.0, QUIET, 0) == (Confirm(),)


# Verdicts from outside


@pytest.mark.parametrize("make", [pinger, watcher, waiting, suspecting])
def test_a_peer_may_be_taken_for_gone_for_another_reason(make):
    monitor = make()

    assert monitor.convict("refused") == (Convict("refused"),)

    assert looks(monitor) == (DEAD, inf)
    assert monitor.reason == "refused"
    assert not monitor.knows(1)
    assert monitor.check(1e9, QUIET, 0) == ()


def test_a_question_dies_with_the_verdict():
    monitor = waiting()
    monitor.check(12.0, QUIET, 0)

    monitor.convict("refused")

    assert monitor.confirm(12.0, QUIET, 0) == ()
    assert (*looks(monitor), monitor.reason) == (DEAD, inf, "refused")


# Which ping was answered


@pytest.mark.parametrize("ping_id", [0, 2, -1, 99])
def test_the_pong_of_an_unknown_id_is_nothing(ping_id):
    monitor = waiting()
    before = everything(monitor)

    assert not monitor.knows(ping_id)
    assert monitor.answered(ping_id, 7.0, stalls=0) is None

    assert everything(monitor) == before


def test_a_pong_without_an_id_answers_the_one_ping_in_flight():
    monitor = waiting()
    monitor.heard(7.0)

    assert monitor.knows(None)
    assert monitor.answered(None, 7.0, stalls=0) == 1.0

    assert looks(monitor) == (ACKNOWLEDGED, 13.0)
    assert not monitor.knows(None)


def test_a_pong_without_an_id_when_none_is_in_flight_is_nothing():
    monitor = pinger()
    before = everything(monitor)

    assert monitor.answered(None, 7.0, stalls=0) is None

    assert everything(monitor) == before


def test_of_several_pings_a_pong_without_an_id_answers_all_and_its_time_says_nothing():
    monitor = waiting()
    monitor.heard(8.0)
    monitor.check(12.0, QUIET, 0)
    monitor.heard(13.0)

    assert monitor.answered(None, 13.0, stalls=0) is None

    assert looks(monitor) == (ACKNOWLEDGED, 19.0)
    assert monitor.rtt is None
    assert [monitor.knows(ping_id) for ping_id in (None, 1, 2)] == [False, False, False]
    assert monitor.unanswered_for(20.0) == 0.0


def test_sixty_four_pings_are_remembered_and_then_the_oldest_is_forgotten():
    monitor = waiting()
    for _ in range(63):
        monitor.heard(monitor.next_at)
        monitor.check(monitor.next_at, Traffic(growing=True), 0)
    assert [monitor.knows(ping_id) for ping_id in (1, 2, 64)] == [True, True, True]
    assert monitor.unanswered_for(384.0) == 384.0 - 6.0

    monitor.heard(monitor.next_at)
    monitor.check(monitor.next_at, Traffic(growing=True), 0)

    assert [monitor.knows(ping_id) for ping_id in (1, 2, 64, 65)] == [False, True, True, True]
    assert monitor.unanswered_for(390.0) == 390.0 - 12.0


# How long an answer may take


@pytest.mark.parametrize(("rtt", "timeout"), [(0.05, 3.0), (1.5, 4.5), (5.0, 6.0)])
def test_the_next_deadline_follows_the_round_trips_within_its_clamp(rtt, timeout):
    monitor = waiting()
    monitor.heard(6.0 + rtt)
    monitor.answered(1, 6.0 + rtt, stalls=0)
    assert monitor.timeout == timeout

    monitor.check(20.0, QUIET, 0)

    assert looks(monitor) == (WAITING, 20.0 + timeout)


def test_all_round_trips_count():
    monitor = waiting()
    monitor.heard(7.0)
    monitor.answered(1, 7.0, stalls=0)
    monitor.check(13.0, QUIET, 0)
    monitor.heard(15.0)

    monitor.answered(2, 15.0, stalls=0)

    assert (monitor.rtt.last, monitor.rtt.srtt, monitor.rtt.rttvar) == (2.0, 1.125, 0.625)
    assert monitor.timeout == 3.625


# The schedule


def test_by_default_the_next_ping_follows_the_answer():
    monitor = pinger(first_ping=0.0)
    sent = []

    for rtt in (0.5, 2.0, 1.0):
        now = monitor.next_at
        (ping,) = monitor.check(now, QUIET, 0)
        sent.append(now)
        monitor.heard(now + rtt)
        monitor.answered(ping.ping_id, now + rtt, stalls=0)

    assert sent == [0.0, 6.5, 14.5]
    assert looks(monitor) == (ACKNOWLEDGED, 21.5)


def test_fixed_pings_go_out_at_multiples_and_are_skipped_while_one_is_out():
    monitor = pinger(first_ping=0.0, interval=2.0, fixed=True)
    sent = []

    for rtt in (0.5, 1.5, 5.0, 0.5):
        now = monitor.next_at
        (ping,) = monitor.check(now + 0.25, QUIET, 0)
        sent.append(now)
        monitor.heard(now + rtt)
        monitor.answered(ping.ping_id, now + rtt, stalls=0)

    assert sent == [0.0, 2.0, 4.0, 10.0]
    assert looks(monitor) == (ACKNOWLEDGED, 12.0)


def test_fixed_the_opening_ping_does_not_shift_the_multiples():
    monitor = pinger(first_ping=10.0, fixed=True)
    monitor.open(0.0, stalls=0)

    monitor.heard(1.0)
    monitor.answered(1, 1.0, stalls=0)
    assert looks(monitor) == (ACKNOWLEDGED, 4.0)

    monitor.check(4.0, QUIET, 0)
    monitor.heard(4.5)
    monitor.answered(2, 4.5, stalls=0)
    assert looks(monitor) == (ACKNOWLEDGED, 10.0)


# Two ends that both ping


def test_both_a_ping_received_puts_ours_off():
    monitor = pinger()

    monitor.pinged(4.0)

    assert looks(monitor) == (ACKNOWLEDGED, 10.0)
    assert monitor.check(9.9, QUIET, 0) == ()
    assert monitor.check(10.0, QUIET, 0) == (SendPing(1),)


@pytest.mark.parametrize("make", [watcher, waiting, suspecting, lambda: pinger(fixed=True)])
def test_otherwise_a_ping_received_puts_nothing_off(make):
    monitor = make()
    before = everything(monitor)

    monitor.pinged(14.0)

    assert everything(monitor) == before


# The opening


def test_a_held_ping_has_the_time_that_it_is_given():
    monitor = watcher()
    monitor.open(0.0, stalls=0)

    monitor.hold(inf, 0.0)
    assert looks(monitor) == (WAITING, inf)

    monitor.hold(5.0, 1.0)
    assert looks(monitor) == (WAITING, 6.0)


def test_what_the_server_declares_holds_from_then_on_for_an_end_that_will_ping():
    monitor = watcher()
    fast = replace(TIMING, interval=1.0, timeout_max=4.0)

    monitor.declare(fast, 2.0, pings=True, watches=False, first_ping=0.5)

    assert looks(monitor) == (ACKNOWLEDGED, 2.5)
    assert (monitor.timing, monitor.pings, monitor.watches, monitor.timeout) == (fast, True, False, 4.0)


def test_what_the_server_declares_holds_from_then_on_for_an_end_that_will_watch():
    monitor = pinger()

    monitor.declare(replace(TIMING, watch=20.0), 2.0, pings=False, watches=True)

    assert looks(monitor) == (ACKNOWLEDGED, 22.0)


def test_a_ping_in_flight_when_the_server_declares_gets_its_deadline_from_then():
    monitor = watcher()
    monitor.open(0.0, stalls=0)
    monitor.hold(inf, 0.0)

    monitor.declare(replace(TIMING, timeout_max=4.0), 2.0, pings=True, watches=False)

    assert looks(monitor) == (WAITING, 6.0)
    assert monitor.answered(1, 2.5, stalls=0) == 2.5
    assert looks(monitor) == (ACKNOWLEDGED, 8.5)


def test_a_probe_that_is_out_when_the_server_declares_keeps_its_deadline():
    monitor = suspecting()

    monitor.declare(TIMING, 14.0, pings=True, watches=False)

    assert looks(monitor) == (SUSPECT, 15.0)


def test_fixed_multiples_count_from_the_declaration():
    monitor = watcher()
    monitor.declare(replace(TIMING, fixed=True), 2.0, pings=True, watches=False, first_ping=1.0)

    monitor.check(3.0, QUIET, 0)
    monitor.answered(1, 4.0, stalls=0)

    assert looks(monitor) == (ACKNOWLEDGED, 9.0)


# A ping behind bytes of our own


def behind(given, written, delivered):
    """A pinger whose ping went out at 6, behind what had been given to the transport by then."""
    monitor = pinger()
    assert monitor.check(6.0, Traffic(given, written, delivered), 0) == (SendPing(1),)
    assert looks(monitor) == (WAITING, 12.0 if delivered == given else 6.2)
    return monitor


def looked_after(monitor, traffic, until):
    """Looked at whenever it wants to be, with this traffic; returns when it first had something to say, if it had."""
    while monitor.next_at < until - 1e-9:
        now = monitor.next_at
        if monitor.check(now, traffic, 0):
            return now
    return None


def test_a_ping_with_nothing_ahead_of_it_is_judged_at_its_deadline():
    for delivered in (1000, 1020):
        monitor = behind(1000, 1000, 1000)
        assert monitor.check(12.0, Traffic(1020, 1020, delivered), 0) == (Confirm(),)


def test_a_ping_behind_bytes_that_no_kernel_takes_is_judged_at_its_deadline():
    monitor = behind(1000, 1000, 100)

    assert looked_after(monitor, Traffic(1020, 1020, 100), inf) == 12.0
    assert monitor.confirm(12.0, Traffic(1020, 1020, 100), 0) == (SendProbe(2),)


def test_a_deadline_starts_when_the_ping_has_left_our_buffer():
    monitor = behind(1000, 200, 200)

    # Still behind the thousand: looked at each tick.
    assert monitor.check(12.0, Traffic(1020, 900, 900), 0) == ()
    assert looks(monitor) == (WAITING, 12.2)
    assert monitor.check(12.2, Traffic(1020, 1000, 1000), 0) == ()
    assert looks(monitor) == (WAITING, 12.2 + 0.2)

    # It has left, and may take its 6 s from here: still looked at, for it has not arrived.
    assert monitor.check(13.0, Traffic(1020, 1020, 1000), 0) == ()
    assert looks(monitor) == (WAITING, 13.2)
    assert looked_after(monitor, Traffic(1020, 1020, 1000), inf) == 19.0


def test_a_ping_that_leaves_and_arrives_between_two_looks_has_its_deadline_from_the_second():
    monitor = behind(1000, 200, 200)

    assert monitor.check(6.2, Traffic(1020, 1020, 1020), 0) == ()
    assert looks(monitor) == (WAITING, 12.2)
    assert monitor.check(12.2, Traffic(9000, 9000, 8000), 0) == (Confirm(),)


def test_while_the_peers_kernel_takes_what_was_ahead_the_deadline_is_put_off():
    monitor = behind(1000, 1000, 100)

    assert looked_after(monitor, Traffic(1020, 1020, 100), 11.7) is None
    assert monitor.check(11.8, Traffic(1020, 1020, 400), 0) == ()
    assert looked_after(monitor, Traffic(1020, 1020, 400), 17.5) is None
    assert monitor.check(17.6, Traffic(1020, 1020, 401), 0) == ()

    # No progress in all that time.
    assert looked_after(monitor, Traffic(1020, 1020, 401), inf) == pytest.approx(23.6)
    assert monitor.confirm(23.6, Traffic(1020, 1020, 401), 0) == (SendProbe(2),)


def test_who_dies_with_little_on_its_way_is_found_as_soon_as_one_with_nothing_on_its_way():
    """A message was not acknowledged yet as the ping went out, and was a moment later: no excuse for seconds."""
    monitor = behind(1000, 1000, 900)

    assert monitor.check(6.2, Traffic(1020, 1020, 1020), 0) == ()
    assert looked_after(monitor, Traffic(1020, 1020, 1020), inf) == 12.2
    assert monitor.confirm(12.2, Traffic(1020, 1020, 1020), 0) == (SendProbe(2),)
    assert looked_after(monitor, Traffic(1040, 1040, 1020), inf) == pytest.approx(15.2)
    assert monitor.confirm(15.2, Traffic(1040, 1040, 1020), 0) == (Convict("silent"),)
    assert TIMING.pinging_bound > 15.2


def test_once_it_has_arrived_there_is_no_excuse_after_it():
    monitor = behind(1000, 1000, 100)

    assert looked_after(monitor, Traffic(1020, 1020, 100), 11.7) is None
    assert monitor.check(11.8, Traffic(1020, 1020, 1020), 0) == ()
    assert looks(monitor) == (WAITING, 17.8)

    assert monitor.check(17.8, Traffic(5000, 5000, 4000), 0) == (Confirm(),)


def test_bytes_of_our_own_are_an_excuse_for_as_long_as_the_patience_lasts():
    monitor = behind(1000, 0, 0)
    now = 6.2
    while now < 65.9:
        assert monitor.check(now, Traffic(1020, int(now), int(now)), 0) == ()
        assert looks(monitor) == (WAITING, pytest.approx(now + 0.2))
        now = monitor.next_at

    # 60 s after it was queued: the deadline starts, wherever the ping is.
    assert now == pytest.approx(66.0)
    assert monitor.check(66.1, Traffic(1020, 66, 66), 0) == ()
    assert looks(monitor) == (WAITING, 72.1)
    assert monitor.check(72.1, Traffic(1020, 72, 72), 0) == (Confirm(),)


def test_the_patience_ends_to_the_second():
    monitor = behind(1000, 0, 0)

    assert monitor.check(66.0, Traffic(1020, 66, 66), 0) == ()

    assert looks(monitor) == (WAITING, 72.0)


def test_a_probe_behind_bytes_of_our_own_gets_a_probes_time():
    monitor = waiting()
    monitor.check(12.0, QUIET, 0)
    assert monitor.confirm(12.0, Traffic(1000, 0, 0), 0) == (SendProbe(2),)
    assert looks(monitor) == (SUSPECT, 12.2)

    assert monitor.check(15.0, Traffic(1020, 500, 500), 0) == ()
    assert looks(monitor) == (SUSPECT, 15.2)
    assert monitor.check(15.2, Traffic(1020, 1020, 500), 0) == ()
    assert looked_after(monitor, Traffic(1020, 1020, 500), inf) == 18.2
    assert monitor.confirm(18.2, Traffic(1020, 1020, 500), 0) == (Convict("silent"),)


def test_a_ping_behind_bytes_of_our_own_is_looked_after_too_when_a_suspicion_ends():
    monitor = waiting()
    monitor.check(12.0, QUIET, 0)
    monitor.confirm(12.0, Traffic(1000, 0, 0), 0)

    monitor.heard(14.0)
    assert looks(monitor) == (WAITING, 14.2)
    assert monitor.check(14.2, Traffic(1020, 1020, 1020), 0) == ()
    assert looks(monitor) == (WAITING, 20.2)
    assert monitor.check(20.2, Traffic(1020, 1020, 1020), 0) == (SendPing(3),)


def test_the_patience_counts_once_for_a_ping_and_the_probe_that_follows_it():
    """A dead peer behind bytes that never move is found 60 s later than else, not 120."""
    monitor, stuck = waiting(), Traffic(1_000_000, 0, 0)
    monitor.answered(1, 6.0, stalls=0)
    monitor.check(12.0, stuck, 0)
    convicted = ()
    while not convicted:
        now = monitor.next_at
        assert monitor.check(now, stuck, 0) in ((), (Confirm(),))
        convicted = tuple(effect for effect in monitor.confirm(now, stuck, 0) if isinstance(effect, Convict))

    assert convicted == (Convict("silent"),)
    assert now == pytest.approx(6.0 + TIMING.pinging_bound - 2 * TIMING.tick + TIMING.patience, abs=3.0 + TIMING.tick)
    assert now <= 6.0 + TIMING.pinging_bound + TIMING.patience


def test_a_ping_behind_bytes_of_our_own_is_not_written_off_either():
    monitor = behind(1000, 0, 0)
    monitor.heard(11.0)

    assert monitor.check(12.0, Traffic(1020, 500, 500), 0) == ()
    assert looks(monitor) == (WAITING, 12.2)

    assert monitor.check(12.2, Traffic(1020, 1020, 1020), 0) == ()
    assert monitor.check(18.2, Traffic(1020, 1020, 1020), 0) == (SendPing(2),)


# Whatever happens

SECONDS = st.floats(0.0, 10.0)


class Trial(RuleBasedStateMachine):
    """A monitor to which anything may happen in any order, and a witness of what it had to go by."""

    @initialize(pings=st.booleans(), fixed=st.booleans())
    def open(self, pings, fixed):
        self.monitor = Monitor(replace(TIMING, fixed=fixed), 0.0, pings=pings, watches=not pings)
        self.now = self.heard_at = 0.0
        self.probed_at = self.written_off_at = inf

    @rule(seconds=SECONDS)
    def time_passes(self, seconds):
        self.now += seconds

    @rule(lateness=st.floats(0.0, 0.5))
    def its_time_comes(self, lateness):
        """Whoever looks in time has something to judge, and whoever looks before has not."""
        if self.monitor.next_at < inf:
            self.now = max(self.now, self.monitor.next_at + lateness)
        self.look()

    @rule(times=st.integers(1, 5))
    def the_peer_is_silent(self, times):
        for _ in range(times):
            self.its_time_comes(0.1)
            self.the_reactor_turns()

    @rule(times=st.integers(1, 12))
    def the_peer_is_busy(self, times):
        for _ in range(times):
            self.bytes_arrive()
            self.its_time_comes(0.1)

    @rule()
    def look(self):
        before, was_due = everything(self.monitor), self.now >= self.monitor.next_at
        self.judge(self.monitor.check(self.now, QUIET, 0))
        assert (everything(self.monitor) != before) == was_due

    @rule()
    def the_reactor_turns(self):
        self.judge(self.monitor.confirm(self.now, QUIET, 0))

    @rule()
    def the_machine_wakes(self):
        self.judge(self.monitor.woke(self.now, QUIET, 0))

    @rule()
    def a_ping_arrives(self):
        self.bytes_arrive()
        self.monitor.pinged(self.now)

    @rule(ping_id=st.one_of(st.none(), st.integers(0, 20)))
    def a_pong_arrives(self, ping_id):
        self.bytes_arrive()
        if self.monitor.knows(ping_id):
            self.monitor.answered(ping_id, self.now, 0)
            assert self.monitor.state is ACKNOWLEDGED
            self.written_off_at = inf

    @rule()
    def bytes_arrive(self):
        assert self.monitor.heard(self.now) == ()
        if self.monitor.state is not DEAD:
            self.heard_at = self.now
        assert self.monitor.state is not SUSPECT
        assert self.monitor.heard_at == self.heard_at

    def judge(self, effects):
        for effect in effects:
            if type(effect) is Convict:
                self.is_just(effect.reason)
            elif type(effect) in (SendPing, SendProbe):
                assert self.monitor.knows(effect.ping_id)
                if self.monitor.state is SUSPECT:
                    self.probed_at = self.now
                elif self.monitor.unanswered_for(self.now):
                    self.written_off_at = min(self.written_off_at, self.now)

    def is_just(self, reason):
        """Nobody is convicted who spoke after the probe, had no time to, or answered within the patience."""
        assert looks(self.monitor) == (DEAD, inf)
        if reason == "silent":
            assert self.heard_at <= self.probed_at <= self.now - TIMING.probe
        else:
            assert (reason, self.written_off_at <= self.now - TIMING.patience) == ("no-pong", True)


test_whatever_happens_to_it_a_monitor_is_just = Trial.TestCase
