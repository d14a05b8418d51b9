"""TLS on the way to Redis and to its sentinels: whom it trusts, what it shows, and what is said where that is wrong."""

import shutil
import socket
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import redis_server
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from ports import free_port
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.usage import UsageError
from zope.interface import implementer

from heartbeat.cluster import redis as way
from heartbeat.cluster.presence import FleetPresence
from heartbeat.cluster.redis import Redis
from heartbeat.cluster.store import RedisStore
from heartbeat.core.errors import SettingError, StoreError
from heartbeat.core.presence import Presence
from heartbeat.endings import reason_of
from heartbeat.store import Append, Head
from heartbeat.tap import Options

pytestmark = redis_server.needs_redis

# What is said of a connection that was cut before an answer came.
CUT = "the connection was cut, as by one that is not shown the ssl_certfile that it wants"

ALICE = Head("a", "e", "alice", 120.0)


def issued(folder, authority, *names):
    """Files of a certificate for these names."""
    folder.mkdir()
    files = SimpleNamespace(key=folder / "key.pem", chain=folder / "chain.pem", authority=folder / "authority.pem")
    certificate = authority.issue_cert(*names)
    certificate.private_key_pem.write_to_path(files.key)
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(files.chain, append=True)
    authority.cert_pem.write_to_path(files.authority)
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Of a Redis at 127.0.0.1, of one at another place, and of a client; all by one authority, and one by another."""
    folder, authority = tmp_path_factory.mktemp("certificates"), trustme.CA()
    return SimpleNamespace(
        redis=issued(folder / "redis", authority, "127.0.0.1"),
        elsewhere=issued(folder / "elsewhere", authority, "redis.example.org"),
        # Which is for no host at all.
        anything=issued(folder / "anything", authority, "*.com"),
        client=issued(folder / "client", authority, "server-1.example.org"),
        stranger=issued(folder / "stranger", trustme.CA(), "127.0.0.1"),
    )


@pytest.fixture
def turns():
    """The reactor; nothing is left on it."""
    turns = redis_server.Turns()
    yield turns
    assert turns.reactor.getDelayedCalls() == []


@pytest.fixture
def secured(tmp_path):
    """Start a Redis that speaks over TLS only, at a `port`."""
    started = []

    def secured(certificates, *options, clients="no"):
        port = free_port()
        words = {"save": "", "appendonly": "no", "port": 0, "tls-port": port, "bind": "127.0.0.1"}
        words |= redis_server.served(certificates, clients)
        told = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
        server = redis_server.RedisServer(tmp_path, *told, *options)
        started.append(server.start())
        return port

    yield secured
    for server in started:
        server.__exit__()


def encrypted(key):
    """The same key, with a passphrase."""
    how = BestAvailableEncryption(b"secret")
    return load_pem_private_key(key, None).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)


def self_signed(key, name="weak.example.org"):
    """A certificate by this key itself, and the key."""
    subject, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, SHA256())
    )
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM) + plain


def url_of(port, scheme="rediss", user="", **named):
    return f"{scheme}://{user}127.0.0.1:{port}?" + "&".join(f"ssl_{name}={path}" for name, path in named.items())


def keep_one(store, turns):
    """Have a store keep a message, and stop it."""
    turns.result(store.start())
    turns.result(store.open(ALICE))
    assert turns.result(store.append([Append("a", b"{}")])) == (1,)
    turns.result(store.stop())


def test_a_store_speaks_over_tls(secured, files, turns):
    port = secured(files.redis, "--requirepass", "secret")

    keep_one(RedisStore(url_of(port, user=":secret@", ca_certs=files.redis.authority), reactor=turns.reactor), turns)


def test_a_fleet_counts_and_hears_over_tls(secured, files, turns):
    port = secured(files.redis)
    url = url_of(port, ca_certs=files.redis.authority)
    fleet = [FleetPresence(url, reactor=turns.reactor) for _ in range(2)]
    own = [Presence(0.0, 0.0) for _ in fleet]
    for one, presence in zip(fleet, own, strict=True):
        one.start(presence)
    turns.until(lambda: all(one.is_up and one.nodes == 2 for one in fleet))

    connection = own[0].open("alice")
    turns.until(lambda: fleet[1].counts.connections == 1)

    own[0].close(connection, 0.0, at_once=True)
    turns.until(lambda: fleet[1].counts.connections == 0)
    for one in fleet:
        turns.result(one.stop())


@pytest.mark.parametrize(
    ("shown", "trusted", "why"),
    [
        ("redis", "stranger", "TLS failed: certificate verify failed"),
        ("redis", None, "TLS failed: certificate verify failed"),
        ("elsewhere", "elsewhere", "the certificate is for another host"),
        ("anything", "anything", "the certificate is for another host"),
    ],
    ids=["by a stranger", "by nobody that this machine trusts", "for another host", "for hosts that cannot be"],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_whom_it_does_not_trust_is_told_nothing(secured, files, turns, tmp_path, host, shown, trusted, why):
    """And it is said why."""
    port = secured(getattr(files, shown))
    named = {} if trusted is None else {"ca_certs": getattr(files, trusted).authority}
    url = url_of(port, user=":secret@", **named).rstrip("?")
    if host == "localhost":
        # Who is not an address would be looked up in a thread, for which this reactor does not run.
        assert why == Verified(url.replace("127.0.0.1", host), port, turns).why()
        return
    store = RedisStore(url, reactor=turns.reactor)

    with pytest.raises(StoreError, match=rf"cannot be reached: {why}$"):
        turns.result(store.start())

    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(tmp_path / "redis"))
        line.sendall(b"INFO commandstats\r\n")
        assert b"cmdstat_auth" not in line.recv(65536)


class Verified:
    """One connection to a port of this machine as to the host of a URL."""

    def __init__(self, url, port, turns):
        self.turns, host = turns, urlsplit(url).hostname
        self.line = Protocol()
        self.ended = []
        self.line.connectionLost = self.ended.append
        way = Redis(url, reactor=turns.reactor)._tls.way(
            host, TCP4ClientEndpoint(turns.reactor, "127.0.0.1", port), turns.reactor
        )
        turns.result(way.connect(Factory.forProtocol(lambda: self.line)))

    def why(self):
        self.turns.until(lambda: self.ended)
        return reason_of(self.ended[0])

    def says(self, words):
        heard = []
        self.line.dataReceived = heard.append
        self.line.transport.write(words)
        self.turns.until(lambda: heard)
        self.line.transport.abortConnection()
        self.turns.until(lambda: self.ended)
        return b"".join(heard)


@pytest.mark.parametrize("host", ["redis.example.org", "REDIS.example.org.", "redis.example.org."])
def test_a_host_is_verified_by_its_name(secured, files, turns, host):
    """However it is written; a dot at its end is no part of what a certificate is for."""
    port = secured(files.elsewhere)
    url = f"rediss://{host}?ssl_ca_certs={files.redis.authority}"

    assert Verified(url, port, turns).says(b"PING\r\n") == b"+PONG\r\n"


@pytest.mark.parametrize("host", ["redis_1", "redis..example", "x" * 64])
def test_a_host_for_which_no_certificate_can_be_is_refused_at_the_start(host):
    for url in (f"rediss://{host}", f"rediss+sentinel://127.0.0.1,{host}/pair"):
        with pytest.raises(SettingError, match="redis://"):
            Redis(url)


@pytest.mark.parametrize("in_one_file", [True, False])
def test_a_redis_that_wants_to_see_a_certificate_is_shown_one(secured, files, turns, tmp_path, in_one_file):
    """Redis' own default; the key is in the same file, or in another."""
    port = secured(files.redis, clients="yes")
    named = {"ca_certs": files.redis.authority, "certfile": files.client.chain, "keyfile": files.client.key}
    if in_one_file:
        named["certfile"] = tmp_path / "both.pem"
        named["certfile"].write_bytes(files.client.chain.read_bytes() + files.client.key.read_bytes())
        del named["keyfile"]

    keep_one(RedisStore(url_of(port, **named), reactor=turns.reactor), turns)


