"""One tick for all, exact alarms, and our own lateness left out of the time."""

import sys
import time

import pytest
from twisted.internet import reactor
from twisted.internet.task import Clock

from heartbeat import watchdog
from heartbeat.testing import Machine, World
from heartbeat.ticker import Alarm, Ticker, make_monotonic, raw_clock, sleep_clock, slept

TICK = 0.25


class Entry:
    """Sits in the wheel, and notes when it was looked at."""

    slot = None

    def __init__(self):
        self.looks = []

    def due(self, now):
        self.looks.append(now)


@pytest.fixture
def clock():
    """A reactor of our own; nothing is left on it in the end."""
    clock = Clock()
    yield clock
    assert clock.calls == []


@pytest.fixture
def ticker(clock):
    """A ticker that is needed by one connection until the end."""
    ticker = Ticker(clock, TICK)
    ticker.enter()
    yield ticker
    ticker.leave()
    clock.advance(0)


def pump(clock, seconds):
    """Let time pass as a reactor does that is never late."""
    for _ in range(round(seconds / TICK)):
        clock.advance(TICK)


# Which clock.


def test_the_time_is_that_of_a_reactor_that_was_passed_in():
    clock = Clock()
    clock.advance(5)

    assert raw_clock(clock)() == 5
    assert not Ticker(clock, TICK).watched


def test_the_time_is_monotonic_where_the_reactor_is_the_global_one():
    assert raw_clock(reactor) is time.monotonic
    # Twisted's reactors are not monotonic themselves, ours is.
    assert Ticker(reactor, TICK).watched == (reactor.seconds is not time.monotonic)


def test_a_reactor_that_is_monotonic_itself_needs_no_watchdog(monkeypatch):
    class Monotonic(Clock):
        seconds = staticmethod(time.monotonic)

    monkeypatch.setitem(sys.modules, "twisted.internet.reactor", Monotonic())

    assert not Ticker(sys.modules["twisted.internet.reactor"], TICK).watched


def test_a_reactor_with_no_timer_yet_is_made_monotonic_and_one_with_timers_is_left_alone():
    fresh, busy = Clock(), Clock()
    call = busy.callLater(1, lambda: None)

    make_monotonic(fresh)
    make_monotonic(busy)

    assert fresh.seconds is time.monotonic
    assert busy.seconds() == 0
    call.cancel()


def test_sleep_is_the_machines_for_the_global_reactor_and_else_what_the_reactor_says():
    machine = Machine()

    assert sleep_clock(reactor) is slept
    assert sleep_clock(machine)() == machine.slept() == 0
    assert sleep_clock(Clock())() == 0


@pytest.mark.parametrize("tells", [True, False], ids=["the platform tells", "the platform does not tell"])
def test_sleep_is_counted_in_seconds_of_which_only_differences_mean_anything(monkeypatch, tells):
    if not tells:
        monkeypatch.delattr(time, "CLOCK_BOOTTIME")

    assert slept() - slept() == pytest.approx(0, abs=1)


# The tick.


def test_the_tick_lives_from_the_first_connection_to_the_last(clock):
    ticks = []
    ticker = Ticker(clock, TICK, on_tick=ticks.append)
    assert clock.calls == []

    ticker.enter()
    ticker.enter()
    pump(clock, 1)
    ticker.leave()
    pump(clock, 1)
    assert len(ticks) == 8

    ticker.leave()
    assert clock.calls == []
    pump(clock, 1)
    assert len(ticks) == 8


def test_what_lay_between_two_uses_was_no_stall(clock):
    ticker = Ticker(clock, TICK)
    ticker.enter()
    pump(clock, 1)
    ticker.leave()
    clock.advance(3600)

    ticker.enter()
    assert (ticker.running.stalls, ticker.running.late) == (0, 0)
    assert ticker.now() == 3601
    ticker.leave()


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


def test_a_tick_that_fails_tells(clock, failures):
    """It is a bug of ours, and must not pass in silence."""

    def fail(now):
        raise ZeroDivisionError

    ticker = Ticker(clock, TICK, on_tick=fail)
    ticker.enter()
    pump(clock, 1)

    assert len(failures.flush(ZeroDivisionError)) == 1
    ticker.leave()
    ticker.enter()
    ticker.leave()


def test_a_tick_that_ends_the_last_connection_ends_itself(clock):
    ticker = Ticker(clock, TICK, on_tick=lambda now: ticker.leave())
    ticker.enter()

    pump(clock, 1)

    assert clock.calls == []


def test_a_tick_in_which_the_last_connection_leaves_and_another_enters_goes_on_as_one(clock):
    def change(now):
        ticker.leave()
        ticker.enter()

    ticker = Ticker(clock, TICK, on_tick=change)
    ticker.enter()
    pump(clock, 2)

    assert len(clock.calls) == 1
    ticker.leave()


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


# Sleep.


