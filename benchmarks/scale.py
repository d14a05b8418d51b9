"""What a million clients cost, and what breaks first: arithmetic over what was measured, for docs/scale.md.

    python benchmarks/scale.py              prints the tables
    python benchmarks/scale.py --write      and puts them into docs/scale.md
    python benchmarks/scale.py --measure    measures, before that, what no other benchmark does (Linux, Redis, a minute)

Every number comes from a table that a benchmark has written, or from the code itself: frames are those of our server,
calls of a store are counted. What is only assumed is a constant below, and named in the document.
"""

from __future__ import annotations

import argparse
import re
import resource
import select
import shutil
import socket
import ssl
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from metrics import REQUEST, Nowhere
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionLost
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from heartbeat import HeartbeatServerFactory, Settings
from heartbeat.certificate import ServerCertificate
from heartbeat.core.messages import decode_object, ping_frame
from heartbeat.limits import _RESERVED
from heartbeat.register import SESSION as SESSION_BYTES
from heartbeat.store import Head, MemoryStore

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "scale.md"

CLIENTS = 1_000_000
INTERVALS = (6.0, 25.0)
# So many beats make an hour at 6 s.
BEATS = 600
BEGIN, BREAK, END = "a session begins", "a break, and the resume", "a client goes for good"
DATA_CENTRES = 3

# Assumed: how full a core, a port range and a link may be; how often a connection breaks; what a node has.
FULL = 0.7
BREAKS_AN_HOUR = 2
NODE_GIB = 8
NODES = 8

# Of Linux: net.ipv4.ip_local_port_range, fs.nr_open and net.netfilter.nf_conntrack_max as it comes with 8 GiB and more.
PORTS = 60_999 - 32_768 + 1
NR_OPEN = 1_048_576
CONNTRACK = 262_144

# Bytes of headers: IPv4 (IPv6 has 20 more), TCP with timestamps, Ethernet with preamble, checksum and gap; of TLS 1.3 a
# record's head, its hidden type and its tag (RFC 8446, section 5.2).
IP, TCP, ETHERNET, TLS = 20, 32, 38, 5 + 1 + 16

OWN = "txheartbeat, own reactor"
SESSION = OWN + ", with a session"
MEMORY_ROW = "txheartbeat, with a session"
IDLE = "10,000 connections that beat every 6 s"
ANSWERS = "Answers a second"
MEMORY = "Memory of an idle connection"
STORM = "Opening handshakes a second"
MEASURED = "Measured for this document"

# Its rows.
OPENING = "an `onopen` and the first ping, by an opening handshake"
TLS_HANDSHAKE = "a TLS handshake, by an opening handshake"
SOCKET = "a socket that is polled, in the kernel, KiB"
TLS_MEMORY = "a connection in TLS, in the process, KiB"
PACKETS_IN = "packets that a beat brings the server"
PACKETS_OUT = "packets that it sends for a beat"
REDIS = "a write to Redis, us of its core"


def tables(text: str) -> dict[str, list[dict[str, str]]]:
    """The tables of a document, by the headings that they stand under: each row by the names of its columns."""
    found: dict[str, list[dict[str, str]]] = {}
    heading, names = "", []
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.strip("# ")
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells and not names:
            names = cells
        elif cells and not set(line) <= set("|:- "):
            found.setdefault(heading, []).append(dict(zip(names, cells, strict=True)))
        elif not cells:
            names = []
    return found


def number(cell: str) -> float:
    """The first number of a cell; what is in brackets behind it is the spread."""
    first = re.search(r"\d[\d,]*(\.\d+)?", cell)
    if first is None:
        raise SystemExit(f"{cell!r} is no number")
    return float(first[0].replace(",", ""))


@cache
def figure(path: Path, heading: str, row: str, column: str) -> float:
    """One measured figure."""
    for cells in tables(path.read_text())[heading]:
        if next(iter(cells.values())) == row:
            return number(cells[column])
    raise SystemExit(f"{path.name} has no {row!r} under {heading!r}")


@dataclass(frozen=True)
class Unit:
    """What one thing costs: a figure, its unit in words, and where it was measured."""

    what: str
    value: float
    unit: str
    source: str


