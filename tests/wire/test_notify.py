"""Word to a service manager: which environment names one, and that nothing that he does holds us up."""

import os
import re
import socket

import pytest
from twisted.logger import LogPublisher, globalLogPublisher

from heartbeat.notify import Manager


@pytest.fixture
def line(tmp_path):
    """Where a manager listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(tmp_path / "notify"))
        line.settimeout(10)
        yield line


@pytest.fixture
def complaints():
    """What is logged meanwhile."""
    seen = []
    assert isinstance(globalLogPublisher, LogPublisher)
    globalLogPublisher.addObserver(seen.append)
    yield seen
    globalLogPublisher.removeObserver(seen.append)


def test_only_an_environment_that_names_a_socket_has_a_manager():
    assert Manager.of({}) is None
    assert Manager.of({"NOTIFY_SOCKET": ""}) is None
    assert Manager.of({"WATCHDOG_USEC": "1000000"}) is None
    assert Manager.of({"NOTIFY_SOCKET": "/run/notify"}).patience is None


@pytest.mark.parametrize(
    ("environ", "patience"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
    ],
)
def test_his_patience_is_in_seconds_and_only_over_this_process(environ, patience):
    assert Manager.of({"NOTIFY_SOCKET": "/run/notify"} | environ).patience == patience


def test_each_word_is_one_datagram(line):
    manager = Manager(line.getsockname())

    for tell in (manager.ready, manager.alive, manager.reloading, manager.stopping):
        tell()

    said = [line.recv(4096).decode() for _ in range(4)]
    assert (said[0], said[1], said[3]) == ("READY=1", "WATCHDOG=1", "STOPPING=1")
    assert re.fullmatch("RELOADING=1\nMONOTONIC_USEC=[0-9]+", said[2])


def test_an_abstract_address_begins_with_an_at():
    name = f"heartbeat-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind("\0" + name)
        line.settimeout(10)
        Manager("@" + name).ready()
        assert line.recv(4096) == b"READY=1"


@pytest.mark.parametrize("address", ["nowhere/notify", "vsock:2:1234", "/", "x" * 200, "@" + "x" * 200])
def test_whom_nothing_can_be_told_is_complained_of_once(complaints, address):
    manager = Manager(address)

    for _ in range(3):
        manager.reloading()

    (said,) = [event for event in complaints if "cannot be told" in event["log_format"]]
    assert (said["address"], said["words"]) == (address, "RELOADING=1")


def test_one_who_does_not_read_is_not_waited_for(line, complaints):
    """However much he was told already."""
    manager = Manager(line.getsockname())

    for _ in range(100_000):
        manager.alive()
        if complaints:
            break

    assert len(complaints) == 1
    assert isinstance(complaints[0]["error"], BlockingIOError)
    assert line.recv(4096) == b"WATCHDOG=1"
