"""Under a service manager: the socket that it holds, the words that it waits for, and the units that are shipped."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from processes import BIN, REACTOR, REACTORS, client
from service_manager import ServiceManager
from test_tls_reload import Authority, serial_seen

from heartbeat import Settings

# Each starts programs, most of them several.
pytestmark = pytest.mark.slow

CONTRIB = Path(__file__).parents[2] / "contrib"

#: What each step may take at most; it takes a fraction of a second.
SOON = 30.0

LISTEN = ("--listen", "systemd:domain=INET:name=heartbeat")


def command(*options, reactor=REACTOR):
    """The server as a unit starts it."""
    chosen = () if reactor == "default" else (f"--reactor={reactor}",)
    return [BIN / "twistd", *chosen, "-n", "--pidfile=", "heartbeat", *options]


@pytest.fixture
def manager(tmp_path):
    with ServiceManager(tmp_path) as manager:
        manager.url = f"ws://127.0.0.1:{manager.port}/ws"
        yield manager


def all_of(server):
    """The lines of one that has ended."""
    server.rest()
    return server.seen


@pytest.mark.parametrize("reactor", REACTORS)
def test_it_is_told_when_the_server_is_ready_reloads_and_stops(manager, tmp_path, reactor):
    """Each in its turn; at the first word whoever connects is served, and at the last clients are sent away."""
    with manager.start(command(*LISTEN, "--store", "sqlite:sessions.db", reactor=reactor)) as server:
        assert manager.told(SOON) == "READY=1"
        assert (tmp_path / "sessions.db").exists()
        with client(manager.url, "--interval", "0.2") as stays:
            stays.event("pong", SOON)

            before = time.monotonic_ns() // 1000
            server.signal(signal.SIGHUP)
            since = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=([0-9]+)", manager.told(SOON))
            assert before <= int(since[1]) <= time.monotonic_ns() // 1000
            assert manager.told(SOON) == "READY=1"
            stays.event("pong", SOON)

            server.signal(signal.SIGTERM)
            assert manager.told(SOON) == "STOPPING=1"
            assert stays.event("closed", SOON)["code"] == 1012
        # As systemd wants it: ended by the signal that it sent.
        assert server.wait(SOON) == -signal.SIGTERM
    assert manager.is_silent(0)
    assert not [line for line in all_of(server) if "Traceback" in line]


def test_a_server_that_cannot_start_never_says_that_it_is_ready(manager, tmp_path):
    (tmp_path / "sessions.db").write_text("this is no database, and long enough to be none: " * 100)
    with manager.start(command(*LISTEN, "--store", "sqlite:sessions.db")) as server:
        assert server.line_with("heartbeat: the store ", SOON)
        assert server.wait(SOON) == 1
    assert manager.is_silent(0)


def test_an_abstract_socket_is_told_too(tmp_path):
    with ServiceManager(tmp_path, abstract=True) as manager, manager.start(command(*LISTEN)):
        assert manager.address.startswith("@")
        assert manager.told(SOON) == "READY=1"


def test_nobody_who_listens_is_one_line_in_the_log_and_no_more(manager, tmp_path):
    """The server serves all the same."""
    env = {"NOTIFY_SOCKET": str(tmp_path / "nowhere")}
    with (
        manager.start(command(*LISTEN), watchdog=0.1, env=env) as server,
        client(manager.url, "--count", "2", "--interval", "0.2") as run,
    ):
        assert run.event("summary", SOON)["answered"] == 2
        server.stop()
    (line,) = [line for line in all_of(server) if "cannot be told" in line]
    assert line.endswith("nowhere cannot be told READY=1: [Errno 2] No such file or directory")


@pytest.mark.parametrize("reactor", REACTORS)
def test_the_watchdog_hears_that_the_reactor_turns_and_nothing_when_it_does_not(manager, reactor):
    """Twice in its patience; a process that stands still says nothing, and one that goes on says it again."""
    patience = 0.6
    with manager.start(command(*LISTEN, reactor=reactor), watchdog=patience) as server:
        manager.hears("READY=1", SOON)
        for _ in range(5):
            assert manager.told(SOON) == "WATCHDOG=1"
        began = time.monotonic()
        manager.forget()
        for _ in range(6):
            assert manager.told(SOON) == "WATCHDOG=1"
        # All six were said since, and from the first to the last are five halves; the first may have been late by one.
        assert 4 * patience / 2 <= time.monotonic() - began < SOON

        server.pause()
        manager.forget()
        assert manager.is_silent(2 * patience)
        server.resume()
        assert manager.told(SOON) == "WATCHDOG=1"


def test_a_watch_over_another_process_is_no_watch_over_this_one(manager):
    with manager.start(command(*LISTEN), watchdog=0.1, env={"WATCHDOG_PID": "1"}) as server:
        assert manager.told(SOON) == "READY=1"
        with client(manager.url, "--interval", "0.2", "--count", "4") as run:
            run.event("summary", SOON)
        server.stop()
        assert manager.told(SOON) == "STOPPING=1"


def test_whoever_connects_while_the_server_is_started_anew_waits_and_is_refused_nothing(manager):
    """The socket is the manager's: of a server that is killed only the connections are lost."""
    with manager.start(command(*LISTEN)) as first:
        assert manager.told(SOON) == "READY=1"
        first.kill()
        with socket.create_connection(("127.0.0.1", manager.port), SOON) as line:
            line.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with manager.start(command(*LISTEN)):
                assert line.recv(15) == b"HTTP/1.1 200 OK"


