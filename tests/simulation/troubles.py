"""What may befall a client or a plain page, and the server: each a method, which returns whether anything happened.

Nothing befalls a machine that stands still, but what befalls its lines.
"""

from disks import DiskStore
from lines import ConnectionLost

#: Steps of a wall clock, in seconds.
STEPS = (-3600.0, -5.0, -1.0, -0.1, 0.1, 1.0, 3600.0)


class _Troubles:
    def __init__(self, world):
        self.world = world
        self.chance = world.chance

    def _some(self, *longest):
        """Seconds, up to one of these."""
        return self.chance.choice(longest) * self.chance.random()

    def _in_a_write(self, process, dies):
        """Have it die: now, or when it next writes something, unless all has come to rest by then."""

        def then():
            if not (process.ended or process.machine.paused or self.world.weather.is_calm):
                dies(process)

        if isinstance(process.store, DiskStore) and self.chance.random() < 0.7:
            process.store.when_busy(then)
        else:
            then()


class ClientsTroubles(_Troubles):
    """Those of one client, or of a page."""

    #: How likely each is next to the others.
    WEIGHTS = {  # noqa: RUF012  # never changed
        "cut": 6,
        "cut_up": 3,
        "cut_down": 3,
        "down": 5,
        "drop": 4,
        "outage": 8,
        "half_outage": 8,
        "unnoticed": 4,
        "unnoticed_there": 2,
        "stall": 8,
        "sleep": 5,
        "step": 4,
        "crash": 4,
        "vanish": 2,
        "restart": 3,
        "copy": 2,
        "hide": 4,
    }

    def _lines_of(self, device):
        return [line for line in self.world.lines if line.client.machine is device.machine]

    # Of its lines.

    def cut(self, device):
        """Nothing gets through any more, and nothing is said about it."""
        lines = self._lines_of(device)
        for line in lines:
            in_flight = self.chance.random() < 0.5
            for end in line.ends:
                end.cut(in_flight=in_flight)
        return bool(lines)

    def cut_up(self, device):
        """The same, towards the server only."""
        return self._cut_one(device, lambda line: line.client)

    def cut_down(self, device):
        """The same, from the server only."""
        return self._cut_one(device, lambda line: line.server)

    def _cut_one(self, device, end_of):
        lines = self._lines_of(device)
        for line in lines:
            end_of(line).cut(in_flight=self.chance.random() < 0.5)
        return bool(lines)

    def down(self, device):
        """The network is gone for a while: nor can anybody connect."""
        device.down_until = self.world.now + self._some(2.0, 10.0, 60.0, 200.0)
        return self.cut(device)

    def drop(self, device):
        """Both ends are told that it broke."""
        lines = self._lines_of(device)
        for line in lines:
            line.drop()
        return bool(lines)

    def outage(self, device):
        """For a while nothing gets through; then it all does."""
        seconds, lines = self._some(1.0, 5.0, 12.0, 40.0), self._lines_of(device)
        device.down_until = max(device.down_until, self.world.now + seconds)
        for line in lines:
            for end in line.ends:
                end.block(seconds)
        return bool(lines)

    def half_outage(self, device):
        """The same in one direction."""
        lines = self._lines_of(device)
        for line in lines:
            self.chance.choice(line.ends).block(self._some(1.0, 5.0, 12.0, 40.0))
        return bool(lines)

    def unnoticed(self, device):
        """The client sees its socket break, the server does not: it comes back before it is missed."""
        return self._break_one(device, lambda line: line.client)

    def unnoticed_there(self, device):
        """The server sees it break, the client does not."""
        return self._break_one(device, lambda line: line.server)

    def _break_one(self, device, end_of):
        lines = self._lines_of(device)
        for line in lines:
            for end in line.ends:
                end.cut(in_flight=False)
            broken = end_of(line)
            broken.machine.deliver(broken._lost, ConnectionLost())
        return bool(lines)

    # Of its machine.

    def stall(self, device):
        """It stands still."""
        if device.machine.paused:
            return False
        device.machine.stall(self._some(0.15, 1.0, 4.0, 10.0, 90.0))
        return True

    def sleep(self, device):
        """It sleeps."""
        if device.machine.paused:
            return False
        device.machine.sleep(self._some(1.5, 5.0, 60.0, 400.0))
        return True

    def step(self, device):
        """Somebody sets its wall clock."""
        if device.machine.paused:
            return False
        device.machine.step_clock(self.chance.choice(STEPS))
        return True

    # Of its process.

    def crash(self, device, *, silently=False):
        """It is killed, and the next one begins; its kernel resets the connections, unless it goes `silently`."""
        process = device.process
        if process is None or device.machine.paused or device.is_copied:
            return False
        self._in_a_write(process, lambda _: self._die(device, silently=silently))
        return True

    def vanish(self, device):
        """The same with all of its machine."""
        return self.crash(device, silently=True)

    def _die(self, device, *, silently):
        if device.is_copied:
            return
        device.process.kill(late=self.chance.random() < 0.5)
        self.world.vanish(device.machine, silently=silently)
        device.is_over()
        self.world.later(self._some(0.1, 5.0, 100.0), device.start)

    def restart(self, device):
        """It stops as it should, and the next one begins."""
        process = device.process
        if process is None or device.machine.paused or device.is_copied or not process.client.running:
            return False
        process.stop()
        self.world.later(process.patience, self._restarted, (device, process))
        return True

    def _restarted(self, what):
        device, process = what
        if process is not device.process:
            return
        if device.machine.paused or not process.has_stopped():
            self.world.later(1.0, self._restarted, what)
            return
        self.world.oracle.scan_timers(process)
        process.kill(late=False)
        self.world.vanish(device.machine, silently=False)
        device.is_over()
        self.world.later(self._some(0.0, 2.0, 50.0), device.start)

    def copy(self, device):
        """An old tab: somebody runs another client on a copy of this one's file."""
        if device.disk is None or device.process is None or not device.disk.heads() or device.is_copied:
            return False
        self.world.copy(device, self._some(10.0))
        return True

    def hide(self, device):
        """A page is hidden, or seen again."""
        if device.page is None:
            return False
        device.page.is_hidden = not device.page.is_hidden
        return True