@cache
def units() -> dict[str, Unit]:
    """The unit costs, by short names."""
    results = partial(figure, HERE / "results.md")
    measured = partial(figure, DOCUMENT, MEASURED, column="value")
    where = "[results](../benchmarks/results.md), {}".format
    here = "below"
    handshake = results(STORM, OWN, "us a handshake")
    answer = results(ANSWERS, OWN, "us an answer")
    tls = results(ANSWERS, OWN + ", TLS", "us an answer")
    inside = results(MEMORY, OWN, "KiB, before it")
    rows = {
        "lone": (
            "a beat for which the server is woken",
            results(IDLE, OWN, "us a beat"),
            "us",
            where("10,000 connections"),
        ),
        "busy": ("a beat amid others", results(ANSWERS, SESSION, "us an answer"), "us", where("answers a second")),
        "tls": ("TLS, of a beat", tls - answer, "us", where("answers a second, with it less without")),
        "handshake": ("an opening handshake", handshake, "us", where("opening handshakes")),
        "opening": ("`onopen` and first ping", handshake * measured(OPENING), "us", f"{here}, times a handshake"),
        "tls_handshake": ("a TLS handshake", handshake * measured(TLS_HANDSHAKE), "us", f"{here}, times a handshake"),
        "process": ("memory in the process", results(MEMORY, MEMORY_ROW, "KiB, after a beat"), "KiB", where("memory")),
        "kernel": ("memory in the kernel", measured(SOCKET), "KiB", here),
        "tls_memory": (
            "TLS, memory in the process",
            measured(TLS_MEMORY) - inside,
            "KiB",
            f"{here}, less what is inside",
        ),
        "packets_in": ("packets of a beat, to the server", measured(PACKETS_IN), "", here),
        "packets_out": ("packets of a beat, from it", measured(PACKETS_OUT), "", here),
        "script": ("a write to Redis", measured(REDIS), "us", f"{here}, of Redis' core"),
    }
    return {name: Unit(*row) for name, row in rows.items()}


def frame(payload: bytes) -> bytes:
    """A text frame of a client's, masked with zeros, which leave the payload as it is."""
    size = len(payload)
    return b"\x81" + (bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2)) + bytes(4) + payload


class Written(Nowhere):
    """A transport that remembers what was last written."""

    last = b""

    def write(self, data: bytes) -> None:
        """ITransport: keep it."""
        self.last = data


class Piled(Nowhere):
    """A transport that keeps what is written until it is taken."""

    kept = b""

    def write(self, data: bytes) -> None:
        """ITransport: keep it."""
        self.kept += data

    def take(self) -> bytes:
        """What was written since."""
        kept, self.kept = self.kept, b""
        return kept


class Counting:
    """A store in memory that counts what it is asked to write."""

    def __init__(self) -> None:
        self._store = MemoryStore()
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in ("open", "append", "handle", "confirm", "detach", "take_over", "expire"):
            return method

        def counted(*arguments: Any) -> Any:
            self.calls[name] += 1
            return method(*arguments)

        return counted


class Life:
    """A server in memory, and one client of it who beats, is cut off and comes back."""

    def __init__(self) -> None:
        self.clock: Any = Clock()
        self.store = Counting()
        self.factory = HeartbeatServerFactory(reactor=self.clock, store=self.store)
        self.factory.room = None
        self.transport: Any = None

    def open(self, session: str = "") -> dict[str, Any]:
        """Connect, open a session or resume one; returns the answer."""
        self.transport = Written(self.clock, 1024)
        self.protocol: Any = self.factory.buildProtocol(self.transport.getPeer())
        self.protocol.makeConnection(self.transport)
        self.protocol.dataReceived(REQUEST)
        self.protocol.dataReceived(frame(b'{"type":"onopen","v":1' + session.encode() + b"}"))
        answer = self.transport.last
        return decode_object(answer[answer.index(b"{") :])

    def beat(self, ping_id: int) -> tuple[int, int]:
        """One ping of a session, late in a day: the bytes of its frame and of the answer's."""
        ping = frame(ping_frame(ping_id, 0))
        self.protocol.dataReceived(ping)
        return len(ping), len(self.transport.last)

    def cut(self) -> None:
        """Lose the connection."""
        self.protocol.connectionLost(Failure(ConnectionLost()))


