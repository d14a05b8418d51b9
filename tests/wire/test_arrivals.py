"""Who may connect, and how fast: in all, by address, and by the second; and who gives way when there is no room.

The count at connect is of real transports' classes, made without a socket; what follows the request is on the wire, in
virtual time, of peers with any address.
"""

import pytest
from peers import request
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.tcp import Server
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper
from twisted.protocols.tls import BufferingTLSTransport
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from heartbeat.arrivals import RETRY_AFTER, Arrivals
from heartbeat.core.settings import Settings
from heartbeat.refusals import Refusals

FAR, OTHER = "192.0.2.7", "198.51.100.9"
HEAD = request()[:-2]
# Of one address so many more than its number are accepted, to be told.
STANDING = 8


class Arrival:
    """Somebody who has connected by a transport of this class, without a socket."""

    def __init__(self, host=FAR, transport=Server):
        self.account = None
        self.gave_way = False
        self.transport = object.__new__(transport)
        if transport is BufferingTLSTransport:
            self.transport.transport = object.__new__(Server)
        peer = UNIXAddress("/nobody") if host is None else (IPv6Address if ":" in host else IPv4Address)("TCP", host, 1)
        self.transport.getPeer = lambda: peer

    def give_way(self):
        self.gave_way = True


@pytest.fixture
def arrivals():
    """Arrivals with these settings, and room for so many."""

    def arrivals(room=None, **settings):
        made = Arrivals(Settings(**settings), room, Refusals())
        made.counts = made.refusals.counts
        return made

    return arrivals


def come(arrivals, count, *args, now=0.0):
    """So many arrivals, connected."""
    crowd = [Arrival(*args) for _ in range(count)]
    for one in crowd:
        arrivals.connected(one, now)
    return crowd


# At connect.


@pytest.mark.parametrize("transport", [Server, BufferingTLSTransport], ids=["TCP", "TLS"])
def test_an_address_is_counted_before_it_has_asked_for_anything(arrivals, transport):
    """Beyond its number, and some standing room, it is dropped; another address is not."""
    one = arrivals(connections_per_address=10)
    crowd = come(one, 10 + STANDING + 3, FAR, transport)

    assert [arrival.gave_way for arrival in crowd] == [False] * (10 + STANDING) + [True] * 3
    assert one.counts == {"connections_per_address": 3}
    assert not come(one, 1, OTHER, transport)[0].gave_way
    assert one.addresses == 2


def test_who_leaves_makes_room_for_another_of_his_address(arrivals):
    one = arrivals(connections_per_address=10)
    crowd = come(one, 10 + STANDING)
    for arrival in crowd:
        one.left(arrival)
        # Twice changes nothing.
        one.left(arrival)
    again = come(one, 10 + STANDING + 1)

    assert [arrival.gave_way for arrival in again] == [False] * (10 + STANDING) + [True]


def test_a_network_of_ipv6_is_one_address(arrivals):
    """Its 2^64 addresses are one customer's; the next network is another's."""
    one = arrivals(connections_per_address=2)
    crowd = [Arrival(f"2001:db8:0:1::{n:x}") for n in range(2 + STANDING + 1)]
    for arrival in crowd:
        one.connected(arrival, 0.0)

    assert [arrival.gave_way for arrival in crowd] == [False] * (2 + STANDING) + [True]
    assert not come(one, 1, "2001:db8:0:2::1")[0].gave_way


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "10.0.0.1", "192.168.7.7", "fd00::1", None])
def test_nobody_nearby_is_counted_before_he_has_asked(arrivals, host):
    """This machine, a UNIX socket, a private network: there may be a proxy, of whose clients nothing is known yet."""
    one = arrivals(connections_per_address=2)

    assert not any(arrival.gave_way for arrival in come(one, 100, host))
    assert one.addresses == 0


def test_what_stands_for_a_proxy_is_not_counted_before_it_has_said_for_whom(arrivals):
    """Twisted's `haproxy:` endpoint, and whoever is to say it in X-Forwarded-For."""
    by_header = arrivals(connections_per_address=2)
    by_forwarding = arrivals(connections_per_address=2, trust_forwarded=1)

    assert not any(one.gave_way for one in come(by_header, 100, FAR, HAProxyProtocolWrapper))
    assert not any(one.gave_way for one in come(by_forwarding, 100, FAR, Server))
    assert (by_header.addresses, by_forwarding.addresses) == (0, 0)


