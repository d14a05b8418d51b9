"""TLS on the way to Redis and to its sentinels: whom it trusts, what it shows, and what is said where that is wrong."""

import shutil
from types import SimpleNamespace

import pytest
import redis_server
import trustme

from heartbeat.cluster.presence import FleetPresence
from heartbeat.cluster.redis import Redis
from heartbeat.cluster.store import RedisStore
from heartbeat.core.errors import SettingError, StoreError
from heartbeat.core.presence import Presence
from heartbeat.store import Append, Head

pytestmark = [
    redis_server.needs_redis,
    # Twisted's own way to show a certificate.
    pytest.mark.filterwarnings("ignore:Passing pyOpenSSL (X509|PKey) objects is deprecated"),
]

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
        port = redis_server.free_port()
        words = {"save": "", "appendonly": "no", "port": 0, "tls-port": port, "bind": "127.0.0.1"}
        words |= redis_server.served(certificates, clients)
        told = [str(word) for name, value in words.items() for word in (f"--{name}", value)]
        server = redis_server.RedisServer(tmp_path, *told, *options)
        started.append(server.start())
        return port

    yield secured
    for server in started:
        server.__exit__()


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
    ],
    ids=["by a stranger", "by nobody that this machine trusts", "for another host"],
)
def test_whom_it_does_not_trust_is_told_nothing(secured, files, turns, shown, trusted, why):
    """And it is said why."""
    port = secured(getattr(files, shown), "--requirepass", "secret")
    named = {} if trusted is None else {"ca_certs": getattr(files, trusted).authority}
    store = RedisStore(url_of(port, user=":secret@", **named).rstrip("?"), reactor=turns.reactor)

    with pytest.raises(StoreError, match=rf"cannot be reached: {why}$"):
        turns.result(store.start())


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
    port = secured(files.redis, clients="yes")
    store = RedisStore(url_of(port, ca_certs=files.redis.authority), reactor=turns.reactor)

    with pytest.raises(StoreError, match=r"cannot be reached: TLS failed: .*certificate required$"):
        turns.result(store.start())


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


# What is said of the files, before anything is connected.


@pytest.mark.parametrize("scheme", ["rediss://127.0.0.1/0?", "rediss+sentinel://127.0.0.1/pair?"])
def test_a_file_that_is_not_what_it_should_be_is_said_in_one_sentence(files, tmp_path, scheme):
    nothing, cut = tmp_path / "nothing.pem", tmp_path / "cut.pem"
    nothing.write_text("")
    cut.write_bytes(files.client.chain.read_bytes()[:200] + b"\n-----END CERTIFICATE-----\n")
    chain, key = files.client.chain, files.client.key
    both = "ssl_certfile={}&ssl_keyfile={}"
    wrong = {
        f"ssl_ca_certs={tmp_path / 'none.pem'}": r"ssl_ca_certs is a readable file .*\), not '.*none.pem'$",
        f"ssl_ca_certs={nothing}": r"ssl_ca_certs is a file with at least one PEM certificate, not '.*nothing.pem'$",
        f"ssl_ca_certs={cut}": r"a readable file of PEM certificates \(.*\), not '.*cut.pem'$",
        both.format(nothing, key): r"ssl_certfile is a file with at least one .*, not '.*nothing.pem'$",
        f"ssl_certfile={chain}": r"a readable one in PEM, without a passphrase \(.*\), not '.*chain.pem'$",
        both.format(chain, nothing): r"a URL whose key is a readable one in PEM",
        both.format(chain, files.redis.key): r"a URL whose key is that of the certificate in .*chain.pem, not",
        f"ssl_keyfile={key}": "redis://",
        f"ssl_keyfiles={key}": "redis://",
        "ssl_ca_certs": "redis://",
    }
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

        assert turns.result(store.append([Append("a", b"{}")])) == (2,)

        assert pair.master == pair.ports[1]
        turns.result(store.stop())


@redis_server.needs_sentinel
def test_a_sentinel_that_is_not_trusted_is_not_believed(files, turns, tmp_path):
    with redis_server.Replicated(tmp_path, certificates=files.redis) as pair:
        url = pair.url.replace(str(files.redis.authority), str(files.stranger.authority))
        store = RedisStore(url, reactor=turns.reactor)

        with pytest.raises(StoreError, match=r"no sentinel knows .*: TLS failed: certificate verify failed"):
            turns.result(store.start())
