"""Messages from client to client, and to groups of them, on top of the sessions.

Built on what any application has: registered types, `handling`, marks and receipts. Never waits for a
recipient: what has no room is said to have none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from heartbeat.channel import Channel
from heartbeat.core.errors import PeerError, SessionFull, StoreError
from heartbeat.core.messages import encode, is_id, re_of
from heartbeat.edge import Edge
from heartbeat.factory import HeartbeatServerFactory
from heartbeat.fleet_groups import FleetGroups
from heartbeat.groups import Groups, OwnGroups
from heartbeat.handling import Handling, encode_for_others
from heartbeat.roaming import Pages, RoamingSessions
from heartbeat.shared import ServerShared
from heartbeat.store import POSTED, Append, Effect, Plain, Post, Result, SharedStore

__all__ = ["Chat", "GroupChat"]


class Chat:
    """`onchat`: to one client, in all his sessions; with word of what became of it."""

    def __init__(self, factory: HeartbeatServerFactory) -> None:
        self._shared: ServerShared = factory.heartbeat
        self._sessions = self._shared.sessions
        if self._shared.plain is None:
            sessions = self._sessions
            self._shared.plain = Pages(sessions.shared) if isinstance(sessions, RoamingSessions) else {}
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
        return encode_for_others(letter, self._shared.settings.message_limit, message)

    def _plain(self, client_id: str) -> tuple[Edge, ...]:
        """The connections of a client that have no session."""
        return tuple((self._shared.plain or {}).get(client_id, ()))

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


class GroupChat:
    """`ongroupchat`: join, leave, and say something to all members. A session is a member for as long as it lives."""

    def __init__(self, factory: HeartbeatServerFactory) -> None:
        shared: ServerShared = factory.heartbeat
        #: Where who is in a group is kept.
        self.groups: Groups
        if isinstance(shared.sessions, RoamingSessions):
            self.groups = FleetGroups(shared, shared.sessions)
        else:
            self.groups = OwnGroups(shared)
        self._actions = {"join": self.groups.join, "leave": self.groups.leave, "say": self.groups.say}
        factory.register("ongroupchat", self._group_chat)

    def members(self, group: str) -> Result[int]:
        """How many clients are in a group; in a fleet a Deferred of that."""
        return self.groups.members(group)

    def _group_chat(self, protocol: Any, message: dict[str, Any]) -> Deferred[None] | None:
        handling: Handling = protocol.handling
        name, action = message.get("group"), message.get("action")
        if type(name) is not str or not 0 < len(name) <= 64:
            raise PeerError("bad-message", "group must be text of 1 to 64 characters", re_of(message))
        if type(action) is not str or action not in self._actions:
            raise PeerError("bad-message", "action must be one of " + ", ".join(self._actions), re_of(message))
        if "id" in message and not is_id(message["id"]):
            raise PeerError("bad-message", "id must be text of 1 to 64 characters or a whole number", re_of(message))
        if action == "say" and type(message.get("text")) is not str:
            raise PeerError("bad-message", "text must be text", re_of(message))
        place = handling.sender if isinstance(handling.sender, Channel) else protocol._heartbeat
        return self._actions[action](handling, place, name, message)
