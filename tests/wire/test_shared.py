"""What the connections of a factory have in common, made on demand, and announced to it."""

import re

import pytest
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketServerFactory
from twisted.internet.task import Clock

from heartbeat import HeartbeatServerFactory
from heartbeat.core.settings import Settings
from heartbeat.shared import ClientShared, ServerShared


class Factory:
    """Any factory; keeps what it is told."""

    def __init__(self, settings=None):
        self.reactor = Clock()
        self.told = []
        if settings is not None:
            self.heartbeat_settings = settings

    def clientJoined(self, client_id):
        self.told.append(("joined", client_id))

    def clientLeft(self, client_id):
        self.told.append(("left", client_id))


@pytest.mark.parametrize("kind", [ServerShared, ClientShared])
def test_it_is_made_once_for_each_factory_with_the_factorys_settings_or_the_defaults(kind):
    one, two = Factory(Settings(interval=2.0)), Factory()

    assert kind.of(one) is kind.of(one)
    assert kind.of(one) is not kind.of(two)
    assert kind.of(one).settings.interval == 2.0
    assert kind.of(two).settings == Settings()
    assert kind.of(one).ticker.reactor is one.reactor
    assert one.reactor.calls == []


def test_it_is_made_for_autobahns_own_factories(world):
    server = WebSocketServerFactory(reactor=world.server)
    client = WebSocketClientFactory("ws://test/", reactor=world.client)

    assert ServerShared.of(server).presence.connections == 0
    assert ClientShared.of(client).edges == set()


def test_client_ids_are_ours_and_each_is_new():
    ids = {ServerShared.new_client_id() for _ in range(1000)}

    assert len(ids) == 1000
    assert all(re.fullmatch("c-[0-9a-f]{16}", client_id) for client_id in ids)


def test_first_pings_are_spread():
    spreads = [ServerShared.spread() for _ in range(1000)]

    assert all(0 <= spread < 1 for spread in spreads)
    assert max(spreads) - min(spreads) > 0.9


def test_joins_and_leaves_are_announced_to_a_factory_that_cares():
    factory = Factory()
    shared = ServerShared.of(factory)

    shared.joined("alice")
    shared.left("alice")

    assert factory.told == [("joined", "alice"), ("left", "alice")]


def test_a_factory_that_does_not_care_is_not_told():
    factory = Factory()
    factory.clientJoined = factory.clientLeft = None
    shared = ServerShared.of(factory)

    shared.joined("alice")
    shared.left("alice")


def test_an_announcement_that_fails_is_logged_and_nobody_else_is_the_worse_for_it(serve, connect, world, failures):
    class Fails(HeartbeatServerFactory):
        def clientJoined(self, client_id):
            raise ZeroDivisionError

        def clientLeft(self, client_id):
            raise ZeroDivisionError

    serve(factory=Fails)
    page = connect().open()
    page.say({"type": "ping"})
    assert page.messages[0]["clients"] == 1
    assert len(failures.flush(ZeroDivisionError)) == 1

    page.leave()
    assert len(failures.flush(ZeroDivisionError)) == 1
    world.advance(1)
    assert world.server.calls == []


# Absence.


@pytest.fixture
def told():
    """What a server of ours announced."""
    return []


@pytest.fixture
def server(serve, told):
    """A server that announces who joins and who leaves."""

    class Announces(HeartbeatServerFactory):
        def clientJoined(self, client_id):
            told.append(("joined", client_id))

        def clientLeft(self, client_id):
            told.append(("left", client_id))

    return serve(factory=Announces)


def alice(connect):
    """A session of hers."""
    page = connect().open()
    page.say({"type": "onopen", "v": 1, "client_id": "alice"})
    return page


def test_while_an_absence_is_to_be_announced_the_tick_goes_on_and_then_ends(server, connect, world, told):
    alice(connect).leave(1001)
    world.advance(39.5)
    assert told == [("joined", "alice")]
    assert len(world.server.calls) == 1

    world.advance(1)
    assert told == [("joined", "alice"), ("left", "alice")]
    assert world.server.calls == []


def test_whoever_comes_back_in_time_was_never_gone(server, connect, world, told):
    alice(connect).leave(1001)
    world.advance(30)
    again = alice(connect)
    for _ in range(10):
        again.say({"type": "ping"})
        world.advance(5)
    assert told == [("joined", "alice")]

    again.leave()
    assert told == [("joined", "alice"), ("left", "alice")]


def test_several_absences_share_the_tick(server, connect, world, told):
    for name in ("alice", "bob"):
        page = connect().open()
        page.say({"type": "onopen", "v": 1, "client_id": name})
        page.leave(1001)
        world.advance(10)
    assert len(world.server.calls) == 1

    world.advance(41)
    assert told[2:] == [("left", "alice"), ("left", "bob")]
    assert world.server.calls == []


def test_a_server_that_stops_waits_for_nobody(server, connect, world, told):
    alice(connect).leave(1001)
    server.doStop()

    assert world.server.calls == []
    server.doStart()
    assert told == [("joined", "alice")]


def test_a_server_that_stops_does_not_wait_for_those_yet_to_close_either(server, connect, world):
    page = alice(connect)
    server.doStop()
    page.leave(1001)
    world.advance(1)

    assert world.server.calls == []
    server.doStart()


def test_a_server_that_starts_again_waits_as_before(server, connect, world, told):
    server.doStop()
    server.doStart()
    alice(connect).leave(1001)
    world.advance(41)

    assert told == [("joined", "alice"), ("left", "alice")]


# A client's.


def test_every_connection_hears_of_sleep(world):
    shared = ClientShared.of(WebSocketClientFactory("ws://test/", reactor=world.client))
    heard = []

    class Sleeper:
        woke = staticmethod(heard.append)

    shared.edges.add(Sleeper())
    shared.ticker.enter()
    world.sleep(60)
    world.advance(61)

    assert len(heard) == 1
    shared.ticker.leave()
