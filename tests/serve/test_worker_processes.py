"""Several real processes behind one listener: whoever comes is served, whichever of them dies, and none is left."""

import contextlib
import json
import os
import re
import signal
import socket
import stat
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import pytest_twisted
from ports import free_port, ports_in_a_row
from processes import BIN, REACTOR, REACTORS, Program, client
from service_manager import ServiceManager
from test_tls_reload import Authority, serial_seen
from twisted.internet import reactor
from twisted.internet.defer import DeferredList
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from heartbeat import HeartbeatClient, Settings
from heartbeat.workers import patience_to_stop

# The Redis of the tests stands beside those on the wire.
sys.path.append(str(Path(__file__).parents[1] / "wire"))

import redis_server

pytestmark = [pytest.mark.slow, redis_server.needs_redis]

WORKERS = 3
SOON = 30.0


class Client(HeartbeatClient):
    """One client; keeps what its pongs said, why its links ended, what it was written, and whether its session did."""

    def __init__(self, url, name, attempts=8):
        self.said = []
        self.ends = []
        self.letters = []
        self.lost = []
        super().__init__(url, settings=Settings(interval=0.25, client_id=name, attempts=attempts), reactor=reactor)
        self.register("onchat", lambda _, message: self.letters.append(message["text"]) if "text" in message else None)

    def pongReceived(self, rtt, clients):
        self.said.append(clients)

    def sessionLost(self, error):
        self.lost.append(error)

    def linkChanged(self, status):
        if status.event in ("dead", "closed", "unreachable"):
            self.ends.append(status.code or status.event)


async def until(condition, seconds=SOON):
    """Let the reactor turn until this is so; how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it never is"
        await deferLater(reactor, 0.05, lambda: None)
    return time.monotonic() - began


def command(*options, kind=REACTOR):
    """A server as somebody starts it."""
    chosen = () if kind == "default" else (f"--reactor={kind}",)
    return [BIN / "twistd", *chosen, "-n", "--pidfile=", "heartbeat", *options]


def parent_of(pid):
    """Whose child a process is; 0 where there is no such process, or nothing but its end."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return 0
    return 0 if state == "Z" else int(parent)


def children(pid):
    """The processes of one, in the order in which they were started."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return sorted((one for one in pids if parent_of(one) == pid), key=started)


def started(pid):
    """When a process was, in ticks since the machine was; and its number, where that is the same."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]), pid


def gone(pids):
    return not any(parent_of(pid) for pid in pids)


class Served:
    """A server of several workers, with a Redis; watched at as many ports."""

    def __init__(self, folder, life, *options, kind=REACTOR, wrap=(), redis=None):
        self.folder = folder
        self.redis = redis or life.enter_context(redis_server.RedisServer(folder))
        self.watched = ports_in_a_row(WORKERS)
        self.port = free_port()
        options = options or ("--listen", f"tcp:{self.port}:interface=127.0.0.1")
        admin = ("--admin", f"tcp:{self.watched[0]}:interface=127.0.0.1")
        cluster = ("--cluster", self.redis.url, "--workers", str(WORKERS))
        more = ("--messages", "chat", "--drain-after", "0")
        words = [*wrap, *command(*options, *cluster, *admin, *more, kind=kind)]
        self.parent = life.enter_context(Program(words, cwd=folder))
        # Whatever becomes of a test, none of them is left.
        life.callback(self.end)
        self.pids = []
        self.life = life

    def ready(self):
        self.parent.line_with(f"all {WORKERS} workers are ready", SOON)
        self.pids = children(self.parent.pid)
        assert len(self.pids) == WORKERS
        return self

    def end(self):
        for pid in {*self.pids, *children(self.parent.pid)}:
            if parent_of(pid) and b"heartbeat.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)

    @property
    def url(self):
        return f"ws://127.0.0.1:{self.port}/ws"

    def come(self, names, url=None, **options):
        clients = [Client(url or self.url, name, **options) for name in names]
        for one in clients:
            one.startService()
            self.life.callback(one.stopService)
        return clients

    def connections(self):
        """How many each worker has."""
        return [
            json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/totals", timeout=SOON))["connections"]
            for port in self.watched
        ]

    def lines(self):
        self.parent.rest()
        return self.parent.seen


