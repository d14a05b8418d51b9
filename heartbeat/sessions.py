"""What all sessions of one end have in common: the store, the acknowledgements that are owed, the next tick.

A client has one at a time and keeps it here; a server has many, and adds what a server must know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.logger import Logger
from twisted.python.failure import Failure

from heartbeat.channel import Channel
from heartbeat.core.errors import StateError, Unconfirmed
from heartbeat.core.opening import Declared
from heartbeat.core.session import Bounds, Session
from heartbeat.core.settings import Settings
from heartbeat.store import Append, Effect, Head, Kept, Mark, MemoryStore, Numbers, Result, Store, TakenOver, when
from heartbeat.ticker import Alarm, Ticker

__all__ = ["ACK_AFTER", "Sessions", "session_of", "warn"]

#: What was handled is acknowledged after so many seconds, if nothing that goes out has said it before.
ACK_AFTER = 0.05

_log = Logger()


class Sessions:
    """The sessions of one end, by their names."""

    def __init__(self, settings: Settings, ticker: Ticker, store: Store | None = None) -> None:
        self.settings = settings
        self.bounds = Bounds(settings.kept_limit, settings.kept_bytes, settings.message_limit)
        self.store: Store = store or MemoryStore()
        self.channels: dict[str, Channel] = {}
        #: Called with the channel and the error when a session ends.
        self.ended: list[Callable[[Channel, Unconfirmed], object]] = []
        self._ticker = ticker
        self._owing: set[Channel] = set()
        self._lagging: set[Channel] = set()
        self._soon = Alarm(ticker, lambda now: self.flush())

    def now(self) -> float:
        """Owner: our running time."""
        return self._ticker.now()

    def provisional(self) -> Channel:
        """A client's: a channel that has no session yet, and keeps what is sent until it has."""
        return Channel(Session("", "", "", self.bounds), self, waits=False)

    def owes(self, channel: Channel) -> None:
        """Owner: have it acknowledge, at once or soon."""
        if channel.session.owes_much:
            channel.acknowledge()
        elif channel.connection is not None:
            self._owing.add(channel)
            self._soon.arm_before(self._ticker.now() + ACK_AFTER)

    def lags(self, channel: Channel) -> None:
        """Owner: its peer does not read as fast as we write; look again with the next tick."""
        self._lagging.add(channel)

    def filled(self, channel: Channel) -> None:
        """Owner: a session is at its bound; to a client that is the server's affair."""

    def charge(self, channel: Channel, size: int, *, beyond: bool) -> None:
        """Owner: so many bytes more are kept; a client keeps one session only, which has its bound."""

    def credit(self, channel: Channel, size: int) -> None:
        """Owner: so many bytes less."""

    def queued(self, channel: Channel) -> None:
        """Owner: messages wait for their handlers; a client has one session only, which has its bound."""

    def noted(self, receipt: str) -> None:
        """Owner: a message with a receipt is kept."""

    def settled(self, channel: Channel, seq: int, receipt: str, *, confirmed: bool) -> Sequence[Effect]:
        """Owner: what follows from the fate of a message with a receipt; a client gives none."""
        return ()

    def behind(self, channel: Channel) -> None:
        """Owner: others have appended to a session, which nobody can where the store is one end's own."""
        raise StateError("a message of somebody else's is in a session of ours")

    def expire(self, channel: Channel, effects: Sequence[Effect]) -> None:
        """Owner: have the store end a session, and carry out what follows from that."""
        session = channel.session
        self.carry_out(self.store.expire(session.sid, session.fence, effects), effects)

    def carry_out(
        self,
        result: Result[Numbers],
        effects: Sequence[Effect],
        *,
        first: Callable[[], object] | None = None,
        then: Callable[[], object] | None = None,
        failed: Callable[[Failure], object] | None = None,
    ) -> None:
        """Owner: the store was asked to commit these effects: when it has, `first`, what they did, `then`; or `failed`.

        Without `failed` it is only said that it has not.
        """

        def committed(numbers: Numbers) -> None:
            if first is not None:
                first()
            self._apply(effects, numbers)
            if then is not None:
                then()

        def not_committed(failure: Failure) -> None:
            self._undo(effects)
            (failed or warn)(failure)

        when(result, committed, not_committed)

    def commit(self, effects: Sequence[Effect]) -> None:
        """Have effects that belong to no numbered message carried out."""
        if effects:
            self.carry_out(self.store.append(effects), effects)

    def _apply(self, effects: Sequence[Effect], numbers: Numbers) -> None:
        """These effects are committed: keep and write what they appended."""
        touched: dict[Channel, None] = {}
        for effect, seq in zip(effects, numbers, strict=True):
            if isinstance(effect, Append):
                channel = self.channels.get(effect.sid)
                if channel is not None and seq is not None:
                    channel.kept(seq, effect)
                    touched[channel] = None
                elif channel is not None:
                    channel.release(len(effect.payload))
            elif isinstance(effect, Mark):
                channel = self.channels.get(effect.sid)
                if channel is not None:
                    channel.marks.pop(effect.key, None)
                    if effect.value is not None:
                        channel.marks[effect.key] = effect.value
        for channel in touched:
            channel.pump()

    def _undo(self, effects: Sequence[Effect]) -> None:
        """These effects were not committed: what they were to append gives its room back."""
        for effect in effects:
            channel = self.channels.get(effect.sid) if isinstance(effect, Append) else None
            if channel is not None and isinstance(effect, Append):
                channel.release(len(effect.payload))

    def lost(self, channel: Channel, why: Failure | None = None) -> None:
        """Owner: the store has a session no more; a client's goes on to its window, and is then said to be lost."""

    def begin(
        self, channel: Channel, declared: Declared, then: Callable[[], object], *, wanted: Callable[[], bool]
    ) -> None:
        """A client's: the channel goes on in the session that is declared as a new one; call `then` when it is kept.

        If by then it is not `wanted`, what waits in the channel waits for the session of another connection.
        """
        session = Session(declared.sid, declared.epoch, declared.client_id, declared.bounds)

        def begun(_: None) -> None:
            if channel.ended or not wanted():
                when(self.store.expire(session.sid, session.fence, ()), lambda _: None, warn)
                return
            self.channels[session.sid] = channel
            channel.begin(session)
            then()

        head = Head(session.sid, session.epoch, session.client_id, declared.window)
        when(self.store.open(head), begun, warn)

    def over(self, channel: Channel, error: Unconfirmed) -> None:
        """Owner: a session has ended."""
        self._drop(channel)
        self.tell(channel, error)

    def _drop(self, channel: Channel) -> None:
        self.channels.pop(channel.session.sid, None)
        self._owing.discard(channel)
        self._lagging.discard(channel)

    def tell(self, channel: Channel, error: Unconfirmed) -> None:
        """Tell of a session that has ended: in the log where anything was lost, and to whoever wants to know."""
        if error.messages:
            whose = channel.session.client_id or "ours"
            _log.info("a session of {client_id} has ended: {error}", client_id=whose, error=error)
        for ended in self.ended:
            ended(channel, error)

    def ticked(self, now: float) -> None:
        """A tick has passed: whoever was slow may have read meanwhile."""
        if not self._lagging:
            # A process may have a thousand clients, each with a tick five times a second.
            return
        lagging, self._lagging = self._lagging, set()
        for channel in lagging:
            channel.pump()

    def rest(self) -> None:
        """No connection is left: nothing is owed to anybody."""
        self._owing.clear()
        self._lagging.clear()
        self._soon.disarm()

    def flush(self) -> None:
        """Acknowledge now what would be acknowledged soon: the connections are about to close."""
        owing, self._owing = self._owing, set()
        for channel in owing:
            channel.acknowledge()

    def suspend(self, reason: str) -> None:
        """This process lets go of all sessions; they go on in their store."""
        channels, self.channels = tuple(self.channels.values()), {}
        for channel in channels:
            channel.suspend(reason)
        self.rest()


def warn(failure: Failure) -> None:
    """Say what a store could not do: it was stopped, or a session is gone. That one has moved is nothing to warn of."""
    say = _log.debug if failure.check(TakenOver) else _log.warn
    say("{why}", why=failure.getErrorMessage())


def session_of(head: Head, kept: Sequence[Kept], bounds: Bounds) -> Session:
    """The session that a store remembers."""
    return Session(
        head.sid,
        head.epoch,
        head.client_id,
        bounds,
        sent=head.sent,
        confirmed=head.confirmed,
        handled=head.handled,
        attempt=head.attempt,
        fence=head.fence,
        kept=tuple(one.payload for one in kept),
    )
