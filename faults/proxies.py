"""Rows: somebody between the ends who closes what is idle, or lets little pass at a time."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from urllib.parse import urlsplit

from ports import free_port

from faults.lab import HERE, Failed, Lab, Seen, Server, Told, fault, granted, now
from faults.rows import LATE, START, back_within, kept, nothing_of, serve
from heartbeat import Settings

__all__: list[str] = []

#: Seconds after which the proxies close what is idle.
IDLE = 5.0
OFTEN, SELDOM = Settings(interval=2.0), Settings(interval=8.0)

# One process, so that it ends with its process id; and nothing outside of the row's own folder.
NGINX = """
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{server};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_read_timeout {idle:.0f}s;
        }}
    }}
}}
"""

HAPROXY = """
global
    maxconn 256
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout tunnel {idle:.0f}s
frontend near
    bind 127.0.0.1:{port}
    default_backend far
backend far
    server heartbeat 127.0.0.1:{server}
"""


def _nginx(lab: Lab, text: str) -> Told:
    (lab.folder / "nginx.conf").write_text(text, encoding="utf-8")
    return lab.program(["nginx", "-p", lab.folder, "-c", lab.folder / "nginx.conf", "-g", "daemon off;"])


def _haproxy(lab: Lab, text: str) -> Told:
    (lab.folder / "haproxy.cfg").write_text(text, encoding="utf-8")
    return lab.program(["haproxy", "-db", "-f", lab.folder / "haproxy.cfg"])


_KINDS: dict[str, tuple[str, Callable[[Lab, str], Told]]] = {"nginx": (NGINX, _nginx), "haproxy": (HAPROXY, _haproxy)}


def _behind(lab: Lab, kind: str, server: Server) -> str:
    """Put a proxy of this kind in front of the server; the URL that leads through it."""
    text, start = _KINDS[kind]
    port = free_port()
    there = urlsplit(server.url()).port
    proxy = start(lab, text.format(folder=lab.folder, port=port, server=there, idle=IDLE))
    deadline = now() + START
    while not _listens(port):
        if now() > deadline:
            raise Failed(f"{kind} does not listen; {proxy.latest()}")
        proxy.until(now() + 0.05)
    return f"ws://127.0.0.1:{port}/ws"


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10.0).close()
    except OSError:
        return False
    return True


def _beats_often(lab: Lab, kind: str) -> Seen:
    server = serve(lab, OFTEN)
    # All that passes are the beats, for three times as long as the proxy bears silence.
    clients = lab.clients(_behind(lab, kind, server), 4, rate=1.0 / (4 * IDLE))
    for name in clients.names:
        clients.first("pong", client=name, timeout=START)
    began = now()
    clients.until(began + 3 * IDLE)
    nothing_of(("closed", "suspect", "reconnecting"), server, clients, since=0.0)
    beats = len(clients.events("pong", since=began))
    return kept(
        clients.finish(),
        ends=(server, clients),
        note=f"{beats} beats, nothing closed; 4 clients",
    )


#: How often a connection is closed in the rows with slow beats, and a client that comes back at once each time.
CUTS = 3
AT_ONCE = Settings(delays=(1.0,), attempts=100)


def _beats_seldom(lab: Lab, kind: str) -> Seen:
    server = serve(lab, SELDOM)
    settings = {"delays": AT_ONCE.delays, "attempts": AT_ONCE.attempts}
    # A message of its own now and then, which falls where it falls: before a cut, after it, or in between.
    clients = lab.clients(_behind(lab, kind, server), 1, rate=1.0 / 7.0, settings=settings)
    bound, noticed, recovered, since = granted(SELDOM).pinging_bound, 0.0, 0.0, 0.0
    for _ in range(CUTS):
        opened = clients.first("pong", since=since, timeout=START).at
        closed = clients.first("closed", since=opened, timeout=bound + LATE).at
        latest = max(event.at for event in clients.events("open", "pong", "message") if event.at < closed)
        noticed = max(noticed, closed - latest)
        back = clients.first("pong", since=closed, timeout=back_within(AT_ONCE) + LATE).at
        recovered = max(recovered, back - closed)
        since = back
    ledger = clients.finish()
    if ledger.resumed < CUTS:
        raise Failed(f"only {ledger.resumed} of {CUTS} times was the session resumed")
    return kept(
        ledger,
        noticed=(noticed, bound),
        ends=(server, clients),
        recovered=recovered,
        recovery_bound=back_within(AT_ONCE),
        note=f"closed and resumed {ledger.resumed} times",
    )


INSIDE = "nothing is closed"
BEYOND = "the close is seen, and the session resumed; nothing is lost or doubled"


@fault("nginx that closes what is idle for 5 s, beats every 2 s", expected=INSIDE, needs=("nginx",))
def nginx_often(lab: Lab) -> Seen:
    """The beats keep the line open."""
    return _beats_often(lab, "nginx")


@fault("nginx that closes what is idle for 5 s, beats every 8 s", expected=BEYOND, needs=("nginx",))
def nginx_seldom(lab: Lab) -> Seen:
    """From the last byte to the notice of the close."""
    return _beats_seldom(lab, "nginx")


@fault("HAProxy that closes what is idle for 5 s, beats every 2 s", expected=INSIDE, needs=("haproxy",))
def haproxy_often(lab: Lab) -> Seen:
    """The beats keep the line open."""
    return _beats_often(lab, "haproxy")


@fault("HAProxy that closes what is idle for 5 s, beats every 8 s", expected=BEYOND, needs=("haproxy",))
def haproxy_seldom(lab: Lab) -> Seen:
    """From the last byte to the notice of the close."""
    return _beats_seldom(lab, "haproxy")


#: Bytes of a large message, and how many of them pass in a second.
LARGE, RATE = 50_000_000, 5_000_000
BEATS = Settings(interval=0.5)


@fault(
    "a message of 50 MB each way, at 5 MB/s",
    expected="it arrives, and nobody is convicted for what waits behind it",
)
def large(lab: Lab) -> Seen:
    """A client sends it to itself, through the server, which first has to have all of it."""
    room = ("--max-message", 2 * LARGE, "--sessions-bytes", 64 * LARGE)
    server = serve(lab, BEATS, *room, settings={"kept_bytes": 2 * LARGE})
    narrow = lab.program([sys.executable, "-P", HERE / "narrow.py", urlsplit(server.url()).port, RATE])
    said = narrow.first("line", timeout=START, where=lambda event: "listening on " in event.detail["text"]).detail[
        "text"
    ]
    settings = {"message_limit": 2 * LARGE, "kept_bytes": 2 * LARGE}
    url = f"ws://127.0.0.1:{said.split()[-1]}/ws"
    # One message, and then none for a thousand seconds.
    clients = lab.clients(url, 1, rate=0.001, size=LARGE, settings=settings)
    began = clients.first("open", timeout=START).at
    arrived = clients.first("message", since=began, timeout=6 * LARGE / RATE).at
    least = 2 * LARGE / RATE
    if arrived - began < 0.95 * least:
        raise Failed(f"50 MB came and went in {arrived - began:.1f} s: nothing was slow about it")
    clients.first("pong", since=arrived)
    nothing_of(("closed", "reconnecting"), server, clients, since=0.0)
    return kept(
        clients.finish(),
        ends=(server, clients),
        note=f"there and back in {arrived - began:.1f} s",
    )
