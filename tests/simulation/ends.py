"""Both kinds of process: the server with its chat, and the clients; and what their applications do with messages.

All of it is the project's own but the frames (sockets.py) and the reactor (machines.py). What handlers do is chance.
"""

from math import inf
from random import Random

from disks import DiskStore, QuickDisk
from sockets import ClientSocket, ServerSocket
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError

from heartbeat.chat import Chat
from heartbeat.client import HeartbeatClient
from heartbeat.core.errors import SessionFull
from heartbeat.factory import HeartbeatServerFactory


class Intended(Exception):
    """A handler fails on purpose."""


def store_of(process, disk):
    """What a process has of its disk: nothing where there is none."""
    if disk is None:
        return None
    if isinstance(disk, QuickDisk):
        return disk.memory
    world = process.world
    return DiskStore(world, process.machine, disk, world.slowness, Random(f"{world.seed} disk {process.name}"))


class Process:
    """What both kinds have in common. `next_seq` and `busy` are the ledger's: what it expects of this life."""

    def __init__(self, world, name, machine, disk):
        self.world = world
        self.name = name
        self.machine = machine
        self.disk = disk
        self.chance = Random(f"{world.seed} process {name}")
        self.ended = False
        #: While it stops, what has come of that; None before.
        self.stopped = None
        self.next_seq = {}
        self.busy = set()
        self.store = store_of(self, disk)
        machine.forget_time()

    def begun(self, shared):
        """What its connections share is made."""
        self.shared = shared
        self.machine.process = self
        self.machine.plan = self.plan if self.is_server or self.device.access.rate else None
        self.world.ledger.begins(self)
        shared.sessions.ended.insert(0, lambda channel, error: self.world.ledger.session_ends(self, channel, error))

    @property
    def channels(self):
        """Its sessions that live."""
        return tuple(self.shared.sessions.channels.values())

    @property
    def patience(self):
        """Seconds that stopping may take: a closing handshake, or its timeout, and what is asked of the disk."""
        return self.world.settings.close_timeout + 2 * self.world.settings.tick + 8 * self.world.slowness

    def has_stopped(self):
        """Whether it has, as it should: in time, and with nothing left."""
        claim, asked_at = self.world.claim, self._asked_at
        stood, _ = self.machine.stood(asked_at, self.world.now, timers=True)
        claim(self.stopped or self.world.now - asked_at - stood <= self.patience + 0.01, self.name, "never stops")
        if not self.stopped:
            return False
        shared = self.shared
        left = [
            *self.machine.calls,
            *shared.ticker.alarms,
            *shared.ticker.wheel._slots,
            *shared.edges,
            *shared.sessions.channels,
        ]
        claim(not left, self.name, "has stopped, and has", *left)
        return True

    def _is_asked_to_stop(self):
        self._asked_at = self.world.now
        self.stopped = []

    def kill(self, *, late):
        """It ends without a word, and what it had asked of its disk may reach that `late`."""
        self.ended = True
        if isinstance(self.store, DiskStore):
            self.store.crash(late=late)
        self.machine.kill()

    # What its application does.

    def handle(self, handling, message):
        """A message is to be handled: perhaps slowly, perhaps in vain, perhaps with an answer."""
        world, chance, mood = self.world, self.chance, self.world.mood
        key = world.ledger.handled(self, handling, message)
        if message["type"] == "error":
            return self._finished(handling, key, None, False)
        reply = None
        if message.get("reply"):
            reply = world.ledger.new_number()
            try:
                handling.reply({"type": "m", "id": reply})
            except SessionFull:
                reply = None
        fails = chance.random() < mood["fail"]
        if chance.random() >= mood["slow"]:
            return self._finished(handling, key, reply, fails)
        self.busy.add(handling.sid)
        later = Deferred()

        def finish(_):
            if self.ended:
                return
            self.busy.discard(handling.sid)
            try:
                later.callback(self._finished(handling, key, reply, fails))
            except Intended:
                later.errback()

        # It waits for somebody else: a timer of its own would go by the reactor's clock, which may be the wall's.
        world.later(mood["longest"] * chance.random() ** 3, lambda _: self.machine.deliver(finish, None))
        return later

    def _finished(self, handling, key, reply, fails):
        self.world.ledger.finished(self, handling, key, reply, fails)
        if fails:
            raise Intended


class ServerFactory(HeartbeatServerFactory):
    """The server's. What it announces is looked into by the oracle."""

    protocol = ServerSocket
    process = None

    def clientJoined(self, client_id):
        self.process.world.oracle.joined(client_id)

    def clientLeft(self, client_id):
        self.process.world.oracle.left(client_id)

    def sessionLost(self, client_id, error):
        self.process.world.ledger.told(self.process, error)


