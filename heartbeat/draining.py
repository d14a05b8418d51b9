"""A server on its way out: asks everybody to come back a little later, each at another moment, and closes in batches.

Whoever opened a session is told a window (`drain`) and draws his moment from it; a page that opened none cannot be
told, so it is closed at a moment of ours. A connection whose messages are being handled is closed when that is
done, at the latest after `drain_timeout`.
"""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import Any

from autobahn.websocket.protocol import WebSocketProtocol

from heartbeat.core.errors import CloseCode
from heartbeat.core.messages import drain_frame
from heartbeat.core.settings import Settings

__all__ = ["Draining"]

_WHY = "the server restarts"

# Closed in one tick at least, where it is their time: 50 ms of work.
_BATCH = 500


class Draining:
    """The connections there are when it begins, and when each is closed."""

    def __init__(self, settings: Settings, edges: set[Any], now: float) -> None:
        self._deadline = now + settings.drain_timeout
        told = [edge for edge in edges if edge.link is not None and edge.link.level]
        untold = [edge for edge in edges if edge.link is None or not edge.link.level]
        # A client waits for half of its session's window at most.
        first = settings.drain_after
        last = max(first, min(first + len(edges) / settings.drain_rate, settings.window / 2))
        frame = drain_frame(round(1000 * first), round(1000 * last))
        for edge in told:
            edge.write(frame)
        # Whoever comes back the moment he is closed comes back at a moment of our choice, so these are spread.
        gap = min(1 / settings.drain_rate, settings.drain_timeout / 2 / max(1, len(untold)))
        self._pages = deque((now + number * gap, edge) for number, edge in enumerate(untold))
        self._waiting = dict.fromkeys(told)
        # In half of the time all have had their turn; without any time the first look closes them.
        ticks = max(1, int(settings.drain_timeout / 2 / settings.tick))
        self._batch = max(_BATCH, ceil(len(told) / ticks))
        self._edges = edges
        self.ticked(now)

    def ticked(self, now: float) -> None:
        """Close those whose time it is."""
        if now >= self._deadline:
            for edge in tuple(self._edges):
                _close(edge)
            return
        while self._pages and self._pages[0][0] <= now:
            _close(self._pages.popleft()[1])
        left = self._batch
        for edge in tuple(self._waiting):
            if edge.over or edge.channel is None or edge.channel.session.is_idle:
                del self._waiting[edge]
                _close(edge)
                left -= 1
                if not left:
                    break


def _close(edge: Any) -> None:
    if edge.over or edge.dead or edge.protocol.state == WebSocketProtocol.STATE_CLOSING:
        return
    if edge.channel is not None:
        edge.channel.acknowledge()
    edge.close(CloseCode.RESTART, _WHY)
