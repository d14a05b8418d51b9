"""A host's own Autobahn protocol with a heartbeat mixed in: its hooks, its messages and its mistakes stay its own."""

import pytest
from autobahn.twisted.websocket import (
    WampWebSocketServerProtocol,
    WebSocketClientFactory,
    WebSocketClientProtocol,
    WebSocketServerFactory,
    WebSocketServerProtocol,
)
from peers import BINARY, CLOSE, PING, PONG, TEXT, frame, request
from twisted.internet.defer import Deferred

from heartbeat import HeartbeatServerFactory, HeartbeatServerProtocol, Unconfirmed
from heartbeat.core.monitor import State
from heartbeat.core.settings import Settings
from heartbeat.mixin import HeartbeatClientMixin, HeartbeatServerMixin
from heartbeat.shared import ServerShared


class Mistake(Exception):
    """A host's."""


def mistake(*arguments, **keywords):
    raise Mistake


class Host(HeartbeatServerMixin, WebSocketServerProtocol):
    """A host with hooks of its own, none of which calls `super()`; keeps what they were told."""

    heartbeat_subprotocols = ("json.example",)

    def onConnect(self, request):
        self.told, self.links = [], []
        return next(iter(request.protocols), None)

    def onOpen(self):
        self.told.append("open")

    def onMessage(self, payload, isBinary):
        self.told.append((payload, isBinary))

    def onClose(self, wasClean, code, reason):
        self.told.append(("close", wasClean, code))

    def linkChanged(self, status):
        self.links.append(status)


@pytest.fixture
def host(world):
    """Have a plain Autobahn factory of such hosts listen; `attributes` are put on the class."""

    def host(settings=None, base=Host, **attributes):
        factory = WebSocketServerFactory(reactor=world.server)
        factory.protocol = type("Mine", (base,), attributes)
        factory.setProtocolOptions(failByDrop=False)
        if settings is not None:
            factory.heartbeat_settings = settings
        world.listen(factory)
        return factory

    yield host
    # Nobody tells the mixin that a factory of the host's has stopped: it waits for the absent all the same.
    world.close()
    world.advance(80)


@pytest.fixture
def there(world):
    """The server's protocol of the latest connection."""
    return lambda: world.connections[-1][0].protocol


class Guest(HeartbeatClientMixin, WebSocketClientProtocol):
    """A client's host, the same way."""

    def onOpen(self):
        self.told, self.links, self.pongs, self.asked = ["open"], [], [], 0

    def onMessage(self, payload, isBinary):
        self.told.append((payload, isBinary))

    def onClose(self, wasClean, code, reason):
        self.told.append(("close", wasClean, code))

    def linkChanged(self, status):
        self.links.append(status)

    def pongReceived(self, rtt, clients):
        self.pongs.append((rtt, clients))

    def pingReceived(self):
        self.asked += 1


@pytest.fixture
def guest(world):
    """A client of a plain Autobahn factory, connected to whoever listens."""

    def guest(settings=None, protocols=(), **attributes):
        factory = WebSocketClientFactory("ws://test/ws", reactor=world.client, protocols=list(protocols))
        factory.protocol = type("Mine", (Guest,), attributes)
        if settings is not None:
            factory.heartbeat_settings = settings
        connected = []
        world.endpoint().connect(factory).addCallback(connected.append)
        world.advance(0.2)
        return connected[0]

    return guest


# The host's own hooks and messages.


def test_the_hosts_hooks_work_without_super(host, connect, there):
    host()
    page = connect().open()

    page.say(b"hello")
    page.write(frame(b"\x00\xff", BINARY))
    page.leave()

    assert there().told == ["open", (b"hello", False), (b"\x00\xff", True), ("close", True, 1000)]
    assert page.messages == []


def test_pings_and_onopens_are_answered_and_never_reach_the_host(host, connect, there):
    host()
    page = connect().open()

    page.say({"type": "ping", "t": 1}, {"type": "onopen"}, {"type": "onopen", "v": 1}, {"type": "ping", "t": 2})

    assert [message["type"] for message in page.messages] == ["ping", "onopen", "onopen", "ping"]
    assert there().told == ["open"]


