"""What a transport still owes the network, and the way to it. The only file that touches a transport's private buffers.

What asks answers None where it does not know: on a transport of another kind, or a platform that cannot tell.
What writes does not look into what it writes.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.tcp import Server
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOProtocol

__all__ = [
    "Way",
    "are_waiting",
    "bound_silence",
    "queued",
    "read_first",
    "read_last",
    "read_little",
    "read_up_to",
    "round_trip",
    "unacknowledged",
    "way_to",
    "write",
    "write_at_once",
]

#: Writes a frame to a transport; True when nothing of it waits here.
Way = Callable[[Any, bytes], bool]

# Linux: bytes in the socket's send queue that the peer has not acknowledged (tcp(7), SIOCOUTQ).
_SIOCOUTQ = 0x5411

# Linux: what the kernel knows of a TCP connection (tcp(7), struct tcp_info); its smoothed round trip in microseconds.
_TCP_INFO = 11
_RTT_AT = 68

# So many bytes are read at a time of whoever may not send as much as he likes. With 64, for those who are read last, a
# crowd that comes back after a server died took twice as long.
_LITTLE = 256

# Over TLS nothing is there before its record is, which may be 16 KiB; these are few steps to a large one.
_OF_A_RECORD = 2048

# As Twisted reads.
_MUCH = 65_536

# A client's frame is a head of two bytes, a mask of four, and what it holds (RFC 6455, section 5.2).
_SHORTEST = 6


def way_to(transport: Any) -> Way:
    """How to write to a transport that is open, decided once: at once where that is known to be safe."""
    return write_at_once if type(transport) is Server and not transport.TLS else write


def write(transport: Any, frame: bytes) -> bool:
    """A Way: give the frame to the transport."""
    transport.write(frame)
    return False


def write_at_once(transport: Any, frame: bytes) -> bool:
    """A Way to a TCP socket: straight into it, unless something is queued before.

    Twisted would arm EPOLLOUT, and write it a turn later. What the socket does not take is the transport's, and
    so is the socket's error, if it has one.
    """
    if (
        transport.dataBuffer
        or transport._tempDataBuffer
        or transport.disconnecting
        or transport._aborting
        or transport.TLS
        or not transport.connected
    ):
        transport.write(frame)
        return False
    try:
        sent = transport.socket.send(frame)
    except OSError:
        sent = 0
    if sent == len(frame):
        return True
    transport.write(frame[sent:])
    return False


def queued(transport: Any) -> int | None:
    """Bytes given to the transport that have not left this process."""
    total = 0
    while isinstance(transport, ProtocolWrapper):
        if isinstance(transport, TLSMemoryBIOProtocol):
            total += sum(map(len, transport._appSendBuffer))
        if isinstance(transport, BufferingTLSTransport):
            total += sum(map(len, getattr(transport._aggregator, "_buffer", ())))
        transport = transport.transport
    if not isinstance(transport, FileDescriptor):
        return None
    return total + len(transport.dataBuffer) - transport.offset + transport._tempDataLen


def unacknowledged(transport: Any) -> int | None:
    """Bytes that left this process and that the peer's kernel has not acknowledged; TCP on Linux only."""
    handle = _tcp_socket(transport)
    if handle is None or sys.platform != "linux":
        return None
    import fcntl  # noqa: PLC0415  # not on every platform

    try:
        answer = fcntl.ioctl(handle.fileno(), _SIOCOUTQ, b"\0\0\0\0")
    except (OSError, ValueError):
        # The socket is closing under us, or has closed and has no number any more.
        return None
    return int(struct.unpack("i", answer)[0])


def round_trip(transport: Any) -> float | None:
    """Seconds to the peer and back, or to the next proxy, as the kernel knows it; TCP on Linux only."""
    handle = _tcp_socket(transport)
    if handle is None or sys.platform != "linux":
        return None
    try:
        known = handle.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _RTT_AT + 4)
    except OSError:
        # It is closing under us.
        return None
    return int(struct.unpack_from("I", known, _RTT_AT)[0]) / 1_000_000


