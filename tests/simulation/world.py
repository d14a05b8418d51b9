"""One world: a server, many clients, the lines between them, one clock and one chance. The same seed is the same life.

Time goes from event to event. After each of them what it touched is looked at: whatever an end says of its link, a
handler that is called, a Deferred that fires; the register of the server whenever its counts have changed. After
every LOOK_EVERY events besides, in turns, the whole register with the books of what is kept, and every timer of one
process. Whatever is wrong is told with the seed, and with what shows it again.
"""

import gc
import random
import zlib
from collections import Counter, deque
from contextlib import contextmanager
from heapq import heappop, heappush
from struct import Struct
from unittest.mock import patch

from devices import Device, PageDevice
from disks import Disk, QuickDisk, late_writes
from ends import Intended, Server
from ledger import Ledger
from lines import Line
from machines import Machine
from oracle import Oracle
from twisted.logger import LogLevel, globalLogPublisher
from weather import Weather

from heartbeat.core.errors import StoreError
from heartbeat.core.settings import Settings

_AS_BYTES = Struct("<d").pack

#: After so many steps one process is looked through, each in its turn; the server as often as all the others.
LOOK_EVERY = 64

#: Virtual seconds of one life, and how many clients and plain pages there are in it.
A_LIFE = 1800.0
CLIENTS = 16
PAGES = 2


class Finding(AssertionError):
    """Something that must not be: with the seed, and with how to see it again."""


