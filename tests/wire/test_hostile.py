"""What a hostile peer tried once, and what a hasty program did: each found a way, and finds it shut."""

import gc
import weakref

import pytest
from autobahn.twisted.websocket import WebSocketServerFactory
from peers import CONTINUATION, TEXT, frame

from heartbeat import HeartbeatServerProtocol, HeartbeatService, Settings
from heartbeat.handshake import speaks_for_itself
from heartbeat.web.site import make_site


@pytest.mark.parametrize("event", ["closed", "reconnecting", "unreachable"])
def test_a_hook_that_tries_again_at_once_makes_one_connection_and_not_two(serve, start_client, world, event):
    """And nothing of it outlives the client."""
    factory = serve()
    client = start_client(attempts=1)
    hear, tried = client.linkChanged, []

    def retry(status):
        hear(status)
        if status.event == event and not tried:
            tried.append(status)
            client.retry()

    client.linkChanged = retry
    world.refuses = event == "unreachable"
    world.drop()
    world.advance(5)
    world.refuses = False
    client.retry()
    world.advance(20)

    assert tried
    assert factory.countConnections == 1
    client.stopService()
    world.advance(10)
    assert factory.countConnections == 0


def test_who_waits_for_the_link_is_not_told_that_it_is_unreachable_when_a_hook_tries_again(make_client, serve, world):
    serve()
    world.refuses = True
    client = make_client(attempts=0)
    client.linkChanged = lambda status: (
        status.event == "unreachable"
        and (
            setattr(world, "refuses", False),
            client.retry(),
        )
    )
    waiter = client.whenOpen()
    client.startService()
    world.advance(5)

    assert waiter.result is client


@pytest.mark.parametrize("goodbye", ["drain", "restart"])
def test_a_server_that_keeps_sending_us_away_is_unreachable_in_the_end(serve, start_client, world, goodbye):
    """What it asks for is no attempt once; after that it is tried like any other that accepts and drops."""

    class SendsAway(HeartbeatServerProtocol):
        def linkChanged(self, status):
            if status.event == "open" and goodbye == "drain":
                self.sendMessage(b'{"type":"drain","min_ms":0,"max_ms":200}')
            if status.event == "open":
                self.sendCloseFrame(1012 if goodbye == "restart" else 4008, b"")

    serve(SendsAway)
    client = start_client()
    world.advance(120)

    assert client.events[-1] == "unreachable"
    assert len(client.all("reconnecting")) == 1 + 3


def test_nothing_more_is_read_from_a_peer_for_which_too_much_waits(serve, connect, world, monkeypatch):
    """Reading goes on when half of it is gone; nobody is convicted meanwhile."""
    waits = [0]
    monkeypatch.setattr("heartbeat.outbox.queued", lambda transport: waits[0])
    factory = serve(outgoing_limit=100_000)
    page = connect().open()
    page.say({"type": "ping"})
    transport = world.connections[0][0]

    waits[0] = 100_001
    page.say({"type": "ping", "n": 1})
    page.say({"type": "ping", "n": 2})
    assert transport.paused
    assert [message.get("n") for message in page.messages] == [None, 1]

    # It moves, slowly: a minute of silence, in which nothing of ours is judged.
    for left in range(100_000, 60_000, -200):
        waits[0] = left
        world.advance(0.3)
    assert (transport.paused, page.closed_with) == (True, None)

    waits[0] = 50_000
    world.advance(0.5)
    assert not transport.paused
    assert [message.get("n") for message in page.messages] == [None, 1, 2]
    assert (page.closed_with, factory.countConnections) == (None, 1)


def test_a_peer_that_takes_nothing_at_all_is_closed_4008(serve, connect, world, monkeypatch):
    monkeypatch.setattr("heartbeat.outbox.queued", lambda transport: 100_001)
    factory = serve(outgoing_limit=100_000)
    page = connect().open()
    page.say({"type": "ping"})
    world.advance(5.5)
    assert page.closed_with is None
    world.advance(2.0)

    assert page.closed_with == 4008
    assert factory.countConnections == 0


def test_a_message_in_endless_empty_fragments_is_too_big(serve, connect, still_serves):
    """They hold nothing, so they never met the limit; each was kept."""
    serve()
    page = connect().open()
    page.write(frame(b"", TEXT, fin=False) + frame(b"", CONTINUATION, fin=False) * 4097)

    assert page.closed_with == 1009
    still_serves()


def test_many_small_fragments_of_a_message_that_is_none_too_large_are_a_message(serve, connect):
    serve()
    page = connect().open()
    ping = b'{"type":"ping","pad":"%s"}' % (b"x" * 900)
    pieces = [frame(ping[:1], TEXT, fin=False)]
    pieces += [frame(ping[at : at + 1], CONTINUATION, fin=at == len(ping) - 1) for at in range(1, len(ping))]
    page.write(b"".join(pieces))

    assert page.messages[-1]["status"] == "pong"


def test_plain_requests_are_connections_too_and_answered_one_each(serve, connect, world):
    factory = serve(site=make_site(world.server), paths=("/ws",))
    browser = connect()
    browser.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n")

    assert browser.received.count(b"HTTP/1.1 200 OK") == 1
    assert browser.headers["connection"] == "close"
    world.advance(1)
    assert browser.ended is not None
    assert factory.countConnections == 0


