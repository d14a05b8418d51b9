"""The machines of clients and of plain pages: how each is connected, and what runs on it."""

from typing import NamedTuple

from ends import Client
from machines import Machine
from plain_pages import Page


class Access(NamedTuple):
    """How a client is connected: its address; the delay one way, its jitter, the share of lost frames; its rate."""

    host: str
    delay: float
    jitter: float
    loss: float
    rate: float


class Device:
    """A client's machine, and the process that runs on it; None while none does."""

    def __init__(self, world, number, person, disk):
        chance = world.chance
        self.world = world
        self.number = number
        self.person = person
        self.name = f"device {number}"
        self.disk = disk
        self.access = Access(
            f"192.0.3.{number}",
            chance.choice((0.002, 0.02, 0.08, 0.25)),
            chance.choice((0.0, 0.005, 0.05, 0.1)),
            chance.choice((0.0, 0.0, 0.002, 0.02)),
            chance.choice((0.0, 0.0, 0.0, 4000.0)),
        )
        self.settings = world.client_settings(person)
        self.machine = Machine(world, self.name)
        self.machine.stock = chance.random() < 0.5
        self.down_until = 0.0
        self.line = None
        self.process = self.page = None
        self._lives = 0

    def start(self, _=None):
        """A process begins."""
        if self.machine.paused:
            self.world.later(1.0, self.start)
        elif self.process is None:
            self._lives += 1
            self.process = Client(self.world, f"{self.name}.{self._lives}", self)

    def is_over(self):
        """The process has ended: the ledger looks at what it left."""
        process, self.process = self.process, None
        self.machine.process = self.machine.plan = None
        self.world.ledger.is_gone(process)

    def gave_up(self, status):
        """Its client tries no more by itself; somebody will have it try again."""
        self.world.note(self.name, "gives up", status.detail)
        self.world.later(1.0 + 20.0 * self.world.chance.random(), self._retry, self.process)

    def _retry(self, process):
        if process is not self.process or process is None:
            return
        if self.machine.paused:
            self.world.later(1.0, self._retry, process)
            return
        self.world.touched = self.machine
        process.client.retry()

    @property
    def heard_at(self):
        """When it last heard of a server with which it had opened."""
        return 0.0 if self.line is None else self.line.read_at

    @property
    def is_copied(self):
        """Whether its session is one of which there is a copy: then its process must go on.

        What it kept and never wrote would count as written in the next one. This is the one thing that is not promised.
        """
        return self.disk is not None and any(head.sid in self.world.copied for head in self.disk.heads())


class PageDevice(Device):
    """The machine of a plain page."""

    def __init__(self, world, number):
        super().__init__(world, number, None, None)
        self.page = Page(world, self)
