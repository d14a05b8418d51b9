"""The server as a service: a factory, its listeners, and what it says at start.

For programs that have a service tree of their own, and for twistd. Opens nothing before it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from OpenSSL import SSL, crypto
from twisted.application import strports
from twisted.application.service import MultiService
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from heartbeat._version import __version__
from heartbeat.auth import Authenticator
from heartbeat.chat import Chat, GroupChat
from heartbeat.core.errors import CloseCode, SettingError
from heartbeat.core.settings import Settings
from heartbeat.factory import HeartbeatServerFactory
from heartbeat.limits import open_file_limit
from heartbeat.store import Store
from heartbeat.web.site import make_site

__all__ = ["DEFAULT_LISTEN", "MESSAGES", "PATHS", "HeartbeatService"]

#: Only this machine: a server for the world is asked for by name.
DEFAULT_LISTEN = "tcp:9000:interface=127.0.0.1"

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
    come in. A `factory` of one's own brings the last two with it. `ports` are the listening ports once it has
    started. Raises SettingError for a description, or a word, that is none.
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
        messages: Iterable[str] = (),
        ai: Mapping[str, Any] | None = None,
        reactor: Any = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415  # importing this module installs none
        self.settings = settings or Settings()
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
        """Listen, and say so; whoever comes before the store was read waits for that."""
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

    def stopService(self) -> Deferred[None]:
        """Stop listening, and close what is open (1012: come back later); fires when all is gone, and is kept."""
        stopped: Deferred[Any] = maybeDeferred(super().stopService)
        heartbeat = self.factory.heartbeat
        closed = heartbeat.close_all(CloseCode.RESTART, "the server stops")
        self.ports.clear()
        gone: Deferred[Any] = gatherResults([stopped, closed])
        return gone.addCallback(lambda _: heartbeat.sessions.stop()).addCallback(lambda _: None)

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
