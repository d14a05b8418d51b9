"""What all connections of one factory have in common: settings, the tick, the sessions, the registered types.

Made when the first connection needs it, for factories of any class. Knows which connections there are, and
lets go of each when it is gone.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from typing import Any, Protocol, Self

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from heartbeat.admission import Admission
from heartbeat.arrivals import Arrivals
from heartbeat.channel import Channel
from heartbeat.cluster.gather import Gathered
from heartbeat.core.errors import Unconfirmed
from heartbeat.core.presence import Presence, Standing
from heartbeat.core.settings import Settings
from heartbeat.draining import Draining
from heartbeat.refusals import Refusals
from heartbeat.register import ServerSessions
from heartbeat.roaming import RoamingSessions
from heartbeat.sessions import Sessions
from heartbeat.store import SharedStore
from heartbeat.tally import Tally
from heartbeat.ticker import Ticker

__all__ = ["ClientShared", "Fleet", "Handler", "ServerShared", "Shared"]

#: Takes the protocol and the message of a registered type.
Handler = Callable[[Any, dict[str, Any]], object]

_ATTRIBUTE = "_heartbeat_shared"
# Only to spread a crowd, so whoever guesses it gains nothing.
_chance = random.Random()  # noqa: S311  # as said


class Fleet(Protocol):
    """Servers that count their clients together.

    `counts` are three numbers: distinct client ids that are active, distinct client ids that are known, connections.
    They are as they were last heard while it is not up. `nodes` is how many servers there are, `node` the name of this
    one. What the servers ask each other is a word, and a dict of what belongs to it; `answering` is called with what
    this one is asked.
    """

    node: str
    nodes: int
    answering: Callable[[str, dict[str, Any]], Any]

    @property
    def is_up(self) -> bool:
        """Whether what is counted is so now."""
        ...

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many there are on all servers."""
        ...

    def ask(self, word: str, about: dict[str, Any]) -> Deferred[Gathered]:
        """Ask all servers, this one too; fires in a few seconds at most."""
        ...

    def ask_one(self, node: str, word: str, about: dict[str, Any]) -> Deferred[Gathered]:
        """Ask this server."""
        ...

    def start(self, presence: Presence) -> None:
        """Have this register counted with the others'."""
        ...

    def stop(self) -> Deferred[None]:
        """Leave; fires when that is done."""
        ...


class Shared:
    """The common part of either end."""

    _log = Logger()

    def __init__(self, factory: Any, settings: Settings) -> None:
        self.factory = factory
        self.settings = settings
        timing = settings.timing(settings.interval_max)
        #: Seconds after which the kernel drops a connection by itself: the bound by which we judge ourselves, with all
        #: the patience for bytes of our own, and some more.
        self.silence_bound = max(timing.pinging_bound, timing.watching_bound) + 1.5 * timing.patience
        self.ticker = Ticker(factory.reactor, settings.tick, on_tick=self._ticked, on_wake=self._woke)
        self.handlers: dict[str, Handler] = {}
        self.sessions = self._make_sessions()
        #: The connections there are.
        self.edges: set[Any] = set()

    @classmethod
    def of(cls, factory: Any) -> Self:
        """That of `factory`, made on demand from its `heartbeat_settings`, or from the defaults."""
        shared: Self | None = factory.__dict__.get(_ATTRIBUTE)
        if shared is None:
            settings = getattr(factory, "heartbeat_settings", None) or Settings()
            shared = cls(factory, settings)
            setattr(factory, _ATTRIBUTE, shared)
        return shared

    def one_is_gone(self) -> None:
        """A connection is gone; after the last of them nothing is owed to anybody."""
        if not self.edges:
            self.sessions.rest()

    def _make_sessions(self) -> Sessions:
        return Sessions(self.settings, self.ticker, getattr(self.factory, "heartbeat_store", None))

    def _ticked(self, now: float) -> None:
        """A tick has passed."""
        self.sessions.ticked(now)

    def _woke(self, now: float) -> None:
        """The machine has slept."""


