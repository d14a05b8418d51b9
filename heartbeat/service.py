"""The server as a service: a factory, its listeners, and what it says at start.

For programs that have a service tree of their own, and for twistd. Opens nothing before it starts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from OpenSSL import SSL, crypto
from twisted.application import strports
from twisted.application.service import MultiService
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger
from zope.interface import implementer

from heartbeat._version import __version__
from heartbeat.core.errors import CloseCode, SettingError
from heartbeat.core.settings import Settings
from heartbeat.factory import HeartbeatServerFactory
from heartbeat.limits import open_file_limit
from heartbeat.web.site import make_site

__all__ = ["DEFAULT_LISTEN", "PATHS", "HeartbeatService"]

#: Only this machine: a server for the world is asked for by name.
DEFAULT_LISTEN = "tcp:9000:interface=127.0.0.1"

#: Where a WebSocket is to be had.
PATHS = ("/ws", "/")


class HeartbeatService(MultiService):
    """A heartbeat server on one or more listeners, each an endpoint description of Twisted's (`tcp:9000`).

    `ports` are the listening ports once it has started. Raises SettingError for a description that is none.
    """

    _log = Logger()

    def __init__(
        self,
        listen: str | Iterable[str] = DEFAULT_LISTEN,
        settings: Settings | None = None,
        *,
        factory: HeartbeatServerFactory | None = None,
        reactor: Any = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415  # importing this module installs none
        self.settings = settings or Settings()
        self.factory = factory or HeartbeatServerFactory(
            self.settings, site=make_site(reactor), paths=PATHS, reactor=reactor
        )
        self.ports: list[Any] = []
        for description in (listen,) if isinstance(listen, str) else listen:
            self._add_listener(description, reactor)

    def _add_listener(self, description: str, reactor: Any) -> None:
        try:
            listener = strports.service(
                _with_backlog(description, self.settings.backlog), self.factory, reactor=reactor
            )
        except (ValueError, TypeError, OSError, IndexError, SSL.Error, crypto.Error) as error:
            bound = f"an endpoint description such as {DEFAULT_LISTEN} ({error})"
            raise SettingError("listen", description, bound) from None
        listener.endpoint = _Told(listener.endpoint, description, self._listening)
        self.addService(listener)  # type: ignore[no-untyped-call]  # Twisted's

    def startService(self) -> None:
        """Listen, and say so."""
        super().startService()  # type: ignore[no-untyped-call]  # Twisted's
        timing, beats = self.settings.timing(), self.settings.beats
        self._log.info(
            "txheartbeat {version}: beats {beats} every {interval:g} s",
            version=__version__,
            beats=f"by {beats}" if beats else "as each client wishes (by client unless it says otherwise)",
            interval=timing.interval,
        )
        self._log.info(
            "a dead peer is found within {pinging:.1f} s by a client that pings, within {ticking:.1f} s by a server"
            " that pings, within {watching:.1f} s by the end that watches; up to {patience:g} s later where data was"
            " queued before the ping; where a client asked for slower beats (up to {slowest:g} s), by the difference"
            " later",
            slowest=self.settings.interval_max,
            pinging=timing.pinging_bound,
            ticking=timing.pinging_bound + timing.tick,
            watching=timing.watching_bound,
            patience=timing.patience,
        )
        limit = open_file_limit()
        self._log.info(
            "room for {room} connections (open-file limit: {limit})",
            room="any number of" if self.factory.room is None else self.factory.room,
            limit="none" if limit is None else limit,
        )

    def stopService(self) -> Deferred[None]:
        """Stop listening, and close what is open (1012: come back later); fires when all is gone."""
        stopped: Deferred[Any] = maybeDeferred(super().stopService)
        closed = self.factory.heartbeat.close_all(CloseCode.RESTART, "the server stops")
        self.ports.clear()
        return gatherResults([stopped, closed]).addCallback(lambda _: None)

    def _listening(self, port: Any, description: str) -> None:
        self.ports.append(port)
        self._log.info("listening on {where}", where=_where(port.getHost(), secure=_kind(description) == "ssl"))


@implementer(IStreamServerEndpoint)
class _Told:
    """An endpoint that tells when it listens: with port 0, only the port knows its number."""

    def __init__(self, endpoint: Any, description: str, listening: Any) -> None:
        self._endpoint = endpoint
        self._description = description
        self._listening = listening

    def listen(self, protocolFactory: Any) -> Deferred[Any]:
        """IStreamServerEndpoint: listen."""
        deferred: Deferred[Any] = self._endpoint.listen(protocolFactory)

        def tell(port: Any) -> Any:
            self._listening(port, self._description)
            return port

        return deferred.addCallback(tell)


def _with_backlog(description: str, backlog: int) -> str:
    """The description with our listen queue, where it has none of its own and its kind knows one."""
    if _kind(description) not in ("tcp", "tcp6", "ssl", "unix") or ":backlog=" in description:
        return description
    return f"{description}:backlog={backlog}"


def _kind(description: str) -> str:
    return description.partition(":")[0]


def _where(address: Any, *, secure: bool) -> str:
    """Where a port listens, as somebody would type it."""
    if isinstance(address, UNIXAddress):
        name = address.name.decode(errors="replace") if isinstance(address.name, bytes) else address.name
        return f"the UNIX socket {name}"
    if not isinstance(address, IPv4Address | IPv6Address):
        return str(address)
    everywhere = address.host in ("0.0.0.0", "::")  # noqa: S104  # compared with, not bound to
    host = "localhost" if everywhere else address.host
    host = f"[{host}]" if ":" in host else host
    scheme, web = ("wss", "https") if secure else ("ws", "http")
    note = ", on every interface" if everywhere else ""
    return f"{scheme}://{host}:{address.port}/ws (page: {web}://{host}:{address.port}/){note}"
