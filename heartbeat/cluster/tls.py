"""TLS on the way to Redis and to its sentinels: whom we trust, and what we show.

The files are looked at for each connection: what was renewed meanwhile is used at the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from OpenSSL import SSL, crypto
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import CertificateOptions, platformTrust
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from heartbeat.certificate import Unusable, shown_by
from heartbeat.core.errors import SettingError, StoreError
from heartbeat.endings import reason_of
from heartbeat.tls import Verifying, platform, trusted_in

__all__ = ["Tls", "query_of", "unheard"]


def query_of(text: str) -> dict[str, str]:
    """What stands behind the question mark of a URL. Raises ValueError, also for what is said twice."""
    pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True) if text else []
    if len(dict(pairs)) != len(pairs):
        raise ValueError(text)
    return dict(pairs)


class Tls:
    """What a URL says of TLS, behind its question mark and by redis-py's names; takes that out of `asked`.

    `ssl_ca_certs` is a PEM file of certificates that are trusted, instead of the platform's; `ssl_certfile` what is
    shown to a Redis that wants to see something, with its key, unless that is in `ssl_keyfile`. `hosts` are those that
    the URL names. Raises ValueError for a key without a certificate, for a name without a file and for a host that no
    certificate can be for, SettingError, of this setting, for a file that does not hold what it should.
    """

    def __init__(self, asked: dict[str, str], setting: str, hosts: Iterable[str]) -> None:
        self._authorities = _file_of(asked, "ssl_ca_certs")
        self._certificate, self._key = _file_of(asked, "ssl_certfile"), _file_of(asked, "ssl_keyfile")
        if self._key is not None and self._certificate is None:
            raise ValueError(self._key)
        self._setting = setting
        # Of files that look like this; what the platform trusts is read once.
        self._seen: list[tuple[int, ...]] | None = None
        self._made: SSL.Context | None = None
        # What is wrong is said at the start.
        for host in hosts:
            self.options(host)

    def way(self, host: str, endpoint: Any, reactor: Any) -> Any:
        """The same way, to this host, over TLS."""
        return _Secured(self, host, endpoint, reactor)

    def options(self, host: str) -> Verifying:
        """For one connection. Raises SettingError, and ValueError for the host."""
        return Verifying(host, self._context())

    def _context(self) -> SSL.Context:
        files = [path for path in (self._authorities, self._certificate, self._key) if path is not None]
        if not files:
            return platform()
        seen = [_looks_of(path) for path in files]
        if self._made is None or seen != self._seen:
            self._made, self._seen = self._make(), seen
        return self._made

    def _make(self) -> SSL.Context:
        asked: dict[str, Any] = {}
        if self._authorities is None:
            asked["trustRoot"] = platformTrust()
        else:
            asked["trustRoot"] = trusted_in(str(self._authorities), self._setting, "a URL whose ssl_ca_certs is ")
        if self._certificate is None:
            made: SSL.Context = CertificateOptions(**asked).getContext()
            return made
        key = self._key or self._certificate
        try:
            leaf, chain, private = shown_by(self._certificate, key)
            asked |= {"privateKey": private, "certificate": leaf, "extraCertChain": chain}
            made = CertificateOptions(**asked).getContext()
        except Unusable as why:
            path, name = (key, "key") if why.which == "key" else (self._certificate, "ssl_certfile")
            bound = f"a URL whose {name} is usable ({why})"
            raise SettingError(self._setting, str(path), bound) from None
        except (SSL.Error, crypto.Error, ValueError, TypeError) as error:
            bound = f"a URL whose ssl_certfile is one that OpenSSL takes ({reason_of(Failure(error))})"
            raise SettingError(self._setting, str(self._certificate), bound) from None
        return made


def unheard(reason: Failure) -> Failure:
    """Why a connection over TLS is gone that had not brought an answer yet.

    With TLS 1.3 ours is done before the other side looks at the certificate. What we say meanwhile it resets the
    connection for, and then its alert, which would say more, may never be read.
    """
    if reason.check(ConnectionLost) is None:
        return reason
    return Failure(StoreError("the connection was cut, as by one that is not shown the ssl_certfile that it wants"))


def _file_of(asked: dict[str, str], name: str) -> Path | None:
    path = asked.pop(name, None)
    if path is None:
        return None
    if not path:
        raise ValueError(name)
    # As it was meant when it was said, wherever the process goes.
    return Path(path).absolute()


def _looks_of(path: Path) -> tuple[int, ...]:
    try:
        looks = path.stat()
    except OSError:
        # Whoever reads it says why.
        return ()
    return looks.st_mtime_ns, looks.st_size, looks.st_ino


@implementer(IStreamClientEndpoint)
class _Secured:
    """A way over TLS, as its files are when it is gone."""

    def __init__(self, tls: Tls, host: str, endpoint: Any, reactor: Any) -> None:
        self._tls = tls
        self._host = host
        self._endpoint = endpoint
        self._reactor = reactor

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """IStreamClientEndpoint: connect. Fails with StoreError where a file is not what it was."""
        try:
            options: Any = self._tls.options(self._host)
        except SettingError as error:
            return fail(StoreError(str(error)))
        except ValueError as error:
            return fail(StoreError(f"no certificate can be for {self._host} ({error})"))
        # As Twisted's `wrapClientTLS`, which in its older versions writes in the turns of the global reactor.
        secured = TLSMemoryBIOFactory(options, True, protocolFactory, clock=self._reactor)
        connected: Deferred[Any] = self._endpoint.connect(secured)
        return connected.addCallback(lambda protocol: protocol.wrappedProtocol)
