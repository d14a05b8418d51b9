"""Rows: many at once, and a server that goes, comes back, has no room, or accepts whom it does not keep."""

from __future__ import annotations

import signal
import socket
import sys
from contextlib import ExitStack, closing, suppress
from typing import Any
from urllib.parse import urlsplit

from ports import free_port
from processes import BIN, LOOPBACK

from faults.lab import HERE, Clients, Failed, Lab, Seen, Server, convictions, fault, now
from faults.rows import (
    DEFAULTS,
    LATE,
    START,
    Starved,
    back_within,
    crowd,
    is_there,
    kept,
    newcomer,
    nothing_of,
    ready,
    serve,
)
from heartbeat import Settings
from heartbeat.core.backoff import Backoff

__all__: list[str] = []


def _on_file(lab: Lab, port: int, **how: Any) -> Server:
    """A server on this port, which keeps its sessions in a file."""
    listen = f"tcp:{port}:interface=127.0.0.1"
    store = f"sqlite:{lab.folder / 'sessions.db'}"
    return serve(lab, DEFAULTS, "--store", store, listen=listen, **how)


#: Clients that try again and again: the server goes before their links are stable, and their attempts counted anew.
TIRELESS = Settings(delays=(0.5,), attempts=1000)


def _tireless() -> dict[str, Any]:
    return {"delays": TIRELESS.delays, "attempts": TIRELESS.attempts}


def _restarts(lab: Lab, times: int, how: int, longest: float) -> Seen:
    """Under 20 clients that chat; the recovery is the longest, from when the server listens again."""
    port = free_port()
    server = _on_file(lab, port)
    clients = lab.clients(server.url(), 20, settings=_tireless())
    ready(clients)
    recovered, servers = 0.0, [server]
    for _ in range(times):
        clients.until(now() + lab.chance.uniform(0.5, 1.5))
        gone = now()
        server.signal(how)
        server.wait(START)
        server = _on_file(lab, port)
        servers.append(server)
        listening = now()
        recovered = max(recovered, clients.back(gone, longest + LATE) - listening)
    ledger = clients.finish()
    if ledger.resumed != times * len(clients.names):
        raise Failed(f"{ledger.resumed} sessions were resumed, and not {times * len(clients.names)}")
    return kept(
        ledger,
        ends=(clients, *servers),
        recovered=recovered,
        recovery_bound=longest,
        note=f"{times} restarts, 20 clients",
    )


@fault("server restarted under load (SIGTERM), sessions on disk", expected="all resume; nothing is lost or doubled")
def restarted(lab: Lab) -> Seen:
    """They are told to come back later (1012), and spread themselves."""
    return _restarts(lab, 2, signal.SIGTERM, Backoff.restarted(1.0) + TIRELESS.open_timeout)


@fault("server killed under load (kill -9), sessions on disk", expected="all resume; nothing is lost or doubled")
def killed(lab: Lab) -> Seen:
    """Whoever finds nobody yet tries again."""
    return _restarts(lab, 3, signal.SIGKILL, back_within(TIRELESS))


@fault(
    "a server that accepts, answers the opening, and drops",
    expected="the attempts are not counted anew: after three the client is `unreachable`",
)
def accept_then_drop(lab: Lab) -> Seen:
    """From the first drop to `unreachable`; each link is up for two seconds, and its first beat is answered."""
    settings, up = Settings(), 2.0
    server = lab.enter_context(Server([sys.executable, "-P", HERE / "embedded.py", "{}", up], cwd=lab.folder))
    client = lab.client(server.url())
    bound = 1.5 * sum(settings.delays) + settings.attempts * (up + 0.5)
    began = client.first("closed", timeout=START).at
    ended = client.first("unreachable", timeout=bound + LATE).at
    told = [event.name for event in client.events("open", "pong", "reconnecting")]
    if told != ["open", "pong", "reconnecting"] * settings.attempts + ["open", "pong"]:
        raise Failed(f"it went {' '.join(told)}")
    attempts = [event.detail["attempt"] for event in client.events("reconnecting")]
    status = client.wait(10.0)
    if attempts != list(range(1, settings.attempts + 1)) or status != 2:
        raise Failed(f"attempts {attempts}, exit status {status}")
    return Seen(
        detected=ended - began,
        bound=bound,
        false_convictions=len(convictions(client, server)),
        note=f"opened and answered {settings.attempts + 1} times, attempts 1, 2, 3",
    )