@pytest.mark.parametrize(
    "header", ["Content-Length: 1000000000000", "content-length:  01", "Transfer-Encoding: chunked"]
)
def test_our_own_site_takes_no_bodies(serve, connect, world, header, still_serves):
    """twisted.web would write them to disk, without an end, before anybody asked for one."""
    serve(site=make_site(world.server), paths=("/ws",))
    poster = connect()
    poster.write(b"POST / HTTP/1.1\r\nHost: x\r\n" + header.encode() + b"\r\n\r\n")

    assert poster.status == 413
    still_serves()


def test_a_request_that_says_that_it_has_no_body_is_served(serve, connect, world):
    serve(site=make_site(world.server), paths=("/ws",))
    browser = connect()
    browser.write(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")

    assert browser.status == 200


def test_of_a_connection_that_is_gone_nothing_is_kept(serve, connect, world):
    """Not even until the time at which it was to be looked at."""
    factory = serve()
    page = connect().open()
    page.say({"type": "onopen", "v": 1, "interval_ms": 60_000})
    page.write(frame(b"x" * 60_000, TEXT)[:50_000])
    gone = weakref.ref(world.connections[0][0].protocol)
    page.transport.abortConnection()
    world.advance(1)
    world.connections.clear()
    del page
    gc.collect()

    assert gone() is None
    assert len(factory.heartbeat.ticker.wheel) == 0


def test_of_forty_whose_requests_are_late_two_are_dropped_in_a_turn(serve, connect, world, monkeypatch):
    """What the reactor has to do for each of them comes before anybody is read in its next turn."""
    ticker = serve().heartbeat.ticker
    turns, turn = [], ticker.turn
    monkeypatch.setattr(ticker, "turn", lambda then: turns.append(then) or turn(then))
    peers = [connect() for _ in range(40)]

    world.advance(10)

    assert all(peer.ended is not None for peer in peers)
    # The rest of a tick has a turn each, and they came due in several ticks.
    assert len(turns) >= 40 // 2 - 4


def test_a_service_that_stops_closes_what_is_open(connect, world, serve):
    """1012, so that clients come back later; and it says when the last of them is gone."""
    factory = serve()
    service = HeartbeatService((), factory=factory, reactor=world.server)
    service.startService()
    page = connect().open()
    page.say({"type": "ping"})
    stopped = service.stopService()
    assert not stopped.called
    world.advance(2.0)

    assert stopped.called
    assert page.closed_with == 1012
    assert (factory.countConnections, factory.presence.active) == (0, 0)


def test_our_protocol_serves_on_a_factory_of_autobahns(serve, connect, world):
    """Which has neither paths nor a site, and counts nothing."""
    factory = WebSocketServerFactory(reactor=world.server)
    factory.protocol = HeartbeatServerProtocol
    world.listen(factory)
    page = connect().open("/anywhere")
    page.say({"type": "ping"})

    assert page.messages[-1]["status"] == "pong"
    page.leave()


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({"host": "127.0.0.1:9000"}, True),
        ({"host": "localhost", "origin": "http://localhost:3000"}, True),
        ({"host": "[::1]:9000", "origin": "http://[::1]:9000"}, True),
        ({"host": "app.localhost", "origin": "http://app.localhost"}, True),
        ({"host": "evil.example:9000", "origin": "http://evil.example:9000"}, False),
        ({"host": "[bad", "origin": "http://x"}, False),
        ({"host": "127.0.0.1", "x-forwarded-for": "8.8.8.8"}, False),
        ({"host": "127.0.0.1", "x-forwarded-proto": "https"}, False),
        ({"host": "127.0.0.1", "via": "1.1 proxy"}, False),
        ({"host": "127.0.0.1", "x-real-ip": "8.8.8.8"}, False),
        ({"host": "127.0.0.1", "forwarded": "for=8.8.8.8"}, False),
    ],
)
def test_a_claim_from_this_machine_counts_only_where_nobody_stands_behind_it(headers, own):
    assert speaks_for_itself(headers) is own


def test_a_page_of_a_rebound_name_may_come_in_but_claim_nobodys_id(serve, connect):
    serve()
    page = connect().open(host="evil.example:9000", origin="http://evil.example:9000")
    page.say({"type": "onopen", "v": 1, "client_id": "alice"})

    assert page.messages[-1]["client_id"].startswith("c-")


def test_nobody_has_a_client_ping_faster_than_ten_times_a_second(serve, start_client, world):
    class Hasty(HeartbeatServerProtocol):
        def _onMessage(self, payload, isBinary):
            if b"onopen" in payload:
                self.sendMessage(b'{"type":"onopen","status":"ok","v":1,"interval_ms":1,"beats":"client"}')
            else:
                self.sendMessage(payload[:-1] + b',"status":"pong"}')

    serve(Hasty)
    client = start_client()
    world.advance(10)

    assert 60 <= client.pings_sent <= 105


def test_settings_are_not_guessed_from_text():
    """A set of origins is one; text is a mistake, and never everybody."""
    with pytest.raises(ValueError, match="origins must be a tuple of origins"):
        Settings(origins="https://*.example.org")
