"""Sentinels, who know which Redis of several is the master just now, and the way to that one.

They are asked before each connection, and each time another of them is asked first: one that was cut off from the
others, and names a master that is none any more, costs one attempt. Whether it is one is asked of the Redis itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import Any
from urllib.parse import unquote

import hiredis
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from heartbeat.cluster.tls import Tls, query_of, unheard
from heartbeat.core.errors import StoreError
from heartbeat.endings import is_of_tls, reason_of

__all__ = ["SCHEMES", "Sentinels", "endpoint_to"]

#: How their URLs begin, without TLS and with it.
SCHEMES = ("redis+sentinel", "rediss+sentinel")

# Seconds that one sentinel has to be reached, and as many to answer; and those that a master has to be reached.
_PATIENCE = 1.0
_REACH = 5.0
_PORT = 26379

Place = tuple[str, int]


class Sentinels:
    """Those that a URL names (`redis+sentinel://…`), who watch over one master. Raises ValueError for what is none.

    `credentials` are for the master, a user and a password, still quoted; those for the sentinels are in the query.
    `setting` is where it was named. With `rediss+sentinel://…` they and the master are spoken to over TLS.
    """

    def __init__(self, url: str, setting: str = "store") -> None:
        scheme, _, rest = url.partition("://")
        rest, _, query = rest.partition("?")
        netloc, _, path = rest.partition("/")
        user, at, hosts = netloc.rpartition("@")
        name, _, database = path.partition("/")
        if scheme not in SCHEMES or not name or "#" in rest:
            raise ValueError(scheme)
        self.master = unquote(name)
        self.database = int(database or 0)
        self.credentials = tuple(user.partition(":")[::2]) if at else ()
        self._places = deque(map(_place, hosts.split(",")))
        asked = query_of(query)
        words = [asked.pop("sentinel_username", ""), asked.pop("sentinel_password", "")]
        self._tls = Tls(asked, setting, [host for host, _ in self._places]) if scheme == SCHEMES[1] else None
        if asked:
            raise ValueError(query)
        self._words = [word for word in words if word]

    @property
    def address(self) -> tuple[object, ...]:
        """Whom they watch over, and which database of it; the same in whatever order they are named."""
        return (frozenset(self._places), self.master, self.database)

    def endpoint(self, reactor: Any) -> Any:
        """The way to the master, who is asked for each time."""
        return _ToMaster(self, reactor)

    @property
    def is_secured(self) -> bool:
        """Whether they and the master are spoken to over TLS."""
        return self._tls is not None

    @inlineCallbacks
    def ask(self, reactor: Any) -> Generator[Any, Any, Place]:
        """Where the master is, as the first says who answers. Fails with StoreError."""
        whys = []
        for _ in range(len(self._places)):
            host, port = self._places[0]
            self._places.rotate(-1)
            try:
                factory: Any = Factory.forProtocol(
                    lambda: _Question(reactor, self.master, self._words, self.is_secured)
                )
                factory.noisy = False
                question = yield self.way(reactor, (host, port), _PATIENCE).connect(factory)
                master: Place = yield question.answer
            except (ConnectError, DNSLookupError, StoreError) as error:
                whys.append(f"{host}:{port}: {str(error).rstrip('.')}")
            else:
                return master
        raise StoreError(f"no sentinel knows where {self.master} is ({'; '.join(whys)})")

    def way(self, reactor: Any, place: Place, patience: float) -> Any:
        """The way to a sentinel or a Redis."""
        host, port = place
        endpoint = endpoint_to(reactor, host, port, patience)
        return endpoint if self._tls is None else self._tls.way(host, endpoint, reactor)


@implementer(IStreamClientEndpoint)
class _ToMaster:
    """The way to whoever is the master when it is gone. What is connected has a `master`: where that is."""

    def __init__(self, sentinels: Sentinels, reactor: Any) -> None:
        self._sentinels = sentinels
        self._reactor = reactor

    @inlineCallbacks
    def connect(self, protocolFactory: Any) -> Generator[Any, Any, Any]:
        """IStreamClientEndpoint: connect."""
        master = yield self._sentinels.ask(self._reactor)
        protocol: Any = yield self._sentinels.way(self._reactor, master, _REACH).connect(protocolFactory)
        protocol.master = master
        return protocol


class _Question(Protocol):
    """One question to one sentinel; `answer` fires with a host and a port, or fails with StoreError."""

    def __init__(self, reactor: Any, master: str, words: list[str], is_secured: bool) -> None:
        self._reader: Any = hiredis.Reader()
        self._master = master
        self._words = words
        # Over TLS, and nothing has come yet.
        self._is_unheard = is_secured
        self._timer = reactor.callLater(_PATIENCE, self._end, StoreError(f"no answer for {_PATIENCE:g} s"))
        self.answer: Deferred[Place] = Deferred(lambda _: self._end(None))

    def connectionMade(self) -> None:
        """Twisted's: it is open."""
        transport: Any = self.transport
        if self._words:
            transport.write(hiredis.pack_command(("AUTH", *self._words)))
        transport.write(hiredis.pack_command(("SENTINEL", "get-master-addr-by-name", self._master)))

    def dataReceived(self, data: bytes) -> None:
        """Twisted's: bytes have come."""
        self._is_unheard = False
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                self._take(reply)
        except hiredis.ProtocolError as error:
            self._end(StoreError(f"it is no sentinel: {error}"))

    def _take(self, reply: Any) -> None:
        match reply:
            case [bytes(host), bytes(port)]:
                self._end((host.decode(), int(port)))
            case None:
                self._end(StoreError(f"it watches over no {self._master}"))
            case hiredis.ReplyError():
                self._end(StoreError(str(reply)))

    def _end(self, outcome: Place | StoreError | None) -> None:
        """It has its answer, or will have none (None: nobody waits for it any more)."""
        if self._timer.active():
            self._timer.cancel()
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()
        if self.answer.called or outcome is None:
            return
        if isinstance(outcome, StoreError):
            self.answer.errback(outcome)
        else:
            self.answer.callback(outcome)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Twisted's: it is gone."""
        why = unheard(reason) if self._is_unheard else reason
        is_plain = why is reason and not is_of_tls(reason)
        self._end(StoreError("it has hung up" if is_plain else reason_of(why)))


def _place(text: str) -> Place:
    """A host and a port, of one text. Raises ValueError."""
    host, bracket, rest = text.removeprefix("[").partition("]") if text.startswith("[") else (text, "", "")
    if not bracket:
        host, colon, port = text.partition(":")
        rest = colon + port
    port = rest.removeprefix(":") if rest else str(_PORT)
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ValueError(text)
    return host, int(port)


def endpoint_to(reactor: Any, host: str, port: int, patience: float) -> Any:
    """The way there. What is an address already is not looked up, for which a thread would be needed."""
    kind: Any = HostnameEndpoint
    if isIPAddress(host):
        kind = TCP4ClientEndpoint
    elif isIPv6Address(host):
        kind = TCP6ClientEndpoint
    return kind(reactor, host, port, timeout=patience)
