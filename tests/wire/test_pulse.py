"""One tick for all ends of a process: from the first who needs it to the last, whatever befalls it."""

import gc
import sys
import time
from weakref import ref

import pytest
from twisted.internet import reactor
from twisted.internet.task import Clock

from heartbeat import HeartbeatClient, watchdog
from heartbeat.pulse import Pulse, make_monotonic, slept
from heartbeat.testing import Machine, World
from heartbeat.ticker import Alarm, Ticker

TICK = 0.25


class End:
    """Notes when it was told of a tick and of a sleep; `then` is called with each tick."""

    def __init__(self, then=None):
        self.ticks = []
        self.wakes = []
        self.then = then

    def ticked(self, now):
        self.ticks.append(now)
        if self.then is not None:
            self.then()

    def woke(self, now):
        assert len(self.ticks) == round(now / TICK) - 1, "told after the tick"
        self.wakes.append(now)

    def set_anew(self):
        return 0


@pytest.fixture
def pulse(clock):
    return Pulse.of(clock, TICK)


def pump(clock, seconds):
    """Let time pass as a reactor does that is never late."""
    for _ in range(round(seconds / TICK)):
        clock.advance(TICK)


# Which clock.


def test_the_time_is_that_of_a_reactor_that_was_passed_in(clock):
    clock.advance(5)
    pulse = Pulse(clock, TICK)

    assert pulse.raw() == pulse.running.at(pulse.raw()) == 5
    assert not pulse.watched


def test_the_time_is_monotonic_where_the_reactor_is_the_global_one():
    pulse = Pulse(reactor, TICK)

    assert pulse.raw is time.monotonic
    # Twisted's reactors are not monotonic themselves, ours is.
    assert pulse.watched == (reactor.seconds is not time.monotonic)


def test_a_reactor_that_is_monotonic_itself_needs_no_watchdog(monkeypatch):
    class Monotonic(Clock):
        seconds = staticmethod(time.monotonic)

    monkeypatch.setitem(sys.modules, "twisted.internet.reactor", Monotonic())

    assert not Pulse(sys.modules["twisted.internet.reactor"], TICK).watched


def test_a_reactor_with_no_timer_yet_is_made_monotonic_and_one_with_timers_is_left_alone():
    fresh, busy = Clock(), Clock()
    call = busy.callLater(1, lambda: None)

    make_monotonic(fresh)
    make_monotonic(busy)

    assert fresh.seconds is time.monotonic
    assert busy.seconds() == 0
    call.cancel()


@pytest.mark.parametrize("tells", [True, False], ids=["the platform tells", "the platform does not tell"])
def test_sleep_is_counted_in_seconds_of_which_only_differences_mean_anything(monkeypatch, tells):
    if not tells:
        monkeypatch.delattr(time, "CLOCK_BOOTTIME")

    assert slept() - slept() == pytest.approx(0, abs=1)


def test_a_sleep_is_this_machines_for_the_global_reactor_and_else_what_the_reactor_says():
    machine = Machine()

    assert Pulse(reactor, TICK)._slept is slept
    assert Pulse(machine, TICK)._slept == machine.slept
    assert Pulse(Clock(), TICK)._slept() == 0


# One for all.


def test_all_ends_of_a_reactor_with_the_same_tick_have_one_and_another_tick_is_another(clock):
    pulse = Pulse.of(clock, TICK)

    assert Pulse.of(clock, TICK) is pulse
    assert Pulse.of(clock, 2 * TICK) is not pulse
    assert Pulse.of(Clock(), TICK) is not pulse


def test_nothing_is_kept_of_one_that_nobody_has_any_more():
    """A reactor's identity may be another's, once it is gone."""
    clock = Clock()
    gone, key = ref(clock), (id(clock), TICK)
    ticker = Ticker(clock, TICK)
    ticker.enter()
    ticker.leave()
    assert Pulse._known[key] is ticker.pulse

    del clock, ticker
    gc.collect()

    assert gone() is None
    assert key not in Pulse._known


