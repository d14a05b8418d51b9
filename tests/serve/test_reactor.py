"""Our reactor beside Twisted's: the same happens on both to the same sockets, in seconds that nobody sets."""

import contextlib
import errno
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from processes import BIN, client, twistd
from test_faults import SteppedClock, needs_faketime
from twisted.internet import main
from twisted.internet.interfaces import IHalfCloseableProtocol, IReadDescriptor, IWriteDescriptor
from twisted.internet.protocol import ClientFactory, DatagramProtocol, Factory, Protocol
from twisted.logger import formatEvent, globalLogPublisher
from zope.interface import implementer

if sys.platform != "linux":
    pytest.skip("the reactor of txheartbeat is for Linux alone", allow_module_level=True)

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.tcp import Port, Server

from heartbeat import HeartbeatService, Settings
from heartbeat.pulse import Pulse
from heartbeat.reactor import HeartbeatReactor

#: Nothing here takes a second; this bounds what hangs.
SOON = 10.0

#: More than any socket's buffers take at once.
MUCH = b"x" * 20_000_000


class ReadsStrangersLast(HeartbeatReactor):
    """Ours, where all who come are strangers: each connection that was accepted is read last, and so is its port."""

    def __init__(self):
        self.strangers = set()
        super().__init__()

    def addReader(self, reader):
        super().addReader(reader)
        if isinstance(reader, Server | Port) and reader not in self.strangers:
            self.strangers.add(reader)
            self.read_last(reader)


KINDS = [HeartbeatReactor, ReadsStrangersLast, EPollReactor]


@pytest.fixture
def make_reactor():
    """A reactor that is not installed, and turns when it is told to; closed in the end."""
    made = []

    def make_reactor(kind):
        reactor = kind()
        made.append(reactor)
        return reactor

    yield make_reactor
    for reactor in made:
        reactor.removeAll()
        reactor.waker.connectionLost(None)
        reactor._poller.close()


@pytest.fixture
def reactor(make_reactor):
    """Ours."""
    return make_reactor(HeartbeatReactor)


@pytest.fixture
def failures():
    """What fails and is logged: in whose context, what it was, and the function it comes from."""
    told = []

    def observe(event):
        failure = event.get("failure") or event.get("log_failure")
        if failure is not None:
            told.append((event["log_system"], failure.type, innermost(failure)))

    globalLogPublisher.addObserver(observe)
    yield told
    globalLogPublisher.removeObserver(observe)


@pytest.fixture
def logged():
    """All events that are logged."""
    events = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


def innermost(failure):
    """The name of the function that raised."""
    traceback = failure.getTracebackObject()
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_code.co_name


# Time.


def test_its_seconds_are_monotonic_and_its_timers_keep_to_them(reactor):
    rung = []
    before = time.monotonic()
    call = reactor.callLater(0.02, lambda: rung.append(time.monotonic()))

    assert reactor.seconds is time.monotonic
    assert before + 0.02 <= call.getTime() <= time.monotonic() + 0.02
    while not rung:
        reactor.iterate(reactor.timeout())
    assert before + 0.02 <= rung[0] < before + SOON


def test_a_ticker_on_it_is_not_watched(reactor, monkeypatch):
    monkeypatch.setitem(sys.modules, "twisted.internet.reactor", reactor)

    assert not Pulse(reactor, 0.25).watched


STEPS = """
import os, sys, time
from heartbeat.reactor import install

install()
from twisted.internet import reactor

began, wall = time.monotonic(), time.time()

def step():
    with open(os.environ["FAKETIME_TIMESTAMP_FILE"], "w") as file:
        file.write(sys.argv[1])

def end():
    print(time.monotonic() - began, time.time() - wall)
    reactor.stop()

reactor.callLater(0.1, step)
reactor.callLater(0.3, lambda: reactor.callLater(0.2, end))
reactor.run()
"""


@needs_faketime
@pytest.mark.faults
@pytest.mark.parametrize("step", [3600, -3600])
def test_a_step_of_the_system_clock_moves_no_timer(tmp_path, step):
    """Neither one that was waiting nor one that is set after it."""
    env = os.environ | SteppedClock(tmp_path, "clock").env
    told = subprocess.run(
        [sys.executable, "-c", STEPS, f"{step:+d}"], capture_output=True, text=True, env=env, timeout=SOON, check=True
    )

    elapsed, by_the_wall = map(float, told.stdout.split())
    assert 0.5 <= elapsed < SOON
    assert by_the_wall == pytest.approx(elapsed + step, abs=1)


# What its sockets are told, beside Twisted's own.


class Told(Protocol):
    """Keeps what it is told."""

    def __init__(self):
        self.told = []
        self.data = b""
        self.lost = False

    def dataReceived(self, data):
        self.data += data

    def connectionLost(self, reason):
        self.lost = True
        self.told.append(reason.type.__name__)


@implementer(IHalfCloseableProtocol)
class HalfClosing(Told):
    """The same, and goes on when one half is closed."""

    def readConnectionLost(self):
        self.told.append("nothing more will be read")

    def writeConnectionLost(self):
        self.told.append("nothing more will be written")


