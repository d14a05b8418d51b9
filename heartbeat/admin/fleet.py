"""What can be seen of a fleet from any of its servers: each is asked what it sees, and what they answer is one.

The numbers of all are added up; those of which only the greatest tells anything are that. Clients come a page at a
time, as those of one server do, and a client who is on several is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from heapq import nlargest
from typing import Any

from twisted.internet.defer import Deferred

from heartbeat.admin.deeds import Deeds, NobodyError, NotAnsweredError
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

    def _ask(self, word: str, about: dict[str, Any], *, is_sound: Callable[[Any], bool]) -> Deferred[Gathered]:
        """Ask all; who answers with what is no such answer, as one of another version may, has not."""

        def sift(gathered: Gathered) -> Gathered:
            sound = {node: answer for node, answer in gathered.answers.items() if is_sound(answer)}
            return Gathered(sound, gathered.missing + len(gathered.answers) - len(sound))

        return self._fleet.ask(word, about).addCallback(sift)  # type: ignore[no-any-return]  # a Fleet's

    def totals(self) -> Deferred[dict[str, Any]]:
        """The numbers that an operator sees first, of all servers together, and of each."""
        return self._ask("totals", {}, is_sound=_are_totals).addCallback(self._add_up)

    def _add_up(self, gathered: Gathered) -> dict[str, Any]:
        answers, node = gathered.answers, self._fleet.node
        if node not in answers:
            raise NotAnsweredError("this server stops")
        all_ = list(answers.values())
        ready = sum(not totals["unready"] for totals in all_)
        there = len(all_) + gathered.missing
        rooms = [totals["room"] for totals in all_]
        together = {
            **answers[node],
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
                {"node": name, "is_this": name == node, **answers[name]}
                for name in sorted(answers, key=lambda name: (answers[name]["server"], name))
            ],
        }
        if self._fleet.is_up:
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

        return self._ask("clients", about, is_sound=_is_page).addCallback(page)

    def deaths(self) -> Deferred[dict[str, Any]]:
        """The links that died, the latest first, and the evidence."""

        def latest(gathered: Gathered) -> dict[str, Any]:
            all_ = [{**death, "node": node} for node, answer in gathered.answers.items() for death in answer["deaths"]]
            return {"deaths": nlargest(_DEATHS, all_, key=lambda death: death["at"]), "missing": gathered.missing}

        return self._ask("deaths", {}, is_sound=_are_deaths).addCallback(latest)

    # What is done to them.

    def kick(self, client_id: str) -> Deferred[dict[str, Any]]:
        """End the connections of a client, wherever they are; how many these were, and how many servers are `missing`.

        Fails with NotAnsweredError where there are none, and not every server has said so.
        """

        def told(gathered: Gathered) -> dict[str, Any]:
            closed, missing = sum(gathered.answers.values()), gathered.missing
            if missing and not closed:
                raise NotAnsweredError(
                    f"{missing} server(s) of the fleet have not answered, and no other has this client"
                )
            return {"client_id": client_id, "closed": closed, "missing": missing}

        return self._ask("kick", {"client_id": client_id}, is_sound=_is_number).addCallback(told)

    def drain(self, node: str) -> Deferred[dict[str, Any]]:
        """Have one server ask everybody to come back later.

        Fails with NobodyError where there is none of this name, with NotAnsweredError where it has not said so.
        """

        def told(gathered: Gathered) -> dict[str, Any]:
            if gathered.answers:
                return {"draining": True}
            if gathered.missing:
                raise NotAnsweredError("this server has not answered" if self._fleet.is_up else "Redis is away")
            raise NobodyError("no such server is in the fleet")

        return self._fleet.ask_one(node, "drain", {}).addCallback(told)  # type: ignore[no-any-return]  # a Fleet's


def _is_number(answer: Any) -> bool:
    return type(answer) is int


def _are_totals(answer: Any) -> bool:
    match answer:
        case {"unready": str(), "room": int() | None, "watched_since": int() | float(), "server": str(), "clients": {}}:
            return True
    return False


def _is_page(answer: Any) -> bool:
    match answer:
        case {"clients": [*clients], "next": str() | None}:
            return all(
                isinstance(client, dict) and isinstance(client.get("client_id"), str) and "connections" in client
                for client in clients
            )
    return False


def _are_deaths(answer: Any) -> bool:
    match answer:
        case {"deaths": [*deaths]}:
            return all(isinstance(death, dict) and isinstance(death.get("at"), int | float) for death in deaths)
    return False


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
