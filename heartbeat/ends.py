"""The two kinds of edge: a server's, whose openings are judged, and a client's, which is told its session.

Neither knows what a judgement rests on; both see to it that the session goes on when the connection does not.
"""

from __future__ import annotations

from math import inf
from typing import Any

from autobahn.websocket.protocol import WebSocketProtocol

from heartbeat import outbox
from heartbeat.addresses import Where, is_local, where_from
from heartbeat.arrivals import Account
from heartbeat.auth import Credentials, credentials_of
from heartbeat.channel import Channel
from heartbeat.core.client_link import ClientLink
from heartbeat.core.errors import CloseCode
from heartbeat.core.link import LinkStatus
from heartbeat.core.opening import Declared, Opening
from heartbeat.core.presence import Standing
from heartbeat.core.server_link import ServerLink
from heartbeat.edge import JUDGED, PACED, Edge
from heartbeat.handshake import speaks_for_itself
from heartbeat.pacing import Pacing
from heartbeat.shared import ClientShared, ServerShared

__all__ = ["OVER_PACE", "ClientEdge", "ServerEdge"]

#: Whoever owes so many seconds to his pace is closed; whoever owes less is only read from more slowly.
OVER_PACE = 10.0

# Nothing is read for so long at most: what he sends is to be answered before he thinks that nobody is there.
_PAUSE = 1.0

# Who has beaten lately is no stranger, and is read before all who are; unless he leaves so many bytes lying that he was
# answered.
_PRESENT = (Standing.ACTIVE, Standing.AWAY)
_UNREAD = 65_536

_TOO_FAST = "too many messages a second (setting message_rate)"


class _Gone:
    """In the place of a protocol that is gone."""

    state = WebSocketProtocol.STATE_CLOSED
    peer = "a peer that is gone"
    transport = None


_GONE = _Gone()


