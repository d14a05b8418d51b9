"""What a transport still owes the network, asked of real sockets that no reactor turns."""

import os
import select
import socket
import struct
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import frame, request
from twisted.internet import unix
from twisted.internet.error import ConnectionLost
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.tcp import Client, Connection, Server
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport

from heartbeat import HeartbeatServerFactory, HeartbeatServerProtocol, Settings
from heartbeat.outbox import (
    are_waiting,
    bound_silence,
    queued,
    read_first,
    read_last,
    read_little,
    read_up_to,
    unacknowledged,
    way_to,
    write,
    write_at_once,
)
from heartbeat.shared import ServerShared
from heartbeat.tls import trust_anybody

BYTES = 4_000_000

LOST = Failure(ConnectionLost())

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


# At once.


class Line:
    """A TCP server's transport of Twisted's on a real socket, whose reactor turns when it is told to, and its peer.

    The socket is a UNIX one unless it is to be TCP's, which takes its time over small buffers; its ways are the same.
    """

    def __init__(self, protocol=None, family="unix"):
        self.socket, self.peer = sockets(family)
        self.clock = MemoryReactorClock()
        protocol = protocol or Protocol()
        self.transport = Server(self.socket, protocol, ("127.0.0.1", 50_000), None, 1, self.clock)
        protocol.makeConnection(self.transport)

    def turn(self):
        """The reactor looks at the sockets: what waits is written as far as that goes, and what has come is read."""
        why = self.transport.doWrite() if self.transport in self.clock.writers else None
        return why or self.transport.doRead()

    def read(self):
        """All that has arrived at the peer."""
        found = b""
        try:
            while data := self.peer.recv(65_536):
                found += data
        except BlockingIOError:
            pass
        return found

    def drain(self):
        """All that arrives at the peer until nothing waits any more."""
        found = self.read()
        while self.transport in self.clock.writers:
            why = self.transport.doWrite()
            if why is not None:
                self.transport.connectionLost(Failure(why))
            found += self.read()
        return found

    def fill(self):
        """Take all the room that there is in the sockets; how much that was."""
        room = 0
        try:
            while True:
                room += self.socket.send(b"." * 4096)
        except BlockingIOError:
            return room

    def close(self):
        self.peer.close()
        self.socket.close()


@pytest.fixture
def line():
    """Such a line; closed in the end."""
    line = Line()
    yield line
    line.close()


@pytest.fixture
def tcp_line():
    """The same of TCP."""
    line = Line(family="tcp")
    yield line
    line.close()


def eventually(line, size):
    """So many bytes, that arrive at a TCP peer in a moment."""
    line.peer.settimeout(10)
    arrived = b""
    while len(arrived) < size and (more := line.peer.recv(size - len(arrived))):
        arrived += more
    return arrived


def test_a_frame_goes_straight_into_the_socket(line):
    assert write_at_once(line.transport, b"one") is True
    assert write_at_once(line.transport, b"two") is True

    assert line.read() == b"onetwo"
    assert line.clock.writers == set()
    assert queued(line.transport) == 0


def test_a_frame_overtakes_nothing_that_was_given_to_the_transport_before(line):
    line.transport.write(b"first")
    assert write_at_once(line.transport, b"second") is False
    line.transport.writeSequence([b"th", b"ird"])
    assert write_at_once(line.transport, b"fourth") is False
    assert line.read() == b""

    assert line.drain() == b"firstsecondthirdfourth"
    assert write_at_once(line.transport, b"fifth") is True
    assert line.read() == b"fifth"


def test_a_frame_overtakes_nothing_of_which_a_part_has_left_already(line):
    """What Twisted has in its other buffer, with an offset into it."""
    line.transport.write(b"x" * BYTES)
    line.transport.doWrite()
    assert 0 < queued(line.transport) < BYTES
    assert line.transport._tempDataBuffer == []

    assert write_at_once(line.transport, b"y") is False

    assert line.drain() == b"x" * BYTES + b"y"