def test_at_level_1_the_other_reserved_types_are_the_heartbeats_too(host, connect, there):
    host()
    page = connect().open()

    page.say({"type": "ack", "ack": 1})
    page.say({"type": "onopen", "v": 1}, {"type": "ack", "ack": 0}, {"type": "error", "code": "x"}, {"type": "chat"})

    assert [payload for payload, _ in there().told[1:]] == [b'{"type": "ack", "ack": 1}', b'{"type": "chat"}']
    assert len(page.messages) == 1


def test_a_frame_above_4_kib_is_not_even_decoded(host, connect, there):
    """The host gets it although it reads like a ping, and although it is no JSON in the end."""
    host()
    page = connect().open()
    ping = b'{"type":"ping","x":"' + b"x" * (4096 - 22) + b'"}'
    assert len(ping) == 4096

    page.say(ping, ping + b" ")

    assert there().told[1:] == [(ping + b" ", False)]
    assert [message["code"] for message in page.messages] == ["too-big"]


def test_the_link_is_reported_to_the_host(host, connect, world, there):
    host()
    connect().open().say({"type": "ping"})
    world.cut()
    world.advance(17)

    assert [status.event for status in there().links] == ["open", "suspect", "dead", "closed"]
    assert there().links[2].reason == "silent"
    # Its own hook says what Autobahn knows.
    assert there().told == ["open", ("close", False, 1006)]


def test_a_connection_that_ends_before_it_is_open_is_the_hosts_alone(host, connect, world):
    told = []
    factory = host(onClose=lambda self, *how: told.append(how[:2]))
    stranger = connect()
    stranger.transport.loseConnection()
    world.advance(1)

    assert told == [(False, 1006)]
    assert factory.countConnections == 0
    assert [call for call in world.server.calls if "Ticker" in str(call)] == []


def test_a_peer_that_leaves_before_the_hosts_decision_is_nobody(host, connect, world, there):
    """Autobahn opens the connection all the same, after the host was told that it closed."""
    decided, opened = Deferred(), []
    factory = host(onConnect=lambda self, request: decided, onOpen=opened.append, onClose=lambda *how: None)
    page = connect()
    page.write(request())
    page.transport.abortConnection()
    world.advance(1)
    decided.callback(None)
    world.advance(30)

    assert opened == []
    assert ServerShared.of(factory).presence.connections == 0
    assert there().state == there().STATE_CLOSED
    assert [call for call in world.server.calls if "Ticker" in str(call)] == []


def test_a_host_may_close_as_soon_as_it_is_open(host, connect, world):
    host(onOpen=lambda self: self.sendClose(3000, "not today"))
    page = connect()
    page.write(request() + frame(b'{"type":"ping"}'))
    page.leave()
    world.advance(1)

    assert page.closed_with == 3000
    assert page.messages == []
    assert page.ended is not None


def test_the_status_is_none_before_the_link_is_open(host, connect, there):
    host()
    page = connect()
    assert there().status is None

    page.open()
    assert there().status.state is State.ACKNOWLEDGED
    assert there().status.level == 0


def test_a_host_can_send_messages_and_none_of_the_reserved_types(host, connect, there):
    host()
    page = connect().open()
    sent = []

    there().send({"type": "chat", "text": "hi"}).addCallback(sent.append)
    page.world.advance(0.1)

    assert sent == [None]
    assert page.messages == [{"type": "chat", "text": "hi"}]
    for wrong, error in (({"type": "ping"}, ValueError), ({"type": 3}, TypeError), ({}, TypeError), ("x", TypeError)):
        with pytest.raises(error):
            there().send(wrong)
    with pytest.raises(TypeError):
        there().send({"type": "x", "value": object()})


def test_what_is_sent_after_the_end_fails_as_unconfirmed(host, connect, there):
    host()
    connect().open().leave()
    failed = []

    there().send({"type": "chat"}).addErrback(failed.append)
    there().send({"type": "ignored"})

    assert failed[0].check(Unconfirmed)
    assert failed[0].value.messages == ({"type": "chat"},)
    assert failed[0].value.reason == "closed"