def frames(interval: float) -> tuple[int, int]:
    """The bytes of a ping's frame and of its answer's, a day after the opening and with a million clients."""
    life = Life()
    life.open()
    ping, pong = life.beat(int(86_400 / interval))
    life.cut()
    return ping, pong + len(str(CLIENTS)) - 1


@cache
def writes() -> dict[str, int]:
    """Writes to a store: of an hour of beats, of a session that begins, of a break with its resume, of an end."""
    life = Life()
    told = {}

    def since(name: str) -> None:
        told[name] = life.store.calls.total()
        life.store.calls.clear()

    answer = life.open()
    since(BEGIN)
    for beat in range(BEATS):
        life.beat(beat + 2)
    since(f"{BEATS} beats")
    life.cut()
    resume = '"sid":"{sid}","epoch":"{epoch}","last":0,"sent":0,"try":1'.format_map(answer)
    if not life.open(',"session":{' + resume + "}")["resumed"]:
        raise SystemExit("the session was not resumed")
    life.beat(BEATS + 2)
    since(BREAK)
    life.cut()
    # In steps of a tick: what is later counts as a stall of our own, in which nobody's time runs.
    life.clock.pump([Settings().tick] * round(1.2 * Settings().window / Settings().tick))
    since(END)
    return told


def packet(payload: int, *, tls: bool) -> int:
    """The bytes of an IP packet with these bytes of a WebSocket's."""
    return IP + TCP + payload + (TLS if tls else 0)


def traffic(interval: float, *, tls: bool) -> tuple[int, int, int]:
    """A beat: the bytes of its IP packets to the server and from it, and how many packets these are."""
    unit, (ping, pong) = units(), frames(interval)
    to, fro = round(unit["packets_in"].value), round(unit["packets_out"].value)
    # All but one in each direction carry an acknowledgement and nothing else.
    return packet(ping, tls=tls) + (to - 1) * (IP + TCP), packet(pong, tls=tls) + (fro - 1) * (IP + TCP), to + fro


def megabits(bytes_a_second: float) -> float:
    """On the link, in millions of bits a second."""
    return bytes_a_second * 8 / 1e6


def columns(interval: float) -> dict[str, str]:
    """What a million clients cost at this interval, by what it is."""
    unit = units()
    beats = CLIENTS / interval
    cores = {name: beats * unit[name].value / 1e6 for name in ("lone", "busy", "tls")}
    told = {
        "beats a second": f"{beats:,.0f}",
        "cores, if each beat wakes the server": f"{cores['lone']:.1f}",
        "cores, if it has others to answer already": f"{cores['busy']:.1f}",
        "cores more, where the nodes speak TLS": f"{cores['tls']:.1f}",
    }
    for name, tls in (("", False), (" in TLS", True)):
        to, fro, packets = traffic(interval, tls=tls)
        framed = ETHERNET * packets
        told |= {
            f"bytes of a beat and its answer{name}, IP": f"{to + fro}",
            f"Mbit/s on the wire{name}, both ways": f"{megabits((to + fro + framed) * beats):,.0f}",
            f"TB a month{name}, IP": f"{(to + fro) * beats * 86_400 * 30 / 1e12:,.0f}",
        }
    told["packets a second, both ways"] = f"{packets * beats:,.0f}"
    told["clients that fill a core to 70 %"] = f"{capacity(interval):,.0f}"
    told[f"nodes of one core, {DATA_CENTRES} data centres of which one may be lost"] = f"{fleet(interval)}"
    return told


def capacity(interval: float, *, tls: bool = False) -> float:
    """The clients whose beats fill a core as far as it may be."""
    unit = units()
    return FULL * 1e6 * interval / (unit["lone"].value + (unit["tls"].value if tls else 0.0))


def fleet(interval: float) -> int:
    """So many nodes that those left after a loss have the sessions, the files and the processor time for all."""
    left = min(capacity(interval), sessions(), room())
    return DATA_CENTRES * ceil(CLIENTS / (DATA_CENTRES - 1) / left)


