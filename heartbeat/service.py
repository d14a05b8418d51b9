"""The server as a service: a factory, its listeners, and what it says at start.

For programs that have a service tree of their own, and for twistd. Opens nothing before it starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from OpenSSL import SSL, crypto
from twisted.application import strports
from twisted.application.service import MultiService, Service
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from heartbeat import outbox
from heartbeat._version import __version__
from heartbeat.auth import Authenticator
from heartbeat.certificate import SecuredEndpoint, ServerCertificate
from heartbeat.chat import Chat, GroupChat
from heartbeat.core.errors import SettingError
from heartbeat.core.settings import Settings
from heartbeat.factory import HeartbeatServerFactory
from heartbeat.inherited import Adopting, without_manager
from heartbeat.limits import open_file_limit
from heartbeat.shared import Fleet
from heartbeat.store import Store
from heartbeat.web.site import make_site

__all__ = ["DEFAULT_ADMIN", "DEFAULT_LISTEN", "MESSAGES", "PATHS", "SECURED", "HeartbeatService", "with_backlog"]

#: Only this machine: a server for the world is asked for by name.
DEFAULT_LISTEN = "tcp:9000:interface=127.0.0.1"

#: Where a server can be watched; it is not unless that is asked for.
DEFAULT_ADMIN = "tcp:9001:interface=127.0.0.1"

#: Before a description of any kind: the same over TLS, with the service's own certificate.
SECURED = "wss:"

#: Where a WebSocket is to be had.
PATHS = ("/ws", "/")


def _ai(factory: HeartbeatServerFactory, ai: Mapping[str, Any]) -> object:
    from heartbeat.ai import AI  # noqa: PLC0415  # only whoever asks for it needs what it needs

    return AI(factory, **ai)


#: The application messages that come with this package, none of which is served unless it is named.
MESSAGES: dict[str, Callable[[HeartbeatServerFactory, Mapping[str, Any]], object]] = {
    "chat": lambda factory, ai: Chat(factory),
    "group": lambda factory, ai: GroupChat(factory),
    "ai": _ai,
}


class HeartbeatService(MultiService):
    """A heartbeat server on one or more listeners, each an endpoint description of Twisted's (`tcp:9000`).

    `messages` names application messages of ours to serve (`chat`, `group`, `ai`), `ai` is what `heartbeat.ai.AI` is
    told (`url`, `model`, `key`), `store` keeps the sessions (default: in memory), `authenticator` says who may
    come in. A `factory` of one's own brings the last two with it. `cluster` counts its clients together with those of
    other servers (`heartbeat.cluster.presence.FleetPresence`). Where a description begins with `wss:`, what follows
    is listened on over TLS, with this `certificate`. `admin` describes a listener on which the server is
    watched (docs/watching.md), `admin_token` names a file with what whoever does something there has to show. `sockets`
    are descriptors that listen already, one for each description, which then says only what is spoken there. `ports`
    are the listening ports once it has started, `admin_ports` those to watch it. Raises SettingError for a description,
    or a word, that is none.
    """

    _log = Logger()

    def __init__(
        self,
        listen: str | Iterable[str] = DEFAULT_LISTEN,
        settings: Settings | None = None,
        *,
        factory: HeartbeatServerFactory | None = None,
        store: Store | None = None,
        authenticator: Authenticator | None = None,
        certificate: ServerCertificate | None = None,
        cluster: Fleet | None = None,
        messages: Iterable[str] = (),
        ai: Mapping[str, Any] | None = None,
        admin: str | None = None,
        admin_token: str | os.PathLike[str] | None = None,
        sockets: Sequence[int] = (),
        reactor: Any = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415  # importing this module installs none
        self.settings = settings or Settings()
        self.certificate = certificate
        served, ai = tuple(dict.fromkeys(messages)), ai or {}
        for word in served:
            if word not in MESSAGES:
                raise SettingError("messages", word, "some of " + ", ".join(MESSAGES))
        self.factory = factory or HeartbeatServerFactory(
            self.settings,
            # Without a model's URL every question is refused, so the page does not invite any.
            site=make_site(reactor, [word for word in served if word != "ai" or ai.get("url")]),
            paths=PATHS,
            store=store,
            authenticator=authenticator,
            reactor=reactor,
        )
        for word in served:
            MESSAGES[word](self.factory, ai)
        self.factory.heartbeat.fleet = cluster
        self.ports: list[Any] = []
        self.admin_ports: list[Any] = []
        # Those that listen for clients, and for whoever watches; and while it drains, those that are ending.
        self._listeners: list[Any] = []
        self._watching: list[Any] = []
        self._ending: list[Deferred[Any]] | None = None
        for at, description in enumerate((listen,) if isinstance(listen, str) else listen):
            described, on = with_backlog(description, self.settings.backlog), reactor
            if sockets:
                described, on = without_manager(described), Adopting(reactor, sockets[at])
            where = {"factory": self.factory, "listening": self._listening, "reactor": on, "tls": certificate}
            self._listeners.append(_listener("listen", description, described, **where))
        self._be_watched(admin, admin_token, reactor)
        for one in (*self._listeners, *self._watching):
            self.addService(one)  # type: ignore[no-untyped-call]  # Twisted's

    def _be_watched(self, description: str | None, token: str | os.PathLike[str] | None, reactor: Any) -> None:
        """Have this server watched where that is wanted, and by the others of its fleet in any case."""
        if description is None and token is not None:
            raise SettingError("admin_token", os.fspath(token), "left out where nothing is said of admin")
        in_fleet = self.factory.heartbeat.fleet is not None
        if description is None and not in_fleet:
            return
        from heartbeat import admin  # noqa: PLC0415  # only whoever asks for it needs it

        view = admin.View(self.factory)
        deeds = admin.Deeds(view, self.drain)
        fleet = admin.FleetView(view, deeds) if in_fleet else None
        if description is None:
            return
        shown = None if token is None else admin.read_token(token)
        near = admin.is_near(description)
        if shown is None and not near:
            bound = f"a listener for this machine alone, such as {DEFAULT_ADMIN}, where there is no admin_token"
            raise SettingError("admin", description, bound)
        site = admin.make_site(view, deeds, fleet, admin.Guard(shown, near=near), reactor)
        where = {"factory": site, "listening": self._watched, "reactor": reactor, "tls": self.certificate}
        self._watching.append(_listener("admin", description, description, **where))

    def startService(self) -> None:
        """Listen, and say so; whoever comes before the store was read waits for that."""
        self._ending = None
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
        self.factory.heartbeat.sessions.start().addCallbacks(self._has_sessions, self._has_none)
        if self.factory.heartbeat.fleet is not None:
            self.factory.heartbeat.fleet.start(self.factory.presence)

    def drain(self) -> Deferred[None]:
        """Stop listening, and close what is open (1012: come back later); fires when all is gone.

        Whose messages are being handled has `drain_timeout` for that. The service itself goes on, and can be watched.
        """
        if self._ending is None:
            self._ending = [maybeDeferred(one.stopService) for one in self._listeners]
            self.ports.clear()
        gone: Deferred[Any] = DeferredList([*self._ending, self.factory.heartbeat.drain()])
        return gone.addCallback(lambda _: None)

    def stopService(self) -> Deferred[None]:
        """Drain, and let go of the sessions, which are kept; fires when that is done. Until then it can be watched."""
        Service.stopService(self)
        others = [one for one in reversed(list(self)) if one not in (*self._listeners, *self._watching)]
        gone: Deferred[Any] = DeferredList([self.drain(), *(maybeDeferred(one.stopService) for one in others)])
        gone.addCallback(lambda _: self.factory.heartbeat.sessions.stop())
        gone.addBoth(self._leave_the_fleet)
        return gone.addBoth(self._stop_watching)

    def _leave_the_fleet(self, result: Any) -> Any:
        fleet = self.factory.heartbeat.fleet
        return result if fleet is None else fleet.stop().addCallback(lambda _: result)

    def _stop_watching(self, result: Any) -> Deferred[Any]:
        self.admin_ports.clear()
        stopped: Deferred[Any] = DeferredList([maybeDeferred(one.stopService) for one in self._watching])
        return stopped.addCallback(lambda _: result)

    def _has_sessions(self, _: None) -> None:
        sessions = self.factory.heartbeat.sessions
        self._log.info(
            "sessions are kept for {window:g} s, in {where}; {count} wait to be resumed",
            window=self.settings.window,
            where=getattr(sessions.store, "path", "memory"),
            count=sessions.detached,
        )

    def _has_none(self, failure: Failure) -> None:
        self._log.error("nobody is let in: {why}", why=failure.getErrorMessage())

    def _listening(self, port: Any, description: str) -> None:
        self.ports.append(port)
        # Who comes, before he is known, waits behind those who are there.
        outbox.read_last(port)
        self._log.info("listening on {where}", where=_where(port.getHost(), secure=_is_secure(description)))

    def _watched(self, port: Any, description: str) -> None:
        self.admin_ports.append(port)
        where = _where(port.getHost(), secure=_is_secure(description), is_site=True)
        self._log.info("watched at {where}", where=where)


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


def _listener(
    setting: str,
    description: str,
    described: str,
    *,
    factory: Any,
    listening: Any,
    reactor: Any,
    tls: ServerCertificate | None,
) -> Any:
    """The service that listens as is `described`, and tells of it. Raises SettingError, with the description given."""
    is_secured = described.startswith(SECURED)
    if is_secured and tls is None:
        raise SettingError(setting, description, f"without {SECURED} where there is no tls_certificate")
    try:
        listener = strports.service(described.removeprefix(SECURED), factory, reactor=reactor)
    except LookupError:
        bound = "a socket that a service manager has handed over, and it has not"
        raise SettingError(setting, description, bound) from None
    except (ValueError, TypeError, AttributeError, OSError, SSL.Error, crypto.Error) as error:
        default = DEFAULT_LISTEN if setting == "listen" else DEFAULT_ADMIN
        raise SettingError(setting, description, f"an endpoint description such as {default} ({error})") from None
    endpoint = listener.endpoint if tls is None or not is_secured else SecuredEndpoint(listener.endpoint, tls)
    listener.endpoint = _Told(endpoint, description, listening)
    return listener


def with_backlog(description: str, backlog: int) -> str:
    """The description with our listen queue, where it has none of its own and its kind knows one."""
    if _kind(description.removeprefix(SECURED)) not in ("tcp", "tcp6", "ssl", "unix") or ":backlog=" in description:
        return description
    return f"{description}:backlog={backlog}"


def _kind(description: str) -> str:
    return description.partition(":")[0]


def _is_secure(description: str) -> bool:
    return description.startswith(SECURED) or _kind(description) == "ssl"


def _where(address: Any, *, secure: bool, is_site: bool = False) -> str:
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
    page = f"{web}://{host}:{address.port}/"
    return f"{page if is_site else f'{scheme}://{host}:{address.port}/ws (page: {page})'}{note}"