class Clumsy(Told):
    """Fails when it is told something."""

    def dataReceived(self, data):
        raise ZeroDivisionError("clumsy")


class AbortsClumsily(Told):
    """Would end its connection, and fails before that is done."""

    def dataReceived(self, data):
        self.transport.abortConnection()
        raise ZeroDivisionError("clumsy")


class LosesClumsily(Told):
    """Fails when it hears of its end."""

    def connectionLost(self, reason):
        super().connectionLost(reason)
        raise ZeroDivisionError("clumsy")


class ClumsyHalfClosing(HalfClosing):
    """Fails when it hears of half its end."""

    def readConnectionLost(self):
        raise ZeroDivisionError("clumsy")


class Leaves(Told):
    """Closes when it is told something."""

    def dataReceived(self, data):
        super().dataReceived(data)
        self.transport.write(b"bye")
        self.transport.loseConnection()


class Aborts(Leaves):
    """Does so at once."""

    def dataReceived(self, data):
        self.transport.abortConnection()


def turn_until(reactor, condition):
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        reactor.iterate(0.02)


class Rig:
    """A server on a reactor, whose protocol keeps what it is told, and its peer: a bare socket."""

    def __init__(self, reactor, protocol):
        self.reactor = reactor
        self.server = protocol()
        self.port = reactor.listenTCP(0, Factory.forProtocol(lambda: self.server), interface="127.0.0.1")
        self.peer = socket.create_connection(("127.0.0.1", self.port.getHost().port), timeout=SOON)
        self.turn_until(lambda: self.server.connected)
        self.transport = self.server.transport

    def turn_until(self, condition):
        turn_until(self.reactor, condition)

    def arrives(self, data):
        """Have the peer say this, and the server hear it."""
        self.peer.sendall(data)
        self.turn_until(lambda: self.server.data.endswith(data))

    def reset(self):
        """Have the peer close with a reset."""
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()

    def read_all(self):
        """What the peer gets until nothing more comes."""
        got = []

        def read():
            with contextlib.suppress(BlockingIOError):
                got.append(self.peer.recv(1 << 20))
            return got and not got[-1]

        self.peer.setblocking(False)
        self.turn_until(read)
        return b"".join(got)

    def close(self):
        self.peer.close()
        self.port.stopListening()
        self.turn_until(lambda: self.server.lost and not self.reactor.getDelayedCalls())


@pytest.fixture
def make_rig(make_reactor):
    """A rig on a reactor of this kind; closed in the end."""
    made = []

    def make_rig(kind, protocol=Told):
        made.append(Rig(make_reactor(kind), protocol))
        return made[-1]

    yield make_rig
    for rig in made:
        rig.close()


def says_and_goes(rig):
    rig.peer.sendall(b"and that is all")
    rig.peer.close()
    rig.turn_until(lambda: rig.server.lost)
    assert rig.server.data == b"and that is all"


def is_reset_while_it_writes(rig):
    """Nothing is read, so the event is an error and nothing else."""
    rig.transport.pauseProducing()
    rig.transport.write(MUCH)
    rig.reactor.iterate(0.02)
    assert rig.reactor.getWriters() == [rig.transport]
    rig.reset()


def is_reset_while_it_writes_and_reads(rig):
    rig.transport.write(MUCH)
    rig.reactor.iterate(0.02)
    rig.reset()


def says_something_and_resets_while_it_writes(rig):
    """What had arrived before the end is heard before the end."""
    rig.transport.write(MUCH)
    rig.reactor.iterate(0.02)
    rig.peer.sendall(b"last words")
    rig.reset()
    rig.turn_until(lambda: rig.server.lost)
    assert rig.server.data == b"last words"


def closes_half_and_is_answered(rig):
    rig.peer.sendall(b"a question")
    rig.peer.shutdown(socket.SHUT_WR)
    rig.turn_until(lambda: rig.server.told or rig.server.lost)
    assert rig.server.data == b"a question"
    rig.transport.write(b"an answer")
    rig.transport.loseConnection()
    assert rig.read_all() == b"an answer"


def closes_one_half_and_then_the_other(rig):
    rig.transport.loseWriteConnection()
    assert rig.read_all() == b""
    rig.peer.setblocking(True)
    rig.arrives(b"still here")
    rig.peer.close()
    rig.turn_until(lambda: READ in rig.server.told)
    rig.transport.loseConnection()


def takes_much_and_goes(rig):
    """The server's buffers are full for most of the time."""
    rig.transport.write(MUCH)
    rig.turn_until(lambda: rig.transport in rig.reactor.getWriters())
    rig.arrives(b"in between")
    rig.transport.loseConnection()
    assert rig.read_all() == MUCH
    assert rig.reactor.getWriters() == []


def hears_goodbye(rig):
    rig.peer.sendall(b"go")
    assert rig.read_all() == b"bye"


def is_aborted(rig):
    rig.peer.sendall(b"go")
    rig.turn_until(lambda: rig.server.lost)
    with pytest.raises(ConnectionResetError):
        rig.peer.recv(1)


