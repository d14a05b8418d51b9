"""The two kinds of edge: a server's, whose openings are judged, and a client's, which is told its session.

Neither knows what a judgement rests on; both see to it that the session goes on when the connection does not.
"""

from __future__ import annotations

from typing import Any

from autobahn.websocket.protocol import WebSocketProtocol

from heartbeat.auth import Credentials, credentials_of
from heartbeat.channel import Channel
from heartbeat.core.client_link import ClientLink
from heartbeat.core.errors import CloseCode
from heartbeat.core.opening import Declared, Opening
from heartbeat.core.server_link import ServerLink
from heartbeat.edge import Edge
from heartbeat.handshake import speaks_for_itself
from heartbeat.shared import ClientShared, ServerShared, is_local

__all__ = ["ClientEdge", "ServerEdge"]


class ServerEdge(Edge):
    """A server's edge: a candidate until its opening is judged."""

    __slots__ = ("_paused", "is_asked_for")

    shared: ServerShared
    link: ServerLink | None

    def __init__(self, protocol: Any, shared: ServerShared) -> None:
        super().__init__(protocol, shared, exact=False)
        self._paused = False
        self.is_asked_for = False

    def enter(self, link: ServerLink, *, is_told: bool) -> None:
        """The WebSocket is open; `is_told`: to somebody who wants to know."""
        self.start(link, link.open(self.now()) if is_told else ())
        self._note_plain()

    # As a candidate.

    @property
    def given_id(self) -> str:
        """Candidate: the id that we gave it."""
        return "" if self.link is None else self.link.client_id or ""

    @property
    def address(self) -> str | None:
        """Candidate: where it comes from; None from this machine, where there may be a proxy for many."""
        protocol, peer = self.protocol, self.protocol.transport.getPeer()
        if self.shared.settings.trust_forwarded and "x-forwarded-for" in protocol.http_headers:
            return str(protocol.peer)[:64]
        if is_local(peer):
            return None
        return str(getattr(peer, "host", "")) or None

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
        self.adopt(channel, lambda: link.admitted(channel.session, self.now(), resumed=resumed, reason=reason))

    def named(self, client_id: str) -> None:
        """Candidate: it opens no session, and this is who it is."""
        if self.link is not None:
            self._forget_plain()
            self._go_on()
            self.carry(self.link.named(client_id, self.now()))
            self._note_plain()

    def refused(self, code: int, detail: str) -> None:
        """Candidate: it is not let in."""
        if self.link is not None and not self.over:
            self._log.info("{peer} is not let in: {why}", peer=self.protocol.peer, why=detail)
            self.carry(self.link.refused(code, detail))

    def superseded(self) -> None:
        """Candidate: its session is another connection's from now on."""
        self.cut(CloseCode.SUPERSEDED, "another connection has resumed this session")

    # As an edge.

    def judge(self, opening: Opening | None) -> None:
        """Have the opening judged; until it is, nothing more is read."""
        admission = self.shared.admission
        judging = admission.judge_plain(self) if opening is None else admission.judge(self, opening)
        judging.addErrback(lambda failure: self.guarded(failure.raiseException))
        # It may be gone by then.
        judging.addCallback(lambda _: self.let_go())
        if self.waits:
            self._paused = True
            self.protocol.transport.pauseProducing()
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

    def _not_in_time(self) -> None:
        if self.is_asked_for:
            self.refused(CloseCode.UNAUTHORIZED, "who you are could not be judged in time")
        else:
            # It is the store that is slow; 4401 would be final.
            self.refused(CloseCode.OVERLOAD, "sessions cannot be kept just now")

    def _go_on(self) -> None:
        self.unlimit()
        if self._paused:
            self._paused = False
            self.protocol.transport.resumeProducing()

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
