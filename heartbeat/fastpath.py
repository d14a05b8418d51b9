"""The short way through a server: from the bytes of the socket to the answer, past Autobahn's parser.

Assumes a chunk of bytes that is one whole frame, or several: text, final, masked, of at most 125 bytes, on a connection
that is open, outside any message. An ordinary ping is answered here, as the link and `messages.pong_frame` say, without
an object that it does not need. What else is text goes where Autobahn would have taken it; whatever does not fit,
and what is not UTF-8, goes to Autobahn, as if nobody had looked. Autobahn's `trafficStats` know nothing of
what came this way. When a connection has opened it is looked at whether anybody stands on Autobahn's way who would miss
it. `Settings.fast_path` turns it off.
"""

from __future__ import annotations

from typing import Any

from heartbeat.frames import KEPT, REPEATED, TEXT_HEADS, text_frame

__all__ = ["FastPath"]

_number = int.from_bytes
# WebSocketProtocol.STATE_OPEN and STATE_CLOSED, which cost two look-ups there.
_OPEN = 3
_CLOSED = 0


class FastPath:
    """Stands before the heartbeat mixin among the bases, and receives before it."""

    _heartbeat: Any
    _heartbeat_message: Any
    transport: Any
    state: int

    def dataReceived(self, data: bytes) -> None:
        """Twisted's: bytes have arrived."""
        edge, size = self._heartbeat, len(data)
        # RFC 6455, section 5.2: FIN and opcode 1, MASK and the length, the masking key, the payload.
        if edge is None or not edge.is_fast or size <= 6 or data[0] != 0x81 or self.state != _OPEN:
            super().dataReceived(data)  # type: ignore[misc]  # the mixin's
            return
        if data[1] != size + 122 or size > 131:
            if 0x80 < data[1] <= 0xFD:
                self._heartbeat_in_frames(data)
            else:
                super().dataReceived(data)  # type: ignore[misc]  # as above
            return
        edge.left -= 1
        if edge.left < 0 and not edge.recount():
            return
        size -= 6
        mask = _number(data[2:6], "little") * REPEATED[size] & KEPT[size]
        payload = (_number(data[6:], "little") ^ mask).to_bytes(size, "little")
        ticker = edge.shared.ticker
        try:
            pong = edge.link.beat(payload, ticker.running.at(ticker.raw()))
            if pong is not None:
                size = len(pong)
                frame = TEXT_HEADS[size] + pong if size < 126 else text_frame(pong)
                edge.given += len(frame)
                if not edge.way(self.transport, frame):
                    edge.hold_back()
                return
        except Exception:  # noqa: BLE001  # as on the plain way: a bug ends its connection, and is logged
            edge.failed()
            return
        if not _is_text(payload):
            super().dataReceived(data)  # type: ignore[misc]  # as above
            return
        edge.heard()
        # Whoever was told that bytes arrive may have dropped the connection.
        if self.state != _CLOSED and not edge.dead:
            edge.guarded(self._heartbeat_message, payload, False)
            edge.hold_back()

    def _heartbeat_in_frames(self, data: bytes) -> None:
        """A chunk that may be several such frames: each by itself, and what is left the plain way."""
        at, size = 0, len(data)
        while size - at > 6 and data[at] == 0x81 and 0x80 < data[at + 1] <= 0xFD:
            end = at + data[at + 1] - 122
            if end > size:
                break
            # Not a subclass's, which has had the chunk.
            FastPath.dataReceived(self, data[at:end])
            at = end
        if at < size:
            super().dataReceived(data[at:] if at else data)  # type: ignore[misc]  # as above


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True
