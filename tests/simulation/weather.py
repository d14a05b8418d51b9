"""What happens in a world, by chance: the deeds of its people, its troubles; and how it comes to rest."""

from troubles import ClientsTroubles, ServersTroubles

#: Seconds between two things that befall one client, between two that befall the server, between two deeds of a
#: person; on the average.
CLIENTS_TROUBLE, SERVERS_TROUBLE, DEEDS = 300.0, 240.0, 150.0

#: Virtual seconds within which all comes to rest: the window of a session, and whatever was to happen before it began.
REST = 600.0


class Weather:
    """The fate of one world."""

    def __init__(self, world):
        self.world = world
        self.chance = world.chance
        self.is_calm = False
        self._clients = ClientsTroubles(world)
        self._servers = ServersTroubles(world)

    def begin(self):
        """From now on things happen."""
        self._servers.mood()
        for device in self.world.devices:
            self.lives(device)
        self._next(CLIENTS_TROUBLE / len(self.world.devices), self._befalls)
        self._next(SERVERS_TROUBLE, self._befalls_server)

    def lives(self, device):
        """Somebody does something with this machine now and then."""
        self._next(DEEDS, self._does, device)

    def _next(self, seconds, happens, what=None):
        self.world.later(self.chance.expovariate(1 / seconds), happens, what)

    # What people do.

    def _does(self, device):
        if self.is_calm:
            return
        self.lives(device)
        kind, count = self.chance.random(), self.chance.choice((1, 1, 1, 2, 2, 8))
        if kind < 0.25:
            self._is_told(device.person, count)
        elif device.process is not None and not device.machine.paused and device.process.client.running:
            self._says(device.process, kind < 0.55, count)

    def _is_told(self, person, count):
        """The server's application tells somebody something."""
        world, server = self.world, self.world.server
        if server is None or not server.listens or server.machine.paused:
            return
        world.touched = server.machine
        for _ in range(count):
            channels = server.of(person)
            if channels:
                channel = self.chance.choice(channels)
                world.ledger.send(server, channel, channel.send)

    def _says(self, process, to_server, count):
        """Somebody says something: to the server, or to somebody who may not exist."""
        world = self.world
        world.touched = process.machine
        for _ in range(count):
            to = None if to_server else f"p{self.chance.randrange(len(world.devices) + 1)}"
            world.ledger.send(process, process.channel, process.client.send, to=to)

    # What befalls them.

    def _befalls(self, _):
        world = self.world
        if self.is_calm:
            return
        self._next(CLIENTS_TROUBLE / len(world.devices), self._befalls)
        device = self.chance.choice((*world.devices, *world.pages))
        kind = self._one_of(self._clients)
        world.touched = device.machine
        if getattr(self._clients, kind)(device):
            world.seen[kind] += 1
            world.note(device.name, kind)

    def _befalls_server(self, _):
        world, server = self.world, self.world.server
        if self.is_calm:
            return
        self._next(SERVERS_TROUBLE, self._befalls_server)
        kind = self._one_of(self._servers)
        if server is not None and server.listens and not server.machine.paused:
            world.touched = server.machine
            world.seen["server", kind] += 1
            world.note("server", kind)
            getattr(self._servers, kind)()

    def _one_of(self, troubles):
        (kind,) = self.chance.choices(tuple(troubles.WEIGHTS), tuple(troubles.WEIGHTS.values()))
        return kind

    # The end.

    def settle(self):
        """No more trouble: all that was sent in a session that lives is handled and confirmed, and nothing is left."""
        world = self.world
        self.is_calm = True
        world.mood = dict.fromkeys(world.mood, 0.0)
        until = world.now + REST
        while world.now < until and self._unsettled():
            world.live(world.now + 5.0)
        unsettled = self._unsettled()
        world.claim(not unsettled, "does not come to rest:", *unsettled)
        world.ledger.settled()
        self._stop()

    def _unsettled(self):
        world = self.world
        if world.server is None or not world.server.listens or world.server_machine.paused:
            return ["the server is not there"]
        away = [device.name for device in world.devices if device.process is None or device.machine.paused]
        away += [device.name for device in world.pages if device.machine.paused]
        return away or world.ledger.unsettled()[:10]

    def _stop(self):
        """All clients stop, and the server: nobody keeps anything."""
        world = self.world
        for device in world.pages:
            device.page.close()
        for device in world.devices:
            device.process.stop()
        world.live(world.now + max(device.process.patience for device in world.devices))
        for device in world.devices:
            world.claim(device.process.has_stopped(), device.name, "does not stop")
        server = world.server
        server.stop()
        server.plan()
        world.live(world.now + server.patience)
        world.claim(server.has_stopped(), "the server does not stop")
        world.claim(not world.lines, "nobody is there, and there are lines:", *world.lines)
