"""Behind nginx and HAProxy, as the examples of contrib configure them: beats keep it open, and it knows its clients."""

import contextlib
import json
import re
import shutil
import socket
import ssl
import time
from pathlib import Path

import pytest
from ports import free_port
from processes import Program, client, twistd
from test_tls_reload import Authority

from heartbeat import Settings

CONTRIB = Path(__file__).parents[2] / "contrib"

#: What each step may take at most; it takes a fraction of a second.
SOON = 30.0

#: Seconds after which the proxies close what is idle where that is the point, in the place of those of the examples.
IDLE = 2

EXAMPLES = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}


def replaced(text, *pairs):
    """The text with these in the place of those, each of which it must have."""
    for old, new in pairs:
        assert text.count(old), f"the example has no {old!r}"
        text = text.replace(old, new)
    return text


def nginx(folder, port, server, idle):
    """Start it with the example, on this port, in front of that of the server."""
    # Nothing outside of the folder, and one process, which ends by its process id.
    places = "".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    text = replaced(
        (CONTRIB / "nginx.conf").read_text("utf-8"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("        listen [::]:443 ssl;\n", ""),
        ("127.0.0.1:9000", f"127.0.0.1:{server}"),
        ("/etc/nginx/fullchain.pem", str(folder / "chain.pem")),
        ("/etc/nginx/privkey.pem", str(folder / "key.pem")),
        ("75s", f"{idle}s"),
        ("    access_log off;", places),
    )
    (folder / "nginx.conf").write_text(text, "utf-8")
    ours = f"daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr warn;"
    return Program(["nginx", "-p", folder, "-c", folder / "nginx.conf", "-g", ours], cwd=folder)


def haproxy(folder, port, server, idle):
    """Start it with the example, on this port, in front of that of the server."""
    (folder / "heartbeat.pem").write_bytes((folder / "key.pem").read_bytes() + (folder / "chain.pem").read_bytes())
    text = replaced(
        (CONTRIB / "haproxy.cfg").read_text("utf-8"),
        ("bind :443 ", f"bind 127.0.0.1:{port} "),
        ("127.0.0.1:9000", f"127.0.0.1:{server}"),
        ("/etc/haproxy/heartbeat.pem", str(folder / "heartbeat.pem")),
        ("75s", f"{idle}s"),
        # As many as there may be files here.
        ("maxconn 32768", "maxconn 256"),
    )
    (folder / "haproxy.cfg").write_text(text, "utf-8")
    return Program(["haproxy", "-db", "-f", folder / "haproxy.cfg"], cwd=folder)


STARTS = {"nginx": nginx, "haproxy": haproxy}


class Fronted:
    """A server behind a proxy, both running; `port` is the proxy's."""

    def __init__(self, kind, folder, *options, idle=60):
        if shutil.which(kind) is None:
            pytest.skip(f"NOT TESTED: no {kind} on this machine (Debian's package {kind}), so nobody went through it")
        authority = Authority(folder)
        authority.issue()
        self.folder, self.port, there = folder, free_port(), free_port()
        said = (CONTRIB / EXAMPLES[kind]).read_text("utf-8").replace("\n# ", " ")
        (words,) = re.findall("The server is started with (--listen [^;]*);", said)
        self.server = twistd(*replaced(words, ("tcp:9000:", f"tcp:{there}:")).split(), *options, cwd=folder)
        self.proxy = None
        try:
            self.server.url()
            self.proxy = STARTS[kind](folder, self.port, there, idle)
            deadline = time.monotonic() + SOON
            while not listens(self.port):
                assert time.monotonic() < deadline, "\n".join([f"{kind} does not listen", *self.proxy.rest()])
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        for program in (self.server, self.proxy):
            if program is not None:
                program.kill()
                program.rest()

    @property
    def url(self):
        return f"wss://localhost:{self.port}/ws"

    @property
    def trusting(self):
        """What a client of ours is told."""
        return ("--cacert", str(self.folder / "root.pem"))

    def line(self, address="127.0.0.1", **headers):
        """A connection from this address that asks for a WebSocket, and the status it is answered with."""
        context = ssl.create_default_context(cafile=self.folder / "root.pem")
        context.set_alpn_protocols(["http/1.1"])
        plain = socket.create_connection(("127.0.0.1", self.port), SOON, source_address=(address, 0))
        try:
            line = context.wrap_socket(plain, server_hostname="localhost")
        except BaseException:
            plain.close()
            raise
        asked = {
            "Host": f"localhost:{self.port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        } | {name.replace("_", "-"): value for name, value in headers.items()}
        lines = ["GET /ws HTTP/1.1", *(f"{name}: {value}" for name, value in asked.items()), "", ""]
        line.sendall("\r\n".join(lines).encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += line.recv(1) or pytest.fail(f"closed amid {head!r}")
        return line, int(head.split()[1])


def listens(port):
    """Whether somebody does there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=SOON).close()
    except OSError:
        return False
    return True


def pong_of(line):
    """What a ping is answered with: a frame's first byte, and what it holds."""
    ping = b'{"type":"ping","id":7}'
    line.sendall(bytes([0x81, 0x80 | len(ping), 0, 0, 0, 0]) + ping)
    kind, length = line.recv(1), line.recv(1)[0]
    said = b""
    while len(said) < length:
        said += line.recv(length - len(said))
    return kind[0], said


kinds = pytest.mark.parametrize("kind", EXAMPLES)


@kinds
def test_the_timeouts_of_the_examples_are_longer_than_the_slowest_beat(kind):
    text = (CONTRIB / EXAMPLES[kind]).read_text("utf-8")
    idle = [float(seconds) for seconds in re.findall(r"(?:read_timeout|send_timeout|client|server) ([0-9]+)s", text)]

    assert len(idle) == 2
    assert min(idle) > Settings().interval_max + Settings().timeout_max


@kinds
@pytest.mark.faults
def test_beats_go_on_past_three_times_the_silence_that_the_proxy_bears(kind, tmp_path):
    """Nothing is closed, suspected or lost; and a connection that says nothing is closed, which shows that it looks."""
    with Fronted(kind, tmp_path, idle=IDLE) as fronted:
        began = time.monotonic()
        silent, status = fronted.line()
        assert status == 101
        with silent, client(fronted.url, *fronted.trusting, "--interval", "0.5") as run:
            silent.settimeout(SOON)
            # HAProxy closes without TLS's own goodbye.
            with contextlib.suppress(ssl.SSLError, ConnectionResetError):
                assert silent.recv(1) == b""
            assert IDLE - 0.5 < time.monotonic() - began < IDLE + 10
            events = []
            first = None
            for event in run.json_events(SOON):
                first = first or time.monotonic()
                events.append(event["event"])
                if time.monotonic() - first > 3 * IDLE + 1:
                    break
    assert events.count("pong") >= 3 * IDLE
    assert set(events) <= {"open", "pong", "acknowledged", "waiting"}


@kinds
@pytest.mark.faults
def test_each_client_is_counted_as_himself_by_his_own_address(kind, tmp_path):
    """What is refused, and what the log says of it, is whose it is, and not the proxy's; nor what he says he is."""
    with Fronted(kind, tmp_path, "--connections-per-address", "2") as fronted:
        held = [fronted.line("127.0.0.2") for _ in range(2)]
        refused = fronted.line("127.0.0.2")
        forged = fronted.line("127.0.0.2", X_Forwarded_For="198.51.100.9") if kind == "nginx" else refused
        other = fronted.line("127.0.0.3")
        assert [status for _line, status in held] == [101, 101]
        assert (refused[1], forged[1], other[1]) == (503, 503, 101)
        line = fronted.server.line_with("too many connections", SOON)
        assert "127.0.0.2: too many connections of one address (setting connections_per_address)" in line
        for line, _status in (*held, refused, forged, other):
            line.close()


@kinds
@pytest.mark.faults
def test_a_page_of_the_same_host_is_let_in_and_another_is_not(kind, tmp_path):
    """The server sees the `Host` that the browser asked, though it asked the proxy, and over TLS."""
    with Fronted(kind, tmp_path) as fronted:
        same, _status = fronted.line(Origin=f"https://localhost:{fronted.port}")
        other, _status = fronted.line(Origin="https://example.com")
        with same, other:
            kind_of_frame, said = pong_of(same)
            assert (kind_of_frame, json.loads(said)["status"]) == (0x81, "pong")
            kind_of_frame, said = pong_of(other)
            assert (kind_of_frame, int.from_bytes(said[:2], "big")) == (0x88, 4403)


@pytest.mark.faults
def test_the_log_names_the_clients_of_haproxy_for_pages_too(tmp_path):
    """And nobody is told of the looks that it takes at the server."""
    with Fronted("haproxy", tmp_path) as fronted:
        context = ssl.create_default_context(cafile=tmp_path / "root.pem")
        with (
            socket.create_connection(("127.0.0.1", fronted.port), SOON, source_address=("127.0.0.4", 0)) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as line,
        ):
            line.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert line.recv(12) == b"HTTP/1.1 200"
        assert fronted.server.line_with("GET / 200", SOON).endswith(" from 127.0.0.4")
        said = fronted.proxy.rest()
    assert not [line for line in fronted.server.seen if "#warn" in line or "Traceback" in line]
    assert not [line for line in said if "DOWN" in line]
