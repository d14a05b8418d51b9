"""What a stranger can do to a server, over real sockets: each limit holds, is counted, and is told by its name.

`twistd` where a program is meant; a server on this process's reactor where its counters are read, with the strangers in
threads. Addresses are those of 127.0.0.0/8: this machine's own, so that what is not set does not hold for them.
"""

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
import pytest_twisted
from certificates import Certificates
from processes import BIN, Program, twistd
from test_load import until
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from heartbeat import Settings
from heartbeat.service import HeartbeatService
from heartbeat.store import new_sid

# Real sockets, real seconds, and most of them with a crowd.
pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
# In seconds: how long anything may take here that happens at once.
AT_ONCE = 10.0


def frame(payload, opcode=TEXT, *, fin=True, rsv1=False):
    """A frame as a client sends it, under a mask of nought."""
    size = len(payload)
    head = bytes([(0x80 if fin else 0) | (0x40 if rsv1 else 0) | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    else:
        head += bytes([0xFE]) + struct.pack("!H", size) if size < 65_536 else bytes([0xFF]) + struct.pack("!Q", size)
    return head + bytes(4) + payload


class Stranger:
    """A socket, and what was heard by it. Blocking, bounded by a timeout: for a thread, or a test without a reactor."""

    def __init__(self, where, *, source="127.0.0.1", tls=None, preface=b"", buffer=None):
        """`where`: a port of loopback, or the path of a UNIX socket. `preface` is said before anything else."""
        self.host = f"127.0.0.1:{where}" if isinstance(where, int) else "localhost"
        self.socket = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
        self.socket.settimeout(AT_ONCE)
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        if isinstance(where, int):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.bind((source, 0))
        self.socket.connect(where if isinstance(where, str) else ("127.0.0.1", where))
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="127.0.0.1")
        self.received = b""
        if preface:
            self.write(preface)

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.socket.close()

    def write(self, data):
        self.socket.sendall(data)

    def say(self, *messages):
        """Send texts, all in one segment."""
        self.write(b"".join(frame(m if isinstance(m, bytes) else json.dumps(m).encode()) for m in messages))

    def request(self, path="/ws", **headers):
        """Ask for a WebSocket; the status of the answer."""
        lines = {"Host": self.host, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": KEY}
        lines |= {"Sec-WebSocket-Version": "13"} | {n.replace("_", "-").title(): v for n, v in headers.items()}
        head = "\r\n".join([f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items())])
        self.write(head.encode("latin-1") + b"\r\n\r\n")
        return self.status()

    def status(self):
        """The HTTP status that was answered; None where the connection ended without."""
        self.hear(lambda: b"\r\n\r\n" in self.received)
        self.head, _, self.received = self.received.partition(b"\r\n\r\n")
        return int(self.head.split()[1]) if self.head else None

    def open(self, **headers):
        assert self.request(**headers) == 101, self.head + self.received
        return self

    def hear(self, enough=lambda: False):
        """Read until it is enough, or the connection has ended; fails when neither comes in time."""
        with contextlib.suppress(ConnectionError, BrokenPipeError, ssl.SSLError):
            while not enough():
                data = self.socket.recv(65_536)
                if not data:
                    break
                self.received += data

    def is_closed(self):
        """Whether the other end closes it."""
        self.hear()
        return True

    @property
    def retry_after(self):
        """Seconds."""
        return int(re.search(rb"Retry-After: (\d+)", self.head)[1])

    @property
    def frames(self):
        """All frames so far that are complete, each an opcode and a payload."""
        data, frames, at = self.received, [], 0
        while len(data) - at >= 2:
            length, begin = data[at + 1], at + 2
            if length > 125:
                begin += 2 if length == 126 else 8
                length = int.from_bytes(data[at + 2 : begin])
            if len(data) < begin + length:
                break
            frames.append((data[at] & 15, data[begin : begin + length]))
            at = begin + length
        return frames

    @property
    def messages(self):
        return [json.loads(payload) for opcode, payload in self.frames if opcode == TEXT]

    def answered(self, count=1):
        """The messages, once there are so many."""
        self.hear(lambda: len(self.messages) >= count)
        return self.messages

    def verdict(self):
        """The code and the reason with which it is closed; None where it ends without."""
        closes = lambda: [payload for opcode, payload in self.frames if opcode == CLOSE]  # noqa: E731  # looked at twice
        self.hear(lambda: bool(closes()))
        return (struct.unpack("!H", closes()[0][:2])[0], closes()[0][2:].decode()) if closes() else None

    def beats(self):
        """That it is answered as ever."""
        name = f"beat {len(self.received)}"
        self.say({"type": "ping", "name": name})
        self.hear(lambda: f'"{name}","status":"pong"'.encode() in self.received)
        return f'"{name}","status":"pong"'.encode() in self.received


class Served:
    """A server on this process's reactor."""

    def __init__(self, service):
        self.factory = service.factory
        self.refused = service.factory.refused
        host = service.ports[0].getHost()
        self.where = host.port if hasattr(host, "port") else host.name
        self.where = self.where.decode() if isinstance(self.where, bytes) else self.where


@contextlib.asynccontextmanager
async def serving(listen="tcp:0:interface=127.0.0.1", *, messages=(), **settings):
    """One, for as long as it is needed."""
    service = HeartbeatService(listen, Settings(**settings), messages=messages, reactor=reactor)
    service.startService()
    try:
        yield Served(service)
    finally:
        await service.stopService()


def at_once(*calls):
    """Each in a thread of its own; their results."""
    reactor.suggestThreadPoolSize(max(20, len(calls)))
    return gatherResults([deferToThread(call) for call in calls], consumeErrors=True)


def port_of(program):
    return int(program.url().split(":")[2].split("/")[0])


def resident(pid, word="VmRSS"):
    """MiB of memory that a process has, or (`VmHWM`) has had at most."""
    return int(re.search(rf"{word}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


@pytest.fixture(params=[True, False], ids=["fast", "plain"])
def fast_path(request):
    """Either way through the server."""
    return request.param


# Connections and handshakes.


@pytest_twisted.ensureDeferred
async def test_handshakes_beyond_the_rate_get_503_and_are_served_when_they_come_back():
    """Sixty at once, twenty a second: told different moments, they come at these, and all are in after four seconds."""
    told = []

    def come(where):
        since = time.monotonic()
        for _ in range(4):
            with Stranger(where) as one:
                if one.request() == 101:
                    return time.monotonic() - since, one.beats()
                assert b"503 Service Unavailable" in one.head
                after = one.retry_after
                told.append((after, one.is_closed(), one.received))
            # As a client does that was told to.
            time.sleep(after)
        return None

    async with serving(handshake_rate=20.0) as server:
        came = await at_once(*[lambda: come(server.where)] * 60)
        assert None not in came
        assert all(beats for _, beats in came)
        assert max(seconds for seconds, _ in came) < 5
        assert server.refused["handshake_rate"] == len(told) >= 20
        assert {after for after, _, _ in told} >= {1, 2}
        assert all(b"too many handshakes (setting handshake_rate)" in body for _, _, body in told)


@pytest_twisted.ensureDeferred
async def test_this_machines_handshakes_are_not_counted_unless_the_rate_is_given():
    async with serving() as server:
        assert server.factory.heartbeat_settings.handshake_rate is None

        def many(source):
            for _ in range(40):
                with Stranger(server.where, source=source) as one:
                    assert one.request() == 101

        await at_once(*[lambda n=n: many(f"127.0.0.{n}") for n in range(1, 6)])
        assert dict(server.refused) == {}


@pytest_twisted.ensureDeferred
async def test_a_handshake_of_a_byte_a_second_ends_in_time_and_is_counted():
    def slow(where):
        with Stranger(where) as one:
            since = time.monotonic()
            one.socket.settimeout(1.0)
            for byte in b"GET /ws HTTP/1.1":
                try:
                    one.write(bytes([byte]))
                    if not one.socket.recv(1000):
                        break
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
            return time.monotonic() - since

    async with serving(handshake_timeout=2.0) as server:
        took = await at_once(*[lambda: slow(server.where)] * 5)
        assert all(1.9 <= seconds <= 4.0 for seconds in took), took
        assert dict(server.refused) == {"handshake_timeout": 5}
        assert server.factory.countConnections == 0


@pytest_twisted.ensureDeferred
async def test_when_all_room_is_taken_by_silence_a_good_client_is_in_at_once():
    """Room for twenty, and a hundred who ask for nothing: those who waited longest give way to him."""
    async with serving(max_connections=20, handshake_timeout=60.0) as server:
        crowd = await at_once(*[lambda: Stranger(server.where)] * 80)
        # Once the crowd has waited for longer than whoever is only on his way, by the server's own time.
        heartbeat = server.factory.heartbeat
        waiting = heartbeat.arrivals.waiting
        await until(lambda: waiting and heartbeat.ticker.now() - next(iter(waiting.values())) > 1.1, 20)
        seconds, beats = await deferToThread(lambda: come_and_beat(server.where))
        assert beats
        assert seconds < 1.0
        assert server.refused["gave-way"] >= 1
        assert "max_connections" not in server.refused
        for one in crowd:
            one.socket.close()


def come_and_beat(where):
    """How long it takes until he is in, and whether he is answered."""
    since = time.monotonic()
    with Stranger(where) as one:
        one.open()
        return time.monotonic() - since, one.beats()


@pytest_twisted.ensureDeferred
async def test_when_all_room_is_taken_by_those_who_stay_it_is_said_so():
    """Each is a living peer: nobody gives way, and who comes is told when to try again."""
    async with serving(max_connections=5) as server:
        stay = await at_once(*[lambda: Stranger(server.where).open()] * 5)

        def late():
            with Stranger(server.where) as one:
                return one.request(), one.retry_after, one.is_closed(), one.received

        assert await deferToThread(late) == (503, 10, True, b"no room (setting max_connections)\n")
        assert dict(server.refused) == {"max_connections": 1}
        assert all(await at_once(*[one.beats for one in stay]))
        for one in stay:
            one.socket.close()


# By address, in the program.


@contextlib.contextmanager
def program(folder, *options, listen=None):
    """`twistd heartbeat` with these options: the port or the path that it listens on, and the program."""
    with twistd(*(() if listen is None else ("--listen", listen)), *options, cwd=folder) as server:
        if listen is not None and "unix" in listen:
            server.line_with("listening on ", 30)
            yield str(folder / "socket"), server
        else:
            yield port_of(server), server


def statuses(where, count, **how):
    """What so many are answered who come at once, and stay."""
    headers = how.pop("headers", {})
    everybody = [Stranger(where, **how) for _ in range(count)]
    try:
        return [one.request(**headers) for one in everybody]
    finally:
        for one in everybody:
            one.socket.close()


def test_an_address_has_so_many_connections_and_the_refusal_names_the_setting(tmp_path):
    """Two of one address, as many of the next."""
    with program(tmp_path, "--connections-per-address", "2") as (port, _):
        assert sorted(statuses(port, 2, source="127.0.0.9")) == [101, 101]
        held = [Stranger(port, source="127.0.0.7").open() for _ in range(2)]
        with Stranger(port, source="127.0.0.7") as third:
            assert third.request() == 503
            assert (third.retry_after, third.is_closed()) == (10, True)
            assert third.received == b"too many connections of one address (setting connections_per_address)\n"
        assert statuses(port, 1, source="127.0.0.8") == [101]
        for one in held:
            one.socket.close()


def test_nobody_is_counted_by_address_here_unless_the_number_is_given(tmp_path):
    with program(tmp_path) as (port, _):
        assert statuses(port, 300) == [101] * 300


def test_behind_a_trusted_proxy_the_client_is_counted_and_not_the_proxy(tmp_path):
    """What the proxy appended counts, whatever stands before it."""
    with program(tmp_path, "--trust-forwarded", "1", "--connections-per-address", "2") as (port, _):
        of = lambda name, n: {"headers": {"x_forwarded_for": f"203.0.113.{n}, {name}"}}  # noqa: E731  # used in one line
        held = [Stranger(port).open(**of("192.0.2.7", n)["headers"]) for n in range(2)]
        assert statuses(port, 1, **of("192.0.2.7", 9)) == [503]
        assert statuses(port, 2, **of("192.0.2.8", 9)) == [101, 101]
        for one in held:
            one.socket.close()


PROXY = "haproxy:tcp:0:interface=127.0.0.1"


def proxied(client):
    """The first line of the PROXY protocol, version 1."""
    kind, to = ("TCP6", "2001:db8::1") if ":" in client else ("TCP4", "203.0.113.1")
    return f"PROXY {kind} {client} {to} 50000 9000\r\n".encode()


@pytest_twisted.ensureDeferred
async def test_behind_twisteds_haproxy_endpoint_each_client_is_counted_as_himself():
    """And by the default numbers, for he comes from the open network; a network of IPv6 is one client."""

    def come(client):
        one = Stranger(server.where, preface=proxied(client))
        one.told = one.request()
        return one

    async with serving(PROXY, connections_per_address=2) as server:
        clients = ["192.0.2.7"] * 3 + ["192.0.2.8"] * 2 + ["2001:db8:0:1::1", "2001:db8:0:1::2", "2001:db8:0:1::3"]
        clients += ["2001:db8:0:2::1"]
        everybody = [await deferToThread(come, client) for client in clients]
        told = [one.told for one in everybody]
        assert told == [101, 101, 503, 101, 101, 101, 101, 503, 101]
        assert dict(server.refused) == {"connections_per_address": 2}
        for one in everybody:
            one.socket.close()


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest_twisted.ensureDeferred
async def test_behind_it_a_flood_is_a_flood_by_default(fast):
    def flood():
        with Stranger(server.where, preface=proxied("192.0.2.7")) as one:
            one.open().write(frame(b'{"type":"ping"}') * 6000)
            return one.verdict()

    async with serving(PROXY, fast_path=fast) as server:
        verdict = await deferToThread(flood)
        assert verdict == (1008, "too many messages a second (setting message_rate)")
        assert server.refused["message_rate"] == 1


def test_a_unix_socket_is_never_counted_as_one_client(tmp_path):
    """At its other end there is a proxy, and behind that many."""
    listen = f"unix:{tmp_path / 'socket'}"
    with program(tmp_path, "--connections-per-address", "1", listen=listen) as (path, _):
        assert statuses(path, 30) == [101] * 30


def test_a_proxy_that_nobody_trusts_is_never_counted_as_one_client(tmp_path):
    """It passes on what others ask for, as its headers say."""
    with program(tmp_path, "--connections-per-address", "1") as (port, _):
        assert statuses(port, 30, headers={"x_forwarded_for": "192.0.2.7"}) == [101] * 30
        assert sorted(statuses(port, 3)) == [101, 503, 503]


# Messages.

FLOODS = {
    "JSON pings": frame(b'{"type":"ping"}') * 6000,
    "ping frames": frame(b"", PING) * 6000,
    "pong frames": frame(b"", PONG) * 6000,
    "what is no JSON": frame(b"{") * 6000,
    "fragments": frame(b"x", TEXT, fin=False) + frame(b"x", 0, fin=False) * 9000,
}


def answer_to(where, flood, **how):
    """How somebody is closed who sends this, and reads what comes."""
    with Stranger(where, **how) as one:
        one.open()
        reading = threading.Thread(target=one.hear)
        reading.start()
        with contextlib.suppress(OSError):
            one.write(flood)
        reading.join(AT_ONCE)
        return one.verdict()


@pytest.mark.parametrize("kind", FLOODS)
@pytest_twisted.ensureDeferred
async def test_a_flood_is_closed_1008_and_counted_where_the_rate_was_given(kind, fast_path):
    """With the name of the setting, which the flooder can read; beside him somebody beats as ever."""
    async with serving(message_rate=200.0, fast_path=fast_path) as server:
        good = await deferToThread(lambda: Stranger(server.where).open())
        verdict = await deferToThread(answer_to, server.where, FLOODS[kind])
        assert verdict == (1008, "too many messages a second (setting message_rate)")
        assert server.refused["message_rate"] == 1
        assert await deferToThread(good.beats)
        good.socket.close()


@pytest.mark.parametrize("kind", [kind for kind in FLOODS if kind != "fragments"])
@pytest_twisted.ensureDeferred
async def test_this_machines_messages_are_not_counted_unless_the_rate_is_given(kind, fast_path):
    async with serving(fast_path=fast_path) as server:

        def flood():
            with Stranger(server.where) as one:
                one.open().write(FLOODS[kind])
                return one.beats()

        assert await deferToThread(flood)
        assert not server.refused.keys() & {"message_rate", "slowed-down"}


@pytest_twisted.ensureDeferred
async def test_who_is_a_little_too_fast_is_only_read_more_slowly(fast_path):
    """A thousand pings at two hundred a second, sent at once: all are answered, after some three seconds."""
    async with serving(message_rate=200.0, fast_path=fast_path) as server:

        def hasty():
            with Stranger(server.where) as one:
                one.open()
                since = time.monotonic()
                for n in range(1000):
                    one.say({"type": "ping", "n": n})
                one.answered(1000)
                return time.monotonic() - since, [message["n"] for message in one.messages]

        seconds, answers = await deferToThread(hasty)
        assert answers == list(range(1000))
        assert seconds < 8
        assert server.refused["slowed-down"] >= 1
        assert "message_rate" not in server.refused


@pytest.mark.parametrize("path", [(), ("--no-fast-path",)], ids=["fast", "plain"])
def test_a_flood_over_tls_is_a_flood(tmp_path, path):
    """There it is decrypted a chunk at a time, and none of it is read while it is paced."""
    certificates = Certificates.issued_in(tmp_path)
    tls = ssl.create_default_context(cafile=str(certificates.authority))
    with program(tmp_path, "--message-rate", "200", *path, listen=certificates.listen) as (port, _):
        for kind in ("JSON pings", "ping frames"):
            verdict = answer_to(port, FLOODS[kind] * 3, tls=tls)
            assert verdict == (1008, "too many messages a second (setting message_rate)")
        with Stranger(port, tls=tls) as good:
            assert good.open().beats()


def test_the_program_closes_a_flood_where_it_was_told_to(tmp_path):
    with program(tmp_path, "--message-rate", "100") as (port, _):
        verdict = answer_to(port, FLOODS["JSON pings"])
        assert verdict == (1008, "too many messages a second (setting message_rate)")


@pytest_twisted.ensureDeferred
async def test_what_is_said_to_a_group_costs_by_its_members():
    """A hundred of them: fifteen words are worth forty-five messages, more than the forty that may come at once."""
    async with serving(messages=("group",), message_rate=20.0) as server:
        members = await at_once(*[lambda: Stranger(server.where).open()] * 100)
        join = {"type": "ongroupchat", "group": "room", "action": "join"}

        def joined(one):
            one.say(join)
            return one.answered(1)

        await at_once(*[lambda one=one: joined(one) for one in members])
        # What takes a machine a quarter of a second is not too much any more: then once again, when all may be said.
        for again in range(5):
            before, began = server.refused.get("slowed-down", 0), time.monotonic()
            say = {"type": "ongroupchat", "group": "room", "action": "say", "text": f"hi {again}"}
            await deferToThread(members[0].say, *[say] * 15)
            await deferToThread(members[1].hear, lambda text=say["text"]: has(members[1], text, 15))
            if time.monotonic() - began < 0.25:
                break
            await deferLater(reactor, 2.5)
        assert server.refused.get("slowed-down", 0) == before + 1
        for one in members:
            one.socket.close()


def has(one, text, count):
    return sum(message.get("text") == text for message in one.messages) >= count


# Sizes.

BOMB_SERVER = """
import sys
from autobahn.websocket.compress import PerMessageDeflateOffer, PerMessageDeflateOfferAccept
from twisted.internet import reactor
from twisted.logger import globalLogBeginner, textFileLogObserver
from heartbeat import HeartbeatServerFactory, Settings
from heartbeat.service import HeartbeatService

globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)], redirectStandardIO=False)
factory = HeartbeatServerFactory(Settings(), reactor=reactor)

def accept(offers):
    return PerMessageDeflateOfferAccept(offers[0], request_no_context_takeover=True) if offers else None

factory.setProtocolOptions(perMessageCompressionAccept=accept)
HeartbeatService("tcp:0:interface=127.0.0.1", factory=factory, reactor=reactor).startService()
reactor.run()
"""


def test_a_compressed_bomb_is_too_big_and_takes_no_memory():
    """20 MB from 19 KB, where a factory accepts compression: 1009, and the most memory it ever had has not grown."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(deflate.compress(b"x" * 1_000_000) for _ in range(20)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    bomb = bomb.removesuffix(b"\0\0\xff\xff")
    assert len(bomb) < 20_000
    with Program([sys.executable, "-c", BOMB_SERVER]) as server:
        port = port_of(server)
        with Stranger(port) as one:
            one.open(sec_websocket_extensions="permessage-deflate; client_no_context_takeover")
            assert b"permessage-deflate" in one.head
            assert one.beats()
            before = resident(server.pid, "VmHWM")
            one.write(frame(bomb, rsv1=True))
            assert one.verdict()[0] == 1009
        with Stranger(port) as good:
            assert good.open().beats()
        grown = resident(server.pid, "VmHWM") - before
        print(f"the most memory of the server before, and what a bomb added: {before:.1f} MiB, {grown:.1f} MiB")
        assert grown < 4


@pytest.mark.parametrize("listen", ["tcp:0:interface=127.0.0.1", PROXY], ids=["tcp", "haproxy"])
@pytest_twisted.ensureDeferred
async def test_who_asks_and_never_reads_is_closed_4008_and_takes_no_more_than_the_bound(fast_path, listen):
    """The answers wait up to the bound and one chunk's worth; then he is not read from, and then he is gone."""
    limit = 1_048_576
    async with serving(listen, fast_path=fast_path, outgoing_limit=limit, timeout_max=3.0, close_timeout=5.0) as server:
        before = resident(os.getpid())
        most = []

        def deaf():
            preface = proxied("127.0.0.9") if listen == PROXY else b""
            with Stranger(server.where, preface=preface, buffer=4096) as one:
                one.open()
                one.socket.settimeout(0.2)
                ping = frame(b'{"type":"ping","x":"%b"}' % (b"x" * 900)) * 20
                until = time.monotonic() + 20
                while not server.refused.get("outgoing_limit") and time.monotonic() < until:
                    with contextlib.suppress(TimeoutError):
                        one.socket.send(ping)
                    most.append(resident(os.getpid()))
                one.socket.settimeout(AT_ONCE)
                one.hear()
                return one.received

        received = await deferToThread(deaf)
        print(f"memory of both ends before, and at most: {before:.1f} MiB, {max(most):.1f} MiB")
        assert server.refused["outgoing_limit"] == 1
        # Who reads after all finds at the end why.
        assert received.endswith(b"\x88\x12" + struct.pack("!H", 4008) + b"reads too slowly")
        assert max(most) - before < 16


# Sessions and groups.


def enter(where, name, session=None):
    """Somebody in a session."""
    one = Stranger(where).open()
    one.say({"type": "onopen", "v": 1, "client_id": name, "session": session}, {"type": "ping"})
    return one


def session_of(one):
    answer = one.answered(1)[0]
    return {"sid": answer["sid"], "epoch": answer["epoch"], "last": 0, "sent": 0, "try": 1}


def test_of_too_many_sessions_of_one_id_the_longest_left_alone_ends(tmp_path):
    """Three of it at most. With none left alone the next one is told 1013, and by which setting."""
    with program(tmp_path, "--sessions-per-client", "3") as (port, _):
        first, second = enter(port, "alice"), enter(port, "alice")
        left = [session_of(one) for one in (first, second)]
        third = Stranger(port).open()
        for one in (first, second):
            assert one.answered(2)[1]["status"] == "pong"
            one.socket.close()
            # By then it is known that it has gone.
            assert all(third.beats() for _ in range(3))
        third.socket.close()
        stay = [enter(port, "alice") for _ in range(2)]
        assert all(one.answered(2)[0]["status"] == "ok" for one in stay)
        with enter(port, "alice", left[0]) as back:
            answer = back.answered(1)[0]
            assert (answer["resumed"], answer["reason"]) == (False, "full")
            with enter(port, "alice") as again:
                assert again.verdict() == (1013, "one client has 3 sessions at most (setting sessions_per_client)")
            with enter(port, "bob") as other:
                assert other.answered(1)[0]["status"] == "ok"
        for one in stay:
            one.socket.close()


@pytest_twisted.ensureDeferred
async def test_the_refusal_of_a_session_is_counted_by_its_setting():
    async with serving(sessions_per_client=1) as server:

        def two():
            with enter(server.where, "alice") as one:
                one.answered(2)
                with enter(server.where, "alice") as another:
                    return another.verdict()

        assert (await deferToThread(two))[0] == 1013
        assert dict(server.refused) == {"sessions_per_client": 1}


GROUPS = {
    "groups_per_session": (["a", "b", "c"], "a session is in 2 groups at most (setting groups_per_session)"),
    "group_members": (["a"], "a group has 2 members at most (setting group_members)"),
}


@pytest.mark.parametrize("setting", GROUPS)
@pytest.mark.parametrize("level", [0, 1])
@pytest_twisted.ensureDeferred
async def test_too_many_groups_and_too_many_members_are_refused_and_counted_by_their_setting(setting, level):
    """To a page without a session and to one with, in a sentence."""
    names, sentence = GROUPS[setting]

    def join(one, name, seq):
        message = {"type": "ongroupchat", "group": name, "action": "join", "id": f"{name}{seq}"}
        before = len(one.messages)
        one.say(message | ({"seq": seq} if level else {}))
        one.hear(lambda: any(m["type"] in ("error", "ongroupchat") for m in one.messages[before:]))
        return [m for m in one.messages[before:] if m["type"] in ("error", "ongroupchat")][-1]

    def crowd():
        everybody = [enter(server.where, f"m{n}") if level else Stranger(server.where).open() for n in range(3)]
        if level:
            for one in everybody:
                one.answered(2)
        if setting == "groups_per_session":
            answers = [join(everybody[0], name, seq) for seq, name in enumerate(names, 1)]
        else:
            answers = [join(one, names[0], 1) for one in everybody]
        for one in everybody:
            one.socket.close()
        return answers

    async with serving(messages=("group",), **{setting: 2}) as server:
        answers = await deferToThread(crowd)
        assert [answer["type"] for answer in answers] == ["ongroupchat", "ongroupchat", "error"]
        assert (answers[-1]["code"], answers[-1]["detail"]) == ("full", sentence)
        assert server.refused[setting] == 1


@pytest.mark.parametrize(
    ("option", "setting"), [("--groups-per-session", "groups_per_session"), ("--group-members", "group_members")]
)
def test_the_program_refuses_a_group_by_the_name_of_the_setting(tmp_path, option, setting):
    with program(tmp_path, option, "1", "--messages", "group") as (port, _):
        first, second = Stranger(port).open(), Stranger(port).open()
        join = lambda name: {"type": "ongroupchat", "group": name, "action": "join"}  # noqa: E731  # used twice
        first.say(join("a"))
        assert first.answered(1)[0]["members"] == 1
        one, name = (first, "b") if setting == "groups_per_session" else (second, "a")
        one.say(join(name))
        one.hear(lambda: any(message["type"] == "error" for message in one.messages))
        assert f"(setting {setting})" in one.messages[-1]["detail"]
        first.socket.close()
        second.socket.close()


def test_a_sessions_name_has_128_bits_and_is_not_made_twice():
    """As hexadecimal digits, of which every one varies."""
    names = {new_sid() for _ in range(10_000)}
    assert len(names) == 10_000
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in names)
    assert all(len({name[at] for name in names}) == 16 for at in range(32))


@pytest_twisted.ensureDeferred
async def test_who_guesses_a_sessions_name_is_told_nothing_and_who_knows_it_needs_its_identity():
    """A wrong name is `unknown`, however near; the right one under another id is `auth`; and neither harms it."""
    async with serving() as server:

        def guess():
            with enter(server.where, "alice") as alice:
                assert alice.answered(2)[1]["status"] == "pong"
                session = session_of(alice)
                near = session["sid"][:-1] + ("0" if session["sid"][-1] != "0" else "1")
                found = []
                for sid, name in ((near, "alice"), ("0" * 32, "alice"), (session["sid"], "mallory")):
                    with enter(server.where, name, session | {"sid": sid}) as one:
                        answer = one.answered(1)[0]
                        found.append((answer["resumed"], answer["reason"]))
                return found, alice.beats()

        found, beats = await deferToThread(guess)
        assert found == [(False, "unknown"), (False, "unknown"), (False, "auth")]
        assert beats


# Pages of others.

ORIGINS = [
    ("https://good.test", None),
    ("https://evil.test", "pages of https://evil.test are not served here (setting origins)"),
    ("https://good.test.evil.test", "pages of https://good.test.evil.test are not served here (setting origins)"),
    ("http://good.test", "pages of http://good.test are not served here (setting origins)"),
    ("null", "pages without an origin are not served here (setting origins: null)"),
]


def test_pages_are_served_of_the_origins_on_the_list_and_of_its_own_host(tmp_path):
    """Any other is let in and closed 4403, where a page can read the sentence."""
    with program(tmp_path, "--origin", "https://good.test") as (port, _):
        for origin, sentence in [*ORIGINS, (f"http://127.0.0.1:{port}", None)]:
            with Stranger(port) as one:
                one.open(origin=origin)
                if sentence is None:
                    assert one.beats()
                else:
                    assert one.verdict() == (4403, sentence)


@pytest_twisted.ensureDeferred
async def test_a_wrong_origin_is_counted():
    async with serving() as server:

        def come():
            with Stranger(server.where) as one:
                return one.open(origin="https://evil.test").verdict()

        verdict = await deferToThread(come)
        assert verdict[0] == 4403
        assert dict(server.refused) == {"origins": 1}


# The log.

FORGED = "2026-01-01T00:00:00+0000 [heartbeat#info] all is well"
EVIL = f"x\x1b[2J\r{FORGED}\n{FORGED}\x85{FORGED}"


def test_no_line_of_the_log_begins_with_what_a_stranger_wrote(tmp_path):
    """By every way that his words may take to it: headers, paths, names, types, reasons, and what is no HTTP at all."""
    evil = EVIL.encode()
    with program(tmp_path, "--trust-forwarded", "1", "--messages", "chat,group") as (port, server):
        heads = [
            {"origin": EVIL},
            {"x_forwarded_for": EVIL},
            {"host": EVIL},
            {"sec_websocket_version": EVIL},
            {"sec_websocket_protocol": EVIL},
            {"cookie": EVIL},
        ]
        for headers in heads:
            with Stranger(port) as one:
                one.request(**headers)
        for path in ("/" + EVIL.replace(" ", ""), "/ws?" + EVIL.replace(" ", "")):
            with Stranger(port) as one:
                one.request(path)
        for line in (b"GET /%b HTTP/1.1", b"%b / HTTP/1.1", b"GET / %b", b"%b"):
            with Stranger(port) as one:
                one.write(line % evil.replace(b" ", b"") + b"\r\nHost: x\r\n\r\n")
                one.hear()
        said = [
            {"type": EVIL},
            {"type": "onopen", "v": 1, "client_id": EVIL},
            {"type": "onopen", "v": EVIL},
            {"type": "ongroupchat", "group": EVIL, "action": EVIL},
            {"type": "onchat", "id": "1", "to": EVIL, "text": EVIL},
            b'{"' + evil,
            evil,
        ]
        for message in said:
            with Stranger(port) as one:
                one.open().say(message)
                one.write(frame(struct.pack("!H", 4999) + evil[:100], CLOSE))
                one.hear()
        # A session of an odd name that leaves, and comes back too late; and who comes by a name that is its own.
        with Stranger(port) as one:
            one.open().say({"type": "onopen", "v": 1, "client_id": "[heartbeat#info]"}, {"type": "ping"})
            assert one.answered(2)
        server.signal(signal.SIGTERM)
        server.wait(15)
        lines = [line for line in server.seen + server.rest() if line]
    assert len(lines) > 20
    begins = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \[")
    assert [line for line in lines if not begins.match(line) or line.startswith(FORGED)] == []
    assert [line for line in lines if not line.isprintable()] == []


def bad_json(port):
    """100,000 messages that are none."""
    with Stranger(port) as one:
        one.open()
        reading = threading.Thread(target=one.hear)
        one.socket.settimeout(60)
        reading.start()
        for _ in range(100):
            one.write(frame(b"{") * 1000)
        one.write(frame(struct.pack("!H", 1000), CLOSE))
        reading.join(60)
        assert len(one.frames) == 100_001


def wrong_requests(request):
    """Five thousand connections that are each refused; as many as 100,000 would make as few lines."""

    def come(port):
        for _ in range(5000):
            with Stranger(port) as one:
                one.write(request)
                assert one.status() >= 400

    return come


LOUD = {
    "what is no JSON": bad_json,
    "a path without a WebSocket": wrong_requests(
        b"GET /no HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ),
    "what is no HTTP": wrong_requests(b"nonsense\r\n\r\n"),
    "a page that is not there": wrong_requests(b"GET /no HTTP/1.1\r\nHost: x\r\n\r\n"),
}


@pytest.mark.parametrize("kind", LOUD)
def test_a_stranger_does_not_decide_how_long_the_log_gets(tmp_path, kind):
    """A hundred thousand refusals of one kind are fewer than twenty lines."""
    with program(tmp_path) as (port, server):
        with Stranger(port) as first:
            assert first.open().beats()
        server.rest()
        before = len(server.seen)
        LOUD[kind](port)
        with Stranger(port) as last:
            assert last.open().beats()
        server.stop()
        server.rest()
        lines = server.seen[before:]
    print(f"{kind}: {len(lines)} lines")
    assert len(lines) < 20, lines[:30]


# Amplification.

#: What an answer is longer than its ping at most: `,"status":"pong","clients":…` with twelve digits.
ADDED = 48


def padded(text, size):
    """A ping of exactly so many bytes, with `X` in `text` made as long as it takes."""
    raw = text.encode()
    unit = "é" if "é" in text else "😀" if "😀" in text else "X"
    room = size - (len(raw) - len(unit.encode()))
    return raw.replace(unit.encode(), unit.encode() * (room // len(unit.encode())))


ECHOED = {
    "a long value": '{"type":"ping","a":"X"}',
    "a long name": '{"type":"ping","X":1}',
    "a status of its own": '{"type":"ping","status":"online","a":"X"}',
    "a name in two bytes a character": '{"type":"ping","status":"online","é":1}',
    "a name in four bytes a character": '{"type":"ping","status":"online","😀":1}',
    "a value in two bytes a character": '{"type":"ping","status":"online","a":"é"}',
    "a member twice": '{"type":"ping","a":1,"a":"X"}',
    "a name in two bytes a character, twice": '{"type":"ping","b":1,"b":2,"é":1}',
}


@pytest.mark.parametrize("kind", ECHOED)
@pytest_twisted.ensureDeferred
async def test_an_answer_is_as_long_as_its_ping_and_a_little_more(kind, fast_path):
    """Of 1024 bytes, the largest there is, whatever it holds: nobody has us send much by sending little."""
    ping = padded(ECHOED[kind], 1024)
    assert len(ping) in range(1020, 1025)
    async with serving(fast_path=fast_path) as server:

        def ask():
            with Stranger(server.where) as one:
                one.open().say(ping)
                one.answered(1)
                return one.frames[0][1]

        answer = await deferToThread(ask)
        assert json.loads(answer)["status"] == "pong"
        assert len(answer) <= len(ping) + ADDED


LONG = "Z" * 3000
REFUSED = [
    {"type": LONG},
    {"type": LONG, "id": LONG},
    {"type": "ping", "x": LONG},
    {"type": "onopen", "v": LONG},
    {"type": "onopen", "v": 1, "client_id": LONG, "beats": LONG},
    {"type": "onopen", "v": 1, "session": {"sid": LONG, "epoch": LONG, "last": LONG, "sent": 0, "try": 0}},
    {"type": "onchat", "id": LONG, "to": LONG, "text": 1},
    {"type": "ongroupchat", "group": LONG, "action": LONG},
    {"type": "ongroupchat", "group": "x", "action": LONG, "id": LONG},
    f'{{"type": {LONG}}}'.encode(),
    f'["{LONG}"]'.encode(),
    LONG.encode(),
    f'{{"type": "x", "a": "\\ud800", "b": {LONG}}}'.encode(),
]


@pytest_twisted.ensureDeferred
async def test_an_error_quotes_64_characters_at_most(fast_path):
    """However long what it is about: no run of it is longer in the answer, and the answer is short."""
    async with serving(fast_path=fast_path, messages=("chat", "group")) as server:

        def ask():
            answers = []
            for message in REFUSED:
                with Stranger(server.where) as one:
                    one.open().say(message)
                    one.answered(1)
                    answers += [payload.decode() for opcode, payload in one.frames if opcode == TEXT]
            return answers

        answers = await deferToThread(ask)
        assert len(answers) == len(REFUSED)
        for answer in answers:
            assert max(map(len, re.findall("Z+", answer)), default=0) <= 64, answer
            assert len(answer) < 400 or '"status":"ok"' in answer, answer


# The command line.

WRONG = [
    ("--connections-per-address", "0", "a whole number from 1 to 10000000, not 0"),
    ("--connections-per-address", "many", "a whole number, not 'many'"),
    ("--handshake-rate", "0", "a number from 0.1 to 1000000 /s, not 0.0"),
    ("--handshake-rate", "nan", "a number from 0.1 to 1000000 /s, not nan"),
    ("--handshake-rate", "fast", "a number, not 'fast'"),
    ("--message-rate", "-1", "a number from 0.1 to 1000000 /s, not -1.0"),
    ("--message-rate", "inf", "a number from 0.1 to 1000000 /s, not inf"),
    ("--sessions-per-client", "0", "a whole number from 1 to 1000000, not 0"),
    ("--sessions-bytes", "4096", "a whole number from 1048576 to 1125899906842624 bytes, not 4096"),
    ("--groups-per-session", "1.5", "a whole number, not '1.5'"),
    ("--group-members", "0", "a whole number from 1 to 10000000, not 0"),
]


@pytest.mark.parametrize(("option", "value", "sentence"), WRONG)
def test_a_wrong_value_is_one_sentence_with_the_options_name(tmp_path, option, value, sentence):
    command = [BIN / "twistd", "-n", "--pidfile=", "heartbeat", option, value]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 1
    assert f"{option} must be {sentence}" in run.stdout.splitlines()[-1]
    assert "Traceback" not in run.stdout + run.stderr


def test_help_says_what_holds_where_nothing_is_given(tmp_path):
    run = subprocess.run(
        [BIN / "twistd", "heartbeat", "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    text = " ".join(run.stdout.split())
    for option, said in (
        ("--connections-per-address=", "Default: 1024"),
        ("--handshake-rate=", "Default: 5000"),
        ("--message-rate=", "Default: 200"),
        ("--sessions-per-client=", "[default: 100]"),
        ("--sessions-bytes=", "[default: 268435456]"),
        ("--groups-per-session=", "[default: 100]"),
        ("--group-members=", "[default: 5000]"),
    ):
        assert said in text.split(option)[1][:200], option
