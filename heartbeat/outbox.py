"""What a transport still owes the network. The only file that touches a transport's private buffers.

Everything here answers None where it does not know: on a transport of another kind, or a platform
that cannot tell. Nothing here writes.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOProtocol

__all__ = ["bound_silence", "queued", "unacknowledged"]

# Linux: bytes in the socket's send queue that the peer has not acknowledged (tcp(7), SIOCOUTQ).
_SIOCOUTQ = 0x5411


def queued(transport: Any) -> int | None:
    """Bytes given to the transport that have not left this process."""
    total = 0
    if isinstance(transport, TLSMemoryBIOProtocol):
        total = sum(map(len, transport._appSendBuffer))
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


def _tcp_socket(transport: Any) -> socket.socket | None:
    if isinstance(transport, TLSMemoryBIOProtocol):
        transport = transport.transport
    handle = getattr(transport, "socket", None)
    if not isinstance(handle, socket.socket) or handle.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    return handle
