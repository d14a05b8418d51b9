"""Several processes that serve what one has opened: what that one tells them, hears of them and does when they end."""

import json
import os
import signal
import socket

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.error import CannotListenError, ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, formatEvent, formatEventAsClassicLogText
from twisted.python.failure import Failure
from twisted.python.usage import UsageError

from heartbeat.core.errors import SettingError
from heartbeat.core.settings import Settings
from heartbeat.logs import json_line
from heartbeat.tap import Options, makeService
from heartbeat.worker import Lifeline, Output, Parent
from heartbeat.workers import WORD, Waits, Workers, admin_of, patience_to_stop

CLUSTER = "--cluster=redis://127.0.0.1"


class Port:
    """What listens in the one that opens."""

    def __init__(self, number):
        self.number = number
        self.reads = True
        self.stopped = False

    def stopReading(self):
        self.reads = False

    def fileno(self):
        return self.number

    def getHost(self):
        return IPv4Address("TCP", "127.0.0.1", 9000)

    def stopListening(self):
        self.stopped = True


class Spawned:
    """A process that was started, as far as the one that starts it knows."""

    def __init__(self, protocol, arguments, env, path, descriptors):
        self.protocol = protocol
        self.arguments = arguments
        self.env = env
        self.path = path
        self.descriptors = descriptors
        self.signals = []
        self.told = b""
        self.has_ended = False

    def write(self, data):
        self.told += data

    def signalProcess(self, which):
        if self.has_ended:
            raise ProcessExitedAlready
        self.signals.append(which)

    def says(self, word):
        self.protocol.childDataReceived(WORD, word + b"\n")

    def ends(self, status=0, by=None):
        self.has_ended = True
        how = ProcessDone(0) if not status and by is None else ProcessTerminated(status or None, by)
        self.protocol.processEnded(Failure(how))


class Machine(MemoryReactorClock):
    """A reactor that opens nothing and starts nothing, and takes word from signals."""

    def __init__(self):
        super().__init__()
        self.spawned = []
        self.opened = []
        self.refuses = None

    def listenTCP(self, port, factory, backlog=50, interface=""):
        if self.refuses is not None:
            raise self.refuses
        self.opened.append(Port(20 + len(self.opened)))
        self.opened[-1].backlog = backlog
        return self.opened[-1]

    def spawnProcess(self, protocol, executable, args, env, path, childFDs):
        process = Spawned(protocol, args, env, path, childFDs)
        self.spawned.append(process)
        protocol.makeConnection(process)
        return process

    def callFromThread(self, function, *arguments):
        self.callLater(0, function, *arguments)


