"""Plain pages: they ping and judge the answers as a page of fifteen lines does, and some of them are hidden.

Nothing of the project runs in them; they are there so that the server has all kinds of company.
"""

from lines import CLOSE, PING, PONG, TEXT, UPGRADE, UPGRADED

#: How often a page pings; how often the timers of a hidden one come; how long it waits for an answer.
INTERVAL, HIDDEN, PATIENCE = 6.0, 60.0, 10.0


class Page:
    """One page in one browser; comes back for as long as it `is_open`."""

    def __init__(self, world, device):
        self.world = world
        self.device = device
        self.machine = device.machine
        self.is_open = True
        self.is_hidden = False
        self._transport = None
        self._pings = 0
        self._waits_since = None
        self._timer = None

    # A protocol, as far as a transport knows.

    def dataReceived(self, frame):
        """A frame has come."""
        kind, payload = frame
        if kind == UPGRADED:
            if self.device.number % 2:
                self._transport.write((TEXT, b'{"type":"onopen"}'))
            self._ping()
        elif kind == PING:
            # A browser does that, whatever its page does.
            self._transport.write((PONG, payload))
        elif kind == TEXT and b'"status":"pong"' in payload:
            self._waits_since = None
        elif kind == CLOSE:
            self._transport.write((CLOSE, payload[:2]))

    def connectionLost(self, reason):
        """The connection is gone."""
        self._transport = self._waits_since = None
        if self.is_open:
            self._set_timer(1.0 + 4.0 * self.world.chance.random(), self.connect)

    # The page.

    def connect(self):
        """Connect, again and again until somebody is there."""
        self._set_timer(PATIENCE, self.connect)
        self.world.later(self.device.access.delay, self._arrived)

    def _arrived(self, _):
        world, server = self.world, self.world.server
        if self._transport is not None or not self.is_open or world.now < self.device.down_until:
            return
        if server is None or not server.listens or world.server_is_off:
            return
        line = world.new_line(self.device, server.machine)
        self._transport = line.client
        line.client.protocol = self
        server.machine.deliver(server.accept, line.server)
        world.later(self.device.access.delay, self._made, line.client)

    def _made(self, transport):
        self.machine.deliver(self._begin, transport)

    def _begin(self, transport):
        if transport is self._transport:
            self._set_timer(PATIENCE, self._give_up)
            transport.write((UPGRADE, b""))

    def _ping(self):
        now = self.machine.monotonic()
        if self._waits_since is None:
            self._waits_since = now
        elif now - self._waits_since > PATIENCE:
            self._give_up()
            return
        self._pings += 1
        self._transport.write((TEXT, b'{"type":"ping","n":%d}' % self._pings))
        self._set_timer(HIDDEN if self.is_hidden else INTERVAL, self._ping)

    def _give_up(self):
        self._set_timer(0.0, None)
        self._transport.abortConnection()

    def _set_timer(self, seconds, then):
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None if then is None else self.machine.callLater(seconds, then)

    def close(self):
        """Somebody closes it."""
        self.is_open = False
        self._set_timer(0.0, None)
        if self._transport is not None:
            self._transport.write((CLOSE, (1001).to_bytes(2, "big")))
            self._transport.loseConnection()
