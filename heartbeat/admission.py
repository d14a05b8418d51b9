"""Who is let in to a server, and to which session.

Judges openings, in the order of the protocol: identity, then the name and the age of the session, then
whether the attempt is a new one, then whether anything is missing. A refusal changes nothing.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Generator
from hmac import compare_digest
from typing import Any, Protocol

from twisted.internet.defer import inlineCallbacks, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from heartbeat.auth import Authenticator, Credentials, checked_identity
from heartbeat.channel import Channel, Connection
from heartbeat.core.errors import CloseCode, SessionFull, StoreError, Unauthorized
from heartbeat.core.opening import Opening
from heartbeat.core.session import Resume, Session
from heartbeat.register import SESSION, ServerSessions
from heartbeat.store import Head, TakenOver, new_sid

__all__ = ["Admission", "Candidate"]

_log = Logger()

_STALE = "a later attempt has resumed this session"


class Candidate(Connection, Protocol):
    """A connection whose opening is judged. `is_asked_for` while somebody is asked who it is."""

    is_asked_for: bool

    @property
    def given_id(self) -> str:
        """The id that we gave it."""
        ...

    @property
    def address(self) -> str | None:
        """Where it comes from, None from this machine."""
        ...

    @property
    def waits(self) -> bool:
        """Whether it still waits for the judgement."""
        ...

    def honours(self, claimed: str | None) -> bool:
        """Whether an id that it only claims is honoured."""
        ...

    def credentials(self, opening: Opening | None) -> Credentials:
        """What it shows."""
        ...

    def admitted(self, channel: Channel, *, resumed: bool, reason: str) -> None:
        """It is let in, with this session; `reason` is why another was not resumed."""
        ...

    def named(self, client_id: str) -> None:
        """It opens no session, and this is who it is."""
        ...

    def refused(self, code: int, detail: str) -> None:
        """It is not let in."""
        ...

    def superseded(self) -> None:
        """Its session is another connection's from now on."""
        ...

    def cut(self, code: int, reason: str) -> None:
        """Close it, and read nothing more."""
        ...