# Which classes can be mixed.


def test_a_mixin_after_the_autobahn_class_is_refused_when_the_class_is_made():
    with pytest.raises(TypeError, match=r"^Late: the heartbeat mixin must stand before WebSocketServerProtocol"):
        type("Late", (WebSocketServerProtocol, HeartbeatServerMixin), {})
    with pytest.raises(TypeError, match=r"^Late: the heartbeat mixin must stand before WebSocketClientProtocol"):
        type("Late", (WebSocketClientProtocol, HeartbeatClientMixin), {})


def test_a_mixin_after_a_host_is_refused_too():
    own = type("Own", (WebSocketServerProtocol,), {})
    with pytest.raises(TypeError, match="must stand before WebSocketServerProtocol"):
        type("Late", (own, HeartbeatServerMixin), {})


@pytest.mark.parametrize("name", ["send", "status", "messageReceived", "linkChanged", "pongReceived", "pingReceived"])
def test_a_name_of_the_hosts_that_the_mixin_would_hide_is_refused_by_name(name):
    own = type("Own", (WebSocketServerProtocol,), {name: None})
    with pytest.raises(TypeError, match=f"^Mine: the heartbeat mixin's {name} would hide that of Own$"):
        type("Mine", (HeartbeatServerMixin, own), {})


def test_a_host_may_override_what_it_likes_in_the_class_itself():
    type("Mine", (HeartbeatServerMixin, WebSocketServerProtocol), {"linkChanged": lambda self, status: None})


def test_a_mixin_can_be_mixed_into_mixins():
    more = type("More", (HeartbeatServerMixin,), {})
    type("Mine", (more, WebSocketServerProtocol), {})


def test_a_wamp_class_is_refused():
    with pytest.raises(TypeError, match=r"^Mine: WAMP has a session of its own"):
        type("Mine", (HeartbeatServerMixin, WampWebSocketServerProtocol), {})


def test_on_our_own_protocols_onMessage_is_refused_because_it_would_never_be_called():
    with pytest.raises(TypeError, match=r"^Mine: override messageReceived, not onMessage"):
        type("Mine", (HeartbeatServerProtocol,), {"onMessage": lambda self, payload, isBinary: None})


# Subprotocols.


def test_under_a_foreign_subprotocol_everything_is_the_hosts(host, connect, there):
    host()
    page = connect().open(sec_websocket_protocol="chat.example")
    assert page.headers["sec-websocket-protocol"] == "chat.example"

    page.say({"type": "ping"}, {"type": "onopen", "v": 1})

    assert page.texts == []
    assert [payload for payload, _ in there().told[1:]] == [b'{"type": "ping"}', b'{"type": "onopen", "v": 1}']


def test_under_a_foreign_subprotocol_a_silent_peer_is_probed_by_rfc_6455_pings(host, connect, world, there):
    host()
    page = connect().open(sec_websocket_protocol="chat.example")

    world.advance(12.5)
    assert [opcode for opcode, _ in page.frames] == [PING]
    page.write(frame(page.frames[0][1], PONG))
    assert [status.event for status in there().links] == ["open", "suspect", "acknowledged"]

    world.advance(15.5)
    assert [status.event for status in there().links[3:]] == ["suspect", "dead", "closed"]
    assert page.closed_with == 4000


def test_under_a_subprotocol_of_ours_json_is_spoken(host, connect):
    host()
    page = connect().open(sec_websocket_protocol="json.example")

    page.say({"type": "ping"})

    assert page.messages[0]["status"] == "pong"


def test_a_client_beats_with_rfc_6455_pings_under_a_foreign_subprotocol(host, guest, world, there):
    host()
    client = guest(protocols=["chat.example"])
    world.advance(60)

    assert client.websocket_protocol_in_use == "chat.example"
    assert [status.event for status in client.links] == ["open"]
    assert client.status.level == 0
    assert len(client.pongs) == 10
    assert there().told == ["open"]


# Settings.