#: Files that the server may open in the rows about that, and idle connections that ask for more.
FILES, TOO_MANY = 200, 300
#: Connections that come beyond the room there is.
SURPLUS = 30


class _Idle:
    """Connections that begin a request and never end it."""

    def __init__(self, lab: Lab, url: str) -> None:
        parts = urlsplit(url)
        self._where = parts.hostname, parts.port
        self._open = lab.enter_context(ExitStack())

    def come(self, count: int) -> None:
        for _ in range(count):
            connection = self._open.enter_context(closing(socket.create_connection(self._where, timeout=10.0)))
            # Who finds no file left is dropped at once, perhaps before this.
            with suppress(OSError):
                connection.sendall(b"GET /ws HTTP/1.1\r\n")

    def leave(self) -> None:
        self._open.close()


def _served_again(url: str, within: float) -> float:
    """The moment from which newcomers are served."""
    deadline = now() + within
    while "pong" not in newcomer(url):
        if now() > deadline:
            raise Failed(f"a newcomer is not served {within:g} s after the crowd has left")
    return now()


@fault(
    "file descriptors exhausted by a crowd of connections",
    expected="who is there is served on; newcomers are, once the crowd has left",
    needs=("prlimit",),
)
def no_files(lab: Lab) -> Seen:
    """The limit is lowered under the running server, which counts on more: so it is `accept` that fails."""
    server = serve(lab, DEFAULTS, "--handshake-timeout", 60)
    clients = lab.clients(server.url(), 10)
    ready(clients)
    lab.program(["prlimit", "--pid", server.pid, f"--nofile={FILES}"]).wait(10.0)
    idle = _Idle(lab, server.url())
    crowded = now()
    idle.come(TOO_MANY)
    server.first("line", since=crowded, where=lambda event: "EMFILE" in event.detail["text"])
    if newcomer(server.url()):
        raise Failed("a newcomer was heard: there were files left")
    is_there(clients, now())
    left = now()
    idle.leave()
    served = _served_again(server.url(), DEFAULTS.handshake_timeout + LATE)
    nothing_of(("closed", "reconnecting"), clients, since=0.0)
    return kept(
        clients.finish(),
        ends=(server, clients),
        recovered=served - left,
        recovery_bound=DEFAULTS.handshake_timeout,
        note=f"{TOO_MANY} connections, {FILES} files; 10 clients",
    )


@fault(
    "more connections than the server has room for",
    expected="refused, and told so; who is there is served on; newcomers are, once the crowd has left",
)
def no_room(lab: Lab) -> Seen:
    """`ulimit -n` is low from the start, so that the server knows how many there may be."""
    server = serve(lab, DEFAULTS, prefix=("sh", "-c", f'ulimit -n {FILES}; exec "$0" "$@"'))
    clients = lab.clients(server.url(), 10)
    ready(clients)
    said = server.first("line", where=lambda event: "room for " in event.detail["text"]).detail["text"]
    room = int(said.split("room for ")[1].split()[0])
    # Few enough that each of them is still told; a larger crowd is partly dropped unheard.
    pages = crowd(lab, server.url(), room + SURPLUS)
    full = room - len(clients.names)
    pages.first("progress", timeout=START, where=lambda event: event.detail["open"] >= full)
    refused = newcomer(server.url())
    if not refused.startswith("HTTP/1.1 503 ") or "Retry-After" not in refused:
        raise Failed(f"a newcomer was told: {refused}")
    taken = pages.events("progress")[-1].detail["open"] + len(clients.names)
    if taken > room:
        raise Failed(f"{taken} were let in, and there is room for {room}")
    is_there(clients, now())
    left = now()
    pages.kill()
    served = _served_again(server.url(), DEFAULTS.open_timeout)
    nothing_of(("closed", "reconnecting"), clients, since=0.0)
    return kept(
        clients.finish(),
        ends=(server, clients),
        recovered=served - left,
        recovery_bound=DEFAULTS.open_timeout,
        note=f"{room + SURPLUS} came, room for {room}; 10 clients",
    )


