"""What a transport still owes the network, asked of real sockets that no reactor turns."""

import os
import socket
import sys

import pytest
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory

from heartbeat.outbox import bound_silence, queued, unacknowledged
from heartbeat.tls import trust_anybody

BYTES = 4_000_000

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


def _ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return []
    return ["tcp6"]


TCP = ["tcp", *_ipv6()]


def sockets(family):
    """Two ends that are connected, with small buffers."""
    if family == "unix":
        one, two = socket.socketpair()
    else:
        host = "127.0.0.1" if family == "tcp" else "::1"
        with socket.create_server((host, 0), family=socket.AF_INET if family == "tcp" else socket.AF_INET6) as server:
            one = socket.create_connection(server.getsockname()[:2])
            two, _ = server.accept()
    for end in (one, two):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        end.setblocking(False)
    return one, two


@pytest.fixture
def ends():
    """A transport of Twisted's on one end of a connection, and the other end's socket."""
    opened = []

    def ends(family="tcp"):
        one, two = sockets(family)
        opened.extend((one, two))
        transport = Connection(one, Protocol(), MemoryReactorClock())
        transport.connected = 1
        return transport, two

    yield ends
    for end in opened:
        end.close()


@pytest.mark.parametrize("family", [*TCP, "unix"])
def test_queued_are_the_bytes_that_have_not_left_this_process(ends, family):
    transport, _ = ends(family)
    assert queued(transport) == 0

    transport.write(b"x" * (BYTES - 2))
    transport.writeSequence([b"x", b"x"])
    assert queued(transport) == BYTES

    transport.doWrite()
    left = queued(transport)
    assert 0 < left < BYTES
    transport.write(b"y" * 10)
    assert queued(transport) == left + 10
    transport.doWrite()
    assert queued(transport) <= left + 10


def test_of_a_transport_of_another_kind_nothing_is_known():
    assert queued(StringTransport()) is None
    assert unacknowledged(StringTransport()) is None
    assert bound_silence(StringTransport(), 60) is False


@linux
@pytest.mark.parametrize("family", TCP)
def test_unacknowledged_are_the_bytes_that_the_other_kernel_has_not_taken(ends, family):
    transport, _ = ends(family)
    assert unacknowledged(transport) == 0

    transport.write(b"x" * BYTES)
    before = None
    while queued(transport) != before:
        before = queued(transport)
        transport.doWrite()
    # The other end reads nothing, and by now its window is full.
    assert 0 < unacknowledged(transport) <= BYTES - queued(transport)


def test_a_unix_socket_has_no_acknowledgements(ends):
    transport, _ = ends("unix")

    assert unacknowledged(transport) is None
    assert bound_silence(transport, 60) is False


def test_elsewhere_than_on_linux_nobody_knows(ends, monkeypatch):
    transport, _ = ends()
    monkeypatch.setattr(sys, "platform", "win32")

    assert unacknowledged(transport) is None


def test_of_a_socket_that_is_closed_nothing_is_known(ends):
    transport, _ = ends()
    transport.socket.close()

    assert unacknowledged(transport) is None
    assert bound_silence(transport, 60) is False


@linux
def test_of_a_socket_that_is_closing_under_us_nothing_is_known(ends):
    """Its number is somebody else's by now, a pipe's in this case."""
    transport, _ = ends()
    read, write = os.pipe()
    fileno = os.dup(transport.socket.fileno())
    os.dup2(write, transport.socket.fileno())

    assert unacknowledged(transport) is None or unacknowledged(transport) == 0
    assert bound_silence(transport, 60) is False
    for descriptor in (read, write, fileno):
        os.close(descriptor)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the platform has no such option")
def test_the_kernel_is_told_how_long_to_bear_silence(ends):
    transport, _ = ends()

    assert bound_silence(transport, 105.4) is True
    assert transport.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 105_400


def test_where_the_platform_has_no_such_option_nobody_is_told(ends, monkeypatch):
    transport, _ = ends()
    monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)

    assert bound_silence(transport, 105.4) is False


# Over TLS.


@pytest.fixture
def secure(ends):
    """A client's TLS transport on such a socket; the other end never answers its hello."""
    transport, _ = ends()
    factory = TLSMemoryBIOFactory(
        trust_anybody("test"), isClient=True, wrappedFactory=Factory.forProtocol(Protocol), clock=Clock()
    )
    tls = factory.buildProtocol(None)
    transport.protocol = tls
    tls.makeConnection(transport)
    return tls, transport


def test_over_tls_the_bytes_inside_it_count_too(secure):
    tls, transport = secure
    hello = queued(transport)
    assert hello > 0
    assert queued(tls) == hello

    tls.write(b"x" * 1000)
    tls.writeSequence([b"y" * 10])
    assert queued(tls) == hello + 1010

    # What it aggregates moves on to what it cannot send before the handshake.
    tls._aggregator.flush()
    assert queued(tls) == hello + 1010
    transport.doWrite()
    assert queued(tls) == 1010


@linux
def test_over_tls_the_socket_below_is_asked(secure):
    tls, transport = secure

    assert unacknowledged(tls) == unacknowledged(transport) == 0
    assert bound_silence(tls, 60) is True
