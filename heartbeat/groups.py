"""Where the places of groups are kept, and the rules that hold wherever that is; here, of a server by itself.

A place is a session, as long as that lives, or a connection that has none. Never waits for a member: who has no room
for what is said misses it, and is told how much he has missed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred

from heartbeat.channel import Channel
from heartbeat.core.errors import PeerError, SessionFull, Unconfirmed
from heartbeat.core.messages import encode, re_of
from heartbeat.edge import Edge
from heartbeat.handling import Handling, encode_for_others
from heartbeat.shared import ServerShared
from heartbeat.store import Result

__all__ = ["FAN_OUT", "MARK", "Groups", "OwnGroups", "Place"]

# What a group and a session's place in it cost in memory, up to 1.7 KB, is booked on the accounts of that session.
_PLACE = 1536

#: Whoever says something to so many places has said one more, to the rate of his messages.
FAN_OUT = 50

#: What a session is marked with for each group that it is in: this, and the name of the group.
MARK = "group:"

#: Where messages can be sent: a session, or a connection that has none.
Place = Channel | Edge


class Groups(ABC):
    """All groups, and who is in each. Whoever joins, leaves or says something was found to say it rightly."""

    def __init__(self, shared: ServerShared) -> None:
        self.shared = shared
        self.sessions = shared.sessions
        #: The groups of each place at this server.
        self.joined: dict[Place, set[str]] = {}

    @abstractmethod
    def members(self, group: str) -> Result[int]:
        """How many clients are in a group."""

    @abstractmethod
    def join(self, handling: Handling, place: Place, name: str, message: dict[str, Any]) -> Deferred[None] | None:
        """A place is in a group from now on."""

    @abstractmethod
    def leave(self, handling: Handling, place: Place, name: str, message: dict[str, Any]) -> Deferred[None] | None:
        """A place is in a group no more."""

    @abstractmethod
    def say(self, handling: Handling, place: Place, name: str, message: dict[str, Any]) -> Deferred[None] | None:
        """A place says something to all that are in a group with it."""

    # The rules.

    def judge_place(self, handling: Handling, place: Place, message: dict[str, Any]) -> None:
        """Whether a place may be in one more group. Raises PeerError where it is in too many."""
        most = self.shared.settings.groups_per_session
        if len(self.joined.get(place, ())) >= most:
            why = f"a session is in {most} groups at most"
            raise self.refused("groups_per_session", full("groups_per_session", why, message), handling.client_id)

    def take_place(self, place: Place, name: str, message: dict[str, Any]) -> None:
        """Have room for a place in a group. Raises PeerError where there is none."""
        if isinstance(place, Channel):
            try:
                self.sessions.charge(place, _PLACE, beyond=False)
            except SessionFull as error:
                raise PeerError("full", str(error), re_of(message)) from None
        self.joined.setdefault(place, set()).add(name)

    def take_again(self, channel: Channel, name: str) -> None:
        """The same for a session that was in the group already."""
        self.sessions.charge(channel, _PLACE, beyond=True)
        self.joined.setdefault(channel, set()).add(name)

    def give_up_place(self, place: Place, name: str) -> None:
        """It is in the group no more."""
        if isinstance(place, Channel):
            self.sessions.credit(place, _PLACE)
        joined = self.joined[place]
        joined.discard(name)
        if not joined:
            del self.joined[place]

    def no_room(self, message: dict[str, Any]) -> PeerError:
        """What is said to whoever joins a group that has no room."""
        most = self.shared.settings.group_members
        return full("group_members", f"a group has {most} members at most", message)

    def refused(self, setting: str, error: PeerError, client_id: str | None) -> PeerError:
        """The refusal, counted."""
        self.shared.refusals.refused(setting, client_id, error.detail, self.shared.ticker.now())
        return error

    def event(self, name: str, client_id: str | None, members: int, message: dict[str, Any]) -> bytes:
        """What the members of a group are told. Raises PeerError where that is too long."""
        event = {"type": "ongroupchat", "group": name, "action": message["action"], "from": client_id}
        event |= {name: message[name] for name in passed_on(message)}
        return encode_for_others(event | {"members": members}, self.shared.settings.message_limit, message)

    def charge_fan_out(self, place: Place, places: int) -> None:
        """It has said something to so many."""
        edge = place.connection if isinstance(place, Channel) else place
        if isinstance(edge, Edge):
            edge.left -= places // FAN_OUT


def passed_on(message: dict[str, Any]) -> list[str]:
    """The members of a message that are passed on as they are."""
    told = ("id", "text") if message["action"] == "say" else ("id",)
    return [name for name in told if name in message]


def not_a_member(message: dict[str, Any]) -> PeerError:
    """What is said to whoever speaks in a group, or leaves one, that he is not in."""
    return PeerError("not-a-member", "join the group first", re_of(message))


def full(setting: str, why: str, message: dict[str, Any]) -> PeerError:
    """A refusal for want of room."""
    return PeerError("full", f"{why} (setting {setting})", re_of(message))


class _Group:
    """Who is in one group: each place with its client id, and how many messages it missed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[Place, str] = {}
        self.missed: Counter[Place] = Counter()
        self._clients: Counter[str] = Counter()

    @property
    def members(self) -> int:
        """Distinct client ids."""
        return len(self._clients)

    def join(self, place: Place, client_id: str) -> bool:
        """True when its client was in no other place."""
        self.places[place] = client_id
        self._clients[client_id] += 1
        return self._clients[client_id] == 1

    def leave(self, place: Place) -> bool:
        """True when its client is in no other place."""
        client_id = self.places.pop(place)
        self.missed.pop(place, None)
        self._clients[client_id] -= 1
        gone = not self._clients[client_id]
        if gone:
            del self._clients[client_id]
        return gone