@pytest.fixture
def machine(monkeypatch):
    """The reactor of the process; nothing is left on it."""
    machine = Machine()
    monkeypatch.setattr("twisted.internet.reactor", machine)
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    yield machine
    assert machine.getDelayedCalls() == []


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """A service manager, and all that he was told since he was asked last."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(tmp_path / "notify"))
        line.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        def told():
            words = []
            while True:
                try:
                    words.append(line.recv(4096).decode().partition("\n")[0])
                except BlockingIOError:
                    return words

        before = signal.getsignal(signal.SIGHUP)
        yield told
        assert signal.getsignal(signal.SIGHUP) is before


def parsed(*arguments):
    options = Options()
    options.parseOptions(list(arguments))
    return options


@pytest.fixture
def begun(machine):
    """Start so many workers; the service."""

    def begun(*arguments, count=3):
        workers = Workers(parsed(CLUSTER, f"--workers={count}", *arguments), machine)
        workers.privilegedStartService()
        workers.startService()
        return workers

    return begun


def stopped(machine, workers):
    """Whether it stops when all that there are have ended."""
    done = []
    workers.stopService().addCallback(lambda _: done.append(True))
    for process in machine.spawned:
        if not process.has_ended:
            process.ends()
    return done == [True]


def sentences(log):
    return [formatEvent(event) for event in log if event.get("log_namespace") == "heartbeat.workers"]


# What is asked for.

WRONG = {
    f"{CLUSTER} --workers=0": "--workers must be a whole number from 1 to 1024, not 0",
    f"{CLUSTER} --workers=1025": "--workers must be a whole number from 1 to 1024, not 1025",
    f"{CLUSTER} --workers=two": "--workers must be a whole number, not 'two'",
    "--workers=2": "--workers must be left out where there is no --cluster, by which they know of each other, not 2",
    f"{CLUSTER} --workers=2 --store=sqlite:x.db": "--store must be left out where there are --workers: one",
    f"{CLUSTER} --workers=2 --store=redis://:secret@h/1": "one server has it, and they are several, not 'redis'",
    f"{CLUSTER} --workers=2 --admin=systemd:domain=INET:name=x": "--admin must be tcp:PORT, tcp6:PORT, ssl:PORT or",
    f"{CLUSTER} --workers=3 --admin=tcp:65534:interface=127.0.0.1": "with a port for each of 3, not 'tcp:65534",
    f"{CLUSTER} --workers=2 --listen=nowhere:1": "--listen must be an endpoint description",
    "--cluster=nowhere --workers=2": "--cluster must be redis://",
}


@pytest.mark.parametrize(("arguments", "sentence"), WRONG.items())
def test_a_wrong_option_is_one_sentence_that_names_it(arguments, sentence):
    with pytest.raises(UsageError) as refusal:
        parsed(*arguments.split())

    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_without_the_option_this_process_serves(machine):
    assert not isinstance(makeService(parsed(CLUSTER)), Workers)
    assert isinstance(makeService(parsed(CLUSTER, "--workers=1")), Workers)


def test_the_file_of_options_has_it_too(tmp_path, machine):
    (tmp_path / "heartbeat.toml").write_text('workers = 2\ncluster = "redis://127.0.0.1"\n')

    assert makeService(parsed("--config", str(tmp_path / "heartbeat.toml"))).count == 2


def test_each_is_watched_at_a_place_of_its_own():
    def places(description):
        return [admin_of(description, number) for number in (1, 2, 3)]

    assert places(None) == [None, None, None]
    assert places("tcp:9001:interface=127.0.0.1") == [f"tcp:{port}:interface=127.0.0.1" for port in (9001, 9002, 9003)]
    assert places("tcp:0") == ["tcp:0"] * 3
    assert places("unix:/run/a.sock:mode=600") == [f"unix:/run/a.sock{more}:mode=600" for more in ("", ".2", ".3")]
    assert places(r"unix:/run/a\:b") == [r"unix:/run/a\:b", r"unix:/run/a\:b.2", r"unix:/run/a\:b.3"]
    for description in ("tcp:port=9001", "wss:tcp:9001", "systemd:domain=INET:name=a", "unix:address=/run/a"):
        with pytest.raises(SettingError):
            admin_of(description, 1)


# The start.


def test_what_is_listened_on_is_opened_once_and_handed_to_each(machine, begun, monkeypatch, tmp_path):
    """With all options as they were judged, in the folder of the start; nobody is read from, or told of the manager."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LISTEN_FDS", "1")
    workers = begun("--listen=tcp:1", "--listen=wss:tcp:2", "--tls-certificate", certificate(tmp_path), "--window=60")

    assert [(port.reads, port.backlog) for port in machine.opened] == [(False, Settings().backlog)] * 2
    assert [process.arguments[1:] for process in machine.spawned] == [
        ["-m", "heartbeat.worker", str(number)] for number in (1, 2, 3)
    ]
    for number, process in enumerate(machine.spawned, 1):
        assert process.descriptors == {0: "w", 1: "r", 2: "r", WORD: "r", 4: 20, 5: 21}
        assert process.path == str(tmp_path)
        assert not {"NOTIFY_SOCKET", "LISTEN_FDS"} & process.env.keys()
        told = json.loads(process.told)
        assert process.told.endswith(b"\n")
        assert (told["number"], told["sockets"], told["patience"]) == (number, [4, 5], None)
        assert told["options"]["window"] == 60.0
        assert told["options"]["listen"] == ["tcp:1", "wss:tcp:2"]
        assert "workers" not in told["options"]
    assert stopped(machine, workers)
    assert all(port.stopped for port in machine.opened)


