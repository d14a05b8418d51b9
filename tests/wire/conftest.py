"""What the tests on the wire share: two machines in memory, and what must be true after every one of them."""

import gc
import threading

import peers
import pytest
import redis_server
import txaio
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher

from heartbeat.client import HeartbeatClient
from heartbeat.core.settings import Settings
from heartbeat.factory import HeartbeatServerFactory
from heartbeat.testing import World

txaio.use_twisted()


class Failures(list):
    """The failures that were logged, and not expected."""

    def __call__(self, event):
        if "log_failure" in event or event.get("isError") or event.get("log_level") is LogLevel.critical:
            self.append(event)

    def flush(self, kind):
        """Those of this kind, which were expected."""
        found, others = [], []
        for event in self:
            failure = event.get("log_failure")
            if failure is not None:
                (found if failure.check(kind) else others).append(failure.value)
        # A Deferred that is collected announces its failure by an event without one.
        self[:] = others
        return found


@pytest.fixture(autouse=True)
def failures():
    """No test logs a failure that it did not expect, and none leaves a thread."""
    failures = Failures()
    globalLogPublisher.addObserver(failures)
    yield failures
    # A Deferred that failed and was forgotten tells when it is collected. What outlives a test (pytest's
    # own, and what was imported) is never looked at again, which makes this a matter of a millisecond.
    gc.collect()
    gc.freeze()
    globalLogPublisher.removeObserver(failures)
    assert failures == []
    assert [thread.name for thread in threading.enumerate() if thread.name == "heartbeat-watchdog"] == []


@pytest.fixture
def clock():
    """A reactor of our own; nothing is left on it in the end."""
    clock = Clock()
    yield clock
    assert clock.calls == []


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    """A Redis that nothing befalls."""
    with redis_server.RedisServer(tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture
def own(tmp_path):
    """A Redis of one's own, that forgets nothing."""
    (tmp_path / "own").mkdir()
    safe = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")
    with redis_server.RedisServer(tmp_path / "own", *safe) as redis:
        yield redis


@pytest.fixture
def gather(redis, tmp_path, monkeypatch):
    """Have a fleet of so many servers; in the end all stop, and nothing of theirs is left."""
    # Not with this file: txredisapi imports the reactor, and which one that is has not been chosen yet.
    from fleet import Fleet

    from heartbeat.cluster import redis as way
    from heartbeat.cluster import sessions, subscription

    monkeypatch.setattr(subscription, "_AGAIN", 0.02)
    monkeypatch.setattr(way, "_LAST", 0.05)
    monkeypatch.setattr(sessions, "_AGAIN", 0.05)
    turns = redis_server.Turns()
    made = []

    def gather(number=2, *, redis=redis, **options):
        fleet = Fleet(redis, tmp_path, turns, **options)
        made.append(fleet)
        return fleet, *(fleet.node() for _ in range(number))

    yield gather
    for fleet in made:
        fleet.close()
    turns.rest()


@pytest.fixture
def log():
    """All sentences that are logged."""
    events = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


@pytest.fixture
def world(monkeypatch):
    """Two machines and the network. In the end all connections close, and no timer is left."""
    world = World()
    # Autobahn's own timers, where a factory is not ours, follow this and not the factory's reactor.
    monkeypatch.setattr(txaio.config, "loop", world.server)
    yield world
    world.close()
    # txaio's batched timers are never taken back; those of a closing handshake last a second.
    world.advance(10)
    if world.delayed_calls:
        # A factory that is not ours is never told that it stopped: it waits for its sessions' windows to end.
        world.advance(125)
    assert world.delayed_calls == []


@pytest.fixture
def serve(world):
    """Have the server machine listen: with our own factory, and its protocol replaced where one is given."""

    def serve(protocol=None, factory=HeartbeatServerFactory, **settings):
        options = {name: settings.pop(name) for name in ("site", "paths") if name in settings}
        made = factory(Settings(**settings), reactor=world.server, **options)
        if protocol is not None:
            made.protocol = protocol
        world.listen(made)
        return made

    return serve


@pytest.fixture
def connect(world):
    """A new peer of bytes, connected."""
    return lambda: peers.connect(world)


@pytest.fixture
def still_serves(connect):
    """That the server answers a newcomer as ever."""

    def still_serves():
        newcomer = connect().open()
        newcomer.say({"type": "ping", "n": 1})
        assert newcomer.messages[-1].items() >= {"type": "ping", "n": 1, "status": "pong"}.items()
        newcomer.leave()
        assert newcomer.closed_with == 1000

    return still_serves


class Recorder(HeartbeatClient):
    """A client that keeps what it was told."""

    def __init__(self, *arguments, **keywords):
        self.told = []
        self.pongs = []
        self.asked = 0
        self.messages = []
        super().__init__(*arguments, **keywords)

    def linkChanged(self, status):
        self.told.append(status)

    def pongReceived(self, rtt, clients):
        self.pongs.append((rtt, clients))

    def pingReceived(self):
        self.asked += 1

    def messageReceived(self, message):
        self.messages.append(message)

    @property
    def events(self):
        """The events, in order."""
        return [status.event for status in self.told]

    def all(self, event):
        """The statuses of this event."""
        return [status for status in self.told if status.event == event]


@pytest.fixture
def make_client(world):
    """A client of the world's server, not started; stopped in the end."""
    made = []

    def make_client(
        url="ws://test/ws", *, cls=Recorder, chance=lambda: 0.5, endpoint=None, protocols=(), token=None, **settings
    ):
        client = cls(
            url,
            settings=Settings(**settings),
            reactor=world.client,
            endpoint=endpoint or world.endpoint(),
            protocols=protocols,
            token=token,
            chance=chance,
        )
        made.append(client)
        return client

    yield make_client
    for client in made:
        client.stopService()


@pytest.fixture
def start_client(make_client, world):
    """A client that was started, and had the time to open."""

    def start_client(*arguments, **keywords):
        client = make_client(*arguments, **keywords)
        client.startService()
        world.advance(0.2)
        return client

    return start_client
