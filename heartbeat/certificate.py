"""The certificate that a server shows over TLS, which can be changed while it runs.

An `ssl:` endpoint of Twisted's reads its files once, for as long as the process lives; its `tls:` endpoint looks again
only when a name is asked for that it does not know. This one reads when it is told to, and what it has read is shown to
whoever connects after that: who is connected lives on. Files that cannot be used change nothing.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IStreamServerEndpoint
from twisted.internet.ssl import CertificateOptions, TLSVersion
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from heartbeat.core.errors import SettingError

__all__ = ["SecuredEndpoint", "ServerCertificate", "Unusable", "shown_by"]

_log = Logger()

_BEGIN = b"-----BEGIN CERTIFICATE-----"
_KEY = re.compile(rb"-----BEGIN ((?:[A-Z]+ )*PRIVATE KEY)-----.+?-----END \1-----", re.DOTALL)


class Unusable(Exception):
    """What is wrong, and with which of the two files (`certificate`, `key`)."""

    def __init__(self, which: str, why: object) -> None:
        super().__init__(str(why).rstrip("."))
        self.which = which


@implementer(IOpenSSLServerConnectionCreator)
class ServerCertificate:
    """A server's certificate and key: two PEM files, of which the first has the chain behind the certificate.

    Without a `key` that is in the same file. TLS 1.2 and 1.3, and HTTP/1.1 by ALPN, as browsers ask for it. `clock`
    tells the seconds since 1970. Raises SettingError (`tls_certificate`, `tls_key`).
    """

    def __init__(
        self,
        certificate: str | os.PathLike[str],
        key: str | os.PathLike[str] | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(certificate).absolute()
        self.key_path = self.path if key is None else Path(key).absolute()
        self._clock = clock
        try:
            self._context, self._leaf = self._read()
        except Unusable as why:
            if why.which == "key" and key is not None:
                raise SettingError("tls_key", os.fspath(key), f"a PEM file of a private key ({why})") from None
            bound = f"a PEM file of a certificate and its chain{'' if key else ', and the key'} ({why})"
            raise SettingError("tls_certificate", os.fspath(certificate), bound) from None

    def serverConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        """IOpenSSLServerConnectionCreator: one more connection, which is shown what was read last."""
        return SSL.Connection(self._context, None)

    def tell(self) -> None:
        """Say in the log what is shown."""
        leaf = self._leaf
        now = datetime.fromtimestamp(self._clock(), UTC)
        _log.info(
            "the certificate of {path} is for {names}, serial number {serial}, good until {until}",
            path=self.path,
            names=", ".join(_names_of(leaf)),
            serial=f"{leaf.serial_number:x}",
            until=leaf.not_valid_after_utc.isoformat(),
        )
        if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
            _log.warn("the certificate of {path} is not good now: clients will refuse it", path=self.path)

    def reload(self) -> None:
        """Read the files again; where they cannot be used, what they held before is still shown."""
        try:
            self._context, self._leaf = self._read()
        except Unusable as why:
            path = self.key_path if why.which == "key" else self.path
            _log.error("{path} cannot be used ({why}); the certificate of before is still shown", path=path, why=why)
        else:
            self.tell()

    def _read(self) -> tuple[SSL.Context, x509.Certificate]:
        """A context with what is in the files, and the certificate. Raises Unusable."""
        leaf, chain, key = shown_by(self.path, self.key_path)
        try:
            return _context(leaf, chain, key), leaf
        except (SSL.Error, crypto.Error, TypeError, ValueError) as error:
            raise Unusable("certificate", f"OpenSSL does not take it: {error}") from None


def shown_by(certificate: Path, key: Path) -> tuple[x509.Certificate, list[x509.Certificate], Any]:
    """What two files hold, which may be the same: a certificate, its chain and the private key. Raises Unusable."""
    pem = _bytes_of("certificate", certificate)
    try:
        leaf, *chain = x509.load_pem_x509_certificates(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise Unusable("certificate", "it holds no certificate, or one that is broken") from None
    if pem.count(_BEGIN) != 1 + len(chain):
        # What is no whole block is passed over by the parser, and the other end would miss it.
        raise Unusable("certificate", "its chain is cut off")
    found = _KEY.search(_bytes_of("key", key))
    if found is None:
        raise Unusable("key", "it holds no private key")
    try:
        private: Any = load_pem_private_key(found[0], None)
    except TypeError:
        raise Unusable("key", "its key is encrypted, and nobody is here to be asked for the passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise Unusable("key", "its key is broken, or of an unknown kind") from None
    if private.public_key() != leaf.public_key():
        raise Unusable("key", "its key is not that of the first certificate")
    return leaf, chain, private


def _context(leaf: x509.Certificate, chain: list[x509.Certificate], key: Any) -> SSL.Context:
    # Its annotations know pyOpenSSL's own objects alone, which pyOpenSSL has deprecated.
    shown: dict[str, Any] = {"privateKey": key, "certificate": leaf, "extraCertChain": chain}
    options = CertificateOptions(
        **shown,
        raiseMinimumTo=TLSVersion.TLSv1_2,
        acceptableProtocols=[b"http/1.1"],
    )
    context: SSL.Context = options.getContext()
    return context


def _bytes_of(which: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unusable(which, error.strerror) from None


def _names_of(leaf: x509.Certificate) -> list[str]:
    """The names and addresses that it is for."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ["no name"]
    return [str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)] or ["no name"]


@implementer(IStreamServerEndpoint)
class SecuredEndpoint:
    """Another endpoint, over TLS: whatever it listens on, what is spoken there is encrypted by `certificate`."""

    def __init__(self, endpoint: Any, certificate: ServerCertificate) -> None:
        self._endpoint = endpoint
        self._certificate = certificate

    def listen(self, protocolFactory: Any) -> Deferred[Any]:
        """IStreamServerEndpoint: listen."""
        listening: Deferred[Any] = self._endpoint.listen(
            TLSMemoryBIOFactory(self._certificate, False, protocolFactory)  # type: ignore[arg-type]  # it is one
        )
        return listening
