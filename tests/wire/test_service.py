"""The server as a service: what it listens on, and what it says at start. Opens no real port."""

import pytest
from peers import request
from twisted.application.service import MultiService
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import formatEvent

from heartbeat import HeartbeatServerFactory, HeartbeatService, SettingError, Settings
from heartbeat._version import __version__
from heartbeat.service import DEFAULT_LISTEN, PATHS, _where
from heartbeat.web.site import make_site


@pytest.fixture
def reactor():
    """A reactor that opens nothing, on which nothing is left."""
    reactor = MemoryReactorClock()
    yield reactor
    assert reactor.getDelayedCalls() == []


@pytest.fixture
def start(reactor):
    """A service that was started, and is stopped in the end."""
    started = []

    def start(*arguments, **keywords):
        service = HeartbeatService(*arguments, reactor=reactor, **keywords)
        service.privilegedStartService()
        service.startService()
        started.append(service)
        return service

    yield start
    for service in started:
        service.stopService()


def test_nothing_is_opened_before_it_starts(reactor):
    HeartbeatService(reactor=reactor)

    assert reactor.tcpServers == reactor.unixServers == reactor.sslServers == []


def test_it_listens_on_this_machine_alone_unless_told_otherwise(start, reactor):
    start()

    ((port, _, backlog, interface),) = reactor.tcpServers
    assert (port, interface) == (9000, "127.0.0.1")
    # Twisted's own 50 turns a storm of connections into minutes.
    assert backlog == 4096
    assert DEFAULT_LISTEN == "tcp:9000:interface=127.0.0.1"


LISTENS = {
    "a string": ("tcp:9001", [(9001, 4096, "")]),
    "a list": (["tcp:9001", "tcp:9002:interface=10.0.0.1"], [(9001, 4096, ""), (9002, 4096, "10.0.0.1")]),
    "a queue of one's own": ("tcp:9001:backlog=7", [(9001, 7, "")]),
    "IPv6": ("tcp6:9001", [(9001, 4096, "::")]),
    "an endpoint of another kind": (["haproxy:tcp:9001"], [(9001, 50, "")]),
}


@pytest.mark.parametrize(("listen", "ports"), LISTENS.values(), ids=LISTENS)
def test_it_listens_where_it_is_told(start, reactor, listen, ports):
    service = start(listen)

    assert [(port, backlog, interface) for port, _, backlog, interface in reactor.tcpServers] == ports
    assert len(service.ports) == len(ports)


def test_it_listens_on_a_unix_socket(start, reactor, tmp_path):
    start(f"unix:{tmp_path}/socket")

    ((path, _, backlog, *_),) = reactor.unixServers
    assert (path, backlog) == (f"{tmp_path}/socket", 4096)


def test_the_queue_is_a_setting(start, reactor):
    start(settings=Settings(backlog=17))

    assert reactor.tcpServers[0][2] == 17


@pytest.mark.parametrize("wrong", ["", "9000", "tcp", "tcp:x", "nonsense:9000", "tcp:9000:colour=red", "ssl:9443"])
def test_a_description_that_is_none_is_refused_by_its_setting(reactor, wrong):
    with pytest.raises(SettingError) as refusal:
        HeartbeatService(wrong, reactor=reactor)

    assert (refusal.value.name, refusal.value.value) == ("listen", wrong)
    assert DEFAULT_LISTEN in refusal.value.bound


def test_a_key_that_is_none_is_refused_by_its_setting(reactor, tmp_path):
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n")

    with pytest.raises(SettingError, match=r"^listen must be an endpoint description"):
        HeartbeatService(f"ssl:9443:privateKey={tmp_path}/key.pem", reactor=reactor)


def test_it_takes_the_reactor_of_the_process_when_none_is_given():
    from twisted.internet import reactor

    assert HeartbeatService().factory.reactor is reactor


def test_its_factory_has_the_settings_the_paths_and_a_site(reactor):
    settings = Settings(interval=2.0)
    factory = HeartbeatService(settings=settings, reactor=reactor).factory

    assert factory.heartbeat_settings is settings
    assert factory.paths == PATHS == ("/ws", "/")
    assert factory.site is not None


def test_a_factory_of_ones_own_is_taken_as_it_is(reactor):
    factory = HeartbeatServerFactory(reactor=reactor)

    assert HeartbeatService(factory=factory, reactor=reactor).factory is factory


def test_it_fits_into_a_service_tree(reactor):
    tree = MultiService()
    HeartbeatService("tcp:9001", reactor=reactor).setServiceParent(tree)
    HeartbeatService("tcp:9002", reactor=reactor).setServiceParent(tree)
    tree.privilegedStartService()
    tree.startService()
    assert [server[0] for server in reactor.tcpServers] == [9001, 9002]

    tree.stopService()
    assert not tree.running