def test_a_machine_that_slept_is_told_of_once():
    world, woken = World(), []
    ticker = Ticker(world.client, TICK, on_wake=woken.append)
    ticker.enter()
    world.advance(10)
    assert woken == []

    world.sleep(3600)
    world.advance(3610)

    # Its clock stood still meanwhile.
    assert woken == [pytest.approx(10, abs=TICK)]
    assert ticker.now() == pytest.approx(20, abs=TICK)
    ticker.leave()
    assert world.delayed_calls == []


def test_a_nap_is_not_worth_mentioning():
    world, woken = World(), []
    ticker = Ticker(world.client, TICK, on_wake=woken.append)
    ticker.enter()
    world.sleep(1.5)
    world.advance(10)

    assert woken == []
    ticker.leave()


def test_sleep_before_the_first_connection_is_nobodys():
    world, woken = World(), []
    ticker = Ticker(world.client, TICK, on_wake=woken.append)
    world.sleep(3600)
    world.advance(3610)
    ticker.enter()
    world.advance(1)

    assert woken == []
    ticker.leave()


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
        ticker._ticked()

    assert len(ticker._turning) == 1


def test_however_long_more_come_due_than_can_look_they_all_look_in_the_end(ticker, clock):
    entries = [Slow(clock, []) for _ in range(600)]
    for number, entry in enumerate(entries):
        ticker.wheel.arm(entry, number // 2 * TICK)
    for _ in range(300):
        clock.rightNow += TICK
        ticker._ticked()
    assert sum(len(entry.looks) for entry in entries) < 600

    clock.advance(0)

    assert [len(entry.looks) for entry in entries] == [1] * 600


# A wall clock that steps, under a time that does not.


class Stepping(Clock):
    """A reactor on wall time that can be set; `monotonic` is not moved by that."""

    stepped = 0.0

    def monotonic(self):
        return self.rightNow - self.stepped

    def step(self, seconds):
        self.stepped += seconds
        self.rightNow += seconds


@pytest.fixture
def stepping():
    """A ticker that trusts the monotonic clock of a reactor that does not, with one alarm at 5."""
    clock, rung = Stepping(), []
    ticker = Ticker(clock, TICK)
    ticker.raw = clock.monotonic
    ticker.enter()
    Alarm(ticker, rung.append).arm(5)
    pump(clock, 1)
    yield clock, ticker, rung
    ticker.leave()
    assert clock.calls == []


def test_a_step_ahead_rings_nothing_early(stepping):
    clock, _, rung = stepping

    clock.step(3600)
    pump(clock, 3.5)
    assert rung == []
    pump(clock, 1)

    assert rung == [pytest.approx(5, abs=0.01)]


def test_a_step_back_buries_all_timers_until_they_are_set_anew(stepping, log):
    clock, ticker, rung = stepping
    turns = []
    ticker.turn(lambda: turns.append(ticker.now()))

    clock.step(-3600)
    pump(clock, 2.5)
    assert turns == []
    assert watchdog.late(ticker.ticked_at, clock.monotonic())

    ticker.poke()
    clock.advance(0)
    assert len(turns) == 1
    pump(clock, 6)
    assert len(rung) == 1
    assert clock.monotonic() < 10
    assert any("the system clock stepped back" in event["log_format"] for event in log if event.get("log_format"))


def test_a_reactor_that_was_merely_blocked_is_told_of_no_step(stepping, log):
    """The poke comes before the tick that is due, as calls of other threads do."""
    clock, ticker, rung = stepping
    clock.rightNow += 3
    calls = clock.getDelayedCalls()
    assert watchdog.late(ticker.ticked_at, clock.monotonic())

    ticker.poke()

    assert clock.getDelayedCalls() == calls
    assert not [event for event in log if "stepped back" in (event.get("log_format") or "")]
    pump(clock, 5)
    assert rung == [pytest.approx(5, abs=2 * TICK)]


def test_a_reactor_that_was_blocked_while_its_clock_stepped_back_is_revived(stepping):
    clock, ticker, rung = stepping
    clock.rightNow += 3
    clock.step(-3600)

    ticker.poke()
    pump(clock, 5)

    assert len(rung) == 1


def test_a_poke_that_comes_too_late_does_nothing(clock):
    ticker = Ticker(clock, TICK)
    ticker.enter()
    ticker.leave()

    ticker.poke()

    assert clock.calls == []


def test_a_poke_revives_a_tick_that_has_failed(clock, failures):
    fails = [True]

    def tick(now):
        if fails.pop():
            raise ZeroDivisionError
        fails.append(False)

    ticker = Ticker(clock, TICK, on_tick=tick)
    ticker.enter()
    pump(clock, 1)
    fails.append(False)
    failures.flush(ZeroDivisionError)

    ticker.poke()
    pump(clock, 1)

    assert ticker.ticked_at == 2
    ticker.leave()
