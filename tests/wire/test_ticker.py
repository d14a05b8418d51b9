"""The wheel, exact alarms, turns: who is due looks in time, in slices, and by a time without our own lateness."""

import pytest
from test_pulse import TICK, pump

from heartbeat.testing import Machine
from heartbeat.ticker import Alarm, Ticker


class Entry:
    """Sits in the wheel, and notes when it was looked at."""

    slot = None

    def __init__(self):
        self.looks = []

    def due(self, now):
        self.looks.append(now)


@pytest.fixture
def ticker(clock):
    """A ticker that is needed by one connection until the end."""
    ticker = Ticker(clock, TICK)
    ticker.enter()
    yield ticker
    ticker.leave()
    clock.advance(0)


# The tick.


def test_whoever_is_due_is_looked_at_within_a_tick_and_never_early(clock, ticker):
    entry = Entry()
    ticker.wheel.arm(entry, 1.1)

    pump(clock, 3)

    (look,) = entry.looks
    assert 1.1 <= look <= 1.1 + TICK


def test_a_late_tick_shifts_the_time_and_so_all_deadlines(clock, ticker):
    entry = Entry()
    ticker.wheel.arm(entry, 5.0)
    pump(clock, 1)

    clock.advance(10)

    assert ticker.running.stalls == 1
    assert ticker.now() == pytest.approx(1, abs=2 * TICK)
    assert entry.looks == []
    pump(clock, 4.25)
    assert len(entry.looks) == 1


def test_lateness_is_left_out_as_soon_as_anybody_asks(clock, ticker):
    """After a stall a socket may be read before the tick has run."""
    pump(clock, 1)
    clock.rightNow += 10

    assert ticker.now() == pytest.approx(1, abs=2 * TICK)
    clock.advance(0)


# A turn of the reactor.


def test_a_turn_lets_the_reactor_read_before(clock, ticker):
    order = []
    ticker.turn(lambda: order.append("one"))
    ticker.turn(lambda: order.append("two"))
    assert order == []
    assert len(clock.calls) == 2

    clock.advance(0)

    assert order == ["one", "two"]


def test_a_turn_that_fails_is_logged_and_the_others_are_taken(clock, ticker, failures):
    order = []

    def fails():
        raise ZeroDivisionError

    ticker.turn(fails)
    ticker.turn(lambda: order.append("two"))
    clock.advance(0)

    assert order == ["two"]
    assert len(failures.flush(ZeroDivisionError)) == 1


def test_what_asks_for_a_turn_within_a_turn_gets_the_next():
    machine, order = Machine(), []
    ticker = Ticker(machine, TICK)
    ticker.turn(lambda: ticker.turn(lambda: order.append("next")))

    machine.turn(0)
    assert order == []
    machine.turn(0)
    assert order == ["next"]


# Alarms.


@pytest.fixture
def rung():
    """When it rang."""
    return []


def test_an_alarm_rings_once_at_its_time(clock, ticker, rung):
    alarm = Alarm(ticker, rung.append)
    alarm.arm(1.1)
    assert ticker.alarms == {alarm}

    pump(clock, 1)
    clock.advance(0.1)
    pump(clock, 5)

    assert rung == [pytest.approx(1.1)]
    assert ticker.alarms == set()


def test_an_alarm_armed_again_forgets_the_time_before(clock, ticker, rung):
    alarm = Alarm(ticker, rung.append)
    alarm.arm(1)
    alarm.arm(2)
    assert len(clock.calls) == 2

    pump(clock, 3)

    assert rung == [2]


def test_an_earlier_appointment_stands(clock, ticker, rung):
    alarm = Alarm(ticker, rung.append)
    alarm.arm_before(2)
    alarm.arm_before(3)
    alarm.arm_before(1)

    pump(clock, 4)

    assert rung == [1]