async def say(clients, number, seconds=SOON):
    """Wait until the latest pongs of all name this number."""
    for one in clients:
        del one.said[:]
    return await until(lambda: all(one.said[-1:] == [number] for one in clients), seconds)


def is_quiet(lines):
    return not [line for line in lines if "Traceback" in line or "Unhandled" in line or " bug" in line]


@pytest.mark.parametrize("kind", REACTORS)
@pytest_twisted.ensureDeferred
async def test_all_serve_and_say_how_many_there_are_on_all(tmp_path, kind):
    """60 clients at one port, some at each; one dies and is replaced, its clients are back, then all are sent away."""
    with contextlib.ExitStack() as life:
        served = Served(tmp_path, life, kind=kind)
        await deferToThread(served.ready)
        clients = []
        for number in range(60):
            # One after the other: of a crowd that comes within a moment, whoever has the processor takes most.
            clients += served.come([f"client-{number}"])
            await until(lambda one=clients[-1]: one.said)
        await say(clients, 60)
        counts = await deferToThread(served.connections)
        print(f"connections of each worker ({kind}): {counts}")
        assert sum(counts) == 60
        assert min(counts) >= 5

        os.kill(served.pids[0], signal.SIGKILL)
        await deferToThread(served.parent.line_with, "worker 1 was ended by signal 9 (SIGKILL) after", SOON)
        await until(lambda: len(children(served.parent.pid)) == WORKERS)
        served.pids = children(served.parent.pid)
        sent = [write(clients[0], one, "hello") for one in clients[1:]]
        took = await say(clients, 60, 40)
        print(f"all were back, and counted once, {took:.1f} s after a worker was killed")
        assert len([one for one in clients if one.ends]) == counts[0]
        await until(lambda: all(one.called for one in sent) and all(one.letters for one in clients[1:]))
        assert [one.letters for one in clients[1:]] == [["hello"]] * 59
        assert [one for one in clients if one.lost] == []
        await deferToThread(served.parent.line_with, "worker 1: clients are counted with those of", SOON)
        assert sum(await deferToThread(served.connections)) == 60

        for one in clients:
            del one.ends[:]
        began = time.monotonic()
        served.parent.signal(signal.SIGTERM)
        await until(lambda: all(one.ends for one in clients))
        assert {one.ends[0] for one in clients} == {1012}
        await DeferredList([one.stopService() for one in clients])
        assert await deferToThread(served.parent.wait, SOON) == -signal.SIGTERM
        print(f"all had ended {time.monotonic() - began:.1f} s after SIGTERM")
        assert gone(served.pids)
        assert is_quiet(served.lines())


def write(sender, recipient, text):
    """Have one client write to another."""
    name = recipient.settings.client_id
    return sender.send({"type": "onchat", "id": f"{name}: {text}", "to": name, "text": text})


@redis_server.needs_sentinel
@pytest_twisted.ensureDeferred
async def test_a_redis_is_killed_and_its_replica_takes_over_and_nobody_notices(tmp_path):
    """No link ends, every beat is answered, all that is written meanwhile arrives once, and the counts are right."""
    with contextlib.ExitStack() as life:
        pair = redis_server.Replicated(tmp_path, sentinels=3)
        await deferToThread(life.enter_context, pair)
        served = Served(tmp_path, life, redis=pair)
        await deferToThread(served.ready)
        clients = served.come([f"client-{number}" for number in range(20)])
        await say(clients, 20)
        first = pair.master
        await deferToThread(redis_server.replicate, first)

        pair.kill(first)
        began, beats = time.monotonic(), sum(len(one.said) for one in clients)
        sent = [write(one, other, "hello") for one in clients for other in clients if one is not other]
        await until(lambda: all(one.called for one in sent), 60)
        took = time.monotonic() - began
        print(f"{len(sent)} letters were handled {took:.1f} s after the kill of Redis")
        beats = sum(len(one.said) for one in clients) - beats
        assert beats >= 20 * 0.5 * took / 0.25
        await until(lambda: all(len(one.letters) == 19 for one in clients))
        await say(clients, 20)
        assert [one for one in clients if one.ends or one.lost] == []
        assert await deferToThread(lambda: pair.master) != first

        await DeferredList([one.stopService() for one in clients])
        await deferToThread(served.parent.stop, SOON)
        assert gone(served.pids)
        assert is_quiet(served.lines())


