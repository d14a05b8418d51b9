"""The examples run as they stand, as real processes, and real clients talk to them."""

import http.client
import re
import shutil
import signal
import ssl
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import Certificates
from plain_client import MESSAGES
from ports import free_port
from processes import BIN, LOOPBACK, Program, client

# Each starts programs, most of them several.
pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
PLAIN_CLIENT = Path(__file__).parent / "plain_client.py"

# Nothing here takes longer than a second or two, unless something is wrong.
SOON = 15.0

# A server whose timing, which its clients take over, lets a test see a link fail within seconds.
QUICK_SERVER = """
from twisted.application.service import Application

from heartbeat import Settings
from heartbeat.service import HeartbeatService

application = Application("quick")
settings = Settings(interval=0.2, interval_max=0.2, timeout_min=0.4, timeout_max=1.0, probe=2.0, tick=0.05)
HeartbeatService(["tcp:0:interface=127.0.0.1"], settings).setServiceParent(application)
"""


@pytest.fixture
def certificates(tmp_path):
    return Certificates.issued_in(tmp_path)


@contextmanager
def application(name, listen, folder, **env):
    """The example `name` under twistd, and the URL it is to be had at."""
    command = [BIN / "twistd", "--pidfile=", "-ny", EXAMPLES / name]
    with Program(command, env={"LISTEN": listen} | env, cwd=folder) as program:
        port = re.search(r" starting on (\d+)", program.line_with(" starting on ", SOON)).group(1)
        scheme = "wss" if listen.startswith("ssl:") else "ws"
        yield program, f"{scheme}://127.0.0.1:{port}/ws"


@contextmanager
def echo_server():
    """The echo example, and its URL."""
    with Program([sys.executable, EXAMPLES / "echo_mixin.py", "0"]) as program:
        yield program, program.url()


@contextmanager
def quick_server(folder):
    """A server of which a client finds out within three seconds that it is gone."""
    (folder / "quick.tac").write_text(QUICK_SERVER)
    with Program([BIN / "twistd", "--pidfile=", "-ny", "quick.tac"], cwd=folder) as program:
        yield program, program.url()


def beats(url, *options):
    """What `heartbeat-client` tells of three beats."""
    with client(url, "--interval", "0.1", "--count", "3", *options) as run:
        events = list(run.json_events(SOON))
        assert run.wait(SOON) == 0
    return events


def assert_three_beats(events):
    assert [event["event"] for event in events] == ["open", "pong", "pong", "pong", "summary"]
    assert events[0]["level"] == 1
    assert events[-1]["answered"] == 3
    assert events[-1]["lost"] == 0


def assert_ends_quietly(program):
    program.signal(signal.SIGINT)
    program.wait(SOON)
    said = program.seen + program.rest()
    assert not [line for line in said if "Traceback" in line or "Unhandled" in line or "was destroyed" in line], said


def page_at(url, authority=None, path="/"):
    """The status, the type and the text of what is at `path` of the server with this WebSocket URL."""
    host, port = url.split("/")[2].split(":")
    if authority is None:
        connection = http.client.HTTPConnection(host, int(port), timeout=SOON)
    else:
        context = ssl.create_default_context(cafile=authority)
        connection = http.client.HTTPSConnection(host, int(port), timeout=SOON, context=context)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type"), answer.read().decode()
    finally:
        connection.close()


# An Autobahn server of the application's own.


def test_the_echo_server_gives_a_plain_client_its_messages_back_and_answers_another_ones_beats():
    """Text and binary come back byte for byte; nothing of ours is ever sent to whoever does not ask."""
    with echo_server() as (server, url), Program([sys.executable, PLAIN_CLIENT, url]) as plain:
        echoed = [plain.event("message", SOON) for _ in MESSAGES]
        # While it stays connected, somebody with a heartbeat comes.
        assert_three_beats(beats(url))
        server.line_with("is closed: closed (1000)", SOON)
        assert plain.rest() == []
    assert [(bytes.fromhex(event["payload"]), event["binary"]) for event in echoed] == list(MESSAGES)


# A listener of its own in an application.


def test_the_server_beside_other_services_of_an_application(tmp_path):
    """It is a child like any other, and the others can ask it who is there."""
    with application("application.tac", LOOPBACK, tmp_path, EVERY="0.1") as (server, url):
        assert_three_beats(beats(url))
        server.line_with("1 clients are alive", SOON)
        server.line_with("0 clients are alive", SOON)
        assert page_at(url)[0] == 200
        assert_ends_quietly(server)


def test_the_server_beside_other_services_over_tls(tmp_path, certificates):
    with application("application.tac", certificates.listen, tmp_path) as (_server, url):
        assert_three_beats(beats(url, "--cacert", certificates.authority))


# Sessions and messages of its own.