def sessions() -> int:
    """The sessions that a node keeps, none of which keeps a message."""
    return Settings().sessions_bytes // SESSION_BYTES


def room() -> int:
    """The connections that our unit for systemd leaves room for."""
    return contrib("systemd/heartbeat.service", "LimitNOFILE=") - _RESERVED


def contrib(name: str, before: str) -> int:
    """A number in one of our examples."""
    found = re.search(rf"{before}\s*(\d+)", (HERE.parent / "contrib" / name).read_text())
    if found is None:
        raise SystemExit(f"{name} has no {before}")
    return int(found[1])


def standing() -> list[list[str]]:
    """What a million clients have, however often they beat."""
    unit = units()
    gib = {name: CLIENTS * unit[name].value / 2**20 for name in ("process", "kernel", "tls_memory")}
    written = writes()
    a_second = CLIENTS * BREAKS_AN_HOUR / 3600 * written[BREAK]
    script = unit["script"].value / 1e6
    begun = CLIENTS / DATA_CENTRES / (INTERVALS[0] + Settings().delays[0]) * written[BEGIN]
    return [
        ["memory of the servers' processes", f"{gib['process']:.1f} GiB"],
        ["of their kernels, besides", f"{gib['kernel']:.1f} GiB"],
        ["of their processes, where these speak TLS, besides", f"{gib['tls_memory']:.1f} GiB"],
        ["file descriptors of the servers", f"{CLIENTS:,}"],
        ["file descriptors of proxies in front", f"{2 * CLIENTS:,}"],
        ["pairs of a proxy's address and a listener, for its ports", f"{ceil(CLIENTS / (FULL * PORTS))}"],
        [f"writes to Redis for {BEATS} beats of a client", f"{written[f'{BEATS} beats']}"],
        [
            "for a session that begins, one that is resumed, one that ends",
            ", ".join(str(written[name]) for name in (BEGIN, BREAK, END)),
        ],
        [f"writes a second, if a connection breaks {BREAKS_AN_HOUR} times an hour", f"{a_second:,.0f}"],
        ["of Redis' core", f"{a_second * script:.1%}"],
        ["writes for a client and minute", f"{a_second / CLIENTS * 60:.3f}"],
        ["sessions that begin a second, or go on, after the loss of a data centre, at 6 s", f"{begun:,.0f}"],
        ["of Redis' core, if all nodes have one", f"{begun * script:.0%}"],
        [
            f"if each of the {(DATA_CENTRES - 1) * NODES} that are left has one",
            f"{begun * script / (DATA_CENTRES - 1) / NODES:.1%}",
        ],
    ]


def node() -> list[list[str]]:
    """What one of the nodes has of all that, before a data centre is lost and after it, at 6 s."""
    unit, interval = units(), INTERVALS[0]
    to, fro, packets = traffic(interval, tls=False)
    memory = unit["process"].value + unit["kernel"].value
    rows: dict[str, list[str]] = {}
    for centres in (DATA_CENTRES, DATA_CENTRES - 1):
        clients = CLIENTS / centres / NODES
        beats = clients / interval
        told = {
            "clients": f"{clients:,.0f}",
            "beats a second": f"{beats:,.0f}",
            "of its core, if each beat wakes it": f"{beats * unit['lone'].value / 1e6:.0%}",
            "of its core, if it has others to answer already": f"{beats * unit['busy'].value / 1e6:.0%}",
            "clients that it lets in a second besides": f"{openings(connections=clients):,.0f}",
            "the same, where it speaks TLS": f"{openings(tls=True, connections=clients):,.0f}",
            "memory, its kernel's too": f"{clients * memory / 1024:,.0f} MiB",
            "more, where it speaks TLS": f"{clients * unit['tls_memory'].value / 1024:,.0f} MiB",
            "Mbit/s, both ways": f"{megabits((to + fro + ETHERNET * packets) * beats):,.0f}",
            "of its open files (our unit)": f"{clients / room():.0%}",
            "of its sessions (`sessions_bytes`)": f"{clients / sessions():.0%}",
            "pairs of a proxy's address and a listener": f"{ceil(clients / (FULL * PORTS))}",
        }
        for what, value in told.items():
            rows.setdefault(what, [what]).append(value)
    return list(rows.values())