@pytest.mark.slow
def test_a_session_survives_a_restart_by_the_manager(manager, tmp_path):
    """SIGTERM, and started again: the client is back where it was, and what was sent meanwhile arrives."""
    options = [*LISTEN, "--store", "sqlite:sessions.db", "--messages", "chat", "--drain-after", "0"]
    bob = ("--client-id", "bob", "--interval", "0.2", "--attempts", "20")
    letter = ("--send", "onchat", json.dumps({"id": "m1", "to": "bob", "text": "hi"}))
    with manager.start(command(*options)) as first:
        assert manager.told(SOON) == "READY=1"
        with client(manager.url, *bob) as stays:
            stays.event("pong", SOON)
            assert first.stop() == -signal.SIGTERM
            assert manager.told(SOON) == "STOPPING=1"
            with manager.start(command(*options)):
                assert manager.told(SOON) == "READY=1"
                with client(manager.url, "--client-id", "alice", *letter) as alice:
                    alice.event("handled", SOON)
                assert stays.event("message", SOON)["message"]["text"] == "hi"
                assert not [line for line in stays.seen if "session-lost" in line]


def test_tls_goes_over_the_socket_of_the_manager(manager, tmp_path):
    authority = Authority(tmp_path)
    authority.issue()
    tls = ["--tls-certificate", "chain.pem", "--tls-key", "key.pem"]
    with manager.start(command("--listen", "wss:systemd:domain=INET:name=heartbeat", *tls)) as server:
        assert manager.told(SOON) == "READY=1"
        url = f"wss://127.0.0.1:{manager.port}/ws"
        assert serial_seen(tmp_path, url) == authority.serial
        after = authority.issue()
        server.signal(signal.SIGHUP)
        manager.hears("RELOADING=1", SOON)
        assert manager.told(SOON) == "READY=1"
        assert serial_seen(tmp_path, url) == after


def test_without_a_manager_there_is_none(tmp_path):
    """Neither a socket to tell, nor one to listen on, nor one that another process was given."""
    for env in ({}, {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "heartbeat"}):
        run = subprocess.run(
            list(map(str, command(*LISTEN, "--check-config"))),
            env=env,
            capture_output=True,
            text=True,
            timeout=SOON,
            check=False,
        )
        assert run.returncode == 1
        sentence = "--listen must be a socket that a service manager has handed over, and it has not, not"
        assert run.stderr == f"{sentence} 'systemd:domain=INET:name=heartbeat'\n"


# The units that are shipped.


def settings_of(unit):
    """What a unit says, by name; a name that stands twice has both."""
    said = {}
    for line in (CONTRIB / "systemd" / unit).read_text("utf-8").splitlines():
        if line and line[0] not in "#[;":
            name, _, value = line.partition("=")
            said.setdefault(name, []).append(value)
    return said


def test_the_unit_starts_a_server_that_says_when_it_is_ready(manager, tmp_path):
    """Its own command line, with its own file of options, under its own name for the socket; over `/opt` and `/etc`."""
    (line,) = settings_of("heartbeat.service")["ExecStart"]
    (folder,) = settings_of("heartbeat.service")["WorkingDirectory"]
    assert folder == "%S/heartbeat"
    (name,) = settings_of("heartbeat.socket")["FileDescriptorName"]
    assert name == "heartbeat"
    words = shlex.split(line.replace("/opt/heartbeat/bin", str(BIN)).replace("/etc/heartbeat", str(CONTRIB)))
    with manager.start(words, watchdog=0.6) as server:
        manager.hears("READY=1", SOON)
        assert manager.told(SOON) == "WATCHDOG=1"
        assert sorted(path.name for path in tmp_path.glob("*.db")) == ["sessions.db"]
        with client(manager.url, "--count", "1") as run:
            assert run.event("summary", SOON)["answered"] == 1
        (reload,) = settings_of("heartbeat.service")["ExecReload"]
        subprocess.run(shlex.split(reload.replace("$MAINPID", str(server.pid))), check=True, timeout=SOON)
        manager.hears("RELOADING=1", SOON)
        server.stop()
    lines = all_of(server)
    # `log-format = "json"` is in that file.
    assert len([json.loads(line) for line in lines]) == len(lines) > 5


