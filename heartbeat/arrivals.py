"""Who may connect, and how fast: in all, by address, and by the second.

Knows who is still waiting with his request: when there is no room, he gives way first, the longest waiting before
all others. So a crowd that connects and asks for nothing, or for nothing quickly, keeps nobody out.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.tcp import Server
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol

from heartbeat.addresses import Where, place_of, where_from
from heartbeat.core.pace import Pace
from heartbeat.core.settings import Settings
from heartbeat.lane import Lane
from heartbeat.refusals import Refusals

__all__ = ["RETRY_AFTER", "Account", "Arrival", "Arrivals", "Refusal", "message_rate"]

#: When a client that was refused for want of room may try again, in seconds.
RETRY_AFTER = 10

#: A sentence, the HTTP status, and headers.
Refusal = tuple[str, int, list[tuple[str, str]]]

# What holds where nothing was set, and not for this machine's own.
_PER_ADDRESS = 1024
_HANDSHAKES = 5000.0
_MESSAGES = 200.0

# Accepted of an address beyond its number, so that the refusal can be said.
_STANDING_ROOM = 8

# An address has a fifth of all handshakes, and as many messages as fifty connections.
_SHARE = 5
_TALKERS = 50

# An address owes so many seconds to the pace of its messages at most.
_MOST_OWED = 5.0

# Whoever waits for less is only on his way.
_PATIENCE = 1.0

# For so many seconds it is remembered of an address that a flood came from it.
_SUSPECTED = 20.0

# A client is told to come back after so many seconds at most.
_LATEST = 60

_log = Logger()


def message_rate(settings: Settings) -> float:
    """Messages a second that one connection may send."""
    return settings.message_rate or _MESSAGES


class Arrival(Protocol):
    """A connection that has come, and has not left. `account` is the address that it counts for."""

    account: Account | None

    @property
    def transport(self) -> Any:
        """How it came."""
        ...

    def give_way(self) -> None:
        """There is no room for those who wait: end the connection."""
        ...


class Account:
    """One address: its connections, and the pace of its handshakes and of its messages."""

    __slots__ = ("connections", "handshakes", "messages", "name")

    def __init__(self, name: str, handshakes: Pace, messages: Pace) -> None:
        self.name = name
        self.connections = 0
        self.handshakes = handshakes
        self.messages = messages

    def is_rested(self, now: float) -> bool:
        """Whether nothing of its past counts any more."""
        return self.handshakes.is_rested(now) and self.messages.is_rested(now)


class Arrivals:
    """Those of one server, with `room` for so many connections (None: any number).

    Time is an argument throughout: running seconds.
    """

    def __init__(self, settings: Settings, room: int | None, refusals: Refusals) -> None:
        self.refusals = refusals
        #: Whose request is not complete, and since when; those who came first are the first.
        self.waiting: dict[Arrival, float] = {}
        self._settings = settings
        self._limit = settings.connections_per_address or min(_PER_ADDRESS, max(1, (room or 4 * _PER_ADDRESS) // 4))
        rate = settings.handshake_rate or _HANDSHAKES
        self._handshakes = Pace(rate, max(1.0, rate), 0.0)
        # Those who were told when to come back, and are not back.
        self._booked = Pace(rate, 0.0, 0.0)
        self._accounts: dict[str, Account] = {}
        # Those from which nobody was left, in the order in which the last one went; somebody may have come since.
        self._resting: dict[str, Account] = {}
        self._proxies: set[str] = set()
        #: Messages a second that one connection may send.
        self.message_rate = message_rate(settings)
        #: Those who were too fast.
        self.lane = Lane(self.message_rate)
        # Addresses that a flood came from, and until when that counts; the first to be forgotten is the first.
        self._flooded: dict[str, float] = {}

    @property
    def addresses(self) -> int:
        """How many addresses are known just now."""
        return len(self._accounts)

    def connected(self, arrival: Arrival, now: float) -> None:
        """Somebody has connected; of an address that has far too many already he is dropped."""
        self.waiting[arrival] = now
        transport = arrival.transport
        # Another transport may stand for a proxy, and knows its peer only when that has been told.
        below = transport.transport if isinstance(transport, TLSMemoryBIOProtocol) else transport
        if self._settings.trust_forwarded or type(below) is not Server:
            return
        peer = transport.getPeer()
        if not isinstance(peer, IPv4Address | IPv6Address):
            return
        name, where = place_of(peer.host)
        if where is Where.FAR and not self._count(arrival, name, now, standing=_STANDING_ROOM):
            arrival.give_way()

    def asked(self, arrival: Arrival, head: bytes, now: float, *, is_full: bool) -> Refusal | None:
        """A request is complete; None where it may come in."""
        self.waiting.pop(arrival, None)
        name, where = where_from(arrival.transport.getPeer(), head, self._settings.trust_forwarded)
        if where is Where.NEAR and name is None:
            self._note_proxy(arrival)
        return (
            self._judge_address(arrival, name, where, now)
            or self._judge_pace(arrival, where, now)
            or (self._judge_room(arrival, now) if is_full else None)
        )

    def left(self, arrival: Arrival) -> None:
        """A connection is gone."""
        self.waiting.pop(arrival, None)
        self._uncount(arrival)

    def handed_over(self, arrival: Arrival, to: Arrival, now: float) -> None:
        """A connection is another's from now on, and waits: whoever reads pages gives way to whoever stays."""
        self.waiting.pop(arrival, None)
        self.waiting[to] = now
        to.account, arrival.account = arrival.account, None

    def make_room(self, now: float) -> bool:
        """Have whoever has waited longest give way; whether there was one."""
        longest = next(iter(self.waiting), None)
        if longest is None or now - self.waiting[longest] < _PATIENCE:
            return False
        del self.waiting[longest]
        self.refusals.refused("gave-way", _name_of(longest), "its request was slow, and there is no room", now)
        longest.give_way()
        return True

    def flooded(self, account: Account | None, now: float) -> None:
        """Somebody of this address was closed because he would not keep to the pace of messages."""
        if account is not None:
            # Behind those of before.
            self._flooded.pop(account.name, None)
            self._flooded[account.name] = now + _SUSPECTED

    def has_flooded(self, account: Account | None, now: float) -> bool:
        """Whether that was of late: who comes from there has little at once. His rate is that of all."""
        while self._flooded:
            name, until = next(iter(self._flooded.items()))
            if now < until:
                break
            del self._flooded[name]
        return account is not None and account.name in self._flooded

    def is_paced(self, arrival: Arrival) -> bool:
        """Whether the messages of a connection that was let in are counted."""
        if self._settings.message_rate is not None:
            return True
        peer = arrival.transport.getPeer()
        return arrival.account is not None or (
            isinstance(peer, IPv4Address | IPv6Address) and place_of(peer.host)[1] is not Where.HERE
        )

    def _judge_address(self, arrival: Arrival, name: str | None, where: Where, now: float) -> Refusal | None:
        if where is not Where.FAR and self._settings.connections_per_address is None:
            name = None
        if arrival.account is not None and arrival.account.name != name:
            self._uncount(arrival)
        if name is None:
            return None
        if arrival.account is None:
            self._count(arrival, name, now, standing=_STANDING_ROOM)
        account = arrival.account
        if account is not None and account.connections <= self._limit:
            return None
        return self._refusal(
            "connections_per_address", arrival, "too many connections of one address", now, RETRY_AFTER
        )

    def _judge_pace(self, arrival: Arrival, where: Where, now: float) -> Refusal | None:
        account = arrival.account
        if where is Where.HERE and self._settings.handshake_rate is None:
            return None
        if account is not None and not account.handshakes.has_room(now):
            after = 1 + int(account.handshakes.owes(now))
            return self._refusal("handshake_rate", arrival, "too many handshakes of one address", now, after)
        if not self._handshakes.has_room(now):
            # Each is sent away to another moment, or they would all be back in the same.
            after = 1 + int(self._booked.take(now))
            return self._refusal("handshake_rate", arrival, "too many handshakes", now, after)
        self._handshakes.take(now)
        if account is not None:
            account.handshakes.take(now)
        return None

    def _judge_room(self, arrival: Arrival, now: float) -> Refusal | None:
        if self.make_room(now):
            return None
        return self._refusal("max_connections", arrival, "no room", now, RETRY_AFTER)

    def _refusal(self, setting: str, arrival: Arrival, why: str, now: float, after: int) -> Refusal:
        sentence = f"{why} (setting {setting})"
        self.refusals.refused(setting, _name_of(arrival), sentence, now)
        return sentence, 503, [("Retry-After", str(min(_LATEST, after)))]

    def _count(self, arrival: Arrival, name: str, now: float, *, standing: int) -> bool:
        account = self._accounts.get(name)
        if account is None:
            self._forget_idle(now)
            account = self._accounts[name] = self._account(name, now)
        if account.connections >= self._limit + standing:
            self.refusals.refused(
                "connections_per_address", name, "far too many connections (setting connections_per_address)", now
            )
            return False
        account.connections += 1
        arrival.account = account
        return True

    def _uncount(self, arrival: Arrival) -> None:
        account = arrival.account
        if account is not None:
            account.connections -= 1
            arrival.account = None
            if not account.connections:
                # Behind those that went before.
                self._resting.pop(account.name, None)
                self._resting[account.name] = account

    def _account(self, name: str, now: float) -> Account:
        handshakes = max(1.0, self._handshakes.rate / _SHARE)
        messages = _TALKERS * self.message_rate
        # What one did who was closed for it, his neighbours are not to pay for.
        return Account(name, Pace(handshakes, handshakes, now), Pace(messages, 2 * messages, now, _MOST_OWED))

    def _forget_idle(self, now: float) -> None:
        """Forget addresses from which nobody is left, and of whose past nothing counts any more."""
        while self._resting:
            name, account = next(iter(self._resting.items()))
            if not account.connections:
                if not account.is_rested(now):
                    return
                del self._accounts[name]
            del self._resting[name]

    def _note_proxy(self, arrival: Arrival) -> None:
        """Say once of each proxy nearby that nobody trusts it; of a few, for who is near can have many addresses."""
        name = str(arrival.transport.getPeer().host)
        if name not in self._proxies and len(self._proxies) < 8:
            self._proxies.add(name)
            _log.warn(
                "{name} passes on requests of others, which are not counted by address: if it is a proxy of yours, say"
                " how many append to X-Forwarded-For (setting trust_forwarded)",
                name=name,
            )


def _name_of(arrival: Arrival) -> str:
    """Whom a refusal is about, for the log."""
    if arrival.account is not None:
        return arrival.account.name
    return str(getattr(arrival.transport.getPeer(), "host", None) or "a UNIX socket")