def test_a_disarmed_alarm_and_one_for_never_do_not_ring(clock, ticker, rung):
    one, two = Alarm(ticker, rung.append), Alarm(ticker, rung.append)
    one.arm(1)
    one.disarm()
    two.arm(float("inf"))
    assert len(clock.calls) == 1

    pump(clock, 4)

    assert rung == []


def test_an_alarm_for_the_past_rings_now(clock, ticker, rung):
    pump(clock, 2)
    Alarm(ticker, rung.append).arm(1)

    clock.advance(0)

    assert rung == [2]


def test_an_alarm_that_is_early_by_a_rounding_is_told_the_time_that_it_waited_for(clock, ticker):
    """Or it would be armed again for the same moment, and again."""
    looks = []
    alarm = Alarm(ticker, lambda now: looks.append(now) or (now < 1.0 and alarm.arm(1.0)))
    alarm.arm(1.0)
    ticker.now = lambda: 1.0 - 2**-50

    pump(clock, 1)

    assert looks == [1.0]
    del ticker.now


def test_an_alarm_keeps_to_running_time(clock, ticker, rung):
    """Our own stall puts it off, as it does everything."""
    Alarm(ticker, rung.append).arm(2)
    pump(clock, 1)
    clock.advance(10)
    assert rung == []

    pump(clock, 1.5)

    assert rung == [pytest.approx(2, abs=2 * TICK)]


class Slow(Entry):
    """Takes longer to look than a slice of a tick."""

    def __init__(self, clock, order):
        super().__init__()
        self.clock = clock
        self.order = order

    def due(self, now):
        super().due(now)
        self.order.append("look")
        self.clock.rightNow += 0.001


def test_those_who_are_due_look_in_slices_and_others_have_a_turn_in_between(ticker, clock):
    order = []
    for _ in range(5):
        ticker.wheel.arm(Slow(clock, order), 0.1)
    clock.callLater(TICK, order.append, "other")
    clock.callLater(TICK + 0.0015, order.append, "another")

    clock.advance(TICK)

    assert sorted(order) == ["another", *["look"] * 5, "other"]
    assert order.index("other") < order.index("another") < len(order) - 1


def test_few_look_in_a_slice_however_quick_they_are(ticker, clock):
    """Whoever is dropped when he looks costs most when the reactor turns: not hundreds of them in one turn."""
    order = []

    class Quick(Entry):
        def due(self, now):
            order.append("look")

    for _ in range(40):
        ticker.wheel.arm(Quick(), 0.1)
    clock.callLater(TICK, order.append, "other")

    clock.advance(TICK)

    assert order.count("look") == 40
    assert order.index("other") == 8


def test_two_leave_in_a_slice(ticker, clock):
    """What the reactor has to do for those comes at the beginning of its next turn, before anybody is read."""
    order = []

    class Drops(Entry):
        def due(self, now):
            order.append("dropped")
            ticker.leaves()

    for _ in range(40):
        ticker.wheel.arm(Drops(), 0.1)
    clock.callLater(TICK, order.append, "other")

    clock.advance(TICK)

    assert order.count("dropped") == 40
    assert order.index("other") == 2


def test_what_is_left_of_several_ticks_has_one_slice_a_turn(ticker, clock):
    """However late it is, others have their turn as often."""
    for at in range(4):
        for _ in range(5):
            ticker.wheel.arm(Slow(clock, []), at * TICK)
    for _ in range(4):
        clock.rightNow += TICK
        ticker.pulse._ticked()

    assert len(ticker._turning) == 1


def test_however_long_more_come_due_than_can_look_they_all_look_in_the_end(ticker, clock):
    entries = [Slow(clock, []) for _ in range(600)]
    for number, entry in enumerate(entries):
        ticker.wheel.arm(entry, number // 2 * TICK)
    for _ in range(300):
        clock.rightNow += TICK
        ticker.pulse._ticked()
    assert sum(len(entry.looks) for entry in entries) < 600

    clock.advance(0)

    assert [len(entry.looks) for entry in entries] == [1] * 600