def test_the_settings_on_a_plain_autobahn_factory_are_honoured(host, connect, world):
    factory = host(Settings(interval=1.0, timeout_min=1.0, timeout_max=2.0, probe=1.0))
    page = connect().open()
    page.say({"type": "onopen"}, {"type": "onopen", "v": 1})

    plain, answer = page.messages
    assert plain["interval_ms"] == 1000
    assert (answer["watch_ms"], answer["timeout_ms"], answer["probe_ms"]) == (3000, [1000, 2000], 1000)
    world.advance(4.5)
    assert page.closed_with == 4000
    assert ServerShared.of(factory).settings.interval == 1.0


def test_without_settings_the_defaults_hold(host, connect):
    host()
    page = connect().open()
    page.say({"type": "onopen"})

    assert page.messages[0]["interval_ms"] == 6000


def test_a_clients_settings_on_a_plain_autobahn_factory_are_honoured(host, guest, world):
    host()
    client = guest(Settings(interval=0.5, beats="client", client_id="alice"))
    world.advance(10)

    assert client.status.client_id == "alice"
    assert len(client.pongs) == pytest.approx(20, abs=1)


# The client's end.


def test_a_client_mixin_beats_and_leaves_the_hosts_messages_alone(host, guest, world, there):
    host()
    client = guest()
    there().sendMessage(b"news")
    there().sendMessage(b"\x01", isBinary=True)
    there().sendMessage(b'{"type":"chat"}')
    world.advance(13)
    client.sendClose(1000)
    world.advance(1)

    assert client.told == [
        "open",
        (b"news", False),
        (b"\x01", True),
        (b'{"type":"chat"}', False),
        ("close", True, 1000),
    ]
    assert [status.event for status in client.links] == ["open", "closed"]
    # One with the opening, and one each interval.
    assert [clients for _, clients in client.pongs] == [1, 1, 1]


def test_a_client_mixin_answers_the_servers_pings(host, guest, world):
    host(Settings(beats="server"))
    client = guest()
    world.advance(31)

    assert client.asked >= 5
    assert len(client.pongs) == 1


def test_a_client_mixin_aborts_when_the_server_is_gone(host, guest, world):
    host()
    client = guest()
    world.cut()
    world.advance(17)

    assert [status.event for status in client.links] == ["open", "suspect", "dead", "closed"]
    assert client.told[-1] == ("close", False, 1006)


def test_a_client_mixin_gives_up_on_a_server_that_never_answers_it(world, guest, connect):
    mute = WebSocketServerFactory(reactor=world.server)
    mute.protocol = type("Mute", (WebSocketServerProtocol,), {"onPing": lambda self, payload: None})
    world.listen(mute)
    client = guest()
    world.advance(11.5)

    assert [status.event for status in client.links] == ["dead", "closed"]
    assert client.links[0].reason == "no-answer"


# The host's mistakes: logged once, closed 1011, and nobody else is the worse for it.


async def fail_later():
    raise Mistake


def fail_by_deferred(*arguments):
    deferred = Deferred()
    deferred.errback(Mistake())
    return deferred


SERVER_MISTAKES = {
    "in onOpen": ({"onOpen": mistake}, b""),
    "in onMessage": ({"onMessage": mistake}, frame(b"hello")),
    "in onMessage, of many": ({"onMessage": mistake}, frame(b"hello") * 10),
    "in onMessage, in pieces": ({"onMessage": mistake}, frame(b"he", fin=False) + frame(b"llo", 0)),
    "in onMessageBegin": ({"onMessageBegin": mistake}, frame(b"hello") * 2),
    "in onMessageFrameBegin": ({"onMessageFrameBegin": mistake}, frame(b"hello") * 2),
    "in onMessageEnd": ({"onMessageEnd": mistake}, frame(b"hello") * 2),
    "in onPing": ({"onPing": mistake}, frame(b"hello", PING) * 2),
    "in onPong": ({"onPong": mistake}, frame(b"hello", PONG) * 2),
}


