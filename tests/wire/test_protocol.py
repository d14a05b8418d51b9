"""Our own protocols on both ends: levels, modes, presence, convictions, and how every connection ends in time."""

import struct

import pytest
from autobahn.twisted.resource import WebSocketResource
from autobahn.websocket.compress import (
    PerMessageDeflateOffer,
    PerMessageDeflateOfferAccept,
    PerMessageDeflateResponseAccept,
)
from peers import CLOSE, PING, PONG, TEXT, Peer, Refusing, frame, request
from twisted.internet.defer import Deferred, fail
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.web.resource import Resource
from twisted.web.server import Site

from heartbeat import (
    HeartbeatClientFactory,
    HeartbeatClientProtocol,
    HeartbeatServerFactory,
    HeartbeatServerProtocol,
    Standing,
    State,
)
from heartbeat.core.errors import PeerError
from heartbeat.core.settings import BEATS, Settings


def server_frames(world, at=-1):
    """The frames that a server has written on a connection, cut network or not."""
    peer = Peer(world)
    peer.dataReceived(world.connections[at][0].written)
    return peer.frames


def closed_with(frames):
    """The codes of the close frames among these."""
    return [struct.unpack("!H", payload[:2])[0] for opcode, payload in frames if opcode == CLOSE]


@pytest.fixture
def there(world):
    """The server's protocol of the latest connection."""
    return lambda: world.connections[-1][0].protocol


# Level 0.


def test_a_page_that_pings_is_answered_and_counted(serve, connect):
    factory = serve()
    one, two = connect().open(), connect().open()

    one.say({"type": "ping"})
    two.say({"type": "ping"})
    one.say({"type": "ping"})

    assert [message["clients"] for message in one.messages] == [1, 2]
    assert [message["clients"] for message in two.messages] == [2]
    assert factory.presence.active == factory.presence.connections == 2


def test_a_plain_onopen_is_answered_with_an_id_the_interval_and_the_count(serve, connect):
    serve(interval=2.5)
    page = connect().open()

    page.say({"type": "onopen"})

    (answer,) = page.messages
    assert answer.pop("client_id").startswith("c-")
    assert answer == {"type": "onopen", "status": "ok", "interval_ms": 2500, "clients": 1}


def test_a_page_that_only_listens_is_connected_and_not_counted(serve, connect):
    factory = serve()
    connect().open()

    assert factory.presence.count(Standing.CONNECTED) == 1
    assert factory.presence.active == 0


def test_a_level_0_page_is_never_sent_a_ping_of_ours(serve, connect, world):
    serve(beats="server")
    page = connect().open()
    for _ in range(10):
        page.say({"type": "ping"})
        world.advance(8)

    assert all(message["status"] == "pong" for message in page.messages)
    assert not [opcode for opcode, _ in page.frames if opcode == PING]


# Level 1.


def test_the_server_declares_what_holds(serve, connect):
    serve(interval=2.0, timeout_min=1.0, timeout_max=4.0, probe=2.0, message_limit=2048, ping_limit=512)
    page = connect().open()

    page.say({"type": "onopen", "v": 1, "client_id": "alice"})

    (answer,) = page.messages
    sid, epoch = answer.pop("sid"), answer.pop("epoch")
    assert (len(sid), len(epoch)) == (32, 16)
    assert [answer] == [
        {
            "type": "onopen",
            "status": "ok",
            "v": 1,
            "client_id": "alice",
            "resumed": False,
            "last": 0,
            "sent": 0,
            "window_ms": 120_000,
            "beats": "client",
            "interval_ms": 2000,
            "watch_ms": 6000,
            "timeout_ms": [1000, 4000],
            "probe_ms": 2000,
            "limits": {"message": 2048, "ping": 512, "kept": 1000, "kept_bytes": 1_048_576},
            "clients": 1,
        }
    ]