def test_the_unit_gives_the_server_time_to_drain_and_files_enough():
    service, settings = settings_of("heartbeat.service"), Settings()

    assert service["Type"] == ["notify"]
    assert float(service["TimeoutStopSec"][0]) > settings.drain_timeout + settings.close_timeout
    assert float(service["WatchdogSec"][0]) > 10
    assert int(service["LimitNOFILE"][0]) >= 65536
    assert settings_of("heartbeat.socket")["Backlog"] == [str(settings.backlog)]


def copied(folder):
    """The units, with a program that there is here."""
    for unit in ("heartbeat.service", "heartbeat.socket"):
        text = (CONTRIB / "systemd" / unit).read_text("utf-8")
        (folder / unit).write_text(text.replace("/opt/heartbeat/bin", str(BIN)))
    return [str(folder / "heartbeat.service"), str(folder / "heartbeat.socket")]


needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="NOT TESTED: no systemd-analyze on this machine (Debian's package systemd), so nobody has read the units",
)


@needs_analyze
@pytest.mark.faults
def test_systemd_takes_the_units_without_a_word(tmp_path):
    run = subprocess.run(
        ["systemd-analyze", "verify", *copied(tmp_path)], capture_output=True, text=True, timeout=SOON, check=False
    )

    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@needs_analyze
@pytest.mark.faults
def test_systemd_finds_the_service_well_shut_in(tmp_path):
    """Its own measure, from 0 to 10: what a server that listens cannot do without is left."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", copied(tmp_path)[0]]

    run = subprocess.run(command, capture_output=True, text=True, timeout=SOON, check=False)

    assert run.returncode == 0, run.stdout
    assert float(re.search(r"exposure level for heartbeat.service: ([0-9.]+)", run.stdout)[1]) <= 2.0


@needs_analyze
@pytest.mark.faults
def test_the_server_asks_the_kernel_for_nothing_that_the_unit_forbids(manager, tmp_path):
    """Each of its calls, from the start to the end of a life with a store, TLS and clients, is one that may be made."""
    if shutil.which("strace") is None:
        pytest.skip("NOT TESTED: no strace on this machine, so nobody has looked at the calls of the server")
    authority = Authority(tmp_path)
    authority.issue()
    (line,) = settings_of("heartbeat.service")["ExecStart"]
    words = shlex.split(line.replace("/opt/heartbeat/bin", str(BIN)).partition(" --config")[0])
    options = ["--store", "sqlite:sessions.db", "--messages", "chat,group", "--log-format", "json"]
    tls = ["--tls-certificate", "chain.pem", "--tls-key", "key.pem", "--listen", "wss:tcp:0:interface=127.0.0.1"]
    # -D: the server is the process that is started, as it is under systemd.
    traced = [shutil.which("strace"), "-D", "-f", "-o", tmp_path / "calls", "-s", "0"]
    with manager.start([*traced, *words, *LISTEN, *tls, *options], watchdog=0.4) as server:
        manager.hears("READY=1", SOON)
        assert manager.told(SOON) == "WATCHDOG=1"
        serial_seen(tmp_path, json.loads(server.line_with("listening on wss", SOON))["where"])
        server.signal(signal.SIGHUP)
        manager.hears("RELOADING=1", SOON)
        with client(manager.url, "--client-id", "bob", "--count", "3", "--interval", "0.2") as run:
            assert run.event("summary", SOON)["answered"] == 3
        server.signal(signal.SIGTERM)
        server.wait(SOON)
    deadline = time.monotonic() + SOON
    while f"{server.pid} +++ killed by SIGTERM" not in re.sub(" +", " ", (said := (tmp_path / "calls").read_text())):
        assert time.monotonic() < deadline, "strace has not seen the end of the server"
    called = set(re.findall(r"^[0-9]+ +([a-z0-9_]+)\(", said, re.MULTILINE))

    assert {"accept4", "fdatasync", "epoll_wait"} <= called
    # As root, and only then, SQLite gives its files to whom the database belongs.
    assert called - allowed() <= ({"fchown"} if os.geteuid() == 0 else set())


def allowed():
    """The calls that `SystemCallFilter=` leaves: a list that allows, less one that does not."""
    sets, name = {}, None
    said = subprocess.run(
        ["systemd-analyze", "syscall-filter"], capture_output=True, text=True, timeout=SOON, check=True
    )
    for line in re.sub("\033\\[[0-9;]*m", "", said.stdout).splitlines():
        if line.startswith("@"):
            name = line.strip()
            sets[name] = set()
        elif line.startswith("    ") and not line.strip().startswith("#") and name is not None:
            sets[name].add(line.strip())
        elif line.strip().startswith("# Ungrouped"):
            name = None

    def calls(word):
        return set().union(*map(calls, sets[word])) if word.startswith("@") else {word}

    grants, denials = settings_of("heartbeat.service")["SystemCallFilter"]
    denied = set().union(*map(calls, denials.removeprefix("~").split()))
    # @default is in every list that allows.
    return set().union(*map(calls, ["@default", *grants.split()])) - denied