STORM = 5000


def _twistd(lab: Lab, *options: object) -> Server:
    """The server as it is: to tell of thousands of connections would take it longer than they do."""
    command = [BIN / "twistd", "-n", "--pidfile=", "heartbeat", "--messages", "chat", "--interval", DEFAULTS.interval]
    server = lab.enter_context(Server([*command, *options], cwd=lab.folder))
    server.url(START)
    return server


def _convicted(*servers: Server) -> int:
    """How often it says so in its log."""
    said = [event.detail["text"] for server in servers for event in server.events("line")]
    return sum("heartbeat timeout" in line for line in said)


def _percentile(clients: Clients, since: float) -> float:
    rtts = sorted(event.detail["rtt"] for event in clients.events("pong", since=since) if event.detail["rtt"])
    return rtts[len(rtts) * 99 // 100]


def _storm_bound(seconds: float, excused: float) -> float:
    """No attempt of an ordinary client may take so long that it fails, unless there was no processor to be had."""
    bound = back_within(DEFAULTS)
    return bound + excused if seconds > bound else bound


@fault(
    "5,000 connections dropped at once, and back at once",
    expected="all are back; nobody who lives is convicted",
    alone=True,
)
def storm(lab: Lab) -> Seen:
    """The server lives on, and so do 20 clients that chat beside them."""
    server = _twistd(lab, "--listen", LOOPBACK)
    clients = lab.clients(server.url(), 20)
    ready(clients)
    pages = crowd(lab, server.url(), STORM)
    pages.first("all-open", timeout=START)
    is_there(clients, now())
    quiet = now()
    clients.until(quiet + 5.0)
    before = _percentile(clients, quiet)
    dropped, starved = now(), Starved(server, pages)
    pages.signal(signal.SIGUSR1)
    back = pages.first("all-open", since=dropped, timeout=START)
    excused = starved.seconds
    is_there(clients, now())
    during = _percentile(clients, dropped)
    nothing_of(("closed", "reconnecting"), clients, since=0.0)
    return kept(
        clients.finish(),
        ends=[clients],
        cuts=_convicted(server) + pages.events("progress")[-1].detail["cuts"] - STORM,
        recovered=back.at - dropped,
        recovery_bound=_storm_bound(back.at - dropped, excused),
        note=f"p99 of the others' beats {before * 1000:.0f} ms before, {during * 1000:.0f} ms meanwhile; 20 clients",
    )


@fault(
    "server killed (kill -9), 5,000 connections back at once",
    expected="all are back; 20 clients among them resume, nothing is lost or doubled",
    alone=True,
)
def killed_storm(lab: Lab) -> Seen:
    """Counted from when the server listens again."""
    options = "--listen", f"tcp:{free_port()}:interface=127.0.0.1", "--store", f"sqlite:{lab.folder / 'sessions.db'}"
    server = _twistd(lab, *options)
    clients = lab.clients(server.url(), 20, settings=_tireless())
    ready(clients)
    pages = crowd(lab, server.url(), STORM)
    pages.first("all-open", timeout=START)
    is_there(clients, now())
    gone = now()
    server.kill()
    again = _twistd(lab, *options)
    listening, starved = now(), Starved(again, pages)
    back = pages.first("all-open", since=gone, timeout=START)
    excused = starved.seconds
    resumed = clients.back(gone, START)
    return kept(
        clients.finish(),
        ends=[clients],
        cuts=_convicted(server, again) + pages.events("progress")[-1].detail["cuts"] - STORM,
        recovered=max(back.at, resumed) - listening,
        recovery_bound=_storm_bound(back.at - listening, excused),
        note=f"the crowd after {back.at - listening:.1f} s, the clients after {resumed - listening:.1f} s; 20 clients",
    )
