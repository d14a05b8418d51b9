"""The factories of our own protocols: Autobahn's, with our defaults in place of theirs."""

import pytest
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.web.resource import Resource
from twisted.web.server import Site

from heartbeat import (
    HeartbeatClientFactory,
    HeartbeatClientProtocol,
    HeartbeatServerFactory,
    HeartbeatServerProtocol,
    Presence,
    Settings,
)

#: What Autobahn would do by itself, on timers that follow the wall clock and come due on whole seconds.
TIMERS = ("openHandshakeTimeout", "closeHandshakeTimeout", "autoPingInterval", "autoPingTimeout")


@pytest.fixture
def factory(world):
    """A server's, with the defaults."""
    return HeartbeatServerFactory(reactor=world.server)


def test_it_builds_our_protocols(factory, world):
    assert type(factory.buildProtocol(None)) is HeartbeatServerProtocol
    client = HeartbeatClientFactory("ws://test/ws", reactor=world.client)
    assert type(client.buildProtocol(None)) is HeartbeatClientProtocol


def test_none_of_autobahns_timers_runs_and_close_codes_can_be_read(factory, world):
    for one in (factory, HeartbeatClientFactory("ws://test/ws", reactor=world.client)):
        assert [getattr(one, timer) for timer in TIMERS] == [0, 0, 0, 0]
        assert one.failByDrop is False
        assert one.tcpNoDelay is True


def test_messages_are_limited_by_the_settings(world):
    settings = Settings(message_limit=4096)
    for one in (
        HeartbeatServerFactory(settings, reactor=world.server),
        HeartbeatClientFactory("ws://test/ws", settings, reactor=world.client),
    ):
        assert (one.maxMessagePayloadSize, one.maxFramePayloadSize) == (4096, 4096)
        assert one.heartbeat_settings is one.heartbeat.settings is settings


def test_autobahns_own_options_pass_through_and_can_be_changed(world):
    factory = HeartbeatServerFactory(reactor=world.server, server="mine/1", headers={"X-Mine": "1"})
    factory.setProtocolOptions(maxMessagePayloadSize=1_000_000)

    assert factory.server == "mine/1"
    assert factory.headers == {"X-Mine": "1"}
    assert factory.maxMessagePayloadSize == 1_000_000


def test_both_ends_say_which_they_are(factory, world):
    assert factory.server.startswith("txheartbeat/")
    assert HeartbeatClientFactory("ws://test/ws", reactor=world.client).useragent.startswith("txheartbeat/")


def test_the_register_can_be_read(factory):
    assert isinstance(factory.presence, Presence)
    assert factory.presence is factory.heartbeat.presence


def test_a_tls_handshake_that_offers_protocols_is_answered_http_1_1(factory):
    """Without that every browser's `wss://` fails."""
    assert IProtocolNegotiationFactory.providedBy(factory)
    assert factory.acceptableProtocols() == [b"http/1.1"]


def test_a_registered_type_is_handed_to_its_handler_on_either_end(serve, start_client, world):
    taken = []
    serve().register("question", lambda protocol, message: protocol.send({"type": "answer", "n": message["n"]}))
    client = start_client()
    client.register("answer", lambda owner, message: taken.append((owner, message["n"])))

    client.send({"type": "question", "n": 3})
    world.advance(0.1)

    assert taken == [(client, 3)]
    assert client.messages == []


def test_joins_and_leaves_call_hooks_that_do_nothing_by_themselves(factory):
    assert factory.clientJoined("alice") is None
    assert factory.clientLeft("alice") is None


# Room.


def test_without_a_limit_it_is_never_full(world, monkeypatch):
    monkeypatch.setattr("heartbeat.factory.room_for_connections", lambda wanted: None)
    factory = HeartbeatServerFactory(reactor=world.server)
    factory.countConnections = 10_000_000

    assert not factory.is_full()
    assert factory.buildProtocol(None) is not None


def test_it_is_full_with_one_too_many_and_has_standing_room_for_refusals(world):
    factory = HeartbeatServerFactory(Settings(max_connections=100), reactor=world.server)
    # The newcomer counts already when it is asked.
    for count, full, builds in ((100, False, True), (101, True, True), (163, True, True), (164, True, False)):
        factory.countConnections = count
        assert factory.is_full() is full
        assert (factory.buildProtocol(None) is not None) is builds


# A site behind it.


class Counted(Site):
    """Counts its starts."""

    starts = 0

    def startFactory(self):
        self.starts += 1

    def stopFactory(self):
        self.starts -= 1


def test_the_site_starts_and_stops_with_the_factory(world):
    site = Counted(Resource(), reactor=world.server)
    factory = HeartbeatServerFactory(reactor=world.server, site=site)

    factory.doStart()
    factory.doStart()
    assert site.starts == 1
    factory.doStop()
    assert site.starts == 1
    factory.doStop()
    assert site.starts == 0
    assert world.server.calls == []


# URLs.

URLS = {
    "ws://test": ("test", 80, "/", False),
    "ws://test/ws": ("test", 80, "/ws", False),
    "wss://test": ("test", 443, "/", True),
    "ws://test:9000/ws?token=x": ("test", 9000, "/ws?token=x", False),
    "ws://[::1]:9000/ws": ("[::1]", 9000, "/ws", False),
    "wss://[2001:db8::7]/": ("[2001:db8::7]", 443, "/", True),
}


@pytest.mark.parametrize(("url", "parts"), URLS.items())
def test_a_url_says_where_and_an_ipv6_address_keeps_its_brackets(world, url, parts):
    factory = HeartbeatClientFactory(url, reactor=world.client)

    assert (factory.host, factory.port, factory.resource, factory.isSecure) == parts


def test_an_ipv6_address_stands_in_brackets_in_the_host_header(serve, start_client, world):
    """RFC 3986, section 3.2.2; without them a server reads the last group as the port."""
    serve()
    client = start_client("ws://[::1]:9000/ws")

    assert client.status.event == "acknowledged"
    assert b"\r\nHost: [::1]:9000\r\n" in world.connections[0][1].written


@pytest.mark.parametrize(
    "url",
    ["", "test", "http://test/", "ws://", "ws:///ws", "ws://:9000/", "ws://test:x/", "ws://test:0/", "ws://test:70000/",
     "ws://test/#here", "ws://[::1/", "ws://[nonsense]/"],
)  # fmt: skip
def test_a_url_that_is_none_of_a_websockets_raises_value_error(world, url):
    with pytest.raises(ValueError, match=r"."):
        HeartbeatClientFactory(url, reactor=world.client)
