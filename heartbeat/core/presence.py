"""Who is alive: client ids, their connections, and counts that cost nothing to read.

Counts are kept, never summed up. Joins and leaves are returned, once each, for the edge to announce.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from heapq import heappop, heappush

__all__ = ["Connection", "Presence", "Standing"]


class Standing(IntEnum):
    """How present a connection is, best first; a client is the best of its connections."""

    #: An application ping or pong within `watch`.
    ACTIVE = 0
    #: Silent for `watch`, but its end answers RFC 6455 pings; or its ping says so.
    AWAY = 1
    #: Open; it has not pinged, or not lately.
    CONNECTED = 2
    #: Under suspicion: a probe is out.
    SUSPECT = 3
    #: No connection, but it may come back: its absence is not announced yet, or a session of its is kept.
    DETACHED = 4


class _Client:
    """One client id: its connections, how many sessions are kept for it, and whether its join was announced."""

    __slots__ = ("announced", "connections", "leaves_at", "name", "sessions", "standing")

    def __init__(self, name: str) -> None:
        self.name = name
        self.connections: list[Connection] = []
        self.sessions = 0
        self.standing: Standing | None = None
        self.announced = False
        self.leaves_at = 0.0


class Connection:
    """One connection's place in the register."""

    __slots__ = ("_client", "standing")

    def __init__(self, client: _Client) -> None:
        self._client = client
        self.standing = Standing.CONNECTED

    @property
    def client_id(self) -> str:
        """The client id it belongs to."""
        return self._client.name


class Presence:
    """The register of one server. `grace` and `grace_away` are seconds of absence before a leave is announced.

    `active` counts the distinct client ids with an active connection; `clients` is what the wire calls so: these, and
    those that are active on other servers only, where there are any. `changed`, if it is set, is called with each
    client id that comes or goes, becomes active or stops being so, or has a connection more or less.
    """

    __slots__ = (
        "_clients",
        "_connections",
        "_counts",
        "_elsewhere",
        "_grace",
        "_grace_away",
        "_leaving",
        "active",
        "changed",
        "clients",
    )

    def __init__(self, grace: float, grace_away: float) -> None:
        self._grace = grace
        self._grace_away = grace_away
        self._clients: dict[str, _Client] = {}
        self._counts = [0] * len(Standing)
        self.active = 0
        # In every pong, so it is ready to be read.
        self.clients = 0
        self._elsewhere = 0
        self.changed: Callable[[str], object] | None = None
        self._connections = 0
        self._leaving: list[tuple[float, str]] = []

    @property
    def connections(self) -> int:
        """Open connections."""
        return self._connections

    @property
    def known(self) -> int:
        """Distinct client ids, detached ones included."""
        return len(self._clients)

    def counted_elsewhere(self, clients: int) -> None:
        """So many client ids are active on other servers, and not here."""
        self._elsewhere = clients
        self.clients = self.active + clients

    def count(self, standing: Standing) -> int:
        """Distinct client ids whose best connection has this standing."""
        return self._counts[standing]

    def __contains__(self, client_id: str) -> bool:
        return client_id in self._clients

    def standing_of(self, client_id: str) -> Standing | None:
        """The standing of a client, None for one that is not known."""
        client = self._clients.get(client_id)
        return None if client is None else client.standing

    def client_ids(self) -> tuple[str, ...]:
        """All client ids known, detached ones included."""
        return tuple(self._clients)

    def open(self, client_id: str) -> Connection:
        """A connection of `client_id` opened; it joins when it is first announced."""
        client = self._client(client_id)
        connection = Connection(client)
        client.connections.append(connection)
        self._connections += 1
        self._recount(client)
        self._tell(client)
        return connection

    def keep(self, client_id: str) -> None:
        """A session is kept for `client_id`, connected or not: while it is, the client may come back."""
        client = self._client(client_id)
        client.sessions += 1
        self._recount(client)

    def release(self, client_id: str) -> None:
        """A session of `client_id` has ended. An absence that is yet to be announced still is, in its time."""
        client = self._clients[client_id]
        client.sessions -= 1
        if not client.sessions and not client.connections and not client.announced:
            self._forget(client)

    def announce(self, connection: Connection) -> bool:
        """The connection has shown that it means to stay; True when its client joins by that."""
        client = connection._client
        joins, client.announced = not client.announced, True
        return joins

    def stand(self, connection: Connection, standing: Standing) -> None:
        """The connection's standing changed."""
        if connection.standing is not standing:
            connection.standing = standing
            self._recount(connection._client)

    def close(self, connection: Connection, now: float, *, at_once: bool) -> bool:
        """The connection is gone; True when its client leaves by that.

        Unless `at_once`, the last connection's end is an absence, and `expire` tells of the leave later.
        """
        client = connection._client
        client.connections.remove(connection)
        self._connections -= 1
        self._tell(client)
        if client.connections:
            self._recount(client)
            return False
        if (at_once or not client.announced) and not client.sessions:
            return self._forget(client)
        if not client.announced:
            self._recount(client)
            return False
        away = connection.standing is Standing.AWAY
        client.leaves_at = now + (self._grace_away if away else self._grace)
        heappush(self._leaving, (client.leaves_at, client.name))
        self._recount(client)
        return False

    def expire(self, now: float) -> list[str]:
        """The client ids whose absence has lasted too long by `now`: they leave."""
        left = []
        while self._leaving and self._leaving[0][0] <= now:
            at, name = heappop(self._leaving)
            client = self._clients.get(name)
            # It may have come back, and even gone again, since this appointment was made; or it has had another
            # for the same moment.
            if client is None or client.standing is not Standing.DETACHED or client.leaves_at != at:
                continue
            if not client.announced:
                continue
            left.append(name)
            client.announced = False
            if not client.sessions:
                self._forget(client)
        return left

    def _client(self, client_id: str) -> _Client:
        client = self._clients.get(client_id)
        if client is None:
            client = self._clients[client_id] = _Client(client_id)
        return client

    def _forget(self, client: _Client) -> bool:
        self._restand(client, None)
        del self._clients[client.name]
        return client.announced

    def _recount(self, client: _Client) -> None:
        connections = client.connections
        if len(connections) == 1:
            # As most have it.
            best = connections[0].standing
        else:
            best = min((connection.standing for connection in connections), default=Standing.DETACHED)
        if best is not client.standing:
            self._restand(client, best)

    def _restand(self, client: _Client, standing: Standing | None) -> None:
        before, client.standing = client.standing, standing
        if before is not None:
            self._counts[before] -= 1
        if standing is not None:
            self._counts[standing] += 1
        active = self._counts[Standing.ACTIVE]
        if active != self.active or before is None or standing is None:
            self.active = active
            self.clients = active + self._elsewhere
            self._tell(client)

    def _tell(self, client: _Client) -> None:
        if self.changed is not None:
            self.changed(client.name)
