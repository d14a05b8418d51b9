"""The thread that notices a reactor whose timers are buried: pokes once a missing tick, and ends when unneeded."""

import threading
import time

import pytest
from twisted.internet import reactor

from heartbeat import watchdog
from heartbeat.ticker import Ticker

#: Nothing here takes a second; this bounds what hangs.
PATIENCE = 10


class Late:
    """A ticker that has ticked `ago` seconds ago; counts the looks at that, and the pokes."""

    def __init__(self, ago):
        self._ticked_at = time.monotonic() - ago
        self.looks = 0
        self.pokes = 0
        self.looked = threading.Event()
        self.poked = threading.Event()
        self.reactor = self

    @property
    def ticked_at(self):
        self.looks += 1
        if self.looks > 5:
            self.looked.set()
        return self._ticked_at

    def tick(self):
        self.looks = 0
        self.looked.clear()
        self.poked.clear()
        self._ticked_at += 1

    def callFromThread(self, call):
        assert threading.current_thread().name == "heartbeat-watchdog"
        call()

    def poke(self):
        self.pokes += 1
        self.poked.set()


def threads():
    """The watchdog's threads: one at most."""
    return [thread for thread in threading.enumerate() if thread.name == "heartbeat-watchdog"]


@pytest.fixture
def watch(monkeypatch):
    """Have tickers watched, by a watchdog that looks more often; in the end the thread is gone."""
    monkeypatch.setattr(watchdog, "PATIENCE", 0.01)
    watched = []

    def watch(ticker):
        watchdog.watch(ticker)
        watched.append(ticker)
        return ticker

    yield watch
    for ticker in watched:
        watchdog.unwatch(ticker)
    for thread in threads():
        thread.join(PATIENCE)


def test_a_tick_is_late_after_two_seconds():
    assert not watchdog.late(100.0, 100.0)
    assert not watchdog.late(100.0, 102.0)
    assert watchdog.late(100.0, 102.1)


def test_a_late_tick_is_poked_once_from_the_thread(watch):
    late = watch(Late(ago=60))

    assert late.poked.wait(PATIENCE)
    assert late.looked.wait(PATIENCE)
    assert late.pokes == 1


def test_each_missing_tick_is_poked_for(watch):
    late = watch(Late(ago=60))
    assert late.poked.wait(PATIENCE)

    late.tick()

    assert late.poked.wait(PATIENCE)
    assert late.looked.wait(PATIENCE)
    assert late.pokes == 2


def test_a_tick_that_comes_is_left_alone(watch):
    punctual = watch(Late(ago=-3600))

    assert punctual.looked.wait(PATIENCE)
    assert punctual.pokes == 0


def test_there_is_one_thread_for_all_and_it_ends_with_the_last(watch):
    one, two = watch(Late(ago=-3600)), watch(Late(ago=-3600))
    (thread,) = threads()
    assert thread.daemon
    assert one.looked.wait(PATIENCE)
    assert two.looked.wait(PATIENCE)

    watchdog.unwatch(one)
    two.tick()
    assert two.looked.wait(PATIENCE)
    assert threads() == [thread]

    watchdog.unwatch(two)
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_it_starts_again_when_it_is_needed_again(watch):
    watchdog.unwatch(watch(Late(ago=-3600)))
    for thread in threads():
        thread.join(PATIENCE)

    again = watch(Late(ago=60))

    assert again.poked.wait(PATIENCE)


def test_a_ticker_on_the_global_reactor_is_watched_as_long_as_it_is_needed(monkeypatch):
    # As Twisted's reactors have it, and ours has not.
    monkeypatch.setattr(reactor, "seconds", time.time)
    ticker = Ticker(reactor, 0.2)
    ticker.enter()
    (thread,) = threads()

    ticker.leave()
    thread.join(PATIENCE)

    assert not thread.is_alive()
    assert ticker.pulse._loop.call is None
