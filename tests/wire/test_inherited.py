"""Sockets that one process opens and others serve: whatever is described, each serves it, and spoils it for nobody."""

import os
import socket
import ssl
import stat
from pathlib import Path

import pytest
import redis_server
import trustme
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol

from heartbeat.certificate import SecuredEndpoint, ServerCertificate
from heartbeat.inherited import Adopting, Opening, without_manager


@pytest.fixture
def turns():
    """The reactor; nothing is left on it."""
    turns = redis_server.Turns()
    yield turns
    assert turns.reactor.getDelayedCalls() == []


class Greets(Protocol):
    def connectionMade(self):
        self.factory.met += 1
        self.transport.write(b"hello from " + self.factory.name)
        self.transport.loseConnection()


class Greeting(Factory):
    """What a worker of this name serves."""

    noisy = False
    protocol = Greets

    def __init__(self, name):
        self.name = name
        self.met = 0


class Served:
    """A description, opened once, and served by those who adopt it."""

    def __init__(self, turns, description):
        self.turns = turns
        self.description = description
        self.opening = Opening(turns.reactor)
        self.opener = turns.result(serverFromString(self.opening, description).listen(None))

    def adopted(self, name, secured=None):
        """Serve it under this name too; what listens."""
        adopting = Adopting(self.turns.reactor, os.dup(self.opening.ports[0].fileno()))
        endpoint = serverFromString(adopting, without_manager(self.description))
        endpoint = endpoint if secured is None else SecuredEndpoint(endpoint, secured)
        return self.turns.result(endpoint.listen(Greeting(name)))

    def close(self, *ports):
        for port in (*ports, self.opener):
            self.turns.result(port.stopListening())


def met(turns, where, context=None):
    """What whoever connects is told; `where` is a port, or a path."""
    is_path = isinstance(where, Path)
    with socket.socket(socket.AF_UNIX if is_path else socket.AF_INET) as line:
        line.connect(os.fspath(where) if is_path else ("127.0.0.1", where))
        line.setblocking(False)
        heard = turns.until(lambda: reads(line)) if context is None else shaken(turns, line, context)
    turns.turn()
    return heard


def reads(line):
    """What has come, if anything has."""
    try:
        return line.recv(65536)
    except BlockingIOError:
        return b""


def shaken(turns, line, context):
    """The same, over TLS."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")

    def heard():
        incoming.write(reads(line))
        try:
            return tls.read(100)
        except ssl.SSLWantReadError:
            return b""
        finally:
            line.sendall(outgoing.read())

    return turns.until(heard)


def test_a_tcp_socket_is_served_by_all_and_by_the_rest_when_one_stops(turns):
    """Nobody is met by the one that opened it, and to stop serving is to shut nothing down."""
    served = Served(turns, "tcp:0:interface=127.0.0.1:backlog=7")
    port = served.opener.getHost().port
    first, second = served.adopted(b"first"), served.adopted(b"second")

    assert {met(turns, port) for _ in range(20)} <= {b"hello from first", b"hello from second"}
    turns.result(first.stopListening())
    assert {met(turns, port) for _ in range(3)} == {b"hello from second"}
    assert served.opener.factory.protocol is None

    served.close(second)
    with pytest.raises(ConnectionRefusedError):
        met(turns, port)


@pytest.mark.parametrize("kind", ["tcp:0:interface=127.0.0.1", "unix:{}/here.sock"])
def test_who_comes_too_late_for_a_connection_waits_anew(turns, tmp_path, kind):
    """And who has taken one does not: the kernel wakes first who has begun to wait last."""
    served = Served(turns, kind.format(tmp_path))
    adopted = served.adopted(b"one")
    begun = []
    start = adopted.startReading
    adopted.startReading = lambda: begun.append(start())

    met(turns, tmp_path / "here.sock" if "unix" in kind else served.opener.getHost().port)
    assert begun == []
    adopted.doRead()
    assert begun == [None]
    served.close(adopted)


def test_a_unix_socket_keeps_its_mode_and_its_name_until_its_opener_stops(turns, tmp_path):
    path = tmp_path / "here.sock"
    served = Served(turns, f"unix:{path}:mode=600:backlog=64")
    first, second = served.adopted(b"first"), served.adopted(b"second")

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert met(turns, path).startswith(b"hello from ")
    turns.result(first.stopListening())
    assert path.exists()
    assert {met(turns, path) for _ in range(3)} == {b"hello from second"}

    served.close(second)
    assert list(tmp_path.iterdir()) == []


def test_a_unix_socket_keeps_its_queue(turns, tmp_path):
    """Twisted's own way to adopt one would leave room for 50."""
    path = tmp_path / "here.sock"
    served = Served(turns, f"unix:{path}:backlog=128")
    adopted = served.adopted(b"one")
    adopted.stopReading()
    lines = []
    for _ in range(120):
        line = socket.socket(socket.AF_UNIX)
        line.setblocking(False)
        lines.append(line)
        assert line.connect_ex(os.fspath(path)) == 0
    for line in lines:
        line.close()
    adopted.startReading()
    turns.until(lambda: adopted.factory.met == 120)
    served.close(adopted)