def openings(*, tls: bool = False, connections: float = 0.0, interval: float = INTERVALS[0]) -> float:
    """The clients that one core lets in a second, each with his opening, while so many others beat."""
    unit = units()
    cost = unit["handshake"].value + unit["opening"].value + (unit["tls_handshake"].value if tls else 0.0)
    return (1e6 - connections / interval * unit["busy"].value) / cost


def breaking() -> list[list[str]]:
    """What one node, or one proxy, has too little of, and at how many clients; the first to break first."""
    unit = units()
    memory = unit["process"].value + unit["kernel"].value
    beside = FULL * NODE_GIB * 2**20
    held = CLIENTS / (DATA_CENTRES - 1) / NODES
    at_once = Settings().handshake_timeout
    found = [
        (
            at_once * openings(tls=True, connections=held),
            "who come in one moment, over TLS at the node",
            "TLS in a proxy, or more nodes",
        ),
        (at_once * openings(connections=held), "who come in one moment", "more nodes; that they do not, by a drain"),
        (
            contrib("nginx.conf", "worker_connections") // 2,
            "`worker_connections` of our nginx.conf, a worker",
            "raise it, and `worker_rlimit_nofile`",
        ),
        (
            PORTS,
            "a proxy's ports: one address, one listener",
            "more addresses (`proxy_bind`, `source`), or more `--listen`",
        ),
        (
            contrib("haproxy.cfg", "maxconn"),
            "`maxconn` of our haproxy.cfg",
            "raise it, and `ulimit -n` to more than two a client",
        ),
        (room(), "`LimitNOFILE` of our unit", "raise it"),
        (
            sessions(),
            "`sessions_bytes`: idle sessions",
            "raise it (`--sessions-bytes`)",
        ),
        *(
            (
                capacity(interval, tls=tls),
                f"a core, beats every {interval:g} s{', TLS at the node' if tls else ''}",
                "more nodes, or a longer interval",
            )
            for interval in INTERVALS
            for tls in (False, True)
        ),
        (
            beside / (memory + unit["tls_memory"].value),
            f"{NODE_GIB} GiB, TLS at the node",
            "more memory, or TLS in a proxy",
        ),
        (beside / memory, f"{NODE_GIB} GiB", "more memory"),
        (
            CONNTRACK,
            "a firewall that follows connections (`nf_conntrack_max`)",
            "raise it, or have it not follow these",
        ),
        (NR_OPEN, "`fs.nr_open`, a process", "raise it"),
        (
            3600e6 * FULL / (BREAKS_AN_HOUR * writes()[BREAK] * unit["script"].value),
            "one Redis for all sessions: breaks and resumes at rest",
            "one a node",
        ),
        (
            (INTERVALS[0] + Settings().delays[0]) * DATA_CENTRES * 1e6 / unit["script"].value,
            "one Redis for all sessions: a data centre is lost, at 6 s",
            "one a node",
        ),
    ]
    return [[f"{clients:,.0f}", what, then] for clients, what, then in sorted(found)]


