"""TLS on the way to Redis and to its sentinels: whom we trust, and what we show.

The files are read for each connection: what was renewed meanwhile is used at the next.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from OpenSSL import SSL, crypto
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import VerifyError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import PrivateCertificate, optionsForClientTLS, trustRootFromCertificates
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from heartbeat.core.errors import SettingError, StoreError
from heartbeat.tls import certificates_in

__all__ = ["Tls", "query_of"]


def query_of(text: str) -> dict[str, str]:
    """What stands behind the question mark of a URL. Raises ValueError."""
    return dict(parse_qsl(text, strict_parsing=True)) if text else {}


class Tls:
    """What a URL says of TLS, behind its question mark and by redis-py's names; takes that out of `asked`.

    `ssl_ca_certs` is a PEM file of certificates that are trusted, instead of the platform's; `ssl_certfile` what is
    shown to a Redis that wants to see something, with its key, unless that is in `ssl_keyfile`. Raises ValueError for
    a key without a certificate, SettingError, of this setting, for a file that does not hold what it should.
    """

    def __init__(self, asked: dict[str, str], setting: str) -> None:
        self._authorities = asked.pop("ssl_ca_certs", None)
        self._certificate, self._key = asked.pop("ssl_certfile", None), asked.pop("ssl_keyfile", None)
        if self._key is not None and self._certificate is None:
            raise ValueError(self._key)
        self._setting = setting
        # What is wrong is said at the start.
        self.options("localhost")

    def way(self, host: str, endpoint: Any, reactor: Any) -> Any:
        """The same way, to this host, over TLS."""
        return _Secured(self, host, endpoint, reactor)

    def options(self, host: str) -> Any:
        """Twisted's, for one connection. Raises SettingError."""
        trusted = None
        if self._authorities is not None:
            trusted = trustRootFromCertificates(self._certificates("ssl_ca_certs", self._authorities))
        if self._certificate is None:
            return optionsForClientTLS(host, trustRoot=trusted)
        # The first is ours, the others are those that vouch for it.
        others = [one.original for one in self._certificates("ssl_certfile", self._certificate)[1:]]
        return optionsForClientTLS(
            host,
            trustRoot=trusted,
            clientCertificate=self._shown(self._certificate, self._key or self._certificate),
            extraCertificateOptions={"extraCertChain": others},
        )

    def _certificates(self, name: str, path: str) -> list[Any]:
        return list(certificates_in(path, self._setting, f"a URL whose {name} is "))

    def _shown(self, certificate: str, key: str) -> Any:
        try:
            both = Path(certificate).read_bytes() + b"\n" + Path(key).read_bytes()
            shown: Any = PrivateCertificate.loadPEM(both)
        except VerifyError:
            bound = f"a URL whose key is that of the certificate in {certificate}"
            raise SettingError(self._setting, key, bound) from None
        except (OSError, ValueError, TypeError, SSL.Error, crypto.Error) as error:
            bound = f"a URL whose key is a readable one in PEM, without a passphrase ({error})"
            raise SettingError(self._setting, key, bound) from None
        return shown


@implementer(IStreamClientEndpoint)
class _Secured:
    """A way over TLS, as its files are when it is gone."""

    def __init__(self, tls: Tls, host: str, endpoint: Any, reactor: Any) -> None:
        self._tls = tls
        self._host = host
        self._endpoint = endpoint
        self._reactor = reactor

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """IStreamClientEndpoint: connect. Fails with StoreError where a file is not there any more."""
        try:
            options = self._tls.options(self._host)
        except SettingError as error:
            return fail(StoreError(str(error)))
        # As Twisted's `wrapClientTLS`, which in its older versions writes in the turns of the global reactor.
        secured = TLSMemoryBIOFactory(options, True, protocolFactory, clock=self._reactor)
        connected: Deferred[Any] = self._endpoint.connect(secured)
        return connected.addCallback(lambda protocol: protocol.wrappedProtocol)