def test_of_what_the_socket_does_not_take_the_rest_is_the_transports(line):
    whole = bytes(range(256)) * (BYTES // 256)

    assert write_at_once(line.transport, whole) is False
    assert 0 < queued(line.transport) < len(whole)
    assert line.transport in line.clock.writers
    assert write_at_once(line.transport, b"y") is False

    assert line.drain() == whole + b"y"
    assert write_at_once(line.transport, b"z") is True


def test_what_a_socket_without_any_room_does_not_take_is_the_transports(line):
    room = line.fill()

    assert write_at_once(line.transport, b"later") is False

    assert queued(line.transport) == 5
    assert line.drain() == b"." * room + b"later"


def test_into_a_tcp_socket_it_goes_the_same(tcp_line):
    assert write_at_once(tcp_line.transport, b"one") is True
    tcp_line.transport.write(b"two")
    assert write_at_once(tcp_line.transport, b"three") is False
    tcp_line.transport.doWrite()
    assert write_at_once(tcp_line.transport, b"four") is True

    assert eventually(tcp_line, 15) == b"onetwothreefour"


@pytest.mark.parametrize("family", ["unix", "tcp"])
def test_an_error_of_the_sockets_is_the_transports(family):
    """Who writes is told nothing of it; the reactor is, as with any write, and ends the connection."""
    line = Line(family=family)
    # Not an orderly end, but a reset.
    line.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.peer.close()
    # It arrives in a moment.
    select.select([line.socket], [], [], 10)

    assert write_at_once(line.transport, b"x") is False
    assert write_at_once(line.transport, b"y") is False

    assert line.transport.doWrite() is CONNECTION_LOST
    line.close()


def test_to_a_transport_that_is_closing_a_frame_is_written_as_to_any(line):
    line.transport.write(b"first")
    line.transport.loseConnection()

    assert write_at_once(line.transport, b"second") is False

    line.transport.doWrite()
    assert line.read() == b"firstsecond"


def test_to_a_transport_that_is_closing_nothing_is_written_straight(line):
    """It will be closed as soon as its reactor turns; until then it is the transport that knows what to do."""
    line.transport.loseConnection()

    assert write_at_once(line.transport, b"x") is False

    assert line.read() == b""
    assert queued(line.transport) == 1


def test_to_a_transport_that_was_lost_nothing_is_written(line):
    line.transport.loseConnection()
    line.transport.connectionLost(LOST)
    assert not hasattr(line.transport, "socket")

    assert write_at_once(line.transport, b"x") is False

    assert queued(line.transport) == 0


def test_to_a_transport_that_was_aborted_nothing_is_written(line):
    line.transport.abortConnection()

    write_at_once(line.transport, b"x")

    assert line.read() == b""


def test_after_its_own_half_was_closed_nothing_is_written(line):
    line.transport.loseWriteConnection()
    line.transport.doWrite()

    assert write_at_once(line.transport, b"x") is False

    assert queued(line.transport) == 0
    assert line.peer.recv(10) == b""


def test_an_empty_frame_is_nothing(line):
    assert write_at_once(line.transport, b"") is True
    assert queued(line.transport) == 0


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["at once", "at once", "ordinary", "turn", "read"]),
            st.sampled_from([1, 2, 45, 45, 45, 5000, 70_000, 400_000]),
        ),
        max_size=40,
    )
)
def test_whatever_is_written_in_whichever_way_arrives_in_its_order(steps):
    line, written, read = Line(), b"", b""
    try:
        for at, (step, size) in enumerate(steps):
            piece = bytes([at]) * size
            if step == "turn":
                line.turn()
            elif step == "read":
                read += line.read()
            else:
                waits = queued(line.transport) > 0
                at_once = (write_at_once if step == "at once" else write)(line.transport, piece)
                assert at_once is (step == "at once" and not waits and queued(line.transport) == 0)
                written += piece
        read += line.drain()
        assert read == written
    finally:
        line.close()


def test_the_other_way_is_the_transports_own(line):
    assert write(line.transport, b"x") is False
    assert line.read() == b""

    assert line.drain() == b"x"