def line_to(path):
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(SOON)
    line.connect(os.fspath(path))
    return line


def test_a_unix_socket_is_served_by_all_and_removed_once(tmp_path):
    """It keeps the mode that was asked for; one worker after the other may go, and it is there."""
    path = tmp_path / "here.sock"
    with contextlib.ExitStack() as life:
        served = Served(tmp_path, life, "--listen", f"unix:{path}:mode=600").ready()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for number, pid in enumerate(served.pids, 1):
            os.kill(pid, signal.SIGTERM)
            served.parent.line_with(f"worker {number} has ended after", SOON)
            with line_to(path) as line:
                line.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert line.recv(12) == b"HTTP/1.1 200"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        served.pids = children(served.parent.pid)
        served.parent.stop(SOON)
        assert gone(served.pids)
        assert [one.name for one in tmp_path.glob("here*")] == []
        assert is_quiet(served.lines())


@pytest.mark.parametrize("kind", REACTORS)
def test_tls_is_spoken_by_the_workers_and_a_certificate_is_changed_in_all(tmp_path, kind):
    """By Twisted's endpoint, which keeps its own, and by ours: after one SIGHUP every handshake sees the new one."""
    authority = Authority(tmp_path)
    authority.issue()
    first = authority.serial
    wss, other = free_port(), free_port()
    options = [
        "--listen",
        f"wss:tcp:{wss}:interface=127.0.0.1",
        "--tls-certificate",
        "chain.pem",
        "--tls-key",
        "key.pem",
    ]
    files = "privateKey=key.pem:certKey=chain.pem:extraCertChain=chain.pem"
    options += ["--listen", f"ssl:{other}:interface=127.0.0.1:{files}"]

    def seen(port):
        return {serial_seen(tmp_path, f"wss://127.0.0.1:{port}/ws") for _ in range(30)}

    with contextlib.ExitStack() as life:
        served = Served(tmp_path, life, *options, kind=kind).ready()
        assert seen(wss) == seen(other) == {first}
        after = authority.issue()
        served.parent.signal(signal.SIGHUP)
        told = set()
        while len(told) < WORKERS:
            told.add(re.search(r"worker ([0-9])", served.parent.line_with(f"serial number {after:x}", SOON))[1])
        assert seen(wss) == {after}
        assert seen(other) == {first}
        with client(f"wss://127.0.0.1:{wss}/ws", "--count", "2", "--cacert", str(tmp_path / "root.pem")) as run:
            assert run.event("summary", SOON)["answered"] == 2

        # One that is started now reads what there is now.
        os.kill(served.pids[1], signal.SIGKILL)
        served.parent.line_with("worker 2: watched at", SOON)
        assert seen(wss) == {after}
        served.parent.stop(SOON)


def test_workers_go_when_the_one_that_started_them_is_killed(tmp_path):
    """Each sends its clients away, and lets go of the port, before it ends."""
    with contextlib.ExitStack() as life:
        served = Served(tmp_path, life).ready()
        with client(served.url, "--interval", "0.2") as run:
            run.event("pong", SOON)
            served.parent.kill()
            assert run.event("closed", SOON)["code"] == 1012
        deadline = time.monotonic() + patience_to_stop(Settings())
        while not gone(served.pids):
            assert time.monotonic() < deadline, "one is left"
            time.sleep(0.05)
        with socket.create_server(("127.0.0.1", served.port)):
            pass