@pytest.mark.parametrize(("wish", "granted"), [(1, 500), (500, 500), (1234, 1234), (3000, 3000), (10**9, 3000)])
def test_the_wish_for_an_interval_is_granted_within_bounds(serve, connect, wish, granted):
    serve(interval=1.0, interval_min=0.5, interval_max=3.0)
    page = connect().open()

    page.say({"type": "onopen", "v": 1, "interval_ms": wish})

    assert page.messages[0]["interval_ms"] == granted
    assert page.messages[0]["watch_ms"] == granted + 6000


@pytest.mark.parametrize("fixed", [None, *BEATS])
@pytest.mark.parametrize("wish", [None, *BEATS])
def test_who_beats_is_the_servers_word_or_else_the_clients_wish(serve, connect, fixed, wish):
    serve(beats=fixed)
    page = connect().open()

    page.say({"type": "onopen", "v": 1} | ({} if wish is None else {"beats": wish}))

    assert page.messages[0]["beats"] == (fixed or wish or "client")


def test_a_server_that_beats_pings_by_ids_and_is_answered(serve, start_client, world, there):
    serve()
    client = start_client(beats="server")
    world.advance(60)

    pings = [payload for opcode, payload in server_frames(world) if opcode == TEXT and b'"status"' not in payload]
    assert pings == [b'{"type":"ping","id":%d,"ack":0}' % n for n in range(1, len(pings) + 1)]
    assert client.asked == len(pings) >= 9
    # Its own first ping follows its opening in every mode.
    assert len(client.pongs) == 1
    assert there().status.rtt == pytest.approx(0.02)


def test_in_both_a_ping_received_puts_off_ones_own(serve, start_client, world, there):
    """No double pings: which end pings is chance, and the other one answers."""
    serve(beats="both")
    client = start_client()
    world.advance(600)

    sent, asked = client.pings_sent, client.asked
    assert sent + asked == pytest.approx(600 / 6, abs=12)
    assert client.events == ["open"]
    assert there().status.state is State.ACKNOWLEDGED


@pytest.mark.parametrize("beats", BEATS)
def test_in_every_mode_twenty_quiet_minutes_are_quiet(serve, start_client, world, there, beats):
    serve(beats=beats)
    client = start_client()
    world.advance(1200)

    assert client.events == ["open"] if beats != "none" else set(client.events) <= {"open", "suspect", "acknowledged"}
    assert client.status.state is not State.DEAD
    assert there().status.state is not State.DEAD


# A dead peer, by every mode and level: found within the bound, and never without a probe.


@pytest.mark.parametrize("beats", [*BEATS, "level 0", "silence"])
def test_a_probe_precedes_every_conviction_by_the_server(serve, connect, world, beats):
    factory = serve()
    page = connect().open()
    if beats in BEATS:
        page.say({"type": "onopen", "v": 1, "beats": beats})
    elif beats == "level 0":
        page.say({"type": "ping"})
    world.cut()
    world.advance(15.4 + 0.4)

    frames = server_frames(world)
    assert closed_with(frames) == [4000]
    kinds = [opcode for opcode, payload in frames if opcode != TEXT or b'"ping"' in payload]
    assert kinds[-2:] == [PING, CLOSE]
    probe = next(payload for opcode, payload in frames if opcode == PING)
    assert probe.startswith(b"heartbeat ")
    # The socket goes with it, a second later at most.
    world.advance(1.3)
    assert factory.presence.connections == 0
    assert factory.countConnections == 0


@pytest.mark.parametrize("beats", BEATS)
def test_a_dead_server_is_found_within_the_bound_in_every_mode(serve, start_client, world, beats):
    serve(beats=beats)
    client = start_client()
    world.advance(20)
    world.cut()
    world.advance(15.4 + 0.2)

    assert client.events[-3:] == ["suspect", "dead", "reconnecting"]
    assert client.all("dead")[0].reason == "silent"


def test_a_page_that_answers_rfc_pings_only_is_away_and_never_dead(serve, connect, world):
    factory = serve()
    page = connect().open()
    page.say({"type": "ping"})
    answered = 0
    for _ in range(600):
        world.advance(0.2)
        pings = [payload for opcode, payload in page.frames if opcode == PING]
        if len(pings) > answered:
            page.write(frame(pings[-1], PONG))
            answered += 1

    assert answered >= 8
    assert page.closed_with is None
    assert factory.presence.count(Standing.AWAY) == 1
    assert factory.presence.active == 0