def test_an_order_reaches_the_kitchen_once_although_everybody_is_killed_in_between(tmp_path):
    port = free_port()
    url = f"ws://127.0.0.1:{port}/ws"

    def bakery(*arguments):
        return Program([sys.executable, EXAMPLES / "sessions.py", *arguments], cwd=tmp_path)

    with bakery("serve", port) as server:
        server.line_with("listening on ", SOON)
        with bakery("order", url, "a bun") as customer:
            customer.line_with("refused: the kitchen is closed", SOON)
            assert customer.wait(SOON) == 0
        with bakery("kitchen", url) as kitchen:
            kitchen.line_with("open", SOON)
            with bakery("order", url, "one loaf") as customer:
                customer.line_with("accepted: one loaf", SOON)
                assert customer.wait(SOON) == 0
            kitchen.line_with("cooking one loaf for alice", SOON)
            kitchen.kill()
        with bakery("order", url, "two loaves") as customer:
            customer.line_with("accepted: two loaves", SOON)
            assert customer.wait(SOON) == 0
        server.kill()
    with bakery("serve", port) as server:
        server.line_with("listening on ", SOON)
        with bakery("kitchen", url) as kitchen:
            kitchen.line_with("cooking two loaves for alice", SOON)
            assert_ends_quietly(kitchen)
            # What it was killed with may come again; what it never saw comes once.
            assert kitchen.seen.count("cooking two loaves for alice") == 1
        with client(url) as stranger:
            assert "4401: this token is not known" in stranger.event("closed", SOON)["detail"]
        assert_ends_quietly(server)


# Mounted in a site.


def test_the_server_mounted_beside_an_ordinary_page(tmp_path):
    with application("mounted_in_site.tac", LOOPBACK, tmp_path) as (server, url):
        assert_three_beats(beats(url))
        status, kind, text = page_at(url)
        assert (status, kind) == (200, "text/html; charset=utf-8")
        assert "An ordinary page" in text
        status, kind, text = page_at(url, path="/heartbeat.js")
        assert (status, kind) == (200, "text/javascript; charset=utf-8")
        assert "export class HeartbeatClient" in text
        assert_ends_quietly(server)


def test_the_server_mounted_beside_an_ordinary_page_over_tls(tmp_path, certificates):
    with application("mounted_in_site.tac", certificates.listen, tmp_path) as (_server, url):
        assert_three_beats(beats(url, "--cacert", certificates.authority))
        assert "An ordinary page" in page_at(url, certificates.authority)[2]


@pytest.mark.parametrize("example", ["application.tac", "mounted_in_site.tac"])
def test_a_client_that_offers_alpn_gets_http_1_1(example, tmp_path, certificates):
    """Browsers and curl offer h2 and http/1.1; a listener without an answer fails their TLS handshake."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("NOT TESTED: no openssl on this machine, so nobody has offered ALPN to the TLS listeners")
    with application(example, certificates.listen, tmp_path) as (_server, url):
        command = [openssl, "s_client", "-connect", url.split("/")[2], "-alpn", "h2,http/1.1"]
        command += ["-CAfile", certificates.authority, "-verify_return_error"]
        told = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SOON, check=False
        )
    assert told.returncode == 0, told.stdout + told.stderr
    assert "ALPN protocol: http/1.1" in told.stdout
    assert "Verify return code: 0 (ok)" in told.stdout


# Programs with a client.


def test_a_program_reacts_to_a_link_that_falters_fails_and_comes_back(tmp_path):
    """Working while the link is good; the user is told at once when it is not."""
    with (
        quick_server(tmp_path) as (server, url),
        Program([sys.executable, EXAMPLES / "react_to_link.py", url]) as worker,
    ):
        worker.line_with("online (open as ", SOON)
        worker.line_with("working", SOON)
        server.pause()
        worker.line_with("the network is fluctuating (", SOON)
        server.resume()
        worker.line_with("online again (answered again)", SOON)
        worker.line_with("working", SOON)
        server.pause()
        worker.line_with("the network is fluctuating (", SOON)
        worker.line_with("offline (nothing received for ", SOON)
        worker.line_with("offline, trying again (", SOON)
        server.resume()
        worker.line_with("online (open as ", SOON)
        worker.line_with("working", SOON)
        assert_ends_quietly(worker)


def test_a_program_says_goodbye_when_it_is_stopped(tmp_path):
    """So that its absence is announced at once, not after a grace."""
    with application("application.tac", LOOPBACK, tmp_path, EVERY="0.1") as (server, url):
        with Program([sys.executable, EXAMPLES / "react_to_link.py", url]) as worker:
            worker.line_with("online (", SOON)
            server.line_with("1 clients are alive", SOON)
            worker.signal(signal.SIGINT)
            worker.line_with("offline (closed by us)", SOON)
        server.line_with(" left", SOON)


def test_an_asyncio_program_hears_of_every_change(tmp_path):
    with (
        quick_server(tmp_path) as (server, url),
        Program([sys.executable, EXAMPLES / "asyncio_client.py", url]) as watcher,
    ):
        watcher.line_with("there we are c-", SOON)
        watcher.line_with("open: open as c-", SOON)
        server.pause()
        watcher.line_with("suspect: network fluctuation", SOON)
        server.resume()
        watcher.line_with("acknowledged: answered again", SOON)
        server.kill()
        watcher.line_with("closed: lost", SOON)
        watcher.line_with("reconnecting: ", SOON)
        assert_ends_quietly(watcher)


def test_an_asyncio_program_is_told_that_there_is_no_server(tmp_path):
    """A refusal for good is not met by further attempts, so this takes no time."""
    with application("application.tac", LOOPBACK, tmp_path) as (_server, url):
        elsewhere = url.replace("/ws", "/elsewhere")
        with Program([sys.executable, EXAMPLES / "asyncio_client.py", elsewhere]) as watcher:
            watcher.line_with("no server: the server refused the handshake with HTTP 404", SOON)
            assert watcher.wait(SOON) == 0