def table(names: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Rows as Markdown has them; all but the first columns are numbers."""
    marks = ["---"] * left + ["---:"] * (len(names) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (names, marks, *rows))


def chapters() -> dict[str, str]:
    """The tables, by their names in the document."""
    short, long = (columns(interval) for interval in INTERVALS)
    costs = [[unit.what, f"{unit.value:.3g} {unit.unit}".strip(), unit.source] for unit in units().values()]
    breaks = table(["clients", "what", "then"], breaking(), left=3)
    return {
        "units": table(["of one connection", "cost", "source"], costs, left=3),
        "beats": table(
            ["a million clients", "every 6 s", "every 25 s"], [[what, short[what], long[what]] for what in short]
        ),
        "standing": table(["a million clients", ""], standing()),
        "node": table([f"a node, of {DATA_CENTRES} x {NODES}", "before", "after a loss"], node()),
        "breaking": breaks,
    }


def put(text: str, name: str, table: str) -> str:
    """A document with this table in the place of the one between the marks of its name."""
    found = re.subn(
        f"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
        lambda marks: f"{marks[1]}{table}\n{marks[2]}",
        text,
        flags=re.DOTALL,
    )
    if found[1] != 1:
        raise SystemExit(f"docs/scale.md has no place for {name}")
    return found[0]


# What no other benchmark measures. Of times only ratios are kept, of processor time: the machine may have other work.


def socket_kib() -> float:
    """The kernel's memory of one connected socket that a poll watches; the largest of three, for free slabs hide it."""
    found, many = [], 3000
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener, select.epoll() as poll:
        for _ in range(3):
            before, sockets = _slab_kib(), []
            for _ in range(many):
                near = socket.create_connection(listener.getsockname())
                far, _ = listener.accept()
                sockets += [near, far]
                poll.register(near.fileno())
                poll.register(far.fileno())
            found.append((_slab_kib() - before) / len(sockets))
            for one in sockets:
                # Cut off, so that no port is left waiting.
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.close()
    return max(found)


def _slab_kib() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Slab:"))


def _resident_kib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1024


def packets_a_beat(beats: int = 20) -> tuple[float, float]:
    """Packets that the server's end of a connection receives and sends for a beat, by the kernel's count (TCP_INFO)."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as near:
        far, _ = listener.accept()
        with far:
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            before = (0, 0)
            # The first beats are confirmed at once, as TCP does with a connection that is new.
            for beat in range(3 * beats):
                if beat == 2 * beats:
                    before = _segments(far)
                near.send(b"ping")
                far.recv(64)
                far.send(b"pong")
                near.recv(64)
                time.sleep(0.1)
            sent, received = (after - then for after, then in zip(_segments(far), before, strict=True))
    return received / beats, sent / beats


def _segments(one: socket.socket) -> tuple[int, int]:
    # tcpi_segs_out and tcpi_segs_in (linux/tcp.h).
    return struct.unpack_from("II", one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 136)


def opening_in_handshakes(many: int = 4000) -> float:
    """The processor time of an opening and a first ping, by that of a handshake, all in memory."""
    factory = HeartbeatServerFactory(reactor=Clock())
    factory.room = None
    opening, ping = frame(b'{"type":"onopen","v":1,"session":null}'), frame(b'{"type":"ping","id":1}')
    handshakes = openings = 0.0
    kept = []
    for port in range(many):
        transport = Written(factory.reactor, port)
        began = time.process_time()
        protocol: Any = factory.buildProtocol(transport.getPeer())
        protocol.makeConnection(transport)
        protocol.dataReceived(REQUEST)
        between = time.process_time()
        protocol.dataReceived(opening)
        protocol.dataReceived(ping)
        openings += time.process_time() - between
        handshakes += between - began
        kept.append(protocol)
    return openings / handshakes


def tls(many: int = 1500) -> tuple[float, float]:
    """Of TLS in memory: a handshake's processor time by that of a WebSocket's; KiB of a connection that is open."""
    import trustme

    authority = trustme.CA()
    with TemporaryDirectory() as folder:
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(f"{folder}/both.pem")
        certificate = ServerCertificate(f"{folder}/both.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    factory = HeartbeatServerFactory(reactor=Clock())
    factory.room = None
    plain = HeartbeatServerFactory(reactor=factory.reactor)
    plain.room = None
    secured = TLSMemoryBIOFactory(certificate, False, factory)
    kept: list[Any] = []
    seconds, upgrades, kib = 0.0, 0.0, 0.0
    for number in range(many):
        if number == many // 3:
            kib = _resident_kib()
        spent, protocol = _secure(secured, trusting, number)
        seconds += spent
        kept.append(protocol)
    kib = (_resident_kib() - kib) / (many - many // 3)
    for number in range(many):
        began = time.process_time()
        protocol = plain.buildProtocol(IPv4Address("TCP", "127.0.0.1", number))
        protocol.makeConnection(Written(factory.reactor, number))
        protocol.dataReceived(REQUEST)
        upgrades += time.process_time() - began
        kept.append(protocol)
    # What is inside of TLS is a connection like any other, and counted elsewhere.
    return seconds / upgrades, kib


def _secure(secured: Any, trusting: ssl.SSLContext, port: int) -> tuple[float, Any]:
    """One TLS handshake, and a WebSocket's inside: the seconds of the first at the server, and the server's end."""
    transport = Piled(Clock(), port)
    began = time.process_time()
    protocol = secured.buildProtocol(transport.getPeer())
    protocol.makeConnection(transport)
    spent = time.process_time() - began
    inwards, outwards = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(inwards, outwards, server_hostname="localhost")
    while True:
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            done = False
        else:
            done = True
        sent = outwards.read()
        began = time.process_time()
        protocol.dataReceived(sent)
        spent += time.process_time() - began
        if done:
            break
        inwards.write(transport.take())
    client.write(REQUEST)
    protocol.dataReceived(outwards.read())
    return spent, protocol


def redis_us(sessions: int = 3000) -> float:
    """Microseconds of Redis' processor time for a write of ours: sessions that begin, break and are resumed."""
    from heartbeat.cluster.store import RedisStore

    reactor: Any = SelectReactor()
    with TemporaryDirectory() as folder:
        path = f"{folder}/redis"
        server = subprocess.Popen(
            [_program("redis-server"), "--port", "0", "--unixsocket", path, "--dir", folder, "--appendonly", "yes"],
            stdout=subprocess.DEVNULL,
        )
        try:
            until = time.monotonic() + 20
            while not _answers(path):
                if time.monotonic() > until:
                    raise SystemExit("redis-server does not start")
                time.sleep(0.05)
            store = RedisStore(f"redis+unix://{path}", reactor=reactor)
            epoch = _result(reactor, store.start()).epoch
            before = _processor_ns(server.pid)
            for number in range(sessions):
                store.open(Head(f"s-{number}", epoch, f"c-{number}", 120.0))
            for number in range(sessions):
                store.detach(f"s-{number}", 0, 1.0)
            last = None
            for number in range(sessions):
                last = store.take_over(f"s-{number}", 1)
            if _result(reactor, last).fence != 1:
                raise SystemExit("the session was not taken over")
            spent = _processor_ns(server.pid) - before
            _result(reactor, store.stop())
        finally:
            server.kill()
            server.wait()
    return spent / (3 * sessions) / 1000


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SystemExit(f"{name} is not installed")
    return path


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as asked:
        return asked.connect_ex(path) == 0


def _result(reactor: Any, deferred: Any) -> Any:
    """What a Deferred fires with, for which the reactor is turned."""
    found: list[Any] = []
    deferred.addBoth(found.append)
    until = time.monotonic() + 60
    while not found:
        if time.monotonic() > until:
            raise SystemExit("Redis does not answer")
        reactor.iterate(0.05)
    if isinstance(found[0], Failure):
        found[0].raiseException()
    return found[0]


def _processor_ns(pid: int) -> int:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def measure() -> str:
    """All of these, as the table of the document."""
    secure, kib = tls()
    to, fro = packets_a_beat()
    values = {
        OPENING: opening_in_handshakes(),
        TLS_HANDSHAKE: secure,
        SOCKET: socket_kib(),
        TLS_MEMORY: kib,
        PACKETS_IN: to,
        PACKETS_OUT: fro,
        REDIS: redis_us(),
    }
    return table(["what", "value"], [[what, f"{value:.3g}"] for what, value in values.items()])


def main() -> None:
    """Print the tables, and put them into the document where that is asked for."""
    parser = argparse.ArgumentParser(description="What a million clients cost.")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    parser.add_argument(
        "--measure", action="store_true", help="measure what no other benchmark does, and put that there too"
    )
    options = parser.parse_args()
    if options.measure:
        DOCUMENT.write_text(put(DOCUMENT.read_text(), "measured", measure()))
    text = DOCUMENT.read_text()
    for name, rows in chapters().items():
        print(f"{name}\n\n{rows}\n")
        if options.write or options.measure:
            text = put(text, name, rows)
    if options.write or options.measure:
        DOCUMENT.write_text(text)


if __name__ == "__main__":
    main()