def test_a_redis_that_wants_to_see_a_certificate_and_is_shown_none_says_so(secured, files, turns):
    """Itself, unless that is overtaken by the end of the connection."""
    port = secured(files.redis, clients="yes")
    store = RedisStore(url_of(port, ca_certs=files.redis.authority), reactor=turns.reactor)

    with pytest.raises(StoreError, match=rf"cannot be reached: (TLS failed: .*certificate required|{CUT})$"):
        turns.result(store.start())


@implementer(IHandshakeListener)
class Cutting(Protocol):
    """Cuts the connection when TLS is up."""

    def handshakeCompleted(self):
        self.transport.abortConnection()


class CuttingLater(Protocol):
    """Cuts it when it has answered something."""

    def dataReceived(self, data):
        self.transport.write(b"+OK\r\n")
        self.transport.transport.reactor.callLater(0.05, self.transport.abortConnection)
        self.dataReceived = lambda data: None


@pytest.mark.parametrize("url", ["rediss://{}/0", "rediss+sentinel://{}/pair"])
@pytest.mark.parametrize(
    ("protocol", "why"), [(Cutting, CUT), (CuttingLater, "(Connection to the other side .*|it has hung up)")]
)
def test_one_that_cuts_the_connection_before_it_answers_may_have_wanted_a_certificate(files, turns, url, protocol, why):
    cutting = Factory.forProtocol(protocol)
    cutting.noisy = False
    shown = DefaultOpenSSLContextFactory(str(files.redis.key), str(files.redis.chain))
    # By itself TLS would write in the turns of the global reactor.
    secured = TLSMemoryBIOFactory(shown, False, cutting, clock=turns.reactor)
    listening = turns.reactor.listenTCP(0, secured, interface="127.0.0.1")
    place = url.format(f"127.0.0.1:{listening.getHost().port}")
    redis = Redis(f"{place}?ssl_ca_certs={files.redis.authority}", reactor=turns.reactor)

    with pytest.raises(StoreError, match=rf" cannot be reached: .*{why}\)?$") as error:
        turns.result(redis.start())

    assert (CUT in str(error.value)) == (protocol is Cutting)
    turns.result(listening.stopListening())


