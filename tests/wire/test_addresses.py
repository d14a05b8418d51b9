"""Where a peer is, and under which name it is counted."""

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from heartbeat.addresses import Where, forwarded_for, is_local, is_passed_on, place_of, where_from

LOCAL = {
    "IPv4 loopback": (IPv4Address("TCP", "127.0.0.1", 1), True),
    "all of 127": (IPv4Address("TCP", "127.9.9.9", 1), True),
    "IPv6 loopback": (IPv6Address("TCP", "::1", 1), True),
    "IPv4 loopback on a listener for both": (IPv6Address("TCP", "::ffff:127.0.0.1", 1), True),
    "a UNIX socket": (UNIXAddress("/tmp/socket"), True),  # noqa: S108  # opened by nobody
    "another machine": (IPv4Address("TCP", "192.0.2.7", 1), False),
    "another machine on a listener for both": (IPv6Address("TCP", "::ffff:192.0.2.7", 1), False),
    "the same link": (IPv6Address("TCP", "fe80::1%eth0", 1), False),
    "everywhere": (IPv4Address("TCP", "0.0.0.0", 1), False),  # noqa: S104  # bound by nobody
    "a host name": (IPv4Address("TCP", "localhost", 1), False),
    "nothing that is known": (object(), False),
}


@pytest.mark.parametrize(("address", "local"), LOCAL.values(), ids=LOCAL)
def test_a_peer_is_local_on_loopback_and_unix_sockets(address, local):
    assert is_local(address) is local


PLACES = {
    "192.0.2.7": ("192.0.2.7", Where.FAR),
    "::ffff:192.0.2.7": ("192.0.2.7", Where.FAR),
    "127.0.0.2": ("127.0.0.2", Where.HERE),
    "::1": ("::1", Where.HERE),
    "10.1.2.3": ("10.1.2.3", Where.NEAR),
    "172.31.0.1": ("172.31.0.1", Where.NEAR),
    "172.32.0.1": ("172.32.0.1", Where.FAR),
    "192.168.7.7": ("192.168.7.7", Where.NEAR),
    "100.64.0.1": ("100.64.0.1", Where.NEAR),
    "169.254.1.1": ("169.254.1.1", Where.NEAR),
    "2001:db8:1:2:3:4:5:6": ("2001:db8:1:2::/64", Where.FAR),
    "2001:db8:1:2:ffff::": ("2001:db8:1:2::/64", Where.FAR),
    "2001:db8:1:3::1": ("2001:db8:1:3::/64", Where.FAR),
    "fd00::1": ("fd00::/64", Where.NEAR),
    "fe80::1%eth0": ("fe80::/64", Where.NEAR),
    "unknown": ("unknown", Where.FAR),
}


@pytest.mark.parametrize(("host", "place"), PLACES.items(), ids=PLACES)
def test_an_address_is_counted_as_itself_and_one_of_ipv6_as_its_network(host, place):
    """A customer has a /64, and could come from a new address of it each time."""
    assert place_of(host) == place


def head(*lines):
    """A request with these header lines."""
    return "\r\n".join(("GET /ws HTTP/1.1", "Host: example.org", *lines, "\r\n")).encode()


PASSED_ON = ("X-Forwarded-For: 192.0.2.1", "x-forwarded-proto: https", "Via: 1.1 proxy", "Forwarded: for=192.0.2.1")


@pytest.mark.parametrize("line", PASSED_ON)
def test_a_proxy_nearby_that_nobody_trusts_is_nobody_in_particular(line):
    """Behind it there are many; without its headers it would be one of those who live there."""
    assert is_passed_on(head(line))
    for host in ("10.0.0.1", "127.0.0.1", "fd00::1"):
        peer = (IPv6Address if ":" in host else IPv4Address)("TCP", host, 1)
        assert where_from(peer, head(line), 0)[0] is None
        assert where_from(peer, head("X-Other: X-Forwarded-For: 1"), 0)[0] is not None


@pytest.mark.parametrize("line", PASSED_ON)
def test_nobody_from_the_open_network_escapes_by_headers(line):
    """Anybody can write them."""
    peer = IPv4Address("TCP", "192.0.2.7", 1)
    assert where_from(peer, head(line), 0) == ("192.0.2.7", Where.FAR)


def test_who_comes_by_a_unix_socket_is_nobody_in_particular():
    """At its other end there is a proxy, or this machine's own."""
    assert where_from(UNIXAddress("/tmp/socket"), head(), 0) == (None, Where.HERE)  # noqa: S108  # opened by nobody
    assert where_from(object(), head(), 0) == (None, Where.HERE)


FORWARDED = [
    (("X-Forwarded-For: 192.0.2.1",), 1, "192.0.2.1"),
    (("X-Forwarded-For: 198.51.100.9, 192.0.2.1",), 1, "192.0.2.1"),
    (("X-Forwarded-For: 203.0.113.5, 198.51.100.9 ,192.0.2.1",), 2, "198.51.100.9"),
    (("X-Forwarded-For: 203.0.113.5", "X-FORWARDED-FOR : 192.0.2.1"), 1, "192.0.2.1"),
    (("X-Forwarded-For: 192.0.2.1:4711",), 1, "192.0.2.1"),
    (("X-Forwarded-For: [2001:db8::7]:4711",), 1, "2001:db8::7"),
    (("X-Forwarded-For: 2001:db8::7",), 1, "2001:db8::7"),
    (("X-Forwarded-For: \x01evil\x7f" + "x" * 100,), 1, "evil" + "x" * 60),
    (("X-Forwarded-For:  ",), 1, None),
    ((), 1, None),
]


@pytest.mark.parametrize(("lines", "trusted", "name"), FORWARDED)
def test_trusted_proxies_say_for_whom_they_ask(lines, trusted, name):
    """As many as are trusted have appended one each; what stands before that is anybody's to write."""
    assert forwarded_for(head(*lines), trusted) == name


def test_behind_trusted_proxies_each_client_is_counted_as_himself():
    """By UNIX socket or TCP; and who says nothing of anybody is counted by where he comes from."""
    forwarded = head("X-Forwarded-For: 192.0.2.1")
    assert where_from(UNIXAddress("/tmp/socket"), forwarded, 1) == ("192.0.2.1", Where.FAR)  # noqa: S108  # as above
    assert where_from(IPv4Address("TCP", "127.0.0.1", 1), forwarded, 1) == ("192.0.2.1", Where.FAR)
    assert where_from(IPv4Address("TCP", "10.0.0.1", 1), head(), 1) == ("10.0.0.1", Where.NEAR)
