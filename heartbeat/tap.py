"""`twistd heartbeat`: the options, and the service they make. Leaves no file, thread or socket open."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar

from twisted.python import usage

from heartbeat import logs, workers
from heartbeat.auth import Authenticator
from heartbeat.certificate import ServerCertificate
from heartbeat.config import places_of, read
from heartbeat.core.errors import SettingError
from heartbeat.core.settings import BEATS, LEVEL0, Settings
from heartbeat.launched import Launched
from heartbeat.pulse import make_monotonic
from heartbeat.service import DEFAULT_LISTEN, MESSAGES, SECURED, HeartbeatService
from heartbeat.shared import Fleet
from heartbeat.sqlite import SqliteStore
from heartbeat.store import Store
from heartbeat.workers import Workers

__all__ = ["Options", "makeService"]


class _Number:
    """What turns the text given for an option into a number of its `kind`, or says which option was wrong."""

    def __init__(self, option: str, kind: type) -> None:
        self.kind = kind
        self._option = option

    def __call__(self, text: str) -> Any:
        try:
            return self.kind(text)
        except ValueError:
            words = "a whole number" if self.kind is int else "a number"
            raise ValueError(f"--{self._option} must be {words}, not {text!r}") from None


def _parameter(option: str, short: str | None, default: float | None, text: str, kind: type) -> list[Any]:
    return [option, short, default, text, _Number(option, kind)]


class Options(usage.Options):
    """The options of `twistd heartbeat`; `settings` and `listen` once they are parsed."""

    synopsis = "[options]"

    longdesc = (
        "A WebSocket heartbeat server: clients connect to /ws, send a small JSON ping every few seconds and are "
        "answered; both ends know within seconds, and without false alarms, whether the other is still there. "
        "Try it: twistd -n --pidfile= heartbeat, and in another shell: heartbeat-client ws://127.0.0.1:9000/ws"
    )

    #: Options of one text in which there may be several, with commas between.
    separated: ClassVar[tuple[str, ...]] = ("messages",)

    optParameters: ClassVar[list[list[Any]]] = [
        ["config", "c", None, "A file (TOML) of these options by their names; the command line wins over it."],
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
        _parameter(
            "sessions-bytes", None, 268_435_456, "What all sessions may keep, in bytes; an idle one: 4096.", int
        ),
        _parameter("groups-per-session", None, 100, "Groups that one session may be in.", int),
        _parameter("group-members", None, 5000, "Members of one group.", int),
        _parameter("max-message", None, 65_536, "The largest message taken, in bytes.", int),
        _parameter("handshake-timeout", None, 5.0, "Seconds that an opening handshake may take.", float),
        _parameter("grace", None, None, "Seconds that an absence goes unannounced. Default: 40.", float),
        _parameter("window", None, 120.0, "Seconds that the session of a client that is gone is kept.", float),
        _parameter("drain-after", None, 1.0, "When it stops: seconds until the first client is to be back.", float),
        _parameter("drain-rate", None, 500.0, "When it stops: clients a second that are asked to come back.", float),
        _parameter("drain-timeout", None, 10.0, "When it stops: seconds that handlers may take to finish.", float),
        [
            "store",
            None,
            None,
            "What keeps the sessions: memory; to survive a crash sqlite:PATH, or redis://HOST. Default: --cluster's.",
        ],
        [
            "cluster",
            None,
            None,
            "Be one of the servers of this redis://HOST: they count clients together, and have the sessions in common.",
        ],
        _parameter("workers", None, None, "Serve by so many processes. Needs --cluster. Default: by this one.", int),
        ["messages", "m", None, f"Application messages to serve, of {','.join(MESSAGES)}. Default: none."],
        ["level0", None, None, f"Pages that open no session: {' or '.join(LEVEL0)}. Default: allow."],
        ["ai-url", None, None, "An OpenAI-compatible endpoint for onaichat; its key is HEARTBEAT_AI_KEY."],
        ["ai-model", None, None, "The model to ask there."],
        ["tls-certificate", None, None, "A file (PEM) of the certificate and its chain, for --listen wss:tcp:9443."],
        ["tls-key", None, None, "Its private key (PEM). Default: in the same file. SIGHUP has both read again."],
        ["auth-jwt", None, None, "Let in who shows a token (JWT) signed by a key of this file (JWK Set, PEM, secret)."],
        ["auth-audience", None, None, "What the aud of a token must name. Default: a token must have none."],
        ["auth-issuer", None, None, "What the iss of a token must be. Default: anything."],
        ["log-format", None, "text", "How the log is written: text, or json, an object a line."],
        ["admin", None, None, "Be watched here, and not by clients: tcp:9001:interface=127.0.0.1. Default: nowhere."],
        ["admin-token", None, None, "A file with the token to kick and drain there, and to watch from elsewhere."],
        _parameter("trust-forwarded", None, 0, "How many proxies in front append to X-Forwarded-For.", int),
    ]

    optFlags: ClassVar[list[list[Any]]] = [
        ["check-config", None, "Say whether all options are right, and start nothing."],
        ["trust-client-ids", None, "Honour client ids that are only claimed, not from this machine alone."],
        ["no-fast-path", None, "Leave every frame and handshake to Autobahn: slower, the same answers."],
    ]

    compData = usage.Completions(optActions={"beats": usage.CompleteList(BEATS), "level0": usage.CompleteList(LEVEL0)})

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Twisted's
        # What the command line does not say a file may, so nothing is here by default until all is parsed.
        self.clear()
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
        """Judge all that was given, on the command line and in the file; all that is wrong is said, in sentences."""
        given = {name for name, value in self.items() if value != []}
        said, mistakes = read(self["config"], places_of(self)) if "config" in given else ({}, [])
        from_file = said.keys() - given
        self.update({name: said[name] for name in from_file})
        for name, default in self.defaults.items():
            self.setdefault(name, default)
        while (error := self._mistake()) is not None:
            name = _OPTION_OF.get(error.name, error.name.replace("_", "-"))
            where = f"{self['config']}: " if name in from_file else "--"
            mistakes.append(f"{where}{name} must be {error.bound}, not {error.value!r}")
            if not self._leave_out(name, error.value):
                break
        self._say(mistakes)

    def _say(self, mistakes: list[str]) -> None:
        """End here if there are any, or if to look for them was all that was asked for."""
        if len(mistakes) > 1:
            mistakes.insert(0, f"{len(mistakes)} mistakes")
        if self["check-config"]:
            if not mistakes:
                sys.stdout.write(f"{self['config'] or 'the command line'}: no mistakes\n")
            raise SystemExit("\n".join(mistakes) or 0)
        if mistakes:
            raise usage.UsageError("\n".join(mistakes))

    def _leave_out(self, name: str, value: Any) -> bool:
        """Go on without what was found to be wrong, to find what else is; whether that changed anything."""
        before, now = dict(self), self.get(name)
        if isinstance(now, list):
            self[name] = [text for text in now if text != value]
        elif name in self.separated and now:
            self[name] = ",".join(word for word in now.split(",") if word != value)
        else:
            for left in (name, *_LEANING.get(name, ())):
                self[left] = self.defaults.get(left)
            if name.startswith("tls-"):
                self["listen"] = [where for where in self["listen"] if not where.startswith(SECURED)]
        return before != dict(self)

    def _mistake(self, sockets: Sequence[int] = ()) -> SettingError | None:
        """The first thing that is wrong with these options."""
        try:
            self.settings = Settings(
                interval=self["interval"],
                beats=self["beats"],
                max_connections=self["max-connections"],
                connections_per_address=self["connections-per-address"],
                handshake_rate=self["handshake-rate"],
                message_rate=self["message-rate"],
                sessions_per_client=self["sessions-per-client"],
                sessions_bytes=self["sessions-bytes"],
                groups_per_session=self["groups-per-session"],
                group_members=self["group-members"],
                message_limit=self["max-message"],
                handshake_timeout=self["handshake-timeout"],
                grace=self["grace"],
                window=self["window"],
                drain_after=self["drain-after"],
                drain_rate=self["drain-rate"],
                drain_timeout=self["drain-timeout"],
                level0=self["level0"],
                trust_forwarded=self["trust-forwarded"],
                trust_client_ids=bool(self["trust-client-ids"]),
                fast_path=not self["no-fast-path"],
                origins=tuple(self["origin"]),
            )
            logs.judge(self["log-format"], self.parent or {})
            workers.judge(self)
            # Nothing is left open by this; a wrong endpoint or limit is said now, and not by a traceback later.
            self.service(sockets=sockets)
        except SettingError as error:
            return error
        return None

    def judge(self, sockets: Sequence[int]) -> None:
        """Judge all that is here, of whatever origin. Raises SettingError."""
        error = self._mistake(sockets)
        if error is not None:
            raise error

    def service(self, reactor: Any = None, sockets: Sequence[int] = ()) -> Launched:
        """The service of these options, on `sockets` that listen already, if there are any. Raises SettingError."""
        return Launched(
            self["listen"] or [DEFAULT_LISTEN],
            self.settings,
            store=self._store(),
            cluster=self._cluster(),
            authenticator=self.authenticator,
            certificate=self.certificate,
            messages=self["messages"].split(",") if self["messages"] else (),
            admin=self["admin"],
            admin_token=self["admin-token"],
            ai={"url": self["ai-url"], "model": self["ai-model"], "key": os.environ.get("HEARTBEAT_AI_KEY")},
            sockets=sockets,
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

    @cached_property
    def certificate(self) -> ServerCertificate | None:
        """What is shown over TLS. Raises SettingError."""
        path, key = self["tls-certificate"], self["tls-key"]
        if path is None:
            if key is not None:
                raise SettingError("tls_key", key, "left out where there is no --tls-certificate")
            return None
        if not any(where.startswith(SECURED) for where in (*self["listen"], self["admin"] or "")):
            raise SettingError("tls_certificate", path, f"left out where no --listen begins with {SECURED}")
        return ServerCertificate(path, key)

    def _store(self) -> Store | None:
        if self["store"] is None:
            return None if self["cluster"] is None else self._of_cluster("sessions", "FleetStore")
        kind, _, path = self["store"].partition(":")
        if kind == "sqlite" and path:
            return SqliteStore(path)
        if kind.lower() in ("redis", "rediss", "redis+unix", "redis+sentinel", "rediss+sentinel") and path:
            try:
                from heartbeat.cluster.store import RedisStore  # noqa: PLC0415  # only whoever asks for it needs it
            except ImportError as error:
                bound = f"memory or sqlite:PATH {_WITHOUT_REDIS} ({error})"
                raise SettingError("store", _without_credentials(self["store"]), bound) from None
            return RedisStore(self["store"])
        if self["store"] != "memory":
            raise SettingError("store", _without_credentials(self["store"]), "memory, sqlite:PATH or redis://HOST")
        return None

    def _cluster(self) -> Fleet | None:
        if self["cluster"] is None:
            return None
        fleet: Any = self._of_cluster("presence", "FleetPresence")
        if self["store"] is not None and fleet.address == getattr(self._store(), "address", None):
            # Whoever starts last has the store, and the sessions of all others end.
            bound = f"one that no other server has, and so not in the database of --cluster {fleet.url}"
            raise SettingError("store", _without_credentials(self["store"]), bound)
        return fleet  # type: ignore[no-any-return]  # found by its name

    def _of_cluster(self, module: str, name: str) -> Any:
        """What servers of a fleet have in common. Raises SettingError."""
        try:
            # Only whoever asks for it needs it.
            found = import_module(f"heartbeat.cluster.{module}")
        except ImportError as error:
            url = _without_credentials(self["cluster"])
            raise SettingError("cluster", url, f"left out {_WITHOUT_REDIS} ({error})") from None
        return getattr(found, name)(self["cluster"])


_WITHOUT_REDIS = "without the extra redis: pip install 'txheartbeat[redis]'"


def _without_credentials(url: str) -> str:
    scheme, slashes, rest = url.partition("://")
    user, _, rest = rest.rpartition("@")
    # What sentinels are told, and more, stands behind a question mark. A password that is not quoted may hold one, too.
    return scheme + slashes + ("..." if set("/?#") & set(user) else rest.partition("?")[0])


_OPTION_OF = {
    "message_limit": "max-message",
    "origins": "origin",
    "keyfile": "auth-jwt",
    "audience": "auth-audience",
    "issuer": "auth-issuer",
}

# Where the first is wrong, nothing can be said of those that lean on it.
_LEANING = {
    "auth-jwt": ("auth-audience", "auth-issuer"),
    "tls-certificate": ("tls-key",),
    "tls-key": ("tls-certificate",),
    "cluster": ("workers",),
}


def makeService(options: Options) -> HeartbeatService | Workers:
    """The service of these options. Called by twistd, before it forks and changes its directory."""
    from twisted.internet import reactor  # noqa: PLC0415  # twistd has installed it by now

    make_monotonic(reactor)
    service = options.service(reactor) if options["workers"] is None else Workers(options, reactor)
    if options["log-format"] == "json":
        service.launcher = options.parent
    return service
