"""Who is alive over a fleet: each server tells who came, who went and who is active, and hears how many all have.

A server (a node) has a lease in Redis, by Redis' own time, which it renews with every call; whoever lives sweeps what
is left of one whose lease has ended. Written is how things are, when they change, never a heartbeat; what changed in
one turn of the reactor goes in one call, and one call at a time is under way. So what waits while Redis is away is no
more than the names of those of whom something changed. Where a server was given up meanwhile, or Redis has lost its
memory, everything is told anew.

What is told to clients is the number that are active elsewhere, as last heard, and our own as it is now.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from heartbeat.cluster.gather import Gathered, Gatherer
from heartbeat.cluster.redis import Redis
from heartbeat.cluster.subscription import Subscription
from heartbeat.core.errors import StoreError
from heartbeat.core.presence import Presence, Standing

__all__ = ["Counts", "FleetPresence"]

_log = Logger()

# Seconds between calls of a server of which nothing changes. A lease holds three times as long.
_REFRESH = 5.0
# The same while it is not told of what others change.
_DEAF = 1.0
# Seconds from an answer to the next call, where there is always something to tell.
_GAP = 0.02
# Seconds between two words to all that something has changed, whoever says them.
_PAUSE = 0.2
# Client ids that one call tells of at most, and as many that it sweeps: Redis does one call at a time.
_SLICE = 500
# Changes beyond that, and beyond twice of all clients, are no longer kept one by one.
_CHANGES = 10_000
# Seconds until a Redis that could not be reached is tried again.
_AGAIN = 1.0

_BEGIN, _GO_ON, _LEAVE = "begin", "go on", "leave"


class Counts(NamedTuple):
    """How many there are: distinct client ids that are active, distinct client ids that are known, connections."""

    clients: int
    known: int
    connections: int


class FleetPresence:
    """One server's part in a fleet that counts its clients together, by the Redis at `url`.

    `refresh` is how often it calls where nothing changes, in seconds; within three times that the clients of a server
    that died are counted no more. Raises SettingError for a URL that is none.
    """

    def __init__(
        self, url: str, *, refresh: float = _REFRESH, prefix: str = "heartbeat:fleet:", reactor: Any = None
    ) -> None:
        self._reactor: Any = reactor
        self._redis = Redis(url, prefix=prefix, reactor=reactor, setting="cluster", away=self._breaks)
        self.url = self._redis.url
        #: Where that is, and which database.
        self.address = self._redis.address
        #: The name of this server in the fleet.
        self.node = secrets.token_hex(8)
        #: Servers in the fleet, as last heard.
        self.nodes = 0
        self._refresh = refresh
        # Channels are common to all databases.
        self._channel = f"{prefix}changed@{self._redis.database}"
        name = f"{prefix}ask"
        self._gatherer = Gatherer(self.node, name, self._redis.database, self._publish, self._redis_time)
        channels = {self._channel: self._heard, **self._gatherer.channels}
        self._subscription = Subscription(self._redis, channels, hears_again=self._hears)
        self._presence: Presence | None = None
        self._elsewhere = Counts(0, 0, 0)
        self._is_open = False
        self._is_away = self._was_counted = False
        self._timer: Any = None
        # Those of whom something is yet to be told; of these the first so many, before all is told that there is.
        self._changes: dict[str, None] = {}
        self._untold = 0
        self._number = 0
        self._mode = _BEGIN
        self._is_counted = False
        self._is_calling = False
        # By how much Redis' clock is ahead of the reactor's, in milliseconds.
        self._ahead = 0
        # What the counts are as of, and what was heard of since the last call began.
        self._version = b""
        self._wanted: bytes | None = None

    # What is known.

    @property
    def is_up(self) -> bool:
        """Whether what is counted is so now, and not as it was when Redis went away."""
        return self._is_counted and not self._is_away

    @property
    def counts(self) -> Counts:
        """How many there are on all servers: elsewhere as last heard, here as it is."""
        presence, there = self._presence, self._elsewhere
        if presence is None:
            return there
        own = Counts(presence.active, presence.known, presence.connections)
        return Counts(*(mine + others for mine, others in zip(own, there, strict=True)))

    # What the servers ask each other.

    @property
    def answering(self) -> Callable[[str, dict[str, Any]], Any]:
        """Fleet: what this server is asked by."""
        return self._gatherer.answering

    @answering.setter
    def answering(self, answering: Callable[[str, dict[str, Any]], Any]) -> None:
        self._gatherer.answering = answering

    def ask(self, word: str, about: dict[str, Any]) -> Deferred[Gathered]:
        """Fleet: ask all servers; only ourselves while Redis is away."""
        return self._gatherer.ask(word, about, nodes=self.nodes, is_up=self.is_up, reactor=self._reactor)

    def ask_one(self, node: str, word: str, about: dict[str, Any]) -> Deferred[Gathered]:
        """Fleet: ask this server."""
        return self._gatherer.ask_one(node, word, about, is_up=self.is_up, reactor=self._reactor)

    def _publish(self, channel: str, said: bytes, until: int | None) -> Deferred[int]:
        return self._redis.read("publish", channel, said, "" if until is None else until)

    def _redis_time(self) -> int:
        """What Redis' time is by now, in milliseconds, by what it was with its last answer."""
        now: float = self._reactor.seconds()
        return round(1000 * now) + self._ahead

    # Its life.

    def start(self, presence: Presence) -> None:
        """Have this register counted with the fleet. Redis may be away; then that is said, and tried again."""
        if self._reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415  # nothing before the start installs one

            self._reactor = reactor
        self._presence = presence
        self._changes.clear()
        self._mode = _BEGIN
        self._is_counted = self._is_away = self._was_counted = self._is_calling = False
        presence.changed = self._changed
        self._connect()

    def stop(self) -> Deferred[None]:
        """Leave the fleet, as long as Redis answers; fires when that is done."""
        presence, self._presence = self._presence, None
        if presence is None:
            return succeed(None)
        presence.changed = None
        self._is_counted = False
        self._cancel_timer()
        self._gatherer.stop()
        if self._is_open:
            self._is_open = False
            self._call(_LEAVE, 0, []).addErrback(_not_any_more)
        gone: Deferred[Any] = DeferredList([self._subscription.stop(), self._redis.stop()])
        return gone.addCallback(lambda _: None)

    def _connect(self) -> None:
        self._timer = None
        self._redis.start().addCallbacks(self._connected, self._unreachable)

    def _connected(self, _: None) -> None:
        if self._presence is not None:
            self._is_open = True
            self._subscription.start(self._reactor)
            self._soon()

    def _unreachable(self, failure: Failure) -> None:
        if self._presence is not None:
            self._went_away(failure.getErrorMessage())
            self._timer = self._reactor.callLater(_AGAIN, self._connect)

    def _breaks(self, why: str) -> None:
        self._went_away(f"the cluster {self.url} is away: {why}")

    def _went_away(self, why: str) -> None:
        if not self._is_away:
            self._is_away = True
            _log.warn("{why}; the clients of other servers are counted as they last were", why=why)

    # What is told.

    def _changed(self, client_id: str) -> None:
        """Something has changed of this client, or of his connections."""
        presence = self._presence
        if presence is None or self._mode is _BEGIN:
            # Then all will be told of.
            return
        if not self._changes:
            self._soon()
        changes = self._changes
        changes[client_id] = None
        if len(changes) > _CHANGES and len(changes) > 2 * presence.known:
            self._begin()

    def _begin(self) -> None:
        """Have all be told anew."""
        self._mode = _BEGIN
        self._is_counted = False
        self._changes.clear()

    def _soon(self, delay: float = 0.0) -> None:
        """Call in `delay` seconds at the latest; at once is after this turn of the reactor."""
        if not self._is_open or self._is_calling:
            # When that call is answered there is another look at what is to be told.
            return
        if self._timer is not None:
            if self._timer.getTime() <= self._reactor.seconds() + delay:
                return
            self._timer.cancel()
        self._timer = self._reactor.callLater(delay, self._tell)

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _tell(self) -> None:
        """Call Redis with what has changed; the next call is when this one is answered."""
        self._timer = None
        presence, mode = self._presence, self._mode
        if presence is None:
            return
        if mode is _BEGIN:
            self._mode = _GO_ON
            self._changes = dict.fromkeys(presence.client_ids())
            self._untold = len(self._changes)
        names = list(islice(self._changes, _SLICE))
        arguments: list[str | bytes | int] = []
        for name in names:
            del self._changes[name]
            # As the store has them: a name of whatever kind is a name.
            arguments += [name.encode("utf-8", "surrogatepass"), _rank(presence.standing_of(name))]
        self._untold = max(0, self._untold - len(names))
        self._is_calling = True
        self._wanted = None
        self._subscription.look(self._refresh)
        self._call(mode, presence.connections, arguments).addCallbacks(self._answered, self._refused)

    def _call(self, mode: str, connections: int, arguments: list[str | bytes | int]) -> Deferred[Any]:
        self._number += 1
        lease, pause = round(3000 * self._refresh), round(1000 * _PAUSE)
        about = (self.node, mode, self._number, lease, connections, self._channel, pause, _SLICE)
        return self._redis.read("call", *about, *arguments)

    # What is heard.

    def _hears(self) -> None:
        """What is published is heard again: something was, perhaps."""
        self._heard(b"?")

    def _heard(self, version: bytes) -> None:
        """Something was changed by somebody; a call that began before may not know of it."""
        if version != self._version:
            self._wanted = version
            self._soon()

    def _answered(self, reply: list[int]) -> None:
        self._is_calling = False
        if self._presence is None:
            return
        if not reply:
            self._begin()
            self._soon()
            return
        version, told, self.nodes, dying, next_end, *counts, now = reply
        self._ahead = now - round(1000 * self._reactor.seconds())
        self._version = b"%d" % version
        # Until all have been told anew, and what was left of us before is swept, we are not what we are counted as.
        if self._is_counted or (self._mode is _GO_ON and not self._untold and not dying):
            self._elsewhere = Counts(*(all_ - own for all_, own in zip(counts[:3], counts[3:], strict=True)))
            self._presence.counted_elsewhere(self._elsewhere.clients)
            self._is_there()
        if self._mode is _BEGIN or self._untold or dying or len(self._changes) >= _SLICE:
            self._soon()
        elif self._changes or self._wanted not in (None, self._version):
            self._soon(_GAP)
        elif told != version:
            self._soon(_PAUSE)
        else:
            quiet = self._refresh if self._subscription.is_up else min(self._refresh, _DEAF)
            # A millisecond after the next lease has ended, unless that is renewed.
            self._soon(min(quiet, (next_end + 1) / 1000))

    def _refused(self, failure: Failure) -> None:
        self._is_calling = False
        if self._presence is not None:
            self._breaks(failure.getErrorMessage())
            self._begin()
            self._soon(_AGAIN)

    def _is_there(self) -> None:
        was_away, self._is_away = self._is_away, False
        if not self._was_counted:
            self._was_counted = True
            sentence = "clients are counted with those of {others} other server(s), by {url}"
            _log.info(sentence, others=self.nodes - 1, url=self.url)
        elif was_away:
            _log.info("the cluster {url} is there again", url=self.url)
        self._is_counted = True


def _rank(standing: Standing | None) -> int:
    """0 for a client that is not known, 2 for one that is active."""
    if standing is None:
        return 0
    return 2 if standing is Standing.ACTIVE else 1


def _not_any_more(failure: Failure) -> None:
    """It could not be told that we leave: then our lease ends."""
    failure.trap(StoreError)