# Which way.


class Bare(Server):
    """Somebody's own transport, with who knows what in its `write`."""


def test_straight_is_the_way_into_a_tcp_socket_of_twisteds(line):
    assert way_to(line.transport) is write_at_once


def test_straight_is_the_way_into_an_ipv6_socket_too():
    one, two = sockets("tcp")
    transport = Server(one, Protocol(), ("::1", 50_000, 0, 0), None, 1, MemoryReactorClock())

    assert way_to(transport) is write_at_once
    one.close()
    two.close()


def test_ordinary_is_the_way_into_every_other_transport(line, ends, secure):
    one, two = sockets("unix")
    wrapper = ProtocolWrapper(WrappingFactory(Factory()), Protocol())
    wrapper.makeConnection(line.transport)
    others = [
        unix.Server(one, Protocol(), None, None, 1, MemoryReactorClock()),
        Bare(two, Protocol(), ("127.0.0.1", 1), None, 1, MemoryReactorClock()),
        ends()[0],
        wrapper,
        *secure,
        StringTransport(),
        FakeTransport(Protocol(), isServer=True),
        Client.__new__(Client),
    ]

    assert [way_to(transport) for transport in others] == [write] * len(others)
    one.close()
    two.close()


def test_ordinary_is_the_way_into_a_socket_that_has_become_a_secure_one(line):
    """By `startTLS`, which turns the same transport into another."""
    line.transport.TLS = True

    assert way_to(line.transport) is write


def test_into_a_socket_that_becomes_a_secure_one_later_nothing_goes_straight(line):
    """Who has decided on a way before that does not bypass what encrypts."""

    class Encrypts(Protocol):
        def write(self, data):
            self.given = data

    line.transport.protocol = Encrypts()
    line.transport.TLS = True

    assert write_at_once(line.transport, b"secret") is False

    assert line.read() == b""
    assert line.transport.protocol.given == b"secret"


def test_ordinary_is_the_way_in_memory(serve, connect, world):
    serve(fast_path=True)
    connect().open()

    assert world.connections[0][0].protocol._heartbeat.way is write


# What a server's transport says of its own socket.


@linux
def test_a_servers_transport_is_known_for_tcp_without_asking_its_socket(tcp_line):
    transport = tcp_line.transport
    assert unacknowledged(transport) == 0
    assert bound_silence(transport, 60) is True
    tcp_line.fill()
    assert unacknowledged(transport) > 0

    transport.connectionLost(LOST)
    assert unacknowledged(transport) is None
    assert bound_silence(transport, 60) is False


def test_a_servers_transport_on_a_unix_socket_is_not(ends):
    one, two = sockets("unix")
    transport = unix.Server(one, Protocol(), None, None, 1, MemoryReactorClock())

    assert unacknowledged(transport) is None
    assert bound_silence(transport, 60) is False
    one.close()
    two.close()


# All of it: a server on a real socket.


class Beating:
    """A connection of a server of ours on a real socket, open."""

    def __init__(self, *, base=HeartbeatServerProtocol, **settings):
        self.clock = Clock()
        self.factory = HeartbeatServerFactory(Settings(fast_path=True, **settings), reactor=self.clock)
        self.factory.protocol = base
        # Its socket is none of TCP's, of which Twisted would complain.
        self.factory.setProtocolOptions(tcpNoDelay=False)
        self.protocol = self.factory.buildProtocol(None)
        self.line = Line(self.protocol)
        self.say(request())
        assert self.line.read().startswith(b"HTTP/1.1 101 ")
        assert self.protocol._heartbeat.way is write_at_once

    def say(self, *chunks):
        """The peer sends these, and the server reads them."""
        for chunk in chunks:
            self.line.peer.sendall(chunk)
            self.line.transport.doRead()

    def close(self):
        if self.line.transport.connected:
            self.line.transport.connectionLost(LOST)
        self.line.close()
        ServerShared.of(self.factory).stop()
        self.clock.advance(0)
        assert self.clock.getDelayedCalls() == []


