"""Machines on one heap: the clocks and timers of each process, its stalls, its sleep, and the steps of its wall clock.

A machine is the reactor of what runs on it, without being one: `seconds`, `callLater`, and nothing else. The ticks of
its process (heartbeat/pulse.py), at most of which nothing is due, are made up for when somebody asks for the time,
which comes to the same (tests/core/test_running.py); a simulated day would else be ticks for the most part. One at
which something is due, or that is late, comes for real.
"""

from heapq import heappush
from math import ceil, inf

from twisted.internet.task import LoopingCall

from heartbeat.pulse import Pulse

#: A tick that is late by this many seconds is looked into (heartbeat/watchdog.py).
WATCHDOG = 2.0

_GRAIN = 1e-6


class Call:
    """A timer that is set."""

    __slots__ = ("args", "at", "due", "func", "is_set", "kw", "machine")

    def __init__(self, machine, func, args, kw):
        self.machine = machine
        self.func = func
        self.args = args
        self.kw = kw
        self.is_set = True
        #: When it comes due: by the machine's own clock, and by true time.
        self.due = self.at = 0.0

    def __repr__(self):
        return f"{self.func} at {self.at}"

    def getTime(self):
        """IDelayedCall: when it comes due, by the machine's own clock."""
        return self.due

    def active(self):
        """IDelayedCall: whether it is yet to come."""
        return self.is_set

    def cancel(self):
        """IDelayedCall: have it not come."""
        assert self.is_set, "cancelled, and was no more"
        self.is_set = False
        self.machine.forget(self)