@pytest.mark.parametrize(("room", "most"), [(None, 1024), (100_000, 1024), (400, 100), (1, 1)])
def test_by_default_an_address_has_1024_and_a_quarter_of_all_at_most(arrivals, room, most):
    one = arrivals(room)
    crowd = come(one, most + STANDING + 1)

    assert [arrival.gave_way for arrival in crowd].index(True) == most + STANDING


def test_addresses_of_which_nothing_is_left_are_forgotten(arrivals):
    """A crowd of ten thousand addresses that come and go takes no memory for ever."""
    one = arrivals()
    for n in range(20_000):
        arrival = come(one, 1, f"198.{n >> 8 & 255}.{n & 255}.1", now=n / 100)[0]
        one.left(arrival)

    assert one.addresses <= 512


# With the request.


def ask(arrivals, arrival, head=HEAD, *, now=0.0, full=False):
    """Its request is complete."""
    return arrivals.asked(arrival, head, now, is_full=full)


def test_the_number_of_an_address_is_told_with_the_name_of_its_setting(arrivals):
    one = arrivals(connections_per_address=10)
    crowd = come(one, 11)
    refusals = [ask(one, arrival) for arrival in crowd]

    # All eleven are there: the number is over by one until somebody leaves.
    assert refusals[0] == refusals[-1]
    sentence, status, headers = refusals[0]
    assert (status, headers) == (503, [("Retry-After", str(RETRY_AFTER))])
    assert "(setting connections_per_address)" in sentence
    one.left(crowd.pop())
    assert [ask(one, arrival) for arrival in crowd] == [None] * 10


LOCAL = {"loopback": "127.0.0.1", "IPv6 loopback": "::1"}


@pytest.mark.parametrize("host", LOCAL.values(), ids=LOCAL)
def test_this_machine_is_counted_only_where_the_number_was_given(arrivals, host):
    free, bound = arrivals(), arrivals(connections_per_address=3)

    assert [ask(free, arrival) for arrival in come(free, 2000, host)] == [None] * 2000
    assert [ask(bound, arrival) is None for arrival in come(bound, 5, host)] == [True] * 3 + [False] * 2


PROXIED = HEAD + b"X-Forwarded-For: 198.51.100.9\r\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", None])
def test_an_untrusted_proxy_nearby_and_a_unix_socket_are_never_one_client(arrivals, host):
    """Not even where the number was given: behind them are many, of whom nothing is known."""
    one = arrivals(connections_per_address=3)

    assert [ask(one, arrival, PROXIED) for arrival in come(one, 100, host)] == [None] * 100
    assert one.addresses == 0
    assert one.counts == {}


def test_a_neighbour_without_a_proxys_headers_is_counted(arrivals):
    one = arrivals(connections_per_address=3)

    assert [ask(one, arrival) is None for arrival in come(one, 5, "10.0.0.1")] == [True] * 3 + [False] * 2


def test_of_a_proxy_that_nobody_trusts_it_is_said_once_which_setting_it_is(arrivals, log):
    """Once for each of a few addresses, for who is near can have many."""
    one = arrivals()
    for n in range(200):
        ask(one, come(one, 1, f"10.0.{n % 100}.1")[0], PROXIED)
    said = [event["log_format"].format(**event) for event in log if event.get("log_namespace") == "heartbeat.arrivals"]

    assert len(said) == 8
    assert said[0].startswith("10.0.0.1 passes on requests of others")
    assert "(setting trust_forwarded)" in said[0]


@pytest.mark.parametrize("host", ["127.0.0.1", FAR, None])
def test_behind_a_trusted_proxy_each_is_counted_by_what_it_says(arrivals, host):
    """Whatever else the client wrote before it."""
    one = arrivals(connections_per_address=2, trust_forwarded=1)
    heads = [HEAD + b"X-Forwarded-For: 203.0.113.%d, %s\r\n" % (n, OTHER.encode()) for n in range(3)]
    refusals = [ask(one, arrival, head) for arrival, head in zip(come(one, 3, host), heads, strict=True)]
    assert [refusal is None for refusal in refusals] == [True, True, False]

    another = HEAD + b"X-Forwarded-For: 203.0.113.77\r\n"
    assert ask(one, come(one, 1, host)[0], another) is None