def read_little(transport: Any) -> Any:
    """Have little read from it at a time: Twisted reads 64 KiB, which may be thousands of messages.

    Returns what `read_up_to` takes; None where nothing can be done, or where it makes no difference: over TLS.
    """
    is_secured = False
    while isinstance(transport, ProtocolWrapper):
        is_secured = is_secured or isinstance(transport, TLSMemoryBIOProtocol)
        transport = transport.transport
    if not isinstance(transport, FileDescriptor):
        return None
    transport.bufferSize = _OF_A_RECORD if is_secured else _LITTLE
    return None if is_secured else transport


def read_up_to(reader: Any, count: int) -> None:
    """Have what is left of a frame read next, up to where another begins; where that is nothing, a little."""
    reader.bufferSize = min(count, _MUCH) if count else _LITTLE


def read_last(transport: Any) -> None:
    """Have it read when all others were, in each turn, where the reactor is one that knows of that (`reactor`)."""
    _have_read("read_last", transport)


def read_first(transport: Any) -> None:
    """Have it read like any other again."""
    _have_read("read_first", transport)


def _have_read(how: str, transport: Any) -> None:
    transport = _below(transport)
    have = getattr(getattr(transport, "reactor", None), how, None)
    if have is not None:
        have(transport)


def are_waiting(transport: Any, count: int, *, begun: bytes, rest: int) -> bool:
    """Whether the peer has sent so many frames of RFC 6455 that nobody has read; False where that cannot be told.

    `begun` is what was read of the first of them, and so many bytes of the `rest` of another one come before it.
    """
    while isinstance(transport, ProtocolWrapper):
        if isinstance(transport, TLSMemoryBIOProtocol):
            return False
        transport = transport.transport
    handle = getattr(transport, "socket", None)
    if not isinstance(handle, socket.socket) or getattr(transport, "TLS", False):
        return False
    try:
        data = begun + handle.recv(_MUCH, socket.MSG_PEEK)
    except OSError:
        # Nothing has come, or the socket is closing under us.
        return False
    at, size = rest, len(data)
    if size - at < count * _SHORTEST:
        return False
    while count > 0 and at + _SHORTEST <= size:
        length = data[at + 1] & 127
        if length < 126:
            # As many as are equally short are counted in one step: whoever floods says the same thing again and again.
            step = _SHORTEST + length
            lengths = data[at + 1 : size - _SHORTEST + 2 : step]
            alike = len(lengths) - len(lengths.lstrip(lengths[:1]))
            at += step * alike
            count -= alike
            continue
        more = 2 if length == 126 else 8
        at += _SHORTEST + more + int.from_bytes(data[at + 2 : at + 2 + more])
        count -= 1
    return count <= 0


def bound_silence(transport: Any, seconds: float) -> bool:
    """Have the kernel drop the connection when sent bytes stay unacknowledged for so long; True where it will.

    A backstop (TCP_USER_TIMEOUT, RFC 5482): it also ends a living peer that does not read, so it
    must lie well above the bounds by which we judge ourselves.
    """
    handle = _tcp_socket(transport)
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if handle is None or option is None:
        return False
    try:
        handle.setsockopt(socket.IPPROTO_TCP, option, int(seconds * 1000))
    except OSError:
        return False
    return True


def _below(transport: Any) -> Any:
    """The transport to the network, below TLS and what else there may be, as that of a proxy's protocol."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport


def _tcp_socket(transport: Any) -> socket.socket | None:
    transport = _below(transport)
    handle = getattr(transport, "socket", None)
    if type(transport) is Server:
        # Its own word for it: to ask a socket for its family costs a microsecond.
        return handle if transport.connected else None
    if not isinstance(handle, socket.socket) or handle.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    return handle
