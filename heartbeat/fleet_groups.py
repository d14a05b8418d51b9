"""Groups of a fleet: each is one group over all servers, and its places are kept where the sessions are.

What is said is an effect of the message that says it: who hears it, and how many members there are, is found out in the
store, with the note that the message was handled. So a session stays in its groups wherever it goes, and leaves them
when it ends, whoever ends it. Here is only which groups each place at this server is in.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from heartbeat.channel import Channel
from heartbeat.core.errors import PeerError, StoreError, Unconfirmed
from heartbeat.core.messages import encode, error_frame, re_of
from heartbeat.edge import Edge
from heartbeat.groups import MARK, Groups, Place, not_a_member, passed_on
from heartbeat.handling import Handling
from heartbeat.roaming import RoamingSessions
from heartbeat.shared import ServerShared
from heartbeat.store import NO_ROOM, Effect, Join, Leave, Missed, Say

__all__ = ["FleetGroups"]

# A join that follows from no message.
_ASIDE: dict[str, Any] = {"type": "ongroupchat", "action": "join"}


class FleetGroups(Groups):
    """Groups of all servers of a fleet. Their names are texts of JSON here, as in the store."""

    def __init__(self, shared: ServerShared, sessions: RoamingSessions) -> None:
        super().__init__(shared)
        self._store = sessions.shared
        # Connections without a session that are in groups, or were, by ids of ours; and these by them.
        self._edges: dict[str, Edge] = {}
        self._ids: dict[Edge, str] = {}
        self._count = 0
        sessions.started.append(self._started)
        sessions.came.append(self._came)
        sessions.resumed.append(self._resumed)
        sessions.ended.append(self._ended)
        sessions.carried.append(self._carried)
        sessions.spoken_to.append(self._spoken_to)
        sessions.forgotten_by.append(self._join_again)
        shared.gone.append(self._gone)

    def members(self, group: str) -> Deferred[int]:
        """Groups: how many clients are in a group."""
        return self._store.members(_json(group))

    def join(self, handling: Handling, place: Place, name: str, message: dict[str, Any]) -> Deferred[None] | None:
        """Groups: a place is in a group from now on."""
        more, group = self._more(handling, name, message), _json(name)
        if group not in self.joined.get(place, ()):
            self.judge_place(handling, place, message)
            self.take_place(place, group, message)
        return self._ask(handling, place, self._join(place, group, handling.client_id, more, message), message)

    def leave(self, handling: Handling, place: Place, name: str, message: dict[str, Any]) -> Deferred[None] | None:
        """Groups: a place is in a group no more."""
        more, group = self._more(handling, name, message), self._group_of(place, name, message)
        leave = Leave(group, self._name_of(place), more, error_frame(not_a_member(message)))
        self._forget(place, group)
        return self._ask(handling, place, leave, message)

    def say(self, handling: Handling, place: Place, name: str, message: dict[str, Any]) -> Deferred[None] | None:
        """Groups: a place says something to all that are in a group with it."""
        more, group = self._more(handling, name, message), self._group_of(place, name, message)
        say = Say(group, self._name_of(place), more, error_frame(not_a_member(message)))
        return self._ask(handling, place, say, message)

    def _more(self, handling: Handling, name: str, message: dict[str, Any]) -> bytes:
        """What of a message is passed on. Raises PeerError where an event with it would be too long in a full group."""
        self.event(name, handling.client_id, self.shared.settings.group_members, message)
        return b"".join(b',"%b":%b' % (key.encode(), _json(message[key]).encode()) for key in passed_on(message))

    def _group_of(self, place: Place, name: str, message: dict[str, Any]) -> str:
        group = _json(name)
        if group not in self.joined.get(place, ()):
            raise not_a_member(message)
        return group

    def _join(self, place: Place, group: str, client_id: str | None, more: bytes, message: dict[str, Any]) -> Join:
        refused, most = error_frame(self.no_room(message)), self.shared.settings.group_members
        return Join(group, self._name_of(place), _json(client_id), more, refused, most, message is _ASIDE)

    def _name_of(self, place: Place) -> str:
        """What a place is called in the store."""
        if isinstance(place, Channel):
            return place.session.sid
        if place not in self._ids:
            self._count += 1
            self._ids[place] = str(self._count)
            self._edges[self._ids[place]] = place
        # As all of this server's, which has another name after its next start.
        return f"{self._store.node}/{self._ids[place]}"

    def _forget(self, place: Place, group: str) -> None:
        """It is in this group no more."""
        if group in self.joined.get(place, ()):
            self.give_up_place(place, group)

    # How it is asked, and what follows.

    def _ask(
        self, handling: Handling, place: Place, effect: Join | Leave | Say, message: dict[str, Any]
    ) -> Deferred[None] | None:
        if isinstance(place, Channel):
            handling.follow(effect)
            return None
        asked: Deferred[Any] = self._store.append([effect])  # type: ignore[assignment]  # a shared store's is always one
        asked.addCallback(lambda numbers: self._answered(place, effect, numbers[0], handling.client_id, message))
        return asked.addErrback(_not_asked, message)

    def _answered(
        self, place: Place, effect: Effect, number: int | None, client_id: str | None, message: dict[str, Any]
    ) -> None:
        """What became of a connection's effect. Raises PeerError where it was refused."""
        error = self._became(place, effect, number, client_id, message)
        if error is not None:
            raise error

    def _carried(self, effect: Effect, number: int | None) -> None:
        """What became of a session's."""
        if not isinstance(effect, Join | Leave | Say):
            return
        channel = self.sessions.channels.get(effect.place)
        if channel is None:
            return
        # It was told in the store.
        self._became(channel, effect, number, channel.session.client_id, _ASIDE)
        mark = MARK + effect.group
        channel.marks.pop(mark, None)
        if effect.group in self.joined.get(channel, ()):
            channel.marks[mark] = "0"

    def _became(
        self, place: Place, effect: Effect, number: int | None, client_id: str | None, message: dict[str, Any]
    ) -> PeerError | None:
        if isinstance(effect, Join) and number == NO_ROOM:
            self._forget(place, effect.group)
            return self.refused("group_members", self.no_room(message), client_id)
        if isinstance(effect, Join | Leave | Say) and number is None:
            # The store has lost what it knew of that.
            self._forget(place, effect.group)
            return not_a_member(message)
        if isinstance(effect, Say) and number is not None:
            self.charge_fan_out(place, number)
        return None

    def _spoken_to(self, place: str, payload: bytes) -> None:
        edge = self._edges.get(place)
        if edge is not None:
            # Nothing is kept for a page without a session: while it does not read, it misses what is said.
            edge.offer(payload)

    # What the sessions and the connections tell.

    def _started(self) -> None:
        """No session is here yet. Connections may be, of before."""
        for place in tuple(self.joined):
            if isinstance(place, Channel):
                del self.joined[place]
        self._join_again()

    def _join_again(self) -> None:
        """Connections are in their groups, whatever became of that in the store."""
        for edge in tuple(self._ids):
            client_id = edge.link.client_id if edge.link is not None else None
            for group in tuple(self.joined.get(edge, ())):
                joined = self._ask(
                    Handling(None, None, client_id, edge.write),
                    edge,
                    self._join(edge, group, client_id, b"", _ASIDE),
                    _ASIDE,
                )
                if joined is not None:
                    joined.addErrback(_tell_refusal, edge)

    def _came(self, channel: Channel) -> None:
        """A session comes with the groups that it is in."""
        for key in channel.marks:
            if key.startswith(MARK):
                self.take_again(channel, key.removeprefix(MARK))

    def _resumed(self, channel: Channel) -> None:
        """A member is back: he is told what he has missed."""
        groups = self.joined.get(channel)
        if groups:
            self.sessions.commit([Missed(channel.session.sid, tuple(groups))])

    def _ended(self, channel: Channel, error: Unconfirmed) -> None:
        """It has left its groups in the store, with its end; or is in them elsewhere."""
        for group in tuple(self.joined.get(channel, ())):
            self.give_up_place(channel, group)

    def _gone(self, edge: Edge) -> None:
        for group in self.joined.pop(edge, ()):
            # One by one: each may be told to many.
            leave = Leave(group, self._name_of(edge), b"", b"")
            asked: Deferred[Any] = self._store.append([leave])  # type: ignore[assignment]  # as above
            asked.addErrback(_not_any_more)
        self._edges.pop(self._ids.pop(edge, ""), None)


def _json(value: object) -> str:
    """A text, or a number, as it stands in an event; always the same for the same."""
    return encode({"": value})[4:-1].decode().strip()


def _not_asked(failure: Failure, message: dict[str, Any]) -> None:
    failure.trap(StoreError)
    raise PeerError("failed", "the message could not be passed on", re_of(message))


def _tell_refusal(failure: Failure, edge: Edge) -> None:
    """A connection is in a group no more, because of others who came while it could not be told that it is."""
    failure.trap(PeerError)
    edge.write(error_frame(failure.value))  # type: ignore[arg-type]  # trapped


def _not_any_more(failure: Failure) -> None:
    """The server has stopped: whoever was at it leaves with it."""
    failure.trap(StoreError)
