"""Whom a client trusts over `wss://`: the platform, one file, or anybody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import Certificate, CertificateOptions, optionsForClientTLS, trustRootFromCertificates
from zope.interface import implementer

from heartbeat.core.errors import SettingError

__all__ = ["certificates_in", "endpoint_of", "trust_anybody", "trust_file"]

_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


def endpoint_of(factory: Any, tls: Any) -> Any:
    """Where a client factory's URL leads; over TLS where it says so, as `tls` or the platform trusts."""
    host = factory.host.strip("[]")
    endpoint: Any = HostnameEndpoint(factory.reactor, host, factory.port)
    if not factory.isSecure:
        return endpoint
    return wrapClientTLS(tls or optionsForClientTLS(host), endpoint)


def trust_file(host: str, path: str) -> Any:
    """Trust the certificates in a PEM file, for `host`. Raises SettingError when there are none."""
    return optionsForClientTLS(host, trustRoot=trustRootFromCertificates(certificates_in(path, "cacert")))


def certificates_in(path: str, setting: str, what: str = "") -> list[Certificate]:
    """The certificates in a PEM file. Raises SettingError, of this setting and `what` of it, when there are none."""
    try:
        blocks = Path(path).read_bytes().split(_END)[:-1]
        certificates = [Certificate.loadPEM(block[block.index(_BEGIN) :] + _END) for block in blocks]
    except (OSError, ValueError, SSL.Error, crypto.Error) as error:
        raise SettingError(setting, path, f"{what}a readable file of PEM certificates ({error})") from None
    if not certificates:
        raise SettingError(setting, path, f"{what}a file with at least one PEM certificate")
    return certificates


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
