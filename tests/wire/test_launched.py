"""The service where the process is ours: what it takes of the process, it gives back."""

import signal
import socket

import pytest
from twisted.internet.testing import MemoryReactorClock

from heartbeat.launched import Launched


class Process(MemoryReactorClock):
    """A reactor that opens nothing, and takes word from signals."""

    def callFromThread(self, function, *arguments):
        self.callLater(0, function, *arguments)


@pytest.fixture
def reactor():
    """One on which nothing is left."""
    reactor = Process()
    yield reactor
    assert reactor.getDelayedCalls() == []


@pytest.fixture
def hangup():
    """Somebody who has SIGHUP before us, and whom it is given back to."""

    def hung_up(_signal, _frame):
        pytest.fail("it was not ours to hear")

    before = signal.signal(signal.SIGHUP, hung_up)
    yield hung_up
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """A service manager, and the next word that he is told; nothing where there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(tmp_path / "notify"))
        line.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        def told():
            try:
                return line.recv(4096).decode().partition("\n")[0]
            except BlockingIOError:
                return None

        yield told


def launched(reactor):
    service = Launched(reactor=reactor)
    service.privilegedStartService()
    service.startService()
    return service


def test_without_a_certificate_and_a_manager_no_signal_is_taken(reactor, hangup, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    service = launched(reactor)

    assert signal.getsignal(signal.SIGHUP) is hangup
    service.stopService()


def test_a_signal_is_taken_from_the_start_to_the_end(reactor, hangup, manager):
    """And while it is ours, it is heard in a turn of the reactor of its own."""
    service = launched(reactor)
    assert manager() == "READY=1"

    signal.raise_signal(signal.SIGHUP)
    assert manager() is None
    reactor.advance(0)
    assert (manager(), manager(), manager()) == ("RELOADING=1", "READY=1", None)

    service.stopService()
    assert manager() == "STOPPING=1"
    assert signal.getsignal(signal.SIGHUP) is hangup


def test_the_watchdog_is_told_twice_in_its_patience_until_the_end(reactor, manager, monkeypatch, hangup):
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    service = launched(reactor)
    assert manager() == "READY=1"

    reactor.pump([4.9])
    assert manager() is None
    reactor.pump([0.1, 5.0, 5.0])
    assert [manager() for _ in range(4)] == ["WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1", None]

    service.stopService()
    assert (manager(), manager()) == ("STOPPING=1", None)
    reactor.pump([5.0, 5.0])
    assert manager() is None


def test_it_can_be_started_again(reactor, hangup, manager):
    for _ in range(2):
        service = launched(reactor)
        service.stopService()
        assert (manager(), manager(), manager()) == ("READY=1", "STOPPING=1", None)
    assert signal.getsignal(signal.SIGHUP) is hangup


def test_the_signal_is_taken_before_the_certificate_is_told_of(reactor, hangup, monkeypatch):
    """Whoever reads that line, and has it read again at once, must not end the process by that."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    handlers = []

    class Certificate:
        def tell(self):
            handlers.append(signal.getsignal(signal.SIGHUP))

    service = Launched(reactor=reactor)
    service.certificate = Certificate()
    service.privilegedStartService()
    service.startService()
    service.stopService()

    assert len(handlers) == 1
    assert handlers[0] is not hangup