class ServerEdge(Edge):
    """A server's edge: a candidate until its opening is judged."""

    __slots__ = ("_pacing", "_sent", "account", "is_asked_for", "is_told", "opened_at")

    shared: ServerShared
    link: ServerLink | None

    def __init__(self, protocol: Any, shared: ServerShared) -> None:
        super().__init__(protocol, shared, exact=False)
        self.is_asked_for = False
        #: When it came, and from then on when its WebSocket opened; running seconds.
        self.opened_at = self.now()
        #: Arrival: the address that it counts for.
        self.account: Account | None = None
        self._pacing: Pacing | None = None
        #: Whether all is told of its end.
        self.is_told = False
        # The highest number that a client which comes back says it has sent.
        self._sent = 0

    def enter(self, link: ServerLink, *, is_told: bool) -> None:
        """The WebSocket is open; `is_told`: to somebody who wants to know."""
        self.opened_at = self.now()
        self.shared.tally.opened += 1
        self.start(link, link.open(self.now()) if is_told else ())
        self._note_plain()

    # As an arrival.

    @property
    def transport(self) -> Any:
        """Arrival: how it came."""
        return self.protocol.transport

    def give_way(self) -> None:
        """Arrival: there is no room for those who wait."""
        self.drop()

    def gone(self, code: int | None) -> None:
        """The connection is gone, with the peer's close code or without any."""
        super().gone(code)
        self.shared.arrivals.left(self)
        self.shared.arrivals.lane.left(self)

    def paced(self) -> None:
        """Count what comes from now on, where anybody is counted."""
        if self.shared.arrivals.is_paced(self):
            self._pacing = Pacing(self.shared.arrivals, self.account, self.shared.ticker.running, self.now())
            self.left = 0
            # What has been read is handled, however much is owed for it.
            self.protocol._heartbeat_reader = outbox.read_little(self.protocol.transport)
        else:
            outbox.read_first(self.protocol.transport)

    def recount(self) -> bool:
        """More has come than was counted: read no more for a moment, if it came too fast."""
        pacing = self._pacing
        if pacing is None:
            return super().recount()
        now = self.now()
        self.left, owed, own = pacing.count(self.left, self.shared.ticker.running, now)
        if self._is_fair(pacing) is not pacing.is_first:
            self._rank(pacing)
        if own > OVER_PACE:
            self._flooded(now)
        elif owed and self._held & PACED:
            # The rest of what had been read already.
            self._paced_until = max(self._paced_until, now + min(_PAUSE, owed))
        elif owed:
            self.shared.refusals.counts["slowed-down"] += 1
            self._paced_until = now + min(_PAUSE, owed)
            self.hold(PACED)
            self._arm()
        return not self.dead

    def _is_fair(self, pacing: Pacing) -> bool:
        """Whether it is to be read before all those who are not."""
        if pacing.hasty or self.link is None or self.link.standing not in _PRESENT:
            return False
        return (outbox.unacknowledged(self.protocol.transport) or 0) < _UNREAD

    def _rank(self, pacing: Pacing) -> None:
        if pacing.is_first:
            pacing.is_first = False
            outbox.read_last(self.protocol.transport)
        else:
            pacing.known()
            outbox.read_first(self.protocol.transport)

    def rested(self, now: float) -> None:
        """It was not read from for long enough: it is when it is its turn."""
        self._paced_until = inf
        self.shared.arrivals.lane.wait(self, self.shared.ticker)

    def go_on(self) -> None:
        """Waiting: it is its turn."""
        if not (self.over or self.dead):
            self.guarded(self._read_again)

    def _read_again(self) -> None:
        pacing, protocol, now = self._pacing, self.protocol, self.now()
        if pacing is None:
            return
        # Our own clients may have that many on their way, whatever the rate is.
        most = max(pacing.too_many(OVER_PACE), self.shared.settings.kept_limit)
        if outbox.are_waiting(protocol.transport, most, begun=protocol.data, rest=protocol._heartbeat_rest()):
            self._flooded(now)
            return
        pacing.read_again(now)
        super().rested(now)
        self._arm()

    def _flooded(self, now: float) -> None:
        self.shared.arrivals.flooded(self.account, now)
        self.note("message_rate", _TOO_FAST)
        self.cut(CloseCode.POLICY, _TOO_FAST)

    # As a candidate.

    @property
    def given_id(self) -> str:
        """Candidate: the id that we gave it."""
        return "" if self.link is None else self.link.client_id or ""

    @property
    def address(self) -> str | None:
        """Candidate: where it comes from; None from this machine and its networks, where proxies are."""
        protocol = self.protocol
        head = protocol.http_request_data
        name, where = where_from(protocol.transport.getPeer(), head, self.shared.settings.trust_forwarded)
        return name if where is Where.FAR else None

    @property
    def waits(self) -> bool:
        """Candidate: whether it still waits for the judgement."""
        is_open = self.protocol.state == WebSocketProtocol.STATE_OPEN and not (self.over or self.dead)
        return is_open and self.link is not None and self.link.is_judging

    def honours(self, claimed: str | None) -> bool:
        """Candidate: whether an id that it only claims is honoured; one of our own making is nobody's to claim."""
        if claimed is None or claimed.startswith("c-"):
            return False
        if self.shared.settings.trust_client_ids:
            return True
        # Behind a proxy on this machine everybody looks local.
        return is_local(self.protocol.transport.getPeer()) and speaks_for_itself(self.protocol.http_headers)

    def credentials(self, opening: Opening | None) -> Credentials:
        """Candidate: what it shows."""
        token, claimed = (None, None) if opening is None else (opening.token, opening.claimed)
        return credentials_of(self.protocol, token, claimed)

    def admitted(self, channel: Channel, *, resumed: bool, reason: str) -> None:
        """Candidate: it is let in."""
        link = self.link
        if link is None:
            return
        self._forget_plain()
        self._go_on()
        self.shared.tally.admitted(self, channel.session, resumed=resumed, reason=reason)
        if resumed and self._pacing is not None:
            replayed = self._sent - channel.session.received
            self._pacing.credit(max(0, min(replayed, self.shared.settings.kept_limit)))
        self.adopt(channel, lambda: link.admitted(channel.session, self.now(), resumed=resumed, reason=reason))

    def named(self, client_id: str) -> None:
        """Candidate: it opens no session, and this is who it is."""
        if self.link is not None:
            self._forget_plain()
            self._go_on()
            self.shared.tally.named(self, client_id)
            self.carry(self.link.named(client_id, self.now()))
            self._note_plain()

    def refused(self, code: int, detail: str) -> None:
        """Candidate: it is not let in."""
        if self.link is not None and not self.over:
            self.carry(self.link.refused(code, detail))

    def superseded(self) -> None:
        """Candidate: its session is another connection's from now on."""
        self.cut(CloseCode.SUPERSEDED, "another connection has resumed this session")

    # As an edge.

    def changed(self, status: LinkStatus) -> None:
        """The link has changed: count it."""
        self.shared.tally.changed(self, status)
        super().changed(status)

    def answered(self, rtt: float | None, clients: int | None) -> None:
        """A ping of ours was answered: count it."""
        self.shared.tally.answered(rtt)
        super().answered(rtt, clients)

    def note(self, reason: str, why: str) -> None:
        """The peer is refused something: count it."""
        self.shared.refusals.refused(reason, self.protocol.peer, why, self.now())

    def judge(self, opening: Opening | None) -> None:
        """Have the opening judged; until it is, nothing more is read."""
        self._sent = opening.resume.sent if opening is not None and opening.resume is not None else 0
        admission = self.shared.admission
        judging = admission.judge_plain(self) if opening is None else admission.judge(self, opening)
        judging.addErrback(lambda failure: self.guarded(failure.raiseException))
        if self.waits:
            self.hold(JUDGED)
            self.limit(self.shared.settings.judge_timeout, self._not_in_time)

    def leave(self, code: int | None) -> None:
        """The connection is gone: its session waits, unless it was ended, or was never used."""
        self._forget_plain()
        channel, link = self.channel, self.link
        if channel is not None and link is not None:
            unused = not link.spoke and not channel.session.attempt
            self.shared.sessions.left(channel, self, for_good=code == CloseCode.NORMAL or unused)
        for gone in self.shared.gone:
            gone(self)

    def broken(self) -> None:
        """The peer broke a rule on which the session rests."""
        if self.channel is not None:
            self.shared.sessions.broken(self.channel)

    def let_go(self) -> None:
        """Its protocol may go when all is told, unless its session still hands it messages.

        Each knows the other, and both would wait for the garbage collector, which looks seldom where many come and go.
        Whoever still judges it asks whether it waits, before anything else, and it does not.
        """
        if self.is_told and (self.channel is None or not self.channel.needs(self)):
            self.protocol = _GONE

    def _not_in_time(self) -> None:
        if self.is_asked_for:
            self.refused(CloseCode.UNAUTHORIZED, "who you are could not be judged in time")
        else:
            # It is the store that is slow; 4401 would be final.
            self.refused(CloseCode.OVERLOAD, "sessions cannot be kept just now")

    def _go_on(self) -> None:
        self.unlimit()
        self.release(JUDGED)

    def _note_plain(self) -> None:
        if self.shared.plain is not None and self.channel is None and not self.over:
            self.shared.plain.setdefault(self.given_id, {})[self] = None

    def _forget_plain(self) -> None:
        plain = self.shared.plain
        mine = None if plain is None else plain.get(self.given_id)
        if plain is None or mine is None:
            return
        mine.pop(self, None)
        if not mine:
            del plain[self.given_id]