# What it says.


def sentences(log):
    """What our package logged, formatted."""
    return [formatEvent(event) for event in log if event.get("log_namespace", "").startswith("heartbeat.service")]


def test_it_says_who_it_is_what_holds_and_where_it_listens(start, log):
    start(["tcp:9001:interface=127.0.0.1", "tcp6:9002"], Settings(max_connections=5))

    # A port in memory says that it listens everywhere.
    first, second, *others = sentences(log)
    assert first == "listening on ws://localhost:9001/ws (page: http://localhost:9001/), on every interface"
    assert second.startswith("listening on ws://localhost:9002/ws")
    assert others[0] == (
        f"txheartbeat {__version__}: beats as each client wishes (by client unless it says otherwise) every 6 s"
    )
    assert others[1].startswith(
        "a dead peer is found within 15.4 s by a client that pings, within 15.6 s by a server that pings, within 15.4 s"
    )
    assert others[2].startswith("room for 5 connections (open-file limit: ")
    assert others[3] == "sessions are kept for 120 s, in memory; 0 wait to be resumed"


def test_it_says_who_beats_and_that_nothing_limits_it(start, log, monkeypatch):
    monkeypatch.setattr("heartbeat.factory.room_for_connections", lambda wanted: wanted)
    monkeypatch.setattr("heartbeat.service.open_file_limit", lambda: None)
    start(settings=Settings(beats="server", interval=2.5))

    said = sentences(log)
    assert f"txheartbeat {__version__}: beats by server every 2.5 s" in said
    assert "room for any number of connections (open-file limit: none)" in said


WHERE = {
    "an address": (IPv4Address("TCP", "10.0.0.1", 80), False, "ws://10.0.0.1:80/ws (page: http://10.0.0.1:80/)"),
    "an address over TLS": (IPv4Address("TCP", "10.0.0.1", 80), True, "wss://10.0.0.1:80/ws (page: https://10.0.0.1:80/)"),
    "IPv6": (IPv6Address("TCP", "::1", 80), False, "ws://[::1]:80/ws (page: http://[::1]:80/)"),
    "everywhere": (
        IPv4Address("TCP", "0.0.0.0", 80),  # noqa: S104  # bound by nobody
        False,
        "ws://localhost:80/ws (page: http://localhost:80/), on every interface",
    ),
    "a UNIX socket": (UNIXAddress(b"/run/heartbeat"), False, "the UNIX socket /run/heartbeat"),
    "something else": ("a pipe", False, "a pipe"),
}  # fmt: skip


@pytest.mark.parametrize(("address", "secure", "text"), WHERE.values(), ids=WHERE)
def test_where_a_port_listens_is_said_as_somebody_would_type_it(address, secure, text):
    assert _where(address, secure=secure) == text


# The site behind it.


@pytest.fixture
def page(serve, connect, world):
    """Somebody who asks the site of a server for something, by HTTP."""
    serve(site=make_site(world.server), paths=PATHS)

    def page(path, **headers):
        browser = connect()
        browser.write(request(path, upgrade=None, connection="close", **headers))
        return browser

    return page


def test_the_page_says_how_to_speak_with_the_server(page, world, log):
    browser = page("/", host="example.org:9000")

    assert browser.status == 200
    assert browser.headers["content-type"] == "text/plain; charset=utf-8"
    assert browser.headers["x-content-type-options"] == "nosniff"
    assert b'{"type": "ping"}' in browser.received
    assert b"heartbeat-client ws://example.org:9000/ws" in browser.received
    assert any(
        formatEvent(event) == "b'GET' / 200 from 127.0.0.1" or "GET / 200" in formatEvent(event) for event in log
    )


def test_there_is_nothing_else_there(page):
    assert page("/elsewhere").status == 404
    assert page("/elsewhere/below").status == 404


def test_the_websockets_own_path_asks_for_an_upgrade(page):
    browser = page("/ws")

    assert browser.status == 426
    assert browser.headers["upgrade"] == "websocket"


def test_a_page_without_a_host_or_from_no_address_is_a_page_too(page, monkeypatch, log):
    monkeypatch.setattr("twisted.web.http.Request.getClientAddress", lambda self: object())
    browser = page("/", host="")

    assert browser.status == 200
    assert b"heartbeat-client ws://HOST:PORT/ws" in browser.received
    assert "GET / 200 from a local peer" in [formatEvent(event) for event in log]