def test_what_was_renewed_is_used_for_the_next_connection(secured, files, turns, tmp_path):
    """Redis has a certificate of another authority by now, and so has the file of those who are trusted."""
    port = secured(files.redis)
    trusted = tmp_path / "trusted.pem"
    shutil.copy(files.stranger.authority, trusted)
    url = url_of(port, ca_certs=trusted)
    redis = Redis(url, reactor=turns.reactor)
    with pytest.raises(StoreError, match="certificate verify failed"):
        turns.result(redis.start())
    shutil.copy(files.redis.authority, trusted)
    turns.result(redis.start())
    turns.result(redis.stop())

    trusted.unlink()
    with pytest.raises(
        StoreError, match=r"cannot be reached: store must be a URL whose ssl_ca_certs is a readable file"
    ):
        turns.result(redis.start())


def test_a_redis_that_comes_back_with_another_certificate_is_found_again(files, turns, tmp_path):
    """What was asked meanwhile is answered, once the file of those who are trusted is the new one, too."""
    port, trusted = free_port(), tmp_path / "trusted.pem"
    shutil.copy(files.redis.authority, trusted)

    def served_by(certificates):
        words = {"appendonly": "yes", "appendfsync": "always", "port": 0, "tls-port": port, "bind": "127.0.0.1"}
        words |= redis_server.served(certificates)
        options = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
        return redis_server.RedisServer(tmp_path, *options).start()

    server = served_by(files.redis)
    store = RedisStore(url_of(port, ca_certs=trusted), reactor=turns.reactor)
    turns.result(store.start())
    turns.result(store.open(ALICE))
    server.kill()
    server = served_by(files.stranger)
    numbers = []
    store.append([Append("a", b"{}")]).addBoth(numbers.append)
    turns.until(lambda: store._redis._failures > 2)
    assert numbers == []

    shutil.copy(files.stranger.authority, trusted)

    turns.until(lambda: numbers)
    assert numbers == [(1,)]
    turns.result(store.stop())
    server.kill()