class ServersTroubles(_Troubles):
    """Those of the server, while it is there."""

    WEIGHTS = {"stall": 10, "step": 4, "crash": 3, "off": 2, "restart": 3, "mood": 10}  # noqa: RUF012  # never changed

    def stall(self):
        """It stands still."""
        self.world.server_machine.stall(self._some(0.15, 1.0, 4.0, 10.0, 30.0))

    def step(self):
        """Somebody sets its wall clock."""
        self.world.server_machine.step_clock(self.chance.choice(STEPS))

    def mood(self):
        """All handlers, the clients' too, behave in another way from now on."""
        self.world.mood = {
            "slow": self.chance.choice((0.0, 0.0, 0.1, 0.5)),
            "fail": self.chance.choice((0.0, 0.0, 0.05, 0.3)),
            "longest": self.chance.choice((0.2, 2.0, 20.0)),
        }

    def crash(self, *, silently=False):
        """It is killed, and the next one begins with its store; `silently`: so is its machine."""
        self._in_a_write(self.world.server, lambda server: self._die(server, silently=silently))

    def off(self):
        """The same with all of its machine."""
        self.crash(silently=True)

    def _die(self, server, *, silently):
        world = self.world
        if not server.listens:
            return
        server.kill(late=self.chance.random() < 0.5)
        world.vanish(world.server_machine, silently=silently)
        world.server_is_off = silently
        world.server_is_over()
        world.later(self._some(0.1, 3.0, 30.0), world.start_server)

    def restart(self):
        """It stops as it should, and the next one begins with its store."""
        server = self.world.server
        server.stop()
        self.world.later(server.patience, self._restarted, server)

    def _restarted(self, server):
        world = self.world
        if server is not world.server:
            return
        if world.server_machine.paused or not server.has_stopped():
            world.later(1.0, self._restarted, server)
            return
        server.kill(late=False)
        world.server_is_over()
        world.later(self._some(0.0, 2.0, 10.0), world.start_server)