def test_a_page_that_says_it_is_away_is_until_it_pings_twice(serve, connect, world):
    factory = serve()
    page = connect().open()
    page.say({"type": "ping"})
    page.say({"type": "ping", "away": True})
    assert factory.presence.count(Standing.AWAY) == 1
    assert page.messages[-1]["clients"] == 0

    page.say({"type": "ping"})
    assert factory.presence.count(Standing.AWAY) == 1
    world.advance(6)
    page.say({"type": "ping"})
    assert factory.presence.active == 1


def test_a_suspect_that_answers_is_acknowledged_again(serve, connect, world, there):
    factory = serve(protocol=Watching)
    page = connect().open()
    world.advance(12.5)
    assert factory.presence.count(Standing.SUSPECT) == 1

    page.say({"type": "ping"})

    assert [status.event for status in there().links] == ["open", "suspect", "acknowledged"]
    assert factory.presence.active == 1


class Watching(HeartbeatServerProtocol):
    """Keeps what it is told of its link."""

    def __init__(self):
        super().__init__()
        self.links = []

    def linkChanged(self, status):
        self.links.append(status)


def test_bytes_that_arrive_after_a_conviction_change_nothing(serve, connect, world, there):
    serve(protocol=Watching)
    page = connect().open()
    world.advance(15.5)
    assert page.closed_with == 4000

    page.say({"type": "ping"}, b"nonsense")
    page.write(b"\xff\xff\xff")
    world.advance(2)

    assert [status.event for status in there().links] == ["open", "suspect", "dead", "closed"]
    assert there().links[-1].reason == "silent"
    assert page.messages == []


def test_a_stalled_server_convicts_nobody(serve, start_client, connect, world, there):
    serve(protocol=Watching)
    client = start_client()
    page = connect().open()
    page.say({"type": "ping"})
    for _ in range(5):
        world.stall(11)
        world.advance(11.5)
        page.say({"type": "ping"})

    assert "dead" not in [status.event for pair in world.connections for status in pair[0].protocol.links]
    assert page.closed_with is None
    # To its client the server was gone for longer than the bound allows: it had every right to come back.
    assert set(client.events) <= {"open", "suspect", "dead", "reconnecting", "acknowledged", "waiting"}


# Presence.


@pytest.fixture
def present(serve, connect):
    """A server, and the sessions of clients that claim a name; `session.left` are those who were announced to leave."""
    factory = serve()

    def session(name, **more):
        page = connect().open()
        page.say({"type": "onopen", "v": 1, "client_id": name} | more)
        return page

    session.left = []
    factory.clientLeft = session.left.append
    return factory.presence, session


def test_two_connections_of_one_client_count_once(present):
    presence, session = present
    one, two = session("alice"), session("alice")

    assert (presence.active, presence.connections) == (1, 2)
    assert two.messages[0]["clients"] == 1
    one.leave()
    assert (presence.active, presence.connections) == (1, 1)


def test_a_client_that_comes_back_under_its_name_takes_over_without_a_leave(present, world):
    presence, session = present
    session("alice")
    world.connections[-1][1].abortConnection()
    world.advance(1)
    assert presence.count(Standing.DETACHED) == 1

    session("alice")

    assert presence.client_ids() == ("alice",)
    assert (presence.active, presence.count(Standing.DETACHED)) == (1, 0)


def test_a_close_of_1000_is_a_leave_at_once_and_any_other_end_an_absence(present, world):
    presence, session = present
    session("alice").leave(1000)
    assert "alice" not in presence

    session("bob").leave(1001)
    assert presence.standing_of("bob") is Standing.DETACHED
    world.advance(41)
    assert "bob" not in presence


