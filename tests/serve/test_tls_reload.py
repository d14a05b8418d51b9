"""A certificate that is changed while the server runs: real handshakes, SIGHUP, and files that cannot be used."""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from processes import BIN, REACTORS, Program, client, twistd

# Each starts programs, most of them several.
pytestmark = pytest.mark.slow

#: What each step may take at most; it takes a fraction of a second.
SOON = 30.0

OPTIONS = ("--tls-certificate", "chain.pem", "--tls-key", "key.pem")
LISTEN = ("--listen", "wss:tcp:0:interface=127.0.0.1")


class Authority:
    """Who issues certificates into one folder, one after the other; whoever trusts it trusts each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._root = trustme.CA()
        # As certificates are today: those who are trusted sign for others, who sign.
        self._issuer = self._root.create_child_ca()
        self._root.cert_pem.write_to_path(folder / "root.pem")

    def issue(self) -> int:
        """Put a fresh certificate and its key in the place of the old ones; its serial number."""
        leaf = self._issuer.issue_cert("127.0.0.1", "localhost")
        self.put("key.pem", leaf.private_key_pem.bytes())
        self.put("chain.pem", b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        return self.serial

    @property
    def serial(self) -> int:
        """That of the certificate in the file."""
        return x509.load_pem_x509_certificates((self.folder / "chain.pem").read_bytes())[0].serial_number

    def put(self, name: str, data: bytes) -> None:
        """Put a file in the place of another; nobody reads half of it."""
        (self.folder / "fresh").write_bytes(data)
        (self.folder / "fresh").replace(self.folder / name)


@pytest.fixture
def authority(tmp_path):
    """One that has issued a first certificate."""
    authority = Authority(tmp_path)
    authority.issue()
    return authority


def shaken(folder, url, **options):
    """A TLS handshake with whoever is there, trusting the root alone: the connection, to be closed."""
    context = ssl.create_default_context(cafile=folder / "root.pem")
    context.set_alpn_protocols(options.pop("alpn", ["h2", "http/1.1"]))
    for name, value in options.items():
        setattr(context, name, value)
    port = int(url.split(":")[2].split("/")[0])
    line = socket.create_connection(("127.0.0.1", port), SOON)
    try:
        return context.wrap_socket(line, server_hostname="localhost")
    except BaseException:
        line.close()
        raise


def serial_seen(folder, url):
    """The serial number of the certificate that the server shows."""
    with shaken(folder, url) as line:
        return int(line.getpeercert()["serialNumber"], 16)


def hang_up(server):
    """Have it read its files again; what it says of that."""
    server.signal(signal.SIGHUP)
    while (line := server.line(SOON)) is not None:
        if "the certificate of " in line:
            return line
    raise AssertionError("it has ended")


@pytest.mark.parametrize("reactor", REACTORS)
def test_after_sighup_the_next_handshake_sees_the_new_certificate_and_who_is_there_stays(authority, tmp_path, reactor):
    """No beat of the connection from before is lost, under three certificates one after the other."""
    with twistd(*LISTEN, *OPTIONS, cwd=tmp_path, reactor=reactor) as server:
        url = server.url()
        assert url.startswith("wss://127.0.0.1:")
        assert f"serial number {authority.serial:x}" in server.line_with("the certificate of", SOON)
        with client(url, "--interval", "0.1", "--cacert", str(tmp_path / "root.pem")) as stays:
            stays.event("pong", SOON)
            for _ in range(3):
                before = authority.serial
                assert serial_seen(tmp_path, url) == before
                after = authority.issue()
                assert serial_seen(tmp_path, url) == before
                assert f"serial number {after:x}" in hang_up(server)
                assert serial_seen(tmp_path, url) == after != before
                stays.event("pong", SOON)
            stays.signal(signal.SIGINT)
            summary = stays.event("summary", SOON)
            assert (summary["lost"], summary["reconnects"]) == (0, 0)
        assert server.stop() in (0, -signal.SIGTERM)
    assert not [line for line in server.seen if "Traceback" in line or "#critical" in line]


def encrypted(pem):
    """The same key, behind a passphrase."""
    key = load_pem_private_key(pem, None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open sesame"))


BROKEN = {
    "no certificate": ("chain.pem", lambda old: b"", "chain.pem cannot be used (it holds no certificate, or one that"),
    "half of one": (
        "chain.pem",
        lambda old: old[:300],
        "chain.pem cannot be used (it holds no certificate, or one that",
    ),
    "half of the chain": ("chain.pem", lambda old: old[:-300], "chain.pem cannot be used (its chain is cut off)"),
    "one that is none": (
        "chain.pem",
        lambda old: b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "chain.pem cannot be used (it holds no certificate, or one that is broken)",
    ),
    "no key": ("key.pem", lambda old: b"", "key.pem cannot be used (it holds no private key)"),
    "half of a key": ("key.pem", lambda old: old[:100], "key.pem cannot be used (it holds no private key)"),
    "a key that is none": (
        "key.pem",
        lambda old: b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "key.pem cannot be used (its key is broken, or of an unknown kind)",
    ),
    "another's key": (
        "key.pem",
        lambda old: trustme.CA().issue_cert("localhost").private_key_pem.bytes(),
        "key.pem cannot be used (its key is not that of the first certificate)",
    ),
    "a key behind a passphrase": ("key.pem", encrypted, "key.pem cannot be used (its key is encrypted, and nobody is"),
}


def test_files_that_cannot_be_used_leave_the_old_certificate_and_one_sentence(authority, tmp_path):
    """Whatever is wrong with them; and when they are mended, the next SIGHUP takes them."""
    with twistd(*LISTEN, *OPTIONS, cwd=tmp_path) as server:
        url = server.url()
        server.line_with("the certificate of", SOON)
        for kind, (name, broken, sentence) in BROKEN.items():
            shown, good = serial_seen(tmp_path, url), (tmp_path / name).read_bytes()
            authority.put(name, broken(good))
            said = hang_up(server)
            assert sentence in said, kind
            assert said.endswith("; the certificate of before is still shown"), kind
            assert serial_seen(tmp_path, url) == shown, kind
            fresh = authority.issue()
            hang_up(server)
            assert serial_seen(tmp_path, url) == fresh != shown, kind
        (tmp_path / "chain.pem").unlink()
        assert "chain.pem cannot be used (No such file or directory)" in hang_up(server)
        assert serial_seen(tmp_path, url) == fresh
    assert not [line for line in server.seen if "Traceback" in line or "#critical" in line]
    assert len([line for line in server.seen if "cannot be used" in line]) == len(BROKEN) + 1


def test_a_wrong_file_ends_the_start_in_one_sentence(authority, tmp_path):
    cases = {
        (
            "--tls-certificate",
            "nowhere.pem",
        ): "--tls-certificate must be a PEM file of a certificate and its chain, and "
        "the key (No such file or directory), not 'nowhere.pem'",
        ("--tls-certificate", "chain.pem"): "--tls-certificate must be a PEM file of a certificate and its chain, and "
        "the key (it holds no private key), not 'chain.pem'",
        ("--tls-certificate", "chain.pem", "--tls-key", "root.pem"): "--tls-key must be a PEM file of a private key "
        "(it holds no private key), not 'root.pem'",
        ("--tls-key", "key.pem"): "--tls-key must be left out where there is no --tls-certificate, not 'key.pem'",
        (): "--listen must be without wss: where there is no tls_certificate, not 'wss:tcp:0:interface=127.0.0.1'",
    }
    for options, sentence in cases.items():
        with twistd(*LISTEN, *options, "--check-config", cwd=tmp_path) as server:
            assert server.line(SOON) == sentence
            assert server.wait(SOON) == 1
    with twistd(*OPTIONS, "--check-config", cwd=tmp_path) as server:
        assert (
            server.line(SOON)
            == "--tls-certificate must be left out where no --listen begins with wss:, not 'chain.pem'"
        )
        assert server.wait(SOON) == 1


def test_the_key_may_be_in_the_same_file_and_the_paths_are_those_of_the_start(authority, tmp_path):
    """Wherever twistd goes after it; here it goes to another folder at once."""
    (tmp_path / "elsewhere").mkdir()
    both = tmp_path / "both.pem"
    both.write_bytes((tmp_path / "key.pem").read_bytes() + (tmp_path / "chain.pem").read_bytes())
    (tmp_path / "heartbeat.toml").write_text(f'listen = ["{LISTEN[1]}"]\ntls-certificate = "both.pem"\n')
    command = [BIN / "twistd", "-n", "--pidfile=", "--rundir=elsewhere", "heartbeat", "--config", "heartbeat.toml"]
    with Program(command, cwd=tmp_path) as server:
        url = server.url()
        server.line_with("the certificate of", SOON)
        assert serial_seen(tmp_path, url) == authority.serial
        after = authority.issue()
        both.write_bytes((tmp_path / "key.pem").read_bytes() + (tmp_path / "chain.pem").read_bytes())
        hang_up(server)
        assert serial_seen(tmp_path, url) == after


def test_it_speaks_tls_1_2_and_1_3_and_http_1_1_and_nothing_older(authority, tmp_path):
    with twistd(*LISTEN, *OPTIONS, cwd=tmp_path) as server:
        url = server.url()
        for version, name in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
            with shaken(tmp_path, url, minimum_version=version, maximum_version=version) as line:
                assert line.version() == name
                # As browsers and curl ask for it; of a server that does not answer they take nothing.
                assert line.selected_alpn_protocol() == "http/1.1"
                line.sendall(b"GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert line.recv(12) == b"HTTP/1.1 426"
        if shutil.which("openssl") is None:
            pytest.skip("NOT TESTED: no openssl on this machine, so nobody has asked for an older TLS")
        # OpenSSL itself would not even ask for it, unless it is told to.
        port = url.split(":")[2].split("/")[0]
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-cipher", "ALL@SECLEVEL=0", "-tls1_1"]
        old = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SOON, check=False
        )
        assert "alert protocol version" in old.stderr
        assert "Cipher is (NONE)" in old.stdout


def test_handshakes_during_reloads_see_the_one_or_the_other_and_none_fails(authority, tmp_path):
    """Twenty reloads under two that connect without a pause."""
    issued, seen, wrong = {authority.serial}, set(), []
    with twistd(*LISTEN, *OPTIONS, cwd=tmp_path) as server:
        url = server.url()
        server.line_with("the certificate of", SOON)
        over = threading.Event()

        def connect():
            while not over.is_set():
                try:
                    seen.add(serial_seen(tmp_path, url))
                except (OSError, ssl.SSLError) as error:
                    wrong.append(error)

        crowd = [threading.Thread(target=connect) for _ in range(2)]
        for one in crowd:
            one.start()
        try:
            for _ in range(20):
                issued.add(authority.issue())
                hang_up(server)
        finally:
            over.set()
            for one in crowd:
                one.join(SOON)
    assert wrong == []
    assert seen <= issued
    assert len(seen) > 2


def test_tls_goes_over_whatever_the_endpoint_is(authority, tmp_path):
    """Over IPv6, and over a UNIX socket; and behind the PROXY protocol, which is spoken before TLS begins."""
    listen = ["--listen", "wss:unix:here.sock", "--listen", "wss:haproxy:tcp:0:interface=127.0.0.1"]
    with twistd(*listen, *OPTIONS, cwd=tmp_path) as server:
        server.line_with("listening on the UNIX socket here.sock", SOON)
        url = server.url()
        context = ssl.create_default_context(cafile=tmp_path / "root.pem")
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(SOON)
            line.connect(os.fspath(tmp_path / "here.sock"))
            with context.wrap_socket(line, server_hostname="localhost") as secured:
                assert int(secured.getpeercert()["serialNumber"], 16) == authority.serial
        port = int(url.split(":")[2].split("/")[0])
        with socket.create_connection(("127.0.0.1", port), SOON) as line:
            line.sendall(b"PROXY TCP4 198.51.100.7 127.0.0.1 40000 9000\r\n")
            with context.wrap_socket(line, server_hostname="localhost") as secured:
                secured.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert secured.recv(12) == b"HTTP/1.1 200"
        assert server.line_with("GET / 200", SOON).endswith(" from 198.51.100.7")


def test_without_a_certificate_sighup_ends_it_as_it_ends_any_other(tmp_path):
    """A terminal that is closed leaves no server behind."""
    with twistd(cwd=tmp_path) as server:
        server.url()
        server.signal(signal.SIGHUP)
        assert server.wait(SOON) == -signal.SIGHUP


def test_a_certificate_that_is_not_good_any_more_is_said_at_start(tmp_path):
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", not_after=trustme_time(-3600))
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "chain.pem")
    with twistd(*LISTEN, *OPTIONS, cwd=tmp_path) as server:
        assert server.line_with("is not good now: clients will refuse it", SOON)


def trustme_time(seconds):
    """So many seconds from now."""
    return datetime.fromtimestamp(time.time() + seconds, UTC)