def test_a_handshake_that_hangs_is_not_waited_for(files, turns, monkeypatch):
    """Somebody accepts, and says nothing."""
    monkeypatch.setattr(way, "_PATIENCE", 1.0)
    silent = Factory.forProtocol(Protocol)
    silent.noisy = False
    listening = turns.reactor.listenTCP(0, silent, interface="127.0.0.1")
    store = RedisStore(url_of(listening.getHost().port, ca_certs=files.redis.authority), reactor=turns.reactor)

    with pytest.raises(StoreError, match=r"no answer for 1 s$"):
        turns.result(store.start())

    turns.result(listening.stopListening())
    turns.until(lambda: not turns.reactor.getReaders() or len(turns.reactor.getReaders()) == 1)


# What is said of the files, before anything is connected.


@pytest.mark.parametrize("scheme", ["rediss://127.0.0.1/0?", "rediss+sentinel://127.0.0.1/pair?"])
def test_a_file_that_is_not_what_it_should_be_is_said_in_one_sentence(files, tmp_path, scheme):
    nothing, cut = tmp_path / "nothing.pem", tmp_path / "cut.pem"
    nothing.write_text("")
    cut.write_bytes(files.client.chain.read_bytes()[:200] + b"\n-----END CERTIFICATE-----\n")
    short = tmp_path / "short.pem"
    short.write_bytes(files.redis.authority.read_bytes() + files.stranger.authority.read_bytes()[:200])
    chain, key = files.client.chain, files.client.key
    guarded, weak = tmp_path / "guarded.pem", tmp_path / "weak.pem"
    guarded.write_bytes(encrypted(key.read_bytes()))
    weak.write_bytes(self_signed(generate_private_key(65537, 1024)))  # noqa: S505  # that is why it is refused
    mixed = tmp_path / "mixed.pem"
    mixed.write_bytes(chain.read_bytes() + files.redis.key.read_bytes())
    both = "ssl_certfile={}&ssl_keyfile={}"
    wrong = {
        f"ssl_ca_certs={tmp_path / 'none.pem'}": r"ssl_ca_certs is a readable file .*\), not '.*none.pem'$",
        f"ssl_ca_certs={nothing}": r"ssl_ca_certs is a file with at least one PEM certificate, not '.*nothing.pem'$",
        f"ssl_ca_certs={cut}": r"a readable file of PEM certificates \(.*\), not '.*cut.pem'$",
        f"ssl_ca_certs={short}": r"a readable file of PEM certificates \(the last one is cut off\), not '.*short.pem'$",
        both.format(nothing, key): r"ssl_certfile is usable \(it holds no certificate, .*\), not '.*nothing.pem'$",
        f"ssl_certfile={chain}": r"key is usable \(it holds no private key\), not '.*chain.pem'$",
        both.format(chain, nothing): r"key is usable \(it holds no private key\), not '.*nothing.pem'$",
        both.format(chain, files.redis.key): r"\(its key is not that of the first certificate\), not '.*key.pem'$",
        both.format(chain, guarded): r"\(its key is encrypted, and nobody is here to be asked",
        f"ssl_certfile={weak}": r"ssl_certfile is one that OpenSSL takes \(TLS failed: ee key too small\), not",
        f"ssl_certfile={mixed}": r"its key is not that of the first certificate",
        f"ssl_keyfile={key}": "redis://",
        f"ssl_keyfiles={key}": "redis://",
        "ssl_ca_certs": "redis://",
        "ssl_ca_certs=": "redis://",
        "ssl_certfile=": "redis://",
        "ssl_cert_reqs=none": "redis://",
        f"ssl_ca_certs={files.redis.authority}&ssl_ca_certs={files.stranger.authority}": "redis://",
    }
    # A key that the file of the certificate happens to hold is not the one that was named.
    Redis(scheme + both.format(mixed, key))
    for query, sentence in wrong.items():
        with pytest.raises(SettingError, match=sentence) as error:
            Redis(scheme + query, setting="cluster")
        assert str(error.value).startswith("cluster must be "), query
        assert "\n" not in str(error.value), query