class ClientEdge(Edge):
    """A client's edge. Its session is its own and ends with it, unless somebody else sees to that."""

    __slots__ = ("plain",)

    shared: ClientShared
    link: ClientLink | None

    def __init__(self, protocol: Any, shared: ClientShared) -> None:
        super().__init__(protocol, shared, exact=True)
        self.plain = False

    def opened(self, declared: Declared | None) -> None:
        """The server has declared a session, or that it has none."""
        self.protocol._heartbeat_opened(self, declared)

    def goes_plain(self) -> None:
        """There is no session to be had here: what was to be sent in one goes out as it is."""
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.flush(self.write)

    def begin(self, channel: Channel, declared: Declared) -> None:
        """Carry the channel on, in the session that is declared as a new one."""
        self.shared.sessions.begin(channel, declared, lambda: self.admit(channel), wanted=self.is_there)

    def is_there(self) -> bool:
        """Whether it can carry a session."""
        return not (self.over or self.dead) and self.link is not None

    def admit(self, channel: Channel) -> None:
        """The session is there: carry it."""
        link = self.link
        if link is not None and self.is_there():
            self.adopt(channel, lambda: link.admitted(channel.session, self.now()))

    def leave(self, code: int | None) -> None:
        """The connection is gone."""
        self.protocol._heartbeat_left(self)

    def broken(self) -> None:
        """The server broke a rule on which the session rests."""
        self.protocol._heartbeat_broken(self)