class Admission:
    """The judge of one server's openings. Without an `authenticator` whoever comes is let in."""

    def __init__(self, sessions: ServerSessions, authenticator: Authenticator | None) -> None:
        self.authenticator = authenticator
        self._sessions = sessions

    @inlineCallbacks
    def judge(self, candidate: Candidate, opening: Opening) -> Generator[Any, Any, None]:
        """Judge the opening of a connection: let it in, to the session it names or to a new one, or not."""
        try:
            if not self._sessions.epoch:
                yield self._sessions.start()
            identity = (yield self.identify(candidate, opening)) if candidate.waits else None
            if candidate.waits:
                yield self._judge(candidate, opening, identity)
        except StoreError as error:
            _log.warn("nobody is let in: {error}", error=error)
            candidate.refused(CloseCode.OVERLOAD, "sessions cannot be kept just now")

    @inlineCallbacks
    def judge_plain(self, candidate: Candidate) -> Generator[Any, Any, None]:
        """Judge a page that opens no session: one that shows no token is nobody in particular."""
        identity = None
        if candidate.credentials(None).token is not None:
            identity = yield self.identify(candidate, None)
        if candidate.waits:
            candidate.named(identity or candidate.given_id)

    @inlineCallbacks
    def identify(self, candidate: Candidate, opening: Opening | None) -> Generator[Any, Any, str | None]:
        """Who it is, by the authenticator's word; None where nobody is asked, or where it is sent away."""
        if self.authenticator is None:
            return None
        credentials = candidate.credentials(opening)
        candidate.is_asked_for = True

        def answered(result: Any) -> Any:
            candidate.is_asked_for = False
            return result

        # Not in a `finally`: that also runs when nobody keeps what never answers, and the garbage collector finds it.
        asked = maybeDeferred(self.authenticator.authenticate, credentials).addBoth(answered)
        try:
            identity = checked_identity((yield asked))
        except Unauthorized as refusal:
            candidate.refused(CloseCode.UNAUTHORIZED, str(refusal) or "not authorized")
        except (Exception, CancelledError):  # noqa: BLE001  # an application's hook may raise anything; asyncio's is none
            _log.failure("the authenticator failed")
            candidate.refused(CloseCode.UNAUTHORIZED, "who you are could not be judged")
        else:
            return identity
        return None

    @inlineCallbacks
    def _judge(self, candidate: Candidate, opening: Opening, identity: str | None) -> Generator[Any, Any, None]:
        resume, reason = opening.resume, ""
        if resume is not None:
            found = self._look_for(resume, opening.claimed, identity)
            if isinstance(found, Channel):
                if resume.attempt <= found.session.attempt:
                    candidate.refused(CloseCode.SUPERSEDED, _STALE)
                    return
                if not found.session.judge(resume.last, resume.sent):
                    reason = "gap"
                elif (yield self._resume(candidate, found, resume)):
                    return
            else:
                reason = found
            if self._sessions.is_shared and reason not in ("epoch", "auth"):
                reason = yield self._look_elsewhere(candidate, opening, resume, identity)
                if reason is None:
                    return
        yield self._begin(candidate, opening, identity, reason)

    def _look_for(self, resume: Resume, claimed: str | None, identity: str | None) -> Channel | str:
        """The session that is meant, or the reason why there is none for this one."""
        if resume.epoch != self._sessions.epoch:
            return "epoch"
        # A dictionary compares names only where 64 bits of a hash agree, whose key is a secret of this process: how
        # long that takes tells nothing of the name. What is found is compared in a time that tells nothing either.
        channel = self._sessions.channels.get(resume.sid)
        if channel is None or not compare_digest(channel.session.sid, resume.sid):
            return self._sessions.why_gone(resume.sid)
        name = self._name(claimed, identity)
        return channel if name in (None, channel.session.client_id) else "auth"

    def _name(self, claimed: str | None, identity: str | None) -> str | None:
        """Whose a session must be. Its name is a secret: whoever knows it, and says nothing else, is who he was."""
        return identity or "" if self.authenticator is not None else claimed

    @inlineCallbacks
    def _look_elsewhere(
        self, candidate: Candidate, opening: Opening, resume: Resume, identity: str | None
    ) -> Generator[Any, Any, str | None]:
        """Resume a session that another server has; the reason why not, None where there is nothing more to do."""
        name = self._name(opening.claimed, identity)
        try:
            found = yield self._sessions.elsewhere(resume, name, _at(candidate))
        except SessionFull as full:
            candidate.refused(CloseCode.OVERLOAD, str(full))
            return None
        if not isinstance(found, Channel):
            if found != "stale":
                return found if candidate.waits else None
            candidate.refused(CloseCode.SUPERSEDED, _STALE)
        elif candidate.waits:
            self._resumed(candidate, found, resume)
        else:
            self._sessions.leave_alone(found)
        return None

    @inlineCallbacks
    def _resume(self, candidate: Candidate, channel: Channel, resume: Resume) -> Generator[Any, Any, bool]:
        """Resume a session that is here; False where another server has taken it."""
        session, before = channel.session, channel.connection
        session.attempt = resume.attempt
        self._sessions.take_up(channel)
        channel.detach()
        if before is not None:
            before.superseded()  # type: ignore[attr-defined]  # a server's connections are candidates, all of them
        # What is committed from now on comes after the take-over in the store.
        session.fence += 1
        try:
            head = yield self._sessions.take_over(channel, resume.attempt)
        except TakenOver as error:
            self._sessions.lost(channel, Failure(error))
            return not candidate.waits
        except Exception:
            session.fence -= 1
            if not channel.ended and session.attempt == resume.attempt:
                self._sessions.leave_alone(channel)
            raise
        if channel.ended or session.attempt != resume.attempt:
            candidate.refused(CloseCode.SUPERSEDED, _STALE)
            return True
        if head is None:
            self._sessions.lost(channel)
            candidate.refused(CloseCode.OVERLOAD, "the session is not in the store any more")
            return True
        session.fence = head.fence
        if candidate.waits:
            self._resumed(candidate, channel, resume)
        else:
            self._sessions.leave_alone(channel)
        return True

    def _resumed(self, candidate: Candidate, channel: Channel, resume: Resume) -> None:
        """Let it in, with the session that it has resumed."""
        channel.session.resume(resume.last)
        channel.confirmed()
        if channel.ended:
            candidate.refused(CloseCode.OVERLOAD, "the session has ended already")
            return
        candidate.admitted(channel, resumed=True, reason="")
        for resumed in self._sessions.resumed:
            resumed(channel)

    @inlineCallbacks
    def _begin(
        self, candidate: Candidate, opening: Opening, identity: str | None, reason: str
    ) -> Generator[Any, Any, None]:
        claimed = opening.claimed if candidate.honours(opening.claimed) else None
        client_id = identity or claimed or candidate.given_id
        session = Session(new_sid(), self._sessions.epoch, client_id, self._sessions.bounds)
        channel = Channel(session, self._sessions, waits=True)
        accounts = ["id " + client_id, *_at(candidate)]
        try:
            self._sessions.make_place(client_id)
            self._sessions.make_room(accounts, SESSION, None)
        except SessionFull as full:
            candidate.refused(CloseCode.OVERLOAD, str(full))
            return
        self._sessions.add(channel, tuple(accounts))
        # It has its place, and is nobody's yet: what others sent to it would be lost with whoever does not wait for it.
        self._sessions.beginning.add(session.sid)
        try:
            yield self._sessions.store.open(Head(session.sid, session.epoch, client_id, self._sessions.settings.window))
        except Exception:
            self._sessions.lost(channel)
            raise
        finally:
            self._sessions.beginning.discard(session.sid)
        if channel.ended:
            candidate.refused(CloseCode.OVERLOAD, "the session has ended already")
        elif candidate.waits:
            candidate.admitted(channel, resumed=False, reason=reason)
        else:
            channel.end("closed")


def _at(candidate: Candidate) -> list[str]:
    """The account of where it comes from."""
    address = candidate.address
    return ["at " + address] if address else []