class Machine:
    """The clocks of one machine, and the timers of what runs on it.

    `stock`: its timers go by the wall clock, as those of Twisted's own reactors do, and a watchdog pokes them
    when that has stepped back.
    """

    #: Whether ticks are made up for; without, every one of them comes.
    makes_up = True

    def __init__(self, world, name):
        self.world = world
        self.name = name
        self.stock = False
        #: What runs here; and what is called after each step of its.
        self.process = self.plan = None
        self.calls = {}
        self.paused = False
        #: When it stood still; and when its timers did, because its wall clock had stepped back.
        self.pauses = []
        self.frozen = []
        self.woken_at = -1.0
        self.asleep = 0.0
        self._stepped = 0.0
        self._tick = None
        self._planned_at = inf
        self._inbox = []
        # Which pause is the present one: that of a process that was killed meanwhile is over; and which process.
        self._pause = self._life = 0
        self._buried_since = inf

    # Clocks.

    def monotonic(self):
        """Seconds that nobody sets. They stand still while the machine sleeps."""
        assert not self.paused, "asked for the time while it stands still"
        now = self.world.now
        tick = self._tick
        if tick is not None and tick.at <= now:
            self._make_up(tick, 1 + int((now - tick.at) / tick.func.interval))
        return now - self.asleep

    def wall(self):
        """Seconds as the wall clock has them."""
        return self.world.now + self._stepped

    def seconds(self):
        """IReactorTime: what timers go by."""
        return self.wall() if self.stock else self.monotonic()

    def slept(self):
        """Seconds slept so far."""
        return self.asleep

    def _make_up(self, tick, count):
        """So many ticks have passed at which nothing was due."""
        interval, pulse = tick.func.interval, tick.func.f.__self__
        last = tick.at + (count - 1) * interval
        tick.at = last + interval
        tick.due += count * interval
        pulse.ticked_at = last - self.asleep
        pulse.running.resume(last - self.asleep)

    # Timers.

    def callLater(self, seconds, func, *args, **kw):
        """IReactorTime: set a timer."""
        call = Call(self, func, args, kw)
        now = self.world.now
        if 0 < seconds < _GRAIN:
            # True time moves on, however large its numbers are beside those of the machine's own clock.
            seconds = _GRAIN
        call.due = (now + self._stepped if self.stock else self.monotonic()) + seconds
        call.at = now + seconds
        self.calls[call] = None
        if self.makes_up and type(func) is LoopingCall:
            self._tick = call
            self._planned_at = inf
        else:
            self._push(call)
        return call

    def forget(self, call):
        """A timer was taken back."""
        self.calls.pop(call, None)
        if self._tick is call:
            self._tick = None

    def may_plan(self):
        """Whether there is a tick that does not come for real as it is."""
        tick = self._tick
        return tick is not None and self._planned_at - self.world.now > tick.func.interval

    def plan_tick(self, at):
        """Something is due at this running time: the first tick after it is to come for real."""
        tick = self._tick
        if tick is None:
            return
        # What ticks there were until now are made up for.
        self.monotonic()
        late = at + tick.func.f.__self__.running.late + self.asleep - tick.at
        interval = tick.func.interval
        at = tick.at if late <= 0 else tick.at + ceil(late / interval) * interval
        if at < self._planned_at:
            self._planned_at = at
            self.world.later(at - self.world.now, self._tick_comes, tick)

    def _tick_comes(self, tick):
        if tick is not self._tick or self.paused:
            return
        self._planned_at = inf
        self.world.touched = self
        passed = round((self.world.now - tick.at) / tick.func.interval)
        if passed < 0:
            # Somebody has asked for the time at this very moment, and it was made up for.
            return
        if passed:
            self._make_up(tick, passed)
        self._tick = None
        self._run(tick)

    def tick_for_real(self):
        """The next tick is to come for real."""
        tick, self._tick = self._tick, None
        if tick is not None:
            self._push(tick)

    def _push(self, call):
        world = self.world
        world.order += 1
        heappush(world.heap, (call.at, world.order, self._come, call))

    def _come(self, call):
        # It may have been taken back, or been put off.
        if call.is_set and call.at == self.world.now and not self.paused:
            self._run(call)

    def _run(self, call):
        call.is_set = False
        del self.calls[call]
        self.world.touched = self
        call.func(*call.args, **call.kw)

    def forget_time(self):
        """A new process begins here: it knows of no pulse but its own."""
        for key in [key for key in Pulse._known if key[0] == id(self)]:
            del Pulse._known[key]

    # What befalls it.

    def deliver(self, step, what):
        """Have something read from a socket: now, or when the machine goes on, and then after the timers."""
        if self.paused:
            self._inbox.append((step, what))
        else:
            self.world.touched = self
            step(what)

    def stall(self, seconds):
        """The process stands still: neither timers nor sockets."""
        self._stand(seconds, 0.0)

    def sleep(self, seconds):
        """The machine sleeps: so do its monotonic clock and all that goes by it."""
        self._stand(seconds, seconds)

    def _stand(self, seconds, slept):
        assert not self.paused
        # The ticks until now did come.
        self.monotonic()
        self.paused = True
        self._pause += 1
        now = self.world.now
        self.pauses.append((now, now + seconds))
        self.world.later(seconds, self._wake, (self._pause, slept))

    def _wake(self, what):
        pause, slept = what
        if pause != self._pause:
            return
        self.paused = False
        if slept:
            self.asleep += slept
            self.woken_at = self.world.now
            if not self.stock:
                self._put_off(slept)
            # Whether it slept is seen with the tick.
            self.tick_for_real()
        self._turn()

    def _turn(self):
        """One turn of the reactor: the timers that are due, without those that they set, then what has arrived."""
        now = self.world.now
        due = sorted((call for call in self.calls if call.at <= now), key=lambda call: call.at)
        if self._tick is not None and self._tick.at <= now:
            # It comes now, and late: nobody may make up for it.
            self._tick = None
        for call in due:
            if call.is_set:
                self._run(call)
        inbox, self._inbox = self._inbox, []
        for step, what in inbox:
            self.world.touched = self
            step(what)

    def _put_off(self, seconds):
        """All timers come so much later, or earlier; in true time."""
        now = self.world.now
        for call in self.calls:
            call.at = max(now, call.at + seconds)
            if call is not self._tick:
                self._push(call)

    def step_clock(self, seconds):
        """Somebody sets the wall clock."""
        self._stepped += seconds
        if not self.stock or self.process is None:
            return
        self.monotonic()
        self.tick_for_real()
        self._put_off(-seconds)
        if seconds < -WATCHDOG:
            # All wait until the watchdog finds out, which looks once a second.
            self._buried_since = min(self._buried_since, self.world.now)
            self.world.later(WATCHDOG + self.world.chance.random(), self._look_if_buried, self._life)
        elif seconds < 0:
            self.frozen.append((self.world.now, self.world.now - seconds))

    def _look_if_buried(self, life):
        if life != self._life or self._buried_since == inf:
            return
        if self.paused:
            self.world.later(1.0, self._look_if_buried, life)
            return
        self.world.touched = self
        pulse = self.process.shared.ticker.pulse
        if self.monotonic() - pulse.ticked_at > WATCHDOG:
            pulse.poke()
        self._unbury()

    def _unbury(self):
        if self._buried_since < inf:
            self.frozen.append((self._buried_since, self.world.now))
            self._buried_since = inf

    def kill(self):
        """What runs here ends, and hears of nothing any more."""
        for call in self.calls:
            call.is_set = False
        self.calls.clear()
        self._inbox.clear()
        self._tick = None
        self._pause += 1
        self._life += 1
        self._unbury()
        if self.paused:
            self.paused = False
            self.pauses[-1] = (self.pauses[-1][0], self.world.now)

    # The truth.

    def spans(self, *, timers):
        """From when to when it stood still, or (`timers`) they did."""
        return (*self.pauses, *self.frozen, (self._buried_since, inf)) if timers else self.pauses

    def stood(self, since, until, *, timers=False):
        """Seconds between two moments in which it stood still, or its timers did; and how often."""
        total, times = 0.0, 0
        for begun, ended in self.spans(timers=timers):
            overlap = min(ended, until) - max(begun, since)
            if overlap > 0:
                total += overlap
                times += 1
        return total, times