def test_a_hundred_clients_have_one_timer_for_the_tick():
    world = World()
    clients = [HeartbeatClient("ws://a.example", reactor=world.client, endpoint=world.endpoint()) for _ in range(100)]
    for client in clients:
        client.startService()

    loops = [call for call in world.client.calls if call.func is clients[0]._ticker.pulse._loop]
    assert len(loops) == 1
    assert len({client._ticker.pulse for client in clients}) == 1

    for client in clients:
        client.stopService()
    world.advance(1)
    assert world.delayed_calls == []


def test_a_stall_is_one_of_all_ends(clock):
    one, other = Ticker(clock, TICK), Ticker(clock, TICK)
    one.enter()
    other.enter()
    pump(clock, 1)

    clock.advance(10)

    assert one.running.stalls == other.running.stalls == 1
    assert one.now() == other.now() == pytest.approx(1, abs=2 * TICK)
    one.leave()
    other.leave()


# The tick.


def test_the_tick_lives_from_the_first_end_to_the_last(clock, pulse):
    one, two = End(), End()
    assert clock.calls == []

    pulse.join(one)
    pulse.join(two)
    pump(clock, 1)
    pulse.leave(one)
    pump(clock, 1)
    assert (len(one.ticks), len(two.ticks)) == (4, 8)

    pulse.leave(two)
    assert clock.calls == []
    pump(clock, 1)
    assert len(two.ticks) == 8


def test_what_lay_between_two_uses_was_no_stall(clock, pulse):
    end = End()
    pulse.join(end)
    pump(clock, 1)
    pulse.leave(end)
    clock.advance(3600)

    pulse.join(end)
    assert (pulse.running.stalls, pulse.running.late) == (0, 0)
    assert pulse.running.at(pulse.raw()) == 3601
    pulse.leave(end)


def test_a_tick_tells_how_late_it_was(clock, pulse):
    end = End()
    pulse.join(end)
    pump(clock, 1)
    assert pulse.late == 0

    clock.advance(3 * TICK)
    # It makes up for none of them.
    assert (pulse.late, len(end.ticks)) == (2 * TICK, 5)

    pump(clock, TICK)
    assert pulse.late == 0
    pulse.leave(end)


def test_an_end_whose_tick_fails_is_told_of_and_the_others_have_theirs(clock, pulse, failures):
    """It is a bug of ours, and must not pass in silence; nor must it cost anybody his timers."""

    def fail():
        raise ZeroDivisionError

    ends = [End(), End(fail), End()]
    for end in ends:
        pulse.join(end)
    pump(clock, 1)

    assert [len(end.ticks) for end in ends] == [4, 4, 4]
    assert len(failures.flush(ZeroDivisionError)) == 4
    for end in ends:
        pulse.leave(end)


def test_a_tick_that_fails_itself_is_told_of_and_can_be_revived(failures):
    class Failing(Clock):
        def slept(self):
            return 0 / self.works

    clock = Failing()
    clock.works = 1
    pulse, end = Pulse(clock, TICK), End()
    pulse.join(end)
    pump(clock, 1)

    clock.works = 0
    pump(clock, 1)
    assert len(failures.flush(ZeroDivisionError)) == 1
    assert len(end.ticks) == 4
    clock.works = 1

    # As the watchdog does who finds that it fails to come.
    pulse.poke()
    pump(clock, 1)

    assert len(end.ticks) == 8
    pulse.leave(end)


def test_who_leaves_within_a_tick_before_its_turn_has_none(clock, pulse):
    last = End()
    first = End(lambda: pulse.leave(last))
    pulse.join(first)
    pulse.join(last)

    clock.advance(TICK)

    assert (len(first.ticks), len(last.ticks)) == (1, 0)
    pulse.leave(first)