class Server(Process):
    """One process of the server."""

    is_server = True

    def __init__(self, world, name, machine, disk):
        super().__init__(world, name, machine, disk)
        self.factory = ServerFactory(world.settings, store=self.store, reactor=machine)
        self.factory.process = self
        shared = self.factory.heartbeat
        shared.spread = self.chance.random
        shared.new_client_id = lambda: f"c-{self.chance.getrandbits(64):016x}"
        shared.sessions._wall = machine.wall
        shared.gone.append(lambda edge: world.oracle.gone(edge.protocol))
        self.begun(shared)
        self.chat = Chat(self.factory)
        for kind in ("m", "error"):
            self.factory.register(kind, lambda protocol, message: self.handle(protocol.handling, message))
        chat = shared.handlers["onchat"]
        self.factory.register("onchat", lambda protocol, message: self._pass_on(chat, protocol, message))
        self.listens = True
        self.factory.doStart()

    def _pass_on(self, chat, protocol, message):
        # It is noted before; what becomes of it is the chat's affair, which takes no time.
        key = self.world.ledger.handled(self, protocol.handling, message)
        chat(protocol, message)
        self.world.ledger.finished(self, protocol.handling, key, None, False)

    def accept(self, transport):
        """The kernel has a connection for us."""
        if transport.connected:
            protocol = self.factory.buildProtocol(transport.getPeer())
            transport.protocol = protocol
            protocol.makeConnection(transport)

    def stop(self):
        """Stop as it should: connections are closed, and the sessions left in the store. `stopped` tells the end."""
        self.listens = False
        self._is_asked_to_stop()
        closed = self.factory.heartbeat.drain()
        closed.addCallback(lambda _: self.factory.heartbeat.sessions.stop())
        closed.addCallback(self.stopped.append)
        self.factory.doStop()

    def plan(self):
        """Have a tick come for real when something is due."""
        shared, machine = self.shared, self.machine
        if not machine.may_plan():
            return
        sessions = shared.sessions
        if sessions._lagging or sessions._full or (shared._awaiting and not shared._are_absent()):
            machine.plan_tick(-inf)
            return
        at, slots = inf, shared.ticker.wheel._slots
        if slots:
            at = min(slots[min(slots)].values())
        for channel in sessions._detached.values():
            at = min(at, channel.detached_at + self.world.settings.window)
            break
        if shared.presence._leaving:
            at = min(at, shared.presence._leaving[0][0])
        if at < inf:
            machine.plan_tick(at)

    def of(self, client_id):
        """A client's sessions."""
        return self.shared.sessions.of(client_id)


class Person(HeartbeatClient):
    """A client. Who is told that it gives up tries again after a while."""

    device = None
    process = None

    def linkChanged(self, status):
        if status.event == "unreachable":
            self.device.gave_up(status)

    def sessionLost(self, error):
        self.process.world.ledger.told(self.process, error)

    def startService(self):
        self.before = self._session.channel
        super().startService()

    def _connect(self):
        # What was sent before its file was read goes out in the session that was found there.
        before, self.before = self.before, None
        if before is not None:
            self.process.world.ledger.moved(self.process, before, self._session.channel)
        super()._connect()


class Client(Process):
    """One process of a client."""

    is_server = False

    def __init__(self, world, name, device):
        self.device = device
        super().__init__(world, name, device.machine, device.disk)
        self.client = client = Person(
            "ws://test/ws",
            settings=device.settings,
            reactor=self.machine,
            endpoint=_Endpoint(self),
            session=self.store,
            chance=self.chance.random,
        )
        client.device, client.process = device, self
        client._factory.protocol = ClientSocket
        self.begun(client._factory.heartbeat)
        for kind in ("m", "error", "onchat"):
            client.register(kind, lambda client, message: self.handle(client.handling, message))
        client.startService()

    def plan(self):
        """Have a tick come for real when something is due."""
        if self.shared.sessions._lagging:
            self.machine.plan_tick(-inf)

    @property
    def channel(self):
        """Its session, or what waits for one."""
        return self.client._session.channel

    def stop(self):
        """Stop as it should; `stopped` tells the end."""
        self._is_asked_to_stop()
        self.client.stopService().addCallback(self.stopped.append)


class _Endpoint:
    """Connects to whatever process of the server is there."""

    def __init__(self, process):
        self._process = process
        self._world = process.world

    def connect(self, factory):
        """IStreamClientEndpoint: connect, when the network has let us."""
        deferred = Deferred()
        access = self._process.device.access
        self._world.later(access.delay, self._arrived, (factory, deferred))
        return deferred

    def _arrived(self, what):
        world, device = self._world, self._process.device
        _, deferred = what
        if deferred.called or self._process.ended:
            return
        if world.now < device.down_until or world.server_is_off:
            # SYN is sent again and again.
            world.later(0.5 + 2.5 * world.chance.random(), self._arrived, what)
            return
        server = world.server
        if server is None or not server.listens:
            world.later(device.access.delay, self._refused, what)
            return
        line = world.new_line(device, server.machine)
        # As a kernel does: the client is connected, whether or not the server has the time to accept.
        server.machine.deliver(server.accept, line.server)
        world.later(device.access.delay, self._accepted, (*what, line))

    def _refused(self, what):
        self._process.machine.deliver(self._fail, what[1])

    def _fail(self, deferred):
        if not (deferred.called or self._process.ended):
            deferred.errback(ConnectError(string="refused"))

    def _accepted(self, what):
        if self._process.ended:
            what[2].client.vanish(silently=False)
        else:
            self._process.machine.deliver(self._complete, what)

    def _complete(self, what):
        factory, deferred, line = what
        if deferred.called or self._process.ended:
            line.client.vanish(silently=False)
            return
        if not line.client.connected:
            # It broke before anybody had it.
            self._fail(deferred)
            return
        client = factory.buildProtocol(line.address)
        line.client.protocol = client
        client.makeConnection(line.client)
        deferred.callback(client)