@pytest.fixture
def beating():
    """The same, which ends with the test."""
    made = []

    def beating(**keywords):
        made.append(Beating(**keywords))
        return made[-1]

    yield beating
    for one in made:
        one.close()


BEAT = frame(b'{"type":"ping"}')
PONG = b'\x81+{"type":"ping","status":"pong","clients":1}'


def test_a_ping_is_answered_before_the_reactor_turns(beating):
    served = beating()
    served.say(BEAT)
    served.line.drain()

    served.say(BEAT)
    assert served.line.read() == PONG
    served.say(BEAT + BEAT + BEAT)
    assert served.line.read() == PONG * 3
    assert served.line.clock.writers == set()


def test_an_answer_stays_behind_what_the_application_has_sent(beating):
    served = beating()
    served.say(BEAT)
    served.line.drain()

    served.protocol.sendMessage(b"first")
    served.say(BEAT)
    served.protocol.send({"type": "news"})
    served.say(BEAT, frame(b"[]"))

    first, _, rest = served.line.drain().partition(PONG)
    assert first == b"\x81\x05first"
    news, _, error = rest.partition(PONG)
    assert news == b'\x81\x0f{"type":"news"}'
    assert b'{"type":"error","code":"bad-message"' in error


def test_from_a_peer_that_reads_no_answers_nothing_is_read_until_it_does(beating):
    """And no answer is lost, doubled, or out of its turn."""
    served = beating(outgoing_limit=65_536)
    line, pinged, heard = served.line, 1, b""
    served.say(BEAT)
    heard += line.drain()

    while line.transport in line.clock.readers:
        served.say(frame(b'{"type":"ping","id":%06d}' % (100_000 + pinged)))
        pinged += 1
        assert pinged < 200_000
    assert 65_536 < queued(line.transport) < 70_000

    heard += line.drain()
    served.clock.advance(0.2)
    assert line.transport in line.clock.readers
    served.say(frame(b'{"type":"ping","id":999999}'))
    heard += line.drain()
    ids = [int(text[:6]) for text in heard.split(b'"id":')[1:]]
    assert ids == [*range(100_001, 100_000 + pinged), 999_999]


def test_a_close_comes_behind_the_answers(beating):
    served = beating()
    served.say(BEAT + BEAT + frame(b"\x03\xe8bye", 8))

    assert served.line.drain() == PONG * 2 + b"\x88\x02\x03\xe8"
    assert served.protocol.state == served.protocol.STATE_CLOSED


def test_the_answer_to_a_handshake_goes_straight_too(beating):
    """`Beating` has read it before its reactor turned."""
    assert beating().line.clock.writers == set()


# Little by little.


SHORT = b"\x81\x80mask"
FRAMES = {
    "the shortest": SHORT,
    "short ones": b"\x81\x85mask" + b"x" * 5,
    "of two bytes for the length": b"\x82\xfe" + (300).to_bytes(2) + b"mask" + b"x" * 300,
    "of eight bytes for the length": b"\x82\xff" + (70).to_bytes(8) + b"mask" + b"x" * 70,
}


@pytest.mark.parametrize("one", FRAMES.values(), ids=FRAMES)
def test_frames_are_counted_while_nobody_has_read_them(line, one):
    line.peer.send(one * 7)

    for count, are in [(0, True), (1, True), (7, True), (8, False)]:
        assert are_waiting(line.transport, count, begun=b"", rest=0) is are
    assert line.socket.recv(65_536) == one * 7


def test_neither_the_rest_of_a_frame_counts_nor_one_of_whose_head_only_a_part_has_come(line):
    line.peer.send(b"rest" + SHORT * 3 + SHORT[:-1])

    assert are_waiting(line.transport, 3, begun=b"", rest=4)
    assert not are_waiting(line.transport, 4, begun=b"", rest=4)
    # Of what was read already only its beginning is told.
    assert not are_waiting(line.transport, 1, begun=b"", rest=1000)