def test_without_tls_there_are_no_files():
    for url in ("redis://127.0.0.1?ssl_ca_certs=x", "redis+sentinel://127.0.0.1/pair?ssl_ca_certs=x"):
        with pytest.raises(SettingError, match="redis://"):
            Redis(url)


def test_what_sentinels_are_told_over_tls_is_never_told(files):
    query = f"sentinel_password=guarded&ssl_ca_certs={files.redis.authority}"

    redis = Redis(f"rediss+sentinel://:secret@127.0.0.1/pair/3?{query}")

    assert redis.url == "rediss+sentinel://@127.0.0.1/pair/3"
    assert (redis.credentials, redis.database) == (["secret"], 3)


@pytest.mark.parametrize(
    "url",
    [
        "rediss://h?password=secret",
        "rediss://:secret@h?ssl_password=secret",
        "REDISS+SENTINEL://h/m?sentinel_password=secret&x=y",
        "rediss+sentinel://h/m?sentinel_password=a@secret&x=y",
        "rediss://:p?secret@h",
        "rediss://:secret/x@h/0",
        "redis+sentinal://:secret@h/m",
        "redis://:secret@h/x",
    ],
)
@pytest.mark.parametrize("option", ["--cluster", "--store"])
def test_what_is_secret_in_a_url_that_is_none_is_not_told(url, option):
    """Nor half of it."""
    with pytest.raises(UsageError) as error:
        Options().parseOptions([option, url])

    assert "secret" not in str(error.value).partition("not '")[2].replace("sentinel", "")
    with pytest.raises(SettingError) as refused:
        Redis(url)
    assert "secret" not in str(refused.value)


def test_a_scheme_is_the_same_however_it_is_written(files):
    url = f"REDISS+Sentinel://127.0.0.1/pair?ssl_ca_certs={files.redis.authority}"

    assert Redis(url).url == "rediss+sentinel://127.0.0.1/pair"
    Options().parseOptions(["--store", url])
    with pytest.raises(UsageError, match="one that no other server has"):
        Options().parseOptions(["--store", url, "--cluster", url.lower()])


# With sentinels.


@redis_server.needs_sentinel
def test_sentinels_and_the_master_they_name_are_spoken_to_over_tls(files, turns, tmp_path):
    """Also after another one took its place."""
    with redis_server.Replicated(tmp_path, certificates=files.redis) as pair:
        store = RedisStore(pair.url, reactor=turns.reactor)
        turns.result(store.start())
        turns.result(store.open(ALICE))
        assert turns.result(store.append([Append("a", b"{}")])) == (1,)
        redis_server.replicate(pair.ports[0], pair.trusting)
        pair.kill(pair.ports[0])

        # Sentinels try again after six seconds, and those that stood still themselves do nothing for thirty.
        assert turns.result(store.append([Append("a", b"{}")]), seconds=60) == (2,)

        assert pair.master == pair.ports[1]
        turns.result(store.stop())


@redis_server.needs_sentinel
def test_a_sentinel_that_is_not_trusted_is_not_believed(files, turns, tmp_path):
    with redis_server.Replicated(tmp_path, certificates=files.redis) as pair:
        url = pair.url.replace(str(files.redis.authority), str(files.stranger.authority))
        store = RedisStore(url, reactor=turns.reactor)

        with pytest.raises(StoreError, match=r"no sentinel knows .*: TLS failed: certificate verify failed"):
            turns.result(store.start())
