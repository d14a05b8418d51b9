"""What can be seen of a fleet from any of its servers: each is asked what it sees, and what they answer is one.

The numbers of all are added up; those of which only the greatest tells anything are that. Clients come a page at a
time, as those of one server do, and a client who is on several is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from heapq import nlargest
from typing import Any

from twisted.internet.defer import Deferred

from heartbeat.admin.deeds import Deeds
from heartbeat.admin.view import STANDINGS, View, word_of
from heartbeat.cluster.gather import Gathered
from heartbeat.core.presence import Standing

__all__ = ["FleetView"]

_SUMS = (
    "connections",
    "sessions",
    "sessions_detached",
    "kept_bytes",
    "outgoing_bytes",
    "opened",
    "suspicions",
    "relieved",
    "reconnects",
    "resumes",
    "replayed",
)
# Counted by what there is of each kind.
_KINDS = ("clients", "states", "levels", "convictions", "resumes_refused", "refused")
_GREATEST = ("outgoing_longest_bytes", "late_s", "bound_s")

# Links that died, of all servers.
_DEATHS = 100


class FleetView:
    """A fleet as it is seen from the server that is seen by `view`, which also answers what other servers ask."""

    def __init__(self, view: View, deeds: Deeds) -> None:
        self._view = view
        self._deeds = deeds
        self._fleet = view.shared.fleet
        self._fleet.answering = self._answer

    # What the others ask.

    def _answer(self, asked: str, about: dict[str, Any]) -> Any:
        """What we say of ourselves; None to what we know nothing of."""
        view = self._view
        match asked, about:
            case "totals", _:
                return view.lines().addCallback(view.totals)
            case "clients", {"after": str(after), "limit": int(limit), "standing": str(word)}:
                return view.clients(after, limit, word)
            case "deaths", _:
                return view.deaths()
            case "kick", {"client_id": str(client_id)}:
                return self._deeds.kick(client_id)
            case "drain", _:
                return self._deeds.drain()
        return None

    # What is asked of all.

    def totals(self) -> Deferred[dict[str, Any]]:
        """The numbers that an operator sees first, of all servers together, and of each."""
        return self._fleet.ask("totals", {}).addCallback(self._add_up)  # type: ignore[no-any-return]  # a Fleet's

    def _add_up(self, gathered: Gathered) -> dict[str, Any]:
        answers, own = gathered.answers, gathered.answers[self._fleet.node]
        all_ = list(answers.values())
        ready = sum(not totals["unready"] for totals in all_)
        there = len(all_) + gathered.missing
        rooms = [totals["room"] for totals in all_]
        together = {
            **own,
            # One of another version may not know of all.
            **{name: sum(totals.get(name, 0) for totals in all_) for name in _SUMS},
            **{name: max(totals.get(name, 0) for totals in all_) for name in _GREATEST},
            **{name: _counted(totals.get(name, {}) for totals in all_) for name in _KINDS},
            "watched_since": min(totals["watched_since"] for totals in all_),
            "unready": "" if ready == there else f"{ready} of {there} servers are ready",
            "ready": ready,
            "missing": gathered.missing,
            "room": None if None in rooms else sum(rooms),
            "servers": [
                {"node": node, "is_this": node == self._fleet.node, **answers[node]}
                for node in sorted(answers, key=lambda node: (answers[node]["server"], node))
            ],
        }
        # Who is active on two servers is one.
        together["clients"][word_of(Standing.ACTIVE)] = self._fleet.counts[0]
        return together

    def clients(self, after: str, limit: int, standing: str) -> Deferred[dict[str, Any]]:
        """A page of clients, by their ids in order: of whatever server, of this standing on any where one is named."""
        about = {"after": after, "limit": limit, "standing": standing}

        def page(gathered: Gathered) -> dict[str, Any]:
            found: dict[str, dict[str, Any]] = {}
            for node, answer in gathered.answers.items():
                for client in answer["clients"]:
                    _add(found, client, node)
            ids = sorted(found)
            has_more = len(ids) > limit or any(answer["next"] is not None for answer in gathered.answers.values())
            ids = ids[:limit]
            return {
                "clients": [found[client_id] for client_id in ids],
                "next": ids[-1] if has_more and ids else None,
                "missing": gathered.missing,
            }

        return self._fleet.ask("clients", about).addCallback(page)  # type: ignore[no-any-return]  # a Fleet's

    def deaths(self) -> Deferred[dict[str, Any]]:
        """The links that died, the latest first, and the evidence."""

        def latest(gathered: Gathered) -> dict[str, Any]:
            all_ = [{**death, "node": node} for node, answer in gathered.answers.items() for death in answer["deaths"]]
            return {"deaths": nlargest(_DEATHS, all_, key=lambda death: death["at"]), "missing": gathered.missing}

        return self._fleet.ask("deaths", {}).addCallback(latest)  # type: ignore[no-any-return]  # a Fleet's

    # What is done to them.

    def kick(self, client_id: str) -> Deferred[int]:
        """End the connections of a client, wherever they are; how many these were."""
        return self._fleet.ask("kick", {"client_id": client_id}).addCallback(  # type: ignore[no-any-return]  # a Fleet's
            lambda gathered: sum(gathered.answers.values())
        )

    def drain(self, node: str) -> Deferred[bool]:
        """Have one server ask everybody to come back later; whether there is such a server, and it has said that."""
        return self._fleet.ask_one(node, "drain", {}).addCallback(  # type: ignore[no-any-return]  # a Fleet's
            lambda gathered: bool(gathered.answers)
        )


def _counted(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    together: Counter[str] = Counter()
    for count in counts:
        # Not `update` of a sum: what is 0 everywhere is still there.
        for kind, number in count.items():
            together[kind] += number
    return dict(together)


def _add(found: dict[str, dict[str, Any]], client: dict[str, Any], node: str) -> None:
    """One more server's word on a client."""
    connections = [{**connection, "node": node} for connection in client["connections"]]
    before = found.get(client["client_id"])
    if before is None:
        found[client["client_id"]] = {**client, "connections": connections}
        return
    before["sessions"] += client["sessions"]
    before["connections"] += connections
    words = [*STANDINGS, None]
    before["standing"] = min(before["standing"], client["standing"], key=words.index)