def test_a_part_of_a_head_is_no_frame_among_longer_ones_either(line):
    line.peer.send(frame(b"longer") * 3 + frame(b"longer")[:5])

    assert are_waiting(line.transport, 3, begun=b"", rest=0)
    assert not are_waiting(line.transport, 4, begun=b"", rest=0)


def test_a_frame_whose_beginning_was_read_counts_too(line):
    line.peer.send(SHORT[2:] + SHORT)

    assert are_waiting(line.transport, 2, begun=SHORT[:2], rest=0)
    assert not are_waiting(line.transport, 3, begun=SHORT[:2], rest=0)


@given(st.lists(st.sampled_from([0, 0, 0, 1, 5, 125, 126, 300]), min_size=1, max_size=40), st.integers(0, 45))
def test_frames_are_counted_alike_or_not(sizes, count):
    """Equally short ones are counted in one step, which nobody can see."""
    one, two = socket.socketpair()
    with one, two:
        transport = Server(one, Protocol(), ("", 0), None, 0, MemoryReactorClock())
        two.send(b"".join(frame(bytes(size)) for size in sizes))

        assert are_waiting(transport, count, begun=b"", rest=0) is (count <= len(sizes))


def test_where_nothing_can_be_told_nobody_waits(line, secure):
    """Nothing has come; the socket is closed; TLS has it, and only it knows what it says; there is no socket."""
    assert not are_waiting(line.transport, 1, begun=b"", rest=0)
    tls, _ = secure
    assert not are_waiting(tls, 0, begun=SHORT * 9, rest=0)
    assert not are_waiting(StringTransport(), 0, begun=SHORT * 9, rest=0)
    line.socket.close()
    assert not are_waiting(line.transport, 1, begun=SHORT * 9, rest=0)


def test_what_a_stranger_says_of_a_frames_length_costs_nothing(line):
    line.peer.send((b"\x82\xff" + b"\xff" * 8 + b"mask") * 3)

    assert are_waiting(line.transport, 1, begun=b"", rest=0)
    assert not are_waiting(line.transport, 2, begun=b"", rest=0)


class Ranking(MemoryReactorClock):
    """A reactor that knows of who is to be read last, and what it was told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def read_last(self, reader):
        self.told.append(("last", reader))

    def read_first(self, reader):
        self.told.append(("first", reader))


def test_a_reactor_that_knows_of_it_is_told_who_is_to_be_read_last(secure):
    """The socket's transport, below whatever lies on it."""
    tls, transport = secure
    transport.reactor = Ranking()

    read_last(tls)
    read_first(tls)
    read_last(transport)

    assert transport.reactor.told == [("last", transport), ("first", transport), ("last", transport)]


def test_no_other_reactor_is_told(ends):
    """Nor is anybody where there is none."""
    transport, _ = ends()
    transport.startReading()
    for one in (transport, StringTransport()):
        read_last(one)
        read_first(one)

    assert transport.reactor.getReaders() == [transport]


def test_little_is_read_at_a_time_but_for_what_is_left_of_one_frame():
    class Reads(Protocol):
        def __init__(self):
            self.read = []

        def dataReceived(self, data):
            self.read.append(len(data))

    line = Line(Reads())
    try:
        line.peer.send(b"x" * 200_000)
        reader = read_little(line.transport)
        assert reader is line.transport
        line.turn()
        for rest in (0, 10, 1000):
            read_up_to(reader, rest)
            line.turn()
        assert line.transport.protocol.read == [256, 256, 10, 1000]
        read_up_to(reader, 100_000)
        assert reader.bufferSize == 65_536
    finally:
        line.close()
    assert read_little(StringTransport()) is None


def test_over_tls_where_nothing_is_there_before_its_record_is_little_is_more():
    line = Line(Protocol())
    try:
        secured = TLSMemoryBIOFactory(trust_anybody("test"), True, Factory.forProtocol(Protocol)).buildProtocol(None)
        secured.transport = line.transport
        wrapped = ProtocolWrapper(None, Protocol())
        wrapped.transport = secured

        assert read_little(wrapped) is None
        assert line.transport.bufferSize == 2048
    finally:
        line.close()