def test_at_level_0_any_close_frame_is_a_leave_at_once(serve, connect, world):
    factory = serve()
    for code in (1000, 1001):
        page = connect().open()
        page.say({"type": "ping"})
        page.leave(code)
        assert factory.presence.client_ids() == ()

    page = connect().open()
    page.say({"type": "ping"})
    page.transport.abortConnection()
    world.advance(1)
    assert factory.presence.count(Standing.DETACHED) == 1
    world.advance(41)
    assert factory.presence.client_ids() == ()


def test_an_absence_of_one_that_was_away_is_borne_for_longer(present, world):
    presence, session = present
    page = session("alice")
    page.say({"type": "ping", "away": True})
    page.transport.abortConnection()
    world.advance(70)
    assert presence.standing_of("alice") is Standing.DETACHED
    assert session.left == []

    world.advance(6)
    assert session.left == ["alice"]
    # Its session is kept for longer, and nobody is told twice.
    assert presence.standing_of("alice") is Standing.DETACHED
    world.advance(50)
    assert "alice" not in presence
    assert session.left == ["alice"]


# Plain HTTP on the same port.


class Page(Resource):
    """Says what it was asked."""

    isLeaf = True

    def render(self, request):
        body = request.content.read()
        return request.method + b" " + request.path + b" " + body


@pytest.fixture
def site(serve, world):
    """A server with a site behind it."""
    made = Site(Page(), reactor=world.server)
    # twisted.web's own would keep a timer a second, for the time in its access log.
    made.startFactory = made.stopFactory = lambda: None
    made.log = lambda request: None
    return serve(site=made, paths=("/ws",))


REQUESTS = {
    "in one piece": [b"GET /any HTTP/1.1\r\nHost: x\r\n\r\n"],
    "in pieces": [b"GET /any HTTP/1.1\r\n", b"Host: x\r\n", b"\r", b"\n"],
    "by the byte": [bytes([byte]) for byte in b"GET /any HTTP/1.1\r\nHost: x\r\n\r\n"],
}


@pytest.mark.parametrize("pieces", REQUESTS.values(), ids=REQUESTS)
def test_a_plain_request_is_the_sites(site, connect, still_serves, pieces):
    browser = connect()

    browser.write(*pieces)

    assert browser.status == 200
    assert browser.body == b"GET /any "
    # It takes a file of this process like any other, until it ends.
    assert site.countConnections == 1
    browser.transport.abortConnection()
    browser.world.advance(1)
    assert site.countConnections == 0
    still_serves()


def test_a_request_with_a_body_and_another_behind_it_are_both_answered(site, connect):
    browser = connect()

    browser.write(
        b"POST /one HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbo",
        b"dyGET /two HTTP/1.1\r\nHost: x\r\n\r\n",
    )

    assert b"POST /one body" in browser.received
    assert b"GET /two " in browser.received


def test_an_upgrade_elsewhere_is_refused_and_not_the_sites(site, connect):
    stranger = connect()
    stranger.write(request("/elsewhere"))

    assert stranger.status == 404
    assert stranger.body == b"there is no WebSocket here, try /ws\n"


