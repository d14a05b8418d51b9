"""Whom a client trusts over TLS: the platform, one file, or anybody; and that whoever is trusted is who was called."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import idna
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto
from service_identity import VerificationError
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import Certificate, CertificateOptions, platformTrust, trustRootFromCertificates
from twisted.python.failure import Failure
from zope.interface import implementer

from heartbeat.core.errors import SettingError

__all__ = ["Verifying", "endpoint_of", "platform", "trust_anybody", "trust_file", "trusted_in"]

_BEGIN = b"-----BEGIN CERTIFICATE-----"


def endpoint_of(factory: Any, tls: Any) -> Any:
    """Where a client factory's URL leads; over TLS where it says so, as `tls` or the platform trusts."""
    host = factory.host.strip("[]")
    endpoint: Any = HostnameEndpoint(factory.reactor, host, factory.port)
    if not factory.isSecure:
        return endpoint
    trusting: Any = tls or Verifying(host, platform())
    return wrapClientTLS(trusting, endpoint)


@cache
def platform() -> SSL.Context:
    """Trust whom the platform trusts."""
    context: SSL.Context = CertificateOptions(trustRoot=platformTrust()).getContext()
    return context


def trust_file(host: str, path: str) -> Any:
    """Trust the certificates in a PEM file, for `host`. Raises SettingError when there are none."""
    return Verifying(host, CertificateOptions(trustRoot=trusted_in(path, "cacert")).getContext())


def trusted_in(path: str, setting: str, what: str = "") -> Any:
    """Twisted's trust root of what a PEM file holds. Raises SettingError, of this setting and `what` of it."""
    try:
        pem = Path(path).read_bytes()
        found = x509.load_pem_x509_certificates(pem) if _BEGIN in pem else []
        trusted = [Certificate.loadPEM(one.public_bytes(Encoding.PEM)) for one in found]
    except (OSError, ValueError, UnsupportedAlgorithm, SSL.Error, crypto.Error) as error:
        raise SettingError(setting, path, f"{what}a readable file of PEM certificates ({error})") from None
    if not trusted:
        raise SettingError(setting, path, f"{what}a file with at least one PEM certificate")
    if pem.count(_BEGIN) != len(trusted):
        # What is no whole block is passed over by the parser, and whoever is vouched for by it would be refused.
        raise SettingError(setting, path, f"{what}a readable file of PEM certificates (the last one is cut off)")
    return trustRootFromCertificates(trusted)


@implementer(IOpenSSLClientConnectionCreator)
class Verifying:
    """Speaks to whoever shows a certificate for `host` that this context trusts. Raises ValueError where none can be.

    As Twisted's `optionsForClientTLS`, but for two things: what is wrong with the context shows when it is made, and a
    certificate that cannot be understood is refused (Twisted 26.10 logs that, and goes on with whoever showed it).
    """

    def __init__(self, host: str, context: SSL.Context) -> None:
        self._context = context
        # Neither a zone nor the dot of the root is part of what a certificate is for (RFC 6066, section 3).
        host = host.partition("%")[0].removesuffix(".").lower()
        self._is_address = isIPAddress(host) or isIPv6Address(host)
        self._host = host if self._is_address else idna.encode(host).decode()

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """IOpenSSLClientConnectionCreator: one more connection."""
        connection = SSL.Connection(self._context, None)
        if not self._is_address:
            connection.set_tlsext_host_name(self._host.encode())
        waiting = [tlsProtocol]

        def verify(_: SSL.Connection, certificate: Any, __: int, depth: int, trusted: int) -> bool:
            if depth or not trusted:
                return bool(trusted)
            # The callback outlives the handshake: it is to hold nothing then.
            protocol = waiting.pop() if waiting else None
            try:
                self._verify(certificate.to_cryptography())
            except Exception as error:  # noqa: BLE001  # whatever cannot be said of a certificate, it is not for this host
                if protocol is not None:
                    is_said = isinstance(error, VerificationError)
                    protocol.failVerification(Failure(error if is_said else VerificationError(errors=[])))
                return False
            return True

        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return connection

    def _verify(self, certificate: x509.Certificate) -> None:
        if self._is_address:
            verify_certificate_ip_address(certificate, self._host)
        else:
            verify_certificate_hostname(certificate, self._host)


@implementer(IOpenSSLClientConnectionCreator)
class _Anybody:
    """Encrypts, and asks nobody who they are."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._context = CertificateOptions(verify=False).getContext()

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """IOpenSSLClientConnectionCreator: one more connection."""
        connection = SSL.Connection(self._context, None)
        connection.set_tlsext_host_name(self._host.encode("idna"))
        return connection


def trust_anybody(host: str) -> Any:
    """Verify nothing. For tests and for finding out what is wrong."""
    return _Anybody(host)
