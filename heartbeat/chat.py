"""Messages from client to client, and to groups of them, on top of the sessions.

Built on what any application has: registered types, `handling`, marks and receipts. Never waits for a
recipient: what has no room is said to have none.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from heartbeat.channel import Channel
from heartbeat.core.errors import PeerError, SessionFull, StoreError, Unconfirmed
from heartbeat.core.messages import encode, is_id, re_of
from heartbeat.core.session import MEMBERS
from heartbeat.edge import Edge
from heartbeat.factory import HeartbeatServerFactory
from heartbeat.handling import Handling
from heartbeat.roaming import Pages, RoamingSessions
from heartbeat.shared import ServerShared
from heartbeat.store import POSTED, Append, Effect, Plain, Post, SharedStore

__all__ = ["Chat", "GroupChat"]

# What a group and a session's place in it cost in memory, up to 1.7 KB, is booked on the accounts of that session.
_PLACE = 1536

# Whoever says something to so many places has said one more, to the rate of his messages.
_FAN_OUT = 50

_MARK = "group:"

#: Where messages can be sent: a session, or a connection that has none.
Place = Channel | Edge


class _Messages:
    """What both kinds share: where clients are, and what a message may say."""

    def __init__(self, factory: HeartbeatServerFactory) -> None:
        self._shared: ServerShared = factory.heartbeat
        self._sessions = self._shared.sessions
        if self._shared.plain is None:
            sessions = self._sessions
            self._shared.plain = Pages(sessions.shared) if isinstance(sessions, RoamingSessions) else {}

    def _plain(self, client_id: str) -> tuple[Edge, ...]:
        """The connections of a client that have no session."""
        return tuple((self._shared.plain or {}).get(client_id, ()))

    def _encode(self, message: dict[str, Any], about: dict[str, Any]) -> bytes:
        """A message to others that follows from another. Raises PeerError when it is too long by what we add."""
        payload = encode(message)
        if len(payload) + MEMBERS > self._shared.settings.message_limit:
            raise PeerError("too-big", "the message is too long to be passed on", re_of(about))
        return payload


class Chat(_Messages):
    """`onchat`: to one client, in all his sessions; with word of what became of it."""

    def __init__(self, factory: HeartbeatServerFactory) -> None:
        super().__init__(factory)
        self._sessions.settle = self._settle
        self._count = 0
        self._fleet: SharedStore | None = None
        if isinstance(self._sessions, RoamingSessions):
            self._fleet = self._sessions.shared
            self._sessions.settle = self._follow
            self._sessions.letters.append(self._offered)
        factory.register("onchat", self._chat)

    def _chat(self, protocol: Any, message: dict[str, Any]) -> Deferred[None] | None:
        handling: Handling = protocol.handling
        name, to, text = message.get("id"), message.get("to"), message.get("text")
        if not is_id(name) or type(to) is not str or type(text) is not str:
            raise PeerError("bad-message", "onchat has an id (text or a whole number), to and text", re_of(message))
        letter = self._letter(handling, message)
        if self._fleet is not None:
            return self._post(handling, name, to, letter, self._fleet)
        status = self._deliver(handling, name, to, letter)
        handling.reply(_status(name, status))
        return None

    def _letter(self, handling: Handling, message: dict[str, Any]) -> bytes:
        letter = {"type": "onchat", "id": message["id"], "from": handling.client_id, "text": message["text"]}
        return self._encode(letter, message)

    def _deliver(self, handling: Handling, name: Any, to: str, letter: bytes) -> str:
        """Send the letter to wherever its recipient is; the status of it."""
        sessions, plain = self._sessions.of(to), self._plain(to)
        if sessions:
            sender = _sender(handling)
            if self._sessions.receipts.awaited(sender) * 2 >= self._sessions.bounds.messages:
                # Each of them is to be told about one day, and needs room for that.
                return "full"
            sessions = self._without_abandoned(sessions, len(letter))
            self._count += 1
            receipt = _receipt(sender, handling.seq or self._count, name)
            try:
                for session in sessions:
                    handling.append_payload(session, letter, receipt)
            except SessionFull:
                handling.forget()
                return "full"
        offered = self._offer(plain, letter)
        return "queued" if sessions else offered

    def _without_abandoned(self, sessions: tuple[Channel, ...], size: int) -> tuple[Channel, ...]:
        """The recipient's sessions; one that nobody carries and that is full is ended where another has room.

        A tab that was closed long ago must not keep him from what he could read at his desk. It is told of that
        if it comes back.
        """
        if not any(one.session.has_room(size) for one in sessions):
            return sessions
        for one in sessions:
            if one.connection is None and not one.session.has_room(size):
                one.end("full")
        return tuple(one for one in sessions if not one.ended)

    def _offer(self, plain: Sequence[Edge], letter: bytes) -> str:
        """Write the letter where nothing is kept; the status of it."""
        written = [edge.offer(letter) for edge in plain]
        return "sent" if any(written) else "full" if plain else "unknown"

    def _settle(self, receipt: str, confirmed: bool) -> Sequence[Effect]:
        """One of the recipient's connections has handled it, or his last session that kept it has ended."""
        sender, status = _fate(receipt, confirmed)
        if sender.startswith("~"):
            for edge in self._plain(_client_of(sender)):
                edge.write(status)
            return ()
        channel = self._sessions.channels.get(sender)
        if channel is None or channel.ended:
            return ()
        channel.admit(len(status), beyond=True)
        return (Append(sender, status),)

    # The same in a fleet: who the recipient's sessions are is known where they are kept, and what becomes of a letter
    # is decided there, with the note that it was handled.

    def _post(self, handling: Handling, name: Any, to: str, letter: bytes, store: SharedStore) -> Deferred[None] | None:
        self._count += 1
        # On another server, and after the next start, there are others with our count.
        receipt = _receipt(_sender(handling), handling.seq or f"{store.node}.{self._count}", name)
        # The word of what became of it stands in the place of this one.
        before, after = encode(_status(name, "?"))[:-3], b'"}'
        bounds = self._sessions.bounds
        post = Post(to, letter, receipt, handling.sid or "", bounds.messages, bounds.bytes, before, after)
        if handling.sid is not None:
            handling.follow(post)
            return None
        posted: Deferred[Any] = store.append([post])  # type: ignore[assignment]  # a shared store's is always one
        posted.addCallback(lambda numbers: handling.reply(_status(name, POSTED[numbers[0] - 1])))
        return posted.addErrback(_not_posted, name)

    def _follow(self, receipt: str, confirmed: bool) -> Sequence[Effect]:
        sender, status = _fate(receipt, confirmed)
        if sender.startswith("~"):
            return (Plain(_client_of(sender), status),)
        return (Append(sender, status),)

    def _offered(self, client_id: str, letter: bytes) -> None:
        self._offer(self._plain(client_id), letter)