def certificate(folder):
    import trustme

    leaf = trustme.CA().issue_cert("localhost")
    leaf.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    return str(folder / "both.pem")


def test_a_port_that_is_taken_is_said_in_a_sentence(machine):
    machine.refuses = CannotListenError("127.0.0.1", 9000, "Address already in use")
    workers = makeService(parsed(CLUSTER, "--workers=2"))

    with pytest.raises(SystemExit) as ended:
        workers.privilegedStartService()
    assert str(ended.value) == "heartbeat: Couldn't listen on 127.0.0.1:9000: Address already in use."
    assert machine.spawned == []


def test_what_is_no_single_socket_is_said_in_a_sentence(machine, monkeypatch):
    """As an endpoint of somebody else's may be."""

    class Twice:
        def __init__(self, reactor, _description):
            self.reactor = reactor

        def listen(self, factory):
            self.reactor.listenTCP(1, factory)
            return self.reactor.listenTCP(2, factory)

    workers = makeService(parsed(CLUSTER, "--workers=2", "--listen=tcp:1"))
    monkeypatch.setattr("heartbeat.workers.serverFromString", Twice)

    with pytest.raises(SystemExit) as ended:
        workers.privilegedStartService()
    assert str(ended.value) == "heartbeat: --workers cannot listen on tcp:1: it is not one socket"


# Their ends.