class ServerShared(Shared):
    """A server's: the register besides, and the announcements of who joined and who left."""

    sessions: ServerSessions

    def __init__(self, factory: Any, settings: Settings) -> None:
        # The settings have filled in what was left open.
        self.presence = Presence(settings.grace or 0.0, settings.grace_away or 0.0)
        super().__init__(factory, settings)
        #: What was refused, by the reason.
        self.refusals = Refusals()
        self.arrivals = Arrivals(settings, getattr(factory, "room", None), self.refusals)
        self.admission = Admission(self.sessions, getattr(factory, "heartbeat_authenticator", None))
        #: The servers among which this one counts its clients, if there are any.
        self.fleet: Fleet | None = None
        #: Connections without a session by their client ids, where somebody writes to clients by name.
        self.plain: dict[str, dict[Any, None]] | None = None
        #: Called with its edge when a connection is gone.
        self.gone: list[Callable[[Any], object]] = []
        #: What is counted for whoever watches the server.
        self.tally = Tally()
        self.gone.append(self.tally.gone)
        #: Called when the server stops.
        self.stopped: list[Callable[[], object]] = []
        self.sessions.started.append(self.await_absent)
        # Whoever it came with may be gone by now, and nobody else be here.
        self.sessions.came.append(lambda channel: self.await_absent())
        self.sessions.ended.append(self._session_ended)
        #: While the server is on its way out; and who waits until all are gone.
        self.draining: Draining | None = None
        self._drained: list[Deferred[None]] = []
        self._awaiting = False
        self._stopped = False

    @staticmethod
    def new_client_id() -> str:
        """A client id of our own making, which nobody may claim."""
        return "c-" + secrets.token_hex(8)

    @staticmethod
    def spread() -> float:
        """A number from [0, 1) by which a first ping is put off."""
        return _chance.random()

    def joined(self, client_id: str) -> None:
        """Announce that a client is present now."""
        self._log.debug("{client_id} joined", client_id=client_id)
        self.announce("clientJoined", client_id)

    def left(self, client_id: str) -> None:
        """Announce that a client is gone."""
        self._log.debug("{client_id} left", client_id=client_id)
        self.announce("clientLeft", client_id)

    def one_is_gone(self) -> None:
        """A connection is gone: while anybody's absence is yet to be announced, the tick goes on."""
        super().one_is_gone()
        if not self.edges:
            waiting, self._drained = self._drained, []
            for drained in waiting:
                drained.callback(None)
        self.await_absent()

    def await_absent(self) -> None:
        """Have the tick go on while anybody may come back."""
        if not self._awaiting and not self._stopped and self._are_absent():
            self._awaiting = True
            self.ticker.enter()

    @property
    def plain_pages(self) -> str:
        """What becomes of pages that open no session: `allow`, `refuse`, or `judge` where somebody is to be asked."""
        asks = self.admission.authenticator is not None
        level0 = self.settings.level0 or ("refuse" if asks else "allow")
        return "judge" if asks and level0 == "allow" else level0

    def drain(self) -> Deferred[None]:
        """Ask everybody to come back a little later, and close; fires when all are gone.

        That is when no messages are being handled any more, after `drain_timeout` and `close_timeout` at the latest.
        """
        drained: Deferred[None] = Deferred()
        self._drained.append(drained)
        self.sessions.flush()
        if self.draining is None:
            self.draining = Draining(self.settings, self.edges, self.ticker.now())
        self.one_is_gone()
        return drained

    def start(self) -> None:
        """The server starts, perhaps not for the first time."""
        self._stopped = False
        self.draining = None

    def stop(self) -> None:
        """The server stops: nobody waits for absent clients any more, nor for those yet to close."""
        self._stopped = True
        for stopped in self.stopped:
            stopped()
        self._rest()

    def _rest(self) -> None:
        """Nobody's absence is yet to be announced."""
        if self._awaiting:
            self._awaiting = False
            self.ticker.leave()

    def _session_ended(self, channel: Channel, error: Unconfirmed) -> None:
        if error.messages:
            self.announce("sessionLost", channel.session.client_id, error)

    def announce(self, hook: str, *what: object) -> None:
        """Call a hook of the factory's, if it has one of this name."""
        announce = getattr(self.factory, hook, None)
        if announce is None:
            return
        try:
            announce(*what)
        except Exception:  # noqa: BLE001  # a host's hook may raise anything, and the tick must go on
            self._log.failure("{hook} failed", hook=hook)

    def _make_sessions(self) -> Sessions:
        store = getattr(self.factory, "heartbeat_store", None)
        if isinstance(store, SharedStore):
            return RoamingSessions(self.settings, self.ticker, self.presence, store=store)
        return ServerSessions(self.settings, self.ticker, self.presence, store=store)

    def _ticked(self, now: float) -> None:
        super()._ticked(now)
        self.tally.ticked(self.ticker.pulse.late)
        self.refusals.ticked(now)
        if self.draining is not None:
            self.draining.ticked(now)
        for client_id in self.presence.expire(now):
            self.left(client_id)
        if not self._are_absent():
            self._rest()

    def _are_absent(self) -> bool:
        return bool(self.presence.count(Standing.DETACHED) or self.sessions.detached)


class ClientShared(Shared):
    """A client's. Its connections hear when the machine has slept."""

    def _woke(self, now: float) -> None:
        for edge in tuple(self.edges):
            edge.woke(now)
