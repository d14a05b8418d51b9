"""What can be seen of a server: its numbers, its clients a page at a time, and the links that died.

Reads, and changes nothing. What takes a look at every connection takes it in slices, between which the reactor turns.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from heapq import nsmallest
from typing import Any

from twisted.internet.defer import Deferred

from heartbeat import outbox
from heartbeat._version import __version__
from heartbeat.core.monitor import State
from heartbeat.core.presence import Standing

__all__ = ["MOST", "STANDINGS", "Lines", "View", "word_of"]

#: Clients on a page at most.
MOST = 1000

# Seconds that a look at every connection takes of one turn of the reactor, and after how many it looks at the clock.
_SLICE = 0.002
_BETWEEN = 64


def word_of(standing: Standing) -> str:
    """A standing as it is written."""
    return standing.name.lower()


#: The standings by how they are written, the best first.
STANDINGS = {word_of(standing): standing for standing in Standing}


class Lines:
    """What a look at every connection has found.

    `states` counts them by the state of their heartbeat, `levels` by the level of the wire; `queued` is what waits for
    all peers to read it, in bytes, and `longest` what waits for one of them.
    """

    def __init__(self) -> None:
        self.states: Counter[str] = Counter({state.value: 0 for state in State})
        self.levels: Counter[int] = Counter({0: 0, 1: 0})
        self.queued = 0
        self.longest = 0

    def look(self, edges: Iterable[Any]) -> Iterator[None]:
        """Look at these, one at each step."""
        states, levels = self.states, self.levels
        for edge in edges:
            link = edge.link
            if link is not None and not edge.over:
                states[link.monitor.state] += 1
                levels[link.level] += 1
                waiting = outbox.queued(edge.protocol.transport)
                if waiting:
                    self.queued += waiting
                    self.longest = max(self.longest, waiting)
            yield


class View:
    """A server as it is seen; `server` is its factory."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.shared: Any = server.heartbeat
        self.started_at = time.time()
        #: The longest that a look at the connections took of one turn, in seconds.
        self.blocked = 0.0
        self._looking: list[Deferred[Lines]] | None = None

    # How it is.

    @property
    def unready(self) -> str:
        """Why nobody should be sent here, in a sentence; empty where somebody may."""
        shared = self.shared
        if shared.draining is not None:
            return "the server is on its way out"
        return "" if shared.sessions.epoch else "the sessions have not been read yet"

    # Its numbers.

    def lines(self) -> Deferred[Lines]:
        """Fires with what a look at every connection has found; who asks while one is under way gets that."""
        asked: Deferred[Lines] = Deferred()
        if self._looking is not None:
            self._looking.append(asked)
            return asked
        self._looking = [asked]
        found = Lines()
        self._look(found, found.look(tuple(self.shared.edges)))
        return asked

    def _look(self, found: Lines, steps: Iterator[None]) -> None:
        clock = time.perf_counter
        began = clock()
        for number, _ in enumerate(steps, 1):
            if number % _BETWEEN == 0 and clock() - began > _SLICE:
                self.blocked = max(self.blocked, clock() - began)
                self.shared.ticker.reactor.callLater(0, self._look, found, steps)
                return
        self.blocked = max(self.blocked, clock() - began)
        looking, self._looking = self._looking or [], None
        for asked in looking:
            asked.callback(found)

    def totals(self, lines: Lines) -> dict[str, Any]:
        """The numbers that an operator sees first."""
        shared = self.shared
        tally, presence, timing = shared.tally, shared.presence, shared.settings.timing()
        return {
            "version": __version__,
            "server": f"{socket.gethostname()}:{os.getpid()}",
            "at": time.time(),
            "watched_since": self.started_at,
            "unready": self.unready,
            "connections": presence.connections,
            "room": self.server.room,
            "clients": {word_of(standing): presence.count(standing) for standing in Standing},
            "fleet": self._fleet(),
            "states": lines.states,
            "levels": {str(level): count for level, count in lines.levels.items()},
            "sessions": len(shared.sessions.channels),
            "sessions_detached": shared.sessions.detached,
            "kept_bytes": shared.sessions.kept_bytes,
            "outgoing_bytes": lines.queued,
            "outgoing_longest_bytes": lines.longest,
            "opened": tally.opened,
            "convictions": tally.convictions,
            "suspicions": tally.suspicions,
            "relieved": tally.relieved,
            "reconnects": tally.reconnects,
            "resumes": tally.resumes,
            "resumes_refused": tally.resumes_refused,
            "replayed": tally.replayed,
            "refused": shared.refusals.counts,
            "late_s": shared.ticker.pulse.late,
            "bound_s": max(timing.watching_bound, timing.pinging_bound),
            "interval_s": timing.interval,
        }

    def _fleet(self) -> dict[str, Any] | None:
        fleet = self.shared.fleet
        if fleet is None:
            return None
        clients, known, connections = fleet.counts
        return {
            "up": fleet.is_up,
            "nodes": fleet.nodes,
            "clients": clients,
            "known": known,
            "connections": connections,
        }

    # Its clients.

    def clients(self, after: str, limit: int, word: str = "") -> dict[str, Any]:
        """A page of clients, by their ids in order: the first after this one, of the standing that is named."""
        presence, standing = self.shared.presence, STANDINGS.get(word)
        ids: Iterator[str] = (one for one in presence.client_ids() if one > after)
        if standing is not None:
            ids = (one for one in ids if presence.standing_of(one) is standing)
        page = nsmallest(limit + 1, ids)
        rest, page = page[limit:], page[:limit]
        edges = self._edges_of(page)
        return {
            "clients": [self._client(client_id, edges[client_id]) for client_id in page],
            "next": page[-1] if rest else None,
        }

    def edges_of(self, client_id: str) -> list[Any]:
        """The connections of a client."""
        return self._edges_of([client_id])[client_id]

    def _edges_of(self, client_ids: list[str]) -> dict[str, list[Any]]:
        edges: dict[str, list[Any]] = {client_id: [] for client_id in client_ids}
        for edge in self.shared.edges:
            if edge.link is not None and edge.link.client_id in edges:
                edges[edge.link.client_id].append(edge)
        return edges

    def _client(self, client_id: str, edges: list[Any]) -> dict[str, Any]:
        standing = self.shared.presence.standing_of(client_id)
        return {
            "client_id": client_id,
            "standing": None if standing is None else word_of(standing),
            "sessions": len(self.shared.sessions.of(client_id)),
            "connections": [_connection(edge) for edge in sorted(edges, key=lambda edge: edge.opened_at)],
        }

    # What became of others.

    def deaths(self) -> dict[str, Any]:
        """The links that died, the latest first, and the evidence."""
        return {"deaths": [asdict(death) for death in reversed(self.shared.tally.deaths)]}


def _connection(edge: Any) -> dict[str, Any]:
    link, transport, now = edge.link, edge.protocol.transport, edge.now()
    monitor = link.monitor
    rtt = monitor.rtt and monitor.rtt.last
    return {
        "peer": edge.protocol.peer,
        "level": link.level,
        "state": monitor.state.value,
        "standing": word_of(link.standing),
        "busy": monitor.busy,
        "age_s": round(now - edge.opened_at, 3),
        "silent_for_s": round(now - monitor.heard_at, 3),
        "rtt_ms": _ms(rtt),
        "tcp_rtt_ms": _ms(outbox.round_trip(transport)),
        "outgoing_bytes": outbox.queued(transport),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