def test_a_tick_in_which_the_last_end_leaves_ends_itself(clock, pulse):
    end = End(lambda: pulse.leave(end))
    pulse.join(end)

    pump(clock, 1)

    assert len(end.ticks) == 1
    assert clock.calls == []


def test_a_tick_in_which_the_last_end_leaves_and_another_comes_goes_on_as_one(clock, pulse):
    def change():
        pulse.leave(end)
        pulse.join(end)

    end = End(change)
    pulse.join(end)
    pump(clock, 2)

    assert len(clock.calls) == 1
    assert len(end.ticks) == 8
    pulse.leave(end)


# Sleep.


@pytest.fixture
def woken():
    """Two machines in memory; and when an end on the client's was told that this has slept."""
    world, woken = World(), []
    ticker = Ticker(world.client, TICK, on_wake=woken.append)
    return world, ticker, woken


def test_a_machine_that_slept_is_told_of_once(woken):
    world, ticker, woken = woken
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


def test_a_nap_is_not_worth_mentioning(woken):
    world, ticker, woken = woken
    ticker.enter()
    world.sleep(1.5)
    world.advance(10)

    assert woken == []
    ticker.leave()


def test_sleep_before_the_first_end_is_nobodys(woken):
    world, ticker, woken = woken
    world.sleep(3600)
    world.advance(3610)
    ticker.enter()
    world.advance(1)

    assert woken == []
    ticker.leave()


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
    """The monotonic time of a reactor that has wall time; two ends go by it, each with an alarm at 5."""
    clock, rung = Stepping(), []
    tickers = [Ticker(clock, TICK), Ticker(clock, TICK)]
    for ticker in tickers:
        ticker.enter()
        Alarm(ticker, rung.append).arm(5)
    pump(clock, 1)
    yield clock, tickers[0], rung
    for ticker in tickers:
        ticker.leave()
    assert clock.calls == []


def test_a_step_ahead_rings_nothing_early(stepping):
    clock, _, rung = stepping

    clock.step(3600)
    pump(clock, 3.5)
    assert rung == []
    pump(clock, 1)

    assert rung == [pytest.approx(5, abs=0.01)] * 2


def test_a_step_back_buries_all_timers_until_they_are_set_anew(stepping, log):
    clock, ticker, rung = stepping
    turns = []
    ticker.turn(lambda: turns.append(ticker.now()))

    clock.step(-3600)
    pump(clock, 2.5)
    assert turns == []
    assert watchdog.late(ticker.pulse.ticked_at, clock.monotonic())

    ticker.pulse.poke()
    clock.advance(0)
    assert len(turns) == 1
    pump(clock, 6)
    assert len(rung) == 2
    assert clock.monotonic() < 10
    (said,) = [event for event in log if "stepped back" in (event.get("log_format") or "")]
    # The tick's, and the alarms of both ends.
    assert said["count"] == 3


def test_a_reactor_that_was_merely_blocked_is_told_of_no_step(stepping, log):
    """The poke comes before the tick that is due, as calls of other threads do."""
    clock, ticker, rung = stepping
    clock.rightNow += 3
    calls = clock.getDelayedCalls()
    assert watchdog.late(ticker.pulse.ticked_at, clock.monotonic())

    ticker.pulse.poke()

    assert clock.getDelayedCalls() == calls
    assert not [event for event in log if "stepped back" in (event.get("log_format") or "")]
    pump(clock, 5)
    assert rung == [pytest.approx(5, abs=2 * TICK)] * 2


def test_a_reactor_that_was_blocked_while_its_clock_stepped_back_is_revived(stepping):
    clock, ticker, rung = stepping
    clock.rightNow += 3
    clock.step(-3600)

    ticker.pulse.poke()
    pump(clock, 5)

    assert len(rung) == 2


def test_a_poke_that_comes_too_late_does_nothing(clock, pulse):
    end = End()
    pulse.join(end)
    pulse.leave(end)

    pulse.poke()

    assert clock.calls == []