def _not_posted(failure: Failure, name: Any) -> None:
    failure.trap(StoreError)
    raise PeerError("failed", "the message could not be passed on", name)


def _sender(handling: Handling) -> str:
    """The sender in a receipt: his session, or his client id."""
    return handling.sid or "~" + (handling.client_id or "").encode().hex()


def _client_of(sender: str) -> str:
    return bytes.fromhex(sender[1:]).decode()


def _receipt(sender: str, number: int | str, name: Any) -> str:
    return f"{sender}/{number}/{json.dumps(name)}"


def _fate(receipt: str, confirmed: bool) -> tuple[str, bytes]:
    """The sender, and what he is told."""
    sender, _, name = receipt.split("/", 2)
    return sender, encode(_status(json.loads(name), "delivered" if confirmed else "lost"))


def _status(name: Any, status: str) -> dict[str, Any]:
    return {"type": "onchat", "id": name, "status": status}


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


class GroupChat(_Messages):
    """`ongroupchat`: join, leave, and say something to all members. A session is a member for as long as it lives."""

    def __init__(self, factory: HeartbeatServerFactory) -> None:
        super().__init__(factory)
        self._groups: dict[str, _Group] = {}
        self._joined: dict[Place, set[str]] = {}
        self._actions = {"join": self._join, "leave": self._leave, "say": self._say}
        self._sessions.started.append(self._load)
        self._sessions.came.append(self._take_in)
        self._sessions.resumed.append(self._resumed)
        self._sessions.ended.append(self._ended)
        self._shared.gone.append(self._gone)
        factory.register("ongroupchat", self._group_chat)

    def members(self, group: str) -> int:
        """How many clients are in a group."""
        found = self._groups.get(group)
        return 0 if found is None else found.members

    def _group_chat(self, protocol: Any, message: dict[str, Any]) -> None:
        handling: Handling = protocol.handling
        name, action = message.get("group"), message.get("action")
        if type(name) is not str or not 0 < len(name) <= 64:
            raise PeerError("bad-message", "group must be text of 1 to 64 characters", re_of(message))
        if type(action) is not str or action not in self._actions:
            raise PeerError("bad-message", "action must be one of " + ", ".join(self._actions), re_of(message))
        if "id" in message and not is_id(message["id"]):
            raise PeerError("bad-message", "id must be text of 1 to 64 characters or a whole number", re_of(message))
        place = handling.sender if isinstance(handling.sender, Channel) else protocol._heartbeat
        self._actions[action](handling, place, name, message)

    def _join(self, handling: Handling, place: Place, name: str, message: dict[str, Any]) -> None:
        joined = self._joined.get(place, set())
        group = self._groups.get(name) or _Group(name)
        if name in joined:
            self._tell(handling, [place], group, self._event(group, handling.client_id, message))
            return
        settings = self._shared.settings
        if len(joined) >= settings.groups_per_session:
            raise self._full(
                "groups_per_session", f"a session is in {settings.groups_per_session} groups at most", handling, message
            )
        if len(group.places) >= settings.group_members:
            raise self._full(
                "group_members", f"a group has {settings.group_members} members at most", handling, message
            )
        if isinstance(place, Channel):
            try:
                self._sessions.charge(place, _PLACE, beyond=False)
            except SessionFull as full:
                raise PeerError("full", str(full), re_of(message)) from None
        self._groups[name] = group
        self._joined.setdefault(place, joined).add(name)
        first = group.join(place, handling.client_id or "")
        if handling.sid is not None:
            handling.mark(handling.sid, _MARK + name, "0")
        # Another tab of somebody who is in it already is no news to the others.
        self._tell(handling, group.places if first else [place], group, self._event(group, handling.client_id, message))

    def _full(self, setting: str, why: str, handling: Handling, message: dict[str, Any]) -> PeerError:
        """A refusal for want of room, counted."""
        sentence = f"{why} (setting {setting})"
        self._shared.refusals.refused(setting, handling.client_id, sentence, self._shared.ticker.now())
        return PeerError("full", sentence, re_of(message))

    def _leave(self, handling: Handling, place: Place, name: str, message: dict[str, Any]) -> None:
        group = self._member(place, name, message)
        others = [one for one in group.places if one is not place]
        last = self._forget(place, group)
        if handling.sid is not None:
            handling.mark(handling.sid, _MARK + name, None)
        told = [*others, place] if last else [place]
        self._tell(handling, told, group, self._event(group, handling.client_id, message))

    def _say(self, handling: Handling, place: Place, name: str, message: dict[str, Any]) -> None:
        if type(message.get("text")) is not str:
            raise PeerError("bad-message", "text must be text", re_of(message))
        group = self._member(place, name, message)
        edge = place.connection if isinstance(place, Channel) else place
        if isinstance(edge, Edge):
            edge.left -= len(group.places) // _FAN_OUT
        self._tell(handling, group.places, group, self._event(group, handling.client_id, message))

    def _member(self, place: Place, name: str, message: dict[str, Any]) -> _Group:
        group = self._groups.get(name)
        if group is None or place not in group.places:
            raise PeerError("not-a-member", "join the group first", re_of(message))
        return group

    def _event(self, group: _Group, client_id: str | None, message: dict[str, Any]) -> bytes:
        event = {"type": "ongroupchat", "group": group.name, "action": message["action"], "from": client_id}
        told = ("id", "text") if message["action"] == "say" else ("id",)
        event |= {name: message[name] for name in told if name in message}
        return self._encode(event | {"members": group.members}, message)

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
        handling.mark(channel.session.sid, _MARK + group.name, str(missed))

    # What the sessions tell.

    def _load(self) -> None:
        """The store was read: who was in a group still is."""
        self._groups.clear()
        self._joined.clear()
        for channel in self._sessions.channels.values():
            self._take_in(channel)

    def _take_in(self, channel: Channel) -> None:
        """A session comes with the groups that it is in."""
        for key, missed in channel.marks.items():
            if key.startswith(_MARK):
                name = key.removeprefix(_MARK)
                group = self._groups.setdefault(name, _Group(name))
                group.join(channel, channel.session.client_id)
                self._sessions.charge(channel, _PLACE, beyond=True)
                self._joined.setdefault(channel, set()).add(name)
                if int(missed):
                    group.missed[channel] = int(missed)

    def _resumed(self, channel: Channel) -> None:
        """A member is back: he is told what he has missed."""
        handling = self._aside()
        for name in self._joined.get(channel, ()):
            group = self._groups[name]
            if group.missed[channel]:
                handling.append_payload(channel, _missed(name, group.missed[channel]), beyond=True)
                self._miss(handling, channel, group, 0)
        self._sessions.commit(handling.settle())

    def _ended(self, channel: Channel, error: Unconfirmed) -> None:
        self._has_gone(channel)

    def _gone(self, edge: Edge) -> None:
        self._has_gone(edge)

    def _has_gone(self, place: Place) -> None:
        handling = self._aside()
        for name in tuple(self._joined.get(place, ())):
            group = self._groups[name]
            client_id = group.places[place]
            if self._forget(place, group):
                event = self._event(group, client_id, {"type": "ongroupchat", "action": "leave"})
                self._tell(handling, group.places, group, event)
        self._sessions.commit(handling.settle())

    def _aside(self) -> Handling:
        """What follows from no message."""
        return Handling(None, None, None, lambda payload: None)

    def _forget(self, place: Place, group: _Group) -> bool:
        if isinstance(place, Channel):
            self._sessions.credit(place, _PLACE)
        joined = self._joined[place]
        joined.discard(group.name)
        if not joined:
            del self._joined[place]
        last = group.leave(place)
        if not group.places:
            self._groups.pop(group.name, None)
        return last


def _missed(name: str, missed: int) -> bytes:
    return encode({"type": "ongroupchat", "group": name, "missed": missed})