def test_a_handed_over_connection_has_the_sites_patience_and_not_ours(site, connect, world):
    browser = connect()
    browser.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    world.advance(50)
    assert browser.ended is None

    browser.write(b"GET /again HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"GET /again " in browser.received
    world.advance(80)
    assert browser.ended is not None


def test_requests_that_are_no_http_are_the_sites_to_refuse(site, connect, still_serves):
    browser = connect()
    browser.write(b"NONSENSE\r\n\r\n")

    assert browser.status == 400
    still_serves()


def test_a_full_server_still_shows_its_page(site, connect, world):
    site.room = 1
    connect().open()
    browser = connect()
    browser.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")

    assert browser.status == 200


class Wrapped(ProtocolWrapper):
    """What stands between the transport and the protocol, as TLS does."""


def test_behind_a_wrapper_such_as_tls_the_wrappers_protocol_changes(site, connect, world, serve):
    wrapping = WrappingFactory(site)
    wrapping.protocol = Wrapped
    # Its own timers are those of the global reactor.
    wrapping.doStart = wrapping.doStop = lambda: None
    world.listen(wrapping)
    browser = connect()

    browser.write(b"GET /any HTTP/1.1\r\nHost: x\r\n\r\n")

    assert browser.body == b"GET /any "
    site.doStop()


# A host that takes its time over a handshake.


class Slow(HeartbeatServerProtocol):
    """Decides later."""

    def onConnect(self, request):
        self.decided = Deferred()
        return self.decided


def test_a_decision_may_take_its_time(serve, connect, world, there):
    serve(protocol=Slow)
    page = connect()
    page.write(request() + frame(b'{"type":"ping"}'))
    world.advance(4)
    assert page.received == b""

    there().decided.callback(None)
    world.advance(0.1)
    assert page.status == 101
    assert page.messages[0]["status"] == "pong"
    world.advance(2)
    assert page.ended is None


def test_a_decision_that_is_never_made_is_no_handshake(serve, connect, world):
    serve(protocol=Slow)
    page = connect()
    page.write(request())
    world.advance(5.5)

    assert page.ended is not None
    assert page.received == b""


@pytest.mark.parametrize("more", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", request(), b"\xff" * 9000], ids=len)
def test_what_arrives_before_the_decision_waits_for_it(site, connect, world, there, more):
    """It is no second request: that would make the connection the site's, and then a WebSocket after all."""
    site.protocol = Slow
    page = connect()
    page.write(request(), more)
    assert page.received == b""

    there().decided.callback(None)
    world.advance(0.1)

    assert page.status == 101
    assert page.closed_with == 1002 or more.startswith(b"G")
    assert b"HTTP/1.1 200" not in page.received
    assert b"/ " not in page.body
    page.transport.abortConnection()
    world.advance(1)
    assert site.countConnections == 0
    assert world.server.calls == []


def test_what_arrives_before_the_decision_is_not_endless(serve, connect, world, there):
    serve(protocol=Slow)
    page = connect()
    page.write(request(), b"x" * 10_000, b"x" * 10_000)
    assert page.status == 400
    there().decided.callback(None)
    world.advance(2)

    assert page.ended is not None
    assert b" 101 " not in page.received
    assert world.server.calls == []


def test_a_peer_that_leaves_before_the_decision_is_nobody(serve, connect, world, there):
    """Autobahn opens the connection all the same, and would never close it."""
    factory = serve(protocol=Slow)
    page = connect()
    page.write(request())
    page.transport.abortConnection()
    world.advance(1)
    there().decided.callback(None)
    world.advance(30)

    assert there().state == there().STATE_CLOSED
    assert factory.presence.connections == factory.countConnections == 0
    assert world.server.calls == []


# Inside a site of an embedder's own.


def test_a_websocket_inside_a_site_works_too(world, connect):
    factory = HeartbeatServerFactory(reactor=world.server)
    root = Resource()
    root.putChild(b"ws", WebSocketResource(factory))
    outer = Site(root, reactor=world.server)
    outer.startFactory = outer.stopFactory = lambda: None
    outer.log = lambda request: None
    world.listen(outer)
    page = connect().open()

    page.say({"type": "onopen", "v": 1, "client_id": "alice"}, {"type": "ping"})
    assert [message["clients"] for message in page.messages] == [1, 1]

    world.advance(15.6)
    assert page.closed_with == 4000
    world.advance(1.5)
    assert page.ended is not None
    assert factory.presence.standing_of("alice") is Standing.DETACHED
    # The grace, and the window of its session.
    world.advance(121)
    assert "alice" not in factory.presence
    assert [call for call in world.server.calls if "Ticker" in str(call)] == []


# Compression.


def test_with_compression_messages_are_compressed_and_beats_are_not(serve, world, there):
    factory = serve()
    factory.setProtocolOptions(
        perMessageCompressionAccept=lambda offers: PerMessageDeflateOfferAccept(
            offers[0], request_no_context_takeover=True, no_context_takeover=True
        )
    )
    client = HeartbeatClientFactory("ws://test/ws", reactor=world.client)
    client.setProtocolOptions(
        perMessageCompressionOffers=[PerMessageDeflateOffer()],
        perMessageCompressionAccept=PerMessageDeflateResponseAccept,
    )
    client.protocol = Told
    connected = []
    world.endpoint().connect(client).addCallback(connected.append)
    world.advance(0.2)
    there().send({"type": "chat", "text": "x" * 1000})
    world.advance(7)

    assert connected[0].messages == [{"type": "chat", "text": "x" * 1000}]
    written = world.connections[0][0].written.partition(b"\r\n\r\n")[2]
    assert len(written) < 1000
    # The second bit of a frame's first byte says that it is compressed: that of the chat alone.
    assert [opcode for opcode, payload in server_frames(world)] == [TEXT] * 4
    assert [payload[:1] for _, payload in server_frames(world)].count(b"{") == 3


# Every end comes in time.


def test_a_closing_handshake_that_is_never_answered_ends_in_a_second(serve, connect, world, there):
    serve()
    page = connect().open()
    there().sendClose(1000)
    world.advance(0.5)
    assert page.closed_with == 1000
    assert page.ended is None

    world.advance(1.0)
    assert page.ended is not None


def test_a_close_is_answered_and_the_server_drops_first(serve, connect):
    serve()
    page = connect().open()
    page.leave(1001)

    assert page.closed_with == 1000
    assert page.ended is not None


def test_a_transport_that_does_not_close_is_aborted(serve, connect, world, there):
    """Over TLS, or with bytes to write, a polite close may wait for the peer."""
    serve()
    page = connect().open()
    transport = world.connections[-1][0]
    transport.loseConnection = lambda: None
    page.leave()
    assert page.ended is None

    world.advance(1.5)
    assert page.ended is not None


def test_a_connection_that_ends_amid_the_handshake_leaves_nothing(serve, connect, world):
    factory = serve()
    stranger = connect()
    stranger.write(b"GET /ws HTTP/1.1\r\n")
    stranger.transport.abortConnection()
    world.advance(0.1)

    assert factory.countConnections == 0
    assert world.server.calls == []


# The client's protocol, whatever a server makes of its handshake.


@pytest.fixture
def dial(world):
    """A client of ours without the service around it, connected to whoever listens, or to a server of bytes."""

    def dial(answer=None, protocol=Told, **settings):
        if answer is not None:
            world.listen(Factory.forProtocol(lambda: Refusing(answer) if answer else Protocol()))
        client = HeartbeatClientFactory("ws://test/ws", Settings(**settings), reactor=world.client)
        client.protocol = protocol
        connected = []
        world.endpoint().connect(client).addCallback(connected.append)
        world.advance(0.1)
        return connected[0]

    return dial


class Told(HeartbeatClientProtocol):
    """Keeps how it ended, and what it was told."""

    def __init__(self):
        super().__init__()
        self.ended = None
        self.links, self.messages = [], []

    def linkChanged(self, status):
        self.links.append(status)

    def messageReceived(self, message):
        self.messages.append(message)

    def onClose(self, wasClean, code, reason):
        self.ended = reason


REFUSALS = {
    "503 with Retry-After": (b"HTTP/1.1 503 Full\r\nRetry-After: 17\r\n\r\n", 503, 17.0),
    "503 without": (b"HTTP/1.1 503 Full\r\n\r\n", 503, None),
    "a Retry-After that is a date": (b"HTTP/1.1 503 Full\r\nRetry-After: Wed, 21 Oct 2026\r\n\r\n", 503, None),
    "a Retry-After that is negative": (b"HTTP/1.1 503 Full\r\nRetry-After: -5\r\n\r\n", 503, None),
    "a header that is no text": (b"HTTP/1.1 503 Full\r\nRetry-After: \xb2\r\n\r\n", None, None),
    "a Retry-After that is endless": (
        b"HTTP/1.1 503 Full\r\nRetry-After: " + b"9" * 5000 + b"\r\n\r\n",
        503,
        float("inf"),
    ),
    "401": (b"HTTP/1.1 401 Who are you\r\n\r\n", 401, None),
    "200": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, None),
    "a status without a word": (b"HTTP/1.1 404\r\n\r\n", 404, None),
    "no handshake in 101": (b"HTTP/1.1 101 Switching\r\n\r\n", None, None),
    "a status that is no number": (b"HTTP/1.1 OK\r\n\r\n", None, None),
    "a status that is endless": (b"HTTP/1.1 " + b"9" * 5000 + b"\r\n\r\n", None, None),
    "no status": (b"HTTP/1.1\r\n\r\n", None, None),
    "nothing": (b"\r\n\r\n", None, None),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\n", 200, None),
    "bytes that are no text": (b"\xff\xfe\xfd\r\n\r\n", None, None),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", None, None),
    "a head over 16 KiB": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000, None, None),
}