class OwnGroups(Groups):
    """Groups of one server, in its memory; which sessions are in them is marked in the store."""

    def __init__(self, shared: ServerShared) -> None:
        super().__init__(shared)
        self.groups: dict[str, _Group] = {}
        self.sessions.started.append(self._load)
        self.sessions.resumed.append(self._resumed)
        self.sessions.ended.append(self._ended)
        shared.gone.append(self._has_gone)

    def members(self, group: str) -> int:
        """Groups: how many clients are in a group."""
        found = self.groups.get(group)
        return 0 if found is None else found.members

    def join(self, handling: Handling, place: Place, name: str, message: dict[str, Any]) -> None:
        """Groups: a place is in a group from now on."""
        group = self.groups.get(name) or _Group(name)
        if place in group.places:
            self._tell(handling, [place], group, self._event(group, handling.client_id, message))
            return
        self.judge_place(handling, place, message)
        if len(group.places) >= self.shared.settings.group_members:
            raise self.refused("group_members", self.no_room(message), handling.client_id)
        self.take_place(place, name, message)
        # Its room may have been made by the end of another member, perhaps of the last one.
        self.groups[name] = group
        first = group.join(place, handling.client_id or "")
        if handling.sid is not None:
            handling.mark(handling.sid, MARK + name, "0")
        # Another tab of somebody who is in it already is no news to the others.
        self._tell(handling, group.places if first else [place], group, self._event(group, handling.client_id, message))

    def leave(self, handling: Handling, place: Place, name: str, message: dict[str, Any]) -> None:
        """Groups: a place is in a group no more."""
        group = self._group_of(place, name, message)
        others = [one for one in group.places if one is not place]
        last = self._forget(place, group)
        if handling.sid is not None:
            handling.mark(handling.sid, MARK + name, None)
        told = [*others, place] if last else [place]
        self._tell(handling, told, group, self._event(group, handling.client_id, message))

    def say(self, handling: Handling, place: Place, name: str, message: dict[str, Any]) -> None:
        """Groups: a place says something to all that are in a group with it."""
        group = self._group_of(place, name, message)
        self.charge_fan_out(place, len(group.places))
        self._tell(handling, group.places, group, self._event(group, handling.client_id, message))

    def _group_of(self, place: Place, name: str, message: dict[str, Any]) -> _Group:
        group = self.groups.get(name)
        if group is None or place not in group.places:
            raise not_a_member(message)
        return group

    def _event(self, group: _Group, client_id: str | None, message: dict[str, Any]) -> bytes:
        return self.event(group.name, client_id, group.members, message)

    def _tell(self, handling: Handling, places: Iterable[Place], group: _Group, event: bytes) -> None:
        """Send an event to these places; who has no room for it misses it, and is told how many he missed."""
        # Room for one member may be made by the end of another.
        for place in tuple(places):
            if isinstance(place, Channel):
                self._append(handling, place, group, event)
            else:
                # Nothing is kept for a page without a session: while it does not read, it misses what is said.
                place.offer(event)

    def _append(self, handling: Handling, channel: Channel, group: _Group, event: bytes) -> None:
        session, away = channel.session, channel.connection is None
        missed = group.missed[channel] if channel in group.places else 0
        # Who is away comes back to half of his bound at most, and after it to the number of the rest.
        if (away and (missed or session.half_full(len(event)))) or not session.has_room(len(event) + 256):
            self._miss(handling, channel, group, missed + 1)
            return
        try:
            if missed:
                handling.append_payload(channel, _missed(group.name, missed))
                missed = 0
                self._miss(handling, channel, group, 0)
            handling.append_payload(channel, event)
        except SessionFull:
            self._miss(handling, channel, group, missed + 1)

    def _miss(self, handling: Handling, channel: Channel, group: _Group, missed: int) -> None:
        if channel not in group.places:
            return
        if missed:
            group.missed[channel] = missed
        else:
            del group.missed[channel]
        handling.mark(channel.session.sid, MARK + group.name, str(missed))

    # What the sessions tell.

    def _load(self) -> None:
        """The store was read: who was in a group still is."""
        self.groups.clear()
        self.joined.clear()
        for channel in self.sessions.channels.values():
            for key, missed in channel.marks.items():
                if key.startswith(MARK):
                    name = key.removeprefix(MARK)
                    group = self.groups.setdefault(name, _Group(name))
                    group.join(channel, channel.session.client_id)
                    self.take_again(channel, name)
                    if int(missed):
                        group.missed[channel] = int(missed)

    def _resumed(self, channel: Channel) -> None:
        """A member is back: he is told what he has missed."""
        handling = self._aside()
        for name in self.joined.get(channel, ()):
            group = self.groups[name]
            if group.missed[channel]:
                handling.append_payload(channel, _missed(name, group.missed[channel]), beyond=True)
                self._miss(handling, channel, group, 0)
        self.sessions.commit(handling.settle())

    def _ended(self, channel: Channel, error: Unconfirmed) -> None:
        self._has_gone(channel)

    def _has_gone(self, place: Place) -> None:
        handling = self._aside()
        for name in tuple(self.joined.get(place, ())):
            group = self.groups[name]
            client_id = group.places[place]
            if self._forget(place, group):
                event = self._event(group, client_id, {"type": "ongroupchat", "action": "leave"})
                self._tell(handling, group.places, group, event)
        self.sessions.commit(handling.settle())

    def _aside(self) -> Handling:
        """What follows from no message."""
        return Handling(None, None, None, lambda payload: None)

    def _forget(self, place: Place, group: _Group) -> bool:
        self.give_up_place(place, group.name)
        last = group.leave(place)
        if not group.places:
            self.groups.pop(group.name, None)
        return last


def _missed(name: str, missed: int) -> bytes:
    return encode({"type": "ongroupchat", "group": name, "missed": missed})