def test_a_second_has_so_many_handshakes_and_an_address_a_fifth(arrivals):
    one = arrivals(handshake_rate=100.0)
    first = [ask(one, arrival, now=1.0) for arrival in come(one, 25, FAR)]
    assert [refusal is None for refusal in first] == [True] * 20 + [False] * 5
    assert "too many handshakes of one address (setting handshake_rate)" in first[-1][0]

    crowd = [come(one, 1, f"198.51.100.{n}")[0] for n in range(90)]
    rest = [ask(one, arrival, now=1.0) for arrival in crowd]
    assert [refusal is None for refusal in rest] == [True] * 80 + [False] * 10
    assert rest[-1][0] == "too many handshakes (setting handshake_rate)"
    assert one.counts == {"handshake_rate": 15}
    assert ask(one, come(one, 1, "203.0.113.1")[0], now=1.1) is None


def test_who_is_sent_away_is_told_another_moment_than_the_next_and_is_served_then(arrivals):
    """Three hundred at once, ten a second: each comes back when it was told, and is served by then."""
    one = arrivals(handshake_rate=10.0)
    crowd = [Arrival(f"198.{n >> 8}.{n & 255}.1") for n in range(310)]
    told = dict.fromkeys(crowd, 0.0)
    served, again = [], 0
    for now in range(100):
        for arrival in [one_ for one_ in crowd if told[one_] == now]:
            refusal = ask(one, arrival, now=float(now))
            if refusal is None:
                served.append(now)
                continue
            after = int(dict(refusal[2])["Retry-After"])
            assert 1 <= after <= 60
            again += now > 0
            told[arrival] = now + after

    assert len(served) == 310
    assert again <= 3
    assert max(served.count(now) for now in range(100)) <= 11
    assert max(served) <= 33


def test_nobody_is_told_to_come_back_after_more_than_a_minute(arrivals):
    one = arrivals(handshake_rate=1.0)
    refusals = [ask(one, Arrival(f"198.{n >> 8}.{n & 255}.1"), now=0.0) for n in range(1000)]

    assert {int(dict(refusal[2])["Retry-After"]) for refusal in refusals if refusal} | {1} == set(range(1, 61))


@pytest.mark.parametrize("host", [*LOCAL.values(), None])
def test_this_machines_handshakes_are_counted_only_where_the_rate_was_given(arrivals, host):
    """A crash of a thousand programs here is no flood."""
    free, bound = arrivals(), arrivals(handshake_rate=5.0)

    assert [ask(free, Arrival(host)) for _ in range(20_000)] == [None] * 20_000
    assert [ask(bound, Arrival(host)) is None for _ in range(7)] == [True] * 5 + [False] * 2


def test_by_default_others_have_5000_a_second_and_an_address_1000(arrivals):
    one = arrivals()
    assert sum(ask(one, Arrival(FAR)) is None for _ in range(1002)) == 1000
    assert sum(ask(one, Arrival(f"198.{n >> 8}.{n & 255}.1")) is None for n in range(4002)) == 4000
    assert one.counts == {"handshake_rate": 4}


# Room.


def test_those_who_waited_longest_give_way_and_those_on_their_way_do_not(arrivals):
    """Who has waited for less than a second may well be about to ask."""
    one = arrivals()
    first, second = come(one, 1, now=0.0) + come(one, 1, now=0.5)
    late = come(one, 1, now=0.6)[0]

    assert ask(one, late, now=0.7, full=True)[0] == "no room (setting max_connections)"
    late = come(one, 1, now=1.2)[0]
    assert ask(one, late, now=1.2, full=True) is None
    assert (first.gave_way, second.gave_way) == (True, False)
    assert one.counts == {"max_connections": 1, "gave-way": 1}
    assert ask(one, come(one, 1, now=1.3)[0], now=1.6, full=True) is None
    assert second.gave_way


def test_who_was_let_in_never_gives_way(arrivals):
    one = arrivals()
    crowd = come(one, 10, now=0.0)
    for arrival in crowd:
        assert ask(one, arrival, now=0.1) is None

    assert not one.make_room(100.0)
    assert not any(arrival.gave_way for arrival in crowd)


# The same on the wire.


def test_a_server_full_of_silence_lets_a_good_client_in_at_once(serve, connect, world):
    """Two hundred that connect and ask for nothing, from as many addresses, at a server with room for fifty."""
    factory = serve(max_connections=50)
    world.client_host = FAR
    crowd = []
    for n in range(200):
        world.client_host = f"198.51.100.{n}"
        crowd.append(connect())
    world.advance(1)
    world.client_host = FAR
    before = world.now
    good = connect().open()
    good.say({"type": "ping"})

    assert world.now - before < 0.3
    assert good.messages[-1]["status"] == "pong"
    assert factory.refused["gave-way"] >= 1
    world.advance(6)
    good.say({"type": "ping"})
    assert good.messages[-1]["status"] == "pong"
    assert factory.countConnections == 1


