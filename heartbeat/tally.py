"""What one server counts for whoever watches it: who came and went, who was suspected, what it took to be sure.

Whole numbers and sums, raised where something happens that is seldom: a connection that comes or goes, a suspicion, a
resume, a tick, the answer to a ping of ours. The ordinary ping of a client is counted by nobody. Keeps no
connection beyond its end, and knows nothing of how the numbers are shown.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from heartbeat.core.errors import CloseCode
from heartbeat.core.link import LinkStatus
from heartbeat.core.monitor import State
from heartbeat.core.presence import Standing
from heartbeat.core.session import Session

__all__ = ["DETECTION", "LAG", "MOST_DEATHS", "REFUSALS", "ROUND_TRIP", "VERDICTS", "Death", "Histogram", "Tally"]

#: Seconds from the last byte to the conviction: closest where the bounds are at default settings (15.4 and 15.6 s).
DETECTION = (1.0, 2.5, 5.0, 7.5, 10.0, 12.5, 15.0, 15.5, 16.0, 20.0, 30.0, 60.0, 90.0)
#: Seconds from a ping to its answer.
ROUND_TRIP = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Seconds by which a tick comes late.
LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)

#: Why the monitor convicts; the wire's words.
VERDICTS = ("silent", "no-pong")
#: Why a session is not resumed; the wire's words.
REFUSALS = ("unknown", "expired", "epoch", "gap", "auth", "full")

#: So many links that died are remembered, the latest of them.
MOST_DEATHS = 100

# A peer may close with any of thousands of codes; those that mean nothing here are counted together.
_CODES = {int(code): str(int(code)) for code in CloseCode}


class Histogram:
    """How often a number was how large. `counts` are those up to each bound and above the one before; `sum` is of all.

    The last of `counts` is of those above all bounds.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def __len__(self) -> int:
        """How many there were."""
        return sum(self.counts)

    def note(self, number: float) -> None:
        """There was one more."""
        self.counts[bisect_left(self.bounds, number)] += 1
        self.sum += number


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """A link that died: convicted, or broken without a goodbye of either end. Times are seconds, `at` since 1970.

    `reason` is the monitor's word, or `broken`; `detail` says it in a sentence. `silent_for`, `unanswered_for` (of a
    `no-pong`: at least), `rtt`, `busy` and `level` are the evidence of that moment, as in `LinkStatus`; `age` is how
    long the connection was open.
    """

    at: float
    client_id: str
    peer: str
    reason: str
    detail: str
    silent_for: float
    unanswered_for: float
    rtt: float | None
    busy: bool
    level: int
    age: float


class Tally:
    """The numbers of one server, from its start.

    `opened` and `closed` are connections, the latter by who ended them (`client`, `server`, `nobody`) and by the close
    code; `relieved` are suspicions that ended well; `reconnects` are clients that came back, with a session or without;
    `replayed` are messages of ours that were written again after a resume. `wall` tells the seconds since 1970.
    """

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self.opened = 0
        self.closed: Counter[tuple[str, str]] = Counter()
        self.convictions: Counter[str] = Counter(dict.fromkeys(VERDICTS, 0))
        self.suspicions = 0
        self.relieved = 0
        self.reconnects = 0
        self.resumes = 0
        self.resumes_refused: Counter[str] = Counter(dict.fromkeys(REFUSALS, 0))
        self.replayed = 0
        self.detection = Histogram(DETECTION)
        self.round_trips = Histogram(ROUND_TRIP)
        self.lag = Histogram(LAG)
        #: The latest of them is the last.
        self.deaths: deque[Death] = deque(maxlen=MOST_DEATHS)
        self._wall = wall
        # Connections that are suspected just now, and since when each has owed an answer, in its running time.
        self._suspected: dict[Any, float] = {}

    # The edge of a connection, as far as it is looked at here, has `link`, `protocol`, `shared`, `opened_at` and `now`.

    def changed(self, edge: Any, status: LinkStatus) -> None:
        """A link has changed: it is suspected, or not any more, or convicted."""
        if status.event == State.SUSPECT:
            self.suspicions += 1
            self._suspected[edge] = edge.now() - status.unanswered_for
        elif status.event == State.DEAD:
            self.convictions[status.reason] += 1
            self.detection.note(status.silent_for)
            # A link that is dead has no pings out. One that was not even suspected has exhausted our patience.
            since = self._suspected.pop(edge, None)
            owed = edge.link.monitor.timing.patience if since is None else edge.now() - since
            self._died(edge, replace(status, unanswered_for=owed), status.reason)
        elif self._suspected.pop(edge, None) is not None:
            self.relieved += 1

    def answered(self, rtt: float | None) -> None:
        """A ping or a probe of ours was answered, after so many seconds; None where that says nothing."""
        if rtt is not None:
            self.round_trips.note(rtt)

    def admitted(self, edge: Any, session: Session, *, resumed: bool, reason: str) -> None:
        """Somebody is let in, before he is answered; `reason` is why the session that he named is not resumed."""
        if resumed:
            self.resumes += 1
            # What is kept above that was never written before.
            self.replayed += max(0, session.given_away - session.confirmed)
        elif reason:
            self.resumes_refused[reason] += 1
        if resumed or reason or _is_absent(edge.shared, session.client_id, but=session):
            self.reconnects += 1

    def named(self, edge: Any, client_id: str) -> None:
        """A page without a session is told who it is, before it is answered."""
        if edge.shared.presence.standing_of(client_id) is Standing.DETACHED:
            self.reconnects += 1

    def gone(self, edge: Any) -> None:
        """A connection is gone; one that never was a WebSocket is nothing to us."""
        link, protocol = edge.link, edge.protocol
        if link is None:
            return
        self._suspected.pop(edge, None)
        ended_by, code = _ended_by(protocol)
        self.closed[ended_by, code] += 1
        if ended_by == "nobody":
            status = link.status("closed", edge.now(), "the connection broke, and neither end had said goodbye")
            self._died(edge, status, "broken")

    def ticked(self, late: float) -> None:
        """A tick has come, so many seconds late."""
        self.lag.note(late)

    def _died(self, edge: Any, status: LinkStatus, reason: str) -> None:
        self.deaths.append(
            Death(
                at=self._wall(),
                client_id=status.client_id or "",
                peer=str(edge.protocol.peer),
                reason=reason,
                detail=status.detail,
                silent_for=status.silent_for,
                unanswered_for=status.unanswered_for,
                rtt=status.rtt,
                busy=status.busy,
                level=status.level,
                age=edge.now() - edge.opened_at,
            )
        )


def _is_absent(shared: Any, client_id: str, *, but: Session) -> bool:
    """Whether a client that opens a session was here before: it has another one, and nobody carries any of his."""
    if shared.presence.standing_of(client_id) is not Standing.DETACHED:
        return False
    return any(channel.session is not but for channel in shared.sessions.of(client_id))


def _ended_by(protocol: Any) -> tuple[str, str]:
    """Who ended a connection that is gone, and by which close code."""
    if protocol.closedByMe:
        return "server", _CODES.get(protocol.localCloseCode, "none")
    if protocol.remoteCloseCode is not None:
        return "client", _CODES.get(protocol.remoteCloseCode, "other")
    if protocol.wasClean:
        # RFC 6455, section 7.1.5: a close frame may have no code.
        return "client", "none"
    # An abort of ours, without a word; or nobody has said any.
    return ("server" if protocol.droppedByMe else "nobody"), "none"