@pytest.mark.parametrize(("answer", "status", "after"), REFUSALS.values(), ids=REFUSALS)
def test_whatever_answers_the_handshake_is_a_refusal_in_a_sentence(dial, answer, status, after):
    client = dial(answer=answer)

    assert client.ended is not None
    assert client.wasNotCleanReason
    assert client.refused_with == status
    assert client.retry_after == after
    assert client.links == []


def test_a_server_that_never_answers_is_left(dial, world):
    client = dial(b"", open_timeout=3.0)
    world.advance(2.8)
    assert client.ended is None

    world.advance(0.3)
    assert client.ended is not None


def test_a_head_that_grows_for_ever_is_left(dial, world):
    client = dial(b"")
    server = world.connections[-1][0]
    server.write(b"HTTP/1.1 101 OK\r\n")
    for _ in range(900):
        server.write(b"X-Header: 0123456789\r\n")
    world.advance(0.1)

    assert client.ended is not None


def test_it_delivers_messages_and_says_errors_to_its_log(dial, serve, world, there, log):
    serve()
    client = dial()
    for text in (b'{"type":"chat"}', b"nonsense", b'{"type":"error","code":"x"}'):
        there().sendMessage(text)
    there().sendMessage(b"\x00", isBinary=True)
    world.advance(0.1)

    assert client.messages == [{"type": "chat"}, {"type": "error", "code": "x"}]
    assert len([event for event in log if event.get("why", "").startswith("what it sent cannot be taken")]) == 2


