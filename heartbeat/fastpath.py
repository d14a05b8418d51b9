"""The short way through a server: from the bytes of the socket to the answer, past Autobahn's parser.

Assumes a chunk of bytes that is one whole frame, or several: text, final, masked, of at most 125 bytes, on a connection
that is open, outside any message; or RFC 6455's own pings and pongs, of which a stranger may send some forty at a time.
An ordinary ping is answered here, as the link and `messages.pong_frame` say, without an object that it does not need.
What else is text goes where Autobahn would have taken it; whatever does not fit, and what is not UTF-8, goes to
Autobahn, as if nobody had looked. Autobahn's `trafficStats` know nothing of
what came this way. When a connection has opened it is looked at whether anybody stands on Autobahn's way who would miss
it. `Settings.fast_path` turns it off.
"""

from __future__ import annotations

from typing import Any

from heartbeat import outbox
from heartbeat.frames import KEPT, PONG_HEADS, REPEATED, TEXT_HEADS, text_frame

__all__ = ["FastPath"]

_number = int.from_bytes
# WebSocketProtocol.STATE_OPEN and STATE_CLOSED, which cost two look-ups there.
_OPEN = 3
_CLOSED = 0

# The first bytes of what is taken here: a final text, a ping, a pong; and how long a head with its masking key is.
_TAKEN = _TEXT, _PING, _PONG = 0x81, 0x89, 0x8A
_HEAD = 6


class FastPath:
    """Stands before the heartbeat mixin among the bases, and receives before it."""

    _heartbeat: Any
    _heartbeat_message: Any
    transport: Any
    state: int
    # Autobahn's: what it has not parsed yet, and where it is.
    data: bytes
    current_frame: Any
    inside_message: bool
    autoPingPending: Any
    trafficStats: Any

    def dataReceived(self, data: bytes) -> None:
        """Twisted's: bytes have arrived."""
        edge, size = self._heartbeat, len(data)
        # RFC 6455, section 5.2: FIN and opcode 1, MASK and the length, the masking key, the payload.
        if edge is None or not edge.is_fast or size <= _HEAD or data[0] != _TEXT or self.state != _OPEN:
            self._heartbeat_unlike(data)
            return
        if data[1] != size + 122 or size > 131:
            self._heartbeat_in_frames(data)
            return
        edge.left -= 1
        try:
            if edge.left < 0 and not edge.recount():
                return
            size -= 6
            mask = _number(data[2:6], "little") * REPEATED[size] & KEPT[size]
            payload = (_number(data[6:], "little") ^ mask).to_bytes(size, "little")
            ticker = edge.shared.ticker
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
            # Where that is taken all the same, it is counted there.
            edge.left += 1
            super().dataReceived(data)  # type: ignore[misc]  # the mixin's
            return
        edge.heard()
        # Whoever was told that bytes arrive may have dropped the connection.
        if self.state != _CLOSED and not edge.dead:
            edge.guarded(self._heartbeat_message, payload, False)
            edge.hold_back()

    def _heartbeat_unlike(self, data: bytes) -> None:
        """A chunk that is not, or does not begin with, a text that is taken here."""
        edge = self._heartbeat
        if edge is None or not edge.may_be_fast or edge.dead or self.state != _OPEN:
            super().dataReceived(data)  # type: ignore[misc]  # as above
            return
        begun = self.data
        if begun and len(begun) < _HEAD and not (edge.is_fast or self.current_frame or self.inside_message):
            # The last chunk ended within a head, with which Autobahn has not begun.
            whole = begun + data
            if _end_of_short(whole, 0):
                data, self.data, edge.is_fast = whole, b"", True
                # Parsed there after all it is counted again. (What came with the handshake was not counted here.)
                stats = self.trafficStats
                stats.incomingOctetsWireLevel = max(0, stats.incomingOctetsWireLevel - len(begun))
        if edge.is_fast:
            self._heartbeat_in_frames(data)
        else:
            super().dataReceived(data)  # type: ignore[misc]  # as above

    def _heartbeat_in_frames(self, data: bytes) -> None:
        """A chunk that may be several such frames: each by itself, and what is left the plain way."""
        at, size = 0, len(data)
        while end := _end_of_short(data, at):
            if data[at] != _TEXT:
                end = self._heartbeat_controls(data, at)
                if end == at:
                    break
            elif end - at > _HEAD:
                # Not a subclass's, which has had the chunk.
                FastPath.dataReceived(self, data[at:end])
            else:
                break
            at = end
        if at < size:
            super().dataReceived(data[at:] if at else data)  # type: ignore[misc]  # as above

    def _heartbeat_controls(self, data: bytes, at: int) -> int:
        """Pings and pongs of RFC 6455 that begin here, as many as there are; where what is left begins."""
        edge, size = self._heartbeat, len(data)
        if not (edge.is_fast and edge.takes_controls) or self.autoPingPending:
            return at
        # One is answered at once, of several the answers together.
        is_alone = data[1] == size + 122
        edge.heard()
        try:
            # Whoever is told of one may close, or have Autobahn write bit by bit.
            while edge.is_fast and self.state == _OPEN and (end := _end_of_short(data, at)) and data[at] != _TEXT:
                if edge.dead:
                    return size
                edge.left -= 1
                if edge.left < 0 and not edge.recount():
                    return size
                length = end - at - _HEAD
                mask = _number(data[at + 2 : at + _HEAD], "little") * REPEATED[length] & KEPT[length]
                payload = (_number(data[at + _HEAD : end], "little") ^ mask).to_bytes(length, "little")
                if data[at] == _PONG:
                    edge.pong(payload)
                else:
                    edge.given += length + 2
                    (edge.way if is_alone else outbox.write)(self.transport, PONG_HEADS[length] + payload)
                at = end
        except Exception:  # noqa: BLE001  # as above
            edge.failed()
            return size
        edge.hold_back()
        return size if edge.dead else at


def _end_of_short(data: bytes, at: int) -> int:
    """Where the frame ends that begins here, if it is a short one of those that are taken here, and whole; else 0."""
    if len(data) - at < _HEAD or data[at] not in _TAKEN or not 0x80 <= data[at + 1] <= 0xFD:
        return 0
    end = at + data[at + 1] - 122
    return end if end <= len(data) else 0


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True