def test_interrupt_at_a_terminal_reaches_all_and_is_heard_once(tmp_path):
    """SIGINT to the whole group of processes, twice: a drain, no traceback, nobody left."""
    with contextlib.ExitStack() as life:
        served = Served(tmp_path, life, wrap=("setsid",)).ready()
        assert os.getpgid(served.parent.pid) == served.parent.pid
        with client(served.url, "--interval", "0.2") as run:
            run.event("pong", SOON)
            os.killpg(served.parent.pid, signal.SIGINT)
            assert run.event("closed", SOON)["code"] == 1012
        assert served.parent.wait(SOON) in (0, -signal.SIGINT)
        assert gone(served.pids)
        assert is_quiet(served.lines())
        assert not [line for line in served.lines() if "another is started" in line]


def test_a_worker_that_hangs_does_not_keep_the_others_from_stopping(tmp_path):
    """It is killed when the time of all is over."""
    with contextlib.ExitStack() as life:
        options = ("--listen", f"tcp:{free_port()}:interface=127.0.0.1", "--drain-timeout", "0.1")
        served = Served(tmp_path, life, *options).ready()
        os.kill(served.pids[2], signal.SIGSTOP)
        served.parent.signal(signal.SIGTERM)
        served.parent.line_with("worker 3 does not stop, and is killed", SOON)
        assert served.parent.wait(SOON) == -signal.SIGTERM
        assert gone(served.pids)


def test_the_log_of_all_is_one(tmp_path):
    """As JSON, each line with the number of the worker that said it."""
    with contextlib.ExitStack() as life:
        port = free_port()
        served = Served(tmp_path, life, "--listen", f"tcp:{port}:interface=127.0.0.1", "--log-format", "json").ready()
        served.parent.stop(SOON)
        lines = [json.loads(line) for line in served.lines()]
        assert {line.get("worker") for line in lines} == {None, 1, 2, 3}
        listening = [line for line in lines if "listening on" in line["message"]]
        assert [line["message"] for line in sorted(listening, key=lambda line: line["worker"])] == [
            f"worker {number}: listening on ws://127.0.0.1:{port}/ws (page: http://127.0.0.1:{port}/)"
            for number in (1, 2, 3)
        ]
        assert {line["namespace"] for line in listening} == {"heartbeat.launched.Launched"}


def test_under_a_service_manager_they_are_one_service(tmp_path):
    """On his socket; ready when all are, reloaded and alive as long as all are, and gone when he says so."""
    authority = Authority(tmp_path)
    authority.issue()
    tls = ["--tls-certificate", "chain.pem", "--tls-key", "key.pem"]
    words = ["--listen", "wss:systemd:domain=INET:name=heartbeat", *tls, "--workers", str(WORKERS)]
    with contextlib.ExitStack() as life:
        redis = life.enter_context(redis_server.RedisServer(tmp_path))
        manager = life.enter_context(ServiceManager(tmp_path))
        with manager.start(command(*words, "--cluster", redis.url), watchdog=2.0) as server:
            manager.hears("READY=1", SOON)
            pids = children(server.pid)
            assert len(pids) == WORKERS
            url = f"wss://127.0.0.1:{manager.port}/ws"
            assert serial_seen(tmp_path, url) == authority.serial
            after = authority.issue()
            server.signal(signal.SIGHUP)
            manager.hears("RELOADING=1", SOON)
            manager.hears("READY=1", SOON)
            assert {serial_seen(tmp_path, url) for _ in range(20)} == {after}

            manager.forget()
            manager.hears("WATCHDOG=1", SOON)
            os.kill(pids[0], signal.SIGSTOP)
            # What was said before he stood still counts for as long as his patience.
            deadline = time.monotonic() + SOON
            while not manager.is_silent(1.5):
                assert time.monotonic() < deadline, "nobody minds one that stands still"
            os.kill(pids[0], signal.SIGCONT)
            manager.hears("WATCHDOG=1", SOON)

            server.signal(signal.SIGTERM)
            manager.hears("STOPPING=1", SOON)
            assert server.wait(SOON) == -signal.SIGTERM
            assert gone(pids)
