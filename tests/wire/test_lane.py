"""Those who were slowed down are read from one after the other, all together at the pace of ten."""

from itertools import pairwise

import pytest
from twisted.internet.task import Clock

from heartbeat.lane import Lane
from heartbeat.ticker import Ticker

TICK = 0.01
RATE = 20
# All together may send as ten may, and a twentieth of a second's worth of it at once.
TOGETHER = 10 * RATE
AT_ONCE = TOGETHER // 20


class Talker:
    """Somebody who was slowed down: at each turn it sends so many messages, and waits again if it may."""

    def __init__(self, road, sends=0, *, again=False):
        self.road, self.sends, self.again = road, sends, again
        self.turns = []

    def go_on(self):
        now = self.road.ticker.now()
        self.turns.append(now)
        self.road.order.append(self)
        self.road.lane.take(now, self.sends)
        if self.again:
            self.wait()

    def wait(self):
        self.road.lane.wait(self, self.road.ticker)


class Road:
    """A lane, and the clock by which it goes."""

    def __init__(self):
        self.clock = Clock()
        self.ticker = Ticker(self.clock, TICK)
        self.ticker.enter()
        self.lane = Lane(RATE)
        self.order = []

    def run(self, seconds):
        for _ in range(round(seconds / TICK)):
            self.clock.advance(TICK)


@pytest.fixture
def road():
    """A lane of a server; in the end nobody waits, and no timer is left."""
    road = Road()
    yield road
    assert len(road.lane) == 0
    road.ticker.leave()
    road.clock.advance(0)
    assert road.clock.calls == []


def test_who_waits_goes_on_and_waits_no_more(road):
    talker = Talker(road)
    talker.wait()
    assert len(road.lane) == 1

    road.run(1)

    assert len(talker.turns) == 1
    assert len(road.lane) == 0


def test_each_goes_on_at_a_turn_of_its_own_in_the_order_in_which_they_came(road):
    """In between the others are read from, who keep to their pace."""
    talkers = [Talker(road) for _ in range(8)]
    for talker in talkers:
        talker.wait()
    road.run(1)

    assert road.order == talkers
    turns = [talker.turns[0] for talker in talkers]
    assert min(later - sooner for sooner, later in pairwise(turns)) >= TICK * 0.99


def test_who_asks_twice_waits_once(road):
    talker = Talker(road)
    talker.wait()
    talker.wait()
    road.run(1)

    assert len(talker.turns) == 1


def test_who_leaves_is_not_told_and_the_next_one_is(road):
    gone, next_one = Talker(road), Talker(road)
    gone.wait()
    next_one.wait()
    road.lane.left(gone)
    road.lane.left(gone)
    road.run(1)

    assert gone.turns == []
    assert len(next_one.turns) == 1


def test_a_lane_that_all_have_left_is_at_rest(road):
    talker = Talker(road)
    talker.wait()
    road.lane.left(talker)
    road.run(1)
    assert talker.turns == []

    talker.wait()
    road.run(1)
    assert len(talker.turns) == 1


@pytest.mark.parametrize("sends", [0, 3, 20])
@pytest.mark.parametrize("count", [2, 50])
def test_all_together_send_as_ten_may_and_each_has_as_many_turns_as_any_other(road, count, sends):
    talkers = [Talker(road, sends, again=True) for _ in range(count)]
    for talker in talkers:
        talker.wait()
    road.run(20)

    turns = [len(talker.turns) for talker in talkers]
    assert max(turns) - min(turns) <= 1
    # A turn costs a message, whether or not one comes; the last one's are owed when it was given.
    cost = sum(turns) * (sends + 1)
    assert cost <= 20 * TOGETHER + AT_ONCE + sends + 1
    # No turn is lost to waiting: either the pace is spent, or there was one at each step.
    assert cost >= 0.9 * min(20 * TOGETHER, 20 / TICK * (sends + 1) * 0.5)
    for talker in talkers:
        talker.again = False
    road.run(20)
