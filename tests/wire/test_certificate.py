"""A certificate of one's own on whatever is listened on, and what is no certificate. Opens no port."""

from pathlib import Path

import pytest
import trustme
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import globalLogPublisher
from twisted.protocols.tls import TLSMemoryBIOFactory

from heartbeat import HeartbeatService, SettingError
from heartbeat.certificate import ServerCertificate


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A certificate, its chain and its key; the folder is the one that relative names are of."""
    monkeypatch.chdir(tmp_path)
    issued = trustme.CA().create_child_ca().issue_cert("example.org", "*.example.org", "192.0.2.1")
    issued.private_key_pem.write_to_path("key.pem")
    for pem in issued.cert_chain_pems:
        pem.write_to_path("chain.pem", append=True)
    return tmp_path


@pytest.fixture
def said():
    """The events that are logged."""
    seen = []
    globalLogPublisher.addObserver(seen.append)
    yield seen
    globalLogPublisher.removeObserver(seen.append)


@pytest.fixture
def reactor():
    """A reactor that opens nothing."""
    return MemoryReactorClock()


@pytest.mark.parametrize(
    ("listen", "port", "backlog", "interface"),
    [
        ("wss:tcp:9443", 9443, 4096, ""),
        ("wss:tcp:9443:backlog=7:interface=192.0.2.1", 9443, 7, "192.0.2.1"),
        ("wss:tcp6:9443", 9443, 4096, "::"),
        ("wss:haproxy:tcp:9443", 9443, 50, ""),
    ],
)
def test_what_follows_wss_is_listened_on_over_tls(files, reactor, listen, port, backlog, interface):
    service = HeartbeatService(listen, certificate=ServerCertificate("chain.pem", "key.pem"), reactor=reactor)
    service.privilegedStartService()

    ((at, factory, queue, where),) = reactor.tcpServers
    assert (at, queue, where) == (port, backlog, interface)
    # The PROXY protocol is spoken in front of TLS.
    secured = getattr(factory, "wrappedFactory", factory) if "haproxy" in listen else factory
    assert isinstance(secured, TLSMemoryBIOFactory)
    assert secured.wrappedFactory is service.factory


def test_it_is_not_listened_on_without_a_certificate(reactor):
    with pytest.raises(SettingError, match=r"^listen must be without wss: where there is no tls_certificate"):
        HeartbeatService("wss:tcp:9443", reactor=reactor)


@pytest.mark.parametrize("wrong", ["wss:", "wss:9443", "wss:wss:tcp:9443", "wss:nonsense:1"])
def test_what_is_none_after_it_is_none_with_it(files, reactor, wrong):
    with pytest.raises(SettingError, match=r"^listen must be an endpoint description"):
        HeartbeatService(wrong, certificate=ServerCertificate("chain.pem", "key.pem"), reactor=reactor)


def test_the_log_says_what_is_shown(files, said):
    certificate = ServerCertificate("chain.pem", "key.pem")
    assert said == []

    certificate.tell()

    (event,) = said
    assert event["names"] == "example.org, *.example.org, 192.0.2.1"
    assert event["path"] == files / "chain.pem"


@pytest.mark.parametrize("clock", [lambda: 0.0, lambda: 4e10])
def test_the_log_says_when_it_is_not_good_now(files, said, clock):
    ServerCertificate("chain.pem", "key.pem", clock=clock).tell()

    assert "not good now" in said[-1]["log_format"]


def test_a_context_of_before_is_nobodys_after_a_reload(files, said):
    """Each connection has that of its moment."""
    certificate = ServerCertificate("chain.pem", "key.pem")
    before = certificate.serverConnectionForTLS(None).get_context()
    certificate.reload()

    assert certificate.serverConnectionForTLS(None).get_context() is not before
    assert len(said) == 1

    Path("key.pem").unlink()
    now = certificate.serverConnectionForTLS(None).get_context()
    certificate.reload()

    assert certificate.serverConnectionForTLS(None).get_context() is now
    assert said[-1]["path"] == files / "key.pem"


@pytest.mark.parametrize("kind", ["RSA", "EC", "PKCS8"])
def test_keys_of_every_common_form_are_taken(files, kind):
    """As `openssl` and those who issue certificates write them, with parameters in front, too."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = {
        "RSA": lambda: rsa.generate_private_key(65537, 2048),
        "EC": lambda: ec.generate_private_key(ec.SECP256R1()),
        "PKCS8": ed25519.Ed25519PrivateKey.generate,
    }[kind]()
    form = PrivateFormat.PKCS8 if kind == "PKCS8" else PrivateFormat.TraditionalOpenSSL
    pem = key.private_bytes(Encoding.PEM, form, NoEncryption())
    parameters = (
        b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n" if kind == "EC" else b""
    )
    given = x509.load_pem_x509_certificates(Path("chain.pem").read_bytes())[0]
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), 7, given.not_valid_before_utc, given.not_valid_after_utc
    )
    issued = builder.sign(key, None if kind == "PKCS8" else SHA256())
    Path("both.pem").write_bytes(b"A comment\n" + parameters + pem + issued.public_bytes(Encoding.PEM))

    certificate = ServerCertificate("both.pem")

    assert certificate.serverConnectionForTLS(None).get_context() is not None