def certificate_in(folder):
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    leaf.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
@pytest.mark.parametrize("kind", ["ssl", "wss", "haproxy"])
def test_what_is_spoken_there_is_the_affair_of_who_serves(turns, tmp_path, kind):
    """TLS by Twisted's endpoint or by our own; and a proxy's protocol, without which nobody is met."""
    context = certificate_in(tmp_path)
    both = f"{tmp_path}/both.pem"
    description = {
        "ssl": f"ssl:0:interface=127.0.0.1:privateKey={both}:certKey={both}",
        "wss": "tcp:0:interface=127.0.0.1",
        "haproxy": "haproxy:tcp:0:interface=127.0.0.1",
    }[kind]
    served = Served(turns, description)
    adopted = served.adopted(b"one", ServerCertificate(both) if kind == "wss" else None)
    port = served.opening.ports[0].getHost().port

    if kind == "haproxy":
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(b"PROXY TCP4 198.51.100.7 127.0.0.1 40000 9000\r\nhello")
            line.setblocking(False)
            assert turns.until(lambda: reads(line)) == b"hello from one"
    else:
        assert met(turns, port, context) == b"hello from one"
    served.close(adopted)


def test_a_socket_of_a_service_manager_is_handed_on_and_stays_his(turns, tmp_path):
    """Of whatever family; its name is not removed, and its mode not changed."""
    path = tmp_path / "his.sock"
    with socket.socket(socket.AF_UNIX) as his:
        his.bind(os.fspath(path))
        path.chmod(0o600)
        his.listen(5)
        opening = Opening(turns.reactor)
        opener = opening.adoptStreamPort(his.fileno(), socket.AF_UNIX, None)
        adopting = Adopting(turns.reactor, os.dup(opening.ports[0].fileno()))
        endpoint = serverFromString(adopting, without_manager("systemd:domain=UNIX:name=heartbeat"))
        adopted = turns.result(endpoint.listen(Greeting(b"one")))

        assert met(turns, path) == b"hello from one"
        turns.result(adopted.stopListening())
        turns.result(opener.stopListening())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_a_manager_opened_is_described_as_any_other():
    assert without_manager("systemd:domain=INET:name=heartbeat") == "tcp:0"
    assert without_manager("wss:haproxy:systemd:domain=INET6:index=0") == "wss:haproxy:tcp:0"
    assert without_manager("unix:systemd.sock:mode=600") == "unix:systemd.sock:mode=600"


def test_one_socket_is_adopted_once(turns):
    served = Served(turns, "tcp:0:interface=127.0.0.1")
    adopting = Adopting(turns.reactor, os.dup(served.opening.ports[0].fileno()))
    adopted = adopting.listenTCP(0, Greeting(b"one"))

    with pytest.raises(CannotListenError, match="it listens already"):
        adopting.listenTCP(0, Greeting(b"two"))
    served.close(adopted)


def test_all_else_is_the_reactors(turns):
    assert Adopting(turns.reactor, 0).seconds == turns.reactor.seconds
    assert Opening(turns.reactor).callLater == turns.reactor.callLater