class Slowly(Resource):
    """A page that is never finished."""

    isLeaf = True

    def render_GET(self, _request):
        return NOT_DONE_YET


def test_who_reads_pages_gives_way_to_who_stays(serve, connect, world):
    """An idle connection that asked for a page is handed to an embedder's site, and waits in the same row."""
    site = Site(Slowly(), reactor=world.server)
    factory = serve(site=site, paths=("/ws",), max_connections=2)
    readers = [connect() for _ in range(2)]
    for reader in readers:
        reader.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert factory.countConnections == 2
    world.advance(1)
    good = connect().open()

    assert [reader.ended is None for reader in readers] == [False, True]
    assert good.ended is None
    assert factory.refused["gave-way"] == 1
    site.stopFactory()


def test_an_idle_connection_that_was_answered_and_is_kept_gives_way_too(serve, connect, world):
    """twisted.web keeps a connection for a minute: that is room for somebody."""

    class Page(Resource):
        isLeaf = True

        def render_GET(self, _request):
            return b"here"

    site = Site(Page(), reactor=world.server)
    serve(site=site, paths=("/ws",), max_connections=1)
    reader = connect()
    reader.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert reader.body.endswith(b"here")
    assert reader.ended is None
    world.advance(1)
    good = connect().open()

    assert reader.ended is not None
    assert good.ended is None


def test_a_slow_handshake_ends_in_time_and_is_counted(serve, connect, world):
    """A byte a second, from the open network: gone after the five seconds, however far it got."""
    world.client_host = FAR
    factory = serve()
    slow = connect()
    for at in range(8):
        slow.write(request()[at : at + 1])
        world.advance(0.95)

    assert 4.9 <= slow.ended <= 5.4
    assert factory.refused == {"handshake_timeout": 1}
    assert factory.countConnections == 0


def test_what_is_counted_for_an_address_is_counted_off_however_it_ends(serve, connect, world):
    """Refused, closed, dropped, out of time: nothing of it is left, and the address has all of its room."""
    world.client_host = FAR
    factory = serve(connections_per_address=3)
    for _ in range(5):
        left = connect().open()
        dropped = connect().open()
        silent = connect()
        wrong = connect()
        wrong.write(request(version="7"))
        left.leave()
        dropped.transport.abortConnection()
        world.advance(6)
        assert silent.ended is not None
        assert factory.countConnections == 0
    three = [connect().open() for _ in range(3)]
    fourth = connect()
    fourth.write(request())

    assert fourth.status == 503
    assert "connections_per_address" in fourth.body.decode()
    assert fourth.headers["retry-after"] == str(RETRY_AFTER)
    assert all(one.ended is None for one in three)
    assert factory.refused["connections_per_address"] == 1


def test_a_page_counts_for_its_address_while_it_is_read(serve, connect, world):
    """The site's connections are on the same account, and are counted off it."""
    world.client_host = FAR
    site = Site(Slowly(), reactor=world.server)
    factory = serve(site=site, paths=("/ws",), connections_per_address=2)
    readers = [connect() for _ in range(3)]
    for reader in readers:
        reader.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    for reader in readers:
        reader.transport.abortConnection()
    world.advance(0.5)

    assert factory.countConnections == 0
    assert [connect().open().status for _ in range(2)] == [101, 101]


# Those from where a flood came.


def test_an_address_that_a_flood_came_from_is_known_for_twenty_seconds_after_the_last_one(arrivals):
    one = arrivals(connections_per_address=10)
    here, there = (come(one, 1, host)[0].account for host in (FAR, OTHER))
    assert not one.has_flooded(here, 0.0)

    one.flooded(here, 1.0)
    one.flooded(there, 2.0)
    one.flooded(here, 5.0)

    assert [one.has_flooded(account, 21.9) for account in (here, there)] == [True, True]
    assert [one.has_flooded(account, 22.1) for account in (here, there)] == [True, False]
    assert [one.has_flooded(account, 25.1) for account in (here, there)] == [False, False]


def test_where_nobody_is_counted_no_flood_is_remembered(arrivals):
    """A UNIX socket, or a proxy that nobody trusts, is not one client."""
    one = arrivals()
    one.flooded(None, 0.0)

    assert not one.has_flooded(None, 0.0)