def test_a_registered_type_of_a_clients_goes_before_messageReceived(dial, serve, world, there):
    serve()
    client = dial()
    taken = []
    client.factory.register("chat", lambda protocol, message: taken.append((protocol, message)))
    there().send({"type": "chat"})
    world.advance(0.1)

    assert taken == [(client, {"type": "chat"})]


def test_a_message_that_no_client_takes_is_nobodys(serve, world, there, dial):
    serve()
    client = dial(protocol=HeartbeatClientProtocol)
    there().send({"type": "chat"})
    world.advance(0.1)

    assert client.state == client.STATE_OPEN
    assert there().status.state is State.ACKNOWLEDGED


@pytest.mark.parametrize("later", [False, True])
def test_an_error_that_a_clients_program_refuses_is_not_answered(serve, world, there, dial, later):
    """As no error is: what else it refuses, it says so."""

    class Refuses(HeartbeatClientProtocol):
        def messageReceived(self, message):
            refusal = PeerError("no", "not this one", message.get("id"))
            if later:
                return fail(refusal)
            raise refusal

    serve(fast_path=False)
    dial(protocol=Refuses)
    before = there().trafficStats.incomingWebSocketMessages

    there().sendMessage(b'{"type":"error","code":"x","id":1}')
    world.advance(0.1)
    assert there().trafficStats.incomingWebSocketMessages == before

    there().sendMessage(b'{"type":"chat","id":1}')
    world.advance(0.1)
    assert there().trafficStats.incomingWebSocketMessages == before + 1
    assert there().state == there().STATE_OPEN


def test_its_closing_handshake_is_bounded_too(dial, serve, world):
    serve()
    client = dial()
    world.cut()
    client.sendClose(1000)
    world.advance(0.9)
    assert client.ended is None

    world.advance(0.3)
    assert client.ended is not None
    assert client.links[-1].event == "closed"