@pytest.mark.parametrize("together", [False, True], ids=["later", "with the handshake"])
@pytest.mark.parametrize(("hooks", "data"), SERVER_MISTAKES.values(), ids=SERVER_MISTAKES)
def test_a_mistake_of_the_hosts_is_logged_once_and_closes_1011(
    host, connect, world, still_serves, failures, hooks, data, together
):
    factory = host(**hooks)
    page = connect()

    page.write(*([request() + data] if together else [request(), data]))

    assert page.closed_with == 1011
    page.write(frame(b"\x03\xe8", CLOSE))
    world.advance(3)
    assert page.ended is not None
    assert len(failures.flush(Mistake)) == 1
    assert factory.countConnections == 0
    factory.protocol = Host
    still_serves()


def test_a_mistake_in_onClose_is_logged_once_and_the_connection_is_counted_off(host, connect, world, failures):
    factory = host(onClose=mistake)
    connect().open().say({"type": "onopen", "v": 1})
    page = connect().open()
    page.say({"type": "onopen", "v": 1})
    assert factory.countConnections == 2

    page.leave()
    world.advance(1)

    assert len(failures.flush(Mistake)) == 1
    assert factory.countConnections == 1
    world.drop()
    world.advance(60)
    assert len(failures.flush(Mistake)) == 1
    assert factory.countConnections == 0
    assert world.server.calls == []


def test_a_mistake_in_linkChanged_is_logged_and_closes_1011(host, connect, world, failures):
    opened = []
    host(linkChanged=mistake, onOpen=opened.append)
    page = connect()
    page.write(request() + frame(b'{"type":"ping"}'))

    assert page.closed_with == 1011
    assert page.messages == opened == []
    world.advance(2)
    assert page.ended is not None
    # Once for the opening, once for the end.
    assert len(failures.flush(Mistake)) == 2


def test_a_mistake_of_a_clients_host_is_logged_once_and_closes_1011(host, guest, world, there, failures):
    host()
    client = guest(onMessage=mistake)
    there().sendMessage(b"one")
    there().sendMessage(b"two")
    world.advance(3)

    assert len(failures.flush(Mistake)) == 1
    assert there().told[-1] == ("close", True, 1011)
    assert client.told[-1][0] == "close"


def test_a_mistake_in_a_hook_of_the_heartbeats_closes_1011_too(host, guest, world, there, failures):
    host()
    guest(pongReceived=mistake)
    world.advance(3)

    assert len(failures.flush(Mistake)) == 1
    assert there().told[-1] == ("close", True, 1011)


def test_messages_of_a_mistaken_host_stop_at_once(host, connect, there, failures):
    calls = []

    def onMessage(self, payload, isBinary):
        calls.append(payload)
        raise Mistake

    host(onMessage=onMessage)
    connect().open().say(b"one", b"two", {"type": "ping"})

    assert calls == [b"one"]
    assert len(failures.flush(Mistake)) == 1


# The same on our own protocols: whoever takes the messages.

HANDLERS = {
    "a function": mistake,
    "a coroutine": lambda *arguments: fail_later(),
    "a Deferred": fail_by_deferred,
}


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
@pytest.mark.parametrize("way", ["registered", "messageReceived"])
def test_a_handler_that_fails_at_once_or_later_is_logged_once_and_closes_1011(
    serve, connect, world, still_serves, failures, way, handler
):
    if way == "registered":
        serve().register("chat", handler)
    else:
        serve(type("Mine", (HeartbeatServerProtocol,), {"messageReceived": handler}))
    page = connect().open()

    page.say({"type": "chat"}, {"type": "ping"})

    assert page.closed_with == 1011
    world.advance(2)
    assert page.ended is not None
    assert len(failures.flush(Mistake)) == 1
    still_serves()


def test_a_handler_may_take_its_time_and_fail_after_the_end(serve, connect, failures):
    taken = Deferred()
    serve().register("chat", lambda protocol, message: taken)
    page = connect().open()
    page.say({"type": "chat"})
    page.leave()

    taken.errback(Mistake())

    assert len(failures.flush(Mistake)) == 1


def test_handlers_that_succeed_late_are_nobodys_news(serve, connect):
    answers = []

    async def slowly(protocol, message):
        answers.append(message["n"])
        protocol.send({"type": "done", "n": message["n"]})

    serve().register("chat", slowly)
    page = connect().open()
    page.say({"type": "chat", "n": 1}, {"type": "chat", "n": 2})

    assert answers == [1, 2]
    assert page.messages == [{"type": "done", "n": 1}, {"type": "done", "n": 2}]