READ, WRITTEN = "nothing more will be read", "nothing more will be written"
DONE, LOST, ABORTED, CLUMSY = "ConnectionDone", "ConnectionLost", "ConnectionAborted", "ZeroDivisionError"


@dataclass(frozen=True)
class Life:
    """What a peer does to a protocol of ours; what that is told; of which of its functions a failure is logged."""

    peer: Any
    told: list[str]
    protocol: type[Told] = Told
    fails: list[str] = field(default_factory=list)


LIVES = {
    "the peer goes": Life(lambda rig: rig.peer.close(), [DONE]),
    "the peer says something and goes": Life(says_and_goes, [DONE]),
    "the peer resets": Life(lambda rig: rig.reset(), [LOST]),
    "the peer resets amid our writing": Life(is_reset_while_it_writes, [LOST]),
    "the peer resets amid our writing and reading": Life(is_reset_while_it_writes_and_reads, [LOST]),
    "the peer says something and resets amid our writing": Life(says_something_and_resets_while_it_writes, [LOST]),
    "the peer closes its half": Life(lambda rig: rig.peer.shutdown(socket.SHUT_WR), [DONE]),
    "the peer closes its half, and we can bear it": Life(closes_half_and_is_answered, [READ, DONE], HalfClosing),
    "we close our half": Life(closes_one_half_and_then_the_other, [WRITTEN, READ, DONE], HalfClosing),
    "the peer takes much": Life(takes_much_and_goes, [DONE]),
    "we go": Life(hears_goodbye, [DONE], Leaves),
    "we abort": Life(is_aborted, [ABORTED], Aborts),
    "we fail": Life(lambda rig: rig.peer.sendall(b"x"), [CLUMSY], Clumsy, ["dataReceived"]),
    "we abort and fail": Life(lambda rig: rig.peer.sendall(b"x"), [CLUMSY], AbortsClumsily, ["dataReceived"]),
    "we fail at the end": Life(lambda rig: rig.peer.close(), [DONE], LosesClumsily, ["connectionLost"]),
    "we fail at half the end": Life(
        lambda rig: rig.peer.shutdown(socket.SHUT_WR), [CLUMSY], ClumsyHalfClosing, ["readConnectionLost"]
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES)
def test_a_connection_lives_and_ends_as_on_twisteds_own(make_rig, failures, kind, life):
    """The protocol is told the same, and what failed is logged, with its traceback and in the connection's context."""
    rig = make_rig(kind, life.protocol)

    life.peer(rig)
    rig.turn_until(lambda: rig.server.lost)

    assert rig.server.told == life.told
    assert failures == [(f"{life.protocol.__name__},0,127.0.0.1", ZeroDivisionError, name) for name in life.fails]
    assert rig.transport not in rig.reactor.getReaders() + rig.reactor.getWriters()
    assert rig.transport not in getattr(rig.reactor, "_last", ())


@pytest.mark.parametrize("kind", [HeartbeatReactor, EPollReactor])
def test_a_connection_that_is_refused_is_told_so_as_on_twisteds_own(make_reactor, kind):
    reactor = make_reactor(kind)
    failed = []
    factory = ClientFactory()
    factory.clientConnectionFailed = lambda connector, reason: failed.append(reason.type.__name__)
    with socket.socket() as taken:
        # Bound, and not listening.
        taken.bind(("127.0.0.1", 0))
        reactor.connectTCP("127.0.0.1", taken.getsockname()[1], factory)
        turn_until(reactor, lambda: failed)

    assert failed == ["ConnectionRefusedError"]


@pytest.mark.parametrize("kind", [HeartbeatReactor, EPollReactor])
def test_datagrams_arrive_as_on_twisteds_own(make_reactor, kind):
    """What is read is not all a stream."""
    reactor = make_reactor(kind)
    heard = []
    protocol = DatagramProtocol()
    protocol.datagramReceived = lambda datagram, address: heard.append(datagram)
    port = reactor.listenUDP(0, protocol, interface="127.0.0.1")
    with socket.socket(type=socket.SOCK_DGRAM) as peer:
        for word in (b"one", b"two"):
            peer.sendto(word, ("127.0.0.1", port.getHost().port))
        turn_until(reactor, lambda: len(heard) == 2)

    assert heard == [b"one", b"two"]
    port.stopListening()
    reactor.iterate(0)


class Accepting:
    """The socket of a port, of which the next `accept` fails."""

    def __init__(self, listening, number):
        self._listening = listening
        self._errors = [OSError(number, os.strerror(number))]

    def __getattr__(self, name):
        return getattr(self._listening, name)

    def accept(self):
        if self._errors:
            raise self._errors.pop()
        return self._listening.accept()


@pytest.mark.parametrize("number", [errno.ENFILE, errno.EIO])
@pytest.mark.parametrize("kind", KINDS)
def test_a_port_that_cannot_accept_says_so_and_goes_on(make_rig, kind, number, logged, failures):
    """For want of files, as happens, or for what should never: whoever waits is let in when it can be done again."""
    rig = make_rig(kind)
    first, rig.server = rig.server, Told()
    rig.port.socket = Accepting(rig.port.socket, number)

    with socket.create_connection(rig.peer.getpeername(), timeout=SOON):
        rig.turn_until(lambda: rig.server.connected)

    said = [formatEvent(event) for event in logged]
    assert ("Could not accept new connection (ENFILE)" in said) == (number == errno.ENFILE)
    assert [failed[1:] for failed in failures] == ([] if number == errno.ENFILE else [(OSError, "accept")])
    assert not first.lost
    rig.peer.close()
    rig.turn_until(lambda: first.lost)


# One turn.


@implementer(IReadDescriptor, IWriteDescriptor)
class Ready:
    """Something that can be read, and written, for ever; what is done when it is read, a test says."""

    def __init__(self, reactor, read=lambda: None, number=None):
        self.reactor = reactor
        self.read = read
        self.reads = self.writes = 0
        self.lost = []
        self._number = os.eventfd(1) if number is None else number
        reactor.addReader(self)

    def fileno(self):
        return self._number

    def logPrefix(self):
        return "one that is ready"

    def doRead(self):
        self.reads += 1
        return self.read()

    def doWrite(self):
        self.writes += 1

    def connectionLost(self, reason):
        self.lost.append(reason.value)
        self.close()

    def close(self):
        self.reactor.removeReader(self)
        self.reactor.removeWriter(self)
        number, self._number = self._number, -1
        if number != -1:
            os.close(number)


@pytest.fixture
def make_ready(reactor):
    """Descriptors of our reactor that can be read; closed in the end."""
    made = []

    def make_ready(*arguments):
        made.append(Ready(reactor, *arguments))
        return made[-1]

    yield make_ready
    for ready in made:
        ready.close()


def fail():
    raise ZeroDivisionError("clumsy")


def test_who_fails_is_ended_alone_and_the_others_of_the_turn_are_served(reactor, make_ready, failures):
    """Its failure is logged with its traceback, in its context, and is what it is told."""
    around = [make_ready(), make_ready(fail), make_ready(), make_ready(fail), make_ready()]

    reactor.doPoll(0)

    assert [ready.reads for ready in around] == [1, 1, 1, 1, 1]
    assert failures == [("one that is ready", ZeroDivisionError, "fail")] * 2
    assert [[str(reason) for reason in ready.lost] for ready in around] == [[], ["clumsy"], [], ["clumsy"], []]
    reactor.doPoll(0)
    assert [ready.reads for ready in around] == [2, 1, 2, 1, 2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_no_error_of_anybodys_ends_the_reactor(reactor, make_ready, failures, error):
    def leave():
        raise error

    ready = make_ready(leave)
    other = make_ready()

    reactor.doPoll(0)

    assert failures == [("one that is ready", error, "leave")]
    assert [type(reason) for reason in ready.lost] == [error]
    assert other.reads == 1


@pytest.mark.parametrize("reason", [main.CONNECTION_DONE, main.CONNECTION_LOST, ZeroDivisionError("told")])
def test_who_says_why_it_has_ended_is_ended_for_that(reactor, make_ready, failures, reason):
    ready = make_ready(lambda: reason)
    other = make_ready()

    reactor.doPoll(0)

    assert [type(lost) for lost in ready.lost] == [type(reason)]
    assert other.reads == 1
    assert failures == []


def test_who_fails_to_say_its_name_is_ended_all_the_same(reactor, make_ready, failures):
    ready = make_ready(fail)
    ready.logPrefix = fail
    other = make_ready()

    reactor.doPoll(0)

    assert failures == [("(buggy logPrefix method)", ZeroDivisionError, "fail")] * 2
    assert len(ready.lost) == 1
    assert other.reads == 1


def test_who_fails_when_it_is_ended_is_logged_and_the_others_are_served(reactor, make_ready, failures):
    ready = make_ready(lambda: main.CONNECTION_DONE)
    ready.connectionLost = lambda reason: fail()
    other = make_ready()

    reactor.doPoll(0)
    reactor.doPoll(0)

    assert failures == [("one that is ready", ZeroDivisionError, "fail")]
    assert (ready.reads, other.reads) == (1, 2)


def test_who_was_closed_by_another_one_in_the_same_turn_is_left_alone(reactor, make_ready):
    """Whichever comes first."""

    def close_the_others():
        for ready in three:
            if not ready.reads:
                ready.close()

    three = [make_ready(close_the_others) for _ in range(3)]

    reactor.doPoll(0)
    reactor.doPoll(0)

    assert sorted(ready.reads for ready in three) == [0, 0, 2]


def test_who_stopped_reading_is_left_alone(reactor, make_ready):
    """By its own doing, or another's in the same turn."""
    pair = [make_ready(lambda: reactor.removeReader(pair[1])), make_ready(lambda: reactor.removeReader(pair[0]))]
    shy = make_ready(lambda: reactor.removeReader(shy))

    reactor.doPoll(0)
    reactor.doPoll(0)

    assert sorted(ready.reads for ready in pair) == [0, 2]
    assert shy.reads == 1


@pytest.mark.parametrize(("reason", "reads", "writes"), [(None, 2, 2), (main.CONNECTION_DONE, 1, 0)])
def test_who_can_read_and_write_does_both_in_a_turn_unless_reading_ends_it(reactor, make_ready, reason, reads, writes):
    ready = make_ready(lambda: reason)
    reactor.addWriter(ready)

    reactor.doPoll(0)
    reactor.doPoll(0)

    assert (ready.reads, ready.writes) == (reads, writes)
    assert len(ready.lost) == (reason is not None)
    assert reactor.getWriters() == ([] if reason else [ready])


@pytest.fixture
def many_files():
    """Leave to open 4096 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(
            f"NOT TESTED: only {hard} files may be open here, so no turn has more events than are taken at once"
        )
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_nobody_waits_because_others_are_ready_all_the_time(reactor, make_ready, many_files):
    """1024 are served in a turn; the others are before those in the next one."""
    ready = [make_ready() for _ in range(2048)]

    reactor.doPoll(0)
    assert sum(one.reads for one in ready) == 1024
    reactor.doPoll(0)
    assert {one.reads for one in ready} == {1}
    reactor.doPoll(0)
    reactor.doPoll(0)
    assert {one.reads for one in ready} == {2}


# Who is read last.


class Hands:
    """A clock that moves a little whenever it is looked at."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        self.now += 1e-6
        return self.now


class Hasty(Ready):
    """One that keeps the reactor for a while when it is read, by that clock, and notes who was."""

    def __init__(self, reactor, name, order, hands, seconds=0.0, number=None):
        super().__init__(reactor, self._note, number)
        self.name = name
        self._order = order
        self._hands = hands
        self._seconds = seconds

    def _note(self):
        self._order.append(self.name)
        self._hands.now += self._seconds


@pytest.fixture
def order():
    """Who was read, in their order."""
    return []


@pytest.fixture
def hands(monkeypatch):
    """What our reactor takes for the time that reading takes."""
    hands = Hands()
    monkeypatch.setattr("heartbeat.reactor.time", hands)
    return hands


@pytest.fixture
def make_hasty(reactor, order, hands):
    """Descriptors of our reactor that are always ready, and note when they are read; closed in the end."""
    made = []

    def make_hasty(name, seconds=0.0, *, last=False):
        made.append(Hasty(reactor, name, order, hands, seconds))
        if last:
            reactor.read_last(made[-1])
        return made[-1]

    yield make_hasty
    for one in made:
        one.close()


def test_who_is_to_be_read_last_is_read_when_all_others_were(reactor, make_hasty, order):
    """Whoever was ready first."""
    for name in ("stranger", "second stranger"):
        make_hasty(name, last=True)
    for name in ("known", "also known"):
        make_hasty(name)

    reactor.doPoll(0)
    assert order[:2] == ["known", "also known"]
    assert set(order[2:]) <= {"stranger", "second stranger"}

    reactor.doPoll(0)
    assert set(order) == {"known", "also known", "stranger", "second stranger"}


def test_while_there_are_others_only_a_few_are_read_of_any_number(reactor, make_hasty, order):
    """And each of them when it is his turn."""
    strangers = [make_hasty(f"stranger {at}", last=True) for at in range(40)]
    known = make_hasty("known")

    for turn in range(1, 11):
        # Long enough for whatever was due to the strangers on account of the known one.
        known.read = lambda: order.append("known")
        reactor.doPoll(0)
        assert order.count("known") == turn

    counts = [order.count(one.name) for one in strangers]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) < 200


def test_alone_they_are_read_for_a_millisecond_a_turn(reactor, make_hasty, order):
    """Timers are looked at in between, however many strangers there are."""
    for at in range(100):
        make_hasty(f"stranger {at}", 0.0001, last=True)

    reactor.doPoll(0)

    assert len(order) == pytest.approx(10, abs=1)


def test_they_have_a_fourth_of_the_time_that_the_others_took(reactor, make_hasty, order):
    """Where the known take all there is, whoever comes is let in all the same."""
    make_hasty("known", 0.04)
    for at in range(200):
        make_hasty(f"stranger {at}", 0.0002, last=True)

    reactor.doPoll(0)

    strangers = len(order) - 1
    assert order[0] == "known"
    # Of 0.2 ms each, in 10 ms.
    assert strangers == pytest.approx(50, abs=1)


def test_the_known_do_not_wait_for_whoever_is_slow_to_be_read(reactor, make_hasty, order):
    """However long the strangers could go on: each of the known is read in every turn."""
    make_hasty("known")
    for at in range(40):
        make_hasty(f"stranger {at}", 0.001, last=True)

    for _ in range(5):
        reactor.doPoll(0)

    assert order.count("known") == 5
    assert len(order) - 5 <= 5 * 4


def test_a_stranger_wakes_the_reactor(reactor, make_hasty, order):
    """Alone, and when it was waiting for ever."""
    make_hasty("stranger", last=True)

    reactor.doPoll(None)

    assert order


def test_where_nobody_is_left_of_them_the_reactor_rests(reactor, make_hasty, order):
    """Neither whoever was let in nor whoever has gone has it turn for nothing."""
    let_in, gone = (make_hasty(name, last=True) for name in ("let in", "gone"))
    reactor.read_first(let_in)
    reactor.removeReader(let_in)
    gone.close()

    before = time.monotonic()
    reactor.doPoll(0.05)

    assert time.monotonic() - before >= 0.04
    assert order == []


def test_who_is_let_in_is_read_with_the_others(reactor, make_hasty, order):
    stranger, other = make_hasty("let in", last=True), make_hasty("stranger", last=True)
    make_hasty("known")
    reactor.read_first(stranger)

    reactor.doPoll(0)

    assert set(order[:2]) == {"let in", "known"}
    assert set(order[2:]) == {other.name}


@pytest.mark.parametrize("last", [True, False])
def test_a_pause_changes_nothing_of_it(reactor, make_hasty, order, last):
    """Whoever is not read from is not, and is in his place when he is again; also when that changed in the meantime."""
    paused, known = make_hasty("paused", last=not last), make_hasty("known")
    reactor.removeReader(paused)
    (reactor.read_last if last else reactor.read_first)(paused)
    reactor.doPoll(0)
    assert order == ["known"]
    order.clear()

    reactor.addReader(paused)
    reactor.addReader(paused)
    known.read = lambda: order.append("known")
    stranger = make_hasty("stranger", last=True)
    first = 1 if last else 2
    reactor.doPoll(0)
    assert set(order[:first]) == ({"known"} if last else {"known", "paused"})

    reactor.removeReader(known)
    reactor.doPoll(0)
    assert {stranger.name, "paused"} <= set(order)


def test_a_number_that_is_used_again_is_another_ones(reactor, make_hasty, order, hands):
    """Nothing of a stranger's is left to whoever gets his descriptor's number, known or not."""
    gone = make_hasty("gone", last=True)
    make_hasty("stranger", last=True)
    number = gone.fileno()
    gone.close()
    next_one = Hasty(reactor, "next", order, hands, number=_eventfd_at(number))

    reactor.doPoll(0)

    assert order[0] == "next"
    assert "gone" not in order
    next_one.close()


def test_one_that_was_closed_unseen_is_forgotten_when_it_is_left(reactor, make_hasty, order, hands):
    """Its number may be another's by then, who is not."""
    closed = make_hasty("closed", last=True)
    number = closed.fileno()
    os.close(number)
    closed._number = -1
    another = Hasty(reactor, "another", order, hands, number=_eventfd_at(number))
    reactor.read_last(another)

    reactor.removeReader(closed)
    reactor.doPoll(0)

    assert "another" in order
    another.close()


def test_writing_is_nobodys_but_the_writers(reactor, make_hasty, order):
    """Who is read last is written to like any other, and is still read last, whatever he stops doing first."""
    stranger, _ = make_hasty("stranger", last=True), make_hasty("known")
    reactor.addWriter(stranger)

    reactor.doPoll(0)
    assert (stranger.writes, order[0]) == (1, "known")
    assert "stranger" in order
    reactor.removeReader(stranger)
    order.clear()
    reactor.doPoll(0)
    assert (stranger.writes, order) == (2, ["known"])
    reactor.addReader(stranger)
    reactor.removeWriter(stranger)
    order.clear()
    reactor.doPoll(0)
    assert stranger.writes == 2
    assert order[0] == "known"
    assert "stranger" in order


def test_they_are_among_all_who_are_read_and_go_with_all(reactor, make_hasty):
    """Each once, also who is written to as well."""
    one, both = make_hasty("one", last=True), make_hasty("both", last=True)
    reactor.addWriter(both)
    assert {one, both} <= set(reactor.getReaders())

    removed = reactor.removeAll()

    assert sorted(removed.count(each) for each in (one, both)) == [1, 1]
    assert not {one, both} & set(reactor.getReaders() + reactor.getWriters())


def test_a_stranger_who_fails_is_ended_alone(reactor, make_ready, failures, hands):
    def be_read():
        hands.now += 0.0002

    others = [make_ready(be_read), make_ready(fail), make_ready(be_read)]
    for one in others:
        reactor.read_last(one)

    reactor.doPoll(0)

    assert failures == [("one that is ready", ZeroDivisionError, "fail")]
    assert [bool(one.reads) for one in others] == [True, True, True]
    assert [len(one.lost) for one in others] == [0, 1, 0]


def test_a_port_that_is_read_last_lets_a_few_in_at_a_time(make_reactor, hands):
    """A crowd that has connected comes in turn by turn."""
    reactor = make_reactor(HeartbeatReactor)
    came = []

    def build():
        hands.now += 0.0001
        came.append(Told())
        return came[-1]

    port = reactor.listenTCP(0, Factory.forProtocol(build), interface="127.0.0.1", backlog=64)
    reactor.read_last(port)
    known = Ready(reactor)
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(socket.create_connection(("127.0.0.1", port.getHost().port), timeout=SOON))
        a_turn = []
        while len(came) < 40:
            before = len(came)
            reactor.doPoll(0)
            a_turn.append(len(came) - before)
        assert max(a_turn) <= 4
        assert len(a_turn) <= 41
    known.close()
    turn_until(reactor, lambda: all(one.lost for one in came))
    port.stopListening()
    reactor.iterate(0)


def test_whoever_comes_by_a_port_that_is_read_last_is_read_last_himself(make_reactor):
    """From the first byte on; and nobody else is who goes on in the same moment."""
    reactor = make_reactor(HeartbeatReactor)
    came, paused = [], []

    class Comes(Told):
        def connectionMade(self):
            super().connectionMade()
            for one in paused:
                one.transport.resumeProducing()

    def build():
        came.append(Comes())
        return came[-1]

    port = reactor.listenTCP(0, Factory.forProtocol(build), interface="127.0.0.1")
    address = ("127.0.0.1", port.getHost().port)
    with socket.create_connection(address, timeout=SOON):
        turn_until(reactor, lambda: came)
        came[0].transport.pauseProducing()
        paused.append(came[0])
        reactor.read_last(port)
        with socket.create_connection(address, timeout=SOON):
            turn_until(reactor, lambda: len(came) == 2)
            assert [one.transport in reactor._last for one in came] == [False, True]
            assert set(reactor.getReaders()) >= {one.transport for one in came}
    turn_until(reactor, lambda: all(one.lost for one in came))
    port.stopListening()
    reactor.iterate(0)


class Beater:
    """A client of bytes, that beats when it is told to, and hears what it is told to hear."""

    def __init__(self, reactor, port):
        self.reactor = reactor
        self.socket = socket.socket()
        # Little is under way to it that it has not read.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(SOON)
        self.socket.connect(("127.0.0.1", port.getHost().port))
        self.heard = b""

    def say(self, data):
        self.socket.sendall(data)

    def hears(self, enough):
        """Read until that has come."""

        def hear():
            with contextlib.suppress(BlockingIOError):
                self.heard += self.socket.recv(1 << 16)
            return enough(self.heard)

        self.socket.setblocking(False)
        turn_until(self.reactor, hear)
        self.socket.settimeout(SOON)


def text(payload):
    """A text frame of a client's, under 64 KiB."""
    length = len(payload)
    head = bytes([0x81, 0x80 | length]) if length < 126 else b"\x81\xfe" + length.to_bytes(2)
    return head + bytes(4) + payload


REQUEST = (
    b"GET /ws HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def test_whoever_leaves_his_answers_unread_is_read_last_until_he_reads_them(make_reactor):
    """He keeps to his pace, and would have the server write for nobody before those who listen."""
    reactor = make_reactor(HeartbeatReactor)
    service = HeartbeatService("tcp:0:interface=127.0.0.1", Settings(message_rate=1000.0), reactor=reactor)
    service.privilegedStartService()
    service.startService()
    turn_until(reactor, lambda: service.ports)
    assert service.ports[0] in reactor._last
    peer = Beater(reactor, service.ports[0])
    peer.say(REQUEST)
    peer.hears(lambda heard: b"\r\n\r\n" in heard)
    (edge,) = service.factory.heartbeat.edges
    transport = edge.protocol.transport
    assert transport in reactor._last
    for _ in range(2):
        peer.say(text(b'{"type":"ping"}'))
    peer.hears(lambda heard: heard.count(b"pong") == 2)
    assert transport not in reactor._last

    padded = text(b'{"type":"ping","x":"%b"}' % (b"x" * 900))
    for _ in range(120):
        peer.say(padded)
        reactor.iterate(0)
    turn_until(reactor, lambda: transport in reactor._last)
    peer.hears(lambda heard: heard.count(b"pong") == 122)
    for _ in range(9):
        peer.say(text(b'{"type":"ping"}'))
    peer.hears(lambda heard: heard.count(b"pong") == 131)

    assert transport not in reactor._last
    peer.socket.close()
    turn_until(reactor, lambda: not service.factory.heartbeat.edges)
    assert reactor._last == set(service.ports)
    stopped = []
    service.stopService().addCallback(stopped.append)
    turn_until(reactor, lambda: stopped)
    assert reactor._last == set()


def _eventfd_at(number):
    """Something that can be read, at this number."""
    made = os.eventfd(1)
    if made != number:
        os.dup2(made, number)
        os.close(made)
    return number


class Poller:
    """What a reactor polls, saying what a test says."""

    def __init__(self, error=None):
        self.asked = []
        self.error = error

    def poll(self, *how):
        self.asked.append(how)
        if self.error is not None:
            raise self.error
        return []


@pytest.fixture
def polls(reactor, monkeypatch):
    """Have our reactor poll one that we made."""

    def polls(poller):
        monkeypatch.setattr(reactor, "_poller", poller)
        return poller

    return polls


def test_an_interrupted_wait_is_a_turn_without_events(reactor, polls):
    poller = polls(Poller(OSError(errno.EINTR, "Interrupted system call")))

    reactor.doPoll(1)

    assert len(poller.asked) == 1


def test_a_wait_that_cannot_be_is_a_bug_and_loud(reactor, polls):
    polls(Poller(OSError(errno.EBADF, "Bad file descriptor")))

    with pytest.raises(OSError, match="Bad file descriptor"):
        reactor.doPoll(1)


@pytest.mark.parametrize(("timeout", "waits"), [(None, -1), (0, 0), (1.5, 1.5)])
def test_it_waits_for_as_long_as_it_is_told(reactor, polls, timeout, waits):
    poller = polls(Poller())

    reactor.doIteration(timeout)

    assert poller.asked == [(waits, 1024)]


def test_a_file_is_read_by_the_clock_as_on_twisteds_own(reactor, make_ready):
    """Of one, the kernel tells no events."""
    file = make_ready(lambda: main.CONNECTION_DONE if file.reads == 3 else None, os.open(__file__, os.O_RDONLY))

    turn_until(reactor, lambda: file.lost)

    assert file.reads == 3
    assert reactor.getDelayedCalls() == []


# As a process has it.


def python(program, *arguments):
    """What a program prints, in a process of its own."""
    told = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SOON,
        check=False,
    )
    assert told.returncode == 0, told.stdout
    return told.stdout.splitlines()


WHOLE = """
import sys
from heartbeat.reactor import install

install()
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue

async def main():
    print(type(reactor).__name__)
    print(await deferToThread(lambda: "a thread"))
    print(await getProcessOutputAndValue(sys.executable, ["-c", "print('a child'); raise SystemExit(3)"]))
    reactor.stop()

reactor.callWhenRunning(lambda: ensureDeferred(main()))
reactor.run()
print("the end")
"""


def test_threads_and_children_are_served_as_ever():
    """They wake it by descriptors of their own, some of which end with an event that is an error and nothing else."""
    assert python(WHOLE) == [
        "HeartbeatReactor",
        "a thread",
        r"(b'a child\n', b'', 3)",
        "the end",
    ]


INSTALLED = """
import sys
from twisted.internet.error import ReactorAlreadyInstalledError
if sys.argv[1] == "ours":
    from heartbeat.reactor import install as first
else:
    from twisted.internet.selectreactor import install as first
from heartbeat.reactor import install

first()
try:
    install()
except ReactorAlreadyInstalledError as error:
    print(error)
"""


@pytest.mark.parametrize("first", ["ours", "another"])
def test_a_second_reactor_is_refused_by_twisted(first):
    assert python(INSTALLED, first) == ["reactor already installed"]


ELSEWHERE = """
import sys
import heartbeat, heartbeat.tap, heartbeat.__main__
assert "heartbeat.reactor" not in sys.modules
sys.platform = "darwin"
try:
    import heartbeat.reactor
except ImportError as error:
    print(error)
"""

SENTENCE = "the reactor of txheartbeat needs epoll, which only Linux has; choose another"


def test_elsewhere_than_on_linux_it_says_so_in_a_sentence_and_nothing_else_needs_it():
    assert python(ELSEWHERE) == [SENTENCE]


TWISTD_ELSEWHERE = """
import sys
from twisted.scripts import twistd
sys.platform = "darwin"
sys.argv[0] = "twistd"
try:
    twistd.run()
except SystemExit as end:
    print("status", end.code)
"""


def test_elsewhere_twistd_says_so_too():
    told = python(TWISTD_ELSEWHERE, "--reactor=heartbeat", "-n", "--pidfile=", "heartbeat")

    assert told[0] == "Usage: twistd [options]"
    assert told[-3:] == [
        f"twistd --reactor=heartbeat: The specified reactor cannot be used, failed with error: {SENTENCE}.",
        "See the list of available reactors with --help-reactors",
        "status 1",
    ]
    assert not any("Traceback" in line for line in told)
    assert f"    !heartbeat\tThe epoll reactor, in monotonic time and leaner; Linux only. ({SENTENCE})" in python(
        TWISTD_ELSEWHERE, "--help-reactors"
    )


def test_twistd_lists_it():
    listed = subprocess.run(
        [BIN / "twistd", "--help-reactors"], capture_output=True, text=True, timeout=SOON, check=True
    )

    assert "    heartbeat\tThe epoll reactor, in monotonic time and leaner; Linux only." in listed.stdout.splitlines()


@pytest.mark.slow
def test_a_server_on_it_serves_and_stops(tmp_path):
    """As somebody would type it."""
    with twistd(cwd=tmp_path, reactor="heartbeat") as server:
        assert server.line_with("reactor class: heartbeat.reactor.HeartbeatReactor", SOON)
        with client(server.url(), "--interval", "0.1", "--count", "10") as run:
            summary = run.event("summary", 20)
            assert (summary["answered"], summary["lost"], run.wait(5)) == (10, 0, 0)
        server.stop()
        server.line_with("Server Shut Down", 5)
    assert not any("Traceback" in line for line in server.seen)