class World:
    """The world of one seed."""

    def __init__(self, seed, *, clients=CLIENTS, life=A_LIFE):
        self.seed = seed
        self.life = life
        self._clients = clients
        self.chance = chance = random.Random(f"world {seed}")
        self.heap = []
        self.order = 0
        self.now = 0.0
        self.steps = 0
        self.round_trips = 0
        self.touched = None
        self.problem = None
        self.seen = Counter()
        self.story = deque(maxlen=40)
        self.mood = {"slow": 0.0, "fail": 0.0, "longest": 1.0}
        self._digest = 0
        self._failures = []
        self._names = random.Random(f"names {seed}")

        self.settings = self._settings()
        self.keeping = chance.choice(("memory", "disk", "disk", "quick"))
        self.slowness = chance.choice((0.002, 0.05, 0.5))
        self.disks = []
        self.server = None
        self.server_is_off = False
        self.server_lives = 0
        self.lines = {}
        #: Sessions of which somebody made a copy.
        self.copied = set()
        self.oracle = Oracle(self)
        self.ledger = Ledger(self)
        self._lines = 0
        self._looks = 0
        self.server_machine = Machine(self, "server")
        self.server_machine.stock = chance.random() < 0.5
        with self._named():
            self.server_disk = self._disk(self.keeping)
            # Some have two.
            self.devices = [self._device(number, f"p{number - (number % 5 == 4)}") for number in range(clients)]
        #: The machines of plain pages.
        self.pages = [PageDevice(self, 200 + number) for number in range(PAGES)]
        self.weather = Weather(self)

    def _device(self, number, person):
        return Device(self, number, person, self._disk(self.chance.choice(("memory", "memory", "disk", "quick"))))

    def _settings(self):
        chance = self.chance
        low, high, probe = chance.choice(((3.0, 6.0, 3.0), (3.0, 6.0, 3.0), (3.0, 6.0, 3.0), (1.5, 3.0, 1.5)))
        return Settings(
            interval=chance.choice((6.0, 6.0, 6.0, 6.0, 6.0, 2.0, 15.0)),
            timeout_min=low,
            timeout_max=high,
            probe=probe,
            tick=chance.choice((0.2, 0.2, 0.2, 0.1)),
            schedule=chance.choice(("answer", "answer", "answer", "fixed")),
            beats=chance.choice((None, None, None, "server", "both", "none")),
            kept_limit=chance.choice((1000, 1000, 12)),
            full_patience=chance.choice((30.0, 30.0, 10.0)),
            drain_timeout=0.0,
            trust_client_ids=True,
            fast_path=False,
        )

    def client_settings(self, person):
        """A client's settings: the server's, and what it wishes of its own."""
        ours, chance = self.settings, self.chance
        return Settings(
            timeout_min=ours.timeout_min,
            timeout_max=ours.timeout_max,
            probe=ours.probe,
            tick=ours.tick,
            schedule=ours.schedule,
            interval=ours.interval,
            beats=chance.choice((None, None, None, "server", "both")),
            client_id=person,
            kept_limit=chance.choice((1000, 12)),
        )

    def _disk(self, keeping):
        disk = {"memory": lambda: None, "disk": Disk, "quick": QuickDisk}[keeping]()
        if disk is not None:
            self.disks.append(disk)
        return disk

    # Time.

    def later(self, seconds, happen, what=None):
        """Have `happen(what)` called after so many seconds of true time."""
        self.order += 1
        heappush(self.heap, (self.now + seconds, self.order, happen, what))

    def live(self, until):
        """Let everything happen that happens by then."""
        heap, server, counts_changed = self.heap, self.server_machine, self.oracle.counts_changed
        while heap and heap[0][0] <= until:
            self.now, _, happen, what = heappop(heap)
            self.touched = None
            happen(what)
            self.steps = steps = self.steps + 1
            if self.problem is not None or self._failures:
                self._tell()
            touched = self.touched
            if touched is not None and touched.plan is not None and not touched.paused:
                touched.plan()
                if touched is server and counts_changed(self.server):
                    self.oracle.scan_presence(self.server)
            if not steps % LOOK_EVERY:
                self._look_through()
        self.now = until

    def _look_through(self):
        self.ledger.check()
        self._looks += 1
        if self._looks % 2:
            machine = self.server_machine
            if machine.process is not None and not machine.paused:
                self.oracle.scan_presence(machine.process)
        else:
            machine = self.devices[self._looks // 2 % len(self.devices)].machine
        if machine.process is not None and not machine.paused:
            self.oracle.scan_timers(machine.process)

    def trace(self, mark, frame):
        """A frame has arrived: it is part of the digest of this life."""
        self._digest = zlib.crc32(mark + frame[1] + _AS_BYTES(self.now), self._digest)

    @property
    def digest(self):
        """What stands for all that happened."""
        return f"{self._digest:08x}-{self.steps}-{self.round_trips}"

    # What it says.

    def note(self, *what):
        """Remember what was done, for whoever reads a finding."""
        self.story.append((round(self.now, 3), *what))

    def claim(self, holds, *what):
        """It must hold, however deep we are."""
        if not holds:
            self.problem = Finding(self._said(" ".join(map(str, what))))
            raise self.problem

    @property
    def _options(self):
        """What to say besides, to see it again, where it is not as usual."""
        life = "" if self.life == A_LIFE else f" --life {self.life:g}"
        return life if self._clients == CLIENTS else f"{life} --clients {self._clients}"

    def _said(self, what):
        story = "\n  ".join(" ".join(map(str, one)) for one in self.story)
        return (
            f"seed {self.seed} at {self.now:.3f} s: {what}\n"
            f"again by: python -m tests.simulation --seed {self.seed}{self._options}, digest {self.digest}\n  {story}"
        )

    def _tell(self):
        if self.problem is not None:
            raise self.problem
        failure = self._failures[0].get("log_failure")
        text = failure.getTraceback() if failure is not None else str(self._failures[0])
        raise Finding(self._said(f"a failure was logged: {text}"))

    def _observe(self, event):
        if event.get("log_level") is LogLevel.critical or event.get("isError"):
            failure = event.get("log_failure")
            if failure is None or not failure.check(Intended):
                self._failures.append(event)

    # Ends and lines.

    def clients(self):
        """The processes of clients that run."""
        return [device.process for device in self.devices if device.process is not None]

    def start_server(self, _=None):
        """A process of the server begins."""
        self.server_is_off = False
        self.server_lives += 1
        self.oracle.present.clear()
        self.server = Server(self, f"server.{self.server_lives}", self.server_machine, self.server_disk)

    def server_is_over(self):
        """It has ended: the ledger looks at what it left."""
        process, self.server = self.server, None
        self.server_machine.process = self.server_machine.plan = None
        self.ledger.is_gone(process)

    def copy(self, device, seconds):
        """A copy of this client's disk is made, and after so many seconds another client begins with it."""
        disk = device.disk.copy()
        self.disks.append(disk)
        self.copied.update(head.sid for head in disk.heads())
        copy = Device(self, len(self.devices), device.person, disk)
        self.devices.append(copy)
        self.later(seconds, copy.start)
        self.weather.lives(copy)

    def new_line(self, device, server):
        """A connection is made."""
        self._lines += 1
        line = Line(self, self._lines, device, server, device.machine)
        self.lines[line] = None
        return line

    def vanish(self, machine, *, silently):
        """The process on a machine is gone, and with it its ends of all lines."""
        for line in tuple(self.lines):
            for end in line.ends:
                if end.machine is machine:
                    end.vanish(silently=silently)

    def refuse_late(self, disk, sid):
        """Somebody has taken over a session: what its former owner had asked for comes too late."""
        for name, result in late_writes(disk, sid):
            self.seen["late writes"] += 1
            self.claim(isinstance(result, StoreError), "a late", name, "of a former process was carried out:", result)

    # Its life.

    def run(self):
        """The whole life, to its end; returns the world."""
        with self._at_work():
            self.start_server()
            for device in self.devices:
                self.later(5.0 * self.chance.random(), device.start)
            for device in self.pages:
                device.page.connect()
            self.weather.begin()
            self.live(self.life)
            self.weather.settle()
        return self

    @contextmanager
    def _named(self):
        """Names that nobody guesses come from the seed."""

        def name():
            return f"{self._names.getrandbits(64):016x}"

        with (
            patch("heartbeat.admission.new_sid", name),
            patch("heartbeat.store.new_epoch", name),
            patch("heartbeat.tables.new_epoch", name),
        ):
            yield

    @contextmanager
    def _at_work(self):
        """Whatever is raised, or logged as a failure, is a finding."""
        globalLogPublisher.addObserver(self._observe)
        # What nobody knows of any more is looked for at the end of a life: to look all the time takes a tenth of it.
        gc.disable()
        try:
            with self._named():
                yield
            gc.collect()
            if self._failures:
                self._tell()
        except Finding:
            raise
        except Exception as error:
            if self.problem is not None:
                raise self.problem from error
            raise Finding(self._said(f"{type(error).__name__}: {error}")) from error
        finally:
            gc.enable()
            globalLogPublisher.removeObserver(self._observe)
            for disk in self.disks:
                disk.close()
