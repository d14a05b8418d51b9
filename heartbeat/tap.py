"""`twistd heartbeat`: the options, and the service they make. Leaves no file, thread or socket open."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

from twisted.internet.error import CannotListenError
from twisted.python import usage

from heartbeat.auth import Authenticator
from heartbeat.core.errors import SettingError, StoreError
from heartbeat.core.settings import BEATS, LEVEL0, Settings
from heartbeat.service import DEFAULT_LISTEN, MESSAGES, HeartbeatService
from heartbeat.sqlite import SqliteStore
from heartbeat.ticker import make_monotonic

__all__ = ["Options", "makeService"]


def _number(option: str, kind: type) -> Callable[[str], Any]:
    """What turns the text given for `option` into a number of its kind, or says which option was wrong."""

    def coerce(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            words = "a whole number" if kind is int else "a number"
            raise ValueError(f"--{option} must be {words}, not {text!r}") from None

    return coerce


def _parameter(option: str, short: str | None, default: float | None, text: str, kind: type) -> list[Any]:
    return [option, short, default, text, _number(option, kind)]


class Options(usage.Options):
    """The options of `twistd heartbeat`; `settings` and `listen` once they are parsed."""

    synopsis = "[options]"

    longdesc = (
        "A WebSocket heartbeat server: clients connect to /ws, send a small JSON ping every few seconds and are "
        "answered; both ends know within seconds, and without false alarms, whether the other is still there. "
        "Try it: twistd -n --pidfile= heartbeat, and in another shell: heartbeat-client ws://127.0.0.1:9000/ws"
    )

    optParameters: ClassVar[list[list[Any]]] = [
        _parameter("interval", "i", 6.0, "Seconds between beats, unless a client wishes for others.", float),
        ["beats", "b", None, f"Who sends the pings, for all: {', '.join(BEATS)}. Default: as each client wishes."],
        _parameter(
            "max-connections", None, None, "Connections to serve. Default: what the open-file limit allows.", int
        ),
        _parameter(
            "connections-per-address",
            None,
            None,
            "Connections of one address. Default: 1024, or a quarter of all; any number of private ones.",
            int,
        ),
        _parameter(
            "handshake-rate",
            None,
            None,
            "Opening handshakes a second, an address a fifth. Default: 5000, and this machine's uncounted.",
            float,
        ),
        _parameter(
            "message-rate",
            None,
            None,
            "Messages a second from one connection. Default: 200, and this machine's uncounted.",
            float,
        ),
        _parameter("sessions-per-client", None, 100, "Sessions of one client id; of more, the longest left ends.", int),
        _parameter("groups-per-session", None, 100, "Groups that one session may be in.", int),
        _parameter("group-members", None, 5000, "Members of one group.", int),
        _parameter("max-message", None, 65_536, "The largest message taken, in bytes.", int),
        _parameter("handshake-timeout", None, 5.0, "Seconds that an opening handshake may take.", float),
        _parameter("grace", None, None, "Seconds that an absence goes unannounced. Default: 40.", float),
        _parameter("window", None, 120.0, "Seconds that the session of a client that is gone is kept.", float),
        ["store", None, "memory", "What keeps the sessions: memory, or sqlite:PATH to survive a crash."],
        ["messages", "m", None, f"Application messages to serve, of {','.join(MESSAGES)}. Default: none."],
        ["level0", None, None, f"Pages that open no session: {' or '.join(LEVEL0)}. Default: allow."],
        ["ai-url", None, None, "An OpenAI-compatible endpoint for onaichat; its key is HEARTBEAT_AI_KEY."],
        ["ai-model", None, None, "The model to ask there."],
        ["auth-jwt", None, None, "Let in who shows a token (JWT) signed by a key of this file (JWK Set, PEM, secret)."],
        ["auth-audience", None, None, "What the aud of a token must name. Default: a token must have none."],
        ["auth-issuer", None, None, "What the iss of a token must be. Default: anything."],
        _parameter("trust-forwarded", None, 0, "How many proxies in front append to X-Forwarded-For.", int),
    ]

    optFlags: ClassVar[list[list[Any]]] = [
        ["trust-client-ids", None, "Honour client ids that are only claimed, not from this machine alone."],
        ["no-fast-path", None, "Leave every frame and handshake to Autobahn: slower, the same answers."],
    ]

    compData = usage.Completions(optActions={"beats": usage.CompleteList(BEATS), "level0": usage.CompleteList(LEVEL0)})

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        self["listen"] = []
        self["origin"] = []
        self.settings = Settings()

    def opt_listen(self, description: str) -> None:
        """Listen here; may be given more than once [default: tcp:9000:interface=127.0.0.1, this machine only]."""
        self["listen"].append(description)

    def opt_origin(self, origin: str) -> None:
        """Serve pages of this origin too; null: of files, *: of all. May be given more than once."""
        self["origin"].append(origin)

    opt_l = opt_listen
    opt_o = opt_origin

    def parseArgs(self, *arguments: str) -> None:
        """Take no argument: what stands alone was meant for an option."""
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}; endpoints are given by --listen")

    def postOptions(self) -> None:
        """Judge all that was given, in one sentence."""
        try:
            self.settings = Settings(
                interval=self["interval"],
                beats=self["beats"],
                max_connections=self["max-connections"],
                connections_per_address=self["connections-per-address"],
                handshake_rate=self["handshake-rate"],
                message_rate=self["message-rate"],
                sessions_per_client=self["sessions-per-client"],
                groups_per_session=self["groups-per-session"],
                group_members=self["group-members"],
                message_limit=self["max-message"],
                handshake_timeout=self["handshake-timeout"],
                grace=self["grace"],
                window=self["window"],
                level0=self["level0"],
                trust_forwarded=self["trust-forwarded"],
                trust_client_ids=bool(self["trust-client-ids"]),
                fast_path=not self["no-fast-path"],
                origins=tuple(self["origin"]),
            )
            # Nothing is left open by this; a wrong endpoint or limit is said now, and not by a traceback later.
            self.service()
        except SettingError as error:
            name = _OPTION_OF.get(error.name, error.name.replace("_", "-"))
            raise usage.UsageError(f"--{name} must be {error.bound}, not {error.value!r}") from None

    def service(self, reactor: Any = None) -> HeartbeatService:
        """The service of these options. Raises SettingError."""
        return _Launched(
            self["listen"] or [DEFAULT_LISTEN],
            self.settings,
            store=self._store(),
            authenticator=self.authenticator,
            messages=self["messages"].split(",") if self["messages"] else (),
            ai={"url": self["ai-url"], "model": self["ai-model"], "key": os.environ.get("HEARTBEAT_AI_KEY")},
            reactor=reactor,
        )

    @cached_property
    def authenticator(self) -> Authenticator | None:
        """Who judges tokens. Raises SettingError."""
        if self["auth-jwt"] is None:
            for option in ("auth-audience", "auth-issuer"):
                if self[option] is not None:
                    raise SettingError(option, self[option], "left out where there is no --auth-jwt")
            return None
        from heartbeat.tokens import SignedTokens  # noqa: PLC0415  # only whoever asks for it needs what it needs

        return SignedTokens(self["auth-jwt"], audience=self["auth-audience"], issuer=self["auth-issuer"])

    def _store(self) -> SqliteStore | None:
        kind, _, path = self["store"].partition(":")
        if kind == "sqlite" and path:
            return SqliteStore(path)
        if self["store"] != "memory":
            raise SettingError("store", self["store"], "memory or sqlite:PATH")
        return None


# So many objects more than went, and the garbage collector looks through the youngest; Python's own number is 700.
_NEW_OBJECTS = 10_000

_OPTION_OF = {
    "message_limit": "max-message",
    "origins": "origin",
    "keyfile": "auth-jwt",
    "audience": "auth-audience",
    "issuer": "auth-issuer",
}


class _Launched(HeartbeatService):
    """The service where the process is ours."""

    def privilegedStartService(self) -> None:
        """Listen; what stands in the way is said in a sentence."""
        try:
            super().privilegedStartService()  # type: ignore[no-untyped-call]  # Twisted's
        except (CannotListenError, OSError, OverflowError, ValueError) as error:
            raise SystemExit(f"heartbeat: {error}") from None

    def startService(self) -> None:
        """Start, if the store can be used."""
        store = self.factory.heartbeat.sessions.store
        if isinstance(store, SqliteStore):
            try:
                store.check()
            except StoreError as error:
                raise SystemExit(f"heartbeat: {error}") from None
        super().startService()
        # What is there now stays. To look through it, and through all connections for every 700 objects that are new,
        # made the slowest handshakes of a storm wait two to three times as long (64 ms, now 21 to 31; November 2026).
        gc.collect()
        gc.freeze()
        gc.set_threshold(_NEW_OBJECTS)


def makeService(options: Options) -> HeartbeatService:
    """The service of these options. Called by twistd, before it forks and changes its directory."""
    from twisted.internet import reactor  # noqa: PLC0415  # twistd has installed it by now

    make_monotonic(reactor)
    return options.service(reactor)
