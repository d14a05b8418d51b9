"""What is published on channels of Redis, heard on a connection of its own that comes back by itself.

What was published meanwhile is lost: whoever listens is told each time that it hears again, and asks what it missed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import hiredis
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

from heartbeat.cluster.redis import Redis

__all__ = ["Subscription"]

# Seconds between attempts; and how long a question may go unanswered.
_AGAIN = 1.0
_PATIENCE = 5.0


class Subscription:
    """What is heard on `channels`, each with what is called with its payloads.

    `hears_again` is called each time that all of them are heard. The Redis must have been started, so that it is known
    how to get there.
    """

    def __init__(
        self, redis: Redis, channels: Mapping[str, Callable[[bytes], object]], *, hears_again: Callable[[], object]
    ) -> None:
        self.redis = redis
        self.channels = channels
        self.is_up = False
        self._hears_again = hears_again
        self._reactor: Any = None
        self._connecting: Deferred[Any] | None = None
        self._line: _Line | None = None
        self._again: Any = None
        self._stopping: list[Deferred[None]] | None = None

    def start(self, reactor: Any) -> None:
        """Listen from now on."""
        self._reactor = reactor
        self._stopping = None
        if self._connecting is None and self._line is None and self._again is None:
            self._connect()

    def stop(self) -> Deferred[None]:
        """Listen no more; fires when it is disconnected."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._connecting is None and self._line is None:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        self._stopping = [*(self._stopping or ()), stopped]
        if self._line is not None:
            self._line.drop()
        elif self._connecting is not None:
            self._connecting.cancel()
        return stopped

    def look(self, every: float) -> None:
        """Ask whether there is still somebody at the other end, unless that is `every` seconds ago at most."""
        line = self._line
        if line is None:
            return
        now = self._reactor.seconds()
        if line.master != self.redis.master:
            # What the other connection tells the master, this one would not hear of.
            line.drop()
        elif line.asked and now - line.asked_at > _PATIENCE:
            line.drop()
        elif not line.asked and now - line.asked_at >= every:
            line.asked, line.asked_at = True, now
            line.say("PING")

    def _connect(self) -> None:
        self._again = None
        factory: Any = Factory.forProtocol(lambda: _Line(self))
        # Else every attempt is two lines in the log.
        factory.noisy = False
        self._connecting = self.redis.endpoint.connect(factory)
        self._connecting.addErrback(self._unreachable)

    def _unreachable(self, _failure: Failure) -> None:
        """Why is said by the other connection, over which everything is asked."""
        self._gone()

    def opened(self, line: _Line) -> None:
        """There is a connection."""
        line.asked_at = self._reactor.seconds()
        self._connecting, self._line = None, line
        if self._stopping is not None:
            line.drop()

    def heard(self, channel: bytes, payload: bytes) -> None:
        """Something was published."""
        self.channels[channel.decode()](payload)

    def hears(self) -> None:
        """What is published is heard from now on."""
        self.is_up = True
        self._hears_again()

    def lost(self) -> None:
        """There is no connection any more."""
        self.is_up = False
        self._line = None
        self._gone()

    def _gone(self) -> None:
        self._connecting = None
        if self._stopping is None:
            self._again = self._reactor.callLater(_AGAIN, self._connect)
            return
        stopping, self._stopping = self._stopping, None
        for stopped in stopping:
            stopped.callback(None)


class _Line(Protocol):
    """One connection that subscribes."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._reader: Any = hiredis.Reader()
        #: Whether a question is out, and when the last was asked.
        self.asked = False
        self.asked_at = 0.0
        #: Where the sentinels said that it is.
        self.master: tuple[str, int] | None = None

    def connectionMade(self) -> None:
        """Twisted's: it is open."""
        subscription = self._subscription
        subscription.opened(self)
        credentials = subscription.redis.credentials
        if credentials:
            self.say("AUTH", *credentials)
        if subscription.redis.sentinels is not None:
            self.say("ROLE")
        self.say("SUBSCRIBE", *subscription.channels)

    def say(self, *words: str) -> None:
        """Have Redis do this."""
        encoded = [word.encode() for word in words]
        said = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)
        transport: Any = self.transport
        transport.write(b"*%d\r\n" % len(encoded) + said)

    def dataReceived(self, data: bytes) -> None:
        """Twisted's: bytes have come."""
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                self._take(reply)
        except hiredis.ProtocolError:
            self.drop()

    def _take(self, reply: Any) -> None:
        match reply:
            case [b"message", bytes(channel), bytes(payload)]:
                self._subscription.heard(channel, payload)
            case [b"subscribe", _, number]:
                if number == len(self._subscription.channels):
                    self._subscription.hears()
            case [b"pong", _] | b"PONG":
                self.asked = False
            case [b"master", *_]:
                self._subscription.redis.proved(self.master)
            case [b"slave", *_] | hiredis.ReplyError():
                self.drop()

    def drop(self) -> None:
        """It is of no use any more."""
        transport: Any = self.transport
        transport.abortConnection()

    def connectionLost(self, reason: Any = None) -> None:
        """Twisted's: it is gone."""
        self._subscription.lost()