def test_after_a_long_life_another_is_started_at_once_and_after_short_ones_ever_later():
    waits = Waits()

    assert [waits.after(1.0) for _ in range(10)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert waits.after(10.0) == 0
    assert [waits.after(9.9) for _ in range(2)] == [0, 0.5]


def test_a_worker_that_ends_is_replaced_and_its_end_is_one_line(machine, begun, log):
    workers = begun(count=2)
    first, second = machine.spawned
    machine.advance(12.0)
    first.ends(by=9)
    assert len(machine.spawned) == 2
    machine.advance(0)
    assert [process.arguments[3] for process in machine.spawned] == ["1", "2", "1"]
    machine.spawned[2].ends(status=1)
    machine.advance(0)
    machine.spawned[3].ends()
    machine.advance(0.49)
    assert len(machine.spawned) == 4
    machine.advance(0.01)
    assert len(machine.spawned) == 5

    assert sentences(log) == [
        "worker 1 was ended by signal 9 (SIGKILL) after 12.0 s; another is started now",
        "worker 1 has ended with status 1 after 0.0 s; another is started now",
        "worker 1 has ended after 0.0 s; another is started in 0.5 s",
    ]
    assert not second.has_ended
    assert second.signals == []
    assert stopped(machine, workers)


def test_one_that_cannot_be_started_is_tried_again(machine, begun, log, monkeypatch):
    def refuse(*_arguments, **_named):
        raise OSError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(machine, "spawnProcess", refuse)
        workers = begun(count=1)
    assert "worker 1 cannot be started: [Errno 11] Resource temporarily unavailable after 0.0 s" in sentences(log)[0]
    machine.advance(0)
    assert len(machine.spawned) == 1
    assert stopped(machine, workers)


def test_a_stop_is_passed_on_and_waits_for_all(machine, begun):
    """Also for one whose end is not heard of yet; one that waits to be started is started no more."""
    workers = begun()
    for _ in range(2):
        machine.spawned[-1].ends(status=1)
        machine.advance(0)
    assert len(machine.spawned) == 4
    first, second = machine.spawned[:2]
    second.has_ended = True
    done = []
    workers.stopService().addCallback(done.append)

    assert first.signals == ["TERM"]
    assert [port.stopped for port in machine.opened] == [False]
    first.ends()
    assert done == []
    second.ends()
    assert done == [None]
    assert [port.stopped for port in machine.opened] == [True]
    assert len(machine.spawned) == 4
    assert workers.stopService().called


def test_one_that_does_not_stop_is_killed_in_the_end(machine, begun, log):
    workers = begun(count=2)
    first, second = machine.spawned
    done = []
    workers.stopService().addCallback(done.append)
    second.ends()

    machine.advance(patience_to_stop(Settings()) - 0.1)
    assert first.signals == ["TERM"]
    machine.advance(0.1)
    assert first.signals == ["TERM", "KILL"]
    assert done == []
    first.ends(by=9)
    assert done == [None]
    assert sentences(log) == [
        "worker 1 does not stop, and is killed",
        "worker 1 was ended by signal 9 (SIGKILL)",
    ]


# The service manager.


def test_it_is_ready_when_all_are(machine, begun, manager, log):
    """And not once more when one of them is replaced."""
    workers = begun()
    for process in machine.spawned[:2]:
        process.says(b"ready")
    assert manager() == []
    machine.spawned[2].says(b"ready")
    assert manager() == ["READY=1"]
    assert sentences(log) == ["all 3 workers are ready"]

    machine.spawned[0].ends(by=11)
    machine.advance(0)
    machine.spawned[3].says(b"ready")
    assert manager() == []
    assert stopped(machine, workers)
    assert manager() == ["STOPPING=1"]


def test_one_that_died_before_it_was_ready_is_waited_for(machine, begun, manager):
    workers = begun(count=2)
    machine.spawned[0].says(b"ready")
    machine.spawned[1].ends(status=1)
    machine.advance(0)
    assert manager() == []
    machine.spawned[2].says(b"ready")
    assert manager() == ["READY=1"]
    stopped(machine, workers)


def test_a_hangup_is_passed_on_to_all(machine, begun, manager):
    """To one that has just started, too: what it has read may be of before."""
    workers = begun()
    for process in machine.spawned:
        process.says(b"ready")
    machine.spawned[0].ends(by=9)
    machine.advance(0)
    manager()

    signal.raise_signal(signal.SIGHUP)
    machine.advance(0)
    assert manager() == ["RELOADING=1"]
    assert [process.signals for process in machine.spawned] == [[], ["HUP"], ["HUP"], []]
    for process in machine.spawned[1:]:
        process.says(b"ready")
    assert manager() == []
    assert machine.spawned[3].signals == ["HUP"]
    machine.spawned[3].says(b"ready")
    assert manager() == ["READY=1"]
    stopped(machine, workers)


def test_without_a_certificate_and_a_manager_no_signal_is_taken(machine, begun):
    before = signal.getsignal(signal.SIGHUP)
    workers = begun()

    assert signal.getsignal(signal.SIGHUP) is before
    stopped(machine, workers)


def test_the_watchdog_hears_as_long_as_all_are_heard(machine, begun, manager, monkeypatch):
    """One that is being replaced is no reason to replace them all; one that is silent is."""
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    workers = begun(count=2)
    first, second = machine.spawned
    assert json.loads(first.told)["patience"] == 5.0
    for process in machine.spawned:
        process.says(b"ready")

    def seconds(count, *speakers):
        for _ in range(count):
            for process in speakers:
                process.says(b"alive")
            machine.advance(1.0)
        return [word for word in manager() if word == "WATCHDOG=1"]

    assert len(seconds(20, first, second)) == 4
    second.ends(by=9)
    machine.advance(0)
    assert len(seconds(20, first)) == 4
    machine.spawned[2].says(b"ready")
    assert len(seconds(10, first)) == 2
    assert seconds(20, first) == []
    assert len(seconds(5, first, machine.spawned[2])) == 1
    stopped(machine, workers)
    machine.advance(20)
    assert "WATCHDOG=1" not in manager()


# Their log.


def logged(**event):
    """What a worker writes of an event."""
    event = {"log_time": 1700000000.5, "log_level": LogLevel.warn, "log_namespace": "heartbeat.x", **event}
    return json_line(event).encode()


def test_what_a_worker_logs_is_in_the_log_with_its_number(machine, begun, log):
    """In pieces or not, with its own fields, time and level."""
    workers = begun(count=2)
    line = logged(log_format="{peer} was refused: {time}", peer="192.0.2.1", time=7)
    del log[:]
    machine.spawned[1].protocol.childDataReceived(1, line[:20])
    machine.spawned[1].protocol.childDataReceived(1, line[20:] + line)

    first, second = log
    assert formatEvent(first) == "worker 2: 192.0.2.1 was refused: 7"
    assert (first["log_time"], first["log_level"], first["log_namespace"]) == (
        1700000000.5,
        LogLevel.warn,
        "heartbeat.x",
    )
    told = json.loads(json_line(second))
    assert (told["worker"], told["peer"], told["time_"]) == (2, "192.0.2.1", 7)
    assert told["time"] == "2023-11-14T22:13:20.500Z"
    stopped(machine, workers)


def test_a_failure_in_a_worker_is_in_the_log_with_its_traceback(machine, begun, log, failures):
    workers = begun(count=1)
    try:
        raise ValueError("what was it")
    except ValueError:
        line = logged(log_format="it failed", log_level=LogLevel.critical, log_failure=Failure())
    del log[:]
    machine.spawned[0].protocol.childDataReceived(1, line)

    (event,) = log
    assert "ValueError: what was it" in formatEventAsClassicLogText(event)
    assert "ValueError: what was it" in json.loads(json_line(event))["failure"]
    stopped(machine, workers)
    del failures[:]


def test_what_is_written_past_the_log_is_in_it_too(machine, begun, log):
    """An interpreter's last words, what is no object, the line that it did not finish, and no more than a megabyte."""
    workers = begun(count=1)
    protocol = machine.spawned[0].protocol
    protocol.childDataReceived(2, b"Fatal Python error: \xff\n\nThread")
    protocol.childDataReceived(1, b"hello\n[1]\n{}\n")
    protocol.childDataReceived(2, b"x" * 2_000_000)
    protocol.childDataReceived(2, b"last")
    machine.spawned[0].ends(by=11)

    said = sentences(log)
    assert said[:4] == [
        "worker 1: Fatal Python error: \N{REPLACEMENT CHARACTER}",
        "worker 1: hello",
        "worker 1: [1]",
        "worker 1: {}",
    ]
    assert said[4].startswith("worker 1: Threadxxx")
    assert said[5] == "worker 1: last"
    assert "signal 11 (SIGSEGV)" in said[6]
    stopped(machine, workers)


# The other end.


def test_a_worker_waits_for_nobody_who_takes_its_log_and_says_what_it_dropped():
    """What fits waits, in whole lines; what does not is counted, and that is said when there is room."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    output = Output(writing)
    line = json.dumps({"message": "x" * 1000}) + "\n"
    count = 3000
    for _ in range(count):
        output.write(line)
    heard = b""
    while b"dropped" not in heard and count < 4000:
        heard += os.read(reading, 1 << 20)
        output.write(line)
        count += 1
    heard += os.read(reading, 1 << 20)
    os.close(reading)
    output.write(line)
    os.close(writing)

    said = [json.loads(one)["message"] for one in heard.decode().splitlines()]
    (dropped,) = [one for one in said if not one.startswith("x")]
    assert dropped == f"{count - len(said) + 1} lines of the log were dropped: nobody took them"
    assert 1000 < len(said) < 1200


def test_a_worker_says_how_it_is_in_words(monkeypatch):
    reading, writing = os.pipe()
    monkeypatch.setattr("heartbeat.worker.WORD", writing)
    parent = Parent(2.5)
    parent.ready()
    parent.alive()
    parent.reloading()
    parent.stopping()

    assert os.read(reading, 100) == b"ready\nalive\nstopping\n"
    assert parent.patience == 2.5
    os.close(reading)
    os.close(writing)


def test_a_worker_goes_when_its_lifeline_is_cut():
    reading, writing = os.pipe()
    gone = []
    line = Lifeline(reading, lambda: gone.append(True))
    assert line.fileno() == reading
    assert line.doRead() is None
    os.write(writing, b"?")
    assert line.doRead() is None
    os.close(writing)
    line.connectionLost(line.doRead())

    assert gone == [True]
    os.close(reading)