def test_a_registered_type_goes_before_messageReceived(serve, connect):
    taken = []
    mine = type("Mine", (HeartbeatServerProtocol,), {"messageReceived": lambda self, m: taken.append(("rest", m))})
    serve(mine).register("chat", lambda protocol, message: taken.append(("chat", message)))
    connect().open().say({"type": "chat"}, {"type": "other"})

    assert taken == [("chat", {"type": "chat"}), ("rest", {"type": "other"})]


# Whose claims to a client id are honoured.

CLAIMS = {
    "from this machine": ("127.0.0.1", {}, {}, True),
    "from this machine, by IPv4 in IPv6": ("::ffff:127.0.0.1", {}, {}, True),
    "from elsewhere": ("192.0.2.7", {}, {}, False),
    "from elsewhere, trusted": ("192.0.2.7", {"trust_client_ids": True}, {}, True),
    "behind a proxy on this machine": ("127.0.0.1", {}, {"x_forwarded_for": "192.0.2.7"}, False),
    "behind a modern proxy": ("127.0.0.1", {}, {"forwarded": "for=192.0.2.7"}, False),
}


@pytest.mark.parametrize(("where", "settings", "headers", "honoured"), CLAIMS.values(), ids=CLAIMS)
def test_a_claimed_client_id_is_honoured_from_this_machine_or_by_setting(
    serve, connect, world, where, settings, headers, honoured
):
    world.client_host = where
    serve(**settings)
    page = connect().open(**headers)

    page.say({"type": "onopen", "v": 1, "client_id": "alice"})

    assert (page.messages[0]["client_id"] == "alice") is honoured


def test_an_id_of_our_own_making_is_nobodys_to_claim(serve, connect):
    serve()
    page = connect().open()

    page.say({"type": "onopen", "v": 1, "client_id": "c-0123456789abcdef"})

    assert page.messages[0]["client_id"] != "c-0123456789abcdef"


def test_a_factory_of_ours_serves_a_host_too(world, connect):
    """The mixin asks only for the factory's reactor and its `heartbeat_settings`."""
    factory = HeartbeatServerFactory(Settings(interval=2.0), reactor=world.server)
    factory.protocol = Host
    world.listen(factory)
    page = connect().open()
    page.say({"type": "onopen"}, b"hello")

    assert page.messages[0]["interval_ms"] == 2000
    assert page.frames[-1][0] == TEXT


# Sessions of a host's.


def test_a_hosts_messages_are_numbered_where_it_sends_them_and_its_factory_hears_what_was_lost(
    host, connect, there, world
):
    factory = host()
    lost, sent = [], []
    factory.sessionLost = lambda client_id, error: lost.append((client_id, error.reason, error.messages))
    page = connect().open()
    page.say({"type": "onopen", "v": 1, "client_id": "alice"}, {"type": "ping"})

    there().send({"type": "note", "n": 1}).addCallback(sent.append)
    there().send({"type": "note", "n": 2})
    world.advance(0.1)
    assert [(one["n"], one["seq"]) for one in page.messages if one["type"] == "note"] == [(1, 1), (2, 2)]
    page.say({"type": "ack", "ack": 1})
    assert sent == [None]
    page.leave(1000)

    assert lost == [("alice", "closed", ({"type": "note", "n": 2},))]


def test_numbered_messages_of_any_size_are_the_sessions_and_all_others_the_hosts(host, connect, there):
    host()
    page = connect().open()
    page.say(
        {"type": "onopen", "v": 1}, {"type": "note", "n": 1, "text": "x" * 5000, "seq": 1}, {"type": "note", "n": 2}
    )
    page.say({"type": "note", "n": 3, "seq": 2})

    assert there().told[1:] == [(b'{"type": "note", "n": 2}', False)]
    assert [(one["code"], one["seq"]) for one in page.messages if one["type"] == "error"] == [
        ("unknown-type", 1),
        ("unknown-type", 2),
    ]
